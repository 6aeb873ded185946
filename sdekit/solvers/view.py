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
from ..clock import TIME
from ..coordinates import Coordinates, Noise, Points
from ..denoisers import layers, model_of
from ..sde import ProbabilityFlow, ReverseSDE, check_output, diffuse, noise_kind
from ..wrapper import Wrapper

Array = NDArray[np.float64]
Problem: TypeAlias = ProbabilityFlow | ReverseSDE
Kick: TypeAlias = Callable[[int, Tensor], Tensor]
Map: TypeAlias = Callable[[Tensor], Tensor]
Coefficient: TypeAlias = float | Tensor  # one number, or one per component of an event
Samples: TypeAlias = NDArray[np.int64] | None  # indices into the batch of a solve; None for all


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


class Evaluation(NamedTuple):
    """A point at which a linear scheme evaluates a slope ``D(x̂, level) + state x̂``."""

    level: Tensor
    state: Coefficient


class LinearForm(NamedTuple):
    """A view as linear schemes see it, at points: ``u = x̂/h`` and ``N = slope (D + state x̂)``."""

    h: Array
    slope: Array
    state: Array


class View(ABC):
    """A backward problem in the variables ``(u, τ)``.

    Attributes:
        problem: The problem.
        nfe: Evaluations of the network (or score) so far, for each sample.
        coordinates: Host-side coordinates.
        symbol: What the grid is made of, for messages: ``"σ"`` or ``"t"``.
    """

    coordinates: Coordinates
    symbol: str

    def __init__(self, problem: Problem, like: Tensor) -> None:
        self.problem = problem
        self.like = like
        self.nfe = 0
        self.wrappers = [f for f in layers(problem.model) if isinstance(f, Wrapper)]

    def _on_device(self, values: Array) -> Tensor:
        return torch.as_tensor(values, dtype=self.like.dtype).to(self.like.device)

    def coefficient(self, value: Array | float) -> Coefficient:
        """Return a host coefficient as a float, or as a tensor shaped like an event."""
        if isinstance(value, float) or value.ndim == 0:
            return float(value)
        return self._on_device(value).reshape(self.like.shape[1:])

    @abstractmethod
    def linear_form(self, points: Points, coordinates: Coordinates | None = None) -> LinearForm:
        """Coefficients that turn a plan in ``u`` and ``N`` into one in ``x̂`` and ``D``.

        Args:
            points: Points of the plan.
            coordinates: Its coordinates; those of the view, if not given.
        """

    def rotate(self, increment: Tensor) -> Tensor:
        """Turn an increment of a Brownian motion in ``x̂`` into the axes of the state."""
        return increment

    def evaluations(self, points: Points, form: LinearForm) -> list[Evaluation]:
        """Prepare the evaluation of slopes, at unscaled states."""
        levels = self._on_device(points.sigma)
        return [
            Evaluation(level, self.coefficient(state))
            for level, state in zip(levels, form.state, strict=True)
        ]

    @abstractmethod
    def evaluate(self, z: Tensor, at: Evaluation) -> Tensor:
        """What a slope is made of, at an unscaled state: ``D``, or the drift itself."""

    @abstractmethod
    def entrance(self, level: float, *, unscaled: bool) -> Map:
        """Prepare the change from a state of the process to that of a scheme, ``u`` or ``x̂``."""

    @abstractmethod
    def exit(self, levels: Array, *, unscaled: bool) -> Map:
        """Prepare the change back, at one grid value or one per sample."""

    def tau(self, grid: Array) -> Array:
        """Integration variable at the grid's points."""
        return self.coordinates.tau(grid)

    def level(self, tau: Array) -> Array:
        """Grid values at ``τ``, the inverse of `tau`."""
        return self.coordinates.sigma(tau)

    @abstractmethod
    def nodes(self, tau: Array) -> list[Node]:
        """Prepare one node for each ``τ`` of a one-dimensional array."""

    @abstractmethod
    def rows(self, points: Points) -> list[Array]:
        """What nodes of slopes ``N``, not of ``du/dτ``, are made of: an entry for each point."""

    @abstractmethod
    def __call__(self, node: Node, u: Tensor, samples: Samples = None) -> Tensor:
        """``a u + b D(h u, σ)``: ``du/dτ``, or ``N``; one network evaluation.

        Args:
            node: A prepared node.
            u: States, ``(B, *event)``.
            samples: Which samples of the solve they are; all, if not given.
        """

    def mean_square(self, error: Tensor, scale: Tensor) -> Tensor:
        """Mean square of an error in units of its scale, by which steps are accepted: ``(B,)``."""
        return (error / scale).flatten(1).square().mean(1)

    @abstractmethod
    def kicks(self, tau: Array, noise: NoiseSource) -> Kick:
        """Prepare the noise terms of the steps of a grid: ``kick(n, u)`` is that of step ``n``."""


class AffineView(View):
    """A backward problem of an affine process in given coordinates; the grid is one of ``σ``.

    In coordinates with a frame the unscaled state ``x̂`` of schemes is that in the frame's axes.
    """

    symbol = "σ"

    def __init__(self, problem: Problem, coordinates: Coordinates, like: Tensor) -> None:
        super().__init__(problem, like)
        assert isinstance(problem.sde, AffineSDE)
        self.process = problem.sde
        self.coordinates = coordinates.bind(self.process)
        self.frame: tuple[Tensor, Tensor] | None = None
        if self.coordinates.frame is not None:
            mean, basis = self.coordinates.frame
            if len(mean) != like[0].numel():
                raise ValueError(
                    f"the coordinates have {len(mean)} dimensions, the state has shape "
                    f"{tuple(like.shape)} with {like[0].numel()} per sample"
                )
            self.frame = self._on_device(mean), self._on_device(basis)

    def _into_frame(self, x_hat: Tensor) -> Tensor:
        if self.frame is None:
            return x_hat
        mean, basis = self.frame
        return ((x_hat.flatten(1) - mean) @ basis).reshape(x_hat.shape)

    def _out_of_frame(self, z: Tensor) -> Tensor:
        if self.frame is None:
            return z
        mean, basis = self.frame
        return torch.addmm(mean, z.flatten(1), basis.mT).reshape(z.shape)

    def rotate(self, increment: Tensor) -> Tensor:
        """Turn an increment of a Brownian motion in ``x̂`` into the axes of the frame."""
        if self.frame is None:
            return increment
        return (increment.flatten(1) @ self.frame[1]).reshape(increment.shape)

    def linear_form(self, points: Points, coordinates: Coordinates | None = None) -> LinearForm:
        """``h``, ``B`` and ``A/(h B)``, so that ``B`` is a factor of weights and costs nothing."""
        coordinates = coordinates or self.coordinates
        h, (A, B) = coordinates.h(points), coordinates.field(points)
        return LinearForm(h, B, A / (h * B))

    def evaluate(self, z: Tensor, at: Evaluation) -> Tensor:
        """``D``."""
        return self.denoise(z, at.level)

    def nodes(self, tau: Array) -> list[Node]:
        """Prepare one node for each ``τ``; coefficients are floats, or shaped like an event."""
        points = self.coordinates.at_tau(tau)
        a, b = self.coordinates.drift(points, self.problem.eta)
        rows = zip(self._on_device(points.sigma), self.coordinates.h(points), a, b, strict=True)
        return [Node(level, *map(self.coefficient, row)) for level, *row in rows]

    def rows(self, points: Points) -> list[Array]:
        """``σ, h, A, B``."""
        return [points.sigma, self.coordinates.h(points), *self.coordinates.field(points)]

    def _per_sample(self, values: Array) -> Tensor:
        event = self.like.shape[1:] if values.ndim == 2 else (1,) * (self.like.ndim - 1)
        return self._on_device(values).reshape(-1, *event)

    def denoise(self, z: Tensor, sigma: Tensor, samples: Samples = None) -> Tensor:
        """Call the denoiser, count its evaluations, and return the result in the state's dtype.

        Raises:
            ValueError: If the denoiser returns another shape, or changes its input in place.
            TypeError: If it does not return a tensor.
        """
        count = 1
        for wrapper in self.wrappers:
            count *= wrapper.evaluations(sigma)
        self.nfe += count
        x_hat = self._out_of_frame(z)
        compiling = torch.compiler.is_compiling()
        watched = [] if compiling else [t for t in (x_hat, sigma) if not t.is_inference()]
        versions = [t._version for t in watched]
        denoised = check_output(
            model_of(self.problem.model, samples)(x_hat, sigma), x_hat, "denoiser"
        )
        if versions != [t._version for t in watched]:
            raise ValueError(
                "the denoiser changed its input in place, which is the solver's state; let it work on "
                "a copy"
            )
        return self._into_frame(denoised)

    def ending(self, kind: str, sigma: float, *, unscaled: bool, samples: Samples = None) -> Map:
        """Prepare the last step from ``σ`` to 0; its result is ``x̂``, also where the state is ``u``."""
        (node,) = self.nodes(self.tau(np.array([sigma])))

        def step(state: Tensor) -> Tensor:
            z = state if unscaled else self.unscale(node, state)
            denoised = self.denoise(z, node.level, samples)
            # What is returned is new memory: a network may write its next result over this one.
            return torch.lerp(z, denoised, 0.5) if kind == "half" else denoised.clone()

        return step

    def unscale(self, node: Node, u: Tensor) -> Tensor:
        """Unscaled state ``x̂ = h u``."""
        return u if isinstance(node.h, float) and node.h == 1.0 else u * node.h

    def __call__(self, node: Node, u: Tensor, samples: Samples = None) -> Tensor:
        """``a u + b D(h u, σ)``."""
        return node.a * u + node.b * self.denoise(self.unscale(node, u), node.level, samples)

    def kicks(self, tau: Array, noise: NoiseSource) -> Kick:
        """Increments of ``η B(σ²)``, in units of ``u``."""
        points = self.coordinates.at_tau(tau)
        variance = floats(points.sigma**2)
        scales = self.problem.eta * self.coordinates.noise_scale(points)
        scale = [self.coefficient(value) for value in scales]

        def kick(n: int, u: Tensor) -> Tensor:
            return self.rotate(noise.increment(variance[n + 1], variance[n], u)) * scale[n]

        return kick

    def _scale(self, levels: Array) -> Array:
        """``s``; ``s σ`` at ``σ = ∞``, where states are multiples of ``ε``; 1 at ``σ = 0``."""
        t = self.process.on_host("time", np.where(levels == 0, 1.0, levels))
        s, n = self.process.on_host("scale", t), self.process.on_host("std", t)
        return np.where(levels == 0, 1.0, np.where(s == 0, n, s))

    def _h(self, levels: Array) -> Array:
        """``h``; 1 at ``σ = 0``, where a denoised state is ``x̂`` itself."""
        h = self.coordinates.h(self.coordinates.at(np.where(levels == 0, 1.0, levels)))
        return np.where((levels if h.ndim == 1 else levels[:, None]) == 0, 1.0, h)

    def entrance(self, level: float, *, unscaled: bool) -> Map:
        """``x̂ = x/s`` in the frame, or ``u = x̂/h``."""
        levels = np.array([level])
        scale, h = self._scale(levels)[0], self._h(levels)[0]
        if self.frame is None:  # one division; by 1 in native coordinates
            return _division(float(scale if unscaled else scale * h))
        to_unscaled, to_u = (
            _division(float(scale)),
            _division(1.0 if unscaled else self.coefficient(h)),
        )
        return lambda x: to_u(self._into_frame(to_unscaled(x)))

    def exit(self, levels: Array, *, unscaled: bool) -> Map:
        """``x = s x̂`` out of the frame, with ``x̂ = h u``."""
        scale, h = self._scale(levels), self._h(levels)
        if self.frame is None:
            return self._multiplication(scale if unscaled else scale * h)
        to_process = self._multiplication(scale)
        to_unscaled = self._multiplication(np.ones(1) if unscaled else h)
        return lambda state: to_process(self._out_of_frame(to_unscaled(state)))

    def _multiplication(self, factors: Array) -> Map:
        one = len(factors) == 1
        factor = self.coefficient(factors[0]) if one else self._per_sample(factors)
        if isinstance(factor, float) and factor == 1.0:
            return lambda x: x
        return lambda x: x * factor


def _division(factor: Coefficient) -> Map:
    if isinstance(factor, float) and factor == 1.0:
        return lambda x: x
    return lambda x: x / factor


class GeneralView(View):
    """A backward problem of a general SDE in its own state and time; the grid is one of ``t``."""

    symbol = "t"
    coordinates = Noise()  # formally: their variable is the grid's, and h = w = 1

    def linear_form(self, points: Points, coordinates: Coordinates | None = None) -> LinearForm:
        """1, 1 and 0: the slope is the problem's drift."""
        one = np.ones_like(points.tau)
        return LinearForm(one, one, np.zeros_like(one))

    def evaluate(self, z: Tensor, at: Evaluation) -> Tensor:
        """The problem's drift."""
        return self(Node(at.level), z)

    def nodes(self, tau: Array) -> list[Node]:
        """Prepare one node for each time."""
        return [Node(t) for t in self._on_device(tau)]

    def rows(self, points: Points) -> list[Array]:
        """The time."""
        return [points.tau]

    def __call__(self, node: Node, u: Tensor, samples: Samples = None) -> Tensor:
        """The problem's drift."""
        self.nfe += 1
        problem = self.problem
        model = model_of(problem.model, samples)
        return problem.sde.backward_drift(model, u, node.level, problem.eta)

    def kicks(self, tau: Array, noise: NoiseSource) -> Kick:
        """``η G(u, t) ΔW`` on the clock ``t``."""
        problem, nodes, times = self.problem, self.nodes(tau), floats(tau)
        source = noise.on(TIME)

        def kick(n: int, u: Tensor) -> Tensor:
            G = problem.eta * problem.sde.diffusion(u, nodes[n].level)
            like = G[:, 0] if noise_kind(G, u) == "matrix" else u
            low, high = sorted((times[n], times[n + 1]))
            return diffuse(G, u, source.increment(low, high, like))

        return kick

    def entrance(self, level: float, *, unscaled: bool) -> Map:
        """The state itself."""
        return lambda x: x

    def exit(self, levels: Array, *, unscaled: bool) -> Map:
        """The state itself."""
        return lambda state: state
