"""Pilots: samples solved accurately once, that solvers learn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..affine import AffineSDE
from ..denoisers import layers, model_of
from ..equidistribute import Pilot, run_pilot
from ..fitted import phi_of
from ..sampling import solve
from ..sde import ProbabilityFlow, check_output
from ..solution import SolveError
from ..spacing import with_ends
from ..wrapper import evaluations

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

# Teacher's states are kept at so many levels; fewer, if they take more memory than this.
_LEVELS, _FEWEST, _BYTES = 256, 60, 2**31
_WIDTH = 8  # levels that a state between them is interpolated from
_GRID_SAMPLES = 64  # samples that grids are fitted to


@dataclass(frozen=True)
class Part:
    """Samples of one problem.

    Attributes:
        problem: The flow.
        start: Start states ``x̂``, ``(B, *event)``, float64.
    """

    problem: ProbabilityFlow
    start: Tensor = field(repr=False)


@dataclass(frozen=True)
class Pilots:
    """Samples of one or more problems, with the teacher's states of all of them.

    Attributes:
        parts: The problems, with their starts.
        levels: Noise levels of the teacher's states, decreasing.
        states: The teacher's states ``x̂``, flattened, ``(levels, B, d)``.
        sigma_data: Standard deviation of the data.
        event_shape: Shape of a sample.
        fit: Samples that coefficients are fitted to.
        validation: Samples that choose among candidates.
        test: Samples that have no say.
        nfe: Network evaluations of the teacher per sample.
        spent: How many calls of a denoiser `denoise` has made, times samples.
    """

    parts: tuple[Part, ...]
    levels: Array
    states: Tensor = field(repr=False)
    sigma_data: float
    event_shape: tuple[int, ...]
    fit: Rows = field(repr=False)
    validation: Rows = field(repr=False)
    test: Rows = field(repr=False)
    nfe: float
    spent: list[int] = field(default_factory=lambda: [0], repr=False)

    @property
    def process(self) -> AffineSDE:
        """The process, the same of all parts."""
        sde = self.parts[0].problem.sde
        assert isinstance(sde, AffineSDE)
        return sde

    @property
    def evaluations(self) -> int:
        """Network evaluations of one call of the denoiser, the most of any part."""
        return max(evaluations(part.problem.model) for part in self.parts)

    @cached_property
    def precise(self) -> bool:
        """Whether the networks compute in float64, as far as it can be seen.

        No parameter is of another dtype, and what they return does not fit into float32.
        """
        kinds = {
            parameter.dtype
            for part in self.parts
            for module in layers(part.problem.model)
            if isinstance(module, nn.Module)
            for parameter in [*module.parameters(), *module.buffers()]
            if parameter.is_floating_point()
        }
        level = float(self.levels[len(self.levels) // 2])
        answers = [self._call(part, part.start[:1], level, np.array([0])) for part in self.parts]
        fits = any(torch.equal(a, a.float().to(a.dtype)) for a in answers)
        return kinds <= {torch.float64} and not fits

    def denoise(self, x_hat: Tensor, sigma: float, rows: Rows) -> Tensor:
        """Call the denoisers at flattened states of some samples, ``(…, len(rows), d)``.

        No call has more samples than the pilots of its problem.
        """
        many = x_hat.reshape(-1, len(rows), x_hat.shape[-1])
        out = torch.empty_like(many)
        first = 0
        for part in self.parts:
            mine = np.flatnonzero((first <= rows) & (rows < first + len(part.start)))
            together = max(1, len(part.start) // max(1, len(mine)))
            for k in range(0, len(many), together) if len(mine) else ():
                index = torch.as_tensor(mine, device=x_hat.device)
                states = many[k : k + together].index_select(1, index)
                own = np.tile(rows[mine] - first, len(states))
                denoised = self._call(part, states.reshape(-1, *self.event_shape), sigma, own)
                out[k : k + together].index_copy_(1, index, denoised.reshape(states.shape))
            first += len(part.start)
        self.spent[0] += len(many) * len(rows)
        return out.reshape(x_hat.shape)

    def _call(self, part: Part, states: Tensor, sigma: float, rows: Rows) -> Tensor:
        level = torch.as_tensor(sigma, dtype=states.dtype, device=states.device)
        return check_output(model_of(part.problem.model, rows)(states, level), states, "denoiser")

    def at(self, sigma: float, rows: Rows) -> Tensor:
        """Return the teacher's states of some samples at a level, ``(len(rows), d)``.

        Between its levels they are interpolated by a polynomial in ``arctan sqrt(σ/σ_d)``.
        """
        phi = phi_of(self.levels, self.sigma_data)
        place = float(phi_of(np.array(sigma), self.sigma_data))
        nearest = int(np.argmin(np.abs(phi - place)))
        index = torch.as_tensor(rows, device=self.states.device)
        if math.isclose(phi[nearest], place, rel_tol=1e-14):
            return self.states[nearest].index_select(0, index)
        first = min(max(int(np.searchsorted(-phi, -place)) - _WIDTH // 2, 0), len(phi) - _WIDTH)
        nodes = phi[first : first + _WIDTH]
        total = torch.zeros_like(self.states[0, : len(rows)])
        for k, node in enumerate(nodes):
            others = np.delete(nodes, k)
            weight = float(np.prod((place - others) / (node - others)))
            total.add_(self.states[first + k].index_select(0, index), alpha=weight)
        return total

    def grid_pilot(self) -> Pilot:
        """Return a pilot of some of the fitted samples of each part, for grids to be fitted to."""
        found, first = [], 0
        for part in self.parts:
            last = first + len(part.start)
            rows = (self.fit[(first <= self.fit) & (self.fit < last)] - first)[:_GRID_SAMPLES]
            first = last
            model = model_of(part.problem.model, rows)
            start = part.start[torch.as_tensor(rows, device=part.start.device)]
            pilot = run_pilot(
                self.process.probability_flow(model),
                x=start * self._scale(),
                sigma_max=float(self.levels[0]),
                sigma_min=float(self.levels[-1]),
                sigma_data=self.sigma_data,
            )
            # Counted per network evaluation there, per call of a denoiser here.
            self.spent[0] += pilot.nfe * len(rows) // evaluations(model)
            found.append(pilot)
        slopes = [torch.cat(rows) for rows in zip(*(pilot.slopes for pilot in found), strict=True)]
        return replace(found[0], slopes=slopes)

    def _scale(self) -> float:
        process = self.process
        return float(process.on_host("scale", process.on_host("time", self.levels[0])))


@torch.no_grad()
def run_pilots(
    problems: Sequence[ProbabilityFlow],
    starts: Sequence[Tensor],
    *,
    sigma_max: float,
    sigma_min: float,
    sigma_data: float,
    test: float,
    rtol: float | None,
    progress: bool,
) -> Pilots:
    """Solve the pilot samples by the adaptive engine.

    Args:
        problems: The flows, of one process.
        starts: States of the process at ``sigma_max`` for each, ``(B, *event)``.
        sigma_max: Highest noise level.
        sigma_min: Lowest.
        sigma_data: Standard deviation of the data.
        test: Share of the samples that is kept for the test; of the others a quarter validates.
        rtol: Tolerance of the teacher; ``None`` for what the networks' precision allows.
        progress: Whether to show progress bars.

    Raises:
        ValueError: If the teacher's states would take too much memory.
        SolveError: If the teacher does not reach the end.
    """
    process = problems[0].sde
    assert isinstance(process, AffineSDE)
    scale = float(process.on_host("scale", process.on_host("time", sigma_max)))
    parts = tuple(
        Part(problem, start.double() / scale)
        for problem, start in zip(problems, starts, strict=True)
    )
    event_shape = tuple(starts[0].shape[1:])
    count, d = sum(map(len, starts)), math.prod(event_shape)
    points = min(_LEVELS, _BYTES // (8 * count * d))
    if points < _FEWEST:
        raise ValueError(
            f"{count} pilot samples of {d} numbers are too many: the teacher's states at {_FEWEST} "
            f"levels would take {8 * count * d * _FEWEST / 2**30:.1f} GiB; give fewer samples="
        )
    high, low = phi_of(np.array([sigma_max, sigma_min]), sigma_data).tolist()
    phi = np.linspace(high, low, points)
    levels = with_ends(sigma_data * np.tan(phi) ** 2, sigma_max, sigma_min)
    fit, validation, tested = _split([len(start) for start in starts], test)
    blank = torch.empty(0, device=starts[0].device, dtype=torch.float64)
    made = Pilots(parts, levels, blank, sigma_data, event_shape, fit, validation, tested, 0.0)
    rtol = (1e-10 if made.precise else 1e-7) if rtol is None else rtol
    scales = process.on_host("scale", process.on_host("time", levels))
    shape = (-1, *(1,) * starts[0].ndim)
    paths, spent = [], 0.0
    for part in parts:
        solution = solve(
            part.problem,
            part.start * scale,
            sigmas=levels,
            rtol=rtol,
            trajectory=True,
            sigma_data=sigma_data,
            progress=progress,
        )
        if solution.status != "success":
            raise SolveError(f"the teacher failed: {solution.message}")
        assert solution.trajectory is not None
        factor = torch.as_tensor(scales, device=blank.device).reshape(shape)
        paths.append(solution.trajectory.div_(factor).flatten(2))
        spent += float(solution.stats.nfe_per_sample.mean()) * len(part.start) / count
    states = paths[0] if len(paths) == 1 else torch.cat(paths, dim=1)
    return replace(made, states=states, nfe=spent)


def _split(counts: Sequence[int], test: float) -> tuple[Rows, Rows, Rows]:
    """Split the samples of each part: the last ones test, every fourth of the others validates."""
    fit, validation, tested = [], [], []
    first = 0
    for count in counts:
        learned = count - round(test * count)
        rows = np.arange(first, first + learned)
        validation.append(rows[3::4])
        fit.append(np.setdiff1d(rows, rows[3::4]))
        tested.append(np.arange(first + learned, first + count))
        first += count
    return np.concatenate(fit), np.concatenate(validation), np.concatenate(tested)


def rms(x: Tensor) -> float:
    """Root mean square over samples and components."""
    return float(x.square().mean().sqrt())


Metric = Callable[[Tensor], Tensor]
"""``metric(x_hat)``: features ``(B, …)`` of unscaled states ``(B, *event)``."""
