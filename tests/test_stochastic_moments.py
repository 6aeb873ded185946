"""Mean and covariance of one step of the reverse SDE, against what they are exactly (theory 4.4).

For a data law they are ``x + h s`` and ``h I + h² ∇s``, with ``s`` the score of the law at the start of
the step and ``h`` the fall of ``σ²``. For any other drift, such as that of a trained network, they are
known as expansions in ``h``.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from noise_sources import Silent
from stochastic_errors import OF_THE_SDE, STOCHASTIC, remembers, solved

import sdekit as sk
from sdekit.distributions import GaussianMixture
from sdekit.theory.noises import Recorded

DOUBLE = torch.float64
ONE_STEP = [  # of the SDE of η = 1
    n for n in OF_THE_SDE if not remembers(STOCHASTIC[n]) and not n.startswith("er_sde")
]
SIGMA, FALLS = 0.8, 0.08 / 2.0 ** np.arange(4)


def draws_of(solver, model, x) -> int:
    probe = Silent()
    solved(solver, model, x[:1], np.array([SIGMA, 0.9 * SIGMA]), probe)
    return probe.draws


def moments(solver, model, x, fall: float, nodes, weights):
    """Mean ``(d,)`` and covariance ``(d, d)`` of a step from one state, by quadrature."""
    sigmas = np.array([SIGMA, np.sqrt(SIGMA**2 - fall)])
    start = x.expand(len(weights), *x.shape[1:]).clone()
    y = solved(solver, model, start, sigmas, Recorded(nodes)).flatten(1)
    mean = weights @ y
    offset = y - mean
    return mean, (weights[:, None] * offset).mT @ offset


def defect(mean, cov) -> float:
    return float(torch.hypot(mean.norm(), cov.norm()))


def slope(defects) -> float:
    return float(np.polyfit(np.log(FALLS), np.log(defects), 1)[0])


def gauss_hermite(draws: int, dim: int):
    """Tensor product rule for draws of ``dim`` components: the first has the largest part."""
    counts = [(8, 5, 5)[k] if draws < 3 else 5 for k in range(draws) for _ in range(dim)]
    rules = [np.polynomial.hermite_e.hermegauss(count) for count in counts]
    nodes = np.array([*itertools.product(*(z for z, _ in rules))])
    weights = np.array([np.prod(w) for w in itertools.product(*(w for _, w in rules))])
    shaped = nodes.reshape(-1, draws, dim).transpose(1, 0, 2)
    return torch.from_numpy(shaped.copy()), torch.from_numpy(weights / weights.sum())


@pytest.fixture(scope="module")
def mixture():
    return GaussianMixture.random(3, 2, seed=1, width=0.4)


@pytest.fixture(scope="module")
def state(mixture):
    return mixture.sample(3, SIGMA, seed=4)[1:2]


def test_the_exact_moments_are_those_of_the_transition(mixture, state):
    for fall in FALLS:
        transition = mixture.reverse_transition(state, SIGMA, np.sqrt(SIGMA**2 - fall))
        hessian = torch.func.jacrev(lambda x: mixture.score(x[None], SIGMA)[0])(state[0])
        mean = state + fall * mixture.score(state, SIGMA)
        torch.testing.assert_close(transition.mean(), mean, rtol=0, atol=1e-14)
        cov = fall * torch.eye(2, dtype=DOUBLE) + fall**2 * hessian
        torch.testing.assert_close(transition.cov()[0], cov, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ONE_STEP)
def test_defects_of_one_step(name, mixture, state):
    """Of mean and covariance together: of one order more than the weak order."""
    solver = STOCHASTIC[name]
    rule = gauss_hermite(draws_of(solver, mixture, state), 2)
    defects = []
    for fall in FALLS:
        mean, cov = moments(solver, mixture, state, fall, *rule)
        exact = mixture.reverse_transition(state, SIGMA, np.sqrt(SIGMA**2 - fall))
        defects.append(defect(mean - exact.mean()[0], cov - exact.cov()[0]))
    assert slope(defects) == pytest.approx(solver.scheme.weak_order + 1, abs=0.25)


def test_first_order_schemes_in_the_denoiser_are_exact_in_the_mean(mixture, state):
    """And their covariances, DDPM's two variances, would be right for ``∇D = 0`` and ``∇D = I``."""
    below = np.sqrt(SIGMA**2 - FALLS[0])
    rule = gauss_hermite(1, 2)
    for name, variance in (
        ("sde_dpmpp_1", FALLS[0] * below**2 / SIGMA**2),
        ("ddim_eta", FALLS[0] * below**2 / SIGMA**2),
        ("ddpm", FALLS[0]),
    ):
        mean, cov = moments(STOCHASTIC[name], mixture, state, FALLS[0], *rule)
        exact = mixture.reverse_transition(state, SIGMA, below).mean()[0]
        torch.testing.assert_close(mean, exact, rtol=0, atol=1e-14)
        torch.testing.assert_close(cov, variance * torch.eye(2, dtype=DOUBLE), rtol=0, atol=1e-14)


# --- a trained network ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """The network, a state in the middle of its levels, and what the moments are made of there."""
    model = sk.load_digits_denoiser(dtype=DOUBLE)
    z = torch.randn((2, 1, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    with torch.no_grad():
        x = model(20 * z[0], torch.tensor(20.0, dtype=DOUBLE)) + SIGMA * z[1]

    def score(x, variance):  # in rows of pixels
        denoised = model(x.reshape(-1, 1, 8, 8), torch.sqrt(variance)).flatten(1)
        return (denoised - x) / variance

    row, variance = x.flatten(1), torch.tensor(SIGMA**2, dtype=DOUBLE)
    units = torch.eye(64, dtype=DOUBLE)
    s = score(row, variance)
    # dx = s dr + dB on the clock r that counts down the variance.
    _, along = torch.func.jvp(score, (row, variance), (s, -torch.ones_like(variance)))

    def directional(x):
        return torch.func.jvp(lambda x: score(x, variance), (x,), (units,))[1]

    jacobian, second = torch.func.jvp(directional, (row.repeat(64, 1),), (units,))
    return model, x, s[0], jacobian.mT, along[0] + second.sum(0) / 2


@pytest.mark.parametrize(
    ("name", "order"), [("euler_maruyama", 2), ("seeds_2", 3), ("sra3_theta", 3), ("shark", 3)]
)
def test_defects_of_one_step_with_a_network(name, order, digits):
    """``x + h s + h²/2 L s`` and ``h I + h²/2 (∇s + ∇sᵀ)``, with the generator ``L`` of the SDE.

    The network is no exact score: neither is its score a martingale, ``L s = 0``, nor its Jacobian
    symmetric. The rule is exact for polynomials of degree 3, and of degree 5 in one variable.
    """
    model, x, s, jacobian, generated = digits
    assert generated.norm() > 0.1 * s.norm()
    solver = STOCHASTIC[name]
    draws = draws_of(solver, model, x)
    size = draws * 64
    star = np.sqrt(3) * torch.eye(size, dtype=DOUBLE)
    nodes = torch.cat([torch.zeros(1, size, dtype=DOUBLE), star, -star])
    weights = torch.full((2 * size + 1,), 1 / 6, dtype=DOUBLE)
    weights[0] = 1 - size / 3
    nodes = nodes.reshape(-1, draws, 1, 8, 8).transpose(0, 1)
    defects = []
    for fall in FALLS:
        mean, cov = moments(solver, model, x, fall, nodes, weights)
        mean = mean - (x.flatten() + fall * s + fall**2 / 2 * generated)
        cov = cov - fall * torch.eye(64, dtype=DOUBLE) - fall**2 / 2 * (jacobian + jacobian.mT)
        defects.append(defect(mean, cov))
    assert slope(defects) == pytest.approx(order, abs=0.25)
