"""Results as one page of HTML that needs no network: curves, the best method per budget, orders."""

from __future__ import annotations

import base64
import gzip
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment
from jinja2.utils import htmlsafe_json_dumps

from ..records import flat, plain_text
from .legend import Key, floor_of, label, points_of, ranking
from .measurements import ADAPTIVE, Results
from .metrics import METRICS
from .regression import orders

_BEST = 5  # curves that a page begins with, as its template says
_NOT_MEASURED = -1  # no metric has that value, and null is one that is not finite
_COLUMNS = ("budget", "rtol", "samples", "seed")
_OTHER_COLUMNS = ("nfe", "nfe_max", "steps", "seconds", "network_seconds")


def write_html(results: Results, path: Path) -> None:
    """Write results as an interactive page, in one file that loads nothing else.

    Args:
        results: What was measured.
        path: The file.

    Raises:
        ImportError: If plotly is not installed.
    """
    library, version = _plotly()
    page = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(page).render(
        results=results,
        # What is between script tags is read as it is: "<" in a name is written as an escape of JSON.
        data=htmlsafe_json_dumps(
            page_data(results), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ),
        configuration=[(k, plain_text(v)) for k, v in results.configuration.items()],
        environments={k: flat(v, ": ") for k, v in results.environments.items()},
        titles={name: METRICS[name].title if name in METRICS else name for name in results.metrics},
        packages=Counter(m.package for m in results.measurements),
        library=library,
        version=version,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html + "\n", encoding="utf-8")


def _plotly() -> tuple[str, str]:
    """Return plotly's library for browsers, compressed and as text, and its version."""
    try:
        from plotly.offline import get_plotlyjs, get_plotlyjs_version
    except ImportError:
        raise ImportError(
            "the interactive page is drawn by plotly: pip install 'sdekit[bench]'"
        ) from None
    # Of no date, so that the same results give the same page.
    packed = gzip.compress(get_plotlyjs().encode(), mtime=0)
    return base64.b64encode(packed).decode(), get_plotlyjs_version()


def page_data(results: Results) -> dict[str, Any]:
    """Return what a page knows of results, as plain data.

    Measurements are columns; texts that come again and again are numbers of a list.
    """
    measurements = results.measurements
    problems = list(dict.fromkeys([*results.problems, *(m.setting.problem for m in measurements)]))
    keys = list(dict.fromkeys((m.setting.method, m.setting.grid) for m in measurements))
    packages = {(m.setting.method, m.setting.grid): m.package for m in measurements}
    statuses = list(dict.fromkeys(m.status for m in measurements))
    environments = list(dict.fromkeys(m.environment for m in measurements))
    number = {key: i for i, key in enumerate(keys)}
    ranks = _ranks(results)
    return {
        "problems": [_problem(results, name) for name in problems],
        "metrics": [_metric(name) for name in results.metrics],
        "curves": [
            {
                "method": method,
                "grid": grid,
                "label": label((method, grid)),
                "package": packages[method, grid],
                "adaptive": grid == ADAPTIVE,
            }
            for method, grid in keys
        ],
        "statuses": statuses,
        "environments": [
            f"{key} {_sentence(results.environments.get(key, {}))}".strip() for key in environments
        ],
        "columns": {
            "problem": [problems.index(m.setting.problem) for m in measurements],
            "curve": [number[m.setting.method, m.setting.grid] for m in measurements],
            **{name: [getattr(m.setting, name) for m in measurements] for name in _COLUMNS},
            **{name: [getattr(m, name) for m in measurements] for name in _OTHER_COLUMNS},
            "status": [statuses.index(m.status) for m in measurements],
            "environment": [environments.index(m.environment) for m in measurements],
        },
        "values": {
            name: [m.metrics.get(name, _NOT_MEASURED) for m in measurements]
            for name in results.metrics
        },
        "ranks": {
            metric: {
                str(problems.index(name)): [number[key] for key in order]
                for name, order in of_metric.items()
            }
            for metric, of_metric in ranks.items()
        },
        "prominent": [number[key] for key in _prominent(ranks, keys)],
        "orders": {
            metric: [
                {
                    "problem": problems.index(row.problem),
                    "curve": number[row.method, row.grid],
                    "order": row.estimate.order,
                    "se": row.estimate.order_se,
                    "floor": row.estimate.floor,
                    "floor_se": row.estimate.floor_se,
                    "first": row.estimate.first,
                    "last": row.estimate.last,
                    "verdict": row.estimate.verdict,
                }
                for row in orders(results, metric)
            ]
            for metric in results.metrics
        },
    }


def _problem(results: Results, name: str) -> dict[str, Any]:
    card = results.problems.get(name)
    return {
        "name": name,
        "title": card.title if card else name,
        "floors": dict(card.floors) if card else {},
    }


def _metric(name: str) -> dict[str, str]:
    known = METRICS.get(name)
    return {
        "name": name,
        "title": known.title if known else name,
        "kind": known.kind if known else "",
    }


def _ranks(results: Results) -> dict[str, dict[str, list[Key]]]:
    """Order the curves of each metric and problem, the best first."""
    return {
        metric: {
            problem: ranking([panel], [floor_of(results, problem, metric)])
            for problem, panel in points_of(results, metric).items()
        }
        for metric in results.metrics
    }


def _prominent(ranks: Mapping[str, Mapping[str, list[Key]]], keys: list[Key]) -> list[Key]:
    """Order curves by how often they are among the best: the first have colours of their own."""
    often = Counter(
        key for of_metric in ranks.values() for order in of_metric.values() for key in order[:_BEST]
    )
    return sorted(keys, key=lambda key: -often[key])


def _sentence(environment: Mapping[str, Any]) -> str:
    return ", ".join(f"{k.rpartition(': ')[2]} {v}" for k, v in flat(environment, ": ").items())
