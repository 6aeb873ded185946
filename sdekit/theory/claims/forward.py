"""Forward processes: their densities and the equations that these obey."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...affine import AffineSDE
from ...distributions import GaussianMixture
from ...sde import ForwardSDE, expand
from ..calculus import fokker_planck, generator, gradient, gram, log_normal, residual
from ..claim import claim
from ..draw import Draw

BATCH = 6
CELL = 0.32**2


def log_density(process: AffineSDE, data: GaussianMixture, x: Tensor, t: Tensor) -> Tensor:
    """Log-density of ``x(t)``, ``log p(x/s; σ) − d log s``, ``(B,)``, for times ``(B,)``."""
    s = process.scale(t)
    return data.log_prob(x / expand(s, x), process.sigma(t)) - x.shape[1] * torch.log(s)


def transition_log_density(
    process: AffineSDE, y: Tensor, t: Tensor, x: Tensor, r: Tensor
) -> Tensor:
    """Log-density ``(B,)`` of ``x(t) = y`` given ``x(r) = x``, from `AffineSDE.transition`."""
    mean, std = process.transition(x, r, t)
    return log_normal(y, mean, std**2)


def moves(process: AffineSDE, draw: Draw) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Draw states ``(B, 2)`` and their times ``(B,)``, and where the process took them, and when."""
    r, t = draw.ordered_times(process, BATCH)
    x = process.std(r)[:, None] * draw.normal(BATCH, 2)
    mean, std = process.transition(x, r, t)
    return (x, r), (mean + std[:, None] * draw.normal(BATCH, 2), t)


def compact(draw: Draw) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Draw a smooth density in the plane, and nodes of the trapezoidal rule for it.

    Returns:
        The density, a blurred mixture, and the nodes ``(n, 2)``, each of which stands for ``CELL``.
    """
    data = GaussianMixture.random(3, 2, seed=draw.integer(2**31), spread=0.7, width=0.25)
    line = torch.arange(-10.0, 10.0, CELL**0.5, dtype=torch.float64)
    return lambda y: torch.exp(data.log_prob(y, 0.6)), torch.cartesian_prod(line, line)


@claim(
    "fokker-planck",
    title="Fokker–Planck equation",
    statement="∂p/∂t = −∇·(f p) + ½ Σᵢⱼ ∂ᵢ∂ⱼ((GGᵀ)ᵢⱼ p)",
    sources={"chen": "theorem 4, eq. 7", "khungurn": "theorem 3, eq. 8"},
    tags=("forward", "density"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
    over="process",
)
def _fokker_planck(process: AffineSDE, draw: Draw) -> float:
    """The density of x(t) = s (x0 + σ ε) is known exactly for a mixture.

    Its derivative in time, by automatic differentiation through s and σ, is compared with the
    operator of the SDE's own drift and diffusion.
    """
    data = draw.mixture()
    t = draw.times(process, BATCH)
    x = draw.states(process, data, t)
    rate = gradient(lambda u: torch.exp(log_density(process, data, x, u)), t)
    parts = fokker_planck(
        lambda y: process.drift(y, t),
        lambda y: gram(process, y, t),
        lambda y: torch.exp(log_density(process, data, y, t)),
        x,
    )
    return residual(rate, parts[0] + parts[1], *parts)


@claim(
    "kolmogorov-forward",
    title="Forward equation of the transition density",
    statement="∂p(y, t | x, r)/∂t = −∇·(f p) + ½ Σᵢⱼ ∂ᵢ∂ⱼ((GGᵀ)ᵢⱼ p) in y, for t > r",
    sources={"chen": "theorem 6, eq. 17"},
    tags=("forward", "density", "process"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
    over="process",
)
def _kolmogorov_forward(process: AffineSDE, draw: Draw) -> float:
    """The transition density solves the Fokker–Planck equation that starts as a point mass.

    The density of `AffineSDE.transition` is differentiated in the later time and state.
    """
    (x, r), (y, t) = moves(process, draw)

    def density(z: Tensor, u: Tensor) -> Tensor:
        return torch.exp(transition_log_density(process, z, u, x, r))

    parts = fokker_planck(
        lambda z: process.drift(z, t),
        lambda z: gram(process, z, t),
        lambda z: density(z, t),
        y,
    )
    return residual(gradient(lambda u: density(y, u), t), parts[0] + parts[1], *parts)


@claim(
    "kolmogorov-backward",
    title="Backward equation of the transition density",
    statement="−∂p(y, t | x, r)/∂r = f(x, r)·∇p + ½ g(r)² Δp in x, for r < t",
    sources={"khungurn": "theorem 5", "chen": "theorem 7"},
    tags=("forward", "density", "process"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
    over="process",
)
def _kolmogorov_backward(process: AffineSDE, draw: Draw) -> float:
    """As a function of where it starts, the transition density is driven by the generator.

    The density of `AffineSDE.transition` is differentiated in the earlier time and state.
    """
    (x, r), (y, t) = moves(process, draw)

    def density(z: Tensor, u: Tensor) -> Tensor:
        return torch.exp(transition_log_density(process, y, t, z, u))

    right = generator(
        lambda z: process.drift(z, r),
        lambda z: gram(process, z, r),
        lambda z: density(z, r),
        x,
    )
    slope = (process.drift(x, r) * gradient(lambda z: density(z, r), x)).sum(1)
    return residual(-gradient(lambda u: density(x, u), r), right, slope, right - slope)


@claim(
    "dynkin",
    title="Dynkin's formula, differentiated",
    statement="d/dt E[φ(x(t), t) | x(r)] = E[∂φ/∂t + f·∇φ + ½ GGᵀ:∇∇φ | x(r)]",
    sources={"chen": "theorems 1 to 3, eq. 3 to 6"},
    tags=("forward", "process"),
    tolerance=1e-9,
    because="Gauss–Hermite quadrature of an entire function, and automatic differentiation",
    over="process",
)
def _dynkin(process: AffineSDE, draw: Draw) -> float:
    """The mean of a test function along the process changes by the mean of its generator.

    The test function is a wave that moves in time; both means are over the exact Gaussian
    transition, the left one differentiated through its mean and standard deviation.
    """
    r, t = (u.squeeze() for u in draw.ordered_times(process, 1))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z, w = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    start = process.std(r).reshape(1, 1) * draw.normal(1, 1)
    width = process.transition(start, r, t)[1]

    def wave(x: Tensor, u: Tensor) -> Tensor:
        return torch.sin(x[:, 0] / width + 2 * u / t + 0.3)

    def mean(u: Tensor) -> Tensor:
        centre, std = process.transition(start, r, u)
        return (w * wave(centre + std * z[:, None], u)).sum()

    x = process.transition(start, r, t)[0] + width * z[:, None]
    moved = generator(
        lambda y: process.drift(y, t), lambda y: gram(process, y, t), lambda y: wave(y, t), x
    )
    explicit = gradient(lambda u: wave(x, u), t.expand(len(x)).clone())
    slope = gradient(lambda u: mean(u.squeeze()), t.reshape(1))
    right = (w * (moved + explicit)).sum().reshape(1)
    return residual(slope, right, (w * moved.abs()).sum().reshape(1))


@claim(
    "generator-adjoint",
    title="The Fokker–Planck operator is the adjoint of the generator",
    statement="∫ φ L*p dx = ∫ p Lφ dx",
    sources={"chen": "eq. 10, 13 to 15"},
    tags=("forward", "density"),
    tolerance=1e-9,
    because="trapezoidal rule in the plane, exponentially accurate for densities this smooth",
    over="sde",
)
def _generator_adjoint(sde: ForwardSDE, draw: Draw) -> float:
    """Two integrations by parts carry the derivatives from the test function to the density.

    Both integrals are taken by the trapezoidal rule, with a wave for φ and a blurred mixture for
    the density, and with the drift and diffusion of the SDE.
    """
    density, x = compact(draw)
    t = _time(sde, draw, len(x))
    wave, phase = draw.normal(2), draw.uniform(0.0, 6.0)

    def test(y: Tensor) -> Tensor:
        return torch.sin(y @ wave + phase)

    def drift(y: Tensor) -> Tensor:
        return sde.drift(y, t)

    def square(y: Tensor) -> Tensor:
        return gram(sde, y, t)

    parts = fokker_planck(drift, square, density, x)
    left, right = test(x) * (parts[0] + parts[1]), density(x) * generator(drift, square, test, x)
    return residual(left.sum(), right.sum(), left.abs().sum())


@claim(
    "moment-rates",
    title="Rates of mean and covariance, whatever the drift",
    statement="ṁ = E[f],  Ċ = E[f (x − m)ᵀ] + E[(x − m) fᵀ] + E[GGᵀ]",
    sources={"chen": "eq. 19, 20"},
    tags=("forward", "density"),
    tolerance=1e-9,
    because="trapezoidal rule in the plane, exponentially accurate for densities this smooth",
    over="sde",
)
def _moment_rates(sde: ForwardSDE, draw: Draw) -> float:
    """The rates of the moments are those of the density, integrated by parts.

    On the left the moments of the Fokker–Planck operator's value, on the right expectations of
    drift and diffusion, both by the trapezoidal rule over a blurred mixture.
    """
    density, x = compact(draw)
    t = _time(sde, draw, len(x))
    parts = fokker_planck(lambda y: sde.drift(y, t), lambda y: gram(sde, y, t), density, x)
    p, drift = CELL * density(x)[:, None], sde.drift(x, t)
    off = x - (p * x).sum(0)
    cross = (p * drift).T @ off
    noise = (p[:, :, None] * gram(sde, x, t)).sum(0)
    change = CELL * (parts[0] + parts[1])[:, None]
    left = torch.stack([(change * x).sum(0), *((change * off).T @ off)])
    right = torch.stack([(p * drift).sum(0), *(cross + cross.T + noise)])
    return residual(left.reshape(1, -1), right.reshape(1, -1))


def _time(sde: ForwardSDE, draw: Draw, n: int) -> Tensor:
    """One time for all of ``n`` points, away from both ends."""
    t = draw.inner_times(sde)
    return t.expand(n).clone()
