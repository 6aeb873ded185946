"""Samples in a folder: what was asked for, and a file for each micro-batch of the answer.

Files appear whole or not at all, whenever a process is killed; and a micro-batch says which request it
answers, so that no file of another one is taken for it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

_MANIFEST = "manifest.json"
_NEEDED = {"samples", "micro_batch", "shape", "denoiser"}

# The denoiser is known by values that it returned once, as fractions of their RMS: round-off on
# another machine is no other network.
_SAME = 1e-3


@dataclass(frozen=True)
class Shards:
    """A folder of samples.

    Attributes:
        folder: Where they are.
        manifest: What was asked for, as JSON knows it; ``"samples"``, ``"shape"``, ``"dtype"`` and
            ``"micro_batch"`` are read here.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def count(self) -> int:
        """Number of micro-batches."""
        return -(-self.samples // self.size)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.manifest["samples"])

    @property
    def size(self) -> int:
        """Samples of a micro-batch."""
        return int(self.manifest["micro_batch"])

    def path(self, unit: int) -> Path:
        """File of a micro-batch."""
        return self.folder / f"samples-{unit:06d}.safetensors"

    def has(self, unit: int) -> bool:
        """Whether a micro-batch is there, whole, and answers this request."""
        try:
            about = self._about(unit)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return False  # there is none, or it is damaged
        return bool(about["request"] == self._digest)

    def missing(self) -> list[int]:
        """Return the micro-batches that are not there."""
        return [unit for unit in range(self.count) if not self.has(unit)]

    def write(self, unit: int, samples: Tensor, *, nfe: float) -> None:
        """Write a micro-batch, without the samples that only filled it up."""
        samples = samples[: self.samples - unit * self.size].contiguous().cpu()
        # One entry, as safetensors writes several in any order: the file is the same to the byte.
        about = json.dumps({"request": self._digest, "nfe": nfe})
        write_whole(self.path(unit), save({"samples": samples}, {"sdekit": about}))

    def load(self) -> Tensor:
        """Return all samples, ``(n, *event)``.

        Raises:
            ValueError: If micro-batches are missing.
        """
        self._check_complete()
        parts = []
        for unit in range(self.count):
            with safe_open(self.path(unit), framework="pt") as file:
                parts.append(file.get_tensor("samples"))
        return torch.cat(parts)

    def nfe(self) -> float:
        """Return network evaluations per sample, the mean over all that have been drawn.

        Raises:
            ValueError: If micro-batches are missing.
        """
        self._check_complete()
        return float(np.mean([self._about(unit)["nfe"] for unit in range(self.count)]))

    def claim(self) -> None:
        """Say in the folder what it holds.

        Raises:
            ValueError: If it holds something else.
        """
        known = read_manifest(self.folder)
        if known is not None:
            check_same(self.folder, known, self.manifest)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(self.folder / _MANIFEST, (text + "\n").encode())

    def sweep(self) -> None:
        """Remove what processes that were killed have left half written."""
        for own in (".samples*.tmp", f".{_MANIFEST}-*.tmp"):
            for path in self.folder.glob(own):
                path.unlink(missing_ok=True)

    @property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:16]

    def _about(self, unit: int) -> dict[str, Any]:
        with safe_open(self.path(unit), framework="pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["sdekit"])
        return about

    def _check_complete(self) -> None:
        missing = self.missing()
        if missing:
            named = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {self.count} micro-batches ({named}); draw "
                "them by running the same request again"
            )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read what a folder holds; ``None`` if it does not say.

    Raises:
        ValueError: If the manifest cannot be read as one.
    """
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); delete the folder, or take another"
        ) from None
    if not isinstance(manifest, dict) or not manifest.keys() >= _NEEDED:
        raise ValueError(f"{path} holds no request; delete the folder, or take another")
    return manifest


def check_same(folder: Path, known: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse a request that differs from what a folder holds, in what both say.

    Raises:
        ValueError: If it does; the message names every difference.
    """
    differences = [
        f"{key} is {json.dumps(known.get(key))} there and {json.dumps(value)} now"
        for key, value in asked.items()
        if key != "denoiser" and known.get(key) != value
    ]
    if "denoiser" in asked:
        ours, theirs = (np.asarray(values.get("denoiser", ())) for values in (asked, known))
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=0, atol=_SAME):
            differences.append("the denoiser answers otherwise than it did")
    if differences:
        raise ValueError(
            f"{folder} holds samples of another request: {'; '.join(differences)}. Take another "
            "folder, or delete this one"
        )


def digest(values: Tensor) -> str:
    """Return a hash of the values, dtype and shape of a tensor."""
    raw = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    about = f"{values.dtype} {tuple(values.shape)} ".encode()
    return hashlib.sha256(about + raw.tobytes()).hexdigest()[:16]


def described(value: object) -> Any:  # noqa: ANN401  # what JSON knows
    """Return what a value is made of, as JSON: the same for equal values in every process."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return described(value.tolist())
    if isinstance(value, list | tuple):
        return [described(entry) for entry in value]
    if isinstance(value, functools.partial):
        return [described(value.func), described(value.args), described(value.keywords)]
    if isinstance(value, Mapping):
        return {str(key): described(entry) for key, entry in value.items()}
    if hasattr(value, "__qualname__"):
        if "<l" in value.__qualname__:  # <lambda>, or a function among the <locals> of another
            raise ValueError(
                f"{value.__qualname__} cannot be known again when the request is resumed; take a "
                "function of a module, and functools.partial for its parameters"
            )
        return value.__qualname__
    public = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
    return {"is": type(value).__name__, **described(public)}


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}-", suffix=".tmp", delete=False
    ) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        # A temporary file is private; results are as readable as any other file.
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except FileNotFoundError:
        # Another job on this folder was ready, and swept: then the same content is there.
        if not path.exists():
            raise
