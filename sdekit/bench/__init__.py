"""A work–precision laboratory: how wrong is each method after a given number of evaluations?

The command is ``sdekit bench``; from Python it is `run_experiment`.
"""

from .compare import Change, Comparison, compare
from .experiment import Experiment, UserModel, read_experiment
from .laboratory import collect, run_experiment
from .measurements import Measurement, ProblemCard, Results, Setting
from .metrics import METRICS, Metric
from .problems import PROBLEMS, Problem, Reference, make_problem, solve_reference
from .recommend import best_at, to_reach
from .regression import Estimate, estimate
from .results_file import read_results, write_results
from .store import Store

__all__ = [
    "METRICS",
    "PROBLEMS",
    "Change",
    "Comparison",
    "Estimate",
    "Experiment",
    "Measurement",
    "Metric",
    "Problem",
    "ProblemCard",
    "Reference",
    "Results",
    "Setting",
    "Store",
    "UserModel",
    "best_at",
    "collect",
    "compare",
    "estimate",
    "make_problem",
    "read_experiment",
    "read_results",
    "run_experiment",
    "solve_reference",
    "to_reach",
    "write_results",
]
