"""Strong orders of all stochastic methods that declare one, on shared Brownian paths.

Each on a mixture and on Gaussian data. Two orders are expected (theory 4.8): 1.5 asks for mixtures, on
which the drift's curvature counts.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from orders import measure_order
from stochastic_errors import (
    END,
    GAUSSIAN,
    GAUSSIAN_STRONG,
    MIXTURE,
    OF_THE_SDE,
    START,
    STOCHASTIC,
    reference,
    reverse_coordinates,
    solved,
    strong_order,
)

import sdekit as sk
from sdekit.solvers.registry import Solver
from sdekit.theory.noises import Recorded

ALONG_PATHS = [name for name, s in STOCHASTIC.items() if not isinstance(s.scheme, sk.Restart)]


@pytest.mark.parametrize("name", ALONG_PATHS)
def test_strong_order_on_a_mixture(name):
    solver = STOCHASTIC[name]
    assert strong_order(solver, MIXTURE) == pytest.approx(solver.scheme.strong_order, abs=0.25)


@pytest.mark.parametrize("name", ALONG_PATHS)
def test_strong_order_on_gaussian_data(name):
    solver = STOCHASTIC[name]
    expected = GAUSSIAN_STRONG.get(name, solver.scheme.strong_order)
    assert strong_order(solver, GAUSSIAN) == pytest.approx(expected, abs=0.25)


VARIED = [
    "stochastic_adams2",
    "sa_solver_3",
    "seeds_3",
    "stochastic_heun_noise",
    "sea",
    "sea_theta",
    "sra1",
    "sra3_theta",
    "sosra_theta",
    "shark_theta",
    "spark",
    "ddim_eta",
    "ddpm",
    "dpm_2_ancestral",
    "euler_maruyama",
    "euler_maruyama_t",
    "reverse_diffusion",
]


@pytest.mark.parametrize(
    ("name", "eta"),
    [*((name, 0.7) for name in VARIED), *((name, 1.4) for name in ("sra3", "shark", "ddim_eta"))],
)
def test_strong_order_for_less_and_for_more_noise(name, eta):
    solver = STOCHASTIC[name]
    measured = strong_order(solver, MIXTURE, eta=eta)
    assert measured == pytest.approx(solver.scheme.strong_order, abs=0.25)


@pytest.mark.parametrize(("low", "order"), [(1 / 2, 2.0), (1 / 3, 1.0)])
def test_restart_follows_the_exact_flow_and_noise(product, low, order):
    """From the level next to the interval's lower end: of order 2 where the grid goes through it."""
    high, end, times = 3.0, 0.1, 2
    low, top = high * (end / high) ** low, 1.5
    x = product.sample(100, high, seed=0)
    z = torch.randn(
        (times, *x.shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    exact = product.flow(x, high, low)
    for k in range(times):
        exact = product.flow(exact + np.sqrt(top**2 - low**2) * z[k], top, low)
    exact = product.flow(exact, low, end)

    def error(n: int) -> float:
        scheme = sk.Restart(sk.RungeKutta(sk.tableaus.HEUN), [(low, top, n // 2, times)])
        solver = Solver(scheme, sk.Noise(), sk.grids.log)
        sigmas = sk.grids.log(n, high, end)
        flow = sk.EDM().probability_flow(product)
        solution = sk.solve(flow, x, method=solver, sigmas=sigmas, noise=Recorded(z))
        return float((solution.x - exact).square().mean().sqrt())

    assert measure_order(error, [32, 64, 128, 256]) == pytest.approx(order, abs=0.25)


# --- one path for all processes -------------------------------------------------------------------

PROCESSES = [sk.VP(), sk.VE(0.01, 50.0), sk.SubVP(), sk.EDM()]
BY_PROCESS = [  # the process's own time, or its scale, counts
    name
    for name in OF_THE_SDE
    if isinstance(STOCHASTIC[name].coordinates, sk.Native) or name == "ddpm"
]


@pytest.mark.parametrize("name", [name for name in OF_THE_SDE if name not in BY_PROCESS])
def test_all_processes_have_the_same_samples(name):
    """Schemes of the unscaled state know nothing of the process."""
    solver, x_hat = STOCHASTIC[name], MIXTURE.sample(8, START, seed=0)
    sigmas = sk.grids.log(6, START, END)
    first, *others = (
        solved(solver, MIXTURE, x_hat, sigmas, sk.IndependentNoise(3), process=process)
        for process in PROCESSES
    )
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-13)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", BY_PROCESS)
def test_all_processes_converge_to_the_same_samples(name, process):
    """On one path, which is that of the unscaled state on noise levels."""
    solver = STOCHASTIC[name]
    x_hat, path, exact = reference(MIXTURE, reverse_coordinates(solver), native=False)

    def error(n: int) -> float:
        sigmas = sk.grids.log(n, START, END)
        result = solved(solver, MIXTURE, x_hat, sigmas, path, process=process)
        return float((result - exact).square().mean().sqrt())

    order = measure_order(error, (24, 48, 96), scale=10.0)
    assert order == pytest.approx(solver.scheme.strong_order, abs=0.25)
