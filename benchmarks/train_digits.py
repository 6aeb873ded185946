"""Train the digits denoiser that ships with sdekit, or picture its samples.

    python benchmarks/train_digits.py                        # writes sdekit/data/digits.safetensors
    python benchmarks/train_digits.py --picture docs/_static/digits_samples.png

On one CPU core the training takes about ten minutes; the seed fixes the result on one machine
and one version of torch.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from functools import partial
from pathlib import Path

import sklearn
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from sdekit.denoisers import EDMDenoiser
from sdekit.digits import NUM_CLASSES, DigitsNetwork, digits_images, load_digits_denoiser
from sdekit.losses import edm_loss, sample_training_sigma

WEIGHTS = Path(__file__).parents[1] / "sdekit" / "data" / "digits.safetensors"
NETWORK = {"width": 256, "blocks": 5, "embedding": 64, "dropout": 0.25}
DENOISER = {"sigma_data": 0.75, "sigma_min": 0.002, "sigma_max": 80.0}
# Wider than EDM's (−1.2, 1.2): both ends of [0.002, 80] then lie within 3.6 standard deviations,
# and are seen in training instead of extrapolated to.
SIGMA_LAW = {"mean": -0.6, "std": 1.6}
# Twice what guidance needs: the unconditional denoiser is a benchmark problem in its own right.
LABEL_DROPOUT = 0.25


class Evaluation:
    """Loss on a fixed set of images, noise levels and noises: comparable from step to step."""

    def __init__(self, images: Tensor, labels: Tensor, repeats: int = 8) -> None:
        """Fix `repeats` noisy versions of each image."""
        generator = torch.Generator().manual_seed(0)
        self.x0 = images.repeat(repeats, 1, 1, 1)
        self.labels = labels.repeat(repeats)
        # Quantiles instead of draws, since the loss varies far more with σ than with the image.
        count = len(self.x0)
        levels = (torch.randperm(count, generator=generator) + 0.5) / count
        normal = torch.special.ndtri(levels)
        self.sigma = (SIGMA_LAW["mean"] + SIGMA_LAW["std"] * normal).exp()
        self.noise = torch.randn(self.x0.shape, generator=generator)

    @torch.no_grad()
    def __call__(self, denoiser: EDMDenoiser) -> float:
        """Mean loss of the denoiser, half of it with labels and half without."""
        loss = partial(edm_loss, denoiser.eval(), self.x0, sigma=self.sigma, noise=self.noise)
        return (loss() + loss(class_labels=self.labels)).mean().item() / 2


def train(args: argparse.Namespace) -> None:
    """Train with EDM's loss, and write the moving average of the weights that generalises best."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = digits_images("train")
    held_out = Evaluation(*digits_images("held_out"))
    seen = Evaluation(images[: len(held_out.x0) // 8], labels[: len(held_out.x0) // 8])

    denoiser = EDMDenoiser(DigitsNetwork(**NETWORK), **DENOISER)
    average = copy.deepcopy(denoiser).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=args.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 500, 0.5 + 0.5 * math.cos(math.pi * step / args.steps)),
    )

    best: dict[str, float] = {"held_out_loss": math.inf}
    progress = tqdm(range(1, args.steps + 1), desc="digits", mininterval=5)
    for step in progress:
        index = torch.randint(len(images), (args.batch,), generator=generator)
        dropped = torch.rand(args.batch, generator=generator) < LABEL_DROPOUT
        loss = edm_loss(
            denoiser.train(),
            images[index],
            sigma=sample_training_sigma(args.batch, generator=generator, **SIGMA_LAW),
            noise=torch.randn(args.batch, *images.shape[1:], generator=generator),
            class_labels=labels[index].masked_fill(dropped, NUM_CLASSES),
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        # The usual warm-up of the average: its memory grows with the run, so that the random
        # initial weights are forgotten.
        decay = min(args.ema, step / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(denoiser.parameters()), 1 - decay)

        if step % args.evaluate_every == 0 or step == args.steps:
            now = {"step": step, "train_loss": seen(average), "held_out_loss": held_out(average)}
            progress.write(
                f"step {step:6d}  train {now['train_loss']:.4f}  held out {now['held_out_loss']:.4f}"
            )
            if now["held_out_loss"] < best["held_out_loss"]:
                best, weights = now, copy.deepcopy(average.network.state_dict())

    options = ("steps", "batch", "lr", "weight_decay", "ema", "seed")
    metadata = {
        "config": {"network": NETWORK, "denoiser": DENOISER},
        "training": {
            **{name: getattr(args, name) for name in options},
            "sigma_law": SIGMA_LAW,
            "label_dropout": LABEL_DROPOUT,
        },
        "result": best,
        "versions": {"torch": torch.__version__, "scikit-learn": sklearn.__version__},
    }
    args.out.parent.mkdir(exist_ok=True)
    # One entry: safetensors does not order its metadata, and the file should be reproducible.
    save_file(weights, args.out, {"sdekit": json.dumps(metadata)})
    print(f"wrote {args.out}: {best}")


def picture(path: Path) -> None:
    """Save a 10 × 10 grid of samples of the shipped denoiser, one class per row."""
    import matplotlib.pyplot as plt

    import sdekit

    denoiser = partial(
        load_digits_denoiser(), class_labels=torch.arange(NUM_CLASSES).repeat_interleave(10)
    )
    samples = sdekit.sample(
        sdekit.EDM(), denoiser, (10 * NUM_CLASSES, 1, 8, 8), method="heun", steps=20, seed=0
    )
    framed = torch.nn.functional.pad(samples, (1, 1, 1, 1), value=-0.4)
    grid = framed.view(10, 10, 10, 10).permute(0, 2, 1, 3).reshape(100, 100)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole multiples of the pixel, so that the 8 × 8 images stay crisp.
    image = torch.kron(grid, torch.ones(6, 6))
    plt.imsave(path, image.numpy(), cmap="gray", vmin=-1, vmax=1)
    print(f"wrote {path}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--picture", type=Path, help="no training: sample the shipped weights")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.picture:
        picture(args.picture)
    else:
        train(args)


if __name__ == "__main__":
    main()
