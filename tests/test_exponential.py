"""Exponential Runge–Kutta: φ-functions, orders, damage, and the formulas of the papers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from orders import NotResolved, flow_order, measure_order

import sdekit as sk
from sdekit.solvers import exponential as ex
from sdekit.solvers.adams import Adams
from sdekit.solvers.registry import Solver

DATA, NOISE = sk.LogData(), sk.LogNoise()
TABLEAUS = {
    "dpm_solver_1": ex.dpm_solver_1(),
    "dpm_solver_2": ex.dpm_solver_2(),
    "dpm_solver_2(0.3)": ex.dpm_solver_2(0.3),
    "dpm_solver_3": ex.dpm_solver_3(),
    "dpm_solver_3(1/2, 3/4)": ex.dpm_solver_3(1 / 2, 3 / 4),
    "res_2s": ex.res_2s(),
    "res_3s": ex.res_3s(),
    "res_3s(1/4, 3/5)": ex.res_3s(1 / 4, 3 / 5),
    "etd_rk4": ex.etd_rk4(),
}
STEPS = [12, 16, 24, 32, 48]


def solver(tableau: ex.ExponentialTableau, coordinates: sk.Coordinates) -> Solver:
    return Solver(ex.ExponentialRK(tableau), coordinates, sk.grids.log)


def exact_phi(k: int, z: float) -> Decimal:
    """Taylor's series with as many digits as it takes."""
    with localcontext() as context:
        context.prec = 700
        x = Decimal(z)
        total, term, n = Decimal(0), Decimal(1) / math.factorial(k), 0
        while n < 6 * abs(z) + 50:
            total += term
            n += 1
            term *= x / (n + k)
        return total


@pytest.mark.parametrize("k", range(6))
def test_phi_has_full_precision(k):
    """To a few units of round-off, near 0, where formulas switch, and for steps of any length."""
    size = [1e-300, 1e-17, 1e-8, 1e-3, 0.1, 0.5, 1.0, 2.0, 3.7, 7.0, 25.0, 100.1, 700.0]
    switch = 2 * k + 8
    size += [np.nextafter(switch, 0), switch, np.nextafter(switch, 99), switch + 1.3]
    z = np.array([0.0, *size, *np.negative(size)])
    exact = [exact_phi(k, v) for v in z.tolist()]
    error = [abs(Decimal(v) / e - 1) for v, e in zip(ex.phi(k, z).tolist(), exact, strict=True)]
    assert max(error) < 6 * np.finfo(float).eps
    assert ex.phi(k, np.zeros((2, 3))).shape == (2, 3)


@pytest.mark.parametrize("law", ["product", "gaussian"])
@pytest.mark.parametrize("coordinates", [DATA, NOISE], ids=["data", "noise"])
@pytest.mark.parametrize("name", TABLEAUS)
def test_order(name, coordinates, law, request):
    """No cancellation on Gaussian data: both laws show the declared order."""
    measured = flow_order(
        solver(TABLEAUS[name], coordinates),
        request.getfixturevalue(law),
        sk.EDM(),
        steps=STEPS,
        batch=16,
    )
    assert measured == pytest.approx(TABLEAUS[name].order, abs=0.15)


def altered(tableau: ex.ExponentialTableau, row: int, entries: list) -> ex.ExponentialTableau:
    """The tableau with other entries in a row, made without the checks of the constructor."""
    rows = [*tableau.a, tableau.b]
    rows[row] = tuple(tuple(entry) for entry in entries)
    broken = object.__new__(ex.ExponentialTableau)
    values = {**vars(tableau), "a": tuple(rows[:-1]), "b": rows[-1]}
    for field in dataclasses.fields(tableau):
        object.__setattr__(broken, field.name, values[field.name])
    return broken


def damaged(tableau: ex.ExponentialTableau):
    """Every tableau with one coefficient halved, and with the half given to the row's first entry.

    The second keeps the sums of rows, which the constructor would refuse the first for.
    """
    for row, entries in enumerate([*tableau.a, tableau.b]):
        for j, entry in enumerate(entries):
            for i, (coefficient, k, c) in enumerate(entry):
                changed = [list(e) for e in entries]
                changed[j][i] = (coefficient / 2, k, c)
                yield altered(tableau, row, changed)
                if j:
                    changed[0].append((coefficient / 2, k, c))
                    yield altered(tableau, row, changed)


@pytest.mark.parametrize(
    "name", ["dpm_solver_1", "dpm_solver_2(0.3)", "dpm_solver_3", "res_3s(1/4, 3/5)", "etd_rk4"]
)
def test_a_damaged_coefficient_is_caught(name, product):
    """Halving any one coefficient, or moving the half to another slope, makes the order fail."""
    options = {"steps": [8, 12, 16], "batch": 4}
    tableau = TABLEAUS[name]
    whole = flow_order(solver(tableau, DATA), product, sk.EDM(), **options)
    assert abs(whole - tableau.order) < 0.3
    for broken in damaged(tableau):
        try:
            order = flow_order(solver(broken, DATA), product, sk.EDM(), **options)
        except NotResolved:
            continue
        assert abs(order - tableau.order) > 0.4, broken


def res_3s(c2: float, c3: float, power: int) -> ex.ExponentialTableau:
    """The method written out, with ``c3^power`` in γ: 2 in the paper, 3 in RES4LYF."""
    gamma = (3 * c3**power - 2 * c3) / (c2 * (2 - 3 * c2))
    b3 = 1 / (gamma * c2 + c3)
    a32 = ((gamma * c2, 2, c2), (c3**2 / c2, 2, c3))
    a31 = ((c3, 1, c3), *((-w, k, c) for w, k, c in a32))
    b1 = ((1.0, 1, 1.0), (-(1 + gamma) * b3, 2, 1.0))
    b = (b1, ((gamma * b3, 2, 1.0),), ((b3, 2, 1.0),))
    return ex.ExponentialTableau((0.0, c2, c3), ((((c2, 1, c2),),), (a31, a32)), b, order=3)


@pytest.mark.parametrize("coordinates", [DATA, NOISE], ids=["data", "noise"])
def test_a_misprint_in_res_costs_an_order(coordinates, product):
    """With ``c3³`` the order is 2, but for ``c3 = 1``, where no test can tell."""

    def order(c2: float, c3: float, power: int) -> float:
        tableau = res_3s(c2, c3, power)
        return flow_order(
            solver(tableau, coordinates), product, sk.EDM(), steps=[16, 32, 64], batch=8
        )

    assert order(1 / 4, 3 / 5, 2) == pytest.approx(3, abs=0.15)
    assert order(1 / 4, 3 / 5, 3) == pytest.approx(2, abs=0.15)
    assert order(1 / 2, 1.0, 3) == pytest.approx(3, abs=0.15)


def test_first_order_is_ddim_to_the_last_bit(product):
    """DPM-Solver-1, Euler in σ, which is DDIM, and Adams of one slope are one method."""
    process = sk.VP()
    flow = process.probability_flow(product)
    x = process.prior_sample((16, 3), seed=0, dtype=torch.float64)
    sigmas = sk.grids.uniform_t(13, process.sigma_max, process.sigma_min, process)

    def run(scheme: sk.Scheme, coordinates: sk.Coordinates) -> torch.Tensor:
        return sk.solve(flow, x, method=Solver(scheme, coordinates, sk.grids.log), sigmas=sigmas).x

    first = run(ex.ExponentialRK(ex.dpm_solver_1()), NOISE)
    assert torch.equal(first, run(sk.RungeKutta(sk.tableaus.EULER), sk.Noise()))
    assert torch.equal(first, sk.solve(flow, x, method="euler", sigmas=sigmas).x)
    assert torch.equal(first, run(Adams(1), NOISE))
    data = run(ex.ExponentialRK(ex.dpm_solver_1()), DATA)
    assert torch.equal(data, run(Adams(1), DATA))
    torch.testing.assert_close(data, first, rtol=0, atol=1e-13)


class Paper:
    """A VP process in the papers' variables ``α, σ, λ``, with ``ε`` and ``x_0`` of a known law."""

    def __init__(self, law) -> None:
        self.law, self.process = law, sk.VP()

    def __call__(self, lam: float) -> tuple[float, float]:
        """``α`` and ``σ`` at ``λ``."""
        t = self.process.on_host("time", np.array([np.exp(-lam)]))
        alpha = float(self.process.on_host("scale", t)[0])
        return alpha, alpha * np.exp(-lam)

    def x0(self, x: torch.Tensor, lam: float) -> torch.Tensor:
        alpha, sigma = self(lam)
        return self.law.denoise(x / alpha, sigma / alpha)

    def eps(self, x: torch.Tensor, lam: float) -> torch.Tensor:
        alpha, sigma = self(lam)
        return (x - alpha * self.x0(x, lam)) / sigma


def ddim(p: Paper, x, s, t):
    (a_s, _), (a_t, _) = p(s), p(t)
    return a_t / a_s * x - p(t)[1] * np.expm1(t - s) * p.eps(x, s)


def dpm_2(p: Paper, x, s, t):
    """k-diffusion's: Euler in κ = σ/α to the geometric mean, and the slope there for all."""
    y, middle = x / p(s)[0], (s + t) / 2
    k_s, k_m, k_t = np.exp(-s), np.exp(-middle), np.exp(-t)
    y_m = y + (k_m - k_s) * p.eps(x, s)
    return p(t)[0] * (y + (k_t - k_s) * p.eps(p(middle)[0] * y_m, middle))


def dpm_solver_2(p: Paper, x, s, t, r=0.3):
    h, m = t - s, s + r * (t - s)
    (a_s, _), (a_m, s_m), (a_t, s_t) = p(s), p(m), p(t)
    e = p.eps(x, s)
    u = a_m / a_s * x - s_m * np.expm1(r * h) * e
    return a_t / a_s * x - s_t * np.expm1(h) * (e + (p.eps(u, m) - e) / (2 * r))


def dpm_solver_3(p: Paper, x, s, t, r1=1 / 3, r2=2 / 3):
    h, l1, l2 = t - s, s + r1 * (t - s), s + r2 * (t - s)
    (a_s, _), (a_1, s_1), (a_2, s_2), (a_t, s_t) = p(s), p(l1), p(l2), p(t)
    e = p.eps(x, s)
    u1 = a_1 / a_s * x - s_1 * np.expm1(r1 * h) * e
    d1 = p.eps(u1, l1) - e
    u2 = a_2 / a_s * x - s_2 * np.expm1(r2 * h) * e
    u2 = u2 - s_2 * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = p.eps(u2, l2) - e
    return a_t / a_s * x - s_t * np.expm1(h) * e - s_t / r2 * (np.expm1(h) / h - 1) * d2


def dpm_solver_pp_2s(p: Paper, x, s, t, r=1 / 2):
    h, m = t - s, s + r * (t - s)
    (_, s_s), (a_m, s_m), (a_t, s_t) = p(s), p(m), p(t)
    d = p.x0(x, s)
    u = s_m / s_s * x - a_m * np.expm1(-r * h) * d
    mixed = (1 - 1 / (2 * r)) * d + p.x0(u, m) / (2 * r)
    return s_t / s_s * x - a_t * np.expm1(-h) * mixed


def dpm_solver_pp_3s(p: Paper, x, s, t, r1=1 / 3, r2=2 / 3):
    h, l1, l2 = t - s, s + r1 * (t - s), s + r2 * (t - s)
    (_, s_s), (a_1, s_1), (a_2, s_2), (a_t, s_t) = p(s), p(l1), p(l2), p(t)
    d = p.x0(x, s)
    u1 = s_1 / s_s * x - a_1 * np.expm1(-r1 * h) * d
    d1 = p.x0(u1, l1) - d
    u2 = s_2 / s_s * x - a_2 * np.expm1(-r2 * h) * d
    u2 = u2 + a_2 * r2 / r1 * (np.expm1(-r2 * h) / (r2 * h) + 1) * d1
    d2 = p.x0(u2, l2) - d
    return s_t / s_s * x - a_t * np.expm1(-h) * d + a_t / r2 * (np.expm1(-h) / h + 1) * d2


def taylor(p: Paper, x, s, t, r=1 / 2):
    """DPM-Solver++(2S) of solver type "taylor"."""
    h, m = t - s, s + r * (t - s)
    (_, s_s), (a_m, s_m), (a_t, s_t) = p(s), p(m), p(t)
    d = p.x0(x, s)
    u = s_m / s_s * x - a_m * np.expm1(-r * h) * d
    change = (p.x0(u, m) - d) / r
    return s_t / s_s * x - a_t * np.expm1(-h) * d + a_t * (np.expm1(-h) / h + 1) * change


PAPERS = {
    "DDIM": (ddim, ex.dpm_solver_1(), NOISE),
    "dpm_2": (dpm_2, ex.dpm_solver_2(), NOISE),
    "DPM-Solver-2": (dpm_solver_2, ex.dpm_solver_2(0.3), NOISE),
    "DPM-Solver-3": (dpm_solver_3, ex.dpm_solver_3(), NOISE),
    "DPM-Solver++(2S)": (dpm_solver_pp_2s, ex.dpm_solver_2(), DATA),
    "DPM-Solver++(3S)": (dpm_solver_pp_3s, ex.dpm_solver_3(), DATA),
    "taylor": (taylor, ex.res_2s(), DATA),
}


@pytest.mark.parametrize("name", PAPERS)
def test_formulas_of_the_papers(name, product):
    """The papers' formulas, in their own variables on a VP process, give the same samples."""
    step, tableau, coordinates = PAPERS[name]
    paper = Paper(product)
    process = paper.process
    x = y = process.prior_sample((16, 3), seed=0, dtype=torch.float64)
    sigmas = sk.grids.karras(7, process.sigma_max, 0.02, process)
    lam = -np.log(sigmas)
    for s, t in itertools.pairwise(lam):
        y = step(paper, y, s, t)
    solved = sk.solve(
        process.probability_flow(product), x, method=solver(tableau, coordinates), sigmas=sigmas
    )
    torch.testing.assert_close(solved.x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("coordinates", [DATA, NOISE], ids=["data", "noise"])
def test_flows_can_be_solved_upwards(coordinates, product):
    x = product.sample(16, 0.1, seed=1)
    exact = product.flow(x, 0.1, 3.0)
    flow = sk.EDM().probability_flow(product)

    def error(n: int) -> float:
        sigmas = sk.grids.log(n, 3.0, 0.1)[::-1].copy()
        method = solver(ex.res_3s(), coordinates)
        return float((sk.solve(flow, x, method=method, sigmas=sigmas).x - exact).square().mean())

    assert measure_order(lambda n: error(n) ** 0.5, [32, 64, 128]) == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("coordinates", [DATA, NOISE], ids=["data", "noise"])
@pytest.mark.parametrize(
    ("order", "steps", "expected"),
    [(2, [16, 32, 64], 2), (2, [17, 33, 65], 2), (3, [20, 38, 74], 3), (3, [21, 39, 75], 2)],
)
def test_singlestep_order(order, steps, expected, coordinates, product):
    """Order 3 where no group of one interval ends the grid, else 2, which is what is declared."""
    method = Solver(ex.DPMSinglestep(order), coordinates, sk.grids.log)
    measured = flow_order(method, product, sk.EDM(), steps=steps, batch=16)
    assert measured == pytest.approx(expected, abs=0.3)
    assert method.scheme.order == 2


@pytest.mark.parametrize("coordinates", [DATA, NOISE], ids=["data", "noise"])
def test_singlestep_is_steps_of_dpm_solver(coordinates, product):
    """On a uniform grid the groups are steps of r = 1/2, or 1/3 and 2/3, with an evaluation each."""
    groups = ex.DPMSinglestep(3).groups
    assert [groups(n) for n in (1, 2, 3, 4)] == [[1], [2], [2, 1], [3, 1]]
    assert [groups(n) for n in (9, 10, 11)] == [[3, 3, 2, 1], [3, 3, 3, 1], [3, 3, 3, 2]]
    assert [ex.DPMSinglestep(2).groups(n) for n in (1, 4, 5)] == [[1], [2, 2], [2, 2, 1]]
    flow, x = sk.EDM().probability_flow(product), product.sample(8, 20.0, seed=0)
    sigmas = sk.grids.log(9, 20.0, 0.1)
    method = Solver(ex.DPMSinglestep(3), coordinates, sk.grids.log)
    solved = sk.solve(flow, x, method=method, sigmas=sigmas)
    assert solved.nfe == 9
    y = x
    for tableau, points in (
        (ex.dpm_solver_3(), [0, 3, 6]),
        (ex.dpm_solver_2(), [6, 8]),
        (ex.dpm_solver_1(), [8, 9]),
    ):
        y = sk.solve(flow, y, method=solver(tableau, coordinates), sigmas=sigmas[points]).x
    torch.testing.assert_close(solved.x, y, rtol=0, atol=1e-13)
    differentiable = x.clone().requires_grad_()
    again = sk.solve(flow, differentiable, method=method, sigmas=sigmas).x
    torch.testing.assert_close(again, solved.x, rtol=0, atol=1e-13)


ONE, HALF = ((1.0, 1, 1.0),), ((0.5, 1, 0.5),)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ex.phi(-1, np.zeros(1)), "k = -1"),
        (lambda: ex.dpm_solver_2(0.0), "r = 0.0"),
        (lambda: ex.dpm_solver_3(1 / 3, 1.5), "r2 = 1.5"),
        (lambda: ex.res_2s(-1.0), "c2 = -1.0"),
        (lambda: ex.res_2s(float("nan")), "c2 = nan"),
        (lambda: ex.res_3s(2 / 3, 1.0), "c2 ≠ 2/3"),
        (lambda: ex.res_3s(0.5, 0.5), "c2 ≠ c3"),
        (lambda: ex.DPMSinglestep(4), "order = 4"),
        (lambda: ex.ExponentialTableau((0.0,), (), (ONE, ONE), 1), "rows of 1 … 0 entries"),
        (lambda: ex.ExponentialTableau((0.5,), (), (ONE,), 1), "the first stage is at 0"),
        (lambda: ex.ExponentialTableau((0.0,), (), (HALF,), 1), "must sum to c φ_1"),
        (lambda: ex.ExponentialTableau((0.0, 0.5), ((ONE,),), (ONE, ()), 1), "that of c = 0.5"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("scheme", [ex.ExponentialRK(ex.res_2s()), ex.DPMSinglestep()])
@pytest.mark.parametrize("coordinates", [sk.Noise(), sk.Preconditioned(0.5)], ids=str)
def test_other_coordinates_are_refused(scheme, coordinates, product):
    method = Solver(scheme, coordinates, sk.grids.log)
    x = torch.ones((2, 3), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"LogData\(\) and LogNoise\(\)"):
        sk.solve(sk.EDM().probability_flow(product), x, method=method, steps=3)
