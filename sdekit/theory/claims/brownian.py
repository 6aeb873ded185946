"""Brownian motion, the heat equation, the Ornstein–Uhlenbeck process and equilibrium."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...affine import AffineSDE
from ...brownian import GridPath
from ...path import BrownianPath, Form, Piece, join
from ...processes import VP
from ...sde import ForwardSDE
from ..calculus import fokker_planck, gradient, gram, laplacian, residual
from ..claim import claim
from ..draw import Draw
from .forward import transition_log_density

BATCH = 6


@claim(
    "heat-equation",
    title="Adding noise is heat flow on the clock σ²",
    statement="∂p/∂(σ²) = ½ Δp, and so ∂p/∂σ = σ Δp",
    sources={"chen": "eq. 50, 59, 60", "chan": "eq. 151", "edm": "appendix B.5"},
    tags=("brownian", "density"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
)
def _heat_equation(draw: Draw) -> float:
    """The density of data plus noise is the data's density after heat has flowed for a time σ².

    A mixture's density is differentiated in the squared level and in the state.
    """
    data, level = draw.mixture(), draw.levels(BATCH)
    x = data.sample(BATCH, seed=draw.integer(2**31), dtype=torch.float64)
    x = x + level[:, None] * draw.normal(BATCH, 2)

    def density(y: Tensor, variance: Tensor) -> Tensor:
        return torch.exp(data.log_prob(y, torch.sqrt(variance)))

    rate = gradient(lambda v: density(x, v), level**2)
    return residual(rate, 0.5 * laplacian(lambda y: density(y, level**2), x))


@claim(
    "heat-kernel",
    title="Heat kernel",
    statement="p(x, t) = (4πkt)^(−d/2) exp(−|x − x₀|²/(4kt)) solves ∂p/∂t = k Δp, from a point",
    sources={"chan": "theorem 5.4, eq. 150, 151, 174", "chen": "eq. 61, 65"},
    tags=("brownian", "density"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
)
def _heat_kernel(draw: Draw) -> float:
    """A Wiener process with ``q = 2k`` starts in a point, and its law is the kernel.

    The kernel is written out, compared with the transition of ``AffineSDE(f=0, g=√q)``, and put
    into the equation.
    """
    k, start, t = (
        float(draw.uniform(0.3, 3.0)),
        draw.normal(BATCH, 2),
        draw.uniform(0.2, 0.9, BATCH),
    )
    process = AffineSDE(f=lambda u: 0 * u, g=lambda u: math.sqrt(2 * k) + 0 * u)
    x = start + torch.sqrt(2 * k * t)[:, None] * draw.normal(BATCH, 2)

    def kernel(y: Tensor, u: Tensor) -> Tensor:
        return torch.exp(-(y - start).square().sum(1) / (4 * k * u)) / (4 * torch.pi * k * u)

    own = torch.exp(transition_log_density(process, x, t, start, torch.zeros_like(t)))
    rate = gradient(lambda u: kernel(x, u), t)
    flowed = k * laplacian(lambda y: kernel(y, t), x)
    return max(residual(own, kernel(x, t)), residual(rate, flowed))


@claim(
    "heat-by-fourier",
    title="Heat flow in Fourier space",
    statement="E exp(i k·x) of p_σ = exp(−½σ²|k|²) E exp(i k·x) of p₀, the Fourier transform of p_σ",
    sources={"chen": "theorem 24, eq. 64", "chan": "eq. 172, 173"},
    tags=("brownian", "density"),
    tolerance=1e-10,
    because="trapezoidal rule, exponentially accurate for densities this smooth",
)
def _fourier(draw: Draw) -> float:
    """Convolution with a Gaussian is multiplication by its characteristic function.

    `characteristic_function` at a level, at level 0, and the integral of ``exp(i k x) p_σ(x)``.
    """
    data, level = draw.mixture(1, 3), float(draw.uniform(0.3, 1.5))
    k = draw.uniform(-2.0, 2.0, BATCH)
    x = torch.linspace(-25, 25, 4001, dtype=torch.float64)
    density = torch.exp(data.log_prob(x[:, None], level))
    waves = torch.exp(1j * k[:, None] * x)
    noisy = data.characteristic_function(k[:, None], level)
    clean = data.characteristic_function(k[:, None])
    pairs = (
        (noisy, torch.exp(-0.5 * (level * k) ** 2) * clean),
        (noisy, torch.trapezoid(waves * density, x)),
    )
    return max(residual(torch.view_as_real(a), torch.view_as_real(b)) for a, b in pairs)


def _product(a: Form, b: Form) -> float:
    """Expectation of the product of two linear combinations of independent standard normals."""
    return math.fsum(value * b.get(key, 0.0) for key, value in a.items())


def _pieces(draw: Draw, count: int) -> tuple[list[Piece], list[float]]:
    """Pieces of a path between points of the variance clock, an octave or more apart."""
    octaves = torch.cumsum(draw.uniform(1.0, 2.0, count + 1), 0) - 4
    points = (2.0**octaves).tolist()
    path = BrownianPath(draw.integer(2**31), (1, 1))
    return [join(path.pieces(a, b)) for a, b in pairwise(points)], points


@claim(
    "wiener-process",
    title="Wiener process",
    statement="Cov(W(s), W(t)) = min(s, t); increments over disjoint intervals are independent",
    sources={"sarkka": "chapter 4", "sdekit": "theory, 4.14"},
    tags=("brownian",),
    tolerance=1e-12,
    because="round-off",
)
def _wiener(draw: Draw) -> float:
    """`BrownianPath` makes each increment of named standard normal numbers, so covariances are exact.

    W(t) is the increment from the first of the points; its covariances are sums of products of
    coefficients, no number is drawn.
    """
    pieces, points = _pieces(draw, 4)
    walks = [join(pieces[: i + 1]).increment for i in range(4)]
    times = torch.tensor(points[1:], dtype=torch.float64) - points[0]
    cov = torch.tensor([[_product(a, b) for a in walks] for b in walks], dtype=torch.float64)
    steps = [piece.increment for piece in pieces]
    apart = torch.tensor([[_product(a, b) for a in steps] for b in steps], dtype=torch.float64)
    wide = torch.diag(torch.diff(torch.tensor(points, dtype=torch.float64)))
    return max(
        residual(cov.reshape(1, -1), torch.minimum(times[:, None], times).reshape(1, -1)),
        residual(apart.reshape(1, -1), wide.reshape(1, -1)),
    )


@claim(
    "brownian-area",
    title="Space-time area of a Brownian path",
    statement="H ~ N(0, h/12), independent of W ~ N(0, h); H is the mean of the path above its chord",
    sources={"sdekit": "theory, 4.9 and 4.14"},
    tags=("brownian",),
    tolerance=1e-12,
    because="round-off",
)
def _area(draw: Draw) -> float:
    """The laws of `BrownianPath`'s pairs (W, H), exactly, over intervals of any ends.

    The mean of the path above its chord by the trapezoidal rule on n pieces misses the pieces' own
    areas, and so by the variance ``Σ hᵢ³/(12 h²)``; that is checked as well.
    """
    pieces, points = _pieces(draw, 4)
    whole, h = join(pieces), points[-1] - points[0]
    worst = 0.0
    for piece in [*pieces, whole]:
        span = piece.high - piece.low
        found = torch.tensor(
            [
                _product(piece.increment, piece.increment) / span,
                12 * _product(piece.area, piece.area) / span,
                1 + _product(piece.increment, piece.area) / span,
            ],
            dtype=torch.float64,
        )
        worst = max(worst, residual(found, torch.ones(3).double()))
    gap, level = dict(whole.area), 0.0
    for key, value in whole.increment.items():
        gap[key] = gap.get(key, 0.0) + 0.5 * value
    before: Form = {}
    for piece in pieces:
        share = (piece.high - piece.low) / h
        level += share**2 * (piece.high - piece.low) / 12
        for form, factor in ((before, share), (piece.increment, share / 2)):
            for key, value in form.items():
                gap[key] = gap.get(key, 0.0) - factor * value
        for key, value in piece.increment.items():
            before[key] = before.get(key, 0.0) + value
    missed = torch.tensor([_product(gap, gap)], dtype=torch.float64)
    return max(worst, residual(missed, torch.tensor([level], dtype=torch.float64)))


@claim(
    "chen-relation",
    title="Chen's relation for increments and areas",
    statement="W = W₁ + W₂,  h H = h₁ (H₁ − ½W₂) + h₂ (H₂ + ½W₁)",
    sources={"sdekit": "theory, 4.14"},
    tags=("brownian",),
    tolerance=1e-10,
    because="round-off, of numbers that are drawn in float32 and combined in float64",
)
def _chen(draw: Draw) -> float:
    """Numbers of `BrownianPath` and of `GridPath` over an interval and over its two parts."""
    a, b, c = np.cumsum([0.5, *draw.uniform(0.5, 3.0, 2).tolist()])
    x, seed = draw.normal(3, 2), draw.integer(2**31)
    fine = np.linspace(a, c, 9)
    points = np.sort(np.append(fine[1:-1], [a, b, c]))
    worst = 0.0
    for path in (BrownianPath(seed, (3, 2)), GridPath(points, (3, 2), seed=seed)):
        (W1, H1), (W2, H2), (W, H) = (
            (path.increment(u, v, x), path.area(u, v, x)) for u, v in ((a, b), (b, c), (a, c))
        )
        joined = ((b - a) * (H1 - W2 / 2) + (c - b) * (H2 + W1 / 2)) / (c - a)
        worst = max(worst, residual(W, W1 + W2, W1, W2), residual(H, joined, W))
    return worst


@claim(
    "quadratic-variation",
    title="Quadratic variation of a Brownian path",
    statement="Σ (W(tᵢ) − W(tᵢ₋₁))² = t + O(√max h), with variance 2 Σ hᵢ²",
    sources={"sarkka": "chapter 4"},
    tags=("brownian",),
    kind="statistics",
    tolerance=5.0,
    because="standard errors of a mean over independent paths",
)
def _quadratic_variation(draw: Draw) -> float:
    """Squares of increments add up to the time itself, path by path, as the steps get small.

    The mean and the variance over 2000 paths of `GridPath` on 400 uneven steps, each in its standard
    errors.
    """
    points = np.cumsum(draw.uniform(0.5, 1.5, 401).numpy())
    x, h = torch.zeros(2000, 1, dtype=torch.float64), np.diff(points)
    path = GridPath(points, (2000, 1), seed=draw.integer(2**31))
    total = torch.zeros(2000, dtype=torch.float64)
    for a, b in pairwise(points):
        total += path.increment(a, b, x)[:, 0] ** 2
    spread = 2 * float((h**2).sum())
    mean = abs(float(total.mean()) - float(h.sum())) / math.sqrt(spread / 2000)
    # A sum of so many squares is nearly normal, and its kurtosis nearly 3.
    variance = abs(float(total.var()) / spread - 1) / math.sqrt((2 + 12 * 4 / 400) / 2000)
    return max(mean, variance)


@claim(
    "ornstein-uhlenbeck",
    title="Ornstein–Uhlenbeck process",
    statement="dx = −γx dt + √q dW: E x = x₀e^(−γt), Cov(x_s, x_t) = q(e^(−γ|t−s|) − e^(−γ(t+s)))/(2γ)",
    sources={"chan": "theorem 5.3, eq. 140, 142", "sarkka": "chapter 6"},
    tags=("brownian", "process", "linear"),
    tolerance=1e-10,
    because="adaptive quadrature of f and g to about 1e-13",
)
def _ornstein_uhlenbeck(draw: Draw) -> float:
    """The linear Langevin equation is an affine process; constant β makes VP one with q = 2γ.

    Mean, variance and covariance of `AffineSDE.transition` are compared with the closed forms, and the
    law ``N(0, q/(2γ))`` stays what it is.
    """
    gamma, q = float(draw.uniform(0.5, 3.0)), float(draw.uniform(0.3, 3.0))
    general = AffineSDE(f=lambda u: 0 * u - gamma, g=lambda u: 0 * u + math.sqrt(q))
    preserving = VP(beta_min=2 * gamma, beta_max=2 * gamma)
    s, t = draw.uniform(0.1, 0.4, BATCH), draw.uniform(0.5, 0.9, BATCH)
    x0, zero, worst = draw.normal(BATCH, 1), torch.zeros(BATCH, dtype=torch.float64), 0.0
    for process, noise in ((general, q), (preserving, 2 * gamma)):
        rest = noise / (2 * gamma)
        _, early = process.transition(x0, zero, s)
        mean, late = process.transition(x0, zero, t)
        ratio, fresh = process.transition(torch.ones_like(x0), s, t)
        cov = rest * (torch.exp(-gamma * (t - s)) - torch.exp(-gamma * (t + s)))
        worst = max(
            worst,
            residual(mean[:, 0], x0[:, 0] * torch.exp(-gamma * t)),
            residual(late**2, -rest * torch.expm1(-2 * gamma * t)),
            residual(ratio[:, 0] * early**2, cov),
            residual(ratio[:, 0] ** 2 * rest + fresh**2, torch.full_like(t, rest)),
        )
    return worst


class _Boltzmann(ForwardSDE):
    """``dx = −∇U dt + √(2T) dW`` in a potential with two wells."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def potential(self, x: Tensor) -> Tensor:
        return 0.25 * (x**2).sum(1) ** 2 - 0.5 * x[:, 0] ** 2 + 0.3 * x[:, 0] * x[:, 1]

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return -gradient(self.potential, x)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        return math.sqrt(2 * self.temperature) * torch.ones_like(t)


@claim(
    "boltzmann",
    title="Equilibrium in a potential",
    statement="p ∝ e^(−U/T) is stationary under dx = −∇U dt + √(2T) dW, and its current is zero",
    sources={"chan": "theorem 5.10", "risken": "section 5.2", "chen": "remark 1"},
    tags=("brownian", "density", "langevin"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
)
def _boltzmann(draw: Draw) -> float:
    """Drift down the potential and diffusion away from the crowd are in balance everywhere.

    The current over the density is the probability flow, whose value is compared with 0.
    """
    sde = _Boltzmann(float(draw.uniform(0.3, 2.0)))
    x, t = draw.normal(BATCH, 2), draw.uniform(0.1, 0.9, BATCH)

    def density(y: Tensor) -> Tensor:
        return torch.exp(-sde.potential(y) / sde.temperature)

    drift = sde.drift(x, t)
    along, spread = fokker_planck(lambda y: sde.drift(y, t), lambda y: gram(sde, y, t), density, x)
    flow = sde.probability_flow(score=lambda y, _: gradient(lambda z: torch.log(density(z)), y))
    return max(residual(along, -spread), residual(flow(t, x) + drift, drift))


@claim(
    "equilibrium",
    title="Equilibrium for noise of any kind, and a steady whirl",
    statement="L*p = 0 for f = ½(∇·(GGᵀ) + GGᵀ∇log p) + S∇log p, S = −Sᵀ; the current is S∇p",
    sources={"chen": "remark 2", "chan": "theorem 5.10", "risken": "section 6.4"},
    tags=("brownian", "density", "langevin"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
    over="sde",
)
def _equilibrium(sde: ForwardSDE, draw: Draw) -> float:
    """Any diffusion has drifts that keep a given density: Chen's ½g²∇log p is the scalar case.

    The divergence is the one of `ForwardSDE.diffusion_divergence`. An antisymmetric push turns the
    density without changing it: it is stationary, but the current is not zero.
    """
    data, level = draw.mixture(), float(draw.uniform(0.2, 0.5))
    t = draw.inner_times(sde, BATCH)
    x = data.sample(BATCH, seed=draw.integer(2**31), dtype=torch.float64)
    turn = float(draw.uniform(0.5, 2.0)) * torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()

    def density(y: Tensor) -> Tensor:
        return torch.exp(data.log_prob(y, level))

    def square(y: Tensor) -> Tensor:
        return gram(sde, y, t)

    def balance(y: Tensor) -> Tensor:
        score = data.score(y, level)
        pushed = sde.diffusion_divergence(y, t) + torch.einsum("bij,bj->bi", square(y), score)
        return 0.5 * pushed + score @ turn.T

    along, spread = fokker_planck(balance, square, density, x)
    flow = sde.probability_flow(score=lambda y, _: data.score(y, level))
    left = flow(t, x) - sde.drift(x, t) + balance(x)
    return max(residual(along, -spread), residual(left, data.score(x, level) @ turn.T, balance(x)))
