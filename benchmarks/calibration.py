"""Measure calibrated solvers against the default one and the peers, and how far their gains carry.

1. Errors at 6 to 80 evaluations on eleven laws and the two digits networks (unconditional, and
   conditional with the classes in turn), on samples that no solver was fitted to. Peers are diffusers
   and azula in every setting that is the best of six hundred anywhere in results/suite.json.
2. Errors with 16, 64, 256 and 1024 pilot samples.
3. Errors on other guidance scales and another class than those a solver was fitted to.

Every measurement is kept as a line in results/calibration; a run that is killed goes on where it was,
and two may share the work with --part 0/2 and --part 1/2. All takes about an hour of two cores:

    .venv/bin/python benchmarks/calibration.py
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import sdekit as sk
from sdekit.bench.peers import PEERS
from sdekit.bench.problems import PROCESS, SIGMA_MAX, SIGMA_MIN, SUITES, make_problem, rms
from sdekit.bench.repetitions import geometric_mean
from sdekit.records import cpu_model, write_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
EDM = sk.EDM(SIGMA_MIN, SIGMA_MAX)
BUDGETS = (6, 8, 10, 15, 20, 40, 80)
BATCH = 64  # that of the suite
# The Gaussian is left out: coordinates with a clock for each direction solve it exactly.
LAWS = tuple(name for name in SUITES["ode"] if name not in ("digits", "gaussian32d"))
NETWORKS = ("digits", "digits, conditional")
TESTS = {name: 1024 for name in LAWS} | {name: 256 for name in NETWORKS}
PILOT_SEED, TEST_SEED = 1000, 2
FLOOR = 1e-11


def pilots(name: str, steps: int) -> int:
    """Number of pilot samples: more of laws, where a few samples carry much of the error."""
    return 256 if name in NETWORKS else 1024 if steps <= 8 else 512


def max_nfe(name: str, steps: int) -> int:
    """Evaluations that refinement may take: fewer where it takes long."""
    return 3000 if name == "digits" and steps <= 20 else 1000


GOALS = {
    "laws": {6: 0.2, 8: 0.2, 10: 0.2, 15: 0.2, 20: 0.1, 40: 0.06, 80: 0.03},
    "networks": {6: 0.6, 8: 0.45, 10: 0.3, 15: 0.2, 20: 0.15, 40: 0.12, 80: 0.1},
}
SIZES, SIZE_SEEDS = (16, 64, 256, 1024), (1000, 2000)
SCALES, CLASSES, CROSS_STEPS = (1.0, 2.0, 4.0), (3, 8), 10
Record = dict[str, Any]
Model = Callable[..., Tensor]


def starts(name: str, count: int, seed: int) -> tuple[Model, Tensor]:
    """Return the denoiser of a problem for a batch, and the batch: states at σ = 80, float64."""
    if name in LAWS:
        problem = make_problem(name, samples=count, seed=seed)
        return problem.denoiser, problem.start
    model = sk.load_digits_denoiser(dtype=torch.float64)
    noise = torch.randn(
        count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    if name == "digits, conditional":
        return sk.Conditioned(model, class_labels=torch.arange(count) % 10), SIGMA_MAX * noise
    return model, SIGMA_MAX * noise


class Ledger:
    """Lines of JSON, by what they are about."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines: dict[str, Record] = {}
        for file in sorted(path.parent.glob("*.jsonl")):
            for line in file.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # torn by a kill
                    continue
                self.lines[record["key"]] = record

    def __call__(self, key: str, measure: Callable[[], Record]) -> Record:
        """Return what is known of a key, or measure it."""
        if key not in self.lines:
            self.lines[key] = {"key": key, **measure()}
            with self.path.open("a") as file:
                file.write(json.dumps(self.lines[key]) + "\n")
        return self.lines[key]


@functools.cache
def judged(name: str) -> tuple[Model, Tensor, Tensor]:
    """Return a problem's denoiser, test starts and where the flow takes them."""
    model, x = starts(name, TESTS[name], TEST_SEED)
    flow = EDM.probability_flow(model)
    tight = 1e-12 if name in LAWS else 1e-11
    reference = sk.solve(
        flow, x, method="dopri5", sigmas=[SIGMA_MAX, SIGMA_MIN], rtol=tight, max_nfe=1_000_000
    )
    return model, x, reference.x


def error(name: str, x: Tensor) -> float:
    """Root mean square distance from the reference."""
    return rms(x - judged(name)[2])


def in_batches(name: str, x: Tensor) -> Tensor:
    """Root mean square distance from the reference in each batch of 64 samples."""
    squares = (x - judged(name)[2]).flatten(1).square().mean(1)
    return squares.reshape(-1, BATCH).mean(1).sqrt()


def solved(model: Model, x: Tensor, method: str | sk.Solver, steps: int) -> Tensor:
    """Solve from 80 to 0.002."""
    return sk.solve(EDM.probability_flow(model), x, method=method, steps=steps).x


def calibrated(
    name: str, steps: int, samples: int, seed: int = PILOT_SEED
) -> tuple[sk.CalibratedSolver, float]:
    """Calibrate on samples of their own; return the solver and the seconds it took."""
    model, x = starts(name, math.ceil(1.25 * samples), seed)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # small pilots are part of the question
        solver = sk.calibrate(EDM.probability_flow(model), steps, x=x, max_nfe=max_nfe(name, steps))
    return solver, time.perf_counter() - begin


def ours(name: str, budget: int) -> Record:
    """Measure the calibrated and the default solver."""
    solver, seconds = calibrated(name, budget, pilots(name, budget))
    model, x, _ = judged(name)
    report = solver.report
    found = {
        "calibrated": solved(model, x, solver, budget),
        "default": solved(model, x, "bayesian_adams", budget),
    }
    return {
        "problem": name,
        "budget": budget,
        **{key: error(name, value) for key, value in found.items()},
        "batches": {key: in_batches(name, value).tolist() for key, value in found.items()},
        "chosen": report.chosen,
        "validation": report.errors["validation"],
        "seconds": round(seconds, 1),
        "nfe": round(report.nfe),
    }


def settings() -> list[tuple[str, str]]:
    """Return every setting of a peer that is the best anywhere in the suite."""
    record = json.loads((ROOT / "benchmarks/results/suite.json").read_text())
    found = {(b["method"], b["grid"]) for b in record["best_peers"] if b["group"] == "peer"}
    return sorted(found)


def best_peer(name: str, budget: int) -> Record:
    """Measure the peers; return the best."""
    model, x, _ = judged(name)
    found, batches = [], []
    for method, grid in settings():
        peer = PEERS[method]
        steps = budget // peer.nfe_per_step
        if steps:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                out, _ = peer.run(model, x, grid, steps)
            off = error(name, out)
            found.append((off if math.isfinite(off) else math.inf, method, grid))
            batches.append(in_batches(name, out).nan_to_num(math.inf))
    off, method, grid = min(found)
    return {
        "problem": name,
        "budget": budget,
        "error": off,
        "peer": f"{method}, {grid}",
        "batches": torch.stack(batches).min(0).values.tolist(),
    }


def by_size(samples: int, seed: int) -> Record:
    """Calibrate the digits network on few and on many samples."""
    solver, _ = calibrated("digits", CROSS_STEPS, samples, seed)
    model, x, _ = judged("digits")
    return {
        "samples": samples,
        "seed": seed,
        "calibrated": error("digits", solved(model, x, solver, CROSS_STEPS)),
        "default": error("digits", solved(model, x, "bayesian_adams", CROSS_STEPS)),
        "fell_back": solver.report.fell_back,
        "warnings": len(solver.report.warnings),
    }


def guided(label: int, scale: float) -> Model:
    """Return the digits network, guided towards a class."""
    return sk.ClassifierFree(
        sk.load_digits_denoiser(dtype=torch.float64),
        scale,
        conditional={"class_labels": torch.tensor(label)},
        unconditional={"class_labels": torch.tensor(10)},
    )


GUIDED = [(label, scale) for label in CLASSES for scale in SCALES]


@functools.cache
def transferred(fitted: str) -> sk.CalibratedSolver:
    """Return a solver fitted to one class and scale, or to several together."""
    pairs = {f"class {c}, w = {w:g}": [(c, w)] for c, w in GUIDED}
    pairs["all six"] = GUIDED
    flows = [EDM.probability_flow(guided(c, w)) for c, w in pairs[fitted]]
    return sk.calibrate(
        flows, CROSS_STEPS, samples=96, seed=PILOT_SEED, shape=(1, 8, 8), rtol=1e-7, max_nfe=1000
    )


@functools.cache
def guided_reference(label: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return test starts, and where the guided flow takes them."""
    _, x = starts("digits", 64, TEST_SEED)
    flow = EDM.probability_flow(guided(label, scale))
    return x, sk.solve(flow, x, sigmas=[SIGMA_MAX, SIGMA_MIN], rtol=1e-7).x


def transfer(fitted: str, label: int, scale: float) -> Record:
    """Measure a solver on a class and scale that it may not be fitted to."""
    solver, model = transferred(fitted), guided(label, scale)
    flow = EDM.probability_flow(model)
    x, reference = guided_reference(label, scale)
    return {
        "fitted": fitted,
        "class": label,
        "scale": scale,
        "calibrated": rms(solved(model, x, solver, CROSS_STEPS) - reference),
        "default": rms(sk.solve(flow, x, steps=CROSS_STEPS).x - reference),
    }


def tasks() -> Iterator[tuple[str, str, Callable[[], Record]]]:
    """Go through all that is measured: what it shares its preparations with, its key, and itself."""
    for budget in BUDGETS:
        for name in (*NETWORKS, *LAWS):
            yield name, f"ours, {name}, {budget}", functools.partial(ours, name, budget)
            yield name, f"peer, {name}, {budget}", functools.partial(best_peer, name, budget)
    for fitted in ("class 3, w = 1", "class 3, w = 4", "all six"):
        for c, w in GUIDED:
            yield fitted, f"transfer, {fitted}, {c}, {w}", functools.partial(transfer, fitted, c, w)
    for seed in SIZE_SEEDS:
        for samples in SIZES if seed == SIZE_SEEDS[0] else SIZES[:-1]:
            key = f"size, {samples}, {seed}"
            yield f"seed {seed}", key, functools.partial(by_size, samples, seed)


def ratios(lines: dict[str, Record], against: str) -> list[Record]:
    """Return the ratios of errors at each budget: to the best peer, or to the default.

    Each batch of 64 samples is compared on its own, with the peer that is best on it; a problem has
    the geometric mean over its batches.
    """
    rows = []
    for budget in BUDGETS:
        row: Record = {"NFE": budget}
        singles, pooled = {}, []
        for name in (*LAWS, *NETWORKS):
            own, peer = (lines.get(f"{k}, {name}, {budget}") for k in ("ours", "peer"))
            if own is None or peer is None:
                continue
            others = peer["batches"] if against == "peer" else own["batches"]["default"]
            pairs = list(zip(own["batches"]["calibrated"], others, strict=True))
            if min(map(min, pairs)) > FLOOR:
                singles[name] = geometric_mean([a / b for a, b in pairs])
                if name in LAWS:
                    other = peer["error"] if against == "peer" else own["default"]
                    pooled.append(own["calibrated"] / other)
        laws = [singles[name] for name in LAWS if name in singles]
        row["laws"] = geometric_mean(laws) if laws else None
        row["worst law"] = max(laws) if laws else None
        row["laws, pooled"] = geometric_mean(pooled) if pooled else None
        row["laws compared"] = len(laws)
        row |= {name: singles.get(name) for name in NETWORKS}
        row["goal, laws"] = GOALS["laws"].get(budget) if against == "peer" else None
        row["goal, networks"] = GOALS["networks"].get(budget) if against == "peer" else None
        row["single"] = singles
        rows.append(row)
    return rows


def show(title: str, rows: list[Record]) -> None:
    """Print records as a table."""
    if not rows:
        return
    keys = [key for key in rows[0] if key not in ("single", "key")]
    table = Table(*keys, box=None, title=title)
    for row in rows:
        cells = (row.get(key) for key in keys)
        table.add_row(*(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells))
    Console(width=160).print(table)


def draw(lines: dict[str, Record], path: Path) -> None:
    """Draw error against NFE: one curve each for calibrated, default and the best peer."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharex=True)
    for axis, title, names in (
        (axes[0], "a trained network (digits)", ("digits",)),
        (axes[1], "eleven laws, geometric mean", LAWS),
    ):
        for label, kind, entry, color in (
            ("best of other packages, at each NFE", "peer", None, "0.55"),
            ("sdekit, not calibrated", "ours", "default", "tab:blue"),
            ("sdekit, calibrated", "ours", "calibrated", "tab:red"),
        ):
            points = []
            for budget in BUDGETS:
                rows = [lines.get(f"{kind}, {name}, {budget}") for name in names]
                if all(row is not None for row in rows):
                    found = [row["batches"] for row in rows if row is not None]
                    batches = [b if entry is None else b[entry] for b in found]
                    errors = [max(e, FLOOR) for batch in batches for e in batch]
                    points.append((budget, geometric_mean(errors)))
            axis.loglog(*np.transpose(points), "o-", color=color, label=label, lw=2, ms=4)
        axis.set(title=title, xlabel="network evaluations", xticks=BUDGETS)
        axis.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("RMS error")
    axes[1].legend(frameon=False, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure what is missing, print, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/calibration.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/_static/calibration.png")
    parser.add_argument("--folder", type=Path, default=ROOT / "results/calibration")
    parser.add_argument(
        "--part", default="0/1", help="as 0/2: every second problem, from the first"
    )
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, write what is known"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = map(int, arguments.part.split("/"))
    ledger = Ledger(arguments.folder / f"{part}of{parts}.jsonl")
    work = list(tasks())
    groups = list(dict.fromkeys(group for group, _, _ in work))
    for group, key, measure in () if arguments.report else tqdm(work):
        if groups.index(group) % parts == part:
            ledger(key, measure)
    if parts > 1:
        return
    lines = ledger.lines
    record = {
        "against_peers": ratios(lines, "peer"),
        "against_default": ratios(lines, "default"),
        "sizes": [line for key, line in lines.items() if key.startswith("size")],
        "transfer": [line for key, line in lines.items() if key.startswith("transfer")],
        "calibrations": [line for key, line in lines.items() if key.startswith("ours")],
        "peers": [line for key, line in lines.items() if key.startswith("peer")],
    }
    for key in ("against_peers", "against_default", "sizes", "transfer"):
        show(key.replace("_", " "), record[key])
    draw(lines, arguments.picture)
    write_json(
        {
            "configuration": {
                "process": f"σ from {SIGMA_MAX:g} to {SIGMA_MIN:g}; peers on {PROCESS!r}",
                "pilots": f"seed {PILOT_SEED}; 256 samples for networks, 1024 for laws up to 8 "
                "evaluations, 512 above, and a quarter more for calibration's own test",
                "max_nfe": "3000 for the unconditional network up to 20 evaluations, else 1000",
                "ratios": f"geometric means over batches of {BATCH} samples, with the best peer "
                "of each batch; pooled: of the RMS over all samples",
                "tests": f"seed {TEST_SEED}; {TESTS['digits']} and {TESTS['mixture2d']} samples",
                "error": "RMS distance of the final x̂ from the reference (dopri5, 1e-12 or 1e-11)",
                "peers": f"the best of the {len(settings())} settings of diffusers and azula that are "
                "the best anywhere in suite.json",
                "floor": FLOOR,
                "transfer": "96 pilot samples, a teacher of 1e-7, 64 test samples",
                "dtype": "float64",
            },
            "versions": {
                "python": platform.python_version(),
                **{k: version(k) for k in ("sdekit", "torch", "numpy", "diffusers", "azula")},
            },
            "hardware": {"cpu": cpu_model(), "torch_threads": 1},
            **record,
        },
        arguments.out,
    )


if __name__ == "__main__":
    main()
