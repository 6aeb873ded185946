r"""
Brownian motion and the heat equation
=====================================

Brownian motion :math:`dx = \sqrt{2k}\, dW` from a point is spread by the heat equation,

.. math:: \partial_t p = k\, \partial_x^2 p, \qquad
          p(x, t) = \frac{1}{\sqrt{4\pi k t}} \exp\Bigl(-\frac{x^2}{4kt}\Bigr)

(Chan, theorem 5.4, eqs. 148-151, with :math:`q = 2k`). In the unscaled state *every* affine
diffusion model is this motion, on the clock :math:`\sigma^2 = 2kt`.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch

import sdekit as sk

k = 0.5
brownian = sk.AffineSDE(
    scale=lambda t: torch.ones_like(t), sigma=lambda t: torch.sqrt(2 * k * t), T=4.0
)
times = np.linspace(0, 4, 401)
paths = sk.simulate(brownian, torch.zeros(20_000, 1, dtype=torch.float64), times, seed=0)[..., 0]

# %%
# Without a method ``simulate`` draws from the exact transition, so the only error is that of a
# finite sample. The Wasserstein distance :math:`W_2` to the heat kernel is measured between sorted
# samples and quantiles, and compared with the distance of as many independent draws.

delta = sk.Gaussian([0.0], 0.0)  # a point; at level sigma it is the heat kernel
levels = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def w2(x, sigma):
    """Wasserstein distance of samples (n,) to the law at a noise level."""
    return float((x.sort().values - delta.quantile(levels, sigma)).square().mean().sqrt())


print("   t   variance   2kt   W2 of paths   W2 of independent draws")
for t in (0.5, 1.0, 2.0, 4.0):
    x, sigma = paths[round(100 * t)], math.sqrt(2 * k * t)
    drawn = delta.sample(20_000, sigma, seed=1)[:, 0]
    found, floor = w2(x, sigma), w2(drawn, sigma)
    print(f"{t:4.1f}   {x.var():8.4f}   {2 * k * t:3.1f}   {found:11.4f}   {floor:23.4f}")

x = torch.linspace(-7, 7, 400, dtype=torch.float64)[:, None]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.1), sharey=True, width_ratios=(2, 1))
left.plot(times, paths[:, :40], color="#0072B2", alpha=0.35, linewidth=0.6)
for sign in (-2, 2):
    left.plot(times, sign * np.sqrt(2 * k * times), color="black", linestyle="dashed")
left.set(xlabel="time t", ylabel="x", ylim=(-7, 7), title="40 paths, and two standard deviations")
for t, colour in ((0.5, "#0072B2"), (4.0, "#D55E00")):
    counts, edges = np.histogram(paths[round(100 * t)], bins=60, range=(-7, 7), density=True)
    right.stairs(counts, edges, orientation="horizontal", color=colour, alpha=0.35, fill=True)
    density = delta.log_prob(x, math.sqrt(2 * k * t)).exp()
    right.plot(density, x, color=colour, label=f"t = {t:g}")
right.set(xlabel="density", title="histograms, heat kernel")
right.legend()

# %%
# The same for data
# -----------------
#
# Started from data instead of a point, the density is the data blurred:
# :math:`p(\cdot, t) = p_0 * N(0, 2kt)`. That it solves the heat equation is checked on a mixture,
# whose density, score :math:`s` and divergence of the score are known:
# :math:`\partial_x^2 p = p\,(s^2 + \partial_x s)`, and the derivative in time is automatic.

law = sk.GaussianMixture([0.3, 0.7], [[-2.0], [2.0]], [0.04, 1.0])
points = torch.linspace(-5, 5, 101, dtype=torch.float64)[:, None]
t = torch.full((101,), 0.7, dtype=torch.float64, requires_grad=True)
sigma = torch.sqrt(2 * k * t)
p = law.log_prob(points, sigma).exp()
(rate,) = torch.autograd.grad(p.sum(), t)
curvature = p * (law.score(points, sigma)[:, 0] ** 2 + law.score_divergence(points, sigma))
residual = (rate - k * curvature).abs().max() / rate.abs().max()
print(f"largest residual of the heat equation, relative: {residual:.1e}")

# %%
# Chan's eqs. (171)-(174) take noise of correlation :math:`2\delta(t - t')`, so that
# :math:`\dot\xi = \sigma\Gamma` gives :math:`\sigma^2 \partial_x^2 p` (example 5.5) where
# :math:`dx = \sigma\, dW` gives half of it: both are right, each in its convention.
