"""Errors of stochastic solvers, in law and along paths, that the tests of their orders share."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np
import torch
from noise_sources import Steps
from orders import measure_order, process_scale
from torch import Tensor

import sdekit as sk
from sdekit.reverse import ReverseCoordinates
from sdekit.solvers.multistep import Multistep
from sdekit.solvers.registry import Solver
from sdekit.solvers.stochastic_rk import SRA3, StochasticRK
from sdekit.stochasticity import Eta
from sdekit.theory.noises import Impulses

SIGMA_DATA = 0.8  # not that of any data here, so that nothing is exact
STOCHASTIC = {
    name: entry.solver
    for name, entry in sk.methods().items()
    if entry.solver.scheme.stochastic and entry.solver.scheme.weak_order is not None
}
OF_THE_SDE = [name for name, solver in STOCHASTIC.items() if solver.scheme.solves == "sde"]


def remembers(solver: Solver) -> bool:
    """Whether a step depends on those before it."""
    scheme = getattr(solver.scheme, "scheme", None)
    if isinstance(scheme, Multistep):
        return scheme.slopes > 1 or scheme.corrector
    return isinstance(solver.scheme, StochasticRK) and bool(solver.scheme.tableau.before)


# Methods that take η = 1 only, or have an η of their own.
OF_ONE_ETA = [
    name
    for name in OF_THE_SDE
    if getattr(STOCHASTIC[name].scheme, "eta", None)
    or (
        isinstance(STOCHASTIC[name].scheme, StochasticRK) and STOCHASTIC[name].scheme.tableau.before
    )
]

# Theory 4.8: these do better on Gaussian data than they declare. Where the drift is linear, schemes
# that know its first integral along the path, Σ b q = 1, are of strong order 2; and noise between steps
# of the flow leaves the law that of the flow, so that its weak order is that of the flow's scheme.
GAUSSIAN_WEAK = {
    name: 2.0 for name in ("sea", "sea_theta", "dpm_2_ancestral", "dpmpp_2s_ancestral")
}
GAUSSIAN_STRONG = {
    name: 2.0
    for name, solver in STOCHASTIC.items()
    if isinstance(solver.scheme, StochasticRK)
    and abs(np.dot(solver.scheme.tableau.b, solver.scheme.tableau.q) - 1) < 1e-9
}


class Modes:
    """Independent coordinates, each a mixture of ``N(m, v)`` and ``N(−m, v)``; Gaussian if ``m = 0``.

    Args:
        means: ``m``.
        variances: ``v``.
        odds: Half the logarithm of the odds of the upper mode.
    """

    def __init__(self, means, variances, odds) -> None:
        self.mean, self.variance, self.odds = (
            torch.tensor(v, dtype=torch.float64) for v in (means, variances, odds)
        )

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        total = self.variance + sigma**2
        mode = self.mean * torch.tanh(self.mean * x / total + self.odds)
        return (self.variance * x + sigma**2 * mode) / total

    def sample(self, count: int, sigma: float, *, seed: int) -> Tensor:
        source = torch.Generator().manual_seed(seed)
        shape = count, len(self.mean)
        upper = torch.rand(shape, generator=source, dtype=torch.float64) < torch.sigmoid(
            2 * self.odds
        )
        noise = torch.randn(shape, generator=source, dtype=torch.float64)
        return torch.where(upper, self.mean, -self.mean) + noise * torch.sqrt(
            self.variance + sigma**2
        )


GAUSSIAN = Modes([0, 0, 0], [0.05, 0.3, 1.0], [0, 0, 0])
MIXTURE = Modes([0.8] * 4, [0.1] * 4, [-0.3, 0.0, 0.2, 0.5])


def process_of(solver: Solver) -> sk.AffineSDE:
    """VP for schemes in the process's own time, where that counts; else EDM."""
    return sk.VP() if isinstance(solver.coordinates, sk.Native) else sk.EDM()


def levels(solver: Solver, n: int, high: float, low: float) -> np.ndarray:
    """A smooth grid."""
    grid = sk.grids.uniform_t if isinstance(solver.coordinates, sk.Native) else sk.grids.log
    return grid(n, high, low, process_of(solver))


@torch.no_grad()
def solved(
    solver: Solver,
    model: Callable[[Tensor, Tensor], Tensor],
    x_hat: Tensor,
    sigmas: np.ndarray,
    noise,
    eta: float = 1.0,
    process: sk.AffineSDE | None = None,
) -> Tensor:
    """Unscaled state at the end of a solve from an unscaled state."""
    process = process or process_of(solver)
    flow = solver.scheme.solves == "flow"
    problem = process.probability_flow(model) if flow else process.reverse(model, eta)
    start, end = (process_scale(process, s) for s in (sigmas[0], sigmas[-1]))
    solution = sk.solve(
        problem, x_hat * start, method=solver, sigmas=sigmas, noise=noise, sigma_data=SIGMA_DATA
    )
    return solution.x / end


# --- in law ---------------------------------------------------------------------------------------

HIGH, LOW = 3.0, 0.1


def adapted(solver: Solver, n: int) -> Solver:
    """Return the solver with parameters that show its limit in ``n`` steps.

    Churn is spread over all steps, with noise of its true size. The restart interval has more steps as
    the grid has, which goes through its lower end.
    """
    scheme = solver.scheme
    if isinstance(scheme, sk.Churn):
        scheme = sk.Churn(scheme.scheme, s_churn=3.0, s_min=0.0, s_max=np.inf, s_noise=1.0)
    if isinstance(scheme, sk.Restart):
        scheme = sk.Restart(scheme.scheme, [(np.sqrt(HIGH * LOW), 2.0, n // 2, 1)])
    return dataclasses.replace(solver, scheme=scheme)


def law_error(solver: Solver, n: int, *, noise=Impulses, eta: float = 1.0) -> float:
    """Relative error of the variances of the result for Gaussian data: no sampling, no fit."""
    solver, data = adapted(solver, n), GAUSSIAN.variance
    rows = max(2, solver.scheme.nfe_per_step) * n + 1
    x_hat = torch.zeros((rows, len(data)), dtype=torch.float64)
    x_hat[0] = torch.sqrt(data + HIGH**2)
    sigmas = levels(solver, n, HIGH, LOW)
    variance = solved(solver, GAUSSIAN, x_hat, sigmas, noise(), eta).square().sum(0)
    return float((variance / (data + LOW**2) - 1).square().mean().sqrt())


# --- along paths ----------------------------------------------------------------------------------

START, END = 1.0, 0.2
FINE = 576  # a multiple of three: stages at thirds of a step in log σ are points of the path, too
BATCH = 400


class Reference(StochasticRK):
    """SRA3 in any coordinates of the reverse SDE."""

    def __init__(self, coordinates: ReverseCoordinates) -> None:
        super().__init__(SRA3)
        self.coordinates = coordinates

    def in_coordinates(self, view):
        return self.coordinates


def reverse_coordinates(solver: Solver, eta: float = 1.0) -> ReverseCoordinates:
    """Coordinates of the SDE that the solver's strong error is that of."""
    scheme, base = solver.scheme, solver.coordinates.bind(sk.EDM(), SIGMA_DATA)
    if not isinstance(scheme, sk.Stochastic | StochasticRK):
        base = sk.Noise()  # noise between steps, and Euler–Maruyama's: increments of the variance
    if isinstance(base, sk.Interpolated):
        base = base.coordinates
    return ReverseCoordinates(base, getattr(scheme, "eta", None) or Eta(eta))


@functools.cache
def reference(law: Modes, coordinates: ReverseCoordinates, native: bool):
    """Start, path and end of the SDE, solved by SRA3 on all points of the path."""
    own = Solver(Reference(coordinates), sk.Native() if native else sk.Noise(), sk.grids.log)
    fine = levels(own, FINE, START, END)
    x_hat = law.sample(BATCH, START, seed=2)
    clock = coordinates.noise_clock
    path = sk.GridPath(coordinates.noise_time(fine), tuple(x_hat.shape), seed=11, clock=clock)
    return x_hat, path, solved(own, law, x_hat, fine, path)


@functools.cache
def churned(law: Modes, native: bool):
    """The same for noise that counts steps: a fine churn with midpoint steps, written out."""
    x_hat = start = law.sample(BATCH, START, seed=2)
    path = sk.GridPath(np.linspace(0, 1, FINE + 1), tuple(x_hat.shape), seed=11)
    own = Solver(sk.EulerMaruyama(), sk.Native() if native else sk.Noise(), sk.grids.log)
    fine, total = levels(own, FINE, START, END), 3.0
    for n, (here, there) in enumerate(itertools.pairwise(fine)):
        hat = here * (1 + total / FINE)
        z = path.increment(n / FINE, (n + 1) / FINE, x_hat) * FINE**0.5
        x_hat = x_hat + np.sqrt(hat**2 - here**2) * z
        middle = np.sqrt(hat * there)
        half = x_hat + (middle - hat) * (x_hat - law(x_hat, torch.tensor(hat))) / hat
        x_hat = x_hat + (there - hat) * (half - law(half, torch.tensor(middle))) / middle
    return start, path, x_hat


def path_error(
    solver: Solver, law: Modes, n: int, *, eta: float = 1.0, damaged=lambda source: source
) -> float:
    """RMS distance to the exact solution on one Brownian path per sample."""
    native = isinstance(solver.coordinates, sk.Native)
    if isinstance(solver.scheme, sk.Churn):
        x_hat, path, exact = churned(law, native)
        path = Steps(path, n)
    else:
        x_hat, path, exact = reference(law, reverse_coordinates(solver, eta), native)
    sigmas = levels(solver, n, START, END)
    result = solved(adapted(solver, n), law, x_hat, sigmas, damaged(path), eta)
    return float((result - exact).square().mean().sqrt())


def law_steps(name: str) -> tuple[int, ...]:
    """Numbers of steps on which the weak order of a method shows; that of SA-Solver shows late."""
    return (96, 160, 256) if name.startswith("sa_solver") else (64, 96, 144)


def weak_order(solver: Solver, steps=(64, 96, 144), **kwargs) -> float:
    """Measured weak order on Gaussian data."""
    return measure_order(lambda n: law_error(solver, n, **kwargs), steps)


def strong_order(solver: Solver, law: Modes, **kwargs) -> float:
    """Measured strong order; every step is at least four of the reference's.

    With four slopes the error of the start is seen for longer.
    """
    slopes = getattr(getattr(solver.scheme, "scheme", None), "slopes", 1)
    steps = (36, 72, 144) if slopes > 3 else (24, 48, 96)
    return measure_order(lambda n: path_error(solver, law, n, **kwargs), steps, scale=10.0)
