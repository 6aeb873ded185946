"""Mixtures given what is known of a sample: its class, or a noisy linear observation of it.

Both conditional laws of a Gaussian mixture are Gaussian mixtures again, so what guidance and solvers
of inverse problems aim at is known exactly, at every noise level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdekit.distributions.base import Sigma, chunked, parameter
from sdekit.distributions.eigen import combine, weighted_cov
from sdekit.distributions.mixture import GaussianMixture


def posterior(mixture: GaussianMixture, matrix: object, y: object, noise: float) -> GaussianMixture:
    """Return the law of `x` given `y = A x + noise * eps`, `eps ~ N(0, I)`: a mixture again.

    With `S_k = A C_k A^T + noise^2 I` and the gain `G_k = C_k A^T S_k^-1`, the component `k` becomes

        N(m_k + G_k (y - A m_k), (I - G_k A) C_k (I - G_k A)^T + noise^2 G_k G_k^T)

    and its weight is multiplied by `N(y; A m_k, S_k)`. The covariance is the sum of two squares
    (Joseph's form), which round-off cannot make indefinite.

    Args:
        mixture: The law of `x`.
        matrix: `A`, `(m, d)`.
        y: The observation, `(m,)`.
        noise: Its standard deviation, positive.

    Raises:
        TypeError: If an argument is not made of numbers.
        ValueError: If a shape does not fit, or the noise is not positive.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, eqs. 2.113-2.117, per component.
    """
    matrix, y = parameter(matrix, "matrix"), parameter(y, "y")
    if matrix.ndim != 2 or matrix.shape[1] != mixture.dim or not len(matrix):
        raise ValueError(f"matrix must be (m, {mixture.dim}), got {tuple(matrix.shape)}")
    if y.shape != matrix.shape[:1]:
        raise ValueError(f"y must be ({len(matrix)},), got {tuple(y.shape)}")
    check_noise(noise)
    p = mixture._parameters(torch.device("cpu"), torch.float64)
    components = torch.eye(len(p.means), dtype=torch.float64)
    covs = weighted_cov(p, components, p.variances[None])
    cross = covs @ matrix.mT  # C A^T, (K, d, m)
    root = torch.linalg.cholesky(matrix @ cross + noise**2 * torch.eye(len(matrix)).double())
    gain = torch.cholesky_solve(cross.mT, root).mT
    residual = (y - p.means @ matrix.mT)[..., None]
    kept = torch.eye(mixture.dim, dtype=torch.float64) - gain @ matrix
    updated = kept @ covs @ kept.mT + noise**2 * gain @ gain.mT
    whitened = torch.linalg.solve_triangular(root, residual, upper=False)[..., 0]
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    weights = (p.log_weights - 0.5 * whitened.square().sum(-1) - log_det).softmax(0)
    means = p.means + (gain @ residual)[..., 0]
    return GaussianMixture(weights, means, 0.5 * (updated + updated.mT))


def check_noise(noise: float) -> None:
    """Refuse a standard deviation of an observation that is not a positive number."""
    if isinstance(noise, bool) or not isinstance(noise, int | float):
        raise TypeError(f"noise is a {type(noise).__name__}; it must be a number")
    if not 0 < noise < float("inf"):
        raise ValueError(
            f"noise = {noise}; the standard deviation of an observation must be positive and finite "
            "(a small one stands for an exact observation)"
        )


class LabelledMixture:
    """A mixture whose components belong to classes: a class-conditional denoiser in closed form.

    As a denoiser it takes `class_labels`, integers `(B,)` from 0 to C - 1, or C for "no label", as
    class-conditional networks do.

    Args:
        mixture: The law of all classes together.
        classes: The class of each component, `(K,)` integers; every class from 0 on has one.

    Raises:
        ValueError: If `classes` is not as above.
    """

    def __init__(self, mixture: GaussianMixture, classes: object) -> None:
        labels = torch.as_tensor(classes, device="cpu")
        if labels.shape != mixture.weights.shape or labels.is_floating_point():
            raise ValueError(
                f"classes must be integers, one for each of {len(mixture.weights)} components; got "
                f"{tuple(labels.shape)} of {labels.dtype}"
            )
        self.num_classes = int(labels.max()) + 1
        shares = torch.zeros(self.num_classes, dtype=torch.float64)
        if labels.min() < 0 or (shares.index_add(0, labels, mixture.weights) == 0).any():
            raise ValueError(
                f"classes must be 0, 1, ... without a gap, each with a component of positive weight; "
                f"got {labels.tolist()}"
            )
        self.mixture = mixture
        self.dim, self.sigma_data = mixture.dim, mixture.sigma_data
        self.classes = labels
        # Row c holds 0 for the components of class c and -inf for others; the last row is no label.
        members = labels == torch.arange(self.num_classes)[:, None]
        members = torch.cat([members, torch.ones(1, len(labels), dtype=torch.bool)])
        self._log_members = torch.where(members, 0.0, -torch.inf)

    def given(self, label: int) -> GaussianMixture:
        """Return the law of one class.

        Raises:
            ValueError: If there is no such class.
        """
        if not 0 <= label < self.num_classes:
            raise ValueError(f"label = {label}; the classes are 0 to {self.num_classes - 1}")
        law, mine = self.mixture, self.classes == label
        p = law._parameters(torch.device("cpu"), torch.float64)
        covs = weighted_cov(p, torch.eye(len(mine)).double(), p.variances[None])
        weights = law.weights[mine]
        return GaussianMixture(weights / weights.sum(), law.means[mine], covs[mine])

    def __call__(self, x: Tensor, sigma: Sigma, class_labels: Tensor | None = None) -> Tensor:
        """Return the denoiser `E[x0 | x, class]`, `(B, d)`.

        Raises:
            ValueError: If `class_labels` is not `(B,)`.
        """
        if class_labels is None:
            return self.mixture(x, sigma)
        if class_labels.shape != x.shape[:1]:
            raise ValueError(f"class_labels must be ({len(x)},), got {tuple(class_labels.shape)}")
        self.mixture._check_form(x, sigma)
        return chunked(self._denoise, self.mixture._width, x, sigma, class_labels)

    def _denoise(self, x: Tensor, sigma: Sigma, class_labels: Tensor) -> Tensor:
        p, log_joint, z, precision = self.mixture._components(x, sigma)
        r = (log_joint + self._log_members.to(x)[class_labels]).softmax(-1)
        return r @ p.means + combine(p, r[..., None] * (p.variances * precision), z)

    def class_log_prob(self, x: Tensor, sigma: Sigma) -> Tensor:
        """Return the exact classifier `log p_sigma(class | x)`, `(B, C)`."""
        self.mixture._check_form(x, sigma)
        log_joint = self.mixture._components(x, sigma).log_joint
        members = self._log_members[:-1].to(x)
        joint = (log_joint[:, None] + members).logsumexp(-1)
        return joint - log_joint.logsumexp(-1, keepdim=True)
