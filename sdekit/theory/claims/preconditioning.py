"""EDM's preconditioning: what the raw network is given, and what it has to say."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ...denoisers import EDMDenoiser
from ...distributions import Gaussian
from ...losses import edm_loss
from ...preconditioned import Preconditioned
from ..calculus import line, residual
from ..claim import claim
from ..draw import Draw

BATCH = 6


class Probe(nn.Module):
    """A network that remembers what it was given, and says a function of it."""

    def __init__(self, keep: float, add: float) -> None:
        super().__init__()
        self.keep = nn.Parameter(torch.tensor(keep, dtype=torch.float64))
        self.add = add
        self.given: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """``tanh`` of the input if it is kept, and a constant."""
        self.given = x, c_noise
        return self.keep * torch.tanh(x) + self.add


def denoiser(network: Probe, sigma_data: float) -> EDMDenoiser:
    """Wrap a network."""
    return EDMDenoiser(network, sigma_data=sigma_data, sigma_min=1e-3, sigma_max=1e3)


def coefficients(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read ``c_in``, ``c_skip``, ``c_out`` and ``c_noise`` off an `EDMDenoiser`, ``(B,)`` each."""
    one, silent, constant = (
        torch.ones(len(sigma), 1, dtype=torch.float64),
        Probe(0.0, 0.0),
        Probe(0.0, 1.0),
    )
    with torch.no_grad():
        skip = denoiser(silent, sigma_data)(one, sigma)
        out = denoiser(constant, sigma_data)(0 * one, sigma)
    assert silent.given is not None
    return silent.given[0][:, 0], skip[:, 0], out[:, 0], silent.given[1]


def levels(draw: Draw) -> tuple[Tensor, float]:
    """Draw noise levels and a standard deviation of the data."""
    return draw.levels(BATCH), float(draw.log_uniform(0.2, 3.0))


@claim(
    "edm-preconditioner",
    title="EDM's denoiser",
    statement="D = c_skip x + c_out F(c_in x, c_noise),  c_in = 1/h, c_skip = σ_d²/h², c_out = σσ_d/h, "
    "c_noise = ln(σ)/4, h² = σ² + σ_d²",
    sources={"edm": "eq. 7, table 1", "khungurn": "section 5"},
    tags=("edm", "preconditioning", "training"),
    tolerance=1e-12,
    because="round-off",
)
def _preconditioner(draw: Draw) -> float:
    """What `EDMDenoiser` hands to a network, and what it makes of the answer, by the table."""
    sigma, sd = levels(draw)
    x, network = 3 * draw.normal(BATCH, 2), Probe(1.3, 0.2)
    with torch.no_grad():
        found = denoiser(network, sd)(x, sigma)
    assert network.given is not None
    at, h2 = sigma[:, None], sigma[:, None] ** 2 + sd**2
    raw = 1.3 * torch.tanh(x / h2.sqrt()) + 0.2
    right = sd**2 / h2 * x + at * sd / h2.sqrt() * raw
    c_noise = torch.log(sigma) / 4
    return max(
        residual(found, right, x),
        residual(network.given[0], x / h2.sqrt()),
        residual(network.given[1], c_noise, torch.ones(BATCH)),
    )


@claim(
    "edm-unit-input",
    title="Inputs of unit variance",
    statement="Var[c_in (x0 + σ ε)] = 1 for data of variance σ_d²",
    sources={"edm": "section 5, appendix B.6", "khungurn": "section 5"},
    tags=("edm", "preconditioning", "training"),
    tolerance=1e-12,
    because="round-off",
)
def _unit_input(draw: Draw) -> float:
    """The variance of the noisy state is σ_d² + σ², whatever else the law of the data is.

    c_in is read off `EDMDenoiser`, the variance off a mixture's own moments at σ.
    """
    law = draw.mixture(dim=2)
    c_in, *_ = coefficients(sigma := draw.levels(BATCH), law.sigma_data)
    variance = torch.stack([law.moments(float(s))[1].trace() / law.dim for s in sigma])
    return residual(c_in**2 * variance, torch.ones(BATCH, dtype=torch.float64))


@claim(
    "edm-unit-target",
    title="Targets of unit variance",
    statement="Var[(x0 − c_skip (x0 + σ ε))/c_out] = 1 for data of variance σ_d²",
    sources={"edm": "section 5, appendix B.6", "khungurn": "section 5"},
    tags=("edm", "preconditioning", "training"),
    tolerance=1e-12,
    because="round-off",
)
def _unit_target(draw: Draw) -> float:
    """The target is (1 − c_skip) x0 − c_skip σ ε over c_out, a sum of independent terms.

    Its variance follows from that of a mixture; the coefficients are read off `EDMDenoiser`.
    """
    law = draw.mixture(dim=2)
    _, c_skip, c_out, _ = coefficients(sigma := draw.levels(BATCH), law.sigma_data)
    data = float(law.moments()[1].trace()) / law.dim
    variance = ((1 - c_skip) ** 2 * data + c_skip**2 * sigma**2) / c_out**2
    return residual(variance, torch.ones(BATCH, dtype=torch.float64))


@claim(
    "edm-minimal-output",
    title="c_skip makes c_out as small as can be",
    statement="c_skip = argmin_c (1 − c)² σ_d² + c² σ²,  c_out² = the minimum",
    sources={"edm": "section 5, appendix B.6", "khungurn": "section 5"},
    tags=("edm", "preconditioning", "training"),
    tolerance=1e-12,
    because="round-off",
)
def _minimal_output(draw: Draw) -> float:
    """Errors of the network are multiplied by c_out, the standard deviation of the target.

    That is a convex parabola in c_skip. At the c_skip of `EDMDenoiser` its derivative vanishes, and
    its value is the square of the c_out of `EDMDenoiser`.
    """
    sigma, sd = levels(draw)
    _, c_skip, c_out, _ = coefficients(sigma, sd)
    pulls = (1 - c_skip) * sd**2, c_skip * sigma**2
    value = (1 - c_skip) * pulls[0] + c_skip * pulls[1]
    return max(residual(pulls[0], pulls[1]), residual(value, c_out**2))


@claim(
    "edm-uniform-weight",
    title="Every noise level weighs the same",
    statement="λ(σ) c_out(σ)² = 1,  and E[λ |D − x0|²] = 1 for F = 0 and data N(0, σ_d²)",
    sources={"edm": "eq. 8, table 1", "khungurn": "section 5"},
    tags=("edm", "preconditioning", "training"),
    tolerance=1e-12,
    because="round-off; Gauss–Hermite quadrature is exact for a square",
)
def _uniform_weight(draw: Draw) -> float:
    """In terms of F the loss is λ c_out² |F − F_target|², and F_target has unit variance.

    The expectation of `edm_loss` with a network that returns zero, over data and noise by
    quadrature, is compared with 1; with one that returns one the loss is 1 more.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    grid = torch.cartesian_prod(*(torch.from_numpy(nodes),) * 2)
    mass = torch.cartesian_prod(*(torch.from_numpy(weights / weights.sum()),) * 2).prod(1)
    found = []
    for level, sd in zip(*(v.tolist() for v in (draw.levels(3), draw.levels(3))), strict=True):
        x0, noise, sigma = (
            sd * grid[:, :1],
            grid[:, 1:],
            torch.full((len(grid),), level, dtype=torch.float64),
        )
        for add in (0.0, 1.0):
            loss = edm_loss(denoiser(Probe(0.0, add), sd), x0, sigma=sigma, noise=noise)
            found.append(abs(float((mass * loss.detach()).sum()) - 1 - add))
    return max(found)


@claim(
    "edm-network-field",
    title="The raw network is the field of θ coordinates",
    statement="D = c_skip x̂ + c_out F  ⇔  F = −(A u + B D),  u = x̂/√(σ²+σ_d²), θ = arctan(σ/σ_d)",
    sources={"sdekit": "design, section 4", "edm": "eq. 7"},
    tags=("edm", "preconditioning", "coordinates"),
    tolerance=1e-11,
    because="round-off",
)
def _network_field(draw: Draw) -> float:
    """In the angle θ the flow is du/dθ = −F.

    The F that makes a mixture's denoiser of `EDMDenoiser`'s coefficients is compared with the field
    of `Preconditioned` coordinates.
    """
    law, (sigma, sd) = draw.mixture(), levels(draw)
    x = law.sample(BATCH, 1.0, seed=draw.integer(2**31)) * sigma[:, None]
    denoised = law(x, sigma)
    _, c_skip, c_out, _ = (v[:, None] for v in coefficients(sigma, sd))
    raw = (denoised - c_skip * x) / c_out
    coordinates = Preconditioned(sd)
    p = coordinates.at(sigma.numpy())
    A, B, h = (torch.from_numpy(v)[:, None] for v in (*coordinates.field(p), coordinates.h(p)))
    return residual(-(A * x / h + B * denoised), raw, A * x / h)


@claim(
    "edm-network-of-gaussian",
    title="For Gaussian data there is nothing to learn",
    statement="D = c_skip x for data N(0, σ_d² I), so F = 0",
    sources={"sdekit": "design, section 4"},
    tags=("edm", "preconditioning", "coordinates"),
    tolerance=1e-12,
    because="round-off",
)
def _network_of_gaussian(draw: Draw) -> float:
    """The denoiser of an isotropic Gaussian is linear: what a silent network gives.

    `Gaussian` is compared with `EDMDenoiser` around a network that returns zero.
    """
    sigma, sd = levels(draw)
    x = draw.normal(BATCH, 3) * torch.hypot(sigma, torch.tensor(sd, dtype=torch.float64))[:, None]
    with torch.no_grad():
        found = denoiser(Probe(0.0, 0.0), sd)(x, sigma)
    return residual(found, Gaussian([0.0] * 3, sd**2)(x, sigma))


@claim(
    "edm-network-is-a-mean",
    title="The best network is the mean of its targets",
    statement="(D − c_skip x̂)/c_out = E[(x0 − c_skip x̂)/c_out | x̂],  E[F²] ≤ 1",
    sources={"edm": "eq. 8", "khungurn": "section 5"},
    tags=("edm", "preconditioning", "training"),
    tolerance=1e-9,
    because="trapezoidal rule on a smooth density, whose error is exponentially small",
)
def _network_is_a_mean(draw: Draw) -> float:
    """A quadratic loss is least at the conditional mean, here of the target of unit variance.

    F of a one-dimensional mixture's denoiser is compared with the mean of the target over the
    posterior of x0, by quadrature; and its mean square, over x̂, with the variance of the target.
    """
    law, level = draw.mixture(dim=1), float(draw.log_uniform(0.1, 3.0))
    sd, sigma = law.sigma_data, torch.tensor([level], dtype=torch.float64)
    _, c_skip, c_out, _ = (float(v) for v in coefficients(sigma, sd))
    (y, _), (x, _) = line(law), line(law, level, 201)
    x = x[40:-40, 0]
    joint = torch.exp(law.log_prob(y) - 0.5 * ((x[:, None] - y[:, 0]) / level) ** 2)
    evidence = joint.sum(1)
    target = (y[None, :, 0] - c_skip * x[:, None]) / c_out
    best = (joint * target).sum(1) / evidence
    raw = (law(x[:, None], level)[:, 0] - c_skip * x) / c_out
    # With the mean off zero the target keeps its variance, 1, about a mean of its own.
    share = evidence / evidence.sum()
    spread = float((share * raw**2).sum() - (share * raw).sum() ** 2)
    weight = torch.sqrt(share)
    return max(residual((weight * best)[None], (weight * raw)[None]), max(0.0, spread - 1))
