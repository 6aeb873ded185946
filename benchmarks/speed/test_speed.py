"""What a step costs beyond the network, beside the same written by hand or by other packages.

    python -m pytest benchmarks/speed --benchmark-json=speed.json

times pairs in processor time, both sides in turn, and notes the median of the ratios; `run.py`
compares several such runs with the committed ones. The denoiser costs next to nothing, states are
small, and a pair solves the same problem, which is checked first. (`benchmarks/overhead.py` has the
times of many samplers and larger states.)
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchsde
from loops import SIGMA_DATA, by_hand
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torchdiffeq import odeint

import sdekit as sk


def processor_time() -> float:
    """Seconds of this process and of those it waited for."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


pytestmark = pytest.mark.benchmark(timer=processor_time, disable_gc=True)
torch.set_num_threads(1)
STEPS = 40
SIGMA = np.geomspace(80.0, 0.002, STEPS + 1)
METHODS = ("ddim", "lms3", "dpmpp_2m", "unipc_bh2_2", "adams3", "edm_heun")
START = 80 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
STILL = START / 160


def smooth(x: Tensor, sigma: Tensor) -> Tensor:
    """Denoise by something that is not linear, on which methods differ."""
    return torch.tanh(x / (0.3 + sigma.reshape(-1, 1) ** 2))


class Counted:
    """A denoiser that costs nothing and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise to the same."""
        self.calls += 1
        return STILL


def measure(
    benchmark: BenchmarkFixture,
    group: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    against: str,
    units: tuple[float, float] = (1, 1),
    rounds: int = 60,
) -> None:
    """Time both sides in turn, which a busy machine slows down together.

    Args:
        benchmark: Times ours.
        group: What is measured.
        ours: Our side.
        theirs: The other.
        against: Who that is.
        units: What a run of each side's has of what the times are compared by.
        rounds: How often.
    """
    others = []

    def other() -> None:
        begin = processor_time()
        theirs()
        others.append(processor_time() - begin)

    benchmark.group = group
    with torch.no_grad():
        benchmark.pedantic(ours, setup=other, rounds=rounds, warmup_rounds=1)
    times = benchmark.stats.stats.data
    ratios = np.array(times) / others[-rounds:] * units[1] / units[0]
    benchmark.extra_info.update(against=against, ratio=float(np.median(ratios)))


@pytest.mark.parametrize("method", METHODS)
def test_fixed_loop(benchmark: BenchmarkFixture, method: str) -> None:
    """A step of the prepared loop, beside a loop with the same coefficients."""

    def ours(denoiser: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        flow = sk.EDM().probability_flow(denoiser)
        return sk.prepare(flow, START, method=method, sigmas=SIGMA, sigma_data=SIGMA_DATA)

    loop = by_hand(method, SIGMA)
    torch.testing.assert_close(ours(smooth)(START), loop(smooth, START), rtol=0, atol=2e-6)
    idle = Counted()
    prepared = ours(idle)
    measure(
        benchmark,
        f"step of {method}",
        lambda: prepared(START),
        lambda: loop(idle, START),
        against="a loop by hand",
    )


def test_adaptive_loop(benchmark: BenchmarkFixture) -> None:
    """An evaluation of Dormand and Prince's pair with steps for the batch, each preparing itself."""
    ends = torch.tensor([80.0, 0.002])
    calls = []

    def slope(t: Tensor, x: Tensor) -> Tensor:
        calls.append(t)
        return (x - smooth(x, t)) / t

    flow = sk.EDM().probability_flow(smooth)
    options = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}

    def ours() -> sk.Solution:
        return sk.solve(flow, START, stepping="batch", **options)

    def theirs() -> Tensor:
        return odeint(slope, START, ends, **options)[-1]

    solution = ours()
    torch.testing.assert_close(solution.x, theirs(), rtol=0, atol=1e-3)
    measure(
        benchmark,
        "evaluation of adaptive dopri5",
        ours,
        theirs,
        against="torchdiffeq",
        units=(solution.nfe, len(calls)),
        rounds=15,
    )


class ByHand(torch.nn.Module):
    """The reverse SDE of EDM's process, in ``r = 80 − t``."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, denoiser: Callable[..., Tensor]) -> None:
        super().__init__()
        self.denoiser = denoiser

    def f(self, r: Tensor, x: Tensor) -> Tensor:
        """Drift."""
        t = 80 - r
        return 2 * (self.denoiser(x, t) - x) / t

    def g(self, r: Tensor, x: Tensor) -> Tensor:
        """Diffusion."""
        return torch.sqrt(2 * (80 - r)).expand_as(x)


def test_sde_loop(benchmark: BenchmarkFixture) -> None:
    """A step of Euler–Maruyama's scheme with fresh noise, each preparing itself."""
    idle, counted = Counted(), Counted()
    reverse = sk.EDM().reverse(idle)
    times = np.linspace(80.0, 20.0, STEPS + 1)
    ends = torch.tensor([0.0, 60.0])

    def ours() -> sk.Solution:
        return sk.solve(reverse, START, method="euler_maruyama_t", times=times, seed=0)

    def theirs() -> Tensor:
        return torchsde.sdeint(ByHand(counted), START, ends, method="euler", dt=60 / STEPS)[-1]

    ours(), theirs()
    assert (idle.calls, counted.calls) == (STEPS, STEPS + 1)  # torchsde tries the shapes once
    measure(benchmark, "step of Euler–Maruyama", ours, theirs, against="torchsde", rounds=15)


def test_import(benchmark: BenchmarkFixture) -> None:
    """A process that imports the package, beside one that imports torch alone."""
    # With bytecode, as users have it.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def load(package: str) -> None:
        command = [sys.executable, "-c", f"import {package}"]
        root = Path(sk.__file__).parents[1]
        subprocess.run(command, check=True, env=environment, cwd=root)

    measure(
        benchmark,
        "import",
        lambda: load("sdekit"),
        lambda: load("torch, numpy"),
        against="import torch",
        rounds=2,
    )
