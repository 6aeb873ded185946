r"""
Ornstein-Uhlenbeck relaxing to equilibrium
==========================================

The forward process of DDPM with a constant rate is
:math:`dx = -\tfrac\beta2 x\, dt + \sqrt\beta\, dW`. Its law forgets where it began and tends to
:math:`N(0, 1)` (Chan, theorem 5.3 with :math:`\gamma = \beta/2`, :math:`q = \beta`; example 5.3):

.. math:: m(t) = m_0 e^{-\beta t/2}, \qquad v(t) = 1 + (v_0 - 1)\, e^{-\beta t}.
"""

import math

import matplotlib.pyplot as plt
import numpy as np

import sdekit as sk

beta, m0, v0 = 2.0, 3.0, 0.04
process = sk.VP(beta_min=beta, beta_max=beta, T=4.0)
start = sk.Gaussian([m0], v0)
x0 = start.sample(20_000, seed=0)

# %%
# The exact transition has no error at any step. Euler-Maruyama with a step :math:`h` multiplies by
# :math:`1 - \beta h/2` and adds variance :math:`\beta h`, so its own equilibrium is
# :math:`v = 1/(1 - \beta h/4)`: too wide, by :math:`O(h)`.

print("variance at t = 4")
print("   h   Euler-Maruyama   1/(1 - βh/4)   exact transition   truth")
finals = {}
for steps in (5, 10, 20, 40):
    times = np.linspace(0, 4, steps + 1)
    euler = sk.simulate(process, x0, times, method="euler_maruyama_t", seed=1)
    exact = sk.simulate(process, x0, times, seed=1)
    h, truth = 4 / steps, 1 + (v0 - 1) * math.exp(-4 * beta)
    finals[h] = float(euler[-1].var())
    print(
        f"{h:4.1f}   {finals[h]:14.3f}   {1 / (1 - beta * h / 4):12.3f}"
        f"   {exact[-1].var():16.3f}   {truth:5.3f}"
    )
print(f"sampling error of a variance from 20000 samples: {math.sqrt(2 / 20_000):.3f}")

# %%
# The pictures: paths of the exact transition with the exact mean and two standard deviations, and
# Euler's variance against its step.

times = np.linspace(0, 4, 201)
paths = sk.simulate(process, x0[:40], times, seed=2)[..., 0]
mean, std = (
    m0 * np.exp(-beta * times / 2),
    np.sqrt(1 + (v0 - 1) * np.exp(-beta * times)),
)
figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.1), width_ratios=(2, 1))
left.plot(times, paths, color="#0072B2", alpha=0.35, linewidth=0.6)
left.plot(times, mean, color="black", label="exact mean")
left.plot(times, mean - 2 * std, color="black", linestyle="dashed", label="± 2 standard deviations")
left.plot(times, mean + 2 * std, color="black", linestyle="dashed")
left.set(xlabel="time t", ylabel="x", title="forgetting where it began")
left.legend()
h = np.linspace(0, 0.85, 100)
right.plot(h, 1 / (1 - beta * h / 4), color="#D55E00", label="1/(1 − βh/4)")
right.plot(list(finals), list(finals.values()), "o", color="#0072B2", label="Euler, 20 000 paths")
right.axhline(1, color="black", linestyle="dashed", label="truth")
right.set(xlabel="step h", ylabel="variance in equilibrium", title="the bias of Euler-Maruyama")
right.legend()
