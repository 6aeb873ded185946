"""Weak orders of stochastic methods on a mixture in one dimension.

Without Monte Carlo for schemes of one step: the expectation of a function is carried backward through
the steps by quadrature (theory 4.11b). Schemes that remember are compared with one of those on the
same path.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from noise_sources import Silent
from numpy.polynomial import chebyshev, hermite_e, legendre
from orders import measure_order
from stochastic_errors import STOCHASTIC, Modes, levels, remembers, reverse_coordinates, solved

import sdekit as sk
from sdekit.solvers.registry import Solver
from sdekit.solvers.stochastic_rk import SPARK, StochasticRK
from sdekit.theory.noises import Recorded

HIGH, LOW = 3.0, 0.3
DATA = Modes([1.0], [0.15], [0.2])
DEGREE = 64
STEPS = {"seeds_3": (24, 40, 64)}  # where the order shows later than for the others
FUNCTIONS = (
    lambda x: np.cos(1.3 * x),
    lambda x: np.sin(x),
    lambda x: x**2,
    lambda x: np.exp(-2 * (x - 0.3) ** 2),
)


def width(sigma: float) -> float:
    """Beyond it states have a probability below 1e-9."""
    return 3.0 + 6.0 * sigma


def components(sigma: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Weights, means and variance of the law at a noise level."""
    mean, odds = float(DATA.mean), float(DATA.odds)
    weight = 1 / (1 + np.exp(-2 * odds))
    return np.array([weight, 1 - weight]), np.array([mean, -mean]), float(DATA.variance) + sigma**2


def density(x: np.ndarray, sigma: float) -> np.ndarray:
    weights, means, variance = components(sigma)
    bells = np.exp(-((x[:, None] - means) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    return bells @ weights


def exact_expectations(x: np.ndarray) -> np.ndarray:
    """``E φ(x_LOW)`` for every function, given states at HIGH: the transition is a mixture, too."""
    weights, means, variance = components(HIGH)
    joint = weights * np.exp(-((x[:, None] - means) ** 2) / (2 * variance))
    shrunk = components(LOW)[2] / variance
    centres = means + shrunk * (x[:, None] - means)
    z, w = hermite_e.hermegauss(80)
    y = centres[..., None] + np.sqrt((HIGH**2 - LOW**2) * shrunk) * z
    values = np.stack([f(y) @ (w / w.sum()) for f in FUNCTIONS])
    return (values * joint).sum(-1) / joint.sum(-1)


def rules(draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Hermite nodes and weights of the draws of a step; the first has the largest part."""
    counts = {0: [1], 1: [12], 2: [10, 6], 3: [6, 5, 5]}[draws]
    grids = [hermite_e.hermegauss(count) for count in counts]
    nodes = np.array([*itertools.product(*(z for z, _ in grids))]).T[:draws]
    weights = np.array([np.prod(w) for w in itertools.product(*(w for _, w in grids))])
    kept = weights > 1e-11 * weights.sum()
    return nodes[:, kept], weights[kept] / weights[kept].sum()


def expectations(solver: Solver, n: int) -> np.ndarray:
    """Chebyshev coefficients of ``E φ`` of the result of a one-step scheme, given the start."""
    sigmas, probe = levels(solver, n, HIGH, LOW), Silent()
    solved(solver, DATA, torch.zeros((1, 1), dtype=torch.float64), sigmas[:2], probe)
    nodes, weights = rules(probe.draws)
    normals = torch.from_numpy(np.tile(nodes, (1, DEGREE)))[..., None]
    z = np.cos(np.pi * (np.arange(DEGREE) + 0.5) / DEGREE)
    inverse = np.linalg.inv(chebyshev.chebvander(z, DEGREE - 1))
    coefficients = np.empty(0)
    for k in reversed(range(n)):
        here, there = sigmas[k : k + 2]
        x = torch.from_numpy(np.repeat(z * width(here), len(weights)))[:, None]
        y = solved(solver, DATA, x, sigmas[k : k + 2], Recorded(normals))[:, 0].numpy()
        if k == n - 1:
            values = np.stack([f(y) for f in FUNCTIONS])
        else:
            values = chebyshev.chebval(np.clip(y / width(there), -1, 1), coefficients)
        coefficients = inverse @ (values.reshape(len(FUNCTIONS), DEGREE, -1) @ weights).T
    return coefficients


@functools.cache
def mixture_errors(name: str, n: int) -> tuple[float, float]:
    """Weak errors: for a start at a point, in the mean square over points; and for all at once."""
    solver = STOCHASTIC[name]
    if isinstance(solver.scheme, sk.Churn):  # of one step of n
        churn = sk.Churn(solver.scheme.scheme, s_churn=3 / n, s_min=0, s_max=np.inf, s_noise=1)
        solver = dataclasses.replace(solver, scheme=churn)
    z, w = legendre.leggauss(200)
    x = z * width(HIGH)
    error = chebyshev.chebval(z, expectations(solver, n)) - exact_expectations(x)
    w = w * width(HIGH) * density(x, HIGH)
    return float(np.sqrt((error**2 @ w).mean())), float(np.sqrt(((error @ w) ** 2).mean()))


ONE_STEP = [
    name
    for name, solver in STOCHASTIC.items()
    if not remembers(solver) and not isinstance(solver.scheme, sk.Restart)
]


@pytest.mark.parametrize("name", ONE_STEP)
def test_weak_order_on_a_mixture(name):
    """Noise between steps of the flow is exact in law: started in the law, it has the flow's order."""
    scheme, steps = STOCHASTIC[name].scheme, STEPS.get(name, (16, 28, 48))
    if (
        not isinstance(scheme, sk.Churn) and name != "er_sde_1"
    ):  # who share but the law with the SDE
        order = measure_order(lambda n: mixture_errors(name, n)[0], steps)
        assert order == pytest.approx(scheme.weak_order, abs=0.25)
    between = isinstance(scheme, sk.Ancestral) and not scheme.large
    expected = scheme.scheme.order if between else scheme.weak_order
    order = measure_order(lambda n: mixture_errors(name, n)[1], steps)
    assert order == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("share", [1 / 2, 1 / 3])
def test_weak_order_of_restart_on_a_mixture(share):
    """Its noise is drawn once, so that quadrature over start and noise is enough.

    Where the grid does not go through the interval's lower end, the law is none the worse.
    """
    low, top = HIGH * (LOW / HIGH) ** share, 2.0
    z, w = hermite_e.hermegauss(60)
    p, q = legendre.leggauss(150)
    x, q = p * width(HIGH), q * width(HIGH)
    q = q * density(x, HIGH)
    start = torch.from_numpy(np.repeat(x, len(z)))[:, None]
    numbers = torch.from_numpy(np.tile(z, len(x)))[None, :, None]

    def error(n: int) -> float:
        scheme = sk.Restart(sk.RungeKutta(sk.tableaus.HEUN), [(low, top, n // 2, 1)])
        solver = dataclasses.replace(STOCHASTIC["restart"], scheme=scheme)
        sigmas = sk.grids.log(n, HIGH, LOW)
        y = solved(solver, DATA, start, sigmas, Recorded(numbers))[:, 0].numpy()
        values = np.stack([f(y) for f in FUNCTIONS]).reshape(len(FUNCTIONS), len(x), -1)
        difference = values @ (w / w.sum()) - exact_expectations(x)
        return float(np.sqrt(((difference @ q) ** 2).mean()))

    assert measure_order(error, (16, 32, 64)) == pytest.approx(2.0, abs=0.25)


# --- schemes that remember ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "batch"),
    [
        ("sde_dpmpp_2m", (8, 14, 24), 200_000),
        ("sea_m", (16, 32, 64), 20_000),
        ("sea_m_theta", (32, 64, 128), 40_000),
        ("sea_w", (8, 14, 24), 100_000),
    ],
)
def test_weak_order_of_schemes_that_remember(name, steps, batch):
    """Their results less those of SPaRK on the same path, whose own error is known by quadrature.

    What is left to sampling is as small as the strong error: the standard error, which is computed,
    is less than an eighth of what is measured.
    """
    solver = STOCHASTIC[name]
    known = dataclasses.replace(solver, scheme=StochasticRK(SPARK))
    coordinates = reverse_coordinates(known)
    start, clock = DATA.sample(batch, HIGH, seed=0), coordinates.noise_clock
    z, w = legendre.leggauss(200)
    x, w = z * width(HIGH), w * width(HIGH)
    w = w * density(x, HIGH)

    def error(n: int) -> float:
        sigmas = sk.grids.log(n, HIGH, LOW)
        times = coordinates.noise_time(sigmas)
        path = sk.GridPath(times, tuple(start.shape), seed=0, clock=clock)
        ends = [solved(s, DATA, start, sigmas, path)[:, 0].numpy() for s in (solver, known)]
        differences = np.stack([f(ends[0]) - f(ends[1]) for f in FUNCTIONS])
        own = chebyshev.chebval(z, expectations(known, n)) - exact_expectations(x)
        size = np.sqrt(((differences.mean(1) + own @ w) ** 2).mean())
        assert np.sqrt(differences.var(1).mean() / batch) < size / 8
        return float(size)

    assert measure_order(error, steps) == pytest.approx(2.0, abs=0.25)
