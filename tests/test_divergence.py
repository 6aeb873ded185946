"""Traces of Jacobians: exact ones are right, estimates are unbiased and know their error."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sdekit.brownian import IndependentNoise
from sdekit.digits import load_digits_denoiser
from sdekit.distributions import GaussianMixture
from sdekit.divergence import (
    Divergence,
    Exact,
    Hutchinson,
    HutchPlusPlus,
    named_divergence,
)

DOUBLE = torch.float64
ESTIMATORS = {
    "rademacher": Hutchinson(6),
    "gaussian": Hutchinson(6, "gaussian"),
    "hutch++": HutchPlusPlus(8),  # a sketch of 2, and 4 columns
}
ALL = {"exact": Exact(), **ESTIMATORS}

each_estimator = pytest.mark.parametrize("divergence", ESTIMATORS.values(), ids=ESTIMATORS)
each_divergence = pytest.mark.parametrize("divergence", ALL.values(), ids=ALL)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def linear(J: Tensor):
    """The map with Jacobian ``J``, ``(d, d)`` or one per sample, ``(B, d, d)``."""
    return lambda x: (J @ x.flatten(1)[:, :, None]).reshape(x.shape)


def copies(divergence: Divergence, J: Tensor, count: int) -> Tensor:
    """Columns for one Jacobian and the seeds 0 to ``count − 1``."""
    x = torch.zeros(count, len(J), dtype=DOUBLE)
    return divergence.prepare(x, seed=range(count))(linear(J), x)[1]


def with_spectrum(spectrum: Tensor, seed: int = 0) -> Tensor:
    basis = torch.linalg.qr(normal(len(spectrum), len(spectrum), seed=seed)).Q
    return (basis * spectrum) @ basis.mT


class Counted(torch.autograd.Function):
    """The identity, which counts the passes through it."""

    @staticmethod
    def forward(ctx, x: Tensor, counts: dict[str, int]) -> Tensor:
        ctx.counts = counts
        counts["forward"] += 1
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        ctx.counts["backward"] += 1
        return gradient, None


# ---------------------------------------------------------------- the exact trace


@pytest.mark.parametrize("event", [(1,), (5,), (2, 3)])
def test_exact_of_linear_maps(event):
    d = math.prod(event)
    J, x = normal(4, d, d), normal(4, *event, seed=1)
    value, columns = Exact().prepare(x)(linear(J), x)
    torch.testing.assert_close(value, linear(J)(x), rtol=0, atol=0)
    torch.testing.assert_close(columns, J.diagonal(dim1=1, dim2=2).sum(1, keepdim=True))


def test_exact_of_a_mixture_denoiser():
    law = GaussianMixture.random(3, 5, seed=0)
    sigma = torch.tensor([0.1, 0.5, 2.0], dtype=DOUBLE)
    x = law.sample(3, seed=1) + sigma[:, None] * normal(3, 5)
    value, columns = Exact().prepare(x)(lambda y: law(y, sigma), x)
    torch.testing.assert_close(value, law(x, sigma))
    full = torch.autograd.functional.jacobian(lambda y: law(y, sigma).sum(0), x)  # (d, B, d)
    torch.testing.assert_close(columns[:, 0], full.diagonal(dim1=0, dim2=2).sum(1))
    covariance = law.posterior_cov(x, sigma).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(columns[:, 0], covariance / sigma**2)


def test_exact_of_the_digits_network():
    denoiser = load_digits_denoiser(dtype=DOUBLE)
    x, sigma = normal(2, 1, 8, 8), torch.tensor([0.2, 3.0], dtype=DOUBLE)
    with torch.no_grad():
        _, columns = Exact().prepare(x)(lambda y: denoiser(y, sigma), x)
    for i in range(2):
        full = torch.autograd.functional.jacobian(
            lambda y, i=i: denoiser(y[None], sigma[i : i + 1])[0], x[i]
        )
        assert float(columns[i, 0]) == pytest.approx(float(full.reshape(64, 64).trace()))


# ---------------------------------------------------------------- estimates and their errors

DENSE = normal(7, 7) + with_spectrum(2.0 ** -torch.arange(7, dtype=DOUBLE), seed=1) * 5


@each_estimator
def test_every_column_is_unbiased(divergence):
    columns = copies(divergence, DENSE, 4000)
    assert columns.shape == (4000, divergence.columns)
    error = (columns.mean(0) - DENSE.trace()) / (columns.std(0) / math.sqrt(4000))
    assert error.abs().max() < 4
    mean, _ = divergence.estimate(columns)
    assert abs(mean.mean() - DENSE.trace()) < 4 * mean.std() / math.sqrt(4000)


@each_estimator
def test_standard_errors_are_calibrated(divergence):
    mean, standard_error = divergence.estimate(copies(divergence, DENSE, 4000))
    assert mean.std() > 0.1
    # Squares, since the mean of a standard deviation from few columns is too small.
    said = standard_error.square().mean().sqrt()
    assert float(mean.std() / said) == pytest.approx(1, abs=0.08)


@each_estimator
def test_unbiased_along_a_nonlinear_function(divergence):
    law = GaussianMixture.random(3, 4, seed=0)
    x = (law.sample(1, seed=1) + 0.7 * normal(1, 4)).expand(2500, 4)
    exact = law.posterior_cov(x[:1], 0.7)[0].trace() / 0.7**2
    _, columns = divergence.prepare(x, seed=range(2500))(lambda y: law(y, 0.7), x)
    mean, _ = divergence.estimate(columns)
    assert abs(mean.mean() - exact) < 4 * mean.std() / math.sqrt(2500)


def test_variances_of_hutchinson_are_those_of_theory():
    A = (DENSE + DENSE.T) / 2
    gaussian = copies(Hutchinson(2, "gaussian"), DENSE, 4000).var()
    assert float(gaussian) == pytest.approx(2 * float(A.square().sum()), rel=0.1)
    signs = copies(Hutchinson(2), DENSE, 4000).var()
    off_diagonal = A - A.diagonal().diag()
    assert float(signs) == pytest.approx(2 * float(off_diagonal.square().sum()), rel=0.1)


def test_columns_are_independent():
    # Hutch++'s are so given the sketch: their mean is the same for all, so they are uncorrelated.
    for divergence in ESTIMATORS.values():
        correlation = torch.corrcoef(copies(divergence, DENSE, 4000).T)
        assert correlation.fill_diagonal_(0).abs().max() < 4 / math.sqrt(4000)


def test_probes_are_what_they_are_called():
    x = torch.zeros(3, 500, dtype=DOUBLE)
    signs = Hutchinson(4).prepare(x, seed=0).probes
    assert signs.shape == (3, 4, 500)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4 / math.sqrt(6000)
    gaussian = Hutchinson(4, "gaussian").prepare(x, seed=0).probes
    assert float(gaussian.square().mean()) == pytest.approx(1, abs=0.1)
    assert float(gaussian.pow(4).mean()) == pytest.approx(3, abs=0.5)


def test_signs_are_never_zero(monkeypatch):
    monkeypatch.setattr(IndependentNoise, "normal", lambda self, like: torch.zeros_like(like))
    assert Hutchinson(2).prepare(normal(3, 4), seed=0).probes.abs().min() == 1


def test_estimate_is_mean_and_standard_error():
    columns = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    mean, standard_error = Hutchinson(3).estimate(columns)
    torch.testing.assert_close(mean, torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(standard_error, torch.tensor([math.sqrt(7 / 3), 0.0]))


def test_one_column_does_not_tell_its_error_unless_exact():
    columns = torch.tensor([[1.0], [2.0]])
    for divergence in (Hutchinson(1), HutchPlusPlus(3)):
        assert divergence.columns == 1
        mean, standard_error = divergence.estimate(columns)
        torch.testing.assert_close(mean, columns[:, 0])
        assert standard_error.isnan().all()
        assert standard_error.shape == (2,)
    mean, standard_error = Exact().estimate(columns)
    torch.testing.assert_close(mean, columns[:, 0])
    torch.testing.assert_close(standard_error, torch.zeros(2))


# ---------------------------------------------------------------- where they are exact, or better


def test_random_signs_are_exact_for_diagonal_jacobians():
    J = normal(6).diag()
    columns = copies(Hutchinson(3), J, 20)
    torch.testing.assert_close(columns, J.trace().expand(20, 3))
    assert copies(Hutchinson(3, "gaussian"), J, 20).std() > 0.1


@pytest.mark.parametrize(
    ("d", "rank"), [(8, 3), (8, 2), (8, 1), (8, 0), (3, 3), (2, 2), (2, 1), (1, 1), (1, 0)]
)
def test_hutch_plus_plus_is_exact_for_low_ranks(d, rank):
    divergence = HutchPlusPlus(9)  # a sketch of 3, cut to d
    J = normal(d, rank) @ normal(rank, d, seed=1)  # not symmetric
    columns = copies(divergence, J, 50)
    assert columns.shape == (50, 3)
    torch.testing.assert_close(columns, J.trace().expand(50, 3), rtol=0, atol=1e-11)
    if d - 1 > rank > 0:
        assert copies(Hutchinson(9), J, 50).std(0).min() > 0.1


def test_hutch_plus_plus_is_its_formula():
    J, x = normal(3, 6, 6), normal(3, 6, seed=1)
    fixed = HutchPlusPlus(7).prepare(x, seed=[0, 1, 2])
    S, g = fixed.probes[:, :2].mT, fixed.probes[:, 2:].mT
    assert g.abs().unique().tolist() == [1.0]
    image = J.mT @ S
    onto = image @ torch.linalg.inv(image.mT @ image) @ image.mT  # the projector, without Q
    P = torch.eye(6, dtype=DOUBLE) - onto
    expected = torch.einsum("bij,bji->b", onto, J)[:, None] + (g * (P @ J @ P @ g)).sum(1)
    torch.testing.assert_close(fixed(linear(J), x)[1], expected)


def test_hutch_plus_plus_is_not_exact_beyond_its_sketch():
    J = normal(8, 4) @ normal(4, 8, seed=1)
    assert copies(HutchPlusPlus(9), J, 50).std(0).min() > 0.1


def test_hutch_plus_plus_is_better_where_the_spectrum_falls_fast():
    J = with_spectrum(4.0 ** -torch.arange(16, dtype=DOUBLE))
    spread = {
        name: divergence.estimate(copies(divergence, J, 500))[0].std()
        for name, divergence in {"signs": Hutchinson(12), "++": HutchPlusPlus(12)}.items()
    }
    assert spread["++"] < 0.05 * spread["signs"]


def test_random_signs_are_better_for_a_large_diagonal():
    J = torch.eye(16, dtype=DOUBLE) + 0.1 * with_spectrum(torch.linspace(0, 1, 16, dtype=DOUBLE))
    spread = {
        name: divergence.estimate(copies(divergence, J, 500))[0].std()
        for name, divergence in {"signs": Hutchinson(12), "++": HutchPlusPlus(12)}.items()
    }
    assert spread["signs"] < 0.2 * spread["++"]


@each_divergence
def test_columns_are_smooth_in_the_state(divergence):
    # In few dimensions, where a sketch of random signs would often be linearly dependent.
    law = GaussianMixture.random(4, 3, seed=0)
    x = (law.sample(1, seed=1) + normal(1, 3)).expand(400, 3)
    fixed = divergence.prepare(x, seed=range(400))
    path = [fixed(lambda y: law(y, 1.0), x + 1e-5 * t)[1] for t in range(4)]
    assert max((b - a).abs().max() for a, b in pairwise(path)) < 1e-3


# ---------------------------------------------------------------- work


@pytest.mark.parametrize(
    ("divergence", "d", "backward", "columns"),
    [
        (Exact(), 5, 5, 1),
        (Hutchinson(7), 5, 7, 7),
        (HutchPlusPlus(12), 5, 12, 4),
        (HutchPlusPlus(13), 5, 13, 5),
        (HutchPlusPlus(14), 5, 14, 6),
        (HutchPlusPlus(12), 2, 8, 4),
    ],
)
def test_passes_and_columns(divergence, d, backward, columns):
    counts = {"forward": 0, "backward": 0}
    x = normal(3, d)
    _, found = divergence.prepare(x, seed=0)(lambda y: Counted.apply(y.sin(), counts), x)
    assert counts == {"forward": 1, "backward": backward}
    assert found.shape == (3, columns)
    assert divergence.columns == columns


# ---------------------------------------------------------------- seeds and rows


@each_divergence
def test_columns_depend_on_each_samples_own_seed(divergence):
    x, J = normal(4, 2, 3), normal(4, 6, 6, seed=1)
    _, columns = divergence.prepare(x, seed=[3, 1, 4, 1])(linear(J), x)
    for i, seed in enumerate([3, 1, 4, 1]):
        part = slice(i, i + 1)
        _, alone = divergence.prepare(x[part], seed=[seed])(linear(J[part]), x[part])
        torch.testing.assert_close(columns[part], alone)


@each_estimator
def test_seeds_are_reproducible_and_matter(divergence):
    x = normal(3, 6)
    for seed, other in [(0, 1), ([0, 1, 2], [0, 1, 3]), (None, None)]:
        torch.manual_seed(0)
        first = divergence.prepare(x, seed=seed).probes
        again = divergence.prepare(x, seed=other).probes
        assert not torch.equal(first[-1], again[-1])
        torch.manual_seed(0)
        torch.testing.assert_close(first, divergence.prepare(x, seed=seed).probes, rtol=0, atol=0)
    own = divergence.prepare(x, seed=[5, 6, 7]).probes
    assert not torch.equal(own[0], own[1])


@each_estimator
def test_probes_are_not_the_noise_that_a_sample_began_as(divergence):
    x = torch.zeros(1, 400, dtype=DOUBLE)
    for seed in (0, [0]):
        start = IndependentNoise(seed).normal(x)
        probes = divergence.prepare(x, seed=seed).probes[0]
        cosines = nn.functional.cosine_similarity(probes, start, dim=1)
        assert cosines.abs().max() < 0.2


def test_seeds_of_any_integer_kind():
    x = normal(2, 3)
    expected = Hutchinson(2).prepare(x, seed=[1, 2]).probes
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        seeds = torch.tensor([1, 2], dtype=dtype).numpy()
        torch.testing.assert_close(Hutchinson(2).prepare(x, seed=seeds).probes, expected)
    for seed in (-1, 2**63, 2**64 - 1):
        Hutchinson(2).prepare(x, seed=seed)


@each_divergence
@pytest.mark.parametrize(
    "rows",
    [torch.tensor([4, 0, 2]), torch.tensor([True, False, True, False, True]), torch.tensor([1])],
)
def test_rows_take_their_probes_along(divergence, rows):
    x, J = normal(5, 4), normal(5, 4, 4, seed=1)
    fixed = divergence.prepare(x, seed=0)
    value, columns = fixed(linear(J), x)
    some_value, some_columns = fixed.select(rows)(linear(J[rows]), x[rows])
    torch.testing.assert_close(some_value, value[rows])
    torch.testing.assert_close(some_columns, columns[rows])


@each_divergence
def test_no_rows_are_left(divergence):
    fixed = divergence.prepare(normal(5, 4), seed=0).select(torch.tensor([], dtype=torch.long))
    value, columns = fixed(torch.sin, normal(0, 4))
    assert value.shape == (0, 4)
    assert columns.shape == (0, divergence.columns)


@each_divergence
def test_dtype_and_shape_are_the_states(divergence):
    x = normal(3, 2, 2).float()
    value, columns = divergence.prepare(x, seed=0)(lambda y: y.double().sin(), x)
    assert (value.dtype, columns.dtype) == (torch.float32, torch.float32)
    assert (value.shape, columns.shape) == (x.shape, (3, divergence.columns))


# ---------------------------------------------------------------- linear algebra

seeds = st.integers(0, 2**32 - 1)
dimensions = st.integers(1, 6)
factors = st.floats(-3, 3).filter(lambda a: abs(a) > 1e-2)


@given(seed=seeds, d=dimensions, a=factors, b=factors)
@settings(max_examples=40, deadline=None)
def test_linear_in_the_function(seed, d, a, b):
    x, J, K = normal(3, d), normal(3, d, d, seed=seed), normal(3, d, d, seed=seed ^ 1)
    for name in ("exact", "rademacher", "gaussian"):  # Hutch++'s sketch depends on the Jacobian
        fixed = ALL[name].prepare(x, seed=seed)
        both = fixed(linear(a * J + b * K), x)[1]
        torch.testing.assert_close(both, a * fixed(linear(J), x)[1] + b * fixed(linear(K), x)[1])
    fixed = HutchPlusPlus(8).prepare(x, seed=seed)
    torch.testing.assert_close(fixed(linear(a * J), x)[1], a * fixed(linear(J), x)[1])


@given(seed=seeds, d=dimensions)
@settings(max_examples=40, deadline=None)
def test_the_trace_is_invariant(seed, d):
    x, J = normal(2, d), normal(d, d, seed=seed)
    U = torch.linalg.qr(normal(d, d, seed=seed ^ 1)).Q
    for divergence in (Exact(), HutchPlusPlus(3 * d)):  # the sketch is everything: no error
        fixed = divergence.prepare(x, seed=seed)
        expected = J.trace().expand(2, divergence.columns)
        for similar in (J, U @ J @ U.T, J.T):
            torch.testing.assert_close(fixed(linear(similar), x)[1], expected)


# ---------------------------------------------------------------- autograd


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 4)).double()


@each_divergence
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_left_alone(divergence, frozen):
    net, x = network().requires_grad_(not frozen), normal(3, 4)
    fixed = divergence.prepare(x, seed=0)
    value, columns = fixed(net, x)
    with torch.no_grad():
        silent = fixed(net, x)
        assert not torch.is_grad_enabled()
    assert all(p.grad is None for p in net.parameters())
    x.requires_grad_()
    tracked = fixed(net, x)
    assert x.grad is None
    for v, c in (silent, tracked, (value, columns)):
        torch.testing.assert_close((v, c), (net(x).detach(), columns), rtol=0, atol=0)
        assert not v.requires_grad
        assert not c.requires_grad
    if not frozen:
        net(x).sum().backward()
        before = [p.grad.clone() for p in net.parameters()]
        fixed(net, x)
        assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))


@each_divergence
def test_a_tensor_made_in_inference_mode_is_a_state_like_any(divergence):
    with torch.inference_mode():
        x = normal(3, 4)
        fixed = divergence.prepare(x, seed=0)
    plain = normal(3, 4)
    torch.testing.assert_close(
        fixed(network(), x), divergence.prepare(plain, seed=0)(network(), plain)
    )


@each_divergence
def test_inference_mode_is_refused(divergence):
    x = normal(3, 4)
    fixed = divergence.prepare(x, seed=0)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode.*no_grad"):
        fixed(torch.sin, x)


@each_divergence
@pytest.mark.parametrize("name", ["detaches", "no_grad", "numpy", "constant", "parameters"])
def test_a_function_that_autograd_cannot_see_through_is_refused(divergence, name):
    net, x = network(), normal(3, 4)
    function = {
        "detaches": lambda y: net(y.detach()),  # depends on its parameters, but not on y
        "no_grad": torch.no_grad()(net),
        "numpy": lambda y: torch.as_tensor(y.detach().numpy() ** 2),
        "constant": torch.zeros_like,
        "parameters": lambda y: net[2].bias.expand(3, 4),
    }[name]
    with pytest.raises(ValueError, match="does not depend differentiably"):
        divergence.prepare(x, seed=0)(function, x)


@each_divergence
def test_a_constant_can_say_so(divergence):
    x = normal(3, 4)
    value, columns = divergence.prepare(x, seed=0)(lambda y: 0 * y + 1, x)
    torch.testing.assert_close(value, torch.ones_like(x))
    torch.testing.assert_close(columns, torch.zeros(3, divergence.columns, dtype=DOUBLE))


# ---------------------------------------------------------------- what is refused


@each_divergence
def test_other_batches_are_refused(divergence):
    x = normal(3, 4)
    for made, other in [(x, x[:2]), (x[:1], x), (x, x[:1]), (x, x[:, :3])]:
        with pytest.raises(ValueError, match=r"select\(rows\)"):
            divergence.prepare(made, seed=0)(torch.sin, other)
    with pytest.raises(ValueError, match=r"function returned shape \(3, 1\)"):
        divergence.prepare(x, seed=0)(lambda y: y.sum(1, keepdim=True), x)
    with pytest.raises(ValueError, match="2 seeds for a batch of 3"):
        divergence.prepare(x, seed=[0, 1])
    with pytest.raises(TypeError, match=r"seed = 0\.5"):
        divergence.prepare(x, seed=0.5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="probes = 0"):
        Hutchinson(0)
    with pytest.raises(ValueError, match="probes = 2"):
        HutchPlusPlus(2)
    with pytest.raises(ValueError, match="kind = 'normal'"):
        Hutchinson(kind="normal")


def test_names():
    assert isinstance(named_divergence("exact"), Exact)
    assert isinstance(named_divergence("hutch++"), HutchPlusPlus)
    for name, kind in [("hutchinson", "rademacher"), ("gaussian", "gaussian")]:
        found = named_divergence(name)
        assert isinstance(found, Hutchinson)
        assert found.kind == kind
    own = Hutchinson(3)
    assert named_divergence(own) is own
    with pytest.raises(ValueError, match=r"'hutchison'; did you mean 'hutchinson'\? .*'hutch\+\+'"):
        named_divergence("hutchison")
    with pytest.raises(ValueError, match="unknown divergence 3; there are 'exact'"):
        named_divergence(3)
