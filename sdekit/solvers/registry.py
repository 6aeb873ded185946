"""The registry: named samplers, each a scheme in coordinates on a grid, with its source."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..coordinates import Coordinates, Native, Noise
from ..grids import Grid, karras, uniform_t
from .langevin import PredictorCorrector
from .rk import DORMAND_PRINCE, EULER, HEUN, MIDPOINT, RK4, RungeKutta
from .scheme import Scheme
from .stochastic import Churn, EulerMaruyama, ReverseDiffusion


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


@dataclass(frozen=True)
class Method:
    """A registry entry; all but the names is read off the declarations of its parts.

    Attributes:
        name: Name in the registry.
        solver: What it is made of.
        source: Paper and equation or algorithm.
    """

    name: str
    solver: Solver
    source: str

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
        return type(self.solver.coordinates).__name__

    def row(self) -> tuple[str, ...]:
        """Return the entry as the cells of a table row, under `COLUMNS`."""
        scheme = self.solver.scheme
        orders = (scheme.order, scheme.strong_order, scheme.weak_order)
        return (
            self.name,
            self.coordinates,
            self.solver.grid.__name__,  # type: ignore[attr-defined]
            *("–" if order is None else f"{order:g}" for order in orders),
            str(scheme.nfe_per_step),
            self.noise,
            "yes" if scheme.adaptive else "no",
            self.source,
        )


COLUMNS = (
    "method",
    "coordinates",
    "grid",
    "order",
    "strong",
    "weak",
    "NFE/step",
    "noise",
    "adaptive",
    "source",
)


class UnknownMethodError(ValueError, KeyError):
    """A name that is not in the registry: a bad value to a solve, a missing key to a mapping."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry(Mapping[str, Method]):
    """The methods by name; printing it shows the table."""

    def __init__(self, methods: tuple[Method, ...]) -> None:
        self._methods = {method.name: method for method in methods}

    def __getitem__(self, name: str) -> Method:
        if name not in self._methods:
            near = difflib.get_close_matches(str(name), self._methods, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
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
        rows = [COLUMNS, *(method.row() for method in self._methods.values())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


# Tableau, its source, and that of the sampler that it is in noise coordinates.
_TABLEAUS = {
    "euler": (EULER, "Euler 1768", "DDIM: Song, Meng & Ermon 2021, eq. 12 with σ = 0"),
    "heun": (HEUN, "Heun 1900", "Karras et al. 2022, alg. 1"),
    "midpoint": (MIDPOINT, "Runge 1895", "Runge 1895"),
    "rk4": (RK4, "Kutta 1901", "Kutta 1901"),
    "dopri5": (
        DORMAND_PRINCE,
        "Dormand & Prince 1980; error of Shampine 1986",
        "Dormand & Prince 1980; error of Shampine 1986",
    ),
}

_METHODS = Registry(
    (
        *(
            Method(name, Solver(RungeKutta(tableau), Noise(), karras), source)
            for name, (tableau, _, source) in _TABLEAUS.items()
        ),
        *(
            Method(f"{name}_t", Solver(RungeKutta(tableau), Native(), uniform_t), source)
            for name, (tableau, source, _) in _TABLEAUS.items()
        ),
        Method(
            "edm_sde",
            Solver(Churn(RungeKutta(HEUN)), Noise(), karras),
            "Karras et al. 2022, alg. 2; table 5, ImageNet-64",
        ),
        Method(
            "euler_maruyama",
            Solver(EulerMaruyama(), Noise(), karras),
            "Maruyama 1955, in the unscaled state",
        ),
        Method(
            "euler_maruyama_t",
            Solver(EulerMaruyama(), Native(), uniform_t),
            "Song et al. 2021, app. D",
        ),
        Method(
            "reverse_diffusion",
            Solver(ReverseDiffusion(), Native(), uniform_t),
            "Song et al. 2021, eq. 46–48",
        ),
        Method(
            "pc",
            Solver(PredictorCorrector(ReverseDiffusion()), Native(), uniform_t),
            "Song et al. 2021, alg. 4–5",
        ),
        Method(
            "pc_euler_maruyama",
            Solver(PredictorCorrector(EulerMaruyama()), Native(), uniform_t),
            "Song et al. 2021, alg. 4–5, with Euler–Maruyama",
        ),
    )
)


def methods() -> Registry:
    """Return the registered methods, by name; ``print(sdekit.methods())`` shows the table."""
    return _METHODS
