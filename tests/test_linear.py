"""Linear SDEs with matrices: laws, transitions, scores and matrix coordinates, against closed forms."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import measure_order
from scipy.integrate import solve_ivp
from torch import Tensor

import sdekit as sk
from sdekit.linear_kernels import collocated_kernel, constant_kernel

DOUBLE = torch.float64
EYE = torch.eye(2, dtype=DOUBLE)
RNG = np.random.default_rng(0)


def tensor(value) -> Tensor:
    return torch.as_tensor(value, dtype=DOUBLE)


def random_sde(seed: int, dim: int = 3, noises: int = 2, **times) -> sk.LinearSDE:
    rng = np.random.default_rng(seed)
    K, b, G = rng.normal(size=(dim, dim)), rng.normal(size=dim), rng.normal(size=(dim, noises))
    return sk.LinearSDE(K, b, G, **times)


def turning(**times) -> sk.LinearSDE:
    """Coefficients that depend on time and do not commute with themselves at other times."""
    A, B = tensor([[-1.0, 2.0], [-0.5, -0.3]]), tensor([[0.2, -1.0], [1.5, 0.1]])
    return sk.LinearSDE(
        lambda t: A * (1 + t) + B * torch.sin(5 * t),
        lambda t: torch.stack([torch.cos(3 * t), t]),
        lambda t: torch.stack([torch.exp(-t), 1 + t])[:, None],
        **times,
    )


def rising(t: Tensor) -> Tensor:
    """A rate with the integral ``t + 3.5 t²``."""
    return 1 + 7 * t


CRITICAL = {"constant": sk.CriticallyDamped(1), "rising": sk.CriticallyDamped(1, beta=rising)}


def critical_psi(name: str, t: float, s: float) -> Tensor:
    """Closed form: with Γ² = 4 M the matrix of the drift is −2/√M times I plus a nilpotent one."""
    clock = {"constant": lambda r: 4 * r, "rising": lambda r: r + 3.5 * r**2}[name]
    B = clock(t) - clock(s)
    return math.exp(-2 * B) * (EYE + B * tensor([[2.0, 4.0], [-1.0, -2.0]]))


def critical_cov(name: str, C0: Tensor, t: float) -> Tensor:
    """What is left of the distance to the stationary covariance diag(1, M)."""
    psi, rest = critical_psi(name, t, 0.0), torch.diag(tensor([1.0, 0.25]))
    return rest + psi @ (C0 - rest) @ psi.mT


START = tensor([[0.5, 0.05], [0.05, 0.01]])


# --- mean, covariance, transition ---


@pytest.mark.parametrize("name", CRITICAL)
@pytest.mark.parametrize("t", [1e-6, 1e-3, 0.1, 0.7, 1.0])
def test_critical_damping_has_its_closed_form(name, t):
    sde, m0 = CRITICAL[name], tensor([0.3, -0.8])
    psi = critical_psi(name, t, 0.0)
    torch.testing.assert_close(sde.fundamental(t, 0.0), psi, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(sde.mean(m0, t), psi @ m0, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        sde.covariance(START, t), critical_cov(name, START, t), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("name", CRITICAL)
def test_noise_is_exact_relative_to_itself_after_a_short_time(name):
    """The variance that noise in the velocity gives to the data: ``2 β³ t³ Γ / 3 M²``."""
    t, rate = 1e-6, {"constant": 4.0, "rising": 1.0}[name]
    cov = CRITICAL[name].kernel(0.0, t).cov
    leading = np.array([[16 * rate**2 * t**3 / 3, 4 * rate * t**2 / 2], [4 * rate * t**2 / 2, t]])
    np.testing.assert_allclose(cov, 2 * rate * leading, rtol=1e-4)  # the next terms
    read = CRITICAL[name].table(tensor(t)).cov.numpy()
    np.testing.assert_allclose(read, cov, rtol=1e-9)


def test_offset_of_an_ornstein_uhlenbeck_process():
    """``dx = (1 − 2 x) dt + 3 dW``: mean to 1/2, variance to 9/4."""
    sde = sk.LinearSDE([[-2.0]], [1.0], [[3.0]], T=5.0)
    for t in (0.3, 5.0):
        decay = math.exp(-2 * t)
        torch.testing.assert_close(sde.mean([4.0], t), tensor([0.5 + 3.5 * decay]))
        expected = tensor([[9 / 4 * (1 - decay**2) + 0.2 * decay**2]])
        torch.testing.assert_close(sde.covariance([[0.2]], t), expected)
    law = sde.stationary()
    mean, cov = law.moments()
    torch.testing.assert_close(mean, tensor([0.5]))
    torch.testing.assert_close(cov, tensor([[2.25]]))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-6, 2.0))
def test_collocation_is_the_matrix_exponential(seed, length):
    sde = random_sde(seed, T=2.0)
    exact = constant_kernel(sde.coefficients(np.array(0.0)), length)

    def at(t):
        return type(sde.coefficients(t))(
            *(np.broadcast_to(v[0], v.shape) for v in sde.coefficients(t))
        )

    for a, b in zip(collocated_kernel(at, 0.0, length, 3), exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12 * np.abs(b).max())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3))
def test_transitions_form_a_semigroup(seed, times):
    r, s, t = sorted(times)
    for sde in (random_sde(seed), turning()):
        two = sde.kernel(r, s).then(sde.kernel(s, t))
        for a, b in zip(two, sde.kernel(r, t), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
        inverse = sde.fundamental(r, t) @ sde.fundamental(t, r)
        torch.testing.assert_close(inverse, torch.eye(sde.dim, dtype=DOUBLE), rtol=0, atol=1e-11)


def test_coefficients_that_depend_on_time_against_scipy():
    sde, m0 = turning(), np.array([1.0, -2.0])

    def rate(t, y):
        K, b, gram = sde.coefficients(np.array(t))
        m, C = y[:2], y[2:].reshape(2, 2)
        return np.concatenate([K @ m + b, (K @ C + C @ K.T + gram).ravel()])

    y0 = np.concatenate([m0, START.numpy().ravel()])
    solved = solve_ivp(rate, (0, 1), y0, method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    np.testing.assert_allclose(sde.mean(m0, 1.0).numpy(), solved[:2], rtol=1e-11)
    np.testing.assert_allclose(sde.covariance(START, 1.0).numpy().ravel(), solved[2:], rtol=1e-11)


@pytest.mark.parametrize("constant", [True, False])
def test_fundamental_matrix_back_in_time_is_no_inverse(constant):
    """Ψ(0, 1) of a stiff matrix: what Ψ(1, 0) has of its slow directions is below round-off."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    K = turn @ np.diag([-50.0, -1.0, -0.1]) @ turn.T
    sde = sk.LinearSDE(tensor(K) if constant else lambda t: tensor(K), np.zeros(3), np.eye(3))
    exact = turn @ np.diag(np.exp([50.0, 1.0, 0.1])) @ turn.T
    error = np.abs(sde.fundamental(0.0, 1.0).numpy() - exact).max()
    assert error < 1e-11 * np.abs(exact).max()


def test_coefficients_may_jump():
    """A switch at t = 0.3: transitions before and after, one after the other."""
    switched = sk.LinearSDE(
        lambda t: -EYE * (1 + 4 * (t > 0.3)), torch.zeros(2), lambda t: EYE * (2 - 1.0 * (t > 0.3))
    )
    first = sk.LinearSDE(-EYE, [0, 0], 2 * EYE).kernel(0.0, 0.3)
    both = first.then(sk.LinearSDE(-5 * EYE, [0, 0], EYE).kernel(0.3, 1.0))
    for a, b in zip(switched.kernel(0.0, 1.0), both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "sde", [random_sde(1), turning(), CRITICAL["rising"]], ids=lambda s: type(s).__name__
)
def test_tables_hold_the_kernels(sde):
    for t in (0.0, 3e-8, 1e-3, 0.25, 0.9, 1.0):
        for read, exact in zip(sde.table(tensor(t)), sde.kernel(0.0, t), strict=True):
            np.testing.assert_allclose(read.numpy(), exact, rtol=1e-11, atol=1e-14)
    several = sde.table(tensor([[0.2, 0.6]]))
    torch.testing.assert_close(several.cov[0, 1], sde.table(tensor(0.6)).cov)


@pytest.mark.parametrize("name", CRITICAL)
def test_covariance_between_two_times(name):
    sde, t, s = CRITICAL[name], 0.6, 0.2
    expected = critical_psi(name, t, s) @ critical_cov(name, START, s)
    torch.testing.assert_close(sde.cross_covariance(t, s, START), expected)
    torch.testing.assert_close(sde.cross_covariance(s, t, START), expected.mT)
    torch.testing.assert_close(sde.cross_covariance(s, s, START), critical_cov(name, START, s))


class Probe:
    """Noise with one row of the batch for each number: what a scheme makes of it is its matrix."""

    def __init__(self, first: int) -> None:
        self.row = first

    def on(self, clock):
        return self

    def increment(self, a, b, like):
        value = torch.zeros_like(like)
        value[self.row : self.row + like.shape[1]] = math.sqrt(b - a) * torch.eye(like.shape[1]).to(
            like
        )
        self.row += like.shape[1]
        return value


def probes(start: Tensor, root: Tensor, steps: int, noises: int) -> Tensor:
    """States at ``start``, then displaced by a root of their covariance, then for the noise."""
    rest = torch.zeros(steps * noises, len(start), dtype=DOUBLE)
    return start + torch.cat([torch.zeros_like(start)[None], root.mT, rest])


def law_of(states: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean, and covariance with others, of what affine steps make of `probes`."""
    others = states if others is None else others
    return states[0], (states[1:] - states[0]).mT @ (others[1:] - others[0])


@pytest.mark.parametrize("sde", [random_sde(2), turning()], ids=["constant", "turning"])
def test_exact_paths_have_the_joint_law_of_the_process(sde):
    """Without drawing a number: paths are affine in their noise, and the matrix is read off."""
    times, d = [0.0, 0.1, 0.15, 0.9], sde.dim
    root = tensor(RNG.normal(size=(d, d)))
    m0, C0 = tensor(RNG.normal(size=d)), root @ root.mT
    path = sk.simulate(sde, probes(m0, root, 3, d), times, noise=Probe(d + 1))
    for i, t in enumerate(times):
        mean, cov = law_of(path[i])
        torch.testing.assert_close(mean, sde.mean(m0, t), rtol=1e-12, atol=1e-12)
        for j, s in enumerate(times):
            cross = law_of(path[i], path[j])[1]
            torch.testing.assert_close(
                cross, sde.cross_covariance(t, s, C0), rtol=1e-10, atol=1e-12
            )
    mean, cov = sde.transition(path[1], 0.1, 0.9)
    torch.testing.assert_close(mean[0], path[3, 0])
    torch.testing.assert_close(cov, tensor(sde.kernel(0.1, 0.9).cov))


def test_euler_maruyama_takes_a_linear_sde():
    """Euler–Maruyama: ``C ← (I + h K) C (I + h K)ᵀ + h G Gᵀ``."""
    sde = random_sde(3)
    K, b, gram = (tensor(v) for v in sde.coefficients(np.array(0.0)))
    times, h, m, C = np.linspace(0, 1, 5), 0.25, tensor([1.0, 2.0, 3.0]), 0.3 * torch.eye(3)
    x = probes(m, 0.3**0.5 * torch.eye(3), 4, 2)
    path = sk.simulate(sde, x, times, method="euler_maruyama_t", noise=Probe(4))
    C, step = C.double(), torch.eye(3) + h * K
    for _ in range(4):
        m, C = step @ m + h * b, step @ C @ step.mT + h * gram
    mean, cov = law_of(path[-1])
    torch.testing.assert_close(mean, m)
    torch.testing.assert_close(cov, C)


def test_stationary_law():
    lyapunov = sk.LinearSDE.stationary(CRITICAL["constant"]).moments()
    torch.testing.assert_close(lyapunov[1], CRITICAL["rising"].stationary().moments()[1])
    sde = random_sde(0)
    stable = sk.LinearSDE(sde.K(tensor(0.0)) - 3 * torch.eye(3), [1, 2, 3], sde.G(tensor(0.0)))
    mean, cov = stable.stationary().moments()
    torch.testing.assert_close(stable.mean(mean, 0.4), mean)
    torch.testing.assert_close(stable.covariance(cov, 0.4), cov)


# --- laws and scores ---


@functools.cache
def mixture(dim: int) -> sk.GaussianMixture:
    return sk.GaussianMixture.random(3, dim, seed=1, width=0.5)


def residual(sde: sk.LinearSDE, law: sk.LinearLaw, x: Tensor, t: Tensor) -> Tensor:
    """``(∂_t p + ∇·((K x + b) p) − ½ Σ (G Gᵀ)_ij ∂_i ∂_j p) / p``, by automatic differentiation."""
    x, t = x.clone().requires_grad_(), t.clone().requires_grad_()
    p = law.log_prob(x, t).exp()
    dt, dx = torch.autograd.grad(p.sum(), (t, x), create_graph=True)
    hessian = [torch.autograd.grad(dx[:, i].sum(), x, retain_graph=True)[0] for i in range(sde.dim)]
    K, G = sde.K(t), sde.G(t)
    spread = ((G @ G.mT) * torch.stack(hessian, 1)).sum((1, 2))
    drift = K.diagonal(dim1=1, dim2=2).sum(1) * p + (sde.drift(x, t) * dx).sum(1)
    return (dt + drift - 0.5 * spread) / p


@pytest.mark.parametrize(
    "sde",
    [random_sde(4, dim=2), turning(), CRITICAL["rising"]],
    ids=["constant", "turning", "critical"],
)
def test_density_solves_the_fokker_planck_equation(sde):
    law = sde.law(mixture(2))
    t = torch.linspace(0.01, 0.99, 24, dtype=DOUBLE)
    x = torch.stack([law.sample(1, float(one), seed=n)[0] for n, one in enumerate(t)])
    assert residual(sde, law, x, t).abs().max() < 1e-9


@pytest.mark.parametrize(
    "data",
    [
        mixture(2),
        sk.Gaussian([1.0, 2.0], [[0.5, 0.2], [0.2, 0.3]]),
        sk.GaussianMixture([0.5, 0.5], [[0.0, 1.0], [2.0, 0.0]], [[0.1, 0.2], [0.3, 0.4]]),
        sk.Empirical([[0.0, 1.0], [2.0, -1.0]]),
    ],
    ids=lambda law: type(law).__name__,
)
def test_law_is_that_of_its_mixture_at_every_time(data):
    sde = turning()
    law, t = sde.law(data), 0.4
    x = law.sample(8, t, seed=0)
    at = law.at(t)
    assert isinstance(at, sk.Gaussian) == isinstance(data, sk.Gaussian)
    torch.testing.assert_close(law(x, t), at.score(x, 0.0))
    torch.testing.assert_close(law.log_prob(x, t), at.log_prob(x))
    # Moments of the whole mixture are mapped like those of a Gaussian.
    for got, expected in zip(
        at.moments(),
        (sde.mean(data.moments()[0], t), sde.covariance(data.moments()[1], t)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)
    # One time for each sample, and another dtype.
    each = torch.full((8,), t, dtype=DOUBLE)
    torch.testing.assert_close(law(x, each), law(x, t))
    rough = law(x.float(), t)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), law(x, t), rtol=1e-4, atol=1e-4)


def test_law_goes_on_before_its_start():
    """Where steps of torchdiffeq go: polynomials of the short first panel would explode there."""
    law, x = CRITICAL["rising"].law(GAUSSIAN), torch.ones(2, 2, dtype=DOUBLE)
    torch.testing.assert_close(law(x, tensor(-0.3)), law(x, 0.0), rtol=1e-12, atol=0)


def test_law_without_a_density_says_so_by_nan():
    law = turning().law(sk.Empirical([[0.0, 1.0], [2.0, -1.0]]))
    assert law(torch.zeros(2, 2, dtype=DOUBLE), 0.0).isnan().all()


# --- matrix coordinates ---


@functools.cache
def whitened(sde: sk.LinearSDE, law: sk.GaussianMixture, eta: float = 0.0) -> sk.Whitened:
    return sk.Whitened(sde, *law.moments(), eta=eta)


GAUSSIAN = sk.Gaussian([1.0, -0.5], [[0.5, 0.05], [0.05, 0.01]])
SDES = {"turning": turning(t_min=0.01), **CRITICAL}


@pytest.mark.parametrize("name", SDES)
def test_frame_is_a_root_of_the_covariance_and_keeps_white_noise(name):
    sde = SDES[name]
    white = whitened(sde, GAUSSIAN)
    mean, cov = GAUSSIAN.moments()
    for t in (sde.t_min, 0.02, 0.5, 1.0):
        S, m = white.frame(tensor(t))
        torch.testing.assert_close(S @ S.mT, sde.covariance(cov, t), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(m, sde.mean(mean, t), rtol=1e-11, atol=1e-13)
        if t == sde.t_min:  # an end of the table, where derivatives have fewer digits
            continue
        # S⁻¹ dS/dt − S⁻¹ K S = ½ S⁻¹ G Gᵀ S⁻ᵀ: symmetric, the root that does not rotate.
        moved = torch.func.jacfwd(lambda r: white.frame(r)[0])(tensor(t))
        pull = torch.linalg.solve(S, moved - sde.K(tensor(t)) @ S)
        torch.testing.assert_close(pull, -white.K(tensor(t)), rtol=1e-8, atol=1e-8)
    x = sde.law(GAUSSIAN).sample(4, 0.5, seed=0)
    torch.testing.assert_close(white.out_of(white.into(x, 0.5), 0.5), x)
    after = white.kernel(sde.t_min, 0.8)
    np.testing.assert_allclose(after.matrix @ after.matrix.T + after.cov, np.eye(2), atol=1e-11)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("method", ["euler_t", "heun_t", "rk4_t", "adams2_t"])
def test_flow_of_a_gaussian_is_exact_in_three_steps(name, method):
    """Against the flow in ``x`` by DOP853, and against the law: its covariance is carried over."""
    sde = SDES[name]
    law, white = sde.law(GAUSSIAN), whitened(sde, GAUSSIAN)
    x = probes(law.at(1.0).moments()[0], torch.linalg.cholesky(law.at(1.0).moments()[1]), 0, 0)
    flow, times = white.probability_flow(white.score(law)), np.linspace(1.0, sde.t_min, 4)
    end = sk.solve(flow, white.into(x, 1.0), method=method, times=times).x
    end = white.out_of(end, sde.t_min)
    reference = _by_scipy(name)
    torch.testing.assert_close(end, reference, rtol=0, atol=1e-10)
    mean, cov = law_of(end)
    torch.testing.assert_close(mean, sde.mean(GAUSSIAN.moments()[0], sde.t_min), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        cov, sde.covariance(GAUSSIAN.moments()[1], sde.t_min), rtol=0, atol=1e-10
    )


@functools.cache
def _by_scipy(name: str) -> Tensor:
    sde = SDES[name]
    law = sde.law(GAUSSIAN)
    mean, cov = law.at(1.0).moments()
    x = probes(mean, torch.linalg.cholesky(cov), 0, 0)
    fun = sde.probability_flow(law).numpy(tuple(x.shape))
    y = x.flatten().numpy()
    solved = solve_ivp(fun, (1.0, sde.t_min), y, method="DOP853", rtol=1e-12, atol=1e-13)
    return tensor(solved.y[:, -1]).reshape(x.shape)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", SDES)
def test_reverse_sde_of_a_gaussian_is_exact_in_law(name, steps, eta):
    sde = SDES[name]
    law, white = sde.law(GAUSSIAN), whitened(sde, GAUSSIAN, eta)
    mean, cov = law.at(1.0).moments()
    u = white.into(probes(mean, torch.linalg.cholesky(cov), steps, 2), 1.0)
    solver = sk.Solver(sk.ExactNoiseEuler(), sk.Native(), sk.grids.uniform_t)
    reverse = white.reverse(white.score(law), eta=eta)
    times = np.linspace(1.0, sde.t_min, steps + 1)
    end = white.out_of(
        sk.solve(reverse, u, method=solver, times=times, noise=Probe(3)).x, sde.t_min
    )
    got = law_of(end)
    expected = law.at(sde.t_min).moments()
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(got[1], expected[1], rtol=0, atol=1e-9)


def test_reverse_sde_of_a_mixture_has_the_moments_of_the_data():
    """20 000 samples, from the exact law at T, in matrix coordinates of the data's moments."""
    sde, count = sk.CriticallyDamped(1), 10_000
    data = sde.extended_law(sk.GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.09]))
    law, white = sde.law(data), whitened(sde, data, 1.0)
    x = law.sample(count, 1.0, seed=0)
    solver = sk.Solver(sk.ExactNoiseEuler(), sk.Native(), sk.grids.uniform_t)
    times = np.linspace(1.0, 0.0, 31) ** 2
    reverse = white.reverse(white.score(law))
    end = sk.solve(reverse, white.into(x, 1.0), method=solver, times=times, seed=1).x
    position = sde.data_part(white.out_of(end, 0.0))[:, 0]
    exact = data.sample(200_000, seed=2)[:, 0]
    for power in (1, 2, 3):
        values = exact**power
        sampling = float(values.std()) / math.sqrt(count)
        assert abs(float((position**power).mean() - values.mean())) < 5 * sampling + 0.02


LATE = 0.05  # where the flow of the mixture below is smooth
SCHEMES = {
    "euler": (sk.methods()["euler_t"].solver, 1),
    "heun": (sk.methods()["heun_t"].solver, 2),
    "adams-bashforth 2": (sk.Solver(sk.Adams(2), sk.Native(), sk.grids.uniform_t), 2),
    "adams-moulton 3": (sk.methods()["adams2_t"].solver, 3),
    "rk4": (sk.methods()["rk4_t"].solver, 4),
}


@functools.cache
def _problem(name: str):
    """The flow of a mixture, states at T, and where they end by either coordinates."""
    sde = CRITICAL[name]
    data = sde.extended_law(sk.GaussianMixture([0.4, 0.6], [[-0.8], [0.7]], [0.3, 0.2]))
    law, white = sde.law(data), whitened(sde, data)
    x = law.sample(4, 1.0, seed=0)
    plain, flow = sde.probability_flow(law), white.probability_flow(white.score(law))
    ends = [
        sk.solve(
            problem,
            start,
            method="variable_adams_t",
            times=[1.0, LATE],
            rtol=rtol,
            stepping="batch",
        ).x
        for problem, start, rtol in ((plain, x, 1e-8), (flow, white.into(x, 1.0), 1e-11))
    ]
    return white, flow, x, white.out_of(ends[1], LATE), ends[0]


@pytest.mark.parametrize("name", CRITICAL)
def test_trajectories_are_the_same_in_both_coordinates(name):
    *_, end, plain = _problem(name)
    torch.testing.assert_close(end, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_keep_their_orders_in_matrix_coordinates(scheme):
    white, flow, x, exact, _ = _problem("constant")
    solver, order = SCHEMES[scheme]
    start = white.into(x, 1.0)

    def error(n: int) -> float:
        times = LATE + (1 - LATE) * np.linspace(1.0, 0.0, n + 1) ** 2
        end = white.out_of(sk.solve(flow, start, method=solver, times=times).x, LATE)
        return float((end - exact).square().mean().sqrt())

    steps = {3: (96, 128, 160), 4: (24, 32, 48)}.get(order, (32, 48, 64))
    assert measure_order(error, steps, floor=1e-9) == pytest.approx(order, abs=0.3)


def test_a_wrong_reference_costs_accuracy_only():
    """The change of variables is exact for any reference, and for another process, too."""
    sde = turning(t_min=0.1)
    data = mixture(2)
    law = sde.law(data)
    x = law.sample(3, 1.0, seed=0)
    ends = []
    for cov in (data.moments()[1], 3 * EYE, torch.zeros(2, 2)):
        white = sk.Whitened(sde, [0.0, 1.0], cov)
        times = np.geomspace(1.0, 0.1, 49)
        flow = white.probability_flow(white.score(law))
        end = sk.solve(flow, white.into(x, 1.0), method="rk4_t", times=times).x
        ends.append(white.out_of(end, 0.1))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=2e-5)
    torch.testing.assert_close(ends[0], ends[2], rtol=0, atol=1e-4)


def test_laws_are_differentiable_after_a_solve_in_inference_mode():
    sde = sk.CriticallyDamped(1)
    law = sde.law(GAUSSIAN)
    x = torch.ones(2, 2, dtype=DOUBLE)
    with torch.inference_mode():
        sk.solve(sde.probability_flow(law), x, method="heun_t", times=[1.0, 0.5])
    x = x.clone().requires_grad_()
    sk.solve(sde.probability_flow(law), x, method="heun_t", times=[1.0, 0.5]).x.sum().backward()
    assert x.grad is not None


def test_the_reverse_sde_goes_into_torchsde():
    torchsde = pytest.importorskip("torchsde")
    sde = sk.CriticallyDamped(1, t_min=0.2)
    law = sde.law(GAUSSIAN)
    reverse = sde.reverse(law)
    x = law.sample(3, 1.0, seed=0)
    motion = torchsde.BrownianInterval(0.0, 0.8, size=(3, 1), dtype=DOUBLE, entropy=1)
    ts = torch.linspace(0.0, 0.8, 9, dtype=DOUBLE)
    theirs = torchsde.sdeint(reverse.time_reversed(), x, ts, bm=motion, method="euler", dt=0.1)[-1]

    class Same(Probe):
        def increment(self, a, b, like):
            return motion(1.0 - b, 1.0 - a)

    times = 1.0 - ts.numpy()
    ours = sk.solve(reverse, x, method="euler_maruyama_t", times=times, noise=Same(0)).x
    # Ends of intervals are rounded, and so is the path there, by the root of that.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


# --- critically damped Langevin ---


def test_extended_states_have_the_extended_law():
    sde = sk.CriticallyDamped(2, gamma=0.04)
    data = mixture(2)
    law = sde.extended_law(data)
    mean, cov = law.moments()
    torch.testing.assert_close(cov[:2, :2], data.moments()[1])
    torch.testing.assert_close(cov[2:, 2:], 0.01 * EYE)
    torch.testing.assert_close(mean[:2], data.moments()[0])
    assert cov[:2, 2:].abs().max() == 0
    state = sde.extended(data.sample(40_000, seed=0), seed=1)
    torch.testing.assert_close(sde.data_part(state), data.sample(40_000, seed=0))
    torch.testing.assert_close(state[:, 2:].var(0), tensor([0.01, 0.01]), rtol=0.03, atol=0)
    assert isinstance(sk.CriticallyDamped(2).extended_law(GAUSSIAN), sk.Gaussian)


# --- what is refused ---

CONSTANT = sk.LinearSDE(-EYE, [0, 0], EYE)
REFUSED = {
    "K, b and G have shapes": lambda: sk.LinearSDE(EYE, [0.0], EYE),
    "must be finite": lambda: sk.LinearSDE([[math.nan]], [0.0], [[1.0]]),
    "must return a tensor": lambda: sk.LinearSDE(lambda t: [[1.0]], [0.0], [[1.0]]),
    "cannot be integrated near": lambda: sk.LinearSDE(
        lambda t: torch.log(t - 1 / 3)[None, None], [0.0], [[1.0]]
    ).kernel(0.0, 1.0),
    "0 <= r <= t": lambda: CONSTANT.kernel(0.5, 0.2),
    "m0 must be": lambda: CONSTANT.mean([1.0], 0.5),
    "C0 must be": lambda: CONSTANT.covariance([1.0, 2.0], 0.5),
    "real part": lambda: sk.LinearSDE(EYE, [0, 0], EYE).stationary(),
    "depend on time": lambda: turning().stationary(),
    "the law is known for": lambda: CONSTANT.law(sk.Product.random(2, 2, seed=0)),
    "the data have 3": lambda: CONSTANT.law(mixture(3)),
    "singular at t_min": lambda: sk.Whitened(CONSTANT, [0, 0], torch.zeros(2, 2)),
    "eta = -1": lambda: sk.Whitened(CONSTANT, [0, 0], EYE, eta=-1.0),
    "these coordinates begin": lambda: sk.Whitened(turning(t_min=0.1), [0, 0], EYE).kernel(
        0.0, 0.5
    ),
    "must be symmetric": lambda: CONSTANT.covariance([[1.0, 2.0], [0.0, 1.0]], 0.5),
    "positive semi-definite": lambda: sk.Whitened(CONSTANT, [0, 0], [[-1.0, 0.0], [0.0, 1.0]]),
    "sde is a VP": lambda: sk.Whitened(sk.VP(), [0, 0], EYE),
    "t = 1.5; times": lambda: CONSTANT.law(GAUSSIAN)(torch.ones(1, 2), 1.5),
    r"shape \(4, 1\); it must be \(B, 2\)": lambda: CONSTANT.law(GAUSSIAN)(torch.ones(4, 1), 0.5),
    r"takes \(\) or \(4,\)": lambda: CONSTANT.law(GAUSSIAN)(torch.ones(4, 2), torch.ones(4, 1)),
    "x must be float32 or float64": lambda: CONSTANT.transition(
        torch.ones(1, 2, dtype=torch.int64), 0.0, 0.5
    ),
    "at T; it must be one": lambda: sk.LinearSDE(
        lambda t: EYE if t > 0.5 else EYE[:1], [0.0, 0.0], EYE
    ).kernel(0.0, 1.0),
    "must be a whole number": lambda: sk.CriticallyDamped(1.5),
    r"data are \(B, 2\)": lambda: sk.CriticallyDamped(2).extended(torch.ones(3, 3), seed=0),
    r"states are \(B, 4\)": lambda: sk.CriticallyDamped(2).data_part(torch.ones(3, 3)),
    "mass = 0": lambda: sk.CriticallyDamped(1, mass=0.0),
    "data_dim = 0": lambda: sk.CriticallyDamped(0),
    "the process 2": lambda: sk.CriticallyDamped(2).extended_law(mixture(3)),
    "strictly increasing": lambda: sk.simulate(CONSTANT, torch.zeros(1, 2), [1.0, 0.0]),
    r"must be \(B, 2\)": lambda: sk.simulate(CONSTANT, torch.zeros(1, 3), [0.0, 1.0]),
    "needs a LinearSDE": lambda: sk.solve(
        sk.VP().reverse(mixture(2)),
        torch.zeros(1, 2),
        method=sk.Solver(sk.ExactNoiseEuler(), sk.Native(), sk.grids.uniform_t),
        steps=3,
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused(message):
    with pytest.raises((ValueError, TypeError), match=message):
        REFUSED[message]()
