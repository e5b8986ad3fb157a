"""One training in several ways: ours beside torch's pipelines, gradients of the whole batch, costs and links measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pickle import PicklingError
from typing import Any

import numpy as np
import pipeline_ranks
import pytest
import torch
from torch import nn

from anabranch.distributed import (
    LayerProfile,
    PlanOutcome,
    RankFailed,
    Ranks,
    TrainingBench,
    gradient_error,
    launching,
    measure_averaging,
    measure_link,
    plan_pipeline,
    prediction_error,
    profile_at,
    relative_gradient_error,
    torch_threads,
    vision_transformer_layers,
)

pytestmark = pytest.mark.xdist_group("distributed")
cross_entropy = nn.functional.cross_entropy


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(2) as made:
        yield made


def images(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(samples, 1, 28, 28, generator=generator), torch.arange(samples) % 10


def transformer_bench(ranks: Ranks, **options: Any) -> TrainingBench:
    make = partial(vision_transformer_layers, blocks=2, width=16)
    return TrainingBench(ranks, make, *images(24), **{"batch": 16, "balance": [2, 2], "seed": 3, **options})


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_losses_and_gradients_are_those_of_torch(ranks: Ranks, schedule: str, micro_batches: int) -> None:
    """``ScheduleGPipe`` and ``Schedule1F1B`` of ``torch.distributed.pipelining``, which need equal micro-batches."""
    if schedule == "1f1b" and micro_batches == 1:
        pytest.skip("Schedule1F1B refuses fewer micro-batches than stages")
    bench = transformer_bench(ranks)
    for arm in (schedule, f"{schedule}-recompute"):
        assert bench.run(arm, micro_batches) == pytest.approx(bench.run(f"torch {schedule}", micro_batches), abs=1e-6)
        ours, theirs = bench.gradients(arm, micro_batches), bench.gradients(f"torch {schedule}", micro_batches)
        assert set(ours) == set(theirs)
        for name, tensor in theirs.items():
            assert (ours[name] - tensor).abs().max() <= 1e-6, name
            assert tensor.abs().max() > 1e-4, name  # there is something to compare
    assert relative_gradient_error(theirs, bench.gradients("one process")) < 1e-5


def test_all_arms_train_alike_and_go_through_the_data(ranks: Ranks) -> None:
    bench = transformer_bench(ranks)
    adam = partial(torch.optim.Adam, lr=3e-3)
    alone = bench.train("one process", steps=4, make_optimizer=adam, with_state=True)  # type: ignore[arg-type]
    torch.manual_seed(3)
    model = nn.Sequential(*vision_transformer_layers(blocks=2, width=16))
    optimizer = adam(model.parameters())
    x, y = images(24)
    for step in range(4):
        rows = torch.arange(16 * step, 16 * (step + 1)) % 24
        optimizer.zero_grad()
        loss = cross_entropy(model(x[rows]), y[rows])
        assert alone.losses[step] == pytest.approx(loss.item(), abs=1e-5)
        loss.backward()
        optimizer.step()
    assert list(alone.state) == list(model.state_dict())
    for arm, micro_batches in (
        ("gpipe", 5),
        ("gpipe-recompute", 3),
        ("1f1b", 4),
        ("naive", 1),
        ("ddp", 1),
        ("torch gpipe", 4),
    ):
        found = bench.train(arm, micro_batches, steps=4, make_optimizer=adam, with_state=True)  # type: ignore[arg-type]
        assert found.losses == pytest.approx(alone.losses, abs=1e-4), arm
        assert set(found.state) == set(alone.state)
        for name, tensor in alone.state.items():
            assert (found.state[name] - tensor).abs().max() < 2e-3, (arm, name)  # Adam makes much of small gradients
    assert bench.train("gpipe", 2, steps=1).state == {}
    assert bench.run("gpipe", 4) == pytest.approx(alone.losses[0], abs=1e-5)  # weights of run are the first ones


def test_timelines_and_profiles(ranks: Ranks) -> None:
    bench = transformer_bench(ranks)
    found = bench.timelines("gpipe", 4, repeats=2)
    assert len(found) == 2
    for timeline in found:
        assert timeline.schedule.micro_batches == 4
        assert 0 < timeline.busy_s.max() <= timeline.step_s
    profile = bench.profile(8, repeats=2)
    assert (profile.layers, profile.samples) == (4, 8)
    assert profile.params.sum() == sum(p.numel() for p in nn.Sequential(*bench_layers()).parameters())
    assert (profile.forward_s > 0).all()
    with pytest.raises(ValueError, match="batch among them"):
        transformer_bench(ranks, batch=25)


def test_plans_are_carried_out(ranks: Ranks) -> None:
    bench = transformer_bench(ranks)
    profiles = [bench.profile(size, repeats=2) for size in (2, 16)]
    plans = plan_pipeline(profiles, devices=2, memory_bytes=1e12, bandwidth_bytes_per_s=1e9, batch=16)
    asked = {
        ("gpipe", "never", 4),
        ("gpipe-recompute", "except_last", 4),
        ("gpipe-recompute", "always", 4),
        ("1f1b", "never", 8),
        ("1f1b-recompute", "except_last", 2),
        ("1f1b-recompute", "always", 2),
        ("ddp", "never", 1),
        ("one process", "never", 1),
    }
    chosen = {(p.arm, p.checkpoint, p.micro_batches): p for p in plans}
    assert asked <= set(chosen)
    for key in asked:
        done = bench.carry_out(chosen[key], repeats=2)
        assert len(done.seconds) == 2
        # with 1F1B the first stage's inputs are views of the whole mini-batch, 16 images, which stays
        assert done.memory_bytes == pytest.approx(chosen[key].memory_bytes, rel=0.02, abs=16 * 784 * 4), key
    alike = {word: chosen["gpipe-recompute" if word == "always" else "gpipe", word, 4] for word in ("always", "never")}
    memory = alike["always"].memory_bytes[0], alike["never"].memory_bytes[1]
    mixed = replace(alike["always"], checkpoint=("always", "never"), memory_bytes=memory)
    assert bench.carry_out(mixed, repeats=1).memory_bytes == pytest.approx(memory, rel=0.02, abs=16 * 784 * 4)
    told = ranks.call(pipeline_ranks.recomputations, bench._held)
    assert [rank.pop((mixed.arm, mixed.checkpoint, 4)) for rank in told] == [4, 0]
    again = {"never": lambda m: 0, "except_last": lambda m: m - 1, "always": lambda m: m}
    wanted = {key: again[key[1]](key[2]) for key in asked if key[0] not in ("ddp", "one process")}
    for rank in told:
        assert rank == wanted  # what was timed recomputes what the plan does
    with pytest.raises(
        ValueError, match="expected one stage and the whole mini-batch without recomputation, or 2 stages"
    ):
        bench.carry_out(next(p for p in plans if p.stages == 1 and p.micro_batches == 4))
    with pytest.raises(ValueError, match="1 micro-batches and checkpoint='always'"):
        bench.carry_out(chosen["one process", "always", 1])
    with pytest.raises(ValueError, match="plan is for batch=16, expected 12"):
        transformer_bench(ranks, batch=12).carry_out(chosen["gpipe", "never", 4])


def test_seconds_are_those_of_layers_that_take_a_known_time(ranks: Ranks) -> None:
    """Layers that sleep: on two stages of two layers a step is (M + 1) (2 forward + 2 backward)."""
    forward, backward = pipeline_ranks.SLEEP_S
    x, y = torch.ones(4, 3), torch.zeros(4, dtype=torch.long)
    bench = TrainingBench(ranks, pipeline_ranks.sleepers, x, y, balance=[2, 2])
    profiles = bench.profiles([1, 4], repeats=2)
    for profile in profiles:
        assert (profile.forward_s >= forward).all()
        assert (profile.backward_s >= backward).all()
    plans = plan_pipeline(profiles, devices=2, memory_bytes=1e12, bandwidth_bytes_per_s=1e9, batch=4)
    plan = next(p for p in plans if (p.arm, p.micro_batches, p.balance) == ("gpipe", 2, (2, 2)))
    least = 3 * (2 * forward + 2 * backward)
    done = bench.carry_out(plan, repeats=3)
    assert min(done.seconds) >= least  # nobody wakes too early
    assert plan.step_s >= least * (1 - 1e-9)
    with pytest.raises(ValueError, match="samples must be between 1 and 4, got 5"):
        bench.profile(5)
    with pytest.raises(ValueError, match="repeats must be >= 1, got 0"):
        bench.profile(1, repeats=0)


def test_the_step_of_an_outcome_is_the_median() -> None:
    assert PlanOutcome([9.0, 1.0, 2.0], [1]).step_s == 2.0
    assert PlanOutcome([9.0, 1.0, 2.0, 4.0], [1]).step_s == 3.0


@pytest.mark.parametrize("batch", [3, 15])
def test_parts_of_unequal_size_are_weighted(ranks: Ranks, batch: int) -> None:
    bench = transformer_bench(ranks, batch=batch)
    assert bench.run("ddp") == pytest.approx(bench.run("one process"), abs=1e-6)
    assert relative_gradient_error(bench.gradients("ddp"), bench.gradients("one process")) < 1e-5
    bench.release()
    with pytest.raises(ValueError, match="forgotten"):
        bench.run("ddp")


def bench_layers() -> list[nn.Module]:
    return vision_transformer_layers(blocks=2, width=16)


def test_what_processes_keep_is_theirs(ranks: Ranks) -> None:
    one, other = ranks.keep(pipeline_ranks.add, 1, 2), ranks.keep(pipeline_ranks.add, 5, 5)
    assert one != other
    assert ranks.call(pipeline_ranks.add, one, 0) == [1003 + 1000, 1103 + 100 + 1000]
    assert ranks.call(pipeline_ranks.add, other, 0) == [1010 + 1000, 1110 + 100 + 1000]


def test_what_is_forgotten_is_freed(ranks: Ranks) -> None:
    watched, other = ranks.keep(pipeline_ranks.Watched), ranks.keep(pipeline_ranks.add, 1, 2)
    assert ranks.call(pipeline_ranks.watching) == [1, 1]
    ranks.forget(watched)
    assert ranks.call(pipeline_ranks.watching) == [0, 0]
    for use in (ranks.forget, partial(ranks.call, pipeline_ranks.watching)):
        with pytest.raises(ValueError, match="forgotten"):
            use(watched)
    assert ranks.call(pipeline_ranks.add, other, 0) == [1003 + 1000, 1103 + 100 + 1000]


def test_processes_do_not_take_what_others_keep_nor_late_answers(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ranks.keep(pipeline_ranks.add, 1, 2)
    with pytest.raises((AttributeError, PicklingError)):
        ranks.call(lambda: 1)  # which begins nothing: the processes go on
    with Ranks(2) as others:
        theirs = others.keep(pipeline_ranks.add, 5, 5)
        for one, kept in ((ranks, theirs), (others, mine)):
            with pytest.raises(ValueError, match="kept by other processes"):
                one.call(pipeline_ranks.add, kept, 0)
        with pytest.raises(RankFailed, match="batch has 1 samples: 2 processes need at least one each"):
            transformer_bench(others, batch=1).run("ddp")
    assert ranks.call(pipeline_ranks.add, mine, 0) == [1003 + 1000, 1103 + 100 + 1000]

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with Ranks(1) as stopped:
        with monkeypatch.context() as patch:
            patch.setattr(launching, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                stopped.call(pipeline_ranks.add, 1, 2)
        assert stopped.pids == []
        with pytest.raises(ValueError, match="have been stopped"):
            stopped.call(pipeline_ranks.add, 3, 4)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()

    @torch_threads(3)
    def threads(fails: bool) -> int:
        if fails:
            raise KeyError
        return torch.get_num_threads()

    assert (threads(False), torch.get_num_threads()) == (3, before)
    with pytest.raises(KeyError):
        threads(True)
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="count must be >= 1, got 0"), torch_threads(0):
        pass


def test_links_are_measured(ranks: Ranks) -> None:
    found = measure_link(ranks, repeats=3)
    assert 0 < found.latency_s < 1
    assert 1e6 < found.bandwidth_bytes_per_s < 1e13
    with pytest.raises(ValueError, match="expected at least 1024 bytes"):
        measure_link(ranks, large_bytes=4)
    ring = measure_averaging(ranks, large_bytes=1 << 20, repeats=3)
    assert 0 < ring.latency_s < 1
    assert 1e6 < ring.bandwidth_bytes_per_s < 1e13
    with pytest.raises(ValueError, match="expected at least 1024 bytes"):
        measure_averaging(ranks, large_bytes=4)
    with Ranks(1) as alone:
        for measure in (measure_link, measure_averaging):
            with pytest.raises(ValueError, match="ranks has one process"):
                measure(alone)


def test_a_ring_takes_what_averaging_took() -> None:
    class Told(Ranks):
        def __init__(self, nproc: int) -> None:
            self.nproc = nproc

        def call(self, fn: Any, *arguments: Any) -> list[Any]:
            return [[0.004 + 1e-9 * size for size in arguments[0]]] * self.nproc

    for w in (2, 3, 8):
        ring = measure_averaging(Told(w), large_bytes=1 << 20)
        for size in (1 << 14, 1 << 20):
            took = 2 * (w - 1) * (size / w / ring.bandwidth_bytes_per_s + ring.latency_s)
            assert took == pytest.approx(0.004 + 1e-9 * size, rel=1e-5)


def test_the_gradient_error_is_rounding_unless_samples_are_coupled() -> None:
    x, y = pipeline_ranks.data()
    for stages, m, (schedule, checkpoint) in itertools.product(
        (1, 2, 3, 4), (1, 2, 3, 5, 8), (("gpipe", "except_last"), ("gpipe", "always"), ("1f1b", "never"))
    ):
        options: dict[str, Any] = {"stages": stages, "micro_batches": m, "schedule": schedule, "checkpoint": checkpoint}
        for layers in (pipeline_ranks.mlp(), pipeline_ranks.with_skips()):
            before = [p.detach().clone() for layer in layers for p in layer.parameters()]
            assert gradient_error(layers, x, y, cross_entropy, **options) <= 1e-12
            after = [p for layer in layers for p in layer.parameters()]
            assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))
    coupled = pipeline_ranks.mlp(norm=True)
    assert gradient_error(coupled, x, y, cross_entropy, stages=2, micro_batches=1) <= 1e-12
    assert gradient_error(coupled, x, y, cross_entropy, stages=2, micro_batches=2) > 1e-3


def test_relative_errors_by_hand() -> None:
    wanted = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)}
    assert relative_gradient_error({"a": torch.tensor([3.0, 4.5]), "b": torch.zeros(2)}, wanted) == pytest.approx(0.1)
    assert relative_gradient_error({"a": wanted["a"], "b": torch.tensor([0.0, 2.0])}, wanted) == 2.0
    with pytest.raises(ValueError, match=r"found and wanted differ in \['b'\]"):
        relative_gradient_error({"a": wanted["a"]}, wanted)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_no_error_hides_a_nan(name: str) -> None:
    """Python's ``max`` keeps a number that comes before a NaN."""
    wanted = {key: torch.ones(2) for key in "abc"}
    broken = {**wanted, name: torch.tensor([1.0, torch.nan])}
    assert np.isnan(relative_gradient_error(broken, wanted))
    assert np.isnan(relative_gradient_error(wanted, broken))
    assert np.isnan(prediction_error([1.0, 2.0, 3.0], [1.0 if key != name else float("nan") for key in "abc"]))


def test_errors_of_predictions_are_shares_of_the_measured_values() -> None:
    assert prediction_error([1.0, 3.0], [2.0, 3.0]) == 0.5  # over the predicted ones it would be 1
    assert prediction_error([4.0, 3.0], [2.0, 3.0]) == 1.0
    assert prediction_error([5.0], [5.0]) == 0.0
    for predicted, measured, message in (
        ([], [], "at least one"),
        ([1.0], [1.0, 2.0], "as many numbers"),
        ([1.0], [0.0], "measured must be > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            prediction_error(predicted, measured)


def sized(samples: int, fixed: float, slope: float) -> LayerProfile:
    seconds = np.array([fixed + slope * samples, slope * samples])
    sizes = np.array([10.0, 20.0]) * samples
    return LayerProfile(
        ("a", "b"), seconds, 2 * seconds, np.array([7.0, 8.0]), sizes, sizes, input_bytes=4.0 * samples, samples=samples
    )


def test_profiles_between_sizes_lie_on_a_line() -> None:
    known = [sized(16, 3.0, 0.5), sized(2, 3.0, 0.5), sized(8, 3.0, 0.5)]
    for samples in (1, 2, 5, 8, 12, 16, 64, 2.5):
        found = profile_at(known, samples)
        assert found.forward_s == pytest.approx([3 + 0.5 * samples, 0.5 * samples])
        assert found.backward_s == pytest.approx(2 * found.forward_s)
        assert found.params.tolist() == [7, 8]
        assert found.output_bytes == pytest.approx([10 * samples, 20 * samples])
        assert (found.input_bytes, found.samples) == (pytest.approx(4 * samples), samples)
    alone = profile_at(sized(4, 1.0, 1.0), 2)
    assert alone.forward_s.tolist() == [2.5, 2.0]  # in proportion
    bent = profile_at([sized(4, 0.0, 1.0), sized(8, -3.0, 1.0)], 16)
    assert bent.forward_s == pytest.approx([7.0, 16.0])  # the nearest line goes on
    assert profile_at([sized(4, -3.9, 1.0), sized(8, 0.0, 1.0)], 1).forward_s[0] == 0.0
    with pytest.raises(ValueError, match="at least one, each for another number of samples"):
        profile_at([sized(4, 0.0, 1.0), sized(4, 0.0, 1.0)], 2)
    with pytest.raises(ValueError, match="at least one"):
        profile_at([], 2)
