"""The order tests notice every coefficient: halve one, and the orders are not the declared ones.

The damage is done to a copy: of a tableau, of the plans that a scheme writes down, or of its noise.
It is caught if one of the orders that are measured elsewhere is lost: in law or along paths.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from noise_sources import Scaled
from orders import NotResolved
from stochastic_errors import (
    GAUSSIAN,
    GAUSSIAN_STRONG,
    GAUSSIAN_WEAK,
    MIXTURE,
    STOCHASTIC,
    law_error,
    law_steps,
    strong_order,
)

import sdekit as sk
from sdekit.solvers import noisy
from sdekit.solvers.linear import Line, Plan
from sdekit.solvers.noisy import NoisyScheme
from sdekit.solvers.registry import Solver
from sdekit.solvers.stochastic_rk import StochasticRK
from sdekit.theory.noises import Impulses


def caught(name: str, solver: Solver) -> bool:
    """Whether any of the order tests fails; the quick one comes first."""
    scheme = STOCHASTIC[name].scheme
    try:
        steps = law_steps(name)[:: len(law_steps(name)) - 1]
        slope = np.diff(np.log([law_error(solver, n) for n in steps])) / np.diff(np.log(steps))
        if abs(-slope - GAUSSIAN_WEAK.get(name, scheme.weak_order)) > 0.25:
            return True
        if isinstance(scheme, sk.Restart):
            return False
        orders = {GAUSSIAN: GAUSSIAN_STRONG.get(name, scheme.strong_order)}
        orders[MIXTURE] = scheme.strong_order
        return any(abs(strong_order(solver, law) - order) > 0.25 for law, order in orders.items())
    except (NotResolved, sk.SolveError):
        return True


@pytest.mark.parametrize("name", ["stochastic_adams4", "sa_solver_2", "sra3_theta", "restart"])
def test_nothing_is_caught_where_nothing_is_damaged(name):
    assert not caught(name, STOCHASTIC[name])


def tableau_entries(scheme: StochasticRK) -> list[tuple[str, tuple[int, ...]]]:
    """Names and places of the coefficients that are not zero."""
    tableau = scheme.tableau
    entries: list[tuple[str, tuple[int, ...]]] = [
        (field, (i,))
        for field in ("c", "b", "p", "q")
        for i, value in enumerate(getattr(tableau, field))
        if value
    ]
    entries += [("a", (i, j)) for i, row in enumerate(tableau.a) for j, v in enumerate(row) if v]
    return entries + ([("before", ())] if tableau.before else [])


def halved(value, place: tuple[int, ...]):
    if not place:
        return value / 2
    i, *rest = place
    return tuple(halved(v, tuple(rest)) if k == i else v for k, v in enumerate(value))


# Tableaus that are registered in two coordinates are damaged in one.
TABLEAUS = {
    s.scheme.tableau: n for n, s in STOCHASTIC.items() if isinstance(s.scheme, StochasticRK)
}


@pytest.mark.parametrize("name", TABLEAUS.values())
def test_every_entry_of_a_tableau_counts(name):
    solver, missed = STOCHASTIC[name], []
    for field, place in tableau_entries(solver.scheme):
        tableau = dataclasses.replace(solver.scheme.tableau)
        # Past the tableau's own check of its conditions, which would catch it at once.
        object.__setattr__(tableau, field, halved(getattr(tableau, field), place))
        if not caught(name, dataclasses.replace(solver, scheme=StochasticRK(tableau))):
            missed.append((field, place))
    assert not missed


# The first inner stage of seeds_3 is there for the third order of the flow, which is none of the SDE's;
# so is the part of the first slope in its second stage.
UNSEEN = {"seeds_3": {(0, "noise", 0), (0, "weights", 0), (1, "weights", 1)}}


def ranked(line: Line, kind: str) -> dict[int, float]:
    """Coefficients of slopes, newest first, or of draws."""
    return dict(sorted(getattr(line, kind).items(), reverse=kind == "weights"))


def damaged(plan: Plan, line: int, kind: str, rank: int) -> Plan:
    """Halve a coefficient of a line in every step."""

    def halve(old: Line) -> Line:
        weights = ranked(old, kind)
        return old._replace(
            **{kind: {k: w / 2 if i == rank else w for i, (k, w) in enumerate(weights.items())}}
        )

    steps = [
        (start, [halve(old) if i == line else old for i, old in enumerate(lines)])
        for start, lines in plan.steps
    ]
    return plan._replace(steps=steps)


# Plans of others once more, in other coordinates.
REPEATED = ("sa_solver_3", "sa_solver_4", "stochastic_heun_noise", "edm_sde_t")


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, s in STOCHASTIC.items()
        if isinstance(s.scheme, NoisyScheme)
        and not isinstance(s.scheme, StochasticRK)
        and name not in REPEATED
    ],
)
def test_every_coefficient_of_a_plan_counts(name, monkeypatch):
    plans, change = [], lambda plan: plan

    class Damaged(noisy.Runner):
        def __init__(self, view, plan, *args, **kwargs) -> None:
            plans.append(plan)
            super().__init__(view, change(plan), *args, **kwargs)

    monkeypatch.setattr(noisy, "Runner", Damaged)
    law_error(STOCHASTIC[name], 6)
    own = 3 if name == "restart" else None  # the lines after these are no part of every step
    places = {
        (i, kind, rank)
        for _, lines in plans[0].steps
        for i, line in enumerate(lines[:own])
        for kind in ("weights", "noise")
        for rank, weight in enumerate(ranked(line, kind).values())
        if abs(weight) > 1e-12
    }
    missed = []
    for place in sorted(places - UNSEEN.get(name, set())):
        change = functools.partial(lambda plan, place: damaged(plan, *place), place=place)
        if not caught(name, STOCHASTIC[name]):
            missed.append(place)
    assert not missed


@pytest.mark.parametrize("name", STOCHASTIC)
def test_halved_noise_leaves_an_error_that_does_not_converge(name):
    coarse, fine = (
        law_error(STOCHASTIC[name], n, noise=lambda: Scaled(Impulses())) for n in (24, 96)
    )
    assert fine > 0.5 * coarse > 0.01


# --- schemes that are not plans -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HalfDriftNoise(sk.Noise):
    def drift(self, p, eta):
        return tuple(c / 2 for c in super().drift(p, eta))


@dataclasses.dataclass(frozen=True)
class HalfDriftNative(sk.Native):
    def bind(self, process, sigma_data=None):
        return HalfDriftNative(process)

    def drift(self, p, eta):
        return tuple(c / 2 for c in super().drift(p, eta))


@pytest.mark.parametrize(
    ("name", "coordinates"),
    [
        ("euler_maruyama", HalfDriftNoise()),
        ("euler_maruyama_t", HalfDriftNative()),
        ("milstein_t", HalfDriftNative()),
    ],
)
def test_halved_drift_is_caught(name, coordinates):
    assert caught(name, dataclasses.replace(STOCHASTIC[name], coordinates=coordinates))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["state", "denoiser", "noise"])
def test_halved_coefficient_of_reverse_diffusion_is_caught(which):
    class Broken(sk.ReverseDiffusion):
        def coefficients(self, view, grid):
            halves = super().coefficients(view, grid)
            return tuple(c / 2 if k == which else c for k, c in enumerate(halves))

    solver = dataclasses.replace(STOCHASTIC["reverse_diffusion"], scheme=Broken())
    assert caught("reverse_diffusion", solver)
