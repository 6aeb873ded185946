"""Misprints of Chan's tutorial in chapter 5: Langevin and Fokker–Planck equations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...affine import AffineSDE
from ...distributions import Gaussian
from ...processes import VP
from ..calculus import fokker_planck, gradient, gram, residual
from ..claim import Both, claim
from ..draw import Draw
from .forward import log_density

BATCH = 6
SECOND = "round-off of second derivatives by automatic differentiation"
ROUNDING = "round-off of a few operations"


def evolution(process: AffineSDE, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """``∂p/∂t`` of a mixture, and the terms ``−∇·(D¹p)`` and ``∇∇:(D²p)``, at random points."""
    data, t = draw.mixture(1), draw.times(process, BATCH)
    x = draw.states(process, data, t)
    rate = gradient(lambda u: torch.exp(log_density(process, data, x, u)), t)
    along, spread = fokker_planck(
        lambda y: process.drift(y, t),
        lambda y: gram(process, y, t),
        lambda y: torch.exp(log_density(process, data, y, t)),
        x,
    )
    return rate, along, spread


@claim(
    "chan-langevin-form",
    title="DDPM as a linear Langevin equation",
    statement="ξ̇ = f(ξ, t) + g(t) Γ(t) with f(ξ, t) = −β(t) ξ/2, or ξ̇ + β(t) ξ/2 = g(t) Γ(t)",
    printed="ξ̇(t) + f(t) ξ(t) = g(t) Γ(t), with dx = −β(t)/2 x dt + g(t) dw, where f(t) is the drift",
    sources={"chan": "example 5.1 (example 5.3 is right)"},
    tags=("ddpm", "forward", "misprint"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _langevin_form(draw: Draw) -> Both:
    """With f the coefficient of the drift, f belongs on the right side; on the left it drives away.

    The coefficient is read off `VP.f`; the drifts of both lines are compared with β written out.
    """
    low = float(draw.uniform(0.05, 1.0))
    process = VP(beta_min=low, beta_max=low + float(draw.uniform(1.0, 20.0)))
    t, x = draw.uniform(0.0, 1.0, BATCH), draw.normal(BATCH, 1)
    beta = process.beta_min + (process.beta_max - process.beta_min) * t[:, None]
    f = process.f(t)[:, None]
    total = 0.5 * (0.1 + 20.0)
    return Both(
        residual(-0.5 * beta * x, -f * x),
        residual(-0.5 * beta * x, f * x),
        f"data N(0, 1) have the variance {2 * math.exp(total) - 1:.0f} at t = 1 instead of 1, for β "
        "from 0.1 to 20",
    )


@claim(
    "chan-kramers-moyal-sign",
    title="Signs of the Kramers–Moyal expansion",
    statement="∂p/∂t = Σ (−∂/∂x)ᵐ D⁽ᵐ⁾(x, t) p",
    printed="∂p/∂t = Σ [−∂ᵐ/∂xᵐ D⁽ᵐ⁾(x, t) p]",
    sources={"chan": "theorem 5.7 (eq. 165 has the signs)", "risken": "section 4.1"},
    tags=("density", "forward", "misprint"),
    tolerance=1e-9,
    because=SECOND,
    over="process",
)
def _kramers_moyal_sign(process: AffineSDE, draw: Draw) -> Both:
    """The power belongs to the minus sign too: terms of even order are positive.

    ∂p/∂t of a mixture by automatic differentiation in time is compared with the terms of order 1
    and 2, D⁽¹⁾ the drift and D⁽²⁾ half of GGᵀ; for a diffusion there are no others.
    """
    rate, along, spread = evolution(process, draw)
    return Both(
        residual(rate, along - spread, along, spread),
        residual(rate, along + spread, along, spread),
        "noise takes variance away: a Wiener process started from N(0, 1) has the variance 0 at t = 1, "
        "and no density after it",
    )


@claim(
    "chan-kramers-moyal-factorial",
    title="Factorials of the Kramers–Moyal expansion",
    statement="∂p/∂t = Σ (−1)ᵐ ∂ᵐ/∂xᵐ [D⁽ᵐ⁾ p], where D⁽ᵐ⁾ has the factor 1/m!",
    printed="∂p/∂t = Σ (1/m!)(−1)ᵐ ∂ᵐ/∂xᵐ [D⁽ᵐ⁾ p], where D⁽ᵐ⁾ has the factor 1/m!",
    sources={"chan": "eq. 166 (eq. 165 is right)", "risken": "section 4.1"},
    tags=("density", "forward", "misprint"),
    tolerance=1e-9,
    because=SECOND,
    over="process",
)
def _kramers_moyal_factorial(process: AffineSDE, draw: Draw) -> Both:
    """The factorial is in the definition of D⁽ᵐ⁾, and eq. 166 counts it twice; eq. 165 does not.

    Measured as the signs are; the second term of eq. 166 is half of what it should be.
    """
    rate, along, spread = evolution(process, draw)
    return Both(
        residual(rate, along + spread / 2, along, spread),
        residual(rate, along + spread, along, spread),
        "the equilibrium of dx = −½ β x dt + √β dw gets the variance 0.5 instead of 1",
    )


@claim(
    "chan-linear-drift",
    title="Drift in a Fokker–Planck equation",
    statement="ξ̇ = A(ξ) ξ + σ Γ(t): ∂p/∂t = −∂/∂x [A(x) x p] + σ² ∂²p/∂x²",
    printed="ξ̇ = A(ξ) ξ + σ Γ(t): ∂p/∂t = −∂/∂x [A(x) p] + σ² ∂²p/∂x²",
    sources={"chan": "example 5.4"},
    tags=("density", "forward", "misprint"),
    tolerance=1e-9,
    because=SECOND,
)
def _linear_drift(draw: Draw) -> Both:
    """The drift of the Langevin equation is h = A(ξ) ξ there, that of the Fokker–Planck equation A(x).

    The two do not belong together. Either the last has an x too few, as is tried here, or the first
    a ξ too many: for ξ̇ = A(ξ) + σ Γ(t) the Fokker–Planck equation is right as it stands. Tried
    with A = −γ, where the law of a mixture is known at all times; E ΓΓ′ = 2δ, as in definition 5.2,
    so that the Itô SDE has g = √2 σ.
    """
    gamma, sigma = float(draw.uniform(0.5, 2.0)), float(draw.uniform(0.5, 1.5))
    root = math.sqrt(2) * sigma
    process = AffineSDE(f=lambda t: -gamma + 0 * t, g=lambda t: root + 0 * t)
    data, t = draw.mixture(1), draw.times(process, BATCH)
    x = draw.states(process, data, t)
    rate = gradient(lambda u: torch.exp(log_density(process, data, x, u)), t)

    def p(y: Tensor) -> Tensor:
        return torch.exp(log_density(process, data, y, t))

    second = sigma**2 * gradient(lambda y: gradient(p, y)[:, 0], x)[:, 0]
    printed = -gradient(lambda y: -gamma * p(y), x)[:, 0]
    right = -gradient(lambda y: -gamma * y[:, 0] * p(y), x)[:, 0]
    return Both(
        residual(rate, printed + second, second, right),
        residual(rate, right + second, second, right),
        "by the printed density a particle at 2 with A = −1 has the mean 1.00 at t = 1 and −1.00 at "
        f"t = 3, instead of {2 * math.exp(-1):.2f} and {2 * math.exp(-3):.2f}; there is no equilibrium",
    )


@claim(
    "chan-log-density-constant",
    title="Equilibrium of Langevin dynamics",
    statement="log p(x) = log W(x) + C",
    printed="log p(x) = W(x) + C",
    sources={"chan": "example 5.7, eq. 179"},
    tags=("langevin", "density", "misprint"),
    tolerance=1e-10,
    because=ROUNDING,
)
def _log_density_constant(draw: Draw) -> Both:
    """From A(x) W = σ² ∂W/∂x the W on the left is lost, and with it the logarithm of the right side.

    Chan then calls W a log-likelihood, which it was not. The derivative of either right side, with
    W the density for which the current vanishes, is compared with the score.
    """
    law, x = draw.mixture(1), draw.normal(BATCH, 1)
    score = law.score(x, 0.0)
    current = score[:, 0] * torch.exp(law.log_prob(x))  # A W with τ = σ² = 1
    slope = gradient(lambda y: torch.exp(law.log_prob(y)), x)
    assert residual(current, slope[:, 0]) < 1e-10  # W = p is the equilibrium
    peak = 1 / math.sqrt(2 * math.pi)
    return Both(
        residual(score, slope),
        residual(score, gradient(law.log_prob, x)),
        f"for p = N(0, 1) and C = log p(0) − W(0) = {math.log(peak) - peak:.2f}, W(2) would be "
        f"{peak - 2:.2f}, which is no density",
    )


@claim(
    "chan-characteristic-series",
    title="Series of a characteristic function",
    statement="C(u) = 1 + (iu)²/2! · 2!/2 [q/2γ] + (iu)⁴/4! · 4!/(2² 2!) [q/2γ]² + …",
    printed="C(u) = 1 + 0 + 2!/2 [q/2γ] + 0 + (2·2)!/(2² 2!) [q/2γ]² + …",
    sources={"chan": "eq. 146, first line (the second is right)"},
    tags=("brownian", "moments", "misprint"),
    tolerance=1e-9,
    because="round-off of a series whose terms alternate",
)
def _characteristic_series(draw: Draw) -> Both:
    """The powers (iu)ⁿ/n! are missing: the printed line does not depend on u, and does not converge.

    Both are compared, the printed one up to the terms that it shows, with the characteristic function
    of the equilibrium of the affine process with f = −γ, g = √q.
    """
    gamma, q = float(draw.uniform(0.5, 2.0)), float(draw.uniform(0.5, 2.0))
    process = AffineSDE(f=lambda t: -gamma + 0 * t, g=lambda t: math.sqrt(q) + 0 * t, T=20 / gamma)
    variance = float(process.std(torch.tensor(process.T, dtype=torch.float64))) ** 2
    u = draw.uniform(0.5, 2.0, BATCH)
    exact = Gaussian([0.0], variance).characteristic_function(u[:, None]).real
    moments = [
        math.factorial(2 * n) / (2**n * math.factorial(n)) * (q / (2 * gamma)) ** n
        for n in range(40)
    ]
    series = sum(
        (-1) ** n * u ** (2 * n) / float(math.factorial(2 * n)) * m for n, m in enumerate(moments)
    )
    return Both(
        residual(exact, torch.full_like(u, sum(moments[:3]))),
        residual(exact, torch.as_tensor(series)),
        "for q = 2γ the printed terms add up to 5, beyond the bound |C(u)| ≤ 1",
    )
