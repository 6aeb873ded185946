"""Samplers with the interface of k-diffusion, which many programs call their samplers by.

    sample = sampler("dpmpp_2m")
    x_0 = sample(model, x, sigmas, extra_args={"cond": c}, callback=show, disable=True)

``model(x, sigma, **extra_args)`` returns the denoised sample; ``x`` is ``x0 + σ ε``, and ``sigma`` has
an entry for each sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..brownian import NoiseSource
from ..denoisers import known_sigma_data
from ..inputs import named_solver
from ..processes import EDM
from ..sampling import solve
from ..solution import StepReport
from ..solvers.registry import Solver, methods

__all__ = ["Sampler", "names", "sampler"]

Callback = Callable[[dict[str, Any]], object]


class Sampler(Protocol):
    """What `sampler` returns."""

    def __call__(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """Sample; see `sampler`."""
        ...


def names() -> list[str]:
    """Return the names of all methods that step through given noise levels, for menus."""
    return [name for name, method in methods().items() if method.fixed]


def sampler(method: str | Solver, *, eta: float = 1.0, sigma_data: float | None = None) -> Sampler:
    """Return a method as a function with the interface of k-diffusion's samplers.

    The function takes ``(model, x, sigmas, extra_args=None, callback=None, disable=None)``:

    - ``sigmas`` decreases strictly; with a last 0 the last step returns ``D``, as in k-diffusion.
    - ``callback`` is called after each step with a dictionary: ``"i"``, the number of the step from 0;
      ``"x"`` and ``"sigma"``, where the step started; ``"denoised"``, the first answer of the model in
      it, and ``"sigma_hat"``, the level of that.
    - ``disable`` turns the progress bar off; it is shown after two seconds.
    - ``seed=`` is that of the noise, one number or one per sample; or ``noise=`` a source, such as a
      `BrownianPath`. Without either, torch's global state is drawn from, as in k-diffusion.

    Its steps are made in float32 at least, whatever the dtype of ``x``; the model is called in that of
    ``x``, and the result has it. As in k-diffusion there are no gradients.

    Args:
        method: A name of `names`, or a composed `Solver`.
        eta: ``η`` of methods of the reverse SDE: 1 is the reverse SDE itself.
        sigma_data: Standard deviation of the data, for methods that use it. If not given it is the
            model's attribute ``sigma_data``, or that of a model it wraps (``inner_model``); else one
            call of the model estimates it.

    Raises:
        ValueError: If the method chooses its own steps, or is unknown.
    """
    solver = named_solver(method)
    if not solver.scheme.fixed:
        raise ValueError(
            f"method = {method!r} chooses its own steps, but here they are given; take one of "
            "sdekit.interop.k_diffusion.names()"
        )

    @torch.no_grad()
    def sample(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """Sample from ``sigmas[0]`` to ``sigmas[-1]``."""
        conditioned = functools.partial(model, **(extra_args or {}))

        def denoiser(x_hat: Tensor, sigma: Tensor) -> Tensor:
            narrow = x_hat.to(x.dtype)
            return conditioned(narrow, sigma.to(x.dtype) * narrow.new_ones(len(narrow)))

        process, levels = EDM(), torch.as_tensor(sigmas).double().numpy(force=True)
        start = x.to(torch.promote_types(x.dtype, torch.float32))
        last = start

        def on_step(step: StepReport) -> None:
            nonlocal last
            assert callback is not None
            sigma = torch.as_tensor(sigmas)[step.number - 1]
            callback(
                {
                    "x": last.to(x.dtype),
                    "i": step.number - 1,
                    "sigma": sigma,
                    "sigma_hat": step.denoised_at,
                    "denoised": None if step.denoised is None else step.denoised.to(x.dtype),
                }
            )
            last = step.x

        flow = solver.scheme.solves == "flow"
        solution = solve(
            process.probability_flow(denoiser) if flow else process.reverse(denoiser, eta),
            start,
            method=solver,
            sigmas=np.asarray(levels),
            sigma_data=_scale_of(model) if sigma_data is None else sigma_data,
            seed=seed,
            noise=noise,
            progress=not disable,
            callback=None if callback is None else on_step,
        )
        return solution.x.to(x.dtype)

    return sample


def _scale_of(model: Callable[..., Tensor]) -> float | None:
    """Return the standard deviation of the data that a model, or what it wraps, says."""
    value = known_sigma_data(model)
    inner = getattr(model, "inner_model", None)
    return _scale_of(inner) if value is None and inner is not None else value
