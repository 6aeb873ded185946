"""``sdekit sample``: what it draws is what `sample_to` draws, and what it cannot do is one line."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from ranks import run_ranks
from typer.testing import CliRunner

import sdekit as sk
from sdekit.cli import app
from sdekit.cli_models import PROCESSES
from sdekit.output import write_png
from sdekit.parallel import load, sample_to

FACTORIES = """
import torch
import sdekit as sk

def law():
    return sk.Gaussian([0.5, -0.5], [[1.0, 0.3], [0.3, 0.2]])

def shapeless():
    return lambda x, sigma: x / (1 + sigma**2)

def broken():
    return lambda x, sigma: x / 0

def late():
    def denoiser(x, sigma):
        return x / (1 + sigma**2) / (1.0 if sigma < 10 else 0.0)
    denoiser.event_shape = (2,)
    return denoiser

def bare():
    return torch.nn.Linear(2, 2)

def fails():
    raise RuntimeError("no weights\\nanywhere")

def number():
    return 3

def takes(path):
    return path

value = 5
"""


@pytest.fixture(scope="module", autouse=True)
def factories(tmp_path_factory):
    """A module of factories in the working directory, as a user would have it."""
    folder = tmp_path_factory.mktemp("factories")
    (folder / "toy_models.py").write_text(FACTORIES)
    (folder / "toy_broken.py").write_text("import no_such_module\n")
    before, path = os.getcwd(), list(sys.path)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.path[:] = path
    sys.modules.pop("toy_models", None)


def invoke(*args):
    return CliRunner().invoke(app, ["sample", *map(str, args)])


def test_digits_are_what_the_library_draws(tmp_path):
    args = ("--model", "digits", "--steps", 4, "-n", 11, "--batch", 4, "--class-labels", "3,1,4")
    result = invoke(*args, "--seed", 5, "--out", tmp_path / "a", "--format", "npz")
    assert result.exit_code == 0, result.output
    assert "11 samples of shape (1, 8, 8), 4 network evaluations each" in result.stdout
    assert "bayesian_adams, digits, EDM" in result.stdout
    assert str(tmp_path / "a" / "samples.npz") in result.stdout
    labels = torch.tensor([3, 1, 4, 3, 1, 4, 3, 1, 4, 3, 1])
    net = sk.load_digits_denoiser()
    options = {"seed": 5, "micro_batch": 4, "steps": 4, "conditioning": {"class_labels": labels}}
    sample_to(tmp_path / "b", sk.EDM(), net, 11, (1, 8, 8), **options)
    assert torch.equal(load(tmp_path / "a"), load(tmp_path / "b"))
    with np.load(tmp_path / "a" / "samples.npz") as file:
        assert np.array_equal(file["samples"], load(tmp_path / "b").numpy())
        assert np.array_equal(file["class_labels"], labels.numpy())
    # Again, in another form: nothing is drawn, a damaged part alone.
    before = (tmp_path / "a" / "samples-000000.safetensors").stat().st_mtime_ns
    (tmp_path / "a" / "samples-000001.safetensors").write_bytes(b"")
    result = invoke(*args, "--seed", 5, "--out", tmp_path / "a", "--format", "png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a" / "samples-000000.safetensors").stat().st_mtime_ns == before
    assert torch.equal(load(tmp_path / "a"), load(tmp_path / "b"))
    assert imread(tmp_path / "a" / "samples.png").shape[:2] == (4 * 54 - 6, 3 * 54 - 6)
    result = invoke(*args, "--seed", 6, "--out", tmp_path / "a")
    assert result.exit_code == 2
    assert "seed is 5 there and 6 now" in result.stderr


@pytest.mark.parametrize(
    ("options", "said", "kept"),
    [
        (["--steps", "3"], "bayesian_adams", {"steps": 3}),
        (["--rtol", "0.05"], "variable_adams", {"rtol": 0.05}),
        (["--steps", "3", "--eta", "1"], "sea_w_theta", {"eta": 1.0}),
        (["--steps", "3", "--eta", "0.5"], "stochastic_adams2", {"eta": 0.5}),
        (["--steps", "3", "--method", "heun", "--process", "ve"], "heun", {"steps": 3}),
        (["--steps", "3", "--process", "flow", "--dtype", "float64"], "RectifiedFlow", {}),
        (["--steps", "3", "--process", "cosine", "--shape", "2"], "CosineVP", {}),
    ],
)
def test_methods_and_processes(options, said, kept, tmp_path):
    result = invoke("--model", "toy_models:law", *options, "-n", 6, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert said in result.stdout
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert kept.items() <= manifest["options"].items()
    x = load(tmp_path)
    assert x.dtype == (torch.float64 if "float64" in options else torch.float32)
    assert x.shape == (6, 2)
    name = options[options.index("--process") + 1] if "--process" in options else "edm"
    assert manifest["process"] == repr(PROCESSES[name]())


def test_weights_fill_the_network(tmp_path):
    """The same network with other weights draws other samples; those of the package, the same."""
    net = sk.load_digits_denoiser()
    torch.save(net.network.state_dict(), tmp_path / "same.pt")
    torch.save({k: 0.9 * v for k, v in net.network.state_dict().items()}, tmp_path / "other.pt")
    args = ("--model", "digits", "--steps", 2, "-n", 3, "--out")
    assert invoke(*args, tmp_path / "x").exit_code == 0
    for name, code in (("same", 0), ("other", 2)):
        result = invoke(*args, tmp_path / "x", "--weights", tmp_path / f"{name}.pt")
        assert result.exit_code == code
    assert "denoiser answers otherwise" in result.stderr
    torch.save({"a": torch.zeros(3)}, tmp_path / "wrong.pt")
    for name in ("wrong.pt", "missing.pt"):
        result = invoke(*args, tmp_path / "y", "--weights", tmp_path / name)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert "do not fit" in result.stderr


def test_a_pipeline_of_diffusers(tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    # diffusers imports torchvision wherever it is installed, also where it does not fit torch.
    monkeypatch.setattr(diffusers.utils.import_utils, "_torchvision_available", False)
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    args = ("--model", tmp_path / "pipeline", "--steps", 3, "-n", 2, "--out", tmp_path / "x")
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    assert "DiscreteVP(1000 levels)" in result.stdout
    denoiser = sk.from_diffusers(unet.eval(), diffusers.DDPMScheduler())
    options = {"seed": 0, "micro_batch": 64, "steps": 3, "method": "bayesian_adams"}
    sample_to(tmp_path / "y", denoiser.process, denoiser, 2, (1, 8, 8), **options)
    assert torch.equal(load(tmp_path / "x"), load(tmp_path / "y"))
    (tmp_path / "pipeline" / "scheduler" / "scheduler_config.json").write_text("{")
    result = invoke(*args)
    assert result.exit_code == 2
    assert "cannot read the pipeline" in result.stderr


def test_pictures(tmp_path):
    """Pixels are where they belong, from −1, black, to 1, white."""
    images = torch.linspace(-1, 1, 7)[:, None, None, None].expand(7, 3, 50, 50)
    write_png(images, tmp_path / "grid.png", columns=4)
    sheet = imread(tmp_path / "grid.png")[..., :3]
    assert sheet.shape == (101, 203, 3)
    for n in range(7):
        tile = sheet[51 * (n // 4) :, 51 * (n % 4) :][:50, :50]
        np.testing.assert_allclose(tile, n / 6, atol=1 / 255)
    assert (sheet[50] == 1).all()
    assert (sheet[51:, 153:] == 1).all()
    write_png(torch.randn(50, 2), tmp_path / "points.png")
    assert imread(tmp_path / "points.png").std() > 0.01
    with pytest.raises(ValueError, match="no picture"):
        write_png(torch.zeros(3, 2, 8, 8), tmp_path / "none.png")


GOOD = {"--model": "toy_models:law", "--steps": "3", "-n": "4"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--model": "resnet"}, "unknown model 'resnet'"),
        ({"--model": "no_such_module:make"}, "cannot import 'no_such_module'"),
        ({"--model": "toy_broken:make"}, "cannot import 'toy_broken'"),
        ({"--model": "toy_models:other"}, "has no 'other'"),
        ({"--model": "toy_models:value"}, "toy_models:value is not callable"),
        ({"--model": "toy_models:number"}, "returned int"),
        ({"--model": "toy_models:fails"}, "RuntimeError: no weights anywhere"),
        ({"--model": "toy_models:takes"}, "failed: TypeError"),
        ({"--model": ":"}, "cannot import ''"),
        ({"--model": "toy_models:shapeless"}, "give --shape"),
        ({"--model": "toy_models:bare", "--shape": "2"}, "does not take samples of shape (2,)"),
        ({"--model": "digits", "--shape": "1,9,9"}, "does not take samples of shape (1, 9, 9)"),
        ({"--model": "digits", "--class-labels": "99"}, "does not take samples"),
        ({"--shape": "3"}, "does not take samples of shape (3,)"),
        ({"--shape": "a"}, "--shape takes whole numbers"),
        ({"--shape": "0"}, "must be at least 1"),
        ({"--class-labels": "1,x"}, "--class-labels takes whole numbers"),
        ({"--class-labels": "1"}, "does not take samples"),
        ({"--process": "vpp"}, "unknown process 'vpp'; did you mean 'vp'?"),
        ({"--method": "heunn"}, "did you mean 'heun'"),
        ({"--method": "heun", "--eta": "1"}, "eta = 1.0"),
        ({"--method": "heun", "--rtol": "1e-3", "--steps": None}, "no error estimate"),
        ({"--format": "jpg"}, "unknown format 'jpg'"),
        ({"--format": "png", "--shape": "2,8,8"}, "no picture"),
        ({"--dtype": "float16"}, "unknown dtype 'float16'"),
        ({"--device": "gpu"}, "no device 'gpu' here"),
        ({"--steps": None}, "give one of --steps"),
        ({"--rtol": "1e-3"}, "give one of --steps"),
        ({"--rtol": "1e-12", "--steps": None}, "below what"),
        ({"--rtol": "nan", "--steps": None}, "below what"),
        ({"--steps": "0"}, "steps = 0"),
        ({"--eta": "-1"}, "eta"),
        ({"-n": "0"}, "n = 0"),
        ({"--batch": "-3"}, "micro_batch = -3"),
        ({"--seed": "-1"}, "seed = -1"),
        ({"--weights": "toy_models.py"}, "--weights needs"),
        ({"--process": "flow", "--eta": "1"}, "infinite drift"),
    ],
)
def test_bad_input_is_one_line_and_code_2(changed, message, tmp_path):
    args = [part for pair in {**GOOD, **changed}.items() if pair[1] is not None for part in pair]
    result = invoke(*args, "--out", tmp_path / "new")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("model", "message"), [("broken", "not finite"), ("late", "became non-finite in step")]
)
def test_a_network_that_fails_is_code_1(model, message, tmp_path):
    args = {**GOOD, "--model": f"toy_models:{model}", "--shape": "2"}
    result = invoke(*(part for pair in args.items() for part in pair), "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_an_output_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    result = invoke("--model", "toy_models:law", "--steps", 2, "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


TEXT = st.one_of(
    st.sampled_from(["", "0", "-1", "1", "3", "2.5", "nan", "1e-2", "heun", "digits", "png", "vp"]),
    st.sampled_from(
        ["toy_models:law", "toy_models:number", "1,2", ",", ":", "cpu", "float64", "."]
    ),
    st.text(max_size=8),
)
OPTIONS = [
    "--model",
    "--steps",
    "--rtol",
    "-n",
    "--method",
    "--eta",
    "--process",
    "--shape",
    "--seed",
]
OPTIONS += ["--class-labels", "--batch", "--device", "--dtype", "--format", "--weights", "--other"]


@settings(max_examples=150, deadline=None)
@given(changed=st.dictionaries(st.sampled_from(OPTIONS), TEXT, max_size=3), good=st.booleans())
def test_no_arguments_make_a_traceback(changed, good, tmp_path_factory):
    args = {**(GOOD if good else {}), "--out": tmp_path_factory.mktemp("fuzz") / "x", **changed}
    result = invoke(*(part for pair in args.items() for part in pair))
    assert result.exit_code in (0, 1, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output


def test_under_torchrun(tmp_path):
    """Two ranks by the one command of the README: the same files as by one, to the byte."""
    args = ["sample", "--model", "digits", "--class-labels", "0,1,2,3,4,5,6,7,8,9", "-n", "37"]
    args += ["--batch", "8", "--steps", "6", "--format", "png", "--out"]
    code, output, errors = run_ranks("-m", "sdekit", *args, tmp_path / "two")
    assert code == 0, errors[-3000:]
    assert output.count("37 samples of shape (1, 8, 8)") == 1
    assert "2 processes" in output
    one = CliRunner().invoke(app, [*args, str(tmp_path / "one")])
    assert one.exit_code == 0, one.output
    files = [sorted((tmp_path / name).iterdir()) for name in ("one", "two")]
    assert len(files[0]) == 7  # the manifest, five micro-batches, the picture
    for alone, shared in zip(*files, strict=True):
        assert alone.name == shared.name
        assert alone.read_bytes() == shared.read_bytes()
