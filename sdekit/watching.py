"""Callbacks: what a solve on a fixed grid tells of its steps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .inputs import Array
from .solution import StepReport
from .solvers.view import AffineView, View
from .stepwise import with_model


class _Watch:
    """A denoiser that remembers what it said first, until it is told to forget."""

    def __init__(self, model: Callable[..., Tensor]) -> None:
        self.model = model
        self.first: tuple[Tensor, Tensor] | None = None

    def __call__(self, x_hat: Tensor, sigma: Tensor) -> Tensor:
        denoised = self.model(x_hat, sigma)
        if self.first is None and isinstance(denoised, Tensor):
            # A copy: a network may write its next result over this one.
            self.first = denoised.clone(), sigma
        return denoised


def watched(
    view: View, grid: Array, unscaled: bool, callback: Callable[[StepReport], object]
) -> Callable[[int, Tensor], None]:
    """Return what the loop over a grid calls after each step, for a callback.

    The model of the view's problem is replaced by one that is watched.

    Raises:
        TypeError: If the callback cannot be called.
    """
    if not callable(callback):
        raise TypeError(f"callback is a {type(callback).__name__}; it must be callable")
    watch = None
    if isinstance(view, AffineView):
        watch = _Watch(view.problem.model)
        view.problem = with_model(view.problem, watch)

    def on_step(n: int, u: Tensor) -> None:
        x = view.exit(grid[n + 1 : n + 2], unscaled=unscaled)(u)
        denoised, at = (None, None) if watch is None or watch.first is None else watch.first
        callback(
            StepReport(
                number=n + 1,
                steps=len(grid) - 1,
                start=float(grid[n]),
                level=float(grid[n + 1]),
                x=x.clone() if x is u else x,
                denoised=denoised,
                denoised_at=at,
            )
        )
        if watch is not None:
            watch.first = None

    return on_step
