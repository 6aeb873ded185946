"""Results as tables for other programs: CSV, Parquet, LaTeX."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..records import flat
from ..shards import write_whole
from .legend import Panel, floor_of, label, metric_title, points_of, problem_title
from .measurements import ADAPTIVE, Results
from .repetitions import Point

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "parquet", "latex")


def export(results: Results, form: str, folder: Path) -> list[Path]:
    """Write results in one of `FORMATS`.

    Args:
        results: What was measured.
        form: ``"csv"``, ``"parquet"``, or ``"latex"``, of which there is a file per metric.
        folder: Where the files go; it is made if need be.

    Returns:
        The files.

    Raises:
        ImportError: If a package of the extra ``bench`` is missing.
        ValueError: If there is no such format.
    """
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; there are {', '.join(FORMATS)}")
    folder.mkdir(parents=True, exist_ok=True)
    if form == "latex":
        fixed = results.select(lambda m: m.setting.grid != ADAPTIVE)
        files = [folder / f"{metric}.tex" for metric in fixed.metrics]
        for metric, path in zip(fixed.metrics, files, strict=True):
            write_latex(fixed, metric, path)
        return files
    path = folder / f"results.{form}"
    (write_csv if form == "csv" else write_parquet)(results, path)
    return [path]


def to_frame(results: Results) -> pd.DataFrame:
    """Return results as a tidy table of pandas: a row per measurement and metric.

    Its columns are those of the setting and the measurement, the metric, its value (missing where a
    solve failed) and floor, and what is known of the environment, with the prefix ``environment.``.

    Raises:
        ImportError: If pandas is missing.
    """
    pandas = _pandas()
    environments = {key: flat(known, ".") for key, known in results.environments.items()}
    # Every environment has every column, so that a table has the same ones whatever was run first.
    columns = sorted({name for known in environments.values() for name in known})
    rows = []
    for m in results.measurements:
        known = environments.get(m.environment, {})
        for metric, value in m.metrics.items():
            rows.append(
                {
                    "problem": m.setting.problem,
                    "method": m.setting.method,
                    "grid": m.setting.grid,
                    "package": m.package,
                    "budget": m.setting.budget,
                    "rtol": m.setting.rtol,
                    "samples": m.setting.samples,
                    "seed": m.setting.seed,
                    "metric": metric,
                    "value": value,
                    "floor": floor_of(results, m.setting.problem, metric),
                    "nfe": m.nfe,
                    "nfe_max": m.nfe_max,
                    "steps": m.steps,
                    "status": m.status,
                    "seconds": m.seconds,
                    "network_seconds": m.network_seconds,
                    "configuration": m.setting.digest,
                    "environment": m.environment or None,
                    **{f"environment.{name}": known.get(name) for name in columns},
                }
            )
    kinds = {**_KINDS, **{f"environment.{name}": "string" for name in columns}}
    return pandas.DataFrame(rows, columns=list(kinds)).astype(kinds)


_KINDS = {
    "problem": "string",
    "method": "string",
    "grid": "string",
    "package": "string",
    "budget": "Int64",
    "rtol": "float64",
    "samples": "int64",
    "seed": "int64",
    "metric": "string",
    "value": "float64",
    "floor": "float64",
    "nfe": "float64",
    "nfe_max": "int64",
    "steps": "int64",
    "status": "string",
    "seconds": "float64",
    "network_seconds": "float64",
    "configuration": "string",
    "environment": "string",
}


def write_csv(results: Results, path: Path) -> None:
    """Write `to_frame` as CSV, with all digits of its numbers.

    Raises:
        ImportError: If pandas is missing.
    """
    write_whole(path, to_frame(results).to_csv(index=False).encode())


def write_parquet(results: Results, path: Path) -> None:
    """Write `to_frame` as Parquet.

    Raises:
        ImportError: If pandas or pyarrow is missing.
    """
    frame = to_frame(results)
    content = io.BytesIO()
    try:
        frame.to_parquet(content, index=False, engine="pyarrow")
    except ImportError:
        raise ImportError(_missing("pyarrow")) from None
    write_whole(path, content.getvalue())


def write_latex(results: Results, metric: str, path: Path) -> None:
    """Write a table of errors by method and budget, of every problem, for LaTeX with booktabs.

    Numbers in bold are the best of their column and problem, those with a star are at the floor, and
    a dash is where nothing was measured. Solves to a tolerance, which have no budget, are left out.

    Args:
        results: What was measured.
        metric: Name of the metric.
        path: File.

    Raises:
        ValueError: If the metric was not measured on a fixed grid.
    """
    panels = {
        problem: {key: points for key, points in panel.items() if key[1] != ADAPTIVE}
        for problem, panel in points_of(results, metric).items()
    }
    panels = {problem: panel for problem, panel in panels.items() if panel}
    known = {p.setting.budget for panel in panels.values() for c in panel.values() for p in c}
    budgets = sorted(n for n in known if n is not None)
    if not budgets:
        raise ValueError(f"metric {metric!r} was not measured on a fixed grid")
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * len(budgets)}}}",
        r"\toprule",
        " & ".join([f"{latex(metric_title(metric))}, NFE", *map(str, budgets)]) + r" \\",
    ]
    for problem, panel in panels.items():
        title = latex(f"{problem}: {problem_title(results, problem)}")
        lines += [
            r"\midrule",
            rf"\multicolumn{{{len(budgets) + 1}}}{{l}}{{\emph{{{title}}}}} \\",
            *_latex_rows(panel, budgets, floor_of(results, problem, metric)),
        ]
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    write_whole(path, "\n".join(lines).encode())


def _latex_rows(panel: Panel, budgets: list[int], floor: float | None) -> list[str]:
    rows = {key: {p.setting.budget: p for p in points} for key, points in panel.items()}
    errors = {n: [row[n].error for row in rows.values() if n in row] for n in budgets}
    best = {n: min((e for e in errors[n] if e is not None), default=None) for n in budgets}
    lines = []
    for key, row in rows.items():
        cells = [_latex_cell(row.get(n), floor, best[n]) for n in budgets]
        lines.append(" & ".join([latex(label(key)), *cells]) + r" \\")
    return lines


def _latex_cell(point: Point | None, floor: float | None, best: float | None) -> str:
    if point is None:
        return "--"
    if point.error is None:
        return "failed"
    mantissa, exponent = f"{point.error:.1e}".split("e")
    number = rf"{mantissa}\cdot10^{{{int(exponent)}}}"
    if floor is not None and point.error <= floor:
        return f"${{{number}}}^*$"
    return rf"$\mathbf{{{number}}}$" if point.error == best else f"${number}$"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "_&%$#{}"},
    # Of the default encoding of fonts, these are other characters.
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
    # After the end of a row they would be arguments of it.
    "[": "{[}",
    "*": "{*}",
    "–": "--",
    "—": "---",
    "’": "'",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "→": r"$\to$",
    "−": "$-$",
    "…": r"\dots{}",
}


def latex(text: str) -> str:
    """Escape text for LaTeX; characters that no font has by default are written by their names."""
    return "".join(_LATEX.get(character) or _latex_letter(character) for character in text)


def _latex_letter(character: str) -> str:
    if character.isascii():
        return character if character.isprintable() else " "
    if character in "æøåßÆØÅ" or ("À" <= character <= "ÿ" and unicodedata.decomposition(character)):
        return character
    name = unicodedata.name(character, f"U+{ord(character):04X}").lower()
    letter = name.removeprefix("greek small letter ").replace("lamda", "lambda")
    known = letter != name and letter.isalpha() and letter != "omicron"
    return f"$\\{letter}$" if known else f"({name})"


def _pandas() -> Any:  # noqa: ANN401
    # Not above: it takes longer to import than most commands run, and is an extra.
    try:
        import pandas
    except ImportError:
        raise ImportError(_missing("pandas")) from None
    return pandas


def _missing(package: str) -> str:
    return f"this needs {package}: pip install 'sdekit[bench]'"
