"""The package as its users get it: what it exports, what importing it costs, and its wheel."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import public_api
import pytest

import sdekit

ROOT = Path(sdekit.__file__).parents[1]
HEAVY = {
    *("scipy", "matplotlib", "pandas", "plotly", "pyarrow", "sklearn", "joblib", "jinja2"),
    *("rich", "typer", "click", "diffusers", "azula", "torchsde", "torchdiffeq", "pytest"),
}


def test_public_names_are_deliberate():
    """A name that comes, goes or takes something else is a line of tests/public_api.txt."""
    written = public_api.FILE.read_text(encoding="utf-8")
    assert public_api.listing() == written, (
        "the public interface is not that of tests/public_api.txt; if that is meant, "
        "python tests/public_api.py, and CHANGELOG.md"
    )


def test_every_public_name_has_a_summary():
    """A line that is a sentence, and not what `dataclass` or `NamedTuple` make up."""
    bad = {}
    for name, value in public_api.exported():
        if isinstance(value, ModuleType) or inspect.isclass(value) or inspect.isroutine(value):
            summary, *rest = (value.__doc__ or "").strip().split("\n")
            made_up = summary.startswith(f"{value.__name__}(")
            if made_up or not summary.endswith((".", "?")) or (rest and rest[0].strip()):
                bad[name] = summary
    assert not bad


def constants(module: ModuleType) -> Iterator[str]:
    """Names of a module whose assignment a docstring follows, which is what autodoc shows."""
    body = ast.parse(inspect.getsource(module)).body
    for first, second in pairwise(body):
        target = first.target if isinstance(first, ast.AnnAssign) else None
        if isinstance(first, ast.Assign):
            (target,) = first.targets
        if isinstance(target, ast.Name) and isinstance(second, ast.Expr):
            yield target.id


def documented(text: str) -> list[object]:
    """What the directives of a page document: as autodoc has it, members with a docstring."""
    found = []
    directive = r"^\.\. auto(\w+):: (\S+)((?:\n   :.*)*)"
    for kind, target, options in re.findall(directive, text, re.MULTILINE):
        if kind != "module":
            module, _, name = target.rpartition(".")
            found.append(getattr(importlib.import_module(module), name))
            continue
        module = importlib.import_module(target)
        chosen = re.search(r":members: (.+)", options)
        names = chosen[1].split(", ") if chosen else public_api.names(module)
        described = set(constants(module))
        found.append(module)
        for name in names:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isroutine(value) or name in described:
                found.append(value)
    return found


def test_every_public_name_is_in_the_reference():
    """docs/api.md has them all, and names nothing that there is not."""
    shown = documented((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    known = {id(value) for value in shown}
    assert [name for name, value in public_api.exported() if id(value) not in known] == []


IMPORT = """
import json, os, sys
import torch
before, loaded = sum(os.times()[:2]), set(sys.modules)
import sdekit
print(json.dumps([sum(os.times()[:2]) - before, sorted(set(sys.modules) - loaded)]))
"""


def test_importing_is_light():
    """None of the heavy packages comes along, and torch is the slow part."""
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=True
        )
        taken, modules = json.loads(done.stdout)
        assert {name.split(".")[0] for name in modules} & HEAVY == set()
        assert not any(name.startswith(("sdekit.bench", "sdekit.theory")) for name in modules)
        seconds.append(taken)
        if taken < 1.5:  # processor time, which other processes do not add to
            return
    raise AssertionError(f"importing took {seconds} s of processor time beyond torch")


BUILD = "import sys; from hatchling.build import *; print({}(sys.argv[1]))"


def build(kind: str, out: Path, source: Path = ROOT) -> Path:
    """Build a ``"wheel"`` or an ``"sdist"`` without a network, as pip does."""
    out.mkdir(exist_ok=True)
    code = BUILD.format(f"build_{kind}")
    done = subprocess.run(
        [sys.executable, "-c", code, out], cwd=source, capture_output=True, text=True, check=True
    )
    return out / done.stdout.strip().splitlines()[-1]


def contents(wheel: Path) -> dict[str, bytes]:
    """Files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The wheel."""
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_wheel_has_the_package_and_the_sdist_builds_it(built, tmp_path):
    """Every file of the package and no other; from the sdist, byte for byte the same."""
    wheel = contents(built)
    info = f"sdekit-{sdekit.__version__}.dist-info/"
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sdekit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel if not name.startswith(info)} == package
    needed = ("py.typed", "references.bib", "data/digits.safetensors", "theory/report.html")
    assert {f"sdekit/{name}" for name in needed} < package
    metadata = wheel[f"{info}METADATA"].decode()
    assert f"\nVersion: {sdekit.__version__}\n" in metadata
    assert b"sdekit = sdekit.cli:app" in wheel[f"{info}entry_points.txt"]

    with tarfile.open(build("sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / f"sdekit-{sdekit.__version__}"
    top = {path.name for path in source.iterdir()}
    assert {"sdekit", "tests", "README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= top
    assert not top & {"results", ".venv", ".git"}
    again = contents(build("wheel", tmp_path / "again", source))
    assert again == wheel


USE = """
import sdekit as sk
law = sk.GaussianMixture.random(components=3, dim=2, seed=0)
x = sk.sample(sk.VP(), law, shape=(8, 2), steps=6, seed=0)
digits = sk.load_digits_denoiser()
print(sk.__file__, len(x), digits.sigma_data > 0, "@misc{" in sk.methods()["dpmpp_2m"].citation())
"""


def test_wheel_works_in_an_empty_environment(built, tmp_path):
    """Installed beside the dependencies and nothing else, from any folder."""
    venv.create(tmp_path / "env", with_pip=False)
    scripts = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", "--no-compile", built], check=True, cwd=tmp_path)
    # The dependencies alone: a folder named in a .pth file is searched, its own .pth files are not.
    (packages,) = (tmp_path / "env").glob("**/site-packages")
    (packages / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]))

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    place, *answers = run(python, "-W", "error", "-c", USE).split()
    assert Path(place) == packages / "sdekit" / "__init__.py"
    assert answers == ["8", "True", "True"]
    shown = run(scripts / "sdekit", "list")
    assert all(name in shown for name in ("bayesian_adams", "dpmpp_2m", "sea_w_theta"))


def test_versions_agree():
    """That of the package is that of its metadata."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{sdekit.__version__}"\n' in text
