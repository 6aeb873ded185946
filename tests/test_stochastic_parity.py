"""Samplers of diffusers that add noise do what ours of the same formula do, given the same noise.

They are run by the adapters of the benchmark, in float64 on any noise levels; here their normal
numbers are replaced by ours.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from noise_sources import Recorded
from stochastic_errors import STOCHASTIC

import sdekit as sk
from sdekit.solvers.registry import Solver

pytest.importorskip("diffusers")
pytest.importorskip("azula")

from sdekit.bench.peers import SDE_PEERS

NOISY = "ddpm ddim euler_ancestral_discrete k_dpm_2_ancestral_discrete dpmsolver_multistep".split()
STEPS = 18
SIGMAS = sk.grids.karras(STEPS, 20.0, 0.05)


@pytest.fixture
def start(gaussian):
    return gaussian.sample(4, SIGMAS[0], seed=0)


@pytest.fixture
def numbers(start):
    source = torch.Generator().manual_seed(1)
    return torch.randn((2 * STEPS, *start.shape), generator=source, dtype=torch.float64)


def run(name, denoiser, x, numbers, monkeypatch):
    """Final state of a peer whose noise is given."""
    replayed = iter(numbers)
    for module in NOISY:
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(replayed))
    return SDE_PEERS[name].run(denoiser, x, SIGMAS, STEPS)[0]


def ours(solver, denoiser, x, noise, eta=1.0, process=None):
    """The same by sdekit; the process gives its scale, which only DDPM's larger variance knows."""
    process = process or sk.EDM()
    problem = process.reverse(denoiser, eta)
    scale = process.on_host("scale", process.on_host("time", SIGMAS))
    solution = sk.solve(problem, x * scale[0], method=solver, sigmas=SIGMAS, noise=noise)
    return solution.x / scale[-1]


DPMPP = "diffusers DPMSolverMultistep sde"
SAME = {
    "diffusers DDPM fixed_small": (STOCHASTIC["ddim_eta"], 1.0),
    "diffusers DDPM fixed_large": (STOCHASTIC["ddpm"], 1.0),
    "diffusers DDIM 0.5": (STOCHASTIC["ddim_eta"], 0.5),
    "diffusers DDIM 1": (STOCHASTIC["ddim_eta"], 1.0),
    "diffusers EulerAncestral": (STOCHASTIC["ddim_eta"], 1.0),
    "diffusers KDPM2Ancestral": (STOCHASTIC["dpm_2_ancestral"], 1.0),
    f"{DPMPP}++ 1": (STOCHASTIC["sde_dpmpp_1"], 1.0),
    f"{DPMPP}++ 2M full order": (STOCHASTIC["sde_dpmpp_2m"], 1.0),
    f"{DPMPP}++ 2M heun full order": (
        Solver(sk.Stochastic(sk.Adams(2)), sk.LogData(), sk.grids.log),
        1.0,
    ),
    f"{DPMPP} 1": (
        Solver(sk.Stochastic(sk.DPMMultistep(1)), sk.LogNoise(), sk.grids.log),
        1.0,
    ),
    f"{DPMPP} 2M full order": (
        Solver(sk.Stochastic(sk.DPMMultistep(2)), sk.LogNoise(), sk.grids.log),
        1.0,
    ),
    f"{DPMPP} 2M heun full order": (
        Solver(sk.Stochastic(sk.Adams(2)), sk.LogNoise(), sk.grids.log),
        1.0,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_peer_of_the_same_formula_gives_the_same(name, product, gaussian, numbers, monkeypatch):
    solver, eta = SAME[name]
    for law in (product, gaussian):
        x = law.sample(4, SIGMAS[0], seed=0)
        noise = numbers[..., : x.shape[1]]
        theirs = run(name, law, x, noise, monkeypatch)
        process = sk.VP() if "DDPM" in name else None
        result = ours(solver, law, x, Recorded(noise), eta, process)
        print(name, (theirs-result).abs().max())
        torch.testing.assert_close(theirs, result, rtol=0, atol=1e-9)
