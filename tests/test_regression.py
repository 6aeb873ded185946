"""Orders and floors of curves: exact curves, simulated ones, and those of sdekit's own methods."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orders import HIGH, LOW, process_scale
from scipy.special import stdtrit

import sdekit as sk
from sdekit.bench.measurements import ADAPTIVE, Measurement, ProblemCard, Results, Setting
from sdekit.bench.regression import estimate, orders
from sdekit.bench.repetitions import geometric_mean, repeated

NFE = (6, 8, 10, 15, 20, 31, 40, 61, 80, 120, 200, 400)  # as a benchmark takes them
SHORT = NFE[:10]


# --- curves that are exactly known ---------------------------------------------------------------


@given(
    p=st.floats(0.5, 8),
    constant=st.floats(1e-3, 1e3),
    n=st.lists(st.integers(2, 1000), min_size=4, max_size=12, unique=True),
    seed=st.integers(0, 99),
)
def test_a_power_law_is_found_whatever_the_order_of_its_points(p, constant, n, seed):
    n = sorted(n)
    n[-1] = max(n[-1], 2 * n[0])
    shuffled = np.random.default_rng(seed).permutation(n).tolist()
    found = estimate(shuffled, [constant * k**-p for k in shuffled])
    assert found.order == pytest.approx(p, abs=1e-8)
    assert found.order_se == pytest.approx(0, abs=1e-6)
    assert found.constant == pytest.approx(constant, rel=1e-6)
    assert (found.first, found.last, found.points) == (pytest.approx(n[0]), n[-1], len(n))
    assert found.floor is None
    assert found.verdict.endswith(f" ± 0.00 from {n[0]} to {n[-1]:.4g} evaluations")


def test_errors_of_the_same_evaluations_are_averaged_and_failures_left_out():
    n = np.array(NFE)
    e = 3.0 * n**-2.0
    factor = 1.5
    found = estimate([*n, *n, 7], [*(e * factor), *(e / factor), None])
    assert found.order == pytest.approx(2, abs=1e-10)
    assert found.constant == pytest.approx(3, rel=1e-9)
    assert found.points == len(n)


def test_what_comes_before_the_asymptotic_regime_is_dropped():
    n = np.array(NFE, dtype=float)
    e = np.where(n < 30, 0.5 * (n / 30) ** -0.3, 0.5 * (n / 30) ** -3.0)
    found = estimate(n, e)
    assert abs(found.order - 3) <= 2 * found.order_se <= 0.3
    assert found.first >= 20
    assert found.last == pytest.approx(400)
    # So is the part where the slope still changes, by little but significantly.
    found = estimate(n, n**-2.0 * (1 + 20 / n))
    assert abs(found.order - 2) <= 2 * found.order_se <= 0.22
    assert found.first >= 40
    steep = np.where(n < 30, 0.5 * (n / 30) ** -6.0, 0.5 * (n / 30) ** -2.0)
    assert estimate(n, steep).order == pytest.approx(2, abs=0.1)


def test_a_plateau_is_the_floor_and_no_part_of_the_order():
    n = np.array(NFE, dtype=float)
    rng = np.random.default_rng(0)
    level = 1e-6
    inside, ratios = 0, []
    for _ in range(60):
        noise = np.exp(0.2 * rng.normal(size=len(n)))
        found = estimate(n, np.hypot(n**-4.0, level * noise))
        if found.floor is None:  # where the noise happens to fall all the way
            continue
        inside += abs(found.floor - level) <= 2 * found.floor_se
        ratios.append(found.floor / level)
        assert found.last is None or found.last**-4.0 >= 2.8 * found.floor
    assert len(ratios) >= 57
    assert inside >= 0.85 * len(ratios)
    assert np.median(ratios) == pytest.approx(1, abs=0.1)
    # Without a plateau there is none, but for the one that is given.
    assert estimate(n, n**-4.0).floor is None
    told = estimate(n, n**-4.0, floor=1e-8)
    assert (told.floor, told.floor_se) == (1e-8, None)
    assert told.last == 61  # 80⁻⁴ is below three times the floor


def test_points_close_to_a_known_floor_are_not_used():
    n = np.array(NFE, dtype=float)
    level = 1e-4
    found = estimate(n, np.hypot(n**-2.0, level), floor=level)
    assert found.last == 40
    assert abs(found.order - 2) <= 2 * found.order_se
    assert found.order_se < 0.1


def test_one_point_that_has_stopped_to_fall_is_not_used_either():
    n = np.array(NFE, dtype=float)
    e = n**-3.0
    e[-1] = e[-2]
    found = estimate(n, e)
    assert found.order == pytest.approx(3, abs=0.01)
    assert found.last <= 200


def test_known_errors_of_errors_give_the_standard_error_of_weighted_least_squares():
    n = np.array(NFE, dtype=float)
    e = n**-2.0
    relative = np.linspace(0.02, 0.3, len(n))
    found = estimate(n, e, errors_of_errors=relative * e)
    x, w = np.log(n), relative**-2.0
    spread = (w * (x - (w * x).sum() / w.sum()) ** 2).sum()
    widened = stdtrit(len(n) - 2, 0.975) / 2
    assert found.order == pytest.approx(2, abs=1e-10)
    assert found.order_se == pytest.approx(widened * spread**-0.5, rel=1e-6)


def test_points_that_are_known_better_weigh_more():
    n = np.array(NFE, dtype=float)
    rng = np.random.default_rng(1)
    relative = np.geomspace(0.01, 0.3, len(n))
    errors = [n**-2.0 * np.exp(relative * rng.normal(size=len(n))) for _ in range(60)]
    blind = [estimate(n, e).order for e in errors]
    knowing = [estimate(n, e, errors_of_errors=relative * e).order for e in errors]

    def miss(found):
        return np.sqrt(np.mean([(p - 2) ** 2 for p in found if p is not None]))

    assert sum(p is not None for p in knowing) >= 55
    assert miss(knowing) < 0.7 * miss(blind)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "e", "floor", "reason"),
    [
        ([5, 10, 20], [1, 0.5, 0.25], None, "3 points, and it takes 4"),
        ([], [], None, "0 points"),
        ([10, 12, 14, 16], [1, 0.7, 0.5, 0.4], None, "span a factor of 1.60, and it takes 2"),
        (NFE, [1e-9] * 12, 1e-9, "all errors are below 3 times the floor"),
        (NFE, [0.0] * 12, None, "all errors are below 3 times the floor"),
        (NFE, [n**-2.0 for n in NFE], 2e-3, "3 points above 3 times the floor"),
        (NFE, [0.3] * 12, None, "the errors do not fall"),
        (NFE, [n**0.5 for n in NFE], None, "the errors do not fall"),
        (NFE, [math.exp(-0.2 * n) for n in NFE], None, "the curve is not straight"),
        (NFE, [n**-2.0 * 3.0 ** (-1) ** k for k, n in enumerate(NFE)], None, "the points scatter"),
    ],
)
def test_what_does_not_support_an_order_is_refused(n, e, floor, reason):
    found = estimate(n, e, floor=floor)
    assert found.order is found.order_se is found.constant is found.first is None
    assert found.points == 0
    assert found.verdict.startswith("no order: ")
    assert reason in found.verdict


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1.0]), "2 counts of evaluations, 1 errors"),
        (([0, 2], [1.0, 1.0]), "positive and finite"),
        (([1, 2], [1.0, math.nan]), "not negative"),
        (([1, 2], [1.0, -1.0]), "not negative"),
    ],
)
def test_what_is_no_curve_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimate(*arguments)


# --- simulated curves ----------------------------------------------------------------------------


def simulated(noise: float, floors: str, *, count: int = 100, seed: int = 0):
    """Estimates of ``C (n⁻ᵖ + b n⁻ᵖ⁻¹)`` with noise, and with floors that are known, or are not."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(count):
        n = np.array(NFE if k % 2 else SHORT, dtype=float)
        p = int(rng.integers(1, 5))
        b = rng.uniform(-0.8, 1) * (2 if k % 4 < 2 else 8)
        e, level = np.abs(n**-p * (1 + b / n)), None
        if floors:
            part = rng.uniform(0.5, 0.95)
            level = math.exp(-p * (part * math.log(n[-1]) + (1 - part) * math.log(n[0])))
            e = np.hypot(e, level * np.exp(0.3 * rng.normal(size=len(n))))
        e = e * np.exp(noise * rng.normal(size=len(n)))
        found.append((p, estimate(n, e, floor=level if floors == "known" else None)))
    return found


@pytest.mark.parametrize(
    ("noise", "floors", "answered", "covered"),
    [
        (0.0, "", 0.99, 0.99),
        (0.03, "", 0.99, 0.90),
        (0.1, "", 0.94, 0.90),
        (0.3, "", 0.55, 0.90),
        (0.0, "known", 0.75, 0.78),
        (0.1, "known", 0.5, 0.85),
        (0.03, "unknown", 0.6, 0.80),
    ],
)
def test_two_standard_errors_are_95_percent_or_nearly(noise, floors, answered, covered):
    found = [(p, e) for p, e in simulated(noise, floors) if e.order is not None]
    misses = np.array([abs(e.order - p) for p, e in found])
    assert len(found) >= answered * 100
    assert (
        np.mean([m <= 2 * e.order_se for m, (_, e) in zip(misses, found, strict=True)]) >= covered
    )
    assert np.mean(misses > 0.5) <= 0.05
    assert max(e.order_se for _, e in found) <= 0.25


def test_noise_has_no_order():
    rng = np.random.default_rng(3)
    found = [estimate(NFE, np.exp(rng.normal(size=len(NFE)))) for _ in range(100)]
    assert sum(e.order is not None for e in found) <= 5


# --- sdekit's own methods ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "order"),
    # Adams of order 3 with its corrector is of order 4 once it has started.
    [("ddim", 1), ("heun", 2), ("adams3", 4), ("rk4_theta", 4)],
)
def test_methods_of_sdekit_have_the_orders_they_declare(product, method, order):
    process = sk.VP()
    x_hat = product.sample(16, HIGH, seed=1)
    exact = product.flow(x_hat, HIGH, LOW)
    start, end = process_scale(process, HIGH), process_scale(process, LOW)
    nfe, errors = [], []
    for steps in (8, 12, 16, 24, 32, 48, 64, 96):
        sigmas = sk.grids.log(steps, HIGH, LOW, process)
        sol = sk.solve(
            process.probability_flow(product), x_hat * start, method=method, sigmas=sigmas
        )
        nfe.append(sol.nfe)
        errors.append(float((sol.x / end - exact).square().mean().sqrt()))
    found = estimate(nfe, errors, floor=1e-14)
    assert found.order is not None, found.verdict
    assert abs(found.order - order) <= 2 * found.order_se
    assert found.order_se <= 0.25


# --- results -------------------------------------------------------------------------------------


def measurement(
    problem, method, grid, budget, error, *, seed=0, rtol=None, nfe=None, package="sdekit"
):
    setting = Setting(problem, method, grid, budget, rtol, 16, seed)
    nfe = budget if nfe is None else nfe
    return Measurement(setting, package, nfe, round(nfe), round(nfe), {"rms": error})


def results(measurements, floors=None):
    names = dict.fromkeys(m.setting.problem for m in measurements)
    cards = {
        n: ProblemCard(n, f"title of {n}", (2,), 80.0, 0.002, floors=floors or {}) for n in names
    }
    return Results("test", {}, cards, tuple(measurements))


def test_orders_takes_seeds_together_and_fixed_grids_only():
    rng = np.random.default_rng(0)
    rows = [
        measurement("a", "heun", grid, n, n**-p * math.exp(0.1 * rng.normal()), seed=seed)
        for grid, p in (("karras", 2.0), ("log", 3.0))
        for n in NFE
        for seed in range(4)
    ]
    rows += [
        measurement("a", "dopri5", ADAPTIVE, None, 1e-3, rtol=10.0**-k, nfe=10 * k)
        for k in range(1, 8)
    ]
    rows += [measurement("a", "ddim", "log", n, None if n == 40 else 1 / n) for n in NFE]
    found = orders(results(rows), "rms")
    assert [(r.problem, r.method, r.grid) for r in found] == [
        ("a", "heun", "karras"),
        ("a", "heun", "log"),
        ("a", "ddim", "log"),
    ]
    for row, p in zip(found, (2, 3, 1), strict=True):
        assert abs(row.estimate.order - p) <= max(2 * row.estimate.order_se, 1e-9)
        assert row.package == "sdekit"
    assert found[1].label == "heun @ log"
    assert found[2].estimate.points == len(NFE) - 1
    # The floor of the problem ends the window.
    (row,) = orders(results(rows[-12:], {"rms": 1 / 70}), "rms")
    assert row.estimate.last == 20
    assert orders(results(rows), "w2") == []


def test_orders_of_seeds_are_known_as_well_as_their_spread_says():
    # Four seeds whose logarithms are y ± 0.2 and y ± 0.1: the mean is exact, its error is not nought.
    logs = np.array([-0.2, -0.1, 0.1, 0.2])
    rows = [
        measurement("a", "heun", "log", n, n**-2.0 * math.exp(logs[seed]), seed=seed)
        for n in NFE
        for seed in range(4)
    ]
    (row,) = orders(results(rows), "rms")
    x = np.log(NFE)
    of_mean = logs.std(ddof=1) / 2
    expected = of_mean / math.sqrt(((x - x.mean()) ** 2).sum()) * stdtrit(10, 0.975) / 2
    assert row.estimate.order == pytest.approx(2, abs=1e-9)
    assert row.estimate.order_se == pytest.approx(expected, rel=1e-6)


def test_repetitions_are_geometric_means_and_fail_together():
    rows = [measurement("a", "m", "g", 8, e, seed=k) for k, e in enumerate((1e-2, 1e-4))]
    rows += [measurement("a", "m", "g", 10, e, seed=k) for k, e in enumerate((1e-2, None))]
    both, one = repeated(rows, "rms")
    assert both.error == pytest.approx(1e-3)
    assert both.deviation == pytest.approx(math.log(100) / math.sqrt(2))
    assert both.by_seed == {0: 1e-2, 1: 1e-4}
    assert one.error is None
    assert one.deviation is None
    assert geometric_mean([0.0, 1.0]) == 0
    assert geometric_mean([]) is None
