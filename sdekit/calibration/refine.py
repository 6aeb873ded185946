"""All coefficients, levels and times at once, by Gauss–Newton on the error at the end.

Fitting one step after the other makes every state right on the way, at the price of the last one:
errors that later steps damp count as much as those they amplify. Here the final error is minimised
itself, by Levenberg and Marquardt's method with derivatives by finite differences, so that the
network need not be differentiable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..solvers.bayesian import BayesianAdams
from ..solvers.calibrated import Coefficients
from ..solvers.multistep import Multistep
from .pilots import Array, Metric, Rows
from .student import Run, Student, in_one_formula

_ROUNDS = 15  # of Gauss and Newton, at most
_PATIENCE = 4  # rounds without progress on the validation samples
_FIRST_DAMPING, _LESS, _MORE, _TRIALS = 1e-3, 0.25, 5.0, 5
_BYTES = 2**29  # of derivatives, and of solves that are kept at a time
_EQUATIONS, _FEWEST = 8, 4  # residuals per unknown, and samples, at least
_FAR, _CAP = 4.0, 10.0  # in medians of the error of a sample
_ENOUGH = 0.995  # of the loss before a round: little is left to gain
_FARTHEST = 0.45  # of the distance to the neighbouring level that a level moves in a round


class _Column(NamedTuple):
    """An unknown: a move of coefficients, of a level or of a time.

    Attributes:
        kind: ``"step"``, ``"level"`` or ``"told"``.
        n: Number of the step, or of the level.
        change: Change of the coefficients ``(b_n0, …, b_nn, a_n)``, of a step.
    """

    kind: str
    n: int
    change: Array | None = None


class Judged(NamedTuple):
    """Final errors of some samples.

    Attributes:
        typical: Root mean square, where no sample counts for more than ten times the median: a few that
            end in another mode of the data would else hide all that there is to know of the others.
        rms: Root mean square.
    """

    typical: float
    rms: float


@dataclass(frozen=True)
class Refined:
    """What refinement found.

    Attributes:
        coefficients: The best coefficients on the validation samples.
        judged: Their errors there.
    """

    coefficients: Coefficients
    judged: Judged


@dataclass
class Refinement:
    """Levenberg and Marquardt's method on the final error.

    Attributes:
        student: Runs the solver.
        scheme: The textbook scheme: where a level moves, its weights move along.
        fit: Samples whose final error is minimised.
        validation: Samples that choose among the rounds.
        budget: Network evaluations, times samples, that it may make.
        metric: Features whose error it is; of the state itself, if ``None``.
        progress: Whether to show a progress bar.
    """

    student: Student
    scheme: BayesianAdams | Multistep
    fit: Rows
    validation: Rows
    budget: int
    metric: Metric | None = None
    progress: bool = False

    def __call__(self, start: Coefficients, ceiling: float = math.inf) -> Refined:
        """Refine coefficients; return the best of all rounds.

        Args:
            start: The coefficients.
            ceiling: Root mean square on the validation samples that the result may not exceed.
        """
        own, damping = start, _FIRST_DAMPING
        best = Refined(own, self.judge(own, self.validation))
        most, rows = self._size(own.steps)
        if not most:
            return best
        since, left = 0, self.budget
        bar = tqdm(total=_ROUNDS, disable=not self.progress, desc="refining", delay=2, leave=False)
        for _ in range(_ROUNDS):
            columns, jacobian, rest = self._linearised(own, rows, most)
            # Samples far off count by their distance, not its square: they teach the others little.
            off = rest.reshape(len(rows), -1).square().sum(1).sqrt()
            limit = _FAR * float(off.median())
            root = (
                (limit / off.clamp(min=limit)).sqrt().repeat_interleave(rest.numel() // len(rows))
            )
            jacobian, rest, loss = jacobian * root[:, None], rest * root, _robust(off, limit)
            gradient, hessian = jacobian.mT @ rest, jacobian.mT @ jacobian
            scale = hessian.diagonal().clamp(min=1e-30)
            for _ in range(_TRIALS):
                damped = hessian + torch.diag(damping * scale)
                move = -torch.linalg.solve_ex(damped, gradient)[0]
                if not torch.isfinite(move).all():
                    damping *= _MORE
                    continue
                trial = self._moved(own, columns, move.numpy(force=True))
                found = _robust(self.sizes(trial, rows), limit)
                if found < loss:
                    break
                damping *= _MORE
            else:
                break
            damping *= _LESS
            own, gained = trial, found / loss
            judged = self.judge(own, self.validation)
            since += 1
            if judged.typical < best.judged.typical and judged.rms <= ceiling:
                best, since = Refined(own, judged), 0
            bar.update()
            left -= self._cost(own.steps, most) * len(rows)
            if since == _PATIENCE or gained > _ENOUGH or left < 0:
                break
        bar.close()
        return best

    def judge(self, coefficients: Coefficients, rows: Rows) -> Judged:
        """Return the final errors of some samples."""
        off = self.sizes(coefficients, rows)
        rms = float(off.square().sum().sqrt())
        if not math.isfinite(rms):
            return Judged(math.inf, math.inf)
        return Judged(float(off.clamp(max=_CAP * off.median()).square().sum().sqrt()), rms)

    def sizes(self, coefficients: Coefficients, rows: Rows) -> Tensor:
        """Return the size of the final error of each sample."""
        run = self.student.run(coefficients, rows)
        return self._rest(coefficients, run, rows).reshape(len(rows), -1).square().sum(1).sqrt()

    def _rest(self, coefficients: Coefficients, run: Run, rows: Rows) -> Tensor:
        """Final errors ``(…, residuals)``, divided so that the sum of squares is their mean."""
        final = self.student.final(coefficients, run)
        found, wanted = self.features(final), self.features(self.wanted(rows))
        off = (found - wanted).flatten(-2)
        return off / math.sqrt(off.shape[-1])

    def wanted(self, rows: Rows) -> Tensor:
        """Return the teacher's final states."""
        pilots = self.student.pilots
        return pilots.at(float(pilots.levels[-1]), rows)

    def features(self, x_hat: Tensor) -> Tensor:
        """Return the features of flattened states ``(…, B, d)``."""
        if self.metric is None:
            return x_hat
        shape = self.student.pilots.event_shape
        found = self.metric(x_hat.reshape(-1, *shape))
        return found.reshape(*x_hat.shape[:-1], -1).double()

    @cached_property
    def _small(self) -> float:
        """Step of finite differences: longer where a network or the features are in float32."""
        pilots = self.student.pilots
        start = pilots.parts[0].start[:1]
        coarse = self.metric is not None and self.metric(start).dtype != torch.float64
        return 1e-6 if pilots.precise and not coarse else 1e-3

    def _cost(self, steps: int, most: int) -> int:
        """Evaluations of a round, per sample."""
        moves = sum(min(n + 2, most) * (steps - 1 - n) for n in range(steps))
        levels = sum(steps - n for n in range(1, steps))
        return moves + 2 * levels + steps

    @cached_property
    def _residuals(self) -> int:
        """Number of residuals of a sample."""
        return self.features(self.wanted(self.fit[:1])).numel()

    def _size(self, steps: int) -> tuple[int, Rows]:
        """Return how many coefficients of a step may move, and on which samples.

        As many as leave enough equations for each unknown, within what a few rounds may cost.
        """
        d = self._residuals
        for most in (steps + 1, 6, 4, 3, 2):
            afforded = self.budget // (6 * self._cost(steps, most))
            unknowns = sum(min(n + 2, most) for n in range(steps)) + 2 * steps
            held = _BYTES // (8 * d * unknowns)
            rows = self.fit[: min(len(self.fit), afforded, held)]
            if len(rows) >= _FEWEST and len(rows) * d >= _EQUATIONS * unknowns:
                return most, rows
        return 0, self.fit[:0]

    def _together(self, steps: int, rows: Rows) -> int:
        """Return how many solves may be kept at a time."""
        d = math.prod(self.student.pilots.event_shape)
        return max(1, _BYTES // (8 * 2 * steps * len(rows) * d))

    def _linearised(
        self, own: Coefficients, rows: Rows, most: int
    ) -> tuple[list[_Column], Tensor, Tensor]:
        """Return the unknowns, the derivatives of the final errors by them, and the errors."""
        student = self.student
        tables = student.tables(own.sigmas, own.told)
        run = student.run(own, rows, tables=tables)
        rest = self._rest(own, run, rows)
        small = self._small
        columns: list[_Column] = []
        found: list[Tensor] = []
        for n in range(own.steps):
            directions, changes = _directions(run, n, most)
            columns += [_Column("step", n, change) for change in changes]
            # A few at a time, so that memory does not grow with their number.
            for some in torch.split(directions, self._together(own.steps, rows)):
                begun = Run([*run.u[: n + 1], run.u[n + 1] + small * some], run.slopes[: n + 1])
                ended = student.run(own, rows, begun, tables=tables)
                found += [*((self._rest(own, ended, rows) - rest) / small)]
        for kind in ("level", "told"):
            for n in range(1, own.steps):
                column = _Column(kind, n)
                other = self._moved(own, [column], np.array([small]))
                kept = n + (kind == "told")
                ended = student.run(other, rows, Run(run.u[:kept], run.slopes[:n]))
                columns.append(column)
                found.append((self._rest(other, ended, rows) - rest) / small)
        return columns, torch.stack(found, dim=1), rest

    def _moved(self, own: Coefficients, columns: list[_Column], move: Array) -> Coefficients:
        """Return coefficients moved along the unknowns; levels do not move so far as to cross."""
        sigmas, told, keep = own.sigmas.copy(), own.told.copy(), own.keep.copy()
        weights = list(own.weights)
        logs = np.log(sigmas)
        gaps = np.minimum(logs[:-2] - logs[1:-1], logs[1:-1] - logs[2:])
        for column, value in zip(columns, move.tolist(), strict=True):
            kind, n, change = column
            if kind == "step":
                assert change is not None
                wide = (-1, *(1,) * (weights[n].ndim - 1))
                weights[n] = weights[n] + value * change[:-1].reshape(wide)
                keep[n] += value * change[-1]
            else:  # in units of the distance to the nearest level
                factor = math.exp(np.clip(value, -_FARTHEST, _FARTHEST) * gaps[n - 1])
                told[n] *= factor
                sigmas[n] *= factor if kind == "level" else 1.0
        told = np.clip(told, sigmas[-1], sigmas[0])
        if (sigmas != own.sigmas).any():
            before, after = (
                in_one_formula(self.scheme, self.student.coordinates, grid).weights
                for grid in (own.sigmas, sigmas)
            )
            weights = [w + b - a for w, a, b in zip(weights, before, after, strict=True)]
        return Coefficients(sigmas, told, keep, tuple(weights))


def _robust(off: Tensor, limit: float) -> float:
    """Return the root of Huber's loss: squares, but beyond a limit linear."""
    loss = torch.where(off < limit, off.square(), limit * (2 * off - limit))
    return float(loss.sum().sqrt())


def _directions(run: Run, n: int, most: int) -> tuple[Tensor, list[Array]]:
    """Return moves of state ``n + 1`` that its coefficients can make, and their changes.

    They are orthogonal over the samples, of mean square one: the newest slope first, then what the
    state, and every older slope, add to those before.
    """
    order = [n, n + 1, *range(n - 1, -1, -1)][:most]  # places in (N_0, …, N_n, u_n)
    features = [*run.slopes[: n + 1], run.u[n]]
    matrix = torch.stack([features[k].reshape(-1) for k in order], dim=1)
    q, r = torch.linalg.qr(matrix)
    size = math.sqrt(len(matrix))
    inverse = torch.linalg.pinv(r, rtol=1e-12) * size
    independent = (r.diagonal().abs() > 1e-12 * r.diagonal().abs().max()).tolist()
    changes = []
    kept = [k for k, good in enumerate(independent) if good]
    for k in kept:
        change = np.zeros(n + 2)
        change[order] = inverse[:, k].numpy(force=True)
        changes.append(change)
    moves = torch.stack([(q[:, k] * size).reshape(run.u[n].shape) for k in kept])
    return moves, changes
