"""The suite of adaptive methods: what a given error costs, beside torchdiffeq, scipy and DPM-Solver.

Every method solves every problem over a ladder of tolerances. Every solve is kept the moment it is
known, so that a run that is killed goes on where it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ...inputs import default_method
from ...solution import SolveError
from ...solvers.registry import methods
from ..peers import ODE_PEERS, OdePeer
from ..peers.of_ode import ALONE, BATCH
from ..problems import SIGMA_MAX, SIGMA_MIN, SUITES, Problem, check_problem_name, make_problem, rms
from ..recommend import nfe_to_reach
from .cells import CellStore
from .ratios import OURS, PEER

# Two tolerances per decade; one where a peer solves samples one by one.
RTOLS = tuple(10 ** (-k / 2) for k in range(2, 23))
_TARGETS = (1e-3, 1e-5, 1e-8)
_NETWORK_TARGETS = (1e-3, 1e-5)

# What is run beside the default, as far as it is there: more of sdekit, and the pairs of DPM-Solver
# as published, which are peers though sdekit runs them.
METHODS = ("dopri5_theta", "tsit5_theta", "dop853_theta", "bosh3_theta")
_PUBLISHED = "dpm_adaptive"
PUBLISHED = (f"{_PUBLISHED}_12", f"{_PUBLISHED}_23")

# A solve that takes more of a sample has failed. So has one, but of sdekit's default, that takes this
# many times what some peer has needed for the least target: it cannot be the best.
MAX_NFE = 5000
_HOPELESS = 2.5
# To solve samples one by one takes as many times as long, and at most a quarter less evaluations of
# each. A peer does it for the targets for which, all at once, it comes within this factor of the best.
_CLOSE = 1.4
# The absolute tolerance of a peer, as a multiple of the relative one. Ten is better than one for
# LSODA and dopri8, by up to a fifth; smaller and larger ones are not.
_ATOLS = (1.0, 10.0)


def targets(problem: str) -> tuple[float, ...]:
    """Errors whose cost is asked for on a problem."""
    return _NETWORK_TARGETS if problem == "digits" else _TARGETS


def default_methods() -> tuple[str, ...]:
    """What is run when no methods are named: sdekit's default first."""
    default = default_method(flow=True, affine=True, adaptive=True)
    names = dict.fromkeys((default, *METHODS, *PUBLISHED))
    return tuple(name for name in names if name in methods())


@dataclass(frozen=True)
class ToleranceConfig:
    """What to run.

    Attributes:
        problems: Names of problems.
        methods: Names of adaptive methods in sdekit's registry.
        rtols: Tolerances, the loosest first.
        samples: Number of start states.
        seed: Seed of the start states.
        peers: Whether to run other packages.

    Raises:
        ValueError: If a name is unknown, or a method does not take tolerances.
    """

    problems: tuple[str, ...] = SUITES["adaptive"]
    methods: tuple[str, ...] = field(default_factory=default_methods)
    rtols: tuple[float, ...] = RTOLS
    samples: int = 16
    seed: int = 0
    peers: bool = True

    def __post_init__(self) -> None:
        for problem in self.problems:
            check_problem_name(problem)
        for name in self.methods:
            if not (methods()[name].deterministic and methods()[name].solver.scheme.adaptive):
                raise ValueError(f"method {name!r} takes no tolerance; 'sdekit list' says which do")


QUICK = ToleranceConfig(problems=("mixture2d",), rtols=RTOLS[:11:2], samples=4)


@dataclass(frozen=True)
class ToleranceCell:
    """One solve to a tolerance.

    Attributes:
        problem: Name of the problem.
        group: ``"sdekit"`` or ``"peer"``.
        method: Name of the method.
        mode: ``"alone"``: each sample has steps of its own; ``"batch"``: all have the same.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        nfe: Network evaluations, mean over the samples; none if the solve failed.
        nfe_max: The same of the sample that took most.
        error: RMS distance of the final states from the reference; none if the solve failed.
        seconds: Wall time.
        status: ``"success"``, or how the solve failed.
    """

    problem: str
    group: str
    method: str
    mode: str
    rtol: float
    atol: float
    nfe: float | None
    nfe_max: int | None
    error: float | None
    seconds: float
    status: str

    @property
    def key(self) -> tuple[str, str, str, str, float, float]:
        """What identifies the cell."""
        return self.problem, self.group, self.method, self.mode, self.rtol, self.atol

    @property
    def factor(self) -> float:
        """Absolute tolerance, as a multiple of the relative one."""
        return round(self.atol / self.rtol, 6)

    @property
    def setting(self) -> str:
        """How a method was run, in words."""
        return self.mode if self.factor == 1 else f"{self.mode}, atol = {self.factor:g} rtol"


ToleranceStore: TypeAlias = CellStore[ToleranceCell]


def run_tolerances(
    config: ToleranceConfig,
    folder: Path,
    *,
    anew: Iterable[str] = (),
    progress: bool = False,
) -> ToleranceStore:
    """Run what is missing of the suite in a folder.

    Args:
        config: What to run.
        folder: Where the cells are kept.
        anew: Names of methods whose cells are measured again.
        progress: Whether to show a progress bar.

    Returns:
        The store, with all cells of the folder.

    Raises:
        RuntimeError: If a reference solution cannot be computed.
    """
    store = CellStore(folder, ToleranceCell, samples=config.samples, seed=config.seed)
    again = set(anew)
    store.forget(lambda cell: cell.method in again and cell.problem in config.problems)
    for name in tqdm(config.problems, disable=not progress, desc="adaptive"):
        problem = make_problem(name, samples=config.samples, seed=config.seed)
        ladders = list(_ladders(problem, config))
        reference = store.reference(problem)
        for ladder in tqdm(ladders, disable=not progress, desc=name, leave=False):
            ladder.climb(store, reference)
    return store


Solve: TypeAlias = Callable[[float, float, int], tuple[Tensor, NDArray[np.int64]]]


@dataclass(frozen=True)
class _Ladder:
    """A method on a problem, at tighter and tighter tolerances.

    Attributes:
        problem: Name of the problem.
        group: Group of the cells.
        method: Name of the method.
        mode: Mode of the cells.
        factor: Absolute tolerance, as a multiple of the relative one.
        rtols: Relative tolerances, the loosest first.
        solve: Function ``(rtol, atol, max_nfe)`` that returns final states and the evaluations of
            each.
        judged_whole: Whether all tolerances count, not only the costs of the targets.
    """

    problem: str
    group: str
    method: str
    mode: str
    factor: float
    rtols: tuple[float, ...]
    solve: Solve
    judged_whole: bool = False

    def climb(self, store: ToleranceStore, reference: Tensor) -> None:
        """Measure what the store does not know, as far as there is something to be learnt."""
        least = self._last_target(store)
        failures, max_nfe = 0, self._limit(store)
        for rtol in self.rtols if least is not None else ():
            key = (self.problem, self.group, self.method, self.mode, rtol, self.factor * rtol)
            if key not in store.cells:
                store.add(self._measure(rtol, max_nfe, reference))
            error = store.cells[key].error
            failures = failures + 1 if error is None else 0
            if failures == 2 or (error is not None and error <= (least or 0.0)):
                break

    def _last_target(self, store: ToleranceStore) -> float | None:
        """Return the error at which to end; none if nothing here can be the best."""
        if self.judged_whole:
            return 0.0
        errors = targets(self.problem)
        curves: dict[tuple[str, float], list[tuple[float, float]]] = {}
        for cell in store.of((self.problem,)):
            if cell.mode == BATCH and cell.nfe is not None and cell.error is not None:
                curves.setdefault((cell.method, cell.factor), []).append((cell.nfe, cell.error))
        mine = curves.get((self.method, self.factor))
        if self.mode == BATCH or mine is None:
            return min(errors)
        close = []
        for target in errors:
            costs = [nfe_to_reach(points, target) for points in curves.values()]
            cost = nfe_to_reach(mine, target)
            if cost is not None and cost <= _CLOSE * min(c for c in costs if c is not None):
                close.append(target)
        return min(close, default=None)

    def _limit(self, store: ToleranceStore) -> int:
        """Evaluations that a sample may take."""
        if self.judged_whole:
            return MAX_NFE
        least = min(targets(self.problem))
        known = (
            cell.nfe
            for cell in store.of((self.problem,))
            if cell.group == PEER and cell.nfe is not None and (cell.error or math.inf) <= least
        )
        return int(min(MAX_NFE, _HOPELESS * min(known, default=MAX_NFE)))

    def _measure(self, rtol: float, max_nfe: int, reference: Tensor) -> ToleranceCell:
        atol = self.factor * rtol
        nfe, nfe_max, error, status = None, None, math.nan, "success"
        begin = time.perf_counter()
        try:
            x, counts = self.solve(rtol, atol, max_nfe)
        except RuntimeError as failure:  # SolveError among them
            status = str(failure)
        else:
            nfe, nfe_max, error = float(counts.mean()), int(counts.max()), rms(x - reference)
        return ToleranceCell(
            problem=self.problem,
            group=self.group,
            method=self.method,
            mode=self.mode,
            rtol=rtol,
            atol=atol,
            nfe=nfe,
            nfe_max=nfe_max,
            error=error if math.isfinite(error) else None,
            seconds=time.perf_counter() - begin,
            status=status,
        )


def _ladders(problem: Problem, config: ToleranceConfig) -> Iterator[_Ladder]:
    """All that is to be run on a problem: what says what can be left out comes first."""
    default = default_methods()[0]

    def peers(mode: str, rtols: tuple[float, ...]) -> Iterator[_Ladder]:
        for peer, factor in product(ODE_PEERS.values() if config.peers else (), _ATOLS):
            solve = partial(_other, problem, peer, mode)
            yield _Ladder(problem.name, PEER, peer.name, mode, factor, rtols, solve)

    yield from peers(BATCH, config.rtols)
    for name in config.methods:
        group = PEER if name.startswith(_PUBLISHED) else OURS
        solve: Solve = partial(_own, problem, name)
        whole = name == default
        yield _Ladder(problem.name, group, name, ALONE, 1.0, config.rtols, solve, whole)
    yield from peers(ALONE, config.rtols[::2])


def _own(
    problem: Problem, method: str, rtol: float, atol: float, max_nfe: int
) -> tuple[Tensor, NDArray[np.int64]]:
    """Solve by a method of the registry.

    Raises:
        SolveError: If it does not reach the end.
    """
    with torch.no_grad():
        x, solution = problem.solve(
            method, sigmas=[SIGMA_MAX, SIGMA_MIN], rtol=rtol, atol=atol, max_nfe=max_nfe
        )
    if solution.status != "success":
        raise SolveError(solution.message)
    return x, solution.stats.nfe_per_sample


def _other(
    problem: Problem, peer: OdePeer, mode: str, rtol: float, atol: float, max_nfe: int
) -> tuple[Tensor, NDArray[np.int64]]:
    """Solve by a peer."""
    x, model = problem.start, problem.denoiser
    return peer.run(model, x, rtol=rtol, atol=atol, mode=mode, max_nfe=max_nfe)
