"""Networks of every kind as denoisers, against networks made from an exact denoiser.

The networks are made here from ``x0 = D`` and ``ε``, by the definition of what each kind predicts; the
adapter has to find the exact denoiser in them again.
"""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from helpers import DOUBLE, PeakMemory, Perceptron, normal
from scipy.interpolate import make_interp_spline

import sdekit as sk
from sdekit.adapters.memory import peak_memory
from sdekit.adapters.network import parameter_dtype
from sdekit.denoisers import known_sigma_data, trained_range

LAW = sk.GaussianMixture.random(components=4, dim=3, seed=0)
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=DOUBLE)
ALPHAS = (1 - BETAS).cumprod(0)
SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt()
OWN = sk.AffineSDE(scale=lambda t: 1 / (1 + 0.3 * t**2), sigma=lambda t: t + 2 * t**3, T=3.0)
PROCESSES = {
    "VP": sk.VP(),
    "SubVP": sk.SubVP(),
    "VE": sk.VE(0.01, 50.0),
    "EDM": sk.EDM(),
    "CosineVP": sk.CosineVP(),
    "RectifiedFlow": sk.RectifiedFlow(),
    "DiscreteVP": sk.DiscreteVP(ALPHAS),
    "AffineSDE": OWN,
}
KINDS = ("data", "noise", "score", "v", "velocity", "edm")
SIGMA_DATA = 0.8
EPS32 = torch.finfo(torch.float32).eps


def slope(fn, t):
    return torch.func.jvp(fn, (t,), (torch.ones_like(t),))[1]


def gains(kind, process, t):
    """How much of an error of the output gets into the denoised state."""
    alpha, n = process.scale(t), process.std(t)
    sigma = n / alpha
    d_alpha, d_n = slope(process.scale, t), slope(process.std, t)
    return {
        "data": torch.ones_like(t),
        "noise": sigma,
        "score": n * sigma,
        "v": n / (alpha**2 + n**2),
        "velocity": 1 / (d_n / sigma - d_alpha).abs(),
        "edm": sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt(),
    }[kind]


class Exact:
    """The network of a kind whose prediction is the exact one, in float64 inside.

    It is told the time of its process; EDM's is told log σ / 4, and sees the state at EDM's scale.
    """

    def __init__(self, kind, process, law=LAW):
        self.kind, self.process, self.law = kind, process, law
        self.outputs = None

    def __call__(self, x, label):
        column = label.double().view(len(x), *(1,) * (x.ndim - 1))
        wide = x.double()
        if self.kind == "edm":
            sigma = (4 * column).exp()
            x_hat = wide * (sigma**2 + SIGMA_DATA**2).sqrt()
        else:
            alpha, n = self.process.scale(column), self.process.std(column)
            sigma, x_hat = n / alpha, wide / alpha
        x0 = self.law.denoise(x_hat, sigma.flatten())
        if self.kind == "edm":
            skipped = x_hat * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
            out = (x0 - skipped) * (sigma**2 + SIGMA_DATA**2).sqrt() / (sigma * SIGMA_DATA)
        else:
            eps = (wide - alpha * x0) / n
            if self.kind == "velocity":
                d_alpha, d_n = slope(self.process.scale, column), slope(self.process.std, column)
                out = d_alpha * x0 + d_n * eps
            else:
                out = {"data": x0, "noise": eps, "score": -eps / n, "v": alpha * eps - n * x0}[
                    self.kind
                ]
        self.outputs = out
        return out.to(x.dtype)


def adapted(kind, process, law=LAW, **options):
    level = sk.levels.LogSigma() if kind == "edm" else sk.levels.Time(process)
    options = {"sigma_data": SIGMA_DATA, "label_dtype": DOUBLE} | options
    return sk.NetworkDenoiser(
        Exact(kind, process, law), process, predicts=kind, level=level, **options
    )


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


# ---------------------------------------------------------------- every kind under every process


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_denoiser_is_found_in_float64(kind, process):
    denoiser = adapted(kind, process)
    t = process.T * torch.tensor([0.02, 0.2, 0.5, 0.8, 0.97], dtype=DOUBLE)
    sigmas = process.sigma(t)
    x_hat = LAW.sample(5, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    x_hat = x_hat + sigmas[:, None] * normal(5, 3)
    exact = LAW.denoise(x_hat, sigmas)
    # Round-off of the output enters by its gain, and that of the time by what σ(t) makes of it.
    bound = 1e-11 * (1 + x_hat.abs().amax(1, keepdim=True))
    assert ((denoiser(x_hat, sigmas) - exact).abs() < bound).all()
    for row, level in ((1, sigmas[1]), (4, float(sigmas[4]))):
        one = denoiser(x_hat[row : row + 1], level)
        assert ((one - exact[row]).abs() < bound[row]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_in_float32_is_that_of_state_and_output(kind, process):
    denoiser = adapted(kind, process)
    t = process.T * torch.tensor([0.02, 0.2, 0.5, 0.8, 0.97], dtype=DOUBLE)
    sigmas = process.sigma(t).float()
    x_hat = LAW.sample(5, generator=torch.Generator().manual_seed(0)).float()
    x_hat = x_hat + sigmas[:, None] * normal(5, 3, dtype=torch.float32)
    exact = LAW.denoise(x_hat.double(), sigmas.double())
    result = denoiser(x_hat, sigmas)
    assert result.dtype == torch.float32
    # Input and output are rounded, and so are the two terms that are added; the exact denoiser
    # multiplies an error of its input by at most about 3 for this law.
    output = denoiser.network.outputs.abs() * gains(kind, process, t)[:, None]
    bound = 4 * EPS32 * (x_hat.abs() + output).amax(1, keepdim=True) + 1e-7
    assert ((result - exact).abs() < bound).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_half_network_costs_the_rounding_of_its_output_and_no_more(kind, dtype, process):
    denoiser = adapted(kind, process, dtype=dtype, sigma_min=0.02)
    t = process.time(torch.tensor([0.05, 0.3, 1.0, 4.0, 9.0], dtype=DOUBLE))
    sigmas = process.sigma(t)
    scale = process.scale(t)
    if kind == "edm":
        scale = 1 / (sigmas**2 + SIGMA_DATA**2).sqrt()
    # States whose input is a half number: what is left over is the rounding of the output.
    x = (scale[:, None] * (LAW.sample(5).double() + sigmas[:, None] * normal(5, 3))).to(dtype)
    x_hat = x.double() / scale[:, None]
    exact = LAW.denoise(x_hat, sigmas)
    result = denoiser(x_hat, sigmas)
    unit = torch.finfo(dtype).eps / 2
    error = denoiser.network.outputs.abs() * gains(kind, process, t)[:, None] * unit
    tiny = torch.finfo(dtype).tiny * unit * gains(kind, process, t)[:, None]
    assert ((result - exact).abs() <= error * 1.001 + tiny + 1e-9).all()


@pytest.mark.parametrize("kind", ["noise", "score", "v", "velocity"])
def test_a_process_from_drift_and_diffusion_is_one_too(kind):
    def beta(t):
        return 0.1 + 19.9 * t

    own = sk.AffineSDE(f=lambda t: -0.5 * beta(t), g=lambda t: beta(t).sqrt())
    output, x, sigma = normal(3, 2), normal(3, 2, seed=1), torch.tensor([0.1, 2.0, 30.0])
    found, expected = (
        sk.NetworkDenoiser(
            lambda x, t: output * x + t[:, None],
            process,
            predicts=kind,
            level=sk.levels.Time(process),
            label_dtype=DOUBLE,
        )(x, sigma)
        for process in (own, sk.VP())
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def few_steps(denoiser):
    x = 20 * normal(16, 3)
    sigmas = sk.grids.karras(20, 20.0, 0.05)
    flow = sk.EDM().probability_flow(denoiser)
    return sk.solve(flow, x, method="adams2", sigmas=sigmas, sigma_data=1.0).x


@pytest.fixture(scope="module")
def ideal():
    return few_steps(LAW)


@pytest.mark.parametrize("kind", KINDS)
def test_a_solve_is_that_of_the_exact_denoiser(kind, process, ideal):
    # Trained under one process, used in another, on a grid that neither of them made: the error of the
    # 20 steps, about 1e-2, is that of the exact denoiser, but for round-off.
    torch.testing.assert_close(few_steps(adapted(kind, process)), ideal, rtol=0, atol=1e-10)


def test_the_solve_that_others_are_compared_to_has_an_error(ideal):
    flow = sk.EDM().probability_flow(LAW)
    fine = sk.solve(flow, 20 * normal(16, 3), method="dopri5", sigmas=[20.0, 0.05], rtol=1e-6).x
    assert 1e-3 < (ideal - fine).square().mean().sqrt() < 0.1


def test_a_flow_starts_at_pure_noise():
    # At t = 1 of a rectified flow σ is infinite; velocity and v say x0 there, and the flow has a limit.
    mean, variances = (
        torch.tensor([0.5, -1.0], dtype=DOUBLE),
        torch.tensor([0.3, 2.0], dtype=DOUBLE),
    )

    def velocity(x, t):
        t = t[:, None]
        total = (1 - t) ** 2 * variances + t**2
        rest = x - (1 - t) * mean
        return t / total * rest - mean - (1 - t) * variances / total * rest

    process = sk.RectifiedFlow()
    denoiser = sk.NetworkDenoiser(
        velocity, process, predicts="velocity", level=sk.levels.Time(process)
    )
    assert trained_range(denoiser)[0] == np.inf
    noise = normal(6, 2)
    torch.testing.assert_close(denoiser(noise, np.inf), mean.expand(6, 2))
    flow = process.probability_flow(denoiser)
    end = sk.solve(flow, noise, method="dopri5_t", times=[1.0, 0.2], rtol=1e-10).x
    exact = 0.8 * (mean + (variances + 0.25**2).sqrt() * noise)
    torch.testing.assert_close(end, exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["v", "velocity"])
@pytest.mark.parametrize("process", [sk.VP(), sk.CosineVP(), sk.RectifiedFlow()])
def test_where_the_signal_is_gone_the_network_sees_the_noise(kind, process):
    # v = −x0, as n = 1; and x' = α' x0 + n' ε, with the rates of a process that ends at t = 1.
    seen = []
    level = sk.levels.Sigma()
    out, noise = normal(4, 2, seed=1), normal(4, 2)
    denoiser = sk.NetworkDenoiser(
        lambda x, label: (seen.append(x), out)[1], process, predicts=kind, level=level
    )
    if kind == "velocity" and isinstance(process, sk.VP):
        return  # which is at σ = ∞ after an infinite time
    expected = -out
    if kind == "velocity":
        d_alpha, d_n = (float(rate) for rate in process.rates(torch.ones(1, dtype=DOUBLE)))
        expected = (out - d_n * noise) / d_alpha
    torch.testing.assert_close(denoiser(noise, np.inf), expected)
    torch.testing.assert_close(seen[0], noise)


# ---------------------------------------------------------------- levels


def recorded(level, sigma, **options):
    """The label that a network is given."""
    seen = []

    def network(x, label):
        seen.append(label)
        return x

    process = options.pop("process", sk.VP())
    denoiser = sk.NetworkDenoiser(network, process, predicts="data", level=level, **options)
    denoiser(torch.zeros(len(sigma), 1), sigma)
    return seen[0]


def test_labels_are_what_each_level_says():
    vp, sigma = sk.VP(), torch.tensor([0.1, 1.0, 10.0], dtype=DOUBLE)
    t = vp.time(sigma)
    close = partial(torch.testing.assert_close, rtol=1e-6, atol=0)
    close(recorded(sk.levels.Sigma(), sigma), sigma.float())
    close(recorded(sk.levels.LogSigma(), sigma), (sigma.log() / 4).float())
    close(recorded(sk.levels.Time(vp, 999.0), sigma), (999 * t).float())
    close(recorded(lambda s: 1 / s, sigma), (1 / sigma).float())


def test_indices_of_a_table():
    table = sk.levels.Index(SIGMAS, "interpolated")
    torch.testing.assert_close(table(SIGMAS), torch.arange(1000.0, dtype=DOUBLE), rtol=0, atol=1e-9)
    between = (SIGMAS[7] * SIGMAS[8]).sqrt()[None]  # halfway in the logarithm
    torch.testing.assert_close(table(between), torch.tensor([7.5], dtype=DOUBLE))
    nearest = sk.levels.Index(SIGMAS, "nearest")
    assert nearest(torch.stack([between[0] * 0.999, between[0] * 1.001])).tolist() == [7, 8]
    assert nearest(SIGMAS).dtype == torch.int64
    falling = sk.levels.Index(SIGMAS.flip(0), "exact")
    assert torch.equal(falling(SIGMAS), torch.arange(999, -1, -1))
    assert torch.equal(falling(SIGMAS.float().double()), torch.arange(999, -1, -1))


def test_labels_keep_their_precision_beside_a_half_network():
    index = sk.levels.Index(SIGMAS, "interpolated")
    label = recorded(index, SIGMAS[-3:], dtype=torch.bfloat16)
    assert label.dtype == torch.float32
    torch.testing.assert_close(label, torch.tensor([997.0, 998.0, 999.0]), rtol=0, atol=1e-3)
    narrow = recorded(index, SIGMAS[-3:], dtype=torch.bfloat16, label_dtype=torch.bfloat16)
    assert narrow.tolist() == [996, 1000, 1000]  # what casting them would do
    assert recorded(sk.levels.Index(SIGMAS, "nearest"), SIGMAS[:2]).dtype == torch.int64


@pytest.mark.parametrize("rule", ["interpolated", "nearest", "exact"])
def test_a_level_that_is_not_in_the_table_is_refused(rule):
    denoiser = sk.NetworkDenoiser(
        lambda x, i: x, sk.DiscreteVP(ALPHAS), predicts="noise", level=sk.levels.Index(SIGMAS, rule)
    )
    assert trained_range(denoiser) == pytest.approx((float(SIGMAS[-1]), float(SIGMAS[0])))
    x = torch.zeros(2, 1)
    denoiser(x, SIGMAS[[0, 999]].float())  # the ends themselves, in float32
    for bad in (0.0, 0.5 * float(SIGMAS[0]), 2 * float(SIGMAS[-1]), np.inf, np.nan):
        with pytest.raises(ValueError, match=r"outside of the network's 1000 levels"):
            denoiser(x, bad)
    between = float(SIGMAS[500] * SIGMAS[501]) ** 0.5
    if rule == "exact":
        with pytest.raises(ValueError, match=r"not one of the network's 1000 levels.*nearest is"):
            denoiser(x, between)
    else:
        denoiser(x, between)
    # Where the level cannot be looked at, the result is not a number, which every solve reports.
    hidden = torch.func.vmap(lambda s: denoiser(x[:1], s))(torch.tensor([0.5 * SIGMAS[0], 1.0]))
    if rule != "exact":
        assert hidden.isnan().flatten().tolist() == [True, False]


class Quantised:
    """An exact noise network of a discrete schedule, which takes a fractional index for a noise level.

    Between its levels ``log σ`` is linear in the index, or, as a network that learned them would have
    it, smooth.
    """

    def __init__(self, *, smooth):
        self.log_sigma = make_interp_spline(
            np.arange(1000), SIGMAS.log().numpy(), k=3 if smooth else 1
        )

    def __call__(self, x, index):
        sigma = torch.from_numpy(np.exp(self.log_sigma(index.double().numpy())))
        x_hat = x * (1 + sigma[:, None] ** 2).sqrt()
        return (x_hat - LAW.denoise(x_hat, sigma)) / sigma[:, None]


def quantised(rule, *, smooth=True):
    return sk.NetworkDenoiser(
        Quantised(smooth=smooth),
        sk.DiscreteVP(ALPHAS),
        predicts="noise",
        level=sk.levels.Index(SIGMAS, rule),
        label_dtype=DOUBLE,
        sigma_data=1.0,
    )


def test_rounded_levels_stop_the_convergence_of_a_solver():
    x = 10 * normal(16, 3)
    edm = sk.EDM()

    grid = partial(sk.grids.log, sigma_max=10.0, sigma_min=0.05)

    def end(denoiser, steps):
        flow = edm.probability_flow(denoiser)
        return sk.solve(flow, x, method="adams3", sigmas=grid(steps), sigma_data=1.0).x

    exact = sk.solve(
        edm.probability_flow(LAW), x, method="dopri5", sigmas=[10.0, 0.05], rtol=1e-9
    ).x
    networks = {
        "exact": LAW,
        "linear": quantised("interpolated", smooth=False),
        "smooth": quantised("interpolated"),
        "nearest": quantised("nearest"),
    }
    error = {
        (name, steps): float((end(d, steps) - exact).square().mean().sqrt())
        for name, d in networks.items()
        for steps in (20, 60, 180)
    }
    # Order 3 is a factor of 27: kept where the network means what the index says,
    assert error["exact", 60] < error["exact", 20] / 20
    assert error["linear", 60] == pytest.approx(error["exact", 60], rel=0.05)
    assert error["linear", 180] < error["linear", 60] / 20
    # down to the difference of two interpolants where it does not,
    assert error["smooth", 180] > error["smooth", 60] / 5
    assert error["smooth", 180] < 1e-5
    # and lost where levels are rounded, with a floor at their spacing.
    assert error["nearest", 180] > error["nearest", 60] / 3
    assert error["nearest", 180] > 10 * error["smooth", 180]


def test_the_exact_rule_solves_on_the_levels_of_the_network():
    rows = np.unique(np.linspace(0, 999, 41).round().astype(int))[::-1].copy()
    grid = SIGMAS.numpy()[rows]
    x = float(grid[0]) * normal(8, 3)
    edm = sk.EDM(0.001, 200.0)
    ideal, found = (
        sk.solve(edm.probability_flow(d), x, method="adams2", sigmas=grid, sigma_data=1.0).x
        for d in (LAW, quantised("exact"))
    )
    torch.testing.assert_close(found, ideal, rtol=0, atol=1e-9)


# ---------------------------------------------------------------- what else a network is


def test_the_first_half_of_a_learned_variance_is_taken():
    vp = sk.VP()
    exact = Exact("noise", vp)
    network = lambda x, t: torch.cat([exact(x, t), 1e3 * torch.ones_like(x)], 1)  # noqa: E731
    options = {"predicts": "noise", "level": sk.levels.Time(vp), "label_dtype": DOUBLE}
    denoiser = sk.NetworkDenoiser(network, vp, learned_variance=True, **options)
    x = normal(4, 3)
    torch.testing.assert_close(denoiser(x, 2.0), LAW.denoise(x, 2.0))
    with pytest.raises(ValueError, match="say learned_variance=True"):
        sk.NetworkDenoiser(network, vp, **options)(x, 2.0)
    with pytest.raises(ValueError, match=r"must return shape \(4, 6\)"):
        sk.NetworkDenoiser(exact, vp, learned_variance=True, **options)(x, 2.0)


def test_conditioning_goes_through_as_it_is():
    digits = sk.load_digits_denoiser(dtype=DOUBLE)
    denoiser = sk.NetworkDenoiser(
        digits.network,
        sk.EDM(),
        predicts="edm",
        level=sk.levels.LogSigma(),
        sigma_data=digits.sigma_data,
    )
    assert trained_range(denoiser) == (80.0, 0.002)
    assert known_sigma_data(partial(denoiser, class_labels=None)) == 0.75
    labels = torch.arange(10)
    x = 3 * normal(10, 1, 8, 8)
    sigma = torch.linspace(0.1, 40, 10, dtype=DOUBLE)
    expected = digits(x, sigma, class_labels=labels)
    torch.testing.assert_close(denoiser(x, sigma, class_labels=labels), expected)
    # Per sample, through an adaptive solve whose samples leave the batch.
    flow = [
        sk.EDM().probability_flow(sk.Conditioned(d, class_labels=labels))
        for d in (digits, denoiser)
    ]
    ends = [sk.solve(f, 5 * x, sigmas=[5.0, 0.1], rtol=1e-4).x for f in flow]
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_bfloat16_network_in_a_float32_solve(autocast):
    digits = sk.load_digits_denoiser()
    network = digits.network if autocast else sk.load_digits_denoiser(dtype=torch.bfloat16).network
    denoiser = sk.NetworkDenoiser(
        network,
        sk.EDM(),
        predicts="edm",
        level=sk.levels.LogSigma(),
        sigma_data=0.75,
        autocast=torch.bfloat16 if autocast else None,
        label_dtype=None if autocast else torch.bfloat16,
    )
    x = normal(32, 1, 8, 8, dtype=torch.float32)
    for sigma in (0.01, 1.0, 40.0):
        error = denoiser(sigma * x, sigma) - digits(sigma * x, sigma)
        assert error.dtype == torch.float32
        # Errors of F, about 1 %, enter through c_out <= min(σ, σ_d) only.
        assert 0 < error.square().mean().sqrt() < 0.03 * min(sigma, 0.75)
        if autocast:  # the network alone ran in half precision
            with torch.autocast("cpu", torch.bfloat16):
                raw = digits.network(
                    sigma * x / np.hypot(sigma, 0.75), torch.full((32,), np.log(sigma) / 4)
                )
            c_out = sigma * 0.75 / np.hypot(sigma, 0.75)
            skip = 0.75**2 / (sigma**2 + 0.75**2) * sigma * x
            torch.testing.assert_close(
                denoiser(sigma * x, sigma), skip + c_out * raw, atol=1e-2, rtol=0
            )


def test_a_denoiser_can_be_sent_to_another_process():
    vp = sk.DiscreteVP(ALPHAS)
    index = sk.levels.Index(SIGMAS, "interpolated")
    original = sk.NetworkDenoiser(Perceptron(), vp, predicts="v", level=index, sigma_data=0.7)
    x = normal(4, 3)
    expected = original(x, 1.3)
    copy = pickle.loads(pickle.dumps(original))
    assert torch.equal(copy(x, 1.3), expected)
    assert trained_range(copy) == trained_range(original)


def test_gradients_go_through():
    denoiser = adapted("v", sk.VP())
    x = normal(3, 3).requires_grad_()
    found = torch.autograd.grad(denoiser(x, 1.5).square().sum(), x)[0]
    expected = torch.autograd.grad(LAW.denoise(x, 1.5).square().sum(), x)[0]
    torch.testing.assert_close(found, expected)


def test_it_compiles_without_a_break_and_has_a_likelihood():
    options = {"predicts": "v", "level": sk.levels.Index(SIGMAS, "interpolated")}
    network = Perceptron()
    denoiser = sk.NetworkDenoiser(network, sk.DiscreteVP(ALPHAS), **options)
    x, sigma = normal(4, 3), torch.tensor(1.5, dtype=DOUBLE)
    compiled = torch.compile(denoiser, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, sigma), denoiser(x, sigma))
    found, expected = (
        sk.log_likelihood(
            sk.EDM(0.3, 5.0), d, x, divergence="exact", rtol=1e-3, sigma_data=1.0
        ).log_prob
        for d in (adapted("v", sk.VP()), LAW)
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_nothing_waits_for_the_device(monkeypatch):
    read = []
    for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *a, n=name, o=original, **k: (read.append(n), o(*a, **k))[1]
        )
    x, sigma = normal(4, 3), torch.linspace(0.1, 3, 4, dtype=DOUBLE)
    for kind in KINDS:
        denoiser = adapted(kind, sk.VP())
        denoiser.network = lambda x, label: x
        read.clear()
        denoiser(x, sigma)
        assert not read


@pytest.mark.parametrize("where", ["autocast", "dtype"])
def test_what_float16_cannot_hold_is_not_a_number(where):
    """Of a network that saturates the output says nothing; and what is sure to come is refused."""
    options = {"predicts": "data", "level": sk.levels.Sigma(), where: torch.float16}
    denoiser = sk.NetworkDenoiser(lambda x, label: x.tanh(), sk.EDM(), **options)
    x = torch.ones(3, 2)
    x[1, 0], x[2, 1] = 65504.0, -7e4
    found = denoiser(x, 1.0)
    assert found.isnan().all(1).tolist() == [False, False, True]
    assert not found[:2].isnan().any()
    with pytest.raises(ValueError, match=r"works in torch\.float16, whose largest number is 65504"):
        sk.NetworkDenoiser(lambda x, label: x, sk.EDM(sigma_max=2e4), **options)


def test_a_level_that_is_no_tensor_is_refused():
    denoiser = sk.NetworkDenoiser(
        lambda x, label: x, sk.EDM(), predicts="data", level=lambda sigma: 1.0
    )
    with pytest.raises(TypeError, match="level returned a float; it must return a tensor"):
        denoiser(normal(3, 2), 1.0)


def test_parameters_that_are_only_stored_do_not_say_the_dtype():
    stored = torch.nn.Linear(2, 2, bias=False).to(torch.float8_e4m3fn)
    network = torch.nn.Sequential(stored, torch.nn.Linear(2, 2).bfloat16())
    assert parameter_dtype(network) == torch.bfloat16
    assert parameter_dtype(stored) is None


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("width", [16, 300])
def test_the_batch_fits_the_budget(width):
    network = Perceptron(dim=64, width=width)
    like = normal(200, 64)

    def peak(size):
        with torch.no_grad():
            return peak_memory(
                lambda: network(like[:size], torch.full((size,), 1.0).double()), like.device
            )

    sizes = []
    for memory in (peak(1), peak(3) + 7, peak(40), 10 * peak(40)):
        size = sk.fit_batch(network, like, memory=memory)
        assert peak(size) <= memory
        assert size == len(like) or peak(size + 1) > memory  # and no larger one does
        sizes.append(size)
    assert sizes[:3] == [1, 3, 40]
    assert sizes == sorted(sizes)
    with pytest.raises(ValueError, match="one sample takes"):
        sk.fit_batch(network, like, memory=peak(1) - 1)
    with pytest.raises(ValueError, match=r"\(64,\)"):
        sk.fit_batch(network, like[0], memory=10**9)
    batched = sk.FixedBatch(network, sizes[1])
    torch.testing.assert_close(batched(like, 1.0), network(like, torch.tensor(1.0)))


def test_the_batch_is_measured_with_its_conditioning():
    """What all samples share, a number, is not cut; tensors in containers are."""
    seen = []

    def network(x, sigma, scale, added):
        seen.append(len(x))
        assert scale.ndim == 0
        assert len(added["text"][0]) == len(x)
        return x * scale + added["text"][0]

    like, added = normal(20, 3), {"text": [normal(20, 3, seed=1)], "name": "text"}
    told = {"scale": torch.tensor(2.0), "added": added}
    size = sk.fit_batch(network, like, memory=10**6, **told)
    assert size == 20
    assert set(seen) == {1, 2, 20}
    found = sk.FixedBatch(network, 7)(like, 1.0, **told)
    assert torch.equal(found, 2 * like + added["text"][0])


def test_a_batch_that_takes_more_than_in_proportion_is_made_smaller():
    def pairwise(x, sigma):  # quadratic in the size
        return x - torch.cdist(x, x).square().mean(1, keepdim=True)

    like = normal(400, 64)

    def peak(size):
        levels = partial(like.new_full, (size,), 1.0)  # which are part of a call
        return peak_memory(lambda: pairwise(like[:size], levels()), like.device)

    found = [sk.fit_batch(pairwise, like, memory=peak(size)) for size in (2, 30, 100, 250)]
    assert all(peak(n) <= peak(size) for n, size in zip(found, (2, 30, 100, 250), strict=True))
    assert found == sorted(found)
    assert found == [2, 30, 100, 250]


def test_memory_is_that_of_tensors_alive_together():
    # x 2 lives while its square root does, then the sum is added: three arrays of 8 kB at most.
    # What was there before is not counted, nor are views of it.
    x = torch.ones(1000, dtype=DOUBLE)

    def call():
        for _ in range(5):
            x.view(10, 100).t()
            y = 2 * x
            y = y.sqrt() + y
            y.add_(1).view(10, 100).t()

    with PeakMemory() as reference:
        call()
    assert peak_memory(call, x.device) == 3 * 8000
    assert reference.peak >= 3 * 8000  # that of the other tests counts the input as well
