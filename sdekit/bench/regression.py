"""Orders and floors of measured curves, with standard errors; none where the data do not support one.

A curve of errors has three parts: first the steps are too long for its order to show, then the error
falls as ``C · nfe⁻ᵖ``, and in the end it stays at a floor, of round-off, of the reference, or of the
samples that a law is judged by. The slope is told from the part between, by these rules:

- A *floor* is a plateau at the end: at least three points that do not fall, where the fall of the
  curve before them would have shown. A floor and the error of a method are independent, so they
  add up in quadrature, and at three times the floor it is 5 % of the error.
- The *window* ends where the curve first comes below three times the floor. Points at the end over
  which it has all but stopped to fall are taken for one, though they be too few for a plateau. It
  begins as early as leaves it straight: a parabola through the logarithms bends by no more than its
  own uncertainty, or by too little to matter.
- A window has at least four points, and a factor of two between its ends.
- The *standard error* is that of the regression, widened by Student's quantile so that two of them
  are 95 %, and in quadrature with it by how much the bend, and the floor, may have changed the slope.

An order whose standard error is above a quarter is not printed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from .legend import label
from .measurements import ADAPTIVE, Results, curves
from .repetitions import Point, repeated

_POINTS = 4  # of a window, at least
_SPAN = 2.0  # between the ends of a window, at least
_ABOVE_FLOOR = 3.0
_WORST = 0.25  # standard error of an order, at most
_STRAIGHT = 0.1  # a slope that changes by this much to either side is of a straight line
_STOPPED = 0.6  # of the fall over the factor of two before: what falls by less has all but stopped
_PLATEAU_POINTS = 3
_PLATEAU_SPAN = 1.5
# No curve is smoother than this; errors that seem to be known better would hide the rest.
_KNOWN = 0.01

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """What a curve says of its order and its floor.

    Attributes:
        order: ``p`` of ``C · nfe⁻ᵖ``; none where the data do not support one.
        order_se: Its standard error, statistical and systematic: two of them are 95 %.
        constant: ``C``.
        floor: Level of the plateau at the end; without one, the floor that was given.
        floor_se: Standard error of the plateau's level; none without a plateau.
        first: Evaluations of the first point that the order is told from.
        last: Evaluations of the last.
        points: Number of points that the order is told from.
        verdict: The same in words, or why there is no order.
    """

    order: float | None
    order_se: float | None
    constant: float | None
    floor: float | None
    floor_se: float | None
    first: float | None
    last: float | None
    points: int
    verdict: str


class Order(NamedTuple):
    """A row of the table of orders."""

    problem: str
    method: str
    grid: str
    label: str
    package: str
    estimate: Estimate


def orders(results: Results, metric: str) -> list[Order]:
    """Estimate the order of every method on every problem, on fixed grids.

    Args:
        results: What was measured.
        metric: Name of the metric.

    Returns:
        A row per problem, method and grid, in the order of the results. Seeds are repetitions.
    """
    rows = []
    for (problem, method, grid), points in curves(results.measurements, metric).items():
        if grid == ADAPTIVE:
            continue
        means = [p for p in repeated(points, metric) if p.nfe]  # without those of less than a step
        found = _estimated(
            tuple(p.nfe for p in means),
            tuple(p.error for p in means),
            results.problems[problem].floors.get(metric),
            _errors_of_means(means),
        )
        rows.append(Order(problem, method, grid, label((method, grid)), points[0].package, found))
    return rows


@cache  # tables and the page ask for the same
def _estimated(
    nfe: tuple[float, ...],
    errors: tuple[float | None, ...],
    floor: float | None,
    errors_of_errors: tuple[float | None, ...] | None,
) -> Estimate:
    return estimate(nfe, errors, floor=floor, errors_of_errors=errors_of_errors)


def _errors_of_means(points: Sequence[Point]) -> tuple[float | None, ...] | None:
    """Standard errors of geometric means over the seeds; none where there is one seed."""
    if not any(p.deviation for p in points):
        return None
    return tuple(
        None
        if p.error is None or p.deviation is None
        else p.error * p.deviation / math.sqrt(len(p.by_seed))
        for p in points
    )


def estimate(
    nfe: Sequence[float],
    errors: Sequence[float | None],
    *,
    floor: float | None = None,
    errors_of_errors: Sequence[float | None] | None = None,
) -> Estimate:
    """Estimate the order of a curve and its floor.

    Args:
        nfe: Network evaluations, in any order; where some are the same, the errors are averaged.
        errors: Error at each; none where a solve failed.
        floor: Error below which nothing can be told, if it is known.
        errors_of_errors: Standard error of each error, if they are known; without them the scatter
            about a straight line tells how large they are.

    Returns:
        The estimate; its order is none where the data do not support one, and its verdict says why.

    Raises:
        ValueError: If the lengths differ, or a number is negative or not finite.
    """
    curve = _curve(nfe, errors, floor, errors_of_errors)
    plateau = _plateau(curve)
    level = max(floor or 0.0, plateau.level if plateau else 0.0)
    above = curve.upto(_above(curve, level))
    falling = _falling(above)
    if falling < len(above.x):
        # Too few points for a plateau, perhaps; but what they have come to may be in those before.
        level = max(level, math.exp(above.y[falling:].mean()))
        above = above.upto(min(falling, _above(above, level)))
    found = _order(above, level, total=len(curve.x))
    reported, reported_se = (plateau.level, plateau.se) if plateau else (floor, None)
    if isinstance(found, str):
        return Estimate(
            None, None, None, reported, reported_se, None, None, 0, f"no order: {found}"
        )
    window, order, se = found
    first, last = float(window.nfe[0]), float(window.nfe[-1])
    constant = math.exp(window.y.mean() + order * window.x.mean())
    verdict = f"order {order:.2f} ± {se:.2f} from {first:.4g} to {last:.4g} evaluations"
    return Estimate(order, se, constant, reported, reported_se, first, last, len(window.x), verdict)


class _Curve(NamedTuple):
    """Evaluations, the logarithms of them and of errors; relative standard errors if they are known."""

    nfe: Array
    x: Array
    y: Array
    r: Array | None

    def upto(self, stop: int) -> _Curve:
        return self.between(0, stop)

    def since(self, start: int) -> _Curve:
        return self.between(start, len(self.x))

    def between(self, start: int, stop: int) -> _Curve:
        part = slice(start, stop)
        return _Curve(
            self.nfe[part], self.x[part], self.y[part], None if self.r is None else self.r[part]
        )

    @property
    def width(self) -> float:
        return float(self.x[-1] - self.x[0])


def _curve(
    nfe: Sequence[float],
    errors: Sequence[float | None],
    floor: float | None,
    errors_of_errors: Sequence[float | None] | None,
) -> _Curve:
    """Check and sort the points; those that failed are left out."""
    known = [None] * len(nfe) if errors_of_errors is None else errors_of_errors
    if not len(nfe) == len(errors) == len(known):
        raise ValueError(
            f"{len(nfe)} counts of evaluations, {len(errors)} errors, {len(known)} errors of errors; "
            "there must be as many of each"
        )
    numbers = [*errors, *known, floor]
    if not all(0 < n < math.inf for n in nfe):
        raise ValueError(f"evaluations must be positive and finite, got {list(nfe)}")
    if not all(v is None or 0 <= v < math.inf for v in numbers):
        raise ValueError(f"errors and floors must be finite and not negative, got {numbers}")
    points: dict[float, list[tuple[float, float]]] = {}
    for n, error, of_error in zip(nfe, errors, known, strict=True):
        if error is not None:
            relative = (of_error or 0.0) / error if error else 0.0
            y = math.log(error) if error else -math.inf
            points.setdefault(n, []).append((y, max(relative, _KNOWN)))
    means = np.array([np.mean(points[n], axis=0) for n in sorted(points)]).reshape(-1, 2)
    counts = np.array(sorted(points), dtype=np.float64)
    return _Curve(
        counts, np.log(counts), means[:, 0], None if errors_of_errors is None else means[:, 1]
    )


def _above(curve: _Curve, level: float) -> int:
    """Number of points before the first that is not above the floor."""
    least = math.log(_ABOVE_FLOOR * level) if level else -math.inf
    below = np.flatnonzero((curve.y <= least) | np.isneginf(curve.y))
    return int(below[0]) if below.size else len(curve.y)


def _fit(curve: _Curve, degree: int) -> tuple[Array, Array]:
    """Fit a polynomial about the mean of `x`, by least squares.

    Returns:
        Its coefficients, the constant first, and their standard errors.
    """
    design = np.vander(curve.x - curve.x.mean(), degree + 1, increasing=True)
    weights = np.ones_like(curve.x) if curve.r is None else 1 / curve.r
    weighted = design * weights[:, None]
    coefficients, *_ = np.linalg.lstsq(weighted, curve.y * weights, rcond=None)
    residual = (curve.y - design @ coefficients) * weights
    scale = float(residual @ residual) / (len(curve.x) - degree - 1)
    if curve.r is not None:
        scale = max(scale, 1.0)  # errors as known explain no less scatter than there is
    ses: Array = np.sqrt(np.diag(np.linalg.inv(weighted.T @ weighted)) * scale)
    return np.asarray(coefficients, np.float64), ses


def _quantile(curve: _Curve, degree: int) -> float:
    """Student's quantile, 95 % to both sides."""
    return float(stdtrit(len(curve.x) - degree - 1, 0.975))


class _Plateau(NamedTuple):
    level: float
    se: float


def _plateau(curve: _Curve) -> _Plateau | None:
    """Find the longest end of a curve that does not fall though the curve before it did."""
    whole = curve.upto(_above(curve, 0.0))
    for start in range(1, len(whole.x) - _PLATEAU_POINTS + 1):
        end, fall_before = whole.since(start), _steepest(whole.upto(start + 1))
        if end.width < math.log(_PLATEAU_SPAN) or fall_before is None:
            continue
        coefficients, ses = _fit(end, 1)
        fall, uncertain = -coefficients[1], _quantile(end, 1) * ses[1]
        flat = abs(fall) * end.width <= _STRAIGHT
        # A first point above all others may still be on its way down.
        scattered = fall <= uncertain and end.y[0] < end.y.max()
        if (flat or scattered) and max(fall + uncertain, 0.0) < fall_before / 2:
            (log_level,), (se,) = _fit(end, 0)
            level = math.exp(log_level)
            return _Plateau(level, level * float(se) * _quantile(end, 0) / 2)
    return None


def _falling(curve: _Curve) -> int:
    """Number of points without a few at the end over which the curve has all but stopped to fall."""
    octave = math.log(_SPAN) + 1e-9
    before = np.searchsorted(curve.x, curve.x - octave + 2e-9, side="right") - 1
    with np.errstate(invalid="ignore"):
        falls = (curve.y[before] - curve.y) / (curve.x - curve.x[before])
    falls[before < 0] = np.nan  # less than a factor of two from the first point
    count = len(falls)
    for start in range(max(1, count - _POINTS + 1), count):
        just_before = falls[:start][curve.x[:start] >= curve.x[start] - octave]
        known = just_before[np.isfinite(just_before)]
        fall_before = float(known.mean()) if known.size else 0.0
        if fall_before > 0 and (falls[start:] < _STOPPED * fall_before).all():
            return start
    return count


def _steepest(curve: _Curve) -> float | None:
    """Steepest fall between points that are a factor of two apart."""
    dx = curve.x[None, :] - curve.x[:, None]
    dy = curve.y[:, None] - curve.y[None, :]
    apart = dx > math.log(_SPAN) - 1e-9
    return float((dy[apart] / dx[apart]).max()) if apart.any() else None


class _Slope(NamedTuple):
    order: float
    scatter: float  # standard error of the regression, widened
    change: float  # of the slope, to either side of the window, and by what the floor adds
    straight: bool

    @property
    def se(self) -> float:
        return math.hypot(self.scatter, self.change)


def _slope(window: _Curve, level: float) -> _Slope:
    """Order in a window, its standard error, and whether the window is straight."""
    line, line_ses = _fit(window, 1)
    parabola, _ = _fit(window, 2)
    # Half of what the slope changes by over the window: as far may the limit be from the mean.
    bend = float(parabola[2]) * window.width
    later = float(_fit(window.since(_half(window)), 1)[0][1] - line[1])
    change = max(abs(bend), abs(later))
    straight = change <= _STRAIGHT or not any(_bends(window, degree) for degree in (2, 3))
    without = window.y + 0.5 * np.log1p(-((level / np.exp(window.y)) ** 2))
    shift = float(_fit(window._replace(y=without), 1)[0][1] - line[1])
    return _Slope(
        order=-float(line[1]),
        scatter=float(line_ses[1]) * _quantile(window, 1) / 2,
        change=math.hypot(change, shift),
        straight=straight,
    )


def _half(window: _Curve) -> int:
    """Where the later half of a window begins; it has at least three points."""
    middle = np.searchsorted(window.x, window.x[-1] - window.width / 2)
    return min(int(middle), len(window.x) - 3)


def _bends(window: _Curve, degree: int) -> bool:
    """Whether a polynomial's highest power is significant, at 5 %, if there are points to tell."""
    if len(window.x) < degree + 2:
        return False
    coefficients, ses = _fit(window, degree)
    return bool(abs(coefficients[-1]) > _quantile(window, degree) * ses[-1])


def _order(above: _Curve, level: float, total: int) -> tuple[_Curve, float, float] | str:
    """Choose the window; return it with the order and its standard error, or why there is none."""
    count = len(above.x)
    if total < _POINTS:
        return f"{total} points, and it takes {_POINTS}"
    if count == 0:
        return f"all errors are below {_ABOVE_FLOOR:g} times the floor"
    if count < _POINTS:
        return f"{count} points above {_ABOVE_FLOOR:g} times the floor, and it takes {_POINTS}"
    if above.width < math.log(_SPAN) - 1e-9:
        return f"the points span a factor of {math.exp(above.width):.2f}, and it takes {_SPAN:g}"
    slopes = []
    for start in range(count - _POINTS + 1):
        window = above.since(start)
        if window.width < math.log(_SPAN) - 1e-9:
            break
        slope = _slope(window, level)
        slopes.append(slope)
        if slope.straight and slope.se <= _WORST:
            if slope.order <= 2 * slope.se:
                return f"the errors do not fall (slope {-slope.order:.2f} ± {slope.se:.2f})"
            return window, slope.order, slope.se
    best = min(slopes, key=lambda slope: (not slope.straight, slope.se))
    what = "the curve is not straight"
    if best.straight and best.scatter > best.change:
        what = "the points scatter"
    return f"{what} ({best.order:.2f} ± {best.se:.2f} at best)"
