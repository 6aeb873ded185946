"""Peers from diffusers: its schedulers, fed noise levels in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...grids import uniform_t
from ...processes import VP, CosineVP
from ...sde import Model
from ..problems import SIGMA_MAX, SIGMA_MIN
from .peer import Array, Grid, Peer


def _scheduler(name: str, n_steps: int, **config: Any) -> Any:  # noqa: ANN401 (untyped package)
    """Build a scheduler and have it set up a run of so many steps; sigmas are assigned later."""
    from diffusers import schedulers
    from diffusers.utils import logging

    # Single-step solvers of an uneven number of steps say that they lower the last orders, and some
    # schedulers make others of their own settings.
    for source in ("schedulers.scheduling_dpmsolver_singlestep", "configuration_utils"):
        logging.get_logger(f"diffusers.{source}").setLevel(logging.ERROR)
    scheduler = getattr(schedulers, name)(**config)
    scheduler.set_timesteps(n_steps)
    return scheduler


class _KeepsDtype(Tensor):
    """A state whose ``to`` does nothing, for schedulers that cast every state to float32."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        return self


def _step_down(
    scheduler: Any,  # noqa: ANN401
    x: Tensor,
    levels: Tensor,
    predict: Callable[[Tensor, Tensor], Tensor],
    **options: Any,  # noqa: ANN401
) -> Tensor:
    """Run a scheduler's loop.

    Args:
        scheduler: The scheduler, its sigmas set.
        x: State in the scheduler's scaling.
        levels: Noise level of each call of the network.
        predict: Callable ``(x, sigma)`` that gives the scheduler its kind of prediction.
        **options: Passed to each step.
    """
    # The steps find their place by counting. The times are only looked at for their number, and,
    # by some, for not being integers.
    scheduler.timesteps = torch.arange(len(levels), 0, -1, dtype=torch.float64)
    scheduler.set_begin_index(0)
    for t, sigma in zip(scheduler.timesteps, levels, strict=True):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)  # some insist; the denoiser has its own scaling
        prediction = predict(x, sigma)
        state = x.as_subclass(_KeepsDtype)
        x = scheduler.step(prediction, t, state, return_dict=False, **options)[0]
        x = x.as_subclass(Tensor)
    return x


def _diffusers_vp(
    denoiser: Model,
    x_hat: Tensor,
    grid: Grid,
    n_steps: int,
    *,
    scheduler: str,
    **config: Any,  # noqa: ANN401
) -> Tensor:
    """Solve by a scheduler in the scaling of VP, ``x = x̂ / sqrt(1 + σ²)``, on any ``sigmas``."""
    sigmas = _diffusers_sigmas(grid, n_steps)
    options: dict[str, Any] = {}
    if scheduler == "SASolverScheduler" and "tau_func" not in config:
        config["tau_func"] = lambda t: 0  # the ODE; it draws its noise all the same
        options["generator"] = torch.Generator(x_hat.device)
    run = _scheduler(scheduler, n_steps, prediction_type="sample", **config)
    run.sigmas = sigmas
    scale = (1 + sigmas**2).rsqrt()
    x = _step_down(
        run,
        x_hat * scale[0],
        sigmas[:-1],
        lambda x, sigma: denoiser(x * (1 + sigma**2).sqrt(), sigma),
        **options,
    )
    return x / scale[-1]


def _diffusers_ve(
    denoiser: Model,
    x_hat: Tensor,
    grid: Grid,
    n_steps: int,
    *,
    scheduler: str,
    order: int | None = None,
) -> Tensor:
    """Solve by a scheduler in `x̂`, of one evaluation per step."""
    sigmas = _diffusers_sigmas(grid, n_steps)
    run = _scheduler(scheduler, n_steps, prediction_type="sample")
    run.sigmas = sigmas
    options = {} if order is None else {"order": order}
    return _step_down(run, x_hat, sigmas[:-1], denoiser, **options)


def _diffusers_heun(denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int) -> Tensor:
    sigmas = _diffusers_sigmas(grid, n_steps)
    run = _scheduler("HeunDiscreteScheduler", n_steps, prediction_type="sample")
    # Each call's own level, then the end. Diffusers' last step is Euler's, to σ = 0; this one
    # ends above, and is as the others.
    run.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    levels = torch.stack([sigmas[:-1], sigmas[1:]], dim=1).flatten()
    return _step_down(run, x_hat, levels, denoiser)


def _diffusers_flow_heun(denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int) -> Tensor:
    """Heun in the scaling of flow matching, ``x = x̂ / (1 + σ)``, of the velocity."""
    sigmas = _diffusers_sigmas(grid, n_steps)
    run = _scheduler("FlowMatchHeunDiscreteScheduler", n_steps)
    flow = sigmas / (1 + sigmas)
    run.sigmas = torch.cat([flow[:1], flow[1:-1].repeat_interleave(2), flow[-1:]])
    levels = torch.stack([sigmas[:-1], sigmas[1:]], dim=1).flatten()

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        x_hat = x * (1 + sigma)
        d = denoiser(x_hat, sigma)
        return (x_hat - d) / sigma - d

    return _step_down(run, x_hat / (1 + sigmas[0]), levels, velocity) * (1 + sigmas[-1])


def _diffusers_kdpm2(denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int) -> Tensor:
    sigmas = _diffusers_sigmas(grid, n_steps)
    run = _scheduler("KDPM2DiscreteScheduler", n_steps, prediction_type="epsilon")
    between = (sigmas[1:] * sigmas[:-1]).sqrt()
    run.sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)])
    run.sigmas_interpol = torch.cat([between[:1], between.repeat_interleave(2)])
    levels = torch.stack([sigmas[:-1], between], dim=1).flatten()
    return _step_down(run, x_hat, levels, lambda x, sigma: (x - denoiser(x, sigma)) / sigma)


def _diffusers_ddim(
    denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int, *, eta: float = 0.0
) -> Tensor:
    """DDIM, whose levels are those of its training timesteps: one is trained for each."""
    sigmas = _diffusers_sigmas(grid, n_steps)
    run = _scheduler(
        "DDIMScheduler",
        n_steps,
        num_train_timesteps=n_steps,
        prediction_type="sample",
        clip_sample=False,
    )
    run.alphas_cumprod = 1 / (1 + sigmas.flip(0) ** 2)
    scale = (1 + sigmas**2).rsqrt()
    x = x_hat * scale[0]
    for n in range(n_steps):
        d = denoiser(x / scale[n], sigmas[n])
        x = run.step(d, n_steps - n, x, eta=eta, return_dict=False)[0]
    return x / scale[-1]


def _diffusers_ipndm(denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int) -> Tensor:
    sigmas = _diffusers_sigmas(grid, n_steps)
    run = _scheduler("IPNDMScheduler", n_steps)
    scale = (1 + sigmas**2).rsqrt()
    run.alphas, run.betas = scale, sigmas * scale  # signal and noise

    def v_prediction(x: Tensor, sigma: Tensor) -> Tensor:
        alpha = (1 + sigma**2).rsqrt()
        d = denoiser(x / alpha, sigma)
        return (x / alpha - d) / sigma * alpha - sigma * alpha * d

    return _step_down(run, x_hat * scale[0], sigmas[:-1], v_prediction) / scale[-1]


def _diffusers_sigmas(grid: Grid, n_steps: int) -> Tensor:
    """Return the levels of a grid that diffusers ships, or of an explicit one."""
    if isinstance(grid, str):
        grid = DIFFUSERS_GRIDS[grid](n_steps)
    return torch.from_numpy(np.array(grid, dtype=np.float64))


def _converted(kind: str, n: int) -> Array:
    """Return diffusers' own grid of so many steps: one of its schedulers' converters."""
    convert = getattr(_scheduler("UniPCMultistepScheduler", 1), f"_convert_to_{kind}")
    return _ends(convert(np.array([SIGMA_MAX, SIGMA_MIN]), num_inference_steps=n + 1))


def _flow(n: int, *, shift: float) -> Array:
    """Grid of flow matching: uniform in ``s``, with ``σ / (1 + σ)`` the shifted ``s``."""
    s_max, s_min = (sigma / (sigma + shift) for sigma in (SIGMA_MAX, SIGMA_MIN))
    s = np.linspace(s_max, s_min, n + 1)
    return _ends(shift * s / (1 - s))


def _align_your_steps(n: int) -> Array:
    """Table of "Align your steps" for Stable Video Diffusion, the widest of diffusers'.

    Resampled linearly in ``log σ``, as its authors do, and stretched there to our range.
    """
    from diffusers.schedulers import AysSchedules

    table = np.log(AysSchedules["StableDiffusionVideoSigmas"][:-1])
    log_sigma = np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, len(table)), table)
    part = (log_sigma - table[-1]) / (table[0] - table[-1])
    return _ends(np.exp(math.log(SIGMA_MIN) + part * math.log(SIGMA_MAX / SIGMA_MIN)))


def _ends(sigmas: Array) -> Array:
    sigmas = np.asarray(sigmas, dtype=np.float64)
    sigmas[0], sigmas[-1] = SIGMA_MAX, SIGMA_MIN
    return sigmas


# All its grids, whether or not they suit: ``use_…_sigmas`` of the schedulers, and timesteps that are
# uniform ("linspace") in the training schedules, which here are taken in continuous time, as the
# discrete ones do not reach down to `SIGMA_MIN`. ``use_lu_lambdas`` is the exponential grid.
DIFFUSERS_GRIDS: dict[str, Callable[[int], Array]] = {
    "karras": partial(_converted, "karras"),
    "exponential": partial(_converted, "exponential"),
    "beta": partial(_converted, "beta"),
    "linear": lambda n: uniform_t(n, SIGMA_MAX, SIGMA_MIN, VP()),
    "squaredcos_cap_v2": lambda n: uniform_t(n, SIGMA_MAX, SIGMA_MIN, CosineVP()),
    "flow": partial(_flow, shift=1.0),
    "flow_shift_3": partial(_flow, shift=3.0),
    "align_your_steps": _align_your_steps,
}


def diffusers_peers() -> Iterator[Peer]:
    """Schedulers of diffusers, in every setting that solves the flow, on all grids it ships."""
    peer = partial(Peer, package="diffusers", nfe_per_step=1, grids=tuple(DIFFUSERS_GRIDS))
    yield peer("diffusers DDIM", integrate=_diffusers_ddim)
    yield peer(
        "diffusers EulerDiscrete",
        integrate=partial(_diffusers_ve, scheduler="EulerDiscreteScheduler"),
    )
    yield peer("diffusers HeunDiscrete", nfe_per_step=2, integrate=_diffusers_heun)
    yield peer("diffusers KDPM2Discrete", nfe_per_step=2, integrate=_diffusers_kdpm2)
    yield peer("diffusers FlowMatchHeunDiscrete", nfe_per_step=2, integrate=_diffusers_flow_heun)
    yield peer("diffusers IPNDM", integrate=_diffusers_ipndm)
    for order in (1, 2, 3, 4):
        integrate = partial(_diffusers_ve, scheduler="LMSDiscreteScheduler", order=order)
        yield peer(f"diffusers LMSDiscrete {order}", integrate=integrate)
    for name, scheduler, config in _diffusers_vp_configs():
        integrate = partial(_diffusers_vp, scheduler=scheduler, **config)
        yield peer(f"diffusers {name}", integrate=integrate)


def _diffusers_vp_configs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, class and settings of the schedulers in the scaling of VP."""
    # What each does at the end: orders fall to 1 (the default; of some only below 15 steps), or not.
    ends = {"": True, " full order": False}
    for algorithm, (end, lower) in product(("dpmsolver++", "dpmsolver"), ends.items()):
        for name, order, kind in (
            ("2M", 2, "midpoint"),
            ("2M heun", 2, "heun"),
            ("3M", 3, "midpoint"),
        ):
            yield (
                f"DPMSolverMultistep {algorithm} {name}{end}",
                "DPMSolverMultistepScheduler",
                {
                    "algorithm_type": algorithm,
                    "solver_order": order,
                    "solver_type": kind,
                    "lower_order_final": lower,
                    "final_sigmas_type": "sigma_min",
                },
            )
    for algorithm, order, kind in product(
        ("dpmsolver++", "dpmsolver"), (2, 3), ("midpoint", "heun")
    ):
        yield (
            f"DPMSolverSinglestep {algorithm} {order}S {kind}",
            "DPMSolverSinglestepScheduler",
            {
                "algorithm_type": algorithm,
                "solver_order": order,
                "solver_type": kind,
                "final_sigmas_type": "sigma_min",
            },
        )
    for kind, order, data, (end, lower) in product(
        ("bh1", "bh2"), (1, 2, 3), (True, False), ends.items()
    ):
        if order == 1 and not lower:
            continue
        yield (
            f"UniPCMultistep {kind} {order} {'data' if data else 'noise'}{end}",
            "UniPCMultistepScheduler",
            {
                "solver_type": kind,
                "solver_order": order,
                "predict_x0": data,
                "lower_order_final": lower,
            },
        )
    for order, (end, lower) in product((1, 2, 3), ends.items()):
        if order == 1 and not lower:
            continue
        yield (
            f"DEISMultistep {order}{end}",
            "DEISMultistepScheduler",
            {"solver_order": order, "lower_order_final": lower},
        )
    for (predictor, corrector), kind, (end, lower) in product(
        ((2, 2), (3, 4)), ("data", "noise"), ends.items()
    ):
        yield (
            f"SASolver P{predictor}C{corrector} {kind}{end}",
            "SASolverScheduler",
            {
                "predictor_order": predictor,
                "corrector_order": corrector,
                "algorithm_type": f"{kind}_prediction",
                "lower_order_final": lower,
            },
        )
