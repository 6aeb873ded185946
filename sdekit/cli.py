"""The command line: ``sdekit list`` and ``sdekit bench``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from .bench import Config, run_benchmark, write_results
from .bench.plots import write_plots
from .bench.report import print_report
from .bench.runner import QUICK
from .solvers.registry import COLUMNS, methods

app = typer.Typer(
    help="Solve the differential equations of diffusion models.",
    no_args_is_help=True,
    add_completion=False,
)


def _console() -> Console:
    """Return a console that does not squeeze tables into 80 columns in a pipe or a file."""
    console = Console()
    return console if console.is_terminal else Console(width=110)


def _words(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list, each entry once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise ValueError(f"--nfe takes whole numbers, as in 10,20,40; got {text!r}") from None


@app.command("list")
def list_methods() -> None:
    """Show every method: what it is made of, its orders, its cost and its source."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        table.add_column(column, no_wrap=column != "source", overflow="fold")
    for method in methods().values():
        table.add_row(*method.row())
    _console().print(table)


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples and budgets.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results.", file_okay=False)] = Path(
        "results/bench"
    ),
    problems: Annotated[str, typer.Option(help="Some problems only, as in mixture2d,digits.")] = "",
    methods: Annotated[str, typer.Option(help="Some methods only, as in heun,dopri5.")] = "",
    nfe: Annotated[str, typer.Option(help="Budgets of evaluations, as in 10,20,40.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the start states.")] = 0,
) -> None:
    """Measure error against network evaluations: JSON, tables and pictures."""
    config = QUICK if quick else Config()
    try:
        config = replace(
            config,
            problems=_words(problems) or config.problems,
            methods=_words(methods) or config.methods,
            budgets=_numbers(nfe) or config.budgets,
            seed=seed,
        )
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    out.mkdir(parents=True, exist_ok=True)  # now, not after minutes of work
    # States of a few kilobytes: more threads cost several times what they give.
    torch.set_num_threads(1)
    results = run_benchmark(config, progress=True)
    print_report(results, _console())
    written = out / "results.json"
    write_results(results, written)
    pictures = write_plots(results, out)
    typer.echo("\n".join(f"{path}" for path in (written, *pictures)))
