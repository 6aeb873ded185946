"""Solves whose loop is the caller's, and if need be the calls of the network, too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from numpy.typing import ArrayLike
from torch import Tensor

from .brownian import NoiseSource
from .inputs import Array, noise_source
from .prepared import check_like, set_up
from .solvers.linear import Progress, Runner
from .solvers.registry import Solver
from .solvers.scheme import Step
from .solvers.stochastic import EulerMaruyama, ReverseDiffusion
from .solvers.view import Map, Problem, View

__all__ = ["Query", "State", "Stepwise", "stepwise"]


@dataclass(frozen=True)
class State:
    """A solve between two steps.

    Attributes:
        number: Steps taken so far.
        level: Noise level, or time, of ``x``.
        done: Whether there is no further step.
    """

    number: int
    level: float
    done: bool
    _progress: Progress = field(repr=False)
    _exit: Map = field(repr=False)

    @cached_property
    def x(self) -> Tensor:
        """State of the process, ``(B, *event)``.

        It may be memory that the solve goes on from: do not write to it, but see `Stepwise.replace`.
        """
        return self._exit(self._progress.latest)


@dataclass(frozen=True)
class Query:
    """A solve in the middle of a step: what the network is asked next.

    Attributes:
        x_hat: The unscaled state to be denoised, ``(B, *event)``; for a general SDE the state itself.
        sigma: Its noise level, a tensor of shape ``()``; for a general SDE the time.
    """

    x_hat: Tensor = field(repr=False)
    sigma: Tensor
    _progress: Progress = field(repr=False)


class _Asked(Exception):
    """The network has been asked, and nobody has answered."""

    def __init__(self, x_hat: Tensor, sigma: Tensor) -> None:
        self.x_hat, self.sigma = x_hat, sigma


class _Caller:
    """A model that does not answer by itself, but by what the caller of the solve says."""

    def __init__(self, answer: Tensor | None = None) -> None:
        self.answer = answer

    def __call__(self, x_hat: Tensor, sigma: Tensor) -> Tensor:
        if self.answer is None:
            raise _Asked(x_hat, sigma)
        return self.answer


class _Pieces(Protocol):
    """A solve in pieces, each with at most one evaluation, at its beginning."""

    def begin(self, z: Tensor) -> Progress: ...
    def evaluates(self, progress: Progress) -> bool: ...
    def proceed(self, progress: Progress) -> Progress: ...
    def replaced(self, progress: Progress, z: Tensor) -> Progress: ...


class _Steps:
    """Steps that are functions ``step(n, u) -> u``, each of them a piece.

    Args:
        step: The steps.
        in_order: Whether they remember the step before, so that none may be taken out of order.
    """

    def __init__(self, step: Step, *, in_order: bool) -> None:
        self._step, self._in_order = step, in_order
        self._last: Tensor | None = None

    def begin(self, z: Tensor) -> Progress:
        return Progress(0, 0, z, z)

    def evaluates(self, progress: Progress) -> bool:
        return True

    def proceed(self, progress: Progress) -> Progress:
        if self._in_order and progress.step and progress.latest is not self._last:
            raise ValueError(
                "the steps of this method remember those before; take them in order, each from the "
                "state that the last one returned"
            )
        n = progress.step
        z = self._last = self._step(n, progress.latest)
        return Progress(n + 1, 0, z, z)

    def replaced(self, progress: Progress, z: Tensor) -> Progress:
        if self._in_order and progress.step:
            raise ValueError(
                "the steps of this method remember those before, so their state cannot be replaced; "
                "take a method that is no predictor–corrector, or begin anew with init"
            )
        return progress._replace(latest=z, accepted=z)


class Stepwise:
    """A solve on a fixed grid, step by step; see `stepwise`.

    Attributes:
        grid: Noise levels, or times, float64.
    """

    def __init__(
        self, view: View, grid: Array, pieces: _Pieces, *, unscaled: bool, asks: bool
    ) -> None:
        self.grid = grid
        self._view, self._pieces = view, pieces
        self._unscaled, self._asks = unscaled, asks
        self._like = view.like[:0]
        self._entrance = view.entrance(grid[0], unscaled=unscaled)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.grid) - 1

    def init(self, x: Tensor) -> State:
        """Return the state that the first step starts from.

        Args:
            x: State of the process at ``grid[0]``, ``(B, *event)``.

        Raises:
            ValueError: If ``x`` differs from the state it was set up for in anything but the number
                of samples.
        """
        check_like(x, self._like)
        return self._state(self._pieces.begin(self._entrance(x)), x)

    def step(self, state: State) -> State:
        """Take a step, calling the model of the problem.

        Nothing is checked for being finite: the loop is the caller's.

        Raises:
            ValueError: If there is no further step.
        """
        _check_not_done(state)
        progress = state._progress
        while progress.step == state.number:
            progress = self._pieces.proceed(progress)
        return self._state(progress)

    def ask(self, state: State) -> Query:
        """Begin a step: return what the network is asked first.

        Noise that comes before the question is drawn here. A step is begun anew by asking again.

        Raises:
            ValueError: If there is no further step, or the method is a predictor–corrector, or
                Milstein's: their steps are not known in parts.
        """
        _check_not_done(state)
        if not self._asks:
            raise ValueError(
                "the steps of this method (a predictor–corrector, or Milstein's) are functions that "
                "call the model in their midst; take another method, or Stepwise.step"
            )
        return self._question(state._progress)

    def tell(self, query: Query, denoised: Tensor) -> Query | State:
        """Answer a question.

        Args:
            query: The question.
            denoised: ``D(x̂, σ)``, in the shape of ``x_hat``; for a general SDE the score.

        Returns:
            The next question of the step, or the state that the step ends in.

        Raises:
            TypeError: If the answer is not a tensor.
            ValueError: If it has another shape.
        """
        progress = self._with(_Caller(denoised), lambda: self._pieces.proceed(query._progress))
        if progress.step > query._progress.step:
            return self._state(progress)
        return self._question(progress)

    def replace(self, state: State, x: Tensor) -> State:
        """Return the state with another ``x``, to go on from: as inpainting does between steps.

        Raises:
            ValueError: If ``x`` is of another shape, dtype or device, or the method is about to
                correct its own state, or remembers the steps before.
        """
        check_like(x, self._like)
        if len(x) != len(state.x):
            raise ValueError(f"x has {len(x)} samples, the state has {len(state.x)}")
        z = self._view.entrance(self.grid[state.number], unscaled=self._unscaled)(x)
        return self._state(self._pieces.replaced(state._progress, z), x)

    def _state(self, progress: Progress, x: Tensor | None = None) -> State:
        n = progress.step

        def leave(z: Tensor) -> Tensor:
            return self._view.exit(self.grid[n : n + 1], unscaled=self._unscaled)(z)

        return State(
            n,
            float(self.grid[n]),
            n == self.steps,
            progress,
            leave if x is None else lambda z: x,
        )

    def _question(self, progress: Progress) -> Query:
        while not self._pieces.evaluates(progress):
            progress = self._pieces.proceed(progress)
        try:
            self._with(_Caller(), lambda: self._pieces.proceed(progress))
        except _Asked as asked:
            return Query(asked.x_hat, asked.sigma, progress)
        raise AssertionError("a piece of a step made no evaluation")

    def _with(self, model: _Caller, run: Callable[[], Progress]) -> Progress:
        """Run with another model than the problem's own."""
        problem = self._view.problem
        self._view.problem = with_model(problem, model)
        try:
            return run()
        finally:
            self._view.problem = problem


def with_model(problem: Problem, model: Callable[..., Tensor]) -> Problem:
    """Return a problem with another model."""
    other = copy.copy(problem)
    other.model = model
    return other


def _check_not_done(state: State) -> None:
    if state.done:
        raise ValueError(f"all {state.number} steps are done; start again with init")


def stepwise(
    problem: Problem,
    like: Tensor,
    *,
    method: str | Solver | None = None,
    steps: int | None = None,
    sigmas: ArrayLike | None = None,
    times: ArrayLike | None = None,
    ending: str = "stop",
    sigma_data: float | None = None,
    seed: int | Sequence[int] | None = None,
    noise: NoiseSource | None = None,
) -> Stepwise:
    """Set up a solve on a fixed grid whose loop is the caller's.

    The states are those of `solve`, to the last bit::

        walk = sk.stepwise(problem, x, method="dpmpp_2m", steps=20)
        state = walk.init(x)
        while not state.done:
            state = walk.step(state)

    Where the caller calls the network as well, a step is made of questions and answers, and the model
    of the problem is not called::

            part = walk.ask(state)
            while isinstance(part, sk.Query):
                part = walk.tell(part, denoiser(part.x_hat, part.sigma))
            state = part

    A state holds all that the rest of the solve depends on but the noise to come, so one may go on
    from any state again. With a `BrownianPath` the noise is the same then; a seed is a stream, and
    goes on. What remembers steps itself (predictor–corrector methods) goes forward only.

    Args:
        problem: ``process.probability_flow(model)`` or ``process.reverse(model, eta)``.
        like: A state with the shape, dtype and device of those to come; where ``sigma_data`` has to
            be estimated, a start state.
        method: A name from `sdekit.methods` or a composed `Solver`; the default is that of `solve`.
        steps: Number of steps.
        sigmas: Explicit noise levels.
        times: Explicit times.
        ending: How the data are reached.
        sigma_data: Standard deviation of the data; if neither it nor the denoiser says it, one call of
            the problem's model estimates it.
        seed: Seed of the noise of a stochastic method, or one seed per sample.
        noise: Source of noise, instead of a seed.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of its range, or the method does not fit the problem.
    """
    source = noise_source(seed, noise)
    solver, view, grid, _ = set_up(
        problem,
        like,
        method=method,
        steps=steps,
        sigmas=sigmas,
        times=times,
        adaptive=False,
        ending=ending,
        sigma_data=sigma_data,
    )
    scheme = solver.scheme
    step = scheme.prepare(view, grid, source, ending)
    pieces: _Pieces
    if isinstance(step, Runner):
        pieces, asks = step, True
    else:
        pieces = _Steps(step, in_order=scheme.nfe_per_step > 1)
        asks = isinstance(
            scheme, EulerMaruyama | ReverseDiffusion
        )  # one evaluation, and it is first
    return Stepwise(view, grid, pieces, unscaled=scheme.unscaled, asks=asks)
