"""Inverse problems: denoisers that push samples towards a linear observation ``y = A x0 + s_y ε``.

The conditional denoiser is ``D + σ² ∇ log p_σ(y | x̂)``. The likelihood of a noisy state is not known
for a network, and these methods put a Gaussian ``N(y; A D, v A Aᵀ + s_y² I)`` in its place, where ``v``
stands for the variance of ``x0`` given ``x̂``. What is sampled is therefore not the posterior, however
fine the steps: `sdekit.distributions.posterior` is that of a mixture, to measure by how much. A call
costs one evaluation of the network, and one derivative of it.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .denoisers import known_sigma_data
from .distributions.conditional import check_noise
from .guidance import StepScale
from .wrapper import (
    Sigma,
    Wrapper,
    check_scale,
    own,
    own_tensor,
    per_event,
    pick_rows,
    squared,
    with_gradient,
)

__all__ = ["DPS", "LinearObservation", "MaskedObservation", "Observation", "PiGDM", "Replaced"]


class Observation(ABC):
    """A noisy linear observation of each sample.

    Attributes:
        y: What was observed.
        noise: ``s_y``, the standard deviation of its noise.
    """

    y: Tensor
    noise: float

    def __init__(self, y: Tensor, noise: float) -> None:
        if not isinstance(y, Tensor) or not y.is_floating_point():
            raise TypeError(
                f"y is a {getattr(y, 'dtype', type(y).__name__)}; it must be a float tensor"
            )
        check_noise(noise)
        self.y, self.noise = y, float(noise)

    def rows(self, samples: NDArray[np.int64]) -> Observation:
        """Return the observation of some of the samples."""
        part = copy.copy(self)
        part.y = pick_rows({"y": self.y}, samples)["y"]
        return part

    @abstractmethod
    def log_prob(self, x0: Tensor, variance: Sigma) -> Tensor:
        """Return ``log N(y; A x0, v A Aᵀ + s_y² I)`` up to what does not depend on ``x0``, ``(B,)``.

        Args:
            x0: Clean samples, ``(B, *event)``.
            variance: ``v``, a number or a tensor of shape ``()`` or ``(B,)``.
        """

    @abstractmethod
    def misfit(self, x0: Tensor) -> Tensor:
        """Return ``‖y − A x0‖``, ``(B,)``."""

    def _check(self, x0: Tensor) -> Tensor:
        if len(self.y) not in (1, len(x0)):
            raise ValueError(f"y is for {len(self.y)} samples, the batch has {len(x0)}")
        return own_like(self.y, x0)


class MaskedObservation(Observation):
    """Some components of each sample are observed: inpainting.

    Args:
        mask: Boolean, the shape of an event: where components are observed.
        y: Their values, the shape of an event, or ``(B, *event)``; what is elsewhere is not read.
        noise: ``s_y``, positive; a small one stands for an exact observation.

    Raises:
        TypeError: If the mask is not boolean or ``y`` not a float tensor.
        ValueError: If the shapes do not fit, nothing is observed, or the noise is not positive.
    """

    def __init__(self, mask: Tensor, y: Tensor, noise: float) -> None:
        super().__init__(y, noise)
        self.mask, self.y = check_mask(mask, y)

    def _residual(self, x0: Tensor) -> Tensor:
        check_event(self.mask, x0)
        mask = own_like(self.mask, x0.device)
        return torch.where(mask, self._check(x0) - x0, 0.0).flatten(1)

    def log_prob(self, x0: Tensor, variance: Sigma) -> Tensor:
        """``−½ ‖y − A x0‖²/(v + s_y²)``, since ``A Aᵀ`` is the identity."""
        return -0.5 * self._residual(x0).square().sum(1) / (variance + self.noise**2)

    def misfit(self, x0: Tensor) -> Tensor:
        """Return ``‖y − A x0‖``, ``(B,)``."""
        norm: Tensor = torch.linalg.vector_norm(self._residual(x0), dim=1)
        return norm


class LinearObservation(Observation):
    """A matrix is applied to each sample, flattened.

    Args:
        matrix: ``A``, ``(m, d)`` for events of ``d`` components.
        y: ``(m,)`` or ``(B, m)``.
        noise: ``s_y``, positive.

    Raises:
        TypeError: If ``y`` is not a float tensor.
        ValueError: If the shapes do not fit, or the noise is not positive.
    """

    def __init__(self, matrix: Tensor, y: Tensor, noise: float) -> None:
        super().__init__(y, noise)
        if not isinstance(matrix, Tensor) or matrix.ndim != 2 or not matrix.is_floating_point():
            raise ValueError(
                f"matrix has shape {tuple(getattr(matrix, 'shape', ()))}; it must be a float tensor "
                "(m, d)"
            )
        if y.ndim not in (1, 2) or y.shape[-1] != len(matrix):
            raise ValueError(
                f"y has shape {tuple(y.shape)}; it must be ({len(matrix)},) or (B, {len(matrix)})"
            )
        self.matrix, self.y = matrix.to(y.device), y.reshape(-1, len(matrix))
        # A Aᵀ = U diag(e) Uᵀ: then every v costs two products of vectors.
        values, vectors = torch.linalg.eigh((matrix @ matrix.mT).double().cpu())
        self._values, self._vectors = values.clamp(min=0.0).to(y.device), vectors.to(y.device)

    def _residual(self, x0: Tensor) -> Tensor:
        if x0[0].numel() != self.matrix.shape[1]:
            raise ValueError(
                f"matrix is for events of {self.matrix.shape[1]} components, those of the state "
                f"{tuple(x0.shape)} have {x0[0].numel()}"
            )
        return self._check(x0) - x0.flatten(1) @ own_like(self.matrix, x0).mT

    def log_prob(self, x0: Tensor, variance: Sigma) -> Tensor:
        """Return ``log N(y; A x0, v A Aᵀ + s_y² I)`` up to a constant, ``(B,)``."""
        along = self._residual(x0) @ own_like(self._vectors, x0)
        if isinstance(variance, Tensor):
            variance = variance.reshape(-1, 1)
        spread = variance * own_like(self._values, x0) + self.noise**2
        return -0.5 * (along.square() / spread).sum(1)

    def misfit(self, x0: Tensor) -> Tensor:
        """Return ``‖y − A x0‖``, ``(B,)``."""
        norm: Tensor = torch.linalg.vector_norm(self._residual(x0), dim=1)
        return norm


class _Observed(Wrapper, ABC):
    """A denoiser pushed along the gradient of a log-likelihood of its own result."""

    def __init__(self, func: Callable[..., Tensor], observation: Observation) -> None:
        super().__init__(func)
        if not isinstance(observation, Observation):
            raise TypeError(
                f"observation is a {type(observation).__name__}; it must be a MaskedObservation or a "
                "LinearObservation"
            )
        self.observation = observation

    def rows(self, samples: NDArray[np.int64]) -> _Observed:
        """Return the denoiser of some of the samples."""
        part = super().rows(samples)
        part.observation = self.observation.rows(samples)
        return part

    def told(self) -> dict[str, Tensor]:
        """The observation."""
        return {"y": self.observation.y}

    @abstractmethod
    def log_prob(self, x0: Tensor, sigma: Sigma) -> Tensor:
        """Return a log-likelihood of denoised samples, ``(B,)``."""

    @abstractmethod
    def step(self, sigma: Sigma, x_hat: Tensor) -> Sigma:
        """Return what multiplies its gradient."""

    def __call__(self, x_hat: Tensor, sigma: Sigma, /, **conditioning: object) -> Tensor:
        """Denoise ``(B, *event)``; conditioning is that of the inner denoiser.

        Raises:
            ValueError: If the observation is of another shape or for another number of samples.
        """

        def potential(x: Tensor) -> tuple[Tensor, Tensor]:
            level = own(sigma)
            told = {
                k: own_tensor(v) if isinstance(v, Tensor) else v for k, v in conditioning.items()
            }
            denoised = self.func(x, level, **told)
            return denoised, self.log_prob(denoised, level)

        denoised, gradient = with_gradient(potential, x_hat, "the denoiser")
        return denoised + self.step(sigma, x_hat) * gradient


class PiGDM(_Observed):
    """Pseudo-inverse guidance: ``D + w σ² ∇ log N(y; A D, v A Aᵀ + s_y² I)``.

    Here ``v = σ² σ_d²/(σ² + σ_d²)``. For data of covariance ``σ_d² I`` that is the variance of ``x0``
    given ``x̂``, and the denoiser is that of the posterior. With ``sigma_data=math.inf``, ``v = σ²``:
    reconstruction guidance (Ho et al. 2022, eq. 7). The gradient enters as Bayes' rule has it; the
    published sampler adds it once per step with a weight of its own, which has no limit as steps get
    shorter.

    Args:
        func: The denoiser.
        observation: What was observed.
        sigma_data: ``σ_d``; the denoiser's own, if it says so.
        scale: ``w``, not negative.

    Raises:
        TypeError: If the observation is of another kind.
        ValueError: If ``sigma_data`` is neither given nor known, or not positive; or the scale is
            negative.

    Source: Song et al. (2023), section 3, whose ``r²`` is ``v`` for data of unit variance.
    """

    def __init__(
        self,
        func: Callable[..., Tensor],
        observation: Observation,
        *,
        sigma_data: float | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(func, observation)
        check_scale(scale)
        value = known_sigma_data(func) if sigma_data is None else float(sigma_data)
        if value is None:
            raise ValueError("the denoiser does not say its sigma_data; give sigma_data=")
        if not value > 0:
            raise ValueError(f"sigma_data = {value}; it must be positive")
        self.spread, self.scale = value, scale

    def log_prob(self, x0: Tensor, sigma: Sigma) -> Tensor:
        """Return the Gaussian log-likelihood with ``v = σ² σ_d²/(σ² + σ_d²)``."""
        level = sigma.to(x0) if isinstance(sigma, Tensor) else sigma
        return self.observation.log_prob(x0, level**2 / (1 + (level / self.spread) ** 2))

    def step(self, sigma: Sigma, x_hat: Tensor) -> Sigma:
        """``w σ²``."""
        return self.scale * squared(sigma, x_hat)


class DPS(_Observed):
    """Diffusion posterior sampling: the likelihood of ``D`` itself, as if it were ``x0``.

    Without a grid it is the paper's likelihood, ``D + ζ σ² ∇ log N(y; A D, s_y² I)``: a field with a
    limit, but stiff like ``σ_d²/s_y²``. With the grid of an Euler solve it is what the paper's sampler
    does: each step subtracts ``ζ ∇‖y − A D‖`` from the state, so ``D − ζ/(1 − σ'/σ) ∇‖y − A D‖``; that
    has no limit as steps get shorter, ``ζ`` belongs to a number of steps.

    Args:
        func: The denoiser.
        observation: What was observed.
        scale: ``ζ``, not negative. The paper steps in the state ``x = s x̂``: its ``ζ`` is ``s s'``
            times this one.
        sigmas: The grid of the solve, strictly decreasing.

    Raises:
        TypeError: If the observation is of another kind.
        ValueError: If the scale is negative or the grid is not decreasing.

    Source: Chung et al. (2023), section 3 and alg. 1; their code takes the gradient of the norm.
    """

    def __init__(
        self,
        func: Callable[..., Tensor],
        observation: Observation,
        scale: float = 1.0,
        *,
        sigmas: Sequence[float] | NDArray[np.float64] | None = None,
    ) -> None:
        super().__init__(func, observation)
        check_scale(scale)
        self.scale = scale
        self.per_step = None if sigmas is None else StepScale(scale, sigmas)

    def log_prob(self, x0: Tensor, sigma: Sigma) -> Tensor:
        """Return the log-likelihood, or minus the misfit."""
        if self.per_step is not None:
            return -self.observation.misfit(x0)
        return self.observation.log_prob(x0, 0.0)

    def step(self, sigma: Sigma, x_hat: Tensor) -> Sigma:
        """``ζ σ²``, or ``ζ/(1 − σ'/σ)``."""
        if self.per_step is None:
            return self.scale * squared(sigma, x_hat)
        level = sigma if isinstance(sigma, Tensor) else x_hat.new_tensor(sigma)
        return per_event(self.per_step(level), x_hat)


class Replaced(Wrapper):
    """Replacement: what is known of ``x0`` is put into the denoised sample.

    Known components then follow ``dx̂/dσ = (x̂ − y)/σ`` in a flow: their states are ``y + σ ε`` with the
    ``ε`` of the start, and in a reverse SDE they have the law of a noised ``y``. So this is the
    replacement of known states by noised ones, and, in a flow, DDNM for a mask. The rest is denoised
    given the noisy ``y + σ ε`` at its level, not given ``y``: what is sampled is not the posterior.

    Args:
        func: The denoiser.
        mask: Boolean, the shape of an event: where components are known.
        y: Their values, the shape of an event, or ``(B, *event)``; what is elsewhere is not read.

    Raises:
        TypeError: If the mask is not boolean or ``y`` not a float tensor.
        ValueError: If the shapes do not fit, or nothing is known.

    Source: Song et al. (2021), appendix I.2; Wang et al. (2023), section 3.
    """

    def __init__(self, func: Callable[..., Tensor], mask: Tensor, y: Tensor) -> None:
        super().__init__(func)
        self.mask, self.y = check_mask(mask, y)

    def rows(self, samples: NDArray[np.int64]) -> Replaced:
        """Return the denoiser of some of the samples."""
        part = super().rows(samples)
        part.y = pick_rows({"y": self.y}, samples)["y"]
        return part

    def told(self) -> dict[str, Tensor]:
        """What is known."""
        return {"y": self.y}

    def __call__(self, x_hat: Tensor, sigma: Sigma, /, **conditioning: object) -> Tensor:
        """Denoise ``(B, *event)``.

        Raises:
            ValueError: If the mask or ``y`` is for other samples.
        """
        check_event(self.mask, x_hat)
        if len(self.y) not in (1, len(x_hat)):
            raise ValueError(f"y is for {len(self.y)} samples, the batch has {len(x_hat)}")
        denoised = self.func(x_hat, sigma, **conditioning)
        mask = own_tensor(self.mask).to(denoised.device)
        return torch.where(mask, own_like(self.y, denoised), denoised)


def check_mask(mask: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return a mask, and values with an axis of samples; refuse what does not fit together."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(
            f"mask is a {getattr(mask, 'dtype', type(mask).__name__)}; it must be a boolean tensor"
        )
    if not isinstance(y, Tensor) or not y.is_floating_point():
        raise TypeError(
            f"y is a {getattr(y, 'dtype', type(y).__name__)}; it must be a float tensor"
        )
    if y.shape not in (mask.shape, (*y.shape[:1], *mask.shape)):
        raise ValueError(
            f"y has shape {tuple(y.shape)}; for a mask {tuple(mask.shape)} it must have that shape, or "
            f"(B, {', '.join(map(str, mask.shape))})"
        )
    if not mask.any():
        raise ValueError("mask is nowhere true; at least one component must be known")
    return mask.to(y.device), y.reshape(-1, *mask.shape)


def check_event(mask: Tensor, x: Tensor) -> None:
    """Refuse states whose events do not have the shape of the mask."""
    if x.shape[1:] != mask.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, but events of the state have {tuple(x.shape[1:])}"
        )


def own_like(value: Tensor, like: Tensor | torch.device) -> Tensor:
    """Return a constant in the dtype and on the device of a state, for autograd to keep."""
    return own_tensor(value).to(like)
