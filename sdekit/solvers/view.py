"""A problem seen in coordinates: the only thing that schemes integrate.

A view turns a backward problem into ``du/dτ`` at prepared points (nodes). All that depends on time
alone is computed on the host in float64, before the loop; the noise levels travel to the device in
one transfer per array of nodes. Every call of the denoiser goes through here and is counted here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..affine import AffineSDE
from ..brownian import NoiseSource
from ..coordinates import Coordinates
from ..sde import ProbabilityFlow, ReverseSDE, check_output, diffuse, noise_kind

Array = NDArray[np.float64]
Problem: TypeAlias = ProbabilityFlow | ReverseSDE
Kick: TypeAlias = Callable[[int, Tensor], Tensor]


def floats(values: Array) -> list[float]:
    """Host coefficients as Python floats, which multiply a tensor without a conversion."""
    return [float(value) for value in values]


class Node(NamedTuple):
    """A point of time at which the right-hand side is evaluated.

    In an affine view ``du/dτ = a u + b D(h u, level)``; a general view uses the level, a time, only.
    """

    level: Tensor
    h: float | Tensor = 1.0
    a: float | Tensor = 0.0
    b: float | Tensor = 0.0


class View(ABC):
    """A backward problem in the variables ``(u, τ)``.

    Attributes:
        problem: The problem.
        nfe: Calls of the denoiser (or score) so far.
        symbol: What the grid is made of, for messages: ``"σ"`` or ``"t"``.
    """

    symbol: str

    def __init__(self, problem: Problem, like: Tensor) -> None:
        self.problem = problem
        self.like = like
        self.nfe = 0

    def _on_device(self, values: Array) -> Tensor:
        return torch.as_tensor(values, dtype=self.like.dtype).to(self.like.device)

    @abstractmethod
    def tau(self, grid: Array) -> Array:
        """Integration variable at the grid's points."""

    @abstractmethod
    def level(self, tau: Array) -> Array:
        """Grid values at ``τ``, the inverse of `tau`."""

    @abstractmethod
    def nodes(self, tau: Array) -> list[Node]:
        """Prepare one node for each ``τ`` of a one-dimensional array."""

    @abstractmethod
    def node(self, tau: Array) -> Node:
        """Prepare one node at which every sample has its own ``τ``, ``(B,)``."""

    @abstractmethod
    def __call__(self, node: Node, u: Tensor) -> Tensor:
        """Right-hand side ``du/dτ``; one network evaluation."""

    @abstractmethod
    def kicks(self, tau: Array, noise: NoiseSource) -> Kick:
        """Prepare the noise terms of the steps of a grid: ``kick(n, u)`` is that of step ``n``."""

    @abstractmethod
    def factors(self, levels: Array) -> Array:
        """Numbers by which ``u`` is multiplied to give the process's state at grid values."""


class AffineView(View):
    """A backward problem of an affine process in given coordinates; the grid is one of ``σ``."""

    symbol = "σ"

    def __init__(self, problem: Problem, coordinates: Coordinates, like: Tensor) -> None:
        super().__init__(problem, like)
        assert isinstance(problem.sde, AffineSDE)
        self.process = problem.sde
        self.coordinates = coordinates.bind(self.process)

    def tau(self, grid: Array) -> Array:
        """``τ(σ)``."""
        return self.coordinates.tau(grid)

    def level(self, tau: Array) -> Array:
        """``σ(τ)``."""
        return self.coordinates.sigma(tau)

    def _host(self, tau: Array) -> tuple[Array, ...]:
        sigma = self.coordinates.sigma(tau)
        return sigma, self.coordinates.h(sigma), *self.coordinates.drift(tau, self.problem.eta)

    def nodes(self, tau: Array) -> list[Node]:
        """Prepare one node for each ``τ``; coefficients are Python floats."""
        sigma, *coefficients = self._host(tau)
        rows = zip(self._on_device(sigma), *map(floats, coefficients), strict=True)
        return [Node(*row) for row in rows]

    def node(self, tau: Array) -> Node:
        """Prepare one node with a ``τ`` per sample; coefficients are shaped like the state."""
        stacked = self._on_device(np.stack(self._host(tau)))
        sigma, h, a, b = stacked.reshape(4, -1, *(1,) * (self.like.ndim - 1))
        return Node(sigma.reshape(-1), h, a, b)

    def denoise(self, x_hat: Tensor, sigma: Tensor) -> Tensor:
        """Call the denoiser, count the call, and return the result in the state's dtype.

        Raises:
            ValueError: If the denoiser returns another shape, or changes its input in place.
            TypeError: If it does not return a tensor.
        """
        self.nfe += 1
        version = None if x_hat.is_inference() else x_hat._version
        denoised = check_output(self.problem.model(x_hat, sigma), x_hat, "denoiser")
        if version is not None and x_hat._version != version:
            raise ValueError(
                "the denoiser changed its input in place, which is the solver's state; let it work on "
                "a copy"
            )
        return denoised

    def denoising_step(self, sigma: float) -> Callable[[Tensor], Tensor]:
        """Prepare the step from ``σ`` to 0, ``x̂ = D(h u, σ)``: its result is ``x̂``, not ``u``."""
        (node,) = self.nodes(self.tau(np.array([sigma])))
        return lambda u: self.denoise(self.unscale(node, u), node.level)

    def unscale(self, node: Node, u: Tensor) -> Tensor:
        """Unscaled state ``x̂ = h u``."""
        return u if isinstance(node.h, float) and node.h == 1.0 else u * node.h

    def __call__(self, node: Node, u: Tensor) -> Tensor:
        """``a u + b D(h u, σ)``."""
        return node.a * u + node.b * self.denoise(self.unscale(node, u), node.level)

    def kicks(self, tau: Array, noise: NoiseSource) -> Kick:
        """Increments of ``η B(σ²)``, in units of ``u``."""
        variance = floats(self.coordinates.sigma(tau) ** 2)
        scale = floats(self.problem.eta * self.coordinates.noise_scale(tau))
        return lambda n, u: noise.increment(variance[n + 1], variance[n], u) * scale[n]

    def factors(self, levels: Array) -> Array:
        """``s h``; ``(s σ) h`` at ``σ = ∞``, where ``u`` is a multiple of ``ε``; 1 at ``σ = 0``."""
        noisy = np.where(levels == 0, 1.0, levels)  # a denoised state is x̂ itself, and s = 1
        t = self.process.on_host("time", noisy)
        s, n = self.process.on_host("scale", t), self.process.on_host("std", t)
        return np.where(levels == 0, 1.0, np.where(s == 0, n, s) * self.coordinates.h(noisy))


class GeneralView(View):
    """A backward problem of a general SDE in its own state and time; the grid is one of ``t``."""

    symbol = "t"

    def tau(self, grid: Array) -> Array:
        """``t``."""
        return grid

    def level(self, tau: Array) -> Array:
        """``t``."""
        return tau

    def nodes(self, tau: Array) -> list[Node]:
        """Prepare one node for each time."""
        return [Node(t) for t in self._on_device(tau)]

    def node(self, tau: Array) -> Node:
        """Prepare one node with a time per sample."""
        return Node(self._on_device(tau))

    def __call__(self, node: Node, u: Tensor) -> Tensor:
        """The problem's drift."""
        self.nfe += 1
        problem = self.problem
        return problem.sde.backward_drift(problem.model, u, node.level, problem.eta)

    def kicks(self, tau: Array, noise: NoiseSource) -> Kick:
        """``η G(u, t) ΔW`` on the clock ``t``."""
        problem, nodes, times = self.problem, self.nodes(tau), floats(tau)

        def kick(n: int, u: Tensor) -> Tensor:
            G = problem.eta * problem.sde.diffusion(u, nodes[n].level)
            like = G[:, 0] if noise_kind(G, u) == "matrix" else u
            return diffuse(G, u, noise.increment(times[n + 1], times[n], like))

        return kick

    def factors(self, levels: Array) -> Array:
        """1."""
        return np.ones_like(levels)
