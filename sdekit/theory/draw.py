"""What claims are tried on: random laws, points, times and levels, and the known processes."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from ..affine import AffineSDE
from ..distributions import Gaussian, GaussianMixture
from ..processes import EDM, VE, VP, CosineVP, DiscreteVP, RectifiedFlow, SubVP
from ..sde import ForwardSDE

# Levels at which densities of laws of size one are neither singular nor flat.
_LOW, _HIGH = 0.05, 10.0


class Draw:
    """A source of random things: float64, on the host, all from one seed.

    Args:
        seed: The same seed gives the same things in the same order.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def integer(self, below: int) -> int:
        """Draw a whole number, ``0 <= i < below``."""
        return int(torch.randint(below, (), generator=self.generator))

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw numbers uniformly from an interval."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw numbers whose logarithms are uniform."""
        return torch.exp(self.uniform(math.log(low), math.log(high), *shape))

    def mixture(self, dim: int = 2, components: int = 3) -> GaussianMixture:
        """Draw a mixture with full covariances and a standard deviation of about 1."""
        return GaussianMixture.random(components, dim, seed=self.integer(2**31), width=0.4)

    def gaussian(self, dim: int = 2) -> Gaussian:
        """Draw a Gaussian with a full covariance."""
        one = self.mixture(dim, 1)
        mean, cov = one.moments()
        return Gaussian(mean, cov)

    def levels(self, *shape: int) -> Tensor:
        """Draw noise levels, log-uniform between 0.05 and 10."""
        return self.log_uniform(_LOW, _HIGH, *shape)

    def times(self, process: AffineSDE, *shape: int) -> Tensor:
        """Draw times of a process, at the levels of `span`."""
        return process.time(self.log_uniform(*span(process), *shape))

    def ordered_times(self, process: AffineSDE, n: int) -> tuple[Tensor, Tensor]:
        """Draw pairs of times ``r < t``, ``(n,)`` each, apart by a fifth of the span at least."""
        low, high = span(process)
        place = torch.stack([self.uniform(0.0, 0.4, n), self.uniform(0.6, 1.0, n)])
        r, t = process.time(low * (high / low) ** place)
        return r, t

    def inner_times(self, sde: ForwardSDE, *shape: int) -> Tensor:
        """Draw times of an SDE that are not close to its ends."""
        return self.uniform(sde.t_min + 0.1 * (sde.T - sde.t_min), 0.9 * sde.T, *shape)

    def states(self, process: AffineSDE, data: GaussianMixture, t: Tensor) -> Tensor:
        """Draw one state ``x(t)`` for each time, ``(B,) -> (B, d)``."""
        seed = self.integer(2**31)
        x0 = data.sample(len(t), seed=seed, dtype=torch.float64)
        return process.perturb(x0, t, noise=self.normal(*x0.shape))


def span(process: AffineSDE) -> tuple[float, float]:
    """Return noise levels from 0.05 to 10, or near them, that a process reaches."""
    bottom, top = process.sigma_min * 1.01, process.sigma_max * 0.99
    return max(bottom, min(_LOW, top / 10)), min(top, max(_HIGH, bottom * 10))


@cache
def processes() -> dict[str, AffineSDE]:
    """Return the affine processes on which claims are tried, one of each kind."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return {
        "VP": VP(),
        "sub-VP": SubVP(),
        "VE": VE(),
        "EDM": EDM(),
        "cosine": CosineVP(),
        "rectified flow": RectifiedFlow(),
        "discrete VP": DiscreteVP(torch.cumprod(1 - betas, 0)),
        "from s and σ": AffineSDE(scale=lambda t: 1 / (1 + t), sigma=lambda t: 3 * t + t**2, T=2.0),
        "from f and g": AffineSDE(
            f=lambda t: -torch.cos(t) / 2, g=lambda t: 1 + t, T=2.0, t_min=1e-2
        ),
    }


class DoubleWell(ForwardSDE):
    """Two wells with isotropic noise that grows with the distance: scalar, state-dependent."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """``x − x³ − t x``."""
        return x - x**3 - t.reshape(-1, *(1,) * (x.ndim - 1)) * x

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """``sqrt(1 + |x|²/2)``, one number per sample."""
        return torch.sqrt(1 + 0.5 * x.square().sum(1))


class Geometric(ForwardSDE):
    """Geometric motion with drift to one, each coordinate by itself: diagonal noise."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """``(1 − x)(1 + t)``."""
        return (1 - x) * (1 + t.reshape(-1, 1))

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """``0.5 + 0.3 sin x``."""
        return 0.5 + 0.3 * torch.sin(x)


class Whirl(ForwardSDE):
    """A whirl with noise along and across it, and one source more than dimensions: matrix noise."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """``−x/2`` plus a turn by the neighbour."""
        return -0.5 * x + x.roll(1, dims=1) * torch.cos(t).reshape(-1, 1)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """``(B, d, d + 1)``."""
        eye = torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), -1, -1)
        outer = 0.2 * torch.sin(x)[:, :, None] * torch.cos(x)[:, None, :]
        return torch.cat([eye + outer, 0.3 * x[:, :, None]], 2)


@cache
def sdes() -> dict[str, ForwardSDE]:
    """Return the general SDEs on which claims are tried: scalar, diagonal and matrix noise."""
    return {"double well": DoubleWell(), "geometric": Geometric(), "whirl": Whirl()}
