"""The command line of the benchmark, its problems and their references."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.integrate import solve_ivp
from typer.testing import CliRunner

import sdekit as sk
from sdekit.bench import make_problem, read_results, solve_reference
from sdekit.bench.peers import ODE_PEERS, PEERS, SDE_PEERS
from sdekit.bench.plots import spread
from sdekit.bench.problems import PROBLEMS
from sdekit.cli import app

LAW = sk.Gaussian([0.0, 1.0], [[0.5, 0.2], [0.2, 0.3]])


def load():
    """The network of the user in these tests; its reference takes no time."""
    return LAW


ON_MODEL = ["bench", "--denoiser", "test_bench:load", "--process", "edm", "--samples", "4"]


def invoke(*args: str):
    threads = torch.get_num_threads()
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    torch.set_num_threads(threads)
    return result


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A question through the command: the folder it wrote and what it printed."""
    folder = tmp_path_factory.mktemp("bench") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        result = invoke(*ON_MODEL, "--at", 12, "--export", "csv", "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def test_the_question_is_answered(bench):
    folder, said = bench
    results = read_results(folder / "results.json")
    at = {m.setting.method: m for m in results.measurements if m.setting.budget == 12}
    best = min((m for m in results.measurements if m.nfe <= 12), key=lambda m: m.metrics["rms"])
    (sentence,) = re.findall(r"For 12 evaluations: .*", said)
    assert best.setting.method in sentence
    assert f"{best.metrics['rms']:.1e}" in sentence
    assert len(at) > 5
    for m in at.values():
        assert m.nfe <= 12


def test_what_is_written_is_named_and_there(bench):
    folder, said = bench
    for name in ("results.json", "report.html", "rms_model.png", "answer_model_12.pdf"):
        assert str(folder / name) in said
        assert (folder / name).stat().st_size > 1000
    picture = imread(folder / "answer_model_12.png")[..., :3]
    assert picture.var() > 0.005
    assert picture.mean() > 0.8  # mostly paper
    table = next(folder.glob("*.csv")).read_text(encoding="utf-8")
    assert "bayesian_adams" in table


def test_a_second_run_only_reports(bench, monkeypatch):
    from sdekit.bench import laboratory

    monkeypatch.delattr(laboratory, "_measure")
    again = invoke(*ON_MODEL, "--at", 12, "--out", bench[0])
    assert again.exit_code == 0, again.output
    assert "For 12 evaluations" in again.stdout


def test_two_folders_are_compared(bench, tmp_path):
    folder = bench[0]
    same = invoke("bench", "diff", folder, folder / "results.json")
    assert same.exit_code == 0, same.output
    assert "0 moved" in same.stdout
    other = tmp_path / "other"
    assert invoke(*ON_MODEL, "--at", 12, "--seeds", 1, "--out", other).exit_code == 0
    differ = invoke("bench", "diff", folder, other)
    assert differ.exit_code == 1
    assert "are missing" in differ.stdout
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    row = record["measurements"][0]
    row[-1]["rms"] *= 1.5
    (tmp_path / "moved.json").write_text(json.dumps(record), encoding="utf-8")
    moved = invoke("bench", "diff", folder, tmp_path / "moved.json", "--rtol", "0.1")
    assert moved.exit_code == 1
    assert "1 moved" in moved.stdout
    assert "1.5" in moved.stdout
    nothing = invoke("bench", "diff", tmp_path, other)
    assert nothing.exit_code == 2
    assert "there are no results in" in nothing.stderr


def test_shards_of_the_command_are_merged(bench, tmp_path):
    for k in (1, 2):
        part = invoke(*ON_MODEL, "--at", 12, "--shard", f"{k}/2", "--out", tmp_path / f"{k}")
        assert part.exit_code == 0, part.output
        assert f"part {k}/2" in part.stdout
    merged = invoke("bench", "merge", tmp_path / "all", tmp_path / "1", tmp_path / "2")
    assert merged.exit_code == 0, merged.output
    assert invoke("bench", "diff", bench[0], tmp_path / "all").exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--problems", "mixture2"], "did you mean 'mixture2d'"),
        (["--methods", "huen"], "did you mean 'heun'"),
        (["--methods", "edm_sde"], "there is nothing to run"),
        (["--metrics", "mse"], "unknown metric"),
        (["--nfe", "ten"], "whole numbers"),
        (["--nfe", "0,8"], "at least 1"),
        (["--nfe", "10,20", "--at", "12"], "not among the budgets"),
        (["--rtol", "small"], "--rtol takes numbers"),
        (["--seeds", "0.5"], "--seeds takes whole numbers"),
        (["--export", "xls"], "--export takes csv"),
        (["--shard", "3/2"], "which part of how many"),
        (["--process", "edm"], "name it by --denoiser"),
        (["--denoiser", "nowhere:load"], "cannot import 'nowhere'"),
        (["--config", "mine"], "takes a TOML file, or one of default"),
        (["--config", "mine.toml"], "cannot read the experiment"),
    ],
)
def test_bad_input_is_one_line_and_code_2(args, message, tmp_path):
    result = invoke("bench", *args, "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new" / "cells").exists() or "nowhere" in args[1]


def test_list_shows_the_peers():
    result = invoke("list", "--peers")
    assert result.exit_code == 0
    shown = " ".join(result.stdout.split())
    for name in (*PEERS, *SDE_PEERS, *ODE_PEERS):
        assert name in shown


@pytest.fixture(scope="module")
def reference():
    """The reference of the smallest problem, which takes longer than all else."""
    return solve_reference(make_problem("mixture2d", samples=4))


def test_list_shows_every_method():
    result = invoke("list")
    assert result.exit_code == 0
    for method in sk.methods():
        assert re.search(rf"^{re.escape(method)} ", result.stdout, re.MULTILINE), method
    assert "…" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_the_tables_of_the_registry_say_what_is_declared():
    deterministic, stochastic = sk.methods().tables()
    assert len(deterministic.rows) + len(stochastic.rows) == len(sk.methods())
    names = [method.name for family in sk.methods().families.values() for method in family]
    assert names == list(sk.methods())
    rows = {
        row[0]: dict(zip(t.columns, row, strict=True))
        for t in sk.methods().tables()
        for row in t.rows
    }
    # Declared by hand: order, and that of the steps once started.
    for name, order, interior in (
        ("adams4", "3", "5"),
        ("lms4", "2", "4"),
        ("dpmpp_3m", "2", "3"),
        ("dpmpp_3m_as_shipped", "2", "2"),
        ("unipc_bh2_3_as_shipped", "2", "4"),
        ("unipc_vary_as_shipped", "1", "1"),
        ("ipndm", "2", "2"),
        ("gradient_estimation", "1", "1"),
        ("rk4", "4", "4"),
    ):
        assert (rows[name]["order"], rows[name]["interior order"]) == (order, interior)
    for name, adaptive in (("heun", "no"), ("dopri5", "yes"), ("variable_adams", "only")):
        assert rows[name]["adaptive"] == adaptive
    assert rows["variable_adams"]["grid"] == "–"
    assert rows["pc"]["strong"] == "–"
    assert rows["euler_maruyama_t"]["noise"] == "any"
    text = str(sk.methods())
    assert "interior order" in text
    assert "strong" in text.split("\n\n")[1]


@pytest.mark.parametrize("name", ["mixture2d", "mixture16d"])
def test_the_reference_agrees_with_scipy(name):
    problem = make_problem(name, samples=4)
    reference = solve_reference(problem)
    assert reference.discrepancy < 1e-11
    # Unlike the package's own check, in σ and with the velocity written out here.

    def velocity(sigma, y):
        x = torch.from_numpy(y).view(4, -1)
        return ((x - problem.denoiser(x, sigma)) / sigma).flatten().numpy()

    result = solve_ivp(
        velocity, (80.0, 0.002), problem.start.flatten(), method="DOP853", rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(reference.x.flatten(), result.y[:, -1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_start_is_reproducible(name):
    first, again, other = (make_problem(name, samples=3, seed=seed) for seed in (1, 1, 2))
    assert first.start.dtype == torch.float64
    assert torch.equal(first.start, again.start)
    assert not torch.equal(first.start, other.start)
    assert 40 < first.start.std() < 120


def test_the_reference_is_reproducible(reference):
    again = solve_reference(make_problem("mixture2d", samples=4))
    assert torch.equal(reference.x, again.x)


def test_spread_keeps_the_gap_and_moves_little():
    moved = np.array(spread([0.0, 0.01, 0.02, 0.9], gap=0.1))
    np.testing.assert_allclose(moved, [-0.09, 0.01, 0.11, 0.9])
    assert spread([], gap=0.1) == []
