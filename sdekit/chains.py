"""Langevin dynamics: samples of a static density, and NCSN's choice of noise levels and steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .brownian import NoiseSource
from .coordinates import Array
from .inputs import check_state, noise_source
from .solvers.fixed import integrate_fixed

Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Chain:
    """Langevin chains.

    Attributes:
        x: Where they ended, ``(B, *event)``.
        acceptance: Share of the proposals that each chain accepted, ``(B,)``; 1 without a correction.
        nfe: Evaluations of the score.
        trajectory: States after each step, ``(steps, B, *event)``, if asked for.
    """

    x: Tensor
    acceptance: Tensor
    nfe: int
    trajectory: Tensor | None


@torch.no_grad()
def langevin(
    score: Field,
    x: Tensor,
    *,
    step_size: float,
    steps: int,
    log_prob: Field | None = None,
    seed: int | Sequence[int] | None = None,
    noise: NoiseSource | None = None,
    trajectory: bool = False,
    progress: bool = False,
) -> Chain:
    """Run Langevin chains ``x ← x + ε ∇ log p + sqrt(2ε) z``; with ``log_prob`` Metropolis-adjusted.

    Unadjusted, the chains tend to a density that is wrong by ``O(ε)``: for ``N(0, v)`` the variance is
    ``v/(1 − ε/(2v))``. Adjusted (MALA), a proposal is accepted with the Metropolis–Hastings
    probability, and the density is exact whatever the step size.

    Source: Roberts & Tweedie 1996.

    Args:
        score: ``∇ log p``, ``(B, *event) -> (B, *event)``.
        x: Where the chains start, ``(B, *event)``.
        step_size: ``ε``.
        steps: Number of steps.
        log_prob: ``log p`` up to a constant, ``(B, *event) -> (B,)``.
        seed: Seed of the noise, or one seed per chain.
        noise: Source of noise, instead of a seed.
        trajectory: Whether to keep the states after each step.
        progress: Whether to show a progress bar after two seconds.

    Raises:
        ValueError: If ``step_size`` or ``steps`` is not positive.
        SolveError: If a state becomes non-finite.
    """
    check_state(x)
    if not step_size > 0 or steps < 1:
        raise ValueError(f"step_size = {step_size}, steps = {steps}; they must be positive")
    source = noise_source(seed, noise)
    accepted = torch.zeros(len(x), dtype=torch.long, device=x.device)
    slope = score(x)
    density = None if log_prob is None else log_prob(x)

    def step(n: int, x: Tensor) -> Tensor:
        nonlocal slope, density, accepted
        z = source.normal(x)
        new: Tensor = x + step_size * slope + (2 * step_size) ** 0.5 * z
        new_slope = score(new)
        if log_prob is None:
            slope, accepted = new_slope, accepted + 1
            return new
        new_density = log_prob(new)
        if new_density.shape != x.shape[:1]:
            raise ValueError(
                f"log_prob returned shape {tuple(new_density.shape)} for {len(x)} states; it must be "
                f"({len(x)},)"
            )
        back = x - new - step_size * new_slope
        assert density is not None
        log_ratio = (
            new_density
            - density
            + 0.5 * z.flatten(1).square().sum(1)
            - back.flatten(1).square().sum(1) / (4 * step_size)
        )
        # A uniform number from a normal one, of each sample's own stream.
        uniform = torch.special.ndtr(source.normal(x).flatten(1)[:, 0])
        taken = uniform.log() < log_ratio
        rows = taken.reshape(-1, *(1,) * (x.ndim - 1))
        slope, density = (
            torch.where(rows, new_slope, slope),
            torch.where(taken, new_density, density),
        )
        accepted = accepted + taken
        return torch.where(rows, new, x)

    counts = np.arange(steps + 1, dtype=np.float64)
    states = integrate_fixed(
        step, x, counts, "step", save=trajectory, progress=progress, repeatable=False
    )
    path = torch.stack(states) if trajectory else None
    return Chain(states[-1], accepted / steps, steps + 1, path)


def ncsn_levels(diameter: float, dim: int, sigma_min: float, overlap: float = 0.5) -> Array:
    """Choose NCSN's noise levels: techniques 1 and 2 of Song & Ermon (2020).

    The highest level is the largest distance of data points, so that chains get from any to any other.
    The ratio ``γ`` of levels lets the shells of radius ``sqrt(d) σ`` of neighbours overlap:
    ``Φ(sqrt(2d) (γ − 1) + 3γ) − Φ(sqrt(2d) (γ − 1) − 3γ) = overlap``.

    Args:
        diameter: Largest distance of data points.
        dim: Dimensions ``d``.
        sigma_min: Lowest level.
        overlap: Share of the overlap.

    Returns:
        The levels, falling.

    Raises:
        ValueError: If an argument is out of its range.
    """
    from scipy.optimize import brentq  # half a second to import
    from scipy.special import ndtr

    if not (0 < sigma_min < diameter and dim >= 1 and 0 < overlap < 1):
        raise ValueError(
            f"sigma_min = {sigma_min}, diameter = {diameter}, dim = {dim}, overlap = {overlap}; needed "
            "are 0 < sigma_min < diameter, dim >= 1 and 0 < overlap < 1"
        )

    def excess(gamma: float) -> float:
        shift = math.sqrt(2 * dim) * (gamma - 1)
        return float(ndtr(shift + 3 * gamma) - ndtr(shift - 3 * gamma)) - overlap

    high = 2.0
    while excess(high) > 0 and high < 1e6:
        high *= 2
    if excess(high) > 0:
        raise ValueError(
            f"in {dim} dimensions levels of any ratio overlap by more than {overlap} (shells are as "
            "thick as wide); choose levels with numpy.geomspace"
        )
    gamma = brentq(excess, 1.0, high)
    count = math.ceil(math.log(diameter / sigma_min) / math.log(gamma)) + 1
    return np.geomspace(diameter, sigma_min, count)


def ncsn_epsilon(levels: Array, steps: int) -> float:
    """Choose NCSN's step size ``ε``: technique 4 of Song & Ermon (2020).

    Where the data are a point, ``steps`` Langevin steps take the variance of one level to that of the
    next, as nearly as any ``ε`` does.

    Args:
        levels: Noise levels, falling, as of `ncsn_levels`.
        steps: Langevin steps per level.

    Returns:
        ``ε`` for `sdekit.AnnealedLangevin`.

    Raises:
        ValueError: If there are not two levels, or no step.
    """
    if len(levels) < 2 or steps < 1 or not np.all(np.diff(levels) < 0):
        raise ValueError("give at least two falling levels, and at least one step")
    # The variance v of x̂ in units of σ²: v ← (1 − e)² v + 2e with e = ε/σ_L²; the first is γ².
    gamma = levels[-2] / levels[-1]
    shares = np.geomspace(1e-9, 1.0, 20_001)[:-1]
    fixed = 2 / (2 - shares)
    gap = np.abs((1 - shares) ** (2 * steps) * (gamma**2 - fixed) + fixed - 1)
    return float(shares[gap.argmin()] * levels[-1] ** 2)
