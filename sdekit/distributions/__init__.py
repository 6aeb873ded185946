"""Data laws whose score, denoiser and samples are known in closed form at every noise level."""

from sdekit.distributions.base import Distribution
from sdekit.distributions.conditional import LabelledMixture, posterior
from sdekit.distributions.mixture import Empirical, Gaussian, GaussianMixture
from sdekit.distributions.product import Product
from sdekit.distributions.transition import ReverseTransition

__all__ = [
    "Distribution",
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "LabelledMixture",
    "Product",
    "ReverseTransition",
    "posterior",
]
