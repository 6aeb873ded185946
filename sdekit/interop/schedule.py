"""The noise schedule of a pipeline's network: its timesteps and noise levels, both ways."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..adapters.levels import Index, Time
from ..adapters.predictions import coefficients
from ..affine import AffineSDE
from ..inputs import Array
from ..processes import DiscreteVP, RectifiedFlow

PREDICTIONS = {
    "epsilon": "noise",
    "sample": "data",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}
SPACINGS = ("leading", "linspace", "trailing")


class Schedule:
    """How a network was trained.

    Attributes:
        process: The process.
        table: Noise levels of the timesteps that it was trained at, increasing; of rectified flow,
            which is trained at all times, those of the whole timesteps.

    Args:
        prediction_type: What it predicts, in the words of diffusers.
        count: Number of timesteps.
        alphas_cumprod: The ``ᾱ`` of the timesteps; for rectified flow not used.
    """

    def __init__(
        self, prediction_type: str, count: int, alphas_cumprod: NDArray[np.float64]
    ) -> None:
        self.count = count
        self.flow = prediction_type == "flow_prediction"
        self._predicts = PREDICTIONS[prediction_type]
        self.process: AffineSDE
        self._label: Index | Time
        if self.flow:
            self.process = RectifiedFlow(t_min=1 / count)
            times = np.arange(1, count) / count
            self.table: Array = times / (1 - times)
            self._label = Time(self.process, float(count))
        else:
            self.process = DiscreteVP(alphas_cumprod)
            self.table = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
            self._label = Index(self.table, "interpolated")

    def labels(self, levels: Array) -> Tensor:
        """Return the timesteps of noise levels: int64 if all are whole, else float32."""
        labels = self._label(torch.from_numpy(levels))
        whole = bool(((labels - labels.round()).abs() < 1e-6).all())
        return labels.round().long() if whole else labels.float()

    def sigma(self, labels: Tensor) -> Tensor:
        """Return the noise levels of timesteps, elementwise; those between are log-linear."""
        if self.flow:
            return self.process.sigma(labels / self.count)
        log_sigma = torch.from_numpy(np.log(self.table)).to(labels)
        below = labels.floor().long().clamp(0, len(log_sigma) - 2)
        return torch.lerp(log_sigma[below], log_sigma[below + 1], labels - below).exp()

    def scales(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``s`` and ``s σ`` at timesteps, elementwise."""
        if self.flow:
            return 1 - labels / self.count, labels / self.count
        sigma = self.sigma(labels)
        scale = torch.rsqrt(1 + sigma**2)
        return scale, scale * sigma

    def coefficients(self, levels: Array) -> list[tuple[float, float, float]]:
        """Return ``(c, a, b)`` for each level: the network sees ``c x̂``, and ``D = a x̂ + b output``."""
        found = coefficients(self._predicts, self.process, torch.from_numpy(levels), None)
        return [*zip(*(c.tolist() for c in found), strict=True)]

    def spaced(self, spacing: str, steps: int, offset: int) -> Array:
        """Return the timesteps at which diffusers would begin a number of steps, one of `SPACINGS`.

        Raises:
            ValueError: If there are more steps than timesteps.
        """
        if steps > self.count:
            raise ValueError(
                f"num_inference_steps = {steps}, but there are only {self.count} timesteps"
            )
        if spacing == "leading":
            begins = np.arange(steps)[::-1] * (self.count // steps) + offset
        elif spacing == "linspace":
            begins = np.rint(np.linspace(0, self.count - 1, steps))[::-1]
        else:
            begins = np.rint(np.arange(self.count, 0, -self.count / steps)) - 1
        return np.asarray(begins, dtype=np.float64)

    def grid(self, timesteps: Array, ending: str) -> Array:
        """Return the grid of steps that begin at timesteps.

        Raises:
            ValueError: If they do not decrease, or are not those of this schedule.
        """
        if timesteps.ndim != 1 or not len(timesteps) or not (np.diff(timesteps) < 0).all():
            raise ValueError(f"timesteps = {timesteps.tolist()}; they must decrease strictly")
        lowest, highest = (1, self.count) if self.flow else (0, self.count - 1)
        if timesteps[-1] < lowest or timesteps[0] > highest:
            raise ValueError(
                f"timesteps reach from {timesteps[0]:g} to {timesteps[-1]:g}; they must lie in "
                f"[{lowest}, {highest}]"
            )
        # With zero terminal signal the last level is not in the table.
        last = highest if self.flow else len(self.table) - 1
        levels: Array = self.sigma(torch.from_numpy(timesteps.clip(max=last))).numpy()
        if ending != "stop":
            return np.append(levels, 0.0)
        return np.append(levels, self.table[0]) if levels[-1] > self.table[0] else levels

    def rounded(self, grid: Array) -> Array:
        """Return a grid of levels of the table, those nearest in ``log σ``, each of them once."""
        inner = np.log(grid[grid > 0])
        nearest = np.abs(inner[:, None] - np.log(self.table)).argmin(1)
        levels = self.table[np.unique(nearest)[::-1]]
        return np.append(levels, 0.0) if grid[-1] == 0 else levels
