"""Converters of η: to the formulas of others, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk

levels = st.tuples(st.floats(0.01, 100.0), st.floats(0.3, 0.95)).map(lambda v: (v[0], v[0] * v[1]))
PAIRS = [
    (sk.eta.from_ddim, sk.eta.to_ddim),
    (sk.eta.from_azula, sk.eta.to_azula),
    (sk.eta.from_churn, sk.eta.to_churn),
]


def variance(eta, high, low):
    """Noise of our exact step in `LogData`, in the unscaled state."""
    return low**2 * (1 - (low / high) ** (2 * eta**2))


@given(st.floats(0.05, 2.0), levels)
def test_there_and_back(eta, step):
    for there, back in PAIRS:
        np.testing.assert_allclose(there(back(eta, *step), *step), eta, rtol=1e-7)
    for there, back in (
        (sk.eta.from_k_diffusion_sde, sk.eta.to_k_diffusion_sde),
        (sk.eta.from_sa_solver, sk.eta.to_sa_solver),
    ):
        np.testing.assert_allclose(there(back(eta)), eta, rtol=1e-12)
    np.testing.assert_allclose(
        sk.eta.from_beta(sk.eta.to_beta(eta, step[0], 0.3), step[0], 0.3), eta, rtol=1e-12
    )


@given(st.floats(0.05, 2.0), levels)
def test_the_noise_of_a_step_is_theirs(eta, step):
    """Variances, as the papers and programs write them."""
    high, low = step
    ours = variance(eta, high, low)
    ddim = sk.eta.to_ddim(eta, high, low)
    np.testing.assert_allclose(ddim**2 * low**2 * (1 - low**2 / high**2), ours, rtol=1e-9)
    azula = sk.eta.to_azula(eta, high, low)
    np.testing.assert_allclose(azula * low**2 * (1 - low**2 / high**2), ours, rtol=1e-9)
    # k-diffusion: σ' sqrt(1 − exp(−2 eta h)), h the step in λ.
    h, theirs = np.log(high / low), sk.eta.to_k_diffusion_sde(eta)
    np.testing.assert_allclose(low**2 * -np.expm1(-2 * theirs * h), ours, rtol=1e-9)
    # Churn adds noise at σ, and the flow of constant D shrinks it by σ'/σ̂.
    raised = high * (1 + sk.eta.to_churn(eta, high, low))
    np.testing.assert_allclose((raised**2 - high**2) * (low / raised) ** 2, ours, rtol=1e-9)


def test_short_steps_agree():
    for convert in (sk.eta.to_ddim, lambda *a: np.sqrt(sk.eta.to_azula(*a))):
        assert convert(0.7, 1.0, 0.999) == pytest.approx(0.7, rel=1e-3)
    assert sk.eta.to_ddim(1.0, 3.0, 0.1) == 1
    assert sk.eta.to_ddim(0.0, 3.0, 0.1) == 0
    # EDM's equation 6 with β = σ̇/σ is Anderson's.
    assert sk.eta.from_beta(1 / 3.0, 3.0) == pytest.approx(1.0)


def test_arrays_and_refusals():
    grid = sk.grids.karras(5, 80.0, 0.1)
    assert sk.eta.to_ddim(0.5, grid[:-1], grid[1:]).shape == (5,)
    with pytest.raises(ValueError, match="levels must fall"):
        sk.eta.to_ddim(0.5, 1.0, 2.0)
    with pytest.raises(ValueError, match="eta = -1"):
        sk.eta.to_sa_solver(-1.0)
    with pytest.raises(ValueError, match="no more noise"):
        sk.eta.from_ddim(1.2, 3.0, 0.1)
