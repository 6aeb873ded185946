"""Distances of clouds: against closed forms, transport by linear programming, and expectations."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.optimize import linprog
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from sdekit.bench.features import DigitsFeatures, bootstrap, frechet_distance, sliced_w2
from sdekit.digits import digits_images

SEEDS = st.integers(0, 2**32 - 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cloud(mean: Tensor, root: Tensor, n: int, seed: int) -> Tensor:
    """A cloud whose sample moments are exactly a mean and ``Rᵀ R``."""
    z = normal(n, len(mean), seed=seed)
    z = torch.linalg.qr(z - z.mean(0)).Q * (n - 1) ** 0.5
    return z @ root + mean


def rotation(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


# ---------------------------------------------------------------- Fréchet


@settings(max_examples=25, deadline=None)
@given(dim=st.integers(1, 6), seed=SEEDS)
def test_the_frechet_distance_is_that_of_gaussians_with_the_moments(dim, seed):
    means, roots = normal(2, dim, seed=seed), normal(2, dim, dim, seed=seed + 1)
    a, b = (cloud(means[k], roots[k], 20 + 7 * k, seed + k) for k in range(2))
    c, d = (root.T @ root for root in roots)
    half = sqrtm(c.numpy()).real
    cross = np.trace(sqrtm(half @ d.numpy() @ half).real)
    expected = (means[0] - means[1]).square().sum() + c.trace() + d.trace() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6, abs=1e-6)


def test_the_frechet_distance_of_commuting_covariances_is_that_of_standard_deviations():
    basis, shift = rotation(4, seed=3), torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    one, other = torch.tensor([[3.0, 1.0, 0.2, 0.0], [1.0, 1.5, 0.0, 0.0]], dtype=torch.float64)
    a = cloud(0 * shift, torch.diag(one) @ basis, 50, 0)
    b = cloud(shift, torch.diag(other) @ basis, 30, 1)
    expected = float(shift.square().sum() + (one - other).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(dim=st.integers(1, 6), seed=SEEDS, scale=st.floats(1e-3, 1e3))
def test_the_frechet_distance_is_one_of_figures_not_of_where_they_are(dim, seed, scale):
    a, b = normal(40, dim, seed=seed), 0.3 * normal(30, dim, seed=seed + 1) + 1
    found, basis, shift = frechet_distance(a, b), rotation(dim, seed), 7 * normal(dim, seed=seed)
    assert frechet_distance(b, a) == pytest.approx(found, rel=1e-10)
    moved = [scale * (cloud @ basis + shift) for cloud in (a, b)]
    assert frechet_distance(*moved) == pytest.approx(scale**2 * found, rel=1e-9)
    assert frechet_distance(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-9)


def test_directions_without_variance_cost_no_digits():
    """The textbook form takes roots of round-off there: an error of 1e-8 of the variance, not 1e-16."""
    a = normal(200, 8) @ torch.diag(torch.tensor([10.0, 5, 1, 1e-3, 1e-6, 0, 0, 0]).double())
    a = a @ rotation(8, seed=1)
    size = float(a.var(0).sum())
    assert frechet_distance(a, a) <= 1e-13 * size
    assert frechet_distance(a, a.flip(0)) <= 1e-13 * size
    assert frechet_distance(a, (1 + 1e-5) * (a - a.mean(0)) + a.mean(0)) == pytest.approx(
        1e-10 * size, rel=1e-4
    )


def test_samples_of_one_law_have_the_distance_that_the_docstring_says():
    std = torch.tensor([2.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    n, m, pairs = 300, 100, 400
    found = [
        frechet_distance(std * normal(n, 4, seed=2 * k), std * normal(m, 4, seed=2 * k + 1))
        for k in range(pairs)
    ]
    spectrum = std.square()
    product, total = torch.outer(spectrum, spectrum), spectrum[:, None] + spectrum
    both = (product * (1 + torch.eye(4)) / total).sum() / 2
    expected = float((1 / n + 1 / m) * (spectrum.sum() + both))
    error = np.std(found) / pairs**0.5
    assert abs(np.mean(found) - expected) < 4 * error + 0.01 * expected
    assert error < 0.04 * expected  # so that the check can fail


# ---------------------------------------------------------------- transport in one dimension


def transport(a: Tensor, b: Tensor) -> float:
    """The least mean squared distance of all couplings."""
    n, m = len(a), len(b)
    cost = (a[:, None] - b).square().flatten().numpy()
    rows = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    mass = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return float(linprog(cost, A_eq=np.vstack(rows), b_eq=mass).fun)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 7), m=st.integers(2, 7), seed=SEEDS)
def test_on_a_line_the_distance_is_that_of_the_best_coupling(n, m, seed):
    a, b = normal(n, 1, seed=seed), 2 * normal(m, 1, seed=seed + 1) + 0.3
    expected = transport(a[:, 0], b[:, 0]) ** 0.5
    assert sliced_w2(a, b, slices=3) == pytest.approx(expected, rel=1e-7)


def test_in_more_dimensions_it_is_the_mean_square_over_the_sphere():
    """Of a shift of length ℓ that is ℓ²/d; copies of samples change nothing, nor does their order."""
    a, shift = normal(50, 3), torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    assert sliced_w2(a, a + shift, slices=20_000) == pytest.approx((25 / 3) ** 0.5, rel=0.02)
    b = normal(30, 3, seed=1)
    found = sliced_w2(a, b)
    assert sliced_w2(b.flip(0), a) == pytest.approx(found, rel=1e-12)
    assert sliced_w2(a.repeat(3, 1), b.repeat(2, 1)) == pytest.approx(found, rel=1e-12)
    assert sliced_w2(a, a.flip(0)) == 0
    images = a.reshape(50, 1, 3, 1)
    assert sliced_w2(images, b.reshape(30, 1, 3, 1)) == found
    assert sliced_w2(a, b, seed=1) != found


# ---------------------------------------------------------------- error bars


def test_the_bootstrap_gives_the_standard_error_of_a_mean():
    x = normal(400, 1)
    values = bootstrap(lambda rows: float(rows.mean()), x, times=500)
    # The standard deviation of 500 values is known to 3 %.
    assert float(values.std()) == pytest.approx(float(x.std()) / 20, rel=0.13)
    assert float(values.mean()) == pytest.approx(float(x.mean()), abs=0.01)


def test_the_bootstrap_draws_clouds_alike_so_that_differences_are_paired():
    x = normal(100, 1)
    one, other = (bootstrap(lambda rows: float(rows.mean()), c) for c in (x, x + 5))
    assert float((other - one - 5).abs().max()) < 1e-12
    assert float((bootstrap(lambda rows: float(rows.mean()), x, seed=1) - one).abs().min()) > 0


@pytest.mark.parametrize("measure", [frechet_distance, sliced_w2])
@pytest.mark.parametrize("b", [torch.zeros(5, 3), torch.zeros(1, 2)])
def test_clouds_that_do_not_fit_are_refused(measure, b):
    with pytest.raises(ValueError, match=r"two samples or more"):
        measure(torch.zeros(5, 2), b)


# ---------------------------------------------------------------- the digits


@pytest.fixture(scope="module")
def trained() -> tuple[DigitsFeatures, MLPClassifier]:
    """The features, and the classifier that they are made of."""
    kept: list[MLPClassifier] = []
    fit = MLPClassifier.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MLPClassifier, "fit", lambda self, x, y: kept.append(fit(self, x, y)) or self)
        features = DigitsFeatures()
    return features, kept[0]


@pytest.fixture(scope="module")
def features(trained) -> DigitsFeatures:
    return trained[0]


def test_the_features_tell_the_digits_apart(features):
    """A class is known by the nearest mean of features: they are those of a trained classifier."""
    assert features.accuracy > 0.97
    (x, labels), (held, answers) = digits_images("train"), digits_images("held_out")
    known, asked = features(x), features(held)
    means = torch.stack([known[labels == label].mean(0) for label in range(10)])
    nearest = torch.cdist(asked, means).argmin(1)
    assert float((nearest == answers).double().mean()) > 0.95
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8\), got \(2, 64\)"):
        features(held.flatten(1)[:2])


def test_the_features_are_those_that_scikit_learn_classifies_by(trained):
    """Its output layer, put on top, gives its own probabilities."""
    features, classifier = trained
    held, answers = digits_images("held_out")
    out = features(held).numpy() @ classifier.coefs_[-1] + classifier.intercepts_[-1]
    expected = classifier.predict_proba(held.flatten(1).double().numpy())
    np.testing.assert_allclose(torch.tensor(out).softmax(1).numpy(), expected, atol=1e-12)
    assert features.accuracy == np.mean(out.argmax(1) == answers.numpy())
    assert classifier.random_state is not None  # or no two runs could be compared


def test_worse_images_are_farther(features):
    """Noise and a missing class are seen, beyond the distance of halves of the real images."""
    x, labels = digits_images("train")
    half, other = features(x[:750]), features(x[750:])
    floor = frechet_distance(half, other)
    distances = [
        frechet_distance(half, features(x[750:].double() + noise * normal(750, 1, 8, 8)))
        for noise in (0.1, 0.3, 0.6)
    ]
    assert floor < distances[0] < distances[1] < distances[2]
    assert distances[2] > 4 * floor
    assert frechet_distance(half, other[labels[750:] != 3]) > 3 * floor


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"sdekit\[bench\]"):
        DigitsFeatures()
