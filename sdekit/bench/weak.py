"""How far the law of samples is from a mixture, and the mixture's denoiser for very many of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..distributions import GaussianMixture
from ..distributions.base import chunked

# Samples whose phases are computed at once: those of all would not fit into a cache.
_ROWS = 4096


@dataclass(frozen=True)
class WeakErrors:
    """Errors of the law of samples.

    Attributes:
        cf: RMS error of the characteristic function over fixed frequencies.
        w2: Sliced Wasserstein-2 distance, in units of the data's standard deviation.
        mean: Distance of the means, in units of the RMS length of the data.
        cov: Distance of the covariances, relative, in the Frobenius norm.
    """

    cf: float
    w2: float
    mean: float
    cov: float


class Judge:
    """Measures samples against the law of a mixture at a noise level, all exactly known.

    Frequencies are ``N(0, I)/s``, for ``s`` the standard deviation of the data, times ``2/√d`` where
    ``d > 4``; a projection of the mixture is a mixture in one dimension, whose quantiles are found by
    bisection.

    Args:
        law: The mixture.
        sigma: The noise level.
        frequencies: Number of frequencies.
        slices: Number of random directions.
        seed: Seed of frequencies and directions.
    """

    def __init__(
        self,
        law: GaussianMixture,
        sigma: float,
        *,
        frequencies: int = 256,
        slices: int = 16,
        seed: int = 0,
    ) -> None:
        source = torch.Generator().manual_seed(seed)
        scale = min(1.0, 2 / math.sqrt(law.dim)) / law.sigma_data
        draw = torch.randn(frequencies + slices, law.dim, generator=source, dtype=torch.float64)
        self.law, self.sigma = law, sigma
        self.frequencies = scale * draw[:frequencies]
        self.directions = draw[frequencies:] / draw[frequencies:].norm(dim=1, keepdim=True)
        self.exact = law.characteristic_function(self.frequencies, sigma)
        self.moments = law.moments(sigma)
        self.quantiles = lru_cache(self._quantiles)

    def __call__(self, x: Tensor) -> WeakErrors:
        """Measure samples, ``(n, d)``."""
        mean, cov = self.moments
        exact, values = x.double(), (x @ self.directions.to(x.dtype).T).T.sort().values.double()
        distance = float((values - self.quantiles(len(x))).square().mean().sqrt())
        return WeakErrors(
            cf=float((self._characteristic_function(x) - self.exact).abs().square().mean().sqrt()),
            w2=distance / self.law.sigma_data,
            mean=float((exact.mean(0) - mean).norm() / cov.trace().sqrt()),
            cov=float((exact.T.cov() - cov).norm() / cov.norm()),
        )

    def _characteristic_function(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(self.exact)
        for part in torch.split(x, _ROWS):
            phase = part @ self.frequencies.to(x.dtype).T
            total += torch.complex(phase.cos().sum(0).double(), phase.sin().sum(0).double())
        return total / len(x)

    def _quantiles(self, n: int) -> Tensor:
        """Return the exact quantiles along every direction that ``n`` sorted samples stand for."""
        levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        found = [self.law.marginal(d).quantile(levels, self.sigma) for d in self.directions]
        return torch.stack(found)


class BatchDenoiser:
    """The denoiser of a mixture at one noise level for all of very many samples.

    It is the mixture's own but for round-off, and several times as fast: samples run along the last
    axis, so that no inner loop is as short as the dimension or the number of components.

    Args:
        law: The mixture.
        dtype: Dtype of the samples.
    """

    def __init__(self, law: GaussianMixture, dtype: torch.dtype = torch.float32) -> None:
        p = law._parameters(torch.device("cpu"), torch.float64)
        basis = p.basis
        if basis is None:
            basis = torch.eye(law.dim, dtype=torch.float64).repeat(1, len(p.means))
        vectors = basis.reshape(law.dim, *p.means.shape)
        offsets = -torch.einsum("kd,dke->ke", p.means, vectors)
        self.sigma_data = law.sigma_data
        self.log_weights, self.variances = p.log_weights, p.variances.expand(p.means.shape)
        self.means, self.basis = p.means.to(dtype), basis.to(dtype)
        self.offsets = offsets.flatten()[:, None].to(dtype)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoiser, ``(n, d)``, at samples ``(n, d)`` and one noise level ``()``."""
        return chunked(self._denoise, self.basis.shape[1], x, sigma)

    def _denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        total = self.variances + sigma.double() ** 2
        constant = (self.log_weights - 0.5 * total.log().sum(1))[:, None].to(x.dtype)
        z = torch.addmm(self.offsets, self.basis.T, x.T).reshape(*self.means.shape, len(x))
        energy = (z * z * (0.5 / total)[..., None].to(x.dtype)).sum(1)
        r = (constant - energy).softmax(0)
        inner = z * (self.variances / total)[..., None].to(x.dtype) * r[:, None]
        return torch.addmm(self.means.T @ r, self.basis, inner.flatten(0, 1)).T.contiguous()
