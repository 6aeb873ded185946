"""How the points of a grid are spaced: what every grid is made of and checked by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .affine import AffineSDE

Array = NDArray[np.float64]
Map = Callable[[Array], Array]


class Grid(Protocol):
    """The signature that every grid has."""

    def __call__(
        self, n: int, sigma_max: float, sigma_min: float, process: AffineSDE | None = None
    ) -> Array:
        """Return ``n + 1`` decreasing noise levels."""
        ...


def check_range(n: int, sigma_max: float, sigma_min: float) -> None:
    """Refuse what no grid can be made of: no steps, or not ``0 < sigma_min < sigma_max``."""
    if n < 1:
        raise ValueError(f"n = {n} steps; a grid needs at least one")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"sigma_max = {sigma_max}, sigma_min = {sigma_min}; 0 < sigma_min < sigma_max is needed"
        )


def with_ends(sigma: Array, sigma_max: float, sigma_min: float) -> Array:
    """Set the ends to the bit and return the grid; refuse one that float64 cannot keep apart."""
    # Round-off may move the ends by an ulp, out of a process's range.
    sigma[0], sigma[-1] = sigma_max, sigma_min
    if not (np.diff(sigma) < 0).all():
        raise ValueError(
            f"{len(sigma) - 1} steps from sigma = {sigma_max} to {sigma_min} do not fit this grid: "
            "levels coincide in float64; take fewer steps or milder options"
        )
    return sigma


def positive(**options: float) -> None:
    """Refuse an option that is not positive and finite."""
    for name, value in options.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name} = {value}; it must be positive and finite")


def uniform(
    n: int,
    sigma_max: float,
    sigma_min: float,
    variable: Map,
    inverse: Map,
    *,
    warp: Map | None = None,
    from_infinity: bool = False,
) -> Array:
    """Return the grid that is uniform in ``variable(σ)``, an increasing function with ``inverse``.

    ``warp``, an increasing map of [0, 1] to itself, says where else the points are, as fractions of
    the variable's range from its low end; ``from_infinity`` that the variable is finite at ``σ = ∞``.
    """
    check_range(n, sigma_max, sigma_min)
    if np.isinf(sigma_max) and not from_infinity:
        raise ValueError(
            "this grid cannot start at sigma = ∞, where the process has no signal left; give a "
            "finite start, as in sigmas=sdekit.grids.karras(n, 80.0, 0.002), take a grid that is "
            "finite there, such as theta, or a method in the process's own time, such as 'heun_t'"
        )
    fraction = np.linspace(1.0, 0.0, n + 1)
    if warp is not None:
        fraction = warp(fraction)
    # The inverse is called at the ends too, which may be poles; they are overwritten.
    with np.errstate(divide="ignore", over="ignore"):
        high, low = variable(np.array([sigma_max, sigma_min], dtype=np.float64))
        return with_ends(inverse(low + (high - low) * fraction), sigma_max, sigma_min)


def uniform_in_time(
    n: int,
    sigma_max: float,
    sigma_min: float,
    process: AffineSDE | None,
    *,
    rho: float = 1.0,
    warp: Map | None = None,
) -> Array:
    """Return the grid that is uniform in ``t^(1/ρ)``, ``t`` the time of the process."""
    check_range(n, sigma_max, sigma_min)
    if process is None:
        raise ValueError("a grid uniform in time needs process=, whose time it is")
    ends = np.array([sigma_max, sigma_min], dtype=np.float64)
    times = process.on_host("time", ends)
    reached = process.on_host("sigma", times)
    # Some processes go on beyond T, others stop there; none has a root of a negative time.
    if not np.allclose(reached, ends, rtol=1e-6, atol=0) or times[1] < -1e-9 * process.T:
        raise ValueError(
            f"the grid's range, sigma = {sigma_max:g} to {sigma_min:g}, exceeds that of {process!r}, "
            f"{process.sigma_max:g} to {float(process.on_host('sigma', 0.0)):g}"
        )
    return uniform(
        n,
        sigma_max,
        sigma_min,
        lambda sigma: process.on_host("time", sigma).clip(0) ** (1 / rho),
        lambda root: process.on_host("sigma", root**rho),
        warp=warp,
        from_infinity=True,
    )
