"""Results of a benchmark that were never measured: their errors are known in closed form."""

from __future__ import annotations

from sdekit.bench.measurements import ADAPTIVE, Measurement, ProblemCard, Results, Setting

BUDGETS = (6, 8, 12, 16, 24, 48)
RTOLS = (1e-2, 1e-4, 1e-6)
# Method, grid, package, constant and order of its errors.
METHODS = (
    ("adams3", "karras", "sdekit", 10.0, 3),
    ("heun", "karras", "sdekit", 4.0, 2),  # its own grid
    ("ddim", "karras", "sdekit", 0.2, 1),
    ("rk4_theta", "log", "sdekit", 150.0, 4),
    ("diffusers Euler", "karras", "diffusers", 1.0, 1),
    ("my.module:solver", "log", "composed", 2.0, 1),
    ("dpmpp_2m", "log", "sdekit", 6.0, 2),
    ("azula DDIM", "log", "azula", 3.0, 1),
)
FLOOR = 5e-4  # the first two to come there do so at different budgets


def error(constant: float, order: int, n: float, problem: int) -> float:
    return (1 + problem) * constant * n**-order


def results(
    problems: tuple[str, ...] = ("first", "second"),
    methods=METHODS,
    seeds: tuple[int, ...] = (0,),
    spread: float = 1.0,
    title: str = "a title",
    status: str = "not finite",
) -> Results:
    """Make results: seed s has ``spread**s`` times the error; the last method fails at the last budget.

    A solve to a tolerance takes ``4 log10(1 / rtol)`` evaluations for ten tolerances. The
    metric ``w2`` was measured on grids only, as twice the other.
    """
    found = []
    for p, problem in enumerate(problems):
        for seed in seeds:
            factor = spread**seed
            for method, grid, package, constant, order in methods:
                for n in BUDGETS:
                    fails = method == methods[-1][0] and n == BUDGETS[-1]
                    value = None if fails else factor * error(constant, order, n, p)
                    metrics = {"rms": value, "w2": None if value is None else 2 * value}
                    setting = Setting(problem, method, grid, n, None, 32, seed)
                    found.append(
                        Measurement(
                            setting,
                            package,
                            float(n),
                            n,
                            n,
                            metrics,
                            status if fails else "success",
                            "e1",
                            seconds=0.01 * n,
                            network_seconds=0.004 * n,
                        )
                    )
            for k, rtol in enumerate(RTOLS):
                setting = Setting(problem, "variable_adams", ADAPTIVE, None, rtol, 32, seed)
                values = {"rms": factor * 10 * rtol}
                n = 8 * (k + 1)
                found.append(
                    Measurement(setting, "sdekit", n - 0.5, n, n, values, environment="e1")
                )
    cards = {
        name: ProblemCard(name, f"title of {name}", (2,), 80.0, 0.002, 0.5, "exact", {"rms": FLOOR})
        for name in problems
    }
    environments = {"e1": {"versions": {"sdekit": "0.1.0"}, "hardware": {"cpu": "a processor"}}}
    return Results(title, {"problems": problems, "samples": 32}, cards, tuple(found), environments)
