"""Gradients through solves, plain and checkpointed: exactness, memory, calls, and ``torch.func``."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torchdiffeq
from helpers import PeakMemory
from torch.multiprocessing.reductions import StorageWeakRef

import sdekit as sk
from sdekit.checkpoint import checkpointed

DOUBLE = torch.float64
EDM, VP = sk.EDM(), sk.VP()
FLOWS = [
    name
    for name, entry in sk.methods().items()
    if entry.solver.scheme.solves == "flow"
    and entry.solver.scheme.fixed
    and not entry.solver.scheme.stochastic
]
# Runge–Kutta, the default, data and noise prediction with a memory, predictors with correctors.
METHODS = ["heun", "edm_heun", "bayesian_adams", "dpmpp_2m", "adams4", "unipc_bh2_2"]
GIVEN = {"sigma_data": 0.7}  # else a pilot call is one of the steps


class Network(torch.nn.Module):
    """A small denoiser: a skip connection and an MLP of the preconditioned state and the level."""

    def __init__(self, dim: int = 3, width: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner = torch.nn.Linear(dim + 1, width, dtype=DOUBLE)
        self.outer = torch.nn.Linear(width, dim, dtype=DOUBLE)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
        self.calls = 0

    def forward(self, x, sigma):
        self.calls += 1
        scale = (1 + sigma**2) ** 0.5
        level = sigma.log().expand(len(x), 1) / 4
        output = self.outer(torch.tanh(self.inner(torch.cat([x / scale, level], 1))))
        return x / scale**2 + output * sigma / scale


@pytest.fixture
def net():
    return Network()


@pytest.fixture
def x():
    return VP.prior_sample((4, 3), seed=0, dtype=DOUBLE)


def loss_of(process, net, x, **options):
    """A loss that is not linear in the state where a solve ends."""
    solution = sk.solve(process.probability_flow(net), x, **{**GIVEN, **options})
    return (solution.x**2).mean() + torch.sin(solution.x).sum()


def gradients(loss, x, net):
    return torch.autograd.grad(loss, [x, *net.parameters()])


def start(process, seed: int = 0, shape=(4, 3)):
    return process.prior_sample(shape, seed=seed, dtype=DOUBLE).requires_grad_()


# ---- the schedule ----


@functools.cache
def fewest(steps: int, slots: int) -> float:
    """Least number of steps to take again, by trying every place of the next snapshot."""
    if steps <= 1:
        return 0
    if slots == 0:
        return math.inf
    return min(m + fewest(m, slots) + fewest(steps - m, slots - 1) for m in range(1, steps))


def rounds(steps: int, slots: int) -> int:
    """How often a step is taken again at most, ``r``."""
    return next(r for r in range(steps + 1) if math.comb(slots + r, r) >= steps)


def formula(steps: int, slots: int = 8) -> int:
    r = rounds(steps, slots)
    return r * steps - math.comb(slots + r, slots + 1)


@pytest.mark.parametrize(
    ("steps", "slots"),
    [(0, 8), (1, 8), (2, 8), (9, 8), (10, 8), (46, 8), (2, 1), (9, 1), (10, 2), (31, 3)],
)
def test_no_schedule_takes_fewer_steps_again(steps, slots):
    counts = [0] * steps
    weight = torch.tensor(0.9, dtype=DOUBLE, requires_grad=True)

    def segment(carry, first, last):
        (x, old) = carry
        for n in range(first, last):
            counts[n] += 1
            x, old = torch.sin(weight * x) + 0.1 * old, x
        return x, old

    def of(run):
        x = torch.linspace(0.1, 1, 3, dtype=DOUBLE, requires_grad=True)
        carry = (x, x.cos())
        return torch.autograd.grad(run(carry)[0].sum(), (x, weight), allow_unused=True)

    grads = of(lambda carry: checkpointed(segment, carry, steps, slots))
    again = [count - 1 for count in counts]
    assert sum(again) == formula(steps, slots) == fewest(steps, slots)
    assert max(again, default=0) <= rounds(steps, slots)
    for grad, exact in zip(grads, of(lambda carry: segment(carry, 0, steps)), strict=True):
        assert (grad is None and exact is None) or torch.equal(grad, exact)


# ---- exactness ----


@pytest.mark.parametrize("process", [VP, EDM], ids=["VP", "EDM"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_finite_differences(method, process, net):
    """Of the state and of the parameters, along the gradient itself and across it."""
    x = start(process)
    options = {"method": method, "steps": 50, "ending": "denoise"}
    variables = [x, *net.parameters()]
    plain = gradients(loss_of(process, net, x, **options), x, net)
    replayed = gradients(loss_of(process, net, x, checkpoint=True, **options), x, net)
    generator = torch.Generator().manual_seed(1)

    @torch.no_grad()
    def difference(directions, step):
        losses = []
        for sign in (1, -1):
            for variable, direction in zip(variables, directions, strict=True):
                variable.add_(direction, alpha=sign * step)
            losses.append(loss_of(process, net, x, **options))
            for variable, direction in zip(variables, directions, strict=True):
                variable.sub_(direction, alpha=sign * step)
        return (losses[0] - losses[1]) / (2 * step)

    # The state and the parameters apart, as their gradients differ in size.
    for part in (range(1), range(1, len(variables))):
        size = math.sqrt(sum(float(plain[i].square().sum()) for i in part))
        for k in range(2):
            directions = [torch.zeros_like(v) for v in variables]
            for i in part:
                noise = torch.randn(variables[i].shape, generator=generator, dtype=DOUBLE)
                directions[i] = noise if k else plain[i]
            length = math.sqrt(sum(float(d.square().sum()) for d in directions))
            directions = [d / length for d in directions]
            scale = float(x.detach().std()) if part.start == 0 else 1.0
            exact = difference(directions, 1e-5 * scale)
            for grads in (plain, replayed):
                along = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
                assert abs(float(along - exact)) < 1e-6 * size


@pytest.mark.parametrize("name", FLOWS)
def test_checkpointed_gradients_are_autograds(name, net):
    x = start(VP)
    options = {"method": name, "steps": 11, "ending": "half"}
    plain, replayed = (
        gradients(loss_of(VP, net, x, checkpoint=checkpoint, **options), x, net)
        for checkpoint in (False, True)
    )
    for a, b in zip(replayed, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max()))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("ending", ["stop", "denoise"])
def test_short_solves(steps, ending, net):
    x = start(VP)
    options = {"steps": steps, "ending": ending}
    plain, replayed = (
        gradients(loss_of(VP, net, x, checkpoint=c, **options), x, net) for c in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(replayed, plain, strict=True))


def test_prepared_solves_are_checkpointed_too(net):
    x = start(VP)
    flow = VP.probability_flow(net)
    plain, replayed = (sk.prepare(flow, x, steps=20, checkpoint=c, **GIVEN) for c in (False, True))
    assert torch.equal(replayed(x), plain(x))
    for a, b in zip(*(gradients(f(x).sum(), x, net) for f in (replayed, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        assert torch.equal(replayed(x), plain(x))


def test_losses_of_whole_trajectories(net):
    x = start(VP)

    def gradient(checkpoint):
        solution = sk.solve(
            VP.probability_flow(net), x, steps=20, trajectory=True, checkpoint=checkpoint, **GIVEN
        )
        weights = torch.linspace(0, 1, 21, dtype=DOUBLE)[:, None, None]
        return solution.trajectory, *gradients((weights * solution.trajectory**2).sum(), x, net)

    for a, b in zip(gradient(True), gradient(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_gradients_of_gradients(net):
    """Also twice through the same graph."""
    x = start(VP)

    def penalty(checkpoint):
        loss = loss_of(VP, net, x, steps=12, checkpoint=checkpoint)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        first = gradients(slope.square().sum(), x, net) if not checkpoint else None
        if first is None:
            total = slope.square().sum()
            first, second = (
                torch.autograd.grad(total, [x, *net.parameters()], retain_graph=True)
                for _ in range(2)
            )
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        return first

    for a, b in zip(penalty(True), penalty(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))


def test_autocast_is_that_of_the_solve():
    """A step taken again, outside of the region of reduced precision, is still the same."""
    net, x = Network().float(), VP.prior_sample((4, 3), seed=0).requires_grad_()

    def gradient(checkpoint):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(VP, net, x, steps=12, checkpoint=checkpoint)
        return gradients(loss, x, net)

    for a, b in zip(gradient(True), gradient(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2 * float(b.abs().max()))
    (a, *_), (b, *_) = gradient(True), gradient(False)
    assert torch.equal(a, b)


def test_the_adjoint_of_torchdiffeq_agrees(net, x):
    """The same problem goes to odeint_adjoint as it is, and its gradients are ours."""
    x = x.requires_grad_()
    times = VP.on_host("time", torch.logspace(0.5, -1, 101, dtype=DOUBLE).numpy())
    flow = VP.probability_flow(net)
    ours = sk.solve(flow, x, method="rk4_t", times=times, checkpoint=True).x
    theirs = torchdiffeq.odeint_adjoint(
        flow,
        x,
        torch.tensor(times[[0, -1]]),
        rtol=1e-8,
        atol=1e-10,
        adjoint_params=tuple(net.parameters()),
    )[-1]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    pairs = (gradients((final**2).sum(), x, net) for final in (ours, theirs))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))


# ---- what it costs ----


def peak_memory(method: str, steps: int, *, checkpoint: bool) -> float:
    """Peak memory of a solve and its gradients, in states."""
    x = start(EDM, shape=(64, 64))  # large, beside one number for each noise level
    width = torch.tensor(0.8, dtype=DOUBLE, requires_grad=True)
    flow = EDM.probability_flow(lambda x, sigma: torch.tanh(x.sin() * width))
    options = {"method": method, "steps": steps, "checkpoint": checkpoint, **GIVEN}
    with PeakMemory() as memory:
        torch.autograd.grad(sk.solve(flow, x, **options).x.sum(), [x, width])
    return memory.peak / x.nbytes


@pytest.mark.parametrize(
    ("method", "few", "many"), [("ddim", 50, 800), ("bayesian_adams", 100, 300)]
)
def test_peak_memory_does_not_grow_with_the_steps(method, few, many):
    """With a long memory there is a little less where snapshots are close, and share slopes."""
    short, long = (peak_memory(method, steps, checkpoint=True) for steps in (few, many))
    assert long < 1.1 * short


def test_peak_memory_of_plain_autograd_does():
    short, long = (peak_memory("ddim", steps, checkpoint=False) for steps in (50, 800))
    assert 14 < long / short < 18
    assert short > 4 * peak_memory("ddim", 50, checkpoint=True)


@pytest.mark.parametrize(("method", "evaluations"), [("heun", 2), ("adams4", 1)])
@pytest.mark.parametrize("steps", [9, 50, 200])
def test_calls_are_as_few_as_documented(method, evaluations, steps, net):
    x = start(VP)
    solution = sk.solve(
        VP.probability_flow(net), x, method=method, steps=steps, checkpoint=True, **GIVEN
    )
    assert net.calls == solution.nfe == evaluations * steps
    net.calls = 0
    gradients(solution.x.sum(), x, net)
    assert net.calls <= evaluations * formula(steps)
    assert net.calls <= evaluations * rounds(steps, 8) * steps


@pytest.mark.parametrize("checkpoint", [False, True])
def test_what_was_returned_is_held_by_nothing_else(checkpoint, net):
    """Not by its own graph, with which it would never be freed, nor by a prepared solve."""
    x, flow = start(VP), VP.probability_flow(net)
    solution = sk.solve(flow, x, steps=20, trajectory=True, checkpoint=checkpoint, **GIVEN)
    prepared = sk.prepare(flow, x, steps=20, checkpoint=checkpoint, **GIVEN)
    final = prepared(x)
    gradients(solution.trajectory.sum() + final.sum(), x, net)
    references = [StorageWeakRef(tensor.untyped_storage()) for tensor in (solution.x, final)]
    assert not any(reference.expired() for reference in references)
    del solution, final
    assert all(reference.expired() for reference in references)


# ---- failures ----


def test_a_failure_in_a_checkpointed_solve_is_named(net):
    def broken(x, sigma):
        sample = torch.arange(4)[:, None]
        return torch.where((sigma < 1.0) & (sample == 2), torch.nan, net(x, sigma))

    sigmas = [80.0, 20.0, 5.0, 1.5, 0.5, 0.1, 0.02]
    flow = EDM.probability_flow(broken)
    with pytest.raises(sk.SolveError, match=r"in step 5 of 6, from σ = 0.5 to 0.1, in sample 2"):
        sk.solve(flow, start(EDM), method="adams3", sigmas=sigmas, checkpoint=True)


@pytest.mark.parametrize("method", ["euler_maruyama", "edm_sde"])
def test_methods_that_draw_noise_are_refused(method, net):
    entry = sk.methods()[method]
    problem = VP.reverse(net) if entry.solver.scheme.solves == "sde" else VP.probability_flow(net)
    with pytest.raises(ValueError, match="checkpoint=True needs a deterministic method"):
        sk.solve(problem, start(VP), method=method, steps=4, checkpoint=True, **GIVEN)


def test_compiling_the_loop_is_refused(x, net):
    prepared = sk.prepare(VP.probability_flow(net), x, steps=3, checkpoint=True, **GIVEN)
    with pytest.raises(Exception, match="compile the denoiser"):
        torch.compile(prepared, fullgraph=True, backend="eager")(x.requires_grad_())


# ---- torch.func ----


def prepared(net, x, **options):
    """The solve as a function of its start."""
    return sk.prepare(VP.probability_flow(net), x, **GIVEN, **options)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("method", ["bayesian_adams", "heun", "heun_t"])
def test_transforms_of_the_start(method, grad, net, x):
    function = prepared(net, x, method=method, steps=6, ending="denoise")
    states = torch.stack([x, 0.5 * x, -x])
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    with torch.set_grad_enabled(grad):
        loop = torch.stack([function(state) for state in states])
        torch.testing.assert_close(torch.func.vmap(function)(states), loop, rtol=1e-12, atol=0)
        forward = torch.func.jvp(function, (x,), (direction,))[1]
        backward = torch.func.vjp(function, x)[1](direction)[0]
        by_columns, by_rows = torch.func.jacfwd(function)(x), torch.func.jacrev(function)(x)
        many = torch.func.vmap(torch.func.jacrev(function))(states)
    ahead, behind = (function(x + h * direction) for h in (1e-5, -1e-5))
    close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-8)
    close(forward, (ahead - behind) / 2e-5)
    close(by_rows, by_columns)
    close(torch.einsum("abcd,cd->ab", by_rows, direction), forward)
    close(torch.einsum("abcd,ab->cd", by_rows, direction), backward)
    close(many[0], by_rows)


def test_an_ensemble_of_networks_is_one_vmap(net, x):
    """Prepared inside of the transform."""

    def final(parameters):
        def denoiser(x, sigma):
            return torch.func.functional_call(net, parameters, (x, sigma))

        return prepared(denoiser, x, steps=6)(x)

    values = {name: parameter.detach() for name, parameter in net.named_parameters()}
    ensemble = {name: torch.stack([value, 0.9 * value]) for name, value in values.items()}
    both = torch.func.vmap(final)(ensemble)
    for i in range(2):
        torch.testing.assert_close(both[i], final({k: v[i] for k, v in ensemble.items()}))


def test_hessian(net, x):
    function = prepared(net, x[:1], steps=4)
    hessian = torch.func.hessian(lambda x: function(x).square().sum())(x[:1]).reshape(3, 3)
    exact = torch.autograd.functional.hessian(lambda x: function(x).square().sum(), x[:1])
    torch.testing.assert_close(hessian, exact.reshape(3, 3), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(hessian, hessian.mT, rtol=1e-10, atol=1e-12)
