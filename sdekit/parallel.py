"""Many samples, by many processes, into a folder: the same bits for any number of processes.

The unit of work is a micro-batch of fixed shape: networks round differently for another number of
samples, so that must not depend on who shares the work. Every sample has a seed of its own, a function
of the request's seed and the sample's index. A micro-batch is written when it is drawn; a process that
is killed and started again, also with another number of processes, draws what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from .affine import AffineSDE
from .brownian import IndependentNoise, read_seeds
from .denoisers import Conditioned, known_sigma_data, layers, model_of, trained_range
from .guidance import StepScale
from .inputs import check_state, check_steps, named_solver
from .preconditioned import Preconditioned
from .sampling import sample
from .scale import fit_solver
from .sde import Model, check_output
from .shards import Shards, check_same, described, digest, read_manifest
from .solution import SolveError
from .solvers.registry import methods
from .workers import Workers, own_device, torchrun
from .wrapper import Wrapper, evaluations

__all__ = ["Workers", "load", "sample_seeds", "sample_to"]

# Conditioning of samples: a tensor with an entry for each, or a function of their indices.
Conditioning: TypeAlias = Tensor | Callable[[Tensor], Tensor]

_PROBED = 8  # values of the denoiser by which it is known again
_HASHED = 64  # indices by which conditioning that is a function is


def sample_seeds(seed: int, indices: ArrayLike) -> NDArray[np.uint32]:
    """Return the seeds of samples, each a function of the request's seed and the sample's index.

    Sample ``i`` has the seed ``F(F(i ⊕ a) ⊕ b)``, with ``(a, b)`` the first two words of
    ``numpy.random.SeedSequence(seed)`` and ``F`` the finaliser of MurmurHash3 (Appleby 2011), a
    permutation of 32-bit words. So no two samples of a request share a seed; of 100,000 hashes to 32
    bits, all that torch's generators read on the CPU, some would.

    Args:
        seed: Seed of the request, at least 0.
        indices: Indices of the samples, in ``[0, 2³²)``.

    Raises:
        ValueError: If an index is outside.
    """
    index = np.asarray(indices, dtype=np.int64)
    if ((index < 0) | (index >= 2**32)).any():
        raise ValueError("indices of samples must be in [0, 2³²)")
    a, b = np.random.SeedSequence(seed).generate_state(2)
    return _mixed(_mixed(index.astype(np.uint32) ^ a) ^ b)


def _mixed(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    with np.errstate(over="ignore"):  # arithmetic modulo 2³²
        words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    mixed: NDArray[np.uint32] = words ^ (words >> np.uint32(16))
    return mixed


@torch.no_grad()
def sample_to(
    folder: Path | str,
    process: AffineSDE,
    denoiser: Model,
    n: int,
    event_shape: tuple[int, ...],
    *,
    seed: int,
    micro_batch: int = 64,
    conditioning: Mapping[str, Conditioning] | None = None,
    sigma_data: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    workers: Workers | None = None,
    progress: bool = False,
    **options: Any,  # noqa: ANN401  # checked by sample
) -> int:
    """Draw samples into a folder, sharing the work with the other ranks of ``torchrun``.

    Sample ``i`` is that of `sdekit.sample` with the seed ``sample_seeds(seed, i)``, in a batch of
    ``micro_batch``. Micro-batch ``k`` falls to rank ``k mod world``; those that the folder has are not
    drawn again. On the CPU a process computes with one thread while it samples, as sums may round
    differently with another number: cores are used by ranks.

    Args:
        folder: Where the samples go; `load` reads them.
        process: An affine process.
        denoiser: Callable ``(x_hat, sigma, **conditioning) -> x0_hat``, on the device, which draws no
            random numbers.
        n: Number of samples.
        event_shape: Shape of a sample.
        seed: Seed of the request, at least 0.
        micro_batch: Samples of a batch. The last one is filled up with copies.
        conditioning: By name, a tensor with an entry for each of the ``n`` samples, or a function of a
            tensor of indices that returns one with an entry for each.
        sigma_data: Standard deviation of the data. If neither it nor the denoiser says so, it is
            estimated once, by a call with the conditioning of the first micro-batch, and kept with the
            request; the call comes on top of ``steps``.
        device: Device of the samples; ``"cuda"`` is that of the local rank.
        dtype: Dtype of the solver's state, float32 or float64.
        workers: Who shares the work, if not the ranks of ``torchrun``: processes that do not hear each
            other, such as the jobs of an array.
        progress: Whether rank 0 shows a progress bar after two seconds.
        **options: ``method``, ``steps`` or ``rtol``, and the rest, as for `sdekit.sample`.

    Returns:
        The number of micro-batches that this process has drawn.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of its range, the denoiser does not take such samples, or the
            folder holds samples of another request.
        SolveError: If a state becomes non-finite, or an adaptive solve does not reach the end.
    """
    if str(options.get("method", "")).endswith(".json"):  # known again by what is in the file
        options["method"] = named_solver(options["method"])
    request = _Request(
        process=process,
        denoiser=denoiser,
        n=n,
        event_shape=tuple(event_shape),
        seed=seed,
        micro_batch=micro_batch,
        conditioning=dict(conditioning or {}),
        sigma_data=known_sigma_data(denoiser) if sigma_data is None else sigma_data,
        device=own_device(device),
        dtype=dtype,
        options=options,
    )
    folder = Path(folder)
    team_of = torchrun() if workers is None else nullcontext(workers)
    with _one_thread(request.device), team_of as team:
        asked = request.described()
        known = read_manifest(folder)
        if known is not None:
            check_same(folder, known, asked)  # before the denoiser is called
        asked["denoiser"] = request.fingerprint()
        asked["scale"] = request.scale() if known is None else known.get("scale")
        shards = Shards(folder, team.agree(asked if known is None else known))
        check_same(folder, shards.manifest, asked)
        drawn = _draw(shards, request, team, progress=progress)
        team.wait()
        if team.rank == 0 and not shards.missing():
            shards.sweep()
    return drawn


def load(folder: Path | str) -> Tensor:
    """Read the samples that `sample_to` has drawn into a folder, ``(n, *event)``.

    Raises:
        ValueError: If the folder holds no samples, or not all of them; the message says which
            micro-batches are missing.
    """
    manifest = read_manifest(Path(folder))
    if manifest is None:
        raise ValueError(f"{folder} holds no samples: there is no manifest")
    return Shards(Path(folder), manifest).load()


def _draw(shards: Shards, request: _Request, team: Workers, *, progress: bool) -> int:
    """Draw what the folder lacks of the share of this process."""
    mine = [unit for unit in team.share(range(shards.count)) if not shards.has(unit)]
    quiet = not progress or team.rank > 0
    with tqdm(total=len(mine), disable=quiet, delay=2, desc="micro-batches", leave=False) as bar:
        for unit in mine:
            try:
                samples, nfe = request.draw(unit, shards.manifest["scale"])
            except SolveError as error:
                first = unit * request.micro_batch
                raise SolveError(f"in the micro-batch from sample {first} on: {error}") from error
            shards.claim()  # only now: a request that cannot be met leaves nothing behind
            shards.write(unit, samples, nfe=nfe)
            bar.update()
    return len(mine)


@dataclass(frozen=True)
class _Request:
    """What `sample_to` is asked for."""

    process: AffineSDE
    denoiser: Model
    n: int
    event_shape: tuple[int, ...]
    seed: int
    micro_batch: int
    conditioning: dict[str, Conditioning]
    sigma_data: float | None
    device: torch.device
    dtype: torch.dtype
    options: dict[str, Any]

    def __post_init__(self) -> None:
        for name in ("n", "micro_batch"):
            check_steps(getattr(self, name), name)
        for size in self.event_shape:
            check_steps(size, "a size in event_shape")
        check_state(self._empty)
        _, several = read_seeds(self.seed)
        if several or self.seed < 0:
            raise ValueError(f"seed = {self.seed}; it must be one whole number, at least 0")
        if not isinstance(self.process, AffineSDE):
            raise TypeError(f"process is a {type(self.process).__name__}; it must be an affine one")
        for part in layers(self.denoiser):
            shared = (1, self.n) if isinstance(part, Wrapper) else (self.n,)
            for name, value in _told(part).items():
                if any(v.ndim and len(v) not in shared for v in tree_leaves(value)):
                    raise ValueError(
                        f"{name} of the denoiser is for another number of samples than the "
                        f"{self.n} that are asked for"
                    )
        for name, rows in self.conditioning.items():
            if not (isinstance(rows, Tensor) or callable(rows)):
                raise TypeError(
                    f"{name} is a {type(rows).__name__}; it must be a tensor with an entry for each "
                    "sample, or a function of their indices"
                )
            if isinstance(rows, Tensor) and rows.shape[:1] != (self.n,):
                raise ValueError(
                    f"{name} has shape {tuple(rows.shape)}; it needs an entry for each of {self.n} "
                    "samples"
                )

    def described(self) -> dict[str, Any]:
        """Return what can be said without calling the denoiser, as JSON."""
        times = np.linspace(self.process.t_min, self.process.T, 5)
        levels = [f"{level:.9g}" for level in self.process.on_host("sigma", times)]
        scales = [f"{scale:.9g}" for scale in self.process.on_host("scale", times)]
        return {
            "samples": self.n,
            "shape": list(self.event_shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "seed": int(self.seed),
            "micro_batch": self.micro_batch,
            "process": repr(self.process),
            "process_sigma": levels,
            "process_scale": scales,
            "options": {
                k: described(v)
                for k, v in sorted(self.options.items())
                if v is not None and k != "callback"
            },
            "wrappers": [_parameters(f) for f in layers(self.denoiser) if isinstance(f, Wrapper)],
            "told": {
                k: digest(v) for f in layers(self.denoiser) for k, v in _flat(_told(f)).items()
            },
            "sigma_data": self.sigma_data,
            "conditioning": {name: self._digest(name) for name in sorted(self.conditioning)},
            "versions": {name: version(name) for name in ("sdekit", "torch")},
        }

    def fingerprint(self) -> list[float]:
        """Return a few values of the denoiser, by which it is known again.

        Raises:
            ValueError: If it does not take such samples.
            SolveError: If it is not finite.
        """
        noise = IndependentNoise(sample_seeds(0, np.arange(self.micro_batch)).tolist())
        highest, lowest = trained_range(self.denoiser)
        level = min(max(1.0, lowest, self.process.sigma_min), highest, self.process.sigma_max)
        x_hat = level * noise.normal(self._empty)
        try:
            denoised = self._of(self._indices(0))(x_hat, x_hat.new_tensor(level))
            denoised = check_output(denoised, x_hat, "denoiser")
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            raise ValueError(
                f"the denoiser does not take samples of shape {self.event_shape}: {reason}"
            ) from error
        values = denoised.double().flatten().cpu()
        if not values.isfinite().all():
            raise SolveError(f"the denoiser returns values at σ = {level:g} that are not finite")
        rms = values.square().mean().sqrt()
        few = values[np.linspace(0, len(values) - 1, _PROBED).astype(np.int64)]
        return [float(rms), *(few / rms.clamp(min=1e-30)).tolist()]

    def scale(self) -> float:
        """Return the standard deviation of the data, estimated if nobody has said it."""
        if self.sigma_data is not None:
            return self.sigma_data
        problem = self.process.probability_flow(self._of(self._indices(0)))
        unbound = replace(methods()["ddim"].solver, coordinates=Preconditioned())
        solver, _ = fit_solver(unbound, problem, self._empty, None, gridded=False)
        assert isinstance(solver.coordinates, Preconditioned)
        assert solver.coordinates.sigma_data is not None
        return solver.coordinates.sigma_data

    def draw(self, unit: int, sigma_data: float) -> tuple[Tensor, float]:
        """Draw a micro-batch; return it, and the evaluations per sample."""
        indices = self._indices(unit)
        counted = _Counted(self._of(indices))
        samples = sample(
            self.process,
            counted,
            (self.micro_batch, *self.event_shape),
            seed=sample_seeds(self.seed, indices).tolist(),
            sigma_data=sigma_data,
            device=self.device,
            dtype=self.dtype,
            **self.options,
        )
        return samples, sum(counted.calls) / self.micro_batch

    @property
    def _empty(self) -> Tensor:
        shape = (self.micro_batch, *self.event_shape)
        return torch.empty(shape, device=self.device, dtype=self.dtype)

    def _indices(self, unit: int) -> Tensor:
        first = unit * self.micro_batch
        return torch.arange(first, first + self.micro_batch).clamp(max=self.n - 1)

    def _rows(self, name: str, indices: Tensor) -> Tensor:
        rows = self.conditioning[name]
        part = rows[indices.to(rows.device)] if isinstance(rows, Tensor) else rows(indices)
        if not isinstance(part, Tensor) or part.shape[:1] != indices.shape:
            raise ValueError(
                f"{name} must be a tensor with an entry for each sample, or a function that returns "
                f"one for a tensor of {len(indices)} indices; got {described(part)}"
            )
        return part.to(self.device)

    def _of(self, indices: Tensor) -> Model:
        """The denoiser of some samples."""
        denoiser = model_of(self.denoiser, indices.numpy())
        if not self.conditioning:
            return denoiser
        return Conditioned(
            denoiser, **{name: self._rows(name, indices) for name in self.conditioning}
        )

    def _digest(self, name: str) -> str:
        """Hash of a tensor, or of some values of a function."""
        rows = self.conditioning[name]
        if isinstance(rows, Tensor):
            return digest(rows)
        few = np.linspace(0, self.n - 1, min(self.n, _HASHED)).astype(np.int64)
        return digest(self._rows(name, torch.from_numpy(few)))


def _told(part: Model) -> dict[str, Any]:
    """Return what a denoiser itself, not what it wraps, knows of samples."""
    if isinstance(part, Wrapper):
        return part.told()
    return part.conditioning if isinstance(part, Conditioned) else {}


def _flat(told: dict[str, Any]) -> dict[str, Tensor]:
    return {f"{k} {i}": v for k, nest in told.items() for i, v in enumerate(tree_leaves(nest))}


def _parameters(wrapper: Wrapper) -> dict[str, Any]:
    """Return the numbers of a wrapper."""
    known = (int, float, str, tuple, StepScale)
    plain = {k: v for k, v in vars(wrapper).items() if isinstance(v, known)}
    return {"is": type(wrapper).__name__, **described(plain)}


class _Counted(Wrapper):
    """A denoiser that counts the samples it is given, also by its copies for some of them."""

    guides = False

    def __init__(self, func: Model) -> None:
        super().__init__(func)
        self.calls: list[int] = []

    def __call__(self, x_hat: Tensor, sigma: float | Tensor, /, **conditioning: object) -> Tensor:
        self.calls.append(len(x_hat) * evaluations(self.func, sigma))
        return self.func(x_hat, sigma, **conditioning)


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
