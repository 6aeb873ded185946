"""Coordinates made for the data's scale: in them Gaussian data are solved exactly by any scheme."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .affine import AffineSDE
from .coordinates import Array, Coordinates, LogVariable, OwnClock, Points


def _check_sigma_data(sigma_data: float | None) -> None:
    if sigma_data is not None and not 0 < sigma_data < np.inf:
        raise ValueError(f"sigma_data = {sigma_data}; it must be positive and finite")


@dataclass(frozen=True)
class Preconditioned(OwnClock):
    """``u = x̂/h``, ``h² = σ² + σ_d²``, ``τ = W = θ = arctan(σ/σ_d)``, ``N = −F``, EDM's raw network.

    For data of covariance ``σ_d² I``, ``N = 0`` and every scheme is exact. The variables are those of
    TrigFlow (Lu & Song 2025); ``F`` is that of Karras et al. (2022), eq. 7.

    Args:
        sigma_data: Standard deviation ``σ_d`` of the data; a wrong value costs accuracy only. If it
            is left out, a solve fills it in.

    Raises:
        ValueError: If it is not positive and finite.
    """

    sigma_data: float | None = None

    def __post_init__(self) -> None:
        _check_sigma_data(self.sigma_data)

    @property
    def needs_sigma_data(self) -> bool:
        """Whether it was left out."""
        return self.sigma_data is None

    def bind(self, process: AffineSDE, sigma_data: float | None = None) -> Coordinates:
        """Return the coordinates of data of standard deviation ``sigma_data``, if none is set."""
        return self if self.sigma_data is not None else Preconditioned(sigma_data)

    @property
    def _sd(self) -> float:
        if self.sigma_data is None:
            raise ValueError("Preconditioned() has no sigma_data yet: bind(process, sigma_data)")
        return self.sigma_data

    def tau(self, sigma: Array) -> Array:
        """``arctan(σ/σ_d)``."""
        return np.arctan(sigma / self._sd)

    def sigma(self, tau: Array) -> Array:
        """``σ_d tan θ``."""
        return self._sd * np.tan(tau)

    def sigma_rate(self, p: Points) -> Array:
        """``σ_d / cos² θ``."""
        return self._sd / np.cos(p.tau) ** 2

    def h(self, p: Points) -> Array:
        """``sqrt(σ² + σ_d²)``; 1 for ``σ = ∞``, where ``u = ε``."""
        return np.where(np.isinf(p.sigma), 1.0, np.hypot(p.sigma, self._sd))

    def field(self, p: Points) -> tuple[Array, Array]:
        """``cot θ`` and ``−1/(σ_d sin θ)``."""
        return 1 / np.tan(p.tau), -1 / (self._sd * np.sin(p.tau))


@dataclass(frozen=True, eq=False)
class GaussianPreconditioned(LogVariable):
    """`Preconditioned` in each direction of a covariance, ``σ_d,i² = λ_i``, after removing a mean.

    In the eigenbasis of ``C``: ``u_i = (x̂ − m)_i / sqrt(σ² + λ_i)``, ``W_i = arctan(σ/sqrt(λ_i))`` and
    ``N_i = −F_i``. For data ``N(m, C)``, ``N = 0`` and every scheme is exact. The directions share
    one interpolation variable, ``λ = −log σ``. A wrong mean or covariance costs accuracy only.

    Args:
        mean: Mean of the data, flattened, ``(d,)``.
        cov: Covariance ``(d, d)``. Its eigenvalues are raised to 1e-6 of the largest one.

    Raises:
        ValueError: If the shapes disagree, or ``cov`` is not symmetric or has no positive eigenvalue.
    """

    mean: Array
    cov: Array

    def __post_init__(self) -> None:
        mean, cov = np.array(self.mean, dtype=np.float64), np.array(self.cov, dtype=np.float64)
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise ValueError(
                f"mean has shape {mean.shape} and cov {cov.shape}; they must be (d,) and (d, d)"
            )
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise ValueError("mean and cov must be finite")
        if not np.allclose(cov, cov.T, rtol=1e-6, atol=1e-9 * np.abs(cov).max(initial=0)):
            raise ValueError("cov must be symmetric")
        object.__setattr__(self, "mean", mean)  # copies: the user's arrays may change
        object.__setattr__(self, "cov", cov)
        if not len(mean) or not self._eigen[0][-1] > 0:
            raise ValueError("cov has no positive eigenvalue")

    @cached_property
    def _eigen(self) -> tuple[Array, Array]:
        values, vectors = np.linalg.eigh(np.array(self.cov, dtype=np.float64))
        return values, vectors

    @cached_property
    def _std(self) -> Array:
        variances, _ = self._eigen
        std: Array = np.sqrt(np.maximum(variances, 1e-6 * variances[-1]))
        return std

    @staticmethod
    def from_samples(samples: Array) -> GaussianPreconditioned:
        """Return the coordinates of the sample mean and covariance of data ``(n, *event)``.

        Raises:
            ValueError: If there are fewer than two samples.
        """
        rows = np.asarray(samples, dtype=np.float64).reshape(len(samples), -1)
        if len(rows) < 2:
            raise ValueError(f"{len(rows)} samples; a covariance needs at least two")
        return GaussianPreconditioned(rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False)))

    @property
    def frame(self) -> tuple[Array, Array]:
        """The mean, and the eigenvectors of the covariance as columns."""
        return np.array(self.mean, dtype=np.float64), self._eigen[1]

    def h(self, p: Points) -> Array:
        """``sqrt(σ² + λ_i)``."""
        return np.hypot(p.sigma[:, None], self._std)

    def clock(self, p: Points) -> Array:
        """``arctan(σ/sqrt(λ_i))``."""
        return np.arctan(p.sigma[:, None] / self._std)

    def clock_rate(self, sigma: Array) -> Array:
        """``sqrt(λ_i)/(σ² + λ_i)``."""
        return self._std / (sigma[:, None] ** 2 + self._std**2)

    def field(self, p: Points) -> tuple[Array, Array]:
        """``sqrt(λ_i)/σ`` and ``−sqrt(1/σ² + 1/λ_i)``."""
        sigma = p.sigma[:, None]
        return self._std / sigma, -np.hypot(1 / sigma, 1 / self._std)
