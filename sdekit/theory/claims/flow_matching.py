"""Flow matching: velocities of single paths, their mean, and the flow of the mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...affine import AffineSDE
from ...coordinates import Velocity
from ...distributions import GaussianMixture
from ...processes import RectifiedFlow
from ...sde import expand
from ..calculus import divergence, gradient, jacobian, line, residual
from ..claim import claim
from ..draw import Draw

BATCH = 6


def velocity(law: GaussianMixture, x: Tensor, t: Tensor) -> Tensor:
    """``ε̂ − D`` at states ``x = (1 − t) x0 + t ε``, by the denoiser and its coordinates."""
    x_hat, sigma = x / expand(1 - t, x), t / (1 - t)
    denoised, coordinates = law(x_hat, sigma), Velocity()
    p = coordinates.at(sigma.detach().numpy())
    A, B, h = (torch.from_numpy(v) for v in (*coordinates.field(p), coordinates.h(p)))
    return expand(A / h, x) * x_hat + expand(B, x) * denoised


def posterior(law: GaussianMixture, x: Tensor, s: float, n: float) -> tuple[Tensor, Tensor]:
    """Nodes ``(m,)`` and probabilities ``(B, m)`` of ``x0`` given ``x = s x0 + n ε``, in 1-D."""
    y, _ = line(law, nodes=4001)
    log_joint = law.log_prob(y) - 0.5 * ((x - s * y[:, 0]) / n) ** 2
    return y[:, 0], log_joint.softmax(1)


@claim(
    "path-velocity",
    title="Velocity of a single path",
    statement="x_t = s x0 + n ε  ⇒  dx_t/dt = ṡ x0 + ṅ ε;  ε − x0 for s = 1 − t, n = t",
    sources={"flow": "theorem 3", "edm": "appendix B.1"},
    tags=("flow", "process"),
    tolerance=1e-10,
    because="round-off of first derivatives",
    over="process",
)
def _path_velocity(process: AffineSDE, draw: Draw) -> float:
    """With x0 and ε kept, a noisy state moves along a smooth path.

    What `perturb` gives is differentiated in time and compared with the process's own rates, and
    for rectified flow with ε − x0.
    """
    x0, noise, t = draw.normal(BATCH, 1), draw.normal(BATCH, 1), draw.times(process, BATCH)
    moved = gradient(lambda u: process.perturb(x0, u, noise=noise)[:, 0], t).detach()
    ds, dn = process.rates(t)
    found = residual(moved, ds * x0[:, 0] + dn * noise[:, 0])
    if isinstance(process, RectifiedFlow):
        found = max(found, residual(moved, (noise - x0)[:, 0]))
    return found


@claim(
    "path-velocity-of-the-state",
    title="Conditional velocity in terms of the state",
    statement="(ṅ/n)(x − s x0) + ṡ x0 at x = s x0 + n ε;  (x − x0)/t for s = 1 − t, n = t",
    sources={"flow": "theorem 3, eq. 15"},
    tags=("flow", "process"),
    tolerance=1e-10,
    because="round-off of first derivatives",
    over="process",
)
def _state_velocity(process: AffineSDE, draw: Draw) -> float:
    """The velocity that carries N(s x0, n² I) is affine in the state.

    It is the probability flow of the process for data that are the single point x0, so the flow
    with a denoiser that always says x0 is compared with it.
    """
    x0, t = draw.normal(1, 2), draw.times(process, BATCH)
    x = process.perturb(x0.expand(BATCH, 2), t, noise=draw.normal(BATCH, 2))
    s, n = (expand(v, x) for v in (process.scale(t), process.std(t)))
    ds, dn = (expand(gradient(f, t).detach(), x) for f in (process.scale, process.std))
    right = dn / n * (x - s * x0) + ds * x0
    flow = process.probability_flow(lambda y, _: x0.expand(len(y), 2))(t, x)
    found = residual(flow, right, dn / n * x)
    if isinstance(process, RectifiedFlow):
        found = max(found, residual(flow, (x - x0) / expand(t, x)))
    return found


@claim(
    "marginal-velocity",
    title="The marginal velocity is the probability flow",
    statement="E[ṡ x0 + ṅ ε | x_t = x] = f x − ½ g² ∇ log p_t(x)",
    sources={"flow": "eq. 8, theorem 1", "song2021": "eq. 13"},
    tags=("flow", "process"),
    tolerance=1e-9,
    because="trapezoidal rule on a smooth density, whose error is exponentially small",
    over="process",
)
def _marginal_velocity(process: AffineSDE, draw: Draw) -> float:
    """The mean of the velocities of all paths through a state, over the posterior of x0.

    For a mixture in one dimension the posterior is integrated by quadrature, with the process's s,
    n and their derivatives; the result is compared with its probability flow.
    """
    law, t = draw.mixture(dim=1), draw.times(process, 1)
    x = draw.states(process, law, t.expand(BATCH))
    s, n = float(process.scale(t)), float(process.std(t))
    ds, dn = (float(gradient(f, t).detach()) for f in (process.scale, process.std))
    y, p = posterior(law, x, s, n)
    mean = (p * (ds * y + dn * (x - s * y) / n)).sum(1)
    flow = process.probability_flow(law)(t.expand(BATCH), x)[:, 0]
    return residual(flow, mean, dn / n * x)


@claim(
    "velocity-of-denoiser",
    title="The velocity by a denoiser",
    statement="v(x, t) = E[ε − x0 | x_t = x] = ε̂ − D(x/(1−t), t/(1−t)),  dx/dt = v",
    sources={"flow": "eq. 8, section 4.1", "sdekit": "design, section 4"},
    tags=("flow", "coordinates"),
    tolerance=1e-9,
    because="trapezoidal rule on a smooth density, whose error is exponentially small",
)
def _velocity_of_denoiser(draw: Draw) -> float:
    """Rectified flow has s = 1 − t and noise level σ = t/(1−t).

    The mean of ε − x0 over the posterior of a mixture, by quadrature, is compared with the field of
    `Velocity` coordinates, and with the flow of `RectifiedFlow`; at t = 1 with ε − E[x0].
    """
    law, process, found = draw.mixture(dim=1), RectifiedFlow(), []
    for level in draw.uniform(0.1, 0.9, 2).tolist():
        t = torch.full((BATCH,), level, dtype=torch.float64)
        x = draw.states(process, law, t)
        y, p = posterior(law, x, 1 - level, level)
        mean = (p * ((x - (1 - level) * y) / level - y)).sum(1)[:, None]
        flow = process.probability_flow(law)(t, x)
        found += [residual(velocity(law, x, t), mean, x), residual(flow, mean, x)]
    noise, end = draw.normal(BATCH, 1), torch.ones(BATCH, dtype=torch.float64)
    last = process.probability_flow(law)(end, noise)
    return max(*found, residual(last, noise - law.moments()[0]))


@claim(
    "velocity-continuity",
    title="The velocity carries the density",
    statement="∂p/∂t = −∇·(p v) for v = ε̂ − D, s = 1 − t, σ = t/(1−t)",
    sources={"flow": "theorem 1"},
    tags=("flow", "density"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
)
def _velocity_continuity(draw: Draw) -> float:
    """The marginal velocity solves the continuity equation of the marginals.

    The density of (1−t) x0 + t ε is known for a mixture; its derivative in time by automatic
    differentiation is compared with the divergence of the flux, in two dimensions.
    """
    law, process = draw.mixture(), RectifiedFlow()
    t = draw.uniform(0.1, 0.9, BATCH)
    x = draw.states(process, law, t)

    def density(y: Tensor, u: Tensor) -> Tensor:
        return torch.exp(law.log_prob(y / (1 - u)[:, None], u / (1 - u))) / (1 - u) ** 2

    rate = gradient(lambda u: density(x, u), t)
    flux = divergence(lambda y: density(y, t)[:, None] * velocity(law, y, t), x)
    along = density(x, t) * jacobian(lambda y: velocity(law, y, t), x)[:, 0, 0]
    return residual(rate, -flux, along)


@claim(
    "velocity-score",
    title="Velocity, score, denoiser and noise",
    statement="D = x − t v,  ε̂ = x + (1−t) v,  ∇ log p_t = −(x + (1−t) v)/t",
    sources={"flow": "section 4.1", "sdekit": "design, section 1"},
    tags=("flow", "score"),
    tolerance=1e-9,
    because="round-off; (1 − t) D cancels in v at t near 1",
)
def _velocity_score(draw: Draw) -> float:
    """The state is (1−t) D + t ε̂, and v = ε̂ − D.

    The flow of `RectifiedFlow` is compared with a mixture's own denoiser and score; the score of
    x is that of x/(1−t) over 1 − t.
    """
    law, process = draw.mixture(), RectifiedFlow()
    t = draw.uniform(0.1, 0.9, BATCH)
    x = draw.states(process, law, t)
    at, v = t[:, None], process.probability_flow(law)(t, x)
    x_hat, sigma = x / (1 - at), t / (1 - t)
    denoised, score = law(x_hat, sigma), law.score(x_hat, sigma) / (1 - at)
    noise = (x_hat - denoised) / sigma[:, None]
    return max(
        residual(denoised, x - at * v, x),
        residual(noise, x + (1 - at) * v, x),
        residual(score, -(x + (1 - at) * v) / at, x),
    )


@claim(
    "flow-matching-minimiser",
    title="The conditional objective has the marginal velocity as its minimiser",
    statement="E|v + δφ − (ε − x0)|² = E|v − (ε − x0)|² + δ² E[φ²], v = E[ε − x0 | x], for every φ",
    sources={"flow": "theorem 2"},
    tags=("flow", "training"),
    tolerance=1e-9,
    because="trapezoidal rule in two dimensions on smooth functions",
)
def _minimiser(draw: Draw) -> float:
    """The velocity of a path differs from its conditional mean by what is orthogonal to functions of x.

    Expectations over x0 and x are integrals of smooth functions, by the trapezoidal rule, for a
    mixture in one dimension; φ is the sine of a random frequency. v is that of sdekit's denoiser.
    """
    law, level = draw.mixture(dim=1), float(draw.uniform(0.2, 0.8))
    process, t = RectifiedFlow(), torch.tensor(level, dtype=torch.float64)
    x, _ = line(law, level / (1 - level), 801)
    x = x * (1 - level)
    y, _ = line(law, nodes=2001)
    joint = torch.exp(law.log_prob(y) - 0.5 * ((x - (1 - level) * y[:, 0]) / level) ** 2)
    mass = joint / joint.sum()
    target = (x - (1 - level) * y[:, 0]) / level - y[:, 0]
    v = process.probability_flow(law)(t, x)
    phi = torch.sin(float(draw.uniform(0.5, 2)) * x + float(draw.normal()))
    delta = float(draw.uniform(0.2, 1.0))
    best = float((mass * (v - target) ** 2).sum())
    other = float((mass * (v + delta * phi - target) ** 2).sum())
    added = delta**2 * float((mass * phi**2).sum())
    return abs(other - best - added) / math.hypot(best, added)
