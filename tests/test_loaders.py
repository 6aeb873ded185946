"""Networks as other packages hold them, against what these make of them; and files of weights."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from helpers import DOUBLE, normal
from safetensors.torch import save_file
from torch import nn

import sdekit as sk
from sdekit.adapters import of_diffusers
from sdekit.denoisers import known_sigma_data, trained_range

diffusers = pytest.importorskip("diffusers")
azula_denoise = pytest.importorskip("azula.denoise")
azula_noise = pytest.importorskip("azula.noise")

# Some schedulers of diffusers make arrays in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

# diffusers imports torchvision, for models that are not tested here, wherever it is installed; PyPI's
# build of it does not load beside a torch without CUDA.
diffusers.utils.import_utils._torchvision_available = False


def unet(**options):
    """A small UNet with random weights, whose last layer is not zero."""
    torch.manual_seed(0)
    options = {"in_channels": 2, "out_channels": 2, "sample_size": 8} | options
    model = diffusers.UNet2DModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        **options,
    )
    return model.double().eval().requires_grad_(False)


UNET = unet()


def in_double(scheduler):
    """The scheduler with its own levels in float64, so that what is compared is not round-off."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


def unscaled(alpha_cumprod):
    """A state at each of some levels: as the model sees it, and as the denoiser does."""
    alpha = alpha_cumprod.sqrt().view(-1, 1, 1, 1)
    sigma = ((1 - alpha_cumprod) / alpha_cumprod).sqrt()
    x = normal(len(alpha), 2, 8, 8)
    return x, x / alpha, sigma


# ---------------------------------------------------------------- diffusers


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {"clip_sample": False}),
        ("DDPMScheduler", {"clip_sample": False, "beta_schedule": "squaredcos_cap_v2"}),
        ("DDIMScheduler", {"clip_sample": False, "beta_schedule": "scaled_linear"}),
        ("DDIMScheduler", {"clip_sample": False, "rescale_betas_zero_snr": True}),
        ("DDPMScheduler", {"clip_sample": False, "trained_betas": np.linspace(0.01, 0.3, 30)}),
    ],
)
def test_a_discrete_model_estimates_what_its_scheduler_does(name, options, prediction):
    steps = len(options.get("trained_betas", range(1000)))
    scheduler = getattr(diffusers, name)(
        num_train_timesteps=steps, prediction_type=prediction, **options
    )
    in_double(scheduler).set_timesteps(steps)
    denoiser = sk.from_diffusers(UNET, scheduler)
    at = torch.tensor([0, 1, steps // 2, steps - 5, steps - 2])
    x, x_hat, sigma = unscaled(scheduler.alphas_cumprod[at])
    found = denoiser(x_hat, sigma)
    for row, t in enumerate(at):
        one = x[row : row + 1]
        output = UNET(one, t).sample
        expected = scheduler.step(output, int(t), one).pred_original_sample
        size = 1 + expected.abs().max()
        assert (found[row] - expected[0]).abs().max() < 1e-5 * size
        assert (
            denoiser(x_hat[row : row + 1], float(sigma[row])) - expected
        ).abs().max() < 1e-5 * size
    low, high = (
        scheduler.alphas_cumprod[0],
        scheduler.alphas_cumprod[-2 if "rescale_betas_zero_snr" in options else -1],
    )
    expected_range = [float(((1 - a) / a).sqrt()) for a in (high, low)]
    assert trained_range(denoiser) == pytest.approx(expected_range)


@pytest.mark.parametrize("name", sorted(of_diffusers._DDPM))
def test_schedulers_that_differ_in_sampling_give_the_same_denoiser(name):
    options = {"trained_betas": np.linspace(1e-3, 0.2, 100).tolist(), "num_train_timesteps": 100}
    x = normal(3, 2, 8, 8)
    for prediction in ("epsilon", "v_prediction"):
        reference, other = (
            sk.from_diffusers(UNET, getattr(diffusers, n)(prediction_type=prediction, **options))
            for n in ("DDIMScheduler", name)
        )
        assert torch.equal(reference(x, 0.8), other(x, 0.8))


def test_euler_of_diffusers_takes_the_step_of_the_flow():
    # An Euler step of the flow in (x̂, σ) is x̂ + (σ' − σ)(x̂ − D)/σ, whatever predicts D.
    scheduler = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        use_karras_sigmas=True,
    )
    scheduler.set_timesteps(5)
    denoiser = sk.from_diffusers(UNET, scheduler)
    assert trained_range(denoiser) == (700.0, 0.002)
    for n, t in enumerate(scheduler.timesteps):
        x_hat = float(scheduler.sigmas[n]) * normal(1, 2, 8, 8)
        output = UNET(scheduler.scale_model_input(x_hat, t), t.double()).sample
        expected = scheduler.step(output, t, x_hat).pred_original_sample
        found = denoiser(x_hat, float(scheduler.sigmas[n]))
        assert (found - expected).abs().max() < 1e-5 * (1 + expected.abs().max())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_model_steps_as_its_scheduler_does(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(6)
    denoiser = sk.from_diffusers(UNET, scheduler)
    times = scheduler.sigmas.double().numpy()[:-1]  # what it calls sigma is t; the last is 0
    x = start = normal(2, 2, 8, 8)
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(UNET(x, t.double()).sample, t, x).prev_sample.double()
    flow = sk.RectifiedFlow().probability_flow(denoiser)
    found = sk.solve(flow, start, method="euler_t", times=times).x
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)
    multistep = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    again = sk.from_diffusers(UNET, multistep)
    assert torch.equal(again(start, 0.7), denoiser(start, 0.7))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_edm_model_estimates_what_its_scheduler_does(prediction):
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction, sigma_data=0.6)
    scheduler.set_timesteps(5)
    denoiser = sk.from_diffusers(UNET, scheduler)
    assert known_sigma_data(denoiser) == 0.6
    for n, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[n].double()
        x_hat = sigma * normal(1, 2, 8, 8)
        output = UNET(scheduler.precondition_inputs(x_hat, sigma), t.double()).sample
        expected = scheduler.precondition_outputs(x_hat, output, sigma)
        assert (denoiser(x_hat, sigma) - expected).abs().max() < 1e-5 * (1 + expected.abs().max())


def test_a_variance_exploding_model_is_a_score():
    model = unet(time_embedding_type="fourier")
    denoiser = sk.from_diffusers(model, diffusers.ScoreSdeVeScheduler())
    sigma = torch.tensor([0.02, 3.0, 500.0], dtype=DOUBLE)
    x = sigma.view(-1, 1, 1, 1) * normal(3, 2, 8, 8)
    expected = x + sigma.view(-1, 1, 1, 1) ** 2 * model(x, sigma).sample
    torch.testing.assert_close(denoiser(x, sigma), expected, rtol=1e-5, atol=1e-5)
    assert trained_range(denoiser) == (pytest.approx(1348.0), pytest.approx(0.01))


def test_conditioning_and_learned_variance_of_diffusers():
    torch.manual_seed(0)
    text = (
        diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=2,
            out_channels=2,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=6,
            attention_head_dim=4,
        )
        .double()
        .requires_grad_(False)
    )
    scheduler = in_double(diffusers.DDIMScheduler())
    x, x_hat, sigma = unscaled(scheduler.alphas_cumprod[[400, 900]])
    prompts = normal(2, 5, 6, seed=3)
    noise = text(x, torch.tensor([400, 900]), encoder_hidden_states=prompts).sample
    found = sk.from_diffusers(text, scheduler)(x_hat, sigma, encoder_hidden_states=prompts)
    torch.testing.assert_close(found, x_hat - sigma.view(-1, 1, 1, 1) * noise, rtol=1e-5, atol=1e-5)
    # Class labels, and twice the channels.
    double = unet(out_channels=4, num_class_embeds=3)
    labels = torch.tensor([0, 2])
    noise = double(x, torch.tensor([400, 900]), labels).sample[:, :2]
    found = sk.from_diffusers(double, scheduler, index="nearest")(x_hat, sigma, class_labels=labels)
    torch.testing.assert_close(found, x_hat - sigma.view(-1, 1, 1, 1) * noise, rtol=1e-5, atol=1e-5)


def test_a_model_of_diffusers_is_sampled_end_to_end():
    # DDIM on the model's own timesteps is one solver of sdekit among others.
    scheduler = in_double(diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False))
    scheduler.set_timesteps(20)
    x = start = normal(2, 2, 8, 8)
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(UNET(x, t).sample, t, x).prev_sample
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    process = sk.DiscreteVP(scheduler.alphas_cumprod)
    flow = process.probability_flow(sk.from_diffusers(UNET, scheduler, index="exact"))
    found = sk.solve(flow, start, method="ddim", sigmas=sigmas[scheduler.timesteps]).x
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5 * float(x.abs().max()))


# ---------------------------------------------------------------- azula


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=DOUBLE))

    def forward(self, x, t, shift=0.0):
        return torch.tanh(x @ self.weight + t.reshape(-1, 1)) + shift


@pytest.mark.parametrize("schedule", ["VE", "VP", "Cosine", "Rectified", "Decay"])
@pytest.mark.parametrize("kind", ["Karras", "Simple"])
def test_denoisers_of_azula_at_their_own_times(schedule, kind):
    schedule = getattr(azula_noise, f"{schedule}Schedule")()
    theirs = getattr(azula_denoise, f"{kind}Denoiser")(Backbone(), schedule).requires_grad_(False)
    ours = sk.from_azula(theirs, sigma_data=1.0)
    t = torch.tensor([0.01, 0.3, 0.6, 0.99], dtype=DOUBLE)
    alpha, std = schedule(t)
    x = (alpha**2 + std**2).sqrt()[:, None] * normal(4, 3)
    expected = theirs(x, t, shift=0.3).mean
    found = ours(x / alpha[:, None], std / alpha, shift=0.3)
    assert (found - expected).abs().max() < 1e-9 * (1 + expected.abs().max())
    high, low = trained_range(pickle.loads(pickle.dumps(ours)))
    assert (high, low) == pytest.approx(
        [float(s / a) for a, s in map(schedule, torch.tensor([1.0, 0.0], dtype=DOUBLE))]
    )


def test_a_solve_with_a_denoiser_of_azula_is_that_of_its_sampler():
    from azula.sample import DDIMSampler

    schedule = azula_noise.VPSchedule()
    theirs = azula_denoise.KarrasDenoiser(Backbone(), schedule).requires_grad_(False)
    sampler = DDIMSampler(theirs, steps=12, silent=True)
    start = normal(4, 3)
    ours = sk.from_azula(theirs)
    process = ours.process
    levels = process.sigma(torch.linspace(1, 0, 13, dtype=DOUBLE)).numpy()
    alpha = process.scale(torch.ones((), dtype=DOUBLE))
    # In EDM's process, whose states are x̂ = x/α.
    found = sk.solve(
        sk.EDM(1e-4, 2e3).probability_flow(ours), start / alpha, method="ddim", sigmas=levels
    ).x
    end = sampler(start) / process.scale(torch.zeros((), dtype=DOUBLE))
    torch.testing.assert_close(found, end, rtol=0, atol=1e-6)


def test_a_compiled_or_parallel_model_is_looked_into():
    scheduler = diffusers.DDPMScheduler()
    model = UNET
    expected = sk.from_diffusers(model, scheduler)(normal(2, 2, 8, 8), 1.0)
    hidden = [torch.compile(model, backend="eager"), nn.DataParallel(model)]
    for outer in (*hidden, torch.compile(nn.DataParallel(model), backend="eager")):
        denoiser = sk.from_diffusers(outer, scheduler)
        assert denoiser.network.model is outer
        if outer is not hidden[0]:
            continue
        torch.testing.assert_close(denoiser(normal(2, 2, 8, 8), 1.0), expected)

    class ModelMixin(nn.Module):
        """By its name a model of diffusers, of a class that is not known."""

    for unknown in (torch.compile(ModelMixin(), backend="eager"), nn.DataParallel(ModelMixin())):
        with pytest.raises(TypeError, match="ModelMixin is not one of the models known"):
            sk.from_diffusers(unknown, scheduler)
    learned = unet(out_channels=4)
    assert sk.from_diffusers(nn.DataParallel(learned), scheduler).learned_variance


# ---------------------------------------------------------------- EDM, k-diffusion, score_sde


class EDMLike(nn.Module):
    """Preconditioning as EDM's modules have it, in float32 inside."""

    def __init__(self):
        super().__init__()
        self.sigma_min, self.sigma_max, self.sigma_data = 0.0, float("inf"), 0.5
        self.inner = nn.Linear(3, 3)

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        assert x.dtype == torch.float32
        sigma = sigma.to(torch.float32).reshape(-1, 1)
        h = (sigma**2 + self.sigma_data**2).sqrt()
        label = 0 if class_labels is None else class_labels.sum(1, keepdim=True)
        raw = self.inner((x / h).to(self.inner.weight.dtype)) + sigma.log() / 4 + label
        return self.sigma_data**2 / h**2 * x + sigma * self.sigma_data / h * raw

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


def test_modules_of_edm():
    network = EDMLike().requires_grad_(False)
    denoiser = sk.from_edm(network)
    assert trained_range(denoiser) == (np.inf, 0.0)
    assert known_sigma_data(denoiser) == 0.5
    x, sigma = normal(4, 3), torch.tensor([0.01, 1.0, 5.0, 70.0], dtype=DOUBLE)
    labels = torch.eye(4)
    expected = network(x.float(), sigma, class_labels=labels)
    found = denoiser(x, sigma, class_labels=labels)
    assert found.dtype == DOUBLE
    assert torch.equal(found, expected.double())
    half = sk.from_edm(
        EDMLike().requires_grad_(False).to(torch.bfloat16)
    )  # its input stays float32
    assert torch.equal(half(x, sigma), half.network(x.float(), sigma).double())
    drawn = sk.sample(
        sk.EDM(), denoiser, (4, 3), steps=8, seed=0
    )  # the range is that of the process
    assert drawn.isfinite().all()
    with pytest.raises(TypeError, match="no round_sigma"):
        sk.from_edm(nn.Linear(3, 3))


def test_wrappers_of_k_diffusion():
    class Discrete:
        """As ``DiscreteEpsDDPMDenoiser`` is called."""

        def __init__(self):
            self.sigmas = torch.linspace(0.1, 5.0, 50)

        def __call__(self, x, sigma, extra=0.0):
            assert sigma.shape == x.shape[:1]
            return x / (1 + sigma[:, None] ** 2) + extra

    denoiser = sk.from_k_diffusion(Discrete(), sigma_data=1.0)
    assert trained_range(denoiser) == pytest.approx((5.0, 0.1))
    x = normal(3, 2)
    torch.testing.assert_close(denoiser(x, 2.0, extra=1.0), x / 5 + 1)


class Uncast(nn.Module):
    """As k-diffusion's wrappers, which cast nothing: a noise network, told ``σ``."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.inner_model = nn.Linear(3, 3).to(dtype).requires_grad_(False)
        self.sigma_data = 1.0

    def forward(self, x, sigma):
        return x - sigma[:, None] * self.inner_model(x * ((sigma**2 + 1) ** -0.5)[:, None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_model_in_a_wrapper_that_does_not_cast(dtype):
    wide = sk.from_k_diffusion(Uncast(dtype).double())
    x, sigma = normal(4, 3), torch.tensor([0.01, 1.0, 5.0, 70.0], dtype=DOUBLE)
    x = sigma[:, None] * x
    denoiser = sk.from_k_diffusion(Uncast(dtype))
    resolution = torch.finfo(dtype).eps
    # The noise is rounded; state and level are not.
    error = (denoiser(x, sigma) - wide(x, sigma)).abs() / sigma[:, None]
    assert 0 < error.max() < 4 * resolution
    rounded = sk.from_k_diffusion(Uncast(dtype), dtype=dtype, sigma_data=1.0)
    error = (rounded(x, sigma) - wide(x, sigma)).abs() / sigma[:, None]
    assert error.max() < 20 * resolution
    said = sk.from_k_diffusion(Uncast(torch.float32), autocast=dtype)
    torch.testing.assert_close(said(x, sigma), denoiser(x, sigma), rtol=0.05, atol=0.05)
    assert trained_range(denoiser)[0] == (1e4 if dtype == torch.float16 else np.inf)


@pytest.mark.parametrize("process", [sk.VP(), sk.SubVP(), sk.VE()])
def test_networks_of_score_sde(process):
    law = sk.Gaussian([0.3, -0.2], [0.5, 2.0])

    def network(x, labels):
        # What score_sde trains: with continuous times the score is −output/std, or the output for VE.
        t = (
            labels.double() / 999
            if not isinstance(process, sk.VE)
            else process.time(labels.double())
        )
        alpha, std = process.scale(t)[:, None], process.std(t)[:, None]
        score = law.score(x / alpha, (std / alpha)[:, 0]) / alpha
        return score if isinstance(process, sk.VE) else -std * score

    denoiser = sk.from_score_sde(network, process)
    sigma = process.sigma(torch.tensor([0.05, 0.4, 0.9], dtype=DOUBLE))
    x = sigma[:, None] * normal(3, 2)
    # Labels are float32.
    torch.testing.assert_close(denoiser(x, sigma), law.denoise(x, sigma), rtol=1e-4, atol=1e-5)
    assert trained_range(denoiser)[0] == pytest.approx(process.sigma_max)
    with pytest.raises(TypeError, match="EDM"):
        sk.from_score_sde(network, sk.EDM())


# ---------------------------------------------------------------- files


def test_weights_are_read_from_either_kind_of_file(tmp_path):
    network = nn.Linear(3, 2)
    weights = network.state_dict()
    save_file(weights, tmp_path / "a.safetensors")
    save_file(weights, tmp_path / "misnamed.pt")
    torch.save(weights, tmp_path / "a.pt")
    torch.save(weights, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    nested = {"model": {"ema": weights, "step": 3}, "optimizer": {"lr": 0.1}}
    torch.save(nested, tmp_path / "nested.pt")
    for name, key in (
        ("a.safetensors", None),
        ("misnamed.pt", None),
        ("a.pt", None),
        ("old.ckpt", None),
        ("nested.pt", "model.ema"),
    ):
        found = sk.load_weights(tmp_path / name, key=key)
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[k], weights[k]) for k in weights)
        nn.Linear(3, 2).load_state_dict(found)
    with pytest.raises(
        ValueError, match=r"say where the weights are by key=.*model \(dict\), optimizer"
    ):
        sk.load_weights(tmp_path / "nested.pt")
    with pytest.raises(
        ValueError, match=r"no entry 'model.raw'; its entries are ema \(OrderedDict\)"
    ):
        sk.load_weights(tmp_path / "nested.pt", key="model.raw")
    with pytest.raises(ValueError, match="one set of weights: no key"):
        sk.load_weights(tmp_path / "a.safetensors", key="model")
    with pytest.raises(FileNotFoundError, match="missing"):
        sk.load_weights(tmp_path / "missing.pt")


def test_keys_with_dots_in_them(tmp_path):
    one, two = {"w": torch.ones(1)}, {"w": torch.zeros(2)}
    torch.save({"ema_0.9999": one, "model": {"ema_0.5": two, "a.b": {"c.d": one}}}, tmp_path / "a")
    for key, expected in (
        ("ema_0.9999", one),
        ("model.ema_0.5", two),
        ("model.a.b.c.d", one),
    ):
        assert torch.equal(sk.load_weights(tmp_path / "a", key=key)["w"], expected["w"])
    for key in ("ema_0", "model.a.c", "ema_0.9999.w.x"):
        with pytest.raises(ValueError, match=f"no entry '{key}'"):
            sk.load_weights(tmp_path / "a", key=key)


class Trap:
    """What runs code when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, how):
    trap = Trap(tmp_path / "sprung")
    content = {"ema": trap, "weight": torch.zeros(2)}
    if how == "torch":
        torch.save(content, tmp_path / "net.pkl")
    else:
        (tmp_path / "net.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(
        ValueError, match=r"(?s)it is refused.*convert it once.*state_dict.*found: "
    ):
        sk.load_weights(tmp_path / "net.pkl")
    assert not (tmp_path / "sprung").exists()


def test_a_whole_module_in_a_file_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(
        ValueError, match=r"(?s)holds more than tensors.*torch.nn.modules.linear.Linear"
    ):
        sk.load_weights(tmp_path / "module.pt")


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all", b"PK\x03\x04rest", bytes(range(1, 9)) + b"{oops"]
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r"neither a safetensors|damaged|holds more than tensors"):
        sk.load_weights(tmp_path / "file")


def test_a_tensor_alone_is_no_set_of_weights(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match="no dictionary of tensors; it is a Tensor"):
        sk.load_weights(tmp_path / "tensor.pt")
