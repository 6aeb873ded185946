"""The named samplers: each a line, a scheme in coordinates on a grid, with its source."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..citations import cite
from ..coordinates import Interpolated, LogData, LogNoise, Native, Noise, Velocity
from ..grids import balanced, flow_shift, karras, log, power_t, power_theta, uniform_t
from ..preconditioned import Preconditioned
from ..stochasticity import ErEta
from . import tableaus
from .adams import Adams
from .bayesian import BayesianAdams
from .exponential import (
    DPMSinglestep,
    ExponentialRK,
    dpm_solver_1,
    dpm_solver_2,
    dpm_solver_3,
    etd_rk4,
    res_2s,
    res_3s,
)
from .langevin import AnnealedCorrector, PredictorCorrector
from .noisy import Ancestral, Churn, Restart, Stochastic
from .published import IPNDM, DPMMultistep, GradientEstimation, UniPC
from .registry import Method, Solver
from .rk import RungeKutta
from .stochastic import EulerMaruyama, Milstein, ReverseDiffusion
from .stochastic_rk import HEUN, SEA, SEA_M, SEA_W, SHARK, SOSRA, SPARK, SRA1, SRA3, StochasticRK
from .variable_adams import VariableAdams

_TABLEAUS = {
    "euler": (tableaus.EULER, "[euler1768institutiones]"),
    "heun": (tableaus.HEUN, "[heun1900neue]"),
    "midpoint": (tableaus.MIDPOINT, "[runge1895ueber]"),
    "ralston": (tableaus.RALSTON, "[ralston1962minimum]; [karras2022edm], alg. 3 with α = 2/3"),
    "bosh3": (tableaus.BOGACKI_SHAMPINE, "[bogacki1989pair]"),
    "rk4": (tableaus.RK4, "[kutta1901beitrag]"),
    "dopri5": (
        tableaus.DORMAND_PRINCE,
        "[dormand1980family]; error of [shampine1986practical]",
    ),
    "tsit5": (tableaus.TSITOURAS, "[tsitouras2011pairs]"),
    "dop853": (tableaus.DOP853, "[prince1981high]; [hairer1993solving], II.5"),
}
_LU_A, _LU_B = "[lu2022dpmsolver]", "[lu2022dpmsolverpp]"
_ZHANG, _ZHAO, _EDM = "[zhang2023deis]", "[zhao2023unipc]", "[karras2022edm]"
_RES = "[hochbruck2005explicit]; [zhang2023res]"


def _method(name: str, solver: Solver, source: str) -> Method:
    """Return a method whose source names works by their keys."""
    return Method(name, solver, *cite(source))


def runge_kutta() -> Iterator[Method]:
    """Textbook schemes in ``σ``, in the process's own time (``_t``) and in ``θ`` (``_theta``)."""
    for name, (tableau, source) in _TABLEAUS.items():
        scheme = RungeKutta(tableau)
        yield _method(name, Solver(scheme, Noise(), karras), source)
        if name in ("euler", "heun", "midpoint", "rk4", "dopri5", "tsit5"):
            yield _method(f"{name}_t", Solver(scheme, Native(), uniform_t), source)
        yield _method(f"{name}_theta", Solver(scheme, Preconditioned(), power_theta), source)


def one_step() -> Iterator[Method]:
    """Published samplers without memory."""
    euler, heun = RungeKutta(tableaus.EULER), RungeKutta(tableaus.HEUN)
    straight = partial(flow_shift, shift=1.0)
    for name, solver, source in (
        ("ddim", Solver(euler, Noise(), uniform_t), "[song2021ddim], eq. 12, η = 0"),
        ("edm_euler", Solver(euler, Noise(), karras), f"{_EDM}, alg. 1 without correction"),
        ("edm_heun", Solver(heun, Noise(), karras), f"{_EDM}, alg. 1"),
        ("flow_euler", Solver(euler, Velocity(), straight), "[lipman2023flow]; [liu2023rectified]"),
        ("flow_heun", Solver(heun, Velocity(), straight), "[lipman2023flow]; [heun1900neue]"),
        (
            "flow_midpoint",
            Solver(RungeKutta(tableaus.MIDPOINT), Velocity(), straight),
            "[lipman2023flow]; [runge1895ueber]",
        ),
    ):
        yield _method(name, solver, source)
    for name, tableau, coordinates, grid, source in (
        ("dpm_solver_1", dpm_solver_1(), LogNoise(), log, f"{_LU_A}, eq. 3.7"),
        ("dpm_solver_2", dpm_solver_2(), LogNoise(), log, f"{_LU_A}, alg. 1"),
        ("dpm_2", dpm_solver_2(), LogNoise(), karras, f"[crowson2022kdiffusion], after {_EDM}"),
        ("dpm_solver_3", dpm_solver_3(), LogNoise(), log, f"{_LU_A}, alg. 2"),
        ("dpmpp_2s", dpm_solver_2(), LogData(), log, f"{_LU_B}, alg. 1"),
        ("dpmpp_3s", dpm_solver_3(), LogData(), log, f"{_LU_B}, after {_LU_A}, alg. 2"),
        ("res_2s", res_2s(), LogData(), log, _RES),
        ("res_3s", res_3s(), LogData(), log, _RES),
        ("etd_rk4", etd_rk4(), LogData(), log, "[krogstad2005generalized]"),
    ):
        yield _method(name, Solver(ExponentialRK(tableau), coordinates, grid), source)
    for name, pair in (
        ("dpm_adaptive_12", ExponentialRK(dpm_solver_2(), dpm_solver_1())),
        ("dpm_adaptive_23", ExponentialRK(dpm_solver_3(), dpm_solver_2(1 / 3))),
    ):
        yield _method(name, Solver(pair, LogNoise(), log), f"{_LU_A}, app. C")
    for group in (2, 3):
        yield _method(
            f"dpmpp_singlestep_{group}",
            Solver(DPMSinglestep(group), LogData(), log),
            f"{_LU_B}; grouped as DPM-Solver-fast, {_LU_A}, app. D",
        )


def multistep() -> Iterator[Method]:
    """Published samplers that remember."""
    quadratic = partial(power_t, rho=2.0)
    for k in (2, 3, 4):
        yield _method(
            f"lms{k}",
            Solver(Adams(k), Noise(), karras),
            f"Katherine Crowson, [crowson2022kdiffusion]; DEIS-ρAB of degree {k - 1}, {_ZHANG}",
        )
    for k in (2, 3, 4):
        yield _method(
            f"deis_t{k}",
            Solver(Adams(k), Interpolated(Noise(), Native()), quadratic),
            f"{_ZHANG}, tAB of degree {k - 1}",
        )
    for k in (2, 3):
        yield _method(
            f"deis_logrho{k}",
            Solver(Adams(k), LogNoise(), quadratic),
            f"{_ZHANG}; [probabilists2024azula]'s zEAB, diffusers' DEIS",
        )
    for k in (2, 3):
        yield _method(
            f"xeab{k}",
            Solver(Adams(k), LogData(), log),
            "[probabilists2024azula]'s xEAB; RES-2M of [zhang2023res] for two slopes",
        )
    for k in (2, 3):
        yield _method(
            f"vab{k}",
            Solver(Adams(k), Velocity(), uniform_t),
            "[probabilists2024azula]'s vAB: the velocity of flow matching",
        )
    yield _method("ipndm", Solver(IPNDM(), Noise(), quadratic), f"[liu2022pndm]; {_ZHANG}")
    yield _method(
        "gradient_estimation",
        Solver(GradientEstimation(), Noise(), karras),
        "[permenter2024interpreting], alg. 2",
    )
    yield _method("dpmpp_2m", Solver(DPMMultistep(2), LogData(), log), f"{_LU_B}, alg. 2")
    yield _method(
        "dpmpp_3m", Solver(DPMMultistep(3), LogData(), log), f"{_LU_B}, as its text has it"
    )
    shipped = DPMMultistep(3, as_shipped=True)
    yield _method(
        "dpmpp_3m_as_shipped",
        Solver(shipped, LogData(), log),
        f"{_LU_B}, its code, diffusers, k-diffusion: without the factor 2 of the second derivative",
    )
    for kind in ("bh1", "bh2"):
        for k in (1, 2, 3):
            scheme = UniPC(k, kind=kind)
            yield _method(f"unipc_{kind}_{k}", Solver(scheme, LogData(), log), f"{_ZHAO}, alg. 1–2")
            yield _method(
                f"unipc_{kind}_{k}_noise", Solver(scheme, LogNoise(), log), f"{_ZHAO}, alg. 1–2"
            )
    for k in (2, 3):
        yield _method(
            f"unipc_bh2_{k}_as_shipped",
            Solver(UniPC(k, tail="lower"), LogData(), log),
            f"{_ZHAO}, its code, diffusers: with lower_order_final",
        )
    yield _method(
        "unipc_vary_as_shipped",
        Solver(UniPC(3, kind="vary_as_shipped"), LogData(), log),
        f"{_ZHAO}, vary_coeff of its code (its issue 10)",
    )


def own() -> Iterator[Method]:
    """sdekit's: ``F`` in ``θ``, with a corrector that costs nothing."""
    yield _method(
        "bayesian_adams",
        Solver(BayesianAdams(), Preconditioned(), balanced),
        "[sdekit], after [ohagan1991bayes]; the default",
    )
    for k in (2, 3, 4):
        yield _method(
            f"adams{k}",
            Solver(Adams(k, corrector=True), Preconditioned(), balanced),
            "[sdekit], after [hairer1993solving], III.5",
        )
    for name, coordinates, grid in (
        ("variable_adams", Preconditioned(), balanced),
        ("variable_adams_t", Native(), uniform_t),
    ):
        yield _method(
            name,
            Solver(VariableAdams(), coordinates, grid),
            "[sdekit], after [shampine1975computer], ch. 5–7; the default with a tolerance"
            if name == "variable_adams"
            else "[shampine1975computer], ch. 5–7",
        )
    yield _method(
        "adams2_t",
        Solver(Adams(2, corrector=True), Native(), uniform_t),
        "[hairer1993solving], III.5; the default of general SDEs",
    )


def stochastic() -> Iterator[Method]:
    """Schemes of the flow with the noise of the reverse SDE."""
    lu, xue = f"{_LU_B}, app. A", "[xue2023sasolver]"
    for k in (1, 2, 3, 4):
        yield _method(
            f"stochastic_adams{k}",
            Solver(Stochastic(Adams(k, corrector=True)), Preconditioned(), balanced),
            f"[sdekit], after {xue}"
            + ("; the default of reverse SDEs of other η than 1" if k == 2 else ""),
        )
    for k in (1, 2, 3):
        solver = Solver(Stochastic(DPMMultistep(k)), LogData(), log)
        yield _method(f"sde_dpmpp_{k}m" if k > 1 else "sde_dpmpp_1", solver, lu)
    for k in (2, 3, 4):
        solver = Solver(Stochastic(Adams(k, corrector=True)), LogData(), log)
        yield _method(f"sa_solver_{k}", solver, f"{xue}, alg. 1")
    gonzalez = "[gonzalez2023seeds]"
    for name, tableau, source in (
        ("dpmpp_sde", dpm_solver_2(), "[crowson2022kdiffusion]'s dpmpp_sde, with one path"),
        ("seeds_2", res_2s(), gonzalez),
        ("seeds_3", res_3s(1 / 3, 2 / 3), gonzalez),
    ):
        yield _method(name, Solver(Stochastic(ExponentialRK(tableau)), LogData(), log), source)
    for k in (1, 2, 3):
        yield _method(
            f"er_sde_{k}",
            Solver(Stochastic(Adams(k), eta=ErEta()), Interpolated(LogData(), Noise()), log),
            "[cui2023ersde]",
        )
    for name, scheme, coordinates in (
        ("stochastic_heun", RungeKutta(tableaus.HEUN), Preconditioned()),
        ("stochastic_heun_noise", RungeKutta(tableaus.HEUN), Noise()),
    ):
        solver = Solver(Stochastic(scheme), coordinates, balanced)
        yield _method(name, solver, "[ruemelin1982numerical], with additive noise")


def runge_kutta_with_noise() -> Iterator[Method]:
    """Stochastic Runge–Kutta schemes, in the unscaled state and in ``F``."""
    for name, tableau, source in (
        ("sea", SEA, "[foster2024splitting], eq. 5.8"),
        ("sra1", SRA1, "[roessler2010runge]"),
        ("sra3", SRA3, "[roessler2010runge]"),
        ("sosra", SOSRA, "[rackauckas2020stability]"),
        ("shark", SHARK, "[foster2024splitting], eq. 6.1"),
        ("spark", SPARK, "[foster2023adaptive], def. 1.6"),
        ("sea_m", SEA_M, "[sdekit]; experimental"),
        ("sea_w", SEA_W, "[sdekit]; experimental; in F the default of reverse SDEs of η = 1"),
    ):
        yield _method(name, Solver(StochasticRK(tableau), Noise(), log), source)
        grid = partial(balanced, scale=1.0, power=1.2) if tableau.before else balanced
        solver = Solver(StochasticRK(tableau), Preconditioned(), grid)
        yield _method(f"{name}_theta", solver, source)


def gotta_go_fast() -> Iterator[Method]:
    """The adaptive sampler whose rejections bias the law."""
    yield _method(
        "gotta_go_fast",
        Solver(StochasticRK(HEUN, redraws=True), Noise(), log),
        "[jolicoeur2021gotta], alg. 1; biased by its rejections",
    )


def flow_with_noise() -> Iterator[Method]:
    """Samplers that solve the flow and add noise between, and those of Song et al."""
    song, k_diffusion = "[song2021sde]", "[crowson2022kdiffusion]"
    heun, euler = RungeKutta(tableaus.HEUN), RungeKutta(tableaus.EULER)
    dpm2 = ExponentialRK(dpm_solver_2())
    for name, solver, source in (
        ("ddim_eta", Solver(Ancestral(euler), Noise(), log), "[song2021ddim], eq. 12, 16"),
        (
            "ddpm",
            Solver(Ancestral(euler, large=True), Noise(), uniform_t),
            "[ho2020ddpm], alg. 2, with variance β",
        ),
        ("dpm_2_ancestral", Solver(Ancestral(dpm2), LogNoise(), karras), k_diffusion),
        ("dpmpp_2s_ancestral", Solver(Ancestral(dpm2), LogData(), karras), k_diffusion),
        (
            "edm_sde",
            Solver(Churn(heun), Noise(), karras),
            f"{_EDM}, alg. 2; table 5, ImageNet-64",
        ),
        ("edm_sde_t", Solver(Churn(heun), Native(), karras), f"{_EDM}, general s(t), σ(t)"),
        (
            "restart",
            Solver(Restart(heun, [(0.06, 0.30, 5, 1)]), Noise(), karras),
            "[xu2023restart], alg. 1",
        ),
        (
            "euler_maruyama",
            Solver(EulerMaruyama(), Noise(), karras),
            "[maruyama1955continuous], in the unscaled state",
        ),
        ("euler_maruyama_t", Solver(EulerMaruyama(), Native(), uniform_t), f"{song}, app. D"),
        (
            "milstein_t",
            Solver(Milstein(), Native(), uniform_t),
            "[kloeden1992numerical], eq. 10.3.2; for general SDEs",
        ),
        (
            "reverse_diffusion",
            Solver(ReverseDiffusion(), Native(), uniform_t),
            f"{song}, eq. 46–48",
        ),
        (
            "pc",
            Solver(PredictorCorrector(ReverseDiffusion()), Native(), uniform_t),
            f"{song}, alg. 4–5",
        ),
        (
            "pc_euler_maruyama",
            Solver(PredictorCorrector(EulerMaruyama()), Native(), uniform_t),
            f"{song}, alg. 4–5, with Euler–Maruyama",
        ),
        (
            "pc_flow",
            Solver(PredictorCorrector(Adams(2), AnnealedCorrector()), Preconditioned(), balanced),
            f"{song}, alg. 1: the flow as predictor",
        ),
    ):
        yield _method(name, solver, source)
