"""Records of what was measured: written whole, with the versions and the machine beside them."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def provenance(packages: Sequence[str]) -> dict[str, Any]:
    """Return when, by what and on what a record was made.

    Args:
        packages: Packages whose versions matter.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "hardware": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
        },
    }


def _one_entry_a_line(record: dict[str, Any]) -> str:
    """Return JSON whose lists have an entry a line, so that a change shows where it is."""
    parts = []
    for key, value in record.items():
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        if isinstance(value, list):
            entries = (json.dumps(v, ensure_ascii=False, allow_nan=False) for v in value)
            text = "[\n" + ",\n".join(entries) + "\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


def plain_text(value: object) -> str:
    """Return text as it is, and other plain data as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def flat(record: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, str]:
    """Return what is in mappings of mappings as text, by the names on the way to it."""
    found: dict[str, str] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= flat(value, separator, f"{prefix}{name}{separator}")
        else:
            found[f"{prefix}{name}"] = plain_text(value)
    return found


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write a record as JSON; a reader sees the old file or the whole new one."""
    text = _one_entry_a_line(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False
    ) as file:
        file.write(text + "\n")
    # A temporary file is private; results are as readable as any other file.
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def cpu_model() -> str:
    """Return the processor's name, as the operating system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
