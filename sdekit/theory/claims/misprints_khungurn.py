"""Misprints in Khungurn's note on the paper of Karras et al."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ... import grids
from ...affine import AffineSDE
from ...coordinates import Noise
from ...distributions import Gaussian
from ...linear import LinearSDE
from ...processes import EDM, VP
from ...sampling import solve
from ...sde import expand
from ...solvers import tableaus
from ...solvers.noisy import Churn
from ...solvers.registry import Solver
from ...solvers.rk import RungeKutta
from ..calculus import log_derivative, residual
from ..claim import Both, claim
from ..draw import Draw
from ..noises import Impulses
from .edm import schedule

BATCH = 6
STEPS = 1000


def sampler(
    process: AffineSDE, *, heun: bool = False, drift: bool = False, noise: bool = False
) -> float:
    """Variance of what algorithm 3 or 4, with β = 1, makes of the true law of N(0, 1) data.

    Every step is linear in the state, so the variance is propagated exactly. The grid is of Karras
    et al. with ρ = 3, from the process's σ_max to its σ_min.

    Args:
        process: The process.
        heun: Whether it is algorithm 4, with noise first and then a step of Heun.
        drift: Whether ``1 + β`` stands as printed, which in algorithm 4 is tried in d' alone.
        noise: Whether the noise is as printed.

    Returns:
        The variance, relative to that of the law at the end.
    """
    law = Gaussian([0.0], 1.0)
    sigmas = grids.karras(STEPS, min(process.sigma_max, 80.0), process.sigma_min, rho=3.0)
    times = torch.from_numpy(process.on_host("time", sigmas))
    s, sigma, ds, dsigma = schedule(process, times)
    back, own = dsigma / sigma, ds / s
    gain = law(torch.ones(len(s), 1, dtype=torch.float64), sigma)[:, 0]  # D of x̂ = 1
    wrong = drift and not heun
    slope = (1 if wrong else 2) * back + (2 if wrong else 1) * own - 2 * back * gain
    second = back + own - back * gain if drift else slope
    size = 2 * sigma * dsigma * (1 if noise else s**2)
    length, total = times.diff(), s**2 * (1 + sigma**2)
    factor, kick = 1 + length * slope[:-1], -length * size[:-1]
    if heun:
        factor = 1 + length * (slope[:-1] + second[1:] * factor) / 2
        kick = kick * factor**2  # the noise comes first
    variance = float(total[0])
    for keep, added in zip((factor**2).tolist(), kick.tolist(), strict=True):
        variance = keep * variance + added
    return variance / float(total[-1])


@cache
def found(name: str) -> str:
    """Tell what comes of a misprint of algorithm 3 or 4."""
    where = "VP" if name == "noise" else "EDM (s = 1)"
    if name == "drift":
        printed, right = (sampler(EDM(), drift=v) for v in (True, False))
    elif name == "noise":
        printed, right = (sampler(VP(), noise=v) for v in (True, False))
    else:
        printed, right = (sampler(EDM(), heun=True, drift=v) for v in (True, False))
    return (
        f"on {where}, with β = 1 and {STEPS} steps, samples of N(0, 1) data have {printed:.3g} times "
        f"their variance as printed, {right:.3f} times as corrected"
    )


@claim(
    "khungurn-algorithm-drift",
    title="Where 1 + β stands in algorithms 3 and 4",
    statement="d = ((1+β) σ̇/σ + ṡ/s) x − (1+β) s (σ̇/σ) D",
    printed="d = (σ̇/σ + (1+β) ṡ/s) x − (1+β) s (σ̇/σ) D",
    sources={"khungurn": "algorithm 3, line 4; algorithm 4, line 6"},
    tags=("misprint", "edm", "reverse"),
    tolerance=1e-10,
    because="round-off of first derivatives",
    over="process",
)
def _algorithm_drift(process: AffineSDE, draw: Draw) -> Both:
    """The algorithms are to simulate his eq. 5, where 1 + β multiplies σ̇/σ.

    Both lines are compared with the drift of sdekit's reverse SDE for η² = β. For s = 1, as in EDM,
    the printed x is not drawn away from the origin as fast as D draws towards it.
    """
    law, t = draw.mixture(), draw.times(process, BATCH)
    x, beta = draw.states(process, law, t), float(draw.uniform(0.5, 2.0))
    s, sigma, ds, dsigma = (expand(v, x) for v in schedule(process, t))
    back, own, keep = dsigma / sigma, ds / s, 1 + beta
    pull = keep * s * back * law(x / s, sigma.flatten())
    drift = process.reverse(law, math.sqrt(beta)).f(t, x)
    printed, right = ((a * back + b * own) * x - pull for a, b in ((1, keep), (keep, 1)))
    return Both(residual(drift, printed), residual(drift, right, back * x), found("drift"))


@claim(
    "khungurn-algorithm-noise",
    title="The scale of the noise in algorithms 3 and 4",
    statement="ξ ~ N(0, 2 β s² σ σ̇ I)",
    printed="ξ ~ N(0, 2 β σ σ̇ I)",
    sources={"khungurn": "algorithm 3, line 5; algorithm 4, line 3"},
    tags=("misprint", "edm", "reverse"),
    tolerance=1e-10,
    because="round-off of first derivatives",
)
def _algorithm_noise(draw: Draw) -> Both:
    """His eq. 5, which the algorithms are to simulate, has the noise s √(2βσσ̇) dW̄.

    Both are compared with the diffusion of sdekit's reverse SDE for η² = β, on VP; for s = 1 they
    are the same.
    """
    process, beta = VP(), float(draw.uniform(0.5, 2.0))
    t, law = draw.times(process, BATCH), draw.gaussian()
    s, sigma, _, dsigma = schedule(process, t)
    size = process.reverse(law, math.sqrt(beta)).g(t, draw.normal(BATCH, 2))[:, 0] ** 2
    bare = 2 * beta * sigma * dsigma
    return Both(residual(size, bare), residual(size, s**2 * bare), found("noise"))


@claim(
    "khungurn-algorithm-corrector",
    title="The corrector of algorithm 4",
    statement="d' = ((1+β) σ̇/σ + ṡ/s) x' − (1+β) s (σ̇/σ) D(x'/s, σ), as d",
    printed="d' = (σ̇/σ + ṡ/s) x' − s (σ̇/σ) D(x'/s, σ)",
    sources={"khungurn": "algorithm 4, line 9"},
    tags=("misprint", "edm", "reverse", "solvers"),
    tolerance=1e-10,
    because="round-off of first derivatives",
    over="process",
)
def _algorithm_corrector(process: AffineSDE, draw: Draw) -> Both:
    """Heun averages two slopes of one equation; the printed corrector is that of the ODE.

    For short steps the mean displacement of algorithm 4 over the step, with d as corrected, is
    ½ (d + d') at the same point and time. It is compared with the drift of sdekit's reverse SDE.
    """
    law, t = draw.mixture(), draw.times(process, BATCH)
    x, beta = draw.states(process, law, t), float(draw.uniform(0.5, 2.0))
    s, sigma, ds, dsigma = (expand(v, x) for v in schedule(process, t))
    back, denoised = dsigma / sigma, law(x / s, sigma.flatten())

    def slope(keep: float) -> Tensor:
        return (keep * back + ds / s) * x - keep * s * back * denoised

    drift = process.reverse(law, math.sqrt(beta)).f(t, x)
    printed, right = ((slope(1 + beta) + slope(k)) / 2 for k in (1.0, 1 + beta))
    return Both(residual(drift, printed), residual(drift, right, back * x), found("corrector"))


@claim(
    "khungurn-mean-ode",
    title="The mean of a linear SDE",
    statement="dμ/dt = F μ + u",
    printed="dμ/dt = F μ",
    sources={"khungurn": "theorem 1", "sarkka": "eq. 6.2"},
    tags=("misprint", "linear", "forward"),
    tolerance=1e-9,
    because="differences of order 8",
)
def _mean_ode(draw: Draw) -> Both:
    """The drift is linear, so its mean is that at the mean. What follows in the note has u = 0.

    The mean of sdekit's `LinearSDE` is differentiated in time, and compared with both. For F = −1 and
    u = 1 it is told where means end.
    """
    F, u, start = draw.normal(2, 2) / 2, draw.normal(2), draw.normal(2)
    sde, t = LinearSDE(F, u, torch.eye(2, dtype=torch.float64)), float(draw.uniform(0.3, 0.8))
    rate = log_derivative(lambda times: np.stack([sde.mean(start, float(v)) for v in times]), t) / t
    found, drift = torch.from_numpy(rate)[None], (F @ sde.mean(start, t))[None]
    pulled = float(LinearSDE([[-1.0]], [1.0], [[0.0]], T=20.0).mean([0.0], 20.0))
    what = f"for F = −1, u = 1 and μ(0) = 0 the mean at t = 20 is {pulled:.3f}, as printed 0"
    return Both(residual(found, drift), residual(found, drift + u, drift), what)


@claim(
    "khungurn-mean-of-x",
    title="The mean of x(t)",
    statement="μ(t) = s(t) x(0)",
    printed="μ(0) = s(t) x(0)",
    sources={"khungurn": "section 2.2"},
    tags=("misprint", "process", "forward"),
    tolerance=1e-12,
    because="round-off",
)
def _mean_of_x(draw: Draw) -> Both:
    """The solution of dμ/dt = f μ at time t; at time 0 it is x(0). The slip is printed twice.

    The means of `VP`'s kernel at t and at 0 are compared with s(t) x(0).
    """
    process, x0 = VP(), draw.normal(BATCH, 2)
    t = draw.uniform(0.3, 0.9, BATCH)
    right = expand(process.scale(t), x0) * x0
    start, end = (process.marginal(x0, time)[0] for time in (torch.zeros_like(t), t))
    scale = float(process.scale(torch.tensor(0.5, dtype=torch.float64)))
    what = f"on VP at t = 0.5 it would make x(0) = {scale:.3f} x(0)"
    return Both(residual(start, right), residual(end, right), what)


@claim(
    "khungurn-scale",
    title="The scale in the proof of proposition 2",
    statement="s(t) = exp ∫₀ᵗ f(u) du",
    printed="s(t) = ∫₀ᵗ f(u) du",
    sources={"khungurn": "proposition 2, proof"},
    tags=("misprint", "process"),
    tolerance=1e-10,
    because="round-off; Gauss–Legendre quadrature of a polynomial is exact",
)
def _scale(draw: Draw) -> Both:
    """The proposition itself has the exponential, and the next line of the proof as well.

    The integral of `VP`'s f by quadrature is compared with its scale.
    """
    process, t = VP(), draw.uniform(0.3, 0.9, BATCH)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(4))
    u = t[:, None] * (1 + nodes) / 2
    integral = (process.f(u) * weights).sum(1) * t / 2
    scale = process.scale(t)
    what = f"as printed VP's scale at t = 1 is {-0.5 * (0.1 + 19.9 / 2):.3f} instead of 0.0066"
    return Both(residual(scale, integral), residual(scale, torch.exp(integral)), what)


@claim(
    "khungurn-sampler-sde",
    title="The SDE of EDM's stochastic sampler, for s = 1 and σ = t",
    statement="dx = (1+β) (x − D(x, t))/t dt + √(2βt) dW̄, which is eq. 5 with s = 1, σ = t",
    printed="dx = (1+β) (x − D(x, t))/t + √(βt) dW̄, which is eq. 5 with s = 1, σ = t",
    sources={"khungurn": "section 4"},
    tags=("misprint", "edm", "reverse"),
    tolerance=1e-10,
    because="round-off",
)
def _sampler_sde(draw: Draw) -> Both:
    """Eq. 5 has the noise s √(2βσσ̇), which is √(2βt) here; the factor 2 is lost, and a dt.

    The noise is compared with sdekit's reverse SDE of `EDM` for η² = β, the drift, with dt, as well.
    For data N(0, 1) and β = 1 the stationary balance of a step gives the consequence.
    """
    process, law, beta = EDM(), draw.mixture(), float(draw.uniform(0.5, 2.0))
    t = draw.levels(BATCH)
    x, reverse = draw.normal(BATCH, 2) * t[:, None], process.reverse(law, math.sqrt(beta))
    drift = (1 + beta) * (x - law(x, t)) / t[:, None]
    same = residual(reverse.f(t, x), drift, x / t[:, None])
    size = reverse.g(t, x)[:, 0]
    printed, right = (residual(size, torch.sqrt(k * beta * t)) for k in (1, 2))
    what = f"with β = 1, samples of N(0, 1) data have {half_noise():.3f} of the variance"
    return Both(printed, max(right, same), what)


@cache
def half_noise() -> float:
    """Relative variance of samples where the noise has half its variance, β = 1, data N(0, 1)."""
    # v' = λ + σ'²: the start keeps (v'/v)², and the noise gives v' (1 − v'/v), of which half is there.
    low, high = (1 + sigma**2 for sigma in (0.002, 80.0))
    return low / high + (1 - low / high) / 2


@claim(
    "khungurn-churn-noise",
    title="The noise that EDM's sampler adds",
    statement="√(t̂² − t²) = √((1+γ)² t² − t²) = √(γ (2+γ)) t",
    printed="√(t̂² − t²) = √((1+γ) t² − t²) = √γ t",
    sources={"khungurn": "section 4", "edm": "algorithm 2"},
    tags=("misprint", "edm", "solvers"),
    tolerance=1e-10,
    because="round-off",
)
def _churn_noise(draw: Draw) -> Both:
    """EDM raises the level to t̂ = t + γ t, so its square to (1+γ)² t².

    The copy at hand has lost the minus signs, here put back; its result √γ t is not in doubt.
    For a denoiser that says x itself the flow stands still, and one step of `Churn` shows its noise.
    """
    gamma, t = float(draw.uniform(0.05, 0.41)), float(draw.levels())
    scheme = Churn(RungeKutta(tableaus.EULER), s_churn=gamma, s_min=0.0, s_max=np.inf, s_noise=1.0)
    solver, x = Solver(scheme, Noise(), grids.karras), torch.zeros(2, 1, dtype=torch.float64)
    flow = EDM().probability_flow(lambda y, _: y)
    kick = solve(flow, x, method=solver, sigmas=[t, 0.5 * t], noise=Impulses()).x[1]
    printed, right = (
        residual(kick, torch.tensor([v * t], dtype=torch.float64))
        for v in (math.sqrt(gamma), math.sqrt(gamma * (2 + gamma)))
    )
    what = (
        f"for γ = 0.02 noise of √γ t has {1 / 2.02:.3f} of the variance that raises the level to t̂"
    )
    return Both(printed, right, what)
