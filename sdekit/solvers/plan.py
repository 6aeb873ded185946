"""The steps of linear schemes as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from ..brownian import Clock
from ..coordinates import Points
from .scheme import Array

Weights: TypeAlias = Mapping[int, float | Array]


class Line(NamedTuple):
    """One update ``u_target = keep u_base + Σ_e weights[e] N_e + Σ_k noise[k] ξ_k`` of a step.

    Attributes:
        base: Point of the accepted state.
        target: Point of the result.
        weights: Weights of slopes, by the points they were evaluated at; one number, or one per
            direction of the coordinates.
        accept: Whether the result becomes the accepted state; else it is a trial.
        evaluate: Whether the slope at the result is evaluated next.
        noise: Weights of draws of noise, by their place among those of the plan.
        keep: Factor of the accepted state; one number, or one per direction.
    """

    base: int
    target: int
    weights: Weights
    accept: bool
    evaluate: bool
    noise: Weights = MappingProxyType({})
    keep: float | Array = 1.0


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
