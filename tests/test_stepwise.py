"""Solves whose loop is the caller's, and callbacks: every state is that of `solve`, to the bit."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers import DOUBLE, Counting, Perceptron, elementwise, normal

import sdekit as sk
from sdekit.solvers.registry import Solver

VP, EDM = sk.VP(), sk.EDM()
SIGMAS = [50.0, 8.0, 2.0, 1.0, 0.4, 0.1]
GIVEN = {"sigma_data": 0.7}
FIXED = [name for name, entry in sk.methods().items() if entry.fixed]
STOCHASTIC = [name for name in FIXED if sk.methods()[name].solver.scheme.stochastic]
CORRECTORS = ["pc", "pc_euler_maruyama", "pc_flow"]
CLOSED = [*CORRECTORS, "milstein_t"]  # their steps are not known in parts
FRAME = Solver(
    sk.Adams(2, corrector=True),
    sk.GaussianPreconditioned([0.1, 0.0, -0.2], [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0.3]]),
    sk.grids.log,
)


def problem_of(name, model, process=VP):
    flow = sk.methods()[name].solver.scheme.solves == "flow"
    return process.probability_flow(model) if flow else process.reverse(model)


def unasked(x_hat, sigma):
    raise AssertionError("the model was called, though the caller answers")


def by_steps(walk, x):
    states = [walk.init(x)]
    while not states[-1].done:
        states.append(walk.step(states[-1]))
    return states


def by_questions(walk, x, denoiser):
    states, questions = [walk.init(x)], []
    while not states[-1].done:
        part = walk.ask(states[-1])
        while isinstance(part, sk.Query):
            questions.append(part)
            part = walk.tell(part, denoiser(part.x_hat, part.sigma))
        states.append(part)
    return states, questions


@pytest.fixture
def x():
    return VP.prior_sample((4, 3), seed=0, dtype=DOUBLE)


# ---- the states are those of solve ----


@pytest.mark.parametrize("ending", ["stop", "half"])
@pytest.mark.parametrize("name", FIXED)
def test_steps_are_those_of_solve(name, ending, x):
    options = {"method": name, "sigmas": SIGMAS, "ending": ending, "seed": 3, **GIVEN}
    problem = problem_of(name, elementwise)
    solved = sk.solve(problem, x, trajectory=True, **options)
    walk = sk.stepwise(problem, x, **options)
    states = by_steps(walk, x)
    assert torch.equal(torch.stack([state.x for state in states]), solved.trajectory)
    assert [state.level for state in states] == list(solved.grid) == list(walk.grid)
    assert [state.number for state in states] == list(range(walk.steps + 1))


@pytest.mark.parametrize("ending", ["denoise", "half"])
@pytest.mark.parametrize("name", [name for name in FIXED if name not in CLOSED])
def test_questions_are_those_of_solve(name, ending, x):
    """The caller is asked what the denoiser would be, in the same order; the model is never called."""
    options = {"method": name, "sigmas": SIGMAS, "ending": ending, "seed": 3, **GIVEN}
    asked = []

    def denoiser(x_hat, sigma):
        asked.append((x_hat.clone(), sigma))
        return elementwise(x_hat, sigma)

    solved = sk.solve(problem_of(name, denoiser), x, trajectory=True, **options)
    walk = sk.stepwise(problem_of(name, unasked), x, **options)
    states, questions = by_questions(walk, x, elementwise)
    assert torch.equal(torch.stack([state.x for state in states]), solved.trajectory)
    assert len(questions) == len(asked) == solved.nfe
    for question, (x_hat, sigma) in zip(questions, asked, strict=True):
        assert torch.equal(question.x_hat, x_hat)
        assert torch.equal(question.sigma, sigma)


def test_questions_in_a_frame(x):
    """States are rotated inside; the caller sees and gives the axes of the data."""
    options = {"method": FRAME, "sigmas": SIGMAS, "ending": "denoise"}
    solved = sk.solve(VP.probability_flow(elementwise), x, **options)
    walk = sk.stepwise(VP.probability_flow(unasked), x, **options)
    states, _ = by_questions(walk, x, elementwise)
    assert torch.equal(states[-1].x, solved.x)


@pytest.mark.parametrize("name", ["heun_t", "adams2_t", "euler_maruyama_t", "milstein_t"])
def test_general_sdes(name):
    """Of a process without a noise level the caller is asked for the score."""

    class Doubled(sk.ForwardSDE):
        T, t_min = 1.0, 0.1

        def drift(self, x, t):
            return -x + 0.1 * torch.sin(x)

        def diffusion(self, x, t):
            return 1 + 0.2 * torch.cos(x)

        def diffusion_divergence(self, x, t):
            return -0.4 * self.diffusion(x, t) * torch.sin(x)

    def score(x, t):
        return -x / (1 + t)

    x, options = normal(4, 3), {"method": name, "steps": 4, "seed": 0}
    solved = sk.solve(problem_of(name, score, Doubled()), x, trajectory=True, **options)
    states = by_steps(sk.stepwise(problem_of(name, score, Doubled()), x, **options), x)
    assert torch.equal(torch.stack([state.x for state in states]), solved.trajectory)
    walk = sk.stepwise(problem_of(name, unasked, Doubled()), x, **options)
    if name in CLOSED:
        with pytest.raises(ValueError, match="call the model in their midst"):
            walk.ask(walk.init(x))
        return
    states, _ = by_questions(walk, x, score)
    assert torch.equal(states[-1].x, solved.x)


def test_the_error_is_that_of_the_exact_flow(gaussian):
    """By the caller's loop, against the closed form."""
    x = gaussian.sample(16, sigma=80.0, seed=0)
    exact = gaussian.flow(x, 80.0, 0.01)
    walk = sk.stepwise(EDM.probability_flow(gaussian), x, sigmas=sk.grids.log(200, 80.0, 0.01))
    error = (by_steps(walk, x)[-1].x - exact).abs().max()
    assert error < 1e-5
    walk = sk.stepwise(EDM.probability_flow(unasked), x, steps=20, method="rk4", **GIVEN)
    assert by_questions(walk, x, gaussian)[0][-1].x.isfinite().all()


def test_prepared_is_stepwise(x, product):
    options = {"method": "unipc_bh2_3", "steps": 6, **GIVEN}
    flow = VP.probability_flow(product)
    assert torch.equal(
        sk.prepare(flow, x, **options)(x), by_steps(sk.stepwise(flow, x, **options), x)[-1].x
    )


# ---- states stand on their own ----


@pytest.mark.parametrize("name", ["adams3", "heun", "sa_solver_3", "er_sde_2", "sra3"])
def test_one_may_go_on_from_any_state(name, x):
    """A state holds the history: steps from it are the same when others were taken between."""
    path = sk.BrownianPath(5, x.shape)
    options = {"method": name, "sigmas": SIGMAS, "noise": path, **GIVEN}
    walk = sk.stepwise(problem_of(name, elementwise), x, **options)
    states = by_steps(walk, x)
    other = by_steps(walk, 0.5 * x)
    for n in (3, 1, 4):
        again = walk.step(states[n])
        assert torch.equal(again.x, states[n + 1].x)
        assert not torch.equal(again.x, other[n + 1].x)


@pytest.mark.parametrize("name", ["lms3", "rk4", "dpmpp_2m", "sde_dpmpp_1", "euler_maruyama"])
def test_another_state_can_take_its_place(name, x):
    """As in inpainting. A scheme without memory then does what it does from there."""
    path = sk.BrownianPath(5, x.shape)
    walk = sk.stepwise(
        problem_of(name, elementwise), x, method=name, sigmas=SIGMAS, noise=path, **GIVEN
    )
    state = walk.step(walk.init(x))
    replaced = walk.replace(state, 0.5 * state.x)
    assert torch.equal(replaced.x, 0.5 * state.x)
    following = walk.step(replaced)
    rest = sk.stepwise(
        problem_of(name, elementwise), x, method=name, sigmas=SIGMAS[1:], noise=path, **GIVEN
    )
    expected = rest.step(rest.init(0.5 * state.x)).x
    if name in ("lms3", "dpmpp_2m"):  # the slope of the step before is remembered
        assert (following.x - expected).abs().max() > 1e-3
    else:
        torch.testing.assert_close(following.x, expected, rtol=1e-13, atol=0)


def test_gradients_go_through(x):
    flow = VP.probability_flow(Perceptron())
    options = {"method": "adams3", "sigmas": SIGMAS, **GIVEN}

    def solved(start, how):
        start = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(how(start).square().sum(), start)
        return gradient

    walk = sk.stepwise(flow, x, **options)
    expected = solved(x, lambda start: sk.solve(flow, start, **options).x)
    assert torch.equal(solved(x, lambda start: by_steps(walk, start)[-1].x), expected)


def test_asking_calls_nobody_and_draws_nothing_twice(x):
    counting = Counting(elementwise)
    walk = sk.stepwise(EDM.reverse(counting), x, method="sea_w", sigmas=SIGMAS, seed=0)
    state = walk.init(x)
    first, second = walk.ask(state), walk.ask(state)
    assert counting.calls == 0
    # The stage before the question takes noise, so asking anew begins the step anew.
    assert not torch.equal(first.x_hat, second.x_hat)
    walk.step(walk.init(x))
    assert counting.calls == 1


# ---- misuse ----


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w, s: w.step(s(5)), ValueError, "all 5 steps are done"),
        (lambda w, s: w.ask(s(5)), ValueError, "all 5 steps are done"),
        (lambda w, s: w.init(torch.ones(4, 2, dtype=DOUBLE)), ValueError, "prepared for samples"),
        (lambda w, s: w.init(torch.ones(4, 3)), ValueError, "torch.float64"),
        (
            lambda w, s: w.tell(w.ask(s(0)), torch.ones(4, 2)),
            ValueError,
            r"returned shape \(4, 2\)",
        ),
        (lambda w, s: w.tell(w.ask(s(0)), 1.0), TypeError, "returned float"),
        (lambda w, s: w.replace(s(2), s(2).x), ValueError, "corrects its last step"),
        (lambda w, s: w.replace(s(0), s(0).x[:2]), ValueError, "2 samples, the state has 4"),
    ],
)
def test_misuse_is_refused(call, error, message, x):
    walk = sk.stepwise(VP.probability_flow(elementwise), x, method="adams3", sigmas=SIGMAS, **GIVEN)
    states = by_steps(walk, x)
    with pytest.raises(error, match=message):
        call(walk, states.__getitem__)


@pytest.mark.parametrize("name", CORRECTORS)
def test_what_remembers_goes_forward_only(name, x):
    walk = sk.stepwise(problem_of(name, elementwise), x, method=name, sigmas=SIGMAS, **GIVEN)
    first = walk.init(x)
    second = walk.step(first)
    walk.step(second)
    with pytest.raises(ValueError, match="take them in order"):
        walk.step(second)
    with pytest.raises(ValueError, match="call the model in their midst"):
        walk.ask(first)


@pytest.mark.parametrize("name", CORRECTORS)
def test_what_remembers_takes_no_other_state(name, x):
    walk = sk.stepwise(problem_of(name, elementwise), x, method=name, sigmas=SIGMAS, **GIVEN)
    first = walk.init(x)
    begun = walk.step(walk.replace(first, 0.5 * x))  # nothing to remember yet
    with pytest.raises(ValueError, match="state cannot be replaced; take a method"):
        walk.replace(begun, begun.x)
    walk.step(begun)


def test_a_method_without_steps_of_a_grid_is_refused(x):
    with pytest.raises(ValueError, match="chooses its own steps"):
        sk.stepwise(VP.probability_flow(elementwise), x, method="variable_adams", steps=4)


# ---- callbacks ----


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", FIXED)
def test_callbacks(name, grad, x):
    """Every step once, with its state and the first answer in it; the result is the same."""
    answers, reports = [], []

    def denoiser(x_hat, sigma):
        answers.append((sigma, elementwise(x_hat, sigma).clone()))
        return answers[-1][1].clone()

    options = {"method": name, "sigmas": SIGMAS, "ending": "denoise", "seed": 1, **GIVEN}
    with torch.set_grad_enabled(grad):
        plain = sk.solve(problem_of(name, elementwise), x, trajectory=True, **options)
        marks = [0]

        def callback(report):
            reports.append(report)
            marks.append(len(answers))
            report.x.zero_()  # its own: nobody else sees it

        solved = sk.solve(
            problem_of(name, denoiser), x, callback=lambda r: callback(copied(r)), **options
        )
    assert torch.equal(solved.x, plain.x)
    assert [r.number for r in reports] == list(range(1, len(SIGMAS) + 1))
    assert all(r.steps == len(SIGMAS) for r in reports)
    assert [(r.start, r.level) for r in reports] == [*zip(SIGMAS, [*SIGMAS[1:], 0.0], strict=True)]
    for n, report in enumerate(reports):
        sigma, denoised = answers[marks[n]]
        assert torch.equal(report.denoised, denoised)
        assert torch.equal(report.denoised_at, sigma)
        assert torch.equal(KEPT[n], plain.trajectory[n + 1])


KEPT: list[torch.Tensor] = []


def copied(report):
    if report.number == 1:
        KEPT.clear()
    KEPT.append(report.x.clone())
    return report


def test_callbacks_of_a_network_that_reuses_its_memory(x):
    """What a callback keeps is not written over."""
    buffer, reports = torch.empty_like(x), []

    def static(x_hat, sigma):
        return buffer.copy_(elementwise(x_hat, sigma))

    options = {"method": "rk4", "sigmas": SIGMAS, **GIVEN}
    with torch.no_grad():
        sk.solve(EDM.probability_flow(static), x, callback=reports.append, **options)
        plain = sk.solve(EDM.probability_flow(elementwise), x, trajectory=True, **options)
    for n, report in enumerate(reports):
        assert torch.equal(report.x, plain.trajectory[n + 1])
        expected = elementwise(plain.trajectory[n], torch.tensor(SIGMAS[n], dtype=DOUBLE))
        torch.testing.assert_close(report.denoised, expected, rtol=1e-14, atol=1e-14)


def test_callbacks_of_sample_and_of_checkpointed_solves(x):
    seen = []
    sk.sample(VP, elementwise, (2, 3), steps=6, seed=0, callback=seen.append, **GIVEN)
    assert [r.number for r in seen] == [1, 2, 3, 4, 5, 6]
    seen.clear()
    start = x.clone().requires_grad_()
    solved = sk.solve(
        VP.probability_flow(elementwise),
        start,
        method="adams3",
        sigmas=SIGMAS,
        checkpoint=True,
        callback=seen.append,
        **GIVEN,
    )
    solved.x.sum().backward()  # takes steps again, without a word
    assert [r.number for r in seen] == [1, 2, 3, 4, 5]


def test_callbacks_can_end_a_solve_and_see_a_failure_once(x):
    class EnoughError(Exception):
        pass

    def stop(report):
        if report.number == 2:
            raise EnoughError

    counting = Counting(elementwise)
    with pytest.raises(EnoughError):
        sk.solve(EDM.probability_flow(counting), x, method="ddim", sigmas=SIGMAS, callback=stop)
    assert counting.calls == 2
    seen = []
    broken = functools.partial(sk.solve, EDM.probability_flow(lambda x, s: x / 0), x, method="ddim")
    with pytest.raises(sk.SolveError, match="step 1 of 5"):
        broken(sigmas=SIGMAS, callback=seen.append)
    assert len(seen) == 5  # the search for the step that failed is not reported


def test_callbacks_keep_what_a_denoiser_says_of_itself(x):
    """It is watched after its scale, and how often it calls its network, have been read."""

    class Known:
        sigma_data = 0.5

        def __call__(self, x_hat, sigma):
            return elementwise(x_hat, sigma)

    flow = VP.probability_flow(Known())
    solved = sk.solve(flow, x, steps=5)
    watched = sk.solve(flow, x, steps=5, callback=lambda report: None)
    assert torch.equal(watched.x, solved.x)
    assert watched.nfe == solved.nfe == 5


def test_callbacks_are_refused_where_there_are_no_steps(x):
    flow = VP.probability_flow(elementwise)
    with pytest.raises(ValueError, match="no step that all of them take"):
        sk.solve(flow, x, rtol=1e-3, callback=print)
    with pytest.raises(TypeError, match="callback is a int"):
        sk.solve(flow, x, steps=4, callback=3)
