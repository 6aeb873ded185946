"""Controllers, embedded pairs and their interpolants, and the first step."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.integrate
import torch
from helpers import DOUBLE, EDM, PAIRS, VP, Counting, elementwise
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdiffeq._impl.dopri5 import _DORMAND_PRINCE_SHAMPINE_TABLEAU

import sdekit as sk
from sdekit.bench.problems import rms
from sdekit.distributions import GaussianMixture, Product
from sdekit.solvers.control import PI, PID, Controller, I
from sdekit.solvers.march import Tolerances, first_step
from sdekit.solvers.pairs import PairMarch
from sdekit.solvers.registry import Solver
from sdekit.solvers.variable_adams import AdamsMarch
from sdekit.solvers.view import AffineView
from sdekit.stepping import march_of

MIXTURE = GaussianMixture.random(5, 3, seed=2)
examples = functools.partial(settings, deadline=None, derandomize=True)


ORDER_OF_ERROR = {"bosh3": 3, "dopri5": 5, "tsit5": 5, "dop853": 8, "dpm_12": 2, "dpm_23": 3}

# ---- controllers ----

CONTROLLERS = {
    "I": I,
    "PI": PI,
    "PID": PID,
    "PI 0.7, 0.4": Controller(0.4, 0.3, safety=0.8, shrink=0.1, grow=4.0),
    "H211": Controller(0.1, 0.2, 0.1, safety=0.95, grow=2.0),
    "PID without safety": Controller(0.2, 0.3, 0.5, safety=1.0),
}


def next_steps(controller, k, h, errors):
    """Step sizes, by the formula written out: theory 4.13, with memory of accepted steps only."""
    p, i, d = controller.p, controller.i, controller.d
    before = [1.0, 1.0]  # errors of accepted steps, newest first
    rejected, sizes = False, []
    for error in errors:
        if math.isfinite(error):
            e = max(error, 1e-10)
            factor = (1 / e) ** ((p + i + d) / k)
            factor *= (1 / before[0]) ** (-(p + 2 * d) / k) * (1 / before[1]) ** (d / k)
            factor = max(controller.shrink, min(controller.grow, controller.safety * factor))
        else:
            factor = controller.shrink
        if error > 1:
            factor = min(factor, controller.safety, 0.9)
        if rejected:
            factor = min(factor, 1.0)
        rejected = error > 1
        if not rejected:
            before = [max(error, 1e-4), before[0]]
        h *= factor
        sizes.append(h)
    return sizes


@pytest.mark.parametrize("name", CONTROLLERS)
@examples(max_examples=30)
@given(
    errors=st.lists(
        st.one_of(st.floats(1e-3, 3.0), st.sampled_from([0.0, 1e-12, 1.0, 1e6, math.inf])),
        min_size=1,
        max_size=12,
    ),
    method=st.sampled_from(["bosh3", "dopri5", "dop853"]),
)
def test_controllers_follow_their_formula(name, errors, method):
    scheme = copy.copy(sk.methods()[method].solver.scheme)
    scheme.controller = CONTROLLERS[name]
    x = torch.ones((1, 1), dtype=DOUBLE)
    view = AffineView(EDM.probability_flow(elementwise), sk.Noise(), x)
    march = march_of(scheme, view, Tolerances(1e-3, 1e-3))
    assert march.k == ORDER_OF_ERROR[method]
    march.size, march.errors = np.array([0.1]), np.ones((3, 1))
    march.missing = np.zeros(1, dtype=bool)
    trial = SimpleNamespace(groups=np.array([0]))
    sizes = []
    for error in errors:
        accept = march.judge(trial, np.array([[error]]), march.size.copy())
        assert accept.tolist() == [error <= 1]
        sizes.append(march.size[0])
    np.testing.assert_allclose(
        sizes, next_steps(CONTROLLERS[name], march.k, 0.1, errors), rtol=1e-12
    )


@pytest.mark.parametrize("name", CONTROLLERS)
def test_limits_of_a_controller(name):
    controller = CONTROLLERS[name]

    def factor(now, last=1.0, before=1.0, k=5):
        return float(controller.factor(np.array([[now], [last], [before]]), k)[0])

    assert factor(0.0) == controller.grow
    assert factor(1e30) == controller.shrink
    assert factor(np.inf) == controller.shrink
    for now in (1.0 + 1e-9, 1.5, 100.0):  # a rejected step shrinks, whatever was before
        for last in (1e-4, 1.0):
            for before in (1e-4, 1.0):
                assert factor(now, last, before) <= min(controller.safety, 0.9)
    assert factor(1.0) == pytest.approx(controller.safety)


@pytest.mark.parametrize(
    "options",
    [
        {"p": 0.0, "i": 0.0, "d": 0.0},
        {"p": 0.2, "i": 0.0, "d": 0.05},
        {"p": -0.1, "i": 0.3},
        {"p": 0.1, "i": 0.3, "d": -0.1},
        {"p": 0.1, "i": math.nan},
        {"p": 0.1, "i": 0.3, "safety": 0.0},
        {"p": 0.1, "i": 0.3, "safety": 1.1},
        {"p": 0.1, "i": 0.3, "safety": math.nan},
        {"p": 0.1, "i": 0.3, "shrink": 1.0},
        {"p": 0.1, "i": 0.3, "shrink": 0.0},
        {"p": 0.1, "i": 0.3, "grow": 1.0},
    ],
)
def test_controllers_that_control_nothing_are_refused(options):
    with pytest.raises(ValueError, match=r"gains are not negative|must be 0 < safety"):
        Controller(**options)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_any_controller_meets_the_tolerance(name, product):
    scheme = sk.RungeKutta(sk.tableaus.DORMAND_PRINCE, CONTROLLERS[name])
    solver = Solver(scheme, sk.Preconditioned(1.0), sk.grids.log)
    x = product.sample(4, 80.0, seed=1)
    exact = product.flow(x, 80.0, 0.05)
    for rtol in (1e-3, 1e-7):
        solved = sk.solve(
            EDM.probability_flow(product), x, method=solver, sigmas=[80.0, 0.05], rtol=rtol
        )
        assert rms(solved.x - exact) < 10 * rtol
        assert solved.stats.rejected < 4 * solved.stats.steps


class Decay(sk.ForwardSDE):
    """``dx/dt = x``, backward: the same problem at every step, in units of the state."""

    T, t_min = 30.0, 0.0

    def drift(self, x, t):
        return x

    def diffusion(self, x, t):
        return torch.zeros_like(t)


@pytest.mark.parametrize(
    ("name", "method"), [("I", "tsit5"), ("PI", "dopri5"), ("PID", "bosh3"), ("PID", "dop853")]
)
def test_the_error_settles_where_the_controller_says(name, method, judged):
    """Steps stay as they are where ``safety · e^(−i/k) = 1``, whatever the other gains."""
    controller = CONTROLLERS[name]
    base = sk.methods()[method].solver.scheme
    solver = Solver(sk.RungeKutta(base.tableau, controller), sk.Native(), sk.grids.uniform_t)
    x = torch.ones((1, 1), dtype=DOUBLE)
    flow = Decay().probability_flow(lambda x, t: torch.zeros_like(x))
    rtol = {"bosh3": 1e-4, "dop853": 1e-12}.get(method, 1e-7)
    sk.solve(flow, x, method=solver, times=[30.0, 0.0], rtol=rtol, atol=1e-30)
    errors = np.array([row[3] for row in judged])
    assert len(errors) > 50
    k = ORDER_OF_ERROR[method]
    settled = errors[30:-3] / controller.safety ** (k / controller.i)
    assert (np.abs(settled - 1) < 0.02).all()


# ---- embedded pairs: one trial, computed by hand ----

# Tsitouras 2011, as OrdinaryDiffEq.jl has them.
TSITOURAS_ERROR = (
    *(-0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995),
    *(-0.1447110071732629, 0.5823571654525552, -0.45808210592918697, 1 / 66),
)


class ByHand:
    """Steps of a pair, from the coefficients of other people."""

    def __init__(self, name):
        base = name.split("_")[0]
        table = {
            "bosh3": scipy.integrate.RK23,
            "dopri5": scipy.integrate.RK45,
            "dop853": scipy.integrate.DOP853,
        }.get(base)
        if table is None:
            tableau = sk.tableaus.TSITOURAS  # its order is tested with the other tableaus'
            self.c, self.b = tableau.c[:-1], np.array(tableau.b[:-1])
            self.a = [np.zeros(0), *map(np.array, tableau.a[:-1])]
            self.error, self.low = np.array(TSITOURAS_ERROR), None
        else:
            self.c, self.b = table.C, table.B
            self.a = [row[:j] for j, row in enumerate(table.A)]
            self.error, self.low = (table.E5, table.E3) if base == "dop853" else (table.E, None)
        if base == "dopri5":  # the error weights of Shampine, not of Dormand & Prince
            self.error = _DORMAND_PRINCE_SHAMPINE_TABLEAU.c_error.numpy()

    def step(self, slope, tau, dt, u, tolerance):
        """The result, the slopes, and the error in units of the tolerance, for one sample."""
        slopes = []
        for c, row in zip(self.c, self.a, strict=True):
            z = u + dt * sum((w * k for w, k in zip(row, slopes, strict=True)), 0 * u)
            slopes.append(slope(tau + c * dt, z))
        new = u + dt * sum(w * k for w, k in zip(self.b, slopes, strict=True))
        slopes.append(slope(tau + dt, new))
        scale = tolerance * (1 + torch.maximum(u.abs(), new.abs()))

        def norm(weights):
            total = dt * sum(w * k for w, k in zip(weights, slopes, strict=True))
            return rms(total / scale)

        error = norm(self.error)
        if self.low is not None:
            error = error**2 / math.sqrt(error**2 + 0.01 * norm(self.low) ** 2)
        return new, slopes, error


def slope_by_hand(name, law, std):
    """``du/dτ`` in the variables of a method, written out."""

    def theta(tau, u):
        h = std / math.cos(tau)
        return u / math.tan(tau) - law(h * u, std * math.tan(tau)) / (std * math.sin(tau))

    if name.endswith("_theta"):
        return theta
    if name.endswith("_t"):
        return VP.probability_flow(law)
    return lambda sigma, x: (x - law(x, sigma)) / sigma


def trial_of(name, scheme=None, law=MIXTURE, recording=False):
    """One trial step of four samples, each with a time and a length of its own."""
    solver, std, tolerance = sk.methods()[name].solver, 0.8, 1e-3
    levels, to = np.array([5.0, 2.0, 1.0, 0.5]), np.array([3.0, 1.8, 0.4, 0.6])
    x_hat = torch.cat([law.sample(1, float(s), seed=n) for n, s in enumerate(levels)])
    coordinates = sk.Preconditioned(std) if name.endswith("_theta") else solver.coordinates
    view = AffineView(VP.probability_flow(law), coordinates, x_hat)
    march = march_of(scheme or solver.scheme, view, Tolerances(tolerance, tolerance))
    if recording:
        march = PairMarch(scheme or solver.scheme, view, march.tolerances, recording=True)
    tau, end = view.tau(levels), view.tau(to)
    h = view.coordinates.h(view.coordinates.at(levels))
    u = x_hat / torch.from_numpy(h)[:, None]
    march.errors, march.missing = np.ones((3, 4)), np.zeros(4, dtype=bool)
    march.size = np.ones(4)
    carry = march.carry(u, tau)
    trial = march.plan(np.arange(4), None, tau, end)
    attempt = march.attempt(trial, carry)
    return SimpleNamespace(
        view=view,
        tau=tau,
        dt=end - tau,
        u=u,
        attempt=attempt,
        march=march,
        trial=trial,
        carry=carry,
    )


def check_pair(name, scheme=None):
    made, reference = trial_of(name, scheme), ByHand(name)
    slope = slope_by_hand(name, MIXTURE, 0.8)
    for n in range(4):
        tau, dt, u = float(made.tau[n]), float(made.dt[n]), made.u[n : n + 1]
        new, slopes, error = reference.step(slope, tau, dt, u, 1e-3)
        size = float(u.abs().max()) + abs(dt) * max(float(k.abs().max()) for k in slopes)
        close = {"rtol": 0, "atol": 1e-12 * (1 + size) ** 2}
        torch.testing.assert_close(made.attempt.u[n : n + 1], new, **close)
        for ours, theirs in zip(made.attempt.slopes, slopes, strict=False):
            torch.testing.assert_close(ours[n : n + 1], theirs, rtol=1e-9, atol=1e-9)
        assert len(made.attempt.slopes) >= len(reference.c)
        assert float(made.attempt.errors[0, n].sqrt()) == pytest.approx(error, rel=1e-6, abs=1e-9)


RUNGE_KUTTA = [name for name in PAIRS if "dpm" not in name]


@pytest.mark.parametrize("name", RUNGE_KUTTA)
def test_a_trial_step_is_that_of_the_tableau(name):
    check_pair(name)


@pytest.mark.parametrize("name", ["bosh3", "dopri5", "tsit5", "dop853"])
def test_any_damaged_error_weight_is_found(name):
    tableau = sk.methods()[name].solver.scheme.tableau
    for field in ("b_error", "b_error_low"):
        weights = getattr(tableau, field) or ()
        for j in np.flatnonzero(weights):
            damaged, row = copy.copy(tableau), list(weights)
            row[j] /= 2
            object.__setattr__(damaged, field, tuple(row))
            with pytest.raises(AssertionError):
                check_pair(name, sk.RungeKutta(damaged))


FIXED = {
    "dpm_adaptive_12": ("dpm_solver_2", "dpm_solver_1"),
    "dpm_adaptive_23": (
        "dpm_solver_3",
        Solver(
            sk.ExponentialRK(sk.methods()["dpm_adaptive_23"].solver.scheme.embedded),
            sk.LogNoise(),
            sk.grids.log,
        ),
    ),
}


def check_dpm(name, scheme=None):
    """The result is that of the higher method, the error its difference from the lower one."""
    made = trial_of(name, scheme)
    for n in range(4):
        sigmas = np.exp(-made.tau[n] - np.array([0.0, made.dt[n]]))
        u = made.u[n : n + 1]
        high, low = (
            sk.solve(EDM.probability_flow(MIXTURE), u, method=method, sigmas=sigmas).x
            for method in FIXED[name]
        )
        torch.testing.assert_close(made.attempt.u[n : n + 1], high, rtol=1e-12, atol=1e-12)
        scale = 1e-3 * (1 + torch.maximum(u.abs(), high.abs()))
        error = rms((high - low) / scale)
        assert float(made.attempt.errors[0, n].sqrt()) == pytest.approx(error, rel=1e-8)


@pytest.mark.parametrize("name", FIXED)
def test_a_trial_of_dpm_solver_is_that_of_the_fixed_grid(name):
    check_dpm(name)


@pytest.mark.parametrize("name", FIXED)
def test_any_damaged_weight_of_the_embedded_method_is_found(name):
    scheme = sk.methods()[name].solver.scheme
    for j, combination in enumerate(scheme.embedded.b):
        for m in range(len(combination)):
            terms = list(combination)
            terms[m] = (terms[m][0] / 2, *terms[m][1:])
            damaged, lower = copy.copy(scheme), copy.copy(scheme.embedded)
            row = list(lower.b)
            row[j] = tuple(terms)
            object.__setattr__(lower, "b", tuple(row))
            damaged.embedded = lower
            with pytest.raises(AssertionError):
                check_dpm(name, damaged)


def family(name):
    return name.replace("adaptive_", "") if "dpm" in name else name.split("_")[0]


def shrinking(name, sizes, law, high=1.0):
    """Trials from one exact state, over steps of the given shares of that from σ = 1 to 0.8."""
    solver = sk.methods()[name].solver
    coordinates = sk.Preconditioned(1.0) if name.endswith("_theta") else solver.coordinates
    x = law.sample(6, high, seed=1)
    view = AffineView(EDM.probability_flow(law), coordinates, x)
    march = PairMarch(solver.scheme, view, Tolerances(1e-6, 1e-6), recording=True)
    tau, end = (view.tau(np.array([s])) for s in (high, 0.8))
    u = view.entrance(high, unscaled=False)(x)
    carry, march.missing = march.carry(u, tau), np.zeros(1, dtype=bool)
    for size in sizes:
        trial = march.plan(np.array([0]), None, tau, tau + size * (end - tau))
        yield view, march, trial, carry, march.attempt(trial, carry), x


@torch.no_grad()
@pytest.mark.parametrize("name", PAIRS)
def test_controllers_know_the_order_of_the_error(name):
    sizes = np.array([0.25, 0.125, 0.0625])
    made = list(shrinking(name, sizes, Product.random(3, 2, seed=0)))
    errors = [float(attempt.errors.mean()) ** 0.5 for _, _, _, _, attempt, _ in made]
    march = made[0][1]
    order = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert order == pytest.approx(ORDER_OF_ERROR[family(name)], abs=0.4)
    assert march.k == ORDER_OF_ERROR[family(name)]


@pytest.mark.parametrize(
    ("name", "theirs"), [("bosh3", "RK23"), ("dopri5", "RK45"), ("dop853", "DOP853")]
)
def test_steps_are_those_of_scipy(name, theirs, judged, product):
    """From the first one on, with the same controller; only the last two share what is left."""
    rtol = 1e-4 if name == "bosh3" else 1e-6
    tableau = sk.methods()[name].solver.scheme.tableau
    if name == "dopri5":  # scipy's error weights are those of Dormand & Prince
        tableau = dataclasses.replace(tableau, b_error=tuple(scipy.integrate.RK45.E))
    scheme = sk.RungeKutta(tableau, I)
    x = product.sample(1, 20.0, seed=3)
    flow = EDM.probability_flow(product)
    solved = sk.solve(
        flow, x, method=Solver(scheme, sk.Noise(), sk.grids.log), sigmas=[20.0, 0.1], rtol=rtol
    )
    ours = np.array([row[1] for row in judged if row[4]])
    other = getattr(scipy.integrate, theirs)(
        flow.numpy((1, 3)), 20.0, x.flatten().numpy(), 0.1, rtol=rtol, atol=rtol
    )
    times = [other.t]
    while other.status == "running":
        other.step()
        times.append(other.t)
    assert judged[0][2] == pytest.approx(times[0] - times[1], rel=2e-3) or not judged[0][4]
    assert abs(len(ours) - len(times) + 1) <= 1
    assert abs(solved.nfe - other.nfev) <= 2 * scheme.nfe_per_step
    inner = min(len(ours), len(times)) - 3
    np.testing.assert_allclose(np.log(ours[:inner]), np.log(times[:inner]), atol=0.03)


@pytest.mark.parametrize("method", ["variable_adams", "dopri5", "dop853_theta", "dpm_adaptive_12"])
@pytest.mark.parametrize("upward", [False, True])
def test_the_first_step_is_hairers(method, upward):
    """Hairer, Nørsett & Wanner 1993, II.4, for each sample; and one evaluation more."""
    solver, tolerance = sk.methods()[method].solver, 1e-4
    start, end = (0.3, 30.0) if upward else (30.0, 0.3)
    x = MIXTURE.sample(4, start, seed=0)
    x[0] *= 1e-9  # nothing to tell a scale by
    coordinates = (
        sk.Preconditioned(0.8) if solver.coordinates.needs_sigma_data else solver.coordinates
    )
    model = Counting(MIXTURE)
    view = AffineView(EDM.probability_flow(model), coordinates, x)
    march = march_of(solver.scheme, view, Tolerances(tolerance, tolerance))
    adams = isinstance(march, AdamsMarch)
    k, aim = (2, 0.5) if adams else (march.k, 0.01)
    tolerance = 0.22 * tolerance**0.915 if adams else tolerance
    tau, to = view.tau(np.full(4, start)), float(view.tau(np.array([end]))[0])
    u = view.entrance(start, unscaled=False)(x)

    def slope(at, u):  # du/dτ
        (node,) = view.nodes(np.array([at]))
        return node.a * u + node.b * MIXTURE(u * node.h, float(node.level))

    expected = []
    for n in range(4):
        v, scale = u[n : n + 1], tolerance * (1 + u[n : n + 1].abs())
        f = slope(tau[n], v)
        d0, d1, span = rms(v / scale), rms(f / scale), abs(to - tau[n])
        h = min(1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1, span)
        moved = tau[n] + math.copysign(h, to - tau[n])
        d2 = rms((slope(moved, v + (moved - tau[n]) * f) - f) / scale) / h
        length = (aim / max(d2, d1 if k > 2 else 0)) ** (1 / k)
        expected.append(min(100 * h, length, span))
    carry = march.carry(u, tau)
    assert model.calls == 1
    march.begin(carry, tau, to)
    assert model.calls == march.first_cost == 2
    np.testing.assert_allclose(march.size, expected, rtol=3e-3)
    again = first_step(march, u, carry[1] if not adams else carry[1][:, 0], tau, to, k, aim)
    np.testing.assert_array_equal(again, march.size)


# ---- interpolants ----

INTERPOLANTS = {"bosh3": 3, "dopri5": 4, "tsit5": 4, "dop853": 7, "dpm_12": 2, "dpm_23": 3}


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["bosh3", "dopri5_theta", "tsit5_t", "dop853", "dpm_adaptive_12", "dpm_adaptive_23"]
)
def test_the_order_of_interpolants(name):
    """Of one step from an exact state: its error within is ``O(dt^(order + 1))``."""
    law = Product.random(3, 2, seed=0)
    sizes = np.array([1.0, 0.5, 0.25]) if "dop853" in name else np.array([0.4, 0.2, 0.1])
    errors = []
    for view, march, trial, carry, attempt, x in shrinking(name, sizes, law):
        interpolant = march.interpolant(trial, carry, attempt)
        worst, (start,), (end,) = 0.0, trial.start.tau, trial.end.tau
        for share in (0.15, 0.4, 0.7, 0.9):
            tau = np.array([start + share * (end - start)])
            inside = interpolant(np.arange(len(x)), np.repeat(tau, len(x)))
            sigma = float(view.level(tau)[0])
            exact = view.entrance(sigma, unscaled=False)(law.flow(x, 1.0, sigma))
            worst = max(worst, float((inside - exact).square().mean().sqrt()))
        errors.append(worst)
        at_end = interpolant(np.arange(len(x)), np.full(len(x), end))
        torch.testing.assert_close(at_end, attempt.u, rtol=0, atol=1e-13)
    order = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert order == pytest.approx(INTERPOLANTS[family(name)] + 1, abs=0.6)
