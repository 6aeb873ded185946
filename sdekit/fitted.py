"""A grid with a table: what a pilot run fits, and what a file keeps."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .affine import AffineSDE
from .preconditioned import Preconditioned
from .spacing import check_range, with_ends

Array = NDArray[np.float64]

_VERSION = 1
# How far beyond the fitted range round-off may carry a process's own ends.
_SLACK = 1e-9


def phi_of(sigma: Array, sigma_data: float) -> Array:
    """``φ = arctan sqrt(σ/σ_d)``: a smooth variable that resolves both ends of the range."""
    phi: Array = np.arctan(np.sqrt(sigma / sigma_data))
    return phi


@dataclass(frozen=True)
class FittedGrid:
    """A grid with a tabulated density of steps, as `equidistribute` returns it.

    It is called as any grid, with any number of steps, on the fitted range or a part of it.

    Attributes:
        order: Order ``p`` of the derivative that was equidistributed.
        share: Part of the density that is fitted; the rest is that of `sdekit.grids.balanced`, or
            uniform in ``arctan sqrt(σ/σ_d)``.
        sigma_data: Standard deviation ``σ_d`` of the data, that of the pilot's coordinates.
        samples: Number of samples of the pilot.
        seed: Seed of the pilot's start; ``None`` if the start was given.
        nfe: Network evaluations of the pilot, per sample.
        levels: Noise levels of the table, strictly decreasing; the first may be ``∞``.
        cumulative: Share of the steps made above each level, from 0 to 1, strictly increasing.

    Raises:
        ValueError: If a field is not as described.
    """

    order: int
    share: float
    sigma_data: float
    samples: int
    seed: int | None
    nfe: int
    levels: tuple[float, ...]
    cumulative: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("order", "samples", "nfe"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} = {value!r}; it must be a positive integer")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share = {self.share!r}; it must be in [0, 1]")
        if not (self.seed is None or isinstance(self.seed, int)):
            raise ValueError(f"seed = {self.seed!r}; it must be an integer or None")
        for name in ("levels", "cumulative"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        Preconditioned(self.sigma_data)  # checks it
        levels, cumulative = np.array(self.levels), np.array(self.cumulative)
        if len(levels) != len(cumulative) or len(levels) < 2:
            raise ValueError(
                f"there are {len(levels)} levels and {len(cumulative)} cumulative shares; as many of "
                "both, at least two, are needed"
            )
        if not (levels[:-1] > levels[1:]).all() or not 0 < levels[-1] < np.inf:
            raise ValueError("levels must decrease strictly, and end above 0")
        if not (np.diff(cumulative) > 0).all() or cumulative[0] != 0 or cumulative[-1] != 1:
            raise ValueError("cumulative must increase strictly from 0 to 1")

    def __repr__(self) -> str:
        return (
            f"FittedGrid(σ = {self.levels[0]:g} … {self.levels[-1]:g}, order={self.order}, "
            f"sigma_data={self.sigma_data:g}, nfe={self.nfe})"
        )

    def __call__(
        self, n: int, sigma_max: float, sigma_min: float, process: AffineSDE | None = None
    ) -> Array:
        """Return ``n + 1`` decreasing noise levels, each step with the same share of the density.

        Raises:
            ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max``, or the range is not a part of
                the fitted one.
        """
        check_range(n, sigma_max, sigma_min)
        first, last = self.levels[0], self.levels[-1]
        if sigma_max > first * (1 + _SLACK) or sigma_min < last * (1 - _SLACK):
            raise ValueError(
                f"the grid was fitted from sigma = {first:g} to {last:g}, and {sigma_max:g} to "
                f"{sigma_min:g} is asked for; fit again with sigma_max= and sigma_min=, or restrict "
                "the solve"
            )
        phi, cumulative = phi_of(np.array(self.levels), self.sigma_data), np.array(self.cumulative)
        ends = phi_of(np.array([sigma_max, sigma_min]), self.sigma_data)
        # Both ways linear in φ, so that the one interpolant is the inverse of the other.
        high, low = np.interp(-ends, -phi, cumulative)
        inside = np.interp(np.linspace(high, low, n + 1), cumulative, phi)
        return with_ends(self.sigma_data * np.tan(inside) ** 2, sigma_max, sigma_min)

    def save(self, path: str | Path) -> None:
        """Write the grid as JSON."""
        record = {"format": "sdekit.FittedGrid", "version": _VERSION, **asdict(self)}
        # JSON has no infinity; float("inf") reads it back.
        record["levels"] = ["inf" if math.isinf(level) else level for level in self.levels]
        text = json.dumps(record, indent=1, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> FittedGrid:
        """Read a grid that `save` wrote.

        Raises:
            ValueError: If the file is not such a grid; the message names the file and what is wrong.
        """
        try:
            record: Any = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(record, dict) or record.pop("format", None) != "sdekit.FittedGrid":
                raise ValueError("it is not the JSON of a FittedGrid")
            version = record.pop("version", None)
            if version != _VERSION:
                raise ValueError(f"it has version {version!r}, and this sdekit reads {_VERSION}")
            return cls(**record)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read as a fitted grid: {error}") from error
