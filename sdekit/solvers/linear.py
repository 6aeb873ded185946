"""Linear schemes: every step combines states and slopes with coefficients known before the loop.

Runge–Kutta, exponential and multistep schemes are all of this kind. Such a scheme writes its steps
down as data, a `Plan`; one runner executes any plan. The state it carries is the unscaled one,
``x̂ = h u``, which the denoiser takes as it is: no coordinates cost a pass over the state more.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..brownian import NoiseSource
from ..coordinates import Coordinates, Points
from .scheme import Array, Scheme, Step
from .view import Coefficient, Evaluation, View

Weights: TypeAlias = Mapping[int, float | Array]


class Line(NamedTuple):
    """One update ``u_target = u_base + Σ_e weights[e] N_e`` of a step.

    Attributes:
        base: Point of the accepted state.
        target: Point of the result.
        weights: Weights of slopes, by the points they were evaluated at; one number, or one per
            direction of the coordinates.
        accept: Whether the result becomes the accepted state; else it is a trial.
        evaluate: Whether the slope at the result is evaluated next.
    """

    base: int
    target: int
    weights: Weights
    accept: bool
    evaluate: bool


class Plan(NamedTuple):
    """All steps of a grid.

    Attributes:
        points: Every point that a line names. A point at which slopes are evaluated twice is there
            twice.
        steps: For each step the point whose slope is evaluated first, at the state the step
            before ended in, and its lines.
    """

    points: Points
    steps: Sequence[tuple[int, Sequence[Line]]]


class LinearScheme(Scheme):
    """A scheme whose steps are a `Plan`."""

    unscaled = True

    @abstractmethod
    def plan(self, coordinates: Coordinates, grid: Points) -> Plan:
        """Write down the steps of a grid."""

    def stepper(self, view: View, grid: Array, noise: NoiseSource) -> Step:
        """Prepare the steps of a grid."""
        return run(view, self.plan(view.coordinates, view.coordinates.at(grid)))


class _Update(NamedTuple):
    """A line in terms of the runner: ``z = keep z + Σ weight slots[slot]``, then an evaluation."""

    keep: Coefficient
    terms: tuple[tuple[int, Coefficient], ...]
    accept: bool
    evaluation: tuple[int, Evaluation] | None  # the slot it goes to


class _Buffers(NamedTuple):
    """What a run of a plan writes to; none where every result is a new tensor."""

    accepted: Tensor | None
    trial: Tensor | None
    slots: list[Tensor | None]


def run(view: View, plan: Plan) -> Step:
    """Prepare the steps of a plan.

    Without autograd the state, the trial and the slopes that are still needed live in buffers that
    are allocated once: the tensor that a denoiser is given is overwritten later.
    """
    starts, steps, slot_count = _compile(view, plan)
    trials = any(not update.accept for updates in steps for update in updates)
    # State of the run: its buffers, the accepted state, and the state the last step ended in.
    buffers = _Buffers(None, None, [])
    accepted = current = view.like

    def evaluate(z: Tensor, evaluation: tuple[int, Evaluation]) -> None:
        slot, at = evaluation
        slots[slot] = view.evaluate(z, at, slots[slot] if reuse else None)

    reuse = False
    slots: list[Tensor | None] = []

    def step(n: int, z: Tensor) -> Tensor:
        nonlocal buffers, accepted, current, reuse, slots
        if n == 0:
            reuse = not torch.is_grad_enabled()
            new = [torch.empty_like(z) if reuse else None for _ in range(slot_count + 2)]
            buffers, slots = _Buffers(new[0], new[1] if trials else None, new[2:]), new[2:]
        if n == 0 or z is not current:
            accepted = z if buffers.accepted is None else buffers.accepted.copy_(z)
            current = accepted
        evaluate(current, starts[n])
        for update in steps[n]:
            out = (accepted if update.accept else buffers.trial) if reuse else None
            current = _combine(accepted, update.keep, update.terms, slots, out)
            if update.accept:
                accepted = current
            if update.evaluation is not None:
                evaluate(current, update.evaluation)
        return current

    return step


def _compile(
    view: View, plan: Plan
) -> tuple[list[tuple[int, Evaluation]], list[list[_Update]], int]:
    """Turn weights of ``N`` in ``u`` into weights of slopes in ``x̂``, and give slopes their slots."""
    form = view.linear_form(plan.points)
    evaluations = view.evaluations(plan.points)
    last_use = {
        e: (n, i)
        for n, (_, lines) in enumerate(plan.steps)
        for i, line in enumerate(lines)
        for e in line.weights
    }
    slot_of: dict[int, int] = {}
    free: list[int] = []
    count = 0

    def take(e: int) -> tuple[int, Evaluation]:
        nonlocal count
        if not free:
            free.append(count)
            count += 1
        slot_of[e] = free.pop()
        return slot_of[e], evaluations[e]

    starts, steps = [], []
    for n, (start, lines) in enumerate(plan.steps):
        starts.append(take(start))
        updates = []
        for i, line in enumerate(lines):
            h = form.h[line.target]
            keep = view.coefficient(h / form.h[line.base])
            terms = tuple(
                (slot_of[e], view.coefficient(h * w * form.slope[e]))
                for e, w in sorted(line.weights.items(), reverse=True)
                if np.any(w)
            )
            done = [e for e in slot_of if last_use.get(e, (-1, 0)) <= (n, i)]
            free += [slot_of.pop(e) for e in done]
            evaluation = take(line.target) if line.evaluate else None
            updates.append(_Update(keep, terms, line.accept, evaluation))
        steps.append(updates)
    return starts, steps, count


def _combine(
    z: Tensor,
    keep: Coefficient,
    terms: Sequence[tuple[int, Coefficient]],
    slots: Sequence[Tensor | None],
    out: Tensor | None,
) -> Tensor:
    """Return ``keep z + Σ weight slots[slot]``, written to ``out`` (which may be ``z``) if given."""
    total = z
    fresh = out is z
    if isinstance(keep, Tensor) or keep != 1.0:
        total = z.mul_(keep) if fresh else torch.mul(z, keep, out=out)
        fresh = True
    for slot, weight in terms:
        slope = slots[slot]
        assert slope is not None
        if isinstance(weight, Tensor):
            total = (
                total.addcmul_(slope, weight)
                if fresh
                else torch.addcmul(total, slope, weight, out=out)
            )
        elif fresh:
            total.add_(slope, alpha=weight)
        else:
            total = torch.add(total, slope, alpha=weight, out=out)
        fresh = True
    if not fresh:  # a step that changes nothing
        total = z.clone() if out is None else out.copy_(z)
    return total
