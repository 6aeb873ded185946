"""Solves with a tolerance: a march, the adaptive loop, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .brownian import NoiseSource
from .inputs import Array
from .solvers.adaptive import Progress, Recorder, integrate_adaptive, retake
from .solvers.dense import Dense, Trajectory
from .solvers.march import March, Mask, Tolerances
from .solvers.noisy_march import NoisyMarch
from .solvers.pairs import PairMarch
from .solvers.rk import OneStep
from .solvers.scheme import Scheme
from .solvers.stochastic_rk import StochasticRK
from .solvers.variable_adams import AdamsMarch, VariableAdams
from .solvers.view import AffineView, View


def march_of(
    scheme: Scheme,
    view: View,
    tolerances: Tolerances,
    *,
    recording: bool = False,
    noise: NoiseSource | None = None,
) -> March[Any]:
    """Return what a scheme does in the adaptive loop."""
    if isinstance(scheme, StochasticRK):
        assert noise is not None
        return NoisyMarch(scheme, view, tolerances, noise)
    if isinstance(scheme, VariableAdams):
        return AdamsMarch(scheme, view, tolerances)
    assert isinstance(scheme, OneStep)
    return PairMarch(scheme, view, tolerances, recording=recording)


@dataclass(frozen=True)
class Adapted:
    """An adaptive solve.

    Attributes:
        x: Final states of the process, at the scale of where each sample stopped.
        work: The work done.
        trajectory: States of the process at the points of the grid, if asked for.
        dense: States between, if asked for.
    """

    x: Tensor
    work: Progress
    trajectory: Tensor | None
    dense: Dense | None


def solve_adaptively(
    scheme: Scheme,
    view: View,
    x: Tensor,
    grid: Array,
    tolerances: Tolerances,
    *,
    ending: str,
    max_nfe: int,
    per_sample: bool,
    trajectory: bool,
    dense: bool,
    checkpoint: bool,
    progress: bool,
    noise: NoiseSource | None = None,
) -> Adapted:
    """Solve from the first point of a grid to the last; those between are points of the trajectory.

    A step to ``σ = 0`` is made as ``ending`` says, by the samples that get there; those that could not
    pay for it stop before.
    """
    if isinstance(scheme, StochasticRK):
        assert isinstance(view, AffineView)
        view = AffineView(view.problem, scheme.in_coordinates(view).timed(), x)
    to_data = isinstance(view, AffineView) and grid[-1] == 0
    levels = grid[:-1] if to_data else grid
    tau, u = view.tau(levels), view.entrance(grid[0], unscaled=False)(x)
    ends = float(tau[0]), float(tau[-1])
    between = Trajectory(tau[1:-1], ends, u) if trajectory else None
    output = Dense(view, x, (levels[0], levels[-1]), ends) if dense else None
    recorders: list[Recorder] = []
    if between is not None:
        recorders.append(between)
    if output is not None:
        recorders.append(output.record)
    march = march_of(scheme, view, tolerances, recording=bool(recorders), noise=noise)
    replayed = checkpoint and torch.is_grad_enabled()
    with torch.set_grad_enabled(torch.is_grad_enabled() and not replayed):
        work = integrate_adaptive(
            march,
            u,
            *ends,
            per_sample=per_sample,
            max_nfe=max_nfe - to_data,
            recorders=recorders,
            log=replayed,
            progress=progress,
        )
    if replayed:
        work.u = retake(march, u, ends[0], work.log)
    # At the ends the levels are those of the grid to the last bit, and σ = ∞ among them.
    stopped = np.where(work.tau == tau[0], levels[0], view.level(work.tau))
    reached = np.where(work.tau == tau[-1], levels[-1], stopped)
    final = view.exit(reached, unscaled=False)(work.u)
    states = [x]
    if between is not None:
        states += [
            view.exit(levels[n : n + 1], unscaled=False)(v)
            for n, v in enumerate(between.states(), start=1)
        ]
        states.append(torch.where(_column(work.exhausted, final), torch.nan, final))
    if isinstance(view, AffineView) and to_data and not work.exhausted.all():
        samples = np.flatnonzero(np.broadcast_to(~work.exhausted, len(x)))
        rows = torch.as_tensor(samples, device=x.device)
        end = view.ending(ending, levels[-1], unscaled=False, samples=samples)(work.u[rows])
        final = final.index_copy(0, rows, view.exit(np.zeros(1), unscaled=False)(end))
        work.nfe += ~work.exhausted
        states.append(torch.where(_column(work.exhausted, final), torch.nan, final))
    return Adapted(final, work, torch.stack(states) if trajectory else None, output)


def _column(values: Mask, like: Tensor) -> Tensor:
    return torch.as_tensor(values, device=like.device).reshape(-1, *(1,) * (like.ndim - 1))
