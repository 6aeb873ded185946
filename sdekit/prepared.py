"""Solves set up once: what is asked for is checked, and all that the host has to do is done."""

from __future__ import annotations

from dataclasses import dataclass, field

from numpy.typing import ArrayLike
from torch import Tensor

from .affine import AffineSDE
from .brownian import IndependentNoise
from .calibrated import CalibratedSolver
from .inputs import (
    Array,
    check_ending,
    check_problem,
    check_start,
    check_state,
    check_steps,
    choose_solver,
    resolve_grid,
)
from .scale import fit_solver
from .sde import ProbabilityFlow
from .solvers.fixed import integrate_fixed
from .solvers.registry import Solver
from .solvers.scheme import Step
from .solvers.view import AffineView, GeneralView, Map, Problem, View
from .wrapper import evaluations, is_guided


def set_up(
    problem: Problem,
    x: Tensor,
    *,
    method: str | Solver | None,
    steps: int | None,
    sigmas: ArrayLike | None,
    times: ArrayLike | None,
    adaptive: bool,
    ending: str,
    sigma_data: float | None,
    sigma_range: tuple[float, float] | None = None,
    reversible: bool = True,
) -> tuple[Solver, View, Array, int]:
    """Check what is asked for; return the solver, the view, the grid and the evaluations already made.

    The arguments are those of `sdekit.solve`, and ``x`` is read for its kind and shape only;
    ``sigma_range`` is that of a grid of ``steps``, by default the process's, and ``reversible`` whether
    a flow may go towards more noise.
    """
    check_problem(problem)
    check_state(x)
    check_ending(ending)
    flow, affine = isinstance(problem, ProbabilityFlow), isinstance(problem.sde, AffineSDE)
    solver = choose_solver(
        method,
        flow=flow,
        affine=affine,
        adaptive=adaptive,
        eta=problem.eta,
        guided=is_guided(problem.model),
    )

    event_shape = solver.scheme.event_shape
    if event_shape is not None and event_shape != x.shape[1:]:
        raise ValueError(
            f"the solver was calibrated for samples of shape {event_shape}, and these have "
            f"{tuple(x.shape[1:])}; calibrate one for them"
        )
    if isinstance(solver, CalibratedSolver) and steps is sigmas is times is None:
        sigmas = solver.sigmas
    if steps is not None:
        check_steps(steps)
    solver, calls = fit_solver(
        solver, problem, x, sigma_data, gridded=steps is not None, free=steps == 1
    )
    grid = resolve_grid(
        problem.sde,
        solver,
        steps=steps if steps is None else steps - calls,
        sigmas=sigmas,
        times=times,
        adaptive=adaptive,
        ending=ending,
        reversible=reversible and flow and not solver.scheme.stochastic,
        sigma_range=sigma_range,
    )
    view: View = AffineView(problem, solver.coordinates, x) if affine else GeneralView(problem, x)
    check_start(view, grid, stochastic=solver.scheme.stochastic)
    return solver, view, grid, calls * evaluations(problem.model)


def check_like(x: Tensor, like: Tensor) -> None:
    """Refuse a state that differs from another in anything but the number of samples."""
    if (x.shape[1:], x.dtype, x.device) != (like.shape[1:], like.dtype, like.device):
        raise ValueError(
            f"x is {tuple(x.shape)}, {x.dtype}, on {x.device}; this was prepared for samples of "
            f"shape {tuple(like.shape[1:])}, {like.dtype}, on {like.device}"
        )


@dataclass(frozen=True)
class Prepared:
    """A solve of a flow on a fixed grid with all that the host has to do done; see `prepare`.

    Attributes:
        grid: Noise levels, or times, float64.
    """

    grid: Array
    _like: Tensor = field(repr=False)
    _symbol: str = field(repr=False)
    _entrance: Map = field(repr=False)
    _step: Step = field(repr=False)
    _exit: Map = field(repr=False)
    _checkpoint: bool = field(repr=False)

    def __call__(self, x: Tensor) -> Tensor:
        """Solve from ``x`` at ``grid[0]``, ``(B, *event)``; return the state at ``grid[-1]``.

        Raises:
            ValueError: If ``x`` differs from the state it was prepared for in anything but the number
                of samples.
            SolveError: If a state becomes non-finite. Compiled, or captured in a CUDA graph, the
                loop cannot stop to look, and returns what it has.
        """
        check_like(x, self._like)
        (state,) = integrate_fixed(
            self._step,
            self._entrance(x),
            self.grid,
            self._symbol,
            save=False,
            progress=False,
            repeatable=True,
            checkpoint=self._checkpoint,
        )
        return self._exit(state)


def prepare(
    problem: ProbabilityFlow,
    like: Tensor,
    *,
    method: str | Solver | None = None,
    steps: int | None = None,
    sigmas: ArrayLike | None = None,
    times: ArrayLike | None = None,
    ending: str = "stop",
    sigma_data: float | None = None,
    checkpoint: bool = False,
) -> Prepared:
    """Prepare a solve on a fixed grid, to be called many times, compiled or captured.

    The result is a function of the start state that works on the device only:
    ``torch.compile(prepared, fullgraph=True)`` makes one graph of the whole solve, and a CUDA graph can
    capture it. The arguments are those of `solve`.

    Args:
        problem: ``process.probability_flow(model)``.
        like: A state with the shape, dtype and device of those to come; where ``sigma_data`` has to
            be estimated, a start state.
        method: A name from `sdekit.methods` or a composed `Solver`.
        steps: Number of steps.
        sigmas: Explicit noise levels.
        times: Explicit times.
        ending: How the data are reached.
        sigma_data: Standard deviation of the data.
        checkpoint: Whether gradients take steps again instead of keeping what they computed; the
            denoiser may be compiled then, the solve not.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of its range, or the problem is a reverse SDE.
    """
    if not isinstance(problem, ProbabilityFlow):
        raise TypeError(
            "prepare takes a probability flow; a reverse SDE needs new noise every time"
        )
    solver, view, grid, _ = set_up(
        problem,
        like,
        method=method,
        steps=steps,
        sigmas=sigmas,
        times=times,
        adaptive=False,
        ending=ending,
        sigma_data=sigma_data,
    )
    scheme = solver.scheme
    if scheme.stochastic:
        raise ValueError("prepare takes deterministic methods; this one needs new noise every time")
    return Prepared(
        grid,
        like[:0],
        view.symbol,
        view.entrance(grid[0], unscaled=scheme.unscaled),
        scheme.prepare(view, grid, IndependentNoise(None), ending),
        view.exit(grid[-1:], unscaled=scheme.unscaled),
        checkpoint,
    )
