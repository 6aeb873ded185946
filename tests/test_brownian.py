"""Sources of noise: the law of increments and areas, Chen's relation, and what paths depend on."""

from __future__ import annotations

import copy
import itertools
import math
import re

import numpy as np
import pytest
import torch
import torchsde
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import sdekit as sk
from sdekit.brownian import over_step
from sdekit.clock import TIME, VARIANCE, Clock
from sdekit.path import NamedNormals, join, split, whole

DOUBLE = torch.float64
# How likely the statistical tests of this module are to fail, all of them together, for seeds that
# nobody has chosen; each of the six has its share.
FALSE_ALARMS = 1e-6 / 6
quick = settings(max_examples=30, deadline=None, derandomize=True)

# A clock that runs down as σ goes up, as that of the noise in coordinates whose scale damps it.
FALLING = VARIANCE.mapped("falling", lambda v: (v + 0.25) ** -0.7, lambda u: u ** (-1 / 0.7) - 0.25)
CLOCKS = {"variance": VARIANCE, "time": TIME, "falling": FALLING, "plain": Clock("", float, float)}
RANGES = {"variance": (-30, 12), "time": (-40, 40), "falling": (-12, 12), "plain": (-9, 9)}
LIKE = torch.empty(3, 4, dtype=DOUBLE)


def close(actual, expected, tol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tol)


# --- the law, exactly: what a path returns is a linear combination of independent normal numbers ---


def functional(kind, a, b):
    """``k`` in ``∫ k dW``, which is ``W`` or ``H`` over ``[a, b]``: H's definition, by parts."""
    return (lambda r: 1.0) if kind == "W" else (lambda r: (b - r) / (b - a) - 0.5)


def covariance(one, other):
    """``∫ k l dr`` of two kernels on the intersection of their intervals, by Simpson: exact."""
    low, high = max(one[1], other[1]), min(one[2], other[2])
    f, g = functional(*one), functional(*other)
    if high <= low:
        return 0.0
    middle = (low + high) / 2
    values = [f(r) * g(r) for r in (low, middle, high)]
    return (high - low) / 6 * (values[0] + 4 * values[1] + values[2])


def check_law(pieces, tol=1e-11):
    """The covariances of increments and areas are those of a Brownian motion."""
    what = [(kind, p.low, p.high) for p in pieces for kind in "WH"]
    forms = [form for p in pieces for form in (p.increment, p.area)]
    keys = {key: i for i, key in enumerate({k: 0 for form in forms for k in form})}
    matrix = np.zeros((len(forms), len(keys)))
    for row, form in zip(matrix, forms, strict=True):
        for key, coefficient in form.items():
            row[keys[key]] = coefficient
    expected = np.array([[covariance(one, other) for other in what] for one in what])
    scale = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(
        matrix @ matrix.T / scale / scale[:, None], expected / scale / scale[:, None], atol=tol
    )


def same(piece, other, tol=1e-12):
    span = math.sqrt(piece.high - piece.low)
    for one, two in ((piece.increment, other.increment), (piece.area, other.area)):
        gaps = [abs(one.get(k, 0.0) - two.get(k, 0.0)) for k in {**one, **two}]
        assert max(gaps) <= tol * span


def test_area_is_what_it_is_defined_as():
    """The mean of the path above its chord: a Riemann sum over a path of known values."""
    points = np.linspace(2.0, 5.0, 2001)
    path = sk.GridPath(points, (2, 3), seed=0)
    values = torch.stack([path.increment(2.0, b, torch.empty(2, 3)) for b in points[1:]])
    values = torch.cat([torch.zeros(1, 2, 3), values])
    chord = torch.linspace(0, 1, 2001)[:, None, None] * values[-1]
    close(path.area(2.0, 5.0, LIKE[:2, :3]).float(), (values - chord).mean(0), 5e-3)


@quick
@given(st.floats(-3, 3), st.floats(-9, 6), st.floats(1e-3, 1 - 1e-3))
def test_split_pieces_have_the_law_of_a_path_and_join_again(low, size, fraction):
    low, high = low * 10.0**size, low * 10.0**size + 10.0**size
    piece = whole(low, high, "W", "H")
    parts = split(piece, low + fraction * (high - low), "X", "Y")
    check_law([piece, *parts])
    same(join(parts), piece)
    smaller = split(parts[1], parts[1].low + 0.3 * (high - parts[1].low), "X2", "Y2")
    check_law([piece, *parts, *smaller])
    same(join([parts[0], *smaller]), piece)


def test_splitting_at_an_end_leaves_nothing_over():
    piece = whole(1.0, 3.0, "W", "H")
    for at in (1.0, 3.0):
        parts = split(piece, at, "X", "Y")
        same(join(parts), piece)
        empty = parts[0] if at == 1.0 else parts[1]
        assert not any(empty.increment.values())


@st.composite
def queries(draw, names=tuple(CLOCKS)):
    """A path, and points of which no two lie within one leaf, in increasing order."""
    name = draw(st.sampled_from(names))
    clock, levels = CLOCKS[name], draw(st.integers(0, 5))
    resolution, (low, high) = 2.0 ** -(levels + 1), RANGES[name]
    position = draw(st.floats(low, high))
    positions = [position]
    for _ in range(draw(st.integers(1, 5))):
        stretch = draw(st.one_of(st.just(1.0), st.floats(1, 8), st.floats(1, 30)))
        positions.append(positions[-1] + resolution * stretch * (1 + 1e-9))
    path = sk.BrownianPath([3, 1, 2], LIKE.shape, clock=clock, resolution=resolution)
    return path, sorted(clock.value(p) for p in positions if p <= high + 2)


@quick
@given(queries())
def test_law_of_all_intervals_between_points(case):
    path, points = case
    pieces = [join(path.pieces(a, b)) for a, b in itertools.combinations(points, 2)]
    if pieces:
        check_law(pieces)


@quick
@given(queries())
def test_chen(case):
    """Parts of an interval make up the whole, as numbers in float64."""
    path, points = case
    for a, b, c in [*itertools.combinations(points, 3)][::3]:
        (W1, H1), (W2, H2), (W, H) = (
            (path.increment(*ends, LIKE), path.area(*ends, LIKE))
            for ends in ((a, b), (b, c), (a, c))
        )
        p, q, size = (b - a) / (c - a), (c - b) / (c - a), math.sqrt(c - a)
        close((W1 + W2) / size, W / size)
        close((p * H1 + q * H2 + (q * W1 - p * W2) / 2) / size, H / size)


def test_the_variance_clock_goes_down_to_zero():
    path = sk.BrownianPath([3, 1, 2], LIKE.shape)
    points = [0.0, 2.0**-66, 2.0**-64, 1e-15, 1e-6, 2.0]
    check_law([join(path.pieces(a, b)) for a, b in itertools.combinations(points, 2)])
    for v in (*points, 2.0**-70, 3.0, 2.0**70):
        assert VARIANCE.value(VARIANCE.position(v)) == pytest.approx(v, rel=1e-13)


def test_a_clock_whose_position_is_infinite_at_zero():
    """``(σ² + 1)`` on the axis ``log2 σ²``, down to ``σ = 0``."""
    clock = Clock("h²", lambda u: math.log2(u - 1) if u > 1 else -math.inf, lambda p: 1 + 2.0**p)
    path = sk.BrownianPath([3, 1, 2], LIKE.shape, clock=clock)
    points = [1.0, 1 + 2.0**-40, 1.3, 4.0]
    check_law([join(path.pieces(a, b)) for a, b in itertools.combinations(points, 2)])


@quick
@given(queries(("variance", "falling")), st.integers(1, 3))
def test_ends_of_leaves_stay_where_they_are_on_a_finer_path(case, more):
    path, points = case
    fine = sk.BrownianPath(
        [3, 1, 2], LIKE.shape, clock=path.clock, resolution=path.resolution / 2**more
    )
    places = [round(path.clock.position(p) / path.resolution) for p in points]
    ends = sorted(path.clock.value(place * path.resolution) for place in {*places})
    for a, b in itertools.pairwise(ends):
        close(path.increment(a, b, LIKE), fine.increment(a, b, LIKE), 1e-11 * math.sqrt(b))
        close(path.area(a, b, LIKE), fine.area(a, b, LIKE), 1e-11 * math.sqrt(b))


# --- the numbers ----------------------------------------------------------------------------------


def uniforms(values):
    return stats.norm.cdf(np.asarray(values, dtype=np.float64).ravel())


def test_numbers_are_normal():
    """Kolmogorov and Smirnov, four moments, tails; of rows, halves of rows and names apart."""
    numbers = NamedNormals(range(16), 16, 1 << 14, 4)
    found = torch.stack([numbers.draw(str(k), torch.empty(numbers.shape)) for k in range(4)])
    x = found.double().numpy()
    assert np.isfinite(x).all()
    p_values = [stats.kstest(part, "norm").pvalue for part in (x[0].ravel(), x[:, 0].ravel())]
    p_values += [stats.kstest(x[:, :, half].ravel(), "norm").pvalue for half in (0, 1)]
    # Moments: of Hermite polynomials, which have mean 0 and variance k!.
    for degree in range(1, 5):
        h = np.polynomial.hermite_e.hermeval(x, np.eye(5)[degree])
        z = h.mean() * math.sqrt(x.size / math.factorial(degree))
        p_values.append(2 * stats.norm.sf(abs(z)))
    for level in (1e-3, 3.0, 4.0, 5.0):
        expected = 2 * (stats.norm.sf(level) if level > 1 else stats.norm.cdf(level) - 0.5)
        count = (abs(x) > level).sum() if level > 1 else (abs(x) < level).sum()
        p_values.append(stats.binomtest(int(count), x.size, expected).pvalue)
    # A pair made of two words: squares would show a radius that is not the right one.
    pairs = x.transpose(2, 0, 1, 3).reshape(2, -1)
    p_values.append(stats.pearsonr(*pairs).pvalue)
    p_values.append(stats.pearsonr(*pairs**2).pvalue)
    p_values.append(stats.kstest((pairs**2).sum(0)[::8] / 2, "expon").pvalue)
    assert min(p_values) > FALSE_ALARMS / len(p_values)


def independent(rows, share=FALSE_ALARMS):
    """The correlations of all pairs of rows, and of their squares, are those of independent numbers."""
    for values in (rows, rows**2):
        r = np.corrcoef(values)[np.triu_indices(len(rows), 1)]
        assert stats.chi2.sf(rows.shape[1] * (r**2).sum(), len(r)) > share / 4
        assert stats.norm.sf(abs(r).max() * math.sqrt(rows.shape[1])) > share / 4 / len(r) / 2


def test_neighbouring_seeds_names_and_clocks_are_independent():
    like = torch.empty(8, 4096, dtype=DOUBLE)
    seeds = [0, 1, 2, 3, 2**32, 2**32 + 1, 2**63, -1 % 2**64]
    path = sk.BrownianPath(seeds, like.shape)
    other = path.on(Clock("variance ", VARIANCE.position, VARIANCE.value))
    drawn = [path.increment(1.0, 2.0**0.5, like), path.increment(2.0**0.5, 2.0, like)]
    drawn += [path.area(1.0, 2.0**0.5, like), other.increment(1.0, 2.0**0.5, like)]
    drawn += [path.normal(like), path.normal(like), other.normal(like)]
    independent(torch.cat(drawn).numpy())


@pytest.mark.parametrize("name", ["variance", "falling", "time"])
def test_increments_and_areas_are_normal_and_independent(name):
    """Over unequal steps, some with both ends in one cell, asked for in random order."""
    clock, rng = CLOCKS[name], np.random.default_rng(4)
    positions = -3 + np.cumsum(rng.uniform(0.125, 0.9, size=12))
    points = sorted(clock.value(p) for p in positions)
    like = torch.empty(64, 512, dtype=DOUBLE)
    path = sk.BrownianPath(list(range(64)), like.shape, clock=clock, resolution=1 / 8)
    scaled = {}
    for a, b in rng.permutation(list(itertools.pairwise(points))).tolist():
        scaled["W", a] = path.increment(a, b, like) / (b - a) ** 0.5
        scaled["H", a] = path.area(a, b, like) / ((b - a) / 12) ** 0.5
    rows = torch.stack([x.flatten() for x in scaled.values()]).numpy()
    share = FALSE_ALARMS / 6  # three clocks, and two tests
    worst = min(stats.kstest(row, "norm").pvalue for row in rows)
    assert worst > share / len(rows)
    independent(rows, share)


# --- what a path depends on, and what not ---------------------------------------------------------

EVENTS = [(1,), (2,), (7,), (3, 5), (2, 4, 4)]
ASKED = [(0.1, 0.3), (0.3, 1.5), (0.07, 0.1), (1.5, 2.5), (0.1, 2.5)]


def answers(path, like, asked=ASKED):
    return [(path.increment(a, b, like), path.area(a, b, like)) for a, b in asked]


@quick
@given(
    st.sampled_from(EVENTS),
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6),
    st.data(),
    st.sampled_from([torch.float32, DOUBLE]),
)
def test_a_sample_depends_on_its_seed_alone(event, seeds, data, dtype):
    """Alone, permuted or in a part of the batch: to the bit."""
    like = torch.empty(len(seeds), *event, dtype=dtype)
    whole_batch = answers(sk.BrownianPath(seeds, like.shape), like)
    chosen = data.draw(st.permutations(range(len(seeds))))[: data.draw(st.integers(1, len(seeds)))]
    part = sk.BrownianPath([seeds[i] for i in chosen], (len(chosen), *event))
    for (W, H), (w, h) in zip(whole_batch, answers(part, like[chosen]), strict=True):
        assert torch.equal(W[chosen], w)
        assert torch.equal(H[chosen], h)
    numbers = sk.BrownianPath(seeds, like.shape).normal(like)
    assert torch.equal(numbers[chosen], part.normal(like[chosen]))


@pytest.mark.parametrize("event", EVENTS)
def test_one_seed_for_the_batch(event):
    """A sample depends on the seed and on its place, not on how many come after it."""
    few, many = torch.empty(3, *event), torch.empty(5, *event)
    paths = sk.BrownianPath(7, few.shape), sk.BrownianPath(7, many.shape)
    for (w, h), (W, H) in zip(answers(paths[0], few), answers(paths[1], many), strict=True):
        assert torch.equal(w, W[:3])
        assert torch.equal(h, H[:3])
        assert len({float(row.flatten()[0]) for row in W}) == 5
    assert not torch.equal(
        sk.BrownianPath(8, few.shape).increment(0.1, 0.3, few), paths[0].increment(0.1, 0.3, few)
    )


@quick
@given(st.permutations(range(len(ASKED))), st.integers(1, 30), st.booleans())
def test_order_and_memory_do_not_matter(order, buffers, both):
    expected = [answers(sk.BrownianPath(5, LIKE.shape), LIKE, [ends])[0] for ends in ASKED]
    path = sk.BrownianPath(5, LIKE.shape, buffers=buffers)
    for i in order:
        if both:
            assert torch.equal(path.area(*ASKED[i], LIKE), expected[i][1])
        assert torch.equal(path.increment(*ASKED[i], LIKE), expected[i][0])


def test_float32_and_float64_follow_one_path():
    path = sk.BrownianPath([1, 2, 3], LIKE.shape)
    for a, b in ASKED:
        for ask in (path.increment, path.area):
            close(ask(a, b, LIKE.float()).double(), ask(a, b, LIKE), 1e-6 * math.sqrt(b - a))


def test_what_is_returned_is_the_callers():
    path = sk.BrownianPath(1, LIKE.shape)
    first = path.increment(1.0, 2.0, LIKE)
    first.add_(1)
    close(path.increment(1.0, 2.0, LIKE), first - 1, 1e-15)
    assert torch.equal(copy.deepcopy(path).area(0.3, 5.0, LIKE), path.area(0.3, 5.0, LIKE))


def test_a_path_made_in_inference_mode_serves_gradients():
    factor = torch.ones(LIKE.shape, dtype=DOUBLE, requires_grad=True)
    with torch.inference_mode():
        path = sk.BrownianPath(1, LIKE.shape, buffers=1)
        path.increment(1.0, 2.0, LIKE)
    drawn = path.increment(1.0, 3.0, LIKE)
    (factor * drawn).sum().backward()
    assert torch.equal(factor.grad, drawn)


def test_memory_is_bounded():
    path = sk.BrownianPath(1, LIKE.shape, resolution=1 / 16, buffers=9)
    for a, b in itertools.pairwise(np.geomspace(1e-6, 1e4, 100).tolist()):
        path.increment(a, b, LIKE)
        assert len(path._numbers._kept) <= 9


def test_neighbouring_steps_share_their_numbers(monkeypatch):
    """Both ways along a grid, hardly any numbers are drawn twice."""
    drawn = []
    draw = NamedNormals.draw
    monkeypatch.setattr(
        NamedNormals, "draw", lambda self, name, out: drawn.append(name) or draw(self, name, out)
    )
    steps = list(itertools.pairwise(np.geomspace(1e-6, 6400, 31).tolist()))
    for order in (steps, steps[::-1]):
        drawn.clear()
        path = sk.BrownianPath(1, LIKE.shape)
        for a, b in order:
            path.increment(a, b, LIKE)
            path.area(a, b, LIKE)
        assert len(drawn) <= 1.05 * len({*drawn})


def test_clocks_of_one_name_are_one_clock():
    path = sk.BrownianPath(1, LIKE.shape)
    assert path.on(Clock("variance", float, float)) is path
    time = path.on(TIME)
    assert (time.clock, time.seeds, time.resolution) == (TIME, 1, path.resolution)
    assert torch.equal(
        time.increment(0.2, 0.7, LIKE),
        sk.BrownianPath(1, LIKE.shape, clock=TIME).increment(0.2, 0.7, LIKE),
    )


@quick
@given(st.floats(-20, 12), st.floats(-9, -4))
def test_an_interval_within_a_leaf_is_refused_with_a_resolution_that_will_do(position, gap):
    a, b = (VARIANCE.value(p) for p in (position, position + 2.0**gap))
    for ask in ("increment", "area"):
        path = sk.BrownianPath(1, LIKE.shape)
        try:
            getattr(path, ask)(a, b, LIKE)
        except ValueError as error:
            finer = float(eval(re.search(r"resolution=(\S+)", str(error))[1]))
            assert finer >= 2.0**gap / 2
            path = sk.BrownianPath(1, LIKE.shape, resolution=finer)
            getattr(path, ask)(a, b, LIKE)
        else:  # one of them is the end of a leaf, or it lies between them
            leaf = math.floor(position * 4)
            assert not VARIANCE.value(leaf / 4) < a < b < VARIANCE.value((leaf + 1) / 4)


def nowhere(value):
    return math.nan


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: sk.BrownianPath([1, 2], (3, 4)), ValueError, r"2 seeds for .*\(3, 4\)"),
        (lambda: sk.BrownianPath(1.5, (3, 4)), TypeError, "whole number"),
        (lambda: sk.BrownianPath(None, (3, 4)), TypeError, "whole number"),
        (lambda: sk.BrownianPath(1, (3, 4), resolution=0.3), ValueError, r"1/2, 1/4, 1/8"),
        (lambda: sk.BrownianPath(1, (3, 4), resolution=1.0), ValueError, "1/2, 1/4, 1/8"),
        (lambda: sk.BrownianPath(1, (3, 4), resolution=0), ValueError, "1/2, 1/4, 1/8"),
        (lambda: sk.BrownianPath(1, (3, 5)).increment(1, 2, LIKE), ValueError, r"\(3, 5\)"),
        (lambda: sk.BrownianPath(1, (3, 5)).area(1, 2, LIKE), ValueError, r"\(3, 5\)"),
        (lambda: sk.BrownianPath(1, (3, 5)).normal(LIKE), ValueError, r"\(3, 5\)"),
        (lambda: sk.BrownianPath(1, (3, 4)).increment(2, 1, LIKE), ValueError, "must increase"),
        (lambda: sk.BrownianPath(1, (3, 4)).area(1, 1, LIKE), ValueError, "must increase"),
        (lambda: sk.BrownianPath(1, (3, 4)).increment(-1, 1, LIKE), ValueError, "not negative"),
        (lambda: sk.BrownianPath(1, (3, 4)).increment(1, math.inf, LIKE), ValueError, "finite"),
        (lambda: sk.BrownianPath(1, (3, 4)).increment(1, math.nan, LIKE), ValueError, "increase"),
        (
            lambda: sk.BrownianPath(1, (3, 4), clock=Clock("n", nowhere, float)).area(1, 2, LIKE),
            ValueError,
            "position nan of the clock 'n'",
        ),
        (
            lambda: sk.BrownianPath(1, (3, 4), clock=Clock("w", float, abs)).area(-9, 2, LIKE),
            ValueError,
            "value there the same",
        ),
        (
            lambda: sk.GridPath([1, 2], (3, 4), seed=0).on(FALLING),
            ValueError,
            "the variance or the time alone, and the method asks for the clock 'falling'",
        ),
        (
            lambda: sk.GridPath([1, 2], (3, 4), seed=0, clock=FALLING).on(TIME),
            ValueError,
            "the clock 'falling' alone",
        ),
        (
            lambda: sk.GridPath([1, 2, 3], (3, 4), seed=0).area(1, 2.5, LIKE),
            ValueError,
            "not known at clock 2.5",
        ),
        (lambda: sk.GridPath([1, 2], (3, 5), seed=0).area(1, 2, LIKE), ValueError, r"\(3, 5\)"),
    ],
)
def test_errors(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


# --- the other sources ----------------------------------------------------------------------------


def test_independent_noise_has_the_law():
    like = torch.empty(1 << 18, 1, dtype=DOUBLE)
    noise = sk.IndependentNoise(3)
    found = noise.increment(1.0, 5.0, like) / 2, noise.area(1.0, 5.0, like) * math.sqrt(3)
    found = torch.cat(found, 1).numpy().T
    assert min(stats.kstest(row, "norm").pvalue for row in found) > FALSE_ALARMS / 4
    independent(found, FALSE_ALARMS / 2)
    assert noise.on(TIME) is noise


def test_a_generator_is_drawn_from():
    ours = sk.IndependentNoise(torch.Generator().manual_seed(5))
    theirs = torch.Generator().manual_seed(5)
    for _ in range(2):
        assert torch.equal(ours.normal(LIKE), torch.randn(3, 4, generator=theirs, dtype=DOUBLE))


def test_seeds_that_torch_does_not_tell_apart():
    """``manual_seed`` reads 32 bits of a seed on the CPU."""
    first, second = (
        torch.randn(3, generator=torch.Generator().manual_seed(s)) for s in (7, 7 + 2**32)
    )
    assert torch.equal(first, second)
    seeds = [7, 7 + 2**32, 7 + 2**33, 2**64 - 7, 2**64 - 7 - 2**32]
    rows = sk.IndependentNoise(seeds).normal(torch.empty(5, 4))
    assert len({tuple(row) for row in rows.tolist()}) == 5
    assert torch.equal(rows[:1], sk.IndependentNoise([7]).normal(torch.empty(1, 4)))
    paths = [sk.GridPath([0, 1], (2, 2), seed=s).increment(0, 1, LIKE[:2, :2]) for s in seeds]
    assert len({tuple(path.flatten().tolist()) for path in paths}) == 5


def test_grid_path_areas():
    """Chen's relation on any grid, and a law of their own; increments are not changed by them."""
    points = np.geomspace(0.01, 9.0, 33)
    like = torch.empty(1, 1 << 15, dtype=DOUBLE)
    path, plain = (sk.GridPath(points, like.shape, seed=2) for _ in range(2))
    rows = []
    for i, j, k in [(0, 1, 2), (3, 7, 8), (8, 20, 32), (0, 31, 32)]:
        a, b, c = points[[i, j, k]]
        p, q = (b - a) / (c - a), (c - b) / (c - a)
        W1, W2 = path.increment(a, b, like), path.increment(b, c, like)
        H = p * path.area(a, b, like) + q * path.area(b, c, like) + (q * W1 - p * W2) / 2
        close(path.area(a, c, like), H)
        if (i, j, k) != (0, 31, 32):
            rows += [W1 / (b - a) ** 0.5, path.area(a, b, like) / ((b - a) / 12) ** 0.5]
    assert torch.equal(
        path.increment(points[0], points[5], like), plain.increment(*points[[0, 5]], like)
    )
    assert torch.equal(path.normal(like), plain.normal(like))
    rows = torch.cat(rows).numpy()
    assert min(stats.kstest(row, "norm").pvalue for row in rows) > FALSE_ALARMS / 2 / len(rows)
    independent(rows, FALSE_ALARMS / 2)
    assert path.on(VARIANCE) is path
    assert path.on(TIME) is path


@pytest.mark.parametrize(
    "make",
    [
        lambda points: sk.GridPath(points, LIKE.shape, seed=1),
        lambda points: sk.BrownianPath(1, LIKE.shape, resolution=2.0**-7),
    ],
    ids=["GridPath", "BrownianPath"],
)
def test_steps_down_the_clock(make):
    """A step down is driven by ``V(r) = W(start) − W(start − r)``: from its values, by quadrature."""
    points = np.linspace(1.0, 2.0, 65)
    noise = make(points)
    for start, end in ((1.0, 2.0), (2.0, 1.0)):
        grid = points if start < end else points[::-1]
        steps = [over_step(noise, a, b, LIKE) for a, b in itertools.pairwise(grid.tolist())]
        driver = torch.stack([W for W, _ in steps]).cumsum(0)
        driver = torch.cat([torch.zeros_like(driver[:1]), driver])
        W, H = over_step(noise, start, end, LIKE)
        close(W, driver[-1], 1e-11)
        mean = (driver[1:] + driver[:-1]).mean(0) / 2 + torch.stack([h for _, h in steps]).mean(0)
        close(H, mean - W / 2, 1e-11)
    assert torch.equal(over_step(noise, 1.0, 2.0, LIKE)[0], over_step(noise, 2.0, 1.0, LIKE)[0])


def test_torchsde_motions():
    like = torch.empty(2, 20_000, dtype=DOUBLE)
    motion = torchsde.BrownianInterval(
        0.0,
        8.0,
        size=tuple(like.shape),
        dtype=DOUBLE,
        entropy=4,
        levy_area_approximation="space-time",
    )
    noise, rows = sk.TorchsdeNoise(motion, seed=3), []
    for a, b, c in ((0.0, 1.0, 1.25), (2.0, 5.0, 8.0)):
        p, q = (b - a) / (c - a), (c - b) / (c - a)
        W1, W2 = noise.increment(a, b, like), noise.increment(b, c, like)
        H1, H2 = noise.area(a, b, like), noise.area(b, c, like)
        close(noise.increment(a, c, like), W1 + W2)
        close(noise.area(a, c, like), p * H1 + q * H2 + (q * W1 - p * W2) / 2)
        for W, H, h in ((W1, H1, b - a), (W2, H2, c - b)):
            rows += [W.flatten() / h**0.5, H.flatten() / (h / 12) ** 0.5]
    rows = torch.stack(rows).numpy()
    assert min(stats.kstest(row, "norm").pvalue for row in rows) > FALSE_ALARMS / 2 / len(rows)
    independent(rows, FALSE_ALARMS / 2)
    assert torch.equal(noise.normal(like), sk.IndependentNoise(3).normal(like))
    assert noise.increment(0.0, 1.0, like.float()).dtype == torch.float32
    assert noise.on(TIME) is noise
    for a, b in ((-0.5, 1.0), (7.0, 8.5)):
        with pytest.raises(ValueError, match="reach a little further"):
            noise.increment(a, b, like)
    with pytest.raises(ValueError, match="shape"):
        noise.increment(0.0, 1.0, LIKE)
    with pytest.raises(ValueError, match="alone"):
        noise.on(FALLING)


def test_torchsde_motions_without_areas():
    tree = torchsde.BrownianTree(0.0, torch.zeros(3, 4, dtype=DOUBLE), 2.0, entropy=1)
    noise = sk.TorchsdeNoise(tree)
    close(noise.increment(0.5, 1.5, LIKE), tree(0.5, 1.5))
    with pytest.raises(ValueError, match="space-time"):
        noise.area(0.5, 1.5, LIKE)


# --- solves ---------------------------------------------------------------------------------------

PROBLEM = sk.EDM().reverse(lambda x, sigma: x / (1 + sigma**2), 1.0)


def solved(seeds, x, steps, **options):
    path = sk.BrownianPath(seeds, tuple(x.shape), **options)
    grid = sk.grids.log(steps, 20.0, 0.05)
    return sk.solve(PROBLEM, x, method="euler_maruyama", sigmas=grid, noise=path).x


def test_solves_with_any_steps_follow_one_path():
    """Strong order 1, between solves that share hardly a point."""
    x = 20 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    fine = solved(3, x, 256, resolution=1 / 32)
    errors = [float((solved(3, x, n, resolution=1 / 32) - fine).std()) for n in (7, 21, 63)]
    for coarse, finer in itertools.pairwise(errors):
        assert 2 < coarse / finer < 5
    assert float((solved(4, x, 63, resolution=1 / 32) - fine).std()) > 10 * errors[-1]


def test_solves_do_not_depend_on_the_batch():
    x = 20 * torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    together = solved([5, 6, 7, 8], x, 20)
    assert torch.equal(solved([7], x[2:3], 20), together[2:3])
    close(solved([5, 6, 7, 8], x.double(), 20), together.double(), 1e-4)
