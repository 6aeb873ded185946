"""Solvers fitted to one model: the lowest error for a few network evaluations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from .affine import AffineSDE
from .calibrated import CalibratedSolver
from .calibration.pilots import Metric, run_pilots
from .calibration.search import Search, draw
from .denoisers import known_sigma_data, trained_range
from .inputs import check_state, check_steps
from .preconditioned import Preconditioned
from .sde import ProbabilityFlow

__all__ = ["calibrate"]

_TEST_SHARE = 0.2
_FEWEST = 8  # samples of a problem


@torch.no_grad()
def calibrate(
    problem: ProbabilityFlow | Sequence[ProbabilityFlow],
    steps: int,
    *,
    samples: int = 256,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    x: Tensor | Sequence[Tensor] | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    sigma_data: float | None = None,
    metric: Metric | None = None,
    rtol: float | None = None,
    max_nfe: int = 2000,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> CalibratedSolver:
    """Fit a solver of few steps to a model: its grid, its coefficients and its noise levels.

    Pilot samples are solved accurately by the adaptive engine: the teacher. Then, in `Preconditioned`
    coordinates and, where the pilots tell enough, `GaussianPreconditioned` ones,

    1. on each of several grids, coefficients of a multistep scheme with the whole history, ``u_{i+1} =
       a_i u_i + Σ_{j ≤ i} b_ij N_j``, are fitted one step after the other by ridge least squares to
       the teacher, on the solver's own states, towards those of the default scheme;
    2. the best is refined: all coefficients, all levels, and the levels that the network is told, by
       Gauss–Newton on the error at the end, with derivatives by finite differences;
    3. samples that nothing was fitted to choose the ridge of each step, the grid, the coordinates and
       when to stop. Where nothing beats the default solver on all of them together, in its root mean
       square, the default is returned.

    The result is deterministic. The problem may be several, of one process, such as a model at several
    guidance scales: the solver is then fitted to all of them together; if one is guided, the default of
    guided models is that of all.

    Args:
        problem: ``process.probability_flow(denoiser)`` of an affine process, or several.
        steps: Number of steps, which is that of network evaluations.
        samples: Number of pilot samples, a quarter of which chooses; another quarter of this number
            is solved besides, for the errors in the report. With ``x`` its length counts instead.
        seed: Seed of their starts.
        shape: Shape of one sample, ``event``, if ``x`` is not given.
        x: Starts instead, ``(B, *event)``, states of the process at ``sigma_max``; one tensor for each
            problem, if there are several. Conditioning for each sample (`sdekit.Conditioned`) needs it.
        sigma_max: Highest noise level; by default the process's, or the denoiser's if it is lower.
        sigma_min: Lowest noise level; by default the process's, or the denoiser's if it is higher.
        sigma_data: Standard deviation of the data; by default the denoiser's attribute.
        metric: Features of the unscaled states, ``(B, *event)`` to ``(B, …)``, whose error is to be
            small; by default the states themselves.
        rtol: Tolerance of the teacher; by default 1e-10 for models in float64, else 1e-7.
        max_nfe: Network evaluations per pilot sample, about, that refinement may take.
        device: Device of the pilots, if ``x`` is not given.
        progress: Whether to show progress bars after two seconds.

    Returns:
        The solver, for ``method=`` wherever a name is taken. Its ``report`` says what was gained.

    Raises:
        TypeError: If the problem is not the flow of an affine process, or not one of ``x`` and
            ``shape`` is given.
        ValueError: If a number is out of its range, problems differ in their process, ``sigma_data``
            is not known, or the teacher's states would take too much memory.
        SolveError: If the teacher fails, or errors are not finite.

    Warns:
        UserWarning: If the pilot batch is too small for what was fitted.

    Example:
        >>> import sdekit as sk
        >>> flow = sk.EDM().probability_flow(sk.load_digits_denoiser())
        >>> solver = sk.calibrate(flow, 6, samples=64, shape=(1, 8, 8), max_nfe=500)  # doctest: +SKIP
        >>> solver.save("digits6.json")  # doctest: +SKIP
        >>> sk.sample(sk.EDM(), sk.load_digits_denoiser(), (16, 1, 8, 8), method="digits6.json")
        ... # doctest: +SKIP
    """
    problems = [problem] if isinstance(problem, ProbabilityFlow) else list(problem)
    process = _process(problems)
    check_steps(steps)
    for name, value in (("samples", samples), ("max_nfe", max_nfe)):
        check_steps(value, name)
    if (x is None) == (shape is None):
        raise TypeError("give either x, start states, or shape, that of one sample")
    if sigma_data is None:
        sigma_data = known_sigma_data(problems[0].model)
        if sigma_data is None:
            raise ValueError(
                "sigma_data is not known: the denoiser has no such attribute; pass the standard "
                "deviation of the data (a rough value will do)"
            )
    sigma_data = float(sigma_data)
    Preconditioned(sigma_data)  # checks it
    ranges = [trained_range(flow.model) for flow in problems]
    high = min(process.sigma_max, *(r[0] for r in ranges)) if sigma_max is None else sigma_max
    low = max(process.sigma_min, *(r[1] for r in ranges)) if sigma_min is None else sigma_min
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"sigma_max = {high:g} and sigma_min = {low:g}; a calibration needs 0 < sigma_min < "
            "sigma_max < ∞"
        )
    if x is None:
        assert shape is not None
        each = math.ceil(samples / (1 - _TEST_SHARE) / len(problems))
        std = float(process.on_host("std", process.on_host("time", high)))
        starts = [draw(std, (each, *shape), seed + k, device) for k, _ in enumerate(problems)]
    else:
        starts = [x] if isinstance(x, Tensor) else list(x)
    _check_starts(starts, len(problems))
    pilots = run_pilots(
        problems,
        starts,
        sigma_max=high,
        sigma_min=low,
        sigma_data=sigma_data,
        test=_TEST_SHARE,
        rtol=rtol,
        progress=progress,
    )
    seen = seed if x is None else None
    solver = Search(pilots, steps, metric, max_nfe, seen, progress)()
    for message in solver.report.warnings:
        warnings.warn(message, UserWarning, stacklevel=2)
    return solver


def _process(problems: Sequence[ProbabilityFlow]) -> AffineSDE:
    for problem in problems:
        if not isinstance(problem, ProbabilityFlow) or not isinstance(problem.sde, AffineSDE):
            raise TypeError(
                f"problem is a {type(problem).__name__}; pass process.probability_flow(denoiser) of "
                "an affine process, or several of one process"
            )
    if not problems:
        raise ValueError("there is no problem; pass process.probability_flow(denoiser)")
    process = problems[0].sde
    assert isinstance(process, AffineSDE)
    if any(problem.sde is not process for problem in problems):
        raise ValueError(
            "the problems must be flows of one process: make them from the same object"
        )
    return process


def _check_starts(starts: Sequence[Tensor], problems: int) -> None:
    if len(starts) != problems:
        raise ValueError(f"x has {len(starts)} batches for {problems} problems; give one for each")
    for start in starts:
        check_state(start)
        if start.shape[1:] != starts[0].shape[1:] or start.device != starts[0].device:
            raise ValueError("the batches of x must have samples of one shape, on one device")
        if len(start) < _FEWEST:
            raise ValueError(
                f"{len(start)} samples of a problem; at least {_FEWEST} are needed, and some hundred "
                "are better"
            )
