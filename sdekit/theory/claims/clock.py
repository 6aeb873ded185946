"""All affine processes are one Brownian motion: transitions, priors and limits of chains."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...affine import AffineSDE
from ...brownian import GridPath
from ...forward import simulate
from ...processes import VE, VP, DiscreteVP
from ..calculus import jacobian, log_normal, residual
from ..claim import claim
from ..draw import Draw, processes
from .forward import log_density, transition_log_density

BATCH = 6


@claim(
    "chapman-kolmogorov",
    title="Chapman–Kolmogorov equation",
    statement="p(x_t | x_r) = ∫ p(x_t | x_u) p(x_u | x_r) dx_u for r < u < t",
    sources={"chan": "theorem 5.5, eq. 154", "chen": "theorem 11"},
    tags=("process", "forward", "kramers-moyal"),
    tolerance=1e-9,
    because="trapezoidal rule, exponentially accurate for a Gaussian",
    over="process",
)
def _chapman_kolmogorov(process: AffineSDE, draw: Draw) -> float:
    """Two transitions make one, in moments and, by quadrature over the middle state, in density.

    And the law of x(t) is the law of x(r) carried by the transition.
    """
    r, t = (u.squeeze() for u in draw.ordered_times(process, 1))
    u = process.time(torch.sqrt(process.sigma(r) * process.sigma(t)))
    x = process.std(r) * draw.normal(1, 1)
    (one, a), (end, whole) = process.transition(x, r, u), process.transition(x, r, t)
    two, b = process.transition(one, u, t)
    ratio = process.scale(t) / process.scale(u)
    z = torch.linspace(-12, 12, 801, dtype=torch.float64)[:, None]
    middle, y = one + a * z, end + 0.7 * whole
    first = transition_log_density(process, middle, u, x.expand(801, 1), r)
    second = transition_log_density(process, y.expand(801, 1), t, middle, u)
    joined = torch.trapezoid(torch.exp(first + second), middle[:, 0])
    direct = torch.exp(transition_log_density(process, y, t, x, r))
    data = draw.mixture(1, 3)
    grid = process.scale(r) * torch.linspace(-14, 14, 4001, dtype=torch.float64)[:, None]
    grid = grid * (1 + process.sigma(r))
    start = log_density(process, data, grid, r.expand(len(grid)))
    carried = start + transition_log_density(process, y.expand(len(grid), 1), t, grid, r)
    marginal = torch.exp(log_density(process, data, y, t.reshape(1)))
    return max(
        residual(two, end),
        residual((ratio * a) ** 2 + b**2, whole**2),
        residual(joined.reshape(1), direct),
        residual(torch.trapezoid(torch.exp(carried), grid[:, 0]).reshape(1), marginal),
    )


@claim(
    "one-brownian-motion",
    title="In the unscaled state every affine process is one Brownian motion",
    statement="x(t)/s(t) | x(r)/s(r) ~ N(x̂, σ(t)² − σ(r)²): x̂ = x₀ + B(σ²)",
    sources={"sdekit": "theory, 4.1", "edm": "appendix B.1"},
    tags=("process", "brownian"),
    tolerance=1e-9,
    because="round-off",
    over="process",
)
def _one_brownian_motion(process: AffineSDE, draw: Draw) -> float:
    """Divided by its scale, what a process does in a step depends on its noise levels alone.

    `AffineSDE.transition` is compared with that, and paths of `simulate`, driven by increments on the
    clock σ², with the sums of these increments.
    """
    r, t = draw.ordered_times(process, BATCH)
    x = draw.normal(BATCH, 2)
    mean, std = process.transition(x, r, t)
    s_r, s_t = process.scale(r)[:, None], process.scale(t)[:, None]
    variance = process.sigma(t) ** 2 - process.sigma(r) ** 2
    times = torch.stack([r[0], t[0]]).numpy()
    clock = process.on_host("sigma", times) ** 2
    path = GridPath(clock, (BATCH, 2), seed=draw.integer(2**31))
    found = simulate(process, x, times, noise=path)[1]
    moved = x / s_r[0] + path.increment(clock[0], clock[1], x)
    return max(
        residual(mean / s_t, x / s_r),
        residual((std / s_t[:, 0]) ** 2, variance),
        residual(found / s_t[0], moved),
    )


@claim(
    "moments-in-time",
    title="Mean and covariance of an affine process",
    statement="E x = s m,  Cov x = s² (C + σ² I): ṁ = f m,  Ċ = 2 f C + g² I",
    sources={"chen": "eq. 79 to 85, 89, 90, 92", "khungurn": "theorem 1"},
    tags=("process", "forward", "linear"),
    tolerance=1e-9,
    because="round-off of automatic differentiation",
    over="process",
)
def _moments(process: AffineSDE, draw: Draw) -> float:
    """Both ODEs are solved by the kernel's moments and the law of total variance.

    The moments of a mixture at the process's noise level are differentiated automatically.
    """
    data, t = draw.mixture(), draw.times(process, BATCH)
    m, C = data.moments()
    eye = torch.eye(2, dtype=torch.float64)

    def flat(u: Tensor) -> Tensor:
        s, variance = process.scale(u)[:, None], process.sigma(u)[:, None, None] ** 2
        cov = s[:, :, None] ** 2 * (C + variance * eye)
        return torch.cat([s * m, cov.reshape(-1, 4)], 1)

    rate = jacobian(lambda u: flat(u[:, 0]), t[:, None])[:, :, 0]
    mean, cov = flat(t)[:, :2], flat(t)[:, 2:]
    f, noise = process.f(t)[:, None], process.g(t)[:, None] ** 2 * eye.reshape(1, 4)
    level = float(process.sigma(t)[0])
    whole = process.scale(t)[0] ** 2 * data.moments(level)[1]
    return max(
        residual(rate[:, :2], f * mean, mean),
        residual(rate[:, 2:], 2 * f * cov + noise, f * cov, noise),
        residual(cov[:1], whole.reshape(1, 4)),
    )


@claim(
    "prior",
    title="The prior is the law of pure noise at the end",
    statement="x(T) ≈ N(0, s(T)² σ(T)² I), with density (2π n²)^(−d/2) exp(−|x|²/(2n²))",
    sources={"song2021": "section 3.4, appendix C", "edm": "section 2", "chen": "after eq. 89"},
    tags=("process", "forward"),
    tolerance=1e-11,
    because="round-off",
    over="process",
)
def _prior(process: AffineSDE, draw: Draw) -> float:
    """Prior samples are the standard deviation at T times normal numbers of the same seed."""
    seed, n = draw.integer(2**31), process.std(torch.tensor(process.T, dtype=torch.float64))
    x = process.prior_sample((BATCH, 3), seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(BATCH, 3, generator=generator, dtype=torch.float64)
    density = torch.exp(log_normal(x, torch.zeros_like(x), n**2))
    return max(residual(x, n * z), residual(torch.exp(process.prior_log_prob(x)), density))


@claim(
    "two-ways-in",
    title="A process from (s, σ) and from (f, g) is one process",
    statement="(f, g) ↦ s = exp ∫f, σ² = ∫g²/s² and (s, σ) ↦ f = ṡ/s, g² = s² d(σ²)/dt are inverse",
    sources={"edm": "appendix B.1", "sdekit": "design, section 2"},
    tags=("process",),
    tolerance=1e-9,
    because="adaptive quadrature to about 1e-13, and a bisection",
)
def _two_ways_in(draw: Draw) -> float:
    """The closed forms of the VP process are handed over by pairs, and the others asked for."""
    closed = VP(beta_min=float(draw.uniform(0.05, 1.0)), beta_max=float(draw.uniform(5.0, 12.0)))
    built = (
        AffineSDE(f=closed.f, g=closed.g, T=closed.T),
        AffineSDE(scale=closed.scale, sigma=closed.sigma, T=closed.T),
    )
    t, worst = draw.uniform(0.02, 1.0, BATCH), 0.0
    for process in built:
        for name in ("scale", "sigma", "std", "f", "g"):
            found, right = getattr(process, name)(t), getattr(closed, name)(t)
            worst = max(worst, residual(found, right))
        for found, right in zip(process.rates(t), closed.rates(t), strict=True):
            worst = max(worst, residual(found, right, torch.ones_like(t)))
        worst = max(worst, residual(process.time(closed.sigma(t)), t))
    return worst


def _order(errors: list[float], sizes: list[int]) -> float:
    """Slope of log error against log size, over the last two sizes."""
    return math.log(errors[-2] / errors[-1]) / math.log(sizes[-1] / sizes[-2])


@claim(
    "ddpm-to-vp",
    title="DDPM tends to the VP process as 1/N",
    statement="Πᵢ (1 − βᵢ) → exp(−∫β) with βᵢ = β(i/N)/N, error O(1/N)",
    sources={"song2021": "section 3.4, eq. 10 and 11, appendix B", "chen": "eq. 86 to 89"},
    tags=("process", "ddpm", "discrete"),
    kind="rate",
    tolerance=0.05,
    because="slope between 4000 and 8000 steps; the next order is 1/N² smaller",
)
def _ddpm_to_vp(draw: Draw) -> float:
    """The chain ``x ← √(1 − β) x + √β z`` has ``ᾱ``; the process has ``s²``.

    The largest difference of noise levels, of a `DiscreteVP` made of the chain's ᾱ and of `VP`, at
    ten times, for Song's linear β and for the increments of Chen's β(t).
    """
    process = VP(beta_min=float(draw.uniform(0.05, 0.5)), beta_max=float(draw.uniform(8.0, 16.0)))
    sizes, worst = [4000, 8000], 0.0
    for increments in (False, True):
        errors = []
        for n in sizes:
            t = torch.arange(n + 1, dtype=torch.float64) / n
            rates = torch.diff(process.beta_integral(t)) if increments else process.beta(t[1:]) / n
            chain = DiscreteVP(torch.cumprod(1 - rates, 0))
            at = torch.arange(1, 11, dtype=torch.float64) / 10
            errors.append(float((chain.sigma(at) / process.sigma(at) - 1).abs().max()))
        worst = max(worst, abs(_order(errors, sizes) - 1))
    return worst


@claim(
    "smld-to-ve",
    title="SMLD tends to the VE process as 1/N",
    statement="√(σᵢ² − σᵢ₋₁²) = g(tᵢ) √Δt (1 + O(1/N)),  σᵢ = σ(tᵢ) (1 + O(1/N)), σᵢ geometric",
    sources={"song2021": "section 3.4, eq. 8 and 9, appendix B"},
    tags=("process", "discrete"),
    kind="rate",
    tolerance=0.05,
    because="slope between 4000 and 8000 levels; the next order is 1/N² smaller",
)
def _smld_to_ve(draw: Draw) -> float:
    """NCSN's levels σ_min (σ_max/σ_min)^((i−1)/(N−1)) lag behind σ(i/N); their steps behind g√Δt.

    The largest relative differences at ten of N levels, and their slopes in N.
    """
    low, high = float(draw.log_uniform(0.01, 0.1)), float(draw.uniform(10.0, 50.0))
    process, sizes = VE(sigma_min=low, sigma_max=high), [4000, 8000]
    lag: list[float] = []
    steps: list[float] = []
    for n in sizes:
        at = torch.arange(1, 11) * n // 10
        levels = torch.from_numpy(np.geomspace(low, high, n))
        t = at / n
        lag.append(float((levels[at - 1] / process.sigma(t.double()) - 1).abs().max()))
        one = torch.sqrt(levels[at - 1] ** 2 - levels[at - 2] ** 2)
        steps.append(float((one / (process.g(t.double()) / n**0.5) - 1).abs().max()))
    return max(abs(_order(lag, sizes) - 1), abs(_order(steps, sizes) - 1))


@claim(
    "shared-path",
    title="One Brownian path drives every process",
    statement="x̂ of two processes agrees at all noise levels if B(σ²) is the same path",
    sources={"sdekit": "theory, 4.1; design, section 2"},
    tags=("process", "brownian"),
    tolerance=1e-9,
    because="round-off",
)
def _shared_path(draw: Draw) -> float:
    """All processes are simulated from the same data along one path, and read at the same levels."""
    levels = torch.tensor([0.06, 0.3, 1.0, 2.5], dtype=torch.float64)
    clock, x0 = levels.numpy() ** 2, draw.normal(BATCH, 2)
    path = GridPath(clock, (BATCH, 2), seed=draw.integer(2**31))
    increments = [path.increment(a, b, x0) for a, b in pairwise(clock)]
    wanted = torch.cumsum(torch.stack([x0, *increments]), 0)
    worst = 0.0
    for process in processes().values():
        t = process.time(levels)
        scale = process.scale(t)[:, None, None]
        found = simulate(process, scale[0] * x0, t.numpy(), noise=path)
        worst = max(worst, residual(found / scale, wanted))
    return worst
