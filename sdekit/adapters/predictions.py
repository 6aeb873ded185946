"""What networks predict, and the denoiser from it: ``D = a x̂ + b · output``, exactly.

With ``x = α x0 + n ε`` (``α = s``, ``n = s σ``) every kind of prediction is a combination of ``x0`` and
``ε``, so together with ``x̂ = x0 + σ ε`` it determines ``x0``. With ``α'`` and ``n'`` the derivatives
in time:

============== ============================ ========================= ==========================
prediction     what it is                   ``a``                     ``b``
============== ============================ ========================= ==========================
``"data"``     ``x0``                       0                         1
``"noise"``    ``ε``                        1                         ``−σ``
``"score"``    ``∇_x log p_t(x) = −ε/n``    1                         ``n σ``
``"v"``        ``α ε − n x0``               ``α²/(α² + n²)``          ``−n/(α² + n²)``
``"velocity"`` ``x' = α' x0 + n' ε``        ``α n'/(α n' − n α')``    ``−n/(α n' − n α')``
``"edm"``      ``F`` (Karras et al. 2022)   ``σ_d²/(σ² + σ_d²)``      ``σ σ_d/√(σ² + σ_d²)``
============== ============================ ========================= ==========================

``v`` is that of Salimans & Ho (2022) where ``α² + n² = 1``. The network sees ``x = α x̂``; EDM's sees
``x̂/√(σ² + σ_d²)``, whatever the process.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..affine import AffineSDE
from ..processes import EDM, VE, VP, CosineVP, DiscreteVP

__all__ = ["PREDICTIONS", "Coefficients", "coefficients", "scalings"]

PREDICTIONS = ("data", "noise", "score", "v", "velocity", "edm")
"""What a network may predict."""


class Coefficients(NamedTuple):
    """What turns a state into a network's input, and its output into a denoised state."""

    scale: Tensor  # the network's input is scale · x̂
    state: Tensor  # a
    output: Tensor  # b


def scalings(process: AffineSDE, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return signal and noise, ``α`` and ``n``, where the noise level is ``σ``, elementwise.

    The closed forms spare the search for the time, which ``α`` and ``n`` of these do not need.
    """
    if type(process) in (VP, CosineVP, DiscreteVP):
        alpha = torch.rsqrt(1 + sigma**2)
        return alpha, torch.rsqrt(1 + sigma**-2)
    if type(process) in (VE, EDM):
        return torch.ones_like(sigma), sigma
    t = process.time(sigma)
    return process.scale(t), process.std(t)


def coefficients(
    predicts: str, process: AffineSDE, sigma: Tensor, sigma_data: float | None
) -> Coefficients:
    """Return the coefficients of a kind of prediction, elementwise in ``σ``.

    Where ``α = 0``, and so ``σ = ∞``, the state handed over is ``ε = x/n`` (see
    `AffineSDE.backward_drift`); noise and scores do not determine ``x0`` there.

    Args:
        predicts: One of `PREDICTIONS`.
        process: The process that the network was trained under.
        sigma: Noise levels, ``(B,)``.
        sigma_data: ``σ_d``, for ``"edm"``.
    """
    if predicts == "edm":
        assert sigma_data is not None
        h = torch.hypot(sigma, torch.full_like(sigma, sigma_data))
        return Coefficients(1 / h, (sigma_data / h) ** 2, sigma_data * (sigma / h))
    alpha, n = scalings(process, sigma)
    scale = torch.where(alpha == 0, n, alpha)
    if predicts == "data":
        return Coefficients(scale, torch.zeros_like(sigma), torch.ones_like(sigma))
    if predicts == "noise":
        return Coefficients(scale, torch.ones_like(sigma), -sigma)
    if predicts == "score":
        return Coefficients(scale, torch.ones_like(sigma), n * sigma)
    if predicts == "v":
        norm = alpha**2 + n**2
        return Coefficients(scale, scale * alpha / norm, -n / norm)
    assert predicts == "velocity"
    d_alpha, d_n = process.rates(process.time(sigma))
    wronskian = alpha * d_n - n * d_alpha
    return Coefficients(scale, scale * d_n / wronskian, -n / wronskian)
