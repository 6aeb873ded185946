"""Sources of noise. Schemes receive one; none draws its own numbers.

For affine processes the clock is the variance ``σ²`` of the unscaled state, so that one path drives
every process and every coordinate system; for a general SDE the clock is its time. A scheme whose
noise belongs to no interval of these, such as EDM's churn, says what clock it uses instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


class NoiseSource(Protocol):
    """What a scheme asks of its noise."""

    def increment(self, a: float, b: float, like: Tensor) -> Tensor:
        """Increment ``W(b) − W(a)``, ``a < b``, of unit Wiener processes, in the shape of ``like``."""
        ...

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers that belong to no interval, in the shape of ``like``."""
        ...


class IndependentNoise:
    """Fresh normal numbers for every query: the fast default, for solvers that ask once.

    Args:
        seed: One seed for the batch, or one seed per sample: sample ``i``'s noise then depends on
            ``seed[i]`` alone, whatever else is in the batch. ``None`` takes torch's global state.

    Raises:
        TypeError: If the seed is not a whole number, or a sequence of them.
    """

    def __init__(self, seed: int | Sequence[int] | None = None) -> None:
        seeds = np.asarray([] if seed is None else seed)
        if seeds.size and (seeds.ndim > 1 or seeds.dtype.kind not in "iu"):
            raise TypeError(f"seed = {seed!r}; it must be a whole number, or one per sample")
        self._per_sample = seed is not None and seeds.ndim == 1
        self._seeds: list[int | None] = [None] if seed is None else seeds.ravel().tolist()
        self._generators: list[torch.Generator | None] | None = None

    def _streams(self, device: torch.device) -> list[torch.Generator | None]:
        if self._generators is None:
            self._generators = [
                None if s is None else torch.Generator(device).manual_seed(s) for s in self._seeds
            ]
        return self._generators

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape, dtype and device of ``like``.

        Raises:
            ValueError: If there is one seed per sample, but not as many as samples.
        """
        streams = self._streams(like.device)
        # A fresh contiguous tensor: empty_like would fill in the memory order of like.
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        if not self._per_sample:
            return out.normal_(generator=streams[0])
        if len(streams) != like.shape[0]:
            raise ValueError(
                f"{len(streams)} seeds for a batch of {like.shape[0]}; give one seed per sample"
            )
        for row, generator in zip(out, streams, strict=True):
            row.normal_(generator=generator)
        return out

    def increment(self, a: float, b: float, like: Tensor) -> Tensor:
        """Increment over ``[a, b]``: ``sqrt(b − a)`` times normal numbers."""
        return self.normal(like).mul_((b - a) ** 0.5)


class GridPath:
    """One Brownian path, known at the points of a fine grid: the same path for every step count.

    Solutions on coarser grids whose points lie on the fine one are driven by the same noise, so
    their differences show the solver's strong error and nothing else.

    Args:
        points: Clock values, at least two, in any order.
        shape: Shape of the state, ``(B, *event)``.
        seed: Seed of the path.
        dtype: Dtype of the path.
        device: Device of the path.

    Raises:
        ValueError: If the points are not finite and distinct.
    """

    def __init__(
        self,
        points: ArrayLike,
        shape: tuple[int, ...],
        *,
        seed: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        self.points = np.sort(np.asarray(points, dtype=np.float64).ravel())
        steps = np.diff(self.points)
        if len(steps) < 1 or not np.all(np.isfinite(steps)) or not np.all(steps > 0):
            raise ValueError("points must be at least two finite, distinct clock values")
        self._generator = torch.Generator(device=device or "cpu").manual_seed(seed)
        width = torch.as_tensor(np.sqrt(steps), dtype=dtype, device=device)
        increments = torch.randn(
            (len(steps), *shape), generator=self._generator, dtype=dtype, device=device
        )
        increments *= width.reshape(-1, *(1,) * len(shape))
        start = torch.zeros((1, *shape), dtype=dtype, device=device)
        self._path = torch.cat([start, increments.cumsum(0)])

    def _index(self, clock: float) -> int:
        index = int(np.abs(self.points - clock).argmin())
        spacing = np.diff(self.points[max(index - 1, 0) : index + 2]).min()
        if abs(self.points[index] - clock) > 1e-4 * spacing:
            raise ValueError(
                f"the path is not known at clock {clock:.12g}; the nearest of its points is "
                f"{self.points[index]:.12g}. Give GridPath every point that the solver will ask for"
            )
        return index

    def increment(self, a: float, b: float, like: Tensor) -> Tensor:
        """Increment ``W(b) − W(a)``.

        Raises:
            ValueError: If ``a`` or ``b`` is not one of the points, or the shape is not the path's.
        """
        if like.shape != self._path.shape[1:]:
            raise ValueError(
                f"the path has shape {tuple(self._path.shape[1:])}, the noise asked for has "
                f"{tuple(like.shape)}; make the path in the shape of the state"
            )
        return (self._path[self._index(b)] - self._path[self._index(a)]).to(like)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, independent of the path."""
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return out.normal_(generator=self._generator)
