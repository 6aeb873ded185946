"""Noise that is known: with it the step of a stochastic scheme is a formula to compare with."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..clock import Clock


class Recorded:
    """Standard normal numbers that are given, each scaled to the draw that is asked for.

    Args:
        numbers: The numbers, in the order of the draws.
    """

    def __init__(self, numbers: Iterable[Tensor]) -> None:
        self._numbers = iter(numbers)

    def increment(self, a: float, b: float, like: Tensor) -> Tensor:
        """The next number, with variance ``b − a``."""
        return self.normal(like) * math.sqrt(b - a)

    def area(self, a: float, b: float, like: Tensor) -> Tensor:
        """The next number, with variance ``(b − a)/12``."""
        return self.normal(like) * math.sqrt((b - a) / 12)

    def normal(self, like: Tensor) -> Tensor:
        """The next number."""
        return next(self._numbers).to(like)

    def on(self, clock: Clock) -> Recorded:
        """Return itself."""
        return self


class Impulses:
    """One standard deviation in a row of its own for each draw, and zero in the others.

    A solver that is linear in start and noise then shows its response to each of them: from a start
    in row 0 alone, the sum of squares over rows is the variance of its result, without sampling.

    Attributes:
        drawn: Kind and interval of each draw; draw ``k`` is in row ``k + 1``.
    """

    def __init__(self) -> None:
        self.drawn: list[tuple[str, float, float]] = []

    def _unit(self, kind: str, a: float, b: float, variance: float, like: Tensor) -> Tensor:
        out = torch.zeros_like(like)
        self.drawn.append((kind, a, b))
        out[len(self.drawn)] = variance**0.5
        return out

    def increment(self, a: float, b: float, like: Tensor) -> Tensor:
        """One standard deviation of an increment, in the next row."""
        return self._unit("increment", a, b, b - a, like)

    def area(self, a: float, b: float, like: Tensor) -> Tensor:
        """One standard deviation of an area, in the next row."""
        return self._unit("area", a, b, (b - a) / 12, like)

    def normal(self, like: Tensor) -> Tensor:
        """One, in the next row."""
        return self._unit("normal", 0.0, 1.0, 1.0, like)

    def on(self, clock: Clock) -> Impulses:
        """Return itself."""
        return self
