"""Sampling loops as one writes them by hand: the same arithmetic, coefficients made beforehand.

States are unscaled, ``x̂``. In coordinates ``u = x̂/h`` with the slope ``N = a x̂ + b D`` a step is
``x̂' = (h'/h) x̂ + h' Σ w_j N_j``, the weights being those of the scheme.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Denoiser = Callable[[Tensor, Tensor], Tensor]

SIGMA_DATA = 0.5
_NODES, _SHARES = np.polynomial.legendre.leggauss(40)


class Coordinates(NamedTuple):
    """A change of variables, at the levels of a grid.

    Attributes:
        h: Scale of the state.
        tau: Variable of the polynomials.
        rate: Rate of the clock, ``dW/dτ``, at any ``τ``.
        a: Factor of the state in the slope.
        b: Factor of the denoised state.
    """

    h: Array
    tau: Array
    rate: Callable[[Array], Array]
    a: Array
    b: Array


def noise(sigma: Array) -> Coordinates:
    """``N = ε̂`` in ``σ``."""
    return Coordinates(np.ones_like(sigma), sigma, np.ones_like, 1 / sigma, -1 / sigma)


def log_data(sigma: Array) -> Coordinates:
    """``N = D`` in ``λ``."""
    return Coordinates(sigma, -np.log(sigma), np.exp, 0 * sigma, np.ones_like(sigma))


def preconditioned(sigma: Array) -> Coordinates:
    """``N = −F`` in ``θ``."""
    h = np.hypot(sigma, SIGMA_DATA)
    theta = np.arctan(sigma / SIGMA_DATA)
    return Coordinates(h, theta, np.ones_like, SIGMA_DATA / (sigma * h), -h / (sigma * SIGMA_DATA))


def weights(c: Coordinates, nodes: list[int], begin: int, end: int) -> Array:
    """Integrals over a step of Lagrange's basis at nodes."""
    t0, t1 = c.tau[begin], c.tau[end]
    t = 0.5 * (t0 + t1) + 0.5 * (t1 - t0) * _NODES
    scale = 0.5 * (t1 - t0) * _SHARES * c.rate(t)
    rows = []
    for j in nodes:
        others = [m for m in nodes if m != j]
        basis = [(t - c.tau[m]) / (c.tau[j] - c.tau[m]) for m in others]
        rows.append(float((scale * np.prod(basis, axis=0)).sum()))
    return np.array(rows)


def halves(c: Coordinates, nodes: list[int], begin: int, end: int) -> Array:
    """DPM-Solver++(2M)'s weights of two slopes, and UniPC's of kind bh2."""
    if len(nodes) != 2:
        return weights(c, nodes, begin, end)
    other = nodes[0] if nodes[1] == begin else nodes[1]
    whole = weights(c, [begin], begin, end)[0]
    half = 0.5 * whole * (c.tau[end] - c.tau[begin]) / (c.tau[other] - c.tau[begin])
    return np.array([half if node == other else whole - half for node in nodes])


class Row(NamedTuple):
    """A step: its slope's factors, and ratio and weights of its correction and its prediction."""

    sigma: Tensor
    a: float
    b: float
    back: tuple[float, list[float]] | None
    forth: tuple[float, list[float]]


def rows(
    c: Coordinates,
    sigma: Array,
    slopes: int,
    formula: Callable[[Coordinates, list[int], int, int], Array] = weights,
    *,
    corrector: bool = False,
) -> list[Row]:
    """Coefficients of a multistep method."""
    found = []
    for n in range(len(sigma) - 1):
        nodes = [n - j for j in range(min(slopes, n + 1))]
        forth = (c.h[n + 1] / c.h[n], list(c.h[n + 1] * formula(c, nodes, n, n + 1)))
        back = None
        if corrector and n > 0:
            nodes = [n - j for j in range(min(slopes, n) + 1)]
            back = (c.h[n] / c.h[n - 1], list(c.h[n] * formula(c, nodes, n - 1, n)))
        level = torch.tensor(sigma[n], dtype=torch.float32)
        found.append(Row(level, float(c.a[n]), float(c.b[n]), back, forth))
    return found


def multistep(denoiser: Denoiser, x: Tensor, steps: list[Row]) -> Tensor:
    """Predict, evaluate, correct."""
    known: list[Tensor] = []
    base = x
    depth = max(len(row.forth[1]) for row in steps) + 1
    for sigma, a, b, back, forth in steps:
        slope = denoiser(x, sigma)
        if a:
            slope = a * x + b * slope
        known = [slope, *known[: depth - 1]]
        if back is not None:
            x = combine(base, known, *back)
        base, x = x, combine(x, known, *forth)
    return x


def combine(x: Tensor, slopes: list[Tensor], ratio: float, shares: list[float]) -> Tensor:
    """``ratio x + Σ share_j slope_j``."""
    x = ratio * x if ratio != 1 else x
    for share, slope in zip(shares, slopes, strict=False):
        x = torch.add(x, slope, alpha=share)
    return x


def heun(
    denoiser: Denoiser, x: Tensor, levels: list[tuple[float, float, Tensor, Tensor]]
) -> Tensor:
    """EDM's, between levels that are given as numbers and as tensors."""
    for s, s_next, level, level_next in levels:
        slope = (x - denoiser(x, level)) / s
        middle = torch.add(x, slope, alpha=s_next - s)
        slope_next = (middle - denoiser(middle, level_next)) / s_next
        x = torch.add(x, slope + slope_next, alpha=0.5 * (s_next - s))
    return x


def by_hand(method: str, sigma: Array) -> Callable[[Denoiser, Tensor], Tensor]:
    """Return the loop of a method over a grid."""
    if method == "edm_heun":
        tensors = [torch.tensor(s, dtype=torch.float32) for s in sigma]
        pairs = list(
            zip(sigma[:-1].tolist(), sigma[1:].tolist(), tensors, tensors[1:], strict=False)
        )
        return lambda denoiser, x: heun(denoiser, x, pairs)
    steps = {
        "ddim": lambda: rows(noise(sigma), sigma, 1),
        "lms3": lambda: rows(noise(sigma), sigma, 3),
        "dpmpp_2m": lambda: rows(log_data(sigma), sigma, 2, halves),
        "unipc_bh2_2": lambda: rows(log_data(sigma), sigma, 2, halves, corrector=True),
        "adams3": lambda: rows(preconditioned(sigma), sigma, 3, corrector=True),
    }[method]()
    return lambda denoiser, x: multistep(denoiser, x, steps)
