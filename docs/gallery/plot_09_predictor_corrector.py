r"""
Predictor-corrector sampling
============================

After each step of a reverse-time solver, a few Langevin steps at the level where it has arrived
pull the samples back to the law that they should have there (Song et al. 2021, algorithm 1; Chan,
section 4.4, algorithm 1):

.. math:: x \leftarrow x + \epsilon\, \nabla \log p_{i-1}(x) + \sqrt{2\epsilon}\, z.

Corrections cost evaluations, as steps do. What do they buy?
"""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import torch

import sdekit as sk

law = sk.GaussianMixture([0.3, 0.7], [[-0.5], [0.5]], [0.01, 0.5])  # a peak on a hill
process = sk.VP()
n = 5000
noise = process.prior_sample((n, 1), seed=0, dtype=torch.float64)
quantiles = law.quantile((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def w2(x):
    """Wasserstein distance of samples (n, 1) to the data's law."""
    return float((x[:, 0].sort().values - quantiles).square().mean().sqrt())


def solve(corrections, nfe):
    """Run Euler-Maruyama with corrections after each step."""
    scheme = sk.EulerMaruyama()
    if corrections:
        scheme = sk.PredictorCorrector(scheme, sk.AnnealedCorrector(0.1, steps=corrections))
    method = sk.Solver(scheme, sk.Native(), sk.grids.uniform_t)
    return sk.solve(
        process.reverse(law), noise, method=method, steps=nfe // (1 + corrections), seed=1
    )


budgets = [12, 24, 48, 96]
errors = {m: [w2(solve(m, nfe).x) for nfe in budgets] for m in (0, 1, 2, 5)}
errors["default"] = [
    w2(sk.solve(process.reverse(law), noise, steps=nfe, seed=1).x) for nfe in budgets
]
floor = float(np.mean([w2(law.sample(n, seed=seed)) for seed in range(2, 10)]))
print("W2 at NFE             " + "".join(f"{nfe:8d}" for nfe in budgets))
for m, row in errors.items():
    name = f"corrections a step: {m}" if isinstance(m, int) else "default, without any"
    print(f"{name:22s}" + "".join(f"{error:8.3f}" for error in row))
print(f"exact draws           {floor:8.3f}")

figure, axes = plt.subplots(figsize=(5.4, 3.3))
for (m, row), marker in zip(errors.items(), "osv^D", strict=True):
    label = f"Euler, corrections: {m}" if isinstance(m, int) else "default method"
    axes.loglog(budgets, row, marker=marker, markersize=4, label=label)
axes.axhline(floor, color="black", linestyle="dashed", label="exact draws")
axes.set(xlabel="network evaluations (NFE)", ylabel="W₂ to the data's law")
axes.set_xticks(budgets, [str(nfe) for nfe in budgets])
axes.minorticks_off()
axes.legend(fontsize=8)

# %%
# Below 0.03 the table shows the luck of the draw. Above, corrections do not pay for themselves
# here: the same evaluations spent on steps of the predictor do better, and those of a better method
# better still.

# %%
# The size of the step
# --------------------
#
# Song et al. choose :math:`\epsilon` by a signal-to-noise ratio, from the norms of noise and score.
# In :math:`d` dimensions that step depends on its own noise, and the variance it settles at is too
# large by :math:`(1 + 2/d)^2` (for small ratios), which images do not notice; in one dimension,
# where the score vanishes at the mode, the step is not even bounded. The corrector above has
# :math:`\epsilon \propto \sigma^2` instead.

print("     d   corrector: by ratio   ε ∝ σ²   data   (1 + 2/d)²")
for d in (4, 16, 64):
    data = sk.Gaussian(torch.zeros(d), 1.0)
    start = process.prior_sample((16_000 // d, d), seed=3, dtype=torch.float64)
    variances = []
    for corrector in (sk.LangevinCorrector(0.1, steps=4), sk.AnnealedCorrector(0.1, steps=4)):
        scheme = sk.PredictorCorrector(sk.EulerMaruyama(), corrector)
        method = sk.Solver(scheme, sk.Native(), sk.grids.uniform_t)
        variances.append(
            sk.solve(process.reverse(data), start, method=method, steps=50, seed=4).x.var()
        )
    print(f"{d:6d}   {variances[0]:19.3f}   {variances[1]:6.3f}   1.000   {(1 + 2 / d) ** 2:10.3f}")

# %%
# Chan's algorithm 1, as printed
# ------------------------------
#
# Its correction reads :math:`x_{i-1} = x_i + \epsilon_i s(x_i, i) + \sqrt{2\epsilon_i} z_i`: from
# :math:`x_i` again, at its level, so the prediction is overwritten, and what is left is annealed
# Langevin of one step a level, which lags behind. **Right is** to correct the prediction,
# :math:`x_{i-1} \leftarrow x_{i-1} + \epsilon\, s(x_{i-1}, i - 1) + \sqrt{2\epsilon} z`. The
# predictor has :math:`\tfrac12\beta_i s` for :math:`\beta_i s` besides (see :doc:`plot_06_ddpm`),
# and the loop begins at :math:`N - 1` where :math:`x_N` is given. In the lines for SMLD that
# follow, :math:`\epsilon \nabla_x s + \sqrt\epsilon z` should be
# :math:`\epsilon s + \sqrt{2\epsilon} z`.


def score(x, t):
    """Exact score of the scaled state."""
    t = torch.tensor(t, dtype=torch.float64)
    s = process.scale(t)
    return law.score(x / s, process.sigma(t)) / s


def algorithm(*, printed):
    """Algorithm 1 with 96 steps and one correction of ε = 0.1 σ² s² each."""
    generator, x = torch.manual_seed(5), noise
    times = np.linspace(1, 0.001, 97)
    for t, after in itertools.pairwise(times):
        b = process.on_host("sigma", t) ** 2, process.on_host("sigma", after) ** 2
        beta = 1 - float((1 + b[1]) / (1 + b[0]))
        first, second = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
        share = 0.5 if printed else 1.0
        predicted = (x + share * beta * score(x, t)) / math.sqrt(1 - beta) + math.sqrt(beta) * first
        at, state = (t, x) if printed else (after, predicted)
        epsilon = 0.1 * float(process.on_host("std", at)) ** 2
        x = state + epsilon * score(state, at) + math.sqrt(2 * epsilon) * second
    return x


for name, printed in (("as printed", True), ("corrected", False)):
    x = algorithm(printed=printed)
    print(f"algorithm 1 {name}: W2 = {w2(x):.3f}, variance {x.var():.2f}")
print(f"truth: variance {law.moments()[1].item():.2f}")
