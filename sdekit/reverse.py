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
from scipy.special import beta, betainc

from .brownian import Clock
from .coordinates import Array, Coordinates, Interpolated, LogData, LogNoise, Noise, Points
from .preconditioned import Preconditioned


@dataclass(frozen=True)
class Eta:
    """A constant stochasticity ``η``: 0 is the flow, 1 Anderson's reverse SDE.

    Attributes:
        value: ``η``.
    """

    value: float

    def squared(self, sigma: Array) -> Array:
        """``η²`` at noise levels."""
        return np.full_like(sigma, self.value**2)

    def damping(self, sigma: Array, gap: float) -> Array:
        """``g = h^(η²)`` for ``h² = σ² + gap``."""
        damping: Array = np.sqrt(sigma**2 + gap) ** self.value**2
        return damping

    def sigma(self, damping: Array, gap: float) -> Array:
        """Noise level at a value of `damping`."""
        return np.sqrt(np.maximum(damping ** (2 / self.value**2) - gap, 0.0))


@dataclass(frozen=True)
class ErEta:
    """The stochasticity of ER-SDE-Solver: ``g = φ(σ)/σ`` in `LogData`, ``φ = σ (exp(σ^0.3) + 10)``.

    ``η² = d log φ/d log σ − 1 = 0.3 σ^0.3/(1 + 10 exp(−σ^0.3))``: next to nothing at low noise, and
    above 1 where ``σ > 99``.

    Source: Cui et al. 2023; the default of their code.
    """

    def squared(self, sigma: Array) -> Array:
        """``η²`` at noise levels."""
        power = sigma**0.3
        squared: Array = 0.3 * power / (1 + 10 * np.exp(-power))
        return squared

    def damping(self, sigma: Array, gap: float) -> Array:
        """``exp(σ^0.3) + 10``."""
        if gap != 0:
            raise ValueError(
                "the stochasticity of ER-SDE-Solver is defined in LogData() coordinates"
            )
        return np.exp(sigma**0.3) + 10

    def sigma(self, damping: Array, gap: float) -> Array:
        """Noise level at a value of `damping`."""
        return np.log(damping - 10) ** (1 / 0.3)


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
    eta: Eta | ErEta

    def __post_init__(self) -> None:
        if not isinstance(self._inner, Noise | LogNoise | LogData | Preconditioned):
            raise ValueError(
                f"in {type(self._inner).__name__} coordinates the noise of the reverse SDE has no "
                "clock in closed form; take Noise(), LogNoise(), LogData() or Preconditioned() "
                "with Adams or Runge–Kutta schemes"
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
            ValueError: If it has no closed form: ``η`` varies, in other coordinates than `LogData`.
        """
        inner = self._inner
        if isinstance(inner, LogData):
            return 1 / (p.sigma * self.damping(p.sigma))
        if not isinstance(self.eta, Eta):
            raise ValueError("a stochasticity that varies needs LogData() coordinates")
        power = self.eta.value**2
        if not isinstance(inner, Preconditioned):
            return (1 + power) * p.sigma
        # ∫₀^θ cos^(η²) dφ, an incomplete beta function of sin² θ.
        assert inner.sigma_data is not None
        share = 1 / (1 + (inner.sigma_data / p.sigma) ** 2)
        half = 0.5 * beta(0.5, 0.5 * (power + 1)) * betainc(0.5, 0.5 * (power + 1), share)
        clock: Array = (1 + power) * inner.sigma_data**-power * half
        return clock

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
        if not isinstance(self.eta, Eta):
            raise ValueError("a stochasticity that varies needs LogData() coordinates")
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
