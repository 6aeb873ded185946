"""Write results so that they can be judged later: with the configuration, versions and hardware."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .problems import PROCESS, SIGMA_MAX, SIGMA_MIN
from .runner import Results


def write_results(results: Results, path: Path) -> None:
    """Write results as JSON; a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_record(results), indent=1, ensure_ascii=False, allow_nan=False)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False
    ) as file:
        file.write(text + "\n")
    # A temporary file is private; results are as readable as any other file.
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _record(results: Results) -> dict[str, Any]:
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "configuration": {
            **vars(results.config),
            "process": repr(PROCESS),
            "sigma_max": SIGMA_MAX,
            "sigma_min": SIGMA_MIN,
            "dtype": "float64",
            "error": "RMS distance of the final x̂ from the reference, over samples and components",
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("sdekit", "torch", "numpy", "scipy")},
        },
        "hardware": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
        },
        "references": {
            name: {
                "discrepancy": reference.discrepancy,
                "floor": reference.floor,
                "dopri5": {"nfe": reference.nfe[0], "seconds": reference.seconds[0]},
                "scipy_dop853": {"nfe": reference.nfe[1], "seconds": reference.seconds[1]},
            }
            for name, reference in results.references.items()
        },
        "cells": [vars(cell) for cell in results.cells],
    }


def cpu_model() -> str:
    """Return the processor's name, as the operating system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
