"""Gaussian kernels of linear SDEs: exact for constant coefficients, by collocation for others.

Over an interval a linear SDE ``dx = (K x + b) dt + G dW`` is ``x ↦ N(Ψ x + μ, Q)``. With constant
coefficients the three come from a matrix exponential (Van Loan 1978); else they solve

    Ψ' = K Ψ,        μ' = K μ + b,        Q' = K Q + Q Kᵀ + G Gᵀ

by Gauss collocation on panels that are halved until polynomials resolve the solution to round-off
(Hairer, Nørsett & Wanner 1993, II.7). All of it is done on the host in float64. A `Table` keeps these
polynomials: what reads them is done on the device, for any number of times, and differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

_ORDER = 16  # collocation points of a panel
_RESOLVED = 1e-14  # share that the last coefficients of a polynomial may have
_MAX_PANELS = 1024
_SHORTEST = 2.0**-46  # of the whole, the shortest panel
_GRADED = (
    24  # panels of a table double in length, from 2^-24 of the whole, where the noise is small
)

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(_ORDER)
_BASIS = np.polynomial.legendre.legvander(_NODES, _ORDER - 1)
# Values at the nodes to coefficients of Legendre polynomials, and to integrals up to the nodes.
_TO_COEFFICIENTS = (np.arange(_ORDER) + 0.5)[:, None] * _BASIS.T * _WEIGHTS
_INTEGRALS = (
    np.stack(
        [
            np.polynomial.legendre.legval(_NODES, np.polynomial.legendre.legint(column, lbnd=-1.0))
            for column in _TO_COEFFICIENTS.T
        ],
        axis=1,
    )
    / 2
)


class Kernel(NamedTuple):
    """A Gaussian transition ``x ↦ N(matrix x + shift, cov)``, or several at once.

    Attributes:
        matrix: ``Ψ``, ``(..., d, d)``.
        shift: ``μ``, ``(..., d)``.
        cov: ``Q``, ``(..., d, d)``.
    """

    matrix: Array
    shift: Array
    cov: Array

    def then(self, after: Kernel) -> Kernel:
        """Return the transition that makes this one, and then another."""
        transposed = np.swapaxes(after.matrix, -1, -2)
        return Kernel(
            after.matrix @ self.matrix,
            after.matrix @ self.shift + after.shift,
            after.matrix @ self.cov @ transposed + after.cov,
        )


class Coefficients(NamedTuple):
    """Values of the coefficients of a linear SDE, at one time or at several.

    Attributes:
        K: ``(..., d, d)``.
        b: ``(..., d)``.
        gram: ``G Gᵀ``, ``(..., d, d)``.
    """

    K: Array
    b: Array
    gram: Array


At = Callable[[Array], Coefficients]
"""Coefficients at times ``(n,)``."""


def identity(dim: int) -> Kernel:
    """Return the transition over no time."""
    return Kernel(np.eye(dim), np.zeros(dim), np.zeros((dim, dim)))


def constant_kernel(c: Coefficients, length: float) -> Kernel:
    """Return the kernel over a time with constant coefficients.

    Van Loan's exponential has a factor ``exp(−K h)``, which cancels; it is taken over a time in which
    that is harmless, and the kernel is doubled, a sum of positive terms.

    Source: Van Loan 1978, theorem 1.
    """
    from scipy.linalg import expm  # a quarter of a second to import

    dim = len(c.b)
    norm = float(np.abs(c.K).sum(1).max()) * length
    doublings = max(0, int(np.ceil(np.log2(norm))) + 1) if norm > 0 else 0
    step = length / 2**doublings
    zero = np.zeros((dim, dim))
    moved = expm(step * np.block([[c.K, c.b[:, None]], [np.zeros((1, dim + 1))]]))
    loan = expm(step * np.block([[-c.K, c.gram], [zero, c.K.T]]))
    matrix, cov = moved[:dim, :dim], loan[dim:, dim:].T @ loan[:dim, dim:]
    kernel = Kernel(matrix, moved[:dim, dim], 0.5 * (cov + cov.T))
    for _ in range(doublings):
        kernel = kernel.then(kernel)
    return kernel


class _Panel(NamedTuple):
    """Kernels from the start of an interval: to its collocation points, and to its end."""

    start: float
    end: float
    inner: Kernel
    whole: Kernel


def _collocated(at: At, start: float, end: float) -> _Panel:
    """Solve the three equations on one panel, from its start."""
    h = end - start
    c = at(start + 0.5 * h * (1 + _NODES))
    dim = c.b.shape[1]
    # Ψ_i = I + h Σ_j A_ij K_j Ψ_j, and the same for μ: one linear system for the stages.
    coupling = np.einsum("ij,jkl->ikjl", h * _INTEGRALS, c.K).reshape(_ORDER * dim, _ORDER * dim)
    right = np.zeros((_ORDER, dim, dim + 1))
    right[:, :, :dim], right[:, :, dim] = np.eye(dim), h * _INTEGRALS @ c.b
    solved = np.linalg.solve(np.eye(_ORDER * dim) - coupling, right.reshape(_ORDER * dim, dim + 1))
    matrix, shift = np.split(solved.reshape(_ORDER, dim, dim + 1), [dim], axis=2)
    shift = shift[:, :, 0]
    # Q = Ψ (∫ Ψ⁻¹ G Gᵀ Ψ⁻ᵀ) Ψᵀ, over a panel short enough for the inverse.
    half = np.linalg.solve(matrix, c.gram)
    rate = np.linalg.solve(matrix, np.swapaxes(half, 1, 2))
    spread = h * np.einsum("ij,jkl->ikl", _INTEGRALS, rate)
    inner = Kernel(matrix, shift, matrix @ spread @ np.swapaxes(matrix, 1, 2))
    weights = 0.5 * h * _WEIGHTS
    last = np.eye(dim) + np.einsum("j,jkl,jlm->km", weights, c.K, matrix)
    moved = np.einsum("j,jk->k", weights, np.einsum("jkl,jl->jk", c.K, shift) + c.b)
    total = last @ np.einsum("j,jkl->kl", weights, rate) @ last.T
    return _Panel(start, end, inner, Kernel(last, moved, 0.5 * (total + total.T)))


def _resolved(panel: _Panel) -> bool:
    """Whether the polynomials through the collocation points end in negligible coefficients."""
    for values in panel.inner:
        flat = _TO_COEFFICIENTS @ values.reshape(_ORDER, -1)
        if not np.isfinite(flat).all():
            return False
        if np.abs(flat[-2:]).max() > _RESOLVED * np.abs(flat).max():
            return False
    return True


def _panels(at: At, start: float, end: float, edges: Array) -> Iterator[_Panel]:
    """Yield panels between edges, halved where they are too long.

    Raises:
        ValueError: If the coefficients are not smooth.
    """
    waiting = list(pairwise(edges))[::-1]
    done = 0
    while waiting:
        a, b = waiting.pop()
        panel = _collocated(at, float(a), float(b))
        # At a jump of a coefficient nothing is resolved, and at last nothing is left to resolve.
        move = np.abs(panel.whole.matrix - np.eye(panel.whole.matrix.shape[0])).max()
        if _resolved(panel) or (b - a <= _SHORTEST * (end - start) and move < 1e-9):
            done += 1
            yield panel
            continue
        middle = 0.5 * (a + b)
        if done + len(waiting) > _MAX_PANELS or b - a <= _SHORTEST * (end - start):
            raise ValueError(
                f"the coefficients cannot be integrated near t = {middle:.6g}; give functions that "
                "are finite, piecewise smooth and not too large on [0, T]"
            )
        waiting += [(middle, b), (a, middle)]


def collocated_kernel(at: At, start: float, end: float, dim: int) -> Kernel:
    """Return the kernel from ``start`` to ``end`` with coefficients that depend on time.

    Raises:
        ValueError: If they are not smooth.
    """
    if start == end:
        return identity(dim)
    panels = _panels(at, start, end, np.array([start, end]))
    return reduce(Kernel.then, (panel.whole for panel in panels), identity(dim))


class TableValues(NamedTuple):
    """A kernel read from a `Table`, with the shape of the times in front."""

    matrix: Tensor
    shift: Tensor
    cov: Tensor


class Table:
    """Kernels from ``start`` to all later times up to ``end``, as polynomials on panels.

    Args:
        at: The coefficients.
        start: Where the kernels start.
        end: The last time.
        first: What happens before ``start``.

    Raises:
        ValueError: If the coefficients are not smooth.
    """

    def __init__(self, at: At, start: float, end: float, first: Kernel) -> None:
        # Panels that double from 0: a polynomial is exact relative to the largest value of its panel.
        scales = end * np.exp2(np.arange(-_GRADED, 0))
        edges: Array = np.array([start, *scales[scales > start], end])
        self.dim = len(first.shift)
        ends, coefficients, before = [start], [], first
        for panel in _panels(at, start, end, edges):
            kernel = before.then(panel.inner)
            parts = [values.reshape(_ORDER, -1) for values in kernel]
            coefficients.append(_TO_COEFFICIENTS @ np.concatenate(parts, axis=1))
            ends.append(panel.end)
            before = before.then(panel.whole)
        # Tensors made in inference mode could never be used in autograd afterwards.
        with torch.inference_mode(False):
            self._edges = torch.tensor(ends, dtype=torch.float64)
            self._coefficients = torch.as_tensor(np.stack(coefficients))

    def __call__(self, t: Tensor) -> TableValues:
        """Read the kernels to times ``t`` of any shape, in float64; no value is read by the host.

        Solvers may look beyond the ends: the first kernel holds before the start, where the first
        panel is short, and the last polynomial goes on.
        """
        edges, coefficients = self._edges.to(t.device), self._coefficients.to(t.device)
        t = t.double().clamp(min=edges[0])
        last = len(coefficients) - 1
        panel = (torch.searchsorted(edges, t.detach().contiguous()) - 1).clamp(0, last)
        x = 2 * (t - edges[panel]) / (edges[panel + 1] - edges[panel]) - 1
        basis = [torch.ones_like(x), x]
        for k in range(1, _ORDER - 1):  # Legendre's recurrence
            basis.append(((2 + 1 / k) * x * basis[k] - basis[k - 1]) * (k / (k + 1)))
        values = (torch.stack(basis, -1)[..., None, :] @ coefficients[panel])[..., 0, :]
        square = (*t.shape, self.dim, self.dim)
        matrix, shift, cov = torch.split(values, [self.dim**2, self.dim, self.dim**2], dim=-1)
        return TableValues(matrix.reshape(square), shift, cov.reshape(square))
