"""Networks as denoisers: anything that gives ``D(x̂, σ) = E[x0 | x̂ = x0 + σ ε]``.

A denoiser is any callable ``(x_hat, sigma, **conditioning) -> x0_hat``, with ``x_hat`` of shape
``(B, *event)`` and ``sigma`` a float or a tensor of shape ``()`` or ``(B,)``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

__all__ = [
    "Conditioned",
    "EDMDenoiser",
    "FixedBatch",
    "known_sigma_data",
    "layers",
    "model_of",
    "trained_range",
]


def trained_range(denoiser: Callable[..., Tensor]) -> tuple[float, float]:
    """Return the largest and smallest noise level a denoiser was trained for.

    They are its attributes ``sigma_max`` and ``sigma_min``, also of one that is wrapped in
    ``functools.partial`` to fix its conditioning; ``(inf, 0.0)`` for one that does not say.
    """
    *_, denoiser = layers(denoiser)
    return (
        float(getattr(denoiser, "sigma_max", math.inf)),
        float(getattr(denoiser, "sigma_min", 0.0)),
    )


def known_sigma_data(denoiser: Callable[..., Tensor]) -> float | None:
    """Return the denoiser's attribute ``sigma_data``, the standard deviation of its data, if any."""
    *_, denoiser = layers(denoiser)
    value = getattr(denoiser, "sigma_data", None)
    value = math.nan if value is None else float(value)
    return value if 0 < value < math.inf else None


def layers(denoiser: Callable[..., Tensor]) -> Iterator[Callable[..., Tensor]]:
    """Go through a denoiser's wrappers, outermost first, to what they wrap."""
    while isinstance(denoiser, functools.partial | Conditioned | FixedBatch):
        yield denoiser
        denoiser = denoiser.func
    yield denoiser


class Conditioned:
    """A denoiser with conditioning that differs from sample to sample.

    Where steps are adaptive, samples that have arrived leave the batch, and their conditioning has to
    leave with them: ``functools.partial`` cannot do that.

    Args:
        func: ``(x_hat, sigma, **conditioning) -> x0_hat``; it may be wrapped in either itself.
        **conditioning: Tensors with one entry per sample, ``(B, …)``, of any names; or dictionaries,
            lists and tuples of them.

    Raises:
        TypeError: If something else than such tensors is given; ``functools.partial`` fixes what is the
            same for all samples.
    """

    def __init__(self, func: Callable[..., Tensor], /, **conditioning: object) -> None:
        for name, value in conditioning.items():
            leaves = tree_leaves(value)
            if not leaves or not all(isinstance(v, Tensor) and v.ndim for v in leaves):
                raise TypeError(
                    f"{name} is not a tensor with an entry per sample, nor a container of such; fix "
                    "what all samples share by functools.partial"
                )
        self.func = func
        self.conditioning: dict[str, Any] = conditioning

    def rows(self, samples: NDArray[np.int64]) -> Conditioned:
        """Return the denoiser of some of the samples."""
        parts = tree_map(
            lambda value: value[torch.as_tensor(samples, device=value.device)], self.conditioning
        )
        return Conditioned(model_of(self.func, samples), **parts)

    def __call__(self, x_hat: Tensor, sigma: float | Tensor, /, **more: object) -> Tensor:
        """Denoise ``(B, *event)`` with the conditioning of each sample, and with ``more``.

        Raises:
            ValueError: If there is conditioning for another number of samples.
        """
        for name, tree in self.conditioning.items():
            for value in tree_leaves(tree):
                if len(value) != len(x_hat):
                    raise ValueError(
                        f"{name} is for {len(value)} samples, the batch has {len(x_hat)}"
                    )
        return self.func(x_hat, sigma, **self.conditioning | more)


class FixedBatch:
    """A denoiser that is only ever called on batches of one size.

    The matrix products of a network may round differently for another number of rows. Cut into
    batches of one shape, the last filled up with copies, a sample's result does not depend on how many
    others there are.

    Args:
        func: ``(x_hat, sigma) -> x0_hat``.
        size: Samples of a call; `sdekit.fit_batch` finds one for a budget of memory.

    Raises:
        ValueError: If ``size`` is not positive, or the denoiser has conditioning per sample: that goes
            around, ``Conditioned(FixedBatch(net, 16), class_labels=labels)``, and so do denoisers made
            of others, ``StaticThreshold(FixedBatch(net, 16))``.
    """

    def __init__(self, func: Callable[..., Tensor], size: int) -> None:
        if size < 1:
            raise ValueError(f"size = {size}; it must be at least 1")
        inside = list(layers(func))
        for f in inside:
            if isinstance(f, Conditioned) and type(f) is not Conditioned:
                name = type(f).__name__
                raise ValueError(
                    f"{name} cannot be inside of FixedBatch, whose calls are of other samples; write "
                    f"{name}(FixedBatch(denoiser, {size}), ...)"
                )
        fixed = [f.keywords for f in inside if isinstance(f, functools.partial)]
        fixed += [f.conditioning for f in inside if isinstance(f, Conditioned)]
        if any(isinstance(v, Tensor) and v.ndim for v in tree_leaves(fixed)):
            raise ValueError(
                "conditioning per sample cannot be inside of FixedBatch, whose calls are of other "
                "samples; write Conditioned(FixedBatch(denoiser, size), ...)"
            )
        self.func = func
        self.size = size

    def __call__(self, x_hat: Tensor, sigma: float | Tensor, /, **conditioning: object) -> Tensor:
        """Denoise ``(B, *event)`` in calls of ``size`` samples; tensors have an entry for each."""
        sigma = _per_sample(sigma, x_hat)
        parts = []
        for first in range(0, len(x_hat), self.size):
            rows = torch.arange(first, first + self.size, device=x_hat.device)
            rows = rows.clamp(max=len(x_hat) - 1)
            fixed = tree_map(
                lambda value: value[rows] if isinstance(value, Tensor) and value.ndim else value,  # noqa: B023
                conditioning,
            )
            parts.append(self.func(x_hat[rows], sigma[rows], **fixed))
        return torch.cat(parts)[: len(x_hat)]


def model_of(
    model: Callable[..., Tensor], samples: NDArray[np.int64] | None
) -> Callable[..., Tensor]:
    """Return the model of some samples of a batch: with their conditioning, if it is `Conditioned`."""
    if samples is None:
        return model
    if isinstance(model, Conditioned):
        return model.rows(samples)
    if isinstance(model, functools.partial):
        func = model_of(model.func, samples)
        if func is not model.func:
            return functools.partial(func, *model.args, **model.keywords)
    return model


class EDMDenoiser(nn.Module):
    """Precondition a raw network ``F`` into a denoiser: Karras et al. (2022), eq. 7 and table 1.

    The coefficients are those of table 1, with ``h² = σ² + σ_d²``::

        D(x̂, σ) = c_skip x̂ + c_out F(c_in x̂, c_noise)
        c_in = 1/h    c_skip = σ_d²/h²    c_out = σ σ_d/h    c_noise = ln(σ)/4

    For data of variance ``σ_d²``, the input of ``F`` and the target it is trained for then have
    unit variance at every ``σ``; and ``D`` tends to ``x̂`` as ``σ → 0``, whatever ``F`` says.

    Args:
        network: ``F(x, c_noise, **conditioning)``, with ``x`` of shape ``(B, *event)`` and
            ``c_noise`` of shape ``(B,)``, both in the dtype of its parameters; the result has the
            shape of ``x``.
        sigma_data: ``σ_d``, the standard deviation of the data.
        sigma_min: Smallest noise level that the network is trained for.
        sigma_max: Largest noise level that the network is trained for.
    """

    def __init__(
        self, network: nn.Module, *, sigma_data: float, sigma_min: float, sigma_max: float
    ) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def forward(self, x_hat: Tensor, sigma: float | Tensor, **conditioning: object) -> Tensor:
        """Estimate the clean sample: ``E[x0 | x̂]``.

        Args:
            x_hat: Unscaled state ``x0 + σ ε``, shape ``(B, *event)``.
            sigma: Noise level, a positive float or a tensor of shape ``()`` or ``(B,)``.
            **conditioning: Passed to the network as it is.

        Returns:
            The denoised sample, in the shape and dtype of ``x_hat``.

        Raises:
            ValueError: If ``sigma`` has another shape.
        """
        network_dtype = next(self.network.parameters()).dtype
        # c_skip x̂ carries the state itself, so it keeps the wider of the two precisions; half
        # precision would lose σ² at both ends of the range.
        dtype = torch.promote_types(torch.promote_types(x_hat.dtype, network_dtype), torch.float32)
        x = x_hat.to(dtype)
        s = _per_sample(sigma, x)
        s_event = s.view(len(x), *(1,) * (x.ndim - 1))

        h = torch.hypot(s_event, torch.full_like(s_event, self.sigma_data))
        c_in = 1 / h
        c_skip = (self.sigma_data / h) ** 2
        c_out = s_event * self.sigma_data / h
        c_noise = s.log() / 4

        raw: Tensor = self.network(
            (c_in * x).to(network_dtype), c_noise.to(network_dtype), **conditioning
        )
        return (c_skip * x + c_out * raw).to(x_hat.dtype)


def _per_sample(sigma: float | Tensor, x: Tensor) -> Tensor:
    """Broadcast a noise level to shape ``(B,)``, in the dtype and on the device of ``x``."""
    if not isinstance(sigma, Tensor):
        # A fill on the device, where torch.tensor would copy from the host and synchronise.
        return x.new_full(x.shape[:1], sigma)
    if sigma.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"sigma must be a float or have shape () or ({len(x)},), got {tuple(sigma.shape)}"
        )
    return sigma.to(x).expand(len(x))
