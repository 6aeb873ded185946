"""Results that outlive a run: a folder to which measurements are appended, by one process or many.

- ``cells/WRITER.jsonl``: a line for each measurement, of what does not change from run to run.
- ``times/WRITER.jsonl``: a line for each, of wall times.
- ``problems/``, ``references/``, ``environments/``: files that appear whole or not at all.

Each process appends to files of its own, so that shards may share a folder; folders of shards that do
not are merged.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
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
from .measurements import Measurement, ProblemCard, Setting
from .problems import Problem, Reference, solve_reference

_CORE = ("sdekit", "torch", "numpy", "scipy")

# A denoiser is known by values that it returned once, as fractions of their RMS: round-off on another
# machine is no other network.
_SAME = 1e-6

# What is kept of a reference beside its states: not its times, which change from run to run.
_FACTS = ("discrepancy", "largest", "nfe")


def key_of(plain: object) -> str:
    """Return the hash by which plain data are known."""
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
        times = {record.pop("digest"): record for record in self._records("times")}
        found: dict[str, Measurement] = {}
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
        return found

    def date(self) -> str:
        """Return when the last measurement was added; empty if there is none."""
        return max((record["at"] for record in self._records("times")), default="")

    def environments(self) -> dict[str, dict[str, Any]]:
        """Return versions and hardware by key."""
        return {path.stem: _read(path) for path in self._files("environments", "json")}

    def cards(self) -> list[ProblemCard]:
        """Return what is known of the problems: a card for each number of samples and seed."""
        cards = [_read(path) for path in self._files("problems", "json")]
        return [
            ProblemCard(**{**card, "event_shape": tuple(card["event_shape"])}) for card in cards
        ]

    def add_card(self, key: str, card: Callable[[], ProblemCard]) -> None:
        """Keep what is said of a problem, unless it is there."""
        path = self._path("problems", f"{key}.json")
        if not path.exists():
            write_whole(path, (json.dumps(asdict(card()), indent=1) + "\n").encode())

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
        now = _probe(problem)
        if now.shape != probe.shape or (now - probe).norm() > _SAME * probe.norm():
            raise ValueError(
                f"the denoiser of {problem.name!r} is not the one whose results are in {self.folder}; "
                "take another folder"
            )
        return Reference(x.to(problem.start), **{**facts, "nfe": tuple(facts["nfe"])})

    def merge(self, others: Iterable[Store]) -> int:
        """Add what other folders have and this one has not; return the number of measurements.

        Raises:
            ValueError: If one of them holds no results, or another process writes to this one.
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
                for kind in ("problems", "references", "environments"):
                    for path in (other.folder / kind).glob("*.[js]*"):
                        if not self._path(kind, path.name).exists():
                            shutil.copyfile(path, self._path(kind, path.name))
                for digest, measurement in found.items():
                    new = {
                        name: value
                        for name, value in measurement.metrics.items()
                        if (digest, name) not in known
                    }
                    if new:
                        writer.add(replace(measurement, metrics=new))
                        known |= {(digest, name) for name in new}
                        added += 1
        return added

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

    def add(self, measurement: Measurement) -> None:
        """Append a measurement, now and on disk."""
        record = asdict(measurement)
        times = {name: record.pop(name) for name in ("seconds", "network_seconds")}
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        # First the times: a measurement without them is complete, times without one are not missed.
        self._times.append({"digest": measurement.setting.digest, **times, "at": at})
        self._cells.append(record)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._cells.close()
        self._times.close()
        self._lock.release()


def write_environment(store: Store, packages: Sequence[str]) -> str:
    """Keep versions and hardware of this process in a store; return their key."""
    found = provenance(tuple(dict.fromkeys((*_CORE, *sorted(packages)))))
    plain = {name: found[name] for name in ("versions", "hardware")}
    key = key_of(plain)
    path = store._path("environments", f"{key}.json")
    if not path.exists():
        write_whole(path, (json.dumps(plain, indent=1) + "\n").encode())
    return key


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@torch.no_grad()
def _probe(problem: Problem) -> Tensor:
    """Return values of the denoiser at the level of the data, by which it is known again."""
    x_hat = problem.start[:2] / problem.sigma_max
    level = min(max(1.0, problem.sigma_min), problem.sigma_max)
    return problem.denoiser(level * x_hat, x_hat.new_tensor(level)).double().contiguous().cpu()
