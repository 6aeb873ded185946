"""The command ``sdekit sample``: samples of a model into a folder, by one process or many."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from .cli_models import PROCESSES, NamedModel, load_model
from .inputs import default_method
from .output import check_pictured, write_npz, write_png
from .parallel import sample_to
from .processes import EDM
from .shards import Shards, read_manifest
from .solution import SolveError
from .solvers.registry import did_you_mean, methods
from .terminal import console, integers, refuse
from .workers import Workers, own_device, torchrun
from .wrapper import is_guided

FORMATS = ("safetensors", "npz", "png")
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def sample(
    model: Annotated[
        str,
        typer.Option(
            help="'digits', the network that comes along; package.module:function, which takes nothing "
            "and returns a denoiser; or a folder of a diffusers pipeline."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the samples.")],
    steps: Annotated[int | None, typer.Option(help="Number of steps.")] = None,
    rtol: Annotated[float | None, typer.Option(help="Tolerance, instead of steps.")] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", help="Number of samples.")] = 64,
    method: Annotated[
        str, typer.Option(help="One of those of 'sdekit list'; if left out, the default.")
    ] = "",
    eta: Annotated[
        float | None, typer.Option(help="Stochasticity of a method of the reverse SDE.")
    ] = None,
    process: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(PROCESSES)}; if left out, that which the model was trained under, or edm "
            "if it does not say."
        ),
    ] = "",
    weights: Annotated[
        Path | None,
        typer.Option(help="A checkpoint for the model's network: a state dictionary."),
    ] = None,
    shape: Annotated[
        str, typer.Option(help="Shape of a sample, as in 3,32,32, if the model does not say it.")
    ] = "",
    class_labels: Annotated[
        str, typer.Option(help="Classes, taken in turn by the samples, as in 0,1,2.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the request.")] = 0,
    batch: Annotated[int, typer.Option(help="Samples of a micro-batch.")] = 64,
    device: Annotated[str, typer.Option(help="Device, such as cpu, cuda or cuda:1.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32 or float64: of the solver's state.")
    ] = "float32",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="safetensors, a file for each micro-batch; npz or png, one file beside them.",
        ),
    ] = "safetensors",
) -> None:
    """Draw samples from a model; go on where it was stopped, alone or under torchrun."""
    try:
        options = _options(method, steps, rtol, eta)
        place = _device(device)
        _known("process", process or "edm", PROCESSES)
        _known("format", form, FORMATS)
        _known("dtype", dtype, _DTYPES)
        labels = integers("--class-labels", class_labels)
        given = integers("--shape", shape)
        found = load_model(model, weights, place)
        event_shape = _event_shape(found, given)
        options["method"] = method or default_method(
            flow=eta is None,
            affine=True,
            adaptive=rtol is not None,
            eta=0.0 if eta is None else eta,
            guided=is_guided(found.denoiser),
        )
        if form == "png":
            check_pictured(event_shape)
        with torchrun() as team:
            begin = time.perf_counter()
            sample_to(
                out,
                PROCESSES[process]() if process else found.process or EDM(),
                found.denoiser,
                samples,
                event_shape,
                seed=seed,
                micro_batch=batch,
                conditioning={"class_labels": lambda i: _cycled(labels, i)} if labels else None,
                device=place,
                dtype=_DTYPES[dtype],
                progress=True,
                **options,
            )
            if team.rank == 0:
                seconds = time.perf_counter() - begin
                _report(out, form, labels, team, f"{options['method']}, {model}", seconds)
    except SolveError as error:
        refuse(error, 1)
    except (OSError, TypeError, ValueError) as error:
        refuse(error)
    except Exception as error:
        # The model is not ours: a network may raise anything, as out of memory.
        refuse(f"{type(error).__name__}: {error}", 1)


def _report(
    out: Path, form: str, labels: list[int], team: Workers, title: str, seconds: float
) -> None:
    """Write the samples in the form that is asked for, and say what was done."""
    manifest = read_manifest(out)
    assert manifest is not None
    shards = Shards(out, manifest)
    files = f"{shards.path(0)}" + (f" and {shards.count - 1} more" if shards.count > 1 else "")
    if form != "safetensors":
        written, drawn = out / f"samples.{form}", shards.load()
        if form == "png":
            write_png(drawn, written, columns=len(labels) or None)
        else:
            more = {"class_labels": _cycled(labels, torch.arange(len(drawn)))} if labels else {}
            write_npz(drawn, written, **more)
        files = f"{written}, {files}"
    processes = f"{team.world} process{'es' if team.world > 1 else ''}"
    screen = console()
    screen.print(f"[bold]{title}[/bold], {manifest['process']}", highlight=False)
    screen.print(
        f"{shards.samples} samples of shape {tuple(manifest['shape'])}, {shards.nfe():g} network "
        f"evaluations each; {seconds:.1f} s, {processes}",
        highlight=False,
    )
    screen.print(files, highlight=False, soft_wrap=True)


def _options(
    method: str, steps: int | None, rtol: float | None, eta: float | None
) -> dict[str, Any]:
    if (steps is None) == (rtol is None):
        raise ValueError("give one of --steps, as in --steps 20, and --rtol, as in --rtol 1e-3")
    if method:
        methods()[method]  # refuses a name that there is not
    return {"method": method, "steps": steps, "rtol": rtol, "eta": eta}


def _device(name: str) -> torch.device:
    try:
        device = own_device(name)
        torch.zeros(1, device=device).numpy(force=True)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ValueError(f"no device {name!r} here: {reason[0] if reason else error!r}") from None
    return device


def _known(what: str, name: str, known: Any) -> None:  # noqa: ANN401  # a collection of names
    if name not in known:
        hint = did_you_mean(name, known)
        raise ValueError(f"unknown {what} {name!r}; {hint}there is {', '.join(known)}")


def _event_shape(found: NamedModel, given: list[int]) -> tuple[int, ...]:
    if given:
        return tuple(given)
    if found.event_shape is None:
        raise ValueError(
            "the model does not say which shape its samples have (an attribute event_shape would); "
            "give --shape, as in --shape 3,32,32"
        )
    return found.event_shape


def _cycled(labels: list[int], indices: Tensor) -> Tensor:
    return torch.tensor(labels)[indices % len(labels)]
