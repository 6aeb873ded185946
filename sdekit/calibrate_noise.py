"""Solvers of the reverse SDE fitted to one model, by the law of what they return."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from .affine import AffineSDE
from .calibrated import CalibratedGrid, CalibratedSolver, CalibrationReport, fingerprint
from .calibration.moments import exact_moments, mean_spread, shifted
from .calibration.search import draw
from .calibration.weak import Distance, energy_distance
from .coordinates import Coordinates
from .denoisers import known_sigma_data, trained_range
from .grids import balanced
from .inputs import check_state, check_steps
from .preconditioned import GaussianPreconditioned, Preconditioned
from .sampling import solve
from .sde import ReverseSDE, check_output
from .solution import SolveError
from .solvers.calibrated import CalibratedNoise, Coefficients
from .solvers.registry import Solver
from .wrapper import evaluations, is_guided

__all__ = ["calibrate_noise"]

Array = NDArray[np.float64]

_DEFAULT = "sea_w_theta"
_TEACHER_STEPS = 64
_FEWEST = 64  # samples
# As for the flow: more directions make a large file, fewer samples say little about each.
_DIRECTIONS, _PER_DIRECTION = 128, 3
_SURE = 2.0  # standard errors by which the default has to be beaten
_DEFAULT_GRID = "the default's grid"
# Grids on trial: scale and power of the balanced grid.
_GRIDS = {
    _DEFAULT_GRID: (1.0, 1.2),
    "balanced, power 1": (1.0, 1.0),
    "balanced, power 0.75": (1.0, 0.75),
    "the flow's grid": (0.6, 0.8),
}


def calibrate_noise(
    problem: ReverseSDE,
    steps: int,
    *,
    samples: int = 2048,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    x: Tensor | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    sigma_data: float | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> CalibratedSolver:
    """Fit a solver of few steps to the reverse SDE of ``η = 1`` of a model, by the law of its samples.

    Pilot samples are drawn by the default method in 64 steps: the teacher. On several grids the default
    scheme and, where the pilots tell the covariance of the data, the same with a clock for each of its
    directions draw as many; so do steps with the exact mean and the mean variance of the transition, on
    the best grid. The one is taken whose samples have the smallest energy distance to the teacher's,
    but it has to beat the default by two standard errors. A last third of the samples has no say, and
    gives the errors in the report.

    The result is deterministic. Gaussian data it samples exactly in any number of steps, as far as the
    pilots tell their covariance.

    Args:
        problem: ``process.reverse(denoiser)`` of an affine process, with ``η = 1``.
        steps: Number of steps, which is that of network evaluations.
        samples: Number of pilot samples that choose; half as many are drawn besides, for the report.
        seed: Seed of their starts and of the noise.
        shape: Shape of one sample, ``event``, if ``x`` is not given.
        x: Starts of all instead, ``(B, *event)``, states of the process at ``sigma_max``.
        sigma_max: Highest noise level; by default the process's, or the denoiser's if it is lower.
        sigma_min: Lowest noise level; by default the process's, or the denoiser's if it is higher.
        sigma_data: Standard deviation of the data; by default the denoiser's attribute.
        device: Device of the pilots, if ``x`` is not given.
        progress: Whether to show a progress bar after two seconds.

    Returns:
        The solver, for ``method=`` wherever a name is taken. Its ``report`` says what was gained.

    Raises:
        TypeError: If the problem is not the reverse SDE of an affine process, or not one of ``x`` and
            ``shape`` is given.
        ValueError: If a number is out of its range, ``η`` is not 1, the denoiser is guided, or
            ``sigma_data`` is not known.
        SolveError: If the teacher fails, or no solver returns finite samples.

    Warns:
        UserWarning: If there are too few pilot samples for a clock for each direction.

    Example:
        >>> import sdekit as sk
        >>> law = sk.GaussianMixture.random(components=3, dim=4, seed=0)
        >>> solver = sk.calibrate_noise(sk.EDM().reverse(law), 4, shape=(4,))  # doctest: +SKIP
        >>> sk.sample(sk.EDM(), law, (8, 4), method=solver, eta=1.0)  # doctest: +SKIP
    """
    process = _process(problem)
    check_steps(steps)
    check_steps(samples, "samples")
    if (x is None) == (shape is None):
        raise TypeError("give either x, start states, or shape, that of one sample")
    sigma_data = known_sigma_data(problem.model) if sigma_data is None else float(sigma_data)
    if sigma_data is None:
        raise ValueError(
            "sigma_data is not known: the denoiser has no such attribute; pass the standard "
            "deviation of the data (a rough value will do)"
        )
    Preconditioned(sigma_data)  # checks it
    highest, lowest = trained_range(problem.model)
    high = min(process.sigma_max, highest) if sigma_max is None else sigma_max
    low = max(process.sigma_min, lowest) if sigma_min is None else sigma_min
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"sigma_max = {high:g} and sigma_min = {low:g}; a calibration needs 0 < sigma_min < "
            "sigma_max < ∞"
        )
    seen = seed if x is None else None
    if x is None:
        assert shape is not None
        std = float(process.on_host("std", process.on_host("time", high)))
        x = draw(std, (samples + -(-samples // 2), *shape), seed, device)
    check_state(x)
    if len(x) < _FEWEST:
        raise ValueError(
            f"{len(x)} samples; at least {_FEWEST} are needed to compare laws, and some thousand are "
            "better"
        )
    with torch.no_grad():
        search = _Search(
            problem, process, steps, x.double(), (high, low), sigma_data, seed, progress
        )
        solver = search(seen)
    for message in solver.report.warnings:
        warnings.warn(message, UserWarning, stacklevel=2)
    return solver


class _Candidate(NamedTuple):
    name: str
    coordinates: Coordinates
    coefficients: Coefficients
    chooses: Distance  # on the samples that choose
    tests: Distance  # on those that have no say


@dataclass
class _Search:
    """Finds the solver whose samples are nearest to the teacher's."""

    problem: ReverseSDE
    process: AffineSDE
    steps: int
    x: Tensor
    ends: tuple[float, float]
    sigma_data: float
    seed: int
    progress: bool
    stages: dict[str, float] = field(default_factory=dict)
    spent: int = 0

    def __call__(self, seen: int | None) -> CalibratedSolver:
        """Draw the pilots, try all, and keep the default unless one is better for certain."""
        self.chooses = torch.arange(len(self.x), device=self.x.device) < len(self.x) * 2 // 3
        self.count = int(self.chooses.sum())
        self.d = math.prod(self.x.shape[1:])
        self.teacher = self._drawn(_DEFAULT, self._grid(_TEACHER_STEPS, *_GRIDS[_DEFAULT_GRID]), 1)
        if not torch.isfinite(self.teacher).all():
            raise SolveError("the teacher returned samples that are not finite")
        grids = {name: self._grid(self.steps, *shape) for name, shape in _GRIDS.items()}
        spaces = self._spaces()
        with tqdm(
            total=len(spaces) * (len(grids) + 1),
            desc="calibrating",
            delay=2,
            leave=False,
            disable=not self.progress,
        ) as bar:
            found = []
            for space, (coordinates, scales) in spaces.items():
                for title, grid in grids.items():
                    made = shifted(grid, scales, self.sigma_data)
                    found.append(self._judged(f"{space}, {title}", coordinates, made))
                    bar.update()
            default = found[0]
            best = min(found, key=_size)
            title, grid = best.name.partition(", ")[2], best.coefficients.sigmas
            for space, (coordinates, scales) in spaces.items():
                made = self._exact(coordinates, scales, grid)
                found.append(self._judged(f"{space}, {title}, exact moments", coordinates, made))
                bar.update()
        chosen = min(found, key=_size)
        if not chosen.chooses.below(default.chooses) > _SURE:
            chosen = default
        return self._made(chosen, default, seen)

    def _grid(self, steps: int, scale: float, power: float) -> Array:
        return balanced(steps, *self.ends, sigma_data=self.sigma_data, scale=scale, power=power)

    def _spaces(self) -> dict[str, tuple[Coordinates, Array]]:
        """Coordinates on trial, with their standard deviations along directions."""
        plain = Preconditioned(self.sigma_data)
        found: dict[str, tuple[Coordinates, Array]] = {
            "one clock": (plain, np.array([self.sigma_data]))
        }
        if 1 < self.d <= _DIRECTIONS and self.count >= _PER_DIRECTION * self.d:
            rows = self.teacher[self.chooses].numpy(force=True)
            made = GaussianPreconditioned.from_samples(rows)
            last = made.at(np.array([self.ends[1]]))
            scales = np.sqrt(made.h(last)[0] ** 2 - self.ends[1] ** 2)
            found["a clock for each direction"] = (made, scales)
        return found

    def _exact(self, coordinates: Coordinates, scales: Array, grid: Array) -> Coefficients:
        device = self.x.device
        basis = (
            None if coordinates.frame is None else torch.as_tensor(coordinates.frame[1]).to(device)
        )
        spread = mean_spread(self._denoiser(), self.teacher, grid, basis, self.seed + 3)
        self.spent += self.steps
        return exact_moments(grid, scales, spread)

    def _denoiser(self) -> Callable[[Tensor, float], Tensor]:
        def denoise(x_hat: Tensor, sigma: float) -> Tensor:
            states = x_hat.reshape(self.x.shape)
            level = torch.as_tensor(sigma, dtype=states.dtype, device=states.device)
            denoised = check_output(self.problem.model(states, level), states, "denoiser")
            return denoised.flatten(1)

        return denoise

    def _drawn(self, method: str | Solver, grid: Array, stream: int) -> Tensor:
        """Draw samples ``x̂``, flattened."""
        self.spent += len(grid) - 1
        x = solve(
            self.problem,
            self.x,
            method=method,
            sigmas=grid,
            sigma_data=self.sigma_data,
            seed=self.seed + stream,
        ).x
        scale = float(self.process.on_host("scale", self.process.on_host("time", grid[-1])))
        return (x / scale).flatten(1)

    def _judged(self, name: str, coordinates: Coordinates, made: Coefficients) -> _Candidate:
        scheme = CalibratedNoise(made, tuple(self.x.shape[1:]))
        grid = CalibratedGrid(tuple(made.sigmas.tolist()))
        try:
            x = self._drawn(Solver(scheme, coordinates, grid), made.sigmas, 2)
        except SolveError:
            never = Distance(math.inf, np.full(1, math.inf))
            return _Candidate(name, coordinates, made, never, never)
        near, far = (
            energy_distance(x[rows], self.teacher[rows], self.seed)
            for rows in (self.chooses, ~self.chooses)
        )
        self.stages[name] = math.sqrt(near.square)
        return _Candidate(name, coordinates, made, near, far)

    def _made(self, chosen: _Candidate, default: _Candidate, seen: int | None) -> CalibratedSolver:
        if not math.isfinite(default.chooses.square):
            raise SolveError("the default method returned samples that are not finite")
        errors = {
            name: (math.sqrt(own.square), math.sqrt(other.square))
            for name, own, other in (
                ("validation", chosen.chooses, default.chooses),
                ("test", chosen.tests, default.tests),
            )
        }
        needed = _PER_DIRECTION * self.d
        few = 1 < self.d <= _DIRECTIONS and self.count < needed
        message = (
            f"{self.count} pilot samples are too few for a clock in each of {self.d} directions"
        )
        report = CalibrationReport(
            metric="energy distance of the law",
            samples=self.count,
            validation=self.count,
            test=len(self.x) - self.count,
            seed=seen,
            default=_DEFAULT,
            errors=errors,
            gain=chosen.tests.ratio(default.tests),
            chosen=chosen.name,
            stages=self.stages,
            nfe=float(evaluations(self.problem.model) * self.spent),
            fell_back=chosen is default,
            warnings=(f"{message}; give samples={needed} or more",) if few else (),
        )
        event_shape = tuple(self.x.shape[1:])
        levels = chosen.coefficients.sigmas
        probes = fingerprint(self.problem.model, event_shape, levels, self.x.device)
        return CalibratedSolver.of(
            chosen.coefficients, chosen.coordinates, event_shape, report, probes
        )


def _size(candidate: _Candidate) -> float:
    return candidate.chooses.square


def _process(problem: ReverseSDE) -> AffineSDE:
    if not isinstance(problem, ReverseSDE) or not isinstance(problem.sde, AffineSDE):
        raise TypeError(
            f"problem is a {type(problem).__name__}; pass process.reverse(denoiser) of an affine "
            "process; for a flow there is sdekit.calibrate"
        )
    if problem.eta != 1:
        raise ValueError(
            f"eta = {problem.eta:g}; only the reverse SDE of eta = 1 can be calibrated, where slopes "
            "are martingales"
        )
    if is_guided(problem.model):
        raise ValueError(
            "the denoiser is guided, and guided slopes are no martingales, which the schemes rest on; "
            'take method="stochastic_adams2"'
        )
    return problem.sde
