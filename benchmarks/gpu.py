"""What solves do on a CUDA device: results, synchronisations, captured graphs and times.

    python benchmarks/gpu.py [--out benchmarks/results/gpu.json]

Every method that takes a fixed grid solves for a mixture of Gaussians on the CPU and on the device, in
float32, with the same noise. Operations that make the host wait for the device are counted for two
numbers of steps: a loop has none if the counts are equal; a prepared solve reads once, in the end, to
see that the result is finite. Prepared solves are captured in CUDA graphs and replayed. Times are per
step, beyond the network, for a batch of 256 × 3 × 32 × 32, the least of many runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import sdekit as sk

FLOWS = tuple(n for n, m in sk.methods().items() if m.deterministic and m.fixed)
SDES = tuple(n for n, m in sk.methods().items() if not m.deterministic and m.fixed)
TIMED = ("ddim", "lms3", "dpmpp_2m", "dpmpp_3m", "unipc_bh2_2", "adams3", "bayesian_adams", "heun")
STEPS = 16
SAMPLES = 32
SHAPE = (256, 3, 32, 32)
VP = sk.VP()  # whose own time suits the methods that step in it
LAW = sk.GaussianMixture.random(
    components=6, dim=16, seed=0, spread=0.1
)  # one mode: round-off stays small
Device = torch.device | str


def problem(method: str) -> sk.ProbabilityFlow | sk.ReverseSDE:
    """The flow of a mixture, or its reverse SDE if the method is one for that."""
    flow = sk.methods()[method].solver.scheme.solves == "flow"
    return VP.probability_flow(LAW) if flow else VP.reverse(LAW, 1.0)


def start(device: Device) -> Tensor:
    """The same start on any device."""
    return VP.prior_sample((SAMPLES, LAW.dim), seed=0).to(device)


@torch.no_grad()
def solve(method: str, device: Device, steps: int = STEPS) -> Tensor:
    """Final states; the noise is drawn on the CPU, and so is the same everywhere."""
    noise = sk.IndependentNoise(torch.Generator().manual_seed(1))
    given = {} if sk.methods()[method].deterministic else {"noise": noise}
    x = start(device)
    return sk.solve(problem(method), x, method=method, steps=steps, **given).x


def difference(method: str, device: Device) -> float:
    """Largest difference from the CPU's result, over the RMS of that if it is above 1."""
    expected = solve(method, "cpu").double()
    found = solve(method, device).double().cpu()
    return float((found - expected).abs().max() / max(1.0, float(expected.square().mean().sqrt())))


def waits(run: Callable[[], object]) -> int:
    """Number of operations of a run that make the host wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in seen)


@torch.no_grad()
def waits_of(method: str, device: Device) -> tuple[int, int]:
    """Waits of a solve of `STEPS` steps and of twice as many; of flows, once prepared."""
    counts = []
    for steps in (STEPS, 2 * STEPS):
        asked, x = problem(method), start(device)
        given = {"method": method, "steps": steps}
        if sk.methods()[method].deterministic:
            prepared = sk.prepare(asked, x, **given)
            prepared(x)
            counts.append(waits(lambda p=prepared, x=x: p(x)))
        else:
            sk.solve(asked, x, seed=0, **given)
            counts.append(waits(lambda a=asked, x=x, o=given: sk.solve(a, x, seed=0, **o)))
    return counts[0], counts[1]


def capture(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """Capture a function of a state in a CUDA graph; the result overwrites the one before."""
    state = x.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up outside of the graph
        for _ in range(3):
            run(state)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(state)

    def replay(x: Tensor) -> Tensor:
        state.copy_(x)
        graph.replay()
        return out

    return replay


@torch.no_grad()
def captured_difference(method: str, device: Device) -> float:
    """Largest difference of a replayed graph from the solve that was captured, for another state."""
    x = start(device)
    prepared = sk.prepare(problem(method), x, method=method, steps=STEPS)
    replay = capture(prepared, x)
    return float((replay(0.5 * x) - prepared(0.5 * x)).abs().max())


def seconds(run: Callable[[], object], device: Device, *, rounds: int) -> float:
    """Least time of a run, the device's work included."""
    best = float("inf")
    cuda = torch.device(device).type == "cuda"
    run()
    for _ in range(rounds):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


@torch.no_grad()
def microseconds_per_step(
    device: Device, *, shape: tuple[int, ...] = SHAPE, steps: int = 50, rounds: int = 30
) -> dict[str, dict[str, float]]:
    """Time of a step with a denoiser that costs nothing: prepared, and replayed from a graph."""
    cuda = torch.device(device).type == "cuda"
    x = VP.prior_sample(shape, seed=0).to(device)
    still = torch.zeros_like(x)
    flow = VP.probability_flow(lambda x, sigma: still)
    state = x.clone()

    def lerp() -> None:
        for _ in range(steps):
            state.lerp_(still, 0.01)

    found = {"lerp_": {"prepared": 1e6 / steps * seconds(lerp, device, rounds=rounds)}}
    for method in TIMED:
        prepared = sk.prepare(flow, x, method=method, steps=steps, sigma_data=0.5)
        runs = {"prepared": prepared}
        if cuda:
            runs["graph"] = capture(prepared, x)
        found[method] = {
            name: 1e6 / steps * seconds(lambda r=run: r(x), device, rounds=rounds)
            for name, run in runs.items()
        }
    return found


def measure(device: Device) -> dict[str, object]:
    """All of it, for a CUDA device."""
    return {
        "difference_from_cpu": {name: difference(name, device) for name in FLOWS + SDES},
        "waits_of_16_and_32_steps": {name: waits_of(name, device) for name in FLOWS + SDES},
        "graph_minus_solve": {name: captured_difference(name, device) for name in FLOWS},
        "microseconds_per_step": microseconds_per_step(device),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/gpu.json"))
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here: nothing was measured")
    found = measure("cuda")
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(),
        "versions": {
            "sdekit": sk.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
        "problem": f"mixture of 6 Gaussians in 16-D, {SAMPLES} samples, {STEPS} steps, float32",
        "shape_of_times": SHAPE,
        **found,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    table = Table("", "prepared", "graph", box=None, title="µs per step beyond the network")
    for name, row in found["microseconds_per_step"].items():
        table.add_row(name, *(f"{row[k]:.1f}" if k in row else "" for k in ("prepared", "graph")))
    console = Console(width=110)
    console.print(table)
    for what in ("difference_from_cpu", "graph_minus_solve"):
        worst = max(found[what], key=found[what].get)
        console.print(f"{what}: at most {found[what][worst]:.1e}, {worst}")
    counts = found["waits_of_16_and_32_steps"]
    console.print(f"loops that wait: {[name for name, (a, b) in counts.items() if a != b]}")


if __name__ == "__main__":
    main()
