"""Annealed Langevin dynamics: NCSN's noise levels and step sizes, and correctors."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import chi2, norm

from ...brownian import IndependentNoise
from ...chains import ncsn_epsilon, ncsn_levels
from ...coordinates import Noise
from ...distributions import Empirical
from ...grids import karras
from ...processes import EDM
from ...sampling import solve
from ...solvers.langevin import AnnealedLangevin, LangevinCorrector, PredictorCorrector
from ...solvers.registry import Solver, methods
from ...solvers.scheme import Scheme
from ..calculus import quadrature, residual
from ..claim import claim
from ..draw import Draw
from ..noises import Impulses
from .ddpm import schedule
from .langevin import kernel, two_modes


def with_scheme(scheme: Scheme) -> Solver:
    """Compose a solver in the unscaled state."""
    return Solver(scheme, Noise(), karras)


@claim(
    "annealed-langevin-weights",
    title="Annealed Langevin dynamics finds the weights of separated modes",
    statement="annealed from σ₁ = the modes' distance, at geometric levels with NCSN's steps, the "
    "shares of the modes tend to π and 1 − π",
    sources={"kim": "section 2.4, figure 6", "song2019": "section 4.3, figure 3"},
    tags=("langevin",),
    kind="rate",
    tolerance=0.1,
    because="a limit: the chains are finite, with 12 levels and 20 steps each",
)
def _annealed(draw: Draw) -> float:
    """The setting of `langevin-loses-weights`, at geometric levels with the step of `ncsn_epsilon`.

    The transition operators of the levels are applied one after the other on a grid. The residual
    is the difference of the left mode's share from π = 0.2 over 0.6: without annealing it is 0.5.
    """
    centre = float(draw.uniform(4.0, 5.0))
    levels = np.geomspace(2 * centre, 0.5, 12)
    epsilon = ncsn_epsilon(levels, 20)
    grid = torch.linspace(-45, 45, 700, dtype=torch.float64)
    data = two_modes(0.2, centre, 0.5)
    law = torch.exp(-(grid**2) / (2 * levels[0] ** 2))
    law = law / law.sum()
    for sigma in levels:
        matrix = kernel(data, float(sigma), epsilon * (sigma / levels[-1]) ** 2, grid)
        for _ in range(20):
            law = law @ matrix
    return abs(float(law[grid < 0].sum()) - 0.2) / 0.6


@claim(
    "annealed-langevin-steps",
    title="Steps of annealed Langevin dynamics",
    statement="x ← x + (α_i/2) s(x, σ_i) + √α_i z, α_i = ε σ_i²/σ_L²",
    sources={"song2019": "algorithm 1", "kim": "algorithm 1"},
    tags=("langevin", "solvers"),
    tolerance=1e-11,
    because="round-off of a few steps",
)
def _steps(draw: Draw) -> float:
    """The algorithm as it is printed, on a mixture, with the noise of sdekit's scheme drawn again.

    The printed ε is twice that of `AnnealedLangevin`.
    """
    data, seed = draw.mixture(), draw.integer(2**31)
    levels = [3.0, 1.5, 0.8, 0.5]
    epsilon = float(draw.uniform(0.02, 0.1))
    x = 3 * draw.normal(5, 2)
    problem, solver = EDM().reverse(data), with_scheme(AnnealedLangevin(epsilon / 2, 3))
    found = solve(problem, x, method=solver, sigmas=levels, seed=seed).x
    source = IndependentNoise(seed)
    for sigma in levels[1:]:
        alpha = epsilon * sigma**2 / levels[-1] ** 2
        for _ in range(3):
            x = x + alpha / 2 * data.score(x, sigma) + alpha**0.5 * source.normal(x)
    return residual(found, x)


@claim(
    "ncsn-signal-to-noise",
    title="NCSN's step size fixes the ratio of signal and noise",
    statement="α_i = ε σ_i²/σ_L²: E‖½α_i s‖²/E‖√α_i z‖² = ε/(4σ_L²) (1 − E‖x₀ − D‖²/(d σ_i²)), "
    "ε/(4σ_L²) at every level for a point",
    sources={"kim": "section 2.4.1", "song2019": "section 4.3"},
    tags=("langevin",),
    tolerance=1e-9,
    because="quadrature over 4000 points",
)
def _ratio(draw: Draw) -> float:
    """E‖σ s‖² is d less what the denoiser does not know, so it is constant where noise dominates.

    By quadrature over x̂, for a mixture and a point, with their scores and posterior variances.
    """
    epsilon, last = float(draw.uniform(1e-3, 1e-1)), float(draw.uniform(0.2, 0.5))
    worst = 0.0
    for data in (draw.mixture(1), Empirical(draw.normal(1, 1))):
        for level in (0.5, 2.0, 8.0):
            alpha = epsilon * level**2 / last**2
            x, weights = quadrature(data, level)
            signal = weights @ (alpha / 2 * data.score(x, level)[:, 0]) ** 2
            error = weights @ data.posterior_cov(x, level)[:, 0, 0]
            wanted = epsilon / (4 * last**2) * (1 - error / level**2)
            worst = max(worst, residual(signal / alpha, wanted))
    return worst


def ncsn_ratio(epsilon: float, levels: list[float], steps: int) -> float:
    """Ratio ``s_T²/σ_i²`` of the variance after the steps of a level: Song and Ermon 2020, eq. 4."""
    last, gamma = levels[-1] ** 2, levels[0] / levels[1]
    rest = 2 * epsilon / (last - last * (1 - epsilon / last) ** 2)
    return (1 - epsilon / last) ** (2 * steps) * (gamma**2 - rest) + rest


@claim(
    "ncsn-step-size",
    title="NCSN's choice of the step size",
    statement="for a point, T steps from N(0, σ_{i−1}²) at σ_i: "
    "s_T²/σ_i² = (1 − ε/σ_L²)^{2T} (γ² − r) + r, "
    "r = 2ε/(σ_L² − σ_L²(1 − ε/σ_L²)²); ncsn_epsilon brings it closest to 1",
    sources={"song2020": "eq. 4, technique 4", "kim": "section 2.4.3"},
    tags=("langevin",),
    tolerance=1e-10,
    because="round-off of a chain of steps",
)
def _step_size(draw: Draw) -> float:
    """The score of a point is −x/σ², so the steps are linear and the variance obeys v ← (1 − e)²v + 2e.

    The coefficients of `AnnealedLangevin` are read off by starts and noise that differ in one
    number each. That ε is the best is tried against neighbours: a better one would be an error of 1.
    """
    steps, ratio = 1 + draw.integer(6), float(draw.uniform(1.2, 2.0))
    last = float(draw.uniform(0.05, 0.5))
    levels = [last * ratio, last]
    data = Empirical([[0.0]])
    best = ncsn_epsilon(np.array(levels), steps)
    worst = 0.0
    for epsilon in (best, float(draw.uniform(0.05, 0.9)) * last**2):
        x = torch.zeros(steps + 2, 1, dtype=torch.float64)
        x[-1] = 1.0
        solver = with_scheme(AnnealedLangevin(epsilon, steps))
        after = solve(EDM().reverse(data), x, method=solver, sigmas=levels, noise=Impulses()).x[
            :, 0
        ]
        variance = after[-1] ** 2 * levels[0] ** 2 + after[1:-1].square().sum()
        wanted = variance.new_tensor(ncsn_ratio(epsilon, levels, steps))
        worst = max(worst, residual(variance / last**2, wanted))
    gaps = [abs(ncsn_ratio(best * f, levels, steps) - 1) for f in (1.0, 0.98, 1.02)]
    return worst if gaps[0] <= min(gaps[1:]) + 1e-3 else 1.0


def _overlap(gamma: float, dim: int) -> float:
    shift = math.sqrt(2 * dim) * (gamma - 1)
    return float(norm.cdf(shift + 3 * gamma) - norm.cdf(shift - 3 * gamma))


@claim(
    "ncsn-levels",
    title="NCSN's choice of the noise levels",
    statement="σ₁ = the largest distance of data, σ_i/σ_{i+1} = γ, "
    "Φ(√(2D)(γ − 1) + 3γ) − Φ(√(2D)(γ − 1) − 3γ) = 0.5",
    sources={"song2020": "technique 1, 2", "kim": "section 2.4.2, 2.4.3"},
    tags=("langevin",),
    tolerance=1e-9,
    because="root of an equation, and rounding to a whole number of levels",
)
def _levels(draw: Draw) -> float:
    """The ratio is solved for here; data that are k whole ratios apart then need k + 1 levels.

    A diameter a little below γᵏσ_min makes the rounding certain; the levels of `ncsn_levels` are
    compared with the geometric sequence between the two.
    """
    dim, count = 50 + draw.integer(5000), 3 + draw.integer(10)
    low = float(draw.uniform(0.01, 0.1))
    gamma = brentq(lambda g: _overlap(g, dim) - 0.5, 1.0, 3.0, xtol=1e-14)
    worst = 0.0
    for slack, levels in ((-1e-6, count + 1), (1e-6, count + 2)):
        diameter = low * gamma**count * (1 + slack)
        wanted = diameter * (low / diameter) ** (torch.arange(levels).double() / (levels - 1))
        found = torch.from_numpy(ncsn_levels(diameter, dim, low))
        if len(found) != levels:
            return 1.0
        worst = max(worst, residual(found, wanted))
    return worst


@claim(
    "ncsn-shells",
    title="Where the rule for the noise levels comes from",
    statement="P(‖σ z‖ ∈ γσ(√D ± 3/√2)) → Φ(√(2D)(γ − 1) + 3γ) − Φ(√(2D)(γ − 1) − 3γ), "
    "z ~ N(0, I_D), D → ∞",
    sources={"song2020": "proposition 2, technique 2"},
    tags=("langevin",),
    kind="rate",
    tolerance=0.15,
    because="an order measured between D = 1000 and 16000",
)
def _shells(draw: Draw) -> float:
    """The radius of a normal vector tends to N(√D, ½): shells of thickness 3/√2 on either side.

    The exact law of the radius is χ. The difference, at the γ for which half of the mass is in
    the shell of the level above, falls as D^(−1/2); its measured order is compared with that.
    """
    errors = []
    share = float(draw.uniform(0.3, 0.6))
    for dim in (1000, 16000):
        gamma = brentq(lambda g, dim=dim: _overlap(g, dim) - share, 1.0, 3.0, xtol=1e-14)
        ends = [gamma * (math.sqrt(dim) + k * 3 / math.sqrt(2)) for k in (-1, 1)]
        mass = chi2.cdf(ends[1] ** 2, dim) - chi2.cdf(ends[0] ** 2, dim)
        errors.append(abs(float(mass) - share))
    return abs(math.log(errors[0] / errors[1]) / math.log(16) - 0.5)


@claim(
    "corrector-signal-to-noise",
    title="Step size of the predictor–corrector sampler",
    statement="x ← x + ε s + √(2ε) z, ε = 2ρ²(r ‖z‖/‖s‖)²: ‖ε s‖/‖√(2ε) z‖ = r ρ, "
    "ρ² = 1 − β for VP, 1 for VE",
    sources={"song2021": "algorithms 4, 5"},
    tags=("langevin", "solvers"),
    tolerance=1e-10,
    because="round-off of a step",
)
def _corrector(draw: Draw) -> float:
    """A step of Euler's method, then a corrector's, whose noise is drawn again from its seed.

    The correction is what the state differs from that of the predictor alone; it is compared with
    the printed update of the scaled state, score and all, for VE and for a discrete VP chain.
    """
    data, chain, worst = draw.mixture(), schedule(draw, 3), 0.0
    snr = float(draw.uniform(0.05, 0.3))
    euler = methods()["euler"].solver.scheme
    solver = with_scheme(PredictorCorrector(euler, LangevinCorrector(snr)))
    sigmas = chain.process.sigma(chain.times[[2, 1]])
    for process, keep in ((EDM(), 1.0), (chain.process, float(chain.alpha[2]))):
        x, seed = draw.normal(5, 2), draw.integer(2**31)
        flow = process.probability_flow(data)
        start = solve(flow, x, method="euler", sigmas=sigmas).x
        found = solve(flow, x, method=solver, sigmas=sigmas, seed=seed).x
        s = process.scale(process.time(sigmas[1]))
        score = data.score(start / s, sigmas[1]) / s
        z = IndependentNoise(seed).normal(x)
        size = 2 * keep * (snr * z.norm(dim=1) / score.norm(dim=1)) ** 2
        signal, noise = size[:, None] * score, (2 * size[:, None]).sqrt() * z
        worst = max(worst, residual(found - start, signal + noise, x))
        ratio = signal.norm(dim=1) / noise.norm(dim=1)
        worst = max(worst, residual(ratio, torch.full_like(ratio, snr * keep**0.5)))
    return worst
