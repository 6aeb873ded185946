"""The exact transition of the reverse SDE (eta = 1) of a Gaussian mixture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sdekit.distributions.base import Sigma, chunked, random_source, squared
from sdekit.distributions.eigen import (
    Parameters,
    combine,
    eigen_coordinates,
    from_eigen,
    pick,
    rotate,
    scatter,
    weighted_cov,
)

if TYPE_CHECKING:
    from sdekit.distributions.mixture import GaussianMixture


class Conditional(NamedTuple):
    """The components of the transition, in the eigenbasis of each."""

    p: Parameters
    log_joint: Tensor  # (B, K), log-weights up to a term without k
    z: Tensor  # (B, K, d), means of the components less m_k
    ratio: Tensor  # (1 or B, K, d or 1), covariances over sigma^2 - sigma_to^2


class ReverseTransition:
    """The law of `x_hat` at `sigma_to` given `x` `(B, d)` at `sigma`: a mixture for each sample.

    With `h = sigma^2 - sigma_to^2` and `R_k = (C_k + sigma_to^2 I)(C_k + sigma^2 I)^-1`, the
    weights are the responsibilities `r_k(x)`, the means `m_k + R_k (x - m_k)` and the covariances
    `h R_k`. Made by `GaussianMixture.reverse_transition`.
    """

    def __init__(self, mixture: GaussianMixture, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> None:
        """Check that the step goes down in sigma; raises `ValueError` if not."""
        wrong = torch.as_tensor(sigma, device=x.device) <= torch.as_tensor(
            sigma_to, device=x.device
        )
        if wrong.any():
            raise ValueError(f"sigma_to must be below sigma = {sigma}, got {sigma_to}")
        self._mixture, self._x = mixture, x
        self._sigma, self._sigma_to = sigma, sigma_to

    def sample(self, seed: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw one state per sample, `(B, d)`.

        Raises:
            ValueError: both a seed and a generator are given.
        """
        x = self._x
        source, _ = random_source(seed, generator, x.device)
        draw = torch.rand(len(x), generator=source, device=x.device, dtype=x.dtype)
        z = torch.randn(x.shape, generator=source, device=x.device, dtype=x.dtype)
        return self._map(self._sample, draw, z)

    def mean(self) -> Tensor:
        """Return the conditional mean `x + h score(x)`, `(B, d)`."""
        return self._map(self._mean)

    def cov(self) -> Tensor:
        """Return the conditional covariance `h I + h^2 Hessian log p_sigma(x)`, `(B, d, d)`."""
        return self._map(self._cov)

    def log_prob(self, y: Tensor) -> Tensor:
        """Return the log-density `(B,)` at `y` `(B, d)`, one point per sample.

        Raises:
            ValueError: `y` is not like `x`, or the law is singular: `sigma_to` is 0 and so is an
                eigenvalue of a covariance.
        """
        if y.shape != self._x.shape or y.dtype != self._x.dtype:
            raise ValueError(
                f"y must be {tuple(self._x.shape)} {self._x.dtype} like x, "
                f"got {tuple(y.shape)} {y.dtype}"
            )
        self._mixture._check(y, self._sigma_to, density=True)
        return self._map(self._log_prob, y)

    def _map(self, function: Callable[..., Tensor], *rest: Tensor) -> Tensor:
        width = self._mixture._width * self._mixture.dim
        return chunked(function, width, self._x, self._sigma, self._sigma_to, *rest)

    def _given(self, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> Conditional:
        p, log_joint, z, precision = self._mixture._components(x, sigma)
        ratio = (p.variances + squared(sigma_to, x)) * precision
        return Conditional(p, log_joint, ratio * z, ratio)

    def _mean(self, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> Tensor:
        p, log_joint, z, _ = self._given(x, sigma, sigma_to)
        r = log_joint.softmax(-1)
        return r @ p.means + combine(p, r[..., None], z)

    def _cov(self, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> Tensor:
        p, log_joint, z, ratio = self._given(x, sigma, sigma_to)
        r = log_joint.softmax(-1)
        within = weighted_cov(p, r, ratio * step(sigma, sigma_to, x))
        return scatter(r, p.means + from_eigen(p, z)) + within

    def _sample(
        self, x: Tensor, sigma: Sigma, sigma_to: Sigma, draw: Tensor, noise: Tensor
    ) -> Tensor:
        p, log_joint, z, ratio = self._given(x, sigma, sigma_to)
        chosen = pick(log_joint.softmax(-1), draw[:, None])[:, 0]
        std = (ratio * step(sigma, sigma_to, x)).sqrt().expand_as(z)
        row = torch.arange(len(x), device=x.device)
        state = z[row, chosen] + std[row, chosen] * noise
        return p.means[chosen] + rotate(p, state, chosen)

    def _log_prob(self, x: Tensor, sigma: Sigma, sigma_to: Sigma, y: Tensor) -> Tensor:
        p, log_joint, z, ratio = self._given(x, sigma, sigma_to)
        variance = (ratio * step(sigma, sigma_to, x)).expand_as(z)
        distance = ((eigen_coordinates(p, y) - z).square() / variance).sum(-1)
        log_norm = x.shape[1] * math.log(2 * math.pi) + variance.log().sum(-1)
        return (log_joint.log_softmax(-1) - 0.5 * (log_norm + distance)).logsumexp(-1)


def step(sigma: Sigma, sigma_to: Sigma, x: Tensor) -> float | Tensor:
    """Return `sigma^2 - sigma_to^2`, a float or a tensor `(1 or B, 1, 1)` like `x`."""
    return squared(sigma, x) - squared(sigma_to, x)
