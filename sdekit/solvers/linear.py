"""Linear schemes: every step combines states and slopes with coefficients known before the loop.

Runge–Kutta, exponential and multistep schemes are all of this kind. Such a scheme writes its steps
down as data, a `Plan`; one runner executes any plan. The state it carries is the unscaled one,
``x̂ = h u``, which the denoiser takes as it is: no coordinates cost a pass over the state more.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ..brownian import Clock, NoiseSource
from ..checkpoint import Carry
from ..coordinates import Coordinates, Points
from .plan import Draw as Draw  # what schemes write plans with, so at home here as well
from .plan import Line as Line
from .plan import Plan as Plan
from .scheme import Array, Scheme
from .segments import RAW, Segment, Update, compiled
from .view import AffineView, Coefficient, Map, View


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


class Progress(NamedTuple):
    """A solve between two of its segments, with all that the rest of it depends on but its noise.

    Attributes:
        step: Number of the step that is being taken.
        segment: How many of its segments are done.
        latest: The state that is evaluated next.
        accepted: The accepted state.
        slots: Slopes, by their slots.
        drawn: Draws of noise that are needed again.
    """

    step: int
    segment: int
    latest: Tensor
    accepted: Tensor
    slots: tuple[Tensor, ...] = ()
    drawn: Mapping[int, Tensor] = MappingProxyType({})


class Runner:
    """The steps of a plan, and the step to ``σ = 0`` that may come after them.

    Called as a `Step` it keeps what the next steps need. Without autograd the state, the trial and
    the slopes live in buffers that are allocated once: the tensor that a denoiser is given is
    overwritten later. `advance` keeps nothing, and so does `proceed`, which stops after every segment.

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
        self._steps, self._kept, self._count = compiled(view, plan, coordinates)
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
        if n and z is not self._latest:
            self._check_replaceable(n)
        if n == 0 or z is not self._latest:
            self._latest = self._accepted = self._accepted.copy_(z) if self._reuse else z
        latest, self._accepted = self._take(
            n,
            self._latest,
            self._accepted,
            self._trial,
            self._slots,
            self._drawn,
            reuse=self._reuse,
        )
        self._latest = latest
        self._drawn = self._still_needed(self._drawn, n)
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
        latest, accepted = self._take(n, latest, accepted, accepted, slots, {}, reuse=False)
        return latest, accepted, *(slots[slot] for slot in self._kept[n + 1])

    def begin(self, z: Tensor) -> Progress:
        """Return where a solve from ``z`` starts."""
        return Progress(0, 0, z, z, tuple(self._empty()))

    def evaluates(self, progress: Progress) -> bool:
        """Whether the next segment begins with an evaluation, at the latest state."""
        segments = self._segments(progress.step)
        return progress.segment == len(segments) or segments[progress.segment].at is not None

    def proceed(self, progress: Progress) -> Progress:
        """Take the next segment: at most one evaluation, at its beginning, and what follows from it."""
        n, done, latest, accepted, slots, drawn = progress
        segments = self._segments(n)
        if done < len(segments):
            room, found = [*slots], {**drawn}
            latest, accepted = self._apply(
                segments[done], latest, accepted, accepted, room, found, reuse=False
            )
            slots, drawn = tuple(room), found
        else:
            assert self._end is not None
            latest = accepted = self._end(latest)
        done += 1
        if done < len(segments) + (n == self._last and self._end is not None):
            return Progress(n, done, latest, accepted, slots, drawn)
        kept = self._kept[n + 1] if n < len(self._steps) else []
        slots = tuple(z if i in kept else self._view.like for i, z in enumerate(slots))
        return Progress(n + 1, 0, latest, accepted, slots, self._still_needed(drawn, n))

    def replaced(self, progress: Progress, z: Tensor) -> Progress:
        """Return the progress with another state, between two steps.

        Raises:
            ValueError: If the scheme is about to correct its own.
        """
        if 0 < progress.step < len(self._steps):
            self._check_replaceable(progress.step)
        return progress._replace(latest=z, accepted=z)

    def _segments(self, n: int) -> Sequence[Segment]:
        return self._steps[n] if n < len(self._steps) else ()

    def _check_replaceable(self, n: int) -> None:
        """Refuse another state before step ``n`` than the one that the step before ended in."""
        if not self._steps[n - 1][-1].updates[-1].accept:
            raise ValueError(
                "the state was changed between two steps, and this scheme corrects its last step in "
                "the next, from the one before; take one without a corrector, such as sdekit.Adams(2)"
            )

    def _still_needed(self, drawn: Mapping[int, Tensor], n: int) -> dict[int, Tensor]:
        return {k: draw for k, draw in drawn.items() if self._needed[k] > n}

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
        drawn: dict[int, Tensor],
        *,
        reuse: bool,
    ) -> tuple[Tensor, Tensor]:
        """Take a step of the plan; return the state it ends in, and the accepted one."""
        for segment in self._steps[n]:
            latest, accepted = self._apply(
                segment, latest, accepted, trial, slots, drawn, reuse=reuse
            )
        return latest, accepted

    def _apply(
        self,
        segment: Segment,
        latest: Tensor,
        accepted: Tensor,
        trial: Tensor,
        slots: list[Tensor],
        drawn: dict[int, Tensor],
        *,
        reuse: bool,
    ) -> tuple[Tensor, Tensor]:
        """Take a segment; return the state it ends in, and the accepted one."""
        at, slot, updates = segment
        if at is not None:
            denoised = self._view.evaluate(latest, at)
            if slot == RAW:
                slots[slot] = denoised
            else:
                slots[slot] = _slope(denoised, latest, at.state, slots[slot] if reuse else None)
        for update in updates:
            out = (accepted if update.accept else trial) if reuse else None
            noise = [(self._draw(k, accepted, drawn), weight) for k, weight in update.noise]
            latest = _combine(accepted, update, slots, noise, out)
            if update.accept:
                accepted = latest
        return latest, accepted

    def _draw(self, k: int, like: Tensor, drawn: dict[int, Tensor]) -> Tensor:
        """Return draw ``k``, which other lines may need again."""
        if k not in drawn:
            kind, a, b, clock = self.draws[k]
            if clock not in self._sources:  # one for each clock: sources remember what they drew
                assert self._noise is not None
                self._sources[clock] = self._noise if clock is None else self._noise.on(clock)
            source = self._sources[clock]
            new = source.increment(a, b, like) if kind == "increment" else source.area(a, b, like)
            drawn[k] = self._view.rotate(new)
        return drawn[k]


def traced() -> bool:
    """Whether tensors stand for others, which have no memory to be read or written to yet.

    So it is in ``torch.compile``, and in the transforms of ``torch.func``.
    """
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _slope(denoised: Tensor, z: Tensor, state: Coefficient, out: Tensor | None) -> Tensor:
    """Return ``D + state z``, in new memory: a network may write its next result over this one."""
    if isinstance(state, Tensor):
        return torch.addcmul(denoised, z, state, out=out)
    if state == 0.0:
        return denoised.clone() if out is None else out.copy_(denoised)
    return torch.add(denoised, z, alpha=state, out=out)


def _combine(
    z: Tensor,
    update: Update,
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
