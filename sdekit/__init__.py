"""sdekit: solve the differential equations of diffusion models, and know how wrong each answer is."""

from . import distributions, eta, grids, losses, parallel
from .adapters import (
    NetworkDenoiser,
    fit_batch,
    from_azula,
    from_diffusers,
    from_edm,
    from_k_diffusion,
    from_score_sde,
    levels,
)
from .affine import AffineSDE
from .brownian import GridPath, IndependentNoise, NoiseSource, TorchsdeNoise
from .calibrate import calibrate
from .calibrate_noise import calibrate_noise
from .calibrated import CalibratedSolver, CalibrationReport, load_solver
from .chains import Chain, langevin, ncsn_epsilon, ncsn_levels
from .clock import Clock
from .coordinates import Coordinates, Interpolated, LogData, LogNoise, Native, Noise, Velocity
from .critically_damped import CriticallyDamped
from .denoisers import Conditioned, EDMDenoiser, FixedBatch
from .digits import load_digits_denoiser
from .distributions import Empirical, Gaussian, GaussianMixture, Product
from .divergence import Divergence, Exact, Hutchinson, HutchPlusPlus
from .encoding import encode
from .equidistribute import Pilot, equidistribute, run_pilot
from .fitted import FittedGrid
from .forward import simulate
from .guidance import ClassifierFree, ClassifierGuided, cfg_plus_plus
from .inverse import DPS, LinearObservation, MaskedObservation, PiGDM, Replaced
from .likelihood import Likelihood, log_likelihood
from .linear import LinearLaw, LinearSDE
from .linear_solver import ExactNoiseEuler
from .path import BrownianPath
from .preconditioned import GaussianPreconditioned, Preconditioned
from .prepared import Prepared, prepare
from .processes import EDM, VE, VP, CosineVP, DiscreteVP, RectifiedFlow, SubVP
from .sampling import sample, solve
from .sde import ForwardSDE, ProbabilityFlow, ReverseSDE
from .solution import Solution, SolveError, Stats, StepReport
from .solvers import tableaus
from .solvers.adams import Adams
from .solvers.bayesian import BayesianAdams, Prior
from .solvers.control import Controller
from .solvers.exponential import DPMSinglestep, ExponentialRK, ExponentialTableau
from .solvers.langevin import (
    AnnealedCorrector,
    AnnealedLangevin,
    LangevinCorrector,
    PredictorCorrector,
)
from .solvers.noisy import Ancestral, Churn, Restart, Stochastic
from .solvers.published import IPNDM, DPMMultistep, GradientEstimation, UniPC
from .solvers.registry import Method, Solver, methods
from .solvers.rk import RungeKutta
from .solvers.scheme import Scheme
from .solvers.stochastic import EulerMaruyama, Milstein, ReverseDiffusion
from .solvers.stochastic_rk import NoiseTableau, StochasticRK
from .solvers.tableaus import Tableau
from .solvers.variable_adams import VariableAdams
from .stepwise import Query, State, Stepwise, stepwise
from .stochasticity import EtaSteps
from .thresholding import DynamicThreshold, StaticThreshold
from .weights import load_weights
from .whitened import Whitened

__version__ = "0.1.0"

__all__ = [
    "DPS",
    "EDM",
    "IPNDM",
    "VE",
    "VP",
    "Adams",
    "AffineSDE",
    "Ancestral",
    "AnnealedCorrector",
    "AnnealedLangevin",
    "BayesianAdams",
    "BrownianPath",
    "CalibratedSolver",
    "CalibrationReport",
    "Chain",
    "Churn",
    "ClassifierFree",
    "ClassifierGuided",
    "Clock",
    "Conditioned",
    "Controller",
    "Coordinates",
    "CosineVP",
    "CriticallyDamped",
    "DPMMultistep",
    "DPMSinglestep",
    "DiscreteVP",
    "Divergence",
    "DynamicThreshold",
    "EDMDenoiser",
    "Empirical",
    "EtaSteps",
    "EulerMaruyama",
    "Exact",
    "ExactNoiseEuler",
    "ExponentialRK",
    "ExponentialTableau",
    "FittedGrid",
    "FixedBatch",
    "ForwardSDE",
    "Gaussian",
    "GaussianMixture",
    "GaussianPreconditioned",
    "GradientEstimation",
    "GridPath",
    "HutchPlusPlus",
    "Hutchinson",
    "IndependentNoise",
    "Interpolated",
    "LangevinCorrector",
    "Likelihood",
    "LinearLaw",
    "LinearObservation",
    "LinearSDE",
    "LogData",
    "LogNoise",
    "MaskedObservation",
    "Method",
    "Milstein",
    "Native",
    "NetworkDenoiser",
    "Noise",
    "NoiseSource",
    "NoiseTableau",
    "PiGDM",
    "Pilot",
    "Preconditioned",
    "PredictorCorrector",
    "Prepared",
    "Prior",
    "ProbabilityFlow",
    "Product",
    "Query",
    "RectifiedFlow",
    "Replaced",
    "Restart",
    "ReverseDiffusion",
    "ReverseSDE",
    "RungeKutta",
    "Scheme",
    "Solution",
    "SolveError",
    "Solver",
    "State",
    "StaticThreshold",
    "Stats",
    "StepReport",
    "Stepwise",
    "Stochastic",
    "StochasticRK",
    "SubVP",
    "Tableau",
    "TorchsdeNoise",
    "UniPC",
    "VariableAdams",
    "Velocity",
    "Whitened",
    "calibrate",
    "calibrate_noise",
    "cfg_plus_plus",
    "distributions",
    "encode",
    "equidistribute",
    "eta",
    "fit_batch",
    "from_azula",
    "from_diffusers",
    "from_edm",
    "from_k_diffusion",
    "from_score_sde",
    "grids",
    "langevin",
    "levels",
    "load_digits_denoiser",
    "load_solver",
    "load_weights",
    "log_likelihood",
    "losses",
    "methods",
    "ncsn_epsilon",
    "ncsn_levels",
    "parallel",
    "prepare",
    "run_pilot",
    "sample",
    "simulate",
    "solve",
    "stepwise",
    "tableaus",
]
