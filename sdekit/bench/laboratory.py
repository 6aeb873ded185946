"""Runs an experiment: what a store does not know yet is measured, and kept the moment it is known."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from joblib import Parallel, delayed
from torch import nn
from tqdm.auto import tqdm

from ..cli_models import PROCESSES, load_model, said
from ..denoisers import known_sigma_data, layers
from ..processes import EDM
from ..workers import Workers
from .densities import likelihood_error
from .entries import Run
from .experiment import Experiment, Task, UserModel
from .measurements import Measurement, ProblemCard, Results, key_of
from .metrics import DENSE_TOLERANCE, LAW, LIKELIHOOD, METRICS, PATH, PathJudge, dense_reference
from .problems import REFERENCE_TOLERANCE, SIGMA_MAX, SIGMA_MIN, Problem, make_problem
from .store import Store, Writer
from .weak import Judge, law_metrics_known

_DATA_SEED = 9000  # the data whose densities are asked for are other samples than those solved for
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def run_experiment(
    experiment: Experiment,
    folder: Path,
    *,
    jobs: int = 1,
    workers: Workers | None = None,
    progress: bool = False,
) -> Results:
    """Measure what is missing in a folder.

    A run that was killed goes on where it was; of a run that is asked for more, only that is measured.

    Args:
        experiment: What to run.
        folder: Where the results are kept.
        jobs: Processes that measure; this one alone appends.
        workers: Which part of the experiment falls to this process, if many share it.
        progress: Whether to show a progress bar.

    Returns:
        All results of the experiment that the folder has, of whichever process.

    Raises:
        ValueError: If the folder is of another model, or another process is appending to it.
        RuntimeError: If a reference solution cannot be computed.
    """
    workers = workers or Workers()
    store = Store(folder)
    known = store.measurements()
    run = os.urandom(8).hex()
    # A model that has changed is noticed, and one that cannot be solved, before anything is measured.
    for name in experiment.models:
        _prepare(run, experiment, name, experiment.samples, experiment.seeds[0], folder)
    tasks = [
        task
        for task in workers.share(list(experiment.plan()))
        if (m := known.get(task.setting.digest)) is None or set(task.metrics) - set(m.metrics)
    ]
    with Writer(store, f"{workers.rank}-of-{workers.world}") as writer:
        environment = store.add_environment([task.entry.package for task in tasks])
        measured = _measure_all(tasks, experiment, folder, jobs, run)
        for measurement in tqdm(measured, total=len(tasks), disable=not progress, desc="bench"):
            writer.add(replace(measurement, environment=environment))
    return collect(experiment, folder)


def collect(experiment: Experiment, folder: Path) -> Results:
    """Return the results of an experiment that a folder has."""
    store = Store(folder)
    known = store.measurements()
    found: dict[str, Measurement] = {}
    for task in experiment.plan():
        m = known.get(task.setting.digest)
        if m is not None:
            metrics = {name: m.metrics[name] for name in experiment.metrics if name in m.metrics}
            found[task.setting.digest] = replace(m, metrics=metrics)
    environments = store.environments()
    used = dict.fromkeys(m.environment for m in found.values())
    return Results(
        title=experiment.title,
        configuration=asdict(experiment),
        problems=_cards(experiment, store),
        measurements=tuple(found.values()),
        environments={key: environments[key] for key in used if key in environments},
        date=store.date(),
    )


def _cards(experiment: Experiment, store: Store) -> dict[str, ProblemCard]:
    """Return a card for each problem: of its sizes and seeds in the experiment, the largest floors."""
    known, cards = store.cards(), {}
    for name in experiment.problems:
        found = [
            known[key]
            for samples in (experiment.samples, experiment.law_samples)
            for seed in experiment.seeds
            if (key := _card_key(experiment, name, samples, seed)) in known
        ]
        floors: dict[str, float] = {}
        for metric, value in (item for card in found for item in card.floors.items()):
            floors[metric] = max(value, floors.get(metric, 0.0))
        if found:
            made = next((card.reference for card in found if card.reference), "")
            cards[name] = replace(found[0], floors=floors, reference=made)
    return cards


def _measure_all(
    tasks: Sequence[Task], experiment: Experiment, folder: Path, jobs: int, run: str
) -> Iterable[Measurement]:
    """Measure in the order of the tasks, so that the same run leaves the same files."""
    if jobs == 1:
        return (_measure(task, experiment, folder, run) for task in tasks)
    measured: Iterator[Measurement] = Parallel(n_jobs=jobs, return_as="generator")(
        delayed(_measure_alone)(task, experiment, folder, run) for task in tasks
    )
    return measured


def _measure_alone(task: Task, experiment: Experiment, folder: Path, run: str) -> Measurement:
    torch.set_num_threads(1)  # its neighbours have the other cores
    return _measure(task, experiment, folder, run)


def _measure(task: Task, experiment: Experiment, folder: Path, run: str) -> Measurement:
    """Solve at a setting, and judge what comes of it."""
    setting = task.setting
    prepared = _prepare(run, experiment, setting.problem, setting.samples, setting.seed, folder)
    solved = task.entry.run(prepared.problem, setting, path="path" in task.metrics)
    values: dict[str, float] = {}
    if solved.x is not None and solved.status == "success":
        values = prepared.judge(solved, task)
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    return Measurement(
        setting=setting,
        package=task.entry.package,
        nfe=float(solved.nfe.mean()),
        nfe_max=int(solved.nfe.max(initial=0)),
        steps=solved.steps,
        metrics={name: finite.get(name) for name in task.metrics},
        status=solved.status,
        seconds=solved.seconds,
        network_seconds=solved.network_seconds,
    )


@dataclass(frozen=True)
class _Prepared:
    """A problem, and what its solutions are judged by.

    Attributes:
        problem: The problem.
        path: Judges errors along paths, if they are asked for.
        law: Judges errors of laws, if they are asked for.
    """

    problem: Problem
    path: PathJudge | None
    law: Judge | None

    def judge(self, run: Run, task: Task) -> dict[str, float]:
        """Return the values of the metrics of a task."""
        assert run.x is not None
        values: dict[str, float] = {}
        wanted = {kind: _of_kind(task.metrics, kind) for kind in (PATH, LAW, LIKELIHOOD)}
        if self.path is not None and wanted[PATH]:
            values |= self.path(run.x, run.sigmas, run.states)
        if self.law is not None and wanted[LAW]:
            values |= self.law.measure(run.x, wanted[LAW])
        solver = task.entry.own_flow
        if wanted[LIKELIHOOD] and solver is not None and run.sigmas is not None:
            rtol = task.setting.rtol
            seed = _DATA_SEED + task.setting.seed
            values["nll"], _ = likelihood_error(
                self.problem, solver, run.sigmas, rtol=rtol, seed=seed
            )
        return {name: value for name, value in values.items() if name in task.metrics}


def _of_kind(metrics: Iterable[str], kind: str) -> tuple[str, ...]:
    return tuple(name for name in metrics if METRICS[name].kind == kind)


def _at_size(experiment: Experiment, samples: int) -> frozenset[str]:
    """Return the metrics that are measured of so many samples."""
    return frozenset(m for m in experiment.metrics if experiment.samples_of(m) == samples)


def _card_key(experiment: Experiment, name: str, samples: int, seed: int) -> str:
    """Return the key of what a store knows of a problem: its reference, and its card."""
    model = experiment.models.get(name)
    return f"{name}-{key_of([name, samples, seed, None if model is None else asdict(model)])}"


_prepared: dict[tuple[object, ...], _Prepared] = {}


def _prepare(
    run: str, experiment: Experiment, name: str, samples: int, seed: int, folder: Path
) -> _Prepared:
    """Make a problem, and what judges its solutions, once in a run: tasks come problem by problem."""
    key = (run, name, samples, seed)
    if key not in _prepared:
        while len(_prepared) > 1 or any(other[0] != run for other in _prepared):
            del _prepared[next(iter(_prepared))]
        _prepared[key] = _prepare_anew(experiment, name, samples, seed, folder)
    return _prepared[key]


def _prepare_anew(
    experiment: Experiment, name: str, samples: int, seed: int, folder: Path
) -> _Prepared:
    """Make a problem, and what judges its solutions; leave its card in the store."""
    store, model = Store(folder), experiment.models.get(name)
    problem = _make(name, samples, seed, model)
    key, metrics = _card_key(experiment, name, samples, seed), _at_size(experiment, samples)
    path, law, made = None, None, ""
    floors: dict[str, float] = {}
    if _of_kind(metrics, PATH):
        tolerance = REFERENCE_TOLERANCE if model is None else model.reference_tolerance
        reference = store.reference(key, problem, tolerance)
        made = (
            f"adaptive dopri5 against scipy's DOP853 differ by {reference.discrepancy:.1e} (RMS) in "
            f"{reference.nfe[0]} and {reference.nfe[1]} evaluations"
        )
        floors = {"rms": reference.floor, "sup": 10 * reference.largest}
        along, sigma_data = None, known_sigma_data(problem.denoiser) or float(reference.x.std())
        if "path" in metrics:
            dense = dense_reference(problem, sigma_data, max(tolerance, DENSE_TOLERANCE))
            along, floors["path"] = dense.states, dense.floor
        path = PathJudge(reference.x, states=along, sigma_data=sigma_data)
    wanted = _of_kind(metrics, LAW)
    if wanted and law_metrics_known(problem.law):
        law = Judge(problem.law, problem.sigma_min)
        floors |= law.floors(samples, wanted)
    card = ProblemCard(
        name=name,
        title=problem.title,
        event_shape=tuple(problem.start.shape[1:]),
        sigma_max=problem.sigma_max,
        sigma_min=problem.sigma_min,
        sigma_data=known_sigma_data(problem.denoiser),
        reference=made,
        floors={metric: floors[metric] for metric in sorted(metrics & floors.keys())},
    )
    store.add_card(key, card)
    return _Prepared(problem, path, law)


def _make(name: str, samples: int, seed: int, model: UserModel | None) -> Problem:
    """Make a problem of the benchmark, or of a user's model.

    Raises:
        ValueError: If there is no such model, or it does not take such samples.
    """
    if model is None:
        return make_problem(name, samples=samples, seed=seed)
    device, dtype = torch.device(model.device), _DTYPES[model.dtype]
    found = load_model(model.denoiser, None, device)
    shape = model.shape or found.event_shape
    if shape is None:
        raise ValueError(
            f"{model.denoiser} does not say what shape its samples have; give shape, as in "
            "--shape 3,32,32"
        )
    *_, inner = layers(found.denoiser)
    if isinstance(inner, nn.Module):
        inner.to(dtype)
    process = PROCESSES[model.process]() if model.process else found.process or EDM()
    source = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, *shape, generator=source, dtype=torch.float64)
    # Processes that begin in pure noise, or end in data, are solved as far as the other problems.
    sigma_max = process.sigma_max if math.isfinite(process.sigma_max) else SIGMA_MAX
    sigma_min = process.sigma_min or SIGMA_MIN
    start = (sigma_max * noise).to(device, dtype)
    problem = Problem(
        name=name,
        title=f"{model.denoiser} under {type(process).__name__}",
        denoiser=found.denoiser,
        start=start,
        process=process,
        sigma_max=sigma_max,
        sigma_min=sigma_min,
    )
    _try(problem)
    return problem


@torch.no_grad()
def _try(problem: Problem) -> None:
    """Refuse a model that does not take such samples, before anything is measured.

    Raises:
        ValueError: What it says.
    """
    x = problem.start  # all of it: conditioning may be that of each sample
    level = x.new_tensor(problem.sigma_max)
    try:
        problem.denoiser(x, level.expand(len(x)))
        denoised = problem.denoiser(x, level)
    except Exception as error:  # the model is not ours: it may raise anything
        raise ValueError(
            f"the denoiser of {problem.title} does not take samples {tuple(x.shape)} of {x.dtype} "
            f"and noise levels () and (B,): {said(error)}; shape and dtype say what it is given"
        ) from error
    if not isinstance(denoised, torch.Tensor) or denoised.shape != x.shape:
        shape = tuple(denoised.shape) if isinstance(denoised, torch.Tensor) else type(denoised)
        raise ValueError(f"the denoiser of {problem.title} returns {shape} of {tuple(x.shape)}")
