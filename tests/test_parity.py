"""The peers of the benchmark do what their names say, and sdekit's namesakes do the same.

The oracles here are written from the papers, on noise levels and NumPy arrays only: they share no
code with the peers or with sdekit.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.bench.problems import SIGMA_MAX, SIGMA_MIN, rms

pytest.importorskip("diffusers")
pytest.importorskip("azula")

from sdekit.bench.peers import AZULA_GRIDS, DIFFUSERS_GRIDS, PEERS

DIFFUSERS = [name for name, peer in PEERS.items() if peer.package == "diffusers"]
AZULA = [name for name, peer in PEERS.items() if peer.package == "azula"]
GRID = sk.grids.karras(18, SIGMA_MAX, SIGMA_MIN)


@pytest.fixture(scope="module")
def start(gaussian):
    return gaussian.sample(4, SIGMA_MAX, seed=0)


def run(name, denoiser, x, grid, steps=None):
    """Final state of a peer; its count of evaluations is checked against our own."""
    seen = []

    def counted(x, sigma):
        seen.append(float(sigma))
        return denoiser(x, sigma)

    steps = len(grid) - 1 if steps is None else steps
    final, nfe = PEERS[name].run(counted, x, grid, steps)
    assert nfe == len(seen) == steps * PEERS[name].nfe_per_step
    assert final.dtype == x.dtype
    assert type(final) is torch.Tensor
    return final, np.array(seen)


# ---- the adapters ----


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_converges_to_the_exact_flow(name, product):
    x = product.sample(16, SIGMA_MAX, seed=0)
    exact = product.flow(x, SIGMA_MAX, SIGMA_MIN)
    grid = {"diffusers": "exponential", "azula": "VE"}[PEERS[name].package]
    coarse, fine = (
        rms(run(name, product, x, grid, nfe // PEERS[name].nfe_per_step)[0] - exact)
        for nfe in (36, 90)
    )
    assert fine < 0.7 * coarse
    assert fine < (0.15 if "REAB" in name else 0.05)


@pytest.mark.parametrize("grid", [*DIFFUSERS_GRIDS, *AZULA_GRIDS])
def test_a_shipped_grid_spans_the_range_and_the_network_is_seen_on_it(grid, gaussian, start):
    name = "diffusers EulerDiscrete" if grid in DIFFUSERS_GRIDS else "azula zAB 1"
    final, seen = run(name, gaussian, start, grid, steps=300)
    assert seen[0] == pytest.approx(SIGMA_MAX, rel=1e-14)
    assert (np.diff(seen) < 0).all()
    assert seen[-1] > SIGMA_MIN
    # Both walked the grid to its end: the same as along its levels, given explicitly.
    levels = np.append(seen, SIGMA_MIN)
    torch.testing.assert_close(final, run(name, gaussian, start, levels)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", PEERS)
def test_the_network_is_evaluated_at_the_levels_of_the_grid(name, gaussian, start):
    seen = run(name, gaussian, start, GRID)[1]
    if PEERS[name].nfe_per_step == 1:
        expected = GRID[:-1]
    elif "KDPM2" in name:
        expected = np.stack([GRID[:-1], np.sqrt(GRID[:-1] * GRID[1:])], axis=1).ravel()
    else:
        expected = np.stack([GRID[:-1], GRID[1:]], axis=1).ravel()
    # Not to the bit: azula and flow matching divide by the signal's scale. A float32 would be 1e-8 off.
    np.testing.assert_allclose(seen, expected, rtol=1e-14)


def test_a_peer_refuses_a_grid_that_it_does_not_ship(gaussian, start):
    with pytest.raises(ValueError, match="azula ships no grid 'karras'"):
        PEERS["azula vAB 2"].run(gaussian, start, "karras", 4)
    with pytest.raises(ValueError, match="n_steps = 4, but the grid has 19 noise levels"):
        PEERS["azula vAB 2"].run(gaussian, start, GRID, 4)


def test_a_hidden_evaluation_is_noticed(gaussian, start, monkeypatch):
    from azula.sample import EulerSampler, HeunSampler

    monkeypatch.setattr(EulerSampler, "step", HeunSampler.step)
    with pytest.raises(RuntimeError, match="called the network 36 times in 18 steps of 1"):
        PEERS["azula Euler"].run(gaussian, start, GRID, 18)


# ---- the peers against the formulas of the papers ----


def lagrange_integrals(nodes, a, b, weight):
    """Integrals of weight times each Lagrange basis polynomial, by Gauss–Legendre."""
    z, w = np.polynomial.legendre.leggauss(40)
    tau = 0.5 * (a + b) + 0.5 * (b - a) * z
    w = 0.5 * (b - a) * w * weight(tau)
    integrals = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        integrals.append(np.sum(w * np.prod((tau[:, None] - others) / (node - others), axis=1)))
    return integrals


# Scale h(σ) of u = x̂/h, time τ(σ), what is extrapolated, and the weight: du/dτ = w(τ) N.
COORDINATES = {
    "noise": (lambda s: 1, lambda s: s, lambda x, d, s: (x - d) / s, np.ones_like),
    "velocity": (
        lambda s: 1 + s,
        lambda s: s / (1 + s),
        lambda x, d, s: (x - d) / s - d,
        np.ones_like,
    ),
    "log noise": (
        lambda s: 1,
        lambda s: -np.log(s),
        lambda x, d, s: (x - d) / s,
        lambda lam: -np.exp(-lam),
    ),
    "log data": (lambda s: s, lambda s: -np.log(s), lambda x, d, s: d, np.exp),
}


def adams(coordinates, order, denoise, x, sigmas):
    """Adams–Bashforth of variable step, its order ramped up from 1."""
    h, tau, field, weight = COORDINATES[coordinates]
    past, times = [], []
    for s, t in pairwise(sigmas):
        past, times = [*past, field(x, denoise(x, s), s)][-order:], [*times, tau(s)][-order:]
        b = lagrange_integrals(np.array(times), tau(s), tau(t), weight)
        x = h(t) * (x / h(s) + sum(bj * nj for bj, nj in zip(b, past, strict=True)))
    return x


def heun(coordinates, denoise, x, sigmas):
    h, tau, field, _ = COORDINATES[coordinates]
    for s, t in pairwise(sigmas):
        step = tau(t) - tau(s)
        slope = field(x, denoise(x, s), s)
        y = h(t) * (x / h(s) + step * slope)
        x = h(t) * (x / h(s) + 0.5 * step * (slope + field(y, denoise(y, t), t)))
    return x


def ipndm(denoise, x, sigmas):
    """Adams–Bashforth with the weights of equal steps, Zhang & Chen 2023, appendix H.2."""
    weights = (
        [1],
        [3 / 2, -1 / 2],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    )
    past = []
    for s, t in pairwise(sigmas):
        past = [(x - denoise(x, s)) / s, *past][:4]
        x = x + (t - s) * sum(b * e for b, e in zip(weights[len(past) - 1], past, strict=True))
    return x


def dpm2(denoise, x, sigmas):
    for s, t in pairwise(sigmas):
        mid = math.sqrt(s * t)
        y = x + (mid - s) * (x - denoise(x, s)) / s
        x = x + (t - s) * (y - denoise(y, mid)) / mid
    return x


def dpmpp(order, denoise, x, sigmas, *, second):
    """DPM-Solver++(2M), Lu et al. 2022b, alg. 2, and its third order.

    The second derivative is twice the second divided difference. The shipped codes omit the 2, and
    so are of order 2: ``second`` is what they take instead.
    """
    lam, d = -np.log(sigmas), []
    for n in range(len(sigmas) - 1):
        d.append(denoise(x, sigmas[n]))
        h = lam[n + 1] - lam[n]
        phi = -math.expm1(-h)
        change = phi * d[n]
        if n >= 1:
            r0 = (lam[n] - lam[n - 1]) / h
            first0 = (d[n] - d[n - 1]) / r0
        if n >= 1 and (order == 2 or n == 1):
            change = change + 0.5 * phi * first0
        elif n >= 2:
            r1 = (lam[n - 1] - lam[n - 2]) / h
            first1 = (d[n - 1] - d[n - 2]) / r1
            slope = first0 + r0 / (r0 + r1) * (first0 - first1)
            curvature = second * (first0 - first1) / (r0 + r1)
            phi2 = 1 - phi / h
            change = change + phi2 * slope - (phi2 / h - 0.5) * curvature
        x = sigmas[n + 1] / sigmas[n] * x + change
    return x


def singlestep(order, data, denoise, x, sigmas):
    """DPM-Solver and DPM-Solver++ of one step, its stages at points of the grid, as diffusers has it.

    In the paper (Lu et al. 2022a, alg. 2) the second of three stages has the weight of the last.
    """
    for n in range(0, len(sigmas) - 1, order):
        s, values, y = sigmas[n], [], x
        for k in range(order):
            d = denoise(y, sigmas[n + k])
            values.append(d if data else (y - d) / sigmas[n + k])
            t = sigmas[n + k + 1]
            h = math.log(s / t)
            first = math.expm1(-h) if data else t * math.expm1(h)
            y = (t / s if data else 1) * x - first * values[0]
            if k == 0:
                continue
            r = math.log(s / sigmas[n + k]) / h
            difference = (values[k] - values[0]) / r
            if k == 1:
                y = y - 0.5 * first * difference
            else:
                y = y + ((first / h + 1) if data else (t - first / h)) * difference
        x = y
    return x


dpmpp_2m = partial(dpmpp, 2, second=None)
dpmpp_3m_as_shipped = partial(dpmpp, 3, second=1)


def unipc(order, variant, data, denoise, x, sigmas):
    """UniPC, Zhao et al. 2023, alg. 1–2, of full order to the end; correcting is for free."""
    lam = -np.log(sigmas)

    def update(x, n, nodes, values, *, exact):
        s, t, h = sigmas[n], sigmas[n + 1], lam[n + 1] - lam[n]
        first = math.expm1(-h) if data else t * math.expm1(h)
        linear = (t / s if data else 1) * x - first * values[0]
        if len(nodes) == 1:
            return linear
        if exact:
            weight = np.exp if data else (lambda z: -np.exp(-z))
            b = lagrange_integrals(np.array(nodes), lam[n], lam[n + 1], weight)
            total = sum(bj * v for bj, v in zip(b, values, strict=True))
            return t * (x / s + total) if data else x + total
        # With one difference, the weight is taken as a half.
        signed = -h if data else h
        scale = signed if variant == "bh1" else math.expm1(signed)
        difference = (values[1] - values[0]) / ((nodes[1] - lam[n]) / h)
        return linear - (1 if data else t) * scale * 0.5 * difference

    values, base = [], x
    for n in range(len(sigmas) - 1):
        d = denoise(x, sigmas[n])
        value = d if data else (x - d) / sigmas[n]
        if n > 0:
            p = min(order, n)
            nodes = [*lam[n - p : n][::-1], lam[n]]
            x = update(base, n - 1, nodes, [*values[:p], value], exact=p > 1)
        values, base = [value, *values], x
        p = min(order, n + 1)
        x = update(base, n, lam[n + 1 - p : n + 1][::-1], values[:p], exact=p != 2)
    return x


ORACLES = {
    **{f"diffusers LMSDiscrete {p}": (adams, "noise", p) for p in (1, 2, 3, 4)},
    **{f"diffusers DEISMultistep {p}": (adams, "log noise", p) for p in (1, 2, 3)},
    **{
        f"azula {name} {p}": (adams, coordinates, p)
        for name, coordinates in (
            ("zAB", "noise"),
            ("vAB", "velocity"),
            ("zEAB", "log noise"),
            ("xEAB", "log data"),
        )
        for p in (1, 2, 3, 4)
    },
    **{
        name: (adams, "noise", 1)
        for name in ("diffusers DDIM", "diffusers EulerDiscrete", "azula DDIM", "azula Euler")
    },
    "diffusers DPMSolverMultistep dpmsolver++ 2M heun": (adams, "log data", 2),
    "diffusers DPMSolverMultistep dpmsolver 2M heun": (adams, "log noise", 2),
    "diffusers DPMSolverMultistep dpmsolver++ 2M": (dpmpp_2m,),
    "diffusers DPMSolverMultistep dpmsolver++ 3M": (dpmpp_3m_as_shipped,),
    "diffusers HeunDiscrete": (heun, "noise"),
    "azula Heun": (heun, "noise"),
    "diffusers FlowMatchHeunDiscrete": (heun, "velocity"),
    "diffusers IPNDM": (ipndm,),
    **{
        f"diffusers DPMSolverSinglestep {kind} {p}S midpoint": (singlestep, p, kind[-1] == "+")
        for kind in ("dpmsolver", "dpmsolver++")
        for p in (2, 3)
    },
    "diffusers KDPM2Discrete": (dpm2,),
    **{
        f"diffusers UniPCMultistep {variant} {p} {kind}{' full order' if p > 1 else ''}": (
            unipc,
            p,
            variant,
            kind == "data",
        )
        for variant in ("bh1", "bh2")
        for p in (1, 2, 3)
        for kind in ("data", "noise")
    },
}


@pytest.mark.parametrize("name", ORACLES)
def test_a_peer_is_the_method_of_its_name(name, gaussian, start):
    """To round-off in float64, so nothing was cast to float32, and the end is the grid's."""
    oracle, *settings = ORACLES[name]

    def denoise(x, sigma):
        return gaussian(torch.from_numpy(x), torch.tensor(sigma, dtype=torch.float64)).numpy()

    expected = oracle(*settings, denoise, start.numpy(), GRID)
    final = run(name, gaussian, start, GRID)[0]
    np.testing.assert_allclose(final.numpy(), expected, rtol=0, atol=1e-9)


def test_sa_solver_without_noise_is_unipc(gaussian, start):
    """For data; for noise, it does without UniPC's simpler weights of the second order."""
    sa = run("diffusers SASolver P3C4 data", gaussian, start, GRID)[0]
    unipc = run("diffusers UniPCMultistep bh1 3 data", gaussian, start, GRID)[0]
    torch.testing.assert_close(sa, unipc, rtol=0, atol=1e-9)


def test_the_third_order_multistep_solver_lacks_a_factor_of_two(gaussian):
    """With the factor, the same formula is the third order of azula; as shipped, it is the second."""
    x, grid = gaussian.sample(16, 80.0, seed=0), sk.grids.log(160, 80.0, 0.01)
    exact = gaussian.flow(x, 80.0, 0.01)

    def denoise(x, sigma):
        return gaussian(torch.from_numpy(x), torch.tensor(sigma, dtype=torch.float64)).numpy()

    right = torch.from_numpy(dpmpp(3, denoise, x.numpy(), grid, second=2))
    azula = run("azula xEAB 3", gaussian, x, grid)[0]
    shipped = run("diffusers DPMSolverMultistep dpmsolver++ 3M", gaussian, x, grid)[0]
    # They differ in the first steps, where the one takes its midpoint rule.
    torch.testing.assert_close(right, azula, rtol=0, atol=1e-8)
    assert rms(shipped - exact) > 5 * rms(right - exact)


def test_reab_is_of_order_one_whatever_it_is_asked_for(gaussian):
    """It scales its integral by σ at the start of the step, ``sqrt(alpha_s**2 + sigma_t**2)``."""
    x = gaussian.sample(16, 80.0, seed=0)
    exact = gaussian.flow(x, 80.0, SIGMA_MIN)

    def slope(name):
        coarse, fine = (rms(run(name, gaussian, x, "VE", n)[0] - exact) for n in (150, 300))
        return math.log2(coarse / fine)

    assert slope("azula REAB 3") < 1.2
    assert slope("azula vAB 3") > 2.5


# ---- the namesakes in sdekit's registry ----

# Method of the registry -> peer, and where in a step (of log σ) the peer, whose stages are at points of
# the grid, needs points more.
NAMESAKES = {
    "euler": ("diffusers DDIM",),
    "heun": ("diffusers HeunDiscrete",),
    "ddim": ("diffusers DDIM",),
    "edm_euler": ("diffusers EulerDiscrete",),
    "edm_heun": ("diffusers HeunDiscrete",),
    "flow_euler": ("azula Euler",),
    "flow_heun": ("diffusers FlowMatchHeunDiscrete",),
    "ipndm": ("diffusers IPNDM",),
    **{f"lms{k}": (f"diffusers LMSDiscrete {k}",) for k in (2, 3, 4)},
    **{f"deis_logrho{k}": (f"diffusers DEISMultistep {k}",) for k in (2, 3)},
    **{f"xeab{k}": (f"azula xEAB {k}",) for k in (2, 3)},
    **{f"vab{k}": (f"azula vAB {k}",) for k in (2, 3)},
    "dpm_2": ("diffusers KDPM2Discrete",),
    "dpm_solver_1": ("diffusers DDIM",),
    "dpm_solver_2": ("diffusers DPMSolverSinglestep dpmsolver 2S midpoint", 1 / 2),
    "dpmpp_2s": ("diffusers DPMSolverSinglestep dpmsolver++ 2S midpoint", 1 / 2),
    "dpmpp_singlestep_2": ("diffusers DPMSolverSinglestep dpmsolver++ 2S midpoint",),
    "dpmpp_2m": ("diffusers DPMSolverMultistep dpmsolver++ 2M",),
    "dpmpp_3m_as_shipped": ("diffusers DPMSolverMultistep dpmsolver++ 3M",),
    **{
        f"unipc_{variant}_{k}{suffix}": (
            f"diffusers UniPCMultistep {variant} {k} {kind}{' full order' if k > 1 else ''}",
        )
        for variant in ("bh1", "bh2")
        for k in (1, 2, 3)
        for suffix, kind in (("", "data"), ("_noise", "noise"))
    },
    **{f"unipc_bh2_{k}_as_shipped": (f"diffusers UniPCMultistep bh2 {k} data",) for k in (2, 3)},
}
# Not here: dpm_solver_3, dpmpp_3s, dpmpp_singlestep_3, since of the third order in one step diffusers'
# second stage is not the paper's (see `singlestep`).


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float64) for name in NAMESAKES),
        *((name, torch.float32) for name in [*NAMESAKES][::3]),
    ],
)
def test_a_namesake_is_its_peer(name, dtype):
    """Same start, same trained network, same grid: the same samples, to the round-off of both."""
    peer, *inside = NAMESAKES[name]
    grid = [s ** (1 - r) * t**r for s, t in pairwise(GRID) for r in (0, *inside)]
    network = sk.load_digits_denoiser(dtype=dtype)
    source = torch.Generator().manual_seed(0)
    x = SIGMA_MAX * torch.randn(8, 1, 8, 8, generator=source, dtype=dtype)
    theirs, seen = run(peer, network, x, np.array([*grid, SIGMA_MIN]))
    ours = sk.solve(sk.EDM().probability_flow(network), x, method=name, sigmas=GRID)
    assert ours.nfe == len(seen)
    assert rms(ours.x - theirs) < (1e-5 if dtype == torch.float32 else 1e-12)
