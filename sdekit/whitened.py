"""Matrix coordinates of linear SDEs: the process seen where noise stays white."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .linear import LinearSDE, apply
from .linear_kernels import Array, Coefficients, Kernel, Table
from .sde import Model, check_output


class Whitened(LinearSDE):
    """A linear SDE seen in matrix coordinates ``u = S(t)⁻¹ (x − m(t))``, in which noise is white.

    ``N(m(t), C(t))`` is what the process makes of a reference ``N(m, C)`` at time 0, ``S Sᵀ = C(t)``,
    and ``S`` is the one root that leaves nothing to rotate::

        dS/dt = (K + ½ G Gᵀ C⁻¹) S,        du = −½ M u dt + S⁻¹ G dW,        M = S⁻¹ G Gᵀ S⁻ᵀ.

    This process keeps N(0, I), so its probability flow is ``du/dt = −½ M (∇ log p + u)``: nothing moves
    where the data are the reference, whatever scheme and steps, and else the velocity is what the
    score says beyond it. As it is a process like any other, every solver takes it.

    With ``eta`` the matrix is ``dS/dt = (K + ½ (1 + η²) G Gᵀ C⁻¹) S``, no root any more, and it is the
    drift of the reverse SDE with that stochasticity that vanishes for the reference.

    Source: for a point, ``C = 0``, ``S`` is the matrix ``R`` of gDDIM (Zhang, Tao & Chen 2022,
    section 4), which interpolates ``−Sᵀ ∇ log p`` with matrix weights instead.

    Args:
        sde: The process.
        mean: Mean of the reference at time 0, ``(d,)``.
        cov: Its covariance, ``(d, d)``; singular ones need ``t_min > 0``, and noise in all directions.
        eta: Stochasticity whose drift is to vanish.

    Raises:
        TypeError, ValueError: If an argument is not as above.
    """

    def __init__(self, sde: LinearSDE, mean: object, cov: object, *, eta: float = 0.0) -> None:
        if not isinstance(sde, LinearSDE):
            raise TypeError(f"sde is a {type(sde).__name__}; matrix coordinates are of a LinearSDE")
        if not eta >= 0:
            raise ValueError(f"eta = {eta}; a stochasticity is 0 or more")
        self.sde, self.T, self.t_min, self.dim = sde, sde.T, sde.t_min, sde.dim
        self.constant, self.eta = False, float(eta)
        self._kernels = {}
        m0, C0 = sde._vector(mean, "mean"), sde._matrix(cov, "cov")
        self._start_cov = C0
        start, start_cov = sde.mean(m0, self.t_min), sde.covariance(C0, self.t_min)
        root, failed = torch.linalg.cholesky_ex(start_cov)
        if failed:
            raise ValueError(
                f"the covariance of the reference is singular at t_min = {self.t_min:g}; give a "
                "positive definite one, or a process with noise in all directions and t_min > 0"
            )

        def moving(t: Array) -> Coefficients:
            """``x = S u + m`` is a kernel without noise; these are its coefficients."""
            K, b, gram = sde.coefficients(t)
            matrix, shift, noise = (v.numpy() for v in sde.table(torch.as_tensor(t)))
            mean = matrix @ m0.numpy() + shift
            cov = matrix @ C0.numpy() @ np.swapaxes(matrix, 1, 2) + noise
            pull = 0.5 * (1 + self.eta**2) * np.swapaxes(np.linalg.solve(cov, gram), 1, 2)
            moved = (pull @ mean[..., None])[..., 0]
            return Coefficients(K + pull, b - moved, np.zeros_like(K))

        first = Kernel(root.numpy(), start.numpy(), np.zeros_like(root.numpy()))
        self._frame = Table(moving, self.t_min, self.T, first)

    def coefficients(self, t: Array) -> Coefficients:
        """``K``, ``b`` and ``G Gᵀ`` on the host, at times of any shape from ``t_min`` on.

        Raises:
            ValueError: If a time is earlier, where there are no coordinates.
        """
        self._check_begun(float(np.min(t)))
        return super().coefficients(t)

    def _check_begun(self, t: float) -> None:
        if t < self.t_min * (1 - 1e-12):
            raise ValueError(f"t = {t:g}; these coordinates begin at t_min = {self.t_min:g}")

    def frame(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``S`` and ``m`` at times ``()`` or ``(n,)``, float64."""
        S, mean, _ = self._frame(t)
        return S, mean

    def _frame_like(self, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(t, Tensor):
            self._check_begun(t)
        S, mean = self.frame(self._checked_time(t, x))
        return S.to(x.dtype), mean.to(x.dtype)

    def _noise(self, t: Tensor) -> Tensor:
        noise: Tensor = torch.linalg.solve_ex(self.frame(t)[0], self.sde.G(t.double())).result
        return noise

    def _precision(self, t: Tensor) -> Tensor | None:
        """``Sᵀ C⁻¹ S``, what the reference has for a precision in ``u``; ``None`` for the identity."""
        if self.eta == 0:
            return None
        matrix, _, noise = self.sde.table(t)
        S, _ = self.frame(t)
        start = self._start_cov.to(t.device)
        solved = torch.linalg.solve_ex(matrix @ start @ matrix.mT + noise, S).result
        precision: Tensor = S.mT @ solved
        return precision

    def K(self, t: Tensor) -> Tensor:
        """``−½ (1 + η²) S⁻¹ G Gᵀ C⁻¹ S``."""
        noise, precision = self._noise(t), self._precision(t)
        pull = noise @ (noise.mT if precision is None else noise.mT @ precision)
        return (-0.5 * (1 + self.eta**2) * pull).to(t.dtype)

    def b(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros(*t.shape, self.dim, dtype=t.dtype, device=t.device)

    def G(self, t: Tensor) -> Tensor:
        """``S⁻¹ G``."""
        return self._noise(t).to(t.dtype)

    def backward_drift(self, model: Model, x: Tensor, t: Tensor, eta: float) -> Tensor:
        """``−½ S⁻¹ G Gᵀ S⁻ᵀ [(1 + η²) ∇ log p + (1 + η₀²) Sᵀ C⁻¹ S u]``, ``η₀`` the coordinates' own.

        Args:
            model: Score of ``u``.
            x: State ``u``, ``(B, d)``.
            t: Time, ``()`` or ``(B,)``.
            eta: Stochasticity; 0 for the probability flow.
        """
        noise, precision = self.G(t), self._precision(t)
        linear = x if precision is None else apply(precision.to(x.dtype), x)
        score = check_output(model(x, t), x, "score")
        pull = (1 + eta**2) * score + (1 + self.eta**2) * linear
        return -0.5 * apply(noise, apply(noise.mT, pull))

    def into(self, x: Tensor, t: float | Tensor) -> Tensor:
        """``u``, ``(B, d)``, of states ``x`` of the process at times ``()`` or ``(B,)``."""
        S, mean = self._frame_like(t, x)
        u: Tensor = torch.linalg.solve_ex(S, (x - mean)[..., None]).result[..., 0]
        return u

    def out_of(self, u: Tensor, t: float | Tensor) -> Tensor:
        """``x = S u + m``, ``(B, d)``."""
        S, mean = self._frame_like(t, u)
        return apply(S, u) + mean

    def score(
        self, score: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the score of ``u``, ``Sᵀ ∇ log p_t(S u + m)``, for that of ``x``."""

        def whitened(u: Tensor, t: Tensor) -> Tensor:
            S, mean = self._frame_like(t, u)
            x = apply(S, u) + mean
            return apply(S.mT, check_output(score(x, t), x, "score"))

        return whitened
