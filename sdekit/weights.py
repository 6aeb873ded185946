"""Weights from files, without running any code that is in them."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["load_weights"]


def load_weights(path: str | os.PathLike[str], *, key: str | None = None) -> dict[str, Tensor]:
    """Read the weights of a network from a safetensors file or a checkpoint of ``torch.save``.

    A checkpoint is a pickle, which can run any code when it is loaded. It is read with
    ``weights_only=True``, which takes tensors and plain containers only, and refused if it has
    anything else in it.

    Args:
        path: A file; what it is follows from its contents, not its name.
        key: Where the weights are in a checkpoint of several entries, such as ``"state_dict"`` or
            ``"ema"``; dots lead into nested ones.

    Returns:
        Tensors on the CPU, by name: what ``network.load_state_dict`` takes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read safely, or is no dictionary of tensors; the message says what
            it is and what would help.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file starts with the length of its header, in 8 bytes, and the header's brace.
    if len(start) == 9 and start[8:] == b"{" and start[:2] != b"PK":
        if key is not None:
            raise ValueError(
                f"{path} is a safetensors file, which holds one set of weights: no key"
            )
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is a damaged safetensors file: {error}") from error
    try:
        with warnings.catch_warnings():
            # Of pickles of another protocol, which work or do not.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is a pickle that holds more than tensors; to load it would run code that is in "
            "it, so it is refused. Where you trust it, convert it once, with the package that wrote it "
            "installed: torch.save(network.state_dict(), file), or safetensors.torch.save_file of the "
            f"same. What was found: {_first_line(error)}"
        ) from error
    except Exception as error:  # a damaged file fails in any way
        raise ValueError(
            f"{path} is neither a safetensors file nor a checkpoint of torch.save: {_first_line(error)}"
        ) from error
    return _tensors(_entry(content, key, path), path)


def _entry(content: object, key: str | None, path: Path) -> object:
    """Go down to an entry of a checkpoint; a name may have dots in it."""
    parts = key.split(".") if key else []
    while parts:
        names = [".".join(parts[:k]) for k in range(len(parts), 0, -1)]
        name = next((n for n in names if isinstance(content, dict) and n in content), None)
        if name is None or not isinstance(content, dict):
            raise ValueError(f"{path} has no entry {key!r}; {_describe(content)}")
        content, parts = content[name], parts[name.count(".") + 1 :]
    return content


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    """Refuse what is not a dictionary of tensors."""
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no dictionary of tensors; {_describe(content)}")
    if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        return dict(content)
    raise ValueError(
        f"{path} holds more than a dictionary of tensors; say where the weights are by key=. "
        f"{_describe(content).capitalize()}"
    )


def _describe(content: object) -> str:
    if not isinstance(content, dict):
        return f"it is a {type(content).__name__}"
    entries = [f"{name} ({type(value).__name__})" for name, value in list(content.items())[:10]]
    return f"its entries are {', '.join(entries)}" + (", …" if len(content) > 10 else "")


def _first_line(error: Exception) -> str:
    """Return the line of torch's message that says what was refused."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines or [type(error).__name__])[0]
