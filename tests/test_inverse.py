"""Inverse problems against the exact posterior, which for a mixture is a mixture."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import DOUBLE, EDM, normal

import sdekit as sk
from sdekit.denoisers import model_of
from sdekit.distributions import Gaussian, GaussianMixture, posterior
from sdekit.inverse import DPS, LinearObservation, MaskedObservation, PiGDM, Replaced

MIXTURE = GaussianMixture.random(5, 4, seed=0)
MATRIX, NOISE = normal(2, 4, seed=1), 0.3
B = 6
X, Y = normal(B, 4), normal(B, 2, seed=2)
MASK = torch.tensor([True, False, True, False])
SELECT = torch.eye(4, dtype=DOUBLE)[MASK]
LEVELS = torch.linspace(0.1, 4, B, dtype=DOUBLE)


def isotropic(variance=0.49):
    return Gaussian([0.3, -0.2, 0.1, 0.4], variance)


def likelihood(x, matrix, y, noise):
    return -0.5 * ((y - x @ matrix.mT) / noise).square().sum(1)


# The exact posterior.


@pytest.mark.parametrize("noise", [1e-3, 0.3, 30.0])
def test_the_posterior_is_prior_times_likelihood(noise):
    """Bayes' rule for densities, at states where the posterior lives, up to one constant."""
    for prior in (MIXTURE, isotropic(), GaussianMixture([0.5, 0.5], MIXTURE.means[:2], 0.2)):
        law = posterior(prior, MATRIX, Y[0], noise)
        x = law.sample(20, seed=0)
        constant = law.log_prob(x) - prior.log_prob(x) - likelihood(x, MATRIX, Y[0], noise)
        assert (constant - constant.mean()).abs().max() < 1e-9 / min(noise, 1)


def test_the_posterior_of_singular_data_stays_on_them():
    """A mixture of points keeps its points; their weights follow Bayes' rule."""
    points = sk.Empirical(normal(7, 4, seed=3))
    law = posterior(points, MATRIX, Y[0], 0.5)
    weights = likelihood(points.means, MATRIX, Y[0], 0.5).softmax(0)
    assert torch.equal(law.means, points.means)
    assert (law.weights - weights).abs().max() < 1e-14


def test_the_posterior_is_a_denoiser_of_the_conditional_law():
    """``D_c = D + σ² ∇ log p_σ(y | x̂)``, with the joint law of ``(x, y)`` as the reference."""
    sigma = 0.8
    joint = MIXTURE.means @ MATRIX.mT
    x = X.clone().requires_grad_()
    log_p = []
    for k in range(5):
        one = GaussianMixture(torch.eye(5, dtype=DOUBLE)[k], MIXTURE.means, covariances())
        mean, cov = one.moments()
        precision = torch.linalg.inv(cov + sigma**2 * torch.eye(4, dtype=DOUBLE))
        gain = MATRIX @ cov @ precision
        spread = MATRIX @ cov @ MATRIX.mT - gain @ cov @ MATRIX.mT
        spread = spread + NOISE**2 * torch.eye(2, dtype=DOUBLE)
        residual = Y[0] - joint[k] - (x - mean) @ gain.mT
        square = (residual @ torch.linalg.inv(spread) * residual).sum(1)
        log_p.append(
            MIXTURE.weights[k].log()
            + one.log_prob(x, sigma)
            - 0.5 * (square + torch.logdet(spread))
        )
    log_y = torch.stack(log_p, 1).logsumexp(1) - MIXTURE.log_prob(x, sigma)
    (gradient,) = torch.autograd.grad(log_y.sum(), x)
    exact = posterior(MIXTURE, MATRIX, Y[0], NOISE).denoise(X, sigma)
    assert (MIXTURE.denoise(X, sigma) + sigma**2 * gradient - exact).abs().max() < 1e-12


def covariances():
    """Covariances of the components, from the factors that the mixture keeps."""
    p = MIXTURE._parameters(torch.device("cpu"), DOUBLE)
    q = p.basis.reshape(4, 5, 4).transpose(0, 1)
    return (q * p.variances[:, None]) @ q.mT


# Approximate likelihoods.


def test_pseudo_inverse_guidance_is_exact_for_isotropic_gaussians():
    """There its Gaussian is the likelihood: the posterior's denoiser, at every level, y and A."""
    prior = isotropic()
    guided = PiGDM(prior, LinearObservation(MATRIX, Y, NOISE))(X, LEVELS)
    masked = PiGDM(prior, MaskedObservation(MASK, embedded(Y), NOISE))(X, LEVELS)
    for i in range(B):
        for matrix, found in ((MATRIX, guided), (SELECT, masked)):
            exact = posterior(prior, matrix, Y[i], NOISE).denoise(X[i : i + 1], float(LEVELS[i]))
            assert (found[i] - exact[0]).abs().max() < 1e-13


def embedded(y):
    """Values at the mask's components, with NaN where nothing is read."""
    full = torch.full((len(y), 4), math.nan, dtype=DOUBLE)
    full[:, MASK] = y
    return full


def by_difference(log_prob):
    """``σ²``-free gradient of a function of ``D(x)``, by central differences."""
    steps = 1e-6 * torch.eye(4, dtype=DOUBLE)
    return torch.stack([(log_prob(X + h) - log_prob(X - h)) / 2e-6 for h in steps], 1)


@pytest.mark.parametrize("scale", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("sigma_data", [None, 1.3, math.inf])
def test_pseudo_inverse_guidance_by_its_definition(sigma_data, scale):
    sigma = 0.6
    sd = MIXTURE.sigma_data if sigma_data is None else sigma_data
    v = sigma**2 if sd == math.inf else sigma**2 * sd**2 / (sigma**2 + sd**2)
    spread = torch.linalg.inv(v * MATRIX @ MATRIX.mT + NOISE**2 * torch.eye(2, dtype=DOUBLE))

    def log_prob(x):
        residual = Y - MIXTURE(x, sigma) @ MATRIX.mT
        return -0.5 * (residual @ spread * residual).sum(1)

    guided = PiGDM(MIXTURE, LinearObservation(MATRIX, Y, NOISE), sigma_data=sigma_data, scale=scale)
    expected = MIXTURE(X, sigma) + scale * sigma**2 * by_difference(log_prob)
    assert (guided(X, sigma) - expected).abs().max() < 2e-8


def test_diffusion_posterior_sampling_by_its_definition():
    sigma = 0.6

    def residual(x):
        return Y - MIXTURE(x, sigma) @ MATRIX.mT

    gradient = by_difference(lambda x: -0.5 * (residual(x) / NOISE).square().sum(1))
    found = DPS(MIXTURE, LinearObservation(MATRIX, Y, NOISE), 0.4)(X, sigma)
    assert (found - MIXTURE(X, sigma) - 0.4 * sigma**2 * gradient).abs().max() < 1e-7


@pytest.mark.parametrize("masked", [False, True])
def test_diffusion_posterior_sampling_is_its_recursion(masked):
    """An Euler step, and then ``ζ ∇‖y − A D‖`` taken off the state."""
    sigmas, zeta = sk.grids.log(8, 10.0, 0.05), 0.2
    matrix = SELECT if masked else MATRIX
    observation = (
        MaskedObservation(MASK, embedded(Y), NOISE)
        if masked
        else LinearObservation(MATRIX, Y, NOISE)
    )
    x = start = 10 * X
    for high, low in itertools.pairwise(sigmas):
        leaf = x.clone().requires_grad_()
        denoised = MIXTURE(leaf, float(high))
        misfit = (Y - denoised @ matrix.mT).norm(dim=1).sum()
        (gradient,) = torch.autograd.grad(misfit, leaf)
        x = denoised.detach() + low / high * (x - denoised.detach()) - zeta * gradient
    guided = DPS(MIXTURE, observation, zeta, sigmas=sigmas)
    with torch.no_grad():
        solved = sk.solve(EDM.probability_flow(guided), start, method="edm_euler", sigmas=sigmas)
    assert (solved.x - x).abs().max() < 1e-12


def test_what_fits_exactly_has_no_gradient():
    """``∇‖y − A D‖`` at ``y = A D`` is not defined; nothing is added there, and nothing is NaN."""
    y = MIXTURE(X, 0.5) @ MATRIX.mT
    guided = DPS(MIXTURE, LinearObservation(MATRIX, y, NOISE), 1.0, sigmas=[0.5, 0.1])
    assert guided(X, 0.5).isfinite().all()


def test_gradients_go_through_guidance():
    x = X[:2].clone().requires_grad_()
    for guided in (
        PiGDM(MIXTURE, LinearObservation(MATRIX, Y[:2], NOISE)),
        DPS(MIXTURE, MaskedObservation(MASK, embedded(Y)[:2].nan_to_num(), NOISE)),
    ):
        assert torch.autograd.gradcheck(lambda x, guided=guided: guided(x, 0.7), x)


# Replacement.


def test_replaced_components_follow_the_noised_observation():
    """In a flow their states are ``y + σ ε`` with the ``ε`` of the start.

    To round-off with methods that are exact for constant ``D``, and with others to their error.
    """
    start = 20 * X
    epsilon = (start[:, MASK] - Y) / 20
    replaced = Replaced(MIXTURE, MASK, embedded(Y))
    for method, bound in (("edm_euler", 1e-12), ("dpmpp_2m", 1e-12), ("bayesian_adams", 5e-3)):
        solved = sk.solve(
            EDM.probability_flow(replaced), start, method=method, sigmas=sk.grids.log(9, 20, 0.1)
        )
        assert (solved.x[:, MASK] - Y - 0.1 * epsilon).abs().max() < bound


def test_replacement_samples_another_law_than_the_posterior():
    """For two correlated normals the law it converges to is known, and narrower in its slope.

    The free component obeys ``dz/dσ = (z − a (y + σ ε) − b z)/σ`` with the regression ``(a, b)`` of
    ``x_2`` on the noisy pair: its mean is ``y`` times the solution of a linear equation in ``σ``.
    """
    rho, y = 0.8, 1.0
    law = Gaussian([0.0, 0.0], [[1, rho], [rho, 1]])
    mask = torch.tensor([True, False])
    replaced = Replaced(law, mask, torch.tensor([y, 0.0], dtype=DOUBLE))
    # The mean over ε, from ε and −ε; independent of the state of the free component.
    start = torch.tensor([[40.0, 0.0], [-40.0, 0.0]], dtype=DOUBLE) + torch.tensor([y, 0.0])
    mean = (
        sk.solve(EDM.probability_flow(replaced), start, rtol=1e-9, sigmas=[40.0, 1e-3])
        .x[:, 1]
        .mean()
    )
    levels = np.exp(np.linspace(np.log(40.0), np.log(1e-3), 20001))
    z = 0.0
    for high, low in itertools.pairwise(levels):
        s = np.sqrt(high * low)
        a, b = np.linalg.solve([[1 + s**2, rho], [rho, 1 + s**2]], [rho, 1])
        rate = np.log(low / high)
        # dz/d log σ = (1 − b) z − a y, one exact step with the coefficients of the middle
        limit = a * y / (1 - b)
        z = limit + (z - limit) * np.exp((1 - b) * rate)
    assert float(mean) == pytest.approx(z, abs=1e-4)
    assert abs(z - rho * y) > 0.05  # the posterior's mean


# Batches.


def test_samples_that_leave_the_batch_take_their_observation_along():
    for guided in (
        PiGDM(MIXTURE, LinearObservation(MATRIX, Y, NOISE)),
        DPS(MIXTURE, MaskedObservation(MASK, embedded(Y), NOISE), 0.5),
        Replaced(MIXTURE, MASK, embedded(Y)),
    ):
        samples = np.array([4, 1])
        part = model_of(guided, samples)
        assert (part(X[samples], 0.5) - guided(X, 0.5)[samples]).abs().max() < 1e-13
        with torch.no_grad():
            options = {"rtol": 1e-5, "sigmas": [5.0, 0.1]}
            together = sk.solve(EDM.probability_flow(guided), 5 * X, **options).x
            one = sk.solve(
                EDM.probability_flow(model_of(guided, np.array([2]))), 5 * X[2:3], **options
            ).x
        assert (together[2] - one[0]).abs().max() < 1e-9


def test_conditioning_reaches_the_inner_denoiser():
    """Also what an outer wrapper says of each sample."""
    shift = normal(B, 1, seed=4)
    observation = LinearObservation(MATRIX, Y, NOISE)
    told = PiGDM(lambda x, s, shift: MIXTURE(x - shift, s), observation, sigma_data=1.0)
    fixed = PiGDM(lambda x, s: MIXTURE(x - shift, s), observation, sigma_data=1.0)
    assert torch.equal(sk.Conditioned(told, shift=shift)(X, 0.5), fixed(X, 0.5))


def test_one_observation_for_all():
    guided = PiGDM(MIXTURE, LinearObservation(MATRIX, Y[0], NOISE))
    each = PiGDM(MIXTURE, LinearObservation(MATRIX, Y[:1].expand(B, -1), NOISE))
    assert torch.equal(guided(X, 0.5), each(X, 0.5))
    alone = model_of(guided, np.array([3]))(X[3:4], 0.5)
    assert (alone - guided(X, 0.5)[3:4]).abs().max() < 1e-13


def test_images_in_single_precision_under_inference_mode():
    network = sk.load_digits_denoiser()
    x = normal(2, 1, 8, 8, dtype=torch.float32)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    y = torch.zeros(1, 8, 8)
    matrix = torch.eye(64)[:32]
    with torch.inference_mode():
        level = torch.tensor(1.0)
        masked = PiGDM(network, MaskedObservation(mask, y, 0.1))(x * 1.0, level)
        linear = PiGDM(network, LinearObservation(matrix, torch.zeros(32), 0.1))(x * 1.0, level)
    assert (masked - linear).abs().max() < 1e-5
    assert (masked - network(x, 1.0)).abs().max() > 0.1


# Refusals.

FULL = embedded(Y)
BAD = {
    "no mask": (lambda: MaskedObservation(MASK.double(), FULL, 0.1), TypeError, "boolean"),
    "empty mask": (lambda: Replaced(MIXTURE, ~MASK & MASK, FULL), ValueError, "nowhere true"),
    "y of the mask": (lambda: MaskedObservation(MASK, Y, 0.1), ValueError, r"\(6, 2\)"),
    "integer y": (lambda: MaskedObservation(MASK, FULL.int(), 0.1), TypeError, "float tensor"),
    "noise": (lambda: MaskedObservation(MASK, FULL, 0.0), ValueError, "must be positive"),
    "negative noise": (lambda: LinearObservation(MATRIX, Y, -1.0), ValueError, "positive"),
    "noise of a kind": (lambda: LinearObservation(MATRIX, Y, "1"), TypeError, "must be a number"),
    "y of the matrix": (
        lambda: LinearObservation(MATRIX, X, 0.1),
        ValueError,
        r"must be \(2,\) or \(B, 2\)",
    ),
    "no matrix": (lambda: LinearObservation(MATRIX[0], Y, 0.1), ValueError, r"\(m, d\)"),
    "events": (
        lambda: PiGDM(MIXTURE, LinearObservation(MATRIX[:, :3], Y, 0.1))(X, 1.0),
        ValueError,
        "3 components",
    ),
    "masked events": (
        lambda: Replaced(MIXTURE, MASK, FULL)(X[:, :3], 1.0),
        ValueError,
        "events of the state",
    ),
    "batch": (
        lambda: PiGDM(MIXTURE, LinearObservation(MATRIX, Y, 0.1))(X[:4], 1.0),
        ValueError,
        "y is for 6 samples, the batch has 4",
    ),
    "replaced batch": (
        lambda: Replaced(MIXTURE, MASK, FULL)(X[:4], 1.0),
        ValueError,
        "y is for 6 samples",
    ),
    "no observation": (lambda: PiGDM(MIXTURE, Y), TypeError, "LinearObservation"),
    "unknown scale": (
        lambda: PiGDM(lambda x, s: x, LinearObservation(MATRIX, Y, 0.1)),
        ValueError,
        "give sigma_data=",
    ),
    "sigma_data": (
        lambda: PiGDM(MIXTURE, LinearObservation(MATRIX, Y, 0.1), sigma_data=0.0),
        ValueError,
        "must be positive",
    ),
    "scale": (
        lambda: DPS(MIXTURE, LinearObservation(MATRIX, Y, 0.1), -1.0),
        ValueError,
        "not negative",
    ),
    "grid": (
        lambda: DPS(MIXTURE, LinearObservation(MATRIX, Y, 0.1), sigmas=[1.0]),
        ValueError,
        "strictly decreasing",
    ),
    "posterior's matrix": (lambda: posterior(MIXTURE, MATRIX.mT, Y[0], 1.0), ValueError, "matrix"),
    "posterior's y": (lambda: posterior(MIXTURE, MATRIX, Y, 1.0), ValueError, r"y must be \(2,\)"),
    "posterior's noise": (lambda: posterior(MIXTURE, MATRIX, Y[0], 0.0), ValueError, "positive"),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
