"""Theory that checks itself: statements of the literature, each with a measured residual.

A claim is declared with `claim` and tried with `verify`; ``sdekit verify`` is the command.
"""

from .calculus import (
    divergence,
    fokker_planck,
    generator,
    gradient,
    hessian,
    jacobian,
    laplacian,
    residual,
)
from .claim import Both, Claim, claim, registered, withdraw
from .draw import Draw, processes, sdes
from .verify import Finding, applicable, choose, load_claims, try_claim, verify
from .works import WORKS, Work

__all__ = [
    "WORKS",
    "Both",
    "Claim",
    "Draw",
    "Finding",
    "Work",
    "applicable",
    "choose",
    "claim",
    "divergence",
    "fokker_planck",
    "generator",
    "gradient",
    "hessian",
    "jacobian",
    "laplacian",
    "load_claims",
    "processes",
    "registered",
    "residual",
    "sdes",
    "try_claim",
    "verify",
    "withdraw",
]
