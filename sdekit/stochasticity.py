"""The stochasticity ``η`` of the reverse SDE: a number, a step function of ``σ``, ER-SDE's.

Coordinates of the reverse SDE divide the state by ``g`` with ``d log g = η² d log h``, for ``h² = σ² +
c``; so they ask for ``g``, here called the damping, and for its inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .coordinates import Array

__all__ = ["ErEta", "Eta", "EtaSteps", "Stochasticity"]


@dataclass(frozen=True)
class Eta:
    """A constant stochasticity ``η``: 0 is the flow, 1 Anderson's reverse SDE.

    Attributes:
        value: ``η``.
    """

    value: float

    def squared(self, sigma: Array) -> Array:
        """``η²`` at noise levels."""
        return np.full_like(sigma, self.value**2)

    def damping(self, sigma: Array, gap: float) -> Array:
        """``g = h^(η²)`` for ``h² = σ² + gap``."""
        damping: Array = np.sqrt(sigma**2 + gap) ** self.value**2
        return damping

    def sigma(self, damping: Array, gap: float) -> Array:
        """Noise level at a value of `damping`."""
        return np.sqrt(np.maximum(damping ** (2 / self.value**2) - gap, 0.0))


@dataclass(frozen=True)
class ErEta:
    """The stochasticity of ER-SDE-Solver: ``g = φ(σ)/σ`` in `LogData`, ``φ = σ (exp(σ^0.3) + 10)``.

    ``η² = d log φ/d log σ − 1 = 0.3 σ^0.3/(1 + 10 exp(−σ^0.3))``: next to nothing at low noise, and
    above 1 where ``σ > 99``.

    Source: Cui et al. 2023; the default of their code.
    """

    def squared(self, sigma: Array) -> Array:
        """``η²`` at noise levels."""
        power = sigma**0.3
        squared: Array = 0.3 * power / (1 + 10 * np.exp(-power))
        return squared

    def damping(self, sigma: Array, gap: float) -> Array:
        """``exp(σ^0.3) + 10``."""
        if gap != 0:
            raise ValueError(
                "the stochasticity of ER-SDE-Solver is defined in LogData() coordinates"
            )
        return np.exp(sigma**0.3) + 10

    def sigma(self, damping: Array, gap: float) -> Array:
        """Noise level at a value of `damping`."""
        return np.log(damping - 10) ** (1 / 0.3)


@dataclass(frozen=True)
class EtaSteps:
    """A stochasticity that depends on the noise level: a step function ``η(σ)``.

    The law of the exact solution is that of the data for every ``η(σ)``, so that a function followed
    by steps, as `of` does, is as good as the function itself; and of a step function all that schemes
    need is known in closed form.

    Args:
        levels: Noise levels at which ``η`` changes, rising; the value there is that above.
        values: ``η`` below the first level, between the levels, and above the last.

    Raises:
        ValueError: If levels do not rise from above 0, there is not one value more than levels, or
            values are negative or all 0, which is the probability flow.
    """

    levels: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        levels, values = (tuple(map(float, v)) for v in (self.levels, self.values))
        if not all(a < b for a, b in pairwise((0.0, *levels, np.inf))):
            raise ValueError(f"levels = {levels}; they must be finite and rise from above 0")
        if len(values) != len(levels) + 1:
            raise ValueError(
                f"{len(values)} values for {len(levels)} levels; give one below the first level, one "
                "between each two, and one above the last"
            )
        if not (all(0 <= v < np.inf for v in values) and any(values)):
            raise ValueError(
                f"values = {values}; they must be finite and not negative, and one above 0 (for none "
                "at all there is the probability flow)"
            )
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "values", values)

    @classmethod
    def of(
        cls,
        function: Callable[[float], float],
        sigma_max: float,
        sigma_min: float,
        pieces: int = 64,
    ) -> EtaSteps:
        """Follow a function ``η(σ)`` by steps of equal length in ``log σ``.

        Args:
            function: ``η`` at a noise level, not negative.
            sigma_max: Highest level; above it ``η`` is that of the highest step.
            sigma_min: Lowest level, above 0; below it ``η`` is that of the lowest step.
            pieces: Number of steps.

        Raises:
            ValueError: If the levels do not fall, or the function is negative or nowhere positive.
        """
        if not 0 < sigma_min < sigma_max < np.inf or pieces < 1:
            raise ValueError(
                f"sigma_max = {sigma_max}, sigma_min = {sigma_min}, pieces = {pieces}; needed are "
                "0 < sigma_min < sigma_max and at least one piece"
            )
        edges = np.geomspace(sigma_min, sigma_max, 2 * pieces + 1).tolist()
        return cls(tuple(edges[2:-2:2]), tuple(float(function(s)) for s in edges[1::2]))

    def squared(self, sigma: Array) -> Array:
        """``η²`` at noise levels."""
        squared: Array = np.square(self.values)[self.piece(sigma)]
        return squared

    def piece(self, sigma: Array) -> NDArray[np.int64]:
        """Number of the value that holds at noise levels."""
        piece: NDArray[np.int64] = np.searchsorted(self.levels, sigma, side="right")
        return piece

    def scales(self, gap: float) -> Array:
        """``k`` of each piece, on which ``log g = η² log h + k``: what makes ``g`` continuous."""
        squares = np.square(self.values)
        jumps = -np.diff(squares) * 0.5 * np.log(np.square(self.levels) + gap)
        return np.concatenate([[0.0], np.cumsum(jumps)])

    def damping(self, sigma: Array, gap: float) -> Array:
        """``g``: on each piece a power of ``h``."""
        piece = self.piece(sigma)
        h = np.sqrt(sigma**2 + gap)
        damping: Array = h ** np.square(self.values)[piece] * np.exp(self.scales(gap)[piece])
        return damping

    def sigma(self, damping: Array, gap: float) -> Array:
        """Noise level at a value of `damping`; where ``η = 0`` it is the same on the whole piece."""
        log_g, levels = np.log(damping), np.array(self.levels)
        piece = np.searchsorted(np.log(self.damping(levels, gap)), log_g, side="right")
        squares = np.square(self.values)[piece]
        still = squares == 0
        log_h = (log_g - self.scales(gap)[piece]) / np.where(still, 1.0, squares)
        sigma = np.sqrt(np.maximum(np.exp(2 * log_h) - gap, 0.0))
        edge = levels[np.maximum(piece - 1, 0)] if len(levels) else sigma
        return np.where(still, edge, sigma)


Stochasticity: TypeAlias = Eta | EtaSteps | ErEta
