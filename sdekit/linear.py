"""Linear SDEs with matrices: exact laws, transitions and scores.

``dx = (K(t) x + b(t)) dt + G(t) dW`` maps Gaussians to Gaussians, and so mixtures to mixtures:

    x(t) | x(r) ~ N(Ψ x(r) + μ, Q),        Cov(x(t), x(s)) = Ψ(t, s) C(s),   t ≥ s

with ``Ψ`` the fundamental matrix (Särkkä & Solin 2019, sections 6.2 and 6.3). How the three are found
is in `sdekit.linear_kernels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from .affine import check_times
from .distributions import Gaussian, GaussianMixture
from .distributions.base import check_dtype, parameter
from .distributions.eigen import factor, weighted_cov
from .linear_kernels import (
    Array,
    Coefficients,
    Kernel,
    Table,
    collocated_kernel,
    constant_kernel,
    identity,
)
from .sde import ForwardSDE, expand

Coefficient: TypeAlias = Callable[[Tensor], Tensor] | object
"""A constant (list, array or tensor), or a callable of a time ``()`` that returns a tensor."""


def apply(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply states ``(B, d)`` by one matrix ``(d, d)``, or by one for each, ``(B, d, d)``."""
    return x @ matrix.mT if matrix.ndim == 2 else torch.einsum("bij,bj->bi", matrix, x)


def component_covs(law: GaussianMixture) -> Tensor:
    """Covariances of the components, ``(K, d, d)``, float64."""
    p = law._parameters(torch.device("cpu"), torch.float64)
    return weighted_cov(p, torch.eye(len(p.means), dtype=torch.float64), p.variances[None])


class LinearSDE(ForwardSDE):
    """A linear SDE ``dx = (K(t) x + b(t)) dt + G(t) dW`` on states ``(B, d)``.

    What `fundamental`, `mean`, `covariance`, `cross_covariance` and `kernel` return is float64 on the
    host, exact to round-off. Coefficients that depend on time have to be smooth, at least piecewise.

    Args:
        K: ``(d, d)``: numbers, or a callable of a time ``()`` that returns a tensor on its device.
        b: ``(d,)``, likewise.
        G: ``(d, m)``, likewise.
        T: Time at which the noising ends.
        t_min: Time at which backward problems stop.

    Raises:
        TypeError: If a coefficient is neither numbers nor a callable that returns a tensor.
        ValueError: If its shape is another, or the times are not ``0 <= t_min < T``.
    """

    noise_type = "general"

    def __init__(
        self, K: Coefficient, b: Coefficient, G: Coefficient, *, T: float = 1.0, t_min: float = 0.0
    ) -> None:
        check_times(T, t_min)
        self.T, self.t_min = float(T), float(t_min)
        self._coefficients = {
            name: value if callable(value) else parameter(value, name)
            for name, value in (("K", K), ("b", b), ("G", G))
        }
        self.constant = not any(map(callable, self._coefficients.values()))
        self._shapes: dict[str, torch.Size] = {}
        self._cast: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        self._kernels: dict[tuple[float, float], Kernel] = {}
        time = torch.tensor(self.T, dtype=torch.float64)
        shapes = {name: tuple(self._value(name, time).shape) for name in self._coefficients}
        self.dim = shapes["K"][0] if shapes["K"] else 0
        d = self.dim
        if not d or shapes["K"] != (d, d) or shapes["b"] != (d,) or shapes["G"][:-1] != (d,):
            raise ValueError(
                f"K, b and G have shapes {shapes['K']}, {shapes['b']} and {shapes['G']}; they must be "
                "(d, d), (d,) and (d, m)"
            )

    # --- coefficients ---

    def _value(self, name: str, t: Tensor) -> Tensor:
        """A coefficient at times ``()`` or ``(n,)``: with that shape in front, like ``t``."""
        value = self._coefficients[name]
        if isinstance(value, Tensor):
            key = (name, t.device, t.dtype)
            if key not in self._cast:
                # A tensor made in inference mode could never be used in autograd afterwards.
                with torch.inference_mode(False):
                    self._cast[key] = value.to(t.device, t.dtype)
            return self._cast[key].expand(*t.shape, *value.shape)
        assert callable(value)
        if t.ndim:
            return torch.stack([self._value(name, one) for one in t.unbind()])
        result = value(t)
        if not isinstance(result, Tensor):
            raise TypeError(f"{name}(t) returned {type(result).__name__}; it must return a tensor")
        shape = self._shapes.setdefault(name, result.shape)
        if result.shape != shape:
            raise ValueError(
                f"{name}(t) has shape {tuple(result.shape)}, and {tuple(shape)} at T; it must be one"
            )
        return result.to(t.device, t.dtype)

    def K(self, t: Tensor) -> Tensor:
        """``K(t)``, ``(d, d)``, or ``(n, d, d)`` for times ``(n,)``."""
        return self._value("K", t)

    def b(self, t: Tensor) -> Tensor:
        """``b(t)``, ``(d,)``, or ``(n, d)``."""
        return self._value("b", t)

    def G(self, t: Tensor) -> Tensor:
        """``G(t)``, ``(d, m)``, or ``(n, d, m)``."""
        return self._value("G", t)

    def coefficients(self, t: Array) -> Coefficients:
        """``K``, ``b`` and ``G Gᵀ`` on the host, at times of any shape."""
        with torch.inference_mode(False), torch.no_grad():
            at = torch.as_tensor(t, dtype=torch.float64)
            G = self.G(at).numpy(force=True)
            K, b = (value.numpy(force=True) for value in (self.K(at), self.b(at)))
        return Coefficients(K, b, G @ np.swapaxes(G, -1, -2))

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """``K x + b``."""
        return apply(self.K(t), x) + self.b(t)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """``G``, ``(B, d, m)``."""
        G = self.G(t)
        return G.expand(len(x), *G.shape[-2:])

    def diffusion_divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """Zero, as ``G`` does not depend on the state."""
        return torch.zeros_like(x)

    # --- exact laws, on the host ---

    def kernel(self, r: float, t: float) -> Kernel:
        """``Ψ``, ``μ`` and ``Q`` of the transition from ``r`` to ``t >= r``, as float64 arrays.

        Raises:
            ValueError: If the times are not ``0 <= r <= t <= T``, or a coefficient is not smooth.
        """
        r, t = self._ordered(r, t)
        if self.constant:
            return constant_kernel(self.coefficients(np.array(r)), t - r)
        if (r, t) not in self._kernels:
            self._kernels[r, t] = collocated_kernel(self.coefficients, r, t, self.dim)
        return self._kernels[r, t]

    def _ordered(self, r: float, t: float) -> tuple[float, float]:
        """Refuse times at which there is no process, or in the wrong order."""
        r, t = float(r), float(t)
        if not 0 <= r <= t <= self.T * (1 + 1e-12):
            raise ValueError(f"r = {r:g}, t = {t:g}; times must be 0 <= r <= t <= T = {self.T:g}")
        return r, t

    def _checked_time(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Return times of states in float64, both checked, but for values of tensors."""
        check_dtype(x.dtype, "x")
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be (B, {self.dim})")
        if not isinstance(t, Tensor):
            self._ordered(0.0, t)
        times = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        expand(times, x)
        return times

    def fundamental(self, t: float, s: float) -> Tensor:
        """The matrix ``Ψ(t, s)`` with ``dΨ/dt = K Ψ``, ``Ψ(s, s) = I``; ``t`` may be before ``s``."""
        if t >= s:
            return torch.as_tensor(self.kernel(s, t).matrix)
        r, s = self._ordered(t, s)

        def adjoint(at: Array) -> Coefficients:
            """``Ψ(r, s)ᵀ`` solves ``X' = −Kᵀ X`` in ``s``; an inverse would lose digits."""
            c = self.coefficients(at)
            K = -np.swapaxes(c.K, -1, -2)
            return Coefficients(K, np.zeros_like(c.b), np.zeros_like(c.gram))

        if self.constant:
            back = constant_kernel(adjoint(np.array(r)), s - r)
        else:
            back = collocated_kernel(adjoint, r, s, self.dim)
        return torch.as_tensor(back.matrix).mT

    def mean(self, m0: object, t: float) -> Tensor:
        """Mean of ``x(t)``, ``(d,)``, from that of ``x(0)``: ``m' = K m + b``."""
        start, kernel = self._vector(m0, "m0"), self.kernel(0.0, t)
        return torch.as_tensor(kernel.matrix @ start.numpy() + kernel.shift)

    def covariance(self, C0: object, t: float) -> Tensor:
        """Covariance of ``x(t)``, ``(d, d)``, from that of ``x(0)``: ``C' = K C + C Kᵀ + G Gᵀ``."""
        start, kernel = self._matrix(C0, "C0").numpy(), self.kernel(0.0, t)
        return torch.as_tensor(kernel.matrix @ start @ kernel.matrix.T + kernel.cov)

    def cross_covariance(self, t: float, s: float, C0: object) -> Tensor:
        """``Cov(x(t), x(s))``, ``(d, d)``: ``Ψ(t, s) C(s)`` for ``t >= s``, else its transpose's."""
        if t < s:
            return self.cross_covariance(s, t, C0).mT
        return self.fundamental(t, s) @ self.covariance(C0, s)

    def transition(self, x: Tensor, r: float, t: float) -> tuple[Tensor, Tensor]:
        """Law of ``x(t)`` given ``x(r) = x``, ``r <= t``: ``N(Ψ x + μ, Q)``.

        Args:
            x: State at ``r``, ``(B, d)``.
            r: Earlier time.
            t: Later time.

        Returns:
            The mean, ``(B, d)``, and the covariance, ``(d, d)``, like ``x``.
        """
        self._checked_time(t, x)
        matrix, shift, cov = (torch.as_tensor(v).to(x) for v in self.kernel(r, t))
        return x @ matrix.mT + shift, cov

    def marginal(self, x0: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Law of ``x(t)`` given ``x(0) = x0``; see `transition`."""
        return self.transition(x0, 0.0, t)

    def stationary(self) -> Gaussian:
        """The law that does not change, of constant coefficients whose ``K`` is stable.

        Raises:
            ValueError: If there is none, or it is not known.
        """
        from scipy.linalg import solve_continuous_lyapunov  # a quarter of a second to import

        if not self.constant:
            raise ValueError("coefficients that depend on time have no stationary law")
        K, b, gram = self.coefficients(np.array(0.0))
        slowest = float(np.linalg.eigvals(K).real.max())
        if slowest >= 0:
            raise ValueError(
                f"K has an eigenvalue of real part {slowest:.3g}; a stationary law needs all of them "
                "to be negative"
            )
        cov = solve_continuous_lyapunov(K, -gram)
        return Gaussian(np.linalg.solve(K, -b), 0.5 * (cov + cov.T))

    def law(self, data: GaussianMixture) -> LinearLaw:
        """Return the law of ``x(t)`` at all times, and its score, for ``x(0)`` from a mixture.

        Args:
            data: A `Gaussian`, `GaussianMixture` or `Empirical` in ``d`` dimensions.

        Raises:
            TypeError: If it is another law.
            ValueError: If it has another dimension.
        """
        return LinearLaw(self, data)

    @cached_property
    def table(self) -> Table:
        """The kernels from 0 to all times."""
        return Table(self.coefficients, 0.0, self.T, identity(self.dim))

    def _vector(self, value: object, name: str) -> Tensor:
        vector = parameter(value, name)
        if vector.shape != (self.dim,):
            raise ValueError(f"{name} must be ({self.dim},), got {tuple(vector.shape)}")
        return vector

    def _matrix(self, value: object, name: str) -> Tensor:
        matrix = parameter(value, name)
        if matrix.shape != (self.dim, self.dim):
            raise ValueError(f"{name} must be ({self.dim}, {self.dim}), got {tuple(matrix.shape)}")
        factor(matrix[None], 1, self.dim)  # refuses what is no covariance
        return matrix


class LinearLaw:
    """The law of a linear SDE that starts in a mixture: a mixture at all times.

    A component ``N(m, C)`` becomes ``N(Ψ m + μ, Ψ C Ψᵀ + Q)``. Called as ``law(x, t)`` it is the score,
    which `LinearSDE.reverse` and `LinearSDE.probability_flow` take. It is computed on the device of
    the state, for any time, and can be differentiated in both.

    Args:
        sde: The process.
        data: The law of ``x(0)``.
    """

    def __init__(self, sde: LinearSDE, data: GaussianMixture) -> None:
        if not isinstance(data, GaussianMixture):
            raise TypeError(
                f"data is a {type(data).__name__}; the law is known for Gaussian, GaussianMixture and "
                "Empirical"
            )
        if data.dim != sde.dim:
            raise ValueError(f"the data have {data.dim} dimensions, the process {sde.dim}")
        self.sde, self.data = sde, data
        start = (data.weights.log(), data.means, component_covs(data))
        self._start = {torch.device("cpu"): start}

    def at(self, t: float) -> GaussianMixture:
        """The law of ``x(t)``; a `Gaussian` if the data are."""
        matrix, shift, cov = map(torch.as_tensor, self.sde.kernel(0.0, t))
        _, means, covs = self._start[torch.device("cpu")]
        means, covs = means @ matrix.mT + shift, matrix @ covs @ matrix.mT + cov
        covs = 0.5 * (covs + covs.mT)
        if isinstance(self.data, Gaussian):
            return Gaussian(means[0], covs[0])
        return GaussianMixture(self.data.weights, means, covs)

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The score ``∇ log p_t(x)``, ``(B, d)``, at times ``()`` or ``(B,)`` of the process.

        Tensors of times are not looked into, as solvers may step over their end: below 0 they are
        read as 0, and a little above ``T`` the score goes on smoothly. It is NaN where a covariance
        is singular, as those of `Empirical` data are at ``t = 0``.

        Raises:
            TypeError: If the states are neither float32 nor float64.
            ValueError: If they or the times have another shape, or the time is a number not in
                ``[0, T]``.
        """
        log_joint, z, inverse = self._components(x, t)
        shares = log_joint.softmax(-1)[..., None] * z
        return -torch.einsum("bkij,bki->bj", inverse, shares)

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """``log p_t(x)``, ``(B,)``."""
        log_joint, _, _ = self._components(x, t)
        return log_joint.logsumexp(-1) - 0.5 * self.sde.dim * math.log(2 * math.pi)

    def sample(self, n: int, t: float, *, seed: int) -> Tensor:
        """Draw ``n`` samples of ``x(t)``, ``(n, d)``, float64."""
        return self.at(t).sample(n, seed=seed)

    def _components(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights ``(B, K)``, whitened states ``(B, K, d)`` and inverse roots ``(., K, d, d)``."""
        times = self.sde._checked_time(t, x)
        log_weights, means, covs = self._on(x.device)
        matrix, shift, cov = self.sde.table(times.reshape(-1))
        means = means @ matrix.mT + shift[:, None]
        covs = matrix[:, None] @ covs @ matrix.mT[:, None] + cov[:, None]
        # Without a check, which would wait for the device.
        root, failed = torch.linalg.cholesky_ex(covs)
        root = torch.where(failed[..., None, None] > 0, torch.nan, root)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        eye = torch.eye(self.sde.dim, dtype=torch.float64, device=x.device)
        inverse = torch.linalg.solve_triangular(root, eye, upper=False).to(x.dtype)
        z = torch.einsum("bkij,bkj->bki", inverse, x[:, None] - means.to(x.dtype))
        log_joint = (log_weights - log_det).to(x.dtype) - 0.5 * z.square().sum(-1)
        return log_joint, z, inverse

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._start:
            with torch.inference_mode(False):
                log_weights, means, covs = self._start[torch.device("cpu")]
                self._start[device] = (log_weights.to(device), means.to(device), covs.to(device))
        return self._start[device]
