"""Solvers fitted to a model, and the files that keep them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .affine import AffineSDE
from .coordinates import Array, Coordinates
from .denoisers import model_of
from .preconditioned import GaussianPreconditioned, Preconditioned
from .solvers.calibrated import Calibrated, CalibratedNoise, Coefficients, check_levels
from .solvers.registry import Solver
from .spacing import check_range

__all__ = ["CalibratedGrid", "CalibratedSolver", "CalibrationReport", "load_solver"]

_FORMAT, _VERSION = "sdekit.CalibratedSolver", 1
# A model in another precision is the same model; another network differs in the first digits.
_SAME = 0.02
_PROBES = (10.0, 1.0, 0.1)  # noise levels at which a model is known again, where it reaches


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration found: errors of the fitted solver and of the default one.

    Errors are root mean squares of the distance to the teacher in the state ``x̂`` at the last level,
    or of the features of it that were asked for; for a stochastic solver what ``metric`` says.

    Attributes:
        metric: What the errors are of.
        samples: Number of pilot samples that coefficients were fitted to.
        validation: Number of others that chose among candidates.
        test: Number of others that had no say at all.
        seed: Seed of the pilots; ``None`` if they were given.
        default: Name of the uncalibrated solver.
        errors: Errors ``{"fit" | "validation" | "test": (calibrated, default)}``.
        gain: Calibrated error over that of the default on the test samples, with the ends of a 95 %
            interval (bootstrap over samples).
        chosen: What was chosen: the coordinates, the grid and how coefficients were fitted.
        stages: Validation errors of what was tried, by names.
        nfe: Network evaluations that the calibration made, per sample of the pilot.
        fell_back: Whether nothing was better than the default, and it was kept.
        warnings: What to be careful about.
    """

    metric: str
    samples: int
    validation: int
    test: int
    seed: int | None
    default: str
    errors: dict[str, tuple[float, float]]
    gain: tuple[float, float, float]
    chosen: str
    stages: dict[str, float] = field(default_factory=dict)
    nfe: float = 0.0
    fell_back: bool = False
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        gain, low, high = self.gain
        kept = ": nothing better was found, the default is kept" if self.fell_back else ""
        lines = [
            f"{self.chosen}{kept}",
            f"{self.metric} over that of {self.default} on {self.test} new samples: {gain:.2f} "
            f"(95 %: {low:.2f} to {high:.2f})",
        ]
        lines += [
            f"  {name:<10} {own:.3e}  ({self.default} {other:.3e})"
            for name, (own, other) in self.errors.items()
        ]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


@dataclass(frozen=True)
class CalibratedGrid:
    """The grid of a calibrated solver: its own levels, and no others.

    Attributes:
        sigmas: The levels, decreasing.
    """

    sigmas: tuple[float, ...]

    def __call__(
        self, n: int, sigma_max: float, sigma_min: float, process: AffineSDE | None = None
    ) -> Array:
        """Return the levels.

        Raises:
            ValueError: If another number of steps or another range is asked for.
        """
        check_range(n, sigma_max, sigma_min)
        own = np.array(self.sigmas)
        if n == len(own) - 1 and not np.allclose([sigma_max, sigma_min], own[[0, -1]], rtol=1e-6):
            raise ValueError(
                f"the solver was calibrated from sigma = {own[0]:g} to {own[-1]:g}, and {sigma_max:g} "
                f"to {sigma_min:g} is asked for; leave steps= out, and the solver takes its own "
                "levels, or calibrate again with sigma_max= and sigma_min="
            )
        check_levels(np.broadcast_to(own[0], n + 1) if n != len(own) - 1 else own, own)
        return own


@dataclass(frozen=True)
class CalibratedSolver(Solver):
    """A `Solver` fitted to one model, for one number of steps; `sdekit.calibrate` makes it.

    It is taken wherever a method is: ``method=solver``, or ``method="solver.json"`` once it is saved.
    Without ``steps=`` it takes its own.

    Attributes:
        report: What the calibration found.
        fingerprint: Values of the model, by which it is known again.
    """

    report: CalibrationReport
    fingerprint: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        coefficients: Coefficients,
        coordinates: Coordinates,
        event_shape: tuple[int, ...],
        report: CalibrationReport,
        fingerprint: tuple[float, ...] = (),
    ) -> CalibratedSolver:
        """Return the solver of coefficients."""
        kind = Calibrated if coefficients.noise is None else CalibratedNoise
        grid = CalibratedGrid(tuple(coefficients.sigmas.tolist()))
        return cls(kind(coefficients, event_shape), coordinates, grid, report, fingerprint)

    @property
    def coefficients(self) -> Coefficients:
        """The coefficients."""
        assert isinstance(self.scheme, Calibrated | CalibratedNoise)
        return self.scheme.coefficients

    @property
    def sigmas(self) -> Array:
        """Noise levels of the grid."""
        return self.coefficients.sigmas

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.coefficients.steps

    def __repr__(self) -> str:
        return (
            f"CalibratedSolver({self.steps} steps, σ = {self.sigmas[0]:g} … {self.sigmas[-1]:g}, "
            f"{self.report.chosen})"
        )

    def recognises(
        self, denoiser: Callable[..., Tensor], device: torch.device | str | None = None
    ) -> bool:
        """Whether a denoiser is the model that the solver was fitted to, by a few of its values.

        They may differ by 2 %, so that a model is known again in another precision; one that was
        fine-tuned a little is, too. Of several problems it is the first, with the conditioning of its
        first sample.
        """
        assert self.scheme.event_shape is not None
        found = np.array(fingerprint(denoiser, self.scheme.event_shape, self.sigmas, device))
        own = np.array(self.fingerprint)
        return found.shape == own.shape and bool(
            np.linalg.norm(found - own) <= _SAME * np.linalg.norm(own)
        )

    def save(self, path: str | Path) -> None:
        """Write the solver as JSON: coordinates, levels, coefficients, and how it was fitted."""
        own = self.coefficients
        assert self.scheme.event_shape is not None
        record = {
            "format": _FORMAT,
            "version": _VERSION,
            "event_shape": list(self.scheme.event_shape),
            "coordinates": _described(self.coordinates),
            "sigmas": own.sigmas.tolist(),
            "told": own.told.tolist(),
            "keep": own.keep.tolist(),
            "weights": [row.tolist() for row in own.weights],
            "noise": None if own.noise is None else own.noise.tolist(),
            "stage": None if own.stage is None else own.stage.tolist(),
            "fingerprint": list(self.fingerprint),
            "report": asdict(self.report),
        }
        text = json.dumps(record, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")


def load_solver(path: str | Path) -> CalibratedSolver:
    """Read a solver that `CalibratedSolver.save` wrote.

    Raises:
        ValueError: If there is no such file, or it is no such solver; the message names the file and
            what is wrong.
    """
    try:
        record: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.pop("format", None) != _FORMAT:
            raise ValueError("it is not the JSON of a calibrated solver")
        version = record.pop("version", None)
        if version != _VERSION:
            raise ValueError(f"it has version {version!r}, and this sdekit reads {_VERSION}")
        return _solver(record)
    except KeyError as error:
        raise ValueError(f"{path} cannot be read as a calibrated solver: no {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a calibrated solver: {error}") from error


def _solver(record: Mapping[str, Any]) -> CalibratedSolver:
    event_shape = tuple(map(int, record["event_shape"]))
    if not event_shape or min(event_shape) < 1:
        raise ValueError(f"event_shape is {event_shape}; it must be positive sizes")
    names = ("sigmas", "told", "keep", "weights", "noise", "stage")
    coefficients = Coefficients(**{name: record[name] for name in names})
    report = dict(record["report"])
    report["errors"] = {key: tuple(pair) for key, pair in report["errors"].items()}
    report["gain"], report["warnings"] = tuple(report["gain"]), tuple(report["warnings"])
    return CalibratedSolver.of(
        coefficients,
        _coordinates(record["coordinates"], coefficients),
        event_shape,
        CalibrationReport(**report),
        tuple(map(float, record["fingerprint"])),
    )


def _described(coordinates: Coordinates) -> dict[str, Any]:
    if isinstance(coordinates, Preconditioned):
        return {"name": "Preconditioned", "sigma_data": coordinates.sigma_data}
    assert isinstance(coordinates, GaussianPreconditioned)
    mean, cov = (np.asarray(v).tolist() for v in (coordinates.mean, coordinates.cov))
    return {"name": "GaussianPreconditioned", "mean": mean, "cov": cov}


def _coordinates(record: Mapping[str, Any], coefficients: Coefficients) -> Coordinates:
    if record["name"] == "Preconditioned":
        if coefficients.directions is not None:
            raise ValueError("numbers by directions belong to GaussianPreconditioned coordinates")
        return Preconditioned(float(record["sigma_data"]))
    if record["name"] == "GaussianPreconditioned":
        made = GaussianPreconditioned(np.array(record["mean"]), np.array(record["cov"]))
        if coefficients.directions not in (None, len(made.mean)):
            raise ValueError(f"numbers by directions must be {len(made.mean)} each")
        return made
    raise ValueError(f"unknown coordinates {record['name']!r}")


@torch.no_grad()
def fingerprint(
    denoiser: Callable[..., Tensor],
    event_shape: tuple[int, ...],
    sigmas: Array,
    device: torch.device | str | None = None,
) -> tuple[float, ...]:
    """Return a few values of a denoiser, by which it is known again.

    Args:
        denoiser: A denoiser, its conditioning fixed.
        event_shape: Shape of a sample.
        sigmas: Levels that it reaches: those within the first and last are probed.
        device: Where it is.
    """
    noise = torch.randn(1, *event_shape, generator=torch.Generator().manual_seed(0))
    noise = noise.double().to(device)
    denoiser = model_of(denoiser, np.array([0]))  # conditioning may be that of each sample
    values = []
    for level in np.clip(_PROBES, sigmas[-1], sigmas[0]).tolist():
        denoised = denoiser(level * noise, noise.new_tensor(level)).double().flatten().cpu()
        few = np.linspace(0, len(denoised) - 1, min(4, len(denoised))).astype(np.int64)
        values += [float(denoised.square().mean().sqrt()), *denoised[few].tolist()]
    return tuple(values)
