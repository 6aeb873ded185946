"""Adams–Moulton methods of variable step and order, each sample with its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..brownian import NoiseSource
from ..coordinates import Coordinates, Points
from .adams import clock_integrals
from .march import (
    Attempt,
    Carry,
    Interpolant,
    Ints,
    March,
    Mask,
    Tolerances,
    Trial,
    combine,
    first_step,
    node_of,
    shaped,
    table,
)
from .scheme import Array, Scheme, Step
from .view import Samples, View

# The constants of step and order control, and of the calibration below, were chosen on the problems of
# the adaptive benchmark; the optima are broad.
_SAFETY, _SHRINK, _GROW = 0.65, 0.3, 3.0
_FIRST_AIM = 0.5  # share of the tolerance that the first step, of order 1, aims at

# Steps of higher order are better than their estimates. For the error to be proportional to the
# tolerance, and about equal to it, steps are held to 0.22 tol^0.915 (Söderlind & Wang 2006).
_CALIBRATION, _EXPONENT = 0.22, 0.915


class VariableAdams(Scheme):
    """Adams–Moulton in the interpolation variable, of orders 1 to ``highest``, steps chosen freely.

    A step of order ``k`` predicts with the polynomial through the last ``k`` slopes, evaluates the
    slope there, and corrects with the polynomial through that one, too: its result is of order
    ``k + 1``. The correction, as it is and with a slope fewer or more, estimates the error of orders
    ``k − 1``, ``k`` and ``k + 1``; the next order is the one that allows the longest step. All weights
    are integrals over the clock of the coordinates, for the true distances of the slopes.

    It starts from order 1 and a short step, and needs no other method.

    Source: Shampine & Gordon 1975, chapters 5–7; Hairer, Nørsett & Wanner 1993, III.5 and III.7.

    Args:
        highest: Highest order, 1 to 12.
        again: Whether the slope is evaluated again at the corrected state: two evaluations per step
            (PECE) instead of one (PEC), for a larger region of stability.

    Raises:
        ValueError: If ``highest`` is out of range.
    """

    adaptive = True
    fixed = False

    def __init__(self, highest: int = 12, *, again: bool = False) -> None:
        if not 1 <= highest <= 12:
            raise ValueError(f"highest = {highest}; orders are 1 to 12")
        self.highest, self.again = highest, again
        self.order = highest
        self.nfe_per_step = 2 if again else 1

    def stepper(self, view: View, grid: Array, noise: NoiseSource) -> Step:
        """Refuse: it chooses its steps itself."""
        raise ValueError("VariableAdams chooses its own steps; give rtol=, or take sdekit.Adams")


@dataclass(frozen=True)
class AdamsTrial(Trial):
    """A trial step of `VariableAdams`.

    Attributes:
        order: Orders ``k``.
        nodes: Where the slopes are, newest first, in units of the step from its start: 0 and below.
    """

    order: Ints
    nodes: Array


class AdamsMarch(March[AdamsTrial]):
    """`VariableAdams` in the adaptive loop; it carries states and the last slopes, newest first.

    Args:
        scheme: The method.
        view: The problem, seen in coordinates.
        tolerances: The tolerances.
    """

    first_cost = 2

    def __init__(self, scheme: VariableAdams, view: View, tolerances: Tolerances) -> None:
        calibrated = (_CALIBRATION * tol**_EXPONENT for tol in (tolerances.rtol, tolerances.atol))
        super().__init__(view, Tolerances(*calibrated))
        self.scheme = scheme
        self.memory = scheme.highest + 1

    def carry(self, u: Tensor, tau: Array) -> Carry:
        """States, and the slopes there."""
        view = self.view
        rows = view.rows(view.coordinates.at_tau(tau))
        first = view(node_of([shaped(row, u) for row in rows], u), u)[:, None]
        return u, torch.cat([first, *[torch.zeros_like(first)] * (self.memory - 1)], dim=1)

    def begin(self, carry: Carry, tau: Array, end: float) -> None:
        """Choose the first steps, of order 1."""
        u, slopes = carry
        count = len(tau)
        self.size = first_step(self, u, slopes[:, 0], tau, end, 2, _FIRST_AIM)
        self.order = np.ones(count, dtype=np.int64)
        self.known = np.ones(count, dtype=np.int64)  # slopes
        self.starting = np.ones(count, dtype=np.bool_)
        self.failed = np.zeros(count, dtype=np.bool_)
        self.tau = np.full((count, self.memory), np.nan)  # of the slopes, newest first
        self.tau[:, 0] = tau

    def cost(self, groups: Ints) -> Ints:
        """One, or two."""
        return np.full(len(groups), self.scheme.nfe_per_step)

    def plan(self, groups: Ints, samples: Samples, start: Array, end: Array) -> AdamsTrial:
        """Integrate and evaluate the polynomials through the last slopes of each group."""
        view, k, dt = self.view, self.order[groups], end - start
        first, last = view.coordinates.at_tau(start), view.coordinates.at_tau(end)
        # One column more than there are slopes: π_k+1 is made of the first k + 1.
        place = np.arange(self.memory + 1)
        nodes = (self.tau[groups] - start[:, None]) / dt[:, None]
        nodes = np.concatenate([nodes, nodes[:, :1]], axis=1)
        # Where there is no slope yet, any place will do: its weight is 0.
        nodes = np.where(place < self.known[groups, None], nodes, -1e3 * (1 + place))
        newton = _Newton.of(view.coordinates, nodes, first, last, dt)
        order, gain = k[:, None], newton.correction(k)
        rows = [
            newton.weights(newton.integrals, place < order),  # prediction of the state
            newton.weights(newton.ends, place < order),  # prediction of the slope
            newton.weights(newton.ends, place == order - 1),  # a slope fewer adds to the correction
            newton.weights(newton.ends, place == order),  # a slope more takes from it
        ]
        weights = [list(row.swapaxes(0, 1)[: k.max() + 1]) for row in rows]
        below = newton.correction(k - 1)
        estimates = [
            gain - below,
            below - newton.correction(np.maximum(k - 2, 0)),
            newton.correction(k + 1) - gain,
        ]
        parts = [*view.rows(last), gain, *estimates, *(w for row in weights for w in row)]
        keys = [range(len(row)) for row in weights]
        return AdamsTrial(groups, samples, first, last, table(parts), keys, k, nodes)

    def attempt(self, trial: AdamsTrial, carry: Carry) -> Attempt:
        """Predict, evaluate, correct; estimate the errors of three orders."""
        u, memory = carry
        slopes = memory.unbind(1)
        columns = trial.columns(u)
        count = sum(map(len, trial.keys))
        *node, gain, middle, low, high = columns[: len(columns) - count]
        weights = iter(columns[len(columns) - count :])
        predict, expect, less, more = ({j: next(weights) for j in row} for row in trial.keys)
        at = node_of(node, u)
        predicted = combine(u, slopes, predict)
        slope = self.view(at, predicted, trial.samples)
        change = slope - combine(None, slopes, expect)
        new = predicted + gain * change
        scale = self.tolerances.scale(u, new)
        errors = [
            middle * change,
            low * (change + combine(None, slopes, less)),
            high * (change - combine(None, slopes, more)),
        ]
        if self.scheme.again:
            slope = self.view(at, new, trial.samples)
        squares = torch.stack([self.view.mean_square(error, scale) for error in errors])
        return Attempt(new, [slope, change], squares)

    def judge(self, trial: AdamsTrial, errors: Array, dt: Array) -> Mask:
        """Accept errors up to 1; take the order that allows the longest step."""
        groups, k = trial.groups, trial.order
        error, low, high = errors
        accept: Mask = error <= 1
        low = np.where(k > 1, low, np.inf)
        high = np.where(accept & (self.known[groups] > k) & (k < self.scheme.highest), high, np.inf)
        stay, lower, higher = (
            np.maximum(e, 1e-12) ** (-1 / (q + 1))
            for e, q in ((error, k), (low, k - 1), (high, k + 1))
        )
        order, best = k.copy(), stay.copy()
        for candidate, q in ((higher, k + 1), (lower, k - 1)):
            better = candidate > best
            order, best = np.where(better, q, order), np.where(better, candidate, best)
        # At the start orders go up with every step that could grow as much as it may.
        self.starting[groups] &= (
            accept & (order >= k) & (k < self.scheme.highest) & (2 * stay > _GROW)
        )
        order = np.where(self.starting[groups], k + 1, order)

        most = np.where(~accept, 0.9, np.where(self.failed[groups], 1.0, _GROW))
        size = dt * np.clip(_SAFETY * best, _SHRINK, most)
        self.propose(groups, accept, dt, size)
        self.failed[groups] = ~accept
        self.known[groups] = np.minimum(self.known[groups] + accept, self.memory)
        self.order[groups] = np.minimum(order, self.known[groups])
        done = groups[accept]
        self.tau[done] = np.concatenate([trial.end.tau[accept, None], self.tau[done, :-1]], axis=1)
        return accept

    def commit(self, carry: Carry, attempt: Attempt) -> Carry:
        """The states where the steps end, and their slopes as the newest."""
        return attempt.u, torch.cat([attempt.slopes[0][:, None], carry[1][:, :-1]], dim=1)

    def interpolant(self, trial: AdamsTrial, carry: Carry, attempt: Attempt) -> Interpolant:
        """The polynomial of the corrector, integrated up to any point."""
        u, slopes = carry[0], [*carry[1].unbind(1), attempt.slopes[1]]
        coordinates = self.view.coordinates

        def interpolate(picked: Ints, tau: Array) -> Tensor:
            group = picked if len(trial.groups) > 1 else np.zeros_like(picked)
            start, k = Points(*(v[group] for v in trial.start)), trial.order[group]
            dt, at = trial.end.tau[group] - start.tau, coordinates.at_tau(tau)
            newton = _Newton.of(coordinates, trial.nodes[group], start, at, dt)
            weights = newton.weights(
                newton.integrals, np.arange(self.memory + 1) < k[:, None]
            ).swapaxes(0, 1)
            row = {j: shaped(weights[j], u) for j in range(k.max())}
            row[len(slopes) - 1] = shaped(newton.correction(k), u)
            index = torch.as_tensor(picked, device=u.device)
            return combine(u[index], [slope[index] for slope in slopes], row)

        return interpolate


class _Newton(NamedTuple):
    """Polynomials in Newton's form, evaluated and integrated, in units of steps.

    The polynomial through values ``N_i`` at ``ξ_i`` is ``Σ_j π_j(ξ) N[ξ_0 … ξ_j]`` with
    ``π_j = Π_{i<j} (ξ − ξ_i)`` and divided differences ``N[ξ_0 … ξ_j] = Σ_i C_ji N_i``.

    Attributes:
        integrals: ``∫ π_j dW``, ``(n, k)``, or ``(n, k, d)`` where there is a frame.
        ends: ``π_j(1)``, ``(n, k)``.
        differences: ``C``, ``(n, k, k)``.
    """

    integrals: Array
    ends: Array
    differences: Array

    @staticmethod
    def of(
        coordinates: Coordinates, nodes: Array, begin: Points, end: Points, dt: Array
    ) -> _Newton:
        """Integrate from ``begin``, ``ξ = 0``, to ``end``.

        Args:
            coordinates: The coordinates.
            nodes: ``ξ_i``, ``(n, k)``.
            begin: Where steps begin.
            end: Where integrals end.
            dt: Steps, from ``ξ = 0`` to 1.
        """
        k = nodes.shape[1]

        def basis(rows: Ints, tau: Array) -> Array:
            return _products(nodes[rows], (tau - begin.tau[rows, None]) / dt[rows, None])

        integrals = clock_integrals(coordinates, begin, end, basis)
        ends = _products(nodes, np.ones((len(nodes), 1)))[..., 0].T
        distances = nodes[:, :, None] - nodes[:, None, :] + np.eye(k)
        below = np.cumprod(distances, axis=2)  # [i, j]: Π over m <= j, m ≠ i
        differences = np.where(np.tri(k, dtype=bool), 1 / below.swapaxes(1, 2), 0.0)
        return _Newton(integrals, ends, differences)

    def weights(self, coefficients: Array, used: Mask) -> Array:
        """Weights of the ``N_i`` in ``Σ_j coefficients_j N[ξ_0 … ξ_j]`` over the ``used`` ``j``."""
        framed = coefficients.ndim == 3
        kept = np.where(used[..., None] if framed else used, coefficients, 0.0)
        differences = self.differences[..., None] if framed else self.differences
        total: Array = (kept[:, :, None] * differences).sum(1)
        return total

    def correction(self, q: Ints) -> Array:
        """Weight ``∫ π_q dW / π_q(1)`` of a correction with ``q`` slopes beside the new one."""
        row = np.arange(len(q))
        integral, end = self.integrals[row, q], self.ends[row, q]
        share: Array = integral / (end if integral.ndim == 1 else end[:, None])
        return share


def _products(nodes: Array, x: Array) -> Array:
    """``π_j`` for nodes ``(n, k)`` at points ``(n, q)``: ``(k, n, q)``."""
    factors = x - nodes.T[:-1, :, None]
    return np.concatenate([np.ones((1, *x.shape)), np.cumprod(factors, axis=0)])
