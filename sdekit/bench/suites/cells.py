"""Measurements that outlive a run: a line of JSON each, and the reference solutions beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ...shards import write_whole
from ..ledger import Ledger, read_ledgers
from ..problems import SIGMA_MAX, SIGMA_MIN, Problem, solve_reference


class Keyed(Protocol):
    """A measurement: a dataclass of numbers and text."""

    @property
    def problem(self) -> str:
        """Name of the problem."""

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies it."""


CellT = TypeVar("CellT", bound=Keyed)


class CellStore(Generic[CellT]):
    """The cells of a folder, one line each, and the reference solutions.

    Runs on disjoint problems may share a folder.

    Args:
        folder: Where they are.
        kind: The class of the cells.
        samples: Number of start states; cells are kept apart by it.
        seed: Seed of the start states; cells are kept apart by it.
    """

    def __init__(self, folder: Path, kind: type[CellT], *, samples: int, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        what = f"{samples} {seed} {SIGMA_MAX} {SIGMA_MIN}"
        self.folder, self.tag = folder, hashlib.sha256(what.encode()).hexdigest()[:8]
        self.cells: dict[tuple[Any, ...], CellT] = {}
        for record in read_ledgers(self._files()):
            cell = kind(**record)
            self.cells[cell.key] = cell

    def of(self, problems: Collection[str]) -> list[CellT]:
        """Return the cells of some problems."""
        return [cell for cell in self.cells.values() if cell.problem in problems]

    def add(self, cell: CellT) -> None:
        """Keep a cell, now and on disk."""
        self.cells[cell.key] = cell
        with Ledger(self.folder / f"cells-{self.tag}-{cell.problem}.jsonl") as ledger:
            ledger.append(vars(cell))

    def forget(self, doomed: Callable[[CellT], bool]) -> None:
        """Drop the cells of which a condition holds, now and on disk."""
        problems = {cell.problem for cell in self.cells.values() if doomed(cell)}
        self.cells = {key: cell for key, cell in self.cells.items() if not doomed(cell)}
        for problem in problems:
            path = self.folder / f"cells-{self.tag}-{problem}.jsonl"
            rest = [cell for cell in self.cells.values() if cell.problem == problem]
            write_whole(path, b"".join((json.dumps(vars(cell)) + "\n").encode() for cell in rest))

    def reference(self, problem: Problem) -> Tensor:
        """Final states of a problem, computed once."""
        path = self._reference_path(problem.name)
        if not path.exists():
            reference = solve_reference(problem)
            floor = torch.tensor(reference.floor, dtype=torch.float64)
            write_whole(path, save({"x": reference.x.contiguous(), "floor": floor}))
        return load_file(path)["x"]

    def floor(self, problem: str) -> float:
        """Error below which nothing can be told from the reference of a problem, once it is known."""
        return float(load_file(self._reference_path(problem))["floor"])

    def _reference_path(self, problem: str) -> Path:
        return self.folder / f"reference-{self.tag}-{problem}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"cells-{self.tag}*.jsonl"))
