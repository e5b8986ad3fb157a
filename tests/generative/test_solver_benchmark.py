"""Errors by calls: the numbers of a solver are those of running it by hand; schedulers of diffusers converge to our flow."""

from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from anabranch.generative import (
    Dopri5,
    LinearPath,
    ReferenceSolution,
    ScheduledPath,
    TrigPath,
    VPPath,
    log_snr_times,
    run_scheduler,
    shifted_times,
    solve,
    solver_benchmark,
    times_from_diffusers,
    to_diffusers_scheduler,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

from .test_interop import peer

MIXTURE = GaussianMixture(weights=[1, 2, 3], means=[[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]], covariances=[0.1, 0.2, 0.3])
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the peer's, of numpy
FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow euler shifted": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow dpm multistep": ("DPMSolverMultistepScheduler", FLOW),
    "flow dpm singlestep": ("DPMSolverSinglestepScheduler", {**FLOW, "lower_order_final": True}),
    "flow unipc": ("UniPCMultistepScheduler", FLOW),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddim v": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}),
    "ddim sample": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample"}),
    "dpm multistep": ("DPMSolverMultistepScheduler", {}),
    "dpm multistep karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}


@pytest.fixture(scope="module")
def reference() -> ReferenceSolution:
    x = torch.randn(128, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ReferenceSolution.solved(MIXTURE.velocity(), x, steps=400)


def test_rows_are_what_solving_gives(reference: ReferenceSolution) -> None:
    rows = solver_benchmark(MIXTURE.velocity(), reference, ["euler", "heun", "rk4", "ab2"], [3, 8])
    assert [(r.solver, r.asked, r.calls, r.steps) for r in rows] == [
        ("euler", 3, 3, 3), ("euler", 8, 8, 8), ("heun", 3, 2, 1), ("heun", 8, 8, 4), ("rk4", 8, 8, 2), ("ab2", 3, 3, 3),
        ("ab2", 8, 8, 8),
    ]  # fmt: skip
    end = solve(MIXTURE.velocity(), reference.start, uniform_times(4), "heun")
    errors = (end - reference.end).norm(dim=1)
    row = rows[3]
    assert torch.equal(row.errors, errors)
    assert (row.mean, row.median) == (float(errors.mean()), float(errors.median()))
    assert row.rmse == pytest.approx(float((errors**2).mean() ** 0.5))


def test_reference_and_orders(reference: ReferenceSolution) -> None:
    finer = ReferenceSolution.solved(MIXTURE.velocity(), reference.start, steps=800)
    assert float((finer.end - reference.end).abs().max()) < 1e-8
    rows = {(r.solver, r.asked): r for r in solver_benchmark(MIXTURE.velocity(), reference, ["euler", "ab2"], [40, 80])}
    assert 1.7 < rows["euler", 40].median / rows["euler", 80].median < 2.3
    assert 3.2 < rows["ab2", 40].median / rows["ab2", 80].median < 4.8


def test_times_of_each_solver(reference: ReferenceSolution) -> None:
    grid = {"dpmpp_2m": lambda n: log_snr_times(n, LinearPath())}
    row, other = solver_benchmark(MIXTURE.velocity(), reference, ["dpmpp_2m", "ab2"], [12], times=grid)
    for r, times in ((row, log_snr_times(12, LinearPath())), (other, uniform_times(12))):
        end = solve(MIXTURE.velocity(), reference.start, times, r.solver)
        assert torch.equal(r.errors, (end - reference.end).norm(dim=1))


def test_condition_reaches_the_field(reference: ReferenceSolution) -> None:
    label = torch.arange(128) % 3
    own = ReferenceSolution.solved(MIXTURE.velocity(), reference.start, steps=200, label=label)
    (row,) = solver_benchmark(MIXTURE.velocity(), own, {"fine": "rk4"}, [400], label=label)
    assert (row.solver, row.steps) == ("fine", 100)
    assert row.rmse < 1e-6


def make(name: str) -> Any:
    kind, options = SCHEDULERS[name]
    return getattr(peer("diffusers"), kind)(**options)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_converge_to_the_exact_flow(name: str, reference: ReferenceSolution) -> None:
    """Their own code on our exact field: a wrong sign, path, kind or start would leave an error of order 1."""
    rows = solver_benchmark(MIXTURE.velocity(), reference, {name: make(name)}, [10, 80])
    assert [r.asked for r in rows] == [10, 80]
    assert all(r.calls <= r.asked and r.calls >= r.asked - 1 for r in rows)
    assert rows[1].median < 0.35 * rows[0].median
    assert rows[1].median < 0.04


def test_a_scheduler_is_measured_as_the_solver_it_is(reference: ReferenceSolution) -> None:
    """FlowMatchEuler against our Euler, DDIM against our ddim, on the same times: one result to float32's rounding."""
    scheduler = make("flow euler")
    run = run_scheduler(scheduler, MIXTURE.velocity(), reference.start, 16)
    scheduler.set_timesteps(16)
    ours = solve(MIXTURE.velocity(), reference.start, times_from_diffusers(scheduler), "euler")
    assert (run.steps, run.calls) == (16, 16)
    assert float((run.end - ours).abs().max()) < 1e-5

    scheduler = make("ddim")
    run = run_scheduler(scheduler, MIXTURE.velocity(), reference.start, 16)
    scheduler.set_timesteps(16)
    path, times = ScheduledPath(scheduler.alphas_cumprod), times_from_diffusers(scheduler)
    early = float(LinearPath().t_from_lambda(path.log_snr_half(times[0])))
    start = solve(MIXTURE.velocity(), reference.start, uniform_times(400, end=early), "rk4")
    ours = solve(MIXTURE.velocity(path), float(path.sigma(times[0])) / (1 - early) * start, times, "ddim")
    assert float((run.end - ours).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("path", "name"),
    [(TrigPath(), name) for name in ("flow euler", "flow unipc", "ddim", "euler")]
    + [(VPPath(), name) for name in ("ddim", "euler", "dpm multistep")],
)
def test_a_field_of_any_path_on_any_scheduler(path: Any, name: str) -> None:
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = ReferenceSolution.solved(MIXTURE.velocity(path), x, steps=200)
    coarse, fine = solver_benchmark(MIXTURE.velocity(path), own, {name: make(name)}, [10, 80])
    assert fine.median < 0.35 * coarse.median
    assert fine.median < 0.04


def test_the_scheduler_given_is_not_changed(reference: ReferenceSolution) -> None:
    scheduler = make("unipc")
    scheduler.set_timesteps(7)
    run_scheduler(scheduler, MIXTURE.velocity(), reference.start, 10)
    assert len(scheduler.timesteps) == 7


@pytest.mark.parametrize("times", [uniform_times(10), shifted_times(12, 3.0), log_snr_times(9, LinearPath())])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_our_times_on_a_flow_scheduler(times: Tensor, shift: float, reference: ReferenceSolution) -> None:
    diffusers = peer("diffusers")
    scheduler = to_diffusers_scheduler(times, diffusers.FlowMatchEulerDiscreteScheduler(shift=shift))
    torch.testing.assert_close(times_from_diffusers(scheduler), times, rtol=0, atol=1e-6)
    x, field = reference.start.float(), MIXTURE.velocity()
    for i, step in enumerate(scheduler.timesteps):
        x = scheduler.step(-field(x, times[i]), step, x).prev_sample
    assert float((x - solve(field, reference.start.float(), times, "euler")).abs().max()) < 1e-5
    assert type(to_diffusers_scheduler(times)).__name__ == "FlowMatchEulerDiscreteScheduler"


def test_our_times_on_table_schedulers() -> None:
    diffusers, times = peer("diffusers"), uniform_times(12)
    euler = to_diffusers_scheduler(times, diffusers.EulerDiscreteScheduler())
    ratio = torch.exp(-LinearPath().log_snr_half(times))
    torch.testing.assert_close(euler.sigmas[1:-1].double(), ratio[1:-1], rtol=1e-5, atol=0)
    assert float(euler.sigmas[-1]) == 0
    solver = to_diffusers_scheduler(times, diffusers.DPMSolverMultistepScheduler())
    path = ScheduledPath(solver.alphas_cumprod)
    wanted = path.index_of_t(path.t_from_lambda(LinearPath().log_snr_half(times[1:-1])))
    assert float((solver.timesteps[1:].double() - wanted).abs().max()) <= 0.5
    vp = VPPath()
    assert len(to_diffusers_scheduler(times, diffusers.DDPMScheduler(), path=vp).timesteps) <= 12


def test_bad_input(reference: ReferenceSolution) -> None:
    diffusers = peer("diffusers")
    field, x = MIXTURE.velocity(), reference.start
    for call, words in (
        (lambda: solver_benchmark(field, reference, ["ancestral"], [4]), "'ancestral' is stochastic"),
        (lambda: solver_benchmark(field, reference, {"adaptive": Dopri5()}, [4]), "'adaptive' is adaptive"),
        (lambda: solver_benchmark(field, reference, ["ddim", "ddim"], [4]), "names of their own"),
        (lambda: solver_benchmark(field, reference, ["euler"], [0]), "calls must be"),
        (lambda: solver_benchmark(field, reference, ["eular"], [4]), "unknown"),
        (lambda: run_scheduler(diffusers.EulerAncestralDiscreteScheduler(), field, x, 5), "stochastic"),
        (lambda: run_scheduler(diffusers.DDPMScheduler(), field, x, 5), "stochastic"),
        (lambda: run_scheduler(diffusers.DDIMScheduler(), field, x, 5), "clip_sample=True"),
        (lambda: run_scheduler(diffusers.EDMEulerScheduler(), field, x, 5), "not supported"),
        (lambda: run_scheduler(diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), field, x, 5), "not supported"),
        (lambda: to_diffusers_scheduler(uniform_times(3, end=0.9)), "end at 0.9"),
        (lambda: to_diffusers_scheduler(uniform_times(3), path=VPPath()), "linear path"),
        (
            lambda: to_diffusers_scheduler(uniform_times(3), diffusers.FlowMatchHeunDiscreteScheduler()),
            "takes no sigmas",
        ),
        (lambda: to_diffusers_scheduler(uniform_times(3), diffusers.DDIMScheduler()), "neither sigmas nor timesteps"),
        (lambda: to_diffusers_scheduler(uniform_times(3), diffusers.EDMEulerScheduler()), "neither flow sigmas"),
        (lambda: run_scheduler(make("flow euler"), MIXTURE.velocity(VPPath()), x, 5), "before the field's own path"),
        (lambda: ReferenceSolution(x, x[:3]), "x0 is|parameter 'end'"),
    ):
        with pytest.raises((ValueError, TypeCheckError), match=words):
            call()
