"""The one adaptive loop: embedded Runge–Kutta pairs, a step size for each sample.

Every sample has its own time and step, so that its result does not depend on what else is in the
batch; samples that have arrived leave it. The host reads the device once per trial step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ..solution import SolveError
from .rk import Tableau, combine, stage_slopes
from .scheme import Array
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
        exhausted: Whether a sample ran out of evaluations.
    """

    nfe: NDArray[np.int64]
    steps: NDArray[np.int64]
    rejected: NDArray[np.int64]
    exhausted: bool = False


def _rms(x: Tensor) -> Array:
    """Root mean square of each sample, read by the host."""
    return x.detach().flatten(1).square().mean(1).sqrt().double().numpy(force=True)


def _per_sample(values: Array, like: Tensor) -> Tensor:
    column = torch.as_tensor(values, dtype=like.dtype).to(like.device)
    return column.reshape(-1, *(1,) * (like.ndim - 1))


class AdaptiveRK:
    """An embedded pair stepping a batch from one value of ``τ`` to the next.

    Args:
        view: The problem, seen in coordinates.
        tableau: A tableau with error weights.
        rtol: Relative tolerance on the state, per step.
        atol: Absolute tolerance on the state, per step.
        max_nfe: Network evaluations that a sample may take.
        batch: Number of samples.
    """

    def __init__(
        self, view: View, tableau: Tableau, *, rtol: float, atol: float, max_nfe: int, batch: int
    ) -> None:
        assert tableau.b_error is not None
        assert tableau.error_order is not None
        self.view, self.tableau, self.error_weights = view, tableau, tableau.b_error
        self.rtol, self.atol, self.max_nfe = rtol, atol, max_nfe
        self.k = min(tableau.order, tableau.error_order) + 1
        counts = (np.zeros(batch, dtype=np.int64) for _ in range(3))
        self.progress = Progress(*counts)
        self.size: Array | None = None  # the step each sample would take next, without sign

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
        self.progress.nfe += 1
        d2 = _rms((probe - slope) / scale) / guess
        steepest = np.maximum(d1, d2)
        better = np.where(
            steepest <= 1e-15, np.maximum(1e-6, guess * 1e-3), (0.01 / steepest) ** (1 / self.k)
        )
        return np.minimum(np.minimum(100 * guess, better), span)

    def advance(self, u: Tensor, start: float, end: float, *, progress: bool) -> Tensor:
        """Step all samples from ``τ = start`` to ``τ = end``.

        Raises:
            SolveError: If a step size falls below round-off, as when the denoiser is not finite.
        """
        batch = u.shape[0]
        tau = np.full(batch, start)
        slope = self.view(self.view.node(tau), u)
        self.progress.nfe += 1
        if self.size is None:
            self.size = self.first_size(u, slope, tau, end)
        size = self.size
        result = u.clone()
        active = np.arange(batch)
        last_error = np.ones(batch)
        retry = np.zeros(batch, dtype=bool)
        with tqdm(total=1.0, delay=2, disable=not progress, desc="solving", leave=False) as bar:
            while len(active):
                if self.progress.nfe[active].max() + len(self.tableau.c) > self.max_nfe:
                    self.progress.exhausted = True
                    result[torch.as_tensor(active, device=u.device)] = u
                    break
                remaining = np.abs(end - tau)
                arrives = size >= remaining * (1 - 1e-12)
                trial = np.where(arrives, remaining, size)
                ulp = np.spacing(np.maximum(np.abs(tau), abs(end)))
                if (stuck := (trial < 4 * ulp) & ~arrives).any():
                    raise self._error(tau, stuck, "the step size fell below round-off", active)
                new_u, new_slope, error = self._try(u, slope, tau, np.sign(end - start) * trial)
                accept = error <= 1
                self._count(active, accept)
                grow = np.where(
                    np.isfinite(error),
                    _SAFETY
                    * np.maximum(error, 1e-10) ** (-_EXPONENT / self.k)
                    * last_error ** (_MEMORY / self.k),
                    _SHRINK,
                )
                grow = np.clip(grow, _SHRINK, np.where(retry | ~accept, 1.0, _GROW))
                # A step cut short by the end says nothing against the longer one proposed before.
                size = np.where(accept & arrives, np.maximum(size, trial * grow), trial * grow)
                last_error = np.where(accept, np.maximum(error, 1e-4), last_error)
                retry = ~accept
                keep = _per_sample(accept, u).bool()
                u, slope = torch.where(keep, new_u, u), torch.where(keep, new_slope, slope)
                tau = np.where(
                    accept, np.where(arrives, end, tau + np.sign(end - start) * trial), tau
                )
                self.size[active] = size
                done = accept & arrives
                if done.any():
                    here = torch.as_tensor(done, device=u.device)
                    result = result.index_put(
                        (torch.as_tensor(active[done], device=u.device),), u[here]
                    )
                    active, tau, size = active[~done], tau[~done], size[~done]
                    last_error, retry = last_error[~done], retry[~done]
                    u, slope = u[~here], slope[~here]
                bar.update(self._fraction(tau, start, end, batch) - bar.n)
        return result

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

    def _count(self, active: NDArray[np.int64], accept: NDArray[np.bool_]) -> None:
        self.progress.nfe[active] += len(self.tableau.c) - (1 if self.tableau.fsal else 0)
        self.progress.steps[active] += accept
        self.progress.rejected[active] += ~accept

    @staticmethod
    def _fraction(tau: Array, start: float, end: float, batch: int) -> float:
        travelled = np.abs(tau - start).sum() / abs(end - start)
        return float(travelled + batch - len(tau)) / batch

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
