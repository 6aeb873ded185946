"""The registry: named samplers, each a scheme in coordinates on a grid, with its source."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

from ..citations import bibtex
from ..coordinates import Coordinates, Interpolated, Native
from ..spacing import Grid
from .scheme import Scheme


@dataclass(frozen=True)
class Solver:
    """A composed solver: a scheme, the coordinates it runs in, and its default grid.

    Attributes:
        scheme: The integrator.
        coordinates: The change of variables.
        grid: Grid taken when a solve is given a number of steps.
    """

    scheme: Scheme
    coordinates: Coordinates
    grid: Grid

    @property
    def deterministic(self) -> bool:
        """Whether it solves the probability flow, and so can be compared path by path."""
        return self.scheme.solves == "flow" and not self.scheme.stochastic


@dataclass(frozen=True)
class Method:
    """A registry entry; all but the names is read off the declarations of its parts.

    Attributes:
        name: Name in the registry.
        solver: What it is made of.
        source: Paper and equation or algorithm.
        works: Keys of what it rests on in `sdekit.citations.bibliography`.
    """

    name: str
    solver: Solver
    source: str
    works: tuple[str, ...] = ()

    def citation(self) -> str:
        """Return what to cite in BibTeX: the works that it rests on; without any, sdekit.

        Raises:
            ValueError: If one is not in the bibliography.
        """
        return bibtex(self.works or ("sdekit",))

    @property
    def noise(self) -> str:
        """Noise class: "none"; "additive" if affine processes only; else "any"."""
        scheme = self.solver.scheme
        if not scheme.stochastic:
            return "none"
        native = isinstance(self.solver.coordinates, Native)
        return "any" if native and not scheme.affine_only else "additive"

    @property
    def coordinates(self) -> str:
        """Name of the coordinates."""
        return coordinates_name(self.solver.coordinates)

    @property
    def deterministic(self) -> bool:
        """Whether it solves the probability flow, and so can be compared path by path."""
        return self.solver.deterministic

    @property
    def fixed(self) -> bool:
        """Whether it steps through a given grid; a method that does not needs a tolerance."""
        return self.solver.scheme.fixed

    def row(self) -> tuple[str, ...]:
        """Return the entry as the cells of a row, under `FLOW_COLUMNS` or `NOISE_COLUMNS`."""
        scheme = self.solver.scheme
        if self.deterministic:
            orders: tuple[float | None, ...] = (scheme.order, scheme.interior_order)
            kind = "no" if not scheme.adaptive else "yes" if self.fixed else "only"
        else:
            orders = (scheme.strong_order, scheme.weak_order)
            kind = self.noise
        return (
            self.name,
            self.coordinates,
            grid_name(self.solver.grid) if self.fixed else "–",
            *("–" if order is None else f"{order:g}" for order in orders),
            str(scheme.nfe_per_step),
            kind,
            self.source,
        )


def coordinates_name(coordinates: Coordinates) -> str:
    """Name of coordinates in tables, with the options that are set."""
    if isinstance(coordinates, Interpolated):
        inner, variable = map(coordinates_name, (coordinates.coordinates, coordinates.variable))
        return f"{inner} in {variable}"
    scale = getattr(coordinates, "sigma_data", None)
    return type(coordinates).__name__ + (f"({scale:g})" if scale is not None else "")


def grid_name(grid: Grid) -> str:
    """Name of a grid in tables, with the options that are set."""
    if isinstance(grid, partial):
        options = ", ".join(f"{key}={value:g}" for key, value in grid.keywords.items())
        return f"{grid_name(grid.func)}({options})"
    return getattr(grid, "__name__", type(grid).__name__)


_PARTS = ("method", "coordinates", "grid")
FLOW_COLUMNS = (*_PARTS, "order", "interior order", "NFE/step", "adaptive", "source")
NOISE_COLUMNS = (*_PARTS, "strong", "weak", "NFE/step", "noise", "source")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question for an error message about an unknown name, empty if none is close."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}? " if near else ""


class UnknownMethodError(ValueError, KeyError):
    """A name that is not in the registry: a bad value to a solve, a missing key to a mapping."""

    def __str__(self) -> str:
        return str(self.args[0])


class MethodTable(NamedTuple):
    """Methods of one kind as rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


class Registry(Mapping[str, Method]):
    """The methods by name; printing it shows their tables.

    Attributes:
        families: The methods by family.
    """

    def __init__(self, families: Mapping[str, tuple[Method, ...]]) -> None:
        self.families = families
        self._methods = {m.name: m for family in families.values() for m in family}

    def tables(self) -> tuple[MethodTable, MethodTable]:
        """Return the tables of deterministic and of stochastic methods."""
        rows = {
            kind: [method.row() for method in self.values() if method.deterministic == kind]
            for kind in (True, False)
        }
        return (
            MethodTable("deterministic", FLOW_COLUMNS, rows[True]),
            MethodTable("stochastic", NOISE_COLUMNS, rows[False]),
        )

    def __getitem__(self, name: str) -> Method:
        if name not in self._methods:
            hint = did_you_mean(str(name), self._methods)
            raise UnknownMethodError(
                f"unknown method {name!r}; {hint}sdekit.methods() lists all: "
                f"{', '.join(self._methods)}"
            )
        return self._methods[name]

    def __contains__(self, name: object) -> bool:
        return name in self._methods

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)

    def __repr__(self) -> str:
        return "\n\n".join(map(_text, self.tables()))


def _text(table: MethodTable) -> str:
    rows = [table.columns, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


@cache
def methods() -> Registry:
    """Return the registered methods, by name; ``print(sdekit.methods())`` shows the tables."""
    from . import catalogue  # made of the classes above

    families = {
        "sdekit's own": catalogue.own,
        "Published multistep samplers": catalogue.multistep,
        "Published one-step samplers": catalogue.one_step,
        "Runge–Kutta schemes": catalogue.runge_kutta,
        "Reverse SDEs": catalogue.stochastic,
        "Stochastic Runge–Kutta schemes": catalogue.runge_kutta_with_noise,
        "Adaptive stochastic samplers": catalogue.gotta_go_fast,
        "Flow with noise between": catalogue.flow_with_noise,
    }
    return Registry({name: tuple(family()) for name, family in families.items()})
