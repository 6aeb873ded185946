r"""
Annealed Langevin dynamics finds the weights of modes
=====================================================

Kim's figure 6, after Song & Ermon (2019, figure 3): exact draws, Langevin dynamics and annealed
Langevin dynamics on :math:`0.2\,N((-5, -5), I) + 0.8\,N((5, 5), I)`, all with the exact score.
Langevin keeps the weights of its start; annealed by falling noise levels,

.. math:: \hat x \leftarrow \hat x + \alpha_i \nabla \log p_{\sigma_i}(\hat x) + \sqrt{2\alpha_i}\, z,
          \qquad \alpha_i = \varepsilon \sigma_i^2 / \sigma_L^2,

the modes are one at first, and part with about the right weights. (Song & Ermon's
:math:`\varepsilon` is twice this one.)
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import sdekit as sk

law = sk.GaussianMixture([0.2, 0.8], [[-5.0, -5.0], [5.0, 5.0]], 1.0)
n = 1500
exact = law.sample(n, seed=0)
start = 16 * torch.rand(n, 2, dtype=torch.float64, generator=torch.manual_seed(1)) - 8
plain = sk.langevin(lambda x: law.score(x, 0.0), start, step_size=0.05, steps=600, seed=2).x

# %%
# The levels go from 60, where the law is almost one Gaussian, to 0.1. ``AnnealedLangevin`` runs as
# a method of the reverse SDE in the unscaled state; the probability flow starts from the same
# noise.

levels = np.geomspace(60, 0.1, 14)
process = sk.EDM(sigma_min=0.1, sigma_max=60)
noise = process.prior_sample((n, 2), seed=3, dtype=torch.float64)


def annealed(epsilon, steps):
    """Run annealed Langevin dynamics from pure noise."""
    method = sk.Solver(sk.AnnealedLangevin(epsilon, steps), sk.Noise(), sk.grids.log)
    return sk.solve(process.reverse(law), noise, method=method, sigmas=levels, seed=4)


def report(name, x, nfe):
    """Print weight, mean and standard deviation of the small mode."""
    small = x[x.sum(1) < 0]
    weight = len(small) / len(x)
    print(f"{name:40s} {nfe:>5} {weight:8.3f} {small.mean():8.3f} {small.std(0).mean():8.3f}")


print("                                           NFE   weight     mean      std")
report("exact draws", exact, "–")
report("Langevin, ε = 0.05", plain, 600)
found = {}
for epsilon, steps in ((5e-4, 5), (5e-4, 50), (2e-3, 50)):
    solution = annealed(epsilon, steps)
    found[epsilon, steps] = solution.x
    report(f"annealed, ε = {epsilon:g}, {steps} steps a level", solution.x, solution.nfe)
flow = sk.solve(process.probability_flow(law), noise, steps=20)
report("probability flow", flow.x, flow.nfe)
print(f"truth                                            {0.2:8.3f} {-5:8.3f} {1:8.3f}")
print(f"sampling error of the weight: {np.sqrt(0.16 / n):.3f}")

# %%
# Plain Langevin has half of its chains in either mode, as its start had. Annealing takes hundreds
# of evaluations: with few, or small, steps it does not follow the levels down. The flow takes a
# thirtieth of the evaluations; what it lacks is in its start: noise around 0, where the law at σ =
# 60 is around (3, 3), 0.07 standard deviations away, or 0.02 in the weight.

figure, axes = plt.subplots(1, 4, figsize=(9.2, 2.7), sharex=True, sharey=True)
panels = [
    ("exact draws", exact),
    ("Langevin", plain),
    ("annealed: 5 steps a level", found[5e-4, 5]),
    ("annealed: 50 steps a level", found[2e-3, 50]),
]
for panel, (title, x) in zip(axes, panels, strict=True):
    panel.scatter(*x.T, s=2, color="#0072B2", alpha=0.4, linewidths=0)
    weight = float((x.sum(1) < 0).double().mean())
    panel.set(title=title, xlabel="x₁", xlim=(-9, 9), ylim=(-9, 9), aspect="equal")
    panel.text(-8.5, -1.3, f"weight {weight:.2f}", fontsize=8)
axes[0].set_ylabel("x₂")
