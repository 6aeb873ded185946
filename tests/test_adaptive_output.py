"""What adaptive solves return: within a budget, between steps, with gradients, every time again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import (
    DOUBLE,
    EDM,
    QUICK,
    VP,
    Counting,
    PeakMemory,
    Perceptron,
    elementwise,
    normal,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk

# ---- budgets ----


def with_clock(law):
    """A denoiser with a last component that is 0 in the data: its state is the noise level itself."""

    def denoiser(x, sigma):
        return torch.cat([law(x[:, :-1], sigma), torch.zeros_like(x[:, -1:])], 1)

    return denoiser


@torch.no_grad()
@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    budget=st.integers(1, 60),
    method=st.sampled_from([*QUICK, "dpm_adaptive_23"]),
    stepping=st.sampled_from(["sample", "batch"]),
)
def test_no_sample_overdraws_and_all_stay_on_the_flow(budget, method, stepping, product):
    """A sample that stops is where the flow has taken it; of levels beyond nothing is said."""
    x = torch.cat([product.sample(4, 80.0, seed=0), torch.full((4, 1), 80.0, dtype=DOUBLE)], 1)
    grid, rtol = sk.grids.log(9, 80.0, 0.05), 1e-2 if "dpm" in method else 1e-4
    options = {"method": method, "rtol": rtol, "stepping": stepping, "sigma_data": 1.0}
    model = Counting(with_clock(product))
    flow = EDM.probability_flow(model)
    solved = sk.solve(flow, x, sigmas=grid[[0, -1]], max_nfe=budget, **options)
    nfe = solved.stats.nfe_per_sample
    assert (nfe <= budget).all()
    assert model.seen == nfe.sum()
    level = solved.x[:, -1]
    arrived = (level < 0.0502).numpy()
    assert (solved.status == "success") == arrived.all()
    if not arrived.all():
        first = int(np.flatnonzero(~arrived)[0])
        said = f"{(~arrived).sum()} of 4 samples (the first is {first}) used up max_nfe = {budget} "
        assert solved.message.startswith(said)
        assert solved.status == "max_nfe"
    exact = product.flow(x[:, :-1], 80.0, level.clamp(max=80.0))
    assert ((solved.x[:, :-1] - exact).abs() < 400 * rtol * (1 + level[:, None])).all()
    # The budget only stops: what there is is the same, in a trajectory, and without a budget.
    if "dop853" in method:
        return  # its interpolant has a price
    kept = sk.solve(flow, x, sigmas=grid, max_nfe=budget, trajectory=True, dense=True, **options)
    levels = kept.x[:, -1]
    assert (kept.stats.nfe_per_sample <= budget).all()
    for n, sigma in enumerate(grid):
        passed, beyond = (levels < 0.99 * sigma, levels > 1.01 * sigma)
        if n == 9:
            passed, beyond = (torch.from_numpy(a) for a in (arrived, ~arrived))
        for states in (kept.trajectory[n], kept.dense(sigma))[: 2 if n < 9 else 1]:
            assert states[passed].isfinite().all()
            assert states[beyond].isnan().all()
        error = kept.trajectory[n, passed, :-1] - product.flow(x[passed, :-1], 80.0, float(sigma))
        assert (error.abs() < 400 * rtol * (1 + sigma)).all()


@pytest.mark.parametrize("method", ["variable_adams", "dopri5_theta", "dop853", "dpm_adaptive_23"])
def test_only_samples_that_arrived_are_denoised(method):
    """They are those that can pay for the last step, too; the others stay where they are."""
    x = 80 * normal(6, 2)
    x[:3] *= 1e-4
    rtol = 3e-2 if "dpm" in method else 1e-5
    options = {"method": method, "rtol": rtol, "sigma_data": 0.6, "trajectory": True}
    flow = EDM.probability_flow(elementwise)
    free = sk.solve(flow, x, sigmas=[80.0, 0.1], **options)
    budget = int(np.sort(free.stats.nfe_per_sample)[2]) + 1
    stopped = sk.solve(flow, x, sigmas=[80.0, 0.1], max_nfe=budget - 1, **options)
    rest = free.stats.nfe_per_sample > budget - 1
    arrived = ~rest
    assert 0 < rest.sum() < 6
    for kind in ("denoise", "half"):
        ended = sk.solve(flow, x, sigmas=[80.0, 0.1, 0.0], max_nfe=budget, ending=kind, **options)
        assert ended.stats.nfe_per_sample.max() <= budget
        np.testing.assert_array_equal(
            ended.stats.nfe_per_sample[arrived], free.stats.nfe_per_sample[arrived] + 1
        )
        assert torch.equal(ended.x[rest], stopped.x[rest])
        assert ended.trajectory[-1, rest].isnan().all()
        denoised = elementwise(free.x[arrived], torch.full((arrived.sum(),), 0.1, dtype=DOUBLE))
        last = denoised if kind == "denoise" else (denoised + free.x[arrived]) / 2
        torch.testing.assert_close(ended.x[arrived], last, rtol=0, atol=1e-12)
        assert torch.equal(ended.trajectory[-1, arrived], ended.x[arrived])


@pytest.mark.parametrize(
    "options",
    [
        {"method": "variable_adams", "sigmas": [80.0, 0.1, 0.0]},
        {"method": "variable_adams", "sigma_data": None},
        {"method": "dop853_theta", "dense": True},
        {"method": "dop853_theta", "trajectory": True, "sigmas": [80.0, 1.0, 0.1]},
        {"method": "bosh3", "dense": True, "ending": "half", "stepping": "batch"},
    ],
)
def test_all_evaluations_are_in_the_budget(options):
    """The last step to the data, the pilot call for its scale, and those of the interpolant.

    A budget that is enough changes nothing, and with one evaluation less there is no arrival.
    """
    model = Counting(elementwise)
    flow = EDM.probability_flow(model)
    options = {"sigmas": [80.0, 0.1], "rtol": 1e-4, "sigma_data": 0.6, **options}
    x = 80 * normal(4, 2)
    free = sk.solve(flow, x, **options)
    enough = sk.solve(flow, x, **options, max_nfe=free.nfe)
    assert (enough.status, enough.nfe) == ("success", free.nfe)
    assert torch.equal(enough.x, free.x)
    for budget in sorted({1, 2, 3, *range(7, free.nfe, 5), free.nfe - 1}):
        model.seen = 0
        short = sk.solve(flow, x, **options, max_nfe=budget)
        assert short.nfe <= budget
        assert model.seen == short.stats.nfe_per_sample.sum()
        assert short.status == "max_nfe"


def test_the_pilot_call_of_a_likelihood_is_in_the_budget():
    x = normal(3, 2)
    free = sk.log_likelihood(EDM, elementwise, x, rtol=1e-3, seed=0)
    for budget in (free.nfe, free.nfe - 1, 1):
        found = sk.log_likelihood(EDM, elementwise, x, rtol=1e-3, seed=0, max_nfe=budget)
        assert (found.status == "success") == (budget == free.nfe)
        assert found.nfe <= budget


# ---- dense output ----


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "upward", "tolerances"),
    [
        ("variable_adams", False, (1e-3, 1e-7)),
        ("variable_adams", True, (1e-3, 1e-7)),
        ("variable_adams_t", False, (1e-3, 1e-7)),
        ("bosh3", False, (1e-3,)),
        ("dopri5_theta", True, (1e-3,)),
        ("tsit5_t", False, (1e-3,)),
        ("dop853_theta", False, (1e-3, 1e-7)),
        ("dpm_adaptive_23", False, (1e-2,)),
    ],
)
def test_dense_output_is_the_flow(method, upward, tolerances, product):
    """At any level, for any sample, without a call of the denoiser, and either way."""
    start, end = (0.1, 40.0) if upward else (40.0, 0.1)
    scale = lambda sigma: float(VP.on_host("scale", VP.on_host("time", sigma)))  # noqa: E731
    x_hat = product.sample(5, start, seed=0)
    x = scale(start) * x_hat
    model, rng = Counting(product), np.random.default_rng(0)
    for rtol in tolerances:
        levels = np.exp(rng.uniform(np.log(0.1), np.log(40.0), 6))
        grid = [start, *np.sort(levels[:3])[:: 1 if upward else -1], end]
        solved = sk.solve(
            VP.probability_flow(model),
            x,
            method=method,
            sigmas=grid,
            rtol=rtol,
            sigma_data=1.0,
            dense=True,
            trajectory=True,
        )
        assert model.seen == solved.stats.nfe_per_sample.sum()
        states = solved.dense(levels)
        assert model.seen == solved.stats.nfe_per_sample.sum()
        model.seen = 0
        for level, state in zip(levels, states, strict=True):
            assert torch.equal(solved.dense(level), state)
            exact = product.flow(x_hat, start, float(level)) * scale(level)
            assert float((state - exact).abs().max()) < 50 * rtol
        for level, state in zip(grid[1:-1], solved.trajectory[1:-1], strict=True):
            torch.testing.assert_close(solved.dense(level), state, rtol=0, atol=1e-12)
        assert torch.equal(solved.dense(start), x)
        assert torch.equal(solved.trajectory[0], x)
        assert torch.equal(solved.trajectory[-1], solved.x)
        for outside in (start, end):
            beyond = outside * (0.99 if outside < 1 else 1.01)
            with pytest.raises(ValueError, match=r"σ.* from 0.1 to 40, where the solve has been"):
                solved.dense([1.0, beyond])
        for wrong in ([[1.0]], [np.nan]):
            with pytest.raises(ValueError, match="dense output takes one σ or a sequence"):
                solved.dense(wrong)


@torch.no_grad()
@pytest.mark.parametrize(
    "method", ["variable_adams_t", "bosh3", "dopri5_theta", "dop853", "dpm_adaptive_12"]
)
def test_keeping_states_changes_nothing(method):
    """Neither the steps nor their results, to the last bit."""
    x = normal(4, 2)
    options = {"method": method, "rtol": 3e-2 if "dpm" in method else 1e-4, "sigma_data": 0.6}
    flow = VP.probability_flow(elementwise)
    plain = sk.solve(flow, x, sigmas=[80.0, 0.1], **options)
    for more in ({"dense": True}, {"trajectory": True}):
        kept = sk.solve(flow, x, sigmas=[80.0, 3.0, 1.0, 0.1], **options, **more)
        assert torch.equal(kept.x, plain.x)
        assert (kept.stats.steps, kept.stats.rejected) == (plain.stats.steps, plain.stats.rejected)


@torch.no_grad()
@pytest.mark.parametrize(
    "method", ["variable_adams", "dopri5_theta", "dop853", "bosh3", "dpm_adaptive_23"]
)
def test_dense_output_reaches_the_end(method, product):
    rng = np.random.default_rng(0)
    for n in range(2 if "dpm" in method else 5):
        high = float(np.exp(rng.uniform(0, 4)))
        low = high * float(np.exp(-rng.uniform(1, 7)))
        x = product.sample(8, high, seed=n)
        solved = sk.solve(
            EDM.probability_flow(product),
            x,
            method=method,
            sigmas=[high, low],
            rtol=3e-2 if "dpm" in method else 1e-3,
            dense=True,
        )
        torch.testing.assert_close(solved.dense(low), solved.x, rtol=0, atol=1e-12)
        near = (np.nextafter(low, high), np.nextafter(high, low))  # τ may round to the ends
        for level, state in zip(near, (solved.x, x), strict=True):
            torch.testing.assert_close(solved.dense(level), state, rtol=1e-9, atol=1e-9)


# ---- gradients ----

GIVEN = {"sigmas": [80.0, 0.05], "sigma_data": 0.7}


@pytest.mark.parametrize(
    ("method", "stepping"),
    [
        ("variable_adams", "sample"),
        ("variable_adams", "batch"),
        ("dopri5_theta", "batch"),
        ("dop853_theta", "sample"),
        ("dpm_adaptive_23", "sample"),
    ],
)
def test_checkpointed_gradients_are_autograds(method, stepping):
    """Also of samples that stopped on the way, and of a last step to the data."""
    net, x = Perceptron(), (80 * normal(3, 3)).requires_grad_()
    rtol = 1e-1 if "dpm" in method else 1e-3
    for more in ({}, {"ending": "denoise"}, {"max_nfe": 24}):
        found = []
        for checkpoint in (False, True):
            solved = sk.solve(
                EDM.probability_flow(net),
                x,
                method=method,
                rtol=rtol,
                stepping=stepping,
                checkpoint=checkpoint,
                **GIVEN,
                **more,
            )
            loss = solved.x.square().sum() + torch.sin(solved.x).sum()
            wanted = [x, *net.parameters()]
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            found.append((solved, [torch.zeros(1) if g is None else g for g in gradients]))
        (plain, exact), (again, replayed) = found
        torch.testing.assert_close(again.x, plain.x, rtol=1e-13, atol=1e-13)
        assert (again.nfe, again.status) == (plain.nfe, plain.status)
        for a, b in zip(replayed, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max()))


def test_gradients_are_those_of_the_flow(product):
    """``d x(0.05)/d x(80)`` along a direction, to the tolerance, by every way."""
    x = product.sample(3, 5.0, seed=0).requires_grad_()
    direction = normal(3, 3)
    flow = EDM.probability_flow(product)
    with torch.no_grad():
        ahead, behind = (product.flow(x + h * direction, 5.0, 0.1) for h in (1e-5, -1e-5))
        exact = (ahead - behind).sum() / 2e-5
    for method, checkpoint in (("variable_adams", True), ("dop853_theta", False)):
        solved = sk.solve(
            flow, x, method=method, sigmas=[5.0, 0.1], rtol=1e-8, checkpoint=checkpoint
        )
        (gradient,) = torch.autograd.grad(solved.x.sum(), x)
        assert float((gradient * direction).sum()) == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize("stepping", ["sample", "batch"])
@pytest.mark.parametrize("method", ["variable_adams", "dopri5_theta", "dop853_theta", "bosh3"])
def test_rejected_trials_leave_no_trace_in_gradients(method, stepping, judged):
    """Also where they were not finite, as for one sample in the 20th call of this denoiser."""
    x = (80 * normal(5, 2)).requires_grad_()
    factor = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    found, options = [], {"method": method, "rtol": 1e-2, "stepping": stepping, **GIVEN}
    for checkpoint in (False, True):
        calls = []

        def trapped(x, sigma, calls=calls):
            calls.append(len(x))
            sign = torch.ones_like(x)
            sign[0] = -1 if len(calls) == 20 else 1
            return factor * torch.tanh(x) * torch.sqrt(1 + sign * (1 + x**2))

        judged.clear()
        flow = EDM.probability_flow(trapped)
        solved = sk.solve(flow, x, checkpoint=checkpoint, **options)
        (broken,) = (row for row in judged if math.isinf(row[3]))
        assert not broken[4]
        assert solved.stats.rejected == sum(not accepted for *_, accepted in judged)
        found.append((solved.x, *torch.autograd.grad(solved.x.sum(), [x, factor])))
    for plain, replayed in zip(*found, strict=True):
        assert plain.isfinite().all()
        torch.testing.assert_close(plain, replayed, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("method", ["variable_adams", "dopri5_theta"])
def test_peak_memory_does_not_grow_with_the_accuracy(method):
    """Of checkpointed gradients, from 1e-2 to 1e-7: with many times the steps."""
    peaks, steps = {}, {}
    for rtol, checkpoint in ((1e-2, True), (1e-7, True), (1e-7, False)):
        x = (80 * normal(2, 1024)).requires_grad_()
        width = torch.tensor(0.8, dtype=DOUBLE, requires_grad=True)
        flow = EDM.probability_flow(lambda x, sigma, w=width: torch.tanh(x * w))
        with PeakMemory() as memory:
            solved = sk.solve(flow, x, method=method, rtol=rtol, checkpoint=checkpoint, **GIVEN)
            torch.autograd.grad(solved.x.sum(), [x, width])
        peaks[rtol, checkpoint] = memory.peak
        steps[rtol] = solved.stats.steps
    assert steps[1e-7] > 2.5 * steps[1e-2]
    assert peaks[1e-7, True] < 1.25 * peaks[1e-2, True]
    assert peaks[1e-7, False] > 1.1 * peaks[1e-7, True]


# ---- reproducibility ----


@torch.no_grad()
@pytest.mark.parametrize("method", ["variable_adams", "dopri5_theta"])
def test_a_solve_is_the_same_again(method):
    """Also with threads, in inference mode, with gradients, and in another memory layout."""
    x = normal(8, 3, 64, 32)  # large enough for torch to share out
    options = {"method": method, "rtol": 1e-2, "sigmas": [80.0, 0.3]}

    def solve(x):
        return sk.solve(VP.probability_flow(elementwise), x, sigma_data=0.6, **options)

    first = solve(x)
    others = [solve(x), solve(x.to(memory_format=torch.channels_last))]
    spread = torch.empty(16, 3, 64, 32, dtype=DOUBLE)
    spread[::2] = x
    others.append(solve(spread[::2]))
    with torch.inference_mode():
        others.append(solve(x))
    with torch.enable_grad():
        others.append(solve(x[:2].clone().requires_grad_()))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        others += [solve(x), solve(x[:1])]
    finally:
        torch.set_num_threads(threads)
    for other in others:
        count = len(other.x)
        assert torch.equal(other.x, first.x[:count])
        nfe = first.stats.nfe_per_sample[:count]
        np.testing.assert_array_equal(other.stats.nfe_per_sample, nfe)


@torch.no_grad()
@pytest.mark.parametrize("method", ["variable_adams", "dop853"])
def test_a_network_may_write_over_its_results(method):
    """As those in CUDA graphs do, whose output is always at the same place."""
    x, buffers = 80 * normal(4, 2), {}
    options = {"method": method, "rtol": 3e-2, "sigma_data": 0.6, "ending": "half", "dense": True}

    def writing(x, sigma):
        buffer = buffers.setdefault(len(x), torch.empty_like(x))
        return buffer.copy_(elementwise(x, sigma))

    a, b = (
        sk.solve(EDM.probability_flow(model), x, sigmas=[80.0, 0.1, 0.0], **options)
        for model in (elementwise, writing)
    )
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.dense(1.0), b.dense(1.0))
