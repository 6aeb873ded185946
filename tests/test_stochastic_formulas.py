"""Stochastic schemes: the papers' formulas in the papers' variables, and what is exact."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from noise_sources import Silent
from stochastic_errors import OF_ONE_ETA, OF_THE_SDE, SIGMA_DATA, STOCHASTIC, solved

import sdekit as sk
from sdekit.solvers.stochastic_rk import StochasticRK
from sdekit.theory.noises import Impulses, Recorded

HIGH, LOW = 3.0, 0.3
LEVELS = sk.grids.log(7, HIGH, LOW)


@pytest.fixture
def start(product):
    return product.sample(16, HIGH, seed=3), torch.randn(
        (64, 16, 3), generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )


def by_sdekit(name, denoiser, x, noise, eta=1.0):
    return solved(STOCHASTIC[name], denoiser, x, LEVELS, noise, eta)


def lagrange(nodes, at):
    """Lagrange's basis at nodes, ``(k, q)``."""
    return np.array(
        [
            np.prod([(at - m) / (node - m) for m in np.delete(nodes, j)], axis=0) * np.ones_like(at)
            for j, node in enumerate(nodes)
        ]
    )


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("order", [2, 3])
def test_sa_solver(order, eta, product, start):
    """Xue et al. 2023, proposition 4.2 and algorithm 1: the corrector has the predictor's noise."""
    x, z = start
    lam = -np.log(LEVELS)
    q, w = np.polynomial.legendre.leggauss(20)

    def integrals(nodes, n):
        h = lam[n + 1] - lam[n]
        at = lam[n] + h * (q + 1) / 2
        weight = (1 + eta**2) * np.exp((1 + eta**2) * (at - lam[n + 1])) * w * h / 2
        return lagrange(lam[nodes], at) @ weight

    state, d = x, [product(x, torch.tensor(LEVELS[0]))]
    for n in range(7):
        h = lam[n + 1] - lam[n]
        linear = np.exp(-(1 + eta**2) * h) * state
        linear = linear + LEVELS[n + 1] * np.sqrt(-np.expm1(-2 * eta**2 * h)) * z[n]
        nodes = [*range(n, max(n - order, -1), -1)]
        predicted = linear + sum(b * d[j] for b, j in zip(integrals(nodes, n), nodes, strict=True))
        d.append(product(predicted, torch.tensor(LEVELS[n + 1])))
        nodes = [n + 1, *nodes]
        state = linear + sum(b * d[j] for b, j in zip(integrals(nodes, n), nodes, strict=True))
    # The last evaluation would be needed for nothing but the last correction.
    result = by_sdekit(f"sa_solver_{order}", product, x, Recorded(z), eta)
    torch.testing.assert_close(result, predicted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm_solver(order, eta, product, start):
    """SDE-DPM-Solver++(1) and (2M) (Lu et al. 2022b, appendix A), here for any ``η``."""
    x, z = start
    expected, d = x, []
    for n, (s, t) in enumerate(itertools.pairwise(LEVELS)):
        h = np.log(s / t)
        d.append(product(expected, torch.tensor(s)))
        slope = d[n]
        if n and order == 2:
            slope = d[n] + (d[n] - d[n - 1]) / (2 * np.log(LEVELS[n - 1] / s) / h)
        expected = np.exp(-(1 + eta**2) * h) * expected - np.expm1(-(1 + eta**2) * h) * slope
        expected = expected + t * np.sqrt(-np.expm1(-2 * eta**2 * h)) * z[n]
    name = {1: "sde_dpmpp_1", 2: "sde_dpmpp_2m"}[order]
    result = by_sdekit(name, product, x, Recorded(z), eta)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("name", ["seeds_2", "dpmpp_sde"])
def test_two_stages_with_the_noise_of_one_path(name, eta, product, start):
    """SEEDS-2 (Gonzalez et al. 2023) and DPM++ SDE: the noise of the stage is carried on."""
    x, z = start
    expected = x
    for n, (s, t) in enumerate(itertools.pairwise(LEVELS)):
        m, h = np.sqrt(s * t), np.log(s / t) / 2
        rate = 1 + eta**2
        first, second = (np.sqrt(-np.expm1(-2 * eta**2 * h)) * z[2 * n + k] for k in range(2))
        d = product(expected, torch.tensor(s))
        middle = np.exp(-rate * h) * expected - np.expm1(-rate * h) * d + m * first
        d_middle = product(middle, torch.tensor(m))
        if name == "seeds_2":  # φ_2: the slope of D over the step
            u = -2 * rate * h
            phi_1 = np.expm1(u) / u
            phi_2 = (phi_1 - 1) / u
            change = -u * (phi_1 * d + 2 * phi_2 * (d_middle - d))
        else:
            change = -np.expm1(-2 * rate * h) * d_middle
        expected = np.exp(-2 * rate * h) * expected + change
        expected = expected + t * (np.exp(-(eta**2) * h) * first + second)
    result = by_sdekit(name, product, x, Recorded(z), eta)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_solver(order, product, start):
    """Cui et al. 2023, with their default ``φ``; the third order with the parabola's own slope."""
    x, z = start

    def phi(sigma):
        return sigma * (np.exp(sigma**0.3) + 10)

    q, w = np.polynomial.legendre.leggauss(60)
    expected, d = x, []
    for n, (s, t) in enumerate(itertools.pairwise(LEVELS)):
        ratio = phi(t) / phi(s)
        d.append(product(expected, torch.tensor(s)))
        change = (1 - ratio) * d[n]
        at = t + (s - t) * (q + 1) / 2
        weight = w * (s - t) / 2 / phi(at)
        if n and order > 1:
            slope = (d[n] - d[n - 1]) / (s - LEVELS[n - 1])
            if n > 1 and order > 2:
                before = (d[n - 1] - d[n - 2]) / (LEVELS[n - 1] - LEVELS[n - 2])
                curvature = 2 * (slope - before) / (s - LEVELS[n - 2])
                slope = slope + curvature / 2 * (s - LEVELS[n - 1])
                change = change + curvature * (
                    (t - s) ** 2 / 2 + phi(t) * np.sum((at - s) * weight)
                )
            change = change + slope * (t - s + phi(t) * weight.sum())
        expected = ratio * expected + change + np.sqrt(t**2 - ratio**2 * s**2) * z[n]
    result = by_sdekit(f"er_sde_{order}", product, x, Recorded(z))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)


def test_ancestral_sampling(product, start):
    """k-diffusion's ``dpmpp_2s_ancestral``: DPM-Solver++(2S) to ``σ_down``, then noise."""
    x, z = start
    expected = x
    for n, (s, t) in enumerate(itertools.pairwise(LEVELS)):
        up = t * np.sqrt(1 - (t / s) ** 2)
        down = np.sqrt(t**2 - up**2)
        m = np.sqrt(s * down)
        middle = m / s * expected + (1 - m / s) * product(expected, torch.tensor(s))
        d = product(middle, torch.tensor(m))
        expected = down / s * expected + (1 - down / s) * d + up * z[n]
    result = by_sdekit("dpmpp_2s_ancestral", product, x, Recorded(z))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["sea", "shark", "spark", "sra1", "sra3", "sea_m"])
def test_stochastic_runge_kutta(name, product, start):
    """As printed, for ``dy = f dr + dB`` with ``r`` counting down the variance.

    Foster et al. write ``W`` and ``H``, Rößler ``I_(1,0) = h (W/2 + H)``. What is drawn is the area of
    the path that goes up the variance: seen from the other end, it has the other sign.
    """
    x, z = start
    y, before = x, None
    for n, (s, t) in enumerate(itertools.pairwise(LEVELS)):
        h = s**2 - t**2
        first, second = (1, 0) if name == "shark" else (0, 1)  # what it needs first is drawn first
        W, H = z[2 * n + first] * np.sqrt(h), -z[2 * n + second] * np.sqrt(h / 12)
        I = W / 2 + H  # noqa: E741 (Rößler's name)

        def f(state, c, s=s, h=h):
            return product.score(state, float(np.sqrt(s**2 - c * h)))

        if name == "sea":
            y = y + f(y + H + W / 2, 0) * h + W
        elif name == "shark":
            first = f(y + H, 0)
            y = y + (0.4 * first + 0.6 * f(y + H + 5 / 6 * (first * h + W), 5 / 6)) * h + W
        elif name == "spark":
            first = f(y, 0)
            second = f(y + first * h / 2 + W / 2 + np.sqrt(3) * H, 1 / 2)
            third = f(y + second * h + W, 1)
            y = y + ((3 - np.sqrt(3)) / 6 * (first + third) + second / np.sqrt(3)) * h + W
        elif name == "sra1":
            first = f(y, 0)
            y = y + (first / 3 + 2 / 3 * f(y + 3 / 4 * first * h + 3 / 2 * I, 3 / 4)) * h + W
        elif name == "sra3":
            first = f(y, 0)
            second = f(y + first * h, 1)
            third = f(y + (first + second) * h / 4 + 3 / 2 * I, 1 / 2)
            y = y + ((first + second) / 6 + 2 / 3 * third) * h + W
        else:
            drift = 0 if before is None else before * h / 3
            before = f(y + W / 2 + H + drift, 1 / 3)
            y = y + before * h + W
    result = by_sdekit(name, product, x, Recorded(z))
    torch.testing.assert_close(result, y, rtol=0, atol=1e-11)


# --- what is exact --------------------------------------------------------------------------------


def final_variance(name, data, n, eta):
    """Exact variance of the result for data ``N(0, data)``."""
    solver = STOCHASTIC[name]
    x = torch.zeros((max(2, solver.scheme.nfe_per_step) * n + 1, 1), dtype=torch.float64)
    x[0] = np.sqrt(data + HIGH**2)
    sigmas = sk.grids.log(n, HIGH, LOW)
    result = solved(solver, lambda x, s: data / (data + s**2) * x, x, sigmas, Impulses(), eta)
    return float(result.square().sum())


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    "name", [n for n in OF_THE_SDE if isinstance(STOCHASTIC[n].coordinates, sk.Preconditioned)]
)
def test_gaussian_data_of_the_right_scale_are_exact(name, eta):
    """For ``N(0, σ_d² I)`` there is no drift left in `Preconditioned`: any number of steps will do."""
    if name in ("sea_m_theta", "sea_w_theta") and eta != 1:
        with pytest.raises(ValueError, match="it needs eta = 1"):
            final_variance(name, SIGMA_DATA**2, 1, eta)
        return
    for n in (1, 2, 3, 7):
        variance = final_variance(name, SIGMA_DATA**2, n, eta)
        assert variance == pytest.approx(SIGMA_DATA**2 + LOW**2, rel=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in OF_THE_SDE
        if isinstance(STOCHASTIC[name].scheme, sk.Stochastic)
        and not isinstance(STOCHASTIC[name].coordinates, sk.Preconditioned | sk.Noise)
    ],
)
def test_data_at_a_point_are_exact(name, eta):
    """In `LogData` a constant denoiser leaves nothing to integrate."""
    if name in OF_ONE_ETA and eta != 1:
        with pytest.raises(ValueError, match="stochasticity of its own"):
            final_variance(name, 0.0, 1, eta)
        return
    for n in (1, 2, 3, 7):
        assert final_variance(name, 0.0, n, eta) == pytest.approx(LOW**2, rel=1e-12)


VARIED = {name: STOCHASTIC[name].scheme for name in OF_THE_SDE if name not in OF_ONE_ETA}


@pytest.mark.parametrize(
    "name", [n for n, s in VARIED.items() if isinstance(s, sk.Stochastic | sk.Ancestral)]
)
def test_with_little_noise_the_scheme_is_that_of_the_flow(name, product):
    """What is left of the reverse SDE's weights is ``O(η²)``."""
    solver, x = STOCHASTIC[name], product.sample(4, HIGH, seed=0)
    flow = dataclasses.replace(solver, scheme=solver.scheme.scheme)
    expected = solved(flow, product, x, LEVELS, Silent())
    result = solved(solver, product, x, LEVELS, Silent(), 1e-3)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)
    result = solved(solver, product, x, LEVELS, sk.IndependentNoise(0), 1e-3)
    torch.testing.assert_close(result, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", [n for n, s in VARIED.items() if isinstance(s, StochasticRK)])
def test_runge_kutta_with_little_noise_solves_the_flow(name, product):
    solver, x = STOCHASTIC[name], product.sample(4, HIGH, seed=0)
    result = solved(solver, product, x, sk.grids.log(200, HIGH, LOW), Silent(), 1e-3)
    torch.testing.assert_close(result, product.flow(x, HIGH, LOW), rtol=0, atol=0.03)


# --- what is refused ------------------------------------------------------------------------------


def test_tableaus_are_checked_when_they_are_made():
    """By the conditions of theory 4.9: weak order 2 does without ``Σ b q = 1``."""
    sra1 = STOCHASTIC["sra1"].scheme.tableau
    for change in (
        {"c": (0.0, 0.7)},
        {"a": ((), (0.7,))},
        {"b": (0.3, 0.7)},
        {"p": (0.0, 0.7)},
        {"q": (0.0, 1.4)},
        {"b": (0.3, 0.6), "strong_order": 1.0, "weak_order": 1.0},
        {"p": (0.1, 0.75), "strong_order": 1.0},
    ):
        with pytest.raises(ValueError, match="the conditions of strong order"):
            dataclasses.replace(sra1, **change)
    dataclasses.replace(sra1, c=(0.1, 0.7), strong_order=1.0, weak_order=1.0)
    with pytest.raises(ValueError, match="a tableau of 2 stages needs 2 weights"):
        dataclasses.replace(sra1, b=(1.0,))


def test_parameters_of_noise_between_steps_are_checked():
    heun = sk.RungeKutta(sk.tableaus.HEUN)
    for wrong in ({"s_churn": -1.0}, {"s_noise": -0.1}, {"s_min": 2.0, "s_max": 1.0}):
        with pytest.raises(ValueError, match="none may be negative"):
            sk.Churn(heun, **wrong)
    for interval in ((0.0, 1.0, 2, 1), (1.0, 0.5, 2, 1), (0.1, 0.5, 0, 1), (0.1, 0.5, 2, 0)):
        with pytest.raises(ValueError, match="at least one step and one time"):
            sk.Restart(heun, [interval])
