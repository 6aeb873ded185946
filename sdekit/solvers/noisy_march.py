"""Stochastic Runge–Kutta schemes in the adaptive loop: rejections are bridged on the Brownian path.

A step that is rejected has been seen: its noise tells why. If the next trial drew its noise afresh,
large noise would be rejected more often than small, and the law be wrong, at any tolerance. Here
the next trial sees the same path again: see `sdekit.solvers.bridge`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..brownian import IndependentNoise, NoiseSource
from ..path import BrownianPath
from ..reverse import NoiseTime
from .bridge import Bridged, Followed, Redrawn, TrialNoise
from .control import Controller
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
    node_of,
    table,
)
from .scheme import Array
from .stochastic_rk import StochasticRK
from .view import Samples, View

_FIRST = 0.01  # share of the span that the first step is
_CONTROLLER = Controller(0.0, 1.0, safety=0.8, grow=3.0)


@dataclass(frozen=True)
class NoisyTrial(Trial):
    """A trial step of `NoisyMarch`.

    Attributes:
        noise: Increments and areas of the samples in the trial, ``(2, n, *event)``.
        width: Columns of the table that make a node.
    """

    noise: Tensor
    width: int

    def take(self, kept: Mask) -> NoisyTrial:
        """Return the trial of some of its groups, with their noise."""
        rows = torch.as_tensor(np.flatnonzero(kept), device=self.noise.device)
        return replace(super().take(kept), noise=self.noise[:, rows])


class NoisyMarch(March[NoisyTrial]):
    """A stochastic Runge–Kutta scheme in the adaptive loop; it carries the states.

    Args:
        scheme: The scheme, whose tableau has error weights.
        view: The problem in `NoiseTime` coordinates.
        tolerances: The tolerances.
        noise: The noise.

    Raises:
        ValueError: If it does not know any interval.
    """

    first_cost = 0

    def __init__(
        self, scheme: StochasticRK, view: View, tolerances: Tolerances, noise: NoiseSource
    ) -> None:
        super().__init__(view, tolerances)
        coordinates = view.coordinates
        assert isinstance(coordinates, NoiseTime)
        self.scheme, self.coordinates = scheme, coordinates
        clock = coordinates.noise_clock
        source = noise if clock is None else noise.on(clock)
        self.noise: TrialNoise
        if scheme.redraws:
            self.noise = Redrawn(source, view.like)
        elif isinstance(source, BrownianPath):
            self.noise = Followed(source, view.like)
        elif isinstance(source, IndependentNoise):
            self.noise = Bridged(source, view.like)
        else:
            raise ValueError(
                f"adaptive steps ask for any interval, which a {type(source).__name__} does not know; "
                "give a BrownianPath, or a seed"
            )

    def carry(self, u: Tensor, tau: Array) -> Carry:
        """The states."""
        return (u,)

    def begin(self, carry: Carry, tau: Array, end: float) -> None:
        """Start with a share of the span in the logarithm of the clock."""
        self.size = np.abs(tau) * -np.expm1(-_FIRST * np.abs(np.log(end / tau)))
        self.failed = np.zeros(len(tau), dtype=np.bool_)

    def cost(self, groups: Ints) -> Ints:
        """The stages."""
        return np.full(len(groups), self.scheme.nfe_per_step)

    def plan(self, groups: Ints, samples: Samples, start: Array, end: Array) -> NoisyTrial:
        """Write the tableau down for the steps of the groups, and ask for their noise."""
        view, tableau = self.view, self.scheme.tableau
        begin, stop = (view.coordinates.at_tau(tau) for tau in (start, end))
        dt = end - start
        stages = [view.coordinates.at_tau(start + c * dt) for c in tableau.c]
        nodes = [view.rows(p) for p in stages]
        factors = [dt * view.coordinates.weight(p) for p in stages]
        assert tableau.error is not None
        rows = [dict(enumerate(row)) for row in (*tableau.a, tableau.b, tableau.error)]
        rows = [{j: w for j, w in row.items() if w} for row in rows]
        parts = [value for node in nodes for value in node]
        parts += [w * factors[j] for row in rows for j, w in row.items()]
        parts.append(1 / self.coordinates.damping(stop.sigma))
        keys = [list(row) for row in rows]
        noise = self._noise(samples, start, end)
        return NoisyTrial(groups, samples, begin, stop, table(parts), keys, noise, len(nodes[0]))

    def _noise(self, samples: Samples, start: Array, end: Array) -> Tensor:
        """Increments and areas of the samples in a trial."""
        who = np.arange(len(self.view.like)) if samples is None else samples
        start, end = (np.broadcast_to(v, who.shape) for v in (start, end))
        drawn = self.noise.draw(who, start, end)
        return self.view.rotate(drawn * self.coordinates.noise_size)

    def attempt(self, trial: NoisyTrial, carry: Carry) -> Attempt:
        """Evaluate the stages, the result, and the error of the drift."""
        (u,), tableau = carry, self.scheme.tableau
        W, H = trial.noise
        columns, width, stages = trial.columns(u), trial.width, tableau.stages
        *factors, unit = columns[stages * width :]
        weights = iter(factors)
        rows = [{j: next(weights) for j in keys} for keys in trial.keys]
        slopes: list[Tensor] = []
        for i in range(stages):
            z = u + tableau.p[i] * W + tableau.q[i] * H
            z = combine(z, slopes, rows[i])
            node = node_of(columns[i * width : (i + 1) * width], u)
            slopes.append(self.view(node, z, trial.samples))
        new = combine(u + W, slopes, rows[stages])
        # In units of x̂/h: v is as small as noise levels are high.
        rtol, atol = self.tolerances.rtol, self.tolerances.atol
        scale = torch.maximum(u.abs(), new.abs()).mul_(rtol).add(unit, alpha=atol)
        error = self.view.mean_square(combine(None, slopes, rows[-1]), scale)
        return Attempt(new, slopes, error[None])

    def judge(self, trial: NoisyTrial, errors: Array, dt: Array) -> Mask:
        """Accept errors up to 1; the local error is of order 3/2 in the step."""
        groups, error = trial.groups, errors[0]
        accept: Mask = error <= 1
        factor = _CONTROLLER.factor(np.stack([error, *np.ones((2, len(error)))]), 1.5)
        factor = np.where(self.failed[groups], np.minimum(factor, 1), factor)
        self.propose(groups, accept, dt, dt * factor)
        self.failed[groups] = ~accept
        count = len(trial.noise[0])
        who = np.arange(count) if trial.samples is None else trial.samples
        self.noise.judged(who, np.broadcast_to(accept, who.shape))
        return accept

    def commit(self, carry: Carry, attempt: Attempt) -> Carry:
        """The new states."""
        return (attempt.u,)

    def interpolant(self, trial: NoisyTrial, carry: Carry, attempt: Attempt) -> Interpolant:
        """Refuse: between its steps a path of the SDE is not smooth."""
        raise NotImplementedError("a path of an SDE is not interpolated")
