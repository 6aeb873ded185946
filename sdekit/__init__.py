"""sdekit: solve the differential equations of diffusion models, and know how wrong each answer is."""

from . import distributions, grids
from .affine import AffineSDE
from .brownian import GridPath, IndependentNoise
from .coordinates import Coordinates, LogData, LogNoise, Native, Noise, Preconditioned, Velocity
from .denoisers import EDMDenoiser
from .digits import load_digits_denoiser
from .distributions import Empirical, Gaussian, GaussianMixture, Product
from .processes import EDM, VE, VP, CosineVP, DiscreteVP, RectifiedFlow, SubVP
from .sampling import sample, solve
from .sde import ForwardSDE, ProbabilityFlow, ReverseSDE
from .solution import Solution, SolveError, Stats
from .solvers import rk as tableaus
from .solvers.langevin import PredictorCorrector
from .solvers.registry import Method, Solver, methods
from .solvers.rk import RungeKutta, Tableau
from .solvers.scheme import Scheme
from .solvers.stochastic import Churn, EulerMaruyama, ReverseDiffusion

__version__ = "0.1.0"

__all__ = [
    "EDM",
    "VE",
    "VP",
    "AffineSDE",
    "Churn",
    "Coordinates",
    "CosineVP",
    "DiscreteVP",
    "EDMDenoiser",
    "Empirical",
    "EulerMaruyama",
    "ForwardSDE",
    "Gaussian",
    "GaussianMixture",
    "GridPath",
    "IndependentNoise",
    "LogData",
    "LogNoise",
    "Method",
    "Native",
    "Noise",
    "Preconditioned",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Product",
    "RectifiedFlow",
    "ReverseDiffusion",
    "ReverseSDE",
    "RungeKutta",
    "Scheme",
    "Solution",
    "SolveError",
    "Solver",
    "Stats",
    "SubVP",
    "Tableau",
    "Velocity",
    "distributions",
    "grids",
    "load_digits_denoiser",
    "methods",
    "sample",
    "solve",
    "tableaus",
]
