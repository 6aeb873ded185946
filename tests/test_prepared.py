"""Prepared solves and the loop they share with `solve`: memory, gradients, compilation, failures."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sdekit as sk
from sdekit.solvers.registry import Solver

DOUBLE = torch.float64
EDM, VP = sk.EDM(), sk.VP()
FLOWS = [name for name, entry in sk.methods().items() if entry.deterministic and entry.fixed]
GIVEN = {"sigma_data": 0.7}  # else a pilot call is one of the steps


def smooth(x, sigma):
    """An elementwise nonlinear denoiser."""
    return torch.tanh(x) / (1 + sigma**2)


@pytest.fixture
def x():
    return VP.prior_sample((4, 3), seed=0, dtype=DOUBLE)


# ---- prepared once, called often ----


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", FLOWS)
def test_prepared_is_solve(name, grad, x, product):
    """Bit for bit, again and again, for other states and batches; no result is touched later."""
    flow, start = VP.probability_flow(product), x.clone()
    options = {"method": name, "steps": 5, **GIVEN}
    with torch.set_grad_enabled(grad):
        prepared = sk.prepare(flow, x, **options)
        states = [x, 0.5 * x[:2], x]
        results = [prepared(state) for state in states]
        expected = [sk.solve(flow, state, **options).x for state in states]
    assert all(torch.equal(r, e) for r, e in zip(results, expected, strict=True))
    assert len({r.data_ptr() for r in results}) == len(results)
    assert torch.equal(x, start)


@pytest.mark.parametrize("ending", ["denoise", "half"])
@pytest.mark.parametrize("name", ["adams3", "heun", "dpmpp_2m", "rk4_t"])
def test_prepared_endings(name, ending, x, product):
    flow = VP.probability_flow(product)
    options = {"method": name, "steps": 5, "ending": ending, **GIVEN}
    solved = sk.solve(flow, x, **options)
    prepared = sk.prepare(flow, x, **options)
    assert torch.equal(prepared(x), solved.x)
    assert (prepared.grid == solved.grid).all()


@pytest.mark.parametrize("name", FLOWS)
def test_buffers_change_nothing(name, x, product):
    """Without gradients the loop overwrites its buffers; the trajectory is the same to the bit."""
    flow = VP.probability_flow(product)
    solve = functools.partial(sk.solve, flow, x, method=name, steps=5, trajectory=True, **GIVEN)
    fresh = solve()
    with torch.no_grad():
        reused = solve()
    assert torch.equal(fresh.trajectory, reused.trajectory)
    assert torch.equal(reused.trajectory[-1], reused.x)
    assert torch.equal(reused.trajectory[0], x)
    moves = (reused.trajectory[1:] - reused.trajectory[:-1]).abs().amax(dim=(1, 2))
    assert (moves > 0).all()


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", FLOWS)
def test_a_denoiser_may_return_the_same_memory(name, grad, x, product):
    """As networks in CUDA graphs do: what they returned is overwritten by the next call."""
    buffer = torch.empty_like(x)

    def static(x, sigma):
        return buffer.copy_(product(x, sigma))

    for ending in ("stop", "denoise"):
        options = {"method": name, "steps": 5, "ending": ending, **GIVEN}
        with torch.set_grad_enabled(grad):
            expected = sk.solve(VP.probability_flow(product), x, **options).x
            result = sk.solve(VP.probability_flow(static), x, **options).x
        assert torch.equal(result, expected)
        buffer.zero_()
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", FLOWS)
def test_a_denoiser_may_return_its_input(name, x):
    """It is what a copy would be; and the result is the user's, not the state that was given."""
    before = x.clone()
    itself = EDM.probability_flow(lambda x, sigma: x)
    copied = EDM.probability_flow(lambda x, sigma: x.clone())
    for options in ({"steps": 1}, {"steps": 4}, {"steps": 1, "ending": "denoise"}):
        with torch.no_grad():
            solved, expected = (
                sk.solve(flow, x, method=name, **options, **GIVEN).x for flow in (itself, copied)
            )
        assert torch.equal(solved, expected)
        solved.zero_()
        assert torch.equal(x, before)


@pytest.mark.parametrize("layout", ["expanded", "transposed", "channels_last"])
def test_any_memory_layout(layout):
    """Also states whose entries share memory, as of one start for a batch."""
    base = torch.randn((4, 2, 5, 3), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    state = {
        "expanded": base[:1].expand(4, 2, 5, 3),
        "transposed": base.transpose(1, 3),
        "channels_last": base.contiguous(memory_format=torch.channels_last),
    }[layout]
    flow, options = EDM.probability_flow(smooth), {"method": "adams3", "steps": 4, **GIVEN}
    with torch.no_grad():
        solved = sk.solve(flow, state, **options).x
        expected = sk.solve(flow, state.contiguous().clone(), **options).x
    torch.testing.assert_close(solved, expected, rtol=1e-14, atol=1e-14)


# ---- gradients ----


@pytest.mark.parametrize(
    "method",
    [
        "heun",
        "dpmpp_2m",
        "adams3",
        Solver(sk.Adams(4, corrector=True, again=True, start="rk4"), sk.LogData(), sk.grids.log),
        Solver(
            sk.Adams(2, corrector=True),
            sk.GaussianPreconditioned([0.1, 0.0, -0.2], [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0.3]]),
            sk.grids.log,
        ),
    ],
    ids=["RK", "DPM", "PEC", "PECE", "frame"],
)
def test_gradients_are_those_of_finite_differences(method, x):
    """Of the state, and of a parameter of the denoiser; through solve and through a prepared solve."""
    width = torch.tensor(0.8, dtype=DOUBLE)
    start = x.clone().requires_grad_()

    def solved(start, width, *, prepare):
        flow = VP.probability_flow(lambda x, sigma: torch.tanh(x / width) / (1 + sigma**2))
        options = {"method": method, "steps": 5, **GIVEN}
        if prepare:
            return sk.prepare(flow, start, **options)(start)
        return sk.solve(flow, start, **options).x

    for prepare in (False, True):
        function = functools.partial(solved, prepare=prepare)
        assert torch.autograd.gradcheck(
            function, (start, width.requires_grad_()), eps=1e-6, atol=1e-7, rtol=1e-6
        )


def test_gradients_flow_where_they_are_asked_for_only(x):
    """A start without them gives a result without; no_grad stops them."""
    flow, options = VP.probability_flow(smooth), {"method": "adams3", "steps": 4, **GIVEN}
    assert not sk.solve(flow, x, **options).x.requires_grad
    start = x.clone().requires_grad_()
    assert sk.solve(flow, start, **options).x.requires_grad
    with torch.no_grad():
        assert not sk.solve(flow, start, **options).x.requires_grad
    with torch.inference_mode():
        inside = sk.solve(flow, x, **options).x
    assert torch.equal(inside, sk.solve(flow, x, **options).x)


# ---- compilation ----

# With a corrector, with a step that is one lerp, with stages, and in the process's own time.
COMPILED = ["adams3", "dpmpp_2m", "rk4", "heun_t"]


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_is_eager(name, grad):
    """One graph of the whole solve: fullgraph=True refuses anything that leaves the device."""
    x = VP.prior_sample((4, 3), seed=0)
    options = {"method": name, "steps": 2, "ending": "denoise", **GIVEN}
    torch.compiler.reset()
    with torch.set_grad_enabled(grad):
        prepared = sk.prepare(VP.probability_flow(smooth), x, **options)
        compiled = torch.compile(prepared, fullgraph=True, backend="eager")
        for state in (x, 0.3 * x):
            torch.testing.assert_close(compiled(state), prepared(state), rtol=1e-5, atol=1e-5)


def test_compiled_by_the_default_backend():
    x = VP.prior_sample((4, 3), seed=0)
    torch.compiler.reset()
    flow = VP.probability_flow(smooth)
    prepared = sk.prepare(flow, x, method="adams3", steps=2, **GIVEN)
    with torch.no_grad():
        compiled = torch.compile(prepared, fullgraph=True)
        torch.testing.assert_close(compiled(x), prepared(x), rtol=1e-5, atol=1e-5)


# ---- memory ----


class LiveStates(TorchDispatchMode):
    """Counts the tensors of the state's size that are alive, but for those there before."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.size = known[0].untyped_storage().nbytes()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.references: dict[int, StorageWeakRef] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage.nbytes() == self.size and storage._cdata not in self.known:
                    self.references[storage._cdata] = StorageWeakRef(storage)
        alive = {k: ref for k, ref in self.references.items() if not ref.expired()}
        self.references, self.peak = alive, max(self.peak, len(alive))
        return result


def peak_of(scheme, coordinates, steps: int = 12, **options) -> int:
    """Largest number of states alive in a solve with a denoiser that needs no memory."""
    x = torch.ones((5, 1000), dtype=DOUBLE)
    output = torch.full_like(x, 0.25)
    flow = EDM.probability_flow(lambda x, sigma: output)
    solver = Solver(scheme, coordinates, sk.grids.log)
    with torch.no_grad(), LiveStates(x, output) as live:
        sk.solve(flow, x, method=solver, steps=steps, **options)
    return live.peak


@pytest.mark.parametrize("ending", ["stop", "denoise", "half"])
@pytest.mark.parametrize("coordinates", [sk.Noise(), sk.LogData(), sk.Preconditioned(0.5)], ids=str)
def test_memory_is_that_of_the_slopes(coordinates, ending):
    """At most three states more than slopes, one more at an ending, however long the grid."""
    spare = 3 if ending == "stop" else 4
    for order in (1, 2, 3, 4, 6):
        for options in ({}, {"corrector": True}, {"corrector": True, "again": True}):
            scheme = sk.Adams(order, **options)
            peaks = {peak_of(scheme, coordinates, steps, ending=ending) for steps in (12, 24)}
            assert len(peaks) == 1
            assert peaks.pop() <= order + spare
    for tableau in (sk.tableaus.EULER, sk.tableaus.HEUN, sk.tableaus.RK4):
        peak = peak_of(sk.RungeKutta(tableau), coordinates, ending=ending)
        assert peak <= tableau.stages + spare


def test_the_counter_counts():
    """A trajectory keeps every state."""
    longer, shorter = (
        peak_of(sk.Adams(2), sk.Noise(), steps, trajectory=True) for steps in (24, 12)
    )
    assert longer == shorter + 12


# ---- failures ----


def broken(value: float, below: float, *, hide: bool = False):
    """A denoiser that fails for sample 2 below a noise level.

    Or it fails just below that level only, and then hides it: it cleans what it is given.
    """

    def denoiser(x, sigma):
        if hide:
            x = torch.nan_to_num(x, 0.0, 0.0, 0.0)
        bad = (sigma < below) & (sigma > (0.9 * below if hide else 0.0))
        denoised = smooth(x, sigma)
        denoised[2] = torch.where(bad, value, denoised[2])
        return denoised

    return denoiser


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["adams3", "heun", "dpmpp_2m", "rk4_t", "bayesian_adams"])
@pytest.mark.parametrize("run", ["solve", "prepare"])
def test_a_failure_is_named(run, name, value, x):
    """The first step whose result is not finite, its levels, and the sample."""
    flow = EDM.probability_flow(broken(value, 1.0))
    sigmas = [80.0, 20.0, 5.0, 1.5, 0.5, 0.1, 0.02]
    # Heun and Runge–Kutta steps evaluate at their ends, too.
    step = (
        "4 of 6, from σ = 1.5 to 0.5"
        if name in ("heun", "rk4_t")
        else "5 of 6, from σ = 0.5 to 0.1"
    )
    options = {"method": name, "sigmas": sigmas, **GIVEN}
    solve = functools.partial(sk.solve, flow, x, **options)
    if run == "prepare":
        solve = functools.partial(sk.prepare(flow, x, **options), x)
    for grad in (False, True):
        expected = pytest.raises(sk.SolveError, match=f"in step {step}, in sample 2: either")
        with torch.set_grad_enabled(grad), expected:
            solve()


@pytest.mark.parametrize("ending", ["denoise", "half", "stop"])
@pytest.mark.parametrize("name", ["adams3", "heun", "dpmpp_2m", "lms3"])
def test_a_hidden_failure_is_found(name, ending, x):
    """The last state that is not denoised tells, where the denoised one is finite."""
    flow = EDM.probability_flow(broken(float("nan"), 0.5, hide=True))
    sigmas = [80.0, 10.0, 2.0, 0.49, 0.1, 0.02]
    with pytest.raises(sk.SolveError, match=r"in step (3|4) of \d, .*sample 2"):
        sk.solve(flow, x, method=name, sigmas=sigmas, ending=ending, **GIVEN)


def test_a_bad_start_is_named(x):
    start = x.clone()
    start[1, 0], start[3, 2] = torch.inf, torch.nan
    for name in ("adams3", "heun"):
        with pytest.raises(sk.SolveError, match="initial state is not finite in samples 1, 3"):
            sk.solve(EDM.probability_flow(smooth), start, method=name, steps=4, **GIVEN)


def test_a_failure_that_does_not_come_back_is_told_apart(x):
    """Looking for the step again, nothing is found: it is the denoiser that varies."""
    calls = 0

    def once(x, sigma):
        nonlocal calls
        calls += 1
        return smooth(x, sigma) * (torch.nan if calls == 3 else 1.0)

    flow = EDM.probability_flow(once)
    with pytest.raises(sk.SolveError, match="solving again, it was: the denoiser varies"):
        sk.solve(flow, x, method="adams3", steps=6, **GIVEN)
    # A later solve is another one, and the next of a prepared solve too.
    assert sk.solve(flow, x, method="adams3", steps=6, **GIVEN).x.isfinite().all()
    prepared = sk.prepare(flow, x, method="adams3", steps=6, **GIVEN)
    calls = 0
    with pytest.raises(sk.SolveError, match="the denoiser varies"):
        prepared(x)
    assert prepared(x).isfinite().all()


@pytest.mark.parametrize("name", FLOWS)
def test_looking_for_failures_costs_no_calls(name, x):
    """A solve that succeeds calls the denoiser once for each evaluation it counts."""
    calls = 0

    def counted(x, sigma):
        nonlocal calls
        calls += 1
        return smooth(x, sigma)

    flow = VP.probability_flow(counted)
    solved = sk.solve(flow, x, method=name, steps=4, **GIVEN)
    assert calls == solved.nfe == 4 * sk.methods()[name].solver.scheme.nfe_per_step
    prepared = sk.prepare(flow, x, method=name, steps=4, **GIVEN)
    for _ in range(2):
        calls = 0
        prepared(x)
        assert calls == solved.nfe


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: sk.prepare(EDM.reverse(smooth), x, steps=4), TypeError, "new noise every time"),
        (lambda x: sk.prepare(smooth, x, steps=4), TypeError, "probability flow"),
        (lambda x: sk.prepare(VP.probability_flow(smooth), x), TypeError, "got no grid"),
        (
            lambda x: sk.prepare(VP.probability_flow(smooth), x, steps=4, method="pc"),
            ValueError,
            "process.reverse",
        ),
        (
            lambda x: sk.prepare(VP.probability_flow(smooth), x, steps=4, ending="exact"),
            ValueError,
            "ending = 'exact'",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message, x):
    with pytest.raises(error, match=message):
        call(x)
