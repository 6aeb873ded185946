"""Forward simulation: paths of a forward SDE, from data to noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .affine import AffineSDE
from .brownian import NoiseSource
from .inputs import Array, check_state, check_times, named_solver, noise_source
from .linear import LinearSDE
from .linear_solver import linear_transition
from .sde import ForwardSDE, Model, ReverseSDE
from .solvers.fixed import integrate_fixed
from .solvers.registry import Solver
from .solvers.scheme import Step
from .solvers.stochastic import EulerMaruyama, Milstein
from .solvers.view import GeneralView


class _Forward(ForwardSDE):
    """A forward SDE where schemes expect a backward one: its drift is its own."""

    def __init__(self, sde: ForwardSDE) -> None:
        self.sde, self.T, self.t_min, self.noise_type = sde, sde.T, sde.t_min, sde.noise_type

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return self.sde.drift(x, t)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        return self.sde.diffusion(x, t)

    def backward_drift(self, model: Model, x: Tensor, t: Tensor, eta: float) -> Tensor:
        return self.sde.drift(x, t)


def simulate(
    process: ForwardSDE,
    x: Tensor,
    times: ArrayLike,
    *,
    method: str | Solver | None = None,
    seed: int | Sequence[int] | None = None,
    noise: NoiseSource | None = None,
    progress: bool = False,
) -> Tensor:
    """Simulate paths of a forward SDE ``dx = f(x, t) dt + G(x, t) dW``.

    Args:
        process: The SDE.
        x: States at ``times[0]``, ``(B, *event)``, float32 or float64.
        times: Strictly increasing times, at least two.
        method: ``"euler_maruyama_t"``, or ``"milstein_t"``. Left out, the exact transition of an
            affine process, ``x_t = (s_t/s_s) x_s + s_t (B(σ_t²) − B(σ_s²))``, which has no error at
            any step, or that of a linear SDE; for others ``"euler_maruyama_t"``.
        seed: Seed of the noise, or one seed per sample.
        noise: Source of noise, instead of a seed: on the clock ``σ²`` for the exact transition, else on
            that of the times.
        progress: Whether to show a progress bar after two seconds.

    Returns:
        States at all times, ``(len(times), B, *event)``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the times do not increase, or the method is another.
        SolveError: If a state becomes non-finite.
    """
    if not isinstance(process, ForwardSDE):
        raise TypeError(
            f"process is a {type(process).__name__}; pass a process such as sdekit.VP()"
        )
    source = noise_source(seed, noise)
    check_state(x)
    grid = np.asarray(times, dtype=np.float64)
    if grid.ndim != 1 or len(grid) < 2 or not np.all(np.diff(grid) > 0):
        raise ValueError(f"times = {times!r}; give at least two, strictly increasing")
    check_times(grid, process)
    if method is None and isinstance(process, AffineSDE):
        step = _transition(process, grid, source)
    elif method is None and isinstance(process, LinearSDE):
        step = linear_transition(process, x, grid, source)
    else:
        scheme = named_solver("euler_maruyama_t" if method is None else method).scheme
        if not isinstance(scheme, EulerMaruyama | Milstein):
            raise ValueError(
                f"{type(scheme).__name__} is for backward equations; forward take "
                "'euler_maruyama_t' or 'milstein_t'"
            )
        problem = ReverseSDE(_Forward(process), lambda x, t: x)
        step = scheme.stepper(GeneralView(problem, x), grid, source)
    states = integrate_fixed(step, x, grid, "t", save=True, progress=progress, repeatable=False)
    return torch.stack([x, *states])


def _transition(process: AffineSDE, grid: Array, noise: NoiseSource) -> Step:
    """Prepare the exact transitions of an affine process."""
    scale, variance = process.on_host("scale", grid), process.on_host("sigma", grid) ** 2
    if not np.isfinite(variance[:-1]).all() or not (scale[:-1] > 0).all():
        raise ValueError("the signal is gone before the last of the times; end where it is not")
    # At the end it may be gone, where s = 0 and s σ = n.
    spread = process.on_host("std", grid)[1:] if np.isinf(variance[-1]) else scale[1:]
    keep = (scale[1:] / scale[:-1]).tolist()

    def step(n: int, x: Tensor) -> Tensor:
        low, high = float(variance[n]), float(variance[n + 1])
        if np.isinf(high):
            return noise.normal(x) * float(spread[n])
        return torch.mul(x, keep[n]).add(noise.increment(low, high, x), alpha=float(scale[n + 1]))

    return step
