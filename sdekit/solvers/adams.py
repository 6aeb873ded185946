"""Adams schemes of variable step, with exact weights in every coordinate system."""

from __future__ import annotations

import numpy as np

from ..coordinates import Coordinates, Points
from .multistep import Multistep
from .scheme import Array

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
    and integrated by Gauss–Legendre quadrature, in ``τ`` itself where it is the clock (exact for
    polynomials), else in ``λ = −log σ`` on panels of length 1 at most.

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
    x, w = clock_quadrature(coordinates, begin, end)
    basis = _lagrange(nodes.tau, x)
    if w.ndim == 3:
        integrals: Array = np.einsum("nqd,nqk->nkd", w, basis, optimize=True)
        return integrals
    return np.asarray(np.einsum("nq,nqk->nk", w, basis))


def clock_quadrature(coordinates: Coordinates, begin: Points, end: Points) -> tuple[Array, Array]:
    """Return nodes ``τ_q`` and weights of ``∫ f(τ) dW = Σ_q w_q f(τ_q)`` from ``begin`` to ``end``.

    Quadrature is in ``τ`` itself where it is the clock, and exact for polynomials of degree 31; else
    it is in ``λ = −log σ``, on panels of length 1 at most.

    Args:
        coordinates: The coordinates.
        begin: Where the intervals begin, ``(n,)``.
        end: Where they end, ``(n,)``.

    Returns:
        Nodes ``(n, q)``, and weights of the same shape, or ``(n, q, d)`` in coordinates with a frame.
    """
    if coordinates.has_own_clock:
        return _quadrature(begin.tau, end.tau, panels=1)
    lam_begin, lam_end = -np.log(begin.sigma), -np.log(end.sigma)
    panels = max(1, int(np.ceil(np.abs(lam_end - lam_begin).max())))
    lam, w = _quadrature(lam_begin, lam_end, panels)
    sigma = np.exp(-lam)
    rate = coordinates.clock_rate(sigma.ravel())
    density = -w[..., None] * sigma[..., None] * rate.reshape(*sigma.shape, -1)
    tau = coordinates.tau(sigma.ravel()).reshape(sigma.shape)
    return tau, density if rate.ndim == 2 else density[..., 0]


def _quadrature(begin: Array, end: Array, panels: int) -> tuple[Array, Array]:
    """Nodes and weights ``(n, q)`` of composite Gauss–Legendre quadrature on ``n`` intervals."""
    width = (end - begin) / panels
    middles = begin[:, None] + width[:, None] * (np.arange(panels) + 0.5)
    x = middles[..., None] + 0.5 * width[:, None, None] * _NODES
    w = np.broadcast_to(0.5 * width[:, None, None] * _NODE_WEIGHTS, x.shape)
    return x.reshape(len(begin), -1), w.reshape(len(begin), -1)


def _lagrange(nodes: Array, x: Array) -> Array:
    """Lagrange's basis at nodes ``(n, k)``, evaluated at ``x`` ``(n, q)``: ``(n, q, k)``."""
    basis = np.ones((*x.shape, nodes.shape[1]))
    for j in range(nodes.shape[1]):
        for m in range(nodes.shape[1]):
            if m != j:
                ratio = (x - nodes[:, m, None]) / (nodes[:, j] - nodes[:, m])[:, None]
                basis[..., j] *= ratio
    return basis
