"""Langevin dynamics at fixed noise levels: annealed, and as the corrector of a predictor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..brownian import NoiseSource
from ..coordinates import Coordinates, Noise, Points
from .linear import Draw, Line, Plan
from .noisy import STEPS, NoisyScheme
from .scheme import Array, Scheme, Step
from .stochastic import scale_ratios
from .view import AffineView, View, floats

Correction: TypeAlias = Callable[[int, Tensor], Tensor]


class AnnealedLangevin(NoisyScheme):
    """Annealed Langevin dynamics: a few steps at every noise level of the grid but the first.

    At level ``σ``: ``x̂ ← x̂ + α ∇ log p + sqrt(2α) z``, ``steps`` times, with ``α = ε σ²/σ_L²``;
    ``σ_L`` is the lowest level. `sdekit.ncsn` chooses the levels, and ``ε``. No order is declared: the
    error does not vanish with the number of levels, but with ``ε``.

    Source: Song & Ermon 2019, algorithm 1 (whose ``ε`` is twice this one); Song & Ermon 2020.

    Args:
        epsilon: Step size ``ε`` at the lowest level.
        steps: Steps per level.

    Raises:
        ValueError: If ``epsilon`` is not positive, or there is no step.
    """

    def __init__(self, epsilon: float, steps: int) -> None:
        if not epsilon > 0 or steps < 1:
            raise ValueError(f"epsilon = {epsilon}, steps = {steps}; they must be positive")
        self.epsilon, self.steps = epsilon, steps
        self.nfe_per_step = steps

    def in_coordinates(self, view: AffineView) -> Coordinates:
        """The unscaled state: there is no flow to be written in others."""
        return Noise()

    def noisy_plan(self, coordinates: Coordinates, grid: Points, view: AffineView) -> Plan:
        """The steps of every level."""
        count, levels = self.steps, grid.sigma[1:]
        share = self.epsilon / grid.sigma[-1] ** 2  # α/σ²
        draws = [Draw("increment", k, k + 1, STEPS) for k in range(count * len(levels))]
        steps: list[tuple[int | None, list[Line]]] = []
        for n, sigma in enumerate(levels.tolist()):
            first = n * (count + 1)  # every evaluation has a point of its own
            lines = [
                # ∇ log p = −ε̂/σ
                Line(
                    first + i,
                    first + i + 1,
                    {first + i: -share * sigma},
                    accept=True,
                    evaluate=i < count - 1,
                    noise={n * count + i: sigma * np.sqrt(2 * share)},
                )
                for i in range(count)
            ]
            steps.append((first, lines))
        return Plan(coordinates.at(np.repeat(levels, count + 1)), steps, draws)


class Corrector(ABC):
    """Langevin steps at the noise level where a predictor has arrived.

    Attributes:
        steps: Steps, of an evaluation each.
    """

    steps: int

    @abstractmethod
    def sizes(
        self, view: AffineView, grid: Array
    ) -> Callable[[int, Tensor, Tensor], float | Tensor]:
        """Prepare step sizes ``α`` at the ends of a grid's steps, functions of the score and ``z``."""

    def prepare(self, view: AffineView, grid: Array, noise: NoiseSource) -> Correction:
        """Prepare the corrections: ``x̂ ← x̂ + α ∇ log p + sqrt(2α) z``."""
        nodes, precision = view.nodes(view.tau(grid[1:])), floats(1 / grid[1:] ** 2)
        sizes = self.sizes(view, grid)

        def correct(n: int, x_hat: Tensor) -> Tensor:
            for _ in range(self.steps):
                score = (view.denoise(x_hat, nodes[n].level) - x_hat) * precision[n]
                z = view.rotate(noise.normal(x_hat))
                size = sizes(n, score, z)
                spread = torch.sqrt(2 * size) if isinstance(size, Tensor) else (2 * size) ** 0.5
                x_hat = x_hat + size * score + spread * z
            return x_hat

        return correct


class LangevinCorrector(Corrector):
    """Langevin steps of a signal-to-noise ratio: ``α = 2 ρ² (r ‖z‖/‖∇ log p‖)²``.

    ``ρ`` is the ratio of scales over the step of the predictor: 1 for VE, ``ρ² = 1 − β`` for VP. The
    norms are those of each sample, as in the paper's algorithm; its code averages them over the batch,
    so that a sample there depends on its neighbours.

    It leaves biases that no number of steps removes: one ``O(r²)`` from the unadjusted Langevin
    step, and one ``O(1/d)`` in ``d`` dimensions because the step size depends on its own noise and
    state (for ``N(0, v I)`` the stationary variance is ``v (1 + 2/d)²`` for small ``r``). It was made
    for images, where ``d`` is thousands.

    Source: Song et al. 2021, algorithms 4 and 5.

    Args:
        snr: Signal-to-noise ratio ``r``.
        steps: Langevin steps per predictor step.

    Raises:
        ValueError: If ``snr`` is not positive, or there is no step.
    """

    def __init__(self, snr: float = 0.16, steps: int = 1) -> None:
        if not snr > 0 or steps < 1:
            raise ValueError(
                f"snr = {snr}, steps = {steps}; a positive snr and at least one step are needed"
            )
        self.snr, self.steps = snr, steps

    def sizes(
        self, view: AffineView, grid: Array
    ) -> Callable[[int, Tensor, Tensor], float | Tensor]:
        """``2 ρ² (r ‖z‖/‖∇ log p‖)²``."""
        alpha = floats(2 * scale_ratios(view, grid) ** 2)
        return lambda n, score, z: alpha[n] * (self.snr * _norm(z) / _norm(score)) ** 2


class AnnealedCorrector(Corrector):
    """Langevin steps of a size in proportion to the variance of the noise: ``α = ε σ²``.

    For data of variance ``s²`` at low noise, ``ε σ²`` has to be small against ``s² + σ²`` only; the
    bias is ``O(ε)``, in any number of dimensions.

    Source: the step sizes of Song & Ermon 2019, in a predictor–corrector.

    Args:
        epsilon: ``ε``.
        steps: Langevin steps per predictor step.

    Raises:
        ValueError: If ``epsilon`` is not in (0, 1), or there is no step.
    """

    def __init__(self, epsilon: float = 0.05, steps: int = 1) -> None:
        if not 0 < epsilon < 1 or steps < 1:
            raise ValueError(
                f"epsilon = {epsilon}, steps = {steps}; needed are "
                "0 < epsilon < 1 and at least one step"
            )
        self.epsilon, self.steps = epsilon, steps

    def sizes(
        self, view: AffineView, grid: Array
    ) -> Callable[[int, Tensor, Tensor], float | Tensor]:
        """``ε σ²``."""
        size = floats(self.epsilon * grid[1:] ** 2)
        return lambda n, score, z: size[n]


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample, shaped to multiply the batch."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm.reshape(-1, *(1,) * (x.ndim - 1))


class PredictorCorrector(Scheme):
    """A step of any scheme, then Langevin steps where it ends (Song et al. 2021, algorithm 1).

    No order is declared, because correctors leave biases that no number of steps removes.

    Args:
        predictor: A scheme of the reverse SDE, or of the flow; one that corrects its last step in the
            next, as `Adams` with a corrector, would undo the Langevin steps, and is refused by a solve.
        corrector: What corrects.

    Raises:
        ValueError: If the predictor chooses its own steps.
    """

    stochastic = True
    affine_only = True
    unscaled = True

    def __init__(self, predictor: Scheme, corrector: Corrector | None = None) -> None:
        if not predictor.fixed:
            raise ValueError(
                f"{type(predictor).__name__} chooses its own steps; a predictor takes those of a grid"
            )
        self.predictor, self.solves = predictor, predictor.solves
        self.corrector = LangevinCorrector() if corrector is None else corrector
        self.nfe_per_step = predictor.nfe_per_step + self.corrector.steps

    def stepper(self, view: View, grid: Array, noise: NoiseSource) -> Step:
        """Prepare the steps of a grid."""
        assert isinstance(view, AffineView)
        step = self.predictor.stepper(view, grid, noise)
        correct = self.corrector.prepare(view, grid, noise)
        if self.predictor.unscaled:
            return lambda n, x_hat: correct(n, step(n, x_hat))
        h = view.coordinates.h(view.coordinates.at(grid))
        enter, leave = ([view.coefficient(row) for row in rows] for rows in (1 / h[:-1], h[1:]))
        return lambda n, x_hat: correct(n, step(n, x_hat * enter[n]) * leave[n])
