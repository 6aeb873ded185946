"""Steps of the reverse SDE of ``η = 1`` in each direction of the data, and their exact moments.

A direction is one of `GaussianPreconditioned` coordinates, whose data have the standard deviation
``s``; `Preconditioned` has one for all. Data that are Gaussian with these are sampled exactly.

From ``x̂`` at ``σ`` to ``σ' < σ``, with ``h = σ² − σ'²``, the transition has exactly the moments

    E[x̂' | x̂] = x̂ + (h/σ²) (D − x̂),    Cov[x̂' | x̂] = (h σ'²/σ²) I + (h/σ²)² Cov[x₀ | x̂]:

given ``x₀`` it is Gaussian, with a mean linear in ``x₀``. A step with that mean and the covariance that
there is on average is the best Gaussian one with fixed coefficients.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..solvers.calibrated import Coefficients

Array = NDArray[np.float64]

_QUARTER = 0.25  # of the step's time, where the stage of sea_w is


def exact_moments(sigmas: Array, scales: Array, spread: Array) -> Coefficients:
    """Return steps with the exact mean and, in every direction, the mean variance.

    Source: Bao et al. 2022 (Analytic-DPM), theorem 1; by directions and with a mean that need not be
    exact Bao et al. 2022b.

    Args:
        sigmas: Noise levels, decreasing, ``(n + 1,)``.
        scales: Standard deviations of the data along directions, ``(d,)``, or ``(1,)``.
        spread: ``E (x₀ − D)²`` at the first ``n`` levels, ``(n, d)`` or ``(n, 1)``.
    """
    high, low = sigmas[:-1, None] ** 2, sigmas[1:, None] ** 2
    share, after = (high - low) / high, np.sqrt(low + scales**2)
    keep = after / np.sqrt(high + scales**2)
    # N = −sqrt(1/σ² + 1/s²) (D − …): the weight of D in x̂' is to be h/σ².
    newest = -share / (np.sqrt(1 / high + 1 / scales**2) * after)
    noise = np.sqrt(share * low + share**2 * spread) / after
    return _coefficients(sigmas, sigmas[:-1], keep, newest, noise)


def shifted(sigmas: Array, scales: Array, sigma_data: float) -> Coefficients:
    """Return ``sea_w_theta`` with a clock for each direction.

    Where all scales are ``σ_d`` it is that scheme. The slope is evaluated where a quarter of the step's
    time has passed on the clock of ``σ_d``, as the network is told one level for all directions.

    Args:
        sigmas: Noise levels, decreasing, ``(n + 1,)``.
        scales: Standard deviations of the data along directions, ``(d,)``, or ``(1,)``.
        sigma_data: ``σ_d``.
    """
    time = 1 / (sigmas**2 + sigma_data**2)
    told = np.sqrt(np.maximum(1 / (time[:-1] + _QUARTER * np.diff(time)) - sigma_data**2, 0.0))
    told = np.clip(told, sigmas[1:], sigmas[:-1])
    # In v = u/h the noise is a Brownian motion on the clock V = h⁻², and dv/dV = −(s h/σ) N.
    h, h_told = (np.sqrt(level[:, None] ** 2 + scales**2) for level in (sigmas, told))
    start, step = h[:-1] ** -2.0, np.diff(h**-2.0, axis=0)
    rate = -scales * h_told / told[:, None]
    before = np.concatenate([np.zeros_like(rate[:1]), rate[:-1]])
    noise = np.sqrt(step)
    stage = [h_told / h[:-1], h_told * (h_told**-2.0 - start) * before, 0.5 * h_told * noise]
    after = h[1:]
    return _coefficients(
        sigmas, told, after / h[:-1], after * step * rate, after * noise, np.stack(stage, axis=1)
    )


def _coefficients(
    sigmas: Array,
    told: Array,
    keep: Array,
    newest: Array,
    noise: Array,
    stage: Array | None = None,
) -> Coefficients:
    """Return coefficients of steps that take the newest slope only; single directions as numbers."""
    rows = [
        np.concatenate([np.zeros((i, newest.shape[1])), newest[i : i + 1]])
        for i in range(len(told))
    ]
    if keep.shape[1] == 1:
        keep, noise, rows = keep[:, 0], noise[:, 0], [row[:, 0] for row in rows]
        stage = None if stage is None else stage[..., 0]
    return Coefficients(sigmas, told, keep, tuple(rows), noise, stage)


def mean_spread(
    denoise: Callable[[Tensor, float], Tensor],
    samples: Tensor,
    sigmas: Array,
    basis: Tensor | None,
    seed: int,
) -> Array:
    """Estimate ``E (x₀ − D)²`` along directions, from samples that noise is added to.

    No derivative of the denoiser is taken: as ``D = E[x₀ | x̂]``, it is the mean of ``Cov[x₀ | x̂]``.

    Args:
        denoise: ``(x_hat, sigma) -> x0_hat`` of flattened states.
        samples: Samples ``x̂`` at the last level, ``(B, d)``, which stand for ``x₀``.
        sigmas: Noise levels.
        basis: Directions, in columns, or ``None`` for the mean over all.
        seed: Seed of the noise.

    Returns:
        The spread at all levels but the last, ``(n, d)`` or ``(n, 1)``.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for sigma in sigmas[:-1].tolist():
        noise = torch.randn(samples.shape, generator=generator, dtype=torch.float64)
        x_hat = samples + noise.to(samples.device) * float(np.sqrt(sigma**2 - sigmas[-1] ** 2))
        off = samples - denoise(x_hat, sigma)
        along = (off if basis is None else off @ basis).square().mean(0)
        rows.append((along.mean()[None] if basis is None else along).numpy(force=True))
    return np.stack(rows)
