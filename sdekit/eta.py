"""One η: what the stochasticity of other papers and programs is in ours.

Here ``η`` is a constant of the reverse SDE ``dx = (f x − ½ (1 + η²) g² ∇ log p) dt + η g dW``: 0 is
the flow, 1 Anderson's reverse SDE. Others say it of a step from ``σ`` down to ``σ'``, by the variance
of the noise they add; where that is so, the conversion is the one that makes the noise of the step the
same as that of our exact steps in `LogData` coordinates, ``σ'² (1 − (σ'/σ)^(2η²))`` in the unscaled
state. For short steps all agree to leading order.

Functions take floats or arrays, and return arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .coordinates import Array

__all__ = [
    "from_azula",
    "from_beta",
    "from_churn",
    "from_ddim",
    "from_k_diffusion_sde",
    "from_sa_solver",
    "to_azula",
    "to_beta",
    "to_churn",
    "to_ddim",
    "to_k_diffusion_sde",
    "to_sa_solver",
]


def from_ddim(eta: ArrayLike, sigma: ArrayLike, sigma_next: ArrayLike) -> Array:
    """Convert DDIM's ``η``, which is that of the "ancestral" samplers of k-diffusion.

    Their noise has the variance ``η² σ'² (1 − σ'²/σ²)`` (Song et al. 2021 (DDIM), eq. 16).

    Args:
        eta: DDIM's ``η``, at least 0.
        sigma: Noise level where the step starts.
        sigma_next: Noise level where it ends, lower.

    Raises:
        ValueError: If the levels do not fall, or DDIM's noise is more than all there is.
    """
    ratio = _ratio(sigma, sigma_next)
    left = 1 - _values(eta, "eta") ** 2 * -np.expm1(2 * ratio)
    if not np.all(left > 0):
        raise ValueError("eta² (1 − σ'²/σ²) must be below 1: there is no more noise than σ'²")
    return np.sqrt(np.log(left) / (2 * ratio))


def to_ddim(eta: ArrayLike, sigma: ArrayLike, sigma_next: ArrayLike) -> Array:
    """Convert to DDIM's ``η``: the inverse of `from_ddim`."""
    ratio = _ratio(sigma, sigma_next)
    squared: Array = np.expm1(2 * _values(eta, "eta") ** 2 * ratio) / np.expm1(2 * ratio)
    return np.sqrt(squared)


def from_azula(eta: ArrayLike, sigma: ArrayLike, sigma_next: ArrayLike) -> Array:
    """Convert the ``η`` of azula's DDIM, which is the square of DDIM's."""
    return from_ddim(np.sqrt(_values(eta, "eta")), sigma, sigma_next)


def to_azula(eta: ArrayLike, sigma: ArrayLike, sigma_next: ArrayLike) -> Array:
    """Convert to the ``η`` of azula's DDIM."""
    squared: Array = to_ddim(eta, sigma, sigma_next) ** 2
    return squared


def from_k_diffusion_sde(eta: ArrayLike) -> Array:
    """Convert the ``eta`` of k-diffusion's ``dpmpp_2m_sde`` and ``dpmpp_3m_sde``: it is our square."""
    return np.sqrt(_values(eta, "eta"))


def to_k_diffusion_sde(eta: ArrayLike) -> Array:
    """Convert to the ``eta`` of k-diffusion's ``dpmpp_2m_sde`` and ``dpmpp_3m_sde``."""
    return _values(eta, "eta") ** 2


def from_sa_solver(tau: ArrayLike) -> Array:
    """Convert SA-Solver's ``τ``: it is ours (Xue et al. 2023, eq. 6)."""
    return _values(tau, "tau")


def to_sa_solver(eta: ArrayLike) -> Array:
    """Convert to SA-Solver's ``τ``."""
    return _values(eta, "eta")


def from_beta(beta: ArrayLike, sigma: ArrayLike, sigma_rate: ArrayLike = 1.0) -> Array:
    """Convert the rate ``β(t)`` at which EDM replaces noise: ``η² = β σ/σ̇``.

    Source: Karras et al. 2022, eq. 6.

    Args:
        beta: ``β(t)``.
        sigma: ``σ(t)``.
        sigma_rate: ``σ̇(t)``; 1 for EDM's own ``σ = t``.
    """
    squared: Array = _values(beta, "beta") * np.asarray(sigma) / np.asarray(sigma_rate)
    return np.sqrt(squared)


def to_beta(eta: ArrayLike, sigma: ArrayLike, sigma_rate: ArrayLike = 1.0) -> Array:
    """Convert to EDM's ``β(t) = η² σ̇/σ``."""
    rate: Array = _values(eta, "eta") ** 2 * np.asarray(sigma_rate) / np.asarray(sigma)
    return rate


def from_churn(gamma: ArrayLike, sigma: ArrayLike, sigma_next: ArrayLike) -> Array:
    """Convert EDM's churn: before the step the level is raised to ``(1 + γ) σ``.

    ``γ`` is ``min(S_churn/N, √2 − 1)`` (Karras et al. 2022, algorithm 2).

    Args:
        gamma: ``γ``, at least 0.
        sigma: Noise level before it is raised.
        sigma_next: Noise level where the step ends.
    """
    return np.sqrt(np.log1p(_values(gamma, "gamma")) / -_ratio(sigma, sigma_next))


def to_churn(eta: ArrayLike, sigma: ArrayLike, sigma_next: ArrayLike) -> Array:
    """Convert to EDM's ``γ``: the inverse of `from_churn`."""
    return np.expm1(-(_values(eta, "eta") ** 2) * _ratio(sigma, sigma_next))


def _values(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if not np.all(array >= 0):
        raise ValueError(f"{name} = {values!r}; it must not be negative")
    return array


def _ratio(sigma: ArrayLike, sigma_next: ArrayLike) -> Array:
    """``log(σ'/σ) < 0``."""
    high, low = (np.asarray(v, dtype=np.float64) for v in (sigma, sigma_next))
    if not np.all((low > 0) & (low < high)):
        raise ValueError(
            f"a step from sigma = {sigma!r} to sigma_next = {sigma_next!r}; levels must fall, and stay "
            "above 0"
        )
    ratio: Array = np.log(low / high)
    return ratio
