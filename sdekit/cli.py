"""The command line: ``sdekit sample``, ``sdekit list`` and ``sdekit bench``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer
from rich.table import Table

from .bench import Config, run_benchmark, write_results
from .bench.plots import write_plots
from .bench.problems import SUITES, check_problem_name
from .bench.report import print_report
from .bench.runner import QUICK
from .bench.suites.cells import CellStore
from .bench.suites.files import write_sdes, write_suite, write_tolerances
from .bench.suites.sde import EXACT, SdeCell, SdeConfig, run_sdes
from .bench.suites.sde import QUICK as QUICK_SDES
from .bench.suites.sde_plots import write_sde_plots
from .bench.suites.sde_report import print_sde_report
from .bench.suites.suite import HEATS, SuiteConfig, SuiteStore, run_suite
from .bench.suites.suite_plots import write_suite_plots
from .bench.suites.suite_report import print_suite_report
from .bench.suites.tolerance import QUICK as QUICK_TOLERANCES
from .bench.suites.tolerance import ToleranceCell, ToleranceConfig, run_tolerances
from .bench.suites.tolerance_report import print_tolerance_report
from .sample_cli import sample
from .solvers.registry import methods as registered
from .terminal import console, refuse, words
from .verify_cli import verify
from .workers import torchrun

ConfigT = TypeVar("ConfigT", SuiteConfig, SdeConfig, ToleranceConfig)

_SUITES = tuple(name for name in SUITES if name != "quick")

app = typer.Typer(
    help="Solve the differential equations of diffusion models.",
    no_args_is_help=True,
    add_completion=False,
)
app.command()(sample)
app.command()(verify)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in words(text))
    except ValueError:
        raise ValueError(f"--nfe takes whole numbers, as in 10,20,40; got {text!r}") from None
    if min(numbers, default=1) < 1:
        raise ValueError(f"--nfe: every budget must be at least 1, got {text!r}")
    return numbers


@app.command("list")
def list_methods() -> None:
    """Show every method: what it is made of, its orders, its cost and its source."""
    out = console(120)
    for title, columns, rows in registered().tables():
        table = Table(
            box=None, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left"
        )
        for column in columns:
            heading = column.replace(" ", "\n").replace("/", "/\n")
            table.add_column(heading, no_wrap=column != "source", overflow="fold")
        for row in rows:
            table.add_row(*row)
        out.print(table)
        out.print()


@app.command()
def bench(
    suite: Annotated[
        str,
        typer.Option(
            help="'ode': all deterministic methods against those of diffusers and azula (hours). "
            "'adaptive': the cost of an error, against torchdiffeq, scipy and DPM-Solver (an hour). "
            "'sde': the law of the samples of all stochastic methods, against diffusers, azula and "
            "torchsde (half an hour). All go on where they were stopped; ranks of torchrun share "
            "the problems."
        ),
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples and budgets.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results; results/bench, results/suite, results/adaptive or "
            "results/sde.",
            file_okay=False,
        ),
    ] = None,
    problems: Annotated[str, typer.Option(help="Some problems only, as in mixture2d,digits.")] = "",
    methods: Annotated[
        str,
        typer.Option(
            help="Other methods, as in heun,dopri5; or all. In the suite 'adaptive', these are "
            "measured anew. Not of the suites 'ode' and 'sde', which run all."
        ),
    ] = "",
    nfe: Annotated[str, typer.Option(help="Budgets of evaluations, as in 10,20,40.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the start states.")] = 0,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Whether a suite runs other packages.")
    ] = True,
) -> None:
    """Measure error against network evaluations: JSON, tables and pictures."""
    # States of a few kilobytes: more threads cost several times what they give.
    torch.set_num_threads(1)
    if suite == "adaptive":
        if nfe:
            refuse("--nfe goes without --suite adaptive, which runs over tolerances")
        folder = out or Path("results/adaptive")
        _tolerances(quick, folder, words(problems), words(methods), seed, peers)
        return
    if suite:
        if methods:
            refuse(f"--methods goes without --suite {suite}, which runs all")
        if suite not in _SUITES:
            refuse(f"unknown suite {suite!r}; there is {', '.join(map(repr, _SUITES))}")
        missing = [package for package in ("diffusers", "azula") if find_spec(package) is None]
        if peers and missing:
            refuse(
                f"the suite runs {' and '.join(missing)}, not installed here: pip install "
                "'sdekit[bench]', or leave the peers out by --no-peers"
            )
        run = _sdes if suite == "sde" else _suite
        run(
            quick,
            out or Path(f"results/{'sde' if suite == 'sde' else 'suite'}"),
            problems,
            nfe,
            seed,
            peers,
        )
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        refuse("without --suite there is nothing to share: run this without torchrun")
    out = out or Path("results/bench")
    config = QUICK if quick else Config()
    chosen = words(methods) or config.methods
    if chosen == ("all",):
        chosen = tuple(name for name, method in registered().items() if method.deterministic)
    try:
        config = replace(
            config,
            problems=words(problems) or config.problems,
            methods=chosen,
            budgets=_numbers(nfe) or config.budgets,
            seed=seed,
        )
    except ValueError as error:
        refuse(error)
    out.mkdir(parents=True, exist_ok=True)  # now, not after minutes of work
    results = run_benchmark(config, progress=True)
    print_report(results, console())
    written = out / "results.json"
    write_results(results, written)
    pictures = write_plots(results, out)
    typer.echo("\n".join(f"{path}" for path in (written, *pictures)))


def _share(config: ConfigT, run: Callable[[ConfigT, bool], object]) -> None:
    """Run the problems that fall to this rank of ``torchrun``; only the first rank comes back."""
    with torchrun() as team:
        run(replace(config, problems=tuple(team.share(config.problems))), team.rank == 0)
        team.wait()
        if team.rank > 0:
            raise typer.Exit


def _tolerances(
    quick: bool,
    out: Path,
    problems: tuple[str, ...],
    methods: tuple[str, ...],
    seed: int,
    peers: bool,
) -> None:
    """Run what is missing of the suite of adaptive methods and report on all of it."""
    config = QUICK_TOLERANCES if quick else ToleranceConfig()
    cells = out / "cells"
    if methods == ("all",):
        methods = tuple(
            name
            for name, method in registered().items()
            if method.deterministic and method.solver.scheme.adaptive
        )
    try:
        config = replace(
            config,
            problems=problems or config.problems,
            methods=methods or config.methods,
            seed=seed,
            peers=peers,
        )
    except ValueError as error:
        refuse(error)
    _share(config, lambda part, bar: run_tolerances(part, cells, anew=methods, progress=bar))
    store = CellStore(cells, ToleranceCell, samples=config.samples, seed=config.seed)
    print_tolerance_report(store.of(config.problems), console())
    written = out / "adaptive.json"
    write_tolerances(config, store, written)
    typer.echo(f"{written}")


def _sdes(quick: bool, out: Path, problems: str, nfe: str, seed: int, peers: bool) -> None:
    """Run what is missing of the suite of stochastic methods and report on all of it."""
    config = QUICK_SDES if quick else SdeConfig()
    try:
        config = replace(
            config,
            problems=words(problems) or config.problems,
            budgets=_numbers(nfe) or config.budgets,
            seed=seed,
            peers=peers,
        )
    except ValueError as error:
        refuse(error)
    _share(config, lambda part, bar: run_sdes(part, out / "cells", progress=bar))
    store = CellStore(out / "cells", SdeCell, samples=config.samples, seed=config.seed)
    cells = [c for c in store.of(config.problems) if c.group == EXACT or c.budget in config.budgets]
    print_sde_report(cells, console())
    written = out / "sde.json"
    write_sdes(config, cells, written)
    pictures = write_sde_plots(cells, out)
    typer.echo("\n".join(f"{path}" for path in (written, *pictures)))


def _suite(quick: bool, out: Path, problems: str, nfe: str, seed: int, peers: bool) -> None:
    """Run what is missing of the suite of deterministic methods and report on all of it."""
    config = SuiteConfig(seed=seed, peers=peers)
    if quick:
        config = replace(config, budgets=HEATS, samples=8)
    try:
        chosen = words(problems) or config.problems
        for problem in chosen:
            check_problem_name(problem)
        config = replace(config, problems=chosen, budgets=_numbers(nfe) or config.budgets)
    except ValueError as error:
        refuse(error)
    _share(config, lambda part, bar: run_suite(part, out / "cells", progress=bar))
    store = SuiteStore(out / "cells", config)
    cells = [cell for cell in store.of(config.problems) if cell.budget in config.budgets]
    print_suite_report(cells, console())
    written = out / "suite.json"
    write_suite(config, cells, written)
    pictures = write_suite_plots(cells, out)
    typer.echo("\n".join(f"{path}" for path in (written, *pictures)))
