"""Orders of the solvers: measured against exact laws, and conditions on their coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from ... import grids
from ...coordinates import Native
from ...distributions import Gaussian, GaussianMixture
from ...processes import EDM, VE, VP
from ...sampling import solve
from ...solvers import stochastic_rk, tableaus
from ...solvers.noisy import Churn, Restart
from ...solvers.registry import Solver, methods
from ...solvers.stochastic_rk import NoiseTableau
from ...solvers.tableaus import Tableau
from ..claim import CheckT, claim
from ..draw import Draw
from ..noises import Impulses

SLOPE = "the slope between two numbers of steps, 24 and 36, is not yet the limit"
MIXTURE = GaussianMixture([0.4, 0.6], [[-0.8], [0.7]], [0.1, 0.15])
VARIANCES = torch.tensor([0.05, 0.3, 1.0], dtype=torch.float64)


# --- on the flow ----------------------------------------------------------------------------------


def flow_error(solver: Solver, n: int, high: float, low: float) -> float:
    """RMS distance from the exact flow of a mixture in one dimension, on a grid uniform in log σ.

    The process is VE, whose own time is log σ.
    """
    x = high * torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    flow, sigmas = VE().probability_flow(MIXTURE), grids.log(n, high, low)
    with torch.no_grad():
        found = solve(flow, x, method=solver, sigmas=sigmas, sigma_data=0.8).x
    return float((found - MIXTURE.flow(x, high, low)).square().mean().sqrt())


def worst_order(
    families: Iterable[str], orders: range, levels: tuple[float, float], n: int
) -> float:
    """Largest distance of a measured order from the declared one, among methods of the flow."""
    worst = 0.0
    for family in families:
        for method in methods().families[family]:
            order = method.solver.scheme.order
            if not (method.deterministic and method.fixed) or order not in orders:
                continue
            assert order is not None
            errors = [flow_error(method.solver, steps, *levels) for steps in (n, 3 * n // 2)]
            worst = max(worst, abs(math.log(errors[0] / errors[1]) / math.log(1.5) - order))
    return worst


def on_flow(
    id: str,
    title: str,
    sources: dict[str, str],
    tolerance: float = 0.2,
    because: str = SLOPE,
) -> Callable[[CheckT], CheckT]:
    """Register a claim on the orders of some methods of the flow."""
    return claim(
        id,
        title=title,
        statement="error(2n)/error(n) → 2^−p on the probability flow, with the declared p",
        sources=sources,
        tags=("solvers", "flow"),
        kind="rate",
        tolerance=tolerance,
        because=because,
    )


@on_flow(
    "order-of-runge-kutta",
    "Orders of Runge–Kutta schemes up to 4",
    {"sdekit": "theory, sections 4.7 and 4.15", "edm": "appendix B.4"},
)
def _runge_kutta(draw: Draw) -> float:
    """In σ, in the process's own time and in θ; a registered scheme is of the order it declares.

    The flow of a mixture in one dimension is known exactly, as it conserves the distribution function.
    Each method is run on it from σ = 0.9 to 0.6 with 24 and 36 steps; the largest distance of a slope
    from the declared order is the residual.
    """
    return worst_order(["Runge–Kutta schemes"], range(1, 5), (0.9, 0.6), 24)


@on_flow(
    "order-of-high-runge-kutta",
    "Orders 5 and 8",
    {"sdekit": "theory, section 4.12"},
    tolerance=0.35,
    because="errors soon reach round-off, before slopes settle",
)
def _high(draw: Draw) -> float:
    """Dormand and Prince's and Tsitouras's schemes of order 5, and DOP853.

    As the lower orders: those of order 5 from σ = 1 to 0.4 with 24 and 36 steps, that of order 8 from 3
    to 0.5 with 8 and 12.
    """
    family = ["Runge–Kutta schemes"]
    fifth = worst_order(family, range(5, 6), (1.0, 0.4), 24)
    return max(fifth, worst_order(family, range(8, 9), (3.0, 0.5), 8))


@on_flow(
    "order-of-one-step-samplers",
    "Orders of published samplers without memory",
    {"sdekit": "theory, section 4.7", "dpm": "theorem 3.2"},
)
def _one_step(draw: Draw) -> float:
    """DDIM, EDM's, DPM-Solver's and exponential Runge–Kutta schemes, among others.

    As for Runge–Kutta schemes.
    """
    return worst_order(["Published one-step samplers"], range(1, 5), (0.9, 0.6), 24)


@on_flow(
    "order-of-multistep-samplers",
    "Orders of samplers that remember",
    {"sdekit": "theory, section 4.7"},
)
def _multistep(draw: Draw) -> float:
    """A scheme of k steps that is started by one of first order is of order 2, corrected ones 3.

    Published multistep samplers, those that ship with mistakes among them, and sdekit's own; as for
    Runge–Kutta schemes, but from σ = 0.75: a short range shows the start.
    """
    families = ["Published multistep samplers", "sdekit's own"]
    return worst_order(families, range(1, 5), (0.75, 0.6), 24)


# --- on the reverse SDE ---------------------------------------------------------------------------


def adapted(solver: Solver, n: int, high: float, low: float) -> Solver:
    """Return a solver with parameters that show its limit in ``n`` steps."""
    scheme = solver.scheme
    if isinstance(scheme, Churn):
        scheme = Churn(scheme.scheme, s_churn=1.0, s_min=0.0, s_max=math.inf, s_noise=1.0)
    elif isinstance(scheme, Restart):
        interval = math.sqrt(high * low), 0.9 * high, n // 2, 1
        scheme = Restart(scheme.scheme, [interval])
    return replace(solver, scheme=scheme)


def responses(
    solver: Solver, n: int, high: float, low: float, start: torch.Tensor
) -> tuple[torch.Tensor, Impulses]:
    """Unscaled result of a solve of Gaussian data for a start, and for each draw of noise alone."""
    law = Gaussian([0.0] * 3, VARIANCES)
    native = isinstance(solver.coordinates, Native)
    process = VP() if native else EDM()
    sigmas = (grids.uniform_t if native else grids.log)(n, high, low, process)
    enter, leave = process.on_host("scale", process.on_host("time", np.array([high, low])))
    x = torch.zeros(max(2, solver.scheme.nfe_per_step) * n + 1, 3, dtype=torch.float64)
    x[0], noise = start * enter, Impulses()
    flow = solver.scheme.solves == "flow"
    problem = process.probability_flow(law) if flow else process.reverse(law)
    with torch.no_grad():
        end = solve(problem, x, method=solver, sigmas=sigmas, noise=noise, sigma_data=0.8).x
    return end / leave, noise


def weak_error(solver: Solver, n: int) -> float:
    """Relative error of the variances of the result for Gaussian data, without sampling."""
    high, low = 1.0, 0.4
    start = torch.sqrt(VARIANCES + high**2)
    end, _ = responses(adapted(solver, n, high, low), n, high, low, start)
    return float((end.square().sum(0) / (VARIANCES + low**2) - 1).square().mean().sqrt())


@claim(
    "weak-order-on-gaussians",
    title="Weak orders of all stochastic methods on Gaussian data",
    statement="|Var x_n − (λ + σ²)| = O(n^−p) with p at least the declared weak order",
    sources={"sdekit": "theory, sections 4.2 and 4.8"},
    tags=("solvers", "reverse"),
    kind="rate",
    tolerance=0.15,
    because=SLOPE,
)
def _weak(draw: Draw) -> float:
    """On Gaussian data every step is affine in state and noise, so the law of the result is exact.

    The solver is run once on a start and one standard deviation of each draw in rows of their own: the
    sum of squares is the variance. Some methods do better on Gaussian data than they declare; what
    the slope of the worst one lacks is the residual.
    """
    worst = 0.0
    for method in methods().values():
        order = method.solver.scheme.weak_order
        if not method.solver.scheme.stochastic or order is None:
            continue
        errors = [weak_error(method.solver, n) for n in (24, 36)]
        worst = max(worst, order - math.log(errors[0] / errors[1]) / math.log(1.5))
    return worst


def strong_error(name: str, n: int) -> float:
    """RMS distance of the result from the exact solution on the same Brownian path."""
    high, low = 1.0, 0.4
    v_end, v_start = VARIANCES + low**2, VARIANCES + high**2
    end, noise = responses(methods()[name].solver, n, high, low, torch.ones(3, dtype=torch.float64))
    error = (end[0] - v_end / v_start) ** 2 * v_start
    rest: dict[tuple[float, float], dict[str, torch.Tensor]] = {}
    for row, (kind, a, b) in enumerate(noise.drawn, start=1):
        rest.setdefault((a, b), {})[kind] = end[row]
    for (a, b), found in rest.items():
        before, after, h = VARIANCES + b, VARIANCES + a, b - a
        log, carry = torch.log(before / after), v_end / after
        # I = ∫ (v'/u) dB, W and H of the step; the clock runs down, which changes the sign of H.
        with_w, with_h = after * log, -after * (1 + (0.5 - before / h) * log)
        c = found.get("increment", torch.zeros(3))
        d = found.get("area", torch.zeros(3))
        variance = carry**2 * after * h / before + c**2 + d**2
        shared = c * with_w / math.sqrt(h) + d * with_h / math.sqrt(h / 12)
        error = error + variance - 2 * carry * shared
    return float(error.mean().sqrt())


@claim(
    "strong-order-on-gaussians",
    title="Strong orders on Gaussian data, from the joint law of solution and noise",
    statement="E|x_n − x|² = O(n^−2p): p = 1 for Euler–Maruyama and Heun, 2 where Σ b q = 1",
    sources={"sdekit": "theory, sections 4.2 and 4.8"},
    tags=("solvers", "reverse", "moments"),
    kind="rate",
    tolerance=0.15,
    because=SLOPE,
)
def _strong(draw: Draw) -> float:
    """The exact noise of a step, I = ∫ (v'/u) dB, and what schemes see of it are jointly Gaussian.

    With v = λ + σ²: Var I = v'h/v, Cov(I, W) = v' log(v/v'), Cov(I, H) = v'[1 + (½ − v/h) log(v/v')].
    So the mean square distance on one path is known without sampling from a solver's responses to
    its draws. For a linear drift the first integral of the path along the step, which schemes with
    Σ b q = 1 know, is all that counts up to order 2.
    """
    wanted = {
        "euler_maruyama": 1.0,
        "stochastic_heun_noise": 1.0,
        "sea_w": 1.0,
        "sea": 2.0,
        "sra1": 2.0,
        "sra3": 2.0,
        "sosra": 2.0,
        "shark": 2.0,
        "spark": 2.0,
    }
    slopes = {
        name: math.log(strong_error(name, 24) / strong_error(name, 36)) / math.log(1.5)
        for name in wanted
    }
    return max(abs(slopes[name] - order) for name, order in wanted.items())


# --- conditions -----------------------------------------------------------------------------------

Tree = tuple["Tree", ...]


@cache
def trees(order: int) -> tuple[Tree, ...]:
    """All rooted trees with so many vertices: each is the tuple of what hangs on its root."""
    found: set[Tree] = set()

    def attach(left: int, limit: int, children: Tree) -> None:
        if left == 0:
            found.add(tuple(sorted(children, key=repr)))
        for size in range(min(left, limit), 0, -1):
            for child in trees(size):
                attach(left - size, size, (*children, child))

    attach(order - 1, order - 1, ())
    return tuple(sorted(found, key=repr))


def vertices(tree: Tree) -> int:
    """Number of vertices."""
    return 1 + sum(map(vertices, tree))


def density(tree: Tree) -> int:
    """Butcher's γ."""
    return vertices(tree) * math.prod(map(density, tree))


def defect(tableau: Tableau, b: tuple[float, ...], order: int) -> float:
    """Largest miss of the conditions ``b·Φ(τ) = 1/γ(τ)`` for trees up to an order."""
    a = np.zeros((len(tableau.c),) * 2)
    for i, row in enumerate(tableau.a, start=1):
        a[i, :i] = row

    def weights(tree: Tree) -> np.ndarray:
        return np.asarray(np.prod([a @ weights(child) for child in tree], axis=0)) * np.ones(len(a))

    sums = np.abs(a.sum(1) - tableau.c).max()
    return max(
        float(sums),
        *(
            abs(float(np.dot(b, weights(tree))) - 1 / density(tree))
            for k in range(1, order + 1)
            for tree in trees(k)
        ),
    )


@claim(
    "order-conditions",
    title="Order conditions of the Runge–Kutta tableaus",
    statement="Σ b Φ(τ) = 1/γ(τ) for every rooted tree τ up to the order: Σ b = 1, Σ b c = ½, …",
    sources={"sdekit": "theory, section 4.12"},
    tags=("solvers",),
    tolerance=1e-12,
    because="round-off of published coefficients",
)
def _conditions(draw: Draw) -> float:
    """Butcher's theorem: a scheme is of order p if and only if it meets one condition for each tree.

    For all tableaus of sdekit, with trees up to their order, 8 at most; for the embedded
    methods up to theirs; and at the next order one condition at least has to fail.
    """
    found = []
    for tableau in vars(tableaus).values():
        if not isinstance(tableau, Tableau):
            continue
        found.append(defect(tableau, tableau.b, tableau.order))
        if tableau.order < 6:
            found.append(float(defect(tableau, tableau.b, tableau.order + 1) < 1e-5))
        if tableau.b_error is not None and tableau.error_order is not None:
            low = tuple(np.subtract(tableau.b, tableau.b_error))
            found.append(defect(tableau, low, tableau.error_order))
    return max(found)


@claim(
    "noise-conditions",
    title="Conditions of the stochastic Runge–Kutta tableaus",
    statement="Σb = 1; Σbp = ½, Σbc = Σb(Σa) = Σb(p² + q²/12) [= ½] for weak 2; Σbq = 1 for strong 1.5",
    sources={"sdekit": "theory, sections 4.9 and 4.10"},
    tags=("solvers", "reverse"),
    tolerance=1e-12,
    because="round-off of published coefficients",
)
def _noise_conditions(draw: Draw) -> float:
    """For additive noise, with W and H of each step; equality of the three is enough for martingales.

    For all tableaus of sdekit, by their declared orders; E[(pW + qH)²] = (p² + q²/12) h.
    """
    found = []
    for tableau in vars(stochastic_rk).values():
        if not isinstance(tableau, NoiseTableau):
            continue
        b, c, p, q = (np.array(v) for v in (tableau.b, tableau.c, tableau.p, tableau.q))
        own = np.array([sum(row) for row in tableau.a], dtype=float)
        own[0] += tableau.before
        found.append(abs(b.sum() - 1))
        drift = b @ c, b @ own, b @ (p**2 + q**2 / 12)
        wanted = drift[0] if tableau.before else 0.5
        if tableau.weak_order == 2:
            found += [abs(b @ p - 0.5), *(abs(value - wanted) for value in drift)]
        if tableau.strong_order == 1.5:
            found.append(abs(b @ q - 1))
    return float(max(found))
