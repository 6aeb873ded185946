"""How a network is told the noise level: as ``σ``, a time, a logarithm, or an index into a table.

A level is any callable from noise levels ``σ``, a float64 tensor of shape ``(B,)`` (float32 on devices
without float64), to labels, one for each. Those here are the ones that networks are trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..affine import AffineSDE

__all__ = ["Index", "LogSigma", "Rule", "Sigma", "Time"]

Rule = Literal["interpolated", "nearest", "exact"]
"""How a noise level that a table lacks is told."""

# How far σ may be from a level of a table, relatively, to be that level: some round-off of float32.
_SAME = 1e-5
# How far it may be outside of the table, to count as its end: a grid is as far from it as the process.
_BEYOND = 1e-4


@dataclass(frozen=True)
class Sigma:
    """The noise level ``σ`` itself."""

    def __call__(self, sigma: Tensor) -> Tensor:
        """Return ``σ``."""
        return sigma


@dataclass(frozen=True)
class LogSigma:
    """The logarithm ``factor · log σ``: EDM's ``c_noise`` for a factor of 1/4 (Karras et al. 2022)."""

    factor: float = 0.25

    def __call__(self, sigma: Tensor) -> Tensor:
        """Return ``factor · log σ``."""
        return self.factor * sigma.log()


@dataclass(frozen=True)
class Time:
    """The time of a process, times a factor.

    A process that does not override `AffineSDE.time` finds it by bisection, in 64 evaluations of
    ``σ(t)`` for every call.

    Args:
        process: The process whose time is meant.
        factor: What time is multiplied by: 999 in the VP and sub-VP networks of score_sde, 1000 in the
            flow-matching ones of diffusers.
    """

    process: AffineSDE
    factor: float = 1.0

    def __call__(self, sigma: Tensor) -> Tensor:
        """Return ``factor · t(σ)``."""
        return self.factor * self.process.time(sigma)


class Index:
    """The place of ``σ`` in the table of levels that a network was trained at.

    The rule says what happens between the levels of the table, and is a choice that only the user can
    make. A level outside of the table is refused by each; see `covers`.

    - ``"interpolated"``: a fractional index, by linear interpolation in ``log σ``. It takes a network
      with a smooth embedding (sines, not a table of vectors). The denoiser is then continuous in ``σ``,
      and solvers of order 2 and more keep converging.
    - ``"nearest"``: the integer index of the nearest level in ``log σ``. The denoiser is piecewise
      constant in the level, so that no solver converges: its error falls to a floor that is
      proportional to the spacing of the table.
    - ``"exact"``: the integer index of a level that is in the table, to ``10⁻⁵`` of ``σ``; others are
      refused. For grids of the network's own levels.

    Args:
        sigmas: The levels, at least two, positive and strictly monotone. Index 0 is the first.
        rule: One of the above.

    Raises:
        ValueError: If the table or the rule is not as above.
    """

    def __init__(self, sigmas: Sequence[float] | NDArray[np.float64] | Tensor, rule: Rule) -> None:
        if rule not in get_args(Rule):
            raise ValueError(
                f"rule = {rule!r}; it must be one of {', '.join(map(repr, get_args(Rule)))}"
            )
        if isinstance(sigmas, Tensor):
            sigmas = sigmas.numpy(force=True)
        table = np.array(sigmas, dtype=np.float64)
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(
                f"sigmas has shape {table.shape}; it must be a sequence of at least two"
            )
        if not (np.isfinite(table).all() and (table > 0).all()):
            bad = table[~(np.isfinite(table) & (table > 0))][0]
            raise ValueError(f"sigmas contains {bad:g}; every level must be positive and finite")
        steps = np.diff(table)
        if not ((steps > 0).all() or (steps < 0).all()):
            at = int(np.argmax(steps * np.sign(table[-1] - table[0]) <= 0))
            raise ValueError(
                f"sigmas must be strictly monotone; found {table[at]:g} followed by {table[at + 1]:g} "
                f"at position {at}"
            )
        self.sigmas = table
        self.rule = rule
        self._falls = bool(steps[0] < 0)
        self._knots = torch.from_numpy(np.sort(np.log(table)))
        self._cache: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __repr__(self) -> str:
        return f"Index({len(self.sigmas)} levels, {self.rule!r})"

    def __call__(self, sigma: Tensor) -> Tensor:
        """Return the index: fractional if interpolated, else int64."""
        knots = self._table(sigma)
        log_sigma = sigma.log()
        last = len(knots) - 1
        low = (torch.searchsorted(knots, log_sigma.contiguous(), right=True) - 1).clamp(0, last - 1)
        part = ((log_sigma - knots[low]) / (knots[low + 1] - knots[low])).clamp(0, 1)
        index = low + part
        index = last - index if self._falls else index
        return index if self.rule == "interpolated" else index.round().long()

    def covers(self, sigma: Tensor) -> Tensor:
        """Whether a noise level has a place in the table, elementwise.

        That is one inside of it, or up to 10⁻⁴ (relatively) beyond its ends; for ``"exact"``, one of
        its levels.
        """
        knots, log_sigma = self._table(sigma), sigma.log()
        if self.rule != "exact":
            return (log_sigma >= knots[0] - _BEYOND) & (log_sigma <= knots[-1] + _BEYOND)
        above = torch.searchsorted(knots, log_sigma.contiguous()).clamp(1, len(knots) - 1)
        distance = torch.minimum(
            (knots[above] - log_sigma).abs(), (log_sigma - knots[above - 1]).abs()
        )
        return distance <= _SAME

    def check(self, sigma: Tensor) -> None:
        """Refuse levels that are not covered, by looking at them: not on an accelerator.

        Raises:
            ValueError: If there is one.
        """
        outside = ~self.covers(sigma)
        if not outside.any():
            return
        bad = float(sigma.reshape(-1)[outside.reshape(-1)][0])
        low, high = float(self.sigmas.min()), float(self.sigmas.max())
        if self.rule == "exact" and low <= bad <= high:
            nearest = self.sigmas[np.abs(np.log(self.sigmas / bad)).argmin()]
            raise ValueError(
                f"σ = {bad:.8g} is not one of the network's {len(self.sigmas)} levels, and the rule is "
                f"'exact'; the nearest is {nearest:.8g}. Take a grid of its levels (and give "
                "sigma_data=, which a solve may estimate at another), or the rule 'interpolated' or "
                "'nearest'"
            )
        raise ValueError(
            f"σ = {bad:.6g} is outside of the network's {len(self.sigmas)} levels, from {low:.6g} to "
            f"{high:.6g}; solve between these, as sdekit.sample does by itself"
        )

    def _table(self, like: Tensor) -> Tensor:
        """Return the logarithms of the levels on a device, kept there: a copy would synchronise."""
        key = like.device, like.dtype
        if key not in self._cache:
            self._cache[key] = self._knots.to(like)
        return self._cache[key]
