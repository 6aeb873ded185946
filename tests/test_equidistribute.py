"""Fitted grids: the derivative, the equidistribution, what they gain, and their files."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss

import sdekit as sk
from sdekit import grids
from sdekit.bench.problems import PROCESS, make_problem, rms
from sdekit.equidistribute import _derivative_rms, equidistribute, run_pilot
from sdekit.fitted import FittedGrid

DOUBLE = torch.float64
SPECTRUM = 1 / np.arange(1.0, 9) ** 2
GAUSSIAN = sk.Gaussian(np.zeros(8), np.diag(SPECTRUM))
FLOW = sk.EDM().probability_flow(GAUSSIAN)


@pytest.fixture(scope="module")
def fitted() -> FittedGrid:
    return equidistribute(FLOW, shape=(8,))


def state(theta, variance, sigma_data):
    """u of a trajectory of N(0, variance) that has u = 1 at θ = π/2: x̂ = a sqrt(variance + σ²)."""
    return torch.hypot(math.sqrt(variance) * torch.cos(theta), sigma_data * torch.sin(theta)) / (
        sigma_data
    )


def slope(theta, variance, sigma_data, order=0):
    """F = −du/dθ and its derivatives, by nested automatic differentiation."""
    function = functools.partial(state, variance=variance, sigma_data=sigma_data)
    for _ in range(order + 1):
        function = torch.func.grad(function)
    return -torch.func.vmap(function)(torch.as_tensor(theta))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivative_is_the_exact_one(order):
    """On the pilot's default points, for one Gaussian of half and one of twice the width."""
    theta = np.arctan(grids.power_theta(59, 80.0, 0.002))
    for variance in (0.25, 4.0):
        values = [value[None, None] for value in slope(theta, variance, 1.0)]
        exact = slope(theta, variance, 1.0, order).abs().numpy()
        found = _derivative_rms(theta, values, order)
        np.testing.assert_allclose(found, exact, atol=0.03 * exact.max())
        # What the density is made of is the root; near a zero of the derivative nothing is known.
        root = (found / exact)[exact > 0.02 * exact.max()] ** (1 / (order + 1))
        np.testing.assert_allclose(root, 1, atol=0.08)


@pytest.mark.parametrize("order", [2, 3])
def test_known_density_of_a_gaussian(order):
    """The cumulative share of steps is the integral of the exact density, but for the smoothing."""
    x = 80 * torch.ones((1, 8), dtype=DOUBLE)  # every direction has the same amplitude
    grid = equidistribute(FLOW, x=x, order=order, sigma_data=0.5)
    phi = np.linspace(*np.arctan(np.sqrt(np.array([80.0, 0.002]) / 0.5)), 4001)
    theta = np.arctan(np.tan(phi) ** 2)
    derivatives = torch.stack([slope(theta, v, 0.5, order) for v in SPECTRUM])
    density = derivatives.square().mean(0).sqrt().numpy() ** (1 / (order + 1))
    steps = -np.diff(theta) * (density[1:] + density[:-1]) / 2
    expected = np.concatenate([[0.0], np.cumsum(steps) / steps.sum()])
    expected = 0.9 * expected + 0.1 * np.linspace(0, 1, 4001)
    levels = 0.5 * np.tan(phi) ** 2
    at_levels = np.interp(-np.array(grid.levels), -levels, expected)
    np.testing.assert_allclose(grid.cumulative, at_levels, atol=0.005)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_local_errors_of_adams_are_equal(order):
    """Adams–Bashforth of this order, each step from exact values, for samples not in the pilot."""
    sigma_data = GAUSSIAN.sigma_data
    grid = equidistribute(FLOW, shape=(8,), order=order)
    amplitude = torch.randn((256, 8), generator=torch.Generator().manual_seed(5), dtype=DOUBLE)

    def spread(sigmas):
        theta = torch.as_tensor(np.arctan(sigmas / sigma_data))
        u = torch.stack([state(theta, v, sigma_data) for v in SPECTRUM])
        F = torch.stack([slope(theta, v, sigma_data) for v in SPECTRUM])
        x, w = leggauss(order)
        errors = []
        for i in range(order - 1, len(theta) - 1):
            nodes = theta[i - order + 1 : i + 1].numpy()
            half = float(theta[i + 1] - theta[i]) / 2
            points = float(theta[i]) + half * (1 + x)
            # Integral of the polynomial through the last values of F.
            powers = np.vander(nodes - nodes[-1], order, increasing=True)
            moments = np.vander(points - nodes[-1], order, increasing=True).T @ (half * w)
            weights = torch.as_tensor(np.linalg.solve(powers.T, moments))
            step = u[:, i + 1] - u[:, i] + F[:, i - order + 1 : i + 1] @ weights
            errors.append(rms(amplitude * step))
        return max(errors) / np.mean(errors)

    fitted = spread(grid(40, 80.0, 0.002))
    assert fitted < 2.5
    assert fitted < 0.6 * spread(grids.theta(40, 80.0, 0.002, sigma_data=sigma_data))
    assert fitted < 0.6 * spread(grids.karras(40, 80.0, 0.002))


@pytest.mark.parametrize(
    ("name", "bound"), [("mixture2d", 0.2), ("mixture16d", 1.0), ("broad3d", 0.4)]
)
def test_gain_on_mixtures(name, bound):
    """Classical Runge–Kutta, against the θ grid at 40 to 80 evaluations, on samples of its own."""
    problem = make_problem(name, samples=32, seed=1)
    sigma_data = problem.denoiser.sigma_data
    grid = equidistribute(
        PROCESS.probability_flow(problem.denoiser),
        shape=tuple(problem.start.shape[1:]),
        sigma_max=80.0,
        sigma_min=0.002,
    )
    theta = functools.partial(grids.theta, sigma_data=sigma_data)
    solver = sk.Solver(sk.RungeKutta(sk.tableaus.RK4), sk.Preconditioned(sigma_data), grid)

    def solve(grid, steps):
        return problem.solve(solver, sigmas=grid(steps, 80.0, 0.002))[0]

    reference = solve(grid, 200)
    ratios = [
        rms(solve(grid, steps) - reference) / rms(solve(theta, steps) - reference)
        for steps in (10, 15, 20)
    ]
    assert max(ratios) < bound


@pytest.mark.parametrize("name", ["product4d", "mixture8d"])
def test_the_best_grid_is_judged_on_the_pilot(name):
    """Fitted for n steps, the default method is better than on its own grid, on other samples."""
    problem = make_problem(name, samples=32, seed=1)
    pilot = make_problem(name, samples=32, seed=2)
    flow = sk.EDM().probability_flow(problem.denoiser)
    calls = []

    def counted(x_hat, sigma):
        calls.append(len(x_hat))
        return problem.denoiser(x_hat, sigma)

    solver = sk.methods()["bayesian_adams"].solver
    reference = sk.solve(flow, problem.start, rtol=1e-9, sigmas=[80.0, 0.002]).x

    def error(grid):
        sigmas = grid(20, 80.0, 0.002)
        return rms(sk.solve(flow, problem.start, method=solver, sigmas=sigmas).x - reference)

    fitted = equidistribute(
        sk.EDM().probability_flow(counted),
        20,
        x=pilot.start,
        sigma_data=problem.denoiser.sigma_data,
    )
    own = functools.partial(grids.balanced, sigma_data=problem.denoiser.sigma_data)
    assert error(fitted) < 0.8 * error(own)
    assert max(calls) == 32
    assert sum(calls) <= 32 * fitted.nfe  # samples that have arrived leave the adaptive solve


def test_pilot_is_cheap_counted_and_deterministic(fitted):
    calls = []

    def denoiser(x_hat, sigma):
        calls.append(len(x_hat))
        return GAUSSIAN(x_hat, sigma)

    flow = sk.EDM().probability_flow(denoiser)
    again = equidistribute(flow, shape=(8,), sigma_data=GAUSSIAN.sigma_data)
    assert again == fitted
    assert calls == [64] * fitted.nfe
    assert fitted.nfe <= 300
    assert equidistribute(FLOW, shape=(8,), seed=1) != fitted


def test_the_process_does_not_matter(fitted):
    """In x̂ all processes are one: the same start gives the same grid."""
    noise = torch.randn((64, 8), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    for process in (sk.VP(t_min=1e-7), sk.RectifiedFlow(t_min=1e-4)):
        std = float(process.on_host("std", process.on_host("time", 80.0)))
        flow = process.probability_flow(GAUSSIAN)
        grid = equidistribute(flow, x=noise * std, sigma_max=80.0, sigma_min=0.002)
        assert grid.seed is None
        np.testing.assert_allclose(grid.cumulative, fitted.cumulative, atol=1e-6)
        drawn = equidistribute(flow, shape=(8,), sigma_max=80.0, sigma_min=0.002)
        np.testing.assert_allclose(drawn.cumulative, fitted.cumulative, atol=1e-6)


def test_from_infinity_and_in_single_precision(fitted, tmp_path):
    """Rectified flow starts at σ = ∞; a model in float32 gives nearly the same grid."""

    def single(x_hat, sigma):
        return GAUSSIAN(x_hat.float(), sigma.float())

    for model in (GAUSSIAN, single):
        flow = sk.RectifiedFlow(t_min=0.002).probability_flow(model)
        grid = equidistribute(flow, shape=(8,), sigma_data=GAUSSIAN.sigma_data)
        grid.save(tmp_path / "grid.json")
        assert FittedGrid.load(tmp_path / "grid.json") == grid
        sigmas = grid(30, math.inf, 0.005)
        assert np.isinf(sigmas[0])
        assert (np.diff(sigmas[1:]) < 0).all()
        np.testing.assert_allclose(grid(20, 80.0, 0.005), fitted(20, 80.0, 0.005), rtol=0.2)


def test_range_of_the_model():
    """The digits denoiser says its σ_d and range; conditioning by functools.partial keeps both."""
    denoiser = sk.load_digits_denoiser(dtype=DOUBLE)
    model = functools.partial(denoiser, class_labels=torch.full((2,), 3))
    flow = sk.EDM(1e-4, 200.0).probability_flow(model)
    grid = run_pilot(flow, shape=(1, 8, 8), samples=2, points=12).equidistributed()
    assert (grid.levels[0], grid.levels[-1]) == (denoiser.sigma_max, denoiser.sigma_min)
    assert grid.sigma_data == denoiser.sigma_data
    assert (grid.samples, grid.nfe) == (2, 5 * 12 - 4)


def test_nothing_to_resolve():
    """Where F = 0 the grid is uniform in arctan sqrt(σ/σ_d)."""
    grid = equidistribute(FLOW, x=torch.zeros((1, 8), dtype=DOUBLE), sigma_data=0.3)
    expected = grids.power_theta(10, 80.0, 0.002, p=0.5, sigma_data=0.3)
    np.testing.assert_allclose(grid(10, 80.0, 0.002), expected, rtol=1e-9)


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 300), high=st.floats(1.0, 80.0), low=st.floats(0.002, 0.5))
def test_contract(fitted, n, high, low):
    grid = fitted(n, high, low)
    assert grid.dtype == np.float64
    assert len(grid) == n + 1
    assert (grid[0], grid[-1]) == (high, low)
    assert (np.diff(grid) < 0).all()


def test_part_of_the_range_keeps_the_density(fitted):
    whole: grids.Grid = fitted
    sigmas = whole(24, 80.0, 0.002)
    part = fitted(12, sigmas[6], sigmas[18])
    np.testing.assert_allclose(part, sigmas[6:19], rtol=1e-9)


def test_is_the_grid_of_a_solver(fitted):
    scheme, coordinates = sk.RungeKutta(sk.tableaus.RK4), sk.Preconditioned(fitted.sigma_data)
    x = GAUSSIAN.sample(4, sigma=80.0, seed=0, dtype=DOUBLE)
    solution = sk.solve(FLOW, x, method=sk.Solver(scheme, coordinates, fitted), steps=20)
    np.testing.assert_array_equal(solution.grid, fitted(20, 80.0, 0.002))
    factors = np.sqrt((SPECTRUM + 0.002**2) / (SPECTRUM + 80.0**2))
    torch.testing.assert_close(solution.x, x * torch.as_tensor(factors), rtol=0, atol=1e-4)


def test_range_outside_the_fitted_one_is_refused(fitted):
    for high, low in ((81.0, 0.002), (80.0, 0.0019), (math.inf, 0.1)):
        with pytest.raises(ValueError, match=r"fitted from sigma = 80 to 0\.002"):
            fitted(5, high, low)
    with pytest.raises(ValueError, match="n = 0"):
        fitted(0, 80.0, 0.002)
    # Round-off of a process's own ends is no reason to refuse.
    assert fitted(5, 80.0 * (1 + 1e-12), 0.002)[0] == 80.0 * (1 + 1e-12)


def test_file(fitted, tmp_path):
    fitted.save(tmp_path / "grid.json")
    record = json.loads((tmp_path / "grid.json").read_text())
    assert record["version"] == 1
    assert (record["order"], record["samples"], record["seed"]) == (3, 64, 0)
    assert (record["nfe"], record["sigma_data"]) == (296, GAUSSIAN.sigma_data)
    assert (record["levels"][0], record["levels"][-1]) == (80.0, 0.002)
    again = FittedGrid.load(tmp_path / "grid.json")
    assert again == fitted
    np.testing.assert_array_equal(again(33, 80.0, 0.002), fitted(33, 80.0, 0.002))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not the JSON of a FittedGrid"),
        ({"version": 2}, "version 2, and this sdekit reads 1"),
        ({"levels": [1.0, 2.0]}, "levels and"),
        ({"levels": [1.0, 2.0], "cumulative": [0.0, 1.0]}, "levels must decrease"),
        ({"levels": [1.0, 0.0], "cumulative": [0.0, 1.0]}, "end above 0"),
        ({"levels": [2.0, math.nan], "cumulative": [0.0, 1.0]}, "levels must decrease"),
        ({"levels": [2.0, 1.0], "cumulative": [0.0, 0.9]}, "from 0 to 1"),
        ({"levels": "abc"}, "could not convert"),
        ({"order": 0}, "order = 0"),
        ({"nfe": "many"}, "nfe = 'many'"),
        ({"seed": 0.5}, "seed = 0.5"),
        ({"sigma_data": -1.0}, "sigma_data = -1.0"),
        ({"colour": "red"}, "colour"),
        ({"samples": None}, "samples = None"),
    ],
)
def test_bad_files_are_refused(fitted, tmp_path, change, message):
    path = tmp_path / "grid.json"
    fitted.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        FittedGrid.load(path)
    assert "grid.json cannot be read" in str(error.value)


def test_truncated_file_is_refused(fitted, tmp_path):
    path = tmp_path / "grid.json"
    fitted.save(path)
    path.write_text(path.read_text()[:-100])
    with pytest.raises(ValueError, match="cannot be read as a fitted grid"):
        FittedGrid.load(path)


def broken(x_hat, sigma):
    """Gives up once the pilot is over."""
    return torch.where(sigma == 0.002, math.nan, GAUSSIAN(x_hat, sigma))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: equidistribute(FLOW), "either x, a start state, or shape"),
        (lambda: equidistribute(FLOW, shape=(8,), x=torch.ones(2, 8)), "either x"),
        (lambda: equidistribute(FLOW, x=torch.ones(8)), "must be a batch"),
        (lambda: equidistribute(FLOW, x=torch.ones((2, 8)).half()), "dtype torch.float16"),
        (lambda: equidistribute(sk.EDM().reverse(GAUSSIAN), shape=(8,)), "is a ReverseSDE"),
        (lambda: equidistribute(FLOW, shape=(8,), order=0), "order = 0"),
        (
            lambda: run_pilot(FLOW, shape=(8,), points=6).equidistributed(),
            "order 3 needs at least 7",
        ),
        (lambda: equidistribute(FLOW, shape=(8,), sigma_data=0.0), "sigma_data = 0.0"),
        (lambda: equidistribute(FLOW, shape=(8,), sigma_max=0.001), "sigma_min < sigma_max"),
        (
            lambda: equidistribute(sk.EDM().probability_flow(lambda x, s: x), shape=(8,)),
            "sigma_data is not known",
        ),
        (
            lambda: equidistribute(sk.EDM().probability_flow(broken), shape=(8,), sigma_data=0.5),
            "not finite|non-finite",
        ),
    ],
)
def test_bad_input_is_refused(build, message):
    with pytest.raises((ValueError, TypeError, sk.SolveError), match=message):
        build()
