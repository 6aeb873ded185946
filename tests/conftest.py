"""Problems with an exact solution that the tests share, and a look into adaptive solves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import settings

from sdekit.distributions import Gaussian, Product
from sdekit.solvers.pairs import PairMarch
from sdekit.solvers.variable_adams import AdamsMarch

torch.set_num_threads(1)  # small tensors: threads cost more than they give

# Deadlines fail where a machine is busy.
settings.register_profile("sdekit", deadline=None, max_examples=40)
settings.load_profile("sdekit")


@pytest.fixture(scope="session")
def product() -> Product:
    """A rotated product of three two-component mixtures: eight modes, exact nonlinear flow."""
    return Product.random(3, 2, seed=0)


@pytest.fixture(scope="session")
def gaussian() -> Gaussian:
    """A Gaussian in eight dimensions with a spectrum over two decades, in a random basis."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    spectrum = np.array([2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01])
    return Gaussian(rng.normal(size=8) * 0.3, (basis * spectrum) @ basis.T)


@pytest.fixture
def judged(monkeypatch) -> list[tuple]:
    """Every trial of every group of an adaptive solve: ``(group, τ, dt, error, accepted)``."""
    rows: list[tuple] = []

    def logging(original):
        def judge(self, trial, errors, dt):
            accept = original(self, trial, errors, dt)
            rows.extend(zip(trial.groups, trial.start.tau, dt, errors[0], accept, strict=True))
            return accept

        return judge

    for march in (PairMarch, AdamsMarch):
        monkeypatch.setattr(march, "judge", logging(march.judge))
    return rows
