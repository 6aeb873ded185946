"""Measuring convergence orders, by the protocol of the design notes (theory 4.15)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


class NotResolved(AssertionError):
    """The errors do not determine an order: too few points between pre-asymptotics and round-off."""


def measure_order(
    error: Callable[[int], float],
    steps: Sequence[int],
    *,
    floor: float = 1e-14,
    scale: float = 1.0,
    points: int = 4,
) -> float:
    """Slope of log error against log steps, on the last points that are above ten times the floor.

    Only errors below a tenth of the scale count, and they must decrease from point to point.
    """
    kept: list[tuple[int, float]] = []
    for n in steps:
        e = error(n)
        if e <= 10 * floor:
            break
        if e < 0.1 * scale:
            kept.append((n, e))
    kept = kept[-points:]
    if len(kept) < 3:
        raise NotResolved(f"only {len(kept)} usable points: {kept}")
    n, e = np.array(kept).T
    if not (np.diff(e) < 0).all():
        raise NotResolved(f"the errors do not decrease: {kept}")
    return float(-np.polyfit(np.log(n), np.log(e), 1)[0])
