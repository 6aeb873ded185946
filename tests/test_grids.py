"""Grids: the contract of every grid, the variable each is uniform in, and published values."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit import grids

PROCESSES = [sk.VP(), sk.SubVP(), sk.EDM(), sk.VE(0.01, 150.0), sk.CosineVP(), sk.RectifiedFlow()]
FROM_INFINITY = {
    "balanced",
    "uniform_t",
    "power_t",
    "beta",
    "theta",
    "power_theta",
    "sigmoid",
    "flow_shift",
}
levels = {"high": st.floats(1.0, 140.0), "low": st.floats(0.02, 0.5)}


@settings(deadline=None, max_examples=100)
@given(
    name=st.sampled_from(sorted(grids.GRIDS)),
    process=st.sampled_from(PROCESSES),
    n=st.integers(1, 300),
    **levels,
)
def test_contract(name, process, n, high, low):
    grid = grids.GRIDS[name](n, high, low, process)
    assert grid.dtype == np.float64
    assert grid.shape == (n + 1,)
    assert grid[0] == high
    assert grid[-1] == low
    assert (np.diff(grid) < 0).all()


@pytest.mark.parametrize("name", sorted(grids.GRIDS))
@pytest.mark.parametrize("process", [sk.RectifiedFlow(), sk.CosineVP()], ids=repr)
def test_start_at_infinity(name, process):
    """A grid starts at σ = ∞ if its variable is finite there, and says so if it is not."""
    grid = functools.partial(grids.GRIDS[name], 10, math.inf, 0.01, process)
    if name not in FROM_INFINITY:
        with pytest.raises(ValueError, match="cannot start at sigma = ∞"):
            grid()
        return
    sigmas = grid()
    assert np.isinf(sigmas[0])
    assert np.isfinite(sigmas[1:]).all()
    assert (np.diff(sigmas[1:]) < 0).all()


UNIFORM_IN = {
    "karras": lambda s, o, t: s ** (1 / o),
    "uniform_sigma": lambda s, o, t: s,
    "log": lambda s, o, t: np.log(s),
    "uniform_t": lambda s, o, t: t,
    "power_t": lambda s, o, t: t ** (1 / o),
    "theta": lambda s, o, t: np.arctan2(s, o),
    "power_theta": lambda s, o, t: np.arctan((s / 0.7) ** (1 / o)),
    "flow_shift": lambda s, o, t: s / (s + o),
}
OPTIONS = {
    "karras": lambda o: {"rho": o},
    "power_t": lambda o: {"rho": o},
    "theta": lambda o: {"sigma_data": o},
    "power_theta": lambda o: {"p": 1 / o, "sigma_data": 0.7},
    "flow_shift": lambda o: {"shift": o},
}


@settings(deadline=None, max_examples=100)
@given(
    name=st.sampled_from(sorted(UNIFORM_IN)),
    process=st.sampled_from(PROCESSES),
    n=st.integers(2, 100),
    option=st.floats(0.3, 7.0),
    **levels,
)
def test_uniform_in_its_variable(name, process, n, option, high, low):
    options = OPTIONS.get(name, lambda o: {})(option)
    sigmas = grids.GRIDS[name](n, high, low, process, **options)
    value = UNIFORM_IN[name](sigmas, option, process.on_host("time", sigmas))
    scale = np.abs(value).max()
    np.testing.assert_allclose(
        np.diff(value) * n / scale, (value[-1] - value[0]) / scale, atol=1e-7
    )


def sigmoid_process() -> sk.AffineSDE:
    """The sigmoid schedule as a process, written down as in Chen (2023), algorithm 1."""

    def gamma(t):
        start, end = torch.sigmoid(torch.tensor([-3.0, 3.0], dtype=torch.float64) / 0.9)
        return (end - torch.sigmoid((6 * t - 3) / 0.9)) / (end - start)

    return sk.AffineSDE(
        scale=lambda t: torch.sqrt(gamma(t)),
        sigma=lambda t: torch.sqrt((1 - gamma(t)) / gamma(t)),
        T=0.9999,
    )


@pytest.mark.parametrize(
    ("grid", "other"),
    [
        (grids.polyexponential, grids.log),
        (functools.partial(grids.karras, rho=1.0), grids.uniform_sigma),
        (functools.partial(grids.power_t, rho=1.0), grids.uniform_t),
        (functools.partial(grids.beta, alpha=1.0, beta=1.0), grids.uniform_t),
        (functools.partial(grids.power_theta, p=1.0), grids.theta),
        (functools.partial(grids.power_theta, p=1e-4), grids.log),
        (functools.partial(grids.karras, rho=1e5), grids.log),
        (
            functools.partial(grids.flow_shift, shift=1.0),
            lambda *a: grids.uniform_t(*a[:3], sk.RectifiedFlow()),
        ),
        (
            functools.partial(grids.theta, sigma_data=1.0),
            lambda *a: grids.uniform_t(*a[:3], sk.CosineVP(offset=1e-9)),
        ),
        (
            functools.partial(grids.sigmoid, tau=0.9),
            lambda *a: grids.uniform_t(*a[:3], sigmoid_process()),
        ),
    ],
)
def test_special_cases(grid, other):
    """Grids that are the same by their definitions, or by those of processes."""
    process = sk.VP()
    expected = other(17, 60.0, 0.05, process)
    np.testing.assert_allclose(grid(17, 60.0, 0.05, process), expected, rtol=1e-4)


def test_edm_s_grid():
    """Karras et al. 2022, eq. 5 with N = 18, σ 80 … 0.002 and ρ = 7, which is the default."""
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grids.karras(17, 80.0, 0.002), expected, rtol=1e-12)


def test_k_diffusion_s_polyexponential():
    ramp = np.linspace(1, 0, 12) ** 1.7
    expected = np.exp(ramp * (math.log(14.6) - math.log(0.03)) + math.log(0.03))
    np.testing.assert_allclose(grids.polyexponential(11, 14.6, 0.03, rho=1.7), expected, rtol=1e-12)


def test_comfyui_s_beta():
    """scipy's quantiles of Beta(0.6, 0.6) on the training steps 0 … 999, without their rounding."""
    process = sk.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    sigmas = grids.beta(10, process.sigma_max, process.sigma_min, process)
    steps = process.on_host("time", sigmas) * 1000 - 1
    expected = 999 * scipy.stats.beta.ppf(np.linspace(1, 0, 11), 0.6, 0.6)
    np.testing.assert_allclose(steps, expected, atol=1e-6)


def test_stable_diffusion_3_s_shift():
    """t' = 3t/(1 + 2t) on t = 1, 3/4, 1/2, 1/4 is 1, 9/10, 3/4, 1/2; and σ = t'/(1 − t')."""
    sigmas = grids.flow_shift(3, math.inf, 1.0, shift=3.0)
    np.testing.assert_allclose(sigmas[1:], [9.0, 3.0, 1.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("model", "first", "middle", "last"),
    [
        ("sd15", 14.615, 1.396, 0.029),
        ("sdxl", 14.615, 0.862, 0.029),
        ("deepfloyd", 160.41, 0.785, 0.006),
        ("svd", 700.0, 1.789, 0.002),
    ],
)
def test_align_your_steps(model, first, middle, last):
    """The table itself at ten steps, log-linear between at twenty, affine in log σ on other ends."""
    table = np.array(grids.AYS_TABLES[model])
    assert (table[0], table[5], table[10]) == (first, middle, last)
    ten = grids.ays(10, first, last, model=model)
    np.testing.assert_allclose(ten, table, rtol=1e-12)
    twenty = grids.ays(20, first, last, model=model)
    np.testing.assert_allclose(twenty[::2], table, rtol=1e-12)
    np.testing.assert_allclose(twenty[1::2], np.sqrt(table[1:] * table[:-1]), rtol=1e-12)
    stretched = np.log(grids.ays(10, 80.0, 0.01, model=model))
    ratio = np.diff(stretched) / np.diff(np.log(table))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_theta_is_optimal_for_euler_on_a_gaussian():
    """Sabour et al. 2024, theorem 3.1: moving any level changes the final variance at second order.

    For data N(0, c²) a step of Euler in σ multiplies the state by 1 + (σ' − σ) σ/(σ² + c²), and the
    product over the steps is nearest to the exact factor.
    """
    c = 0.4

    def log_factor(sigmas):
        now, then = sigmas[:-1], sigmas[1:]
        return np.log(1 + (then - now) * now / (now**2 + c**2)).sum()

    def gradient(sigmas):
        relative = 1e-5
        values = []
        for i in range(1, len(sigmas) - 1):
            up, down = sigmas.copy(), sigmas.copy()
            up[i] *= 1 + relative
            down[i] *= 1 - relative
            values.append((log_factor(up) - log_factor(down)) / (2 * relative))
        return np.abs(values).max()

    assert gradient(grids.theta(8, 80.0, 0.002, sigma_data=c)) < 1e-8
    assert gradient(grids.theta(8, 80.0, 0.002, sigma_data=2 * c)) > 0.01
    assert gradient(grids.karras(8, 80.0, 0.002)) > 0.01


@pytest.mark.parametrize("name", sorted(grids.GRIDS))
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 80.0, 0.002), "n = 0 steps"),
        ((5, 0.002, 80.0), "0 < sigma_min < sigma_max is needed"),
        ((5, 80.0, 0.0), "sigma_min = 0.0"),
        ((5, math.nan, 0.1), "sigma_max = nan"),
    ],
)
def test_bad_ranges_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        grids.GRIDS[name](*arguments, sk.EDM())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda *a: grids.karras(*a, rho=0.0), "rho = 0.0"),
        (lambda *a: grids.polyexponential(*a, rho=-1.0), "rho = -1.0"),
        (lambda *a: grids.power_t(*a, sk.VP(), rho=math.inf), "rho = inf"),
        (lambda *a: grids.power_t(*a), "needs process="),
        (lambda *a: grids.beta(*a), "needs process="),
        (lambda *a: grids.beta(*a, sk.VP(), alpha=0.0), "alpha = 0.0"),
        (lambda *a: grids.uniform_t(*a, sk.VE(0.1, 50.0)), "exceeds that of VE"),
        (lambda *a: grids.uniform_t(*a, sk.DiscreteVP([0.9, 0.5])), "exceeds that of DiscreteVP"),
        (lambda *a: grids.theta(*a, sigma_data=math.nan), "sigma_data = nan"),
        (lambda *a: grids.power_theta(*a, p=0.0), "p = 0.0"),
        (lambda *a: grids.sigmoid(*a, start=3.0, end=-3.0), "start < end"),
        (lambda *a: grids.sigmoid(*a, tau=0.0), "tau = 0.0"),
        (lambda *a: grids.flow_shift(*a, shift=-3.0), "shift = -3.0"),
        (lambda *a: grids.ays(*a, model="flux"), "'flux' has no table; there are sd15, sdxl"),
        (lambda *a: grids.polyexponential(*a, rho=50.0), "levels coincide"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(80, 80.0, 0.002)


@given(
    n=st.integers(1, 200),
    scale=st.floats(0.2, 3.0),
    power=st.floats(0.4, 2.0),
    sigma_data=st.sampled_from([0.1, 1.0, 4.0]),
)
def test_the_steps_of_balanced_are_equal_shares(n, scale, power, sigma_data):
    """Of the mean of ``arctan((σ/scale σ_d)^power)`` and ``log σ`` that its formula says."""
    high, low = 20.0 * sigma_data, 0.01 * sigma_data
    options = {"sigma_data": sigma_data, "scale": scale, "power": power}
    grid = grids.balanced(n, high, low, **options)
    variables = np.arctan((grid / (scale * sigma_data)) ** power), np.log(grid)
    phi, log = ((v[0] - v) / (v[0] - v[-1]) for v in variables)
    part = 0.1 + 0.9 * n**2 / (n**2 + 70**2)
    shares = (1 - part) * phi + part * log
    np.testing.assert_allclose(shares, np.arange(n + 1) / n, atol=2e-5)
