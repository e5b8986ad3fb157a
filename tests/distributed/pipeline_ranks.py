"""What the processes of the tests do. A module of its own: they import it."""

from __future__ import annotations

import os
import signal
import time
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anabranch.distributed import LocalPipeline, Pipeline, PopSkip, StashSkip

SAMPLES = 11


def mlp(dropout: float = 0.0, norm: bool = False, seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(5, 12), nn.Tanh()]
    for _ in range(2):
        layers += [nn.Linear(12, 12), nn.BatchNorm1d(12) if norm else nn.GELU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return [layer.double() for layer in [*layers, nn.Linear(12, 3)]]


class Faulting(nn.Module):
    """As a library that uses memory it was refused."""

    def forward(self, x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGSEGV)
        return x


def faulting_layers() -> list[nn.Module]:
    return [nn.Sequential(nn.Flatten(), nn.Linear(784, 8)), Faulting(), nn.Linear(8, 10)]


def with_skips() -> list[nn.Module]:
    torch.manual_seed(1)
    shared = nn.Linear(6, 6).double()
    return [
        nn.Linear(5, 6).double(), StashSkip("far"), nn.Tanh(), StashSkip("near"), shared, nn.Tanh(),
        PopSkip("near"), nn.Linear(6, 6).double(), PopSkip("far", torch.mul), shared, nn.Linear(6, 3).double(),
    ]  # fmt: skip


def data(samples: int = SAMPLES, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 5, dtype=torch.float64, generator=generator), torch.randint(
        3, (samples,), generator=generator
    )


def gradients(pipeline: Pipeline) -> dict[str, Tensor]:
    return {
        name: t.grad.clone()
        for name, t in pipeline._parts.full_names(pipeline.stage)
        if isinstance(t, nn.Parameter) and t.grad is not None
    }


def many_steps(cases: list[dict[str, Any]]) -> list[Any]:
    """For every case: (loss, gradients of this stage) of two steps, the second with the shapes known."""
    found = []
    for case in cases:
        options = dict(case)
        layers = {"mlp": mlp, "skips": with_skips}[options.pop("model")](**options.pop("arguments", {}))
        pipeline = Pipeline(layers, **options)
        x, y = data()
        for _ in range(2):
            for parameter in pipeline.parameters():
                parameter.grad = None
            torch.manual_seed(100 + pipeline.stage)
            loss = pipeline.step(x, y, nn.functional.cross_entropy, broadcast=True)
        found.append((float(loss), gradients(pipeline)))
        assert len(pipeline.timeline) == len(list(pipeline.schedule.actions(pipeline.stage)))
    return found


def train(case: dict[str, Any], optimizer: str, steps: int) -> Any:
    pipeline = Pipeline(mlp(), **case)
    chosen = getattr(torch.optim, optimizer)(pipeline.parameters(), lr=0.05)
    for step in range(steps):
        chosen.zero_grad()
        pipeline.step(*data(SAMPLES + step % 3, seed=step), nn.functional.cross_entropy)  # sizes change
        chosen.step()
    full = pipeline.state_dict_full()
    again = Pipeline(mlp(seed=9), **case)
    if dist.get_world_size() == 1:
        again.load_full(full)
        assert all(torch.equal(a, b) for a, b in zip(pipeline.parameters(), again.parameters(), strict=True))
    return full, pipeline.predict(data(4)[0]), pipeline.predict(data(2)[0])


def normed(checkpoint: str) -> Any:
    pipeline = Pipeline(mlp(norm=True), micro_batches=4, checkpoint=checkpoint)
    for seed in range(3):
        pipeline.step(*data(seed=seed), nn.functional.cross_entropy)
    full = pipeline.state_dict_full()
    return full, pipeline.eval().predict(data()[0])


class Fails(nn.Module):
    """The identity, until it is called once too often."""

    def __init__(self, how: str, calls: int) -> None:
        super().__init__()
        self.how, self.left = how, calls

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            if self.how == "raise":
                raise ArithmeticError("a value that only this layer knows")
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600)
        return x


def failing(how: str, stage: int, calls: int, schedule: str) -> None:
    layers = mlp()
    balance = [2, 2, 3]
    layers.insert(sum(balance[:stage]), Fails(how, calls))
    balance[stage] += 1
    pipeline = Pipeline(layers, balance, micro_batches=4, schedule=schedule, timeout_s=3 if how == "hang" else 600)
    for _ in range(3):
        pipeline.step(*data(), nn.functional.cross_entropy)


def caught() -> tuple[str, str]:
    """A failure that the user's code catches: nobody hangs, and a new pipeline works."""
    pipeline = Pipeline(mlp(), micro_batches=4)
    said = ""
    try:
        pipeline.step(data()[0], data(9)[1], nn.functional.cross_entropy)
    except (ValueError, RuntimeError) as error:
        said = f"{type(error).__name__}: {error}"
    after = ""
    try:
        pipeline.step(*data(), nn.functional.cross_entropy)
    except RuntimeError as error:
        after = str(error)
    return said, after


def local(case: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    options = dict(case)
    layers = {"mlp": mlp, "skips": with_skips}[options.pop("model")](**options.pop("arguments", {}))
    pipeline = LocalPipeline(layers, **options)
    loss = pipeline.step(*data(), nn.functional.cross_entropy)
    return float(loss), {n: t.grad for n, t in named(pipeline) if t.grad is not None}


def named(pipeline: LocalPipeline) -> list[tuple[str, Tensor]]:
    return [pair for k in range(len(pipeline.balance)) for pair in pipeline._parts.full_names(k)]


def fail_anywhere(rank: int, how: str) -> int:
    """Without a pipeline: others wait in a collective."""
    if dist.get_rank() == rank:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError("outside of a pipeline")
    dist.barrier()
    return 1


def add(a: int, b: int) -> int:
    return a + b + dist.get_rank() * 100 + 1000 * torch.get_num_threads()


SLEEP_S = (0.03, 0.06)  # forward, backward


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        time.sleep(SLEEP_S[0])
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        time.sleep(SLEEP_S[1])
        return gradients[0], gradients[0].sum()


class Sleeper(nn.Module):
    """Takes a known time, whatever its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return _Sleep.apply(x, self.weight)


def sleepers() -> list[nn.Module]:
    return [Sleeper() for _ in range(4)]


def recomputations(held: Any) -> dict[tuple[str, str, int], int]:
    """Of the last step of every pipeline that a bench has built, by (arm, checkpoint, micro-batches)."""
    return {
        (name, checkpoint, m): sum(did.kind == "R" for did in arm.pipeline.timeline)
        for (name, m, _, checkpoint), arm in held.arms.items()
        if arm.pipeline is not None
    }


class Watched:
    """Counted while it lives."""

    def __init__(self) -> None:
        _WATCHED.add(self)


_WATCHED: weakref.WeakSet[Watched] = weakref.WeakSet()


def watching(_: Any = None) -> int:
    return len(_WATCHED)
