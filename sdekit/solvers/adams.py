"""Adams schemes of variable step, with exact weights in every coordinate system."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..coordinates import Coordinates, Points
from .multistep import Multistep
from .scheme import Array

Basis: TypeAlias = Callable[[NDArray[np.int64], Array], Array]
"""``basis(rows, tau)``: functions of intervals ``rows`` at points ``(n, q)``, as ``(k, n, q)``."""

# Gauss–Legendre nodes per panel of a noise ratio of e: the integrands are analytic in a strip of
# half-width π/2 around real λ, so that 16 nodes leave an error below 1e-20 of their size.
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(16)


class Adams(Multistep):
    """Adams–Bashforth, with Adams–Moulton as its corrector: ``u' = u + ∫ p(τ) dW``.

    ``p`` is the polynomial in ``τ`` through the slopes ``N``, ``W`` the clock of the coordinates, so
    the weights are ``∫ ℓ_j(τ) dW`` with Lagrange's basis ``ℓ_j``. In `Noise` coordinates it is LMS, in
    `LogNoise` DEIS with log-ρ, in `LogData` the exponential Adams scheme of which
    DPM-Solver++(2M) is a variant, in `Preconditioned` that of ``F`` (Hairer, Nørsett & Wanner 1993,
    section III.5).
    """

    def predict(self, coordinates: Coordinates, nodes: Points, end: Points) -> Array:
        """Integrals of Lagrange's basis over the step."""
        return lagrange_integrals(coordinates, nodes, Points(*(v[:, 0] for v in nodes)), end)

    def correct(self, coordinates: Coordinates, nodes: Points) -> Array:
        """The same over the step that ends at the newest node."""
        begin, end = Points(*(v[:, 1] for v in nodes)), Points(*(v[:, 0] for v in nodes))
        return lagrange_integrals(coordinates, nodes, begin, end)


def lagrange_integrals(
    coordinates: Coordinates, nodes: Points, begin: Points, end: Points
) -> Array:
    """Return ``∫ ℓ_j(τ) dW`` from ``begin`` to ``end`` for Lagrange's basis at nodes.

    Nothing is expanded in powers or in closed forms that cancel: the basis is evaluated as a product
    and integrated by quadrature.

    Args:
        coordinates: The coordinates.
        nodes: Points of the slopes, ``(n, k)``.
        begin: Where the intervals begin, ``(n,)``.
        end: Where they end, ``(n,)``.

    Returns:
        Weights ``(n, k)``, or ``(n, k, d)`` in coordinates with a frame.
    """
    if nodes.tau.shape[1] == 1:  # to the last bit, also in one step over the whole range
        difference: Array = coordinates.clock(end) - coordinates.clock(begin)
        return difference[:, None]
    return clock_integrals(
        coordinates, begin, end, lambda rows, tau: _lagrange(nodes.tau[rows], tau)
    )


def clock_integrals(coordinates: Coordinates, begin: Points, end: Points, basis: Basis) -> Array:
    """Return ``∫ f_j(τ) dW`` from ``begin`` to ``end`` for functions ``f_j`` of each interval.

    They are integrated by Gauss–Legendre quadrature: in ``τ`` itself where it is the clock, exactly
    for polynomials up to degree 31; else in ``λ = −log σ``, on panels of length 1 at most that end
    where the clock has breaks. An interval has as many panels as it needs itself, so that its
    integrals do not depend on the others.

    Args:
        coordinates: The coordinates.
        begin: Where the intervals begin, ``(n,)``.
        end: Where they end, ``(n,)``.
        basis: The functions.

    Returns:
        Integrals ``(n, k)``, or ``(n, k, d)`` in coordinates with a frame.
    """
    if coordinates.has_own_clock:
        width = end.tau - begin.tau
        tau, w = _quadrature(begin.tau + 0.5 * width, width)
        integrals: Array = (w * basis(np.arange(len(tau)), tau)).sum(2).T
        return integrals
    high, low, owner = _cut(begin.sigma, end.sigma, coordinates.breaks)
    lam, length = -np.log(high), np.log(high) - np.log(low)
    panels = np.maximum(1, np.ceil(np.abs(length))).astype(np.int64)
    first = np.cumsum(panels) - panels
    part = np.repeat(np.arange(len(panels)), panels)  # the part of an interval of each panel
    place, width = np.arange(len(part)) - first[part], (length / panels)[part]
    x, w = _quadrature(lam[part] + (place + 0.5) * width, width)
    rows = owner[part]
    sigma = np.exp(-x)
    tau = coordinates.tau(sigma.ravel()).reshape(sigma.shape)
    rate = coordinates.clock_rate(sigma.ravel()).reshape(*sigma.shape, -1)
    density = -(w * sigma)[..., None] * rate  # dW = −σ W'(σ) dλ
    parts = np.einsum("pqd,kpq->pkd", density, basis(rows, tau))
    total: Array = np.add.reduceat(parts, np.flatnonzero(np.diff(rows, prepend=-1)))
    return total if coordinates.frame is not None else total[..., 0]


def _cut(
    begin: Array, end: Array, breaks: tuple[float, ...]
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Cut intervals of ``σ`` at breaks: where the parts begin, where they end, whose parts they are."""
    if not breaks:
        return begin, end, np.arange(len(begin))
    at = np.clip(breaks, *np.sort([begin, end], axis=0)[..., None])
    at = np.where((begin > end)[:, None], at[:, ::-1], at)
    edges = np.concatenate([begin[:, None], at, end[:, None]], axis=1)
    parts = np.diff(edges) != 0
    parts[~parts.any(1), 0] = True  # an interval without length is a part, too
    owner, place = np.nonzero(parts)
    return edges[owner, place], edges[owner, place + 1], owner


def _quadrature(middle: Array, width: Array) -> tuple[Array, Array]:
    """Nodes and weights ``(n, q)`` of Gauss–Legendre quadrature on ``n`` intervals."""
    half = 0.5 * width[:, None]
    return middle[:, None] + half * _NODES, half * _NODE_WEIGHTS


def _lagrange(nodes: Array, x: Array) -> Array:
    """Lagrange's basis at nodes ``(n, k)``, evaluated at ``x`` ``(n, q)``: ``(k, n, q)``."""
    count = nodes.shape[1]
    basis = np.ones((count, *x.shape))
    for j in range(count):
        for m in range(count):
            if m != j:
                basis[j] *= (x - nodes[:, m, None]) / (nodes[:, j] - nodes[:, m])[:, None]
    return basis
