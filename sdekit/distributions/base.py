"""What every closed-form data law offers, and the checks and chunking that all of them share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

# Elements of the largest temporary of one chunk: 2 MiB in float32, which a cache still holds.
CHUNK_ELEMENTS = 1 << 19

Sigma = float | Tensor
Result = TypeVar("Result", Tensor, tuple[Tensor, Tensor])


class Distribution(ABC):
    """A data law `p_0` over R^d, known exactly at every noise level.

    The noisy state is `x_hat = x0 + sigma * eps` with `eps ~ N(0, I)`; "at sigma" means its law
    `p_sigma = p_0 * N(0, sigma^2 I)`. Everywhere `x` is `(B, d)` in float32 or float64, and
    `sigma` is a float or a tensor `()` or `(B,)`. A distribution is itself a denoiser,
    `D(x, sigma) = E[x0 | x_hat = x]`, so it stands wherever a network would.

    At `sigma = inf` the first argument of a denoiser holds `eps = lim x_hat / sigma`.

    Attributes:
        dim: the dimension `d`.
    """

    dim: int
    _width: int  # elements per sample of the largest temporary: sizes the chunks
    _singular: bool  # p_0 has no density, so neither score nor log_prob at sigma = 0

    def __call__(self, x: Tensor, sigma: Sigma) -> Tensor:
        """Return the denoiser `E[x0 | x]`, `(B, d)`, without a check that reads values.

        Raises:
            TypeError, ValueError: the dtype or the shape of `x` or `sigma` is wrong.
        """
        self._check_form(x, sigma)
        return chunked(self._denoise, self._width, x, sigma)

    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        """Return the denoiser `E[x0 | x]`, `(B, d)`, for any `sigma` in `[0, inf]`.

        Where the data law is singular, the value at `sigma = 0` is the limit: the nearest point of
        the support.

        Raises:
            TypeError, ValueError: `x` or `sigma` is not as the class says.
        """
        self._check(x, sigma, infinite=True)
        return chunked(self._denoise, self._width, x, sigma)

    def denoise_and_score(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """Return the denoiser and the score, both `(B, d)`, without a check that reads values.

        Each is summed in its own right: `D = x + sigma^2 score` (Tweedie) loses the data at large
        sigma, and `score = (D - x) / sigma^2` loses the score at small sigma.

        Raises:
            TypeError, ValueError: the dtype or the shape of `x` or `sigma` is wrong.
        """
        self._check_form(x, sigma)
        return chunked(self._denoise_and_score, self._width, x, sigma)

    def score(self, x: Tensor, sigma: Sigma) -> Tensor:
        """Return `grad log p_sigma(x)`, `(B, d)`.

        Raises:
            TypeError, ValueError: `x` or `sigma` is not as the class says, `sigma` is infinite,
                or it is 0 and the data law has no density.
        """
        self._check(x, sigma, density=True)
        return chunked(self._score, self._width, x, sigma)

    def log_prob(self, x: Tensor, sigma: Sigma = 0.0) -> Tensor:
        """Return `log p_sigma(x)`, `(B,)`.

        Raises:
            TypeError, ValueError: as `score`.
        """
        self._check(x, sigma, density=True)
        return chunked(self._log_prob, self._width, x, sigma)

    def posterior_cov(self, x: Tensor, sigma: Sigma) -> Tensor:
        """Return `Cov(x0 | x) = sigma^2 dD/dx`, `(B, d, d)`, for any `sigma` in `[0, inf]`.

        Raises:
            TypeError, ValueError: `x` or `sigma` is not as the class says.
        """
        self._check(x, sigma, infinite=True)
        return chunked(self._posterior_cov, self._width * self.dim, x, sigma)

    def score_jacobian(self, x: Tensor, sigma: Sigma) -> Tensor:
        """Return the Hessian of `log p_sigma`, `(B, d, d)`.

        Raises:
            TypeError, ValueError: as `score`.
        """
        self._check(x, sigma, density=True)
        return chunked(self._score_jacobian, self._width * self.dim, x, sigma)

    def score_divergence(self, x: Tensor, sigma: Sigma) -> Tensor:
        """Return the Laplacian of `log p_sigma`, `(B,)`: the trace of `score_jacobian`.

        Raises:
            TypeError, ValueError: as `score`.
        """
        self._check(x, sigma, density=True)
        return chunked(self._score_divergence, self._width, x, sigma)

    def sample(
        self,
        n: int,
        sigma: float = 0.0,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Draw `n` independent samples of `p_sigma`, `(n, d)`.

        Args:
            n: how many.
            sigma: the noise level, finite.
            seed: makes the draw reproducible on one kind of device.
            generator: the source of randomness, instead of `seed`; without either it is torch's
                global one.
            device: where; the generator's device by default.
            dtype: float32 or float64.

        Raises:
            TypeError, ValueError: a bad count, `sigma` or dtype, or both a seed and a generator.
        """
        if n < 0:
            raise ValueError(f"n is the number of samples, 0 or more; got {n}")
        check_sigma(sigma)
        check_dtype(dtype, "dtype")
        source, place = random_source(seed, generator, device)
        return self._sample(n, float(sigma), source, place, dtype)

    @abstractmethod
    def moments(self, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the mean `(d,)` and the covariance `(d, d)` of `p_sigma`, float64."""

    @abstractmethod
    def characteristic_function(self, k: Tensor, sigma: float = 0.0) -> Tensor:
        """Return `E exp(i k.x)` under `p_sigma`, complex `(K,)`, for frequencies `k` `(K, d)`."""

    @cached_property
    def sigma_data(self) -> float:
        """The data's root-mean-square standard deviation, `sqrt(trace(cov) / d)`."""
        _, cov = self.moments()
        return math.sqrt(float(cov.trace()) / self.dim)

    @abstractmethod
    def _denoise(self, x: Tensor, sigma: Sigma) -> Tensor: ...

    @abstractmethod
    def _score(self, x: Tensor, sigma: Sigma) -> Tensor: ...

    @abstractmethod
    def _denoise_and_score(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _log_prob(self, x: Tensor, sigma: Sigma) -> Tensor: ...

    @abstractmethod
    def _posterior_cov(self, x: Tensor, sigma: Sigma) -> Tensor: ...

    @abstractmethod
    def _score_jacobian(self, x: Tensor, sigma: Sigma) -> Tensor: ...

    @abstractmethod
    def _score_divergence(self, x: Tensor, sigma: Sigma) -> Tensor: ...

    @abstractmethod
    def _sample(
        self,
        n: int,
        sigma: float,
        generator: torch.Generator | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Tensor: ...

    def _check_form(self, x: Tensor, sigma: Sigma = 0.0) -> None:
        """Check what can be seen without reading a value: types, dtypes and shapes."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        check_dtype(x.dtype, "x")
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must be (B, {self.dim}), got {tuple(x.shape)}")
        if isinstance(sigma, Tensor) and sigma.shape not in ((), x.shape[:1]):
            raise ValueError(
                f"sigma must be a float or a tensor () or ({len(x)},), got {tuple(sigma.shape)}"
            )

    def _check(
        self, x: Tensor, sigma: Sigma, *, infinite: bool = False, density: bool = False
    ) -> None:
        """Check form and values; `density` also asks for a density of `p_sigma`."""
        self._check_form(x, sigma)
        check_sigma(sigma, infinite=infinite)
        if density and self._singular and (torch.as_tensor(sigma) == 0).any():
            raise ValueError(
                f"{type(self).__name__}: the data law has no density, so log_prob, score and flow "
                "need sigma > 0; got 0"
            )


class NoiseWeights(NamedTuple):
    """The split `lambda + sigma^2 = (lambda * signal + noise) / signal`, finite at both ends.

    With `signal = 1 / (1 + sigma^2)` and `noise = sigma^2 / (1 + sigma^2)` the ratio
    `1 / (lambda + sigma^2) = signal / (lambda * signal + noise)` and the differences of
    log-determinants between components stay finite up to `sigma = inf`, where dividing by
    `sigma^2` would give NaN.
    """

    signal: float | Tensor
    noise: float | Tensor
    log_scale: float | Tensor  # log(1 + sigma^2)


def noise_weights(sigma: Sigma, x: Tensor) -> NoiseWeights:
    """Split `sigma^2` for broadcasting: floats, or tensors `(1 or B, 1, 1)` like `x`."""
    if not isinstance(sigma, Tensor):
        square = float(sigma) * float(sigma)
        signal = 1.0 / (1.0 + square)
        return NoiseWeights(
            signal, 1.0 if math.isinf(square) else square * signal, math.log1p(square)
        )
    # In the wider precision of the two: a float32 level beside a float64 state would round.
    weight = sigma.to(device=x.device, dtype=torch.promote_types(sigma.dtype, x.dtype)).square()
    scale = 1.0 / (1.0 + weight)
    noise = torch.where(weight.isinf(), 1.0, weight * scale)
    scale, noise, log_scale = (
        value.to(x.dtype).reshape(-1, 1, 1) for value in (scale, noise, weight.log1p())
    )
    return NoiseWeights(scale, noise, log_scale)


def precisions(variances: Tensor, noise: NoiseWeights) -> tuple[Tensor, Tensor]:
    """Return `1 / (variances + sigma^2)` and `log((variances + sigma^2) / (1 + sigma^2))`.

    Where both the variance and sigma vanish, the variance is floored at a value whose reciprocal
    still leaves room for squared distances: the softmax over the components then picks the nearest.
    """
    scaled = variances * noise.signal + noise.noise
    scaled = scaled.clamp(min=torch.finfo(scaled.dtype).tiny ** 0.75)
    return noise.signal / scaled, scaled.log()


def posterior_variances(variances: Tensor, noise: NoiseWeights) -> Tensor:
    """Return `variances * sigma^2 / (variances + sigma^2)`, also at sigma = 0 and inf."""
    scaled = variances * noise.signal + noise.noise
    return variances * (noise.noise / scaled.clamp(min=torch.finfo(scaled.dtype).tiny))


def squared(sigma: Sigma, x: Tensor) -> float | Tensor:
    """Return `sigma^2` as a float, or as a tensor `(1 or B, 1, 1)` like `x`."""
    if isinstance(sigma, Tensor):
        return sigma.to(x.device).square().to(x.dtype).reshape(-1, 1, 1)
    return float(sigma) ** 2


def chunked(function: Callable[..., Result], width: int, x: Tensor, *rest: Sigma) -> Result:
    """Apply `function(x, *rest)` to slices of the batch that each need `width` elements a row.

    A tensor in `rest` with as many rows as `x` is sliced with it. A batch that fits is passed as it
    is. Autograd sees through the slices.
    """
    rows = max(1, CHUNK_ELEMENTS // width)
    if len(x) <= rows:
        return function(x, *rest)
    outputs: tuple[Tensor, ...] = ()
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        sliced = (v[part] if isinstance(v, Tensor) and v.ndim > 0 else v for v in rest)
        result = function(x[part], *sliced)
        values = (result,) if isinstance(result, Tensor) else result
        # Written in place: pieces kept for a concatenation would lie between the freed temporaries
        # and fragment the heap to several times what is in use.
        outputs = outputs or tuple(v.new_empty(len(x), *v.shape[1:]) for v in values)
        for output, value in zip(outputs, values, strict=True):
            output[part] = value
    return outputs[0] if isinstance(result, Tensor) else (outputs[0], outputs[1])


def check_sigma(sigma: Sigma, *, infinite: bool = False, name: str = "sigma") -> None:
    """Raise `ValueError` unless every sigma is in `[0, inf)`, or `[0, inf]` if `infinite`."""
    if isinstance(sigma, bool) or not hasattr(sigma, "__float__"):
        raise TypeError(f"{name} must be a float or a tensor, got {type(sigma).__name__}")
    values = sigma if isinstance(sigma, Tensor) else torch.tensor(float(sigma))
    wrong = ~(values >= 0) if infinite else ~((values >= 0) & values.isfinite())
    if wrong.any():
        limits = "[0, inf]" if infinite else "[0, inf)"
        raise ValueError(f"{name} must lie in {limits}, got {float(values[wrong][0])}")


def check_dtype(dtype: torch.dtype, name: str) -> None:
    """Raise `TypeError` unless `dtype` is one in which states are kept."""
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {dtype}")


def parameter(value: object, name: str) -> Tensor:
    """Return lists, arrays or tensors as a finite float64 tensor on the host."""
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be numbers (list, array or tensor): {error}") from error
    if not tensor.isfinite().all():
        bad = (~tensor.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"{name} must be finite, got {float(tensor[tuple(bad)])} at index {bad}")
    return tensor


def random_source(
    seed: int | None, generator: torch.Generator | None, device: torch.device | str | None
) -> tuple[torch.Generator | None, torch.device]:
    """Return the generator (None is torch's global one) and the device to draw on."""
    if seed is not None and generator is not None:
        raise ValueError("give a seed or a generator, not both")
    if generator is not None:
        return generator, torch.device(device) if device is not None else generator.device
    place = torch.device(device) if device is not None else torch.device("cpu")
    if seed is None:
        return None, place
    return torch.Generator(place).manual_seed(seed), place
