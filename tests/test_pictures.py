"""Pictures of results: what is drawn is what was measured, and the same results give the same files."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pytest
from bench_results import BUDGETS, FLOOR, METHODS, error, results
from hypothesis import given, settings
from hypothesis import strategies as st

from sdekit.bench import pictures
from sdekit.bench.legend import declared_orders, label, points_of, ranking
from sdekit.bench.measurements import ADAPTIVE, Setting
from sdekit.bench.pictures import answer_picture, write_pictures
from sdekit.bench.plots import PALETTE
from sdekit.bench.recommend import best_at
from sdekit.bench.repetitions import Point

RK4 = ("rk4_theta", "log")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, and returns the figures by the name of their file instead of writing them."""

    def draw(write, *args, **options):
        figures = {}
        monkeypatch.setattr(
            pictures,
            "save_figure",
            lambda figure, stem, formats: figures.setdefault(stem.name, figure) and [],
        )
        write(*args, tmp_path, **options)
        return figures

    return draw


def coloured(axes):
    """Curves of the axes, by colour: those with markers."""
    return {
        line.get_color(): line
        for line in axes.lines
        if line.get_marker() == "o" and line.get_linestyle() != "None"
    }


def labels(axes):
    """Names right of the axes, by colour."""
    return {
        text.get_color(): text.get_text().replace("\n", " ")
        for text in axes.texts
        if text.get_color() in PALETTE
    }


def test_a_picture_of_each_problem_and_metric_and_one_of_all(drawn):
    figures = drawn(write_pictures, results())
    assert set(figures) == {"rms", "rms_first", "rms_second", "w2", "w2_first", "w2_second"}
    assert [len(figures[name].axes) for name in ("rms", "rms_first")] == [2, 1]
    alone = drawn(write_pictures, results(problems=("first",)))
    assert set(alone) == {"rms_first", "w2_first"}


def test_what_is_drawn_was_measured(drawn):
    figure = drawn(write_pictures, results())["rms"]
    known = {label((name, grid)): (constant, p) for name, grid, _, constant, p in METHODS}
    for problem, axes in enumerate(figure.axes):
        lines, names = coloured(axes), labels(axes)
        assert len(names) == len(lines) == len(PALETTE)
        for colour, name in names.items():
            x, y = lines[colour].get_data()
            if name == "variable_adams adaptive":
                np.testing.assert_allclose(x, [7.5, 15.5, 23.5])
                np.testing.assert_allclose(y, [1e-1, 1e-3, 1e-5])
                assert lines[colour].get_markerfacecolor() == "white"
            else:
                expected = [error(*known[name], n, problem) for n in BUDGETS]
                np.testing.assert_allclose(x, BUDGETS)
                np.testing.assert_allclose(y, expected)
        grey = [c for c in axes.collections if isinstance(c, mpl.collections.LineCollection)]
        drawn_grey = [path for c in grey for path in c.get_paths()]
        assert len(lines) + len(drawn_grey) == len(METHODS) + 1
        assert any(np.allclose(line.get_ydata(), FLOOR) for line in axes.lines)
    # A curve has its colour everywhere.
    assert labels(figure.axes[0]) == labels(figure.axes[1])


def test_dashes_say_the_coordinates_and_failures_are_marked(drawn):
    figure = drawn(write_pictures, results(methods=METHODS[:3]))["rms_first"]
    (axes,) = figure.axes
    colours = {name: colour for colour, name in labels(axes).items()}
    dashes = {name: coloured(axes)[colour].get_linestyle() for name, colour in colours.items()}
    assert dashes == {
        "adams3 @ karras": "-.",
        "heun": "-",
        "ddim @ karras": "-",
        "variable_adams adaptive": ":",
    }
    crosses = [line for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [(*c.get_xdata(), *c.get_ydata()) for c in crosses] == [
        (BUDGETS[-1], axes.get_ylim()[1])
    ]
    assert crosses[0].get_color() == colours["ddim @ karras"]
    caption = figure.texts[0].get_text()
    assert "×: failed" in caption
    assert "dashed: time" not in caption
    assert "grey" not in caption


def test_seeds_are_a_mean_and_a_band(drawn):
    spread = 2.0
    figure = drawn(write_pictures, results(methods=METHODS[:1], seeds=(0, 1, 2), spread=spread))
    (axes,) = figure["rms_first"].axes
    colour = next(c for c, name in labels(axes).items() if name == "adams3 @ karras")
    exact = np.array([error(10.0, 3, n, 0) for n in BUDGETS])[:-1]  # the last one failed
    # Factors 1, 2, 4: a geometric mean of 2, and logarithms with a standard deviation of log 2.
    np.testing.assert_allclose(coloured(axes)[colour].get_ydata(), 2 * exact)
    bands = [
        c
        for c in axes.collections
        if mpl.colors.same_color(c.get_facecolor()[:, :3], mpl.colors.to_rgb(colour))
    ]
    corners = bands[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(exact.min())
    assert corners[:, 1].max() == pytest.approx(4 * exact.max())
    assert "3 seeds" in figure["rms_first"].texts[0].get_text()


def test_the_answer_names_the_best_and_draws_the_budget(drawn):
    found = results()
    figure = drawn(answer_picture, found, "second", 20)["answer_second_20"]
    (axes,) = figure.axes
    advice = best_at(found, "second", "rms", 20)
    said = figure.texts[-1]
    assert said.get_text().replace("\n", " ") == str(advice)
    assert "rk4_theta on log" in said.get_text().replace("\n", " ")
    named = labels(axes)
    assert set(named.values()) == {choice.label for choice in advice.ranking[:5]}
    assert named[said.get_color()] == label(RK4)
    ring = [line for line in axes.lines if line.get_markersize() == 9]
    assert [(*r.get_xdata(), *r.get_ydata()) for r in ring] == [
        pytest.approx((16, error(150.0, 4, 16, 1)))
    ]
    assert any(list(line.get_xdata()) == [20, 20] for line in axes.lines)
    other = drawn(answer_picture, found, "second", 20, metric="w2")["answer_second_20"]
    assert labels(other.axes[0]) == named


@pytest.mark.parametrize(
    ("problem", "budget", "metric", "message"),
    [
        ("third", 12, None, "not measured on 'third'; it was on first, second"),
        ("first", 12, "mmd", "'mmd' was not measured"),
        ("first", 5, None, "no method solved first within 5 evaluations; the fewest .* are 6"),
    ],
)
def test_what_has_no_answer_is_refused(problem, budget, metric, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        answer_picture(results(), problem, budget, tmp_path, metric=metric)
    assert not list(tmp_path.iterdir())


def test_the_same_results_give_the_same_files(tmp_path):
    found = results(problems=("a/b c",), methods=METHODS[:3])
    found = found.select(lambda m: m.setting.rtol is not None)  # of which there is one metric
    first, again = (write_pictures(found, tmp_path / name) for name in ("first", "again"))
    assert [path.name for path in first][:3] == [
        f"rms_a%2Fb%20c.{kind}" for kind in pictures.FORMATS
    ]
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    assert first[0].read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in first[1].read_bytes()
    assert first[2].read_bytes()[:4] == b"%PDF"


def test_results_that_are_few_or_failed_are_drawn(drawn, tmp_path):
    nothing = results().select(lambda m: m.status != "success")
    assert len(drawn(write_pictures, nothing)) == 6
    one = results().select(lambda m: m.setting.budget == 12)
    assert len(coloured(drawn(write_pictures, one)["w2_first"].axes[0])) == len(PALETTE)
    assert drawn(write_pictures, results().select(lambda m: False)) == {}


def test_names_and_orders_of_curves():
    assert label(("heun", "karras")) == "heun"
    assert label(("heun", "log")) == "heun @ log"
    assert label(("dopri5", ADAPTIVE)) == "dopri5 adaptive"
    assert label(("azula DDIM", "karras")) == "azula DDIM @ karras"
    assert declared_orders([("heun", "log"), ("rk4", "log"), ("azula DDIM", "log")]) == [2, 4]
    assert declared_orders([("variable_adams", ADAPTIVE)]) == []


def panel(errors):
    """Curves with these errors at 10, 20, … evaluations."""
    return {
        (name, "log"): [
            Point(Setting("p", name, "log", 10 * (k + 1), None, 1, 0), 10.0 * (k + 1), {0: value})
            for k, value in enumerate(values)
        ]
        for name, values in errors.items()
    }


ERRORS = st.lists(st.floats(0.02, 1), min_size=3, max_size=3)


@settings(max_examples=40)
@given(st.lists(ERRORS, min_size=2, max_size=5), st.floats(1e-3, 1e3), st.integers(0, 4))
def test_ranking_knows_no_units_and_puts_what_is_better_everywhere_first(curves, scale, which):
    errors = {f"m{i}": values for i, values in enumerate(curves)}
    order = ranking([panel(errors)], [None])
    scaled = {name: [scale * v for v in values] for name, values in errors.items()}
    best = [min(min(v[: k + 1]) for v in errors.values()) for k in range(3)]
    means = {
        name: np.mean([math.log10(min(values[: k + 1]) / best[k]) for k in range(3)])
        for name, values in errors.items()
    }
    assert [means[name] for name, _ in order] == pytest.approx(sorted(means.values()), abs=1e-9)
    again = [means[name] for name, _ in ranking([panel(scaled)], [None])]
    assert again == pytest.approx(sorted(means.values()), abs=1e-9)
    better = dict(errors, better=[v / 10 for v in curves[which % len(curves)]])
    places = ranking([panel(better)], [None])
    assert places.index(("better", "log")) <= places.index((f"m{which % len(curves)}", "log"))


def test_ranking_counts_failures_and_floors():
    errors = {"fails": [1e-9, None, None], "coarse": [1e-2, 1e-2, 1e-2], "none": [None] * 3}
    order = [name for name, _ in ranking([panel(errors)], [None])]
    # What failed later still has its early point within every budget.
    assert order == ["fails", "coarse", "none"]
    assert ranking([panel({"a": [1e-9], "b": [1e-12]})], [1e-6]) == [("a", "log"), ("b", "log")]
    only = panel({"a": [1e-2], "b": [1e-1]}), panel({"b": [1e-3]})
    assert ranking(only, [None, None])[0] == ("b", "log")


def test_problems_come_in_the_order_of_the_experiment():
    found = points_of(results(problems=("z", "a")), "rms")
    assert list(found) == ["z", "a"]
