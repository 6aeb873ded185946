"""sdekit inside diffusers and behind k-diffusion's interface, against their results and formulas."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from helpers import DOUBLE, normal

import sdekit as sk
from sdekit.interop import k_diffusion

diffusers = pytest.importorskip("diffusers")
# diffusers imports torchvision, for models that are not tested here, wherever it is installed; PyPI's
# build of it does not load beside a torch without CUDA.
diffusers.utils.import_utils._torchvision_available = False

from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: E402
from diffusers.models.modeling_utils import ModelMixin  # noqa: E402
from diffusers.models.unets.unet_2d import UNet2DOutput  # noqa: E402

from sdekit.interop.diffusers import SdekitScheduler  # noqa: E402

LAW = sk.Product.random(4, 2, seed=0)  # its flow is known exactly, and is not linear
PLAIN = {"clip_sample": False}


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return model.eval().requires_grad_(False)


class Exact(ModelMixin, ConfigMixin):
    """The exact denoiser of `LAW` as a network of a pipeline, of 2 × 2 pictures in float64."""

    @register_to_config
    def __init__(self, sample_size=2, in_channels=1, prediction_type="epsilon"):
        super().__init__()
        self.register_buffer("one", torch.ones((), dtype=DOUBLE))
        self.schedule = SdekitScheduler(prediction_type=prediction_type).schedule
        self.seen = []

    def forward(self, x, t, return_dict=True):
        self.seen.append(float(t))
        t = torch.as_tensor(t, dtype=DOUBLE)
        s, n = self.schedule.scales(t)
        flat = x.flatten(1)
        # At s = 0 nothing is left of the data.
        x0 = LAW.moments()[0].expand_as(flat) if s == 0 else LAW(flat / s, n / s)
        eps = (flat - s * x0) / n
        out = {
            "epsilon": eps,
            "sample": x0,
            "v_prediction": s * eps - n * x0,
            "flow_prediction": eps - x0,
        }[self.config.prediction_type]
        return UNet2DOutput(sample=out.view_as(x))


def raw(model, scheduler, x, *, generator=None, **options):
    """The loop of a pipeline, without its clamping."""
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(
            model(scaled, t).sample, t, x, generator=generator, return_dict=False, **options
        )[0]
    return x


def pipeline(cls, model, scheduler):
    pipe = cls(model, diffusers.DDIMScheduler(**PLAIN))
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ---- diffusers: parity ----


@pytest.mark.parametrize("clip", [False, True], ids=["plain", "clipped"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_is_that_of_diffusers(spacing, clip, unet):
    """In an unmodified pipeline, on its own timesteps, from the configuration of its scheduler."""
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, clip_sample=clip)
    options = {
        "batch_size": 2,
        "num_inference_steps": 10,
        "output_type": "pt",
        "use_clipped_model_output": clip,
    }
    expected = pipeline(diffusers.DDIMPipeline, unet, theirs)(generator=seeded(), **options).images
    ours = SdekitScheduler.from_config(theirs.config, method="ddim", spacing=spacing)
    result = pipeline(diffusers.DDIMPipeline, unet, ours)(generator=seeded(), **options).images
    assert (result - expected).abs().max() < 1e-5
    assert expected.std() > 0.2  # not all clamped
    assert ours.timesteps.dtype == torch.int64


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ("scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}),
        ("squaredcos_cap_v2", {}),
        ("linear", {"trained_betas": np.linspace(1e-4, 0.02, 500).tolist()}),
        ("linear", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ],
    ids=["scaled_linear", "cosine", "trained", "zero_snr"],
)
def test_schedules_are_those_of_diffusers(schedule, options):
    if "trained_betas" in options:
        options = options | {"num_train_timesteps": 500}
    theirs = diffusers.DDIMScheduler(beta_schedule=schedule, **options, **PLAIN)
    ours = SdekitScheduler.from_config(theirs.config, method="ddim", spacing="leading")
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    theirs.set_timesteps(20)
    ours.set_timesteps(20)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    model = Exact(prediction_type=options.get("prediction_type", "epsilon"))
    x = normal(3, 1, 2, 2)
    torch.testing.assert_close(raw(model, ours, x), raw(model, theirs, x), rtol=2e-5, atol=2e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # theirs
def test_dpm_solver_is_that_of_diffusers():
    """A multistep method, on rounded Karras levels; both end by a denoising step."""
    theirs = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, lower_order_final=False)
    theirs.set_timesteps(12)
    ours = SdekitScheduler.from_config(theirs.config, method="dpmpp_2m")
    ours.set_timesteps(timesteps=theirs.timesteps.tolist())
    # Their levels are not those of their whole timesteps: theirs are used with ours.
    theirs.sigmas = torch.tensor(ours._grid, dtype=torch.float32)
    model, x = Exact(), normal(3, 1, 2, 2)
    torch.testing.assert_close(raw(model, ours, x), raw(model, theirs, x), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("method", ["bayesian_adams", "heun_theta", "rk4_t"])
def test_all_predictions_solve_the_exact_flow(prediction, method):
    """The result is that of the process's flow, however the network is told and what it predicts."""
    if prediction == "flow_prediction" and method == "rk4_t":
        method = "flow_heun"
    scheduler = SdekitScheduler(prediction_type=prediction, method=method, ending="stop")
    scheduler.set_timesteps(60)
    model, x = Exact(prediction_type=prediction), normal(8, 1, 2, 2)
    result = raw(model, scheduler, x).flatten(1)
    process, grid = scheduler.schedule.process, scheduler._grid
    start, end = (process.on_host("scale", process.on_host("time", s)) for s in grid[[0, -1]])
    if start == 0:
        exact = LAW.flow(1e6 * x.flatten(1), 1e6, grid[-1])
    else:
        exact = LAW.flow(x.flatten(1) / float(start), grid[0], grid[-1])
    assert (result - float(end) * exact).abs().max() < 5e-3
    assert len(model.seen) == len(scheduler.timesteps) == 60 * scheduler.order
    assert min(model.seen) >= 0
    assert max(model.seen) <= 1000


METHODS = [
    "ddim",
    "bayesian_adams",
    "dpmpp_2m",
    "rk4",
    "heun_t",
    "dpmpp_singlestep_3",
    "ddim_eta",
    "ddpm",
    "euler_maruyama",
    "reverse_diffusion",
    "edm_sde",
    "restart",
    "sa_solver_3",
    "er_sde_2",
    "sea_w_theta",
    "shark",
]


@pytest.mark.parametrize("method", METHODS)
def test_the_scheduler_does_what_solve_does(method):
    """The noise, too, is that of the generator, drawn in the same order."""
    scheduler = SdekitScheduler(method=method, sigma_data=0.6)
    scheduler.set_timesteps(7)
    model, x = Exact(), normal(3, 1, 2, 2)
    result = raw(model, scheduler, x, generator=seeded(5), eta=0.0)

    def denoiser(x_hat, sigma):
        return LAW(x_hat.flatten(1), sigma).view_as(x_hat)

    process = scheduler.schedule.process
    flow = sk.methods()[method].solver.scheme.solves == "flow"
    solved = sk.solve(
        process.probability_flow(denoiser) if flow else process.reverse(denoiser),
        x,
        method=method,
        steps=7,
        ending="denoise",
        sigma_data=0.6,
        noise=sk.IndependentNoise(seeded(5)),
    )
    # Timesteps are float32 numbers.
    torch.testing.assert_close(result, solved.x, rtol=1e-5, atol=1e-5)
    # Noise before the first question costs a call that is not used.
    early = method in ("sea_w_theta", "shark")
    assert len(model.seen) == len(scheduler.timesteps) == solved.nfe + early


def test_it_is_the_denoiser_of_diffusers_models(unet):
    """A pipeline is `sample` with the network adapted by `from_diffusers`: also between timesteps."""
    scheduler = SdekitScheduler.from_config(diffusers.DDPMScheduler(**PLAIN).config)
    pipe = diffusers.DDPMPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(2, seeded(), 8, output_type="pt").images
    assert scheduler.timesteps.dtype == torch.float32
    network = sk.from_diffusers(unet, diffusers.DDPMScheduler(**PLAIN))
    process = scheduler.schedule.process
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    with torch.no_grad():
        solved = sk.solve(
            process.probability_flow(network), x, steps=8, ending="denoise", sigma_data=0.5
        )
    assert ((solved.x / 2 + 0.5).clamp(0, 1) - images).abs().max() < 1e-4
    assert images.std() > 0.2


# ---- diffusers: what it is for ----


def test_fewer_steps_for_the_same_error():
    """The default method makes a fifth of DDIM's error in 10 calls, a twentieth in 30."""
    model, x = Exact(), normal(64, 1, 2, 2)

    def error(scheduler, steps):
        scheduler.set_timesteps(steps)
        return float((raw(model, scheduler, x) - exact).square().mean().sqrt())

    fine = SdekitScheduler(method="adams4", spacing="log")
    fine.set_timesteps(400)
    exact = raw(model, fine, x)
    for steps, factor in ((10, 5), (30, 20)):
        ddim = min(
            error(diffusers.DDIMScheduler(timestep_spacing=s, **PLAIN), steps)
            for s in ("leading", "trailing")
        )
        assert error(SdekitScheduler(), steps) < ddim / factor


def test_image_to_image_begins_in_the_middle():
    """From a place in the timesteps, said or found, on the rest of the grid."""
    scheduler, model = SdekitScheduler(method="heun"), Exact()
    scheduler.set_timesteps(8)
    assert scheduler.order == 2
    begin = 3 * scheduler.order
    rest = scheduler.timesteps[begin:]
    x0, eps = normal(2, 1, 2, 2, seed=1), normal(2, 1, 2, 2, seed=2)
    x = scheduler.add_noise(x0, eps, rest[:1])
    level = scheduler._grid[3]
    torch.testing.assert_close(x, (x0 + level * eps) / (1 + level**2) ** 0.5, rtol=1e-6, atol=1e-6)

    def denoiser(x_hat, sigma):
        return LAW(x_hat.flatten(1), sigma).view_as(x_hat)

    flow = scheduler.schedule.process.probability_flow(denoiser)
    expected = sk.solve(flow, x, method="heun", sigmas=scheduler._grid[3:]).x
    for said in (True, False):
        scheduler.set_timesteps(8)
        if said:
            scheduler.set_begin_index(begin)
        result = x
        for t in scheduler.timesteps[begin:]:
            result = scheduler.step(model(result, t).sample, t, result).prev_sample
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_a_pipeline_may_change_the_sample_between_steps():
    """As inpainting does: a scheme without a corrector goes on from there."""
    model, x = Exact(), normal(2, 1, 2, 2)
    scheduler = SdekitScheduler(method="ddim", spacing="leading")
    theirs = diffusers.DDIMScheduler(**PLAIN)
    results = []
    for s in (scheduler, theirs):
        s.set_timesteps(10)
        state = x
        for t in s.timesteps:
            state = s.step(model(state, t).sample, t, state, return_dict=False)[0]
            state = torch.cat([state[:1], 0.9 * state[1:]])
        results.append(state)
    torch.testing.assert_close(*results, rtol=2e-5, atol=2e-5)
    # The same numbers in other memory are no change, for a corrector neither.
    default = SdekitScheduler()
    default.set_timesteps(6)
    expected = raw(model, default, x)
    default.set_timesteps(6)
    state = x
    for t in default.timesteps:
        state = default.step(model(state, t).sample, t, state, return_dict=False)[0].clone()
    assert torch.equal(state, expected)


def test_half_precision():
    """The state is float32 inside; what the network gets and what comes out is half."""
    x = normal(4, 1, 2, 2).half()
    scheduler, model = SdekitScheduler(), Exact()
    scheduler.set_timesteps(10)
    wide = raw(model, scheduler, x.double())
    scheduler.set_timesteps(10)
    for t in scheduler.timesteps:
        output = model(x.double(), t).sample.half()
        step = scheduler.step(output, t, x)
        x = step.prev_sample
        assert x.dtype == step.pred_original_sample.dtype == torch.float16
    assert (x.double() - wide).abs().max() < 0.02


def test_generators_one_for_each_sample():
    x, model = normal(2, 1, 2, 2), Exact()
    scheduler = SdekitScheduler(method="sde_dpmpp_2m")
    scheduler.set_timesteps(5)
    both = raw(model, scheduler, x, generator=[seeded(3), seeded(4)])
    for row, seed in enumerate((3, 4)):
        scheduler.set_timesteps(5)
        one = raw(model, scheduler, x[row : row + 1], generator=[seeded(seed)])
        torch.testing.assert_close(both[row : row + 1], one, rtol=1e-6, atol=1e-6)


def test_rounded_levels_are_those_of_training():
    scheduler = SdekitScheduler(rounded=True)
    scheduler.set_timesteps(40)
    assert scheduler.timesteps.dtype == torch.int64
    assert (scheduler.timesteps.diff() < 0).all()
    assert set(scheduler._grid[:-1]) <= set(scheduler.schedule.table)
    assert 30 < len(scheduler.timesteps) <= 40


def test_it_is_saved_and_loaded(tmp_path):
    scheduler = SdekitScheduler(method="unipc_bh2_2", beta_schedule="scaled_linear", sigma_data=1.0)
    scheduler.save_pretrained(tmp_path)
    loaded = SdekitScheduler.from_pretrained(tmp_path)
    said = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    assert {k: loaded.config[k] for k in said} == said
    back = diffusers.DDIMScheduler.from_config(loaded.config)
    assert back.config.beta_schedule == "scaled_linear"
    scheduler.set_timesteps(4)
    copied, model, x = copy.deepcopy(scheduler), Exact(), normal(2, 1, 2, 2)
    assert torch.equal(raw(model, copied, x), raw(model, scheduler, x))


def stepped(scheduler, x, times=None, steps=4, model=None):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps if times is None else times:
        output = x if model is None else model(x, t).sample
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: SdekitScheduler().step(x, 999, x), ValueError, "call set_timesteps first"),
        (
            lambda x: SdekitScheduler(prediction_type="noise"),
            ValueError,
            "must be one of 'epsilon'",
        ),
        (lambda x: SdekitScheduler(method="variable_adams"), ValueError, "chooses its own steps"),
        (lambda x: SdekitScheduler(method="pc"), ValueError, "in the midst of its steps"),
        (lambda x: SdekitScheduler(method="heum"), ValueError, "did you mean 'heun'"),
        (lambda x: SdekitScheduler(spacing="even"), ValueError, "or one of leading"),
        (lambda x: SdekitScheduler(ending="never"), ValueError, "ending = 'never'"),
        (lambda x: SdekitScheduler(thresholding=True), ValueError, "clip_sample=True is"),
        (lambda x: SdekitScheduler().set_timesteps(), TypeError, "either num_inference_steps or"),
        (lambda x: SdekitScheduler().set_timesteps(0), ValueError, "num_inference_steps = 0"),
        (
            lambda x: SdekitScheduler(spacing="leading").set_timesteps(2000),
            ValueError,
            "only 1000 timesteps",
        ),
        (
            lambda x: SdekitScheduler().set_timesteps(timesteps=[10, 500]),
            ValueError,
            "decrease strictly",
        ),
        (
            lambda x: SdekitScheduler().set_timesteps(timesteps=[1200, 500]),
            ValueError,
            r"lie in \[0, 999\]",
        ),
        (lambda x: stepped(SdekitScheduler(), x, [999, 300]), ValueError, "it is the turn of"),
        (lambda x: stepped(SdekitScheduler(), x, [555.5]), ValueError, "it is the turn of"),
        (
            lambda x: stepped(SdekitScheduler(method="rk4"), x, place("rk4", 1)),
            ValueError,
            "inside of a step",
        ),
        (
            lambda x: stepped(SdekitScheduler(method="sea"), x, place("sea", 2)),
            ValueError,
            "inside of a step",
        ),
    ],
)
def test_misuse_of_the_scheduler(call, error, message):
    with pytest.raises(error, match=message):
        call(normal(2, 1, 2, 2))


def place(method, index):
    scheduler = SdekitScheduler(method=method)
    scheduler.set_timesteps(4)
    return [float(scheduler.timesteps[index])]


def test_misuse_of_a_step():
    scheduler, x = SdekitScheduler(), normal(2, 1, 2, 2)
    scheduler.set_timesteps(3)
    first = scheduler.timesteps[0]
    with pytest.raises(ValueError, match="pass the first half of the channels"):
        scheduler.step(torch.cat([x, x], 1), first, x)
    with pytest.raises(ValueError, match="take a method of the reverse SDE"):
        scheduler.step(x, first, x, eta=1.0)
    following = scheduler.step(x, first, x).prev_sample
    following = scheduler.step(x, scheduler.timesteps[1], following).prev_sample
    with pytest.raises(ValueError, match="it is the turn of"):
        scheduler.step(x, scheduler.timesteps[1], following)  # once more, by its place
    last = scheduler.timesteps[2]
    scheduler.step(x, last, following)
    with pytest.raises(ValueError, match="all timesteps are done"):
        scheduler.step(x, last, following)
    heun = SdekitScheduler(method="heun")
    heun.set_timesteps(3)
    stage = heun.step(x, heun.timesteps[0], x).prev_sample
    with pytest.raises(ValueError, match="changed inside of a step"):
        heun.step(x, heun.timesteps[1], 2 * stage)
    corrected = SdekitScheduler()
    corrected.set_timesteps(3)
    state = corrected.step(x, corrected.timesteps[0], x).prev_sample
    with pytest.raises(ValueError, match="corrects its last step"):
        corrected.step(x, corrected.timesteps[1], 2 * state)


def test_eta_in_a_step():
    """Pipelines say 0 for "nothing said"; another value is that of the reverse SDE."""
    x, model = normal(2, 1, 2, 2), Exact()
    said, configured = (
        SdekitScheduler(method="ddim_eta"),
        SdekitScheduler(method="ddim_eta", eta=0.5),
    )
    for scheduler in (said, configured):
        scheduler.set_timesteps(5)
    a = raw(model, said, x, generator=seeded(), eta=0.5)
    b = raw(model, configured, x, generator=seeded(), eta=0.0)
    assert torch.equal(a, b)
    stages = SdekitScheduler(method="shark")
    stages.set_timesteps(3)
    t = stages.timesteps[0]
    assert torch.isfinite(stages.step(x, t, x).prev_sample).all()


# ---- k-diffusion ----


def k_euler(model, x, sigmas):
    """Karras et al. 2022, algorithm 1 without the correction."""
    for high, low in itertools.pairwise(sigmas):
        x = x + (low - high) * (x - model(x, high)) / high
    return x


def k_heun(model, x, sigmas):
    """Karras et al. 2022, algorithm 1."""
    for high, low in itertools.pairwise(sigmas):
        slope = (x - model(x, high)) / high
        end = x + (low - high) * slope
        if low > 0:
            end = x + (low - high) * (slope + (end - model(end, low)) / low) / 2
        x = end
    return x


def k_dpmpp_2m(model, x, sigmas):
    """Lu et al. 2022b, algorithm 2; a step to 0 is of first order."""
    before, h_before = None, None
    for high, low in itertools.pairwise(sigmas):
        now = model(x, high)
        used, h = now, None
        if low > 0:
            h = torch.log(high / low)
            if before is not None:
                used = now + (now - before) * h / (2 * h_before)
        x = low / high * x + (1 - low / high) * used
        before, h_before = now, h
    return x


@pytest.mark.parametrize("to_zero", [True, False], ids=["to 0", "above"])
@pytest.mark.parametrize(
    ("name", "formula"), [("euler", k_euler), ("heun", k_heun), ("dpmpp_2m", k_dpmpp_2m)]
)
def test_k_diffusion_formulas(name, formula, to_zero):
    sigmas = torch.tensor(sk.grids.karras(12, 80.0, 0.02), dtype=DOUBLE)
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]) if to_zero else sigmas
    x = 80 * normal(16, 4)

    def model(x, sigma, *, scale):
        assert sigma.shape == (16,)
        return scale * LAW(x, sigma)

    expected = formula(lambda x, sigma: LAW(x, sigma.expand(16)), x, sigmas)
    result = k_diffusion.sampler(name)(model, x, sigmas, extra_args={"scale": 1.0}, disable=True)
    assert (result - expected).abs().max() < 1e-10


def test_k_diffusion_converges_to_the_exact_flow():
    gaussian = sk.Gaussian(torch.zeros(3), torch.diag(torch.tensor([1.0, 0.3, 0.05])))
    x = gaussian.sample(32, sigma=40.0, seed=0)
    sigmas = torch.tensor(sk.grids.log(150, 40.0, 0.02))
    for name in ("bayesian_adams", "lms4", "rk4", "dpmpp_3m"):
        result = k_diffusion.sampler(name)(gaussian, x, sigmas, disable=True)
        assert (result - gaussian.flow(x, 40.0, 0.02)).abs().max() < 1e-3, name


def test_k_diffusion_callback_and_progress(capsys):
    sigmas, x, seen = torch.tensor([8.0, 3.0, 1.0, 0.0], dtype=DOUBLE), 8 * normal(4, 4), []
    calls = []

    def model(x, sigma):
        calls.append((x.clone(), sigma))
        return LAW(x, sigma)

    k_diffusion.sampler("lms2")(model, x, sigmas, callback=seen.append, disable=False)
    assert [row["i"] for row in seen] == [0, 1, 2]
    for row, (state, sigma) in zip(seen, calls, strict=True):
        assert set(row) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        torch.testing.assert_close(row["x"], state, rtol=1e-14, atol=0)
        assert row["sigma"] == row["sigma_hat"] == sigma[0]
        torch.testing.assert_close(row["denoised"], LAW(state, sigma), rtol=1e-12, atol=1e-12)
    # Churn asks at a raised level.
    seen.clear()
    k_diffusion.sampler("edm_sde")(model, x, sigmas, callback=seen.append, seed=0, disable=True)
    raised = min(40 / 3, 2**0.5 - 1)
    for row in seen:
        torch.testing.assert_close(row["sigma_hat"], (1 + raised) * row["sigma"])
    assert capsys.readouterr().err == ""  # bars come after two seconds only


def test_k_diffusion_noise_dtype_and_scale():
    sigmas, x = torch.tensor([8.0, 3.0, 1.0, 0.0]), 8 * normal(4, 4)
    sde = k_diffusion.sampler("sde_dpmpp_2m")
    a, b, c = (sde(LAW, x, sigmas, seed=seed, disable=True) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    path = sk.BrownianPath(0, x.shape)
    assert torch.equal(*(sde(LAW, x, sigmas, noise=path, disable=True) for _ in range(2)))

    class Wrapped:
        """As the wrappers of user interfaces."""

        def __init__(self):
            self.inner_model, self.dtypes, self.grads = LAW, [], []

        def __call__(self, x, sigma):
            self.dtypes.append((x.dtype, sigma.dtype))
            self.grads.append(torch.is_grad_enabled())
            return LAW(x.double(), sigma.double()).to(x.dtype)

    model = Wrapped()
    sample = k_diffusion.sampler("bayesian_adams")
    half = sample(model, x.half(), sigmas.half(), disable=True)
    assert half.dtype == torch.float16
    assert set(model.dtypes) == {(torch.float16, torch.float16)}
    assert not any(model.grads)
    assert len(model.dtypes) == 3  # the scale is read from what is wrapped, no call is spent on it
    wide = sample(LAW, x.half().double(), sigmas.double(), disable=True)
    assert (half.double() - wide).abs().max() < 0.01


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0, 2.0, 0.0], "strictly decreasing"),
        ([2.0, 1.0, 1.0, 0.0], "found 1 followed by 1 at position 1"),
        ([2.0, 1.0, -0.5], "every value must be"),
        ([2.0], "at least two"),
    ],
)
def test_k_diffusion_misuse(sigmas, message):
    for name in ("lms2", "sde_dpmpp_2m"):
        with pytest.raises(ValueError, match=message):
            k_diffusion.sampler(name)(LAW, normal(4, 4), torch.tensor(sigmas), disable=True)


def test_k_diffusion_names():
    names = k_diffusion.names()
    assert {"euler", "heun", "dpmpp_2m", "bayesian_adams", "pc", "edm_sde"} <= set(names)
    assert "variable_adams" not in names
    sigmas, x = torch.tensor([8.0, 3.0, 1.0, 0.4, 0.0], dtype=DOUBLE), 8 * normal(64, 4)
    for name in names:
        result = k_diffusion.sampler(name)(LAW, x, sigmas, seed=0, disable=True)
        assert 0.2 < result.std() < 3, name
    with pytest.raises(ValueError, match="chooses its own steps"):
        k_diffusion.sampler("variable_adams")
    with pytest.raises(ValueError, match="did you mean"):
        k_diffusion.sampler("dpmp_2m")


# ---- diffusers: what a configuration says ----


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
)
def test_flow_matching_is_taken_over(name, loaded, tmp_path):
    """Its configuration says no prediction; a shift moves their grid, not what the model is."""
    scheduler = getattr(diffusers, name)(shift=3.0)
    options = {"method": "bayesian_adams", "ending": "stop"}
    if loaded:
        scheduler.save_pretrained(tmp_path)
        ours = SdekitScheduler.from_pretrained(tmp_path, **options)
    else:
        ours = SdekitScheduler.from_config(scheduler.config, **options)
    again = SdekitScheduler.from_config(ours.config)
    assert again.config.prediction_type == ours.config.prediction_type == "flow_prediction"
    ours.set_timesteps(60)
    x = normal(8, 1, 2, 2)
    result = raw(Exact(prediction_type="flow_prediction"), ours, x).flatten(1)
    low = ours._grid[-1]
    exact = LAW.flow(1e6 * x.flatten(1), 1e6, low) / (1 + low)  # s = 1/(1 + σ)
    assert (result - exact).abs().max() < 5e-3


@pytest.mark.parametrize("name", ["DDIMScheduler", "LCMScheduler", "TCDScheduler"])
def test_defaults_of_another_class_are_taken_over(name):
    theirs = getattr(diffusers, name)()
    ours = SdekitScheduler.from_config(theirs.config)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert ours.config.clip_sample == theirs.config.clip_sample


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("EDMEulerScheduler", {}, "no beta_schedule"),
        ("EDMDPMSolverMultistepScheduler", {}, "no beta_schedule"),
        ("ScoreSdeVeScheduler", {}, "no beta_schedule"),
        ("IPNDMScheduler", {}, "no beta_schedule"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas = True"),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction"},
            "timestep_type = 'continuous'",
        ),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas = True"),
        ("CogVideoXDDIMScheduler", {}, r"snr_shift_scale = 3\.0"),
    ],
)
def test_other_configurations_are_refused(name, options, message):
    config = getattr(diffusers, name)(**options).config
    with pytest.raises(ValueError, match=f"{message}.*sdekit.from_diffusers"):
        SdekitScheduler.from_config(config)
    if "no beta" in message:  # who says the schedule means it
        said = SdekitScheduler.from_config(config, beta_schedule="linear")
        assert said.config.beta_schedule == "linear"
    with pytest.raises(TypeError, match="from_pretrained for a path"):
        SdekitScheduler.from_config("a/path")
