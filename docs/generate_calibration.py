"""Tables of calibrated solvers, made at build time from the committed results."""

from __future__ import annotations

import json
from typing import Any

from generate import FOLDER, RESULTS, number, table

Record = dict[str, Any]


def against(rows: list[Record]) -> str:
    """Ratios of errors to the best peers', with the goals."""
    keys = ("laws", "goal, laws", "worst law", "laws, pooled", "digits", "digits, conditional")
    head = ("NFE", "laws", "goal", "worst law", "laws, pooled", "digits", "conditional", "goal")
    cells = (
        (str(row["NFE"]), *(number(row[key]) for key in (*keys, "goal, networks"))) for row in rows
    )
    return table([head, *cells])


def each(rows: list[Record]) -> str:
    """Ratios on every problem."""
    names = list(rows[0]["single"])
    found = [("problem", *(str(row["NFE"]) for row in rows))]
    for name in names:
        cells = [row["single"].get(name) for row in rows]
        found.append((name, *("–" if c is None else number(c) for c in cells)))
    return table(found)


def sizes(lines: list[Record]) -> str:
    """Gains by the size of the pilot."""
    head = ("pilot samples", "seed", "calibrated", "default", "ratio", "warned")
    cells = (
        (
            str(line["samples"]),
            str(line["seed"]),
            f"{line['calibrated']:.2e}",
            f"{line['default']:.2e}",
            f"**{number(line['calibrated'] / line['default'])}**",
            "fell back" if line["fell_back"] else "yes" if line["warnings"] else "no",
        )
        for line in sorted(lines, key=lambda r: (int(r["samples"]), int(r["seed"])))
    )
    return table([head, *cells])


def transfer(lines: list[Record]) -> str:
    """Ratios to the default of solvers on classes and scales that they were not fitted to."""
    targets = list(dict.fromkeys((line["class"], line["scale"]) for line in lines))
    found = [("fitted to", *(f"class {c}, w = {w:g}" for c, w in targets))]
    for fitted in dict.fromkeys(line["fitted"] for line in lines):
        own = {(r["class"], r["scale"]): r for r in lines if r["fitted"] == fitted}
        cells = (
            number(own[t]["calibrated"] / own[t]["default"]) if t in own else "–" for t in targets
        )
        found.append((fitted, *cells))
    return table(found)


def costs(lines: list[Record]) -> str:
    """Seconds and evaluations of the calibrations of the digits network."""
    found = [("steps", "seconds", "evaluations per pilot sample", "what was chosen")]
    for line in sorted(lines, key=lambda r: int(r["budget"])):
        if line["problem"] == "digits":
            cells = (f"{line['budget']}", f"{line['seconds']:.0f}", f"{line['nfe']}")
            found.append((*cells, line["chosen"]))
    return table(found)


def quality(cells: list[Record]) -> str:
    """Distances of samples: of the peers, the least in each column."""
    columns = ("rms", "fd_same", "fd_real_excess", "w2_same")
    rows = [("network", "NFE", "method", "RMS", "FD, same starts", "excess FD, real", "W2, same")]
    at: dict[tuple[str, int], dict[str, list[Record]]] = {}
    for cell in cells:
        if cell["budget"] is not None:
            ours = cell["method"] in ("calibrated", "bayesian_adams (default)")
            name = cell["method"] if ours else "best peer"
            place = at.setdefault((cell["network"], cell["budget"]), {})
            place.setdefault(name, []).append(cell)
    for (network, budget), methods in at.items():
        for name, group in methods.items():
            found = []
            for column in columns:
                best = min(group, key=lambda cell, column=column: cell[column])  # type: ignore[misc]
                error = best.get(f"{column}_se")
                found.append(f"{best[column]:.2g}" + (f" ± {error:.1g}" if error else ""))
            rows.append((network, str(budget), name, *found))
    return table(rows)


def write_all() -> None:
    """Write the tables."""
    record = json.loads((RESULTS / "calibration.json").read_text(encoding="utf-8"))
    samples = json.loads((RESULTS / "calibration_quality.json").read_text(encoding="utf-8"))
    for name, text in {
        "quality": quality(samples["cells"]),
        "peers": against(record["against_peers"]),
        "each": each(record["against_peers"]),
        "sizes": sizes(record["sizes"]),
        "transfer": transfer(record["transfer"]),
        "costs": costs(record["calibrations"]),
        "setting": "; ".join(f"{k}: {v}" for k, v in record["configuration"].items())
        + "; "
        + ", ".join(f"{k} {v}" for k, v in record["versions"].items())
        + f"; {record['hardware']['cpu']}, one thread.",
    }.items():
        (FOLDER / f"calibration_{name}.md").write_text(f"{text}\n", encoding="utf-8")
