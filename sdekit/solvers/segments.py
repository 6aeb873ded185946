"""Plans made ready to run: steps as segments, each an evaluation and the updates after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..coordinates import Coordinates
from .plan import Plan
from .scheme import Array
from .view import Coefficient, Evaluation, View


class Update(NamedTuple):
    """A line in terms of the runner: ``z = keep z + Σ weight slots[slot]``."""

    keep: Coefficient
    terms: tuple[tuple[int, Coefficient], ...]
    noise: tuple[tuple[int, Coefficient], ...]
    accept: bool
    lerp: bool  # one term, and coefficients that sum to 1


class Segment(NamedTuple):
    """An evaluation, the slot that its slope goes to, and the updates until the next one.

    The first segment of a step may have none.
    """

    at: Evaluation | None
    slot: int
    updates: tuple[Update, ...]


# The last slot holds what the denoiser returned, for a slope that is used at once and only once.
RAW = -1


class _Slots:
    """Which slot holds the slope of which point, and when it is free again."""

    def __init__(self, plan: Plan) -> None:
        self.count = 0
        self._free: list[int] = []
        self._of: dict[int, int] = {}
        self._uses: dict[int, list[tuple[int, int]]] = {}
        for n, (_, lines) in enumerate(plan.steps):
            for i, line in enumerate(lines):
                for point in line.weights:
                    self._uses.setdefault(point, []).append((n, i))

    def __getitem__(self, point: int) -> int:
        return self._of[point]

    def used(self) -> list[int]:
        """Slots of slopes that are still needed."""
        return list(self._of.values())

    def used_only_in(self, point: int, n: int, i: int) -> bool:
        """Whether no line but line ``i`` of step ``n`` needs the slope."""
        return self._uses.get(point) == [(n, i)]

    def take(self, point: int, *, raw: bool) -> None:
        """Find a slot for a slope."""
        if not raw and not self._free:
            self._free.append(self.count)
            self.count += 1
        self._of[point] = RAW if raw else self._free.pop()

    def release(self, n: int, i: int) -> None:
        """Free the slots of slopes that are not needed after line ``i`` of step ``n``."""
        done = [p for p in self._of if self._uses.get(p, [(-1, 0)])[-1] <= (n, i)]
        self._free += [slot for slot in map(self._of.pop, done) if slot != RAW]


def compiled(
    view: View, plan: Plan, coordinates: Coordinates | None
) -> tuple[list[list[Segment]], list[list[int]], int]:
    """Turn weights of ``N`` in ``u`` into weights of slopes in ``x̂``, and give slopes their slots.

    Returns:
        The steps; the slots that are in use before each step, and after the last; the number of slots.
    """
    form = view.linear_form(plan.points, coordinates)
    evaluations = view.evaluations(plan.points, form)
    slots = _Slots(plan)
    steps, kept = [], [slots.used()]
    at_accepted = True  # whether the next slope is evaluated at the accepted state
    for n, (start, lines) in enumerate(plan.steps):
        segments = [Segment(None, RAW, ())] if start is None else []
        evaluated = start
        for i, line in enumerate(lines):
            h = form.h[line.target]
            keep = line.keep * h / form.h[line.base]
            weights = {
                e: h * w * form.slope[e] for e, w in line.weights.items() if np.count_nonzero(w)
            }
            if evaluated is not None:
                # A slope at the accepted state, needed here only, need not be formed: D will do.
                # In place only by lerp, which may be given the same memory twice.
                raw = at_accepted and slots.used_only_in(evaluated, n, i) and evaluated in weights
                folded = keep + weights[evaluated] * form.state[evaluated] if raw else keep
                raw = raw and (not line.accept or _is_lerp(folded, weights))
                keep = folded if raw else keep
                slots.take(evaluated, raw=raw)
                segments.append(Segment(evaluations[evaluated], slots[evaluated], ()))
            newest_first = sorted(weights, reverse=True)
            terms = tuple((slots[e], view.coefficient(weights[e])) for e in newest_first)
            lerp = _is_lerp(keep, weights)
            noise = tuple((k, view.coefficient(h * w)) for k, w in line.noise.items())
            update = Update(view.coefficient(keep), terms, noise, line.accept, lerp)
            segments[-1] = segments[-1]._replace(updates=(*segments[-1].updates, update))
            slots.release(n, i)
            evaluated, at_accepted = (line.target if line.evaluate else None), line.accept
        steps.append(segments)
        kept.append(slots.used())
    return steps, kept, slots.count


def _is_lerp(keep: Array, weights: Mapping[int, Array]) -> bool:
    """Whether a line is ``z + w (D − z)``."""
    total = keep + sum(weights.values())
    return len(weights) == 1 and total.ndim == 0 and bool(abs(total - 1) < 4e-16)
