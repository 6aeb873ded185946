"""Claims: those that are registered hold, and the register, the verdicts and the command are right."""

from __future__ import annotations

import io
import json
import math

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import sdekit as sk
from sdekit.cli import app
from sdekit.theory import (
    Both,
    Draw,
    applicable,
    choose,
    claim,
    load_claims,
    processes,
    registered,
    residual,
    try_claim,
    verify,
    withdraw,
)
from sdekit.theory.claim import FACTOR, IDENTITY
from sdekit.theory.report import print_findings, write_findings

CLAIMS = load_claims()
GIVEN = {
    "title": "test",
    "statement": "1 = 1",
    "sources": {"edm": "nowhere"},
    "tags": ("test",),
    "tolerance": 1e-10,
    "because": "test",
}


@pytest.mark.parametrize("name", CLAIMS)
def test_it_is_as_expected(name):
    found = try_claim(CLAIMS[name])
    assert found.good, f"{found.verdict}: {found.residual} at {found.worst}, {found.consequence}"


def test_there_are_many_and_identities_are_tight():
    assert len(CLAIMS) >= 80
    assert all(c.tolerance <= IDENTITY for c in CLAIMS.values() if c.kind == "identity")
    assert all(len(c.explanation) > 60 and c.because and c.tags for c in CLAIMS.values())
    assert all(("misprint" in c.tags) == (c.printed is not None) for c in CLAIMS.values())


@pytest.fixture
def temporary():
    """Claims that a test registers are withdrawn after it."""
    before = set(registered())
    yield
    for name in set(registered()) - before:
        withdraw(name)


def tried(value, **more):
    @claim("toy", **{**GIVEN, **more})
    def _toy(draw):
        """Explain."""
        if isinstance(value, Exception):
            raise value
        return value

    return try_claim(registered()["toy"])


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize(
    ("value", "printed", "verdict"),
    [
        (0.0, None, "holds"),
        (1e-10, None, "holds"),
        (2e-10, None, "fails"),
        (math.nan, None, "fails"),
        (math.inf, None, "fails"),
        (Both(1e-8, 1e-11, "so"), "1 = 2", "misprint"),
        (Both(0.9 * FACTOR * 1e-10, 1e-11, "so"), "1 = 2", "not a misprint"),
        (Both(1.0, 1.0, "so"), "1 = 2", "fails"),
        (Both(math.nan, 0.0, "so"), "1 = 2", "not a misprint"),
        (Both(math.inf, 0.0, "so"), "1 = 2", "not a misprint"),
        (Both(1.0, 0.0, "so"), None, "error"),
        (1.0, "1 = 2", "error"),
        (ValueError("no"), None, "error"),
        (-1.0, None, "error"),
        (Both(-1.0, 0.0, "so"), "1 = 2", "error"),
    ],
)
def test_verdicts(value, printed, verdict):
    found = tried(value, printed=printed)
    assert found.verdict == verdict
    assert found.good == (verdict in ("holds", "misprint"))


@pytest.mark.usefixtures("temporary")
def test_what_is_refused():
    with pytest.raises(ValueError, match="unknown work 'nobody'"):
        claim("toy", **{**GIVEN, "sources": {"nobody": "eq. 1"}})
    with pytest.raises(ValueError, match="is an identity with tolerance"):
        claim("toy", **{**GIVEN, "tolerance": 1e-3})
    with pytest.raises(TypeError, match="'own' is a string"):
        claim("toy", **{**GIVEN, "tags": "own"})
    with pytest.raises(ValueError, match="kind = 'identiti'; it must be one of"):
        claim("toy", **GIVEN, kind="identiti")
    with pytest.raises(ValueError, match="tolerance inf; it must be positive"):
        claim("toy", **{**GIVEN, "tolerance": math.inf}, kind="rate")
    with pytest.raises(ValueError, match="has no source"):
        claim("toy", **{**GIVEN, "sources": {}})
    with pytest.raises(ValueError, match="there is a claim 'fokker-planck' already"):
        claim("fokker-planck", **GIVEN)
    with pytest.raises(TypeError, match=r"over='process' needs 2: \(process, draw\)"):
        claim("toy", **GIVEN, over="process")(lambda draw: 0.0)
    with pytest.raises(TypeError, match="no docstring"):
        claim("toy", **GIVEN)(lambda draw: 0.0)
    with pytest.raises(ValueError, match="no tag 'nonsense'"):
        choose(tags=["nonsense"])
    with pytest.raises(ValueError, match="no source 'nobody'"):
        choose(sources=["nobody"])
    assert "toy" not in registered()


def test_the_residual_is_relative_to_the_terms():
    one = torch.ones(3, 2, dtype=torch.float64)
    assert residual(one, one) == 0
    assert residual(2 * one, one) == pytest.approx(1 / 3)
    assert residual(1e9 * one + 1e-7, 1e9 * one) < 1e-15
    assert residual(1e-8 * one, 0 * one, one) == pytest.approx(1e-8)
    assert residual(math.nan * one, one) == math.inf  # max() of Python would lose a NaN


class Wrong(sk.AffineSDE):
    """An affine process whose noise rate has lost a factor."""

    def __init__(self, factor=1.0):
        self.factor = factor
        super().__init__(f=lambda t: -0.5 * torch.ones_like(t), g=lambda t: 1 + t)

    def sigma(self, t):
        return self.factor * super().sigma(t)


def test_a_process_of_ones_own():
    chosen = applicable(choose(tags=["forward", "reverse", "density"]), Wrong())
    assert all(found.good for found in verify(chosen, sde=Wrong()))
    bad = verify(chosen, sde=Wrong(1.01))
    assert {found.claim.id for found in bad if not found.good} >= {"fokker-planck"}
    assert all(found.worst in ("", "Wrong") for found in bad)


def test_processes_of_unusual_levels():
    """High levels are no trouble; too low ones are refused, as no data of size one resolve them."""
    chosen = [c for c in CLAIMS.values() if c.over == "process" and "forward" in c.tags]
    assert all(found.good for found in verify(chosen, sde=sk.EDM(50, 80)))
    with pytest.raises(ValueError, match=r"reaches σ = 0.001; .* need 0.1 at least"):
        applicable(chosen, sk.EDM(1e-5, 1e-3))


def test_the_same_seed_gives_the_same_residuals():
    one, two, other = (try_claim(CLAIMS["fokker-planck"], seed=seed) for seed in (1, 1, 2))
    assert one.residual == two.residual != other.residual
    assert one.worst in processes()


@pytest.mark.usefixtures("temporary")
def test_reports_of_what_is_not_finite(tmp_path):
    """JSON has no infinity; and what a title has in brackets is no markup."""
    found = [
        tried(math.inf, title="E[x] = [/] 1"),
        try_claim(registered()["toy"], seed=1),
    ]
    data, page = write_findings(found, 0, tmp_path)
    record = json.loads(data.read_text(encoding="utf-8"))
    assert [f["residual"] for f in record["findings"]] == [None, None]
    assert page.read_text(encoding="utf-8").count("not finite") == 4
    out = io.StringIO()
    print_findings(found, Console(file=out, width=200))
    assert "E[x] = [/] 1" in out.getvalue()


@pytest.mark.parametrize(
    ("low", "high"), [(1e-5, 1e-3), (1e-3, 0.04), (50.0, 80.0), (0.0, math.inf)]
)
def test_times_are_drawn_where_the_process_is(low, high):
    process = (
        sk.RectifiedFlow()
        if math.isinf(high)
        else sk.AffineSDE(scale=torch.ones_like, sigma=lambda t: t, t_min=low, T=high)
    )
    levels = process.sigma(Draw(0).times(process, 100))
    assert levels.min() > process.sigma_min
    assert levels.max() < high
    assert levels.max() > 1.2 * levels.min()


OWN = """
import torch
import sdekit as sk
from sdekit.theory import claim

class Own(sk.ForwardSDE):
    def drift(self, x, t):
        return -x
    def diffusion(self, x, t):
        return torch.sqrt(1 + x.square())

class Three(Own):
    def drift(self, x, t):
        return x @ torch.ones(3, 3).to(x)

class Broken(Own):
    def __init__(self):
        raise RuntimeError("boom")

class Needy(Own):
    def __init__(self, rate):
        self.rate = rate

@claim("own-claim", title="mine", statement="1 = 2", sources={"sdekit": "here"}, tags=("own",),
       tolerance=1e-9, because="exact")
def _mine(draw):
    '''One is two.'''
    return 1 / 3
"""


@pytest.mark.usefixtures("temporary")
def test_the_command(tmp_path, monkeypatch):
    (tmp_path / "own_sdes.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = CliRunner().invoke
    found = run(app, ["verify", "--sde", "own_sdes:Own", "--tag", "reverse"])
    assert found.exit_code == 0, found.output
    record = json.loads((tmp_path / "results/verify/verify.json").read_text(encoding="utf-8"))
    assert {f["worst"] for f in record["findings"]} == {"Own"}
    assert all(f["over"] == "sde" for f in record["findings"])
    page = (tmp_path / "results/verify/verify.html").read_text(encoding="utf-8")
    assert page.count("<details") == len(record["findings"])
    assert "http" not in page
    found = run(app, ["verify", "--claims", "own_sdes", "--tag", "own"])
    assert found.exit_code == 1
    assert "1 fails" in found.output
    for arguments, message in (
        (["--sde", "own_sdes:Needy"], "cannot be made without arguments"),
        (["--sde", "own_sdes:Three"], "states (B, 2) and times (B,)"),
        (["--sde", "own_sdes:Broken"], "boom"),
        (["--tag", "own", "--out", "own_sdes.py/results"], "cannot write into"),
        (["--sde", "own_sdes:torch"], "--sde names a ForwardSDE"),
        (["--sde", "own_sdes:Nobody"], "has no 'Nobody'"),
        (["--claims", "no_such_module"], "cannot import 'no_such_module'"),
        (["--tag", "nonsense"], "no tag 'nonsense'"),
        (["--tag", "own", "--source", "chan"], "no claim is left"),
    ):
        found = run(app, ["verify", *arguments])
        assert found.exit_code == 2
        assert message in found.output
