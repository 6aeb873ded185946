"""The bibliography, and what methods and claims cite: one list, and every name in it."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import sdekit
from sdekit.citations import Entry, bibliography, bibtex, cite, labels, parse
from sdekit.theory import WORKS, load_claims

ROOT = Path(sdekit.__file__).parents[1]
METHODS = sdekit.methods()
# What BibTeX's standard styles ask for, beside author, title and year; of @misc, where it is found.
REQUIRED = {
    "article": ({"journal"}, {"volume"}),
    "book": ({"publisher"},),
    "inproceedings": ({"booktitle"},),
    "misc": ({"eprint", "howpublished", "note"},),
}


@pytest.mark.parametrize("entry", bibliography().values(), ids=lambda entry: entry.key)
def test_entries_are_complete(entry):
    """Fields as BibTeX asks, a year that is one, names family first, numbers of arXiv with dates."""
    assert all(options & entry.fields.keys() for options in REQUIRED[entry.kind])
    assert 1700 < entry.year <= date.today().year
    assert all(
        name.startswith("{") or "," in name or entry.key == "cho2024note"
        for name in entry.fields["author"].split(" and ")
    )
    if "pages" in entry.fields:
        first, last = re.fullmatch(r"(\d+)--(\d+)", entry.fields["pages"]).groups()
        assert int(first) < int(last)
    assert ("eprint" in entry.fields) == ("archivePrefix" in entry.fields)
    if "eprint" in entry.fields:
        year, month = re.fullmatch(r"(\d\d)(\d\d)\.\d{4,5}", entry.fields["eprint"]).groups()
        assert 1 <= int(month) <= 12
        # Conferences are up to two years after the preprint, and not before.
        assert 2000 + int(year) <= entry.year <= 2000 + int(year) + 2


@pytest.mark.parametrize("entry", bibliography().values(), ids=lambda entry: entry.key)
def test_keys_are_the_first_author_and_the_year(entry):
    """But sdekit's own."""
    if entry.key != "sdekit":
        family = entry.authors[0].removeprefix("The ").lower()
        family = family.translate(str.maketrans({"ä": "a", "ö": "oe", "ü": "ue", "ß": "ss"}))
        start = re.sub("[^a-z]", "", family.split("-")[0])
        assert re.fullmatch(rf"{start}{entry.year}[a-z]+", entry.key)


def test_bibliography_is_written_back_as_it_is_read():
    """An entry's BibTeX is its text, but for the shorthand, and it parses to the same."""
    text = (ROOT / "sdekit" / "references.bib").read_text(encoding="utf-8")
    kept = re.sub(r"^(%.*|  shorthand = .*)\n", "", text, flags=re.MULTILINE).strip()
    assert bibtex(bibliography()) == kept
    again = parse(bibtex(bibliography()))
    assert {key: (e.authors, e.title, e.year) for key, e in again.items()} == {
        key: (e.authors, e.title, e.year) for key, e in bibliography().items()
    }
    assert next(iter(bibliography())) == "sdekit"
    assert len(set(labels().values())) == len(bibliography())


def test_no_work_is_listed_in_vain():
    """Each is cited by a method or by a claim; the works of claims are those that claims name."""
    cited = {key for method in METHODS.values() for key in method.works}
    named = {name for claim in load_claims().values() for name in claim.sources}
    assert cited | {WORKS[name].key for name in named} == set(bibliography())
    assert named == set(WORKS)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_cite_what_their_source_says(method):
    """The families and years in the source are those of the works, in their order, and no others."""
    assert method.works
    entries = [bibliography()[key] for key in method.works]
    years = re.findall(r"\b1[789]\d\d|\b20\d\d", method.source)
    assert years == [str(e.year) for e in entries if "shorthand" not in e.fields]
    position = -1
    for entry in entries:
        name = entry.fields.get("shorthand", entry.authors[0])
        position = method.source.index(name, position + 1)
    assert method.citation() == "\n\n".join(entry.bibtex for entry in entries)
    assert list(parse(method.citation())) == list(method.works)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("dpmpp_2m", ["2211.01095"]),
        ("dpmpp_3s", ["2211.01095", "2206.00927"]),
        ("unipc_bh2_2", ["2302.04867"]),
        ("ddim", ["2010.02502"]),
        ("edm_heun", ["2206.00364"]),
        ("deis_t3", ["2204.13902"]),
        ("euler_maruyama_t", ["2011.13456"]),
        ("sa_solver_2", ["2309.05019"]),
        ("seeds_2", ["2305.14267"]),
        ("restart", ["2306.14878"]),
        ("ddpm", ["2006.11239"]),
        ("flow_euler", ["2210.02747", "2209.03003"]),
    ],
)
def test_citations_are_these_preprints(name, numbers):
    """Numbers of arXiv, as the papers' own pages have them."""
    assert re.findall(r"eprint = \{(.+)\}", METHODS[name].citation()) == numbers


def test_what_rests_on_nothing_cites_sdekit():
    """Own methods do, and so does a method that a user puts together."""
    own = METHODS["sea_w"].citation()
    assert own.startswith("@misc{sdekit,")
    assert sdekit.Method("mine", METHODS["euler"].solver, "me, 2026").citation() == own
    unknown = sdekit.Method("mine", METHODS["euler"].solver, "me", ("me2026",))
    with pytest.raises(ValueError, match=r"unknown work 'me2026'; it must be a key of .*\.bib"):
        unknown.citation()
    with pytest.raises(ValueError, match="unknown work 'me2026'"):
        cite("[me2026], eq. 1")


def test_labels_tell_works_apart():
    """Two papers of the same authors and year have letters; three authors are named, four are not."""
    assert labels()["lu2022dpmsolver"] == "Lu et al. 2022a"
    assert labels()["lu2022dpmsolverpp"] == "Lu et al. 2022b"
    assert labels()["song2021ddim"] == "Song, Meng & Ermon 2021"
    assert labels()["foster2024splitting"] == "Foster, dos Reis & Strange 2024"
    assert labels()["zhang2023deis"] == "Zhang & Chen 2023"
    assert labels()["crowson2022kdiffusion"] == "k-diffusion"
    assert cite("[euler1768institutiones]; [heun1900neue], p. 23; [euler1768institutiones]") == (
        "Euler 1768; Heun 1900, p. 23; Euler 1768",
        ("euler1768institutiones", "heun1900neue"),
    )
    assert WORKS["dpm"].short == "Lu et al. 2022a"
    assert WORKS["guidance"].title == "Diffusion models beat GANs on image synthesis"


def test_citation_file_is_sdekits_entry():
    """CITATION.cff has what its schema 1.2.0 requires, and says the same as the bibliography."""
    read = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= read.keys()
    assert read["cff-version"] == "1.2.0"
    assert read["version"] == sdekit.__version__
    assert read["license"] == "MIT"
    released = date.fromisoformat(read["date-released"])
    entry = bibliography()["sdekit"]
    assert [author["name"] for author in read["authors"]] == list(entry.authors)
    assert (read["title"], released.year) == (entry.title, entry.year)
    assert entry.fields["note"] == f"Version {sdekit.__version__}"


GOOD = "@book{a1900b,\n  author = {A, B},\n  title = {T},\n  year = {1900},\n}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{GOOD}\n\n{GOOD}", "line 7: '@book{a1900b,' must be as in"),
        (GOOD[:-2], "a1900b has no closing brace"),
        (GOOD.replace("  year = {1900},\n", ""), "line 4: a1900b lacks year"),
        (GOOD.replace("{T}", "{T"), "line 3: .* must be as in"),
        (GOOD.replace("{T}", "{{T}"), "line 3: .* must be as in"),
        (GOOD.replace("{T}", "{}T{}"), "line 3: .* must be as in"),
        (GOOD.replace("  title", "title"), "line 3: .* must be as in"),
        (GOOD.replace("title", "author"), "line 3: .* must be as in"),
        (GOOD.replace("@book", "book"), "line 1: .* must be as in"),
        (f"{GOOD}\nand more", "line 6: 'and more' must be as in"),
    ],
)
def test_a_bibliography_of_another_form_is_refused(text, message):
    """By its line, and with what would be right."""
    assert list(parse(GOOD)) == ["a1900b"]
    with pytest.raises(ValueError, match=message):
        parse(text)


words = st.text(
    st.characters(whitelist_categories=("L", "Nd"), whitelist_characters=" -'"), min_size=1
)


@given(family=words, given=words, title=words, year=st.integers(1700, 2030))
def test_parsing_undoes_writing(family, given, title, year):
    """Whatever the letters."""
    fields = {"author": f"{family}, {given}", "title": f"{{{title}}}", "year": str(year)}
    entry = Entry("a1", "misc", fields)
    (again,) = parse(entry.bibtex).values()
    assert again == entry
    assert (again.authors, again.title, again.year) == ((family,), title, year)
