"""The peers: the samplers of diffusers and azula, run by their own code on the same problems.

Each integrates the probability flow in the unscaled state `x̂` down a grid of noise levels, by the
package's own classes, and its network evaluations are counted where they happen. The packages are
extras of the benchmark; nothing else in sdekit imports them.

How they are made to solve exactly this problem, and nothing else:

- The grid runs from `SIGMA_MAX` to `SIGMA_MIN` and ends there: no denoising step is added, and
  none of the repeated last levels, of zero length, that diffusers appends. Its schedulers build
  their ``sigmas`` in float32 from a training schedule; here they are assigned in float64.
- The network is evaluated at the noise level itself, never at a rounded training timestep.
- Where diffusers casts the state to float32 whatever its dtype, the cast is kept from happening.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..grids import uniform_t
from ..processes import VP, CosineVP
from ..sde import Model
from .problems import SIGMA_MAX, SIGMA_MIN

Array = NDArray[np.float64]
Grid: TypeAlias = "str | Array"


class Integrator(Protocol):
    """How a peer solves: its class and settings, bound."""

    def __call__(self, denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int) -> Tensor:
        """Return the final `x̂`."""
        ...


@dataclass(frozen=True)
class Peer:
    """A sampler of another package.

    Attributes:
        name: Package, class and settings.
        package: Name of the package, as it is imported.
        nfe_per_step: Network evaluations per step. The single-step solvers of diffusers have 1:
            the stages of a step are evaluated at the points of the grid.
        grids: The grids that the package ships for it, by name.
        integrate: Solves, uncounted.
    """

    name: str
    package: str
    nfe_per_step: int
    grids: tuple[str, ...]
    integrate: Integrator

    def run(self, denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int) -> tuple[Tensor, int]:
        """Solve, counting every call of the network.

        Args:
            denoiser: Callable ``(x_hat, sigma) -> x0_hat``.
            x_hat: State `x̂` at the grid's first level, ``(B, *event)``.
            grid: One of `grids`, from `SIGMA_MAX` to `SIGMA_MIN`, or ``n_steps + 1`` decreasing
                positive noise levels.
            n_steps: Number of steps.

        Returns:
            The final `x̂` and the network evaluations.

        Raises:
            ValueError: If the grid is not shipped with the package, or not of ``n_steps`` steps.
            RuntimeError: If the network was not called ``nfe_per_step`` times a step.
        """
        if isinstance(grid, str):
            if grid not in self.grids:
                raise ValueError(
                    f"{self.package} ships no grid {grid!r} for {self.name}; it ships {self.grids}"
                )
        elif len(grid) != n_steps + 1:
            raise ValueError(f"n_steps = {n_steps}, but the grid has {len(grid)} noise levels")
        counter = _Counter(denoiser)
        with warnings.catch_warnings(), torch.no_grad():
            # Deprecations of the peers' own: of ``algorithm_type="dpmsolver"``, and of NumPy's
            # functions applied to tensors.
            warnings.simplefilter("ignore")
            x = self.integrate(counter, x_hat, grid, n_steps)
        if counter.calls != n_steps * self.nfe_per_step:
            raise RuntimeError(
                f"{self.name} called the network {counter.calls} times in {n_steps} steps of "
                f"{self.nfe_per_step} evaluations"
            )
        return x, counter.calls


class _Counter:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser: Model) -> None:
        self.denoiser = denoiser
        self.calls = 0

    def __call__(self, x_hat: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return self.denoiser(x_hat, sigma.to(x_hat.dtype))


# ---- diffusers -----------------------------------------------------------------------------------


def _scheduler(name: str, n_steps: int, **config: Any) -> Any:  # noqa: ANN401 (untyped package)
    """Build a scheduler and have it set up a run of so many steps; sigmas are assigned later."""
    from diffusers import schedulers
    from diffusers.utils import logging

    # Single-step solvers of an uneven number of steps say that they lower the last orders.
    logging.get_logger("diffusers.schedulers.scheduling_dpmsolver_singlestep").setLevel(
        logging.ERROR
    )
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
    if scheduler == "SASolverScheduler":
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


def _diffusers_ddim(denoiser: Model, x_hat: Tensor, grid: Grid, n_steps: int) -> Tensor:
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
        x = run.step(d, n_steps - n, x, return_dict=False)[0]
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


def _diffusers_peers() -> Iterator[Peer]:
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
    for (predictor, corrector), kind in product(((2, 2), (3, 4)), ("data", "noise")):
        yield (
            f"SASolver P{predictor}C{corrector} {kind}",
            "SASolverScheduler",
            {
                "predictor_order": predictor,
                "corrector_order": corrector,
                "algorithm_type": f"{kind}_prediction",
            },
        )


# ---- azula ---------------------------------------------------------------------------------------

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


def _azula_peers() -> Iterator[Peer]:
    peer = partial(Peer, package="azula", nfe_per_step=1, grids=AZULA_GRIDS)
    for name in ("DDIM", "Euler"):
        yield peer(f"azula {name}", integrate=partial(_azula, sampler=f"{name}Sampler"))
    yield peer("azula Heun", nfe_per_step=2, integrate=partial(_azula, sampler="HeunSampler"))
    for name, order in product(("zAB", "vAB", "zEAB", "xEAB", "REAB"), (1, 2, 3, 4)):
        integrate = partial(_azula, sampler=f"{name}Sampler", order=order)
        yield peer(f"azula {name} {order}", integrate=integrate)


PEERS: dict[str, Peer] = {peer.name: peer for peer in (*_diffusers_peers(), *_azula_peers())}
