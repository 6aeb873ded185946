"""Coordinates along the flow: exact changes of variables, and rates that belong together."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from ...affine import AffineSDE
from ...coordinates import Array, Coordinates, Interpolated, LogData, Native, Noise, Velocity
from ...distributions import Product
from ...preconditioned import GaussianPreconditioned
from ...processes import EDM, VP, CosineVP, RectifiedFlow, SubVP
from ..calculus import log_derivative, residual
from ..claim import claim
from ..draw import Draw
from .coordinates import apart, table

MEAN, COV = [0.4, -0.2], [[0.8, 0.5], [0.5, 0.6]]


def every(process: AffineSDE, sd: float) -> list[Coordinates]:
    """Return coordinates of every kind, for a process."""
    frame = GaussianPreconditioned(np.array(MEAN), np.array(COV))
    return [
        *(coordinates for coordinates, _ in table(sd).values()),
        Native().bind(process),
        Interpolated(Noise(), Native()).bind(process),
        Interpolated(Native(), LogData()).bind(process),
        frame,
        Interpolated(frame, Velocity()),
    ]


def smooth(draw: Draw) -> AffineSDE:
    """Draw a process whose schedule is analytic at all levels, for differences of high order."""
    return (VP(), SubVP(), EDM(), CosineVP(), RectifiedFlow())[draw.integer(5)]


def along(coordinates: Coordinates, name: str, sigma: Array) -> Array:
    """``h``, the clock or ``τ`` at levels, a row for each."""
    p = coordinates.at(sigma)
    value: Array = p.tau if name == "tau" else getattr(coordinates, name)(p)
    return value.reshape(len(sigma), -1)


@claim(
    "coordinates-flow",
    title="Coordinates are exact changes of variables",
    statement="du = (A u + B D) dW along the probability flow, u = x̂/h(σ)",
    sources={"sdekit": "design, section 4", "edm": "eq. 3"},
    tags=("coordinates", "flow"),
    tolerance=1e-9,
    because="differences of order 8 of the exact flow, which is known to round-off",
)
def _flow(draw: Draw) -> float:
    """Along the flow of a rotated product of mixtures, which is known exactly, u is differentiated.

    Its derivative and that of the clock, both with respect to log σ and of sdekit's own h and W, are
    compared: du/d log σ = N dW/d log σ. All coordinates are tried, in the frame of those that have one.
    """
    law = Product.random(2, 2, seed=draw.integer(2**31), width=0.5)
    process, level = smooth(draw), float(draw.log_uniform(0.1, 9.0))
    start = law.sample(2, level, seed=draw.integer(2**31))
    nodes = level * np.exp(0.02 * np.arange(-4, 5))
    copies = start.repeat(9, 1)
    levels = torch.from_numpy(nodes).repeat_interleave(2)
    path = law.flow(copies, level, levels).reshape(9, 2, 2).numpy()
    denoised, found = law(start, level).numpy(), []
    for coordinates in every(process, float(draw.log_uniform(0.2, 3.0))):
        mean, basis = coordinates.frame or (np.zeros(2), np.eye(2))
        x, d = (path - mean) @ basis, (denoised - mean) @ basis

        def u(sigma: Array, c: Coordinates = coordinates, x: Array = x) -> Array:
            return x / c.h(c.at(sigma)).reshape(9, 1, -1)

        rate = log_derivative(u, level)
        clock = log_derivative(partial(along, coordinates, "clock"), level)
        p = coordinates.at(np.array([level]))
        A, B = coordinates.field(p)
        parts = A * u(nodes)[4] * clock, B * d * clock
        terms = (torch.from_numpy(v) for v in parts)
        found.append(
            residual(torch.from_numpy(rate), torch.from_numpy(parts[0] + parts[1]), *terms)
        )
    return max(found)


@claim(
    "coordinates-rates",
    title="Clocks, weights and drifts belong together",
    statement="w = dW/dτ;  du/dτ = (w A + η² σ'/σ) u + (w B − η² σ'/(σ h)) D, σ' = dσ/dτ, for every η",
    sources={"sdekit": "design, section 4"},
    tags=("coordinates", "reverse"),
    tolerance=1e-9,
    because="differences of order 8 of functions of σ",
)
def _rates(draw: Draw) -> float:
    """By the chain rule from dx̂ = (1 + η²)(x̂ − D)/σ dσ, in terms of h and τ alone.

    du/dτ = σ' [(1+η²)/σ − h'/h] u − σ' (1+η²)/(σ h) D, with h', σ' = 1/τ' and W' by differences; so
    the drift is compared without the table's A, B and w. The rates are compared with differences.
    """
    process, level = smooth(draw), float(draw.log_uniform(0.1, 9.0))
    eta, found = float(draw.uniform(0.3, 1.5)), []
    for coordinates in every(process, float(draw.log_uniform(0.2, 3.0))):
        p = coordinates.at(np.array([level]))
        h = coordinates.h(p).reshape(1, -1)
        clock, slope, tau_rate = (
            log_derivative(partial(along, coordinates, name), level)
            for name in ("clock", "h", "tau")
        )
        relative, shape = 1 / tau_rate, slope / h  # d log σ/dτ, d log h/d log σ
        found += [
            apart(coordinates.sigma_rate(p), (level * relative)[0]),
            apart(coordinates.clock_rate(p.sigma).reshape(1, -1), clock[None] / level),
            apart(coordinates.weight(p).reshape(1, -1), (clock * relative)[None].reshape(1, -1)),
            apart(coordinates.at_tau(p.tau).sigma, p.sigma),
        ]
        pair = coordinates.at(np.array([1.3 * level, level]))
        for value in (0.0, 1.0, eta):
            a, b = (v[1:].reshape(1, -1) for v in coordinates.drift(pair, value))
            gain = (1 + value**2) * relative
            terms = torch.from_numpy(gain + 0 * h), torch.from_numpy(relative * shape)
            found += [residual(torch.from_numpy(a), terms[0] - terms[1], *terms)]
            found += [apart(b, -gain / h)]
    return max(found)
