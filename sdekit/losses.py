"""Training objectives, each with the exact denoiser as its minimiser at every noise level.

What networks are trained to predict is affine in ``x̂ = x0 + σ ε`` and ``x0``. The squared error of such
a prediction is that of the denoiser it stands for, times a weight, ``λ(σ) |D(x̂, σ) − x0|²``::

    x0                              1                   `x0_loss`
    ε = (x̂ − x0)/σ                  1/σ²                `epsilon_loss`
    v = (ε − σ x0)/sqrt(1 + σ²)     1 + 1/σ²            `v_loss`
    score −ε/σ                      1/σ⁴                `score_loss`
    F of EDM                        1/σ² + 1/σ_d²       `edm_loss`
    velocity ε − x0                 (1 + 1/σ)²          `flow_matching_loss`

The score ``s = (D − x̂)/σ²`` can be learned without ``x0``, too. In expectation explicit, implicit and
sliced score matching differ from `score_loss` by what does not depend on ``D``, and so have its
gradients.

All take clean samples ``x0``, ``(B, *event)``, a noise level for each, ``(B,)``, and the noise ``ε``;
they return one loss per sample, ``(B,)``, a mean over the event. A user's own weights multiply it.
For times ``t`` of a process the levels are ``process.sigma(t)``, and a network that predicts something
else becomes a denoiser by a wrapper (`sdekit.NetworkDenoiser`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .denoisers import EDMDenoiser
from .distributions import Distribution
from .sde import check_output, expand

__all__ = [
    "edm_loss",
    "epsilon_loss",
    "explicit_score_loss",
    "flow_matching_loss",
    "implicit_score_loss",
    "sample_training_sigma",
    "score_loss",
    "sliced_score_loss",
    "v_loss",
    "x0_loss",
]

Denoiser: TypeAlias = Callable[..., Tensor]
"""``(x_hat, sigma, **conditioning) -> x0_hat``."""


def x0_loss(
    denoiser: Denoiser, x0: Tensor, *, sigma: Tensor, noise: Tensor, **conditioning: object
) -> Tensor:
    """Squared error of the data, ``|D(x0 + σ ε, σ) − x0|²``.

    Source: Salimans & Ho (2022), section 4, where its weight beside the others is discussed.

    Args:
        denoiser: Callable ``(x_hat, sigma, **conditioning) -> x0_hat``.
        x0: Clean samples, shape ``(B, *event)``.
        sigma: One noise level per sample, shape ``(B,)``.
        noise: Standard normal ``ε``, shape ``(B, *event)``.
        **conditioning: Passed to the denoiser.

    Returns:
        The loss of each sample, a mean over the event; shape ``(B,)``.

    Raises:
        TypeError: If ``x0``, ``sigma`` and ``noise`` are not all float32 or all float64.
        ValueError: If ``sigma`` has not shape ``(B,)``, or ``noise`` or the result not that of ``x0``.
    """
    return _error(denoiser, x0, sigma, noise, conditioning)


def epsilon_loss(
    denoiser: Denoiser, x0: Tensor, *, sigma: Tensor, noise: Tensor, **conditioning: object
) -> Tensor:
    """Squared error of the noise, ``|ε̂ − ε|²`` with ``ε̂ = (x̂ − D)/σ``: weight ``1/σ²``.

    Source: Ho et al. (2020), eq. 14. It is `score_loss` with the weight ``σ²`` of Song & Ermon (2019),
    eq. 5 and 6. Arguments, result and errors are those of `x0_loss`.
    """
    return _error(denoiser, x0, sigma, noise, conditioning) / sigma**2


def v_loss(
    denoiser: Denoiser, x0: Tensor, *, sigma: Tensor, noise: Tensor, **conditioning: object
) -> Tensor:
    """Squared error of ``v = (ε − σ x0)/sqrt(1 + σ²)``: weight ``1 + 1/σ²``.

    With ``α = 1/sqrt(1 + σ²)`` it is ``α ε − α σ x0``, and the loss is `edm_loss` with ``σ_d = 1``.

    Source: Salimans & Ho (2022), appendix D. Arguments, result and errors are those of `x0_loss`.
    """
    return (1 + 1 / sigma**2) * _error(denoiser, x0, sigma, noise, conditioning)


def score_loss(
    denoiser: Denoiser, x0: Tensor, *, sigma: Tensor, noise: Tensor, **conditioning: object
) -> Tensor:
    """Denoising score matching, ``|s + ε/σ|²`` with ``s = (D − x̂)/σ²``: weight ``1/σ⁴``.

    Source: Vincent (2011), without its factor ½; Song et al. (2021), eq. 7, without its weight.
    Arguments, result and errors are those of `x0_loss`.
    """
    return _error(denoiser, x0, sigma, noise, conditioning) / sigma**4


def edm_loss(
    denoiser: EDMDenoiser, x0: Tensor, *, sigma: Tensor, noise: Tensor, **conditioning: object
) -> Tensor:
    """Squared error of the raw network ``F``: weight ``(σ² + σ_d²)/(σ σ_d)² = 1/c_out²``.

    It gives every noise level the same weight on ``F``: a network that returns zero on data of
    covariance ``σ_d² I`` has loss 1 at every ``σ``. Noise levels are those of `sample_training_sigma`.

    Source: Karras et al. (2022), eq. 2 and table 1. The denoiser is the preconditioned network; other
    arguments, result and errors are those of `x0_loss`.
    """
    weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    return weight * _error(denoiser, x0, sigma, noise, conditioning)


def flow_matching_loss(
    denoiser: Denoiser, x0: Tensor, *, sigma: Tensor, noise: Tensor, **conditioning: object
) -> Tensor:
    """Squared error of the velocity ``ε − x0`` of straight paths: weight ``(1 + 1/σ)²``.

    The velocity is ``ε̂ − D``. At time ``t`` of `sdekit.RectifiedFlow` the level is ``σ = t/(1 − t)``.

    Source: Lipman et al. (2023), eq. 23, and Liu et al. (2023), eq. 1, with noise at ``t = 1``.
    Arguments, result and errors are those of `x0_loss`.
    """
    return (1 + 1 / sigma) ** 2 * _error(denoiser, x0, sigma, noise, conditioning)


def explicit_score_loss(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    sigma: Tensor,
    noise: Tensor,
    law: Distribution,
    **conditioning: object,
) -> Tensor:
    """Squared error of the score itself, ``|s − ∇ log p_σ(x̂)|²``, for data whose law is known.

    Source: Hyvärinen (2005), eq. 2, without its factor ½. ``law`` is that of the data, on states
    ``(B, d)``; other arguments, result and errors are those of `x0_loss`.
    """
    x_hat = _noised(x0, sigma, noise)
    denoised = check_output(denoiser(x_hat, sigma, **conditioning), x0, "denoiser")
    error = (denoised - x_hat) / expand(sigma, x0) ** 2 - law.score(x_hat, sigma)
    return error.square().flatten(1).mean(1)


def implicit_score_loss(
    denoiser: Denoiser, x0: Tensor, *, sigma: Tensor, noise: Tensor, **conditioning: object
) -> Tensor:
    """Implicit score matching, ``|s|² + 2 ∇·s``: no clean sample but in ``x̂``.

    It takes a backward pass for each number of the event; the denoiser must treat samples separately.

    Source: Hyvärinen (2005), theorem 1, without its factor ½. Arguments, result and errors are those of
    `x0_loss`.
    """
    shape = x0.shape[1:]
    unit = torch.eye(shape.numel(), dtype=x0.dtype, device=x0.device)
    basis = (row.view(shape).expand_as(x0) for row in unit)
    return _implicit(denoiser, x0, sigma, noise, basis, conditioning)


def sliced_score_loss(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    sigma: Tensor,
    noise: Tensor,
    probes: Tensor,
    **conditioning: object,
) -> Tensor:
    """Sliced score matching, ``|s|² + 2 vᵀ (∂s/∂x̂) v``: one backward pass.

    ``−2 d/σ²`` of it is known, and is not estimated.

    Source: Song et al. (2019), "SSM-VR", without its factor ½. ``probes`` are ``v``, shape
    ``(B, *event)``, random with ``E v vᵀ = I``: signs or normal numbers. Other arguments, result and
    errors are those of `x0_loss`; the probes are checked as the noise is.
    """
    _check_shape("probes", probes, x0)
    return _implicit(denoiser, x0, sigma, noise, [probes], conditioning)


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


def _check_shape(name: str, value: Tensor, x0: Tensor) -> None:
    if value.shape != x0.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, x0 has {tuple(x0.shape)}; they must agree"
        )


def _noised(x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return ``x̂ = x0 + σ ε``, in the dtype of the three."""
    for name, value in (("x0", x0), ("sigma", sigma), ("noise", noise)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; it must be a tensor")
    if x0.dtype not in (torch.float32, torch.float64) or not x0.dtype == sigma.dtype == noise.dtype:
        raise TypeError(
            f"x0, sigma and noise have dtypes {x0.dtype}, {sigma.dtype} and {noise.dtype}; they must "
            "be all float32 or all float64 (the denoiser may work in another dtype inside)"
        )
    if x0.ndim < 2:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; it must be a batch (B, *event)")
    if sigma.shape != x0.shape[:1]:
        raise ValueError(
            f"sigma has shape {tuple(sigma.shape)}; for x0 of shape {tuple(x0.shape)} it must be "
            f"({len(x0)},), one noise level per sample"
        )
    _check_shape("noise", noise, x0)
    return x0 + expand(sigma, x0) * noise


def _error(
    denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, conditioning: dict[str, Any]
) -> Tensor:
    """Return ``|D(x0 + σ ε, σ) − x0|²``, a mean over the event; shape ``(B,)``."""
    denoised = denoiser(_noised(x0, sigma, noise), sigma, **conditioning)
    return (check_output(denoised, x0, "denoiser") - x0).square().flatten(1).mean(1)


def _implicit(
    denoiser: Denoiser,
    x0: Tensor,
    sigma: Tensor,
    noise: Tensor,
    probes: Iterable[Tensor],
    conditioning: dict[str, Any],
) -> Tensor:
    """Return ``|s|² + 2 ∇·s``, a mean over the event; the trace of ``∂D/∂x̂`` is ``Σ vᵀ (∂D/∂x̂) v``."""
    learning = torch.is_grad_enabled()  # else derivatives in x̂ only, and no graph of them
    with torch.enable_grad():
        x_hat = _noised(x0, sigma, noise).requires_grad_()
        denoised = check_output(denoiser(x_hat, sigma, **conditioning), x0, "denoiser")
        products = (
            torch.autograd.grad(denoised, x_hat, v, retain_graph=True, create_graph=learning)[0] * v
            for v in probes
        )
        trace = sum((product.flatten(1).sum(1) for product in products), torch.zeros_like(sigma))
    score = (denoised - x_hat) / expand(sigma, x0) ** 2
    size = x0.shape[1:].numel()
    loss: Tensor = score.square().flatten(1).mean(1) + 2 * (trace / size - 1) / sigma**2
    return loss
