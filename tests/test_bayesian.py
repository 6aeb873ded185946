"""Bayesian Adams: posterior means, and what keeps them small."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.solvers.bayesian import _JITTER


def rows(scheme, sigmas, sigma_data=1.0):
    theta = np.arctan(sigmas / sigma_data)
    forward, backward = scheme.weights(theta[None])
    return theta, [row[:, 0] for row in forward], [row[:, 0] for row in backward]


def test_weights_are_posterior_means_of_integrals():
    """Against the posterior mean on a fine grid, step by step, with the noise written out."""
    prior, memory = sk.Prior(), 3
    theta, forward, backward = rows(sk.BayesianAdams(memory), sk.grids.theta(5, 20.0, 0.1))
    amplitude = theta / (theta + prior.knee)
    length = np.log((theta[0] + prior.offset) / (theta[-1] + prior.offset)) / (5 * prior.length)
    noise = (_JITTER + (length / prior.misfit) ** 8) * amplitude**2
    for n in range(5):
        fine = np.linspace(theta[n], theta[n + 1], 4001)
        trapezoid = np.full(4001, (theta[n + 1] - theta[n]) / 4000)
        trapezoid[[0, -1]] /= 2
        known = [m for m in (n, n - 1, n - 2) if m >= 0]
        gram = prior.covariance(theta[known], theta[known]) + np.diag(noise[known])
        ahead = trapezoid @ prior.covariance(fine, theta[known])
        weights = np.linalg.inv(gram) @ ahead
        np.testing.assert_allclose(forward[n], weights, rtol=1e-5, atol=1e-8)
        variance = trapezoid @ prior.covariance(fine, fine) @ trapezoid - ahead @ weights
        noise[n + 1] += (prior.stiffness / np.tan(theta[n + 1])) ** 2 * variance
        if n < 4:
            known = [m for m in (n + 1, n, n - 1) if m >= 0]
            gram = prior.covariance(theta[known], theta[known]) + np.diag(noise[known])
            behind = trapezoid @ prior.covariance(fine, theta[known])
            expected = np.linalg.inv(gram) @ behind
            np.testing.assert_allclose(backward[n], expected, rtol=1e-4, atol=1e-7)


def test_noise_of_the_network_keeps_weights_small():
    """On a grid that crowds points at high noise, where slopes are all but equal."""
    sigmas = sk.grids.karras(10, 80.0, 0.002)

    def largest(scheme):
        theta, forward, _ = rows(scheme, sigmas)
        return max(
            np.abs(row).sum() / step for row, step in zip(forward, -np.diff(theta), strict=True)
        )

    def of(**options):
        return largest(sk.BayesianAdams(prior=sk.Prior(**options)))

    assert of(misfit=np.inf) > 1e4
    assert of(misfit=np.inf, noise=1e-8) < 500
    assert of(misfit=np.inf, noise=1e-4) < 20
    assert of() < 20


def test_the_misfit_of_the_prior_keeps_a_long_range_stable():
    """The trained network in 30 steps over σ from 157 to 0.01, as of DDPM, with a low ``σ_d``."""
    denoiser = sk.load_digits_denoiser(dtype=torch.float64)
    flow = sk.EDM().probability_flow(denoiser)
    x = 157 * torch.randn((16, 1, 8, 8), generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        exact = sk.solve(flow, x, sigmas=[157.0, 0.01], rtol=1e-7).x

        def error(misfit):
            scheme = sk.BayesianAdams(prior=sk.Prior(misfit=misfit))
            solver = sk.Solver(scheme, sk.Preconditioned(), sk.grids.balanced)
            sigmas = sk.grids.balanced(30, 157.0, 0.01, sigma_data=0.45)
            solved = sk.solve(flow, x, method=solver, sigmas=sigmas, sigma_data=0.45).x
            return float((solved - exact).square().mean().sqrt())

        assert error(sk.Prior().misfit) < 0.005
        assert error(np.inf) > 0.01


def test_stiffness_is_what_helps_on_a_network():
    """Without noise in slopes at predicted states, the trained network is solved worse by far."""
    denoiser = sk.load_digits_denoiser(dtype=torch.float64)
    flow = sk.EDM().probability_flow(denoiser)
    x = 80 * torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(0)).double()
    sigmas = [80.0, 0.002]
    with torch.no_grad():
        exact = sk.solve(flow, x, sigmas=sigmas, rtol=1e-7).x

        def error(stiffness):
            scheme = sk.BayesianAdams(prior=sk.Prior(stiffness=stiffness))
            solver = sk.Solver(scheme, sk.Preconditioned(), sk.grids.balanced)
            solved = sk.solve(flow, x, method=solver, steps=20).x
            return float((solved - exact).square().mean())

        assert error(0.8) < 0.1 * error(0.0)


def test_other_coordinates_are_refused():
    x = torch.ones((2, 3), dtype=torch.float64)
    solver = sk.Solver(sk.BayesianAdams(), sk.Noise(), sk.grids.karras)
    flow = sk.EDM().probability_flow(sk.GaussianMixture.random(2, 3, seed=0))
    with pytest.raises(ValueError, match="has a prior for F"):
        sk.solve(flow, x, method=solver, steps=4)
    with pytest.raises(ValueError, match="memory = 0"):
        sk.BayesianAdams(0)
