"""Grids fitted to a model: steps where the flow is hard, from one accurate pilot solve.

In `Preconditioned` coordinates the flow is ``du/dθ = −F(u, θ)``, and a scheme of order ``p`` makes in a
step ``Δθ`` an error of about ``Δθ^(p+1) |F⁽ᵖ⁾|``, the derivative taken along the trajectory. All steps
make the same error if their density in ``θ`` is proportional to ``|F⁽ᵖ⁾|^(1/(p+1))``: the error is
equidistributed (de Boor 1973; Ascher, Mattheij & Russell 1995, ch. 9).
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .affine import AffineSDE
from .denoisers import known_sigma_data, trained_range
from .grids import check_range, power_theta, with_ends
from .inputs import check_state
from .preconditioned import Preconditioned
from .sampling import solve
from .sde import ProbabilityFlow, check_output
from .solvers.registry import Solver
from .solvers.rk import RK4, RungeKutta

Array = NDArray[np.float64]

_VERSION = 1

# Of the fitted density; the rest is uniform in arctan sqrt(σ/σ_d), so that no gap opens where the
# pilot saw nothing to resolve.
_FITTED_SHARE = 0.9
# Width of the smoothing and number of the table's cells, in the range of arctan sqrt(σ/σ_d).
_SMOOTHING = 0.03
_CELLS = 128
# How far beyond the fitted range round-off may carry a process's own ends.
_SLACK = 1e-9


@dataclass(frozen=True)
class FittedGrid:
    """A grid with a tabulated density of steps, as `equidistribute` returns it.

    It is called as any grid, with any number of steps, on the fitted range or a part of it.

    Attributes:
        order: Order ``p`` of the derivative that was equidistributed.
        sigma_data: Standard deviation ``σ_d`` of the data, that of the pilot's coordinates.
        samples: Number of samples of the pilot.
        seed: Seed of the pilot's start; ``None`` if the start was given.
        nfe: Network evaluations of the pilot, per sample.
        levels: Noise levels of the table, strictly decreasing; the first may be ``∞``.
        cumulative: Share of the steps made above each level, from 0 to 1, strictly increasing.

    Raises:
        ValueError: If a field is not as described.
    """

    order: int
    sigma_data: float
    samples: int
    seed: int | None
    nfe: int
    levels: tuple[float, ...]
    cumulative: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("order", "samples", "nfe"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} = {value!r}; it must be a positive integer")
        if not (self.seed is None or isinstance(self.seed, int)):
            raise ValueError(f"seed = {self.seed!r}; it must be an integer or None")
        for name in ("levels", "cumulative"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        Preconditioned(self.sigma_data)  # checks it
        levels, cumulative = np.array(self.levels), np.array(self.cumulative)
        if len(levels) != len(cumulative) or len(levels) < 2:
            raise ValueError(
                f"there are {len(levels)} levels and {len(cumulative)} cumulative shares; as many of "
                "both, at least two, are needed"
            )
        if not (levels[:-1] > levels[1:]).all() or not 0 < levels[-1] < np.inf:
            raise ValueError("levels must decrease strictly, and end above 0")
        if not (np.diff(cumulative) > 0).all() or cumulative[0] != 0 or cumulative[-1] != 1:
            raise ValueError("cumulative must increase strictly from 0 to 1")

    def __repr__(self) -> str:
        return (
            f"FittedGrid(σ = {self.levels[0]:g} … {self.levels[-1]:g}, order={self.order}, "
            f"sigma_data={self.sigma_data:g}, nfe={self.nfe})"
        )

    def __call__(
        self, n: int, sigma_max: float, sigma_min: float, process: AffineSDE | None = None
    ) -> Array:
        """Return ``n + 1`` decreasing noise levels, each step with the same share of the density.

        Raises:
            ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max``, or the range is not a part of
                the fitted one.
        """
        check_range(n, sigma_max, sigma_min)
        first, last = self.levels[0], self.levels[-1]
        if sigma_max > first * (1 + _SLACK) or sigma_min < last * (1 - _SLACK):
            raise ValueError(
                f"the grid was fitted from sigma = {first:g} to {last:g}, and {sigma_max:g} to "
                f"{sigma_min:g} is asked for; fit again with sigma_max= and sigma_min=, or restrict "
                "the solve"
            )
        phi, cumulative = _phi(np.array(self.levels), self.sigma_data), np.array(self.cumulative)
        ends = _phi(np.array([sigma_max, sigma_min]), self.sigma_data)
        # Both ways linear in φ, so that the one interpolant is the inverse of the other.
        high, low = np.interp(-ends, -phi, cumulative)
        inside = np.interp(np.linspace(high, low, n + 1), cumulative, phi)
        return with_ends(self.sigma_data * np.tan(inside) ** 2, sigma_max, sigma_min)

    def save(self, path: str | Path) -> None:
        """Write the grid as JSON."""
        record = {"format": "sdekit.FittedGrid", "version": _VERSION, **asdict(self)}
        # JSON has no infinity; float("inf") reads it back.
        record["levels"] = ["inf" if math.isinf(level) else level for level in self.levels]
        text = json.dumps(record, indent=1, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> FittedGrid:
        """Read a grid that `save` wrote.

        Raises:
            ValueError: If the file is not such a grid; the message names the file and what is wrong.
        """
        try:
            record: Any = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(record, dict) or record.pop("format", None) != "sdekit.FittedGrid":
                raise ValueError("it is not the JSON of a FittedGrid")
            version = record.pop("version", None)
            if version != _VERSION:
                raise ValueError(f"it has version {version!r}, and this sdekit reads {_VERSION}")
            return cls(**record)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read as a fitted grid: {error}") from error


@torch.no_grad()
def equidistribute(
    problem: ProbabilityFlow,
    *,
    order: int = 3,
    samples: int = 64,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    x: Tensor | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    sigma_data: float | None = None,
    points: int = 60,
    device: torch.device | str | None = None,
) -> FittedGrid:
    """Fit a grid to a model: equidistribute the ``order``-th derivative of ``F`` along trajectories.

    A pilot batch is solved in float64 by classical Runge–Kutta in `Preconditioned` coordinates, in
    steps uniform in ``arctan sqrt(σ/σ_d)``. With ``m(θ)`` the root-mean-square, over samples and
    components, of the derivative of ``F`` with respect to ``θ``, the density of steps in ``θ`` is
    ``m^(1/(order + 1))``, smoothed over 3 % of the range of ``arctan sqrt(σ/σ_d)``, of which 10 % are
    then made uniform in that variable.

    Args:
        problem: ``process.probability_flow(denoiser)`` of an affine process.
        order: Order of the derivative; that of the scheme to be used, or 3 for all.
        samples: Size of the pilot batch, if ``x`` is not given.
        seed: Seed of its start.
        shape: Shape of one sample, ``event``, if ``x`` is not given.
        x: Start of the pilot instead, ``(B, *event)``: state of the process at ``sigma_max``.
        sigma_max: Highest noise level; by default the process's, or the denoiser's if it is lower.
        sigma_min: Lowest noise level; by default the process's, or the denoiser's if it is higher.
        sigma_data: Standard deviation of the data; by default the denoiser's attribute.
        points: Number of points of the pilot, which makes ``5 points − 4`` evaluations. More resolve
            sharper features, and amplify the round-off of a model in low precision.
        device: Device of the pilot batch, if ``x`` is not given.

    Returns:
        The grid, to be called as any other, or given to a `Solver`.

    Raises:
        TypeError: If the problem is not the probability flow of an affine process, or not one of
            ``x`` and ``shape`` is given.
        ValueError: If a number is out of its range, ``sigma_data`` is not known, or the denoiser
            returns a value that is not finite.
        SolveError: If the pilot fails.
    """
    if not isinstance(problem, ProbabilityFlow) or not isinstance(problem.sde, AffineSDE):
        raise TypeError(
            f"problem is a {type(problem).__name__}; pass process.probability_flow(denoiser) of an "
            "affine process"
        )
    if (x is None) == (shape is None):
        raise TypeError("give either x, a start state, or shape, that of one sample")
    if order < 1:
        raise ValueError(f"order = {order}; it must be at least 1")
    if points < order + 4:
        raise ValueError(f"points = {points}; order {order} needs at least {order + 4}")
    if sigma_data is None:
        sigma_data = known_sigma_data(problem.model)
        if sigma_data is None:
            raise ValueError(
                "sigma_data is not known: the denoiser has no such attribute; pass the standard "
                "deviation of the data (a rough value will do)"
            )
    process = problem.sde
    highest, lowest = trained_range(problem.model)
    sigma_max = min(process.sigma_max, highest) if sigma_max is None else sigma_max
    sigma_min = max(process.sigma_min, lowest) if sigma_min is None else sigma_min
    sigmas = power_theta(points - 1, sigma_max, sigma_min, sigma_data=float(sigma_data))
    given = x is not None
    if x is None:
        assert shape is not None
        x = _start(process, sigma_max, (samples, *shape), seed).to(device)
    check_state(x)
    theta, slopes, nfe = _pilot(problem, x.double(), sigmas, float(sigma_data))
    m = _derivative_rms(theta, slopes, order)
    if not np.isfinite(m).all():
        raise ValueError(
            f"the denoiser returned a value that is not finite near sigma = "
            f"{sigmas[np.argmin(np.isfinite(m))]:g}"
        )
    levels, cumulative = _table(sigmas, m ** (1 / (order + 1)), float(sigma_data))
    return FittedGrid(
        order=order,
        sigma_data=float(sigma_data),
        samples=len(x),
        seed=None if given else seed,
        nfe=nfe,
        levels=tuple(levels),
        cumulative=tuple(cumulative),
    )


def _phi(sigma: Array, sigma_data: float) -> Array:
    """``φ = arctan sqrt(σ/σ_d)``: a smooth variable that resolves both ends of the range."""
    phi: Array = np.arctan(np.sqrt(sigma / sigma_data))
    return phi


def _start(process: AffineSDE, sigma: float, shape: tuple[int, ...], seed: int) -> Tensor:
    """Pure noise at ``σ``, drawn on the host: the same on every device."""
    std = float(process.on_host("std", process.on_host("time", sigma)))
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(shape, generator=generator, dtype=torch.float64)


def _pilot(
    problem: ProbabilityFlow, x: Tensor, sigmas: Array, sigma_data: float
) -> tuple[Array, list[Tensor], int]:
    """Solve the flow; return ``θ`` and ``F`` at every level, and the evaluations per sample.

    ``F = D/(σ_d sin θ) − u cot θ``, which is regular at ``σ = ∞``, ``θ = π/2``.
    """
    process = problem.sde
    assert isinstance(process, AffineSDE)
    coordinates = Preconditioned(sigma_data)
    grid = functools.partial(power_theta, sigma_data=sigma_data)
    solver = Solver(RungeKutta(RK4), coordinates, grid)
    solution = solve(problem, x, method=solver, sigmas=sigmas, trajectory=True)
    assert solution.trajectory is not None
    t = process.on_host("time", sigmas)
    s, n = process.on_host("scale", t), process.on_host("std", t)
    # Where the signal is gone the state is n ε, and a denoiser is handed ε = u.
    scale, h = np.where(s == 0, n, s), np.where(s == 0, 1.0, np.hypot(sigmas, sigma_data))
    theta = np.arctan(sigmas / sigma_data)
    slopes = []
    for i, state in enumerate(solution.trajectory):
        x_hat = state / float(scale[i])
        level = torch.as_tensor(sigmas[i], dtype=x.dtype, device=x.device)
        denoised = check_output(problem.model(x_hat, level), x_hat, "denoiser")
        slope = denoised / (sigma_data * math.sin(theta[i])) - x_hat / (h[i] * math.tan(theta[i]))
        slopes.append(slope)
    return theta, slopes, solution.nfe + len(sigmas)


def _derivative_rms(theta: Array, values: list[Tensor], order: int) -> Array:
    """RMS of the ``order``-th derivative along a batch of curves, at their points.

    Each derivative is that of a polynomial of degree ``order + 2`` fitted by least squares to the
    ``order + 4`` nearest points: of second order in their distance or better, and little affected by
    round-off as the density takes the root of degree ``order + 1``.
    """
    width = order + 4
    squares = []
    for i in range(len(theta)):
        first = min(max(i - width // 2, 0), len(theta) - width)
        offset = theta[first : first + width] - theta[i]
        reach = np.abs(offset).max()
        powers = np.vander(offset / reach, order + 3, increasing=True)
        weights = np.linalg.pinv(powers)[order] * (math.factorial(order) / reach**order)
        derivative = torch.zeros_like(values[i])
        for weight, value in zip(weights, values[first : first + width], strict=True):
            derivative.add_(value, alpha=float(weight))
        squares.append(derivative.square().mean())
    mean_squares: Array = torch.stack(squares).numpy(force=True)
    return np.sqrt(mean_squares)


def _table(sigmas: Array, density: Array, sigma_data: float) -> tuple[Array, Array]:
    """Tabulate the cumulative share of steps from their density in ``θ`` at given levels."""
    knots = _phi(sigmas, sigma_data)
    phi = np.linspace(knots[0], knots[-1], _CELLS + 1)
    # dθ/dφ, from tan θ = tan² φ
    density = density * np.sin(2 * knots) / (1 - 0.5 * np.sin(2 * knots) ** 2)
    fine = np.interp(-phi, -knots, density)
    distance = (phi[:, None] - phi) / (_SMOOTHING * (phi[0] - phi[-1]))
    kernel = np.exp(-0.5 * distance**2)
    fine = kernel @ fine / kernel.sum(1)
    cumulative = np.concatenate([[0.0], np.cumsum(fine[1:] + fine[:-1])])
    uniform = np.linspace(0.0, 1.0, _CELLS + 1)
    # Where F is linear in θ for all samples every grid is as good; the pilot then has no say.
    fitted = cumulative / cumulative[-1] if cumulative[-1] > 0 else uniform
    cumulative = _FITTED_SHARE * fitted + (1 - _FITTED_SHARE) * uniform
    cumulative[-1] = 1.0
    levels = sigma_data * np.tan(phi) ** 2
    return with_ends(levels, sigmas[0], sigmas[-1]), cumulative
