"""Multistep schemes: one evaluation per step, and the slopes of the steps before."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np

from ..coordinates import Coordinates, Points
from .linear import Line, LinearScheme, Plan
from .rk import RungeKutta
from .scheme import Array
from .tableaus import RK4


class Multistep(LinearScheme):
    """A predictor that extrapolates past slopes, with a corrector that re-uses the next one.

    Step ``n`` evaluates the slope at the state that was predicted, corrects that state with it
    (PEC: no further evaluation; PECE: one, at the corrected state), and predicts the next. The last
    state is predicted only.

    A formula of ``k`` slopes has order ``k``. With a corrector of ``k + 1`` slopes the scheme has
    order ``k + 1``, as the one uncorrected step costs ``O(h^(k+1))`` only.

    Args:
        order: Slopes of the predictor.
        corrector: Whether to correct, with one slope more than the predictor of that step.
        again: Whether the slope is evaluated again at the corrected state (PECE).
        start: ``"ramp"``: the first steps use what slopes there are, which limits the order to 2,
            or 3 with a corrector; ``"rk4"``: the first ``order − 1`` steps are classical
            Runge–Kutta steps of four evaluations, which limit it to 5.
        tail: ``"full"``, or ``"lower"``: the last ``m`` steps use ``m`` slopes at most, which is safer
            where slopes change fast at low noise, and limits the order to 2.

    Raises:
        ValueError: If ``order`` is not in 1 … 6, or a policy is unknown.
    """

    def __init__(
        self,
        order: int,
        *,
        corrector: bool = False,
        again: bool = False,
        start: str = "ramp",
        tail: str = "full",
    ) -> None:
        if not 1 <= order <= 6:
            raise ValueError(f"order = {order}; a multistep scheme uses 1 to 6 slopes")
        if start not in ("ramp", "rk4") or tail not in ("full", "lower"):
            raise ValueError(
                f"start = {start!r}, tail = {tail!r}; they must be 'ramp' or 'rk4', 'full' or 'lower'"
            )
        if again and not corrector:
            raise ValueError("again=True evaluates at the corrected state; give corrector=True")
        self.slopes, self.corrector, self.again = order, corrector, again
        self.start, self.tail = start, tail
        self.nfe_per_step = 2 if again else 1
        limits = [self.interior_order]
        if order > 1:
            # Local errors of the first steps, which are made a fixed number of times.
            limits.append((3 if corrector else 2) if start == "ramp" else 5)
        if tail == "lower":
            limits.append(2)
        self.order = min(limits)

    @property
    def interior_order(self) -> int:
        """Order of the formulas, which the first and the last steps may lower."""
        return self.slopes + 1 if self.corrector else self.slopes

    @abstractmethod
    def predict(self, coordinates: Coordinates, nodes: Points, end: Points) -> Array:
        """Weights of the slopes at ``nodes`` in the step from ``nodes[:, 0]`` to ``end``.

        Args:
            coordinates: The coordinates.
            nodes: Points of the slopes, newest first, ``(n, k)`` for ``n`` steps.
            end: Points where the steps end, ``(n,)``.

        Returns:
            Weights ``(n, k)``, or ``(n, k, d)`` in coordinates with a frame.
        """

    def correct(self, coordinates: Coordinates, nodes: Points) -> Array:
        """Weights of the slopes at ``nodes`` in the step from ``nodes[:, 1]`` to ``nodes[:, 0]``.

        Raises:
            NotImplementedError: If the scheme has no corrector.
        """
        raise NotImplementedError(f"{type(self).__name__} has no corrector")

    def depths(self, steps: int) -> list[int]:
        """Number of slopes that the predictor of each step uses."""
        left = [steps - n if self.tail == "lower" else steps for n in range(steps)]
        return [min(self.slopes, n + 1, m) for n, m in enumerate(left)]

    def plan(self, coordinates: Coordinates, grid: Points) -> Plan:
        """Write down the steps of a grid."""
        count = len(grid.tau) - 1
        depths = self.depths(count)
        started = min(self.slopes - 1, count) if self.start == "rk4" else 0
        predicted = list(range(started, count))
        corrected = predicted[1:] if self.corrector else []
        forward = self._weights(coordinates, grid, predicted, [depths[n] for n in predicted])
        # The step that ends at point n is corrected with one slope more than predicted it.
        back = [min(depths[n - 1], n) + 1 for n in corrected]
        backward = self._weights(coordinates, grid, corrected, back, correct=True)
        start = _start(coordinates, grid, started) if started else None
        return multistep_plan(grid, forward, backward, start=start, again=self.again)

    def _weights(
        self,
        coordinates: Coordinates,
        grid: Points,
        steps: list[int],
        depths: list[int],
        *,
        correct: bool = False,
    ) -> dict[int, Array]:
        """Weights of steps, those of equal depth at once."""
        found: dict[int, Array] = {}
        for depth in set(depths):
            chosen = np.array([n for n, k in zip(steps, depths, strict=True) if k == depth])
            index = chosen[:, None] - np.arange(depth)
            nodes = Points(grid.sigma[index], grid.tau[index])
            if correct:
                rows = self.correct(coordinates, nodes)
            else:
                end = Points(grid.sigma[chosen + 1], grid.tau[chosen + 1])
                rows = self.predict(coordinates, nodes, end)
            found.update(zip(chosen.tolist(), rows, strict=True))
        return found


def multistep_plan(
    grid: Points,
    forward: Mapping[int, Array],
    backward: Mapping[int, Array],
    *,
    start: Plan | None = None,
    again: bool = False,
) -> Plan:
    """Write down the steps of a multistep scheme.

    Args:
        grid: The grid.
        forward: Weights of the slopes, newest first, in the prediction of step ``n``.
        backward: The same in the correction of the state at point ``n``, the slope there first.
        start: Steps of another scheme, which come before.
        again: Whether slopes are evaluated again at corrected states.
    """
    count = len(grid.tau) - 1
    first = [] if start is None else start.steps
    # Points: those of the grid; the same once more, where slopes are evaluated again; the start's.
    offset = count + 1
    parts = [grid, grid, *([] if start is None else [start.points])]
    points = Points(*map(np.concatenate, zip(*parts, strict=True)))
    known: list[int] = []  # points of the slopes so far, newest first
    steps: list[tuple[int, list[Line]]] = []
    for n in range(count):
        known.insert(0, n)
        lines = []
        if n < len(first):
            lines = [_moved(line, n, 2 * offset) for line in first[n][1]]
        if n in backward:
            weights = dict(zip(known, backward[n], strict=False))
            if again:
                known[0] += offset
            lines.append(Line(n - 1, known[0], weights, accept=True, evaluate=again))
        if n in forward:
            weights = dict(zip(known, forward[n], strict=False))
            lines.append(Line(n, n + 1, weights, accept=not backward, evaluate=False))
        steps.append((n, lines))
    return Plan(points, steps)


def _start(coordinates: Coordinates, grid: Points, steps: int) -> Plan:
    """First steps of a grid by classical Runge–Kutta."""
    begin, end = Points(*(v[:steps] for v in grid)), Points(*(v[1 : steps + 1] for v in grid))
    return RungeKutta(RK4).between(coordinates, begin, end)


def _moved(line: Line, n: int, offset: int) -> Line:
    """Return a line of the start in step ``n`` with its points where a multistep plan has them."""

    def moved(point: int) -> int:
        return n if point == n else point + offset

    target = n + 1 if line.accept else moved(line.target)
    weights = {moved(point): weight for point, weight in line.weights.items()}
    return line._replace(target=target, weights=weights)
