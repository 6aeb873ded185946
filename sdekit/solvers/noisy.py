"""Schemes of the reverse SDE made of schemes of the flow, with the noise as data of their plans.

`Stochastic` integrates the η-family itself, in `ReverseCoordinates`. `Ancestral`, `Churn` and
`Restart` solve the flow and add noise between its steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..brownian import Clock, NoiseSource
from ..coordinates import Coordinates, Points
from ..grids import karras
from ..reverse import ReverseCoordinates
from ..stochasticity import ErEta, Eta, EtaSteps
from .linear import Draw, Line, LinearScheme, Plan, Runner
from .rk import OneStep
from .scheme import Array, Scheme
from .stochastic import scale_ratios
from .view import AffineView, View

STEPS = Clock("steps", float, float)
"""Clock of noise that belongs to no interval of ``σ²``: it counts the times that noise is added."""


class NoisyScheme(Scheme):
    """A scheme of the reverse SDE whose steps are a `Plan` with draws."""

    solves = "sde"
    stochastic = True
    affine_only = True
    unscaled = True

    def in_coordinates(self, view: AffineView) -> Coordinates:
        """Coordinates of the plan."""
        return view.coordinates

    def noisy_plan(self, coordinates: Coordinates, grid: Points, view: AffineView) -> Plan:
        """Write down the steps of a grid."""
        raise NotImplementedError

    def stepper(self, view: View, grid: Array, noise: NoiseSource) -> Runner:
        """Prepare the steps of a grid."""
        return self.prepare(view, grid, noise)

    def prepare(
        self, view: View, grid: Array, noise: NoiseSource, ending: str = "denoise"
    ) -> Runner:
        """Prepare all steps of a grid."""
        assert isinstance(view, AffineView)
        coordinates = self.in_coordinates(view)
        levels = grid[:-1] if grid[-1] == 0 else grid
        points = coordinates.at(levels)
        plan = self.noisy_plan(coordinates, points, view) if len(levels) > 1 else Plan(points, [])
        end = view.ending(ending, levels[-1], unscaled=True) if grid[-1] == 0 else None
        return Runner(view, plan, end, coordinates=coordinates, noise=noise)


class Stochastic(NoisyScheme):
    """A linear scheme of the flow, integrating the reverse SDE with the noise of each of its steps.

    In `ReverseCoordinates` the noise is additive, and a step from ``s`` to ``t`` adds what the
    Brownian motion does between them: to stages, predictions and corrections of one step, increments
    of one path. In `LogData` and `Preconditioned` the linear part and the noise are exact; in
    `Preconditioned` the law of data ``N(0, σ_d² I)`` is, at any number of steps.

    With `Adams` it is SA-Solver, with DPM-Solver's schemes SDE-DPM-Solver++, with exponential
    Runge–Kutta schemes SEEDS and the DPM++ SDE of k-diffusion. The strong order is 1, as slopes
    fluctuate like the noise within a step; the weak order that of the scheme, 2 at most.

    Source: Xue et al. 2023, proposition 4.2; Gonzalez et al. 2023, section 4; Lu et al. 2022b, app. A.

    Args:
        scheme: Scheme of the flow.
        weak_order: Its weak order here, if it is not the lesser of its order and 2.
        eta: The stochasticity, if it is not that of the problem but the scheme's own: a function of
            ``σ``, in `LogData` or `Preconditioned`.

    Raises:
        TypeError: If the scheme is not linear.
    """

    strong_order = 1.0

    def __init__(
        self,
        scheme: LinearScheme,
        *,
        weak_order: float | None = None,
        eta: ErEta | EtaSteps | None = None,
    ) -> None:
        if not isinstance(scheme, LinearScheme) or scheme.order is None:
            raise TypeError(
                f"scheme is a {type(scheme).__name__}; Stochastic takes a linear scheme of the flow, "
                "such as sdekit.Adams(2)"
            )
        self.scheme, self.eta = scheme, eta
        self.nfe_per_step = scheme.nfe_per_step
        self.weak_order = min(scheme.order, 2) if weak_order is None else weak_order

    def in_coordinates(self, view: AffineView) -> ReverseCoordinates:
        """Those of the SDE.

        Raises:
            ValueError: If there are none for the coordinates of the solver, or the problem has another
                ``η`` than 1 and the scheme one of its own.
        """
        if self.eta is not None and view.problem.eta != 1:
            raise ValueError(
                f"eta = {view.problem.eta:g}, but this method has a stochasticity of its own; leave "
                "it 1"
            )
        return ReverseCoordinates(view.coordinates, self.eta or Eta(view.problem.eta))

    def noisy_plan(self, coordinates: Coordinates, grid: Points, view: AffineView) -> Plan:
        """The scheme's own plan, with noise."""
        assert isinstance(coordinates, ReverseCoordinates)
        return driven(self.scheme.plan(coordinates, grid), coordinates)


def driven(plan: Plan, coordinates: ReverseCoordinates) -> Plan:
    """Return a plan of the flow with the noise of the SDE: to each line that of its interval.

    Intervals that overlap, as those of stages do, share their draws: those of the pieces between any
    two points of the plan.
    """
    time = coordinates.noise_time(plan.points.sigma)
    lines = [line for _, lines in plan.steps for line in lines]
    ends = np.array([[time[line.base], time[line.target]] for line in lines]).reshape(-1, 2)
    # Points that are the same but for round-off are one.
    values, inverse = np.unique(ends, return_inverse=True)
    new = np.concatenate([[True], np.diff(values) > 1e-13 * values[1:]])
    knots, group = values[new], np.cumsum(new) - 1
    pieces = [*zip(knots[:-1].tolist(), knots[1:].tolist(), strict=True)]
    draws = [Draw("increment", a, b, coordinates.noise_clock) for a, b in pieces]
    place = np.sort(group[inverse].reshape(ends.shape), axis=1).tolist()
    noise = iter([dict.fromkeys(range(a, b), coordinates.noise_size) for a, b in place])
    steps = [
        (start, [line._replace(noise=next(noise)) for line in lines]) for start, lines in plan.steps
    ]
    return Plan(plan.points, steps, draws)


class Ancestral(NoisyScheme):
    """Ancestral sampling: a step of the flow to a lower level than the next, and noise up to it.

    From ``σ`` to ``σ'`` the flow is solved down to ``σ_down`` with ``σ_down² = σ'² − σ_up²``, and
    noise of variance ``σ_up² = η² σ'² (1 − σ'²/σ²)`` is added. One step of Euler in `Noise` makes it
    DDIM with noise, and with ``η = 1`` the posterior of DDPM. This ``η`` is that of DDIM, which is
    ours to leading order: see `sdekit.eta`.

    Source: Song et al. 2021 (DDIM), eq. 12 and 16; k-diffusion's samplers named "ancestral".

    Args:
        scheme: One-step scheme of the flow.
        large: Whether the noise has the variance of the forward step instead (DDPM's ``σ_t² = β_t``).
    """

    strong_order = 1.0
    weak_order = 1.0

    def __init__(self, scheme: OneStep, *, large: bool = False) -> None:
        self.scheme, self.large = scheme, large
        self.nfe_per_step = scheme.nfe_per_step

    def noisy_plan(self, coordinates: Coordinates, grid: Points, view: AffineView) -> Plan:
        """Steps of the flow to ``σ_down``, and noise."""
        high, low, eta = grid.sigma[:-1], grid.sigma[1:], view.problem.eta
        gap = high**2 - low**2
        up = eta * np.sqrt(gap) * low / high
        if (up >= low).any():
            raise ValueError(
                f"eta = {eta:g}; eta² (1 − σ'²/σ²) must be below 1 in every step, or there were "
                "more noise than σ': take a lower eta, or shorter steps"
            )
        flow = self.scheme.between(
            coordinates,
            Points(high, grid.tau[:-1]),
            coordinates.at(np.sqrt(low**2 - up**2)),
        )
        if self.large:
            up = eta * np.sqrt(gap) * scale_ratios(view, grid.sigma)
        draws = [Draw("increment", a, b) for a, b in zip(low**2, high**2, strict=True)]
        moves: list[list[int | Kick]] = [
            [n, Kick(n, size)] for n, size in enumerate(up / np.sqrt(gap))
        ]
        return assembled(coordinates, flow, moves, draws)


class Churn(NoisyScheme):
    """EDM's stochastic sampler: raise the noise a little, then step the flow down.

    Before step ``n`` of ``N`` the noise level is raised from ``σ`` to ``σ̂ = (1 + γ) σ`` by adding
    noise, ``γ = min(S_churn/N, √2 − 1)`` where ``S_min <= σ <= S_max`` and 0 elsewhere; then the
    flow is integrated from ``σ̂`` to the next level (Karras et al. 2022, algorithm 2). The last step,
    to ``σ = 0``, is churned as well. In `Native` coordinates it is the sampler of the paper's general
    ``s(t)`` and ``σ(t)``.

    Raising the noise is exact in law, so the weak order is that of the flow's scheme. The declared
    orders hold for ``s_noise = 1``: another value biases the variance, whatever the step count.

    Args:
        scheme: One-step scheme of the flow; Heun in the paper.
        s_churn: Total amount of noise added, in units of ``log σ``.
        s_min: Lowest noise level at which noise is added.
        s_max: Highest noise level at which noise is added.
        s_noise: Factor of the standard deviation of the added noise.

    Raises:
        ValueError: If a parameter is negative, or ``s_min > s_max``.
    """

    strong_order = 1.0
    solves = "flow"

    def __init__(
        self,
        scheme: OneStep,
        *,
        s_churn: float = 40.0,
        s_min: float = 0.05,
        s_max: float = 50.0,
        s_noise: float = 1.003,
    ) -> None:
        if s_churn < 0 or s_noise < 0 or not 0 <= s_min <= s_max:
            raise ValueError(
                f"s_churn = {s_churn}, s_noise = {s_noise}, s_min = {s_min}, s_max = {s_max}; "
                "none may be negative, and s_min <= s_max is needed"
            )
        self.scheme = scheme
        self.nfe_per_step = scheme.nfe_per_step
        self.weak_order = scheme.order
        self.s_churn, self.s_min, self.s_max, self.s_noise = s_churn, s_min, s_max, s_noise

    def raised(self, grid: Array) -> Array:
        """Levels to which the noise is raised where the steps of a grid start."""
        low = grid[:-1]
        active = (low >= self.s_min) & (low <= self.s_max)
        gamma = min(self.s_churn / len(low), math.sqrt(2) - 1)
        raised: Array = low * (1 + np.where(active, gamma, 0.0))
        return raised

    def prepare(
        self, view: View, grid: Array, noise: NoiseSource, ending: str = "denoise"
    ) -> Runner:
        """Prepare all steps of a grid."""
        assert isinstance(view, AffineView)
        high, low = self.raised(grid), grid[:-1]
        to_data, count = grid[-1] == 0, len(high)
        inner, at = count - to_data, view.coordinates.at
        ends = np.append(grid[1:-1], low[-1] if to_data else grid[-1])
        flow = self.scheme.between(view.coordinates, at(high), at(ends))
        # The noise of a step belongs to no interval of σ²; its clock counts the steps.
        draws = [Draw("increment", n, n + 1, STEPS) for n in range(count)]
        size = self.s_noise * np.sqrt(high**2 - low**2)
        moves: list[list[int | Kick]] = [
            [*([Kick(n, size[n])] if high[n] > low[n] else []), *([n] if n < inner else [])]
            for n in range(count)
        ]
        plan = assembled(view.coordinates, flow, moves, draws)
        end = view.ending(ending, high[-1], unscaled=True) if to_data else None
        return Runner(view, plan, end, noise=noise, last=count - 1)


class Restart(NoisyScheme):
    """Restart: flow down, noise back up in an interval, and down again, a few times.

    Where the grid reaches the lower level of an interval ``(low, high, steps, times)``, noise of
    variance ``high² − low²`` is added and the flow solved down to ``low`` again in ``steps`` steps on
    a grid of Karras et al., all that ``times`` times. The law is that of the flow; what contracts is
    the error of the network, not that of the solver, whose order is kept.

    Source: Xu et al. 2023, algorithm 1.

    Args:
        scheme: One-step scheme of the flow; Heun in the paper.
        intervals: The intervals; those that a grid does not span are left out.

    Raises:
        ValueError: If an interval is not ``0 < low < high``, with at least one step and one time.
    """

    strong_order = 1.0
    solves = "flow"

    def __init__(self, scheme: OneStep, intervals: Sequence[tuple[float, float, int, int]]) -> None:
        for low, high, steps, times in intervals:
            if not (0 < low < high and steps >= 1 and times >= 1):
                raise ValueError(
                    f"interval {(low, high, steps, times)}: it must be (low, high, steps, times) with "
                    "0 < low < high and at least one step and one time"
                )
        self.scheme, self.intervals = scheme, tuple(intervals)
        self.nfe_per_step = scheme.nfe_per_step
        self.weak_order = scheme.order

    def noisy_plan(self, coordinates: Coordinates, grid: Points, view: AffineView) -> Plan:
        """The steps of the grid, and those of the intervals where it gets to their lower level."""
        count = len(grid.sigma) - 1
        starts, ends = list(grid.sigma[:-1]), list(grid.sigma[1:])
        moves: list[list[int | Kick]] = [[n] for n in range(count)]
        draws: list[Draw] = []
        for low, high, steps, times in self.intervals:
            if not grid.sigma[-1] <= low < high <= grid.sigma[0]:
                continue
            below = np.flatnonzero(grid.sigma[1:] < high)
            n = int(below[np.abs(np.log(grid.sigma[1:][below] / low)).argmin()])
            bottom = grid.sigma[n + 1]
            levels = karras(steps, high, bottom)
            for _ in range(times):
                draws.append(Draw("increment", len(draws), len(draws) + 1, STEPS))
                moves[n].append(Kick(len(draws) - 1, math.sqrt(high**2 - bottom**2)))
                moves[n] += range(len(starts), len(starts) + steps)
                starts += levels[:-1].tolist()
                ends += levels[1:].tolist()
        at = coordinates.at
        flow = self.scheme.between(coordinates, at(np.array(starts)), at(np.array(ends)))
        return assembled(coordinates, flow, moves, draws)


class Kick(NamedTuple):
    """Noise added to the state ``x̂`` between steps of the flow.

    Attributes:
        draw: Which draw of the plan.
        size: Factor of it.
    """

    draw: int
    size: float


def assembled(
    coordinates: Coordinates,
    flow: Plan,
    moves: Sequence[Sequence[int | Kick]],
    draws: Sequence[Draw],
) -> Plan:
    """Put steps of the flow and noise one after the other.

    Args:
        coordinates: The coordinates.
        flow: Steps of the flow, in any order.
        moves: For every step what it does: steps of the flow, by number, and noise.
        draws: The noise.
    """
    h = coordinates.h(flow.points)
    steps: list[tuple[int | None, list[Line]]] = []
    for todo in moves:
        first: int | None = None
        lines: list[Line] = []
        for i, move in enumerate(todo):
            if isinstance(move, Kick):
                # A line from a point to itself leaves x̂ as it is; only its h counts, and which slope
                # is evaluated next.
                follows = todo[i + 1] if i + 1 < len(todo) else None
                at = flow.steps[follows][0] if isinstance(follows, int) else 0
                assert at is not None
                noise = {move.draw: move.size / h[at]}
                lines.append(Line(at, at, {}, accept=True, evaluate=False, noise=noise))
                continue
            start, own = flow.steps[move]
            if lines:
                assert start is not None
                lines[-1] = lines[-1]._replace(target=start, evaluate=True)
            else:
                first = start
            lines += own
        steps.append((first, lines))
    return Plan(flow.points, steps, draws)
