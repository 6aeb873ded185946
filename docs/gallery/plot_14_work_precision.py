r"""
Error against work
==================

Which method gives the smallest error for a number of network evaluations? On a mixture of Gaussians
the flow is known as exactly as a solver of order 8 can tell, so all of the error is the method's.
:doc:`/choosing` has the same on twelve laws, a trained network and the samplers of other packages.
"""

import matplotlib.pyplot as plt
import numpy as np

import sdekit as sk

law = sk.GaussianMixture.random(components=8, dim=8, seed=0)
process = sk.EDM()
flow = process.probability_flow(law)
x_T = law.sample(32, process.sigma_max, seed=1)
ends = [process.sigma_max, process.sigma_min]
reference = sk.solve(flow, x_T, method="dop853_theta", rtol=1e-12, sigmas=ends).x
check = sk.solve(flow, x_T, rtol=1e-11, sigmas=ends).x


def rms(x):
    """Root mean square."""
    return float(x.square().mean().sqrt())


print(
    f"two references differ by {rms(reference - check):.1e}; spread of the data {law.sigma_data:.2f}"
)

# %%
# Fixed steps, each method on its own default grid (``"euler"`` is DDIM on that of Karras et al.):

budgets = (6, 10, 20, 40, 80, 160)
names = ("bayesian_adams", "unipc_bh2_3", "dpmpp_2m", "euler", "heun", "rk4_theta")
errors = {}
print("RMS error, NFE ≤  " + "".join(f"{nfe:9d}" for nfe in budgets))
for name in names:
    cost = sk.methods()[name].solver.scheme.nfe_per_step
    grid = [nfe // cost for nfe in budgets]
    runs = [sk.solve(flow, x_T, method=name, steps=steps) for steps in grid]
    errors[name] = [(run.nfe, rms(run.x - reference)) for run in runs]
    print(f"{name:18s}" + "".join(f"{error:9.1e}" for _, error in errors[name]))

# %%
# To a tolerance: the error should be about the tolerance, whatever it is.

print("tolerance  " + "".join(f"{rtol:9.0e}" for rtol in (1e-2, 1e-4, 1e-6, 1e-8)))
for name in ("variable_adams", "dopri5_theta"):
    runs = [
        sk.solve(flow, x_T, method=name, rtol=rtol, sigmas=ends)
        for rtol in (1e-2, 1e-4, 1e-6, 1e-8)
    ]
    errors[name] = [
        (float(run.stats.nfe_per_sample.mean()), rms(run.x - reference)) for run in runs
    ]
    print(f"{name}: error".ljust(24) + "".join(f"{error:9.1e}" for _, error in errors[name]))
    print("NFE".rjust(22) + "  " + "".join(f"{nfe:9.0f}" for nfe, _ in errors[name]))

# %%
# The picture has both: solid, fixed steps; dashed, adaptive.

figure, axes = plt.subplots(figsize=(6.6, 3.8))
for (name, points), marker in zip(errors.items(), "os^vDPXh", strict=True):
    style = {"marker": marker, "markersize": 4, "label": name}
    if name in ("variable_adams", "dopri5_theta"):
        style |= {"linestyle": "dashed"}
    if name == "dopri5_theta":
        style |= {"color": "#8a8a8a"}
    axes.loglog(*np.transpose(points), **style)
axes.set(xlabel="network evaluations per sample (NFE)", ylabel="RMS error of the final state")
ticks = [6, 10, 20, 40, 80, 160]
axes.set_xticks(ticks, [str(n) for n in ticks])
axes.minorticks_off()
axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
