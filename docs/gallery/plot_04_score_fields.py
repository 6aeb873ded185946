r"""
Score fields at several noise levels
====================================

The score :math:`\nabla \log p_\sigma(x)` of data blurred by noise (Chan, section 3.2, example 3.5;
Kim, figures 5, 9 and 11) points to the data. At low noise it is known well only where the data are,
and at high noise it points to their mean. By Tweedie's formula it is the denoiser:

.. math:: \nabla \log p_\sigma(x) = \frac{D(x, \sigma) - x}{\sigma^2},
          \qquad D(x, \sigma) = E[x_0 \mid x].
"""

import matplotlib.pyplot as plt
import torch

import sdekit as sk

law = sk.GaussianMixture(
    weights=[0.5, 0.3, 0.2],
    means=[[-2.0, -1.0], [2.0, -1.0], [0.5, 2.0]],
    covs=[[[0.2, 0.1], [0.1, 0.4]], [[0.3, 0.0], [0.0, 0.1]], [[0.5, -0.2], [-0.2, 0.2]]],
)


def grid(n):
    """Points of a square, (n, n, 2)."""
    axis = torch.linspace(-4, 4, n, dtype=torch.float64)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)


fine, coarse = grid(121), grid(17)
figure, axes = plt.subplots(1, 4, figsize=(9.2, 2.6), sharex=True, sharey=True)
for panel, sigma in zip(axes, (0.1, 0.5, 1.5, 5.0), strict=True):
    density = law.log_prob(fine.reshape(-1, 2), sigma).exp().reshape(121, 121)
    panel.contourf(fine[..., 0], fine[..., 1], density, levels=12, cmap="Blues")
    score = law.score(coarse.reshape(-1, 2), sigma).reshape(17, 17, 2)
    # Arrows of one length: the size is in the title.
    unit = score / score.norm(dim=-1, keepdim=True)
    panel.quiver(*coarse.unbind(-1), *unit.unbind(-1), color="#D55E00", scale=22, width=0.006)
    size = score.square().sum(-1).mean().sqrt()
    panel.set(title=f"σ = {sigma:g}: RMS size {size:.2g}", xlabel="x₁", aspect="equal")
    panel.grid(False)
axes[0].set_ylabel("x₂")

# %%
# How wrong are they? The closed form is compared with automatic differentiation of the log-density,
# and with Tweedie's formula in single precision, which is what a solver with a network works with.
# At low noise the difference :math:`D - x` cancels, and its round-off is divided by
# :math:`\sigma^2`.

print("   σ    against autograd   Tweedie in float64   in float32")
for sigma in (1e-3, 0.01, 0.1, 1.0, 10.0, 100.0):
    x = law.sample(2000, sigma, seed=0).requires_grad_()
    (truth,) = torch.autograd.grad(law.log_prob(x, sigma).sum(), x)
    x = x.detach()
    size = truth.square().mean().sqrt()
    errors = [law.score(x, sigma) - truth]
    for dtype in (torch.float64, torch.float32):
        y = x.to(dtype)
        errors.append((law(y, sigma) - y) / sigma**2 - law.score(y.double(), sigma))
    relative = [float(error.square().mean().sqrt() / size) for error in errors]
    print(f"{sigma:6.3g}   {relative[0]:14.1e}   {relative[1]:18.1e}   {relative[2]:10.1e}")

# %%
# A misprint in Kim's notes
# -------------------------
#
# Section 2.3 writes the score of two modes as
# :math:`\nabla(\log\pi + \log(1 - \pi) + \log p_1 + \log p_2) = \nabla(\log p_1 + \log p_2)`. The
# logarithm of a sum is not that; right is
# :math:`\nabla \log p = r_1 \nabla \log p_1 + r_2 \nabla \log p_2` with the shares
# :math:`r_1 = \pi p_1/p`, :math:`r_2 = 1 - r_1`. Where the modes are far apart, one share is 1, and
# *this* is why the weights do not show in the score (Song & Ermon 2019, section 3.2.2).

first, second = sk.Gaussian([-2.0], 0.25), sk.Gaussian([2.0], 0.25)
both = sk.GaussianMixture([0.2, 0.8], [[-2.0], [2.0]], [0.25, 0.25])
x = both.sample(10_000, seed=0)
share = 0.2 * (first.log_prob(x) - both.log_prob(x)).exp()[:, None]
truth = both.score(x, 0.0)
printed = first.score(x, 0.0) + second.score(x, 0.0)
right = share * first.score(x, 0.0) + (1 - share) * second.score(x, 0.0)
size = truth.square().mean().sqrt()
for name, value in (("as printed", printed), ("with shares", right)):
    print(f"{name}: relative error {(value - truth).square().mean().sqrt() / size:.1e}")
other = sk.GaussianMixture([0.8, 0.2], [[-2.0], [2.0]], [0.25, 0.25])
change = (other.score(x, 0.0) - truth).square().mean().sqrt() / size
print(f"weights 0.2, 0.8 exchanged: the score changes by {change:.1e}")
