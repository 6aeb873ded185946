"""Misprints in Chen's tutorial: as they are printed, and as they should be."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...distributions import Gaussian
from ...linear import LinearSDE
from ...processes import VP, SubVP
from ..calculus import generator, gradient, gram, residual
from ..claim import Both, claim
from ..draw import Draw
from .forward import log_density, transition_log_density
from .score_matching import smooth_mixture

BATCH = 6
_LINE = torch.linspace(-16, 16, 4001, dtype=torch.float64)


def _one(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).reshape(1)


@claim(
    "chen-backward-kolmogorov",
    title="Whose density solves the backward equation",
    statement="∂p_{t|s}(y|x)/∂s + 𝒜 p_{t|s}(y|x) = 0 for t ≥ s, 𝒜 acting on x at time s",
    printed="P_{s|t}(y|x) for t ≥ s solves ∂P_{s|t}(y|x)/∂s + 𝒜(P_{s|t}(y|x)) = 0",
    sources={"chen": "theorem 7, eq. 18"},
    tags=("forward", "density", "misprint"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
)
def _backward_kolmogorov(draw: Draw) -> Both:
    """In theorem 6 ``P_{t|s}(x_t | x_s)`` leads from s to t; in theorem 7 the subscripts are swapped.

    The law of the earlier state given the later one, by Bayes' rule for a Gaussian under VP, solves
    another equation, that of the reverse SDE, whichever of its arguments the generator acts on.
    """
    process, data = VP(), draw.gaussian(1)
    s, t = draw.ordered_times(process, BATCH)
    x = draw.states(process, data, s)
    mean, std = process.transition(x, s, t)
    y = mean + std[:, None] * draw.normal(BATCH, 1)

    def ahead(early: Tensor, u: Tensor, late: Tensor) -> Tensor:
        return torch.exp(transition_log_density(process, late, t, early, u))

    def back(early: Tensor, u: Tensor, late: Tensor) -> Tensor:
        bayes = log_density(process, data, early, u) - log_density(process, data, late, t)
        return ahead(early, u, late) * torch.exp(bayes)

    def misses(rate: Tensor, moved: Tensor) -> float:
        return residual(-rate, moved)

    def moved(test: object, at: Tensor) -> Tensor:
        assert callable(test)
        return generator(lambda z: process.drift(z, s), lambda z: gram(process, z, s), test, at)

    right = misses(gradient(lambda u: ahead(x, u, y), s), moved(lambda z: ahead(z, s, y), x))
    rate = gradient(lambda u: back(x, u, y), s)
    printed = min(
        misses(rate, moved(lambda z: back(z, s, y), x)),
        misses(rate, moved(lambda z: back(x, s, z), y)),
    )
    pushed = moved(lambda z: back(z, s, y), x).tolist()[0]
    line = f"at one point −∂p/∂s is {-rate.tolist()[0]:.3g}, and 𝒜p is {pushed:.3g}"
    return Both(printed, right, line)


@claim(
    "chen-exact-discretisation",
    title="Noise of the exact discretisation",
    statement="X_{i+1} = A_i X_i + B_i + ξ_i, ξ_i ~ N(0, G_i), G_i = ∫ΨGQGᵀΨᵀ ds",
    printed="X_{i+1} = A_i X_i + B_i + G_i, G_i = ∫ΨGQGᵀΨᵀ ds",
    sources={"chen": "theorem 11, eq. 29, 30", "sarkka": "chapter 6"},
    tags=("linear", "forward", "misprint"),
    tolerance=1e-10,
    because="round-off",
)
def _discretisation(draw: Draw) -> Both:
    """The integral is a covariance, and is added to the state.

    In one dimension, where this can be done: mean and variance after ten steps from N(0, 1), for
    ``dX = −X dt + √2 dW``, whose law this is at all times.
    """
    sde, t = LinearSDE([[-1.0]], [0.0], [[math.sqrt(2)]]), float(draw.uniform(0.3, 1.0))
    A, B, G = (float(value.squeeze()) for value in sde.kernel(0.0, t / 10))
    mean, variance, shifted, shrunk = 0.0, 1.0, 0.0, 1.0
    for _ in range(10):
        mean, variance = A * mean + B, A**2 * variance + G
        shifted, shrunk = A * shifted + B + G, A**2 * shrunk
    wanted = torch.tensor([[0.0, 1.0]]).double()
    right = residual(torch.tensor([[mean, variance]], dtype=torch.float64), wanted)
    printed = residual(torch.tensor([[shifted, shrunk]], dtype=torch.float64), wanted)
    return Both(
        printed,
        right,
        f"ten printed steps give N({shifted:.2f}, {shrunk:.2f}), not N(0, 1)",
    )


@claim(
    "chen-matrix-variance",
    title="Variance of a linear SDE with a matrix a(t)",
    statement="V̇ = a V + V aᵀ + g Q gᵀ for a(t) ∈ R^{d×d}",
    printed="V'(t) = 2 a(t) V(t) + g(t) Q gᵀ(t), with a(t) ∈ R^{d×d}",
    sources={"chen": "eq. 76, 82; theorem 9 has it right"},
    tags=("linear", "forward", "misprint"),
    tolerance=1e-8,
    because="a sixth-order difference of covariances that are exact to round-off",
)
def _matrix_variance(draw: Draw) -> Both:
    """After eq. 76 a is a matrix, but eq. 77 to 85 multiply as if it were a number.

    In the last line of eq. 82 it is set as α, in the line before as a.
    The rate of `LinearSDE.covariance` from a fixed start is compared with both sides; the printed one
    is not even symmetric.
    """
    K, G = draw.normal(2, 2) - torch.eye(2).double(), draw.normal(2, 2)
    sde, t, h, zero = LinearSDE(K, torch.zeros(2), G), 0.5, 4e-3, torch.zeros(2, 2)
    rate = sum(
        weight * (sde.covariance(zero, t + n * h) - sde.covariance(zero, t - n * h)) / (60 * h)
        for n, weight in ((1, 45.0), (2, -9.0), (3, 1.0))
    )
    V = sde.covariance(zero, t)
    wanted, doubled = K @ V + V @ K.T + G @ G.T, 2 * K @ V + G @ G.T
    skew = float((doubled - doubled.T).abs().max() / doubled.abs().max())

    def miss(value: Tensor) -> float:
        return residual(torch.as_tensor(rate).reshape(1, -1), value.reshape(1, -1))

    return Both(miss(doubled), miss(wanted), f"a rate whose halves differ by {skew:.0%}")


@claim(
    "chen-langevin-remainder",
    title="What a Langevin step of size τ changes",
    statement="μ_{t+τ}(f) = μ_t(f) + τ² E[½ ∇log pᵀ ∇²f ∇log p − ½ Δ²f] + O(τ³) if X_t ~ p",
    printed="μ_{t+τ} = E[½ ∇ᵀlog p ∇²f ∇log p] · τ² = O(τ²)",
    sources={"chen": "theorem 13, eq. 33 to 35"},
    tags=("langevin", "misprint"),
    tolerance=1e-8,
    because="round-off; of the polynomial in τ two orders are taken out by three steps",
)
def _remainder(draw: Draw) -> Both:
    """Taylor's terms of third and fourth order are of size τ² too, as the noise is of size √τ.

    They add ``E[∇log p·∇Δf] + ½ E Δ²f = −½ E Δ²f`` by parts. For f = x⁴ on a mixture by quadrature,
    against ``(μ_{t+τ} − μ_t)/τ²``; that μ_t is missing is not counted.
    """
    data, ratios = smooth_mixture(draw), []
    density = torch.exp(data.log_prob(_LINE[:, None]))
    score = data.score(_LINE[:, None], 0.0)[:, 0]
    before = torch.trapezoid(density * _LINE**4, _LINE)
    for tau in (0.01, 0.02, 0.04):
        m, v = _LINE + tau * score, 2 * tau
        after = torch.trapezoid(density * (m**4 + 6 * m**2 * v + 3 * v**2), _LINE)
        ratios.append(float((after - before) / tau**2))
    measured = (8 * ratios[0] - 6 * ratios[1] + ratios[2]) / 3
    curved = float(torch.trapezoid(density * 0.5 * 12 * _LINE**2 * score**2, _LINE))
    return Both(
        abs(curved / measured - 1),
        abs((curved - 12) / measured - 1),
        f"E x⁴ changes by {measured:.1f} τ², printed {curved:.1f} τ²",
    )


@claim(
    "chen-sub-vp-drift",
    title="Drift of the sub-VP process",
    statement="f(x, t) = −½ β'(t) x",
    printed="f(x, t) = −½ β'(t)",
    sources={"chen": "eq. 91", "song2021": "eq. 12"},
    tags=("process", "forward", "misprint"),
    tolerance=1e-11,
    because="round-off",
)
def _sub_vp_drift(draw: Draw) -> Both:
    """Without the factor x the mean sinks at the same rate from wherever it starts.

    It stands once, in the copy that we have; eq. 92 has the mean of the right one. The rate of
    `SubVP`'s mean is compared with the printed drift at the mean; the mean itself would be
    ``x₀ − β/2`` and is ``x₀ e^(−β/2)``.
    """
    process, t, x0 = SubVP(), draw.uniform(0.1, 0.9, BATCH), draw.uniform(1.0, 2.0, BATCH, 1)
    mean = process.marginal(x0, t)[0]
    rate = gradient(lambda u: process.marginal(x0, u)[0][:, 0], t)
    beta = process.beta(t)
    start, end = float(x0[0]), _one(1.0)
    B = float(process.beta_integral(end))
    return Both(
        residual(rate, -0.5 * beta),
        max(
            residual(rate, -0.5 * beta * mean[:, 0]),
            residual(process.drift(mean, t)[:, 0], -0.5 * beta * mean[:, 0]),
        ),
        f"E x(1) from {start:.2f}: {start - B / 2:.2f} printed, {start * math.exp(-B / 2):.3f} right",
    )


@claim(
    "chen-denoising-bound",
    title="The bound that leads to denoising score matching",
    statement="E‖…‖² ≤ E[E_{y∼p(y|x_t)} ‖S − ∇log p(x_t|y)‖²] = E‖S − ∇log p(x_t|x₀)‖²",
    printed="E‖…‖² ≤ E[E_{y∼p_data} ‖S − ∇log p_{t|0}(x_t|y)‖²] = E‖S − ∇log p_{t|0}(x_t|x₀)‖²",
    sources={"chen": "eq. 104; eq. 102 and lemma 1 have the right law of y"},
    tags=("training", "score", "misprint"),
    tolerance=1e-9,
    because="trapezoidal rule, exponentially accurate for densities this smooth",
)
def _denoising_bound(draw: Draw) -> Both:
    """By lemma 1 the y of the middle line is a second draw from the law of the data given x_t.

    Middle and last line for a wrong score S, under VP on a Gaussian, by quadrature over x_t of the
    moments of y: those of the posterior, from `Gaussian`, and those of the data, as printed.
    """
    process, t = VP(), draw.uniform(0.15, 0.4, 1)
    law = Gaussian(draw.uniform(0.5, 1.5, 1), float(draw.uniform(0.5, 2.0)))
    s, n, sigma = process.scale(t), process.std(t), float(process.sigma(t))
    unscaled = _LINE[:, None]
    density = torch.exp(law.log_prob(unscaled, sigma))
    m0, C0 = (float(v.squeeze()) for v in law.moments())
    # A score that is wrong by a shift and a factor.
    S = 0.8 * law.score(unscaled, sigma)[:, 0] / s + 0.3

    def middle(mean: Tensor, variance: Tensor | float) -> Tensor:
        """E over y of (S + (x_t − s y)/n²)², integrated over x_t = s x̂."""
        gap = S + s * (_LINE - mean) / n**2
        return torch.trapezoid(density * (gap**2 + (s / n**2) ** 2 * variance), _LINE)

    kept = middle(law.denoise(unscaled, sigma)[:, 0], law.posterior_cov(unscaled, sigma)[:, 0, 0])
    drawn = middle(torch.full_like(_LINE, m0), C0)
    # The last line over x₀ and ε: x̂ = x₀ + σ ε, and the score of the kernel is −ε/n.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z, w = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    x0, noise = (m0 + math.sqrt(C0) * z)[:, None], z[None, :]
    x_hat = (x0 + sigma * noise).reshape(-1, 1)
    guess = 0.8 * law.score(x_hat, sigma)[:, 0] / s + 0.3
    error = (guess.reshape(60, 60) + noise / n) ** 2
    last = (w[:, None] * w * error).sum()
    return Both(
        residual(_one(drawn), _one(last)),
        residual(_one(kept), _one(last)),
        f"the printed middle line is {float(drawn):.2f}, the last {float(last):.2f}",
    )
