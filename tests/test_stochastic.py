"""Stochastic schemes: the papers' formulas, strong orders on shared paths, exact weak orders."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from orders import NotResolved, measure_order

import sdekit as sk
from sdekit.distributions import Distribution, Gaussian
from sdekit.solvers.registry import Solver

HIGH, LOW = 3.0, 0.3
STEPS = [8, 16, 32, 64, 128]
FINE = 2048
SDE_METHODS = [
    name
    for name, entry in sk.methods().items()
    if entry.solver.scheme.stochastic and entry.solver.scheme.strong_order
]


class Recorded:
    """A noise source that replays standard normal numbers, scaled by the root of the interval."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = iter(numbers)

    def increment(self, a, b, like):
        return next(self.numbers) * (b - a) ** 0.5

    def normal(self, like):
        return next(self.numbers)


class Halved:
    """Another source's increments, halved: a scheme whose noise coefficient is damaged."""

    def __init__(self, source) -> None:
        self.source = source

    def increment(self, a, b, like):
        return self.source.increment(a, b, like) / 2


@pytest.fixture
def start(product):
    return product.sample(16, HIGH, seed=3), torch.randn(
        (64, 16, 3), generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )


def times(process, sigmas):
    return process.on_host("time", sigmas)


# --- the papers' formulas, transcribed, in the papers' own variables ------------------------------


def test_edm_algorithm_1(product, start):
    """Heun in σ with the last Euler step to zero, as printed."""
    x, _ = start
    sigmas = np.append(sk.grids.karras(9, HIGH, LOW), 0.0)
    expected = x
    for here, there in itertools.pairwise(sigmas):
        d = (expected - product(expected, here)) / here
        nxt = expected + (there - here) * d
        if there != 0:
            d_next = (nxt - product(nxt, there)) / there
            nxt = expected + (there - here) * (d + d_next) / 2
        expected = nxt
    flow = sk.EDM().probability_flow(product)
    solved = sk.solve(flow, x, method="heun", sigmas=sigmas)
    assert solved.nfe == 2 * 10 - 1
    torch.testing.assert_close(solved.x, expected, rtol=0, atol=1e-12)


def test_edm_algorithm_2(product, start):
    """Churn, then Heun, as printed, with noise added on part of the range only."""
    x, z = start
    sigmas = np.append(sk.grids.karras(9, HIGH, LOW), 0.0)
    churn = {"s_churn": 3.0, "s_min": 0.15, "s_max": 2.0, "s_noise": 1.01}
    expected, numbers, used = x, iter(z), []
    for here, there in itertools.pairwise(sigmas):
        inside = churn["s_min"] <= here <= churn["s_max"]
        gamma = min(churn["s_churn"] / 10, np.sqrt(2) - 1) if inside else 0.0
        hat = here + gamma * here
        if gamma:
            used.append(next(numbers))
            expected = expected + np.sqrt(hat**2 - here**2) * churn["s_noise"] * used[-1]
        d = (expected - product(expected, hat)) / hat
        nxt = expected + (there - hat) * d
        if there != 0:
            nxt = expected + (there - hat) * (d + (nxt - product(nxt, there)) / there) / 2
        expected = nxt
    scheme = sk.Churn(sk.RungeKutta(sk.tableaus.HEUN), **churn)
    solver = Solver(scheme, sk.Noise(), sk.grids.karras)
    flow = sk.EDM().probability_flow(product)
    noise = Recorded(torch.stack(used))
    solved = sk.solve(flow, x, method=solver, sigmas=sigmas, noise=noise)
    assert 0 < len(used) < 10
    torch.testing.assert_close(solved.x, expected, rtol=0, atol=1e-12)


def test_churn_is_capped_and_the_registry_has_the_published_constants(product, start):
    """γ <= √2 − 1 (EDM, algorithm 2), and the constants of EDM's table 5 and of score_sde."""
    x, _ = start
    scheme = sk.Churn(sk.RungeKutta(sk.tableaus.EULER), s_churn=100.0, s_min=0.0, s_max=9.0)
    seen = []

    def denoiser(x, sigma):
        seen.append(float(sigma))
        return product(x, sigma)

    solver = Solver(scheme, sk.Noise(), sk.grids.log)
    flow = sk.EDM().probability_flow(denoiser)
    sk.solve(flow, x, method=solver, sigmas=[3.0, 2.0, 1.0], seed=0)
    assert seen == pytest.approx([3.0 * np.sqrt(2), 2.0 * np.sqrt(2)])
    churn = sk.methods()["edm_sde"].solver.scheme
    assert (churn.s_churn, churn.s_min, churn.s_max, churn.s_noise) == (40, 0.05, 50, 1.003)
    for name in ("pc", "pc_euler_maruyama"):
        scheme = sk.methods()[name].solver.scheme
        assert (scheme.snr, scheme.corrections) == (0.16, 1)


@pytest.mark.parametrize("eta", [1.0, 0.6])
def test_song_euler_maruyama(product, start, eta):
    """``x − [f x − ½(1 + η²) g² score] Δt + η g sqrt(Δt) z`` in VP's own time."""
    x_hat, z = start
    process = sk.VP()
    sigmas = sk.grids.uniform_t(12, HIGH, LOW, process)
    t = torch.from_numpy(times(process, sigmas))
    s, sigma = process.scale(t), process.sigma(t)
    x = expected = x_hat * s[0]
    for i in range(12):
        dt, beta = t[i] - t[i + 1], process.beta(t[i])
        score = product.score(expected / s[i], float(sigma[i])) / s[i]
        drift = -0.5 * beta * expected - 0.5 * (1 + eta**2) * beta * score
        expected = expected - drift * dt + eta * torch.sqrt(beta * dt) * z[i]
    problem = process.reverse(product, eta)
    solved = sk.solve(problem, x, method="euler_maruyama_t", sigmas=sigmas, noise=Recorded(z))
    torch.testing.assert_close(solved.x, expected, rtol=0, atol=1e-12)


def test_reverse_diffusion_is_song_eq_48_for_vp_and_46_for_ve(product, start):
    x_hat, z = start
    for process in (sk.VP(), sk.VE(0.01, 50.0)):
        sigmas = sk.grids.uniform_t(12, HIGH, LOW, process)
        t = torch.from_numpy(times(process, sigmas))
        s = process.scale(t)
        x = expected = x_hat * s[0]
        for i in range(12):
            score = product.score(expected / s[i], float(sigmas[i])) / s[i]
            if isinstance(process, sk.VP):
                beta = 1 - (s[i] / s[i + 1]) ** 2
                expected = (2 - torch.sqrt(1 - beta)) * expected + beta * score
                expected = expected + torch.sqrt(beta) * z[i]
            else:
                gap = sigmas[i] ** 2 - sigmas[i + 1] ** 2
                expected = expected + gap * score + np.sqrt(gap) * z[i]
        problem = process.reverse(product)
        solved = sk.solve(problem, x, method="reverse_diffusion", sigmas=sigmas, noise=Recorded(z))
        torch.testing.assert_close(solved.x, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "process", [sk.VP(), sk.VE(0.01, 50.0)], ids=["algorithm 5", "algorithm 4"]
)
def test_song_predictor_corrector(product, start, process):
    """Predictor, then Langevin steps in the process's own state, with each sample's own norms."""
    x_hat, z = start
    sigmas = sk.grids.uniform_t(8, HIGH, LOW, process)
    s = process.on_host("scale", times(process, sigmas))
    snr, numbers = 0.1, iter(z)
    x = expected = x_hat * s[0]

    def score(x, i):
        return product.score(x / s[i], float(sigmas[i])) / s[i]

    for i in range(8):
        ratio = s[i] / s[i + 1]
        variance = s[i] ** 2 * (sigmas[i] ** 2 - sigmas[i + 1] ** 2)
        expected = (2 - ratio) * expected + variance * score(expected, i)
        expected = expected + np.sqrt(variance) * next(numbers)
        for _ in range(2):
            noise, g = next(numbers), score(expected, i + 1)
            alpha = ratio**2  # 1 − β for VP, 1 for VE
            size = 2 * alpha * (snr * noise.norm(dim=1) / g.norm(dim=1)) ** 2
            expected = expected + size[:, None] * g + torch.sqrt(2 * size)[:, None] * noise
    scheme = sk.PredictorCorrector(sk.ReverseDiffusion(), snr=snr, corrections=2)
    solver = Solver(scheme, sk.Native(), sk.grids.uniform_t)
    problem = process.reverse(product)
    solved = sk.solve(problem, x, method=solver, sigmas=sigmas, noise=Recorded(z))
    torch.testing.assert_close(solved.x, expected, rtol=0, atol=1e-11)


# --- strong orders --------------------------------------------------------------------------------


def oracle(law, x_hat, sigmas, path, eta):
    """Fine Euler–Maruyama on the variance clock, written out: the driver of all strong tests."""
    for here, there in itertools.pairwise(sigmas):
        _, score = law.denoise_and_score(x_hat, torch.tensor(here))
        gap = here**2 - there**2
        dw = path.increment(there**2, here**2, x_hat)
        x_hat = x_hat + 0.5 * (1 + eta**2) * gap * score + eta * dw
    return x_hat


def churn_oracle(law, x_hat, sigmas, path, s_churn):
    """Fine churn with Euler steps of the flow, written out."""
    count = len(sigmas) - 1
    for n, (here, there) in enumerate(itertools.pairwise(sigmas)):
        hat = here * (1 + s_churn / count)
        z = path.increment(n / count, (n + 1) / count, x_hat) * np.sqrt(count)
        x_hat = x_hat + np.sqrt(hat**2 - here**2) * z
        middle = np.sqrt(hat * there)
        half = x_hat + (middle - hat) * (x_hat - law(x_hat, torch.tensor(hat))) / hat
        x_hat = x_hat + (there - hat) * (half - law(half, torch.tensor(middle))) / middle
    return x_hat


def plain_churn(solver: Solver) -> Solver:
    """The registered churn with noise over the whole range and of its true size."""
    scheme = sk.Churn(solver.scheme.scheme, s_churn=3.0, s_min=0.0, s_max=np.inf, s_noise=1.0)
    return dataclasses.replace(solver, scheme=scheme)


def strong_order(solver: Solver, law: Distribution, *, eta=1.0, damage=lambda source: source):
    """Measured slope of the RMS distance to the oracle, on one Brownian path per sample."""
    churn = isinstance(solver.scheme, sk.Churn)
    native = isinstance(solver.coordinates, sk.Native)
    process = sk.VP() if native else sk.EDM()
    grid = sk.grids.uniform_t if native else sk.grids.log
    x_hat = law.sample(2000, HIGH, seed=2)
    fine = grid(FINE, HIGH, LOW, process)
    clock = np.linspace(0, 1, FINE + 1) if churn else fine**2
    path = sk.GridPath(clock, tuple(x_hat.shape), seed=11)
    if churn:
        exact = churn_oracle(law, x_hat, fine, path, solver.scheme.s_churn)
        problem = process.probability_flow(law)
    else:
        exact = oracle(law, x_hat, fine, path, eta)
        problem = process.reverse(law, eta)
    start, end = (
        float(process.on_host("scale", process.on_host("time", level))) for level in (HIGH, LOW)
    )

    def error(n: int) -> float:
        sigmas = grid(n, HIGH, LOW, process)
        solved = sk.solve(problem, x_hat * start, method=solver, sigmas=sigmas, noise=damage(path))
        return float((solved.x / end - exact).square().mean().sqrt())

    return measure_order(error, STEPS, floor=1e-6, scale=10.0)


def prepared(name: str) -> Solver:
    solver = sk.methods()[name].solver
    return plain_churn(solver) if isinstance(solver.scheme, sk.Churn) else solver


@pytest.mark.parametrize("law", ["product", "gaussian"])
@pytest.mark.parametrize("name", SDE_METHODS)
def test_strong_order(name, law, request):
    solver = prepared(name)
    measured = strong_order(solver, request.getfixturevalue(law))
    assert measured == pytest.approx(solver.scheme.strong_order, abs=0.25)


@pytest.mark.parametrize("name", [n for n in SDE_METHODS if n != "edm_sde"])
def test_strong_order_for_less_noise(name, product):
    solver = prepared(name)
    assert strong_order(solver, product, eta=0.5) == pytest.approx(1.0, abs=0.25)


def fails(solver, law, order, **kwargs) -> bool:
    try:
        return abs(strong_order(solver, law, **kwargs) - order) > 0.25
    except NotResolved:
        return True


@pytest.mark.parametrize("name", SDE_METHODS)
def test_halved_noise_is_caught(name, product):
    solver = prepared(name)
    assert fails(solver, product, solver.scheme.strong_order, damage=Halved)


@dataclasses.dataclass(frozen=True)
class HalfDriftNoise(sk.Noise):
    def field(self, p):  # what plans are made of; drift is made of it, too
        return tuple(c / 2 for c in super().field(p))

    def drift(self, p, eta):
        return tuple(c / 2 for c in sk.Noise().drift(p, eta))


@dataclasses.dataclass(frozen=True)
class HalfDriftNative(sk.Native):
    def bind(self, process, sigma_data=None):
        return HalfDriftNative(process)

    def drift(self, p, eta):
        return tuple(c / 2 for c in super().drift(p, eta))


@pytest.mark.parametrize("name", [n for n in SDE_METHODS if n != "reverse_diffusion"])
def test_halved_drift_is_caught(name, product):
    solver = prepared(name)
    native = isinstance(solver.coordinates, sk.Native)
    broken = dataclasses.replace(
        solver, coordinates=HalfDriftNative() if native else HalfDriftNoise()
    )
    assert fails(broken, product, solver.scheme.strong_order)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["state", "denoiser", "noise"])
def test_halved_coefficient_of_reverse_diffusion_is_caught(which, product):
    class Broken(sk.ReverseDiffusion):
        def coefficients(self, view, grid):
            halves = super().coefficients(view, grid)
            return tuple(c / 2 if k == which else c for k, c in enumerate(halves))

    solver = dataclasses.replace(sk.methods()["reverse_diffusion"].solver, scheme=Broken())
    assert fails(solver, product, 1.0)


# --- weak orders, without Monte Carlo -------------------------------------------------------------


class Impulses:
    """Unit noise in step ``k`` for row ``k + 1`` only: a linear solver's response, noise by noise."""

    def __init__(self) -> None:
        self.step = 0

    def increment(self, a, b, like):
        out = torch.zeros_like(like)
        self.step += 1
        out[self.step] = (b - a) ** 0.5
        return out


def final_variance(solver: Solver, n: int, variance: float, noise=Impulses) -> float:
    """Exact variance of the solver's output for data N(0, variance): every step is linear."""
    law = Gaussian([0.0], [[variance]])
    process = sk.VP() if isinstance(solver.coordinates, sk.Native) else sk.EDM()
    native = isinstance(solver.coordinates, sk.Native)
    sigmas = (sk.grids.uniform_t if native else sk.grids.log)(n, HIGH, LOW, process)
    start, end = (
        float(process.on_host("scale", process.on_host("time", level))) for level in (HIGH, LOW)
    )
    x = torch.zeros((n + 1, 1), dtype=torch.float64)
    x[0] = start * np.sqrt(variance + HIGH**2)
    churn = isinstance(solver.scheme, sk.Churn)
    problem = process.probability_flow(law) if churn else process.reverse(law)
    solved = sk.solve(problem, x, method=solver, sigmas=sigmas, noise=noise())
    return float((solved.x / end).square().sum())


@pytest.mark.parametrize("name", SDE_METHODS)
def test_weak_order_by_propagating_the_law(name):
    solver = prepared(name)
    exact = 0.5 + LOW**2

    def error(n: int) -> float:
        return abs(final_variance(solver, n, 0.5) - exact)

    measured = measure_order(error, [64, 128, 256, 512])
    assert measured == pytest.approx(solver.scheme.weak_order, abs=0.15)
    # Halved noise leaves an error that does not converge.
    broken = [
        abs(final_variance(solver, n, 0.5, lambda: Halved(Impulses())) - exact) for n in (64, 512)
    ]
    assert broken[1] > 0.5 * broken[0] > 0.01


@pytest.mark.parametrize("name", ["pc", "pc_euler_maruyama"])
def test_bias_of_the_corrector_is_the_predicted_one(name):
    """Left to itself in d dimensions the Langevin corrector settles at v (1 + 2/d)² / (1 − r²)."""
    entry, d, snr = sk.methods()[name].solver, 16, 0.1
    scheme = sk.PredictorCorrector(entry.scheme.predictor, snr=snr, corrections=400)
    law, v = Gaussian(np.zeros(d), np.full(d, 0.3).tolist()), 0.3 + 1.0
    x = law.sample(4000, 1.0, seed=0)
    solver = Solver(scheme, sk.Native(), sk.grids.uniform_t)
    problem = sk.EDM().reverse(law)
    solved = sk.solve(problem, x, method=solver, sigmas=[1.0, 1.0 - 1e-6], seed=1)
    expected = v * (1 + 2 / d) ** 2 / (1 - snr**2)
    # 64,000 numbers: relative noise of the variance 0.6 %, and O(r⁴) is left out
    assert float(solved.x.square().mean()) == pytest.approx(expected, rel=0.02)


# --- general SDEs ---------------------------------------------------------------------------------


class Geometric(sk.ForwardSDE):
    """Geometric Brownian motion: its reverse SDE is known, and its noise depends on the state."""

    T = 1.0
    t_min = 0.2

    def drift(self, x, t):
        return 0.1 * x

    def diffusion(self, x, t):
        return 0.5 * x


def test_state_dependent_noise_has_strong_order_one_half(monkeypatch):
    """log x is Gaussian at all times, so the score of x is exact; the oracle is a fine solve."""
    process = Geometric()
    m0, v0 = 0.0, 0.04

    def score(x, t):
        mean, variance = m0 + (0.1 - 0.125) * t, v0 + 0.25 * t
        return -(1 + (torch.log(x) - mean) / variance) / x

    problem = process.reverse(score)
    fine = np.linspace(1.0, 0.2, FINE + 1)
    x = torch.exp(
        m0
        - 0.025
        + np.sqrt(v0 + 0.25)
        * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    path = sk.GridPath(fine, (2000, 1), seed=4)
    exact = x
    for here, there in itertools.pairwise(fine):
        # ∇·(GGᵀ) = 0.5 x, by hand
        drift = 0.1 * exact - 0.5 * exact - 0.25 * exact**2 * score(exact, torch.tensor(here))
        exact = exact + (there - here) * drift + 0.5 * exact * path.increment(there, here, exact)

    def error(n: int) -> float:
        grid = np.linspace(1.0, 0.2, n + 1)
        solved = sk.solve(problem, x, method="euler_maruyama_t", times=grid, noise=path)
        return float((solved.x - exact).square().mean().sqrt())

    assert measure_order(error, STEPS, floor=1e-6) == pytest.approx(0.5, abs=0.25)
    monkeypatch.setattr(Geometric, "diffusion_divergence", lambda self, x, t: 0.25 * x)
    with pytest.raises((NotResolved, AssertionError)):  # halved: not the solution any more
        assert measure_order(error, STEPS, floor=1e-6) == pytest.approx(0.5, abs=0.25)
