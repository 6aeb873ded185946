"""Derivatives of batched functions by automatic differentiation, and how residuals are measured.

A scalar function maps states ``(B, d)`` to ``(B,)``, a field to ``(B, d)``. All derivatives are
themselves differentiable, so they nest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..distributions import Distribution
from ..sde import ForwardSDE, noise_kind

Scalar: TypeAlias = Callable[[Tensor], Tensor]
Field: TypeAlias = Callable[[Tensor], Tensor]


def _watched(x: Tensor) -> Tensor:
    return x if x.requires_grad else x.detach().requires_grad_()


def _grad(value: Tensor, x: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(x)
    found = torch.autograd.grad(value.sum(), x, create_graph=True, allow_unused=True)[0]
    return torch.zeros_like(x) if found is None else found


def gradient(f: Scalar, x: Tensor) -> Tensor:
    """Gradient ``∇f``, ``(B, d)``; also the derivative of an elementwise function of ``(B,)``."""
    x = _watched(x)
    return _grad(f(x), x)


def jacobian(field: Field, x: Tensor) -> Tensor:
    """Jacobian ``∂_j F_i``, ``(B, d, d)``."""
    x = _watched(x)
    value = field(x)
    return torch.stack([_grad(value[:, i], x) for i in range(value.shape[1])], 1)


def divergence(field: Field, x: Tensor) -> Tensor:
    """Divergence ``Σ_i ∂_i F_i``, ``(B,)``."""
    return jacobian(field, x).diagonal(dim1=1, dim2=2).sum(1)


def hessian(f: Scalar, x: Tensor) -> Tensor:
    """Second derivatives ``∂_i ∂_j f``, ``(B, d, d)``."""
    return jacobian(lambda y: gradient(f, y), x)


def laplacian(f: Scalar, x: Tensor) -> Tensor:
    """Laplacian ``Δf``, ``(B,)``."""
    return hessian(f, x).diagonal(dim1=1, dim2=2).sum(1)


def gram(sde: ForwardSDE, x: Tensor, t: Tensor) -> Tensor:
    """Matrix ``GGᵀ`` of an SDE, ``(B, d, d)``, whatever the kind of its noise."""
    G = sde.diffusion(x, t)
    kind = noise_kind(G, x)
    if kind == "matrix":
        return G @ G.mT
    if kind == "scalar":
        G = G.reshape(-1, 1).expand(x.shape)
    return torch.diag_embed(G**2)


def fokker_planck(
    drift: Field, square: Callable[[Tensor], Tensor], density: Scalar, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Parts of the Fokker–Planck operator ``−∇·(f p) + ½ Σ_ij ∂_i ∂_j ((GGᵀ)_ij p)``, each ``(B,)``.

    Args:
        drift: Drift ``f``.
        square: ``GGᵀ``, ``(B, d) -> (B, d, d)``.
        density: ``p``.
        x: States, ``(B, d)``.
    """

    def flux(y: Tensor) -> Tensor:
        """``½ ∇·(GGᵀ p)``, row by row."""
        rows = y.shape[1]
        weighted = [lambda z, i=i: square(z)[:, i] * density(z)[:, None] for i in range(rows)]
        return 0.5 * torch.stack([divergence(row, y) for row in weighted], 1)

    along = -divergence(lambda y: drift(y) * density(y)[:, None], x)
    return along, divergence(flux, x)


def generator(drift: Field, square: Callable[[Tensor], Tensor], test: Scalar, x: Tensor) -> Tensor:
    """Generator ``f·∇φ + ½ GGᵀ : ∇²φ`` of an SDE on a test function, ``(B,)``."""
    first = (drift(x) * gradient(test, x)).sum(1)
    return first + 0.5 * (square(x) * hessian(test, x)).sum((1, 2))


def residual(left: Tensor, right: Tensor, *terms: Tensor) -> float:
    """Largest difference of two things over a batch, relative to their size.

    Args:
        left: What is on one side, ``(B, ...)`` or a number.
        right: What is on the other.
        *terms: What the sides are sums of, where these may cancel: the size is then theirs.
    """

    def size(value: Tensor) -> Tensor:
        rows = value.detach().double().reshape(len(value) if value.ndim else 1, -1)
        norm: Tensor = torch.linalg.vector_norm(rows, dim=1)
        return norm

    scale = size(left) + size(right) + sum(size(term) for term in terms)
    found = size(left - right) / torch.where(scale > 0, scale, 1.0)
    return float(found.nan_to_num(nan=torch.inf).max())  # max(…) of Python would lose a NaN


# Central differences of order 8.
_STENCIL = np.array([3, -32, 168, -672, 0, 672, -168, 32, -3]) / 840


def log_derivative(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    at: float,
    step: float = 0.02,
) -> NDArray[np.float64]:
    """Derivative ``x df/dx`` of a function of arrays, ``(n,) -> (n, ...)``, to about 1e-12.

    By central differences of order 8 in ``log x``: for host-side functions, which have no autograd.
    """
    nodes = at * np.exp(step * np.arange(-4, 5))
    return np.asarray(np.tensordot(_STENCIL, function(nodes), 1) / step)


def line(law: Distribution, sigma: float = 0.0, nodes: int = 2001) -> tuple[Tensor, float]:
    """Nodes ``(n, 1)`` and weight of the trapezoidal rule for what a one-dimensional law does.

    They reach 14 standard deviations from the mean. For smooth densities that decay within them
    the error is exponentially small.
    """
    mean, cov = law.moments(sigma)
    half = 14 * float(cov) ** 0.5
    y = float(mean) + torch.linspace(-half, half, nodes, dtype=torch.float64)
    return y[:, None], 2 * half / (nodes - 1)


def quadrature(law: Distribution, sigma: float, nodes: int = 4000) -> tuple[Tensor, Tensor]:
    """Nodes ``(n, 1)`` and weights ``(n,)`` of expectations under a one-dimensional ``p_σ``."""
    y, width = line(law, sigma, nodes)
    return y, torch.exp(law.log_prob(y, sigma)) * width


def log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Log-density of an isotropic normal law, ``(B, d), (B, d), (B,) -> (B,)``."""
    gap = (x - mean).square().sum(1) / variance
    return -0.5 * (gap + x.shape[1] * torch.log(2 * torch.pi * variance))


def speed(path: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Derivative of states ``(B, d)`` with respect to their times ``(B,)``, without a graph."""
    dims = path(t.detach()).shape[1]
    parts = [gradient(partial(_entry, path, i), t).detach() for i in range(dims)]
    return torch.stack(parts, 1)


def _entry(field: Field, i: int, x: Tensor) -> Tensor:
    return field(x)[:, i]
