"""Guided denoisers against closed forms: the score of ``p_σ(x) p_σ(c | x)^w`` of labelled mixtures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import DOUBLE, EDM, Perceptron, normal
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit.denoisers import known_sigma_data, model_of, trained_range
from sdekit.distributions import GaussianMixture, LabelledMixture
from sdekit.guidance import ClassifierFree, ClassifierGuided, cfg_plus_plus
from sdekit.thresholding import DynamicThreshold, StaticThreshold
from sdekit.wrapper import evaluations

MIXTURE = GaussianMixture.random(6, 3, seed=0)
LAW = LabelledMixture(MIXTURE, [0, 0, 1, 1, 2, 2])
NONE = torch.tensor(3)
B = 12
LABELS = torch.arange(B) % 3
X = 1.5 * normal(B, 3)


class Counting:
    """A class-conditional network that counts its calls, and the rows in them."""

    sigma_min, sigma_max, sigma_data = 0.01, 50.0, LAW.sigma_data

    def __init__(self):
        self.calls = self.rows = 0

    def __call__(self, x, sigma, class_labels=None):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return LAW(x, sigma, class_labels)


def free(scale, func=LAW, labels=LABELS, **options):
    return ClassifierFree(
        func,
        scale,
        conditional={"class_labels": labels},
        unconditional={"class_labels": NONE},
        **options,
    )


def own_label(x, sigma, labels):
    return LAW.class_log_prob(x, sigma).gather(1, labels[:, None])[:, 0]


def tilted(x, sigma, labels, scale):
    """``x + σ² ∇ log p_σ(x) p_σ(c | x)^w``, from densities of the mixture and of its classes alone."""
    x = x.clone().requires_grad_()
    joint = torch.stack(
        [
            LAW.given(c).log_prob(x, sigma) + MIXTURE.weights[LAW.classes == c].sum().log()
            for c in range(3)
        ],
        1,
    )
    marginal = joint.logsumexp(1)
    own = joint.gather(1, labels[:, None])[:, 0]
    (score,) = torch.autograd.grad((marginal + scale * (own - marginal)).sum(), x)
    return x.detach() + sigma**2 * score


@settings(deadline=None, max_examples=25)
@given(st.floats(0.0, 8.0), st.floats(0.05, 5.0))
def test_guided_denoisers_are_that_of_the_tilted_law(scale, sigma):
    """Both kinds of guidance, at any scale, to round-off."""
    exact = tilted(X, sigma, LABELS, scale)
    with torch.no_grad():
        classified = ClassifierGuided(MIXTURE, own_label, scale, labels=LABELS)(X, sigma)
        assert (free(scale)(X, sigma) - exact).abs().max() < 1e-12 * (1 + scale)
        assert (classified - exact).abs().max() < 1e-12 * (1 + scale)


def test_a_level_for_each_sample():
    sigma = torch.linspace(0.1, 3, B, dtype=DOUBLE)
    each = torch.cat(
        [tilted(X[i : i + 1], float(s), LABELS[i : i + 1], 2.5) for i, s in enumerate(sigma)]
    )
    with torch.no_grad():
        for guided in (free(2.5), ClassifierGuided(MIXTURE, own_label, 2.5, labels=LABELS)):
            assert (guided(X, sigma) - each).abs().max() < 1e-12


def test_at_scale_one_samples_have_the_conditional_law():
    """A flow of the guided denoiser is that of the class, so it inverts the class's own flow."""
    law = LabelledMixture(GaussianMixture([0.3, 0.3, 0.4], [[-1], [0.5], [1.2]], 0.04), [0, 1, 1])
    start = law.given(1).sample(32, 40.0, seed=1)
    guided = ClassifierGuided(law.mixture, lambda x, sigma: law.class_log_prob(x, sigma)[:, 1], 1.0)
    with torch.no_grad():
        solved = sk.solve(EDM.probability_flow(guided), start, rtol=1e-10, sigmas=[40.0, 0.01])
    assert (solved.x - law.given(1).flow(start, 40.0, 0.01)).abs().max() < 1e-8


def test_inside_of_no_grad_and_inference_mode():
    guided = ClassifierGuided(MIXTURE, own_label, 2.0, labels=LABELS)
    exact = tilted(X, 0.7, LABELS, 2.0)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            found = guided(X * 1.0, torch.tensor(0.7, dtype=DOUBLE))
            assert not found.requires_grad
        assert (found - exact).abs().max() < 1e-12


def test_gradients_go_through_guidance():
    """Derivatives of the guided denoiser are those of a difference quotient."""
    guided = ClassifierGuided(MIXTURE, own_label, 2.0, labels=LABELS[:3])
    x = X[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: guided(x, 0.7), x)
    scale = torch.ones((), dtype=DOUBLE, requires_grad=True)
    trained = ClassifierGuided(
        MIXTURE, lambda x, sigma: -scale * x.square().sum(1), 1.0
    )  # of which the gradient in the scale is known
    trained(X, 0.5).sum().backward()
    assert scale.grad == pytest.approx(float(-0.25 * 2 * X.sum()), rel=1e-12)


# What a call costs, and where it guides.


def test_one_call_on_a_doubled_batch():
    network = Counting()
    guided = free(3.0, network)
    guided(X, 1.0)
    assert (network.calls, network.rows, evaluations(guided)) == (1, 2 * B, 2)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_one_evaluation_where_one_denoiser_is_asked_for(scale):
    network = Counting()
    guided = free(scale, network)
    labels = LABELS if scale else NONE.expand(B)
    assert torch.equal(guided(X, 1.0), LAW(X, 1.0, labels))
    assert (network.rows, evaluations(guided)) == (B, 1)


def test_outside_of_the_interval_the_conditional_denoiser_is_called_once():
    """Open below, closed above; also where some samples are inside and others not."""
    network = Counting()
    guided = free(3.0, network, interval=(0.2, 2.0))
    for sigma, inside in ((0.2, False), (0.21, True), (2.0, True), (2.01, False)):
        network.rows = 0
        level = torch.tensor(sigma, dtype=DOUBLE)
        expected = free(3.0)(X, level) if inside else LAW(X, level, LABELS)
        assert torch.equal(guided(X, level), expected)
        assert network.rows == B * evaluations(guided, level) == B * (1 + inside)
    never = free(0.0, interval=(0.2, 2.0))
    assert torch.equal(never(X, 1.0), LAW(X, 1.0, NONE.expand(B)))
    assert torch.equal(never(X, 3.0), LAW(X, 3.0, LABELS))
    levels = torch.tensor([0.1, 0.5, 1.5, 7.0], dtype=DOUBLE).repeat(3)
    network.rows = 0
    found = guided(X, levels)
    assert network.rows == B + B // 2
    for i, level in enumerate(levels):
        one = free(3.0, labels=LABELS[i : i + 1], interval=(0.2, 2.0))(X[i : i + 1], level)
        assert (found[i] - one[0]).abs().max() < 1e-13


@pytest.mark.parametrize("method", ["edm_euler", "dpmpp_2m", "bayesian_adams", "edm_heun"])
def test_a_solve_counts_every_evaluation(method):
    for interval in (None, (0.1, 1.0)):
        network = Counting()
        flow = EDM.probability_flow(free(3.0, network, interval=interval))
        solved = sk.solve(flow, 80 * X, method=method, steps=9)
        assert solved.nfe * B == network.rows


def test_adaptive_steps_take_conditioning_along():
    """Samples that have arrived leave the batch: each ends where it ends alone."""
    start = 5 * X
    for guided in (
        lambda rows: free(2.0, labels=LABELS[rows], interval=(0.2, 2.0)),
        lambda rows: ClassifierGuided(MIXTURE, own_label, 2.0, labels=LABELS[rows]),
        lambda rows: StaticThreshold(free(2.0, labels=LABELS[rows]), -2, 2),
    ):
        options = {"rtol": 1e-5, "sigmas": [5.0, 0.05]}
        with torch.no_grad():
            together = sk.solve(EDM.probability_flow(guided(slice(None))), start, **options).x
            for i in (0, 5):
                rows = slice(i, i + 1)
                alone = sk.solve(EDM.probability_flow(guided(rows)), start[rows], **options).x
                assert (together[rows] - alone).abs().max() < 1e-9


@pytest.mark.parametrize("rtol", [None, 1e-3])
def test_a_solve_counts_the_rows_of_the_network(rtol):
    """Also those of the call that estimates the scale of the data, and of rejected steps."""
    network = Counting()
    network.sigma_data = None
    grid = {"steps": 10} if rtol is None else {"rtol": rtol}
    solution = sk.solve(EDM.probability_flow(free(3.0, network)), 80 * X, **grid)
    assert solution.stats.nfe_per_sample.sum() == network.rows


def test_a_budget_of_evaluations_is_kept():
    """Of the network, not of the denoiser made of it."""
    network = Counting()
    flow = EDM.probability_flow(free(3.0, network))
    solution = sk.solve(flow, 80 * X, rtol=1e-6, max_nfe=41)
    assert solution.status == "max_nfe"
    assert network.rows == solution.stats.nfe_per_sample.sum()
    assert solution.nfe <= 41


def test_the_default_holds_for_steep_fields():
    """Where ``bayesian_adams`` diverges; the reverse SDE's default rests on ``w = 1``, too."""
    start = 80 * normal(64, 16)
    law = LabelledMixture(GaussianMixture.random(10, 16, seed=0), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    labels = torch.zeros(64, dtype=torch.int64)
    model = free(8.0, law, labels)
    model.unconditional = {"class_labels": torch.tensor(5)}
    flow = EDM.probability_flow(model)
    exact = sk.solve(flow, start, rtol=1e-8).x

    def error(**options):
        return float((sk.solve(flow, start, steps=10, **options).x - exact).square().mean().sqrt())

    assert error() == error(method="adams2") < 0.2
    assert error(method="bayesian_adams") > 1
    reverse = EDM.reverse(model)
    own, named = (
        sk.solve(reverse, start, steps=8, seed=0, method=name).x
        for name in (None, "stochastic_adams2")
    )
    assert torch.equal(own, named)


def test_rows_are_those_of_the_samples():
    samples = np.array([7, 2])
    inner = ClassifierFree(  # a negative label of its own for each sample
        LAW,
        2.0,
        conditional={"class_labels": LABELS},
        unconditional={"class_labels": (LABELS + 1) % 3},
    )
    for guided in (inner, StaticThreshold(inner), DynamicThreshold(inner)):
        part = model_of(guided, samples)
        assert (part(X[samples], 0.5) - guided(X, 0.5)[samples]).abs().max() < 1e-14


def test_what_is_inside_is_doubled_with_the_batch():
    """Conditioning and observations of each sample, in denoisers that are guided."""
    y = normal(B, 3, seed=5)
    mask = torch.tensor([True, False, False])
    for inner in (
        sk.Replaced(lambda x, s, class_labels: LAW(x, s, class_labels), mask, y),
        sk.Conditioned(lambda x, s, class_labels, y: LAW(x, s, class_labels) + y, y=y),
        free(2.0, lambda x, s, class_labels, more: LAW(x, s, class_labels) + more, LABELS),
    ):
        if isinstance(inner, ClassifierFree):
            inner.conditional = {"more": y}
            inner.unconditional = {"more": torch.zeros(1, 3, dtype=DOUBLE)}
        ours = free(3.0, inner)(X, torch.tensor(0.7))
        c, u = (inner(X, torch.tensor(0.7), class_labels=v) for v in (LABELS, NONE.expand(B)))
        torch.testing.assert_close(ours, u + 3 * (c - u), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_edges_of_an_interval_are_those_of_any_dtype(dtype):
    """``low < σ <= high`` although 0.2 in float32 is above 0.2, and 0.7 below 0.7."""
    network = Counting()
    model = free(3.0, network, interval=(0.2, 0.7))
    rows = []
    for sigma in (0.2, 0.21, 0.7, 0.71):
        network.rows = 0
        model(X.to(dtype), torch.tensor(sigma, dtype=dtype))
        rows.append(network.rows)
    assert rows == [B, 2 * B, 2 * B, B]


def test_conditioning_of_the_call_reaches_both_halves():
    """What an outer wrapper says of each sample is doubled with the batch."""
    shift = normal(B, 1, seed=3)

    def network(x, sigma, class_labels, shift):
        return LAW(x, sigma, class_labels) + shift

    guided = sk.Conditioned(free(2.0, network), shift=shift)
    assert (guided(X, 0.5) - free(2.0)(X, 0.5) - shift).abs().max() < 1e-13


def test_what_the_network_says_of_itself_is_said_of_the_wrapper():
    for guided in (free(2.0, Counting()), DynamicThreshold(free(2.0, Counting()))):
        assert trained_range(guided) == (50.0, 0.01)
        assert known_sigma_data(guided) == LAW.sigma_data


# Rescaling.


def test_rescaled_samples_have_the_spread_of_the_conditional_ones():
    conditional, guided = LAW(X, 0.5, LABELS), free(4.0)(X, 0.5)
    full = free(4.0, rescale=1.0)(X, 0.5)
    assert (full.std(1) - conditional.std(1)).abs().max() < 1e-14
    # The mean is scaled as well: rescaling multiplies, it does not centre.
    assert (full / guided - (conditional.std(1) / guided.std(1))[:, None]).abs().max() < 1e-12
    half = free(4.0, rescale=0.5)(X, 0.5)
    assert (half - (full + guided) / 2).abs().max() < 1e-14


# CFG++.


@pytest.mark.parametrize("zero", ["none", "given", "implied"])
def test_cfg_plus_plus_is_its_recursion(zero):
    """``x̂' = D_λ + (σ'/σ)(x̂ − D_u)``, step by step; also where the solve ends by a step to 0."""
    positive = [*sk.grids.karras(8, 20.0, 0.05)]
    sigmas = positive if zero == "none" else [*positive, 0.0]
    guided = cfg_plus_plus(
        LAW,
        0.6,
        sigmas if zero == "given" else positive,
        conditional={"class_labels": LABELS},
        unconditional={"class_labels": NONE},
    )
    x = start = 20 * X
    for high, low in itertools.pairwise(sigmas):
        conditional, unconditional = LAW(x, high, LABELS), MIXTURE(x, high)
        mixed = unconditional + 0.6 * (conditional - unconditional)
        x = mixed + low / high * (x - unconditional)
    ending = "stop" if zero == "none" else "denoise"
    solved = sk.solve(
        EDM.probability_flow(guided), start, method="edm_euler", sigmas=sigmas, ending=ending
    )
    assert (solved.x - x).abs().max() < 1e-12


def test_cfg_plus_plus_grows_with_the_number_of_steps():
    """On a log grid it is guidance with ``w = λ/(1 − q)``, ``q`` the ratio of the grid."""
    for n in (10, 100):
        sigmas = sk.grids.log(n, 20.0, 0.05)
        scale = 0.6 / (1 - (0.05 / 20) ** (1 / n))
        plus = cfg_plus_plus(
            LAW,
            0.6,
            sigmas,
            conditional={"class_labels": LABELS},
            unconditional={"class_labels": NONE},
        )
        for level in sigmas[:-1]:
            assert (plus(X, level) - free(float(scale))(X, level)).abs().max() < 1e-11 * n


# Thresholds.


def test_static_threshold_clips():
    found = StaticThreshold(MIXTURE, -0.5, 0.25)(X, 0.5)
    assert torch.equal(found, MIXTURE(X, 0.5).clamp(-0.5, 0.25))


@settings(deadline=None, max_examples=10)
@given(st.floats(0.1, 1.0), st.floats(0.2, 3.0))
def test_dynamic_threshold_is_numpys_quantile(quantile, maximum):
    """Scaled into ``[−m, m]``; and nothing happens to samples that are there."""
    x = 2 * normal(9, 2, 4, 4)
    found = DynamicThreshold(lambda x, sigma: x, quantile, maximum)(x, 1.0)
    for before, after in zip(x.numpy(), found.numpy(), strict=True):
        bound = max(np.quantile(np.abs(before), quantile), maximum)
        assert np.allclose(after, np.clip(before, -bound, bound) * maximum / bound, atol=1e-14)
    assert found.abs().max() <= maximum * (1 + 1e-15)
    small = x * (0.999 * maximum / x.abs().max())
    same = DynamicThreshold(lambda x, sigma: x, quantile, maximum)(small, 1.0)
    assert (same - small).abs().max() < 1e-15


# A network: the digits of the package.


def test_a_network_is_guided_like_a_mixture():
    """float32, labels of each sample, and two separate calls as the reference."""
    network = sk.load_digits_denoiser()
    x, labels = normal(5, 1, 8, 8, dtype=torch.float32), torch.tensor([0, 3, 9, 3, 1])
    guided = ClassifierFree(
        network,
        3.0,
        conditional={"class_labels": labels},
        unconditional={"class_labels": torch.tensor([10])},
    )
    c, u = network(x, 1.0, class_labels=labels), network(x, 1.0)
    assert (guided(x, torch.tensor(1.0)) - (u + 3 * (c - u))).abs().max() < 1e-5


def test_a_classifier_that_is_a_network():
    network = Perceptron(dim=3)
    guided = ClassifierGuided(
        MIXTURE, lambda x, s: network(x, torch.as_tensor(s, dtype=DOUBLE))[:, 0]
    )
    with torch.no_grad():
        found = guided(X, 0.5)
        for i in range(3):
            step = 1e-6 * torch.eye(3, dtype=DOUBLE)[i]
            ahead, back = (
                network(X + h * step, torch.tensor(0.5, dtype=DOUBLE))[:, 0] for h in (1, -1)
            )
            slope = (ahead - back) / 2e-6
            assert ((found - MIXTURE(X, 0.5))[:, i] - 0.25 * slope).abs().max() < 1e-8


# Refusals.

LABEL = {"class_labels": LABELS}
BAD = {
    "negative": (lambda: free(-1.0), ValueError, "not negative"),
    "not a number": (lambda: free("2"), TypeError, "must be a number"),
    "nan": (lambda: free(float("nan")), ValueError, "finite"),
    "empty interval": (lambda: free(2.0, interval=(1.0, 1.0)), ValueError, "is empty"),
    "rescale": (lambda: free(2.0, rescale=1.5), ValueError, "from 0 to 1"),
    "other names": (
        lambda: ClassifierFree(LAW, 2.0, conditional=LABEL, unconditional={}),
        ValueError,
        "same names",
    ),
    "no tensor": (
        lambda: ClassifierFree(LAW, 2.0, conditional=LABEL, unconditional={"class_labels": 3}),
        TypeError,
        "must be a tensor",
    ),
    "not callable": (lambda: free(2.0, 1.0), TypeError, "must be callable"),
    "other batch": (lambda: free(2.0)(X[:5], 1.0), ValueError, "is for 12 samples"),
    "one component": (
        lambda: free(2.0, lambda x, s, class_labels: x, rescale=1.0)(X[:, :1], 1.0),
        ValueError,
        "standard deviation",
    ),
    "classifier's scale": (
        lambda: ClassifierGuided(MIXTURE, own_label, -1.0),
        ValueError,
        "not negative",
    ),
    "classifier's shape": (
        lambda: ClassifierGuided(MIXTURE, LAW.class_log_prob)(X, 1.0),
        ValueError,
        r"one number for each, \(12,\)",
    ),
    "classifier's type": (
        lambda: ClassifierGuided(MIXTURE, lambda x, s: 0.0)(X, 1.0),
        TypeError,
        "must return a tensor",
    ),
    "constant classifier": (
        lambda: ClassifierGuided(MIXTURE, lambda x, s: torch.zeros(len(x)))(X, 1.0),
        ValueError,
        "does not depend",
    ),
    "classifier's labels": (
        lambda: ClassifierGuided(MIXTURE, own_label, labels=3),
        TypeError,
        "entry per sample",
    ),
    "increasing grid": (
        lambda: cfg_plus_plus(LAW, 0.5, [1.0, 2.0], conditional=LABEL, unconditional=LABEL),
        ValueError,
        "strictly decreasing",
    ),
    "static": (lambda: StaticThreshold(MIXTURE, 1.0, -1.0), ValueError, "is empty"),
    "quantile": (lambda: DynamicThreshold(MIXTURE, 1.5), ValueError, "at most 1"),
    "maximum": (lambda: DynamicThreshold(MIXTURE, 0.9, 0.0), ValueError, "positive"),
    "classes": (lambda: LabelledMixture(MIXTURE, [0, 0, 2, 2, 2, 2]), ValueError, "without a gap"),
    "how many classes": (lambda: LabelledMixture(MIXTURE, [0, 1]), ValueError, "one for each of 6"),
    "no such class": (lambda: LAW.given(3), ValueError, "0 to 2"),
    "labels": (lambda: LAW(X, 1.0, LABELS[:3]), ValueError, r"must be \(12,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
