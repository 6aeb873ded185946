"""Sources of noise. Schemes receive one; none draws its own numbers.

For affine processes the clock is the variance ``σ²`` of the unscaled state, so that one path drives
every process; for a general SDE the clock is its time. A scheme whose noise is exact on another
clock, as in `LogData` and `Preconditioned`, or belongs to no interval, such as EDM's churn, asks for a
source on another `Clock`, whose path is another one.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .clock import TIME, VARIANCE
from .clock import Clock as Clock  # part of the protocol, so at home here as well


class NoiseSource(Protocol):
    """What a scheme asks of its noise."""

    def increment(self, a: float, b: float, like: Tensor) -> Tensor:
        """Increment ``W(b) − W(a)``, ``a < b``, of unit Wiener processes, in the shape of ``like``."""
        ...

    def area(self, a: float, b: float, like: Tensor) -> Tensor:
        """Space-time area over ``[a, b]``: how far the path lies above its chord, on average.

        With ``h = b − a``: ``H = (1/h) ∫ (W(r) − W(a) − (r − a)/h (W(b) − W(a))) dr`` over the
        interval. It is ``N(0, h/12)``, independent of the increment. A path read backward has the
        increment ``−W`` and the area ``H``; for what drives a step down the clock see `over_step`.
        """
        ...

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers that belong to no interval, in the shape of ``like``."""
        ...

    def on(self, clock: Clock) -> NoiseSource:
        """Return the source for intervals of another clock."""
        ...


def over_step(noise: NoiseSource, start: float, end: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return increment and area of what drives a step, counted in the direction of the step.

    A step up the clock is driven by ``W`` itself. A step down is driven by the Brownian motion
    ``V(r) = W(start) − W(start − r)``, whose increment is again ``W(start) − W(end)``, that of the
    interval, and whose area is the interval's with its sign changed: where ``W`` lies above its
    chord, ``V`` lies below.

    Args:
        noise: Source.
        start: Clock value at which the step starts.
        end: Clock value at which it ends, above or below.
        like: Tensor whose shape, dtype and device are taken.
    """
    low, high = min(start, end), max(start, end)
    increment, area = noise.increment(low, high, like), noise.area(low, high, like)
    return increment, area if start < end else -area


def read_seeds(seed: object) -> tuple[list[int], bool]:
    """Return seeds as a list, and whether they are one per sample.

    Raises:
        TypeError: If the seed is not a whole number, or a sequence of them.
    """
    seeds = np.asarray(seed, dtype=object)  # else seeds of more than 63 bits might become floats
    whole = all(isinstance(s, int | np.integer) and not isinstance(s, bool) for s in seeds.flat)
    if seeds.ndim > 1 or not whole:
        raise TypeError(f"seed = {seed!r}; it must be a whole number, or one per sample")
    return [int(s) for s in seeds.flat], seeds.ndim == 1


def make_generator(seed: int, device: torch.device | str | None) -> torch.Generator:
    """Make a generator that depends on all of a seed; torch's own reads 32 bits of it on the CPU."""
    if not 0 <= seed < 2**32:  # else seeds that differ by 2³² would give the same numbers
        seed = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "little")
    return torch.Generator(device or "cpu").manual_seed(seed)


class IndependentNoise:
    """Fresh normal numbers for every query: the fast default, for solvers that ask once.

    Nothing is remembered, so ask once for the increment of an interval, and once for its area.

    Args:
        seed: One seed for the batch, or one seed per sample: sample ``i``'s noise then depends on
            ``seed[i]`` alone, whatever else is in the batch. Seeds outside ``[0, 2³²)`` are hashed
            to 32 bits, all that torch reads on the CPU: among 10,000 of them two are equal with a
            probability of 1 %. A `torch.Generator` is drawn from where it is. ``None`` takes torch's
            global state.

    Raises:
        TypeError: If the seed is not a whole number, or a sequence of them.
    """

    def __init__(self, seed: int | Sequence[int] | torch.Generator | None = None) -> None:
        self._generators: list[torch.Generator | None] | None = None
        self._seeds: list[int] = []
        self._per_sample = False
        if seed is None or isinstance(seed, torch.Generator):
            self._generators = [seed]
        else:
            self._seeds, self._per_sample = read_seeds(seed)

    def _streams(self, device: torch.device) -> list[torch.Generator | None]:
        if self._generators is None:
            self._generators = [make_generator(seed, device) for seed in self._seeds]
        return self._generators

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape, dtype and device of ``like``.

        Raises:
            ValueError: If there is one seed per sample, but not as many as samples.
        """
        streams = self._streams(like.device)
        if self._per_sample and len(streams) != like.shape[0]:
            raise ValueError(
                f"{len(streams)} seeds for a batch of {like.shape[0]}; give one seed per sample"
            )
        device = streams[0].device if streams and streams[0] else like.device
        # A fresh contiguous tensor: empty_like would fill in the memory order of like.
        out = torch.empty(like.shape, dtype=like.dtype, device=device)
        for part, generator in zip(out if self._per_sample else [out], streams, strict=True):
            part.normal_(generator=generator)
        return out.to(like.device)

    def increment(self, a: float, b: float, like: Tensor) -> Tensor:
        """Increment over ``[a, b]``: ``sqrt(b − a)`` times normal numbers."""
        return self.normal(like).mul_((b - a) ** 0.5)

    def area(self, a: float, b: float, like: Tensor) -> Tensor:
        """Area over ``[a, b]``: ``sqrt((b − a)/12)`` times normal numbers."""
        return self.normal(like).mul_(((b - a) / 12) ** 0.5)

    def on(self, clock: Clock) -> IndependentNoise:
        """Return itself: its numbers belong to no interval."""
        return self


def _check_clock(own: Clock | None, asked: Clock) -> None:
    """Refuse a clock that a source of one clock does not have; ``None`` is either default."""
    if asked not in ((VARIANCE, TIME) if own is None else (own,)):
        known = "the variance or the time" if own is None else f"the clock {own.name!r}"
        raise ValueError(
            f"the noise is known on {known} alone, and the method asks for the clock {asked.name!r}; "
            "say clock= if its values are those, or take a BrownianPath, which has every clock"
        )


class GridPath:
    """One Brownian path, known at the points of a fine grid: the same path for every step count.

    Solutions on coarser grids whose points lie on the fine one are driven by the same noise, so
    their differences show the solver's strong error and nothing else. `BrownianPath` is known
    everywhere; this one is faster, for the few thousand points that fit in memory.

    Args:
        points: Clock values, at least two, in any order.
        shape: Shape of the state, ``(B, *event)``.
        seed: Seed of the path.
        dtype: Dtype of the path.
        device: Device of the path.
        clock: Clock of the points. ``None`` is the one that solves are on by default: the variance
            for affine processes, the time for others.

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
        clock: Clock | None = None,
    ) -> None:
        self.points = np.sort(np.asarray(points, dtype=np.float64).ravel())
        steps = np.diff(self.points)
        if len(steps) < 1 or not np.all(np.isfinite(steps)) or not np.all(steps > 0):
            raise ValueError("points must be at least two finite, distinct clock values")
        self.clock = clock
        self._seed, self._generator = seed, make_generator(seed, device)
        start = torch.zeros((1, *shape), dtype=dtype, device=device)
        self._path = torch.cat([start, self._spread(self._generator, 1, start).cumsum(0)])

    def _spread(self, generator: torch.Generator, divisor: float, like: Tensor) -> Tensor:
        """Normal numbers for each step, whose variance is that of the step over ``divisor``."""
        width = torch.as_tensor(np.sqrt(np.diff(self.points) / divisor)).to(like)
        shape = (len(width), *like.shape[1:])
        numbers = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        return numbers.mul_(width.reshape(-1, *(1,) * (like.ndim - 1)))

    @functools.cached_property
    def _areas(self) -> Tensor:
        """Areas of the steps; a generator of their own leaves all other numbers as they are."""
        (own,) = np.random.SeedSequence([self._seed % 2**64, 1]).generate_state(1).tolist()
        return self._spread(make_generator(own, self._path.device), 12, self._path)

    def _index(self, clock: float) -> int:
        index = int(np.abs(self.points - clock).argmin())
        spacing = np.diff(self.points[max(index - 1, 0) : index + 2]).min()
        if abs(self.points[index] - clock) > 1e-4 * spacing:
            raise ValueError(
                f"the path is not known at clock {clock:.12g}; the nearest of its points is "
                f"{self.points[index]:.12g}. Give GridPath every point that the solver will ask for"
            )
        return index

    def _check_shape(self, like: Tensor) -> None:
        if like.shape != self._path.shape[1:]:
            raise ValueError(
                f"the path has shape {tuple(self._path.shape[1:])}, the noise asked for has "
                f"{tuple(like.shape)}; make the path in the shape of the state"
            )

    def increment(self, a: float, b: float, like: Tensor) -> Tensor:
        """Increment ``W(b) − W(a)``.

        Raises:
            ValueError: If ``a`` or ``b`` is not one of the points, or the shape is not the path's.
        """
        self._check_shape(like)
        return (self._path[self._index(b)] - self._path[self._index(a)]).to(like)

    def area(self, a: float, b: float, like: Tensor) -> Tensor:
        """Area over ``[a, b]``: Chen's relation over the steps between.

        Raises:
            ValueError: If ``a`` or ``b`` is not one of the points, or the shape is not the path's.
        """
        self._check_shape(like)
        first, last = self._index(a), self._index(b)
        path = self._path[first : last + 1] - self._path[first]
        steps = np.diff(self.points[first : last + 1])
        weights = torch.as_tensor(steps / steps.sum()).to(path)
        # The mean of the path over a step is that of its ends and, above it, the step's area.
        means = self._areas[first:last] + (path[:-1] + path[1:]) / 2
        area: Tensor = torch.tensordot(weights, means, 1) - path[-1] / 2
        return area.to(like)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, independent of the path."""
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return out.normal_(generator=self._generator)

    def on(self, clock: Clock) -> GridPath:
        """Return itself, if its points are values of this clock.

        Raises:
            ValueError: If they are not.
        """
        _check_clock(self.clock, clock)
        return self


class TorchsdeNoise:
    """A Brownian motion of torchsde as a source of noise.

    Its values may depend on the order of the queries; they are consistent with each other.

    Args:
        brownian: A ``torchsde.BrownianInterval`` in the shape of the state, which reaches from the
            lowest clock value to the highest or further; with areas if it was made with
            ``levy_area_approximation="space-time"``. Or a ``torchsde.BrownianTree``, whose ``tol``,
            to which it rounds clock values, has to be far below the shortest step.
        seed: Seed of `normal`, as for `IndependentNoise`.
        clock: Clock of its times, as for `GridPath`.
    """

    def __init__(
        self,
        brownian: Callable[..., Any],
        *,
        seed: int | Sequence[int] | torch.Generator | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.brownian, self.clock = brownian, clock
        self._normal = IndependentNoise(seed)

    def _query(self, a: float, b: float, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Increment, and the integral ``∫ (W(r) − W(a)) dr``, torchsde's U, if it is known."""
        with warnings.catch_warnings():
            # A query beyond the ends only warns, and gets the increment of a shorter interval.
            warnings.filterwarnings("error", "Should have t")
            try:
                increment, integral = self.brownian(a, b, return_U=True)
            except UserWarning as warning:
                raise ValueError(
                    f"[{a:.12g}, {b:.12g}] is not within the times of the torchsde object "
                    f"({str(warning).rstrip('.')}); make it reach a little further than the solve"
                ) from warning
        if increment.shape != like.shape:
            raise ValueError(
                f"the torchsde object has shape {tuple(increment.shape)}, the noise asked for has "
                f"{tuple(like.shape)}; make it in the shape of the state"
            )
        return increment, integral

    def increment(self, a: float, b: float, like: Tensor) -> Tensor:
        """Increment ``W(b) − W(a)``.

        Raises:
            ValueError: If torchsde's object does not reach as far, or has another shape.
        """
        return self._query(a, b, like)[0].to(like)

    def area(self, a: float, b: float, like: Tensor) -> Tensor:
        """Area over ``[a, b]``.

        Raises:
            ValueError: If torchsde's object has no areas, does not reach as far or has another shape.
        """
        increment, integral = self._query(a, b, like)
        if integral is None:
            raise ValueError(
                "the torchsde object was made without areas; take a BrownianInterval with "
                "levy_area_approximation='space-time'"
            )
        return (integral / (b - a) - increment / 2).to(like)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, independent of the Brownian motion."""
        return self._normal.normal(like)

    def on(self, clock: Clock) -> TorchsdeNoise:
        """Return itself, if its times are values of this clock.

        Raises:
            ValueError: If they are not.
        """
        _check_clock(self.clock, clock)
        return self
