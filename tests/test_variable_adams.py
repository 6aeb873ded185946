"""Adams methods of variable step and order: weights, errors, orders, control, dense output."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import NotResolved, measure_order

import sdekit as sk
from sdekit.distributions import Product
from sdekit.solvers import variable_adams
from sdekit.solvers.march import Tolerances
from sdekit.solvers.registry import Solver
from sdekit.solvers.variable_adams import AdamsMarch
from sdekit.solvers.view import AffineView

DOUBLE = torch.float64
EDM, VP = sk.EDM(), sk.VP()
HIGHEST = 12
FRAME = sk.GaussianPreconditioned(np.array([0.3, -0.2]), np.array([[0.9, 0.3], [0.3, 0.5]]))
COORDINATES = {
    "Noise": sk.Noise(),
    "Velocity": sk.Velocity(),
    "Preconditioned": sk.Preconditioned(0.5),
    "Native": sk.Native(VP),
    "LogNoise": sk.LogNoise(),
    "LogData": sk.LogData(),
    "θ in λ": sk.Interpolated(sk.Preconditioned(0.5), sk.LogNoise()),
    "GaussianPreconditioned": FRAME,
}


def elementwise(x, sigma):
    """A denoiser that rounds every sample alike, wherever it is in a batch."""
    return torch.tanh(3 * x) / (1 + sigma.reshape(-1, *(1,) * (x.ndim - 1)) ** 2)


def begun(
    tau,
    slopes,
    u,
    order,
    *,
    scheme=None,
    coordinates=COORDINATES["Noise"],
    model=elementwise,
    rtol=1e-6,
):
    """A march with a past of the test's making: slopes ``(B, n, *event)`` at ``τ``, newest first."""
    view = AffineView(EDM.probability_flow(model), coordinates, u)
    march = AdamsMarch(scheme or sk.VariableAdams(), view, Tolerances(rtol, rtol))
    tau = np.atleast_2d(tau)
    groups, known = tau.shape
    march.size = np.full(groups, 1.0)
    march.order, march.known = np.full(groups, order), np.full(groups, known)
    march.starting, march.failed = np.zeros((2, groups), dtype=bool)
    march.tau = np.full((groups, march.memory), np.nan)
    march.tau[:, :known] = tau
    memory = torch.zeros(len(u), march.memory, *u.shape[1:], dtype=u.dtype)
    memory[:, :known] = slopes
    return march, (u, memory)


class Weights(NamedTuple):
    """The columns of a trial's table: numbers, or rows over slopes."""

    gain: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    predict: np.ndarray
    expect: np.ndarray
    less: np.ndarray
    more: np.ndarray

    @classmethod
    def of(cls, march, trial):
        columns = iter(np.moveaxis(trial.table, 1, 0)[len(march.view.rows(trial.end)) :])
        numbers = [next(columns) for _ in range(4)]
        rows = [np.stack([next(columns) for _ in row], axis=1) for row in trial.keys]
        assert not list(columns)
        return cls(*numbers, *rows)


def planned(past, order, dt, coordinates=COORDINATES["Noise"], start=None, model=elementwise):
    """Weights of one step of an order, from a past of ``τ``, newest first."""
    past = np.asarray(past, dtype=float)
    u = torch.ones((1, 2), dtype=DOUBLE)
    march, _ = begun(past, 0.0, u, order, coordinates=coordinates, model=model)
    trial = march.plan(np.array([0]), None, past[:1], past[:1] + dt)
    return Weights.of(march, trial), trial


# ---- weights of constant steps: the classical tables ----


def basis_integrals(nodes, begin=0, end=1):
    """``∫ ℓ_j`` for Lagrange's basis, in rational arithmetic."""
    weights = []
    for j, node in enumerate(nodes):
        poly = [Fraction(1)]
        for m, other in enumerate(nodes):
            if m != j:
                shifted, scaled = [Fraction(0), *poly], [other * c for c in poly] + [Fraction(0)]
                poly = [(a - b) / (node - other) for a, b in zip(shifted, scaled, strict=True)]
        weights.append(
            sum(
                c * (Fraction(end) ** (n + 1) - Fraction(begin) ** (n + 1)) / (n + 1)
                for n, c in enumerate(poly)
            )
        )
    return weights


# Hairer, Nørsett & Wanner 1993, table III.1.1 and eq. 1.5 and 1.9', newest slope first.
BASHFORTH = {
    1: ["1"],
    2: ["3/2", "-1/2"],
    3: ["23/12", "-16/12", "5/12"],
    4: ["55/24", "-59/24", "37/24", "-9/24"],
    5: ["1901/720", "-2774/720", "2616/720", "-1274/720", "251/720"],
}
MOULTON = {
    1: ["1/2", "1/2"],
    2: ["5/12", "8/12", "-1/12"],
    3: ["9/24", "19/24", "-5/24", "1/24"],
    4: ["251/720", "646/720", "-264/720", "106/720", "-19/720"],
}
GAMMA = (
    *("1", "1/2", "5/12", "3/8", "251/720", "95/288", "19087/60480", "5257/17280"),
    *("1070017/3628800", "25713/89600", "26842253/95800320"),
)


def test_the_rational_reference_knows_the_tables():
    for k, row in BASHFORTH.items():
        assert basis_integrals([-j for j in range(k)]) == [Fraction(v) for v in row]
    for k, row in MOULTON.items():
        assert basis_integrals([1 - j for j in range(k + 1)]) == [Fraction(v) for v in row]


def moulton(weights, n=0):
    """Weights of the corrector, of the new slope and of the old ones."""
    gain, old = weights.gain[n], weights.predict[n] - weights.gain[n] * weights.expect[n]
    return np.concatenate([[gain], old])


def check_constant_weights(k):
    dt = -0.125
    weights, trial = planned(5 - dt * np.arange(HIGHEST + 1), k, dt)
    predictor = np.array([float(v) for v in basis_integrals([-j for j in range(k)])]) * dt
    corrector = np.array([float(v) for v in basis_integrals([1 - j for j in range(k + 1)])]) * dt
    close = {"rtol": 0, "atol": 1e-12 * np.abs(predictor).max()}
    np.testing.assert_allclose(weights.predict[0, :k], predictor, **close)
    np.testing.assert_allclose(moulton(weights)[: k + 1], corrector, **close)
    # γ_k weighs the correction; its differences, γ*, are the errors of the correctors.
    gamma = [float(Fraction(v)) * dt for v in GAMMA[k - 2 + (k < 2) : k + 2]]
    if k < len(GAMMA) - 1:
        assert weights.gain[0] == pytest.approx(gamma[-2], rel=1e-12)
        assert weights.high[0] == pytest.approx(gamma[-1] - gamma[-2], rel=1e-11)
        assert weights.middle[0] == pytest.approx(gamma[-2] - gamma[-3], rel=1e-11)
        if k > 1:
            assert weights.low[0] == pytest.approx(gamma[-3] - gamma[-4], rel=1e-11)
    # ∇^(k−1) and ∇^k: a slope fewer, and one more, in what was foretold
    for row, order in ((weights.less, k - 1), (weights.more, k)):
        binomials = [(-1) ** j * float(Fraction(_choose(order, j))) for j in range(order + 1)]
        np.testing.assert_allclose(row[0, : order + 1], binomials, rtol=1e-10)
        assert not row[0, order + 1 :].any()
    return trial


def _choose(n, k):
    return 1 if k == 0 else _choose(n, k - 1) * (n - k + 1) // k


@pytest.mark.parametrize("k", range(1, HIGHEST + 1))
def test_constant_steps_have_the_classical_weights(k):
    check_constant_weights(k)


def test_damaged_integrals_are_found(monkeypatch):
    """Any integral, end value or divided difference that is off shows in a table."""
    original, k = variable_adams._Newton.of, 4
    places = [(0, (0, j)) for j in range(k + 2)] + [(1, (0, j)) for j in range(1, k + 2)]
    places += [(2, (0, j, i)) for j in range(k + 1) for i in range(j + 1)]
    for part, place in places:

        def damaged(*args, _part=part, _place=place):
            parts = original(*args)
            parts[_part][_place] *= 0.5
            return parts

        monkeypatch.setattr(variable_adams._Newton, "of", staticmethod(damaged))
        with pytest.raises(AssertionError):
            check_constant_weights(k)


# ---- weights of variable steps: polynomials are integrated exactly ----

RATIOS = st.lists(st.floats(0.4, 2.5), min_size=HIGHEST, max_size=HIGHEST)


def history(dt, ratios, start):
    """Past ``τ``, newest first: steps back in time are multiples of those before them."""
    steps = dt * np.cumprod(ratios)
    return start - np.concatenate([[0.0], np.cumsum(steps)])


def exact_integral(coordinates, begin, end, polynomial):
    """``∫ p dW`` over a short step, by many nodes in ``τ``."""
    x, w = np.polynomial.legendre.leggauss(40)
    tau = begin + (end - begin) * (x + 1) / 2
    rate = coordinates.weight(coordinates.at_tau(tau)).reshape(len(tau), -1)
    return (0.5 * (end - begin) * w * polynomial(tau)) @ rate


def like_weights(row):
    return row.reshape(len(row), -1)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    name=st.sampled_from(list(COORDINATES)),
    ratios=RATIOS,
    k=st.integers(1, HIGHEST),
    up=st.booleans(),
)
def test_polynomials_are_integrated_exactly(name, ratios, k, up):
    """The predictor up to degree k − 1, the corrector up to degree k, for any steps and clock."""
    coordinates = COORDINATES[name]
    ends = coordinates.tau(np.array([0.9, 1.0] if up else [1.0, 0.9]))
    start, dt = ends[0], 0.3 * (ends[1] - ends[0])
    past = history(dt, ratios, start)
    weights, _ = planned(past, k, dt, coordinates, model=lambda x, sigma: x)
    begin, end = past[min(k, HIGHEST)], start + dt
    for degree in range(k + 1):
        # Chebyshev's polynomials are of order one, so that no digits are lost but the weights'.
        poly = np.polynomial.Chebyshev.basis(degree, sorted((begin, end)))
        exact = exact_integral(coordinates, start, end, poly)
        old = poly(past[:k])
        predict, expect = (like_weights(w[0])[:k] for w in (weights.predict, weights.expect))
        gain = weights.gain[0].reshape(-1)
        scale = np.abs(predict).sum(0) + np.abs(gain) * (1 + np.abs(expect).sum(0))
        foretold = old @ expect
        if degree < k:
            assert (np.abs(old @ predict - exact) < 1e-10 * scale).all()
            assert (np.abs(foretold - poly(end)) < 1e-10 * np.abs(expect).sum(0)).all()
        corrected = old @ predict + gain * (poly(end) - foretold)
        assert (np.abs(corrected - exact) < 1e-10 * scale).all()
        if 1 < degree == k < 7:  # and no degree more: what is tested is not trivial
            assert (np.abs(old @ predict - exact) > 1e-13 * scale).any()


def test_unknown_slopes_have_no_weight():
    """Wherever they are thought to be: long before, or in the midst of a past of tiny steps."""
    for scale in (1.0, 1e-6, 777.0, 1.2345e4):
        past = 5.0 + 0.01 * scale * np.arange(4)
        weights, _ = planned(past, 3, -0.01)
        for row in weights[4:]:
            assert np.isfinite(row).all()
            assert not row[:, 4:].any()
        full, _ = planned([*past, *(past[-1] + 0.01 * np.arange(1, 10))], 3, -0.01)
        np.testing.assert_allclose(weights.predict, full.predict, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("name", COORDINATES)
def test_groups_are_planned_alike_alone_and_together(name):
    """Weights are those of one sample, to the last bit, whatever the orders and steps of the others."""
    rng, coordinates, count = np.random.default_rng(0), COORDINATES[name], 9
    ends = coordinates.tau(np.array([1.0, 0.9, 0.2]))
    short, long = ends[1] - ends[0], ends[2] - ends[0]
    past = np.stack(
        [history(0.1 * short, rng.uniform(0.4, 2.5, HIGHEST), ends[0]) for _ in range(count)]
    )
    dt, order = np.linspace(0.01 * short, long, count), rng.integers(1, HIGHEST + 1, count)
    u = torch.ones((count, 2), dtype=DOUBLE)
    march, _ = begun(past, 0.0, u, 1, coordinates=coordinates)
    march.order, march.known = order, np.minimum(order + rng.integers(0, 2, count), 13)
    start, end = past[:, 0], past[:, 0] + dt
    together = Weights.of(march, march.plan(np.arange(count), None, start, end))
    for n in range(count):
        part = march.plan(np.array([n]), np.array([n]), start[n : n + 1], end[n : n + 1])
        alone = Weights.of(march, part)
        for field in Weights._fields:
            a, b = getattr(together, field)[n : n + 1], getattr(alone, field)
            if field in ("predict", "expect", "less", "more"):
                assert not a[:, b.shape[1] :].any()
                a = a[:, : b.shape[1]]
            np.testing.assert_array_equal(a, b)


# ---- one trial step: prediction, correction, and errors of three orders ----


def interpolated(nodes, values, at):
    """Lagrange's interpolation polynomial, term by term."""
    total = np.zeros_like(at)
    for j, node in enumerate(nodes):
        factors = [(at - other) / (node - other) for m, other in enumerate(nodes) if m != j]
        total += values[j] * np.prod([*factors, np.ones_like(at)], axis=0)
    return total


def corrected(u, nodes, values, begin, end):
    """``u + ∫ p`` for the polynomial through all values given."""
    x, w = np.polynomial.legendre.leggauss(12)
    tau = begin + (end - begin) * (x + 1) / 2
    return u + 0.5 * (end - begin) * (w @ interpolated(nodes, values, tau))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    ratios=RATIOS,
    k=st.integers(1, HIGHEST),
    seed=st.integers(0, 1000),
    again=st.booleans(),
    more=st.booleans(),
)
def test_errors_are_differences_of_correctors(ratios, k, seed, again, more):
    """Of neighbouring orders, each integrated on its own; in units of the calibrated tolerance."""
    rng = np.random.default_rng(seed)
    dt, start, rtol = -0.05, 2.0, 1e-3
    past = history(dt, ratios, start)[: k + 1 if more else k]
    slopes, u = rng.normal(size=len(past)), rng.normal()
    march, carry = begun(
        past,
        torch.from_numpy(slopes)[None, :, None],
        torch.tensor([[u]], dtype=DOUBLE),
        k,
        scheme=sk.VariableAdams(again=again),
        rtol=rtol,
    )
    asked = []
    march.view.problem.model = lambda x, sigma: (
        asked.append((x.item(), sigma.item())) or (elementwise(x, sigma))
    )
    end = start + dt
    trial = march.plan(np.array([0]), None, np.array([start]), np.array([end]))
    attempt = march.attempt(trial, carry)

    def slope(z):
        return (z - np.tanh(3 * z) / (1 + end**2)) / end

    predicted = corrected(u, past[:k], slopes[:k], start, end)
    new, size = slope(predicted), 1 + np.abs(slopes).sum() * 10.0**k
    close = {"rel": 0, "abs": 1e-14 * size}
    assert asked[0] == (pytest.approx(predicted, **close), pytest.approx(end))

    def of(order):  # the corrector through the new slope and `order` old ones
        return corrected(u, [end, *past[:order]], [new, *slopes[:order]], start, end)

    assert attempt.u.item() == pytest.approx(of(k), **close)
    # PEC hands on the slope at the prediction, PECE that at the corrected state.
    handed = slope(of(k)) if again else new
    assert attempt.slopes[0].item() == pytest.approx(handed, **close)
    assert len(asked) == 1 + again
    calibrated = 0.22 * rtol**0.915
    scale = calibrated * (1 + max(abs(u), abs(of(k))))
    error, low, high = (attempt.errors[:, 0].sqrt() * scale).tolist()
    assert error == pytest.approx(abs(of(k) - of(k - 1)), **close)
    if k > 1:
        assert low == pytest.approx(abs(of(k - 1) - of(k - 2)), **close)
    if more:
        assert high == pytest.approx(abs(of(k + 1) - of(k)), **close)


def test_a_rejected_trial_leaves_no_trace():
    """Neither in what is carried, nor in the past; an accepted one shifts it by one."""
    past = np.array([[2.0, 2.1, 2.3], [1.0, 1.1, 1.3]])
    u = torch.ones((2, 1), dtype=DOUBLE)
    march, carry = begun(past, torch.ones(2, 3, 1, dtype=DOUBLE), u, 3)
    before = march.tau.copy()
    trial = march.plan(np.arange(2), None, past[:, 0], past[:, 0] - np.array([0.1, 0.2]))
    attempt = march.attempt(trial, carry)
    accept = march.judge(
        trial, np.array([[2.0, 0.5], [1.0, 1.0], [1.0, 1.0]]), np.array([0.1, 0.2])
    )
    assert accept.tolist() == [False, True]
    np.testing.assert_array_equal(march.tau[0], before[0])
    np.testing.assert_array_equal(march.tau[1, 1:], before[1, :-1])
    assert march.tau[1, 0] == 1.0 - 0.2
    assert march.known.tolist() == [3, 4]
    assert march.kept(carry, attempt) is carry
    state, slopes = march.commit(carry, attempt)
    assert torch.equal(state, attempt.u)
    assert torch.equal(slopes[:, 0], attempt.slopes[0])
    assert torch.equal(slopes[:, 1:], carry[1][:, :-1])


# ---- orders, at orders and steps that are held ----


def held(k, n, *, high=1.2, low=0.1, again=False, damage=None, batch=8):
    """RMS error of ``n`` equal steps in ``θ`` of order ``k``, from an exact past."""
    law = Product.random(3, 2, seed=0, width=0.9)
    coordinates = sk.Preconditioned(1.0)
    x = law.sample(batch, high, seed=1)
    start, end = coordinates.tau(np.array([high, low]))
    dt = (end - start) / n
    past = start - dt * np.arange(k + 1)
    sigmas = coordinates.sigma(past)
    assert (past < np.pi / 2).all()
    view = AffineView(EDM.probability_flow(law), coordinates, x)
    states = [law.flow(x, high, sigma) if j else x for j, sigma in enumerate(sigmas.tolist())]
    u = [view.entrance(s, unscaled=False)(v) for s, v in zip(sigmas, states, strict=True)]
    slopes = []
    for tau, v in zip(past, u, strict=True):
        sigma, h = np.tan(tau), 1 / np.cos(tau)
        slopes.append(v / np.tan(tau) - law(h * v, sigma) / np.sin(tau))
    march, carry = begun(
        past,
        torch.stack(slopes, 1),
        u[0],
        k,
        scheme=sk.VariableAdams(k, again=again),
        coordinates=coordinates,
        model=law,
    )
    for step in range(n):
        tau = np.array([start + step * dt])
        trial = march.plan(np.array([0]), None, tau, tau + dt)
        trial = trial if damage is None else damage(march, trial)
        attempt = march.attempt(trial, carry)
        accept = march.judge(trial, np.array([[0.5], [np.inf], [np.inf]]), np.array([abs(dt)]))
        assert accept.all()
        assert march.order == k
        carry = march.commit(carry, attempt)
    x_hat = view.exit(np.array([low]), unscaled=False)(carry[0])
    return float((x_hat - law.flow(x, high, low)).square().mean().sqrt())


STEPS = {1: (24, 48, 96), 2: (24, 48, 96)}


@torch.no_grad()
@pytest.mark.parametrize("again", [False, True], ids=["PEC", "PECE"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6, 7])
def test_a_step_of_order_k_has_order_k_plus_one(k, again):
    order = measure_order(lambda n: held(k, n, again=again), STEPS.get(k, (24, 32, 48)))
    assert abs(order - (k + 1)) < 0.4


@torch.no_grad()
@pytest.mark.parametrize("column", ["gain", "predict", "expect"])
def test_damaged_weights_cost_the_order(column):
    k = 3
    place = 4 + {"gain": 0, "predict": 4, "expect": 4 + k + 1}[column]  # beyond σ, h, A, B

    def damage(march, trial):
        rows = trial.table.copy()
        weights = Weights.of(march, trial)
        kept = {"gain": weights.gain, "predict": weights.predict[:, 0]}.get(column)
        np.testing.assert_array_equal(
            rows[:, place], weights.expect[:, 0] if kept is None else kept
        )
        rows[:, place] *= 0.5
        return dataclasses.replace(trial, table=rows)

    try:
        order = measure_order(lambda n: held(k, n, damage=damage), (24, 32, 48))
    except NotResolved:
        return
    assert order < k + 0.3


class Ode(sk.ForwardSDE):
    """``dx/dt = x cos t`` without noise: a problem in time alone, either way."""

    T, t_min = 3.0, 0.0

    def drift(self, x, t):
        return x * torch.cos(t).reshape(-1, *(1,) * (x.ndim - 1))

    def diffusion(self, x, t):
        return torch.zeros_like(t)


@pytest.mark.parametrize("again", [False, True], ids=["PEC", "PECE"])
@pytest.mark.parametrize("times", [[3.0, 0.0], [0.5, 2.5], [3.0, 2.0, 1.9, 0.0]])
def test_a_general_equation_is_solved_in_its_own_time(times, again):
    solver = Solver(sk.VariableAdams(again=again), sk.Native(), sk.grids.uniform_t)
    x = torch.tensor([[1.0, -2.0], [0.5, 0.1]], dtype=DOUBLE)
    flow = Ode().probability_flow(lambda x, t: torch.zeros_like(x))
    for rtol in (1e-4, 1e-9):
        solved = sk.solve(
            flow, x, method=solver, times=times, rtol=rtol, trajectory=True, dense=True
        )
        for t, state in zip(times, solved.trajectory, strict=True):
            exact = x * np.exp(np.sin(t) - np.sin(times[0]))
            assert (state - exact).abs().max() < 20 * rtol
        inside = 0.3 * times[0] + 0.7 * times[-1]
        exact = x * np.exp(np.sin(inside) - np.sin(times[0]))
        assert (solved.dense(inside) - exact).abs().max() < 20 * rtol


# ---- the control of order and step ----


def judged(errors, *, order=3, known=8, dt=0.1, starting=False, failed=False, proposed=0.1, top=12):
    """What is made of one group's three errors: accepted, the next order, the factor of the step."""
    u = torch.ones((1, 1), dtype=DOUBLE)
    past = 5 + 0.1 * np.arange(known)
    march, _ = begun(past, 0.0, u, order, scheme=sk.VariableAdams(top))
    march.starting[:], march.failed[:], march.size[:] = starting, failed, proposed
    trial = march.plan(np.array([0]), None, past[:1], past[:1] - dt)
    (accept,) = march.judge(trial, np.array(errors, dtype=float)[:, None], np.array([dt]))
    return accept, march.order[0], march.size[0] / dt, march


def test_the_order_that_allows_the_longest_step_is_taken():
    root = lambda e, q: 0.65 * e ** (-1 / (q + 1))  # noqa: E731
    for errors, order in (
        ((0.5, 0.5, 0.5), 2),  # of equal errors that of the lowest order
        ((0.5, 0.9, 0.9), 3),
        ((0.5, 0.9, 0.05), 4),
        ((0.5, 0.1, 0.1), 2),
        ((0.5, 0.05, 0.001), 4),
    ):
        accept, chosen, factor, _ = judged(errors)
        error = dict(zip((3, 2, 4), errors, strict=True))[order]
        assert (accept, chosen) == (True, order)
        assert factor == pytest.approx(root(error, order))
    # Order 1 has none below, the highest none above; nor is there one without slopes for it.
    assert judged((0.5, 0.0, 0.5), order=1)[1] == 1
    assert judged((0.5, 0.9, 0.0), known=4, top=3)[1] == 3
    assert judged((0.5, 0.9, 0.0), known=3)[1] == 3
    assert judged((0.5, 0.9, 0.0), known=4)[1] == 4


def test_limits_of_the_step():
    for tiny in (0.0, 1e-30):
        assert judged((tiny, tiny, tiny))[2] == pytest.approx(3.0)
    accept, order, factor, _ = judged((1e9, 1e9, 0.0))
    assert (accept, factor) == (False, 0.3)
    assert order <= 3  # not higher after a rejection
    accept, order, factor, _ = judged((1.001, 1e-9, 1e-9))
    assert (accept, order, factor) == (False, 2, 0.9)  # it shrinks, whatever another order promises
    assert judged((np.inf, np.inf, np.inf))[:3] == (False, 3, 0.3)
    assert judged((0.0, 0.0, 0.0), failed=True)[2] == 1.0  # no growth at once after a rejection
    assert judged((0.5, 0.9, 0.9), failed=True)[3].failed.tolist() == [False]
    assert judged((1.0, 2.0, 2.0))[0]
    assert not judged((np.nextafter(1, 2), 2.0, 2.0))[0]


def test_a_step_cut_short_keeps_what_was_proposed():
    assert judged((0.9, 2.0, 2.0), proposed=0.5)[2] == pytest.approx(5.0)
    assert judged((2.0, 2.0, 2.0), proposed=0.5)[2] <= 0.9  # unless it was rejected
    assert judged((1e-9, 2.0, 2.0), proposed=0.101)[2] == pytest.approx(3.0)


def test_the_start_raises_the_order_with_every_step():
    for order in (1, 2, 5):
        _, chosen, _, march = judged((1e-6, 1.0, 1.0), order=order, known=order, starting=True)
        assert (chosen, march.starting[0]) == (order + 1, True)
        for errors in ((0.9, 2.0, 2.0), (2.0, 2.0, 2.0)):  # a step that cannot grow, or fails
            _, _, _, march = judged(errors, order=order, known=order, starting=True)
            assert not march.starting[0]
    _, chosen, _, march = judged((1e-6, 1.0, 1.0), order=5, known=6, starting=True, top=5)
    assert (chosen, march.starting[0]) == (5, False)


@pytest.fixture
def log(monkeypatch):
    """Every trial of every group that is judged: ``(group, τ, order, dt, accepted, next order)``."""
    rows = []
    original = AdamsMarch.judge

    def judge(self, trial, errors, dt):
        accept = original(self, trial, errors, dt)
        at = (trial.groups, trial.start.tau, trial.order, dt, accept, self.order[trial.groups])
        rows.extend(zip(*at, strict=True))
        return accept

    monkeypatch.setattr(AdamsMarch, "judge", judge)
    return rows


@pytest.mark.parametrize("highest", [1, 3, 12])
@pytest.mark.parametrize("again", [False, True], ids=["PEC", "PECE"])
def test_orders_and_steps_of_a_solve(highest, again, log, product):
    """Each sample starts from order 1, moves by one order a step, within its limits."""
    solver = Solver(sk.VariableAdams(highest, again=again), sk.Preconditioned(1.0), sk.grids.log)
    x = product.sample(5, 80.0, seed=2)
    rtol = 1e-3 if highest == 1 else 1e-6
    solved = sk.solve(
        EDM.probability_flow(product), x, method=solver, sigmas=[80.0, 0.05], rtol=rtol
    )
    accepted = rejected = 0
    for n in range(5):
        rows = [row[1:] for row in log if row[0] == n]
        tau, order, dt, accept, following = map(np.array, zip(*rows, strict=True))
        assert order[0] == 1
        np.testing.assert_array_equal(order[1:], following[:-1])
        assert (np.abs(np.diff(order)) <= 1).all()
        assert order.max() <= highest
        assert (order <= 1 + np.cumsum(accept) - accept).all()  # slopes that there are
        assert (order[1:][~accept[:-1]] <= order[:-1][~accept[:-1]]).all()
        factor = dt[1:] / dt[:-1]
        assert (factor <= 3 * (1 + 1e-12)).all()
        assert (factor[~accept[:-1]] <= 0.9 * (1 + 1e-12)).all()
        assert (np.diff(tau)[~accept[:-1]] == 0).all()
        nfe = 2 + (1 + again) * len(rows)
        assert solved.stats.nfe_per_sample[n] == nfe
        accepted, rejected = max(accepted, accept.sum()), rejected + (~accept).sum()
    assert (solved.stats.steps, solved.stats.rejected) == (accepted, rejected)


def test_orders_rise_with_the_accuracy_asked_for(log, product):
    x = product.sample(4, 80.0, seed=0)
    flow, mean, top = EDM.probability_flow(product), [], []
    for rtol in (1e-1, 1e-2, 1e-4, 1e-7, 1e-10, 1e-13):
        log.clear()
        sk.solve(flow, x, sigmas=[80.0, 0.05], rtol=rtol)
        orders = np.array([row[2] for row in log])
        mean.append(orders.mean())
        top.append(orders.max())
    assert (np.diff(mean) > 0).all()
    assert (np.diff(top) >= 0).all()
    assert top[0] <= 4
    assert 9 <= top[-1] <= HIGHEST


def test_a_low_order_takes_more_steps(product):
    """What the orders are for; and at order 1 the method still meets its tolerance."""
    x = product.sample(4, 80.0, seed=0)
    exact, nfe = product.flow(x, 80.0, 0.05), []
    for highest in (1, 2, 4, 8):
        solver = Solver(sk.VariableAdams(highest), sk.Preconditioned(1.0), sk.grids.log)
        solved = sk.solve(
            EDM.probability_flow(product), x, method=solver, sigmas=[80.0, 0.05], rtol=1e-4
        )
        assert float((solved.x - exact).square().mean().sqrt()) < 1e-3
        nfe.append(solved.nfe)
    assert (np.diff(nfe) < 0).all()
    assert nfe[0] > 5 * nfe[-1]


def test_a_solve_in_parts_starts_each_anew(log, product):
    """Its past is not carried from solve to solve, and parts are one solve to the tolerance."""
    x = product.sample(3, 80.0, seed=0)
    flow, rtol = EDM.probability_flow(product), 1e-8
    state = x
    for start, end in ((80.0, 2.0), (2.0, 0.3), (0.3, 0.05)):
        log.clear()
        state = sk.solve(flow, state, sigmas=[start, end], rtol=rtol).x
        first = [next(row[2] for row in log if row[0] == n) for n in range(3)]
        assert first == [1, 1, 1]
    exact = product.flow(x, 80.0, 0.05)
    assert float((state - exact).square().mean().sqrt()) < 10 * rtol


def test_a_jump_of_the_slope_is_stepped_over(log):
    """Steps shrink at a kink, and grow again: the past before it does no harm."""

    def kinked(x, sigma):
        s = sigma.reshape(-1, 1)
        return torch.where(s > 0.5, 0.3, -0.2).expand_as(x) + 0.1 * torch.tanh(x)

    x = 5 * torch.linspace(-1, 1, 4, dtype=DOUBLE)[:, None]
    flow = EDM.probability_flow(kinked)
    options = {"sigmas": [5.0, 0.05], "rtol": 1e-6, "sigma_data": 0.5}
    solved = sk.solve(flow, x, **options)
    fine = sk.solve(flow, x, method="dopri5_theta", **options | {"rtol": 1e-11})
    assert (solved.x - fine.x).abs().max() < 1e-4
    assert solved.nfe < 150
    kink = np.arctan(1.0)  # θ, for σ_d = 1/2; the log is that of the first solve only
    for n in range(4):
        tau, order, dt = (np.array([row[i] for row in log if row[0] == n]) for i in (1, 2, 3))
        assert dt[np.abs(tau - kink) < 0.01].min() < 3e-3 * dt.max()
        assert order[tau < kink - 0.1].max() >= 4


# ---- what each sample does is its own ----


@pytest.mark.parametrize("name", [n for n in COORDINATES if COORDINATES[n] is not FRAME])
def test_batches_do_not_matter_in_any_coordinates(name):
    """To the last bit: to be sure of rounding alone, over some starts of very different steps."""
    solver = Solver(sk.VariableAdams(), COORDINATES[name], sk.grids.log)
    flow = (VP if name == "Native" else EDM).probability_flow(elementwise)
    for seed in range(3):
        x = 80 * torch.randn((5, 2), generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
        x[0] *= 1e-3
        x = x / 80 if name == "Native" else x
        options = {"method": solver, "sigmas": [80.0, 0.05], "rtol": 1e-4}
        whole = sk.solve(flow, x, **options)
        parts = [sk.solve(flow, part, **options) for part in (x[:1], x[1:3], x[3:])]
        assert torch.equal(whole.x, torch.cat([part.x for part in parts]))


# ---- dense output ----


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["Preconditioned", "LogData"])
def test_the_interpolant_has_the_order_of_the_step(k, name):
    """Over one step from an exact past its error is ``O(dt^(k + 2))``; at the end it is the state."""
    law = Product.random(2, 2, seed=0, width=0.9)
    coordinates = COORDINATES[name]
    x = law.sample(4, 1.0, seed=1)
    start = coordinates.tau(np.array([1.0]))
    direction = np.sign(coordinates.tau(np.array([0.5]))[0] - start[0])
    errors, sizes = [], np.array([0.2, 0.14, 0.1]) * (0.25 if name == "Preconditioned" else 1)
    for size in sizes:
        dt = direction * size
        past = start[0] - dt * np.arange(k + 1) * (1 + 0.1 * np.arange(k + 1))
        sigmas = coordinates.sigma(past)
        view = AffineView(EDM.probability_flow(law), coordinates, x)
        u, slopes = [], []
        for sigma in sigmas:
            state = law.flow(x, 1.0, float(sigma)) if sigma != 1.0 else x
            u.append(view.entrance(sigma, unscaled=False)(state))
            A, B = coordinates.field(coordinates.at(np.array([sigma])))
            slopes.append(float(A[0]) * u[-1] + float(B[0]) * law(state, float(sigma)))
        march, carry = begun(
            past, torch.stack(slopes, 1), u[0], k, coordinates=coordinates, model=law
        )
        trial = march.plan(np.array([0]), None, start, start + dt)
        attempt = march.attempt(trial, carry)
        interpolant = march.interpolant(trial, carry, attempt)
        worst = 0.0
        for share in (0.2, 0.5, 0.8, 1.0):
            tau = start + share * dt
            inside = interpolant(np.arange(4), np.repeat(tau, 4))
            sigma = coordinates.sigma(tau)
            exact = view.entrance(sigma[0], unscaled=False)(law.flow(x, 1.0, float(sigma[0])))
            worst = max(worst, float((inside - exact).abs().max()))
            if share == 1.0:
                torch.testing.assert_close(inside, attempt.u, rtol=0, atol=1e-13)
        errors.append(worst)
        first = interpolant(np.arange(4), np.repeat(start, 4))
        torch.testing.assert_close(first, u[0], rtol=0, atol=1e-15)
    order = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert abs(order - (k + 2)) < 0.6


# ---- the door ----


@pytest.mark.parametrize("highest", [0, 13, -1])
def test_orders_that_there_are_not(highest):
    with pytest.raises(ValueError, match=f"highest = {highest}; orders are 1 to 12"):
        sk.VariableAdams(highest)


@pytest.mark.parametrize("method", ["variable_adams", "variable_adams_t"])
@pytest.mark.parametrize("grid", [{"steps": 5}, {"sigmas": [80.0, 1.0, 0.1]}])
def test_it_takes_no_grid(method, grid, product):
    x = product.sample(2, 80.0, seed=0)
    with pytest.raises(ValueError, match=r"chooses its own steps; give rtol="):
        sk.solve(EDM.probability_flow(product), x, method=method, **grid)
    with pytest.raises(ValueError, match=r"chooses its own steps"):
        sk.prepare(EDM.probability_flow(product), x, method=method, **grid)
    view = AffineView(EDM.probability_flow(product), sk.Noise(), x)
    with pytest.raises(ValueError, match="chooses its own steps"):
        sk.VariableAdams().stepper(view, np.array([80.0, 1.0]), sk.IndependentNoise(0))
