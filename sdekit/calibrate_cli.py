"""The command ``sdekit calibrate``: a solver fitted to a model, into a file."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from .calibrate import calibrate as fit
from .calibrate_noise import calibrate_noise
from .calibrated import CalibratedSolver
from .calibration.search import draw
from .cli_models import PROCESSES, check_known, find_device, load_model, shape_of
from .denoisers import Conditioned, trained_range
from .inputs import check_steps
from .processes import EDM
from .solution import SolveError
from .terminal import console, integers, refuse


def calibrate(
    model: Annotated[
        str,
        typer.Option(
            help="'digits', the network that comes along; package.module:function, which takes nothing "
            "and returns a denoiser; or a folder of a diffusers pipeline."
        ),
    ],
    steps: Annotated[int, typer.Option(help="Number of steps of the solver.")],
    out: Annotated[Path, typer.Option(help="File of the solver, as in solver.json.")],
    samples: Annotated[
        int | None,
        typer.Option("--samples", "-n", help="Pilot samples: 256 if left out, 4096 with --noise."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the pilot samples.")] = 0,
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
        str, typer.Option(help="Classes, drawn by the pilot samples, as in 0,1,2.")
    ] = "",
    sigma_data: Annotated[
        float | None,
        typer.Option(help="Standard deviation of the data, if the model does not say it."),
    ] = None,
    sigma_max: Annotated[
        float | None, typer.Option(help="Highest noise level, if not that of process and model.")
    ] = None,
    sigma_min: Annotated[
        float | None, typer.Option(help="Lowest noise level, if not that of process and model.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device, such as cpu, cuda or cuda:1.")] = "cpu",
    noise: Annotated[
        bool, typer.Option("--noise", help="Fit to the reverse SDE, not to the flow.")
    ] = False,
) -> None:
    """Fit a solver of few steps to a model; 'sdekit sample --method solver.json' takes it."""
    try:
        place = find_device(device)
        check_known("process", process or "edm", PROCESSES)
        labels, given = integers("--class-labels", class_labels), integers("--shape", shape)
        if out.suffix != ".json":
            raise ValueError(f"--out {out}: a solver's file ends in .json, by which it is known")
        out.parent.mkdir(parents=True, exist_ok=True)  # now, not after minutes of work
        found = load_model(model, weights, place)
        denoiser, event_shape = found.denoiser, shape_of(found, given)
        chosen = PROCESSES[process]() if process else found.process or EDM()
        pilots = check_steps((4096 if noise else 256) if samples is None else samples, "--samples")
        options: dict[str, Any] = {"shape": event_shape, "device": place}
        if labels:
            # What the report is about comes on top: a quarter of the samples, or half of them.
            count = math.ceil((1.5 if noise else 1.25) * pilots)
            drawn = torch.randint(
                len(labels), (count,), generator=torch.Generator().manual_seed(seed)
            )
            told = torch.tensor(labels)[drawn].to(place)
            denoiser = Conditioned(denoiser, class_labels=told)
            high = sigma_max or min(chosen.sigma_max, trained_range(denoiser)[0])
            std = float(chosen.on_host("std", chosen.on_host("time", high)))
            options = {"x": draw(std, (count, *event_shape), seed, place)}
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the report says them
            options |= {"samples": pilots, "seed": seed, "progress": True}
            options |= {"sigma_data": sigma_data, "sigma_max": sigma_max, "sigma_min": sigma_min}
            if noise:
                solver = calibrate_noise(chosen.reverse(denoiser, 1.0), steps, **options)
            else:
                solver = fit(chosen.probability_flow(denoiser), steps, **options)
        solver.save(out)
        _report(solver, out, f"{model}, {chosen!r}", time.perf_counter() - begin)
    except SolveError as error:
        refuse(error, 1)
    except (OSError, TypeError, ValueError) as error:
        refuse(error)
    except Exception as error:
        # The model is not ours: a network may raise anything, as out of memory.
        refuse(f"{type(error).__name__}: {error}", 1)


def _report(solver: CalibratedSolver, out: Path, title: str, seconds: float) -> None:
    report = solver.report
    table = Table("samples", "", "calibrated", report.default, "ratio", box=None, pad_edge=False)
    counts = {"fit": report.samples, "validation": report.validation, "test": report.test}
    for name, (own, default) in report.errors.items():
        ratio = f"{own / default:.2f}" if default else "–"
        table.add_row(name, str(counts[name]), f"{own:.2e}", f"{default:.2e}", ratio)
    screen = console()
    screen.print(f"[bold]{solver.steps} steps[/bold], {title}: {report.chosen}", highlight=False)
    screen.print(table)
    _, low, high = report.gain
    screen.print(
        f"{report.metric}; ratio on the test samples from {low:.2f} to {high:.2f} (95 %); "
        f"{report.nfe:.0f} network evaluations per pilot sample, {seconds:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
    if report.fell_back:
        screen.print("nothing better than the default was found, and it is kept", highlight=False)
    for warning in report.warnings:
        screen.print(f"[yellow]warning[/yellow]: {warning}", highlight=False, soft_wrap=True)
    screen.print(f"{out}", highlight=False, soft_wrap=True)
