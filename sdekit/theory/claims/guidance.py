"""Guidance: Bayes' rule for scores and denoisers, and what it is not."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ... import grids
from ...distributions import Gaussian, GaussianMixture, LabelledMixture, posterior
from ...guidance import ClassifierFree, ClassifierGuided, cfg_plus_plus
from ...inverse import LinearObservation, PiGDM
from ...linear import component_covs
from ...processes import EDM
from ...sampling import solve
from ..calculus import gradient, line, residual
from ..claim import claim
from ..draw import Draw

BATCH = 6
TOLD, UNTOLD = {"class_labels": torch.tensor(0)}, {"class_labels": torch.tensor(2)}


def labelled(draw: Draw, dim: int = 2) -> LabelledMixture:
    """Draw a mixture of four components in two classes."""
    return LabelledMixture(draw.mixture(dim, 4), [0, 1, 0, 1])


def noisy(law: LabelledMixture, draw: Draw) -> tuple[Tensor, float]:
    """Draw states and their level."""
    sigma = float(draw.levels())
    return law.mixture.sample(BATCH, sigma, seed=draw.integer(2**31)), sigma


def class_score(law: LabelledMixture, x: Tensor, sigma: float) -> Tensor:
    """``∇ log p_σ(c = 0 | x)`` by automatic differentiation."""
    return gradient(lambda y: law.class_log_prob(y, sigma)[:, 0], x).detach()


def free(law: LabelledMixture, scale: float) -> ClassifierFree:
    """Classifier-free guidance towards class 0."""
    return ClassifierFree(law, scale, conditional=TOLD, unconditional=UNTOLD)


@claim(
    "guidance-bayes",
    title="Bayes' rule for scores",
    statement="∇ log p_σ(x | c) = ∇ log p_σ(x) + ∇ log p_σ(c | x) at every σ",
    sources={"guidance": "section 4.1", "song2021": "eq. 14"},
    tags=("guidance", "score"),
    tolerance=1e-10,
    because="round-off of first derivatives",
)
def _bayes(draw: Draw) -> float:
    """Noise is added whatever the class is, so Bayes' rule holds for the noisy states.

    The score of one class, a mixture by itself, is compared with that of all and the gradient of
    the exact classifier by automatic differentiation.
    """
    law = labelled(draw)
    x, sigma = noisy(law, draw)
    parts = law.mixture.score(x, sigma), class_score(law, x, sigma)
    return residual(law.given(0).score(x, sigma), parts[0] + parts[1], *parts)


@claim(
    "guidance-classifier",
    title="Classifier guidance at w = 1 is conditioning",
    statement="D + σ² ∇ log p_σ(c | x) = E[x0 | x, c]",
    sources={"guidance": "eq. 14", "song2021": "eq. 14"},
    tags=("guidance",),
    tolerance=1e-10,
    because="round-off of first derivatives",
)
def _classifier(draw: Draw) -> float:
    """Tweedie's formula in Bayes' rule.

    `ClassifierGuided` with the exact classifier is compared with the denoiser of the class's own law
    and with that of the labelled mixture; at w = 2.5 with the rule written out.
    """
    law = labelled(draw)
    x, sigma = noisy(law, draw)

    def log_prob(y: Tensor, level: float) -> Tensor:
        return law.class_log_prob(y, level)[:, 0]

    one, more = (ClassifierGuided(law, log_prob, w)(x, sigma) for w in (1.0, 2.5))
    labels = torch.zeros(BATCH, dtype=torch.int64)
    denoised = law.given(0)(x, sigma)
    strong = law.mixture(x, sigma) + 2.5 * sigma**2 * class_score(law, x, sigma)
    return max(
        residual(one, denoised, x),
        residual(law(x, sigma, class_labels=labels), denoised, x),
        residual(more, strong, x),
    )


@claim(
    "guidance-classifier-free",
    title="The classifier-free combination is a score",
    statement="(D_u + w (D_c − D_u) − x)/σ² = ∇ log [p_σ(x) p_σ(c | x)^w]",
    sources={"cfg": "eq. 6"},
    tags=("guidance", "score"),
    tolerance=1e-10,
    because="round-off of first derivatives",
)
def _classifier_free(draw: Draw) -> float:
    """D_c − D_u is σ² times the score of an implicit classifier, here the exact one.

    `ClassifierFree` at a random w is compared with the gradient of the density it stands for, by
    automatic differentiation. Ho and Salimans' weight is w − 1.
    """
    law, w = labelled(draw), float(draw.uniform(0.0, 5.0))
    x, sigma = noisy(law, draw)

    def log_density(y: Tensor) -> Tensor:
        return law.mixture.log_prob(y, sigma) + w * law.class_log_prob(y, sigma)[:, 0]

    step = sigma**2 * gradient(log_density, x).detach()
    return residual(free(law, w)(x, sigma), x + step, x)


@claim(
    "guidance-one",
    title="Guidance with w = 1 samples the class",
    statement="D_u + 1·(D_c − D_u) = D_c, and its flow carries p_σ(x | c) to p(x | c)",
    sources={"cfg": "eq. 6"},
    tags=("guidance", "flow"),
    tolerance=1e-9,
    because="round-off; the solver is of order 8, on 16 steps",
)
def _one(draw: Draw) -> float:
    """At w = 1 the guided denoiser is that of the class, so the flow is the class's own.

    The guided flow of a mixture in one dimension is solved by dop853 from σ = 2 to 1 and compared
    with the flow of the law of the class, which conserves its CDF.
    """
    law = LabelledMixture(GaussianMixture([0.3, 0.3, 0.4], [[-1], [0.5], [1]], 0.3), [0, 1, 0])
    x, told = draw.normal(BATCH, 1) * 2, torch.zeros(BATCH, dtype=torch.int64)
    guided = free(law, 1.0)
    same = residual(guided(x, 1.5), law(x, 1.5, class_labels=told), x)
    sigmas = grids.log(16, 2.0, 1.0)
    found = solve(EDM().probability_flow(guided), x, method="dop853", sigmas=sigmas).x
    return max(same, residual(found, law.given(0).flow(x, 2.0, 1.0), x))


@claim(
    "guidance-not-noised",
    title="With w > 1 guided densities are not noised versions of one law",
    statement="p_σ(x) p_σ(c|x)^w ∝ (q ∗ N(0, σ²))(x) for q ∝ p p(c|·)^w if w = 1, but not if w = 3",
    sources={"cfg": "section 3"},
    tags=("guidance", "density"),
    tolerance=1e-9,
    because="trapezoidal rule on smooth densities; for w = 3 the scores must differ by 10 % at least",
)
def _not_noised(draw: Draw) -> float:
    """Raising to a power does not commute with adding noise.

    For a mixture of two classes in one dimension the law q tilted by p(c|x)^w is convolved with the
    noise by quadrature, and its score compared with the guided one, in the root mean square under q
    at σ: they agree for w = 1, and what the difference for w = 3 lacks to 10 % is the residual.
    """
    gap = float(draw.uniform(0.5, 1.0))
    law = LabelledMixture(GaussianMixture([0.5, 0.5], [[-gap], [gap]], 0.25), [1, 0])
    y, _ = line(law.mixture, nodes=2001)
    x, _ = line(law.mixture, 0.8, 401)
    kernel = torch.exp(-0.5 * ((x - y[:, 0]) / 0.8) ** 2)
    apart = []
    for w in (1.0, 3.0):
        q = torch.exp(law.mixture.log_prob(y) + w * law.class_log_prob(y, 0.0)[:, 0])
        mass = (kernel * q).sum(1)
        mean = (kernel * q * y[:, 0]).sum(1) / mass
        guided = free(law, w)(x, 0.8)[:, 0]
        seen = mass > 1e-12 * mass.max()
        weight = torch.sqrt(mass[seen])
        apart.append(
            residual(
                (weight * (guided - x[:, 0])[seen])[None], (weight * (mean - x[:, 0])[seen])[None]
            )
        )
    return max(apart[0], 0.1 - apart[1])


@claim(
    "guidance-linear-observation",
    title="Posterior of a linear observation",
    statement="p(x | y) ∝ p(x) N(y; A x, s² I), and D + σ² ∇ log p_σ(y | x̂) is its denoiser at every σ",
    sources={"song2021": "eq. 14", "sdekit": "design, section 3"},
    tags=("guidance", "density"),
    tolerance=1e-9,
    because="round-off of first derivatives",
)
def _linear_observation(draw: Draw) -> float:
    """The joint law of a mixture and its noisy observation is a mixture; so is the conditional one.

    The closed form is compared with Bayes' rule twice: in scores at σ = 0, with the likelihood
    written out; and at σ with p_σ(y | x̂) from the joint mixture of x̂ and y in three dimensions.
    """
    law, matrix, noise = draw.mixture(), draw.normal(1, 2), float(draw.uniform(0.2, 1.0))
    y, sigma = draw.normal(1), float(draw.levels())
    given, x = posterior(law, matrix, y, noise), draw.normal(BATCH, 2)
    likelihood = (y - x @ matrix.mT) @ matrix / noise**2
    prior = law.score(x, 0.0)
    found = residual(given.score(x, 0.0), prior + likelihood, prior, likelihood)
    # x̂ = x0 + σ ε and y: one Gaussian for each component.
    lift = torch.cat([torch.eye(2, dtype=torch.float64), matrix])
    covs = lift @ component_covs(law) @ lift.mT
    spread = torch.tensor([sigma**2, sigma**2, noise**2], dtype=torch.float64)
    joint = GaussianMixture(law.weights, law.means @ lift.mT, covs + torch.diag(spread))

    def log_prob(states: Tensor, level: float) -> Tensor:
        both = torch.cat([states, y.expand(len(states), 1)], 1)
        return joint.log_prob(both) - law.log_prob(states, level)

    guided = ClassifierGuided(law, log_prob)(x, sigma)
    return max(found, residual(guided, given(x, sigma), x))


@claim(
    "guidance-pigdm",
    title="Pseudo-inverse guidance is exact for isotropic Gaussian data",
    statement="D + σ² ∇ log N(y; A D, v A Aᵀ + s² I) = E[x0 | x̂, y], v = σ²σ_d²/(σ²+σ_d²)",
    sources={"song2021": "eq. 14", "sdekit": "design, section 3"},
    tags=("guidance",),
    tolerance=1e-10,
    because="round-off of first derivatives",
)
def _pigdm(draw: Draw) -> float:
    """Given x̂, such data are N(D, v I), so the likelihood of the noisy state is as assumed.

    `PiGDM` is compared with the denoiser of the posterior in closed form.
    """
    law, noise = Gaussian(draw.normal(3), float(draw.levels()) ** 2), float(draw.uniform(0.2, 1))
    matrix, y, sigma = draw.normal(2, 3), draw.normal(2), float(draw.levels())
    x = law.sample(BATCH, sigma, seed=draw.integer(2**31))
    guided = PiGDM(law, LinearObservation(matrix, y, noise))(x, sigma)
    return residual(guided, posterior(law, matrix, y, noise)(x, sigma), x)


@claim(
    "guidance-cfg-plus-plus",
    title="CFG++ is classifier-free guidance with a scale for each step",
    statement="x' = D_λ + (σ'/σ)(x − D_u), D_λ = D_u + λ (D_c − D_u): Euler with w = λ/(1 − σ'/σ)",
    sources={"sdekit": "guidance", "cfg": "eq. 6"},
    tags=("guidance", "solvers"),
    tolerance=1e-11,
    because="round-off",
)
def _cfg_plus_plus(draw: Draw) -> float:
    """Euler's step is D + (σ'/σ)(x − D), so what is added to D enters times 1 − σ'/σ.

    Three steps of `edm_euler` with `cfg_plus_plus`, the last to σ = 0, are compared with the formula.
    """
    law, scale = labelled(draw), float(draw.uniform(0.1, 1.0))
    sigmas = np.array([4.0, 1.5, 0.4, 0.0])
    start = x = law.mixture.sample(BATCH, 4.0, seed=draw.integer(2**31))
    labels = torch.zeros(BATCH, dtype=torch.int64)
    for level, lower in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        alone, told = law(x, level), law(x, level, class_labels=labels)
        x = alone + scale * (told - alone) + lower / level * (x - alone)
    guided = cfg_plus_plus(law, scale, sigmas, conditional=TOLD, unconditional=UNTOLD)
    flow = EDM().probability_flow(guided)
    return residual(solve(flow, start, method="edm_euler", sigmas=sigmas).x, x)
