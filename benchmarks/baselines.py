"""Measure the baselines of calibration on the digits network: GITS and DPM-Solver-v3.

Root-mean-square errors on 64 samples of seed 0, the statistics and levels from 256 others, of seed
1000; the best peers are those of results/suite.json, on the same samples. A few minutes of one core:

    .venv/bin/python benchmarks/baselines.py
"""

from __future__ import annotations

import functools
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import sdekit as sk
from sdekit.bench.problems import SIGMA_MAX, SIGMA_MIN, make_problem, rms
from sdekit.calibration.gits import gits
from sdekit.calibration.v3 import dpm_solver_v3

BUDGETS = (6, 8, 10, 20)
PILOT = {"samples": 256, "seed": 1000, "shape": (1, 8, 8)}
Grid = Callable[[int], NDArray[np.float64]]


def main() -> None:
    """Print the table, in Markdown."""
    problem = make_problem("digits", samples=64, seed=0)
    flow = sk.EDM(SIGMA_MIN, SIGMA_MAX).probability_flow(problem.denoiser)
    ends = [SIGMA_MAX, SIGMA_MIN]
    reference = sk.solve(flow, problem.start, sigmas=ends, rtol=1e-10).x
    begin = time.perf_counter()
    chosen = {n: gits(flow, n, **PILOT) for n in BUDGETS}
    middle = time.perf_counter()
    v3 = dpm_solver_v3(flow, **PILOT)
    end = time.perf_counter()
    balanced = functools.partial(sk.grids.balanced, sigma_data=problem.denoiser.sigma_data)
    grids: dict[str, Grid] = {
        "GITS": chosen.__getitem__,
        "balanced": lambda n: balanced(n, *ends),
        "karras": lambda n: sk.grids.karras(n, *ends),
        "log": lambda n: sk.grids.log(n, *ends),
        "AYS": lambda n: sk.grids.ays(n, *ends),
    }
    methods: dict[str, str | sk.Solver] = {
        name: name for name in ("euler", "ipndm", "adams2", "bayesian_adams")
    }
    for order in (2, 3):
        for corrector in (False, True):
            scheme = sk.Adams(order, corrector=corrector, tail="lower")
            name = f"DPM-Solver-v3, {order} slopes{', corrector' if corrector else ''}"
            methods[name] = replace(v3, scheme=scheme)
    print(f"| method | grid | {' | '.join(map(str, BUDGETS))} |\n|{'---|' * (len(BUDGETS) + 2)}")
    peers = json.loads((Path(__file__).parent / "results" / "suite.json").read_text())["best_peers"]
    best = {
        p["budget"]: p["error"] for p in peers if p["problem"] == "digits" and p["group"] == "peer"
    }
    print(f"| best peer | its best | {' | '.join(f'{best[n]:.1e}' for n in BUDGETS)} |")
    for name, method in methods.items():
        for title, grid in grids.items():
            errors = [
                rms(sk.solve(flow, problem.start, method=method, sigmas=grid(n)).x - reference)
                for n in BUDGETS
            ]
            print(f"| {name} | {title} | {' | '.join(f'{e:.1e}' for e in errors)} |", flush=True)
    print(f"\nGITS {(middle - begin) / len(BUDGETS):.0f} s each, statistics {end - middle:.0f} s")
    print(
        f"Python {platform.python_version()}, torch {version('torch')}, sdekit {version('sdekit')}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
