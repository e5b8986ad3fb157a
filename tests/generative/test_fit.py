"""The training loop: against a loop written out, resuming to the bit, budgets, batches, many processes, bad input."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anabranch.generative import (
    ClasswiseOT,
    FlowMapModel,
    FlowMatching,
    Loss,
    MeanFlow,
    ResMLP,
    Shortcut,
    SplitMeanFlow,
    distill,
    fit,
    jump,
    solve,
    teacher_samples,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

SOURCE = """
import torch, torch.distributed as dist
from anabranch.generative import FlowMatching, ResMLP, fit
dist.init_process_group("gloo")
torch.manual_seed(0); torch.set_num_threads(1)
seen = []
class Watch:
    def __call__(self, net, x0, x1, *, generator, **condition):
        seen.extend(x1[:, 0].tolist())
        return FlowMatching()(net, x0, x1, generator=generator)
net = ResMLP(2, 16, 1)
data = torch.arange(32.0)[:, None].expand(32, 2).contiguous()
fit(net, Watch(), data, steps=4, batch_size=8, generator=torch.Generator().manual_seed(3), time_budget_s=60.0)
weights = torch.cat([p.detach().flatten() for p in net.parameters()])
everyone = [torch.empty_like(weights) for _ in range(2)]
dist.all_gather(everyone, weights)
rows = [None, None]
dist.all_gather_object(rows, seen)
if dist.get_rank() == 0:
    assert torch.equal(*everyone), "weights differ between processes"
    assert sorted(rows[0] + rows[1]) == list(range(32)), rows
    print("equal")
dist.barrier()
dist.destroy_process_group()
import os, sys
sys.stdout.flush()
os._exit(0)  # a thread of gloo that is still alive at the interpreter's exit aborts the process
"""


def net(seed: int = 0, **options: object) -> ResMLP:
    torch.manual_seed(seed)
    return ResMLP(2, 16, 1, **options)  # type: ignore[arg-type]


def points(n: int = 64) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(9)) * 0.3 + 1


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_equals_the_loop_written_out(generator: torch.Generator) -> None:
    """AdamW, warm-up times cosine, clipping, and the average with decay min(ema, (i + 1) / (i + 10))."""
    target = torch.tensor([1.0, -2.0])

    def objective(net: nn.Module, *, generator: torch.Generator) -> Loss:
        x = torch.randn(8, 2, generator=generator)
        per_sample = ((net(x, 0.5) - target) ** 2).mean(1)
        return Loss(per_sample.mean(), per_sample)

    twin, ours = net(), net()
    average = copy.deepcopy(twin)
    result = fit(
        ours, objective, steps=20, generator=torch.Generator().manual_seed(5), lr=0.01, weight_decay=0.1, warmup=5,
        ema=0.6, grad_clip=0.5, precision="f32",
    )  # fmt: skip
    draw = torch.Generator().manual_seed(5)
    optimizer = torch.optim.AdamW(twin.parameters(), 0.01, weight_decay=0.1)
    for i in range(20):
        loss = objective(twin, generator=draw).value
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * i / 20)) * min(1, (i + 1) / 5)
        optimizer.step()
        decay = min(0.6, (i + 1) / (i + 10))
        with torch.no_grad():
            for mean, now in zip(average.parameters(), twin.parameters(), strict=True):
                mean.mul_(decay).add_(now, alpha=1 - decay)
    for mine, other in ((result.model, twin), (result.ema, average)):
        for p, q in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert result.model is ours
    assert result.steps == 20
    assert [entry["step"] for entry in result.history] == [0, 10, 19]


def test_resumes_to_the_bit(tmp_path: Path) -> None:
    """Stopped by a progress callback in the middle and gone on in a new process' stead: equal weights, equal averages."""

    def run(net: nn.Module, **options: object) -> object:
        generator = torch.Generator().manual_seed(1)
        label = torch.arange(64) % 4
        return fit(net, FlowMatching(), (points(), label), steps=30, batch_size=24, generator=generator,
                   label_dropout=0.3, coupling=ClasswiseOT(), **options)  # type: ignore[arg-type]  # fmt: skip

    whole = run(net(classes=4))

    class Stop(Exception):
        pass

    def stop(done: int, total: int, metrics: object) -> None:
        if done == 13:
            raise Stop

    place = tmp_path / "deep" / "state.pt"
    with pytest.raises(Stop):
        run(net(classes=4), checkpoint=place, progress=stop)
    other = net(7, classes=4)
    again = run(other, checkpoint=place)
    assert again.steps == 30
    assert same(again.model, whole.model)
    assert same(again.ema, whole.ema)  # type: ignore[attr-defined]
    finished = run(net(8, classes=4), checkpoint=place)  # nothing is left to do
    assert same(finished.model, whole.model)  # type: ignore[attr-defined]
    fresh = run(net(classes=4), checkpoint=place, resume=False)
    assert same(fresh.model, whole.model)  # type: ignore[attr-defined]


def test_checkpoint_of_another_training_is_refused(tmp_path: Path, generator: torch.Generator) -> None:
    place = tmp_path / "state.pt"
    fit(net(), FlowMatching(), points(), steps=2, generator=generator, checkpoint=place)
    with pytest.raises(ValueError, match=r"lr=0.001 there, 0.01 here.*resume=False"):
        fit(net(), FlowMatching(), points(), steps=2, generator=generator, checkpoint=place, lr=0.01)
    wider = ResMLP(2, 24, 1)
    before = copy.deepcopy(wider)
    with pytest.raises(ValueError, match="of another network"):
        fit(wider, FlowMatching(), points(), steps=2, generator=generator, checkpoint=place)
    assert same(wider, before)


def test_micro_batches_make_the_same_step() -> None:
    """The gradient of two halves is that of the whole, for a loss without randomness."""

    def objective(net: nn.Module, x0: Tensor, x1: Tensor, *, generator: torch.Generator) -> Loss:
        per_sample = ((net(x1, 0.5) - x1) ** 2).mean(1)
        return Loss(per_sample.mean(), per_sample)

    results = [
        fit(
            net(),
            objective,
            points(16),
            steps=3,
            batch_size=16,
            accumulate=n,
            generator=torch.Generator().manual_seed(0),
        )
        for n in (1, 2)
    ]
    for p, q in zip(results[0].model.parameters(), results[1].model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_each_row_once_an_epoch_with_its_label(generator: torch.Generator) -> None:
    rows: list[float] = []
    labels: list[int] = []

    def objective(net: nn.Module, x0: Tensor, x1: Tensor, *, generator: torch.Generator, label: Tensor) -> Loss:
        assert x0.shape == x1.shape
        assert not torch.equal(x0, x1)
        rows.extend(x1[:, 0].tolist())
        labels.extend(label.tolist())
        return FlowMatching()(net, x0, x1, generator=generator, label=label)

    x = torch.arange(10.0)[:, None].expand(10, 2).contiguous()
    fit(net(classes=10), objective, (x, torch.arange(10)), steps=4, batch_size=5, generator=generator)
    assert rows == [float(label) for label in labels]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    labels.clear()
    fit(net(classes=10), objective, (x, torch.arange(10)), steps=200, batch_size=5, generator=generator,
        label_dropout=0.25)  # fmt: skip
    assert abs(labels.count(10) / 1000 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)


def test_time_budget_ends_at_rate_zero(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """With a clock that moves 0.1 s at each look, 5 s are over long before a million steps, and the rate has fallen to 0."""
    import importlib

    now = iter(0.1 * i for i in range(10_000))
    module = importlib.import_module("anabranch.generative.fit")
    monkeypatch.setattr(module, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(now))}))
    result = fit(net(), FlowMatching(), points(), steps=1_000_000, generator=generator, time_budget_s=5.0, log_every=1)
    assert 10 < result.steps <= 50
    rates = [entry["lr"] for entry in result.history]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.02 * rates[0]


def test_a_loss_that_is_not_finite_stops(generator: torch.Generator) -> None:
    model, x = net(), points()
    x[5] = math.nan
    before = copy.deepcopy(model)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 0, sample \d+ of the batch"):
        fit(model, FlowMatching(), x, steps=5, batch_size=64, generator=generator)
    assert same(model, before)


def test_average_that_the_objective_sees(generator: torch.Generator) -> None:
    """The network given as ``average`` holds the average and can be the target of the loss while training."""
    model = FlowMapModel.from_velocity(net())
    average = copy.deepcopy(model)
    result = fit(model, SplitMeanFlow(target=average), points(), steps=5, generator=generator, average=average)
    assert result.ema is average
    assert not same(average, model)
    with pytest.raises(ValueError, match="average has other parameters"):
        fit(model, SplitMeanFlow(), points(), steps=5, generator=generator, average=net())


def test_threads_are_chosen_and_nothing_is_moved(generator: torch.Generator) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        chosen = fit(net(), FlowMatching(), points(), steps=3, generator=generator, threads="auto")
        assert torch.get_num_threads() in (1, 2)
    finally:
        torch.set_num_threads(before)
    plain = fit(net(), FlowMatching(), points(), steps=3, generator=torch.Generator().manual_seed(0))
    for p, q in zip(chosen.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.xdist_group("distributed")
def test_two_processes_share_the_rows_and_agree(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SOURCE)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"lr_schedule": "linear"}, "lr_schedule"),
        ({"precision": "f16"}, "precision"),
        ({"time_budget_s": -1.0}, "time_budget_s must be > 0"),
        ({"batch_size": 10, "accumulate": 3}, "batch_size=10: expected a multiple"),
        ({"label_dropout": 0.1}, "label_dropout=0.1 needs labels"),
        ({"data": (points(4), torch.zeros(3, dtype=torch.int64))}, r"data's labels have shape \(3,\): expected \[4\]"),
        ({"data": torch.zeros(0, 2)}, "data has shape"),
        ({"data": None, "label_dropout": 0.5}, "belong to data"),
    ],
)
def test_bad_input(options: dict[str, object], message: str, generator: torch.Generator) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        fit(net(), FlowMatching(), **{"data": points(), "steps": 2, "generator": generator, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", [SplitMeanFlow(), MeanFlow(), Shortcut()])
def test_distill_learns_a_known_map(objective: object) -> None:
    """From the exact velocity of a Gaussian: the one-step sample comes close to the exact end point."""
    world = GaussianMixture(weights=[1.0], means=[[1.0, -0.5]], covariances=0.25)
    draw = torch.Generator().manual_seed(2)
    torch.manual_seed(0)
    teacher = ResMLP(2, 32, 2)
    data = world.sample(2000, generator=draw).float()
    trained = fit(teacher, FlowMatching(), data, steps=300, generator=draw, lr=5e-3).ema
    student = distill(trained, data, objective=objective, steps=600, generator=draw, lr=5e-3, field=world.velocity())
    x0 = torch.randn(500, 2, generator=draw)
    exact = solve(world.velocity(), x0, uniform_times(50), "rk4")
    error = (jump(student.ema, x0, uniform_times(1)) - exact).square().mean().sqrt()
    straight = (solve(trained, x0, uniform_times(1)) - exact).square().mean().sqrt()
    assert error < 0.35 * straight
    assert all(not p.requires_grad or p.grad is None for p in trained.parameters())


def test_distill_with_guidance_and_without_data() -> None:
    draw = torch.Generator().manual_seed(2)
    teacher = net(classes=3)
    label = torch.arange(40) % 3
    data = teacher_samples(teacher, torch.randn(40, 2, generator=draw), label=label, steps=4, batch=16)
    assert isinstance(data, tuple)
    assert data[0].shape == (40, 2)
    assert torch.equal(data[1], label)
    student = distill(teacher, data, objective=SplitMeanFlow(), steps=2, generator=draw, guidance=2.0)
    assert student.ema(data[0], 0.0, 1.0, label=label).shape == (40, 2)
    with pytest.raises(ValueError, match=r"guidance=2.0 needs null_condition"):
        distill(net(), points(), objective=SplitMeanFlow(), steps=2, generator=draw, guidance=2.0)
    with pytest.raises(ValueError, match="FlowMatching takes no velocity"):
        distill(net(), points(), objective=FlowMatching(), steps=2, generator=draw)
