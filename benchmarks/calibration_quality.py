"""Measure the samples of calibrated solvers, beside their errors: do fewer errors make better images?

On the digits network, unconditional and with the classes in turn, samples of the calibrated solver,
of the default one and of peers are compared, from the same starts, with

- the accurate solution from these starts: the RMS error;
- accurate samples from these starts and from others, and the real images that the network was trained
  on: the Fréchet distance between features of a classifier, and the sliced Wasserstein-2 distance of
  pixels.

To other starts and to real images the distance is not 0 for exact samples either. So the accurate
solver is measured, too, and what another has more than it from the same starts is its own: the
excess, of either sign. Standard errors are by bootstrap over starts, the same for both in an excess.

It takes some five minutes on one core, half of them to calibrate; with --quick two:

    .venv/bin/python benchmarks/calibration_quality.py
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import sdekit as sk
from sdekit.bench.features import DigitsFeatures, bootstrap, frechet_distance, sliced_w2
from sdekit.bench.peers import PEERS
from sdekit.bench.problems import PROCESS, SIGMA_MAX, SIGMA_MIN, rms
from sdekit.digits import digits_images
from sdekit.records import provenance, write_json

ROOT = Path(__file__).parents[1]
EDM = sk.EDM(SIGMA_MIN, SIGMA_MAX)
EVENT = (1, 8, 8)
START_SEED, OTHER_SEED, PILOT_SEED = 0, 1, 1000
TOLERANCE = 1e-6  # of the accurate solver; the network computes in float32
DEFAULT, CALIBRATED, ACCURATE = "bayesian_adams (default)", "calibrated", "accurate solver"
LAWS = ("same", "accurate", "real")
# The least Fréchet distances at 6 evaluations, on 1,024 other samples, of all settings of all peers.
FRECHET_PEERS = (
    ("diffusers UniPCMultistep bh2 2 data", "flow"),
    ("diffusers UniPCMultistep bh2 3 data", "flow"),
    ("diffusers DPMSolverMultistep dpmsolver++ 3M", "flow"),
)
Record = dict[str, Any]
Model = Callable[..., Tensor]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    samples: int
    budgets: tuple[int, ...]
    pilots: int


FULL, QUICK = Size(2048, (4, 6, 8, 10), 256), Size(512, (6, 10), 64)


def starts(count: int, seed: int) -> Tensor:
    """Return states at σ = 80, float64."""
    source = torch.Generator().manual_seed(seed)
    return SIGMA_MAX * torch.randn(count, *EVENT, generator=source, dtype=torch.float64)


def unconditional(_: int) -> Model:
    """Return the network without labels."""
    return sk.load_digits_denoiser()


def conditional(count: int) -> Model:
    """Return the network for a batch whose classes are 0 to 9 in turn."""
    return sk.Conditioned(sk.load_digits_denoiser(), class_labels=torch.arange(count) % 10)


NETWORKS = {"unconditional": unconditional, "conditional": conditional}


def peers_of(budgets: tuple[int, ...]) -> list[tuple[str, str]]:
    """Return the settings of peers that have the least error, or distance, on the digits somewhere."""
    suite = json.loads((ROOT / "benchmarks/results/suite.json").read_text())
    best = [b for b in suite["best_peers"] if (b["problem"], b["group"]) == ("digits", "peer")]
    errors = {(b["method"], b["grid"]) for b in best if b["budget"] <= max(budgets)}
    return sorted(errors | set(FRECHET_PEERS))


def solved(model: Model, x: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
    """Solve from 80 to 0.002."""
    return sk.solve(EDM.probability_flow(model), x, **options).x


def calibrated(network: str, steps: int, pilots: int) -> sk.CalibratedSolver:
    """Calibrate on starts of their own, and a quarter more for calibration's own test."""
    count = math.ceil(1.25 * pilots)
    flow = EDM.probability_flow(NETWORKS[network](count))
    return sk.calibrate(flow, steps, x=starts(count, PILOT_SEED))


class Judge:
    """Measures samples of a network from one set of starts.

    Args:
        network: Key of `NETWORKS`.
        count: Number of samples.
        features: The space for Fréchet distances.
    """

    def __init__(self, network: str, count: int, features: DigitsFeatures) -> None:
        self.features = features
        self.model, self.start = NETWORKS[network](count), starts(count, START_SEED)
        self.exact = solved(self.model, self.start, rtol=TOLERANCE)
        others = solved(self.model, starts(count, OTHER_SEED), rtol=TOLERANCE)
        real, _ = digits_images("train")
        self.laws = dict(zip(LAWS, (self.exact, others, real), strict=True))
        self.clouds = {law: features(x) for law, x in self.laws.items()}
        self.floor = {law: self._distances(self.exact, law) for law in LAWS}

    def __call__(self, x: Tensor) -> Record:
        """Return the measures of samples, those of Fréchet with standard errors."""
        found: Record = {"rms": rms(x - self.exact)}
        for law in LAWS:
            values, exact = self._distances(x, law), self.floor[law]
            found[f"fd_{law}"] = float(values[0])
            found[f"fd_{law}_se"] = float(values[1:].std())
            found[f"fd_{law}_excess"] = float(values[0] - exact[0])
            found[f"fd_{law}_excess_se"] = float((values - exact)[1:].std())
            found[f"w2_{law}"] = sliced_w2(x, self.laws[law])
        return found

    def _distances(self, x: Tensor, law: str) -> Tensor:
        """Return the Fréchet distance, and those of the samples drawn again."""
        features, cloud = self.features(x), self.clouds[law]

        def distance(rows: Tensor) -> float:
            # What is from the same starts is drawn together.
            return frechet_distance(features[rows], cloud[rows] if law == "same" else cloud)

        rows = torch.arange(len(x))
        return torch.cat([torch.tensor([distance(rows)]), bootstrap(distance, rows)])


def measure(
    network: str, size: Size, features: DigitsFeatures
) -> tuple[list[Record], dict[str, str]]:
    """Measure all solvers on a network; return the cells and what calibrations report."""
    settings = peers_of(size.budgets)
    cells: list[Record] = []
    reports: dict[str, str] = {}
    judge = Judge(network, size.samples, features)
    model, x = judge.model, judge.start

    def add(method: str, budget: int | None, nfe: int | None, out: Tensor) -> None:
        place = {"network": network, "method": method, "budget": budget, "nfe": nfe}
        cells.append(place | {key: rounded(value) for key, value in judge(out).items()})
        bar.update()

    total = 1 + len(size.budgets) * (2 + len(settings))
    with tqdm(total=total, desc=network, disable=None) as bar:
        add(ACCURATE, None, None, judge.exact)
        for budget in size.budgets:
            add(DEFAULT, budget, budget, solved(model, x, steps=budget))
            solver = calibrated(network, budget, size.pilots)
            reports[f"{network}, {budget}"] = str(solver.report)
            add(CALIBRATED, budget, budget, solved(model, x, method=solver, steps=budget))
            for name, grid in settings:
                peer = PEERS[name]
                out, nfe = peer.run(model, x, grid, budget // peer.nfe_per_step)
                add(f"{name}, {grid}", budget, nfe, out)
    return cells, reports


def rounded(value: float) -> float:
    """Four digits are enough to judge by."""
    return float(f"{value:.4g}")


def show(cells: list[Record], console: Console) -> None:
    """Print a table for each network; of the peers, the best in each measure."""
    columns = {
        "rms": "RMS",
        "fd_same": "FD, same starts",
        "fd_accurate": "excess FD, other starts",
        "fd_real": "excess FD, real",
        "w2_same": "W2, same",
        "w2_accurate": "W2, other",
        "w2_real": "W2, real",
    }
    for network in NETWORKS:
        own = [cell for cell in cells if cell["network"] == network]
        exact, *others = own
        table = Table("NFE", "method", *columns.values(), box=None, title=f"digits, {network}")
        itself = (f"{exact[key]:.3g}" for key in columns)
        table.add_row("", f"{ACCURATE}, no excess", *itself)
        for budget in sorted({cell["budget"] for cell in others}):
            at = [cell for cell in others if cell["budget"] == budget]
            groups = {
                name: [c for c in at if c["method"] == name] for name in (CALIBRATED, DEFAULT)
            }
            groups["best peer"] = [c for c in at if c["method"] not in groups]
            for name, group in groups.items():
                best = [min(group, key=lambda cell, key=key: cell[key]) for key in columns]
                entries = (text(cell, key) for cell, key in zip(best, columns, strict=True))
                table.add_row(str(budget), name, *entries)
        console.print(table)


def text(cell: Record, key: str) -> str:
    """Write a measure: of Fréchet distances the excess, with its standard error."""
    if key.startswith("fd"):
        return f"{cell[f'{key}_excess']:.1e} ± {cell[f'{key}_excess_se']:.0e}"
    return f"{cell[key]:.1e}" if key in ("rms", "w2_same") else f"{cell[key]:.4f}"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few samples, two budgets, few pilots")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else FULL
    folder = ROOT / ("results" if arguments.quick else "benchmarks/results")
    features = DigitsFeatures()
    images = {split: digits_images(split)[0] for split in ("train", "held_out")}
    real = frechet_distance(*(features(x) for x in images.values()))
    measured = [measure(network, size, features) for network in NETWORKS]
    cells = [cell for found, _ in measured for cell in found]
    record = {
        "configuration": {
            "samples": size.samples,
            "seeds": {"starts": START_SEED, "other starts": OTHER_SEED, "pilots": PILOT_SEED},
            "pilots": f"{size.pilots}, and a quarter more for calibration's own test",
            "process": f"σ from {SIGMA_MAX:g} to {SIGMA_MIN:g}; peers on {PROCESS!r}",
            "accurate": f"the default adaptive method, rtol = {TOLERANCE:g}",
            "dtype": "float64 states, float32 network",
            "features": f"last hidden layer of an MLPClassifier, held-out accuracy "
            f"{features.accuracy:.3f}",
            "fd": "Fréchet distance of features, to accurate samples from the same starts, to those "
            "from other starts and to the 1,500 training images; excess: over that of the accurate "
            "solver from the same starts; se: by bootstrap over starts, 20 times",
            "w2": "sliced Wasserstein-2 distance of pixels, 64 directions",
            "peers": "the settings of diffusers and azula with the least RMS error on the "
            f"unconditional network in suite.json, at some budget up to {max(size.budgets)}, and the "
            f"{len(FRECHET_PEERS)} with the least Fréchet distance of all at 6 evaluations; the table "
            "has the best of them, chosen anew for each measure, budget and network",
        },
        **provenance(("sdekit", "torch", "numpy", "scikit-learn", "diffusers", "azula")),
        "floors": {
            "accuracy": rounded(features.accuracy),
            "fd of training to held-out images (1500, 297)": rounded(real),
        },
        "cells": cells,
        "calibrations": {key: text for _, reports in measured for key, text in reports.items()},
    }
    show(cells, Console(width=150))
    print(record["floors"])
    write_json(record, arguments.out or folder / "calibration_quality.json")


if __name__ == "__main__":
    main()
