"""Chan's chapter 5: Brownian particles, the Langevin equation and its laws."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...affine import AffineSDE
from ...distributions import Gaussian
from ...processes import VP
from ...sde import ForwardSDE
from ..calculus import fokker_planck, gradient, gram, log_normal, residual
from ..claim import claim
from ..draw import Draw

BATCH = 6
QUADRATURE = "round-off, and quadrature of the coefficients to 1e-13"


def _langevin(gamma: float, q: float, end: float) -> AffineSDE:
    """The linear Langevin equation ``ξ̇ + γξ = Γ`` with ``E ΓΓ′ = qδ``, as an affine process."""
    root = math.sqrt(q)
    return AffineSDE(f=lambda t: -gamma + 0 * t, g=lambda t: root + 0 * t, T=end)


def _drawn(draw: Draw) -> tuple[float, float]:
    return float(draw.uniform(0.5, 2.0)), float(draw.uniform(0.5, 2.0))


def _covariance(process: AffineSDE, s: Tensor, t: Tensor, start: float) -> Tensor:
    """``E x(s) x(t)`` for ``s <= t``, elementwise, from a start with mean 0 and a variance."""
    ones = torch.ones(len(s), 1, dtype=torch.float64)
    first = process.marginal(ones, s)
    variance = start * first[0][:, 0] ** 2 + first[1] ** 2
    return process.transition(ones, s, t)[0][:, 0] * variance


@claim(
    "chan-langevin-equilibrium",
    title="Equilibrium of the linear Langevin equation",
    statement="p(x) = √(γ/(πq)) exp(−γx²/q); E ξ²ⁿ = (2n)!/(2ⁿ n!) (q/2γ)ⁿ; C(u) = exp(−u²q/(4γ))",
    sources={"chan": "theorem 5.3, eq. 142, eq. 145, eq. 146", "risken": "section 3.1"},
    tags=("brownian", "linear", "moments"),
    tolerance=1e-9,
    because=QUADRATURE,
)
def _langevin_equilibrium(draw: Draw) -> float:
    """The law of the affine process with f = −γ, g = √q at a time when it has forgotten its start.

    Its density, its characteristic function, and its even moments by Gauss–Hermite quadrature.
    """
    gamma, q = _drawn(draw)
    process = _langevin(gamma, q, 40 / gamma)
    end = torch.tensor(process.T, dtype=torch.float64)
    mean, std = process.marginal(draw.normal(1, 1), end)
    law, x, u = Gaussian(mean[0], float(std) ** 2), draw.normal(BATCH, 1), draw.normal(BATCH)
    density = math.sqrt(gamma / (math.pi * q)) * torch.exp(-gamma * x[:, 0] ** 2 / q)
    found = residual(torch.exp(law.log_prob(x)), density)
    transform = law.characteristic_function(u[:, None]).real
    found = max(found, residual(transform, torch.exp(-(u**2) * q / (4 * gamma))))
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    values = float(mean) + float(std) * nodes
    for n in range(1, 6):
        moment = float((weights * values ** (2 * n)).sum()) / math.sqrt(2 * math.pi)
        wanted = math.factorial(2 * n) / (2**n * math.factorial(n)) * (q / (2 * gamma)) ** n
        found = max(found, abs(moment - wanted) / wanted)
    return found


@claim(
    "chan-ddpm-equilibrium",
    title="Equilibrium of DDPM's forward process",
    statement="N(0, 1) is stationary under dx = −β/2 x dt + √β dw: γ = β/2, q = β, q/2γ = 1",
    sources={"chan": "example 5.3"},
    tags=("ddpm", "forward", "density"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
)
def _ddpm_equilibrium(draw: Draw) -> float:
    """The Fokker–Planck operator of `VP` on the normal density vanishes at every time."""
    low = float(draw.uniform(0.05, 1.0))
    process = VP(beta_min=low, beta_max=low + float(draw.uniform(1.0, 20.0)))
    t, x = draw.uniform(0.0, 1.0, BATCH), draw.normal(BATCH, 2)
    parts = fokker_planck(
        lambda y: process.drift(y, t),
        lambda y: gram(process, y, t),
        lambda y: torch.exp(-0.5 * y.square().sum(1)),
        x,
    )
    return residual(parts[0], -parts[1])


@claim(
    "chan-wiener",
    title="Law of the Wiener process, and the heat equation",
    statement="p = exp(−(x − ξ₀)²/(2qt))/√(2πqt); ∂p/∂t = (1/2t)(x²/(2kt) − 1) p = k ∂²p/∂x², q = 2k",
    sources={"chan": "theorem 5.4, eq. 148, eq. 151"},
    tags=("brownian", "density"),
    tolerance=1e-9,
    because=QUADRATURE,
)
def _wiener(draw: Draw) -> float:
    """The affine process with f = 0, g = √q, and its derivatives by automatic differentiation."""
    k = float(draw.uniform(0.3, 2.0))
    root = math.sqrt(2 * k)
    process = AffineSDE(f=lambda t: 0 * t, g=lambda t: root + 0 * t, T=4.0)
    t, start = draw.uniform(0.5, 4.0, BATCH), draw.normal(BATCH, 1)
    x = process.perturb(start, t, noise=draw.normal(BATCH, 1))

    def density(x: Tensor, t: Tensor, start: Tensor) -> Tensor:
        mean, std = process.marginal(start, t)
        return torch.exp(log_normal(x, mean, std**2))

    away = (x - start)[:, 0]
    p = torch.exp(-(away**2) / (4 * k * t)) / torch.sqrt(4 * math.pi * k * t)
    found = residual(density(x, t, start), p)
    rate = gradient(lambda u: density(x, u, start), t)
    curve = gradient(lambda y: gradient(lambda z: density(z, t, start), y)[:, 0], x)[:, 0]
    wanted = (away**2 / (2 * k * t) - 1) / (2 * t) * p
    return max(found, residual(rate, wanted, p / t), residual(rate, k * curve, p / t))


@claim(
    "chan-power-spectrum",
    title="Power spectrum of a Brownian particle's velocity",
    statement="S(ω) = ∫ E[v(t + τ) v(t)] exp(−iωτ) dτ = q/(γ² + ω²)",
    sources={"chan": "eq. 137", "risken": "section 3.1"},
    tags=("brownian", "linear", "moments"),
    tolerance=1e-8,
    because="the integral ends where the correlation is 1e-13",
)
def _power_spectrum(draw: Draw) -> float:
    """Wiener and Khinchin's theorem for v̇ + γv = Γ in equilibrium.

    The correlation comes from the process's transition, the integral from Gauss–Legendre quadrature
    on twenty intervals.
    """
    gamma, q = _drawn(draw)
    start = 30 / gamma  # where equilibrium is reached
    process = _langevin(gamma, q, 2 * start)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(0, start, 21)
    half = np.diff(edges)[:, None] / 2
    lag = torch.as_tensor((edges[:-1, None] + half * (1 + nodes)).ravel())
    mass = torch.as_tensor((half * weights).ravel())
    now = torch.full_like(lag, start)
    correlation = _covariance(process, now, now + lag, 1.0)
    omega = draw.uniform(0.0, 2.0, BATCH)
    spectrum = 2 * (torch.cos(omega[:, None] * lag) * correlation * mass).sum(1)
    return residual(spectrum, q / (gamma**2 + omega**2))


@claim(
    "chan-brownian-particle",
    title="Velocity and displacement of a Brownian particle",
    statement="q = 2γkT/m: E mv²/2 = kT/2 and E (x(t) − x(0))² = (2kT/(mγ²)) (γt − 1 + exp(−γt))",
    sources={"chan": "section 5.1, eq. 136; example 5.6", "risken": "section 3.1"},
    tags=("brownian", "linear", "moments"),
    tolerance=1e-9,
    because=QUADRATURE,
)
def _brownian_particle(draw: Draw) -> float:
    """The displacement is the integral of the velocity, so its square that of E v(s)v(s′).

    From equilibrium; the double integral by Gauss–Legendre quadrature over a triangle, its
    integrand from the transition of the affine process with f = −γ, g = √q. For large t it is
    Einstein's 2kT t/(mγ).
    """
    gamma, warmth = _drawn(draw)  # γ and kT/m
    process = _langevin(gamma, 2 * gamma * warmth, 4.0)
    end = torch.tensor([3.5], dtype=torch.float64)
    found = residual(
        _covariance(process, end, end, warmth), torch.tensor([warmth], dtype=torch.float64)
    )
    nodes, weights = np.polynomial.legendre.leggauss(16)
    unit, mass = torch.as_tensor((nodes + 1) / 2), torch.as_tensor(weights / 2)
    for t in draw.uniform(0.5, 4.0, 2).tolist():
        later = t * unit.repeat_interleave(16)
        earlier = later * unit.repeat(16)
        area = mass.repeat_interleave(16) * mass.repeat(16) * t * later
        square = 2 * (area * _covariance(process, earlier, later, warmth)).sum()
        wanted = 2 * warmth / gamma**2 * (gamma * t + math.expm1(-gamma * t))
        found = max(found, residual(square, torch.tensor(wanted, dtype=torch.float64)))
    return found


class _Growth(ForwardSDE):
    """The Itô SDE that has the Fokker–Planck equation of ``ξ̇ = aξ + bξΓ`` by theorem 5.9."""

    def __init__(self, a: float, b: float) -> None:
        self.a, self.b = a, b

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """``D⁽¹⁾ = h + g′g``."""
        return self.a * x + self.b**2 * x

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """``√(2D⁽²⁾) = √2 g``, diagonal."""
        return math.sqrt(2) * self.b * x


@claim(
    "chan-noise-induced-drift",
    title="Kramers–Moyal coefficients of a nonlinear Langevin equation",
    statement="ξ̇ = h + gΓ, E ΓΓ′ = 2δ, in Stratonovich's sense: D⁽¹⁾ = h + g′g, D⁽²⁾ = g²",
    sources={"chan": "theorem 5.9, eq. 168, eq. 169", "risken": "section 3.3"},
    tags=("forward", "density"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
)
def _noise_induced_drift(draw: Draw) -> float:
    """For h = aξ, g = bξ ordinary calculus gives ξ = ξ₀ exp(at + √2 b w), whose law is known.

    Its density, by automatic differentiation in time, satisfies the Fokker–Planck equation of the
    Itô SDE with drift h + g′g and diffusion √2 g. So the theorem is right in its own convention, and
    the SDEs of chapter 4, in Itô's sense and with E ΓΓ′ = δ, have D⁽¹⁾ = h and D⁽²⁾ = g²/2.
    """
    a, b = float(draw.uniform(-1.0, 1.0)), float(draw.uniform(0.3, 1.0))
    t, sde = draw.uniform(0.5, 1.5, BATCH), _Growth(a, b)
    x = torch.exp(a * t + math.sqrt(2) * b * t.sqrt() * draw.normal(BATCH))[:, None]

    def density(x: Tensor, t: Tensor) -> Tensor:
        z = torch.log(x[:, 0]) - a * t
        spread = 2 * b**2 * t
        return torch.exp(-0.5 * z**2 / spread) / (x[:, 0] * torch.sqrt(2 * math.pi * spread))

    rate = gradient(lambda u: density(x, u), t)
    parts = fokker_planck(
        lambda y: sde.drift(y, t), lambda y: gram(sde, y, t), lambda y: density(y, t), x
    )
    return residual(rate, parts[0] + parts[1], *parts)


@claim(
    "chan-maxwell",
    title="Equilibrium without a current",
    statement="(D⁽¹⁾ − ∂/∂x D⁽²⁾) p = 0 for D⁽¹⁾ = −γx, D⁽²⁾ = γkT/m, p = √(m/(2πkT)) exp(−mx²/(2kT))",
    sources={"chan": "theorem 5.10, example 5.6"},
    tags=("density", "brownian"),
    tolerance=1e-9,
    because=QUADRATURE,
)
def _maxwell(draw: Draw) -> float:
    """Maxwell's law: the current with the drift and ½g² of the affine process is zero.

    The process's own law at late times is compared with it too.
    """
    gamma, warmth = _drawn(draw)
    process = _langevin(gamma, 2 * gamma * warmth, 40 / gamma)
    t, x = draw.uniform(0.0, process.T, BATCH), draw.normal(BATCH, 1)

    def p(y: Tensor) -> Tensor:
        return torch.exp(-(y[:, 0] ** 2) / (2 * warmth)) / math.sqrt(2 * math.pi * warmth)

    flow = process.drift(x, t)[:, 0] * p(x)
    found = residual(flow, 0.5 * process.g(t) ** 2 * gradient(p, x)[:, 0])
    end = torch.full((BATCH,), process.T, dtype=torch.float64)
    mean, std = process.marginal(draw.normal(BATCH, 1), end)
    law = torch.exp(log_normal(x, mean, std**2))
    return max(found, residual(law, p(x)))
