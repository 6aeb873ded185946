"""Training objectives: minimised by the exact denoiser, and of the weights that they declare.

Expectations are sums: the trapezoidal rule in ``x̂``, and Gauss–Hermite's of ``x0`` given ``x̂``, exact
for the squares that losses are of it. Integrands are analytic, so that nothing is left but round-off.
"""

from __future__ import annotations

from functools import partial
from itertools import product as tuples
from typing import NamedTuple

import pytest
import torch
from helpers import Perceptron
from torch import Tensor, nn

import sdekit as sk
from sdekit import losses
from sdekit.denoisers import EDMDenoiser

DOUBLE = torch.float64
SIGMA_DATA = 0.7
WEIGHTS, MEANS, VARIANCES = (0.3, 0.7), ((-0.8, 0.5), (0.6, -0.3)), (0.4, 0.25)
LAW = sk.GaussianMixture(WEIGHTS, MEANS, VARIANCES)
SIGMAS = (0.4, 1.0, 5.0)

# What is predicted, from x0 or D and x̂; and what it is in terms of x0 and ε.
DENOISING = {
    losses.x0_loss: (lambda d, x, s: d, lambda x0, e, s: x0),
    losses.epsilon_loss: (lambda d, x, s: (x - d) / s, lambda x0, e, s: e),
    losses.score_loss: (lambda d, x, s: (d - x) / s**2, lambda x0, e, s: -e / s),
    losses.v_loss: (
        lambda d, x, s: ((x - d) / s - s * d) / (1 + s**2).sqrt(),
        lambda x0, e, s: (e - s * x0) / (1 + s**2).sqrt(),
    ),
    losses.flow_matching_loss: (lambda d, x, s: (x - d) / s - d, lambda x0, e, s: e - x0),
    losses.edm_loss: (  # Karras et al. (2022), eq. 8
        lambda d, x, s: raw(d, x, s),
        lambda x0, e, s: raw(x0, x0 + s * e, s),
    ),
}


def raw(d, x, s):
    """``F`` of EDM's preconditioning, where the denoiser is ``d``."""
    h = (s**2 + SIGMA_DATA**2).sqrt()
    return (d - SIGMA_DATA**2 / h**2 * x) * h / (s * SIGMA_DATA)


def sliced(denoiser, x0, **options):
    """Its expectation over probes that are signs; opposite ones give the same."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=DOUBLE)
    values = [
        losses.sliced_score_loss(denoiser, x0, probes=v.expand_as(x0), **options) for v in signs
    ]
    return (values[0] + values[1]) / 2


explicit = partial(losses.explicit_score_loss, law=LAW)
SCORES = {"explicit": explicit, "implicit": losses.implicit_score_loss, "sliced": sliced}


class Nodes(NamedTuple):
    """Where a loss is evaluated, and how its values are added."""

    x0: Tensor
    noise: Tensor
    weights: Tensor
    sigma: Tensor

    def mean(self, loss, denoiser) -> Tensor:
        """Expectation of a loss."""
        return self.weights @ loss(denoiser, self.x0, sigma=self.sigma, noise=self.noise)


def nodes(sigma: float, weights=WEIGHTS, means=MEANS, variances=VARIANCES) -> Nodes:
    """For a mixture of isotropic components in two dimensions."""
    line = torch.linspace(-9, 9, 91, dtype=DOUBLE)
    z = torch.cartesian_prod(line, line)
    z = z[z.square().sum(1) < 81]
    bell = torch.exp(-z.square().sum(1) / 2)
    w = (bell / bell.sum())[:, None].expand(-1, 4) / 4
    inner = torch.tensor([*tuples((-1.0, 1.0), repeat=2)], dtype=DOUBLE)  # two points a dimension
    parts = []
    for weight, mean, variance in zip(weights, means, variances, strict=True):
        centre, total = torch.tensor(mean, dtype=DOUBLE), variance + sigma**2
        x_hat = (centre + total**0.5 * z)[:, None]
        share = variance / total
        x0 = centre + share * (x_hat - centre) + (share * sigma**2) ** 0.5 * inner
        parts.append((x0, (x_hat - x0) / sigma, weight * w))
    x0, noise, w = (
        torch.cat([v.flatten(0, 1) for v in values]) for values in zip(*parts, strict=True)
    )
    return Nodes(x0, noise, w, torch.full((len(x0),), sigma, dtype=DOUBLE))


def some(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=DOUBLE)


def smooth(x_hat, sigma):
    return torch.tanh(x_hat + 0.3) / (1 + sigma.view(-1, 1))


smooth.sigma_data = SIGMA_DATA


@pytest.mark.parametrize("loss", DENOISING, ids=lambda loss: loss.__name__)
def test_a_loss_is_the_squared_error_of_what_it_predicts(loss):
    predicted, target = DENOISING[loss]
    x0, noise, sigma = some(50, 3), some(50, 3, seed=1), some(50, seed=2).exp()
    levels = sigma[:, None]
    x_hat = x0 + levels * noise
    error = predicted(smooth(x_hat, sigma), x_hat, levels) - target(x0, noise, levels)
    found = loss(smooth, x0, sigma=sigma, noise=noise)
    torch.testing.assert_close(found, error.square().mean(1), rtol=1e-11, atol=0)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(
    "loss", [*DENOISING, *SCORES.values()], ids=[*(f.__name__ for f in DENOISING), *SCORES]
)
def test_the_exact_denoiser_is_the_minimiser(loss, sigma):
    """In random directions the first variation vanishes, and the second is that of the weight."""
    at = nodes(sigma)
    predicted, _ = DENOISING.get(loss, DENOISING[losses.score_loss])
    for seed in range(2):
        turn, shift = some(2, 2, seed=seed), some(2, seed=seed + 10)
        change = torch.zeros((), dtype=DOUBLE, requires_grad=True)

        def direction(x, turn=turn, shift=shift):
            return torch.tanh(x @ turn / 2 + shift)

        def denoiser(x, s, change=change, direction=direction):
            return LAW(x, s) + change * direction(x)

        denoiser.sigma_data = SIGMA_DATA
        value = at.mean(loss, denoiser)
        (first,) = torch.autograd.grad(value, change, create_graph=True)
        (second,) = torch.autograd.grad(first, change)
        x_hat = at.x0 + sigma * at.noise
        moved = predicted(direction(x_hat), x_hat, at.sigma[:, None]) - predicted(
            torch.zeros_like(x_hat), x_hat, at.sigma[:, None]
        )
        torch.testing.assert_close(
            second, 2 * at.weights @ moved.square().mean(1), rtol=1e-9, atol=0
        )
        assert second > 0
        assert abs(first) < 1e-10 * max(1.0, float(second))


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", SCORES)
def test_all_score_matching_has_one_gradient(name, sigma):
    """In every parameter of a network that is far from exact; and the constant is the law's."""
    at, network = nodes(sigma), Perceptron(dim=2)
    parameters = list(network.parameters())

    def gradient(loss):
        rows = torch.autograd.grad(at.mean(loss, network), parameters)
        return torch.cat([row.flatten() for row in rows])

    expected = gradient(losses.score_loss)
    assert expected.abs().max() > 1e-3 / sigma**4
    close = {"rtol": 0, "atol": 1e-9 * max(1.0, float(expected.abs().max()))}
    torch.testing.assert_close(gradient(SCORES[name]), expected, **close)
    # |s − ∇log p|² is |s|² + 2 ∇·s and E |∇log p|², which is what is left where s = 0.
    known = at.mean(explicit, network) - at.mean(explicit, lambda x, s: x.clone())
    if name != "explicit":
        torch.testing.assert_close(at.mean(SCORES[name], network), known, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.002, *SIGMAS, 80.0])
def test_edm_weighs_all_noise_levels_alike(sigma):
    """A network that returns zero has loss 1 on Gaussian data of its σ_d."""

    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros((), dtype=DOUBLE))

        def forward(self, x, c_noise):
            return self.weight * x

    denoiser = EDMDenoiser(Zero(), sigma_data=SIGMA_DATA, sigma_min=0.002, sigma_max=80.0)
    at = nodes(sigma, (1.0,), ((0.0, 0.0),), (SIGMA_DATA**2,))
    value = at.mean(losses.edm_loss, denoiser).item()
    # D − x0 of order σ is a difference of numbers of order 1, or of order 1 one of order σ.
    assert value == pytest.approx(1, abs=1e-12 * max(sigma, 1 / sigma))


def test_the_arithmetic_is_that_of_the_shipped_weights():
    """To the bit: `benchmarks/train_digits.py` trained the digits with these operations."""
    denoiser, (x0, labels) = sk.load_digits_denoiser(), sk.digits.digits_images("held_out")
    generator = torch.Generator().manual_seed(0)
    sigma = losses.sample_training_sigma(len(x0), generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    error = denoiser(x0 + sigma.view(-1, 1, 1, 1) * noise, sigma, class_labels=labels) - x0
    weight = (sigma**2 + 0.75**2) / (sigma * 0.75) ** 2
    expected = weight * error.square().flatten(1).mean(1)
    found = losses.edm_loss(denoiser, x0, sigma=sigma, noise=noise, class_labels=labels)
    assert torch.equal(found, expected)


ALL = {
    **{loss.__name__: loss for loss in DENOISING},
    "implicit_score_loss": losses.implicit_score_loss,
    "sliced_score_loss": lambda *args, noise, **options: losses.sliced_score_loss(
        *args, noise=noise, probes=torch.ones((2, 2), dtype=DOUBLE), **options
    ),
    "explicit_score_loss": explicit,
}


@pytest.mark.parametrize("loss", ALL.values(), ids=[*ALL])
def test_conditioning_arrives_and_bad_shapes_are_refused(loss):
    x0, noise, sigma = some(2, 2), some(2, 2, seed=1), torch.ones(2, dtype=DOUBLE)

    def scaled(x, s, by=1.0):
        return by * smooth(x, s)

    scaled.sigma_data = SIGMA_DATA
    one, two = (loss(scaled, x0, sigma=sigma, noise=noise, by=by) for by in (1.0, 2.0))
    assert (one != two).all()
    with pytest.raises(ValueError, match=r"sigma has shape \(\).*must be \(2,\)"):
        loss(scaled, x0, sigma=sigma[0], noise=noise)
    with pytest.raises(ValueError, match=r"noise has shape \(2, 1\), x0 has \(2, 2\)"):
        loss(scaled, x0, sigma=sigma, noise=noise[:, :1])
    column = partial(lambda x, s: x[:, :1])
    column.sigma_data = SIGMA_DATA
    with pytest.raises(ValueError, match=r"denoiser returned shape \(2, 1\)"):
        loss(column, x0, sigma=sigma, noise=noise)


@pytest.mark.parametrize(
    "changed",
    [
        {"x0": torch.ones(2, 2, dtype=torch.uint8)},
        {"sigma": torch.ones(2)},
        {"noise": torch.ones(2, 2)},
        {"sigma": 1.0},
    ],
)
@pytest.mark.parametrize("loss", [losses.x0_loss, losses.implicit_score_loss])
def test_dtypes_that_would_be_mixed_are_refused(loss, changed):
    """A denoiser's output was rounded to integers, where images were."""
    options = {"x0": some(2, 2), "sigma": torch.ones(2, dtype=DOUBLE), "noise": some(2, 2)}
    with pytest.raises(TypeError, match=r"all float32 or all float64|sigma is a float"):
        loss(smooth, **{**options, **changed})


def test_probes_have_the_shape_of_the_data():
    x0, sigma = some(2, 2), torch.ones(2, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"probes has shape \(2,\), x0 has \(2, 2\)"):
        losses.sliced_score_loss(smooth, x0, sigma=sigma, noise=x0, probes=sigma)


@pytest.mark.parametrize("learning", [True, False])
def test_implicit_and_sliced_on_images(learning):
    """A linear denoiser, whose trace is known; also without gradients, as in an evaluation."""
    x0, noise, sigma = (
        some(5, 1, 2, 3),
        some(5, 1, 2, 3, seed=1),
        torch.arange(1.0, 6, dtype=DOUBLE),
    )
    slope = torch.tensor(0.4, dtype=DOUBLE, requires_grad=True)
    levels = sigma.view(-1, 1, 1, 1)
    score = (slope - 1) * (x0 + levels * noise) / levels**2
    expected = score.square().mean((1, 2, 3)) + 2 * (slope - 1) / sigma**2
    probes = some(5, 1, 2, 3, seed=2).sign()
    options = {"sigma": sigma, "noise": noise}
    with torch.set_grad_enabled(learning):
        found = [
            losses.implicit_score_loss(lambda x, s: slope * x, x0, **options),
            losses.sliced_score_loss(lambda x, s: slope * x, x0, probes=probes, **options),
        ]
    for values in found:
        assert values.requires_grad == learning
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-14)
        if learning:
            gradients = [
                torch.autograd.grad(v.sum(), slope, retain_graph=True) for v in (values, expected)
            ]
            torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)
