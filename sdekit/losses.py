"""Training objectives."""

from __future__ import annotations

import torch
from torch import Tensor

from .denoisers import EDMDenoiser

__all__ = ["edm_loss", "sample_training_sigma"]


def edm_loss(
    denoiser: EDMDenoiser, x0: Tensor, *, sigma: Tensor, noise: Tensor, **conditioning: object
) -> Tensor:
    """Weighted denoising loss ``λ(σ) |D(x0 + σ ε, σ) − x0|²``: Karras et al. (2022), eq. 2, table 1.

    The weight ``λ(σ) = (σ² + σ_d²) / (σ σ_d)² = 1/c_out²`` gives every noise level the same weight
    on the raw network output: a network that returns zero on data of covariance ``σ_d² I`` has
    loss 1 at every ``σ``.

    Args:
        denoiser: The preconditioned network.
        x0: Clean samples, shape ``(B, *event)``.
        sigma: One noise level per sample, shape ``(B,)``.
        noise: Standard normal ``ε``, shape ``(B, *event)``.
        **conditioning: Passed to the denoiser.

    Returns:
        The loss of each sample, a mean over the event; shape ``(B,)``.

    Raises:
        ValueError: If ``sigma`` has not shape ``(B,)`` or ``noise`` not that of ``x0``.
    """
    if sigma.shape != x0.shape[:1] or noise.shape != x0.shape:
        raise ValueError(
            f"for x0 of shape {tuple(x0.shape)}, sigma must have shape ({len(x0)},) and noise that "
            f"of x0; got {tuple(sigma.shape)} and {tuple(noise.shape)}"
        )
    x_hat = x0 + sigma.view(len(x0), *(1,) * (x0.ndim - 1)) * noise
    error = denoiser(x_hat, sigma, **conditioning) - x0
    weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    loss: Tensor = weight * error.square().flatten(1).mean(1)
    return loss


def sample_training_sigma(
    batch: int, *, generator: torch.Generator, mean: float = -1.2, std: float = 1.2
) -> Tensor:
    """Draw noise levels to train on, ``ln σ ~ N(mean, std²)``: Karras et al. (2022), table 1.

    Args:
        batch: Number of noise levels.
        generator: Source of randomness; the result is on its device.
        mean: Mean of ``ln σ`` (the paper's ``P_mean``).
        std: Standard deviation of ``ln σ`` (the paper's ``P_std``).

    Returns:
        Noise levels, shape ``(batch,)``.
    """
    normal = torch.randn(batch, generator=generator, device=generator.device)
    return (mean + std * normal).exp()
