"""Run every deterministic method on every problem, over budgets and tolerances."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tqdm.auto import tqdm

from ..solution import SolveError
from ..solvers.registry import Method, methods
from .problems import (
    PROCESS,
    SIGMA_MAX,
    SIGMA_MIN,
    SUITES,
    Problem,
    Reference,
    check_problem_name,
    make_problem,
    rms,
    solve_reference,
)

# A tolerance that takes more is recorded as unfinished.
MAX_NFE = 10_000


# What a benchmark runs when no methods are named: one of each kind that is worth comparing.
METHODS = (
    "bayesian_adams",
    "adams3",
    "dpmpp_2m",
    "dpmpp_3s",
    "unipc_bh2_3",
    "lms4",
    "deis_t3",
    "ddim",
    "heun",
    "rk4_theta",
    "dopri5",
    "dopri5_t",
    "dopri5_theta",
    "variable_adams",
)


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        problems: Names of problems.
        methods: Names of deterministic methods.
        budgets: Network evaluations that a fixed grid may take; some are no multiple of the stages
            of a method, which then takes fewer.
        rtols: Tolerances (relative and absolute) for the methods with an error estimate.
        samples: Number of start states.
        seed: Seed of the start states.

    Raises:
        ValueError: If a name is unknown, a method is stochastic, or a number is not positive.
    """

    problems: tuple[str, ...] = SUITES["quick"]
    methods: tuple[str, ...] = METHODS
    budgets: tuple[int, ...] = (6, 8, 10, 15, 20, 31, 40, 61, 80, 120, 200, 400)
    rtols: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
    samples: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for problem in self.problems:
            check_problem_name(problem)
        for name in self.methods:
            if not methods()[name].deterministic:
                raise ValueError(
                    f"method {name!r} is stochastic or solves the reverse SDE; the benchmark compares "
                    "final states path by path, so it takes methods of the probability flow only"
                )
        for what, values in (("budget", self.budgets), ("number of samples", (self.samples,))):
            if min(values, default=0) < 1:
                raise ValueError(f"every {what} must be at least 1, got {values}")


QUICK = Config(budgets=(6, 10, 20, 40, 80), rtols=(1e-2, 1e-4, 1e-6), samples=16)


@dataclass(frozen=True)
class Cell:
    """One solve, judged.

    Attributes:
        problem: Name of the problem.
        method: Name of the method.
        grid: Name of the grid, or "adaptive".
        budget: Evaluations allowed, on a fixed grid.
        rtol: Tolerance, in an adaptive solve.
        steps: Steps taken, by the sample that took most.
        nfe: Network evaluations, mean over the samples.
        nfe_max: The same of the sample that took most.
        error: RMS distance of the final states from the reference; none if the solve failed.
        at_floor: Whether the error is within ten times the reference's own discrepancy.
        seconds: Wall time of one run.
        status: "success", or how the solve failed.
    """

    problem: str
    method: str
    grid: str
    budget: int | None
    rtol: float | None
    steps: int
    nfe: float
    nfe_max: int
    error: float | None
    at_floor: bool
    seconds: float
    status: str


@dataclass(frozen=True)
class Results:
    """All cells of a run, and what they were measured against."""

    config: Config
    references: dict[str, Reference] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)

    def select(
        self, problem: str, method: str | None = None, *, adaptive: bool = False
    ) -> list[Cell]:
        """Return the cells of a problem (and method), by growing budget or tighter tolerance."""
        return [
            cell
            for cell in self.cells
            if cell.problem == problem
            and method in (None, cell.method)
            and (cell.rtol is not None) == adaptive
        ]


def run_benchmark(config: Config | None = None, *, progress: bool = False) -> Results:
    """Run the benchmark.

    Args:
        config: What to run; everything by default.
        progress: Whether to show a progress bar.

    Returns:
        The results; solves that fail are among them.

    Raises:
        RuntimeError: If a reference solution cannot be computed.
    """
    config = Config() if config is None else config
    results = Results(config)
    chosen = [methods()[name] for name in config.methods]
    count = len(config.problems) * (1 + len(chosen))
    with tqdm(total=count, disable=not progress, leave=False) as bar:
        for name in config.problems:
            bar.set_description(f"{name}: reference")
            problem = make_problem(name, samples=config.samples, seed=config.seed)
            reference = solve_reference(problem)
            results.references[name] = reference
            bar.update()
            for method in chosen:
                bar.set_description(f"{name}: {method.name}")
                results.cells.extend(_cells(problem, reference, method, config))
                bar.update()
    return results


def _cells(
    problem: Problem, reference: Reference, method: Method, config: Config
) -> Iterator[Cell]:
    scheme = method.solver.scheme
    done: dict[int, Cell] = {}  # by steps: two budgets may allow the same number
    for budget in sorted(config.budgets) if method.fixed else ():
        # A scheme that needs evaluations to start takes fewer steps than the quotient.
        for steps in range(budget // scheme.nfe_per_step, 0, -1):
            if steps not in done:
                done[steps] = _run(problem, reference, method, budget=budget, steps=steps)
            if done[steps].nfe <= budget:
                yield replace(done[steps], budget=budget)
                break
    if scheme.adaptive:
        for rtol in sorted(config.rtols, reverse=True):
            yield _run(problem, reference, method, rtol=rtol)


def _run(
    problem: Problem,
    reference: Reference,
    method: Method,
    *,
    budget: int | None = None,
    steps: int = 0,
    rtol: float | None = None,
) -> Cell:
    """Solve on a grid of so many steps, or to a tolerance, and compare with the reference."""
    grid = [SIGMA_MAX, SIGMA_MIN]  # the range of an adaptive solve
    if rtol is None:
        grid = method.solver.grid(steps, SIGMA_MAX, SIGMA_MIN, PROCESS).tolist()
    nfe_max = steps * method.solver.scheme.nfe_per_step
    nfe, error = float(nfe_max), math.nan
    begin = time.perf_counter()
    try:
        x, solution = problem.solve(method.solver, sigmas=grid, rtol=rtol, max_nfe=MAX_NFE)
    except SolveError as failure:
        status = str(failure)
    else:
        steps, nfe_max, status = solution.stats.steps, solution.nfe, solution.status
        nfe = float(solution.stats.nfe_per_sample.mean())
        if status == "success":
            error = rms(x - reference.x)
    return Cell(
        problem=problem.name,
        method=method.name,
        grid=method.row()[2] if rtol is None else "adaptive",
        budget=budget,
        rtol=rtol,
        steps=steps,
        nfe=nfe,
        nfe_max=nfe_max,
        error=error if math.isfinite(error) else None,
        at_floor=error <= reference.floor,
        seconds=time.perf_counter() - begin,
        status=status,
    )
