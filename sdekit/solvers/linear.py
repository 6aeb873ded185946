"""Linear schemes: every step combines states and slopes with coefficients known before the loop.

Runge–Kutta, exponential and multistep schemes are all of this kind. Such a scheme writes its steps
down as data, a `Plan`; one runner executes any plan. The state it carries is the unscaled one,
``x̂ = h u``, which the denoiser takes as it is: no coordinates cost a pass over the state more.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..brownian import Clock, NoiseSource
from ..checkpoint import Carry
from ..coordinates import Coordinates, Points
from .scheme import Array, Scheme
from .view import AffineView, Coefficient, Evaluation, Map, View

Weights: TypeAlias = Mapping[int, float | Array]


class Line(NamedTuple):
    """One update ``u_target = u_base + Σ_e weights[e] N_e + Σ_k noise[k] ξ_k`` of a step.

    Attributes:
        base: Point of the accepted state.
        target: Point of the result.
        weights: Weights of slopes, by the points they were evaluated at; one number, or one per
            direction of the coordinates.
        accept: Whether the result becomes the accepted state; else it is a trial.
        evaluate: Whether the slope at the result is evaluated next.
        noise: Weights of draws of noise, by their place among those of the plan.
    """

    base: int
    target: int
    weights: Weights
    accept: bool
    evaluate: bool
    noise: Weights = MappingProxyType({})


class Draw(NamedTuple):
    """What a plan asks of its noise, once: a Brownian increment, or a space–time area.

    Attributes:
        kind: ``"increment"`` or ``"area"``.
        a: Where the interval begins, a value of the clock.
        b: Where it ends, ``a < b``.
        clock: The clock; ``None`` for the variance ``σ²``.
    """

    kind: str
    a: float
    b: float
    clock: Clock | None = None


class Plan(NamedTuple):
    """All steps of a grid.

    Attributes:
        points: Every point that a line names. A point at which slopes are evaluated twice is there
            twice.
        steps: For each step the point whose slope is evaluated first, at the state the step
            before ended in (``None`` if its first line says so), and its lines.
        draws: The noise that lines name.
    """

    points: Points
    steps: Sequence[tuple[int | None, Sequence[Line]]]
    draws: Sequence[Draw] = ()


class LinearScheme(Scheme):
    """A scheme whose steps are a `Plan`."""

    unscaled = True

    @abstractmethod
    def plan(self, coordinates: Coordinates, grid: Points) -> Plan:
        """Write down the steps of a grid."""

    def stepper(self, view: View, grid: Array, noise: NoiseSource) -> Runner:
        """Prepare the steps of a grid."""
        return Runner(view, self.plan(view.coordinates, view.coordinates.at(grid)))

    def prepare(
        self, view: View, grid: Array, noise: NoiseSource, ending: str = "denoise"
    ) -> Runner:
        """Prepare all steps of a grid."""
        if not (isinstance(view, AffineView) and grid[-1] == 0):
            return self.stepper(view, grid, noise)
        points = view.coordinates.at(grid[:-1])
        plan = self.plan(view.coordinates, points) if len(grid) > 2 else Plan(points, [])
        return Runner(view, plan, view.ending(ending, grid[-2], unscaled=True))


class _Update(NamedTuple):
    """A line in terms of the runner: ``z = keep z + Σ weight slots[slot]``."""

    keep: Coefficient
    terms: tuple[tuple[int, Coefficient], ...]
    noise: tuple[tuple[int, Coefficient], ...]
    accept: bool
    lerp: bool  # one term, and coefficients that sum to 1


class _Segment(NamedTuple):
    """An evaluation, the slot that its slope goes to, and the updates until the next one.

    The first segment of a step may have none.
    """

    at: Evaluation | None
    slot: int
    updates: tuple[_Update, ...]


# The last slot holds what the denoiser returned, for a slope that is used at once and only once.
_RAW = -1


class Runner:
    """The steps of a plan, and the step to ``σ = 0`` that may come after them.

    Called as a `Step` it keeps what the next steps need. Without autograd the state, the trial and
    the slopes live in buffers that are allocated once: the tensor that a denoiser is given is
    overwritten later. `advance` keeps nothing.

    Args:
        view: The problem.
        plan: The steps.
        end: The step to ``σ = 0``, from the state ``x̂``.
        coordinates: Coordinates of the plan, if they are not those of the view.
        noise: Source of the plan's draws.
        last: Step that ``end`` takes, after the plan's step of that number if there is one.
    """

    def __init__(
        self,
        view: View,
        plan: Plan,
        end: Map | None = None,
        *,
        coordinates: Coordinates | None = None,
        noise: NoiseSource | None = None,
        last: int | None = None,
    ) -> None:
        self._view, self._end, self._noise, self.draws = view, end, noise, plan.draws
        self._last = len(plan.steps) if last is None else last
        self._steps, self._kept, self._count = _compile(view, plan, coordinates)
        self._drawn: dict[int, Tensor] = {}
        self._sources: dict[Clock | None, NoiseSource] = {}
        self._needed = {
            k: n for n, (_, lines) in enumerate(plan.steps) for line in lines for k in line.noise
        }
        self._trials = any(not u.accept for step in self._steps for s in step for u in s.updates)
        self._reuse = False
        self._latest = self._accepted = self._trial = view.like
        self._slots: list[Tensor] = []

    def __call__(self, n: int, z: Tensor) -> Tensor:
        """Take step ``n`` from the state that the step before returned, or another in its place.

        Raises:
            ValueError: If it is another, and the scheme is about to correct its own.
        """
        if n == len(self._steps) and self._end is not None:
            return self._end(z)
        if n == 0:
            self._begin(z)
            self._drawn.clear()
        if n and z is not self._latest and not self._steps[n - 1][-1].updates[-1].accept:
            raise ValueError(
                "the state was changed between two steps, and this scheme corrects its last step in "
                "the next, from the one before; take one without a corrector, such as sdekit.Adams(2)"
            )
        if n == 0 or z is not self._latest:
            self._latest = self._accepted = self._accepted.copy_(z) if self._reuse else z
        latest, self._accepted = self._take(
            n, self._latest, self._accepted, self._trial, self._slots, reuse=self._reuse
        )
        self._latest = latest
        self._drawn = {k: drawn for k, drawn in self._drawn.items() if self._needed[k] > n}
        if n == len(self._steps) - 1:  # nothing is kept until the next solve, no graph either
            self._latest = self._accepted = self._trial = self._view.like
            self._slots = []
        return self._end(latest) if n == self._last and self._end is not None else latest

    def advance(self, n: int, carry: Carry) -> Carry:
        """Take step ``n`` from all that it depends on: the first step from ``(z,)``.

        Returns:
            The state, and what else the steps after it need.
        """
        latest, *rest = carry
        if n == len(self._steps) and self._end is not None:
            return (self._end(latest),)
        accepted, *slopes = rest or [latest]
        slots = self._empty()
        for slot, slope in zip(self._kept[n], slopes, strict=True):
            slots[slot] = slope
        latest, accepted = self._take(n, latest, accepted, accepted, slots, reuse=False)
        return latest, accepted, *(slots[slot] for slot in self._kept[n + 1])

    def _empty(self) -> list[Tensor]:
        return [self._view.like] * (self._count + 1)

    def _begin(self, z: Tensor) -> None:
        """Make room for a solve."""
        self._reuse = not (torch.is_grad_enabled() or traced())
        self._slots, self._accepted, self._trial = self._empty(), z, z
        if self._reuse:
            # Not inference tensors, even in inference mode: theirs have no version, which tells
            # whether a denoiser writes to the state.
            with torch.inference_mode(False):
                self._slots[:-1] = (torch.empty_like(z) for _ in range(self._count))
                self._accepted = torch.empty_like(z)
                self._trial = torch.empty_like(z) if self._trials else self._accepted

    def _take(
        self,
        n: int,
        latest: Tensor,
        accepted: Tensor,
        trial: Tensor,
        slots: list[Tensor],
        *,
        reuse: bool,
    ) -> tuple[Tensor, Tensor]:
        """Take a step of the plan; return the state it ends in, and the accepted one."""
        for at, slot, updates in self._steps[n]:
            if at is not None:
                denoised = self._view.evaluate(latest, at)
                if slot == _RAW:
                    slots[slot] = denoised
                else:
                    slots[slot] = _slope(denoised, latest, at.state, slots[slot] if reuse else None)
            for update in updates:
                out = (accepted if update.accept else trial) if reuse else None
                noise = [(self._draw(k, accepted), weight) for k, weight in update.noise]
                latest = _combine(accepted, update, slots, noise, out)
                if update.accept:
                    accepted = latest
        return latest, accepted

    def _draw(self, k: int, like: Tensor) -> Tensor:
        """Return draw ``k``, which other lines may need again."""
        if k not in self._drawn:
            kind, a, b, clock = self.draws[k]
            if clock not in self._sources:  # one for each clock: sources remember what they drew
                assert self._noise is not None
                self._sources[clock] = self._noise if clock is None else self._noise.on(clock)
            source = self._sources[clock]
            drawn = source.increment(a, b, like) if kind == "increment" else source.area(a, b, like)
            self._drawn[k] = self._view.rotate(drawn)
        return self._drawn[k]


def traced() -> bool:
    """Whether tensors stand for others, which have no memory to be read or written to yet.

    So it is in ``torch.compile``, and in the transforms of ``torch.func``.
    """
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


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
        self._of[point] = _RAW if raw else self._free.pop()

    def release(self, n: int, i: int) -> None:
        """Free the slots of slopes that are not needed after line ``i`` of step ``n``."""
        done = [p for p in self._of if self._uses.get(p, [(-1, 0)])[-1] <= (n, i)]
        self._free += [slot for slot in map(self._of.pop, done) if slot != _RAW]


def _compile(
    view: View, plan: Plan, coordinates: Coordinates | None
) -> tuple[list[list[_Segment]], list[list[int]], int]:
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
        segments = [_Segment(None, _RAW, ())] if start is None else []
        evaluated = start
        for i, line in enumerate(lines):
            h = form.h[line.target]
            keep = h / form.h[line.base]
            weights = {e: h * w * form.slope[e] for e, w in line.weights.items() if np.any(w)}
            if evaluated is not None:
                # A slope at the accepted state, needed here only, need not be formed: D will do.
                # In place only by lerp, which may be given the same memory twice.
                raw = at_accepted and slots.used_only_in(evaluated, n, i) and evaluated in weights
                folded = keep + weights[evaluated] * form.state[evaluated] if raw else keep
                raw = raw and (not line.accept or _is_lerp(folded, weights))
                keep = folded if raw else keep
                slots.take(evaluated, raw=raw)
                segments.append(_Segment(evaluations[evaluated], slots[evaluated], ()))
            newest_first = sorted(weights, reverse=True)
            terms = tuple((slots[e], view.coefficient(weights[e])) for e in newest_first)
            lerp = _is_lerp(keep, weights)
            noise = tuple((k, view.coefficient(h * w)) for k, w in line.noise.items())
            update = _Update(view.coefficient(keep), terms, noise, line.accept, lerp)
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


def _slope(denoised: Tensor, z: Tensor, state: Coefficient, out: Tensor | None) -> Tensor:
    """Return ``D + state z``, in new memory: a network may write its next result over this one."""
    if isinstance(state, Tensor):
        return torch.addcmul(denoised, z, state, out=out)
    if state == 0.0:
        return denoised.clone() if out is None else out.copy_(denoised)
    return torch.add(denoised, z, alpha=state, out=out)


def _combine(
    z: Tensor,
    update: _Update,
    slots: Sequence[Tensor],
    noise: Sequence[tuple[Tensor, Coefficient]],
    out: Tensor | None,
) -> Tensor:
    """Return ``keep z + Σ weight slots[slot]`` and noise, written to ``out`` (or ``z``) if given."""
    total, terms = z, [*((slots[slot], weight) for slot, weight in update.terms), *noise]
    if update.lerp:
        (slope, share), *terms = terms
        total = torch.lerp(z, slope, share, out=out)
    elif isinstance(update.keep, Tensor) or update.keep != 1.0:
        total = torch.mul(z, update.keep, out=out)
    for term, weight in terms:
        if isinstance(weight, Tensor):
            total = torch.addcmul(total, term, weight, out=out)
        else:
            total = torch.add(total, term, alpha=weight, out=out)
    if total is z and out is not z:  # a step that changes nothing
        total = z.clone() if out is None else out.copy_(z)
    return total
