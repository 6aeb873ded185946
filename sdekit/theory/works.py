"""The works whose statements are checked: those of the bibliography that claims name."""

from __future__ import annotations

from typing import NamedTuple

from ..citations import bibliography, labels


class Work(NamedTuple):
    """A tutorial or a paper.

    Attributes:
        key: Its key in the bibliography.
        authors: Who wrote it.
        year: When.
        title: Its title.
    """

    key: str
    authors: str
    year: int
    title: str

    @property
    def short(self) -> str:
        """Authors and year."""
        return labels()[self.key]


def _work(key: str) -> Work:
    entry = bibliography()[key]
    return Work(key, entry.names, entry.year, entry.title)


WORKS = {
    name: _work(key)
    for name, key in {
        "chan": "chan2024tutorial",
        "kim": "kim2025lecture",
        "cho": "cho2024note",
        "chen": "chen2025tutorial",
        "khungurn": "khungurn2023karras",
        "anderson": "anderson1982reverse",
        "hyvarinen": "hyvarinen2005estimation",
        "vincent": "vincent2011connection",
        "sarkka": "sarkka2019applied",
        "roberts": "roberts1996exponential",
        "risken": "risken1989fokker",
        "song2019": "song2019gradients",
        "song2020": "song2020improved",
        "ssm": "song2019sliced",
        "ddpm": "ho2020ddpm",
        "ddim": "song2021ddim",
        "song2021": "song2021sde",
        "vdm": "kingma2021vdm",
        "guidance": "dhariwal2021guidance",
        "cfg": "ho2022cfg",
        "distillation": "salimans2022distillation",
        "edm": "karras2022edm",
        "cld": "dockhorn2022cld",
        "flow": "lipman2023flow",
        "dpm": "lu2022dpmsolver",
        "sdekit": "sdekit",
    }.items()
}
"""The works by the names that claims use."""
