"""The interactive page in a real browser: it loads nothing, and shows what was measured and chosen."""

from __future__ import annotations

import base64
import gzip
import html
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlencode

import numpy as np
import pytest
from bench_results import BUDGETS, FLOOR, METHODS, error, results

from sdekit.bench.html import page_data, write_html
from sdekit.bench.legend import label, points_of
from sdekit.bench.measurements import Results
from sdekit.bench.recommend import best_map
from sdekit.bench.regression import orders

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
OFFLINE = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--proxy-server=127.0.0.1:9",
    "--virtual-time-budget=30000",
    "--window-size=1200,900",
)
# What would break out of a script, an attribute, an element, or plotly's own markup.
EVIL = '</script><script>window.broken = 1</script><img src=x onerror="window.broken = 2">'
EVIL_METHODS = (*METHODS[:-1], ("'\"><b>bold</b>" + EVIL, "a&b, <i>", "<u>", 3.0, 1))

# Before anything of the page runs.
WATCH = """<script>
window.seen = { errors: [] };
addEventListener("error", e => seen.errors.push(String(e.message || e.target.outerHTML)), true);
addEventListener("unhandledrejection", e => seen.errors.push(String(e.reason)));
for (const kind of ["error", "warn"]) console[kind] = (...said) => seen.errors.push(said.join(" "));
</script>"""
# After all of it.
DRIVE = """<script>
(async () => {
  await ready;
  const wait = () => new Promise(done => setTimeout(done, 400));
  const set = (id, value) => {
    $(id).value = value;
    $(id).dispatchEvent(new Event("change", { bubbles: true }));
    return wait();
  };
  const press = name => { document.querySelector(`[data-set=${name}]`).click(); return wait(); };
  const label = text => [...$("methods").children].find(l => l.textContent === text);
  const tick = text => { label(text).querySelector("input").click(); return wait(); };
  const rows = id => [...$(id).rows].map(r => [...r.cells].map(c => c.textContent));
  const lines = () => $("curves").data.filter(t => typeof t.meta === "number").map(
    t => ({ name: t.name, x: [...t.x], y: [...t.y], text: t.text, dash: t.line.dash }));
  const look = () => ({
    lines: lines(), hash: location.hash, problem: $("problem").value, metric: $("metric").value,
    x: $("x").value, chosen: $("chosen").checked,
    ticked: [...$("methods").children].filter(l => l.querySelector("input").checked)
      .map(l => l.textContent),
  });
  STEPS
})().catch(e => seen.errors.push(String(e))).finally(() => {
  seen.resources = performance.getEntriesByType("resource").map(r => r.name);
  seen.broken = window.broken || 0;
  seen.tags = document.querySelectorAll("main b, main u, main i, img").length;
  seen.message = document.getElementById("message").textContent;
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script>"""
CLICKS = """
  seen.first = look();
  seen.buttons = [...document.querySelectorAll(".modebar-btn")].map(b => b.dataset.title);
  await press("all"); seen.all = look();
  await press("none"); seen.none = look(); seen.noOrders = rows("orders");
  label("heun").querySelector("input").focus();
  await tick("heun"); await tick("ddim @ karras"); seen.two = look();
  seen.focus = document.activeElement.closest("label").textContent;
  await tick("heun"); seen.one = look();
  await set("problem", 1); await set("metric", "w2"); await set("x", "seconds"); seen.other = look();
  await press("all"); $("details").open = true; await wait(); seen.numbers = rows("numbers");
  await set("metric", "rms"); await set("x", "nfe"); seen.orders = rows("orders");
  seen.map = rows("map-table"); seen.heat = $("best").data[0].hovertext;
  $("words").value = "HEUN"; $("words").dispatchEvent(new Event("input"));
  seen.found = [...$("methods").children].filter(l => !l.hidden).map(l => l.textContent);
  await press("none"); await tick("heun"); $("chosen").click(); await wait();
  seen.mapOfOne = rows("map-table");
  location.hash = "#problem=nope&metric=nope&x=nope&method=nope"; await wait(); seen.nonsense = look();
"""


def start(page: Path, folder: Path, *, steps: str, address: str = "") -> subprocess.Popen:
    """Open a copy of a page that watches itself and does these steps."""
    text = page.read_text(encoding="utf-8")
    text = text.replace('<meta charset="utf-8">', '<meta charset="utf-8">' + WATCH, 1)
    text = text.replace("</html>", DRIVE.replace("STEPS", steps) + "</html>")
    folder.mkdir()
    copy = folder / "page.html"
    copy.write_text(text, encoding="utf-8")
    command = [
        str(CHROMIUM),
        *OFFLINE,
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        copy.as_uri() + address,
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    )


def seen(process: subprocess.Popen) -> dict:
    """Wait for a browser; return what the page saw."""
    out, _ = process.communicate(timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', out, re.DOTALL)
    assert found, f"the page did not get to its end: {out[-2000:]}"
    return json.loads(html.unescape(found[1]))


def opened(found: Results, folder: Path, **runs) -> dict[str, dict]:
    """Write a page and open it once for each run, at the same time."""
    page = folder / "report.html"
    write_html(found, page)
    started = {
        name: start(damage(page, folder / f"{name}.html", damaged), folder / name, **options)
        for name, (damaged, options) in runs.items()
    }
    return {name: seen(process) for name, process in started.items()}


def damage(page: Path, to: Path, pairs) -> Path:
    """Write a page with parts replaced."""
    text = page.read_text(encoding="utf-8")
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    to.write_text(text, encoding="utf-8")
    return to


NAMED = {"problem": "second", "metric": "w2", "x": "seconds", "map": "chosen"}
WATCHED = "<script>throw new Error('thrown')</script><img src='http://127.0.0.1:9/x.png'>"


@pytest.fixture(scope="module")
def found():
    """Two problems, the second one and the last method of evil names, and two seeds."""
    return results(("first", EVIL), EVIL_METHODS, (0, 1), spread=1.21, title=EVIL, status=EVIL)


@pytest.fixture(scope="module")
def visits(tmp_path_factory, found):
    named = [("method", "heun@karras"), ("method", "variable_adams@adaptive"), *NAMED.items()]
    named = [(k, EVIL if v == "second" else v) for k, v in named]
    return opened(
        found,
        tmp_path_factory.mktemp("pages"),
        clicked=((), {"steps": CLICKS}),
        shared=((), {"steps": "seen.first = look();", "address": f"#{urlencode(named)}"}),
        damaged=(
            [
                ('http-equiv="Content-Security-Policy"', ""),
                ("</main>", WATCHED + "</main>"),
                ('octet-stream">', 'octet-stream">AAAA'),
            ],
            {"steps": 'seen.orders = rows("orders"); seen.drawn = !!$("curves").data;'},
        ),
    )


@browser
@pytest.mark.parametrize("visit", ["clicked", "shared"])
def test_it_loads_without_errors_and_without_the_network(visits, visit):
    assert visits[visit]["errors"] == []
    assert visits[visit]["resources"] == []
    assert visits[visit]["message"] == ""


@browser
def test_no_button_uploads_anything(visits):
    known = ["Download plot", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]
    assert visits["clicked"]["buttons"] == known


@browser
def test_errors_and_loads_would_be_seen_and_a_broken_picture_leaves_the_tables(visits):
    damaged = visits["damaged"]
    assert any("thrown" in error for error in damaged["errors"])
    assert any("<img" in error for error in damaged["errors"])
    assert damaged["resources"] == ["http://127.0.0.1:9/x.png"]
    assert "cannot be drawn" in damaged["message"]
    assert not damaged["drawn"]
    assert len(damaged["orders"]) > 1


@browser
def test_names_do_not_break_out(visits, found):
    clicked = visits["clicked"]
    assert clicked["broken"] == 0
    assert clicked["tags"] == 0
    evil = label(("'\"><b>bold</b>" + EVIL, "a&b, <i>"))
    assert evil in clicked["all"]["ticked"]
    hovers = "".join(text for line in clicked["all"]["lines"] for text in line["text"])
    assert set(re.findall(r"<[^>]*>", hovers)) == {"<b>", "</b>", "<br>"}
    assert "&lt;/script&gt;" in hovers


def check(drawn, found, problem, metric, x="nfe"):
    """The lines drawn are the points of the results."""
    panel = points_of(found, metric)[problem]
    known = {html.escape(label(key), quote=False): points for key, points in panel.items()}
    for line in drawn:
        points = known[line["name"]]
        expected = [p.error for p in points]
        np.testing.assert_allclose(
            [np.nan if y is None else y for y in line["y"]],
            [np.nan if e is None else e for e in expected],
            rtol=1e-12,
        )
        across = [p.nfe if x == "nfe" else 0.01 * p.nfe for p in points]
        np.testing.assert_allclose(line["x"], across, rtol=1e-12)


@browser
def test_the_lines_are_what_was_measured_and_follow_the_controls(visits, found):
    clicked = visits["clicked"]
    panel = points_of(found, "rms")["first"]
    names = {label(key) for key in panel}
    assert len(clicked["first"]["lines"]) == 5
    assert set(clicked["all"]["ticked"]) == names
    assert len(clicked["all"]["lines"]) == len(names)
    assert clicked["none"]["lines"] == []
    assert [line["name"] for line in clicked["two"]["lines"]] == clicked["two"]["ticked"]
    assert set(clicked["two"]["ticked"]) == {"heun", "ddim @ karras"}
    assert clicked["one"]["ticked"] == ["ddim @ karras"]
    assert clicked["focus"] == "heun"
    for state in ("first", "all", "two", "one"):
        check(clicked[state]["lines"], found, "first", "rms")
    # Not only as the package takes seeds together: of factors 1 and 1.21 the geometric mean is 1.1.
    (line,) = clicked["one"]["lines"]
    np.testing.assert_allclose(line["y"], [1.1 * error(0.2, 1, n, 0) for n in BUDGETS])
    assert (clicked["other"]["problem"], clicked["other"]["metric"]) == ("1", "w2")
    check(clicked["other"]["lines"], found, EVIL, "w2", x="seconds")
    assert clicked["found"] == ["heun"]
    adaptive = [line for line in clicked["all"]["lines"] if "adaptive" in line["name"]]
    assert [line["dash"] for line in adaptive] == ["dot"]


@browser
def test_a_point_says_its_configuration(visits):
    line = next(line for line in visits["clicked"]["all"]["lines"] if line["name"] == "heun")
    said = line["text"][0]
    for part in (
        "<b>heun</b> (sdekit)",
        f"first, rms: {1.1 * error(4.0, 2, 6, 0):.3e}",
        "grid karras, budget 6",
        "NFE 6, at most 6; steps 6",
        "32 samples, seeds 0: 0.111, 1: 0.134",
        "0.06 s, of it 0.024 s in the network",
        "status success",
        "e1 sdekit 0.1.0, cpu a processor",
    ):
        assert part in said, (part, said)
    adaptive = next(
        line for line in visits["clicked"]["all"]["lines"] if "adaptive" in line["name"]
    )
    assert "rtol 0.01" in adaptive["text"][0]


@browser
def test_the_numbers_are_the_measurements(visits, found):
    head, *rows = visits["clicked"]["numbers"]
    measured = [m for m in found.measurements if m.setting.problem == EVIL and "w2" in m.metrics]
    assert len(rows) == len(measured)
    got = {(r[0], r[1], r[3], r[6]): r[head.index("w2")] for r in rows}
    for m in measured:
        value = m.metrics["w2"]
        key = (m.setting.method, m.setting.grid, str(m.setting.budget), str(m.setting.seed))
        if value is None:
            assert got[key] == "none"
        else:
            assert float(got[key]) == pytest.approx(value, rel=1e-3)


@browser
def test_the_map_and_the_orders_are_those_of_the_package(visits, found):
    clicked = visits["clicked"]
    by_cell = {(row[0], int(row[1])): row[2] for row in clicked["map"][1:]}
    assert by_cell == best_map(found, "rms")
    ours = {n: by_cell["first", n] for n in BUDGETS}
    assert ours[6] == "ddim @ karras"
    assert ours[8] == ours[12] == "adams3 @ karras"
    # At the floor are two, of which this one was there before.
    assert ours[16] == ours[24] == ours[48] == "rk4_theta @ log"
    ratio = error(10.0, 3, 6, 0) / error(0.2, 1, 6, 0)
    assert f"adams3 @ karras, {ratio:.3g} times the error" in clicked["heat"][0][0]
    assert "at the floor, and 1 more with it" in clicked["heat"][0][-1]
    assert error(150.0, 4, 24, 0) < FLOOR / 1.1 < error(10.0, 3, 24, 0)
    assert error(10.0, 3, 48, 0) < FLOOR / 1.1
    assert {row[2] for row in clicked["mapOfOne"][1:]} == {"heun"}

    rows = {row[0]: row for row in clicked["orders"][1:]}
    known = {row.label: row.estimate for row in orders(found, "rms") if row.problem == EVIL}
    assert known.keys() == rows.keys()
    assert len(clicked["orders"]) == 1 + len(rows)
    estimate = known["heun"]
    assert estimate.order == pytest.approx(2)
    assert rows["heun"][2] == f"{estimate.order:.2f} ± {estimate.order_se:.2f}"
    assert rows["heun"][-1] == estimate.verdict
    assert clicked["noOrders"][1:] == []


@browser
def test_the_address_keeps_what_is_chosen(visits):
    clicked, shared = visits["clicked"], visits["shared"]["first"]
    assert set(shared["ticked"]) == {"heun"}  # solves to a tolerance have no w2
    assert (shared["problem"], shared["metric"], shared["x"]) == ("1", "w2", "seconds")
    assert shared["chosen"]
    said = parse_qs(clicked["two"]["hash"][1:])
    assert set(said.pop("method")) == {"heun@karras", "ddim@karras"}
    assert said == {"problem": ["first"], "metric": ["rms"], "x": ["nfe"]}
    assert parse_qs(clicked["all"]["hash"][1:])["methods"] == ["all"]
    nonsense = clicked["nonsense"]
    assert nonsense["ticked"] == []
    assert (nonsense["problem"], nonsense["metric"], nonsense["x"]) == ("0", "rms", "nfe")


def test_the_page_is_small_closed_and_the_same_again(tmp_path):
    seeds = tuple(range(30))
    many = results(("first", "second"), METHODS, seeds)
    assert len(many.measurements) > 3000
    write_html(many, tmp_path / "a.html")
    write_html(many, tmp_path / "b.html")
    text = (tmp_path / "a.html").read_bytes()
    assert text == (tmp_path / "b.html").read_bytes()
    assert len(text) < 5e6
    # Nothing is loaded: no address but in what plotly's own code, which is packed, may have.
    assert not re.findall(rb"""(?:src|href)\s*=|@import|url\(""", text)


def test_the_library_inside_is_plotlys(tmp_path):
    from plotly.offline import get_plotlyjs

    write_html(results(), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    packed = re.search(r'octet-stream">([^<]*)<', text)[1]
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()


def test_columns_hold_every_value():
    found = results(seeds=(0, 1))
    data = page_data(found)
    columns = data["columns"]
    for i, m in enumerate(found.measurements):
        curve = data["curves"][columns["curve"][i]]
        assert (curve["method"], curve["grid"]) == (m.setting.method, m.setting.grid)
        assert data["problems"][columns["problem"][i]]["name"] == m.setting.problem
        assert data["statuses"][columns["status"][i]] == m.status
        for name in ("budget", "rtol", "samples", "seed"):
            assert columns[name][i] == getattr(m.setting, name)
        for name in ("nfe", "nfe_max", "steps", "seconds", "network_seconds"):
            assert columns[name][i] == getattr(m, name)
        for metric in ("rms", "w2"):
            assert data["values"][metric][i] == m.metrics.get(metric, -1)
    json.dumps(data, allow_nan=False)


def test_without_plotly_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"pip install 'sdekit\[bench\]'"):
        write_html(results(), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    importlib.import_module("plotly.offline")
