"""Measure the speed ratios, and say which moved from benchmarks/results/speed.json.

    python benchmarks/speed/run.py [--write]

Each run is a process of its own, whose ratio is a median of pairs that took turns. A ratio moved if
the ranges of the runs, then and now, have nothing in common; ``--write`` commits the new ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from sdekit.records import provenance, write_json

RUNS = 5
HERE = Path(__file__).parent
COMMITTED = HERE.parent / "results" / "speed.json"
PACKAGES = ("sdekit", "torch", "numpy", "torchdiffeq", "torchsde", "pytest-benchmark")

Ratio = dict[str, Any]


def run(out: Path) -> dict[str, tuple[str, float]]:
    """Run the benchmarks once: what was measured, against whom, and the ratio."""
    command = [sys.executable, "-m", "pytest", str(HERE), f"--benchmark-json={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout)
    found = json.loads(out.read_text(encoding="utf-8"))["benchmarks"]
    return {b["group"]: (b["extra_info"]["against"], b["extra_info"]["ratio"]) for b in found}


def measure() -> list[Ratio]:
    """Run the benchmarks several times: the median and the range of each ratio."""
    with tempfile.TemporaryDirectory() as folder:
        all_runs = [run(Path(folder) / f"{n}.json") for n in tqdm(range(RUNS), leave=False)]
    ratios = []
    for name, (against, _) in all_runs[0].items():
        values = sorted(found[name][1] for found in all_runs)
        ratios.append(
            {
                "name": name,
                "against": against,
                "ratio": round(float(np.median(values)), 3),
                "low": round(values[0], 3),
                "high": round(values[-1], 3),
            }
        )
    return ratios


def verdict(now: Ratio, then: Ratio | None) -> str:
    """Say whether a ratio moved by more than the spread of the runs."""
    if then is None:
        return "new"
    if now["low"] > then["high"]:
        return f"slower by {now['ratio'] / then['ratio'] - 1:.0%}"
    if now["high"] < then["low"]:
        return f"faster by {then['ratio'] / now['ratio'] - 1:.0%}"
    return ""


def shown(ratio: Ratio | None) -> str:
    """Write a ratio with its range."""
    return "" if ratio is None else f"{ratio['ratio']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"


def table(ratios: list[Ratio], committed: dict[str, Ratio]) -> Table:
    """Show the ratios beside the committed ones."""
    found = Table(
        *("cost of", "against", "ratio now", "committed", "moved"),
        box=None,
        pad_edge=False,
        title=f"cost of sdekit's over the other's: median (range) of {RUNS} runs",
        title_justify="left",
    )
    for ratio in ratios:
        then = committed.get(ratio["name"])
        found.add_row(
            ratio["name"], ratio["against"], shown(ratio), shown(then), verdict(ratio, then)
        )
    return found


def main() -> None:
    """Measure, compare, print, and write if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="replace the committed ratios")
    write = parser.parse_args().write
    committed = {}
    if COMMITTED.exists():
        record = json.loads(COMMITTED.read_text(encoding="utf-8"))
        committed = {ratio["name"]: ratio for ratio in record["ratios"]}
    ratios = measure()
    Console(width=110).print(table(ratios, committed))
    if write:
        write_json({**provenance(PACKAGES), "runs": RUNS, "ratios": ratios}, COMMITTED)


if __name__ == "__main__":
    main()
