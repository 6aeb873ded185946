"""The scale of the data: where it comes from, what it costs, and that a wrong one is no error."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from orders import flow_order

import sdekit as sk
from sdekit.distributions import GaussianMixture
from sdekit.solvers.registry import Solver

DOUBLE = torch.float64
EDM = sk.EDM()


class Recorder:
    """A denoiser that counts its calls, and a grid that notes the scale it is given."""

    def __init__(self, law, **attributes) -> None:
        self.law, self.calls, self.scales = law, 0, []
        for name, value in attributes.items():
            setattr(self, name, value)

    def __call__(self, x, sigma, label=None):
        self.calls += 1
        return self.law(x, sigma)

    def grid(self, n, high, low, process=None, *, sigma_data=1.0):
        self.scales.append(sigma_data)
        return sk.grids.theta(n, high, low, process, sigma_data=sigma_data)

    def solver(self, scheme=None) -> Solver:
        return Solver(scheme or sk.Adams(2, corrector=True), sk.Preconditioned(), self.grid)

    def solve(self, x, **options) -> sk.Solution:
        self.calls = 0
        scheme = sk.RungeKutta(sk.tableaus.DORMAND_PRINCE) if "rtol" in options else None
        flow = EDM.probability_flow(options.pop("denoiser", self))
        return sk.solve(flow, x, method=self.solver(scheme), **options)


@pytest.fixture
def start(product):
    return product.sample(4, 80.0, seed=0)


def test_a_given_scale_is_taken(product, start):
    recorder = Recorder(product, sigma_data=3.0)
    assert recorder.solve(start, steps=6, sigma_data=0.7).nfe == recorder.calls == 6
    assert recorder.scales == [0.7]


def test_a_denoiser_says_its_scale(product, start):
    """Also through functools.partial, which fixes its conditioning."""
    recorder = Recorder(product, sigma_data=0.6)
    twice = functools.partial(functools.partial(recorder, label=3), label=4)
    for denoiser in (recorder, functools.partial(recorder, label=3), twice):
        recorder.scales.clear()
        assert recorder.solve(start, steps=6, denoiser=denoiser).nfe == recorder.calls == 6
        assert recorder.scales == [0.6]
    sk.sample(EDM, twice, (4, 3), method=recorder.solver(), steps=6)
    assert set(recorder.scales) == {0.6}


@pytest.mark.parametrize("ending", ["stop", "denoise", "half"])
def test_the_pilot_is_one_of_the_steps(ending, product, start):
    """One call, counted: never more calls than steps, whatever the ending."""
    recorder = Recorder(product)
    for steps in (2, 3, 10):
        recorder.scales.clear()
        solved = recorder.solve(start, steps=steps, ending=ending)
        assert solved.nfe == recorder.calls == steps
        assert len(solved.grid) - 1 == solved.stats.steps == steps - 1
        recorder.calls = 0
        sk.sample(EDM, recorder, (4, 3), method=recorder.solver(), steps=steps, ending=ending)
        assert recorder.calls == steps
        assert len(set(recorder.scales)) <= 1


@pytest.mark.parametrize("ending", ["stop", "denoise"])
def test_one_step_has_no_pilot(ending, product, start):
    """The scale is then that of images in [−1, 1]; a denoising step does not depend on it."""
    recorder = Recorder(product)
    solved = recorder.solve(start, steps=1, ending=ending)
    assert solved.nfe == recorder.calls == 1
    assert recorder.scales == ([0.5] if ending == "stop" else [])
    expected = sk.solve(
        EDM.probability_flow(product),
        start,
        method=Solver(sk.Adams(2, corrector=True), sk.Preconditioned(0.5), sk.grids.theta),
        steps=1,
        sigma_data=0.5,
        ending=ending,
    )
    assert torch.equal(solved.x, expected.x)


def test_the_pilot_is_counted_on_top_of_what_is_asked_for(product, start):
    """An explicit grid keeps its levels, a tolerance its meaning; a prepared solve has it behind it."""
    recorder = Recorder(product)
    solved = recorder.solve(start, sigmas=[80.0, 2.0, 0.3, 0.01])
    assert solved.nfe == recorder.calls == 4
    assert len(solved.grid) == 4
    solved = recorder.solve(start[:1], rtol=1e-3)
    assert solved.nfe == recorder.calls
    known = recorder.solve(start[:1], rtol=1e-3, sigma_data=0.9)
    assert known.nfe == recorder.calls
    recorder.calls = 0
    prepared = sk.prepare(EDM.probability_flow(recorder), start, method=recorder.solver(), steps=6)
    assert recorder.calls == 1
    prepared(start)
    assert recorder.calls == 6


def test_the_pilot_sees_no_state(product, start):
    """What it says does not depend on the state, nor on how a batch is split; it has no gradient."""
    recorder = Recorder(product)
    for x in (start, start[:2], 100 * start.flip(0), start.clone().requires_grad_()):
        assert recorder.solve(x, steps=4).x.requires_grad == x.requires_grad
    assert len(recorder.scales) == 4
    assert len(set(recorder.scales)) == 1
    whole = recorder.solve(start, steps=6).x
    parts = [recorder.solve(part, steps=6).x for part in (start[:2], start[2:])]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-13)


LAWS = {
    "one mode": (1, 8, 3),
    "one dimension": (3, 1, 1),
    "a plane": (8, 2, 1),
    "sixteen dimensions": (3, 16, 0),
}


@pytest.mark.parametrize("scale", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", LAWS)
def test_the_pilot_is_right_within_a_third(name, scale):
    """On mixtures whose modes are not far apart at the noise level it looks at, σ = 1."""
    components, dim, seed = LAWS[name]
    law = GaussianMixture.random(components, dim, seed=seed)
    std = float((law.moments()[1].trace() / dim).sqrt())

    def scaled(x, sigma):
        return law(x * std / scale, sigma * std / scale) * scale / std

    recorder = Recorder(scaled)
    recorder.solve(torch.zeros((2, dim), dtype=DOUBLE), steps=3)
    assert 1 / 1.34 < recorder.scales[0] / scale < 1.34


@pytest.mark.parametrize("sigma_data", [0.15, 5.0])
@pytest.mark.parametrize("name", ["adams2", "heun_theta"])
def test_a_wrong_scale_costs_accuracy_only(name, sigma_data, product):
    scheme = sk.methods()[name].solver.scheme
    solver = Solver(scheme, sk.Preconditioned(sigma_data), sk.grids.log)
    steps = [48, 72, 96] if name == "heun_theta" else [192, 288, 384]
    order = flow_order(solver, product, EDM, steps=steps)
    assert order == pytest.approx(scheme.order, abs=0.2)


def test_methods_that_need_no_scale_ask_for_none(product, start):
    recorder = Recorder(product)
    for name in ("heun", "dpmpp_2m", "edm_heun", "dopri5_t"):
        solver = sk.methods()[name].solver
        recorder.calls = 0
        solved = sk.solve(EDM.probability_flow(recorder), start, method=name, steps=4)
        assert solved.nfe == recorder.calls == 4 * solver.scheme.nfe_per_step


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, np.inf, np.nan])
def test_a_bad_scale_is_refused(sigma_data, product, start):
    for name in ("adams3", "heun_theta"):
        with pytest.raises(ValueError, match=f"sigma_data = {sigma_data}"):
            sk.solve(
                EDM.probability_flow(product), start, method=name, steps=4, sigma_data=sigma_data
            )


@pytest.mark.parametrize(
    ("denoiser", "error", "message"),
    [
        (lambda x, s: x / 0.0, sk.SolveError, "give sigma_data="),
        (lambda x, s: x[:1], ValueError, r"returned shape \(1, 3\)"),
        (lambda x, s: x.mul_(0.5), ValueError, "changed its input in place"),
        (lambda x, s: 1.0, TypeError, "must return a tensor"),
    ],
)
def test_a_pilot_that_fails_says_so(denoiser, error, message, start):
    with pytest.raises(error, match=message):
        sk.solve(EDM.probability_flow(denoiser), start, method="adams3", steps=4)
