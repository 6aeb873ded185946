"""What the commands share: how they print, read lists and refuse."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console


def console(width: int = 110) -> Console:
    """Return a console that does not squeeze tables into 80 columns in a pipe or a file."""
    found = Console()
    return found if found.is_terminal else Console(width=width)


def words(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list, each entry once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def refuse(message: object, code: int = 2) -> NoReturn:
    """End with one line, and the exit code of bad input."""
    typer.echo(f"error: {' '.join(str(message).split())}", err=True)
    raise typer.Exit(code) from None
