"""Affine processes: ``x(t) = s(t) (x0 + σ(t) ε)``, and all that follows from ``s`` and ``σ``.

With the unscaled state ``x̂ = x / s`` every affine process is the same Brownian motion,
``x̂ = x0 + B(σ²)``: a process contributes its scale ``s(t)``, its map between time and noise level
``σ(t)``, and its prior. In the SDE ``dx = f(t) x dt + g(t) dW`` (Karras et al. 2022, appendix B)::

    f = ṡ / s,     g² = s² d(σ²)/dt,          s = exp ∫ f,     σ² = ∫ g² / s².
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .quadrature import CumulativeIntegral
from .sde import (
    ForwardSDE,
    Model,
    ProbabilityFlow,
    ReverseSDE,
    as_time,
    check_output,
    expand,
)

# Where a drift is continued to negative times, in units of T.
_NEAR_ZERO = 1e-6

Schedule = Callable[[Tensor], Tensor | float]


def _derivative(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Differentiate an elementwise function of time by forward-mode AD."""
    derivative: Tensor = torch.func.jvp(fn, (t,), (torch.ones_like(t),))[1]
    return derivative


def check_times(T: float, t_min: float) -> None:
    """Refuse a time range that is not ``0 <= t_min < T < ∞``."""
    if not 0 <= t_min < T < np.inf:
        raise ValueError(f"t_min = {t_min} and T = {T}; 0 <= t_min < T is needed")


class AffineSDE(ForwardSDE):
    """The forward SDE of ``x(t) = s(t) (x0 + σ(t) ε)``, from ``(scale, sigma)`` or ``(f, g)``.

    The other pair is derived: ``f`` and ``g`` by automatic differentiation, ``scale`` and
    ``sigma`` by adaptive quadrature, cached. Subclasses override the methods instead.

    Args:
        scale: Elementwise function ``s(t)`` with ``s(0) = 1``.
        sigma: Elementwise, increasing function ``σ(t)``.
        f: Elementwise drift coefficient ``f(t)``.
        g: Elementwise diffusion coefficient ``g(t) >= 0``.
        T: Time at which the noising ends.
        t_min: Time at which sampling stops.

    Raises:
        TypeError: If neither pair, or parts of both, are given.
        ValueError: If the times are not ``0 <= t_min < T``, or ``σ(t)`` does not increase.
    """

    noise_type = "diagonal"
    _scale: Schedule | None = None
    _sigma: Schedule | None = None
    _f: Schedule | None = None
    _g: Schedule | None = None

    def __init__(
        self,
        *,
        scale: Schedule | None = None,
        sigma: Schedule | None = None,
        f: Schedule | None = None,
        g: Schedule | None = None,
        T: float = 1.0,
        t_min: float = 1e-3,
    ) -> None:
        given = [k for k, v in {"scale": scale, "sigma": sigma, "f": f, "g": g}.items() if v]
        if given not in (["scale", "sigma"], ["f", "g"]):
            raise TypeError(
                f"AffineSDE got {', '.join(given) or 'no coefficients'}; give either scale and "
                "sigma, or f and g"
            )
        check_times(T, t_min)
        self.T, self.t_min = float(T), float(t_min)
        self._scale, self._sigma, self._f, self._g = scale, sigma, f, g
        levels = self.on_host("sigma", np.linspace(self.t_min, self.T, 65))
        if not (np.diff(levels) > 0).all():
            raise ValueError(
                f"sigma(t) does not increase on [{self.t_min:g}, {self.T:g}]; noise can only be added"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(T={self.T:g}, t_min={self.t_min:g})"

    # --- the schedule -------------------------------------------------------------------------

    @cached_property
    def _log_scale(self) -> CumulativeIntegral:
        assert self._f is not None
        return CumulativeIntegral(lambda t: self.f(t), self.T)

    @cached_property
    def _variance(self) -> CumulativeIntegral:
        return CumulativeIntegral(
            lambda t: (self.g(t) * torch.exp(-self._log_scale(t))) ** 2, self.T
        )

    def scale(self, t: Tensor) -> Tensor:
        """Scale ``s(t)``, elementwise."""
        if self._scale is not None:
            return self._scale(t) + torch.zeros_like(t)
        return torch.exp(self._log_scale(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level ``σ(t)`` of the unscaled state, elementwise."""
        if self._sigma is not None:
            return self._sigma(t) + torch.zeros_like(t)
        return torch.sqrt(self._variance(t))

    def std(self, t: Tensor) -> Tensor:
        """Standard deviation ``s(t) σ(t)`` of the noise in ``x(t)``, elementwise."""
        return self.scale(t) * self.sigma(t)

    def f(self, t: Tensor) -> Tensor:
        """Drift coefficient ``f(t) = ṡ / s``, elementwise."""
        if self._f is not None:
            return self._f(t) + torch.zeros_like(t)
        return _derivative(self.scale, t) / self.scale(t)

    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient ``g(t) = s sqrt(d(σ²)/dt)``, elementwise."""
        if self._g is not None:
            return self._g(t) + torch.zeros_like(t)
        return self.scale(t) * torch.sqrt(_derivative(lambda u: self.sigma(u) ** 2, t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of `scale` and `std`, elementwise."""
        if self._f is not None:
            f, std = self.f(t), self.std(t)
            return f * self.scale(t), f * std + self.g(t) ** 2 / (2 * std)
        return _derivative(self.scale, t), _derivative(self.std, t)

    def time(self, sigma: Tensor) -> Tensor:
        """Time at which the noise level is ``sigma``, elementwise (by bisection on ``[0, T]``)."""
        low, high = torch.zeros_like(sigma), torch.full_like(sigma, self.T)
        for _ in range(64 if sigma.dtype == torch.float64 else 32):
            middle = (low + high) / 2
            below = self.sigma(middle) < sigma
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return torch.where(sigma >= self.sigma(torch.full_like(sigma, self.T)), self.T, high)

    def on_host(self, name: str, values: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Evaluate ``scale``, ``sigma``, ``std``, ``g`` or ``time`` on numpy arrays, in float64."""
        argument = torch.as_tensor(np.asarray(values, dtype=np.float64))
        with torch.no_grad():
            result: Tensor = getattr(self, name)(argument)
        return result.numpy()

    def rates_on_host(self, t: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Evaluate `rates` on numpy arrays, in float64."""
        with torch.no_grad():
            return tuple(rate.numpy() for rate in self.rates(torch.as_tensor(t)))

    @property
    def sigma_max(self) -> float:
        """Noise level ``σ(T)``; infinite where the signal vanishes, as in rectified flow."""
        return float(self.on_host("sigma", self.T))

    @property
    def sigma_min(self) -> float:
        """Noise level ``σ(t_min)`` at which sampling stops by default."""
        return float(self.on_host("sigma", self.t_min))

    # --- laws ---------------------------------------------------------------------------------

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """Drift ``f(t) x``."""
        return expand(self.f(t), x) * x

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """Diffusion ``g(t)``, of ``t``'s shape: scalar noise."""
        return self.g(t)

    def diffusion_divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """Zero: the diffusion does not depend on the state."""
        return torch.zeros_like(x)

    def marginal(self, x0: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Law of ``x(t)`` given ``x(0)``: ``N(s x0, s² σ² I)``.

        Args:
            x0: Data, ``(B, *event)``.
            t: Time, ``()`` or ``(B,)``.

        Returns:
            The mean, of ``x0``'s shape, and the standard deviation, of ``t``'s shape.
        """
        t = as_time(t, x0)
        return expand(self.scale(t), x0) * x0, self.std(t)

    def transition(self, x: Tensor, r: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Law of ``x(t)`` given ``x(r)``, ``r <= t``: ``N((s_t/s_r) x, s_t² (σ_t² − σ_r²) I)``.

        Args:
            x: State at time ``r``, ``(B, *event)``.
            r: Earlier time, ``()`` or ``(B,)``.
            t: Later time, ``()`` or ``(B,)``.

        Returns:
            The mean, of ``x``'s shape, and the standard deviation, of the times' shape.
        """
        r, t = as_time(r, x), as_time(t, x)
        # s_t σ_t is finite where σ_t is not; so is the ratio that carries σ_r.
        ratio = self.scale(t) / self.scale(r)
        variance = self.std(t) ** 2 - (ratio * self.std(r)) ** 2
        return expand(ratio, x) * x, torch.sqrt(variance)

    def perturb(
        self,
        x0: Tensor,
        t: float | Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw ``x(t) = s (x0 + σ ε)``.

        Args:
            x0: Data, ``(B, *event)``.
            t: Time, ``()`` or ``(B,)``.
            noise: ``ε``, of ``x0``'s shape; drawn from ``generator`` if not given.
            generator: Source of randomness.

        Raises:
            ValueError: If ``noise`` has another shape.
        """
        if noise is None:
            noise = torch.empty_like(x0).normal_(generator=generator)
        elif noise.shape != x0.shape:
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, x0 has {tuple(x0.shape)}; they must agree"
            )
        mean, std = self.marginal(x0, t)
        return mean + expand(std, x0) * noise

    def prior_sample(
        self,
        shape: tuple[int, ...],
        *,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw from the prior ``N(0, s(T)² σ(T)² I)``, the law of pure noise at time ``T``.

        Without a seed the numbers come from torch's global state.
        """
        generator = None
        if seed is not None:
            generator = torch.Generator(device=device or "cpu").manual_seed(seed)
        noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return float(self.on_host("std", self.T)) * noise

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the prior, ``(B, *event) -> (B,)``, in nats."""
        std = float(self.on_host("std", self.T))
        z = x.reshape(x.shape[0], -1) / std
        log_prob: Tensor = -0.5 * (z**2 + np.log(2 * np.pi * std**2)).sum(1)
        return log_prob

    # --- backward problems --------------------------------------------------------------------

    def backward_coefficients(self, t: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """Coefficients ``(a, b)`` of the backward drift ``a x + b D``, elementwise in ``t``.

        From ``x = s D + n ε̂`` with ``n = s σ``: the flow is ``ṡ D + ṅ ε̂``, which stays regular
        where ``s = 0``; ``η`` adds ``−½ η² g² ∇ log p``.
        """
        s, n = self.scale(t), self.std(t)
        ds, dn = self.rates(t)
        a, b = dn / n, ds - s * dn / n
        if eta == 0:
            return a, b
        extra = 0.5 * (eta * self.g(t) / n) ** 2
        return a + extra, b - s * extra

    def backward_drift(self, model: Model, x: Tensor, t: Tensor, eta: float) -> Tensor:
        """Drift of the backward equation, from a denoiser ``(x_hat, sigma) -> x0_hat``.

        At ``σ = 0`` the drift is ``f x − ½(1 + η²) g² ∇ log p``, which needs a model that knows its
        score there (``denoise_and_score``, as the closed-form distributions); from a plain
        denoiser it is not a number. Where ``σ = ∞`` the denoiser is handed ``ε = x / (s σ)``.
        Solvers that step over their end and interpolate back, as torchdiffeq's do, ask for times
        below 0: the drift goes on there with its value close to 0.
        """
        t = torch.where(t < 0, _NEAR_ZERO * self.T, t)
        s, n = self.scale(t), self.std(t)
        sigma = self.sigma(t)
        x_hat = x / expand(torch.where(s == 0, n, s), x)
        a, b = self.backward_coefficients(t, eta)
        if not hasattr(model, "denoise_and_score"):
            denoised = check_output(model(x_hat, sigma), x, "denoiser")
            return expand(a, x) * x + expand(b, x) * denoised
        # The score form is exact down to σ = 0, the denoiser form up to σ = ∞. Choosing between
        # coefficients, and not between results, keeps gradients free of the other form's poles.
        denoised, score = model.denoise_and_score(x_hat, sigma)
        low, zero = sigma < 1, torch.zeros_like(sigma)
        a = torch.where(low, self.f(t), a)
        b = torch.where(low, zero, b)
        c = torch.where(low, -0.5 * (1 + eta**2) * self.g(t) ** 2 / s, zero)
        drift: Tensor = expand(a, x) * x + expand(b, x) * denoised + expand(c, x) * score
        return drift

    def _as_denoiser(self, denoiser: Model | None, score: Model | None) -> Model:
        if (denoiser is None) == (score is None):
            raise TypeError(
                "give either a denoiser (x_hat, sigma) -> x0_hat, or score=, a callable (x, t)"
            )
        if denoiser is not None:
            return denoiser
        assert score is not None

        def from_score(x_hat: Tensor, sigma: Tensor) -> Tensor:
            t = self.time(sigma)
            s = self.scale(t)
            gradient = score(expand(s, x_hat) * x_hat, t)
            return x_hat + expand(s * sigma**2, x_hat) * gradient  # Tweedie

        return from_score

    # By position an affine process takes a denoiser; by keyword both classes take score=.
    def reverse(  # type: ignore[override]
        self, denoiser: Model | None = None, eta: float = 1.0, *, score: Model | None = None
    ) -> ReverseSDE:
        """Derive the reverse-time SDE.

        Args:
            denoiser: Callable ``(x_hat, sigma) -> x0_hat`` on the unscaled state: a distribution,
                a wrapped network. ``x_hat`` is ``(B, *event)``, ``sigma`` is ``()`` or ``(B,)``.
            eta: Stochasticity ``η > 0``; 1 is Anderson's reverse SDE.
            score: Instead of a denoiser, a score ``(x, t) -> ∇ log p_t(x)`` of the scaled state.

        Raises:
            TypeError: If not exactly one of ``denoiser`` and ``score`` is given.
            ValueError: If ``eta`` is not positive.
        """
        return ReverseSDE(self, self._as_denoiser(denoiser, score), eta)

    def probability_flow(  # type: ignore[override]
        self, denoiser: Model | None = None, *, score: Model | None = None
    ) -> ProbabilityFlow:
        """Derive the probability-flow ODE.

        Args:
            denoiser: Callable ``(x_hat, sigma) -> x0_hat``; see `reverse`.
            score: Instead of a denoiser, a score ``(x, t) -> ∇ log p_t(x)``.

        Raises:
            TypeError: If not exactly one of ``denoiser`` and ``score`` is given.
        """
        return ProbabilityFlow(self, self._as_denoiser(denoiser, score))
