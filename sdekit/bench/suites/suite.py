"""The suite of deterministic methods: sdekit's and its peers' errors on a dozen laws and a network.

Every cell is one solve, kept as a line of JSON the moment it is known: a run that is killed goes on
where it was, and runs on disjoint problems may share a folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...denoisers import known_sigma_data
from ...equidistribute import run_pilot
from ...grids import balanced, power_theta, theta
from ...processes import EDM
from ...scale import fit_solver
from ...solution import SolveError
from ...solvers.registry import Solver, grid_name, methods
from ...spacing import Grid
from ..peers import PEERS, Peer
from ..problems import (
    PROCESS,
    SIGMA_MAX,
    SIGMA_MIN,
    SUITES,
    Problem,
    make_problem,
    rms,
)
from .cells import CellStore

BUDGETS = (5, 6, 8, 10, 12, 15, 20, 30, 40, 60, 80, 120)
# Peers have six hundred settings. All are run at these budgets, and at the others those that come
# within this factor of the best peer at a neighbouring one of these.
HEATS = (8, 40)
_CLOSE = 2.5
_PILOT_SEED = 1000  # other samples than those that are judged


@dataclass(frozen=True)
class SuiteConfig:
    """What to run.

    Attributes:
        problems: Names of problems.
        budgets: Network evaluations.
        samples: Number of start states.
        seed: Seed of the start states.
        peers: Whether to run other packages.
    """

    problems: tuple[str, ...] = SUITES["ode"]
    budgets: tuple[int, ...] = BUDGETS
    samples: int = 64
    seed: int = 0
    peers: bool = True


@dataclass(frozen=True)
class SuiteCell:
    """One solve.

    Attributes:
        problem: Name of the problem.
        group: ``"sdekit"``, on a method's default grid; ``"fitted"``, on a grid fitted to the problem;
            ``"peer"``, on a grid that its package ships; ``"peer, our grids"``.
        method: Name of the method.
        grid: Name of the grid.
        budget: Evaluations allowed.
        nfe: Evaluations made.
        error: RMS distance of the final states from the reference; none if the solve failed.
    """

    problem: str
    group: str
    method: str
    grid: str
    budget: int
    nfe: int
    error: float | None

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What identifies the cell."""
        return self.problem, self.group, self.method, self.grid, self.budget


class SuiteStore(CellStore[SuiteCell]):
    """The cells of a folder, one line each, and the reference solutions.

    Args:
        folder: Where they are.
        config: Cells are kept apart by samples and seed.
    """

    def __init__(self, folder: Path, config: SuiteConfig) -> None:
        super().__init__(folder, SuiteCell, samples=config.samples, seed=config.seed)


def run_suite(config: SuiteConfig, folder: Path, *, progress: bool = False) -> list[SuiteCell]:
    """Run what is missing of the suite in a folder; return all cells of the configuration.

    Raises:
        RuntimeError: If a reference solution cannot be computed.
        ImportError: If peers are to be run, and diffusers or azula is not installed.
    """
    store = SuiteStore(folder, config)
    for name in tqdm(config.problems, disable=not progress, desc="suite"):
        problem = make_problem(name, samples=config.samples, seed=config.seed)
        judge = _Judge(problem, store, store.reference(problem))
        for solver_name, group, solver_of in _solvers(problem):
            for budget in config.budgets:
                judge.own(solver_name, group, solver_of, budget)
        if config.peers:
            _run_peers(judge, config.budgets, progress=progress)
    return store.of(config.problems)


def _solvers(problem: Problem) -> Iterator[tuple[str, str, Callable[[int], Solver]]]:
    """Methods of sdekit on their default grids, and its own on grids fitted to the problem.

    A solver is a function of the number of steps, for which a grid may be fitted.
    """
    sigma_data = known_sigma_data(problem.denoiser)
    for method in methods().values():
        if method.deterministic and method.fixed:
            bound = _bound(method.solver, problem, sigma_data)
            yield method.name, "sdekit", partial(_unchanged, bound)
    other = make_problem(problem.name, samples=64, seed=_PILOT_SEED)
    flow = EDM(SIGMA_MIN, SIGMA_MAX).probability_flow(other.denoiser)
    pilot = run_pilot(flow, x=other.start, sigma_max=SIGMA_MAX, sigma_min=SIGMA_MIN)
    for name in ("bayesian_adams", "adams2", "adams3", "adams4"):
        bound = _bound(methods()[name].solver, problem, sigma_data)

        def fitted(steps: int, solver: Solver = bound) -> Solver:
            return replace(solver, grid=pilot.best(steps, solver))

        yield name, "fitted", fitted


def _unchanged(solver: Solver, steps: int) -> Solver:
    return solver


def _bound(solver: Solver, problem: Problem, sigma_data: float | None) -> Solver:
    flow = PROCESS.probability_flow(problem.denoiser)
    return fit_solver(solver, flow, problem.start, sigma_data, gridded=True)[0]


def our_grids(sigma_data: float) -> dict[str, Grid]:
    """Grids of sdekit that peers are given in the second comparison."""
    chosen: dict[str, Callable[..., np.ndarray]] = {
        "balanced": balanced,
        "theta": theta,
        "power_theta(0.5)": partial(power_theta, p=0.5),
        "power_theta(0.75)": partial(power_theta, p=0.75),
    }
    return {name: partial(grid, sigma_data=sigma_data) for name, grid in chosen.items()}


@dataclass
class _Judge:
    """Solves and measures, unless the store knows the answer."""

    problem: Problem
    store: SuiteStore
    reference: Tensor

    def own(self, name: str, group: str, solver_of: Callable[[int], Solver], budget: int) -> None:
        """Measure a method of sdekit: the largest number of steps that the budget allows."""
        scheme = methods()[name].solver.scheme
        grid = "fitted" if group == "fitted" else grid_name(methods()[name].solver.grid)
        if (self.problem.name, group, name, grid, budget) in self.store.cells:
            return
        steps = budget // scheme.nfe_per_step
        nfe, error = 0, None
        if steps:
            solver = solver_of(steps)
            sigmas = solver.grid(steps, SIGMA_MAX, SIGMA_MIN, PROCESS)
            try:
                with torch.no_grad():
                    x, solution = self.problem.solve(solver, sigmas=sigmas)
            except SolveError:
                nfe = steps * scheme.nfe_per_step
            else:
                nfe, error = solution.nfe, self._error(x)
        self.store.add(SuiteCell(self.problem.name, group, name, grid, budget, nfe, error))

    def peer(self, peer: Peer, grid: str, levels: Grid | None, budget: int) -> float:
        """Measure a peer on a grid of its own, or on given levels; return its error."""
        group = "peer" if levels is None else "peer, our grids"
        key = (self.problem.name, group, peer.name, grid, budget)
        if key not in self.store.cells:
            steps = budget // peer.nfe_per_step
            given = grid if levels is None else levels(max(steps, 1), SIGMA_MAX, SIGMA_MIN)
            x, nfe, error = None, 0, None
            if steps:
                x, nfe = peer.run(self.problem.denoiser, self.problem.start, given, steps)
                error = self._error(x)
            self.store.add(SuiteCell(*key, nfe, error))
        error = self.store.cells[key].error
        return math.inf if error is None else error

    def _error(self, x: Tensor) -> float | None:
        error = rms(x - self.reference)
        return error if math.isfinite(error) else None


def _run_peers(judge: _Judge, budgets: Iterable[int], *, progress: bool) -> None:
    sigma_data = known_sigma_data(judge.problem.denoiser) or 1.0
    ours = our_grids(sigma_data)
    entries: list[tuple[Peer, str, Grid | None]] = [
        (peer, name, None) for peer in PEERS.values() for name in peer.grids
    ]
    shared: list[tuple[Peer, str, Grid | None]] = [
        (peer, name, grid) for peer in PEERS.values() for name, grid in ours.items()
    ]
    for group in (entries, shared):
        errors: dict[int, dict[int, float]] = {}
        heats = [budget for budget in HEATS if budget in set(budgets)] or sorted(set(budgets))
        bar = tqdm(heats, disable=not progress, desc=f"{judge.problem.name}: peers", leave=False)
        for budget in bar:
            errors[budget] = {
                i: judge.peer(entry[0], entry[1], entry[2], budget)
                for i, entry in enumerate(tqdm(group, disable=not progress, leave=False))
            }
        for budget in sorted(set(budgets) - set(heats)):
            near = [h for h in heats if h < budget][-1:] + [h for h in heats if h > budget][:1]
            close = {
                i
                for heat in near
                for i, error in errors[heat].items()
                if error <= _CLOSE * min(errors[heat].values())
            }
            for i in sorted(close):
                peer, name, levels = group[i]
                judge.peer(peer, name, levels, budget)
