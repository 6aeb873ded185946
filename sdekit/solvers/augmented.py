"""A flow with the integral of its divergence, by which a density changes along it.

Along ``du = N dW`` the density obeys ``d log p(u) = −div_u N dW`` (Chen et al. 2018, theorem 1). The
divergence has the clock of ``N``, so every scheme integrates the two as one state.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..coordinates import Coordinates
from ..divergence import FixedProbes
from .view import AffineView, GeneralView, Node, Problem, Samples, View


class Augmented(View):
    """A view whose states are rows ``[u, q_1 … q_m]``, ``q_j`` for each column of an estimate.

    The ``q`` are integrals of the divergence per dimension: of the order of ``u``, as their errors.

    Attributes:
        probes: What estimates the divergence, for all samples of the solve.
    """

    probes: FixedProbes

    @property
    def dim(self) -> int:
        """Dimensions ``d`` of ``u``."""
        return math.prod(self.like.shape[1:])

    def join(self, u: Tensor) -> Tensor:
        """Return the rows where a solve starts, of states ``(B, *event)``."""
        return pad(u.flatten(1), (0, self.probes.divergence.columns))

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return states, ``(B, *event)``, and the integrals of the divergence, ``(B, m)``."""
        return self._events(rows[:, : self.dim]), rows[:, self.dim :] * self.dim

    def log_scale(self, level: float) -> float:
        """Logarithm of the factor from ``u`` to the state of the process; 0 if they are the same."""
        return 0.0

    def __call__(self, node: Node, u: Tensor, samples: Samples = None) -> Tensor:
        """``N`` and its divergence, as rows; one network evaluation, with backward passes."""
        probes = self.probes
        if samples is not None:
            probes = probes.select(torch.as_tensor(samples, device=u.device))
        slope, divergence = self._flow(node, u[:, : self.dim], probes, samples)
        return torch.cat([slope, divergence / self.dim], 1)

    def mean_square(self, error: Tensor, scale: Tensor) -> Tensor:
        """The larger one of those of the state and of the divergence, ``(B,)``.

        The divergence is not one more component: of ``d + m`` it would be forgotten. What counts is
        the error of the estimate, the mean over columns.
        """
        of_state = super().mean_square(error[:, : self.dim], scale[:, : self.dim])
        mean, unit = error[:, self.dim :].mean(1), scale[:, self.dim :].mean(1)
        return torch.maximum(of_state, (mean / unit).square())

    def _events(self, flat: Tensor) -> Tensor:
        return flat.reshape(len(flat), *self.like.shape[1:])

    @abstractmethod
    def _flow(
        self, node: Node, u: Tensor, probes: FixedProbes, samples: Samples
    ) -> tuple[Tensor, Tensor]:
        """Return ``N`` at flat states, ``(B, d)``, and the columns of its divergence, ``(B, m)``."""


class AugmentedAffine(Augmented, AffineView):
    """`AffineView` with the divergence.

    Raises:
        ValueError: If the coordinates have a frame.
    """

    def __init__(
        self, problem: Problem, coordinates: Coordinates, like: Tensor, probes: FixedProbes
    ) -> None:
        super().__init__(problem, coordinates, like)
        if self.frame is not None:
            raise ValueError(
                f"{type(coordinates).__name__} has a clock for every direction, and the divergence "
                "needs one for all; take other coordinates, such as sdekit.Preconditioned()"
            )
        self.probes = probes

    def log_scale(self, level: float) -> float:
        """``log(s h)``; of ``n h`` at ``σ = ∞``, where states are multiples of ``ε``."""
        levels = np.array([level])
        return float(np.log(self._scale(levels) * self._h(levels))[0])

    def _flow(
        self, node: Node, u: Tensor, probes: FixedProbes, samples: Samples
    ) -> tuple[Tensor, Tensor]:
        """``N = A u + B D(h u)``, and ``A d + B h tr(∂D/∂x̂)``.

        Only ``D`` is differentiated: the trace of ``A I`` needs no probes, and the law of the
        estimate does not depend on the coordinates.
        """

        def denoise(x_hat: Tensor) -> Tensor:
            return self.denoise(self._events(x_hat), node.level, samples).flatten(1)

        denoised, trace = probes(denoise, self.unscale(node, u))
        return node.a * u + node.b * denoised, node.a * self.dim + node.b * node.h * trace


class AugmentedGeneral(Augmented, GeneralView):
    """`GeneralView` with the divergence."""

    def __init__(self, problem: Problem, like: Tensor, probes: FixedProbes) -> None:
        super().__init__(problem, like)
        self.probes = probes

    def _flow(
        self, node: Node, u: Tensor, probes: FixedProbes, samples: Samples
    ) -> tuple[Tensor, Tensor]:
        """The drift and its divergence."""

        def drift(x: Tensor) -> Tensor:
            return GeneralView.__call__(self, node, self._events(x), samples).flatten(1)

        return probes(drift, u)
