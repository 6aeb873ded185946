"""Kramers–Moyal coefficients, of diffusions and of jumps, and Pawula's theorem."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...affine import AffineSDE
from ...distributions import Gaussian
from ...forward import simulate
from ..calculus import residual
from ..claim import claim
from ..draw import Draw, sdes


def _raw_moments(mean: Tensor, variance: Tensor) -> list[Tensor]:
    """Moments 1 to 4 of a Gaussian."""
    m, v = mean, variance
    return [m, m**2 + v, m**3 + 3 * m * v, m**4 + 6 * m**2 * v + 3 * v**2]


@claim(
    "kramers-moyal-diffusion",
    title="Kramers–Moyal coefficients of a diffusion",
    statement="Dₙ = lim E[(x(t + h) − x)ⁿ]/(n! h): D₁ = f x, D₂ = ½g², D₃ = D₄ = 0, with error O(h)",
    sources={"chan": "theorem 5.7, eq. 165", "risken": "section 4.1"},
    tags=("kramers-moyal", "forward", "process"),
    kind="rate",
    tolerance=0.05,
    because="slope between steps of 2e-5 and 1e-5 of T; the next order is h²",
    over="process",
)
def _diffusion(process: AffineSDE, draw: Draw) -> float:
    """The moments of the exact transition over a small step, divided by the step.

    What is compared with 1 is the order in h of each of the four differences, where there is one.
    """
    t = process.time(torch.sqrt(torch.tensor(process.sigma_min).double() * 0.3)).reshape(1)
    # In the middle of a piece of a discrete schedule, whose drift has corners at its knots.
    t = (torch.floor(1000 * t / process.T) + 0.5) / 1000 * process.T
    x = process.std(t) * (1 + draw.uniform(0.0, 1.0, 1)).reshape(1, 1)
    wanted = [(process.f(t) * x)[:, 0], process.g(t) ** 2 / 2, 0 * t, 0 * t]
    gaps = []
    for h in (2e-5 * process.T, 1e-5 * process.T):
        mean, std = process.transition(x, t, t + h)
        moments = _raw_moments((mean - x)[:, 0], std**2)
        values = [moment / math.factorial(n + 1) / h for n, moment in enumerate(moments)]
        gaps.append([float((a - b).abs()) for a, b in zip(values, wanted, strict=True)])
    size = max(float(value.abs()) for value in wanted)
    slopes = [math.log2(a / b) for a, b in zip(*gaps, strict=True) if b > 1e-9 * size]
    return max(abs(slope - 1) for slope in slopes)


@claim(
    "kramers-moyal-simulated",
    title="Kramers–Moyal coefficients from simulated paths",
    statement="E[Δx]/h ≈ f,  E[Δx²]/(2h) ≈ ½GGᵀ,  E[Δx⁴]/(24h) ≈ ⅛G⁴h → 0",
    sources={"chan": "theorems 5.7 and 5.8", "risken": "section 4.1"},
    tags=("kramers-moyal", "forward"),
    kind="statistics",
    tolerance=5.0,
    because="standard errors of means over 100 000 paths; the bias by the step is below one",
)
def _simulated(draw: Draw) -> float:
    """Paths of two SDEs with state-dependent noise, by `simulate`, all from one state.

    Each coefficient is a mean over the paths after four Euler–Maruyama steps, over 2e-3 for the
    first and 2e-5 for the others; its difference from what it tends to is in standard errors.
    """
    paths, worst = 100_000, 0.0
    for name in ("double well", "geometric"):
        sde, start = sdes()[name], draw.uniform(-0.8, 0.8, 1, 1)
        t = draw.uniform(0.2, 0.7, 1)
        square = float(sde.diffusion(start, t).reshape(()) ** 2)
        drift = float(sde.drift(start, t).reshape(()))
        for h, powers in ((2e-3, (1,)), (2e-5, (2, 4))):
            times = float(t) + np.linspace(0.0, h, 5)
            begin, seed = start.expand(paths, 1).contiguous(), draw.integer(2**31)
            states = simulate(sde, begin, times, method="euler_maruyama_t", seed=seed)
            moved = (states[-1] - start)[:, 0]
            wanted = {1: drift * h, 2: square * h, 4: 3 * (square * h) ** 2}
            for power in powers:
                values = moved**power
                error = float(values.std()) / math.sqrt(paths)
                worst = max(worst, abs(float(values.mean()) - wanted[power]) / error)
    return worst


def _touchard(mean: float, count: int) -> list[float]:
    """Moments 1 to ``count`` of a Poisson number: ``Σ S(n, k) meanᵏ``."""
    numbers, moments = [1], []
    for _ in range(count):
        grown = [0] * (len(numbers) + 1)
        for k, value in enumerate(numbers):
            grown[k] += k * value
            grown[k + 1] += value
        numbers = grown
        moments.append(sum(value * mean**k for k, value in enumerate(numbers)))
    return moments


@claim(
    "pawula",
    title="Pawula's theorem: a jump process has all coefficients",
    statement="((2n + m)! D₂ₙ₊ₘ)² ≤ (2n)! D₂ₙ (2n + 2m)! D₂ₙ₊₂ₘ; Poisson jumps: Dₙ = ν aⁿ/n!, equality",
    sources={"risken": "section 4.3", "chan": "theorem 5.8"},
    tags=("kramers-moyal",),
    kind="rate",
    tolerance=0.05,
    because="slope between steps of 2e-3 and 1e-3 over the mean time between jumps",
)
def _pawula(draw: Draw) -> float:
    """Schwarz's inequality for moments of the increment, so the factorials belong to it.

    The coefficients of a Poisson process from the exact moments over a step h tend to ``ν aⁿ/n!``
    with error O(h), the third and fourth as the first two; both sides of the inequality, for all
    pairs up to D₈, hold for Poisson jumps of random sizes and are equal for those of one size.
    """
    rate, jump = float(draw.uniform(0.5, 3.0)), float(draw.uniform(0.3, 1.5))
    gaps = []
    for h in (2e-3 / rate, 1e-3 / rate):
        moments = _touchard(rate * h, 4)
        gaps.append(
            [m * jump ** (n + 1) / h - rate * jump ** (n + 1) for n, m in enumerate(moments)]
        )
    slopes = [math.log2(a / b) for a, b in zip(*gaps, strict=True) if abs(b) > 1e-12]
    sizes, shares = draw.uniform(-1.0, 1.5, 5), torch.softmax(draw.normal(5), 0)
    for n, m in ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3)):
        powers = (2 * n, 2 * n + m, 2 * n + 2 * m)
        # n! Dₙ = ν E[aⁿ], for jumps of random sizes and for those of one size
        low, middle, high = (float(rate * (shares * sizes**power).sum()) for power in powers)
        one = [rate * jump**power for power in powers]
        if middle**2 > low * high * (1 + 1e-12) or abs(one[1] ** 2 / one[0] / one[2] - 1) > 1e-12:
            return math.inf
    return max(abs(slope - 1) for slope in slopes)


@claim(
    "kramers-moyal-series",
    title="The whole expansion is the master equation; its first two terms are not",
    statement="Σₙ (−∂)ⁿ(Dₙ p) = ν (p(x − a) − p(x)) for Dₙ = ν aⁿ/n!",
    sources={"chan": "eq. 165", "risken": "chapter 4"},
    tags=("kramers-moyal", "density"),
    tolerance=1e-10,
    because="60 terms of the Taylor series of a Gaussian density",
)
def _series(draw: Draw) -> float:
    """For jumps of size a the expansion is Taylor's series of the shifted density.

    The derivatives of a Gaussian are Hermite polynomials; its values are those of `Gaussian`. Cut
    off after the second term, as for a diffusion, the series misses the sum by more than 1 %.
    """
    std, jump, rate = float(draw.uniform(0.7, 1.5)), float(draw.uniform(0.3, 0.8)), 1.7
    law, x = Gaussian([0.0], std**2), draw.uniform(-1.5, 1.5, 6)
    density, terms = torch.exp(law.log_prob(x[:, None])), []
    hermite, before = torch.ones_like(x), torch.zeros_like(x)
    for n in range(1, 61):
        # ∂ⁿp = (−1)ⁿ He_n(x/std) p/stdⁿ
        hermite, before = (x / std) * hermite - (n - 1) * before, hermite
        terms.append(rate * (jump / std) ** n / math.factorial(n) * hermite * density)
    series = torch.stack(terms)
    jumped = rate * (torch.exp(law.log_prob(x[:, None] - jump)) - density)
    cut = residual(series[:2].sum(0).reshape(1, -1), jumped.reshape(1, -1))
    right = residual(series.sum(0).reshape(1, -1), jumped.reshape(1, -1))
    return math.inf if cut < 0.01 else right
