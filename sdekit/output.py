"""Samples as files of other kinds: arrays of numpy, and pictures."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .shards import write_whole

_PICTURED = 400  # images of a grid, at most


def check_pictured(event_shape: tuple[int, ...]) -> None:
    """Refuse samples of which there is no picture.

    Raises:
        ValueError: If they are neither points of the plane nor grey or coloured images.
    """
    image = len(event_shape) == 3 and event_shape[0] in (1, 3)
    if not image and event_shape != (2,):
        raise ValueError(
            f"there is no picture of samples of shape {event_shape}: png takes images, (1, H, W) or "
            "(3, H, W), and points of the plane, (2,)"
        )


def write_npz(samples: Tensor, path: Path, **more: Tensor) -> None:
    """Write samples as the array ``samples`` of an npz file, and what else goes with them."""
    arrays = {name: value.numpy() for name, value in {"samples": samples, **more}.items()}
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_whole(path, content.getvalue())


def write_png(samples: Tensor, path: Path, *, columns: int | None = None) -> None:
    """Write a picture: a grid of images with values in [−1, 1], or the points of the plane.

    Args:
        samples: ``(n, 1 or 3, H, W)``, of which the first 400 are shown, or ``(n, 2)``.
        path: File.
        columns: Images of a row; as many as rows if not given.
    """
    check_pictured(tuple(samples.shape[1:]))
    (_write_points if samples.ndim == 2 else _write_images)(samples, path, columns)


def _write_points(samples: Tensor, path: Path, columns: int | None) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    x, y = samples.double().T.numpy()
    axes.scatter(x, y, s=min(20.0, 20000 / len(samples)), linewidths=0, alpha=0.6)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_whole(path, content.getvalue())


def _write_images(samples: Tensor, path: Path, columns: int | None) -> None:
    from matplotlib.image import imsave

    n = min(len(samples), _PICTURED)
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = -(-n // columns)
    height, width = samples.shape[2:]
    # One pixel of white between; small images are enlarged, so that they can be looked at.
    sheet = torch.ones(rows, columns, 3, height + 1, width + 1)
    pixels = ((samples[:n].float() + 1) / 2).clamp(0, 1).expand(n, 3, height, width)
    sheet.view(rows * columns, 3, height + 1, width + 1)[:n, :, :height, :width] = pixels
    sheet = sheet.permute(0, 3, 1, 4, 2).reshape(rows * (height + 1), columns * (width + 1), 3)
    zoom = max(1, 48 // max(height, width))
    sheet = sheet[:-1, :-1].repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    content = io.BytesIO()
    imsave(content, sheet.numpy(), format="png")
    write_whole(path, content.getvalue())
