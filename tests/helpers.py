"""What the tests of adaptive solves and of gradients share."""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sdekit as sk

DOUBLE = torch.float64
EDM, VP = sk.EDM(), sk.VP()
METHODS = [  # of the probability flow
    name
    for name, entry in sk.methods().items()
    if entry.solver.scheme.adaptive and entry.solver.scheme.solves == "flow"
]
PAIRS = [name for name in METHODS if "adams" not in name]
QUICK = [name for name in METHODS if "dpm" not in name]  # φ-functions take long to evaluate


def elementwise(x, sigma):
    """A denoiser that rounds every sample alike, wherever it is in a batch."""
    return torch.tanh(3 * x + 0.5) / (1 + sigma.reshape(-1, *(1,) * (x.ndim - 1)) ** 2)


def normal(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


class Counting:
    """A denoiser that counts its calls and the rows in them."""

    def __init__(self, func):
        self.func, self.calls, self.seen = func, 0, 0

    def __call__(self, x, sigma):
        self.calls, self.seen = self.calls + 1, self.seen + len(x)
        return self.func(x, sigma)


class Perceptron(torch.nn.Module):
    """A small denoiser: a skip connection and a perceptron of the preconditioned state and level."""

    def __init__(self, dim=3, width=8, dtype=DOUBLE):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        layers = [(dim + 1, width), (width, width), (width, dim)]
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*sizes, dtype=dtype) for sizes in layers)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.6 / width**0.5, generator=generator)

    def forward(self, x, sigma):
        level = sigma.expand(len(x))[:, None]
        scale = torch.hypot(level, torch.ones_like(level))
        hidden = torch.cat([x / scale, level.log() / 4], 1)
        for layer in self.layers[:-1]:
            hidden = torch.tanh(layer(hidden))
        return x / scale**2 + self.layers[-1](hidden) * level / scale


class PeakMemory(TorchDispatchMode):
    """Measures the most bytes of storages alive at once, to 1 %.

    Storages are counted when an operation returns them, and found dead by weak references.
    These are looked at only where the peak could have been passed, else it would take for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bound = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in (result,) if isinstance(result, torch.Tensor) else tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                    self.bound += storage.nbytes()
        if self.bound > 1.01 * self.peak:
            self.sizes = {k: v for k, v in self.sizes.items() if not v[0].expired()}
            self.bound = sum(size for _, size in self.sizes.values())
            self.peak = max(self.peak, self.bound)
        return result
