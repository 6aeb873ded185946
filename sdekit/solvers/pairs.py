"""Embedded pairs in the adaptive loop: one-step schemes with an estimate of their error."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..coordinates import Points
from .march import (
    Attempt,
    Carry,
    Interpolant,
    Ints,
    March,
    Mask,
    Tolerances,
    Trial,
    combine,
    first_step,
    node_of,
    shaped,
    table,
)
from .rk import OneStep
from .scheme import Array
from .view import Samples, View

# Share of the tolerance that the first step aims at (Hairer, Nørsett & Wanner 1993, II.4).
_FIRST_AIM = 0.01


@dataclass(frozen=True)
class PairTrial(Trial):
    """A trial step of a pair.

    Attributes:
        width: Columns of the table that make a node.
        missing: Whether the first slope has still to be evaluated.
    """

    width: int
    missing: Mask


class PairMarch(March[PairTrial]):
    """An embedded pair in the adaptive loop; it carries the states and the slopes there.

    Args:
        scheme: The pair.
        view: The problem, seen in coordinates.
        tolerances: The tolerances.
        recording: Whether steps will be interpolated, which takes the slope where they end.
    """

    first_cost = 2

    def __init__(
        self, scheme: OneStep, view: View, tolerances: Tolerances, *, recording: bool
    ) -> None:
        super().__init__(view, tolerances)
        assert scheme.order is not None
        assert scheme.error_order is not None
        self.scheme = scheme
        # Where a step ends the next one starts: a slope evaluated there is its first.
        self.evaluates_end = scheme.fsal or recording
        self.k = min(scheme.order, scheme.error_order) + 1
        self.extra_cost = scheme.extra_nfe if recording else 0

    def carry(self, u: Tensor, tau: Array) -> Carry:
        """States and slopes."""
        return u, self._slope(u, tau, None)

    def begin(self, carry: Carry, tau: Array, end: float) -> None:
        """Choose the first steps."""
        u, slope = carry
        self.size = first_step(self, u, slope, tau, end, self.k, _FIRST_AIM)
        self.errors = np.ones((3, len(tau)))  # of the last trial, and of the two accepted before it
        self.missing = np.zeros(len(tau), dtype=np.bool_)

    def cost(self, groups: Ints) -> Ints:
        """Stages but the first, which is known after a rejection, and the end."""
        count: Ints = self.scheme.nfe_per_step - 1 + self.evaluates_end + self.missing[groups]
        return count

    def plan(self, groups: Ints, samples: Samples, start: Array, end: Array) -> PairTrial:
        """Write the formulas down for the steps of the groups."""
        coordinates = self.view.coordinates
        first, last = coordinates.at_tau(start), coordinates.at_tau(end)
        formulas = self.scheme.formulas(coordinates, first, last)
        points = [*formulas.stages, *([last] if self.evaluates_end else [])]
        nodes = [self.view.rows(p) for p in points]
        rows = [*formulas.rows, *formulas.errors]
        parts = [value for row in (*nodes, *(row.values() for row in rows)) for value in row]
        keys = [list(row) for row in rows]
        return PairTrial(
            groups, samples, first, last, table(parts), keys, len(nodes[0]), self.missing[groups]
        )

    def attempt(self, trial: PairTrial, carry: Carry) -> Attempt:
        """Evaluate the stages, the result and its error."""
        u, first = carry
        columns, width = trial.columns(u), trial.width
        stages = self.scheme.nfe_per_step
        nodes = stages + self.evaluates_end
        at = [node_of(columns[i * width : (i + 1) * width], u) for i in range(nodes)]
        weights = iter(columns[nodes * width :])
        rows = [{j: next(weights) for j in keys} for keys in trial.keys]
        if trial.missing.any():
            first = self._first(trial, u, first)
        slopes, v = [first], u
        for i in range(1, nodes):
            v = combine(u, slopes, rows[i - 1])
            slopes.append(self.view(at[i], v, trial.samples))
        new = v if self.evaluates_end else combine(u, slopes, rows[stages - 1])
        scale = self.tolerances.scale(u, new)
        squares = [
            self.view.mean_square(combine(None, slopes, row), scale) for row in rows[stages:]
        ]
        if len(squares) == 2:  # the error of DOP853 (Hairer, Nørsett & Wanner 1993, II.10)
            high, low = squares
            squares = [high**2 / (high + 0.01 * low).clamp_min(torch.finfo(u.dtype).tiny)]
        return Attempt(new, slopes, torch.stack(squares))

    def _first(self, trial: PairTrial, u: Tensor, slope: Tensor) -> Tensor:
        """Evaluate first slopes where they are missing."""
        if trial.missing.all():
            return self._slope(u, trial.start.tau, trial.samples)
        rows = np.flatnonzero(trial.missing)
        index = torch.as_tensor(rows, device=u.device)
        samples = rows if trial.samples is None else trial.samples[rows]
        return slope.index_copy(0, index, self._slope(u[index], trial.start.tau[rows], samples))

    def _slope(self, u: Tensor, tau: Array, samples: Samples) -> Tensor:
        rows = self.view.rows(self.view.coordinates.at_tau(tau))
        return self.view(node_of([shaped(row, u) for row in rows], u), u, samples)

    def judge(self, trial: PairTrial, errors: Array, dt: Array) -> Mask:
        """Accept errors up to 1; the controller chooses the next steps."""
        groups, error = trial.groups, errors[0]
        accept: Mask = error <= 1
        history = np.stack([error, *self.errors[1:, groups]])
        # After a rejection (of which the memory of the last trial tells) steps do not grow at once.
        factor = self.scheme.controller.factor(history, self.k)
        factor = np.where(self.errors[0, groups] > 1, np.minimum(factor, 1), factor)
        self.propose(groups, accept, dt, dt * factor)
        self.errors[0, groups] = error
        self.errors[2, groups] = np.where(accept, self.errors[1, groups], self.errors[2, groups])
        self.errors[1, groups] = np.where(accept, np.maximum(error, 1e-4), self.errors[1, groups])
        self.missing[groups] = accept & (not self.evaluates_end)
        return accept

    def commit(self, carry: Carry, attempt: Attempt) -> Carry:
        """States and slopes where the steps end; without these, any, to be evaluated anew."""
        return attempt.u, attempt.slopes[-1] if self.evaluates_end else carry[1]

    def kept(self, carry: Carry, attempt: Attempt) -> Carry:
        """The states, and the first slopes, which may have been evaluated for this trial."""
        return carry[0], attempt.slopes[0]

    def replayed(self, trial: PairTrial) -> PairTrial:
        """First slopes that are not those of a step before have to be evaluated again."""
        return replace(trial, missing=np.full(len(trial.groups), not self.evaluates_end))

    def interpolant(self, trial: PairTrial, carry: Carry, attempt: Attempt) -> Interpolant:
        """The scheme's interpolant."""
        scheme, coordinates = self.scheme, self.view.coordinates
        u, slopes = carry[0], list(attempt.slopes)
        extra = scheme.extra(coordinates, trial.start, trial.end)
        for points, row in zip(extra.stages, extra.rows, strict=True):
            v = combine(u, slopes, {j: shaped(w, u) for j, w in row.items()})
            node = node_of([shaped(value, u) for value in self.view.rows(points)], u)
            slopes.append(self.view(node, v, trial.samples))

        def interpolate(picked: Ints, tau: Array) -> Tensor:
            group = picked if len(trial.groups) > 1 else np.zeros_like(picked)
            start, end = (Points(*(v[group] for v in p)) for p in (trial.start, trial.end))
            s = (tau - start.tau) / (end.tau - start.tau)
            weights = scheme.interpolation(coordinates, start, end, s)
            index = torch.as_tensor(picked, device=u.device)
            row = {j: shaped(w, u) for j, w in weights.items()}
            return combine(u[index], [k[index] for k in slopes], row)

        return interpolate
