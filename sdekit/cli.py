"""The command line: ``sdekit sample``, ``calibrate``, ``list``, ``bench`` and ``verify``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from .bench_cli import bench_app
from .calibrate_cli import calibrate
from .sample_cli import sample
from .solvers.registry import methods as registered
from .terminal import console
from .verify_cli import verify

app = typer.Typer(
    help="Solve the differential equations of diffusion models.",
    no_args_is_help=True,
    add_completion=False,
)
app.command()(sample)
app.command()(calibrate)
app.command()(verify)
app.add_typer(bench_app, name="bench")


@app.command("list")
def list_methods(
    peers: Annotated[
        bool, typer.Option("--peers", help="Samplers of other packages that 'bench' takes.")
    ] = False,
) -> None:
    """Show every method: what it is made of, its orders, its cost and its source."""
    out = console(120)
    if peers:
        out.print(_peers())
        return
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


def _peers() -> Table:
    """Return the table of the peers, by the names that ``bench --methods`` takes."""
    from .bench.peers import ODE_PEERS, PEERS, SDE_PEERS

    table = Table(box=None, pad_edge=False)
    for column in ("method", "solves", "NFE/step", "grids"):
        table.add_column(column, no_wrap=column == "method", overflow="fold")
    for peer in (*PEERS.values(), *SDE_PEERS.values()):
        kind = "flow" if peer.eta == 0 else "SDE"
        table.add_row(peer.name, kind, f"{peer.nfe_per_step}", ", ".join(peer.grids))
    for name in ODE_PEERS:
        table.add_row(name, "flow", "–", "adaptive")
    return table
