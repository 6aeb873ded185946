"""A stochasticity that depends on the noise level, in coordinates and in stochastic Adams schemes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from stochastic_errors import (
    END,
    GAUSSIAN,
    HIGH,
    LOW,
    MIXTURE,
    START,
    solved,
    strong_order,
    weak_order,
)

import sdekit as sk
from sdekit.reverse import ReverseCoordinates
from sdekit.solvers.registry import Solver
from sdekit.stochasticity import Eta
from sdekit.theory.noises import Impulses


def window(values, shares, high=HIGH, low=LOW):
    """Jumps at shares of a range of noise levels, in ``log σ``."""
    levels = high * (low / high) ** np.array(sorted(shares, reverse=True))
    return sk.EtaSteps(tuple(levels.tolist()), values)


# Jumps that are points of grids whose length is a multiple of 4.
WINDOW = window((0.0, 1.3, 0.5), (0.25, 0.75))
WITHIN = window((0.6, 1.3, 0.3), (0.25, 0.75), START, END)

rising = st.lists(st.integers(-30, 30), min_size=1, max_size=4, unique=True).map(
    lambda tenths: tuple(np.exp(np.array(sorted(tenths)) / 10).tolist())
)


@st.composite
def profiles(draw):
    levels = draw(rising)
    value = st.sampled_from([0.0, 0.4, 1.0, 1.6])
    values = draw(st.lists(value, min_size=len(levels) + 1, max_size=len(levels) + 1).filter(any))
    return sk.EtaSteps(levels, tuple(values))


bases = st.sampled_from([sk.LogData(), sk.Preconditioned(0.5), sk.Preconditioned(2.0)])
sigmas = st.floats(-4, 4).map(np.exp)


def adams(order: int, eta, base=None, *, corrector=True) -> Solver:
    scheme = sk.Stochastic(sk.Adams(order, corrector=corrector), eta=eta)
    return Solver(scheme, base or sk.Preconditioned(), sk.grids.log)


def at(c, *levels):
    return c.at(np.array(levels))


# --- coordinates ----------------------------------------------------------------------------------


@given(profiles(), bases, sigmas, sigmas)
def test_the_damping_is_the_integral_of_its_equation(eta, base, low, high):
    """``log g`` from ``σ`` to ``σ'`` is the integral of ``η² d log h``, jumps or not."""
    gap = base.sigma_data**2 if isinstance(base, sk.Preconditioned) else 0.0
    inside = [np.log(s) for s in eta.levels if min(low, high) < s < max(low, high)]

    def rate(log_sigma):
        sigma = np.exp(np.array([log_sigma]))
        return float((eta.squared(sigma) * sigma**2 / (sigma**2 + gap))[0])

    exact, _ = quad(rate, np.log(low), np.log(high), points=inside or None, epsabs=1e-11)
    g = eta.damping(np.array([low, high]), gap)
    assert np.log(g[1] / g[0]) == pytest.approx(exact, abs=1e-9)


@given(profiles(), bases, sigmas)
def test_the_level_of_a_damping_has_that_damping(eta, base, sigma):
    """On a piece with ``η = 0`` all levels have the same; elsewhere it is the level itself."""
    gap = base.sigma_data**2 if isinstance(base, sk.Preconditioned) else 0.0
    level = np.array([sigma])
    g = eta.damping(level, gap)
    back = eta.sigma(g, gap)
    assert eta.damping(back, gap) == pytest.approx(g, rel=1e-11)
    if eta.squared(level)[0] > 0 and sigma**2 > 1e-3 * gap:
        assert back == pytest.approx(level, rel=1e-7)


@given(profiles(), bases, sigmas, sigmas)
def test_the_clock_is_the_integral_of_its_rate(eta, base, low, high):
    c = ReverseCoordinates(base, eta)
    inside = [np.log(s) for s in eta.levels if min(low, high) < s < max(low, high)]

    def rate(log_sigma):
        sigma = np.exp(log_sigma)
        return float(c.clock_rate(np.array([sigma]))[0]) * sigma

    exact, _ = quad(rate, np.log(low), np.log(high), points=inside or None, epsabs=0, epsrel=1e-11)
    first, last = c.clock(at(c, low, high))
    scale = abs(first) + abs(last)
    assert last - first == pytest.approx(exact, rel=1e-8, abs=1e-13 * scale)


@given(rising, st.sampled_from([0.4, 1.0, 1.7]), sigmas)
def test_equal_steps_are_a_constant(levels, value, sigma):
    eta = sk.EtaSteps(levels, (value,) * (len(levels) + 1))
    for base in (sk.LogData(), sk.Preconditioned(0.7)):
        one, other = ReverseCoordinates(base, eta), ReverseCoordinates(base, Eta(value))
        level = np.array([sigma])
        for name in ("damping", "clock_rate", "noise_time", "time_rate"):
            np.testing.assert_allclose(
                getattr(one, name)(level), getattr(other, name)(level), rtol=1e-12
            )
        np.testing.assert_allclose(one.clock(at(one, sigma)), other.clock(at(other, sigma)), 1e-12)


# --- schemes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [sk.Preconditioned(), sk.LogData()])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_weak_orders(order, base):
    solver = adams(order, WINDOW, base)
    assert weak_order(solver) == pytest.approx(solver.scheme.weak_order, abs=0.25)


@pytest.mark.parametrize("base", [sk.Preconditioned(), sk.LogData()])
def test_weak_order_with_jumps_within_steps(base):
    """Where a jump is within its step counts, so it is at a third of one on every grid."""
    eta = window((0.3, 1.3, 0.5), (1 / 3, 2 / 3))
    assert weak_order(adams(2, eta, base), (100, 160, 256)) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("law", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_strong_orders(order, law):
    assert strong_order(adams(order, WITHIN), law) == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("steps", [1, 3, 7])
@given(eta=profiles())
def test_the_law_of_a_gaussian_is_exact_at_any_number_of_steps(steps, eta):
    """Whether a step contains a jump or lies where there is no noise."""
    model = lambda x, sigma: x / (1 + sigma**2)  # noqa: E731
    x_hat = torch.zeros((2 * steps + 40, 1), dtype=torch.float64)
    x_hat[0] = np.sqrt(1 + HIGH**2)
    solver = adams(2, eta)
    levels = sk.grids.log(steps, HIGH, LOW, sk.EDM())
    problem = sk.EDM().reverse(model)
    solution = sk.solve(
        problem, x_hat, method=solver, sigmas=levels, noise=Impulses(), sigma_data=1.0
    )
    assert float(solution.x.square().sum()) == pytest.approx(1 + LOW**2, rel=1e-12)


def test_a_function_is_followed_by_steps():
    """What the noise does between two levels is that of the function, to second order in the pieces."""
    levels = np.array([0.3, 2.0])
    exact, _ = quad(lambda s: (1 / (1 + s)) ** 2 / s, *levels)
    errors = []
    for pieces in (16, 32, 64):
        g = sk.EtaSteps.of(lambda s: 1 / (1 + s), 2.0, 0.3, pieces).damping(levels, 0.0)
        errors.append(abs(np.log(g[1] / g[0]) - exact))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.1)


def test_a_window_is_the_flow_outside_of_it():
    """SA-Solver's: noise between two levels only; above them no noise is asked for."""
    eta = sk.EtaSteps((0.05, 1.0), (0.0, 1.0, 0.0))
    x_hat = MIXTURE.sample(50, HIGH, seed=0)
    above = np.geomspace(HIGH, 1.0, 6)
    noisy = solved(adams(3, eta, corrector=False), MIXTURE, x_hat, above, sk.IndependentNoise(0))
    flow = Solver(sk.Adams(3), sk.Preconditioned(), sk.grids.log)
    torch.testing.assert_close(
        noisy, solved(flow, MIXTURE, x_hat, above, None), rtol=1e-12, atol=1e-12
    )


def test_paths_merge_and_split_across_jumps():
    """One `BrownianPath` drives every number of steps, to the same end."""
    x_hat = GAUSSIAN.sample(4, START, seed=1)
    path = sk.BrownianPath(range(4), tuple(x_hat.shape), resolution=1 / 256)
    ends = [
        solved(adams(2, WITHIN), GAUSSIAN, x_hat, np.geomspace(START, END, n + 1), path)
        for n in (64, 512)
    ]
    assert float((ends[0] - ends[1]).abs().max()) < 0.02


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "values", "message"),
    [
        ((1.0, 0.5), (1, 1, 1), "must be finite and rise"),
        ((0.0,), (1, 1), "must be finite and rise"),
        ((np.nan,), (1, 1), "must be finite and rise"),
        ((1.0,), (1,), "1 values for 1 levels"),
        ((1.0,), (1, -1), "not negative"),
        ((1.0,), (0, 0), "probability flow"),
        ((1.0,), (np.inf, 0), "must be finite"),
    ],
)
def test_steps_that_are_none(levels, values, message):
    with pytest.raises(ValueError, match=message):
        sk.EtaSteps(levels, values)


def test_functions_that_are_none():
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        sk.EtaSteps.of(lambda s: 1.0, 0.1, 3.0)
    with pytest.raises(ValueError, match="not negative"):
        sk.EtaSteps.of(lambda s: 1 - s, 3.0, 0.1)


def test_noise_coordinates_are_refused():
    with pytest.raises(ValueError, match=r"needs LogData\(\) or Preconditioned\(\)"):
        solved(adams(2, WINDOW, sk.Noise()), GAUSSIAN, torch.ones(2, 3), [3.0, 1.0], Impulses())


def test_a_problem_of_another_eta_is_refused():
    with pytest.raises(ValueError, match="has a stochasticity of its own"):
        solved(adams(2, WINDOW), GAUSSIAN, torch.ones(2, 3), [3.0, 1.0], Impulses(), eta=0.5)
