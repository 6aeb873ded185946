"""Schemes of SDEs step by step: Euler–Maruyama, Milstein, and reverse diffusion."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..brownian import NoiseSource
from ..clock import TIME
from ..sde import diffuse, noise_kind
from .scheme import Array, Scheme, Step
from .view import AffineView, GeneralView, View, floats


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
        if view.frame is not None:
            raise ValueError(
                "ReverseDiffusion works in coordinates without a frame, such as Native()"
            )
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


class Milstein(Scheme):
    """Milstein's scheme, for noise that is diagonal and depends on the state: strong order 1.

    ``x' = x + Δt a + η G ΔW + ½ η² G ∂G (ΔW² − |Δt|)``, every component with noise of its own that
    depends on that component alone; ``∂G`` by automatic differentiation. Where ``G`` does not depend
    on the state it is Euler–Maruyama.

    Source: Kloeden & Platen 1992, eq. 10.3.2.
    """

    strong_order = 1.0
    weak_order = 1.0
    solves = "sde"
    stochastic = True

    def stepper(self, view: View, grid: Array, noise: NoiseSource) -> Step:
        """Prepare the steps of a grid.

        Raises:
            ValueError: If the noise is scalar, or a matrix.
        """
        if not isinstance(view, GeneralView):  # additive noise
            return EulerMaruyama().stepper(view, grid, noise)
        problem, nodes, times = view.problem, view.nodes(grid), floats(grid)
        source = noise.on(TIME)

        def step(n: int, x: Tensor) -> Tensor:
            low, high = sorted((times[n], times[n + 1]))
            with torch.inference_mode(False), torch.enable_grad():
                at = x if x.requires_grad else x.detach().clone().requires_grad_()
                G = problem.eta * problem.sde.diffusion(at, nodes[n].level.clone())
                if G.requires_grad and noise_kind(G, at) != "diagonal":
                    raise ValueError(
                        f"the diffusion has shape {tuple(G.shape)} for a state of shape "
                        f"{tuple(x.shape)}; Milstein takes diagonal noise, in the state's own shape"
                    )
                slope = torch.zeros_like(x)
                if G.requires_grad:  # the sum keeps components apart, as each has its own noise
                    keep = x.requires_grad
                    (slope,) = torch.autograd.grad(G.sum(), at, create_graph=keep)
            G = G if x.requires_grad else G.detach()
            dw = source.increment(low, high, x)
            x = torch.add(x, view(nodes[n], x), alpha=times[n + 1] - times[n])
            if not slope.any():
                return x + diffuse(G, x, dw)
            return x + G * dw + 0.5 * G * slope * (dw**2 - (high - low))

        return step
