"""Coordinates: changes of variables in which the probability flow is integrated.

In the unscaled state the flow is ``dx̂/dσ = (x̂ − D)/σ``. With ``u = x̂/h(σ)`` and a new time ``τ(σ)``
it becomes, exactly, ``du/dτ = w(τ) N(u, τ)``, where ``N = A u + B D`` is linear in what the denoiser
says. A coordinate system is the data ``h, τ, w, A, B``, all host-side functions of float64 numpy
arrays: they are evaluated before the loop over steps starts, never inside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .affine import AffineSDE

Array = NDArray[np.float64]


class Coordinates(ABC):
    """A change of variables ``u = x̂/h(σ)``, ``τ = τ(σ)`` with ``du/dτ = w(τ) (A u + B D)``."""

    def bind(self, process: AffineSDE) -> Coordinates:
        """Return these coordinates for one process; most do not depend on it."""
        return self

    @abstractmethod
    def tau(self, sigma: Array) -> Array:
        """Integration variable ``τ(σ)``, strictly monotone."""

    @abstractmethod
    def sigma(self, tau: Array) -> Array:
        """Noise level at ``τ``, the inverse of `tau`."""

    @abstractmethod
    def sigma_rate(self, tau: Array) -> Array:
        """Derivative ``dσ/dτ``."""

    @abstractmethod
    def h(self, sigma: Array) -> Array:
        """Divisor ``h(σ)`` of the state, ``u = x̂/h``; ``ε/u`` at ``σ = ∞``, where ``x̂ = ∞``."""

    @abstractmethod
    def weight(self, tau: Array) -> Array:
        """Integration weight ``w(τ)``."""

    @abstractmethod
    def field(self, tau: Array) -> tuple[Array, Array]:
        """Coefficients ``(A, B)`` of ``N = A u + B D``."""

    def drift(self, tau: Array, eta: float) -> tuple[Array, Array]:
        """Coefficients of ``u`` and ``D`` in the drift ``du/dτ`` of the backward equation.

        The η-family in the unscaled state is ``dx̂ = (1 + η²) (x̂ − D)/σ dσ + η dB(σ²)``; the part
        with ``η²`` is added to the flow ``w N``.
        """
        A, B = self.field(tau)
        w = self.weight(tau)
        if eta == 0:
            return w * A, w * B
        sigma = self.sigma(tau)
        extra = eta**2 * self.sigma_rate(tau) / sigma
        return w * A + extra, w * B - extra / self.h(sigma)

    def noise_scale(self, tau: Array) -> Array:
        """Factor of the increments of ``B(σ²)`` in ``u`` per step of an Euler–Maruyama scheme.

        Args:
            tau: The grid, ``n + 1`` values.

        Returns:
            ``n`` factors, evaluated where the steps begin: ``1/h(σ)``.
        """
        return 1 / self.h(self.sigma(tau[:-1]))


@dataclass(frozen=True)
class Noise(Coordinates):
    """``u = x̂``, ``τ = σ``, ``N = ε̂ = (x̂ − D)/σ`` (Karras et al. 2022, eq. 3; DDIM's variables)."""

    def tau(self, sigma: Array) -> Array:
        """``σ``."""
        return sigma

    def sigma(self, tau: Array) -> Array:
        """``τ``."""
        return tau

    def sigma_rate(self, tau: Array) -> Array:
        """1."""
        return np.ones_like(tau)

    def h(self, sigma: Array) -> Array:
        """1."""
        return np.ones_like(sigma)

    def weight(self, tau: Array) -> Array:
        """1."""
        return np.ones_like(tau)

    def field(self, tau: Array) -> tuple[Array, Array]:
        """``1/σ`` and ``−1/σ``."""
        return 1 / tau, -1 / tau


class _Log(Coordinates):
    """What the coordinates in ``λ = −log σ``, half the log signal-to-noise ratio, share."""

    def tau(self, sigma: Array) -> Array:
        """``λ = −log σ``."""
        return -np.log(sigma)

    def sigma(self, tau: Array) -> Array:
        """``exp(−λ)``."""
        return np.exp(-tau)

    def sigma_rate(self, tau: Array) -> Array:
        """``−exp(−λ)``."""
        return -np.exp(-tau)


@dataclass(frozen=True)
class LogNoise(_Log):
    """``u = x̂``, ``τ = λ``, ``N = ε̂``, ``w = −exp(−λ)``: DPM-Solver's (Lu et al. 2022a, eq. 3.4)."""

    def h(self, sigma: Array) -> Array:
        """1."""
        return np.ones_like(sigma)

    def weight(self, tau: Array) -> Array:
        """``−exp(−λ)``."""
        return -np.exp(-tau)

    def field(self, tau: Array) -> tuple[Array, Array]:
        """``1/σ`` and ``−1/σ``."""
        return np.exp(tau), -np.exp(tau)


@dataclass(frozen=True)
class LogData(_Log):
    """``u = x̂/σ``, ``τ = λ``, ``N = D``, ``w = exp(λ)``: DPM-Solver++'s (Lu et al. 2022b, eq. 8)."""

    def h(self, sigma: Array) -> Array:
        """``σ``."""
        return sigma

    def weight(self, tau: Array) -> Array:
        """``exp(λ)``."""
        return np.exp(tau)

    def field(self, tau: Array) -> tuple[Array, Array]:
        """0 and 1."""
        return np.zeros_like(tau), np.ones_like(tau)


@dataclass(frozen=True)
class Velocity(Coordinates):
    """``u = x̂/(1 + σ)``, ``τ = σ/(1 + σ)``, ``N = ε̂ − D``: flow matching's (Lipman et al. 2023)."""

    def tau(self, sigma: Array) -> Array:
        """``σ/(1 + σ)``, 1 for ``σ = ∞``."""
        return 1 / (1 + 1 / sigma)

    def sigma(self, tau: Array) -> Array:
        """``τ/(1 − τ)``."""
        with np.errstate(divide="ignore"):
            return tau / (1 - tau)

    def sigma_rate(self, tau: Array) -> Array:
        """``1/(1 − τ)²``."""
        return 1 / (1 - tau) ** 2

    def h(self, sigma: Array) -> Array:
        """``1 + σ``; 1 for ``σ = ∞``, where ``u = ε``."""
        return np.where(np.isinf(sigma), 1.0, 1 + sigma)

    def weight(self, tau: Array) -> Array:
        """1."""
        return np.ones_like(tau)

    def field(self, tau: Array) -> tuple[Array, Array]:
        """``1/τ`` and ``−1/τ``."""
        return 1 / tau, -1 / tau


@dataclass(frozen=True)
class Preconditioned(Coordinates):
    """``u = x̂/h``, ``h² = σ² + σ_d²``, ``τ = θ = arctan(σ/σ_d)``, ``N = −F``, EDM's raw network.

    For data of covariance ``σ_d² I``, ``N = 0`` and every scheme is exact. The variables are those of
    TrigFlow (Lu & Song 2025); ``F`` is that of Karras et al. (2022), eq. 7.

    Args:
        sigma_data: Standard deviation ``σ_d`` of the data. A wrong value costs accuracy only.

    Raises:
        ValueError: If it is not positive and finite.
    """

    sigma_data: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < np.inf:
            raise ValueError(f"sigma_data = {self.sigma_data}; it must be positive and finite")

    def tau(self, sigma: Array) -> Array:
        """``arctan(σ/σ_d)``."""
        return np.arctan(sigma / self.sigma_data)

    def sigma(self, tau: Array) -> Array:
        """``σ_d tan θ``."""
        return self.sigma_data * np.tan(tau)

    def sigma_rate(self, tau: Array) -> Array:
        """``σ_d / cos² θ``."""
        return self.sigma_data / np.cos(tau) ** 2

    def h(self, sigma: Array) -> Array:
        """``sqrt(σ² + σ_d²)``; 1 for ``σ = ∞``, where ``u = ε``."""
        return np.where(np.isinf(sigma), 1.0, np.hypot(sigma, self.sigma_data))

    def weight(self, tau: Array) -> Array:
        """1."""
        return np.ones_like(tau)

    def field(self, tau: Array) -> tuple[Array, Array]:
        """``cot θ`` and ``−1/(σ_d sin θ)``."""
        return 1 / np.tan(tau), -1 / (self.sigma_data * np.sin(tau))


@dataclass(frozen=True)
class Native(Coordinates):
    """The process's own state and time: ``u = x``, ``τ = t`` (Song et al. 2021, eq. 13).

    Args:
        process: The process; left out in a solver, which binds the process that it is used on.
    """

    process: AffineSDE | None = None

    def bind(self, process: AffineSDE) -> Coordinates:
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

    def sigma_rate(self, tau: Array) -> Array:
        """``dσ/dt = g²/(2 s² σ)``."""
        s, sigma, g = (self._process.on_host(name, tau) for name in ("scale", "sigma", "g"))
        return (g / s) ** 2 / (2 * sigma)

    def h(self, sigma: Array) -> Array:
        """``1/s``; where the signal vanishes ``1/n``, as ``x = n ε`` there."""
        t = self.tau(sigma)
        s, n = self._process.on_host("scale", t), self._process.on_host("std", t)
        return 1 / np.where(s == 0, n, s)

    def weight(self, tau: Array) -> Array:
        """1: the right-hand side is taken whole."""
        return np.ones_like(tau)

    def field(self, tau: Array) -> tuple[Array, Array]:
        """``ṅ/n`` and ``ṡ − s ṅ/n`` with ``n = s σ``: regular even where ``s = 0``."""
        s, n = self._process.on_host("scale", tau), self._process.on_host("std", tau)
        ds, dn = self._process.rates_on_host(tau)
        return dn / n, ds - s * dn / n

    def noise_scale(self, tau: Array) -> Array:
        """``g(t) sqrt(Δt/Δσ²)``: with it an increment over ``Δσ²`` has Song's variance ``g² Δt``."""
        sigma = self.sigma(tau)
        g = self._process.on_host("g", tau[:-1])
        return g * np.sqrt(np.diff(tau) / np.diff(sigma**2))
