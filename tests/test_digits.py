"""The digits denoiser: its preconditioning, and its quality on real held-out images."""

from __future__ import annotations

from functools import partial
from importlib.resources import files

import pytest
import torch
from torch import Tensor, nn

from sdekit.denoisers import EDMDenoiser
from sdekit.digits import digits_images, load_digits_denoiser
from sdekit.losses import edm_loss, sample_training_sigma


@pytest.fixture(scope="module")
def denoiser() -> EDMDenoiser:
    return load_digits_denoiser()


@pytest.fixture(scope="module")
def held_out() -> tuple[Tensor, Tensor]:
    return digits_images("held_out")


def gaussian_like(x: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


class Recorder(nn.Module):
    """A raw network that returns zero and keeps its input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, c_noise):
        self.x, self.c_noise = x, c_noise
        return self.weight * x


# ---------------------------------------------------------------- the data and the file


def test_the_images_are_split_once_and_scaled():
    (train, train_labels), (held, held_labels) = digits_images("train"), digits_images("held_out")
    assert train.shape == (1500, 1, 8, 8)
    assert held.shape == (297, 1, 8, 8)
    assert train.min() == -1
    assert train.max() == 1
    assert train.std() == pytest.approx(0.75, abs=0.01)
    assert train_labels.shape == (1500,)
    assert set(held_labels.tolist()) == set(range(10))
    assert torch.cdist(held.flatten(1), train.flatten(1)).min() > 0  # nothing in both splits
    with pytest.raises(ValueError, match="'test'"):
        digits_images("test")  # type: ignore[arg-type]


def test_the_weights_are_small_and_frozen(denoiser):
    assert files("sdekit").joinpath("data", "digits.safetensors").stat().st_size < 4e6
    assert not denoiser.training
    assert not any(p.requires_grad for p in denoiser.parameters())
    assert (denoiser.sigma_data, denoiser.sigma_min, denoiser.sigma_max) == (0.75, 0.002, 80.0)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 80.0])
def test_float32_and_float64_agree(denoiser, held_out, sigma):
    double = load_digits_denoiser(dtype=torch.float64)
    x = held_out[0].double() + sigma * gaussian_like(held_out[0].double())
    exact = double(x, sigma)
    assert exact.dtype == torch.float64
    assert double(x.float(), sigma).dtype == torch.float32
    assert denoiser(x, sigma).dtype == torch.float64  # the state's dtype, not the network's
    # An error of the network enters through c_out <= sigma_data only; that of a float64 state not.
    torch.testing.assert_close(denoiser(x, sigma), exact, rtol=0, atol=1e-4 * min(sigma, 1))
    torch.testing.assert_close(denoiser(x.float(), sigma).double(), exact, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- preconditioning


def test_the_network_sees_unit_variance_at_every_sigma(held_out):
    network = Recorder()
    wrapped = EDMDenoiser(network, sigma_data=0.75, sigma_min=0.002, sigma_max=80.0)
    x0 = digits_images("train")[0].double()
    for sigma in (0.002, 0.1, 0.75, 5.0, 80.0):
        x = x0 + sigma * gaussian_like(x0)
        denoised = wrapped(x, sigma)
        assert network.x.std() == pytest.approx(1, abs=0.02)
        assert network.c_noise.shape == (1500,)
        # F = 0 leaves the skip connection, which is the denoiser of N(0, sigma_data^2 I).
        torch.testing.assert_close(denoised, x * (0.75**2 / (0.75**2 + sigma**2)))


def test_the_loss_of_a_zero_network_is_one_on_its_own_gaussian():
    wrapped = EDMDenoiser(Recorder(), sigma_data=0.75, sigma_min=0.002, sigma_max=80.0)
    generator = torch.Generator().manual_seed(0)
    x0 = 0.75 * torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    sigma = sample_training_sigma(len(x0), generator=generator).double()
    assert sigma.log().mean() == pytest.approx(-1.2, abs=0.03)
    assert sigma.log().std() == pytest.approx(1.2, abs=0.03)
    loss = edm_loss(wrapped, x0, sigma=sigma, noise=gaussian_like(x0, 1)).detach()
    assert loss.shape == (20_000,)
    assert loss.mean() == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        edm_loss(wrapped, x0, sigma=sigma[:3], noise=gaussian_like(x0))


@pytest.mark.parametrize("sigma", [1e-4, 0.002, 0.01])
def test_the_denoiser_is_the_identity_as_sigma_vanishes(denoiser, held_out, sigma):
    x = held_out[0].double() + sigma * gaussian_like(held_out[0].double())
    change = (denoiser(x, sigma) - x).square().mean().sqrt()
    # |D − x̂| is σ times the estimated noise, whose RMS cannot much exceed one.
    assert change < 1.2 * sigma


def test_the_denoiser_is_the_mean_as_sigma_grows(denoiser):
    mean = digits_images("train")[0].mean(0)
    x = 80 * gaussian_like(torch.empty(500, 1, 8, 8))
    denoised = denoiser(x, 80.0)
    assert (denoised.mean(0) - mean).abs().max() < 0.15
    assert (denoised - mean).square().mean().sqrt() < 0.15  # beside the data's own 0.75


@pytest.mark.parametrize("sigma", [0.002, 0.3, 80.0])
def test_one_sigma_or_one_per_sample(denoiser, held_out, sigma):
    x = held_out[0][:16] + sigma * gaussian_like(held_out[0][:16])
    result = denoiser(x, sigma)
    assert torch.equal(result, denoiser(x, torch.tensor(sigma)))
    assert torch.equal(result, denoiser(x, torch.full((16,), sigma)))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_samples_do_not_see_each_other(held_out, dtype, atol):
    denoiser = load_digits_denoiser(dtype=dtype)
    images = held_out[0][:32].to(dtype)
    x, labels = images + gaussian_like(images), held_out[1][:32]
    sigma = torch.linspace(0.01, 3, 32, dtype=dtype)
    batch = denoiser(x, sigma, class_labels=labels)
    for i in (0, 7, 31):
        row = denoiser(x[i : i + 1], sigma[i : i + 1], class_labels=labels[i : i + 1])
        torch.testing.assert_close(row[0], batch[i], rtol=0, atol=atol)


def test_wrong_shapes_raise(denoiser):
    x = torch.zeros(4, 1, 8, 8)
    for sigma in (torch.ones(3), torch.ones(4, 1), torch.ones(1)):
        with pytest.raises(ValueError, match="sigma"):
            denoiser(x, sigma)
    with pytest.raises(ValueError, match="images"):
        denoiser(torch.zeros(4, 64), 1.0)
    with pytest.raises(ValueError, match="class_labels"):
        denoiser(x, 1.0, class_labels=torch.zeros(3, dtype=torch.long))


# ---------------------------------------------------------------- quality


def mean_square_error(denoise, x0: Tensor, sigma: float) -> float:
    return (denoise(x0 + sigma * gaussian_like(x0), sigma) - x0).square().mean().item()


def best_linear_denoiser():
    """The Gaussian denoiser `m + C (C + σ²)⁻¹ (x̂ − m)` of the train split."""
    x = digits_images("train")[0].flatten(1).double()
    mean, (spectrum, basis) = x.mean(0), torch.linalg.eigh(torch.cov(x.T))

    def denoise(x_hat, sigma):
        centred = (x_hat.flatten(1) - mean) @ basis
        return (mean + (centred * spectrum / (spectrum + sigma**2)) @ basis.T).view_as(x_hat)

    return denoise


def test_it_beats_the_best_linear_denoiser_on_images_it_never_saw(denoiser, held_out):
    x0, labels = held_out[0].double(), held_out[1]
    linear, conditional = best_linear_denoiser(), partial(denoiser, class_labels=labels)
    sigmas = (0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
    error = [mean_square_error(denoiser, x0, sigma) for sigma in sigmas]
    ratio = [e / mean_square_error(linear, x0, s) for e, s in zip(error, sigmas, strict=True)]
    assert error == sorted(error)  # the less noise, the better
    assert max(ratio[:4]) < 0.7
    assert ratio[4] < 0.8
    assert max(ratio) < 1
    for sigma, unconditional in zip(sigmas, error, strict=True):
        if sigma >= 0.5:  # once the noise hides the class, knowing it helps
            assert mean_square_error(conditional, x0, sigma) < 0.95 * unconditional


def test_it_does_not_copy_its_training_images(denoiser, held_out):
    # An ideal denoiser of the train split alone would do far better there than on new images.
    train, held = digits_images("train")[0].double(), held_out[0].double()
    for sigma in (0.3, 0.7):
        ratio = mean_square_error(denoiser, held, sigma) / mean_square_error(denoiser, train, sigma)
        assert ratio < 1.5


def test_the_label_pulls_pure_noise_toward_its_class(denoiser):
    images, labels = digits_images("train")
    means = torch.stack([images[labels == k].mean(0) for k in range(10)]).flatten(1)
    noise = 80 * gaussian_like(torch.empty(10, 1, 8, 8))
    denoised = denoiser(noise, 80.0, class_labels=torch.arange(10)).flatten(1)
    assert torch.equal(torch.cdist(denoised, means).argmin(1), torch.arange(10))
    no_label = denoiser(noise, 80.0, class_labels=torch.full((10,), 10))
    assert torch.equal(no_label, denoiser(noise, 80.0))
