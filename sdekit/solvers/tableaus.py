"""Explicit Runge–Kutta tableaux: data, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import dop853

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tableau:
    """An explicit Butcher tableau, checked when it is made.

    An interpolant gives the solution within a step from ``τ`` to ``τ + dt``,
    ``u(τ + s dt) = u + dt Σ_j b_j(s) k_j``. The slopes ``k_j`` are, in this order: the stages; the
    slope at the end of the step, unless the last stage is just that (``fsal``); and the extra
    stages. It is continuously differentiable from step to step.

    Attributes:
        c: Stage times, one per stage, the first 0.
        a: Rows of the stage matrix below the diagonal, one fewer than stages.
        b: Weights.
        order: Order of the weights ``b``.
        b_error: Weights minus those of the embedded method, if there is one.
        error_order: Order of the embedded method.
        b_error_low: Weights minus those of a second embedded method, of lower order than the first.
            Both are over the stages: the errors are ``e = dt Σ_j w_j k_j``. With norms that are root
            mean squares over tolerances, the error of the step is
            ``‖e‖² / sqrt(‖e‖² + 0.01 ‖e_low‖²)`` (Hairer, Nørsett & Wanner 1993).
        error_order_low: Order of that one.
        interpolant: Row ``j`` holds the coefficients of ``s, s², …`` in ``b_j(s)``, a row per slope.
        interpolant_order: Order of the interpolant: one step's error within it is
            ``O(dt^(order + 1))``.
        extra: Stages that serve the interpolant only: stage time, and row over all slopes before.

    Raises:
        ValueError: If shapes disagree; if ``Σ_j a_ij = c_i``, ``Σ b = 1`` or ``Σ b_error = 0`` fail; or
            if the interpolant is not consistent, ``Σ_j b_j(s) = s``, or does not join values or slopes
            of neighbouring steps.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    b_error: tuple[float, ...] | None = None
    error_order: int | None = None
    b_error_low: tuple[float, ...] | None = None
    error_order_low: int | None = None
    interpolant: tuple[tuple[float, ...], ...] | None = None
    interpolant_order: int | None = None
    extra: tuple[tuple[float, tuple[float, ...]], ...] = ()

    def __post_init__(self) -> None:
        stages = len(self.c)
        if [len(row) for row in self.a] != list(range(1, stages)) or len(self.b) != stages:
            raise ValueError(f"a tableau of {stages} stages needs rows of 1 … {stages - 1} entries")
        if self.c[0] != 0:
            raise ValueError(f"the first stage time of an explicit tableau is 0, not {self.c[0]}")
        if (self.b_error is None) != (self.error_order is None):
            raise ValueError("b_error and error_order belong together; give both or neither")
        if not np.allclose([sum(row) for row in self.a], self.c[1:], rtol=0, atol=1e-12):
            raise ValueError("each row of a tableau must sum to its stage time c")
        if abs(sum(self.b) - 1) > 1e-12:
            raise ValueError(f"the weights of a tableau must sum to 1, not {sum(self.b)}")
        if self.b_error is None and self.b_error_low is not None:
            raise ValueError("b_error_low corrects the error of b_error; give that, too")
        for weights in (self.b_error, self.b_error_low):
            if weights is not None and len(weights) != stages:
                raise ValueError(f"{len(weights)} error weights for {stages} stages")
            if weights is not None and not abs(sum(weights)) <= 1e-12:
                raise ValueError("error weights must sum to 0: both methods are consistent")
        if (self.b_error_low is None) != (self.error_order_low is None):
            raise ValueError(
                "b_error_low and error_order_low belong together; give both or neither"
            )
        if (self.interpolant is None) != (self.interpolant_order is None):
            raise ValueError(
                "interpolant and interpolant_order belong together; give both or neither"
            )
        if self.interpolant is not None:
            self._check_interpolant(self.interpolant)
        elif self.extra:
            raise ValueError("extra stages serve an interpolant, but there is none")

    def _check_interpolant(self, rows: tuple[tuple[float, ...], ...]) -> None:
        """Check shapes, extra stages, consistency, and values and slopes at both ends."""
        end = len(self.c) - 1 if self.fsal else len(self.c)  # the slope at the end of the step
        for i, (time, row) in enumerate(self.extra, start=end + 1):
            if len(row) != i:
                raise ValueError(f"the row of an extra stage has {len(row)} entries for {i} slopes")
            if not abs(sum(row) - time) <= 1e-12:
                raise ValueError(f"the row of an extra stage must sum to its time {time}")
        if len(rows) != self.slopes or len({len(row) for row in rows}) != 1:
            raise ValueError(
                f"the interpolant needs {self.slopes} rows, one per slope, of one length"
            )
        table = np.array(rows)
        slopes, degree = table.shape
        weights = np.append(self.b, np.zeros(slopes - len(self.b)))
        conditions = {
            "satisfy Σ_j b_j(s) = s": (table.sum(axis=0), np.eye(1, degree)[0]),
            "have the weights b at s = 1": (table.sum(axis=1), weights),
            "have the slope k_0 at s = 0": (table[:, 0], np.eye(slopes)[0]),
            "have the slope at the end of the step at s = 1": (
                table @ np.arange(1, degree + 1),
                np.eye(slopes)[end],
            ),
        }
        for condition, (value, required) in conditions.items():
            if not np.allclose(value, required, rtol=0, atol=1e-11):
                raise ValueError(f"the interpolant must {condition}")

    @property
    def stages(self) -> int:
        """Stages that the weights ``b`` use: a last one that serves the error only is left out."""
        return max(i + 1 for i, weight in enumerate(self.b) if weight)

    @property
    def fsal(self) -> bool:
        """Whether the last stage is the first of the next step."""
        return len(self.a) > 0 and self.c[-1] == 1 and self.a[-1] == self.b[:-1] and not self.b[-1]

    @property
    def estimate_order(self) -> int | None:
        """Order of the error estimate, ``O(dt^(order + 1))``.

        For small steps that of two embedded methods is ``10 ‖e‖²/‖e_low‖``: in DOP853, of methods of
        order 5 and 3, ``O(dt^8)``, and its step sizes go with the eighth root of it.
        """
        if self.error_order is None or self.error_order_low is None:
            return self.error_order
        return 2 * self.error_order - self.error_order_low

    @property
    def slopes(self) -> int:
        """Slopes that the interpolant may use: of stages, of the end of the step, and extra ones."""
        return len(self.c) + (0 if self.fsal else 1) + len(self.extra)

    def weights_at(self, s: Array) -> Array:
        """Return the weights ``b_j(s)`` of the interpolant.

        Args:
            s: Fractions of a step.

        Returns:
            One row per fraction, with one weight per slope.

        Raises:
            ValueError: If the tableau has no interpolant.
        """
        if self.interpolant is None:
            raise ValueError("the tableau has no interpolant")
        coefficients = np.array([(0.0, *row) for row in self.interpolant])
        return np.asarray(np.polynomial.polynomial.polyval(s, coefficients.T).T, dtype=np.float64)


def ralston(alpha: float) -> Tableau:
    """Return the method of order 2 with stages at 0 and ``α``: ``b = (1 − 1/(2α), 1/(2α))``.

    It is the midpoint rule for ``α = 1/2``, Heun's for 1 and Ralston's (1962), whose error bound is the
    smallest, for 2/3. Karras et al. (2022), algorithm 3, are this family.

    Raises:
        ValueError: If ``α`` is not in (0, 1].
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha = {alpha}; the second stage lies inside the step: 0 < alpha <= 1")
    return Tableau(c=(0.0, alpha), a=((alpha,),), b=(1 - 1 / (2 * alpha), 1 / (2 * alpha)), order=2)


EULER = Tableau(c=(0.0,), a=(), b=(1.0,), order=1)
"""Euler (1768)."""
MIDPOINT = Tableau(c=(0.0, 0.5), a=((0.5,),), b=(0.0, 1.0), order=2)
"""Runge (1895)."""
HEUN = Tableau(c=(0.0, 1.0), a=((1.0,),), b=(0.5, 0.5), order=2)
"""Heun (1900), the trapezoidal rule."""
RALSTON = ralston(2 / 3)
"""Ralston (1962), of the smallest error bound."""
RK4 = Tableau(
    c=(0.0, 0.5, 0.5, 1.0),
    a=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    order=4,
)
"""Kutta (1901)."""

BOGACKI_SHAMPINE = Tableau(
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    a=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    order=3,
    b_error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    error_order=2,
    interpolant=((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)),
    interpolant_order=3,  # Hermite's cubic
)
"""Bogacki & Shampine (1989)."""

DORMAND_PRINCE = Tableau(
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    order=5,
    b_error=(
        35 / 384 - 1951 / 21600,
        0.0,
        500 / 1113 - 22642 / 50085,
        125 / 192 - 451 / 720,
        -2187 / 6784 + 12231 / 42400,
        11 / 84 - 649 / 6300,
        -1 / 60,
    ),
    error_order=4,
    interpolant=(
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
    interpolant_order=4,
)
"""Dormand & Prince (1980), with the error weights and the interpolant of Shampine (1986)."""

TSITOURAS = Tableau(
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    a=(
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    ),
    b=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
        0.0,
    ),
    order=5,
    b_error=(
        0.0017800110522257773,
        0.0008164344596567463,
        -0.007880878010261994,
        0.1447110071732629,
        -0.5823571654525552,
        0.45808210592918686,
        -1 / 66,
    ),
    error_order=4,
    interpolant=(
        (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0.0, 0.1317, -0.2234, 0.1017),
        (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
        (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
        (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
        (0.0, 1.5, -4.0, 2.5),
    ),
    interpolant_order=4,
)
"""Tsitouras (2011), with his interpolant."""

DOP853 = Tableau(
    c=dop853.C,
    a=dop853.A,
    b=dop853.B,
    order=8,
    b_error=dop853.B_ERROR,
    error_order=5,
    b_error_low=dop853.B_ERROR_LOW,
    error_order_low=3,
    interpolant=dop853.INTERPOLANT,
    interpolant_order=7,
    extra=dop853.EXTRA,
)
"""Dormand & Prince's method of order 8, of Hairer, Nørsett & Wanner (1993); embedded are methods of
order 5 and 3."""
