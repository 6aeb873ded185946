"""Parts of the pages that are made at build time, from the registry and the committed results."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import sdekit
from sdekit.bench.peers import PEERS
from sdekit.bench.problems import SIGMA_MAX, SIGMA_MIN
from sdekit.bench.suites import suite
from sdekit.bench.suites.files import read_suite, read_tolerances
from sdekit.bench.suites.ratios import (
    DEFAULT,
    GOALS,
    NETWORK,
    SERIES,
    SHIPPED,
    Ratios,
)
from sdekit.bench.suites.tolerance import targets
from sdekit.bench.suites.tolerance_ratios import DECADES, Costs
from sdekit.grids import GRIDS
from sdekit.inputs import default_method

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
FOLDER = DOCS / "_generated"

# First and last budget of the rows of the table of decisions.
RANGES = ((5, 8), (10, 15), (20, 40), (60, math.inf))
# The correct method, then what ships.
SHIPPED_PAIRS = {
    "DPM-Solver++(3M)": (
        "dpmpp_3m",
        "dpmpp_3m_as_shipped",
        "half of the second derivative is left out",
    ),
    "UniPC-2": (
        "unipc_bh2_2",
        "unipc_bh2_2_as_shipped",
        "`lower_order_final`: the last steps are of lower order",
    ),
    "UniPC-3": ("unipc_bh2_3", "unipc_bh2_3_as_shipped", "`lower_order_final`"),
    "UniPC, varying coefficients": (
        "unipc_bh2_3",
        "unipc_vary_as_shipped",
        "`vary_coeff`: the corrector mixes up its coefficients",
    ),
}


def read(name: str) -> dict[str, Any]:
    """Read a committed record."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def table(rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table; the first row is its head."""
    lines = [rows[0], tuple("---" for _ in rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"


def methods() -> str:
    """Every method, by family."""
    parts = []
    deterministic, stochastic = sdekit.methods().tables()
    for family, members in sdekit.methods().families.items():
        columns = (deterministic if members[0].deterministic else stochastic).columns
        rows = [(f"`{method.name}`", *method.row()[1:]) for method in members]
        parts.append(f"## {family}\n\n{table([columns, *rows])}")
    return "\n\n".join(parts)


def grids() -> str:
    """Every grid, with its options."""
    rows = [("grid", "options", "where the steps end")]
    for name, grid in GRIDS.items():
        options = [
            f"`{parameter.name}={parameter.default!r}`"
            for parameter in inspect.signature(grid).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        first = (inspect.getdoc(grid) or "").splitlines()[0].rstrip(".").replace("``", "`")
        rows.append((f"`{name}`", ", ".join(options) or "–", first))
    return table(rows)


def decisions(ratios: Ratios) -> str:
    """Which method for which budget."""
    default = default_method(flow=True, affine=True, adaptive=False)
    assert default == DEFAULT
    rows = [
        (
            "you have",
            "take",
            "its error / best peer's",
            "on a fitted grid",
            "on the trained network",
            "next best methods, error / the default's",
        )
    ]
    for first, last in RANGES:
        budgets = [n for n in ratios.budgets if first <= n <= last]
        laws = [name for name in ratios.problems if name != NETWORK]
        ranking = [(name, r) for name, r in ratios.ranking(budgets, laws) if name != DEFAULT][:3]
        rows.append(
            (
                f"{first} to {last} evaluations" if last < math.inf else f"{first} or more",
                f"the default, `{default}`",
                span(ratios, budgets, "default"),
                span(ratios, budgets, "default, fitted"),
                span(ratios, budgets, "default", network=True),
                ", ".join(f"`{name}` {number(ratio)}" for name, ratio in ranking) or "–",
            )
        )
    for what, options in (
        ("a tolerance, `rtol=`", {"flow": True, "affine": True, "adaptive": True}),
        ("a reverse SDE", {"flow": False, "affine": True, "adaptive": False}),
        ("a general SDE, its flow", {"flow": True, "affine": False, "adaptive": False}),
        ("a general SDE, its flow, `rtol=`", {"flow": True, "affine": False, "adaptive": True}),
        ("a general SDE, reversed", {"flow": False, "affine": False, "adaptive": False}),
    ):
        rows.append((what, f"the default, `{default_method(**options)}`", *["–"] * 4))
    return table(rows)


def span(ratios: Ratios, budgets: list[int], series: str, *, network: bool = False) -> str:
    """Smallest and largest ratio over budgets."""
    found = [ratios.at(n, SERIES[series]) for n in budgets]
    values = [r.network if network else r.mean for r in found]
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    low, high = number(min(known)), number(max(known))
    return low if low == high else f"{low} … {high}"


def verdicts(ratios: Ratios) -> str:
    """Ratios and goals at every budget."""
    rows = [("NFE", *(f"{goal.name}" for goal in GOALS))]
    for budget in ratios.budgets:
        row = [f"{budget}"]
        for goal in GOALS:
            bound, met = goal.bound(budget), ratios.met(goal, budget)
            text = number(ratios.goal(goal, budget))
            mark = {True: " ✓", False: " ✗", None: ""}[met]
            row.append(text + (f" (≤ {bound:g}{mark})" if bound is not None else ""))
        rows.append(tuple(row))
    return table(rows)


def best_peers(ratios: Ratios) -> str:
    """The best peer of every problem at three budgets."""
    rows = [
        ("problem", "NFE", "best peer, on its grid", "its error", "default", "on a fitted grid")
    ]
    for problem in ratios.problems:
        for budget in (10, 20, 40):
            peer = ratios.best(problem, budget, SHIPPED)
            if peer is None or peer.error is None:
                continue
            ours = [
                ratios.error(problem, budget, SERIES[s]) for s in ("default", "default, fitted")
            ]
            errors = [f"{e:.1e}" if e is not None else "–" for e in (peer.error, *ours)]
            rows.append((problem, f"{budget}", f"{peer.method}, `{peer.grid}`", *errors))
    return table(rows)


def setting(ratios: Ratios) -> str:
    """What was run."""
    record = json.loads((RESULTS / "suite.json").read_text(encoding="utf-8"))
    configuration, versions = record["configuration"], record["versions"]
    laws = len([name for name in ratios.problems if name != NETWORK])
    peers = " and ".join(f"{p} {versions[p]}" for p in ("diffusers", "azula") if p in versions)
    settings = sum(len(peer.grids) for peer in PEERS.values())
    return (
        f"{configuration['samples']} samples on each of {laws} laws of known score"
        f"{' and the trained network' * (NETWORK in ratios.problems)}, from σ = {SIGMA_MAX:g} to "
        f"{SIGMA_MIN:g} in float64, against reference solutions at tolerance 1e-12; "
        f"{peers or 'no peers'}, on {record['hardware']['cpu']}, {record['date'][:10]}. All "
        f"{settings} settings of the peers are run at {' and '.join(map(str, suite.HEATS))} "
        f"evaluations, and at the other budgets those that come within a factor of {suite._CLOSE:g} of "
        "the best at a neighbouring one of these."
    )


def orders() -> str:
    """Measured orders of what papers say and of what ships."""
    record = json.loads((RESULTS / "orders.json").read_text(encoding="utf-8"))
    found = {row["method"]: row for row in record["orders"]}
    rows = [("sampler", "method", "what differs", "declared", "measured", "started by Runge–Kutta")]
    for name, (right, shipped, difference) in SHIPPED_PAIRS.items():
        for method, what in ((right, "–"), (shipped, difference)):
            row = found[method]
            measured = [row[key] for key in ("from_3", "from_2") if row[key] is not None]
            text = " / ".join(f"{value:.2f}" for value in measured)
            started = row.get("started_by_rk4")
            rows.append(
                (
                    name,
                    f"`{method}`",
                    what,
                    f"{row['declared']}, once started {row['interior']}",
                    text,
                    f"{started:.2f}" if started is not None else "–",
                )
            )
    return table(rows)


def costs_table(costs: Costs) -> str:
    """Evaluations for an error, beside the best peer's."""
    rows = [("problem", *(f"error {target:.0e}" for target in costs.targets), "best peers")]
    for problem in costs.problems:
        cells, names = [], []
        for target in costs.targets:
            found = costs.compare(problem, target) if target in targets(problem) else None
            if found is None or found.ours is None or found.peer is None:
                cells.append("–")
                continue
            cells.append(f"{found.ours.nfe:.0f} / {found.peer.nfe:.0f} = **{number(found.ratio)}**")
            names.append(found.peer.method)
        rows.append((problem, *cells, ", ".join(dict.fromkeys(names))))
    means = (f"**{number(costs.mean(target))}**" for target in costs.targets)
    rows.append(("geometric mean", *means, f"over all: **{number(costs.mean())}**"))
    worst = costs.worst()
    assert worst is not None
    return table(rows) + f"\n\nThe largest ratio is {number(worst.ratio)}, on {worst.problem}."


def proportionality(costs: Costs) -> str:
    """Achieved errors by tolerances."""
    rows = [("problem", *(f"{rtol:.0e}" for rtol in DECADES))]
    rows += [(row.problem, *map(number, row.ratios)) for row in costs.proportions()]
    return table(rows)


def densities(record: dict[str, Any]) -> str:
    """Worst errors of log-densities with the exact trace, by law, and the most evaluations."""
    errors = record["errors"]
    tolerances = list(record["worst_error"])
    rows = [("law", *(f"`rtol={float(rtol):.0e}`" for rtol in tolerances))]
    for law in dict.fromkeys(row["law"] for row in errors):
        found = [row for row in errors if row["law"] == law]
        worst = (
            f"{max(row[f'error_{rtol}'] for row in found):.1e} "
            f"({max(row[f'nfe_{rtol}'] for row in found)})"
            for rtol in tolerances
        )
        rows.append((law, *worst))
    rows.append(("all", *(f"**{value:.1e}**" for value in record["worst_error"].values())))
    return table(rows)


def traces(record: dict[str, Any]) -> str:
    """How far estimates are off, and whether they know it."""
    rows = [
        (
            "estimator",
            "mean error, in its standard errors",
            "spread, nats",
            "spread / what they say",
            "within 2 of their standard errors",
        )
    ]
    rows += [
        (
            f"`{row['estimator']}`",
            f"{row['mean_z']:.2g}",
            f"{row['spread_nats']:.2g}",
            f"{row['spread_over_said']:.2f}",
            f"{100 * row['within_2_standard_errors']:.0f} %",
        )
        for row in record["estimators"]
    ]
    return table(rows)


def digits_bits(record: dict[str, Any]) -> str:
    """Bits per dimension of held-out digits."""
    found: dict[float, dict[str, str]] = {}
    for row in record["digits"]:
        error = math.hypot(row["standard_error_of_images"], row["standard_error_of_probes"])
        found.setdefault(row["sigma_min"], {})[row["given"]] = (
            f"{row['bits_per_dim']:.2f} ± {error:.2f}"
        )
    rows = [("lowest σ", "the class is known", "it is not")]
    rows += [(f"{low:g}", cells["class"], cells["no class"]) for low, cells in found.items()]
    references = record["references_of_digits"]
    return table(rows) + (
        f"\n\nA Gaussian fitted to the training images needs {references['gaussian']:.2f} bits, a "
        f"histogram for each pixel {references['independent_pixels']:.2f}."
    )


def noise_costs() -> str:
    """Milliseconds of an increment, by source and shape of the state."""
    cells = json.loads((RESULTS / "noise.json").read_text(encoding="utf-8"))["cells"]
    found: dict[str, dict[str, float]] = {}
    for cell in cells:
        shape = str(tuple(cell["shape"]))
        found.setdefault(cell["source"], {})[shape] = cell["milliseconds"]
    unit = found["torch.randn"]
    rows = [("", *unit)]
    for name, times in found.items():
        texts = (f"{time:.3g} ({number(time / unit[shape])})" for shape, time in times.items())
        rows.append((name, *texts))
    return table(rows)


def rejections() -> str:
    """Relative error of a standard deviation, by solver, dimension and tolerance."""
    cells = json.loads((RESULTS / "rejections.json").read_text(encoding="utf-8"))["cells"]
    rows: dict[tuple[int, float], list[str]] = {}
    names = dict.fromkeys(cell["solver"] for cell in cells)
    for cell in cells:
        error, spread = (100 * cell[key] for key in ("error", "standard_error"))
        text = f"{error:+.1f} ± {spread:.1f} % ({cell['nfe']:.0f})"
        rows.setdefault((cell["dim"], cell["rtol"]), []).append(text)
    body = [(str(dim), f"{rtol:g}", *texts) for (dim, rtol), texts in rows.items()]
    return table([("dimensions", "rtol", *names), *body])


def write_all() -> None:
    """Write every part."""
    ratios = Ratios(read_suite(RESULTS / "suite.json"))
    costs = Costs(read_tolerances(RESULTS / "adaptive.json"))
    FOLDER.mkdir(exist_ok=True)
    for name, text in {
        "methods": methods(),
        "grids": grids(),
        "decisions": decisions(ratios),
        "verdicts": verdicts(ratios),
        "setting": setting(ratios),
        "orders": orders(),
        "adaptive": costs_table(costs),
        "proportionality": proportionality(costs),
        "noise": noise_costs(),
        "rejections": rejections(),
    }.items():
        (FOLDER / f"{name}.md").write_text(text + "\n", encoding="utf-8")
