"""What denoisers made of denoisers share: conditioning that follows samples, costs, gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .denoisers import Conditioned, layers, model_of

__all__ = ["Wrapper", "evaluations", "is_guided"]

Sigma: TypeAlias = float | Tensor
Self = TypeVar("Self", bound="Wrapper")


class Wrapper(Conditioned):
    """A denoiser made of another, in its attribute ``func``.

    What is said of the inner denoiser (`sdekit.denoisers.trained_range` and others) is true of this
    one, and tensors with an entry per sample leave an adaptive batch with their samples.

    Args:
        func: The inner denoiser, ``(x_hat, sigma, **conditioning) -> x0_hat``.
    """

    # Whether the result is another field, steeper maybe, for which another method is the default.
    guides = True

    def __init__(self, func: Callable[..., Tensor]) -> None:
        if not callable(func):
            raise TypeError(f"the denoiser is a {type(func).__name__}; it must be callable")
        super().__init__(func)

    def rows(self: Self, samples: NDArray[np.int64]) -> Self:
        """Return the denoiser of some of the samples."""
        part = copy.copy(self)
        part.func = model_of(self.func, samples)
        part.conditioning = pick_rows(self.conditioning, samples)
        return part

    def told(self) -> dict[str, Tensor]:
        """Return all tensors that have an entry for each sample, or one for all."""
        return self.conditioning

    def evaluations(self, sigma: Sigma | None = None) -> int:
        """Return how often a call evaluates the inner denoiser for each sample.

        Args:
            sigma: The noise level of the call; without it, or with one per sample, the answer is the
                largest that can be.
        """
        return 1


def evaluations(denoiser: Callable[..., Tensor], sigma: Sigma | None = None) -> int:
    """Return how often a call of a denoiser evaluates its network for each sample.

    Args:
        denoiser: Any denoiser; one that is not made of others is its own network.
        sigma: The noise level of the call; see `Wrapper.evaluations`.
    """
    return math.prod(f.evaluations(sigma) for f in layers(denoiser) if isinstance(f, Wrapper))


def is_guided(denoiser: Callable[..., Tensor]) -> bool:
    """Whether a denoiser is made of others by a `Wrapper` that guides."""
    return any(isinstance(part, Wrapper) and part.guides for part in layers(denoiser))


def check_scale(scale: float) -> None:
    """Refuse a guidance scale that is not a number from 0 on."""
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale is a {type(scale).__name__}; it must be a number")
    if not 0 <= scale < math.inf:
        raise ValueError(
            f"scale = {scale}; it must be finite and not negative (to push away from a condition, "
            "exchange the two)"
        )


def pick_rows(told: Mapping[str, Tensor], samples: NDArray[np.int64]) -> dict[str, Tensor]:
    """Return the entries of some samples; tensors of one entry are those of all."""
    return {
        name: value
        if value.ndim == 0 or len(value) == 1
        else value[torch.as_tensor(samples, device=value.device)]
        for name, value in told.items()
    }


def entries(told: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return conditioning with an entry for each of ``count`` samples.

    Raises:
        ValueError: If there is conditioning for another number of samples.
    """
    found = {}
    for name, value in told.items():
        value = value[None] if value.ndim == 0 else value
        if len(value) not in (1, count):
            raise ValueError(f"{name} is for {len(value)} samples, the batch has {count}")
        found[name] = value.expand(count, *value.shape[1:])
    return found


def own(value: Sigma) -> Sigma:
    """Return a noise level that autograd may keep; see `own_tensor`."""
    return own_tensor(value) if isinstance(value, Tensor) else value


def own_tensor(value: Tensor) -> Tensor:
    """Return a tensor that autograd may keep, also if it was made in inference mode."""
    return value.clone() if value.is_inference() else value


def with_gradient(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, name: str
) -> tuple[Tensor, Tensor]:
    """Return the value of a function of the state and the gradient of its log-probability.

    Args:
        function: ``x ↦ (value, log-probability of shape (B,))``.
        x: States, ``(B, *event)``.
        name: What gives the log-probability, for messages.

    Raises:
        TypeError: If the log-probability is not a tensor.
        ValueError: If it is not ``(B,)``, or does not depend on the state.
    """
    differentiable = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        x = x if differentiable and x.requires_grad else _leaf(x)
        value, log_prob = function(x)
        if not isinstance(log_prob, Tensor):
            raise TypeError(f"{name} returned {type(log_prob).__name__}; it must return a tensor")
        if log_prob.shape != x.shape[:1]:
            raise ValueError(
                f"{name} returned shape {tuple(log_prob.shape)} for {len(x)} samples; it must return "
                f"one number for each, ({len(x)},)"
            )
        if not log_prob.requires_grad:
            raise ValueError(f"{name} does not depend on the state; it has no gradient")
        (gradient,) = torch.autograd.grad(
            log_prob.sum(), x, create_graph=differentiable, materialize_grads=True
        )
    return (value, gradient) if differentiable else (value.detach(), gradient)


def _leaf(x: Tensor) -> Tensor:
    x = x.clone() if x.is_inference() else x.detach()
    return x.requires_grad_()


def per_event(values: Tensor, x: Tensor) -> Tensor:
    """Return numbers of shape ``()`` or ``(B,)`` so that they multiply states."""
    return values.to(x).reshape(-1, *(1,) * (x.ndim - 1))


def squared(sigma: Sigma, x: Tensor) -> Sigma:
    """Return ``σ²`` so that it multiplies states."""
    return per_event(sigma.square(), x) if isinstance(sigma, Tensor) else sigma**2
