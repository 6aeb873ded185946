"""Weak orders of all stochastic methods that declare one, on Gaussian data: without Monte Carlo.

Every step is linear there, so that the law of the result is known exactly (theory 4.11a).
"""

from __future__ import annotations

import dataclasses

import pytest
from stochastic_errors import (
    GAUSSIAN_WEAK,
    OF_ONE_ETA,
    OF_THE_SDE,
    STOCHASTIC,
    law_steps,
    weak_order,
)

import sdekit as sk
from sdekit.solvers.linear import LinearScheme


@pytest.mark.parametrize("name", STOCHASTIC)
def test_weak_order_by_propagating_the_law(name):
    solver = STOCHASTIC[name]
    expected = GAUSSIAN_WEAK.get(name, solver.scheme.weak_order)
    assert weak_order(solver, law_steps(name)) == pytest.approx(expected, abs=0.25)


VARIED = [name for name in OF_THE_SDE if name not in OF_ONE_ETA]


@pytest.mark.parametrize(
    ("name", "eta"),
    [*((name, 0.7) for name in VARIED[::2]), *((name, 1.4) for name in VARIED[1::4])],
)
def test_weak_order_for_less_and_for_more_noise(name, eta):
    """Shifted Euler is of order 2 on Gaussian data where drifts are martingales: for ``η = 1``."""
    solver = STOCHASTIC[name]
    expected = {**GAUSSIAN_WEAK, "sea": 1.0, "sea_theta": 1.0}.get(name, solver.scheme.weak_order)
    assert weak_order(solver, eta=eta) == pytest.approx(expected, abs=0.35)


DRIVEN = {
    name: entry.solver
    for name, entry in sk.methods().items()
    if isinstance(entry.solver.scheme, LinearScheme)
    and entry.deterministic
    and not isinstance(entry.solver.coordinates, sk.Native | sk.Velocity)
    and name != "bayesian_adams"  # whose prior is one for the flow
}


@pytest.mark.parametrize("name", DRIVEN)
def test_any_scheme_of_the_flow_has_its_weak_order_up_to_2(name):
    """`Stochastic` declares it, for it gives to every stage what the path does up to there."""
    scheme = sk.Stochastic(DRIVEN[name].scheme)
    solver = dataclasses.replace(DRIVEN[name], scheme=scheme)
    assert scheme.weak_order == min(DRIVEN[name].scheme.order, 2)
    assert weak_order(solver, (48, 72, 108)) > scheme.weak_order - 0.25
