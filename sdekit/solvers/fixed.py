"""The one loop over a fixed grid."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..checkpoint import Carry, checkpointed
from ..solution import SolveError
from .linear import Runner, traced
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
    checkpoint: bool = False,
    on_step: Callable[[int, Tensor], None] | None = None,
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
        checkpoint: Whether gradients take steps again instead of keeping what they computed.
        on_step: Called after each step, with its number and the state it ended in.

    Returns:
        The final state, after the states before it if they were kept.

    Raises:
        ValueError: If ``checkpoint`` is asked for with a method that draws noise, or compiled.
        SolveError: If a state is not finite. A NaN or an infinity survives in the sums of a sample
            up to the end, where they are read; a loop that is compiled, captured or transformed by
            ``torch.func`` does without.
    """
    if checkpoint:
        _check_replayable(step)

    def solve(
        u: Tensor,
        checked: Collection[int],
        *,
        replayed: bool = False,
        tell: Callable[[int, Tensor], None] | None = on_step,
    ) -> tuple[list[Tensor], list[Tensor]]:
        states, sums = [], [_sums(u)] if -1 in checked else []
        # tqdm only where it is asked for: it costs as much as a step of small states.
        bar = tqdm(total=steps, delay=2, desc="solving", leave=False) if progress else None

        def note(n: int, u: Tensor) -> None:
            if n in checked:
                sums.append(_sums(u))
            if n == steps - 1:
                states.append(u)
            elif save:  # a scheme may write its next state where it wrote this one
                states.append(u if torch.is_grad_enabled() else u.clone())
            if bar is not None:
                bar.update()
            if tell is not None:
                tell(n, u)

        if replayed:
            assert isinstance(step, Runner)
            _replay(step, u, steps, note)
        else:
            for n in range(steps):
                u = step(n, u)
                note(n, u)
        if bar is not None:
            bar.close()
        return states, sums

    steps = len(grid) - 1
    replayed = checkpoint and torch.is_grad_enabled()
    if traced() or _capturing(u):
        return solve(u, (), replayed=replayed)[0]
    # The last step may be a denoising one, and a denoiser may hide what came before.
    checked = (steps - 2, steps - 1) if repeatable else range(-1, steps)
    states, sums = solve(u, checked, replayed=replayed)
    if np.isfinite(torch.stack(sums).numpy(force=True)).all():
        return states
    if repeatable:
        with torch.no_grad():
            _, sums = solve(u, range(-1, steps), tell=None)
    _raise_if_not_finite(torch.stack(sums).numpy(force=True), grid, symbol)
    raise SolveError("the final state is not finite; solving again, it was: the denoiser varies")


def _replay(runner: Runner, u: Tensor, steps: int, note: Callable[[int, Tensor], None]) -> None:
    """Take steps that gradients take again, and note the state after each the first time."""
    noting: Callable[[int, Tensor], None] | None = note

    def segment(carry: Carry, first: int, last: int) -> Carry:
        for n in range(first, last):
            carry = runner.advance(n, carry)
            if noting is not None:
                noting(n, carry[0])
        return carry

    checkpointed(segment, (u,), steps)
    noting = None  # the graph holds the segment: it must not hold its own results through it


def _check_replayable(step: Step) -> None:
    """Refuse steps that cannot be taken again."""
    if torch.compiler.is_compiling():
        raise ValueError("a loop with checkpoint=True cannot be compiled; compile the denoiser")
    if not isinstance(step, Runner) or step.draws:
        raise ValueError(
            "checkpoint=True needs a deterministic method, whose steps can be taken again; this one "
            "draws noise"
        )


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
