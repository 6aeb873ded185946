"""The order tests notice every coefficient: halve one, and the orders are no longer the declared ones.

The damage is done to a copy: of a tableau, of the plans that a scheme writes down, or of its noise. It is
caught if one of the orders that are measured elsewhere is lost: in law or along paths.
"""

from __future__ import annotations

import dataclasses

import pytest
from noise_sources import Impulses, Scaled
from orders import NotResolved
from stochastic_errors import (
    GAUSSIAN,
    GAUSSIAN_STRONG,
    GAUSSIAN_WEAK,
    MIXTURE,
    STOCHASTIC,
    adapted,
    levels,
    strong_order,
    weak_order,
)

import sdekit as sk
from sdekit.solvers import noisy
from sdekit.solvers.linear import Line, Plan
from sdekit.solvers.noisy import NoisyScheme
from sdekit.solvers.registry import Solver
from sdekit.solvers.stochastic_rk import StochasticRK


def lost(measured, expected: float) -> bool:
    try:
        return abs(measured() - expected) > 0.25
    except (NotResolved, sk.SolveError):
        return True


def caught(name: str, solver: Solver) -> bool:
    """Whether any of the order tests fails; the quick one comes first."""
    scheme = STOCHASTIC[name].scheme
    weak = GAUSSIAN_WEAK.get(name, scheme.weak_order)
    strong = {GAUSSIAN: GAUSSIAN_STRONG.get(name, scheme.strong_order), MIXTURE: scheme.strong_order}
    if lost(lambda: weak_order(solver, (32, 64, 128)), weak):
        return True
    if isinstance(scheme, sk.Restart):
        return False
    return any(lost(lambda: strong_order(solver, law), strong[law]) for law in strong)


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


@pytest.mark.parametrize(
    ("name", "field", "place"),
    [
        (name, *entry)
        for name, solver in STOCHASTIC.items()
        if isinstance(solver.scheme, StochasticRK)
        for entry in tableau_entries(solver.scheme)
    ],
)
def test_halved_entry_of_a_tableau_is_caught(name, field, place):
    solver = STOCHASTIC[name]
    tableau = dataclasses.replace(solver.scheme.tableau)
    # Past the tableau's own check of its conditions, which would catch it at once.
    object.__setattr__(tableau, field, halved(getattr(tableau, field), place))
    assert caught(name, dataclasses.replace(solver, scheme=StochasticRK(tableau)))


def damaged(plan: Plan, line: int, kind: str, rank: int) -> Plan:
    """Halve a coefficient of a line in every step: the newest slope's or first draw's if rank is 0."""

    def halve(old: Line) -> Line:
        weights = getattr(old, kind)
        keys = sorted(weights, reverse=kind == "weights")
        if rank >= len(keys):
            return old
        return old._replace(**{kind: {**weights, keys[rank]: weights[keys[rank]] / 2}})

    steps = [
        (start, [halve(old) if i == line else old for i, old in enumerate(lines)])
        for start, lines in plan.steps
    ]
    return plan._replace(steps=steps)


def plan_entries(name: str) -> set[tuple[int, str, int]]:
    """All places of coefficients in the plan of a method."""
    plans: list[Plan] = []

    class Spy(noisy.Runner):
        def __init__(self, view, plan, *args, **kwargs):
            plans.append(plan)
            super().__init__(view, plan, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noisy, "Runner", Spy)
        weak_order_of_few_steps(name)
    return {
        (i, kind, rank)
        for _, lines in plans[0].steps
        for i, line in enumerate(lines)
        for kind in ("weights", "noise")
        for rank in range(len(getattr(line, kind)))
    }
