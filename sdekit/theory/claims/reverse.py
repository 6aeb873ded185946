"""Reverse-time equations: the same marginals, backward and forward, for every η."""

from __future__ import annotations

import torch

from ...sde import ForwardSDE
from ..calculus import fokker_planck, gram, residual
from ..claim import claim
from ..draw import Draw

BATCH = 6


@claim(
    "reverse-marginals",
    title="The backward family has the marginals of the forward SDE",
    statement="L*(f, G) p = −L*₋(f − ½(1 + η²)(∇·(GGᵀ) + GGᵀ∇log p), η G) p for every η",
    sources={"anderson": "section 3", "khungurn": "eq. 4, theorem 7", "song2021": "appendix D.1"},
    tags=("reverse", "density"),
    tolerance=1e-9,
    because="round-off of second derivatives by automatic differentiation",
    over="sde",
)
def _reverse_marginals(sde: ForwardSDE, draw: Draw) -> float:
    """Run backward, an SDE with drift b and diffusion ηG changes the density by −∇·(bp) − ½∇∇:(η²GGᵀp).

    That this is the change by the forward SDE is an identity for every density, so it is tried
    on a mixture that need not be the SDE's own law, with the drift that `ForwardSDE` derives.
    """
    data = draw.mixture()
    eta = float(draw.uniform(0.0, 2.0))
    t = draw.uniform(sde.t_min + 0.1 * (sde.T - sde.t_min), 0.9 * sde.T, BATCH)
    x = data.sample(BATCH, seed=draw.integer(2**31), dtype=torch.float64)

    def density(y: torch.Tensor) -> torch.Tensor:
        return torch.exp(data.log_prob(y, 0.3))

    reverse = sde.reverse(score=lambda y, _: data.score(y, 0.3), eta=eta)
    ahead = fokker_planck(lambda y: sde.drift(y, t), lambda y: gram(sde, y, t), density, x)
    back = fokker_planck(lambda y: reverse.f(t, y), lambda y: eta**2 * gram(sde, y, t), density, x)
    return residual(ahead[0] + ahead[1], back[0] - back[1], *ahead, *back)
