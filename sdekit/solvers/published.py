"""Published multistep samplers that are not plain Adams, written as what they change of it.

Plain `Adams` are: LMS and iPNDM-v in `Noise`; DEIS with log-ρ in `LogNoise`; the "heun" type of
DPM-Solver++(2M) in `LogData`; and with its corrector UniPC of varying coefficients, as published.
"""

from __future__ import annotations

from math import factorial, isfinite

import numpy as np

from ..coordinates import Coordinates, Points
from .adams import Adams
from .multistep import Multistep
from .scheme import Array

KINDS = ("bh1", "bh2", "vary_as_shipped")


class UniPC(Adams):
    """UniPC: `Adams`, but for its formulas of two slopes.

    A step adds to DDIM's a multiple of ``B(z) Σ_k ρ_k (N_k − N_s)/r_k``, ``N_k`` being known at
    ``λ_s + r_k h``, where ``Σ_k ρ_k r_k^(i−1) = i! z φ_{i+1}(z)/B`` for ``i = 1, 2, …`` with ``z = −h``
    for data, ``N = D``, and ``h`` for noise, ``N = ε̂`` (Zhao et al. 2023, theorem 3.1, alg. 1–2). There
    are as many equations as weights, so ``B ρ`` does not depend on ``B``: it integrates the polynomial
    through the slopes exactly, as Adams does. Where one difference is left, though, the equation
    is not solved: ``ρ = 1/2``, its limit for small steps, and there alone ``B`` counts, which is ``z``
    or ``exp(z) − 1``. In `LogData` and `LogNoise` that is

        u' = u + ΔW N_s + ½ B (N_k − N_s)/r_k,    B = w(τ_t) Δτ  (bh1)  or  ΔW  (bh2),

    a formula for all coordinates. The predictors of two slopes and the first corrector are of
    this kind.

    Args:
        order: Slopes of the predictor; with a corrector the order is one more.
        kind: ``"bh1"`` or ``"bh2"``; or ``"vary_as_shipped"``, the authors' code for varying
            coefficients, whose corrector of three slopes or more mixes up its coefficients and has
            order 1 (UniPC issue 10).
        corrector: Whether to correct (UniC), re-using the next evaluation.
        again: Whether to evaluate again at the corrected state.
        start: As of `Multistep`.
        tail: As of `Multistep`; ``"lower"`` is their ``lower_order_final``.

    Raises:
        ValueError: If ``order`` is not in 1 … 6, or a name is unknown.
    """

    def __init__(
        self,
        order: int,
        *,
        kind: str = "bh2",
        corrector: bool = True,
        again: bool = False,
        start: str = "ramp",
        tail: str = "full",
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind = {kind!r}; it must be one of {', '.join(map(repr, KINDS))}")
        self.kind = kind
        super().__init__(order, corrector=corrector, again=again, start=start, tail=tail)

    @property
    def interior_order(self) -> int:
        """As of `Multistep`, but 1 where the corrector's coefficients are mixed up."""
        mixed_up = self.kind == "vary_as_shipped" and self.corrector and self.slopes > 1
        return 1 if mixed_up else super().interior_order

    def predict(self, coordinates: Coordinates, nodes: Points, end: Points) -> Array:
        """Adams's weights, or the formula of two slopes."""
        if self.kind == "vary_as_shipped" or nodes.tau.shape[1] != 2:
            return super().predict(coordinates, nodes, end)
        return self._two_slopes(coordinates, _column(nodes, 0), _column(nodes, 1), end)

    def correct(self, coordinates: Coordinates, nodes: Points) -> Array:
        """Adams's weights, or the formula of two slopes, or what ships."""
        slopes = nodes.tau.shape[1]
        if self.kind == "vary_as_shipped" and slopes > 2:
            return _vary_as_shipped(super().correct(coordinates, nodes), nodes.tau)
        if self.kind == "vary_as_shipped" or slopes != 2:
            return super().correct(coordinates, nodes)
        begin, end = _column(nodes, 1), _column(nodes, 0)
        return self._two_slopes(coordinates, begin, end, end)[:, ::-1]

    def _two_slopes(
        self, coordinates: Coordinates, begin: Points, other: Points, end: Points
    ) -> Array:
        """Weights of the slopes at ``begin`` and ``other``, with ``ρ = 1/2``."""
        step = end.tau - begin.tau
        whole = coordinates.clock(end) - coordinates.clock(begin)
        half = 0.5 * step / (other.tau - begin.tau)
        if self.kind == "bh2":  # (1 − half, half) ΔW
            return _times(whole, np.stack([1 - half, half], axis=1))
        scale = _times(coordinates.weight(end), (step * half)[:, None])
        return np.concatenate([whole[:, None] - scale, scale], axis=1)


class DPMMultistep(UniPC):
    """Multistep DPM-Solver: in `LogData` DPM-Solver++(2M) and (3M), in `LogNoise` DPM-Solver's.

    The second order takes ``(1 + 1/(2r)) N_s − N_{−1}/(2r)`` with ``r = h_{−1}/h`` for the slope of the
    whole step (Lu et al. 2022b, alg. 2): it is the predictor of `UniPC` of kind ``"bh2"``. The third
    order is Adams's but for the second step.

    Args:
        order: 1, which is DDIM, 2 or 3.
        as_shipped: The third order as in the authors' code and what was made from it, where half
            of the parabola's second derivative is left out: its order is 2.
        start: As of `Multistep`.
        tail: As of `Multistep`.

    Raises:
        ValueError: If ``order`` is not in 1 … 3, or not 3 with ``as_shipped``, or a policy is unknown.
    """

    def __init__(
        self, order: int, *, as_shipped: bool = False, start: str = "ramp", tail: str = "full"
    ) -> None:
        if not (order == 3 or (order in (1, 2) and not as_shipped)):
            raise ValueError(f"order = {order}; it must be 1, 2 or 3, with as_shipped=True 3")
        self.as_shipped = as_shipped
        super().__init__(order, kind="bh2", corrector=False, start=start, tail=tail)

    @property
    def interior_order(self) -> int:
        """The number of slopes, but 2 as shipped."""
        return 2 if self.as_shipped else super().interior_order

    def predict(self, coordinates: Coordinates, nodes: Points, end: Points) -> Array:
        """As of `UniPC`; as shipped, less half of ``N'' ∫ ½ (τ − τ_s)² dW``."""
        weights = super().predict(coordinates, nodes, end)
        if not self.as_shipped or nodes.tau.shape[1] < 3:
            return weights
        offset = nodes.tau - nodes.tau[:, :1]
        gaps = nodes.tau[:, :, None] - nodes.tau[:, None, :] + np.eye(3)
        # ½ N'' = Σ N_j / Π_m (τ_j − τ_m); the weights integrate (τ − τ_s)² exactly.
        moment = np.einsum("nk...,nk->n...", weights, offset**2)
        return weights - 0.5 * _times(moment, 1 / gaps.prod(axis=2))


class _FixedWeights(Multistep):
    """Past slopes in the same proportions on every grid: ``u' = u + ΔW Σ_j b_j N_{−j}``."""

    rows: tuple[tuple[float, ...], ...]  # b for one slope, two, …

    def predict(self, coordinates: Coordinates, nodes: Points, end: Points) -> Array:
        """``b ΔW``."""
        whole = coordinates.clock(end) - coordinates.clock(_column(nodes, 0))
        return _times(whole, np.array([self.rows[nodes.tau.shape[1] - 1]]))


class IPNDM(_FixedWeights):
    """Improved PNDM, in `Noise`: Adams–Bashforth's weights for equal steps on every grid.

    On a smooth grid of unequal steps the weights are wrong by ``O(h)``, which limits the order to 2;
    on equal steps it is that of `Adams` (Liu et al. 2022, the pseudo linear multi-step method; with
    a start of lower order: Zhang & Chen 2023).

    Args:
        order: Slopes, 1 to 4.
        start: As of `Multistep`.
        tail: As of `Multistep`.

    Raises:
        ValueError: If ``order`` is not in 1 … 4, or a policy is unknown.
    """

    rows = (
        (1.0,),
        (3 / 2, -1 / 2),
        (23 / 12, -16 / 12, 5 / 12),
        (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    )

    def __init__(self, order: int = 4, *, start: str = "ramp", tail: str = "full") -> None:
        if not 1 <= order <= 4:
            raise ValueError(f"order = {order}; iPNDM uses 1 to 4 slopes")
        super().__init__(order, start=start, tail=tail)

    @property
    def interior_order(self) -> int:
        """At most 2, on grids of unequal steps."""
        return min(self.slopes, 2)


class GradientEstimation(_FixedWeights):
    """Gradient estimation, in `Noise`: DDIM with ``γ ε̂_s + (1 − γ) ε̂_{−1}`` (Permenter & Yuan 2024).

    Its order is 1, but 2 for ``γ = 3/2``, which is `IPNDM` of two slopes.

    Args:
        gamma: Weight ``γ`` of the newest slope; 1 is DDIM.
        start: As of `Multistep`.
        tail: As of `Multistep`.

    Raises:
        ValueError: If ``gamma`` is not finite, or a policy is unknown.
    """

    def __init__(self, gamma: float = 2.0, *, start: str = "ramp", tail: str = "full") -> None:
        if not isfinite(gamma):
            raise ValueError(f"gamma = {gamma}; it must be finite")
        self.gamma = gamma
        self.rows = ((1.0,), (gamma, 1 - gamma))
        super().__init__(2, start=start, tail=tail)

    @property
    def interior_order(self) -> int:
        """1, but 2 for ``γ = 3/2``."""
        return 2 if self.gamma == 1.5 else 1


def _vary_as_shipped(exact: Array, tau: Array) -> Array:
    """Corrector of ``vary_coeff`` as in the authors' code, from the exact weights ``(n, p + 1)``.

    With ``Δ_m = (N_m − N_s)/r_m`` and ``A = C⁻¹``, ``C_mi = r_m^(i−1)/i!``, the derivatives in units of
    the step are ``Σ_m A_im Δ_m``, ``i = 1 … p``, with the weights ``M_i = ∫ ((τ − τ_s)/Δτ)^i/i! dW``
    (Zhao et al. 2023, app. C). The code leaves out ``M_p A_pm`` of the old differences, and has
    ``M_p A_{p−1,t}`` in place of ``Σ_i M_i A_it`` for the new one.
    """
    p = tau.shape[1] - 1
    r = (tau - tau[:, 1:2]) / (tau[:, :1] - tau[:, 1:2])
    powers = np.stack([r**i / factorial(i) for i in range(1, p + 1)], axis=2)
    moments = np.einsum("nk...,nki->ni...", exact, powers)
    others = np.delete(np.arange(p + 1), 1)  # the new node first
    derivatives = np.linalg.inv(powers[:, others] / r[:, others, None])
    new = derivatives[:, p - 2, 0].copy()
    derivatives[:, :, 0] = derivatives[:, p - 1, :] = 0.0
    derivatives[:, p - 1, 0] = new
    weights = np.empty_like(exact)
    weights[:, others] = np.einsum("ni...,nim->nm...", moments, derivatives / r[:, None, others])
    weights[:, 1] = exact.sum(axis=1) - weights[:, others].sum(axis=1)
    return weights


def _column(points: Points, j: int) -> Points:
    return Points(points.sigma[:, j], points.tau[:, j])


def _times(scale: Array, rows: Array) -> Array:
    """Product of ``scale``, ``(n,)`` or ``(n, d)``, and ``rows``, ``(n, k)``."""
    return scale[:, None] * (rows if scale.ndim == 1 else rows[..., None])
