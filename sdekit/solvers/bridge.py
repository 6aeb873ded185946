"""Noise of adaptive steps: increments and areas of each sample over the interval of its trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..brownian import NoiseSource, over_step
from ..path import BrownianPath, Cut
from .march import Ints, Mask, shaped
from .scheme import Array

# Adaptive steps, and those tried before they are shortened, are close to each other.
_FINE = 2.0**-10


class TrialNoise(Protocol):
    """Noise of trial steps."""

    def draw(self, samples: Ints, start: Array, end: Array) -> Tensor:
        """Increments and areas from ``start`` to ``end``, one for each sample: ``(2, n, *event)``.

        They are those of a Brownian motion that runs the way of the steps.
        """
        ...

    def judged(self, samples: Ints, accept: Mask) -> None:
        """Take note of which trials, those drawn for last, were accepted."""
        ...


class Redrawn:
    """Fresh noise in every trial: the law is biased by what was rejected.

    Args:
        noise: Source of normal numbers, a stream for each sample.
        like: A batch of states.
    """

    def __init__(self, noise: NoiseSource, like: Tensor) -> None:
        self.noise, self.like = noise, like

    def draw(self, samples: Ints, start: Array, end: Array) -> Tensor:
        """Fresh numbers."""
        # All rows are drawn, so that a sample's numbers do not depend on the others.
        rows = torch.as_tensor(samples, device=self.like.device)
        numbers = torch.stack([self.noise.normal(self.like)[rows] for _ in range(2)])
        length = np.abs(end - start)
        return numbers * _scales(length, self.like)

    def judged(self, samples: Ints, accept: Mask) -> None:
        """Forget them."""


class Followed:
    """The noise of a `BrownianPath`, which knows any interval.

    Args:
        path: The path, with a seed for each sample: their steps are not the same.

    Raises:
        ValueError: If it has one seed for the batch, or another shape.
    """

    def __init__(self, path: BrownianPath, like: Tensor) -> None:
        if isinstance(path.seeds, int):
            raise ValueError(
                "adaptive steps differ from sample to sample, and this BrownianPath has one seed for "
                "the batch; give it a seed for each sample"
            )
        if path.shape != like.shape:
            raise ValueError(
                f"the path has shape {path.shape}, the state has {tuple(like.shape)}; they must agree"
            )
        self.like = like[:1]
        self.paths = [
            BrownianPath(
                [seed], self.like.shape, clock=path.clock, resolution=min(path.resolution, _FINE)
            )
            for seed in path.seeds
        ]

    def draw(self, samples: Ints, start: Array, end: Array) -> Tensor:
        """Ask the path of each sample."""
        parts = []
        for i, a, b in zip(samples, start, end, strict=True):
            parts.append(over_step(self.paths[i], a, b, self.like))
        return torch.stack([torch.cat(rows) for rows in zip(*parts, strict=True)])

    def judged(self, samples: Ints, accept: Mask) -> None:
        """Nothing: the path remembers."""


class Bridged:
    """A Brownian motion that is found out as the steps go, and remembered as far as it was seen.

    A trial that is rejected has seen its noise. What follows has to agree with it, or the law would be
    biased: a shorter trial splits the interval, with the law of both parts given the whole, and what is
    left of it comes next ("rejection sampling with memory", Rackauckas & Nie 2017; with areas, by the
    split of `sdekit.path`). Every trial takes two arrays of normal numbers, so that a sample's do not
    depend on the others in the batch.

    Args:
        noise: Source of normal numbers, a stream for each sample.
        like: A batch of states.
    """

    def __init__(self, noise: NoiseSource, like: Tensor) -> None:
        self.noise, self.like = noise, like
        # What is known of each sample's future, in pieces, the nearest first: their lengths, (B, k),
        # and increments and areas, (2, B, k, *event). Where there are fewer, lengths are 0.
        self.lengths = np.zeros((len(like), 0))
        self.pieces = like.new_zeros((2, len(like), 0, *like.shape[1:]))

    def draw(self, samples: Ints, start: Array, end: Array) -> Tensor:
        """Join the pieces that lie in a trial, the last of which is cut, or new."""
        like, length = self.like, np.abs(end - start)
        rows, each = torch.as_tensor(samples, device=like.device), np.arange(len(samples))
        numbers = torch.stack([self.noise.normal(like)[rows] for _ in range(2)])
        lengths = np.pad(self.lengths[samples], ((0, 0), (0, 1)))
        pieces = torch.cat([self.pieces[:, rows], torch.zeros_like(numbers)[:, :, None]], 2)
        # A piece that ends in the trial is whole, also if it ends there but for round-off.
        within = (lengths > 0) & (np.cumsum(lengths, 1) <= length[:, None] * (1 + 1e-12))
        at = within.sum(1)  # the one that is cut, or the first of which nothing is known
        left = np.maximum(length - np.where(within, lengths, 0.0).sum(1), 0.0)
        left[left < 1e-12 * length] = 0.0
        known = lengths[each, at]
        cut = pieces[:, torch.arange(len(rows)), torch.as_tensor(at, device=like.device)]
        first, second = _split(cut, known, left, numbers)
        lengths[each, at] = 0.0
        self._samples, self._at = samples, at
        rest = np.maximum(known - left, 0.0)
        self._lengths = np.concatenate([lengths, left[:, None], rest[:, None]], 1)
        self._pieces = torch.cat([pieces, first[:, :, None], second[:, :, None]], 2)
        inside = [np.where(mask, h, 0.0) for mask, h in zip(within.T, lengths.T, strict=True)]
        return _join([*zip(inside, pieces.unbind(2), strict=True), (left, first)])

    def judged(self, samples: Ints, accept: Mask) -> None:
        """Keep the pieces in order; those of an accepted trial are done."""
        lengths, at = self._lengths, self._at[:, None]
        count = lengths.shape[1] - 2
        place = np.arange(count + 2.0)[None]
        # Both parts of the piece that was cut come where it was.
        place = np.where(place == count, at, np.where(place == count + 1, at + 0.5, place))
        done = accept[:, None] & ((place < at) | (np.arange(count + 2) == count))
        lengths = np.where(done, 0.0, lengths)
        order = np.argsort(np.where(lengths > 0, place, np.inf), axis=1, kind="stable")
        order = order[:, : int((lengths > 0).sum(1).max(initial=0))]
        index = torch.as_tensor(order, device=self.like.device)
        row = torch.arange(len(samples), device=self.like.device)[:, None]
        self.lengths = np.zeros((len(self.like), order.shape[1]))
        self.lengths[samples] = np.take_along_axis(lengths, order, 1)
        self.pieces = self.like.new_zeros(
            (2, len(self.like), *index.shape[1:], *self.like.shape[1:])
        )
        self.pieces[:, torch.as_tensor(samples, device=self.like.device)] = self._pieces[
            :, row, index
        ]


def _scales(length: Array, like: Tensor) -> Tensor:
    """Standard deviations of increments and areas over lengths."""
    return torch.stack([shaped(np.sqrt(length / share), like) for share in (1, 12)])


def _split(piece: Tensor, known: Array, left: Array, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Cut pieces of length ``known`` at ``left``; where nothing is known, draw that length.

    The formulas are those of `sdekit.path.split`, for arrays of pieces.
    """
    (W, H), (x, y) = piece, numbers
    h = np.maximum(known, left)
    safe = np.where(h > 0, h, 1.0)
    p = np.where(known > 0, left / safe, 1.0)
    q, new = 1 - p, known == 0
    cut = Cut.of(h, p, q)
    P, Q, P2, Q2, cross, a, b = (
        shaped(row, W) for row in (p, q, p**2, q**2, cut.cross, cut.left, cut.right)
    )
    Z = shaped(np.where(new, np.sqrt(left), cut.spread), W) * x
    N = shaped(np.where(new, np.sqrt(left / 12), cut.rest), W) * y
    fresh = shaped(new.astype(np.float64), W).bool()
    W1, H1 = P * W + cross * H + Z, P2 * H - a * Z + Q * N
    W2, H2 = Q * W - cross * H - Z, Q2 * H - b * Z - P * N
    first = torch.stack([torch.where(fresh, Z, W1), torch.where(fresh, N, H1)])
    return first, torch.stack([W2, H2])


def _join(pieces: Sequence[tuple[Array, Tensor]]) -> Tensor:
    """Join adjacent pieces, each with its lengths: Chen's relation, by ``∫ B dr`` over all of them."""
    total = sum(length for length, _ in pieces)
    W = torch.zeros_like(pieces[0][1][0])
    area = torch.zeros_like(W)
    for length, (w, h) in pieces:
        there = shaped((length > 0).astype(np.float64), W)
        area = area + shaped(length / np.asarray(total), W) * (W + there * (0.5 * w + h))
        W = W + there * w
    return torch.stack([W, area - 0.5 * W])
