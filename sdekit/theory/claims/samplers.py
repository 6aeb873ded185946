"""Samplers that are one: published formulas against schemes in coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ... import grids
from ...coordinates import LogData, LogNoise, Noise
from ...distributions import GaussianMixture
from ...processes import EDM
from ...sampling import solve
from ...solvers import tableaus
from ...solvers.adams import Adams
from ...solvers.exponential import ExponentialRK, dpm_solver_1
from ...solvers.published import UniPC
from ...solvers.registry import Solver
from ...solvers.rk import RungeKutta
from ..calculus import residual
from ..claim import claim
from ..draw import Draw
from ..noises import Recorded

BATCH = 6
NOTES = {"sdekit": "theory, section 4.7"}


def problem(draw: Draw, steps: int) -> tuple[GaussianMixture, Tensor, list[float]]:
    """Draw a law, states at the first level of a random grid, and the grid."""
    law = draw.mixture()
    falls = torch.cumsum(draw.uniform(0.3, 0.9, steps + 1), 0)
    sigmas = (6 * torch.exp(-falls)).tolist()
    return law, law.sample(BATCH, sigmas[0], seed=draw.integer(2**31)), sigmas


def solved(law: GaussianMixture, x: Tensor, sigmas: list[float], method: str | Solver) -> Tensor:
    """Solve the flow of EDM."""
    return solve(EDM().probability_flow(law), x, method=method, sigmas=sigmas).x


@claim(
    "ddim-is-euler",
    title="DDIM, Euler in σ, DPM-Solver-1 and exponential Euler are one",
    statement="x' = x − σ'(e^h − 1) ε̂ = (σ'/σ) x + (1 − e^−h) D = x + (σ' − σ) ε̂,  h = log(σ/σ')",
    sources=NOTES | {"ddim": "section 4.1", "dpm": "section 4.1", "edm": "section 3"},
    tags=("coordinates", "solvers", "ddim"),
    tolerance=1e-12,
    because="round-off",
)
def _ddim(draw: Draw) -> float:
    """All three keep one of D and ε̂ over a step, in which the other terms are exact.

    Four steps of the formula are compared with registered methods and composed solvers: Euler in
    `Noise`, exponential Euler and Adams of one slope in `LogNoise` and `LogData`.
    """
    law, start, sigmas = problem(draw, 4)
    x = start
    for level, low in pairwise(sigmas):
        x = low / level * x + (1 - low / level) * law(x, level)
    same: list[str | Solver] = ["ddim", "edm_euler", "dpm_solver_1", "euler"]
    same += [
        Solver(RungeKutta(tableaus.EULER), Noise(), grids.log),
        Solver(ExponentialRK(dpm_solver_1()), LogData(), grids.log),
        Solver(Adams(1), LogData(), grids.log),
        Solver(Adams(1), LogNoise(), grids.log),
    ]
    return max(residual(solved(law, start, sigmas, method), x) for method in same)


@claim(
    "dpm-solver-2-and-3",
    title="DPM-Solver-2 and -3",
    statement="x' = x − σ'(e^h−1) ε − σ'(e^h−1)(ε_r−ε)/(2r);  third order with r = ⅓, ⅔",
    sources={"dpm": "algorithms 1 and 2", "sdekit": "theory, section 4.7"},
    tags=("coordinates", "solvers"),
    tolerance=1e-11,
    because="round-off",
)
def _dpm(draw: Draw) -> float:
    """In λ = −log σ the integral of e^−λ ε̂ is expanded at the start of the step.

    Two steps of each, written out, are compared with `dpm_solver_2` and `dpm_solver_3`.
    """
    law, start, sigmas = problem(draw, 2)

    def eps(x: Tensor, sigma: float) -> Tensor:
        return (x - law(x, sigma)) / sigma

    second = third = start
    for level, low in pairwise(sigmas):
        h = math.log(level / low)
        first, mid = eps(second, level), level * math.exp(-h / 2)
        u = second - mid * math.expm1(h / 2) * first
        second = second - low * math.expm1(h) * (first + (eps(u, mid) - first))
        first = eps(third, level)
        one, two = (level * math.exp(-r * h) for r in (1 / 3, 2 / 3))
        u = third - one * math.expm1(h / 3) * first
        change = eps(u, one) - first
        u = third - two * math.expm1(2 * h / 3) * first
        u = u - two * 2 * (math.expm1(2 * h / 3) / (2 * h / 3) - 1) * change
        change = eps(u, two) - first
        third = third - low * math.expm1(h) * first
        third = third - low * 1.5 * (math.expm1(h) / h - 1) * change
    found = solved(law, start, sigmas, "dpm_solver_2"), solved(law, start, sigmas, "dpm_solver_3")
    return max(residual(found[0], second), residual(found[1], third))


@claim(
    "dpmpp-2m-is-unip-2",
    title="DPM-Solver++(2M) and UniP-2 are one",
    statement="x' = (σ'/σ) x + (1−e^−h) [(1 + 1/2ρ) D_i − D_{i−1}/2ρ],  ρ = h_{i−1}/h_i",
    sources=NOTES,
    tags=("coordinates", "solvers"),
    tolerance=1e-12,
    because="round-off",
)
def _two_m(draw: Draw) -> float:
    """UniPC solves for its weights, but for ½ where one difference is left: it is then 2M's formula.

    Five steps of the formula, the first of order 1, are compared with `dpmpp_2m` and with UniPC's
    predictor of two slopes; Adams of two slopes has other weights.
    """
    law, start, sigmas = problem(draw, 5)
    x, last, length = start, start, 0.0
    for n, (level, low) in enumerate(pairwise(sigmas)):
        h, new = math.log(level / low), law(x, level)
        slope = new if n == 0 else new + (new - last) * h / (2 * length)
        x = low / level * x - math.expm1(-h) * slope
        last, length = new, h
    unip = Solver(UniPC(2, kind="bh2", corrector=False), LogData(), grids.log)
    return max(residual(solved(law, start, sigmas, method), x) for method in ("dpmpp_2m", unip))


@claim(
    "dpmpp-2s",
    title="DPM-Solver++(2S)",
    statement="u = (σ_r/σ) x + (1−e^−rh) D;  x' = (σ'/σ) x + (1−e^−h) [(1−1/2r) D + D_r/2r],  r = ½",
    sources=NOTES,
    tags=("coordinates", "solvers"),
    tolerance=1e-12,
    because="round-off",
)
def _two_s(draw: Draw) -> float:
    """For r = ½ the second slope alone counts: a midpoint rule in λ with the linear part exact.

    Two steps of the formula are compared with `dpmpp_2s`.
    """
    law, start, sigmas = problem(draw, 2)
    x = start
    for level, low in pairwise(sigmas):
        mid = math.sqrt(level * low)
        u = mid / level * x + (1 - mid / level) * law(x, level)
        x = low / level * x + (1 - low / level) * law(u, mid)
    return residual(solved(law, start, sigmas, "dpmpp_2s"), x)


@claim(
    "exponential-adams",
    title="Adams in λ is an exponential multistep scheme",
    statement="x' = (σ'/σ) x + Σ_j D_{i−j} ∫ e^(u−λ') ℓ_j(u) du over [λ, λ'], or ε̂ with −σ' e^(λ'−u)",
    sources=NOTES,
    tags=("coordinates", "solvers"),
    tolerance=1e-10,
    because="round-off; Gauss–Legendre quadrature of 24 nodes",
)
def _exponential_adams(draw: Draw) -> float:
    """The linear part is taken out by u = x̂/σ or x̂; what is left is interpolated in λ.

    Five steps with weights by quadrature, of up to three slopes, are compared with `xeab3` and
    `deis_logrho3`.
    """
    law, start, sigmas = problem(draw, 5)
    nodes, weights = np.polynomial.legendre.leggauss(24)

    def run(slope: Callable[[Tensor, float], Tensor], *, data: bool) -> Tensor:
        x = start
        known: list[Tensor] = []
        at: list[float] = []
        for level, low in pairwise(sigmas):
            begin, end = -math.log(level), -math.log(low)
            known, at = [slope(x, level), *known][:3], [begin, *at][:3]
            u = begin + (end - begin) * (1 + nodes) / 2
            factor = np.exp(u - end) if data else -np.exp(-u)
            x = (low / level if data else 1.0) * x
            for j, value in enumerate(known):
                others = [a for i, a in enumerate(at) if i != j]
                basis = math.prod(((u - a) / (at[j] - a) for a in others), start=np.ones(24))
                x = x + float((weights * factor * basis).sum()) * (end - begin) / 2 * value
        return x

    by_data = run(law, data=True)
    by_noise = run(lambda x, sigma: (x - law(x, sigma)) / sigma, data=False)
    return max(
        residual(solved(law, start, sigmas, "xeab3"), by_data),
        residual(solved(law, start, sigmas, "deis_logrho3"), by_noise),
    )


@claim(
    "sde-dpmpp-1",
    title="The step of the reverse SDE with D frozen",
    statement="x' = (σ'/σ)^(1+η²) x + (1 − (σ'/σ)^(1+η²)) D + σ' √(1 − (σ'/σ)^(2η²)) ξ",
    sources=NOTES,
    tags=("coordinates", "solvers", "reverse"),
    tolerance=1e-11,
    because="round-off",
)
def _sde_dpmpp(draw: Draw) -> float:
    """With D constant the reverse SDE is linear, and its law over a step is known for every η.

    One step of `sde_dpmpp_1` with a given number is compared with the formula.
    """
    law, x, (sigma, low) = problem(draw, 1)
    eta, z = float(draw.uniform(0.2, 1.5)), draw.normal(BATCH, 2)
    ratio = low / sigma
    keep = ratio ** (1 + eta**2)
    right = keep * x + (1 - keep) * law(x, sigma)
    right = right + low * math.sqrt(1 - ratio ** (2 * eta**2)) * z
    noise = Recorded([z])
    reverse = EDM().reverse(law, eta)
    found = solve(reverse, x, method="sde_dpmpp_1", sigmas=[sigma, low], noise=noise).x
    return residual(found, right, x)
