"""Findings as a table in the terminal, as JSON, and as a page of HTML."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape
from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from ..records import provenance, write_json
from .claim import FACTOR
from .verify import Finding
from .works import WORKS

_COLOURS = {"holds": "green", "misprint": "cyan"}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _finite(value: float | None) -> float | None:
    """Round to 3 digits; JSON knows neither NaN nor infinity."""
    return float(f"{value:.3g}") if value is not None and math.isfinite(value) else None


def _mathematics(text: str) -> Markup:
    """Set subscripts of Unicode mathematics, ``x_t`` and ``x_{t−1}``, as HTML."""
    subscript = re.compile(r"_(?:\{([^}]+)\}|(\w))")
    return Markup(subscript.sub(lambda m: f"<sub>{m[1] or m[2]}</sub>", str(escape(text))))


def summary(findings: Sequence[Finding]) -> str:
    """Say in a line how many claims there were and what became of them."""
    counts = Counter(finding.verdict for finding in findings)
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    seconds = sum(finding.seconds for finding in findings)
    return f"{len(findings)} claims: {said} ({seconds:.0f} s)"


def print_findings(findings: Sequence[Finding], out: Console) -> None:
    """Print a table: claim, source, residual, tolerance, verdict; and what misprints lead to."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    table.add_column("claim", overflow="fold", ratio=3)
    table.add_column("source", overflow="fold", ratio=3)
    table.add_column("residual", justify="right", no_wrap=True)
    table.add_column("tolerance", justify="right", no_wrap=True)
    table.add_column("as printed", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for f in findings:
        verdict = f"[{_COLOURS.get(f.verdict, 'bold red')}]{f.verdict}[/]"
        at = f" [dim]{plain(f.worst)}[/]" if f.worst and not f.good else ""
        table.add_row(
            plain(f.claim.title),
            plain(f.claim.cited),
            _number(f.residual),
            _number(f.claim.tolerance),
            _number(f.printed),
            verdict + at,
        )
    out.print(table)
    misprints = [f for f in findings if f.verdict == "misprint"]
    if misprints:
        out.print("\nMisprints, and what they lead to:")
    for f in misprints:
        out.print(f"  [cyan]{plain(f.claim.cited)}[/]", highlight=False)
        for word, text in (
            ("printed", f.claim.printed),
            ("right", f.claim.statement),
            ("so", f.consequence),
        ):
            out.print(f"    {word:8}{text}", highlight=False, markup=False)
    broken = [f for f in findings if not f.good]
    if broken:
        out.print("\nNot as expected:")
    for f in broken:
        out.print(f"  {f.claim.id}: {f.claim.statement}", highlight=False, markup=False)
        if f.verdict == "error":
            out.print(f"    {f.consequence}", highlight=False, markup=False)
    out.print(f"\n{summary(findings)}", highlight=False)


def record(findings: Sequence[Finding], seed: int) -> dict[str, Any]:
    """Return findings as they are written: with versions and hardware; residuals to 3 digits.

    One that is not finite is ``None``, as is that of a check that broke.
    """
    return {
        **provenance(("sdekit", "torch", "numpy", "scipy")),
        "configuration": {"seed": seed, "factor": FACTOR},
        "findings": [
            {
                "claim": f.claim.id,
                "title": f.claim.title,
                "statement": f.claim.statement,
                "printed": f.claim.printed,
                "sources": dict(f.claim.sources),
                "cited": f.claim.cited,
                "tags": list(f.claim.tags),
                "kind": f.claim.kind,
                "over": f.claim.over,
                "tolerance": f.claim.tolerance,
                "because": f.claim.because,
                "explanation": f.claim.explanation,
                "verdict": f.verdict,
                "residual": _finite(f.residual),
                "residual_as_printed": _finite(f.printed),
                "worst": f.worst,
                "consequence": f.consequence,
                "seconds": round(f.seconds, 3),
            }
            for f in findings
        ],
    }


def write_findings(findings: Sequence[Finding], seed: int, folder: Path) -> tuple[Path, Path]:
    """Write ``verify.json`` and ``verify.html``, a page that needs no network; return their paths."""
    written = record(findings, seed)
    data, page = folder / "verify.json", folder / "verify.html"
    write_json(written, data)
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["mathematics"] = _mathematics
    html = environment.from_string(template).render(
        record=written, summary=summary(findings), number=_number, works=WORKS
    )
    page.write_text(html + "\n", encoding="utf-8")
    return data, page
