"""What a scheme does in the adaptive loop: a *march*, and the trials that it plans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..coordinates import Points
from ..solution import SolveError
from .scheme import Array
from .view import Node, Samples, View

Ints: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
TrialType = TypeVar("TrialType", bound="Trial")
Carry: TypeAlias = tuple[Tensor, ...]
"""What a march carries from step to step, of the samples on their way; the states come first."""


@dataclass(frozen=True)
class Tolerances:
    """What an error is measured by: ``atol + rtol |u|``, component by component."""

    rtol: float
    atol: float

    def scale(self, u: Tensor, other: Tensor) -> Tensor:
        """Scale of an error in a step from ``u`` to ``other``."""
        return torch.maximum(u.abs(), other.abs()).mul_(self.rtol).add_(self.atol)


@dataclass(frozen=True)
class Trial:
    """A trial step as the host plans it; arrays have an entry for each group that takes it.

    Attributes:
        groups: The groups, indices.
        samples: The samples of these groups; ``None`` for the whole batch.
        start: Points where it starts.
        end: Points where it ends.
        table: Coefficients of the march, ``(n, columns)`` or ``(n, columns, d)``.
        keys: Which slopes the weights in the table are for, row by row.
    """

    groups: Ints
    samples: Samples
    start: Points
    end: Points
    table: Array
    keys: Sequence[Sequence[int]]

    def take(self: TrialType, kept: Mask) -> TrialType:
        """Return the trial of some of its groups."""
        if kept.all():
            return self
        parts: dict[str, Any] = {"samples": np.flatnonzero(kept)}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Points):
                parts[f.name] = Points(*(v[kept] for v in value))
            elif isinstance(value, np.ndarray):
                parts[f.name] = value[kept]
        return replace(self, **parts)

    def columns(self, like: Tensor) -> list[Tensor]:
        """Send the table to the device; return its columns, shaped to multiply states."""
        table = torch.as_tensor(self.table, dtype=like.dtype)
        if like.is_cuda:
            table = table.pin_memory()
        table = table.to(like.device, non_blocking=True)
        event = like.shape[1:] if self.table.ndim == 3 else (1,) * (like.ndim - 1)
        return [column.reshape(-1, *event) for column in table.unbind(1)]


def table(parts: Sequence[Array]) -> Array:
    """Put coefficients side by side: ``(n,)`` each, or ``(n, d)`` where there is a frame."""
    if any(part.ndim == 2 for part in parts):
        parts = np.broadcast_arrays(*(p if p.ndim == 2 else p[:, None] for p in parts))
    return np.stack(parts, axis=1)


def combine(u: Tensor | None, slopes: Sequence[Tensor], row: Mapping[int, Tensor]) -> Tensor:
    """Return ``u + Σ_j row[j] slopes[j]``, or the sum alone.

    Products and sums are rounded one by one: fused, they round differently in the last elements of
    an array, and so depend on what else is in the batch.
    """
    for j, weight in row.items():
        term = slopes[j] * weight
        u = term if u is None else u + term
    assert u is not None
    return u


def node_of(columns: Sequence[Tensor], u: Tensor) -> Node:
    """Return the node made of columns that hold a view's rows."""
    level = columns[0].reshape(len(columns[0]), -1)[:, 0]
    return Node(level.expand(len(u)), *columns[1:])


@dataclass(frozen=True)
class Attempt:
    """What the device made of a trial.

    Attributes:
        u: States where it ends.
        slopes: What the march has to remember or to interpolate with.
        errors: Mean squares of errors in units of the tolerance, ``(m, B)``.
    """

    u: Tensor
    slopes: Sequence[Tensor]
    errors: Tensor

    def take(self, rows: Tensor) -> Attempt:
        """Return what belongs to some of the samples; the errors have been read."""
        slopes = [slope.index_select(0, rows) for slope in self.slopes]
        return replace(self, u=self.u.index_select(0, rows), slopes=slopes)


class Interpolant(Protocol):
    """States between start and end of an accepted trial."""

    def __call__(self, picked: Ints, tau: Array) -> Tensor:
        """States ``u`` of the ``picked`` samples of the trial at ``tau``, one for each of them."""
        ...


class March(ABC, Generic[TrialType]):
    """What a scheme does in the adaptive loop, made for one solve.

    `plan`, `cost` and `judge` are the host's; `attempt`, `commit` and `kept` are the device's,
    functions of what is carried and of the trial, which autograd goes through.

    Attributes:
        view: The problem, seen in coordinates.
        tolerances: The tolerances.
        size: Next step of each group, positive.
        first_cost: Evaluations before the first trial.
        extra_cost: Evaluations of the interpolant of an accepted step.
    """

    size: Array
    first_cost: int
    extra_cost: int = 0

    def __init__(self, view: View, tolerances: Tolerances) -> None:
        self.view, self.tolerances = view, tolerances

    @abstractmethod
    def carry(self, u: Tensor, tau: Array) -> Carry:
        """What is carried into the first step."""

    @abstractmethod
    def begin(self, carry: Carry, tau: Array, end: float) -> None:
        """Choose the first steps."""

    @abstractmethod
    def cost(self, groups: Ints) -> Ints:
        """Evaluations of the next trial."""

    @abstractmethod
    def plan(self, groups: Ints, samples: Samples, start: Array, end: Array) -> TrialType:
        """Plan a trial from ``τ = start`` to ``end``, which it reaches to the last bit."""

    @abstractmethod
    def attempt(self, trial: TrialType, carry: Carry) -> Attempt:
        """Make a trial step."""

    @abstractmethod
    def judge(self, trial: TrialType, errors: Array, dt: Array) -> Mask:
        """Accept or reject trials, ``errors`` being ``(m, n)``, and choose the next steps."""

    def propose(self, groups: Ints, accept: Mask, dt: Array, size: Array) -> None:
        """Take over the next steps, ``size``, after trials over ``dt``."""
        # A step cut short by the end says nothing against the longer one proposed before.
        cut = accept & (dt < self.size[groups])
        self.size[groups] = np.where(cut, np.maximum(self.size[groups], size), size)

    @abstractmethod
    def commit(self, carry: Carry, attempt: Attempt) -> Carry:
        """What is carried on by groups that accepted; the arguments are theirs."""

    def kept(self, carry: Carry, attempt: Attempt) -> Carry:
        """What is carried on by groups that rejected."""
        return carry

    def replayed(self, trial: TrialType) -> TrialType:
        """Return an accepted trial as it is taken again, without those that were rejected."""
        return trial

    @abstractmethod
    def interpolant(self, trial: TrialType, carry: Carry, attempt: Attempt) -> Interpolant:
        """States between start and end of a trial, all of whose groups accepted it."""


def read(errors: Tensor, *, per_sample: bool) -> Array:
    """Read errors, the one time that the host waits for the device in a trial.

    They are rounded to a part in a thousand, so that the round-off of another batch, or of another
    machine, does not change every step by a little.
    """
    squares = errors.detach().double()
    if not per_sample:
        squares = squares.mean(1, keepdim=True)
    if squares.is_cuda:
        pinned = torch.empty(squares.shape, dtype=squares.dtype, pin_memory=True)
        squares = pinned.copy_(squares, non_blocking=True)
        torch.cuda.current_stream(errors.device).synchronize()
    values: Array = squares.numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        rounded: Array = np.exp2(np.round(np.log2(values) * 512) / 1024)
    return np.where(np.isfinite(rounded), rounded, np.inf)


def first_step(
    march: March[Any], u: Tensor, slope: Tensor, tau: Array, end: float, k: int, aim: float
) -> Array:
    """Choose first steps (Hairer, Nørsett & Wanner 1993, section II.4); one evaluation.

    Args:
        march: The march.
        u: States where the solve starts.
        slope: Slopes ``N`` there.
        tau: Where it starts, an entry for each group.
        end: Where it ends.
        k: Order of the local error of the first step.
        aim: Share of the tolerance that the error of the first step is to be.

    Returns:
        Lengths, one for each group.

    Raises:
        SolveError: If the state or its slope is not finite.
    """
    view, per_sample = march.view, len(tau) == len(u)
    points = view.coordinates.at_tau(tau)
    scale = march.tolerances.scale(u, u)
    speed = shaped(view.coordinates.weight(points), u) * slope
    sizes = torch.stack([view.mean_square(v, scale) for v in (u, speed)])
    d0, d1 = read(sizes, per_sample=per_sample)
    if not np.isfinite(d0 + d1).all():
        sample = int(sizes.isfinite().all(0).int().argmin())
        raise SolveError(
            f"the initial state or its first slope is not finite in sample {sample}, at "
            f"{view.symbol} = {float(view.level(tau[:1])[0]):.6g}"
        )
    span = np.abs(end - tau)
    guess = np.minimum(
        np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / np.maximum(d1, 1e-9)), span
    )
    moved = tau + np.sign(end - tau) * guess
    probe = torch.addcmul(u, shaped(moved - tau, u), speed)
    at = view.coordinates.at_tau(moved)
    node = node_of([shaped(row, u) for row in view.rows(at)], u)
    change = shaped(view.coordinates.weight(at), u) * view(node, probe) - speed
    d2 = read(view.mean_square(change, scale)[None], per_sample=per_sample)[0] / guess
    steepest = np.maximum(d1, d2) if k > 2 else d2
    length = (aim / np.maximum(steepest, 1e-15)) ** (1 / k)
    # A probe that is not finite says nothing: whether steps can be shorter, the trials find out.
    length = np.where(np.isfinite(d2), length, guess)
    first: Array = np.minimum(np.minimum(100 * guess, length), span)
    return first


def shaped(values: Array, like: Tensor) -> Tensor:
    """Send host values, one for each group, to the device, shaped to multiply states."""
    column = torch.as_tensor(values, dtype=like.dtype).to(like.device)
    return column.reshape(-1, *(like.shape[1:] if values.ndim == 2 else (1,) * (like.ndim - 1)))
