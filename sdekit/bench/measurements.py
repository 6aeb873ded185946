"""What a benchmark knows: settings, what was measured at each, and all of it together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

ADAPTIVE = "adaptive"  # stands for the grid of a solve to a tolerance


def key_of(plain: object) -> str:
    """Return the hash by which plain data are known."""
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Setting:
    """What is solved and how: all that an error depends on, but the machine and the versions.

    Attributes:
        problem: Name of the problem.
        method: Name of the method: of the registry, ``"package.module:solver"``, or of a peer.
        grid: Name of the grid; `ADAPTIVE` for a solve to a tolerance.
        budget: Network evaluations allowed on a fixed grid.
        rtol: Tolerance (relative and absolute) of an adaptive solve.
        samples: Number of start states.
        seed: Seed of the start states and of the noise.
        variant: What the names do not say: a hash of the user's model and solver; empty for those that
            come along.
    """

    problem: str
    method: str
    grid: str
    budget: int | None
    rtol: float | None
    samples: int
    seed: int
    variant: str = ""

    @cached_property
    def digest(self) -> str:
        """Hash of the configuration, by which a store knows it."""
        return key_of({k: v for k, v in asdict(self).items() if k != "variant" or v})


@dataclass(frozen=True)
class Measurement:
    """One solve, judged.

    Attributes:
        setting: What was solved and how.
        package: Whose method it is: ``"sdekit"``, ``"diffusers"``, ``"azula"``, …
        nfe: Network evaluations, mean over the samples.
        nfe_max: The same of the sample that took most.
        steps: Steps taken, by the sample that took most.
        metrics: Values by name of the metric (`sdekit.bench.metrics.METRICS`); none where a value is
            not finite, as of a solve that failed.
        status: ``"success"``, or how the solve failed.
        environment: Key of the versions and the machine, in `Results.environments`.
        seconds: Wall time; none if it is not known. Never part of what two stores are compared by.
        network_seconds: The part of it that was spent in the network.
    """

    setting: Setting
    package: str
    nfe: float
    nfe_max: int
    steps: int
    metrics: Mapping[str, float | None]
    status: str = "success"
    environment: str = ""
    seconds: float | None = None
    network_seconds: float | None = None


@dataclass(frozen=True)
class ProblemCard:
    """What a report says of a problem.

    Attributes:
        name: Name on the command line.
        title: What it is.
        event_shape: Shape of a sample.
        sigma_max: Noise level of the start.
        sigma_min: Noise level of the end.
        sigma_data: Standard deviation of the data, if it is known.
        reference: How the reference was made and how far two codes agree on it, in a line.
        floors: Value by metric below which nothing can be told: of the reference for metrics along
            paths; of exact samples, as many as there are, for metrics of laws.
    """

    name: str
    title: str
    event_shape: tuple[int, ...]
    sigma_max: float
    sigma_min: float
    sigma_data: float | None = None
    reference: str = ""
    floors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """All measurements of an experiment, and what is needed to read them.

    Attributes:
        title: Title of the experiment.
        configuration: The experiment as plain data, as in its TOML file.
        problems: The problems by name, in the order of the experiment.
        measurements: What was measured, in the order of the experiment.
        environments: Versions and hardware by key.
        date: When the last of it was measured, if that is known.
    """

    title: str
    configuration: Mapping[str, Any]
    problems: Mapping[str, ProblemCard]
    measurements: tuple[Measurement, ...]
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    date: str = ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that any measurement has, in the order in which they appear."""
        return tuple(dict.fromkeys(name for m in self.measurements for name in m.metrics))

    def select(self, keep: Callable[[Measurement], bool]) -> Results:
        """Return the same with some of the measurements."""
        return replace(self, measurements=tuple(m for m in self.measurements if keep(m)))


def method_label(method: str, grid: str, default_grid: str | None = None) -> str:
    """Name of a method in tables and pictures: with its grid, unless that is its default."""
    if grid == ADAPTIVE:
        return f"{method} adaptive"
    return method if grid == default_grid else f"{method} @ {grid}"


def curves(
    measurements: Iterable[Measurement], metric: str
) -> dict[tuple[str, str, str], list[Measurement]]:
    """Return the measurements that have a metric by problem, method and grid, by growing effort."""
    found: dict[tuple[str, str, str], list[Measurement]] = {}
    for m in measurements:
        if metric in m.metrics:
            key = (m.setting.problem, m.setting.method, m.setting.grid)
            found.setdefault(key, []).append(m)
    for points in found.values():
        points.sort(key=lambda m: (m.setting.budget or 0, -(m.setting.rtol or 0), m.setting.seed))
    return found
