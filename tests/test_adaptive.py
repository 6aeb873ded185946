"""Solves with a tolerance: errors, samples on their own, the batch as one, failures."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from helpers import (
    DOUBLE,
    EDM,
    METHODS,
    QUICK,
    VP,
    Counting,
    Perceptron,
    elementwise,
    normal,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import sdekit as sk
from sdekit.bench.problems import make_problem, rms
from sdekit.distributions import Gaussian, GaussianMixture, Product
from sdekit.solvers import adaptive
from sdekit.solvers.control import Controller
from sdekit.solvers.pairs import PairMarch
from sdekit.solvers.registry import Solver
from sdekit.solvers.variable_adams import AdamsMarch

MIXTURE = GaussianMixture.random(5, 3, seed=2)


# ---- the tolerance ----


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixture2d", "narrow2d", "broad3d", "product4d", "gaussian32d"])
def test_the_error_is_proportional_to_the_tolerance(name):
    """Within a factor of ten from 1e-2 to 1e-10, and the smaller the tighter."""
    problem = make_problem(name, samples=8)
    if isinstance(problem.denoiser, Product | Gaussian):
        exact = problem.denoiser.flow(problem.start, 80.0, 0.002)
    else:
        exact, _ = problem.solve("dop853_theta", sigmas=[80.0, 0.002], rtol=1e-12)
    errors = []
    for rtol in (1e-2, 1e-5, 1e-8, 1e-10):
        x, solved = problem.solve(None, sigmas=[80.0, 0.002], rtol=rtol)
        errors.append(rms(x - exact))
        assert 0.1 * rtol < errors[-1] < 10 * rtol
        assert solved.status == "success"
    assert (np.diff(errors) < 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_meets_its_tolerance(method, product):
    """In float64, and in float32 down to what it resolves; NFE is that of the sample that took most."""
    x_hat, high, low = product.sample(4, 5.0, seed=1), 5.0, 0.1
    exact = product.flow(x_hat, high, low)
    start, end = (float(VP.on_host("scale", VP.on_host("time", s))) for s in (high, low))
    single = torch.float32
    cases = (
        [(DOUBLE, 1e-2), (single, 1e-3)] if "dpm" in method else [(DOUBLE, 1e-6), (single, 1e-5)]
    )
    for dtype, rtol in cases:
        x = (x_hat * start).to(dtype)
        solved = sk.solve(
            VP.probability_flow(product), x, method=method, sigmas=[high, low], rtol=rtol
        )
        assert solved.x.dtype == dtype
        assert rms(solved.x.double() / end - exact) < 15 * rtol
        assert solved.nfe == solved.stats.nfe_per_sample.max()


# ---- every sample on its own ----


def own_steps(method, x, splits, permutation, **options):
    """Assert that a batch, its parts and its permutation agree to the last bit."""
    solve = lambda x: sk.solve(  # noqa: E731
        VP.probability_flow(options.get("model", elementwise)),
        x,
        method=method,
        sigmas=[80.0, 2.0, 0.3, 0.1],
        rtol=options.get("rtol", 1e-3),
        sigma_data=0.6,
        trajectory=True,
    )
    whole, shuffled = solve(x), solve(x[permutation])
    parts = [solve(part) for part in x.tensor_split(splits)]
    for name in ("x", "trajectory"):
        a, b = getattr(whole, name), getattr(shuffled, name)
        dim = a.ndim - x.ndim
        assert torch.equal(a.index_select(dim, torch.as_tensor(permutation)), b)
        assert torch.equal(a, torch.cat([getattr(part, name) for part in parts], dim))
    nfe = np.concatenate([part.stats.nfe_per_sample for part in parts])
    np.testing.assert_array_equal(whole.stats.nfe_per_sample, nfe)
    assert whole.stats.rejected == sum(part.stats.rejected for part in parts)
    assert whole.stats.steps == max(part.stats.steps for part in parts)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    method=st.sampled_from(QUICK),
    event=st.sampled_from([(1,), (3,), (2, 4, 4)]),
    dtype=st.sampled_from([DOUBLE, torch.float32]),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_a_sample_does_not_depend_on_its_batch(method, event, dtype, batch, seed):
    rng = np.random.default_rng(seed)
    x = normal(batch, *event, seed=seed, dtype=dtype)
    x[0] *= 10 ** float(rng.uniform(-3, 1))  # of another kind than the others
    splits = sorted(rng.integers(0, batch + 1, 2).tolist())
    own_steps(method, x, splits, rng.permutation(batch))


def test_a_sample_of_dpm_solver_does_not_depend_on_its_batch():
    x = normal(4, 3)
    x[0] *= 0.01
    own_steps("dpm_adaptive_23", x, [1, 3], np.array([2, 0, 3, 1]), rtol=1e-1)


def rows_matter(model, x, size):
    """Whether a network rounds a sample otherwise in another row of a batch of the same size."""
    sigma = torch.linspace(0.1, 20, len(x), dtype=x.dtype)
    for n in range(len(x)):
        row, level = x[n].expand(size, *x.shape[1:]).contiguous(), sigma[n].expand(size)
        same = model(row, level.contiguous())
        if not all(torch.equal(same[0], other) for other in same):
            return True
    return False


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("perceptron", 5),
        ("perceptron in float32", 1),
        ("perceptron in float32", 4),
        ("perceptron in float32", 16),
        ("digits", 1),
        ("digits", 4),
    ],
)
def test_networks_in_batches_of_one_size(kind, size):
    """As long as its rows do not matter, a network in `FixedBatch` makes samples independent."""
    if kind == "digits":
        network, x = sk.load_digits_denoiser(dtype=DOUBLE), normal(6, 1, 8, 8)
    else:
        dtype = torch.float32 if "float32" in kind else DOUBLE
        network, x = Perceptron(width=64, dtype=dtype), normal(6, 3, dtype=dtype)
    if rows_matter(network, x, size):
        assert size > 1
        pytest.skip("on this machine the rounding of a sample depends on its row")
    order = np.array([4, 1, 0, 3, 5, 2])
    for method in ("variable_adams", "dopri5_theta")[: 1 if kind == "digits" else 2]:
        own_steps(method, x, [2, 3], order, model=sk.FixedBatch(network, size), rtol=1e-2)


@pytest.mark.parametrize("method", ["variable_adams", "dop853_theta"])
def test_mixtures_do_not_depend_on_their_batch(method):
    """Whose matrix products round as they like: to 1e-10, as errors are rounded before they count."""
    x = MIXTURE.sample(9, 80.0, seed=4)
    solve = lambda x: sk.solve(  # noqa: E731
        EDM.probability_flow(MIXTURE), x, method=method, sigmas=[80.0, 0.05], rtol=1e-6
    )
    whole, order = solve(x), np.random.default_rng(0).permutation(9)
    parts = [solve(part) for part in x.tensor_split([1, 5])]
    together = torch.cat([part.x for part in parts])
    torch.testing.assert_close(whole.x, together, rtol=0, atol=1e-10)
    torch.testing.assert_close(whole.x[order], solve(x[order]).x, rtol=0, atol=1e-10)
    nfe = np.concatenate([part.stats.nfe_per_sample for part in parts])
    np.testing.assert_array_equal(whole.stats.nfe_per_sample, nfe)


def test_the_scale_of_the_data_is_all_that_samples_share():
    """Estimated, it is one number for any batch of two or more; of one alone it is another."""
    x = 80 * normal(4, 2)
    flow = EDM.probability_flow(lambda x, sigma: torch.tanh(3 * x + 1) * torch.linspace(1, 2, 2))
    for known, splits in (({"sigma_data": 1.1}, (1, 2)), ({}, (2,))):
        whole, *parts = (
            sk.solve(flow, part, rtol=1e-4, **known).x for part in (x, *x.tensor_split(splits))
        )
        assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize(
    "method", ["variable_adams", "bosh3", "dopri5_t", "dop853_theta", "dpm_adaptive_23"]
)
def test_samples_that_arrived_are_not_evaluated_again(method):
    """Rows that the denoiser saw are the evaluations of all samples, in all circumstances."""
    x = normal(5, 2)
    x[1] *= 1e-3
    rtol = 3e-2 if "dpm" in method else 1e-3
    for options in (
        {},
        {"ending": "denoise"},
        {"sigmas": [80.0, 5.0, 0.1], "trajectory": True},
        {"dense": True, "ending": "half"},
        {"max_nfe": 25},
        {"stepping": "batch"},
    ):
        model = Counting(elementwise)
        options = {"sigmas": [80.0, 0.1], **options}
        known = {"sigma_data": 0.6} if "max_nfe" in options else {}
        solved = sk.solve(
            VP.probability_flow(model), x, method=method, rtol=rtol, **options, **known
        )
        assert model.seen == solved.stats.nfe_per_sample.sum()
        distinct = len(set(solved.stats.nfe_per_sample.tolist()))
        assert distinct == 1 if "stepping" in options else distinct > 1 or "max_nfe" in options


def labelled(x, sigma, label, shift=None, factor=1.0):
    s = sigma.reshape(-1, 1)
    centre = label[:, None].to(x) if shift is None else label[:, None] + shift
    return factor * centre * torch.tanh(2 * x) / (1 + s**2)


LABELS = torch.tensor([0.1, 3.0, 0.5, 1.0, 2.0], dtype=DOUBLE)


@pytest.mark.parametrize("method", ["variable_adams", "dop853", "dpm_adaptive_12"])
def test_conditioning_follows_its_samples(method):
    """Each is solved as it would be alone, with its own label; also the last step to the data."""
    x, shift = 80 * normal(5, 2), normal(5, 2, seed=1)
    options = {"method": method, "rtol": 3e-2, "sigmas": [80.0, 1.0, 0.1], "sigma_data": 0.7}
    flow = EDM.probability_flow(sk.Conditioned(labelled, label=LABELS, shift=shift))
    counts = sk.solve(flow, x, **options).stats.nfe_per_sample
    assert len(set(counts.tolist())) > 1
    budget = int(np.sort(counts)[2])
    for more in (
        {"ending": "denoise", "trajectory": True},
        {"max_nfe": budget},
        {"checkpoint": True},
    ):
        x = x.clone().requires_grad_("checkpoint" in more)

        def solve(x, **conditioning):
            flow = EDM.probability_flow(sk.Conditioned(labelled, **conditioning))
            return sk.solve(flow, x, **options, **more)  # noqa: B023

        whole = solve(x, label=LABELS, shift=shift)
        assert (whole.status == "max_nfe") == ("max_nfe" in more)
        for n in (0, 2, 4):
            part = slice(n, n + 1)
            alone = solve(x[part], label=LABELS[part], shift=shift[part])
            assert torch.equal(whole.x[part], alone.x)
            assert whole.stats.nfe_per_sample[n] == alone.nfe
            if "trajectory" in more:
                assert torch.equal(whole.trajectory[:, part], alone.trajectory)


def of_any_names(x, sigma, func, rows, self, shared=1.0):
    return shared * labelled(x, sigma, func) + rows[:, None] + self


def test_wrappers_of_conditioning():
    """In each other, in partial, around batches of one size, and under any names."""
    x, shift = 80 * normal(5, 2), normal(5, 2, seed=1)

    def solve(model):
        return sk.solve(EDM.probability_flow(model), x, rtol=1e-2, sigma_data=0.7).x

    both = solve(sk.Conditioned(labelled, label=LABELS, shift=shift))
    wrong = sk.Conditioned(labelled, label=LABELS.flip(0))
    for model in (
        sk.Conditioned(sk.Conditioned(labelled, shift=shift), label=LABELS),
        sk.Conditioned(sk.Conditioned(wrong, shift=shift), label=LABELS),  # the outer one counts
        functools.partial(sk.Conditioned(labelled, label=LABELS, shift=shift)),
        sk.Conditioned(functools.partial(sk.Conditioned(labelled, label=LABELS)), shift=shift),
        sk.Conditioned(sk.FixedBatch(labelled, 2), label=LABELS, shift=shift),
        functools.partial(
            sk.Conditioned(sk.FixedBatch(labelled, 5), label=LABELS, shift=shift), factor=1.0
        ),
    ):
        assert torch.equal(solve(model), both)
    named = sk.Conditioned(of_any_names, func=LABELS, rows=LABELS / 2, self=shift)
    parts = [
        sk.Conditioned(of_any_names, func=LABELS[n], rows=LABELS[n] / 2, self=shift[n])
        for n in (slice(0, 2), slice(2, 5))
    ]
    split = [
        sk.solve(EDM.probability_flow(part), x[n], rtol=1e-2, sigma_data=0.7).x
        for part, n in zip(parts, (slice(0, 2), slice(2, 5)), strict=True)
    ]
    assert torch.equal(solve(named), torch.cat(split))
    assert torch.equal(solve(functools.partial(named, shared=1.0)), torch.cat(split))


def test_conditioning_in_containers_follows_its_samples():
    """As the ``added_cond_kwargs`` of diffusers; in partial it is refused, like a tensor."""
    x, shift = 80 * normal(5, 2), normal(5, 2, seed=1)

    def network(x, sigma, added):
        return labelled(x, sigma, added["label"], added["shifts"][0])

    def solve(model, rows=slice(None)):
        flow = EDM.probability_flow(model)
        return sk.solve(flow, x[rows], rtol=1e-2, sigma_data=0.7)

    def added(rows):
        return {"label": LABELS[rows], "shifts": (shift[rows],)}

    every = slice(None)
    whole = solve(sk.Conditioned(network, added=added(every)))
    assert len(set(whole.stats.nfe_per_sample.tolist())) > 1
    for n in range(5):
        part = slice(n, n + 1)
        alone = solve(sk.Conditioned(network, added=added(part)), part)
        assert torch.equal(whole.x[part], alone.x)
    flat = solve(sk.Conditioned(labelled, label=LABELS, shift=shift))
    assert torch.equal(whole.x, flat.x)
    fixed = solve(sk.Conditioned(sk.FixedBatch(network, 2), added=added(every)))
    assert torch.equal(whole.x, fixed.x)
    with pytest.raises(ValueError, match=r"added has an entry .*Conditioned\(denoiser, added"):
        solve(functools.partial(network, added=added(every)))
    with pytest.raises(ValueError, match="added is for 4 samples, the batch has 5"):
        solve(sk.Conditioned(network, added=added(slice(4))))
    for wrong in ({"label": LABELS, "scale": 1.0}, {}, [torch.tensor(1.0)]):
        with pytest.raises(TypeError, match="nor a container of such"):
            sk.Conditioned(network, added=wrong)
    with pytest.raises(ValueError, match="cannot be inside of FixedBatch"):
        sk.FixedBatch(functools.partial(network, added=added(every)), 2)
    with pytest.raises(ValueError, match=r"write StaticThreshold\(FixedBatch\(denoiser, 2\)"):
        sk.FixedBatch(functools.partial(sk.StaticThreshold(labelled)), 2)


def test_a_network_may_have_rows():
    network = Perceptron()
    network.rows = 8
    sk.solve(EDM.probability_flow(network), 80 * normal(5, 3), rtol=1e-3)


def test_conditioning_that_cannot_follow_is_refused():
    x = 80 * normal(5, 2)
    partial = functools.partial(labelled, label=LABELS)
    inside = sk.Conditioned(partial, shift=torch.zeros(5, 2, dtype=DOUBLE))
    for model in (partial, functools.partial(partial, shift=torch.zeros(2)), inside):
        flow = EDM.probability_flow(model)
        with pytest.raises(
            ValueError, match=r"label has an entry .*sdekit.Conditioned\(denoiser, label"
        ):
            sk.solve(flow, x, rtol=1e-3)
        both = sk.solve(flow, x, rtol=1e-3, stepping="batch")
        assert len(set(both.stats.nfe_per_sample.tolist())) == 1
        sk.solve(flow, x, steps=4)
    sk.solve(EDM.probability_flow(functools.partial(labelled, label=LABELS[:1])), x[:1], rtol=1e-2)
    few = EDM.probability_flow(sk.Conditioned(labelled, label=LABELS[:4]))
    with pytest.raises(ValueError, match="label is for 4 samples, the batch has 5"):
        sk.solve(few, x, rtol=1e-3, sigma_data=0.7)
    with pytest.raises(TypeError, match="label is not a tensor with an entry per sample"):
        sk.Conditioned(labelled, label=3)
    conditioned = sk.Conditioned(labelled, label=LABELS)
    for model in (conditioned, partial, functools.partial(conditioned, shift=None)):
        with pytest.raises(ValueError, match="cannot be inside of FixedBatch"):
            sk.FixedBatch(model, 5)


# ---- the batch as one ----


@pytest.mark.parametrize("method", ["variable_adams", "tsit5", "dop853_theta", "dpm_adaptive_12"])
def test_a_batch_that_steps_as_one(method, product):
    x = product.sample(6, 20.0, seed=0)
    rtol = 1e-2 if "dpm" in method else 1e-5
    exact = product.flow(x, 20.0, 0.1)
    solve = lambda x, **options: sk.solve(  # noqa: E731
        EDM.probability_flow(product), x, method=method, sigmas=[20.0, 0.1], rtol=rtol, **options
    )
    model = Counting(product)
    whole = sk.solve(
        EDM.probability_flow(model),
        x,
        method=method,
        sigmas=[20.0, 0.1],
        rtol=rtol,
        sigma_data=1.0,
        stepping="batch",
    )
    assert rms(whole.x - exact) < 50 * rtol
    assert (whole.stats.nfe_per_sample == whole.nfe).all()
    assert (model.calls, model.seen) == (whole.nfe, 6 * whole.nfe)
    # The error of the batch is the root mean square over samples.
    twice = solve(x[:1].repeat(2, 1), stepping="batch")
    one, alone = solve(x[:1], stepping="batch"), solve(x[:1])
    assert torch.equal(one.x, alone.x)
    assert one.stats.nfe_per_sample.tolist() == alone.stats.nfe_per_sample.tolist()
    assert one.stats.rejected == alone.stats.rejected
    torch.testing.assert_close(twice.x, one.x.repeat(2, 1), rtol=0, atol=1e-12)


def test_a_step_of_the_batch_is_accepted_by_its_mean_square(judged):
    """One bad sample among many may exceed the tolerance; alone it may not."""
    x = MIXTURE.sample(16, 20.0, seed=0)
    options = {"method": "variable_adams", "sigmas": [20.0, 0.1], "rtol": 1e-4}
    seen = []
    original = adaptive.read

    def read(errors, *, per_sample):
        seen.append(errors.detach().clone())
        return original(errors, per_sample=per_sample)

    adaptive.read = read
    try:
        sk.solve(EDM.probability_flow(MIXTURE), x, stepping="batch", **options)
    finally:
        adaptive.read = original
    assert len(seen) == len(judged)
    for squares, row in zip(seen, judged, strict=True):
        assert row[3] == pytest.approx(float(squares[0].mean()) ** 0.5, rel=1e-3)
        assert row[4] == (row[3] <= 1)
    assert any(
        float(squares.max()) > 1 and row[4] for squares, row in zip(seen, judged, strict=True)
    )


# ---- reads from the device ----


class Reads(TorchDispatchMode):
    """Operations that make the host wait: numbers and indices taken out of tensors."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("method", ["variable_adams", "dopri5_theta"])
@pytest.mark.parametrize(
    ("stepping", "output"),
    [("batch", {}), ("sample", {}), ("sample", {"dense": True, "trajectory": True})],
)
def test_one_read_from_the_device_per_trial(method, output, stepping, monkeypatch, judged):
    x, reads = 80 * normal(16, 3), []
    readers = ("__bool__", "__float__", "__int__", "__index__", "item", "tolist", "cpu", "numpy")
    for reader in (*readers, "nonzero", "__array__"):
        original = getattr(torch.Tensor, reader)

        def counted(self, *args, _original=original, _reader=reader, **kwargs):
            reads.append(_reader)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, reader, counted)
    for march in (PairMarch, AdamsMarch):
        original = march.attempt

        def attempt(self, trial, carry, _original=original):
            trials.append(trial)
            return _original(self, trial, carry)

        monkeypatch.setattr(march, "attempt", attempt)
    assert bool(torch.ones(()))
    surplus, counts, tolerances = [], [], (1e-1, 1e-2) if "dpm" in method else (1e-2, 1e-5)
    for rtol in tolerances:
        trials = []
        reads.clear()
        with Reads() as waits:
            sk.solve(
                EDM.probability_flow(elementwise),
                x,
                method=method,
                sigmas=[80.0, 7.0, 1.0, 0.3, 0.1],
                rtol=rtol,
                sigma_data=0.6,
                stepping=stepping,
                **output,
            )
        assert not waits.names
        assert set(reads) == {"numpy"}
        surplus.append(len(reads) - len(trials))
        counts.append(len(trials))
    assert surplus[0] == surplus[1]
    assert counts[1] > counts[0]


# ---- failures ----


@pytest.mark.parametrize(
    ("method", "value"),
    [("variable_adams", math.nan), ("variable_adams_t", math.inf), ("dopri5_theta", math.nan)],
)
def test_where_a_solve_broke_is_named(method, value):
    """Sample, step and noise level; and a batch is named as such."""

    def broken(x, sigma):
        s = sigma.reshape(-1, 1)
        # The last component is 0 in the data: in the state it is a name times σ.
        bad = (s < 1.7) & ((x[:, 1:] / s).round() == 2)
        return torch.where(bad, value, torch.cat([torch.tanh(x[:, :1]), 0 * x[:, 1:]], 1))

    x = 80 * torch.stack([normal(4), torch.arange(4.0, dtype=DOUBLE)], 1)
    options = {"method": method, "sigmas": [80.0, 0.1], "rtol": 1e-4, "sigma_data": 0.6}
    with pytest.raises(sk.SolveError, match=r"step \d+ of sample 2, at σ = 1\.7\b") as caught:
        sk.solve(EDM.probability_flow(broken), x, **options)
    step = int(str(caught.value).split("in step ")[1].split()[0])
    good = sk.solve(EDM.probability_flow(broken), x[:2], **options)
    assert 1 < step <= 3 * good.stats.steps + 60
    with pytest.raises(sk.SolveError, match=r"in step \d+ of the batch, at σ = 1\.7"):
        sk.solve(EDM.probability_flow(broken), x, stepping="batch", **options)
    with pytest.raises(sk.SolveError, match=r"in step \d+ of sample 0, at σ = 1\.7"):
        sk.solve(EDM.probability_flow(broken), x[2:3], stepping="batch", **options)


@pytest.mark.parametrize("method", ["variable_adams", "dopri5", "dpm_adaptive_12"])
def test_a_start_that_is_not_finite_is_named(method):
    x = 80 * normal(4, 2)
    x[3, 1] = math.nan
    options = {"method": method, "sigmas": [80.0, 0.1], "rtol": 1e-3, "sigma_data": 0.6}
    for stepping in ("sample", "batch"):
        with pytest.raises(sk.SolveError, match="not finite in sample 3, at σ = 80"):
            sk.solve(EDM.probability_flow(elementwise), x, stepping=stepping, **options)
    bad = EDM.probability_flow(lambda x, sigma: x / 0)
    with pytest.raises(sk.SolveError, match="not finite in sample 0, at σ = 80"):
        sk.solve(bad, x[:3], **options)


HASTY = Solver(
    sk.RungeKutta(sk.tableaus.BOGACKI_SHAMPINE, Controller(0.0, 1.0, shrink=1e-9)),
    sk.Noise(),
    sk.grids.log,
)


@pytest.mark.parametrize("method", ["variable_adams", "dopri5", "dpm_adaptive_12", HASTY])
def test_a_denoiser_that_breaks_at_once_is_named(method):
    def broken(x, sigma):
        return torch.where(sigma.reshape(-1, 1) < 80 - 1e-12, math.nan, torch.tanh(x))

    options = {"sigmas": [80.0, 0.1], "rtol": 1e-4, "sigma_data": 0.6, "max_nfe": 2000}
    with pytest.raises(sk.SolveError, match=r"in step \d+ of sample 0, at σ = 80: either the den"):
        sk.solve(EDM.probability_flow(broken), 80 * normal(2, 2), method=method, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 1e-16}, r"rtol = 1e-16 is below what torch.float64 can resolve"),
        ({"rtol": 0.0}, "rtol = 0 is below"),
        ({"rtol": -1e-3}, "rtol = -0.001 is below"),
        ({"rtol": math.nan}, "rtol = nan is below"),
        ({"rtol": 1e-3, "atol": -1.0}, "atol = -1; it must be positive"),
        ({"rtol": 1e-3, "atol": math.inf}, "atol = inf"),
        ({"rtol": 1e-3, "max_nfe": 0}, "max_nfe = 0; it must be at least 1"),
        ({"rtol": 1e-3, "stepping": "each"}, "stepping = 'each'; it must be 'sample' or 'batch'"),
        ({"steps": 5, "dense": True}, "about adaptive steps; give rtol="),
        ({"steps": 5, "stepping": "batch"}, "about adaptive steps; give rtol="),
        ({"rtol": 1e-3, "checkpoint": True, "dense": True}, "keeps no states between"),
        ({"rtol": 1e-3, "checkpoint": True, "trajectory": True}, "keeps no states between"),
        ({"steps": 5, "method": "variable_adams"}, "chooses its own steps"),
        ({"rtol": 1e-3, "method": "heun"}, "has no error estimate"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sk.solve(EDM.probability_flow(elementwise), normal(2, 2), **options)
    with pytest.raises(TypeError, match="got steps and rtol"):
        sk.solve(EDM.probability_flow(elementwise), normal(2, 2), steps=4, rtol=1e-3)
    with pytest.raises(ValueError, match="or a float64 state"):
        sk.solve(EDM.probability_flow(elementwise), normal(2, 2).float(), rtol=1e-6)


@pytest.mark.parametrize("stepping", ["sample", "batch"])
@pytest.mark.parametrize("method", ["variable_adams", "dop853", "dpm_adaptive_12"])
def test_no_samples_are_solved(method, stepping):
    x, model = normal(0, 2, 3), Counting(elementwise)
    for options in (
        {},
        {"ending": "denoise"},
        {"dense": True, "trajectory": True},
        {"max_nfe": 1},
        {"sigma_data": 0.5},
    ):
        solved = sk.solve(
            VP.probability_flow(model),
            x,
            method=method,
            sigmas=[80.0, 1.0, 0.1],
            rtol=1e-3,
            stepping=stepping,
            **options,
        )
        assert solved.x.shape == (0, 2, 3)
        assert (solved.nfe, solved.stats.nfe_per_sample.shape) == (0, (0,))
        assert solved.status == "success"
        if "dense" in options:
            assert solved.dense([1.0, 0.1]).shape == (2, 0, 2, 3)
            assert solved.trajectory.shape == (3, 0, 2, 3)


def test_no_samples_are_solved_with_checkpoints():
    flow = EDM.probability_flow(elementwise)
    assert len(sk.solve(flow, normal(0, 2), rtol=1e-3, checkpoint=True).x) == 0


@torch.no_grad()
@pytest.mark.parametrize("method", ["variable_adams", "dopri5_t"])
def test_a_start_at_pure_noise(method, product):
    """σ = ∞ of rectified flows: from ε itself, and to 1e-8."""
    process = sk.RectifiedFlow()
    x = process.prior_sample((5, 3), seed=0, dtype=DOUBLE)
    flow = process.probability_flow(product)
    solved = sk.solve(flow, x, method=method, times=[1.0, 0.05], rtol=1e-9, dense=True)
    # The flow from far out: there x̂ = σ ε + E x0, but for terms of order 1/σ.
    mean, _ = product.moments()
    far = 1e6
    exact = product.flow(far * x + mean, far, solved.grid[-1]) * 0.95
    assert rms(solved.x - exact) < 1e-6  # as exact as the expansion
    other = sk.solve(flow, x, method="dop853_theta", times=[1.0, 0.05], rtol=1e-12)
    assert rms(solved.x - other.x) < 1e-8
    assert solved.grid[0] == math.inf
    middle = solved.dense([math.inf, 1.0])
    assert torch.equal(middle[0], x)
    there = sk.solve(flow, x, method="dop853_theta", times=[1.0, 0.5], rtol=1e-12).x
    assert rms(middle[1] - there) < 1e-7


@torch.no_grad()
@pytest.mark.parametrize("method", ["variable_adams", "bosh3", "dop853_theta", "dpm_adaptive_23"])
def test_encoding_is_the_inverse(method, product):
    x = product.sample(4, 0.1, seed=0)
    rtol = 1e-2 if "dpm" in method else 1e-5
    flow = EDM.probability_flow(product)
    there = sk.solve(flow, x, method=method, sigmas=[0.1, 20.0], rtol=rtol)
    assert rms(there.x / 20 - product.flow(x, 0.1, 20.0) / 20) < 10 * rtol
    back = sk.solve(flow, there.x, method=method, sigmas=[20.0, 0.1], rtol=rtol)
    assert rms(back.x - x) < 100 * rtol
