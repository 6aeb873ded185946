"""A Brownian path without state: ask for any interval, in any order, and get the same path.

The position axis of a `Clock` is cut into cells. Each cell has an increment ``W`` and an area ``H``,
independent of all others. Cells are halved a number of times, and what is left, a leaf, is split once
more, at the end of the interval that is asked for. A cell and a split take two standard normal
numbers each, named by their place, so whatever is returned is a linear combination of named numbers:
its coefficients are found in float64, and the numbers added up in the dtype of the state.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .brownian import read_seeds
from .clock import VARIANCE, Clock

# Length of a cell. A cell between the ends of an interval takes one number for W, a halving at an end
# two: with cells of half an octave and steps of one or two the two are about even.
_CELL = 0.5

Key: TypeAlias = tuple[int, int, int]  # cell, node in it, and which of the node's two numbers
Form: TypeAlias = dict[Key, float]  # a linear combination of standard normal numbers


class Piece(NamedTuple):
    """Increment and area of a path over an interval of the clock."""

    low: float
    high: float
    increment: Form
    area: Form


def whole(low: float, high: float, x: Key, y: Key) -> Piece:
    """Return a piece of which nothing is known: ``W ~ N(0, h)`` and ``H ~ N(0, h/12)``, independent."""
    span = high - low
    return Piece(low, high, {x: math.sqrt(span)}, {y: math.sqrt(span / 12)})


class Cut(NamedTuple):
    """Coefficients of a split, numbers or arrays; see `split`."""

    cross: Any
    left: Any
    right: Any
    spread: Any
    rest: Any

    @classmethod
    def of(cls, h: Any, p: Any, q: Any) -> Cut:  # noqa: ANN401
        """Return those of a length ``h`` that is split in fractions ``p`` and ``q``."""
        s = p**3 + q**3
        spread, rest = np.sqrt(h * p * q * s), np.sqrt(h * p * q / (12 * s))
        return cls(6 * p * q, p**2 / (2 * s), q**2 / (2 * s), spread, rest)


def split(piece: Piece, at: float, x: Key, y: Key) -> tuple[Piece, Piece]:
    """Split a piece: the law of both parts given their sum, with two fresh numbers.

    With the fractions ``p + q = 1`` of the length ``h``, and ``s = p³ + q³``::

        W₁ = p W + 6 p q H + Z        H₁ = p² H − p²/(2 s) Z + q N        Z ~ N(0, h p q s)
        W₂ = q W − 6 p q H − Z        H₂ = q² H − q²/(2 s) Z − p N        N ~ N(0, h p q/(12 s))

    Args:
        piece: The whole.
        at: Where to split it.
        x: Name of the number that ``Z`` is made of.
        y: Name of the number that ``N`` is made of.

    Source: Foster, "Numerical approximations for stochastic differential equations" (2020), theorem
    6.1.6, is the case ``p = 1/2``.
    """
    low, high, W, H = piece
    h = high - low
    p, q = (at - low) / h, (high - at) / h
    cut = Cut.of(h, p, q)
    Z, N = {x: float(cut.spread)}, {y: float(cut.rest)}
    W1 = _combined((p, W), (cut.cross, H), (1, Z))
    W2 = _combined((q, W), (-cut.cross, H), (-1, Z))
    H1 = _combined((p**2, H), (-cut.left, Z), (q, N))
    H2 = _combined((q**2, H), (-cut.right, Z), (-p, N))
    return Piece(low, at, W1, H1), Piece(at, high, W2, H2)


def join(pieces: Sequence[Piece]) -> Piece:
    """Join adjacent pieces, in order: Chen's relation.

    ``W = W₁ + W₂`` and ``H = p H₁ + q H₂ + (q W₁ − p W₂)/2``, where ``p`` and ``q`` are the
    fractions of the length.
    """
    total = pieces[0]
    for nxt in pieces[1:]:
        low, high = total.low, nxt.high
        p, q = (total.high - low) / (high - low), (high - nxt.low) / (high - low)
        W = _combined((1, total.increment), (1, nxt.increment))
        H = _combined(
            (p, total.area), (q, nxt.area), (q / 2, total.increment), (-p / 2, nxt.increment)
        )
        total = Piece(low, high, W, H)
    return total


def _combined(*terms: tuple[float, Form]) -> Form:
    total: Form = {}
    for factor, form in terms:
        for key, coefficient in form.items():
            total[key] = total.get(key, 0.0) + factor * coefficient
    return total


@torch.inference_mode(False)
def _memory(shape: tuple[int, ...]) -> Tensor:
    """Memory that may be written to again later, in inference mode or out of it."""
    return torch.empty(shape)


class NamedNormals:
    """Standard normal numbers with names: a name has the same numbers whenever it is asked for.

    A stream of SFC64 that starts at the hash of seed and name gives 32-bit words, and the transform
    of Box and Muller makes them normal, in float32. This takes less time than `torch.randn`. numpy's
    Philox, which takes names as they are, and its ziggurat take four times as long; torch's
    generator on the CPU reads 32 bits of a seed, so that streams of other names would coincide.

    Args:
        seeds: One seed for each row, or one seed for all, whose stream the rows share out.
        rows: Number of rows.
        size: Numbers in a row.
        most: How many arrays of numbers are kept. It changes nothing but the time that is taken.
    """

    def __init__(self, seeds: Sequence[int], rows: int, size: int, most: int) -> None:
        self.seeds, self.shape, self.most = seeds, (rows, 2, -(-size // 2)), most
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._source = np.random.SFC64(0)
        self._state = self._source.state
        own = rows * self.shape[2] // max(len(seeds), 1)
        self._bits = np.empty((len(seeds), own), np.uint64)
        self._radius = _memory((rows, self.shape[2]))

    def __call__(self, name: str) -> Tensor:
        """Numbers of a name, ``(rows, size)`` with ``size`` rounded up to an even number."""
        found = self._kept.pop(name, None)
        if found is None:
            full = len(self._kept) == self.most
            memory = self._kept.popitem(last=False)[1] if full else _memory(self.shape)
            found = self.draw(name, memory)
        self._kept[name] = found
        return found.flatten(1)

    def expect(self, names: Iterable[str]) -> None:
        """Say what will be asked for next, so that other numbers make room first."""
        for name in names:
            if name in self._kept:
                self._kept.move_to_end(name)

    def draw(self, name: str, out: Tensor) -> Tensor:
        """Write the numbers of a name into ``out``, of shape ``self.shape``."""
        for seed, row in zip(self.seeds, self._bits, strict=True):
            digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=32).digest()
            self._state["state"]["state"] = np.frombuffer(digest, np.uint64)
            self._source.state = self._state
            row[:] = self._source.random_raw(row.size)
        words = torch.from_numpy(self._bits.view(np.int32)).view(self.shape)
        cosine, sine = out[:, 0], out[:, 1]
        # Words are signed: one is an angle in [−π, π], the size of the other makes the radius.
        sine.copy_(words[:, 1]).mul_(math.pi * 2.0**-31)
        torch.cos(sine, out=cosine)
        sine.sin_()
        radius = self._radius.copy_(words[:, 0]).abs_().add_(0.5).mul_(2.0**-31)
        radius.log_().mul_(-2).sqrt_()
        cosine.mul_(radius)
        sine.mul_(radius)
        return out


class BrownianPath:
    """One Brownian path per sample, the same whatever asks for it, and however often or in what order.

    ``W(t)`` is a function of the sample's seed, the clock and ``t``. So a sample's path does not
    depend on the batch, and solves with other methods or other numbers of steps follow the same
    path; increments and areas obey Chen's relation to round-off. The law is exact as long as no two
    of the ends of intervals asked for lie within one leaf, ``resolution`` wide; an interval inside a
    leaf is refused. Numbers are drawn in float32 on the CPU, so that solves in float32 and float64,
    and on any device, follow one path. A path is not to be asked by several threads at once.

    Args:
        seeds: One seed for each sample, whose path then depends on this seed alone; or one seed for
            the batch, which is much faster for small states: sample ``i``'s path then depends on the
            seed and on ``i``.
        shape: Shape of the state, ``(B, *event)``.
        clock: Clock of the intervals that are asked for: the variance, for affine processes, or
            `sdekit.clock.TIME` for others. Schemes that need one of their own take it by `on`.
        resolution: Length of a leaf on the clock's position axis, a power of 1/2. The path at the
            ends of leaves stays the same if it is made finer. Each halving costs up to two more
            arrays of numbers for each end of an interval.
        buffers: How many arrays of numbers, of the size of the state in float32, are kept for later
            queries. ``None`` keeps what two neighbouring intervals have in common.

    Raises:
        TypeError: If a seed is not a whole number.
        ValueError: If there are not as many seeds as samples, or ``resolution`` is no power of 1/2.
    """

    def __init__(
        self,
        seeds: int | Sequence[int],
        shape: Sequence[int],
        *,
        clock: Clock = VARIANCE,
        resolution: float = 1 / 4,
        buffers: int | None = None,
    ) -> None:
        self.seeds, self.shape, self.clock = seeds, tuple(shape), clock
        self.resolution, self.buffers = resolution, buffers
        numbers, each = read_seeds(seeds)
        if not self.shape or (each and len(numbers) != self.shape[0]):
            raise ValueError(
                f"{len(numbers)} seeds for a state of shape {self.shape}; give one seed per sample, "
                "or one for the batch"
            )
        mantissa, exponent = math.frexp(_CELL / resolution if resolution else math.inf)
        self.levels = exponent - 1
        if mantissa != 0.5 or not 0 <= self.levels <= 40:
            raise ValueError(f"resolution = {resolution}; it must be 1/2, 1/4, 1/8, … or 2**-41")
        if buffers is None:
            buffers = 4 * self.levels + 16  # the numbers of both ends, and of some cells between
        size = math.prod(self.shape[1:])
        self._numbers = NamedNormals(numbers, self.shape[0], size, max(buffers, 1))
        self._count = 0

    def on(self, clock: Clock) -> BrownianPath:
        """Return the path of the same seeds on another clock, independent of this one."""
        if clock == self.clock:
            return self
        return BrownianPath(
            self.seeds,
            self.shape,
            clock=clock,
            resolution=self.resolution,
            buffers=self.buffers,
        )

    def increment(self, a: float, b: float, like: Tensor) -> Tensor:
        """Increment ``W(b) − W(a)``, ``a < b``.

        Raises:
            ValueError: If ``[a, b]`` lies within a leaf or off the clock, or the shape is not the
                path's.
        """
        forms = ((1.0, piece.increment) for piece in self.pieces(a, b))
        return self._sum(_combined(*forms), like)

    def area(self, a: float, b: float, like: Tensor) -> Tensor:
        """Space-time area ``H`` over ``[a, b]``; see `NoiseSource`.

        Raises:
            ValueError: If ``[a, b]`` lies within a leaf or off the clock, or the shape is not the
                path's.
        """
        return self._sum(join(self.pieces(a, b)).area, like)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, independent of the path: other ones at every call.

        They are the only thing that depends on what was asked before, on the number of calls.
        """
        self._check_shape(like)
        self._count += 1
        name = f"{self.clock.name} normal {self._count}"
        return self._shaped(self._numbers.draw(name, torch.empty(self._numbers.shape)), like)

    def pieces(self, a: float, b: float) -> list[Piece]:
        """Return the pieces that make up ``[a, b]``, in order, as linear combinations of named numbers.

        Raises:
            ValueError: If ``[a, b]`` lies within a leaf, or is not an interval of the clock.
        """
        a, b = float(a), float(b)
        if not a < b:
            raise ValueError(f"asked for the interval [{a}, {b}]; its ends must increase")
        first, last = self._cell(a), self._cell(b)
        found: list[Piece] = []
        for cell in range(first, last + 1) if first <= last else range(first, last - 1, -1):
            low, high, *ends = self._edges(cell)
            if low < high:  # else off the end of what the clock tells apart
                piece = whole(low, high, (cell, 0, 0), (cell, 0, 1))
                found += self._cover(piece, (ends[0], ends[1]), cell, 1, a, b)
        return found

    def _edges(self, cell: int) -> tuple[float, float, float, float]:
        """Clock values and positions of a cell, in order of the values."""
        first, last = cell * _CELL, (cell + 1) * _CELL
        low, high = self.clock.value(first), self.clock.value(last)
        return (low, high, first, last) if low <= high else (high, low, last, first)

    def _cell(self, value: float) -> int:
        position = self.clock.position(value)
        if not math.isnan(position):
            # On some clocks the position is −∞ where σ = 0: any cell far off has the same value.
            place = position if math.isfinite(position) else math.copysign(1000.0, position)
            guess = math.floor(place / _CELL)
            for cell in (guess, guess - 1, guess + 1):  # round-off
                low, high, *_ = self._edges(cell)
                if low <= value <= high:
                    return cell
        raise ValueError(
            f"{value} is at position {position} of the clock {self.clock.name!r}; the position must "
            "be finite, and the clock's value there the same again"
        )

    def _cover(
        self, piece: Piece, ends: tuple[float, float], cell: int, node: int, a: float, b: float
    ) -> Iterator[Piece]:
        """The parts of a node within ``[a, b]``; nodes are numbered as in a heap, from 1."""
        if piece.high <= a or b <= piece.low:
            return
        if a <= piece.low and piece.high <= b:
            yield piece
            return
        middle = (ends[0] + ends[1]) / 2
        if node.bit_length() <= self.levels:
            at = min(max(self.clock.value(middle), piece.low), piece.high)
        else:
            if piece.low < a and b < piece.high:
                raise ValueError(self._too_close(a, b))
            at = a if piece.low < a else b
        left, right = split(piece, at, (cell, node, 0), (cell, node, 1))
        yield from self._cover(left, (ends[0], middle), cell, 2 * node, a, b)
        yield from self._cover(right, (middle, ends[1]), cell, 2 * node + 1, a, b)

    def _too_close(self, a: float, b: float) -> str:
        gap = abs(self.clock.position(b) - self.clock.position(a))
        finer = f"resolution=1/{2 ** math.ceil(-math.log2(gap))}" if gap else "longer steps"
        return (
            f"the interval [{a:.12g}, {b:.12g}] lies within a leaf of the path, which is resolved to "
            f"1/{round(1 / self.resolution)} in position on the clock {self.clock.name!r}; take a "
            f"path with {finer}"
        )

    def _sum(self, form: Form, like: Tensor) -> Tensor:
        self._check_shape(like)
        names = {
            f"{self.clock.name} {cell} {node} {which}": coefficient
            for (cell, node, which), coefficient in form.items()
            if coefficient
        }
        self._numbers.expect(names)
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        rows, _, pairs = self._numbers.shape
        total = torch.zeros((rows, 2 * pairs), dtype=dtype)
        for name, coefficient in names.items():
            total.add_(self._numbers(name), alpha=coefficient)
        return self._shaped(total, like)

    def _shaped(self, rows: Tensor, like: Tensor) -> Tensor:
        size = math.prod(self.shape[1:])
        return rows.flatten(1)[:, :size].reshape(self.shape).to(like)

    def _check_shape(self, like: Tensor) -> None:
        if like.shape != self.shape:
            raise ValueError(
                f"the path has shape {self.shape}, the noise asked for has {tuple(like.shape)}; "
                "make the path in the shape of the state"
            )
