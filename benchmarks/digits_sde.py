"""Measure how near the law of stochastic samplers is to that of their SDE, on the digits network.

The law of a network's SDE is not known, but samples of it are: by the default with many steps, three
times as many. The error is the RMS difference of characteristic functions at random frequencies; the
floor is that of samples of the same kind as the reference. With η = 0, the flow, the law is another
one: a network is no exact score.

It takes six minutes on one core:

    .venv/bin/python benchmarks/digits_sde.py
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sdekit as sk
from sdekit.records import cpu_model, write_json

ROOT = Path(__file__).parents[1]
SEED, SAMPLES, BATCH, REFERENCE_STEPS = 0, 4000, 2000, 200
FREQUENCIES, WIDTH = 256, 0.35  # so that the characteristic function is of size 0.37
BUDGETS = (8, 12, 20, 30)
REFERENCE = "sea_w_theta"
METHODS = [
    ("sea_w_theta", 1.0),
    ("shark_theta", 1.0),
    ("stochastic_adams2", 1.0),
    ("stochastic_adams2", 0.5),
    ("sde_dpmpp_2m", 1.0),
    ("sa_solver_3", 1.0),
    ("sa_solver_3", 0.5),
    ("bayesian_adams", 0.0),
]


def characteristic(method: str, eta: float, steps: int, count: int, seed: int) -> Tensor:
    """Draw samples; return the mean of ``exp(i f·x)`` over them, for each frequency."""
    generator = torch.Generator().manual_seed(SEED)
    frequencies = torch.randn(64, FREQUENCIES, generator=generator, dtype=torch.float64) * WIDTH
    total = torch.zeros(FREQUENCIES, dtype=torch.complex128)
    for first in range(0, count, BATCH):
        x = sk.sample(
            sk.EDM(),
            sk.load_digits_denoiser(),
            (BATCH, 1, 8, 8),
            method=method,
            steps=steps,
            eta=eta or None,
            seed=seed + first,
        )
        phase = x.flatten(1).double() @ frequencies
        total += torch.polar(torch.ones_like(phase), phase).sum(0)
    return total / count


def main() -> None:
    """Measure all, write the record, and print it."""
    torch.set_num_threads(1)
    nfe = {name: method.solver.scheme.nfe_per_step for name, method in sk.methods().items()}
    with tqdm(total=4 + len(METHODS) * len(BUDGETS), disable=None) as bar:
        exact = characteristic(REFERENCE, 1.0, REFERENCE_STEPS, 3 * SAMPLES, 10**6)
        bar.update()

        def error(method: str, eta: float, steps: int, seed: int) -> float:
            found = characteristic(method, eta, steps, SAMPLES, seed)
            bar.update()
            return float((found - exact).abs().square().mean().sqrt())

        floors = [error(REFERENCE, 1.0, REFERENCE_STEPS, 2 * 10**6 + k * SAMPLES) for k in range(3)]
        cells: list[dict[str, Any]] = [
            {
                "method": method,
                "eta": eta,
                "nfe": budget,
                "error": error(method, eta, (budget - 1) // nfe[method] + 1, 10**5 * budget),
            }
            for method, eta in METHODS
            for budget in BUDGETS
        ]
    record = {
        "seed": SEED,
        "samples": SAMPLES,
        "frequencies": FREQUENCIES,
        "versions": {package: version(package) for package in ("sdekit", "torch", "numpy")},
        "cpu": cpu_model(),
        "floors": floors,
        "cells": cells,
    }
    write_json(record, ROOT / "benchmarks" / "results" / "digits_sde.json")
    print(floors)
    for cell in cells:
        print(cell)


if __name__ == "__main__":
    main()
