"""The same numbers as diffusers, torchcfm, flow_matching and torchdiffeq. A peer that is not installed is skipped."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    FlowMatching,
    GaussianSource,
    LinearPath,
    ScheduledPath,
    log_likelihood,
    shifted_times,
    solve,
    times_from_diffusers,
    uniform_times,
)
from anabranch.generative.interop import from_diffusers
from anabranch.worlds import GaussianMixture

MIXTURE = GaussianMixture(weights=[1, 2, 3], means=[[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]], covariances=[0.1, 0.2, 0.3])


def peer(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a peer may be there and not import: say so
        pytest.skip(f"{name} does not import: {type(error).__name__}: {error}")


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(64, 2, generator=generator)


@pytest.fixture
def ends(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    x0, x1 = torch.randn(2, 64, 3, 4, generator=generator)
    return x0, x1, torch.rand(64, generator=generator)


def run(scheduler: Any, x: Tensor, output: Any) -> Tensor:
    """The scheduler's own loop; ``output(x, i)`` is the model's at the i-th of its sigmas."""
    for i, step in enumerate(scheduler.timesteps):
        x = scheduler.step(output(x, i), step, x).prev_sample
    return x


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_flow_match_euler_scheduler(shift: float, x: Tensor) -> None:
    scheduler = peer("diffusers").FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(20)
    times, v = times_from_diffusers(scheduler), MIXTURE.velocity()
    theirs = run(scheduler, x, lambda y, i: -v(y, times[i]))
    assert float((solve(v, x, times, "euler") - theirs).abs().max()) <= 1e-5


def test_shifted_times_are_the_schedulers_shift() -> None:
    scheduler = peer("diffusers").FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=(1 - uniform_times(10)[:-1]).tolist())
    torch.testing.assert_close(times_from_diffusers(scheduler), shifted_times(10, 3.0), rtol=0, atol=1e-6)


def test_heun_is_the_flow_match_heun_scheduler(x: Tensor) -> None:
    scheduler = peer("diffusers").FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(10)
    times, v, sigmas = times_from_diffusers(scheduler), MIXTURE.velocity(), scheduler.sigmas
    assert len(times) == 11
    # Its last step, to sigma = 0, is Euler's: compare the states before it.
    steps = len(scheduler.timesteps)
    theirs = x
    for i, step in enumerate(scheduler.timesteps[: steps - 1]):
        theirs = scheduler.step(-v(theirs, 1 - float(sigmas[i])), step, theirs).prev_sample
    assert float((solve(v, x, times[:-1], "heun") - theirs).abs().max()) <= 1e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpmpp_2m_is_the_multistep_scheduler(shift: float, x: Tensor) -> None:
    scheduler = peer("diffusers").DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        algorithm_type="dpmsolver++",
        solver_order=2,
        flow_shift=shift,
    )
    scheduler.set_timesteps(20)
    times, v = times_from_diffusers(scheduler), MIXTURE.velocity()
    theirs = run(scheduler, x, lambda y, i: -v(y, times[i]))
    assert float((solve(v, x, times, "dpmpp_2m") - theirs).abs().max()) <= 1e-4


def test_dpmpp_2m_sde_is_the_multistep_scheduler(x: Tensor) -> None:
    scheduler = peer("diffusers").DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, algorithm_type="sde-dpmsolver++", solver_order=2
    )
    scheduler.set_timesteps(20)
    times, v = times_from_diffusers(scheduler), MIXTURE.velocity()
    g, theirs = torch.Generator().manual_seed(3), x
    for i, step in enumerate(scheduler.timesteps):
        theirs = scheduler.step(-v(theirs, times[i]), step, theirs, generator=g).prev_sample
    ours = solve(v, x, times, "dpmpp_2m_sde", generator=torch.Generator().manual_seed(3))
    assert float((ours - theirs).abs().max()) <= 1e-4


@pytest.mark.parametrize("solver", ["ddim", "ancestral"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ddim_is_the_ddim_scheduler(solver: str, spacing: str, x: Tensor) -> None:
    scheduler = peer("diffusers").DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    path = ScheduledPath(scheduler.alphas_cumprod)
    times, score = times_from_diffusers(scheduler), MIXTURE.score(path)
    g, theirs = torch.Generator().manual_seed(3), x
    for i, step in enumerate(scheduler.timesteps):
        noise = -path.sigma(times[i]) * score(theirs.double(), times[i])
        eta = float(solver == "ancestral")
        theirs = scheduler.step(noise.float(), int(step), theirs, eta=eta, generator=g).prev_sample
    ours = solve(MIXTURE.velocity(path), x, times, solver, generator=torch.Generator().manual_seed(3))
    assert float((ours - theirs).abs().max()) <= 1e-5


def test_targets_are_those_of_torchcfm(ends: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, x1, t = ends
    _, x_t, velocity = (
        peer("torchcfm").ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(x0, x1, t)
    )
    ours = LinearPath().sample(x0, x1, t)
    assert torch.equal(ours.x_t, x_t)
    assert torch.equal(ours.velocity, velocity)


def test_targets_are_those_of_flow_matching(ends: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, x1, t = ends
    theirs = peer("flow_matching.path").CondOTProbPath().sample(x_0=x0, x_1=x1, t=t)
    ours = LinearPath().sample(x0, x1, t)
    assert torch.equal(ours.x_t, theirs.x_t)
    assert torch.equal(ours.velocity, theirs.dx_t)


def test_paths_are_those_of_flow_matching(ends: tuple[Tensor, Tensor, Tensor]) -> None:
    module = peer("flow_matching.path.scheduler")
    from anabranch.generative import TrigPath, VPPath

    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for ours, theirs in ((TrigPath(), module.CosineScheduler()), (VPPath(), module.VPScheduler())):
        out = theirs(t)
        for a, b in (
            (ours.alpha(t), out.alpha_t),
            (ours.sigma(t), out.sigma_t),
            (ours.d_alpha(t), out.d_alpha_t),
            (ours.d_sigma(t), out.d_sigma_t),
        ):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_loss_is_torchcfms(ends: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, x1, t = ends
    _, x_t, velocity = (
        peer("torchcfm").ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(x0, x1, t)
    )
    theirs = ((torch.tanh(x_t) - velocity) ** 2).mean()
    torch.testing.assert_close(FlowMatching().at(lambda x, t: torch.tanh(x), x0, x1, t).value, theirs)


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_solutions_are_those_of_flow_matching_and_torchdiffeq(solver: str, x: Tensor) -> None:
    module, v = peer("flow_matching.solver"), MIXTURE.velocity()
    grid = uniform_times(16).float()
    theirs = module.ODESolver(lambda x, t: v(x, t)).sample(x_init=x, step_size=None, method=solver, time_grid=grid)
    assert float((solve(v, x, grid, solver) - theirs).abs().max()) <= 1e-5
    odeint = peer("torchdiffeq").odeint
    exact = odeint(lambda t, y: v(y, t), x.double(), uniform_times(16), method=solver)
    run = solve(v, x.double(), uniform_times(16), solver, return_trajectory=True)
    torch.testing.assert_close(run.states, exact, rtol=1e-11, atol=1e-11)


def test_likelihood_is_flow_matchings(x: Tensor) -> None:
    module, v = peer("flow_matching.solver"), MIXTURE.velocity()
    source, grid = GaussianSource((2,)), uniform_times(50).float()
    _, theirs = module.ODESolver(lambda x, t: v(x, t)).compute_likelihood(
        x, source.log_prob, step_size=None, method="midpoint", time_grid=grid.flip(0), exact_divergence=True
    )
    ours = log_likelihood(v, x, grid, source, solver="midpoint")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture
def unet() -> Any:
    diffusers = peer("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 1, 8, 8, generator=generator)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_ddim_model_sampled_by_us(prediction: str, unet: Any, images: Tensor) -> None:
    diffusers = peer("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction, timestep_spacing="trailing")
    scheduler.set_timesteps(8)
    field, times, theirs = from_diffusers(unet, scheduler), times_from_diffusers(scheduler), images
    with torch.no_grad():
        for step in scheduler.timesteps:
            theirs = scheduler.step(unet(theirs, step).sample, int(step), theirs).prev_sample
        scale = float(theirs.abs().max())
        for solver in ("ddim", "heun") if prediction == "epsilon" else ("ddim",):
            ours = solve(field, images, times if solver == "ddim" else times[:-1], solver)
            if solver == "ddim":
                assert float((ours - theirs).abs().max()) <= 1e-5 * max(1.0, scale)
            assert bool(torch.isfinite(ours).all())


def test_a_flow_model_sampled_by_us(unet: Any, images: Tensor) -> None:
    scheduler = peer("diffusers").FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(6)
    field, theirs = from_diffusers(unet, scheduler), images
    with torch.no_grad():
        for step in scheduler.timesteps:
            theirs = scheduler.step(unet(theirs, step).sample, step, theirs).prev_sample
    ours = solve(field, images, times_from_diffusers(scheduler), "euler")
    assert float((ours - theirs).abs().max()) <= 1e-5 * max(1.0, float(theirs.abs().max()))
    assert field.path == LinearPath()


def test_a_pipeline_from_a_folder(unet: Any, images: Tensor, tmp_path: Path) -> None:
    diffusers = peer("diffusers")
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "pipe")
    loaded, direct = from_diffusers(tmp_path / "pipe"), from_diffusers(pipeline)
    with torch.no_grad():
        assert torch.equal(loaded(images, 0.5), direct(images, 0.5))
    assert loaded.kind == "noise"


def test_what_cannot_be_read(unet: Any, tmp_path: Path) -> None:
    diffusers = peer("diffusers")
    with pytest.raises(ValueError, match="scheduler is missing"):
        from_diffusers(unet)
    with pytest.raises(FileNotFoundError, match="local folder"):
        from_diffusers(str(tmp_path / "nothing"))
    stepped = diffusers.EDMEulerScheduler()
    stepped.set_timesteps(4)
    with pytest.raises(ValueError, match="neither"):
        times_from_diffusers(stepped)
    with pytest.raises(ValueError, match="set_timesteps"):
        times_from_diffusers(diffusers.DDIMScheduler())
    with pytest.raises(ValueError, match="not supported"):
        from_diffusers(unet, diffusers.EDMEulerScheduler())
