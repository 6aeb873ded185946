"""Baselines of calibration: GITS against brute force, DPM-Solver-v3 against what makes it exact."""

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

import sdekit as sk
from sdekit.calibration.gits import cheapest_path, gits, step_costs
from sdekit.calibration.teacher import teach
from sdekit.calibration.v3 import _levels as v3_levels
from sdekit.calibration.v3 import _signs, dpm_solver_v3, statistics
from sdekit.solvers.adams import clock_integrals

HIGH, LOW, STD = 80.0, 0.002, 0.7


def gaussian(mean=0.0, dim=3):
    law = sk.Gaussian(mean * np.ones(dim), STD**2 * np.eye(dim))
    return law, sk.EDM(LOW, HIGH).probability_flow(law)


@functools.cache
def mixture():
    law = sk.GaussianMixture.random(components=4, dim=3, seed=0)
    flow = sk.EDM(LOW, HIGH).probability_flow(law)
    x = law.sample(64, sigma=HIGH, seed=3, dtype=torch.float64)
    return flow, x, sk.solve(flow, x, method="dopri5", sigmas=[HIGH, LOW], rtol=1e-10).x


@functools.cache
def v3_of_mixture():
    return dpm_solver_v3(mixture()[0], shape=(3,), samples=128, seed=1, order=2, corrector=False)


def taught(flow, levels, samples=32, dim=3, x=None):
    shape = (dim,) if x is None else None
    options = dict.fromkeys(("sigma_max", "sigma_min", "device"))
    return teach(flow, levels, samples=samples, seed=0, shape=shape, x=x, **options)


@given(
    st.integers(3, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
    st.integers(0, 2**32 - 1),
    st.floats(0.5, 2.0),
)
@settings(max_examples=60, deadline=None)
def test_path_is_the_cheapest_of_all(sizes, seed, coefficient):
    n, steps = sizes
    cost = np.random.default_rng(seed).exponential(size=(n, n))
    cost[np.tril_indices(n)] = np.inf

    def total(path):
        return sum(coefficient**k * cost[i, j] for k, (i, j) in enumerate(itertools.pairwise(path)))

    paths = [(0, *inner, n - 1) for inner in itertools.combinations(range(1, n - 1), steps - 1)]
    found = cheapest_path(cost, steps, coefficient)
    assert tuple(found) in paths
    assert total(found) == pytest.approx(min(map(total, paths)), rel=1e-12)


def test_cost_of_a_step_is_that_of_a_gaussian():
    """There ``x̂' = x̂ h'/h`` and Euler's step is ``x̂ (1 + (σ' − σ) σ/h²)``."""
    _, flow = gaussian()
    found = taught(flow, functools.partial(sk.grids.karras, 11))
    sigma, cost = found.levels, step_costs(found)
    h = np.hypot(sigma, STD)
    size = found.states[0].norm(dim=1).mean().item() / h[0]
    euler = h[:, None] * (1 + (sigma - sigma[:, None]) * (sigma / h**2)[:, None])
    expected = size * np.abs(euler - h)
    above = np.triu_indices(len(sigma), 1)
    np.testing.assert_allclose(cost[above], expected[above], rtol=2e-3, atol=1e-5)
    assert np.isinf(cost[np.tril_indices(len(sigma))]).all()


def test_gits_beats_the_grid_it_chooses_from():
    """One Euler step after the other, on samples that the levels were not chosen by."""
    flow, x, reference = mixture()
    levels = gits(flow, 8, shape=(3,), samples=64, seed=5, candidates=40)
    grid = sk.grids.karras(39, HIGH, LOW)
    assert len(levels) == 9
    assert set(levels) <= set(grid)
    assert (levels[0], levels[-1]) == (HIGH, LOW)

    def error(sigmas):
        return (sk.solve(flow, x, method="euler", sigmas=sigmas).x - reference).square().mean()

    assert error(levels) < 0.5 * error(sk.grids.karras(8, HIGH, LOW))


def test_starts_of_the_process_are_taken():
    """At the scale of the process, with levels of one's own."""
    law, _ = gaussian()
    process = sk.VP()
    t = float(process.on_host("time", 5.0))
    x = float(process.on_host("scale", t)) * law.sample(16, sigma=5.0, seed=0, dtype=torch.float64)
    flow = process.probability_flow(law)
    levels = gits(flow, 3, x=x, sigma_max=5.0, sigma_min=0.1, candidates=12)
    assert (levels[0], levels[-1]) == (5.0, 0.1)
    same = gits(
        sk.EDM(LOW, HIGH).probability_flow(law),
        3,
        x=law.sample(16, sigma=5.0, seed=0, dtype=torch.float64),
        sigma_max=5.0,
        sigma_min=0.1,
        candidates=12,
    )
    np.testing.assert_array_equal(levels, same)


@pytest.mark.parametrize("mean", [0.0, 1.5])
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_v3_is_exact_for_isotropic_gaussians(mean, steps):
    """``l`` leaves nothing; the mean, which stands for the paper's ``b``, is found exactly."""
    law, flow = gaussian(mean)
    x = law.sample(16, sigma=HIGH, seed=3, dtype=torch.float64)
    solver = exact_v3(mean)
    found = sk.solve(flow, x, method=solver, steps=steps).x
    torch.testing.assert_close(found, law.flow(x, HIGH, LOW), rtol=0, atol=1e-7)


@functools.cache
def exact_v3(mean):
    return dpm_solver_v3(gaussian(mean)[1], shape=(3,), samples=32)


def test_v3_knows_each_component():
    """Independent components of any sizes are exact, too."""
    variances = np.array([1.0, 0.1, 0.01])
    law = sk.Gaussian(np.array([0.5, -1.0, 0.2]), np.diag(variances))
    flow = sk.EDM(LOW, HIGH).probability_flow(law)
    solver = dpm_solver_v3(flow, shape=(3,), samples=32)
    x = law.sample(16, sigma=HIGH, seed=3, dtype=torch.float64)
    found = sk.solve(flow, x, method=solver, steps=3).x
    torch.testing.assert_close(found, law.flow(x, HIGH, LOW), rtol=0, atol=1e-7)
    sigma = np.geomspace(HIGH, LOW, 9)
    expected = variances / (sigma[:, None] ** 2 + variances)
    np.testing.assert_allclose(solver.coordinates.rest(sigma), expected, rtol=1e-7)


def test_v3_coordinates_are_those_of_the_flow():
    """``d log h/dλ = −l`` and ``dW/dσ`` is the derivative of ``W``, with the statistics as they are."""
    coordinates = v3_of_mixture().coordinates
    sigma, step = np.geomspace(50.0, 0.003, 12), 1e-5
    up, down = (coordinates.at(sigma * math.exp(s)) for s in (-step, step))
    rate = (np.log(coordinates.h(up)) - np.log(coordinates.h(down))) / (2 * step)
    np.testing.assert_allclose(rate, coordinates.rest(sigma) - 1, atol=1e-8)
    rate = (coordinates.clock(up) - coordinates.clock(down)) / (up.sigma - down.sigma)[:, None]
    np.testing.assert_allclose(rate, coordinates.clock_rate(sigma), rtol=1e-6)
    rest = (coordinates.rest(up.sigma) - coordinates.rest(down.sigma)) / (2 * step)
    np.testing.assert_allclose(coordinates.rest_rate(sigma), rest, rtol=1e-6, atol=1e-9)
    _, slope = coordinates.field(coordinates.at(sigma))
    _, first = coordinates.field(coordinates.at(np.array([HIGH])))
    np.testing.assert_allclose(first, -1.0)
    assert (slope < 0).all()


def test_scaling_is_the_regression_of_the_change_on_what_is_left():
    """By the slopes along trajectories that a dense teacher gives."""
    flow, _, _ = mixture()
    x = flow.model.sample(64, sigma=HIGH, seed=7, dtype=torch.float64)
    found = taught(flow, v3_levels, x=x)
    coordinates = statistics(flow, found, 0)
    lam = -math.log(1.0) + np.arange(-4, 5) * 0.02
    dense = np.exp(-lam)
    path = sk.solve(flow, x, sigmas=[HIGH, *dense], rtol=1e-9, trajectory=True).trajectory[1:]
    mean = torch.as_tensor(coordinates.mean)
    left = [
        torch.as_tensor(rest) * (state - mean)
        - (flow.model(state, torch.tensor(sigma, dtype=torch.float64)) - mean)
        for rest, state, sigma in zip(coordinates.rest(dense), path, dense, strict=True)
    ]
    change = (left[5] - left[3]) / 0.04
    f = left[4] - left[4].mean(0)
    expected = (f * change).mean(0) / f.square().mean(0)
    scaling = np.gradient(-np.log(-coordinates.field(coordinates.at(dense))[1]), 0.02, axis=0)[4]
    np.testing.assert_allclose(scaling, expected.numpy(), atol=0.12)


@pytest.mark.parametrize(("order", "measured"), [(1, 1.0), (2, 2.0)])
def test_v3_converges_at_its_order(order, measured):
    flow, x, reference = mixture()
    solver = replace(v3_of_mixture(), scheme=sk.Adams(order, tail="lower"))
    assert solver.scheme.order == order
    errors = [
        float((sk.solve(flow, x, method=solver, sigmas=grid).x - reference).square().mean().sqrt())
        for grid in (sk.grids.karras(n, HIGH, LOW) for n in (40, 80, 160))
    ]
    slopes = -np.diff(np.log2(errors))
    assert slopes[-1] == pytest.approx(measured, abs=0.2)


def test_v3_corrects_by_default():
    flow, x, reference = mixture()
    corrected = replace(v3_of_mixture(), scheme=sk.Adams(2, corrector=True, tail="lower"))
    errors = [
        float((sk.solve(flow, x, method=m, steps=20).x - reference).square().mean())
        for m in (corrected, v3_of_mixture())
    ]
    assert errors[0] < 0.3 * errors[1]


@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_probes_are_columns_of_a_hadamard_matrix(d, seed):
    rows = 2 ** max(1, math.ceil(math.log2(d)))
    signs = _signs(np.random.default_rng(seed), rows, d)
    np.testing.assert_array_equal(signs.T @ signs, rows * np.eye(d))
    columns = {tuple(column) for column in hadamard(rows).T}
    assert {tuple(column) for column in signs.T} <= columns


def test_a_clock_is_the_integral_of_its_rate():
    coordinates = v3_of_mixture().coordinates
    begin, end = (coordinates.at(np.array([s])) for s in (3.0, 0.4))
    whole = clock_integrals(coordinates, begin, end, lambda rows, tau: np.ones((1, *tau.shape)))
    difference = coordinates.clock(end) - coordinates.clock(begin)
    np.testing.assert_allclose(difference, whole[:, 0], rtol=1e-10)


def test_levels_outside_the_statistics_are_refused():
    flow, x, _ = mixture()
    with pytest.raises(ValueError, match=r"from sigma = 80 to 0\.002, and .* is asked for"):
        sk.solve(flow, x, method=v3_of_mixture(), sigmas=[80.0, 1.0, 0.001])


def test_a_denoiser_without_derivatives_is_refused():
    law, _ = gaussian()

    def detached(x, sigma):
        return law(x, sigma).detach()

    flow = sk.EDM(LOW, HIGH).probability_flow(detached)
    with pytest.raises(ValueError, match="does not depend differentiably"):
        dpm_solver_v3(flow, shape=(3,), samples=8)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"steps": 12}, ValueError, "candidates = 12; 12 steps need at least 13 levels"),
        ({"coefficient": 0.0}, ValueError, "coefficient = 0.0; it must be positive"),
        ({"shape": None}, TypeError, "give either x, start states, or shape"),
        ({"x": torch.zeros(2, 3)}, TypeError, "give either x, start states, or shape"),
        ({"sigma_max": 0.001}, ValueError, "0 < sigma_min < sigma_max < ∞ is needed"),
        ({"samples": 0}, ValueError, "samples = 0; it must be at least 1"),
        ({"problem": torch.sin}, TypeError, "problem is a builtin"),
    ],
)
def test_bad_input_is_refused(options, error, match):
    good = {"problem": gaussian()[1], "steps": 3, "shape": (3,), "candidates": 12}
    with pytest.raises(error, match=match):
        gits(**good | options)
