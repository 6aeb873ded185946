"""Explicit Runge–Kutta tableaux: data, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tableau:
    """An explicit Butcher tableau, checked when it is made.

    Attributes:
        c: Stage times, one per stage, the first 0.
        a: Rows of the stage matrix below the diagonal, one fewer than stages.
        b: Weights.
        order: Order of the weights ``b``.
        b_error: Weights minus those of the embedded method, if there is one.
        error_order: Order of the embedded method.

    Raises:
        ValueError: If shapes disagree, or ``Σ_j a_ij = c_i``, ``Σ b = 1`` or ``Σ b_error = 0`` fail.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    b_error: tuple[float, ...] | None = None
    error_order: int | None = None

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
        if self.b_error is not None and abs(sum(self.b_error)) > 1e-12:
            raise ValueError("error weights must sum to 0: both methods are consistent")

    @property
    def stages(self) -> int:
        """Stages that the weights ``b`` use: a last one that serves the error only is left out."""
        return max(i + 1 for i, weight in enumerate(self.b) if weight)

    @property
    def fsal(self) -> bool:
        """Whether the last stage is the first of the next step."""
        return len(self.a) > 0 and self.c[-1] == 1 and self.a[-1] == self.b[:-1] and not self.b[-1]


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
MIDPOINT = Tableau(c=(0.0, 0.5), a=((0.5,),), b=(0.0, 1.0), order=2)
HEUN = Tableau(c=(0.0, 1.0), a=((1.0,),), b=(0.5, 0.5), order=2)
RALSTON = ralston(2 / 3)
RK4 = Tableau(
    c=(0.0, 0.5, 0.5, 1.0),
    a=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    order=4,
)
# Bogacki & Shampine (1989).
BOGACKI_SHAMPINE = Tableau(
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    a=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    order=3,
    b_error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    error_order=2,
)
# Dormand & Prince (1980), with the error weights of Shampine (1986).
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
)
# Tsitouras (2011).
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
)
# Dormand & Prince's method of order 8 with 12 stages, in the digits of Hairer, Nørsett & Wanner (1993),
# DOP853. The error is that of their embedded method of order 5; the other one, of order 3, is not used.
# fmt: off
DOP853 = Tableau(
    c=(
        0.0, 0.05260015195876773, 0.0789002279381516, 0.1183503419072274, 0.2816496580927726,
        0.3333333333333333, 0.25, 0.3076923076923077, 0.6512820512820513, 0.6, 0.8571428571428571,
        1.0,
    ),
    a=(
        (0.05260015195876773,),
        (0.0197250569845379, 0.0591751709536137),
        (0.02958758547680685, 0.0, 0.08876275643042054),
        (0.2413651341592667, 0.0, -0.8845494793282861, 0.924834003261792),
        (0.037037037037037035, 0.0, 0.0, 0.17082860872947386, 0.12546768756682242),
        (0.037109375, 0.0, 0.0, 0.17025221101954405, 0.06021653898045596, -0.017578125),
        (
            0.03709200011850479, 0.0, 0.0, 0.17038392571223998, 0.10726203044637328,
            -0.015319437748624402, 0.008273789163814023,
        ),
        (
            0.6241109587160757, 0.0, 0.0, -3.3608926294469414, -0.868219346841726,
            27.59209969944671, 20.154067550477894, -43.48988418106996,
        ),
        (
            0.47766253643826434, 0.0, 0.0, -2.4881146199716677, -0.590290826836843,
            21.230051448181193, 15.279233632882423, -33.28821096898486, -0.020331201708508627,
        ),
        (
            -0.9371424300859873, 0.0, 0.0, 5.186372428844064, 1.0914373489967295,
            -8.149787010746927, -18.52006565999696, 22.739487099350505, 2.4936055526796523,
            -3.0467644718982196,
        ),
        (
            2.273310147516538, 0.0, 0.0, -10.53449546673725, -2.0008720582248625, -17.9589318631188,
            27.94888452941996, -2.8589982771350235, -8.87285693353063, 12.360567175794303,
            0.6433927460157636,
        ),
    ),
    b=(
        0.054293734116568765, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003,
        -5.801203960010585, 0.3111643669578199, -0.1521609496625161, 0.20136540080403034,
        0.04471061572777259,
    ),
    order=8,
    b_error=(
        0.01312004499419488, 0.0, 0.0, 0.0, 0.0, -1.2251564463762044, -0.4957589496572502,
        1.6643771824549864, -0.35032884874997366, 0.3341791187130175, 0.08192320648511571,
        -0.022355307863886294,
    ),
    error_order=5,
)
# fmt: on
