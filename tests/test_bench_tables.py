"""Which method to take, tables for the terminal, and exports."""

from __future__ import annotations

import builtins
import io
import math
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sdekit.bench.export import export, latex, to_frame, write_csv, write_latex, write_parquet
from sdekit.bench.measurements import ADAPTIVE, Measurement, ProblemCard, Results, Setting
from sdekit.bench.metrics import METRICS
from sdekit.bench.recommend import best_at, best_map, nfe_to_reach, to_reach
from sdekit.bench.tables import print_results

BUDGETS = (6, 8, 10, 15, 20, 31, 40, 61, 80, 120)


def measurement(problem, method, grid, budget, value, *, seed=0, rtol=None, nfe=None, **more):
    setting = Setting(problem, method, grid, budget, rtol, 16, seed)
    nfe = budget if nfe is None else nfe
    metrics = value if isinstance(value, dict) else {"rms": value}
    return Measurement(setting, "sdekit", nfe, math.ceil(nfe), math.ceil(nfe), metrics, **more)


def results(measurements, floors=None, environments=None):
    names = dict.fromkeys(m.setting.problem for m in measurements)
    cards = {
        n: ProblemCard(n, f"title of {n}", (2,), 80.0, 0.002, 0.5, "by two codes", floors or {})
        for n in names
    }
    return Results("test", {}, cards, tuple(measurements), environments or {})


def two_methods(second=3.0, seeds=(0,), noise=0.0):
    """``heun`` has ``4 n⁻²`` on its own grid, ``ddim`` so many times as much on another."""
    rng = np.random.default_rng(0)
    return [
        measurement("a", method, grid, n, c * n**-2.0 * math.exp(noise * rng.normal()), seed=seed)
        for method, grid, c in (("heun", "karras", 4.0), ("ddim", "log", 4.0 * second))
        for n in BUDGETS
        for seed in seeds
    ]


# --- recommendations -----------------------------------------------------------------------------


def test_the_best_at_a_budget_as_a_sentence():
    advice = best_at(results(two_methods(3.4)), "a", "rms", 20)
    assert (advice.best.method, advice.best.grid, advice.best.nfe) == ("heun", "karras", 20)
    assert advice.ratio == pytest.approx(3.4)
    assert str(advice) == (
        "For 20 evaluations: heun on karras, error 1.0e-02; next: ddim on log, 3.4 times the error."
    )
    # What was measured up to there counts.
    assert str(best_at(results(two_methods(25)), "a", "rms", 30)) == (
        "For 30 evaluations: heun on karras, error 1.0e-02 with 20 evaluations; "
        "next: ddim on log, 25 times the error."
    )
    few = best_at(results(two_methods()), "a", "rms", 5)
    assert few.best is few.ratio is few.next is None
    assert str(few) == "For 5 evaluations: no method that was measured takes so few."


def test_the_cheapest_for_an_error_is_interpolated():
    # 4 n⁻² = 4e-3 at n = √1000 = 31.6, between budgets; four times the error takes twice as many.
    advice = to_reach(results(two_methods(4)), "a", "rms", 4e-3)
    assert advice.best.nfe == pytest.approx(math.sqrt(1000))
    assert advice.next.nfe == pytest.approx(2 * math.sqrt(1000))
    assert (advice.best.cost, advice.next.cost) == (32, 64)  # 63.2: 63 are not enough
    assert str(advice) == (
        "For an error of 4e-03: heun on karras, 32 evaluations; next: ddim on log, 2.0 times as many."
    )
    assert str(to_reach(results(two_methods()), "a", "rms", 1e-9)) == (
        "For an error of 1e-09: no method that was measured comes so low."
    )
    both = to_reach(results(two_methods()), "a", "rms", 0.5)
    assert both.best.at_most
    assert "at most 6 evaluations; tied with ddim on log." in str(both)


@given(
    power=st.floats(0.5, 6),
    target=st.floats(1e-6, 0.9),
    n=st.lists(st.integers(2, 10**4), min_size=2, max_size=8, unique=True),
)
def test_interpolation_is_exact_on_power_laws(power, target, n):
    points = [(float(k), k**-power) for k in n]
    exact = target ** (-1 / power)
    found = nfe_to_reach(points, target)
    if exact > max(n) * (1 + 1e-9):
        assert found is None
    elif found is not None:
        assert found == pytest.approx(max(exact, min(n)), rel=1e-6)


def test_solves_to_a_tolerance_answer_for_errors_and_not_for_budgets():
    rows = two_methods()
    rows += [
        measurement("a", "dopri5", ADAPTIVE, None, 10.0**-k, rtol=10.0**-k, nfe=5 * k)
        for k in range(1, 5)
    ]
    assert "dopri5" not in str(best_at(results(rows), "a", "rms", 20))
    advice = to_reach(results(rows), "a", "rms", 1e-3)
    assert (advice.best.method, advice.best.grid) == ("dopri5", ADAPTIVE)
    assert str(advice).startswith("For an error of 1e-03: dopri5 to a tolerance, 15 evaluations;")


def test_a_difference_smaller_than_the_spread_is_a_tie():
    seeds = (0, 1, 2, 3)
    # 1.3 times as much on average, from a quarter to seven times as much by seed.
    logs = {"heun": (1, -1, 1, -1), "ddim": (-1, 1, 1, -1)}
    rows = [
        measurement("a", method, "log", 20, c * math.exp(0.8 * logs[method][seed]), seed=seed)
        for method, c in (("heun", 1e-3), ("ddim", 1.3e-3))
        for seed in seeds
    ]
    advice = best_at(results(rows), "a", "rms", 20)
    assert len(advice.ties) == 1
    assert advice.next is advice.ratio is None
    assert "tied with" in str(advice)
    clear = best_at(results(two_methods(30, seeds, noise=0.5)), "a", "rms", 20)
    assert clear.ties == ()
    assert clear.best.method == "heun"


def test_what_seeds_have_in_common_is_no_spread():
    # Both methods vary tenfold over the seeds, but always together.
    rows = [
        measurement("a", method, "log", 10, c * 10.0**seed * 1e-4, seed=seed)
        for method, c in (("heun", 1.0), ("ddim", 1.3))
        for seed in range(3)
    ]
    advice = best_at(results(rows), "a", "rms", 10)
    assert advice.ties == ()
    assert advice.ratio == pytest.approx(1.3)
    assert advice.best.error == pytest.approx(1e-3)  # the geometric mean
    # One failure of a method, and it does not answer.
    rows[0] = measurement("a", "heun", "log", 10, None, seed=0)
    assert best_at(results(rows), "a", "rms", 10).best.method == "ddim"


def test_below_the_floor_all_are_the_same():
    rows = results(two_methods(), {"rms": 1.0001e-2})
    advice = best_at(rows, "a", "rms", 120)
    assert advice.best.at_floor
    # heun is there with 20 evaluations, ddim with 40.
    assert str(advice) == (
        "For 120 evaluations: heun on karras, at the floor (1.0e-02) with 20 evaluations; "
        "tied with ddim on log."
    )
    assert best_at(rows, "a", "rms", 31).ratio == pytest.approx(12 / 31**2 / 1.0001e-2)
    assert "times the floor" in str(best_at(rows, "a", "rms", 31))
    assert str(to_reach(rows, "a", "rms", 1e-3)) == (
        "For an error of 1e-03: nothing can be told below the floor, 1.0e-02."
    )


def test_the_map_names_the_best_of_every_budget():
    rows = two_methods()
    rows += [
        measurement("b", method, grid, n, c * n**-p)
        for method, grid, c, p in (("heun", "log", 100.0, 2), ("ddim", "uniform_t", 1.0, 1))
        for n in (10, 50, 200)
    ]
    found = best_map(results(rows), "rms")
    assert found == {
        **{("a", n): "heun" for n in BUDGETS},
        ("b", 10): "ddim",
        ("b", 50): "ddim",
        ("b", 200): "heun @ log",
    }


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: best_at(r, "a", "rms", 0), "at least 1"),
        (lambda r: to_reach(r, "a", "rms", 0.0), "positive and finite"),
        (lambda r: to_reach(r, "a", "rms", math.inf), "positive and finite"),
        (lambda r: best_at(r, "c", "rms", 10), "not measured on 'c'; it was on a"),
        (lambda r: best_at(r, "a", "w2", 10), "'w2' was not measured"),
    ],
)
def test_questions_without_an_answer_are_errors(ask, message):
    with pytest.raises(ValueError, match=message):
        ask(results(two_methods()))


# --- tables --------------------------------------------------------------------------------------


def everything():
    """Two problems, long names, markup in names, failures, floors, tolerances, two metrics, seeds."""
    long = "azula a very long name of a sampler with its settings [bold] (order = 3)"
    rows = []
    for problem in ("mixture16d", "digits"):
        for method, grid, c in (
            ("heun", "karras", 4.0),
            ("heun", "log", 8.0),
            (long, "vp_100%", 1.0),
        ):
            for n in BUDGETS:
                for seed in (0, 1):
                    value = None if (grid, n) == ("log", 15) else c * n**-2.0 * (1 + 0.1 * seed)
                    if not (method == long and n < 8):
                        rows.append(
                            measurement(
                                problem, method, grid, n, {"rms": value, "sup": 3e-7}, seed=seed
                            )
                        )
        rows += [
            measurement(problem, "dopri5", ADAPTIVE, None, 0.1**k, rtol=0.1**k, nfe=20.5 * k)
            for k in range(1, 10)
        ]
    return results(rows, {"rms": 1e-4, "sup": 1e-6})


def printed(what, **options):
    console = Console(width=110, file=io.StringIO(), color_system=None)
    print_results(what, console, **options)
    return console.file.getvalue()


def test_tables_say_what_was_measured():
    text = printed(results(two_methods(), {"rms": 1e-3}))
    lines = text.splitlines()
    assert "a: title of a" in lines
    assert "reference: by two codes" in lines
    row = next(line for line in lines if line.startswith("heun"))
    # Seven of ten budgets; 4 n⁻² at each; the best is marked, and what is at the floor.
    header = next(line for line in lines if line.startswith("method"))
    assert header.split() == ["method", "6", "8", "15", "31", "40", "80", "120"] or (
        header.split()[1::6] == ["6", "120"] and len(header.split()) == 8
    )
    shown = [int(n) for n in header.split()[1:]]
    expected = [f"{4 / n**2:.1e}*" if 4 / n**2 <= 1e-3 else f"▸{4 / n**2:.1e}" for n in shown]
    assert row.split()[1:] == expected
    other = next(line for line in lines if line.startswith("ddim @ log"))
    assert other.split()[3:] == [
        f"{12 / n**2:.1e}" + ("*" if 12 / n**2 <= 1e-3 else "") for n in shown
    ]
    assert re.search(r"^heun +2\.00 ± 0\.\d\d +6–31", text, re.M)
    assert "For 6 evaluations: heun on karras, error 1.1e-01; next: ddim on log, 3.0 times" in text


def test_tables_fit_and_show_all_there_is():
    text = printed(everything())
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 110
    fixed, orders, *_ = text.split("; orders")
    assert "[bold]" in fixed  # in a name it is no markup
    assert "[bold]" in orders.split("For ")[0]
    assert "failed" in text
    assert "–" in text
    assert re.search(r"^dopri5 +1\.0e-01", text, re.M)
    assert re.search(r"^ +20 +", text, re.M)  # evaluations below errors (20.5, to even)
    assert f"{METRICS['sup'].title}, floor 1.0e-06" in text
    assert "all errors are below 3 times the floor" in text
    assert text.count("mixture16d: title of mixture16d") == 1


def test_an_answer_that_is_asked_for_is_the_only_one():
    text = printed(results(two_methods()), budget=31)
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("For ")] == [
        "For 31 evaluations"
    ]
    header = next(line for line in text.splitlines() if line.startswith("method"))
    assert "31" in header.split()
    text = printed(results(two_methods()), target=1e-2)
    assert "For an error of 1e-02: heun on karras, 20 evaluations" in text
    assert "For 6 evaluations" not in text


# --- exports -------------------------------------------------------------------------------------


ENVIRONMENTS = {
    "e1": {"versions": {"torch": "2.6.0", "python": "3.10"}, "hardware": {"cores": 2}},
    "e2": {"versions": {"torch": "2.13.0"}, "note": 'a, "b"\nσ'},
}


def exported():
    rows = [
        measurement("a", "heun", "σ, log", 10, {"rms": 0.1 + 0.2, "sup": None}, environment="e1"),
        measurement("a", "heun", "log", 20, {"rms": 5e-324}, environment="e2", seconds=0.25),
        measurement(
            "b", "dopri5", ADAPTIVE, None, 1 / 3, rtol=1e-3, nfe=7.5, status='no\nend, "x"'
        ),
    ]
    return results(rows, {"rms": 1e-12}, ENVIRONMENTS)


def test_a_frame_has_a_row_per_measurement_and_metric():
    frame = to_frame(exported())
    assert frame["metric"].tolist() == ["rms", "sup", "rms", "rms"]
    assert frame["value"].tolist()[0] == 0.1 + 0.2
    assert np.isnan(frame["value"][1])
    assert np.isnan(frame["floor"][1])
    assert frame["floor"][0] == 1e-12
    assert frame["budget"].tolist()[:3] == [10, 10, 20]
    assert str(frame["budget"].dtype) == "Int64"  # a missing one makes no floats of the others
    assert frame["budget"].isna().tolist() == [False, False, False, True]
    assert frame["environment.versions.torch"].tolist()[:3] == ["2.6.0", "2.6.0", "2.13.0"]
    assert frame["environment.hardware.cores"][0] == "2"
    assert frame["environment.note"][2] == 'a, "b"\nσ'
    assert frame["configuration"][0] == exported().measurements[0].setting.digest
    empty = to_frame(results([]))
    assert len(empty) == 0
    assert list(empty.columns)[:3] == ["problem", "method", "grid"]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_what_is_written_reads_back_the_same(form, tmp_path):
    frame = to_frame(exported())
    (path,) = export(exported(), form, tmp_path / "new")
    assert path == tmp_path / "new" / f"results.{form}"
    if form == "csv":
        again = pd.read_csv(path, dtype=str).astype(frame.dtypes.to_dict())
    else:
        again = pd.read_parquet(path)
    pd.testing.assert_frame_equal(again, frame, check_exact=True)
    # The same results are the same bytes.
    before = path.read_bytes()
    export(exported(), form, tmp_path / "new")
    assert path.read_bytes() == before


def test_without_pandas_the_extra_is_named(monkeypatch, tmp_path):
    original = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "pandas":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    for write in (write_csv, write_parquet):
        with pytest.raises(ImportError, match=r"pandas: pip install 'sdekit\[bench\]'"):
            write(exported(), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    write_latex(exported(), "rms", tmp_path / "x.tex")  # which takes no pandas


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown format 'xls'; there are csv, parquet, latex"):
        export(exported(), "xls", tmp_path)


def test_latex_has_the_numbers(tmp_path):
    (path,) = export(results(two_methods(), {"rms": 1e-3}), "latex", tmp_path)
    assert path == tmp_path / "rms.tex"
    lines = path.read_text().splitlines()
    assert r"\begin{tabular}{lrrrrrrrrrr}" in lines
    assert lines[3].endswith(r", NFE & 6 & 8 & 10 & 15 & 20 & 31 & 40 & 61 & 80 & 120 \\")
    heun = next(line for line in lines if line.startswith("heun"))
    assert heun.split(" & ")[5] == r"$\mathbf{1.0\cdot10^{-2}}$"
    assert heun.endswith(r"${2.8\cdot10^{-4}}^*$ \\")  # in braces: two exponents are an error
    ddim = next(line for line in lines if line.startswith("ddim @ log"))
    assert ddim.split(" & ")[5] == r"$3.0\cdot10^{-2}$"
    with pytest.raises(ValueError, match="'w2' was not measured on a fixed grid"):
        write_latex(results(two_methods()), "w2", tmp_path / "x")


def unescaped(text):
    """Characters of TeX's own that are not escaped, outside of the commands that the table has."""
    for piece in (r"\\", r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}"):
        text = text.replace(piece, "")
    return re.sub(r"\\[_&%$#{}]|\{\[\}|\{\*\}|\$[^$]*\$", "", text)


@given(st.text(max_size=30))
def test_any_text_is_escaped_for_latex(text):
    escaped = latex(text)
    assert not re.search(r"[_&%$#{}^~\\\[*<>|\"]", unescaped(escaped)), escaped
    assert all(c.isascii() or c.isalpha() for c in escaped)
    assert "\n" not in escaped
    assert latex("dpmpp_2m @ σ-log, λ² ≤ 50 %") == (
        r"dpmpp\_2m @ $\sigma$-log, $\lambda$(superscript two) $\leq$ 50 \%"
    )
    assert latex("[1]*") == "{[}1]{*}"  # after the end of a row, TeX takes [1] for a length


def test_latex_is_balanced_and_compiles(tmp_path):
    for path in export(everything(), "latex", tmp_path):
        text = path.read_text()
        columns = len(BUDGETS) + 1
        for line in text.splitlines():
            bare = re.sub(r"\\[&{}]", "", line)
            assert bare.count("{") == bare.count("}")
            assert bare.count("$") % 2 == 0
            if line.endswith(r"\\") and "multicolumn" not in line:
                assert bare.count("&") == columns - 1
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
        assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [
            1,
            2,
            1,
        ]
        if shutil.which("pdflatex"):
            head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
            page = head + text + r"\end{document}"
            (tmp_path / "page.tex").write_text(page)
            subprocess.run(
                ["pdflatex", "-halt-on-error", "page.tex"], cwd=tmp_path, check=True, timeout=60
            )
