"""The one adaptive loop: trial steps, accepted or not, of every sample or of the batch as one.

Whoever shares a step is a *group*: by default every sample is one, with its own ``τ``, step and order,
so that its result does not depend on what else is in the batch; in ``"batch"`` mode there is one
group. Groups that have arrived leave, and are not evaluated again. The host plans a trial in float64
and sends its coefficients in one transfer; it reads the device once per trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..checkpoint import checkpointed
from ..solution import SolveError
from .march import Attempt, Carry, Interpolant, Ints, March, Mask, Trial, read
from .scheme import Array
from .view import View


class Recorder(Protocol):
    """What is kept of the steps of a solve."""

    def __call__(self, trial: Trial, interpolant: Interpolant) -> None:
        """Keep accepted steps."""
        ...


@dataclass
class Progress:
    """Work of an adaptive solve, and where it has come to; arrays have an entry for each group.

    Attributes:
        u: States, of all samples.
        tau: Where the groups are.
        nfe: Network evaluations.
        steps: Accepted steps.
        rejected: Rejected steps.
        exhausted: Whether the group has used up its evaluations, and stays where it is.
        log: Accepted trials, if they were to be logged.
    """

    u: Tensor
    tau: Array
    nfe: Ints
    steps: Ints
    rejected: Ints
    exhausted: Mask
    log: list[Trial] = field(default_factory=list)


def integrate_adaptive(
    march: March[Any],
    u: Tensor,
    start: float,
    end: float,
    *,
    per_sample: bool,
    max_nfe: int,
    recorders: Sequence[Recorder] = (),
    log: bool = False,
    progress: bool = False,
) -> Progress:
    """Step a batch from ``τ = start`` to ``end``.

    Raises:
        SolveError: If a step size falls below round-off, as when the denoiser is not finite.
    """
    groups = np.arange(len(u) if per_sample or not len(u) else 1)
    count, sign = len(groups), float(np.sign(end - start))
    nfe, steps, rejected = np.zeros((3, count), dtype=np.int64)
    result = Progress(
        u, np.full(count, start), nfe, steps, rejected, np.zeros(count, dtype=np.bool_)
    )
    if march.first_cost > max_nfe or start == end or not len(u):
        result.exhausted[:] = march.first_cost > max_nfe
        return result
    carry = march.carry(u, result.tau)
    march.begin(carry, result.tau, end)
    nfe += march.first_cost
    everyone = True
    with tqdm(total=1.0, delay=2, disable=not progress, desc="solving", leave=False) as bar:
        while True:
            poor = nfe[groups] + march.cost(groups) > max_nfe
            leaving = poor | (result.tau[groups] == end)
            result.exhausted[groups] = poor & (result.tau[groups] != end)
            if leaving.any():
                everyone = False
                result.u, carry = _leave(result.u, carry, groups, leaving)
                groups = groups[~leaving]
            if not len(groups):
                return result
            here = result.tau[groups]
            left = np.abs(end - here)
            arrives = march.size[groups] >= left * (1 - 1e-12)
            dt = np.where(arrives, left, march.size[groups])
            samples = None if everyone or not per_sample else groups
            nfe[groups] += march.cost(groups)
            trial = march.plan(groups, samples, here, sign * dt)
            attempt = march.attempt(trial, carry)
            errors = read(attempt.errors, per_sample=per_sample)
            stuck = ~(errors[0] <= 1) & (dt < 4 * np.spacing(np.maximum(np.abs(here), abs(end))))
            if stuck.any():
                raise _stuck(march.view, result, groups, stuck)
            accept = march.judge(trial, errors, dt)
            steps[groups] += accept
            rejected[groups] += ~accept
            result.tau[groups[accept]] = np.where(arrives, end, trial.end.tau)[accept]
            if accept.any() and (recorders or log):
                accepted = trial if accept.all() else trial.take(accept)
                if log:
                    result.log.append(march.replayed(accepted))
                if recorders:
                    nfe[groups[accept]] += march.extra_cost
                    parts = _accepted(carry, attempt, accept, per_sample=per_sample)
                    interpolant = march.interpolant(accepted, *parts)
                    for record in recorders:
                        record(accepted, interpolant)
            carry = march.commit(trial, carry, attempt, accept)
            bar.update(float(np.mean((result.tau - start) / (end - start))) - bar.n)


def _leave(u: Tensor, carry: Carry, groups: Ints, leaving: Mask) -> tuple[Tensor, Carry]:
    """Write the states of groups that leave into the result, and take them out of the batch."""
    if len(groups) == 1:  # a last sample, or the batch as one
        states = carry[0]
        return (states if len(states) == len(u) else _put(u, groups, states)), carry
    out, stay = (torch.as_tensor(np.flatnonzero(m), device=u.device) for m in (leaving, ~leaving))
    u = _put(u, groups[leaving], carry[0].index_select(0, out))
    return u, tuple(part.index_select(0, stay) for part in carry)


def _put(u: Tensor, rows: Ints, values: Tensor) -> Tensor:
    return u.index_copy(0, torch.as_tensor(rows, device=u.device), values)


def _accepted(
    carry: Carry, attempt: Attempt, accept: Mask, *, per_sample: bool
) -> tuple[Carry, Attempt]:
    """What belongs to the groups that accepted."""
    if accept.all():
        return carry, attempt
    rows = torch.as_tensor(np.flatnonzero(accept), device=carry[0].device)
    slopes = [slope[rows] for slope in attempt.slopes]
    return tuple(part[rows] for part in carry), replace(attempt, u=attempt.u[rows], slopes=slopes)


def _stuck(view: View, result: Progress, groups: Ints, stuck: Mask) -> SolveError:
    group = int(groups[np.flatnonzero(stuck)[0]])
    level = float(view.level(result.tau[group : group + 1])[0])
    who = f"sample {group}" if len(result.tau) > 1 or len(result.u) == 1 else "the batch"
    return SolveError(
        f"the step size fell below round-off in step {result.steps[group] + 1} of {who}, at "
        f"{view.symbol} = {level:.6g}: either the denoiser returned a non-finite value there, or the "
        "tolerance is below what its precision allows"
    )


def retake(march: March[Any], u: Tensor, start: float, log: Sequence[Trial]) -> Tensor:
    """Take the accepted steps of a solve again, for autograd, in memory that does not grow with them.

    Args:
        march: The march of that solve.
        u: States at ``τ = start``.
        start: Where the solve started.
        log: The accepted trials.

    Returns:
        The final states.
    """

    def segment(carry: Carry, first: int, last: int) -> Carry:
        for trial in log[first:last]:
            if trial.samples is None:
                rows, part = None, carry
            else:
                rows = torch.as_tensor(trial.samples, device=u.device)
                part = tuple(tensor[rows] for tensor in carry)
            everyone = np.ones(len(trial.groups), dtype=np.bool_)
            part = march.commit(trial, part, march.attempt(trial, part), everyone)
            if rows is not None:
                part = tuple(
                    tensor.index_copy(0, rows, new) for tensor, new in zip(carry, part, strict=True)
                )
            carry = part
        return carry

    groups = len(log[0].groups) if log and log[0].samples is None else len(u)
    carry = march.carry(u, np.full(groups, start))
    return checkpointed(segment, carry, len(log))[0]
