"""Processes that share work: the ranks of ``torchrun``, or this one alone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# Ranks wait for the slowest; one that has died is noticed by its closed connection, and by torchrun.
_PATIENCE = timedelta(days=7)
_groups = itertools.count()


@dataclass(frozen=True)
class Workers:
    """Processes that share work without talking to each other, such as the jobs of an array.

    Attributes:
        rank: Which of them this process is.
        world: How many there are.

    Raises:
        ValueError: If not ``0 <= rank < world``.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank = {self.rank} of {self.world}; 0 <= rank < world is needed")

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this process: every ``world``-th."""
        return items[self.rank :: self.world]

    def agree(self, value: T) -> T:
        """Return what rank 0 says, if it can be heard; else the value."""
        return value

    def wait(self) -> None:
        """Wait until all have come here, if they can be heard."""


class Ranks(Workers):
    """The processes of the default group of `torch.distributed`."""

    def agree(self, value: T) -> T:
        """Return what rank 0 says."""
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        dist.barrier()


@contextmanager
def torchrun() -> Iterator[Workers]:
    """Join the ranks that ``torchrun`` has started; without it, this process is alone.

    A process group that is initialised already is used as it is. Else, if ``WORLD_SIZE`` is set, one is
    initialised for the time of the context, with gloo: what passes is a few bytes.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
    elif "WORLD_SIZE" in os.environ:
        store, rank, world = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        # What torchrun restarts may find the store of those that have died, with their addresses in it.
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        prefix = f"sdekit/{restarts}/{next(_groups)}"
        store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=_PATIENCE)
        try:
            yield Ranks(rank, world)
        finally:
            dist.destroy_process_group()
    else:
        yield Workers()


def own_device(device: torch.device | str | None) -> torch.device:
    """Return the device of this process: ``"cuda"`` under ``torchrun`` is one of its own."""
    chosen = torch.device("cpu" if device is None else device)
    if chosen.type == "cuda" and chosen.index is None and "LOCAL_RANK" in os.environ:
        return torch.device(
            "cuda", int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count())
        )
    return chosen
