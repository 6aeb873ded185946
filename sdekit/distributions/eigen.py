"""Gaussian components in their own eigenbases: the linear algebra that every formula shares."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Parameters(NamedTuple):
    """The parameters in one dtype on one device."""

    log_weights: Tensor  # (K,)
    means: Tensor  # (K, d)
    variances: Tensor  # (K, d), or (K, 1) if isotropic: eigenvalues of the covariances
    basis: Tensor | None  # (d, K d), the eigenvectors side by side; None: the coordinate axes
    offsets: Tensor | None  # (K d,), minus the means in their own bases


def eigen_coordinates(p: Parameters, x: Tensor) -> Tensor:
    """Return `Q_k^T (x - m_k)`, `(B, K, d)`: one matrix product for full covariances."""
    if p.basis is None or p.offsets is None:
        return x[:, None] - p.means
    return torch.addmm(p.offsets, x, p.basis).reshape(len(x), *p.means.shape)


def combine(p: Parameters, coefficients: Tensor, z: Tensor) -> Tensor:
    """Return `sum_k Q_k (c_k * z_k)`, `(B, d)`, for coefficients `(B, K, d or 1)`."""
    if p.basis is not None:
        return (coefficients * z).flatten(1) @ p.basis.mT
    if coefficients.shape[-1] == 1:
        return (coefficients.mT @ z)[:, 0]
    return (coefficients * z).sum(1)


def from_eigen(p: Parameters, z: Tensor) -> Tensor:
    """Return `Q_k z_k`, `(B, K, d)`."""
    if p.basis is None:
        return z
    return (z.transpose(0, 1) @ bases(p).mT).transpose(0, 1)


def rotate(p: Parameters, z: Tensor, chosen: Tensor) -> Tensor:
    """Return `Q_k z`, `(B, d)`, for one component `k = chosen` `(B,)` per row of `z` `(B, d)`."""
    if p.basis is None:
        return z
    return (bases(p)[chosen] @ z[..., None])[..., 0]


def bases(p: Parameters) -> Tensor:
    """Return the eigenvectors of full covariances as `(K, d, d)`."""
    assert p.basis is not None
    return p.basis.reshape(-1, *p.means.shape).transpose(0, 1)


def scatter(r: Tensor, values: Tensor) -> Tensor:
    """Return the covariance `(B, d, d)` of `values` `(B, K, d)` under the weights `r` `(B, K)`."""
    centred = values - r[:, None] @ values
    return (r[..., None] * centred).mT @ centred


def weighted_cov(p: Parameters, r: Tensor, variances: Tensor) -> Tensor:
    """Return `sum_k r_k Q_k diag(variances_k) Q_k^T`, `(B, d, d)`, variances `(., K, d or 1)`."""
    weights = r[..., None] * variances
    if p.basis is None:
        return weights.sum(1).expand(-1, p.means.shape[1]).diag_embed()
    return (weights.flatten(1)[:, None] * p.basis) @ p.basis.mT


def pick(weights: Tensor, draw: Tensor) -> Tensor:
    """Return indices like `draw` with law `weights` from uniforms on [0, 1).

    By inversion of the cumulative sum, so that the draw is one number per sample: `weights` `(K,)`
    and `draw` `(B,)`, or `(R, K)` and `(R, B)`.
    """
    cumulative = weights.cumsum(-1)
    # The last entry is set to one by division: a draw below one never runs off the end.
    cumulative = cumulative / cumulative[..., -1:]
    return torch.searchsorted(cumulative, draw, right=True).clamp(max=weights.shape[-1] - 1)


def check_weights(weights: Tensor, components: int) -> Tensor:
    """Return normalised weights `(K,)`, or raise `ValueError` saying what is wrong."""
    if weights.shape != (components,):
        raise ValueError(
            f"weights must be ({components},), one per row of means; got {tuple(weights.shape)}"
        )
    if (weights < 0).any():
        worst = int(weights.argmin())
        raise ValueError(f"weights must not be negative; weight {worst} is {float(weights[worst])}")
    excess = float(weights.sum()) - 1
    if abs(excess) > 1e-6:
        raise ValueError(f"weights must sum to one; their sum is off by {excess:.3g}")
    return weights / weights.sum()


def factor(covs: Tensor, components: int, dim: int) -> tuple[Tensor, Tensor | None]:
    """Return eigenvalues `(K, d)` or `(K, 1)` and eigenvectors `(K, d, d)` (None if diagonal)."""
    accepted = {
        (): "a number",
        (components,): f"({components},) isotropic",
        (components, dim): f"({components}, {dim}) diagonal",
        (components, dim, dim): f"({components}, {dim}, {dim}) full",
    }
    if tuple(covs.shape) not in accepted:
        raise ValueError(f"covs must be {', '.join(accepted.values())}, got {tuple(covs.shape)}")
    if covs.ndim < 3:
        variances, vectors = covs.expand(components)[:, None] if covs.ndim < 2 else covs, None
        noise = torch.zeros(components, 1, dtype=covs.dtype)
    else:
        asymmetry = (covs - covs.mT).abs().amax((1, 2))
        if (asymmetry > 1e-8 * covs.abs().amax((1, 2))).any():
            worst = int(asymmetry.argmax())
            raise ValueError(
                f"covs must be symmetric; component {worst} is off by {float(asymmetry[worst]):.3g}"
            )
        variances, vectors = torch.linalg.eigh(0.5 * (covs + covs.mT))
        # eigh resolves no eigenvalue below this: there a singular covariance looks indefinite.
        noise = 4 * dim * torch.finfo(covs.dtype).eps * variances.abs().amax(1, keepdim=True)
    smallest = (variances + noise).amin(1)
    if smallest.min() < 0:
        worst = int(smallest.argmin())
        raise ValueError(
            f"covs must be positive semi-definite; component {worst} has the eigenvalue "
            f"{float(variances[worst].min()):.3g}"
        )
    return torch.where(variances > noise, variances, 0.0), vectors
