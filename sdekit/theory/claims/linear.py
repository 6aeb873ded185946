"""Linear SDEs with matrix coefficients, and critically damped Langevin diffusion."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.linalg import expm
from torch import Tensor

from ...critically_damped import CriticallyDamped
from ...linear import LinearSDE
from ..calculus import divergence, fokker_planck, gradient, gram, jacobian, residual
from ..claim import claim
from ..draw import Draw

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


def _system(draw: Draw, constant: bool = False) -> LinearSDE:
    """A linear SDE in two dimensions with three sources of noise."""
    K0, K1 = draw.normal(2, 2) - torch.eye(2).double(), 0.8 * draw.normal(2, 2)
    b0, b1, G0, G1 = draw.normal(2), draw.normal(2), draw.normal(2, 3), 0.5 * draw.normal(2, 3)
    if constant:
        return LinearSDE(K0, b0, G0)
    return LinearSDE(
        lambda t: K0 + torch.sin(2 * t) * K1,
        lambda t: b0 + torch.cos(3 * t) * b1,
        lambda t: G0 + t * G1,
    )


def _flat(*parts: object) -> Tensor:
    """Tensors and arrays in one row."""
    return torch.cat([torch.as_tensor(part).reshape(1, -1) for part in parts], 1)


def _spd(draw: Draw) -> Tensor:
    root = draw.normal(2, 2)
    return root @ root.T + 0.2 * torch.eye(2, dtype=torch.float64)


@claim(
    "linear-moment-odes",
    title="Mean and covariance of a linear SDE",
    statement="Ψ̇ = K Ψ,  ṁ = K m + b,  Ċ = K C + C Kᵀ + G Gᵀ",
    sources={"chen": "theorem 9, eq. 23, 24", "khungurn": "theorem 1", "sarkka": "eq. 6.2"},
    tags=("linear", "forward"),
    tolerance=1e-9,
    because="coefficients are integrated to 1e-14 on polynomial panels, which are differentiated",
)
def _moment_odes(draw: Draw) -> float:
    """The table of kernels is differentiated in time, and its values are those of mean and covariance.

    With coefficients that depend on time; for constant ones the fundamental matrix is scipy's
    matrix exponential.
    """
    sde, m0, C0 = _system(draw), draw.normal(2), _spd(draw)
    t = draw.uniform(0.1, 0.9, 4)

    def moments(u: Tensor) -> Tensor:
        matrix, shift, cov = sde.table(u)
        m = matrix @ m0 + shift
        C = matrix @ C0 @ matrix.mT + cov
        return torch.cat([matrix.flatten(1), m, C.flatten(1)], 1)

    found = jacobian(lambda u: moments(u[:, 0]), t[:, None])[:, :, 0]
    values = moments(t)
    matrix, m, C = values[:, :4].reshape(-1, 2, 2), values[:, 4:6], values[:, 6:]
    C = C.reshape(-1, 2, 2)
    K, G = sde.K(t), sde.G(t)
    grown = K @ C
    right = torch.cat(
        [
            (K @ matrix).flatten(1),
            (K @ m[:, :, None])[:, :, 0] + sde.b(t),
            (grown + grown.mT + G @ G.mT).flatten(1),
        ],
        1,
    )
    worst = residual(found, right)
    for i, u in enumerate(t.tolist()):
        own = _flat(sde.fundamental(u, 0.0), sde.mean(m0, u), sde.covariance(C0, u))
        worst = max(worst, residual(own, values[i : i + 1]))
    fixed = _system(draw, constant=True)
    power = expm(fixed.K(t[0]).numpy() * 0.7)
    return max(worst, residual(_flat(fixed.fundamental(0.9, 0.2)), _flat(power)))


@claim(
    "linear-solution",
    title="Explicit solution and exact discretisation of a linear SDE",
    statement="x_t | x_r ~ N(Ψ(t,r) x_r + ∫Ψ(t,s) b ds, ∫Ψ(t,s)GGᵀΨ(t,s)ᵀ ds), Ψ(t,u)Ψ(u,r) = Ψ(t,r)",
    sources={"chen": "theorems 8, 10 and 11, eq. 22, 25, 28, 30", "sarkka": "chapter 6"},
    tags=("linear", "forward"),
    tolerance=1e-10,
    because="Gauss–Legendre quadrature with 24 points",
)
def _solution(draw: Draw) -> float:
    """The integrals of the explicit solution by quadrature against `LinearSDE.kernel` and `transition`.

    The noise of two steps adds up to that of one.
    """
    sde = _system(draw)
    r, u, t = (float(v) for v in draw.uniform(0.05, 0.95, 3).sort().values)
    shift, cov = torch.zeros(2).double(), torch.zeros(2, 2).double()
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        s = 0.5 * (r + t) + 0.5 * (t - r) * node
        matrix, w = sde.fundamental(t, s), 0.5 * (t - r) * weight
        at = torch.tensor(s, dtype=torch.float64)
        noise = matrix @ sde.G(at)
        shift, cov = shift + w * matrix @ sde.b(at), cov + w * noise @ noise.T
    x = draw.normal(3, 2)
    mean, spread = sde.transition(x, r, t)
    half, first = sde.transition(x, r, u)
    last, second = sde.transition(half, u, t)
    step = sde.fundamental(t, u)
    matrix = sde.fundamental(t, r)
    return max(
        residual(mean, x @ matrix.T + shift),
        residual(_flat(spread), _flat(cov)),
        residual(last, mean),
        residual(_flat(step @ first @ step.T + second), _flat(spread)),
        residual(_flat(step @ sde.fundamental(u, r)), _flat(matrix)),
        residual(_flat(sde.fundamental(r, t) @ matrix), _flat(torch.eye(2).double())),
    )


@claim(
    "linear-covariance-function",
    title="Covariance function of a linear SDE",
    statement="Cov(x_t, x_s) = Ψ(t, s) C(s) for s < t",
    sources={"chen": "theorem 12, eq. 31", "sarkka": "chapter 6"},
    tags=("linear", "forward"),
    tolerance=1e-10,
    because="Gauss–Legendre quadrature with 24 points",
)
def _covariance_function(draw: Draw) -> float:
    """The noise after s is independent of x_s, so only what is left of x_s counts.

    `cross_covariance` against what both share, ``Ψ(t,0) C₀ Ψ(s,0)ᵀ + ∫₀ˢ Ψ(t,u) G Gᵀ Ψ(s,u)ᵀ du``.
    """
    sde, C0 = _system(draw), _spd(draw)
    s, t = (float(v) for v in draw.uniform(0.1, 0.95, 2).sort().values)
    shared = sde.fundamental(t, 0.0) @ C0 @ sde.fundamental(s, 0.0).T
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        u = 0.5 * s * (1 + node)
        G = sde.G(torch.tensor(u, dtype=torch.float64))
        shared = (
            shared + 0.5 * s * weight * sde.fundamental(t, u) @ G @ G.T @ sde.fundamental(s, u).T
        )
    late, early = sde.cross_covariance(t, s, C0), sde.cross_covariance(s, t, C0)
    return max(residual(_flat(late), _flat(shared)), residual(_flat(early), _flat(shared.T)))


@claim(
    "linear-density",
    title="Fokker–Planck and continuity equation of a linear SDE",
    statement="∂p/∂t = L*p = −∇·(v p), v = K x + b − ½ G Gᵀ ∇log p, for a mixture at time 0",
    sources={"chen": "theorem 10, eq. 26, 113 to 115", "sarkka": "chapter 5"},
    tags=("linear", "density", "flow"),
    tolerance=1e-8,
    because="second derivatives of a density whose coefficients are polynomials on panels",
)
def _density(draw: Draw) -> float:
    """A mixture stays one; its density and score are those of `LinearSDE.law`.

    The density is differentiated in time and state, the flow is `ForwardSDE.probability_flow`.
    """
    sde, data = _system(draw), draw.mixture()
    law, t = sde.law(data), draw.uniform(0.1, 0.9, 4)
    x = data.sample(4, seed=draw.integer(2**31)) + draw.normal(4, 2)

    def density(y: Tensor, u: Tensor) -> Tensor:
        return torch.exp(law.log_prob(y, u))

    rate = gradient(lambda u: density(x, u), t)
    parts = fokker_planck(
        lambda y: sde.drift(y, t), lambda y: gram(sde, y, t), lambda y: density(y, t), x
    )
    flow = sde.probability_flow(score=law)
    moved = divergence(lambda y: flow(t, y) * density(y, t)[:, None], x)
    score = gradient(lambda y: law.log_prob(y, t), x)
    return max(
        residual(rate, parts[0] + parts[1], *parts),
        residual(rate, -moved, *parts),
        residual(score, law(x, t)),
    )


@claim(
    "measure-preserving-flow",
    title="Volume of a flow; without divergence it keeps the density",
    statement="det ∂φ/∂x = exp ∫ ∇·v dt; ∇·v = 0 ⇒ p_t(φ(x)) = p₀(x)",
    sources={"chen": "theorem 22, eq. 55"},
    tags=("linear", "flow", "density"),
    tolerance=1e-10,
    because="round-off of matrix exponentials and Gauss–Legendre quadrature",
)
def _volume(draw: Draw) -> float:
    """A linear flow without noise has the divergence ``tr K``, and its map is the fundamental matrix.

    Liouville's formula for a K that depends on time; and, with the trace taken out, the density of a
    mixture along the flow.
    """
    sde = _system(draw)
    times = 0.45 * (1 + torch.from_numpy(_NODES))
    trace = sde.K(times).diagonal(dim1=1, dim2=2).sum(1)
    volume = torch.exp(0.45 * (torch.from_numpy(_WEIGHTS) * trace).sum())
    K = draw.normal(2, 2)
    K = K - 0.5 * K.trace() * torch.eye(2).double()
    still = LinearSDE(K, draw.normal(2), torch.zeros(2, 1))
    data = draw.mixture()
    x = data.sample(5, seed=draw.integer(2**31))
    end = still.transition(x, 0.0, 0.8)[0]
    after, before = still.law(data).log_prob(end, 0.8), data.log_prob(x)
    found = torch.linalg.det(sde.fundamental(0.9, 0.0))
    return max(residual(found.reshape(1), volume.reshape(1)), residual(after, before))


@claim(
    "anisotropic-heat",
    title="Diffusion equation with a diffusion matrix",
    statement="∂p/∂t = ∇·(𝒟∇p), 𝒟 = ½GGᵀ: p̂_t(λ) = p̂₀(λ) exp(−λᵀ𝒟λ t), N(μ, Σ) → N(μ, Σ + 2t𝒟)",
    sources={"chen": "theorem 24, eq. 60, 61, 65, 66"},
    tags=("linear", "brownian", "density"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
)
def _anisotropic(draw: Draw) -> float:
    """A linear SDE without drift blurs with a Gaussian of covariance 2t𝒟.

    The density of `LinearSDE.law` for a mixture satisfies the equation; its characteristic function is
    multiplied by a Gaussian; a point becomes the heat kernel.
    """
    G, t = draw.normal(2, 3), draw.uniform(0.2, 0.9, 4)
    sde, data = LinearSDE(torch.zeros(2, 2), torch.zeros(2), G), draw.mixture()
    D, law, x = 0.5 * G @ G.T, sde.law(data), draw.normal(4, 2)

    def density(y: Tensor, u: Tensor) -> Tensor:
        return torch.exp(law.log_prob(y, u))

    rate = gradient(lambda u: density(x, u), t)
    flowed = divergence(lambda y: gradient(lambda z: density(z, t), y) @ D.T, x)
    waves, end = draw.normal(4, 2), float(t[0])
    damped = torch.exp(-end * torch.einsum("bi,ij,bj->b", waves, D, waves))
    now = law.at(end).characteristic_function(waves)
    _, cov = sde.transition(x, 0.0, end)
    return max(
        residual(rate, flowed),
        residual(
            torch.view_as_real(now),
            torch.view_as_real(damped * data.characteristic_function(waves)),
        ),
        residual(_flat(cov), _flat(2 * end * D)),
    )


@claim(
    "linear-stationary",
    title="Stationary law of a linear SDE",
    statement="K m + b = 0 and K C + C Kᵀ + G Gᵀ = 0 (Lyapunov); the law then does not change",
    sources={"sarkka": "chapter 6", "chen": "remark 1"},
    tags=("linear",),
    tolerance=1e-9,
    because="round-off of a Lyapunov equation",
)
def _stationary(draw: Draw) -> float:
    """`LinearSDE.stationary` is put into both equations and carried over a step."""
    turn, pull = draw.normal(2, 2), _spd(draw)
    K = -pull + turn - turn.T
    sde = LinearSDE(K, draw.normal(2), draw.normal(2, 3))
    m, C = sde.stationary().moments()
    at = torch.zeros((), dtype=torch.float64)
    loss, gained = K @ C + C @ K.T, sde.G(at) @ sde.G(at).T
    return max(
        residual(_flat(K @ m), _flat(-sde.b(at))),
        residual(_flat(loss), _flat(-gained)),
        residual(_flat(sde.mean(m, 0.7), sde.covariance(C, 0.7)), _flat(m, C)),
    )


@claim(
    "critically-damped-kernel",
    title="Critically damped Langevin diffusion",
    statement="Ψ = e^(−q) [[1 + q, 4βt/Γ²], [−βt, 1 − q]], q = 2βt/Γ; Q = C − ΨCΨᵀ, C = diag(1, M)",
    sources={"cld": "eq. 5, appendix B.1"},
    tags=("linear", "forward"),
    tolerance=1e-10,
    because="round-off of matrix exponentials",
)
def _critically_damped(draw: Draw) -> float:
    """At Γ² = 4M the drift has one eigenvalue, twice, and its exponential a factor linear in time.

    Mean and covariance of `CriticallyDamped`, from data at rest or moving, against the closed forms;
    its stationary law solves Lyapunov's equation; the variance of the data is also written out as
    in the paper.
    """
    mass, gamma = float(draw.uniform(0.1, 1.0)), float(draw.uniform(0.02, 1.0))
    beta, t = float(draw.uniform(1.0, 6.0)), float(draw.uniform(0.1, 0.9))
    sde = CriticallyDamped(1, beta=beta, mass=mass, gamma=gamma)
    friction, B = 2 * math.sqrt(mass), beta * t
    q = 2 * B / friction
    entries = [[1 + q, 4 * B / friction**2], [-B, 1 - q]]
    matrix = math.exp(-q) * torch.tensor(entries, dtype=torch.float64)
    end = torch.diag(torch.tensor([1.0, mass], dtype=torch.float64))
    rest = end - matrix @ end @ matrix.T
    Q = sde.transition(torch.zeros(1, 2).double(), 0.0, t)[1]
    spread = float(draw.uniform(0.0, 2.0))
    start = torch.diag(torch.tensor([spread, gamma * mass], dtype=torch.float64))
    printed = math.exp(-4 * B / friction) * (
        spread
        + math.expm1(4 * B / friction)
        + 4 * B / friction * (spread - 1)
        + 4 * B**2 / friction**2 * (spread - 2)
        + 16 * B**2 / friction**4 * gamma * mass
    )
    at = torch.zeros((), dtype=torch.float64)
    loss, gained = sde.K(at) @ end, sde.G(at) @ sde.G(at).T
    return max(
        residual(_flat(sde.fundamental(t, 0.0)), _flat(matrix)),
        residual(_flat(Q), _flat(rest)),
        residual(_flat(sde.covariance(start, t)), _flat(matrix @ start @ matrix.T + rest)),
        residual(
            _flat(sde.covariance(start, t)[:1, :1]), torch.tensor([[printed]], dtype=torch.float64)
        ),
        residual(_flat(loss + loss.T), _flat(-gained)),
        residual(_flat(sde.stationary().moments()[1]), _flat(end)),
    )
