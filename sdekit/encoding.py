"""From data to noise: the latents of data along the probability flow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from .affine import AffineSDE
from .denoisers import trained_range
from .prepared import set_up
from .sampling import solve
from .sde import ForwardSDE, Model
from .solution import Solution
from .solvers.registry import Solver

RTOL = 1e-5  # default


def encode(
    process: ForwardSDE,
    denoiser: Model,
    x: Tensor,
    *,
    method: str | Solver | None = None,
    steps: int | None = None,
    sigmas: ArrayLike | None = None,
    times: ArrayLike | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    sigma_data: float | None = None,
    stepping: str = "sample",
    max_nfe: int = 100_000,
    checkpoint: bool = False,
    progress: bool = False,
) -> Solution:
    """Map data to their latents, along the probability flow from the least noise to the most.

    The range is the process's, cut to the noise levels that the denoiser was trained for if it says so
    (``sigma_max`` and ``sigma_min``). `sdekit.solve` down the same range is the inverse.

    Args:
        process: The process.
        denoiser: Callable ``(x_hat, sigma) -> x0_hat``; for a general SDE its score ``(x, t)``.
        x: State of the process at the lowest noise level, ``(B, *event)``.
        method: A name from `sdekit.methods` or a composed `Solver`; see `sdekit.solve`.
        steps: Number of steps over the whole range, instead of a tolerance; backward on the method's
            own grid (with ``method="ddim"``, DDIM inversion).
        sigmas: Two noise levels, from data to noise, for affine processes.
        times: The same in the process's time.
        rtol: Relative tolerance; 1e-5 if no ``steps`` are given.
        atol: Absolute tolerance; ``rtol`` if not given.
        sigma_data: Standard deviation of the data; see `sdekit.solve`.
        stepping: Who shares adaptive steps; see `sdekit.solve`.
        max_nfe: Budget of network evaluations per sample of an adaptive solve.
        checkpoint: Whether gradients take steps again; see `sdekit.solve`.
        progress: Whether to show a progress bar after two seconds.

    Returns:
        The `Solution`; its ``x`` is the latent, the state of the process at the highest noise level.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of its range, or the method does not fit.
        SolveError: If a state becomes non-finite.
    """
    check_process(process)
    problem = process.probability_flow(denoiser)
    if steps is None:
        sigmas, times = ends_of(process, denoiser, sigmas, times)
        return solve(
            problem,
            x,
            method=method,
            sigmas=sigmas,
            times=times,
            rtol=RTOL if rtol is None else rtol,
            atol=atol,
            sigma_data=sigma_data,
            stepping=stepping,
            max_nfe=max_nfe,
            checkpoint=checkpoint,
            progress=progress,
        )
    affine = process if isinstance(process, AffineSDE) else None
    solver, _, grid, calls = set_up(
        problem,
        x,
        method=method,
        steps=steps,
        sigmas=sigmas,
        times=times,
        adaptive=rtol is not None,
        ending="stop",
        sigma_data=sigma_data,
        sigma_range=None if affine is None else range_of(affine, denoiser),
    )
    if solver.scheme.stochastic:
        raise ValueError("encode takes deterministic methods; this one adds noise")
    upward = grid[::-1].copy()
    solution = solve(
        problem,
        x,
        method=solver,
        sigmas=upward if affine else None,
        times=None if affine else upward,
        checkpoint=checkpoint,
        progress=progress,
    )
    stats = replace(solution.stats, nfe_per_sample=solution.stats.nfe_per_sample + calls)
    return replace(solution, nfe=solution.nfe + calls, stats=stats)


def check_process(process: ForwardSDE) -> None:
    """Refuse what is not a process."""
    if not isinstance(process, ForwardSDE):
        raise TypeError(
            f"process is a {type(process).__name__}; pass a process such as sdekit.EDM(), whose "
            "probability flow is taken"
        )


def range_of(process: AffineSDE, denoiser: Model) -> tuple[float, float]:
    """Return the highest and the lowest noise level, where process and denoiser are at home."""
    highest, lowest = trained_range(denoiser)
    return min(process.sigma_max, highest), max(process.sigma_min, lowest)


def ends_of(
    process: ForwardSDE, denoiser: Model, sigmas: ArrayLike | None, times: ArrayLike | None
) -> tuple[ArrayLike | None, ArrayLike | None]:
    """Return ``sigmas`` and ``times`` of a solve from data to noise, one of which is ``None``."""
    if sigmas is None and times is None:
        if isinstance(process, AffineSDE):
            return range_of(process, denoiser)[::-1], None
        return None, (process.t_min, process.T)
    for name, given in (("sigmas", sigmas), ("times", times)):
        if given is not None:
            values = np.asarray(given, dtype=np.float64)
            if values.shape != (2,) or not values[0] < values[1]:
                raise ValueError(f"{name} = {given}; give two values, from data up to noise")
    return sigmas, times
