"""Tables of the suite of stochastic methods, made at build time from the committed results."""

from __future__ import annotations

import json

from generate import FOLDER, RESULTS, number, table

from sdekit.bench.problems import SIGMA_MAX, SIGMA_MIN
from sdekit.bench.suites.files import read_sdes
from sdekit.bench.suites.ratios import OURS, PEER
from sdekit.bench.suites.sde import HEATS, KEPT, KEPT_FULL
from sdekit.bench.suites.sde_ratios import DEFAULT, METRICS, WeakRatios
from sdekit.bench.suites.sde_report import COMPARED, verdict

SHOWN = (6, 8, 10, 15, 20, 50)
PEERS_SHOWN = 12


def errors(ratios: WeakRatios) -> str:
    """Errors of the law of samples, and their ratios to the best peers'."""
    budgets = [n for n in ratios.budgets if n in SHOWN]
    rows = [("problem", "floor", *(f"{n} NFE" for n in budgets), "best peers, any η")]
    for problem in ratios.problems:
        cells, names = [], []
        for n in budgets:
            full, found = (ratios.compare(problem, n, full=full) for full in (True, False))
            if full is None or found is None:
                cells.append("–")
                continue
            mark = " ≈" if found.at_floor else ""
            cells.append(f"{found.ours:.1e}{mark}: {number(full.ratio)}, {number(found.ratio)}")
            names.append(found.peer.method.removeprefix("diffusers "))
        floor = f"{ratios.floor(problem).mean:.1e}"
        rows.append((problem, floor, *cells, ", ".join(dict.fromkeys(names))))
    means = (
        f"**{number(ratios.mean(n, full=True))}**, **{number(ratios.mean(n))}**" for n in budgets
    )
    rows.append(("geometric mean", "", *means, ""))
    return table(rows)


def verdicts(ratios: WeakRatios) -> str:
    """Geometric means in every metric, and whether the goal is met."""
    parts = []
    for name, (method, full) in COMPARED.items():
        rows = [("NFE", *METRICS.values(), "at the floor")]
        for n in ratios.budgets:
            found = ratios.comparisons(n, method, full=full)
            means = (number(ratios.mean(n, method, metric, full=full)) for metric in METRICS)
            rows.append((f"{n}", *means, f"{sum(c.at_floor for c in found)} of {len(found)}"))
        parts.append(f"{name}:\n\n{table(rows)}\n\n{verdict(ratios, method, full=full)}")
    return "\n\n".join(parts)


def ranking(ratios: WeakRatios) -> str:
    """All stochastic methods, and the best peers."""
    rows = [("method", "η", *(f"{n} NFE" for n in HEATS))]
    for group, count in ((OURS, None), (PEER, PEERS_SHOWN)):
        for name, eta, values in ratios.ranking(HEATS, group)[:count]:
            own = "–" if eta is None else f"{eta:g}"
            rows.append((f"`{name}`" if group == OURS else name, own, *map(number, values)))
    return table(rows)


def setting(ratios: WeakRatios) -> str:
    """What was run."""
    record = json.loads((RESULTS / "sde.json").read_text(encoding="utf-8"))
    versions, race = record["versions"], record["race"]
    low, high = min(ratios.samples.values()), max(ratios.samples.values())
    packages = ("diffusers", "azula", "torchsde")
    peers = ", ".join(f"{package} {versions[package]}" for package in packages)
    heats = " and ".join(map(str, HEATS))
    return (
        f"`{DEFAULT[0]}` at η = 1 on its default grid; {high:,} samples in two dimensions and {low:,} "
        f"in more, from σ = {SIGMA_MAX:g} to {SIGMA_MIN:g} in float32; {peers}, on "
        f"{record['hardware']['cpu']}, {record['date'][:10]}. On each problem {race['peer_settings']} "
        "settings of the peers, on the grids that their packages ship, race on a quarter of the "
        f"samples at {heats} evaluations; the best {KEPT}, and the best {KEPT_FULL} of η = 1, at "
        "either are run on all samples at all budgets."
    )


def digits(_: WeakRatios) -> str:
    """Errors on the digits network, as multiples of the floor."""
    record = json.loads((RESULTS / "digits_sde.json").read_text(encoding="utf-8"))
    floor = sum(record["floors"]) / len(record["floors"])
    found: dict[tuple[str, float], dict[int, float]] = {}
    for cell in record["cells"]:
        found.setdefault((cell["method"], cell["eta"]), {})[cell["nfe"]] = cell["error"] / floor
    budgets = next(iter(found.values()))
    rows = [("method", "η", *(f"{n} NFE" for n in budgets))]
    for (name, eta), errors in found.items():
        rows.append((f"`{name}`", f"{eta:g}", *map(number, errors.values())))
    return table(rows)


def write_all() -> None:
    """Write every part."""
    ratios = WeakRatios(read_sdes(RESULTS / "sde.json"))
    FOLDER.mkdir(exist_ok=True)
    for part in (ranking, setting, digits):
        path = FOLDER / f"weak_{part.__name__}.md"
        path.write_text(part(ratios) + "\n", encoding="utf-8")
