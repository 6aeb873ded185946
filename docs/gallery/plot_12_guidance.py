r"""
Guided and conditional sampling
===============================

A mixture whose components have classes gives a class-conditional denoiser and a classifier in
closed form (``sk.distributions.LabelledMixture``), and a mixture given a noisy linear observation
is a mixture again (``sk.distributions.posterior``). So what guidance aims at is known, and what it
samples can be compared with it. More in :doc:`/guidance`.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import sdekit as sk

mixture = sk.GaussianMixture(
    [0.3, 0.2, 0.3, 0.2],
    [[-1.0, 1.0], [1.0, 1.5], [1.0, -1.0], [-1.5, -1.0]],
    [[0.3, 0.3], [0.2, 0.1], [0.3, 0.2], [0.1, 0.3]],
)
law = sk.distributions.LabelledMixture(mixture, [0, 0, 1, 1])
process = sk.EDM()
n = 3000


def sliced_w2(a, b):
    """Sliced Wasserstein distance of equally many points, over 32 directions."""
    angle = torch.arange(32, dtype=torch.float64) * np.pi / 32
    directions = torch.stack([angle.cos(), angle.sin()])
    return float(
        ((a @ directions).sort(0).values - (b @ directions).sort(0).values).square().mean().sqrt()
    )


# %%
# Classifier-free guidance (Ho & Salimans 2022) replaces the denoiser by
# :math:`D_u + w\,(D_c - D_u)`. At :math:`w = 1` that is the conditional one, and the samples follow
# the class's law. Beyond, they are pushed further than :math:`p(x)\, p(c \mid x)^w`, which they are
# often said to follow: in the second column the mean of that law, by quadrature.

label = torch.zeros(n, dtype=torch.long)
axis = torch.linspace(-6, 6, 401, dtype=torch.float64)
points = torch.cartesian_prod(axis, axis)
log_p = mixture.log_prob(points)
log_class = law.class_log_prob(points, 0.0)[:, 0]
exact = law.given(0).sample(n, seed=1)
samples = {}
print("  w   mean of x₂   tilted law   std of x₂   tilted law   W2 to the class   floor")
for w in (1.0, 2.0, 4.0):
    guided = sk.ClassifierFree(
        law,
        w,
        conditional={"class_labels": label},
        unconditional={"class_labels": torch.full((n,), 2)},
    )
    x = sk.sample(process, guided, (n, 2), steps=40, seed=2, dtype=torch.float64)
    samples[w] = x
    weights = (log_p + w * log_class).softmax(0)
    mean = weights @ points[:, 1]
    std = (weights @ (points[:, 1] - mean) ** 2).sqrt()
    floor = sliced_w2(law.given(0).sample(n, seed=3), exact)
    print(
        f"{w:3g}   {x[:, 1].mean():10.3f}   {mean:10.3f}   {x[:, 1].std():9.3f}   {std:10.3f}"
        f"   {sliced_w2(x, exact):15.3f}   {floor:5.3f}"
    )

# %%
# Observations
# ------------
#
# The second coordinate is observed, with noise 0.1. The posterior's own denoiser is the exact
# field; PiGDM (Song et al. 2023) approximates it with the denoiser of the prior, and sampling error
# aside all of the difference is the model's, not the solver's: more steps do not help.

A, y, noise = torch.tensor([[0.0, 1.0]], dtype=torch.float64), torch.tensor([0.8]), 0.1
posterior = sk.distributions.posterior(mixture, A, y, noise)
observation = sk.LinearObservation(A, y.double().expand(n, 1), noise)
truth = posterior.sample(n, seed=4)
fields = {"exact field": posterior, "PiGDM": sk.PiGDM(mixture, observation)}
mean, cov = posterior.moments()
print("               steps    mean of x₁   std of x₁   sliced W2")
for name, field in fields.items():
    for steps in (10, 20, 40):
        x = sk.sample(process, field, (n, 2), steps=steps, seed=5, dtype=torch.float64)
        mean_std = f"{x[:, 0].mean():11.3f}   {x[:, 0].std():9.3f}"
        print(f"{name:14s} {steps:5d}   {mean_std}   {sliced_w2(x, truth):9.3f}")
    samples[name] = x
floor = sliced_w2(posterior.sample(n, seed=6), truth)
print(f"truth                  {mean[0]:11.3f}   {cov[0, 0].sqrt():9.3f}   {floor:9.3f} (floor)")

# %%
# The contours are the laws aimed at: the class's, :math:`p(x)\,p(c \mid x)^4`, and the posterior,
# twice.

axis = torch.linspace(-3.5, 3.5, 150, dtype=torch.float64)
grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(-1, 2)
figure, axes = plt.subplots(1, 4, figsize=(9.2, 2.3), sharex=True, sharey=True)
tilted = mixture.log_prob(grid) + 4 * law.class_log_prob(grid, 0.0)[:, 0]
panels = [
    ("class 0: w = 1", samples[1.0], law.given(0).log_prob(grid)),
    ("class 0: w = 4", samples[4.0], tilted),
    ("x₂ observed: exact field", samples["exact field"], posterior.log_prob(grid)),
    ("x₂ observed: PiGDM", samples["PiGDM"], posterior.log_prob(grid)),
]
for panel, (title, x, log_prob) in zip(axes, panels, strict=True):
    density = log_prob.exp().reshape(150, 150)
    panel.scatter(*x[:1500].T, s=2, color="#D55E00", alpha=0.35, linewidths=0)
    levels = float(density.max()) * np.array([0.02, 0.1, 0.3, 0.6, 0.9])
    panel.contour(axis, axis, density, levels=levels, colors="black", linewidths=0.6)
    panel.set(title=title, xlabel="x₁", xlim=(-3.2, 3.2), ylim=(-1.2, 3.4), aspect="equal")
axes[0].set_ylabel("x₂; contours: the aim")
