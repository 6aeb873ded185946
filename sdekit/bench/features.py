"""How far apart two laws are that are known by samples only, and a space of features to compare in.

Two solvers can differ in every sample and still draw from one law, so errors along paths are not all
there is to say of samples. The distances here compare clouds; that of Fréchet, between features of a
classifier, is how samples of image models are judged (Heusel et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..digits import digits_images

_HIDDEN, _ITERATIONS = (64, 32), 500


class DigitsFeatures:
    """What the last hidden layer of a classifier of the digits says of images.

    The classifier is scikit-learn's ``MLPClassifier``, trained on the 1,500 training images from a
    fixed seed, in seconds. Its weights depend on scikit-learn's version, and their last digits on the
    machine: compare distances of one run.

    Attributes:
        accuracy: Share of the 297 held-out images that it classifies correctly.

    Raises:
        ImportError: If scikit-learn is not installed.
    """

    def __init__(self) -> None:
        images, labels = digits_images("train")  # first: it says what to install
        from sklearn.neural_network import MLPClassifier

        network = MLPClassifier(_HIDDEN, max_iter=_ITERATIONS, random_state=0)
        network.fit(images.flatten(1).double().numpy(), labels.numpy())
        held_out, answers = digits_images("held_out")
        self.accuracy = float(network.score(held_out.flatten(1).double().numpy(), answers.numpy()))
        weights = zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True)
        self._layers = [(torch.as_tensor(w), torch.as_tensor(b)) for w, b in weights]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features, ``(B, 32)`` in float64, of images ``(B, 1, 8, 8)`` in [−1, 1].

        Raises:
            ValueError: If the images have another shape.
        """
        if x.shape[1:] != (1, 8, 8):
            raise ValueError(f"images must have shape (B, 1, 8, 8), got {tuple(x.shape)}")
        features = x.flatten(1).double()
        for weight, bias in self._layers:
            features = (features @ weight + bias).relu()
        return features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Wasserstein-2 distance of Gaussians with the moments of two clouds.

    It is ``|m_a − m_b|² + tr(C_a + C_b − 2 (C_a^½ C_b C_a^½)^½)``, and not 0 for different samples of
    one law: for Gaussians with eigenvalues ``λ`` of the covariance its mean is then, to leading order,
    ``(1/n + 1/m) (Σ_i λ_i + ½ Σ_ij λ_i λ_j (1 + δ_ij)/(λ_i + λ_j))``. Compare values of equally many
    samples only, and with that of an exact sampler.

    Args:
        a: The one cloud, ``(n, d)``, two samples or more.
        b: The other one, ``(m, d)``.

    Raises:
        ValueError: If shapes do not fit.

    Source:
        Dowson & Landau 1982; as a measure of samples: Heusel et al. 2017, eq. 6.
    """
    _check_clouds(a, b)
    (mean_a, root_a), (mean_b, root_b) = (_moments(cloud) for cloud in (a, b))
    # With C = Rᵀ R for both, the trace of the root is the nuclear norm of R_a R_bᵀ. No root is taken of
    # what round-off has made of a zero, as in the textbook form, for features that are never active.
    cross = torch.linalg.matrix_norm(root_a @ root_b.T, ord="nuc")
    variance = root_a.square().sum() + root_b.square().sum()
    return float(((mean_a - mean_b).square().sum() + variance - 2 * cross).clamp(min=0))


def bootstrap(
    measure: Callable[[Tensor], float], x: Tensor, *, times: int = 20, seed: int = 0
) -> Tensor:
    """Return the values of a measure on samples drawn again from a cloud, with replacement.

    Their standard deviation is the standard error. Clouds of one size are drawn from alike, so that
    values of two whose samples belong together can be subtracted.

    Args:
        measure: What is measured of a cloud.
        x: The cloud, ``(n, …)``.
        times: How often.
        seed: Seed of the drawing.
    """
    source = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(x), (times, len(x)), generator=source)
    return torch.tensor([measure(x[rows]) for rows in draws], dtype=torch.float64)


def sliced_w2(a: Tensor, b: Tensor, *, slices: int = 64, seed: int = 0) -> float:
    """Return the sliced Wasserstein-2 distance of two clouds, which may be of different sizes.

    It is the root mean square, over random directions, of the distance in one dimension, which is
    that of the sorted projections. Of one law it is not 0 either: compare with an exact sampler.

    Args:
        a: The one cloud, ``(n, …)``.
        b: The other one, ``(m, …)``.
        slices: Number of directions.
        seed: Seed of the directions.

    Raises:
        ValueError: If shapes do not fit.

    Source:
        Bonneel et al. 2015.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    _check_clouds(a, b)
    source = torch.Generator().manual_seed(seed)
    directions = torch.randn(slices, a.shape[1], generator=source, dtype=torch.float64)
    directions = (directions / directions.norm(dim=1, keepdim=True)).T
    # Quantile functions are steps, of lengths 1/n and 1/m; in units of 1/(nm) all ends are integers.
    n, m = len(a), len(b)
    ends = torch.cat([m * torch.arange(1, n + 1), n * torch.arange(1, m + 1)]).sort().values
    lengths = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    sorted_a, sorted_b = (a @ directions).sort(0).values, (b @ directions).sort(0).values
    gap = sorted_a[(ends - 1) // m] - sorted_b[(ends - 1) // n]
    return float((lengths @ gap.square()).mean().sqrt())


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and ``R`` with the covariance ``Rᵀ R``, both in float64."""
    x = x.double()
    mean = x.mean(0)
    return mean, torch.linalg.qr(x - mean, mode="r").R / (len(x) - 1) ** 0.5


def _check_clouds(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"the clouds have shapes {tuple(a.shape)} and {tuple(b.shape)}; they must be (n, d) and "
            "(m, d), with two samples or more"
        )
