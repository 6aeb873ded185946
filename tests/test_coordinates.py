"""Coordinates: exact changes of variables, Gaussian data solved exactly, and what is one method."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import flow_order, measure_order
from test_processes import fractions, inside, processes

import sdekit as sk
from sdekit.distributions import Gaussian, GaussianMixture
from sdekit.solvers.registry import Solver

DOUBLE = torch.float64
EDM = sk.EDM()
FLOWS = {
    name: entry.solver
    for name, entry in sk.methods().items()
    if entry.deterministic and entry.fixed
}
PLAIN = [
    sk.Native(),
    sk.Noise(),
    sk.LogNoise(),
    sk.LogData(),
    sk.Velocity(),
    sk.Preconditioned(0.5),
    sk.Preconditioned(3.0),
]
FRAMED = sk.GaussianPreconditioned([0.4, -0.2], [[0.8, 0.5], [0.5, 0.6]])
# Each interpolates in the variable of others, whose clock runs up or down with it.
INTERPOLATED = [
    sk.Interpolated(sk.Preconditioned(0.5), sk.LogNoise()),
    sk.Interpolated(sk.Noise(), sk.Native()),
    sk.Interpolated(sk.LogData(), sk.Velocity()),
    sk.Interpolated(FRAMED, sk.Preconditioned(2.0)),
    sk.Interpolated(sk.Native(), sk.LogData()),
]
COORDINATES = [*PLAIN, FRAMED, *INTERPOLATED]


def points(coordinates: sk.Coordinates, sigma: float):
    return coordinates.at(np.array([sigma]))


def difference(function, at: float) -> np.ndarray:
    """Central difference, to about 1e-9."""
    step = 1e-5 * abs(at)
    low, high = function(at - step), function(at + step)
    return (np.asarray(high) - np.asarray(low)) / (2 * step)


@settings(deadline=None, max_examples=80)
@given(
    process=processes,
    coordinates=st.sampled_from(COORDINATES),
    eta=st.sampled_from([0.0, 1.0, 0.5]),
    fraction=fractions,
    seed=st.integers(0, 100),
)
def test_coordinates_are_exact_changes_of_variables(process, coordinates, eta, fraction, seed):
    """A u + B D is the derivative of u = x̂/h along the backward equation, by the chain rule."""
    coordinates = coordinates.bind(process)
    law = GaussianMixture.random(2, 2, seed=seed)
    sigma = float(process.sigma(inside(process, fraction)))
    point = points(coordinates, sigma)
    x_hat = law.sample(4, sigma, seed=seed)
    denoised = law(x_hat, torch.tensor(sigma, dtype=DOUBLE))
    # In the axes of the coordinates: the mean cancels in x̂ − D, and is taken off x̂ in u.
    mean, basis = map(torch.from_numpy, coordinates.frame or (np.zeros(2), np.eye(2)))
    x, d = (x_hat - mean) @ basis, (denoised - mean) @ basis
    h, a, b = (torch.from_numpy(v) for v in (coordinates.h(point), *coordinates.drift(point, eta)))
    value = a * x / h + b * d
    # dx̂/dτ = (1 + η²) (x̂ − D)/σ σ', and u = x̂/h by the quotient rule
    rate = float(coordinates.sigma_rate(point)[0])
    h_rate = torch.from_numpy(
        rate * difference(lambda s: coordinates.h(points(coordinates, s)), sigma)
    )
    moved = (1 + eta**2) * (x - d) / sigma * rate / h
    expected = moved - x * h_rate / h**2
    # Where the two terms cancel, the finite difference of h limits the comparison.
    atol = 1e-5 * float(moved.abs().max() + (x * h_rate / h**2).abs().max())
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=atol)


@settings(deadline=None, max_examples=80)
@given(process=processes, coordinates=st.sampled_from(COORDINATES), fraction=fractions)
def test_clocks_and_rates_belong_together(process, coordinates, fraction):
    """dσ/dτ, dW/dσ and w = dW/dτ are the derivatives of what they say; σ(τ) undoes τ(σ)."""
    coordinates = coordinates.bind(process)
    sigma = float(process.sigma(inside(process, fraction)))
    point = points(coordinates, sigma)
    tau = float(point.tau[0])
    np.testing.assert_allclose(coordinates.at_tau(point.tau).sigma, sigma, rtol=1e-9)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-6)
    at = functools.partial(points, coordinates)
    tau_rate = difference(lambda s: at(s).tau, sigma)
    close(coordinates.sigma_rate(point) * tau_rate, 1.0)
    clock_rate = difference(lambda s: coordinates.clock(at(s)), sigma)
    close(coordinates.clock_rate(point.sigma), clock_rate)
    weight = difference(lambda t: coordinates.clock(coordinates.at_tau(np.array([t]))), tau)
    close(coordinates.weight(point), weight)
    if coordinates.has_own_clock:
        np.testing.assert_array_equal(coordinates.clock(point), point.tau)
        np.testing.assert_array_equal(coordinates.weight(point), 1.0)


@pytest.mark.parametrize("coordinates", [*PLAIN, *INTERPOLATED[:3]], ids=str)
def test_arrays_of_points_are_points(coordinates):
    """What is asked for many points at once is what each gives alone, also in reverse."""
    coordinates = coordinates.bind(sk.VP())
    sigma = np.array([60.0, 5.0, 0.7, 0.03])
    many = coordinates.at(sigma)
    monotone = np.diff(many.tau)
    assert (monotone > 0).all() or (monotone < 0).all()
    for name in ("h", "clock", "weight", "sigma_rate"):
        each = [getattr(coordinates, name)(points(coordinates, s))[0] for s in sigma]
        np.testing.assert_allclose(getattr(coordinates, name)(many), each, rtol=1e-12)


# ---- Gaussian data in their own coordinates ----


@pytest.fixture(scope="module")
def frame(gaussian) -> sk.GaussianPreconditioned:
    mean, cov = gaussian.moments()
    return sk.GaussianPreconditioned(mean.numpy(), cov.numpy())


def every_scheme() -> list:
    """The registry's schemes of the flow, those of the same class and options once."""
    schemes = {}
    for name, solver in FLOWS.items():
        schemes.setdefault(id(solver.scheme), (name, solver.scheme))
    return [pytest.param(scheme, id=name) for name, scheme in schemes.values()]


@pytest.mark.parametrize("scheme", every_scheme())
def test_gaussian_data_are_solved_exactly(scheme, gaussian, frame):
    """In one step from σ = 80 to 0.002, in a few, and back; or the scheme says that it cannot."""
    x = gaussian.sample(8, 80.0, seed=0)
    exact = gaussian.flow(x, 80.0, 0.002)
    flow, solver = EDM.probability_flow(gaussian), Solver(scheme, frame, sk.grids.log)
    if isinstance(scheme, sk.ExponentialRK | sk.DPMSinglestep):
        with pytest.raises(ValueError, match=r"exponential schemes work in LogData\(\)"):
            sk.solve(flow, x, method=solver, steps=1)
        return
    for steps in (1, 5):
        solved = sk.solve(flow, x, method=solver, steps=steps)
        torch.testing.assert_close(solved.x, exact, rtol=0, atol=1e-10)
    upwards = sk.solve(flow, exact, method=solver, sigmas=[0.002, 0.5, 80.0])
    torch.testing.assert_close(upwards.x, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", [sk.VP(), sk.RectifiedFlow()], ids=["VP", "RectifiedFlow"])
def test_gaussian_data_are_solved_exactly_in_other_processes(process, gaussian, frame):
    """States are scaled by the process; a trajectory is that of the process."""
    scale = lambda s: float(process.on_host("scale", process.on_host("time", s)))  # noqa: E731
    x = gaussian.sample(8, 50.0, seed=0)
    flow = process.probability_flow(gaussian)
    solver = Solver(sk.Adams(3, corrector=True), frame, sk.grids.log)
    sigmas = [50.0, 2.0, 0.3, 0.01]
    path = sk.solve(flow, x * scale(50.0), method=solver, sigmas=sigmas, trajectory=True).trajectory
    for state, sigma in zip(path, sigmas, strict=True):
        exact = gaussian.flow(x, 50.0, sigma) * scale(sigma)
        torch.testing.assert_close(state, exact, rtol=0, atol=1e-10)


def test_any_event_shape_has_a_frame(gaussian, frame):
    """(B, *event) is flattened for the frame, in every part of a solve."""

    def denoiser(x, sigma):
        assert x.shape[1:] == (2, 1, 4)
        return gaussian(x.flatten(1), sigma).reshape(x.shape)

    x = gaussian.sample(8, 80.0, seed=0)
    shaped, flat = EDM.probability_flow(denoiser), EDM.probability_flow(gaussian)
    for scheme in (sk.Adams(3, corrector=True), sk.RungeKutta(sk.tableaus.DORMAND_PRINCE)):
        off = sk.GaussianPreconditioned(0.9 * frame.mean + 0.1, 1.2 * frame.cov)
        solver = Solver(scheme, off, sk.grids.log)
        grids = [{"steps": 6}, {"steps": 6, "ending": "half"}]
        grids += [{"rtol": 1e-6}] * scheme.adaptive
        for options in grids:
            solved = sk.solve(
                shaped, x.reshape(8, 2, 1, 4), method=solver, trajectory=True, **options
            )
            expected = sk.solve(flat, x, method=solver, trajectory=True, **options)
            assert solved.x.shape == (8, 2, 1, 4)
            close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-12)
            close(solved.trajectory.flatten(2), expected.trajectory)


def test_frame_of_samples(gaussian):
    """The sample mean and covariance, with any event shape; constant components are no obstacle."""
    samples = gaussian.sample(500, 0.0, seed=3).numpy()
    frame = sk.GaussianPreconditioned.from_samples(samples.reshape(500, 4, 2))
    np.testing.assert_allclose(frame.mean, samples.mean(0), rtol=1e-12)
    np.testing.assert_allclose(frame.cov, np.cov(samples.T), rtol=1e-12)
    mean, basis = frame.frame
    variances = ((samples - mean) @ basis).var(0, ddof=1)
    np.testing.assert_allclose(frame.h(frame.at(np.array([1e-9])))[0] ** 2, variances, rtol=1e-9)
    constant = np.concatenate([samples, np.full((500, 1), 3.0)], axis=1)
    flat = sk.GaussianPreconditioned.from_samples(constant)
    smallest = flat.h(flat.at(np.array([1e-12])))[0].min()
    assert smallest == pytest.approx(1e-3 * variances.max() ** 0.5)
    # Data of one dimension
    assert sk.GaussianPreconditioned.from_samples(samples[:, 0]).cov.shape == (1, 1)


@pytest.mark.parametrize("scheme", [sk.Adams(2, corrector=True), sk.RungeKutta(sk.tableaus.RK4)])
def test_a_wrong_frame_keeps_the_order(scheme, product):
    mean, cov = (v.numpy() for v in product.moments())
    wrong = sk.GaussianPreconditioned(mean + 1, 2.0 * np.roll(cov, 1, axis=(0, 1)))
    steps = [48, 72, 96] if scheme.order == 4 else [192, 288, 384]
    for frame in (sk.GaussianPreconditioned(mean, cov), wrong):
        order = flow_order(Solver(scheme, frame, sk.grids.log), product, EDM, steps=steps)
        assert order == pytest.approx(scheme.order, abs=0.15)


@pytest.mark.parametrize(
    "scheme", [sk.RungeKutta(sk.tableaus.DORMAND_PRINCE), sk.VariableAdams()], ids=["pair", "Adams"]
)
def test_adaptive_steps_in_the_frame(scheme, gaussian, frame, product):
    """A tolerance is met; on Gaussian data nothing is left to resolve."""
    method = Solver(scheme, frame, sk.grids.log)
    x = gaussian.sample(8, 80.0, seed=0)
    solved = sk.solve(EDM.probability_flow(gaussian), x, method=method, rtol=1e-8)
    exact = gaussian.flow(x, 80.0, 0.002)
    torch.testing.assert_close(solved.x, exact, rtol=0, atol=1e-10)
    plain = sk.solve(EDM.probability_flow(gaussian), x, method="dopri5", rtol=1e-8)
    assert solved.nfe < plain.nfe / 5
    mean, cov = (v.numpy() for v in product.moments())
    method = Solver(method.scheme, sk.GaussianPreconditioned(mean, cov), sk.grids.log)
    x = product.sample(8, 80.0, seed=0)
    flow, exact = EDM.probability_flow(product), product.flow(x, 80.0, 0.01)
    for rtol in (1e-4, 1e-7, 1e-10):
        solved = sk.solve(flow, x, method=method, sigmas=[80.0, 1.0, 0.01], rtol=rtol)
        assert (solved.x - exact).abs().max() < 20 * rtol


def test_euler_maruyama_in_the_frame(product):
    """The noise is turned into the frame: on one path it goes where it goes in other coordinates."""
    mean, cov = (v.numpy() for v in product.moments())
    fine = sk.grids.log(2048, 3.0, 0.3)
    x = product.sample(16, 3.0, seed=3)
    path = sk.GridPath(fine**2, tuple(x.shape), seed=11)
    reverse = EDM.reverse(product)

    def solve(coordinates, n):
        method = Solver(sk.EulerMaruyama(), coordinates, sk.grids.log)
        sigmas = fine[:: 2048 // n]
        return sk.solve(reverse, x, method=method, sigmas=sigmas, noise=path).x

    frame = sk.GaussianPreconditioned(mean, cov)

    def apart(n):
        return float((solve(frame, n) - solve(sk.Noise(), n)).square().mean().sqrt())

    assert measure_order(apart, [64, 128, 256, 512]) == pytest.approx(1, abs=0.15)
    # An isotropic frame turns nothing, and adds nothing but its mean.
    round_frame = sk.GaussianPreconditioned(0 * mean, 0.49 * np.eye(3))
    in_lambda = sk.Interpolated(sk.Preconditioned(0.7), sk.LogNoise())
    close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-12)
    close(solve(round_frame, 64), solve(in_lambda, 64))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: sk.GaussianPreconditioned([0, 0], np.eye(3)),
            ValueError,
            r"\(2,\) and cov \(3, 3\)",
        ),
        (lambda: sk.GaussianPreconditioned([[0.0]], [[1.0]]), ValueError, "mean has shape"),
        (lambda: sk.GaussianPreconditioned([0, 0], [[1, 0.5], [0.2, 1]]), ValueError, "symmetric"),
        (
            lambda: sk.GaussianPreconditioned([0, 0], [[1, np.nan], [np.nan, 1]]),
            ValueError,
            "finite",
        ),
        (lambda: sk.GaussianPreconditioned([0], [[0.0]]), ValueError, "no positive eigenvalue"),
        (lambda: sk.GaussianPreconditioned([0], [[-1.0]]), ValueError, "no positive eigenvalue"),
        (lambda: sk.GaussianPreconditioned([np.nan], [[1.0]]), ValueError, "finite"),
        (lambda: sk.GaussianPreconditioned([0], [[np.inf]]), ValueError, "finite"),
        (lambda: sk.GaussianPreconditioned.from_samples(np.ones((1, 3))), ValueError, "1 samples"),
        (lambda: sk.Preconditioned(0.0), ValueError, "sigma_data = 0.0"),
        (lambda: sk.Preconditioned(-1.0), ValueError, "sigma_data = -1.0"),
        (lambda: sk.Preconditioned(np.inf), ValueError, "sigma_data = inf"),
        (lambda: sk.Preconditioned(np.nan), ValueError, "sigma_data = nan"),
        (lambda: sk.Preconditioned().tau(np.ones(1)), ValueError, "no sigma_data yet"),
        (lambda: sk.Native().tau(np.ones(1)), ValueError, "no process yet"),
    ],
)
def test_bad_coordinates_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_frame_of_another_dimension_is_refused(product, frame):
    solver = Solver(sk.Adams(2), frame, sk.grids.log)
    x = torch.ones((2, 3), dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"8 dimensions, the state has shape \(2, 3\)"):
        sk.solve(EDM.probability_flow(product), x, method=solver, steps=3)


# ---- one method, many names ----


def same(product, *methods, process=EDM, steps=13) -> bool:
    """Whether methods give the same bits on the same grid."""
    flow = process.probability_flow(product)
    x = process.prior_sample((16, 3), seed=0, dtype=DOUBLE)
    sigmas = sk.grids.karras(steps, process.sigma_max, process.sigma_min)
    first, *others = (sk.solve(flow, x, method=method, sigmas=sigmas).x for method in methods)
    return all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("process", [EDM, sk.VP()], ids=["EDM", "VP"])
def test_names_of_one_method(process, product):
    """To the last bit: DDIM, LMS, and DEIS in log ρ, however they are composed."""
    one, noise = functools.partial(same, product, process=process), sk.Noise()

    def adams(k, coordinates):
        return Solver(sk.Adams(k), coordinates, sk.grids.log)

    euler = Solver(sk.RungeKutta(sk.tableaus.EULER), noise, sk.grids.log)
    assert one("ddim", "euler", "edm_euler", "dpm_solver_1", euler, adams(1, noise))
    assert one("ddim", adams(1, sk.LogNoise()), adams(1, sk.Interpolated(noise, sk.Native())))
    assert one("heun", "edm_heun")
    for k in (2, 3, 4):
        assert one(f"lms{k}", adams(k, noise))
        assert not one(f"lms{k}", "ddim")
    for k in (2, 3):
        assert one(f"deis_logrho{k}", adams(k, sk.LogNoise()))
        assert one(f"deis_logrho{k}", adams(k, sk.Interpolated(noise, sk.LogNoise())))
        assert not one(f"deis_logrho{k}", f"lms{k}")


# ---- endings ----


@pytest.mark.parametrize(
    ("ending", "variance"),
    [
        ("stop", lambda s2, v: s2 + v),
        ("denoise", lambda s2, v: s2 - s2 * v / (s2 + v)),
        ("half", lambda s2, v: s2 + v**2 / (4 * (s2 + v))),
    ],
)
@pytest.mark.parametrize("low", [0.002, 0.3])
@pytest.mark.parametrize("process", [EDM, sk.VP()], ids=["EDM", "VP"])
def test_bias_of_endings(process, low, ending, variance):
    """The variance of the results on Gaussian data, from exact solves, is as documented."""
    s2 = 0.49
    law = Gaussian([0.0], [[s2]])
    high = process.sigma_max
    scale = [float(process.on_host("scale", process.on_host("time", s))) for s in (high, low)]
    flow, solver = (
        process.probability_flow(law),
        Solver(sk.Adams(1), sk.Preconditioned(0.7), sk.grids.log),
    )
    x = torch.tensor([[1.0]], dtype=DOUBLE)
    solved = sk.solve(flow, x * scale[0], method=solver, sigmas=[high, low], ending=ending)
    gain = float(solved.x) / (scale[1] if ending == "stop" else 1.0)
    assert gain**2 * (s2 + high**2) == pytest.approx(variance(s2, low**2), rel=1e-11)
    assert solved.nfe == (1 if ending == "stop" else 2)
    assert solved.grid[-1] == (low if ending == "stop" else 0.0)
