"""The processes of the literature against their printed formulas, and what all of them share."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...affine import AffineSDE
from ...processes import EDM, VE, VP, CosineVP, DiscreteVP, RectifiedFlow, SubVP
from ..calculus import gradient, residual
from ..claim import claim
from ..draw import Draw

BATCH = 6
_NODES, _WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(8))


def _compare(process: AffineSDE, t: Tensor, wanted: dict[str, Tensor]) -> float:
    """Residual of a process's own functions of time, by name, against given values."""
    values = {
        "s": process.scale(t),
        "σ": process.sigma(t),
        "n": process.std(t),
        "f": process.f(t),
        "g²": process.g(t) ** 2,
        "time": process.time(process.sigma(t)),
    }
    one = torch.ones((1, 1), dtype=t.dtype)
    mean, std = process.marginal(one.expand(len(t), 1), t)
    worst = max(residual(mean[:, 0], values["s"]), residual(std, values["n"]))
    return max(worst, *(residual(values[name], right) for name, right in wanted.items()))


def _betas(draw: Draw) -> tuple[float, float]:
    return float(draw.uniform(0.05, 1.0)), float(draw.uniform(5.0, 20.0))


@claim(
    "vp-kernel",
    title="Variance-preserving process",
    statement="N(x₀ e^(−¼t²(β₁−β₀)−½tβ₀), 1 − e^(−½t²(β₁−β₀)−tβ₀)), f = −½β(t), g = √β(t)",
    sources={"song2021": "eq. 11, 29, appendix C", "chen": "eq. 88, 89"},
    tags=("process", "forward"),
    tolerance=1e-11,
    because="round-off",
)
def _vp(draw: Draw) -> float:
    """Mean, variance, drift, diffusion and the time of a noise level, each written out in β₀ and β₁.

    The time solves a quadratic equation for ``B = log(1 + σ²)``.
    """
    low, high = _betas(draw)
    t, k = draw.uniform(0.02, 1.0, BATCH), high - low
    variance = -torch.expm1(-0.5 * t**2 * k - t * low)
    mean = torch.exp(-0.25 * t**2 * k - 0.5 * t * low)
    beta = low + t * k
    B = torch.log1p(variance / mean**2)
    wanted = {
        "s": mean,
        "n": torch.sqrt(variance),
        "σ": torch.sqrt(variance) / mean,
        "f": -0.5 * beta,
        "g²": beta,
        "time": (torch.sqrt(low**2 + 2 * k * B) - low) / k,
    }
    process = VP(beta_min=low, beta_max=high)
    last = math.sqrt(math.expm1(0.5 * (low + high)))
    first = math.sqrt(math.expm1(low * 1e-3 + 0.5e-6 * k))
    ends = torch.tensor([process.sigma_max / last, process.sigma_min / first], dtype=t.dtype)
    return max(_compare(process, t, wanted), residual(ends, torch.ones_like(ends)))


@claim(
    "sub-vp-kernel",
    title="Sub-variance-preserving process",
    statement="N(x₀ e^(−B/2), (1 − e^(−B))²), f = −½β, g² = β (1 − e^(−2B)), B = ∫β",
    sources={"song2021": "eq. 12, 29, appendix C", "chen": "eq. 92"},
    tags=("process", "forward"),
    tolerance=1e-11,
    because="round-off",
)
def _sub_vp(draw: Draw) -> float:
    """All written out in β₀ and β₁; the standard deviation is the variance of the VP process.

    So its variance is the smaller one, by the factor ``1 − e^(−B)``.
    """
    low, high = _betas(draw)
    t, k = draw.uniform(0.02, 1.0, BATCH), high - low
    B, beta = 0.5 * t**2 * k + t * low, low + t * k
    std, mean = -torch.expm1(-B), torch.exp(-0.5 * B)
    wanted = {
        "s": mean,
        "n": std,
        "σ": std / mean,
        "f": -0.5 * beta,
        "g²": beta * (1 - torch.exp(-2 * B)),
        "time": t,
    }
    above = VP(beta_min=low, beta_max=high).std(t)
    process = SubVP(beta_min=low, beta_max=high)
    excess = float((process.std(t) >= above).any())
    return max(_compare(process, t, wanted), residual(process.std(t), above**2), excess)


@claim(
    "ve-kernel",
    title="Variance-exploding process",
    statement="N(x₀, σ₀²(σ₁/σ₀)^(2t)), f = 0, g = σ₀(σ₁/σ₀)^t √(2 log(σ₁/σ₀)); from x(0): less σ₀²",
    sources={"song2021": "eq. 9, 29, appendix C", "chen": "eq. 90"},
    tags=("process", "forward"),
    tolerance=1e-11,
    because="round-off",
)
def _ve(draw: Draw) -> float:
    """All written out in σ₀ and σ₁. What starts at time 0 is the data blurred by σ₀.

    So the transition from time 0 has a variance that is smaller by ``σ₀²``.
    """
    low, high = float(draw.log_uniform(0.005, 0.1)), float(draw.uniform(10.0, 90.0))
    t, ratio = draw.uniform(0.02, 1.0, BATCH), high / low
    sigma = low * ratio**t
    wanted = {
        "s": torch.ones_like(t),
        "n": sigma,
        "σ": sigma,
        "f": torch.zeros_like(t),
        "g²": sigma**2 * 2 * math.log(ratio),
        "time": torch.log(sigma / low) / math.log(ratio),
    }
    process = VE(sigma_min=low, sigma_max=high)
    start = draw.normal(BATCH, 1)
    mean, std = process.transition(start, torch.zeros_like(t), t)
    ends = torch.tensor([process.sigma_max / high, process.sigma_min / low], dtype=t.dtype)
    return max(
        _compare(process, t, wanted),
        residual(mean, start),
        residual(std**2, sigma**2 - low**2),
        residual(ends, torch.ones_like(ends)),
    )


@claim(
    "edm-process",
    title="EDM's process",
    statement="s = 1, σ = t, f = 0, g = √(2t), from t = σ_min to σ_max",
    sources={"edm": "table 1"},
    tags=("process", "edm"),
    tolerance=1e-13,
    because="round-off",
)
def _edm(draw: Draw) -> float:
    """Time is the noise level, from which its range is taken as well."""
    low, high = float(draw.log_uniform(0.001, 0.1)), float(draw.uniform(10.0, 90.0))
    process, t = EDM(sigma_min=low, sigma_max=high), draw.log_uniform(low, high, BATCH)
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    wanted = {"s": one, "n": t, "σ": t, "f": zero, "g²": 2 * t, "time": t}
    ends = torch.tensor([process.T, process.sigma_max, process.t_min, process.sigma_min])
    right = torch.tensor([high, high, low, low])
    return max(_compare(process, t, wanted), residual(ends.double(), right.double()))


@claim(
    "cosine-kernel",
    title="Cosine schedule",
    statement="s² = ᾱ = cos²(½π(t + o)/(1 + o))/cos²(½πo/(1 + o)), n² = 1 − ᾱ, g² = −d log ᾱ/dt",
    sources={"sdekit": "docs/mathematics.md, after Nichol and Dhariwal 2021, eq. 17"},
    tags=("process", "ddpm"),
    tolerance=1e-11,
    because="round-off",
)
def _cosine(draw: Draw) -> float:
    """The schedule is printed as an ᾱ; that it preserves variance gives all the rest.

    The rate of its logarithm is differentiated automatically.
    """
    offset = float(draw.uniform(0.004, 0.03))
    process, t = CosineVP(offset=offset), draw.uniform(0.05, 0.95, BATCH)

    def alpha(u: Tensor) -> Tensor:
        top = torch.cos(0.5 * torch.pi * (u + offset) / (1 + offset))
        return (top / math.cos(0.5 * math.pi * offset / (1 + offset))) ** 2

    rate = gradient(lambda u: torch.log(alpha(u)), t)
    wanted = {
        "s": torch.sqrt(alpha(t)),
        "n": torch.sqrt(1 - alpha(t)),
        "σ": torch.sqrt((1 - alpha(t)) / alpha(t)),
        "f": 0.5 * rate,
        "g²": -rate,
        "time": t,
    }
    return _compare(process, t, wanted)


@claim(
    "straight-paths",
    title="Rectified flow",
    statement="x = (1 − t) x₀ + t ε, so σ = t/(1 − t), f = −1/(1 − t), g² = 2t/(1 − t)",
    sources={"flow": "section 4.1, with noise at t = 1"},
    tags=("process", "flow"),
    tolerance=1e-12,
    because="round-off",
)
def _rectified(draw: Draw) -> float:
    """The path is a straight line from data to noise; drift and diffusion follow."""
    process, t = RectifiedFlow(), draw.uniform(0.02, 0.98, BATCH)
    x0, noise = draw.normal(BATCH, 2), draw.normal(BATCH, 2)
    line = (1 - t[:, None]) * x0 + t[:, None] * noise
    wanted = {
        "s": 1 - t,
        "n": t,
        "σ": t / (1 - t),
        "f": -1 / (1 - t),
        "g²": 2 * t / (1 - t),
        "time": t,
    }
    return max(_compare(process, t, wanted), residual(process.perturb(x0, t, noise=noise), line))


@claim(
    "discrete-levels",
    title="A discrete schedule made continuous",
    statement="s(tᵢ)² = ᾱᵢ, n(tᵢ)² = 1 − ᾱᵢ at tᵢ = (i + 1)/N; between them g² = −2f, as for every VP",
    sources={"ddpm": "eq. 4", "chen": "eq. 74"},
    tags=("process", "ddpm", "discrete"),
    tolerance=1e-11,
    because="round-off",
)
def _discrete(draw: Draw) -> float:
    """The ᾱ are products of ``1 − β`` for random β: at the knots they are met, and found again.

    Between the knots the process stays variance-preserving, and the level increases; below the
    first its logarithm goes on in a straight line through the first two.
    """
    betas = draw.log_uniform(1e-3, 0.2, 12)
    alphas = torch.cumprod(1 - betas, 0)
    process = DiscreteVP(alphas)
    t = torch.arange(1, 13, dtype=torch.float64) / 12
    between = draw.uniform(1 / 12, 1.0, 200).sort().values
    rises = float((torch.diff(process.sigma(between)) < 0).any())
    before = process.sigma(t[:1] / 2) ** 2
    levels = (1 - alphas) / alphas
    ends = torch.tensor([process.sigma_max, process.sigma_min], dtype=t.dtype) ** 2
    return max(
        rises,
        residual(process.scale(t) ** 2, alphas),
        residual(process.std(t) ** 2, 1 - alphas),
        residual(process.time(process.sigma(t)), t),
        residual(process.g(between) ** 2, -2 * process.f(between)),
        residual(ends, levels[[-1, 0]]),
        residual(before, levels[:1] ** 1.5 / levels[1:2] ** 0.5),
    )


@claim(
    "coefficients-from-schedule",
    title="Drift and diffusion from scale and noise level",
    statement="f = ṡ/s,  g² = s² d(σ²)/dt,  ṅ = f n + g²/(2n) for n = s σ",
    sources={"edm": "appendix B.1", "khungurn": "section 2.3"},
    tags=("process", "edm"),
    tolerance=1e-9,
    because="round-off of automatic differentiation",
    over="process",
)
def _from_schedule(process: AffineSDE, draw: Draw) -> float:
    """Scale and level are differentiated automatically, and compared with f, g and the rates."""
    t = draw.times(process, BATCH)
    s, n, f, g = process.scale(t), process.std(t), process.f(t), process.g(t)
    ds, dv = gradient(process.scale, t), gradient(lambda u: process.sigma(u) ** 2, t)
    rate_s, rate_n = process.rates(t)
    return max(
        residual(n, s * process.sigma(t)),
        residual(f * s, ds, s),
        residual(g**2, s**2 * dv),
        residual(rate_s, ds, s),
        residual(rate_n, gradient(process.std, t), f * n),
        residual(rate_n, f * n + g**2 / (2 * n), f * n),
    )


@claim(
    "schedule-from-coefficients",
    title="Scale and noise level from drift and diffusion",
    statement="s(t)/s(r) = exp ∫ᵣᵗ f,  σ(t)² − σ(r)² = ∫ᵣᵗ g²/s²",
    sources={"edm": "appendix B.1", "khungurn": "section 2.2, proposition 2", "chen": "eq. 80, 83"},
    tags=("process", "edm", "linear"),
    tolerance=1e-9,
    because="composite Gauss–Legendre quadrature, with the knots of discrete schedules as its edges",
    over="process",
)
def _from_coefficients(process: AffineSDE, draw: Draw) -> float:
    """Drift and ``g²/s²`` are integrated between two times, and compared with what s and σ say."""
    r, t = (float(u) for u in draw.ordered_times(process, 1))
    edges = torch.arange(1, 1000, dtype=torch.float64) / 1000 * process.T
    inner = edges[(edges > r) & (edges < t)]
    ends = torch.tensor([r, t], dtype=torch.float64)
    edges = torch.cat([ends[:1], inner, ends[1:]])
    half = torch.diff(edges)[:, None] / 2
    nodes = ((edges[:-1, None] + half) + half * _NODES).reshape(-1)
    weights = (half * _WEIGHTS).reshape(-1)
    log_scale = (weights * process.f(nodes)).sum()
    variance = (weights * (process.g(nodes) / process.scale(nodes)) ** 2).sum()
    s, v = process.scale(ends), process.sigma(ends) ** 2
    return max(
        residual(torch.exp(log_scale).reshape(1), (s[1] / s[0]).reshape(1)),
        residual(variance.reshape(1), (v[1] - v[0]).reshape(1)),
    )


@claim(
    "time-of-level",
    title="The noise level is a clock",
    statement="t(σ(t)) = t and σ(t(σ)) = σ; σ_min = σ(t_min), σ_max = σ(T)",
    sources={"edm": "section 3", "sdekit": "theory, 4.1"},
    tags=("process",),
    tolerance=1e-9,
    because="bisection and closed forms lose what σ's slope loses",
    over="process",
)
def _time_of_level(process: AffineSDE, draw: Draw) -> float:
    """σ increases, so it can be read backward.

    There and back at random times; and the ends of the levels are the levels of the ends.
    """
    t = draw.times(process, BATCH)
    back = process.time(process.sigma(t))
    ends = torch.tensor([process.t_min, process.T], dtype=torch.float64)
    levels = torch.tensor([process.sigma_min, process.sigma_max], dtype=torch.float64)
    finite = torch.isfinite(levels)
    return max(
        residual(back, t),
        residual(process.sigma(back), process.sigma(t)),
        residual(process.sigma(ends)[finite], levels[finite]),
        residual(process.time(levels), ends),
    )
