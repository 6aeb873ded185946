"""What a benchmark is to run: problems, methods, budgets, metrics, as arguments or as a TOML file."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cli_models import PROCESSES
from ..solvers.registry import did_you_mean
from .entries import Entry
from .measurements import ADAPTIVE, Setting, key_of
from .metrics import LAW, LIKELIHOOD, METRICS
from .names import resolve
from .problems import PROBLEMS, known_law

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Short names of problems, as people write them.
SHORT = {"gmm2": "mixture2d", "gmm16": "mixture16d", "gmm64": "mixture64d"}

# Budgets of a range: this many to an octave, rounded, so that some are no multiples of the stages.
_PER_OCTAVE = 3


@dataclass(frozen=True)
class UserModel:
    """A network of the user's, as a problem.

    Attributes:
        denoiser: ``"package.module:function"``, which takes nothing and returns a denoiser; or a folder
            of a diffusers pipeline.
        process: One of ``edm``, ``vp``, …; if empty, what the model was trained under, or ``edm``.
        shape: Shape of a sample; if empty, what the model says.
        dtype: ``"float64"`` or ``"float32"``, of states and weights.
        device: Where it is solved.
        tolerance: Of the two reference solutions; 0 stands for what suits the dtype.
    """

    denoiser: str
    process: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = "float64"
    device: str = "cpu"
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.process:
            _known("process", self.process, PROCESSES)
        _known("dtype", self.dtype, ("float32", "float64"))
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance = {self.tolerance}; it must be between 0 and 1")

    @property
    def reference_tolerance(self) -> float:
        """Tolerance of the two reference solutions."""
        return self.tolerance or {"float32": 2e-5, "float64": 1e-8}[self.dtype]

    @property
    def variant(self) -> str:
        """Hash of all that is said of the model."""
        return key_of(asdict(self))


@dataclass(frozen=True)
class Experiment:
    """What to run.

    Attributes:
        title: Title of its reports.
        problems: Names of problems, or of `models`.
        methods: Names of the registry, ``"package.module:solver"`` of a composed one, names of peers;
            each may name a grid, as in ``"heun@log"``. See `sdekit.bench.names.resolve`.
        budgets: Network evaluations that a fixed grid may take.
        rtols: Tolerances (relative and absolute) for the methods that take one.
        metrics: Names of `sdekit.bench.metrics.METRICS`.
        samples: Number of start states, for errors along paths and of likelihoods.
        law_samples: Number of start states, for errors of laws.
        seeds: Seeds of start states and noise: repetitions.
        models: Networks of the user's by name.

    Raises:
        ValueError: If a name is unknown, nothing would be run, or a number is not positive.
    """

    title: str = "Error against network evaluations"
    problems: tuple[str, ...] = ("mixture2d", "mixture16d", "digits")
    methods: tuple[str, ...] = ("bayesian_adams", "dpmpp_2m", "heun")
    budgets: tuple[int, ...] = (6, 8, 10, 15, 20, 31, 40, 61, 80, 120)
    rtols: tuple[float, ...] = ()
    metrics: tuple[str, ...] = ("rms",)
    samples: int = 64
    law_samples: int = 4096
    seeds: tuple[int, ...] = (0,)
    models: Mapping[str, UserModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.problems:
            _known("problem", name, (*self.models, *PROBLEMS))
        for name in self.models:
            if name in PROBLEMS:
                raise ValueError(f"a model is called {name!r}, as is a problem; call it otherwise")
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(
                    f"a model is called {name!r}; a name has letters, digits, and . _ - within"
                )
            if name not in self.problems:
                raise ValueError(f"the model {name!r} is not among the problems, {self.problems}")
        for name in self.metrics:
            _known("metric", name, METRICS)
        for what in ("problems", "methods", "metrics", "seeds"):
            if not getattr(self, what):
                raise ValueError(f"{what} is empty: there is nothing to run")
        if not self.budgets and not self.rtols:
            raise ValueError("neither budgets nor tolerances: there is nothing to run")
        for what, values in (
            ("budget", self.budgets),
            ("number of samples", (self.samples, self.law_samples)),
        ):
            if min(values, default=1) < 1:
                raise ValueError(f"every {what} must be at least 1, got {values}")
        if not all(0 < rtol < 1 for rtol in self.rtols):
            raise ValueError(f"every tolerance must be between 0 and 1, got {self.rtols}")
        if not any(self.plan()):
            raise ValueError(
                "there is nothing to run: metrics along paths are for deterministic methods, those of "
                "laws for problems whose law is a mixture, tolerances for adaptive methods"
            )

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The methods on their grids, each once."""
        found = (entry for spec in self.methods for entry in resolve(spec))
        return tuple({(entry.name, entry.grid): entry for entry in found}.values())

    def plan(self) -> Iterator[Task]:
        """Go through all that is to be measured, problem by problem, each setting once."""
        seen: set[str] = set()
        entries = self.entries
        for problem in self.problems:
            for seed in self.seeds:
                for entry in entries:
                    for task in self._tasks(problem, entry, seed):
                        if task.setting.digest not in seen:
                            seen.add(task.setting.digest)
                            yield task

    def _tasks(self, problem: str, entry: Entry, seed: int) -> Iterator[Task]:
        efforts: list[tuple[int | None, float | None]] = []
        if entry.fixed:
            efforts += [(budget, None) for budget in sorted(set(self.budgets))]
        if entry.adaptive:
            efforts += [(None, rtol) for rtol in sorted(set(self.rtols), reverse=True)]
        variant = self._variant(problem, entry)
        for budget, rtol in efforts:
            for samples, metrics in self._sizes(problem, entry, fixed=rtol is None).items():
                grid = entry.grid if rtol is None else ADAPTIVE
                setting = Setting(problem, entry.name, grid, budget, rtol, samples, seed, variant)
                yield Task(setting, entry, metrics)

    def _variant(self, problem: str, entry: Entry) -> str:
        model = self.models.get(problem)
        said = [model.variant if model is not None else "", entry.variant]
        return key_of(said) if any(said) else ""

    def _sizes(self, problem: str, entry: Entry, *, fixed: bool) -> dict[int, tuple[str, ...]]:
        """Return the metrics that can be measured, by the number of samples that they take."""
        has_law = problem in PROBLEMS and known_law(problem)
        sizes: dict[int, tuple[str, ...]] = {}
        for name in self.metrics:
            kind = METRICS[name].kind
            if kind == LAW:
                possible = has_law
            elif kind == LIKELIHOOD:
                possible = has_law and entry.own_flow is not None
            else:
                # Of a peer's states only the last are known, and of adaptive ones those of its steps.
                along = entry.own_flow is not None and fixed
                possible = entry.deterministic and (name != "path" or along)
            if possible:
                samples = self.samples_of(name)
                sizes[samples] = (*sizes.get(samples, ()), name)
        return sizes

    def samples_of(self, metric: str) -> int:
        """Return the number of start states that a metric takes."""
        return self.law_samples if METRICS[metric].kind == LAW else self.samples


@dataclass(frozen=True)
class Task:
    """A setting, whose method it is, and what is to be measured there.

    Attributes:
        setting: The setting.
        entry: The method.
        metrics: Names of metrics.
    """

    setting: Setting
    entry: Entry
    metrics: tuple[str, ...]


def read_experiment(path: Path) -> Experiment:
    """Read an experiment from a TOML file.

    Its keys are the attributes of `Experiment`; ``budgets`` may be a range as in ``"5:100"``, and
    ``[models.NAME]`` are tables of the attributes of `UserModel`.

    Raises:
        ValueError: If it cannot be read, or says something else.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the experiment {path}: {error}") from None
    try:
        return experiment_of(data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def experiment_of(data: Mapping[str, Any]) -> Experiment:
    """Make an experiment of plain data.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If a key is unknown or a value is out of its range.
    """
    data = dict(data)
    tables = data.pop("models", {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise TypeError("models must be tables, as in [models.mine] and below it denoiser = …")
    for name, table in tables.items():
        if "denoiser" not in table:
            raise ValueError(f"models.{name} does not say where its denoiser is")
    models = {
        name: UserModel(**_fitting(f"models.{name}", UserModel("x"), table))
        for name, table in tables.items()
    }
    if isinstance(data.get("budgets"), str):
        data["budgets"] = parse_budgets(data["budgets"])
    values = _fitting("the experiment", Experiment(), data)
    if "problems" in values:
        values["problems"] = tuple(SHORT.get(name, name) for name in values["problems"])
    elif models:
        values["problems"] = tuple(models)
    return Experiment(**values, models=models)


def _fitting(where: str, like: object, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with lists as tuples, if each is of the kind of the attribute of its name."""
    known = {f.name: getattr(like, f.name) for f in fields(like)}  # type: ignore[arg-type]
    found = {}
    for name, value in data.items():
        _known(f"key in {where}:", name, known)
        value = tuple(value) if isinstance(value, list | tuple) else value
        kind: Any = type(known[name])
        if not isinstance(value, (float, int) if kind is float else kind) or value is True:
            raise TypeError(f"{name} = {value!r} in {where}; it must be a {kind.__name__}")
        for entry in value if isinstance(value, tuple) else ():
            if isinstance(entry, bool) or not isinstance(entry, _ENTRIES.get(name, int)):
                what = _ENTRIES.get(name, int).__name__
                raise TypeError(f"{entry!r} among the {name} of {where}; each must be a {what}")
        found[name] = value
    return found


# Of what kind the entries of lists are, if not whole numbers.
_ENTRIES: dict[str, type] = {"problems": str, "methods": str, "metrics": str, "rtols": float}


def parse_budgets(text: str) -> tuple[int, ...]:
    """Parse budgets: ``"10,20,40"``, or ``"5:100"`` for three to an octave, both ends included.

    Raises:
        ValueError: If it is something else.
    """
    budgets: list[int] = []
    for word in text.split(","):
        ends = word.strip().split(":")
        if not all(end.strip().isdecimal() and int(end) > 0 for end in ends) or len(ends) > 2:
            raise ValueError(
                f"budgets are whole numbers of at least 1, as in 10,20,40, or a range, as in 5:100; "
                f"got {text!r}"
            )
        budgets += _spread(int(ends[0]), int(ends[-1]))
    return tuple(dict.fromkeys(budgets))


def _spread(first: int, last: int) -> list[int]:
    if last < first:
        raise ValueError(f"the range {first}:{last} of budgets is empty")
    count = max(1, round(_PER_OCTAVE * math.log2(last / first)))
    return [round(n) for n in np.geomspace(first, last, count + 1)] if last > first else [first]


def around(budget: int) -> tuple[int, ...]:
    """Return budgets around one, itself included: what it takes to draw curves through it."""
    near = (round(budget * 2 ** (k / 3)) for k in range(-3, 4))
    return tuple(dict.fromkeys(n for n in near if n > 1))


def quick(experiment: Experiment, at: int | None = None) -> Experiment:
    """Return an experiment with few samples and few of its budgets, one among them, and tolerances."""
    few = set(_few(experiment.budgets)) | {at}
    return replace(
        experiment,
        samples=min(experiment.samples, 16),
        law_samples=min(experiment.law_samples, 512),
        budgets=tuple(budget for budget in experiment.budgets if budget in few),
        rtols=_few(experiment.rtols),
    )


def _few(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(values[i] for i in sorted({0, len(values) // 3, 2 * len(values) // 3}) if values)


def _known(what: str, name: str, known: Iterable[str]) -> None:
    known = tuple(known)
    if name not in known:
        hint = did_you_mean(str(name), known)
        raise ValueError(f"unknown {what} {name!r}; {hint}there are {', '.join(known)}")
