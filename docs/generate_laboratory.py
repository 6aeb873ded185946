"""The page of the default published suite, made at build time from its committed results."""

from __future__ import annotations

import statistics
from functools import cache
from typing import Any

from generate import RESULTS, number, table

from sdekit.bench import Measurement, Results, read_results
from sdekit.bench.repetitions import geometric_mean

Record = dict[str, Any]
DEFAULT, STOCHASTIC = "bayesian_adams", "sea_w_theta"
NETWORK = "digits"
SHOWN = (6, 8, 10, 15, 20, 40, 80, 120)
LAWS = ("w2", "mmd", "energy", "cf")


@cache
def results() -> Results:
    """Return the committed results."""
    return read_results(RESULTS / "published.json")


def context(record: Record) -> Record:
    """Return a record with versions and hardware where the other records have theirs."""
    environments = list(record.get("environments", {}).values())
    return {**environments[-1], **record} if environments else record


def at(problem: str, metric: str, budget: int, *, peers: bool, method: str = "") -> float | None:
    """Return the least error of a method, or of all peers, at a budget."""
    found = [
        value
        for m in results().measurements
        if m.setting.problem == problem
        and m.setting.budget == budget
        and (value := m.metrics.get(metric)) is not None
        and (m.package != "sdekit" if peers else m.setting.method == method)
    ]
    return min(found, default=None)


def ratio(problem: str, budget: int) -> float | None:
    """Return the default's error over that of the best of the peers."""
    ours = at(problem, "rms", budget, peers=False, method=DEFAULT)
    theirs = at(problem, "rms", budget, peers=True)
    return None if ours is None or theirs is None else ours / theirs


def laws() -> list[str]:
    """Return the problems whose law is known."""
    return [name for name in results().problems if name != NETWORK]


def mixtures() -> list[str]:
    """Return the problems whose law is a mixture, of which all is known."""
    return [name for name, card in results().problems.items() if "w2" in card.floors]


def headline(_: Record) -> str:
    """Mean ratios to the best of the peers."""
    means = {n: geometric_mean(ratio(name, n) for name in laws()) for n in (8, 20, 80)}
    said = (f"{number(value)} at {n} evaluations" for n, value in means.items())
    return f"error over the best of the suite's peers, mean over laws: {', '.join(said)}"


def ratios(_: Record) -> str:
    """The ratios by problem and budget."""
    rows = [("problem", *(f"{n}" for n in SHOWN))]
    rows += [(name, *(number(ratio(name, n)) for n in SHOWN)) for name in results().problems]
    mean = (geometric_mean(ratio(name, n) for name in laws()) for n in SHOWN)
    rows.append(("**mean over laws**", *(f"**{number(value)}**" for value in mean)))
    return table(rows)


def of_laws(_: Record) -> str:
    """Errors of the law of samples, in floors, for flows and reverse SDEs."""
    methods = (DEFAULT, STOCHASTIC, "peers")
    rows = [("metric", "method", *(f"{n}" for n in SHOWN))]
    for metric in LAWS:
        for method in methods:
            means = []
            for n in SHOWN:
                values = [
                    at(name, metric, n, peers=method == "peers", method=method)
                    for name in mixtures()
                ]
                floors = [results().problems[name].floors[metric] for name in mixtures()]
                in_floors = [
                    None if v is None else v / f for v, f in zip(values, floors, strict=True)
                ]
                means.append(geometric_mean(in_floors))
            label = "the best of the peers" if method == "peers" else f"`{method}`"
            rows.append((metric, label, *map(number, means)))
    return table(rows)


def densities(_: Record) -> str:
    """Errors of log-densities, in nats."""
    methods = dict.fromkeys(
        m.setting.method for m in results().measurements if m.setting.budget and "nll" in m.metrics
    )
    rows = [("method", *(f"{n}" for n in SHOWN))]
    for method in methods:
        means = (
            geometric_mean(at(name, "nll", n, peers=False, method=method) for name in mixtures())
            for n in SHOWN
        )
        rows.append((f"`{method}`", *map(number, means)))
    return table(rows)


def overheads(_: Record) -> str:
    """Wall time of a step beyond the network, median over problems and budgets."""
    times: dict[tuple[str, str], list[float]] = {}
    for m in results().measurements:
        if m.setting.budget is not None and m.setting.samples == SAMPLES and m.steps:
            times.setdefault((m.package, m.setting.method), []).append(_beyond(m))
    rows = [("package", "method", "µs")]
    ordered = sorted(times.items(), key=lambda item: statistics.median(item[1]))
    rows += [
        (package, method, f"{statistics.median(found):.0f}") for (package, method), found in ordered
    ]
    return table(rows)


SAMPLES = 64


def _beyond(m: Measurement) -> float:
    return 1e6 * ((m.seconds or 0.0) - (m.network_seconds or 0.0)) / m.steps


PARTS = {"ratios": ratios, "laws": of_laws, "densities": densities, "overheads": overheads}
