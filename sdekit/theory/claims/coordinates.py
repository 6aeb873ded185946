"""Coordinates: exact changes of variables of the probability flow, by their table and by the flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from ...affine import AffineSDE
from ...coordinates import (
    Array,
    Coordinates,
    Interpolated,
    LogData,
    LogNoise,
    Native,
    Noise,
    Points,
    Velocity,
)
from ...preconditioned import GaussianPreconditioned, Preconditioned
from ...processes import EDM, VP, RectifiedFlow
from ..calculus import gradient, residual
from ..claim import claim
from ..draw import Draw

BATCH = 6


class Row(NamedTuple):
    """A row of the table, as functions of the noise level ``(n,)``.

    Attributes:
        h: Divisor of the state.
        tau: Interpolation variable.
        rate: ``dσ/dτ``.
        clock: ``W``.
        A: Coefficient of ``u`` in ``N``.
        B: Coefficient of ``D`` in ``N``.
        w: Integration weight ``dW/dτ``.
        growth: Rate at which ``dW/dλ`` grows, if it is an exponential.
    """

    h: Callable[[Array], Array]
    tau: Callable[[Array], Array]
    rate: Callable[[Array], Array]
    clock: Callable[[Array], Array]
    A: Callable[[Array], Array]
    B: Callable[[Array], Array]
    w: Callable[[Array], Array]
    growth: float | None = None


def table(sd: float) -> dict[str, tuple[Coordinates, Row]]:
    """Return the table of coordinates, written out; ``sd`` is the scale of the data."""

    def one(s: Array) -> Array:
        return s**0

    def noise(s: Array) -> Array:
        return -(s**-1)

    log_sigma = (lambda s: np.log(1 / s)), (lambda s: 0 - s)
    return {
        "Noise": (
            Noise(),
            Row(one, lambda s: s, one, lambda s: s, lambda s: s**-1, noise, one),
        ),
        "LogNoise": (
            LogNoise(),
            Row(one, *log_sigma, lambda s: s, lambda s: s**-1, noise, lambda s: 0 - s, -1.0),
        ),
        "LogData": (
            LogData(),
            Row(
                lambda s: s, *log_sigma, lambda s: s**-1, lambda s: 0 * s, one, lambda s: s**-1, 1.0
            ),
        ),
        "Velocity": (
            Velocity(),
            Row(
                lambda s: 1 + s,
                lambda s: s / (1 + s),
                lambda s: (1 + s) ** 2,
                lambda s: s / (1 + s),
                lambda s: 1 + 1 / s,
                lambda s: -(1 + 1 / s),
                one,
            ),
        ),
        "Preconditioned": (
            Preconditioned(sd),
            Row(
                lambda s: np.sqrt(s**2 + sd**2),
                lambda s: math.pi / 2 - np.arctan(sd / s),
                lambda s: (s**2 + sd**2) / sd,
                lambda s: math.pi / 2 - np.arctan(sd / s),
                lambda s: sd / s,
                lambda s: -np.sqrt(s**2 + sd**2) / (s * sd),
                one,
            ),
        ),
        "F in λ": (
            Interpolated(Preconditioned(sd), LogNoise()),
            Row(
                lambda s: np.sqrt(s**2 + sd**2),
                *log_sigma,
                lambda s: math.pi / 2 - np.arctan(sd / s),
                lambda s: sd / s,
                lambda s: -np.sqrt(s**2 + sd**2) / (s * sd),
                lambda s: -s * sd / (s**2 + sd**2),
            ),
        ),
        "D in σ": (
            Interpolated(LogData(), Noise()),
            Row(
                lambda s: s,
                lambda s: s,
                one,
                lambda s: s**-1,
                lambda s: 0 * s,
                one,
                lambda s: -(s**-2),
            ),
        ),
    }


def apart(found: Array, wanted: Array) -> float:
    """Largest relative difference of arrays, point by point."""
    return residual(*(torch.from_numpy(np.asarray(v, dtype=float)) for v in (found, wanted)))


@claim(
    "coordinates-table",
    title="The table of coordinates",
    statement="h, τ, W, A, B, w = dW/dτ and dσ/dτ of ε̂ in σ and λ, D in λ, v in σ/(1+σ), F in θ",
    sources={"sdekit": "design, section 4", "dpm": "eq. 3.4", "flow": "section 4.1"},
    tags=("coordinates", "solvers"),
    tolerance=1e-12,
    because="round-off",
)
def _table(draw: Draw) -> float:
    """Every entry of the table is written out again and compared at random levels.

    τ is inverted as well, and the two ways to make points agree.
    """
    sigma, found = draw.levels(BATCH).numpy(), []
    for coordinates, row in table(float(draw.log_uniform(0.2, 3.0))).values():
        p = coordinates.at(sigma)
        A, B = coordinates.field(p)
        values = {
            "h": coordinates.h(p),
            "tau": p.tau,
            "rate": coordinates.sigma_rate(p),
            "clock": coordinates.clock(p),
            "A": A,
            "B": B,
            "w": coordinates.weight(p),
        }
        found += [apart(value, getattr(row, name)(sigma)) for name, value in values.items()]
        found += [apart(coordinates.clock_rate(sigma), row.w(sigma) / row.rate(sigma))]
        again = coordinates.at_tau(p.tau)
        found += [apart(again.sigma, sigma), apart(again.tau, p.tau)]
        found += [apart(coordinates.sigma(row.tau(sigma)), sigma)]
        own = bool(np.array_equal(p.tau, coordinates.clock(p)))
        found += [float(coordinates.has_own_clock != own and type(coordinates) is not Interpolated)]
        found += [float(coordinates.growth != row.growth), float(coordinates.frame is not None)]
        found += [float(coordinates.breaks != ()), float(coordinates.needs_sigma_data)]
        kick = coordinates.noise_scale(p)
        found += [apart(kick, 1 / row.h(sigma[:-1])), float(len(kick) != BATCH - 1)]
    return max(found)


@claim(
    "coordinates-native",
    title="The process's own coordinates",
    statement="u = x̂ s, τ = W = t, N = (ṅ/n) u + (ṡ − s ṅ/n) D with n = sσ, dσ/dτ = σ̇",
    sources={"sdekit": "design, section 4", "song2021": "eq. 13"},
    tags=("coordinates", "process"),
    tolerance=1e-10,
    because="round-off of first derivatives; inversion of σ(t)",
    over="process",
)
def _native(process: AffineSDE, draw: Draw) -> float:
    """In its own state and time a process has the flow of its denoiser form.

    The entries are written out with derivatives of its scale and sigma by automatic differentiation.
    A step of Euler–Maruyama has Song's variance g² Δt.
    """
    t = draw.times(process, BATCH).sort(descending=True).values
    s, sigma = process.scale(t), process.sigma(t)
    ds, dsigma = (gradient(f, t).detach() for f in (process.scale, process.sigma))
    coordinates = Native().bind(process)
    p = coordinates.at_tau(t.numpy())
    A, B = coordinates.field(p)
    one, slope = torch.ones(BATCH, dtype=torch.float64), dsigma / sigma
    wanted = [
        (p.sigma, sigma),
        (coordinates.h(p), 1 / s),
        (coordinates.tau(sigma.numpy()), t),
        (coordinates.clock(p), t),
        (coordinates.weight(p), one),
        (coordinates.sigma_rate(p), dsigma),
        (coordinates.clock_rate(p.sigma), 1 / dsigma),
        (B, -s * slope),
    ]
    found = [residual(torch.from_numpy(np.asarray(a)), b) for a, b in wanted]
    found += [residual(torch.from_numpy(A), ds / s + slope, slope)]
    grid = coordinates.at_tau(np.linspace(float(t[0]), float(t[-1]), 4))
    kick = torch.from_numpy(coordinates.noise_scale(grid) ** 2 * -np.diff(grid.sigma**2))
    early, length = torch.from_numpy(grid.tau[:-1]), torch.from_numpy(-np.diff(grid.tau))
    level = process.sigma(early)
    g2 = process.scale(early) ** 2 * 2 * level * gradient(process.sigma, early).detach()
    found += [residual(kick, g2 * length), float(not coordinates.has_own_clock)]
    eta2 = float(draw.uniform(0.1, 3.0))
    a, b = (torch.from_numpy(v) for v in coordinates.drift(p, math.sqrt(eta2)))
    found += [residual(a, ds / s + (1 + eta2) * slope, slope), residual(b, -(1 + eta2) * s * slope)]
    return max(found)


@claim(
    "coordinates-gaussian",
    title="Coordinates of a covariance",
    statement="uᵢ = (x̂−m)ᵢ/√(σ²+λᵢ), Wᵢ = arctan(σ/√λᵢ), Nᵢ = (√λᵢ/σ) uᵢ − √(1/σ²+1/λᵢ) (D−m)ᵢ",
    sources={"sdekit": "design, section 4"},
    tags=("coordinates", "preconditioning"),
    tolerance=1e-12,
    because="round-off",
)
def _gaussian(draw: Draw) -> float:
    """EDM's variables in each direction of a covariance, by random ones.

    The frame's basis diagonalises the covariance; the entries are written out with its eigenvalues.
    """
    mean, cov = draw.gaussian(3).moments()
    coordinates = GaussianPreconditioned(mean.numpy(), cov.numpy())
    sigma = draw.levels(BATCH).numpy()
    p, at = coordinates.at(sigma), sigma[:, None]
    centre, basis = coordinates.frame
    diagonal = basis.T @ cov.numpy() @ basis
    lam = np.diag(diagonal)[None]
    A, B = coordinates.field(p)
    found = [
        apart(centre, mean.numpy()),
        apart(diagonal, np.diag(lam[0])),
        apart(basis.T @ basis, np.eye(3)),
        apart(coordinates.h(p), np.sqrt(at**2 + lam)),
        apart(coordinates.clock(p), math.pi / 2 - np.arctan(np.sqrt(lam) / at)),
        apart(coordinates.clock_rate(sigma), np.sqrt(lam) / (at**2 + lam)),
        apart(coordinates.weight(p), -at * np.sqrt(lam) / (at**2 + lam)),
        apart(p.tau, np.log(1 / sigma)),
        apart(coordinates.sigma_rate(p), -sigma),
        apart(A, np.sqrt(lam) / at),
        apart(B, -np.sqrt((at**2 + lam) / (lam * at**2))),
        float(coordinates.has_own_clock or coordinates.growth is not None),
    ]
    return max(found)


@claim(
    "coordinates-infinity",
    title="Coordinates at σ = ∞",
    statement="σ/(1+σ) → 1, arctan(σ/σ_d) → π/2, t → 1 in rectified flow; u → ε, N → ε − D or −D/σ_d",
    sources={"sdekit": "design, section 4"},
    tags=("coordinates", "process"),
    tolerance=1e-10,
    because="round-off; a level of 10¹² is 10⁻¹² off the limit",
)
def _infinity(draw: Draw) -> float:
    """Where the signal vanishes the state is the noise, and the flow is regular.

    The entries at σ = ∞ are compared with the limits, and with those at σ = 10¹² times ε/x̂ for h.
    """
    sd, infinite, found = float(draw.log_uniform(0.2, 3.0)), np.array([np.inf]), []
    limits = {
        Velocity(): (1.0, 1.0, -1.0),
        Preconditioned(sd): (math.pi / 2, 0.0, -1 / sd),
        Native(RectifiedFlow()): (1.0, 1.0, -1.0),
    }
    for coordinates, (tau, A, B) in limits.items():
        p = coordinates.at(infinite)
        found += [abs(float(p.tau[0]) - tau), abs(float(coordinates.h(p)[0]) - 1)]
        far = coordinates.at(np.array([1e12]))
        for points in (p, far):
            a, b = coordinates.field(points)
            found += [abs(float(a[0]) - A), abs(float(b[0]) - B)]
        if not isinstance(coordinates, Native):  # whose time rounds there
            found += [abs(float(coordinates.h(far)[0]) / 1e12 - 1)]
    found += [float(not np.isinf(Velocity().sigma(np.array([1.0])))[0])]
    return max(found)


@claim(
    "coordinates-binding",
    title="Coordinates are bound to a process and a scale",
    statement="bind fills in the process of t, and the σ_d of θ where it is left out",
    sources={"sdekit": "design, section 4"},
    tags=("coordinates",),
    tolerance=1e-12,
    because="equality",
)
def _binding(draw: Draw) -> float:
    """Most coordinates depend on neither; those in their parts on what their parts do."""
    process, sd = VP(), float(draw.log_uniform(0.2, 3.0))
    wanted: list[tuple[Coordinates, Coordinates, bool]] = [
        (Noise(), Noise(), False),
        (LogData(), LogData(), False),
        (Native(), Native(process), False),
        (Native(EDM()), Native(process), False),
        (Preconditioned(), Preconditioned(sd), True),
        (Preconditioned(2 * sd), Preconditioned(2 * sd), False),
        (Interpolated(Noise(), Native()), Interpolated(Noise(), Native(process)), False),
        (
            Interpolated(Preconditioned(), Native()),
            Interpolated(Preconditioned(sd), Native(process)),
            True,
        ),
        (
            Interpolated(LogData(), Preconditioned()),
            Interpolated(LogData(), Preconditioned(sd)),
            True,
        ),
    ]
    wrong = [
        given.bind(process, sd) != bound or given.needs_sigma_data != needs
        for given, bound, needs in wanted
    ]
    point = Points(np.array([1.0]), np.array([1.0]))
    return float(any(wrong)) + apart(Preconditioned().bind(process, sd).h(point), np.hypot([1], sd))
