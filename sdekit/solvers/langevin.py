"""Predictor–corrector sampling: a step of the reverse SDE, then Langevin steps at its end."""

from __future__ import annotations

import torch
from torch import Tensor

from ..brownian import NoiseSource
from .scheme import Array, Scheme, Step
from .stochastic import scale_ratios
from .view import AffineView, View, floats


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample, shaped to multiply the batch."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm.reshape(-1, *(1,) * (x.ndim - 1))


class PredictorCorrector(Scheme):
    """A predictor for the reverse SDE with a Langevin corrector (Song et al. 2021, alg. 4 and 5).

    After each step of the predictor, ``x̂ ← x̂ + ε ∇ log p + sqrt(2ε) z`` at the new noise level,
    with ``ε = 2 α (r ‖z‖ / ‖∇ log p‖)²`` and ``α`` the squared ratio of scales over the step (1 for
    VE, ``1 − β`` for VP). The norms are those of each sample, as in the paper's algorithm; its code
    averages them over the batch, so that a sample there depends on its neighbours.

    No order is declared, because the corrector leaves biases that no number of steps removes: one
    ``O(r²)`` from the unadjusted Langevin step, and one ``O(1/d)`` in ``d`` dimensions because the
    step size depends on its own noise and state (for ``N(0, v I)`` the stationary variance is
    ``v (1 + 2/d)²`` for small ``r``). It was made for images, where ``d`` is thousands.

    Args:
        predictor: Scheme of the reverse SDE.
        snr: Signal-to-noise ratio ``r`` of the corrector.
        corrections: Langevin steps per predictor step.

    Raises:
        ValueError: If the predictor does not integrate reverse SDEs, ``snr`` is not positive, or
            ``corrections`` is less than 1.
    """

    solves = "sde"
    stochastic = True
    affine_only = True

    def __init__(self, predictor: Scheme, *, snr: float = 0.16, corrections: int = 1) -> None:
        if predictor.solves != "sde":
            raise ValueError(
                f"{type(predictor).__name__} integrates the flow; a predictor integrates the reverse "
                "SDE, as EulerMaruyama or ReverseDiffusion do"
            )
        if not snr > 0 or corrections < 1:
            raise ValueError(
                f"snr = {snr}, corrections = {corrections}; a positive snr and at least one "
                "correction are needed"
            )
        self.predictor = predictor
        self.snr, self.corrections = snr, corrections
        self.nfe_per_step = predictor.nfe_per_step + corrections

    def stepper(self, view: View, grid: Array, noise: NoiseSource) -> Step:
        """Prepare the steps of a grid."""
        assert isinstance(view, AffineView)
        predict = self.predictor.stepper(view, grid, noise)
        nodes = view.nodes(view.tau(grid[1:]))
        precision = floats(1 / grid[1:] ** 2)
        alpha = floats(scale_ratios(view, grid) ** 2)
        unit = floats(1 / view.coordinates.h(view.coordinates.at(grid[1:])))

        def step(n: int, u: Tensor) -> Tensor:
            x_hat = view.unscale(nodes[n], predict(n, u))
            for _ in range(self.corrections):
                score = (view.denoise(x_hat, nodes[n].level) - x_hat) * precision[n]
                z = noise.normal(x_hat)
                size = 2 * alpha[n] * (self.snr * _norm(z) / _norm(score)) ** 2
                x_hat = x_hat + size * score + torch.sqrt(2 * size) * z
            return x_hat * unit[n]

        return step
