"""Sources of noise that the tests of stochastic schemes share."""

from __future__ import annotations

import torch


class Silent:
    """No noise; it counts what is asked for."""

    def __init__(self) -> None:
        self.draws = 0

    def increment(self, a, b, like):
        self.draws += 1
        return torch.zeros_like(like)

    area = increment

    def normal(self, like):
        return self.increment(0, 1, like)

    def on(self, clock):
        return self


class Scaled:
    """Another source with its draws multiplied: a scheme whose noise is damaged."""

    def __init__(self, source, increment: float = 0.5, area: float = 0.5) -> None:
        self.source, self.factors = source, (increment, area)

    def increment(self, a, b, like):
        return self.source.increment(a, b, like) * self.factors[0]

    def area(self, a, b, like):
        return self.source.area(a, b, like) * self.factors[1]

    def on(self, clock):
        return Scaled(self.source.on(clock), *self.factors)


class Steps:
    """A path on ``[0, 1]`` for schemes whose clock counts steps: each has its share of the path."""

    def __init__(self, path, count: int) -> None:
        self.path, self.count = path, count

    def increment(self, a, b, like):
        n = self.count
        return self.path.increment(a / n, b / n, like) * n**0.5

    def on(self, clock):
        assert clock.name == "steps"
        return self
