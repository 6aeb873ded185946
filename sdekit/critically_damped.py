"""Critically damped Langevin diffusion: data with velocities, noise in the velocities only."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .brownian import IndependentNoise
from .distributions import Gaussian, GaussianMixture
from .linear import LinearSDE, component_covs


class CriticallyDamped(LinearSDE):
    """Critically damped Langevin diffusion on states ``(x, v)``, ``(B, 2 d)``, data first.

    ::

        dx = β M⁻¹ v dt,        dv = −β x dt − β Γ M⁻¹ v dt + sqrt(2 Γ β) dW,        Γ² = 4 M.

    Velocities start from N(0, γ M I), independent of the data. The process tends to N(0, I) for the
    data and N(0, M I) for the velocities, without oscillation. Of a score only the velocities' half
    counts: a network fills the other half with zeros.

    Source: Dockhorn, Vahdat & Kreis 2022, section 3.1; its values are the defaults.

    Args:
        data_dim: Dimension ``d`` of the data.
        beta: Rate ``β``, positive; or a callable of a time ``()`` that returns a tensor.
        mass: Mass ``M``.
        gamma: Variance of the starting velocities, in units of ``M``.
        T: Time at which the noising ends.
        t_min: Time at which backward problems stop.

    Raises:
        TypeError, ValueError: If an argument is not as above.
    """

    def __init__(
        self,
        data_dim: int,
        *,
        beta: float | Callable[[Tensor], Tensor] = 4.0,
        mass: float = 0.25,
        gamma: float = 0.04,
        T: float = 1.0,
        t_min: float = 0.0,
    ) -> None:
        if isinstance(data_dim, bool) or not isinstance(data_dim, int):
            raise TypeError(f"data_dim is a {type(data_dim).__name__}; it must be a whole number")
        if data_dim < 1:
            raise ValueError(f"data_dim = {data_dim}; it must be at least 1")
        for name, value in (("mass", mass), ("gamma", gamma), ("beta", beta)):
            if not callable(value) and not 0 < value < math.inf:
                raise ValueError(f"{name} = {value}; it must be positive and finite")
        self.data_dim, self.mass, self.gamma = data_dim, float(mass), float(gamma)
        friction = 2 * math.sqrt(mass)
        eye = torch.eye(data_dim, dtype=torch.float64)
        pair = torch.tensor([[0.0, 1 / mass], [-1.0, -friction / mass]], dtype=torch.float64)
        drift, noise = torch.kron(pair, eye), torch.cat([0 * eye, math.sqrt(2 * friction) * eye])
        zero = torch.zeros(2 * data_dim, dtype=torch.float64)
        if callable(beta):
            rate = beta
            super().__init__(
                lambda t: rate(t) * drift.to(t),
                zero,
                lambda t: torch.sqrt(rate(t)) * noise.to(t),
                T=T,
                t_min=t_min,
            )
        else:
            super().__init__(beta * drift, zero, math.sqrt(beta) * noise, T=T, t_min=t_min)

    def stationary(self) -> Gaussian:
        """The law that it tends to, the prior: N(0, I) for the data, N(0, M I) for the velocities."""
        variances = torch.ones(2, self.data_dim, dtype=torch.float64)
        variances[1] = self.mass
        return Gaussian(torch.zeros(self.dim), variances.flatten())

    def extended(self, x: Tensor, *, seed: int) -> Tensor:
        """Append velocities drawn from N(0, γ M I) to data ``(B, d)``: states ``(B, 2 d)``."""
        if x.shape[1:] != (self.data_dim,):
            raise ValueError(f"x has shape {tuple(x.shape)}; data are (B, {self.data_dim})")
        v = IndependentNoise(seed).normal(x) * math.sqrt(self.gamma * self.mass)
        return torch.cat([x, v], dim=1)

    def extended_law(self, data: GaussianMixture) -> GaussianMixture:
        """Return the law of ``(x, v)`` at time 0; a `Gaussian` for a `Gaussian`.

        Raises:
            ValueError: If the data have another dimension.
        """
        if data.dim != self.data_dim:
            raise ValueError(f"the data have {data.dim} dimensions, the process {self.data_dim}")
        count, d = data.means.shape
        means = torch.zeros(count, 2 * d, dtype=torch.float64)
        wide = torch.zeros(count, 2 * d, 2 * d, dtype=torch.float64)
        means[:, :d], wide[:, :d, :d] = data.means, component_covs(data)
        wide[:, d:, d:] = self.gamma * self.mass * torch.eye(d)
        if isinstance(data, Gaussian):
            return Gaussian(means[0], wide[0])
        return GaussianMixture(data.weights, means, wide)

    def data_part(self, state: Tensor) -> Tensor:
        """The data ``(B, d)`` in states ``(B, 2 d)``."""
        if state.shape[1:] != (self.dim,):
            raise ValueError(f"state has shape {tuple(state.shape)}; states are (B, {self.dim})")
        return state[:, : self.data_dim]
