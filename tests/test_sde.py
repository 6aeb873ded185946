"""General forward SDEs: what is derived from drift and diffusion keeps the marginals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdekit as sk
from sdekit.distributions import Gaussian, GaussianMixture
from sdekit.sde import ForwardSDE, noise_kind

DOUBLE = torch.float64


class Sheared(ForwardSDE):
    """An Ornstein–Uhlenbeck process ``y`` seen through ``x = (y1, y2 + a sin y1)``.

    Nonlinear drift, full matrix diffusion that depends on the state (Itô's formula), and a density
    that is known at every time: the shear has determinant 1.
    """

    a = 0.7
    B = torch.tensor([[1.0, 0.3], [-0.4, 0.8]], dtype=DOUBLE)
    start = torch.tensor([[0.5, 0.2], [0.2, 0.4]], dtype=DOUBLE)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        y2 = x[:, 1] - self.a * torch.sin(x[:, 0])
        ito = -0.5 * self.a * torch.sin(x[:, 0]) * (self.B @ self.B.T)[0, 0]
        return torch.stack([-x[:, 0], -y2 - self.a * torch.cos(x[:, 0]) * x[:, 0] + ito], dim=1)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        one, zero = torch.ones_like(x[:, 0]), torch.zeros_like(x[:, 0])
        rows = [torch.stack([one, zero], 1), torch.stack([self.a * torch.cos(x[:, 0]), one], 1)]
        return torch.stack(rows, dim=1) @ self.B

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        y = torch.stack([x[:, 0], x[:, 1] - self.a * torch.sin(x[:, 0])], dim=1)
        decay = torch.exp(-2 * t)
        cov = decay * self.start + (1 - decay) * self.B @ self.B.T / 2
        return -0.5 * (y @ torch.linalg.inv(cov) * y).sum(1) - 0.5 * torch.logdet(cov)


class Radial(ForwardSDE):
    """Scalar noise that depends on the state, stationary at the standard normal law."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x - 0.5 * self.square(x)[:, None] * x

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.sqrt(self.square(x))

    def square(self, x: Tensor) -> Tensor:
        return 1 + 0.5 * x.square().sum(1)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * x.square().sum(1) + 0 * t


class Crossed(ForwardSDE):
    """Diagonal noise in which every entry depends on every coordinate, stationary likewise."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        phase = x.sum(1, keepdim=True)
        g = 1 + 0.4 * torch.sin(phase)
        return g * 0.4 * torch.cos(phase) - 0.5 * g**2 * x

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        return (1 + 0.4 * torch.sin(x.sum(1, keepdim=True))).expand(x.shape)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * x.square().sum(1) + 0 * t


def divergence(field: Tensor, x: Tensor) -> Tensor:
    """Divergence of a vector field by reverse-mode AD, ``(B, d) -> (B,)``."""
    parts = [
        torch.autograd.grad(field[:, i].sum(), x, create_graph=True)[0][:, i]
        for i in range(x.shape[1])
    ]
    return torch.stack(parts).sum(0)


def gram(G: Tensor, x: Tensor) -> Tensor:
    kind = noise_kind(G, x)
    if kind == "matrix":
        return G @ G.mT
    return torch.diag_embed((G[:, None] if kind == "scalar" else G).square().expand(x.shape))


def fokker_planck_residual(sde: ForwardSDE, drift, x: Tensor, t: Tensor, half: float) -> Tensor:
    """``(∂_t p + ∇·(b p) − half Σ ∂_i ∂_j (D_ij p)) / p`` at the points ``x``."""
    x, t = x.clone().requires_grad_(), t.clone().requires_grad_()
    p = torch.exp(sde.log_prob(x, t))
    dp_dt = torch.stack(
        [torch.autograd.grad(value, t, retain_graph=True, allow_unused=True)[0] for value in p]
    )
    Dp = gram(sde.diffusion(x, t), x) * p[:, None, None]
    spread = torch.stack([divergence(Dp[:, i], x) for i in range(x.shape[1])], dim=1)
    current = drift(x, t) * p[:, None] - half * spread
    return (dp_dt + divergence(current, x)) / p


def points(n: int = 64) -> Tensor:
    return torch.randn((n, 2), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def exact_score(sde: ForwardSDE):
    def score(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.clone().requires_grad_()
            return torch.autograd.grad(sde.log_prob(x, t).sum(), x, create_graph=True)[0]

    return score


SDES = [Sheared(), Radial(), Crossed()]


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_the_known_density_solves_the_forward_equation(sde):
    t = torch.tensor(0.37, dtype=DOUBLE)
    assert fokker_planck_residual(sde, sde.drift, points(), t, 0.5).abs().max() < 1e-8


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_backward_problems_keep_the_marginals(sde, eta):
    """Fokker–Planck of the derived reverse SDE and flow, for user-written drift and diffusion."""
    t = torch.tensor(0.37, dtype=DOUBLE)
    score = exact_score(sde)
    if eta == 0:
        flow = sde.probability_flow(score)
        drift = lambda x, t: flow(t, x)  # noqa: E731
    else:
        reverse = sde.reverse(score, eta)
        drift = lambda x, t: reverse.f(t, x)  # noqa: E731
        torch.testing.assert_close(reverse.diffusion(t, points()), eta * sde.diffusion(points(), t))
    # Backward in time the sign of the second-order term turns.
    residual = fokker_planck_residual(sde, drift, points(), t, -0.5 * eta**2)
    assert residual.abs().max() < 1e-8


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_a_forgotten_divergence_is_caught(sde, monkeypatch):
    monkeypatch.setattr(type(sde), "diffusion_divergence", lambda self, x, t: torch.zeros_like(x))
    flow = sde.probability_flow(exact_score(sde))
    t = torch.tensor(0.37, dtype=DOUBLE)
    residual = fokker_planck_residual(sde, lambda x, t: flow(t, x), points(), t, 0.0)
    assert residual.abs().max() > 1e-2


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_diffusion_divergence_by_reverse_mode(sde):
    x = points().requires_grad_()
    t = torch.tensor(0.2, dtype=DOUBLE)
    D = gram(sde.diffusion(x, t), x)
    expected = torch.stack([divergence(D[:, i], x) for i in range(2)], dim=1)
    torch.testing.assert_close(sde.diffusion_divergence(x, t), expected, rtol=0, atol=1e-13)


def test_state_independent_diffusion_costs_one_evaluation():
    calls = 0

    class Plain(ForwardSDE):
        def drift(self, x, t):
            return -x

        def diffusion(self, x, t):
            nonlocal calls
            calls += 1
            return torch.eye(2, dtype=x.dtype).expand(len(x), 2, 2) * (1 + t)

    value = Plain().diffusion_divergence(points(), torch.tensor(0.5, dtype=DOUBLE))
    assert calls == 1
    assert (value == 0).all()


PROCESSES = [
    sk.VP(),
    sk.SubVP(),
    sk.VE(0.01, 50.0),
    sk.EDM(),
    sk.CosineVP(),
    sk.RectifiedFlow(),
    sk.DiscreteVP(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=DOUBLE), 0)),
]


@settings(deadline=None, max_examples=40)
@given(
    process=st.sampled_from(PROCESSES),
    fraction=st.floats(0.05, 0.95),
    eta=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_affine_formula_equals_the_general_one(process, fraction, eta, seed):
    """From a denoiser, from closed-form scores, and from the general formula: one drift."""
    law = GaussianMixture.random(3, 2, seed=seed)
    t = torch.tensor(process.t_min + fraction * (process.T - process.t_min), dtype=DOUBLE)
    s, sigma = process.scale(t), process.sigma(t)
    x = s * law.sample(8, float(sigma), seed=seed)

    def score(x, t):
        return law.score(x / s, float(sigma)) / s

    general = ForwardSDE.backward_drift(process, score, x, t, eta)
    scale = general.abs().max()
    for model in (law, lambda x_hat, level: law(x_hat, level)):
        affine = process.backward_drift(model, x, t, eta)
        assert (affine - general).abs().max() < 1e-9 * scale
    from_score = process.probability_flow(score=score)
    general = ForwardSDE.backward_drift(process, score, x, t, 0.0)
    assert (from_score(t, x) - general).abs().max() < 1e-8 * scale


def test_flow_is_regular_at_both_ends():
    """σ = 0 with a model that knows its score, and σ = ∞ of rectified flow and the cosine schedule."""
    law = Gaussian([0.3, -0.2], [[0.5, 0.1], [0.1, 0.3]])
    x = points(4)
    for process in PROCESSES[:6]:
        for t in (0.0, process.T):
            velocity = process.probability_flow(law)(t, x)
            assert torch.isfinite(velocity).all(), (process, t)
            step = 1e-6 * process.T
            inside = process.probability_flow(law)(abs(t - step), x)
            # Continuity up to the end; the cosine schedule's derivative is large but bounded there.
            assert (velocity - inside).abs().max() < 2e-3 * (1 + inside.abs().max()), (process, t)
    # rectified flow: at t = 1 the velocity is ε − E[x0], at t = 0 it is −x0
    flow = sk.RectifiedFlow().probability_flow(law)
    mean, _ = law.moments()
    torch.testing.assert_close(flow(1.0, x), x - mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(flow(0.0, x), -x, rtol=0, atol=1e-14)


def test_per_sample_times_equal_a_loop():
    law, process = GaussianMixture.random(3, 2, seed=1), sk.VP()
    t = torch.linspace(0.1, 0.9, 5, dtype=DOUBLE)
    x = points(5)
    flow, reverse = process.probability_flow(law), process.reverse(law)
    for i in range(5):
        torch.testing.assert_close(flow(t, x)[i : i + 1], flow(t[i], x[i : i + 1]))
        torch.testing.assert_close(reverse.f(t, x)[i : i + 1], reverse.f(t[i], x[i : i + 1]))


def test_bad_input_is_refused():
    sde = Sheared()
    with pytest.raises(ValueError, match="eta = 0 is not positive"):
        sde.reverse(exact_score(sde), 0)
    with pytest.raises(TypeError, match="either a denoiser"):
        sk.VP().probability_flow()
    with pytest.raises(TypeError, match="either a denoiser"):
        sk.VP().reverse(lambda x, s: x, score=lambda x, t: x)

    class Wrong(Sheared):
        def diffusion(self, x, t):
            return torch.ones(3, 5)

    with pytest.raises(ValueError, match=r"diffusion has shape \(3, 5\)"):
        Wrong().probability_flow(exact_score(sde))(0.5, points())
    with pytest.raises(ValueError, match=r"takes \(\) or \(64,\)"):
        sk.VP().probability_flow(lambda x, s: x)(torch.ones(3), points())
    assert math.isfinite(float(sk.VP().probability_flow(lambda x, s: x)(0.5, points()).sum()))
