"""Kills a benchmark at random moments and prints what came of it, as JSON.

A process of its own: it forks, so that runs cost no import.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import sdekit as sk
from sdekit.bench import Experiment, UserModel, run_experiment

# Errors of paths on a model whose reference takes no time, and of laws on a mixture.
EXPERIMENTS = (
    Experiment(
        problems=("model",),
        models={"model": UserModel("kill_bench:load", "edm", tolerance=1e-3)},
        methods=("euler", "heun", "adams3"),
        budgets=tuple(range(4, 48)),
        metrics=("rms", "sup"),
        samples=2,
    ),
    Experiment(
        problems=("mixture2d",),
        methods=("heun", "sea_w_theta"),
        budgets=tuple(range(4, 48)),
        metrics=("mean", "cf"),
        law_samples=32,
    ),
)
WATCH = os.WEXITED | os.WNOHANG | os.WNOWAIT


def load():
    return sk.Gaussian([0.0, 1.0], [[0.5, 0.2], [0.2, 0.3]])


def run(folder):
    for experiment in EXPERIMENTS:
        run_experiment(experiment, folder)


def killed(folder, lines, delay):
    """Run in a fork, and kill it so long after it has added so many lines; return whether it lived."""
    before = cells(folder).count(b"\n")
    pid = os.fork()
    if not pid:
        try:
            run(folder)
        finally:
            os._exit(0)
    while cells(folder).count(b"\n") < before + lines and not os.waitid(os.P_PID, pid, WATCH):
        time.sleep(2e-3)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def cells(folder):
    path = folder / "cells" / "0-of-1.jsonl"
    return path.read_bytes() if path.exists() else b""


def main():
    torch.set_num_threads(1)
    folder, kills, source = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)
    run(folder / "undisturbed")
    hits, torn, left = 0, 0, []
    for _ in range(kills):
        # Some die while they start, most between two measurements or in the midst of one.
        lines = source.choice((0, 0, 1, 2, 3, 4, 5))
        hits += killed(folder / "killed", lines, source.uniform(0, 0.005 if lines else 0.1))
        found = cells(folder / "killed")
        torn += bool(found) and not found.endswith(b"\n")
        left.append(found.count(b"\n"))
    run(folder / "killed")
    print(json.dumps({"hits": hits, "torn": torn, "left": left}))


if __name__ == "__main__":
    main()
