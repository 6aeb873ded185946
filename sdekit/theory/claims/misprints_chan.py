"""Misprints of Chan's tutorial in chapter 2: DDPM's chain, its posterior, bound and inference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...distributions import Gaussian
from ...processes import DiscreteVP
from ..calculus import residual
from ..claim import Both, claim
from ..draw import Draw

BATCH = 6
LEVELS = 20
ROUNDING = "round-off of a few operations"


def drawn(draw: Draw) -> tuple[DiscreteVP, Tensor]:
    """Draw a schedule: the process, and its ``α_1 … α_N``."""
    alpha = 1 - draw.uniform(0.02, 0.2, LEVELS)
    return DiscreteVP(torch.cumprod(alpha, 0)), alpha


def times(process: DiscreteVP, i: int) -> tuple[Tensor, Tensor]:
    """Times of the steps ``i`` and ``i − 1``, counted from 1."""
    count = len(process.alphas_cumprod)
    now, before = torch.tensor([i / count, (i - 1) / count], dtype=torch.float64)
    return now, before


def ddpm_schedule() -> tuple[Tensor, Tensor, Tensor]:
    """``α_t``, ``ᾱ_t`` and ``ᾱ_{t−1}`` of the thousand steps of Ho et al."""
    alpha = 1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = torch.cumprod(alpha, 0)
    return alpha, bar, torch.cat([torch.ones_like(bar[:1]), bar[:-1]])


def final_variance(keep: Tensor, variance: Tensor) -> float:
    """Variance of what ``x ← keep x + sqrt(variance) z`` makes of N(0, 1), from the last step down."""
    found = 1.0
    for a, b in zip(keep.flip(0).tolist(), variance.flip(0).tolist(), strict=True):
        found = float(a * a * found + b)
    return found


def _posterior(process: DiscreteVP, i: int, x0: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(B, 1)`` and variance ``(B,)`` of step ``i − 1`` given ``x`` at ``i`` and ``x0``."""
    now, before = times(process, i)
    point = Gaussian(x0, 0.0)
    law = point.reverse_transition(
        x / process.scale(now), process.sigma(now), process.sigma(before)
    )
    s = process.scale(before)
    return s * law.mean(), s**2 * law.cov()[:, 0, 0]


def _step(draw: Draw) -> tuple[DiscreteVP, int, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw a process, a step, ``α``, ``ᾱ``, the ``ᾱ`` before, data and states."""
    process, alpha = drawn(draw)
    i = 2 + draw.integer(LEVELS - 1)
    bar = torch.cumprod(alpha, 0)
    x0 = draw.normal(1)
    x = process.perturb(x0.expand(BATCH, 1), times(process, i)[0], noise=draw.normal(BATCH, 1))
    return process, i, alpha[i - 1], bar[i - 1], bar[i - 2], x0, x


@claim(
    "chan-posterior-variance",
    title="Variance of DDPM's posterior",
    statement="Σ_q(t) = (1 − αₜ)(1 − ᾱₜ₋₁)/(1 − ᾱₜ) I",
    printed="Σ_q(t) = (1 − αₜ)(1 − √ᾱₜ₋₁)/(1 − ᾱₜ) I",
    sources={"chan": "theorem 2.5, eq. 61, eq. 67", "ddpm": "eq. 7"},
    tags=("ddpm", "discrete", "misprint"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _posterior_variance(draw: Draw) -> Both:
    """The curvature of the exponent is (1 − ab)/((1 − a)(1 − b)) with b = ᾱₜ₋₁, as Chan finds himself.

    The root stands in eq. 61, in the line for f″ and in eq. 67, so it is no slip of one place.
    The variance is compared with the exact reverse transition of a law that is the point x₀.
    """
    process, i, alpha, bar, before, x0, x = _step(draw)
    exact = _posterior(process, i, x0, x)[1]
    printed = (1 - alpha) * (1 - before.sqrt()) / (1 - bar)
    right = (1 - alpha) * (1 - before) / (1 - bar)
    a, b, c = ddpm_schedule()
    # Data N(0, 1): D = sqrt(ᾱ) x, and the mean of the step is sqrt(α) x.
    wrong = final_variance(a.sqrt(), (1 - a) * (1 - c.sqrt()) / (1 - b))
    good = final_variance(a.sqrt(), (1 - a) * (1 - c) / (1 - b))
    return Both(
        residual(exact, printed.expand(BATCH)),
        residual(exact, right.expand(BATCH)),
        f"the variance of samples of N(0, 1), in 1000 steps, is {wrong:.4f} "
        f"(with the right one {good:.4f})",
    )


@claim(
    "chan-ddpm-update",
    title="DDPM's update from the denoised state",
    statement="xₜ₋₁ = (1 − ᾱₜ₋₁)√αₜ/(1 − ᾱₜ) xₜ + (1 − αₜ)√ᾱₜ₋₁/(1 − ᾱₜ) x̂_θ(xₜ) + σ_q(t) ε",
    printed="xₜ₋₁ = (1 − ᾱₜ₋₁)√ᾱₜ/(1 − ᾱₜ) xₜ + (1 − αₜ)√ᾱₜ₋₁/(1 − ᾱₜ) x̂_θ(xₜ) + σ_q(t) ε",
    sources={"chan": "eq. 83 and the equation before it", "ddpm": "eq. 7"},
    tags=("ddpm", "discrete", "misprint"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _ddpm_update(draw: Draw) -> Both:
    """The mean is that of the posterior, eq. 60, with √αₜ; eq. 83 has √ᾱₜ, and so has the line before.

    Eq. 76 has √αₜ. So it is in the edition of September 2024; others may have it right.
    With x₀ for the denoiser the mean is compared with the exact one of the posterior.
    """
    process, i, alpha, bar, before, x0, x = _step(draw)
    exact = _posterior(process, i, x0, x)[0]
    toward = (1 - alpha) * before.sqrt() / (1 - bar) * x0
    printed = (1 - before) * bar.sqrt() / (1 - bar) * x + toward
    right = (1 - before) * alpha.sqrt() / (1 - bar) * x + toward
    a, b, c = ddpm_schedule()
    spread, pull = (1 - a) * (1 - c) / (1 - b), (1 - a) * c.sqrt() / (1 - b) * b.sqrt()
    wrong = final_variance((1 - c) * b.sqrt() / (1 - b) + pull, spread)
    good = final_variance((1 - c) * a.sqrt() / (1 - b) + pull, spread)
    return Both(
        residual(exact, printed),
        residual(exact, right),
        f"the variance of samples of N(0, 1), in 1000 steps, is {wrong:.4f} "
        f"(with the right one {good:.4f})",
    )


@claim(
    "chan-posterior-noise-form",
    title="Mean of DDPM's posterior from the noise",
    statement="μ_q(xₜ, x₀) = xₜ/√αₜ − (1 − αₜ)/(√(1 − ᾱₜ) √αₜ) ε₀",
    printed="μ_q(xₜ, x₀) = xₜ/√ᾱₜ − (1 − αₜ)/(√(1 − ᾱₜ) √ᾱₜ) ε₀",
    sources={"chan": "eq. 84", "ddpm": "eq. 11"},
    tags=("ddpm", "discrete", "misprint"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _posterior_noise_form(draw: Draw) -> Both:
    """Eq. 84 starts from eq. 60 with √ᾱₜ for √αₜ and keeps it; eq. 85 to 87 have √αₜ.

    So it is in the edition of September 2024; others may have it right.
    With ε₀ = (xₜ − √ᾱₜ x₀)/√(1 − ᾱₜ) the form is compared with the exact mean of the posterior.
    """
    process, i, alpha, bar, _, x0, x = _step(draw)
    exact = _posterior(process, i, x0, x)[0]
    noise = (x - bar.sqrt() * x0) / (1 - bar).sqrt()
    inner = x - (1 - alpha) / (1 - bar).sqrt() * noise
    a, b, _ = ddpm_schedule()
    first = float(a[-1] / b[-1].sqrt())  # for N(0, 1) the mean is α x/√ᾱ
    return Both(
        residual(exact, inner / bar.sqrt()),
        residual(exact, inner / alpha.sqrt()),
        f"for data N(0, 1) the first of 1000 steps with it multiplies the state by {first:.0f} "
        f"instead of {float(a[-1].sqrt()):.3f}",
    )


@claim(
    "chan-training-input",
    title="What a denoiser is trained on",
    statement="xₜ = √ᾱₜ x₀ + √(1 − ᾱₜ) ε",
    printed="xₜ = ᾱₜ x₀ + √(1 − ᾱₜ) ε",
    sources={"chan": "section 2.4, training algorithm for DDPM", "ddpm": "eq. 4"},
    tags=("ddpm", "training", "discrete", "misprint"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _training_input(draw: Draw) -> Both:
    """The line says that it draws from N(√ᾱₜ x₀, (1 − ᾱₜ) I), and has lost a root.

    Notes that readers took of the tutorial have it so, too. It is compared with the process's own
    state from the same noise.
    """
    process, _ = drawn(draw)
    i = 1 + draw.integer(LEVELS)
    now = times(process, i)[0]
    bar = torch.as_tensor(process.alphas_cumprod[i - 1])
    x0, noise = 1 + draw.normal(BATCH, 1).abs(), draw.normal(BATCH, 1)
    state = process.perturb(x0, now, noise=noise)
    a, b, c = ddpm_schedule()
    learnt = b / (b**2 + 1 - b)  # the denoiser of N(0, 1) for the printed states
    keep = (1 - c) * a.sqrt() / (1 - b) + (1 - a) * c.sqrt() / (1 - b) * learnt
    final = final_variance(keep, (1 - a) * (1 - c) / (1 - b))
    return Both(
        residual(state, bar * x0 + (1 - bar).sqrt() * noise),
        residual(state, bar.sqrt() * x0 + (1 - bar).sqrt() * noise),
        "with a denoiser trained on such states, DDPM's samples of N(0, 1) have variance "
        f"{final:.3f}",
    )


def _bounds(
    scale: Tensor, std: Tensor, x0: float, keep: Tensor, spread: Tensor
) -> tuple[float, float]:
    """The bound as eq. 52 defines it, and as theorem 2.3 writes it, in closed form.

    Args:
        scale: ``√ᾱ_t``, ``t = 0 … T``.
        std: ``√(1 − ᾱ_t)``.
        x0: The datum.
        keep: The model is ``p(x_{t−1}|x_t) = N(keep_t x_t, spread_t)``, ``t = 1 … T``.
        spread: Its variances.
    """
    s, n, k, v = scale.tolist(), std.tolist(), [0.0, *keep.tolist()], [0.0, *spread.tolist()]

    def square(i: int, a: float, j: int, b: float) -> float:
        """``E (a x_i − b x_j)²`` for ``i < j``."""
        law = (a * n[i]) ** 2 + (b * n[j]) ** 2 - 2 * a * b * s[j] / s[i] * n[i] ** 2
        return float(law + (x0 * (a * s[i] - b * s[j])) ** 2)

    last = len(s) - 1
    direct = -0.5 * (math.log(2 * math.pi) + n[last] ** 2 + (s[last] * x0) ** 2)
    written = direct
    for t in range(1, last + 1):
        # log p(x_{t−1}|x_t) − log q(x_t|x_{t−1}) without the square of the first
        added = 1 - (s[t] / s[t - 1]) ** 2
        entropies = 0.5 * (1 + math.log(added / v[t]))
        apart = square(t - 1, 1.0, t, k[t])
        direct += entropies - apart / (2 * v[t])
        if t > 1:  # x_{t−1} is drawn anew from x_{t−2}, and knows nothing of x_t
            root = s[t - 1] / s[t - 2]
            apart = 1 - root**2 + square(t - 2, root, t, k[t])
        written += entropies - apart / (2 * v[t])
    return direct, written


def _bound_by_posteriors(process: DiscreteVP, x0: Tensor, keep: Tensor, spread: Tensor) -> float:
    """The bound of theorem 2.4 from exact posteriors."""
    now = times(process, 1)[0]
    mean, std = process.marginal(x0[None], now)
    second = std**2 + mean**2
    inner = x0**2 - 2 * keep[0] * x0 * mean + keep[0] ** 2 * second
    total = -0.5 * torch.log(2 * math.pi * spread[0]) - inner / (2 * spread[0])
    for i in range(2, len(keep) + 1):
        now = times(process, i)[0]
        mean, std = process.marginal(x0[None], now)
        at, variance = _posterior(process, i, x0, torch.stack([mean[0], mean[0] + std]))
        # The mean is linear in x_t: its gap to the model's has these mean and standard deviation.
        gap = at[:, 0] - keep[i - 1] * torch.stack([mean[0, 0], mean[0, 0] + std])
        square = gap[0] ** 2 + (gap[1] - gap[0]) ** 2
        ratio = variance[0] / spread[i - 1]
        total = total - 0.5 * (ratio - 1 - torch.log(ratio) + square / spread[i - 1])
    mean, std = process.marginal(x0[None], times(process, len(keep))[0])
    prior = 0.5 * (std**2 + mean**2 - 1 - 2 * torch.log(std))
    return float(total - prior)


@claim(
    "chan-elbo-consistency",
    title="Consistency terms of the evidence lower bound",
    statement="ELBO = E log p(x₀|x₁) − E KL(q(x_T|x_{T−1})‖p(x_T)) "
    "− Σ E_{q(xₜ₋₁, xₜ, xₜ₊₁|x₀)} log q(xₜ|xₜ₋₁)/p(xₜ|xₜ₊₁)",
    printed="ELBO = E log p(x₀|x₁) − E KL(q(x_T|x_{T−1})‖p(x_T)) "
    "− Σ E_{q(xₜ₋₁, xₜ₊₁|x₀)} KL(q(xₜ|xₜ₋₁)‖p(xₜ|xₜ₊₁))",
    sources={"chan": "theorem 2.3, eq. 49; theorem 2.4"},
    tags=("elbo", "ddpm", "misprint"),
    tolerance=1e-9,
    because="round-off of sums over the steps",
)
def _elbo_consistency(draw: Draw) -> Both:
    """Given x₀, the states are not independent, as the proof says: xₜ₊₁ is made from xₜ.

    With xₜ₋₁ and xₜ₊₁ given, xₜ does not have the law q(xₜ|xₜ₋₁), so that the expectation is no KL
    divergence. Both sides are Gaussian integrals for a linear model, compared with theorem 2.4's
    bound from exact posteriors.
    """
    alpha = 1 - draw.uniform(0.1, 0.5, 5)
    process = DiscreteVP(torch.cumprod(alpha, 0))
    x0 = draw.normal(1)
    keep, spread = draw.uniform(0.5, 1.0, 5), draw.uniform(0.1, 0.6, 5)
    knots = torch.arange(1, 6, dtype=torch.float64) / 5
    scale = torch.cat([torch.ones(1, dtype=torch.float64), process.scale(knots)])
    std = torch.cat([torch.zeros(1, dtype=torch.float64), process.std(knots)])
    direct, written = _bounds(scale, std, float(x0), keep, spread)
    bound = _bound_by_posteriors(process, x0, keep, spread)
    size = abs(bound) + abs(direct)
    a, b, _ = ddpm_schedule()
    root = torch.cat([torch.ones_like(b[:1]), b]).sqrt()
    exact, far = _bounds(root, (1 - root**2).sqrt(), 0.0, a.sqrt(), 1 - a)
    return Both(
        abs(written - bound) / size,
        abs(direct - bound) / size,
        f"with the exact reverse chain of N(0, 1) in 1000 steps the bound at x₀ = 0 is {exact:.4f}, "
        f"the log-likelihood; theorem 2.3 gives {far:.0f}",
    )


@claim(
    "chan-elbo-argmin",
    title="What training does with the evidence lower bound",
    statement="argmax over θ of E ELBO_θ(x₀, ε₀)",
    printed="argmin over θ of E ELBO_θ(x₀, ε₀)",
    sources={"chan": "section 2.5, before the training algorithm"},
    tags=("elbo", "ddpm", "training", "misprint"),
    tolerance=1e-9,
    because="sixty halvings of the distance",
)
def _elbo_argmin(draw: Draw) -> Both:
    """The bound is minus a weighted square, so that it has a largest value and no least one.

    For data N(0, v) and ε̂ = θx, sixty gradient steps up and down the bound are compared with the θ
    of the exact denoiser, ε̂ = (x̂ − D)/σ.
    """
    process, _ = drawn(draw)
    i, data = 2 + draw.integer(LEVELS - 1), Gaussian([0.0], float(draw.uniform(0.3, 2.0)))
    now = times(process, i)[0]
    s, sigma = process.scale(now), process.sigma(now)
    one = torch.ones(1, 1, dtype=torch.float64)  # a state x = 1
    exact = (one / s - data.denoise(one / s, sigma)) / sigma
    second = (s * float(data.moments()[1])) * s + process.std(now) ** 2

    def run(sign: float) -> Tensor:
        theta = torch.zeros(1, 1, dtype=torch.float64)
        for _ in range(60):  # half of a Newton step, whatever the weight of the level
            slope = -2 * (theta * second - process.std(now))
            theta = theta + sign * slope / (4 * second)
        return theta

    return Both(
        residual(exact, run(-1.0)),
        residual(exact, run(1.0)),
        "sixty steps of half of Newton's size, down the bound instead of up, end "
        f"{1.5**60:.0e} times as far from the exact denoiser as they started",
    )
