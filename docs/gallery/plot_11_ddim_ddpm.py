r"""
DDIM against DDPM at few steps
==============================

Both step down a schedule :math:`\bar\alpha_i` with a network that predicts the noise
:math:`\hat\varepsilon`. DDPM (Ho et al. 2020; Cho, algorithm 2) draws new noise in every step, and
wants all of them; DDIM (Song et al. 2021; Cho, section 2.4) is Euler's method for the probability
flow in noise coordinates, and gets by with few. Here with Ho et al.'s schedule of 1000 levels and
the exact network of a mixture.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import sdekit as sk

betas = np.linspace(1e-4, 0.02, 1000)
process = sk.DiscreteVP(np.cumprod(1 - betas))
law = sk.GaussianMixture([0.3, 0.7], [[-0.8], [0.6]], [0.01, 0.3])
n = 5000
noise = process.prior_sample((n, 1), seed=0, dtype=torch.float64)
quantiles = law.quantile((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def w2(x):
    """Wasserstein distance of samples (n, 1) to the data's law."""
    return float((x[:, 0].sort().values - quantiles).square().mean().sqrt())


counts = [5, 10, 20, 50, 100]
flow, reverse = process.probability_flow(law), process.reverse(law)
rows = {
    "ddim": [sk.solve(flow, noise, method="ddim", steps=N).x for N in counts],
    "ddpm": [sk.solve(reverse, noise, method="ddpm", steps=N, seed=1).x for N in counts],
    "default, flow": [sk.solve(flow, noise, steps=N).x for N in counts],
    "default, reverse SDE": [sk.solve(reverse, noise, steps=N, seed=1).x for N in counts],
}
floor = np.mean([w2(law.sample(n, seed=seed)) for seed in range(2, 10)])
print("W2 at NFE            " + "".join(f"{N:8d}" for N in counts))
for name, row in rows.items():
    print(f"{name:21s}" + "".join(f"{w2(x):8.3f}" for x in row))
print(f"exact draws          {floor:8.3f}")

# %%
# :math:`W_2` ends at the sampling error. Of a deterministic method the error of every single sample
# can be had, against the exact map, which conserves the distribution function; and it goes on
# falling, by the method's order.

start, end = process.sigma_max, process.sigma_min
s_T, s_0 = (float(process.on_host("scale", process.on_host("time", s))) for s in (start, end))
exact = s_0 * law.flow(noise / s_T, start, end)
print("RMS error at NFE     " + "".join(f"{N:8d}" for N in counts))
for name in ("ddim", "default, flow"):
    values = [(x - exact).square().mean().sqrt() for x in rows[name]]
    print(f"{name:21s}" + "".join(f"{value:8.1e}" for value in values))

figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.1))
for (name, row), marker in zip(rows.items(), "osv^", strict=True):
    left.loglog(counts, [w2(x) for x in row], marker=marker, markersize=4, label=name)
left.axhline(floor, color="black", linestyle="dashed", label="exact draws")
left.set(xlabel="network evaluations (NFE)", ylabel="W₂ to the data's law")
left.set_xticks(counts, [str(N) for N in counts])
left.minorticks_off()
left.legend(fontsize=8)
x = torch.linspace(-2, 3, 400, dtype=torch.float64)[:, None]
for name, colour in (("ddim", "#0072B2"), ("ddpm", "#E69F00")):
    bins, edges = np.histogram(rows[name][1], bins=80, range=(-2, 3), density=True)
    right.stairs(bins, edges, color=colour, label=name)
right.plot(x[:, 0], law.log_prob(x).exp(), color="black", linestyle="dashed", label="truth")
right.set(xlabel="x", ylabel="density", title="10 steps")
right.legend(fontsize=8)

# %%
# What a bar matters
# ------------------
#
# The ancestral step divides the noise by :math:`\sqrt{1 - \bar\alpha_t}` (Cho, the formula of
# :math:`\mu_\theta` before algorithm 2). In line 7 of the algorithm there is no bar, in the copy
# that we have; it may have been lost when the file was converted. All 1000 steps, with and without:


def algorithm_2(*, bar):
    """Ancestral sampling with the exact network, of variance β."""
    generator, x = torch.manual_seed(3), noise[:2000]
    bars = np.cumprod(1 - betas)
    for i in range(999, -1, -1):
        sigma = np.sqrt((1 - bars[i]) / bars[i])
        x_hat = x / np.sqrt(bars[i])
        epsilon = (x_hat - law(x_hat, float(sigma))) / sigma
        root = np.sqrt(1 - bars[i] if bar else betas[i])
        x = (x - betas[i] / root * epsilon) / np.sqrt(1 - betas[i])
        if i > 0:
            z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = x + np.sqrt(betas[i]) * z
    return x


mean, variance = law.moments()
for name, bar in (("without bar", False), ("with bar", True)):
    x = algorithm_2(bar=bar)
    print(f"algorithm 2 {name:11s}: mean {x.mean():7.3f}, variance {x.var():7.3f}")
print(f"truth                  : mean {mean.item():7.3f}, variance {variance.item():7.3f}")
