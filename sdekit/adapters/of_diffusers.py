"""Denoisers from the models of diffusers: what they predict is said by their scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..affine import AffineSDE
from ..processes import EDM, VE, VP, DiscreteVP, RectifiedFlow
from .levels import Index, LogSigma, Rule, Sigma, Time
from .network import NetworkDenoiser

__all__ = ["FLOW", "from_diffusers"]

# Schedulers whose alphas_cumprod and prediction_type say all; they differ in how they sample.
_DDPM = {
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
}
FLOW = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}
_EDM = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}
_SCORE = {"ScoreSdeVeScheduler"}

# Models that take the timestep as it is; others multiply it by 1000, or take packed states.
_MODELS = {
    "DiTTransformer2DModel",
    "SD3Transformer2DModel",
    "Transformer2DModel",
    "UNet1DModel",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNet3DConditionModel",
}

_PREDICTIONS = {
    "epsilon": "noise",
    "sample": "data",
    "original_sample": "data",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}


class _Model(nn.Module):
    """A model of diffusers as ``network(x, label)``, its output times a sign."""

    def __init__(self, model: nn.Module, sign: int = 1) -> None:
        super().__init__()
        self.model = model
        self.sign = sign

    def forward(self, x: Tensor, label: Tensor, **conditioning: object) -> Tensor:
        raw: Tensor = self.model(x, timestep=label, return_dict=False, **conditioning)[0]
        return raw if self.sign == 1 else -raw


class _Scheduler(Protocol):
    config: Mapping[str, Any]
    alphas_cumprod: Tensor


class _Trained(NamedTuple):
    """How a model was trained."""

    process: AffineSDE
    predicts: str
    level: Callable[[Tensor], Tensor]
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigma_data: float | None = None
    sign: int = 1


def from_diffusers(
    model: nn.Module,
    scheduler: _Scheduler,
    *,
    index: Rule = "interpolated",
    autocast: torch.dtype | None = None,
) -> NetworkDenoiser:
    """Adapt a model of diffusers; its scheduler says how it was trained.

    Read are the noise levels and the kind of prediction. How the scheduler would sample (spacing,
    Karras levels, shifts, clipping and thresholding of the estimate) is not part of the denoiser. Of a
    schedule with zero terminal signal the last level, ``σ = ∞``, is dropped.

    Args:
        model: A UNet or transformer that takes the timestep as it is; conditioning goes in as its own
            keywords, such as ``encoder_hidden_states`` or ``class_labels``.
        scheduler: The scheduler that comes with it.
        index: How a discrete model is told levels between its own; see `sdekit.levels.Index`.
        autocast: A dtype to run it in under ``torch.autocast``; none if not given.

    Raises:
        TypeError: If the model or the scheduler is of a class that is not known here.
        ValueError: If the scheduler says something that is not known here, or contradicts itself.
    """
    inner = _unwrapped(model)
    names = {base.__name__ for base in type(inner).__mro__}
    if "ModelMixin" in names and not names & _MODELS:
        raise TypeError(
            f"{type(inner).__name__} is not one of the models known here, "
            f"{', '.join(sorted(_MODELS))}; "
            "check how it scales its timestep, and take sdekit.NetworkDenoiser with a callable around"
        )
    trained = _trained(scheduler, index)
    config = getattr(inner, "config", None)
    config = config if isinstance(config, Mapping) else {}
    channels = config.get("in_channels")
    if config.get("time_embedding_type") == "learned" and index == "interpolated":
        raise ValueError(
            "the model looks its timestep up in a table, so there is nothing between two of them; take "
            "index='nearest' or 'exact'"
        )
    return NetworkDenoiser(
        _Model(model, trained.sign),
        trained.process,
        predicts=trained.predicts,
        level=trained.level,
        sigma_data=trained.sigma_data,
        sigma_min=trained.sigma_min,
        sigma_max=trained.sigma_max,
        learned_variance=channels is not None and config.get("out_channels") == 2 * channels,
        autocast=autocast,
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return what ``torch.compile``, ``DataParallel`` and their kin hide: the class and its config."""
    for name in ("_orig_mod", "module"):
        if isinstance(inner := getattr(model, name, None), nn.Module):
            return _unwrapped(inner)
    return model


def _trained(scheduler: _Scheduler, index: Rule) -> _Trained:
    """Read a scheduler."""
    name = type(scheduler).__name__
    config = getattr(scheduler, "config", None)
    if config is None or name not in _DDPM | FLOW | _EDM | _SCORE:
        known = ", ".join(sorted(_DDPM | FLOW | _EDM | _SCORE))
        raise TypeError(
            f"{name} is not one of the schedulers known here, {known}; say what the model predicts by "
            "sdekit.NetworkDenoiser"
        )
    if name in FLOW:
        return _flow(config)
    if name in _SCORE:
        process = VE(config["sigma_min"], config["sigma_max"])
        return _Trained(process, "score", Sigma())
    said = config["prediction_type"]
    predicts = _PREDICTIONS.get(said)
    if name in _EDM:
        if predicts not in ("noise", "v"):
            raise ValueError(
                f"prediction_type = {said!r}; with {name} it must be 'epsilon' or 'v_prediction'"
            )
        return _Trained(
            EDM(config["sigma_min"], config["sigma_max"]),
            "edm",
            LogSigma(),
            sigma_data=config["sigma_data"],
            # What diffusers calls a v-prediction there is minus the F of EDM.
            sign=1 if predicts == "noise" else -1,
        )
    if predicts is None:
        raise ValueError(
            f"prediction_type = {said!r}; it must be one of {', '.join(map(repr, _PREDICTIONS))}"
        )
    if predicts == "velocity":
        if not config.get("use_flow_sigmas"):
            raise ValueError(
                "prediction_type = 'flow_prediction' without use_flow_sigmas: a velocity along the "
                "schedule of alphas_cumprod is not what any scheduler of diffusers integrates"
            )
        return _flow(config)
    if config.get("use_flow_sigmas"):
        raise ValueError(
            f"use_flow_sigmas = True with prediction_type = {said!r}; only models of 'flow_prediction' "
            "are trained along straight paths"
        )
    table = _table(scheduler)
    if config.get("timestep_type") == "continuous":
        if predicts != "v":
            raise ValueError(
                f"timestep_type = 'continuous' with prediction_type = {said!r}; "
                "only models of 'v_prediction' are told log σ / 4"
            )
        low, high = config.get("sigma_min"), config.get("sigma_max")
        return _Trained(
            VP(),
            "v",
            LogSigma(),
            float(table[0]) if low is None else low,
            float(table[-1]) if high is None else high,
        )
    return _Trained(DiscreteVP(1 / (1 + table**2)), predicts, Index(table, index))


def _flow(config: Mapping[str, Any]) -> _Trained:
    """Read a scheduler of flow matching, in the sense of `RectifiedFlow`."""
    if config.get("invert_sigmas"):
        raise ValueError("invert_sigmas = True: a flow from noise at t = 0 is not known here")
    steps = config["num_train_timesteps"]
    process = RectifiedFlow(t_min=1 / steps)
    return _Trained(process, "velocity", Time(process, float(steps)))


def _table(scheduler: _Scheduler) -> NDArray[np.float64]:
    """Return the noise levels of a discrete schedule, increasing; refuse what is not one."""
    alphas = torch.as_tensor(scheduler.alphas_cumprod).double().numpy(force=True)
    steps = scheduler.config["num_train_timesteps"]
    if alphas.shape != (steps,):
        raise ValueError(
            f"alphas_cumprod has shape {alphas.shape}, but num_train_timesteps = {steps}; every "
            "timestep needs its level"
        )
    # Zero terminal signal; some schedulers put the least number of float16 in its place.
    if scheduler.config.get("rescale_betas_zero_snr") or alphas[-1] == 0:
        alphas = alphas[:-1]
    if not ((alphas > 0) & (alphas < 1)).all() or not (np.diff(alphas) < 0).all():
        falls = np.append(np.diff(alphas) < 0, True)
        at = int(np.argmin((alphas > 0) & (alphas < 1) & falls))
        raise ValueError(
            "alphas_cumprod must decrease strictly inside of (0, 1); at timestep "
            f"{at} it is {alphas[at]:g}"
            + (f", then {alphas[at + 1]:g}" if at + 1 < len(alphas) else "")
        )
    levels: NDArray[np.float64] = np.sqrt((1 - alphas) / alphas)
    return levels
