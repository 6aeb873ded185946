"""Forward SDEs, and the backward problems that follow from them.

A forward SDE turns data into noise (Itô, ``W`` a Wiener process)::

    dx = f(x, t) dt + G(x, t) dW,        0 <= t <= T.

For every ``η >= 0`` the following equation, run backward in time (``dt < 0``, ``W̄`` a backward
Wiener process), has the same marginals ``p_t``::

    dx = [ f − ½(1 + η²) (∇·(GGᵀ) + GGᵀ ∇ log p_t) ] dt + η G dW̄.

``η = 0`` is the probability-flow ODE, ``η = 1`` the reverse SDE of Anderson (1982). A subclass of
`ForwardSDE` writes ``drift`` and ``diffusion``; everything else here is derived from the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
import torch.autograd.forward_ad as forward_ad
from numpy.typing import NDArray
from torch import Tensor

Model: TypeAlias = Callable[..., Tensor]
"""A score ``(x, t)`` for a general SDE, a denoiser ``(x_hat, sigma)`` for an affine process."""


def expand(c: Tensor, x: Tensor) -> Tensor:
    """Shape a coefficient, ``()`` or ``(B,)``, so that it multiplies ``x``, ``(B, *event)``.

    Raises:
        ValueError: If ``c`` is neither one number nor one number per sample.
    """
    if c.ndim == 0:
        return c
    if c.ndim == 1 and x.ndim >= 1 and c.shape[0] in (1, x.shape[0]):
        return c.reshape(c.shape + (1,) * (x.ndim - 1))
    raise ValueError(
        f"a time or noise level has shape {tuple(c.shape)}; a batch of shape {tuple(x.shape)} "
        f"takes () or ({x.shape[0] if x.ndim else 1},)"
    )


def as_time(t: float | Tensor, x: Tensor) -> Tensor:
    """Return the time as a tensor of ``x``'s dtype and device, shape ``()`` or ``(B,)``."""
    return torch.as_tensor(t, dtype=x.dtype, device=x.device)


def check_output(value: Tensor, x: Tensor, what: str) -> Tensor:
    """Return what a model said, in the state's dtype.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it does not have the state's shape, and would be broadcast silently.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the {what} returned {type(value).__name__}; it must return a tensor shaped like its "
            "input"
        )
    if value.shape != x.shape:
        raise ValueError(
            f"the {what} returned shape {tuple(value.shape)} for an input of shape "
            f"{tuple(x.shape)}; it must return the input's shape"
        )
    return value.to(x.dtype)


def noise_kind(G: Tensor, x: Tensor) -> str:
    """Read the kind of noise off the shape of the diffusion: scalar, diagonal or matrix.

    Args:
        G: Diffusion at ``x``: ``()`` or ``(B,)`` (scalar), ``(B, *event)`` (diagonal) or
            ``(B, d, m)`` for a state of shape ``(B, d)`` (matrix). Two dimensions always mean
            ``(B, d)``: a constant matrix has to be expanded to ``(B, d, m)``.
        x: State, ``(B, *event)``.

    Raises:
        ValueError: If the shape is none of these.
    """
    if G.ndim == 0 or (G.ndim == 1 and x.ndim > 1 and G.shape[0] in (1, x.shape[0])):
        return "scalar"
    if G.shape == x.shape:
        return "diagonal"
    if x.ndim == 2 and G.ndim == 3 and G.shape[:2] == x.shape:
        return "matrix"
    raise ValueError(
        f"diffusion has shape {tuple(G.shape)} for a state of shape {tuple(x.shape)}; accepted are "
        "() or (B,) for scalar noise, the state's own shape for diagonal noise, and (B, d, m) for "
        "matrix noise on a state (B, d)"
    )


def diffuse(G: Tensor, x: Tensor, dw: Tensor) -> Tensor:
    """Multiply a noise increment by the diffusion: ``G dW``, in the shape of ``x``."""
    kind = noise_kind(G, x)
    if kind == "matrix":
        return torch.einsum("bij,bj->bi", G, dw)
    return (expand(G, x) if kind == "scalar" else G) * dw


def _gram(G: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """Return ``GGᵀ v``, in the shape of ``x``."""
    if noise_kind(G, x) == "matrix":
        return torch.einsum("bij,bkj,bk->bi", G, G, v)
    return diffuse(G, x, diffuse(G, x, v))


class ForwardSDE(ABC):
    """A forward SDE ``dx = drift(x, t) dt + diffusion(x, t) dW`` in the Itô sense.

    A subclass writes `drift` and `diffusion`; `reverse` and `probability_flow` are derived for
    any diffusion: scalar, diagonal or matrix, depending on the state or not.

    Attributes:
        T: Time at which the noising ends and the backward problems start.
        t_min: Time at which the backward problems stop.
    """

    T: float = 1.0
    t_min: float = 0.0
    # How torchsde sees the noise. "general" holds for any diffusion.
    noise_type: str = "general"

    @abstractmethod
    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """Drift ``f(x, t)``: ``x`` is ``(B, *event)``, ``t`` is ``()`` or ``(B,)``."""

    @abstractmethod
    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """Diffusion ``G(x, t)``: ``()`` or ``(B,)``, or ``x``'s shape, or ``(B, d, m)``."""

    def diffusion_divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """Divergence ``∇·(GGᵀ)``, the vector with entries ``Σ_j ∂_j (GGᵀ)_ij``, by forward-mode AD.

        Costs one evaluation of `diffusion` when it does not depend on the state, else one per
        dimension. Override it where a closed form is known.

        Args:
            x: State, ``(B, *event)``.
            t: Time, ``()`` or ``(B,)``.

        Returns:
            Tensor of ``x``'s shape.
        """
        if torch.is_inference_mode_enabled():  # which turns forward-mode AD off, without a word
            with torch.inference_mode(False):
                return self.diffusion_divergence(x.clone(), t.clone())
        flat = x.flatten(1)
        columns = []
        for j in range(flat.shape[1]):
            direction = torch.zeros_like(flat)
            direction[:, j] = 1.0
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(x, direction.reshape(x.shape))  # type: ignore[no-untyped-call]
                G = self.diffusion(dual, t)
                kind = noise_kind(G, x)
                if kind == "matrix":
                    square = torch.einsum("bim,bm->bi", G, G[:, j])
                elif kind == "diagonal":
                    square = G.reshape(flat.shape)[:, j] ** 2
                else:
                    square = G**2
                tangent = forward_ad.unpack_dual(square).tangent  # type: ignore[no-untyped-call]
            if tangent is None:  # AD saw no path from x to G: the diffusion is state-independent
                return torch.zeros_like(x)
            columns.append(tangent if kind == "matrix" else tangent.expand(x.shape[0]))
        if kind == "matrix":
            return torch.stack(columns).sum(0)
        return torch.stack(columns, dim=1).reshape(x.shape)

    def backward_drift(self, model: Model, x: Tensor, t: Tensor, eta: float) -> Tensor:
        """Drift of the backward equation with stochasticity ``η`` (formula in the module's head).

        Args:
            model: Score ``(x, t) -> ∇ log p_t(x)``.
            x: State, ``(B, *event)``.
            t: Time, ``()`` or ``(B,)``.
            eta: Stochasticity; 0 for the probability flow.
        """
        score = check_output(model(x, t), x, "score")
        spread = _gram(self.diffusion(x, t), x, score) + self.diffusion_divergence(x, t)
        return self.drift(x, t) - 0.5 * (1 + eta**2) * spread

    def reverse(self, score: Model, eta: float = 1.0) -> ReverseSDE:
        """Derive the reverse-time SDE.

        Args:
            score: Callable ``(x, t) -> ∇ log p_t(x)``, shapes ``(B, *event)``, ``()`` or ``(B,)``.
            eta: Stochasticity ``η > 0``; 1 is Anderson's reverse SDE.

        Raises:
            ValueError: If ``eta`` is not positive.
        """
        return ReverseSDE(self, score, eta)

    def probability_flow(self, score: Model) -> ProbabilityFlow:
        """Derive the probability-flow ODE, the member ``η = 0`` of the family.

        Args:
            score: Callable ``(x, t) -> ∇ log p_t(x)``, shapes ``(B, *event)``, ``()`` or ``(B,)``.
        """
        return ProbabilityFlow(self, score)


class ProbabilityFlow:
    """The probability-flow ODE ``dx/dt = flow(t, x)`` of a forward SDE (Song et al. 2021, eq. 13).

    Goes straight into ``torchdiffeq.odeint(flow, x_T, times)`` and, by `numpy`, into
    ``scipy.integrate.solve_ivp``.

    Attributes:
        sde: The forward SDE.
        model: Its score (or, for an affine process, denoiser).
        eta: 0.0, its place in the family of backward equations.
    """

    eta = 0.0

    def __init__(self, sde: ForwardSDE, model: Model) -> None:
        self.sde = sde
        self.model = model

    def __call__(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Velocity at time ``t`` (``()`` or ``(B,)``) and state ``x`` (``(B, *event)``)."""
        return self.sde.backward_drift(self.model, x, as_time(t, x), 0.0)

    def numpy(
        self,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> Callable[[float, NDArray[np.float64]], NDArray[np.float64]]:
        """View the flow as ``fun(t, y)`` on flat numpy arrays, as scipy's solvers take it.

        Args:
            shape: Shape ``(B, *event)`` of the state that ``y`` flattens.
            dtype: Dtype in which the flow is evaluated.
            device: Device on which the flow is evaluated.
        """

        def fun(t: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
            x = torch.as_tensor(y, dtype=dtype, device=device).reshape(shape)
            with torch.no_grad():
                velocity = self(t, x)
            return velocity.reshape(-1).double().numpy(force=True)

        return fun


class ReverseSDE:
    """The reverse-time SDE ``dx = f(t, x) dt + g(t, x) dW̄``, ``dt < 0``, with stochasticity η.

    ``f``, ``g``, ``noise_type`` and ``sde_type`` are what torchsde asks for; its time runs upward,
    so hand `time_reversed` to ``torchsde.sdeint``.

    Attributes:
        sde: The forward SDE.
        model: Its score (or, for an affine process, denoiser).
        eta: Stochasticity.
    """

    sde_type = "ito"

    def __init__(self, sde: ForwardSDE, model: Model, eta: float = 1.0) -> None:
        if not eta > 0:
            raise ValueError(
                f"eta = {eta} is not positive; use eta > 0 (1 is Anderson's reverse SDE), or "
                "probability_flow for the deterministic case"
            )
        self.sde = sde
        self.model = model
        self.eta = float(eta)
        self.noise_type = sde.noise_type

    def f(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Drift at time ``t`` (``()`` or ``(B,)``) and state ``x`` (``(B, *event)``)."""
        return self.sde.backward_drift(self.model, x, as_time(t, x), self.eta)

    def diffusion(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Diffusion ``η G(x, t)``, in the shape in which the forward SDE gives ``G``."""
        return self.eta * self.sde.diffusion(x, as_time(t, x))

    def g(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Diffusion as torchsde takes it: ``(B, d)`` for diagonal noise, else ``(B, d, m)``."""
        G = self.diffusion(t, x)
        kind = noise_kind(G, x)
        if kind == "matrix":
            return G
        diagonal = (expand(G, x) if kind == "scalar" else G).expand(x.shape)
        return diagonal if self.noise_type == "diagonal" else torch.diag_embed(diagonal)

    def time_reversed(self) -> TimeReversedSDE:
        """View the SDE in the upward time ``r = T − t``, from noise (0) to data (``T − t_min``)."""
        return TimeReversedSDE(self)


class TimeReversedSDE:
    """A reverse SDE seen in ``r = T − t``, for solvers whose time runs upward, as torchsde's."""

    sde_type = "ito"

    def __init__(self, reverse: ReverseSDE) -> None:
        self.reverse = reverse
        self.T = reverse.sde.T
        self.noise_type = reverse.noise_type

    def f(self, r: float | Tensor, x: Tensor) -> Tensor:
        """Drift in ``r``: ``−f(T − r, x)``."""
        return -self.reverse.f(self.T - r, x)

    def g(self, r: float | Tensor, x: Tensor) -> Tensor:
        """Diffusion in ``r``: ``g(T − r, x)``."""
        return self.reverse.g(self.T - r, x)
