"""Coordinates: changes of variables in which the probability flow is integrated.

In the unscaled state the flow is ``dx̂/dσ = (x̂ − D)/σ``. With ``u = x̂/h(σ)`` and a clock ``W(σ)`` it
becomes, exactly, ``du = N dW``, where ``N = A u + B D`` is linear in what the denoiser says. Schemes
interpolate ``N`` in a variable ``τ(σ)``, which need not be the clock: ``du/dτ = w(τ) N`` with the
integration weight ``w = dW/dτ``. A coordinate system is the data ``h, W, τ, A, B``, all host-side
functions of float64 numpy arrays: they are evaluated before the loop over steps, never inside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .affine import AffineSDE

Array = NDArray[np.float64]


class Points(NamedTuple):
    """Points of a flow: the noise level and the variable ``τ`` of some coordinates, each exact."""

    sigma: Array
    tau: Array


class Coordinates(ABC):
    """A change of variables ``u = x̂/h(σ)`` with ``du = N dW``, ``N = A u + B D``, ``w = dW/dτ``.

    What depends on the noise level is an array with one entry per point; coordinates with a frame
    return one row per point, an entry for each direction.
    """

    @property
    def needs_sigma_data(self) -> bool:
        """Whether a solve has to say what the standard deviation of the data is."""
        return False

    def bind(self, process: AffineSDE, sigma_data: float | None = None) -> Coordinates:
        """Return these coordinates for one process and scale of the data; most depend on neither."""
        return self

    @property
    def has_own_clock(self) -> bool:
        """Whether the interpolation variable is the clock itself, ``τ = W``."""
        return False

    @property
    def growth(self) -> float | None:
        """Rate ``r`` at which ``dW/dλ`` grows, ``exp(r λ)``, where the clock is such an exponential."""
        return None

    @property
    def breaks(self) -> tuple[float, ...]:
        """Noise levels at which ``dW/dσ`` is not smooth, rising."""
        return ()

    @property
    def frame(self) -> tuple[Array, Array] | None:
        """Mean ``(d,)`` and orthonormal basis ``(d, d)``, by columns, of the axes of ``u``, if any."""
        return None

    @abstractmethod
    def tau(self, sigma: Array) -> Array:
        """Interpolation variable ``τ(σ)``, strictly monotone."""

    @abstractmethod
    def sigma(self, tau: Array) -> Array:
        """Noise level at ``τ``, the inverse of `tau`."""

    @abstractmethod
    def sigma_rate(self, p: Points) -> Array:
        """Derivative ``dσ/dτ``."""

    @abstractmethod
    def h(self, p: Points) -> Array:
        """Divisor ``h(σ)`` of the state, ``u = x̂/h``; ``ε/u`` at ``σ = ∞``, where ``x̂ = ∞``."""

    @abstractmethod
    def clock(self, p: Points) -> Array:
        """Clock ``W(σ)``."""

    @abstractmethod
    def clock_rate(self, sigma: Array) -> Array:
        """Derivative ``dW/dσ``."""

    @abstractmethod
    def field(self, p: Points) -> tuple[Array, Array]:
        """Coefficients ``(A, B)`` of ``N = A u + B D``."""

    def weight(self, p: Points) -> Array:
        """Integration weight ``w = dW/dτ``."""
        rate = self.clock_rate(p.sigma)
        return rate * (self.sigma_rate(p) if rate.ndim < 2 else self.sigma_rate(p)[:, None])

    def at(self, sigma: Array) -> Points:
        """Points at noise levels."""
        return Points(sigma, self.tau(sigma))

    def at_tau(self, tau: Array) -> Points:
        """Points at values of ``τ``."""
        return Points(self.sigma(tau), tau)

    def drift(self, p: Points, eta: float) -> tuple[Array, Array]:
        """Coefficients of ``u`` and ``D`` in the drift ``du/dτ`` of the backward equation.

        The η-family in the unscaled state is ``dx̂ = (1 + η²) (x̂ − D)/σ dσ + η dB(σ²)``; the part
        with ``η²`` is added to the flow ``w N``.
        """
        A, B = self.field(p)
        w = self.weight(p)
        if eta == 0:
            return w * A, w * B
        extra = eta**2 * self.sigma_rate(p) / p.sigma
        extra = extra if w.ndim < 2 else extra[:, None]
        return w * A + extra, w * B - extra / self.h(p)

    def noise_scale(self, p: Points) -> Array:
        """Factor of the increments of ``B(σ²)`` in ``u`` per step of an Euler–Maruyama scheme.

        Args:
            p: The grid, ``n + 1`` points.

        Returns:
            ``n`` factors, evaluated where the steps begin: ``1/h(σ)``.
        """
        return 1 / self.h(Points(p.sigma[:-1], p.tau[:-1]))


class OwnClock(Coordinates):
    """Coordinates whose interpolation variable is the clock itself: ``w = 1``."""

    @property
    def has_own_clock(self) -> bool:
        """It is."""
        return True

    def clock(self, p: Points) -> Array:
        """``τ``."""
        return p.tau

    def clock_rate(self, sigma: Array) -> Array:
        """``dτ/dσ``."""
        return 1 / self.sigma_rate(self.at(sigma))

    def weight(self, p: Points) -> Array:
        """1."""
        return np.ones_like(p.tau)


@dataclass(frozen=True)
class Noise(OwnClock):
    """``u = x̂``, ``τ = W = σ``, ``N = ε̂ = (x̂ − D)/σ`` (Karras et al. 2022, eq. 3; DDIM's variables)."""

    def tau(self, sigma: Array) -> Array:
        """``σ``."""
        return sigma

    def sigma(self, tau: Array) -> Array:
        """``τ``."""
        return tau

    def sigma_rate(self, p: Points) -> Array:
        """1."""
        return np.ones_like(p.sigma)

    def h(self, p: Points) -> Array:
        """1."""
        return np.ones_like(p.sigma)

    def field(self, p: Points) -> tuple[Array, Array]:
        """``1/σ`` and ``−1/σ``."""
        return 1 / p.sigma, -1 / p.sigma


class LogVariable(Coordinates):
    """What the coordinates in ``λ = −log σ``, half the log signal-to-noise ratio, share."""

    def tau(self, sigma: Array) -> Array:
        """``λ = −log σ``."""
        return -np.log(sigma)

    def sigma(self, tau: Array) -> Array:
        """``exp(−λ)``."""
        return np.exp(-tau)

    def sigma_rate(self, p: Points) -> Array:
        """``−σ``."""
        return -p.sigma


@dataclass(frozen=True)
class LogNoise(LogVariable):
    """``u = x̂``, ``W = σ``, ``N = ε̂``, ``τ = λ``: DPM-Solver's (Lu et al. 2022a, eq. 3.4)."""

    @property
    def growth(self) -> float | None:
        """−1."""
        return -1.0

    def h(self, p: Points) -> Array:
        """1."""
        return np.ones_like(p.sigma)

    def clock(self, p: Points) -> Array:
        """``σ``."""
        return p.sigma

    def clock_rate(self, sigma: Array) -> Array:
        """1."""
        return np.ones_like(sigma)

    def field(self, p: Points) -> tuple[Array, Array]:
        """``1/σ`` and ``−1/σ``."""
        return 1 / p.sigma, -1 / p.sigma


@dataclass(frozen=True)
class LogData(LogVariable):
    """``u = x̂/σ``, ``W = 1/σ``, ``N = D``, ``τ = λ``: DPM-Solver++'s (Lu et al. 2022b, eq. 8)."""

    @property
    def growth(self) -> float | None:
        """1."""
        return 1.0

    def h(self, p: Points) -> Array:
        """``σ``."""
        return p.sigma

    def clock(self, p: Points) -> Array:
        """``1/σ``."""
        return 1 / p.sigma

    def clock_rate(self, sigma: Array) -> Array:
        """``−1/σ²``."""
        return -1 / sigma**2

    def field(self, p: Points) -> tuple[Array, Array]:
        """0 and 1."""
        return np.zeros_like(p.sigma), np.ones_like(p.sigma)


@dataclass(frozen=True)
class Velocity(OwnClock):
    """``u = x̂/(1 + σ)``, ``τ = W = σ/(1 + σ)``, ``N = ε̂ − D``: flow matching's (Lipman et al. 2023)."""

    def tau(self, sigma: Array) -> Array:
        """``σ/(1 + σ)``, 1 for ``σ = ∞``."""
        return 1 / (1 + 1 / sigma)

    def sigma(self, tau: Array) -> Array:
        """``τ/(1 − τ)``."""
        with np.errstate(divide="ignore"):
            return tau / (1 - tau)

    def sigma_rate(self, p: Points) -> Array:
        """``1/(1 − τ)²``."""
        return 1 / (1 - p.tau) ** 2

    def h(self, p: Points) -> Array:
        """``1 + σ``; 1 for ``σ = ∞``, where ``u = ε``."""
        return np.where(np.isinf(p.sigma), 1.0, 1 + p.sigma)

    def field(self, p: Points) -> tuple[Array, Array]:
        """``1/τ`` and ``−1/τ``."""
        return 1 / p.tau, -1 / p.tau


@dataclass(frozen=True)
class Interpolated(Coordinates):
    """Coordinates in which ``N`` is interpolated in the variable ``τ`` of others.

    ``Interpolated(Preconditioned(), LogNoise())`` takes ``F`` for a polynomial in ``λ``, and
    ``Interpolated(Noise(), Native())`` takes ``ε̂`` for one in ``t``, as DEIS does (Zhang & Chen 2023).

    Args:
        coordinates: What gives ``u``, ``N`` and the clock.
        variable: What gives ``τ``.
    """

    coordinates: Coordinates
    variable: Coordinates

    @property
    def needs_sigma_data(self) -> bool:
        """Whether either needs it."""
        return self.coordinates.needs_sigma_data or self.variable.needs_sigma_data

    def bind(self, process: AffineSDE, sigma_data: float | None = None) -> Coordinates:
        """Bind both."""
        return replace(
            self,
            coordinates=self.coordinates.bind(process, sigma_data),
            variable=self.variable.bind(process, sigma_data),
        )

    @property
    def frame(self) -> tuple[Array, Array] | None:
        """That of the coordinates."""
        return self.coordinates.frame

    def tau(self, sigma: Array) -> Array:
        """``τ`` of the variable."""
        return self.variable.tau(sigma)

    def sigma(self, tau: Array) -> Array:
        """Inverse of `tau`."""
        return self.variable.sigma(tau)

    def sigma_rate(self, p: Points) -> Array:
        """``dσ/dτ`` of the variable."""
        return self.variable.sigma_rate(p)

    def _own(self, p: Points) -> Points:
        return self.coordinates.at(p.sigma)

    def h(self, p: Points) -> Array:
        """``h`` of the coordinates."""
        return self.coordinates.h(self._own(p))

    def clock(self, p: Points) -> Array:
        """``W`` of the coordinates."""
        return self.coordinates.clock(self._own(p))

    def clock_rate(self, sigma: Array) -> Array:
        """``dW/dσ`` of the coordinates."""
        return self.coordinates.clock_rate(sigma)

    def field(self, p: Points) -> tuple[Array, Array]:
        """``(A, B)`` of the coordinates."""
        return self.coordinates.field(self._own(p))


@dataclass(frozen=True)
class Native(OwnClock):
    """The process's own state and time: ``u = x``, ``τ = W = t`` (Song et al. 2021, eq. 13).

    Args:
        process: The process; left out in a solver, which binds the process that it is used on.
    """

    process: AffineSDE | None = None

    def bind(self, process: AffineSDE, sigma_data: float | None = None) -> Coordinates:
        """Return the coordinates of ``process``."""
        return Native(process)

    @property
    def _process(self) -> AffineSDE:
        if self.process is None:
            raise ValueError("Native() has no process yet: bind(process) gives its coordinates")
        return self.process

    def tau(self, sigma: Array) -> Array:
        """``t(σ)``."""
        return self._process.on_host("time", sigma)

    def sigma(self, tau: Array) -> Array:
        """``σ(t)``."""
        return self._process.on_host("sigma", tau)

    def sigma_rate(self, p: Points) -> Array:
        """``dσ/dt = g²/(2 s² σ)``."""
        s, g = (self._process.on_host(name, p.tau) for name in ("scale", "g"))
        return (g / s) ** 2 / (2 * p.sigma)

    def h(self, p: Points) -> Array:
        """``1/s``; where the signal vanishes ``1/n``, as ``x = n ε`` there."""
        s, n = (self._process.on_host(name, p.tau) for name in ("scale", "std"))
        return 1 / np.where(s == 0, n, s)

    def field(self, p: Points) -> tuple[Array, Array]:
        """``ṅ/n`` and ``ṡ − s ṅ/n`` with ``n = s σ``: regular even where ``s = 0``."""
        s, n = (self._process.on_host(name, p.tau) for name in ("scale", "std"))
        ds, dn = self._process.rates_on_host(p.tau)
        return dn / n, ds - s * dn / n

    def noise_scale(self, p: Points) -> Array:
        """``g(t) sqrt(Δt/Δσ²)``: with it an increment over ``Δσ²`` has Song's variance ``g² Δt``."""
        g = self._process.on_host("g", p.tau[:-1])
        return g * np.sqrt(np.diff(p.tau) / np.diff(p.sigma**2))
