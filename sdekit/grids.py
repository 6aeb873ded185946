"""Grids: where the steps end.

A grid is a function ``grid(n, sigma_max, sigma_min, process=None)`` that returns ``n + 1`` strictly
decreasing noise levels in float64, from ``sigma_max`` to ``sigma_min``, both included to the bit.
Options are keywords: ``functools.partial(karras, rho=3.0)`` is a grid again.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .affine import AffineSDE

Array = NDArray[np.float64]


class Grid(Protocol):
    """The signature that every grid has."""

    def __call__(
        self, n: int, sigma_max: float, sigma_min: float, process: AffineSDE | None = None
    ) -> Array:
        """Return ``n + 1`` decreasing noise levels."""
        ...


def _ends(sigma: Array, sigma_max: float, sigma_min: float) -> Array:
    # Round-off may move the ends by an ulp, out of a process's range.
    sigma[0], sigma[-1] = sigma_max, sigma_min
    return sigma


def _check(n: int, sigma_max: float, sigma_min: float, *, finite: bool = True) -> None:
    if n < 1:
        raise ValueError(f"n = {n} steps; a grid needs at least one")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"sigma_max = {sigma_max}, sigma_min = {sigma_min}; 0 < sigma_min < sigma_max is needed"
        )
    if finite and np.isinf(sigma_max):
        raise ValueError(
            "this grid cannot start at sigma = ∞, where the process has no signal left; give a "
            "finite start, as in sigmas=sdekit.grids.karras(n, 80.0, 0.002), or take a method in the "
            "process's own time, such as 'heun_t'"
        )


def karras(
    n: int,
    sigma_max: float,
    sigma_min: float,
    process: AffineSDE | None = None,
    *,
    rho: float = 7.0,
) -> Array:
    """Uniform in ``σ^(1/ρ)`` (Karras et al. 2022, eq. 5).

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max < ∞``, or ``rho`` is not positive.
    """
    _check(n, sigma_max, sigma_min)
    if not rho > 0:
        raise ValueError(f"rho = {rho}; it must be positive")
    ramp = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n + 1)
    return _ends(ramp**rho, sigma_max, sigma_min)


def log(n: int, sigma_max: float, sigma_min: float, process: AffineSDE | None = None) -> Array:
    """Uniform in ``log σ``, that is in half the log signal-to-noise ratio ``λ = −log σ``.

    Raises:
        ValueError: If ``n < 1`` or not ``0 < sigma_min < sigma_max < ∞``.
    """
    _check(n, sigma_max, sigma_min)
    return _ends(
        np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), n + 1)), sigma_max, sigma_min
    )


def uniform_t(
    n: int, sigma_max: float, sigma_min: float, process: AffineSDE | None = None
) -> Array:
    """Uniform in the time of ``process`` (Song et al. 2021); the start may be ``σ = ∞``.

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max``, or no process is given.
    """
    _check(n, sigma_max, sigma_min, finite=False)
    if process is None:
        raise ValueError("a grid uniform in time needs process=, whose time it is")
    t_max, t_min = process.on_host("time", np.array([sigma_max, sigma_min]))
    return _ends(process.on_host("sigma", np.linspace(t_max, t_min, n + 1)), sigma_max, sigma_min)
