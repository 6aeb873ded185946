"""Orders of the flow schemes, generated from the registry, and seen failing when damaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from orders import HIGH, LOW, NotResolved, flow_order

import sdekit as sk
from sdekit.distributions import Gaussian
from sdekit.scale import needs_scale
from sdekit.solvers import tableaus
from sdekit.solvers.registry import Solver

FLOWS = {
    name: entry.solver
    for name, entry in sk.methods().items()
    if entry.deterministic and entry.fixed
}
TABLEAUS = {
    name: value for name, value in vars(tableaus).items() if isinstance(value, tableaus.Tableau)
}


class Setting(NamedTuple):
    """Where an order is measured: levels from which and to which, and numbers of steps."""

    high: float
    low: float
    steps: list[int]
    floor: float = 1e-14


# Where the order shows on numbers of steps of its own. The Bayesian weights level off at 1e-8.
# DPM-Solver's groups are alike for multiples of 3, and remember nothing. The third slope of two
# methods adds an error of the next order that is large.
STEPS = {
    "bayesian_adams": [48, 72, 96],
    "lms3": [192, 288, 384],
    "deis_t3": [192, 288, 384],
    "dpmpp_singlestep_2": [72, 96, 144],
    "dpmpp_singlestep_3": [72, 96, 144],
}


def setting(name: str, law: str) -> Setting:
    """Where the order of a method shows, on the mixture and on the Gaussian.

    A scheme that remembers slopes starts with a few steps of low order, whose error a wide range
    hides: hence the range from σ = 2; and it takes more steps for its order to show. The errors
    of orders 5 and 8 reach round-off first, unless the range is one on which the mixture is
    smoother, or one on which the error on a Gaussian is larger.
    """
    scheme = FLOWS[name].scheme
    if scheme.order <= 4:
        remembers = scheme.nfe_per_step < scheme.order
        steps = STEPS.get(name, [96, 144, 192] if remembers else [32, 48, 72])
        return Setting(2.0 if remembers and law == "product" else HIGH, LOW, steps)
    if scheme.order == 5:
        if law == "product":
            return Setting(HIGH, 0.5, [24, 32, 48, 64], floor=5e-15)
        return Setting(10.0, 0.03, [64, 96, 144], floor=2e-15)
    return Setting(HIGH, 0.5 if law == "product" else LOW, [8, 10, 12, 16])


# On Gaussian data the error of some methods cancels. Midpoint in σ: with x² = λ + σ² the error of
# the rule and the error of its midpoint slope are both h³ λ σ / (8 x⁵), of opposite sign; the same
# in rectified flow. Fifth order in σ: the coefficient of h⁵ is so small that h⁶ counts almost down
# to round-off, but not for uniform steps, on which it is tested below.
GAUSSIAN_ORDER = {
    ("midpoint", sk.EDM): 3,
    ("flow_midpoint", sk.EDM): 3,
    ("midpoint_t", sk.RectifiedFlow): 3,
    ("dopri5", sk.EDM): None,
    ("tsit5", sk.EDM): None,
}


def processes(name: str) -> list[sk.AffineSDE]:
    """Processes to solve: in the unscaled state all are alike, but for methods in their time."""
    if not isinstance(FLOWS[name].coordinates, sk.Native | sk.Interpolated):
        return [sk.EDM()]
    # A time proportional to log σ makes order 5 visible above round-off.
    ve = sk.VE(0.01, 50.0)
    return [ve] if FLOWS[name].scheme.order > 4 else [ve, sk.VP(), sk.RectifiedFlow()]


def cases(law: str) -> list:
    return [
        pytest.param(name, process, id=f"{name}-{type(process).__name__}")
        for name in FLOWS
        for process in processes(name)
        if law == "product" or GAUSSIAN_ORDER.get((name, type(process)), 0) is not None
    ]


@pytest.mark.parametrize(("name", "process"), cases("product"))
def test_order_on_a_mixture(name, process, product):
    solver, (high, low, steps, floor) = FLOWS[name], setting(name, "product")
    order = flow_order(solver, product, process, high, low, steps, floor=floor)
    assert order == pytest.approx(solver.scheme.order, abs=0.15)


@pytest.mark.parametrize(("name", "process"), cases("gaussian"))
def test_order_on_a_gaussian(name, process, gaussian):
    solver, (high, low, steps, floor) = FLOWS[name], setting(name, "gaussian")
    expected = GAUSSIAN_ORDER.get((name, type(process)), solver.scheme.order)
    order = flow_order(solver, gaussian, process, high, low, steps, floor=floor)
    assert order == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(
    ("name", "variances", "steps"),
    [("dopri5", [0.5, 0.2], [48, 64, 96]), ("tsit5", [2.0, 0.1, 0.01], [64, 96, 128])],
)
def test_fifth_order_on_a_gaussian(name, variances, steps):
    """In σ it shows for uniform steps, on these variances."""
    law = Gaussian([0.3] * len(variances), np.diag(variances).tolist())
    grid = sk.grids.uniform_sigma
    order = flow_order(FLOWS[name], law, sk.EDM(), steps=steps, grid=grid)
    assert order == pytest.approx(5, abs=0.15)


@pytest.mark.parametrize(
    "coordinates",
    [sk.LogNoise(), sk.LogData(), sk.Velocity(), sk.Preconditioned(0.5), sk.Preconditioned(2.0)],
    ids=str,
)
@pytest.mark.parametrize(
    "tableau", [tableaus.EULER, tableaus.HEUN, tableaus.RK4], ids=lambda t: t.order
)
def test_order_in_other_coordinates(tableau, coordinates, product):
    """A scheme written once keeps its order in every coordinate system."""
    solver = Solver(sk.RungeKutta(tableau), coordinates, sk.grids.log)
    assert flow_order(solver, product, sk.EDM()) == pytest.approx(tableau.order, abs=0.15)


@pytest.mark.parametrize("tableau", [tableaus.EULER, tableaus.RK4], ids=lambda t: t.order)
def test_preconditioned_is_exact_for_isotropic_gaussians(tableau):
    """One step from σ = 80 to 0.002, and from rectified flow's σ = ∞, has no error."""
    law = Gaussian(np.zeros(3), (0.49 * np.eye(3)).tolist())
    solver = Solver(sk.RungeKutta(tableau), sk.Preconditioned(0.7), sk.grids.log)
    x = law.sample(8, 80.0, seed=0)
    solved = sk.solve(sk.EDM().probability_flow(law), x, method=solver, steps=1)
    torch.testing.assert_close(solved.x, law.flow(x, 80.0, 0.002), rtol=0, atol=1e-12)
    process = sk.RectifiedFlow()
    noise = process.prior_sample((8, 3), seed=0, dtype=torch.float64)
    for coordinates in (sk.Preconditioned(0.7), sk.Velocity(), sk.Native()):
        solver = Solver(sk.RungeKutta(tableau), coordinates, sk.grids.uniform_t)
        steps = 1 if isinstance(coordinates, sk.Preconditioned) else 400
        solved = sk.solve(process.probability_flow(law), noise, method=solver, steps=steps)
        t = process.t_min
        exact = noise * np.sqrt(0.49 * (1 - t) ** 2 + t**2)  # (1 − t) sqrt(σ_d² + σ²) ε
        tolerance = 1e-12 if steps == 1 else (1e-2 if tableau.order == 1 else 1e-9)
        torch.testing.assert_close(solved.x, exact, rtol=0, atol=tolerance)


def damaged(tableau: tableaus.Tableau) -> list[tableaus.Tableau]:
    """Every tableau with one coefficient halved, made without the checks of the constructor."""

    def make(**changes):
        broken = object.__new__(tableaus.Tableau)
        for field in dataclasses.fields(tableaus.Tableau):
            value = changes.get(field.name, getattr(tableau, field.name))
            object.__setattr__(broken, field.name, value)
        return broken

    def halve(values, index):
        return tuple(v / 2 if i == index else v for i, v in enumerate(values))

    used = tableau.stages
    variants = [make(b=halve(tableau.b, i)) for i, v in enumerate(tableau.b) if v]
    variants += [make(c=halve(tableau.c, i)) for i in range(1, used)]
    variants += [
        make(a=tuple(halve(row, j) if k == i else row for k, row in enumerate(tableau.a)))
        for i, row_values in enumerate(tableau.a[: used - 1])
        for j, v in enumerate(row_values)
        if v
    ]
    return variants


@pytest.mark.parametrize("name", ["euler", "heun", "midpoint", "rk4", "dopri5", "heun_t", "rk4_t"])
def test_a_damaged_coefficient_is_caught(name, product):
    """Halving any one coefficient of a tableau makes its order test fail."""
    solver = FLOWS[name]
    assert isinstance(solver.scheme, sk.RungeKutta)
    process = processes(name)[0]
    low = 0.5 if solver.scheme.order == 5 else LOW
    measure = partial(
        flow_order, law=product, process=process, low=low, steps=[16, 24, 36], batch=8
    )
    assert abs(measure(solver) - solver.scheme.order) < 0.25  # the same measurement, undamaged
    for tableau in damaged(solver.scheme.tableau):
        try:
            order = measure(dataclasses.replace(solver, scheme=sk.RungeKutta(tableau)))
        except NotResolved:
            continue
        assert abs(order - tableau.order) > 0.4, tableau


def trees(order: int) -> list[tuple]:
    """All rooted trees with this many vertices, as sorted nested tuples."""
    if order == 1:
        return [()]
    found = set()

    def attach(remaining: int, limit: int, children: tuple) -> None:
        if remaining == 0:
            found.add(tuple(sorted(children, key=repr)))
            return
        for size in range(min(remaining, limit), 0, -1):
            for child in trees(size):
                attach(remaining - size, size, (*children, child))

    attach(order - 1, order - 1, ())
    return sorted(found, key=repr)


def density(tree: tuple) -> int:
    return size_of(tree) * int(np.prod([density(child) for child in tree], dtype=int))


def size_of(tree: tuple) -> int:
    return 1 + sum(size_of(child) for child in tree)


def defects(tableau: tableaus.Tableau, b: tuple[float, ...], order: int) -> Iterator[float]:
    """How far Butcher's conditions ``b·Φ(τ) = 1/γ(τ)`` are missed, one number per tree."""
    a = np.zeros((len(tableau.c),) * 2)
    for i, row in enumerate(tableau.a, start=1):
        a[i, :i] = row

    def weights(tree: tuple) -> np.ndarray:
        return np.prod([a @ weights(child) for child in tree], axis=0) * np.ones(len(a))

    return (abs(float(np.dot(b, weights(t)) - 1 / density(t))) for t in trees(order))


def pairs(tableau: tableaus.Tableau) -> list[tuple[tuple[float, ...], int]]:
    """Weights and their order: those of the method, and those of the embedded one if it has any."""
    methods = [(tableau.b, tableau.order)]
    if tableau.b_error is not None:
        methods.append((tuple(np.subtract(tableau.b, tableau.b_error)), tableau.error_order))
    return methods


@pytest.mark.parametrize("name", TABLEAUS)
def test_tableaus_satisfy_the_order_conditions(name):
    """The conditions hold for all trees up to the order, not beyond; so do the embedded method's."""
    tableau = TABLEAUS[name]
    assert [len(trees(k)) for k in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]
    for b, order in pairs(tableau):
        for k in range(1, order + 1):
            assert max(defects(tableau, b, k)) < 3e-14
        assert max(defects(tableau, b, order + 1)) > 1e-5


@pytest.mark.parametrize("name", TABLEAUS)
def test_a_damaged_coefficient_fails_the_order_conditions(name):
    """Halving any one coefficient breaks a condition, or a row's sum ``Σ_j a_ij = c_i``."""
    tableau = TABLEAUS[name]
    for broken in damaged(tableau):
        sums = [abs(sum(row) - c) for row, c in zip(broken.a, broken.c[1:], strict=True)]
        missed = (d for k in range(1, tableau.order + 1) for d in defects(broken, broken.b, k))
        assert max(sums, default=0) > 1e-5 or any(d > 1e-5 for d in missed), broken


def test_the_family_of_second_order_holds_its_members():
    """Midpoint, Ralston's and Heun's method are one family (Karras et al. 2022, algorithm 3)."""
    assert tableaus.ralston(1 / 2) == tableaus.MIDPOINT
    assert tableaus.ralston(2 / 3) == tableaus.RALSTON
    assert tableaus.ralston(1.0) == tableaus.HEUN
    for alpha in (0.0, 1.2, float("nan")):
        with pytest.raises(ValueError, match="0 < alpha <= 1"):
            tableaus.ralston(alpha)


def test_dop853_has_the_coefficients_of_scipy():
    """To the last bit, where both have them."""
    coefficients = pytest.importorskip("scipy.integrate._ivp.dop853_coefficients")
    tableau = tableaus.DOP853
    assert tableau.c == tuple(coefficients.C[:12])
    assert tableau.b == tuple(coefficients.B)
    assert tableau.b_error == tuple(coefficients.E5[:12])
    for i, row in enumerate(tableau.a, start=1):
        assert row == tuple(coefficients.A[i, :i])


def test_rk4_reproduces_the_gaussian_flow(gaussian):
    """On a fine grid RK4 agrees with the exact Gaussian flow to 1e-10, over the whole range."""
    process = sk.EDM()
    x = gaussian.sample(32, process.sigma_max, seed=0)
    exact = gaussian.flow(x, process.sigma_max, process.sigma_min)
    sigmas = sk.grids.log(1000, process.sigma_max, process.sigma_min)
    with torch.no_grad():
        solved = sk.solve(process.probability_flow(gaussian), x, method="rk4", sigmas=sigmas)
    assert (solved.x - exact).abs().max() < 1e-9


# Restart's intervals cost more than the steps of the grid.
DECLARED = [n for n, entry in sk.methods().items() if entry.fixed and n != "restart"]


@pytest.mark.parametrize("name", DECLARED)
def test_nfe_is_what_is_declared(name, product):
    """The denoiser is called exactly as often as the declarations say.

    A method that needs the scale of the data gives a step for the call that estimates it.
    """
    calls = 0

    def denoiser(x, sigma):
        nonlocal calls
        calls += 1
        return product(x, sigma)

    solver, process = sk.methods()[name].solver, sk.VP()
    per_step = solver.scheme.nfe_per_step
    flow = solver.scheme.solves == "flow"
    problem = process.probability_flow(denoiser) if flow else process.reverse(denoiser)
    x = torch.ones((2, 3), dtype=torch.float64)
    unknown = solver.coordinates.needs_sigma_data or needs_scale(solver.grid)
    for options, pilot in (({}, int(unknown)), ({"sigma_data": 0.7}, 0)):
        steps = 5 - pilot
        solution = sk.solve(problem, x, method=name, steps=5, seed=0, **options)
        assert calls == solution.nfe == steps * per_step + pilot
        assert solution.stats.steps == steps
        calls = 0
        if solver.coordinates != sk.Native():
            solution = sk.solve(
                problem, x, method=name, steps=5, ending="denoise", seed=0, **options
            )
            assert calls == solution.nfe == (steps - 1) * per_step + 1 + pilot
            calls = 0
