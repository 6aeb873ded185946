"""Peers that add noise: schedulers of diffusers, samplers of azula, and torchsde on the reverse SDE.

Their noise is torch's global one, to be seeded from outside. Of diffusers' schedulers those are left
out that repeat the formulas of one that is here (``EDMDPMSolverMultistep``, ``DDPMParallel``,
``CosineDPMSolverMultistep``, ``CogVideoXDPM``, ``UnCLIP``), those for distilled networks (``LCM``,
``TCD``, ``CMStochasticIterative``), whose limit is another law, and ``ScoreSdeVe``: sdekit's ``pc``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, product, repeat
from typing import Any

import numpy as np
import torch
import torchsde
from torch import Tensor

from ...affine import AffineSDE
from ...grids import karras, log
from ...processes import EDM, VP
from ...sde import Model, TimeReversedSDE
from ..problems import SIGMA_MAX, SIGMA_MIN
from .of_azula import AZULA_GRIDS, _azula
from .of_diffusers import (
    DIFFUSERS_GRIDS,
    _diffusers_ddim,
    _diffusers_sigmas,
    _diffusers_vp,
    _scheduler,
    _step_down,
)
from .peer import Grid, Peer

# Noise added per step by the schedulers that churn, as the factor by which σ is raised.
_CHURNS = (0.1, math.sqrt(2) - 1)


def _epsilon(denoiser: Model, x: Tensor, sigma: Tensor) -> Tensor:
    """Noise prediction in the unscaled state."""
    return (x - denoiser(x, sigma)) / sigma


def _velocity(denoiser: Model, x: Tensor, sigma: Tensor) -> Tensor:
    """Velocity of flow matching, at ``x = x̂ / (1 + σ)``."""
    x_hat = x * (1 + sigma)
    d = denoiser(x_hat, sigma)
    return (x_hat - d) / sigma - d


def _ancestral(denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int) -> Tensor:
    sigmas = _diffusers_sigmas(grid, n_steps)
    run = _scheduler("EulerAncestralDiscreteScheduler", n_steps)
    run.sigmas = sigmas
    return _step_down(run, x_hat, sigmas[:-1], partial(_epsilon, denoiser))


def _kdpm2_ancestral(denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int) -> Tensor:
    sigmas = _diffusers_sigmas(grid, n_steps)
    run = _scheduler("KDPM2AncestralDiscreteScheduler", n_steps)
    high, low = sigmas[:-1], sigmas[1:]
    up = low * (1 - (low / high) ** 2).sqrt()
    down = low**2 / high
    between = (high * down).sqrt()
    for name, values in (
        ("sigmas", sigmas),
        ("sigmas_up", up),
        ("sigmas_down", down),
        ("sigmas_interpol", between),
    ):
        setattr(run, name, torch.cat([values[:1], values[1:].repeat_interleave(2)]))
    levels = torch.stack([high, between], dim=1).flatten()
    return _step_down(run, x_hat, levels, partial(_epsilon, denoiser))


def _dpmpp_sde(denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int) -> Tensor:
    sigmas = _diffusers_sigmas(grid, n_steps)
    run = _scheduler("DPMSolverSDEScheduler", n_steps)
    run.noise_sampler_seed = int(torch.randint(2**31, ()))
    run.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    between = (sigmas[1:] * sigmas[:-1]).sqrt()
    levels = torch.stack([sigmas[:-1], between], dim=1).flatten()
    return _step_down(run, x_hat, levels, partial(_epsilon, denoiser))


def _euler_churn(
    denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int, *, churn: float
) -> Tensor:
    """Euler with churn: diffusers evaluates before the noise is raised, and keeps the data found."""
    sigmas = _diffusers_sigmas(grid, n_steps)
    run = _scheduler("EulerDiscreteScheduler", n_steps, prediction_type="sample")
    run.sigmas = sigmas
    return _step_down(run, x_hat, sigmas[:-1], denoiser, s_churn=churn * n_steps)


def _edm_churn(denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int, *, churn: float) -> Tensor:
    """The same, but what the network says is unpacked at the raised level."""
    sigmas = _diffusers_sigmas(grid, n_steps)
    sigma_data: float = denoiser.sigma_data  # type: ignore[attr-defined]  # of every law
    run = _scheduler("EDMEulerScheduler", n_steps, sigma_data=sigma_data)
    run.sigmas = sigmas

    def raw(x: Tensor, sigma: Tensor) -> Tensor:
        total = sigma**2 + sigma_data**2
        skip, out = sigma_data**2 / total, sigma * sigma_data / total.sqrt()
        return (denoiser(x, sigma) - skip * x) / out

    return _step_down(run, x_hat, sigmas[:-1], raw, s_churn=churn * n_steps)


def _ddpm(denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int, *, variance: str) -> Tensor:
    """DDPM, whose levels are those of its training timesteps: one is trained for each."""
    sigmas = _diffusers_sigmas(grid, n_steps)
    run = _scheduler(
        "DDPMScheduler",
        n_steps,
        num_train_timesteps=n_steps,
        prediction_type="sample",
        variance_type=variance,
        clip_sample=False,
    )
    run.alphas_cumprod = 1 / (1 + sigmas.flip(0) ** 2)
    run.num_inference_steps = None  # the timestep before is then the one below
    scale = (1 + sigmas**2).rsqrt()
    x = x_hat * scale[0]
    for n in range(n_steps):
        d = denoiser(x / scale[n], sigmas[n])
        x = run.step(d, n_steps - n, x, return_dict=False)[0]
    return x / scale[-1]


def _sa_solver(
    denoiser: Model,
    x_hat: Tensor,
    grid: Grid,
    n_steps: int,
    *,
    tau: Callable[[float], float],
    **config: Any,  # noqa: ANN401 (untyped package)
) -> Tensor:
    """SA-Solver, with a stochasticity that is a function of the noise level."""
    levels = _diffusers_sigmas(grid, n_steps).tolist()

    def tau_func(t: Tensor) -> float:  # timesteps count down to 1
        return tau(levels[n_steps - int(t)])

    kept: dict[str, Any] = {"scheduler": "SASolverScheduler", "tau_func": tau_func, **config}
    return _diffusers_vp(denoiser, x_hat, grid, n_steps, **kept)


def _window(sigma: float) -> float:
    """SA-Solver's default, ``200 <= t <= 800`` of 1000 in a linear VP schedule, as noise levels."""
    low, high = VP().on_host("sigma", np.array([0.2, 0.8]))
    return float(low <= sigma <= high)


def _half(sigma: float) -> float:
    return 0.5


def _one(sigma: float) -> float:
    return 1.0


def _flow_noise(
    denoiser: Model,
    x_hat: Tensor,
    grid: Grid,
    n_steps: int,
    *,
    scheduler: str,
    **config: Any,  # noqa: ANN401
) -> Tensor:
    """Schedulers in the scaling of flow matching, ``x = x̂ / (1 + σ)``."""
    sigmas = _diffusers_sigmas(grid, n_steps)
    run = _scheduler(scheduler, n_steps, **config)
    run.sigmas = (sigmas / (1 + sigmas)).to(x_hat.dtype)  # one of them computes in its dtype
    x = _step_down(run, x_hat / (1 + sigmas[0]), sigmas[:-1], partial(_velocity, denoiser))
    return x * (1 + sigmas[-1])


class _Unchecked:
    """An SDE for one call of torchsde, whose first look at the drift is for its shape only."""

    def __init__(self, sde: TimeReversedSDE) -> None:
        self.g, self.noise_type, self.sde_type = sde.g, sde.noise_type, sde.sde_type
        self._drifts = chain([lambda r, x: x], repeat(sde.f))

    def f(self, r: Tensor, x: Tensor) -> Tensor:
        """Drift."""
        drift: Tensor = next(self._drifts)(r, x)
        return drift


_TORCHSDE_GRIDS = ("karras", "log", "uniform time")


def _torchsde(
    denoiser: Model,
    x_hat: Tensor,
    grid: Grid,
    n_steps: int,
    *,
    process: AffineSDE,
    method: str,
    eta: float,
) -> Tensor:
    """Solve the reverse SDE by torchsde, whose steps are of one length: a call of it for each step."""
    first, last = (SIGMA_MAX, SIGMA_MIN) if isinstance(grid, str) else (grid[0], grid[-1])
    ends = process.on_host("time", np.array([first, last]))
    if isinstance(grid, str) and grid == "uniform time":
        times = np.linspace(ends[0], ends[1], n_steps + 1)
    elif isinstance(grid, str):
        choose = karras if grid == "karras" else log
        times = process.on_host("time", choose(n_steps, SIGMA_MAX, SIGMA_MIN))
    else:
        times = process.on_host("time", grid)
    reverse = process.reverse(denoiser, eta)
    # Told so, its scheme for additive noise takes 3 evaluations a step; that for diagonal noise 10.
    reverse.noise_type = "additive"
    sde = reverse.time_reversed()
    scale = process.on_host("scale", ends)
    x = x_hat * float(scale[0])
    for begin, end in zip(sde.T - times[:-1], sde.T - times[1:], strict=True):
        ts = torch.tensor([begin, end], dtype=x.dtype)
        path = torchsde.BrownianInterval(
            *ts,
            size=x.shape,
            dtype=x.dtype,
            entropy=int(torch.randint(2**31, ())),  # else it is NumPy's that seeds it
            levy_area_approximation="space-time",
        )
        dt = 2 * float(end - begin)
        x = torchsde.sdeint(_Unchecked(sde), x, ts, bm=path, method=method, dt=dt)[-1]
    return x / float(scale[1])


def sde_peers() -> Iterator[Peer]:
    """Samplers with noise, in every setting, on all grids that their packages ship."""
    yield from _diffusers_peers()
    peer = partial(Peer, package="azula", nfe_per_step=1, grids=AZULA_GRIDS, eta=1.0)
    yield peer("azula DDPM", integrate=partial(_azula, sampler="DDPMSampler"))
    integrate = partial(_azula, sampler="DDIMSampler", eta=0.5)
    yield peer("azula DDIM 0.5", integrate=integrate, eta=0.5)
    for eta in (0.5, 1.0):
        integrate = partial(_azula, sampler="ItoSampler", eta=eta)
        yield peer(f"azula Ito {eta:g}", integrate=integrate, eta=eta)
    for delta in (0.01, 0.1):
        integrate = partial(_azula, sampler="PCSampler", delta=delta)
        yield peer(f"azula PC {delta:g}", nfe_per_step=2, integrate=integrate, eta=None)
    for process, (method, calls), eta in product(
        (EDM(SIGMA_MIN, SIGMA_MAX), VP()), (("euler", 1), ("srk", 3)), (0.5, 1.0)
    ):
        yield Peer(
            name=f"torchsde {method} {type(process).__name__} {eta:g}",
            package="torchsde",
            nfe_per_step=calls,
            grids=_TORCHSDE_GRIDS,
            integrate=partial(_torchsde, process=process, method=method, eta=eta),
            eta=eta,
        )


def _diffusers_peers() -> Iterator[Peer]:
    grids = tuple(DIFFUSERS_GRIDS)
    peer = partial(Peer, package="diffusers", nfe_per_step=1, grids=grids, eta=1.0)
    for name, scheduler, config in _dpm_configs():
        integrate = partial(_diffusers_vp, scheduler=scheduler, **config)
        yield peer(f"diffusers {name}", integrate=integrate)
    taus = ((0.5, "0.5", _half), (1.0, "1", _one), (None, "window", _window))
    for (p, c), kind, (eta, tau, level) in product(((2, 2), (3, 4)), ("data", "noise"), taus):
        integrate = partial(
            _sa_solver,
            tau=level,
            predictor_order=p,
            corrector_order=c,
            algorithm_type=f"{kind}_prediction",
        )
        name = f"diffusers SASolver P{p}C{c} {kind} τ {tau}"
        yield peer(name, integrate=integrate, eta=eta)
    for eta in (0.5, 1.0):
        yield peer(f"diffusers DDIM {eta:g}", integrate=partial(_diffusers_ddim, eta=eta), eta=eta)
        rf = partial(_flow_noise, scheduler="LTXEulerAncestralRFScheduler", eta=eta)
        yield peer(f"diffusers LTXEulerAncestralRF {eta:g}", integrate=rf, eta=eta)
    for variance in ("fixed_small", "fixed_large"):
        yield peer(f"diffusers DDPM {variance}", integrate=partial(_ddpm, variance=variance))
    for churn in _CHURNS:
        for name, churned in (("Euler", _euler_churn), ("EDMEuler", _edm_churn)):
            integrate = partial(churned, churn=churn)
            yield peer(f"diffusers {name} churn {churn:.2g}", integrate=integrate, eta=None)
    integrate = partial(
        _flow_noise, scheduler="FlowMatchEulerDiscreteScheduler", stochastic_sampling=True
    )
    yield peer("diffusers FlowMatchEuler stochastic", integrate=integrate, eta=None)
    yield peer("diffusers EulerAncestral", integrate=_ancestral)
    yield peer("diffusers KDPM2Ancestral", nfe_per_step=2, integrate=_kdpm2_ancestral)
    yield peer("diffusers DPMSolverSDE", nfe_per_step=2, integrate=_dpmpp_sde)


def _dpm_configs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, class and settings of the DPM-Solvers with noise."""
    # What each does at the end: orders fall to 1 below 15 steps (the default), or not.
    for name, order, kind in (
        ("1", 1, "midpoint"),
        ("2M", 2, "midpoint"),
        ("2M heun", 2, "heun"),
        ("3M", 3, "midpoint"),
    ):
        for end, lower in {"": True, " full order": False}.items():
            if order == 1 and not lower:
                continue
            for algorithm in ("++", "") if order < 3 else ("++",):
                yield (
                    f"DPMSolverMultistep sde{algorithm} {name}{end}",
                    "DPMSolverMultistepScheduler",
                    {
                        "algorithm_type": f"sde-dpmsolver{algorithm}",
                        "solver_order": order,
                        "solver_type": kind,
                        "lower_order_final": lower,
                        "final_sigmas_type": "sigma_min",
                    },
                )
    for order, kind in product((2, 3), ("midpoint", "heun")):
        yield (
            f"DPMSolverSinglestep sde++ {order}S {kind}",
            "DPMSolverSinglestepScheduler",
            {
                "algorithm_type": "sde-dpmsolver++",
                "solver_order": order,
                "solver_type": kind,
                "final_sigmas_type": "sigma_min",
            },
        )
