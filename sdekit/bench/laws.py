"""Expectations under a mixture in closed form: what distances between laws are made of.

``Y`` and ``Y'`` are independent draws of the law at a noise level. Their difference is a mixture,
too, of all pairs of components: ``E f(Y − Y')`` is a formula for ``E f(Y)``, once more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..distributions import GaussianMixture
from ..distributions.base import chunked
from ..distributions.eigen import weighted_cov


def component_covariances(law: GaussianMixture) -> Tensor:
    """Return the covariances of the components, ``(K, d, d)``, float64."""
    p = law._parameters(torch.device("cpu"), torch.float64)
    each = torch.eye(len(law.weights), dtype=torch.float64)
    return weighted_cov(p, each, p.variances[None])


def difference(law: GaussianMixture) -> GaussianMixture:
    """Return the law of ``Y − Y'`` without noise; at ``σ`` it is the same at ``√2 σ``."""
    weights = torch.outer(law.weights, law.weights).flatten()
    means = law.means[:, None] - law.means
    covs = component_covariances(law)
    pairs = covs[:, None] + covs
    return GaussianMixture(weights, means.flatten(0, 1), pairs.flatten(0, 1))


def mean_kernel(law: GaussianMixture, x: Tensor, sigma: float, width: float) -> Tensor:
    """Return ``E exp(−‖x − Y‖²/(2 h²))`` at ``x``, ``(n, d)`` to ``(n,)``, for the width ``h``.

    The kernel is a Gaussian density but for its factor, so that the mean is the density of
    ``Y + h ε``: ``(2π h²)^(d/2) p(x, sqrt(σ² + h²))``.
    """
    log_factor = 0.5 * law.dim * math.log(2 * math.pi * width**2)
    return (law.log_prob(x, math.hypot(sigma, width)) + log_factor).exp()


def mean_distance(law: GaussianMixture, a: Tensor, sigma: float) -> Tensor:
    """Return ``E|a − Y|`` at points of a line, ``(n,)`` to ``(n,)``, for a mixture in dimension 1.

    Of a component ``N(m, s²)`` it is ``z erf(z/(s √2)) + s sqrt(2/π) exp(−z²/(2 s²))``, ``z = a − m``.
    """
    stds = (law._variances[:, 0] + sigma**2).sqrt().to(a)
    means, weights = law.means[:, 0].to(a), law.weights.to(a)

    def distance(a: Tensor) -> Tensor:
        z = (a[:, None] - means) / stds
        tail = math.sqrt(2 / math.pi) * (-0.5 * z.square()).exp()
        return (z * torch.erf(z / math.sqrt(2)) + tail) @ (stds * weights)

    return chunked(distance, len(means), a)


def fourth_moment(law: GaussianMixture, sigma: float) -> float:
    """Return ``E‖Y − E Y‖⁴``.

    Of a component of mean ``δ`` from that of the law and covariance ``S`` it is
    ``(tr S + ‖δ‖²)² + 2 tr S² + 4 δᵀ S δ``.
    """
    covs = component_covariances(law) + sigma**2 * torch.eye(law.dim, dtype=torch.float64)
    offset = law.means - law.weights @ law.means
    size = covs.diagonal(dim1=1, dim2=2).sum(1) + offset.square().sum(1)
    along = torch.einsum("kd,kde,ke->k", offset, covs, offset)
    return float(law.weights @ (size.square() + 2 * covs.square().sum((1, 2)) + 4 * along))
