"""Sampling by many processes: the same bits for any number of them, and nothing drawn twice."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks

import sdekit as sk
from sdekit import shards, suites_cli
from sdekit.bench.suites.tolerance import ToleranceConfig
from sdekit.parallel import Workers, load, sample_seeds, sample_to
from sdekit.workers import own_device

EDM = sk.EDM()
DIGITS = {"n": 37, "event_shape": (1, 8, 8), "seed": 3, "micro_batch": 8, "steps": 6}
LABELS = {"class_labels": lambda i: i % 10}
LAW = sk.Gaussian([0.5, -0.5], [[1.0, 0.3], [0.3, 0.2]])
POINTS = {"n": 10, "event_shape": (2,), "seed": 0, "micro_batch": 4, "steps": 3}


@pytest.fixture(scope="module")
def digits():
    return sk.load_digits_denoiser()


def same_files(one, other):
    return {p.name: p.read_bytes() for p in one.iterdir()} == {
        p.name: p.read_bytes() for p in other.iterdir()
    }


def units(folder):
    return {int(p.stem.split("-")[1]): p for p in Path(folder).glob("samples-*.safetensors")}


# ---- seeds ----


def test_seeds_are_the_documented_hash():
    def finalised(h):  # MurmurHash3's fmix32, in integers
        h = ((h ^ (h >> 16)) * 0x85EBCA6B) % 2**32
        h = ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32
        return h ^ (h >> 16)

    for seed in (0, 7, 2**80 + 1):
        a, b = map(int, np.random.SeedSequence(seed).generate_state(2))
        for index in (0, 1, 12345, 2**32 - 1):
            assert int(sample_seeds(seed, index)) == finalised(finalised(index ^ a) ^ b)
    assert finalised(1) == 0x514E28B7  # as in the reference implementation


def test_no_two_samples_share_a_seed():
    """Hashes of so many indices to 32 bits would meet about 5 times."""
    n = 200_000
    first, other = (sample_seeds(seed, np.arange(n)) for seed in (0, 1))
    assert len(np.unique(first)) == len(np.unique(other)) == n
    assert len(np.intersect1d(first, other)) < 40  # of 9 by chance
    assert abs(first.mean() / 2**31 - 1) < 0.01


@pytest.mark.parametrize("index", [-1, 2**32])
def test_indices_without_a_seed_are_refused(index):
    with pytest.raises(ValueError, match="2³²"):
        sample_seeds(0, [0, index])


# ---- the same bits for any number of processes ----


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "sea_w_theta"}, {"method": "variable_adams", "steps": None, "rtol": 0.05}],
    ids=["default", "sde", "adaptive"],
)
def test_any_number_of_processes_draws_the_same_bits(options, digits, tmp_path):
    asked = {**DIGITS, "conditioning": LABELS, **options}
    if "rtol" in options:
        asked["n"] = 20
    assert sample_to(tmp_path / "1", EDM, digits, **asked) == -(-asked["n"] // 8)
    expected = load(tmp_path / "1")
    for world in (2, 3, 8):
        folder = tmp_path / f"{world}"
        for rank in reversed(range(world)):
            sample_to(folder, EDM, digits, **asked, workers=Workers(rank, world))
        assert torch.equal(load(folder), expected)
        assert same_files(folder, tmp_path / "1")
    # Sample 8 … 15 are those of sample with their seeds and labels.
    own = {key: value for key, value in options.items() if value is not None}
    alone = sk.sample(
        EDM,
        sk.Conditioned(digits, class_labels=torch.arange(8, 16) % 10),
        (8, 1, 8, 8),
        seed=sample_seeds(3, np.arange(8, 16)).tolist(),
        **({"steps": 6} if "rtol" not in own else {}),
        **own,
    )
    assert torch.equal(expected[8:16], alone)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 30), batch=st.integers(1, 9), world=st.integers(1, 9), again=st.integers(1, 9)
)
def test_work_is_shared_without_gap_or_overlap(n, batch, world, again, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    asked = {**POINTS, "n": n, "micro_batch": batch, "conditioning": {"index": lambda i: i}}
    seen = Counter()

    def denoiser(x, sigma, index):
        seen.update(set(index.tolist()))
        return LAW(x, sigma)

    drawn = [
        sample_to(folder, EDM, denoiser, **asked, sigma_data=1.0, workers=Workers(rank, world))
        for rank in range(world)
    ]
    assert drawn == [len(range(rank, -(-n // batch), world)) for rank in range(world)]
    probes = Counter({i: world for i in range(min(n, batch))})  # one call of the first micro-batch
    assert seen == Counter(dict.fromkeys(range(n), 3)) + probes
    assert load(folder).shape == (n, 2)
    # A restart with another number of processes finds all done.
    for rank in range(again):
        more = {"sigma_data": 1.0, "workers": Workers(rank, again)}
        assert sample_to(folder, EDM, denoiser, **asked, **more) == 0


def test_samples_do_not_depend_on_how_many_there_are(tmp_path):
    """The last micro-batch is filled up; a sample's seed and batch are those of a longer request."""
    for n in (10, 27):
        sample_to(tmp_path / f"{n}", EDM, LAW, **{**POINTS, "n": n})
    few, many = load(tmp_path / "10"), load(tmp_path / "27")
    assert torch.equal(few, many[:10])
    assert len(torch.unique(many, dim=0)) == 27


def test_the_law_is_right(tmp_path):
    """Gaussian data at the true scale: the flow's law is exact but for the steps."""
    law = sk.Gaussian([0.5, -0.5], [[0.25, 0.0], [0.0, 0.25]])
    asked = {"n": 4000, "event_shape": (2,), "seed": 0, "micro_batch": 500, "steps": 4}
    sample_to(tmp_path / "law", EDM, law, **asked, sigma_data=0.5)
    x = load(tmp_path / "law").double()
    assert (x.mean(0) - law.moments()[0]).abs().max() < 4 * 0.5 / 4000**0.5
    assert (x.T.cov() - 0.25 * torch.eye(2)).abs().max() < 4 * 0.25 * (2 / 4000) ** 0.5


def test_the_scale_of_the_data_is_estimated_once(tmp_path):
    """Classes of other scales: an estimate of each micro-batch would be another one."""
    seen = []

    def denoiser(x, sigma, width):
        width = width[:, None] ** 2
        seen.append(len(x))
        return x * width / (width + sigma.reshape(-1, 1) ** 2)

    asked = {**POINTS, "conditioning": {"width": torch.linspace(0.3, 3.0, 10)}}
    sample_to(tmp_path / "1", EDM, denoiser, **asked)
    assert len(seen) == 1 + 1 + 3 * 3  # fingerprint, scale, and every step of each micro-batch
    known = json.loads((tmp_path / "1/manifest.json").read_text())
    assert known["sigma_data"] is None
    assert 0.2 < known["scale"] < 0.6
    units(tmp_path / "1")[2].unlink()
    seen.clear()
    sample_to(tmp_path / "1", EDM, denoiser, **asked, workers=Workers(2, 3))
    assert len(seen) == 1 + 3
    for rank in (2, 0, 1):
        sample_to(tmp_path / "3", EDM, denoiser, **asked, workers=Workers(rank, 3))
    given = sample_to(tmp_path / "given", EDM, denoiser, **asked, sigma_data=known["scale"])
    assert given == 3
    first, third, said = (load(tmp_path / name) for name in ("1", "3", "given"))
    assert torch.equal(first, third)
    assert torch.equal(first, said)


def test_one_thread_while_sampling(tmp_path):
    threads, before = set(), torch.get_num_threads()

    def denoiser(x, sigma):
        threads.add(torch.get_num_threads())
        return LAW(x, sigma)

    torch.set_num_threads(2)
    try:
        sample_to(tmp_path / "x", EDM, denoiser, **POINTS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads == {1}


def test_the_ranks_of_a_benchmark_share_its_problems(monkeypatch):
    config, seen = ToleranceConfig(problems=("mixture2d", "mixture16d", "digits")), []

    def run(part, progress):
        seen.append((part.problems, progress))

    monkeypatch.setattr(suites_cli, "torchrun", lambda: nullcontext(Workers(1, 2)))
    with pytest.raises(typer.Exit):  # the others do not report
        suites_cli._share(config, run)
    monkeypatch.setattr(suites_cli, "torchrun", lambda: nullcontext(Workers(0, 2)))
    suites_cli._share(config, run)
    assert seen == [(("mixture16d",), False), (("mixture2d", "digits"), True)]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_each_local_rank_has_a_device(count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert own_device("cuda") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "6")
    assert own_device("cuda") == torch.device("cuda", {0: 0, 1: 0, 4: 2}[count])
    assert own_device("cuda:1") == torch.device("cuda:1")
    assert own_device(None) == own_device("cpu") == torch.device("cpu")


# ---- killed and started again ----

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch, sdekit as sk
from sdekit.parallel import sample_to

here, net = Path(sys.argv[1]), sk.load_digits_denoiser()

def model(x, sigma, index):
    with open(here / "log", "a") as log:
        log.write(f"{os.getpid()} {int(index[0])} {float(sigma.flatten()[0])}\\n")
    if int(index[0]) == 24 and float(sigma.flatten()[0]) < 1 and not (here / "killed").exists():
        (here / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return net(x, sigma, class_labels=index % 10)

asked = dict(n=37, event_shape=(1, 8, 8), seed=3, micro_batch=8, steps=6)
asked["conditioning"] = {"index": lambda i: i}
sample_to(here / "flow", sk.EDM(), model, **asked, sigma_data=net.sigma_data)
asked["conditioning"] = {"class_labels": lambda i: i % 10}
sample_to(here / "sde", sk.EDM(), net, **asked, method="sea_w_theta")
if os.environ["RANK"] == "0":
    (here / "done").touch()
"""


def test_torchrun_with_a_rank_that_is_killed(digits, tmp_path):
    """Two ranks under torchrun, which starts them again: bit for bit what one process draws."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    code, _, errors = run_ranks("--max-restarts=1", script, tmp_path)
    assert code == 0, errors[-3000:]
    assert (tmp_path / "killed").exists()
    assert (tmp_path / "done").exists()
    asked = {**DIGITS, "conditioning": LABELS}
    sample_to(tmp_path / "flow alone", EDM, digits, **asked)
    sample_to(tmp_path / "sde alone", EDM, digits, **asked, method="sea_w_theta")
    assert torch.equal(load(tmp_path / "flow"), load(tmp_path / "flow alone"))
    assert torch.equal(load(tmp_path / "sde"), load(tmp_path / "sde alone"))
    assert not list(tmp_path.glob("*/.*"))

    calls = {}
    for line in (tmp_path / "log").read_text().splitlines():
        process, first, sigma = line.split()
        if float(sigma) != 1:  # where the denoiser is probed
            calls.setdefault(int(first), Counter())[process] += 1
    assert sorted(calls) == [0, 8, 16, 24, 32]
    assert sorted(calls[24].values())[-1] == 6
    assert len(calls[24]) == 2
    # What was finished was not drawn again: only what each of two processes had in hand.
    assert sum(len(by) > 1 for by in calls.values()) <= 2
    assert all(max(by.values()) == 6 for by in calls.values())
    assert len(calls[8]) == 1  # finished by the rank that was killed


@pytest.mark.parametrize("damage", ["removed", "cut", "noise", "of another request"])
def test_what_is_missing_or_damaged_is_drawn_again(damage, tmp_path):
    folder = tmp_path / "x"
    sample_to(folder, EDM, LAW, **POINTS)
    expected, files = load(folder), units(folder)
    broken = files[1]
    if damage == "removed":
        broken.unlink()
    elif damage == "cut":
        broken.write_bytes(broken.read_bytes()[:-5])
    elif damage == "noise":
        broken.write_bytes(b"\xff" * 200)
    else:
        sample_to(tmp_path / "y", EDM, LAW, **{**POINTS, "seed": 1})
        broken.write_bytes(units(tmp_path / "y")[1].read_bytes())
    kept = {k: files[k].stat().st_mtime_ns for k in (0, 2)}
    with pytest.raises(ValueError, match=r"lacks 1 of 3 micro-batches \(1\)"):
        load(folder)
    assert sample_to(folder, EDM, LAW, **POINTS) == 1
    assert torch.equal(load(folder), expected)
    assert {k: files[k].stat().st_mtime_ns for k in (0, 2)} == kept
    assert sample_to(folder, EDM, LAW, **POINTS) == 0


def test_killed_while_writing(tmp_path, monkeypatch):
    """A file appears whole or not at all; what is left of it is removed in the end."""

    def killed(source, target):
        raise KeyboardInterrupt

    folder = tmp_path / "x"
    sample_to(folder, EDM, LAW, **POINTS, workers=Workers(0, 3))
    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            sample_to(folder, EDM, LAW, **POINTS, workers=Workers(1, 3))
    assert list(units(folder)) == [0]
    assert len(list(folder.glob(".*.tmp"))) == 1
    assert sample_to(folder, EDM, LAW, **POINTS) == 2
    assert not list(folder.glob(".*"))
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_a_folder_without_its_manifest_is_drawn_anew_for_another_request(tmp_path):
    folder = tmp_path / "x"
    sample_to(folder, EDM, LAW, **POINTS)
    before = load(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no manifest"):
        load(folder)
    assert sample_to(folder, EDM, LAW, **{**POINTS, "seed": 1}) == 3
    assert not torch.equal(load(folder), before)


@pytest.mark.parametrize(
    ("process", "denoiser", "changed", "named"),
    [
        (EDM, LAW, {"seed": 1}, "seed is 0 there and 1 now"),
        (EDM, LAW, {"steps": 4}, r'"steps": 3.*"steps": 4'),
        (EDM, LAW, {"steps": None, "rtol": 1e-2}, "rtol"),
        (EDM, LAW, {"n": 12}, "samples is 10"),
        (EDM, LAW, {"micro_batch": 5}, "micro_batch"),
        (EDM, LAW, {"dtype": torch.float64}, "float64"),
        (EDM, LAW, {"method": "heun"}, "heun"),
        (EDM, LAW, {"method": sk.methods()["heun"].solver}, "RungeKutta"),
        (EDM, LAW, {"sigma_data": 0.5}, "sigma_data"),
        (EDM, LAW, {"sigmas": [9.0, 1.0], "steps": None}, "sigmas"),
        (sk.EDM(sigma_min=0.01), LAW, {}, "process"),
        (EDM, lambda x, s: 1.01 * LAW(x, s), {"sigma_data": LAW.sigma_data}, "answers otherwise"),
    ],
)
def test_another_request_is_refused(process, denoiser, changed, named, tmp_path):
    folder = tmp_path / "x"
    sample_to(folder, EDM, LAW, **POINTS)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=named) as refused:
        sample_to(folder, process, denoiser, **{**POINTS, **changed})
    assert "Take another folder" in str(refused.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == files


def test_other_conditioning_is_refused(digits, tmp_path):
    asked = {**DIGITS, "n": 9, "steps": 2}
    labels = torch.arange(9)
    sample_to(tmp_path / "x", EDM, digits, **asked, conditioning={"class_labels": labels})
    for other in (labels.roll(1), lambda i: 8 - i):
        with pytest.raises(ValueError, match="conditioning is"):
            sample_to(tmp_path / "x", EDM, digits, **asked, conditioning={"class_labels": other})


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_manifest_is_refused(content, tmp_path):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        sample_to(tmp_path, EDM, LAW, **POINTS)


def test_round_off_of_another_machine_is_no_other_network(tmp_path):
    folder = tmp_path / "x"
    sample_to(folder, EDM, LAW, **POINTS)
    units(folder)[1].unlink()
    near = {**POINTS, "sigma_data": LAW.sigma_data}
    assert sample_to(folder, EDM, lambda x, s: LAW(x, s) * (1 + 1e-6), **near) == 1
    assert load(folder).shape == (10, 2)


# ---- bad input ----


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"n": 0}, ValueError, "n = 0"),
        ({"n": 2.5}, TypeError, "n is a float"),
        ({"micro_batch": 0}, ValueError, "micro_batch = 0"),
        ({"event_shape": ()}, ValueError, r"\(B, \*event\)"),
        ({"event_shape": (0,)}, ValueError, "event_shape = 0"),
        ({"event_shape": (3,)}, ValueError, r"does not take samples of shape \(3,\)"),
        ({"dtype": torch.float16}, TypeError, "float16"),
        ({"seed": -1}, ValueError, "at least 0"),
        ({"seed": [1, 2]}, ValueError, "one whole number"),
        ({"seed": 0.5}, TypeError, "whole number"),
        ({"method": "hoin"}, ValueError, "unknown method 'hoin'"),
        ({"rtol": 1e-3}, TypeError, "give one of"),
        ({"steps": None}, TypeError, "give one of"),
        ({"eta": 0.5}, ValueError, "eta"),
        ({"stepz": 3}, TypeError, "stepz"),
        ({"sigma_data": -1.0}, ValueError, "sigma_data"),
        ({"conditioning": {"index": torch.zeros(9)}}, ValueError, "each of 10 samples"),
        ({"conditioning": {"index": lambda i: i[:1]}}, ValueError, "entry for each"),
        ({"conditioning": {"index": lambda i: 3}}, ValueError, "entry for each"),
        ({"conditioning": {"index": lambda i: i}}, ValueError, "does not take"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(changed, error, message, tmp_path):
    with pytest.raises(error, match=message):
        sample_to(tmp_path / "x", EDM, LAW, **{**POINTS, **changed})
    assert not (tmp_path / "x").exists()


def test_what_wrappers_know_of_samples_goes_with_them(tmp_path, digits):
    """Observations and labels of all samples, cut into micro-batches; others are refused."""
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    y = torch.linspace(-1, 1, 10)[:, None, None, None].expand(10, 1, 8, 8)
    asked = {"n": 10, "event_shape": (1, 8, 8), "seed": 0, "micro_batch": 4, "steps": 4}
    sample_to(tmp_path / "y", EDM, sk.Replaced(digits, mask, y), ending="denoise", **asked)
    torch.testing.assert_close(load(tmp_path / "y"), y)
    with pytest.raises(ValueError, match="another number of samples than the 10"):
        sample_to(tmp_path / "z", EDM, sk.Replaced(digits, mask, y[:4]), **asked)

    def guided(scale):
        return sk.ClassifierFree(
            digits,
            scale,
            conditional={"class_labels": torch.arange(10)},
            unconditional={"class_labels": torch.tensor(10)},
            interval=(2.0, 10.0),  # where the denoiser is not tried out
        )

    sample_to(tmp_path / "w", EDM, guided(2.0), **asked)
    sample_to(tmp_path / "v", EDM, digits, method="adams2", conditioning=LABELS, **asked)
    assert (load(tmp_path / "w") - load(tmp_path / "v")).abs().mean() < 0.5  # of the same classes
    with pytest.raises(ValueError, match="another request: wrappers"):
        sample_to(tmp_path / "w", EDM, guided(8.0), **asked)


def test_shards_of_another_denoiser_are_drawn_again(tmp_path):
    sample_to(tmp_path, EDM, LAW, **POINTS)
    (tmp_path / "manifest.json").unlink()
    other = sk.Gaussian([0.0, 0.0], [[1.0, 0.3], [0.3, 0.2]])
    assert sample_to(tmp_path, EDM, other, sigma_data=LAW.sigma_data, **POINTS) == 3


def test_files_of_others_stay(tmp_path):
    (tmp_path / ".precious.tmp").write_text("mine")
    (tmp_path / ".samples-000000.safetensors-x.tmp").write_text("of a killed process")
    sample_to(tmp_path, EDM, LAW, **POINTS)
    assert (tmp_path / ".precious.tmp").exists()
    assert not (tmp_path / ".samples-000000.safetensors-x.tmp").exists()


def test_functions_that_cannot_be_known_again_are_refused(tmp_path):
    def grid(n, high, low, process=None):
        return sk.grids.karras(n, high, low, process)

    solver = sk.Solver(sk.Adams(2), sk.Preconditioned(), grid)
    with pytest.raises(ValueError, match="cannot be known again"):
        sample_to(tmp_path / "x", EDM, LAW, **POINTS, method=solver)


def test_processes_and_models_that_do_not_fit(tmp_path):
    with pytest.raises(TypeError, match="affine"):
        sample_to(tmp_path / "x", LAW, LAW, **POINTS)
    batch = sk.Conditioned(lambda x, s, y: x, y=torch.zeros(4))
    with pytest.raises(ValueError, match="y of the denoiser is for another number of samples"):
        sample_to(tmp_path / "x", EDM, batch, **POINTS)
    with pytest.raises(TypeError, match="y is a int"):
        sample_to(tmp_path / "x", EDM, LAW, **POINTS, conditioning={"y": 3})
    with pytest.raises(sk.SolveError, match="not finite"):
        sample_to(tmp_path / "x", EDM, lambda x, s: x / 0, **POINTS)
    with pytest.raises(ValueError, match="returned shape"):
        sample_to(tmp_path / "x", EDM, lambda x, s: x[:, :1], **POINTS)
    assert not (tmp_path / "x").exists()
    for rank, world in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="rank < world"):
            Workers(rank, world)


def test_a_failure_says_where_and_keeps_what_was_drawn(tmp_path):
    asked = {**POINTS, "conditioning": {"index": lambda i: i}}
    broken = [True]

    def denoiser(x, sigma, index):
        return LAW(x, sigma) / (1.0 - (index[:, None] == 9) * float(sigma < 0.5) * broken[0])

    with pytest.raises(
        sk.SolveError, match="from sample 8 on: the state became non-finite in step"
    ):
        sample_to(tmp_path / "x", EDM, denoiser, **asked)
    assert sorted(units(tmp_path / "x")) == [0, 1]
    broken[0] = False
    assert sample_to(tmp_path / "x", EDM, denoiser, **asked) == 1
