"""Measuring convergence orders, by the protocol of the design notes (theory 4.15)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch

import sdekit as sk
from sdekit.distributions import Distribution
from sdekit.solvers.registry import Solver
from sdekit.spacing import Grid

HIGH, LOW = 3.0, 0.1  # noise levels between which the test mixture is at its most nonlinear


class NotResolved(AssertionError):
    """The errors do not determine an order: too few points between pre-asymptotics and round-off."""


def measure_order(
    error: Callable[[int], float],
    steps: Sequence[int],
    *,
    floor: float = 1e-14,
    scale: float = 1.0,
    points: int = 4,
) -> float:
    """Slope of log error against log steps, on the last points that are above ten times the floor.

    Only errors below a tenth of the scale count, and they must decrease from point to point.
    """
    kept: list[tuple[int, float]] = []
    for n in steps:
        e = error(n)
        if e <= 10 * floor:
            break
        if e < 0.1 * scale:
            kept.append((n, e))
    kept = kept[-points:]
    if len(kept) < 3:
        raise NotResolved(f"only {len(kept)} usable points: {kept}")
    n, e = np.array(kept).T
    if not (np.diff(e) < 0).all():
        raise NotResolved(f"the errors do not decrease: {kept}")
    return float(-np.polyfit(np.log(n), np.log(e), 1)[0])


def process_scale(process: sk.AffineSDE, sigma: float) -> float:
    return float(process.on_host("scale", process.on_host("time", sigma)))


@functools.cache
def _flow(law: Distribution, high: float, low: float, batch: int) -> tuple[torch.Tensor, ...]:
    """States at one level and, exactly, at the other."""
    x_hat = law.sample(batch, high, seed=1)
    return x_hat, law.flow(x_hat, high, low)


@torch.no_grad()
def flow_order(
    solver: Solver,
    law: Distribution,
    process: sk.AffineSDE,
    high: float = HIGH,
    low: float = LOW,
    steps: Sequence[int] = (48, 72, 96),
    *,
    batch: int = 16,
    grid: Grid | None = None,
    floor: float = 1e-14,
) -> float:
    """Measured order of the RMS error against the exact flow map.

    The grid is smooth, as orders suppose: uniform in the time or in log σ, if none is given.
    """
    x_hat, exact = _flow(law, high, low, batch)
    start, end = process_scale(process, high), process_scale(process, low)
    if grid is None:
        timed = isinstance(solver.coordinates, sk.Native | sk.Interpolated)
        grid = sk.grids.uniform_t if timed else sk.grids.log
    flow = process.probability_flow(law)

    def error(n: int) -> float:
        sigmas = grid(n, high, low, process)
        x = sk.solve(flow, x_hat * start, method=solver, sigmas=sigmas).x / end
        return float((x - exact).square().mean().sqrt())

    return measure_order(error, steps, floor=floor)
