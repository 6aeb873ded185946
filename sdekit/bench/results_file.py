"""Results as one file of JSON, to be committed, and read again."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..records import write_json
from .measurements import Measurement, ProblemCard, Results, Setting

_SETTING = tuple(field.name for field in fields(Setting))
_REST = (
    "package",
    "nfe",
    "nfe_max",
    "steps",
    "status",
    "environment",
    "seconds",
    "network_seconds",
)


def write_results(results: Results, path: Path) -> None:
    """Write results as JSON, a line for each measurement."""
    rows = [
        [
            *(getattr(m.setting, name) for name in _SETTING),
            *(getattr(m, name) for name in _REST),
            dict(m.metrics),
        ]
        for m in results.measurements
    ]
    record = {
        "title": results.title,
        "date": results.date,
        "configuration": dict(results.configuration),
        "environments": dict(results.environments),
        "problems": [asdict(card) for card in results.problems.values()],
        "columns": [*_SETTING, *_REST, "metrics"],
        "measurements": rows,
    }
    write_json(record, path)


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote.

    Raises:
        ValueError: If it is something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = [dict(zip(record["columns"], row, strict=True)) for row in record["measurements"]]
        measurements = tuple(_measurement(row) for row in rows)
        cards = [
            ProblemCard(**{**card, "event_shape": tuple(card["event_shape"])})
            for card in record["problems"]
        ]
        return Results(
            title=record["title"],
            configuration=record["configuration"],
            problems={card.name: card for card in cards},
            measurements=measurements,
            environments=record["environments"],
            date=record["date"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no results of sdekit bench: {error}") from None


def _measurement(row: dict[str, Any]) -> Measurement:
    setting = Setting(**{name: row.pop(name) for name in _SETTING})
    return Measurement(setting, **row)
