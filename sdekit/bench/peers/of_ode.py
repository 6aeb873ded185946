"""Peers with a step size control: the solvers of torchdiffeq and scipy, on the probability flow.

They solve in `λ = −log σ`, where the unscaled state obeys ``dx̂/dλ = D(x̂; σ) − x̂``, or in the
process's own time and state. Their error norms are over all that they are given, so a batch may be
one system of many samples, or each sample a system of its own; both are run.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint

from ...sde import Model
from ..problems import PROCESS, SIGMA_MAX, SIGMA_MIN

BATCH, ALONE = "batch", "alone"
MODES = (BATCH, ALONE)

_ScipyMethod = Literal["RK45", "DOP853", "LSODA"]
_SCIPY: tuple[_ScipyMethod, ...] = ("RK45", "DOP853", "LSODA")
_LAMBDA = (-math.log(SIGMA_MAX), -math.log(SIGMA_MIN))


class OutOfEvaluationsError(RuntimeError):
    """A solve that would call the network more often than it may."""


class Integrator(Protocol):
    """How a peer solves: its function and settings, bound."""

    def __call__(self, denoiser: Model, x_hat: Tensor, rtol: float, atol: float) -> Tensor:
        """Return the final `x̂`."""
        ...


@dataclass(frozen=True)
class OdePeer:
    """An adaptive solver of another package.

    Attributes:
        name: Package, method and, unless it is `λ`, the variable that it integrates in.
        package: Name of the package, as it is imported.
        integrate: Solves, uncounted.
    """

    name: str
    package: str
    integrate: Integrator

    def run(
        self,
        denoiser: Model,
        x_hat: Tensor,
        *,
        rtol: float,
        atol: float,
        mode: str = BATCH,
        max_nfe: int | None = None,
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Solve from `SIGMA_MAX` to `SIGMA_MIN`, counting every call of the network.

        Args:
            denoiser: Callable ``(x_hat, sigma) -> x0_hat``.
            x_hat: States `x̂` at `SIGMA_MAX`, ``(B, *event)``, float64.
            rtol: Relative tolerance on the state, per step.
            atol: Absolute tolerance on the state, per step.
            mode: ``"batch"``: one system, with steps common to all samples; ``"alone"``: every
                sample a system of its own.
            max_nfe: Calls that the solve of a system may make.

        Returns:
            The final `x̂` and the evaluations of each sample, ``(B,)``.

        Raises:
            OutOfEvaluationsError: If ``max_nfe`` do not suffice.
            RuntimeError: If the peer gives up.
        """
        if mode not in MODES:
            raise ValueError(f"mode = {mode!r}; there are {', '.join(MODES)}")
        systems = [x_hat] if mode == BATCH else [x_hat[i : i + 1] for i in range(len(x_hat))]
        ends, counts = [], []
        for system in systems:
            counter = _Counter(denoiser, max_nfe)
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of overflows in trial steps that are rejected
                ends.append(self.integrate(counter, system, rtol, atol))
            counts += [counter.calls] * len(system)
        return torch.cat(ends), np.array(counts)


class _Counter:
    """A denoiser that counts its calls, and stops after the last that it may make."""

    def __init__(self, denoiser: Model, limit: int | None) -> None:
        self.denoiser, self.limit, self.calls = denoiser, limit, 0

    def __call__(self, x_hat: Tensor, sigma: Tensor) -> Tensor:
        if self.calls == self.limit:
            raise OutOfEvaluationsError(f"more than {self.limit} evaluations are needed")
        self.calls += 1
        return self.denoiser(x_hat, sigma)


def _velocity(denoiser: Model, lam: Tensor, x_hat: Tensor) -> Tensor:
    """Derivative of `x̂` by `λ`."""
    return denoiser(x_hat, torch.exp(-lam)) - x_hat


def _torchdiffeq(
    denoiser: Model,
    x_hat: Tensor,
    rtol: float,
    atol: float,
    *,
    method: str,
    native: bool,
) -> Tensor:
    """Solve by torchdiffeq.

    Args:
        denoiser: Callable ``(x_hat, sigma) -> x0_hat``.
        x_hat: States `x̂` at `SIGMA_MAX`.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        method: Name of the method.
        native: Whether to integrate the state of `PROCESS` in its time, not `x̂` in `λ`.
    """
    fun: Callable[[Tensor, Tensor], Tensor] = partial(_velocity, denoiser)
    ends, scale = np.array(_LAMBDA), np.ones(2)
    if native:
        fun = PROCESS.probability_flow(denoiser)
        ends = PROCESS.on_host("time", np.array([SIGMA_MAX, SIGMA_MIN]))
        scale = PROCESS.on_host("scale", ends)
    times = torch.from_numpy(ends)
    # The last step is to end at the end. It goes beyond otherwise, and the result is interpolated, by
    # a polynomial of degree four whatever the method's order.
    options = {"step_t": times[1:]}
    start = x_hat * scale[0]
    try:
        path = odeint(fun, start, times, method=method, rtol=rtol, atol=atol, options=options)
    except AssertionError as error:  # its way to say that a step underflows
        raise RuntimeError(f"torchdiffeq gave up: {error}") from error
    end: Tensor = path[-1] / scale[1]
    return end


def _scipy(
    denoiser: Model, x_hat: Tensor, rtol: float, atol: float, *, method: _ScipyMethod
) -> Tensor:
    """Solve by scipy in `λ`."""

    def fun(lam: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
        x = torch.from_numpy(y).view_as(x_hat)
        return _velocity(denoiser, torch.tensor(lam, dtype=x.dtype), x).flatten().numpy()

    y0 = x_hat.flatten().numpy()
    result = solve_ivp(fun, _LAMBDA, y0, method=method, rtol=rtol, atol=atol)
    if not result.success:
        raise RuntimeError(f"scipy gave up: {result.message}")
    return torch.from_numpy(result.y[:, -1].copy()).view_as(x_hat)


def ode_peers() -> Iterator[OdePeer]:
    """Adaptive solvers of torchdiffeq, in `λ` and in the time of the process, and of scipy in `λ`.

    Torchdiffeq is told to end its last step at the end: on its own it steps beyond, which takes more
    evaluations for the same error, and in time leaves the range where the process is defined.
    """
    for method in _SCIPY:
        yield OdePeer(f"scipy {method}", "scipy", partial(_scipy, method=method))
    for name in ("dopri5", "dopri8", "bosh3"):
        for native in (False, True):
            integrate = partial(_torchdiffeq, method=name, native=native)
            title = f"torchdiffeq {name}{' in t' * native}"
            yield OdePeer(title, "torchdiffeq", integrate)
