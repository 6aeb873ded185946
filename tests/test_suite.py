"""The suite of deterministic methods: its ratios, goals, store, tables, pictures and command."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from typer.testing import CliRunner

import sdekit as sk
from sdekit import cli, suites_cli
from sdekit.bench.suites import suite
from sdekit.bench.suites.files import read_suite, write_suite
from sdekit.bench.suites.ratios import (
    ANY_GRID,
    FITTED,
    GOALS,
    OURS,
    PEER,
    PEER_OUR_GRIDS,
    SERIES,
    Ratios,
)
from sdekit.bench.suites.suite import SuiteCell, SuiteConfig, SuiteStore, run_suite
from sdekit.bench.suites.suite_plots import write_suite_plots
from sdekit.bench.suites.suite_report import print_suite_report

HAVE_PEERS = all(suites_cli.find_spec(name) for name in ("diffusers", "azula"))
DEFAULT = SERIES["default"]


def cell(problem, group, method, budget, error):
    return SuiteCell(problem, group, method, "karras", budget, budget, error)


def made(errors):
    """Cells from ``{(problem, group, method): error}``, at budget 10."""
    return [cell(*key, 10, error) for key, error in errors.items()]


CELLS = made(
    {
        ("mixture2d", OURS, "bayesian_adams"): 1e-3,
        ("mixture2d", OURS, "ddim"): 8e-4,
        ("mixture2d", FITTED, "bayesian_adams"): 5e-4,
        ("mixture2d", PEER, "A"): 4e-3,
        ("mixture2d", PEER, "B"): 2e-3,
        ("mixture2d", PEER, "C"): None,
        ("mixture2d", PEER_OUR_GRIDS, "A"): 1e-3,
        ("wide16d", OURS, "bayesian_adams"): 1e-2,
        ("wide16d", PEER, "A"): 8e-2,
        ("wide16d", PEER_OUR_GRIDS, "A"): 9e-2,
        ("gaussian32d", OURS, "bayesian_adams"): 1e-13,  # below the floor
        ("gaussian32d", PEER, "A"): 1e-3,
        ("broad3d", OURS, "bayesian_adams"): None,  # failed
        ("broad3d", PEER, "A"): 1e-3,
        ("digits", OURS, "bayesian_adams"): 3e-2,
        ("digits", PEER, "A"): 2e-2,
    }
)


def test_ratios_are_exact():
    ratios = Ratios(CELLS)
    found = ratios.at(10, DEFAULT)
    assert found.mean == pytest.approx(math.sqrt(0.5 * 0.125), rel=1e-14)
    assert found.worst == (pytest.approx(0.5), "mixture2d")
    assert found.network == pytest.approx(1.5)
    assert (found.compared, found.skipped) == (2, 2)
    # Given sdekit's grids, too, a peer can only gain: on the second problem it did not.
    assert ratios.at(10, DEFAULT, ANY_GRID).mean == pytest.approx(math.sqrt(1.0 * 0.125))
    assert ratios.at(10, SERIES["default, fitted"]).mean == pytest.approx(0.25)
    assert ratios.at(10, SERIES["default, fitted"]).skipped == 3
    assert ratios.at(10, SERIES["best of sdekit"]).worst == (pytest.approx(0.4), "mixture2d")
    assert ratios.at(10, SERIES["lms4"]).mean is None
    assert ratios.best("mixture2d", 10, (PEER,)).method == "B"


def test_goals_are_judged():
    goals = {goal.name: goal for goal in GOALS}
    ratios = Ratios(CELLS)
    assert goals["default"].bound(5) is None
    assert [goals["default"].bound(n) for n in (6, 8, 10, 15, 20, 120)] == [0.7] * 2 + [0.4] * 2 + [
        0.3
    ] * 2
    fitted = {n: goals["fitted"].bound(n) for n in suite.BUDGETS}
    assert fitted == {
        **dict.fromkeys(suite.BUDGETS),
        **{6: 0.4, 8: 0.4, 10: 0.3, 15: 0.2, 20: 0.2, 40: 0.1, 80: 0.03},
    }
    assert goals["any grid"].bound(6) is None
    assert ratios.met(goals["default"], 10) is True  # 0.25 of 0.4
    assert ratios.met(goals["any grid"], 10) is True  # 0.35 of 0.7
    assert ratios.met(goals["digits"], 10) is False  # 1.5 of 1
    assert ratios.met(goals["digits"], 30) is None
    assert ratios.met(goals["default"], 6) is None  # nothing was run


def test_methods_are_ranked_by_the_error_beside_the_default():
    cells = [
        *(
            cell("mixture2d", OURS, name, 10, e)
            for name, e in (("bayesian_adams", 1e-3), ("b", 2e-3))
        ),
        *(
            cell("mixture2d", OURS, name, 12, e)
            for name, e in (("bayesian_adams", 1e-3), ("b", 8e-3))
        ),
        cell("mixture2d", OURS, "c", 10, 1e-9),  # not run at 12
    ]
    ranking = Ratios(cells).ranking((10, 12), ["mixture2d"])
    assert ranking == [("bayesian_adams", 1.0), ("b", pytest.approx(4.0))]


def test_the_store_goes_on_after_a_line_that_was_cut(tmp_path):
    config = SuiteConfig(problems=("mixture2d",), samples=8)
    store = SuiteStore(tmp_path, config)
    first, second = CELLS[:2]
    store.add(first)
    store.add(second)
    (file,) = tmp_path.glob("*.jsonl")
    text = file.read_text(encoding="utf-8")
    file.write_text(text[: len(text) - 20], encoding="utf-8")  # as of a run that was killed
    again = SuiteStore(tmp_path, config)
    assert list(again.cells.values()) == [first]
    again.add(second)
    again.add(CELLS[2])
    assert list(SuiteStore(tmp_path, config).cells.values()) == [first, second, CELLS[2]]
    other = SuiteStore(tmp_path, replace(config, seed=1))
    assert not other.cells


@pytest.fixture(scope="module")
def small():
    """The suite with few methods, and three peers."""
    chosen = ("diffusers DDIM", "azula vAB 2", "diffusers HeunDiscrete")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "PEERS", {name: suite.PEERS[name] for name in chosen})
        entries = sk.methods()
        names = (
            "bayesian_adams",
            "adams2",
            "adams3",
            "adams4",
            "ddim",
            "edm_heun",
            "dpmpp_2m",
            "dopri5",
        )
        patch.setattr(suite, "methods", lambda: {name: entries[name] for name in names})
        yield


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    """A tiny run: the folder of its cells, its configuration and the cells."""
    folder = tmp_path_factory.mktemp("suite") / "cells"
    config = SuiteConfig(("mixture2d",), budgets=(5, 8), samples=8, peers=HAVE_PEERS)
    return folder, config, run_suite(config, folder)


def test_a_run_is_complete_and_goes_on(run, monkeypatch):
    folder, config, cells = run
    groups = {group: [c for c in cells if c.group == group] for group in {c.group for c in cells}}
    assert len(groups[OURS]) == 16
    assert len(groups[FITTED]) == 8
    assert {c.grid for c in groups[FITTED]} == {"fitted"}
    for c in groups[OURS] + groups[FITTED]:
        stages = {"edm_heun": 2, "dopri5": 6}.get(c.method, 1)
        assert c.nfe == c.budget // stages * stages
        assert (c.error is None) if c.nfe == 0 else (0 < c.error < 10)
    ours = {c.budget: c for c in groups[OURS] if c.method == "bayesian_adams"}
    problem = suite.make_problem("mixture2d", samples=8)
    sigmas = sk.grids.balanced(8, 80.0, 0.002, sigma_data=problem.denoiser.sigma_data)
    x, solution = problem.solve("bayesian_adams", sigmas=sigmas)
    reference = SuiteStore(folder, config).reference(problem)
    assert solution.nfe == 8
    assert ours[8].error == pytest.approx(suite.rms(x - reference), rel=1e-9)
    if HAVE_PEERS:
        shipped = {(c.method, c.grid) for c in groups[PEER]}
        assert {method for method, _ in shipped} == set(suite.PEERS)
        assert {c.grid for c in groups[PEER_OUR_GRIDS]} == set(suite.our_grids(1.0))
    # Another run has nothing to do.
    monkeypatch.setattr(suite.Problem, "solve", None)
    monkeypatch.setattr(suite.Peer, "run", None)
    assert run_suite(config, folder) == cells


@pytest.mark.skipif(not HAVE_PEERS, reason="needs diffusers and azula")
def test_peers_run_where_no_budget_is_one_of_the_first(run, tmp_path):
    shutil.copy(next(run[0].glob("reference*")), tmp_path)
    cells = run_suite(replace(run[1], budgets=(5,)), tmp_path)
    assert any(c.group == PEER for c in cells)


def test_the_record_can_be_read_back(run, tmp_path):
    _, config, cells = run
    cells = cells if HAVE_PEERS else [*cells, *made({("mixture2d", PEER, "A"): 0.5})]
    path = tmp_path / "suite.json"
    write_suite(config, cells, path)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["configuration"]["samples"] == 8
    assert {"diffusers", "azula"} < record["versions"].keys() or not HAVE_PEERS
    again = read_suite(path)
    before, after = Ratios(cells), Ratios(again)
    ours = [c for c in cells if c.group in (OURS, FITTED)]
    assert len([c for c in again if c.group in (OURS, FITTED)]) == len(ours)
    assert len([c for c in again if c.group == PEER]) == len(before.budgets)
    for budget in before.budgets:
        for series in SERIES.values():
            for against in ((PEER,), ANY_GRID):
                left, right = (r.at(budget, series, against).mean for r in (before, after))
                assert left == right or left == pytest.approx(right, rel=1e-5)


def test_the_report_names_every_goal(capsys):
    cells = [replace(c, budget=n, nfe=n) for c in CELLS for n in suite.BUDGETS]
    print_suite_report(cells, Console(width=110))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 110
    for word in (
        "default",
        "fitted",
        "any grid",
        "digits",
        "✓",
        "✗",
        "0.25",
        "0.35",
        "1.5",
        "wide16d",
    ):
        assert word in text
    assert "goal 'digits': 0 of 9 met" in text
    assert "2 at 5" in text  # left out
    assert "…" not in text
    print_suite_report([c for c in cells if c.group in (OURS, FITTED)], Console(width=110))
    assert "nothing to compare with" in capsys.readouterr().out


def test_pictures_are_drawn_and_repeat(run, tmp_path):
    cells = [replace(c, budget=n, nfe=n) for c in CELLS for n in suite.BUDGETS]
    first = write_suite_plots(cells, tmp_path / "first")
    again = write_suite_plots(cells, tmp_path / "again")
    assert [path.name for path in first] == [
        f"suite_{stem}.{suffix}" for stem in ("ratios", "errors") for suffix in ("png", "svg")
    ]
    for left, right in zip(first, again, strict=True):
        assert left.read_bytes() == right.read_bytes()
        if left.suffix == ".png":
            picture = imread(left)[..., :3]
            assert picture.var() > 0.003
            assert picture.mean() > 0.8  # mostly paper
    ours = [c for c in run[2] if c.group in (OURS, FITTED)]
    assert [path.stem for path in write_suite_plots(ours, tmp_path)] == ["suite_errors"] * 2


def invoke(*args):
    threads = torch.get_num_threads()
    result = CliRunner().invoke(cli.app, ["bench", *map(str, args)])
    torch.set_num_threads(threads)
    return result


def test_the_command_goes_on_with_a_suite(run):
    folder = run[0].parent
    args = ["suite", "ode", "--quick", "--problems", "mixture2d", "--nfe", "8", "--out", folder]
    result = invoke(*args, *([] if HAVE_PEERS else ["--no-peers"]))
    assert result.exit_code == 0, result.output
    assert "The best peer, by problem" in result.stdout
    record = json.loads((folder / "suite.json").read_text(encoding="utf-8"))
    assert record["configuration"]["budgets"] == [8]
    assert (folder / "suite_errors.svg").exists()
    errors = [error for curve in record["curves"] for error in curve["errors"]]
    assert np.isfinite(errors).all()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["suite", "pde"], "unknown suite 'pde'; there is 'ode'"),
        (["suite", "ode", "--methods", "heun"], "--methods goes without the suite"),
        (["suite", "ode", "--problems", "mixture2", "--no-peers"], "did you mean 'mixture2d'"),
        (["suite", "ode", "--nfe", "0", "--no-peers"], "at least 1"),
    ],
)
def test_bad_input_is_one_line_and_code_2(args, message, tmp_path):
    result = invoke(*args, "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_missing_peers_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(suites_cli, "find_spec", lambda name: None if name == "azula" else "there")
    result = invoke("suite", "ode", "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert "the suite runs azula, not installed here: pip install 'sdekit[bench]'" in result.stderr
