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
