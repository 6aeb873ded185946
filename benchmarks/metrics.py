"""Measure the metrics: their floors, what they say of the same solves, and what they cost.

1. Floors of the metrics of laws for so many exact samples, and the RMS value of other sets over them.
2. All metrics of the same method on the same grids: errors along paths and of densities on 64 samples,
   of laws on many.
3. Seconds to judge these many by each metric of laws.

It takes a minute on one core:

    .venv/bin/python benchmarks/metrics.py
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import sdekit as sk
from sdekit.bench.densities import likelihood_error
from sdekit.bench.metrics import LAW, METRICS, PathJudge, dense_reference, unscaled
from sdekit.bench.problems import (
    SIGMA_MAX,
    SIGMA_MIN,
    SUITES,
    Problem,
    make_problem,
    solve_reference,
)
from sdekit.bench.weak import Judge
from sdekit.records import provenance, write_json
from sdekit.scale import fit_solver

ROOT = Path(__file__).parents[1]
SAMPLES, LAW_SAMPLES, SETS, SEED = 64, 4096, 20, 0
PROBLEM = "mixture16d"
METHODS, STEPS = ("dpmpp_2m", "adams3", "bayesian_adams"), (10, 20, 40, 80)
OF_LAWS = tuple(name for name, metric in METRICS.items() if metric.kind == LAW)


def floors() -> list[dict[str, Any]]:
    """Floors on the mixtures of the benchmark, and how exact samples compare."""
    records = []
    for i, name in enumerate(tqdm(SUITES["sde"], desc="floors")):
        law = make_problem(name, samples=1).law
        assert isinstance(law, sk.GaussianMixture)
        judge = Judge(law, SIGMA_MIN)
        found = judge.floors(LAW_SAMPLES, OF_LAWS)
        seeds = range(SEED + i * SETS, SEED + (i + 1) * SETS)
        sets = [law.sample(LAW_SAMPLES, SIGMA_MIN, seed=seed) for seed in seeds]
        drawn = [judge.measure(x, OF_LAWS) for x in sets]
        record: dict[str, Any] = {"problem": name}
        for metric, floor in found.items():
            square = sum(values[metric] ** 2 for values in drawn) / SETS
            record[metric] = rounded(floor)
            record[f"{metric}_over_floor"] = rounded(math.sqrt(square) / floor)
        records.append(record)
    return records


def errors() -> list[dict[str, Any]]:
    """All metrics of the same solves."""
    few = make_problem(PROBLEM, samples=SAMPLES, seed=SEED)
    many = make_problem(PROBLEM, samples=LAW_SAMPLES, seed=SEED)
    law = few.law
    assert isinstance(law, sk.GaussianMixture)
    along, judge = dense_reference(few, law.sigma_data), Judge(law, SIGMA_MIN)
    final = solve_reference(few).x
    path = PathJudge(final, states=along.states, sigma_data=law.sigma_data)
    records = []
    for method in METHODS:
        for steps in tqdm(STEPS, desc=method):
            grid = grid_of(few, method, steps)
            x, solution = few.solve(method, sigmas=grid, trajectory=True)
            assert solution.trajectory is not None
            values = path(x, solution.grid, unscaled(few, solution.grid, solution.trajectory))
            values["nll"], _ = likelihood_error(few, method, grid)
            values |= judge.measure(many.solve(method, sigmas=grid)[0], OF_LAWS)
            record = {name: rounded(values[name]) for name in METRICS}
            records.append({"method": method, "nfe": solution.nfe, **record})
    return records


def grid_of(problem: Problem, method: str, steps: int) -> Any:  # noqa: ANN401
    """The method's own grid."""
    flow = problem.process.probability_flow(problem.denoiser)
    solver, _ = fit_solver(sk.methods()[method].solver, flow, problem.start, None, gridded=True)
    return solver.grid(steps, SIGMA_MAX, SIGMA_MIN, problem.process)


def seconds() -> dict[str, float]:
    """Wall time to judge by each metric, the quantiles of the exact law known."""
    law = make_problem(PROBLEM, samples=1).law
    assert isinstance(law, sk.GaussianMixture)
    judge, x = Judge(law, SIGMA_MIN), law.sample(LAW_SAMPLES, SIGMA_MIN, seed=SEED)
    judge.measure(x, OF_LAWS)
    found = {}
    for name in OF_LAWS:
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            judge.measure(x, [name])
            times.append(time.perf_counter() - begin)
        found[name] = rounded(min(times))
    return found


def rounded(value: float) -> float:
    """Two digits are enough to judge by."""
    return float(f"{value:.2g}")


def table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """Return some columns of records as a Markdown table."""
    lines = [columns, tuple("---" for _ in columns)]
    lines += [tuple(text(row[column]) for column in columns) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text(value: float | str) -> str:
    """Write an entry of a table."""
    return f"`{value}`" if isinstance(value, str) else f"{value:.2g}"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure the metrics.")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks/results/metrics.json",
        help="JSON file to write",
    )
    out = parser.parse_args().out
    torch.set_num_threads(1)
    record = {
        "configuration": {
            "seed": SEED,
            "samples": SAMPLES,
            "law_samples": LAW_SAMPLES,
            "sets": SETS,
            "problem": PROBLEM,
            "grid": "the method's own",
        },
        **provenance(("sdekit", "torch", "numpy")),
        "floors": floors(),
        "errors": errors(),
        "seconds": seconds(),
    }
    print(table(record["floors"], ("problem", *OF_LAWS)))
    print(table(record["errors"], ("method", "nfe", *METRICS)))
    print(record["seconds"])
    write_json(record, out)


if __name__ == "__main__":
    main()
