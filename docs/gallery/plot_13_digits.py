r"""
Handwritten digits
==================

``sk.load_digits_denoiser()`` is a small network trained on scikit-learn's handwritten digits. Its
score is not known in closed form, but what a solver makes of it can be judged all the same: against
a fine solution from the same noise.
"""

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import torch

import sdekit as sk

process = sk.EDM()
labels = torch.arange(10).repeat(2)
network = sk.Conditioned(sk.load_digits_denoiser(dtype=torch.float64), class_labels=labels)
flow = process.probability_flow(network)
noise = process.prior_sample((20, 1, 8, 8), seed=0, dtype=torch.float64)

# %%
# Two fine solutions by different methods say how well the reference is known.

reference = sk.solve(flow, noise, method="adams4", steps=240).x
other = sk.solve(flow, noise, method="rk4_theta", steps=40).x


def rms(x):
    """Root mean square."""
    return float(x.square().mean().sqrt())


print(
    f"the references differ by {rms(reference - other):.1e}; spread of the pixels {reference.std():.2f}"
)

# %%
# Errors by network evaluations, each method on its own default grid (``"euler"`` is DDIM on that of
# Karras et al.):

budgets = (6, 10, 20, 40)
names = ("bayesian_adams", "adams2", "dpmpp_2m", "euler", "heun")
errors, samples = {}, {}
print("RMS error at NFE   " + "".join(f"{nfe:9d}" for nfe in budgets))
for name in names:
    cost = sk.methods()[name].solver.scheme.nfe_per_step
    solutions = [sk.solve(flow, noise, method=name, steps=nfe // cost) for nfe in budgets]
    samples[name] = [solution.x for solution in solutions]
    errors[name] = [rms(x - reference) for x in samples[name]]
    print(f"{name:19s}" + "".join(f"{error:9.1e}" for error in errors[name]))

figure, axes = plt.subplots(figsize=(5.4, 3.3))
for (name, row), marker in zip(errors.items(), "os^vD", strict=True):
    axes.loglog(budgets, row, marker=marker, markersize=4, label=name)
axes.set(xlabel="network evaluations (NFE)", ylabel="RMS error of the pixels")
axes.set_xticks(budgets, [str(nfe) for nfe in budgets])
axes.minorticks_off()
axes.legend(fontsize=8)

# %%
# One row per method and budget, with its error; the same noise in each column. To the eye, six
# evaluations of the default are the reference already, and the pixels that Heun's method leaves
# grey are an error of 0.24.

rows = [
    ("reference", reference, 0.0),
    ("bayesian_adams, 6", samples["bayesian_adams"][0], errors["bayesian_adams"][0]),
    ("bayesian_adams, 10", samples["bayesian_adams"][1], errors["bayesian_adams"][1]),
    ("euler, 10", samples["euler"][1], errors["euler"][1]),
    ("heun, 10", samples["heun"][1], errors["heun"][1]),
    ("heun, 20", samples["heun"][2], errors["heun"][2]),
]
figure, axes = plt.subplots(len(rows), 10, figsize=(7.6, 4.4))
for line, (name, x, error) in zip(axes, rows, strict=True):
    for panel, image in zip(line, x[:10], strict=True):
        panel.imshow(image[0].numpy(), cmap="gray_r", vmin=-1, vmax=1)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
        panel.grid(False)
    text = f"{name}\n{error:.2g}" if error else name
    line[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
