"""The one adaptive loop: embedded Runge–Kutta pairs, a step size for each sample.

Every sample has its own time and step, so that its result does not depend on what else is in the
batch; samples that have arrived leave it. The host reads the device once per trial step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ..solution import SolveError
from .rk import combine, stage_slopes
from .scheme import Array
from .tableaus import Tableau
from .view import View

# PI controller of Gustafsson in the form of SciML: factor = safety · err^(−0.7/k) · last^(0.4/k).
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
_EXPONENT, _MEMORY = 0.7, 0.4


@dataclass
class Progress:
    """Book-keeping of the samples of a batch, on the host.

    Attributes:
        nfe: Network evaluations of each sample.
        steps: Accepted steps of each sample.
        rejected: Rejected steps of each sample.
        exhausted: Whether the sample has used up its evaluations, and stays where it is.
    """

    nfe: NDArray[np.int64]
    steps: NDArray[np.int64]
    rejected: NDArray[np.int64]
    exhausted: NDArray[np.bool_]


def _rms(x: Tensor) -> Array:
    """Root mean square of each sample, read by the host."""
    rms: Array = x.detach().flatten(1).square().mean(1).sqrt().double().numpy(force=True)
    return rms


def _per_sample(values: NDArray[Any], like: Tensor) -> Tensor:
    """Host values, one per sample, as a tensor shaped to multiply the batch."""
    column = torch.as_tensor(values, dtype=like.dtype).to(like.device)
    return column.reshape(-1, *(1,) * (like.ndim - 1))


class AdaptiveRK:
    """An embedded pair that steps a batch through a range of ``τ``.

    Args:
        view: The problem, seen in coordinates.
        tableau: A tableau with error weights.
        rtol: Relative tolerance on the state, per step.
        atol: Absolute tolerance on the state, per step.
        max_nfe: Network evaluations that a sample may take.
        start: Value of ``τ`` at which the samples are.
        u: Their states, ``(B, *event)``.

    Attributes:
        u: The states now.
        tau: Where each sample is, ``(B,)``.
        progress: Work done by each sample.
    """

    def __init__(
        self,
        view: View,
        tableau: Tableau,
        *,
        rtol: float,
        atol: float,
        max_nfe: int,
        start: float,
        u: Tensor,
    ) -> None:
        assert tableau.b_error is not None
        assert tableau.error_order is not None
        self.view, self.tableau, self.error_weights = view, tableau, tableau.b_error
        self.rtol, self.atol, self.max_nfe = rtol, atol, max_nfe
        self.k = min(tableau.order, tableau.error_order) + 1
        batch = len(u)
        self.u, self.tau = u, np.full(batch, start)
        nfe, steps, rejected = np.zeros((3, batch), dtype=np.int64)
        self.progress = Progress(nfe, steps, rejected, np.zeros(batch, dtype=np.bool_))
        self.slope: Tensor | None = None  # at the states, where the next stretch begins
        # Controller: the step each sample would take next, its last error, and whether the step
        # before was rejected. They live on from one stretch of the grid to the next.
        self.size = np.zeros(batch)
        self.last_error = np.ones(batch)
        self.retry = np.zeros(batch, dtype=np.bool_)

    def state(self) -> Tensor:
        """States of the process: ``u`` times the factor where each sample is."""
        return self.view.exit(self.view.level(self.tau), unscaled=False)(self.u)

    def first_size(self, u: Tensor, slope: Tensor, start: Array, end: float) -> Array:
        """Choose the first steps (Hairer, Nørsett & Wanner 1993, section II.4); one evaluation."""
        scale = self.atol + self.rtol * u.abs()
        d0, d1 = _rms(u / scale), _rms(slope / scale)
        if not np.isfinite(d0 + d1).all():
            raise self._error(start, ~np.isfinite(d0 + d1), "the first slope is not finite")
        direction = np.sign(end - start)
        span = np.abs(end - start)
        guess = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / np.maximum(d1, 1e-300))
        guess = np.minimum(guess, span)
        moved = torch.addcmul(u, _per_sample(direction * guess, u), slope)
        probe = self.view(self.view.node(start + direction * guess), moved)
        d2 = _rms((probe - slope) / scale) / guess
        steepest = np.maximum(d1, d2)
        better = (0.01 / np.maximum(steepest, 1e-15)) ** (1 / self.k)
        first: Array = np.minimum(np.minimum(100 * guess, better), span)
        return first

    def advance(self, end: float, *, progress: bool) -> None:
        """Step all samples that can still pay for it to ``τ = end``.

        Raises:
            SolveError: If a step size falls below round-off, as when the denoiser is not finite.
        """
        starting = self.slope is None
        active = self._affordable(np.arange(len(self.tau)), spare=2 if starting else 0)
        if not len(active):
            return
        begin, sign = self.tau.copy(), float(np.sign(end - self.tau[active[0]]))
        if self.slope is None:
            self.slope = self.view(self.view.node(self.tau), self.u)
            self.size = self.first_size(self.u, self.slope, self.tau, end)
            self.progress.nfe += 2
        # u and slope hold the active samples only; host arrays hold all and are indexed by active.
        rows = torch.as_tensor(active, device=self.u.device)
        u, slope = self.u[rows], self.slope[rows]
        with tqdm(total=1.0, delay=2, disable=not progress, desc="solving", leave=False) as bar:
            while len(active):
                here = self.tau[active]
                remaining = np.abs(end - here)
                arrives = self.size[active] >= remaining * (1 - 1e-12)
                trial = np.where(arrives, remaining, self.size[active])
                round_off = 4 * np.spacing(np.maximum(np.abs(here), abs(end)))
                if (stuck := (trial < round_off) & ~arrives).any():
                    raise self._error(here, stuck, "the step size fell below round-off", active)
                new_u, new_slope, error = self._try(u, slope, here, sign * trial)
                accept = error <= 1
                self._control(active, trial, error, arrives)
                keep = _per_sample(accept, u).bool()
                u, slope = torch.where(keep, new_u, u), torch.where(keep, new_slope, slope)
                self.tau[active] = np.where(
                    accept, np.where(arrives, end, here + sign * trial), here
                )
                left = self._affordable(active[~(accept & arrives)])
                if len(left) < len(active):
                    stays = np.isin(active, left)
                    leaves = self._on(~stays, u)
                    rows = torch.as_tensor(active[~stays], device=u.device)
                    self.u = self.u.index_copy(0, rows, u[leaves])
                    self.slope = self.slope.index_copy(0, rows, slope[leaves])
                    u, slope, active = u[self._on(stays, u)], slope[self._on(stays, u)], left
                done = np.abs(self.tau - begin) / np.maximum(np.abs(end - begin), 1e-300)
                bar.update(float(done.mean()) - bar.n)

    def _affordable(self, active: NDArray[np.int64], spare: int = 0) -> NDArray[np.int64]:
        """Return the samples that can pay for a trial step (and some more); mark the others."""
        poor = self.progress.nfe[active] + len(self.tableau.c) + spare > self.max_nfe
        self.progress.exhausted[active] |= poor
        return active[~self.progress.exhausted[active]]

    @staticmethod
    def _on(mask: NDArray[np.bool_], like: Tensor) -> Tensor:
        return torch.as_tensor(mask, device=like.device)

    def _control(
        self,
        active: NDArray[np.int64],
        trial: Array,
        error: Array,
        arrives: NDArray[np.bool_],
    ) -> None:
        """Count a trial step and choose the next sizes of its samples."""
        accept, work = error <= 1, self.progress
        work.nfe[active] += len(self.tableau.c) - (1 if self.tableau.fsal else 0)
        work.steps[active] += accept
        work.rejected[active] += ~accept
        proposal = (
            _SAFETY
            * np.maximum(error, 1e-10) ** (-_EXPONENT / self.k)
            * self.last_error[active] ** (_MEMORY / self.k)
        )
        proposal = np.where(np.isfinite(error), proposal, _SHRINK)
        most = np.where(self.retry[active] | ~accept, 1.0, _GROW)
        size = trial * np.clip(proposal, _SHRINK, most)
        # A step cut short by the end says nothing against the longer one proposed before.
        cut_short = accept & arrives
        self.size[active] = np.where(cut_short, np.maximum(self.size[active], size), size)
        self.last_error[active] = np.where(accept, np.maximum(error, 1e-4), self.last_error[active])
        self.retry[active] = ~accept

    def _try(self, u: Tensor, slope: Tensor, tau: Array, dt: Array) -> tuple[Tensor, Tensor, Array]:
        """Take one trial step of all active samples; return state, slope there, and error."""
        tableau, view = self.tableau, self.view
        nodes = [view.node(tau + c * dt) for c in tableau.c]
        step = _per_sample(dt, u)
        slopes = stage_slopes(
            tableau,
            lambda i, v: view(nodes[i], v),
            u,
            step,
            stages=len(tableau.c),
            first=slope,
        )
        new_u = combine(u, slopes, tableau.b, step)
        error = combine(torch.zeros_like(u), slopes, self.error_weights, step)
        scale = self.atol + self.rtol * torch.maximum(u.abs(), new_u.abs())
        new_slope = slopes[-1] if tableau.fsal else view(view.node(tau + dt), new_u)
        return new_u, new_slope, _rms(error / scale)

    def _error(
        self,
        tau: Array,
        bad: NDArray[np.bool_],
        what: str,
        active: NDArray[np.int64] | None = None,
    ) -> SolveError:
        first = int(np.flatnonzero(bad)[0])
        sample = first if active is None else int(active[first])
        level = float(self.view.level(tau[first : first + 1])[0])
        step = int(self.progress.steps[sample]) + 1
        return SolveError(
            f"{what} in step {step} of sample {sample}, at {self.view.symbol} = {level:.6g}: either "
            "the denoiser returned a non-finite value there, or the tolerance is below what its "
            "precision allows"
        )
