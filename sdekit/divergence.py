"""Traces of Jacobians, from which a solve finds the log-likelihood along a probability flow.

Along ``dx/dt = v(x, t)`` the density obeys ``d log p(x(t))/dt = −tr(∂v/∂x)``. The probes of an
estimate are fixed for a whole solve: the integral is unbiased all the same, and the solver sees a
smooth function (Grathwohl et al. 2019, FFJORD, section 3.1). Each estimate is a column; how far
their integrals are apart tells the standard error::

    divergence = Hutchinson(12)
    probes = divergence.prepare(x, seed=0)
    value, columns = probes(lambda x: denoiser(x, sigma), x)  # anew at every stage
    trace, standard_error = divergence.estimate(columns)      # of columns, or of their integrals
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .brownian import IndependentNoise
from .sde import check_output
from .solvers.registry import did_you_mean

__all__ = ["Divergence", "Exact", "FixedProbes", "HutchPlusPlus", "Hutchinson", "named_divergence"]

Kind: TypeAlias = Literal["rademacher", "gaussian"]
Product: TypeAlias = Callable[[Tensor], Tensor]
"""Each sample's product ``vᵀ J`` by a backward pass, ``(B, d)`` to ``(B, d)``."""

# A state from `sample` began as the noise of its seed. With the same seed the probes would be that
# noise, and to be unbiased they have to be independent of the state.
_STREAM = 0x7E57_AB1E

_NO_PATH = (
    "the function's output does not depend differentiably on its input: it detaches it, runs under "
    "torch.no_grad() or outside torch, or is constant (if so, add 0 * x)"
)


class Divergence(ABC):
    """An estimator of the trace of every sample's Jacobian ``J``, by backward passes."""

    columns: int = 1  # estimates per sample, each of them unbiased

    def prepare(self, like: Tensor, seed: int | Sequence[int] | None = None) -> FixedProbes:
        """Draw the probes of a whole solve.

        Args:
            like: State, ``(B, *event)``, whose shape, dtype and device are taken.
            seed: One seed for the batch, or one per sample: sample ``i``'s probes then depend on
                ``seed[i]`` alone. ``None`` takes torch's global state.

        Raises:
            TypeError, ValueError: If the seed is not a whole number, or one for each sample.
        """
        seeds = np.asarray(seed)
        own = (seeds.astype(np.int64) ^ _STREAM).tolist() if seeds.dtype.kind in "iu" else seed
        noise, d = IndependentNoise(own), math.prod(like.shape[1:])
        probes = self._draw(lambda n: noise.normal(like.new_empty(len(like), n, d)))
        return FixedProbes(self, probes)

    def estimate(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard error, ``(B,)``, of columns or of their integrals.

        One column, ``(B, 1)``, does not tell its standard error, which is then NaN.
        """
        mean, count = columns.mean(-1), columns.shape[-1]
        if count == 1:  # std would warn
            return mean, torch.full_like(mean, math.nan)
        return mean, columns.std(-1) / math.sqrt(count)

    @abstractmethod
    def _draw(self, normal: Callable[[int], Tensor]) -> Tensor:
        """Make probes, ``(B, n, d)``, of ``normal(m)``: standard normal numbers, ``(B, m, d)``."""

    @abstractmethod
    def _trace(self, product: Product, probes: Tensor) -> Tensor:
        """Estimate the trace: ``(B, columns)``."""


@dataclass(frozen=True)
class FixedProbes:
    """An estimator and its probes, ``(B, n, d)``: from here on a function, without chance."""

    divergence: Divergence
    probes: Tensor

    def select(self, rows: Tensor) -> FixedProbes:
        """Return the probes of some samples, by their indices or by a mask of the batch."""
        return FixedProbes(self.divergence, self.probes[rows])

    def __call__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate a function, once, and the columns ``(B, columns)``; both come detached.

        Works under ``torch.no_grad()``, and leaves the ``grad`` of parameters as it is.

        Args:
            function: Maps ``(B, *event)`` to ``(B, *event)``, each sample by itself.
            x: State, ``(B, *event)``.

        Raises:
            ValueError: If the probes are those of another batch, or autograd finds no path from
                the function's input to its output.
            RuntimeError: In ``torch.inference_mode()``.
        """
        batch, _, d = self.probes.shape
        if (len(x), math.prod(x.shape[1:])) != (batch, d):  # else a batch of one would broadcast
            raise ValueError(
                f"probes for {batch} samples of {d} numbers got a state of shape {tuple(x.shape)}; "
                "take select(rows) for a part of the batch"
            )
        if torch.is_inference_mode_enabled():
            raise RuntimeError("torch.inference_mode() rules out backward passes; use no_grad()")
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()  # a tensor from inference mode can be cloned
            value = check_output(function(leaf), leaf, "function")

        def product(v: Tensor) -> Tensor:
            gradient = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(
                    value, leaf, v.reshape(x.shape), retain_graph=True, allow_unused=True
                )
            if gradient is None:
                raise ValueError(_NO_PATH)
            return gradient.flatten(1)

        return value.detach(), self.divergence._trace(product, self.probes)


class Exact(Divergence):
    """The trace itself, by one backward pass for each of the ``d`` dimensions."""

    def estimate(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return the trace or its integral, ``(B,)``, and its standard error, 0."""
        return columns.mean(-1), torch.zeros_like(columns[..., 0])

    def _draw(self, normal: Callable[[int], Tensor]) -> Tensor:
        return normal(0)

    def _trace(self, product: Product, probes: Tensor) -> Tensor:
        batch, _, d = probes.shape
        one_hot = torch.eye(d).to(probes).expand(batch, d, d)
        return _quadratic(product, one_hot).sum(1, keepdim=True)


class Hutchinson(Divergence):
    """Columns ``vᵀ J v``, ``v`` random of covariance ``I``, by one backward pass each.

    Sources: Hutchinson (1990); for the probability flow Song et al. (2021), appendix D.2. With
    ``A = (J + Jᵀ)/2`` a column has variance ``2 Σ_ij A_ij²`` for normal numbers and
    ``2 Σ_{i≠j} A_ij²`` for random signs, which make no error if the Jacobian is diagonal.

    Args:
        probes: How many columns; the standard error of a single one is NaN.
        kind: ``"rademacher"``, random signs, or ``"gaussian"``.
    """

    def __init__(self, probes: int = 12, kind: Kind = "rademacher") -> None:
        if probes < 1:
            raise ValueError(f"probes = {probes}; Hutchinson's estimator needs 1 or more")
        if kind not in ("rademacher", "gaussian"):
            raise ValueError(f"kind = {kind!r}; it must be 'rademacher' or 'gaussian'")
        self.columns = probes
        self.kind = kind

    def _draw(self, normal: Callable[[int], Tensor]) -> Tensor:
        vectors = normal(self.columns)
        return vectors if self.kind == "gaussian" else _signs(vectors)

    def _trace(self, product: Product, probes: Tensor) -> Tensor:
        return _quadratic(product, probes)


class HutchPlusPlus(Divergence):
    """Hutch++: the trace on a few leading directions, and an estimate of the rest.

    Source: Meyer, Musco, Musco & Woodruff (2021), algorithm 1, for ``Jᵀ``. The columns of ``Q`` are
    an orthonormal basis of ``Jᵀ S``, ``S`` a sketch of ``k = probes // 3`` vectors, at most ``d``.
    With ``P = I − QQᵀ`` and ``g`` random signs, a column is ``tr(Qᵀ J Q) + gᵀ P J P g``: unbiased,
    and independent of the others, for any given sketch.

    Of ``probes`` backward passes (fewer if ``d < k``) ``k`` make ``Q``, ``k`` the trace on it, and
    ``probes − 2k`` a column each. There is no error if ``J`` has rank ``k`` or less, and less than
    Hutchinson's if its spectrum falls fast. Else random signs alone do better: a large diagonal,
    as that of a denoiser at low noise, costs them nothing, but ``PJP`` is not diagonal if ``J`` is.

    Args:
        probes: How many backward passes; the standard error from fewer than 4 is NaN.
    """

    def __init__(self, probes: int = 12) -> None:
        if probes < 3:
            raise ValueError(f"probes = {probes}; Hutch++ needs 3 or more")
        self.sketch = probes // 3
        self.columns = probes - 2 * self.sketch

    def _draw(self, normal: Callable[[int], Tensor]) -> Tensor:
        # Random signs may be linearly dependent in few dimensions: round-off would complete Q, anew
        # at every state, and the estimate jump. Only the span counts: take its best basis.
        sketch = torch.linalg.qr(normal(self.sketch).mT).Q.mT
        return torch.cat([sketch, _signs(normal(self.columns))], 1)

    def _trace(self, product: Product, probes: Tensor) -> Tensor:
        sketch, rest = probes[:, : -self.columns], probes[:, -self.columns :]
        # Householder's Q is orthonormal at any rank. If that of J is low, what completes Q is
        # arbitrary, but J is zero there, and the estimate does not depend on it.
        Q = torch.linalg.qr(torch.stack([product(v) for v in sketch.unbind(1)], 2)).Q
        rest = rest - rest @ Q @ Q.mT
        return _quadratic(product, Q.mT).sum(1, keepdim=True) + _quadratic(product, rest)


def _signs(normal: Tensor) -> Tensor:
    return torch.ones_like(normal).copysign(normal)  # sign(0) would be 0


def _quadratic(product: Product, vectors: Tensor) -> Tensor:
    """Return ``vᵀ J v``, ``(B, n)``, for vectors ``(B, n, d)``."""
    return torch.stack([(product(v) * v).sum(1) for v in vectors.unbind(1)], 1)


_NAMED = {
    "exact": Exact(),
    "hutchinson": Hutchinson(),
    "gaussian": Hutchinson(kind="gaussian"),
    "hutch++": HutchPlusPlus(),
}


def named_divergence(divergence: str | Divergence) -> Divergence:
    """Resolve ``"exact"``, ``"hutchinson"``, ``"gaussian"`` or ``"hutch++"``; pass on an estimator.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(divergence, Divergence):
        return divergence
    if divergence not in _NAMED:
        raise ValueError(
            f"unknown divergence {divergence!r}; {did_you_mean(str(divergence), _NAMED)}there are "
            f"{', '.join(map(repr, _NAMED))}, or pass a Divergence"
        )
    return _NAMED[divergence]
