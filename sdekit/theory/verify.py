"""Try claims: measure their residuals and judge them."""

from __future__ import annotations

import importlib
import math
import pkgutil
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tqdm import tqdm

from ..affine import AffineSDE
from ..sde import ForwardSDE
from .claim import FACTOR, Both, Claim, registered
from .draw import Draw, processes, sdes

Verdict = Literal["holds", "fails", "misprint", "not a misprint", "error"]

# Draws of the identities: each is true for everything, so a few random things tell.
_REPEATS = 2
# Below it quadrature over the data does not resolve the noise.
_LEAST_NOISE = 0.1


@dataclass(frozen=True)
class Finding:
    """What came of trying a claim.

    Attributes:
        claim: The claim.
        verdict: ``"holds"`` or ``"fails"``; of a misprint ``"misprint"`` where it fails as printed
            and holds as corrected, ``"not a misprint"`` where it holds as printed; ``"error"``
            where the check broke.
        residual: Largest residual; of a misprint, that of the corrected statement.
        worst: The process or SDE with the largest residual, or where the check broke; may be empty.
        printed: Of a misprint, the smallest residual as printed.
        consequence: Of a misprint, what comes of it; of an error, the message.
        seconds: Time that it took.
    """

    claim: Claim
    verdict: Verdict
    residual: float
    worst: str
    printed: float | None
    consequence: str | None
    seconds: float

    @property
    def good(self) -> bool:
        """Whether the finding is the expected one."""
        return self.verdict in ("holds", "misprint")


def load_claims() -> dict[str, Claim]:
    """Import the claims of sdekit and return all that are registered, those of users with them."""
    from . import claims

    for module in sorted(m.name for m in pkgutil.iter_modules(claims.__path__)):
        importlib.import_module(f"{claims.__name__}.{module}")
    return registered()


def choose(
    ids: Sequence[str] = (), sources: Sequence[str] = (), tags: Sequence[str] = ()
) -> list[Claim]:
    """Return claims: all, or those of names, works and tags.

    Raises:
        ValueError: If there is no such name, work or tag among the claims.
    """
    known = load_claims()
    have = {
        "claim": set(known),
        "source": {work for claim in known.values() for work in claim.sources},
        "tag": {tag for claim in known.values() for tag in claim.tags},
    }
    for what, asked in (("claim", ids), ("source", sources), ("tag", tags)):
        for word in asked:
            if word not in have[what]:
                raise ValueError(f"no {what} {word!r}; there is {', '.join(sorted(have[what]))}")
    return [
        claim
        for claim in known.values()
        if (not ids or claim.id in ids)
        and (not sources or not set(sources).isdisjoint(claim.sources))
        and (not tags or not set(tags).isdisjoint(claim.tags))
    ]


def applicable(claims: Iterable[Claim], sde: ForwardSDE) -> list[Claim]:
    """Return the claims that hold for every SDE of the kind of ``sde``.

    Raises:
        ValueError: If it is an affine process whose noise is too small for data of size one.
    """
    if isinstance(sde, AffineSDE) and sde.sigma_max < _LEAST_NOISE:
        raise ValueError(
            f"the process reaches σ = {sde.sigma_max:.3g}; claims are tried with data of standard "
            f"deviation 1, which need {_LEAST_NOISE} at least: express the data in smaller units"
        )
    kinds = ("process", "sde") if isinstance(sde, AffineSDE) else ("sde",)
    return [claim for claim in claims if claim.over in kinds]


def verify(
    claims: Sequence[Claim],
    *,
    sde: ForwardSDE | None = None,
    seed: int = 0,
    stop: bool = False,
    progress: bool = False,
) -> list[Finding]:
    """Try claims.

    Args:
        claims: Claims.
        sde: An SDE on which they are tried instead of sdekit's own; see `applicable`.
        seed: Seed of what they are tried on.
        stop: Whether to stop at the first finding that is not as expected.
        progress: Whether to show a bar.

    Returns:
        A finding for each claim, in their order.
    """
    findings = []
    for claim in tqdm(claims, desc="verify", disable=not progress, leave=False):
        findings.append(try_claim(claim, sde=sde, seed=seed))
        if stop and not findings[-1].good:
            break
    return findings


def _subjects(claim: Claim, sde: ForwardSDE | None) -> Mapping[str, ForwardSDE | None]:
    if claim.over == "nothing":
        return {"": None}
    if sde is not None:
        return {type(sde).__name__: sde}
    return processes() if claim.over == "process" else {**processes(), **sdes()}


def try_claim(claim: Claim, *, sde: ForwardSDE | None = None, seed: int = 0) -> Finding:
    """Try one claim; see `verify`."""
    start = time.perf_counter()
    name, residual, worst = "", 0.0, ""
    printed: list[float] = []
    consequence: str | None = None
    repeats = _REPEATS if claim.kind == "identity" else 1
    try:
        for name, subject in _subjects(claim, sde).items():
            for repeat in range(repeats):
                words = f"{claim.id} {name} {repeat} {seed}"
                draw = Draw(zlib.crc32(words.encode()))
                found = claim.check(draw) if subject is None else claim.check(subject, draw)
                if isinstance(found, Both) != (claim.printed is not None):
                    raise TypeError("a claim with printed= returns Both, any other a number")
                if isinstance(found, Both):
                    printed.append(float(found.printed))
                    consequence = consequence or found.consequence
                    found = found.right
                if min(float(found), *printed, 0.0) < 0:
                    raise ValueError(f"the check returned {found}; a residual is 0 or more")
                if not float(found) <= residual:  # NaN counts as worse than everything
                    residual, worst = float(found), name
    except Exception as error:  # a check that breaks is a finding, not the end of the others
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        seconds = time.perf_counter() - start
        return Finding(claim, "error", math.nan, name, None, message, seconds)
    verdict: Verdict = "holds" if residual <= claim.tolerance else "fails"
    if printed and verdict == "holds":
        # What is not finite may as well be a fault of the check, and `residual` makes it of NaN.
        certain = all(FACTOR * claim.tolerance <= value < math.inf for value in printed)
        verdict = "misprint" if certain else "not a misprint"
    least = min(printed) if printed else None
    seconds = time.perf_counter() - start
    return Finding(claim, verdict, residual, worst, least, consequence, seconds)
