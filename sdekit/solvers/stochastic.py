"""Schemes that add noise: Euler–Maruyama, reverse diffusion, and EDM's churn."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..brownian import NoiseSource
from .linear import Runner
from .rk import RungeKutta
from .scheme import Array, Scheme, Step
from .view import AffineView, View, floats


class EulerMaruyama(Scheme):
    """Euler–Maruyama, ``u' = u + Δτ a(u, τ) + b ΔW``, in the coordinates it is used in.

    In `Native` coordinates this is Song et al. (2021), appendix D. Strong order 1 where the noise
    is additive (every affine process), 1/2 where the diffusion depends on the state.
    """

    strong_order = 1.0
    weak_order = 1.0
    solves = "sde"
    stochastic = True

    def stepper(self, view: View, grid: Array, noise: NoiseSource) -> Step:
        """Prepare the steps of a grid."""
        tau = view.tau(grid)
        nodes, steps, kick = view.nodes(tau[:-1]), floats(np.diff(tau)), view.kicks(tau, noise)

        def step(n: int, u: Tensor) -> Tensor:
            drift = view(nodes[n], u)
            return torch.add(u, drift, alpha=steps[n]) + kick(n, u)

        return step


class ReverseDiffusion(Scheme):
    """Reverse diffusion: the reverse SDE discretised as the forward one is (Song et al. 2021, E).

    The forward step, exact here, is ``x_{i+1} = ρ x_i + G z`` with ``ρ = s_{i+1}/s_i`` and
    ``G² = s_{i+1}² (σ_{i+1}² − σ_i²)``; the backward one is
    ``x_i = (2 − ρ) x_{i+1} + ½(1 + η²) G² ∇ log p + η G z``. For VP, ``ρ = sqrt(1 − β)`` and
    ``G² = β``, the paper's eq. 48; for VE its eq. 46.
    """

    strong_order = 1.0
    weak_order = 1.0
    solves = "sde"
    stochastic = True
    affine_only = True

    def coefficients(self, view: AffineView, grid: Array) -> tuple[Array, Array, Array]:
        """Coefficients of ``x̂``, ``D`` and the increment of ``B(σ²)`` in the next ``u``."""
        eta, rho = view.problem.eta, scale_ratios(view, grid)
        gain = 0.5 * (1 + eta**2) * (1 - (grid[1:] / grid[:-1]) ** 2)
        back = rho / view.coordinates.h(view.coordinates.at(grid[1:]))
        return back * (2 - rho - gain), back * gain, back * eta

    def stepper(self, view: View, grid: Array, noise: NoiseSource) -> Step:
        """Prepare the steps of a grid."""
        assert isinstance(view, AffineView)
        nodes, variance = view.nodes(view.tau(grid[:-1])), floats(grid**2)
        keep, move, spread = map(floats, self.coefficients(view, grid))

        def step(n: int, u: Tensor) -> Tensor:
            x_hat = view.unscale(nodes[n], u)
            denoised = view.denoise(x_hat, nodes[n].level)
            dw = noise.increment(variance[n + 1], variance[n], u)
            return x_hat * keep[n] + denoised * move[n] + dw * spread[n]

        return step


def scale_ratios(view: AffineView, grid: Array) -> Array:
    """Ratios ``s_n / s_{n+1}`` of the scales along a grid: at most 1, as the signal grows back."""
    scale = view.process.on_host("scale", view.process.on_host("time", grid))
    return scale[:-1] / scale[1:]


class Churn(Scheme):
    """EDM's stochastic sampler: raise the noise a little, then step the flow down.

    Before step ``n`` of ``N`` the noise level is raised from ``σ`` to ``σ̂ = (1 + γ) σ`` by adding
    noise, ``γ = min(S_churn/N, √2 − 1)`` where ``S_min <= σ <= S_max`` and 0 elsewhere; then the
    flow is integrated from ``σ̂`` to the next level (Karras et al. 2022, algorithm 2).

    Raising the noise is exact in law, so the weak order is that of the flow's scheme. The declared
    orders hold for ``s_noise = 1``: another value biases the variance, whatever the step count.

    Args:
        scheme: Runge–Kutta scheme of the flow; Heun in the paper.
        s_churn: Total amount of noise added, in units of ``log σ``.
        s_min: Lowest noise level at which noise is added.
        s_max: Highest noise level at which noise is added.
        s_noise: Factor of the standard deviation of the added noise.

    Raises:
        ValueError: If a parameter is negative, or ``s_min > s_max``.
    """

    strong_order = 1.0
    stochastic = True
    affine_only = True
    unscaled = True

    def __init__(
        self,
        scheme: RungeKutta,
        *,
        s_churn: float = 40.0,
        s_min: float = 0.05,
        s_max: float = 50.0,
        s_noise: float = 1.003,
    ) -> None:
        if s_churn < 0 or s_noise < 0 or not 0 <= s_min <= s_max:
            raise ValueError(
                f"s_churn = {s_churn}, s_noise = {s_noise}, s_min = {s_min}, s_max = {s_max}; "
                "none may be negative, and s_min <= s_max is needed"
            )
        self.scheme = scheme
        self.nfe_per_step = scheme.nfe_per_step
        self.weak_order = scheme.order
        self.s_churn, self.s_min, self.s_max, self.s_noise = s_churn, s_min, s_max, s_noise

    def stepper(self, view: View, grid: Array, noise: NoiseSource) -> Step:
        """Prepare the steps of a grid; `prepare` does all the work, the last step included."""
        return self.prepare(view, grid, noise)

    def prepare(self, view: View, grid: Array, noise: NoiseSource, ending: str = "denoise") -> Step:
        """Prepare all steps of a grid; the last one to ``σ = 0`` is churned as well."""
        assert isinstance(view, AffineView)
        low, count = grid[:-1], len(grid) - 1
        active = (low >= self.s_min) & (low <= self.s_max)
        high = low * (1 + np.where(active, min(self.s_churn / count, math.sqrt(2) - 1), 0.0))
        # The noise of step n is tied to the interval [n/N, (n+1)/N] of a clock that runs over steps.
        spread = floats(self.s_noise * np.sqrt((high**2 - low**2) * count))
        churned = (high > low).tolist()
        inner = int(np.count_nonzero(grid[1:]))
        at = view.coordinates.at
        flow = Runner(
            view, self.scheme.between(view.coordinates, at(high[:inner]), at(grid[1:][:inner]))
        )
        end = view.ending(ending, high[-1], unscaled=True)

        def step(n: int, x_hat: Tensor) -> Tensor:
            if churned[n]:
                dw = view.rotate(noise.increment(n / count, (n + 1) / count, x_hat))
                x_hat = torch.add(x_hat, dw, alpha=spread[n])
            return flow(n, x_hat) if n < inner else end(x_hat)

        return step
