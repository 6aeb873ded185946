"""sdekit's training objectives: what each is an error of, and what minimises it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ... import losses
from ...denoisers import EDMDenoiser
from ...distributions import GaussianMixture
from ..calculus import quadrature, residual
from ..claim import claim
from ..draw import Draw
from .score_matching import network, pairs, smooth_mixture

Denoiser = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[Denoiser], Tensor]


class Raw(nn.Module):
    """The raw network ``F`` of an `EDMDenoiser` that is to give a certain denoiser."""

    def __init__(self, denoiser: Denoiser, sigma_data: float) -> None:
        super().__init__()
        self.denoiser, self.sigma_data = denoiser, sigma_data
        self.dtype = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """``F = (D − c_skip x̂)/c_out`` of the state that was scaled to ``x``."""
        sigma = torch.exp(4 * c_noise).reshape(-1, 1)
        h = torch.sqrt(sigma**2 + self.sigma_data**2)
        clean = self.denoiser(h * x, sigma[:, 0])
        return (clean - (self.sigma_data / h) ** 2 * h * x) * h / (sigma * self.sigma_data)


def edm(denoiser: Denoiser, sigma_data: float) -> EDMDenoiser:
    """Precondition a network so that it gives a certain denoiser."""
    raw = Raw(denoiser, sigma_data)
    return EDMDenoiser(raw, sigma_data=sigma_data, sigma_min=1e-3, sigma_max=1e3)


@claim(
    "objective-targets",
    title="What training objectives are errors of",
    statement="λ(σ) |D − x₀|² is |ε̂ − ε|² for λ = 1/σ², |v̂ − v|² for 1 + 1/σ², |ŝ − ∇log q(x̂|x₀)|² for "
    "1/σ⁴, |F̂ − F|² for 1/σ² + 1/σ_d², |û − (ε − x₀)|² for (1 + 1/σ)²",
    sources={
        "ddpm": "eq. 14",
        "distillation": "section 4, appendix D",
        "edm": "eq. 8",
        "flow": "eq. 23",
        "kim": "section 2.4",
    },
    tags=("training", "score", "preconditioning", "flow"),
    tolerance=1e-10,
    because="round-off of a few sums",
)
def _targets(draw: Draw) -> float:
    """Every target is affine in x̂ and x₀, so the error of its prediction is one of the denoiser.

    The losses of `sdekit.losses` at random data, levels and noise, for a mixture's denoiser plus an
    error, against the squared errors of the targets, each written down in its own terms.
    """
    data, net = draw.mixture(), network(draw, 2)
    x0, noise = draw.normal(2, 6, 2)
    sigma, scale = draw.levels(6), float(draw.uniform(0.3, 2.0))
    s = sigma[:, None]
    x_hat = x0 + s * noise

    def denoiser(x: Tensor, level: Tensor) -> Tensor:
        return data(x, level) + 0.3 * net(x)

    clean = denoiser(x_hat, sigma)
    guess = (x_hat - clean) / s
    alpha = 1 / torch.sqrt(1 + s**2)
    skip = scale**2 / (s**2 + scale**2)
    out = s * scale / torch.sqrt(s**2 + scale**2)
    errors = {
        losses.x0_loss: clean - x0,
        losses.epsilon_loss: guess - noise,
        losses.v_loss: alpha * guess - alpha * s * clean - (alpha * noise - alpha * s * x0),
        losses.score_loss: (clean - x_hat) / s**2 - (x0 - x_hat) / s**2,
        losses.flow_matching_loss: guess - clean - (noise - x0),
        losses.edm_loss: (clean - skip * x_hat) / out - (x0 - skip * x_hat) / out,
    }
    worst = 0.0
    for loss, error in errors.items():
        model = edm(denoiser, scale) if loss is losses.edm_loss else denoiser
        found = loss(model, x0, sigma=sigma, noise=noise)  # type: ignore[operator]
        worst = max(worst, residual(found, error.square().mean(1)))
    return worst


def objectives(
    data: GaussianMixture, sigma: float, scale: float, clean: Tensor, noise: Tensor
) -> dict[str, Loss]:
    """Every objective of one-dimensional data, as a function of the denoiser."""
    levels = torch.full((len(clean),), sigma, dtype=torch.float64)
    given: dict[str, Any] = {"x0": clean, "sigma": levels, "noise": noise}
    found: dict[str, Loss] = {
        name: partial(getattr(losses, f"{name}_loss"), **given)
        for name in ("x0", "epsilon", "v", "score", "flow_matching", "implicit_score")
    }
    found["explicit_score"] = partial(losses.explicit_score_loss, law=data, **given)
    found["sliced_score"] = partial(
        losses.sliced_score_loss, probes=torch.ones_like(clean), **given
    )
    found["edm"] = lambda denoiser: losses.edm_loss(edm(denoiser, scale), **given)
    return found


@claim(
    "objective-minimiser",
    title="The exact denoiser minimises every training objective",
    statement="E loss(D + δφ) = E loss(D) + δ² λ(σ) E φ² for every φ, D = E[x₀|x̂]; "
    "of implicit score matching with + δ²/σ⁴ E φ²",
    sources={
        "vincent": "section 4.2",
        "edm": "appendix B.3",
        "flow": "theorem 2",
        "sdekit": "design 1",
    },
    tags=("training", "score", "flow"),
    tolerance=1e-8,
    because="quadrature over 300 × 81 points",
)
def _minimiser(draw: Draw) -> float:
    """The error of the conditional mean is uncorrelated with every function of the state.

    So there is no term linear in δ. All objectives of `sdekit.losses` by double quadrature over
    clean data and noise, with a mixture's denoiser and a random φ; λ are the weights of their table.
    """
    data, sigma = smooth_mixture(draw), float(draw.uniform(0.4, 1.5))
    scale, net = float(draw.uniform(0.3, 2.0)), network(draw, 1)
    clean, noisy, weights = pairs(data, sigma)
    x, own = quadrature(data, sigma)
    square = own @ net(x)[:, 0] ** 2
    size = {
        "x0": 1.0,
        "epsilon": sigma**-2,
        "v": 1 + sigma**-2,
        "score": sigma**-4,
        "flow_matching": (1 + 1 / sigma) ** 2,
        "edm": sigma**-2 + scale**-2,
        "implicit_score": sigma**-4,
        "explicit_score": sigma**-4,
        "sliced_score": sigma**-4,
    }
    worst, delta = 0.0, float(draw.uniform(0.3, 1.0))

    def moved(y: Tensor, level: Tensor) -> Tensor:
        return data(y, level) + delta * net(y)

    for name, loss in objectives(data, sigma, scale, clean, (noisy - clean) / sigma).items():
        with torch.no_grad():
            least, found = weights @ loss(data), weights @ loss(moved)
        worst = max(worst, residual(found - least, delta**2 * size[name] * square, found, least))
    return worst


@claim(
    "objective-score-matching",
    title="sdekit's objectives of score matching have one gradient",
    statement="∂θ E[|s|² + 2∇·s] = ∂θ E[|s|² + 2vᵀ∇s v] = ∂θ E|s − ∇log p_σ|² = ∂θ E|s + ε/σ|², "
    "s = (D_θ − x̂)/σ²",
    sources={"hyvarinen": "theorem 1", "vincent": "section 4.2", "ssm": "section 3"},
    tags=("training", "score"),
    tolerance=1e-9,
    because="quadrature over 300 × 81 points",
)
def _one_gradient(draw: Draw) -> float:
    """They differ by what does not depend on θ, in expectation.

    Gradients in seven parameters of D_θ = e x̂ + a tanh(b x̂ + c), by double quadrature over clean data
    and noise, of the four functions of `sdekit.losses`.
    """
    data, sigma = smooth_mixture(draw), float(draw.uniform(0.4, 1.5))
    theta = draw.normal(7).requires_grad_()

    def denoiser(x: Tensor, level: Tensor) -> Tensor:
        return torch.tanh(x * theta[:2] + theta[2:4]) @ theta[4:6, None] + theta[6] * x

    clean, noisy, weights = pairs(data, sigma)
    every = objectives(data, sigma, 1.0, clean, (noisy - clean) / sigma)
    names = ("score", "explicit_score", "implicit_score", "sliced_score")
    first, *others = (
        torch.autograd.grad(weights @ every[name](denoiser), theta)[0][None] for name in names
    )
    return max(residual(first, other) for other in others)
