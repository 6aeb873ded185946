"""The metrics of the laboratory: their closed forms, their floors, and how they grow."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import measure_order
from scipy.integrate import quad
from torch.special import ndtr

import sdekit as sk
from sdekit.bench import laws, weak
from sdekit.bench.densities import likelihood_error
from sdekit.bench.metrics import (
    LAW,
    LIKELIHOOD,
    METRICS,
    PATH,
    PathJudge,
    dense_reference,
    path_error,
    unscaled,
)
from sdekit.bench.problems import SIGMA_MAX, SIGMA_MIN, Problem, make_problem
from sdekit.bench.weak import Judge, law_metrics_known

DOUBLE = torch.float64
LINE = sk.GaussianMixture([0.3, 0.7], [[-1.0], [0.4]], [0.3**2, 0.2**2])
SKEW = sk.GaussianMixture(
    [0.3, 0.7],
    [[-1.0, 0.5], [0.4, -0.2]],
    [[[0.3, 0.1], [0.1, 0.1]], [[0.05, -0.02], [-0.02, 0.2]]],
)
DIAGONAL = sk.GaussianMixture([0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], [[0.1, 0.2], [0.3, 0.05]])
ROUND = sk.GaussianMixture([0.2, 0.8], [[0.0, 1.0], [0.5, 0.0]], [0.1, 0.02])
SIGMA = 0.1
OF_LAWS = tuple(name for name, metric in METRICS.items() if metric.kind == LAW)
CLOSED = tuple(name for name in OF_LAWS if name != "w2")


def expected(law, sigma, function):
    """``E f(Y)`` in two dimensions, by Gauss–Hermite quadrature over each component."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z = torch.tensor(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2))
    w = torch.tensor(np.outer(weights, weights).ravel() / (2 * math.pi))
    total = 0.0
    for weight, mean, cov in zip(law.weights, law.means, COVS[law], strict=True):
        root = torch.linalg.cholesky(cov + sigma**2 * torch.eye(2, dtype=DOUBLE))
        total += float(weight * (w @ function(mean + z @ root.T)))
    return total


COVS = {
    SKEW: torch.tensor([[[0.3, 0.1], [0.1, 0.1]], [[0.05, -0.02], [-0.02, 0.2]]], dtype=DOUBLE),
    DIAGONAL: torch.diag_embed(torch.tensor([[0.1, 0.2], [0.3, 0.05]], dtype=DOUBLE)),
    ROUND: torch.diag_embed(torch.tensor([[0.1, 0.1], [0.02, 0.02]], dtype=DOUBLE)),
}
PLANE = pytest.mark.parametrize("law", [SKEW, DIAGONAL, ROUND], ids=["full", "diagonal", "round"])


# --- closed forms -------------------------------------------------------------------------------


@PLANE
def test_the_difference_of_two_draws_has_the_square_of_the_characteristic_function(law):
    k = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    found = laws.difference(law).characteristic_function(k, math.sqrt(2) * SIGMA)
    square = law.characteristic_function(k, SIGMA).abs().square()
    torch.testing.assert_close(found, square.to(found.dtype))


@PLANE
def test_mean_kernels_and_fourth_moments_are_those_of_quadrature(law):
    width, points = 0.7, law.sample(3, SIGMA, seed=0)
    for point, found in zip(points, laws.mean_kernel(law, points, SIGMA, width), strict=True):
        by_nodes = expected(
            law, SIGMA, lambda y, x=point: (-(y - x).square().sum(1) / (2 * width**2)).exp()
        )
        assert float(found) == pytest.approx(by_nodes, rel=1e-9)
    judge = Judge(law, SIGMA)
    pairs = expected(law, SIGMA, lambda y: laws.mean_kernel(law, y, SIGMA, judge.width))
    assert judge.floors(9, ["mmd"])["mmd"] == pytest.approx(math.sqrt((1 - pairs) / 9), rel=1e-9)
    mean, _ = law.moments()
    fourth = expected(law, SIGMA, lambda y: (y - mean).square().sum(1).square())
    assert laws.fourth_moment(law, SIGMA) == pytest.approx(fourth, rel=1e-11)


def test_mean_distances_on_a_line_are_those_of_quadrature():
    def integrand(y, a):
        return abs(a - y) * math.exp(float(LINE.log_prob(torch.tensor([[y]], dtype=DOUBLE), SIGMA)))

    points = torch.tensor([-6.0, -1.0, -0.2, 0.4, 3.0], dtype=DOUBLE)
    for a, found in zip(points.tolist(), laws.mean_distance(LINE, points, SIGMA), strict=True):
        halves = [quad(integrand, *ends, (a,), limit=200)[0] for ends in ((-9, a), (a, 9))]
        assert float(found) == pytest.approx(sum(halves), rel=1e-7)


def test_mmd_is_what_its_definition_says(monkeypatch):
    monkeypatch.setattr(
        weak, "CHUNK_ELEMENTS", 1000
    )  # 3 rows at a time: many blocks, the last short
    judge, x = Judge(SKEW, SIGMA), SKEW.sample(301, 0.4, seed=0)
    square = (-torch.cdist(x, x).square() / (2 * judge.width**2)).exp().mean()
    square -= 2 * laws.mean_kernel(SKEW, x, SIGMA, judge.width).mean()
    square += expected(SKEW, SIGMA, lambda y: laws.mean_kernel(SKEW, y, SIGMA, judge.width))
    assert judge.measure(x, ["mmd"])["mmd"] == pytest.approx(math.sqrt(square), rel=1e-5)


def test_mmd_is_the_error_of_the_characteristic_function_over_all_frequencies():
    """A Gaussian kernel is the characteristic function of frequencies ``N(0, I/h²)`` (Bochner)."""
    judge = Judge(SKEW, SIGMA, frequencies=40_000)
    assert judge.width == pytest.approx(SKEW.sigma_data * math.sqrt(2))
    x = SKEW.sample(200, 0.5, seed=1)
    judge.frequencies *= SKEW.sigma_data / judge.width
    judge.exact = SKEW.characteristic_function(judge.frequencies, SIGMA)
    found = judge.measure(x, ["cf", "mmd"])
    assert found["mmd"] == pytest.approx(found["cf"], rel=0.02)


def test_energy_on_a_line_is_the_distance_of_distribution_functions():
    """``D² = 2 ∫ (F_n − F)²`` (Székely & Rizzo 2013), in units of that of the law's own spread."""
    x = LINE.sample(50, 0.3, seed=0)
    at = torch.linspace(-8, 8, 400_001, dtype=DOUBLE)
    stds = torch.tensor([0.3, 0.2], dtype=DOUBLE).square().add(SIGMA**2).sqrt()
    exact = ndtr((at[:, None] - LINE.means[:, 0]) / stds) @ LINE.weights
    own = torch.searchsorted(x[:, 0].sort().values, at, right=True) / len(x)
    square = 2 * torch.trapezoid((own - exact).square(), at)
    spread = 2 * torch.trapezoid(exact * (1 - exact), at)  # E|Y − Y'|
    found = Judge(LINE, SIGMA).measure(x, ["energy"])["energy"]
    assert found == pytest.approx(math.sqrt(square / spread), rel=1e-4)


def test_sliced_energy_is_the_energy_of_space_in_many_directions():
    """``‖z‖`` is proportional to the mean of ``|θ·z|``, and the factor cancels."""
    law = sk.Gaussian(torch.zeros(3), 0.49)
    x = law.sample(300, 0.0, seed=0) + torch.tensor([0.5, 0.0, -0.5])
    y = law.sample(4000, 0.0, seed=1)
    spread = 4 * 0.7 / math.sqrt(math.pi)  # E‖Y − Y'‖, of a χ with three degrees of freedom
    square = (2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - spread) / spread
    found = Judge(law, 0.0, slices=400).measure(x, ["energy"])["energy"]
    assert found == pytest.approx(math.sqrt(square), rel=0.03)


# --- floors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("law", "n"), [(SKEW, 2), (ROUND, 40), (LINE, 40)])
def test_floors_are_the_mean_squares_of_sets_of_exact_samples(law, n):
    judge, sets = Judge(law, SIGMA, slices=4, frequencies=16), 800 if n == 2 else 300
    floors = judge.floors(n, CLOSED)
    drawn = law.sample(sets * n, SIGMA, seed=0).split(n)
    found = [judge.measure(x, CLOSED) for x in drawn]
    for name in CLOSED:
        squares = torch.tensor([values[name] for values in found], dtype=DOUBLE).square()
        error = float(squares.std()) / math.sqrt(sets)
        assert floors[name] ** 2 == pytest.approx(float(squares.mean()), abs=4 * error), name


def test_the_floor_that_is_measured_is_that_of_other_sets():
    judge = Judge(SKEW, SIGMA)
    drawn = SKEW.sample(60_000, SIGMA, seed=0).split(600)
    squares = [judge.measure(x, ["w2"])["w2"] ** 2 for x in drawn]
    found = judge.floors(600, ["w2"])["w2"]
    assert found == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=0.3)
    assert found == judge.floors(600, ["w2"])["w2"]


@settings(max_examples=15)
@given(seed=st.integers(8000, 10**6), sigma=st.sampled_from([0.0, 0.1, 2.0]))
def test_exact_samples_are_at_the_floor_and_others_are_not(seed, sigma):
    judge = Judge(SKEW, sigma, slices=4)
    x = SKEW.sample(300, sigma, seed=seed)
    floors = judge.floors(len(x), OF_LAWS)
    for name, value in judge.measure(x, OF_LAWS).items():
        assert 0.02 < value / floors[name] < 6, name
    scale = math.sqrt(1 + sigma**2 / SKEW.sigma_data**2)
    for name, value in judge.measure(1.7 * x + 2 * scale, OF_LAWS).items():
        assert value > 3 * floors[name], name


# --- growth -------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(delta=st.floats(0.2, 3), std=st.floats(0.5, 2), sigma=st.floats(0, 1))
def test_a_shifted_gaussian_is_as_far_as_it_was_shifted(delta, std, sigma):
    """Samples are quantiles on a lattice, which stand for the law up to about ``1/n``."""
    law = sk.Gaussian([0.3, -0.2], std**2)
    variance, side = std**2 + sigma**2, 60
    levels = (torch.arange(side, dtype=DOUBLE) + 0.5) / side
    line = math.sqrt(variance) * torch.special.ndtri(levels)
    shift = delta * torch.tensor([0.6, 0.8], dtype=DOUBLE)
    judge = Judge(law, sigma)
    x = torch.cartesian_prod(line, line) + law.means[0] + shift
    found = judge.measure(x, ("mmd", "energy", "mean"))

    h2 = 2 * std**2
    spread = h2 + 2 * variance
    mmd = 2 * h2 / spread * (1 - math.exp(-(delta**2) / (2 * spread)))
    assert found["mmd"] == pytest.approx(math.sqrt(mmd), rel=0.02)
    pair = math.sqrt(2 * variance)
    z = judge.directions @ shift / pair
    distance = pair * (z * torch.erf(z / 2**0.5) + math.sqrt(2 / math.pi) * (-z.square() / 2).exp())
    at_home = pair * math.sqrt(2 / math.pi)
    energy = float((2 * distance - 2 * at_home).mean()) / at_home
    assert found["energy"] == pytest.approx(math.sqrt(energy), rel=0.03)
    assert found["mean"] == pytest.approx(delta / math.sqrt(2 * variance), rel=1e-6)


def test_single_precision_changes_little():
    judge, x = Judge(SKEW, SIGMA), SKEW.sample(3000, 0.15, seed=0)
    single = judge.measure(x.float(), OF_LAWS)
    for name, value in judge.measure(x, OF_LAWS).items():
        assert single[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_not_finite_is_seen_by_every_metric(bad):
    x = SKEW.sample(50, SIGMA, seed=0)
    x[7, 1] = bad
    found = Judge(SKEW, SIGMA).measure(x, OF_LAWS)
    assert [name for name, value in found.items() if math.isfinite(value)] == []


def test_what_a_judge_of_laws_refuses():
    product = sk.Product.random(2, 2, seed=0)
    assert law_metrics_known(SKEW)
    assert not law_metrics_known(product)
    assert not law_metrics_known(None)
    with pytest.raises(TypeError, match="the law is a Product; metrics of laws take a GaussianMix"):
        Judge(product, SIGMA)
    judge = Judge(SKEW, SIGMA)
    with pytest.raises(ValueError, match="unknown metric 'fid' of a law; there are cf, mean"):
        judge.measure(SKEW.sample(9), ["cf", "fid"])
    with pytest.raises(ValueError, match="unknown metric 'rms'"):
        judge.floors(9, ["rms"])
    with pytest.raises(ValueError, match="n = 1; the floor"):
        judge.floors(1, ["cf"])
    for shape in ((9, 3), (1, 2), (9,)):
        with pytest.raises(ValueError, match=r"it must be \(n, 2\), with n at least 2"):
            judge.measure(torch.zeros(shape), ["cf"])


# --- paths --------------------------------------------------------------------------------------


def test_every_metric_is_declared_once_and_measured_by_whom_its_kind_says():
    assert {metric.kind for metric in METRICS.values()} == {PATH, LAW, LIKELIHOOD}
    assert all(name == metric.name for name, metric in METRICS.items())
    assert len({metric.title for metric in METRICS.values()}) == len(METRICS)
    assert set(Judge(SKEW, SIGMA).floors(9, OF_LAWS)) == set(OF_LAWS)
    zero = torch.zeros(1, 2, 2)
    judge = PathJudge(zero[0], states=lambda _: zero, sigma_data=1.0)
    of_paths = {name for name, metric in METRICS.items() if metric.kind == PATH}
    assert judge(zero[0], [1.0], zero) == dict.fromkeys(of_paths, 0.0)


def test_errors_along_a_path_are_in_units_of_the_state():
    source = torch.Generator().manual_seed(0)
    levels, sigma_data = np.array([80.0, 2.0, 0.5, 0.002]), 0.5
    exact = torch.randn(4, 3, 1, 2, 2, generator=source, dtype=DOUBLE)
    judge = PathJudge(exact[-1], states=lambda sigmas: exact[: len(sigmas)], sigma_data=sigma_data)
    error = torch.zeros_like(exact)
    error[2, 1, 0, 0, 1] = -6.0  # RMS over 12 numbers: 6/√12; the size there: √2
    error[3, 0, 0, 1, 1] = -0.3
    found = judge((exact + error)[-1], levels, exact + error)
    assert found["rms"] == pytest.approx(0.3 / math.sqrt(12))
    assert found["sup"] == pytest.approx(0.3)
    assert found["path"] == pytest.approx(6 / math.sqrt(24))
    # The same error relative to the size of the state counts the same at every level.
    size = torch.tensor(np.sqrt(levels**2 + sigma_data**2) / sigma_data).reshape(4, 1, 1, 1, 1)
    for level in range(4):
        error = torch.zeros_like(exact)
        error[level] = 0.01 * size[level]
        assert path_error(exact + error, exact, levels, sigma_data) == pytest.approx(0.01)
    broken = exact.clone()
    broken[1, 0] = math.nan
    assert math.isnan(judge(exact[-1], levels, broken)["path"])
    broken[-1, 1] = math.nan
    found = judge(broken[-1])
    assert set(found) == {"rms", "sup"}
    assert all(map(math.isnan, found.values()))


def test_what_a_judge_of_paths_refuses():
    x = torch.zeros(3, 2)
    judge = PathJudge(x)
    with pytest.raises(ValueError, match=r"x has shape \(2, 2\); it must be \(3, 2\)"):
        judge(x[:2])
    with pytest.raises(ValueError, match=r"need sigmas=.* and a judge with states="):
        judge(x, [1.0], x[None])
    judge = PathJudge(x, states=lambda _: x[None], sigma_data=1.0)
    with pytest.raises(ValueError, match="need sigmas="):
        judge(x, None, x[None])
    with pytest.raises(
        ValueError, match=r"trajectory has shape \(1, 3, 2\); it must be \(2, 3, 2\)"
    ):
        judge(x, [1.0, 0.5], x[None])


def problem_of(law, samples=16):
    return Problem("here", "here", law, law.sample(samples, SIGMA_MAX, seed=0))


@pytest.fixture(scope="module")
def turned():
    """A law whose flow is known exactly, as a problem, and its reference along the way."""
    problem = problem_of(sk.Product.random(2, 2, seed=0))
    return problem, dense_reference(problem, problem.law.sigma_data)


def test_the_reference_along_the_way_is_as_good_as_it_says(turned):
    problem, reference = turned
    levels = np.array([SIGMA_MAX, 31.0, 4.0, 0.9, 0.3, 0.05, SIGMA_MIN])
    exact = torch.stack([problem.law.flow(problem.start, SIGMA_MAX, s) for s in levels])
    error = path_error(reference.states(levels), exact, levels, problem.law.sigma_data)
    assert error < reference.floor
    assert 1e-12 < reference.discrepancy < 1e-8
    assert reference.floor == 10 * reference.discrepancy
    rough = dense_reference(problem, problem.law.sigma_data, 1e-5)
    assert 1e-7 < rough.discrepancy < 1e-3
    assert all(a < b / 2 for a, b in zip(rough.nfe, reference.nfe, strict=True))


def test_a_reference_that_does_not_arrive_is_refused(monkeypatch):
    problem, solved = make_problem("mixture2d", samples=2), Problem.solve

    def poor(self, method, **options):
        return solved(self, method, **options, max_nfe=50)

    monkeypatch.setattr(Problem, "solve", poor)
    with pytest.raises(RuntimeError, match="no reference along mixture2d: 2 of 2 samples"):
        dense_reference(problem, 1.0)


@pytest.mark.parametrize(
    ("method", "steps"),
    [("ddim", (80, 160, 320)), ("heun_t", (60, 90, 135)), ("bosh3_theta", (40, 60, 90))],
)
def test_the_path_metric_converges_at_the_order_of_the_method(turned, method, steps):
    problem, reference = turned
    judge = PathJudge(
        reference.states([SIGMA_MIN])[0],
        states=reference.states,
        sigma_data=problem.law.sigma_data,
    )
    solver = sk.methods()[method].solver
    grid = sk.grids.uniform_t if method.endswith("_t") else sk.grids.log

    def error(n):
        sigmas = grid(n, SIGMA_MAX, SIGMA_MIN, problem.process)
        x, solution = problem.solve(solver, sigmas=sigmas, trajectory=True)
        states = unscaled(problem, solution.grid, solution.trajectory)
        torch.testing.assert_close(states[-1], x)
        found = judge(x, solution.grid, states)
        assert found["rms"] <= found["path"] * (1 + 1e-4)
        return found["path"]

    order = measure_order(error, steps, floor=reference.floor)
    assert order == pytest.approx(solver.scheme.order, abs=0.35)


# --- likelihoods --------------------------------------------------------------------------------

LONG = sk.Gaussian([0.3, -0.2, 0.1], [1.0, 0.3, 0.05])


def test_euler_s_density_is_that_of_its_sums():
    law = sk.Gaussian([0.0], 0.64)
    grid, problem = np.array([SIGMA_MAX, 9.0, 2.0, 0.4, 0.1]), problem_of(law, samples=9)
    x, change = law.sample(9, 0.1, seed=3), 0.0
    exact = law.log_prob(x, 0.1)
    for sigma, after in zip(grid[::-1], grid[-2::-1], strict=False):
        slope = (1 - 0.64 / (0.64 + sigma**2)) / sigma  # of (x − D)/σ, and its divergence
        x, change = x * (1 + (after - sigma) * slope), change + (after - sigma) * slope
    expected = law.log_prob(x, SIGMA_MAX) + change - exact
    found, nfe = likelihood_error(problem, "euler", grid, seed=3)
    assert nfe == 4
    assert found == pytest.approx(float(expected.square().mean().sqrt()), rel=1e-12)


@pytest.mark.parametrize(
    ("method", "order", "steps"),
    [
        ("euler_t", 1, (100, 200, 400)),
        ("dpmpp_2m", 2, (100, 150, 225)),
        ("vab2", 2, (100, 150, 225)),
        ("heun_theta", 2, (40, 60, 90)),
        ("dpm_solver_2", 2, (60, 90, 135)),
        ("deis_t2", 2, (100, 200, 400)),
        ("lms3", 3, (200, 300, 450)),
        ("rk4", 4, (60, 90, 135)),
    ],
)
def test_the_density_converges_at_the_order_of_the_method(method, order, steps):
    problem = problem_of(LONG)
    timed = isinstance(sk.methods()[method].solver.coordinates, sk.Native | sk.Interpolated)
    grid = sk.grids.uniform_t if timed else sk.grids.log

    def error(n):
        return likelihood_error(problem, method, grid(n, SIGMA_MAX, 0.1, problem.process))[0]

    found = measure_order(error, steps, floor=1e-13, scale=10)
    assert found == pytest.approx(order, abs=0.3)


def test_two_steps_are_exact_where_the_network_has_nothing_to_say():
    """``F = 0`` for data ``N(0, σ_d² I)``: preconditioned coordinates hold the whole solution."""
    problem = problem_of(sk.Gaussian(torch.zeros(4), 0.25))
    grid = [SIGMA_MAX, 1.0, SIGMA_MIN]
    for method in ("adams2", "rk4_theta", "bayesian_adams"):
        assert likelihood_error(problem, method, grid)[0] < 1e-10
    assert likelihood_error(problem, "heun", grid)[0] > 0.1


def test_with_a_tolerance_the_error_is_that_of_log_likelihood():
    problem, law = problem_of(SKEW, samples=5), SKEW
    found, nfe = likelihood_error(
        problem, "dopri5_theta", [SIGMA_MAX, SIGMA_MIN], rtol=1e-3, seed=1
    )
    x_hat = law.sample(5, SIGMA_MIN, seed=1)
    scale = float(problem.scale(np.array([SIGMA_MIN]))[0])
    solved = sk.log_likelihood(
        problem.process,
        law,
        x_hat * scale,
        divergence="exact",
        prior=law,
        method="dopri5_theta",
        sigmas=[SIGMA_MIN, SIGMA_MAX],
        rtol=1e-3,
    )
    error = solved.log_prob + 2 * math.log(scale) - law.log_prob(x_hat, SIGMA_MIN)
    assert found == pytest.approx(float(error.square().mean().sqrt()), rel=1e-9)
    assert nfe == solved.stats.nfe_per_sample.mean()
    assert 1e-7 < found < 1e-2


def test_where_no_density_is_known_there_is_no_error_of_it():
    problem = make_problem("digits", samples=1)
    with pytest.raises(ValueError, match="the law of 'digits' is not known"):
        likelihood_error(problem, "heun", [SIGMA_MAX, SIGMA_MIN])
    coordinates = sk.GaussianPreconditioned(np.zeros(2), np.eye(2))
    solver = sk.Solver(sk.Adams(2), coordinates, sk.grids.theta)
    with pytest.raises(ValueError, match="a clock for every direction"):
        likelihood_error(problem_of(SKEW), solver, [SIGMA_MAX, 1.0, SIGMA_MIN])


# --- the page -----------------------------------------------------------------------------------


def test_the_page_shows_what_was_recorded():
    root = Path(__file__).parents[1]
    record = json.loads((root / "benchmarks/results/metrics.json").read_text(encoding="utf-8"))
    page = (root / "docs/metrics.md").read_text(encoding="utf-8")
    for row in record["floors"]:
        values = " | ".join(f"{row[name]:.2g}" for name in OF_LAWS)
        assert f"| `{row['problem']}` | {values} |" in page
        assert all(0.7 < row[f"{name}_over_floor"] < 1.4 for name in OF_LAWS)
    for row in record["errors"]:
        values = " | ".join(f"{row[name]:.2g}" for name in METRICS)
        assert f"| `{row['method']}` | {row['nfe']} | {values} |" in page
    assert all(f"| `{name}` |" in page for name in METRICS)
