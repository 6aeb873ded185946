"""Calibration: what is fitted is right, and it is as good as it says on samples it has not seen."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdekit as sk
from sdekit.calibration.greedy import fit_greedily
from sdekit.calibration.pilots import Pilots, run_pilots
from sdekit.calibration.refine import Refinement, _Column, _directions
from sdekit.calibration.student import Run, Student, in_one_formula
from sdekit.solvers.calibrated import Calibrated, Coefficients

EDM = sk.EDM(0.01, 20.0)
MIXTURE = sk.GaussianMixture.random(components=4, dim=3, seed=1)
WIDE = sk.Gaussian([1.0, 0.0, -1.0], np.diag([1.0, 0.3, 0.09]))
SCHEMES = {
    "bayesian": sk.BayesianAdams(),
    "PEC": sk.Adams(2, corrector=True),
    "AB": sk.Adams(3),
}


def pilots_of(law: sk.Gaussian | sk.GaussianMixture, count: int = 60, **options: float) -> Pilots:
    """Pilots of a law, a fifth of them for the test."""
    x = law.sample(count, sigma=20.0, seed=3, dtype=torch.float64)
    chosen = {"sigma_data": 0.5, "test": 0.2, "rtol": 1e-8, **options}
    return run_pilots(
        [EDM.probability_flow(law)], [x], sigma_max=20.0, sigma_min=0.01, progress=False, **chosen
    )


def calibrated(problem: sk.ProbabilityFlow, steps: int, **options: object) -> sk.CalibratedSolver:
    """Calibrate without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return sk.calibrate(problem, steps, **{"rtol": 1e-6, **options})  # type: ignore[arg-type]


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("directional", [False, True])
def test_multistep_schemes_as_one_formula_are_the_schemes(name: str, directional: bool) -> None:
    coordinates = (
        sk.GaussianPreconditioned([0.1, 0.2, 0.3], np.diag([1.0, 0.5, 0.1]))
        if directional
        else sk.Preconditioned(0.5)
    )
    sigmas = sk.grids.power_theta(9, 20.0, 0.01, sigma_data=0.5)
    own = in_one_formula(SCHEMES[name], coordinates, sigmas)
    x = MIXTURE.sample(8, sigma=20.0, seed=0, dtype=torch.float64)
    flow = EDM.probability_flow(MIXTURE)
    grid = lambda n, high, low, process=None: sigmas  # noqa: E731
    found = [
        sk.solve(flow, x, method=sk.Solver(scheme, coordinates, grid), sigmas=sigmas).x
        for scheme in (SCHEMES[name], Calibrated(own, (3,)))
    ]
    assert rms(found[0] - found[1]) < 1e-13


def test_the_teacher_is_exact_between_its_levels_also() -> None:
    pilots = pilots_of(WIDE, rtol=1e-11)
    start = pilots.parts[0].start
    for sigma in (20.0, 7.7, 0.5, 0.123, 0.0101, 0.01):
        rows = np.arange(len(start))
        exact = WIDE.flow(start, 20.0, sigma)
        assert rms(pilots.at(sigma, rows) - exact) < 1e-8
    assert not {*pilots.fit} & {*pilots.validation}
    assert not {*pilots.test} & {*pilots.validation}
    sizes = len(pilots.fit), len(pilots.validation), len(pilots.test)
    assert sizes == (36, 12, 12)


def test_a_greedy_step_is_the_least_squares_solution() -> None:
    pilots = pilots_of(MIXTURE, 200)
    student = Student(pilots, sk.Preconditioned(0.5))
    sigmas = sk.grids.power_theta(4, 20.0, 0.01, sigma_data=0.5)
    prior = in_one_formula(sk.BayesianAdams(), student.coordinates, sigmas)
    fitted = fit_greedily(student, prior, pilots.fit, pilots.validation).coefficients
    run = student.run(fitted, pilots.fit)
    for n in range(4):
        # With hundreds of samples validation chooses next to no ridge.
        features = torch.stack([f.flatten() for f in [*run.slopes[: n + 1], run.u[n]]], dim=1)
        target = student.target(float(sigmas[n + 1]), pilots.fit).flatten()
        best = np.linalg.lstsq(features.numpy(), target.numpy(), rcond=None)[0]
        left = rms(features @ torch.as_tensor(best) - target)
        found = rms(run.u[n + 1].flatten() - target)
        assert (1 - 1e-12) * left <= found <= 1.1 * left + 1e-12


def test_derivatives_of_the_final_error_are_those_of_moved_coefficients() -> None:
    pilots = pilots_of(MIXTURE)
    student = Student(pilots, sk.Preconditioned(0.5))
    scheme = sk.BayesianAdams()
    sigmas = sk.grids.power_theta(5, 20.0, 0.01, sigma_data=0.5)
    own = in_one_formula(scheme, student.coordinates, sigmas)
    refinement = Refinement(student, scheme, pilots.fit, pilots.validation, 10**9)
    columns, jacobian, rest = refinement._linearised(own, pilots.fit, 6)
    assert len(columns) == jacobian.shape[1] == 2 + 3 + 4 + 5 + 6 + 2 * 4

    def moved(k: int, by: float) -> Tensor:
        other = refinement._moved(own, [columns[k]], np.array([by]))
        return refinement._rest(other, student.run(other, pilots.fit), pilots.fit)

    assert rms(rest) > 1e-4
    for k in range(len(columns)):
        central = (moved(k, 1e-4) - moved(k, -1e-4)) / 2e-4
        assert rms(jacobian[:, k] - central) < 1e-3 * rms(central) + 1e-9, columns[k]


def test_directions_are_independent_and_made_by_their_changes() -> None:
    pilots = pilots_of(MIXTURE)
    student = Student(pilots, sk.Preconditioned(0.5))
    sigmas = sk.grids.power_theta(4, 20.0, 0.01, sigma_data=0.5)
    own = in_one_formula(sk.BayesianAdams(), student.coordinates, sigmas)
    run = student.run(own, pilots.fit)
    moves, changes = _directions(run, 3, 9)
    flat = moves.flatten(1)
    assert torch.allclose(flat @ flat.mT / flat.shape[1], torch.eye(5).double(), atol=1e-9)
    features = [*run.slopes[:4], run.u[3]]
    for move, change in zip(moves, changes, strict=True):
        made = sum(float(c) * f for c, f in zip(change, features, strict=True))
        assert rms(move - made) < 1e-9


def test_two_steps_are_made_exact_for_gaussian_data_of_two_variances() -> None:
    # The flow is linear: a solver of two steps multiplies each direction by a polynomial in what the
    # denoiser does there, and there are more coefficients than directions.
    law = sk.Gaussian([0.0, 0.0], np.diag([1.0, 0.04]))
    pilots = pilots_of(law, rtol=1e-11)
    student = Student(pilots, sk.Preconditioned(0.5))
    scheme = sk.BayesianAdams()
    sigmas = sk.grids.power_theta(2, 20.0, 0.01, sigma_data=0.5)
    own = in_one_formula(scheme, student.coordinates, sigmas)
    refinement = Refinement(student, scheme, pilots.fit, pilots.validation, 10**9)
    before = refinement.judge(own, pilots.test).rms
    after = refinement.judge(refinement(own).coefficients, pilots.test).rms
    assert before > 1e-2
    assert after < 1e-7


@pytest.fixture(scope="module")
def solver() -> sk.CalibratedSolver:
    return calibrated(EDM.probability_flow(MIXTURE), 6, samples=120, shape=(3,), max_nfe=500)


@functools.cache
def fresh() -> tuple[Tensor, Tensor]:
    """Starts that no calibration has seen, and where they go."""
    x = MIXTURE.sample(200, sigma=20.0, seed=77, dtype=torch.float64)
    return x, sk.solve(EDM.probability_flow(MIXTURE), x, sigmas=[20.0, 0.01], rtol=1e-8).x


def on_fresh_noise(method: str | sk.Solver, steps: int) -> Tensor:
    """Typical error of each component."""
    x, exact = fresh()
    off = sk.solve(EDM.probability_flow(MIXTURE), x, method=method, steps=steps).x - exact
    return off.abs().median(0).values  # a few samples end in another mode


def test_it_is_better_than_the_default_and_says_by_how_much(solver: sk.CalibratedSolver) -> None:
    ours, default = (float(on_fresh_noise(m, 6).mean()) for m in (solver, "bayesian_adams"))
    assert ours < 0.4 * default
    gain, low, high = solver.report.gain
    assert low <= gain <= high
    assert gain < 0.7
    own, other = solver.report.errors["validation"]
    assert own < other
    assert not solver.report.fell_back
    assert solver.report.nfe > 0
    assert "refined" in solver.report.chosen


def test_every_coefficient_matters(solver: sk.CalibratedSolver) -> None:
    own, error = solver.coefficients, float(on_fresh_noise(solver, 6).mean())
    for n in range(6):
        halves = [replace(own, keep=np.where(np.arange(6) == n, 0.5, 1.0) * own.keep)]
        newest = own.weights[n] * np.where(np.arange(n + 1) == n, 0.5, 1.0)
        rows = (*own.weights[:n], newest, *own.weights[n + 1 :])
        halves.append(replace(own, weights=rows))
        for half in halves:
            damaged = replace(solver, scheme=Calibrated(half, (3,)))
            assert float(on_fresh_noise(damaged, 6).mean()) > 2 * error


def test_it_is_deterministic_and_batches_do_not_matter(solver: sk.CalibratedSolver) -> None:
    again = calibrated(EDM.probability_flow(MIXTURE), 6, samples=120, shape=(3,), max_nfe=500)
    for a, b in zip(solver.coefficients.weights, again.coefficients.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert solver.report == again.report


def test_more_steps_are_better() -> None:
    flow = EDM.probability_flow(MIXTURE)
    errors = [
        float(on_fresh_noise(calibrated(flow, n, samples=80, shape=(3,), max_nfe=200), n).mean())
        for n in (3, 6, 12)
    ]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


@settings(max_examples=6)
@given(seed=st.integers(0, 1000), steps=st.integers(1, 3), count=st.integers(8, 24))
def test_it_is_never_worse_than_the_default_on_validation(
    seed: int, steps: int, count: int
) -> None:
    law = sk.GaussianMixture.random(components=3, dim=2, seed=seed)
    x = law.sample(count, sigma=20.0, seed=seed, dtype=torch.float64)
    found = calibrated(EDM.probability_flow(law), steps, x=x, max_nfe=50)
    own, default = found.report.errors["validation"]
    assert own <= 1.02 * default + 1e-12
    if found.report.fell_back:
        assert own == default


def test_a_default_that_is_exact_is_kept() -> None:
    law = sk.Gaussian([0.0, 0.0], 0.25 * np.eye(2))  # F = 0: every scheme is exact
    found = calibrated(EDM.probability_flow(law), 3, samples=32, shape=(2,), sigma_data=0.5)
    assert all(error < 1e-9 for pair in found.report.errors.values() for error in pair)


def test_directions_of_their_own_where_the_data_have_them() -> None:
    # Exact for a Gaussian in the axes of its covariance, but for the noise in its estimate.
    found = calibrated(
        EDM.probability_flow(WIDE), 3, samples=150, shape=(3,), sigma_data=0.5, max_nfe=200
    )
    own, default = found.report.errors["test"]
    assert own < 0.05 * default


def test_a_small_pilot_is_warned_of() -> None:
    flow = EDM.probability_flow(MIXTURE)
    with pytest.warns(UserWarning, match="pilot batch is small"):
        found = sk.calibrate(flow, 12, samples=16, shape=(3,), max_nfe=100)
    assert found.report.warnings


def test_several_problems_together() -> None:
    laws = [sk.GaussianMixture.random(components=3, dim=2, seed=k) for k in (0, 1)]
    flows = [EDM.probability_flow(law) for law in laws]
    options = {"samples": 64, "shape": (2,), "sigma_data": 0.5, "max_nfe": 150}
    joint, alone = (calibrated(problem, 5, **options) for problem in (flows, flows[0]))
    x = laws[1].sample(100, sigma=20.0, seed=5, dtype=torch.float64)
    exact = sk.solve(flows[1], x, sigmas=[20.0, 0.01], rtol=1e-7, sigma_data=0.5).x
    errors = [
        float((sk.solve(flows[1], x, method=method, steps=5).x - exact).abs().median())
        for method in (joint, alone)
    ]
    assert errors[0] < errors[1]  # on the one that the other was not fitted to
    assert joint.report.samples == alone.report.samples


def test_conditioning_of_each_sample_follows_its_sample() -> None:
    shift = torch.linspace(-1.0, 1.0, 40).double()[:, None]

    def moved(x_hat: Tensor, sigma: Tensor, shift: Tensor) -> Tensor:
        return MIXTURE(x_hat - shift, sigma) + shift

    x = MIXTURE.sample(40, sigma=20.0, seed=9, dtype=torch.float64)
    told = sk.Conditioned(moved, shift=shift)
    one = calibrated(EDM.probability_flow(told), 4, x=x + shift, sigma_data=0.5, max_nfe=200)
    two = calibrated(EDM.probability_flow(MIXTURE), 4, x=x, sigma_data=0.5, max_nfe=200)
    # The problem is the same up to a shift: so is the error of the default, up to what it does to u.
    assert one.report.errors["test"][0] < one.report.errors["test"][1]
    assert math.isclose(one.report.errors["fit"][1], two.report.errors["fit"][1], rel_tol=0.5)


def test_a_metric_is_what_errors_are_of() -> None:
    flow = EDM.probability_flow(MIXTURE)
    options = {"samples": 40, "shape": (3,), "max_nfe": 200}
    plain, double, first = (
        calibrated(flow, 3, metric=metric, **options)
        for metric in (None, lambda x: 2 * x, lambda x: x[:, 0])
    )
    for name, errors in plain.report.errors.items():
        np.testing.assert_allclose(double.report.errors[name], 2 * np.array(errors), rtol=1e-6)
    x, exact = fresh()
    off = (sk.solve(flow, x, method="bayesian_adams", steps=3).x - exact)[:, 0]
    # The default's error of this component is that of the samples of the test here, roughly.
    assert 0.3 < first.report.errors["test"][1] / rms(off) < 3
    assert first.report.metric == "RMS error of features"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, TypeError, "either x"),
        ({"shape": (3,), "x": torch.zeros(9, 3)}, TypeError, "either x"),
        ({"shape": (3,), "samples": 0}, ValueError, "samples"),
        ({"shape": (3,), "samples": 4}, ValueError, "at least 8"),
        ({"shape": (3,), "sigma_max": 0.001}, ValueError, "sigma_min <"),
        ({"shape": (3,), "sigma_data": -1.0}, ValueError, "sigma_data"),
        ({"x": [torch.zeros(9, 3), torch.zeros(9, 3)]}, ValueError, "2 batches for 1"),
        ({"x": torch.zeros(9, 3, dtype=torch.float16)}, TypeError, "float16"),
    ],
)
def test_bad_input_is_refused(
    options: dict[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        sk.calibrate(EDM.probability_flow(MIXTURE), 4, **options)  # type: ignore[arg-type]


def test_problems_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match="ReverseSDE"):
        sk.calibrate(EDM.reverse(MIXTURE, 1.0), 4, shape=(3,))  # type: ignore[arg-type]
    flows = [sk.EDM().probability_flow(MIXTURE), sk.EDM().probability_flow(MIXTURE)]
    with pytest.raises(ValueError, match="one process"):
        sk.calibrate(flows, 4, shape=(3,))
    with pytest.raises(ValueError, match="no problem"):
        sk.calibrate([], 4, shape=(3,))
    with pytest.raises(ValueError, match="sigma_data"):
        sk.calibrate(EDM.probability_flow(lambda x, sigma: 0 * x), 4, shape=(3,))


def test_coefficients_are_checked() -> None:
    good = {"sigmas": [2.0, 1.0], "told": [2.0], "keep": [1.0], "weights": ([0.5],)}
    Coefficients(**good)  # type: ignore[arg-type]
    for name, value, message in (
        ("sigmas", [1.0, 2.0], "decrease"),
        ("told", [0.0], "positive"),
        ("keep", [1.0, 1.0], "lengths"),
        ("weights", ([math.nan],), "finite"),
        ("weights", ([1.0, 1.0],), "i \\+ 1"),
        ("noise", [-1.0], "noise"),
    ):
        with pytest.raises(ValueError, match=message):
            Coefficients(**{**good, name: value})  # type: ignore[arg-type]


def test_a_run_goes_on_from_where_it_was() -> None:
    pilots = pilots_of(MIXTURE)
    student = Student(pilots, sk.Preconditioned(0.5))
    sigmas = sk.grids.power_theta(5, 20.0, 0.01, sigma_data=0.5)
    own = in_one_formula(sk.BayesianAdams(), student.coordinates, sigmas)
    whole = student.run(own, pilots.fit)
    for states, slopes in ((3, 2), (3, 3), (1, 0)):
        part = student.run(own, pilots.fit, Run(whole.u[:states], whole.slopes[:slopes]))
        assert rms(part.u[-1] - whole.u[-1]) == 0


def test_a_level_that_moves_takes_the_weights_of_the_scheme_along() -> None:
    pilots = pilots_of(MIXTURE, 20)
    student = Student(pilots, sk.Preconditioned(0.5))
    scheme = sk.BayesianAdams()
    sigmas = sk.grids.power_theta(4, 20.0, 0.01, sigma_data=0.5)
    own = in_one_formula(scheme, student.coordinates, sigmas)
    refinement = Refinement(student, scheme, pilots.fit, pilots.validation, 1)
    moved = refinement._moved(own, [_Column("level", 2)], np.array([0.3]))
    assert moved.sigmas[2] > 1.05 * sigmas[2]
    assert moved.told[2] == pytest.approx(moved.sigmas[2])
    expected = in_one_formula(scheme, student.coordinates, moved.sigmas)
    for row, other in zip(moved.weights, expected.weights, strict=True):
        np.testing.assert_allclose(row, other, atol=1e-12)
    # However far neighbours are to move towards each other, they do not cross.
    crossed = refinement._moved(own, [_Column("level", k) for k in (1, 2)], np.array([-9.0, 9.0]))
    assert (np.diff(crossed.sigmas) < 0).all()


def test_what_is_kept_for_the_test_has_no_say() -> None:
    x = MIXTURE.sample(40, sigma=20.0, seed=4, dtype=torch.float64)
    other = x.clone()
    other[32:] = MIXTURE.sample(8, sigma=20.0, seed=5, dtype=torch.float64)
    one, two = (
        calibrated(EDM.probability_flow(MIXTURE), 3, x=start, max_nfe=60) for start in (x, other)
    )
    for a, b in zip(one.coefficients.weights, two.coefficients.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert one.report.errors["validation"] == pytest.approx(two.report.errors["validation"])
    assert one.report.errors["test"] != two.report.errors["test"]


def test_every_evaluation_is_counted() -> None:
    seen = 0

    def counted(x_hat: Tensor, sigma: Tensor) -> Tensor:
        nonlocal seen
        seen += len(x_hat)
        return MIXTURE(x_hat, sigma)

    found = calibrated(EDM.probability_flow(counted), 3, samples=20, shape=(3,), sigma_data=0.5)
    assert found.report.nfe == pytest.approx(seen / 25, rel=0.02)  # but for fingerprints


def test_a_denoiser_that_fails_where_nobody_should_go_spoils_no_more_than_a_candidate() -> None:
    def edge(x_hat: Tensor, sigma: Tensor) -> Tensor:
        reach = 4 * torch.hypot(sigma, sigma.new_tensor(1.5)).reshape(-1, 1)
        far = x_hat.abs().amax(1, keepdim=True) > reach
        return torch.where(far, torch.nan, MIXTURE(x_hat, sigma))

    found = calibrated(EDM.probability_flow(edge), 2, samples=24, shape=(3,), sigma_data=0.5)
    assert all(map(math.isfinite, found.report.errors["test"]))


def test_a_metric_that_tells_nothing_apart_is_refused() -> None:
    flow = EDM.probability_flow(MIXTURE)
    with pytest.raises(sk.SolveError, match="metric="):
        calibrated(flow, 3, samples=20, shape=(3,), max_nfe=30, metric=lambda x: 0 * x)


def test_networks_in_float32_are_seen_to_be() -> None:
    assert pilots_of(MIXTURE, 20).precise
    x = MIXTURE.sample(20, sigma=20.0, seed=3, dtype=torch.float64)

    def hidden(x_hat: Tensor, sigma: Tensor) -> Tensor:
        return MIXTURE(x_hat.float(), sigma.float()).double()

    made = run_pilots(
        [EDM.probability_flow(hidden)],
        [x],
        sigma_max=20.0,
        sigma_min=0.01,
        sigma_data=0.5,
        test=0.2,
        rtol=1e-5,
        progress=False,
    )
    assert not made.precise
