"""Weak orders of all stochastic methods that declare one, on Gaussian data: without Monte Carlo.

Every step is linear there, so that the law of the result is known exactly (theory 4.11a).
"""

from __future__ import annotations

import pytest
from stochastic_errors import GAUSSIAN_WEAK, OF_THE_SDE, STOCHASTIC, weak_order


@pytest.mark.parametrize("name", STOCHASTIC)
def test_weak_order_by_propagating_the_law(name):
    solver = STOCHASTIC[name]
    expected = GAUSSIAN_WEAK.get(name, solver.scheme.weak_order)
    assert weak_order(solver) == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("eta", [0.7, 1.4])
@pytest.mark.parametrize("name", [n for n in OF_THE_SDE if not n.startswith(("sea_m", "er_sde"))])
def test_weak_order_for_less_and_for_more_noise(name, eta):
    """Shifted Euler's stage is at the start of the step, where drifts are those of its end in the
    mean only if they are martingales: for ``η = 1``."""
    solver = STOCHASTIC[name]
    expected = {**GAUSSIAN_WEAK, "sea": 1.0, "sea_theta": 1.0}.get(name, solver.scheme.weak_order)
    assert weak_order(solver, (96, 144, 216), eta=eta) == pytest.approx(expected, abs=0.35)
