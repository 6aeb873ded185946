"""The names of methods that a benchmark takes, and the methods that they stand for."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from types import FunctionType

import numpy as np
import torch

from ..calibrated import load_solver
from ..cli_models import imported
from ..grids import GRIDS
from ..solvers.registry import Solver, did_you_mean, methods
from ..spacing import Grid
from .entries import Entry, FromOdePeer, FromPeer, Own
from .measurements import key_of
from .peers import ODE_PEERS, PEERS, SDE_PEERS

# Short names of methods, as people write them.
SHORT = {"adams": "adams3", "unipc": "unipc_bh2_3", "dpmpp": "dpmpp_2m", "edm": "edm_heun"}


def resolve(spec: str) -> tuple[Entry, ...]:
    """Return the methods that a word stands for.

    Args:
        spec: The name of a method of the registry, a short one (`SHORT`), ``"package.module:solver"``
            of a composed `Solver`, the file of a calibrated one, ``"solver.json"``, or the name of a
            peer, which may be a pattern as in ``"azula *"``; then, after an ``@``, maybe the name of a
            grid. Without one a method has its default grid, and a peer every grid that its package
            ships.

    Raises:
        ValueError: If there is no such method or grid, or a package is not installed.
    """
    name, _, grid = (part.strip() for part in spec.partition("@"))
    name = SHORT.get(name, name)
    if name in methods():
        return (Own(name, _on(methods()[name].solver, grid)),)
    if name.endswith(".json"):
        if grid:
            raise ValueError(f"{name} has its own levels, and takes no grid {grid!r}")
        fitted = load_solver(name)
        return (Own(name, fitted, variant=key_of(described(fitted))),)
    if ":" in name:
        solver = imported(name)
        if not isinstance(solver, Solver):
            raise ValueError(f"{name} is a {type(solver).__name__}; it must be a sdekit.Solver")
        return (Own(name, _on(solver, grid), variant=key_of(described(solver))),)
    found = tuple(_peers(name, grid))
    if not found:
        known = (*methods(), *PEERS, *SDE_PEERS, *ODE_PEERS)
        hint = did_you_mean(name, known)
        raise ValueError(
            f"unknown method {name!r}; {hint}there are those of 'sdekit list', composed solvers as in "
            "'package.module:solver', and the peers of 'sdekit list --peers'"
        )
    missing = {entry.package for entry in found if find_spec(entry.package) is None}
    if missing:
        raise ValueError(
            f"{spec!r} is of {' and '.join(sorted(missing))}, not installed here: pip install "
            "'sdekit[bench]'"
        )
    return found


def described(value: object) -> str:
    """Describe a solver and its parts by what they are made of: the same in every process.

    Functions are known by their names and code, objects by their classes and attributes.
    """
    if isinstance(value, partial):
        return f"{described(value.func)}({described(value.args)}, {described(value.keywords)})"
    if isinstance(value, FunctionType):
        code = value.__code__
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        what = f"{code.co_code.hex()} {code.co_consts if code.co_name == '<lambda>' else ''}"
        return f"{value.__module__}.{value.__qualname__} {what} {described(held)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {described(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, np.ndarray | torch.Tensor):
        return described(value.tolist())
    attributes = getattr(value, "__dict__", None)
    if attributes is None or isinstance(value, type):
        return repr(value)
    return f"{type(value).__qualname__}{described(attributes)}"


def _on(solver: Solver, grid: str) -> Solver:
    """Return a solver on a grid of that name; without one, on its own."""
    if not grid:
        return solver
    if not solver.scheme.fixed:
        raise ValueError(f"the method takes tolerances only, no grid {grid!r}")
    return replace(solver, grid=_grid(grid, ()))


def _grid(name: str, shipped: tuple[str, ...]) -> Grid:
    if name not in GRIDS:
        known = (*shipped, *GRIDS)
        hint = did_you_mean(name, known)
        raise ValueError(f"unknown grid {name!r}; {hint}there are {', '.join(known)}")
    return GRIDS[name]


def _peers(pattern: str, grid: str) -> Iterator[Entry]:
    for name, peer in {**PEERS, **SDE_PEERS}.items():
        if fnmatch.fnmatchcase(name, pattern):
            if grid and grid not in peer.grids:
                _grid(grid, peer.grids)
            for chosen in (grid,) if grid else peer.grids:
                yield FromPeer(peer, chosen)
    for name, solver in ODE_PEERS.items():
        if fnmatch.fnmatchcase(name, pattern):
            if grid:
                raise ValueError(f"{name} takes tolerances only, no grid {grid!r}")
            yield FromOdePeer(solver)
