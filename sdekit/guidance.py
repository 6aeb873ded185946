"""Guidance: denoisers made of denoisers, which push samples towards a condition.

With ``p_σ`` the law of the noisy state, ``score = (D − x̂)/σ²`` turns Bayes' rule into a rule for
denoisers: ``D_c = D + σ² ∇ log p_σ(c | x̂)``, and a guidance scale ``w`` multiplies the second term. The
result is a denoiser like any other, so every solver takes it. At ``w = 1`` it is that of the
conditional law; at another ``w`` its score is that of ``p_σ(x̂) p_σ(c | x̂)^w``, and these are not noised
versions of one law.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .denoisers import Conditioned, model_of
from .wrapper import (
    Sigma,
    Wrapper,
    check_scale,
    entries,
    own,
    own_tensor,
    per_event,
    pick_rows,
    squared,
    with_gradient,
)

__all__ = ["ClassifierFree", "ClassifierGuided", "StepScale", "cfg_plus_plus"]


_ABOVE = 1 + 1e-6


class ClassifierFree(Wrapper):
    """Classifier-free guidance ``D = D_u + w (D_c − D_u)`` from one conditional network.

    One call of the network on both halves of a doubled batch, which is two evaluations of each
    sample; one where the result is one of the two: at ``w`` 0 or 1, and outside of the interval.

    Args:
        func: The network, as a denoiser.
        scale: ``w``, not negative: 1 is the conditional denoiser, 0 the unconditional one; or a
            function of ``sigma``, a tensor of shape ``()`` or ``(B,)``, that returns such a tensor.
        conditional: What the network is told for ``D_c``: tensors of shape ``()``, of one entry, or
            with an entry for each sample.
        unconditional: The same for ``D_u``, of the same names; a negative prompt is one.
        rescale: ``φ`` in [0, 1]: the share of the result whose standard deviation over a sample is
            brought back to that of ``D_c``. It acts on ``D`` here, on ``v`` in the paper.
        interval: ``(low, high)``: guide at levels ``low < σ ≤ high`` only, and elsewhere take ``D_c``.
            To know where it is, a call on a GPU waits for the value of ``sigma``.

    Raises:
        TypeError: If conditioning is not made of tensors.
        ValueError: If the scale is negative, ``rescale`` is not in [0, 1], the interval is empty, or
            the two conditionings have different names.

    Source: Ho & Salimans (2022), eq. 6, whose weight is ``w − 1``; Lin et al. (2024), eqs. 15–16;
        Kynkäänniemi et al. (2024), section 3.
    """

    def __init__(
        self,
        func: Callable[..., Tensor],
        scale: float | Callable[[Tensor], Tensor],
        *,
        conditional: Mapping[str, Tensor],
        unconditional: Mapping[str, Tensor],
        rescale: float = 0.0,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(func)
        if not callable(scale):
            check_scale(scale)
        if not conditional or set(conditional) != set(unconditional):
            raise ValueError(
                f"conditional has {sorted(conditional)}, unconditional {sorted(unconditional)}; both "
                "need the same names, at least one"
            )
        for name, value in [*conditional.items(), *unconditional.items()]:
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} is a {type(value).__name__}; it must be a tensor, which is doubled with "
                    "the batch, such as torch.tensor(10) for a label of all samples"
                )
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale = {rescale}; it is a share, from 0 to 1")
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise ValueError(
                f"interval = {interval} is empty; it must be (low, high) with 0 <= low < high"
            )
        self.scale = scale
        self.conditional = dict(conditional)
        self.unconditional = {k: unconditional[k].to(v.device) for k, v in conditional.items()}
        self.rescale, self.interval = rescale, interval

    def rows(self, samples: NDArray[np.int64]) -> ClassifierFree:
        """Return the denoiser of some of the samples."""
        part = super().rows(samples)
        part.conditional = pick_rows(self.conditional, samples)
        part.unconditional = pick_rows(self.unconditional, samples)
        return part

    def told(self) -> dict[str, Tensor]:
        """Both conditionings."""
        unconditional = {f"unconditional {name}": v for name, v in self.unconditional.items()}
        return {**self.conditional, **unconditional}

    def evaluations(self, sigma: Sigma | None = None) -> int:
        """Two, or one where the result is one of the two denoisers."""
        if not callable(self.scale) and self.scale in (0.0, 1.0):
            return 1
        if sigma is None or self.interval is None or (isinstance(sigma, Tensor) and sigma.ndim):
            return 2
        return 2 if self._guides(float(sigma)) else 1

    def _guides(self, sigma: float) -> bool:
        assert self.interval is not None
        # A level in float32 may be a little above or below the bound that it is.
        return self.interval[0] * _ABOVE < sigma <= self.interval[1] * _ABOVE

    def __call__(self, x_hat: Tensor, sigma: Sigma, /, **more: object) -> Tensor:
        """Denoise ``(B, *event)``; ``more`` is conditioning that both halves share.

        Raises:
            ValueError: If there is conditioning for another number of samples, or samples of one
                component are to be rescaled.
        """
        if self.interval is not None and isinstance(sigma, Tensor) and sigma.ndim:
            return self._guided_where(x_hat, sigma, more)
        if self.interval is None or self._guides(float(sigma)):
            return self._guided(x_hat, sigma, more)
        return self._denoise(x_hat, sigma, self.conditional, more)

    def _denoise(
        self, x: Tensor, sigma: Sigma, told: Mapping[str, Tensor], more: Mapping[str, object]
    ) -> Tensor:
        return self.func(x, sigma, **more, **entries(told, len(x)))

    def _guided(self, x: Tensor, sigma: Sigma, more: Mapping[str, object]) -> Tensor:
        if not callable(self.scale) and self.scale in (0.0, 1.0):
            told = self.conditional if self.scale else self.unconditional
            return self._denoise(x, sigma, told, more)
        B = len(x)
        conditional, unconditional = entries(self.conditional, B), entries(self.unconditional, B)
        for name, c in conditional.items():
            if c.shape != unconditional[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(c.shape[1:])} per sample in conditional and "
                    f"{tuple(unconditional[name].shape[1:])} in unconditional; pad the shorter one"
                )
        told = {name: torch.cat([c, unconditional[name]]) for name, c in conditional.items()}
        shared = {
            k: torch.cat([v, v]) if isinstance(v, Tensor) and v.ndim and len(v) == B else v
            for k, v in more.items()
        }
        both = torch.cat([sigma, sigma]) if isinstance(sigma, Tensor) and sigma.ndim else sigma
        func = self.func
        if isinstance(
            func, Conditioned | functools.partial
        ):  # what it has for each sample is doubled
            func = model_of(func, np.r_[:B, :B])
        D_c, D_u = func(torch.cat([x, x]), both, **shared, **told).chunk(2)
        if callable(self.scale):
            level = sigma if isinstance(sigma, Tensor) else x.new_tensor(sigma)
            scale: Sigma = per_event(torch.as_tensor(self.scale(level)), x)
        else:
            scale = self.scale
        guided = D_u + scale * (D_c - D_u)
        if not self.rescale:
            return guided
        if x[0].numel() == 1:
            raise ValueError("samples of one component have no standard deviation to rescale")
        dims = tuple(range(1, x.ndim))
        wanted, found = (v.std(dims, correction=0, keepdim=True) for v in (D_c, guided))
        ratio = wanted / found.clamp(min=torch.finfo(found.dtype).tiny)
        return guided * (1 + self.rescale * (ratio - 1))

    def _guided_where(self, x: Tensor, sigma: Tensor, more: Mapping[str, object]) -> Tensor:
        """Some samples of a batch may be inside of the interval, others outside."""
        inside = torch.tensor([self._guides(level) for level in sigma.tolist()])
        result = torch.empty_like(x)
        for rows, guide in ((inside.nonzero()[:, 0], True), ((~inside).nonzero()[:, 0], False)):
            if len(rows):
                part = self.rows(rows.numpy())
                chosen = rows.to(x.device)
                shared = {
                    k: v[chosen] if isinstance(v, Tensor) and v.ndim and len(v) == len(x) else v
                    for k, v in more.items()
                }
                at = x[chosen], sigma[chosen]
                value = (
                    part._guided(*at, shared)
                    if guide
                    else part._denoise(*at, part.conditional, shared)
                )
                result = result.index_copy(0, chosen, value.to(x.dtype))
        return result


class ClassifierGuided(Wrapper):
    """Classifier guidance ``D + w σ² ∇_x̂ log p(y | x̂, σ)``, the gradient by automatic differentiation.

    It works inside of ``torch.no_grad()`` and ``torch.inference_mode()``. Where gradients are enabled
    the result can be differentiated itself, and so keeps a graph.

    Args:
        func: The unconditional denoiser.
        log_prob: ``(x_hat, sigma, **conditioning) -> log p(y | x̂, σ)``, ``(B,)``, of noisy states.
        scale: ``w``, not negative.
        **conditioning: What ``log_prob`` is told: tensors with an entry per sample, ``(B, …)``.

    Raises:
        TypeError: If conditioning is not made of tensors.
        ValueError: If the scale is negative.

    Source: Dhariwal & Nichol (2021), eq. 14, as a denoiser.
    """

    def __init__(
        self,
        func: Callable[..., Tensor],
        log_prob: Callable[..., Tensor],
        scale: float = 1.0,
        /,
        **conditioning: Tensor,
    ) -> None:
        super().__init__(func)
        check_scale(scale)
        self.log_prob, self.scale = log_prob, scale
        for name, value in conditioning.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} is not a tensor with an entry per sample")
        self.conditioning = Conditioned(func, **conditioning).conditioning

    def __call__(self, x_hat: Tensor, sigma: Sigma, /, **more: object) -> Tensor:
        """Denoise ``(B, *event)``; ``more`` is the denoiser's conditioning.

        Raises:
            TypeError: If ``log_prob`` does not return a tensor.
            ValueError: If ``log_prob`` returns another shape than ``(B,)``, or does not depend on
                ``x_hat``.
        """

        def potential(x: Tensor) -> tuple[Tensor, Tensor]:
            told = {k: own_tensor(v) for k, v in entries(self.conditioning, len(x)).items()}
            log_prob = self.log_prob(x, own(sigma), **told)
            return log_prob, log_prob

        _, gradient = with_gradient(potential, x_hat, "log_prob")
        return self.func(x_hat, sigma, **more) + self.scale * squared(sigma, x_hat) * gradient


class StepScale:
    """A scale for each step of a grid, ``value/(1 − σ_{n+1}/σ_n)``, looked up by the noise level.

    An Euler step from ``σ_n`` is ``x̂' = D + (σ_{n+1}/σ_n)(x̂ − D)``, so what is added to ``D`` enters
    the state times ``1 − σ_{n+1}/σ_n``: this scale makes it ``value`` whatever the step. From the last
    level of the grid, where a step to 0 may begin, it is ``value`` itself.

    Args:
        value: What a step adds.
        sigmas: The grid of the solve, strictly decreasing; the last may be 0.

    Attributes:
        value: What a step adds.
        sigmas: The grid.

    Raises:
        ValueError: If the value is negative or the grid is not as above.
    """

    def __init__(self, value: float, sigmas: Sequence[float] | NDArray[np.float64]) -> None:
        check_scale(value)
        grid = np.asarray(sigmas, dtype=np.float64)
        if grid.ndim != 1 or len(grid) < 2 or not (np.diff(grid) < 0).all() or grid[-1] < 0:
            raise ValueError(
                "sigmas must be the grid of the solve: at least two strictly decreasing noise levels, "
                f"the last may be 0; got {grid.tolist()}"
            )
        self.value, self.sigmas = float(value), tuple(grid.tolist())
        grid = grid if grid[-1] == 0 else np.append(grid, 0.0)
        self._log_levels = torch.as_tensor(np.log(grid[:-1]))
        self._scales = torch.as_tensor(value / (1 - grid[1:] / grid[:-1]))
        self._placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, sigma: Tensor) -> Tensor:
        """Return the scale at the level of the grid that is nearest, in the shape of ``sigma``."""
        key = (sigma.device, sigma.dtype)
        if key not in self._placed:
            with torch.inference_mode(False):
                self._placed[key] = self._log_levels.to(sigma), self._scales.to(sigma)
        levels, scales = self._placed[key]
        return scales[(sigma.log()[..., None] - levels).abs().argmin(-1)]


def cfg_plus_plus(
    denoiser: Callable[..., Tensor],
    scale: float,
    sigmas: Sequence[float] | NDArray[np.float64],
    *,
    conditional: Mapping[str, Tensor],
    unconditional: Mapping[str, Tensor],
) -> ClassifierFree:
    """Return the denoiser with which Euler steps in ``σ`` (DDIM) on a grid are CFG++.

    A step of CFG++, ``x̂' = D_λ + (σ'/σ)(x̂ − D_u)`` with ``D_λ = D_u + λ (D_c − D_u)``, is one of
    classifier-free guidance with ``w = λ/(1 − σ'/σ)``. So it has no limit as steps get shorter: at
    fixed ``λ`` the guidance grows like the number of steps.

    Args:
        denoiser: The network, as a denoiser.
        scale: ``λ``; in the paper between 0 and 1.
        sigmas: The grid, to be given to the solve as well: ``solve(…, method="edm_euler",
            sigmas=sigmas)``.
        conditional: What the network is told for ``D_c``; see `ClassifierFree`.
        unconditional: What it is told for ``D_u``.

    Raises:
        TypeError: If conditioning is not made of tensors.
        ValueError: If the scale is negative or the grid is not decreasing.

    Source: Chung et al. (2025), alg. 2.
    """
    return ClassifierFree(
        denoiser,
        StepScale(scale, sigmas),
        conditional=conditional,
        unconditional=unconditional,
    )
