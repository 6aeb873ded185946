"""Measure log-likelihoods: against exact densities, against themselves, and of real digits.

1. The worst error, in nats per dimension, over processes and laws whose density is known, with the
   exact trace. The prior is the law itself where the highest noise level is finite.
2. Whether estimates of the divergence are unbiased and know their error: 200 repeats of one state.
3. Bits per dimension of the digits network on the 297 images that it has not seen, dequantised
   uniformly, with and without the class, for several lowest noise levels.

It takes three minutes on one core:

    .venv/bin/python benchmarks/likelihood.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

import sdekit as sk
from sdekit.digits import digits_images
from sdekit.records import provenance, write_json

ROOT = Path(__file__).parents[1]
DOUBLE = torch.float64
SEED, SAMPLES, REPEATS = 0, 16, 200

PROCESSES: dict[str, sk.AffineSDE] = {
    "VP": sk.VP(),
    "SubVP": sk.SubVP(),
    "VE": sk.VE(),
    "EDM": sk.EDM(),
    "CosineVP": sk.CosineVP(),
    "RectifiedFlow": sk.RectifiedFlow(),
    "DiscreteVP": sk.DiscreteVP(
        torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=DOUBLE), 0)
    ),
    "AffineSDE(f=-t, g=1+t²)": sk.AffineSDE(
        f=lambda t: -t, g=lambda t: 1 + t**2, T=3.0, t_min=1e-4
    ),
}
Law: TypeAlias = sk.GaussianMixture | sk.Product
LAWS: dict[str, Law] = {
    "Gaussian, variances 1 to 0.001": sk.Gaussian([0.3, -0.2, 0.1], [1.0, 0.03, 0.001]),
    "GaussianMixture.random(4, 2)": sk.GaussianMixture.random(4, 2, seed=0),
    "GaussianMixture.random(5, 8)": sk.GaussianMixture.random(5, 8, seed=0),
    "Product.random(3, 2)": sk.Product.random(3, 2, seed=0),
}
TOLERANCES = (1e-3, 1e-5, 1e-8)  # at the last one errors are below 1e-6
ESTIMATORS: dict[str, sk.Divergence] = {
    "Hutchinson(12)": sk.Hutchinson(12),
    "Hutchinson(12, 'gaussian')": sk.Hutchinson(12, "gaussian"),
    "HutchPlusPlus(12)": sk.HutchPlusPlus(12),
}
ESTIMATOR_LAW, ESTIMATOR_TOLERANCE = "GaussianMixture.random(5, 8)", 1e-5
# Pixels are multiples of 1/8; the network is trained from σ = 0.002 on.
BIN, LOWEST, PROBES, DIGITS_TOLERANCE = 1 / 8, (0.002, 0.01, 0.02, 0.05, 0.1), 4, 1e-4


def known(process: sk.AffineSDE, law: Law, count: int) -> tuple[Tensor, Tensor]:
    """Return states at the lowest noise level and their exact log-density."""
    level = process.sigma_min
    scale = float(process.on_host("scale", process.on_host("time", level)))
    x_hat = law.sample(count, level, seed=SEED)
    return x_hat * scale, law.log_prob(x_hat, level) - law.dim * math.log(scale)


def exact_errors() -> list[dict[str, Any]]:
    """Errors with the exact trace, per process and law, for every tolerance."""
    records = []
    pairs = [(p, name) for p in PROCESSES for name in LAWS]
    for key, name in tqdm(pairs, desc="exact densities"):
        process, law = PROCESSES[key], LAWS[name]
        x, exact = known(process, law, SAMPLES)
        prior = law if math.isfinite(process.sigma_max) else None
        record: dict[str, Any] = {"process": key, "law": name}
        for rtol in TOLERANCES:
            found = sk.log_likelihood(process, law, x, divergence="exact", prior=prior, rtol=rtol)
            error = float((found.log_prob - exact).abs().max()) / law.dim
            record |= {f"error_{rtol:g}": rounded(error), f"nfe_{rtol:g}": found.nfe}
        records.append(record)
        tqdm.write("  ".join(f"{k} {v}" for k, v in record.items()))
    return records


def calibration() -> list[dict[str, Any]]:
    """Errors of estimates in units of what they say themselves."""
    process, law, records = sk.VP(), LAWS[ESTIMATOR_LAW], []
    x, exact = known(process, law, 1)
    for name, divergence in tqdm(ESTIMATORS.items(), desc="estimators"):
        found = sk.log_likelihood(
            process,
            law,
            x.expand(REPEATS, -1),
            divergence=divergence,
            seed=range(REPEATS),
            prior=law,
            rtol=ESTIMATOR_TOLERANCE,
        )
        errors, said = found.log_prob - exact, found.standard_error
        spread = float(errors.std())
        record = {
            "estimator": name,
            "columns": divergence.columns,
            "mean_z": rounded(float(errors.mean()) / (spread / math.sqrt(REPEATS))),
            "spread_over_said": rounded(spread / float(said.square().mean().sqrt())),
            "spread_nats": rounded(spread),
            "within_2_standard_errors": rounded(float((errors.abs() < 2 * said).double().mean())),
        }
        records.append(record)
        tqdm.write("  ".join(f"{k} {v}" for k, v in record.items()))
    return records


def dequantised(images: Tensor) -> Tensor:
    """Spread pixels uniformly over their bins."""
    source = torch.Generator().manual_seed(SEED)
    return images.double() + BIN * (torch.rand(images.shape, generator=source, dtype=DOUBLE) - 0.5)


def reference_bits() -> dict[str, float]:
    """Bits per dimension of held-out digits under the simplest models of the others."""
    train, held_out = (digits_images(split)[0].flatten(1) for split in ("train", "held_out"))
    x = dequantised(train.repeat(20, 1))
    gaussian = sk.Gaussian(x.mean(0), x.T.cov())
    nats = -gaussian.log_prob(dequantised(held_out)) / gaussian.dim
    values = torch.arange(17)[:, None, None] * BIN - 1
    counts = (train == values).sum(1) + 1.0  # (17, 64), one more than seen
    chosen = ((held_out + 1) / BIN).long()
    pixels = -(counts / counts.sum(0)).log2().gather(0, chosen).mean()
    return {
        "gaussian": rounded(float(nats.mean()) / math.log(2) - math.log2(BIN)),
        "independent_pixels": rounded(float(pixels)),
    }


def digits_bits() -> list[dict[str, Any]]:
    """Bits per dimension of held-out digits."""
    images, labels = digits_images("held_out")
    x = dequantised(images)
    network = sk.load_digits_denoiser(dtype=DOUBLE)
    denoisers = {"class": sk.Conditioned(network, class_labels=labels), "no class": network}
    runs = [(name, low) for low in LOWEST for name in denoisers]
    records = []
    for name, low in tqdm(runs, desc="digits"):
        found = sk.log_likelihood(
            sk.EDM(),
            denoisers[name],
            x,
            divergence=sk.Hutchinson(PROBES),
            seed=range(len(x)),
            sigmas=[low, network.sigma_max],
            rtol=DIGITS_TOLERANCE,
        )
        bits, standard_error = found.bits_per_dim(BIN)
        record = {
            "given": name,
            "sigma_min": low,
            "bits_per_dim": rounded(float(bits.mean())),
            "standard_error_of_images": rounded(float(bits.std()) / math.sqrt(len(x))),
            "standard_error_of_probes": rounded(
                float(standard_error.square().mean().sqrt()) / math.sqrt(len(x))
            ),
            "nfe": found.nfe,
        }
        records.append(record)
        tqdm.write("  ".join(f"{k} {v}" for k, v in record.items()))
    return records


def rounded(value: float) -> float:
    """Four digits are enough to judge by."""
    return float(f"{value:.4g}")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure log-likelihoods.")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks/results/likelihood.json",
        help="JSON file to write",
    )
    out = parser.parse_args().out
    torch.set_num_threads(1)
    errors, estimators, digits = exact_errors(), calibration(), digits_bits()
    record = {
        "configuration": {
            "method": "variable_adams, float64",
            "seed": SEED,
            "samples": SAMPLES,
            "error": "largest error of log_prob over the samples, nats per dimension",
            "repeats": REPEATS,
            "law_of_estimators": ESTIMATOR_LAW,
            "rtol_of_estimators": ESTIMATOR_TOLERANCE,
            "digits": "297 held-out images, uniformly dequantised, EDM process",
            "bin_width": BIN,
            "probes_of_digits": PROBES,
            "rtol_of_digits": DIGITS_TOLERANCE,
        },
        **provenance(("sdekit", "torch", "numpy")),
        "worst_error": {
            f"{rtol:g}": max(record[f"error_{rtol:g}"] for record in errors) for rtol in TOLERANCES
        },
        "errors": errors,
        "estimators": estimators,
        "digits": digits,
        "references_of_digits": reference_bits(),
    }
    write_json(record, out)


if __name__ == "__main__":
    main()
