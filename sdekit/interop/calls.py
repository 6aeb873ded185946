"""When a solve calls its network: what a caller that calls it himself has to know before."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..brownian import IndependentNoise
from ..stepwise import Query, State, Stepwise


class Calls(NamedTuple):
    """All calls of the network in a solve.

    Where noise is drawn before the first, there is one more before it, at the state that the solve
    starts from: a pipeline makes it, and its result is of no use.

    Attributes:
        levels: Their noise levels.
        begins: The first call of every step.
        plain: Whether that is made at the state that the step starts from, with no noise before it.
    """

    levels: list[float]
    begins: list[int]
    plain: list[bool]


class CountedNoise(IndependentNoise):
    """Noise that counts how often it is drawn."""

    draws = 0

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape, dtype and device of ``like``."""
        self.draws += 1
        return super().normal(like)


def find_calls(walk: Stepwise, like: Tensor, noise: CountedNoise) -> Calls:
    """Find when the network is called, by a solve in which it answers 0.

    Args:
        walk: The solve.
        like: The state that it starts from.
        noise: The noise of the solve.
    """
    state, calls = walk.init(like), Calls([], [], [])
    while not state.done:
        drawn = noise.draws
        query = walk.ask(state)
        same_level = np.isclose(float(query.sigma), state.level, rtol=1e-9, atol=0)
        calls.plain.append(bool(same_level) and noise.draws == drawn)
        if not calls.plain[0] and not calls.levels:
            calls.levels.append(state.level)  # the call that is of no use
        calls.begins.append(len(calls.levels))
        part: Query | State = query
        while isinstance(part, Query):
            calls.levels.append(float(part.sigma))
            part = walk.tell(part, torch.zeros_like(like))
        state = part
    return calls


class Turns:
    """The timesteps of a solve, each of which has its turn.

    Attributes:
        labels: The timesteps.

    Args:
        timesteps: The timesteps, as the pipeline is given them.
    """

    def __init__(self, timesteps: Tensor) -> None:
        self._timesteps = timesteps
        self.labels: list[float] = timesteps.tolist()

    def first(self, timestep: float | Tensor, calls: Calls) -> int:
        """Return the place of the timestep that a pipeline begins with.

        Raises:
            ValueError: If it is none of them.
        """
        label = float(timestep)
        distance = np.abs(np.array(self.labels) - label)
        same: list[int] = np.flatnonzero(distance == distance.min()).tolist()
        # A step may end where the next one begins: it is the next that is meant.
        begins = [i for i in same if i == 0 or i in calls.begins]
        index = (begins or same)[0]
        self._check(label, index)
        return index

    def check(self, timestep: float | Tensor, index: int) -> None:
        """Refuse another timestep than the one whose turn it is.

        Raises:
            ValueError: If it is another, or all are done.
        """
        if index == len(self.labels):
            raise ValueError("all timesteps are done; call set_timesteps to start again")
        if isinstance(timestep, Tensor) and self._is_element(timestep):
            label = self.labels[int(timestep.storage_offset())]
        else:
            label = float(timestep)
        self._check(label, index)

    def _is_element(self, timestep: Tensor) -> bool:
        """Whether it is an element of the timesteps, whose place is known without reading it."""
        memory = self._timesteps.untyped_storage().data_ptr()
        return timestep.ndim == 0 and timestep.untyped_storage().data_ptr() == memory

    def _check(self, label: float, index: int) -> None:
        expected = self.labels[index]
        if abs(label - expected) > 1e-3 + 1e-5 * abs(expected):
            raise ValueError(
                f"timestep {label:g} is out of order; it is the turn of {expected:g}, number {index} "
                f"of {len(self.labels)} (call set_timesteps to start again)"
            )
