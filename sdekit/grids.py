"""Grids: where the steps end.

A grid is a function ``grid(n, sigma_max, sigma_min, process=None)`` that returns ``n + 1`` strictly
decreasing noise levels in float64, from ``sigma_max`` to ``sigma_min``, both included to the bit.
Options are keywords: ``functools.partial(karras, rho=3.0)`` is a grid again.

Almost every grid is uniform in some variable, a monotone function of ``σ``; the variable is all that
its definition says. Two well-known grids have no function of their own here, being special cases:

- that of iDDPM's cosine schedule without its offset, ``ᾱ = cos²(πt/2)``, is uniform in ``arctan σ``:
  `theta` with ``sigma_data=1`` (with the offset: `uniform_t` on a `CosineVP`);
- DDIM's and DEIS's quadratic grid is `power_t` with ``rho=2``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .affine import AffineSDE
from .spacing import Grid, check_range, positive, uniform, uniform_in_time, with_ends

Array = NDArray[np.float64]

# In units of σ_d: above, nothing happens, and there a first step may come from σ = ∞.
_TOP = 1e4


def karras(
    n: int,
    sigma_max: float,
    sigma_min: float,
    process: AffineSDE | None = None,
    *,
    rho: float = 7.0,
) -> Array:
    """Uniform in ``σ^(1/ρ)`` (Karras et al. 2022, eq. 5).

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max < ∞``, or ``rho`` is not positive.

    Example:
        >>> karras(4, 80.0, 0.002).round(3).tolist()
        [80.0, 17.528, 2.515, 0.17, 0.002]
    """
    positive(rho=rho)
    return uniform(n, sigma_max, sigma_min, lambda s: s ** (1 / rho), lambda y: y**rho)


def uniform_sigma(
    n: int, sigma_max: float, sigma_min: float, process: AffineSDE | None = None
) -> Array:
    """Uniform in ``σ``.

    Raises:
        ValueError: If ``n < 1`` or not ``0 < sigma_min < sigma_max < ∞``.
    """
    return uniform(n, sigma_max, sigma_min, lambda s: s, lambda y: y)


def log(n: int, sigma_max: float, sigma_min: float, process: AffineSDE | None = None) -> Array:
    """Uniform in ``log σ``, that is in half the log signal-to-noise ratio ``λ = −log σ``.

    Raises:
        ValueError: If ``n < 1`` or not ``0 < sigma_min < sigma_max < ∞``.
    """
    return uniform(n, sigma_max, sigma_min, np.log, np.exp)


def polyexponential(
    n: int,
    sigma_max: float,
    sigma_min: float,
    process: AffineSDE | None = None,
    *,
    rho: float = 1.0,
) -> Array:
    """Polynomial in ``log σ``: ``log(σ_i/σ_min) = (1 − i/n)^ρ log(σ_max/σ_min)``.

    ``rho=1`` is `log`; a larger one moves points to low noise (k-diffusion,
    ``get_sigmas_polyexponential``).

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max < ∞``, or ``rho`` is not positive.
    """
    positive(rho=rho)
    return uniform(n, sigma_max, sigma_min, np.log, np.exp, warp=lambda r: r**rho)


def uniform_t(
    n: int, sigma_max: float, sigma_min: float, process: AffineSDE | None = None
) -> Array:
    """Uniform in the time of ``process`` (Song et al. 2021); the start may be ``σ = ∞``.

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max``, no process is given, or it does
            not reach these levels.
    """
    return uniform_in_time(n, sigma_max, sigma_min, process)


def power_t(
    n: int,
    sigma_max: float,
    sigma_min: float,
    process: AffineSDE | None = None,
    *,
    rho: float = 2.0,
) -> Array:
    """Uniform in ``t^(1/ρ)``, ``t`` the time of ``process``; the start may be ``σ = ∞``.

    ``rho=2`` is the quadratic grid of DDIM (Song, Meng & Ermon 2021, app. D.2) and DEIS (Zhang & Chen
    2023, ``ts_order`` in their code).

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max``, no process is given, it does not
            reach these levels, or ``rho`` is not positive.
    """
    positive(rho=rho)
    return uniform_in_time(n, sigma_max, sigma_min, process, rho=rho)


def beta(
    n: int,
    sigma_max: float,
    sigma_min: float,
    process: AffineSDE | None = None,
    *,
    alpha: float = 0.6,
    beta: float = 0.6,
) -> Array:
    """Quantiles of ``Beta(α, β)`` in the time of ``process``: points gather at both ends.

    Lee et al. (2024), "Beta sampling is all you need"; ComfyUI's ``beta_scheduler``, without its
    rounding to training steps. (``use_beta_sigmas`` of diffusers places the same quantiles in ``σ``
    instead of time.) The start may be ``σ = ∞``.

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max``, no process is given, it does not
            reach these levels, or a parameter is not positive.
    """
    from scipy.special import betaincinv  # a quarter of a second to import

    positive(alpha=alpha, beta=beta)
    return uniform_in_time(
        n, sigma_max, sigma_min, process, warp=lambda r: betaincinv(alpha, beta, r)
    )


def theta(
    n: int,
    sigma_max: float,
    sigma_min: float,
    process: AffineSDE | None = None,
    *,
    sigma_data: float = 1.0,
) -> Array:
    """Uniform in ``θ = arctan(σ/σ_d)``, the time of `Preconditioned`; the start may be ``σ = ∞``.

    Optimal for Euler steps on data ``N(0, σ_d² I)`` (Sabour et al. 2024, theorem 3.1). With
    ``sigma_data=1`` it is the uniform grid of the cosine schedule ``ᾱ = cos²(πt/2)`` (Nichol &
    Dhariwal 2021).

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max``, or ``sigma_data`` is not positive.
    """
    return power_theta(n, sigma_max, sigma_min, process, p=1.0, sigma_data=sigma_data)


def power_theta(
    n: int,
    sigma_max: float,
    sigma_min: float,
    process: AffineSDE | None = None,
    *,
    p: float = 0.5,
    sigma_data: float = 1.0,
) -> Array:
    """Uniform in ``φ = arctan((σ/σ_d)^p)``, so ``σ = σ_d tan(φ)^(1/p)``; the start may be ``σ = ∞``.

    ``p=1`` is `theta`; a smaller one moves points to both ends, towards `log` as ``p → 0``.

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max``, or an option is not positive.
    """
    positive(p=p, sigma_data=sigma_data)
    return uniform(
        n,
        sigma_max,
        sigma_min,
        lambda s: np.arctan((s / sigma_data) ** p),
        lambda phi: sigma_data * np.tan(phi) ** (1 / p),
        from_infinity=True,
    )


def sigmoid(
    n: int,
    sigma_max: float,
    sigma_min: float,
    process: AffineSDE | None = None,
    *,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
) -> Array:
    """Uniform in the time of the sigmoid schedule; the start may be ``σ = ∞``.

    Jabri, Fleet & Chen (2023), also Chen (2023), algorithm 1: with ``S`` the logistic function and
    ``z = (start + (end − start) t)/tau``, ``ᾱ(t) = (S(z₁) − S(z))/(S(z₁) − S(z₀))``.

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max``, ``start >= end``, or ``tau`` is
            not positive.
    """
    from scipy.special import expit, logit  # a quarter of a second to import

    positive(tau=tau)
    if not start < end:
        raise ValueError(f"start = {start}, end = {end}; start < end is needed")
    first, last = expit(start / tau), expit(end / tau)

    def variable(sigma: Array) -> Array:
        z: Array = logit(last - (last - first) / (1 + sigma**2))  # ᾱ = 1/(1 + σ²)
        return z

    def inverse(z: Array) -> Array:
        q: Array = expit(z)
        sigma: Array = np.sqrt((q - first).clip(0) / (last - q).clip(0))
        return sigma

    return uniform(n, sigma_max, sigma_min, variable, inverse, from_infinity=True)


def flow_shift(
    n: int,
    sigma_max: float,
    sigma_min: float,
    process: AffineSDE | None = None,
    *,
    shift: float = 3.0,
) -> Array:
    """Shifted time of rectified flow, ``t' = shift t/(1 + (shift − 1) t)`` with ``t`` uniform.

    As ``σ = t'/(1 − t') = shift t/(1 − t)``, the grid is uniform in ``σ/(σ + shift)``; ``shift=1`` is
    uniform in the flow's time. Esser et al. (2024), eq. 23; 3 is Stable Diffusion 3's choice. The
    start may be ``σ = ∞``.

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max``, or ``shift`` is not positive.
    """
    positive(shift=shift)
    return uniform(
        n,
        sigma_max,
        sigma_min,
        lambda s: 1 / (1 + shift / s),
        lambda t: shift * t / (1 - t),
        from_infinity=True,
    )


AYS_TABLES: dict[str, tuple[float, ...]] = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "deepfloyd": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Levels of ten steps by model: Sabour et al. 2024, table 3."""


def ays(
    n: int,
    sigma_max: float,
    sigma_min: float,
    process: AffineSDE | None = None,
    *,
    model: str = "sd15",
) -> Array:
    """Align Your Steps: the levels optimised for one model (Sabour et al. 2024, table 3).

    ``log σ`` is interpolated linearly between the published ten steps, as the paper does it for other
    ``n``, and mapped linearly so that the ends are the requested ones: with the table's own ends and
    ``n=10`` the result is the table.

    Args:
        n: Number of steps.
        sigma_max: First noise level.
        sigma_min: Last noise level.
        process: Not used.
        model: ``"sd15"`` or ``"sdxl"`` (Stable Diffusion), ``"deepfloyd"`` (stage 1), or ``"svd"``
            (Stable Video Diffusion).

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max < ∞``, or the model has no table.
    """
    if model not in AYS_TABLES:
        raise ValueError(f"model = {model!r} has no table; there are {', '.join(AYS_TABLES)}")
    levels = np.log(AYS_TABLES[model][::-1])
    fractions = (levels - levels[0]) / (levels[-1] - levels[0])
    knots = np.linspace(0.0, 1.0, len(levels))
    return uniform(
        n, sigma_max, sigma_min, np.log, np.exp, warp=lambda r: np.interp(r, knots, fractions)
    )


def balanced(
    n: int,
    sigma_max: float,
    sigma_min: float,
    process: AffineSDE | None = None,
    *,
    sigma_data: float = 1.0,
    scale: float = 0.6,
    power: float = 0.8,
) -> Array:
    """Part uniform in ``arctan((σ/scale σ_d)^power)``, part in ``log σ``, the more so the more steps.

    Few steps belong where the law takes shape, at ``σ`` of the order of ``σ_d``; networks need more
    at low noise, once there are enough. The part in ``log σ`` is ``0.1 + 0.9 n²/(n² + 70²)``; the
    values were fitted with those of the prior of `sdekit.BayesianAdams`. For the reverse SDE of
    ``η = 1``, ``scale = 1`` and ``power = 1.2`` are better. The start may be ``σ = ∞``.

    Args:
        n: Number of steps.
        sigma_max: First noise level.
        sigma_min: Last noise level.
        process: Not used.
        sigma_data: Scale of the data ``σ_d``.
        scale: Where the bend of the arctangent is, in units of ``σ_d``.
        power: How much so: the exponent.

    Raises:
        ValueError: If ``n < 1``, not ``0 < sigma_min < sigma_max``, or an option is not positive.

    Example:
        >>> balanced(4, 80.0, 0.002, sigma_data=0.5).round(3).tolist()
        [80.0, 0.989, 0.306, 0.096, 0.002]
    """
    check_range(n, sigma_max, sigma_min)
    positive(sigma_data=sigma_data, scale=scale, power=power)
    top = min(sigma_max, max(_TOP * sigma_data, 2 * sigma_min))
    levels = np.exp(np.linspace(np.log(top), np.log(sigma_min), 2001))
    done = balanced_share(
        levels, n, top, sigma_min, sigma_data=sigma_data, scale=scale, power=power
    )
    sigma = np.exp(np.interp(np.linspace(0, 1, n + 1), done, np.log(levels)))
    return with_ends(sigma, sigma_max, sigma_min)


def balanced_share(
    sigma: Array,
    n: int,
    sigma_max: float,
    sigma_min: float,
    *,
    sigma_data: float,
    scale: float = 0.6,
    power: float = 0.8,
) -> Array:
    """Share of the steps of the `balanced` grid that are made above noise levels."""

    def share(variable: Array) -> Array:
        done: Array = (variable[0] - variable[2:]) / (variable[0] - variable[1])
        return done

    top = max(_TOP * sigma_data, 2 * sigma_min)
    log_sigma = np.log(np.minimum(np.concatenate([[sigma_max, sigma_min], sigma]), top))
    phi = np.arctan((np.exp(log_sigma) / (scale * sigma_data)) ** power)
    part = 0.1 + 0.9 * n**2 / (n**2 + 70**2)
    return (1 - part) * share(phi) + part * share(log_sigma)


GRIDS: dict[str, Grid] = {
    grid.__name__: grid
    for grid in (
        karras,
        log,
        polyexponential,
        uniform_sigma,
        uniform_t,
        power_t,
        beta,
        theta,
        power_theta,
        sigmoid,
        flow_shift,
        balanced,
        ays,
    )
}
"""The grids by name."""
