"""Misprints of Chan's tutorial in chapter 4: DDPM and SMLD as SDEs, and how they are solved."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ...brownian import IndependentNoise
from ...coordinates import Native
from ...distributions import GaussianMixture
from ...grids import karras
from ...processes import EDM, DiscreteVP
from ...sampling import solve
from ...sde import ForwardSDE
from ...solvers.langevin import AnnealedCorrector, PredictorCorrector
from ...solvers.registry import Solver
from ...solvers.stochastic import ReverseDiffusion
from ..calculus import residual
from ..claim import Both, claim
from ..draw import Draw
from .misprints_chan import drawn, times

BATCH = 6
ROUNDING = "round-off of a few operations"


@cache
def example_4_7(factor: float) -> tuple[float, float]:
    """Mean and variance of what ``x ← (x + factor β s)/√(1 − β) + √β z`` makes of example 4.6's noise.

    A hundred steps with β = 0.05; the density is carried along on a grid, without samples.
    """
    beta, count = 0.05, 100
    data = GaussianMixture([0.5, 0.5], [[3.0], [-3.0]], 1.0)
    process = DiscreteVP((1 - beta) ** torch.arange(1, count + 1, dtype=torch.float64))
    x = torch.linspace(-20, 20, 401, dtype=torch.float64)[:, None]
    width = float(x[1] - x[0])
    weights = torch.exp(-0.5 * x[:, 0] ** 2) / math.sqrt(2 * math.pi) * width
    for i in range(count, 0, -1):
        t = times(process, i)[0]
        s = process.scale(t)
        score = data.score(x / s, process.sigma(t)) / s
        mean = (x + factor * beta * score)[:, 0] / math.sqrt(1 - beta)
        kernel = torch.exp(-0.5 * (x - mean) ** 2 / beta)
        weights = (kernel * weights).sum(1) * (width / math.sqrt(2 * math.pi * beta))
    average = float((weights * x[:, 0]).sum())
    return average, float((weights * x[:, 0] ** 2).sum()) - average**2


@claim(
    "chan-ddpm-score-factor",
    title="DDPM's update from the score",
    statement="xᵢ₋₁ = (1/√(1 − βᵢ)) [xᵢ + βᵢ ∇log pᵢ(xᵢ)] + √βᵢ zᵢ",
    printed="xᵢ₋₁ = (1/√(1 − βᵢ)) [xᵢ + (βᵢ/2) ∇log pᵢ(xᵢ)] + √βᵢ zᵢ",
    sources={"chan": "eq. 125, eq. 131, example 4.7", "song2021": "eq. 4"},
    tags=("ddpm", "reverse", "discrete", "misprint"),
    tolerance=1e-9,
    because="round-off, where the noise of a step is small against that of the data",
)
def _ddpm_score_factor(draw: Draw) -> Both:
    """The derivation has β(t)Δt before the score up to eq. 125, where it becomes βᵢ/2.

    The mean of the step is compared with the exact conditional mean E[xᵢ₋₁ | xᵢ] of a mixture,
    which the corrected one is, with no error at any β.
    """
    process, alpha = drawn(draw)
    data, i = draw.mixture(), 2 + draw.integer(len(alpha) - 1)
    now, before = times(process, i)
    s, beta = process.scale(now), 1 - alpha[i - 1]
    x = draw.states(process, data, now.expand(BATCH))
    law = data.reverse_transition(x / s, process.sigma(now), process.sigma(before))
    exact = process.scale(before) * law.mean()
    score = data.score(x / s, process.sigma(now)) / s
    root = torch.sqrt(1 - beta)
    wrong, good = example_4_7(0.5)[1], example_4_7(1.0)[1]
    return Both(
        residual(exact, (x + beta / 2 * score) / root),
        residual(exact, (x + beta * score) / root),
        f"example 4.7 in 100 steps gives a variance of {wrong:.1f} instead of 10 "
        f"({good:.1f} with the right factor)",
    )


class _Example(ForwardSDE):
    """Chan's example 4.8, an SDE without noise: ``dx/dt = (x + t² − 2)/(t + 1)``."""

    T = 2.0

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """``(x + t² − 2)/(t + 1)``."""
        return slope(t, x)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(t)


def slope(t: Tensor | float, x: Tensor) -> Tensor:
    """Right-hand side of example 4.8."""
    return (x + t**2 - 2) / (t + 1)


def solve_example(x: Tensor, method: str, steps: int, end: float = 2.0) -> Tensor:
    """Solve example 4.8 from 0 with a method of sdekit."""
    flow = _Example().probability_flow(lambda x, t: torch.zeros_like(x))
    return solve(flow, x, method=method, times=np.linspace(0.0, end, steps + 1)).x


def _runge_kutta(x: Tensor, steps: int, end: float, swapped: bool) -> Tensor:
    """The classical method as Chan writes it, with or without the arguments of k₁ swapped."""
    h = end / steps
    for i in range(steps):
        t = torch.as_tensor(i * h, dtype=x.dtype)
        k1 = slope(x, t.expand_as(x)) if swapped else slope(t, x)
        k2 = slope(t + h / 2, x + h * k1 / 2)
        k3 = slope(t + h / 2, x + h * k2 / 2)
        k4 = slope(t + h, x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


@claim(
    "chan-rk4-first-slope",
    title="First slope of the classical Runge–Kutta method",
    statement="k₁ = f(tᵢ, xᵢ)",
    printed="k₁ = f(xᵢ, tᵢ), with dx/dt = f(t, x)",
    sources={"chan": "section 4.4, Runge–Kutta method"},
    tags=("solvers", "misprint"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _rk4_first_slope(draw: Draw) -> Both:
    """k₁ alone has its arguments swapped; k₂, k₃, k₄ and the definition of f have the time first.

    Ten steps of example 4.8 are compared with sdekit's ``rk4_t``.
    """
    x = draw.uniform(1.0, 3.0, BATCH, 1)
    exact = solve_example(x, "rk4_t", 10)
    two = torch.full((1, 1), 2.0, dtype=torch.float64)
    true = 5 - 4 * math.log(2)  # t² + 2t + 2 − 2(t + 1) log(t + 1) at t = 1
    errors = [abs(float(_runge_kutta(two, n, 1.0, True)) - true) for n in (10, 20, 40)]
    good = abs(float(_runge_kutta(two, 10, 1.0, False)) - true)
    return Both(
        residual(exact, _runge_kutta(x, 10, 2.0, True)),
        residual(exact, _runge_kutta(x, 10, 2.0, False)),
        "the error of example 4.8 from x(0) = 2 to t = 1 in 10, 20 and 40 steps is "
        f"{errors[0]:.3f}, {errors[1]:.3f} and {errors[2]:.3f} (with the right slope {good:.0e} in 10)",
    )


def _corrected(draw: Draw) -> tuple[Tensor, ...]:
    """One step of sdekit's predictor–corrector, and all that a formula for it needs.

    Returns:
        The state, what the predictor makes of it, the corrector's normal numbers, its step size
        ``ε``, the level that is reached, the result, and scores by state and level.
    """
    data, seed = draw.gaussian(1), draw.integer(2**31)
    high = float(draw.uniform(0.5, 2.0))
    levels, share = [high, high * float(draw.uniform(0.6, 0.9))], float(draw.uniform(0.02, 0.1))
    problem, x = EDM().reverse(data), draw.normal(BATCH, 1)
    predictor, found = ReverseDiffusion(), []
    schemes = predictor, PredictorCorrector(predictor, AnnealedCorrector(share, 1))
    for scheme in schemes:
        solver = Solver(scheme, Native(), karras)
        noise = IndependentNoise(seed)
        found.append(solve(problem, x, method=solver, sigmas=levels, noise=noise).x)
    source = IndependentNoise(seed)
    source.normal(x)  # the predictor's
    z, epsilon = source.normal(x), torch.tensor(share * levels[1] ** 2, dtype=x.dtype)
    before, after = data.score(x, levels[0]), data.score(found[0], levels[1])
    slope = data.score_jacobian(found[0], levels[1])[:, :, 0]
    return x, found[0], z, epsilon, found[1], before, after, slope


def _loop(overwrite: bool) -> float:
    """Variance of data N(0, 0.01) after algorithm 1 on 1000 steps of DDPM, with εᵢ = 0.05 (1 − ᾱᵢ)."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = torch.cumprod(1 - beta, 0).tolist()
    variance = 1.0
    for i in range(999, 0, -1):
        b, law = float(beta[i]), 0.01 * bar[i] + 1 - bar[i]
        if not overwrite:
            variance = ((1 - b / law) / math.sqrt(1 - b)) ** 2 * variance + b
            law = 0.01 * bar[i - 1] + 1 - bar[i - 1]
        size = 0.05 * (1 - bar[i if overwrite else i - 1])
        variance = (1 - size / law) ** 2 * variance + 2 * size
    return variance


@claim(
    "chan-corrector-start",
    title="What a corrector corrects",
    statement="xᵢ₋₁ ← xᵢ₋₁ + εᵢ s_θ(xᵢ₋₁, i − 1) + √(2εᵢ) z, from the prediction",
    printed="xᵢ₋₁ = xᵢ + εᵢ s_θ(xᵢ, i) + √(2εᵢ) z, for m = 1, …, M",
    sources={"chan": "algorithm 1, eq. 132", "song2021": "algorithm 1"},
    tags=("langevin", "solvers", "reverse", "misprint"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _corrector_start(draw: Draw) -> Both:
    """As printed, every correction starts anew from xᵢ: the prediction is overwritten unread.

    One step of `sdekit.PredictorCorrector` is compared with its own predictor followed by either
    line, with the same normal numbers.
    """
    x, predicted, z, epsilon, exact, before, after, _ = _corrected(draw)
    kick = torch.sqrt(2 * epsilon) * z
    wrong, good = _loop(True), _loop(False)
    return Both(
        residual(exact, x + epsilon * before + kick),
        residual(exact, predicted + epsilon * after + kick),
        f"data N(0, 0.01) are sampled with variance {wrong:.4f} by the printed loop of 1000 DDPM "
        "steps, which never uses its predictions, "
        f"and {good:.4f} by the right one (εᵢ = 0.05 (1 − ᾱᵢ))",
    )


@claim(
    "chan-smld-corrector",
    title="Corrector of SMLD",
    statement="x ← x + εᵢ s_θ(x, σᵢ) + √(2εᵢ) z",
    printed="xᵢ₋₁ = xᵢ + εᵢ ∇ₓs_θ(xᵢ, σᵢ) + √εᵢ z",
    sources={"chan": "section 4.4, the equations after algorithm 1", "song2021": "algorithm 2"},
    tags=("langevin", "solvers", "reverse", "misprint"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _smld_corrector(draw: Draw) -> Both:
    """s_θ is the gradient of log p already, and DDPM's corrector beside it has √(2ε).

    One correction of `sdekit.PredictorCorrector` is compared with both lines in one dimension,
    where ∇s is a number, with the same normal numbers, and both from the prediction: where a
    correction starts is the matter of chan-corrector-start.
    """
    _, predicted, z, epsilon, exact, _, after, slope = _corrected(draw)
    half = 0.05 / (1 - (1 - 0.05) ** 2)
    return Both(
        residual(exact, predicted + epsilon * slope + torch.sqrt(epsilon) * z),
        residual(exact, predicted + epsilon * after + torch.sqrt(2 * epsilon) * z),
        "a thousand printed corrections with ε = 0.05 of N(0, 1) take its mean to −50 and its variance "
        f"to 51; without the ∇, but with √ε, the variance is {half:.2f}",
    )
