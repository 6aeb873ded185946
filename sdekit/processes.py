"""The affine processes of the literature, each a scale ``s(t)`` and a noise level ``σ(t)``.

Derivatives, SDE coefficients, kernels and backward problems come from `AffineSDE`; a process adds
the closed forms that are exact where the derived ones would round or divide zero by zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .affine import AffineSDE, check_times


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value}; it must be positive and finite")


@dataclass(frozen=True)
class _LinearBeta(AffineSDE):
    """What VP and sub-VP share: ``β`` linear in ``t``, ``B = ∫ β`` and ``s = exp(−B/2)``."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    T: float = 1.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        check_times(self.T, self.t_min)
        last = self.beta_min + (self.beta_max - self.beta_min) * self.T
        _check_positive(beta_min=self.beta_min, beta_max=self.beta_max, **{"beta(T)": last})

    def beta(self, t: Tensor) -> Tensor:
        """Noise rate ``β(t) = β_min + (β_max − β_min) t``, elementwise."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def beta_integral(self, t: Tensor) -> Tensor:
        """Integral ``B(t) = ∫_0^t β``, elementwise."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def _time_of(self, B: Tensor) -> Tensor:
        # The stable root of the quadratic: no cancellation for small B or equal betas.
        slope = self.beta_max - self.beta_min
        root = 2 * B / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * B))
        return torch.where(torch.isinf(B), B, root)

    def scale(self, t: Tensor) -> Tensor:
        """Scale ``s = exp(−B/2)``."""
        return torch.exp(-0.5 * self.beta_integral(t))

    def f(self, t: Tensor) -> Tensor:
        """Drift coefficient ``−β/2``."""
        return -0.5 * self.beta(t)


@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance-preserving process ``dx = −½ β x dt + sqrt(β) dW`` (Song et al. 2021, eq. 11).

    Args:
        beta_min: Noise rate at ``t = 0``.
        beta_max: Noise rate at ``t = 1``.
        T: Time at which the noising ends.
        t_min: Time at which sampling stops (Song's ``ε``).

    Raises:
        ValueError: If a rate is not positive, or the times are not ``0 <= t_min < T``.

    Example:
        >>> t = torch.tensor([0.5, 1.0])
        >>> s, sigma = VP().scale(t), VP().sigma(t)
        >>> torch.allclose(s**2 * (1 + sigma**2), torch.ones(2))  # the variance of unit data
        True
    """

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level ``σ = sqrt(exp(B) − 1)``."""
        return torch.sqrt(torch.expm1(self.beta_integral(t)))

    def std(self, t: Tensor) -> Tensor:
        """Noise in ``x``: ``sqrt(1 − exp(−B))``."""
        return torch.sqrt(-torch.expm1(-self.beta_integral(t)))

    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient ``sqrt(β)``."""
        return torch.sqrt(self.beta(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of `scale` and `std`, from ``s² + n² = 1``."""
        s = self.scale(t)
        ds = self.f(t) * s
        return ds, -s * ds / self.std(t)

    def time(self, sigma: Tensor) -> Tensor:
        """Time at which ``B = log(1 + σ²)``."""
        return self._time_of(torch.log1p(sigma**2))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-variance-preserving process, ``g² = β (1 − exp(−2B))`` (Song et al. 2021, eq. 12).

    Args:
        beta_min: Noise rate at ``t = 0``.
        beta_max: Noise rate at ``t = 1``.
        T: Time at which the noising ends.
        t_min: Time at which sampling stops.

    Raises:
        ValueError: If a rate is not positive, or the times are not ``0 <= t_min < T``.
    """

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level ``σ = 2 sinh(B/2)``."""
        return 2 * torch.sinh(0.5 * self.beta_integral(t))

    def std(self, t: Tensor) -> Tensor:
        """Noise in ``x``: ``1 − exp(−B)``."""
        return -torch.expm1(-self.beta_integral(t))

    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient ``sqrt(β (1 − exp(−2B)))``."""
        return torch.sqrt(-self.beta(t) * torch.expm1(-2 * self.beta_integral(t)))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of `scale` and `std`, from ``n = 1 − s²``."""
        s = self.scale(t)
        ds = self.f(t) * s
        return ds, -2 * s * ds

    def time(self, sigma: Tensor) -> Tensor:
        """Time at which ``B = 2 asinh(σ/2)``."""
        return self._time_of(2 * torch.asinh(0.5 * sigma))


class _Unscaled(AffineSDE):
    """What VE and EDM share: ``s = 1``, noise is only ever added."""

    def scale(self, t: Tensor) -> Tensor:
        """Scale 1."""
        return torch.ones_like(t)

    def std(self, t: Tensor) -> Tensor:
        """Noise in ``x``: ``σ``."""
        return self.sigma(t)

    def f(self, t: Tensor) -> Tensor:
        """Drift coefficient 0."""
        return torch.zeros_like(t)


@dataclass(frozen=True)
class VE(_Unscaled):
    """Variance-exploding process, ``σ = σ_min (σ_max/σ_min)^t`` (Song et al. 2021, eq. 9).

    ``σ(0) = σ_min`` is not zero: what the process calls ``x(0)`` is the data blurred by ``σ_min``,
    and the kernel from time 0 has variance ``σ(t)² − σ_min²``; `marginal` is the kernel from the
    unblurred data.

    Args:
        sigma_min: Noise level at ``t = 0``.
        sigma_max: Noise level at ``t = T = 1``.

    Raises:
        ValueError: If not ``0 < sigma_min < sigma_max``.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        check_sigma_range(self.sigma_min, self.sigma_max)
        object.__setattr__(self, "_log_ratio", math.log(self.sigma_max / self.sigma_min))

    _log_ratio: float = field(init=False, repr=False)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level ``σ_min (σ_max/σ_min)^t``."""
        return self.sigma_min * torch.exp(self._log_ratio * t)

    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient ``σ sqrt(2 log(σ_max/σ_min))``."""
        return math.sqrt(2 * self._log_ratio) * self.sigma(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of `scale` and `std`."""
        return torch.zeros_like(t), self._log_ratio * self.sigma(t)

    def time(self, sigma: Tensor) -> Tensor:
        """Time at which the noise level is ``sigma``."""
        return torch.log(sigma / self.sigma_min) / self._log_ratio


@dataclass(frozen=True)
class EDM(_Unscaled):
    """EDM's process: ``s = 1``, ``σ = t`` (Karras et al. 2022, table 1).

    Args:
        sigma_min: Noise level and time at which sampling stops.
        sigma_max: Noise level and time at which the noising ends.

    Raises:
        ValueError: If not ``0 < sigma_min < sigma_max``.

    Example:
        >>> EDM(sigma_max=10.0).prior_sample((4, 3), seed=0).shape
        torch.Size([4, 3])
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    T: float = field(init=False, repr=False)
    t_min: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_sigma_range(self.sigma_min, self.sigma_max)
        object.__setattr__(self, "T", self.sigma_max)
        object.__setattr__(self, "t_min", self.sigma_min)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level ``t``."""
        return t

    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient ``sqrt(2t)``."""
        return torch.sqrt(2 * t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of `scale` and `std`."""
        return torch.zeros_like(t), torch.ones_like(t)

    def time(self, sigma: Tensor) -> Tensor:
        """Time ``σ``."""
        return sigma


@dataclass(frozen=True)
class CosineVP(AffineSDE):
    """Cosine schedule ``s = cos(a(t)) / cos(a(0))``, ``a = (t + o)/(1 + o) · π/2``.

    The continuous form of Nichol & Dhariwal (2021, eq. 17), ``s² = ᾱ``. At ``t = 1`` the signal is
    gone: ``s = 0``, ``σ = ∞``.

    Args:
        offset: The small offset ``o`` that keeps the noise at ``t = 0`` from vanishing too slowly.
        T: Time at which the noising ends.
        t_min: Time at which sampling stops.

    Raises:
        ValueError: If the offset is not positive, or the times are not ``0 <= t_min < T <= 1``.
    """

    offset: float = 0.008
    T: float = 1.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        check_times(self.T, self.t_min)
        _check_unit_time(self.T)
        _check_positive(offset=self.offset)

    def _angle(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * (t + self.offset) / (1 + self.offset)

    @property
    def _start(self) -> float:
        return 0.5 * math.pi * self.offset / (1 + self.offset)

    def scale(self, t: Tensor) -> Tensor:
        """Scale ``cos(a)/cos(a_0)``, exactly zero at ``t = 1``."""
        return torch.sin(0.5 * math.pi * (1 - t) / (1 + self.offset)) / math.cos(self._start)

    def std(self, t: Tensor) -> Tensor:
        """Noise in ``x``: ``sqrt(1 − s²)``, by the product formula that does not cancel."""
        a = self._angle(t)
        product = torch.sin(a - self._start) * torch.sin(a + self._start)
        return torch.sqrt(product.clamp(min=0)) / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level ``sqrt(1 − s²)/s``."""
        return self.std(t) / self.scale(t)

    def f(self, t: Tensor) -> Tensor:
        """Drift coefficient ``−ȧ tan(a)``."""
        return -0.5 * math.pi / (1 + self.offset) * torch.tan(self._angle(t))

    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient ``sqrt(2 ȧ tan(a))``, from ``g² = −2f`` of every VP process."""
        return torch.sqrt(-2 * self.f(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of `scale` and `std`, from ``s² + n² = 1``."""
        rate = 0.5 * math.pi / (1 + self.offset)
        ds = -rate * torch.sin(self._angle(t)) / math.cos(self._start)
        return ds, -self.scale(t) * ds / self.std(t)

    def time(self, sigma: Tensor) -> Tensor:
        """Time at which ``s = 1/sqrt(1 + σ²)``."""
        # tan a from σ: cos a = cos(a0) / sqrt(1 + σ²), sin² a = (σ² + sin² a0) / (1 + σ²).
        c, s2 = math.cos(self._start), math.sin(self._start) ** 2
        a = torch.atan(torch.sqrt(sigma**2 + s2) / c)
        return ((a - self._start) * (2 / math.pi) * (1 + self.offset)).clamp(0, 1)


@dataclass(frozen=True)
class RectifiedFlow(AffineSDE):
    """Rectified flow, or flow matching with straight paths: ``x = (1 − t) x0 + t ε``.

    ``s = 1 − t``, ``σ = t/(1 − t)`` (Liu et al. 2023, Lipman et al. 2023, with noise at ``t = 1``).
    At ``t = 1`` the signal is gone: ``s = 0``, ``σ = ∞``.

    Args:
        T: Time at which the noising ends.
        t_min: Time at which sampling stops.

    Raises:
        ValueError: If the times are not ``0 <= t_min < T <= 1``.

    Example:
        >>> RectifiedFlow().sigma(torch.tensor([0.0, 0.5, 0.8]))
        tensor([0.0000, 1.0000, 4.0000])
    """

    T: float = 1.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        check_times(self.T, self.t_min)
        _check_unit_time(self.T)

    def scale(self, t: Tensor) -> Tensor:
        """Scale ``1 − t``."""
        return 1 - t

    def std(self, t: Tensor) -> Tensor:
        """Noise in ``x``: ``t``."""
        return t + torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level ``t/(1 − t)``."""
        return t / (1 - t)

    def f(self, t: Tensor) -> Tensor:
        """Drift coefficient ``−1/(1 − t)``."""
        return -1 / (1 - t)

    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient ``sqrt(2t/(1 − t))``."""
        return torch.sqrt(2 * t / (1 - t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of `scale` and `std`."""
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, sigma: Tensor) -> Tensor:
        """Time ``σ/(1 + σ)``, 1 for ``σ = ∞``."""
        return 1 / (1 + 1 / sigma)


class DiscreteVP(AffineSDE):
    """A discrete DDPM schedule made continuous.

    ``σ_i = sqrt((1 − ᾱ_i)/ᾱ_i)`` at ``t_i = (i + 1)/N``. Between the knots ``log σ`` is the monotone
    cubic interpolant (PCHIP) in ``t``, with ``s = 1/sqrt(1 + σ²)``: once continuously
    differentiable, and exact at the training noise levels.

    Args:
        alphas_cumprod: The ``ᾱ_i``, ``i = 0 … N − 1``, strictly decreasing in (0, 1).

    Raises:
        ValueError: If the schedule is not such a sequence.
    """

    def __init__(self, alphas_cumprod: Sequence[float] | NDArray[np.float64] | Tensor) -> None:
        from scipy.interpolate import PchipInterpolator  # half a second to import

        alphas = np.asarray(alphas_cumprod, dtype=np.float64)
        if alphas.ndim != 1 or len(alphas) < 2:
            raise ValueError(
                f"alphas_cumprod has shape {alphas.shape}; it must be a sequence of at least two"
            )
        if not (np.all(np.diff(alphas) < 0) and alphas[0] < 1 and alphas[-1] > 0):
            raise ValueError(
                "alphas_cumprod must be strictly decreasing inside (0, 1); a last value of 0 (zero "
                "terminal SNR) has no finite noise level: drop it"
            )
        knots = np.arange(1, len(alphas) + 1) / len(alphas)
        self.alphas_cumprod = alphas
        self.T, self.t_min = 1.0, float(knots[0])
        self._knots = torch.from_numpy(knots)
        log_sigma = 0.5 * (np.log1p(-alphas) - np.log(alphas))
        self._first_slope = (log_sigma[1] - log_sigma[0]) / (knots[1] - knots[0])
        self._cubics = torch.from_numpy(PchipInterpolator(knots, log_sigma).c.copy())

    def __repr__(self) -> str:
        return f"DiscreteVP({len(self.alphas_cumprod)} levels)"

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level by interpolation of ``log σ``; below the first knot ``log σ`` is linear."""
        knots, cubics = self._knots.to(t), self._cubics.to(t)
        index = torch.searchsorted(knots, t.detach().contiguous(), right=True) - 1
        index = index.clamp(0, cubics.shape[1] - 1)
        x = (t - knots[index]).clamp(min=0)
        c3, c2, c1, c0 = cubics[:, index]
        below = self._first_slope * (t - knots[0]).clamp(max=0)
        return torch.exp(((c3 * x + c2) * x + c1) * x + c0 + below)

    def scale(self, t: Tensor) -> Tensor:
        """Scale ``1/sqrt(1 + σ²)``."""
        return torch.rsqrt(1 + self.sigma(t) ** 2)


def check_sigma_range(sigma_min: float, sigma_max: float) -> None:
    """Refuse noise levels that are not ``0 < sigma_min < sigma_max < ∞``."""
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"sigma_min = {sigma_min} and sigma_max = {sigma_max}; 0 < sigma_min < sigma_max < ∞ "
            "is needed"
        )


def _check_unit_time(T: float) -> None:
    if T > 1:
        raise ValueError(f"T = {T}; this process ends at T = 1, where only noise is left")
