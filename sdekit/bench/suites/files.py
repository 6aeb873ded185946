"""Write results so that they can be judged later: with the configuration, versions and hardware."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...records import provenance, write_json
from ..problems import PROCESS, SIGMA_MAX, SIGMA_MIN
from .ratios import ANY_GRID, FITTED, GOALS, OURS, PEER, Ratios
from .sde import EXACT, HEATS, SHARE, SdeCell, SdeConfig
from .sde_ratios import AT_FLOOR, DEFAULT, GOAL, GOAL_BUDGETS, METRICS, WeakRatios
from .suite import SuiteCell, SuiteConfig
from .tolerance import ToleranceCell, ToleranceConfig, ToleranceStore
from .tolerance_ratios import DECADES, MEAN_GOAL, WORST_GOAL, Cost, Costs

_PACKAGES = ("sdekit", "torch", "numpy", "scipy")


def write_suite(config: SuiteConfig, cells: Sequence[SuiteCell], path: Path) -> None:
    """Write a suite as JSON: all errors of sdekit, and of the peers the best at every budget."""
    ratios = Ratios(cells)
    record: dict[str, Any] = {
        **_context(config, (*_PACKAGES, *(("diffusers", "azula") if ratios.has_peers else ()))),
        "groups": {
            "sdekit": "a method on its default grid",
            "fitted": "a method on grids that equidistribute fitted to other samples",
            "peer": "the best of diffusers and azula on the grids that they ship",
            "peer, our grids": "the best of them on sdekit's grids",
        },
        "goals": [
            {
                "goal": goal.name,
                "budget": budget,
                "bound": goal.bound(budget),
                "ratio": _rounded(ratios.goal(goal, budget)),
                "met": ratios.met(goal, budget),
            }
            for goal in GOALS
            for budget in ratios.budgets
            if goal.bound(budget) is not None
        ],
        "curves": _curves(cells),
        "best_peers": [
            vars(cell) | {"error": _rounded(cell.error)}
            for problem in ratios.problems
            for group in ANY_GRID
            for budget in ratios.budgets
            if (cell := ratios.best(problem, budget, (group,))) is not None
        ],
    }
    write_json(record, path)


def read_suite(path: Path) -> list[SuiteCell]:
    """Read the cells of a suite that `write_suite` wrote, of peers the best ones only."""
    record = json.loads(path.read_text(encoding="utf-8"))
    cells = [
        SuiteCell(curve["problem"], curve["group"], curve["method"], curve["grid"], *values)
        for curve in record["curves"]
        for values in zip(curve["budgets"], curve["nfe"], curve["errors"], strict=True)
    ]
    return cells + [SuiteCell(**cell) for cell in record["best_peers"]]


def write_tolerances(config: ToleranceConfig, store: ToleranceStore, path: Path) -> None:
    """Write the suite of adaptive methods as JSON: all its cells, and what they say."""
    cells = store.of(config.problems)
    costs = Costs(cells)
    means = {f"{target:g}": _rounded(costs.mean(target)) for target in costs.targets}
    worst = costs.worst()
    record = {
        **_context(config, (*_PACKAGES, "torchdiffeq")),
        "groups": {
            OURS: "a method of sdekit, atol = rtol",
            PEER: "a method of torchdiffeq or scipy, or DPM-Solver's pair as published",
        },
        "modes": {
            "alone": "each sample has steps of its own",
            "batch": "all samples are one system, and have the same steps",
        },
        "floors": {problem: _rounded(store.floor(problem)) for problem in costs.problems},
        "ours": costs.ours,
        "mean_ratio": {**means, "all": _rounded(costs.mean()), "goal": MEAN_GOAL},
        "worst_ratio": {
            "ratio": _rounded(worst.ratio if worst else None),
            "problem": worst.problem if worst else None,
            "target": worst.target if worst else None,
            "goal": WORST_GOAL,
        },
        "costs": [
            {
                "problem": row.problem,
                "target": row.target,
                "ours": _cost(row.ours),
                "best_peer": _cost(row.peer),
                "ratio": _rounded(row.ratio),
            }
            for row in costs.comparisons()
        ],
        "error_by_rtol": [
            {
                "problem": row.problem,
                "rtols": DECADES,
                "ratios": [_rounded(ratio) for ratio in row.ratios],
                "within_a_factor_of_10": not any(row.outside),
                "monotone": not any(row.rising),
            }
            for row in costs.proportions()
        ],
        "curves": _tolerance_curves(cells),
    }
    write_json(record, path)


def read_tolerances(path: Path) -> list[ToleranceCell]:
    """Read the cells that `write_tolerances` wrote, without their times."""
    record = json.loads(path.read_text(encoding="utf-8"))
    return [
        ToleranceCell(
            **{key: curve[key] for key in ("problem", "group", "method", "mode")},
            rtol=rtol,
            atol=rtol * curve["atol_by_rtol"],
            nfe=nfe,
            nfe_max=nfe_max,
            error=error,
            seconds=0.0,
            status="success" if error is not None else "failed",
        )
        for curve in record["curves"]
        for rtol, nfe, nfe_max, error in zip(
            *(curve[key] for key in ("rtols", "nfe", "nfe_max", "errors")), strict=True
        )
    ]


def _cost(cost: Cost | None) -> dict[str, Any] | None:
    return None if cost is None else {**vars(cost), "nfe": _rounded(cost.nfe)}


def _tolerance_curves(cells: Sequence[ToleranceCell]) -> list[dict[str, Any]]:
    """Cells of one method, in one setting, on one problem together."""
    found: dict[tuple[str, str, str, str, float], list[ToleranceCell]] = {}
    for cell in cells:
        key = (cell.problem, cell.group, cell.method, cell.mode, cell.factor)
        found.setdefault(key, []).append(cell)
    curves = []
    for key, curve in found.items():
        curve.sort(key=lambda cell: -cell.rtol)
        curves.append(
            {
                **dict(
                    zip(("problem", "group", "method", "mode", "atol_by_rtol"), key, strict=True)
                ),
                "rtols": [_rounded(cell.rtol) for cell in curve],
                "nfe": [_rounded(cell.nfe) for cell in curve],
                "nfe_max": [cell.nfe_max for cell in curve],
                "errors": [_rounded(cell.error) for cell in curve],
            }
        )
    return curves


def write_sdes(config: SdeConfig, cells: Sequence[SdeCell], path: Path) -> None:
    """Write the suite of stochastic methods as JSON: all that is known of sdekit and the best peers."""
    ratios = WeakRatios(cells)
    peers = ("diffusers", "azula", "torchsde") if ratios.has_peers else ()
    record: dict[str, Any] = {
        **_context(
            config,
            (*_PACKAGES, *peers),
            dtype="float32",
            error="of the law of the final x̂: cf, RMS error of the characteristic function at 256 "
            "frequencies; w2, sliced Wasserstein-2 distance over 16 directions by the data's standard "
            "deviation; mean and cov, relative errors of the moments",
        ),
        "groups": {
            OURS: "a method on its default grid",
            PEER: "a sampler of diffusers, azula or torchsde on a grid that it ships",
            EXACT: "as many exact samples; budgets are the numbers of the sets",
        },
        "race": {
            "share_of_samples": f"1/{SHARE}",
            "peers_at": HEATS,
            "peer_settings": len({(c.method, c.grid) for c in cells if c.group == PEER}),
        },
        "default": dict(zip(("method", "eta"), DEFAULT, strict=True)),
        "goal": {"ratio": GOAL, "or_error_by_floor": AT_FLOOR, "budgets": GOAL_BUDGETS},
        "floors": [
            {
                "problem": problem,
                "samples": ratios.samples[problem],
                **{m: _rounded(ratios.floor(problem, m).mean) for m in METRICS},
                "cf_std": _rounded(ratios.floor(problem).std),
            }
            for problem in ratios.problems
        ],
        "means": [
            {"budget": n, **{m: _rounded(ratios.mean(n, metric=m)) for m in METRICS}}
            for n in ratios.budgets
        ],
        "comparisons": [
            {
                "problem": found.problem,
                "budget": n,
                "ours": _rounded(found.ours),
                "best_peer": _rounded(found.best),
                "method": found.peer.method,
                "grid": found.peer.grid,
                "ratio": _rounded(found.ratio),
                "at_floor": found.at_floor,
                "met": found.met if GOAL_BUDGETS[0] <= n <= GOAL_BUDGETS[1] else None,
            }
            for n in ratios.budgets
            for found in ratios.comparisons(n)
        ],
        "curves": _sde_curves(cells),
    }
    write_json(record, path)


def read_sdes(path: Path) -> list[SdeCell]:
    """Read the cells that `write_sdes` wrote."""
    record = json.loads(path.read_text(encoding="utf-8"))
    return [
        SdeCell(*(curve[key] for key in _SDE_KEYS), *values)
        for curve in record["curves"]
        for values in zip(*(curve[key] for key in _SDE_VALUES), strict=True)
    ]


_SDE_KEYS = ("problem", "group", "method", "grid", "eta", "samples")
_SDE_VALUES = ("budget", "nfe", *METRICS)


def _sde_curves(cells: Sequence[SdeCell]) -> list[dict[str, Any]]:
    """Cells of one method, in one setting, on one problem together."""
    found: dict[tuple[Any, ...], list[SdeCell]] = {}
    for cell in cells:
        found.setdefault(tuple(getattr(cell, key) for key in _SDE_KEYS), []).append(cell)
    return [
        dict(zip(_SDE_KEYS, key, strict=True))
        | {name: [_short(getattr(cell, name)) for cell in curve] for name in _SDE_VALUES}
        for key, curve in found.items()
    ]


def _short(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.3g}")


def _curves(cells: Sequence[SuiteCell]) -> list[dict[str, Any]]:
    """Cells of sdekit, those of one method on one problem together."""
    found: dict[tuple[str, ...], list[SuiteCell]] = {}
    for cell in cells:
        if cell.group in (OURS, FITTED):
            found.setdefault((cell.problem, cell.group, cell.method, cell.grid), []).append(cell)
    curves = []
    for key, curve in found.items():
        curve.sort(key=lambda cell: cell.budget)
        curves.append(
            {
                **dict(zip(("problem", "group", "method", "grid"), key, strict=True)),
                "budgets": [cell.budget for cell in curve],
                "nfe": [cell.nfe for cell in curve],
                "errors": [_rounded(cell.error) for cell in curve],
            }
        )
    return curves


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _context(
    config: SuiteConfig | ToleranceConfig | SdeConfig,
    packages: Sequence[str],
    *,
    dtype: str = "float64",
    error: str = "RMS distance of the final x̂ from the reference, over samples and components",
) -> dict[str, Any]:
    """Return what was run, by what, and on what."""
    return {
        **provenance(packages),
        "configuration": {
            **vars(config),
            "process": repr(PROCESS),
            "sigma_max": SIGMA_MAX,
            "sigma_min": SIGMA_MIN,
            "dtype": dtype,
            "error": error,
        },
    }
