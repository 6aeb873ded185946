"""Denoisers from the networks of score_sde, EDM, k-diffusion and azula, as these packages hold them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..affine import AffineSDE
from ..processes import EDM, VE, VP, SubVP
from .levels import Sigma, Time
from .network import NetworkDenoiser, parameter_dtype

_Schedule: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]

__all__ = ["from_azula", "from_edm", "from_k_diffusion", "from_score_sde"]


def from_edm(network: nn.Module, *, sigma_data: float | None = None) -> NetworkDenoiser:
    """Adapt a preconditioned network of EDM: ``network(x, sigma, class_labels)`` returns ``D``.

    Its attributes ``sigma_min``, ``sigma_max`` and ``sigma_data`` are read. One that knows a table of
    levels only (``iDDPMPrecond``) rounds them by itself; take grids through its ``round_sigma``, or the
    error of solvers stops falling.

    Args:
        network: A module of Karras et al. (2022), or one that is called like it.
        sigma_data: Standard deviation of the data, if the network does not say it.

    Raises:
        TypeError: If it has no ``round_sigma``, which all of them have.
    """
    if not callable(getattr(network, "round_sigma", None)):
        raise TypeError(
            f"{type(network).__name__} has no round_sigma, which the preconditioned networks of EDM "
            "have; for another network take sdekit.NetworkDenoiser, which says what it predicts"
        )
    return _denoiser(network, sigma_data)


def from_k_diffusion(
    model: Callable[..., Tensor],
    *,
    sigma_data: float | None = None,
    dtype: torch.dtype | None = None,
    autocast: torch.dtype | None = None,
) -> NetworkDenoiser:
    """Adapt a wrapped model of k-diffusion: ``model(x, sigma, **extra_args)`` returns ``D``.

    A wrapper of a discrete model (``DiscreteEpsDDPMDenoiser`` and its kin) has its table in ``sigmas``,
    which gives the range; whether levels between these are rounded is its ``quantize``.

    Args:
        model: A wrapper, or any callable like it; ``sigma`` is of shape ``(B,)``.
        sigma_data: Standard deviation of the data, if the wrapper does not say it.
        dtype: Dtype of ``x`` and ``sigma``; of both float32 at least, if not given.
        autocast: A dtype to run it in under ``torch.autocast``. If neither is given that of the
            parameters of its ``inner_model``, where it is narrower than float32: the wrapper, which
            does not cast, then scales ``x`` in float32.
    """
    inner = parameter_dtype(getattr(model, "inner_model", None))
    if dtype is None and autocast is None and inner in (torch.float16, torch.bfloat16):
        autocast = inner
    return _denoiser(model, sigma_data, dtype=dtype, autocast=autocast)


def _denoiser(
    network: Callable[..., Tensor],
    sigma_data: float | None,
    *,
    dtype: torch.dtype | None = None,
    autocast: torch.dtype | None = None,
) -> NetworkDenoiser:
    """Adapt what returns the denoised state at ``(x̂, σ)``, and may say its range and scale."""
    table = getattr(network, "sigmas", None)
    if isinstance(table, Tensor) and table.numel() > 1:
        positive = table[table > 0]
        low, high = float(positive.min()), float(positive.max())
    else:
        low = float(getattr(network, "sigma_min", 0.0))
        high = float(getattr(network, "sigma_max", math.inf))
    if math.isinf(high) and torch.float16 in (dtype, autocast):
        high = 1e4  # six standard deviations of the noise are just below the largest number
    if sigma_data is None:
        known = getattr(network, "sigma_data", None)
        sigma_data = None if known is None else float(known)
    return NetworkDenoiser(
        network,
        EDM(),
        predicts="data",
        level=Sigma(),
        sigma_data=sigma_data,
        sigma_min=low,
        sigma_max=high,
        dtype=dtype or _at_least_single(network),
        autocast=autocast,
        label_dtype=dtype,
    )


def from_score_sde(network: Callable[..., Tensor], process: AffineSDE) -> NetworkDenoiser:
    """Adapt a raw network of score_sde, trained with continuous times.

    Song et al. (2021) call the network with the label ``999 t`` under VP and sub-VP, where its output
    is minus ``s σ`` times the score, that is the noise; and with the label ``σ(t)`` under VE, where it
    is the score. A finished ``score_fn(x, t)`` is a `NetworkDenoiser` with ``predicts="score"`` and
    ``level=levels.Time(process)``.

    Args:
        network: ``network(x, labels)``, such as NCSN++ or DDPM++.
        process: The `VP`, `SubVP` or `VE` that it was trained under.

    Raises:
        TypeError: If the process is another one.
    """
    if isinstance(process, VP | SubVP):
        # Networks are trained down to t = 1e-5, process.t_min is where sampling stops.
        least = float(process.on_host("sigma", min(1e-5, process.t_min)))
        return NetworkDenoiser(
            network, process, predicts="noise", level=Time(process, 999.0), sigma_min=least
        )
    if isinstance(process, VE):
        return NetworkDenoiser(network, process, predicts="score", level=Sigma())
    raise TypeError(
        f"process is a {type(process).__name__}; the networks of score_sde are trained under VP, "
        "SubVP or VE. For others take sdekit.NetworkDenoiser, which names what is predicted"
    )


class _PosteriorMean(nn.Module):
    """A denoiser of azula as a network that predicts the data."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, t: Tensor, **conditioning: object) -> Tensor:
        mean: Tensor = self.denoiser(x, t, **conditioning).mean
        return mean


def from_azula(denoiser: nn.Module, *, sigma_data: float | None = None) -> NetworkDenoiser:
    """Adapt a denoiser of azula: ``denoiser(x_t, t)`` returns a posterior, whose mean is ``D``.

    Its schedule, ``x_t = α_t x0 + σ_t ε`` for ``t`` from 0 to 1, is read as an affine process.

    Args:
        denoiser: An ``azula.denoise.Denoiser`` with a schedule.
        sigma_data: Standard deviation of the data.

    Raises:
        TypeError: If it has no schedule, or is azula's ``GaussianDenoiser``.
        ValueError: If ``σ_t/α_t`` does not increase.
    """
    schedule = getattr(denoiser, "schedule", None)
    if not callable(schedule):
        raise TypeError(
            f"{type(denoiser).__name__} has no schedule, which the denoisers of azula have; for a "
            "network of another kind take sdekit.NetworkDenoiser, which names what it predicts"
        )
    if type(denoiser).__name__ == "GaussianDenoiser":
        raise TypeError(
            "azula's GaussianDenoiser takes one time for a whole batch; sdekit.Gaussian(mean, cov) is "
            "the same denoiser, for any levels"
        )

    process = AffineSDE(
        scale=partial(_signal, schedule), sigma=partial(_noise_level, schedule), T=1.0, t_min=0.0
    )
    return NetworkDenoiser(
        _PosteriorMean(denoiser),
        process,
        predicts="data",
        level=Time(process),
        sigma_data=sigma_data,
        dtype=_at_least_single(denoiser),
    )


def _signal(schedule: _Schedule, t: Tensor) -> Tensor:
    return schedule(t)[0]


def _noise_level(schedule: _Schedule, t: Tensor) -> Tensor:
    alpha, std = schedule(t)
    return std / alpha


def _at_least_single(network: object) -> torch.dtype | None:
    """Return the dtype of the input of what scales it by itself, before narrowing it."""
    own = parameter_dtype(network)
    return None if own is None else torch.promote_types(own, torch.float32)
