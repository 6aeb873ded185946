"""Measure the error of samples from an unmodified pipeline of diffusers, by scheduler and NFE.

    python benchmarks/pipeline.py [--out benchmarks/results/pipeline.json]

The pipeline is `DDPMPipeline`; only its scheduler changes. Its networks predict the noise: an exact
mixture of Gaussians and the digits network of sdekit, each told by a timestep, and a `UNet2DModel` with
random weights, which makes no pictures but an ODE like another. The error is the RMS difference in the
pictures, in [−1, 1], from those of the same noise solved with very many steps down to the lowest level
of training, where they are denoised, as by all schedulers here. Two references, of different methods,
tell how well it is known. Schedulers of diffusers are given the best of their options for each number,
in hindsight; sdekit's runs with none, and once with the standard deviation of the data said.
(`UniPCMultistepScheduler` takes no generator in its steps, which this pipeline gives.)
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import sdekit as sk
from sdekit.records import cpu_model

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):  # one made for another torch; diffusers does without
    sys.modules["torchvision"] = None  # type: ignore[assignment]

import diffusers
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput

from sdekit.interop.diffusers import SdekitScheduler

NFE = (5, 6, 8, 10, 15, 20, 30, 50)
BATCH = {"mixture": 64, "digits": 64, "unet": 8}
TRAINED: dict[str, Any] = {"clip_sample": False}  # else the defaults of DDPM
SPACINGS = ("leading", "trailing", "linspace")
LEVELS: tuple[dict[str, Any], ...] = (
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
)


class NoiseModel(ModelMixin, ConfigMixin):
    """A denoiser as a network of a pipeline: it predicts the noise at timesteps, fractional or not."""

    @register_to_config
    def __init__(self, sample_size: int, in_channels: int) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones((), dtype=torch.float64))
        self.schedule = SdekitScheduler(**TRAINED).schedule

    def of(self, denoiser: Callable[..., Tensor]) -> NoiseModel:
        """Say which denoiser."""
        self.denoiser = denoiser
        return self

    @property
    def dtype(self) -> torch.dtype:
        """float64."""
        return torch.float64

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        """Predict the noise."""
        sigma = self.schedule.sigma(timestep.double())
        x_hat = sample * torch.sqrt(1 + sigma**2)
        return UNet2DOutput(sample=(x_hat - self.denoiser(x_hat, sigma)) / sigma)


def networks() -> dict[str, tuple[torch.nn.Module, float]]:
    """Return networks, and the standard deviations of their data."""
    law = sk.GaussianMixture.random(components=6, dim=16, seed=0)
    digits = sk.load_digits_denoiser(dtype=torch.float64)

    def mixture(x_hat: Tensor, sigma: Tensor) -> Tensor:
        return law(x_hat.flatten(1), sigma).view_as(x_hat)

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return {
        "mixture": (NoiseModel(4, 1).of(mixture), float(law.sigma_data)),
        "digits": (NoiseModel(8, 1).of(digits), float(digits.sigma_data)),
        "unet": (unet.double().eval().requires_grad_(False), 0.5),
    }


def schedulers(sigma_data: float) -> dict[str, list[Any]]:
    """Return schedulers with all their options."""
    multistep = [
        {"timestep_spacing": spacing, **options}
        for spacing, options in itertools.product(SPACINGS, LEVELS)
    ]
    trained = diffusers.DDPMScheduler(**TRAINED).config
    return {
        "DDIM": [diffusers.DDIMScheduler(timestep_spacing=s, **TRAINED) for s in SPACINGS],
        "DPMSolverMultistep": [diffusers.DPMSolverMultistepScheduler(**o) for o in multistep],
        "sdekit": [SdekitScheduler.from_config(trained)],
        "sdekit, σ_d known": [SdekitScheduler.from_config(trained, sigma_data=sigma_data)],
    }


def pictures(
    network: torch.nn.Module,
    scheduler: diffusers.SchedulerMixin,
    steps: int,
    batch: int,
) -> tuple[Tensor, int]:
    """Run the pipeline; return the pictures, in [−1, 1], and the number of calls of the network."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    pipeline = diffusers.DDPMPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    hook = network.register_forward_pre_hook(count)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(batch, generator, steps, output_type="pt").images
    hook.remove()
    return 2 * images - 1, calls


def error(images: Tensor, exact: Tensor) -> float:
    """RMS difference; infinite if it is not a number."""
    value = float((images - exact).square().mean().sqrt())
    return value if value == value else float("inf")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/pipeline.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    record: dict[str, Any] = {"nfe": NFE, "batch": BATCH, "seed": 0, "problems": {}}
    for name, (network, sigma_data) in networks().items():
        batch = BATCH[name]
        fine = {
            method: pictures(
                network, SdekitScheduler(method=method, spacing="log", **TRAINED), steps, batch
            )[0]
            for method, steps in (("adams4", 800), ("rk4", 300))
        }
        exact = fine["adams4"]
        floor = error(fine["rk4"], exact)
        found: dict[str, dict[str, list[Any]]] = {}
        for family, members in tqdm(schedulers(sigma_data).items(), desc=name, leave=False):
            rows = []
            for steps in NFE:
                runs = []
                for member in members:
                    images, calls = pictures(
                        network, type(member).from_config(member.config), steps, batch
                    )
                    # Heun-like options would spend more; DPM-Solver's spend one fewer or as many.
                    assert calls <= steps, (family, calls)
                    runs.append(error(images, exact))
                best = min(range(len(runs)), key=runs.__getitem__)
                rows.append((runs[0], runs[best], best))
            found[family] = {
                "first": [row[0] for row in rows],
                "best": [row[1] for row in rows],
                "which": [row[2] for row in rows],
            }
        record["problems"][name] = {"sigma_data": sigma_data, "floor": floor, "errors": found}
        table = Table(
            "", *map(str, NFE), box=None, title=f"{name}: RMS error; known to {floor:.1e}"
        )
        for family, rows in found.items():
            table.add_row(family, *(f"{e:.1e}" for e in rows["best"]))
        Console(width=110).print(table)
    record["versions"] = {n: version(n) for n in ("sdekit", "torch", "diffusers")}
    record["python"], record["cpu"] = platform.python_version(), cpu_model()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
