"""The probability flow: its density, its trajectories and its coefficients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...affine import AffineSDE
from ...distributions import GaussianMixture
from ...sde import ForwardSDE, expand
from ..calculus import divergence, gradient, gram, jacobian, residual
from ..claim import claim
from ..draw import Draw
from .forward import log_density

BATCH = 6


@claim(
    "continuity-equation",
    title="Continuity equation of the probability flow",
    statement="∂p/∂t + ∇·(v p) = 0 with v = f x − ½ g² ∇log p",
    sources={
        "chen": "theorem 21, eq. 54, 118",
        "song2021": "eq. 13, appendix D.1",
        "flow": "appendix A",
    },
    tags=("flow", "density", "process"),
    tolerance=1e-10,
    because="round-off of derivatives by automatic differentiation",
    over="process",
)
def _continuity(process: AffineSDE, draw: Draw) -> float:
    """Without noise the Fokker–Planck equation is the conservation of mass along the flow.

    The density of a mixture under the process is known; its derivative in time is compared with
    the divergence of what `AffineSDE.probability_flow` transports.
    """
    data, t = draw.mixture(), draw.times(process, BATCH)
    x, flow = draw.states(process, data, t), process.probability_flow(data)

    def density(y: Tensor, u: Tensor) -> Tensor:
        return torch.exp(log_density(process, data, y, u))

    rate = gradient(lambda u: density(x, u), t)
    spread = density(x, t) * divergence(lambda y: flow(t, y), x)
    carried = (flow(t, x) * gradient(lambda y: density(y, t), x)).sum(1)
    moved = divergence(lambda y: flow(t, y) * density(y, t)[:, None], x)
    return residual(-rate, moved, spread, carried)


@claim(
    "log-density-along-the-flow",
    title="Instantaneous change of variables",
    statement="d log p_t(x(t))/dt = −∇·v(x(t), t) along dx/dt = v",
    sources={"chen": "theorems 20 and 21", "song2021": "eq. 39"},
    tags=("flow", "density", "process"),
    tolerance=1e-10,
    because="round-off of derivatives by automatic differentiation",
    over="process",
)
def _log_density(process: AffineSDE, draw: Draw) -> float:
    """Divided by p, the continuity equation says how the log-density changes for who swims along.

    The total derivative ``∂log p/∂t + v·∇log p`` of a mixture's exact density is compared with the
    divergence of the flow, which for a mixture is known through its score's divergence as well.
    """
    data, t = draw.mixture(), draw.times(process, BATCH)
    x, flow = draw.states(process, data, t), process.probability_flow(data)
    rate = gradient(lambda u: log_density(process, data, x, u), t)
    carried = (flow(t, x) * gradient(lambda y: log_density(process, data, y, t), x)).sum(1)
    spread = divergence(lambda y: flow(t, y), x)
    s, g = process.scale(t), process.g(t)
    curved = data.score_divergence(x / s[:, None], process.sigma(t)) / s**2
    by_hand = 2 * process.f(t) - 0.5 * g**2 * curved
    return max(
        residual(rate + carried, -spread, rate, carried), residual(spread, by_hand, g**2 * curved)
    )


@claim(
    "flow-change-of-variables",
    title="Density of a flow map",
    statement="p_t(φ(x)) |det ∂φ/∂x| = p_r(x) for the flow map φ from r to t",
    sources={"chen": "theorem 20, eq. 52"},
    tags=("flow", "density", "process"),
    tolerance=1e-9,
    because="the map of a 1-D mixture is a root, found to round-off",
    over="process",
)
def _change_of_variables(process: AffineSDE, draw: Draw) -> float:
    """Mass is neither made nor lost, so a density is diluted by as much as its volume grows.

    For a mixture in one dimension with the exact map of `GaussianMixture.flow`, differentiated;
    for a Gaussian in two with `Gaussian.flow` and `Gaussian.flow_log_det`.
    """
    r, t = draw.ordered_times(process, BATCH)
    (s_r, s_t), (a, b) = process.scale(torch.stack([r, t])), process.sigma(torch.stack([r, t]))
    data = draw.mixture(1, 3)
    x = draw.states(process, data, r)
    stretch = gradient(lambda y: s_t * data.flow(y / s_r[:, None], a, b)[:, 0], x)[:, 0]
    end = s_t[:, None] * data.flow(x / s_r[:, None], a, b)
    one = log_density(process, data, end, t) + torch.log(stretch)
    bell = draw.gaussian()
    y = draw.states(process, bell, r)
    far = s_t[:, None] * bell.flow(y / s_r[:, None], a, b)
    log_det = bell.flow_log_det(a, b) + 2 * torch.log(s_t / s_r)
    two = log_density(process, bell, far, t) + log_det
    return max(
        residual(one, log_density(process, data, x, r), torch.log(stretch)),
        residual(two, log_density(process, bell, y, r), log_det),
    )


@claim(
    "flow-map",
    title="Trajectories of the probability flow",
    statement="d/dt φ(x; r, t) = v(φ(x; r, t), t),  φ(φ(x; r, u); u, t) = φ(x; r, t)",
    sources={"chen": "definition 3, eq. 39, 51, 116", "sdekit": "theory, 4.2 and 4.5"},
    tags=("flow", "process"),
    tolerance=1e-9,
    because="the map of a 1-D mixture is a root, found to round-off",
    over="process",
)
def _flow_map(process: AffineSDE, draw: Draw) -> float:
    """The maps that are known in closed form are solutions of the flow.

    Their derivative in the later time, for a mixture in one dimension and for a Gaussian in two,
    is compared with `AffineSDE.probability_flow`; and one map after another is one map.
    """
    r, t = draw.ordered_times(process, BATCH)
    middle = process.time(torch.sqrt(process.sigma(r) * process.sigma(t)))
    worst = 0.0
    laws: tuple[GaussianMixture, ...] = (draw.mixture(1, 3), draw.gaussian())
    for data in laws:
        x = draw.states(process, data, r)

        def move(y: Tensor, a: Tensor, b: Tensor, data: GaussianMixture = data) -> Tensor:
            unscaled = y / process.scale(a)[:, None]
            moved = data.flow(unscaled, process.sigma(a), process.sigma(b))
            return process.scale(b)[:, None] * moved

        def later(u: Tensor, x: Tensor = x, move: Callable[..., Tensor] = move) -> Tensor:
            moved: Tensor = move(x, r, u[:, 0])
            return moved

        speed = jacobian(later, t[:, None])[:, :, 0]
        end = move(x, r, t)
        size = process.probability_flow(data)(t, end)
        still = process.f(t)[:, None] * end
        worst = max(
            worst,
            residual(speed, size, still),
            residual(move(move(x, r, middle), middle, t), end),
        )
    return worst


@claim(
    "mass-is-conserved",
    title="In one dimension the flow keeps the distribution function",
    statement="∂F_t(x)/∂t = −v(x, t) p_t(x), so F_t(x(t)) = F_r(x(r))",
    sources={"chen": "theorem 15, eq. 40", "sdekit": "theory, 4.5"},
    tags=("flow", "density", "process"),
    tolerance=1e-10,
    because="round-off",
    over="process",
)
def _mass(process: AffineSDE, draw: Draw) -> float:
    """No trajectory crosses another, so none of the mass to its left can leave.

    The distribution function of a mixture is a sum of normal ones, written out here; its rate is
    compared with the flux of `AffineSDE.probability_flow`.
    """
    weights, means = torch.softmax(draw.normal(3), 0), draw.normal(3)
    variances = draw.log_uniform(0.1, 1.0, 3)
    data, t = GaussianMixture(weights, means[:, None], variances), draw.times(process, BATCH)
    x, flow = draw.states(process, data, t), process.probability_flow(data)

    def below(u: Tensor) -> Tensor:
        std = process.scale(u)[:, None] * torch.sqrt(variances + process.sigma(u)[:, None] ** 2)
        z = (x - process.scale(u)[:, None] * means) / std
        total: Tensor = (weights * torch.special.ndtr(z)).sum(1)
        return total

    flux = flow(t, x)[:, 0] * torch.exp(log_density(process, data, x, t))
    return residual(-gradient(below, t), flux)


@claim(
    "probability-current",
    title="The probability flow is the velocity of the probability current",
    statement="J = f p − ½ ∇·(GGᵀ p) = v p",
    sources={"chen": "eq. 16, 57, theorem 23", "risken": "section 4.7", "chan": "eq. 176, 177"},
    tags=("flow", "density", "brownian"),
    tolerance=1e-10,
    because="round-off of derivatives by automatic differentiation",
    over="sde",
)
def _current(sde: ForwardSDE, draw: Draw) -> float:
    """What crosses a surface is drift less Fick's diffusive flux, for noise of any kind.

    The flux is differentiated as it stands, ``½ Σⱼ ∂ⱼ((GGᵀ)ᵢⱼ p)``; the velocity is that of
    `ForwardSDE.probability_flow`, on a density that need not be the SDE's own.
    """
    data, level = draw.mixture(), float(draw.uniform(0.2, 0.5))
    t = draw.inner_times(sde, BATCH)
    x = data.sample(BATCH, seed=draw.integer(2**31), dtype=torch.float64)

    def density(y: Tensor) -> Tensor:
        return torch.exp(data.log_prob(y, level))[:, None]

    def weighted(y: Tensor) -> Tensor:
        return (gram(sde, y, t) * density(y)[:, :, None]).flatten(1)

    slopes = jacobian(weighted, x).reshape(*x.shape, *x.shape[1:], -1)
    along, fick = sde.drift(x, t) * density(x), 0.5 * torch.einsum("bijj->bi", slopes)
    flow = sde.probability_flow(score=lambda y, _: data.score(y, level))
    return residual(flow(t, x) * density(x), along - fick, along, fick)


@claim(
    "flow-coefficients",
    title="Backward drift in terms of the denoiser",
    statement="f̄ = a x + b D, a = ṅ/n + ½η²g²/n², b = ṡ − s ṅ/n − ½η²g²s/n², n = s σ",
    sources={"edm": "algorithm 1, line 4; eq. 6", "khungurn": "eq. 2, 5"},
    tags=("flow", "reverse", "edm", "process"),
    tolerance=1e-9,
    because="round-off; the two forms cancel differently at low noise",
    over="process",
)
def _coefficients(process: AffineSDE, draw: Draw) -> float:
    """With the score written as ``(s D − x)/n²`` the drift is linear in state and denoiser.

    `AffineSDE.backward_coefficients`, `probability_flow` and `reverse`, handed a plain denoiser, one
    that knows its score, and a score, are compared with ``f x − ½(1 + η²) g² ∇log p``.
    """
    data, t = draw.mixture(), draw.times(process, BATCH)
    x, eta = draw.states(process, data, t), float(draw.uniform(0.3, 2.0))
    s, sigma = process.scale(t)[:, None], process.sigma(t)[:, None]
    n, g, f = s * sigma, process.g(t)[:, None], process.f(t)[:, None]
    denoised = data.denoise(x / s, process.sigma(t))
    score = (s * denoised - x) / n**2

    def plain(x_hat: Tensor, level: Tensor) -> Tensor:
        return data.denoise(x_hat, level)

    def scaled(y: Tensor, u: Tensor) -> Tensor:
        unscaled = y / expand(process.scale(u), y)
        return data.score(unscaled, process.sigma(u)) / expand(process.scale(u), y)

    worst = residual(score, scaled(x, t))
    for stochasticity in (0.0, eta):
        extra = 0.5 * (1 + stochasticity**2) * g**2
        a, b = process.backward_coefficients(t, stochasticity)
        worst = max(
            worst,
            residual(a, (f + extra / n**2)[:, 0], f, extra / n**2),
            residual(b, (-extra * s / n**2)[:, 0]),
        )
        wanted = f * x - extra * score
        for given in ({"denoiser": plain}, {"denoiser": data}, {"score": scaled}):
            if stochasticity:
                found = process.reverse(eta=stochasticity, **given).f(t, x)
            else:
                found = process.probability_flow(**given)(t, x)
            worst = max(worst, residual(found, wanted, f * x, extra / n**2 * x))
    return worst


@claim(
    "one-flow",
    title="Every affine process has the same flow in the unscaled state",
    statement="d(x/s)/dσ = (x̂ − D(x̂, σ))/σ, x̂ = x/s, whatever s(t) and σ(t)",
    sources={"edm": "eq. 1 and 4, appendix B.2", "sdekit": "theory, 4.1"},
    tags=("flow", "process", "edm"),
    tolerance=1e-9,
    because="round-off; the terms of the drift cancel",
    over="process",
)
def _one_flow(process: AffineSDE, draw: Draw) -> float:
    """The scale only stretches space, the noise level only stretches time.

    The flow of the process is divided by its scale, less what the scale's own change does, and by
    the rate of the noise level, which is differentiated automatically.
    """
    data, t = draw.mixture(), draw.times(process, BATCH)
    x, s = draw.states(process, data, t), process.scale(t)[:, None]
    sigma = process.sigma(t)
    rate = gradient(process.sigma, t)[:, None]
    stretch = gradient(process.scale, t)[:, None]
    v, x_hat = process.probability_flow(data)(t, x), x / s
    moved = (v - stretch * x_hat) / (s * rate)
    wanted = (x_hat - data.denoise(x_hat, sigma)) / sigma[:, None]
    return residual(moved, wanted, v / (s * rate), stretch * x_hat / (s * rate))
