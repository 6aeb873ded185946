"""Work–precision experiments: how wrong is each method after a given number of evaluations?

The command is ``sdekit bench``; the same from Python is `run_benchmark`.
"""

from .problems import PROBLEMS, Problem, Reference, make_problem, solve_reference
from .runner import Cell, Config, Results, run_benchmark
from .suites.files import write_results

__all__ = [
    "PROBLEMS",
    "Cell",
    "Config",
    "Problem",
    "Reference",
    "Results",
    "make_problem",
    "run_benchmark",
    "solve_reference",
    "write_results",
]
