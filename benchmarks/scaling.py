"""Weak scaling of `sdekit.parallel.sample_to`: as many samples for each process, ever more processes.

    python benchmarks/scaling.py [--processes 1,2] [--out benchmarks/results/scaling.json]

The digits network is sampled into a folder on the CPU, one thread a process, under torchrun. Times are
from the call to its return on rank 0, which waits for the others, so with all files written; the least
of three. The efficiency is the time of one process over that of many. Processor time is that of the
rank that needs most: on a machine that others use as well, it says more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import sdekit as sk
from sdekit.parallel import sample_to
from sdekit.records import cpu_model
from sdekit.workers import torchrun

EACH = 2048  # samples of a process
BATCH = 64
STEPS = 20
ROUNDS = 3


def work(out: Path) -> None:
    """What each rank does; it writes its least times, on the clock and of the processor."""
    net = sk.load_digits_denoiser()
    least = (float("inf"), float("inf"))
    with torchrun() as team:
        for n in range(ROUNDS):
            team.wait()
            begin = time.perf_counter(), time.process_time()
            sample_to(
                out / f"samples-{n}",
                sk.EDM(),
                net,
                EACH * team.world,
                (1, 8, 8),
                seed=n,
                micro_batch=BATCH,
                steps=STEPS,
            )
            taken = time.perf_counter() - begin[0], time.process_time() - begin[1]
            least = min(least[0], taken[0]), min(least[1], taken[1])
        (out / f"times-{team.rank}.json").write_text(json.dumps(least))


def launch(processes: int) -> tuple[float, float]:
    """Run the work under torchrun; return the seconds it took, on the clock and of a processor."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", __file__, "--work", folder]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=env)
        times = [json.loads(path.read_text()) for path in Path(folder).glob("times-*.json")]
        return max(clock for clock, _ in times), max(processor for _, processor in times)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--out", type=Path, default=Path("results/scaling.json"))
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work)
        return
    rows = []
    for processes in map(int, args.processes.split(",")):
        seconds, processor = launch(processes)
        rows.append(
            {
                "processes": processes,
                "seconds": seconds,
                "samples_per_second": processes * EACH / seconds,
                "processor_seconds": processor,
            }
        )
        rows[-1]["efficiency"] = rows[0]["seconds"] / seconds
        rows[-1]["efficiency_by_processor"] = rows[0]["processor_seconds"] / processor
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "work": f"digits network, {EACH} samples a process, micro-batches of {BATCH}, {STEPS} steps",
        "rows": rows,
        "versions": {name: version(name) for name in ("sdekit", "torch")},
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*(f"{value:.4g}" for value in row.values()))
    Console(width=110).print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
