"""Claims: statements of the literature, each with a function that measures how far it is from true."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, TypeVar, get_args

from .works import WORKS

Kind = Literal["identity", "rate", "statistics"]
Over = Literal["nothing", "process", "sde"]

IDENTITY = 1e-8
"""An identity holds in float64 to this, at least."""
FACTOR = 100.0
"""A misprint is certain where its residual, as printed, is so many tolerances."""


class Both(NamedTuple):
    """What the check of a misprint measures.

    Attributes:
        printed: Residual of the statement as it is printed.
        right: Residual of the corrected statement.
        consequence: What whoever follows the printed statement gets, in a line, with a number.
    """

    printed: float
    right: float
    consequence: str


Check: TypeAlias = Callable[..., "float | Both"]
CheckT = TypeVar("CheckT", bound=Check)


@dataclass(frozen=True)
class Claim:
    """A statement and its check.

    Attributes:
        id: Name, as in ``fokker-planck``.
        title: What it is about, in a few words.
        statement: The statement in mathematics, as Unicode text; of a misprint, the corrected one.
        sources: Places in works of `WORKS`, as in ``{"song2021": "eq. 13"}``; of a misprint, first
            where it stands, then where it is right.
        tags: Topics.
        kind: ``"identity"``, true to round-off; ``"rate"``, a limit or an order; ``"statistics"``,
            true in the mean of samples, with a residual in standard errors or the like.
        tolerance: Largest residual with which it holds.
        because: The reason of the tolerance.
        over: What it holds for: ``"nothing"`` but what its check draws; every affine ``"process"``;
            every forward ``"sde"``.
        printed: Of a misprint, the statement as it is printed.
        check: Measures the residual. Takes the process or SDE if there is one, then a `Draw`.
        explanation: Why it is true and how it is measured, a paragraph: the check's docstring.
    """

    id: str
    title: str
    statement: str
    sources: Mapping[str, str]
    tags: tuple[str, ...]
    kind: Kind
    tolerance: float
    because: str
    over: Over
    printed: str | None
    check: Check
    explanation: str

    @property
    def cited(self) -> str:
        """The sources, in a line; of a misprint, where it stands and where it is right."""
        first, *others = (f"{WORKS[work].short}, {place}" for work, place in self.sources.items())
        if self.printed is None or not others:
            return "; ".join((first, *others))
        return f"{first} (right: {'; '.join(others)})"


_claims: dict[str, Claim] = {}


def registered() -> dict[str, Claim]:
    """Return the claims that are registered, by name, in the order in which they were."""
    return dict(_claims)


def claim(
    id: str,
    *,
    title: str,
    statement: str,
    sources: Mapping[str, str],
    tags: tuple[str, ...],
    tolerance: float,
    because: str,
    kind: Kind = "identity",
    over: Over = "nothing",
    printed: str | None = None,
) -> Callable[[CheckT], CheckT]:
    """Register a check as a claim; the arguments are the attributes of `Claim`.

    The decorated function returns the residual, relative to the size of what is compared. With
    ``printed`` the claim is a misprint, and the function returns `Both`.

    Raises:
        TypeError: If the check does not take what ``over`` says, or has no docstring; or the tags
            are a string.
        ValueError: If the name is taken, a source or a kind is unknown, or an identity's tolerance is
            lax.
    """
    if id in _claims:
        raise ValueError(f"there is a claim {id!r} already; each needs a name of its own")
    for work in sources:
        if work not in WORKS:
            raise ValueError(f"unknown work {work!r}; there is {', '.join(WORKS)}")
    if not sources:
        raise ValueError(f"claim {id!r} has no source; say where the statement stands")
    if isinstance(tags, str):
        raise TypeError(f"tags = {tags!r} is a string; it must be a tuple, as in ({tags!r},)")
    for name, value, known in (("kind", kind, get_args(Kind)), ("over", over, get_args(Over))):
        if value not in known:
            raise ValueError(f"{name} = {value!r}; it must be one of {', '.join(map(repr, known))}")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"claim {id!r} has tolerance {tolerance}; it must be positive and finite")
    if kind == "identity" and tolerance > IDENTITY:
        raise ValueError(
            f"claim {id!r} is an identity with tolerance {tolerance}; at most {IDENTITY} is needed, "
            "or another kind"
        )

    def register(check: CheckT) -> CheckT:
        takes = len(inspect.signature(check).parameters)
        if takes != (wanted := 1 if over == "nothing" else 2):
            raise TypeError(
                f"the check of {id!r} takes {takes} arguments; over={over!r} needs {wanted}: "
                f"{'(draw)' if wanted == 1 else f'({over}, draw)'}"
            )
        if not check.__doc__:
            raise TypeError(f"the check of {id!r} has no docstring; it is the explanation")
        _claims[id] = Claim(
            id=id,
            title=title,
            statement=statement,
            sources=dict(sources),
            tags=tags,
            kind=kind,
            tolerance=tolerance,
            because=because,
            over=over,
            printed=printed,
            check=check,
            explanation=" ".join(inspect.cleandoc(check.__doc__).split()),
        )
        return check

    return register


def withdraw(id: str) -> None:
    """Take a claim out of the register; for notebooks that define one anew, and for tests."""
    del _claims[id]
