"""Solves on a CUDA device, by the functions of ``benchmarks/gpu.py``; without one, only these."""

from __future__ import annotations

import importlib.util
import math
import warnings
from pathlib import Path

import pytest
import torch

import sdekit as sk
from sdekit.parallel import load, sample_to

PATH = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
spec = importlib.util.spec_from_file_location("gpu", PATH)
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no CUDA device here; the rest runs anywhere"
)
METHODS = gpu.FLOWS + gpu.SDES


# ---- what is measured, on the CPU ----


def test_every_method_on_a_fixed_grid_is_measured():
    assert set(METHODS) == {name for name, entry in sk.methods().items() if entry.fixed}
    assert set(gpu.TIMED) <= set(gpu.FLOWS)


@pytest.mark.parametrize("method", ["bayesian_adams", "sea_w_theta", "edm_sde"])
def test_the_same_noise_gives_the_same_result(method):
    assert gpu.difference(method, "cpu") == 0
    assert not torch.equal(gpu.solve(method, "cpu", 4), gpu.solve(method, "cpu", 5))


def test_a_difference_is_found(monkeypatch):
    solve = gpu.solve
    shifts = iter([0.0, 0.25])
    monkeypatch.setattr(gpu, "solve", lambda method, device: solve(method, device) + next(shifts))
    assert gpu.difference("ddim", "cpu") == pytest.approx(0.25, rel=1e-5)


def test_waits_are_counted(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run():
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
        warnings.warn("something else", stacklevel=2)

    assert gpu.waits(run) == 3
    assert modes == ["warn", 0]


def test_times_of_all_methods():
    found = gpu.microseconds_per_step("cpu", shape=(2, 3), steps=3, rounds=1)
    assert set(found) == {"lerp_", *gpu.TIMED}
    assert all(0 < row["prepared"] < math.inf for row in found.values())


# ---- on a CUDA device ----


@needs_cuda
@pytest.mark.parametrize("method", METHODS)
def test_results_are_those_of_the_cpu(method):
    assert gpu.difference(method, "cuda") < 1e-4


@needs_cuda
@pytest.mark.parametrize("method", gpu.FLOWS)
def test_a_prepared_solve_waits_once_at_its_end(method):
    assert gpu.waits_of(method, "cuda") == (1, 1)


@needs_cuda
@pytest.mark.parametrize("method", gpu.SDES)
def test_a_loop_with_noise_does_not_wait(method):
    fewer, more = gpu.waits_of(method, "cuda")
    assert fewer == more


@needs_cuda
@pytest.mark.parametrize("method", gpu.FLOWS)
def test_a_captured_solve_is_the_solve(method):
    assert gpu.captured_difference(method, "cuda") == 0


@needs_cuda
@pytest.mark.parametrize("method", ["bayesian_adams", "sea_w_theta"])
def test_samples_into_a_folder(method, tmp_path):
    """Deterministic on one device; started again, nothing is drawn."""
    net = sk.load_digits_denoiser(device="cuda")
    asked = {"seed": 0, "micro_batch": 8, "steps": 6, "device": "cuda", "method": method}
    for name in ("a", "b"):
        assert sample_to(tmp_path / name, sk.EDM(), net, 20, (1, 8, 8), **asked) == 3
    assert torch.equal(load(tmp_path / "a"), load(tmp_path / "b"))
    assert sample_to(tmp_path / "a", sk.EDM(), net, 20, (1, 8, 8), **asked) == 0
