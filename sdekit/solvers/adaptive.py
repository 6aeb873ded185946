"""The one adaptive loop: trial steps, accepted or not, of every sample or of the batch as one.

Whoever shares a step is a *group*: by default every sample is one, with its own ``τ``, step and order,
so that its result does not depend on what else is in the batch; in ``"batch"`` mode there is one
group. Groups that have arrived leave, and are not evaluated again. The host plans a trial in float64
and sends its coefficients in one transfer; it reads the device once per trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..checkpoint import checkpointed
from ..solution import SolveError
from .march import Carry, Interpolant, Ints, March, Mask, Trial, read
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
            poor = nfe[groups] + march.cost(groups) + march.extra_cost > max_nfe
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
            # Round-off of where a step ends, which may be far from the end of the solve.
            reach = np.minimum(abs(end), march.size[groups])
            least = np.spacing(np.maximum(np.abs(here), reach))
            dt = np.maximum(march.size[groups], least)
            arrives = dt >= left * (1 - 1e-12)
            dt = np.where(arrives, left, dt)
            samples = None if everyone or not per_sample else groups
            nfe[groups] += march.cost(groups)
            trial = march.plan(groups, samples, here, np.where(arrives, end, here + sign * dt))
            attempt = march.attempt(trial, carry)
            errors = read(attempt.errors, per_sample=per_sample)
            stuck = ~(errors[0] <= 1) & (dt < 4 * least)
            if stuck.any():
                raise _stuck(march.view, result, groups, stuck)
            accept = march.judge(trial, errors, dt)
            steps[groups] += accept
            rejected[groups] += ~accept
            result.tau[groups[accept]] = trial.end.tau[accept]
            nfe[groups] += march.extra_cost * accept
            before, carry = carry, march.kept(carry, attempt)
            if accept.any():
                if not accept.all():
                    rows = _index(np.flatnonzero(accept), u)
                    trial, before = trial.take(accept), _rows(before, rows)
                    # Gradients of a trial that is not finite are NaN, also where they are times 0.
                    broken = attempt.u.requires_grad and not np.isfinite(errors[0]).all()
                    attempt = march.attempt(trial, before) if broken else attempt.take(rows)
                if log:
                    result.log.append(march.replayed(trial))
                if recorders:
                    interpolant = march.interpolant(trial, before, attempt)
                    for record in recorders:
                        record(trial, interpolant)
                after = march.commit(before, attempt)
                carry = after if accept.all() else _put(carry, rows, after)
            bar.update(float(np.mean((result.tau - start) / (end - start))) - bar.n)


def _leave(u: Tensor, carry: Carry, groups: Ints, leaving: Mask) -> tuple[Tensor, Carry]:
    """Write the states of groups that leave into the result, and take them out of the batch."""
    if len(groups) == 1:  # a last sample, or the batch as one
        states = carry[0]
        if len(states) < len(u):
            states = u.index_copy(0, _index(groups, u), states)
        return states, carry
    out, stay = (_index(np.flatnonzero(m), u) for m in (leaving, ~leaving))
    u = u.index_copy(0, _index(groups[leaving], u), carry[0].index_select(0, out))
    return u, _rows(carry, stay)


def _index(rows: Ints, like: Tensor) -> Tensor:
    return torch.as_tensor(rows, device=like.device)


def _rows(carry: Carry, rows: Tensor) -> Carry:
    return tuple(part.index_select(0, rows) for part in carry)


def _put(carry: Carry, rows: Tensor, values: Carry) -> Carry:
    return tuple(part.index_copy(0, rows, new) for part, new in zip(carry, values, strict=True))


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
                carry = march.commit(carry, march.attempt(trial, carry))
            else:
                rows = _index(trial.samples, u)
                part = _rows(carry, rows)
                carry = _put(carry, rows, march.commit(part, march.attempt(trial, part)))
        return carry

    if not log:
        return u
    groups = len(log[0].groups) if log[0].samples is None else len(u)
    carry = march.carry(u, np.full(groups, start))
    return checkpointed(segment, carry, len(log))[0]
