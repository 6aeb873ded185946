"""The documents do what they say: code runs, commands parse, links lead somewhere.

The Python blocks of a page run in order, in one namespace, in an empty folder. What a page needs but
should not show stands in it as a comment, ``<!-- setup``, code, ``-->``; what its code promises is
asserted in a comment ``<!-- check``, code, ``-->``, after it. Both run where they stand.
"""

from __future__ import annotations

import doctest
import importlib
import itertools
import pkgutil
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from urllib.parse import unquote, urlparse

import matplotlib
import pytest
import torch
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token

import sdekit
from sdekit.theory import load_claims, registered, withdraw

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
MADE = {"_build", "_generated", "examples"}  # folders of docs that a build makes
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if not MADE & set(page.relative_to(ROOT / "docs").parts)
    ),
]
LANGUAGES = {"python", "console", "text", "toml", "bibtex", "json"}
DIRECTIVES = {"{include", "{toctree", "{eval-rst", "{raw", "{math", "{note"}  # that hold no code
HIDDEN = re.compile(r"<!-- (?:setup|check)\n(.*)^-->", re.DOTALL | re.MULTILINE)
SOURCE = re.compile(r"\{source\}`([^`]+)`")
INLINE = re.compile(r"(?:sdekit|make|\.venv/bin/\w+) [a-z-][^…]*$")
FILE = re.compile(r"`((?:benchmarks|docs|sdekit|tests)/[\w./-]*\w\.\w+)`")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def tokens(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


class Snippet(NamedTuple):
    line: int  # of the page, before the first of the code
    code: str


def snippets(page: Path) -> list[Snippet]:
    """Python of a page: its blocks, and the comments before and after them."""
    found = []
    for token in tokens(page):
        if token.type == "fence" and token.info == "python":
            found.append(Snippet(token.map[0] + 1, token.content))
        elif token.type == "html_block" and (hidden := HIDDEN.match(token.content)):
            found.append(Snippet(token.map[0] + 1, hidden[1]))
    return found


def commands(page: Path) -> list[str]:
    """Return the commands of a page: what follows the prompts of its blocks, and those in its text."""
    lines = []
    for token in tokens(page):
        if token.type == "fence" and token.info == "console":
            text = token.content.replace("\\\n", " ")
            lines += [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        for child in token.children or []:
            if child.type == "code_inline" and INLINE.match(child.content):
                lines.append(child.content)
    return [] if page.name == "CHANGELOG.md" else lines  # which tells of commands that were


def slug(heading: str) -> str:
    """Anchor of a heading, as GitHub and MyST make it."""
    text = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return text.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    found: set[str] = set()
    stream = tokens(page)
    for opening, inline in itertools.pairwise(stream):
        if opening.type == "heading_open":
            text = "".join(child.content for child in inline.children or [])
            base, again = slug(text), 0
            while (anchor := f"{base}-{again}" if again else base) in found:
                again += 1
            found.add(anchor)
    return found


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page."""
    found = []
    for token in tokens(page):
        for child in token.children or []:
            target = child.attrGet("href") or child.attrGet("src")
            if target is not None:
                found.append(str(target))
    return found


def ids(pages: list[Path]) -> list[object]:
    return [pytest.param(page, id=name(page)) for page in pages]


# ---- code ----


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty folder, no window, and claims that a page registers withdrawn after it."""
    before = set(load_claims())
    backend = matplotlib.get_backend()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    matplotlib.use("agg")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    matplotlib.use(backend)
    for claim in set(registered()) - before:
        withdraw(claim)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("page", ids([page for page in PAGES if snippets(page)]))
def test_the_code_of_a_page_runs(page, monkeypatch):
    if "import diffusers" in page.read_text(encoding="utf-8"):
        # diffusers imports torchvision, which is not used here, also where it does not fit torch.
        import_utils = pytest.importorskip("diffusers").utils.import_utils
        monkeypatch.setattr(import_utils, "_torchvision_available", False)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses look
    for line, code in snippets(page):
        exec(compile("\n" * line + code, page, "exec"), vars(module))


@pytest.mark.parametrize("page", ids(PAGES))
def test_blocks_say_their_language(page):
    """One without a language, or with another name for Python, would not be run."""
    blocks = [token for token in tokens(page) if token.type == "fence"]
    known = [b for b in blocks if b.info in LANGUAGES or b.info.split("}")[0] in DIRECTIVES]
    assert [f"{name(page)}:{b.map[0] + 1}: {b.info!r}" for b in blocks if b not in known] == []
    for block in blocks:
        if block.info == "toml":
            tomllib.loads(block.content)
    hidden = [t.content for t in tokens(page) if t.type == "html_block"]
    assert not [h for h in hidden if re.match(r"<!-- *(setup|check)", h) and not HIDDEN.match(h)]


def with_doctests() -> list[str]:
    found = pkgutil.walk_packages(sdekit.__path__, "sdekit.")
    return [
        module.name
        for module in found
        if (spec := module.module_finder.find_spec(module.name)) is not None
        and spec.origin is not None
        and ">>> " in Path(spec.origin).read_text(encoding="utf-8")
    ]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("module", with_doctests())
def test_examples_of_docstrings(module):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(module), optionflags=flags)
    assert result.attempted > 0
    assert result.failed == 0


# ---- commands ----


def parse(arguments: list[str]) -> None:
    """Let the command line read its arguments, without running anything.

    Raises:
        click.UsageError: If there is no such command, option or value.
    """
    from sdekit.cli import app  # not before it is needed: it imports all there is

    word, command, context = "sdekit", typer.main.get_command(app), None
    while command is not None:
        context = command.make_context(word, list(arguments), parent=context)
        word = "_protected_args" if hasattr(context, "_protected_args") else "protected_args"
        rest = [*getattr(context, word), *context.args]  # click renamed it
        if not (hasattr(command, "resolve_command") and rest):
            return
        word, command, arguments = command.resolve_command(context, rest)


def check_names(arguments: list[str]) -> None:
    """Look up the names that `bench` would, but for those of a reader's own modules and files."""
    from sdekit.bench.experiment import SHORT
    from sdekit.bench.metrics import METRICS
    from sdekit.bench.names import resolve
    from sdekit.bench.problems import PROBLEMS
    from sdekit.bench_cli import _EXPERIMENTS
    from sdekit.suites_cli import SUITES

    if arguments[0] != "bench":
        return
    options = dict(itertools.pairwise(arguments))
    known = {
        "--problems": lambda word: word in (*PROBLEMS, *SHORT),
        "--metrics": lambda word: word in METRICS,
        "--methods": lambda word: ":" in word or bool(resolve(word)),
        "--config": lambda word: word.endswith(".toml") or (_EXPERIMENTS / f"{word}.toml").exists(),
        "suite": lambda word: word in (*SUITES, "ode|adaptive|sde"),
    }
    for option, exists in known.items():
        for word in options.get(option, "").split(",") if option in options else ():
            assert exists(word), f"{option} {word}"


def check_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    while re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    program, arguments = Path(words[0]).name, words[1:]
    if program == "torchrun":
        assert "sdekit" in arguments or any(a.startswith("benchmarks/") for a in arguments)
        arguments = arguments[arguments.index("sdekit") :] if "sdekit" in arguments else []
        program, arguments = arguments[0], arguments[1:]
    if program == "python" and arguments[:2] == ["-m", "sdekit"]:
        program, arguments = "sdekit", arguments[2:]
    if program == "sdekit":
        parse(arguments)
        check_names(arguments)
    elif program == "make":
        rules = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = set(re.findall(r"^(\w[\w-]*):", rules, re.MULTILINE))
        assert set(arguments) <= targets, f"no such target: {set(arguments) - targets}"
    elif program == "python" and arguments[0] == "-c":
        compile(arguments[1], line, "exec")
    elif program == "python":
        script = ROOT / arguments[0]
        text = script.read_text(encoding="utf-8")
        assert all(a.split("=")[0] in text for a in arguments[1:] if a.startswith("--"))
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for names in re.findall(r"\[([\w,]+)\]", line):
            assert set(names.split(",")) <= set(extras["optional-dependencies"])
    elif program in ("pytest", "ruff", "mypy", "sphinx-build"):
        files = [a.split("::")[0] for a in arguments if "/" in a and not a.startswith("/tmp")]
        assert all((ROOT / file).exists() or file.startswith("docs/_build") for file in files)
    else:
        assert program in ("git", "cd", "cat", "mkdir", "sbatch"), f"unknown program: {program}"


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, id=f"{name(page)}: {line}")
        for page in PAGES
        for line in dict.fromkeys(commands(page))
    ],
)
def test_commands_exist(line):
    check_command(line)


# ---- links ----


def dead(page: Path, target: str) -> str | None:
    """What is wrong with a link, if anything is."""
    parts = urlparse(target)
    if parts.scheme or target.startswith("//"):
        good = parts.scheme in ("https", "mailto") and ("." in parts.netloc or parts.path)
        return None if good and " " not in unquote(target) else "not an address"
    file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if file.is_relative_to(ROOT / "docs" / "examples"):  # made by the gallery of a build
        scripts = ROOT / "docs" / "gallery"
        exists = file.stem == "index" or (scripts / f"{file.stem}.py").exists()
        return None if exists else "no such example"
    if not file.exists():
        return "no such file"
    if parts.fragment and file.suffix == ".md" and unquote(parts.fragment) not in anchors(file):
        return "no such heading"
    return None


@pytest.mark.parametrize("page", ids(PAGES))
def test_links_lead_somewhere(page):
    wrong = {target: why for target in links(page) if (why := dead(page, target)) is not None}
    assert wrong == {}
    text = page.read_text(encoding="utf-8")
    assert [file for file in FILE.findall(text) if not (ROOT / file).exists()] == []


def find(target: str) -> object:
    """Return what a dotted name means: a module, or something in one.

    Raises:
        ImportError: If there is no such module.
        AttributeError: If there is no such thing in it.
    """
    parts = target.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ImportError(f"no module in {target}")


@pytest.mark.parametrize("page", ids([p for p in PAGES if SOURCE.search(p.read_text("utf-8"))]))
def test_code_behind_the_mathematics_exists(page):
    """A build resolves these, too, in the reference of the API."""
    for target in SOURCE.findall(page.read_text(encoding="utf-8")):
        assert find(target.lstrip("~")) is not None


def test_every_page_is_in_the_contents():
    """A page that no other page of the documentation leads to is not found by a reader."""
    entries = set()
    for page in PAGES:
        for token in tokens(page):
            if token.type == "fence" and token.info == "{toctree}":
                lines = token.content.splitlines()
                names = [line for line in lines if line and not line.startswith(":")]
                entries |= {(page.parent / f"{entry.strip()}.md").resolve() for entry in names}
    docs = {page for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert docs - entries == {ROOT / "docs" / "index.md"}
    made = ROOT / "docs" / "examples"
    assert [entry for entry in entries - docs if not entry.is_relative_to(made)] == []
