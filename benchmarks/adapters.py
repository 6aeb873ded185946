"""Measure what adapters cost: in order, by rounded levels; in precision, by half networks; in time.

    python benchmarks/adapters.py [--out benchmarks/results/adapters.json]

The data are a mixture of 6 Gaussians in 16 dimensions (seed 0), the networks its exact predictions.

- levels: the error of solves from σ = 80 to 0.02 with a network of 1000 discrete levels (β linear from
  1e-4 to 0.02). It is told the exact level, an interpolated index, or the nearest one; a network that
  is "smooth" makes a noise level out of an index by a cubic spline, not by lines as the adapter does.
- precision: the RMS error of ``D`` from rounding the network's input and output, where states have a
  standard deviation of σ in each component.
- overhead: processor time of one call beyond the network's, in microseconds, least of many.
- batches: the sizes that fit budgets of memory, for the digits network, and what they take.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

import sdekit as sk
from sdekit.adapters.memory import peak_memory
from sdekit.adapters.predictions import PREDICTIONS, coefficients
from sdekit.records import cpu_model

LAW = sk.GaussianMixture.random(components=6, dim=16, seed=0)
ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt()
STEPS = (10, 20, 40, 80, 160, 320)
METHODS = ("heun", "adams2", "adams3", "bayesian_adams")
HALVES = (torch.float32, torch.float16, torch.bfloat16)
LEVELS = (0.01, 0.1, 1.0, 10.0, 80.0)
PROCESSES = (sk.EDM(), sk.VP(), sk.SubVP(), sk.RectifiedFlow())
SHAPES = ((64, 16), (64, 3, 32, 32))
ROUNDS = 300
MEGABYTES = (1, 4, 16, 64)


class DiscreteNoise:
    """The exact noise of a discrete schedule, told a fractional index."""

    def __init__(self, degree: int) -> None:
        self.log_sigma = make_interp_spline(np.arange(1000), SIGMAS.log().numpy(), k=degree)

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Predict the noise in ``x`` of the schedule's scale."""
        sigma = torch.from_numpy(np.exp(self.log_sigma(index.double().numpy())))
        x_hat = x * (1 + sigma[:, None] ** 2).sqrt()
        return (x_hat - LAW.denoise(x_hat, sigma)) / sigma[:, None]


def discrete(rule: str, degree: int) -> sk.NetworkDenoiser:
    """A discrete network under a rule for levels between its own."""
    return sk.NetworkDenoiser(
        DiscreteNoise(degree),
        sk.DiscreteVP(ALPHAS),
        predicts="noise",
        level=sk.levels.Index(SIGMAS, rule),
        label_dtype=torch.float64,
    )


def measure_levels() -> dict[str, dict[str, list[float]]]:
    """Errors by method and rule, for each number of steps."""
    process = sk.EDM(0.02, 80.0)
    x = process.prior_sample((64, 16), seed=0, dtype=torch.float64)
    denoisers = {
        "exact level": LAW,
        "interpolated": discrete("interpolated", 1),
        "interpolated, smooth": discrete("interpolated", 3),
        "nearest": discrete("nearest", 3),
    }

    def solve(denoiser: object, **options: object) -> Tensor:
        return sk.solve(process.probability_flow(denoiser), x, sigma_data=1.0, **options).x

    exact = solve(LAW, method="dopri5_theta", rtol=1e-11)
    return {
        method: {
            name: [
                float((solve(d, method=method, steps=n) - exact).square().mean().sqrt())
                for n in STEPS
            ]
            for name, d in denoisers.items()
        }
        for method in METHODS
    }


def measure_precision() -> dict[str, dict[str, list[float]]]:
    """RMS errors of ``D`` by dtype and kind of prediction, for each level."""
    process, sigma_data = sk.VP(), 1.0
    x0 = LAW.sample(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found: dict[str, dict[str, list[float]]] = {}
    for dtype in HALVES:
        rows = found[str(dtype).removeprefix("torch.")] = {}
        for kind in PREDICTIONS:
            rows[kind] = []
            for level in LEVELS:
                sigma = torch.full((1,), level, dtype=torch.float64)
                scale, state, output = coefficients(kind, process, sigma, sigma_data)

                def network(
                    x: Tensor, label: Tensor, c: tuple[Tensor, ...] = (sigma, scale, state, output)
                ) -> Tensor:
                    x_hat = x.double() / c[1]
                    return ((LAW.denoise(x_hat, c[0][0]) - c[2] * x_hat) / c[3]).to(x.dtype)

                denoiser = sk.NetworkDenoiser(
                    network,
                    process,
                    predicts=kind,
                    level=sk.levels.Sigma(),
                    sigma_data=sigma_data,
                    dtype=dtype,
                    sigma_min=0.01,
                )
                x_hat = x0 + level * eps
                error = denoiser(x_hat, level) - LAW.denoise(x_hat, level)
                rows[kind].append(float(error.square().mean().sqrt()))
    return found


def measure_overhead() -> dict[str, dict[str, float]]:
    """Microseconds of a call beyond the network, by shape and by process, least of many in turns."""
    found: dict[str, dict[str, float]] = {}
    for shape in SHAPES:
        x, sigma = torch.randn(shape), torch.tensor(2.0)
        runs: dict[str, Callable[[], object]] = {"lerp of the state": partial(x.lerp, x, 0.3)}
        for process in PROCESSES:
            for kind in ("noise", "velocity"):
                denoiser = sk.NetworkDenoiser(
                    lambda x, label: x,
                    process,
                    predicts=kind,
                    level=sk.levels.LogSigma(),
                )
                runs[f"{type(process).__name__} {kind}"] = partial(denoiser, x, sigma)
        best = dict.fromkeys(runs, np.inf)
        for _ in range(ROUNDS):
            for name, run in runs.items():
                begin = time.process_time()
                run()
                best[name] = min(best[name], time.process_time() - begin)
        found[str(shape)] = {name: round(1e6 * least, 1) for name, least in best.items()}
    return found


def measure_batches() -> dict[str, list[float]]:
    """Sizes that fit, and what they take in bytes."""
    digits = sk.load_digits_denoiser()
    like = torch.randn(4096, 1, 8, 8)
    sizes = [sk.fit_batch(digits, like, memory=m * 2**20) for m in MEGABYTES]
    with torch.no_grad():
        taken = [peak_memory(lambda n=n: digits(like[:n], 1.0), like.device) for n in sizes]
    return {"megabytes": list(MEGABYTES), "sizes": sizes, "bytes": taken}


@torch.no_grad()
def main() -> None:
    """Measure, print tables in Markdown, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/adapters.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    record = {
        "steps": STEPS,
        "levels": measure_levels(),
        "sigmas": LEVELS,
        "precision": measure_precision(),
        "overhead_us": measure_overhead(),
        "batches": measure_batches(),
        "versions": {n: version(n) for n in ("sdekit", "torch")},
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "threads": 1,
    }
    for title, table in (("levels", record["levels"]), ("precision", record["precision"])):
        heads = STEPS if title == "levels" else LEVELS
        print(f"| | {title} |" + "".join(f" {h:g} |" for h in heads))
        for first, rows in table.items():
            for second, errors in rows.items():
                print(f"| {first} | {second} |" + "".join(f" {e:.1e} |" for e in errors))
    for name, row in record["overhead_us"].items():
        print(f"| {name} |" + "".join(f" {kind} {us:.0f} |" for kind, us in row.items()))
    print(record["batches"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
