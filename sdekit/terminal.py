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


def integers(option: str, text: str) -> list[int]:
    """Parse a comma-separated list of whole numbers.

    Raises:
        ValueError: If it is something else; the option is named.
    """
    try:
        return [int(word) for word in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"{option} takes whole numbers, as in 1,8,8; got {text!r}") from None


def refuse(message: object, code: int = 2) -> NoReturn:
    """End with one line, and the exit code of bad input."""
    typer.echo(f"error: {' '.join(str(message).split())}", err=True)
    raise typer.Exit(code) from None
