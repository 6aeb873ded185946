"""Solvers fitted to a reverse SDE: moments and laws against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import sdekit as sk
from sdekit.brownian import Clock
from sdekit.calibrate_noise import calibrate_noise
from sdekit.calibrated import CalibratedGrid, CalibratedSolver, load_solver
from sdekit.calibration.moments import exact_moments, mean_spread, shifted
from sdekit.calibration.weak import energy_distance
from sdekit.coordinates import Coordinates
from sdekit.solvers.calibrated import CalibratedNoise, Coefficients
from sdekit.solvers.registry import Solver

Array = NDArray[np.float64]

EDM = sk.EDM(0.01, 20.0)
SCALES = np.array([0.1, 0.5, 2.0])
MEAN = np.array([1.0, 0.0, -1.0])
WIDE = sk.Gaussian(MEAN, np.diag(SCALES**2))
MIXTURE = sk.GaussianMixture.random(components=4, dim=3, seed=1)
GUIDED = sk.ClassifierFree(
    MIXTURE, 2.0, conditional={"y": torch.tensor(1)}, unconditional={"y": torch.tensor(0)}
)


class Given:
    """The normal numbers that a test chooses, one tensor for each step."""

    def __init__(self, normals: list[Tensor]) -> None:
        self.normals = iter(normals)

    def increment(self, a: float, b: float, like: Tensor) -> Tensor:
        return next(self.normals).to(like) * math.sqrt(b - a)

    def area(self, a: float, b: float, like: Tensor) -> Tensor:
        raise AssertionError("no step asks for an area")

    def normal(self, like: Tensor) -> Tensor:
        raise AssertionError("no step asks for noise of no interval")

    def on(self, clock: Clock) -> Given:
        return self


def solver_of(made: Coefficients, coordinates: Coordinates, d: int) -> Solver:
    return Solver(CalibratedNoise(made, (d,)), coordinates, CalibratedGrid(tuple(made.sigmas)))


def end_law(made: Coefficients, coordinates: Coordinates, law: sk.Gaussian) -> tuple[Array, Array]:
    """Mean and covariance at the end of a solve that began in the exact law, by propagating columns.

    A solve of Gaussian data is affine in its start and in the noise of each step.
    """
    mean, cov = law.moments(float(made.sigmas[0]))
    d, std = len(mean), cov.diagonal().sqrt()
    units = torch.eye(d, dtype=torch.float64)
    parts = 1 + made.steps  # the start, and each step's noise
    start = mean.repeat(1 + parts * d, 1)
    start[1 : 1 + d] += torch.diag(std)
    normals = [torch.zeros_like(start) for _ in range(made.steps)]
    for n, normal in enumerate(normals):
        normal[1 + (n + 1) * d : 1 + (n + 2) * d] = units
    method = solver_of(made, coordinates, d)
    x = sk.solve(EDM.reverse(law), start, method=method, sigmas=made.sigmas, noise=Given(normals)).x
    columns = (x[1:] - x[0]).numpy()
    return x[0].numpy(), columns.T @ columns


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("kind", ["shifted", "moments"])
@pytest.mark.parametrize("directional", [False, True])
def test_gaussian_data_have_their_exact_law(kind: str, steps: int, directional: bool) -> None:
    scales = SCALES if directional else np.array([0.5])
    law = WIDE if directional else sk.Gaussian(np.zeros(3), 0.25 * np.eye(3))
    coordinates: Coordinates = (
        sk.GaussianPreconditioned(MEAN, np.diag(SCALES**2))
        if directional
        else sk.Preconditioned(0.5)
    )
    sigmas = sk.grids.log(steps, 20.0, 0.01)
    level = sigmas[:-1, None]
    made = (
        shifted(sigmas, scales, 0.5)
        if kind == "shifted"
        else exact_moments(sigmas, scales, level**2 * scales**2 / (level**2 + scales**2))
    )
    mean, cov = end_law(made, coordinates, law)
    exact_mean, exact = (v.numpy() for v in law.moments(0.01))
    np.testing.assert_allclose(mean, exact_mean, atol=1e-12)
    np.testing.assert_allclose(cov, exact, rtol=1e-10, atol=1e-12)
    # The same test sees one coefficient of the noise that is halved.
    assert made.noise is not None
    noise = made.noise.copy()
    noise[-1] *= 0.5
    wrong = end_law(replace(made, noise=noise), coordinates, law)[1]
    assert not np.allclose(wrong, exact, rtol=1e-3, atol=0)


def test_steps_of_one_clock_are_those_of_the_default() -> None:
    """With one scale, on the clock of the data, the coefficients are ``sea_w_theta``'s."""
    sigmas = sk.grids.balanced(5, 20.0, 0.01, sigma_data=0.5, scale=1.0, power=1.2)
    normals = [*torch.randn(5, 16, 3, dtype=torch.float64)]
    x = MIXTURE.sample(16, sigma=20.0, seed=0, dtype=torch.float64)
    made = solver_of(shifted(sigmas, np.array([0.5]), 0.5), sk.Preconditioned(0.5), 3)
    own, default = (
        sk.solve(
            EDM.reverse(MIXTURE), x, method=m, sigmas=sigmas, sigma_data=0.5, noise=Given(normals)
        ).x
        for m in (
            made,
            replace(sk.methods()["sea_w_theta"].solver, coordinates=sk.Preconditioned(0.5)),
        )
    )
    torch.testing.assert_close(own, default, rtol=1e-10, atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.05, 10.0), st.floats(0.05, 0.95), st.integers(0, 99))
def test_a_step_of_exact_moments_has_the_mean_of_the_transition(
    sigma: float, ratio: float, seed: int
) -> None:
    sigmas = np.array([sigma, ratio * sigma])
    x = MIXTURE.sample(8, sigma=sigma, seed=seed, dtype=torch.float64)
    exact = MIXTURE.reverse_transition(x, sigma, ratio * sigma).mean()
    for coordinates, scales in (
        (sk.Preconditioned(0.7), np.array([0.7])),
        (sk.GaussianPreconditioned(MEAN, np.diag(SCALES**2)), SCALES),
    ):
        made = exact_moments(sigmas, scales, np.ones((1, len(scales))))
        process = sk.EDM(float(sigmas[1]) / 2, 2 * sigma)
        found = sk.solve(
            process.reverse(MIXTURE),
            x,
            method=solver_of(made, coordinates, 3),
            sigmas=sigmas,
            noise=Given([torch.zeros_like(x)]),
        ).x
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


def test_the_noise_of_exact_moments_is_the_mean_covariance_of_the_transition() -> None:
    sigmas = np.array([0.8, 0.3, 0.01])
    samples = MIXTURE.sample(40_000, sigma=0.01, seed=0, dtype=torch.float64)
    basis = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).Q
    spread = mean_spread(
        lambda x, sigma: MIXTURE(x, torch.tensor(sigma)), samples, sigmas, basis, seed=1
    )
    made = exact_moments(sigmas, SCALES, spread)
    assert made.noise is not None
    for n in range(2):
        high, low = sigmas[n : n + 2].tolist()
        x = MIXTURE.sample(20_000, sigma=high, seed=2, dtype=torch.float64)
        cov = MIXTURE.reverse_transition(x, high, low).cov().mean(0)
        exact = (basis.T @ cov @ basis).diagonal().numpy()
        own = made.noise[n] ** 2 * (low**2 + SCALES**2)
        np.testing.assert_allclose(own, exact, rtol=0.03)


def test_energy_distance_of_normal_laws() -> None:
    """Two normal laws on the line: ``2 E|X − Y| − E|X − X'| − E|Y − Y'|`` in closed form."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randn(8_000, 1, generator=rng, dtype=torch.float64)
    x = 0.5 + torch.randn(8_000, 1, generator=rng, dtype=torch.float64)
    found = energy_distance(x, y, seed=0)
    pair = 2 / math.sqrt(math.pi)
    apart = pair * math.exp(-(0.5**2) / 4) + 0.5 * math.erf(0.5 / 2)
    error = math.sqrt(15 * found.without.var())
    assert abs(found.square - (2 * apart - 2 * pair) / pair) < 4 * error < 0.03
    nearer = energy_distance(x - 0.4, y, seed=0)
    assert nearer.below(found) > 5 > -5 > found.below(nearer)


def calibrated(law: sk.Gaussian | sk.GaussianMixture, **options: object) -> CalibratedSolver:
    chosen = {"samples": 1000, "shape": (3,), "steps": 3, **options}
    return calibrate_noise(EDM.reverse(law), **chosen)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> CalibratedSolver:
    """For data of several scales that the default is not exact for."""
    return calibrated(WIDE, sigma_data=0.5)


def test_directions_are_found_and_their_variances_are_right(fitted: CalibratedSolver) -> None:
    assert "direction" in fitted.report.chosen
    assert not fitted.report.fell_back
    assert fitted.report.gain[0] < 1
    x = WIDE.sample(20_000, sigma=20.0, seed=5, dtype=torch.float64)
    for method, largest in ((fitted, (0.0, 0.15)), ("sea_w_theta", (0.2, math.inf))):
        found = sk.solve(
            EDM.reverse(WIDE), x, method=method, sigmas=fitted.sigmas, sigma_data=0.5, seed=6
        ).x
        off = np.abs(found.var(0).numpy() / (SCALES**2 + 0.01**2) - 1).max()
        assert largest[0] < off < largest[1]  # the pilots' own variances are known to 5 %


def test_the_file_gives_the_same_samples(fitted: CalibratedSolver, tmp_path: Path) -> None:
    path = tmp_path / "noise.json"
    fitted.save(path)
    x = WIDE.sample(32, sigma=20.0, seed=5, dtype=torch.float64)
    own, read = (sk.solve(EDM.reverse(WIDE), x, method=m, seed=6).x for m in (fitted, str(path)))
    assert torch.equal(own, read)
    assert load_solver(path).report == fitted.report


def test_calibration_is_deterministic_and_falls_back_on_the_default() -> None:
    """Data of one scale are sampled exactly by the default: nothing can be better."""
    law = sk.Gaussian(np.zeros(3), 0.25 * np.eye(3))
    one, other, third = (calibrated(law, seed=seed) for seed in (0, 0, 1))
    assert one.report == other.report != third.report
    assert one.report.fell_back
    assert one.report.gain[0] == 1
    x = law.sample(8, sigma=20.0, seed=5, dtype=torch.float64)
    a, b = (sk.solve(EDM.reverse(law), x, method=m, seed=6).x for m in (one, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("problem", "options", "error", "message"),
    [
        (EDM.probability_flow(MIXTURE), {}, TypeError, "sdekit.calibrate"),
        (EDM.reverse(MIXTURE, eta=0.5), {}, ValueError, "eta = 0.5"),
        (EDM.reverse(MIXTURE), {"steps": 0}, ValueError, "steps"),
        (EDM.reverse(MIXTURE), {"shape": None}, TypeError, "either x"),
        (EDM.reverse(MIXTURE), {"samples": 8}, ValueError, "at least 64"),
        (EDM.reverse(MIXTURE), {"sigma_min": 30.0}, ValueError, "sigma_min = 30"),
        (EDM.reverse(lambda x, sigma: x), {}, ValueError, "sigma_data is not known"),
        (EDM.reverse(GUIDED), {}, ValueError, "guided"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    problem: object, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        calibrate_noise(problem, **{"steps": 3, "shape": (3,), **options})  # type: ignore[arg-type]


def test_another_eta_is_refused_by_the_solver(fitted: CalibratedSolver) -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="calibrated for the reverse SDE"):
        sk.solve(EDM.reverse(WIDE, eta=0.5), x, method=fitted, seed=0)
