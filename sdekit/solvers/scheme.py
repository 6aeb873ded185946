"""The contract of a scheme: a declaration, and a step prepared from it.

A scheme is a textbook integrator: what it integrates comes from a view. It declares its order and
cost, and turns a view and a grid into a function ``step(n, u) -> u``, which the fixed-grid loop calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..brownian import NoiseSource
from .view import AffineView, View

Array = NDArray[np.float64]
Step: TypeAlias = Callable[[int, Tensor], Tensor]


class Scheme(ABC):
    """An integrator, declared.

    Attributes:
        order: Order on an ODE, if it integrates one.
        strong_order: Strong order on the reverse SDE of an affine process (additive noise).
        weak_order: Weak order on the same.
        nfe_per_step: Network evaluations per step.
        solves: ``"flow"`` for schemes of the probability flow, ``"sde"`` for the reverse SDE.
        stochastic: Whether it consumes noise.
        adaptive: Whether it carries an error estimate, and so accepts a tolerance.
        fixed: Whether it can step through a given grid.
        affine_only: Whether it needs an affine process.
        unscaled: Whether the state it carries is the unscaled ``x̂``, not ``u``.
        event_shape: Shape of the samples that it is made for, if for one only.
    """

    order: int | None = None
    strong_order: float | None = None
    weak_order: float | None = None
    nfe_per_step: int = 1
    solves: str = "flow"
    stochastic: bool = False
    adaptive: bool = False
    fixed: bool = True
    affine_only: bool = False
    unscaled: bool = False
    event_shape: tuple[int, ...] | None = None

    @property
    def interior_order(self) -> int | None:
        """Order once started: what is left of `order` by first and last steps of other formulas."""
        return self.order

    @abstractmethod
    def stepper(self, view: View, grid: Array, noise: NoiseSource) -> Step:
        """Prepare the steps of a grid that ends above ``σ = 0``."""

    def prepare(self, view: View, grid: Array, noise: NoiseSource, ending: str = "denoise") -> Step:
        """Prepare all steps of a grid.

        A step to ``σ = 0`` is the same in every scheme: by default a denoising step,
        ``x̂ = D(x̂, σ)``, which is what Euler in `Noise` coordinates gives there; no scheme of higher
        order is defined (Karras et al. 2022, algorithm 1, line 6).
        """
        if not (isinstance(view, AffineView) and grid[-1] == 0):
            return self.stepper(view, grid, noise)
        last = len(grid) - 2
        step = self.stepper(view, grid[:-1], noise) if last else None
        end = view.ending(ending, grid[-2], unscaled=self.unscaled)

        def step_or_end(n: int, state: Tensor) -> Tensor:
            return step(n, state) if n < last and step is not None else end(state)

        return step_or_end
