"""Reverse-time equations: the same marginals, backward and forward, for every η."""

from __future__ import annotations

import torch
from torch import Tensor

from ...affine import AffineSDE
from ...distributions import Gaussian, GaussianMixture
from ...sde import ForwardSDE, diffuse, expand, noise_kind
from ..calculus import fokker_planck, gradient, gram, jacobian, residual
from ..claim import claim
from ..draw import Draw, sdes
from .forward import log_density, transition_log_density

BATCH = 6


@claim(
    "reverse-marginals",
    title="The backward family has the marginals of the forward SDE",
    statement="L*(f, G) p = −L*₋(f − ½(1 + η²)(∇·(GGᵀ) + GGᵀ∇log p), η G) p for every η",
    sources={"anderson": "section 3", "khungurn": "eq. 4, theorem 7", "song2021": "appendix D.1"},
    tags=("reverse", "density"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
    over="sde",
)
def _reverse_marginals(sde: ForwardSDE, draw: Draw) -> float:
    """Run backward, an SDE with drift b and diffusion ηG changes the density by −∇·(bp) − ½∇∇:(η²GGᵀp).

    That this is the change by the forward SDE is an identity for every density, so it is tried
    on a mixture that need not be the SDE's own law, with the drift that `ForwardSDE` derives.
    """
    data = draw.mixture()
    eta = float(draw.uniform(0.0, 2.0))
    t = draw.inner_times(sde, BATCH)
    x = data.sample(BATCH, seed=draw.integer(2**31), dtype=torch.float64)

    def density(y: torch.Tensor) -> torch.Tensor:
        return torch.exp(data.log_prob(y, 0.3))

    reverse = sde.reverse(score=lambda y, _: data.score(y, 0.3), eta=eta)
    ahead = fokker_planck(lambda y: sde.drift(y, t), lambda y: gram(sde, y, t), density, x)
    back = fokker_planck(lambda y: reverse.f(t, y), lambda y: eta**2 * gram(sde, y, t), density, x)
    return residual(ahead[0] + ahead[1], back[0] - back[1], *ahead, *back)


def _law(draw: Draw) -> tuple[GaussianMixture, float]:
    """A density that need not be an SDE's own: the identities hold for every one."""
    return draw.mixture(), float(draw.uniform(0.2, 0.5))


@claim(
    "forward-marginals",
    title="The forward family has the marginals of the forward SDE",
    statement="L*(f, G) p = L*(f − ½(1 − β)(∇·(GGᵀ) + GGᵀ∇log p), √β G) p for every β(t) ≥ 0",
    sources={"khungurn": "eq. 3, theorem 4", "edm": "eq. 6, upper sign"},
    tags=("forward", "density"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
    over="sde",
)
def _forward_marginals(sde: ForwardSDE, draw: Draw) -> float:
    """Less noise and a drift up the density, or more of both: the density changes at the same rate.

    Its β may depend on time: each of the times has one of its own. The drift is made of that of
    the probability flow and ``½ β (∇·(GGᵀ) + GGᵀ∇log p)``, the flow being the one that
    `ForwardSDE` derives.
    """
    data, level = _law(draw)
    t, x = (
        draw.inner_times(sde, BATCH),
        data.sample(BATCH, seed=draw.integer(2**31), dtype=torch.float64),
    )
    beta = draw.uniform(0.0, 2.0, BATCH)
    flow = sde.probability_flow(score=lambda y, _: data.score(y, level))

    def density(y: Tensor) -> Tensor:
        return torch.exp(data.log_prob(y, level))

    def drift(y: Tensor) -> Tensor:
        return flow(t, y) + 0.5 * beta[:, None] * _push(sde, data.score(y, level), y, t)

    own = fokker_planck(lambda y: sde.drift(y, t), lambda y: gram(sde, y, t), density, x)
    other = fokker_planck(drift, lambda y: beta[:, None, None] * gram(sde, y, t), density, x)
    return residual(own[0] + own[1], other[0] + other[1], *own, *other)


def _push(sde: ForwardSDE, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """``∇·(GGᵀ) + GGᵀ∇log p``, the divergence by reverse-mode automatic differentiation."""
    slopes = jacobian(lambda y: gram(sde, y, t).flatten(1), x).reshape(*x.shape, *x.shape[1:], -1)
    along = torch.einsum("bij,bj->bi", gram(sde, x, t), score)
    total: Tensor = torch.einsum("bijj->bi", slopes) + along
    return total


@claim(
    "backward-drift",
    title="Drift and diffusion of the backward family",
    statement="f̄ = f − ½(1 + η²)(∇·(GGᵀ) + GGᵀ∇log p),  Ḡ = η G;  in r = T − t: −f̄ and Ḡ",
    sources={
        "anderson": "section 3",
        "song2021": "appendix A and D.1",
        "chen": "theorem 28, eq. 96",
        "edm": "eq. 6",
    },
    tags=("reverse",),
    tolerance=1e-11,
    because="round-off; the divergence is found by reverse- and by forward-mode differentiation",
    over="sde",
)
def _backward_drift(sde: ForwardSDE, draw: Draw) -> float:
    """What `ForwardSDE.reverse` derives is compared with the formula, value by value.

    The formula is written out with a divergence by reverse-mode differentiation; the diffusion,
    which torchsde wants as a matrix or as a diagonal, through ``ḠḠᵀ = η² GGᵀ``. Upward in
    ``r = T − t`` the drift changes its sign.
    """
    data, level = _law(draw)
    t, x = (
        draw.inner_times(sde, BATCH),
        data.sample(BATCH, seed=draw.integer(2**31), dtype=torch.float64),
    )
    eta, score = float(draw.uniform(0.3, 2.0)), data.score(x, level)
    reverse = sde.reverse(score=lambda y, _: data.score(y, level), eta=eta)
    upward = reverse.time_reversed()
    r = sde.T - t
    drift, push = sde.drift(x, t), _push(sde, score, x, t)
    wanted = drift - 0.5 * (1 + eta**2) * push
    square = eta**2 * gram(sde, x, t)
    noises = []
    for g in (reverse.g(t, x), upward.g(r, x), reverse.diffusion(t, x)):
        if noise_kind(g, x) != "matrix":
            g = torch.diag_embed((expand(g, x) if g.ndim < 2 else g).expand(x.shape))
        noises.append(g @ g.mT)
    return max(
        residual(reverse.f(t, x), wanted, drift, eta**2 * push),
        residual(upward.f(r, x), -wanted, drift, eta**2 * push),
        *(residual(noise, square) for noise in noises),
    )


@claim(
    "flow-and-anderson",
    title="The probability flow is halfway between forward and reverse drift",
    statement="v = ½ (f + f̄) with Anderson's f̄ = f − ∇·(GGᵀ) − GGᵀ∇log p",
    sources={"song2021": "eq. 6, 13, 15, and appendix D.1", "chen": "eq. 97, 114"},
    tags=("reverse", "flow"),
    tolerance=1e-11,
    because="round-off",
    over="sde",
)
def _flow_and_anderson(sde: ForwardSDE, draw: Draw) -> float:
    """The stochasticity enters as 1 + η², which is 1 for the flow and 2 for the reverse SDE.

    The flow is asked for as torchdiffeq does, and on flat numpy arrays as scipy does.
    """
    data, level = _law(draw)
    t = draw.inner_times(sde)
    x = data.sample(BATCH, seed=draw.integer(2**31), dtype=torch.float64)
    flow = sde.probability_flow(score=lambda y, _: data.score(y, level))
    anderson = sde.reverse(score=lambda y, _: data.score(y, level))
    drift, back = sde.drift(x, t.repeat(BATCH)), anderson.f(t.repeat(BATCH), x)
    flat = torch.from_numpy(flow.numpy((BATCH, 2))(float(t), x.numpy().reshape(-1)))
    half = 0.5 * (drift + back)
    return max(
        residual(flow(t.repeat(BATCH), x), half, drift, back),
        residual(flat.reshape(BATCH, 2), half, drift, back),
    )


@claim(
    "diffusion-divergence",
    title="Divergence of state-dependent noise",
    statement="∇·(g² I) = ∇(g²);  ∇·diag(g²) = (2 gᵢ ∂ᵢgᵢ)ᵢ;  ∇·(GGᵀ)ᵢ = Σⱼ ∂ⱼ(GGᵀ)ᵢⱼ",
    sources={"song2021": "appendix A", "anderson": "section 3"},
    tags=("reverse",),
    tolerance=1e-12,
    because="round-off",
)
def _diffusion_divergence(draw: Draw) -> float:
    """The three kinds of noise, each with its divergence worked out by hand.

    Scalar ``sqrt(1 + |x|²/2)``, diagonal ``0.5 + 0.3 sin x`` and the matrix
    ``[I + 0.2 sin x cos xᵀ, 0.3 x]``, in three dimensions.
    """
    x, t = draw.normal(BATCH, 3), draw.uniform(0.1, 0.9, BATCH)
    s, c = torch.sin(x), torch.cos(x)
    S, C, n2 = s.sum(1, keepdim=True), c.sum(1, keepdim=True), (c**2).sum(1, keepdim=True)
    mixed = c**2 - s * S - s**2 + c * C  # of s cᵀ + c sᵀ
    outer = -2 * s * (c * s**2).sum(1, keepdim=True) + n2 * (c * s + s * C)  # of |c|² s sᵀ
    by_hand = {
        "double well": x,
        "geometric": 2 * (0.5 + 0.3 * s) * 0.3 * c,
        "whirl": 0.2 * mixed + 0.04 * outer + 0.09 * 4 * x,
    }
    return max(
        residual(sdes()[name].diffusion_divergence(x, t), right) for name, right in by_hand.items()
    )


@claim(
    "noise-kinds",
    title="Scalar, diagonal and matrix noise",
    statement="G dW = g dW, (gᵢ dWᵢ)ᵢ or (Σⱼ Gᵢⱼ dWⱼ)ᵢ",
    sources={"chen": "eq. 1", "sdekit": "design, section 2"},
    tags=("forward",),
    tolerance=1e-14,
    because="round-off",
)
def _noise_kinds(draw: Draw) -> float:
    """`diffuse` is compared with explicit matrices, and the kind of noise is read off the shape."""
    x, t = draw.normal(BATCH, 3), draw.uniform(0.1, 0.9, BATCH)
    outer = 0.2 * torch.sin(x)[:, :, None] * torch.cos(x)[:, None, :]
    eye = torch.eye(3, dtype=torch.float64)
    cases = {
        "double well": ("scalar", torch.sqrt(1 + 0.5 * (x**2).sum(1))[:, None, None] * eye),
        "geometric": ("diagonal", torch.diag_embed(0.5 + 0.3 * torch.sin(x))),
        "whirl": ("matrix", torch.cat([eye + outer, 0.3 * x[:, :, None]], 2)),
    }
    worst = 0.0
    for name, (kind, matrix) in cases.items():
        G, dw = sdes()[name].diffusion(x, t), draw.normal(BATCH, matrix.shape[2])
        wrong = float(noise_kind(G, x) != kind)
        worst = max(worst, wrong, residual(diffuse(G, x, dw), (matrix @ dw[:, :, None])[:, :, 0]))
    g = draw.uniform(0.5, 1.0).squeeze()
    wrong = float(noise_kind(g, x) != "scalar")
    return max(worst, wrong, residual(diffuse(g, x, x), g * x))


@claim(
    "reverse-kolmogorov",
    title="Reverse-time Kolmogorov equation",
    statement="−∂p(x, t | x_T)/∂t = −∇·((−f + g²∇log p_t) p) + ½ g² Δp, p(x, t | x_T) by Bayes",
    sources={"khungurn": "theorem 6", "anderson": "section 3"},
    tags=("reverse", "density", "process"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
    over="process",
)
def _reverse_kolmogorov(process: AffineSDE, draw: Draw) -> float:
    """Given where it ends, a process has the law of the reverse SDE started there.

    Bayes' rule gives the law exactly for a mixture, ``p_t(x) p(x_T | x)/p_T(x_T)``. The drift is
    that of `AffineSDE.reverse`.
    """
    data = draw.mixture()
    t, last = draw.ordered_times(process, BATCH)
    x = draw.states(process, data, t)
    mean, std = process.transition(x, t, last)
    end = mean + std[:, None] * draw.normal(BATCH, 2)

    def density(y: Tensor, u: Tensor) -> Tensor:
        ahead = transition_log_density(process, end, last, y, u)
        evidence = log_density(process, data, end, last)
        return torch.exp(log_density(process, data, y, u) + ahead - evidence)

    reverse = process.reverse(data)
    back = fokker_planck(
        lambda y: -reverse.f(t, y), lambda y: gram(process, y, t), lambda y: density(y, t), x
    )
    rate = gradient(lambda u: density(x, u), t)
    return residual(-rate, back[0] + back[1], *back)


@claim(
    "reverse-transition",
    title="The reverse transition is Bayes' rule, and carries one marginal to the other",
    statement="p(x_r | x_t) = p_r(x_r) p(x_t | x_r)/p_t(x_t),  ∫ p(x_r | x_t) p_t(x_t) dx_t = p_r(x_r)",
    sources={"khungurn": "theorems 6 and 7", "sdekit": "theory, 4.3"},
    tags=("reverse", "density", "process"),
    tolerance=1e-9,
    because="trapezoidal rule, exponentially accurate for densities this smooth",
    over="process",
)
def _reverse_transition(process: AffineSDE, draw: Draw) -> float:
    """Anderson's SDE has a transition in closed form for mixtures: again a mixture.

    `GaussianMixture.reverse_transition` is compared with Bayes' rule on the process's own
    transition, in one dimension, and integrated over where it starts.
    """
    data = draw.mixture(1, 3)
    r, t = (u.squeeze() for u in draw.ordered_times(process, 1))
    both = torch.stack([r, t])
    (s_r, s_t), (sigma_r, sigma_t) = process.scale(both), process.sigma(both)
    reach = 9 * float(sigma_t) + 14
    x_t = s_t * torch.linspace(-reach, reach, 6001, dtype=torch.float64)[:, None]
    x_r = draw.states(process, data, r.reshape(1)).expand(len(x_t), 1)
    ahead = transition_log_density(process, x_t, t, x_r, r)
    evidence = log_density(process, data, x_t, t.expand(len(x_t)))
    prior = log_density(process, data, x_r, r.expand(len(x_t)))
    bayes = torch.exp(prior + ahead - evidence)
    law = data.reverse_transition(x_t / s_t, sigma_t, sigma_r)
    own = torch.exp(law.log_prob(x_r / s_r)) / s_r
    kept = torch.trapezoid(own * torch.exp(evidence), x_t[:, 0])
    near = (ahead > -20) & (evidence > -20)
    return max(
        residual(own[near], bayes[near]),
        residual(kept.reshape(1), torch.exp(prior[:1])),
    )


@claim(
    "reverse-law-gaussian",
    title="Law of the backward family for Gaussian data",
    statement="x̂' | x̂ ~ N(m + (v'/v)^((1 + η²)/2) (x̂ − m), v' (1 − (v'/v)^(η²))) for every η",
    sources={"sdekit": "theory, 4.2", "khungurn": "eq. 4"},
    tags=("reverse", "density", "process"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
    over="process",
)
def _reverse_law_gaussian(process: AffineSDE, draw: Draw) -> float:
    """For Gaussian data the backward equation is linear, and its transition known for every η.

    With ``v = λ + σ²`` along each eigenvector; the density of that transition is differentiated in
    the time at which it ends, and the drift is that of `AffineSDE.reverse`.
    """
    scales, eta = draw.log_uniform(0.2, 2.0, 2), float(draw.uniform(0.3, 2.0))
    centre = draw.normal(2)
    data = Gaussian(centre, scales**2)
    t, last = draw.ordered_times(process, BATCH)
    start = draw.states(process, data, last)

    def law(u: Tensor) -> tuple[Tensor, Tensor]:
        v = scales**2 + process.sigma(last)[:, None] ** 2
        after = scales**2 + process.sigma(u)[:, None] ** 2
        kept, s = after / v, process.scale(u)[:, None]
        off = start / process.scale(last)[:, None] - centre
        mean = s * (centre + kept ** (0.5 * (1 + eta**2)) * off)
        return mean, s**2 * after * (1 - kept ** (eta**2))

    mean, variance = law(t)
    x = mean + torch.sqrt(variance) * draw.normal(BATCH, 2)

    def density(y: Tensor, u: Tensor) -> Tensor:
        mean, variance = law(u)
        return torch.exp(-0.5 * ((y - mean) ** 2 / variance + torch.log(variance)).sum(1))

    reverse = process.reverse(data, eta=eta)
    back = fokker_planck(
        lambda y: -reverse.f(t, y),
        lambda y: eta**2 * gram(process, y, t),
        lambda y: density(y, t),
        x,
    )
    own = data.reverse_law(
        start[:1] / process.scale(last)[0],
        float(process.sigma(last)[0]),
        float(process.sigma(t)[0]),
        eta,
    )
    s = process.scale(t)[0]
    return max(
        residual(-gradient(lambda u: density(x, u), t), back[0] + back[1], *back),
        residual(s * own[0], mean[:1]),
        residual(s**2 * own[1].diagonal()[None], variance[:1]),
    )
