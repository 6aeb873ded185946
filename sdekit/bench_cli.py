"""The command ``sdekit bench``: experiments, and what is done with their results."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from .bench.compare import Comparison, compare
from .bench.experiment import (
    SHORT,
    Experiment,
    UserModel,
    around,
    parse_budgets,
    quick,
    read_experiment,
)
from .bench.export import FORMATS, export
from .bench.laboratory import collect, run_experiment
from .bench.measurements import Measurement, Results, method_label
from .bench.results_file import read_results, write_results
from .bench.store import Store
from .suites_cli import suite
from .terminal import console, integers, refuse, words
from .workers import Workers, torchrun

_EXPERIMENTS = Path(__file__).parent / "bench" / "experiments"
_SHOWN = 30  # lines of a comparison

# What is tried on a user's network: what has been the best of its kind somewhere, on the grids where.
_FOR_MODELS = Experiment(
    methods=(
        "bayesian_adams",
        "adams2",
        "adams3",
        "dpmpp_2m",
        "dpmpp_2m@karras",
        "unipc_bh2_3",
        "unipc_bh2_3@karras",
        "lms4",
        "heun",
        "ddim@karras",
    ),
    budgets=parse_budgets("5:80"),
    samples=16,
)

bench_app = typer.Typer(invoke_without_command=True)
bench_app.command("suite")(suite)


@bench_app.callback()
def bench(
    context: typer.Context,
    config: Annotated[
        str,
        typer.Option(
            help="An experiment: a TOML file, or one that comes along: "
            f"{', '.join(path.stem for path in sorted(_EXPERIMENTS.glob('*.toml')))}."
        ),
    ] = "default",
    problems: Annotated[str, typer.Option(help="As in mixture16d,digits.")] = "",
    methods: Annotated[
        str,
        typer.Option(
            help="Names of 'sdekit list', my.module:solver, or others' of 'sdekit list --peers', as in "
            "'heun,dpmpp_2m@karras,azula *'."
        ),
    ] = "",
    nfe: Annotated[str, typer.Option(help="Budgets, as in 10,20,40 or 5:100.")] = "",
    at: Annotated[
        int | None, typer.Option(help="Which method at this budget? Measures around it.", min=2)
    ] = None,
    target: Annotated[float | None, typer.Option(help="Which method for this error?")] = None,
    rtol: Annotated[
        str, typer.Option(help="Tolerances of adaptive methods, as in 1e-3,1e-6.")
    ] = "",
    metrics: Annotated[str, typer.Option(help="As in rms,w2; see the documentation.")] = "",
    samples: Annotated[
        int | None, typer.Option(help="Number of start states, for errors along paths.")
    ] = None,
    law_samples: Annotated[
        int | None, typer.Option(help="Number of start states, for errors of laws.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of repetitions, as in 0,1,2.")] = "",
    denoiser: Annotated[
        str,
        typer.Option(
            help="Your own network: package.module:function, which takes nothing and returns a "
            "denoiser, as in sdekit:load_digits_denoiser; or a folder of a diffusers pipeline."
        ),
    ] = "",
    process: Annotated[
        str, typer.Option(help="What it was trained under: edm, vp, …; if left out, what it says.")
    ] = "",
    shape: Annotated[str, typer.Option(help="Shape of its samples, as in 3,32,32.")] = "",
    dtype: Annotated[str, typer.Option(help="float64 or float32, of its states and weights.")] = (
        "float64"
    ),
    device: Annotated[str, typer.Option(help="Where it is solved.")] = "cpu",
    few: Annotated[bool, typer.Option("--quick", help="Fewer samples and budgets.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes on this machine.", min=1)] = 1,
    shard: Annotated[
        str, typer.Option(help="Part of the experiment, as in 3/16: for the jobs of an array.")
    ] = "",
    formats: Annotated[
        str, typer.Option("--export", help=f"Tables as files, too: {', '.join(FORMATS)}.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder of the results.", file_okay=False)] = Path(
        "results/bench"
    ),
) -> None:
    """Measure error against network evaluations: tables, pictures, an interactive page.

    Goes on where it was stopped: what the folder has is not measured again. Ranks of torchrun share the
    experiment.
    """
    if context.invoked_subcommand is not None:
        return
    # States of a few kilobytes: more threads cost several times what they give.
    torch.set_num_threads(1)
    try:
        if target is not None and not 0 < target < math.inf:
            raise ValueError(f"--target {target}: an error to reach must be positive and finite")
        experiment = _experiment(config)
        if denoiser:
            size = tuple(integers("--shape", shape))
            experiment = replace(
                experiment if config != "default" else _FOR_MODELS,
                title=f"{denoiser}: error against network evaluations",
                problems=("model",),
                models={"model": UserModel(denoiser, process, size, dtype, device)},
            )
        elif process or shape or dtype != "float64" or device != "cpu":
            raise ValueError(
                "--process, --shape, --dtype and --device are about a network; name it by --denoiser"
            )
        changes: dict[str, Any] = {
            "problems": tuple(SHORT.get(name, name) for name in words(problems)),
            "methods": words(methods),
            "budgets": parse_budgets(nfe) if nfe else around(at) if at else (),
            "rtols": _numbers("--rtol", rtol),
            "metrics": words(metrics),
            "samples": samples,
            "law_samples": law_samples,
            "seeds": tuple(integers("--seeds", seeds)),
        }
        experiment = replace(
            experiment, **{k: v for k, v in changes.items() if v not in ((), None)}
        )
        if few:
            experiment = quick(experiment, at)
        unknown = set(words(formats)) - set(FORMATS)
        if unknown:
            raise ValueError(
                f"--export takes {', '.join(FORMATS)}; got {', '.join(sorted(unknown))}"
            )
        if at is not None and at not in experiment.budgets:
            raise ValueError(f"--at {at} is not among the budgets of --nfe")
        results = _run(experiment, out, jobs, shard)
    except typer.Exit:  # a RuntimeError to Python
        raise
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        refuse(error)
    _report(results, out, words(formats), at, target)


def _run(experiment: Experiment, out: Path, jobs: int, shard: str) -> Results:
    """Run what falls to this process; only the first of many comes back."""
    if shard:
        workers = _workers(shard)
        run_experiment(experiment, out, jobs=jobs, workers=workers, progress=True)
        typer.echo(f"part {shard} is in {out}; without --shard the command reports on all parts")
        raise typer.Exit
    with torchrun() as team:
        results = run_experiment(experiment, out, jobs=jobs, workers=team, progress=team.rank == 0)
        team.wait()
        if team.rank > 0:
            raise typer.Exit
        return collect(experiment, out) if team.world > 1 else results


def _report(
    results: Results, out: Path, formats: Iterable[str], at: int | None, target: float | None
) -> None:
    # Not above: matplotlib takes longer to import than most commands run.
    from .bench.html import write_html
    from .bench.pictures import answer_picture, write_pictures
    from .bench.tables import print_results

    screen = console()
    print_results(results, screen, budget=at, target=target)
    written = [out / "results.json"]
    write_results(results, written[0])
    written += write_pictures(results, out)
    if at is not None:
        for problem in results.problems:
            written += answer_picture(results, problem, at, out)
    try:
        for form in formats:
            written += export(results, form, out)
        write_html(results, out / "report.html")
        written.append(out / "report.html")
    except ImportError as error:  # of the extra: the rest is there
        typer.echo(f"note: {error}", err=True)
    typer.echo("\n".join(map(str, written)))


@bench_app.command("diff")
def diff(
    before: Annotated[Path, typer.Argument(help="A folder of results, or a results.json.")],
    after: Annotated[Path, typer.Argument(help="Another.")],
    rtol: Annotated[
        float, typer.Option(help="Ratio less one up to which values are the same.", min=0.0)
    ] = 1e-6,
) -> None:
    """Show what moved from one set of results to another; the exit code is 1 if anything did."""
    try:
        (old, floors), (new, more) = _read(before), _read(after)
        both = {key: min(floors.get(key, floor), floor) for key, floor in more.items()}
        found = compare(old, new, rtol=rtol, floors=both)
    except (OSError, ValueError) as error:
        refuse(error)
    screen = console()
    if found.changes:
        screen.print(_changes(found))
    screen.print(
        f"{found.compared} values in both: {len(found.changes)} moved by more than {rtol:.1e}; "
        f"{len(found.missing)} are missing in {after}, {len(found.added)} new there.",
        soft_wrap=True,
    )
    raise typer.Exit(0 if found.same else 1)


def _changes(found: Comparison) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("problem", "method", "effort", "seed", "metric", "before", "after", "ratio"):
        table.add_column(column, overflow="fold")
    for change in found.changes[:_SHOWN]:
        setting = change.setting
        effort = f"{setting.budget}" if setting.rtol is None else f"rtol {setting.rtol:.0e}"
        table.add_row(
            setting.problem,
            method_label(setting.method, setting.grid),
            effort,
            f"{setting.seed}",
            change.metric,
            *("failed" if v is None else f"{v:.3e}" for v in (change.before, change.after)),
            f"{change.ratio:.3g}",
        )
    if len(found.changes) > _SHOWN:
        table.add_row(f"… {len(found.changes) - _SHOWN} more")
    return table


@bench_app.command("merge")
def merge(
    out: Annotated[Path, typer.Argument(help="The folder that gets all results.")],
    folders: Annotated[list[Path], typer.Argument(help="Folders of shards.")],
) -> None:
    """Bring the results of shards in folders of their own together."""
    try:
        added = Store(out).merge(Store(folder) for folder in folders)
    except (OSError, ValueError) as error:
        refuse(error)
    typer.echo(f"{added} measurements added to {out}")


def _read(path: Path) -> tuple[list[Measurement], dict[tuple[str, str], float]]:
    """Read a folder or a file: its measurements, and floors by problem and metric."""
    if path.is_dir():
        store = Store(path)
        measurements = list(store.measurements().values())
        if not measurements:
            raise ValueError(f"there are no results in {path}")
        cards = list(store.cards().values())
    else:
        results = read_results(path)
        measurements, cards = list(results.measurements), list(results.problems.values())
    return measurements, {
        (card.name, metric): floor for card in cards for metric, floor in card.floors.items()
    }


def _experiment(name: str) -> Experiment:
    known = {path.stem: path for path in _EXPERIMENTS.glob("*.toml")}
    if name not in known and not name.endswith(".toml"):
        raise ValueError(
            f"--config takes a TOML file, or one of {', '.join(sorted(known))}; got {name!r}"
        )
    return read_experiment(known.get(name, Path(name)))


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words(text))
    except ValueError:
        raise ValueError(f"{option} takes numbers, separated by commas; got {text!r}") from None


def _workers(shard: str) -> Workers:
    rank, _, world = shard.partition("/")
    if not (rank.isdecimal() and world.isdecimal() and 1 <= int(rank) <= int(world)):
        raise ValueError(f"--shard takes which part of how many, as in 3/16; got {shard!r}")
    return Workers(int(rank) - 1, int(world))
