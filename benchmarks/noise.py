"""Measure what noise costs: increments and areas of sdekit's sources, beside torch and torchsde.

    python benchmarks/noise.py [--out benchmarks/results/noise.json]

Each source is made anew and asked for the steps of one solve, 20 on a log grid from σ = 80 to 0.002
on the variance clock, in the order of the solve. The times are processor time for each increment in
milliseconds, the least of several runs in one process, the sources taking turns. It takes a few
minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torchsde
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import sdekit as sk
from sdekit.path import NamedNormals
from sdekit.records import cpu_model, write_json

ROOT = Path(__file__).parents[1]
SEED, STEPS, SIGMA_MAX, SIGMA_MIN = 0, 20, 80.0, 0.002
SHAPES = {(64, 2): 10, (16, 3, 32, 32): 10, (64, 3, 64, 64): 5}  # rounds
STEPS_DOWN = list(itertools.pairwise(sk.grids.log(STEPS, SIGMA_MAX, SIGMA_MIN) ** 2))
Run = Callable[[], object]


def asked(make: Callable[[], sk.NoiseSource], like: Tensor, *, area: bool = False) -> Run:
    """Return what makes a source and asks it for every step."""

    def run() -> None:
        noise = make()
        for high, low in STEPS_DOWN:
            noise.increment(low, high, like)
            if area:
                noise.area(low, high, like)

    return run


def sources(like: Tensor) -> dict[str, Run]:
    """Everything that is timed; ``W`` are increments, ``W, H`` increments and areas."""
    shape, seeds = tuple(like.shape), list(range(len(like)))
    ends = {"t0": STEPS_DOWN[-1][1], "t1": STEPS_DOWN[0][0]}

    def path(seeds: int | list[int], parts: int) -> Callable[[], sk.NoiseSource]:
        return lambda: sk.BrownianPath(seeds, shape, resolution=1 / parts)

    def interval(areas: str = "none") -> sk.NoiseSource:
        motion = torchsde.BrownianInterval(
            **ends, size=shape, dtype=like.dtype, entropy=SEED, levy_area_approximation=areas
        )
        return sk.TorchsdeNoise(motion)

    def tree() -> sk.NoiseSource:
        return sk.TorchsdeNoise(
            torchsde.BrownianTree(ends["t0"], torch.zeros(shape), ends["t1"], entropy=SEED)
        )

    def randn() -> None:
        for _ in STEPS_DOWN:
            torch.randn(shape)

    return {
        "torch.randn": randn,
        "IndependentNoise(seed), W": asked(lambda: sk.IndependentNoise(SEED), like),
        "IndependentNoise(seeds), W": asked(lambda: sk.IndependentNoise(seeds), like),
        **{
            f"BrownianPath({name}, resolution=1/{parts}), {what}": asked(
                path(own, parts), like, area=what == "W, H"
            )
            for name, own, parts, what in (
                ("seed", SEED, 4, "W"),
                ("seeds", seeds, 4, "W"),
                ("seeds", seeds, 8, "W"),
                ("seeds", seeds, 16, "W"),
                ("seeds", seeds, 4, "W, H"),
                ("seeds", seeds, 16, "W, H"),
            )
        },
        "torchsde.BrownianInterval, W": asked(interval, like),
        "torchsde.BrownianInterval, W, H": asked(lambda: interval("space-time"), like, area=True),
        "torchsde.BrownianTree, W": asked(tree, like),
    }


def generators(like: Tensor) -> dict[str, Run]:
    """Ways to draw the numbers of one increment from a seed for each sample."""
    rows, size = len(like), like[0].numel()
    named = NamedNormals(range(rows), rows, size, 1)
    memory, out = torch.empty(named.shape), np.empty((rows, size), np.float32)
    counter = itertools.count()

    def philox() -> None:
        number = next(counter)
        for seed, row in enumerate(out):
            bits = np.random.Philox(key=[seed, 0], counter=[0, number, 0, 0])
            np.random.Generator(bits).standard_normal(out=row, dtype=np.float32)

    def reseeded() -> None:
        number, generator = next(counter), torch.Generator()
        for seed, row in enumerate(torch.from_numpy(out)):
            row.normal_(generator=generator.manual_seed(1000 * number + seed))

    def each(run: Run) -> Run:
        return lambda: [run() for _ in STEPS_DOWN]

    return {
        "numbers: SFC64 at a hash, Box–Muller": each(
            lambda: named.draw(f"{next(counter)}", memory)
        ),
        "numbers: torch.Generator, 32-bit seeds": each(reseeded),
        "numbers: numpy Philox, ziggurat": each(philox),
    }


def measure(found: dict[str, Run], rounds: int) -> dict[str, float]:
    """Least processor time of each, in milliseconds per step."""
    best = dict.fromkeys(found, np.inf)
    for _ in tqdm(range(rounds + 1), leave=False):
        for name, run in found.items():
            begin = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - begin)
    return {name: float(f"{1e3 * least / STEPS:.4g}") for name, least in best.items()}


def cells() -> Iterator[dict[str, object]]:
    """Measure every source for every shape."""
    for shape, rounds in SHAPES.items():
        like = torch.empty(shape)
        for name, value in measure(sources(like) | generators(like), rounds).items():
            yield {"source": name, "shape": list(shape), "milliseconds": value}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/noise.json")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    warnings.filterwarnings("ignore", "Should have t")  # BrownianTree rounds its own ends
    found = list(cells())
    table = Table("", *map(str, SHAPES), box=None, title="ms per increment")
    for name in dict.fromkeys(cell["source"] for cell in found):
        table.add_row(str(name), *(str(c["milliseconds"]) for c in found if c["source"] == name))
    Console(width=110).print(table)
    record = {
        "configuration": {
            "seed": SEED,
            "steps": STEPS,
            "grid": f"log, σ from {SIGMA_MAX:g} to {SIGMA_MIN:g}, on the variance clock, downwards",
            "dtype": "float32",
            "time": "least processor time of several solves, sources taking turns, per increment",
            "BrownianTree": "tol = 1e-6, its default",
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("sdekit", "torch", "torchsde", "numpy")},
        },
        "hardware": {"cpu": cpu_model(), "torch_threads": 1},
        "cells": found,
    }
    write_json(record, out)


if __name__ == "__main__":
    main()
