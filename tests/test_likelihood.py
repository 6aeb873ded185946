"""Encoding inverts sampling, and log-likelihoods are the densities that are known."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sde import Sheared, exact_score
from torch import Tensor

import sdekit as sk
from sdekit.digits import digits_images

DOUBLE = torch.float64
MIXTURE = sk.GaussianMixture.random(3, 3, seed=0)
PAIR = sk.GaussianMixture.random(4, 2, seed=1)
WIDE = sk.GaussianMixture.random(5, 8, seed=2)
# Standard deviations from 1 down to 0.03, in a random basis.
GAUSSIAN = sk.Gaussian(
    [0.3, -0.2, 0.1],
    (lambda q: (q * torch.tensor([1, 0.1, 0.001], dtype=DOUBLE)) @ q.mT)(
        torch.linalg.qr(torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 1]], dtype=DOUBLE)).Q
    ),
)
FINITE = {
    "VP": sk.VP(),
    "SubVP": sk.SubVP(),
    "VE": sk.VE(),
    "EDM": sk.EDM(),
    "DiscreteVP": sk.DiscreteVP(
        torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=DOUBLE), 0)
    ),
    "own": sk.AffineSDE(f=lambda t: -t, g=lambda t: 1 + t**2, T=3.0, t_min=1e-4),
}
INFINITE = {"RectifiedFlow": sk.RectifiedFlow(), "CosineVP": sk.CosineVP()}
PROCESSES = FINITE | INFINITE
CALIBRATED = {
    "hutchinson": sk.Hutchinson(12),
    "gaussian": sk.Hutchinson(12, "gaussian"),
    "hutch++": sk.HutchPlusPlus(12),
}

each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def scale(process: sk.AffineSDE, level: float) -> float:
    return float(process.on_host("scale", process.on_host("time", level)))


def known(process: sk.AffineSDE, law, count: int, level: float | None = None, seed: int = 0):
    """States at a level, the lowest one if not given, and their log-density."""
    level = process.sigma_min if level is None else level
    x_hat, s = law.sample(count, level, seed=seed), scale(process, level)
    return x_hat * s, law.log_prob(x_hat, level) - law.dim * math.log(s)


def error(likelihood: sk.Likelihood, exact: Tensor) -> float:
    """Worst error, in nats per dimension."""
    return float((likelihood.log_prob - exact).abs().max()) / likelihood.latent[0].numel()


exactly = functools.partial(sk.log_likelihood, divergence="exact")

# ---------------------------------------------------------------- densities that are known


@pytest.mark.parametrize("law", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@each_process
def test_density_with_the_law_as_prior(process, law):
    x, exact = known(process, law, 3)
    found = exactly(process, law, x, prior=law, rtol=1e-7)
    assert error(found, exact) < 1e-6
    assert found.status == "success"
    assert found.standard_error.tolist() == [0.0] * 3


@pytest.mark.parametrize("law", [PAIR, WIDE, sk.Product.random(3, 2, seed=0)])
def test_density_in_other_dimensions(law):
    process = sk.VP()
    x, exact = known(process, law, 3)
    assert error(exactly(process, law, x, prior=law, rtol=1e-7), exact) < 1e-6


@pytest.mark.parametrize("process", INFINITE.values(), ids=INFINITE)
def test_pure_noise_is_exact_at_infinity(process):
    x, exact = known(process, MIXTURE, 3)
    found = exactly(process, MIXTURE, x, rtol=1e-6)
    assert error(found, exact) < 1e-5
    assert found.latent.abs().max() < 5
    given = exactly(process, MIXTURE, x, prior=sk.Gaussian([9.0, 9, 9], 4.0), rtol=1e-6)
    torch.testing.assert_close(given.log_prob, found.log_prob, rtol=0, atol=0)


def test_what_priors_cost():
    """The error of pure noise is that of its density, which the data's moments take away."""
    process, law = sk.VP(beta_max=12.0), MIXTURE
    level = process.sigma_max  # 21
    x, exact = known(process, law, 16)
    noise, moments, true = (
        exactly(process, law, x, prior=prior, rtol=1e-6)
        for prior in (None, sk.Gaussian(*law.moments()), law)
    )
    assert error(true, exact) < 1e-5
    x_hat = noise.latent / scale(process, level)
    normal = -0.5 * ((x_hat / level).square() + math.log(2 * math.pi * level**2)).sum(1)
    expected = normal - law.log_prob(x_hat, level)
    torch.testing.assert_close(noise.log_prob - exact, expected, rtol=0, atol=1e-5)
    assert error(noise, exact) > 0.01
    assert error(moments, exact) < 1e-4


def theta(tableau: sk.Tableau, coordinates: sk.Coordinates) -> sk.Solver:
    return sk.Solver(sk.RungeKutta(tableau), coordinates, sk.grids.log)


@pytest.mark.parametrize(
    "method",
    [
        "variable_adams",
        "variable_adams_t",
        "dopri5",
        "dopri5_t",
        "dop853_theta",
        theta(sk.tableaus.DORMAND_PRINCE, sk.LogData()),
        theta(sk.tableaus.DOP853, sk.LogNoise()),
        theta(sk.tableaus.DORMAND_PRINCE, sk.Velocity()),
        sk.Solver(
            sk.VariableAdams(), sk.Interpolated(sk.Preconditioned(), sk.LogNoise()), sk.grids.log
        ),
    ],
    ids=lambda m: m if isinstance(m, str) else repr(m.coordinates)[:20],
)
def test_all_coordinates_give_the_same(method):
    process, sigmas = sk.VP(), [0.1, 10.0]
    x, exact = known(process, MIXTURE, 3, level=0.1)
    options = {"sigmas": sigmas, "prior": MIXTURE, "method": method, "rtol": 1e-7}
    assert error(exactly(process, MIXTURE, x, **options), exact) < 1e-6


def test_any_two_levels():
    process = sk.SubVP()
    x, exact = known(process, MIXTURE, 4, level=0.3)
    for options in ({"sigmas": [0.3, 5.0]}, {"times": process.on_host("time", np.array([0.3, 5]))}):
        found = exactly(process, MIXTURE, x, prior=MIXTURE, rtol=1e-6, **options)
        assert error(found, exact) < 1e-5


def test_errors_follow_the_tolerance():
    x, exact = known(sk.EDM(), MIXTURE, 4)
    for rtol in (1e-3, 1e-5, 1e-7):
        found = exactly(sk.EDM(), MIXTURE, x, prior=MIXTURE, rtol=rtol)
        assert 1e-3 * rtol < error(found, exact) < 10 * rtol


def test_a_density_far_larger_than_the_state():
    """In many dimensions the density is still ruled: per dimension, not as one more component."""
    law = sk.Gaussian(torch.zeros(200, dtype=DOUBLE), torch.linspace(0.05, 2, 200, dtype=DOUBLE))
    x, exact = known(sk.EDM(), law, 2)
    found = sk.log_likelihood(sk.EDM(), law, x, prior=law, rtol=1e-5, divergence=sk.Hutchinson(2))
    assert error(found, exact) < 1e-4  # random signs make no error here: the Jacobian is diagonal
    assert found.standard_error.max() < 1e-8


def test_float32_and_shared_steps():
    x, exact = known(sk.EDM(), MIXTURE, 3)
    single = exactly(sk.EDM(), MIXTURE, x.float(), prior=MIXTURE, rtol=1e-5)
    assert single.log_prob.dtype == single.latent.dtype == torch.float32
    assert error(single, exact) < 2e-4
    shared = exactly(sk.EDM(), MIXTURE, x, prior=MIXTURE, rtol=1e-5, stepping="batch")
    assert error(shared, exact) < 1e-4
    assert len(set(shared.stats.nfe_per_sample.tolist())) == 1


class ShearedBatch(Sheared):
    """With one time per sample; linear for ``a = 0``."""

    t_min = 0.1

    def __init__(self, a: float) -> None:
        self.a = a

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        y = torch.stack([x[:, 0], x[:, 1] - self.a * torch.sin(x[:, 0])], dim=1)
        decay = torch.exp(-2 * t).reshape(-1, 1, 1)
        cov = decay * self.start + (1 - decay) * self.B @ self.B.T / 2
        square = (y * torch.linalg.solve(cov.expand(len(y), 2, 2), y)).sum(1)
        return -0.5 * square - 0.5 * torch.logdet(2 * math.pi * cov)


@pytest.mark.parametrize(("a", "times"), [(0.0, None), (0.7, [0.5, 1.0])])
def test_general_sdes(a, times):
    sde = ShearedBatch(a)
    x = torch.randn((2, 2), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    prior = lambda y: sde.log_prob(y, torch.tensor(1.0, dtype=DOUBLE))  # noqa: E731
    exact = sde.log_prob(x, torch.tensor(times[0] if times else 0.1, dtype=DOUBLE))
    found = exactly(sde, exact_score(sde), x, prior=prior, rtol=1e-6, times=times)
    assert error(found, exact) < 1e-6


def test_log_determinant_of_the_encoding():
    process, law = sk.VP(t_min=1e-2), PAIR
    x, _ = known(process, law, 2)
    found = exactly(process, law, x, prior=law, rtol=1e-6)
    encode = lambda x: sk.encode(process, law, x, rtol=1e-6).x  # noqa: E731
    jacobians = [torch.autograd.functional.jacobian(lambda v: encode(v[None])[0], v) for v in x]
    s = scale(process, process.sigma_max)
    prior = law.log_prob(found.latent / s, process.sigma_max) - law.dim * math.log(s)
    expected = prior + torch.stack(jacobians).slogdet()[1]
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=2e-5)


# ---------------------------------------------------------------- estimates


@pytest.mark.parametrize("name", CALIBRATED)
def test_estimates_are_unbiased_and_know_their_error(name):
    process, count = sk.VP(), 200
    x, exact = known(process, WIDE, 1, seed=3)
    found = sk.log_likelihood(
        process,
        WIDE,
        x.expand(count, -1),
        divergence=CALIBRATED[name],
        seed=range(count),
        prior=WIDE,
        rtol=1e-4,
    )
    errors = found.log_prob - exact
    assert errors.std() > 0.05
    assert errors.mean().abs() < 4 * errors.std() / math.sqrt(count)
    # Squares: of few columns the mean of a standard error is too small.
    said = found.standard_error.square().mean().sqrt()
    assert float(errors.std() / said) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", CALIBRATED)
def test_the_estimate_does_not_depend_on_coordinates(name):
    """For the same probes: only the denoiser is differentiated."""
    x, _ = known(sk.VP(), WIDE, 2, level=0.1)
    options = {"divergence": CALIBRATED[name], "seed": 0, "rtol": 1e-6, "sigmas": [0.1, 10.0]}
    ours, theirs = (
        sk.log_likelihood(sk.VP(), WIDE, x, method=m, **options) for m in (None, "dopri5_t")
    )
    torch.testing.assert_close(ours.log_prob, theirs.log_prob, rtol=0, atol=1e-3)
    torch.testing.assert_close(ours.standard_error, theirs.standard_error, rtol=0, atol=1e-3)


def test_a_single_probe_does_not_tell_its_error():
    x, _ = known(sk.EDM(), MIXTURE, 2)
    found = sk.log_likelihood(sk.EDM(), MIXTURE, x, divergence=sk.Hutchinson(1), seed=0, rtol=1e-3)
    assert found.standard_error.isnan().all()
    assert found.log_prob.isfinite().all()


def test_each_sample_has_its_seed():
    """And neither seeds nor steps depend on what else is in the batch, if the denoiser does not."""
    x, _ = known(sk.EDM(), MIXTURE, 4)
    seeds, law = [5, 6, 5, 8], sk.FixedBatch(MIXTURE, 1)

    def found(order: list[int]) -> sk.Likelihood:
        own = [seeds[i] for i in order]
        options = {"divergence": sk.Hutchinson(3), "rtol": 1e-3}
        return sk.log_likelihood(sk.EDM(), law, x[order], seed=own, **options)

    together = found([0, 1, 2, 3])
    for order in ([3, 1, 0, 2], [2, 0], [1]):
        part = found(order)
        for name in ("log_prob", "standard_error", "latent"):
            expected = getattr(together, name)[order]
            torch.testing.assert_close(getattr(part, name), expected, rtol=0, atol=1e-10)
        assert part.stats.nfe_per_sample.tolist() == together.stats.nfe_per_sample[order].tolist()
    seeds[1] = 7
    assert (found([1]).log_prob - together.log_prob[1]).abs() > 1e-3


def test_conditioned_images():
    """Events of any shape, and conditioning that leaves with its samples."""
    images, labels = digits_images("held_out")
    images, labels = images[:3].double(), labels[:3]
    denoiser = sk.load_digits_denoiser(dtype=DOUBLE)
    options = {"divergence": sk.Hutchinson(1), "rtol": 1e-2}

    def found(rows: slice) -> sk.Likelihood:
        conditioned = sk.Conditioned(denoiser, class_labels=labels[rows])
        seeds = list(range(3))[rows]
        return sk.log_likelihood(sk.VP(), conditioned, images[rows], seed=seeds, **options)

    together, alone = found(slice(0, 3)), found(slice(2, 3))
    assert together.latent.shape == (3, 1, 8, 8)
    assert len(set(together.stats.nfe_per_sample.tolist())) > 1
    torch.testing.assert_close(alone.log_prob, together.log_prob[2:3], rtol=0, atol=1e-7)
    free = sk.log_likelihood(sk.VP(), denoiser, images, seed=range(3), **options)
    assert (free.log_prob - together.log_prob).abs().min() > 1e-3


# ---------------------------------------------------------------- encoding


@settings(deadline=None, max_examples=8)
@given(
    name=st.sampled_from(sorted(FINITE)),
    exponent=st.floats(3, 8),
    seed=st.integers(0, 100),
)
def test_decoding_inverts_encoding(name, exponent, seed):
    process, law, rtol = FINITE[name], sk.Product.random(2, 2, seed=seed), 10**-exponent
    # The largest of eight errors is 1.2 tolerances in the median, but was 17 in one of 150 draws.
    bound = 40 * rtol
    x, _ = known(process, law, 4, seed=seed)
    latent = sk.encode(process, law, x, rtol=rtol)
    flow, levels = process.probability_flow(law), [process.sigma_max, process.sigma_min]
    back = sk.solve(flow, latent.x, sigmas=levels, rtol=rtol).x
    assert (back - x).abs().max() < bound * (1 + float(x.abs().max()))
    s, sigma = (scale(process, level) for level in levels), np.array(levels)
    high, low = s
    exact = law.flow(x / low, sigma[1], sigma[0]) * high
    assert (latent.x - exact).abs().max() < bound * (1 + float(exact.abs().max()))


@pytest.mark.parametrize("process", INFINITE.values(), ids=INFINITE)
def test_encoding_up_to_pure_noise(process):
    x, _ = known(process, MIXTURE, 4)
    latent = sk.encode(process, MIXTURE, x, rtol=1e-6).x
    assert latent.abs().max() < 5
    back = sk.solve(
        process.probability_flow(MIXTURE), latent, sigmas=[np.inf, process.sigma_min], rtol=1e-6
    )
    assert (back.x - x).abs().max() < 1e-5


def test_the_latent_is_that_of_encode():
    x, _ = known(sk.VP(), MIXTURE, 4)
    found = exactly(sk.VP(), MIXTURE, x, rtol=1e-6)
    latent = sk.encode(sk.VP(), MIXTURE, x, rtol=1e-6).x
    torch.testing.assert_close(found.latent, latent, rtol=0, atol=1e-5)


def test_encoding_a_general_sde():
    sde = ShearedBatch(0.7)
    score = exact_score(sde)
    x = torch.randn((4, 2), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    latent = sk.encode(sde, score, x, rtol=1e-6).x
    flow = sde.probability_flow(score)
    back = sk.solve(flow, latent, times=[1.0, 0.1], rtol=1e-6).x
    assert (back - x).abs().max() < 1e-5
    fixed = sk.encode(sde, score, x, method="rk4_t", steps=16)
    assert (fixed.x - latent).abs().max() < 1e-4


def test_encoding_in_steps():
    process, law = sk.VP(), MIXTURE
    x, _ = known(process, law, 4)
    exact = sk.encode(process, law, x, rtol=1e-9).x
    flow = process.probability_flow(law)
    times = np.linspace(process.T, process.t_min, 51)  # DDIM's grid
    upward = process.on_host("sigma", times)[::-1]
    ddim = sk.encode(process, law, x, method="ddim", steps=50)
    torch.testing.assert_close(ddim.x, sk.solve(flow, x, method="ddim", sigmas=upward).x)
    assert ddim.nfe == 50
    errors = [(sk.encode(process, law, x, steps=n).x - exact).abs().max() for n in (20, 40, 80)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    # A denoiser that does not say the scale of its data costs a call, and a step.
    calls = []
    plain = lambda x, sigma: (calls.append(1), law(x, sigma))[1]  # noqa: E731
    assert sk.encode(process, plain, x, steps=20).nfe == len(calls) == 20


def test_the_range_of_a_network():
    """Latents and likelihoods stay in the range that the denoiser was trained for."""
    denoiser = sk.load_digits_denoiser(dtype=DOUBLE)
    seen: list[float] = []

    class Watched:
        sigma_data, sigma_min, sigma_max = 0.5, denoiser.sigma_min, denoiser.sigma_max

        def __call__(self, x_hat: Tensor, sigma: Tensor) -> Tensor:
            seen.extend(torch.atleast_1d(sigma).tolist())
            return denoiser(x_hat, sigma)

    images = digits_images("held_out")[0][:1].double()
    for find in (sk.encode, sk.log_likelihood):
        seen.clear()
        options = {} if find is sk.encode else {"divergence": sk.Hutchinson(1)}
        find(sk.RectifiedFlow(), Watched(), images, rtol=1e-2, **options)
        assert min(seen) == pytest.approx(max(denoiser.sigma_min, sk.RectifiedFlow().sigma_min))
        assert max(seen) == pytest.approx(denoiser.sigma_max)


def test_gradients_pass_through_encoding_only():
    x, _ = known(sk.EDM(), PAIR, 2)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(sk.encode(sk.EDM(), PAIR, x).x.sum(), x)
    assert gradient.abs().min() > 0
    found = exactly(sk.EDM(), PAIR, x, rtol=1e-3)
    assert not found.log_prob.requires_grad
    assert not found.latent.requires_grad


# ---------------------------------------------------------------- what comes out


def test_bits_per_dim():
    x = torch.zeros(3, 2, 5, dtype=DOUBLE)
    found = sk.Likelihood(
        log_prob=torch.tensor([0.0, 10 * math.log(2), -30 * math.log(2)]),
        standard_error=torch.tensor([0.0, 5 * math.log(2), math.nan]),
        latent=x,
        nfe=1,
        stats=sk.Stats(1, np.ones(3, dtype=np.int64)),
    )
    bits, standard_error = found.bits_per_dim()
    torch.testing.assert_close(bits, torch.tensor([0.0, -1, 3]))
    torch.testing.assert_close(standard_error, torch.tensor([0.0, 0.5, math.nan]), equal_nan=True)
    torch.testing.assert_close(found.bits_per_dim(1 / 8)[0], torch.tensor([3.0, 2, 6]))
    for width in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="bin_width"):
            found.bits_per_dim(width)


def test_bits_of_gaussian_data_are_their_entropy():
    law = sk.Gaussian([0.0, 0.0], 0.25)
    x = law.sample(1000, 0.002, seed=0)
    found = exactly(sk.EDM(), law, x, prior=law, rtol=1e-3)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * 0.25)  # bits per dimension
    assert float(found.bits_per_dim(0.5)[0].mean()) == pytest.approx(entropy + 1, abs=0.1)


def test_evaluations_that_ran_out():
    x, _ = known(sk.EDM(), MIXTURE, 16)
    enough = exactly(sk.EDM(), MIXTURE, x, prior=MIXTURE, rtol=1e-3)
    counts = enough.stats.nfe_per_sample
    budget = int(np.median(counts))
    assert counts.min() <= budget < counts.max()
    found = exactly(sk.EDM(), MIXTURE, x, prior=MIXTURE, rtol=1e-3, max_nfe=budget)
    assert found.status == "max_nfe"
    assert f"max_nfe = {budget}" in found.message
    stopped = torch.from_numpy(counts > budget)
    assert found.log_prob[stopped].isnan().all()
    assert found.standard_error[stopped].isnan().all()
    torch.testing.assert_close(found.log_prob[~stopped], enough.log_prob[~stopped])
    assert found.latent.isfinite().all()
    for stepping in ("sample", "batch"):
        none = exactly(sk.EDM(), MIXTURE, x, max_nfe=1, stepping=stepping)
        assert none.status == "max_nfe"
        assert none.log_prob.isnan().all()


def test_evaluations_are_counted():
    calls = []

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(1)
        return MIXTURE(x, sigma)

    x, _ = known(sk.EDM(), MIXTURE, 3)
    for stepping in ("sample", "batch"):
        calls.clear()
        found = exactly(sk.EDM(), denoiser, x, rtol=1e-3, stepping=stepping)
        assert found.nfe == len(calls) == found.stats.nfe_per_sample.max()
    calls.clear()
    known_scale = exactly(sk.EDM(), denoiser, x, rtol=1e-3, sigma_data=MIXTURE.sigma_data)
    assert known_scale.nfe == len(calls)


def test_no_samples():
    x = torch.zeros(0, 3, dtype=DOUBLE)
    found = exactly(sk.EDM(), MIXTURE, x)
    assert (found.log_prob.shape, found.latent.shape) == ((0,), (0, 3))
    assert sk.encode(sk.EDM(), MIXTURE, x).x.shape == (0, 3)


# ---------------------------------------------------------------- errors


class Law:
    def log_prob(self, x: Tensor, sigma: float) -> Tensor:
        return -x.square()  # (B, d)


X = torch.zeros(2, 3, dtype=DOUBLE)
SHEARED = ShearedBatch(0.7)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"x": torch.zeros(3)}, ValueError, "must be a batch"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "float32 or float64"),
        ({"x": "data"}, TypeError, "torch tensor"),
        ({"process": sk.EDM().reverse(MIXTURE)}, TypeError, "process is a ReverseSDE"),
        ({"process": sk.EDM().probability_flow(MIXTURE)}, TypeError, "is a ProbabilityFlow"),
        ({"method": "euler_maruyama"}, ValueError, "integrates reverse SDEs"),
        ({"method": "nonsense"}, ValueError, "unknown method"),
        ({"sigmas": [5.0, 0.1]}, ValueError, "from data up to noise"),
        ({"sigmas": [0.1, 1.0, 5.0]}, ValueError, "give two values"),
        ({"sigmas": [0.1, math.nan]}, ValueError, "give two values"),
        ({"sigmas": [0.0, 5.0]}, ValueError, "starts at 0"),
        ({"times": [5.0, 1.0]}, ValueError, "times = .* from data up to noise"),
        ({"sigmas": [0.1, 1.0], "times": [0.1, 1.0]}, TypeError, "sigmas and times"),
        ({"process": FINITE["own"], "sigmas": [0.1, 1e9]}, ValueError, "outside the range"),
        ({"rtol": 1e-20}, ValueError, "below what"),
        ({"rtol": 1e-5, "atol": 0.0}, ValueError, "atol"),
        ({"stepping": "both"}, ValueError, "stepping"),
        ({"sigma_data": -1.0}, ValueError, "sigma_data"),
        (
            {"denoiser": functools.partial(MIXTURE, labels=torch.zeros(2))},
            ValueError,
            "labels has an entry for each",
        ),
        ({"process": SHEARED, "sigmas": [0.1, 1.0]}, ValueError, "has no noise level"),
        ({"process": SHEARED, "method": "dopri5"}, ValueError, "needs an affine process"),
    ],
)
@pytest.mark.parametrize("find", [sk.encode, sk.log_likelihood])
def test_errors_of_both(find, options, kind, message):
    arguments = {"process": sk.EDM(), "denoiser": MIXTURE, "x": X} | options
    with pytest.raises(kind, match=message):
        find(**arguments)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"method": "heun"}, ValueError, "no error estimate"),
        ({"method": "dpm_adaptive_23"}, ValueError, "does not see the divergence"),
        ({"divergence": "exakt"}, ValueError, "did you mean 'exact'"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"seed": [1, 2, 3]}, ValueError, "3 seeds for a batch of 2"),
        ({"prior": lambda x: x.sum(1)}, TypeError, "log_prob\\(x_hat, sigma\\)"),
        ({"prior": Law()}, ValueError, "the prior returned shape \\(2, 3\\)"),
        ({"denoiser": lambda x, sigma: MIXTURE(x.detach(), sigma)}, ValueError, "differentiably"),
        (
            {
                "method": sk.Solver(
                    sk.VariableAdams(),
                    sk.GaussianPreconditioned(np.zeros(3), np.eye(3)),
                    sk.grids.log,
                )
            },
            ValueError,
            "GaussianPreconditioned has a clock for every direction",
        ),
        (
            {"process": sk.RectifiedFlow(), "method": "dopri5"},
            ValueError,
            "cannot be represented in these coordinates",
        ),
        ({"process": SHEARED, "x": X[:, :2]}, TypeError, "a general SDE needs prior="),
        ({"process": SHEARED, "x": X[:, :2], "prior": 1.0}, TypeError, "needs prior="),
    ],
)
def test_errors_of_likelihoods(options, kind, message):
    arguments = {"process": sk.EDM(), "denoiser": MIXTURE, "x": X} | options
    with pytest.raises(kind, match=message):
        sk.log_likelihood(**arguments)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"steps": 0}, ValueError, "at least 1"),
        ({"steps": 10, "rtol": 1e-3}, TypeError, "got steps and rtol"),
        ({"steps": 10, "sigmas": [0.1, 1.0]}, TypeError, "got steps and sigmas"),
        ({"steps": 10, "method": "edm_sde"}, ValueError, "deterministic"),
    ],
)
def test_errors_of_encoding(options, kind, message):
    with pytest.raises(kind, match=message):
        sk.encode(sk.EDM(), MIXTURE, X, **options)


def test_a_denoiser_that_is_not_finite():
    bad = lambda x, sigma: MIXTURE(x, sigma) * (math.nan if float(sigma.max()) > 1 else 1.0)  # noqa: E731
    with pytest.raises(sk.SolveError, match="round-off"):
        exactly(sk.EDM(), bad, known(sk.EDM(), MIXTURE, 2)[0], rtol=1e-3, sigma_data=0.5)
