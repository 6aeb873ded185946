"""Step-size controllers: how long the next step is, from the errors of the last ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Errors below this are zero as far as the next step is concerned.
_LEAST = 1e-10
_RETRY = 0.9  # largest factor after a rejection


@dataclass(frozen=True)
class Controller:
    """A proportional–integral–derivative controller of step sizes.

    With errors ``e`` in units of the tolerance and a local error of order ``k`` in the step, the next
    step is the last one times ``safety · e_n^(−(p+i+d)/k) · e_{n−1}^((p+2d)/k) · e_{n−2}^(−d/k)``,
    within limits; the memory holds accepted steps only (Söderlind 2003, in the form of diffrax).

    Attributes:
        p: Proportional gain.
        i: Integral gain.
        d: Derivative gain.
        safety: Factor of the proposed step.
        shrink: Smallest factor from a step to the next.
        grow: Largest factor; of a rejected step it is 0.9, of the next one 1.

    Raises:
        ValueError: If the limits are not ``0 < shrink < 1 < grow`` and ``0 < safety <= 1``, or no gain
            makes the step follow the error.
    """

    p: float
    i: float
    d: float = 0.0
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0

    def __post_init__(self) -> None:
        if not (0 < self.shrink < 1 < self.grow and 0 < self.safety <= 1):
            raise ValueError(
                f"safety = {self.safety}, shrink = {self.shrink}, grow = {self.grow}; they must be "
                "0 < safety <= 1 and 0 < shrink < 1 < grow"
            )
        if not (self.i > 0 and self.p >= 0 and self.d >= 0):
            raise ValueError(
                f"p = {self.p}, i = {self.i}, d = {self.d}; gains are not negative, and without i > 0 "
                "steps do not settle at the tolerance"
            )

    def factor(self, errors: Array, k: Array | float) -> Array:
        """Factor of the next step.

        Args:
            errors: Errors of the last steps in units of the tolerance, newest first, ``(3, n)``; 1
                where there was no step.
            k: Order of the local error in the step.
        """
        now, last, before = np.maximum(errors, _LEAST)
        p, i, d = self.p, self.i, self.d
        with np.errstate(over="ignore"):
            raw = now ** (-(p + i + d) / k) * last ** ((p + 2 * d) / k) * before ** (-d / k)
        # A rejected step must shrink, whatever the safety, and however small the errors before it.
        most = np.where(errors[0] > 1, min(self.safety, _RETRY), self.grow)
        factor: Array = np.clip(self.safety * raw, self.shrink, most)
        return np.where(np.isfinite(errors[0]), factor, self.shrink)


I = Controller(0.0, 1.0)  # noqa: E741  # the field's name: the classical controller
PI = Controller(0.4, 0.3)
PID = Controller(0.2, 0.3, 0.05)
