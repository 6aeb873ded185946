"""Thresholding: denoised samples brought back into the range of the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .wrapper import Sigma, Wrapper

__all__ = ["DynamicThreshold", "StaticThreshold"]


class StaticThreshold(Wrapper):
    """A denoiser whose results are clipped to the range of the data.

    Args:
        func: The denoiser.
        low: Smallest value of the data.
        high: Largest value of the data.

    Raises:
        ValueError: If the range is empty.
    """

    def __init__(self, func: Callable[..., Tensor], low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(func)
        if not low < high:
            raise ValueError(f"the range from {low} to {high} is empty; low must be below high")
        self.low, self.high = low, high

    def __call__(self, x_hat: Tensor, sigma: Sigma, /, **conditioning: object) -> Tensor:
        """Denoise ``(B, *event)``."""
        return self.func(x_hat, sigma, **conditioning).clamp(self.low, self.high)


class DynamicThreshold(Wrapper):
    """A denoiser whose results are clipped and scaled into ``[−m, m]``, with a bound for each sample.

    The bound ``b`` is a quantile of ``|D|`` over the sample, but at least ``m``; the result is ``m/b``
    times ``D`` clipped to ``[−b, b]``. Samples in the range stay as they are.

    Args:
        func: The denoiser.
        quantile: The share of components that are not clipped, in (0, 1]; 0.995 in the paper.
        maximum: ``m``, the largest absolute value of the data.

    Raises:
        ValueError: If the quantile is not a share, or the maximum not positive.

    Source: Saharia et al. (2022), section 2.3.
    """

    def __init__(
        self, func: Callable[..., Tensor], quantile: float = 0.995, maximum: float = 1.0
    ) -> None:
        super().__init__(func)
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile = {quantile}; it must be above 0 and at most 1")
        if not maximum > 0:
            raise ValueError(f"maximum = {maximum}; the largest value of the data is positive")
        self.quantile, self.maximum = quantile, maximum

    def __call__(self, x_hat: Tensor, sigma: Sigma, /, **conditioning: object) -> Tensor:
        """Denoise ``(B, *event)``."""
        denoised = self.func(x_hat, sigma, **conditioning)
        sizes = denoised.abs().flatten(1)
        bound = torch.quantile(
            sizes.to(torch.promote_types(sizes.dtype, torch.float32)), self.quantile, 1
        )
        bound = bound.to(denoised).clamp(min=self.maximum).view(-1, *(1,) * (denoised.ndim - 1))
        return denoised.clamp(-bound, bound) * (self.maximum / bound)
