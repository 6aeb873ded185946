"""Which coordinates, grid and coefficients: candidates, judged on samples that none was fitted to."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..calibrated import CalibratedSolver, CalibrationReport, fingerprint
from ..inputs import default_method
from ..preconditioned import GaussianPreconditioned, Preconditioned
from ..scale import needs_scale
from ..solution import SolveError
from ..solvers.bayesian import BayesianAdams
from ..solvers.calibrated import Coefficients
from ..solvers.multistep import Multistep
from ..solvers.registry import methods
from ..wrapper import is_guided
from .greedy import fit_greedily
from .pilots import Array, Metric, Pilots, Rows
from .refine import Judged, Refinement
from .student import Student, in_one_formula

# A covariance of more directions than this makes a large file, and one estimated from fewer samples
# than this for each direction says little.
_DIRECTIONS, _PER_DIRECTION = 128, 3
# Coordinates with directions of their own have to be so much better than those of one number, before
# coefficients are refined and after: they are many times as many numbers.
_WORTH_TRYING, _WORTH_KEEPING = 0.5, 0.8
_BOOTSTRAPS = 2000
_OVERFITTED = 2.0  # error on test samples, relative to that on fitted ones
_FEWEST = 16  # validation samples


class _Candidate(NamedTuple):
    name: str
    student: Student
    coefficients: Coefficients
    judged: Judged


@dataclass
class Search:
    """Finds the best solver of some steps for pilot samples.

    Attributes:
        pilots: The pilots.
        steps: Number of steps.
        metric: Features whose error is judged; of the state itself, if ``None``.
        budget: Network evaluations per sample of the pilot, about, that refinement may make.
        seed: Seed of the pilots, for the report.
        progress: Whether to show progress bars.
    """

    pilots: Pilots
    steps: int
    metric: Metric | None
    budget: int
    seed: int | None
    progress: bool
    stages: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        guided = any(is_guided(part.problem.model) for part in self.pilots.parts)
        self.default = default_method(flow=True, affine=True, adaptive=False, guided=guided)
        self.solver = methods()[self.default].solver
        assert isinstance(self.solver.scheme, BayesianAdams | Multistep)
        self.scheme = self.solver.scheme

    def __call__(self) -> CalibratedSolver:
        """Fit, refine, choose, and fall back to the default if nothing is better."""
        plain = Student(self.pilots, Preconditioned(self.pilots.sigma_data))
        default = self._judged("default", plain, self._own(plain, self._default_grid()))
        grids = self._grids()
        fitted = self._fitted("one clock", plain, grids)
        found = [default, fitted, self._refined(fitted, default)]
        directional = self._directional()
        if directional is not None:
            name, title = "a clock for each direction", fitted.name.partition(", ")[2]
            tried = self._fitted(name, directional, {title: grids[title]})
            if tried.judged.typical < _WORTH_TRYING * fitted.judged.typical:
                tried = self._fitted(name, directional, grids)
                found += [tried, self._refined(tried, default)]
        # None that is worse than the default on validation is taken, however good it is typically.
        able = [c for c in found if c.judged.rms <= default.judged.rms]
        best = min(able or [default], key=_cost)
        return self._made(best, default)

    def _default_grid(self) -> Array:
        grid, levels = self.solver.grid, self.pilots.levels
        if needs_scale(grid):
            grid = functools.partial(grid, sigma_data=self.pilots.sigma_data)  # type: ignore[call-arg]
        return grid(self.steps, float(levels[0]), float(levels[-1]), self.pilots.process)

    def _grids(self) -> dict[str, Array]:
        """Grids to fit on: that of the default, and those that a pilot of its own suggests."""
        levels = self.pilots.levels
        found = {"the default's grid": self._default_grid()}
        pilot = self.pilots.grid_pilot()
        for k, grid in enumerate([pilot.equidistributed(), *pilot.candidates(self.steps)]):
            sigmas = grid(self.steps, float(levels[0]), float(levels[-1]))
            if not any(np.allclose(sigmas, known, rtol=1e-3) for known in found.values()):
                found[f"grid {k}, order {grid.order}, {grid.share:.0%} fitted"] = sigmas
        return found

    def _directional(self) -> Student | None:
        """Coordinates with a clock for each direction of the data, where there is enough to know."""
        fit, d = self.pilots.fit, self.pilots.states.shape[-1]
        if d == 1 or d > _DIRECTIONS or len(fit) < _PER_DIRECTION * d:
            return None
        last = self.pilots.at(float(self.pilots.levels[-1]), fit).numpy(force=True)
        return Student(self.pilots, GaussianPreconditioned.from_samples(last))

    def _own(self, student: Student, grid: Array) -> Coefficients:
        return in_one_formula(self.scheme, student.coordinates, grid)

    def _refinement(self, student: Student) -> Refinement:
        pilots = self.pilots
        budget = self.budget * (len(pilots.fit) + len(pilots.validation))
        return Refinement(
            student,
            self.scheme,
            pilots.fit,
            pilots.validation,
            budget,
            self.metric,
            self.progress,
        )

    def _judged(self, name: str, student: Student, coefficients: Coefficients) -> _Candidate:
        judged = self._refinement(student).judge(coefficients, self.pilots.validation)
        if math.isfinite(judged.rms):
            self.stages[name] = judged.rms
        return _Candidate(name, student, coefficients, judged)

    def _fitted(self, name: str, student: Student, grids: dict[str, Array]) -> _Candidate:
        """Fit step by step on every grid; return the best."""
        found = []
        hidden = not self.progress
        for title, grid in tqdm(
            grids.items(), disable=hidden, desc="fitting", delay=2, leave=False
        ):
            greedy = fit_greedily(
                student, self._own(student, grid), self.pilots.fit, self.pilots.validation
            )
            found.append(self._judged(f"{name}, {title}", student, greedy.coefficients))
        return min(found, key=lambda candidate: candidate.judged.typical)

    def _refined(self, start: _Candidate, default: _Candidate) -> _Candidate:
        refined = self._refinement(start.student)(start.coefficients, default.judged.rms)
        return self._judged(f"{start.name}, refined", start.student, refined.coefficients)

    def _made(self, best: _Candidate, default: _Candidate) -> CalibratedSolver:
        pilots, d = self.pilots, self.pilots.states.shape[-1]
        groups = {"fit": pilots.fit, "validation": pilots.validation, "test": pilots.test}
        sizes = {name: self._sizes(best, default, rows) for name, rows in groups.items()}
        errors = {
            name: (float(own.mean() ** 0.5), float(other.mean() ** 0.5))
            for name, (own, other) in sizes.items()
        }
        if not all(math.isfinite(v) for pair in errors.values() for v in pair):
            raise SolveError(
                f"neither the default nor a fitted solver of {self.steps} steps gives finite errors; "
                "is the denoiser finite between the noise levels?"
            )
        fell_back = best is default
        warnings = []
        if not fell_back and errors["test"][0] > _OVERFITTED * errors["fit"][0]:
            ratio = errors["test"][0] / errors["fit"][0]
            warnings.append(
                f"the pilot batch is small: the error on test samples is {ratio:.1f} times that on "
                "those fitted to; give more samples="
            )
        if len(pilots.validation) < _FEWEST:
            warnings.append(
                f"the pilot batch is small: {len(pilots.validation)} samples choose among candidates; "
                "give more samples="
            )
        if len(pilots.fit) * d < 4 * self.steps * (self.steps + 3):
            warnings.append(
                f"the pilot batch is small: {len(pilots.fit)} samples of {d} numbers for about "
                f"{self.steps * (self.steps + 3) // 2} coefficients; give more samples="
            )
        report = CalibrationReport(
            metric="RMS error" if self.metric is None else "RMS error of features",
            samples=len(pilots.fit),
            validation=len(pilots.validation),
            test=len(pilots.test),
            seed=self.seed,
            default=self.default,
            errors=errors,
            gain=_gain(*sizes["test"]),
            chosen=best.name,
            stages=self.stages,
            nfe=pilots.evaluations * (pilots.nfe + pilots.spent[0] / pilots.states.shape[1]),
            fell_back=fell_back,
            warnings=tuple(warnings),
        )
        model = pilots.parts[0].problem.model
        probes = fingerprint(model, pilots.event_shape, pilots.levels, pilots.states.device)
        return CalibratedSolver.of(
            best.coefficients, best.student.coordinates, pilots.event_shape, report, probes
        )

    def _sizes(self, best: _Candidate, default: _Candidate, rows: Rows) -> tuple[Array, Array]:
        """Mean squares of the error of each sample, of the best and of the default."""
        found = [
            self._refinement(c.student).sizes(c.coefficients, rows).numpy(force=True) ** 2
            * len(rows)
            for c in (best, default)
        ]
        return found[0], found[1]


def _cost(candidate: _Candidate) -> float:
    plain = isinstance(candidate.student.coordinates, Preconditioned)
    return candidate.judged.typical / (1 if plain else _WORTH_KEEPING)


def _gain(own: Array, other: Array) -> tuple[float, float, float]:
    """Ratio of root mean squares, and the ends of its 95 % interval, by bootstrap over samples."""
    if not other.any():
        raise SolveError(
            "the default makes no error at all on the test samples: there is nothing to gain, or "
            "metric= does not tell solvers apart"
        )
    other = np.maximum(other, np.finfo(np.float64).tiny)  # that of a sample may be 0
    drawn = np.random.default_rng(0).integers(len(own), size=(_BOOTSTRAPS, len(own)))
    ratios = np.sqrt(own[drawn].mean(1) / other[drawn].mean(1))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.sqrt(own.mean() / other.mean())), float(low), float(high)


def draw(
    std: float, shape: tuple[int, ...], seed: int, device: torch.device | str | None
) -> Tensor:
    """Pure noise, drawn on the host: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (std * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device)
