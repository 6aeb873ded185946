"""Measure the law of samples of calibrated stochastic solvers, beside that of others, at few steps.

On mixtures samples at σ = 0.002 are compared with the exact law: energy distance, sliced
Wasserstein-2 distance, mean, covariance and characteristic function. On the digits network they are
compared with accurate samples of the same SDE, by the energy distance alone. The floor is what as many
exact samples have (on the digits: accurate ones, against those compared with). Starts and noise are
others than those of the calibration. DDPM's two variances are on the better of two grids, as peers are.

It takes five minutes on one core that is free; with --quick one:

    .venv/bin/python benchmarks/calibration_noise.py
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import sdekit as sk
from sdekit.bench.problems import SIGMA_MAX, SIGMA_MIN, make_problem
from sdekit.bench.weak import BatchDenoiser, Judge
from sdekit.calibrate_noise import calibrate_noise
from sdekit.calibration.weak import energy_distance
from sdekit.records import provenance, write_json
from sdekit.scale import needs_scale
from sdekit.solvers.registry import Solver

ROOT = Path(__file__).parents[1]
EDM = sk.EDM(SIGMA_MIN, SIGMA_MAX)
START_SEED, NOISE_SEED, OTHER_SEED, PILOT_SEED = 1, 2, 3, 1000
LAWS = ("mixture2d", "mixture8d", "wide16d", "narrow2d")
METRICS = ("energy", "w2", "mean", "cov", "cf")
STEPS, DIGITS_STEPS = (4, 6, 8, 10, 20, 40), (4, 6, 10)
SAMPLES, DIGITS_SAMPLES, DIGITS_PILOTS, ACCURATE_STEPS = 20_000, 2000, 1000, 80
CALIBRATED, DEFAULT = "calibrated", "sea_w_theta (default)"
# Methods and the grids they are tried on: the first name is that of the table.
PEERS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "stochastic_adams2": ("stochastic_adams2", (None,)),
    "sde_dpmpp_2m": ("sde_dpmpp_2m", (None, sk.grids.karras)),
    "DDPM, small variance": ("ddim_eta", (None, sk.grids.karras)),
    "DDPM, large variance": ("ddpm", (sk.grids.log, sk.grids.karras)),
}
Record = dict[str, Any]


class Case:
    """A problem, its starts, and what samples of it are measured by."""

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        problem = make_problem(name, samples=count, seed=START_SEED)
        self.event = tuple(problem.start.shape[1:])
        self.start = problem.start
        law = problem.law
        if isinstance(law, sk.GaussianMixture):
            self.model: Any = BatchDenoiser(law, torch.float64)
            self.judge = Judge(law, SIGMA_MIN)
            self.floor = self.judge.floors(count, METRICS)
            return
        self.model = sk.load_digits_denoiser()
        self.accurate = self.drawn("sea_w_theta", ACCURATE_STEPS, OTHER_SEED)
        self.floor = self.measured(self.drawn("sea_w_theta", ACCURATE_STEPS, OTHER_SEED + 1))

    @property
    def exact(self) -> bool:
        """Whether the law is known."""
        return hasattr(self, "judge")

    def drawn(self, method: str | Solver, steps: int, seed: int, grid: Any = None) -> Tensor:  # noqa: ANN401
        """Draw samples, on another grid than the method's if one is given."""
        scale = self.model.sigma_data
        solver = sk.methods()[method].solver if isinstance(method, str) else method
        grid = grid or solver.grid
        if needs_scale(grid):
            grid = functools.partial(grid, sigma_data=scale)
        sigmas = grid(steps, SIGMA_MAX, SIGMA_MIN, EDM)
        reverse = EDM.reverse(self.model)
        return sk.solve(
            reverse, self.start, method=solver, sigmas=sigmas, sigma_data=scale, seed=seed
        ).x

    def measured(self, x: Tensor) -> dict[str, float]:
        """Measure samples."""
        if self.exact:
            return self.judge.measure(x, METRICS)
        found = energy_distance(x.flatten(1), self.accurate.flatten(1), seed=0)
        return {"energy": math.sqrt(found.square)}

    def cells(self, steps: int) -> list[Record]:
        """Calibrate, and measure all methods."""
        began = time.perf_counter()
        reverse = EDM.reverse(self.model)
        pilots = {} if self.exact else {"samples": DIGITS_PILOTS}
        solver = calibrate_noise(reverse, steps, shape=self.event, seed=PILOT_SEED, **pilots)
        took = time.perf_counter() - began
        own = {"chosen": solver.report.chosen, "seconds": took, "gain": solver.report.gain}
        found: list[Record] = [
            {"method": CALIBRATED, **own, **self.measured(self.drawn(solver, steps, NOISE_SEED))},
            {
                "method": DEFAULT,
                **self.measured(self.drawn("sea_w_theta", steps, NOISE_SEED)),
            },
        ]
        for title, (method, grids) in PEERS.items():
            tried = [self.measured(self.drawn(method, steps, NOISE_SEED, grid)) for grid in grids]
            found.append({"method": title, **min(tried, key=lambda cell: cell["energy"])})
        return [{"problem": self.name, "steps": steps, **cell} for cell in found]


def show(console: Console, cells: list[Record], floors: dict[str, dict[str, float]]) -> None:
    """Print a table of energy distances for each problem."""
    for name, floor in floors.items():
        mine = [cell for cell in cells if cell["problem"] == name]
        steps = sorted({cell["steps"] for cell in mine})
        table = Table(
            "energy distance", *map(str, steps), title=f"{name}, floor {floor['energy']:.4f}"
        )
        for method in dict.fromkeys(cell["method"] for cell in mine):
            row = {cell["steps"]: cell["energy"] for cell in mine if cell["method"] == method}
            table.add_row(method, *(f"{row[n]:.4f}" for n in steps))
        console.print(table)


def main() -> None:
    """Measure all, write the record, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two laws, 4 and 6 steps")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/calibration_noise.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [(name, n) for name in LAWS[: 2 if options.quick else None] for n in STEPS]
    jobs += [] if options.quick else [("digits", n) for n in DIGITS_STEPS]
    jobs = [job for job in jobs if not options.quick or job[1] <= 6]
    cells: list[Record] = []
    cases: dict[str, Case] = {}
    for name, steps in tqdm(jobs, disable=None):
        if name not in cases:
            cases[name] = Case(name, DIGITS_SAMPLES if name == "digits" else SAMPLES)
        cells += cases[name].cells(steps)
    floors = {name: case.floor for name, case in cases.items()}
    sizes = {"samples": SAMPLES, "digits_samples": DIGITS_SAMPLES, "digits_pilots": DIGITS_PILOTS}
    write_json(
        {**provenance(("sdekit", "torch", "numpy")), **sizes, "floors": floors, "cells": cells},
        options.out,
    )
    show(Console(), cells, floors)


if __name__ == "__main__":
    main()
