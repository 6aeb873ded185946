"""The command ``sdekit bench suite``: the large comparisons with other packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer

from .bench.experiment import parse_budgets
from .bench.problems import check_problem_name
from .bench.suites.cells import CellStore
from .bench.suites.files import write_sdes, write_suite, write_tolerances
from .bench.suites.sde import EXACT, SdeCell, SdeConfig, run_sdes
from .bench.suites.sde import QUICK as QUICK_SDES
from .bench.suites.sde_report import print_sde_report
from .bench.suites.suite import HEATS, SuiteConfig, SuiteStore, run_suite
from .bench.suites.suite_report import print_suite_report
from .bench.suites.tolerance import QUICK as QUICK_TOLERANCES
from .bench.suites.tolerance import ToleranceCell, ToleranceConfig, run_tolerances
from .bench.suites.tolerance_report import print_tolerance_report
from .solvers.registry import methods as registered
from .terminal import console, refuse, words
from .workers import torchrun

ConfigT = TypeVar("ConfigT", SuiteConfig, SdeConfig, ToleranceConfig)

SUITES = ("ode", "adaptive", "sde")


def suite(
    name: Annotated[
        str,
        typer.Argument(
            help="'ode': all deterministic methods against those of diffusers and azula (hours). "
            "'adaptive': the cost of an error, against torchdiffeq, scipy and DPM-Solver (an hour). "
            "'sde': the law of the samples of all stochastic methods, against diffusers, azula and "
            "torchsde (half an hour)."
        ),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples and budgets.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results; results/suite, results/adaptive or results/sde.",
            file_okay=False,
        ),
    ] = None,
    problems: Annotated[str, typer.Option(help="Some problems only, as in mixture2d,digits.")] = "",
    methods: Annotated[
        str,
        typer.Option(help="Of 'adaptive': methods that are measured anew, as in dopri5; or all."),
    ] = "",
    nfe: Annotated[
        str, typer.Option(help="Of 'ode' and 'sde': budgets of evaluations, as in 10,20,40.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the start states.")] = 0,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Whether other packages are run.")
    ] = True,
) -> None:
    """Compare all methods with other packages; go on where it was stopped, alone or under torchrun."""
    # States of a few kilobytes: more threads cost several times what they give.
    torch.set_num_threads(1)
    if name not in SUITES:
        refuse(f"unknown suite {name!r}; there is {', '.join(map(repr, SUITES))}")
    if name == "adaptive":
        if nfe:
            refuse("--nfe goes without the suite 'adaptive', which runs over tolerances")
        folder = out or Path("results/adaptive")
        _tolerances(quick, folder, words(problems), words(methods), seed, peers)
        return
    if methods:
        refuse(f"--methods goes without the suite {name!r}, which runs all")
    missing = [package for package in ("diffusers", "azula") if find_spec(package) is None]
    if peers and missing:
        refuse(
            f"the suite runs {' and '.join(missing)}, not installed here: pip install "
            "'sdekit[bench]', or leave the peers out by --no-peers"
        )
    run, default = (_sdes, "results/sde") if name == "sde" else (_suite, "results/suite")
    run(quick, out or Path(default), problems, nfe, seed, peers)


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
    from .bench.suites.sde_plots import write_sde_plots  # not above: matplotlib takes its time

    config = QUICK_SDES if quick else SdeConfig()
    try:
        config = replace(
            config,
            problems=words(problems) or config.problems,
            budgets=parse_budgets(nfe) if nfe else config.budgets,
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
    from .bench.suites.suite_plots import write_suite_plots  # as above

    config = SuiteConfig(seed=seed, peers=peers)
    if quick:
        config = replace(config, budgets=HEATS, samples=8)
    try:
        chosen = words(problems) or config.problems
        for problem in chosen:
            check_problem_name(problem)
        config = replace(
            config, problems=chosen, budgets=parse_budgets(nfe) if nfe else config.budgets
        )
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
