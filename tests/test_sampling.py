"""The front door: agreement with other packages, reproducibility, errors, and no host reads."""

from __future__ import annotations

import dataclasses
import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchdiffeq
import torchsde
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from test_sde import Sheared, exact_score

import sdekit as sk
from sdekit.distributions import Gaussian, GaussianMixture, Product

DOUBLE = torch.float64
MIXTURE = GaussianMixture.random(5, 3, seed=2)


def scale(process: sk.AffineSDE, sigma: float) -> float:
    return float(process.on_host("scale", process.on_host("time", sigma)))


# --- one problem, many ways -----------------------------------------------------------------------


def test_all_families_reach_the_same_samples():
    """VP, VE, sub-VP, EDM and rectified flow, each in its own time, from the same x̂: to 1e-8."""
    high, low = 80.0, 0.02
    x_hat = MIXTURE.sample(4, high, seed=0)
    ends = []
    for process in (sk.VP(), sk.VE(0.01, 90.0), sk.SubVP(), sk.EDM(), sk.RectifiedFlow()):
        flow = process.probability_flow(MIXTURE)
        x = x_hat * scale(process, high)
        solved = sk.solve(flow, x, method="dopri5_t", sigmas=[high, low], rtol=1e-10, atol=1e-10)
        ends.append(solved.x / scale(process, low))
    for end in ends[1:]:
        assert (end - ends[0]).abs().max() < 1e-8


@pytest.mark.parametrize("process", [sk.VP(), sk.SubVP(), sk.VE(0.01, 50.0), sk.RectifiedFlow()])
def test_torchdiffeq_and_scipy_integrate_the_flow(process, product):
    high, low = 3.0, 0.1
    flow = process.probability_flow(product)
    x = product.sample(8, high, seed=1) * scale(process, high)
    exact = product.flow(x / scale(process, high), high, low) * scale(process, low)
    times = process.on_host("time", np.array([high, low]))
    ours = sk.solve(flow, x, times=times, rtol=1e-10, method="dopri5_t").x
    theirs = torchdiffeq.odeint(flow, x, torch.from_numpy(times), rtol=1e-10, atol=1e-10)[-1]
    fun = flow.numpy(tuple(x.shape))
    ivp = solve_ivp(fun, times, x.reshape(-1).numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
    scipys = torch.from_numpy(ivp.y[:, -1]).reshape(x.shape)
    for end in (ours, theirs, scipys):
        assert (end - exact).abs().max() < 1e-8


@pytest.mark.parametrize("process", [sk.EDM(), sk.VP()], ids=["EDM", "VP"])
@pytest.mark.parametrize("knows_score", [True, False])
def test_torchdiffeq_may_step_over_the_end(process, knows_score):
    """Down to t_min torchdiffeq's last trial steps reach below t = 0 before it interpolates back."""
    law = Gaussian(np.zeros(2), np.diag([0.5, 0.2]).tolist())
    model = law if knows_score else lambda x, sigma: law(x, sigma)
    x = process.prior_sample((4, 2), seed=0, dtype=DOUBLE)
    times = torch.tensor([process.T, process.t_min], dtype=DOUBLE)
    flow = process.probability_flow(model)
    theirs = torchdiffeq.odeint(flow, x, times, rtol=1e-8, atol=1e-8)[-1]
    exact = law.flow(x / scale(process, process.sigma_max), process.sigma_max, process.sigma_min)
    assert (theirs / scale(process, process.sigma_min) - exact).abs().max() < 1e-5


class Bridge:
    """torchsde's Brownian motion on the upward time r, as a noise source for `solve`."""

    def __init__(self, brownian, r: np.ndarray) -> None:
        self.brownian, self.steps = brownian, pairwise(r.tolist())

    def on(self, clock):
        return self

    def increment(self, a, b, like):
        start, end = next(self.steps)
        return self.brownian(start, end) * ((b - a) / (end - start)) ** 0.5


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_torchsde_integrates_the_reverse_sde(eta):
    """The same Brownian motion gives the same samples as Euler–Maruyama in the process's time."""
    process = sk.VP()
    reverse = process.reverse(MIXTURE, eta)
    view = reverse.time_reversed()
    r = np.arange(61) / 64  # exact in binary: torchsde adds up its steps
    brownian = torchsde.BrownianInterval(0.0, r[-1], size=(16, 3), dtype=DOUBLE, entropy=3)
    x = process.prior_sample((16, 3), seed=0, dtype=DOUBLE)
    theirs = torchsde.sdeint(view, x, torch.from_numpy(r), bm=brownian, method="euler", dt=r[1])[-1]
    ours = sk.solve(
        reverse, x, method="euler_maruyama_t", times=process.T - r, noise=Bridge(brownian, r)
    )
    torch.testing.assert_close(ours.x, theirs, rtol=0, atol=1e-9)


def test_torchsde_integrates_a_user_s_sde():
    """Matrix noise that depends on the state, known by drift and diffusion only."""
    sde, n = Sheared(), 64
    reverse = sde.reverse(exact_score(sde))
    r = np.linspace(0.0, 1.0, n + 1)
    brownian = torchsde.BrownianInterval(0.0, 1.0, size=(16, 2), dtype=DOUBLE, entropy=3)
    x = torch.randn((16, 2), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    with torch.no_grad():
        theirs = torchsde.sdeint(
            reverse.time_reversed(), x, torch.from_numpy(r), bm=brownian, method="euler", dt=r[1]
        )[-1]
        noise = Bridge(brownian, r)
        ours = sk.solve(reverse, x, method="euler_maruyama_t", times=1.0 - r, noise=noise).x
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_a_user_s_flow_transports_the_density():
    """Change of variables along the flow of the sheared process: log p moves by the divergence."""
    sde = Sheared()
    flow = sde.probability_flow(exact_score(sde))
    x = torch.randn((3, 2), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    x.requires_grad_()
    y = sk.solve(flow, x, method="rk4_t", times=np.linspace(1.0, 0.3, 33)).x
    rows = [torch.autograd.grad(total, x, retain_graph=True)[0] for total in y.sum(0)]
    log_det = torch.stack(rows, 1).slogdet()[1]
    t = torch.tensor([1.0, 0.3], dtype=DOUBLE)
    torch.testing.assert_close(
        sde.log_prob(y, t[1]) + log_det, sde.log_prob(x, t[0]), atol=1e-7, rtol=0
    )


@settings(deadline=None, max_examples=8)
@given(
    levels=st.lists(st.floats(0.05, 50.0), min_size=3, max_size=3, unique=True),
    seed=st.integers(0, 100),
)
def test_group_law_of_the_flow(levels, seed):
    """a → b → c is a → c, in either direction, and a → b → a is the identity."""
    a, b, c = levels
    law = Product.random(2, 2, seed=seed)
    flow = sk.EDM().probability_flow(law)
    x = law.sample(4, a, seed=seed)

    def move(x, start, end):
        return sk.solve(flow, x, sigmas=[start, end], rtol=1e-10).x

    tolerance = 1e-7 * (1 + float(x.abs().max()))
    assert (move(move(x, a, b), b, c) - move(x, a, c)).abs().max() < tolerance
    there = move(x, a, c)
    assert (there - law.flow(x, a, c)).abs().max() < tolerance


def test_gradients_pass_through_a_solve():
    """d(loss)/d(start) by autograd equals central differences."""
    flow = sk.EDM().probability_flow(MIXTURE)
    x = MIXTURE.sample(2, 5.0, seed=0).requires_grad_()

    def loss(x):
        return (
            sk.solve(flow, x, method="heun", sigmas=sk.grids.karras(10, 5.0, 0.1)).x.square().sum()
        )

    (gradient,) = torch.autograd.grad(loss(x), x)
    step = torch.zeros_like(x)
    step[1, 2] = 1e-5
    with torch.no_grad():
        difference = (loss(x + step) - loss(x - step)) / 2e-5
    assert float(gradient[1, 2]) == pytest.approx(float(difference), rel=1e-6)


# --- what a solve returns -------------------------------------------------------------------------


def test_trajectory_and_grid():
    process = sk.VP()
    flow = process.probability_flow(MIXTURE)
    sigmas = sk.grids.karras(6, 50.0, 0.05)
    x = MIXTURE.sample(4, 50.0, seed=0) * scale(process, 50.0)
    solved = sk.solve(flow, x, method="heun", sigmas=sigmas, trajectory=True)
    assert solved.trajectory.shape == (7, 4, 3)
    assert torch.equal(solved.trajectory[0], x)
    assert torch.equal(solved.trajectory[-1], solved.x)
    np.testing.assert_array_equal(solved.grid, sigmas)
    part = sk.solve(flow, x, method="heun", sigmas=sigmas[:4])
    torch.testing.assert_close(solved.trajectory[3], part.x, rtol=0, atol=1e-12)
    # adaptive: the same grid gives the points of the trajectory
    tight = sk.solve(flow, x, sigmas=sigmas, rtol=1e-10, trajectory=True)
    until = sk.solve(flow, x, sigmas=sigmas[[0, 3]], rtol=1e-10)
    torch.testing.assert_close(tight.trajectory[3], until.x, rtol=0, atol=1e-8)
    assert tight.status == "success"


def test_denoising_step():
    """ending="denoise" appends D(x̂, σ_min), counts it, and is one of the steps."""
    flow = sk.VP().probability_flow(MIXTURE)
    x = sk.VP().prior_sample((4, 3), seed=0, dtype=DOUBLE)
    for method in ("heun", "euler_t"):
        plain = sk.solve(flow, x, method=method, steps=9)
        ended = sk.solve(flow, x, method=method, steps=10, ending="denoise")
        s, sigma = scale(sk.VP(), plain.grid[-1]), plain.grid[-1]
        torch.testing.assert_close(ended.x, MIXTURE.denoise(plain.x / s, sigma))
        assert ended.nfe == plain.nfe + 1
        assert ended.grid[-1] == 0
    adaptive = sk.solve(flow, x, rtol=1e-6, ending="denoise")
    until = sk.solve(flow, x, rtol=1e-6)
    expected = MIXTURE.denoise(until.x / scale(sk.VP(), until.grid[-1]), until.grid[-1])
    torch.testing.assert_close(adaptive.x, expected, rtol=0, atol=1e-12)
    assert (adaptive.stats.nfe_per_sample == until.stats.nfe_per_sample + 1).all()


def test_rectified_flow_starts_at_pure_noise():
    """From σ = ∞ in native time, in the flow-matching variables: plain Euler on dx/dt = ε − D."""
    law = Gaussian([0.5, -0.3], [[0.4, 0.1], [0.1, 0.2]])
    process = sk.RectifiedFlow()
    x = process.prior_sample((16, 2), seed=0, dtype=DOUBLE)
    n, expected = 40, x
    for t, u in pairwise(np.linspace(1.0, 1e-3, n + 1).tolist()):
        denoised = law.moments()[0] if t == 1.0 else law.denoise(expected / (1 - t), t / (1 - t))
        expected = expected + (u - t) * (expected - denoised) / t
    solved = sk.solve(process.probability_flow(law), x, method="euler_t", steps=n)
    torch.testing.assert_close(solved.x, expected, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"σ = inf cannot be represented.*heun_t"):
        sk.solve(process.probability_flow(law), x, method="heun", times=[1.0, 0.5])


def test_sample_matches_the_law():
    x = sk.sample(sk.VP(), MIXTURE, (20000, 3), method="heun", steps=40, seed=0, dtype=DOUBLE)
    mean, cov = MIXTURE.moments()
    assert (x.mean(0) - mean).abs().max() < 4 * float(cov.diagonal().max() / 20000) ** 0.5
    torch.testing.assert_close(x.T.cov(), cov, rtol=0, atol=0.06)
    noisy = sk.sample(sk.EDM(), MIXTURE, (20000, 3), method="euler_maruyama", steps=150, seed=0)
    assert noisy.dtype == torch.float32
    torch.testing.assert_close(noisy.T.cov().double(), cov, rtol=0, atol=0.06)


def test_sample_stays_in_the_range_of_the_denoiser():
    asked = []

    def denoiser(x, sigma, label=None):
        asked.append(float(sigma.max()))
        return MIXTURE(x, sigma)

    denoiser.sigma_min, denoiser.sigma_max = 0.05, 20.0
    for options in ({"method": "heun", "steps": 5}, {"rtol": 1e-2}):
        for model in (denoiser, functools.partial(denoiser, label=3)):
            asked.clear()
            sk.sample(sk.VP(), model, (1, 3), seed=0, **options)
            assert max(asked) == pytest.approx(20.0)
            assert min(asked) == pytest.approx(0.05)


# --- reproducibility ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["heun", "edm_sde", "euler_maruyama_t", "pc"])
def test_per_sample_seeds_make_samples_independent_of_the_batch(method):
    """Elementwise denoiser: sample i depends on seed i alone, to the last bit."""

    def denoiser(x, sigma):
        return torch.tanh(x) / (1 + sigma.reshape(-1, *(1,) * (x.ndim - 1)) ** 2)

    def draw(seeds):
        shape = (len(seeds), 1, 2, 2)
        return sk.sample(sk.VP(), denoiser, shape, method=method, steps=6, seed=seeds)

    seeds = [11, 12, 13, 14, 15]
    whole = draw(seeds)
    assert torch.equal(whole, torch.cat([draw(seeds[:2]), draw(seeds[2:])]))
    assert torch.equal(whole.flip(0), draw(seeds[::-1]))
    assert torch.equal(draw(seeds), whole)
    assert torch.equal(draw(np.array(seeds)), whole)
    assert torch.equal(draw(torch.tensor(seeds)), whole)
    one_seed = [
        sk.sample(sk.VP(), denoiser, (3, 2), method=method, steps=6, seed=s) for s in (1, 1, 2)
    ]
    assert torch.equal(one_seed[0], one_seed[1])
    assert not torch.equal(one_seed[0], one_seed[2])


@settings(deadline=None, max_examples=30)
@given(
    event=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    method=st.sampled_from(list(sk.methods())),
    seed=st.integers(0, 100),
)
def test_any_event_shape_is_solved_alike(event, method, seed):
    """(B, *event) and its flattened form have the same solution, for an elementwise denoiser."""

    def denoiser(x, sigma):
        return torch.tanh(x) / (1 + sigma.reshape(-1, *(1,) * (x.ndim - 1)) ** 2)

    flat = (3, int(np.prod(event)))
    process, entry = sk.VP(), sk.methods()[method]
    problem = (
        process.probability_flow(denoiser)
        if entry.solver.scheme.solves == "flow"
        else process.reverse(denoiser)
    )
    x = process.prior_sample((3, *event), seed=seed, dtype=DOUBLE)
    options = {"steps": 4, "seed": seed} if entry.fixed else {"rtol": 1e-4}
    shaped = sk.solve(problem, x, method=method, **options).x
    flattened = sk.solve(problem, x.reshape(flat), method=method, **options).x
    assert shaped.shape == x.shape
    torch.testing.assert_close(shaped.reshape(flat), flattened, rtol=1e-12, atol=1e-12)


def test_noise_does_not_depend_on_memory_layout():
    like = torch.empty((2, 3, 4, 4))
    other = like.to(memory_format=torch.channels_last)
    for seed in (0, [1, 2]):
        first, second = (sk.IndependentNoise(seed).normal(x) for x in (like, other))
        assert torch.equal(first, second)


def test_start_and_first_step_use_different_numbers():
    """One seed serves both; the first noise is not the start again."""
    drawn = []

    def denoiser(x, sigma):
        drawn.append(x.clone())
        return torch.zeros_like(x)

    sk.sample(
        sk.EDM(), denoiser, (400, 1), method="euler_maruyama", sigmas=[80.0, 40.0, 20.0], seed=0
    )
    start, second = drawn[0] / 80, drawn[1]
    # x̂ = start + drift + noise with D = 0: the drift is linear in the start
    slope = float((start * second).sum() / (start * start).sum())
    noise = second - slope * start
    assert abs(slope) < 15  # 80 − 2 · 40 from the drift; 69 more if the noise were the start
    assert float(noise.std()) == pytest.approx(np.sqrt(80**2 - 40**2), rel=0.15)
    one, two = (sk.VP().prior_sample((4, 2)) for _ in range(2))
    assert not torch.equal(one, two)


def test_adaptive_steps_do_not_depend_on_the_batch():
    """Every sample has its own steps: a batch, its parts and its permutation agree bit by bit."""

    def denoiser(x, sigma):
        return torch.tanh(3 * x) / (1 + sigma.reshape(-1, 1) ** 2)

    flow = sk.EDM().probability_flow(denoiser)
    x = 80 * torch.randn((7, 2), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    whole = sk.solve(flow, x, rtol=1e-6)
    parts = [sk.solve(flow, part, rtol=1e-6) for part in (x[:3], x[3:])]
    assert torch.equal(whole.x, torch.cat([p.x for p in parts]))
    per_sample = np.concatenate([p.stats.nfe_per_sample for p in parts])
    np.testing.assert_array_equal(whole.stats.nfe_per_sample, per_sample)
    assert torch.equal(sk.solve(flow, x.flip(0), rtol=1e-6).x, whole.x.flip(0))


@pytest.mark.parametrize("method", ["dopri5", "dopri5_t"])
def test_tolerance_is_met(method, product):
    """The error follows the tolerance over eight decades, and NFE is that of each sample."""
    process = sk.VP()
    x_hat = product.sample(16, 3.0, seed=1)
    exact = product.flow(x_hat, 3.0, 0.1)
    rows = []
    for rtol in (1e-2, 1e-4, 1e-6, 1e-8, 1e-10):
        solved = sk.solve(
            process.probability_flow(product),
            x_hat * scale(process, 3.0),
            method=method,
            sigmas=[3.0, 0.1],
            rtol=rtol,
        )
        error = (solved.x / scale(process, 0.1) - exact).square().mean().sqrt()
        rows.append((float(error), solved.nfe))
        assert float(error) < 10 * rtol
        assert solved.nfe == solved.stats.nfe_per_sample.max()
    errors, nfe = np.array(rows).T
    assert (np.diff(errors) < 0).all()
    assert (np.diff(nfe) > 0).all()


def test_running_out_of_budget_is_said():
    flow = sk.EDM().probability_flow(MIXTURE)
    x = MIXTURE.sample(3, 80.0, seed=0)
    solved = sk.solve(flow, x, rtol=1e-9, max_nfe=40)
    assert solved.status == "max_nfe"
    assert "raise max_nfe or loosen rtol" in solved.message
    assert solved.nfe <= 40
    # They are returned at the process's scale where they stopped: near the prior's, under VP.
    start = sk.VP().prior_sample((3, 3), seed=0, dtype=DOUBLE)
    early = sk.solve(VP_FLOW, start, rtol=1e-9, max_nfe=30)
    assert (early.x - start).abs().max() < 0.5
    stopped = sk.solve(VP_FLOW, start, rtol=1e-9, max_nfe=1).x
    torch.testing.assert_close(stopped, start, rtol=0, atol=1e-13)
    assert sk.solve(VP_FLOW, start, rtol=1e-9, max_nfe=1, ending="denoise").nfe == 0


def test_a_budget_is_each_sample_s_own():
    """Samples that can pay reach the end, whatever their neighbours cost; no one overdraws."""
    grid = sk.grids.log(6, 80.0, 0.01)
    x = MIXTURE.sample(12, 80.0, seed=0)
    free = sk.solve(FLOW, x, sigmas=grid, rtol=1e-6)
    budget = int(np.median(free.stats.nfe_per_sample))
    alone = [sk.solve(FLOW, row[None], sigmas=grid, rtol=1e-6, max_nfe=budget) for row in x]
    assert 0 < sum(one.status == "success" for one in alone) < 12
    for trajectory in (False, True):
        kept = sk.solve(FLOW, x, sigmas=grid, rtol=1e-6, max_nfe=budget, trajectory=trajectory)
        assert kept.nfe <= budget
        torch.testing.assert_close(kept.x, torch.cat([one.x for one in alone]), rtol=0, atol=1e-10)
    arrived = torch.tensor([one.status == "success" for one in alone])
    assert torch.equal(kept.trajectory[-1, arrived], kept.x[arrived])
    assert kept.trajectory[-1, ~arrived].isnan().all()  # they are returned where they stopped
    assert kept.x.isfinite().all()


def test_adaptive_nfe_is_the_number_of_calls_each_sample_was_in():
    calls = np.zeros(5, dtype=int)

    def denoiser(x, sigma):
        identity = x[:, 3:]  # D = x̂ there: it stays what it is, and says which sample this is
        calls[identity[:, 0].round().long().numpy()] += 1
        return torch.cat([MIXTURE(x[:, :3], sigma), identity], 1)

    x = torch.cat([MIXTURE.sample(5, 80.0, seed=0), torch.arange(5.0, dtype=DOUBLE)[:, None]], 1)
    ranges = ({}, {"ending": "denoise"}, {"sigmas": [80.0, 1.0, 0.0], "trajectory": True})
    for method in ("dopri5", "dopri5_t", "dop853", "variable_adams", "dpm_adaptive_23"):
        for options in ranges:
            calls[:] = 0
            flow = sk.EDM().probability_flow(denoiser)
            solved = sk.solve(flow, x, method=method, rtol=1e-4, sigma_data=1.0, **options)
            np.testing.assert_array_equal(calls, solved.stats.nfe_per_sample)


def test_a_tolerance_rules_down_to_sigma_min_before_denoising():
    """A range [σ, 0] is not one denoising step from σ."""
    x = MIXTURE.sample(4, 80.0, seed=0)
    ranged = sk.solve(FLOW, x, sigmas=[80.0, 0.0], rtol=1e-6)
    explicit = sk.solve(FLOW, x, rtol=1e-6, ending="denoise")
    torch.testing.assert_close(ranged.x, explicit.x, rtol=0, atol=1e-12)


def test_inference_mode_changes_nothing():
    x = torch.rand((4, 2), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    plain = Sheared().diffusion_divergence(x, torch.tensor(0.3, dtype=DOUBLE))
    with torch.inference_mode():
        x_inside, t = x.clone(), torch.tensor(0.3, dtype=DOUBLE)
        torch.testing.assert_close(Sheared().diffusion_divergence(x_inside, t), plain)
        inside = sk.solve(FLOW, X, steps=5).x
    torch.testing.assert_close(sk.solve(FLOW, X, steps=5).x, inside)


# --- no host reads --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, entry in sk.methods().items() if entry.fixed])
def test_fixed_grids_read_nothing_from_the_device(name, monkeypatch):
    """No step calls bool, float, int, index, item, tolist, cpu, numpy or nonzero of a tensor."""
    reads = []
    readers = ("__bool__", "__float__", "__int__", "__index__", "item", "tolist", "cpu", "numpy")
    for reader in (*readers, "nonzero", "__array__"):
        original = getattr(torch.Tensor, reader)

        def counted(self, *args, _original=original, _reader=reader, **kwargs):
            reads.append(_reader)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, reader, counted)
    assert bool(torch.ones(()))
    assert reads == ["__bool__"]
    reads.clear()
    process = sk.VP()
    scheme = sk.methods()[name].solver.scheme
    problem = (
        process.probability_flow(MIXTURE) if scheme.solves == "flow" else process.reverse(MIXTURE)
    )
    x = torch.ones((4, 3), dtype=DOUBLE)
    grid = sk.grids.karras(8, 80.0, 0.02)
    sk.solve(problem, x, method=name, sigmas=grid, sigma_data=1.0, seed=0)
    before = len(reads)
    # numpy() is called on host tensors while coefficients are prepared, and once after the loop
    # on the check-sums: never in a step.
    assert set(reads) <= {"numpy"}
    reads.clear()
    finer = sk.grids.karras(24, 80.0, 0.02)
    sk.solve(problem, x, method=name, sigmas=finer, sigma_data=1.0, seed=0)
    assert len(reads) == before


# --- the door -------------------------------------------------------------------------------------

FLOW = sk.EDM().probability_flow(MIXTURE)
REVERSE = sk.EDM().reverse(MIXTURE)
VP_FLOW = sk.VP().probability_flow(MIXTURE)
X = torch.ones((2, 3), dtype=DOUBLE)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sk.solve(MIXTURE, X, steps=5), TypeError, "process.probability_flow"),
        (lambda: sk.solve(FLOW, X.numpy(), steps=5), TypeError, "torch tensor"),
        (lambda: sk.solve(FLOW, X.half(), steps=5), TypeError, "float32 or float64"),
        (lambda: sk.solve(FLOW, X.long(), steps=5), TypeError, "float32 or float64"),
        (lambda: sk.solve(FLOW, X[0], steps=5), ValueError, r"a batch \(B, \*event\)"),
        (lambda: sk.solve(FLOW, X[:, :2], steps=5), ValueError, r"\(2, 2\)"),
        (lambda: sk.solve(FLOW, X), TypeError, "got no grid"),
        (lambda: sk.solve(FLOW, X, steps=5, sigmas=[1, 0.5]), TypeError, "steps and sigmas"),
        (lambda: sk.solve(FLOW, X, steps=5, rtol=1e-3), TypeError, "steps and rtol"),
        (lambda: sk.solve(FLOW, X, steps=0), ValueError, "at least 1"),
        (lambda: sk.solve(FLOW, X, steps=2.5), TypeError, "whole number"),
        (lambda: sk.solve(FLOW, X, sigmas=[5.0, 1.0, 2.0]), ValueError, "1 followed by 2"),
        (lambda: sk.solve(FLOW, X, sigmas=[5.0, 5.0]), ValueError, "strictly decreasing"),
        (lambda: sk.solve(FLOW, X, sigmas=[5.0, -1.0]), ValueError, "contains -1"),
        (lambda: sk.solve(FLOW, X, sigmas=[5.0, np.nan]), ValueError, "contains nan"),
        (lambda: sk.solve(FLOW, X, sigmas=[5.0]), ValueError, "at least two"),
        (lambda: sk.solve(FLOW, X, sigmas=[0.0, 1.0]), ValueError, "start above 0"),
        (lambda: sk.solve(REVERSE, X, sigmas=[1.0, 2.0]), ValueError, "strictly decreasing"),
        (lambda: sk.solve(FLOW, X, steps=5, method="huen"), ValueError, "did you mean 'heun'"),
        (lambda: sk.solve(FLOW, X, steps=5, method=3), TypeError, "a name from"),
        (lambda: sk.solve(REVERSE, X, steps=5, method="heun"), ValueError, "probability_flow"),
        (lambda: sk.solve(FLOW, X, steps=5, method="pc"), ValueError, "process.reverse"),
        (lambda: sk.solve(FLOW, X, rtol=1e-3, method="heun"), ValueError, "no error estimate"),
        (lambda: sk.solve(FLOW, X, rtol=1e-16), ValueError, "rtol >= 1.1e-14"),
        (lambda: sk.solve(FLOW, X.float(), rtol=1e-7), ValueError, "or a float64 state"),
        (lambda: sk.solve(FLOW, X, rtol=1e-3, atol=0.0), ValueError, "atol = 0"),
        (
            lambda: sk.solve(sk.VE(0.01, 50.0).probability_flow(MIXTURE), X, sigmas=[9, 1e-9]),
            ValueError,
            None,
        ),
        (
            lambda: sk.solve(
                sk.AffineSDE(scale=torch.ones_like, sigma=lambda t: t).probability_flow(MIXTURE),
                X,
                sigmas=[5.0, 0.1],
            ),
            ValueError,
            "sigma = 5 is outside the range",
        ),
        (
            lambda: sk.solve(REVERSE, X, steps=5, seed=[1, 2, 3]),
            ValueError,
            "3 seeds for a batch of 2",
        ),
        (
            lambda: sk.solve(REVERSE, X, steps=5, seed=1, noise=sk.IndependentNoise(1)),
            TypeError,
            "seed and noise",
        ),
        (
            lambda: sk.solve(sk.EDM().probability_flow(lambda x, s: x[:1]), X, steps=5),
            ValueError,
            r"returned shape \(1, 3\)",
        ),
        (
            lambda: sk.solve(sk.EDM().probability_flow(lambda x, s: 1.0), X, steps=5),
            TypeError,
            "must return a tensor",
        ),
        (
            lambda: sk.solve(Sheared().probability_flow(None), X[:, :2], steps=5, method="heun"),
            ValueError,
            "'heun' needs an affine process",
        ),
        (
            lambda: sk.solve(Sheared().probability_flow(None), X[:, :2], sigmas=[1.0, 0.5]),
            ValueError,
            "has no noise level sigma",
        ),
        (
            lambda: sk.sample(Sheared(), MIXTURE, (2, 2), steps=5),
            TypeError,
            "needs an affine process",
        ),
        (lambda: sk.GridPath([0.0, 0.0], (2,), seed=0), ValueError, "distinct"),
        (
            lambda: sk.GridPath([0.0, 1.0], (2, 3), seed=0).increment(0.0, 0.5, X),
            ValueError,
            "not known at clock 0.5",
        ),
        (
            lambda: sk.GridPath([0.0, 1.0], (1, 3), seed=0).increment(0.0, 1.0, X),
            ValueError,
            r"path has shape \(1, 3\)",
        ),
        (lambda: sk.IndependentNoise(1.7), TypeError, "whole number"),
        (lambda: sk.IndependentNoise([[1, 2]]), TypeError, "whole number"),
        (
            lambda: sk.solve(VP_FLOW, X, times=[1.0, -0.5]),
            ValueError,
            r"times contains -0.5.*\[0, 1\]",
        ),
        (lambda: sk.solve(VP_FLOW, X, times=[3.0, 0.5]), ValueError, "times contains 3"),
        (lambda: sk.solve(FLOW, X, sigmas=[1.0, 2.0, 3.0, 2.5]), ValueError, "3 followed by 2.5"),
        (lambda: sk.solve(FLOW, X, sigmas=[1e-4, 0.0], rtol=1e-3), ValueError, r"\[0.0001, σ, 0\]"),
        (
            lambda: sk.solve(FLOW, X, sigmas=[0.1, 1.0], method="edm_sde"),
            ValueError,
            "must be strictly decreasing",
        ),
        (
            lambda: sk.solve(
                sk.RectifiedFlow().reverse(MIXTURE), X, steps=5, method="euler_maruyama_t"
            ),
            ValueError,
            "infinite drift and noise",
        ),
        (
            lambda: sk.sample(sk.RectifiedFlow(), MIXTURE, (2, 3), method="heun", steps=5),
            ValueError,
            "give a finite start",
        ),
        (
            lambda: sk.sample(sk.VP(), MIXTURE, (2, 3), steps=5, eta=0.3),
            ValueError,
            "probability flow, which has none",
        ),
        (
            lambda: sk.sample(sk.VP(), MIXTURE, (2, 3), rtol=1e-3, max_nfe=20),
            TypeError,
            "max_nfe",
        ),
        (
            lambda: sk.solve(sk.EDM().probability_flow(lambda x, s: x.mul_(0.5)), X, steps=5),
            ValueError,
            "changed its input in place",
        ),
        (
            lambda: sk.solve(Sheared().probability_flow(lambda x, t: x[:, :1]), X[:, :2], steps=5),
            ValueError,
            r"the score returned shape \(2, 1\)",
        ),
        (
            lambda: sk.VP().probability_flow(lambda x, s: x[:, :1])(0.5, X),
            ValueError,
            r"the denoiser returned shape \(2, 1\)",
        ),
        (
            lambda: sk.AffineSDE(scale=torch.ones_like, sigma=lambda t: torch.sin(3 * t)),
            ValueError,
            "does not increase",
        ),
        (lambda: sk.VP().perturb(X, 0.5, noise=X[0]), ValueError, "they must agree"),
        (lambda: sk.grids.karras(5, 80.0, 0.002, rho=0.0), ValueError, "rho = 0"),
        (
            lambda: sk.Tableau(c=(0.5, 1.0), a=((1.0,),), b=(0.5, 0.5), order=2),
            ValueError,
            "first stage time",
        ),
        (
            lambda: sk.Tableau(c=(0.0,), a=(), b=(1.0,), order=1, b_error=(0.0,)),
            ValueError,
            "belong together",
        ),
        (
            lambda: sk.Tableau(c=(0.0, 1.0), a=((0.9,),), b=(0.5, 0.5), order=2),
            ValueError,
            "sum to its stage time",
        ),
        (lambda: sk.Tableau(c=(0.0,), a=(), b=(0.9,), order=1), ValueError, "must sum to 1"),
        (lambda: sk.LangevinCorrector(snr=0.0), ValueError, "positive snr"),
        (
            lambda: sk.Churn(sk.RungeKutta(sk.tableaus.HEUN), s_churn=-1.0),
            ValueError,
            "none may be negative",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    if message is None:  # VE extends below σ_min by its formula: allowed
        call()
        return
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "options", [{"method": "heun", "steps": 10}, {"method": "dopri5", "rtol": 1e-4}]
)
def test_a_nan_is_named(options):
    """Step, noise level and sample are in the message."""

    def denoiser(x, sigma):
        # D = x̂ in the last coordinate: it stays what it is, and says which sample this is.
        law, identity = MIXTURE(x[:, :3], sigma), x[:, 3:]
        bad = (sigma.reshape(-1, 1) < 1.0) & (identity == 2)
        return torch.where(bad, torch.nan, torch.cat([law, identity], 1))

    flow = sk.EDM().probability_flow(denoiser)
    x = MIXTURE.sample(3, 80.0, seed=0)
    numbered = torch.cat([x, torch.arange(3.0, dtype=DOUBLE)[:, None]], 1)
    with pytest.raises(sk.SolveError, match=r"in step \d+ of .*sample 2") as caught:
        sk.solve(flow, numbered, **options)
    message = str(caught.value)
    if "steps" in options:
        grid = sk.grids.karras(10, 80.0, 0.002)
        step = int(np.argmax(grid < 1.0))  # Heun evaluates at the end of a step
        assert f"step {step} of 10, from σ = {grid[step - 1]:.6g} to {grid[step]:.6g}" in message
    else:
        assert float(message.split("σ = ")[1].split(":")[0]) == pytest.approx(1.0, abs=1e-4)
    x[1, 0] = torch.inf
    with pytest.raises(sk.SolveError, match=r"not finite|non-finite"):
        sk.solve(FLOW, x, **options)


def test_the_registry_prints_itself():
    text = repr(sk.methods())
    for name, entry in sk.methods().items():
        assert name in text
        assert entry.source in text
        assert dataclasses.is_dataclass(entry)
    assert "nonsense" not in sk.methods()
    with pytest.raises(ValueError, match="did you mean 'rk4'"):
        sk.methods()["rk5"]
