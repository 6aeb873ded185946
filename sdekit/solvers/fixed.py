"""The one loop over a fixed grid."""

from __future__ import annotations

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
) -> list[Tensor]:
    """Integrate over a grid; no value of a tensor is read by the host inside the loop.

    Args:
        step: The steps of the grid, prepared by a scheme.
        u: Initial state of the scheme, ``(B, *event)``.
        grid: Noise levels, or times.
        symbol: What the grid is made of, for messages.
        save: Whether to keep the states between the steps.
        progress: Whether to show a progress bar once the loop has run for two seconds.

    Returns:
        The final state, after the states before it if they were kept.

    Raises:
        SolveError: If a state is not finite. The check sums each sample after each step on the
            device, where any NaN or infinity survives, and is read once, after the loop; a compiled
            or captured loop does without.
    """
    steps = len(grid) - 1
    checked = not (torch.compiler.is_compiling() or _capturing(u))
    if not checked:
        states = []
        for n in range(steps):
            u = step(n, u)
            states.append(u.clone() if save else u)
        return states if save else states[-1:]
    # The zero start gives each check-sum a slot: one small kernel per step, no list of tensors.
    checks = torch.zeros((steps + 1, u.shape[0]), dtype=u.dtype, device=u.device)
    torch.sum(u.detach().flatten(1), 1, out=checks[0])
    states = []
    for n in tqdm(range(steps), delay=2, disable=not progress, desc="solving", leave=False):
        u = step(n, u)
        torch.sum(u.detach().flatten(1), 1, out=checks[n + 1])
        if n == steps - 1:
            states.append(u)
        elif save:  # a scheme may write its next state where it wrote this one
            states.append(u if torch.is_grad_enabled() else u.clone())
    _raise_if_not_finite(checks.numpy(force=True), grid, symbol)
    return states


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
