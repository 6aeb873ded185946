"""Peers from azula: its samplers, in the time of its schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...sde import Model
from ..problems import SIGMA_MAX, SIGMA_MIN
from .peer import Array, Grid, Peer

# A schedule of azula: t from 1 to 0 -> signal and noise scales.
Schedule: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


@cache
def _azula_schedules() -> dict[str, Schedule]:
    """Azula's schedules, with the parameters that make ``t = 1 … 0`` our range."""
    from azula import noise

    # All others have α(0) = 1 and so σ(0) = SIGMA_MIN; at t = 1, these two have α² + σ² = 1 +
    # SIGMA_MIN², and the last two have σ = 1.
    vp = {"alpha_min": ((1 + SIGMA_MIN**2) / (1 + SIGMA_MAX**2)) ** 0.5, "sigma_min": SIGMA_MIN}
    flow = {"alpha_min": 1 / SIGMA_MAX, "sigma_min": SIGMA_MIN}
    return {
        "VE": noise.VESchedule(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX),
        "VP": noise.VPSchedule(**vp),
        "cosine": noise.CosineSchedule(**vp),
        "rectified": noise.RectifiedSchedule(**flow),
        "decay": noise.DecaySchedule(**flow),
    }


AZULA_GRIDS = ("VE", "VP", "cosine", "rectified", "decay")


class _Levels:
    """An explicit grid as a schedule of azula: ``α = 1``, and ``σ`` by the number of the step."""

    def __init__(self, sigmas: Array) -> None:
        self.sigmas = torch.from_numpy(np.array(sigmas, dtype=np.float64))

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        index = ((1 - t) * (len(self.sigmas) - 1)).round().long()
        return torch.ones_like(t), self.sigmas[index]


class _AzulaDenoiser:
    """A denoiser as azula's samplers call it."""

    def __init__(self, denoiser: Model, schedule: Schedule) -> None:
        self.denoiser = denoiser
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Tensor) -> Any:  # noqa: ANN401
        from azula.denoise import DiracPosterior

        alpha, sigma = self.schedule(t)
        return DiracPosterior(self.denoiser(x / alpha, sigma / alpha))


def _azula(
    denoiser: Model,
    x_hat: Tensor,
    grid: Grid,
    n_steps: int,
    *,
    sampler: str,
    **options: Any,  # noqa: ANN401
) -> Tensor:
    """Solve by a sampler of azula, in the time and scaling of the schedule."""
    from azula import sample

    schedule = _azula_schedules()[grid] if isinstance(grid, str) else _Levels(grid)
    run = getattr(sample, sampler)(
        _AzulaDenoiser(denoiser, schedule),
        start=1.0,
        stop=0.0,
        steps=n_steps,
        silent=True,
        dtype=torch.float64,
        **options,
    )
    alpha, _ = schedule(torch.tensor([1.0, 0.0], dtype=torch.float64))
    x: Tensor = run(x_hat * alpha[0])
    return x / alpha[1]


def azula_peers() -> Iterator[Peer]:
    """Samplers of azula, at every order, on the grids of its schedules."""
    peer = partial(Peer, package="azula", nfe_per_step=1, grids=AZULA_GRIDS)
    for name in ("DDIM", "Euler"):
        yield peer(f"azula {name}", integrate=partial(_azula, sampler=f"{name}Sampler"))
    yield peer("azula Heun", nfe_per_step=2, integrate=partial(_azula, sampler="HeunSampler"))
    for name, order in product(("zAB", "vAB", "zEAB", "xEAB", "REAB"), (1, 2, 3, 4)):
        integrate = partial(_azula, sampler=f"{name}Sampler", order=order)
        yield peer(f"azula {name} {order}", integrate=integrate)
