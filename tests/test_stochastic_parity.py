"""Samplers of diffusers that add noise do what ours of the same formula do, given the same noise.

They are run by the adapters of the benchmark, in float64 on any noise levels; here their normal
numbers are replaced by ours.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from orders import measure_order
from stochastic_errors import GAUSSIAN, HIGH, LOW, STOCHASTIC, reverse_coordinates

import sdekit as sk
from sdekit.solvers.registry import Solver
from sdekit.theory.noises import Recorded

pytest.importorskip("diffusers")
pytest.importorskip("azula")

import diffusers

from sdekit.bench.peers import SDE_PEERS

NOISY = [
    "ddpm",
    "ddim",
    "euler_ancestral_discrete",
    "k_dpm_2_ancestral_discrete",
    "dpmsolver_multistep",
]
STEPS = 18
CLOCK = reverse_coordinates(STOCHASTIC["dpmpp_sde"]).noise_clock
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
        torch.testing.assert_close(theirs, result, rtol=0, atol=1e-12)


# --- EDM's churn ----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_shipped", [False, True])
def test_edm_euler_is_churn_with_euler(as_shipped, product, numbers, as_kept):
    """If the network is evaluated where the noise has been raised to, as in EDM's algorithm 2.

    In diffusers' own use it is evaluated before, at the lower level, and what it says is unpacked
    after: another scheme.
    """
    x = product.sample(4, SIGMAS[0], seed=0)
    noise = numbers[..., :3]
    churn = {"s_churn": 4.0, "s_noise": 1.01}
    sigma_data = product.sigma_data
    scheduler = diffusers.EDMEulerScheduler(sigma_data=sigma_data)
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = torch.from_numpy(SIGMAS)
    scheduler.timesteps = torch.arange(STEPS, 0, -1, dtype=torch.float64)
    scheduler.set_begin_index(0)
    gamma, state = churn["s_churn"] / STEPS, x
    for n, t in enumerate(scheduler.timesteps):
        sigma = torch.tensor(SIGMAS[n])
        raised = sigma * (1 + gamma)
        seen, at = state, sigma
        if not as_shipped:
            up = churn["s_noise"] * torch.sqrt(raised**2 - sigma**2)
            seen, at = state + up * noise[n], raised
        total = at**2 + sigma_data**2
        skipped = sigma_data**2 / total * seen
        raw = (product(seen, at) - skipped) / (at * sigma_data / torch.sqrt(total))
        scheduler.scale_model_input(state, t)
        state = as_kept(scheduler, raw, t, state, noise[n], **churn)
    scheme = sk.Churn(sk.RungeKutta(sk.tableaus.EULER), s_min=0.0, s_max=np.inf, **churn)
    solver = Solver(scheme, sk.Noise(), sk.grids.karras)
    flow = sk.EDM().probability_flow(product)
    result = sk.solve(flow, x, method=solver, sigmas=SIGMAS, noise=Recorded(noise)).x
    difference = float((state - result).abs().max())
    assert difference > 0.01 if as_shipped else difference < 1e-12


@pytest.fixture
def as_kept(monkeypatch):
    """One step of a scheduler with given noise and without its cast to float32."""
    from diffusers.schedulers import scheduling_edm_euler as module

    class Kept(torch.Tensor):
        def to(self, *args, **kwargs):
            return self

    def step(scheduler, raw, t, state, z, **options):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: z)
        state = scheduler.step(raw, t, state.as_subclass(Kept), return_dict=False, **options)[0]
        return state.as_subclass(torch.Tensor)

    return step


# --- DPM++ SDE ------------------------------------------------------------------------------------


class Normalised:
    """Increments of a path, each over the root of its length, as k-diffusion's noise samplers are.

    Args:
        path: The path.
        clock: Value of its clock at a noise level.
    """

    def __init__(self, path, clock) -> None:
        self.path, self.clock = path, clock

    def __call__(self, sigma, sigma_next):
        ends = sorted(self.clock(float(s)) for s in (sigma, sigma_next))
        return self.path.increment(*ends, self.path.like) / (ends[1] - ends[0]) ** 0.5


def test_dpm_solver_sde_is_dpmpp_sde_on_the_exact_clock(product, monkeypatch):
    """Theirs runs a Brownian tree on ``σ`` and takes normal numbers of it, ours runs on ``σ^(−2)``.

    A stage's noise is part of the noise of its step. On the exact clock its share is such that the
    two halves of a step are as one step; on ``σ`` it is another, to which it tends for short steps.
    """
    from diffusers.schedulers import scheduling_dpmsolver_sde as module

    x = product.sample(4, SIGMAS[0], seed=0)
    middles = np.sqrt(SIGMAS[1:] * SIGMAS[:-1])
    levels = np.concatenate([SIGMAS, middles])
    path = sk.GridPath(levels**-2.0, tuple(x.shape), seed=0, clock=CLOCK)
    path.like = x
    sampler = Normalised(path, lambda sigma: path.points[np.abs(path.points - sigma**-2).argmin()])
    monkeypatch.setattr(module, "BrownianTreeNoiseSampler", lambda *args, **kwargs: sampler)
    theirs = SDE_PEERS["diffusers DPMSolverSDE"].run(product, x, SIGMAS, STEPS)[0]
    result = ours(STOCHASTIC["dpmpp_sde"], product, x, path)
    torch.testing.assert_close(theirs, result, rtol=0, atol=1e-10)
    # The share of the variance of a step that its first half has, on either clock.
    exact = (middles**-2 - SIGMAS[:-1] ** -2) / (SIGMAS[1:] ** -2 - SIGMAS[:-1] ** -2)
    shipped = (SIGMAS[:-1] - middles) / (SIGMAS[:-1] - SIGMAS[1:])
    ratio = np.log(SIGMAS[:-1] / SIGMAS[1:])
    np.testing.assert_allclose(exact, 1 / (1 + np.exp(ratio)))
    np.testing.assert_allclose(shipped, 1 / (1 + np.exp(-ratio / 2)))


# --- the third order of SDE-DPM-Solver++ ----------------------------------------------------------


def third_order(denoiser, x, sigmas, numbers, sign):
    """SDE-DPM-Solver++(3M) in the unscaled state, ``η = 1``; shipped with a sign of −1."""
    lam, d = -np.log(sigmas), []
    for n in range(len(sigmas) - 1):
        s, t, h = sigmas[n], sigmas[n + 1], lam[n + 1] - lam[n]
        d.append(denoiser(x, torch.tensor(s)))
        share = -np.expm1(-2 * h)
        change = share * d[n]
        if n:
            r0 = (lam[n] - lam[n - 1]) / h
            first = (d[n] - d[n - 1]) / r0
        if n == 1:
            change = change + 0.5 * share * first
        if n > 1:
            r1 = (lam[n - 1] - lam[n - 2]) / h
            second = first - (d[n - 1] - d[n - 2]) / r1
            slope, curvature = first + r0 / (r0 + r1) * second, second / (r0 + r1)
            change = change + (1 - share / (2 * h)) * slope
            change = change + ((share - 2 * h) / (2 * h) ** 2 + sign * 0.5) * curvature
        x = t / s * np.exp(-h) * x + change + t * np.sqrt(share) * numbers[n]
    return x


def test_third_order_is_reproduced_as_shipped(product, numbers, monkeypatch):
    x = product.sample(4, SIGMAS[0], seed=0)
    theirs = run(f"{DPMPP}++ 3M full order", product, x, numbers[..., :3], monkeypatch)
    formula = third_order(product, x, SIGMAS, numbers[..., :3], sign=-1)
    torch.testing.assert_close(theirs, formula, rtol=0, atol=1e-10)


def test_third_order_as_shipped_is_of_weak_order_1():
    """The weight of the curvature should vanish with the step, but a sign makes it tend to −1.

    With the sign changed it is of weak order 2, as is ours, whose curvature is the whole one.
    """

    def error(n: int, sign: int) -> float:
        sigmas, data = sk.grids.log(n, HIGH, LOW), GAUSSIAN.variance
        x = torch.zeros((n + 1, len(data)), dtype=torch.float64)
        x[0] = torch.sqrt(data + HIGH**2)
        impulses = torch.eye(n + 1, dtype=torch.float64)[1:, :, None]
        variance = third_order(GAUSSIAN, x, sigmas, impulses, sign).square().sum(0)
        return float((variance / (data + LOW**2) - 1).square().mean().sqrt())

    steps = (96, 160, 256)
    assert measure_order(lambda n: error(n, -1), steps) == pytest.approx(1.0, abs=0.25)
    assert measure_order(lambda n: error(n, +1), steps) == pytest.approx(2.0, abs=0.25)
