"""The works whose statements are checked."""

from __future__ import annotations

from typing import NamedTuple


class Work(NamedTuple):
    """A tutorial or a paper.

    Attributes:
        authors: Who wrote it.
        year: When.
        title: Its title.
    """

    authors: str
    year: int
    title: str

    @property
    def short(self) -> str:
        """Authors and year."""
        return f"{self.authors} {self.year}"


WORKS = {
    "chan": Work("Chan", 2024, "Tutorial on Diffusion Models for Imaging and Vision"),
    "kim": Work("Kim", 2025, "Lecture 02: Score Based and Diffusion Models"),
    "cho": Work("Cho", 2024, "Diffusion Models Note"),
    "chen": Work("Chen", 2025, "Tutorial on Generative Model"),
    "khungurn": Work("Khungurn", 2023, "Karras et al.'s DDPM Improvements"),
    "anderson": Work("Anderson", 1982, "Reverse-time diffusion equation models"),
    "hyvarinen": Work(
        "Hyvärinen", 2005, "Estimation of non-normalized statistical models by score matching"
    ),
    "vincent": Work(
        "Vincent", 2011, "A connection between score matching and denoising autoencoders"
    ),
    "sarkka": Work("Särkkä and Solin", 2019, "Applied Stochastic Differential Equations"),
    "roberts": Work(
        "Roberts and Tweedie",
        1996,
        "Exponential convergence of Langevin distributions and their discrete approximations",
    ),
    "risken": Work("Risken", 1989, "The Fokker-Planck Equation"),
    "song2019": Work(
        "Song and Ermon",
        2019,
        "Generative modeling by estimating gradients of the data distribution",
    ),
    "song2020": Work(
        "Song and Ermon", 2020, "Improved techniques for training score-based generative models"
    ),
    "ssm": Work(
        "Song, Garg et al.",
        2019,
        "Sliced score matching: a scalable approach to density and score estimation",
    ),
    "ddpm": Work("Ho et al.", 2020, "Denoising diffusion probabilistic models"),
    "ddim": Work("Song, Meng and Ermon", 2021, "Denoising diffusion implicit models"),
    "song2021": Work(
        "Song et al.",
        2021,
        "Score-based generative modeling through stochastic differential equations",
    ),
    "vdm": Work("Kingma et al.", 2021, "Variational diffusion models"),
    "guidance": Work("Dhariwal and Nichol", 2021, "Diffusion models beat GANs on image synthesis"),
    "cfg": Work("Ho and Salimans", 2022, "Classifier-free diffusion guidance"),
    "distillation": Work(
        "Salimans and Ho", 2022, "Progressive distillation for fast sampling of diffusion models"
    ),
    "edm": Work(
        "Karras et al.", 2022, "Elucidating the design space of diffusion-based generative models"
    ),
    "cld": Work(
        "Dockhorn et al.",
        2022,
        "Score-based generative modeling with critically-damped Langevin diffusion",
    ),
    "gddim": Work("Zhang et al.", 2023, "gDDIM: generalized denoising diffusion implicit models"),
    "flow": Work("Lipman et al.", 2023, "Flow matching for generative modeling"),
    "dpm": Work(
        "Lu et al.", 2022, "DPM-Solver: a fast ODE solver for diffusion probabilistic models"
    ),
    "sdekit": Work("sdekit", 2026, "its own design and theory notes"),
}
