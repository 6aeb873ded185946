"""Langevin dynamics: stationary laws, NCSN's choices, correctors; forward simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

import sdekit as sk
from sdekit.distributions import Gaussian

DOUBLE = torch.float64
GAUSSIAN = Gaussian(torch.zeros(2, dtype=DOUBLE), 0.25 * torch.eye(2, dtype=DOUBLE))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_unadjusted_chains_have_the_predicted_bias():
    """``x' = (1 − ε/v) x + sqrt(2ε) z`` has the stationary variance ``v/(1 − ε/(2v))``."""
    v, step = 0.25, 0.05
    chain = sk.langevin(lambda x: -x / v, 0.5 * normal(20_000, 2), step_size=step, steps=60, seed=1)
    expected = v / (1 - step / (2 * v))
    # Variance of the estimate: 2/40,000, so 5 standard deviations are 3.5 %.
    assert float(chain.x.var()) == pytest.approx(expected, rel=0.035)
    assert expected / v > 1.1
    assert (chain.acceptance == 1).all()
    assert chain.nfe == 61


def test_adjusted_chains_have_none():
    mixture = sk.GaussianMixture.random(3, 1, seed=1)
    start = mixture.sample(20_000, 0.3, seed=0)
    for step in (0.02, 0.2):
        chain = sk.langevin(
            lambda x: mixture.score(x, 0.3),
            start,
            step_size=step,
            steps=20,
            log_prob=lambda x: mixture.log_prob(x, 0.3),
            seed=3,
        )
        assert 0.2 < float(chain.acceptance.mean()) < 0.999
        k = torch.tensor([[0.7], [1.5], [3.0]], dtype=DOUBLE)
        exact = mixture.characteristic_function(k, 0.3)
        q = chain.x @ k.T
        found = torch.complex(q.cos().mean(0), q.sin().mean(0))
        assert float((found - exact).abs().max()) < 5 / math.sqrt(20_000)


def test_adjusted_chains_mix():
    """From elsewhere they get to the law: KS test with a false-alarm rate of 1e-4."""
    chain = sk.langevin(
        lambda x: -x / 0.25,
        torch.full((4000, 1), 2.0, dtype=DOUBLE),
        step_size=0.15,
        steps=60,
        log_prob=lambda x: -x.square().sum(1) / 0.5,
        seed=5,
        trajectory=True,
    )
    assert kstest(chain.x[:, 0].numpy(), norm(scale=0.5).cdf).pvalue > 1e-4
    assert torch.equal(chain.trajectory[-1], chain.x)
    assert chain.trajectory.shape == (60, 4000, 1)


def test_a_chain_depends_on_its_seed_alone():
    def run(x, seed):
        return sk.langevin(
            lambda x: -x,
            x,
            step_size=0.3,
            steps=9,
            log_prob=lambda x: -(x**2).sum(1) / 2,
            seed=seed,
        ).x

    x = normal(5, 3)
    whole = run(x, [4, 5, 6, 7, 8])
    assert torch.equal(whole[1:3], run(x[1:3], [5, 6]))


def test_chains_refuse():
    x = normal(3, 2)
    with pytest.raises(ValueError, match="must be positive"):
        sk.langevin(lambda x: -x, x, step_size=0.0, steps=3)
    with pytest.raises(sk.SolveError, match="step 1 of 3"):
        sk.langevin(lambda x: x / 0, x, step_size=0.1, steps=3, seed=0)


def test_levels_of_ncsn():
    """The figures of Song & Ermon (2020) for CIFAR-10: σ₁ = 50, 232 levels, ε = 6.2e-6."""
    levels = sk.ncsn_levels(50.0, 3072, 0.01)
    assert levels[0] == 50
    assert levels[-1] == pytest.approx(0.01)
    assert len(levels) == pytest.approx(232, rel=0.06)  # their overlap of 232 is 0.56
    assert len(sk.ncsn_levels(50.0, 3072, 0.01, overlap=0.56)) == pytest.approx(232, abs=2)
    epsilon = sk.ncsn_epsilon(np.geomspace(50, 0.01, 232), 5)
    assert epsilon == pytest.approx(6.2e-6, rel=0.05)
    with pytest.raises(ValueError, match="in 2 dimensions"):
        sk.ncsn_levels(10.0, 2, 0.1)


def test_annealed_langevin_is_its_recursion():
    """For Gaussian data the variance after every level is known: linear steps."""
    levels, epsilon, count = np.geomspace(8.0, 0.5, 9), 0.02, 3
    solver = sk.Solver(sk.AnnealedLangevin(epsilon, count), sk.Noise(), sk.grids.log)
    x = normal(40_000, 2) * math.sqrt(0.25 + 64)
    problem = sk.EDM().reverse(GAUSSIAN)
    solved = sk.solve(problem, x, method=solver, sigmas=levels, seed=2)
    assert solved.nfe == count * 8
    variance = 0.25 + 64.0
    for sigma in levels[1:]:
        alpha = epsilon * sigma**2 / levels[-1] ** 2
        for _ in range(count):
            variance = (1 - alpha / (0.25 + sigma**2)) ** 2 * variance + 2 * alpha
    assert float(solved.x.var()) == pytest.approx(variance, rel=5 / math.sqrt(40_000))
    # By the formula, in the scale of another process.
    vp = sk.VP()
    scale = [float(vp.on_host("scale", vp.on_host("time", s))) for s in (8.0, 0.5)]
    again = sk.solve(vp.reverse(GAUSSIAN), x * scale[0], method=solver, sigmas=levels, seed=2)
    torch.testing.assert_close(again.x / scale[1], solved.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("predictor", ["dpmpp_2m", "euler_maruyama", "sde_dpmpp_2m", "heun"])
def test_any_predictor_with_any_corrector(predictor):
    """The law stays right: at 60 steps, small corrections add little bias, in any dimension."""
    base = sk.methods()[predictor].solver
    x = normal(6000, 6) * 20.0
    law = Gaussian(torch.zeros(6, dtype=DOUBLE), 0.25 * torch.eye(6, dtype=DOUBLE))
    grid = sk.grids.log(60, 20.0, 0.05)
    # The other corrector's bias is (1 + 2/d)² in the long run.
    bounds = {sk.AnnealedCorrector(0.02, 2): 1.05, sk.LangevinCorrector(0.03): (1 + 2 / 6) ** 2}
    for corrector, most in bounds.items():
        scheme = sk.PredictorCorrector(base.scheme, corrector)
        solver = sk.Solver(scheme, base.coordinates, base.grid)
        problem = (
            sk.EDM().reverse(law) if scheme.solves == "sde" else sk.EDM().probability_flow(law)
        )
        solved = sk.solve(problem, x, method=solver, sigmas=grid, seed=1, sigma_data=0.5)
        assert solved.nfe == 60 * (base.scheme.nfe_per_step + corrector.steps)
        assert 0.9 < float(solved.x.var()) / (0.25 + 0.05**2) < most


def test_correctors_refuse():
    for wrong in (lambda: sk.AnnealedCorrector(1.5), lambda: sk.LangevinCorrector(0.0)):
        with pytest.raises(ValueError, match="at least one step"):
            wrong()
    solver = sk.Solver(sk.PredictorCorrector(sk.Adams(2, corrector=True)), sk.Noise(), sk.grids.log)
    with pytest.raises(ValueError, match="corrects its last step in the next"):
        sk.solve(sk.EDM().probability_flow(GAUSSIAN), normal(3, 2), method=solver, steps=4)
    with pytest.raises(ValueError, match="chooses its own steps"):
        sk.PredictorCorrector(sk.VariableAdams())


# ---- forward simulation ----


class Geometric(sk.ForwardSDE):
    """``dx = 0.1 x dt + 0.5 x dW``."""

    noise_type = "diagonal"

    def drift(self, x, t):
        return 0.1 * x

    def diffusion(self, x, t):
        return 0.5 * x


@pytest.mark.parametrize("process", [sk.VP(), sk.EDM(), sk.VE(), sk.SubVP(), sk.CosineVP()])
def test_transitions_are_exact(process):
    """Marginals of ``x_t | x_0`` at every time, however few: mean, variance, covariance of two."""
    low = 0.02 * process.T
    times = [low, 0.3 * process.T, 0.7 * process.T]
    x = torch.full((40_000, 1), 1.5, dtype=DOUBLE)
    paths = sk.simulate(process, x, times, seed=0)
    assert torch.equal(paths[0], x)
    s, v = (process.on_host(name, np.array(times)) for name in ("scale", "sigma"))
    for n in (1, 2):
        spread = float(s[n]) * math.sqrt(float(v[n] ** 2 - v[0] ** 2))
        z = (paths[n] - 1.5 * float(s[n] / s[0])) / spread
        assert abs(float(z.mean())) < 5 / 200
        assert float(z.var()) == pytest.approx(1, abs=5 * math.sqrt(2) / 200)
    # One path drives any times: the state at the last is the same by way of the other.
    path = sk.GridPath(v**2, (40_000, 1), seed=3)
    direct = sk.simulate(process, x, [times[0], times[2]], noise=path)
    torch.testing.assert_close(sk.simulate(process, x, times, noise=path)[-1], direct[-1])


@pytest.mark.parametrize(("method", "order"), [("euler_maruyama_t", 0.5), ("milstein_t", 1.0)])
def test_strong_orders_of_state_dependent_noise(method, order):
    fine = np.linspace(0, 1, 257)
    path = sk.GridPath(fine, (4000, 1), seed=1)
    x = torch.ones(4000, 1, dtype=DOUBLE)
    exact = torch.exp(0.1 - 0.125 + 0.5 * path.increment(0.0, 1.0, x))
    counts, errors = np.array([8, 16, 32, 64, 128]), []
    for n in counts:
        paths = sk.simulate(Geometric(), x, fine[:: 256 // n], method=method, noise=path)
        errors.append(float((paths[-1] - exact).square().mean().sqrt()))
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.15)


def test_milstein_backward_and_where_noise_is_additive():
    x = normal(8, 2)
    reverse = Geometric().reverse(lambda x, t: -x)
    torch.manual_seed(0)
    solved = sk.solve(reverse, x.abs(), method="milstein_t", times=[1.0, 0.9], seed=0)
    dw = 0.1**0.5 * sk.IndependentNoise(0).normal(x)
    y = x.abs()
    drift = 0.1 * y - (0.25 * y**2 * -y + 0.5 * y)
    expected = y - 0.1 * drift + 0.5 * y * dw + 0.5 * 0.25 * y * (dw**2 - 0.1)
    torch.testing.assert_close(solved.x, expected)
    problem = sk.EDM().reverse(GAUSSIAN)
    same = [
        sk.solve(problem, x, method=m, sigmas=[2.0, 1.0, 0.5], seed=1).x
        for m in ("milstein_t", "euler_maruyama_t")
    ]
    assert torch.equal(*same)


def test_simulation_refuses():
    x = normal(3, 2)
    with pytest.raises(TypeError, match="pass a process"):
        sk.simulate(GAUSSIAN, x, [0.0, 1.0])
    with pytest.raises(ValueError, match="strictly increasing"):
        sk.simulate(sk.VP(), x, [1.0, 0.5])
    with pytest.raises(ValueError, match="is for backward equations"):
        sk.simulate(sk.VP(), x, [0.0, 1.0], method="heun")
    to_nothing = sk.simulate(sk.RectifiedFlow(), x, [0.2, 1.0], seed=0)
    assert to_nothing.isfinite().all()
