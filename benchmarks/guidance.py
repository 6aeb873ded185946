"""Measure guided denoisers and solvers of inverse problems against exact conditional mixtures.

1. Denoisers: the largest difference from the closed form, over guidance scales and noise levels.
2. Solves: the error against the same guided flow solved to 1e-11, per method, scale and NFE.
3. Laws at w = 1: samples against the exact conditional mixture.
4. Laws at w > 1, in one dimension by quadrature: samples against p(x) p(c|x)^w.
5. CFG++ under refinement.
6. Inverse problems: samples against the exact posterior mixture, per method and NFE.
7. The digits network: errors of guided solves; accuracy of an independent classifier on samples, and
   their diversity.

It takes three minutes of one core, and writes results and pictures:

    .venv/bin/python benchmarks/guidance.py
"""

from __future__ import annotations

import argparse
import functools
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from sklearn.svm import SVC
from torch import Tensor
from tqdm import tqdm

import sdekit as sk
from sdekit.digits import digits_images
from sdekit.distributions import GaussianMixture, LabelledMixture, posterior
from sdekit.records import cpu_model, write_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
DOUBLE, SEED = torch.float64, 0
EDM = sk.EDM()
HIGH, LOW = EDM.sigma_max, EDM.sigma_min
Record = dict[str, Any]

# 1 and 2: ten components in sixteen dimensions, five classes.
LAW = LabelledMixture(GaussianMixture.random(10, 16, seed=SEED), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
NONE = torch.tensor(LAW.num_classes)
SCALES, LEVELS = (0.5, 1.0, 2.0, 4.0, 8.0), (0.02, 0.1, 0.5, 2.0, 10.0)
STEPS = (5, 10, 20, 40, 80)
METHODS = {name: sk.methods()[name].solver for name in ("bayesian_adams", "adams2")}
METHODS["bayesian_adams, noise 1e-4"] = replace(
    METHODS["bayesian_adams"], scheme=sk.BayesianAdams(prior=sk.Prior(noise=1e-4))
)
METHODS |= {name: sk.methods()[name].solver for name in ("dpmpp_2m", "edm_euler")}
# 3: the law in two dimensions. 4 and 5: two classes in one dimension.
PLANE = LabelledMixture(GaussianMixture.random(6, 2, seed=1, width=0.25), [0, 0, 1, 1, 2, 2])
LINE = LabelledMixture(
    GaussianMixture([0.3, 0.3, 0.4], [[-1.0], [0.2], [1.0]], [0.09, 0.04, 0.16]), [0, 1, 0]
)
LINE_SCALES, LAMBDA = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0), 0.6
# 6: one coordinate of three is observed.
PRIOR = GaussianMixture.random(5, 3, seed=2)
MASK, NOISE, OBSERVATIONS, POINTS = torch.tensor([True, False, False]), 0.1, 4, 500
BUDGETS, ZETAS = (10, 20, 40, 80, 160), (0.05, 0.1, 0.2)
# 7
DIGITS_SCALES, DIGITS_STEPS, EACH, INTERVAL = (1.0, 2.0, 3.0, 5.0, 8.0), 20, 50, (0.2, 2.0)
REFERENCE = {"method": "heun", "steps": 200}


def rounded(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.double().square().mean().sqrt())


def labelled(law: LabelledMixture, count: int) -> Tensor:
    """Every class in turn."""
    return torch.arange(count) % law.num_classes


def free(law: LabelledMixture, scale: float, labels: Tensor) -> sk.ClassifierFree:
    """Classifier-free guidance of a labelled mixture."""
    return sk.ClassifierFree(
        law,
        scale,
        conditional={"class_labels": labels},
        unconditional={"class_labels": torch.tensor(law.num_classes)},
    )


def own_class(law: LabelledMixture, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    """The exact classifier, of each sample's own class."""
    return law.class_log_prob(x, sigma).gather(1, labels[:, None])[:, 0]


def tilted_denoiser(x: Tensor, sigma: float, labels: Tensor, scale: float) -> Tensor:
    """``x + σ² ∇ log p_σ(x) p_σ(c|x)^w``, from the densities of the classes alone."""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        shares = [LAW.mixture.weights[LAW.classes == c].sum().log() for c in range(LAW.num_classes)]
        joint = torch.stack(
            [LAW.given(c).log_prob(x, sigma) + share for c, share in enumerate(shares)], 1
        )
        marginal, own = joint.logsumexp(1), joint.gather(1, labels[:, None])[:, 0]
        (score,) = torch.autograd.grad((marginal + scale * (own - marginal)).sum(), x)
    return x.detach() + sigma**2 * score


def denoisers() -> Iterator[Record]:
    """1: largest difference from the closed form, in units of the largest value."""
    labels = labelled(LAW, 50)
    for scale in SCALES:
        worst = {"classifier_free": 0.0, "classifier": 0.0}
        guided = {
            "classifier_free": free(LAW, scale, labels),
            "classifier": sk.ClassifierGuided(
                LAW.mixture, functools.partial(own_class, LAW), scale, labels=labels
            ),
        }
        for sigma in LEVELS:
            x = LAW.mixture.sample(50, sigma, seed=SEED)
            exact = tilted_denoiser(x, sigma, labels, scale)
            for name, denoiser in guided.items():
                error = (denoiser(x, sigma) - exact).abs().max() / exact.abs().max()
                worst[name] = max(worst[name], float(error))
        yield {"scale": scale} | {k: rounded(v) for k, v in worst.items()}


def solves() -> Iterator[Record]:
    """2: errors of solves of the guided flow."""
    labels = labelled(LAW, 60)
    start = HIGH * torch.randn(
        60, LAW.dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(SEED)
    )
    for scale in tqdm(SCALES[1:], desc="solves", leave=False):
        flow = EDM.probability_flow(free(LAW, scale, labels))
        exact = sk.solve(flow, start, rtol=1e-11, sigmas=[HIGH, LOW]).x
        spread = rms(exact - exact.mean(0))
        for method, solver in METHODS.items():
            for steps in STEPS:
                found = sk.solve(flow, start, method=solver, steps=steps)
                yield {
                    "scale": scale,
                    "method": method,
                    "steps": steps,
                    "nfe": found.nfe,
                    "error": rounded(rms(found.x - exact)),
                    "spread": rounded(spread),
                }


def sliced(a: Tensor, b: Tensor) -> float:
    """Sliced W2 of equally many points, over 64 directions."""
    source = torch.Generator().manual_seed(SEED)
    directions = torch.randn(a.shape[1], 64, dtype=DOUBLE, generator=source)
    directions = directions / directions.norm(dim=0)
    return rms((a @ directions).sort(0).values - (b @ directions).sort(0).values)


def laws() -> Iterator[Record]:
    """3: at w = 1, samples of each class against exact draws, beside two sets of exact draws."""
    count = 8000
    for label in range(PLANE.num_classes):
        law = PLANE.given(label)
        labels = torch.full((count,), label)
        exact, other = law.sample(count, LOW, seed=1), law.sample(count, LOW, seed=2)
        wrappers = {
            "classifier_free": free(PLANE, 1.0, labels),
            "classifier": sk.ClassifierGuided(
                PLANE.mixture, functools.partial(own_class, PLANE), 1.0, labels=labels
            ),
        }
        rate = PLANE.class_log_prob(exact, LOW).argmax(1).eq(label).double().mean()
        for name, denoiser in wrappers.items():
            for steps in (10, 20, 40):
                found = sk.sample(
                    EDM,
                    denoiser,
                    (count, 2),
                    method="bayesian_adams",
                    steps=steps,
                    seed=3,
                    dtype=DOUBLE,
                )
                mean, cov = law.moments(LOW)
                yield {
                    "class": label,
                    "wrapper": name,
                    "steps": steps,
                    "sliced_w2": rounded(sliced(found, exact)),
                    "floor": rounded(sliced(other, exact)),
                    "mean_error": rounded(float((found.mean(0) - mean).norm())),
                    "mean_floor": rounded(float((cov.trace() / count).sqrt())),
                    "classified": rounded(
                        float(PLANE.class_log_prob(found, LOW).argmax(1).eq(label).double().mean())
                    ),
                    "classified_exact": rounded(float(rate)),
                }


GRID = torch.linspace(-4, 4, 16001, dtype=DOUBLE)


def tilted_density(scale: float, label: int = 0) -> Tensor:
    """``p(x) p(c|x)^w``, normalised on the grid."""
    x = GRID[:, None]
    log = LINE.mixture.log_prob(x, LOW) + scale * LINE.class_log_prob(x, LOW)[:, label]
    density = log.exp()
    return density / torch.trapezoid(density, GRID)


def quantiles(density: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of a density on the grid."""
    cdf = torch.cumulative_trapezoid(density, GRID)
    cdf = torch.cat([cdf.new_zeros(1), cdf]) / cdf[-1]
    return torch.as_tensor(np.interp(levels.numpy(), cdf.numpy(), GRID.numpy()))


PROBABILITIES = (torch.arange(4000, dtype=DOUBLE) + 0.5) / 4000


def pushed(denoiser: Callable[..., Tensor], **options: object) -> Tensor:
    """Quantiles of what a flow makes of noise: in one dimension it is monotone."""
    start = HIGH * math.sqrt(2) * torch.erfinv(2 * PROBABILITIES - 1)[:, None]
    options = options or {"rtol": 1e-8, "sigmas": [HIGH, LOW]}
    return sk.solve(EDM.probability_flow(denoiser), start, **options).x[:, 0]


def density_of(values: Tensor) -> Tensor:
    """The density on the grid whose quantiles are given."""
    levels = np.interp(GRID.numpy(), values.numpy(), PROBABILITIES.numpy(), left=0.0, right=1.0)
    return torch.as_tensor(np.gradient(levels, GRID.numpy()))


def tilted() -> Iterator[Record]:
    """4: at w > 1 the flow does not sample p(x) p(c|x)^w."""
    labels = torch.zeros(len(PROBABILITIES), dtype=torch.int64)
    for scale in LINE_SCALES:
        found = pushed(free(LINE, scale, labels))
        wanted = quantiles(tilted_density(scale), PROBABILITIES)
        given = quantiles(tilted_density(1.0), PROBABILITIES)
        process = EDM.reverse(free(LINE, scale, torch.zeros(20000, dtype=torch.int64)), 1.0)
        start = HIGH * torch.randn(
            20000, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(SEED)
        )
        noisy = sk.solve(process, start, method="sea_w_theta", steps=60, seed=SEED).x[:, 0]
        noisy = noisy.sort().values[2::5]  # 4000 quantiles
        yield {
            "scale": scale,
            "mean": rounded(float(found.mean())),
            "std": rounded(float(found.std())),
            "mean_sde": rounded(float(noisy.mean())),
            "std_sde": rounded(float(noisy.std())),
            "mean_tilted": rounded(float(wanted.mean())),
            "std_tilted": rounded(float(wanted.std())),
            "w2_to_tilted": rounded(rms(found - wanted)),
            "w2_sde_to_tilted": rounded(rms(noisy - wanted)),
            "w2_to_conditional": rounded(rms(found - given)),
            "total_variation": rounded(
                float(torch.trapezoid((density_of(found) - tilted_density(scale)).abs(), GRID)) / 2
            ),
        }


def plus_plus() -> Iterator[Record]:
    """5: CFG++ at a fixed λ, and guidance at a fixed w, as steps are refined."""
    labels = torch.zeros(len(PROBABILITIES), dtype=torch.int64)
    told = {
        "conditional": {"class_labels": labels},
        "unconditional": {"class_labels": torch.tensor(LINE.num_classes)},
    }
    for n in (10, 20, 40, 80, 160, 320):
        record: Record = {"steps": n}
        for name, grid in (("log", sk.grids.log), ("karras", sk.grids.karras)):
            sigmas = grid(n, HIGH, LOW)
            weights = LAMBDA / (1 - sigmas[1:] / sigmas[:-1])
            plus = pushed(
                sk.cfg_plus_plus(LINE, LAMBDA, sigmas, **told), method="edm_euler", sigmas=sigmas
            )
            record |= {
                f"{name}_w_first": rounded(float(weights[0])),
                f"{name}_w_last": rounded(float(weights[-1])),
                f"{name}_mean": rounded(float(plus.mean())),
                f"{name}_std": rounded(float(plus.std())),
            }
        sigmas = sk.grids.log(n, HIGH, LOW)
        step = 1 - (LOW / HIGH) ** (1 / n)
        scaled = sk.cfg_plus_plus(LINE, 2.0 * step, sigmas, **told)
        fixed = pushed(scaled, method="edm_euler", sigmas=sigmas)
        limit = pushed(free(LINE, 2.0, labels))
        record["scaled_error"] = rounded(rms(fixed - limit))
        yield record


def wasserstein(a: Tensor, b: Tensor) -> float:
    """W2 of equally many points, by optimal assignment."""
    cost = torch.cdist(a, b).square().numpy()
    return math.sqrt(cost[linear_sum_assignment(cost)].mean())


def inverse() -> Iterator[Record]:
    """6: samples against the posterior; solver's error and model's error apart."""
    matrix = torch.eye(3, dtype=DOUBLE)[MASK]
    source = torch.Generator().manual_seed(SEED)
    truth = PRIOR.sample(OBSERVATIONS, seed=5)
    ys = truth @ matrix.mT + NOISE * torch.randn(OBSERVATIONS, 1, dtype=DOUBLE, generator=source)
    laws = [posterior(PRIOR, matrix, y, NOISE) for y in ys]
    exact = [law.sample(POINTS, LOW, seed=10 + i) for i, law in enumerate(laws)]
    other = [law.sample(POINTS, LOW, seed=20 + i) for i, law in enumerate(laws)]
    floor = float(np.mean([wasserstein(a, b) for a, b in zip(exact, other, strict=True)]))
    prior = [PRIOR.sample(POINTS, LOW, seed=30 + i) for i in range(OBSERVATIONS)]
    nothing = float(np.mean([wasserstein(a, b) for a, b in zip(exact, prior, strict=True)]))
    start = HIGH * torch.randn(POINTS, 3, dtype=DOUBLE, generator=source)

    def field(name: str, i: int, sigmas: np.ndarray) -> Callable[..., Tensor]:
        seen = sk.LinearObservation(matrix, ys[i], NOISE)
        values = torch.zeros(3, dtype=DOUBLE)
        values[MASK] = ys[i]
        if name.startswith("DPS step"):
            return sk.DPS(PRIOR, seen, float(name.split()[-1]), sigmas=sigmas)
        return {
            "exact": laws[i],
            "PiGDM": sk.PiGDM(PRIOR, seen),
            "reconstruction": sk.PiGDM(PRIOR, seen, sigma_data=math.inf),
            "DPS": sk.DPS(PRIOR, seen),
            "replacement": sk.Replaced(PRIOR, MASK, values),
        }[name]

    names = ["exact", "PiGDM", "reconstruction", "DPS", "replacement"]
    names += [f"DPS step {zeta}" for zeta in ZETAS]
    for name in tqdm(names, desc="inverse", leave=False):
        limits: list[Tensor] = []
        if "step" not in name:  # the limit of fine steps
            limits = [
                sk.solve(
                    EDM.probability_flow(field(name, i, np.array([]))),
                    start,
                    rtol=1e-5,
                    sigmas=[HIGH, LOW],
                ).x
                for i in range(OBSERVATIONS)
            ]
        for steps in (*BUDGETS, *(("limit",) if limits else ())):
            found = limits
            if steps != "limit":
                sigmas = sk.grids.karras(steps, HIGH, LOW)
                options: Record = (
                    {"method": "edm_euler", "sigmas": sigmas}
                    if "step" in name
                    else {
                        "method": "bayesian_adams",
                        "steps": steps,
                        "sigma_data": PRIOR.sigma_data,
                    }
                )
                found = [
                    sk.solve(EDM.probability_flow(field(name, i, sigmas)), start, **options).x
                    for i in range(OBSERVATIONS)
                ]
            yield (
                {"method": name, "nfe": steps}
                | judged(found, laws, exact, limits)
                | {
                    "w2_floor": rounded(floor),
                    "w2_prior": rounded(nothing),
                }
            )


def judged(
    found: list[Tensor], laws: list[GaussianMixture], exact: list[Tensor], limits: list[Tensor]
) -> Record:
    """Means over observations: W2, errors of moments, and the solver's own error."""
    records = []
    for i, (points, law) in enumerate(zip(found, laws, strict=True)):
        mean, cov = law.moments(LOW)
        records.append(
            {
                "w2": wasserstein(points, exact[i]),
                "mean_error": float((points.mean(0) - mean).norm() / cov.trace().sqrt()),
                "std_ratio": float((points.T.cov().trace() / cov.trace()).sqrt()),
                **({"solver_error": rms(points - limits[i])} if limits else {}),
            }
        )
    return {k: rounded(float(np.mean([r[k] for r in records]))) for k in records[0]}


def digits(pictures: dict[str, Tensor]) -> tuple[Record, list[Record]]:
    """7: samples of the digits network, judged by a classifier that never saw it."""
    images, truth = digits_images("train")
    held_out, held_truth = digits_images("held_out")
    judge = SVC(C=10, gamma="scale", random_state=SEED)
    judge.fit(images.flatten(1).numpy(), truth.numpy())
    labels = torch.arange(10).repeat_interleave(EACH)
    network = sk.load_digits_denoiser()

    def spread(x: Tensor, y: Tensor) -> float:
        within = [x[y == c].flatten(1).double().var(0).sum() for c in range(10)]
        return math.sqrt(float(torch.stack(within).mean()))

    real = spread(images, truth)
    summary: Record = {
        "classifier": "sklearn.svm.SVC(C=10), trained on the training split",
        "accuracy_held_out": rounded(judge.score(held_out.flatten(1).numpy(), held_truth.numpy())),
        "diversity_held_out": rounded(spread(held_out, held_truth) / real),
    }
    rows = []
    none = torch.tensor(10)

    def guided(
        scale: float, rescale: float = 0.0, interval: tuple[float, float] | None = None
    ) -> sk.ClassifierFree:
        return sk.ClassifierFree(
            network,
            scale,
            conditional={"class_labels": labels},
            unconditional={"class_labels": none},
            rescale=rescale,
            interval=interval,
        )

    grid = sk.grids.karras(DIGITS_STEPS, network.sigma_max, network.sigma_min)
    variants: dict[str, tuple[Callable[..., Tensor], Record]] = {}
    default: Record = {"method": "adams2", "steps": DIGITS_STEPS}
    for scale in DIGITS_SCALES:
        variants[f"w = {scale:g}"] = guided(scale), default
    for scale in DIGITS_SCALES[1:]:
        variants[f"w = {scale:g}, σ in ({INTERVAL[0]}, {INTERVAL[1]}]"] = (
            guided(scale, interval=INTERVAL),
            default,
        )
    variants["w = 8, rescale 0.7"] = guided(8.0, rescale=0.7), default
    variants["w = 8, clipped to [-1, 1]"] = sk.StaticThreshold(guided(8.0)), default
    variants["w = 8, dynamic threshold"] = sk.DynamicThreshold(guided(8.0)), default
    for value in (0.3, 0.6, 1.0):
        variants[f"CFG++ {value:g}"] = (
            sk.cfg_plus_plus(
                network,
                value,
                grid,
                conditional={"class_labels": labels},
                unconditional={"class_labels": none},
            ),
            {"method": "edm_euler", "sigmas": grid},
        )
    generator = torch.Generator().manual_seed(SEED)
    start = network.sigma_max * torch.randn(len(labels), 1, 8, 8, generator=generator)
    for name, (denoiser, options) in tqdm(variants.items(), desc="digits", leave=False):
        with torch.no_grad():
            solved = sk.solve(EDM.probability_flow(denoiser), start, **options)
        x = solved.x
        pictures[name] = x
        rows.append(
            {
                "guidance": name,
                "nfe": solved.nfe,
                "accuracy": rounded(judge.score(x.flatten(1).numpy(), labels.numpy())),
                "diversity": rounded(spread(x, labels) / real),
                "outside": rounded(float((x.abs() > 1.1).double().mean())),
            }
        )
    return summary, rows


def digits_solves() -> Iterator[Record]:
    """7: errors of solves of the guided network, against many steps of Heun."""
    network, labels = sk.load_digits_denoiser(), torch.arange(10).repeat_interleave(4)
    start = network.sigma_max * torch.randn(
        len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(SEED)
    )
    for interval in (None, INTERVAL):
        for scale in tqdm(
            (3.0, 5.0, 8.0) if interval else (1.0, 3.0, 5.0, 8.0), desc="digits", leave=False
        ):
            flow = EDM.probability_flow(
                sk.ClassifierFree(
                    network,
                    scale,
                    conditional={"class_labels": labels},
                    unconditional={"class_labels": torch.tensor(10)},
                    interval=interval,
                )
            )
            exact = sk.solve(flow, start, **REFERENCE).x
            for method, solver in METHODS.items():
                for steps in (10, 20, 40):
                    found = sk.solve(flow, start, method=solver, steps=steps)
                    yield {
                        "scale": scale,
                        "interval": "all" if interval is None else str(interval),
                        "method": method,
                        "steps": steps,
                        "nfe": found.nfe,
                        "error": rounded(rms(found.x - exact)),
                    }


def draw(record: Record, pictures: dict[str, Tensor], folder: Path) -> None:
    """Draw the three pictures."""
    names = ("w = 1", "w = 3", "w = 8", f"w = 8, σ in ({INTERVAL[0]}, {INTERVAL[1]}]")
    figure, axes = plt.subplots(1, 4, figsize=(11, 4.6), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        x = pictures[name].view(10, EACH, 8, 8)[:, :7]
        tiles = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
        image = tiles.permute(0, 2, 1, 3).reshape(100, 70)
        axis.imshow(image, cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
        row = next(r for r in record["digits"] if r["guidance"] == name)
        axis.set_title(
            f"{name}\naccuracy {row['accuracy']:.3f}, diversity {row['diversity']:.2f}", fontsize=9
        )
        axis.axis("off")
    figure.savefig(folder / "guidance_digits.png", dpi=130, bbox_inches="tight")
    plt.close(figure)

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(SCALES)))
    styles = dict(zip(METHODS, ("-", "-.", (0, (5, 1, 1, 1, 1, 1)), "--", ":"), strict=True))
    for scale, colour in zip(SCALES, colours, strict=True):
        if scale in (0.5, 4.0):  # not measured; not drawn
            continue
        for method in METHODS:
            rows = [r for r in record["solves"] if (r["scale"], r["method"]) == (scale, method)]
            left.loglog(
                [r["nfe"] for r in rows],
                [r["error"] for r in rows],
                ls=styles[method],
                color=colour,
                marker=".",
                label=f"w = {scale:g}" if method == "bayesian_adams" else None,
            )
    for method in METHODS:
        left.plot([], [], ls=styles[method], color="black", label=method)
    left.set(xlabel="NFE", ylabel="RMS error", title="Solves of the guided flow")
    left.set_ylim(top=10)
    left.legend(fontsize=7, loc="lower left")
    for name in dict.fromkeys(r["method"] for r in record["inverse"]):
        rows = [r for r in record["inverse"] if r["method"] == name and r["nfe"] != "limit"]
        right.loglog([r["nfe"] for r in rows], [r["w2"] for r in rows], marker=".", label=name)
    right.axhline(record["inverse"][0]["w2_floor"], color="grey", lw=1, ls="--")
    right.axhline(record["inverse"][0]["w2_prior"], color="grey", lw=1, ls=":")
    right.set(xlabel="NFE", ylabel="W₂ to the exact posterior", title="Inverse problem")
    right.set_ylim(top=4 * record["inverse"][0]["w2_prior"])
    right.legend(fontsize=8)
    figure.savefig(folder / "guidance_errors.png", dpi=130)
    plt.close(figure)

    labels = torch.zeros(len(PROBABILITIES), dtype=torch.int64)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained", sharey=True)
    for axis, scale in zip(axes, (1.0, 2.0, 5.0), strict=True):
        bins = np.linspace(-2.5, 2.5, 201)
        found = pushed(free(LINE, scale, labels))
        axis.hist(found.numpy(), bins, density=True, color="tab:blue", alpha=0.4, label="sampled")
        axis.plot(GRID, tilted_density(scale), "k", lw=1, label="p(x) p(c|x)^w")
        axis.plot(GRID, tilted_density(1.0), "grey", lw=1, ls=":", label="p(x|c)")
        axis.set(title=f"w = {scale:g}", xlabel="x", xlim=(-2.5, 2.5))
    axes[0].legend(fontsize=8)
    figure.savefig(folder / "guidance_tilted.png", dpi=130)
    plt.close(figure)


def show(title: str, rows: list[Record]) -> None:
    """Print records as a table."""
    table = Table(*rows[0], box=None, title=title)
    for row in rows:
        table.add_row(*(str(row.get(key, "")) for key in rows[0]))
    Console(width=160).print(table)


@torch.no_grad()
def main() -> None:
    """Measure, print, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/guidance.json")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs/_static")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pictures: dict[str, Tensor] = {}
    record: Record = {}
    for measure in (denoisers, solves, laws, tilted, plus_plus, inverse, digits_solves):
        record[measure.__name__] = list(measure())
        show(measure.__name__, record[measure.__name__])
    record["digits_setting"], record["digits"] = digits(pictures)
    print(record["digits_setting"])
    show("digits", record["digits"])
    draw(record, pictures, arguments.pictures)
    write_json(
        {
            "configuration": {
                "seed": SEED,
                "process": f"EDM, σ from {HIGH:g} to {LOW:g}",
                "dtype": "float64; digits float32",
                "solves": "GaussianMixture.random(10, 16, seed=0), five classes, 60 samples; "
                "reference: the default with rtol = 1e-11",
                "laws": "GaussianMixture.random(6, 2, seed=1, width=0.25), three classes",
                "tilted": "0.3 N(-1, 0.09) + 0.4 N(1, 0.16) is the class, 0.3 N(0.2, 0.04) another; "
                "4000 quantiles; SDE: 60 steps, 20000 samples",
                "plus_plus": f"λ = {LAMBDA}, Euler; scaled: λ of w = 2",
                "inverse": f"GaussianMixture.random(5, 3, seed=2), first coordinate observed with "
                f"noise {NOISE}, {OBSERVATIONS} observations, {POINTS} samples of each; "
                "mean_error in units of the posterior's standard deviation",
                "digits": f"{EACH} samples of a class, {DIGITS_STEPS} steps of adams2; CFG++: of "
                "Euler on "
                "the Karras grid; errors of solves: 40 samples, against 200 steps of Heun; "
                "diversity: standard "
                "deviation within classes over that of the training images; outside: share of "
                "pixels beyond ±1.1",
            },
            "versions": {
                "python": platform.python_version(),
                **{k: version(k) for k in ("sdekit", "torch", "numpy", "scipy", "scikit-learn")},
            },
            "hardware": {"cpu": cpu_model(), "torch_threads": 1},
            **record,
        },
        arguments.out,
    )


if __name__ == "__main__":
    main()
