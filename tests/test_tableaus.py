"""Dense output of the tableaus, and the second error estimate of DOP853."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import scipy.integrate
from test_orders import defects

from sdekit.solvers import tableaus
from sdekit.solvers.tableaus import Tableau

DENSE = {
    "bosh3": tableaus.BOGACKI_SHAMPINE,
    "dopri5": tableaus.DORMAND_PRINCE,
    "tsit5": tableaus.TSITOURAS,
    "dop853": tableaus.DOP853,
}
SCIPY = {
    "bosh3": scipy.integrate.RK23,
    "dopri5": scipy.integrate.RK45,
    "dop853": scipy.integrate.DOP853,
}
INSIDE = np.linspace(0, 1, 33)[1:-1]
# The cubic through values and slopes at both ends, which any method may use: the start's weight, the
# end's, and the factor of the method's own weights b.
HERMITE = np.array([(1.0, -2.0, 1.0), (0.0, -1.0, 1.0), (0.0, 3.0, -2.0)])


class Problem(NamedTuple):
    """An initial value problem with its solution, which takes times of any shape."""

    slope: Callable[[float, np.ndarray], np.ndarray]
    solution: Callable[[np.ndarray | float], np.ndarray]


PROBLEMS = {
    "vector": Problem(
        lambda t, u: np.array([u[0] * np.log(u[1]), -u[1] * np.log(u[0])]),
        lambda t: np.array([np.exp(np.sin(t)), np.exp(np.cos(t))]),
    ),
    "scalar": Problem(lambda t, u: -2 * t * u**2, lambda t: np.array([1 / (1 + np.square(t))])),
}


def one_step(
    tableau: Tableau, problem: Problem, t: float, dt: float
) -> tuple[np.ndarray, np.ndarray]:
    """All slopes of a step from the exact value, in the order of the interpolant, and the result."""
    start = problem.solution(t)
    slopes = [problem.slope(t, start)]

    def stage(c, row):
        slopes.append(problem.slope(t + c * dt, start + dt * np.dot(row, slopes)))

    for c, row in zip(tableau.c[1:], tableau.a, strict=True):
        stage(c, row)
    end = start + dt * np.dot(tableau.b, slopes)
    if not tableau.fsal:
        slopes.append(problem.slope(t + dt, end))
    for c, row in tableau.extra:
        stage(c, row)
    return np.array(slopes), end


def interpolation_order(tableau: Tableau, problem: Problem) -> float:
    """Measure the order of an interpolant: one step's largest error within it is O(dt^(order + 1))."""

    def error(dt: float) -> float:
        worst = 0.0
        for t in (-1.0, -0.6, -0.2, 0.3, 0.8):
            slopes, _ = one_step(tableau, problem, t, dt)
            start = problem.solution(t)[:, None]
            inside = start + dt * (tableau.weights_at(INSIDE) @ slopes).T
            worst = max(worst, np.abs(inside - problem.solution(t + dt * INSIDE)).max())
        return worst

    dt = 0.2 if tableau.interpolant_order == 7 else 0.02  # 7 meets round-off at smaller steps
    return float(np.log2(error(dt) / error(dt / 2))) - 1


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", DENSE)
def test_interpolants_have_their_order(name, problem):
    tableau = DENSE[name]
    order = interpolation_order(tableau, PROBLEMS[problem])
    assert order == pytest.approx(tableau.interpolant_order, abs=0.2)


def part_of_step(tableau: Tableau, s: float) -> Tableau:
    """The interpolant at ``s`` as a method of its own, whose step is ``s`` times the tableau's."""
    ends = [] if tableau.fsal else [(1.0, tableau.b)]
    stages = [*zip(tableau.c[1:], tableau.a, strict=True), *ends, *tableau.extra]
    return Tableau(
        c=(0.0, *(c / s for c, _ in stages)),
        a=tuple(tuple(np.divide(row, s)) for _, row in stages),
        b=tuple(tableau.weights_at(np.array([s]))[0] / s),
        order=tableau.interpolant_order,
    )


@pytest.mark.parametrize("s", [0.2, 0.5, 0.75])
@pytest.mark.parametrize("name", DENSE)
def test_interpolants_satisfy_the_order_conditions(name, s):
    """``b(s)·Φ(τ) = s^|τ| / γ(τ)`` holds for all trees up to the interpolant's order, not beyond."""
    method = part_of_step(DENSE[name], s)
    missed = [max(defects(method, method.b, k)) * s**k for k in range(1, method.order + 2)]
    assert max(missed[:-1]) < 1e-13
    assert missed[-1] > 5e-6


def halved(rows: tuple[tuple[float, ...], ...]) -> Iterator[tuple[tuple[float, ...], ...]]:
    """The rows with one entry halved, for every entry but zeros."""
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if value:
                yield (*rows[:i], (*row[:j], value / 2, *row[j + 1 :]), *rows[i + 1 :])


@pytest.mark.parametrize("name", DENSE)
def test_a_damaged_interpolant_raises(name):
    """Halving any one coefficient of an interpolant makes its construction fail."""
    tableau = DENSE[name]
    broken = list(halved(tableau.interpolant))
    assert len(broken) == np.count_nonzero(tableau.interpolant)
    for rows in broken:
        with pytest.raises(ValueError, match="interpolant must"):
            dataclasses.replace(tableau, interpolant=rows)


def test_a_damaged_extra_stage_or_error_raises():
    """Halving any one coefficient of DOP853's extra stages, or of its error, does as well."""
    tableau = tableaus.DOP853
    times = tuple(c for c, _ in tableau.extra)
    rows = tuple(row for _, row in tableau.extra)
    variants = [tuple(zip(times, changed, strict=True)) for changed in halved(rows)]
    variants += [tuple(zip(changed, rows, strict=True)) for (changed,) in halved((times,))]
    for extra in variants:
        with pytest.raises(ValueError, match="extra stage must sum"):
            dataclasses.replace(tableau, extra=extra)
    for (weights,) in halved((tableau.b_error_low,)):
        with pytest.raises(ValueError, match="error weights must sum to 0"):
            dataclasses.replace(tableau, b_error_low=weights)


def moved(tableau: Tableau, j: int) -> Tableau:
    """Move ``s² (1 − s)² / 10`` from one slope to the first, which the checks cannot see."""
    rows = np.array(tableau.interpolant)
    rows = np.pad(rows, ((0, 0), (0, max(0, 4 - rows.shape[1]))))
    change = np.array([0.0, 0.1, -0.2, 0.1])
    rows[0, :4] += change
    rows[j, :4] -= change
    return dataclasses.replace(tableau, interpolant=tuple(map(tuple, rows)))


@pytest.mark.parametrize("name", DENSE)
def test_the_order_test_sees_what_the_checks_do_not(name):
    tableau = DENSE[name]
    for j in range(1, tableau.slopes):
        assert interpolation_order(moved(tableau, j), PROBLEMS["vector"]) < 2


def test_the_order_test_sees_damaged_extra_stages():
    tableau = tableaus.DOP853
    for i, (c, row) in enumerate(tableau.extra):
        changed = (c, (row[0] + 0.01, *row[1:-1], row[-1] - 0.01))
        extra = (*tableau.extra[:i], changed, *tableau.extra[i + 1 :])
        broken = dataclasses.replace(tableau, extra=extra)
        assert interpolation_order(broken, PROBLEMS["vector"]) < 4


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", SCIPY)
def test_dense_output_is_that_of_scipy(name, problem):
    """Of one step; its solution and its values within."""
    tableau, problem = DENSE[name], PROBLEMS[problem]
    t, dt = 0.3, 0.25
    solver = SCIPY[name](
        problem.slope, t, problem.solution(t), t + dt, first_step=dt, rtol=1.0, atol=1.0
    )
    assert solver.step() is None
    assert solver.t == t + dt
    slopes, end = one_step(tableau, problem, t, dt)
    np.testing.assert_allclose(end, solver.y, rtol=0, atol=1e-13)
    s = np.linspace(0, 1, 21)
    inside = problem.solution(t)[:, None] + dt * (tableau.weights_at(s) @ slopes).T
    np.testing.assert_allclose(inside, solver.dense_output()(t + s * dt), rtol=0, atol=1e-13)


def test_the_low_error_of_dop853():
    """It is that of scipy, and of an embedded method of order 3; so is the combined error."""
    tableau, theirs = tableaus.DOP853, scipy.integrate.DOP853
    np.testing.assert_allclose((*tableau.b_error_low, 0.0), theirs.E3, rtol=0, atol=1e-15)
    embedded = tuple(np.subtract(tableau.b, tableau.b_error_low))
    assert max(d for k in (1, 2, 3) for d in defects(tableau, embedded, k)) < 1e-14
    assert max(defects(tableau, embedded, 4)) > 1e-2
    assert tableau.error_order_low == 3
    assert tableau.estimate_order == theirs.error_estimator_order

    problem, t, dt, scale = PROBLEMS["vector"], 0.3, 0.25, np.array([1e-6, 3e-6])
    solver = theirs(problem.slope, t, problem.solution(t), t + dt, first_step=dt, rtol=1, atol=1)
    solver.step()
    slopes = one_step(tableau, problem, t, dt)[0][: len(tableau.c)]
    high, low = (
        np.mean((dt * np.dot(weights, slopes) / scale) ** 2)
        for weights in (tableau.b_error, tableau.b_error_low)
    )
    np.testing.assert_allclose(
        high / np.sqrt(high + 0.01 * low),
        solver._estimate_error_norm(solver.K, dt, scale),
        rtol=1e-5,  # the error is small, and has lost digits to cancellation
    )


def with_cubic(tableau: Tableau, **changes) -> Tableau:
    """Give a tableau the cubic through the values and slopes at both ends of a step."""
    rows = np.outer((*tableau.b, 0.0), HERMITE[2])
    rows[0] += HERMITE[0]
    rows[-1] += HERMITE[1]
    fields = {"interpolant": tuple(map(tuple, rows)), "interpolant_order": 3, **changes}
    return dataclasses.replace(tableau, **fields)


def test_any_method_may_have_a_cubic():
    """Its last slope is that at the end of the step, since these methods do not evaluate it."""
    cubic = with_cubic(tableaus.RK4)
    assert cubic.slopes == 5
    assert interpolation_order(cubic, PROBLEMS["vector"]) == pytest.approx(3, abs=0.2)
    euler = with_cubic(tableaus.EULER, interpolant_order=1)
    assert interpolation_order(euler, PROBLEMS["vector"]) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", DENSE)
def test_weights_at_both_ends(name):
    tableau = DENSE[name]
    ends = tableau.weights_at(np.array([0.0, 1.0]))
    assert ends.shape == (2, tableau.slopes)
    assert not ends[0].any()
    b = np.pad(tableau.b, (0, tableau.slopes - len(tableau.b)))
    np.testing.assert_allclose(ends[1], b, rtol=0, atol=1e-12)


def test_slopes_of_the_interpolants():
    assert {name: tableau.slopes for name, tableau in DENSE.items()} == {
        "bosh3": 4,
        "dopri5": 7,
        "tsit5": 7,
        "dop853": 16,
    }
    with pytest.raises(ValueError, match="no interpolant"):
        tableaus.RK4.weights_at(np.array([0.5]))


BOSH3 = tableaus.BOGACKI_SHAMPINE
CUBIC = np.array(BOSH3.interpolant)
INVALID = {
    "belong together": {"interpolant_order": None},
    "there is none": {
        "interpolant": None,
        "interpolant_order": None,
        "extra": ((0.0, (0.0,) * 4),),
    },
    "3 entries for 4 slopes": {"extra": ((0.0, (0.0,) * 3),)},
    "sum to its time 0.5": {"extra": ((0.5, (0.0,) * 4),)},
    "needs 4 rows": {"interpolant": BOSH3.interpolant[:3]},
    "of one length": {"interpolant": (*BOSH3.interpolant[:3], (0.0, -1.0))},
    "b_j.s. = s": {"interpolant": tuple(map(tuple, 2 * CUBIC))},
    "weights b at s = 1": {"interpolant": tuple(map(tuple, CUBIC[[0, 2, 1, 3]]))},
    "slope k_0 at s = 0": {"interpolant": ((2 / 9,), (1 / 3,), (4 / 9,), (0.0,))},
    "end of the step at s = 1": {
        "interpolant": ((1, -7 / 9), (0, 1 / 3), (0, 4 / 9), (0, 0)),
    },
    "give that, too": {"b_error": None, "error_order": None, "b_error_low": BOSH3.b_error},
    "3 error weights for 4 stages": {"b_error_low": (0.5, -0.25, -0.25)},
    "must sum to 0": {"b_error_low": (float("nan"),) * 4},
    "b_error_low and error_order_low": {"b_error_low": BOSH3.b_error},
}


@pytest.mark.parametrize("message", INVALID)
def test_inconsistent_tableaus_raise(message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BOSH3, **INVALID[message])
