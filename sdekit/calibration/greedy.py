"""Coefficients of one step after the other, by ridge least squares on the solver's own states."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..solvers.calibrated import Coefficients
from .pilots import Array, Rows
from .student import Run, Student

# Ridges that validation chooses from in every step, relative to the mean square of the features.
_RIDGES = np.array([0.0, *10.0 ** np.arange(-16.0, 3.0)])
_RANK = 1e-13  # singular values below this one, relative to the largest, are noise


@dataclass(frozen=True)
class Greedy:
    """Coefficients, and the mean square of the error in ``x̂`` that validation saw after each step.

    Attributes:
        coefficients: The coefficients.
        error: Root mean square of the last of them.
    """

    coefficients: Coefficients
    error: float


class _Basis:
    """An orthonormal basis of slopes of all steps so far, as sums of them: a QR decomposition."""

    def __init__(self, like: Tensor, most: int) -> None:
        self.q = like.new_zeros(like.numel(), most)
        self.r = like.new_zeros(most, most)
        self.count = 0

    def add(self, column: Tensor, *, keep: bool = True) -> None:
        """Add a slope; with ``keep=False`` the next one takes its place."""
        k, column = self.count, column.reshape(-1)
        rest = column.clone()
        for _ in range(2):  # twice is enough (Kahan)
            along = self.q[:, :k].mT @ rest
            rest -= self.q[:, :k] @ along
            self.r[:k, k] = along if _ == 0 else self.r[:k, k] + along
        size = rest.norm()
        self.r[k, k] = size
        self.q[:, k] = rest / size.clamp(min=1e-300)
        self.count += keep


def fit_greedily(student: Student, prior: Coefficients, fit: Rows, validation: Rows) -> Greedy:
    """Fit the coefficients of each step in turn, towards those of a textbook scheme.

    Step ``i`` minimises over the pilots ``|a_i u_i + Σ_j b_ij N_j − u*_{i+1}|² + ridge |c − c₀|²`` with
    the teacher's ``u*``, and ``u_i, N_j`` as the steps so far have made them: so it also corrects the
    errors of those. The ridge of every step is the one with the smallest error on the validation
    samples; if none improves on the scheme's own coefficients these are kept.

    Args:
        student: Runs the solver.
        prior: The scheme's coefficients ``c₀``, with its grid.
        fit: Samples that coefficients are fitted to.
        validation: Samples that choose the ridge.
    """
    steps, sigmas = prior.steps, prior.sigmas
    rows = np.concatenate([fit, validation])
    tables = student.tables(sigmas, prior.told)
    # Directions count as they do in x̂ at the end.
    metric = tables.h[-1]
    run = Run([student.target(float(sigmas[0]), rows)], [])
    basis = _Basis((metric * run.u[0])[: len(fit)], steps + 1)
    keep, weights = np.array(prior.keep), list(prior.weights)
    error = math.inf
    for n in range(steps):
        slope = student.slope(tables, n, run.u[n], float(prior.told[n]), rows)
        if not torch.isfinite(slope).all():  # nothing to be learnt on this grid
            return Greedy(prior, math.inf)
        run.slopes.append(slope)
        basis.add((metric * slope)[: len(fit)])
        basis.add((metric * run.u[n])[: len(fit)], keep=False)
        guess = student.step(prior, n, run)
        rest = metric * (student.target(float(sigmas[n + 1]), rows) - guess)
        features = [*run.slopes, run.u[n]]
        found, error = _ridge(basis, rest, [metric * f for f in features], len(fit))
        if found is not None:
            for value, feature in zip(found.tolist(), features, strict=True):
                guess = torch.add(guess, feature, alpha=value)
            keep[n] += float(found[-1])
            change = found[:-1].numpy(force=True)
            weights[n] = weights[n] + change.reshape(-1, *(1,) * (weights[n].ndim - 1))
        run.u.append(guess)
    fitted = Coefficients(sigmas, prior.told, keep, tuple(weights))
    return Greedy(fitted, error)


def _ridge(
    basis: _Basis, rest: Tensor, features: list[Tensor], fit: int
) -> tuple[Tensor | None, float]:
    """Return the best change of coefficients, if any is one, and the validation error with it."""
    k = basis.count + 1
    u, s, vh = torch.linalg.svd(basis.r[:k, :k])
    along = u.mT @ (basis.q[:, :k].mT @ rest[:fit].reshape(-1))
    count = rest[:fit].numel()
    size = float(s.square().sum() / (count * k))
    candidates = []
    for ridge in _RIDGES:
        bound = ridge * size * count
        filtered = s / (s.square() + bound) if bound else _inverse(s)
        candidates.append(vh.mT @ (filtered * along))
    judged = rest[fit:]
    seen = torch.stack([f[fit:].reshape(-1) for f in features], dim=1)
    left = judged.reshape(-1, 1) - seen @ torch.stack(candidates, dim=1)
    errors: Array = left.square().mean(0).sqrt().numpy(force=True)
    own = float(judged.square().mean().sqrt())
    best = int(np.nanargmin(errors)) if np.isfinite(errors).any() else 0
    if not errors[best] < own:
        return None, own
    return candidates[best], float(errors[best])


def _inverse(s: Tensor) -> Tensor:
    return torch.where(s > _RANK * s[0], 1 / s.clamp(min=1e-300), torch.zeros_like(s))
