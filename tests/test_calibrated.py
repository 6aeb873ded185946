"""Calibrated solvers as files and as methods: what they compute, and what they refuse."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

import sdekit as sk
from sdekit.bench.names import resolve
from sdekit.calibrated import CalibrationReport, fingerprint
from sdekit.calibration.student import in_one_formula
from sdekit.cli import app
from sdekit.interop import k_diffusion
from sdekit.solvers.calibrated import Coefficients

EDM = sk.EDM(0.01, 20.0)
LAW = sk.GaussianMixture.random(components=3, dim=3, seed=2)
PLAIN = sk.Preconditioned(0.5)
FRAME = sk.GaussianPreconditioned([0.1, -0.2, 0.3], np.diag([1.0, 0.5, 0.1]) + 0.05)
REPORT = CalibrationReport(
    metric="RMS error",
    samples=3,
    validation=2,
    test=1,
    seed=0,
    default="bayesian_adams",
    errors={"test": (0.1, 0.2)},
    gain=(0.5, 0.4, 0.6),
    chosen="made by hand",
)


def made(
    coordinates: sk.Coordinates = PLAIN,
    *,
    steps: int = 5,
    seed: int = 0,
    noise: bool = False,
    law: Any = LAW,
    shape: tuple[int, ...] = (3,),
) -> sk.CalibratedSolver:
    """A solver of coefficients near those of the default, each moved a little."""
    rng = np.random.default_rng(seed)
    sigmas = sk.grids.power_theta(steps, 20.0, 0.01, sigma_data=0.5)
    own = in_one_formula(sk.BayesianAdams(), coordinates, sigmas)
    weights = tuple(row + 0.02 * rng.normal(size=row.shape) for row in own.weights)
    told = np.clip(sigmas[:-1] * np.exp(0.02 * rng.normal(size=steps)), 0.01, 20.0)
    keep = 1 + 0.01 * rng.normal(size=steps)
    sizes = 0.1 * rng.random(steps) if noise else None
    coefficients = Coefficients(sigmas, told, keep, weights, sizes)
    probes = fingerprint(law, shape, sigmas)
    return sk.CalibratedSolver.of(coefficients, coordinates, shape, REPORT, probes)


def start(count: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return LAW.sample(count, sigma=20.0, seed=0, dtype=dtype)


def by_hand(solver: sk.CalibratedSolver, x: Tensor) -> Tensor:
    """The formula, in the state u, as the documentation has it."""
    own, where = solver.coefficients, solver.coordinates
    mean, basis = (
        (torch.zeros(3).double(), torch.eye(3).double())
        if where.frame is None
        else map(torch.as_tensor, where.frame)
    )
    grid, told = where.at(own.sigmas), where.at(own.told)
    h = torch.as_tensor(where.h(grid)).reshape(len(own.sigmas), -1)
    told_h = torch.as_tensor(where.h(told)).reshape(own.steps, -1)
    a, b = (torch.as_tensor(v).reshape(own.steps, -1) for v in where.field(told))
    u, slopes = (x.double() - mean) @ basis / h[0], []
    for n in range(own.steps):
        z = h[n] * u
        denoised = LAW(z @ basis.mT + mean, torch.tensor(own.told[n]))
        slopes.append(a[n] * z / told_h[n] + b[n] * ((denoised - mean) @ basis))
        u = float(own.keep[n]) * u
        for weight, slope in zip(own.weights[n], slopes, strict=True):
            u = u + torch.as_tensor(weight) * slope
    return (h[-1] * u) @ basis.mT + mean


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 9), framed=st.booleans())
def test_a_solve_is_the_formula(seed: int, steps: int, framed: bool) -> None:
    solver, x = made(FRAME if framed else PLAIN, steps=steps, seed=seed), start()
    found = sk.solve(EDM.probability_flow(LAW), x, method=solver, steps=steps)
    assert found.nfe == steps
    torch.testing.assert_close(found.x, by_hand(solver, x), rtol=1e-11, atol=1e-11)
    single = sk.solve(EDM.probability_flow(LAW), x.float(), method=solver, steps=steps).x
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found.x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("coordinates", [PLAIN, FRAME], ids=["one clock", "directions"])
@pytest.mark.parametrize("noise", [False, True], ids=["flow", "noise"])
def test_a_file_is_the_solver(coordinates: sk.Coordinates, noise: bool, tmp_path: Path) -> None:
    solver, x = made(coordinates, noise=noise), start()
    solver.save(tmp_path / "solver.json")
    again = sk.load_solver(tmp_path / "solver.json")
    problem = EDM.reverse(LAW, 1.0) if noise else EDM.probability_flow(LAW)
    results = [
        sk.solve(problem, x, method=method, seed=1).x
        for method in (solver, again, str(tmp_path / "solver.json"))
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert again.report == solver.report
    assert again.recognises(LAW)
    assert not again.recognises(sk.GaussianMixture.random(components=3, dim=3, seed=5))
    if coordinates is PLAIN:
        assert (tmp_path / "solver.json").stat().st_size < 4000


def test_it_is_taken_wherever_a_method_is() -> None:
    solver, x = made(), start()
    flow = EDM.probability_flow(LAW)
    whole = sk.solve(flow, x, method=solver).x  # its own steps, without steps=
    assert torch.equal(whole, sk.solve(flow, x, method=solver, sigmas=solver.sigmas).x)
    assert torch.equal(whole, sk.prepare(flow, x, method=solver)(x))
    steps = sk.stepwise(flow, x, method=solver)
    state = steps.init(x)
    while not state.done:
        query = steps.ask(state)
        told = steps.tell(query, LAW(query.x_hat, query.sigma))
        assert not isinstance(told, sk.Query)
        state = told
    torch.testing.assert_close(state.x, whole, rtol=1e-12, atol=1e-12)
    like_k = k_diffusion.sampler(solver, sigma_data=0.5)
    found = like_k(LAW, x, torch.as_tensor(solver.sigmas), disable=True)
    torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-10)
    one = sk.sample(EDM, LAW, (4, 3), method=solver, seed=0)
    two = sk.sample(EDM, LAW, (4, 3), method=solver, steps=5, seed=0)
    assert torch.equal(one, two)
    denoised = sk.solve(flow, x, method=solver, ending="denoise")
    assert denoised.nfe == 6
    torch.testing.assert_close(denoised.x, LAW(whole, torch.tensor(0.01)))
    assert sk.solve(flow, x, method=solver, steps=6, ending="denoise").nfe == 6


def test_gradients_go_through_it() -> None:
    solver, x = made(), start(2).requires_grad_()
    flow = EDM.probability_flow(LAW)
    grads = []
    for checkpoint in (False, True):
        loss = sk.solve(flow, x, method=solver, checkpoint=checkpoint).x.square().sum()
        grads.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(grads[0], grads[1])
    direction = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()
    values = [
        float(by_hand(solver, x.detach() + e * direction).square().sum()) for e in (1e-5, -1e-5)
    ]
    assert math.isclose(
        float((grads[0] * direction).sum()), (values[0] - values[1]) / 2e-5, rel_tol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 6}, "calibrated for 5 steps"),
        ({"steps": 4, "ending": "denoise"}, "give steps=5"),
        ({"sigmas": np.linspace(20.0, 0.01, 6)}, "its own noise levels"),
        ({"sigmas": [0.01, 20.0]}, "5 steps"),
        ({"rtol": 1e-3}, "no error estimate"),
    ],
)
def test_other_steps_and_levels_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sk.solve(EDM.probability_flow(LAW), start(), method=made(), **options)


def test_other_problems_are_refused() -> None:
    solver, x = made(), start()
    with pytest.raises(ValueError, match=r"from sigma = 20 to 0\.01, and 80"):
        sk.solve(sk.EDM().probability_flow(LAW), x, method=solver, steps=5)
    wide = sk.GaussianMixture.random(components=2, dim=4, seed=0)
    y = wide.sample(2, sigma=20.0, seed=0)
    with pytest.raises(ValueError, match=r"samples of shape \(3,\), and these have \(4,\)"):
        sk.solve(EDM.probability_flow(wide), y, method=solver)
    with pytest.raises(ValueError, match="probability flow"):
        sk.solve(EDM.reverse(LAW, 1.0), x, method=solver)
    noisy = made(noise=True)
    with pytest.raises(ValueError, match="reverse SDEs"):
        sk.solve(EDM.probability_flow(LAW), x, method=noisy)
    with pytest.raises(ValueError, match=r"eta = 0\.5"):
        sk.solve(EDM.reverse(LAW, 0.5), x, method=noisy, seed=0)
    with pytest.raises(ValueError, match="levels"):
        sk.encode(EDM, LAW, x, method=solver, steps=5)


@settings(max_examples=25)
@given(data=st.data())
def test_damaged_files_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "solver.json"
    made().save(path)
    record = json.loads(path.read_text())
    key = data.draw(
        st.sampled_from([k for k in record if k not in ("noise", "stage", "fingerprint")])
    )
    if data.draw(st.booleans()):
        del record[key]
    else:
        record[key] = data.draw(st.sampled_from([None, "x", -1, [], {}, [None], [[1.0]]]))
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"solver\.json cannot be read as a calibrated solver"):
        sk.load_solver(path)


def test_files_that_are_not_there_or_of_a_later_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json cannot be read"):
        sk.solve(EDM.probability_flow(LAW), start(), method=str(tmp_path / "none.json"))
    path = tmp_path / "solver.json"
    made().save(path)
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="version 2, and this sdekit reads 1"):
        sk.load_solver(path)


def test_the_benchmark_knows_it_by_its_content(tmp_path: Path) -> None:
    entries = []
    for seed in (0, 0, 1):
        made(seed=seed).save(tmp_path / f"{seed}.json")
        (entry,) = resolve(str(tmp_path / f"{seed}.json"))
        entries.append(entry)
    assert entries[0].variant == entries[1].variant != entries[2].variant
    with pytest.raises(ValueError, match="its own levels"):
        resolve(str(tmp_path / "0.json") + "@karras")


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers
def test_a_scheduler_of_diffusers_takes_the_file(tmp_path: Path) -> None:
    interop = pytest.importorskip("sdekit.interop.diffusers")
    law = sk.GaussianMixture.random(components=3, dim=4, seed=0)

    def denoiser(x_hat: Tensor, sigma: Tensor) -> Tensor:
        return law(x_hat.flatten(1), sigma).view_as(x_hat)

    process = interop.SdekitScheduler().schedule.process
    sigmas = sk.grids.power_theta(4, process.sigma_max, process.sigma_min, sigma_data=0.5)
    own = in_one_formula(sk.BayesianAdams(), PLAIN, sigmas)
    solver = sk.CalibratedSolver.of(
        replace(own, keep=[1.0, 0.99, 1.01, 1.0]), PLAIN, (1, 2, 2), REPORT
    )
    solver.save(tmp_path / "solver.json")
    scheduler = interop.SdekitScheduler(
        method=str(tmp_path / "solver.json"), prediction_type="sample", clip_sample=False
    )
    scheduler = interop.SdekitScheduler.from_config(json.loads(json.dumps(dict(scheduler.config))))
    with pytest.raises(ValueError, match="give steps=4"):
        scheduler.set_timesteps(4)
    scheduler.set_timesteps(5)  # a denoising step comes last
    start = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    x = start
    for t in scheduler.timesteps:
        s, n = scheduler.schedule.scales(torch.as_tensor(t, dtype=torch.float64))
        x = scheduler.step(denoiser(x / s, n / s), t, x).prev_sample
    flow = process.probability_flow(denoiser)
    expected = sk.solve(flow, start, method=solver, ending="denoise").x
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_the_command_line(tmp_path: Path) -> None:
    run = CliRunner().invoke
    out = tmp_path / "solver.json"
    common = ["--model", "digits"]
    fitted = run(app, ["calibrate", *common, "--steps", "2", "-n", "16", "--out", str(out)])
    assert fitted.exit_code == 0, fitted.output
    assert "validation" in fitted.output
    folder = tmp_path / "samples"
    drawn = run(app, ["sample", *common, "--method", str(out), "-n", "2", "--out", str(folder)])
    assert drawn.exit_code == 0, drawn.output
    assert "2 network evaluations each" in drawn.output.replace("\n", " ")
    refused = run(app, ["sample", *common, "--method", str(out), "--steps", "3", "--out", "x"])
    assert refused.exit_code == 2
    assert "calibrated for 2 steps" in refused.output
    wrong = run(app, ["calibrate", *common, "--steps", "2", "--out", str(tmp_path / "solver.txt")])
    assert wrong.exit_code == 2
    assert ".json" in wrong.output
