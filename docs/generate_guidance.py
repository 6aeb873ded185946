"""Tables of guided solves and of pipelines, made at build time from the committed results."""

from __future__ import annotations

from typing import Any

from generate import FOLDER, number, read, table

Record = dict[str, Any]
FIELDS = {
    "exact": "exact field",
    "PiGDM": "`PiGDM`",
    "reconstruction": "`PiGDM(sigma_data=inf)`",
    "DPS": "`DPS`, $\\zeta=1$, as a likelihood",
    "replacement": "`Replaced`",
}
NETWORKS = {
    "mixture": "exact mixture of Gaussians, 16-D",
    "digits": "digits network",
    "unet": "`UNet2DModel`, random weights",
}


def _name(method: str) -> str:
    name, _, rest = method.partition(", noise ")
    return f"`{name}`, `noise={rest}`" if rest else f"`{name}`"


def solves() -> str:
    """Errors of guided solves on a mixture, by scale, method and steps."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in read("guidance")["solves"]:
        key = f"{cell['scale']:g}", _name(cell["method"])
        found.setdefault(key, []).append(number(cell["error"]))
    return table([("$w$", "method", "5 steps", "10", "20", "40", "80"), *_rows(found)])


def digits_solves() -> str:
    """The same on the digits network, with the NFE."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in read("guidance")["digits_solves"]:
        where = "" if cell["interval"] == "all" else ", interval"
        key = f"{cell['scale']:g}{where}", _name(cell["method"])
        found.setdefault(key, []).append(f"{number(cell['error'])} ({cell['nfe']})")
    return table([("$w$", "method", "10 steps", "20", "40"), *_rows(found)])


def laws() -> str:
    """Laws of samples at w = 1."""
    head = ("class", "steps", "sliced $W_2$", "floor", "error of the mean", "its floor")
    rows = [(*head, "classified as the class", "of exact draws")]
    for cell in read("guidance")["laws"]:
        if cell["wrapper"] == "classifier_free" and cell["steps"] in (10, 20):
            errors = (cell[k] for k in ("sliced_w2", "floor", "mean_error", "mean_floor"))
            shares = (f"{cell[k]:.4f}" for k in ("classified", "classified_exact"))
            whole = (str(cell["class"]), str(cell["steps"]))
            rows.append((*whole, *map(number, errors), *shares))
    return table(rows)


def inverse() -> str:
    """Laws of samples of an inverse problem, by method and NFE."""
    cells: dict[str, dict[int | str, Record]] = {}
    for cell in read("guidance")["inverse"]:
        cells.setdefault(cell["method"], {})[cell["nfe"]] = cell
    head = ("method", "$W_2$, NFE 10", "20", "40", "80", "160", "limit", "mean off by", "std ratio")
    rows = [(*head, "solver's error at 20")]
    for method, row in cells.items():
        step = method.removeprefix("DPS step ")
        name = FIELDS.get(method, f"`DPS`, $\\zeta={step}$ a step")
        distances = (number(row[n]["w2"]) for n in (10, 20, 40, 80, 160))
        last = row.get("limit", row[160])
        limit = number(last["w2"]) if "limit" in row else "none"
        solver = number(row[20]["solver_error"]) if "limit" in row else ""
        shape = number(last["mean_error"]), f"{last['std_ratio']:.2f}"
        rows.append((name, *distances, limit, *shape, solver))
    return table(rows)


def _rows(found: dict[tuple[str, str], list[str]]) -> list[tuple[str, ...]]:
    return [(*key, *cells) for key, cells in found.items()]


def pipeline() -> str:
    """Errors of pictures from a pipeline; the best of a column is bold."""
    record = read("pipeline")
    rows = [("network", "scheduler", *(f"{n}" for n in record["nfe"]))]
    for problem, cells in record["problems"].items():
        errors = {name: entry["best"] for name, entry in cells["errors"].items()}
        best = [min(column) for column in zip(*errors.values(), strict=True)]
        for i, (name, row) in enumerate(errors.items()):
            texts = (
                f"**{number(e)}**" if e == low else number(e)
                for e, low in zip(row, best, strict=True)
            )
            rows.append((NETWORKS[problem] if i == 0 else "", name, *texts))
    return table(rows)


def write_all() -> None:
    """Write every part."""
    FOLDER.mkdir(exist_ok=True)
    for part in (solves, digits_solves, laws, inverse, pipeline):
        (FOLDER / f"guidance_{part.__name__}.md").write_text(part() + "\n", encoding="utf-8")
