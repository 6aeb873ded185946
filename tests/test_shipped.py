"""What shipped samplers really do: the script that measures it, and its findings measured again."""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import sdekit as sk

pytest.importorskip("diffusers")
pytest.importorskip("azula")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import shipped  # noqa: E402
from shipped import FIRST, INNER, LAST, WHOLE, analyse, claimed, judge, measure  # noqa: E402

RECORD = json.loads((ROOT / "benchmarks/results/shipped.json").read_text(encoding="utf-8"))
ROWS = {(row["kind"], row["name"]): row for row in RECORD["samplers"]}


# ---- the findings ----

# A verdict of each kind, of a correct sampler beside each that is not.
AGAIN = {
    "azula REAB 2": "less than claimed",
    "azula vAB 2": "as claimed",
    "diffusers DPMSolverMultistep dpmsolver++ 3M": "less than claimed",
    "azula xEAB 3": "first steps",
    "diffusers UniPCMultistep bh2 2 data": "last steps",
    "diffusers UniPCMultistep bh2 2 data full order": "as claimed",
    "torchdiffeq explicit_adams": "unstable at these steps",
}


@pytest.mark.parametrize("name", AGAIN)
def test_what_is_published_is_measured_again(name, monkeypatch):
    """On fewer steps: the same verdict, and the same errors to round-off."""
    steps = (36, 48, 72, 96)
    for function in ("flow_errors", "law_errors"):
        whole = getattr(shipped, function)
        monkeypatch.setattr(shipped, function, lambda n, span, run=whole: run(n, span, steps))
    row, published = analyse(measure("flow", name)), ROWS["flow", name]
    assert row["verdict"] == published["verdict"] == AGAIN[name]
    for span, curve in row["curves"].items():
        before = dict(map(tuple, published["curves"][span]))
        for n, error in curve:
            # What is unstable multiplies round-off, which is another one on another machine.
            if before[n] < 1:
                assert error == pytest.approx(before[n], rel=1e-6, abs=1e-13)


def test_the_analysis_of_the_curves_is_the_published_one():
    for row in RECORD["samplers"]:
        raw = {k: row[k] for k in row if k not in ("claimed", "verdict", "why", "orders")}
        again = json.loads(json.dumps(analyse(raw)))
        assert {k: again[k] for k in again if k != "orders"} == {
            k: row[k] for k in row if k != "orders"
        }
        for span, found in row["orders"].items():
            assert again["orders"][span].pop("says")[:8] == found.pop("says")[:8]
            assert again["orders"][span] == pytest.approx(found, abs=2e-3)


def test_all_cases_are_published_and_nothing_else():
    assert list(ROWS) == list(shipped.cases())


def test_the_namesakes_give_the_same_samples():
    found = {row["name"]: row["twin_difference"] for row in ROWS.values() if "twin" in row}
    assert found.keys() == {name for name in shipped.TWINS if ("flow", name) in ROWS}
    assert len(found) > 30
    assert max(found.values()) < 1e-13
    assert shipped.twin_difference("diffusers DPMSolverMultistep dpmsolver++ 3M") < 1e-13


def test_paths_follow_one_brownian_motion():
    """Itô's and Stratonovich's methods come to the same states, at their own orders."""
    for method in ("euler", "heun", "srk"):
        published = ROWS["path", f"torchsde {method}"]["curves"][shipped.PATH]
        assert published[0][1] / published[-1][1] > 8
    ends = {method: shipped._paths(method, 64) for method in ("euler", "heun")}
    finer = {method: shipped._paths(method, 256) for method in ends}
    coarse, fine = (float((e["euler"] - e["heun"]).square().mean().sqrt()) for e in (ends, finer))
    assert coarse / fine == pytest.approx(4, rel=0.3)


# ---- errors of laws, against recursions written out ----


def ancestral(v, sigmas):
    """Variance after ancestral steps: posterior mean and variance of the level below, D as known."""
    variance = v + sigmas[0] ** 2
    for s, t in pairwise(sigmas):
        up = t * math.sqrt(1 - (t / s) ** 2)
        down = t**2 / s
        factor = 1 + (down - s) * s / (v + s**2)
        variance = factor**2 * variance + up**2
    return variance


def euler_maruyama(v, sigmas):
    """The reverse SDE of ``dx = sqrt(2σ) dW``, in σ."""
    variance = v + sigmas[0] ** 2
    for s, t in pairwise(sigmas):
        factor = 1 - 2 * s * (s - t) / (v + s**2)
        variance = factor**2 * variance + 2 * s * (s - t)
    return variance


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("diffusers EulerAncestral", ancestral),
        ("azula DDPM", ancestral),
        ("torchsde euler EDM 1", euler_maruyama),
    ],
)
def test_laws_are_exact(name, oracle):
    """Whichever of torch's sources the numbers come from."""
    n, low = 12, shipped.RANGES[INNER][1]
    sigmas = sk.grids.log(n, *shipped.RANGES[INNER])
    data = np.array(shipped.VARIANCES)
    errors = np.array([oracle(v, sigmas) for v in data]) / (data + low**2) - 1
    found = shipped.law_errors(name, INNER, (n,))[0][1]
    assert found == pytest.approx(float(np.sqrt(np.mean(errors**2))), rel=1e-10)


def test_a_number_drawn_twice_is_one_number():
    """torchsde forgets intervals of its motion, and draws them again from the same seed."""
    source = shipped.Impulses()
    first, other, again = (source.seeded_randn((4, 2), None, None, k) for k in (7, 8, 7))
    assert (first == again).all()
    assert first[1].tolist() == other[2].tolist() == [1, 1]
    assert not (first * other).any()
    assert source.randn_like(first)[3].tolist() == [1, 1]
    assert not source.randn(4, 2).any()  # no row is left: too few are noticed by their number
    assert len(source.rows) == 4


# ---- claims and verdicts ----


def test_everything_has_a_claim():
    for kind, name in shipped.cases():
        assert claimed(kind, name) >= 1
    assert claimed("flow", "azula zEAB 4") == 4
    assert claimed("flow", "diffusers UniPCMultistep bh2 2 data") == 3  # with its corrector
    with pytest.raises(ValueError, match="nothing in CLAIMS says what the flow order of 'RK9'"):
        claimed("flow", "RK9")


def fits(**orders):
    """Fits by range; an order in a tuple is that of a curve that is not straight."""
    spans = {"whole": WHOLE, "inner": INNER, "first": FIRST, "last": LAST}
    return {
        spans[key]: {"order": None, "late": order[0]}
        if isinstance(order, tuple)
        else {"order": order, "late": 0.0}
        for key, order in orders.items()
    }


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (fits(whole=2.8, inner=3.1), "as claimed"),
        (fits(whole=3.6, inner=3.7), "more than claimed"),
        (fits(whole=3.6, inner=3.1), "as claimed"),
        (fits(whole=2.9, inner=2.1, first=2.2, last=3.0), "first steps"),
        (fits(whole=2.9, inner=2.1, first=3.0, last=2.0), "last steps"),
        (fits(whole=2.9, inner=2.1, first=2.2, last=2.0), "first steps and last steps"),
        (fits(whole=2.6, inner=2.0, first=(2.1,), last=2.9), "first steps"),
        (fits(whole=2.1, inner=2.0, first=2.2, last=2.0), "less than claimed"),
        (fits(whole=(2.1,), inner=2.0, first=2.2, last=2.0), "less than claimed"),
        (fits(whole=(2.9,), inner=3.0, first=3.0, last=3.0), "undecided"),
        (fits(whole=2.0, inner=(2.9,), first=2.0, last=2.0), "less than claimed"),
        (fits(whole=3.0, inner=(2.2,), first=3.0, last=3.0), "undecided"),
        (fits(whole=3.0, inner=(2.2,), first=(2.2,), last=3.0), "first steps"),
        (fits(whole=(3.9,), inner=3.8), "more than claimed"),
        (fits(whole=0.0, inner=2.0, first=2.0, last=2.0), "does not converge"),
        (fits(whole=(-8.0,), inner=(-7.0,), first=2.0, last=2.0), "unstable at these steps"),
        (fits(whole=2.8, inner=2.0, first=2.2, last=(2.6,)), "first steps"),
    ],
)
def test_verdicts(found, verdict):
    assert judge(found, 3.0) == verdict


# ---- the run ----


def test_a_stopped_run_goes_on(tmp_path, monkeypatch, capsys):
    names, done = ["azula DDIM", "azula Heun", "azula Euler"], []

    def stop_once(kind, name):
        if name == names[1] and len(done) == 1:
            done.append(None)
            raise KeyboardInterrupt
        done.append(name)
        curve = [(n, n**-2.0) for n in shipped.STEPS]
        return {
            "kind": kind,
            "name": name,
            "package": "azula",
            "curves": {WHOLE: curve, INNER: curve},
            "processor_seconds": 1.0,
        }

    out = tmp_path / "shipped.json"
    monkeypatch.setattr(shipped, "cases", lambda: (("flow", name) for name in names))
    monkeypatch.setattr(shipped, "measure", stop_once)
    monkeypatch.setattr(sys, "argv", ["shipped.py", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        shipped.main()
    assert not out.exists()
    shipped.main()
    assert done == [names[0], None, *names[1:]]
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [row["name"] for row in record["samplers"]] == names
    assert [row["verdict"] for row in record["samplers"]] == [
        "more than claimed",
        "as claimed",
        "more than claimed",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["shipped.json"]
    assert "azula Heun" in capsys.readouterr().out
    # What was measured otherwise is not taken up.
    out.with_suffix(".part").write_text(
        json.dumps(record | {"configuration": {"steps": [1]}}), encoding="utf-8"
    )
    shipped.main()
    assert done[-3:] == names
