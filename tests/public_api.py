"""What sdekit exports, as text: a name a line, with what it is and what it takes.

    python tests/public_api.py

writes it to tests/public_api.txt: a change of the public interface is a change of that file.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).with_suffix(".txt")
MODULES = (
    "sdekit",
    "sdekit.adapters",
    "sdekit.adapters.levels",
    "sdekit.bench",
    "sdekit.citations",
    "sdekit.distributions",
    "sdekit.eta",
    "sdekit.grids",
    "sdekit.interop.k_diffusion",
    "sdekit.losses",
    "sdekit.parallel",
    "sdekit.solvers.tableaus",
    "sdekit.theory",
)


def names(module: ModuleType) -> list[str]:
    """Public names of a module: ``__all__``, or what is defined there and has no underscore."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            re.fullmatch("[A-Z0-9_]+", name)
            or (
                (inspect.isclass(value) or inspect.isroutine(value))
                and value.__module__ == module.__name__
            )
        )
    )


def exported() -> Iterator[tuple[str, object]]:
    """Every public name, with its module, and its value."""
    for module in map(importlib.import_module, MODULES):
        for name in names(module):
            yield f"{module.__name__}.{name}", getattr(module, name)


def parameters(value: object) -> str:
    """Names of the parameters, with ``/``, ``*`` and ``**`` as in a definition."""
    try:
        signature = inspect.signature(value)
    except ValueError:  # an exception's, which is C's
        return "(*args)"
    bare = [
        p.replace(annotation=p.empty, default=p.empty)
        for p in signature.parameters.values()
        if not p.name.startswith("_")
    ]
    return str(inspect.Signature(bare))


def line(name: str, value: object) -> str:
    """A name, what it is and what it takes."""
    if isinstance(value, ModuleType):
        return f"{name}: module"
    if not inspect.isclass(value) and not inspect.isroutine(value):
        return f"{name}: {type(value).__name__}"
    return f"{name}: {'class' if inspect.isclass(value) else 'function'} {parameters(value)}"


def listing() -> str:
    """The lines of all names."""
    return "".join(f"{line(name, value)}\n" for name, value in exported())


if __name__ == "__main__":
    FILE.write_text(listing(), encoding="utf-8")
