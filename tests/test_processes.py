"""Affine processes: derived pairs, laws and inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit.distributions import GaussianMixture

DOUBLE = torch.float64
ALPHAS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def polynomial(c1: float, c2: float) -> sk.AffineSDE:
    return sk.AffineSDE(scale=lambda t: 1 / (1 + c1 * t), sigma=lambda t: t + c2 * t**2)


processes = st.one_of(
    st.builds(sk.VP, st.floats(0.01, 1.0), st.floats(5.0, 30.0)),
    st.builds(sk.SubVP, st.floats(0.01, 1.0), st.floats(5.0, 30.0)),
    st.builds(sk.VE, st.floats(1e-3, 0.1), st.floats(10.0, 300.0)),
    st.builds(sk.EDM, st.floats(1e-3, 0.1), st.floats(10.0, 300.0)),
    st.builds(sk.CosineVP, st.floats(1e-3, 0.05)),
    st.just(sk.RectifiedFlow()),
    st.just(sk.DiscreteVP(ALPHAS)),
    st.builds(polynomial, st.floats(0.0, 3.0), st.floats(0.0, 20.0)),
)
fractions = st.floats(0.05, 0.95)


def inside(process: sk.AffineSDE, fraction: float) -> torch.Tensor:
    return torch.tensor(process.t_min + fraction * (process.T - process.t_min), dtype=DOUBLE)


@settings(deadline=None, max_examples=80)
@given(process=processes, fraction=fractions)
def test_closed_forms_equal_the_derived_ones(process, fraction):
    """f = ṡ/s, g² = s² dσ²/dt, std = sσ and the rates, against AffineSDE's automatic derivatives."""
    t = inside(process, fraction)
    base = sk.AffineSDE(scale=process.scale, sigma=process.sigma, T=process.T, t_min=0.0)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(process.f(t), base.f(t), **close)
    torch.testing.assert_close(process.g(t), base.g(t), **close)
    torch.testing.assert_close(process.std(t), base.std(t), **close)
    for rate, derived in zip(process.rates(t), base.rates(t), strict=True):
        torch.testing.assert_close(rate, derived, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(process.time(process.sigma(t)), t, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    # The discrete schedule's g has a kink at each of its 1000 knots: no work for a quadrature.
    process=processes.filter(lambda p: p.sigma_max < math.inf and not isinstance(p, sk.DiscreteVP)),
    fraction=fractions,
)
def test_f_and_g_give_back_scale_and_sigma(process, fraction):
    """(scale, sigma) → (f, g) → (scale, sigma) by quadrature, up to the noise already there at 0."""
    t = inside(process, fraction)
    back = sk.AffineSDE(f=process.f, g=process.g, T=process.T, t_min=process.t_min)
    zero = torch.zeros((), dtype=DOUBLE)
    scale = process.scale(t) / process.scale(zero)
    variance = process.scale(zero) ** 2 * (process.sigma(t) ** 2 - process.sigma(zero) ** 2)
    torch.testing.assert_close(back.scale(t), scale, rtol=1e-9, atol=0)
    torch.testing.assert_close(back.sigma(t), torch.sqrt(variance), rtol=1e-9, atol=0)


@settings(deadline=None, max_examples=40)
@given(process=processes, fraction=fractions)
def test_variance_ode(process, fraction):
    """d(n²)/dt = 2 f n² + g² for the kernel's variance n² = s² σ², and dm/dt = f m for its mean."""
    t = inside(process, fraction)
    derivative = torch.func.jvp(lambda u: process.std(u) ** 2, (t,), (torch.ones_like(t),))[1]
    expected = 2 * process.f(t) * process.std(t) ** 2 + process.g(t) ** 2
    torch.testing.assert_close(derivative, expected, rtol=1e-8, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(process=processes, a=fractions, b=fractions, c=fractions)
def test_transitions_compose(process, a, b, c):
    """Chapman–Kolmogorov: r → t → u has the law of r → u, and data → r → t that of data → t."""
    r, t, u = (inside(process, v) for v in sorted((a, b, c)))
    x = torch.ones((1, 1), dtype=DOUBLE)
    mean, std = process.transition(process.transition(x, r, t)[0], t, u)
    std_rt = process.transition(x, r, t)[1]
    direct_mean, direct_std = process.transition(x, r, u)
    ratio = process.transition(x, t, u)[0]
    torch.testing.assert_close(mean, direct_mean)
    through = torch.sqrt(std**2 + (ratio[0, 0] * std_rt) ** 2)
    torch.testing.assert_close(through, direct_std, rtol=1e-7, atol=1e-9)
    start_mean, start_std = process.marginal(x, r)
    end_mean, end_std = process.marginal(x, t)
    step_mean, step_std = process.transition(start_mean, r, t)
    torch.testing.assert_close(step_mean, end_mean)
    total = torch.sqrt(step_std**2 + (step_mean / start_mean)[0, 0] ** 2 * start_std**2)
    torch.testing.assert_close(total, end_std, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("process", "sigma_min", "sigma_max"),
    [
        (sk.VP(), math.sqrt(math.expm1(0.1e-3 + 9.95e-6)), math.sqrt(math.expm1(10.05))),
        (sk.EDM(), 0.002, 80.0),
        (sk.VE(0.02, 70.0), 0.02, 70.0),
        (sk.RectifiedFlow(), 1e-3 / 0.999, math.inf),
        (sk.CosineVP(), None, math.inf),
        (sk.DiscreteVP(ALPHAS), None, math.sqrt((1 - ALPHAS[-1]) / ALPHAS[-1])),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, sk.AffineSDE) else "",
)
def test_ends(process, sigma_min, sigma_max):
    assert process.sigma_max == pytest.approx(sigma_max)
    if sigma_min is not None:
        assert process.sigma_min == pytest.approx(sigma_min)
    t = process.on_host("time", process.sigma_max)
    assert float(t) == pytest.approx(process.T, abs=1e-12)
    std = float(process.on_host("std", process.T))
    x = process.prior_sample((20000, 2), seed=0, dtype=DOUBLE)
    assert float(x.std()) == pytest.approx(std, rel=0.02)
    again = process.prior_sample((20000, 2), seed=0, dtype=DOUBLE)
    assert torch.equal(x, again)
    normal = torch.distributions.Normal(0.0, std)
    expected = normal.log_prob(x[:5].float()).sum(1).double()
    torch.testing.assert_close(process.prior_log_prob(x[:5]), expected, rtol=1e-5, atol=1e-5)


def test_discrete_schedule_is_monotone_below_its_levels():
    process = sk.DiscreteVP([0.99, 0.98, 0.01])
    sigma = process.on_host("sigma", np.linspace(0, 1, 50))
    assert (np.diff(sigma) > 0).all()
    assert np.isfinite(process.on_host("g", np.linspace(0, 1, 50))).all()


def test_discrete_schedule_is_exact_at_its_levels():
    process = sk.DiscreteVP(ALPHAS)
    t = torch.arange(1, 1001, dtype=DOUBLE) / 1000
    torch.testing.assert_close(process.scale(t) ** 2, torch.from_numpy(ALPHAS), rtol=1e-13, atol=0)


@settings(deadline=None, max_examples=30)
@given(process=processes, fraction=fractions, seed=st.integers(0, 100))
def test_all_processes_are_one_in_the_unscaled_state(process, fraction, seed):
    """perturb(x0, t)/s = x0 + σ ε, and the score of x is that of x/s, divided by s."""
    law = GaussianMixture.random(2, 2, seed=seed)
    t = inside(process, fraction)
    s, sigma = process.scale(t), process.sigma(t)
    x0 = law.sample(4, seed=seed)
    noise = torch.randn((4, 2), generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    x = process.perturb(x0, t, noise=noise)
    torch.testing.assert_close(x / s, x0 + sigma * noise)
    generator = torch.Generator().manual_seed(seed)
    torch.testing.assert_close(process.perturb(x0, t, generator=generator), x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sk.AffineSDE(scale=lambda t: t), "either scale and sigma, or f and g"),
        (lambda: sk.AffineSDE(), "got no coefficients"),
        (lambda: sk.VP(beta_min=-1.0), "beta_min = -1.0"),
        (lambda: sk.VP(t_min=2.0), "0 <= t_min < T"),
        (lambda: sk.VE(5.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: sk.EDM(0.0, 80.0), "0 < sigma_min < sigma_max"),
        (lambda: sk.CosineVP(T=2.0), "ends at T = 1"),
        (lambda: sk.DiscreteVP([0.5]), "at least two"),
        (lambda: sk.DiscreteVP([0.5, 0.6]), "strictly decreasing"),
        (lambda: sk.DiscreteVP([0.5, 0.0]), "zero terminal SNR"),
        (
            lambda: sk.AffineSDE(f=lambda t: -1 / t, g=lambda t: t).scale(torch.ones(())),
            "cannot be integrated",
        ),
    ],
)
def test_bad_input_is_refused(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()
