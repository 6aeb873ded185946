"""DDIM: the family with DDPM's marginals, and the steps of sdekit that belong to it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...adapters.predictions import coefficients
from ...brownian import IndependentNoise
from ...processes import VP, CosineVP
from ...sampling import solve
from ..calculus import residual
from ..claim import claim
from ..draw import Draw, processes
from .ddpm import Schedule, schedule


def family(chain: Schedule, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients ``(T,)`` of ``x_t`` and ``x_0`` in the mean of DDIM's ``q_σ(x_{t−1}|x_t, x_0)``."""
    of_state = torch.sqrt((1 - chain.before - spread**2).clamp(min=0) / (1 - chain.bar))
    return of_state, chain.before.sqrt() - of_state * chain.bar.sqrt()


def joint_covariance(chain: Schedule, spread: Tensor, variance: float) -> Tensor:
    """Covariance ``(T + 1, T + 1)`` of ``x_0, …, x_T`` under ``q_σ``, for data of a variance."""
    of_state, of_data = family(chain, spread)
    size = len(chain.times) + 1
    rows = torch.zeros(size, size, dtype=torch.float64)  # in x_0 and independent unit noises
    rows[0, 0] = variance**0.5
    rows[-1, 0], rows[-1, -1] = chain.bar[-1].sqrt() * rows[0, 0], (1 - chain.bar[-1]).sqrt()
    for t in range(size - 1, 1, -1):
        rows[t - 1] = of_state[t - 1] * rows[t] + of_data[t - 1] * rows[0]
        rows[t - 1, t - 1] += spread[t - 1]
    return rows @ rows.mT


@claim(
    "ddim-marginals",
    title="DDIM's family has DDPM's marginals",
    statement="q_σ(x_{t−1}|x_t, x₀) = N(√ᾱ_{t−1} x₀ + √(1 − ᾱ_{t−1} − σ_t²)(x_t − √ᾱ_t x₀)/√(1 − ᾱ_t), "
    "σ_t² I) ⇒ q_σ(x_t|x₀) = N(√ᾱ_t x₀, (1 − ᾱ_t) I) for every σ_t² ≤ 1 − ᾱ_{t−1}",
    sources={"cho": "section 2.4", "ddim": "eq. 7, lemma 1", "chan": "theorem 2.9"},
    tags=("ddim", "discrete"),
    tolerance=1e-11,
    because="round-off of a chain of eight steps",
)
def _marginals(draw: Draw) -> float:
    """Given x₀ the family is an affine chain from t = T down, with random σ_t.

    Its mean and variance at every t are compared with `DiscreteVP.marginal`.
    """
    chain = schedule(draw)
    spread = torch.sqrt(1 - chain.before) * draw.uniform(0.0, 1.0, len(chain.times))
    of_state, of_data = family(chain, spread)
    x0 = draw.normal(4, 2)
    mean, std = chain.process.marginal(x0, chain.times[-1])
    variance, worst = std**2, 0.0
    for i in range(len(chain.times) - 1, 0, -1):
        mean = of_state[i] * mean + of_data[i] * x0
        variance = of_state[i] ** 2 * variance + spread[i] ** 2
        found, std = chain.process.marginal(x0, chain.times[i - 1])
        worst = max(worst, residual(mean, found), residual(variance, std**2))
    return worst


@claim(
    "ddim-is-ddpm",
    title="DDPM is the one Markov chain of DDIM's family",
    statement="σ_t² = (1 − ᾱ_{t−1})/(1 − ᾱ_t) (1 − α_t) ⇔ q_σ(x_{t−1}|x_t, x₀) is DDPM's posterior "
    "⇔ (x₀, x₁, …, x_T) Markov, Cov(x_s, x_t) = √(ᾱ_t/ᾱ_s) Var x_s",
    sources={"cho": "section 2.4", "ddim": "section 4.1, eq. 16"},
    tags=("ddim", "ddpm", "discrete"),
    tolerance=1e-9,
    because="round-off of an inverse matrix of condition 1e3",
)
def _is_ddpm(draw: Draw) -> float:
    """With this σ the coefficients are those of the posterior, and the joint law is the chain's.

    The joint covariance is built backward from DDIM's definition, and compared with the forward
    chain's; for Gaussian data its inverse is tridiagonal, which with half of this σ it is not.
    """
    chain = schedule(draw, 5)
    spread = torch.sqrt((1 - chain.before) / (1 - chain.bar) * (1 - chain.alpha))
    of_state, of_data = family(chain, spread)
    worst = max(residual(of_state, chain.of_state), residual(of_data, chain.of_data))
    worst = max(worst, residual(spread**2, chain.small))
    variance = float(draw.uniform(0.3, 2.0))
    bars = torch.cat([torch.ones(1, dtype=torch.float64), chain.bar])
    scale = chain.process.scale(chain.times)
    own = torch.cat([torch.ones(1, dtype=torch.float64), scale])
    each = own**2 * variance + 1 - bars
    index = torch.arange(len(bars))
    first = torch.minimum(index[:, None], index[None])
    last = torch.maximum(index[:, None], index[None])
    forward = own[last] / own[first] * each[first]
    far = (first - last).abs() > 1
    found = []
    for factor in (1.0, 0.5):
        joint = joint_covariance(chain, factor * spread, variance)
        precision = torch.linalg.inv(joint)
        found.append(float((precision * far).norm() / precision.norm()))
        if factor == 1.0:
            worst = max(worst, residual(joint[None], forward[None]))
    return max(worst, found[0]) if found[1] > 1e-3 else 1.0


@claim(
    "ddim-without-noise",
    title="DDIM without noise is Euler's method in σ",
    statement="√ᾱ' x̂₀ + √(1 − ᾱ') ε̂ = s'(x̂ + (σ' − σ) ε̂), s = √ᾱ, σ = √((1 − ᾱ)/ᾱ)",
    sources={"cho": "section 2.4", "ddim": "eq. 12, 13", "chan": "eq. 94"},
    tags=("ddim", "flow", "solvers"),
    tolerance=1e-11,
    because="round-off of a step of a solver",
)
def _is_euler(draw: Draw) -> float:
    """In the unscaled state the flow is dx̂ = ε̂ dσ, and ᾱ = 1/(1 + σ²) makes the two the same.

    Steps of sdekit's methods "ddim" and "euler" are compared with the printed update, on a mixture
    and on discrete, linear and cosine schedules.
    """
    data, worst = draw.mixture(), 0.0
    for process in (schedule(draw).process, VP(), CosineVP()):
        high = float(draw.uniform(0.8, min(3.0, process.sigma_max)))
        low = max(0.4 * high, process.sigma_min)
        before, after = 1 / (1 + high**2), 1 / (1 + low**2)
        x = draw.normal(5, 2)
        clean = data(x / before**0.5, high)
        noise = (x - before**0.5 * clean) / (1 - before) ** 0.5
        printed = after**0.5 * clean + (1 - after) ** 0.5 * noise
        flow = process.probability_flow(data)
        for method in ("ddim", "euler"):
            found = solve(flow, x, method=method, sigmas=[high, low]).x
            worst = max(worst, residual(found, printed))
    return worst


@claim(
    "ddim-eta",
    title="DDIM with noise, and DDPM's sampler",
    statement="x' = √ᾱ' x̂₀ + √(1 − ᾱ' − σ_t²) ε̂ + σ_t z, σ_t = η √((1 − ᾱ')/(1 − ᾱ)) √(1 − ᾱ/ᾱ'); "
    "η = 1: (x − β/√(1 − ᾱ) ε̂)/√α + σ_t z",
    sources={"ddim": "eq. 12, 16", "cho": "section 2.4, algorithm 2", "kim": "algorithm 3"},
    tags=("ddim", "ddpm", "solvers"),
    tolerance=1e-11,
    because="round-off of a step of a solver",
)
def _eta(draw: Draw) -> float:
    """The noise of sdekit's `Ancestral` is drawn again from its seed, and put into the printed updates.

    "ddim_eta" has the variance β̃ at η = 1, "ddpm" the variance β, both with DDPM's mean.
    """
    data, chain, worst = draw.mixture(), schedule(draw, 2), 0.0
    bar, before = chain.bar[1], chain.before[1]
    sigmas = chain.process.sigma(chain.times[[1, 0]])
    x, seed = draw.normal(5, 2), draw.integer(2**31)
    eta = float(draw.uniform(0.2, 1.0))
    clean = data(x / bar.sqrt(), sigmas[0])
    noise = (x - bar.sqrt() * clean) / (1 - bar).sqrt()
    z = IndependentNoise(seed).normal(x)
    spread = eta * chain.small[1].sqrt()
    general = before.sqrt() * clean + (1 - before - spread**2).sqrt() * noise + spread * z
    mean = (x - chain.beta[1] / (1 - bar).sqrt() * noise) / chain.alpha[1].sqrt()
    wanted = {
        ("ddim_eta", eta): general,
        ("ddim_eta", 1.0): mean + chain.small[1].sqrt() * z,
        ("ddpm", 1.0): mean + chain.beta[1].sqrt() * z,
    }
    for (method, amount), printed in wanted.items():
        problem = chain.process.reverse(data, amount)
        found = solve(problem, x, method=method, sigmas=sigmas, seed=seed).x
        worst = max(worst, residual(found, printed))
    return worst


@claim(
    "v-prediction",
    title="The velocity of v-prediction",
    statement="X = a X₀ + b ε, V = a ε − b X₀, a² + b² = 1 ⇒ X₀ = a X − b V, ε = b X + a V; "
    "DDIM is a rotation: x' = cos δ x − sin δ v, δ = arctan σ − arctan σ'",
    sources={"cho": "section 2.6", "distillation": "section 4, appendix D"},
    tags=("ddpm", "ddim", "process"),
    tolerance=1e-11,
    because="round-off of a few sums",
)
def _velocity(draw: Draw) -> float:
    """(X, V) is (X₀, ε) turned by the angle arctan σ, so turning back is the inverse.

    For the variance-preserving processes: a and b are their scale and std, the state is that of
    `perturb`; x₀ has to come back from sdekit's coefficients of "v", and a step of "ddim" with a
    mixture has to be the rotation.
    """
    data, worst = draw.mixture(), 0.0
    for name in ("VP", "cosine", "discrete VP"):
        process = processes()[name]
        t = draw.times(process, 5)
        a, b = process.scale(t)[:, None], process.std(t)[:, None]
        x0, noise = draw.normal(2, 5, 2)
        x = process.perturb(x0, t, noise=noise)
        v = a * noise - b * x0
        worst = max(worst, residual(a**2 + b**2, torch.ones_like(a)))
        worst = max(worst, residual(a * x - b * v, x0, x), residual(b * x + a * v, noise, x))
        c = coefficients("v", process, process.sigma(t), None)
        worst = max(worst, residual(c.state[:, None] * x / a + c.output[:, None] * v, x0, x / a))
        high = float(draw.uniform(1.0, 3.0))
        low = 0.5 * high
        angle = torch.atan(torch.tensor([high, low], dtype=torch.float64))
        x = draw.normal(5, 2)
        clean = data(x / torch.cos(angle[0]), high)
        turned = (x - torch.cos(angle[0]) * clean) / torch.sin(angle[0])
        v = torch.cos(angle[0]) * turned - torch.sin(angle[0]) * clean
        gap = angle[0] - angle[1]
        found = solve(process.probability_flow(data), x, method="ddim", sigmas=[high, low]).x
        worst = max(worst, residual(found, torch.cos(gap) * x - torch.sin(gap) * v))
    return worst
