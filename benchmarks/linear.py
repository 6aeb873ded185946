"""Measure what matrix coordinates save on critically damped Langevin: error against NFE.

Data are the mixture GaussianMixture.random(4, 2), velocities start as the process says, and the flow
is solved from the exact law at T = 1 to t = 0.001: in the state itself; in matrix coordinates whose
reference is a point for the data, or their mean and covariance; and by gDDIM (Zhang, Tao & Chen 2022:
Adams–Bashforth in ε, with matrix weights by quadrature), written here for the comparison. Every
error is that of the data's half, RMS over samples and components; grids are uniform in a power of the
time, and the best of them is taken for each cell.

It takes a minute on one core:

    .venv/bin/python benchmarks/linear.py
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdekit as sk
from sdekit.records import provenance, write_json

ROOT = Path(__file__).parents[1]
SEED, SAMPLES, END = 0, 32, 1e-3
BUDGETS = (8, 12, 24, 48, 96)
POWERS = (1.0, 1.5, 2.0, 3.0)  # times are T (k/n)^power
METHODS = ("euler_t", "heun_t", "rk4_t", "adams2_t")
GDDIM = {"gddim1": 1, "gddim2": 2, "gddim3": 3}  # slopes
NAMES = {"state": "x", "point": "u, a point", "moments": "u, moments"}

PROCESS = sk.CriticallyDamped(2, t_min=END)
DATA = PROCESS.extended_law(sk.GaussianMixture.random(4, 2, seed=SEED))
LAW = PROCESS.law(DATA)


def references() -> dict[str, sk.Whitened]:
    """Matrix coordinates by the name of their reference."""
    mean, cov = DATA.moments()
    point = cov.clone()
    point[:2] = point[:, :2] = 0  # the velocities keep what they start with
    return {
        "point": sk.Whitened(PROCESS, mean, point),
        "moments": sk.Whitened(PROCESS, mean, cov),
    }


COORDINATES = references()


def solve(coordinates: str, x: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
    """Solve the flow from ``T``; return the data's half where it ends."""
    if coordinates == "state":
        end = sk.solve(PROCESS.probability_flow(LAW), x, **options).x
    else:
        white = COORDINATES[coordinates]
        flow = white.probability_flow(white.score(LAW))
        end = white.out_of(sk.solve(flow, white.into(x, PROCESS.T), **options).x, END)
    return PROCESS.data_part(end)


def gddim(x: Tensor, times: np.ndarray, slopes: int) -> Tensor:
    """Solve by gDDIM: ``x' = Ψ x + Σ_j (½ ∫ Ψ G Gᵀ S⁻ᵀ ℓ_j dt) ε_j`` with ``ε = −Sᵀ ∇ log p``."""
    frame, known = COORDINATES["point"].frame, []
    nodes, weights = np.polynomial.legendre.leggauss(32)
    for begin, end in itertools.pairwise(times):
        t = torch.tensor(begin)
        known.insert(0, (begin, -LAW(x, t) @ frame(t)[0]))
        del known[slopes:]
        # In log t, in which S is smooth.
        half = 0.5 * np.log(end / begin)
        at = begin * np.exp(half * (1 + nodes))
        psi = np.stack([PROCESS.fundamental(end, one) for one in at])
        gram, S = PROCESS.coefficients(at).gram, frame(torch.as_tensor(at))[0].numpy()
        rates = 0.5 * psi @ gram @ np.linalg.inv(S).swapaxes(1, 2)
        x = x @ PROCESS.fundamental(end, begin).mT
        for j, (own, eps) in enumerate(known):
            others = [other for i, (other, _) in enumerate(known) if i != j]
            basis = np.prod([(at - o) / (own - o) for o in others] or [np.ones_like(at)], axis=0)
            weight = np.einsum("q,qij->ij", half * weights * at * basis, rates)
            x = x + eps @ torch.as_tensor(weight).mT
    return PROCESS.data_part(x)


def rms(difference: Tensor) -> float:
    """Root of the mean square; infinite where it is not a number."""
    value = float(difference.square().mean().sqrt())
    return float(f"{value:.3g}")


def grid(steps: int, power: float) -> np.ndarray:
    """Times from ``T`` to the end."""
    first = END ** (1 / power)
    return np.append(np.linspace(1.0, first, steps + 1)[:-1] ** power, END)


def measure(coordinates: str, method: str, budget: int, x: Tensor, exact: Tensor) -> dict[str, Any]:
    """Return the error on the best grid."""

    def error(power: float) -> float:
        if method in GDDIM:
            return rms(gddim(x, grid(budget, power), GDDIM[method]) - exact)
        steps = budget // sk.methods()[method].solver.scheme.nfe_per_step
        return rms(solve(coordinates, x, method=method, times=grid(steps, power)) - exact)

    errors = {power: error(power) for power in POWERS}
    power = min(errors, key=lambda key: errors[key])
    return {
        "coordinates": coordinates,
        "method": method,
        "nfe": budget,
        "error": errors[power],
        "power": power,
    }


@torch.no_grad()
def main() -> None:
    """Measure all, write the record, and print it as a table."""
    torch.set_num_threads(1)
    x = LAW.sample(SAMPLES, PROCESS.T, seed=SEED)
    tight = {"method": "dopri5_t", "times": [PROCESS.T, END], "stepping": "batch"}
    exact = solve("moments", x, rtol=1e-10, **tight)
    other = solve("state", x, rtol=1e-9, **tight)
    cells = [
        measure(coordinates, method, budget, x, exact)
        for method in METHODS
        for coordinates in NAMES
        for budget in BUDGETS
    ]
    cells += [measure("gddim", m, budget, x, exact) for m in GDDIM for budget in BUDGETS]
    record = {
        "configuration": {
            "process": "CriticallyDamped(2)",
            "data": f"GaussianMixture.random(4, 2, seed={SEED})",
            "samples": SAMPLES,
            "seed": SEED,
            "end": END,
            "grids": "T (k/n)^power, the best of the powers " + ", ".join(map(str, POWERS)),
            "error": "RMS of the data's half",
        },
        **provenance(("sdekit", "torch", "numpy", "scipy")),
        "reference_difference": rms(exact - other),
        "cells": cells,
    }
    write_json(record, ROOT / "benchmarks" / "results" / "linear.json")
    print(f"references differ by {record['reference_difference']:.1e}\n")
    print("| method | coordinates |" + "".join(f" {n} NFE |" for n in BUDGETS))
    print("|---|---|" + "---:|" * len(BUDGETS))
    rows = [(m, c, name) for m in METHODS for c, name in NAMES.items()]
    for method, coordinates, name in [*rows, *((m, "gddim", "gDDIM's") for m in GDDIM)]:
        row = [c for c in cells if (c["method"], c["coordinates"]) == (method, coordinates)]
        print(f"| `{method}` | {name} |" + "".join(f" {c['error']:.1e} |" for c in row))


if __name__ == "__main__":
    main()
