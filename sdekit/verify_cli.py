"""The command ``sdekit verify``: claims of the literature, tried."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import torch
import typer

from .cli_models import imported, said
from .sde import ForwardSDE, check_output, noise_kind
from .terminal import console, refuse, words
from .theory.report import print_findings, write_findings
from .theory.verify import applicable, choose, load_claims
from .theory.verify import verify as try_claims


def verify(
    claim: Annotated[str, typer.Option(help="Some claims only, by name.")] = "",
    source: Annotated[str, typer.Option(help="Those of some works, as in edm,chan.")] = "",
    tag: Annotated[str, typer.Option(help="Those of some topics, as in reverse.")] = "",
    claims: Annotated[
        str, typer.Option(help="A module whose claims of your own are tried, too.")
    ] = "",
    sde: Annotated[
        str,
        typer.Option(
            help="package.module:MySDE, a forward SDE of your own, a class without arguments or an "
            "object: all claims that apply to it are tried on it."
        ),
    ] = "",
    out: Annotated[
        Path, typer.Option(help="Folder of verify.json and verify.html.", file_okay=False)
    ] = Path("results/verify"),
    seed: Annotated[int, typer.Option(help="Seed of what the claims are tried on.")] = 0,
    first: Annotated[bool, typer.Option("--first", help="Stop at the first that fails.")] = False,
) -> None:
    """Try statements of the literature, and of yours; exit code 1 if one does not hold."""
    # States of a few numbers: more threads cost more than they give.
    torch.set_num_threads(1)
    try:
        if claims:
            load_claims()  # before others, so that a name that is taken is theirs to change
            imported(claims)
        chosen = choose(words(claim), words(source), words(tag))
        process = _made(sde) if sde else None
        if process is not None:
            chosen = applicable(chosen, process)
    except ValueError as error:
        refuse(error)
    if not chosen:
        refuse("no claim is left: --claim, --source, --tag and --sde have none in common")
    try:
        out.mkdir(parents=True, exist_ok=True)  # now, not after minutes of work
    except OSError as error:
        refuse(f"cannot write into {out}: {error}")
    findings = try_claims(chosen, sde=process, seed=seed, stop=first, progress=True)
    print_findings(findings, console(120))
    typer.echo("\n".join(f"{path}" for path in write_findings(findings, seed, out)))
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


def _made(name: str) -> ForwardSDE:
    """Return a forward SDE that is named on the command line."""
    found = imported(name)
    if inspect.isclass(found):
        try:
            found = found()
        except Exception as error:
            raise ValueError(f"{name} cannot be made without arguments: {said(error)}") from error
    if not isinstance(found, ForwardSDE):
        raise ValueError(
            f"{name} is {type(found).__name__}; --sde names a ForwardSDE, a class or an object"
        )
    x = torch.tensor([[0.3, -0.5], [1.0, 0.7], [-0.2, 0.1]], dtype=torch.float64)
    t = torch.linspace(found.t_min, found.T, 5, dtype=torch.float64)[1:4]
    try:
        drift, G = found.drift(x.clone(), t), found.diffusion(x.clone(), t)
        check_output(drift, x, "drift")
        noise_kind(G, x)
        if drift.dtype != x.dtype:
            raise TypeError(f"the drift is {drift.dtype}")
    except Exception as error:
        raise ValueError(
            f"{name} does not take what claims are tried on, states (B, 2) and times (B,) in float64: "
            f"{said(error)}"
        ) from error
    return found
