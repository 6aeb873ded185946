r"""
Forward and reverse DDPM in one dimension
=========================================

Chan's examples 4.6 and 4.7: data :math:`\tfrac12 N(3, 1) + \tfrac12 N(-3, 1)` and the chain

.. math:: x_i = \sqrt{1 - \beta_i}\, x_{i-1} + \sqrt{\beta_i}\, z, \qquad \beta_i = 0.05,

here of 100 steps. It is the VP process :math:`dx = -\tfrac12\beta x\, dt + \sqrt\beta\, dW` with
:math:`\beta = -100 \log 0.95`, seen at the times :math:`i/100`, exactly.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch

import sdekit as sk

law = sk.GaussianMixture([0.5, 0.5], [[3.0], [-3.0]], 1.0)
N, n = 100, 20_000
rate = -N * math.log(0.95)
process = sk.VP(beta_min=rate, beta_max=rate)
times = np.linspace(0, 1, N + 1)
forward = sk.simulate(process, law.sample(n, seed=0), times, seed=1)

# %%
# Backward, eq. (124) is
# :math:`dx = -\beta\,[\tfrac12 x + \nabla \log p_t]\, dt + \sqrt\beta\, d\bar W`. Its
# discretisation (125), which example 4.7 and algorithm 1 use, is printed with
# :math:`\tfrac12\beta_i \nabla \log p_i`. **Right is** :math:`\beta_i \nabla \log p_i`, as in the
# lines before it, in Chen's eq. (98), and in Ho et al. (2020, algorithm 2):
#
# .. math:: x_{i-1} = \frac{1}{\sqrt{1 - \beta_i}}
#           \bigl[x_i + \beta_i \nabla \log p_i(x_i)\bigr] + \sqrt{\beta_i}\, z_i.


def score(x, t):
    """Exact score of the scaled state."""
    s = process.scale(torch.tensor(t, dtype=torch.float64))
    sigma = process.sigma(torch.tensor(t, dtype=torch.float64))
    return law.score(x / s, sigma) / s


def recursion(x, factor, beta=0.05):
    """Run eq. (125) with a factor before the score; the last step adds no noise (Ho et al.)."""
    generator = torch.manual_seed(3)
    states = [x]
    for t in times[:0:-1]:
        x = (x + factor * beta * score(x, t)) / math.sqrt(1 - beta)
        if t > 1.5 / N:
            x = x + math.sqrt(beta) * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        states.append(x)
    return torch.stack(states)


noise = process.prior_sample((n, 1), seed=2, dtype=torch.float64)
printed, right = recursion(noise, 0.5), recursion(noise, 1.0)

# %%
# The same by the package: ``"ddpm"`` is Ho et al.'s algorithm, on the same times and here with the
# same noise. Then the reverse SDE by its default method with a fifth of the steps, and the flow
# with a tenth.

grid = times[::-1]
backward = process.reverse(law)
ddpm = sk.solve(backward, noise, method="ddpm", times=grid, seed=3)
default = sk.solve(backward, noise, steps=20, seed=3)
flow = sk.solve(process.probability_flow(law), noise, steps=10)

levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
quantiles = law.quantile(levels)


def report(name, x, nfe):
    """Print how far samples are from the data's law."""
    w2 = (x[:, 0].sort().values - quantiles).square().mean().sqrt()
    inner = (x.abs() - 3).square().mean()
    print(f"{name:30s} {nfe:>4} {x.var():9.3f} {inner:16.3f} {w2:9.3f}")


print("                                NFE  variance  E (|x| − 3)²        W2")
report("eq. (125) as printed", printed[-1], 100)
report("eq. (125), corrected", right[-1], 100)
report('"ddpm"', ddpm.x, ddpm.nfe)
report("default of the reverse SDE", default.x, default.nfe)
report("default of the flow", flow.x, flow.nfe)
report("exact draws", law.sample(n, seed=5), "–")
print(f'the corrected recursion and "ddpm" differ by {(ddpm.x - right[-1]).abs().max():.1e}')

# %%
# As printed the drift has half of the score and the diffusion is whole: too little pull, and twice
# the variance. The other four are as near to the law as exact draws are.

x = torch.linspace(-7, 7, 300, dtype=torch.float64)[:, None]
scales, sigmas = process.on_host("scale", times), process.on_host("sigma", times)
density = np.stack(
    [law.log_prob(x / s, sigma).exp() / s for s, sigma in zip(scales, sigmas, strict=True)]
)
figure, axes = plt.subplots(1, 3, figsize=(9, 2.9), width_ratios=(1.3, 1.3, 1))
for panel, t, paths, title in (
    (axes[0], times, forward, "forward, over the exact density"),
    (axes[1], grid, right, "reverse, corrected"),
):
    panel.pcolormesh(
        times, x[:, 0].numpy(), density.T, cmap="Blues", shading="gouraud", rasterized=True
    )
    panel.plot(t, paths[:, :12, 0], color="#D55E00", linewidth=0.6)
    panel.set(xlabel="time t", ylabel="x", ylim=(-7, 7), title=title)
    panel.grid(False)
axes[1].invert_xaxis()
for samples, colour, label in (
    (printed, "#D55E00", "as printed"),
    (right, "#0072B2", "corrected"),
):
    counts, edges = np.histogram(samples[-1], bins=96, range=(-12, 12), density=True)
    axes[2].stairs(counts, edges, color=colour, label=label)
axes[2].plot(x[:, 0], law.log_prob(x).exp(), color="black", linestyle="dashed", label="truth")
axes[2].set(xlabel="x", ylabel="density", ylim=(0, 0.28), title="where they end")
axes[2].legend(fontsize=8, loc="upper center", ncols=2, columnspacing=1)
