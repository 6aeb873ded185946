"""Tables of claims, made at build time from the committed results of ``sdekit verify``."""

from __future__ import annotations

from collections import Counter
from typing import Any

from generate import FOLDER, read, table

Record = dict[str, Any]


def _power(value: float | None) -> str:
    """Write a residual in two digits."""
    if value is None:
        return "not finite"
    if value == 0:
        return "0"
    digits, exponent = f"{value:.1e}".split("e")
    return f"${digits}\\cdot 10^{{{int(exponent)}}}$"


def claims(record: Record) -> str:
    """Return the claims that hold, by their first tag: statement, source, residual, tolerance."""
    topics: dict[str, list[tuple[str, ...]]] = {}
    for f in record["findings"]:
        if f["verdict"] != "holds":
            continue
        rows = topics.setdefault(
            f["tags"][0], [("claim", "statement", "source", "residual", "tolerance")]
        )
        rows.append(
            (
                f["title"],
                f"`{f['statement']}`",
                f["cited"],
                _power(f["residual"]),
                _power(f["tolerance"]),
            )
        )
    return "\n\n".join(f"### {topic}\n\n{table(rows)}" for topic, rows in sorted(topics.items()))


def misprints(record: Record) -> str:
    """Return the misprints: where, what is printed, what is right, both residuals, the consequence."""
    parts = []
    for f in record["findings"]:
        if f["verdict"] != "misprint":
            continue
        parts.append(
            f"### {f['title']}\n\n{f['cited']}:\n\n"
            f"- printed: `{f['printed']}` (residual {_power(f['residual_as_printed'])})\n"
            f"- right: `{f['statement']}` (residual {_power(f['residual'])})\n"
            f"- consequence: {f['consequence']}\n\n"
            f"{f['explanation']}\n"
        )
    return "\n".join(parts)


def caption(record: Record) -> str:
    """Say what was run and what came of it."""
    counts = Counter(f["verdict"] for f in record["findings"])
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    seconds = sum(f["seconds"] for f in record["findings"])
    versions = record["versions"]
    return (
        f"{len(record['findings'])} claims: {said}; {seconds:.0f} s on one core of "
        f"{record['hardware']['cpu']} (`sdekit verify`, seed {record['configuration']['seed']}; "
        f"torch {versions['torch']}, numpy {versions['numpy']}, scipy {versions['scipy']})."
    )


def mutations() -> str:
    """Say how many damages of the package the claims notice, and which they do not."""
    record = read("mutations")
    lines = [
        f"**{record['noticed']} of {record['tried']}** mutations are noticed, of "
        f"{record['configuration']['possible']} possible ones (seed {record['configuration']['seed']})."
    ]
    missed = [m for m in record["mutations"] if m["noticed_by"] is None]
    if missed:
        rows: list[tuple[str, ...]] = [("not noticed in", "where", "what")]
        rows += [(f"`{m['file']}`", f"`{m['where']}`", f"`{m['what']}`") for m in missed]
        lines.append(table(rows))
    return "\n\n".join(lines)


def write_all() -> None:
    """Write the parts of the page."""
    FOLDER.mkdir(exist_ok=True)
    record = read("verify")
    parts = {
        "claims": claims(record),
        "misprints": misprints(record),
        "claims_caption": caption(record),
        "mutations": mutations(),
    }
    for name, text in parts.items():
        (FOLDER / f"{name}.md").write_text(text + "\n", encoding="utf-8")
