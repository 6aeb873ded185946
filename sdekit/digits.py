"""A small trained denoiser of real data: scikit-learn's handwritten digits, 8 × 8 pixels.

Closed-form scores are smooth in ways that trained networks are not, so solvers are judged on both.
The weights ship with the package; ``benchmarks/train_digits.py`` makes them again.
"""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .denoisers import EDMDenoiser

__all__ = ["DigitsNetwork", "digits_images", "load_digits_denoiser"]

NUM_CLASSES = 10
NUM_TRAIN = 1500


class DigitsNetwork(nn.Module):
    """Residual perceptron on the pixels, modulated by the noise level and the class.

    Every operation is infinitely differentiable (SiLU, layer norm, sines), so that solvers of high
    order have their order to show.

    Args:
        width: Features of each residual block.
        blocks: Number of residual blocks.
        embedding: Features of the embedded noise level and class.
        dropout: Probability of dropping a hidden feature, in training.
    """

    frequencies: Tensor

    def __init__(self, *, width: int, blocks: int, embedding: int, dropout: float) -> None:
        super().__init__()
        # c_noise = ln(σ)/4 spans about [−1.6, 1.1]. The highest frequency, 8, resolves an octave
        # of σ; higher ones would only make F rough in σ. Multiples of ½ are exact in any dtype.
        self.register_buffer("frequencies", 0.5 * torch.arange(1, 17), persistent=False)
        self.embed_noise = nn.Sequential(
            nn.Linear(2 * len(self.frequencies), embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
        )
        self.embed_class = nn.Embedding(NUM_CLASSES + 1, embedding)  # the last one: no label
        self.read_in = nn.Linear(64, width)
        self.blocks = nn.ModuleList(_Block(width, embedding, dropout) for _ in range(blocks))
        self.read_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64))

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Evaluate the raw network ``F``, to be preconditioned by ``EDMDenoiser``.

        Args:
            x: Images, shape ``(B, 1, 8, 8)``.
            c_noise: ``ln(σ)/4``, shape ``(B,)``.
            class_labels: Integers of shape ``(B,)``; 0 to 9 are the digits, 10 is "no label", and
                ``None`` is 10 for every sample.

        Returns:
            ``F``, shape ``(B, 1, 8, 8)``.

        Raises:
            ValueError: If ``x`` or ``class_labels`` has another shape.
        """
        if x.shape[1:] != (1, 8, 8):
            raise ValueError(f"images must have shape (B, 1, 8, 8), got {tuple(x.shape)}")
        if class_labels is None:
            class_labels = torch.full(x.shape[:1], NUM_CLASSES, device=x.device)
        elif class_labels.shape != x.shape[:1]:
            raise ValueError(
                f"class_labels must have shape ({len(x)},), got {tuple(class_labels.shape)}"
            )
        phase = c_noise[:, None] * self.frequencies
        emb = self.embed_noise(torch.cat([phase.cos(), phase.sin()], dim=1))
        emb = nn.functional.silu(emb + self.embed_class(class_labels))
        h = self.read_in(x.flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        out: Tensor = self.read_out(h)
        return out.view_as(x)


class _Block(nn.Module):
    """Residual ``h + W₂ silu(a ⊙ W₁ norm(h) + b)``, ``a`` and ``b`` affine in the embedding."""

    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.modulation = nn.Linear(embedding, 2 * width)
        last = nn.Linear(width, width)
        # Each block starts as the identity: a deep stack trains from the first step.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.out = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), last)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.modulation(emb).chunk(2, dim=1)
        out: Tensor = h + self.out((1 + scale) * self.hidden(h) + shift)
        return out


def load_digits_denoiser(
    *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> EDMDenoiser:
    """Load the denoiser of handwritten digits that ships with the package.

    States have shape ``(B, 1, 8, 8)``, pixels in [−1, 1]. Conditioning: ``class_labels``, integers of
    shape ``(B,)`` (0 to 9, or 10 for no label), or ``None``.

    Args:
        device: Device of the weights; torch's default if ``None``.
        dtype: Dtype of the weights, and so of the network's arithmetic.

    Returns:
        The denoiser in evaluation mode, its parameters frozen.
    """
    with (
        as_file(files("sdekit") / "data" / "digits.safetensors") as path,
        safe_open(path, framework="pt") as file,
    ):
        # The file says what network it holds, so loader and weights cannot disagree.
        config = json.loads(file.metadata()["sdekit"])["config"]
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    denoiser = EDMDenoiser(DigitsNetwork(**config["network"]), **config["denoiser"])
    denoiser.network.load_state_dict(weights)
    return denoiser.to(device=device, dtype=dtype).eval().requires_grad_(False)


def digits_images(split: Literal["train", "held_out"]) -> tuple[Tensor, Tensor]:
    """Return the real images: 1,500 to train on, or the 297 that training never saw.

    Source: the UCI handwritten digits test set, as ``sklearn.datasets.load_digits``.

    Args:
        split: ``"train"`` or ``"held_out"``; the split is a fixed permutation (seed 0).

    Returns:
        Images ``x = pixel/8 − 1`` in [−1, 1], float32 of shape ``(n, 1, 8, 8)``, and their labels,
        int64 of shape ``(n,)``.

    Raises:
        ImportError: If scikit-learn, which holds the images, is not installed.
        ValueError: If ``split`` is neither.
    """
    try:
        import numpy as np
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn: pip install 'sdekit[bench]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    if split == "train":
        index = order[:NUM_TRAIN]
    elif split == "held_out":
        index = order[NUM_TRAIN:]
    else:
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
    images = torch.as_tensor(pixels[index] / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    return images, torch.as_tensor(labels[index], dtype=torch.int64)
