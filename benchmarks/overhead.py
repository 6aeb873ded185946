"""Measure what a step costs beyond the network: time and memory, with a denoiser that costs nothing.

    .venv/bin/python benchmarks/overhead.py

The times are processor time per step in microseconds, the least of many runs in one process, the
methods taking turns; `lerp` is a hand-written in-place loop, the limit. `solve` prepares each
time, `prepare` once. Memory is the most state-sized tensors alive at once, the start state and what
the denoiser keeps not counted. diffusers, azula and torchdiffeq are run if they are installed.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchdiffeq import odeint
from tqdm import tqdm

import sdekit as sk
from sdekit.bench.peers import PEERS
from sdekit.records import provenance, write_json

ROOT = Path(__file__).parents[1]
SHAPES = {(64, 2): (100, 60), (16, 3, 32, 32): (40, 40), (64, 3, 64, 64): (10, 40)}  # steps, runs
METHODS = ("ddim", "lms2", "lms3", "dpmpp_2m", "dpmpp_3m", "unipc_bh2_2", "bayesian_adams", "heun")
RIVALS = (
    "diffusers EulerDiscrete",
    "diffusers DPMSolverMultistep dpmsolver++ 2M",
    "diffusers DPMSolverMultistep dpmsolver++ 3M",
    "diffusers UniPCMultistep bh2 2 data",
    "azula DDIM",
    "azula vAB 3",
)
Run = Callable[[], object]


def runs(x: Tensor, steps: int) -> dict[str, Run]:
    """Everything that is timed, from the same start, each solving so many steps."""
    still = torch.randn_like(x)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return still

    flow = sk.EDM().probability_flow(denoiser)
    state = x.clone()

    def lerp() -> None:
        for _ in range(steps):
            state.lerp_(still, 0.01)

    found: dict[str, Run] = {"lerp": lerp}
    for name in METHODS:
        options = {"method": name, "steps": steps, "sigma_data": 0.5}
        if name == "dpmpp_2m":
            found[f"solve {name}"] = lambda o=options: sk.solve(flow, x, **o)
        prepared = sk.prepare(flow, x, **options)
        found[f"prepare {name}"] = lambda p=prepared: p(x)
    times = torch.linspace(80.0, 0.002, steps + 1)
    found["torchdiffeq euler"] = lambda: odeint(flow, x, times, method="euler")
    for name in RIVALS:
        if name in PEERS:
            levels = np.geomspace(80.0, 0.002, steps + 1)
            found[name] = lambda p=PEERS[name], s=levels: p.run(denoiser, x, s, steps)
    return found


def measure(found: dict[str, Run], rounds: int, steps: int) -> dict[str, float]:
    """Least processor time of each, in microseconds per step."""
    best = dict.fromkeys(found, np.inf)
    for run in found.values():
        run()
    for _ in tqdm(range(rounds), leave=False):
        for name, run in found.items():
            begin = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - begin)
    return {name: 1e6 * least / steps for name, least in best.items()}


class _Peak(TorchDispatchMode):
    """Counts the storages of a size that are alive after each operation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.most = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        result = func(*args, **(kwargs or {}))
        self.most = max(self.most, alive(self.size))
        return result


def alive(size: int) -> int:
    """Number of distinct storages of so many bytes that some tensor holds."""
    tensors = (o for o in gc.get_objects() if type(o) is Tensor)
    return len({t.data_ptr() for t in tensors if t.untyped_storage().nbytes() == size})


def peak_states(name: str) -> int:
    """Most states alive at once in a solve of a registered method, beyond those before it."""
    x = torch.randn(4, 1000)
    still = torch.randn_like(x)
    flow = sk.EDM().probability_flow(lambda x, sigma: still)
    prepared = sk.prepare(flow, x, method=name, steps=12, sigma_data=0.5)
    before = alive(x.nbytes)
    with torch.no_grad(), _Peak(x.nbytes) as peak:
        prepared(x)
    return peak.most - before


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/overhead.json")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for shape, (steps, rounds) in SHAPES.items():
            x = 80 * torch.randn(shape)
            results[str(shape)] = measure(runs(x, steps), rounds, steps)
    states = {name: peak_states(name) for name in METHODS}
    table = Table("", *results, "states", box=None, title="µs per step (times lerp)")
    for name in next(iter(results.values())):
        row = [f"{r[name]:.1f} ({r[name] / r['lerp']:.1f})" for r in results.values()]
        table.add_row(name, *row, str(states.get(name.removeprefix("prepare "), "")))
    Console(width=110).print(table)
    record = {
        **provenance(("sdekit", "torch", "diffusers", "azula", "torchdiffeq")),
        "configuration": {
            "dtype": "float32",
            "denoiser": "a tensor that is there already: it costs nothing",
            "time": "least processor time of many runs, the methods taking turns",
            "prepare": "the coefficients are ready; solve computes them",
            "states": "most state-sized tensors alive at once",
            "lerp": "a hand-written in-place loop, the limit",
        },
        "microseconds_per_step": results,
        "peak_states": states,
    }
    write_json(record, out)


if __name__ == "__main__":
    main()
