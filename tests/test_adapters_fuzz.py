"""What goes into an adapter wrongly is refused: a clear error, or not a number, never a wrong image."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import DOUBLE, normal
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_adapters import KINDS, PROCESSES, SIGMA_DATA, slope

import sdekit as sk

quick = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
kinds = st.sampled_from(KINDS)
processes = st.sampled_from(list(PROCESSES))
seeds = st.integers(0, 2**31)
VP = sk.VP()


def wrap(network, kind="noise", process=VP, **options):
    level = options.pop("level", sk.levels.Time(process))
    return sk.NetworkDenoiser(
        network, process, predicts=kind, level=level, sigma_data=SIGMA_DATA, **options
    )


# ---------------------------------------------------------------- what is right comes back


@quick
@given(kinds, processes, st.lists(st.floats(0.01, 0.98), min_size=1, max_size=4), seeds)
def test_any_pair_of_data_and_noise_comes_back(kind, name, fractions, seed):
    # No law, no score: the prediction for one x0 and one ε determines x0.
    process = PROCESSES[name]
    t = process.T * torch.tensor(fractions, dtype=DOUBLE)
    assume((t > process.t_min).all())
    column = t[:, None]
    alpha, n = process.scale(column), process.std(column)
    x0, eps = normal(len(t), 2, seed=seed), normal(len(t), 2, seed=seed + 1)
    sigma = n / alpha
    if kind == "velocity":
        out = slope(process.scale, column) * x0 + slope(process.std, column) * eps
    else:
        h = (sigma**2 + SIGMA_DATA**2).sqrt()
        out = {
            "data": x0,
            "noise": eps,
            "score": -eps / n,
            "v": alpha * eps - n * x0,
            "edm": (x0 * sigma**2 - SIGMA_DATA**2 * sigma * eps) / (h * sigma * SIGMA_DATA),
        }[kind]
    seen = []
    denoiser = wrap(lambda x, label: (seen.append(x), out)[1], kind, process)
    found = denoiser(x0 + sigma * eps, sigma[:, 0])
    assert ((found - x0).abs() < 1e-10 * (1 + sigma)).all()
    x = (x0 + sigma * eps) / h if kind == "edm" else alpha * x0 + n * eps
    torch.testing.assert_close(seen[0], x, rtol=1e-8, atol=1e-10)


# ---------------------------------------------------------------- shapes


@quick
@given(kinds, st.lists(st.integers(1, 5), min_size=0, max_size=5), st.booleans())
def test_an_output_of_another_shape_is_refused(kind, shape, learned):
    state = (2, 3, 4)
    doubled = (2, 6, 4)
    denoiser = wrap(lambda x, label: torch.zeros(shape), kind, learned_variance=learned)
    if tuple(shape) == (doubled if learned else state):
        return
    with pytest.raises(
        ValueError, match=r"the network returned shape .* for a state of shape \(2, 3, 4\)"
    ):
        denoiser(torch.zeros(state), 1.0)


@quick
@given(st.lists(st.integers(0, 4), min_size=0, max_size=3))
def test_noise_levels_of_another_shape_are_refused(shape):
    assume(shape not in ([], [3]))
    with pytest.raises(ValueError, match=r"sigma must be a float or have shape \(\) or \(3,\)"):
        wrap(lambda x, label: x)(torch.zeros(3, 2), torch.ones(shape))


@pytest.mark.parametrize("output", [(torch.zeros(2, 3),), None, SimpleNamespace(sample=0), 1.0])
def test_what_is_no_tensor_is_refused(output):
    with pytest.raises(TypeError, match=r"returned a \w+; it must return a tensor"):
        wrap(lambda x, label: output)(torch.zeros(2, 3), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predicts": "epsilon"}, "'epsilon'; it must be one of 'data', 'noise'"),
        ({"process": 3}, "process is a int"),
        ({"network": 3}, "network is a int; it must be callable"),
        ({"level": "sigma"}, "level is a str; it must be callable"),
        ({"sigma_data": -1.0}, "sigma_data = -1.0; it must be positive"),
        ({"predicts": "edm", "sigma_data": None}, "takes sigma_data"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min < sigma_max"),
        ({"sigma_min": math.nan}, "sigma_min < sigma_max"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    right = {
        "network": lambda x, t: x,
        "process": VP,
        "predicts": "noise",
        "level": sk.levels.Sigma(),
    }
    right |= {"sigma_data": 1.0} | options
    with pytest.raises((TypeError, ValueError), match=message):
        sk.NetworkDenoiser(right.pop("network"), right.pop("process"), **right)


# ---------------------------------------------------------------- tables


tables = st.lists(st.integers(-700, 700), min_size=3, max_size=30, unique=True).map(
    lambda logs: np.exp(np.sort(logs) / 100)  # levels that differ by 1 % at least
)


@quick
@given(tables, st.floats(1e-4, 1e4))
def test_indices_of_any_table(table, sigma):
    logs = np.log(table)
    level = torch.tensor([sigma], dtype=DOUBLE)
    inside = logs[0] - 1e-4 <= np.log(sigma) <= logs[-1] + 1e-4
    for order in (1, -1):
        rules = {
            r: sk.levels.Index(table[::order].copy(), r)
            for r in ("interpolated", "nearest", "exact")
        }
        for index in rules.values():
            own = index(torch.from_numpy(table[::order].copy()))
            assert np.allclose(own, np.arange(len(table)), atol=1e-7)
        if not inside:
            for index in rules.values():
                with pytest.raises(ValueError, match="outside of the network's"):
                    index.check(level)
            continue
        rules["nearest"].check(level)
        found = float(rules["interpolated"](level)[0])
        expected = np.interp(np.log(sigma), logs, np.arange(len(table)))
        assert found == pytest.approx(
            expected if order == 1 else len(table) - 1 - expected, abs=1e-9
        )
        chosen = np.log(table[::order][int(rules["nearest"](level)[0])])
        assert abs(chosen - np.log(sigma)) <= np.abs(logs - np.log(sigma)).min() + 1e-12
        if np.abs(logs - np.log(sigma)).min() > 1.001e-5:
            with pytest.raises(ValueError, match=r"not one of|outside of"):
                rules["exact"].check(level)


@quick
@given(tables, st.integers(0, 28), st.sampled_from([0.0, -1.0, math.nan, math.inf, "swap"]))
def test_what_is_no_table_is_refused(table, at, bad):
    at %= len(table) - 1
    if bad == "swap":
        table[[at, at + 1]] = table[[at + 1, at]]
    else:
        table[at] = bad
    with pytest.raises(ValueError, match=r"strictly monotone|positive and finite"):
        sk.levels.Index(table, "nearest")
    with pytest.raises(ValueError, match="must be a sequence of at least two"):
        sk.levels.Index(table[:1], "nearest")
    with pytest.raises(ValueError, match="'interpolated', 'nearest', 'exact'"):
        sk.levels.Index([1.0, 2.0], "closest")


# ---------------------------------------------------------------- schedulers


class FakeModel(torch.nn.Module):
    def forward(self, x, timestep, return_dict=False):
        return (x,)


def scheduler(name="DDIMScheduler", alphas=None, **config):
    if alphas is None:
        alphas = torch.linspace(0.99, 0.01, 50)
    fake = type(name, (), {})()
    fake.alphas_cumprod = alphas
    fake.config = {"prediction_type": "epsilon", "num_train_timesteps": len(alphas)} | config
    return fake


def test_the_schedule_that_others_spoil_is_accepted():
    sk.from_diffusers(FakeModel(), scheduler())


@quick
@given(
    st.integers(0, 49), st.sampled_from(["equal", "up", "zero", "one", "two", "negative", "nan"])
)
def test_a_schedule_that_is_none_is_refused(at, how):
    alphas = torch.linspace(0.99, 0.01, 50, dtype=DOUBLE)
    values = {"zero": 0.0, "one": 1.0, "two": 2.0, "negative": -0.1, "nan": math.nan}
    if how in values:
        assume(not (how == "zero" and at == 49))  # zero terminal signal: the level is dropped
        alphas[at] = values[how]
    else:
        assume(at > 0)
        alphas[at] = alphas[at - 1] + (0.001 if how == "up" else 0.0)
    with pytest.raises(
        ValueError, match=r"must decrease strictly inside of \(0, 1\); at timestep \d+ it is"
    ):
        sk.from_diffusers(FakeModel(), scheduler(alphas=alphas))


@quick
@given(st.integers(1, 2000), st.text("epsilonvsamp_", max_size=12))
def test_a_scheduler_that_contradicts_itself_is_refused(steps, word):
    assume(steps != 50)
    with pytest.raises(ValueError, match=rf"shape \(50,\), but num_train_timesteps = {steps}"):
        sk.from_diffusers(FakeModel(), scheduler(num_train_timesteps=steps))
    assume(word not in ("epsilon", "sample", "original_sample", "v_prediction", "flow_prediction"))
    with pytest.raises(ValueError, match="it must be one of 'epsilon', 'sample'"):
        sk.from_diffusers(FakeModel(), scheduler(prediction_type=word))
    with pytest.raises(TypeError, match="not one of the schedulers known here"):
        sk.from_diffusers(FakeModel(), scheduler(name="LCMScheduler"))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("DDIMScheduler", {"prediction_type": "flow_prediction"}, "without use_flow_sigmas"),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous"},
            "only models of 'v_prediction'",
        ),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas"),
        (
            "EDMEulerScheduler",
            {"prediction_type": "sample", "sigma_min": 0.1, "sigma_max": 1.0},
            "must be 'epsilon' or 'v_prediction'",
        ),
    ],
)
def test_what_a_scheduler_says_and_nobody_knows_is_refused(name, config, message):
    with pytest.raises(ValueError, match=message):
        sk.from_diffusers(FakeModel(), scheduler(name, **config))


def test_models_that_scale_their_time_are_refused():
    class ModelMixin(FakeModel):
        pass

    class FluxTransformer2DModel(ModelMixin):
        config = {}  # noqa: RUF012

    with pytest.raises(TypeError, match="FluxTransformer2DModel is not one of the models known"):
        sk.from_diffusers(FluxTransformer2DModel(), scheduler())

    class UNet2DModel(ModelMixin):
        config = {"time_embedding_type": "learned"}  # noqa: RUF012

    with pytest.raises(ValueError, match="index='nearest'"):
        sk.from_diffusers(UNet2DModel(), scheduler())
    sk.from_diffusers(UNet2DModel(), scheduler(), index="nearest")


# ---------------------------------------------------------------- numbers that are none


@quick
@given(st.floats(1.0, 1e7), st.sampled_from([torch.float16, torch.bfloat16]))
def test_a_range_that_half_precision_cannot_hold_is_refused(highest, dtype):
    network = torch.nn.Linear(2, 2).to(dtype)
    process = sk.VE(0.01, highest)
    if dtype == torch.float16 and 6 * highest > 65504:
        with pytest.raises(
            ValueError, match=r"torch.float16, whose largest number is 65504, .* input"
        ):
            wrap(network, "noise", process)
    else:
        wrap(network, "noise", process)
    wrap(network, "noise", sk.VP())  # whose input is scaled
    if dtype == torch.float16:
        with pytest.raises(ValueError, match=r"its output reaches about"):
            wrap(network, "score", sk.VE(1e-6 / highest, 10.0))


@quick
@given(st.floats(0.1, 6e5), seeds)
def test_an_input_that_overflows_gives_no_number(size, seed):
    # tanh(∞) = 1: without a look at the input the result would be finite, and wrong.
    denoiser = wrap(
        lambda x, label: torch.tanh(x),
        "data",
        sk.EDM(),
        dtype=torch.float16,
        sigma_max=1e4,
    )
    x = size * normal(5, 3, seed=seed)
    found = denoiser(x, 100.0)
    overflows = (x.abs() > 65519).any(1)
    assert torch.equal(found.isnan().any(1), overflows)
    assert found[~overflows].isfinite().all()
    if overflows.any():
        flow = sk.EDM().probability_flow(denoiser)
        with pytest.raises(sk.SolveError, match=r"non-finite in step 1 of 3"):
            sk.solve(flow, x, method="heun", sigmas=[80.0, 10.0, 1.0, 0.1])


@settings(deadline=None, max_examples=30)
@given(
    kinds,
    st.sampled_from(["heun", "adams2", "ddim", "dpmpp_2m"]),
    st.integers(0, 4),
    st.integers(0, 2),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_a_network_that_returns_no_number_is_reported(kind, method, step, sample, value):
    sigmas = np.array([10.0, 5.0, 2.0, 1.0, 0.5, 0.2])

    def network(x, sigma):
        out = 0.1 * x
        spoilt = (sigma > 0.99 * sigmas[step]) & (sigma < 1.01 * sigmas[step])
        out[sample, 0] = torch.where(spoilt[sample], value, out[sample, 0])
        return out

    denoiser = wrap(network, kind, level=sk.levels.Sigma())
    flow = sk.EDM().probability_flow(denoiser)
    # A method of two evaluations meets the level at the end of the step before.
    first = max(step, 1) if method == "heun" else step + 1
    with pytest.raises(
        sk.SolveError, match=rf"non-finite in step {first} of 5, .* in sample {sample}:"
    ):
        sk.solve(flow, 10 * normal(3, 2), method=method, sigmas=sigmas, sigma_data=1.0)
