"""The laboratory: experiments, what is measured, and the store that survives everything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.bench import (
    Experiment,
    Measurement,
    Setting,
    Store,
    UserModel,
    collect,
    compare,
    entries,
    laboratory,
    make_problem,
    read_experiment,
    read_results,
    run_experiment,
    write_results,
)
from sdekit.bench.entries import Stopwatch
from sdekit.bench.experiment import around, experiment_of, parse_budgets, quick
from sdekit.bench.ledger import Ledger, read_ledgers
from sdekit.bench.measurements import ADAPTIVE
from sdekit.bench.names import described, resolve
from sdekit.bench.store import Writer
from sdekit.workers import Workers

LAW = sk.Gaussian([0.0, 1.0], [[0.5, 0.2], [0.2, 0.3]])


def load():
    """The denoiser of the user's model in these tests; its reference takes no time."""
    return LAW


def bare():
    """The same without its scale: methods that need it estimate it by one call."""
    return lambda x_hat, sigma: LAW(x_hat, sigma)


def narrow():
    """A denoiser of single precision."""
    return torch.nn.Linear(2, 2)


def broken():
    """A denoiser of other shapes."""
    return lambda x_hat, sigma: x_hat[:, :1]


SOLVER = sk.Solver(sk.RungeKutta(sk.tableaus.RK4), sk.Noise(), sk.grids.log)
MODEL = UserModel("test_laboratory:load", "edm", tolerance=1e-10)
ON_MODEL = Experiment(
    problems=("model",),
    models={"model": MODEL},
    methods=("heun", "adams3"),
    budgets=(6, 11, 20),
    metrics=("rms", "sup"),
    samples=4,
)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A small experiment: its folder and its results."""
    sys.path.insert(0, str(Path(__file__).parent))
    folder = tmp_path_factory.mktemp("bench")
    return folder, run_experiment(ON_MODEL, folder)


def values(results):
    return {(m.setting, name): v for m in results.measurements for name, v in m.metrics.items()}


# The ledger


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text())), st.integers(0, 400))
def test_a_ledger_that_was_cut_anywhere_keeps_what_was_whole(tmp_path_factory, records, cut):
    path = tmp_path_factory.mktemp("ledger") / "a.jsonl"
    with Ledger(path) as ledger:
        for record in records:
            ledger.append(record)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    assert read_ledgers([path]) == records[:kept]
    with Ledger(path) as ledger:  # goes on, and leaves the bytes of a run that nothing happened to
        for record in records[kept:]:
            ledger.append(record)
    assert path.read_bytes() == whole


def test_a_long_line_that_was_cut_is_found_from_the_end(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b'{"b": "' + b"x" * 200_000)
    with Ledger(path) as ledger:
        ledger.append({"c": 2})
    assert read_ledgers([path]) == [{"a": 1}, {"c": 2}]


def test_what_something_else_wrote_is_not_read_over(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b"\n{"c": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 of .*a\.jsonl is no JSON"):
        read_ledgers([tmp_path / "a.jsonl"])


# Kills


def test_fifty_kills_leave_the_store_of_an_undisturbed_run(tmp_path):
    script = Path(__file__).parent / "kill_bench.py"
    command = [sys.executable, script, tmp_path, "50"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    assert said["hits"] == 50
    assert said["left"] == sorted(said["left"])  # nothing that was known is lost
    assert len(set(said["left"])) > 10  # they were spread over the run
    names = {
        part: sorted(
            path.relative_to(tmp_path / part)
            for path in (tmp_path / part).rglob("*")
            if path.is_file() and path.suffix not in (".lock", ".tmp")
        )
        for part in ("killed", "undisturbed")
    }
    assert names["killed"] == names["undisturbed"]
    for name in names["killed"]:
        if name.parts[0] != "times":
            contents = [(tmp_path / part / name).read_bytes() for part in names]
            assert contents[0] == contents[1], name


# What is measured


def test_errors_are_those_of_the_exact_solution(results):
    source = torch.Generator().manual_seed(0)
    start = 80.0 * torch.randn(4, 2, generator=source, dtype=torch.float64)
    exact = LAW.flow(start, 80.0, 0.002)
    flow = sk.EDM().probability_flow(LAW)
    floors = results[1].problems["model"].floors
    for m in results[1].measurements:
        per_step = 2 if m.setting.method == "heun" else 1
        assert m.nfe == m.nfe_max == m.setting.budget // per_step * per_step
        method = sk.methods()[m.setting.method].solver
        sol = sk.solve(flow, start, method=method, steps=m.steps)
        error = sol.x - exact
        assert m.metrics["rms"] == pytest.approx(
            float(error.square().mean().sqrt()), abs=floors["rms"]
        )
        assert m.metrics["sup"] == pytest.approx(float(error.abs().max()), abs=floors["sup"])
    card = results[1].problems["model"]
    assert (card.sigma_max, card.sigma_min, card.event_shape) == (80.0, 0.002, (2,))
    assert 0 < card.floors["rms"] < 1e-8


def test_every_call_is_counted(tmp_path):
    calls = []

    class Counted:
        def __call__(self, x_hat, sigma):
            calls.append(len(x_hat))
            return LAW(x_hat, sigma)

    problem = replace(
        make_problem("gaussian32d", samples=3), denoiser=Counted(), start=torch.ones(3, 2)
    )
    for name, spent in (("adams3", 9), ("heun", 8), ("unipc", 9), ("dopri5_theta", 7)):
        (entry,) = resolve(name)
        calls.clear()
        run = entry.run(problem, Setting("p", name, entry.grid, 9, None, 3, 0))
        # Those that need the scale of the data estimate it by a call more, and take a step less for it.
        assert run.nfe.tolist() == [spent] * 3, name
        assert sum(calls[-spent:]) == 3 * spent
    (entry,) = resolve("azula DDIM@VP")
    calls.clear()
    run = entry.run(problem, Setting("p", entry.name, "VP", 9, None, 3, 0))
    assert run.nfe.tolist() == [9] * 3 == [len(calls)] * 3


def test_the_stopwatch_is_the_denoiser(results):
    x = torch.randn(5, 2, dtype=torch.float64)
    watch = Stopwatch(LAW)
    assert torch.equal(watch(x, 0.3), LAW(x, 0.3))
    assert watch.clock[0] > 0
    for m in results[1].measurements:
        assert 0 < m.network_seconds < m.seconds


def test_paths_and_laws_and_densities_are_measured(tmp_path):
    experiment = Experiment(
        problems=("mixture2d",),
        methods=("adams3", "sea_w_theta", "azula DDIM@VP"),
        budgets=(8, 24),
        metrics=("nll", "w2", "mean"),
        samples=8,
        law_samples=256,
    )
    found = run_experiment(experiment, tmp_path)
    measured = {(m.setting.method, m.setting.budget): {} for m in found.measurements}
    for m in found.measurements:
        measured[m.setting.method, m.setting.budget] |= m.metrics
        assert m.setting.samples == (8 if "nll" in m.metrics else 256)
    # Densities are of deterministic methods of sdekit, laws of all.
    assert {name: set(v) for (name, _), v in measured.items()} == {
        "adams3": {"nll", "w2", "mean"},
        "sea_w_theta": {"w2", "mean"},
        "azula DDIM": {"w2", "mean"},
    }
    assert measured["adams3", 24]["nll"] < 0.1 * measured["adams3", 8]["nll"]
    card = found.problems["mixture2d"]
    assert card.floors.keys() == {"w2", "mean"}
    assert measured["adams3", 24]["w2"] < 3 * card.floors["w2"]


def test_tolerances_and_seeds(tmp_path):
    experiment = replace(
        ON_MODEL, methods=("variable_adams", "dopri5"), rtols=(1e-2, 1e-5), budgets=(), seeds=(0, 1)
    )
    found = run_experiment(experiment, tmp_path)
    assert {m.setting.grid for m in found.measurements} == {ADAPTIVE}
    by = {(m.setting.method, m.setting.rtol, m.setting.seed): m for m in found.measurements}
    assert len(by) == 8
    for name in ("variable_adams", "dopri5"):
        assert by[name, 1e-5, 0].metrics["rms"] < 1e-3 < 1e-1 * by[name, 1e-5, 0].nfe
        assert by[name, 1e-5, 0].metrics["rms"] != by[name, 1e-5, 1].metrics["rms"]


def test_failures_are_recorded(tmp_path, monkeypatch):
    def fails(*args, **options):
        raise sk.SolveError("step 3 is not finite")

    monkeypatch.setattr(entries, "solve", fails)
    found = run_experiment(replace(ON_MODEL, methods=("heun",), budgets=(1, 6)), tmp_path)
    assert [m.status for m in found.measurements] == [
        "1 evaluations are less than a step",
        "step 3 is not finite",
    ]
    assert all(m.metrics == {"rms": None, "sup": None} for m in found.measurements)


# What is measured again, and by whom


def test_only_what_is_missing_is_measured(results, monkeypatch, tmp_path):
    measured = []
    measure = laboratory._measure

    def counted(task, *rest):
        measured.append(task.setting)
        return measure(task, *rest)

    monkeypatch.setattr(laboratory, "_measure", counted)
    folder, first = results
    assert run_experiment(ON_MODEL, folder) == first
    assert not measured
    more = replace(ON_MODEL, budgets=(11, 20, 24))
    assert [m.setting.budget for m in run_experiment(more, folder).measurements] == [11, 20, 24] * 2
    assert [setting.budget for setting in measured] == [24, 24]
    measured.clear()
    run_experiment(replace(ON_MODEL, metrics=("rms",)), tmp_path)
    both = run_experiment(ON_MODEL, tmp_path)
    assert len(measured) == 2 * len(both.measurements)  # the second metric is not known yet
    assert values(both) == values(first)


def test_shards_are_the_whole(results, tmp_path):
    parts = [run_experiment(ON_MODEL, tmp_path / "one", workers=Workers(r, 3)) for r in range(3)]
    assert [len(part.measurements) for part in parts] == [2, 4, 6]
    assert values(parts[-1]) == values(results[1])
    for rank in range(3):
        run_experiment(ON_MODEL, tmp_path / f"own{rank}", workers=Workers(rank, 3))
    target = Store(tmp_path / "merged")
    assert target.merge([Store(tmp_path / f"own{rank}") for rank in range(3)]) == 6
    assert target.merge([Store(tmp_path / "own0")]) == 0
    assert values(collect(ON_MODEL, target.folder)) == values(results[1])
    assert collect(ON_MODEL, target.folder).problems.keys() == {"model"}
    with pytest.raises(ValueError, match="there are no results"):
        target.merge([Store(tmp_path / "nowhere")])


def test_processes_measure_the_same(results, tmp_path):
    assert values(run_experiment(ON_MODEL, tmp_path, jobs=2)) == values(results[1])


def test_two_writers_of_one_name_are_refused(tmp_path):
    with (
        Writer(Store(tmp_path), "0-of-1"),
        pytest.raises(ValueError, match="another process is writing"),
    ):
        run_experiment(ON_MODEL, tmp_path)


def test_another_model_is_refused(tmp_path, monkeypatch):
    run_experiment(ON_MODEL, tmp_path)
    other = sk.Gaussian([0.0, 1.0], [[0.5, 0.2], [0.2, 0.31]])
    monkeypatch.setattr(sys.modules["test_laboratory"], "LAW", other)
    # Though nothing is missing.
    with pytest.raises(ValueError, match="is not the one whose results are in"):
        run_experiment(ON_MODEL, tmp_path)


def test_what_a_name_stands_for_is_part_of_the_configuration(results, tmp_path, monkeypatch):
    """Another model or solver of the same name does not get the first one's numbers."""
    folder = results[0]
    vp = replace(ON_MODEL, models={"model": replace(MODEL, process="vp")})
    assert collect(vp, folder).measurements == ()
    assert collect(vp, folder).problems == {}
    own = replace(ON_MODEL, methods=("test_laboratory:SOLVER",))
    before = run_experiment(own, tmp_path)
    other = replace(SOLVER, grid=sk.grids.karras)
    monkeypatch.setattr(sys.modules["test_laboratory"], "SOLVER", other)
    assert collect(own, tmp_path).measurements == ()
    again = sk.Solver(sk.RungeKutta(sk.tableaus.RK4), sk.Noise(), sk.grids.log)
    monkeypatch.setattr(sys.modules["test_laboratory"], "SOLVER", again)
    assert collect(own, tmp_path) == before
    solvers = [method.solver for method in sk.methods().values()]
    told = {described(solver) for solver in solvers}
    assert len(told) >= len(solvers) - 5  # a few names are of the same solver
    assert not any(" at 0x" in text for text in told)


def test_folders_of_different_models_are_not_merged(tmp_path, monkeypatch):
    run_experiment(ON_MODEL, tmp_path / "one")
    other = sk.Gaussian([0.0, 1.0], [[0.5, 0.2], [0.2, 0.31]])
    monkeypatch.setattr(sys.modules["test_laboratory"], "LAW", other)
    run_experiment(replace(ON_MODEL, methods=("ddim@log",)), tmp_path / "two")
    with pytest.raises(ValueError, match="is not the one in"):
        Store(tmp_path / "one").merge([Store(tmp_path / "two")])


def test_floors_are_those_of_the_experiment(tmp_path):
    experiment = Experiment(
        problems=("mixture2d",), methods=("heun",), budgets=(8,), metrics=("mean",), law_samples=256
    )
    (card,) = run_experiment(experiment, tmp_path).problems.values()
    (small,) = run_experiment(replace(experiment, law_samples=16), tmp_path).problems.values()
    assert small.floors["mean"] == pytest.approx(4 * card.floors["mean"])
    assert collect(experiment, tmp_path).problems["mixture2d"] == card
    shutil.rmtree(tmp_path)  # nothing is remembered but in the folder
    assert run_experiment(experiment, tmp_path).problems["mixture2d"] == card


def test_a_setting_is_measured_once(tmp_path):
    twice = replace(
        ON_MODEL, methods=("dopri5@log", "dopri5@karras"), rtols=(1e-3,), budgets=(), seeds=(0, 0)
    )
    run_experiment(twice, tmp_path)
    assert len(read_ledgers([tmp_path / "cells" / "0-of-1.jsonl"])) == 1


def test_guided_networks_cost_what_they_evaluate(tmp_path):
    """Peers, too: a call of a guided denoiser is two evaluations of its network."""

    def guided(x_hat, sigma, y=None):
        return LAW(x_hat, sigma)

    y = torch.ones(3)
    denoiser = sk.ClassifierFree(guided, 2.0, conditional={"y": y}, unconditional={"y": 0 * y})
    start = 80 * torch.ones(3, 2, dtype=torch.float64)
    problem = replace(make_problem("gaussian32d", samples=3), denoiser=denoiser, start=start)
    for name in ("ddim@karras", "azula DDIM@VP"):
        (entry,) = resolve(name)
        run = entry.run(problem, Setting("p", entry.name, entry.grid, 12, None, 3, 0))
        assert (run.steps, run.nfe.tolist()) == (6, [12] * 3), name


# Files


def test_results_survive_a_file(results, tmp_path):
    write_results(results[1], tmp_path / "a.json")
    again = read_results(tmp_path / "a.json")
    assert again.measurements == results[1].measurements
    assert again.problems == results[1].problems
    assert again.environments == results[1].environments
    write_results(again, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    (tmp_path / "c.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no results"):
        read_results(tmp_path / "c.json")


def measured(value, method="heun", budget=6):
    setting = Setting("mixture2d", method, "karras", budget, None, 4, 0)
    return Measurement(setting, "sdekit", 6.0, 6, 3, {"rms": value})


def test_a_comparison_says_what_moved():
    before = [measured(1e-2), measured(None, "euler"), measured(1e-9, "rk4"), measured(1.0, "ddim")]
    after = [measured(1.2e-2), measured(3.0, "euler"), measured(5e-9, "rk4"), measured(1.0, "lms4")]
    found = compare(before, after, rtol=0.1, floors={("mixture2d", "rms"): 1e-8})
    assert [(c.setting.method, c.ratio) for c in found.changes] == [
        ("euler", np.inf),
        ("heun", pytest.approx(1.2)),
    ]
    assert found.compared == 6  # what it cost is compared, too
    assert {setting.method for setting, _ in found.missing} == {"ddim"}
    assert {setting.method for setting, _ in found.added} == {"lms4"}
    assert not found.same
    assert compare(before, before).same
    assert compare(before[:1], after[:1], rtol=0.21).same
    assert not compare(after[:1], before[:1], rtol=0.19).same  # the same both ways
    dearer = [replace(before[0], nfe=12.0)]
    assert [c.metric for c in compare(before[:1], dearer).changes] == ["nfe"]
    with pytest.raises(ValueError, match="at least 0"):
        compare(before, after, rtol=np.nan)


def test_an_experiment_is_read_from_toml(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(
        """
        title = "mine"
        problems = ["gmm16", "net"]
        methods = ["heun@log", "unipc"]
        budgets = "5:20"
        metrics = ["rms", "path"]
        [models.net]
        denoiser = "test_laboratory:load"
        process = "vp"
        """,
        encoding="utf-8",
    )
    found = read_experiment(path)
    assert found.problems == ("mixture16d", "net")
    assert found.budgets == (5, 6, 8, 10, 13, 16, 20)
    assert found.models["net"] == UserModel("test_laboratory:load", "vp")
    assert [(e.name, e.grid) for e in found.entries] == [("heun", "log"), ("unipc_bh2_3", "log")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"problem": ["mixture2d"]}, "did you mean 'problems'"),
        ({"problems": ["mixture2"]}, "did you mean 'mixture2d'"),
        ({"methods": ["huen"]}, "did you mean 'heun'"),
        ({"methods": ["heun@carras"]}, "did you mean 'karras'"),
        ({"methods": ["variable_adams@karras"]}, "takes tolerances only"),
        ({"methods": ["scipy RK45@karras"]}, "takes tolerances only"),
        ({"methods": ["test_laboratory:load"]}, "must be a sdekit.Solver"),
        ({"metrics": ["mse"]}, "unknown metric 'mse'"),
        ({"metrics": []}, "metrics is empty"),
        ({"budgets": []}, "neither budgets nor tolerances"),
        ({"budgets": [0]}, "at least 1"),
        ({"problems": "digits"}, "must be a tuple"),
        ({"models": 3}, "models must be tables"),
        ({"models": {"a": {}}}, "does not say where its denoiser is"),
        ({"models": {"../a": {"denoiser": "a:b"}}}, "a name has letters"),
        ({"problems": ["digits"], "models": {"a": {"denoiser": "a:b"}}}, "not among the problems"),
        ({"budgets": [6.5]}, "each must be a int"),
        ({"rtols": [2.0]}, "between 0 and 1"),
        ({"samples": "four"}, "must be a int"),
        ({"samples": True}, "must be a int"),
        ({"problems": ["digits"], "metrics": ["w2"]}, "there is nothing to run"),
        ({"models": {"digits": {"denoiser": "a:b"}}}, "call it otherwise"),
        ({"models": {"a": {"denoiser": "a:b", "process": "edn"}}}, "did you mean 'edm'"),
        ({"models": {"a": {"denoiser": "a:b", "tolerance": 2.0}}}, "between 0 and 1"),
    ],
)
def test_a_wrong_experiment_is_refused(data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        experiment_of(data)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (UserModel("test_laboratory:broken", "edm", (2,)), r"returns \(4, 1\) of \(4, 2\)"),
        (UserModel("test_laboratory:bare", "edm"), "does not say what shape"),
        (UserModel("test_laboratory:narrow", "edm", (2,)), "does not take samples"),
        (UserModel("test_laboratory:nothing", "edm", (2,)), "has no 'nothing'"),
    ],
)
def test_a_model_that_cannot_be_solved_is_refused(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_experiment(replace(ON_MODEL, models={"model": model}), tmp_path)


def test_a_model_of_another_process_and_precision(tmp_path):
    model = UserModel("test_laboratory:load", "vp", dtype="float32", tolerance=1e-4)
    found = run_experiment(replace(ON_MODEL, models={"model": model}), tmp_path)
    card = found.problems["model"]
    assert card.sigma_max == pytest.approx(sk.VP().sigma_max)
    assert {m.status for m in found.measurements} == {"success"}
    peer = replace(ON_MODEL, models={"model": model}, methods=("azula DDIM@VP",))
    with pytest.raises(ValueError, match="name a grid of sdekit, as in 'azula DDIM@karras'"):
        run_experiment(peer, tmp_path)
    ours = replace(peer, methods=("azula DDIM@karras", "ddim@karras"), budgets=(20,))
    errors = [m.metrics["rms"] for m in run_experiment(ours, tmp_path).measurements]
    assert errors[0] == pytest.approx(errors[1], rel=1e-2)  # the same formula, in float32


def test_methods_are_named_in_many_ways():
    assert [entry.name for entry in resolve("adams")] == ["adams3"]
    assert {entry.grid for entry in resolve("azula DDIM")} == {
        *("VE", "VP", "cosine", "rectified", "decay")
    }
    assert len(resolve("azula zAB *")) == 20
    (solver,) = resolve("test_laboratory:SOLVER@theta")
    assert (solver.name, solver.grid, solver.package) == (
        "test_laboratory:SOLVER",
        "theta",
        "sdekit",
    )
    (peer,) = resolve("scipy RK45")
    assert peer.adaptive
    assert not peer.fixed


def test_budgets_are_lists_and_ranges():
    assert parse_budgets("10, 20,10") == (10, 20)
    found = parse_budgets("5:100")
    assert (found[0], found[-1]) == (5, 100)
    assert len(found) == 14
    assert any(n % 2 for n in found)  # no multiple of the stages of heun
    assert parse_budgets("7:7,3") == (7, 3)
    assert 12 in around(12)
    for text in ("ten", "0", "5:", "9:5", "1:2:3", "-4"):
        with pytest.raises(ValueError, match="budgets"):
            parse_budgets(text)
    small = quick(Experiment())
    assert set(small.budgets) < set(Experiment().budgets)
    assert small.samples < Experiment().samples
