"""The suite of adaptive methods: its peers, store, costs, tables and command."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import sdekit as sk
from sdekit import cli
from sdekit.bench import problems
from sdekit.bench.peers import ODE_PEERS
from sdekit.bench.peers.of_ode import OutOfEvaluationsError
from sdekit.bench.problems import SIGMA_MAX, SIGMA_MIN, rms
from sdekit.bench.recommend import nfe_to_reach
from sdekit.bench.suites import tolerance
from sdekit.bench.suites.cells import CellStore
from sdekit.bench.suites.files import read_tolerances, write_tolerances
from sdekit.bench.suites.ratios import OURS, PEER
from sdekit.bench.suites.tolerance import (
    RTOLS,
    ToleranceCell,
    ToleranceConfig,
    run_tolerances,
)
from sdekit.bench.suites.tolerance_ratios import DECADES, Costs
from sdekit.bench.suites.tolerance_report import print_tolerance_report

DEFAULT = tolerance.default_methods()[0]
TWO_PEERS = ("scipy DOP853", "torchdiffeq bosh3 in t")


def cell(problem, group, method, rtol, nfe, error, mode="alone", factor=1.0):
    nfe = nfe if error is not None else None
    return ToleranceCell(
        problem, group, method, mode, rtol, factor * rtol, nfe, nfe, error, 0.1, "success"
    )


# --- peers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(product):
    return product.sample(3, sigma=SIGMA_MAX, seed=0, dtype=torch.float64)


@pytest.mark.parametrize("name", ODE_PEERS)
def test_a_peer_solves_the_flow_and_counts_every_call(name, product, start):
    rows = []

    def counting(x, sigma):
        rows.append(len(x))
        return product(x, sigma)

    exact = product.flow(start, SIGMA_MAX, SIGMA_MIN)
    errors = []
    for rtol in (1e-2, 1e-5):
        rows.clear()
        x, nfe = ODE_PEERS[name].run(counting, start, rtol=rtol, atol=rtol)
        assert nfe.tolist() == [len(rows)] * 3
        assert set(rows) == {3}
        errors.append(rms(x - exact))
    assert errors[1] < 1e-3
    assert errors[1] < errors[0] / 20
    # Alone, every sample takes its own steps, and what is not there has no say.
    rows.clear()
    x, nfe = ODE_PEERS[name].run(counting, start, rtol=1e-4, atol=1e-4, mode="alone")
    assert set(rows) == {1}
    assert nfe.sum() == len(rows)
    last, count = ODE_PEERS[name].run(product, start[2:], rtol=1e-4, atol=1e-4)
    assert torch.equal(x[2:], last)
    assert nfe[2] == count[0]
    assert rms(x - exact) < 1e-2


@pytest.mark.parametrize("name", ODE_PEERS)
def test_a_peer_stops_where_its_evaluations_end(name, product, start):
    calls = []

    def counting(x, sigma):
        calls.append(sigma)
        return product(x, sigma)

    with pytest.raises(OutOfEvaluationsError, match="more than 30"):
        ODE_PEERS[name].run(counting, start, rtol=1e-6, atol=1e-6, max_nfe=30)
    assert len(calls) == 30


def test_a_mode_that_there_is_not(product, start):
    with pytest.raises(ValueError, match="'each'; there are batch, alone"):
        ODE_PEERS["scipy RK45"].run(product, start, rtol=1e-2, atol=1e-2, mode="each")


# --- costs --------------------------------------------------------------------------------------


def test_a_cost_is_interpolated_on_the_envelope():
    line = [(10, 1e-1), (20, 1e-2), (40, 1e-3), (80, 1e-4)]
    assert nfe_to_reach(line, 1e-3) == 40
    assert nfe_to_reach(line, 10**-2.5) == pytest.approx(20 * math.sqrt(2), rel=1e-14)
    assert nfe_to_reach(reversed(line), 10**-3.25) == pytest.approx(40 * 2**0.25, rel=1e-14)
    assert nfe_to_reach(line, 1.0) == 10  # nothing is known of fewer evaluations
    assert nfe_to_reach(line, 1e-5) is None
    assert nfe_to_reach([], 1.0) is None
    # Dearer and worse points say nothing: the envelope goes past them.
    assert nfe_to_reach([*line, (30, 5e-2), (40, 2e-3), (70, 1e-3)], 10**-2.5) == pytest.approx(
        20 * math.sqrt(2), rel=1e-14
    )
    # A lucky solve makes all that are dearer and no better needless.
    assert nfe_to_reach([*line, (15, 1e-4)], 1e-4) == 15


CELLS = [
    cell("mixture2d", OURS, DEFAULT, 1e-3, 20, 1e-3),
    cell("mixture2d", OURS, DEFAULT, 1e-5, 45, 1e-5),
    cell("mixture2d", OURS, "tsit5_theta", 1e-3, 10, 1e-3),
    cell("mixture2d", PEER, "A", 1e-2, 60, 1e-3, "batch"),
    cell("mixture2d", PEER, "A", 1e-2, 40, 1e-3, "alone", 10.0),
    cell("mixture2d", PEER, "A", 1e-6, 70, None, "alone"),
    cell("mixture2d", PEER, "B", 1e-2, 50, 1e-5),
    cell("wide16d", OURS, DEFAULT, 1e-3, 25, 1e-3),
    cell("wide16d", OURS, DEFAULT, 1e-4, 26, None),
    cell("wide16d", PEER, "A", 1e-3, 100, 1e-3),
    cell("wide16d", PEER, "A", 1e-6, 200, 1e-8),
    cell("digits", OURS, DEFAULT, 1e-3, 30, 9e-6),
]


def test_ratios_are_exact():
    costs = Costs(CELLS)
    assert costs.problems == ("mixture2d", "digits", "wide16d")
    loose = costs.compare("mixture2d", 1e-3)
    assert loose.ratio == 0.5
    assert (loose.peer.method, loose.peer.setting) == ("A", "alone, atol = 10 rtol")
    assert costs.compare("mixture2d", 1e-5).ratio == 0.9
    assert costs.compare("mixture2d", 1e-8).ratio is None  # no peer arrives
    assert costs.compare("digits", 1e-5).ratio is None
    assert costs.mean(1e-3) == pytest.approx(math.sqrt(0.5 * 0.25), rel=1e-14)
    assert (costs.worst(1e-3).problem, costs.worst(1e-3).ratio) == ("mixture2d", 0.5)
    # Only the peer arrives: that is lost by any factor.
    assert costs.compare("wide16d", 1e-5).ratio == math.inf
    assert costs.mean() == math.inf
    assert costs.worst().problem == "wide16d"
    assert costs.beside_best_peer(OURS, "tsit5_theta", 1e-3) == (0.25, 1)
    assert costs.beside_best_peer(PEER, "B", 1e-3) == (1.25, 1)
    assert costs.beside_best_peer(PEER, "B", 1e-8) == (None, 0)


def test_achieved_errors_are_judged():
    errors = [1e-2, 2e-3, 9.9e-4, 1e-3, 1.01e-7, 9e-8, None, 1e-8, 9.99e-10]
    cells = [
        cell("mixture2d", OURS, DEFAULT, rtol, 10, error)
        for rtol, error in zip(DECADES, errors, strict=True)
    ]
    (row,) = Costs(cells).proportions()
    assert row.ratios[1] == pytest.approx(2)
    assert row.outside == (False, False, False, True, False, False, True, False, False)
    assert row.rising == (False, False, False, True, *[False] * 5)


def test_the_report_names_what_is_missed(capsys):
    print_tolerance_report(CELLS, Console(width=110))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 110
    for word in ("0.5 ✓", "0.9 ✗", "∞ ✗", "alone, atol = 10 rtol", "(1 of 2)", DEFAULT):
        assert word in text
    assert "…" not in text
    print_tolerance_report([c for c in CELLS if c.group == OURS], Console(width=110))
    assert "best peer's, geometric mean" not in capsys.readouterr().out


# --- running ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run: the folder of its cells, its configuration and the store."""
    folder = tmp_path_factory.mktemp("adaptive") / "cells"
    config = ToleranceConfig(("gaussian32d",), (DEFAULT,), RTOLS[2:13:2], samples=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "REFERENCE_TOLERANCE", 1e-9)
        patch.setattr(tolerance, "_TARGETS", (1e-3, 1e-5))
        patch.setattr(tolerance, "_HOPELESS", 1.2)
        patch.setattr(tolerance, "ODE_PEERS", {name: ODE_PEERS[name] for name in TWO_PEERS})
        yield folder, config, run_tolerances(config, folder)


def test_a_run_is_complete_and_goes_on(run, monkeypatch):
    folder, config, store = run
    ours = [c for c in store.cells.values() if c.group == OURS]
    assert [c.rtol for c in ours] == list(config.rtols)
    assert {(c.mode, c.status) for c in ours} == {("alone", "success")}
    problem = tolerance.make_problem("gaussian32d", samples=2)
    x, solution = problem.solve(DEFAULT, sigmas=[SIGMA_MAX, SIGMA_MIN], rtol=1e-4, atol=1e-4)
    (at,) = [c for c in ours if math.isclose(c.rtol, 1e-4)]
    assert at.nfe == pytest.approx(np.mean(solution.stats.nfe_per_sample))
    assert at.nfe_max == solution.nfe
    assert at.error == pytest.approx(rms(x - store.reference(problem)), rel=1e-6)
    assert 0 < store.floor("gaussian32d") < 1e-6
    settings = {(c.method, c.setting) for c in store.cells.values() if c.group == PEER}
    names = {f"{mode}{more}" for mode in ("batch", "alone") for more in ("", ", atol = 10 rtol")}
    assert settings == {(method, name) for method in TWO_PEERS for name in names}
    for c in store.cells.values():
        assert c.error is None or c.nfe <= c.nfe_max
    # What a third-order method would need in the end is not found out.
    assert any("evaluations are needed" in c.status for c in store.cells.values())
    # Another run has nothing to do.
    monkeypatch.setattr(tolerance.Problem, "solve", None)
    monkeypatch.setattr(tolerance.OdePeer, "run", None)
    again = run_tolerances(config, folder)
    assert again.cells == store.cells


def test_named_methods_are_measured_anew_and_the_others_left_alone(run, tmp_path, monkeypatch):
    _, config, store = run
    copy = CellStore(tmp_path, ToleranceCell, samples=2, seed=0)
    for c in store.cells.values():
        copy.add(replace(c, seconds=-1.0))
    (tmp_path / store._reference_path("gaussian32d").name).write_bytes(
        store._reference_path("gaussian32d").read_bytes()
    )
    monkeypatch.setattr(tolerance.OdePeer, "run", None)
    again = run_tolerances(config, tmp_path, anew=(DEFAULT,))
    for found in (again, CellStore(tmp_path, ToleranceCell, samples=2, seed=0)):
        assert found.cells.keys() == store.cells.keys()
        for c in found.cells.values():
            assert (c.seconds > 0) == (c.method == DEFAULT)
    assert not list(tmp_path.glob("*.tmp"))


def test_the_record_can_be_read_back(run, tmp_path):
    _, config, store = run
    path = tmp_path / "adaptive.json"
    write_tolerances(config, store, path)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["configuration"]["seed"] == 0
    assert record["hardware"]["cpu"]
    assert "torchdiffeq" in record["versions"]
    before, after = Costs(store.cells.values()), Costs(read_tolerances(path))
    assert record["mean_ratio"]["0.001"] == pytest.approx(before.mean(1e-3), rel=1e-5)
    assert after.mean() == pytest.approx(before.mean(), rel=1e-4)
    (left,), (right,) = before.proportions(), after.proportions()
    assert (left.outside, left.rising) == (right.outside, right.rising)
    assert len(after.cells) == len(before.cells)


# --- the command --------------------------------------------------------------------------------


def invoke(*args):
    threads = torch.get_num_threads()
    result = CliRunner().invoke(cli.app, ["bench", *map(str, args)])
    torch.set_num_threads(threads)
    return result


def test_the_command_runs_and_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(problems, "REFERENCE_TOLERANCE", 1e-9)
    args = ["suite", "adaptive", "--quick", "--no-peers", "--problems", "gaussian32d"]
    result = invoke(*args, "--methods", f"{DEFAULT},tsit5_theta", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "Achieved error / rtol" in result.stdout
    record = json.loads((tmp_path / "adaptive.json").read_text(encoding="utf-8"))
    assert record["configuration"]["samples"] == 4
    assert {curve["method"] for curve in record["curves"]} == {DEFAULT, "tsit5_theta"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--nfe", "10"], "--nfe goes without the suite"),
        (["--methods", "ddim"], "method 'ddim' takes no tolerance"),
        (["--methods", "dopri"], "did you mean"),
        (["--problems", "mixture2"], "did you mean 'mixture2d'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(args, message, tmp_path):
    result = invoke("suite", "adaptive", *args, "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_methods_are_those_that_there_are():
    config = ToleranceConfig()
    assert config.methods[0] == DEFAULT
    assert all(name in sk.methods() for name in config.methods)
    assert set(config.problems) == set(tolerance.SUITES["adaptive"])
