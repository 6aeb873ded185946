"""Two processes under torchrun, for the tests that need them."""

from __future__ import annotations

import os
import subprocess
import sys


def run_ranks(*args) -> tuple[int, str, str]:
    """Run two ranks, which are not left behind if they hang; return code, output and errors."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    with subprocess.Popen(
        [*launch, *rendezvous, *map(str, args)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its ranks, if it is asked to
            raise
    return process.returncode, output, errors
