"""A file that is only ever appended to, a line of JSON each, and that survives a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Of a file's end, read at once in search of its last whole line.
_BLOCK = 1 << 16


class Ledger:
    """Appends records to a file; a record is there whole, or not at all.

    What a process that was killed has left of a line is cut off when the file is opened again, so that
    a run that was killed any number of times leaves the same bytes as one that was not. One process at
    a time may append.

    Args:
        path: The file; its folder is made if need be.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        os.ftruncate(self._file, _whole_lines(self._file))

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record, now and in one write."""
        line = (json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n").encode()
        while line:  # a write to a full disk may be short before it fails
            line = line[os.write(self._file, line) :]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_ledgers(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read the records of some files, in the order in which they were appended to each.

    Raises:
        ValueError: If a line is broken that is not a file's last: something else has written there.
    """
    records: list[dict[str, Any]] = []
    for path in paths:
        # What follows the last newline is being written, or was when its process was killed.
        lines = path.read_bytes().split(b"\n")[:-1]
        records += [_parsed(line, path, number) for number, line in enumerate(lines, 1)]
    return records


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        raise ValueError(
            f"line {number} of {path} is no JSON; only sdekit should write there. Take the line out, "
            "and what it held is measured again"
        ) from None
    return record


def _whole_lines(file: int) -> int:
    """Return the length of a file up to its last newline."""
    end = os.lseek(file, 0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
