"""What a solve is asked to do, checked at the door: state, method, grid and tolerances."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .affine import AffineSDE
from .brownian import IndependentNoise, NoiseSource
from .calibrated import load_solver
from .coordinates import Native
from .denoisers import layers
from .sde import ForwardSDE, Model, ProbabilityFlow, ReverseSDE
from .solvers.registry import Solver, methods
from .solvers.view import Problem, View

Array = NDArray[np.float64]

# How a grid may end: at its lowest level; by a denoising step x̂ = D to σ = 0; or by half of one, which
# keeps the variance to second order in σ².
ENDINGS = ("stop", "denoise", "half")

# A tolerance closer to zero than this many round-off units cannot be told from round-off.
_RESOLUTION = 50


def check_problem(problem: Problem) -> None:
    """Refuse what is not a backward problem."""
    if not isinstance(problem, ProbabilityFlow | ReverseSDE):
        raise TypeError(
            f"problem is a {type(problem).__name__}; pass process.probability_flow(model) or "
            "process.reverse(model, eta)"
        )


def check_ending(ending: str) -> None:
    """Refuse an ending that there is not."""
    if ending not in ENDINGS:
        raise ValueError(f"ending = {ending!r}; it must be one of {', '.join(map(repr, ENDINGS))}")


def check_state(x: Tensor) -> None:
    """Refuse a state that is not a batch in float32 or float64."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; it must be a torch tensor")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"x has dtype {x.dtype}; the solver's state is float32 or float64 (the denoiser may "
            "work in another dtype inside)"
        )
    if x.ndim < 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; it must be a batch (B, *event), such as "
            f"({x.shape[0] if x.ndim else 1}, 1)"
        )


def named_solver(method: str | Solver) -> Solver:
    """Resolve a method name, or the file of a calibrated solver; a solver is returned as it is.

    Raises:
        TypeError: If the method is neither a name nor a `Solver`.
        ValueError: If the name is unknown, or the file is no calibrated solver.
    """
    if isinstance(method, str) and method.endswith(".json"):
        return load_solver(method)
    if isinstance(method, str):
        return methods()[method].solver
    if isinstance(method, Solver):
        return method
    raise TypeError(
        f"method is a {type(method).__name__}; pass a name from sdekit.methods() or a Solver"
    )


def default_method(
    *, flow: bool, affine: bool, adaptive: bool, eta: float = 0.0, guided: bool = False
) -> str:
    """Return the name of the method taken when none is given."""
    if not flow:
        if not affine:
            return "euler_maruyama_t"
        if adaptive:
            return "shark_theta"
        # Guided scores are no martingales, not even with η = 1, which sea_w_theta rests on.
        return "sea_w_theta" if eta == 1 and not guided else "stochastic_adams2"
    if not affine:
        return "dopri5_t" if adaptive else "adams2_t"
    if adaptive:
        return "variable_adams"
    # The prior of bayesian_adams is one of fields that are not steepened.
    return "adams2" if guided else "bayesian_adams"


def choose_solver(
    method: str | Solver | None,
    *,
    flow: bool,
    affine: bool,
    adaptive: bool,
    eta: float,
    guided: bool,
) -> Solver:
    """Resolve a method name, or take the default one.

    Args:
        method: Name, composed solver, or ``None`` for the default.
        flow: Whether the problem is a probability flow, not a reverse SDE.
        affine: Whether the process is affine.
        adaptive: Whether a tolerance is given.
        eta: Stochasticity of the problem.
        guided: Whether its model is made of others by a `Wrapper`.

    Raises:
        TypeError: If the method is neither a name nor a `Solver`.
        ValueError: If the name is unknown or the method does not fit the problem.
    """
    if method is None:
        method = default_method(flow=flow, affine=affine, adaptive=adaptive, eta=eta, guided=guided)
    solver = named_solver(method)
    name, scheme = repr(method) if isinstance(method, str) else "this solver", solver.scheme
    if flow and scheme.solves != "flow":
        raise ValueError(
            f"{name} integrates reverse SDEs; use process.reverse(model, eta), or a method of the "
            "probability flow such as 'heun'"
        )
    if not flow and scheme.solves != "sde":
        raise ValueError(
            f"{name} integrates the probability flow; use process.probability_flow(model), or a "
            "method of reverse SDEs such as 'euler_maruyama'"
        )
    if not affine and (scheme.affine_only or not isinstance(solver.coordinates, Native)):
        raise ValueError(
            f"{name} needs an affine process, whose noise level and scale it works with; for a "
            "general SDE take a method in its own time, such as 'heun_t' or 'euler_maruyama_t'"
        )
    if adaptive and not scheme.adaptive:
        able = [key for key, entry in methods().items() if entry.solver.scheme.adaptive]
        raise ValueError(
            f"{name} has no error estimate, so it cannot meet rtol; give steps=, or take "
            f"one of {', '.join(able)}"
        )
    if not adaptive and not scheme.fixed:
        raise ValueError(f"{name} chooses its own steps; give rtol= and at most a range")
    return solver


def check_rows(model: Model, x: Tensor, *, per_sample: bool) -> None:
    """Refuse conditioning per sample that cannot follow samples which leave the batch."""
    if not per_sample or len(x) < 2:
        return
    partials = [f for f in layers(model) if isinstance(f, functools.partial)]
    for name, value in (item for f in partials for item in f.keywords.items()):
        if any(isinstance(v, Tensor) and v.ndim and len(v) == len(x) for v in tree_leaves(value)):
            raise ValueError(
                f"{name} has an entry for each of {len(x)} samples, which leave the batch one by one "
                f"when they have arrived; give sdekit.Conditioned(denoiser, {name}=...) instead of "
                "functools.partial, or stepping='batch'"
            )


def check_tolerances(rtol: float, atol: float | None, dtype: torch.dtype) -> tuple[float, float]:
    """Return ``(rtol, atol)``; refuse what the dtype cannot resolve."""
    resolution = _RESOLUTION * torch.finfo(dtype).eps
    if not rtol >= resolution:
        raise ValueError(
            f"rtol = {rtol:g} is below what {dtype} can resolve; use rtol >= {resolution:.1e}"
            + (", or a float64 state" if dtype == torch.float32 else "")
        )
    atol = rtol if atol is None else atol
    if not 0 < atol < np.inf:
        raise ValueError(f"atol = {atol:g}; it must be positive and finite")
    return rtol, atol


def resolve_grid(
    sde: ForwardSDE,
    solver: Solver,
    *,
    steps: int | None,
    sigmas: ArrayLike | None,
    times: ArrayLike | None,
    adaptive: bool,
    ending: str,
    reversible: bool,
    sigma_range: tuple[float, float] | None = None,
) -> Array:
    """Return the grid of a solve: noise levels for an affine process, times for a general SDE.

    Args:
        sde: The forward SDE.
        solver: The solver, whose grid is used with ``steps``.
        steps: Number of steps.
        sigmas: Explicit noise levels.
        times: Explicit times.
        adaptive: Whether a tolerance is given, so that the grid is a range with output points.
        ending: One of `ENDINGS`.
        reversible: Whether the problem may also be solved towards more noise.
        sigma_range: Range ``(sigma_max, sigma_min)`` of a grid of ``steps``; the process's if not
            given.

    Raises:
        TypeError: If not exactly one of the three is given (with a tolerance: at most a grid).
        ValueError: If the grid is not what it should be.
    """
    given = [
        k for k, v in {"steps": steps, "sigmas": sigmas, "times": times}.items() if v is not None
    ]
    if len(given) > 1 or (adaptive and steps is not None) or not (given or adaptive):
        raise TypeError(
            f"got {' and '.join([*given, *(['rtol'] if adaptive else [])]) or 'no grid'}; give one "
            "of steps=, sigmas=, times= for a fixed grid, or rtol= with at most a grid"
        )
    if not isinstance(sde, AffineSDE):
        return _general_grid(
            sde, steps=steps, sigmas=sigmas, times=times, ending=ending, reversible=reversible
        )
    if sigmas is None and times is None:
        high, low = sigma_range or (sde.sigma_max, sde.sigma_min)
        count = 1 if steps is None else check_steps(steps)
        # A last step to 0 is one of the steps, so the budget stays what was asked for.
        inner = count - 1 if ending != "stop" and steps is not None else count
        if inner == 0:
            grid = np.array([high, 0.0])
        elif adaptive:
            grid = np.array([high, low])
        else:
            grid = solver.grid(inner, high, low, sde)
    elif times is not None:
        grid = sde.on_host("sigma", check_times(_as_array(times, "times"), sde))
    else:
        grid = _as_array(sigmas, "sigmas")
    name = "sigmas" if times is None else "the noise levels at times"
    _check_monotone(grid, name, reversible=reversible)
    if grid[0] == 0:
        raise ValueError(f"{name} starts at 0, where the flow is singular; start above 0")
    if ending != "stop" and grid[-1] != 0:
        if grid[-1] > grid[0]:
            raise ValueError(f"ending={ending!r} ends at sigma = 0, but the grid increases")
        grid = np.append(grid, 0.0)
    if adaptive and grid[-1] == 0 and len(grid) == 2:
        # A range down to the data: a tolerance rules it down to sigma_min, then comes denoising.
        if grid[0] <= sde.sigma_min:
            raise ValueError(
                f"{name} goes from {grid[0]:g} to 0, below the process's sigma_min = "
                f"{sde.sigma_min:g}; say where the denoising step starts, as in [{grid[0]:g}, σ, 0]"
            )
        grid = np.insert(grid, 1, sde.sigma_min)
    positive = grid[grid > 0]
    reached = sde.on_host("sigma", sde.on_host("time", positive))
    if not np.allclose(reached, positive, rtol=1e-6, atol=0):
        outside = positive[~np.isclose(reached, positive, rtol=1e-6, atol=0)][0]
        raise ValueError(
            f"sigma = {outside:g} is outside the range of {sde!r}, whose noise level reaches from "
            f"{float(sde.on_host('sigma', 0.0)):g} to {sde.sigma_max:g}"
        )
    return grid


def _general_grid(
    sde: ForwardSDE,
    *,
    steps: int | None,
    sigmas: ArrayLike | None,
    times: ArrayLike | None,
    ending: str,
    reversible: bool,
) -> Array:
    if sigmas is not None or ending != "stop":
        raise ValueError(
            "a general SDE has no noise level sigma, so it takes times= or steps=, and no step to "
            "sigma = 0; describe the process as an AffineSDE if it is one"
        )
    if times is None:
        return np.linspace(sde.T, sde.t_min, (1 if steps is None else check_steps(steps)) + 1)
    grid = check_times(_as_array(times, "times"), sde)
    _check_monotone(grid, "times", reversible=reversible)
    return grid


def check_times(times: Array, sde: ForwardSDE) -> Array:
    """Refuse times at which there is no process."""
    outside = times[~((times >= 0) & (times <= sde.T * (1 + 1e-12)))]
    if len(outside):
        raise ValueError(f"times contains {outside[0]:g}; it must lie in [0, T] = [0, {sde.T:g}]")
    return times


def noise_source(seed: int | Sequence[int] | None, noise: NoiseSource | None) -> NoiseSource:
    """Return the source of noise that is asked for, by a seed or as it is.

    Raises:
        TypeError: If both are given.
    """
    if seed is not None and noise is not None:
        raise TypeError("got seed and noise; the noise has its own seed, give one of them")
    return IndependentNoise(seed) if noise is None else noise


def check_steps(steps: int, name: str = "steps") -> int:
    """Refuse what is not a positive whole number."""
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
        raise TypeError(f"{name} is a {type(steps).__name__}; it must be a whole number")
    if steps < 1:
        raise ValueError(f"{name} = {steps}; it must be at least 1")
    return int(steps)


def _as_array(values: ArrayLike | None, name: str) -> Array:
    if isinstance(values, Tensor):
        values = values.numpy(force=True)
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"{name} has shape {array.shape}; it must be a sequence of at least two")
    return array


def _check_monotone(grid: Array, name: str, *, reversible: bool) -> None:
    if np.isnan(grid).any() or (grid < 0).any():
        bad = grid[np.isnan(grid) | (grid < 0)][0]
        raise ValueError(f"{name} contains {bad:g}; every value must be a number >= 0")
    steps = np.diff(grid)
    upward = reversible and grid[-1] > grid[0]
    wrong = steps <= 0 if upward else steps >= 0
    if not wrong.any():
        return
    order = "strictly decreasing" + (" (or increasing, towards noise)" if reversible else "")
    at = int(np.argmax(wrong))
    raise ValueError(
        f"{name} must be {order}; found {grid[at]:g} followed by {grid[at + 1]:g} at position {at}"
    )


def check_start(view: View, grid: Array, *, stochastic: bool) -> None:
    """Refuse a start that the solve cannot represent, such as ``σ = ∞`` in `Noise`."""
    if stochastic and np.isinf(grid[0]):
        raise ValueError(
            "the reverse SDE has infinite drift and noise at σ = ∞; start at a finite noise level, "
            "such as sigmas=sdekit.grids.karras(n, 80.0, 0.002), or solve the probability flow"
        )
    with np.errstate(all="ignore"):
        start = view.tau(grid[:1])
    if not np.isfinite(start).all() or not (np.isfinite(grid[0]) or view.coordinates.has_own_clock):
        raise ValueError(
            f"{view.symbol} = {grid[0]:g} cannot be represented in these coordinates; start at a "
            "finite noise level, such as sigmas=sdekit.grids.karras(n, 80.0, 0.002), or take a "
            "method in the process's own time, such as 'heun_t'"
        )
