"""What the laboratory measures: the metrics by name, and errors along paths.

Metrics of kind ``"path"`` compare a solve with a reference solution from the same start states
(`PathJudge`), those of kind ``"law"`` the law of samples with the exact one
(`sdekit.bench.weak.Judge`), and that of kind ``"likelihood"`` densities
(`sdekit.bench.densities.likelihood_error`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .problems import Problem, rms

PATH, LAW, LIKELIHOOD = "path", "law", "likelihood"

# Two solves that differ in all but the problem: the first one's interpolant is the more accurate.
_DENSE_METHODS = ("dop853_theta", "variable_adams")
DENSE_TOLERANCE = 1e-10
_DENSE_LEVELS = 64  # where the two are compared


@dataclass(frozen=True)
class Metric:
    """A measure of error, declared; 0 is exact, for all of them.

    Attributes:
        name: Its name, in files and on the command line.
        title: What an axis says.
        unit: What it is measured in.
        kind: ``"path"``, ``"law"`` or ``"likelihood"``: what has to be known to measure it.
        source: Where it is from.
    """

    name: str
    title: str
    unit: str
    kind: str
    source: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("rms", "RMS error", "of the data", PATH, "Hairer, Nørsett & Wanner 1993, II.4"),
        Metric("sup", "largest error", "of the data", PATH, "Hairer, Nørsett & Wanner 1993, II.1"),
        Metric(
            "path",
            "largest RMS error along the path",
            "of the data, where the state has their size",
            PATH,
            "scale of the state: Karras et al. 2022, table 1",
        ),
        Metric(
            "cf",
            "RMS error of the characteristic function",
            "1",
            LAW,
            "Epps & Singleton 1986",
        ),
        Metric("mean", "error of the mean", "RMS length of the law", LAW, "moments"),
        Metric("cov", "relative error of the covariance", "1", LAW, "moments, Frobenius norm"),
        Metric(
            "w2",
            "sliced Wasserstein-2 distance",
            "standard deviation of the data",
            LAW,
            "Bonneel et al. 2015",
        ),
        Metric("mmd", "maximum mean discrepancy", "1", LAW, "Gretton et al. 2012, eq. 5"),
        Metric(
            "energy",
            "sliced energy distance",
            "square root of the law's mean distance",
            LAW,
            "Székely & Rizzo 2013; Baringhaus & Franz 2004",
        ),
        Metric(
            "nll", "RMS error of the log-density", "nats", LIKELIHOOD, "Song et al. 2021, eq. 39"
        ),
    )
}
"""The metrics by name."""


class PathJudge:
    """Measures solves against a reference solution from the same start states.

    All states are unscaled, ``x̂ = x/s``.

    Args:
        reference_final: States at the end of the grids, ``(B, *event)``.
        states: The reference along the way, as `dense_reference` makes it: noise levels ``(n,)`` to
            states ``(n, B, *event)``. For the metric ``"path"`` only.
        sigma_data: Standard deviation of the data. For the metric ``"path"`` only.
    """

    def __init__(
        self,
        reference_final: Tensor,
        *,
        states: Callable[[ArrayLike], Tensor] | None = None,
        sigma_data: float | None = None,
    ) -> None:
        self.final, self.states, self.sigma_data = reference_final, states, sigma_data

    def __call__(
        self, x: Tensor, sigmas: ArrayLike | None = None, trajectory: Tensor | None = None
    ) -> dict[str, float]:
        """Measure a solve; ``"path"`` is among the metrics if its trajectory is given.

        Args:
            x: Final states, ``(B, *event)``.
            sigmas: Noise levels of the trajectory, ``(n,)``.
            trajectory: States there, ``(n, B, *event)``; see `unscaled`.

        Returns:
            Values by the metric's name; not finite if a state is not.

        Raises:
            ValueError: If shapes differ from the reference's, or a trajectory is given without its
                levels, or without a reference along the way.
        """
        self._check_shape("x", x, self.final.shape)
        error = x - self.final
        found = {"rms": rms(error), "sup": float(error.abs().max())}
        if trajectory is not None:
            if sigmas is None or self.states is None or self.sigma_data is None:
                raise ValueError(
                    "errors along a path need sigmas=, the levels of the trajectory, and a judge with "
                    "states= and sigma_data="
                )
            levels = np.asarray(sigmas, dtype=np.float64)
            self._check_shape("trajectory", trajectory, (len(levels), *self.final.shape))
            found["path"] = path_error(trajectory, self.states(levels), levels, self.sigma_data)
        return found

    def _check_shape(self, name: str, x: Tensor, expected: tuple[int, ...]) -> None:
        if x.shape != expected:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {tuple(expected)}")


def path_error(x: Tensor, exact: Tensor, sigmas: ArrayLike, sigma_data: float) -> float:
    """Return the largest RMS error over noise levels, in units where the state has the size of data.

    At ``σ`` the error is divided by ``sqrt(σ² + σ_d²)/σ_d``, which is 1 at the data.

    Args:
        x: States, ``(n, B, *event)``.
        exact: The same, exact.
        sigmas: Noise levels, ``(n,)``.
        sigma_data: Standard deviation of the data.
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float64)
    error = (x - exact).double().flatten(1).square().mean(1).sqrt().cpu()
    size = (levels.square() + sigma_data**2).sqrt() / sigma_data
    return float((error / size).max())


def unscaled(problem: Problem, sigmas: ArrayLike, states: Tensor) -> Tensor:
    """Return ``x̂`` of states of the process at noise levels, ``(n, B, *event)``.

    A trajectory needs it: `Problem.solve` unscales the final state only.
    """
    scale = torch.as_tensor(problem.scale(np.asarray(sigmas, dtype=np.float64)))
    return states / scale.to(states).reshape(-1, *(1,) * (states.ndim - 1))


@dataclass(frozen=True)
class DenseReference:
    """A reference solution at any noise level; see `dense_reference`.

    Attributes:
        states: Levels ``(n,)`` to states ``x̂``, ``(n, B, *event)``.
        discrepancy: Distance to a solve by another method, as the metric ``"path"`` measures it.
        nfe: Network evaluations of both, the largest count of a sample.
    """

    states: Callable[[ArrayLike], Tensor]
    discrepancy: float
    nfe: tuple[int, int]

    @property
    def floor(self) -> float:
        """Error along the path below which a method cannot be told from the reference."""
        return 10 * self.discrepancy


def dense_reference(
    problem: Problem, sigma_data: float, tolerance: float = DENSE_TOLERANCE
) -> DenseReference:
    """Solve a problem twice to a tolerance, by a pair of order 8 and by Adams, and keep all steps.

    It takes seconds for 64 samples. States between the steps are interpolated, with an error of about
    the tolerance at most: `sdekit.bench.solve_reference` is more accurate where the solve ends.

    Args:
        problem: The problem.
        sigma_data: Standard deviation of the data.
        tolerance: Relative and absolute tolerance of both solves.

    Raises:
        RuntimeError: If one of the two solves does not reach the end.
    """
    ends = [problem.sigma_max, problem.sigma_min]
    outputs: list[Callable[[ArrayLike], Tensor]] = []
    counts = []
    for method in _DENSE_METHODS:
        _, solution = problem.solve(method, sigmas=ends, rtol=tolerance, dense=True)
        if solution.status != "success" or solution.dense is None:
            raise RuntimeError(f"no reference along {problem.name}: {solution.message}")
        outputs.append(solution.dense)
        counts.append(solution.nfe)

    def states(sigmas: ArrayLike) -> Tensor:
        return unscaled(problem, sigmas, outputs[0](sigmas))

    levels = np.geomspace(problem.sigma_max, problem.sigma_min, _DENSE_LEVELS)
    levels[[0, -1]] = ends
    other = unscaled(problem, levels, outputs[1](levels))
    discrepancy = path_error(other, states(levels), levels, sigma_data)
    if not math.isfinite(discrepancy):
        raise RuntimeError(f"no reference along {problem.name}: states between steps are missing")
    return DenseReference(states, discrepancy, (counts[0], counts[1]))
