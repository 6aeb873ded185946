"""Results that outlive a run: a folder to which measurements are appended, by one process or many.

- ``cells/WRITER.jsonl``: a line for each measurement, of what does not change from run to run.
- ``times/WRITER.jsonl``: a line for each, of wall times.
- ``problems/``, ``references/``, ``environments/``: files that appear whole or not at all.

Each process appends to files of its own, so that shards may share a folder; folders of shards that do
not are merged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..records import provenance
from ..shards import write_whole
from .ledger import Ledger, read_ledgers
from .measurements import Measurement, ProblemCard, Setting, key_of
from .problems import Problem, Reference, solve_reference

_CORE = ("sdekit", "torch", "numpy", "scipy")

# A denoiser is known by values that it returned once, as fractions of their RMS: round-off on another
# machine is no other network.
_SAME = {torch.float64: 1e-6, torch.float32: 1e-3}

# What is kept of a reference beside its states: not its times, which change from run to run.
_FACTS = ("discrepancy", "largest", "nfe")


class Store:
    """Reads the results of a folder, all of them and at any time.

    Args:
        folder: Where they are, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def measurements(self) -> dict[str, Measurement]:
        """Return what has been measured, by the digest of its setting.

        Raises:
            ValueError: If something else has written to the folder.
        """
        found: dict[str, Measurement] = {}
        try:
            times = self._times()
            for record in self._records("cells"):
                setting = Setting(**record.pop("setting"))
                before = found.get(setting.digest)
                metrics = {**before.metrics, **record["metrics"]} if before else record["metrics"]
                time = times.get(setting.digest, {})
                found[setting.digest] = Measurement(
                    setting,
                    **{
                        **record,
                        "metrics": metrics,
                        "seconds": time.get("seconds"),
                        "network_seconds": time.get("network_seconds"),
                    },
                )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.folder} holds what this version of sdekit did not write: {error!r}; take "
                "another folder"
            ) from None
        return found

    def date(self) -> str:
        """Return when the last measurement was added; empty if there is none."""
        return max((record["at"] for record in self._times().values()), default="")

    def _times(self) -> dict[str, dict[str, Any]]:
        """Return wall times, and when they were measured, by the digest of the setting."""
        return {record["digest"]: record for record in self._records("times")}

    def environments(self) -> dict[str, dict[str, Any]]:
        """Return versions and hardware by key."""
        return {path.stem: _read(path) for path in self._files("environments", "json")}

    def add_environment(self, packages: Sequence[str]) -> str:
        """Keep versions and hardware of this process; return their key."""
        found = provenance(tuple(dict.fromkeys((*_CORE, *sorted(packages)))))
        plain = {name: found[name] for name in ("versions", "hardware")}
        key = key_of(plain)
        path = self._path("environments", f"{key}.json")
        if not path.exists():
            write_whole(path, (json.dumps(plain, indent=1) + "\n").encode())
        return key

    def cards(self) -> dict[str, ProblemCard]:
        """Return what is known of the problems by key: of each, for a number of samples and a seed."""
        cards = {path.stem: _read(path) for path in self._files("problems", "json")}
        return {
            key: ProblemCard(**{**card, "event_shape": tuple(card["event_shape"])})
            for key, card in cards.items()
        }

    def add_card(self, key: str, card: ProblemCard) -> None:
        """Keep what is said of a problem, with the floors that are known already."""
        before = self.cards().get(key)
        if before is not None:
            floors = {**before.floors, **card.floors}
            made = card.reference or before.reference
            card = replace(card, floors=dict(sorted(floors.items())), reference=made)
        if card != before:
            path = self._path("problems", f"{key}.json")
            write_whole(path, (json.dumps(asdict(card), indent=1) + "\n").encode())

    def reference(self, key: str, problem: Problem, tolerance: float) -> Reference:
        """Return the reference solution of a problem, computed once by whoever comes first.

        Args:
            key: By which it is known.
            problem: The problem.
            tolerance: Of the two solves.

        Raises:
            ValueError: If the denoiser is not the one that the folder knows.
            RuntimeError: If a reference solution cannot be computed.
        """
        path = self._path("references", f"{key}.safetensors")
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                reference = solve_reference(problem, tolerance)
                tensors = {"x": reference.x.contiguous().cpu(), "probe": _probe(problem)}
                facts = {name: getattr(reference, name) for name in _FACTS}
                write_whole(path, save(tensors, {"facts": json.dumps(facts)}))
        with safe_open(path, "pt") as file:
            x, probe = file.get_tensor("x"), file.get_tensor("probe")
            facts = json.loads(file.metadata()["facts"])
        if not _same(_probe(problem), probe, _SAME[problem.start.dtype]):
            raise ValueError(
                f"the denoiser of {problem.name!r} is not the one whose results are in {self.folder}; "
                "take another folder"
            )
        return Reference(x.to(problem.start), **{**facts, "nfe": tuple(facts["nfe"])})

    def merge(self, others: Iterable[Store]) -> int:
        """Add what other folders have and this one has not; return the number of measurements.

        Raises:
            ValueError: If one of them holds no results or is of another model, or another process
                writes to this one.
        """
        known = {
            (m.setting.digest, name) for m in self.measurements().values() for name in m.metrics
        }
        added = 0
        with Writer(self, "merged") as writer:
            for other in others:
                found = other.measurements()
                if not found:
                    raise ValueError(f"there are no results in {other.folder}")
                times = other._times()
                self._check_references(other)
                for key, card in other.cards().items():
                    self.add_card(key, card)
                for kind, suffix in (("references", "safetensors"), ("environments", "json")):
                    for path in other._files(kind, suffix):
                        if not self._path(kind, path.name).exists():
                            write_whole(self._path(kind, path.name), path.read_bytes())
                for digest, measurement in found.items():
                    new = {
                        name: value
                        for name, value in measurement.metrics.items()
                        if (digest, name) not in known
                    }
                    if new:
                        at = times.get(digest, {}).get("at")
                        writer.add(replace(measurement, metrics=new), at=at)
                        known |= {(digest, name) for name in new}
                        added += 1
        return added

    def _check_references(self, other: Store) -> None:
        """Refuse a folder that holds other models, or other start states, under the same names."""
        for path in other._files("references", "safetensors"):
            mine = self.folder / "references" / path.name
            if mine.exists():
                with safe_open(mine, "pt") as one, safe_open(path, "pt") as two:
                    probes = one.get_tensor("probe"), two.get_tensor("probe")
                    tolerance = _SAME[one.get_tensor("x").dtype]
                if not _same(*probes, tolerance):
                    raise ValueError(
                        f"the model of {path.stem} in {other.folder} is not the one in {self.folder}"
                    )

    def _records(self, kind: str) -> list[dict[str, Any]]:
        return read_ledgers(self._files(kind, "jsonl"))

    def _files(self, kind: str, suffix: str) -> list[Path]:
        return sorted((self.folder / kind).glob(f"*.{suffix}"))

    def _path(self, kind: str, name: str) -> Path:
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class Writer:
    """Appends measurements to a store.

    Args:
        store: The store.
        name: Name of its files; one process at a time has it.

    Raises:
        ValueError: If another process has it.
    """

    def __init__(self, store: Store, name: str) -> None:
        store.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(store.folder / f"{name}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"another process is writing {name} to {store.folder}") from None
        self._cells = Ledger(store.folder / "cells" / f"{name}.jsonl")
        self._times = Ledger(store.folder / "times" / f"{name}.jsonl")

    def add(self, measurement: Measurement, at: str | None = None) -> None:
        """Append a measurement, now and on disk.

        Args:
            measurement: The measurement.
            at: When it was made; now if not given.
        """
        record = asdict(measurement)
        times = {name: record.pop(name) for name in ("seconds", "network_seconds")}
        at = at or datetime.now(timezone.utc).isoformat(timespec="seconds")
        # First the times: a measurement without them is complete, times without one are not missed.
        self._times.append({"digest": measurement.setting.digest, **times, "at": at})
        self._cells.append(record)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._cells.close()
        self._times.close()
        self._lock.release()


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@torch.no_grad()
def _probe(problem: Problem) -> Tensor:
    """Return values of the denoiser at the level of the data, by which it is known again."""
    x_hat = problem.start / problem.sigma_max  # all: conditioning may be that of each sample
    level = min(max(1.0, problem.sigma_min), problem.sigma_max)
    denoised = problem.denoiser(level * x_hat, x_hat.new_tensor(level))
    return denoised[:2].double().contiguous().cpu()


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two denoisers are the same, by their probes."""
    return one.shape == other.shape and bool((one - other).norm() <= tolerance * other.norm())
