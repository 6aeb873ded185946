"""A scheduler for pipelines of diffusers: the pipeline calls the network, sdekit does the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..brownian import IndependentNoise, NoiseSource
from ..grids import GRIDS
from ..inputs import Array, check_ending, check_steps, default_method, named_solver
from ..prepared import set_up
from ..solvers.langevin import PredictorCorrector
from ..solvers.registry import Solver
from ..solvers.stochastic import Milstein
from ..solvers.view import Problem
from ..stepwise import Query, State, Stepwise, stepwise
from .calls import Calls, CountedNoise, Turns, find_calls
from .schedule import PREDICTIONS, SPACINGS, Schedule

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
    from diffusers.utils import BaseOutput
    from diffusers.utils.torch_utils import randn_tensor

    from .configs import check_known, is_flow
except ImportError as error:
    raise ImportError("sdekit.interop.diffusers needs diffusers: pip install diffusers") from error

__all__ = ["SdekitScheduler", "SdekitSchedulerOutput"]

_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
_SNR = "rescale_betas_zero_snr"


@dataclasses.dataclass
class SdekitSchedulerOutput(BaseOutput):  # type: ignore[misc]  # diffusers is not read by mypy
    """What a step returns.

    Attributes:
        prev_sample: What the network is called with next; after the last call, the result.
        pred_original_sample: The denoised sample that the network's output stands for.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class _PipelineNoise(IndependentNoise):
    """Noise from the generator that the pipeline hands to each step, or from a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.generator: torch.Generator | list[torch.Generator] | None = None

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape, dtype and device of ``like``."""
        numbers: Tensor = randn_tensor(
            like.shape, generator=self.generator, device=like.device, dtype=like.dtype
        )
        return numbers


class SdekitScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Any fixed-grid method of sdekit in an unmodified pipeline, but predictor–correctors.

    ``pipe.scheduler = SdekitScheduler.from_config(pipe.scheduler.config)`` takes over how the model
    was trained: the schedule, the kind of prediction and ``clip_sample``. The spacing of the old
    scheduler is not taken over, as it is part of a method here.

    A timestep stands for every call of the network, so ``len(timesteps)`` is their number, and a method
    of ``order`` calls per step takes that many in a row. Between the levels that the network was
    trained at timesteps are fractional, linear in ``log σ``; networks with sinusoidal embeddings take
    them. Noise comes from the pipeline's ``generator``.

    A pipeline calls the network before the first `step`. A method that draws noise before its first
    call (``sea…``) therefore gets one call whose result is not used.

    Args:
        num_train_timesteps: As in diffusers, like the next four and ``rescale_betas_zero_snr``.
        beta_start: First ``β``.
        beta_end: Last ``β``.
        beta_schedule: The schedule between.
        trained_betas: The ``β`` themselves.
        prediction_type: ``"epsilon"``, ``"sample"``, ``"v_prediction"``; or ``"flow_prediction"``, the
            velocity of rectified flow, whose timesteps are ``num_train_timesteps · t``.
        rescale_betas_zero_snr: Whether the signal vanishes at the last level, which is then left out.
        clip_sample: Whether denoised samples are clipped; in DDIM this is ``use_clipped_model_output``.
        clip_sample_range: To which magnitude.
        thresholding: Must be off.
        steps_offset: Added to the timesteps of ``"leading"``.
        method: A name from `sdekit.methods`, or the file of a calibrated solver, ``"solver.json"``,
            which fixes the number of steps (one more with a denoising ending); ``None`` for the
            default of `sdekit.solve`.
        spacing: Where the steps end: ``None`` for the grid of the method, a name of
            `sdekit.grids.GRIDS`, or ``"leading"``, ``"linspace"`` or ``"trailing"``, the whole
            timesteps of diffusers.
        rounded: Whether the levels of the grid are rounded to those that the network was trained at; of
            levels that become the same one is left.
        ending: How the data are reached from the lowest level; see `sdekit.solve`.
        sigma_data: Standard deviation of the data: 1/2 for images in [−1, 1], 1 for latents that are
            scaled to unit variance.
        eta: ``η`` of methods of the reverse SDE.

    Raises:
        ValueError: If an argument is out of its range, or the method does not fit.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012 (as diffusers has it)
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        steps_offset: int = 0,
        method: str | None = None,
        spacing: str | None = None,
        rounded: bool = False,
        ending: str = "denoise",
        sigma_data: float = 0.5,
        eta: float = 1.0,
    ) -> None:
        if prediction_type not in PREDICTIONS:
            raise ValueError(
                f"prediction_type = {prediction_type!r}; it must be one of "
                f"{', '.join(map(repr, PREDICTIONS))}"
            )
        if thresholding:
            raise ValueError("thresholding=True is not supported; clip_sample=True is")
        if spacing is not None and spacing not in (*SPACINGS, *GRIDS):
            raise ValueError(
                f"spacing = {spacing!r}; it must be None, for the grid of the method, or one of "
                f"{', '.join([*SPACINGS, *GRIDS])}"
            )
        if rounded and prediction_type == "flow_prediction":
            raise ValueError("rounded=True, but a flow is trained at all times; leave it out")
        check_ending(ending)
        self._solver = _solver(method)
        self.order = self._solver.scheme.nfe_per_step
        options = {name: self.config[name] for name in (*_BETAS, _SNR)}
        self.alphas_cumprod: Tensor = DDPMScheduler(**options).alphas_cumprod
        alphas = self.alphas_cumprod.double().numpy()
        self.schedule = Schedule(
            prediction_type,
            num_train_timesteps,
            alphas[:-1] if rescale_betas_zero_snr else alphas,
        )
        self.num_inference_steps: int | None = None
        self.timesteps: Tensor | None = None
        self._begin_index: int | None = None
        self._walk: Stepwise | None = None
        self._state: State
        self._query: Query
        self._sent: Tensor

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: object
    ) -> Any:  # noqa: ANN401 (diffusers is not read by mypy)
        """Take over how a model was trained from the configuration of its scheduler.

        Those of flow matching say it by their class; their shift moves their own grid only, and is not
        taken over.

        Args:
            config: The configuration, of this class or of one of diffusers.
            return_unused_kwargs: Whether to return what was not used, too.
            **kwargs: Arguments of the class, which count before the configuration.

        Raises:
            TypeError: If ``config`` is not a configuration.
            ValueError: If it says something that there is not here.
        """
        if not isinstance(config, Mapping):
            raise TypeError(
                f"config is a {type(config).__name__}; pass scheduler.config, or take "
                "SdekitScheduler.from_pretrained for a path"
            )
        if is_flow(config):
            kwargs = {"prediction_type": "flow_prediction"} | kwargs
        # Defaults of the other class, which diffusers would leave out, are part of it as well.
        config = {name: v for name, v in config.items() if name != "_use_default_values"}
        check_known({**config, **kwargs})
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    # --- the grid -----------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose where the steps end, and so when the network is called.

        Args:
            num_inference_steps: Number of steps, the one to ``σ = 0`` included.
            device: Device of the timesteps.
            timesteps: Where the steps begin, decreasing, instead of their number.

        Raises:
            TypeError: If not one of steps and timesteps is given.
            ValueError: If there are too many steps for the spacing, or timesteps do not decrease.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise TypeError("give either num_inference_steps or timesteps")
        if timesteps is None:
            assert num_inference_steps is not None
            self._grid = self._grid_of(check_steps(num_inference_steps, "num_inference_steps"))
        else:
            begins = np.asarray(timesteps, dtype=np.float64)
            self._grid = self.schedule.grid(begins, self.config.ending)
        self._calls = self._asked(self._grid, self.config.eta)
        levels = np.array(self._calls.levels)
        self._coefficients = self.schedule.coefficients(levels)
        self.timesteps = self.schedule.labels(levels).to(device)
        self._turns = Turns(self.timesteps)
        self.num_inference_steps = len(self._grid) - 1
        self._begin_index, self._walk = None, None

    def _grid_of(self, steps: int) -> Array:
        """Return the noise levels of a number of steps."""
        config, solver = self.config, self._solver
        if config.spacing in SPACINGS:
            begins = self.schedule.spaced(config.spacing, steps, config.steps_offset)
            return self.schedule.grid(begins, config.ending)
        if config.spacing is not None:
            solver = dataclasses.replace(solver, grid=GRIDS[config.spacing])
        _, _, grid, _ = set_up(
            self._problem(config.eta),
            self._one(),
            method=solver,
            steps=steps,
            sigmas=None,
            times=None,
            adaptive=False,
            ending=config.ending,
            sigma_data=config.sigma_data,
        )
        return self.schedule.rounded(grid) if config.rounded else grid

    def _one(self) -> Tensor:
        """Return the smallest sample that the method takes, to see what it does."""
        return torch.ones(1, *(self._solver.scheme.event_shape or (1,)), dtype=torch.float64)

    def _problem(self, eta: float) -> Problem:
        process = self.schedule.process
        if self._solver.scheme.solves == "flow":
            return process.probability_flow(_no_model)
        return process.reverse(_no_model, eta)

    def _stepwise(self, like: Tensor, grid: Array, eta: float, noise: NoiseSource) -> Stepwise:
        return stepwise(
            self._problem(eta),
            like,
            method=self._solver,
            sigmas=grid,
            ending=self.config.ending,
            sigma_data=self.config.sigma_data,
            noise=noise,
        )

    def _asked(self, grid: Array, eta: float) -> Calls:
        """Find when the network is called, by a solve of one number."""
        like = self._one()
        noise = CountedNoise(0)
        return find_calls(self._stepwise(like, grid, eta, noise), like, noise)

    # --- the solve ----------------------------------------------------------------------------

    @property
    def begin_index(self) -> int | None:
        """Place in ``timesteps`` at which the pipeline begins, if it has said so."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say at which place in ``timesteps`` the pipeline begins, as for image to image."""
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Return the sample itself."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        use_clipped_model_output: bool | None = None,
    ) -> SdekitSchedulerOutput | tuple[Tensor, Tensor]:
        """Take what the network said, and return what it is called with next.

        Args:
            model_output: What the network said of ``sample``.
            timestep: When; an element of ``timesteps``, in their order.
            sample: What was returned before, or changed by the pipeline between two steps.
            eta: ``η`` of methods of the reverse SDE, if it is not that of the configuration. Pipelines
                say 0 where their users say nothing, so that is no ``η``.
            generator: Source of the noise, or one for each sample.
            return_dict: Whether to return an object, not a tuple.
            use_clipped_model_output: Not used, see ``clip_sample``.

        Raises:
            ValueError: If timesteps are not set or out of order, the output is not as expected, or
                the sample was changed where the method cannot take another.
        """
        if self.timesteps is None:
            raise ValueError("there are no timesteps yet; call set_timesteps first")
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output has shape {tuple(model_output.shape)}, the sample "
                f"{tuple(sample.shape)}; they must agree (of a model that predicts its variance as "
                "well, pass the first half of the channels)"
            )
        wide = torch.promote_types(sample.dtype, torch.float32)
        if self._walk is None:
            index = self._begin_index
            first = self._turns.first(timestep, self._calls) if index is None else index
            self._begin(first, sample, eta)
        self._turns.check(timestep, self._index)
        self._noise.generator = generator
        unused = self._index < self._calls.begins[0]
        scale, keep, weight = self._coefficients[self._index]
        if not unused and sample is not self._sent and not torch.equal(sample, self._sent):
            self._replace(sample.to(wide))
        x_hat = sample.to(wide) / scale if unused else self._query.x_hat
        denoised = torch.add(keep * x_hat, model_output.to(wide), alpha=weight)
        if self.config.clip_sample:
            most = self.config.clip_sample_range
            denoised = denoised.clamp(-most, most)
        self._index += 1
        if unused:
            self._ask(self._state)
        else:
            self._tell(denoised)
        if self._state.done:
            following = self._state.x
        else:
            following = self._query.x_hat * self._coefficients[self._index][0]
        self._sent = following.to(sample.dtype)
        original = denoised.to(sample.dtype)
        if not return_dict:
            return self._sent, original
        return SdekitSchedulerOutput(prev_sample=self._sent, pred_original_sample=original)

    def _begin(self, index: int, sample: Tensor, eta: float) -> None:
        """Set up the solve, from a place in ``timesteps``."""
        scheme, planned = self._solver.scheme, self._calls
        if eta and scheme.solves == "flow":
            raise ValueError(
                f"eta = {eta:g}, but the method solves the probability flow, which has none; take a "
                "method of the reverse SDE, such as 'ddim_eta'"
            )
        eta = eta or self.config.eta
        n = 0
        if index:
            if index not in planned.begins or planned.begins[0]:
                labels = self._turns.labels
                raise ValueError(
                    f"timestep {labels[index]:g} is inside of a step; this method can begin at "
                    f"{[labels[i] for i in planned.begins if not planned.begins[0]] or labels[:1]}"
                )
            n = planned.begins.index(index)
        grid = self._grid[n:]
        if n or eta != self.config.eta:
            levels, rest = self._asked(grid, eta).levels, planned.levels[index:]
            if len(levels) != len(rest) or not np.allclose(levels, rest, rtol=1e-9):
                raise ValueError(
                    "from here, or with this eta, the method calls the network at other noise levels "
                    "than it was set up for; give eta= in the configuration, and begin at the start"
                )
        self._noise = _PipelineNoise()
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        self._walk = self._stepwise(x, grid, eta, self._noise)
        self._index, self._sent = index, sample
        self._state = self._walk.init(x)
        if not planned.begins[0]:
            self._ask(self._state)

    def _ask(self, state: State) -> None:
        assert self._walk is not None
        self._state, self._query = state, self._walk.ask(state)

    def _tell(self, denoised: Tensor) -> None:
        assert self._walk is not None
        part = self._walk.tell(self._query, denoised)
        if isinstance(part, Query):
            self._query = part
        elif part.done:
            self._state = part
        else:
            self._ask(part)

    def _replace(self, x: Tensor) -> None:
        """Go on from another state, which the pipeline has made of what it was given."""
        assert self._walk is not None
        calls = self._calls
        if (self._index, True) not in zip(calls.begins, calls.plain, strict=True):
            raise ValueError(
                "the sample was changed inside of a step, where it is a stage and not a state; take a "
                "method with one call per step and without a corrector, such as 'lms3'"
            )
        self._ask(self._walk.replace(self._state, x))

    # --- noise for training, and for beginning in the middle ----------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``s (x0 + σ ε)`` at timesteps.

        Args:
            original_samples: ``x0``, ``(B, *event)``.
            noise: ``ε``, of the same shape.
            timesteps: Timesteps, fractional or not, ``(B,)`` or ``(1,)``.
        """
        labels = timesteps.to(original_samples.device, torch.float64)
        shape = (-1, *(1,) * (original_samples.ndim - 1))
        scale, std = (
            c.to(original_samples.dtype).reshape(shape) for c in self.schedule.scales(labels)
        )
        return scale * original_samples + std * noise


def _solver(method: str | None) -> Solver:
    """Return a method that a scheduler can be made of."""
    name = method or default_method(flow=True, affine=True, adaptive=False)
    solver = named_solver(name)
    if not solver.scheme.fixed:
        raise ValueError(
            f"method = {name!r} chooses its own steps, but a pipeline wants to know them before; take "
            "a method with a grid, such as 'bayesian_adams'"
        )
    if isinstance(solver.scheme, PredictorCorrector | Milstein):
        raise ValueError(
            f"method = {name!r} calls the network in the midst of its steps, which a pipeline cannot "
            "do; take another, such as 'sde_dpmpp_2m'"
        )
    return solver


def _no_model(x_hat: Tensor, sigma: Tensor) -> Tensor:
    raise AssertionError("a pipeline calls the network")
