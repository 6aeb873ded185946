"""Churn: noise added between steps of the flow keeps the law, and is EDM's SDE in the limit."""

from __future__ import annotations

import math

import torch

from ... import eta as etas
from ...distributions import Gaussian
from ..calculus import line
from ..claim import claim
from ..draw import Draw


@claim(
    "edm-churn-law",
    title="Churn and the flow keep the law",
    statement="x ~ p(·; σ), x̂ = x + √(σ̂² − σ²) ξ, flow from σ̂ to σ'  ⇒  x' ~ p(·; σ')",
    sources={"edm": "section 4, algorithm 2"},
    tags=("edm", "density", "flow"),
    tolerance=1e-9,
    because="trapezoidal rule on a smooth density, whose error is exponentially small",
)
def _churn_law(draw: Draw) -> float:
    """Adding noise is exact in law, p(·; σ) ∗ N(0, σ̂² − σ²) = p(·; σ̂), and so is the flow.

    The characteristic function of the mixture at σ times that of the noise is that at σ̂. Pushed by
    the exact flow of the mixture to σ', the density at σ̂ has the characteristic function at σ'.
    """
    law = draw.mixture(dim=1)
    sigma, gamma = float(draw.log_uniform(0.3, 3.0)), float(draw.uniform(0.05, 0.41))
    hat, low = (1 + gamma) * sigma, float(draw.uniform(0.3, 0.95)) * sigma
    k = draw.normal(5, 1)
    damped = law.characteristic_function(k, sigma) * torch.exp(
        -0.5 * k[:, 0] ** 2 * (hat**2 - sigma**2)
    )
    y, weight = line(law, hat)
    mass = weight * torch.exp(law.log_prob(y, hat))
    moved = law.flow(y, hat, low)
    pushed = (torch.exp(1j * (k @ moved.mT)) * mass).sum(1)
    noisy = (damped - law.characteristic_function(k, hat)).abs().max()
    return float(noisy + (pushed - law.characteristic_function(k, low)).abs().max())


@claim(
    "edm-churn-limit",
    title="Churn is EDM's SDE in the limit of short steps",
    statement="churn by γ and an exact step down is the SDE with η² log(σ/σ') = log(1+γ) up to O(h²)",
    sources={"edm": "section 4", "khungurn": "section 4"},
    tags=("edm", "reverse"),
    kind="rate",
    tolerance=0.1,
    because="the slope of the errors of one step, of two lengths a factor 2 apart",
)
def _churn_limit(draw: Draw) -> float:
    """Each churned step has the same mean and variance as the SDE, but for terms of second order.

    For Gaussian data both are known: churn from the exact flow, the SDE from `Gaussian.reverse_law`,
    with η from `sdekit.eta.from_churn`. Noise of size γ σ, not √γ, is what a rate of replacing
    existing noise asks for; and as the flow starts from σ̂ > σ, the score counts more, not less.
    """
    law, sigma = Gaussian([0.0], [1.0]), float(draw.uniform(0.7, 2.0))
    x = torch.tensor([[1.0]], dtype=torch.float64)
    errors = []
    for h in (0.02, 0.01):
        low, gamma = sigma * math.exp(-h), math.expm1(0.6 * h)
        hat = (1 + gamma) * sigma
        factor = float(law.flow(x, hat, low))
        eta = float(etas.from_churn(gamma, sigma, low))
        mean, cov = law.reverse_law(x, sigma, low, eta)
        variance = factor**2 * (hat**2 - sigma**2)
        errors.append((abs(factor - float(mean)), abs(variance - float(cov))))
    slopes = [math.log2(a / b) for a, b in zip(*errors, strict=True)]
    return max(abs(slope - 2) for slope in slopes)
