r"""
Euler and Runge-Kutta on a textbook equation
============================================

Chan's example 4.8, from Atkinson, Han & Stewart (2009, example 2.2):

.. math:: \frac{dx}{dt} = \frac{x + t^2 - 2}{t + 1}, \qquad x(0) = 2,

with the solution :math:`x = t^2 + 2t + 2 - 2(t + 1)\log(t + 1)`. (Chan's text does not give the
start; it is Atkinson's. And of its Runge-Kutta stages, :math:`k_1 = f(x_i, t_i)` is to be read
:math:`f(t_i, x_i)`.)
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import sdekit as sk


class Textbook(sk.ForwardSDE):
    """The equation, as an SDE without noise."""

    T = 6.0

    def drift(self, x, t):
        return (x + t**2 - 2) / (t + 1)

    def diffusion(self, x, t):
        return torch.zeros_like(t)

    def diffusion_divergence(self, x, t):  # else it is found by differentiation
        return torch.zeros_like(x)


def solution(t):
    """Exact solution."""
    return t**2 + 2 * t + 2 - 2 * (t + 1) * np.log(t + 1)


# %%
# Without noise the score does not matter, and the probability flow is the equation itself. The
# front door goes from :math:`T` down; so it starts from the exact :math:`x(6)`, and the error is
# that of :math:`x(0) = 2`.

flow = Textbook().probability_flow(lambda x, t: torch.zeros_like(x))
x_T = torch.tensor([[solution(6.0)]], dtype=torch.float64)
counts = np.array([8, 16, 32, 64, 128, 256])
methods = {"euler_t": 1, "heun_t": 2, "rk4_t": 4, "dopri5_t": 5}
errors = {
    name: [
        abs(float(sk.solve(flow, x_T, method=name, times=np.linspace(6, 0, n + 1)).x) - 2)
        for n in counts
    ]
    for name in methods
}
print("steps   " + "".join(f"{name:>11s}" for name in methods))
for i, n in enumerate(counts):
    print(f"{n:5d}   " + "".join(f"{errors[name][i]:11.1e}" for name in methods))
print("order   " + "".join(f"{np.log2(e[-2] / e[-1]):11.2f}" for e in errors.values()))
print("right   " + "".join(f"{order:11d}" for order in methods.values()))

# %%
# The measured order is that of the last doubling.

t = np.linspace(0, 6, 200)
colours = {"euler_t": "#0072B2", "heun_t": "#E69F00", "rk4_t": "#009E73", "dopri5_t": "#D55E00"}
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
left.plot(t, solution(t), color="black", label="exact")
for name, marker in (("euler_t", "o"), ("rk4_t", "s")):
    run = sk.solve(flow, x_T, method=name, times=np.linspace(6, 0, 9), trajectory=True)
    left.plot(
        run.grid, run.trajectory[:, 0, 0], marker, color=colours[name], label=f"{name}, 8 steps"
    )
left.set(xlabel="time t", ylabel="x", title="solved from t = 6 to 0")
left.legend()
for (name, order), marker in zip(methods.items(), "ovsD", strict=True):
    right.loglog(
        counts,
        errors[name],
        marker=marker,
        markersize=4,
        color=colours[name],
        label=f"{name}: order {order}",
    )
right.set(xlabel="steps", ylabel="error of x(0)", ylim=(1e-14, 5), title="error against steps")
right.set_xticks(counts, [str(n) for n in counts])
right.minorticks_off()
right.legend(fontsize=8)
