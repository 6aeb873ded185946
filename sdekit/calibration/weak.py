"""How far two sets of samples are from being of one law."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

_SLICES, _BLOCKS = 32, 16


class Distance(NamedTuple):
    """Squared energy distance between two sets of samples.

    Attributes:
        square: Of all samples.
        without: Of all but those of one block, for each of 16 blocks.
    """

    square: float
    without: Array

    def below(self, other: Distance) -> float:
        """Return how far this is below another to the same samples, in standard errors (jackknife)."""
        differences = other.without - self.without
        error = np.sqrt((len(differences) - 1) * differences.var())
        return (other.square - self.square) / max(float(error), 1e-300)

    def ratio(self, other: Distance) -> tuple[float, float, float]:
        """Return this over another as distances, not squares, with the ends of a 95 % interval."""
        ratios = np.log(self.without / other.without) / 2
        half = 1.96 * np.sqrt((len(ratios) - 1) * ratios.var())
        middle = np.sqrt(self.square / other.square)
        return float(middle), float(middle * np.exp(-half)), float(middle * np.exp(half))


def energy_distance(x: Tensor, y: Tensor, seed: int) -> Distance:
    """Measure samples ``(B, d)`` against others, in the mean over random directions.

    ``(2 E|X − Y| − E|X − X'| − E|Y − Y'|)/E|Y − Y'|`` along each direction, which in one dimension is
    the squared difference of the distribution functions. For samples of one law it is about ``1/B``
    for each of the two sets.
    """
    source = torch.Generator().manual_seed(seed)
    directions = torch.randn(_SLICES, x.shape[1], generator=source, dtype=torch.float64)
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(x.device)
    points, order = (directions @ torch.cat([x, y]).double().mT).sort(dim=1)
    of_x, width = order < len(x), points.diff(dim=1)
    block = torch.cat([torch.arange(len(v)) * _BLOCKS // len(v) for v in (x, y)]).to(x.device)
    block = block[order]

    def square(kept: Tensor) -> float:
        """Twice the integrals of ``(F − G)²`` over those of ``G (1 − G)``, along lines."""
        below_x, below_y = ((kept & which).double().cumsum(1) for which in (of_x, ~of_x))
        f, g = below_x[:, :-1] / below_x[:, -1:], below_y[:, :-1] / below_y[:, -1:]
        apart, own = ((f - g).square() * width).sum(), (g * (1 - g) * width).sum()
        return float(apart / own)

    every = torch.ones_like(of_x)
    return Distance(square(every), np.array([square(block != k) for k in range(_BLOCKS)]))
