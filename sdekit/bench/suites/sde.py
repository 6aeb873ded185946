"""The suite of stochastic methods: how far the law of their samples is from the exact one.

All start from exact samples at `SIGMA_MAX`; the law asked for is that of the data at `SIGMA_MIN`, whose
characteristic function, quantiles along lines and moments are known. Every cell is kept the moment it
is known, so that a run that is killed goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...distributions import GaussianMixture
from ...sampling import solve
from ...scale import fit_solver
from ...sde import ProbabilityFlow, ReverseSDE
from ...solution import SolveError
from ...solvers.registry import Solver, grid_name, methods
from ..peers import SDE_PEERS, Peer
from ..peers.peer import seeded
from ..problems import (
    PROCESS,
    SIGMA_MAX,
    SIGMA_MIN,
    SUITES,
    check_problem_name,
    known_law,
    make_problem,
)
from ..weak import BatchDenoiser, Judge
from .cells import CellStore
from .ratios import OURS, PEER

BUDGETS = (6, 8, 10, 15, 20, 30, 50, 100)
EXACT = "exact samples"

# All methods and all settings of the peers are run on a quarter of the samples: ours at all budgets,
# the peers' at these. Then come those that count, on all samples: of sdekit the methods below, of the
# peers the best ones at each of the heats, and the best of those that solve the SDE of η = 1.
SHARE = 4
HEATS = (8, 20)
KEPT, KEPT_FULL = 6, 4
DRAWS = 8  # sets of exact samples

# sdekit's methods at the η at which they are run on all samples, the default first.
CHOSEN: tuple[tuple[str, float | None], ...] = (
    ("sea_w_theta", 1.0),
    ("sea_m_theta", 1.0),
    ("stochastic_adams1", 1.0),
    ("stochastic_adams2", 1.0),
    ("shark_theta", 1.0),
    ("stochastic_adams2", 0.5),
)
# With half the noise, on a quarter of the samples.
HALVED = (
    "stochastic_adams1",
    "stochastic_adams2",
    "stochastic_adams3",
    "shark_theta",
    "sa_solver_3",
)


@dataclass(frozen=True)
class SdeConfig:
    """What to run.

    Attributes:
        problems: Names of problems whose laws are mixtures.
        budgets: Network evaluations.
        samples: Number of samples in up to two dimensions; in more it is half of that.
        seed: Seed of starts and noise.
        peers: Whether to run other packages.

    Raises:
        ValueError: If a problem is unknown, or its law is not a mixture.
    """

    problems: tuple[str, ...] = SUITES["sde"]
    budgets: tuple[int, ...] = BUDGETS
    samples: int = 40_000
    seed: int = 0
    peers: bool = True

    def __post_init__(self) -> None:
        for name in self.problems:
            check_problem_name(name)
            if not known_law(name):
                raise ValueError(
                    f"the law of {name!r} is not a mixture, whose quantiles are known; the suite takes "
                    f"{', '.join(SUITES['sde'])}, and other mixtures"
                )


QUICK = SdeConfig(problems=("mixture2d",), budgets=HEATS, samples=4_000)


@dataclass(frozen=True)
class SdeCell:
    """One set of samples.

    Attributes:
        problem: Name of the problem.
        group: ``"sdekit"``, a method on its default grid; ``"peer"``, on a grid that its package
            ships; ``"exact samples"``.
        method: Name of the method.
        grid: Name of the grid.
        eta: Stochasticity, a peer's in its own sense; none where it is no constant.
        samples: Number of samples.
        budget: Evaluations allowed; the number of the draw of exact samples.
        nfe: Evaluations made.
        cf: Error of the characteristic function; see `WeakErrors`. None if the solve failed.
        w2: Sliced Wasserstein-2 distance.
        mean: Error of the mean.
        cov: Error of the covariance.
    """

    problem: str
    group: str
    method: str
    grid: str
    eta: float | None
    samples: int
    budget: int
    nfe: int
    cf: float | None = None
    w2: float | None = None
    mean: float | None = None
    cov: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str, float | None, int, int]:
        """What identifies the cell."""
        return (
            *(self.problem, self.group, self.method, self.grid),
            *(self.eta, self.samples, self.budget),
        )


SdeStore: TypeAlias = CellStore[SdeCell]
T = TypeVar("T")


def run_sdes(config: SdeConfig, folder: Path, *, progress: bool = False) -> SdeStore:
    """Run what is missing of the suite in a folder.

    Args:
        config: What to run.
        folder: Where the cells are kept.
        progress: Whether to show a progress bar.

    Returns:
        The store, with all cells of the folder.

    Raises:
        ImportError: If peers are to be run, and diffusers or azula is not installed.
    """
    store = CellStore(folder, SdeCell, samples=config.samples, seed=config.seed)
    with _denormals_flushed():
        for name in tqdm(config.problems, disable=not progress, desc="sde"):
            runner = _Runner(name, config, store, progress)
            runner.exact()
            runner.ours(CHOSEN, runner.samples, "chosen")
            runner.ours(_field(), runner.samples // SHARE, "all methods")
            if config.peers:
                runner.peers()
    return store


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    # Weights of far components underflow, and arithmetic on such numbers is many times slower.
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _field() -> list[tuple[str, float | None]]:
    """All stochastic methods that take a grid, at ``η = 1`` if they take one, and some at ½."""
    found: list[tuple[str, float | None]] = []
    for method in methods().values():
        if not method.deterministic and method.fixed:
            own = method.solver.scheme.solves != "sde" or getattr(method.solver.scheme, "eta", None)
            found.append((method.name, None if own else 1.0))
    return found + [(name, 0.5) for name in HALVED]


class _Runner:
    """Solves and measures on one problem, unless the store knows the answer."""

    def __init__(self, name: str, config: SdeConfig, store: SdeStore, progress: bool) -> None:
        law = make_problem(name, samples=1).denoiser
        assert isinstance(law, GaussianMixture)
        self.name, self.config, self.store, self.progress = name, config, store, progress
        self.law, self.denoiser, self.judge = law, BatchDenoiser(law), Judge(law, SIGMA_MIN)
        self.samples = config.samples if law.dim <= 2 else config.samples // 2
        self.start = self._draw(self.samples, SIGMA_MAX, config.seed)

    def _bar(self, items: Sequence[T], what: str) -> Iterable[T]:
        bar: Iterable[T] = tqdm(
            items, desc=f"{self.name}: {what}", disable=not self.progress, leave=False
        )
        return bar

    def _draw(self, samples: int, sigma: float, seed: int) -> Tensor:
        return self.law.sample(samples, sigma, seed=seed, dtype=torch.float32)

    def _keep(self, key: SdeCell, x: Tensor | None, nfe: int) -> None:
        errors = {} if x is None or not x.isfinite().all() else vars(self.judge(x))
        errors = {name: value for name, value in errors.items() if math.isfinite(value)}
        self.store.add(SdeCell(**{**vars(key), "nfe": nfe, **errors}))

    def exact(self) -> None:
        """Measure sets of exact samples: no sampler does better, but by chance."""
        for n in self._bar(range(DRAWS), "floor"):
            cell = SdeCell(self.name, EXACT, EXACT, "–", None, self.samples, n, 0)
            if cell.key not in self.store.cells:
                x = self._draw(self.samples, SIGMA_MIN, 1000 + self.config.seed + n)
                self._keep(cell, x, 0)

    def ours(self, chosen: Sequence[tuple[str, float | None]], samples: int, what: str) -> None:
        """Measure methods of sdekit at all budgets."""
        for name, eta in self._bar(chosen, what):
            for budget in self.config.budgets:
                self._own(name, eta, samples, budget)

    def _own(self, name: str, eta: float | None, samples: int, budget: int) -> None:
        solver = methods()[name].solver
        cell = SdeCell(self.name, OURS, name, grid_name(solver.grid), eta, samples, budget, 0)
        if cell.key in self.store.cells:
            return
        x, nfe = None, 0
        try:
            # Two samples show what a number of steps costs: some methods add evaluations.
            steps = budget // solver.scheme.nfe_per_step
            while steps and self._solve(solver, eta, self.start[:2], steps)[1] > budget:
                steps -= 1
            if steps:
                x, nfe = self._solve(solver, eta, self.start[:samples], steps)
        except SolveError:
            pass
        except ValueError:
            return  # not for this process, or not for so few steps
        self._keep(cell, x, nfe)

    def _solve(
        self, solver: Solver, eta: float | None, x_hat: Tensor, steps: int
    ) -> tuple[Tensor, int]:
        problem: ProbabilityFlow | ReverseSDE
        if solver.scheme.solves == "sde":
            problem = PROCESS.reverse(self.denoiser, 1.0 if eta is None else eta)
        else:
            problem = PROCESS.probability_flow(self.denoiser)
        bound, _ = fit_solver(solver, problem, x_hat, self.law.sigma_data, gridded=True)
        sigmas = bound.grid(steps, SIGMA_MAX, SIGMA_MIN, PROCESS)
        scale = PROCESS.on_host("scale", PROCESS.on_host("time", sigmas[[0, -1]]))
        with torch.no_grad():
            solution = solve(
                problem,
                x_hat * float(scale[0]),
                method=bound,
                sigmas=sigmas,
                seed=self.config.seed + 1,
            )
        return solution.x / float(scale[1]), solution.nfe

    def peers(self) -> None:
        """Race all settings of the peers on few samples, and measure the best on all."""
        settings = [(peer, grid) for peer in SDE_PEERS.values() for grid in peer.grids]
        kept: dict[tuple[str, str], tuple[Peer, str]] = {}
        heats = [n for n in HEATS if n in self.config.budgets] or sorted(self.config.budgets)[:1]
        for budget in heats:
            bar = self._bar(settings, f"peers, {budget}")
            errors = [self._peer(p, grid, self.samples // SHARE, budget) for p, grid in bar]
            ranked = [settings[i] for i in sorted(range(len(settings)), key=errors.__getitem__)]
            full = [(peer, grid) for peer, grid in ranked if peer.eta == 1]
            for peer, grid in ranked[:KEPT] + full[:KEPT_FULL]:
                kept[peer.name, grid] = peer, grid
        for peer, grid in self._bar(list(kept.values()), "best peers"):
            for budget in self.config.budgets:
                self._peer(peer, grid, self.samples, budget)

    def _peer(self, peer: Peer, grid: str, samples: int, budget: int) -> float:
        """Measure a peer; return its error."""
        cell = SdeCell(self.name, PEER, peer.name, grid, peer.eta, samples, budget, 0)
        if cell.key not in self.store.cells:
            steps, x, nfe = budget // peer.nfe_per_step, None, 0
            if steps:
                with seeded(self.config.seed + 1):
                    x, nfe = peer.run(self.denoiser, self.start[:samples], grid, steps)
            self._keep(cell, x, nfe)
        error = self.store.cells[cell.key].cf
        return math.inf if error is None else error
