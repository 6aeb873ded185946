"""The one loop over a fixed grid."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..solution import SolveError
from .scheme import Array, Step


def integrate_fixed(
    step: Step,
    u: Tensor,
    grid: Array,
    symbol: str,
    *,
    save: bool,
    progress: bool,
    repeatable: bool,
) -> list[Tensor]:
    """Integrate over a grid; no value of a tensor is read by the host inside the loop.

    Args:
        step: The steps of the grid, prepared by a scheme.
        u: Initial state of the scheme, ``(B, *event)``.
        grid: Noise levels, or times.
        symbol: What the grid is made of, for messages.
        save: Whether to keep the states between the steps.
        progress: Whether to show a progress bar once the loop has run for two seconds.
        repeatable: Whether the same steps can be taken again, so that no step has to be checked
            before one is known to have failed.

    Returns:
        The final state, after the states before it if they were kept.

    Raises:
        SolveError: If a state is not finite. A NaN or an infinity survives in the sums of a sample
            up to the end, where they are read; a compiled or captured loop does without.
    """

    def loop(u: Tensor, checked: Collection[int]) -> tuple[list[Tensor], list[Tensor]]:
        states, sums = [], [_sums(u)] if -1 in checked else []
        # tqdm only where it is asked for: it costs as much as a step of small states.
        rounds: Iterable[int] = range(steps)
        if progress:
            rounds = tqdm(rounds, total=steps, delay=2, desc="solving", leave=False)
        for n in rounds:
            u = step(n, u)
            if n in checked:
                sums.append(_sums(u))
            if n == steps - 1:
                states.append(u)
            elif save:  # a scheme may write its next state where it wrote this one
                states.append(u if torch.is_grad_enabled() else u.clone())
        return states, sums

    steps = len(grid) - 1
    if torch.compiler.is_compiling() or _capturing(u):
        return loop(u, ())[0]
    # The last step may be a denoising one, and a denoiser may hide what came before.
    states, sums = loop(u, (steps - 2, steps - 1) if repeatable else range(-1, steps))
    if np.isfinite(torch.stack(sums).numpy(force=True)).all():
        return states
    if repeatable:
        _, sums = loop(u, range(-1, steps))
    _raise_if_not_finite(torch.stack(sums).numpy(force=True), grid, symbol)
    raise SolveError("the final state is not finite; solving again, it was: the denoiser varies")


def _sums(u: Tensor) -> Tensor:
    return u.detach().flatten(1).sum(1)


def _capturing(u: Tensor) -> bool:
    return u.is_cuda and torch.cuda.is_current_stream_capturing()


def _raise_if_not_finite(checks: Array, grid: Array, symbol: str) -> None:
    finite = np.isfinite(checks)
    if finite.all():
        return
    row = int((~finite).any(1).argmax())
    samples = np.flatnonzero(~finite[row])
    named = ", ".join(map(str, samples[:5])) + (", …" if len(samples) > 5 else "")
    who = f"sample{'s' if len(samples) > 1 else ''} {named}"
    if row == 0:
        raise SolveError(f"the initial state is not finite in {who}")
    raise SolveError(
        f"the state became non-finite in step {row} of {len(grid) - 1}, from {symbol} = "
        f"{grid[row - 1]:.6g} to {grid[row]:.6g}, in {who}: either the denoiser returned a "
        "non-finite value there, or the step is too long for this method to be stable"
    )
