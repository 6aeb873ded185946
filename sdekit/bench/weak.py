"""How far the law of samples is from a mixture, and the mixture's denoiser for very many of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeGuard

import torch
from torch import Tensor

from ..distributions import GaussianMixture
from ..distributions.base import CHUNK_ELEMENTS, Distribution, chunked
from .laws import difference, fourth_moment, mean_distance, mean_kernel

# Samples whose phases are computed at once: those of all would not fit into a cache.
_ROWS = 4096

# What has no floor in closed form is measured on so many sets of exact samples.
_FLOOR_SETS, _FLOOR_SEED = 32, 5000


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


def law_metrics_known(law: Distribution | None) -> TypeGuard[GaussianMixture]:
    """Whether `Judge` knows a law: a mixture, whose lines have quantiles."""
    return isinstance(law, GaussianMixture)


class Judge:
    """Measures samples against the law of a mixture at a noise level, all exactly known.

    Frequencies are ``N(0, I)/s``, for ``s`` the standard deviation of the data, times ``2/√d`` where
    ``d > 4``; a projection of the mixture is a mixture in one dimension, whose quantiles are found by
    bisection. The kernel of ``mmd`` has the width ``s √d``: two samples are about ``s √(2d)`` apart, so
    that it is about ``1/e`` between them, neither 0 nor 1 in any dimension.

    Args:
        law: The mixture.
        sigma: The noise level.
        frequencies: Number of frequencies.
        slices: Number of random directions.
        seed: Seed of frequencies and directions.

    Raises:
        TypeError: If the law is not a mixture.
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
        if not law_metrics_known(law):
            raise TypeError(
                f"the law is a {type(law).__name__}; metrics of laws take a GaussianMixture, whose "
                "expectations and quantiles are known in closed form"
            )
        source = torch.Generator().manual_seed(seed)
        scale = min(1.0, 2 / math.sqrt(law.dim)) / law.sigma_data
        draw = torch.randn(frequencies + slices, law.dim, generator=source, dtype=torch.float64)
        self.law, self.sigma = law, sigma
        self.frequencies = scale * draw[:frequencies]
        self.directions = draw[frequencies:] / draw[frequencies:].norm(dim=1, keepdim=True)
        self.width = law.sigma_data * math.sqrt(law.dim)
        self.exact = law.characteristic_function(self.frequencies, sigma)
        self.moments = law.moments(sigma)
        self.marginals = [law.marginal(direction) for direction in self.directions]
        self.quantiles = lru_cache(self._quantiles)
        self._measures: dict[str, Callable[[_Samples], float]] = {
            "cf": self._cf,
            "mean": self._mean,
            "cov": self._cov,
            "w2": self._w2,
            "mmd": self._mmd,
            "energy": self._energy,
        }

    def __call__(self, x: Tensor) -> WeakErrors:
        """Measure samples, ``(n, d)``, by the four metrics that cost least."""
        return WeakErrors(**self.measure(x, ("cf", "w2", "mean", "cov")))

    def measure(self, x: Tensor, metrics: Collection[str]) -> dict[str, float]:
        """Measure samples by the metrics asked for.

        Args:
            x: Samples, ``(n, d)``, two or more. ``"mmd"`` takes time with the square of their number.
            metrics: Names of metrics of the kind ``"law"``.

        Returns:
            The values; not finite if a sample is not.

        Raises:
            ValueError: If there is no such metric, or the samples have another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.law.dim or len(x) < 2:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; it must be (n, {self.law.dim}), with n at least 2"
            )
        samples = _Samples(x, self.directions)
        return {name: self._measures[name](samples) for name in self._checked(metrics)}

    def floors(self, n: int, metrics: Collection[str]) -> dict[str, float]:
        """Return the RMS values that metrics have for ``n`` exact samples: nobody does better.

        They are known in closed form, but for ``"w2"``, which is measured.

        Raises:
            ValueError: If there is no such metric, or ``n`` is less than 2.
        """
        if n < 2:
            raise ValueError(f"n = {n}; the floor of a metric is that of 2 samples or more")
        return {name: self._floor(name, n) for name in self._checked(metrics)}

    def _checked(self, metrics: Collection[str]) -> Collection[str]:
        unknown = [name for name in metrics if name not in self._measures]
        if unknown:
            raise ValueError(
                f"unknown metric {unknown[0]!r} of a law; there are {', '.join(self._measures)}"
            )
        return metrics

    def _floor(self, name: str, n: int) -> float:
        _, cov = self.moments
        if name == "cf":
            return math.sqrt(float((1 - self.exact.abs().square()).mean()) / n)
        if name in ("mean", "energy"):
            return 1 / math.sqrt(n)
        if name == "cov":
            square, trace = float(cov.square().sum()), float(cov.trace())
            own = (fourth_moment(self.law, self.sigma) - square) / n
            return math.sqrt((own + (trace**2 + square) / (n * (n - 1))) / square)
        if name == "mmd":
            return math.sqrt((1 - self._kernel_of_pairs) / n)
        seeds = range(_FLOOR_SEED, _FLOOR_SEED + _FLOOR_SETS)
        sets = [_Samples(self.law.sample(n, self.sigma, seed=s), self.directions) for s in seeds]
        return math.sqrt(sum(self._w2(x) ** 2 for x in sets) / len(sets))

    def _cf(self, samples: _Samples) -> float:
        found = self._characteristic_function(samples.x)
        return float((found - self.exact).abs().square().mean().sqrt())

    def _mean(self, samples: _Samples) -> float:
        mean, cov = self.moments
        return float((samples.double.mean(0) - mean).norm() / cov.trace().sqrt())

    def _cov(self, samples: _Samples) -> float:
        _, cov = self.moments
        return float((samples.double.T.cov() - cov).norm() / cov.norm())

    def _w2(self, samples: _Samples) -> float:
        gap = samples.projected - self.quantiles(len(samples.x))
        return float(gap.square().mean().sqrt()) / self.law.sigma_data

    def _mmd(self, samples: _Samples) -> float:
        """``sqrt(E k(X, X') − 2 E k(X, Y) + E k(Y, Y'))``, ``X`` and ``X'`` any two of the samples."""
        cross = mean_kernel(self.law, samples.double, self.sigma, self.width).mean()
        square = _mean_kernel_among(samples.x, self.width) - 2 * cross + self._kernel_of_pairs
        return float(square.clamp(min=0).sqrt())

    def _energy(self, samples: _Samples) -> float:
        """``sqrt((2 E|X − Y| − E|X − X'| − E|Y − Y'|)/E|Y − Y'|)``, each a mean over directions."""
        lines, n = samples.projected, len(samples.x)
        cross = torch.stack(
            [mean_distance(m, a, self.sigma) for m, a in zip(self.marginals, lines, strict=True)]
        )
        # In Σ |a_i − a_j| the i-th smallest is the larger one i − 1 times, the smaller one n − i.
        ranks = 2 * torch.arange(1, n + 1, dtype=torch.float64) - (n + 1)
        among = (lines @ ranks).mean() * (2 / n**2)
        pairs = self._distance_of_pairs
        square = (2 * cross.mean() - among - pairs) / pairs
        return float(square.clamp(min=0).sqrt())

    @cached_property
    def _difference(self) -> GaussianMixture:
        return difference(self.law)

    @cached_property
    def _kernel_of_pairs(self) -> float:
        """``E k(Y, Y')``."""
        origin = torch.zeros(1, self.law.dim, dtype=torch.float64)
        return float(mean_kernel(self._difference, origin, math.sqrt(2) * self.sigma, self.width))

    @cached_property
    def _distance_of_pairs(self) -> float:
        """``E|Y − Y'|`` along a direction, in the mean over directions."""
        origin, sigma = torch.zeros(1, dtype=torch.float64), math.sqrt(2) * self.sigma
        marginals = [self._difference.marginal(direction) for direction in self.directions]
        return float(torch.cat([mean_distance(m, origin, sigma) for m in marginals]).mean())

    def _characteristic_function(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(self.exact)
        for part in torch.split(x, _ROWS):
            phase = part @ self.frequencies.to(x.dtype).T
            total += torch.complex(phase.cos().sum(0).double(), phase.sin().sum(0).double())
        return total / len(x)

    def _quantiles(self, n: int) -> Tensor:
        """Return the exact quantiles along every direction that ``n`` sorted samples stand for."""
        levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return torch.stack([marginal.quantile(levels, self.sigma) for marginal in self.marginals])


class _Samples:
    """Samples, and what several metrics make of them."""

    def __init__(self, x: Tensor, directions: Tensor) -> None:
        self.x, self._directions = x, directions

    @cached_property
    def double(self) -> Tensor:
        """The samples in float64."""
        return self.x.double()

    @cached_property
    def projected(self) -> Tensor:
        """Their sorted projections, ``(slices, n)``, float64."""
        return (self.x @ self._directions.to(self.x.dtype).T).T.sort().values.double()


def _mean_kernel_among(x: Tensor, width: float) -> float:
    """Return the mean of ``exp(−‖a − b‖²/(2 h²))`` over all pairs of samples, ``n²`` of them.

    In float32, whose round-off is far below what samples tell, and each pair of two is taken once.
    """
    z, total = (x / width).float(), 0.0
    half, rows = 0.5 * z.square().sum(1), max(1, CHUNK_ELEMENTS // len(z))
    for start in range(0, len(z), rows):
        block = torch.addmm(-half[start:], z[start : start + rows], z[start:].T)
        block = block.sub_(half[start : start + rows, None]).clamp_(max=0).exp_()
        own = block[:, :rows].sum(dtype=torch.float64)
        total += float(2 * block.sum(dtype=torch.float64) - own)
    return total / len(z) ** 2


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
