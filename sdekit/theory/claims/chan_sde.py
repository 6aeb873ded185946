"""Chan's chapter 4: iterations as differential equations, and his worked examples of solvers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...affine import AffineSDE
from ...brownian import IndependentNoise
from ...coordinates import Native
from ...forward import simulate
from ...grids import karras
from ...processes import VE, VP
from ...sampling import solve
from ...solvers.registry import Solver
from ...solvers.stochastic import ReverseDiffusion
from ..calculus import gradient, residual
from ..claim import claim
from ..draw import Draw
from .misprints_chan_sde import slope, solve_example

BATCH = 6
ROUNDING = "round-off of a few operations"


@claim(
    "chan-euler-decay",
    title="An iteration and its differential equation",
    statement="max |xᵢ − exp(−β tᵢ/2) x₀| = O(Δt) for xᵢ = (1 − βΔt/2) xᵢ₋₁",
    sources={"chan": "example 4.1, eq. 109, eq. 111"},
    tags=("solvers", "flow"),
    kind="rate",
    tolerance=0.1,
    because="the slope is of finite steps, 32 to 128",
)
def _euler_decay(draw: Draw) -> float:
    """In Chan's figure both look “exactly the same”; they agree in the limit, with order 1.

    The iteration is Euler's method, here `sdekit.simulate` of an affine process with f = −β/2 and
    noise of no size to speak of (1e-9). For β = 1 and Δt = 0.1 they are 0.008 apart at t = 1.
    """
    beta = float(draw.uniform(0.5, 3.0))
    process = AffineSDE(f=lambda t: -beta / 2 + 0 * t, g=lambda t: 1e-9 + 0 * t)
    start, errors = torch.ones(1, 1, dtype=torch.float64), []
    for count in (32, 64, 128):
        grid = np.linspace(0, 1, count + 1)
        path = simulate(process, start, grid, method="euler_maruyama_t", seed=0)[:, 0, 0]
        exact = torch.exp(-0.5 * beta * torch.as_tensor(grid))
        errors.append(float((path - exact).abs().max()))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    return max(abs(s - 1) for s in slopes)


@claim(
    "chan-gradient-flow",
    title="Gradient flow goes down",
    statement="d/dt f(x(t)) = −β ‖∇f(x(t))‖² along dx/dt = −β ∇f(x)",
    sources={"chan": "example 4.2, eq. 113"},
    tags=("flow", "score"),
    tolerance=1e-9,
    because="round-off of derivatives by automatic differentiation",
)
def _gradient_flow(draw: Draw) -> float:
    """For f = −log p of a Gaussian the flow is known, x(t) = m + exp(−βtC⁻¹)(x₀ − m).

    f along it is differentiated in time and compared with the score, which is −∇f.
    """
    law, beta = draw.gaussian(), float(draw.uniform(0.5, 2.0))
    mean, cov = law.moments()
    values, basis = torch.linalg.eigh(cov)
    offset = draw.normal(BATCH, 2)
    t = draw.uniform(0.0, float(values.min()), BATCH)

    def path(t: Tensor) -> Tensor:
        moved: Tensor = (torch.exp(-beta * t[:, None] / values) * (offset @ basis)) @ basis.T
        return mean + moved

    rate = gradient(lambda u: -law.log_prob(path(u)), t)
    return residual(rate, -beta * law.score(path(t), 0.0).square().sum(1))


@claim(
    "chan-example-4-4",
    title="A decaying process with noise",
    statement="dx = −(α/2) x dt + β dw: E x(t) = x₀ exp(−αt/2), Var x(t) = (β²/α)(1 − exp(−αt))",
    sources={"chan": "example 4.4; theorem 5.2", "risken": "section 3.1"},
    tags=("forward", "linear", "moments"),
    tolerance=1e-10,
    because="round-off, and quadrature of the coefficients to 1e-13",
)
def _example_4_4(draw: Draw) -> float:
    """The integral of exp(−α(t − s)/2) dw(s) is Gaussian with the integral of its square as variance.

    Compared with an affine process that is given by its coefficients f and g.
    """
    alpha, beta = float(draw.uniform(0.5, 2.0)), float(draw.uniform(0.1, 2.0))
    process = AffineSDE(f=lambda t: -alpha / 2 + 0 * t, g=lambda t: beta + 0 * t, T=4.0)
    x0, t = draw.normal(BATCH, 1), draw.uniform(0.1, 4.0, BATCH)
    mean, std = process.marginal(x0, t)
    first = residual(mean, x0 * torch.exp(-0.5 * alpha * t)[:, None])
    return max(first, residual(std**2, beta**2 / alpha * -torch.expm1(-alpha * t)))


@claim(
    "chan-example-4-4-steps",
    title="A decaying process in steps of 1",
    statement="xᵢ = (1 − α/2) xᵢ₋₁ + β zᵢ₋₁ is Euler–Maruyama with Δt = 1: Var → (β²/α)/(1 − α/4)",
    sources={"chan": "example 4.4"},
    tags=("forward", "solvers"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _example_4_4_steps(draw: Draw) -> float:
    """Chan's line has no Δt, so it is of step 1: for his α = 1 its variance is 4/3 of the exact one.

    Paths are compared with ``euler_maruyama_t`` from the same normal numbers; the stationary
    variance is that of the process, at a time where its start is forgotten.
    """
    alpha, beta, seed = float(draw.uniform(0.5, 1.5)), 0.1, draw.integer(2**31)
    process = AffineSDE(f=lambda t: -alpha / 2 + 0 * t, g=lambda t: beta + 0 * t, T=80.0)
    start = draw.normal(BATCH, 1)
    paths = simulate(
        process,
        start,
        np.arange(6.0),
        method="euler_maruyama_t",
        noise=IndependentNoise(seed),
    )
    x, source, found = start, IndependentNoise(seed), 0.0
    for path in paths[1:]:
        x = (1 - alpha / 2) * x + beta * source.normal(x)
        found = max(found, residual(path, x))
    exact = process.std(torch.tensor([80.0], dtype=torch.float64)) ** 2
    stationary = torch.tensor([beta**2 / (1 - (1 - alpha / 2) ** 2)], dtype=torch.float64)
    return max(found, residual(exact, stationary * (1 - alpha / 4)))


@claim(
    "chan-reverse-ddpm",
    title="DDPM's reverse SDE",
    statement="dx = −β(t) [x/2 + ∇log pₜ(x)] dt + √β(t) dw̄",
    sources={"chan": "theorem 4.2, eq. 124", "song2021": "eq. 6, eq. 11"},
    tags=("ddpm", "reverse"),
    tolerance=1e-9,
    because="round-off, where the score is a difference",
)
def _reverse_ddpm(draw: Draw) -> float:
    """Eq. 119 with f = −βx/2 and g = √β, against `VP.reverse` with β and the score written out."""
    low = float(draw.uniform(0.05, 1.0))
    process = VP(beta_min=low, beta_max=low + float(draw.uniform(1.0, 20.0)))
    data, t = draw.mixture(), draw.times(process, BATCH)
    x = draw.states(process, data, t)
    beta = (process.beta_min + (process.beta_max - process.beta_min) * t)[:, None]
    total = (process.beta_min * t + 0.5 * (process.beta_max - process.beta_min) * t**2)[:, None]
    s, sigma = torch.exp(-0.5 * total), torch.sqrt(torch.expm1(total[:, 0]))
    wanted = -beta * (0.5 * x + data.score(x / s, sigma) / s)
    reverse = process.reverse(data)
    size = reverse.diffusion(t, x)
    return max(residual(reverse.f(t, x), wanted), residual(size**2, beta[:, 0]))


@claim(
    "chan-reverse-smld",
    title="SMLD's reverse SDE",
    statement="dx = −(dσ²/dt) ∇log pₜ(x) dt + √(dσ²/dt) dw̄",
    sources={"chan": "theorems 4.3, 4.4, eq. 127, eq. 128", "song2021": "eq. 9"},
    tags=("reverse",),
    tolerance=1e-9,
    because="round-off, where the score is a difference",
)
def _reverse_smld(draw: Draw) -> float:
    """Eq. 119 with f = 0, g² = dσ²/dt against `VE.reverse`; σ² is written out and differentiated."""
    low, ratio = float(draw.uniform(0.01, 0.1)), float(draw.uniform(50.0, 500.0))
    process = VE(sigma_min=low, sigma_max=low * ratio)
    data, t = draw.mixture(), draw.times(process, BATCH)
    x = draw.states(process, data, t)
    rate = gradient(lambda u: (low * ratio**u) ** 2, t)
    wanted = -rate[:, None] * data.score(x, low * ratio**t)
    reverse = process.reverse(data)
    return max(residual(reverse.f(t, x), wanted), residual(reverse.diffusion(t, x) ** 2, rate))


@claim(
    "chan-smld-update",
    title="SMLD's reverse update",
    statement="xᵢ₋₁ = xᵢ + (σᵢ² − σᵢ₋₁²) ∇log pᵢ(xᵢ) + √(σᵢ² − σᵢ₋₁²) zᵢ",
    sources={"chan": "eq. 129", "song2021": "eq. 46"},
    tags=("reverse", "solvers", "discrete"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _smld_update(draw: Draw) -> float:
    """Three steps of `sdekit.ReverseDiffusion` under VE, from the same normal numbers."""
    data, seed, x = draw.mixture(), draw.integer(2**31), 2 * draw.normal(BATCH, 2)
    levels = np.geomspace(2.0, 0.3, 4)
    solver = Solver(ReverseDiffusion(), Native(), karras)
    found = solve(
        VE().reverse(data), x, method=solver, sigmas=levels, noise=IndependentNoise(seed)
    ).x
    source = IndependentNoise(seed)
    for high, low in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        gap = high**2 - low**2
        x = x + gap * data.score(x, high) + math.sqrt(gap) * source.normal(x)
    return residual(found, x)


def _solution(t: Tensor | float, constant: Tensor) -> Tensor:
    """Solution of example 4.8 that starts from ``constant + 1``."""
    t = torch.as_tensor(t, dtype=constant.dtype)
    return (1 + t) * (constant + t - 2 * torch.log(1 + t)) + 1


@claim(
    "chan-example-4-8",
    title="Solution of a linear ODE",
    statement="dx/dt = (x + t² − 2)/(t + 1): x(t) = (1 + t)(x(0) − 1 + t − 2 log(1 + t)) + 1",
    sources={"chan": "example 4.8"},
    tags=("flow", "solvers"),
    tolerance=1e-9,
    because="the error of the solve",
)
def _example_4_8(draw: Draw) -> float:
    """With the factor 1/(1 + t) the left side is a derivative, and (t² − 2)/(1 + t)² is integrated.

    The formula is put into the equation by automatic differentiation, and compared with sdekit's
    ``dopri5_t`` in 80 steps.
    """
    constant, t = draw.normal(BATCH), draw.uniform(0.0, 2.0, BATCH)
    rate = gradient(lambda u: _solution(u, constant), t)
    first = residual(rate, slope(t, _solution(t, constant)))
    x = solve_example((constant + 1)[:, None], "dopri5_t", 80)[:, 0]
    return max(first, residual(x, _solution(2.0, constant)))


@claim(
    "chan-example-4-8-orders",
    title="Orders of Euler's and of Runge and Kutta's method",
    statement="|x_N − x(2)| = O(N⁻¹) for Euler's method, O(N⁻⁴) for the classical Runge–Kutta method",
    sources={"chan": "section 4.4, example 4.8"},
    tags=("solvers",),
    kind="rate",
    tolerance=0.2,
    because="the slopes are of finite steps, 20 to 80",
)
def _example_4_8_orders(draw: Draw) -> float:
    """Errors of sdekit's ``euler_t`` and ``rk4_t`` on example 4.8, against the solution."""
    start, worst = draw.uniform(1.0, 3.0, 1, 1), 0.0
    exact = _solution(2.0, start - 1)
    for method, order in (("euler_t", 1), ("rk4_t", 4)):
        errors = [float((solve_example(start, method, n) - exact).abs()) for n in (20, 40, 80)]
        worst = max(worst, *(abs(math.log2(a / b) - order) for a, b in pairwise(errors)))
    return worst
