"""What a peer is: a sampler of another package, declared, and run with its calls counted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...denoisers import known_sigma_data
from ...sde import Model

Array = NDArray[np.float64]
Grid: TypeAlias = "str | Array"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global source of noise, from which peers draw, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class Integrator(Protocol):
    """How a peer solves: its class and settings, bound."""

    def __call__(self, denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int) -> Tensor:
        """Return the final `x̂`."""
        ...


@dataclass(frozen=True)
class Peer:
    """A sampler of another package.

    Attributes:
        name: Package, class and settings.
        package: Name of the package, as it is imported.
        nfe_per_step: Network evaluations per step. The single-step solvers of diffusers have 1:
            the stages of a step are evaluated at the points of the grid.
        grids: The grids that the package ships for it, by name.
        integrate: Solves, uncounted.
        eta: Stochasticity, of its own meaning: 0 is the flow, 1 the reverse SDE of Anderson. None where
            it varies.
    """

    name: str
    package: str
    nfe_per_step: int
    grids: tuple[str, ...]
    integrate: Integrator
    eta: float | None = 0.0

    def run(self, denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int) -> tuple[Tensor, int]:
        """Solve, counting every call of the network.

        Args:
            denoiser: Callable ``(x_hat, sigma) -> x0_hat``.
            x_hat: State `x̂` at the grid's first level, ``(B, *event)``.
            grid: One of `grids`, from `SIGMA_MAX` to `SIGMA_MIN`, or ``n_steps + 1`` decreasing
                positive noise levels.
            n_steps: Number of steps.

        Returns:
            The final `x̂` and the network evaluations.

        Raises:
            ValueError: If the grid is not shipped with the package, or not of ``n_steps`` steps.
            RuntimeError: If the network was not called ``nfe_per_step`` times a step.
        """
        if isinstance(grid, str):
            if grid not in self.grids:
                raise ValueError(
                    f"{self.package} ships no grid {grid!r} for {self.name}; it ships {self.grids}"
                )
        elif len(grid) != n_steps + 1:
            raise ValueError(f"n_steps = {n_steps}, but the grid has {len(grid)} noise levels")
        counter = _Counter(denoiser)
        with warnings.catch_warnings(), torch.no_grad():
            # Deprecations of the peers' own: of ``algorithm_type="dpmsolver"``, and of NumPy's
            # functions applied to tensors.
            warnings.simplefilter("ignore")
            x = self.integrate(counter, x_hat, grid, n_steps)
        if counter.calls != n_steps * self.nfe_per_step:
            raise RuntimeError(
                f"{self.name} called the network {counter.calls} times in {n_steps} steps of "
                f"{self.nfe_per_step} evaluations"
            )
        return x, counter.calls


class _Counter:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser: Model) -> None:
        self.denoiser = denoiser
        self.sigma_data = known_sigma_data(denoiser)
        self.calls = 0

    def __call__(self, x_hat: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return self.denoiser(x_hat, sigma.to(x_hat.dtype))
