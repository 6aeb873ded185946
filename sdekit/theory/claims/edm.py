"""EDM: an ODE and an SDE for every s(t) and σ(t), its samplers and its grid."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ... import eta as etas
from ... import grids
from ...affine import AffineSDE
from ...coordinates import Native, Noise
from ...distributions import GaussianMixture
from ...processes import EDM, VE
from ...sampling import solve
from ...sde import expand
from ...solvers import tableaus
from ...solvers.noisy import Churn
from ...solvers.registry import Solver
from ...solvers.rk import RungeKutta
from ...solvers.stochastic import EulerMaruyama
from ..calculus import gradient, residual
from ..claim import claim
from ..draw import Draw
from ..noises import Recorded

BATCH = 6
ROUND_OFF = "round-off"


def schedule(process: AffineSDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``s``, ``σ`` and, by automatic differentiation, ``ṡ`` and ``σ̇``, each ``(B,)``."""
    rates = gradient(process.scale, t).detach(), gradient(process.sigma, t).detach()
    return process.scale(t), process.sigma(t), *rates


def plain(law: GaussianMixture, x: Tensor, sigma: Tensor) -> Tensor:
    """Denoise by a function that has no other face, as networks have none."""
    return law(x, sigma)


def slope(process: AffineSDE, law: GaussianMixture, x: Tensor, t: Tensor, beta: float) -> Tensor:
    """Drift of Khungurn's eq. 5, which is his eq. 2 and Karras's ODE for ``β = 0``."""
    s, sigma, ds, dsigma = (expand(v, x) for v in schedule(process, t))
    back = (1 + beta) * dsigma / sigma
    return (ds / s + back) * x - back * s * law(x / s, sigma.flatten())


def two_times(process: AffineSDE, draw: Draw) -> tuple[Tensor, np.ndarray]:
    """Draw a step: its times, falling, as a tensor and on the host."""
    t = draw.times(process, 2).sort(descending=True).values
    return t, t.numpy()


@claim(
    "edm-f-and-g",
    title="f and g from s and σ",
    statement="f = ṡ/s,  g = s √(2 σ σ̇)",
    sources={"khungurn": "section 2.3", "edm": "appendix B.2"},
    tags=("edm", "process", "forward"),
    tolerance=1e-10,
    because="round-off of first derivatives",
    over="process",
)
def _f_and_g(process: AffineSDE, draw: Draw) -> float:
    """The kernel N(s x0, s²σ²I) and the SDE dx = f x dt + g dW are one process.

    ṡ and σ̇ come by automatic differentiation from the process's scale and sigma, and are compared
    with its own drift and diffusion coefficients.
    """
    t = draw.times(process, BATCH)
    s, sigma, ds, dsigma = schedule(process, t)
    # Relative to rates in general, as f may vanish.
    f = residual(process.f(t) * s, ds, process.scale(t) / t)
    return max(f, residual(process.g(t), s * torch.sqrt(2 * sigma * dsigma)))


@claim(
    "edm-kernel-variance",
    title="Mean and variance of the kernel by integrals of f and g",
    statement="E[x_t | x_r] = x_r exp ∫_r^t f,  v = s_t² ∫_r^t g²/s² du solves v̇ = 2 f v + g²",
    sources={"khungurn": "proposition 2", "edm": "appendix B.1"},
    tags=("edm", "process", "linear"),
    tolerance=1e-9,
    because="round-off; Gauss–Legendre quadrature of 16 nodes on pieces on which f and g are smooth",
    over="process",
)
def _kernel_variance(process: AffineSDE, draw: Draw) -> float:
    """An affine SDE has a Gaussian kernel whose moments are integrals of its coefficients.

    Those of the process's own f and g, by quadrature, are compared with its transition law.
    """
    times, ends = two_times(process, draw)
    late, early = float(ends[0]), float(ends[1])
    # Between knots of an interpolated schedule f and g are smooth; there are some for any schedule.
    knots = np.linspace(0.0, 1.0, len(getattr(process, "alphas_cumprod", range(24))) + 1)
    inside = knots[(knots > early) & (knots < late)] if process.T <= 1 else np.array([])
    pieces = np.linspace(early, late, 25)
    edges = torch.from_numpy(np.unique(np.concatenate([inside, pieces])))
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(16))
    half = (edges[1:] - edges[:-1])[:, None] / 2
    u = (edges[:-1, None] + half * (1 + nodes)).reshape(-1)
    w = (half * weights).reshape(-1)
    s, v = process.scale(u), process.g(u) ** 2 / process.scale(u) ** 2
    mean, std = process.transition(draw.normal(1, 2) + 3, times[1], times[0])
    start = mean / (process.scale(times[0]) / process.scale(times[1]))
    ratio = torch.exp((w * process.f(u)).sum())
    variance = process.scale(times[0]) ** 2 * (w * v).sum()
    return max(residual(mean, ratio * start), residual(std**2, variance), float(not s.all()))


@claim(
    "edm-ode",
    title="EDM's probability flow",
    statement="dx/dt = (ṡ/s) x − s² σ̇ σ ∇ₓ log p(x/s; σ)",
    sources={"edm": "eq. 1, eq. 4", "khungurn": "eq. 1"},
    tags=("edm", "flow", "score"),
    tolerance=1e-10,
    because="round-off of first derivatives",
    over="process",
)
def _ode(process: AffineSDE, draw: Draw) -> float:
    """The flow f x − ½ g² ∇ log p_t with f and g in terms of s and σ.

    The gradient of log p(x/s; σ) with respect to x is taken by automatic differentiation of the
    mixture's log-density, so that it holds the factor 1/s of the chain rule.
    """
    law, t = draw.mixture(), draw.times(process, BATCH)
    x = draw.states(process, law, t)
    s, sigma, ds, dsigma = schedule(process, t)
    score = gradient(lambda y: law.log_prob(y / expand(s, y), sigma), x).detach()
    pull = expand(ds / s, x) * x, expand(s**2 * sigma * dsigma, x) * score
    return residual(process.probability_flow(law)(t, x), pull[0] - pull[1], *pull)


@claim(
    "edm-ode-denoiser",
    title="The probability flow by a denoiser",
    statement="dx/dt = (ṡ/s + σ̇/σ) x − s (σ̇/σ) D(x/s, σ)",
    sources={"khungurn": "eq. 2", "edm": "algorithm 1, line 4"},
    tags=("edm", "flow"),
    tolerance=1e-10,
    because="round-off of first derivatives",
    over="process",
)
def _ode_denoiser(process: AffineSDE, draw: Draw) -> float:
    """Tweedie's formula in EDM's ODE.

    The flow of a denoiser that says nothing of its score, as a network, is compared with the
    formula.
    """
    law, t = draw.mixture(), draw.times(process, BATCH)
    x = draw.states(process, law, t)
    flow = process.probability_flow(lambda y, level: plain(law, y, level))
    return residual(flow(t, x), slope(process, law, x, t, 0.0), x / expand(t, x))


@claim(
    "edm-sde",
    title="EDM's SDE for every s and σ",
    statement="dx = [(ṡ/s + (1+β)σ̇/σ) x − (1+β) s (σ̇/σ) D] dt + s √(2βσσ̇) dW̄,  β = η²",
    sources={"khungurn": "eq. 5"},
    tags=("edm", "reverse"),
    tolerance=1e-10,
    because="round-off of first derivatives",
    over="process",
)
def _sde(process: AffineSDE, draw: Draw) -> float:
    """The backward family with f and g in terms of s and σ, for a random β.

    Drift and diffusion of the reverse SDE are compared with the formula, once with a law that knows
    its score and once with a mere denoiser.
    """
    law, t = draw.mixture(), draw.times(process, BATCH)
    x, beta = draw.states(process, law, t), float(draw.uniform(0.1, 3.0))
    s, sigma, _, dsigma = schedule(process, t)
    drift, size = slope(process, law, x, t, beta), s * torch.sqrt(2 * beta * sigma * dsigma)
    found = []
    for model in (law, lambda y, level: plain(law, y, level)):
        reverse = process.reverse(model, math.sqrt(beta))
        found += [residual(reverse.f(t, x), drift, x / expand(t, x))]
        found += [residual(reverse.g(t, x), expand(size, x).expand(x.shape))]
    return max(found)


@claim(
    "edm-sde-rate",
    title="EDM's rate of replacing noise",
    statement="dx = −σ̇σ ∇log p dt − βσ² ∇log p dt + √(2β) σ dW̄ for s = 1, with η² = β σ/σ̇",
    sources={"edm": "eq. 6", "khungurn": "eq. 6"},
    tags=("edm", "reverse"),
    tolerance=1e-10,
    because="round-off of first derivatives",
)
def _sde_rate(draw: Draw) -> float:
    """Karras's β(t) is a rate: the share of the noise that is replaced per unit of time.

    The reverse SDEs of VE and of EDM, with η from `sdekit.eta.from_beta`, are compared with eq. 6.
    """
    found = []
    for process in (VE(), EDM()):
        law, t = draw.mixture(), draw.times(process, 1)
        x, beta = draw.states(process, law, t), float(draw.uniform(0.1, 3.0))
        _, sigma, _, dsigma = schedule(process, t)
        eta = float(etas.from_beta(beta, sigma.numpy(), dsigma.numpy())[0])
        reverse, score = process.reverse(law, eta), law.score(x, sigma)
        drift = -(sigma * dsigma + beta * sigma**2) * score
        found += [residual(reverse.f(t, x), drift)]
        found += [residual(reverse.g(t, x), (math.sqrt(2 * beta) * sigma).expand(x.shape))]
        back = float(etas.to_beta(eta, sigma.numpy(), dsigma.numpy())[0])
        found += [abs(back / beta - 1)]
    return max(found)


@claim(
    "edm-algorithm-1",
    title="EDM's Euler and Heun steps",
    statement="x' = x + (t'−t) d,  then x' = x + ½ (t'−t) (d + d'),  d = (σ̇/σ + ṡ/s) x − s (σ̇/σ) D",
    sources={"khungurn": "algorithms 1 and 2", "edm": "algorithm 1"},
    tags=("edm", "solvers"),
    tolerance=1e-10,
    because="round-off",
    over="process",
)
def _algorithm_1(process: AffineSDE, draw: Draw) -> float:
    """One step of the registered method `heun_t`, in the process's own time; Euler's is its stage.

    It is compared with the algorithm written out.
    """
    law, (t, times) = draw.mixture(), two_times(process, draw)
    now, then = t[:1].expand(BATCH), t[1:].expand(BATCH)
    x, step = draw.states(process, law, now), t[1] - t[0]
    first = slope(process, law, x, now, 0.0)
    euler = x + step * first
    heun = x + step * (first + slope(process, law, euler, then, 0.0)) / 2
    return residual(solve(process.probability_flow(law), x, method="heun_t", times=times).x, heun)


@claim(
    "edm-euler-maruyama",
    title="Euler–Maruyama step of EDM's SDE",
    statement="x' = x + (t'−t) [(ṡ/s + (1+β)σ̇/σ) x − (1+β) s (σ̇/σ) D] + s √(2βσσ̇) √|t'−t| ξ",
    sources={"khungurn": "algorithm 3, corrected"},
    tags=("edm", "solvers", "reverse"),
    tolerance=1e-10,
    because="round-off",
    over="process",
)
def _euler_maruyama(process: AffineSDE, draw: Draw) -> float:
    """One step of Euler–Maruyama in the process's own time, with given normal numbers.

    It is compared with the formula, whose coefficients are evaluated where the step begins.
    """
    law, (t, times) = draw.mixture(), two_times(process, draw)
    now, beta = t[:1].expand(BATCH), float(draw.uniform(0.1, 3.0))
    x = draw.states(process, law, now)
    s, sigma, _, dsigma = schedule(process, now)
    size, z = s * torch.sqrt(2 * beta * sigma * dsigma * (t[0] - t[1])), draw.normal(*x.shape)
    right = x + (t[1] - t[0]) * slope(process, law, x, now, beta) + expand(size, x) * z
    solver = Solver(EulerMaruyama(), Native(), grids.uniform_t)
    reverse = process.reverse(law, math.sqrt(beta))
    found = solve(reverse, x, method=solver, times=times, noise=Recorded([z])).x
    return residual(found, right, x)


@claim(
    "edm-algorithm-2",
    title="EDM's stochastic sampler",
    statement="t̂ = t + γt,  x̂ = x + √(t̂² − t²) S_noise ξ,  Heun from t̂ to t';  γ ≤ √2−1",
    sources={"edm": "algorithm 2"},
    tags=("edm", "solvers"),
    tolerance=1e-12,
    because="round-off",
)
def _algorithm_2(draw: Draw) -> float:
    """Four steps with given normal numbers, the last of them to t = 0, are written out.

    S_max leaves out the first step, and S_min none or the last; S_churn is below and above the cap.
    """
    law, s_noise = draw.mixture(), float(draw.uniform(0.9, 1.1))
    start = law.sample(BATCH, 5.0, seed=draw.integer(2**31))
    grid, s_max, found = [5.0, 2.0, 0.6, 0.3, 0.0], 3.0, []
    for s_churn, s_min in ((float(draw.uniform(0.5, 1.6)), 0.1), (2.0, 0.5)):
        x, numbers = start, [draw.normal(*start.shape) for _ in range(4)]
        gamma, spent = min(s_churn / 4, math.sqrt(2) - 1), iter(numbers)
        for t, t_next in pairwise(grid):
            hat = t
            if s_min <= t <= s_max:
                hat = t + gamma * t
                x = x + math.sqrt(hat**2 - t**2) * s_noise * next(spent)
            d = (x - law(x, hat)) / hat
            euler = x + (t_next - hat) * d
            d_next = (euler - law(euler, t_next)) / t_next if t_next else d
            x = x + (t_next - hat) * (d + d_next) / 2
        scheme = Churn(
            RungeKutta(tableaus.HEUN), s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise
        )
        solver, noise = Solver(scheme, Noise(), grids.karras), Recorded(numbers)
        flow = EDM().probability_flow(law)
        found.append(residual(solve(flow, start, method=solver, sigmas=grid, noise=noise).x, x))
    return max(found)


@claim(
    "edm-grid",
    title="EDM's grid",
    statement="σᵢ = (σ_max^(1/ρ) + i/(N−1) (σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ,  i < N",
    sources={"edm": "eq. 5", "khungurn": "section 3"},
    tags=("edm", "solvers"),
    tolerance=1e-12,
    because="round-off",
)
def _grid(draw: Draw) -> float:
    """The grid is uniform in σ^(1/ρ); a step to σ = 0 comes after its N levels.

    `sdekit.grids.karras` is compared with the formula, for random ranges and ρ.
    """
    n, rho = 2 + draw.integer(20), float(draw.uniform(1.0, 10.0))
    low, high = float(draw.log_uniform(1e-3, 0.1)), float(draw.log_uniform(1.0, 100.0))
    share = np.arange(n + 1) / n
    wanted = (high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return float(np.abs(grids.karras(n, high, low, rho=rho) / wanted - 1).max())


@claim(
    "edm-denoise-step",
    title="A step to σ = 0 is the denoiser",
    statement="dx/dt = (x − D(x, t))/t, and an Euler step of it from t to 0 gives D(x, t)",
    sources={"edm": "section 3", "khungurn": "section 3"},
    tags=("edm", "flow", "solvers"),
    tolerance=1e-12,
    because="round-off",
)
def _denoise_step(draw: Draw) -> float:
    """For σ = t and s = 1 the tangent of a trajectory points to what the denoiser says.

    The flow of `EDM`, and one step of `edm_euler` to σ = 0, are compared with it.
    """
    law, t = draw.mixture(), float(draw.levels())
    x = law.sample(BATCH, t, seed=draw.integer(2**31))
    flow, denoised = EDM().probability_flow(law), law(x, t)
    last = solve(flow, x, method="edm_euler", sigmas=[t, 0.0]).x
    return max(residual(flow(t, x), (x - denoised) / t, x / t), residual(last, denoised))
