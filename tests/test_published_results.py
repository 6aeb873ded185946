"""The published pages: made from committed records, each by one command, and no number by hand."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS, RESULTS = ROOT / "docs", ROOT / "benchmarks" / "results"
sys.path.insert(0, str(DOCS))

pytest.importorskip("diffusers")  # the tables of peers name them
pytest.importorskip("azula")

import generate_published as published  # noqa: E402

PAGES = {page.name: page for page in published.PAGES}
INCLUDE = re.compile(r"```\{include\} (\S+)\n```")


@pytest.fixture(scope="module")
def parts():
    return published.parts()


def source(name):
    return (DOCS / "published" / f"{name}.md").read_text(encoding="utf-8")


def record(name):
    return published.record_of(PAGES[name])


def numbers(text):
    return [float(n) for n in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]\d+)?", text)]


# ---- records ----


@pytest.mark.parametrize("name", PAGES)
def test_a_record_says_when_by_what_and_on_what_it_was_made(name):
    found = record(name)
    assert re.match(r"20\d\d-\d\d-\d\dT", found["date"])
    assert {"python", "sdekit", "torch"} <= set(found["versions"])
    assert found["hardware"]["cpu"]
    assert found["hardware"]["torch_threads"] >= 1
    assert len(found["configuration"]) > 3


def test_a_record_of_peers_says_their_versions():
    peers = {
        "ode": {"diffusers", "azula"},
        "adaptive": {"torchdiffeq", "scipy"},
        "sde": {"diffusers", "azula", "torchsde"},
        "overhead": {"diffusers", "azula", "torchdiffeq"},
        "shipped": {"diffusers", "azula", "torchdiffeq", "torchsde", "scipy"},
    }
    for name, packages in peers.items():
        assert packages <= set(record(name)["versions"])


# ---- pages ----


@pytest.mark.parametrize("path", [DOCS / "published.md", *(DOCS / "published").glob("*.md")])
def test_no_number_in_a_page_is_written_by_hand(path):
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    assert not re.findall(r"\S*\d\S*", text)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_all_its_parts_once(name, parts):
    includes = INCLUDE.findall(source(name))
    own = {f"../_generated/published_{part}.md" for part in parts if part.startswith(f"{name}_")}
    assert own <= set(includes)
    assert len(set(includes)) == len(includes)
    assert source(name).startswith(f"# {PAGES[name].title}\n")


def test_no_table_is_shown_twice_and_none_is_missing(parts):
    shown = []
    for path in DOCS.rglob("*.md"):
        if "_generated" not in path.parts and "_build" not in path.parts:
            includes = INCLUDE.findall(path.read_text(encoding="utf-8"))
            shown.extend(include.rpartition("/")[2] for include in includes)
    ours = [name for name in shown if name.startswith("published_")]
    assert sorted(ours) == sorted(f"published_{part}.md" for part in parts)
    assert len(set(shown)) == len(shown)


def test_the_index_has_a_line_and_the_headline_of_every_page(parts):
    index = (DOCS / "published.md").read_text(encoding="utf-8")
    for name, page in PAGES.items():
        line = next(row for row in parts["index"].splitlines() if f"published/{name}.md" in row)
        assert page.headline(record(name)).replace("|", "\\|") in line
        assert f"`{page.command}`" in line
        assert record(name)["date"][:10] in line
        assert f"published/{name}\n" in index
        assert page.command in parts[f"{name}_about"]


def test_every_script_and_every_result_is_listed_with_its_command():
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert f"benchmarks/{path.name}" in text
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    for page in PAGES.values():
        assert f"| `{page.command}` |" in text
        assert f"`results/{page.file}.json`" in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / "benchmarks" / link).is_file()
    for path in RESULTS.glob("*.json"):
        assert f"results/{path.name}" in text


# ---- figures, from the records by other ways ----


def test_the_headline_of_fixed_budgets(parts):
    """By the goals that the suite wrote, and by its curves and best peers."""
    found, goals = record("ode"), record("ode")["goals"]
    text = parts["ode_headline"]
    by_budget = {g["budget"]: g["ratio"] for g in goals if g["goal"] == "default"}
    for budget in (8, 20, 80):
        assert f"{by_budget[budget]:.2g} at {budget} evaluations" in text
    assert f"{sum(g['met'] for g in goals)} of {len(goals)} goals met" in text
    ours = {
        (c["problem"], n): e
        for c in found["curves"]
        if (c["group"], c["method"]) == ("sdekit", "bayesian_adams")
        for n, e in zip(c["budgets"], c["errors"], strict=True)
    }
    peers = {
        (p["problem"], p["budget"]): p["error"] for p in found["best_peers"] if p["group"] == "peer"
    }
    ratios = [
        ours[key] / peers[key]
        for key in ours
        if ours[key] and peers.get(key) and min(ours[key], peers[key]) >= 1e-11
    ]
    lost = sum(ratio > 1 for ratio in ratios)
    assert f"In **{lost}** of {len(ratios)} cells" in parts["ode_ratios"]
    assert 0 < lost < len(ratios) / 2
    bold = [cell for cell in re.findall(r"\*\*([\d.]+)\*\*", parts["ode_ratios"]) if "." in cell]
    # A loss rounds to at least one.
    assert all(float(cell) >= 1 for cell in bold)


def test_the_headline_of_tolerances(parts):
    found = record("adaptive")
    text = parts["adaptive_headline"]
    assert numbers(text)[-2:] == [
        float(f"{found['mean_ratio']['all']:.2g}"),
        float(f"{found['worst_ratio']['ratio']:.2g}"),
    ]
    assert f"on {found['worst_ratio']['problem']}" in text
    # Our method's row is the mean that the suite wrote.
    row = next(r for r in parts["adaptive_methods"].splitlines() if f"| `{found['ours']}` |" in r)
    for target in ("0.001", "1e-05", "1e-08"):
        assert f" {found['mean_ratio'][target]:.2g} (" in row


def test_the_headline_of_laws(parts):
    found = record("sde")
    means = {row["budget"]: row["cf"] for row in found["means"]}
    for budget in found["goal"]["budgets"]:
        assert f" and {means[budget]:.2g} at {budget} evaluations" in parts["sde_headline"]


def test_the_headline_of_overhead(parts):
    times = list(record("overhead")["microseconds_per_step"].values())[-1]
    ratio = times["diffusers EulerDiscrete"] / times["prepare ddim"]
    assert f"{ratio:.1f} (diffusers EulerDiscrete)" in parts["overhead_headline"]
    rows = parts["overhead_steps"].splitlines()[2:]
    assert len(rows) == len(times)


def test_the_headline_of_likelihoods(parts):
    found = record("likelihood")
    for rtol, worst in found["worst_error"].items():
        assert worst == max(row[f"error_{rtol}"] for row in found["errors"])
        assert f"{worst:.1e} for `rtol={float(rtol):.0e}`" in parts["likelihood_headline"]


TABLES = {
    "flow": ("shipped_lost", "shipped_ends", "shipped_kept"),
    "tolerance": ("shipped_adaptive",),
    "law": ("shipped_laws",),
    "path": ("shipped_paths",),
}


def test_the_headline_of_shipped_samplers(parts):
    """Counted in the tables."""
    total, *counts = map(int, re.findall(r"\d+", parts["shipped_headline"]))
    assert total == sum(counts) == len(record("shipped")["samplers"])
    rows = [row for tables in TABLES.values() for t in tables for row in parts[t].splitlines()[2:]]
    assert len(rows) == total
    said = (
        "(as|more than) claimed",
        "(first|last) steps",
        "less than claimed",
        "does not converge",
        "unstable at these steps",
        "undecided",
    )
    for words, count in zip(said, counts, strict=True):
        assert sum(bool(re.search(rf"{words} \|", row)) for row in rows) == count


def test_an_order_in_a_table_is_that_of_the_record(parts):
    for row in record("shipped")["samplers"]:
        lines = "\n".join(parts[table] for table in TABLES[row["kind"]]).splitlines()
        (line,) = (text for text in lines if text.startswith(f"| {row['name']} |"))
        for found in row["orders"].values():
            if found["order"] is None:
                assert f"| ({found['late']:.1f}) |" in line
            else:
                assert f"| {found['order']:.2f} ± {found['se']:.2f} |" in line
