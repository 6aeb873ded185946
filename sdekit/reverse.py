"""Coordinates of the reverse SDE: those of the flow, with what the noise adds to the linear part.

In the unscaled state the η-family is ``dx̂ = (1 + η²) (x̂ − D)/σ dσ + η dB(σ²)``. If ``u = x̂/h``
solves the flow as ``du = N dW``, then ``v = x̂/(h g)`` with ``d log g = η² d log h`` solves

    dv = (1 + η²) N/g dW + η/(h g) dB(σ²):

nothing linear is left, and the noise is additive. Where ``h² = σ² + c`` it is a Brownian motion on the
clock ``V = g^(−2)``, and where ``h = 1`` it is ``η B(σ²)``. A scheme of the flow becomes one of the
SDE by adding what the Brownian motion does over each of its steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .brownian import Clock
from .coordinates import Array, Coordinates, Interpolated, LogData, LogNoise, Noise, Points
from .preconditioned import Preconditioned
from .stochasticity import Eta, EtaSteps, Stochasticity


@dataclass(frozen=True)
class ReverseCoordinates(Coordinates):
    """``v = x̂/(h g)``, ``dv = N dW + noise``, for the ``u = x̂/h`` of coordinates of the flow.

    They are written as coordinates of a flow, with ``h g`` for ``h`` and ``(1 + η²)/g dW`` for ``dW``,
    so that any linear scheme finds its weights in them.

    Args:
        base: Coordinates of the flow: `Noise`, `LogNoise`, `LogData` or `Preconditioned`, in whatever
            variable they are interpolated.
        eta: The stochasticity.

    Raises:
        ValueError: If the coordinates are others.
    """

    base: Coordinates
    eta: Stochasticity

    def __post_init__(self) -> None:
        if not isinstance(self._inner, Noise | LogNoise | LogData | Preconditioned):
            raise ValueError(
                f"in {type(self._inner).__name__} coordinates the noise of the reverse SDE has no "
                "clock in closed form; take Noise(), LogNoise(), LogData() or Preconditioned() "
                "with Adams or Runge–Kutta schemes"
            )
        if self._gap is None and not isinstance(self.eta, Eta):
            raise ValueError(
                "a stochasticity that varies needs LogData() or Preconditioned() coordinates"
            )

    @property
    def _inner(self) -> Coordinates:
        return self.base.coordinates if isinstance(self.base, Interpolated) else self.base

    @property
    def _gap(self) -> float | None:
        """``c`` in ``h² = σ² + c``; ``None`` where ``h = 1``."""
        inner = self._inner
        if isinstance(inner, Preconditioned):
            assert inner.sigma_data is not None
            return inner.sigma_data**2
        return 0.0 if isinstance(inner, LogData) else None

    def damping(self, sigma: Array) -> Array:
        """``g``; 1 where ``h = 1``."""
        return np.ones_like(sigma) if self._gap is None else self.eta.damping(sigma, self._gap)

    def tau(self, sigma: Array) -> Array:
        """``τ`` of the flow."""
        return self.base.tau(sigma)

    def sigma(self, tau: Array) -> Array:
        """Inverse of `tau`."""
        return self.base.sigma(tau)

    def sigma_rate(self, p: Points) -> Array:
        """``dσ/dτ`` of the flow."""
        return self.base.sigma_rate(p)

    def h(self, p: Points) -> Array:
        """``h g``."""
        return self.base.h(self.base.at(p.sigma)) * self.damping(p.sigma)

    def field(self, p: Points) -> tuple[Array, Array]:
        """``A g`` and ``B``."""
        A, B = self.base.field(self.base.at(p.sigma))
        with np.errstate(invalid="ignore"):
            return np.where(A == 0, 0.0, A * self.damping(p.sigma)), B

    def clock_rate(self, sigma: Array) -> Array:
        """``(1 + η²)/g dW/dσ``."""
        rate: Array = (1 + self.eta.squared(sigma)) / self.damping(sigma)
        return rate * self.base.clock_rate(sigma)

    def clock(self, p: Points) -> Array:
        """Integral of `clock_rate`.

        Raises:
            ValueError: If it has no closed form: ``η`` is ER-SDE's, and the coordinates are not
                `LogData`.
        """
        inner, eta = self._inner, self.eta
        if isinstance(inner, LogData):
            return 1 / (p.sigma * self.damping(p.sigma))
        if isinstance(eta, Eta):
            return self._clock_of(np.array(eta.value**2), p.sigma)
        if not isinstance(eta, EtaSteps):
            raise ValueError("the stochasticity of ER-SDE-Solver needs LogData() coordinates")
        # On each piece of η the clock is a multiple of that of a constant one, and it is continuous.
        assert self._gap is not None
        squares, factors = np.square(eta.values), np.exp(-eta.scales(self._gap))
        levels = np.array(eta.levels)
        below, above = (
            factors[i] * self._clock_of(squares[i], levels) for i in (slice(-1), slice(1, None))
        )
        shifts = np.concatenate([[0.0], np.cumsum(below - above)])
        piece = eta.piece(p.sigma)
        clock: Array = shifts[piece] + factors[piece] * self._clock_of(squares[piece], p.sigma)
        return clock

    def _clock_of(self, squared: Array, sigma: Array) -> Array:
        """`clock` of a constant ``η²``."""
        inner = self._inner
        if not isinstance(inner, Preconditioned):
            return (1 + squared) * sigma
        from scipy.special import beta, betainc  # a quarter of a second to import

        # ∫₀^θ cos^(η²) dφ, an incomplete beta function of sin² θ.
        assert inner.sigma_data is not None
        share = 1 / (1 + (inner.sigma_data / sigma) ** 2)
        power = 0.5 * (squared + 1)
        half = 0.5 * beta(0.5, power) * betainc(0.5, power, share)
        clock: Array = (1 + squared) * inner.sigma_data**-squared * half
        return clock

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where ``η`` jumps."""
        return self.eta.levels if isinstance(self.eta, EtaSteps) else ()

    @property
    def growth(self) -> float | None:
        """Rate ``r`` at which ``dW/dλ`` grows, ``exp(r λ)``, if it is constant."""
        rate = self.base.growth
        if rate is None or not isinstance(self.eta, Eta):
            return None
        return rate if self._gap is None else rate * (1 + self.eta.value**2)

    # --- the noise ---

    @property
    def noise_clock(self) -> Clock | None:
        """Clock of the noise; ``None`` for the variance ``σ²``."""
        gap, eta = self._gap, self.eta
        if gap is None:
            return None

        def position(value: float) -> float:
            sigma = float(eta.sigma(np.array(value**-0.5), gap))
            return 2 * math.log2(sigma) if sigma > 0 else -math.inf

        def value(position: float) -> float:
            return float(eta.damping(np.array(2 ** (position / 2)), gap) ** -2.0)

        return Clock(f"{eta}, h² = σ² + {gap!r}", position, value)

    def noise_time(self, sigma: Array) -> Array:
        """``V``: values of the noise's clock at noise levels."""
        return sigma**2 if self._gap is None else self.damping(sigma) ** -2.0

    @property
    def noise_size(self) -> float:
        """Factor of the Brownian motion on its clock."""
        if self._gap is not None:
            return 1.0
        assert isinstance(self.eta, Eta)
        return self.eta.value

    def time_rate(self, sigma: Array) -> Array:
        """Derivative ``dV/dσ``."""
        if self._gap is None:
            return 2 * sigma
        # d log g = η² d log h, and h dh = σ dσ.
        rate: Array = self.eta.squared(sigma) * sigma / (sigma**2 + self._gap)
        return -2 * self.noise_time(sigma) * rate

    def timed(self) -> NoiseTime:
        """Return the same coordinates with the noise's clock as their ``τ``."""
        return NoiseTime(self.base, self.eta)

    def sigma_at(self, time: Array) -> Array:
        """Noise level where the noise's clock says ``V``: the inverse of `noise_time`."""
        if self._gap is None:
            return np.sqrt(time)
        return self.eta.sigma(time**-0.5, self._gap)


class NoiseTime(ReverseCoordinates):
    """`ReverseCoordinates` with the noise's clock for ``τ``: ``dv = w N dV + dB(V)``."""

    def tau(self, sigma: Array) -> Array:
        """``V``."""
        return self.noise_time(sigma)

    def sigma(self, tau: Array) -> Array:
        """Noise level at ``V``."""
        return self.sigma_at(tau)

    def sigma_rate(self, p: Points) -> Array:
        """``dσ/dV``."""
        return 1 / self.time_rate(p.sigma)
