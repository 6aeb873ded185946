"""One reverse step: its exact moments and kernel for any data; laws and flows known exactly."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...affine import AffineSDE
from ...distributions import GaussianMixture, Product
from ...processes import EDM
from ...sampling import solve
from ...sde import expand
from ..calculus import (
    gradient,
    hessian,
    jacobian,
    laplacian,
    line,
    log_derivative,
    log_normal,
    residual,
    speed,
)
from ..claim import claim
from ..draw import Draw
from ..noises import Recorded

BATCH = 6
QUADRATURE = "trapezoidal rule on a smooth density, whose error is exponentially small"
NOTES = {"sdekit": "theory, section 4.4"}


def step(draw: Draw, law: GaussianMixture) -> tuple[Tensor, float, float, float]:
    """Draw states, their level, a lower one, and ``h = σ² − σ'²``."""
    sigma = float(draw.log_uniform(0.3, 3.0))
    low = sigma * float(draw.uniform(0.4, 0.9))
    x = law.sample(BATCH, sigma, seed=draw.integer(2**31))
    return x, sigma, low, sigma**2 - low**2


def kernel(law: GaussianMixture, x: Tensor, low: float, h: float) -> tuple[Tensor, Tensor]:
    """Nodes ``(m,)`` and probabilities ``(B, m)`` of ``x(σ')`` given ``x(σ)``, by Bayes, in 1-D."""
    y, _ = line(law, low, 4001)
    return y[:, 0], (law.log_prob(y, low) - 0.5 * (x - y[:, 0]) ** 2 / h).softmax(1)


@claim(
    "reverse-step-mean",
    title="Mean of one reverse step, for any data",
    statement="E[x' | x] = x + h ∇ log p_σ(x) exactly, h = σ² − σ'²",
    sources=NOTES,
    tags=("moments", "reverse", "score"),
    tolerance=1e-9,
    because=QUADRATURE,
)
def _mean(draw: Draw) -> float:
    """It is x = x' + √h ξ, so this is Tweedie's formula for the data x'.

    The posterior of x' given x, by Bayes' rule and quadrature for a mixture in one dimension, is
    compared with the formula and with the mean of sdekit's exact transition.
    """
    law = draw.mixture(dim=1)
    x, sigma, low, h = step(draw, law)
    y, p = kernel(law, x, low, h)
    mean, right = (p * y).sum(1)[:, None], x + h * law.score(x, sigma)
    exact = law.reverse_transition(x, sigma, low).mean()
    return max(residual(mean, right, x), residual(exact, right, x))


@claim(
    "reverse-step-covariance",
    title="Covariance of one reverse step, for any data",
    statement="Cov[x' | x] = h I + h² ∇² log p_σ(x) = h (σ'²/σ²) I + (h²/σ²) ∇D",
    sources=NOTES,
    tags=("moments", "reverse", "score"),
    tolerance=1e-9,
    because=QUADRATURE,
)
def _covariance(draw: Draw) -> float:
    """The law of x' given x is an exponential family in x/h, and log p_σ + |x|²/2h its log-partition.

    By quadrature for a mixture in one dimension; in two dimensions sdekit's exact transition is
    compared with the Hessian and with the derivative of the denoiser, by automatic differentiation.
    """
    law = draw.mixture(dim=1)
    x, sigma, low, h = step(draw, law)
    y, p = kernel(law, x, low, h)
    mean = (p * y).sum(1, keepdim=True)
    variance = (p * (y - mean) ** 2).sum(1)
    curvature = gradient(lambda z: law.score(z, sigma)[:, 0], x).detach()[:, 0]
    found = residual(variance, h + h**2 * curvature)
    law = draw.mixture()
    x, sigma, low, h = step(draw, law)
    eye = torch.eye(2, dtype=torch.float64)
    cov = law.reverse_transition(x, sigma, low).cov()
    slope = jacobian(lambda z: law(z, sigma), x).detach()
    bend = hessian(lambda z: law.log_prob(z, sigma), x).detach()
    return max(
        found,
        residual(cov, h * eye + h**2 * bend),
        residual(cov, h * (low / sigma) ** 2 * eye + h**2 / sigma**2 * slope),
    )


@claim(
    "reverse-step-cumulants",
    title="Higher cumulants of one reverse step",
    statement="κₙ[x' | x] = hⁿ ∂ⁿ log p_σ(x) for n ≥ 3",
    sources=NOTES,
    tags=("moments", "reverse"),
    tolerance=1e-9,
    because=QUADRATURE,
)
def _cumulants(draw: Draw) -> float:
    """Cumulants are derivatives of the log-partition function, here log p_σ + x²/2h in x/h.

    The third and the fourth, by quadrature for a mixture in one dimension, are compared with
    derivatives of its log-density by automatic differentiation.
    """
    law = draw.mixture(dim=1)
    x, sigma, low, h = step(draw, law)
    y, p = kernel(law, x, low, h)
    mean = (p * y).sum(1, keepdim=True)
    second, third, fourth = ((p * (y - mean) ** n).sum(1) for n in (2, 3, 4))

    def third_derivative(z: Tensor) -> Tensor:
        return gradient(lambda w: gradient(lambda v: law.score(v, sigma)[:, 0], w)[:, 0], z)[:, 0]

    three = third_derivative(x).detach()
    four = gradient(third_derivative, x).detach()[:, 0]
    return max(
        residual(third, h**3 * three, second**1.5),
        residual(fourth - 3 * second**2, h**4 * four, second**2),
    )


@claim(
    "reverse-kernel",
    title="The exact reverse kernel of a mixture",
    statement="p(x' | x) = p_σ'(x') N(x; x', h I)/p_σ(x)",
    sources={"sdekit": "theory, section 4.3", "anderson": "section 3"},
    tags=("moments", "reverse", "density"),
    tolerance=1e-10,
    because="round-off",
)
def _reverse_kernel(draw: Draw) -> float:
    """Bayes' rule, as the forward kernel from σ' to σ is N(x', h I).

    The log-density of sdekit's exact transition is compared with the rule in two dimensions.
    """
    law = draw.mixture()
    x, sigma, low, h = step(draw, law)
    y = x + math.sqrt(h) * draw.normal(*x.shape)
    forward = log_normal(x, y, torch.tensor(h, dtype=torch.float64))
    right = law.log_prob(y, low) + forward - law.log_prob(x, sigma)
    return residual(law.reverse_transition(x, sigma, low).log_prob(y), right, forward)


@claim(
    "score-martingale",
    title="Score and denoiser are martingales of the reverse SDE",
    statement="E[∇ log p_σ'(x') | x] = ∇ log p_σ(x),  E[D(x', σ') | x] = D(x, σ) for η = 1",
    sources=NOTES,
    tags=("moments", "reverse", "score"),
    tolerance=1e-9,
    because=QUADRATURE,
)
def _martingale(draw: Draw) -> float:
    """D is the mean of x0 given x, so it is a martingale of the process that forgets nothing of x0.

    Over a step of any size, the means under the exact reverse kernel of a mixture in one dimension
    are compared with the values before the step.
    """
    law = draw.mixture(dim=1)
    x, sigma, low, h = step(draw, law)
    y, p = kernel(law, x, low, h)
    score, denoised = law.score(y[:, None], low)[:, 0], law(y[:, None], low)[:, 0]
    return max(
        residual((p * score).sum(1), law.score(x, sigma)[:, 0], 1 / x),
        residual((p * denoised).sum(1), law(x, sigma)[:, 0], x),
    )


def entry(law: GaussianMixture, sigma: Tensor, i: int, x: Tensor) -> Tensor:
    """One component of the score, ``(B,)``."""
    return law.score(x, sigma)[:, i]


@claim(
    "score-generator",
    title="The reverse generator does away with the score",
    statement="−∂s/∂(σ²) + (s·∇) s + ½ Δ s = 0 for s = ∇ log p_σ",
    sources=NOTES,
    tags=("moments", "score"),
    tolerance=1e-9,
    because="round-off of third derivatives by automatic differentiation",
)
def _generator(draw: Draw) -> float:
    """The gradient of the heat equation's log form ∂ log p/∂σ² = ½ (Δ log p + |∇ log p|²).

    All terms by automatic differentiation of a mixture's score in two dimensions.
    """
    law, sigma = draw.mixture(), draw.levels(BATCH)
    x = law.sample(BATCH, 1.0, seed=draw.integer(2**31))
    score = law.score(x, sigma)
    slope = jacobian(lambda z: law.score(z, sigma), x).detach()
    carried = (slope @ score[:, :, None])[:, :, 0]
    rate = speed(lambda v: law.score(x, v.sqrt()), sigma**2)
    bends = [laplacian(partial(entry, law, sigma, i), x).detach() for i in (0, 1)]
    spread = torch.stack(bends, 1)
    return residual(rate, carried + 0.5 * spread, carried, spread)


@claim(
    "one-step-means",
    title="Samplers whose step is exact in mean",
    statement="E[x'] = x + h ∇ log p_σ(x) in ancestral steps and SDE-DPM-Solver++(1)",
    sources={"sdekit": "theory, section 4.4", "ddim": "eq. 12, eq. 16", "ddpm": "algorithm 2"},
    tags=("moments", "solvers", "ddpm"),
    tolerance=1e-11,
    because="round-off",
)
def _one_step_means(draw: Draw) -> float:
    """Both variances of DDPM go with one mean, that of the exact kernel; so does an exponential step.

    One step of the registered methods on a mixture, with zero noise and with a given number. The
    exact covariance lies between: h σ'²/σ² for data of one point, h for flat ones.
    """
    law, z = draw.mixture(), draw.normal(BATCH, 2)
    x, sigma, low, h = step(draw, law)
    mean = x + h * law.score(x, sigma)
    small = h * (low / sigma) ** 2
    found, reverse = [], EDM().reverse(law)
    for method, variance in (("ddim_eta", small), ("ddpm", h), ("sde_dpmpp_1", small)):
        for number in (0 * z, z):
            x_next = solve(
                reverse, x, method=method, sigmas=[sigma, low], noise=Recorded([number])
            ).x
            found.append(residual(x_next, mean + math.sqrt(variance) * number, x))
    return max(found)


@claim(
    "gaussian-flow",
    title="Probability flow of Gaussian data",
    statement="x_u = s_u m + U diag(s_u √(λ+σ_u²)/(s_t √(λ+σ_t²))) Uᵀ (x_t − s_t m)",
    sources={"sdekit": "theory, section 4.2"},
    tags=("moments", "flow"),
    tolerance=1e-9,
    because="round-off of first derivatives",
    over="process",
)
def _gaussian_flow(process: AffineSDE, draw: Draw) -> float:
    """Along the eigenvectors of the covariance the flow is a scaling.

    sdekit's map is compared with the formula; differentiated in time, with the process's probability
    flow at where it leads. Its log-determinant is compared with that of its Jacobian.
    """
    law, times = draw.gaussian(), draw.times(process, BATCH)
    mean, cov = law.moments()
    start = float(draw.levels())
    x = law.sample(BATCH, start, seed=draw.integer(2**31))

    def moved(t: Tensor) -> Tensor:
        return expand(process.scale(t), x) * law.flow(x, start, process.sigma(t))

    velocity = speed(moved, times)
    state = moved(times).detach()
    flow = process.probability_flow(law)(times, state)
    found = residual(flow, velocity, state / times[:, None])
    values, basis = torch.linalg.eigh(cov)
    sigma = process.sigma(times)[:, None]
    ratio = torch.sqrt((values + sigma**2) / (values + start**2))
    right = expand(process.scale(times), x) * (mean + ((x - mean) @ basis * ratio) @ basis.mT)
    log_det = torch.log(ratio).sum(1)
    return max(
        found,
        residual(state, right),
        residual(law.flow_log_det(start, sigma[:, 0]), log_det, torch.ones_like(log_det)),
    )


@claim(
    "gaussian-reverse-law",
    title="Reverse law of Gaussian data for every η",
    statement="x' | x ~ N((v'/v)^((1+η²)/2) x, v' (1 − (v'/v)^(η²))), v = λ + σ², per eigen-direction",
    sources={"sdekit": "theory, section 4.2"},
    tags=("moments", "reverse"),
    tolerance=1e-9,
    because="differences of order 8",
)
def _gaussian_reverse_law(draw: Draw) -> float:
    """With a linear score the reverse SDE is linear: mean and covariance obey ordinary equations.

    Those of `Gaussian.reverse_law` are differentiated in σ and compared with the drift and the
    diffusion of sdekit's reverse SDE at the mean; and they are compared with the formula.
    """
    law, eta = draw.gaussian(), float(draw.uniform(0.2, 1.5))
    mean0, cov0 = law.moments()
    x, low = 2 * draw.normal(1, 2), float(draw.log_uniform(0.2, 2.0))
    sigma = low * float(draw.uniform(1.2, 2.0))
    mean, cov = law.reverse_law(x, sigma, low, eta)
    reverse = EDM().reverse(law, eta)

    def both(levels: np.ndarray) -> np.ndarray:
        laws = [law.reverse_law(x, sigma, float(s), eta) for s in levels]
        return np.stack([torch.cat([m, c]).numpy() for m, c in laws])

    rates = torch.from_numpy(log_derivative(both, low)) / low
    slope = jacobian(lambda y: reverse.f(low, y), mean).detach()[0]
    pull = slope @ cov + cov @ slope.mT
    added = float(reverse.g(low, mean)[0, 0]) ** 2 * torch.eye(2, dtype=torch.float64)
    found = [
        residual(rates[:1], reverse.f(low, mean)),
        residual(rates[None, 1:], (pull - added)[None], added[None]),
    ]
    values, basis = torch.linalg.eigh(cov0)
    after, before = values + low**2, values + sigma**2
    keep = (after / before) ** (0.5 * (1 + eta**2))
    right = mean0 + ((x - mean0) @ basis * keep) @ basis.mT
    spread = basis @ torch.diag(after * (1 - (after / before) ** eta**2)) @ basis.mT
    return max(*found, residual(mean, right), residual(cov[None], spread[None]))


@claim(
    "flow-conserves-cdf",
    title="In one dimension the flow conserves the distribution function",
    statement="F_σ'(x(σ')) = F_σ(x(σ)),  dx/dσ = (x − D)/σ = −σ ∇ log p_σ(x)",
    sources={"sdekit": "theory, section 4.5", "edm": "eq. 1"},
    tags=("moments", "flow", "density"),
    tolerance=1e-9,
    because="round-off of first derivatives",
)
def _conserves_cdf(draw: Draw) -> float:
    """Trajectories in one dimension do not cross, so none changes its rank.

    sdekit's map is found from this; distribution functions are written out with erf, and its
    derivative in σ', by automatic differentiation, is compared with the flow of `EDM`.
    """
    weights, means = draw.normal(3).softmax(0), draw.normal(3)
    variances = draw.uniform(0.05, 0.5, 3)
    law = GaussianMixture(weights, means[:, None], variances)
    x, sigma, low, _ = step(draw, law)
    levels = torch.full((BATCH,), low, dtype=torch.float64)
    y = law.flow(x, sigma, levels)
    values = [
        (weights * (1 + torch.erf((z - means) / (2 * (variances + s**2)).sqrt())) / 2).sum(1)
        for z, s in ((x, sigma), (y, low))
    ]
    velocity = speed(lambda v: law.flow(x, sigma, v), levels)[:, 0]
    flow = EDM().probability_flow(law)(low, y)[:, 0]
    right = -low * law.score(y, low)[:, 0]
    return max(
        residual(values[0], values[1]),
        residual(velocity, flow, y / low),
        residual(velocity, right, y / low),
    )


@claim(
    "flow-of-products",
    title="Flows of rotated products",
    statement="x(σ') = R φ(Rᵀ x) coordinate by coordinate solves dx/dσ = (x − D)/σ",
    sources={"sdekit": "theory, section 4.5"},
    tags=("moments", "flow"),
    tolerance=1e-9,
    because="round-off of first derivatives",
)
def _products(draw: Draw) -> float:
    """The noise commutes with rotations, so the flow is that of each coordinate by itself.

    The map of a rotated product of mixtures in three dimensions is differentiated in σ' and compared
    with the flow of its denoiser; and its log-determinant with log p_σ(x) − log p_σ'(x').
    """
    law = Product.random(3, 2, seed=draw.integer(2**31), width=0.5)
    sigma, low = 1.5, float(draw.log_uniform(0.2, 1.2))
    x = law.sample(BATCH, sigma, seed=draw.integer(2**31))
    levels = torch.full((BATCH,), low, dtype=torch.float64)
    y = law.flow(x, sigma, levels)
    velocity = speed(lambda v: law.flow(x, sigma, v), levels)
    found = residual(velocity, EDM().probability_flow(law)(low, y), y / low)
    stretch = jacobian(lambda z: law.flow(z, sigma, low), x).detach()
    change = law.log_prob(x, sigma) - law.log_prob(y, low)
    return max(found, residual(torch.linalg.slogdet(stretch)[1], change, torch.ones(BATCH)))
