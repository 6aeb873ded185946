"""What a solve returns, and how it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


class SolveError(RuntimeError):
    """A solve that cannot go on: the message names the step, the noise level and the samples."""


@dataclass(frozen=True)
class StepReport:
    """A step of a solve on a fixed grid, as a callback is told of it.

    The tensors are the callback's own: what it does to them changes nothing.

    Attributes:
        number: Steps taken so far, this one included: 1 for the first.
        steps: Number of steps of the solve.
        start: Noise level, or time, from which the step was taken.
        level: Noise level, or time, where it ended; that of ``x``.
        x: State of the process after the step, ``(B, *event)``.
        denoised: What the denoiser said first in this step: ``D`` at the state that the step started
            from, or at its first stage where that is another (``sea_w``, churn). Methods with a
            corrector start a step from what they predicted, and correct it with this. ``None`` for a
            general SDE, which has no denoiser.
        denoised_at: The noise level ``σ`` at which it was asked, a tensor of shape ``()``.
    """

    number: int
    steps: int
    start: float
    level: float
    x: Tensor = field(repr=False)
    denoised: Tensor | None = field(repr=False)
    denoised_at: Tensor | None


@dataclass(frozen=True)
class Stats:
    """Work done by a solve.

    Attributes:
        steps: Accepted steps; of the sample that took most, if samples step on their own.
        rejected: Rejected steps of all samples; 0 on a fixed grid.
        nfe_per_sample: Network function evaluations of each sample, ``(B,)``.
    """

    steps: int
    nfe_per_sample: NDArray[np.int64] = field(repr=False)
    rejected: int = 0


@dataclass(frozen=True)
class Solution:
    """Result of `sdekit.solve`.

    Attributes:
        x: Final state of the process, ``(B, *event)``, in the dtype of the initial one.
        nfe: Network function evaluations, counted at the denoiser (the largest count of a sample).
        grid: Noise levels (times, for a general SDE) of the trajectory, float64.
        trajectory: States at ``grid``, ``(len(grid), B, *event)``, if it was asked for.
        dense: States at any level that the solve has passed, ``dense(levels)``, if asked for; see
            `sdekit.solvers.dense.Dense`.
        stats: Work done.
        status: ``"success"``, or ``"max_nfe"`` if the budget ran out on the way.
        message: A sentence on the status and, where it helps, on what to do.
    """

    x: Tensor = field(repr=False)
    nfe: int
    grid: NDArray[np.float64] = field(repr=False)
    stats: Stats
    trajectory: Tensor | None = field(default=None, repr=False)
    dense: Callable[[ArrayLike], Tensor] | None = field(default=None, repr=False)
    status: str = "success"
    message: str = "The solve reached the end of its grid."
