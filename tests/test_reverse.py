"""Coordinates of the reverse SDE, against the equation that they are coordinates of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

import sdekit as sk
from sdekit.coordinates import Points
from sdekit.reverse import ReverseCoordinates
from sdekit.stochasticity import ErEta, Eta

STEP = 1e-5  # of finite differences, in log σ
levels = st.floats(-5.0, 4.0).map(np.exp)
etas = st.sampled_from([0.2, 0.6, 1.0, 1.7]).map(Eta)
scales = st.sampled_from([0.1, 0.5, 3.0])


@st.composite
def coordinates(draw):
    """Any that there are, in any variable."""
    eta, scale = draw(etas), draw(scales)
    bases = [sk.Noise(), sk.LogNoise(), sk.LogData(), sk.Preconditioned(scale)]
    base = draw(st.sampled_from([*bases, "er"]))
    if base == "er":
        base, eta = sk.LogData(), ErEta()
    if draw(st.booleans()):
        base = sk.Interpolated(base, draw(st.sampled_from([sk.Noise(), sk.LogData()])))
    return ReverseCoordinates(base, eta)


def at(c, *sigmas):
    return c.at(np.array(sigmas))


def around(sigma):
    return np.array([sigma * np.exp(-STEP), sigma * np.exp(STEP)])


def slope(values, sigma):
    """Derivative by ``σ`` from two values around it."""
    low, high = around(sigma)
    return (values[1] - values[0]) / (high - low)


def parts(c, sigma):
    """``h`` of the flow's coordinates, ``g`` and ``η²`` at a level, from their definitions."""
    base = c.base.coordinates if isinstance(c.base, sk.Interpolated) else c.base
    if isinstance(base, sk.LogData):
        h = sigma
    elif isinstance(base, sk.Preconditioned):
        h = np.hypot(sigma, base.sigma_data)
    else:
        h = 1.0
    if isinstance(c.eta, ErEta):
        return h, np.exp(sigma**0.3) + 10, None
    return h, h**c.eta.value**2, c.eta.value**2


@given(coordinates(), levels)
def test_the_divisor_is_that_of_the_equation(c, sigma):
    """``d log g = η² d log h``, and ``h g`` divides the state."""
    h, g, squared = parts(c, sigma)
    level = np.array([sigma])
    np.testing.assert_allclose(c.damping(level), g, rtol=1e-13)
    np.testing.assert_allclose(c.h(at(c, sigma)), h * g, rtol=1e-13)
    if squared is not None:
        np.testing.assert_allclose(c.eta.squared(level), squared, rtol=1e-15)
    logs = [np.log(parts(c, s)[:2]) for s in around(sigma)]
    of_h, of_g = slope(logs, sigma)
    # Round-off of a logarithm, over the difference of the levels.
    lost = 1e-9 + 1e-15 / (STEP * sigma)
    np.testing.assert_allclose(of_g, c.eta.squared(level)[0] * of_h, rtol=1e-7, atol=lost)


@given(coordinates(), levels, st.floats(-3, 3), st.floats(-3, 3))
def test_the_drift_is_that_of_the_equation(c, sigma, x_hat, denoised):
    """Along ``dx̂ = (1 + η²) (x̂ − D)/σ dσ`` the state ``v = x̂/(h g)`` moves by ``N`` times the clock."""
    level = np.array([sigma])
    rate = (1 + c.eta.squared(level)[0]) * (x_hat - denoised) / sigma
    moved = [(x_hat + rate * (s - sigma)) / c.h(c.at(np.array([s])))[0] for s in around(sigma)]
    A, B = c.field(at(c, sigma))
    slopes = A * x_hat / c.h(at(c, sigma)) + B * denoised
    expected = slope(moved, sigma)
    size = abs(x_hat) + abs(denoised) + 1e-6
    size = size / sigma / c.h(at(c, sigma))[0] * (1 + c.eta.squared(level)[0])
    np.testing.assert_allclose(slopes * c.clock_rate(level), expected, rtol=0, atol=1e-6 * size)


@given(coordinates(), levels, levels)
def test_the_clock_is_the_integral_of_its_rate(c, one, other):
    low, high = sorted((one, other))
    if high < 1.001 * low:
        high = 1.001 * low

    def density(lam):
        sigma = np.array([np.exp(lam)])
        return float(c.clock_rate(sigma)[0] * sigma[0])

    integral, _ = quad(density, np.log(low), np.log(high), epsabs=0, epsrel=1e-11, limit=200)
    values = c.clock(at(c, low, high))
    tolerance = 1e-9 * abs(integral) + 1e-13 * np.abs(values).max()
    assert values[1] - values[0] == pytest.approx(integral, rel=0, abs=tolerance)


@given(coordinates(), levels)
def test_the_noise_is_that_of_the_equation(c, sigma):
    """``η/(h g) dB(σ²)`` has the variance ``2 σ dσ η²/(h g)²``, on its clock."""
    h, g, _ = parts(c, sigma)
    level = np.array([sigma])
    variance = 2 * sigma * c.eta.squared(level)[0] / (h * g) ** 2
    rate = c.time_rate(level)[0]
    np.testing.assert_allclose(c.noise_size**2 * abs(rate), variance, rtol=1e-12)
    found = slope(c.noise_time(around(sigma)), sigma)
    time = c.noise_time(level)[0]
    np.testing.assert_allclose(found, rate, rtol=1e-6, atol=1e-9 * time / sigma)


@given(coordinates(), levels)
def test_levels_are_found_by_the_noise_clock(c, sigma):
    time = c.noise_time(np.array([sigma]))
    # Far below the scale of the data the clock stands still.
    scale = getattr(getattr(c.base, "coordinates", c.base), "sigma_data", 0) or 0
    loss = 1e-14 * (1 + (scale / sigma) ** 2) / (1 if c.noise_clock is None else 0.04)
    if isinstance(c.eta, ErEta):
        loss = 1e-12 / sigma**0.3
    np.testing.assert_allclose(c.sigma_at(time), sigma, rtol=max(loss, 1e-12))
    np.testing.assert_allclose(c.timed().at(np.array([sigma])).tau, time)
    if c.noise_clock is not None:
        position = c.noise_clock.position(float(time[0]))
        assert position == pytest.approx(2 * np.log2(sigma), abs=max(10 * loss, 1e-9))
        assert c.noise_clock.value(position) == pytest.approx(float(time[0]), rel=1e-12)


@given(etas, scales, levels, levels)
def test_gaussian_data_of_the_right_scale_have_the_exact_transition(eta, scale, one, other):
    """For data ``N(0, σ_d²)``, ``x' | x`` is ``N((v'/v)^((1 + η²)/2) x, v' (1 − (v'/v)^(η²)))``.

    With ``v = σ_d² + σ²`` (theory 4.2); there ``N = 0``, and a step is its linear part and its noise.
    """
    low, high = sorted((one, other))
    c = ReverseCoordinates(sk.Preconditioned(scale), eta)
    h, times = c.h(at(c, low, high)), c.noise_time(np.array([low, high]))
    ratio = (scale**2 + low**2) / (scale**2 + high**2)
    np.testing.assert_allclose(h[0] / h[1], ratio ** ((1 + eta.value**2) / 2), rtol=1e-13)
    variance = -(scale**2 + low**2) * np.expm1(eta.value**2 * np.log(ratio))
    np.testing.assert_allclose(
        h[0] ** 2 * (times[0] - times[1]), variance, rtol=1e-11, atol=1e-13 * scale**2
    )
    A, B = c.field(at(c, low))
    denoised = scale**2 / (scale**2 + low**2)
    np.testing.assert_allclose(A / h[0] + B * denoised, 0, rtol=0, atol=1e-13 * abs(B[0]))


def test_the_stochasticity_of_er_sde_is_that_of_its_phi():
    """``η² = d log φ/d log σ − 1`` for ``φ = σ (exp(σ^0.3) + 10)``; above 1 where ``σ > 99``."""
    sigma = np.geomspace(0.01, 200, 50)

    def log_phi(s):
        return np.log(s * (np.exp(s**0.3) + 10))

    rate = (log_phi(sigma * np.exp(STEP)) - log_phi(sigma * np.exp(-STEP))) / (2 * STEP)
    np.testing.assert_allclose(ErEta().squared(sigma), rate - 1, rtol=1e-7, atol=1e-9)
    assert (ErEta().squared(sigma) > 1).tolist() == (sigma > 98.7).tolist()


def test_growth_is_the_rate_of_the_clock():
    for base in (sk.LogNoise(), sk.LogData()):
        for eta in (0.5, 1.0):
            c = ReverseCoordinates(base, Eta(eta))
            rates = np.abs(c.clock_rate(np.exp(-np.array([0.3, 0.7]))) * np.exp([-0.3, -0.7]))
            assert c.growth == pytest.approx(np.log(rates[1] / rates[0]) / 0.4)
    assert ReverseCoordinates(sk.LogData(), ErEta()).growth is None
    assert ReverseCoordinates(sk.Preconditioned(1.0), Eta(1.0)).growth is None


@pytest.mark.parametrize("base", [sk.Noise(), sk.LogData(), sk.Preconditioned(0.7)])
def test_drifts_are_martingales_for_eta_1(base):
    """On the noise's clock, in all coordinates: what SEA-M and shifted Euler rest on (theory 4.10)."""
    c = ReverseCoordinates(base, Eta(1.0))
    law = sk.GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.1, 0.2])
    high, low = 1.2, 0.5

    def drift(x, sigma):
        p = at(c, sigma)
        A, B = c.field(p)
        denoised = law(x, torch.tensor(sigma, dtype=torch.float64))
        rate = c.clock_rate(p.sigma) / c.time_rate(p.sigma)
        return float(rate[0]) * (float(A[0] / c.h(p)[0]) * x + float(B[0]) * denoised)

    z, w = np.polynomial.legendre.leggauss(300)
    y = torch.from_numpy(6 * z)[:, None]
    for start in (-1.5, 0.0, 0.7):
        x = torch.full_like(y, start)
        density = law.reverse_transition(x, high, low).log_prob(y).exp()
        mean = 6 * torch.from_numpy(w) @ (density * drift(y, low)[:, 0])
        assert float(mean) == pytest.approx(float(drift(x[:1], high)), rel=1e-10)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [sk.Velocity(), sk.Native(sk.VP())])
def test_coordinates_without_a_clock_for_the_noise_are_refused(base):
    name = type(base).__name__
    with pytest.raises(ValueError, match=f"in {name} coordinates the noise .* take Noise"):
        ReverseCoordinates(base, Eta(1.0))
    solver = sk.Solver(sk.Stochastic(sk.Adams(2)), base, sk.grids.log)
    problem = sk.EDM().reverse(lambda x, sigma: x)
    with pytest.raises(ValueError, match=f"in {name} coordinates"):
        sk.solve(problem, torch.ones(2, 1), method=solver, sigmas=[2.0, 1.0], seed=0)


def test_a_stochasticity_that_varies_needs_log_data():
    with pytest.raises(ValueError, match=r"needs LogData\(\) or Preconditioned\(\)"):
        ReverseCoordinates(sk.Noise(), ErEta())
    c = ReverseCoordinates(sk.Preconditioned(1.0), ErEta())
    with pytest.raises(ValueError, match=r"ER-SDE-Solver needs LogData\(\) coordinates"):
        c.clock(Points(np.ones(1), np.ones(1)))
    with pytest.raises(ValueError, match="defined in LogData"):
        c.noise_time(np.ones(1))


def test_starts_at_infinite_noise_are_refused():
    """At ``σ = ∞`` there is a flow, of rectified flow for one, but no reverse SDE."""
    problem = sk.RectifiedFlow().reverse(lambda x, sigma: x)
    for method in ("stochastic_adams2", "sea", "ddim_eta"):
        with pytest.raises(ValueError, match="infinite drift and noise at σ = ∞"):
            sk.solve(problem, torch.ones(2, 1), method=method, sigmas=[np.inf, 1.0], seed=0)


def test_a_high_start_is_near_the_prior():
    """From ``σ = 1e6`` no digits are lost: the noise's clocks and the damping stay exact."""
    law = sk.Gaussian([0.0], [[0.25]])
    x = 1e6 * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)).double()
    problem = sk.EDM().reverse(law)
    for method in ("stochastic_adams2", "sa_solver_3", "sra3_theta"):
        sigmas = sk.grids.log(60, 1e6, 0.01)
        result = sk.solve(problem, x, method=method, sigmas=sigmas, seed=1, sigma_data=0.5).x
        assert float(result.var()) == pytest.approx(0.25, rel=0.1)
