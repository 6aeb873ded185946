"""A trained network, of any kind of prediction, as a denoiser."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..affine import AffineSDE
from ..solvers.linear import traced
from .levels import Index
from .predictions import PREDICTIONS, coefficients, scalings

__all__ = ["NetworkDenoiser", "parameter_dtype"]

# What a standard deviation is multiplied by to have the largest number of a batch of images.
_TAIL = 6.0


class NetworkDenoiser(nn.Module):
    """The denoiser ``D(x̂, σ)`` that is in a network of another kind.

    It is ``D = a x̂ + b · network(α x̂, level(σ))``, with the coefficients of
    `sdekit.adapters.predictions`: the network sees the state at the scale that it was trained with, and
    the denoiser can be used with any process and grid.

    The network works in its own precision; states, coefficients and their combination are in that of
    the state or the network's, whichever is wider, and float32 at least; coefficients are computed in
    float64. Nothing is read back from the device.

    Args:
        network: ``network(x, label, **conditioning)``, a module or any callable, with ``x`` of shape
            ``(B, *event)`` in the dtype of its parameters (of the state, if it has none), and a label
            for each sample; the result is a tensor of the shape of ``x``.
        process: The process that it was trained under.
        predicts: What it predicts, one of ``"data"``, ``"noise"``, ``"score"``, ``"v"``, ``"velocity"``
            and ``"edm"``.
        level: How it is told the noise level: one of `sdekit.levels`, or any callable from ``σ`` of
            shape ``(B,)`` to labels.
        sigma_data: Standard deviation of the data: needed for ``"edm"``, else handed on to solvers.
        sigma_min: Smallest noise level that it was trained for; the process's if not given.
        sigma_max: Largest noise level that it was trained for; the process's if not given.
        learned_variance: Whether it returns twice the channels, of which the first half is the
            prediction (Nichol & Dhariwal 2021).
        dtype: Dtype of the network's input; that of its parameters if not given.
        autocast: A dtype to run it in under ``torch.autocast``; none if not given.
        label_dtype: Dtype of labels that are not integers. If not given that of the network, but
            float32 at least: bfloat16 holds no odd number above 256.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If it is out of its range, or the network's dtype cannot hold its input.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        process: AffineSDE,
        *,
        predicts: str,
        level: Callable[[Tensor], Tensor],
        sigma_data: float | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        learned_variance: bool = False,
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
        label_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not callable(network) or not callable(level):
            wrong = ("level", level) if callable(network) else ("network", network)
            raise TypeError(f"{wrong[0]} is a {type(wrong[1]).__name__}; it must be callable")
        if not isinstance(process, AffineSDE):
            raise TypeError(
                f"process is a {type(process).__name__}; it must be the affine process that the "
                "network was trained under, such as sdekit.VP()"
            )
        if predicts not in PREDICTIONS:
            raise ValueError(
                f"predicts = {predicts!r}; it must be one of {', '.join(map(repr, PREDICTIONS))}"
            )
        if sigma_data is not None and not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data = {sigma_data}; it must be positive and finite")
        if predicts == "edm" and sigma_data is None:
            raise ValueError("predicts='edm' takes sigma_data, with which the network was trained")
        if isinstance(level, Index):
            low, high = float(level.sigmas.min()), float(level.sigmas.max())
        else:
            low, high = process.sigma_min, process.sigma_max
        self.network = network
        self.process = process
        self.predicts = predicts
        self.level = level
        self.sigma_data = sigma_data
        self.sigma_min = low if sigma_min is None else float(sigma_min)
        self.sigma_max = high if sigma_max is None else float(sigma_max)
        self.learned_variance = learned_variance
        self.dtype = dtype
        self.autocast = autocast
        self.label_dtype = label_dtype
        if not 0 <= self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min = {self.sigma_min} and sigma_max = {self.sigma_max}; 0 <= sigma_min < "
                "sigma_max is needed"
            )
        self._check_overflow()

    def forward(self, x_hat: Tensor, sigma: float | Tensor, **conditioning: object) -> Tensor:
        """Estimate the clean sample: ``E[x0 | x̂]``.

        Args:
            x_hat: Unscaled state ``x0 + σ ε``, shape ``(B, *event)``.
            sigma: Noise level, a float or a tensor of shape ``()`` or ``(B,)``.
            **conditioning: Passed to the network as it is.

        Returns:
            The denoised sample, in the shape and dtype of ``x_hat``. Where a level is outside of an
            `Index`, or the network's input overflows, it is not a number.

        Raises:
            ValueError: If ``sigma`` has another shape, the level is outside of an `Index` (as far as
                that is known without waiting for a device), or the network returns another shape.
            TypeError: If the network returns something else than a tensor.
        """
        own = self._network_dtype(x_hat.dtype)
        wide = torch.promote_types(torch.promote_types(x_hat.dtype, own), torch.float32)
        levels = _levels(sigma, x_hat)
        scale, state, output = coefficients(self.predicts, self.process, levels, self.sigma_data)
        if isinstance(self.level, Index):
            if levels.device.type == "cpu" and not traced():
                self.level.check(levels)
            output = torch.where(self.level.covers(levels), output, math.nan)
        label = self.level(levels)
        if not isinstance(label, Tensor):
            raise TypeError(
                f"level returned a {type(label).__name__}; it must return a tensor with a label for "
                "each of the noise levels (B,)"
            )
        if label.is_floating_point():
            label = label.to(self.label_dtype or torch.promote_types(own, torch.float32))

        x = x_hat.to(wide)
        shape = (len(x), *(1,) * (x.ndim - 1))
        scale, state, output = (c.to(wide).view(shape) for c in (scale, state, output))
        seen = (scale * x).to(own)
        with self._context(x_hat.device):
            raw = self.network(seen, label, **conditioning)
        raw = self._prediction(raw, x).to(wide)
        if torch.float16 in (own, self.autocast):
            # An infinite input may give a finite output, from a network that saturates.
            fits = (seen.abs() <= torch.finfo(torch.float16).max).flatten(1).all(1).view(shape)
            output = torch.where(fits, output, math.nan)
        return torch.addcmul(state * x, output, raw).to(x_hat.dtype)

    def _prediction(self, raw: object, x: Tensor) -> Tensor:
        """Check what the network returned, and take the prediction out of it."""
        if not isinstance(raw, Tensor):
            raise TypeError(
                f"the network returned a {type(raw).__name__}; it must return a tensor. Wrap it, as in "
                "lambda x, t: network(x, t).sample, or take one of the loaders sdekit.from_…"
            )
        doubled = (*x.shape[:1], 2 * x.shape[1], *x.shape[2:]) if x.ndim > 1 else x.shape
        if self.learned_variance and raw.shape == doubled:
            return raw[:, : x.shape[1]]
        if raw.shape == x.shape and not self.learned_variance:
            return raw
        if self.learned_variance:
            remedy = f"with learned_variance=True it must return shape {tuple(doubled)}"
        elif raw.shape == doubled:
            remedy = "if its second half is a learned variance, say learned_variance=True"
        else:
            remedy = "it must return the shape of its input"
        raise ValueError(
            f"the network returned shape {tuple(raw.shape)} for a state of shape {tuple(x.shape)}; "
            f"{remedy}"
        )

    def _network_dtype(self, default: torch.dtype) -> torch.dtype:
        """Return the dtype of the network's input."""
        return self.dtype or parameter_dtype(self.network) or default

    def _context(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)

    def _check_overflow(self) -> None:
        """Refuse a network whose dtype cannot hold its input, or its output, in the trained range."""
        dtypes = [self._network_dtype(torch.float32), *([self.autocast] if self.autocast else [])]
        dtype = min(dtypes, key=lambda d: torch.finfo(d).max)
        most = torch.finfo(dtype).max
        if self.predicts == "edm" or most > 1e30:
            return
        ends = torch.tensor([self.sigma_min, self.sigma_max], dtype=torch.float64)
        alpha, n = scalings(self.process, ends)
        largest = {"input": _TAIL * float(torch.maximum(alpha, n)[1])}
        if self.predicts == "score":
            largest["output"] = _TAIL / float(n[0])
        for name, value in largest.items():
            if value > most:
                raise ValueError(
                    f"the network works in {dtype}, whose largest number is {most:g}, and its {name} "
                    f"reaches about {value:.2g} at σ = {ends[int(name == 'input')]:.6g}, which is in "
                    f"its range of {self.sigma_min:.6g} to {self.sigma_max:.6g}; cast it to bfloat16 "
                    "or float32, or give the sigma_min and sigma_max that it is good for"
                )


def parameter_dtype(network: object) -> torch.dtype | None:
    """Return the dtype of a network's parameters, the first floating one of them.

    Parameters of one byte are stored so, and computed with in another.
    """
    if isinstance(network, nn.Module):
        for parameter in network.parameters():
            if parameter.is_floating_point() and parameter.dtype.itemsize > 1:
                return parameter.dtype
    return None


def _levels(sigma: float | Tensor, x: Tensor) -> Tensor:
    """Return noise levels of shape ``(B,)`` on the device of ``x``, in float64 where there is that."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    if not isinstance(sigma, Tensor):
        # A fill on the device, where torch.tensor would copy from the host and synchronise.
        return torch.full(x.shape[:1], sigma, dtype=dtype, device=x.device)
    if sigma.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"sigma must be a float or have shape () or ({len(x)},), got {tuple(sigma.shape)}"
        )
    return sigma.to(device=x.device, dtype=dtype).expand(len(x))
