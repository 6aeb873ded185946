"""The exact probability flow of one-dimensional mixtures.

The flow `dx/dsigma = (x - D) / sigma` conserves the CDF, `F_sigma(x) = F_sigma'(x')`, so one
coordinate is mapped by solving for a quantile. All of this works on `(B, n)` states of `n`
independent coordinates with parameters `(n, K)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import log_ndtr, ndtr, ndtri

from sdekit.distributions.base import Sigma, chunked, squared

# The bracket shrinks by 2^-BISECTIONS; Newton's steps then converge quadratically.
BISECTIONS, NEWTON = 60, 2
# Of a quantile, 12 digits.
HALVINGS = 40
LOG_2PI = math.log(2 * math.pi)


def flow_scalar(
    x: Tensor, sigma: Sigma, sigma_to: Sigma, log_weights: Tensor, means: Tensor, variances: Tensor
) -> Tensor:
    """Map `x` `(B, n)` from `sigma` to `sigma_to` by conserving each coordinate's CDF.

    Args:
        x: the states, float32 or float64; solved in float64.
        sigma: where they are, `()` or `(B,)`.
        sigma_to: where they go, `()` or `(B,)`.
        log_weights: `(n, K)`, `-inf` for padding.
        means: `(n, K)`.
        variances: `(n, K)`; `variances + sigma^2` must be positive.
    """

    def solve(x: Tensor, sigma: Sigma, sigma_to: Sigma) -> Tensor:
        start = (variances + squared(sigma, x)).sqrt()
        end = (variances + squared(sigma_to, x)).sqrt()
        z = (x[..., None] - means) / start
        # The smaller tail is the one whose logarithm keeps its digits.
        lower, upper = log_tail(z, log_weights), log_tail(-z, log_weights)
        sign = torch.where(lower <= upper, 1.0, -1.0).to(x.dtype)
        target = torch.minimum(lower, upper)

        def excess(y: Tensor) -> tuple[Tensor, Tensor]:
            """Return `log tail(y) - target` and the slope of `log tail`."""
            u = sign[..., None] * (y[..., None] - means) / end
            tail = log_tail(u, log_weights)
            log_pdf = (log_weights - end.log() - 0.5 * u.square()).logsumexp(-1)
            slope = (log_pdf - 0.5 * LOG_2PI - tail).exp()
            return tail - target, sign * slope

        with torch.no_grad():
            # p lies between the least and the largest Phi(z_k), so the quantile lies between the
            # same quantiles of the components.
            present = log_weights > -torch.inf
            infinity = torch.tensor(torch.inf, dtype=x.dtype, device=x.device)
            z_low = torch.where(present, z, infinity).amin(-1, keepdim=True)
            z_high = torch.where(present, z, -infinity).amax(-1, keepdim=True)
            low = torch.where(present, means + end * z_low, infinity).amin(-1)
            high = torch.where(present, means + end * z_high, -infinity).amax(-1)
            for _ in range(BISECTIONS):
                middle = 0.5 * (low + high)
                above = sign * excess(middle)[0] > 0
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            y = 0.5 * (low + high)
            for _ in range(NEWTON - 1):
                y = y - newton_step(*excess(y))
        # The last step, outside no_grad, carries dy/dx = p_sigma(x) / p_sigma'(y) to autograd.
        value, slope = excess(y)
        return y - newton_step(value, slope.detach())

    width = means.numel()
    return chunked(solve, width, x.double(), sigma, sigma_to).to(x.dtype)


def quantile_scalar(levels: Tensor, weights: Tensor, means: Tensor, stds: Tensor) -> Tensor:
    """Return the quantiles of one mixture in dimension 1, by bisection.

    Args:
        levels: `(n,)`, between 0 and 1, float64.
        weights: `(K,)`.
        means: `(K,)`.
        stds: `(K,)`.
    """

    def solve(levels: Tensor) -> Tensor:
        # A quantile lies between the least and the largest of the components' own.
        each = means + stds * ndtri(levels)[:, None]
        low, high = each.amin(-1), each.amax(-1)
        for _ in range(HALVINGS):
            half = 0.5 * (low + high)
            below = ndtr((half[:, None] - means) / stds) @ weights < levels
            low, high = torch.where(below, half, low), torch.where(below, high, half)
        middle: Tensor = 0.5 * (low + high)
        return middle

    return chunked(solve, len(means), levels)


def log_tail(z: Tensor, log_weights: Tensor) -> Tensor:
    """Return `log sum_k w_k Phi(z_k)` over the last axis, to full relative accuracy of the sum."""
    tail: Tensor = log_ndtr(z)
    return (log_weights + tail).logsumexp(-1)


def newton_step(value: Tensor, slope: Tensor) -> Tensor:
    """Return `value / slope`, and 0 where the slope underflows, in a gap between components."""
    return torch.where(slope == 0, torch.zeros_like(value), value / slope)
