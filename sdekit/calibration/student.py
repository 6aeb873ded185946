"""The solver that is being fitted, run on the pilots' samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..coordinates import Coordinates
from ..solvers.bayesian import BayesianAdams
from ..solvers.calibrated import Coefficients
from ..solvers.multistep import Multistep
from .pilots import Array, Pilots, Rows


class Tables(NamedTuple):
    """What depends on the grid alone, with a row for each level: numbers, or one for each direction.

    A slope is ``N = rate (D + linear x̂)``, and ``x̂ = h u``.
    """

    h: Tensor
    rate: Tensor
    linear: Tensor


@dataclass
class Run:
    """States and slopes of a solve, as far as it has gone.

    Attributes:
        u: States in the coordinates, one for each point so far.
        slopes: Slopes ``N`` at all of them but the last.
    """

    u: list[Tensor] = field(default_factory=list)
    slopes: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Student:
    """Runs coefficients on pilot samples, in given coordinates.

    Attributes:
        pilots: The pilots.
        coordinates: The coordinates, bound.
    """

    pilots: Pilots
    coordinates: Coordinates

    @cached_property
    def _frame(self) -> tuple[Tensor, Tensor] | None:
        if self.coordinates.frame is None:
            return None
        mean, basis = (torch.as_tensor(v, device=self.device) for v in self.coordinates.frame)
        return mean, basis

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return self.pilots.states.device

    def into(self, x_hat: Tensor) -> Tensor:
        """Turn flattened states into the axes of the coordinates."""
        return x_hat if self._frame is None else (x_hat - self._frame[0]) @ self._frame[1]

    def out(self, z: Tensor) -> Tensor:
        """Turn them back."""
        return z if self._frame is None else z @ self._frame[1].mT + self._frame[0]

    def tables(self, sigmas: Array, told: Array) -> Tables:
        """Return what depends on the grid alone."""
        h = self.coordinates.h(self.coordinates.at(sigmas))
        points = self.coordinates.at(told)
        a, b = self.coordinates.field(points)
        rows = (h, b, a / (self.coordinates.h(points) * b))
        return Tables(*(torch.as_tensor(v, device=self.device).reshape(len(v), -1) for v in rows))

    def target(self, sigma: float, rows: Rows) -> Tensor:
        """Return the teacher's states of some samples in the coordinates."""
        h = self.coordinates.h(self.coordinates.at(np.array([sigma])))
        scale = torch.as_tensor(h, device=self.device).reshape(1, -1)
        return self.into(self.pilots.at(sigma, rows)) / scale

    def slope(self, tables: Tables, n: int, u: Tensor, told: float, rows: Rows) -> Tensor:
        """Evaluate ``N`` at states of point ``n``, ``(…, len(rows), d)``."""
        z = tables.h[n] * u
        denoised = self.into(self.pilots.denoise(self.out(z), told, rows))
        return tables.rate[n] * (denoised + tables.linear[n] * z)

    def run(
        self,
        coefficients: Coefficients,
        rows: Rows,
        begun: Run | None = None,
        *,
        tables: Tables | None = None,
    ) -> Run:
        """Solve, or go on with a solve that has begun.

        Args:
            coefficients: The coefficients.
            rows: The samples.
            begun: States and slopes so far; states may have more samples in front, ``(k, B, d)``.
            tables: Those of the grid, if they are known.
        """
        own = coefficients
        tables = self.tables(own.sigmas, own.told) if tables is None else tables
        run = Run() if begun is None else Run([*begun.u], [*begun.slopes])
        if not run.u:
            run.u.append(self.target(float(own.sigmas[0]), rows))
        if len(run.u) == len(run.slopes):
            run.u.append(self.step(own, len(run.slopes) - 1, run))
        for n in range(len(run.slopes), own.steps):
            run.slopes.append(self.slope(tables, n, run.u[n], float(own.told[n]), rows))
            run.u.append(self.step(own, n, run))
        return run

    def step(self, coefficients: Coefficients, n: int, run: Run) -> Tensor:
        """Return ``a_n u_n + Σ_j b_nj N_j``."""
        total = float(coefficients.keep[n]) * run.u[n]
        for weight, slope in zip(coefficients.weights[n], run.slopes, strict=False):
            if weight.ndim == 0:
                total = torch.add(total, slope, alpha=float(weight))
            else:
                total = torch.addcmul(total, slope, torch.as_tensor(weight, device=self.device))
        return total

    def final(self, coefficients: Coefficients, run: Run) -> Tensor:
        """Return the flattened final states ``x̂``."""
        h = self.coordinates.h(self.coordinates.at(coefficients.sigmas[-1:]))
        return self.out(run.u[-1] * torch.as_tensor(h, device=self.device).reshape(1, -1))


def in_one_formula(
    scheme: BayesianAdams | Multistep, coordinates: Coordinates, sigmas: Array
) -> Coefficients:
    """Return a multistep scheme as coefficients: a correction of the last step is part of the next.

    With PEC the state that was corrected is the one predicted, and the difference of corrector and
    predictor times the slopes; so what a step does is a sum over the predicted state and all slopes.
    """
    plan = scheme.plan(coordinates, coordinates.at(sigmas))
    rows: list[dict[int, Array]] = []
    last: Mapping[int, float | Array] = {}
    for _, lines in plan.steps:
        total: dict[int, Array] = {}
        for line in lines:  # the correction of the state, if there is one, and the prediction
            for point, weight in line.weights.items():
                total[point] = total.get(point, np.zeros(())) + weight
        for point, weight in last.items() if len(lines) > 1 else ():
            total[point] = total.get(point, np.zeros(())) - weight
        rows.append(total)
        last = lines[-1].weights
    weights = tuple(
        np.stack(np.broadcast_arrays(*(row.get(j, np.zeros(())) for j in range(i + 1))))
        for i, row in enumerate(rows)
    )
    steps = len(rows)
    return Coefficients(sigmas, sigmas[:-1], np.ones(steps), weights)
