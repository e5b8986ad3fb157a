"""Views: the tables and kernels of their papers, and one law sampled under every pair of them."""

import itertools

import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    DDPM,
    EDM,
    NCSN,
    Counted,
    FlowMatchingView,
    LinearPath,
    LogitNormal,
    ScoreSDE,
    TrigPath,
    View,
    VPPath,
    change_path,
    convert,
    edm_times,
    solve,
    translate,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

MIXTURE = GaussianMixture(weights=[1, 2, 3], means=[[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]], covariances=[0.1, 0.2, 0.3])
VIEWS: list[View] = [
    DDPM(),
    DDPM(200, "cosine"),
    NCSN(0.05, 20.0, 20),
    ScoreSDE("vp"),
    ScoreSDE("ve"),
    ScoreSDE("subvp"),
    EDM(),
    FlowMatchingView(),
    FlowMatchingView(TrigPath(), LogitNormal()),
]
views = pytest.mark.parametrize("view", VIEWS, ids=repr)


def exact_net(view: View) -> object:
    """The raw network that a perfectly trained one would be."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return convert(MIXTURE.velocity(view.path)(x, t), x, t, view.path, "velocity", view.predicts)

    if not isinstance(view, EDM):
        return predict

    def raw(x: Tensor, level: Tensor) -> Tensor:
        s = torch.exp(4 * level)[:, None]  # on this path alpha = 1 and s is sigma
        state, sd = x * torch.sqrt(s**2 + view.data_std**2), view.data_std
        t = view.path.t_from_lambda(-4 * level)
        denoised = predict(state, t)
        return (denoised - sd**2 / (s**2 + sd**2) * state) / (s * sd / torch.sqrt(s**2 + sd**2))

    return raw


@views
def test_every_view_has_its_law_for_field(view: View, generator: torch.Generator) -> None:
    t = torch.linspace(0.05, 0.95, 20, dtype=torch.float64)
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64) * (1 + view.path.sigma(t)[:, None])
    field = view.field(exact_net(view))  # type: ignore[arg-type]
    exact = MIXTURE.velocity(view.path)(x, t)
    assert float((field(x, t) - exact).abs().max()) <= 1e-8 * max(1.0, float(exact.abs().max()))
    assert field.path == view.path  # type: ignore[attr-defined]


@pytest.mark.parametrize(("frm", "to"), list(itertools.permutations(range(len(VIEWS)), 2)))
def test_translation_is_exact(frm: int, to: int, generator: torch.Generator) -> None:
    """A network of any view is the exact field of any other view's path, where their noise levels overlap."""
    source, target = VIEWS[frm], VIEWS[to]
    lam = torch.linspace(-2.0, 1.5, 15, dtype=torch.float64)
    t = target.path.t_from_lambda(lam)
    x = torch.randn(15, 2, generator=generator, dtype=torch.float64)
    x = x * torch.sqrt(target.path.alpha(t) ** 2 + target.path.sigma(t) ** 2)[:, None]
    field = translate(exact_net(source), source, target)  # type: ignore[arg-type]
    exact = MIXTURE.velocity(target.path)(x, t)
    assert float((field(x, t) - exact).abs().max()) <= 1e-7 * max(1.0, float(exact.abs().max()))
    assert field.path == target.path  # type: ignore[attr-defined]


@pytest.mark.parametrize("frm", range(len(VIEWS)), ids=lambda i: repr(VIEWS[i]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_translation_is_finite_at_both_ends_and_beyond_the_trained_levels(
    frm: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """On the linear path from t = 0 to 1: a solver that evaluates both ends lands on the law (nothing is clipped)."""
    source, flow = VIEWS[frm], FlowMatchingView()
    if source.path == flow.path:
        pytest.skip("one path")
    x = torch.randn(256, 2, generator=generator, dtype=dtype)
    field = translate(exact_net(source), source, flow)  # type: ignore[arg-type]
    size = float(field(x, 0.5).abs().max())
    for t in (0.0, 1e-6, 1 - 1e-6, 1.0):
        if source.predicts == "noise" and t == 0 and source.path.alpha(torch.zeros(())) == 0:
            continue
        assert float(field(x, t).abs().max()) < 100 * size, t
    ends = solve(field, x, uniform_times(100), "heun")
    exact = solve(MIXTURE.velocity(), x, uniform_times(200), "rk4")
    # What is lost is the data blurred by the view's own last level, and its noisiest level in place of the source.
    levels = source.path.sigma(torch.ones(())) + torch.exp(source.path.log_snr_half(torch.zeros(())))
    assert float((ends - exact).norm(dim=1).median()) < 0.02 + 2 * float(levels)


def test_translation_is_conversion_and_change_of_path(generator: torch.Generator) -> None:
    x = torch.randn(15, 2, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 15, dtype=torch.float64)

    def net(x: Tensor, t: Tensor) -> Tensor:  # no law's: any network
        return torch.sin(3 * x) + t[:, None]

    for frm, to in ((DDPM(), FlowMatchingView()), (FlowMatchingView(), ScoreSDE("vp")), (EDM(), FlowMatchingView())):
        two_steps = change_path(frm.field(net), frm.path, to.path)
        torch.testing.assert_close(translate(net, frm, to)(x, t), two_steps(x, t), rtol=1e-7, atol=1e-7)


def test_translation_within_a_path_is_nothing() -> None:
    net = exact_net(VIEWS[-2])
    assert not hasattr(translate(net, FlowMatchingView(), FlowMatchingView()), "frm")  # type: ignore[arg-type]


def test_a_ddpm_network_sampled_by_a_flow_solver_and_the_reverse(generator: torch.Generator) -> None:
    """The same points, from the same noise, whichever path the solver walks on (fine steps)."""
    ddpm, flow = DDPM(), FlowMatchingView()
    x = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    # Both must start at one signal-to-noise ratio: the table's first.
    t0 = float(LinearPath().t_from_lambda(ddpm.path.log_snr_half(torch.zeros((), dtype=torch.float64))))
    c = ddpm.source_scale / (1 - t0)
    reference = solve(MIXTURE.velocity(), x, uniform_times(400, start=t0), "rk4")
    there = translate(exact_net(ddpm), ddpm, flow)  # type: ignore[arg-type]
    assert float((solve(there, x, uniform_times(200, start=t0), "rk4") - reference).abs().max()) < 1e-5
    back = translate(exact_net(flow), flow, ddpm)  # type: ignore[arg-type]
    times = ddpm.path.t_from_lambda(LinearPath().log_snr_half(uniform_times(400, start=t0)))
    times[0], times[-1] = 0.0, 1.0
    ours = solve(back, c * x, times, "ddim", path=ddpm.path)
    euler = solve(MIXTURE.velocity(), x, uniform_times(400, start=t0), "euler")
    assert float((ours - euler).abs().max()) < 1e-8


@views
def test_objective_is_at_its_least_for_the_exact_network(view: View) -> None:
    """Raw networks around the exact one lose more, on the same draws."""
    g = torch.Generator().manual_seed(0)
    x1 = MIXTURE.sample(8000, generator=g)
    x0 = torch.randn(8000, 2, generator=g, dtype=torch.float64)
    exact = exact_net(view)

    def loss(change: float) -> float:
        # Small, smooth, and unlike what averaging could cancel.
        net = lambda x, t: exact(x, t) * (1 + change) + change * torch.sin(x)  # type: ignore[operator]  # noqa: E731
        return float(view.objective(net, x0, x1, generator=torch.Generator().manual_seed(1)).value)

    best = loss(0.0)
    assert best < loss(0.3)
    assert best < loss(-0.3)


@views
def test_every_view_samples_its_law(view: View) -> None:
    g = torch.Generator().manual_seed(3)
    n = 2000
    times = view.times() if isinstance(view, NCSN) else view.times(120)
    field = view.field(exact_net(view))  # type: ignore[arg-type]
    x = view.source_scale * torch.randn(n, 2, generator=g, dtype=torch.float64)
    solver = view.recommended_solver
    if isinstance(view, NCSN):
        from anabranch.generative import AnnealedLangevin

        assert solver == AnnealedLangevin()
        solver = AnnealedLangevin(corrections=25, step_size=2e-3)  # fewer than the paper's 100, of larger steps
    end = solve(field, x, times, solver, path=view.path, generator=g)
    centred = MIXTURE.sample(200_000, generator=g)
    assert float((end.mean(0) - MIXTURE.mean).abs().max()) < 0.1
    assert float((end.T.cov() - MIXTURE.covariance).abs().max()) < 0.12
    near = lambda y: (y - MIXTURE.means[0]).norm(dim=1) < 0.5  # noqa: E731
    assert abs(float(near(end).double().mean() - near(centred).double().mean())) < 0.05


def test_tables_of_ddpm() -> None:
    linear = DDPM().path.alphas_cumprod
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(linear, torch.cumprod(1 - betas, 0), rtol=1e-12, atol=0)
    short = DDPM(100).path.alphas_cumprod
    assert float(1 - short[0]) == pytest.approx(1e-3)  # ten times as much noise a step
    assert float(1 - short[-1] / short[-2]) == pytest.approx(0.2)
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    theirs = diffusers.DDPMScheduler().alphas_cumprod.double()
    torch.testing.assert_close(linear, theirs, rtol=1e-4, atol=0)
    theirs = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    torch.testing.assert_close(DDPM(schedule="cosine").path.alphas_cumprod, theirs, rtol=1e-3, atol=1e-9)


def test_uniform_times_of_edm_are_its_levels() -> None:
    view, n = EDM(), 18
    sigma = view.path.sigma(view.times(n - 1))
    i = torch.arange(n, dtype=torch.float64) / (n - 1)
    expected = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(sigma, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(LinearPath().sigma(edm_times(n, LinearPath()))[1:-1], (expected / (1 + expected))[1:])


def test_levels_of_ncsn() -> None:
    view = NCSN()
    assert torch.allclose(view.path.sigma(view.times()), torch.logspace(0, -2, 10, dtype=torch.float64))
    drawn = view.path.sigma(view.objective.times.sample(500, torch.zeros(1, dtype=torch.float64), None))
    assert len(torch.unique(drawn.round(decimals=8))) == 10


def test_translation_calls_once() -> None:
    counted = Counted(exact_net(VIEWS[0]))  # type: ignore[arg-type]
    x = torch.randn(3, 2, dtype=torch.float64)
    solve(translate(counted, DDPM(), FlowMatchingView()), x, uniform_times(7, start=0.05), "euler")
    assert counted.calls == 7


def test_bad_input() -> None:
    for make, words in (
        (lambda: DDPM(1), "steps"),
        (lambda: DDPM(20), "last beta"),
        (lambda: NCSN(1.0, 0.5), "sigma_min"),
        (lambda: NCSN(levels=1), "levels"),
        (lambda: EDM(sigma_min=90.0), "sigma_min"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    for make in (lambda: DDPM(schedule="sqrt"), lambda: ScoreSDE("ddpm")):  # type: ignore[arg-type]
        with pytest.raises(Exception, match=r"schedule|kind"):
            make()
    assert ScoreSDE().path == VPPath()
