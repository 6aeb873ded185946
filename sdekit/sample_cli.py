"""The command ``sdekit sample``: samples of a model into a folder, by one process or many."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from .calibrated import CalibratedSolver, load_solver
from .cli_models import PROCESSES, check_known, find_device, load_model, shape_of
from .inputs import default_method, named_solver
from .output import check_pictured, write_npz, write_png
from .parallel import sample_to
from .processes import EDM
from .shards import Shards, read_manifest
from .solution import SolveError
from .terminal import console, integers, refuse
from .workers import Workers, torchrun
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
        str,
        typer.Option(
            help="One of those of 'sdekit list', or the file of a calibrated solver, solver.json, "
            "which needs no --steps; if left out, the default."
        ),
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
        place = find_device(device)
        check_known("process", process or "edm", PROCESSES)
        check_known("format", form, FORMATS)
        check_known("dtype", dtype, _DTYPES)
        labels = integers("--class-labels", class_labels)
        given = integers("--shape", shape)
        found = load_model(model, weights, place)
        event_shape = shape_of(found, given)
        options["method"] = method or default_method(
            flow=eta is None,
            affine=True,
            adaptive=rtol is not None,
            eta=0.0 if eta is None else eta,
            guided=is_guided(found.denoiser),
        )
        if form == "png":
            check_pictured(event_shape)
        if method.endswith(".json"):
            _warn_of_another(method, found.denoiser, event_shape, labels, place)
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
    # Refuses a name that there is not.
    solver = named_solver(method) if method else None
    own = isinstance(solver, CalibratedSolver) and rtol is None
    if not own and (steps is None) == (rtol is None):
        raise ValueError("give one of --steps, as in --steps 20, and --rtol, as in --rtol 1e-3")
    return {"method": method, "steps": steps, "rtol": rtol, "eta": eta}


def _warn_of_another(
    method: str,
    denoiser: Callable[..., Tensor],
    event_shape: tuple[int, ...],
    labels: list[int],
    place: torch.device,
) -> None:
    solver = load_solver(method)
    if solver.scheme.event_shape != event_shape or not solver.fingerprint:
        return  # a solve refuses the shape; without values no model is known again
    # Of a conditional network a class is as good as another: it was fitted to one of them.
    models: list[Callable[..., Tensor]] = [
        partial(denoiser, class_labels=torch.tensor([c], device=place)) for c in sorted(set(labels))
    ] or [denoiser]
    if not any(solver.recognises(model, place) for model in models):
        console().print(
            f"[yellow]warning[/yellow]: {method} was fitted to another model; its steps may be far "
            "from the best for this one",
            highlight=False,
            soft_wrap=True,
        )


def _cycled(labels: list[int], indices: Tensor) -> Tensor:
    return torch.tensor(labels)[indices % len(labels)]
