"""Repetitions over seeds, taken together: geometric means, and how far apart they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .measurements import Measurement, Setting


@dataclass(frozen=True)
class Point:
    """A point of a curve: the same solve with every seed.

    Attributes:
        setting: What was solved and how, with the first of the seeds.
        nfe: Network evaluations, mean over the seeds.
        by_seed: Value of the metric by seed; none where it failed.
    """

    setting: Setting
    nfe: float
    by_seed: Mapping[int, float | None]

    @property
    def error(self) -> float | None:
        """Geometric mean over the seeds; none if one of them failed, as the others would flatter."""
        return geometric_mean(self.by_seed.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the logarithm over the seeds; none of one seed, or of a zero."""
        values = [value for value in self.by_seed.values() if value]
        if len(values) < 2 or len(values) < len(self.by_seed):
            return None
        return statistics.stdev(math.log(value) for value in values)


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Return the geometric mean; none if a value is, or if there are none."""
    known: list[float] = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    if not known:
        return None
    return 0.0 if min(known) == 0 else math.exp(statistics.fmean(map(math.log, known)))


def repeated(measurements: Iterable[Measurement], metric: str) -> list[Point]:
    """Take the seeds of each budget or tolerance together.

    Args:
        measurements: Those of one problem, method and grid, by growing effort, as of
            `sdekit.bench.measurements.curves`.
        metric: Name of a metric that all of them have.

    Returns:
        A point per budget or tolerance.
    """
    groups: dict[tuple[int | None, float | None], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault((m.setting.budget, m.setting.rtol), []).append(m)
    return [
        Point(
            group[0].setting,
            statistics.fmean(m.nfe for m in group),
            {m.setting.seed: m.metrics[metric] for m in group},
        )
        for group in groups.values()
    ]
