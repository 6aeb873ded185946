"""Closed-form distributions against autograd, quadrature, scipy and one another."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.stats import multivariate_normal, norm

import sdekit.distributions.base as base
from sdekit.distributions import Empirical, Gaussian, GaussianMixture, Product

F64 = torch.float64
KINDS = ("isotropic", "diagonal", "full")
SIGMAS = st.one_of(st.just(0.0), st.floats(-3, 4).map(lambda e: 10.0**e))
quick = settings(max_examples=60, deadline=None, derandomize=True)


def make(kind, components, dim, seed):
    full = GaussianMixture.random(components, dim, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    shape = (components,) if kind == "isotropic" else (components, dim)
    if kind == "full":
        return full
    variances = 0.05 + torch.rand(shape, generator=rng, dtype=F64)
    return GaussianMixture(full.weights, full.means, variances)


@st.composite
def laws(draw, dims=(1, 2, 3, 4)):
    kind = draw(st.sampled_from((*KINDS, "product")))
    components, dim = draw(st.integers(1, 4)), draw(st.sampled_from(dims))
    seed = draw(st.integers(0, 2**20))
    if kind == "product":
        return Product.random(dim, components, seed=seed)
    return make(kind, components, dim, seed)


def points(law, sigma, n=6, seed=0):
    """Typical states, and some twice as far out."""
    x = law.sample(n, sigma, seed=seed)
    return torch.cat([x, 2 * x])


def close(actual, expected, tol, scale=1.0):
    error = (actual - expected).abs().max().item()
    assert error <= tol * scale, f"error {error:.3g} exceeds {tol:.3g} * {scale:.3g}"


def jacobian(function, x):
    return torch.func.vmap(torch.func.jacrev(lambda row: function(row[None])[0]))(x)


def as_mixture(product):
    """The mixture of all combinations of components: the same law as a 2-D product."""
    first, second = product.marginals
    pairs = [(i, j) for i in range(len(first.weights)) for j in range(len(second.weights))]
    weights = torch.stack([first.weights[i] * second.weights[j] for i, j in pairs])
    means = torch.stack([torch.cat([first.means[i], second.means[j]]) for i, j in pairs])
    variances = torch.stack(
        [torch.stack([first._variances[i, 0], second._variances[j, 0]]) for i, j in pairs]
    )
    r = product.rotation
    return GaussianMixture(weights, means @ r.T, r @ torch.diag_embed(variances) @ r.T)


# ------------------------------------------------------------------------- identities


@quick
@given(laws(), SIGMAS)
def test_score_is_gradient_of_log_prob(law, sigma):
    x = points(law, sigma).requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(x, sigma).sum(), x)
    close(law.score(x, sigma), gradient, 1e-12, gradient.abs().max().item())


@quick
@given(laws(), SIGMAS)
def test_jacobian_and_divergence_of_score(law, sigma):
    x = points(law, sigma)
    hessian = jacobian(lambda row: law.score(row, sigma), x)
    scale = hessian.abs().max().item() + law.score(x, sigma).square().max().item()
    close(law.score_jacobian(x, sigma), hessian, 1e-12, scale)
    trace = hessian.diagonal(dim1=1, dim2=2).sum(-1)
    close(law.score_divergence(x, sigma), trace, 1e-11, scale)


@quick
@given(laws(), st.floats(0.05, 20))
def test_tweedie(law, sigma):
    x = points(law, sigma)
    close(law(x, sigma), x + sigma**2 * law.score(x, sigma), 1e-12, x.abs().max().item() + 1)


@quick
@given(laws(), st.floats(-2, 4).map(lambda e: 10.0**e))
def test_posterior_cov_is_slope_of_denoiser(law, sigma):
    x = points(law, sigma)
    slope = jacobian(lambda row: law(row, sigma), x)
    cov = law.posterior_cov(x, sigma)
    # The slope times sigma^2 amplifies the rounding of D; covariances are of order one.
    close(cov, sigma**2 * slope, 1e-11, 10.0)
    assert torch.linalg.eigvalsh(cov).min() > 0
    close(cov, cov.mT, 1e-14)


@quick
@given(laws(), SIGMAS)
def test_denoise_and_score_agree_with_each_alone(law, sigma):
    x = points(law, sigma)
    denoised, score = law.denoise_and_score(x, sigma)
    close(denoised, law(x, sigma), 1e-14, x.abs().max().item())
    close(denoised, law.denoise(x, sigma), 1e-14, x.abs().max().item())
    close(score, law.score(x, sigma), 1e-14, score.abs().max().item())


@quick
@given(laws(), SIGMAS)
def test_float32_agrees_with_float64(law, sigma):
    x32 = points(law, sigma).float()
    x = x32.double()  # both see the same state: only the arithmetic differs
    eps = torch.finfo(torch.float32).eps
    denoised, score = law.denoise_and_score(x32, sigma)
    exact_denoised, exact_score = law.denoise_and_score(x, sigma)
    exact_log_prob = law.log_prob(x, sigma)
    assert denoised.dtype == score.dtype == torch.float32
    # Measured over 800 laws: 48, 38 and 3 eps.
    scale = max(law.sigma_data, exact_denoised.abs().max().item())
    close(denoised.double(), exact_denoised, 200 * eps, scale)
    close(score.double(), exact_score, 200 * eps, exact_score.abs().max().item())
    log_prob = law.log_prob(x32, sigma).double()
    close(log_prob, exact_log_prob, 20 * eps, exact_log_prob.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_and_score_against_scipy(kind):
    law = make(kind, 3, 2, seed=5)
    full = GaussianMixture(
        law.weights, law.means, torch.stack([component_cov(law, k) for k in range(3)])
    )
    for sigma in (0.0, 0.3, 7.0, 1e4):
        x = points(law, sigma, 20)
        density = sum(
            float(law.weights[k])
            * multivariate_normal(
                law.means[k].numpy(), component_cov(law, k).numpy() + sigma**2 * np.eye(2)
            ).pdf(x.numpy())
            for k in range(3)
        )
        keep = density > 1e-290
        close(law.log_prob(x, sigma)[keep], torch.from_numpy(np.log(density[keep])), 1e-11)
        close(full.score(x, sigma), law.score(x, sigma), 1e-12, 10.0)
        close(full.posterior_cov(x, sigma), law.posterior_cov(x, sigma), 1e-11)
        close(full.score_jacobian(x, sigma), law.score_jacobian(x, sigma), 1e-11, 30.0)


def component_cov(law, k):
    if law._bases is None:
        return torch.diag(law._variances[k].expand(law.dim))
    return law._bases[k] @ torch.diag(law._variances[k]) @ law._bases[k].T


def test_log_prob_integrates_to_one():
    law, grid = make("full", 3, 2, seed=2), torch.linspace(-9, 9, 601, dtype=F64)
    x = torch.cartesian_prod(grid, grid)
    for sigma in (0.2, 1.0):
        mass = law.log_prob(x, sigma).exp().sum() * (grid[1] - grid[0]) ** 2
        assert abs(mass.item() - 1) < 1e-10


# ------------------------------------------------------------------------- the ends


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("tensor", [False, True])
def test_both_ends_of_sigma(dtype, tensor):
    def at(sigma):
        return torch.tensor(sigma, dtype=dtype) if tensor else sigma

    eps = torch.finfo(dtype).eps
    data = [make(kind, 3, 2, seed=1) for kind in KINDS] + [Product.random(2, 3, seed=1)]
    for law in [*data, Empirical(data[0].sample(50, seed=1))]:
        noise = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype)
        mean, cov = law.moments()
        close(law(noise, at(math.inf)), mean.to(dtype), 10 * eps)
        close(law.posterior_cov(noise, at(math.inf)), cov.to(dtype), 30 * eps)
        close(law.denoise_and_score(noise, at(math.inf))[1], torch.zeros_like(noise), 0)
        # The limit is approached: D(sigma eps, sigma) = mean + O(1 / sigma).
        close(law(1e4 * noise, at(1e4)), mean.to(dtype), 1e-3)
    for law in data:
        x = law.sample(9, seed=3, dtype=dtype)
        close(law(x, at(0.0)), x, 30 * eps)
        close(law.posterior_cov(x, at(0.0)), torch.zeros(()), 30 * eps)
        assert law.score(x, at(0.0)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_empirical_denoiser(dtype):
    data = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    law = Empirical(data)
    x = law.sample(30, 0.5, seed=1).to(dtype)
    nearest = data[torch.cdist(x.double(), data).argmin(1)]
    close(law(x, 0.0), nearest.to(dtype), 0)
    close(law(1e3 * x, 0.0), data[torch.cdist(1e3 * x.double(), data).argmin(1)].to(dtype), 0)
    close(law(x, torch.zeros(30)), nearest.to(dtype), 0)
    weights = (-torch.cdist(x.double(), data).square() / (2 * 0.5**2)).softmax(-1)
    close(law(x, 0.5).double(), weights @ data, 50 * torch.finfo(dtype).eps)
    close(law(data.to(dtype), 0.0), data.to(dtype), 0)


def test_singular_gaussian_at_positive_sigma():
    direction = torch.tensor([[0.6, 0.8]], dtype=F64)
    law = Gaussian([1.0, 2.0], direction.T @ direction)
    assert law._singular
    x = law.sample(5, 0.3, seed=0)
    exact = torch.linalg.solve(
        direction.T @ direction + 0.09 * torch.eye(2, dtype=F64), (law.means - x).T
    ).T
    close(law.score(x, 0.3), exact, 1e-12)
    projection = law.means + (x - law.means) @ direction.T @ direction
    close(law(x, 0.0), projection, 1e-14)


def test_zero_weights_are_allowed():
    x = torch.tensor([[0.5], [9.0]], dtype=F64)
    law, one = GaussianMixture([1.0, 0.0], [[0.0], [5.0]], [1.0, 2.0]), Gaussian([0.0], 1.0)
    for sigma in (0.0, 2.0):
        close(law.score(x, sigma), one.score(x, sigma), 1e-15)
        close(law.log_prob(x, sigma), one.log_prob(x, sigma), 1e-14)
        close(law.flow(x, 2.0, sigma), one.flow(x, 2.0, sigma), 1e-13)


# ------------------------------------------------------------------------- samples


@pytest.mark.parametrize("sigma", [0.0, 0.7])
@pytest.mark.parametrize(
    "law",
    [*(make(kind, 3, 2, seed=4) for kind in KINDS), Product.random(2, 3, seed=4),
     Empirical(make("full", 3, 2, seed=4).sample(7, seed=0))],
    ids=[*KINDS, "product", "empirical"],
)  # fmt: skip
def test_samples_have_the_exact_law(law, sigma):
    n = 200_000
    x = law.sample(n, sigma, seed=11)
    mean, cov = law.moments(sigma)
    # About 20 numbers per law, ten laws: |z| < 5 fails by chance once in 10^4 runs of the suite.
    assert ((x.mean(0) - mean) / (x.std(0) / n**0.5)).abs().max() < 5
    offset = x - mean
    products = (offset[:, :, None] * offset[:, None]).flatten(1)
    error = products.mean(0) - cov.flatten()
    assert (error / (products.std(0) / n**0.5)).abs().max() < 5
    k = torch.tensor([[0.5, 0.0], [1.0, -1.0], [2.0, 0.3], [0.1, 3.0]], dtype=F64)
    phase = x @ k.T
    exact = law.characteristic_function(k, sigma)
    for wave, value in ((phase.cos(), exact.real), (phase.sin(), exact.imag)):
        assert ((wave.mean(0) - value) / (wave.std(0) / n**0.5)).abs().max() < 5


def test_sampling_is_reproducible():
    law = make("full", 3, 2, seed=0)
    assert torch.equal(law.sample(5, seed=3), law.sample(5, seed=3))
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(law.sample(5, seed=3), law.sample(5, generator=generator))
    assert not torch.equal(law.sample(5), law.sample(5))
    assert law.sample(0, seed=0).shape == (0, 2)
    assert law(law.sample(0, seed=0), 1.0).shape == (0, 2)


@quick
@given(laws(), st.floats(0, 3))
def test_characteristic_function_gives_the_moments(law, sigma):
    mean, cov = law.moments(sigma)

    def log_cf(k):
        value = law.characteristic_function(k[None], sigma)[0]
        return torch.stack([value.abs().log(), value.angle()])

    zero = torch.zeros(law.dim, dtype=F64)
    close(law.characteristic_function(zero[None]).real, torch.ones(1, dtype=F64), 1e-14)
    close(torch.autograd.functional.jacobian(log_cf, zero)[1], mean, 1e-12)
    hessian = torch.autograd.functional.hessian(lambda k: log_cf(k)[0], zero)
    close(hessian, -cov, 1e-11, 10.0)


def test_random_laws_have_the_stated_scale():
    for law in (GaussianMixture.random(20, 8, seed=0), Product.random(8, 5, seed=0)):
        assert 0.5 < law.sigma_data < 1.6
        _, cov = law.moments()
        assert law.sigma_data == pytest.approx(math.sqrt(cov.trace().item() / 8))


# ------------------------------------------------------------------------- flows


def flows():
    return [
        Gaussian([1.0, -2.0], [[1.0, 0.3], [0.3, 0.2]]),
        Gaussian([1.0, -2.0], [0.5, 2.0]),
        Gaussian([1.0, -2.0], 0.3),
        Product.random(2, 3, seed=1),
        GaussianMixture.random(3, 1, seed=1),
    ]


@pytest.mark.parametrize("law", flows())
@pytest.mark.parametrize("sigmas", [(3.0, 0.7, 0.1), (0.0, 5.0, 80.0), (80.0, 1.0, 0.0)])
def test_flow_is_a_group(law, sigmas):
    a, b, c = sigmas
    x = law.sample(50, a, seed=0)
    end = law.flow(x, a, c)
    close(law.flow(law.flow(x, a, b), b, c), end, 1e-12, 1 + end.abs().max().item())
    close(law.flow(end, c, a), x, 1e-10, 1 + x.abs().max().item())
    close(law.flow(x, a, a), x, 1e-14, 1 + x.abs().max().item())


@pytest.mark.parametrize("law", flows())
def test_flow_against_dop853(law):
    x = law.sample(8, 4.0, seed=1)
    d = law.dim

    def rhs(sigma, flat):
        state = torch.from_numpy(flat).reshape(-1, d)
        return ((state - law(state, sigma)) / sigma).numpy().ravel()

    for target in (0.05, 30.0):
        solution = solve_ivp(
            rhs, (4.0, target), x.numpy().ravel(), "DOP853", rtol=1e-12, atol=1e-13
        )
        exact = torch.from_numpy(solution.y[:, -1]).reshape(-1, d)
        close(law.flow(x, 4.0, target), exact, 1e-9, 1 + exact.abs().max().item())


@pytest.mark.parametrize("sigmas", [(0.0, 0.5), (0.5, 0.0), (0.0, 30.0), (30.0, 0.1)])
def test_flow_of_far_tails(sigmas):
    start, end = sigmas
    law = GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], [0.1, 1.0])

    def log_sf(x, sigma):
        parts = [
            math.log(w) + norm.logsf(x, m, math.sqrt(v + sigma**2))
            for w, m, v in ((0.3, -1.0, 0.1), (0.7, 1.0, 1.0))
        ]
        return np.logaddexp(*parts)

    x = torch.tensor([[5.0], [60.0], [200.0], [2000.0]], dtype=F64)
    y = law.flow(x, start, end)
    # Survival down to exp(-2e6): its logarithm keeps its digits, and so does the flow.
    np.testing.assert_allclose(log_sf(y.numpy(), end), log_sf(x.numpy(), start), rtol=1e-13)
    close(law.flow(y, end, start) / x, torch.ones(4, 1, dtype=F64), 1e-13)
    mirrored = GaussianMixture([0.3, 0.7], [[1.0], [-1.0]], [0.1, 1.0])
    close(mirrored.flow(-x, start, end) / -y, torch.ones(4, 1, dtype=F64), 1e-14)


@pytest.mark.parametrize("law", flows())
def test_flow_is_differentiable(law):
    x = law.sample(5, 2.0, seed=2).requires_grad_()
    slopes = torch.autograd.functional.jacobian(lambda x: law.flow(x, 2.0, 0.3).sum(0), x)
    log_det = torch.linalg.slogdet(slopes.permute(1, 0, 2)).logabsdet
    # Change of variables: log p_a(x) = log p_b(flow(x)) + log det.
    pushed = law.log_prob(law.flow(x, 2.0, 0.3), 0.3) + log_det
    close(pushed, law.log_prob(x, 2.0), 1e-10)
    if isinstance(law, Gaussian):
        close(law.flow_log_det(2.0, 0.3), log_det, 1e-12)
        per_sample = law.flow_log_det(torch.tensor([2.0, 0.3], dtype=F64), 0.3)
        close(
            per_sample, torch.stack([law.flow_log_det(2.0, 0.3), torch.zeros((), dtype=F64)]), 1e-14
        )


def test_product_equals_the_mixture_of_combinations():
    product = Product.random(2, 3, seed=9)
    mixture = as_mixture(product)
    for sigma in (0.0, 0.1, 2.0, 1e3):
        x = points(mixture, sigma, 20)
        close(product.log_prob(x, sigma), mixture.log_prob(x, sigma), 1e-11)
        close(product.score(x, sigma), mixture.score(x, sigma), 1e-10)
        close(product(x, sigma), mixture(x, sigma), 1e-12, 1 + x.abs().max().item())
        close(product.score_jacobian(x, sigma), mixture.score_jacobian(x, sigma), 1e-9)
        close(product.posterior_cov(x, sigma), mixture.posterior_cov(x, sigma), 1e-11)
    for ours, theirs in zip(product.moments(0.5), mixture.moments(0.5), strict=True):
        close(ours, theirs, 1e-13)


def test_product_pads_marginals_of_different_sizes():
    one, two = GaussianMixture([1.0], [[0.5]], 0.2), GaussianMixture.random(4, 1, seed=0)
    product, x = Product([one, two]), torch.randn(6, 2, dtype=F64)
    expected = one.log_prob(x[:, :1], 0.4) + two.log_prob(x[:, 1:], 0.4)
    close(product.log_prob(x, 0.4), expected, 1e-13)
    expected = torch.cat([one.flow(x[:, :1], 0.4, 2.0), two.flow(x[:, 1:], 0.4, 2.0)], 1)
    close(product.flow(x, 0.4, 2.0), expected, 1e-13)


# ------------------------------------------------------------------------- reverse SDEs


@quick
@given(st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99),
       st.floats(0.05, 20), st.floats(0, 0.99))  # fmt: skip
def test_reverse_transition_moments(kind, components, dim, seed, sigma, fraction):
    law, sigma_to = make(kind, components, dim, seed), fraction * sigma
    x, h = points(law, sigma), sigma**2 - sigma_to**2
    step = law.reverse_transition(x, sigma, sigma_to)
    close(step.mean(), x + h * law.score(x, sigma), 1e-12, 1 + x.abs().max().item())
    cov = h * torch.eye(dim, dtype=F64) + h**2 * law.score_jacobian(x, sigma)
    close(step.cov(), cov, 1e-12, 10 * (1 + h))


def test_reverse_transition_law():
    law = make("full", 3, 2, seed=3)
    x = law.sample(4, 1.5, seed=0)
    n = 100_000
    for i, row in enumerate(x):
        step = law.reverse_transition(row.expand(n, 2), 1.5, 0.4)
        y = step.sample(seed=i)
        mean, cov = step.mean()[0], step.cov()[0]
        assert ((y.mean(0) - mean) / (y.std(0) / n**0.5)).abs().max() < 5
        offset = y - mean
        products = (offset[:, :, None] * offset[:, None]).flatten(1)
        z = (products.mean(0) - cov.flatten()) / (products.std(0) / n**0.5)
        assert z.abs().max() < 5
    # Bayes: p(y | x) p_sigma(x) = p_sigma'(y) N(x; y, h I).
    y = law.reverse_transition(x, 1.5, 0.4).sample(seed=1)
    h = 1.5**2 - 0.4**2
    kernel = -(x - y).square().sum(-1) / (2 * h) - math.log(2 * math.pi * h)
    bayes = law.log_prob(y, 0.4) + kernel - law.log_prob(x, 1.5)
    close(law.reverse_transition(x, 1.5, 0.4).log_prob(y), bayes, 1e-12)


def test_reverse_law_of_a_gaussian():
    law = Gaussian([1.0, -2.0], [[1.0, 0.3], [0.3, 0.2]])
    x = law.sample(5, 3.0, seed=0)
    step = law.reverse_transition(x, 3.0, 0.5)
    mean, cov = law.reverse_law(x, 3.0, 0.5, 1.0)
    close(step.mean(), mean, 1e-13)
    close(step.cov(), cov.expand(5, 2, 2), 1e-13)
    for eta in (0.0, 0.5, 1.0, 1.7):
        mean, cov = law.reverse_law(x, 3.0, 0.5, eta)
        halfway, cov_half = law.reverse_law(x, 3.0, 1.2, eta)
        composed, cov_rest = law.reverse_law(halfway, 1.2, 0.5, eta)
        close(composed, mean, 1e-13)
        # The second step is affine in its start: push the first covariance through its slope.
        origin = law.reverse_law(torch.zeros(1, 2, dtype=F64), 1.2, 0.5, eta)[0]
        slope = (law.reverse_law(torch.eye(2, dtype=F64), 1.2, 0.5, eta)[0] - origin).T
        close(cov_rest + slope @ cov_half @ slope.T, cov, 1e-13)
        # Marginals are kept: p_3 goes to p_0.5.
        origin = law.reverse_law(torch.zeros(1, 2, dtype=F64), 3.0, 0.5, eta)[0]
        slope = (law.reverse_law(torch.eye(2, dtype=F64), 3.0, 0.5, eta)[0] - origin).T
        close(slope @ law.moments(3.0)[1] @ slope.T + cov, law.moments(0.5)[1], 1e-12)
    mean, cov = law.reverse_law(x, 3.0, 0.5, 0.0)
    close(mean, law.flow(x, 3.0, 0.5), 1e-13)
    close(cov, torch.zeros(2, 2, dtype=F64), 0)


# ------------------------------------------------------------------------- batching


METHODS = ["__call__", "score", "log_prob", "posterior_cov", "score_jacobian", "score_divergence"]
ALL = [*(make(kind, 3, 2, seed=6) for kind in KINDS), Product.random(2, 3, seed=6)]


@pytest.mark.parametrize("law", ALL, ids=[*KINDS, "product"])
@pytest.mark.parametrize("method", METHODS)
def test_per_sample_sigma_and_chunks(law, method, monkeypatch):
    x = law.sample(11, 1.0, seed=0)
    sigma = torch.logspace(-2, 3, 11, dtype=F64)
    whole = getattr(law, method)(x, sigma)
    loop = torch.cat([getattr(law, method)(x[i : i + 1], float(sigma[i])) for i in range(11)])
    close(whole, loop, 1e-12, 1 + loop.abs().max().item())
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(getattr(law, method)(y, sigma).sum(), y)
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", 3 * law._width * law.dim)
    close(getattr(law, method)(x, sigma), whole, 1e-14, 1 + whole.abs().max().item())
    (chunked,) = torch.autograd.grad(getattr(law, method)(y, sigma).sum(), y)
    close(chunked, gradient, 1e-13, 1 + gradient.abs().max().item())


def test_chunked_pairs_flows_transitions_and_samples(monkeypatch):
    law, product = make("full", 3, 2, seed=0), Product.random(2, 3, seed=0)
    x, sigma = law.sample(11, 1.0, seed=0), torch.linspace(0.5, 3, 11, dtype=F64)

    def everything():
        step = law.reverse_transition(x, sigma, 0.4)
        k = torch.randn(11, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
        return [
            *law.denoise_and_score(x, sigma), product.flow(x, sigma, 0.3 * sigma), step.mean(),
            step.cov(), step.sample(seed=0), step.log_prob(0.5 * x), law.sample(11, seed=0),
            law.characteristic_function(k).abs(),
        ]  # fmt: skip

    whole = everything()
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", 20)
    for ours, theirs in zip(everything(), whole, strict=True):
        close(ours, theirs, 1e-13, 1 + theirs.abs().max().item())


def test_parameters_follow_the_state_after_inference_mode():
    law = make("full", 2, 2, seed=0)
    x = law.sample(3, 1.0, seed=0, dtype=torch.float32)
    with torch.inference_mode():
        expected = law(x, 1.0)
    y = x.clone().requires_grad_()
    law(y, 1.0).sum().backward()
    assert y.grad is not None
    assert torch.equal(law(x, 1.0), expected)
    assert law(x, torch.tensor(1.0, dtype=F64)).dtype == torch.float32


@pytest.mark.parametrize("law", ALL, ids=[*KINDS, "product"])
def test_solver_path_reads_no_value(law):
    x = torch.zeros(4, 2, device="meta")  # a meta tensor has no values: reading one raises
    for sigma in (1.0, torch.ones((), device="meta"), torch.ones(4, device="meta")):
        assert law(x, sigma).shape == (4, 2)
        assert [part.shape for part in law.denoise_and_score(x, sigma)] == [(4, 2)] * 2


MEMORY = """
import resource, torch
from sdekit.distributions import GaussianMixture

torch.set_num_threads(1)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before = peak()
law = GaussianMixture.random(100, 16, seed=0)
x = law.sample(10**6, 1.0, seed=0, dtype=torch.float32)
assert law(x, 1.0).isfinite().all()
print(peak() - before)
"""


def test_a_million_points_fit_in_two_gibibytes():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 2.0


# ------------------------------------------------------------------------- errors

ONE = [1.0]
BAD_LAWS = [
    (lambda: GaussianMixture([0.5, 0.6], np.zeros((2, 1)), 1.0), ValueError, "off by 0.1"),
    (lambda: GaussianMixture([1.5, -0.5], np.zeros((2, 1)), 1.0), ValueError, "weight 1 is -0.5"),
    (lambda: GaussianMixture(ONE, np.zeros((2, 1)), 1.0), ValueError, r"weights must be \(2,\)"),
    (lambda: GaussianMixture(ONE, [0.0], 1.0), ValueError, r"means must be \(K, d\), got \(1,\)"),
    (lambda: GaussianMixture(ONE, [[math.nan]], 1.0), ValueError, r"finite, got nan at .*\[0, 0\]"),
    (lambda: GaussianMixture(ONE, [["a"]], 1.0), TypeError, "means must be numbers"),
    (lambda: GaussianMixture(ONE, [[0.0, 0.0]], [1.0, 1.0]), ValueError, r"\(1, 2\) diagonal"),
    (lambda: GaussianMixture(ONE, [[0.0]], -1.0), ValueError, "component 0 has the eigenvalue -1"),
    (lambda: Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), ValueError, "eigenvalue -1"),
    (lambda: Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), ValueError, "symmetric.* off by 0.5"),
    (lambda: Gaussian([0.0, 0.0], [1.0, 1.0, 1.0]), ValueError, r"cov must be .* got \(3,\)"),
    (lambda: Gaussian([[0.0]], 1.0), ValueError, r"mean must be \(d,\)"),
    (lambda: Empirical([1.0]), ValueError, r"points must be \(n, d\), got \(1,\)"),
    (lambda: Product([]), ValueError, "at least one"),
    (lambda: Product([Gaussian([0.0, 0.0], 1.0)]), ValueError, "number 0 has dimension 2"),
    (lambda: Product([1.0]), TypeError, "number 0 is float"),
    (lambda: Product([Gaussian([0.0], 1.0)], [[2.0]]), ValueError, "orthogonal.*from I by 3"),
    (lambda: Product([Gaussian([0.0], 1.0)], [1.0]), ValueError, r"rotation must be \(1, 1\)"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "error", "message"), BAD_LAWS)
def test_bad_parameters(build, error, message):
    with pytest.raises(error, match=message):
        build()


def bad_calls():
    law, point = Gaussian([0.0, 0.0], 1.0), Empirical([[0.0, 1.0]])
    x = torch.zeros(3, 2)
    negative = torch.tensor([1.0, -2.0, 1.0])
    yield lambda: law([[0.0, 0.0]], 1.0), TypeError, "x must be a torch.Tensor, got list"
    yield lambda: law(x.int(), 1.0), TypeError, "float32 or float64, got torch.int32"
    yield lambda: law(x.half(), 1.0), TypeError, "float32 or float64, got torch.float16"
    yield lambda: law(x[0], 1.0), ValueError, r"x must be \(B, 2\), got \(2,\)"
    yield lambda: law(x[:, :1], 1.0), ValueError, r"x must be \(B, 2\), got \(3, 1\)"
    yield lambda: law(x, torch.ones(2)), ValueError, r"\(\) or \(3,\), got \(2,\)"
    yield lambda: law.denoise(x, -1.0), ValueError, r"\[0, inf\], got -1.0"
    yield lambda: law.denoise(x, negative), ValueError, r"\[0, inf\], got -2.0"
    yield lambda: law.score(x, math.inf), ValueError, r"\[0, inf\), got inf"
    yield lambda: law.score(x, math.nan), ValueError, "got nan"
    yield lambda: law.score(x, "1"), TypeError, "got str"
    yield lambda: law.log_prob(x, negative), ValueError, "got -2.0"
    yield lambda: law.sample(-1), ValueError, "n is the number of samples.* got -1"
    yield lambda: law.sample(1, math.inf), ValueError, "got inf"
    yield lambda: law.sample(1, dtype=torch.float16), TypeError, "dtype must be float32"
    yield (
        lambda: law.sample(1, seed=0, generator=torch.Generator()), ValueError, "not both"
    )  # fmt: skip
    yield lambda: point.score(x, 0.0), ValueError, "Empirical.*sigma > 0; got 0"
    yield lambda: point.log_prob(x), ValueError, "no density"
    yield lambda: point.flow(x, 1.0, 0.5), ValueError, "dimension 1 only, got 2"
    yield lambda: law.flow(x, -1.0, 0.5), ValueError, "got -1.0"
    yield lambda: law.flow_log_det(1.0, -0.5), ValueError, "sigma_to must lie in"
    yield lambda: Gaussian([0.0], 0.0).flow_log_det(0.0, 1.0), ValueError, "singular"
    yield lambda: law.reverse_law(x, 1.0, 2.0), ValueError, "must not exceed sigma = 1.0, got 2.0"
    yield lambda: law.reverse_law(x, 2.0, 1.0, -1.0), ValueError, "eta must lie in"
    yield lambda: law.reverse_transition(x, 1.0, 1.0), ValueError, "below sigma = 1.0, got 1.0"
    yield (
        lambda: law.reverse_transition(x, 1.0, 0.5).log_prob(x.double()), ValueError, "like x"
    )  # fmt: skip
    yield (
        lambda: point.reverse_transition(x, 1.0, 0.0).log_prob(x), ValueError, "no density"
    )  # fmt: skip
    yield lambda: law.moments(-1.0), ValueError, "got -1.0"


@pytest.mark.parametrize(("call", "error", "message"), list(bad_calls()))
def test_bad_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()
