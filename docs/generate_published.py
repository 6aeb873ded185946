"""Pages of published results, made at build time: every number in them is from a committed record."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import generate_laboratory
from generate import FOLDER, RESULTS, best_peers, digits_bits, number, read, table, traces
from generate import densities as worst_densities
from generate_weak import errors as weak_errors
from generate_weak import verdicts as weak_verdicts

from sdekit.bench.suites.files import read_sdes, read_suite, read_tolerances
from sdekit.bench.suites.ratios import DEFAULT, GOALS, NETWORK, OURS, PEER, SERIES, Ratios
from sdekit.bench.suites.sde_ratios import GOAL_BUDGETS, WeakRatios
from sdekit.bench.suites.tolerance_ratios import Costs

Record = dict[str, Any]
MORE = "more than claimed"
KEPT = ("as claimed", MORE)


@dataclass(frozen=True)
class Page:
    """A page of published results.

    Attributes:
        name: Name of the page, ``docs/published/<name>.md``.
        title: What is compared.
        file: Name of the results file, without its ending.
        command: The command that makes it anew.
        takes: How long that takes on two cores.
        headline: The figure that counts, from the record.
        parts: Tables of the page by name, from the record.
    """

    name: str
    title: str
    file: str
    command: str
    takes: str
    headline: Callable[[Record], str]
    parts: dict[str, Callable[[Record], str]]


# --- what all pages have --------------------------------------------------------------------------


def said(value: Any) -> str:
    """Return a value of a configuration in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(said, value))
    return str(value)


def about(page: Page, record: Record) -> str:
    """What was run, when, by what and on what."""
    hardware, versions = dict(record["hardware"]), record["versions"]
    threads = hardware.get("torch_threads")
    machine = [hardware["cpu"]]
    if "cores" in hardware:
        machine.append(f"{hardware['cores']} cores")
    if threads:
        machine.append(f"{threads} of them used")
    rows = [
        ("", "what was run"),
        ("command", f"`{page.command}`"),
        ("time", page.takes),
        ("results", f"`benchmarks/results/{page.file}.json`"),
        ("date", record["date"][:10]),
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items())),
        ("hardware", ", ".join(machine)),
    ]
    rows += [(key.replace("_", " "), said(v)) for key, v in record["configuration"].items()]
    return table(rows)


def index(pages: Iterable[tuple[Page, Record]]) -> str:
    """One line for each page."""
    rows = [("comparison", "headline", "command", "date")]
    for page, record in pages:
        title = f"[{page.title}](published/{page.name}.md)"
        rows.append((title, page.headline(record), f"`{page.command}`", record["date"][:10]))
    return table(rows)


def several(count: int, one: str) -> str:
    """Return a number of things."""
    return f"{count} {one}" + "s" * (count != 1)


# --- fixed budgets --------------------------------------------------------------------------------


def suite_ratios() -> Ratios:
    """Return the committed comparison at fixed budgets."""
    return Ratios(read_suite(RESULTS / "suite.json"))


def ode_headline(_: Record) -> str:
    """Mean ratios to the best peer, and how many goals are met."""
    ratios = suite_ratios()
    found = (
        f"{number(ratios.at(n, SERIES['default']).mean)} at {n} evaluations" for n in (8, 20, 80)
    )
    goals = [ratios.met(goal, n) for goal in GOALS for n in ratios.budgets]
    known = [met for met in goals if met is not None]
    return (
        f"error of `{DEFAULT}` over the best peer's, geometric mean: {', '.join(found)}; "
        f"{sum(known)} of {len(known)} goals met"
    )


def ode_ratios(_: Record) -> str:
    """Error over that of the best peer, by problem and budget."""
    ratios = suite_ratios()
    rows = [("problem", *map(str, ratios.budgets))]
    lost = counted = 0
    for problem in ratios.problems:
        cells = []
        for n in ratios.budgets:
            ratio = ratios.single(problem, n, SERIES["default"])
            text = number(ratio)
            if ratio is not None:
                counted += 1
                lost += ratio > 1
                text = f"**{text}**" if ratio > 1 else text
            cells.append(text)
        rows.append((problem, *cells))
    means = (number(ratios.at(n, SERIES["default"]).mean) for n in ratios.budgets)
    rows.append((f"geometric mean without {NETWORK}", *means))
    return table(rows) + (
        f"\n\nIn **{lost}** of {counted} cells, in bold, a peer is better. A ratio is left out where "
        "an error is below what the reference resolves."
    )


def ode_peers(_: Record) -> str:
    """The best peer of every problem."""
    return best_peers(suite_ratios())


# --- tolerances -----------------------------------------------------------------------------------


def tolerance_costs() -> Costs:
    """Return the committed comparison of adaptive solvers."""
    return Costs(read_tolerances(RESULTS / "adaptive.json"))


def adaptive_headline(_: Record) -> str:
    """Mean and worst ratio to the best peer."""
    costs = tolerance_costs()
    worst = costs.worst()
    assert worst is not None
    return (
        f"evaluations of `{costs.ours}` over the best peer's for the same error, geometric mean: "
        f"{number(costs.mean())}; at worst {number(worst.ratio)}, on {worst.problem}"
    )


def adaptive_methods(_: Record) -> str:
    """Evaluations of every method over the best peer's, with the number of problems."""
    costs = tolerance_costs()
    rows = [("method", "of", *(f"error {target:.0e}" for target in costs.targets))]
    found = []
    for group, whose in ((OURS, "sdekit"), (PEER, "peer")):
        for name in costs.methods(group):
            ratios = [costs.beside_best_peer(group, name, target) for target in costs.targets]
            cells = (f"{number(mean)} ({count})" if count else "–" for mean, count in ratios)
            known = [mean for mean, _ in ratios if mean is not None]
            shown = f"`{name}`" if group == OURS else name
            found.append((statistics.fmean(known) if known else 1e9, (shown, whose, *cells)))
    return table(rows + [row for _, row in sorted(found)])


# --- laws -----------------------------------------------------------------------------------------


def law_ratios() -> WeakRatios:
    """Return the committed comparison of stochastic methods."""
    return WeakRatios(read_sdes(RESULTS / "sde.json"))


def sde_headline(_: Record) -> str:
    """Mean ratios to the best peer of the same SDE, and to the best of all."""
    ratios = law_ratios()
    found = (
        f"{number(ratios.mean(n, full=True))} and {number(ratios.mean(n))} at {n} evaluations"
        for n in GOAL_BUDGETS
    )
    return (
        "error of the law of the default over that of the best peer of the same SDE, and of the best "
        f"with any noise: {', '.join(found)}"
    )


# --- overhead -------------------------------------------------------------------------------------

# Ours, and a peer of the same formula.
SAME = (
    ("prepare ddim", "diffusers EulerDiscrete"),
    ("prepare dpmpp_2m", "diffusers DPMSolverMultistep dpmsolver++ 2M"),
    ("prepare unipc_bh2_2", "diffusers UniPCMultistep bh2 2 data"),
)
# Steps over the hand-written loop's, at most.
OVERHEAD_GOALS = (
    ("order 1", ("prepare ddim",), 2.0),
    ("multistep of order 3", ("prepare lms3", "prepare dpmpp_3m"), 4.0),
)


def overhead_headline(record: Record) -> str:
    """A step of a peer over ours of the same formula, at the largest state."""
    times = list(record["microseconds_per_step"].values())[-1]
    found = (f"{times[theirs] / times[ours]:.1f} ({theirs})" for ours, theirs in SAME)
    return f"a peer's step over ours, of the same formula, beyond the network: {', '.join(found)}"


def overhead_steps(record: Record) -> str:
    """Time of a step, and as a multiple of the hand-written loop's, and memory."""
    times, states = record["microseconds_per_step"], record["peak_states"]
    rows = [("µs a step (times `lerp`)", *times, "states")]
    for name in next(iter(times.values())):
        cells = (f"{t[name]:.0f} ({t[name] / t['lerp']:.1f})" for t in times.values())
        rows.append((name, *cells, str(states.get(name.removeprefix("prepare "), "–"))))
    return table(rows)


def overhead_goals(record: Record) -> str:
    """Goals, and whether they are met."""
    times = list(record["microseconds_per_step"].values())[-1]
    rows = [("", "goal", "a step", "met")]
    for what, names, bound in OVERHEAD_GOALS:
        found = {name: times[name] / times["lerp"] for name in names}
        text = ", ".join(f"{ratio:.1f} (`{name.split()[1]}`)" for name, ratio in found.items())
        rows.append((what, f"≤ {bound:g}", text, "✓" if max(found.values()) <= bound else "✗"))
    return table(rows)


# --- likelihoods ----------------------------------------------------------------------------------


def likelihood_headline(record: Record) -> str:
    """Worst error by tolerance."""
    found = (f"{e:.1e} for `rtol={float(rtol):.0e}`" for rtol, e in record["worst_error"].items())
    processes = len({row["process"] for row in record["errors"]})
    return (
        f"worst error of a log-density over {processes} processes, in nats per dimension: "
        f"{', '.join(found)}"
    )


# --- shipped samplers -----------------------------------------------------------------------------


def at_ends(verdict: str) -> bool:
    """Whether an order is lost in the first or last steps only."""
    return verdict.endswith(("first steps", "last steps"))


def shipped_headline(record: Record) -> str:
    """How many samplers are what they claim to be."""
    verdicts = [row["verdict"] for row in record["samplers"]]
    kept = sum(verdict in KEPT for verdict in verdicts)
    ends = sum(map(at_ends, verdicts))
    names = "less than claimed", "does not converge", "unstable at these steps", "undecided"
    less, stuck, unstable, unclear = (verdicts.count(v) for v in names)
    return (
        f"of {len(verdicts)} settings {kept} have the order that is claimed, or a higher one; {ends} "
        f"lose it in their first or last steps, {less} everywhere, {stuck} do not converge, "
        f"{unstable} would need smaller steps, and of {unclear} the errors do not show one"
    )


def order_text(found: Record | None) -> str:
    """An order with its standard error; in brackets, the last slope of a curve that shows none."""
    if found is None:
        return ""
    if found["order"] is None:
        return f"({found['late']:.1f})"
    return f"{found['order']:.2f} ± {found['se']:.2f}"


def shipped_rows(record: Record, kind: str, verdicts: Callable[[str], bool]) -> str:
    """Orders of the samplers of a kind with certain verdicts."""
    rows = [r for r in record["samplers"] if r["kind"] == kind and verdicts(r["verdict"])]
    spans = list(dict.fromkeys(span for r in rows for span in r["orders"]))
    why, twins = any("why" in r for r in rows), any("twin" in r for r in rows)
    head = ["sampler", "claimed", *(f"σ from {span}" for span in spans), "verdict"]
    head += ["what is known"] * why + ["the same in sdekit"] * twins
    body = []
    for r in rows:
        orders = (order_text(r["orders"].get(span)) for span in spans)
        cells = [r["name"], f"{r['claimed']:g}", *orders, r["verdict"]]
        cells += [r.get("why", "")] * why
        cells += [f"`{r['twin']}`" if "twin" in r else ""] * twins
        body.append(tuple(cells))
    return table([tuple(head), *body])


def shipped_lost(record: Record) -> str:
    """Samplers of the flow that lose an order everywhere."""
    return shipped_rows(record, "flow", lambda v: v not in KEPT and not at_ends(v))


def shipped_ends(record: Record) -> str:
    """Samplers of the flow that lose an order at their ends."""
    return shipped_rows(record, "flow", at_ends)


def shipped_kept(record: Record) -> str:
    """Samplers of the flow that are what they claim to be."""
    return shipped_rows(record, "flow", lambda v: v in KEPT)


def shipped_adaptive(record: Record) -> str:
    """Adaptive solvers."""
    rows = [("solver", "slope claimed", "slope", "order in evaluations", "verdict")]
    for r in record["samplers"]:
        if r["kind"] == "tolerance":
            fits = (order_text(r["orders"][key]) for key in ("tolerance", "evaluations"))
            rows.append((r["name"], f"{r['claimed']:g}", *fits, r["verdict"]))
    return table(rows)


def shipped_laws(record: Record) -> str:
    """Weak orders."""
    return shipped_rows(record, "law", lambda _: True)


def shipped_paths(record: Record) -> str:
    """Strong orders."""
    return shipped_rows(record, "path", lambda _: True)


def shipped_twins(record: Record) -> str:
    """How far sdekit's methods of the same name are from what ships."""
    found = {r["name"]: r["twin_difference"] for r in record["samplers"] if "twin_difference" in r}
    worst = max(found, key=lambda name: found[name])
    return (
        f"{len(found)} of these samplers have a method in sdekit's registry that gives the same "
        "samples, on the same grid from the same start: the largest RMS difference is "
        f"{found[worst]:.1e}, of {worst}."
    )


PAGES = (
    Page(
        "suite",
        "The default suite",
        "published",
        "make published",
        "less than an hour; it goes on where it was stopped",
        generate_laboratory.headline,
        generate_laboratory.PARTS,
    ),
    Page(
        "ode",
        "Fixed budgets",
        "suite",
        "sdekit bench suite ode",
        "hours; it goes on where it was stopped",
        ode_headline,
        {"ratios": ode_ratios, "peers": ode_peers},
    ),
    Page(
        "adaptive",
        "Tolerances",
        "adaptive",
        "sdekit bench suite adaptive",
        "hours; it goes on where it was stopped",
        adaptive_headline,
        {"methods": adaptive_methods},
    ),
    Page(
        "sde",
        "Laws of stochastic samplers",
        "sde",
        "sdekit bench suite sde",
        "half an hour; it goes on where it was stopped",
        sde_headline,
        {
            "errors": lambda _: weak_errors(law_ratios()),
            "verdicts": lambda _: weak_verdicts(law_ratios()),
        },
    ),
    Page(
        "overhead",
        "Overhead of a step",
        "overhead",
        ".venv/bin/python benchmarks/overhead.py",
        "five minutes",
        overhead_headline,
        {"steps": overhead_steps, "goals": overhead_goals},
    ),
    Page(
        "likelihood",
        "Likelihoods",
        "likelihood",
        ".venv/bin/python benchmarks/likelihood.py",
        "three minutes",
        likelihood_headline,
        {"densities": worst_densities, "traces": traces, "digits": digits_bits},
    ),
    Page(
        "shipped",
        "What shipped samplers really do",
        "shipped",
        ".venv/bin/python benchmarks/shipped.py",
        "nine minutes of one core",
        shipped_headline,
        {
            "lost": shipped_lost,
            "ends": shipped_ends,
            "kept": shipped_kept,
            "adaptive": shipped_adaptive,
            "laws": shipped_laws,
            "paths": shipped_paths,
            "twins": shipped_twins,
        },
    ),
)


def record_of(page: Page) -> Record:
    """Return the committed record of a page."""
    return generate_laboratory.context(read(page.file))


def parts() -> dict[str, str]:
    """Return all parts of the pages by name."""
    records = [(page, record_of(page)) for page in PAGES]
    found = {"index": index(records)}
    for page, record in records:
        headline = page.headline(record)
        found[f"{page.name}_headline"] = f"**{headline[0].upper()}{headline[1:]}.**"
        found[f"{page.name}_about"] = about(page, record)
        for name, make in page.parts.items():
            found[f"{page.name}_{name}"] = make(record)
    return found


def write_all() -> None:
    """Write every part."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in parts().items():
        (FOLDER / f"published_{name}.md").write_text(text + "\n", encoding="utf-8")
