"""The peers: the samplers of diffusers and azula, run by their own code on the same problems.

Each integrates the probability flow in the unscaled state `x̂` down a grid of noise levels, by the
package's own classes, and its network evaluations are counted where they happen. The packages are
extras of the benchmark; nothing else in sdekit imports them.

How they are made to solve exactly this problem, and nothing else:

- The grid runs from `SIGMA_MAX` to `SIGMA_MIN` and ends there: no denoising step is added, and
  none of the repeated last levels, of zero length, that diffusers appends. Its schedulers build
  their ``sigmas`` in float32 from a training schedule; here they are assigned in float64.
- The network is evaluated at the noise level itself, never at a rounded training timestep.
- Where diffusers casts the state to float32 whatever its dtype, the cast is kept from happening.
"""

from __future__ import annotations

from .of_azula import AZULA_GRIDS, azula_peers
from .of_diffusers import DIFFUSERS_GRIDS, diffusers_peers
from .peer import Peer

__all__ = ["AZULA_GRIDS", "DIFFUSERS_GRIDS", "PEERS", "Peer"]

PEERS: dict[str, Peer] = {peer.name: peer for peer in (*diffusers_peers(), *azula_peers())}
