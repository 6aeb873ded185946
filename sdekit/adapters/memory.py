"""How many samples fit into an amount of memory: measured, not guessed from the number of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..denoisers import trained_range

__all__ = ["fit_batch", "peak_memory"]


class _Reference(Protocol):
    def expired(self) -> bool:
        """Whether what is referred to is gone."""


@torch.no_grad()
def fit_batch(
    denoiser: Callable[..., Tensor], like: Tensor, *, memory: int, **conditioning: object
) -> int:
    """Find the number of samples with which one call of a denoiser stays within a budget of memory.

    It is the size for `sdekit.FixedBatch`. The peak of calls of one and of two samples is measured, a
    larger size is extrapolated from these and measured as well, and made smaller by bisection where
    it does not fit. So the size returned was itself measured; a larger budget gives no smaller one.

    Memory is what a call needs beyond what is there before it (weights, the state itself), without
    gradients. On a GPU it is what torch's allocator counts, whose peak statistics are reset; elsewhere
    the bytes of the tensors alive between operations, which leaves out what an operation needs inside.

    Args:
        denoiser: ``(x_hat, sigma, **conditioning) -> x0_hat``.
        like: A state ``(B, *event)`` of the largest batch there will be, of the dtype and on the device
            of the solve; its values do not matter.
        memory: The budget, in bytes.
        **conditioning: What the denoiser takes beside; tensors have an entry for each sample.

    Returns:
        A size from 1 to ``B``.

    Raises:
        ValueError: If not even one sample fits, or ``like`` is not a batch.
    """
    if like.ndim < 2 or not len(like):
        raise ValueError(f"like has shape {tuple(like.shape)}; it must be a batch (B, *event)")
    highest, lowest = trained_range(denoiser)
    # Some level that every denoiser takes, also one that takes those of a table only.
    sigma = highest if highest < float("inf") else max(lowest, 1.0)

    def peak(size: int) -> int:
        def call() -> None:
            rows = tree_map(
                lambda value: value[:size] if isinstance(value, Tensor) and value.ndim else value,
                conditioning,
            )
            denoiser(like[:size], like.new_full((size,), sigma), **rows)

        return peak_memory(call, like.device)

    one = peak(1)
    if one > memory:
        raise ValueError(
            f"one sample takes {one / 2**20:.3g} MiB, the budget is {memory / 2**20:.3g} MiB; give "
            "more, or run the network in a narrower dtype"
        )
    largest = len(like)
    if largest == 1 or (two := peak(2)) > memory:
        return 1
    # `fits` always does; `size` is the first that may not.
    fits = 2
    size = min(largest, 2 + int((memory - two) / max(two - one, 1)))
    if size == fits or peak(size) <= memory:
        return size
    while size - fits > 1:
        middle = (fits + size) // 2
        fits, size = (middle, size) if peak(middle) <= memory else (fits, middle)
    return fits


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that a call has allocated at once, beyond those allocated before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        peak: int = torch.cuda.max_memory_allocated(device) - before
        return peak
    counter = _LiveBytes()
    with counter:
        call()
    return counter.peak


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations return, while they are alive.

    A storage that an operation is given before any has returned it was there before.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.before: dict[int, _Reference] = {}
        self.alive: dict[int, tuple[_Reference, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        # The address of a storage that has died may be that of a new one.
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        self.before = {k: v for k, v in self.before.items() if not v.expired()}
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self.alive:
                self.before[storage._cdata] = _refer(storage)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in self.before:
                self.alive[storage._cdata] = _refer(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def _refer(storage: torch.UntypedStorage) -> _Reference:
    """Return a weak reference: the Python object of a storage is a new one every time."""
    reference: _Reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
    return reference


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, Tensor)]
