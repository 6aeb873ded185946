r"""
The probability flow carries quantiles
======================================

In one dimension the paths of the flow :math:`d\hat x/d\sigma = (\hat x - D)/\sigma` never cross, so
each keeps its quantile: :math:`F_\sigma(\hat x(\sigma))` does not change along a path. That is the
exact solution of a nonlinear flow, and what solvers are measured against here: ``law.flow`` maps by
conserving the distribution function. Data: Chan's example 2.1,
:math:`0.3\,N(-2, 0.2^2) + 0.7\,N(2, 1)`.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import sdekit as sk

law = sk.GaussianMixture([0.3, 0.7], [[-2.0], [2.0]], [0.04, 1.0])
process = sk.EDM(sigma_min=0.01, sigma_max=20)
flow = process.probability_flow(law)
levels = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
x_T = law.quantile(levels, process.sigma_max)[:, None]


def cdf(x, sigma):
    """Distribution function of the blurred law."""
    std = torch.tensor([0.04, 1.0], dtype=torch.float64).add(sigma**2).sqrt()
    return torch.special.ndtr((x - torch.tensor([-2.0, 2.0])) / std) @ law.weights


# %%
# How far the solvers are from the exact map, and how far a path drifts from its quantile.

exact = law.flow(x_T, process.sigma_max, process.sigma_min)
names = ("euler", "heun", "rk4", "adams3", "bayesian_adams")
print("           " + "".join(f"{name:>16s}" for name in names))
for nfe in (10, 20, 40, 80, 160):
    row, drift = [], []
    for name in names:
        steps = nfe // sk.methods()[name].solver.scheme.nfe_per_step
        x = sk.solve(flow, x_T, method=name, steps=steps).x
        row.append(float((x - exact).square().mean().sqrt()))
        drift.append(float((cdf(x, process.sigma_min) - levels).abs().max()))
    print(f"NFE {nfe:3d}: x " + "".join(f"{error:16.1e}" for error in row))
    print("         F " + "".join(f"{error:16.1e}" for error in drift))

# %%
# The default, ``bayesian_adams``, loses to ``adams3`` in the state up to 20 evaluations, and wins
# beyond. The paths, over the density divided by its maximum at each level:

sigmas = np.geomspace(20, 0.01, 200)
x = torch.linspace(-6, 6, 300, dtype=torch.float64)[:, None]
density = torch.stack([(p := law.log_prob(x, s).exp()) / p.max() for s in sigmas])
run = sk.solve(flow, x_T, rtol=1e-8, sigmas=sigmas, trajectory=True)
figure, axes = plt.subplots(figsize=(6.5, 3.4))
axes.pcolormesh(
    sigmas, x[:, 0].numpy(), density.T.numpy(), cmap="Blues", shading="gouraud", rasterized=True
)
axes.plot(sigmas, run.trajectory[:, ::3, 0], color="#D55E00", linewidth=0.7)
axes.set(xscale="log", xlabel="noise level σ", ylabel="x", ylim=(-6, 6))
axes.set_title("every third of 49 quantiles; none crosses another")
axes.invert_xaxis()
axes.grid(False)
