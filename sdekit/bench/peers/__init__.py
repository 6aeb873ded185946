"""The peers: what other packages have, run by their own code on the same problems.

The samplers of diffusers and azula integrate the probability flow in the unscaled state `x̂` down a
grid of noise levels, by the packages' own classes, and their network evaluations are counted where
they happen. The two are extras of the benchmark; nothing else in sdekit imports them.

How they are made to solve exactly this problem, and nothing else:

- The grid runs from `SIGMA_MAX` to `SIGMA_MIN` and ends there: no denoising step is added, and
  none of the repeated last levels, of zero length, that diffusers appends. Its schedulers build
  their ``sigmas`` in float32 from a training schedule; here they are assigned in float64.
- The network is evaluated at the noise level itself, never at a rounded training timestep.
- Where diffusers casts the state to float32 whatever its dtype, the cast is kept from happening.

The solvers of torchdiffeq and scipy, which choose their own steps, are in `of_ode`; all that adds noise
is in `of_sde`.
"""

from __future__ import annotations

from .of_azula import AZULA_GRIDS, azula_peers
from .of_diffusers import DIFFUSERS_GRIDS, diffusers_peers
from .of_ode import OdePeer, ode_peers
from .of_sde import sde_peers
from .peer import Peer

__all__ = [
    "AZULA_GRIDS",
    "DIFFUSERS_GRIDS",
    "ODE_PEERS",
    "PEERS",
    "SDE_PEERS",
    "OdePeer",
    "Peer",
]

PEERS: dict[str, Peer] = {peer.name: peer for peer in (*diffusers_peers(), *azula_peers())}
ODE_PEERS: dict[str, OdePeer] = {peer.name: peer for peer in ode_peers()}
SDE_PEERS: dict[str, Peer] = {peer.name: peer for peer in sde_peers()}
