"""Distillation without data as a whole: no data is touched, it resumes to the bit, its student samples in one call."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anabranch.generative import (
    ClassifierFreeGuidance,
    Counted,
    DiffusersNetwork,
    DistributionCorrection,
    FlowMapModel,
    FreeFlow,
    GaussianSource,
    PixelUNet,
    ResidualField,
    ResMLP,
    StudentAndCritic,
    TrajectoryPrediction,
    best_of_n,
    check_teacher,
    distill_without_data,
    fit,
    jump,
    metrics,
    solve,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

MIXTURE = GaussianMixture(weights=[1, 2], means=[[1.5, 0.0], [-1.0, 1.0]], covariances=[0.1, 0.2])
SOURCE = GaussianSource((2,))

NO_DATA = """
import sys, torch
from torch.utils import data
from anabranch.generative import GaussianSource, ResMLP, distill_without_data, jump, uniform_times
from anabranch.worlds import fashion_mnist

class Raising(data.Dataset):
    def __len__(self): return 10
    def __getitem__(self, i): raise AssertionError("data were read")

loader = data.DataLoader(Raising())
torch.manual_seed(0)
teacher = ResMLP(3, 16, 1)
teacher.loader = loader  # attached: whoever looks at it raises
source = GaussianSource((3,))
def run():
    generator = torch.Generator().manual_seed(0)
    done = distill_without_data(teacher, source, steps=5, generator=generator, batch_size=8, correction_warmup=1,
                                check_convention=False)
    return jump(done.ema, source.sample(4, generator=generator), uniform_times(1))
run()  # everything is imported now
opened = []
sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event in ("open", "os.listdir", "os.scandir",
                 "socket.connect") else None)
x = run()
assert not opened, opened
assert torch.isfinite(x).all()
try:
    next(iter(loader))
except AssertionError:
    print("nothing was read")
"""

TWO_PROCESSES = """
import torch, torch.distributed as dist
from anabranch.generative import *
dist.init_process_group("gloo")
torch.manual_seed(0); torch.set_num_threads(1)
net = StudentAndCritic(FlowMapModel.from_velocity(ResMLP(2, 16, 1)), ResMLP(2, 16, 1))
seen = []
def teacher(x, t):
    seen.append(float(x.sum()))
    return -x
free = FreeFlow(TrajectoryPrediction(teacher), DistributionCorrection(teacher), GaussianSource((2,)), batch_size=8, warmup=1)
done = fit(net, free, steps=4, generator=torch.Generator().manual_seed(3), log_every=1)
weights = torch.cat([p.detach().flatten() for p in net.parameters()])
everyone, inputs, balances = [torch.empty_like(weights) for _ in range(2)], [None] * 2, [None] * 2
dist.all_gather(everyone, weights)
dist.all_gather_object(inputs, seen)
dist.all_gather_object(balances, [entry["balance"] for entry in done.history])
if dist.get_rank() == 0:
    assert torch.equal(*everyone), "weights differ between processes"
    assert not set(inputs[0]) & set(inputs[1]), "both processes drew the same noise"
    assert balances[0] == balances[1], "the balance is not common"
    print("equal")
dist.barrier()
dist.destroy_process_group()
import os, sys
sys.stdout.flush()
os._exit(0)  # a thread of gloo that is still alive at the interpreter's exit aborts the process
"""


def nets(seed: int = 0, width: int = 64) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {"student": ResMLP(2, width, 2), "critic": ResMLP(2, width, 2)}


def run(steps: int = 40, **options: Any) -> Any:
    given = {
        **nets(),
        "generator": torch.Generator().manual_seed(1),
        "batch_size": 32,
        "correction_warmup": 10,
        **options,
    }
    return distill_without_data(given.pop("teacher", MIXTURE.velocity()), SOURCE, steps=steps, **given)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_no_loader_and_no_file_is_touched(tmp_path: Path) -> None:
    environment = {**os.environ, "ANABRANCH_DATA": str(tmp_path / "absent"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", NO_DATA], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "nothing was read"


def test_there_is_no_place_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's one door for data is shut, and nobody knocks; whoever brings data is told."""

    class Raising:
        def __init__(self, *given: object) -> None:
            raise AssertionError("data were read")

    monkeypatch.setattr(sys.modules["anabranch.generative.fit"], "Batches", Raising)
    run(3)
    with pytest.raises(TypeError, match="there is no data here"):
        run(3, data=torch.zeros(4, 2))


def test_its_student_comes_near_the_teacher_in_one_call() -> None:
    x0 = SOURCE.sample(1000, generator=torch.Generator().manual_seed(2))
    truth = solve(MIXTURE.velocity(), x0, uniform_times(32), "rk4")
    done = run(500, batch_size=128, split=1.0, ema=0.98, lr=2e-3)
    found, one = jump(done.ema, x0, uniform_times(1)), solve(MIXTURE.velocity(), x0, uniform_times(1))
    assert float((found - truth).square().mean()) < 0.3 * float((one - truth).square().mean())
    assert metrics.frechet_distance(found, truth) < 0.3 * metrics.frechet_distance(one, truth)
    first, last = (done.history[i]["prediction"] for i in (0, -1))
    assert last < 0.5 * first


def test_a_network_is_copied_and_left_as_it_is() -> None:
    torch.manual_seed(0)
    teacher = PixelUNet(classes=10, channels=8)
    for p in teacher.parameters():
        nn.init.normal_(p, std=0.02)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    source = GaussianSource((1, 28, 28))
    done = distill_without_data(
        teacher, source, steps=2, generator=torch.Generator().manual_seed(0), batch_size=4, guidance=2.0,
        correction_warmup=0, check_convention=False,
    )  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert isinstance(done.ema, FlowMapModel)
    assert not same(done.ema.net, teacher)
    assert {"prediction", "correction", "critic", "balance", "dropped"} <= set(done.history[-1])
    x = jump(done.ema, source.sample(2, generator=None), uniform_times(1), label=torch.tensor([0, 3]))
    assert x.shape == (2, 1, 28, 28)


def test_at_the_start_the_student_is_the_teachers_first_step() -> None:
    torch.manual_seed(0)
    teacher = ResMLP(2, 16, 1)
    for p in teacher.parameters():
        nn.init.normal_(p, std=0.2)
    student = FlowMapModel.from_velocity(teacher)
    z = SOURCE.sample(8, generator=torch.Generator().manual_seed(0))
    for t in (0.0, 0.3, 1.0):
        assert torch.equal(student(z, torch.zeros(8), torch.full((8,), t)), teacher(z, torch.zeros(8)))


def test_it_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = run(30)

    class Stop(Exception):
        pass

    def stop(step: int, steps: int, metrics: object) -> None:
        if step == 17:
            raise Stop

    path = tmp_path / "training.pt"
    with pytest.raises(Stop):
        run(30, checkpoint=path, progress=stop)
    parted = run(30, checkpoint=path)
    assert same(whole.model, parted.model)
    assert same(whole.ema, parted.ema)
    assert parted.steps == 30
    again = run(30)
    assert same(whole.ema, again.ema)


def test_a_time_budget_stops_it() -> None:
    done = run(10**6, time_budget_s=0.5)
    assert 1 <= done.steps < 10**6
    assert done.seconds < 5


def test_the_corrections_teacher_is_guided_in_its_own_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[float, float]] = []
    init = ClassifierFreeGuidance.__post_init__

    def watched(self: ClassifierFreeGuidance) -> None:
        made.append(self.interval)
        init(self)

    monkeypatch.setattr(ClassifierFreeGuidance, "__post_init__", watched)
    torch.manual_seed(0)
    distill_without_data(
        ResMLP(2, 8, 1, classes=3), SOURCE, steps=1, generator=torch.Generator().manual_seed(0), batch_size=8, guidance=1.5,
        check_convention=False,
    )  # fmt: skip
    assert made == [(0.0, 1.0), (0.3, 1.0)]


@pytest.mark.xdist_group("distributed")
def test_two_processes_share_weights_and_balance() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-c", TWO_PROCESSES]
    command[-2:] = ["--no-python", sys.executable, "-c", TWO_PROCESSES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout


REVERSED = {
    "time": lambda x, t: MIXTURE.velocity()(x, 1 - t),
    "sign": lambda x, t: -MIXTURE.velocity()(x, t),
    "scale": lambda x, t: 5.0 * -x,
}


@pytest.mark.parametrize("wrong", REVERSED.values(), ids=REVERSED.keys())
def test_a_reversed_teacher_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="time or sign looks reversed"):
        run(1, teacher=wrong)
    assert run(1, teacher=wrong, check_convention=False).steps == 1


def test_right_teachers_are_not_refused() -> None:
    check_teacher(MIXTURE.velocity(), SOURCE)
    check_teacher(MIXTURE.velocity(source_scale=2.0), GaussianSource((2,), scale=2.0))
    far = GaussianMixture(weights=[1.0], means=[[3.0, -3.0]], covariances=0.1)
    check_teacher(far.velocity(), SOURCE)


def test_a_teacher_in_training_mode_with_dropout_is_evaluated_with_a_warning() -> None:
    class Dropping(ResMLP):
        def __init__(self) -> None:
            super().__init__(2, 8, 1)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor, t: Any) -> Tensor:  # type: ignore[override]
            assert not (self.training and not torch.is_grad_enabled())
            return super().forward(self.drop(x), t)

    teacher = Dropping()
    with pytest.warns(UserWarning, match="Dropout"):
        distill_without_data(
            teacher, SOURCE, steps=1, generator=torch.Generator().manual_seed(0), batch_size=8, check_convention=False, split=1.0,
            student=FlowMapModel.from_velocity(ResMLP(2, 8, 1)), critic=ResMLP(2, 8, 1),
        )  # fmt: skip
    assert teacher.training


def test_a_diffusers_teacher_is_a_house_velocity_and_can_be_distilled() -> None:
    """A random SD3 transformer: minus its output at the flipped time; one Euler step is the scheduler's; two steps train."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    net = DiffusersNetwork(model, scheduler)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 4, 8, 8, generator=g)
    words, pooled = torch.randn(4, 5, 16, generator=g), torch.randn(4, 16, generator=g)
    said = {"encoder_hidden_states": words, "pooled_projections": pooled}
    with torch.no_grad():
        output = model(x, timestep=torch.full((4,), 750.0), **said).sample
        torch.testing.assert_close(net(x, 0.25, **said), -output)
    scheduler.set_timesteps(4)
    sigma = scheduler.sigmas
    with torch.no_grad():
        theirs = scheduler.step(
            model(x, timestep=scheduler.timesteps[:1].expand(4), **said).sample, scheduler.timesteps[0], x
        )
        times = 1 - sigma[:2].double()
        ours = solve(net, x, times, "euler", **said)
    assert float((ours - theirs.prev_sample).abs().max()) <= 1e-5

    def conditions(n: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(4, (n,), generator=generator)
        return {name: value[rows] for name, value in said.items()}

    done = distill_without_data(
        net, GaussianSource((4, 8, 8)), steps=2, generator=g, batch_size=4, conditions=conditions, embedding=net.embedding,
        correction_warmup=0, check_convention=False,
    )  # fmt: skip
    assert jump(done.ema, x, uniform_times(1), **said).shape == x.shape


def test_the_best_of_n_is_the_best_of_n(generator: torch.Generator) -> None:
    student = Counted(lambda x, s, t, label: x + label[:, None])  # type: ignore[arg-type]

    def flow_map(x: Tensor, s: Any, t: Any, label: Tensor) -> Tensor:
        student.calls += 1
        return x + label[:, None]

    label = torch.tensor([0.0, 10.0, 20.0])
    best = best_of_n(flow_map, lambda x, label: -x[:, 0], SOURCE, 3, 7, generator=generator, label=label)
    draw = torch.Generator().manual_seed(0)
    x0 = torch.stack([SOURCE.sample(3, generator=draw) for _ in range(7)], 1)
    scores = -(2 * x0[..., 0] + label[:, None])
    torch.testing.assert_close(best.scores, scores)
    torch.testing.assert_close(best.score, scores.max(1).values)
    torch.testing.assert_close(best.x0, x0[torch.arange(3), scores.argmax(1)])
    torch.testing.assert_close(best.x1, 2 * best.x0 + label[:, None])
    assert student.calls == 7
    parts = best_of_n(flow_map, lambda x, label: -x[:, 0], SOURCE, 3, 7, generator=torch.Generator().manual_seed(0), label=label,
                      batch_size=2)  # fmt: skip
    assert torch.equal(parts.x0, best.x0)


def test_a_residual_field_begins_as_the_field_and_trains_its_network_only(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    field, x = ResMLP(2, 8, 1), SOURCE.sample(5, generator=generator)
    for p in field.parameters():
        nn.init.normal_(p, std=0.2)
    sum_of_both = ResidualField(field, ResMLP(2, 8, 1))
    t = torch.rand(5, generator=generator)
    assert torch.equal(sum_of_both(x, t), field(x, t))
    sum_of_both(x, t).square().sum().backward()
    assert all(p.grad is None for p in field.parameters())
    assert {name.split(".")[0] for name, _ in sum_of_both.named_parameters()} == {"net"}
    assert any(p.grad is not None and bool(p.grad.any()) for p in sum_of_both.parameters())


def test_bad_input(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="the teacher gives"):
        run(1, teacher=lambda x, t: x[:, :1])
    with pytest.raises(ValueError, match="not finite at t = 0"):
        run(1, teacher=lambda x, t: x * float("nan"))
    with pytest.raises(TypeError, match="give student= and critic="):
        distill_without_data(MIXTURE.velocity(), SOURCE, steps=1, generator=generator)
    with pytest.raises(ValueError, match=r"guidance=2\.0 needs null_condition"):
        run(1, guidance=2.0)
    with pytest.raises(ValueError, match="batch_size must be >= 2"):
        run(1, batch_size=1)
    with pytest.raises(ValueError, match="n must be >= 1"):
        best_of_n(MIXTURE.flow_map(), lambda x: x[:, 0], SOURCE, 3, 0, generator=generator)
    with pytest.raises(ValueError, match="score gives"):
        best_of_n(MIXTURE.flow_map(steps=1), lambda x: x, SOURCE, 3, 1, generator=generator)
    free = FreeFlow(TrajectoryPrediction(MIXTURE.velocity()), DistributionCorrection(MIXTURE.velocity()), SOURCE)
    with pytest.raises(TypeError, match="StudentAndCritic"):
        fit(ResMLP(2, 8, 1), free, steps=1, generator=generator)
    with pytest.raises(TypeError, match=r"two times|second time|flow map"):
        StudentAndCritic(nn.Linear(2, 2), nn.Linear(2, 2))
