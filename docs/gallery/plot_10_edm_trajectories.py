r"""
Deterministic and stochastic trajectories of EDM
================================================

Khungurn's notes on Karras et al. (2022): with :math:`\sigma = t`, :math:`s = 1` and any
:math:`\beta \ge 0`,

.. math:: dx = (1 + \beta)\, \frac{x - D(x, t)}{t}\, dt + \sqrt{2\beta t}\, d\bar W

has the same marginals as the probability flow, :math:`\beta = 0` (eq. 5). Heun's method for the
flow is algorithm 2; noise raised before each step, Karras' "churn", is a solver of the equation
with :math:`\beta > 0`.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import torch

import sdekit as sk

law = sk.GaussianMixture([0.3, 0.7], [[-2.0], [2.0]], [0.04, 1.0])
process = sk.EDM(sigma_max=20)
flow = process.probability_flow(law)
n = 10_000
x_T = law.sample(n, process.sigma_max, seed=0)  # so that the start has no error
quantiles = law.quantile((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def w2(x):
    """Wasserstein distance of samples (n, 1) to the data's law."""
    return float((x[:, 0].sort().values - quantiles).square().mean().sqrt())


heun = sk.RungeKutta(sk.tableaus.HEUN)
churn = sk.Churn(heun, s_churn=10, s_min=0, s_max=80, s_noise=1)  # noise at all levels
stochastic = sk.Solver(churn, sk.Noise(), sk.grids.karras)

# %%
# How wrong they are, by the number of steps. Two evaluations a step; the defaults take one, so
# twice the steps.

counts = (5, 10, 20, 40)
rows = {
    "euler": [sk.solve(flow, x_T, method="euler", steps=2 * N).x for N in counts],
    "heun": [sk.solve(flow, x_T, method="heun", steps=N).x for N in counts],
    "default of the flow": [sk.solve(flow, x_T, steps=2 * N).x for N in counts],
    "churn": [sk.solve(flow, x_T, method=stochastic, steps=N, seed=1).x for N in counts],
    "default, reverse SDE": [
        sk.solve(process.reverse(law), x_T, steps=2 * N, seed=1).x for N in counts
    ],
}
print("W2 at NFE               " + "".join(f"{2 * N:9d}" for N in counts))
for name, row in rows.items():
    print(f"{name:24s}" + "".join(f"{w2(x):9.4f}" for x in row))
print(f"exact draws             {np.mean([w2(law.sample(n, seed=s)) for s in range(2, 10)]):9.4f}")

# %%
# The trajectories are straight at high noise, because :math:`D` hardly moves there (Khungurn,
# section 3), and each set fills the same density.

sigmas = sk.grids.karras(100, 20.0, 0.01)
paths = {
    "flow, deterministic": sk.solve(flow, x_T[:16], method="heun", sigmas=sigmas, trajectory=True),
    "reverse SDE, β = 1": sk.solve(
        process.reverse(law),
        x_T[:16],
        method="euler_maruyama",
        sigmas=sigmas,
        seed=3,
        trajectory=True,
    ),
}
x = torch.linspace(-12, 12, 400, dtype=torch.float64)[:, None]
density = np.stack([(p := law.log_prob(x, s).exp()) / p.max() for s in sigmas])
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.1), sharey=True)
for panel, (title, path) in zip(axes, paths.items(), strict=True):
    panel.pcolormesh(
        sigmas, x[:, 0].numpy(), density.T, cmap="Blues", shading="gouraud", rasterized=True
    )
    panel.plot(path.grid, path.trajectory[..., 0], color="#D55E00", linewidth=0.7)
    panel.set(xlabel="noise level σ = t", title=title, xlim=(10, 0), ylim=(-12, 12))
    panel.grid(False)
axes[0].set_ylabel("x")

# %%
# A misprint in algorithms 3 and 4
# --------------------------------
#
# Eq. (5) has :math:`\dot s/s + (1 + \beta)\, \dot\sigma/\sigma` before :math:`x`; the algorithms
# have :math:`\dot\sigma/\sigma + (1 + \beta)\, \dot s/s`, with the factor at the wrong term (and a
# noise without its :math:`s`). With :math:`s = 1` they step along :math:`(x - (1 + \beta) D)/t`,
# which is :math:`-\beta x/t` at low noise, where :math:`D \approx x`: the state grows like
# :math:`t^{-\beta}`.


def algorithm_3(beta, *, printed):
    """Euler-Maruyama of eq. (5) on a grid of 200 levels."""
    generator, x = torch.manual_seed(4), x_T
    levels = sk.grids.karras(200, 20.0, 0.002)
    for t, after in itertools.pairwise(levels):
        z = torch.randn(n, 1, generator=generator, dtype=torch.float64)
        d = (x if printed else (1 + beta) * x) - (1 + beta) * law(x, t)
        x = x + (after - t) * d / t + np.sqrt(2 * beta * t * (t - after)) * z
    return x


for name, printed in (("as printed", True), ("corrected", False)):
    x = algorithm_3(1.0, printed=printed)
    print(f"algorithm 3 {name:10s}: mean {x.mean():6.3f}, W2 = {w2(x):.3f}")
print(f"truth                 : mean {law.moments()[0].item():6.3f}")

# %%
# And Khungurn doubts that Karras' algorithm 2 solves eq. (5), for the noise is scaled by
# :math:`\sqrt{\hat t^2 - t^2}` and seems to shorten the deterministic step. It lengthens it: the
# noise is raised to :math:`\hat t = (1 + \gamma)t`, and the flow then runs from there. With
# :math:`\gamma t = \beta\, \Delta t` the noise has the variance
# :math:`2\gamma t^2 = 2\beta t\, \Delta t` to first order, and the extra piece of the flow is
# :math:`\beta\, \Delta t\, (D - x)/t`: both terms of eq. (5). In the table it comes down near
# the sampling error, with ``s_noise=1``; the paper's 1.003 widens on purpose.
