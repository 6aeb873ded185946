"""Gaussian mixtures, single Gaussians and empirical laws: everything in closed form at any sigma.

Under noise a component `N(m, C)` becomes `N(m, C + sigma^2 I)`. Each covariance is factored once,
`C = Q diag(lambda) Q^T`, so `(C + sigma^2 I)^-1 = Q diag(1 / (lambda + sigma^2)) Q^T` costs matrix
products only. With responsibilities `r_k`, precisions `P_k` and `S_k = -P_k (x - m_k)`

    score   s = sum_k r_k S_k
    Hessian H = sum_k r_k (S_k - s)(S_k - s)^T - sum_k r_k P_k,

centred sums, because `sum_k r_k S_k S_k^T - s s^T` cancels.
"""

from __future__ import annotations

import math
from functools import partial
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
from sdekit.distributions.eigen import (
    Parameters,
    check_weights,
    combine,
    eigen_coordinates,
    factor,
    from_eigen,
    pick,
    rotate,
    scatter,
    weighted_cov,
)
from sdekit.distributions.scalar import flow_scalar, quantile_scalar
from sdekit.distributions.transition import ReverseTransition


class Components(NamedTuple):
    """The components seen from each state, in the eigenbasis of each."""

    p: Parameters
    log_joint: Tensor  # (B, K), log w_k N(x; m_k, C_k + sigma^2 I) up to a term without k
    z: Tensor  # (B, K, d), Q_k^T (x - m_k)
    precision: Tensor  # (1 or B, K, d or 1), 1 / (lambda + sigma^2)


class GaussianMixture(Distribution):
    """The mixture `sum_k w_k N(m_k, C_k)`; singular covariances are allowed at `sigma > 0`.

    Args:
        weights: `(K,)`, non-negative, summing to one.
        means: `(K, d)`.
        covs: `(K, d, d)` covariances, `(K, d)` variances of diagonal ones, `(K,)` or a number:
            variances of isotropic ones.

    Raises:
        TypeError, ValueError: an argument is not as above; the message says which component.
    """

    def __init__(self, weights: object, means: object, covs: object) -> None:
        """Check the parameters and factor the covariances."""
        self.means = parameter(means, "means")
        if self.means.ndim != 2 or 0 in self.means.shape:
            raise ValueError(f"means must be (K, d), got {tuple(self.means.shape)}")
        components, self.dim = self.means.shape
        self.weights = check_weights(parameter(weights, "weights"), components)
        self._variances, self._bases = factor(parameter(covs, "covs"), components, self.dim)
        self._width = components * self.dim
        self._singular = bool((self._variances == 0).any())
        self._cache: dict[tuple[torch.device, torch.dtype], Parameters] = {}

    @staticmethod
    def random(
        components: int, dim: int, *, seed: int, spread: float = 1.0, width: float = 0.3
    ) -> GaussianMixture:
        """Draw a mixture with full covariances, whose `sigma_data` is about `spread`.

        Args:
            components: the number of components.
            dim: the dimension.
            seed: the same seed gives the same mixture.
            spread: standard deviation of the means.
            width: geometric mean of the components' standard deviations, which spread over a
                factor of 9 along random axes.
        """
        source = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=source, dtype=torch.float64)

        weights = (0.5 * normal(components)).softmax(0)
        means = spread * normal(components, dim)
        bases = torch.linalg.qr(normal(components, dim, dim)).Q
        spectrum = torch.rand(components, 1, dim, generator=source, dtype=torch.float64)
        stds = width * 3.0 ** (2 * spectrum - 1)
        factors = bases * stds
        return GaussianMixture(weights, means, factors @ factors.mT)

    def moments(self, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the mean `(d,)` and the covariance `(d, d)` of `p_sigma`, float64."""
        check_sigma(sigma)
        p = self._parameters(torch.device("cpu"), torch.float64)
        mean = self.weights @ self.means
        offset = self.means - mean
        within = weighted_cov(p, self.weights[None], p.variances[None])[0]
        between = (self.weights[:, None] * offset).mT @ offset
        return mean, within + between + sigma**2 * torch.eye(self.dim, dtype=torch.float64)

    def characteristic_function(self, k: Tensor, sigma: float = 0.0) -> Tensor:
        """Return `E exp(i k.x)` under `p_sigma`, complex `(K,)`, for frequencies `k` `(K, d)`.

        `sum_j w_j exp(i k.m_j - k^T (C_j + sigma^2 I) k / 2)`.
        """
        self._check(k, sigma)
        return chunked(self._characteristic_function, self._width, k, sigma)

    def marginal(self, direction: object) -> GaussianMixture:
        """Return the law of `direction . x`, a mixture in dimension 1, for a `direction` `(d,)`.

        Of `x` at `sigma` it is the law at the same `sigma`, if the direction is of unit length.

        Raises:
            TypeError, ValueError: the direction is not as above.
        """
        direction = parameter(direction, "direction")
        if direction.shape != (self.dim,):
            raise ValueError(f"direction must be ({self.dim},), got {tuple(direction.shape)}")
        p = self._parameters(torch.device("cpu"), torch.float64)
        q = direction if p.basis is None else (direction @ p.basis).reshape(p.means.shape)
        variances = (q.square() * p.variances).sum(-1)
        return GaussianMixture(self.weights, (self.means @ direction)[:, None], variances)

    def quantile(self, levels: Tensor, sigma: float = 0.0) -> Tensor:
        """Return the quantiles of `p_sigma` at `levels` `(n,)` in (0, 1), float64, in 1-D only.

        Raises:
            TypeError, ValueError: the mixture is not one-dimensional, or an argument is out of range.
        """
        check_sigma(sigma)
        levels = parameter(levels, "levels")
        if self.dim != 1 or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(
                f"quantiles are known in dimension 1, at levels between 0 and 1; got dimension "
                f"{self.dim} and levels from {float(levels.min()):.3g} to {float(levels.max()):.3g}"
            )
        stds = (self._variances[:, 0] + sigma**2).sqrt()
        return quantile_scalar(levels, self.weights, self.means[:, 0], stds)

    def flow(self, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> Tensor:
        """Map `x` `(B, 1)` from `sigma` to `sigma_to` along the probability flow, in 1-D only.

        The flow `dx/dsigma = (x - D) / sigma` conserves the CDF. The map is solved in float64 and
        may be differentiated once.

        Raises:
            TypeError, ValueError: the mixture is not one-dimensional, `x` or a sigma is not as the
                class says, or a sigma is 0 and the data law has no density.
        """
        if self.dim != 1:
            raise ValueError(
                "the flow of a mixture is known in closed form in dimension 1 only, got "
                f"{self.dim}; Gaussian and Product have one in any dimension"
            )
        self._check(x, sigma, density=True)
        self._check(x, sigma_to, density=True)
        p = self._parameters(x.device, torch.float64)
        return flow_scalar(x, sigma, sigma_to, p.log_weights[None], p.means.mT, p.variances.mT)

    def reverse_transition(self, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> ReverseTransition:
        """Return the law of `x_hat` at `sigma_to` given `x` `(B, d)` at `sigma > sigma_to`.

        It is the exact transition of the reverse SDE with `eta = 1` (Anderson 1982): again a
        mixture, so ancestral sampling is exact at any step.

        Raises:
            TypeError, ValueError: `x` or a sigma is not as the class says, or
                `sigma_to >= sigma` for some sample.
        """
        self._check(x, sigma)
        self._check(x, sigma_to)
        return ReverseTransition(self, x, sigma, sigma_to)

    def _parameters(self, device: torch.device, dtype: torch.dtype) -> Parameters:
        """Return the parameters like the state; converted once per device and dtype."""
        key = (device, dtype)
        if key not in self._cache:
            # A tensor made in inference mode could never be used in autograd afterwards.
            with torch.inference_mode(False):
                basis = offsets = None
                if self._bases is not None:
                    projected = self.means[:, None] @ self._bases
                    basis = self._bases.permute(1, 0, 2).reshape(self.dim, -1).to(device, dtype)
                    offsets = -projected.flatten().to(device, dtype)
                self._cache[key] = Parameters(
                    self.weights.log().to(device, dtype),
                    self.means.to(device, dtype),
                    self._variances.to(device, dtype),
                    basis,
                    offsets,
                )
        return self._cache[key]

    def _components(self, x: Tensor, sigma: Sigma) -> Components:
        p = self._parameters(x.device, x.dtype)
        precision, log_variance = precisions(p.variances, noise_weights(sigma, x))
        z = eigen_coordinates(p, x)
        repeats = self.dim // p.variances.shape[1]
        log_det = repeats * log_variance.sum(-1)
        log_joint = p.log_weights - 0.5 * (log_det + (z.square() * precision).sum(-1))
        return Components(p, log_joint, z, precision)

    def _denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        p, log_joint, z, precision = self._components(x, sigma)
        r = log_joint.softmax(-1)
        return r @ p.means + combine(p, r[..., None] * (p.variances * precision), z)

    def _score(self, x: Tensor, sigma: Sigma) -> Tensor:
        p, log_joint, z, precision = self._components(x, sigma)
        return -combine(p, log_joint.softmax(-1)[..., None] * precision, z)

    def _denoise_and_score(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        p, log_joint, z, precision = self._components(x, sigma)
        r = log_joint.softmax(-1)
        weight = r[..., None] * precision
        return r @ p.means + combine(p, weight * p.variances, z), -combine(p, weight, z)

    def _log_prob(self, x: Tensor, sigma: Sigma) -> Tensor:
        log_joint = self._components(x, sigma).log_joint
        log_scale = noise_weights(sigma, x).log_scale
        if isinstance(log_scale, Tensor):
            log_scale = log_scale.flatten()
        return log_joint.logsumexp(-1) - 0.5 * self.dim * (math.log(2 * math.pi) + log_scale)

    def _posterior_cov(self, x: Tensor, sigma: Sigma) -> Tensor:
        p, log_joint, z, precision = self._components(x, sigma)
        r = log_joint.softmax(-1)
        denoised = p.means + from_eigen(p, p.variances * precision * z)
        kept = posterior_variances(p.variances, noise_weights(sigma, x))
        return scatter(r, denoised) + weighted_cov(p, r, kept)

    def _score_jacobian(self, x: Tensor, sigma: Sigma) -> Tensor:
        p, log_joint, z, precision = self._components(x, sigma)
        r = log_joint.softmax(-1)
        return scatter(r, from_eigen(p, precision * z)) - weighted_cov(p, r, precision)

    def _score_divergence(self, x: Tensor, sigma: Sigma) -> Tensor:
        p, log_joint, z, precision = self._components(x, sigma)
        r = log_joint.softmax(-1)
        scores = from_eigen(p, precision * z)
        scores = scores - (r[:, None] @ scores)
        trace = precision.sum(-1) * (self.dim // precision.shape[-1])
        return (r * (scores.square().sum(-1) - trace)).sum(-1)

    def _characteristic_function(self, k: Tensor, sigma: Sigma) -> Tensor:
        p = self._parameters(k.device, k.dtype)
        q = k[:, None] if p.basis is None else (k @ p.basis).reshape(len(k), *p.means.shape)
        exponent = -0.5 * (q.square() * (p.variances + squared(sigma, k))).sum(-1)
        return (p.log_weights.exp() * torch.polar(exponent.exp(), k @ p.means.mT)).sum(-1)

    def _sample(
        self,
        n: int,
        sigma: float,
        generator: torch.Generator | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Tensor:
        p = self._parameters(device, dtype)
        draw = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
        chosen = pick(self.weights.to(device), draw)
        z = torch.randn(n, self.dim, generator=generator, device=device, dtype=dtype)
        z = z * (p.variances[chosen] + sigma**2).sqrt()
        return p.means[chosen] + chunked(partial(rotate, p), self.dim**2, z, chosen)


class Gaussian(GaussianMixture):
    """The Gaussian law `N(mean, cov)`, whose flow and reverse SDEs are known exactly.

    Args:
        mean: `(d,)`.
        cov: `(d, d)`, or `(d,)` variances, or one variance; zero eigenvalues are allowed.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """

    def __init__(self, mean: object, cov: object) -> None:
        """Check the parameters and factor the covariance."""
        mean, cov = parameter(mean, "mean"), parameter(cov, "cov")
        if mean.ndim != 1:
            raise ValueError(f"mean must be (d,), got {tuple(mean.shape)}")
        d = len(mean)
        if cov.shape not in ((), (d,), (d, d)):
            raise ValueError(f"cov must be ({d}, {d}), ({d},) or a number, got {tuple(cov.shape)}")
        super().__init__([1.0], mean[None], cov[None])

    def flow(self, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> Tensor:
        """Map `x` `(B, d)` from `sigma` to `sigma_to` along the probability flow.

        Along each eigenvector of the covariance the deviation from the mean is multiplied by
        `sqrt((lambda + sigma_to^2) / (lambda + sigma^2))`.

        Raises:
            TypeError, ValueError: `x` or a sigma is not as the class says, or `sigma` is 0 and
                the covariance is singular.
        """
        self._check(x, sigma, density=True)
        self._check(x, sigma_to)
        p = self._parameters(x.device, x.dtype)
        ratio = (p.variances + squared(sigma_to, x)) / (p.variances + squared(sigma, x))
        return p.means + from_eigen(p, ratio.sqrt() * eigen_coordinates(p, x))[:, 0]

    def flow_log_det(self, sigma: Sigma, sigma_to: Sigma) -> Tensor:
        """Return `log |det|` of the flow's Jacobian, float64, `()` or `(B,)` like the sigmas.

        Raises:
            TypeError, ValueError: a sigma is negative or infinite, or 0 where the covariance is
                singular.
        """
        variances = []
        for value, name in ((sigma, "sigma"), (sigma_to, "sigma_to")):
            check_sigma(value, name=name)
            square = torch.as_tensor(value, dtype=torch.float64)[..., None].square()
            variances.append(self._variances[0].to(square.device).expand(self.dim) + square)
            if self._singular and (square == 0).any():
                raise ValueError(f"the covariance is singular: {name} must be positive, got 0")
        return 0.5 * (variances[1] / variances[0]).log().sum(-1)

    def reverse_law(
        self, x: Tensor, sigma: float, sigma_to: float, eta: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Return mean `(B, d)` and covariance `(d, d)` of the reverse SDE's `x_hat` at `sigma_to`.

        The SDE is `dx = (1 + eta^2)/2 score dr + eta dB_r`, `r = sigma^2 - r'^2` increasing,
        started from `x` `(B, d)`. Along an eigenvector, with `v = lambda + sigma^2`, the law is
        `N((v'/v)^((1 + eta^2)/2) x, v' (1 - (v'/v)^(eta^2)))`.

        Raises:
            TypeError, ValueError: `x`, a sigma or `eta` is out of range, or `sigma_to > sigma`.
        """
        self._check(x, sigma, density=True)
        check_sigma(sigma_to, name="sigma_to")
        check_sigma(eta, name="eta")
        if sigma_to > sigma:
            raise ValueError(f"sigma_to must not exceed sigma = {sigma}, got {sigma_to}")
        p = self._parameters(x.device, x.dtype)
        after = p.variances + sigma_to**2
        ratio = after / (p.variances + sigma**2)
        mean = from_eigen(p, ratio ** (0.5 * (1 + eta**2)) * eigen_coordinates(p, x))[:, 0]
        # xlogy is 0 at eta = 0 even where the ratio is 0.
        spread = -torch.special.xlogy(torch.full_like(ratio, eta**2), ratio).expm1()
        return p.means + mean, weighted_cov(p, torch.ones_like(after[:, :1]), after * spread)[0]


class Empirical(GaussianMixture):
    """The empirical law of `points` `(n, d)`: its denoiser is the ideal one of that data set.

    At `sigma = 0` the denoiser is the nearest point; there is no score and no density there.

    Raises:
        TypeError, ValueError: `points` is not `(n, d)` or not finite.
    """

    def __init__(self, points: object) -> None:
        """Check the points."""
        points = parameter(points, "points")
        if points.ndim != 2 or 0 in points.shape:
            raise ValueError(f"points must be (n, d), got {tuple(points.shape)}")
        super().__init__(torch.full((len(points),), 1 / len(points)), points, 0.0)
