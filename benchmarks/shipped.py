"""Measure what shipped samplers really do: the orders of the peers' own code, as installed.

Flows: RMS error against the exact flow of a rotated product of mixtures, on log-uniform grids of ever
more steps. From σ = 80 to 0.002 the first and last steps hardly count, as the denoiser hardly changes
there; from 3 to 0.1 both do. Where the latter costs an order, two more ranges, from 3 to 0.002 and
from 80 to 0.1, tell the first steps from the last. Tolerances: error against tolerance and against
evaluations. Laws: the variance of the result for Gaussian data, exactly, as samplers are linear there:
a row of the batch for each number drawn. Paths: torchsde on one Brownian path, against its own finer
solve.

It takes nine minutes on one core, and goes on where it was stopped:

    .venv/bin/python benchmarks/shipped.py
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torchsde
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchdiffeq import odeint
from tqdm import tqdm

import sdekit as sk
from sdekit.bench.peers import ODE_PEERS, PEERS, SDE_PEERS
from sdekit.bench.peers.peer import seeded
from sdekit.bench.problems import rms
from sdekit.bench.regression import estimate
from sdekit.records import provenance, write_json

ROOT = Path(__file__).parents[1]
PACKAGES = ("sdekit", "torch", "numpy", "diffusers", "azula", "torchdiffeq", "torchsde", "scipy")
DOUBLE = torch.float64

# Multiples of 12, as groups of 2 and 3 steps are alike then.
STEPS = (24, 36, 48, 72, 96, 144, 192, 288)
LAW_STEPS = (24, 48, 72, 96, 144, 192)
WHOLE, INNER, FIRST, LAST = "80 to 0.002", "3 to 0.1", "3 to 0.002", "80 to 0.1"
RANGES = {WHOLE: (80.0, 0.002), INNER: (3.0, 0.1), FIRST: (3.0, 0.002), LAST: (80.0, 0.1)}
TOLERANCES = tuple(10.0 ** (-k / 2) for k in range(6, 19))
PATH = "1 to 0.25"
PATH_STEPS, PATH_FINE = (16, 32, 64, 128, 256), 2048  # torchsde adds up its steps: exact in binary
LAW, SAMPLES, SEED = "Product.random(3, 2, seed=0)", 32, 1
VARIANCES = (0.05, 0.3, 1.0)
FLOOR = 1e-13  # of the exact flow, which inverts distribution functions
SLACK = 0.25  # an order is kept if it is missed by no more

CONFIGURATION: dict[str, Any] = {
    "flow": f"{LAW}, {SAMPLES} samples, seed {SEED}, grid log, RMS error, float64",
    "steps": list(STEPS),
    "tolerance": "the same law, rtol = atol, all samples one system",
    "tolerances": list(TOLERANCES),
    "law_steps": list(LAW_STEPS),
    "law": f"N(0, v), v = {', '.join(map(str, VARIANCES))}; relative error of the variance",
    "path": f"Product.random(2, 2, seed=0), reverse SDE, {64 * SAMPLES} samples, σ from {PATH}",
    "path_steps": list(PATH_STEPS),
    "torchdiffeq_implicit_adams": "rtol = 1e-7 of its corrector, the default",
    "reference_of_paths": f"torchsde srk, {PATH_FINE} steps",
    "an_order_is_kept_if_missed_by_no_more_than": SLACK,
}

Curve = list[tuple[float, float]]


# --- what is claimed ------------------------------------------------------------------------------

# Name -> order, or the group of the name that says it. Of a paper, or of the package's own words.
CLAIMS: tuple[tuple[str, str, float], ...] = (
    ("flow", r"diffusers (DDIM|EulerDiscrete)|azula (DDIM|Euler)|torchdiffeq euler", 1),
    ("flow", r"diffusers (Heun|KDPM2|FlowMatchHeun)Discrete|azula Heun", 2),
    ("flow", r"torchdiffeq (midpoint|heun2)", 2),
    ("flow", r"torchdiffeq heun3", 3),
    ("flow", r"torchdiffeq rk4", 4),
    ("flow", r"torchdiffeq \w+_adams, max_order (?P<order>\d)", 0),
    ("flow", r"torchdiffeq \w+_adams", 12),
    ("flow", r"diffusers IPNDM", 4),
    ("flow", r"diffusers UniPCMultistep bh. 1", 2),
    ("flow", r"diffusers UniPCMultistep bh. 2", 3),
    ("flow", r"diffusers UniPCMultistep bh. 3", 4),
    ("flow", r"diffusers SASolver P2C2", 2),
    ("flow", r"diffusers SASolver P3C4", 4),
    ("flow", r"diffusers (LMSDiscrete|DEISMultistep) (?P<order>\d)", 0),
    ("flow", r"diffusers DPMSolver\w+ dpmsolver\S* (?P<order>\d)[MS]", 0),
    ("flow", r"azula \w+AB (?P<order>\d)", 0),
    ("tolerance", r"torchdiffeq|scipy", 1),  # the error's slope against the tolerance
    ("law", r"diffusers DPMSolverMultistep sde\S* 1", 1),
    ("law", r"diffusers DPMSolver\w+ sde\S* (?P<order>\d)[MS]", 0),
    ("law", r"diffusers (KDPM2Ancestral|DPMSolverSDE)", 2),
    ("law", r"torchsde srk", 1.5),
    ("law", r"diffusers (SASolver|DDIM|DDPM|LTXEuler|EulerAncestral)", 1),
    ("law", r"azula (DDPM|DDIM|Ito)|torchsde euler|diffusers FlowMatchEuler", 1),
    ("path", r"torchsde srk", 1.5),
    ("path", r"torchsde \w+", 1),
)

# What is known to be the matter with samplers that lose an order on every range.
CAUSES: tuple[tuple[str, str, str], ...] = (
    ("flow", r"DPMSolverMultistep \S+ 3M", "takes half of the second derivative"),
    ("flow", r"REAB", "scales its integral by the noise level at the start of the step"),
    (
        "flow",
        r"IPNDM",
        "weights of equal steps in σ, on whatever grid; order 4 is the word of its documentation",
    ),
    ("flow", r"explicit_adams$", "its default, max_order 12, is stable for smaller steps only"),
    ("flow", r"explicit_adams, ", "its order is max_order less one"),
    ("flow", r"implicit_adams$", "first steps by Runge–Kutta of order 4"),
    ("law", r"Multistep sde\S+ 3M|Singlestep sde\S+ 3S heun", "−½ for +½ in the last weight"),
    ("law", r"Singlestep sde", "a step draws noise of its own, apart from that of its stages"),
    ("law", r"FlowMatchEuler", "all noise is drawn anew in each step: the limit is another law"),
)

# Peer -> method of the registry with the same samples.
TWINS: dict[str, str] = {
    "diffusers DDIM": "ddim",
    "diffusers EulerDiscrete": "edm_euler",
    "diffusers HeunDiscrete": "heun",
    "diffusers KDPM2Discrete": "dpm_2",
    "diffusers FlowMatchHeunDiscrete": "flow_heun",
    "diffusers IPNDM": "ipndm",
    **{f"diffusers LMSDiscrete {k}": f"lms{k}" for k in (2, 3, 4)},
    **{f"diffusers DEISMultistep {k}": f"deis_logrho{k}" for k in (2, 3)},
    **{f"azula {c}EAB {k}": f"{c}eab{k}" for c in ("x",) for k in (2, 3)},
    **{f"azula vAB {k}": f"vab{k}" for k in (2, 3)},
    "diffusers DPMSolverSinglestep dpmsolver++ 2S midpoint": "dpmpp_singlestep_2",
    "diffusers DPMSolverMultistep dpmsolver++ 2M": "dpmpp_2m",
    "diffusers DPMSolverMultistep dpmsolver++ 3M": "dpmpp_3m_as_shipped",
    **{
        f"diffusers UniPCMultistep {kind} {k} {of}{' full order' if k > 1 else ''}": (
            f"unipc_{kind}_{k}{suffix}"
        )
        for kind in ("bh1", "bh2")
        for k in (1, 2, 3)
        for of, suffix in (("data", ""), ("noise", "_noise"))
    },
    **{f"diffusers UniPCMultistep bh2 {k} data": f"unipc_bh2_{k}_as_shipped" for k in (2, 3)},
}


def claimed(kind: str, name: str) -> float:
    """Order that a sampler is said to have.

    Raises:
        ValueError: If nothing is said of it.
    """
    for of, pattern, order in CLAIMS:
        found = re.match(pattern, name) if of == kind else None
        if found:
            return float(found.groupdict().get("order") or order)
    raise ValueError(f"nothing in CLAIMS says what the {kind} order of {name!r} is to be")


# --- errors ---------------------------------------------------------------------------------------

LAW_OF_FLOWS = sk.Product.random(3, 2, seed=0)


def flow_errors(name: str, span: str, steps: tuple[int, ...] = STEPS) -> Curve:
    """Errors of a sampler of the flow by number of steps."""
    high, low = RANGES[span]
    x = LAW_OF_FLOWS.sample(SAMPLES, high, seed=SEED)
    exact = LAW_OF_FLOWS.flow(x, high, low)
    return [(n, rms(_flow(name, x, sk.grids.log(n, high, low)) - exact)) for n in steps]


def _flow(name: str, x: Tensor, sigmas: np.ndarray) -> Tensor:
    """Final state of a sampler of the flow; torchdiffeq's integrate in ``λ``."""
    if name in PEERS:
        with seeded(SEED):
            return PEERS[name].run(LAW_OF_FLOWS, x, sigmas, len(sigmas) - 1)[0]
    method, _, order = name.removeprefix("torchdiffeq ").partition(", max_order ")
    times = torch.from_numpy(-np.log(sigmas))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = odeint(
            lambda lam, x: LAW_OF_FLOWS(x, torch.exp(-lam)) - x,
            x,
            times,
            method=method,
            options={"max_order": int(order)} if order else None,
        )
    end: Tensor = path[-1]
    return end


def twin_difference(name: str) -> float:
    """RMS difference of a sampler's result and that of its twin in sdekit."""
    sigmas = sk.grids.log(STEPS[0], *RANGES[INNER])
    x = LAW_OF_FLOWS.sample(SAMPLES, sigmas[0], seed=SEED)
    flow = sk.EDM().probability_flow(LAW_OF_FLOWS)
    return rms(sk.solve(flow, x, method=TWINS[name], sigmas=sigmas).x - _flow(name, x, sigmas))


def tolerance_errors(name: str) -> list[tuple[float, float, float]]:
    """Tolerances, evaluations and errors of an adaptive solver."""
    high, low = RANGES[WHOLE]
    x = LAW_OF_FLOWS.sample(SAMPLES, high, seed=SEED)
    exact = LAW_OF_FLOWS.flow(x, high, low)
    found = []
    for tolerance in TOLERANCES:
        end, nfe = ODE_PEERS[name].run(LAW_OF_FLOWS, x, rtol=tolerance, atol=tolerance)
        found.append((tolerance, float(nfe.mean()), rms(end - exact)))
    return found


class Impulses:
    """Stands for all sources of normal numbers: one in a row of its own for each draw, else zero.

    torchsde draws again what it has forgotten, from the same seed: the same row.
    """

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}

    def draw(self, shape: tuple[int, ...], seed: int | None = None) -> Tensor:
        """Return the next impulse, or that of a seed; nothing where there are too few rows."""
        key = -1 - len(self.rows) if seed is None else seed
        row = self.rows.setdefault(key, len(self.rows) + 1)
        out = torch.zeros(shape, dtype=DOUBLE)
        if row < shape[0]:
            out[row] = 1
        return out

    def randn(self, *size: Any, **_: Any) -> Tensor:  # noqa: ANN401 (torch's signature)
        """In place of ``torch.randn``."""
        return self.draw(tuple(size[0]) if len(size) == 1 else size)

    def randn_like(self, x: Tensor, **_: Any) -> Tensor:  # noqa: ANN401
        """In place of ``torch.randn_like``."""
        return self.draw(tuple(x.shape))

    def seeded_randn(self, size: Any, dtype: Any, device: Any, seed: Any) -> Tensor:  # noqa: ANN401
        """In place of the source of torchsde's Brownian motions."""
        return self.draw(tuple(size), int(seed))


def law_errors(name: str, span: str, steps: tuple[int, ...] = LAW_STEPS) -> Curve:
    """Relative errors of the variance of the results for Gaussian data, without sampling."""
    high, low = RANGES[span]
    data = torch.tensor(VARIANCES, dtype=DOUBLE)

    def variance(n: int, rows: int) -> Tensor:
        x = torch.zeros((rows, len(data)), dtype=DOUBLE)
        x[0] = torch.sqrt(data + high**2)
        source = Impulses()
        with (
            seeded(SEED),
            patch("torch.randn", source.randn),
            patch("torch.randn_like", source.randn_like),
            patch("torchsde._brownian.brownian_interval._randn", source.seeded_randn),
        ):
            end = SDE_PEERS[name].run(_gaussian, x, sk.grids.log(n, high, low), n)[0]
        if len(source.rows) >= rows:
            return variance(n, len(source.rows) + 1)
        return end.square().sum(0)

    return [(n, rms(variance(n, 2 * n + 2) / (data + low**2) - 1)) for n in steps]


def _gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """Denoiser of independent Gaussian coordinates."""
    data = torch.tensor(VARIANCES, dtype=DOUBLE)
    return data / (data + sigma**2) * x


def path_errors(name: str) -> Curve:
    """Errors of torchsde along paths, of the reverse SDE of a mixture, by number of steps."""
    method = name.removeprefix("torchsde ")
    exact = _paths("srk", PATH_FINE)
    return [(n, rms(_paths(method, n) - exact)) for n in PATH_STEPS]


@cache
def _path_problem() -> tuple[Any, Tensor, torchsde.BrownianInterval]:
    """Reverse SDE in a time that is log σ, start states, and the path: all solves are along it."""
    law = sk.Product.random(2, 2, seed=0)
    reverse = sk.VE(0.25, 1.0).reverse(law, 1.0)
    reverse.noise_type = "additive"
    x = law.sample(64 * SAMPLES, 1.0, seed=SEED)
    path = torchsde.BrownianInterval(
        0.0,
        1.0,
        size=x.shape,
        dtype=DOUBLE,
        entropy=SEED,
        levy_area_approximation="space-time",
        cache_size=None,
    )
    return reverse.time_reversed(), x, path


@cache
def _paths(method: str, n: int) -> Tensor:
    sde, x, path = _path_problem()
    # The noise does not depend on the state: it is the same SDE after Stratonovich.
    sde.sde_type = "ito" if method in ("euler", "milstein", "srk") else "stratonovich"
    times = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ends = torchsde.sdeint(sde, x, times, bm=path, method=method, dt=1 / n)
    end: Tensor = ends[-1]
    return end


# --- what comes of it -----------------------------------------------------------------------------

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAMS = tuple(
    f"{kind}_adams{order}" for kind in ("explicit", "implicit") for order in ("", ", max_order 5")
)
SDE_METHODS = ("euler", "milstein", "srk", "heun", "midpoint", "euler_heun", "reversible_heun")


def cases() -> Iterator[tuple[str, str]]:
    """Yield kind and name of all that is measured."""
    # From 15 steps on the others lower no order at the end.
    for name in PEERS:
        if "full order" not in name or re.search("UniPC|SASolver", name):
            yield "flow", name
    for name in (*FIXED, *ADAMS):
        yield "flow", f"torchdiffeq {name}"
    for name in ODE_PEERS:
        yield "tolerance", name
    for name, peer in SDE_PEERS.items():
        # Churn and Langevin steps of one strength have no limit, and what jumps has no order.
        if "full order" not in name and peer.eta is not None:
            yield "law", name
    yield "law", "diffusers FlowMatchEuler stochastic"
    for method in SDE_METHODS:
        yield "path", f"torchsde {method}"


def measure(kind: str, name: str) -> dict[str, Any]:
    """Measure all curves of a sampler."""
    row: dict[str, Any] = {"kind": kind, "name": name, "package": name.split()[0]}
    begin = time.process_time()
    if kind == "tolerance":
        row["curves"] = {WHOLE: tolerance_errors(name)}
    elif kind == "path":
        row["curves"] = {PATH: path_errors(name)}
    else:
        errors = flow_errors if kind == "flow" else law_errors
        row["curves"] = {span: errors(name, span) for span in (WHOLE, INNER)}
        order = fit(row["curves"][INNER])["order"]
        if order is None or order < claimed(kind, name) - SLACK:
            row["curves"] |= {span: errors(name, span) for span in (FIRST, LAST)}
    if name in TWINS and kind == "flow":
        row |= {"twin": TWINS[name], "twin_difference": twin_difference(name)}
    return row | {"processor_seconds": round(time.process_time() - begin, 2)}


def fit(curve: Curve) -> dict[str, Any]:
    """Return the order of a curve and its standard error, and the slope of its last half."""
    steps, errors = zip(*curve, strict=True)
    found = estimate(steps, errors, floor=FLOOR)
    order, spread = (v if v is None else round(v, 3) for v in (found.order, found.order_se))
    late = -np.polyfit(np.log(steps[-4:]), np.log(errors[-4:]), 1)[0]
    return {"order": order, "se": spread, "late": round(float(late), 2), "says": found.verdict}


def analyse(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a sampler's curves say beside what is claimed."""
    kind, name, curves = row["kind"], row["name"], row["curves"]
    claim = claimed(kind, name)
    if kind == "tolerance":
        points = curves[WHOLE]
        fits = {
            EVALUATIONS: fit([(nfe, error) for _, nfe, error in points]),
            TOLERANCE: fit([(1 / rtol, error) for rtol, _, error in points]),
        }
        verdict = judge({TOLERANCE: fits[TOLERANCE]}, claim)
    else:
        fits = {span: fit(curve) for span, curve in curves.items()}
        verdict = judge(fits, claim)
    head = {key: row[key] for key in ("kind", "name", "package")}
    found = {"claimed": claim, "verdict": verdict}
    why = next((w for of, p, w in CAUSES if of == kind and re.search(p, name)), None)
    if why and verdict not in (*KEPT, OPEN):
        found["why"] = why
    rest = {key: row[key] for key in row if key not in head}
    return head | found | {"orders": fits} | rest


EVALUATIONS, TOLERANCE = "evaluations", "tolerance"
CLAIMED, MORE, LESS = "as claimed", "more than claimed", "less than claimed"
OPEN, STUCK, UNSTABLE = "undecided", "does not converge", "unstable at these steps"
KEPT = (CLAIMED, MORE)
ENDS = {FIRST: "first steps", LAST: "last steps"}


def judge(fits: dict[str, dict[str, Any]], claim: float) -> str:
    """Return whether an order is kept, and if only its ends lose it, which of them.

    A curve that shows no order can be far from what is claimed, by the slope of its last half; alone it
    does not decide that an order is lost.

    Args:
        fits: What `fit` returns, by range.
        claim: What is claimed.
    """
    slopes = {span: f["late"] if f["order"] is None else f["order"] for span, f in fits.items()}
    lost = {span for span, slope in slopes.items() if slope < claim - SLACK}
    main = [span for span in fits if span not in ENDS]
    # Zero-stable schemes may need smaller steps before they converge.
    if any(slopes[span] < -SLACK for span in main):
        return UNSTABLE
    if any(slopes[span] < SLACK for span in main):
        return STUCK
    unclear = {span for span in main if fits[span]["order"] is None}
    near = any(abs(slopes[span] - claim) <= 2 * SLACK for span in unclear)
    if not lost - unclear and (near or lost):
        return OPEN
    if not lost.intersection(main):
        return MORE if min(slopes[span] for span in main) > claim + SLACK else CLAIMED
    clear = {s for s in lost if fits[s]["order"] is not None or slopes[s] < claim - 2 * SLACK}
    ends = [end for span, end in ENDS.items() if span in clear]
    # Ends that cost an order cost it where they show: without them it is higher.
    if ends and slopes[WHOLE] >= slopes[INNER] + 2 * SLACK:
        return " and ".join(ends)
    return LESS


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure the orders of other packages' samplers.")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks/results/shipped.json",
        help="JSON file to write",
    )
    out = parser.parse_args().out
    torch.set_num_threads(1)
    part = out.with_suffix(".part")  # what was measured so far, if a run was stopped
    head = provenance(PACKAGES) | {"configuration": CONFIGURATION}
    done: dict[tuple[str, str], dict[str, Any]] = {}
    if part.exists():
        kept = json.loads(part.read_text(encoding="utf-8"))
        if all(kept[key] == head[key] for key in ("versions", "configuration")):
            done = {(row["kind"], row["name"]): row for row in kept["samplers"]}
    wanted = list(cases())
    for case in tqdm(wanted, desc="samplers"):
        if case not in done:
            done[case] = measure(*case)
            write_json(head | {"samplers": list(done.values())}, part)
    rows = [analyse(done[case]) for case in wanted]
    seconds = round(sum(row["processor_seconds"] for row in rows), 1)
    record = head | {"processor_seconds": seconds, "samplers": rows}
    write_json(record, out)
    part.unlink()
    show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the orders."""
    table = Table("sampler", "claimed", WHOLE, INNER, "verdict", box=None)
    for row in rows:
        fits = list(row["orders"].values())[:2]
        orders = [_text(f) for f in fits] + ["–"] * (2 - len(fits))
        table.add_row(row["name"], f"{row['claimed']:g}", *orders, row["verdict"])
    Console(width=110).print(table)


def _text(found: dict[str, Any]) -> str:
    return "–" if found["order"] is None else f"{found['order']:.2f} ± {found['se']:.2f}"


if __name__ == "__main__":
    main()
