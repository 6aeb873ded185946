"""Published multistep samplers: their orders, and the formulas of the papers written out."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import partial

import numpy as np
import pytest
import torch
from orders import NotResolved, flow_order

import sdekit as sk
from sdekit.coordinates import Points
from sdekit.solvers.adams import Adams
from sdekit.solvers.published import IPNDM, DPMMultistep, GradientEstimation, UniPC
from sdekit.solvers.registry import Solver

DATA, NOISE, SIGMA = sk.LogData(), sk.LogNoise(), sk.Noise()
STEPS = [64, 96, 144]
FINE = [192, 272, 384]  # where the start, or a fourth order, is not hidden


def order_of(scheme, coordinates, law, high=3.0, low=0.1, grid=sk.grids.log, steps=STEPS):
    """Measured order of the RMS error against the exact flow map."""
    solver = Solver(scheme, coordinates, grid)
    return flow_order(solver, law, sk.EDM(), high, low, steps, grid=grid)


# ---- orders ----

# Constructor, coordinates, and order; with start="rk4".
CONFIGURATIONS = {
    "2M": (partial(DPMMultistep, 2), (DATA, NOISE), 2, 2),
    "3M": (partial(DPMMultistep, 3), (DATA, NOISE), 2, 3),
    "3M as shipped": (partial(DPMMultistep, 3, as_shipped=True), (DATA, NOISE), 2, 2),
    "UniP-2 bh1": (partial(UniPC, 2, kind="bh1", corrector=False), (DATA,), 2, None),
    "UniPC-1 bh1": (partial(UniPC, 1, kind="bh1"), (DATA, NOISE), 2, None),
    "UniPC-1 bh2": (partial(UniPC, 1, kind="bh2"), (DATA, NOISE), 2, None),
    "UniPC-2 bh1": (partial(UniPC, 2, kind="bh1"), (DATA, NOISE), 3, 3),
    "UniPC-2 bh2": (partial(UniPC, 2, kind="bh2"), (DATA, NOISE), 3, 3),
    "UniPC-3 bh1": (partial(UniPC, 3, kind="bh1"), (DATA,), 3, None),
    "UniPC-3 bh2": (partial(UniPC, 3, kind="bh2"), (DATA, NOISE), 3, 4),
    "UniPC-2 lower": (partial(UniPC, 2, tail="lower"), (DATA,), 2, None),
    "UniPC-3 lower": (partial(UniPC, 3, tail="lower"), (NOISE,), 2, 2),
    "UniPC-1 vary": (partial(UniPC, 1, kind="vary_as_shipped"), (DATA,), 2, None),
    "UniPC-2 vary": (partial(UniPC, 2, kind="vary_as_shipped"), (DATA, NOISE), 1, 1),
    "UniPC-3 vary": (partial(UniPC, 3, kind="vary_as_shipped"), (DATA,), 1, 1),
    "iPNDM-1": (partial(IPNDM, 1), (SIGMA,), 1, None),
    "iPNDM-2": (partial(IPNDM, 2), (SIGMA,), 2, 2),
    "iPNDM-3": (partial(IPNDM, 3), (SIGMA,), 2, 2),
    "iPNDM-4": (partial(IPNDM, 4), (SIGMA,), 2, 2),
    "gradient 2": (partial(GradientEstimation, 2.0), (SIGMA,), 1, 1),
    "gradient 3/2": (partial(GradientEstimation, 1.5), (SIGMA,), 2, 2),
}
CASES = [
    pytest.param(name, where, start, order, id=f"{name}-{type(where).__name__}-{start}")
    for name, (_, places, *orders) in CONFIGURATIONS.items()
    for where in places
    for start, order in zip(("ramp", "rk4"), orders, strict=True)
    if order is not None
]


@pytest.mark.parametrize(("name", "coordinates", "start", "order"), CASES)
def test_the_order_is_the_declared_one(name, coordinates, start, order, product, gaussian):
    scheme = CONFIGURATIONS[name][0](start=start)
    assert scheme.order == order
    assert scheme.nfe_per_step == 1
    steps = FINE if name.startswith(("UniPC-3 bh", "3M as shipped")) else STEPS
    # A wide range hides the ramp.
    for law, high in ((product, 3.0), (gaussian, 2.0 if start == "ramp" else 3.0)):
        measured = order_of(scheme, coordinates, law, high, steps=steps)
        assert measured == pytest.approx(order, abs=0.15)


def test_the_third_order_needs_the_factor_of_two(product):
    """Half of the second derivative costs an order: on the same problem and grids, 3 and 2."""
    right, shipped = (DPMMultistep(3, as_shipped=flag, start="rk4") for flag in (False, True))
    assert order_of(right, DATA, product) > 2.8
    assert order_of(shipped, DATA, product) < 2.2


@pytest.mark.parametrize("slopes", [3, 4])
def test_fixed_weights_belong_to_equal_steps(slopes, product):
    scheme = IPNDM(slopes, start="rk4")
    for grid, order in ((sk.grids.karras, 2), (sk.grids.uniform_sigma, slopes)):
        measured = order_of(scheme, SIGMA, product, low=0.7, grid=grid, steps=[128, 192, 288])
        assert measured == pytest.approx(order, abs=0.15)


def test_the_formulas_are_for_all_coordinates(product):
    """Also where weights are one per direction."""
    mean, cov = product.moments()
    steps = [48, 72, 108]
    for coordinates in (
        sk.Preconditioned(0.7),
        sk.Interpolated(sk.Preconditioned(0.7), sk.LogNoise()),
        sk.GaussianPreconditioned(mean.numpy(), cov.numpy()),
    ):
        for scheme in (UniPC(2, kind="bh1"), UniPC(2), DPMMultistep(3, as_shipped=True)):
            order = order_of(scheme, coordinates, product, steps=steps)
            assert order == pytest.approx(scheme.order, abs=0.2)
        vary = UniPC(3, kind="vary_as_shipped")
        assert order_of(vary, coordinates, product, steps=steps) == pytest.approx(1, abs=0.2)


# Scheme, coordinates, and whether formulas that are used once are damaged too: that costs an order, but
# leaves order 1. (The transcriptions below would catch them.)
DAMAGED = {
    "3M": (partial(DPMMultistep, 3), DATA, True),
    "3M as shipped": (partial(DPMMultistep, 3, as_shipped=True), NOISE, True),
    "UniPC-3 bh1": (partial(UniPC, 3, kind="bh1"), DATA, True),
    "UniPC-2 bh2": (partial(UniPC, 2, kind="bh2"), NOISE, True),
    "UniPC-3 vary": (partial(UniPC, 3, kind="vary_as_shipped"), DATA, False),
    "iPNDM-4": (partial(IPNDM, 4), SIGMA, True),
    "gradient 3/2": (partial(GradientEstimation, 1.5), SIGMA, True),
    "gradient 2": (partial(GradientEstimation, 2.0), SIGMA, False),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_weight_is_caught(name, product, monkeypatch):
    """Halving any one weight of a formula makes its order test fail."""
    make, coordinates, everything = DAMAGED[name]
    scheme, steps = make(), [36, 54, 81]
    assert abs(order_of(scheme, coordinates, product, steps=steps) - scheme.order) < 0.2
    depths = range(1 if everything else scheme.slopes, scheme.slopes + 1)
    formulas = [("correct", depth + 1) for depth in depths if scheme.corrector]
    if everything or not scheme.corrector:
        formulas += [("predict", depth) for depth in depths]
    for method, depth in formulas:
        for column in range(depth):
            whole = getattr(type(scheme), method)

            def halved(self, coordinates, nodes, *end, whole=whole, depth=depth, column=column):
                weights = whole(self, coordinates, nodes, *end)
                factors = np.where(np.arange(weights.shape[1]) == column, 0.5, 1.0)
                return weights * factors if weights.shape[1] == depth else weights

            with monkeypatch.context() as patch:
                patch.setattr(type(scheme), method, halved)
                try:
                    order = order_of(scheme, coordinates, product, steps=steps)
                except NotResolved:
                    continue
            assert abs(order - scheme.order) > 0.4, (method, depth, column)


# ---- the papers' formulas, in α, σ and λ of a variance-preserving process ----

KAPPA = np.array([9.0, 4.1, 2.2, 1.5, 0.8, 0.5, 0.21, 0.1])
ALPHA = 1 / np.sqrt(1 + KAPPA**2)
NOISE_STD = KAPPA * ALPHA
LAMBDA = np.log(ALPHA / NOISE_STD)


class Sampler:
    """What the transcriptions share: the network, and DDIM's step with a given prediction."""

    def __init__(self, law, data):
        self.law, self.data = law, data

    def predict(self, x, n):
        sigma = torch.tensor(KAPPA[n], dtype=torch.float64)
        denoised = self.law(torch.from_numpy(x / ALPHA[n]), sigma).numpy()
        return denoised if self.data else (x - ALPHA[n] * denoised) / NOISE_STD[n]

    def first_order(self, x, n, m):
        """``x_t = σ_t/σ_s x + α_t (1 − e^−h) D`` or ``α_t/α_s x − σ_t (e^h − 1) ε``."""
        h = LAMBDA[n + 1] - LAMBDA[n]
        if self.data:
            ratio, scale = NOISE_STD[n + 1] / NOISE_STD[n], ALPHA[n + 1]
            return ratio * x + scale * (1 - math.exp(-h)) * m
        return ALPHA[n + 1] / ALPHA[n] * x - NOISE_STD[n + 1] * (math.exp(h) - 1) * m

    def scale(self, n):
        """What multiplies the rest: ``−α_t`` or ``−σ_t``, with ``h̃ = −h`` or ``h``."""
        h = LAMBDA[n + 1] - LAMBDA[n]
        return (-ALPHA[n + 1], -h) if self.data else (-NOISE_STD[n + 1], h)


def dpm_multistep(order, factor, sampler, x):
    """Lu et al. 2022b, alg. 2, and its third order with ``D'' = factor (Δ_0 − Δ_1)/(r_0 + r_1)``."""
    m = []
    for n in range(len(KAPPA) - 1):
        m.append(sampler.predict(x, n))
        h = LAMBDA[n + 1] - LAMBDA[n]
        scale, z = sampler.scale(n)
        first = math.exp(z) - 1
        x = sampler.first_order(x, n, m[n])
        if n == 0 or order == 1:
            continue
        r0 = (LAMBDA[n] - LAMBDA[n - 1]) / h
        d0 = (m[n] - m[n - 1]) / r0
        if n == 1 or order == 2:
            x = x + scale * first * d0 / 2
            continue
        r1 = (LAMBDA[n - 1] - LAMBDA[n - 2]) / h
        d1 = (m[n - 1] - m[n - 2]) / r1
        slope = d0 + r0 / (r0 + r1) * (d0 - d1)
        curvature = factor * (d0 - d1) / (r0 + r1)
        phi2 = first / z - 1  # z φ_2(z)
        x = x + scale * (phi2 * slope + (phi2 / z - 1 / 2) * curvature)
    return x


def lower_terms(z, count):
    """``z φ_{i+1}(z)`` for ``i = 1 … count``."""
    found, value = [], math.exp(z) - 1
    for i in range(1, count + 1):
        value = value / z - 1 / math.factorial(i)
        found.append(value)
    return found


def unipc(order, kind, corrected, lower, sampler, x):
    """Zhao et al. 2023, alg. 1–2; ``ρ = 1/2`` in predictors of order 2 and correctors of order 1.

    For ``kind="vary"`` its app. C, with the corrector that its code makes of that.
    """
    steps = len(KAPPA) - 1
    depths = [min(order, n + 1, steps - n if lower else steps) for n in range(steps)]

    def differences(n, m, p):
        h = LAMBDA[n + 1] - LAMBDA[n]
        r = [(LAMBDA[n - k] - LAMBDA[n]) / h for k in range(1, p)]
        return r, [(m[n - k] - m[n]) / r[k - 1] for k in range(1, p)]

    def bh(n, r, d, *, half):
        z = sampler.scale(n)[1]
        b_h = z if kind == "bh1" else math.exp(z) - 1
        count = len(r)
        b = [math.factorial(i + 1) * v / b_h for i, v in enumerate(lower_terms(z, count))]
        matrix = np.array(r)[None] ** np.arange(count)[:, None]
        rho = [0.5] if half else np.linalg.solve(matrix, b)
        return b_h * sum(weight * difference for weight, difference in zip(rho, d, strict=True))

    def inverse(r):
        """``A[i][k]``: the derivative ``i + 1``, times ``h^(i + 1)``, is ``Σ_k A[i][k] Δ_k``."""
        return np.linalg.inv([[r_k**i / math.factorial(i + 1) for i in range(len(r))] for r_k in r])

    def vary(n, r, d):
        a, weights = inverse(r), lower_terms(sampler.scale(n)[1], len(r))
        return sum(w * sum(a[i][k] * d[k] for k in range(len(r))) for i, w in enumerate(weights))

    def vary_corrector(n, r, d):
        a, weights = inverse(r), lower_terms(sampler.scale(n)[1], len(r))
        old = range(len(r) - 1)
        total = sum(weights[i] * sum(a[i][k] * d[k] for k in old) for i in old)
        return total + weights[-1] * a[max(len(r) - 2, 0)][-1] * d[-1]

    m, base = [], x
    for n in range(steps):
        m.append(sampler.predict(x, n))
        if n > 0 and corrected:
            p = depths[n - 1]
            r, d = differences(n - 1, m, p)
            r, d = [*r, 1.0], [*d, m[n] - m[n - 1]]
            rest = vary_corrector(n - 1, r, d) if kind == "vary" else bh(n - 1, r, d, half=p == 1)
            x = sampler.first_order(base, n - 1, m[n - 1]) + sampler.scale(n - 1)[0] * rest
        base, p = x, depths[n]
        x = sampler.first_order(base, n, m[n])
        if p > 1:
            r, d = differences(n, m, p)
            rest = vary(n, r, d) if kind == "vary" else bh(n, r, d, half=p == 2)
            x = x + sampler.scale(n)[0] * rest
    return x


def sa_solver(order, sampler, x):
    """SA-Solver (Xue et al. 2023) with τ = 0, P_p and C_{p+1}: weights ``∫ e^λ ℓ_j dλ``.

    Those of two slopes have the term that its code adds "for few steps".
    """
    nodes, weights = np.polynomial.legendre.leggauss(30)

    def update(base, n, points, values):
        a, b = LAMBDA[n], LAMBDA[n + 1]
        lam = (a + b) / 2 + (b - a) / 2 * nodes
        c = []
        for j, point in enumerate(points):
            others = [(lam - q) / (point - q) for k, q in enumerate(points) if k != j]
            c.append(np.sum((b - a) / 2 * weights * np.exp(lam) * np.prod(others, axis=0)))
        if len(points) == 2:
            h = b - a
            extra = np.exp(b) * (h**2 / 2 - (h - 1 + np.exp(-h))) / (points[0] - points[1])
            c = [c[0] + extra, c[1] - extra]
        integral = sum(c_j * v for c_j, v in zip(c, values, strict=True))
        return NOISE_STD[n + 1] / NOISE_STD[n] * base + NOISE_STD[n + 1] * integral

    m, base = [], x
    for n in range(len(KAPPA) - 1):
        m.append(sampler.predict(x, n))
        if n > 0:
            past = [n - k for k in range(min(order, n) + 1)]
            x = update(base, n - 1, LAMBDA[past], [m[k] for k in past])
        base = x
        past = [n - k for k in range(min(order, n + 1))]
        x = update(base, n, LAMBDA[past], [m[k] for k in past])
    return x


def fixed_weights(rows, sampler, x):
    """Liu et al. 2022: the transfer function of DDIM with a combination of past predictions."""
    m = []
    for n in range(len(KAPPA) - 1):
        m.insert(0, sampler.predict(x, n))
        row = rows[min(n, len(rows) - 1)]
        x = sampler.first_order(x, n, sum(b * v for b, v in zip(row, m, strict=False)))
    return x


BASHFORTH = [[1], [3 / 2, -1 / 2], [23 / 12, -4 / 3, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -3 / 8]]
TRANSCRIPTIONS = {
    "2M": (DPMMultistep(2), partial(dpm_multistep, 2, None), True),
    "3M": (DPMMultistep(3), partial(dpm_multistep, 3, 2), True),
    "3M as shipped": (DPMMultistep(3, as_shipped=True), partial(dpm_multistep, 3, 1), True),
    "2M noise": (DPMMultistep(2), partial(dpm_multistep, 2, None), False),
    "3M noise": (DPMMultistep(3), partial(dpm_multistep, 3, 2), False),
    "3M noise as shipped": (DPMMultistep(3, as_shipped=True), partial(dpm_multistep, 3, 1), False),
    **{
        f"UniPC-{p} {kind} {'data' if data else 'noise'} {corrected} {tail}": (
            UniPC(p, kind=kind, corrector=corrected, tail=tail),
            partial(unipc, p, kind.split("_")[0], corrected, tail == "lower"),
            data,
        )
        for p in (1, 2, 3)
        for kind in ("bh1", "bh2", "vary_as_shipped")
        for data in (True, False)
        for corrected in (True, False)
        for tail in ("full", "lower")
    },
    **{f"SA-Solver {p}": (UniPC(p, kind="bh1"), partial(sa_solver, p), True) for p in (1, 2, 3)},
    **{
        f"iPNDM-{p}": (IPNDM(p), partial(fixed_weights, BASHFORTH[:p]), False) for p in (1, 2, 3, 4)
    },
    **{
        f"gradient {g}": (GradientEstimation(g), partial(fixed_weights, [[1], [g, 1 - g]]), False)
        for g in (1.0, 1.5, 2.0)
    },
}


@pytest.mark.parametrize("name", TRANSCRIPTIONS)
def test_the_scheme_is_the_formula_of_the_paper(name, product):
    scheme, formula, data = TRANSCRIPTIONS[name]
    kind = NOISE if not data else DATA
    if isinstance(scheme, (IPNDM, GradientEstimation)):
        kind = SIGMA
    x = product.sample(6, KAPPA[0], seed=2) * ALPHA[0]
    expected = formula(Sampler(product, data), x.numpy())
    flow = sk.VP().probability_flow(product)
    solved = sk.solve(flow, x, method=Solver(scheme, kind, sk.grids.log), sigmas=KAPPA)
    assert solved.nfe == len(KAPPA) - 1
    np.testing.assert_allclose(solved.x.numpy(), expected, rtol=0, atol=1e-11)


# ---- identities ----


def solution(scheme, coordinates, law):
    x = law.sample(6, 9.0, seed=2)
    solver = Solver(scheme, coordinates, sk.grids.log)
    return sk.solve(sk.EDM().probability_flow(law), x, method=solver, sigmas=KAPPA).x


@pytest.mark.parametrize("coordinates", [DATA, NOISE], ids=str)
def test_identities_to_the_last_bit(coordinates, product):
    def same(left, right):
        return torch.equal(*(solution(s, coordinates, product) for s in (left, right)))

    assert same(UniPC(2, kind="bh2", corrector=False), DPMMultistep(2))
    assert same(UniPC(1, corrector=False), DPMMultistep(1))
    assert same(DPMMultistep(1), Adams(1))
    assert not same(UniPC(2, kind="bh1", corrector=False), DPMMultistep(2))
    # B counts in the first steps only; started otherwise, UniPC is Adams.
    assert not same(UniPC(3, kind="bh1"), UniPC(3, kind="bh2"))
    for kind in ("bh1", "bh2"):
        assert same(UniPC(3, kind=kind, start="rk4"), Adams(3, corrector=True, start="rk4"))
    assert same(DPMMultistep(3, start="rk4"), Adams(3, start="rk4"))


def test_fixed_weights_are_those_of_equal_steps(product):
    """On a grid uniform in σ iPNDM is Adams, to round-off; so is gradient estimation with 3/2."""
    sigmas = sk.grids.uniform_sigma(9, 3.0, 0.3)
    x = product.sample(6, 3.0, seed=2)
    flow = sk.EDM().probability_flow(product)

    def final(scheme):
        return sk.solve(flow, x, method=Solver(scheme, SIGMA, sk.grids.log), sigmas=sigmas).x

    torch.testing.assert_close(final(IPNDM(4)), final(Adams(4)), rtol=0, atol=1e-12)
    torch.testing.assert_close(final(GradientEstimation(1.5)), final(Adams(2)), rtol=0, atol=1e-12)
    assert torch.equal(final(GradientEstimation(1.5)), final(IPNDM(2)))
    assert torch.equal(final(GradientEstimation(1.0)), final(Adams(1)))


# ---- weights ----


def third_order_weights(sigmas, factor, *, data):
    """Weights of D or ε in ``u``, by the closed forms of 3M in 60 digits."""
    end, *nodes = (Decimal(float(sigma)) for sigma in sigmas)
    lam = [-sigma.ln() for sigma in nodes]
    h = -end.ln() - lam[0]
    z, scale = (-h, -1 / end) if data else (h, -end)
    r0, r1 = (lam[0] - lam[1]) / h, (lam[1] - lam[2]) / h
    first = z.exp() - 1
    phi2 = first / z - 1
    phi3 = phi2 / z - Decimal(1) / 2
    weights = []
    for m in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        d0, d1 = (m[0] - m[1]) / r0, (m[1] - m[2]) / r1
        slope = d0 + r0 / (r0 + r1) * (d0 - d1)
        curvature = factor * (d0 - d1) / (r0 + r1)
        weights.append(float(scale * (first * m[0] + phi2 * slope + phi3 * curvature)))
    return np.array(weights)


@pytest.mark.parametrize("h", [1e-5, 1e-3, 0.1, 1.0, 12.0, -0.3])
@pytest.mark.parametrize("coordinates", [DATA, NOISE], ids=str)
def test_weights_are_accurate_for_tiny_and_huge_steps(coordinates, h):
    """To the round-off of the step, where closed forms would lose as much twice and thrice."""
    lam = np.array([h, 0.0, -0.7 * h, -1.6 * h])
    points = coordinates.at(np.exp(-lam) * 0.9)
    nodes = Points(*(v[None, 1:] for v in points))
    end = Points(*(v[:1] for v in points))
    for shipped in (False, True):
        weights = DPMMultistep(3, as_shipped=shipped).predict(coordinates, nodes, end)[0]
        with localcontext(prec=60):
            factor = 1 if shipped else 2
            exact = third_order_weights(points.sigma, factor, data=coordinates == DATA)
        rounding = 2e-15 * (1 + 1 / abs(h))
        np.testing.assert_allclose(weights, exact, rtol=0, atol=rounding * np.abs(exact).max())


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="kind = 'bh3'; it must be one of 'bh1', 'bh2'"):
        UniPC(2, kind="bh3")
    with pytest.raises(ValueError, match="order = 4; it must be 1, 2 or 3"):
        DPMMultistep(4)
    with pytest.raises(ValueError, match="order = 2; it must be 1, 2 or 3, with as_shipped=True 3"):
        DPMMultistep(2, as_shipped=True)
    with pytest.raises(ValueError, match="order = 5; iPNDM uses 1 to 4 slopes"):
        IPNDM(5)
    with pytest.raises(ValueError, match="gamma = nan; it must be finite"):
        GradientEstimation(math.nan)
    nodes = SIGMA.at(np.array([[1.0, 2.0]]))
    with pytest.raises(NotImplementedError, match="IPNDM has no corrector"):
        IPNDM(2).correct(SIGMA, nodes)
