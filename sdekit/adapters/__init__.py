"""Networks, however they were trained and whatever package they come from, as denoisers.

`NetworkDenoiser` takes any of them apart into what it predicts, the process that it was trained under
and how it is told the noise level; the loaders ``from_…`` read that off objects of other packages.
"""

from . import levels
from .loaders import from_azula, from_edm, from_k_diffusion, from_score_sde
from .memory import fit_batch
from .network import NetworkDenoiser
from .of_diffusers import from_diffusers
from .predictions import PREDICTIONS

__all__ = [
    "PREDICTIONS",
    "NetworkDenoiser",
    "fit_batch",
    "from_azula",
    "from_diffusers",
    "from_edm",
    "from_k_diffusion",
    "from_score_sde",
    "levels",
]
