"""The problems of the benchmark, and their reference solutions.

All work in the unscaled state `x̂`, where the probability flow of every affine process is the same:
from `x̂` at `SIGMA_MAX` to `x̂` at `SIGMA_MIN`, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from ..affine import AffineSDE
from ..digits import load_digits_denoiser
from ..distributions import Gaussian, GaussianMixture, Product
from ..distributions.base import Distribution
from ..processes import EDM, VP
from ..sampling import solve
from ..sde import Model
from ..solution import Solution
from ..solvers.registry import Solver, did_you_mean

SIGMA_MAX, SIGMA_MIN = 80.0, 0.002

# Gives the methods in native coordinates their time, and the grids in time theirs. In the other
# coordinates the process drops out.
PROCESS = VP()

# Below 1e-12 the round-off of some thousand steps shows: the references no longer come closer.
REFERENCE_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Problem:
    """A denoiser and the states to start from.

    Attributes:
        name: Name on the command line.
        title: What it is, for headings.
        denoiser: Callable ``(x_hat, sigma) -> x0_hat``.
        start: States `x̂` at ``sigma_max``, ``(B, *event)``, float64.
        process: Gives the methods in native coordinates their time, and the grids in time theirs.
        sigma_max: Noise level of the start.
        sigma_min: Noise level of the end.
    """

    name: str
    title: str
    denoiser: Model
    start: Tensor
    process: AffineSDE = PROCESS
    sigma_max: float = SIGMA_MAX
    sigma_min: float = SIGMA_MIN

    @property
    def law(self) -> Distribution | None:
        """The law of the data, if it is known."""
        return self.denoiser if isinstance(self.denoiser, Distribution) else None

    def scale(self, sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scale ``s`` of the process at noise levels: its state is ``x = s x̂``."""
        return self.process.on_host("scale", self.process.on_host("time", sigmas))

    def solve(self, method: str | Solver, **options: Any) -> tuple[Tensor, Solution]:  # noqa: ANN401
        """Solve the flow of the process by `sdekit.solve`; return the final `x̂` and the solution."""
        scale = self.scale(np.array([self.sigma_max, self.sigma_min]))
        flow = self.process.probability_flow(self.denoiser)
        solution = solve(flow, self.start * scale[0], method=method, **options)
        return solution.x / scale[1], solution


@dataclass(frozen=True)
class Reference:
    """A reference solution and how far it can be trusted.

    Attributes:
        x: Final states `x̂` at `SIGMA_MIN`, of sdekit's adaptive Dormand–Prince 5(4).
        discrepancy: RMS distance to the same by scipy's DOP853, another code of another order.
        largest: Largest distance of a component.
        nfe: Network evaluations of both, the largest count of a sample.
    """

    x: Tensor
    discrepancy: float
    largest: float
    nfe: tuple[int, int]

    @property
    def floor(self) -> float:
        """Error below which a method cannot be told from the reference."""
        return 10 * self.discrepancy


def rms(x: Tensor) -> float:
    """Root mean square over batch and components."""
    return float(x.square().mean().sqrt())


def solve_reference(problem: Problem, tolerance: float = REFERENCE_TOLERANCE) -> Reference:
    """Solve a problem twice, as accurately as float64 allows or to another tolerance.

    Args:
        problem: The problem.
        tolerance: Relative and absolute tolerance of both solves.

    Raises:
        RuntimeError: If one of the two solves does not reach the end.
    """
    x, solution = problem.solve(
        "dopri5",
        sigmas=[problem.sigma_max, problem.sigma_min],
        rtol=tolerance,
        atol=tolerance,
        max_nfe=1_000_000,
    )
    if solution.status != "success":
        raise RuntimeError(f"no reference for {problem.name}: {solution.message}")
    check, nfe = _scipy_solution(problem, tolerance)
    off = x - check.to(x)
    return Reference(x, rms(off), float(off.abs().max()), (solution.nfe, nfe))


def _scipy_solution(problem: Problem, tolerance: float) -> tuple[Tensor, int]:
    """Solve by DOP853 in `λ = −log σ`, which takes two thirds of the evaluations of `σ`."""
    # In EDM's process the time is σ and the state is x̂, so scipy checks the scaling of VP, too.
    process = EDM(problem.sigma_min, problem.sigma_max)
    flow = process.probability_flow(problem.denoiser).numpy(tuple(problem.start.shape))

    def fun(lam: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
        sigma = math.exp(-lam)
        return -sigma * flow(sigma, y)

    result = solve_ivp(
        fun,
        (-math.log(problem.sigma_max), -math.log(problem.sigma_min)),
        problem.start.flatten().numpy(),
        method="DOP853",
        rtol=tolerance,
        atol=tolerance,
    )
    if not result.success:
        raise RuntimeError(f"no reference for {problem.name}: {result.message}")
    return torch.from_numpy(result.y[:, -1].copy()).view_as(problem.start), int(result.nfev)


def mixture2d(samples: int, seed: int) -> Problem:
    """Seven narrow modes of unequal weight, on a circle and in its centre."""
    angle = torch.arange(6, dtype=torch.float64) * (math.pi / 3)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    law = GaussianMixture(
        np.array([1, 2, 3, 1, 2, 3, 2]) / 14,
        torch.cat([circle, torch.zeros(1, 2, dtype=torch.float64)]),
        0.1**2 * np.ones(7),
    )
    return _mixture("mixture2d", "mixture of 7 Gaussians in 2-D", law, samples, seed)


def mixture16d(samples: int, seed: int) -> Problem:
    """Ten components with full covariances."""
    law = GaussianMixture.random(components=10, dim=16, seed=0)
    return _mixture("mixture16d", "mixture of 10 Gaussians in 16-D", law, samples, seed)


def _mixture(name: str, title: str, law: Distribution, samples: int, seed: int) -> Problem:
    start = law.sample(samples, sigma=SIGMA_MAX, seed=seed, dtype=torch.float64)
    return Problem(name, title, law, start)


def _random_mixture(
    name: str, components: int, dim: int, *, spread: float, width: float
) -> Callable[[int, int], Problem]:
    """Return the maker of a random mixture with full covariances."""

    def make(samples: int, seed: int) -> Problem:
        law = GaussianMixture.random(components, dim, seed=1, spread=spread, width=width)
        title = f"mixture of {components} Gaussians in {dim}-D, width {width} of spread {spread}"
        return _mixture(name, title, law, samples, seed)

    return make


def _wide_mixture(name: str, components: int, dim: int) -> Callable[[int, int], Problem]:
    """Return the maker of a mixture whose means and covariances follow a power-law spectrum."""

    def make(samples: int, seed: int) -> Problem:
        rng = np.random.default_rng(components + dim)
        std = power_law(dim) ** 0.5
        bases = np.linalg.qr(rng.normal(size=(components, dim, dim))).Q
        # Each component has the spectrum in axes of its own, mixed with those of the whole.
        factors = 0.5 * std[:, None] * bases
        means = rng.normal(size=(components, dim)) * std
        weights = np.full(components, 1 / components)
        law = GaussianMixture(weights, means, factors @ factors.transpose(0, 2, 1))
        title = f"mixture of {components} Gaussians in {dim}-D, power-law spectrum"
        return _mixture(name, title, law, samples, seed)

    return make


def _product(name: str, dim: int, components: int) -> Callable[[int, int], Problem]:
    """Return the maker of a rotated product of one-dimensional mixtures."""

    def make(samples: int, seed: int) -> Problem:
        law = Product.random(dim, components, seed=1, spread=0.7, width=0.15)
        title = f"rotated product of {dim} mixtures of {components}"
        return _mixture(name, title, law, samples, seed)

    return make


def power_law(dim: int) -> NDArray[np.float64]:
    """Variances ``k⁻²`` over ``k = 1 … d``: the spectrum of natural images along a line."""
    variances: NDArray[np.float64] = 1 / np.arange(1.0, dim + 1) ** 2
    return variances


def gaussian32d(samples: int, seed: int) -> Problem:
    """Gaussian with a power-law spectrum over three decades, in a random basis."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32))).Q
    law = Gaussian(np.zeros(32), (basis * power_law(32)) @ basis.T)
    return _mixture("gaussian32d", "Gaussian in 32-D, power-law spectrum", law, samples, seed)


def digits(samples: int, seed: int) -> Problem:
    """The trained network that ships with the package: stiff and rough where mixtures are not."""
    source = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, 1, 8, 8, generator=source, dtype=torch.float64)
    denoiser = load_digits_denoiser(dtype=torch.float64)
    return Problem("digits", "trained network, 8 × 8 digits", denoiser, SIGMA_MAX * noise)


PROBLEMS: dict[str, Callable[[int, int], Problem]] = {
    "mixture2d": mixture2d,
    "mixture16d": mixture16d,
    "digits": digits,
    "narrow2d": _random_mixture("narrow2d", 3, 2, spread=1.0, width=0.03),
    "broad3d": _random_mixture("broad3d", 20, 3, spread=0.5, width=0.2),
    "mixture8d": _random_mixture("mixture8d", 5, 8, spread=0.5, width=0.1),
    "mixture32d": _random_mixture("mixture32d", 2, 32, spread=0.5, width=0.3),
    "mixture64d": _random_mixture("mixture64d", 20, 64, spread=0.5, width=0.15),
    "wide16d": _wide_mixture("wide16d", 6, 16),
    "wide64d": _wide_mixture("wide64d", 10, 64),
    "product4d": _product("product4d", 4, 3),
    "product12d": _product("product12d", 12, 2),
    "gaussian32d": gaussian32d,
}
"""The problems by name."""

# What a benchmark runs when no problems are named.
SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("mixture2d", "mixture16d", "digits"),
    "ode": tuple(PROBLEMS),
    "adaptive": tuple(PROBLEMS),
    "sde": ("mixture2d", "narrow2d", "broad3d", "mixture8d", "mixture16d", "wide16d"),
}


def check_problem_name(name: str) -> None:
    """Raise `ValueError` if there is no such problem."""
    if name not in PROBLEMS:
        hint = did_you_mean(name, PROBLEMS)
        raise ValueError(f"unknown problem {name!r}; {hint}there are {', '.join(PROBLEMS)}")


@cache
def known_law(name: str) -> bool:
    """Whether the law of a problem's data is a mixture, which is known in closed form."""
    return isinstance(make_problem(name, samples=1).denoiser, GaussianMixture)


def make_problem(name: str, *, samples: int = 64, seed: int = 0) -> Problem:
    """Build a problem by name.

    Args:
        name: A key of `PROBLEMS`.
        samples: Number of start states.
        seed: Seed of the start states; the laws and the network are always the same.

    Raises:
        ValueError: If there is no such problem.
    """
    check_problem_name(name)
    return PROBLEMS[name](samples, seed)
