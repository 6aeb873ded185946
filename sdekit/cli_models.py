"""Models that are named on the command line."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .affine import AffineSDE
from .denoisers import layers
from .digits import load_digits_denoiser
from .processes import EDM, VE, VP, CosineVP, RectifiedFlow, SubVP
from .solvers.registry import did_you_mean
from .weights import load_weights
from .workers import own_device

PROCESSES: dict[str, Callable[[], AffineSDE]] = {
    "edm": EDM,
    "vp": VP,
    "subvp": SubVP,
    "ve": VE,
    "cosine": CosineVP,
    "flow": RectifiedFlow,
}

_KNOWN = "'digits', a factory as in package.module:function, or a folder of a diffusers pipeline"


class NamedModel(NamedTuple):
    """A denoiser, and what it says of itself.

    Attributes:
        denoiser: The denoiser, on its device.
        event_shape: Shape of a sample, if it says so.
        process: The process that it was trained under, if it says so.
    """

    denoiser: Callable[..., Tensor]
    event_shape: tuple[int, ...] | None
    process: AffineSDE | None


def load_model(name: str, weights: Path | None, device: torch.device) -> NamedModel:
    """Load a model.

    Args:
        name: ``"digits"``; ``"package.module:function"``, called without arguments, which returns a
            denoiser; or a folder of a diffusers pipeline.
        weights: A file of weights for the network of the denoiser.
        device: Where it goes.

    Raises:
        ValueError: If there is no such model, or it is no denoiser; or the weights do not fit.
    """
    denoiser: Callable[..., Tensor]
    shape: tuple[int, ...] | None
    if name == "digits":
        denoiser, shape = load_digits_denoiser(), (1, 8, 8)
    elif (Path(name) / "model_index.json").is_file():
        denoiser, shape = _from_pipeline(Path(name))
    elif ":" in name:
        denoiser = _made(name)
        *_, inner = layers(denoiser)
        dim = getattr(inner, "dim", None)
        said = getattr(inner, "event_shape", (dim,) if isinstance(dim, int) else None)
        shape = None if said is None else tuple(map(int, said))
    else:
        raise ValueError(f"unknown model {name!r}; it must be {_KNOWN}")
    *_, inner = layers(denoiser)
    if weights is not None:
        _fill(inner, weights)
    if isinstance(inner, nn.Module):
        inner.to(device).eval().requires_grad_(False)
    process = getattr(inner, "process", None)
    return NamedModel(denoiser, shape, process if isinstance(process, AffineSDE) else None)


def imported(name: str) -> object:
    """Import ``"package.module:attribute"``, or a module, also from the working directory.

    Raises:
        ValueError: If there is no such thing, or importing it fails.
    """
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as for python -m; a command does not have it
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise ValueError(f"cannot import {module!r}: {said(error)}") from error
    if not attribute:
        return found
    if not hasattr(found, attribute):
        raise ValueError(f"{module!r} has no {attribute!r}")
    return getattr(found, attribute)


def _made(name: str) -> Callable[..., Tensor]:
    """Call a factory."""
    factory = imported(name)
    if not callable(factory):
        raise ValueError(
            f"{name} is not callable; --model names a function that takes nothing and returns a "
            "denoiser"
        )
    try:
        denoiser = factory()
    except Exception as error:
        raise ValueError(f"{name} failed: {said(error)}") from error
    if not callable(denoiser):
        raise ValueError(
            f"{name} returned {type(denoiser).__name__}; it must return a denoiser, a callable "
            "(x_hat, sigma) -> x0_hat"
        )
    made: Callable[..., Tensor] = denoiser
    return made


def _from_pipeline(folder: Path) -> tuple[Callable[..., Tensor], tuple[int, ...] | None]:
    """Read the model and the scheduler of a pipeline that diffusers saved."""
    try:
        import diffusers
    except ImportError:
        raise ValueError(f"{folder} needs diffusers: pip install 'sdekit[bench]'") from None
    from .adapters import from_diffusers

    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        parts = {}
        for part in ("unet" if "unet" in index else "transformer", "scheduler"):
            kind = getattr(diffusers, index[part][1])
            parts[part] = kind.from_pretrained(folder / part, local_files_only=True)
        model, scheduler = parts.values()
        denoiser = from_diffusers(model, scheduler)
    except Exception as error:
        raise ValueError(f"cannot read the pipeline in {folder}: {said(error)}") from error
    channels, size = (model.config.get(key) for key in ("in_channels", "sample_size"))
    if channels is None or size is None:
        return denoiser, None
    return denoiser, (channels, *((size, size) if isinstance(size, int) else size))


def _fill(denoiser: Callable[..., Tensor], weights: Path) -> None:
    """Load weights into the network of a denoiser."""
    network = getattr(denoiser, "network", denoiser)
    if not isinstance(network, nn.Module):
        raise ValueError("--weights needs a denoiser that is a torch module, or has one as network")
    try:
        network.load_state_dict(load_weights(weights))
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"the weights of {weights} do not fit: {said(error)}") from error


def said(error: Exception) -> str:
    """Return what an error says, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def find_device(name: str) -> torch.device:
    """Return a device that is named on the command line.

    Raises:
        ValueError: If there is none, or it does not work.
    """
    try:
        device = own_device(name)
        torch.zeros(1, device=device).numpy(force=True)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ValueError(f"no device {name!r} here: {reason[0] if reason else error!r}") from None
    return device


def check_known(what: str, name: str, known: Collection[str]) -> None:
    """Raise `ValueError` if a name is not among those that there are."""
    if name not in known:
        hint = did_you_mean(name, known)
        raise ValueError(f"unknown {what} {name!r}; {hint}there is {', '.join(known)}")


def shape_of(found: NamedModel, given: list[int]) -> tuple[int, ...]:
    """Return the shape of a sample, given or as the model says it.

    Raises:
        ValueError: If neither does.
    """
    if given:
        return tuple(given)
    if found.event_shape is None:
        raise ValueError(
            "the model does not say which shape its samples have (an attribute event_shape would); "
            "give --shape, as in --shape 3,32,32"
        )
    return found.event_shape
