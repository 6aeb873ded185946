"""What a scheduler's configuration says of the model that it was made for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_flow_match_heun_discrete import (
    FlowMatchHeunDiscreteScheduler,
)

from ..adapters.of_diffusers import FLOW


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of a scheduler of flow matching."""
    if "_class_name" in config:
        return config["_class_name"] in FLOW
    # One that was not loaded from a file does not say its class; its entries do.
    names = {name for name in config if not name.startswith("_")}
    known = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)
    return "shift" in names and any(names == set(inspect.signature(c).parameters) for c in known)


def check_known(config: Mapping[str, Any]) -> None:
    """Refuse a configuration of a model that is not trained on a schedule of ``β``, nor as a flow."""
    flow = config.get("prediction_type") == "flow_prediction"
    betas = "beta_schedule" in config or config.get("trained_betas") is not None
    said = {
        "timestep_type": config.get("timestep_type") == "continuous",
        "use_flow_sigmas": config.get("use_flow_sigmas") and not flow,
        "invert_sigmas": config.get("invert_sigmas"),
        "snr_shift_scale": config.get("snr_shift_scale", 1.0) != 1.0,
    }
    wrong = [f"{name} = {config[name]!r}" for name, refused in said.items() if refused]
    if not (flow or betas):
        wrong = ["no beta_schedule or trained_betas, and no prediction_type = 'flow_prediction'"]
    if wrong:
        raise ValueError(
            f"the configuration has {wrong[0]}; SdekitScheduler takes models of a schedule of β, and "
            "those of a flow from data at t = 0. For others adapt the model, by sdekit.from_diffusers "
            "or sdekit.NetworkDenoiser, and take sdekit.sample"
        )
