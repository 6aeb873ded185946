"""Clocks: what the intervals of a noise source are intervals of."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Clock:
    """A clock, and an axis of positions on which the points of usual grids are about evenly spread.

    The variance of a Brownian motion over an interval is the difference of its clock values.
    A unit of position is about what steps are long: the resolution of a `BrownianPath` is in it.

    Args:
        name: Name. Clocks of one name are one clock, so it has to contain the clock's parameters.
        position: Position of a clock value: monotone, increasing or decreasing.
        value: Clock value at a position, the inverse.
    """

    name: str
    position: Callable[[float], float] = field(compare=False, repr=False)
    value: Callable[[float], float] = field(compare=False, repr=False)

    @classmethod
    def uniform(cls, name: str, unit: float) -> Clock:
        """Return a clock whose position is its value, in multiples of ``unit``."""
        return cls(name, functools.partial(_times, 1 / unit), functools.partial(_times, unit))

    def mapped(
        self, name: str, to: Callable[[float], float], back: Callable[[float], float]
    ) -> Clock:
        """Return a clock that shows ``to(value)`` where this one shows ``value``.

        Args:
            name: Name of the new clock.
            to: Monotone function of this clock's values.
            back: Its inverse. Where round-off may carry it off the end of this clock, such as below
                ``σ² = 0``, it has to be cut off.
        """
        return Clock(name, lambda v: self.position(back(v)), lambda p: to(self.value(p)))


def _times(factor: float, value: float) -> float:
    return factor * value


# Above this position it is the octave of σ²; below it is linear in σ², and one unit goes down to 0.
_LOWEST = -64


def _octave(variance: float) -> float:
    if not 0 <= variance < math.inf:
        raise ValueError(f"asked for noise at σ² = {variance}; it must be finite and not negative")
    if variance < 2.0**_LOWEST:
        return variance / 2.0**_LOWEST + _LOWEST - 1
    return math.log2(variance)


def _variance(position: float) -> float:
    if position < _LOWEST:
        return (position - _LOWEST + 1) * 2.0**_LOWEST
    return math.pow(2.0, position)


VARIANCE = Clock("variance", _octave, _variance)
"""``σ²``, the clock of affine processes, whose position is ``log2 σ²``; 0 is included."""

TIME = Clock.uniform("time", 1 / 32)
"""Time of SDEs that last for about 1, in units of 1/32; `Clock.uniform` makes others."""
