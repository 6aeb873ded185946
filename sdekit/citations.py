"""Citations: one bibliography, ``references.bib``, for the methods and for the claims of theory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_OPENING = re.compile(r"@([a-z]+)\{([a-z0-9]+),")
_FIELD = re.compile(r"  ([a-zA-Z]+) = \{(.+)\},")
_KEY = re.compile(r"\[([a-z0-9]+)\]")


@dataclass(frozen=True)
class Entry:
    """A work of the bibliography.

    Attributes:
        key: What it is cited by, as in ``lu2022dpmsolverpp``.
        kind: BibTeX's type, as in ``article``.
        fields: BibTeX's fields.
    """

    key: str
    kind: str
    fields: Mapping[str, str]

    @property
    def authors(self) -> tuple[str, ...]:
        """Family names of the authors."""
        names = self.fields["author"].split(" and ")
        return tuple(_plain(name.split(",")[0]) for name in names)

    @property
    def title(self) -> str:
        """Its title, without braces."""
        return _plain(self.fields["title"])

    @property
    def year(self) -> int:
        """When it appeared."""
        return int(self.fields["year"])

    @property
    def names(self) -> str:
        """Up to three authors, or the first "et al."; or the shorthand."""
        *others, last = self.authors
        if "shorthand" in self.fields or not others:
            return self.fields.get("shorthand", last)
        return f"{', '.join(others)} & {last}" if len(others) < 3 else f"{others[0]} et al."

    @property
    def bibtex(self) -> str:
        """The entry in BibTeX, UTF-8."""
        fields = "".join(
            f"  {name} = {{{value}}},\n"
            for name, value in self.fields.items()
            if name != "shorthand"
        )
        return f"@{self.kind}{{{self.key},\n{fields}}}"


def parse(text: str) -> dict[str, Entry]:
    """Read a bibliography whose every field stands on a line of its own, ``  name = {value},``.

    Args:
        text: Entries between blank lines; lines that start with ``%`` are comments.

    Returns:
        The entries by key.

    Raises:
        ValueError: If a line is of another form, or a key or a field is there twice, or an entry
            lacks an author, a title or a year.
    """
    entries: dict[str, Entry] = {}
    opening: re.Match[str] | None = None
    fields: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if opening is None:
            if not line or line.startswith("%"):
                continue
            opening, fields = _OPENING.fullmatch(line), {}
            if opening is None or opening[2] in entries:
                raise ValueError(
                    f"line {number}: {line!r} must be as in '@article{{key,', a new key"
                )
        elif line == "}":
            missing = {"author", "title", "year"} - fields.keys()
            if missing:
                raise ValueError(f"line {number}: {opening[2]} lacks {', '.join(sorted(missing))}")
            entries[opening[2]] = Entry(opening[2], opening[1], fields)
            opening = None
        else:
            field = _FIELD.fullmatch(line)
            if field is None or field[1] in fields or not _balanced(field[2]):
                raise ValueError(
                    f"line {number}: {line!r} must be as in '  year = {{2022}},', a new field"
                )
            fields[field[1]] = field[2]
    if opening is not None:
        raise ValueError(f"{opening[2]} has no closing brace on a line of its own")
    return entries


@cache
def bibliography() -> Mapping[str, Entry]:
    """Return the works that methods and claims rest on, by key."""
    path = Path(__file__).with_name("references.bib")
    return parse(path.read_text(encoding="utf-8"))


@cache
def labels() -> Mapping[str, str]:
    """Return what each work is called in text, as in "Lu et al. 2022b": no two works the same."""
    entries = bibliography().values()
    short = {e.key: e.names if "shorthand" in e.fields else f"{e.names} {e.year}" for e in entries}
    count, seen, named = Counter(short.values()), Counter[str](), {}
    for key, name in short.items():
        named[key] = name + ("abcdefgh"[seen[name]] if count[name] > 1 else "")
        seen[name] += 1
    return named


def cite(text: str) -> tuple[str, tuple[str, ...]]:
    """Write out the works of a text that names them by keys in brackets.

    Args:
        text: As in ``"[lu2022dpmsolverpp], alg. 2"``.

    Returns:
        The text, "Lu et al. 2022b, alg. 2", and the keys.

    Raises:
        ValueError: If a key is not in the bibliography.
    """
    keys = tuple(dict.fromkeys(_KEY.findall(text)))
    _check(keys)
    return _KEY.sub(lambda match: labels()[match[1]], text), keys


def bibtex(keys: Iterable[str]) -> str:
    """Return works in BibTeX, each once, with a blank line between.

    Raises:
        ValueError: If a key is not in the bibliography.
    """
    keys = tuple(dict.fromkeys(keys))
    _check(keys)
    return "\n\n".join(bibliography()[key].bibtex for key in keys)


def _check(keys: Iterable[str]) -> None:
    for key in keys:
        if key not in bibliography():
            raise ValueError(f"unknown work {key!r}; it must be a key of sdekit/references.bib")


def _plain(text: str) -> str:
    """Drop braces and TeX's escapes and dashes."""
    return re.sub(r"[{}\\]", "", text).replace("--", "–")


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0
