"""States between the steps of an adaptive solve."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .march import Interpolant, Trial
from .scheme import Array
from .view import View


class Trajectory:
    """Keeps the states at given points, as the steps go by.

    Args:
        tau: The points; those that rounding puts outside of the solve are taken to its ends.
        ends: Where the solve starts and ends.
        like: A batch of states.
    """

    def __init__(self, tau: Array, ends: tuple[float, float], like: Tensor) -> None:
        self.like, self.start = like, ends[0]
        self.tau = np.clip(tau, min(ends), max(ends))
        self._places: list[Tensor] = []
        self._states: list[Tensor] = []

    def __call__(self, trial: Trial, interpolant: Interpolant) -> None:
        """Keep what accepted steps pass."""
        start, end = trial.start.tau, trial.end.tau
        samples = np.arange(len(self.like)) if trial.samples is None else trial.samples
        sign = np.sign(end - start)[0]
        passed = sign * self.tau
        order = np.argsort(passed, kind="stable")
        # A point where two steps meet belongs to the one before, and the start to the first.
        bounds = np.where(start == self.start, -np.inf, sign * start), sign * end
        first, last = (
            np.broadcast_to(np.searchsorted(passed, v, side="right", sorter=order), samples.shape)
            for v in bounds
        )
        count = last - first
        if not count.any():
            return
        picked = np.repeat(np.arange(len(samples)), count)
        rank = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        point = order[np.repeat(first, count) + rank]
        places = point * len(self.like) + samples[picked]
        self._places.append(torch.as_tensor(places, device=self.like.device))
        self._states.append(interpolant(picked, self.tau[point]))

    def states(self) -> Tensor:
        """States ``u`` at the points, ``(n, B, *event)``; NaN where a sample did not get to."""
        out = self.like.new_full((len(self.tau) * len(self.like), *self.like.shape[1:]), torch.nan)
        if self._places:
            out = out.index_copy(0, torch.cat(self._places), torch.cat(self._states))
        return out.reshape(len(self.tau), *self.like.shape)


class Dense:
    """States at any noise level that an adaptive solve has passed, without further evaluations.

    Args:
        view: The problem, seen in coordinates.
        x: States of the process where the solve starts.
        levels: First and last level of the solve.
        ends: ``τ`` there.
    """

    def __init__(
        self, view: View, x: Tensor, levels: tuple[float, float], ends: tuple[float, float]
    ) -> None:
        self._view, self._x, self.levels, self._ends = view, x, levels, ends
        self._steps: list[tuple[Trial, Interpolant]] = []

    def record(self, trial: Trial, interpolant: Interpolant) -> None:
        """Keep accepted steps."""
        self._steps.append((trial, interpolant))

    def __call__(self, levels: ArrayLike) -> Tensor:
        """States of the process at noise levels (times, for a general SDE).

        The error is that of the method's interpolant: cubic for Bogacki–Shampine and DPM-Solver, of
        order 4 for Dormand–Prince and Tsitouras, 7 for DOP853, that of the step for Adams.

        Args:
            levels: One level, or ``(n,)`` of them, within those of the solve.

        Returns:
            States ``(B, *event)``, or ``(n, B, *event)``; NaN for samples that did not get there.

        Raises:
            ValueError: If a level is outside the range of the solve.
        """
        wanted = np.asarray(levels, dtype=np.float64)
        flat, (low, high) = wanted.reshape(-1), sorted(self.levels)
        outside = flat[~((flat >= low) & (flat <= high))]
        if len(outside) or wanted.ndim > 1:
            what = f"got {outside[0]:g}" if len(outside) else f"got shape {wanted.shape}"
            raise ValueError(
                f"{what}; dense output takes one {self._view.symbol} or a sequence of them, from "
                f"{low:g} to {high:g}, where the solve has been"
            )
        kept = Trajectory(self._view.tau(flat), self._ends, self._x)
        for trial, interpolant in self._steps:
            kept(trial, interpolant)
        states = [
            self._x
            if level == self.levels[0]
            else self._view.exit(np.array([level]), unscaled=False)(u)
            for level, u in zip(flat, kept.states(), strict=True)
        ]
        return states[0] if wanted.ndim == 0 else torch.stack(states)


DenseOutput = Callable[[ArrayLike], Tensor]
