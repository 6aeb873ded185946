"""What moved from one set of results to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .measurements import Measurement, Setting


@dataclass(frozen=True)
class Change:
    """A value that two sets of results do not agree on.

    Attributes:
        setting: What was solved and how.
        metric: Name of the metric.
        before: Value in the first; none if it failed there.
        after: Value in the second.
    """

    setting: Setting
    metric: str
    before: float | None
    after: float | None

    @property
    def ratio(self) -> float:
        """After over before; infinite if one of them failed."""
        if not self.before or not self.after:
            return float("inf")
        return self.after / self.before


@dataclass(frozen=True)
class Comparison:
    """What moved from one set of results to another.

    Attributes:
        compared: Number of values in both.
        changes: Values that differ by more than the tolerance, the largest ratio first.
        missing: Values that only the first has.
        added: Values that only the second has.
    """

    compared: int
    changes: tuple[Change, ...]
    missing: tuple[tuple[Setting, str], ...]
    added: tuple[tuple[Setting, str], ...]

    @property
    def same(self) -> bool:
        """Whether nothing moved, and nothing is missing."""
        return not self.changes and not self.missing


def compare(
    before: Iterable[Measurement],
    after: Iterable[Measurement],
    *,
    rtol: float = 1e-6,
    floors: Mapping[tuple[str, str], float] | None = None,
) -> Comparison:
    """Compare two sets of measurements, value by value.

    Args:
        before: The first.
        after: The second.
        rtol: Ratio less one up to which values are the same.
        floors: By problem and metric, values below which nothing can be told: up to there all are the
            same.

    Raises:
        ValueError: If the tolerance is negative or not a number.
    """
    if not rtol >= 0:
        raise ValueError(f"rtol = {rtol}; it must be at least 0")
    old, new = _values(before), _values(after)
    changes = []
    for key in old.keys() & new.keys():
        change = Change(*key, old[key], new[key])
        floor = (floors or {}).get((change.setting.problem, change.metric), 0.0)
        values = [v for v in (change.before, change.after) if v is not None]
        below = len(values) == 2 and max(values) <= floor
        moved = max(change.ratio, 1 / change.ratio if change.ratio else float("inf")) > 1 + rtol
        if change.before != change.after and moved and not below:
            changes.append(change)
    changes.sort(key=lambda c: (-max(c.ratio, 1 / c.ratio), str(c.setting), c.metric))
    return Comparison(
        compared=len(old.keys() & new.keys()),
        changes=tuple(changes),
        missing=tuple(key for key in old if key not in new),
        added=tuple(key for key in new if key not in old),
    )


def _values(measurements: Iterable[Measurement]) -> dict[tuple[Setting, str], float | None]:
    """Return what is compared: the metrics, and the evaluations that they cost."""
    return {
        (m.setting, name): value
        for m in measurements
        for name, value in {**m.metrics, "nfe": m.nfe}.items()
    }
