"""The benchmark and the command line."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from scipy.integrate import solve_ivp
from typer.testing import CliRunner

import sdekit as sk
from sdekit.bench import Config, make_problem, run_benchmark, solve_reference, write_results
from sdekit.bench import runner as bench_runner
from sdekit.bench.plots import spread, write_plots
from sdekit.bench.problems import PROBLEMS
from sdekit.bench.report import print_report
from sdekit.cli import app

TINY = ["bench", "--quick", "--problems", "mixture2d", "--methods", "euler,heun_t", "--nfe", "8,17"]


def invoke(*args: str):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def reference():
    """The reference of the problem that most tests take, which takes longer than all else."""
    return solve_reference(make_problem("mixture2d", samples=4))


@pytest.fixture
def solved(reference, monkeypatch):
    """Benchmarks of that problem do not solve it again."""
    monkeypatch.setattr(bench_runner, "solve_reference", lambda problem: reference)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """One tiny run through the command: the folder it wrote and what it printed."""
    folder = tmp_path_factory.mktemp("bench")
    threads = torch.get_num_threads()
    result = invoke(*TINY, "--out", folder)
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def test_the_record_is_complete_and_consistent(bench):
    record = json.loads((bench[0] / "results.json").read_text(encoding="utf-8"))
    assert record["versions"].keys() == {"python", "sdekit", "torch", "numpy", "scipy"}
    assert record["versions"]["sdekit"] == sk.__version__
    assert record["hardware"]["cpu"]
    assert record["configuration"]["seed"] == 0
    assert re.match(r"\d{4}-\d\d-\d\dT", record["date"])
    assert 0 < record["references"]["mixture2d"]["discrepancy"] < 1e-11
    cells = {(cell["method"], cell["budget"]): cell for cell in record["cells"]}
    assert cells.keys() == {(m, n) for m in ("euler", "heun_t") for n in (8, 17)}
    for cell in cells.values():
        assert cell["status"] == "success"
        assert cell["nfe"] == cell["nfe_max"] <= cell["budget"]
        assert cell["seconds"] > 0
        assert not cell["at_floor"]
    assert cells["heun_t", 17]["nfe"] == 16
    for method in ("euler", "heun_t"):
        assert 0 < cells[method, 17]["error"] < cells[method, 8]["error"]


def test_the_tables_show_every_method(bench):
    for text in ("mixture2d", "euler", "heun_t", "karras", "uniform_t", "DOP853", "edm_sde"):
        assert text in bench[1]
    assert "results.json" in bench[1]
    assert max(map(len, bench[1].splitlines())) < 160  # of the paths; tables are narrower


@pytest.mark.parametrize("stem", ["error_vs_nfe", "error_vs_nfe_mixture2d"])
def test_the_pictures_are_not_blank(bench, stem):
    picture = imread(bench[0] / f"{stem}.png")[..., :3]
    assert picture.var() > 0.005
    assert picture.mean() > 0.8  # mostly paper
    assert "</svg>" in (bench[0] / f"{stem}.svg").read_text(encoding="utf-8")


def test_an_adaptive_method_is_run_on_tolerances():
    config = Config(("mixture2d",), ("dopri5",), budgets=(5, 6, 12), rtols=(1e-2, 1e-6), samples=4)
    results = run_benchmark(config)
    # A step of dopri5 takes 6 evaluations: there is nothing to run within 5.
    assert [cell.budget for cell in results.select("mixture2d", "dopri5")] == [6, 12]
    loose, tight = results.select("mixture2d", "dopri5", adaptive=True)
    assert (loose.rtol, tight.rtol) == (1e-2, 1e-6)
    assert tight.error < loose.error
    assert loose.nfe < tight.nfe <= tight.nfe_max


def test_a_method_that_is_adaptive_only_takes_no_grid(tmp_path, capsys, solved):
    for methods in (("euler", "variable_adams"), ("variable_adams",)):
        config = Config(("mixture2d",), methods, budgets=(8, 16), rtols=(1e-2, 1e-6), samples=4)
        results = run_benchmark(config)
        assert not results.select("mixture2d", "variable_adams")
        loose, tight = results.select("mixture2d", "variable_adams", adaptive=True)
        assert tight.error < loose.error
        assert write_plots(results, tmp_path)
        print_report(results, Console(width=110))
        assert ("error within" in capsys.readouterr().out) == ("euler" in methods)


def test_failures_are_recorded_and_drawn(tmp_path, monkeypatch, capsys, solved):
    monkeypatch.setattr(bench_runner, "MAX_NFE", 50)
    config = Config(("mixture2d",), ("euler", "dopri5"), budgets=(6,), rtols=(1e-6,), samples=4)

    solve = bench_runner.Problem.solve

    def breaks(self, method, *, rtol, **options):
        if rtol is None and method.scheme.order == 1:
            raise sk.SolveError("not finite")
        return solve(self, method, rtol=rtol, **options)

    monkeypatch.setattr(bench_runner.Problem, "solve", breaks)
    results = run_benchmark(config)
    assert [cell.status for cell in results.cells] == ["not finite", "success", "max_nfe"]
    assert [cell.error is None for cell in results.cells] == [True, False, True]
    write_results(results, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["cells"][0]["error"] is None
    assert write_plots(results, tmp_path)
    print_report(results, Console(width=110))
    assert capsys.readouterr().out.count("failed") == 2
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--problems", "mixture2"], "did you mean 'mixture2d'"),
        (["--methods", "huen"], "did you mean 'heun'"),
        (["--methods", "edm_sde"], "stochastic"),
        (["--nfe", "ten"], "whole numbers"),
        (["--nfe", "0,8"], "at least 1"),
    ],
)
def test_bad_input_is_one_line_and_code_2(args, message, tmp_path):
    result = invoke("bench", *args, "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


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


def test_importing_the_package_does_not_load_the_command_line():
    code = "import sdekit, sys; print({'matplotlib', 'typer', 'rich'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_spread_keeps_the_gap_and_moves_little():
    moved = np.array(spread([0.0, 0.01, 0.02, 0.9], gap=0.1))
    np.testing.assert_allclose(moved, [-0.09, 0.01, 0.11, 0.9])
    assert spread([], gap=0.1) == []
