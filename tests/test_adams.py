"""Adams schemes: weights to full precision in all coordinates, exactness, orders, and damage."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import NotResolved, flow_order, measure_order

import sdekit as sk
from sdekit.coordinates import Points
from sdekit.solvers.adams import Adams
from sdekit.solvers.multistep import Multistep
from sdekit.solvers.registry import Solver

EPS = np.finfo(float).eps
EDM, VP = sk.EDM(), sk.VP()
FRAME = sk.GaussianPreconditioned(
    np.array([0.3, -0.2, 0.1]), np.array([[0.9, 0.3, 0.1], [0.3, 0.5, 0.2], [0.1, 0.2, 0.2]])
)
COORDINATES = {
    "Noise": sk.Noise(),
    "LogNoise": sk.LogNoise(),
    "LogData": sk.LogData(),
    "Velocity": sk.Velocity(),
    "Preconditioned": sk.Preconditioned(0.5),
    "GaussianPreconditioned": FRAME,
    "Native": sk.Native(VP),
    "Noise in λ": sk.Interpolated(sk.Noise(), sk.LogNoise()),
    "Noise in t": sk.Interpolated(sk.Noise(), sk.Native(VP)),
    "θ in σ": sk.Interpolated(sk.Preconditioned(0.5), sk.Noise()),
}


# ---- weights, against a quadrature with 40 digits ----


def time_of_vp(sigma: Decimal) -> Decimal:
    """VP's time: the root of ``β_min t + ½ (β_max − β_min) t² = log(1 + σ²)``."""
    low, growth = Decimal(VP.beta_min), Decimal(VP.beta_max) - Decimal(VP.beta_min)
    return ((low**2 + 2 * growth * (1 + sigma**2).ln()).sqrt() - low) / growth


def theta_rate(std: float) -> Callable[[Decimal], Decimal]:
    """Derivative of ``arctan(σ/std)`` by ``λ``."""
    s = Decimal(std)
    return lambda lam: -s / ((-lam).exp() + s**2 * lam.exp())


# What depends on λ: the interpolation variable, and the clock's rate.
IN_LAMBDA = {
    "LogNoise": (lambda lam: lam, [lambda lam: -(-lam).exp()]),
    "LogData": (lambda lam: lam, [lambda lam: lam.exp()]),
    "GaussianPreconditioned": (lambda lam: lam, [theta_rate(s) for s in FRAME._std]),
    "Noise in λ": (lambda lam: lam, [lambda lam: -(-lam).exp()]),
    "Noise in t": (lambda lam: time_of_vp((-lam).exp()), [lambda lam: -(-lam).exp()]),
    "θ in σ": (lambda lam: (-lam).exp(), [theta_rate(0.5)]),
}


def tanh_sinh() -> list[tuple[Decimal, Decimal]]:
    """Nodes in (0, 1) and weights of the double-exponential rule, good to some 25 digits."""
    step, half_pi = Decimal(1) / 12, Decimal("1.5707963267948966192313216916397514420986")
    rule = []
    for k in range(-45, 46):
        t = k * step
        up, down = t.exp(), (-t).exp()
        e = (half_pi * (up - down)).exp()  # exp(2 y), y = π/2 sinh t; node = 1/(1 + exp(−2 y))
        rule.append((e / (1 + e), step * half_pi * (up + down) * e / (1 + e) ** 2))
    return rule


with localcontext() as _context:
    _context.prec = 40
    RULE = tanh_sinh()


def integral(fn: Callable[[Decimal], Decimal], begin: Decimal, end: Decimal) -> Decimal:
    panels = int(abs(end - begin)) + 1
    width = (end - begin) / panels
    return sum(w * width * fn(begin + width * (k + x)) for k in range(panels) for x, w in RULE)  # type: ignore[return-value]


def exact_weights(name: str, nodes: Points, begin: Points, end: Points) -> np.ndarray:
    """``∫ ℓ_j(τ) dW`` for one step, ``(k, d)``."""
    with localcontext() as context:
        context.prec = 40
        tau = [Decimal(float(v)) for v in nodes.tau]

        def basis(j: int, at: Decimal) -> Decimal:
            factors = ((at - t) / (tau[j] - t) for m, t in enumerate(tau) if m != j)
            return np.prod([*factors, Decimal(1)])

        if COORDINATES[name].has_own_clock:  # a polynomial
            ends = [Decimal(float(p.tau)) for p in (begin, end)]
            variable, rates = (lambda at: at), [lambda at: Decimal(1)]
        else:
            ends = [-Decimal(float(p.sigma)).ln() for p in (begin, end)]
            variable, rates = IN_LAMBDA[name]
        rows = [
            [
                float(integral(lambda at, j=j, rate=rate: basis(j, variable(at)) * rate(at), *ends))
                for rate in rates
            ]
            for j in range(len(tau))
        ]
    return np.array(rows)


def test_the_reference_is_precise():
    """∫ exp and ∫ arctan' over a long range, to 25 digits."""
    with localcontext() as context:
        context.prec = 40
        error = integral(Decimal.exp, Decimal(-4), Decimal(6)) / (
            Decimal(6).exp() - Decimal(-4).exp()
        )
        assert abs(error - 1) < Decimal("1e-25")
        angle = integral(theta_rate(1.0), Decimal(-40), Decimal(40))
        assert abs(angle + 2 * Decimal("0.78539816339744830961566084581987572")) < Decimal("1e-16")


def conditioning(values: np.ndarray) -> float:
    """How much larger a number is than its distance to the next."""
    sizes = np.maximum(np.abs(values[1:]), np.abs(values[:-1]))
    return float((sizes / np.abs(np.diff(values, axis=0))).max())


def check_weights(name: str, lam: np.ndarray, *, correct: bool) -> None:
    """Compare the weights of one step on the points of a grid with the exact ones."""
    coordinates = COORDINATES[name]
    grid = coordinates.at(np.exp(-lam))
    newest = len(lam) - (1 if correct else 2)  # of the nodes
    nodes = Points(*(v[newest::-1][None] for v in grid))
    scheme = Adams(1)
    if correct:
        weights = scheme.correct(coordinates, nodes)
    else:
        weights = scheme.predict(coordinates, nodes, Points(*(v[-1:] for v in grid)))
    begin, end = (Points(*(v[n] for v in grid)) for n in (-2, -1))
    exact = exact_weights(name, Points(*(v[0] for v in nodes)), begin, end)
    # No weight changes its sign within a step, so that none cancels. What is left is the round-off
    # of the points beside their gaps: in log σ, in τ and on the clock.
    rounding = EPS * len(lam) * max(map(conditioning, (lam, grid.tau, coordinates.clock(grid))))
    np.testing.assert_allclose(
        weights[0].reshape(exact.shape), exact, rtol=1e-13 + 2 * rounding, atol=0
    )


gaps = st.floats(np.log(1e-6), np.log(2.0)).map(np.exp)


@pytest.mark.parametrize("correct", [False, True], ids=["predict", "correct"])
@pytest.mark.parametrize("name", COORDINATES)
@settings(deadline=None, max_examples=5)
@given(start=st.floats(-4.4, 3.0), gaps=st.lists(gaps, min_size=1, max_size=6))
def test_weights_are_exact(name, correct, start, gaps):
    """On random grids with steps of 1e-6 to 2 in log σ, for up to six slopes."""
    lam = start + np.concatenate([[0.0], np.cumsum(gaps)])
    check_weights(name, lam[lam < 9] if len(lam[lam < 9]) > 1 else lam[:2], correct=correct)


@pytest.mark.parametrize("name", COORDINATES)
def test_weights_of_the_longest_step(name):
    """From σ = 80 to 0.002 in one step, and at its end after steps of ordinary length."""
    check_weights(name, -np.log([80.0, 0.002]), correct=True)
    check_weights(name, -np.log([80.0, 60.0, 40.0, 0.002]), correct=False)
    check_weights(name, -np.log([80.0, 60.0, 40.0, 0.002]), correct=True)


# ---- polynomials are integrated exactly, by the scheme as a whole ----


def polynomial_problem(name: str, coefficients: np.ndarray, middle: float, width: float):
    """A flow whose slope ``N`` is a polynomial in ``τ``, times one number for each direction.

    Returns the problem, the change from ``x̂`` to ``u``, and the integral of the polynomial in ``W``.
    """
    coordinates, directions = COORDINATES[name], torch.tensor([1.0, -0.7, 0.4], dtype=torch.float64)
    mean, basis = map(torch.from_numpy, coordinates.frame or (np.zeros(3), np.eye(3)))

    def polynomial(tau):
        return np.polyval(coefficients, (tau - middle) / width)

    def denoiser(x_hat, sigma):
        point = coordinates.at(np.array([float(sigma)]))
        h, (a, b) = coordinates.h(point)[0], (v[0] for v in coordinates.field(point))
        u = (x_hat - mean) @ basis / torch.as_tensor(h)
        slope = float(polynomial(point.tau)[0]) * directions
        return mean + (slope - torch.as_tensor(a) * u) / torch.as_tensor(b) @ basis.mT

    def unscaled(x_hat, sigma):
        return (x_hat - mean) @ basis / torch.as_tensor(coordinates.h(coordinates.at(sigma))[0])

    def exact(begin: float, end: float):
        low, high = -np.log([begin, end])
        x, w = np.polynomial.legendre.leggauss(30)
        sigma = np.exp(-(low + high) / 2 - (high - low) / 2 * x)
        rate = coordinates.clock_rate(sigma).reshape(len(x), -1)
        values = -(high - low) / 2 * w * sigma * polynomial(coordinates.tau(sigma))
        return torch.from_numpy(values @ rate) * directions

    process = VP if "Native" in name or name.endswith("t") else EDM
    return process, process.probability_flow(denoiser), unscaled, exact


@pytest.mark.parametrize("slopes", [1, 2, 3, 4])
@pytest.mark.parametrize("corrector", [False, True], ids=["AB", "PEC"])
@pytest.mark.parametrize("name", COORDINATES)
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 2**32 - 1))
def test_polynomial_slopes_are_integrated_exactly(name, corrector, slopes, seed):
    """Slopes of degree one less than their number, on a random grid: every step after the ramp."""
    rng = np.random.default_rng(seed)
    gaps = rng.uniform(0.15, 0.45, 8)
    sigmas = 20.0 * np.exp(-np.concatenate([[0.0], np.cumsum(gaps)]))
    coordinates = COORDINATES[name]
    first, last = coordinates.tau(sigmas[[0, -1]])
    process, flow, unscaled, exact = polynomial_problem(
        name, rng.normal(size=slopes), (first + last) / 2, abs(first - last) / 2
    )
    scale = process.on_host("scale", process.on_host("time", sigmas))
    x = torch.from_numpy(rng.normal(size=(1, 3)) * 20 * scale[0])
    solver = Solver(Adams(slopes, corrector=corrector), coordinates, sk.grids.log)
    path = sk.solve(flow, x, method=solver, sigmas=sigmas, trajectory=True).trajectory
    u = [unscaled(v / s, np.array([g])) for v, s, g in zip(path, scale, sigmas, strict=True)]
    size = max(float(v.abs().max()) for v in u)
    # With a corrector also the first state after the ramp is a prediction from a corrected one.
    for n in range(slopes - 1 + corrector, 8):
        moved = exact(sigmas[n], sigmas[n + 1])
        torch.testing.assert_close((u[n + 1] - u[n])[0], moved, rtol=1e-9, atol=1e-11 * size)


# ---- orders ----

PEC, PECE = {"corrector": True}, {"corrector": True, "again": True}
RK4, LOWER = {"start": "rk4"}, {"tail": "lower"}
# Slopes, options, and the order, in two coordinate systems each.
CONFIGURATIONS = [
    *((p, RK4, p) for p in (1, 2, 3, 4, 5)),
    *((p, PEC | RK4, p + 1) for p in (1, 2, 3, 4)),
    *((p, PECE | RK4, p + 1) for p in (1, 2, 3, 4)),
    *((p, {}, 2) for p in (2, 3, 6)),
    *((p, PEC, 3) for p in (2, 3, 5)),
    (3, PECE, 3),
    (3, RK4 | LOWER, 2),
    (2, PEC | LOWER, 2),
    (4, PEC | RK4 | LOWER, 2),
]
SEVEN = list(COORDINATES)[:7]
# Where the order shows on longer grids only.
LATE = {("LogData", 5), ("Native", 5), ("Native", 3)}


def order_cases() -> list:
    cases = []
    for i, (slopes, options, order) in enumerate(CONFIGURATIONS):
        names = [SEVEN[(i + k) % 7] for k in (0, 3, 5, 1, 2)]
        for name in [name for name in names if (name, order) not in LATE][:2]:
            label = "-".join(str(v) for v in (slopes, *options.values(), name))
            cases.append(pytest.param(slopes, options, order, name, id=label))
    return cases


def adams_order(scheme, name, law, high=3.0, low=0.1, steps=(96, 144, 192)):
    coordinates = COORDINATES[name]
    if name == "GaussianPreconditioned":  # not quite the mixture's own mean and covariance
        mean, cov = law.moments()
        coordinates = sk.GaussianPreconditioned((mean + 0.1).numpy(), (1.3 * cov).numpy())
    native = name == "Native"
    grid = sk.grids.uniform_t if native else sk.grids.log
    solver = Solver(scheme, coordinates, grid)
    return flow_order(solver, law, VP if native else EDM, high, low, steps, grid=grid)


@pytest.mark.parametrize(("slopes", "options", "order", "name"), order_cases())
def test_order(slopes, options, order, name, product):
    scheme = Adams(slopes, **options)
    assert scheme.order == order
    high = 3.0 if "start" in options else 2.0  # from where the ramp is not hidden
    assert adams_order(scheme, name, product, high) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", ["Velocity", "Preconditioned"])
@pytest.mark.parametrize(("slopes", "options"), [(5, PEC), (6, {})])
def test_the_formulas_have_their_own_order(name, slopes, options, product):
    """Where the error of the start is small beside them they show the order of the interior."""
    scheme = Adams(slopes, start="rk4", **options)
    assert (scheme.order, scheme.interior_order) == (5, 6)
    measured = adams_order(scheme, name, product, high=0.6, steps=[48, 72, 96])
    assert measured == pytest.approx(6, abs=0.15)


def test_the_start_limits_the_order_to_five(product):
    """Six slopes and a corrector, order 7, after five Runge–Kutta steps from where they count."""
    scheme = Adams(6, start="rk4", corrector=True)
    assert (scheme.order, scheme.interior_order) == (5, 7)
    measured = adams_order(scheme, "LogNoise", product, 0.4, 0.15, [48, 72, 96, 144])
    assert measured == pytest.approx(5, abs=0.15)


@pytest.mark.parametrize("name", ["Preconditioned", "LogData", "Noise"])
def test_flows_can_be_solved_upwards(name, product):
    x = product.sample(16, 0.1, seed=1)
    exact, flow = product.flow(x, 0.1, 3.0), EDM.probability_flow(product)
    solver = Solver(Adams(3, corrector=True, start="rk4"), COORDINATES[name], sk.grids.log)

    def error(n):
        sigmas = sk.grids.log(n, 3.0, 0.1)[::-1].copy()
        return float((sk.solve(flow, x, method=solver, sigmas=sigmas).x - exact).square().mean())

    assert measure_order(lambda n: error(n) ** 0.5, [96, 144, 192]) == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize("name", ["Preconditioned", "LogData"])
@pytest.mark.parametrize("corrector", [False, True], ids=["AB", "PEC"])
@pytest.mark.parametrize("slopes", [2, 3, 4])
def test_a_damaged_weight_is_caught(slopes, corrector, name, product, monkeypatch):
    """Halving the weights of any one slope makes the order test fail."""
    scheme = Adams(slopes, corrector=corrector, start="rk4")
    steps = [48, 64, 96]
    assert abs(adams_order(scheme, name, product, steps=steps) - scheme.order) < 0.35
    formulas = [("predict", slopes)] + [("correct", slopes + 1)] * corrector
    for method, depth in formulas:
        whole = getattr(Adams, method)
        for column in range(depth):

            def halved(self, *args, whole=whole, depth=depth, column=column):
                weights = whole(self, *args)
                factors = np.where(np.arange(depth) == column, 0.5, 1.0)
                return weights * factors if weights.shape[1] == depth else weights

            with monkeypatch.context() as patch:
                patch.setattr(Adams, method, halved)
                try:
                    order = adams_order(scheme, name, product, steps=steps)
                except NotResolved:
                    continue
            assert abs(order - scheme.order) > 0.4, (method, column)


# ---- policies, work, and the door ----


def test_slopes_of_each_step():
    """The ramp, the lower tail, and grids shorter than the memory."""
    assert Adams(3).depths(6) == [1, 2, 3, 3, 3, 3]
    assert Adams(3, tail="lower").depths(6) == [1, 2, 3, 3, 2, 1]
    assert Adams(4, tail="lower").depths(3) == [1, 2, 1]
    assert Adams(6).depths(2) == [1, 2]


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        (PEC, [1, 2, 3, 4, 5, 6]),
        (PECE, [1, 3, 5, 7, 9, 11]),
        (RK4, [4, 8, 12, 13, 14, 15]),
        (PEC | RK4, [4, 8, 12, 13, 14, 15]),
    ],
    ids=str,
)
def test_evaluations(options, calls, product):
    """One a step, two with PECE but in the last, four in Runge–Kutta steps, on grids of any length."""
    x = product.sample(2, 80.0, seed=0)
    solver = Solver(Adams(4, **options), sk.Preconditioned(0.5), sk.grids.theta)
    flow = EDM.probability_flow(product)
    for steps, expected in enumerate(calls, start=1):
        assert sk.solve(flow, x, method=solver, steps=steps, sigma_data=0.5).nfe == expected


class Predictor(Multistep):
    """A scheme that has a predictor only."""

    def predict(self, coordinates, nodes, end):
        return Adams(self.slopes).predict(coordinates, nodes, end)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adams(0), "order = 0; a multistep scheme uses 1 to 6 slopes"),
        (lambda: Adams(7), "order = 7"),
        (lambda: Adams(2, start="euler"), "start = 'euler'"),
        (lambda: Adams(2, tail="first"), "tail = 'first'"),
        (lambda: Adams(2, again=True), "give corrector=True"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_missing_corrector_is_named(product):
    solver = Solver(Predictor(2, corrector=True), sk.Noise(), sk.grids.log)
    x = torch.ones((2, 3), dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="Predictor has no corrector"):
        sk.solve(EDM.probability_flow(product), x, method=solver, steps=3)
