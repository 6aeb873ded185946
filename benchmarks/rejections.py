"""Measure what rejected steps do to the law of an adaptive SDE solver: drawn afresh, or bridged.

Data are N(0, 1/4) in d dimensions, solved from σ = 80 to 0.01: the standard deviation of the results,
relative to the exact one. "Gotta go fast" draws the noise of a rejected step afresh; the same pair of
schemes with its rejections bridged does not; shark_theta is what sdekit takes by default. The scale
of the data is given wrong by 60 %, so that nothing is exact for free.

It takes a minute on one core:

    .venv/bin/python benchmarks/rejections.py
"""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import sdekit as sk
from sdekit.records import cpu_model, write_json
from sdekit.solvers.stochastic_rk import HEUN

ROOT = Path(__file__).parents[1]
SEED, NUMBERS, HIGH, LOW, VARIANCE = 0, 20_000, 80.0, 0.01, 0.25
DIMENSIONS, TOLERANCES = (1, 4, 64), (5e-2, 1e-2)
SOLVERS = {
    "gotta_go_fast": sk.methods()["gotta_go_fast"].solver,
    "the same, bridged": sk.Solver(sk.StochasticRK(HEUN), sk.Noise(), sk.grids.log),
    "shark_theta": sk.methods()["shark_theta"].solver,
}


def measure(name: str, dim: int, rtol: float) -> dict[str, Any]:
    """Solve once; return the relative error of the standard deviation, with its standard error."""
    count = max(NUMBERS // dim, 500)
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn((count, dim), generator=generator, dtype=torch.float64) * math.hypot(HIGH, 0.5)
    law = sk.Gaussian(torch.zeros(dim), VARIANCE * torch.eye(dim))
    solved = sk.solve(
        sk.EDM().reverse(law),
        x,
        method=SOLVERS[name],
        sigmas=[HIGH, LOW],
        rtol=rtol,
        seed=SEED,
        sigma_data=0.8,
    )
    exact = math.sqrt(VARIANCE + LOW**2)
    return {
        "solver": name,
        "dim": dim,
        "rtol": rtol,
        "error": float(solved.x.square().mean().sqrt()) / exact - 1,
        "standard_error": 1 / math.sqrt(2 * count * dim),
        "nfe": float(solved.stats.nfe_per_sample.mean()),
        "rejected": solved.stats.rejected / count,
    }


def main() -> None:
    """Measure all, write the record, and print it."""
    torch.set_num_threads(1)
    cases = [(name, dim, rtol) for name in SOLVERS for dim in DIMENSIONS for rtol in TOLERANCES]
    record = {
        "seed": SEED,
        "numbers": NUMBERS,
        "versions": {package: version(package) for package in ("sdekit", "torch", "numpy")},
        "cpu": cpu_model(),
        "cells": [measure(*case) for case in tqdm(cases, disable=None)],
    }
    write_json(record, ROOT / "benchmarks" / "results" / "rejections.json")
    for cell in record["cells"]:
        print(cell)


if __name__ == "__main__":
    main()
