"""Rotated products of one-dimensional mixtures: an exact nonlinear flow in any dimension.

Isotropic noise keeps independent coordinates independent and commutes with rotations, so every
quantity is computed coordinate by coordinate and rotated back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit.distributions.base import (
    Distribution,
    Sigma,
    check_sigma,
    chunked,
    noise_weights,
    parameter,
    posterior_variances,
    precisions,
    squared,
)
from sdekit.distributions.eigen import pick
from sdekit.distributions.mixture import GaussianMixture
from sdekit.distributions.scalar import flow_scalar


class Marginals(NamedTuple):
    """The marginals in one dtype on one device, padded to `(d, K)` with zero weights."""

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    rotation: Tensor  # (d, d)


class Coordinates(NamedTuple):
    """The independent coordinates, each with its components, seen from each state."""

    m: Marginals
    log_joint: Tensor  # (B, d, K), log of weight times density up to a term without k
    z: Tensor  # (B, d, K), y - mean
    precision: Tensor  # (1 or B, d, K), 1 / (variance + sigma^2)


class Product(Distribution):
    """The law of `x0 = rotation @ y` with independent `y_i ~ marginals[i]`.

    Args:
        marginals: one-dimensional mixtures, one per coordinate.
        rotation: orthogonal `(d, d)`; None is the identity.

    Raises:
        TypeError, ValueError: a marginal is not one-dimensional, or the rotation not orthogonal.
    """

    def __init__(self, marginals: Sequence[GaussianMixture], rotation: object = None) -> None:
        """Check and stack the marginals."""
        marginals = tuple(marginals)
        if not marginals:
            raise ValueError("marginals must hold at least one mixture")
        for i, marginal in enumerate(marginals):
            if not isinstance(marginal, GaussianMixture):
                raise TypeError(
                    f"marginals must be GaussianMixtures; number {i} is {type(marginal).__name__}"
                )
            if marginal.dim != 1:
                raise ValueError(
                    f"marginals must be one-dimensional; number {i} has dimension {marginal.dim}"
                )
        self.dim = len(marginals)
        self.marginals = marginals
        self.rotation = check_rotation(rotation, self.dim)
        self._weights = pad([marginal.weights for marginal in marginals], 0.0)
        self._means = pad([marginal.means[:, 0] for marginal in marginals], 0.0)
        self._variances = pad([marginal._variances[:, 0] for marginal in marginals], 1.0)
        self._width = self._weights.numel()
        self._singular = any(marginal._singular for marginal in marginals)
        self._cache: dict[tuple[torch.device, torch.dtype], Marginals] = {}

    @staticmethod
    def random(
        dim: int, components: int, *, seed: int, spread: float = 1.0, width: float = 0.3
    ) -> Product:
        """Draw a product with a random rotation, whose `sigma_data` is about `spread`.

        Args:
            dim: the number of coordinates.
            components: the number of components of each marginal.
            seed: the same seed gives the same law.
            spread: standard deviation of the means.
            width: geometric mean of the components' standard deviations.
        """
        seeds = torch.Generator().manual_seed(seed)
        marginals = [
            GaussianMixture.random(
                components,
                1,
                seed=int(torch.randint(2**31, (), generator=seeds)),
                spread=spread,
                width=width,
            )
            for _ in range(dim)
        ]
        matrix = torch.randn(dim, dim, generator=seeds, dtype=torch.float64)
        return Product(marginals, torch.linalg.qr(matrix).Q)

    def moments(self, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the mean `(d,)` and the covariance `(d, d)` of `p_sigma`, float64."""
        check_sigma(sigma)
        mean = (self._weights * self._means).sum(-1)
        spread = (self._means - mean[:, None]).square()
        variance = (self._weights * (self._variances + spread)).sum(-1) + sigma**2
        return self.rotation @ mean, (self.rotation * variance) @ self.rotation.mT

    def characteristic_function(self, k: Tensor, sigma: float = 0.0) -> Tensor:
        """Return `E exp(i k.x)` under `p_sigma`, complex `(K,)`, for frequencies `k` `(K, d)`.

        The product of the marginals' characteristic functions at `rotation^T k`.
        """
        self._check(k, sigma)
        return chunked(self._characteristic_function, self._width, k, sigma)

    def flow(self, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> Tensor:
        """Map `x` `(B, d)` from `sigma` to `sigma_to` along the probability flow.

        Each coordinate conserves its CDF. The map is solved in float64 and may be differentiated
        once.

        Raises:
            TypeError, ValueError: `x` or a sigma is not as the class says, or a sigma is 0 and the
                data law has no density.
        """
        self._check(x, sigma, density=True)
        self._check(x, sigma_to, density=True)
        m = self._parameters(x.device, torch.float64)
        y = x.double() @ m.rotation
        y = flow_scalar(y, sigma, sigma_to, m.log_weights, m.means, m.variances)
        return (y @ m.rotation.mT).to(x.dtype)

    def _parameters(self, device: torch.device, dtype: torch.dtype) -> Marginals:
        """Return the parameters like the state; converted once per device and dtype."""
        key = (device, dtype)
        if key not in self._cache:
            with torch.inference_mode(False):
                self._cache[key] = Marginals(
                    self._weights.log().to(device, dtype),
                    self._means.to(device, dtype),
                    self._variances.to(device, dtype),
                    self.rotation.to(device, dtype),
                )
        return self._cache[key]

    def _coordinates(self, x: Tensor, sigma: Sigma) -> Coordinates:
        m = self._parameters(x.device, x.dtype)
        precision, log_variance = precisions(m.variances, noise_weights(sigma, x))
        z = (x @ m.rotation)[..., None] - m.means
        log_joint = m.log_weights - 0.5 * (log_variance + z.square() * precision)
        return Coordinates(m, log_joint, z, precision)

    def _denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        m, log_joint, z, precision = self._coordinates(x, sigma)
        denoised = m.means + m.variances * precision * z
        return (log_joint.softmax(-1) * denoised).sum(-1) @ m.rotation.mT

    def _score(self, x: Tensor, sigma: Sigma) -> Tensor:
        m, log_joint, z, precision = self._coordinates(x, sigma)
        return -(log_joint.softmax(-1) * precision * z).sum(-1) @ m.rotation.mT

    def _denoise_and_score(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        m, log_joint, z, precision = self._coordinates(x, sigma)
        r, slope = log_joint.softmax(-1), precision * z
        denoised = (r * (m.means + m.variances * slope)).sum(-1)
        return denoised @ m.rotation.mT, -(r * slope).sum(-1) @ m.rotation.mT

    def _log_prob(self, x: Tensor, sigma: Sigma) -> Tensor:
        log_joint = self._coordinates(x, sigma).log_joint
        log_scale = noise_weights(sigma, x).log_scale
        if isinstance(log_scale, Tensor):
            log_scale = log_scale.flatten()
        log_norm = 0.5 * self.dim * (math.log(2 * math.pi) + log_scale)
        return log_joint.logsumexp(-1).sum(-1) - log_norm

    def _posterior_cov(self, x: Tensor, sigma: Sigma) -> Tensor:
        m, log_joint, z, precision = self._coordinates(x, sigma)
        r = log_joint.softmax(-1)
        denoised = m.means + m.variances * precision * z
        kept = posterior_variances(m.variances, noise_weights(sigma, x))
        variance = (r * (kept + centred(r, denoised).square())).sum(-1)
        return (m.rotation * variance[:, None]) @ m.rotation.mT

    def _curvatures(self, x: Tensor, sigma: Sigma) -> Tensor:
        """Return the second derivatives of the marginals' log-densities, `(B, d)`."""
        _, log_joint, z, precision = self._coordinates(x, sigma)
        r = log_joint.softmax(-1)
        return (r * (centred(r, precision * z).square() - precision)).sum(-1)

    def _score_jacobian(self, x: Tensor, sigma: Sigma) -> Tensor:
        rotation = self._parameters(x.device, x.dtype).rotation
        return (rotation * self._curvatures(x, sigma)[:, None]) @ rotation.mT

    def _score_divergence(self, x: Tensor, sigma: Sigma) -> Tensor:
        return self._curvatures(x, sigma).sum(-1)

    def _characteristic_function(self, k: Tensor, sigma: Sigma) -> Tensor:
        m = self._parameters(k.device, k.dtype)
        q = (k @ m.rotation)[..., None]
        size = (-0.5 * q.square() * (m.variances + squared(sigma, k))).exp()
        return (m.log_weights.exp() * torch.polar(size, q * m.means)).sum(-1).prod(-1)

    def _sample(
        self,
        n: int,
        sigma: float,
        generator: torch.Generator | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Tensor:
        m = self._parameters(device, dtype)
        shape = (self.dim, n)
        draw = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
        chosen = pick(self._weights.to(device), draw)
        z = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        std = (m.variances + sigma**2).sqrt()
        return (m.means.gather(1, chosen) + std.gather(1, chosen) * z).mT @ m.rotation.mT


def centred(r: Tensor, values: Tensor) -> Tensor:
    """Return `values` less their mean under the weights `r`, both `(B, d, K)`."""
    return values - (r * values).sum(-1, keepdim=True)


def pad(rows: Sequence[Tensor], value: float) -> Tensor:
    """Stack vectors of different lengths as `(d, K)`, filling up with `value`."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def check_rotation(rotation: object, dim: int) -> Tensor:
    """Return the rotation `(d, d)`, or raise `ValueError` saying how far it is from one."""
    if rotation is None:
        return torch.eye(dim, dtype=torch.float64)
    matrix = parameter(rotation, "rotation")
    if matrix.shape != (dim, dim):
        raise ValueError(
            f"rotation must be ({dim}, {dim}), one row per marginal; got {tuple(matrix.shape)}"
        )
    error = float((matrix @ matrix.mT - torch.eye(dim, dtype=matrix.dtype)).abs().max())
    if error > 1e-8:
        raise ValueError(f"rotation must be orthogonal; R R^T differs from I by {error:.3g}")
    return matrix
