"""Adaptive steps of reverse SDEs: bridged rejections, strong errors, laws, batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

import sdekit as sk
from sdekit.path import join, split, whole
from sdekit.solvers.bridge import Bridged

DOUBLE = torch.float64
METHODS = [
    name
    for name, entry in sk.methods().items()
    if entry.solver.scheme.stochastic and entry.solver.scheme.adaptive and "gotta" not in name
]
EDM = sk.EDM()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def gaussian(x, sigma):
    """The denoiser of data ``N(0, 0.25)``."""
    return 0.25 / (0.25 + sigma.reshape(-1, *(1,) * (x.ndim - 1)) ** 2) * x


def chen(first, second):
    """Join two intervals, ``(h, W, H)`` each, by the integral of the path."""
    (g, v, G), (h, w, H) = first, second
    integral = g * (v / 2 + G) + h * (v + w / 2 + H)
    return g + h, v + w, integral / (g + h) - (v + w) / 2


class Numbers:
    """A noise source whose normal numbers are given, to be told from each other."""

    def __init__(self, columns):
        self.columns = iter(columns)

    def normal(self, like):
        out = torch.zeros_like(like)
        out[next(self.columns)] = 1
        return out


@pytest.mark.parametrize("seed", range(8))
def test_the_law_of_bridged_noise_is_exact(seed):
    """Random trials and rejections, carried through as linear maps of the normal numbers.

    Sample ``k`` has the ``k``-th number set to 1 and the others 0, so that results are rows of
    coefficients: covariances are inner products of them, without any sampling.
    """
    rng, trials = np.random.default_rng(seed), 14
    count = 2 * trials
    noise = Bridged(Numbers(range(count)), torch.zeros(count, 1, dtype=DOUBLE))
    who, here, seen, done = np.arange(count), 0.0, [], []
    for n in range(trials):
        # Some ends are those of trials before, to the last bit.
        ends = [b for _, b, _, _ in seen if b > here]
        there = here + rng.exponential(0.5)
        if ends and rng.random() < 0.3:
            there = float(rng.choice(ends))
        W, H = noise.draw(who, np.full(count, here), np.full(count, there))[..., 0]
        seen.append((here, there, W, H))
        accept = rng.random() < 0.5 or n == trials - 1
        noise.judged(who, np.full(count, accept))
        if accept:
            done.append((there - here, W, H))
            here = there
    for a, b, W, H in seen:
        h = b - a
        assert float(W @ W) == pytest.approx(h, rel=1e-9)
        assert float(H @ H) == pytest.approx(h / 12, rel=1e-9)
        assert abs(float(W @ H)) < 1e-9
    for i, (_, W, H) in enumerate(done):  # accepted steps are independent
        for _, V, G in done[:i]:
            assert max(abs(float(p @ q)) for p in (W, H) for q in (V, G)) < 1e-9
    # What was seen is kept: a rejected trial is what later ones add up to, where they end together.
    total, start = None, 0.0
    for step in done:
        total = step if total is None else chen(total, step)
        for a, b, W, H in seen:
            if a == start == 0.0 and abs(b - total[0]) < 1e-12:
                torch.testing.assert_close(total[1], W, rtol=0, atol=1e-9)
                torch.testing.assert_close(total[2], H, rtol=0, atol=1e-9)


def test_a_cut_is_that_of_the_path():
    noise = Bridged(Numbers(range(6)), torch.zeros(6, 1, dtype=DOUBLE))
    who = np.arange(6)
    noise.draw(who, np.zeros(6), np.full(6, 2.0))
    noise.judged(who, np.zeros(6, dtype=bool))
    W, H = noise.draw(who, np.zeros(6), np.full(6, 0.6))[..., 0]
    left, _ = split(whole(0.0, 2.0, 0, 1), 0.6, 2, 3)
    for found, form in ((W, left.increment), (H, left.area)):
        np.testing.assert_allclose(found, [form.get(k, 0.0) for k in range(6)], atol=1e-12)
    right = split(whole(0.0, 2.0, 0, 1), 0.6, 2, 3)[1]
    noise.judged(who, np.ones(6, dtype=bool))
    W, H = noise.draw(who, np.full(6, 0.6), np.full(6, 2.0))[..., 0]
    for found, form in ((W, right.increment), (H, right.area)):
        np.testing.assert_allclose(found, [form.get(k, 0.0) for k in range(6)], atol=1e-12)
    assert join([left, right]).increment[0] == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("method", ["shark_theta", "spark_theta", "shark"])
def test_the_law_tends_to_the_exact_one(method):
    """Also in one dimension, where rejections would bias it most: KS test, false alarms 1e-4."""
    rtol = 3e-3 if method == "shark" else 1e-2
    x = 5.0 * normal(4000, 1)
    solved = sk.solve(
        EDM.reverse(gaussian),
        x,
        method=method,
        sigmas=[5.0, 0.05],
        rtol=rtol,
        seed=3,
        sigma_data=0.8,
    )
    # The start is N(0, 25), not N(0, 25.25): what is left of that is below the test's resolution.
    scale = math.sqrt(0.25 + 0.05**2)
    assert kstest(solved.x[:, 0].numpy(), norm(scale=scale).cdf).pvalue > 1e-4
    assert solved.stats.rejected > 0


def test_redrawn_noise_biases_the_law():
    """ "Gotta go fast" in one dimension: a tighter tolerance does not cure it."""
    x = 5.0 * normal(3000, 1)
    for rtol in (5e-2, 1e-2):
        solved = sk.solve(
            EDM.reverse(gaussian), x, method="gotta_go_fast", sigmas=[5.0, 0.05], rtol=rtol, seed=3
        )
        assert float(solved.x.std()) / math.sqrt(0.25 + 0.05**2) < 0.85


@pytest.mark.parametrize("method", METHODS)
def test_strong_errors_follow_the_tolerance(method):
    """On one path, against a fixed grid of many steps."""
    law = sk.GaussianMixture.random(3, 2, seed=2)
    x = law.sample(8, 2.0, seed=1)
    path = sk.BrownianPath(list(range(8)), (8, 2), resolution=2.0**-12)
    options = {"method": method, "noise": path, "sigma_data": 0.7}
    fine = sk.solve(EDM.reverse(law), x, sigmas=sk.grids.log(300, 2.0, 0.3), **options).x
    errors = []
    for rtol in (1e-1, 1e-2):
        solved = sk.solve(EDM.reverse(law), x, sigmas=[2.0, 0.3], rtol=rtol, **options)
        errors.append(float((solved.x - fine).square().mean().sqrt()))
        assert errors[-1] < 3 * rtol
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("method", ["shark_theta", "gotta_go_fast"])
def test_a_sample_does_not_depend_on_its_batch(method):
    def solve(x, seed):
        return sk.solve(
            EDM.reverse(gaussian), x, method=method, sigmas=[20.0, 0.1], rtol=5e-2, seed=seed,
            sigma_data=0.8,
        )  # fmt: skip

    x = 20 * normal(6, 3)
    whole = solve(x, list(range(6)))
    assert len(set(whole.stats.nfe_per_sample.tolist())) > 1
    part = solve(x[2:5], [2, 3, 4])
    assert torch.equal(whole.x[2:5], part.x)
    np.testing.assert_array_equal(whole.stats.nfe_per_sample[2:5], part.stats.nfe_per_sample)
    assert torch.equal(whole.x, solve(x, list(range(6))).x)


def test_the_default_is_adaptive_too():
    x = 20 * normal(64, 4)
    together = sk.solve(
        EDM.reverse(gaussian), x, sigmas=[20.0, 0.1, 0.0], rtol=5e-2, seed=0, stepping="batch"
    )
    assert together.status == "success"
    assert (together.stats.nfe_per_sample == together.nfe).all()
    stopped = sk.solve(EDM.reverse(gaussian), x, rtol=1e-2, seed=0, max_nfe=15)
    assert stopped.status == "max_nfe"
    assert stopped.nfe <= 15
    with pytest.raises(ValueError, match="is not interpolated"):
        sk.solve(EDM.reverse(gaussian), x, rtol=1e-2, seed=0, dense=True)
    with pytest.raises(ValueError, match="one seed for the batch"):
        sk.solve(EDM.reverse(gaussian), x, rtol=1e-2, noise=sk.BrownianPath(1, (64, 4)))


@pytest.mark.parametrize("method", ["stochastic_adams2", "shark_theta", "ddim_eta"])
def test_noise_is_not_replayed(method):
    x = (20 * normal(3, 2)).requires_grad_()
    with pytest.raises(ValueError, match="needs a deterministic method"):
        sk.solve(EDM.reverse(gaussian), x, method=method, steps=4, seed=0, checkpoint=True)
    with pytest.raises(ValueError, match="needs a deterministic method"):
        sk.solve(EDM.reverse(gaussian), x, rtol=0.1, seed=0, checkpoint=True)


def test_gradients_go_through_noise():
    """Of a linear problem: the derivative is the ratio of results without noise."""
    x = (20 * normal(3, 2)).requires_grad_()
    for options in ({"steps": 6}, {"rtol": 0.1}):
        solved = sk.solve(EDM.reverse(gaussian), x, seed=0, sigma_data=0.8, **options)
        (gradient,) = torch.autograd.grad(solved.x.sum(), x)
        with torch.no_grad():
            moved = x.clone()
            moved[0, 0] += 1e-4
            again = sk.solve(EDM.reverse(gaussian), moved, seed=0, sigma_data=0.8, **options)
        change = float((again.x - solved.x).detach().sum()) / 1e-4
        assert change == pytest.approx(float(gradient[0, 0]), rel=1e-4)
