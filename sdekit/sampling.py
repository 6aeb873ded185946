"""The front door: `solve` a backward problem, `sample` from a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .affine import AffineSDE
from .brownian import IndependentNoise, NoiseSource
from .denoisers import trained_range
from .inputs import check_rows, check_steps, check_tolerances, named_solver, noise_source
from .prepared import set_up
from .sde import Model, ReverseSDE
from .solution import Solution, SolveError, Stats, StepReport
from .solvers.fixed import integrate_fixed
from .solvers.march import Tolerances
from .solvers.registry import Solver
from .solvers.view import Problem
from .stepping import solve_adaptively
from .watching import watched
from .wrapper import evaluations

Array = NDArray[np.float64]


def solve(
    problem: Problem,
    x: Tensor,
    *,
    method: str | Solver | None = None,
    steps: int | None = None,
    sigmas: ArrayLike | None = None,
    times: ArrayLike | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    ending: str = "stop",
    sigma_data: float | None = None,
    seed: int | Sequence[int] | None = None,
    noise: NoiseSource | None = None,
    trajectory: bool = False,
    dense: bool = False,
    stepping: str = "sample",
    max_nfe: int = 100_000,
    checkpoint: bool = False,
    progress: bool = False,
    callback: Callable[[StepReport], object] | None = None,
) -> Solution:
    """Solve a probability flow or a reverse SDE.

    Where to step is said by one of ``steps`` (the method's own grid, from the process's
    ``sigma_max`` to its ``sigma_min``), ``sigmas`` and ``times`` (an explicit grid). With ``rtol``
    the method chooses its steps; a grid then gives the range and the points of the trajectory.

    Inside ``torch.no_grad()`` the loop reuses its buffers: a denoiser that keeps the state it is given
    must keep a copy.

    Args:
        problem: ``process.probability_flow(model)`` or ``process.reverse(model, eta)``.
        x: State of the process at the grid's first point, ``(B, *event)``, float32 or float64; the
            solve keeps its dtype and device.
        method: A name from `sdekit.methods`, a composed `Solver`, or the file of a calibrated one,
            ``"solver.json"``, which needs no ``steps``. Left out, it is the best one
            known: ``"bayesian_adams"`` on a fixed grid, ``"variable_adams"`` with a tolerance; for a
            reverse SDE ``"sea_w_theta"`` if ``η = 1``, else ``"stochastic_adams2"``, and with a
            tolerance ``"shark_theta"``; for a model made by a wrapper of guidance ``"adams2"`` and
            ``"stochastic_adams2"``; for a general SDE ``"adams2_t"``, ``"dopri5_t"`` and
            ``"euler_maruyama_t"``.
        steps: Number of steps, one to ``σ = 0`` included. A method of one evaluation per step makes
            no more calls than this; one that estimates ``sigma_data`` takes a step less.
        sigmas: Strictly decreasing noise levels, for affine processes; for a flow also increasing.
            The last may be 0.
        times: The same in the process's time.
        rtol: Relative tolerance per step and sample, for methods with an error estimate.
        atol: Absolute tolerance; ``rtol`` if not given.
        ending: How the data are reached from the lowest level: ``"stop"`` there, ``"denoise"`` by a
            last step ``x̂ = D(x̂, σ)``, or ``"half"`` by half of that step, ``(x̂ + D)/2``. For
            Gaussian data of variance ``s²`` the results have variance ``s² + σ²``, ``s² − s² σ²/(s² +
            σ²)`` and ``s² + σ⁴/(4 (s² + σ²))``.
        sigma_data: Standard deviation of the data, for methods and grids that use it. If not given
            it is the denoiser's attribute ``sigma_data``, or estimated by one call of the denoiser,
            which is counted and, with ``steps``, taken off them. A wrong value costs accuracy only.
            An estimate is one number for the batch, and that of a batch of one is another.
        seed: Seed of the noise of a stochastic method, or one seed per sample. Not that of a start
            which torch has drawn: its numbers would come again as the noise of the first step.
        noise: Source of noise, instead of a seed.
        trajectory: Whether to keep the states at all grid points; steps that are adaptive do not
            stop there, but are interpolated.
        dense: Whether to keep what gives the states at any level that adaptive steps have passed,
            in ``solution.dense``.
        stepping: Who shares adaptive steps: ``"sample"``, nobody, so that a sample's result does not
            depend on its batch (but through an estimate of ``sigma_data``), and samples that have
            arrived are not evaluated again (conditioning then goes into `sdekit.Conditioned`); or
            ``"batch"``, everyone.
        max_nfe: Most network evaluations per sample of an adaptive solve, all included. A sample that
            cannot pay for its next step, or for the last one to the data, stays where it is.
        checkpoint: Whether gradients take steps again, a few times, instead of keeping what all of
            them computed: memory then does not grow with the number of steps. Adaptive steps are
            searched without gradients and taken once more, which is not counted.
        progress: Whether to show a progress bar after two seconds.
        callback: Called after every step of a fixed grid, with a `StepReport`; what it returns is
            ignored. What it raises ends the solve.

    Returns:
        The `Solution`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of its range, or the method does not fit the problem.
        SolveError: If a state becomes non-finite; the message names step, noise level and sample.

    Example:
        >>> import sdekit as sk
        >>> law = sk.Gaussian([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]])
        >>> flow = sk.EDM().probability_flow(law)
        >>> x_T = law.sample(16, sigma=80.0, seed=0)
        >>> solution = sk.solve(flow, x_T, steps=20)
        >>> exact = law.flow(x_T, 80.0, 0.002)  # known for a Gaussian
        >>> solution.nfe, bool((solution.x - exact).abs().max() < 1e-3)
        (20, True)
    """
    source = noise_source(seed, noise)
    if stepping not in ("sample", "batch"):
        raise ValueError(f"stepping = {stepping!r}; it must be 'sample' or 'batch'")
    if rtol is None and (dense or stepping == "batch"):
        raise ValueError("dense= and stepping= are about adaptive steps; give rtol=")
    if rtol is not None and callback is not None:
        raise ValueError(
            "callback= is told of the steps of a grid; with rtol= samples step on their own, and there "
            "is no step that all of them take. Give steps=, or dense=True for the states between"
        )
    if rtol is not None and checkpoint and isinstance(problem, ReverseSDE):
        raise ValueError("checkpoint=True takes steps again, and needs a deterministic method")
    if rtol is not None and isinstance(problem, ReverseSDE) and (dense or trajectory):
        raise ValueError(
            "a path of an SDE is not interpolated between adaptive steps; leave dense and trajectory "
            "out, or take steps="
        )
    if rtol is not None and checkpoint and (dense or trajectory):
        raise ValueError("checkpoint=True keeps no states between; leave dense and trajectory out")
    solver, view, grid, calls = set_up(
        problem,
        x,
        method=method,
        steps=steps,
        sigmas=sigmas,
        times=times,
        adaptive=rtol is not None,
        ending=ending,
        sigma_data=sigma_data,
    )
    output, stopped = None, np.array([])
    if rtol is not None:
        check_rows(problem.model, x, per_sample=stepping == "sample")
        each = evaluations(problem.model)
        solved = solve_adaptively(
            solver.scheme,
            view,
            x,
            grid,
            Tolerances(*check_tolerances(rtol, atol, x.dtype)),
            ending=ending,
            max_nfe=(check_steps(max_nfe, "max_nfe") - calls) // each,
            per_sample=stepping == "sample",
            trajectory=trajectory,
            dense=dense,
            checkpoint=checkpoint,
            progress=progress,
            noise=source,
        )
        final, path, output, work = solved.x, solved.trajectory, solved.dense, solved.work
        nfe = np.broadcast_to(work.nfe * each + calls, len(x))
        stats = Stats(int(work.steps.max(initial=0)), nfe, int(work.rejected.sum()))
        stopped = np.flatnonzero(np.broadcast_to(work.exhausted, len(x)))
    else:
        unscaled = solver.scheme.unscaled
        us = integrate_fixed(
            solver.scheme.prepare(view, grid, source, ending),
            view.entrance(grid[0], unscaled=unscaled)(x),
            grid,
            view.symbol,
            save=trajectory,
            progress=progress,
            repeatable=not solver.scheme.stochastic,
            checkpoint=checkpoint,
            on_step=None if callback is None else watched(view, grid, unscaled, callback),
        )
        levels = grid[-len(us) :, None]
        states = [
            view.exit(level, unscaled=unscaled)(v) for v, level in zip(us, levels, strict=True)
        ]
        final, path = states[-1], torch.stack([x, *states]) if trajectory else None
        stats = Stats(len(grid) - 1, np.full(len(x), view.nfe + calls))
    outcome: dict[str, str] = {}
    if len(stopped):
        outcome = {
            "status": "max_nfe",
            "message": f"{len(stopped)} of {len(x)} samples (the first is {stopped[0]}) used up "
            f"max_nfe = {max_nfe} evaluations before the end and are returned where they were; raise "
            "max_nfe or loosen rtol.",
        }
    return Solution(
        x=final,
        nfe=int(stats.nfe_per_sample.max(initial=0)),
        grid=grid,
        trajectory=path,
        dense=output,
        stats=stats,
        **outcome,
    )


@torch.no_grad()
def sample(
    process: AffineSDE,
    denoiser: Model,
    shape: tuple[int, ...],
    *,
    method: str | Solver | None = None,
    steps: int | None = None,
    sigmas: ArrayLike | None = None,
    times: ArrayLike | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    ending: str = "stop",
    sigma_data: float | None = None,
    eta: float | None = None,
    seed: int | Sequence[int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
    callback: Callable[[StepReport], object] | None = None,
) -> Tensor:
    """Draw samples: start from pure noise and solve down to the data, without gradients.

    With ``steps`` or ``rtol`` the range is the process's, cut to the noise levels that the denoiser
    was trained for if it says so (``sigma_max`` and ``sigma_min``). For gradients, trajectories or
    statistics take `solve`.

    Args:
        process: An affine process.
        denoiser: Callable ``(x_hat, sigma) -> x0_hat``; fix its conditioning by
            ``functools.partial``.
        shape: Shape of the samples, ``(B, *event)``.
        method: A name from `sdekit.methods` or a composed `Solver`; see `solve`. Methods of the
            reverse SDE and of the flow are accepted alike.
        steps: Number of steps, one to ``σ = 0`` included.
        sigmas: Explicit noise levels, instead of steps.
        times: Explicit times, instead of steps.
        rtol: Relative tolerance, for methods with an error estimate.
        atol: Absolute tolerance; ``rtol`` if not given.
        ending: How the data are reached; see `solve`.
        sigma_data: Standard deviation of the data, if the denoiser does not say it; see `solve`.
        eta: Stochasticity of a method of the reverse SDE; 1 if not given.
        seed: Seed of start and noise, or one seed per sample.
        device: Device of the samples.
        dtype: Dtype of the solver's state, float32 or float64.
        progress: Whether to show a progress bar after two seconds.
        callback: Called after every step; see `solve`.

    Returns:
        The samples, ``shape``, at the scale of the process where the solve ends.

    Raises:
        TypeError: If the process is not affine, or an argument is of the wrong kind.
        ValueError: If an argument is out of its range; see `solve`.
        SolveError: If a state becomes non-finite, or an adaptive solve does not reach the end.

    Example:
        >>> import sdekit as sk
        >>> law = sk.GaussianMixture.random(components=3, dim=2, seed=0)  # or your denoiser
        >>> sk.sample(sk.VP(), law, shape=(8, 2), steps=10, seed=0).shape
        torch.Size([8, 2])
    """
    if not isinstance(process, AffineSDE):
        raise TypeError(
            f"process is a {type(process).__name__}; sample needs an affine process, whose prior "
            "is known. Draw a start for a general SDE yourself and call solve"
        )
    flow = method is None or named_solver(method).scheme.solves == "flow"
    if flow and eta is not None:
        raise ValueError(
            f"eta = {eta}, but the method solves the probability flow, which has none; take a method "
            "of the reverse SDE, such as 'euler_maruyama'"
        )
    problem = (
        process.probability_flow(denoiser)
        if flow
        else process.reverse(denoiser, 1.0 if eta is None else eta)
    )
    highest, lowest = trained_range(denoiser)
    empty = torch.empty(shape, device=device, dtype=dtype)
    solver, _, grid, _ = set_up(
        problem,
        empty,
        method=method,
        steps=steps,
        sigmas=sigmas,
        times=times,
        adaptive=rtol is not None,
        ending=ending,
        sigma_data=sigma_data,
        sigma_range=(min(process.sigma_max, highest), max(process.sigma_min, lowest)),
        reversible=False,
    )
    # One stream for the start and then the steps: the same numbers are never used twice.
    noise = IndependentNoise(seed)
    std = float(process.on_host("std", process.on_host("time", grid[0])))
    start = noise.normal(empty) * std
    solution = solve(
        problem,
        start,
        method=solver,
        sigmas=grid,
        rtol=rtol,
        atol=atol,
        ending=ending,
        noise=noise,
        progress=progress,
        callback=callback,
    )
    if solution.status != "success":
        raise SolveError(solution.message)
    return solution.x
