"""Measure the order of every deterministic method, as started by default and by Runge–Kutta.

The errors are those against the exact flow of a rotated product of mixtures, from σ = 3 and from σ = 2,
where a start of low order is not hidden, to σ = 0.1, on nested grids; the order is their slope, by
the protocol of ``tests/orders.py``. It takes five minutes on one core:

    .venv/bin/python benchmarks/orders.py
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import sdekit as sk
from sdekit.records import cpu_model, write_json
from sdekit.solvers.multistep import Multistep

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from orders import NotResolved, measure_order  # noqa: E402

STARTS, END, SAMPLES, SEED = (3.0, 2.0), 0.1, 32, 1
# Multiples of 12, as groups of 2 and 3 steps are alike then; few for those that soon reach round-off.
STEPS = (12, 24, 36, 48, 72, 96, 144, 192, 288, 384)
FEW_STEPS = (8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96)
FLOOR = {"bayesian_adams": 2e-9}  # where errors level off, if not at round-off


def measured(
    solver: sk.Solver, law: sk.Product, start: float, floor: float = 1e-14
) -> float | None:
    """Return the order, or none if the errors reach round-off before they show one."""
    # In its own time a method is tried where that time is log σ: what it does with time is the same.
    process: sk.AffineSDE = sk.VE(0.01, 50.0)
    scale = float(process.on_host("scale", process.on_host("time", np.array(start))))
    flow = process.probability_flow(law)
    x = law.sample(SAMPLES, start, seed=SEED)
    exact = law.flow(x, start, END)

    def error(n: int) -> float:
        sigmas = sk.grids.log(n, start, END)
        final = sk.solve(flow, x * scale, method=solver, sigmas=sigmas).x
        return float((final - exact).square().mean().sqrt())

    steps = FEW_STEPS if (solver.scheme.order or 0) > 4 else STEPS
    try:
        return round(measure_order(error, steps, floor=floor), 3)
    except NotResolved:
        return None


def started(solver: sk.Solver) -> sk.Solver:
    """Return a multistep solver that makes its first steps by Runge–Kutta."""
    scheme = copy.copy(solver.scheme)
    assert isinstance(scheme, Multistep)
    scheme.start = "rk4"
    return replace(solver, scheme=scheme)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure the orders of all deterministic methods.")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks/results/orders.json",
        help="JSON file to write",
    )
    out = parser.parse_args().out
    torch.set_num_threads(1)
    law = sk.Product.random(3, 2, seed=0)
    flow = sk.EDM().probability_flow(law)
    entries = {name: e for name, e in sk.methods().items() if e.deterministic and e.fixed}
    orders = []
    for name, entry in tqdm(entries.items(), desc="orders"):
        solver = entry.solver
        if solver.coordinates.needs_sigma_data:
            solver = replace(solver, coordinates=solver.coordinates.bind(flow.sde, law.sigma_data))
        scheme = solver.scheme
        record: dict[str, str | float | None] = {
            "method": name,
            "declared": scheme.order,
            "interior": scheme.interior_order,
        }
        floor = FLOOR.get(name, 1e-14)
        record |= {f"from_{start:g}": measured(solver, law, start, floor) for start in STARTS}
        if isinstance(scheme, Multistep) and scheme.slopes > 1:
            record["started_by_rk4"] = measured(started(solver), law, STARTS[0])
        orders.append(record)
        tqdm.write("  ".join(f"{key} {value}" for key, value in record.items()))
    record = {
        "configuration": {
            "law": "Product.random(3, 2, seed=0)",
            "samples": SAMPLES,
            "seed": SEED,
            "sigma": f"from {' or '.join(f'{start:g}' for start in STARTS)} to {END:g}, grid log",
            "steps": STEPS,
            "steps_of_orders_above_4": FEW_STEPS,
            "error": "RMS distance of the final states from the exact flow, float64",
        },
        "versions": {name: version(name) for name in ("sdekit", "torch", "numpy")},
        "hardware": {"cpu": cpu_model()},
        "orders": orders,
    }
    write_json(record, out)


if __name__ == "__main__":
    main()
