"""The methods of a benchmark: of the registry, composed by the user, or of another package."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..calibrated import CalibratedSolver
from ..denoisers import known_sigma_data
from ..grids import GRIDS
from ..sampling import solve
from ..scale import fit_solver
from ..sde import Model, ProbabilityFlow, ReverseSDE
from ..solution import SolveError
from ..solvers.registry import Solver, grid_name
from ..wrapper import Sigma, Wrapper, evaluations
from .measurements import ADAPTIVE, Setting
from .metrics import unscaled
from .peers import OdePeer, Peer
from .peers.peer import seeded
from .problems import SIGMA_MAX, SIGMA_MIN, Problem

# A tolerance that takes more is recorded as unfinished.
MAX_NFE = 10_000


@dataclass(frozen=True)
class Run:
    """What came of a solve.

    Attributes:
        x: Final states `x̂`; none if there is nothing to run within the budget.
        nfe: Network evaluations of each sample, ``(B,)``.
        steps: Steps taken, by the sample that took most.
        sigmas: Levels of a fixed grid.
        states: States `x̂` at these levels, if they are known.
        status: ``"success"``, or how the solve failed.
        seconds: Wall time.
        network_seconds: The part of it that was spent in the network.
    """

    x: Tensor | None
    nfe: NDArray[np.int64]
    steps: int = 0
    sigmas: NDArray[np.float64] | None = None
    states: Tensor | None = None
    status: str = "success"
    seconds: float = 0.0
    network_seconds: float = 0.0


class Entry(Protocol):
    """A method on a grid."""

    @property
    def name(self) -> str:
        """Name of the method."""

    @property
    def package(self) -> str:
        """Whose it is."""

    @property
    def grid(self) -> str:
        """Name of the grid."""

    @property
    def fixed(self) -> bool:
        """Whether it takes a budget."""

    @property
    def adaptive(self) -> bool:
        """Whether it takes a tolerance."""

    @property
    def deterministic(self) -> bool:
        """Whether it solves the probability flow, and so can be compared path by path."""

    @property
    def own_flow(self) -> Solver | None:
        """The solver, if sdekit can solve other flows by it, as of log-densities."""

    @property
    def variant(self) -> str:
        """Hash of what the name does not say."""

    def run(self, problem: Problem, setting: Setting, *, path: bool = False) -> Run:
        """Solve.

        Args:
            problem: The problem of the setting.
            setting: Says budget or tolerance, and the seed of the noise.
            path: Whether the states on the way are asked for.
        """


class Stopwatch(Wrapper):
    """A denoiser that measures the time that its network takes, and counts its evaluations."""

    guides = False

    def __init__(self, denoiser: Model) -> None:
        super().__init__(denoiser)
        # One for all copies that adaptive steps make for parts of a batch.
        self.clock, self.count = [0.0], [0]

    def __call__(self, x_hat: Tensor, sigma: Sigma, /, **more: object) -> Tensor:
        """Return what the denoiser returns."""
        begin = self._now(x_hat)
        denoised = super().__call__(x_hat, sigma, **more)
        self.clock[0] += self._now(x_hat) - begin
        self.count[0] += evaluations(self.func, sigma)
        return denoised

    def _now(self, x_hat: Tensor) -> float:
        if x_hat.is_cuda:
            torch.cuda.synchronize(x_hat.device)
        return time.perf_counter()


@dataclass(frozen=True)
class Own:
    """A solver of sdekit on a grid.

    Attributes:
        name: Its name in the registry, or where it was imported from.
        solver: The solver, with the grid.
        variant: A hash of it, if it is not of the registry: its name may be another's tomorrow.
    """

    name: str
    solver: Solver
    package: str = "sdekit"
    variant: str = ""

    @property
    def grid(self) -> str:
        """Name of the grid."""
        return grid_name(self.solver.grid) if self.fixed else ADAPTIVE

    @property
    def fixed(self) -> bool:
        """Whether it takes a budget."""
        return self.solver.scheme.fixed

    @property
    def adaptive(self) -> bool:
        """Whether it takes a tolerance."""
        return self.solver.scheme.adaptive

    @property
    def deterministic(self) -> bool:
        """Whether it solves the probability flow without noise."""
        return self.solver.deterministic

    @property
    def own_flow(self) -> Solver | None:
        """The solver, if it is deterministic."""
        return self.solver if self.deterministic else None

    def run(self, problem: Problem, setting: Setting, *, path: bool = False) -> Run:
        """Solve; see `Entry.run`."""
        if setting.rtol is not None:
            return self._solve(problem, setting, np.array([problem.sigma_max, problem.sigma_min]))
        budget = setting.budget or 0
        if isinstance(self.solver, CalibratedSolver) and budget != self.solver.steps:
            return _nothing(problem, budget, f"it was calibrated for {self.solver.steps} steps")
        # A scheme that needs evaluations to start takes fewer steps than the quotient.
        for steps in range(budget // self.solver.scheme.nfe_per_step, 0, -1):
            run = self._solve(problem, setting, None, steps=steps, path=path)
            if run.nfe.max(initial=0) <= budget:
                return run
        return _nothing(problem, budget)

    def _solve(
        self,
        problem: Problem,
        setting: Setting,
        sigmas: NDArray[np.float64] | None,
        *,
        steps: int = 0,
        path: bool = False,
    ) -> Run:
        watch = Stopwatch(problem.denoiser)
        backward: ProbabilityFlow | ReverseSDE = problem.process.probability_flow(watch)
        if self.solver.scheme.solves == "sde":
            backward = problem.process.reverse(watch)
        begin = time.perf_counter()
        nfe = np.full(len(problem.start), steps * self.solver.scheme.nfe_per_step)
        try:
            known = known_sigma_data(problem.denoiser)
            gridded = sigmas is None
            solver, calls = fit_solver(self.solver, backward, problem.start, known, gridded=gridded)
            if sigmas is None:
                ends = problem.sigma_max, problem.sigma_min
                sigmas = solver.grid(steps, *ends, problem.process)
            scale = problem.scale(sigmas)
            options: dict[str, Any] = {"trajectory": path}
            if not self.deterministic:
                options["seed"] = setting.seed + 1  # a start of the same seed is not the noise
            if setting.rtol is not None:
                options = {**options, "rtol": setting.rtol, "max_nfe": MAX_NFE}
            with torch.no_grad():
                start = problem.start * scale[0]
                solution = solve(backward, start, method=solver, sigmas=sigmas, **options)
        except SolveError as failure:
            return Run(None, nfe, steps, sigmas, status=str(failure))
        states = solution.trajectory
        if states is not None:
            states = unscaled(problem, sigmas, states)
        return Run(
            x=solution.x / scale[-1],
            nfe=solution.stats.nfe_per_sample + calls,
            steps=solution.stats.steps,
            sigmas=sigmas,
            states=states,
            status=solution.status,
            seconds=time.perf_counter() - begin,
            network_seconds=watch.clock[0],
        )


class _OfAnother:
    """What the methods of other packages have in common."""

    peer: Peer | OdePeer
    own_flow: Solver | None = None
    variant = ""

    @property
    def name(self) -> str:
        """Name of the peer."""
        return self.peer.name

    @property
    def package(self) -> str:
        """Name of its package."""
        return self.peer.package


@dataclass(frozen=True)
class FromPeer(_OfAnother):
    """A sampler of another package on a grid that it ships, or on one of sdekit's.

    Attributes:
        peer: The sampler.
        grid: Name of the grid.
    """

    peer: Peer
    grid: str
    fixed: bool = True
    adaptive: bool = False

    @property
    def deterministic(self) -> bool:
        """Whether it solves the probability flow."""
        return self.peer.eta == 0

    def run(self, problem: Problem, setting: Setting, *, path: bool = False) -> Run:
        """Solve; see `Entry.run`.

        Raises:
            ValueError: If the grid is shipped for other noise levels than the problem's.
        """
        budget = setting.budget or 0
        # A guided denoiser evaluates its network several times a call.
        for steps in range(budget // self.peer.nfe_per_step, 0, -1):
            run = self._solve(problem, setting, steps)
            if run.nfe.max(initial=0) <= budget:
                return run
        return _nothing(problem, budget)

    def _solve(self, problem: Problem, setting: Setting, steps: int) -> Run:
        grid: str | NDArray[np.float64] = self.grid
        ends = problem.sigma_max, problem.sigma_min
        if self.grid not in self.peer.grids:
            grid = np.asarray(GRIDS[self.grid](steps, *ends, problem.process))
        elif ends != (SIGMA_MAX, SIGMA_MIN):
            raise ValueError(
                f"the grids of {self.peer.package} go from σ = {SIGMA_MAX:g} to {SIGMA_MIN:g}, and "
                f"{problem.name} from {ends[0]:g} to {ends[1]:g}; name a grid of sdekit, as in "
                f"'{self.name}@karras'"
            )
        watch = Stopwatch(problem.denoiser)
        begin = time.perf_counter()
        with seeded(setting.seed + 1):
            x, _ = self.peer.run(watch, problem.start, grid, steps)
        seconds = time.perf_counter() - begin
        finite = bool(x.isfinite().all())
        return Run(
            x=x if finite else None,
            nfe=np.full(len(problem.start), watch.count[0]),
            steps=steps,
            status="success" if finite else "the final state is not finite",
            seconds=seconds,
            network_seconds=watch.clock[0],
        )


@dataclass(frozen=True)
class FromOdePeer(_OfAnother):
    """An adaptive solver of another package; all samples are one system to it.

    Attributes:
        peer: The solver.
    """

    peer: OdePeer
    grid: str = ADAPTIVE
    fixed: bool = False
    adaptive: bool = True
    deterministic: bool = True

    def run(self, problem: Problem, setting: Setting, *, path: bool = False) -> Run:
        """Solve; see `Entry.run`.

        Raises:
            ValueError: If the problem's noise levels are not those of the suites.
        """
        ends = problem.sigma_max, problem.sigma_min
        if ends != (SIGMA_MAX, SIGMA_MIN):
            raise ValueError(
                f"{self.name} is run from σ = {SIGMA_MAX:g} to {SIGMA_MIN:g}, and {problem.name} goes "
                f"from {ends[0]:g} to {ends[1]:g}"
            )
        assert setting.rtol is not None
        watch = Stopwatch(problem.denoiser)
        begin = time.perf_counter()
        try:
            x, _ = self.peer.run(
                watch, problem.start, rtol=setting.rtol, atol=setting.rtol, max_nfe=MAX_NFE
            )
        except RuntimeError as failure:
            return Run(None, np.full(len(problem.start), MAX_NFE), status=str(failure))
        return Run(
            x=x,
            nfe=np.full(len(problem.start), watch.count[0]),
            seconds=time.perf_counter() - begin,
            network_seconds=watch.clock[0],
        )


def _nothing(problem: Problem, budget: int, why: str = "") -> Run:
    nfe = np.zeros(len(problem.start), dtype=np.int64)
    return Run(None, nfe, status=why or f"{budget} evaluations are less than a step")
