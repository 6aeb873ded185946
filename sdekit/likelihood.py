"""Log-likelihoods of data, along the probability flow.

The flow maps data to noise one to one, and its divergence says how densities change on the way
(Chen et al. 2018; Grathwohl et al. 2019; for diffusion models Song et al. 2021, eq. 39 and 40)::

    log p(u, σ) = log p(u_end, σ_end) + ∫ div_u N dW,        du = N dW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .affine import AffineSDE
from .divergence import Divergence, named_divergence
from .encoding import RTOL, check_process, ends_of
from .inputs import check_rows, check_start, check_steps, check_tolerances
from .prepared import set_up
from .sde import ForwardSDE, Model
from .solution import Stats
from .solvers.adaptive import integrate_adaptive
from .solvers.augmented import Augmented, AugmentedAffine, AugmentedGeneral
from .solvers.exponential import ExponentialRK
from .solvers.march import Tolerances
from .solvers.registry import Solver
from .stepping import march_of
from .wrapper import evaluations

__all__ = ["Density", "Likelihood", "log_likelihood"]


@runtime_checkable
class Density(Protocol):
    """A law of data at any noise level, as the closed-form ones are."""

    def log_prob(self, x: Tensor, sigma: float) -> Tensor:
        """Log-density of unscaled states ``x̂``, flat, at ``σ``: ``(B, d)`` to ``(B,)``, in nats."""
        ...


@dataclass(frozen=True)
class Likelihood:
    """Result of `log_likelihood`; samples that used up ``max_nfe`` have NaN.

    Attributes:
        log_prob: Log-density of the state that was given, in nats, ``(B,)``.
        standard_error: Standard error of ``log_prob`` from the probes, ``(B,)``: 0 for the exact
            divergence, NaN for a single probe. The solver's error comes on top.
        latent: State of the process at the highest noise level, ``(B, *event)``.
        nfe: Network function evaluations (the largest count of a sample), each with the backward
            passes of the divergence.
        stats: Work done.
        status: ``"success"``, or ``"max_nfe"`` if the budget ran out on the way.
        message: A sentence on the status.
    """

    log_prob: Tensor
    standard_error: Tensor
    latent: Tensor = field(repr=False)
    nfe: int
    stats: Stats
    status: str = "success"
    message: str = "The solve reached the highest noise level."

    def bits_per_dim(self, bin_width: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return bits per dimension of data cut into bins, and their standard error, both ``(B,)``.

        They are ``−log_prob/(d log 2) − log2(bin_width)``. For uniformly dequantised data their mean
        bounds the bits of the discrete data from above (Theis et al. 2016, eq. 6).

        Args:
            bin_width: Distance of neighbouring values: 2/255 for 8-bit images in [−1, 1].

        Raises:
            ValueError: If it is not positive and finite.
        """
        if not 0 < bin_width < math.inf:
            raise ValueError(f"bin_width = {bin_width}; it must be positive and finite")
        unit = math.log(2) * math.prod(self.latent.shape[1:])
        return -self.log_prob / unit - math.log2(bin_width), self.standard_error / unit


@torch.no_grad()
def log_likelihood(
    process: ForwardSDE,
    denoiser: Model,
    x: Tensor,
    *,
    divergence: str | Divergence = "hutchinson",
    seed: int | Sequence[int] | None = None,
    prior: Density | Callable[[Tensor], Tensor] | None = None,
    method: str | Solver | None = None,
    sigmas: ArrayLike | None = None,
    times: ArrayLike | None = None,
    rtol: float = RTOL,
    atol: float | None = None,
    sigma_data: float | None = None,
    stepping: str = "sample",
    max_nfe: int = 100_000,
    progress: bool = False,
) -> Likelihood:
    """Log-density, in nats, of states at the lowest noise level, by the probability flow.

    It is exact but for three errors: that of the solver, in nats per dimension up to about ten times
    ``rtol``; that of the estimate of the divergence, which ``standard_error`` tells; and that of the
    prior. No gradients are kept.

    The range is that of `sdekit.encode`. The density is that of the process's state there, which has a
    little noise and the process's scale. Discrete data have to be dequantised.

    Args:
        process: The process.
        denoiser: Callable ``(x_hat, sigma) -> x0_hat``, differentiable; for a general SDE its score
            ``(x, t)``.
        x: State of the process at the lowest noise level, ``(B, *event)``, float32 or float64.
        divergence: ``"exact"``, by ``d`` backward passes in each evaluation; ``"hutchinson"``,
            ``"gaussian"`` or ``"hutch++"``, by 12; or an estimator, as ``Hutchinson(probes=50)``.
        seed: Seed of the probes, or one seed per sample.
        prior: Law of the latents. For an affine process it is left out, and pure noise
            ``N(0, s² σ² I)``, or a law of the data with ``log_prob(x_hat, sigma)``, at the highest
            noise level; ``x_hat`` is ``(B, d)``. Pure noise ignores the data: for a mean ``m`` and a
            standard deviation ``σ_d`` it is off by the order of ``m/σ_max`` and ``(σ_d/σ_max)²`` nats
            per dimension in a sample, and by ``½ (m/σ_max)² + ¼ (σ_d/σ_max)⁴`` in the mean.
            ``sdekit.Gaussian(mean, cov)`` of the data takes that away to higher order. At ``σ = ∞``
            pure noise is exact, and always taken. For a general SDE it is a function
            ``x_T -> log_prob``, and has to be given.
        method: A name from `sdekit.methods` or a composed `Solver`, with an error estimate; by default
            ``"variable_adams"``, for a general SDE ``"dopri5_t"``.
        sigmas: Two noise levels, from data to noise, for affine processes.
        times: The same in the process's time.
        rtol: Relative tolerance, of the state and of the log-density per dimension.
        atol: Absolute tolerance; ``rtol`` if not given.
        sigma_data: Standard deviation of the data; see `sdekit.solve`.
        stepping: Who shares adaptive steps; see `sdekit.solve`.
        max_nfe: Budget of network evaluations per sample.
        progress: Whether to show a progress bar after two seconds.

    Returns:
        The `Likelihood`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of its range, the method does not fit, or the denoiser is
            not differentiable.
        SolveError: If a state becomes non-finite.
    """
    check_process(process)
    estimator = named_divergence(divergence)
    if stepping not in ("sample", "batch"):
        raise ValueError(f"stepping = {stepping!r}; it must be 'sample' or 'batch'")
    per_sample = stepping == "sample"
    problem = process.probability_flow(denoiser)
    sigmas, times = ends_of(process, denoiser, sigmas, times)
    solver, plain, grid, calls = set_up(
        problem,
        x,
        method=method,
        steps=None,
        sigmas=sigmas,
        times=times,
        adaptive=True,
        ending="stop",
        sigma_data=sigma_data,
    )
    if isinstance(solver.scheme, ExponentialRK):
        raise ValueError(
            "the error estimate of DPM-Solver's pairs does not see the divergence d/σ at high noise; "
            "take another method, such as 'variable_adams' or 'dopri5'"
        )
    check_start(plain, grid[::-1].copy(), stochastic=False)
    check_rows(denoiser, x, per_sample=per_sample)
    tolerances = Tolerances(*check_tolerances(rtol, atol, x.dtype))
    log_prior = _log_prior(process, prior, float(grid[1]))

    probes = estimator.prepare(x, seed)
    view: Augmented
    if isinstance(process, AffineSDE):
        view = AugmentedAffine(problem, solver.coordinates, x, probes)
    else:
        view = AugmentedGeneral(problem, x, probes)
    start, end = map(float, view.tau(grid))
    each = evaluations(problem.model)
    work = integrate_adaptive(
        march_of(solver.scheme, view, tolerances),
        view.join(view.entrance(grid[0], unscaled=False)(x)),
        start,
        end,
        per_sample=per_sample,
        max_nfe=(check_steps(max_nfe, "max_nfe") - calls) // each,
        progress=progress,
    )
    u, columns = view.split(work.u)
    # Where a sample has arrived its level is known, also if it is infinite.
    level = np.where(work.exhausted, view.level(work.tau), grid[1])
    latent = view.exit(level, unscaled=False)(u)
    change, standard_error = estimator.estimate(columns)
    # From the density of u to that of the state of the process, at both ends.
    change = change + view.dim * (view.log_scale(grid[1]) - view.log_scale(grid[0]))
    log_prob = log_prior(latent).to(x.dtype)
    if log_prob.shape != x.shape[:1]:
        raise ValueError(
            f"the prior returned shape {tuple(log_prob.shape)} for {len(x)} latents; it must be "
            f"({len(x)},)"
        )
    stopped = np.broadcast_to(work.exhausted, len(x))
    unknown = torch.as_tensor(stopped.copy(), device=x.device)
    nfe = np.broadcast_to(work.nfe * each + calls, len(x))
    outcome: dict[str, str] = {}
    if stopped.any():
        outcome = {
            "status": "max_nfe",
            "message": f"{stopped.sum()} of {len(x)} samples (the first is {stopped.argmax()}) used "
            f"up max_nfe = {max_nfe} evaluations before the end, and their log_prob is NaN; raise "
            "max_nfe or loosen rtol.",
        }
    return Likelihood(
        log_prob=(log_prob + change).masked_fill(unknown, math.nan),
        standard_error=standard_error.masked_fill(unknown, math.nan),
        latent=latent,
        nfe=int(nfe.max(initial=0)),
        stats=Stats(int(work.steps.max(initial=0)), nfe, int(work.rejected.sum())),
        **outcome,
    )


def _log_prior(
    process: ForwardSDE, prior: Density | Callable[[Tensor], Tensor] | None, level: float
) -> Callable[[Tensor], Tensor]:
    """Return the log-density of latents, ``(B, *event)`` to ``(B,)``."""
    if not isinstance(process, AffineSDE):
        if prior is None or not callable(prior):
            raise TypeError("a general SDE needs prior=, a function x_T -> log_prob, (B,) in nats")
        return prior
    if prior is not None and not isinstance(prior, Density):
        raise TypeError(
            f"prior is a {type(prior).__name__}; for an affine process it is a law with "
            "log_prob(x_hat, sigma), such as sdekit.Gaussian(mean, cov)"
        )
    t = process.on_host("time", level)
    scale, std = (float(process.on_host(name, t)) for name in ("scale", "std"))

    def log_prob(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        d = flat.shape[1]
        if prior is None or math.isinf(level):
            return -0.5 * ((flat / std).square().sum(1) + d * math.log(2 * math.pi * std**2))
        return prior.log_prob(flat / scale, level) - d * math.log(scale)

    return log_prob
