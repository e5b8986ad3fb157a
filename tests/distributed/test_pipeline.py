"""The pipeline over real processes: the gradient of one process, whatever the stages, micro-batches and schedule."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pipeline_ranks as ranks
import pytest
import torch
from torch import nn

from anabranch.distributed import LocalPipeline, PopSkip, RankFailed, Ranks, StashSkip, launch

pytestmark = pytest.mark.xdist_group("distributed")
cross_entropy = nn.functional.cross_entropy


def whole(layers: list[nn.Module]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the full batch in one piece, with autograd alone."""
    pipeline = LocalPipeline(layers, stages=1, micro_batches=1, checkpoint="never")
    x, y = ranks.data()
    kept: dict[str, torch.Tensor] = {}
    out = x
    for layer in layers:
        if isinstance(layer, PopSkip):
            out = layer(out, kept[layer.name])
        else:
            out = layer(out)
        if isinstance(layer, StashSkip):
            kept[layer.name] = out
    loss = cross_entropy(out, y)
    loss.backward()
    return float(loss.detach()), {n: t.grad for n, t in ranks.named(pipeline) if t.grad is not None}


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], relative: float = 1e-12) -> None:
    assert set(found) <= set(wanted)
    for name, tensor in found.items():
        error = (tensor - wanted[name]).norm() / wanted[name].norm()
        assert error <= relative, (name, float(error))


CASES = [
    {"model": "mlp", "micro_batches": m, "schedule": schedule, "checkpoint": checkpoint}
    for m, (schedule, checkpoint) in itertools.product(
        (1, 2, 3, 5, 8, 11),
        (("gpipe", "except_last"), ("gpipe", "always"), ("gpipe", "never"), ("1f1b", "never"), ("1f1b", "except_last")),
    )
]
OTHERS = [
    {"model": "skips", "micro_batches": m, "schedule": s, "checkpoint": c, "early_recompute": e}
    for m, s, c, e in ((1, "gpipe", "never", True), (4, "gpipe", "always", False), (5, "1f1b", "except_last", True))
]
OTHERS.append({"model": "mlp", "schedule": "naive", "checkpoint": "never"})
OTHERS.append({"model": "mlp", "loss_reduction": "mean", "micro_batches": 3, "check_finite": True})


EACH = ["always", "never", "except_last", "always"]
OTHERS += [
    {"model": model, "micro_batches": m, "schedule": s, "early_recompute": e, "checkpoint": EACH}
    for model, m, s, e in (("skips", 5, "gpipe", True), ("mlp", 3, "1f1b", False))
]  # fmt: skip


def of_stages(case: dict[str, Any], stages: int) -> dict[str, Any]:
    """A list of recomputations has one a stage."""
    words = case.get("checkpoint")
    return {**case, "checkpoint": words[:stages]} if isinstance(words, list) else case


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_gradients_are_those_of_the_whole_batch(stages: int) -> None:
    cases = [
        *CASES[stages::9],
        *(of_stages(case, stages) for case in OTHERS),
    ]  # the whole grid runs in one process below
    found = launch(ranks.many_steps, stages, cases)
    wanted = {name: whole(make()) for name, make in (("mlp", ranks.mlp), ("skips", ranks.with_skips))}
    for index, case in enumerate(cases):
        loss, gradients = wanted[case["model"]]
        seen: set[str] = set()
        for rank in range(stages):
            assert found[rank][index][0] == pytest.approx(loss, rel=1e-6)  # float32 when broadcast
            close(found[rank][index][1], gradients)
            seen |= set(found[rank][index][1])
        assert seen == set(gradients), case


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_in_one_process_too(stages: int) -> None:
    loss, gradients = whole(ranks.mlp())
    for case in CASES:
        found, own = ranks.local({**case, "stages": stages})
        assert found == pytest.approx(loss, rel=1e-12)
        close(own, gradients)
    loss, gradients = whole(ranks.with_skips())
    for micro_batches, schedule in ((1, "gpipe"), (4, "1f1b"), (11, "gpipe")):
        case = {"model": "skips", "stages": stages, "micro_batches": micro_batches, "schedule": schedule}
        found, own = ranks.local({**case, "checkpoint": "always"})
        assert found == pytest.approx(loss, rel=1e-12)
        assert set(own) == set(gradients)
        close(own, gradients)


def test_every_stage_recomputes_what_it_is_told() -> None:
    loss, gradients = whole(ranks.mlp(dropout=0.0))
    for words in itertools.product(("never", "except_last", "always"), repeat=3):
        for schedule in ("gpipe", "1f1b"):
            options: dict[str, Any] = {"stages": 3, "micro_batches": 4, "schedule": schedule, "checkpoint": list(words)}
            found, own = ranks.local({"model": "mlp", **options})
            assert found == pytest.approx(loss, rel=1e-12)
            close(own, gradients)
            pipeline = LocalPipeline(ranks.mlp(), **options)
            kept = pipeline.kept_bytes(*ranks.data(), cross_entropy)
            for stage, word in enumerate(words):
                counts = [a.kind for a in pipeline.schedule.actions(stage)].count("R")
                assert counts == {"never": 0, "except_last": 3, "always": 4}[word]
                alike = LocalPipeline(ranks.mlp(), **{**options, "checkpoint": word})
                assert kept[stage] == alike.kept_bytes(*ranks.data(), cross_entropy)[stage]
    with pytest.raises(ValueError, match="checkpoint has 2 entries: expected one word, or one a stage, 3"):
        LocalPipeline(ranks.mlp(), stages=3, checkpoint=["never", "always"])
    with pytest.raises(ValueError, match="checkpoint must be 'always', 'except_last' or 'never', got 'no'"):
        LocalPipeline(ranks.mlp(), stages=2, checkpoint=["never", "no"])


def test_single_precision() -> None:
    layers = [layer.float() for layer in ranks.mlp()]
    x, y = ranks.data()
    cross_entropy(nn.Sequential(*layers)(x.float()), y).backward()
    wanted = [p.grad for p in nn.Sequential(*layers).parameters()]
    again = [layer.float() for layer in ranks.mlp()]
    pipeline = LocalPipeline(again, stages=3, micro_batches=5)
    pipeline.step(x.float(), y, cross_entropy)
    for ours, theirs in zip(pipeline.parameters(), wanted, strict=True):
        assert (ours.grad - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize(("optimizer", "schedule"), [("SGD", "gpipe"), ("Adam", "1f1b")])
def test_twenty_steps_end_at_the_same_weights_and_sizes_may_change(optimizer: str, schedule: str) -> None:
    model = nn.Sequential(*ranks.mlp())
    chosen = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05)
    for step in range(20):
        chosen.zero_grad()
        x, y = ranks.data(ranks.SAMPLES + step % 3, seed=step)
        cross_entropy(model(x), y).backward()
        chosen.step()
    found = launch(ranks.train, 2, {"micro_batches": 4, "schedule": schedule}, optimizer, 20)
    full = found[0][0]
    assert found[1][0] is None
    assert list(full) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.allclose(full[name], tensor, rtol=1e-9, atol=1e-11), name
    with torch.no_grad():
        for output, samples in zip(found[1][1:], (4, 2), strict=True):
            assert torch.allclose(output, model(ranks.data(samples)[0]))
    assert found[0][1] is None
    fresh = nn.Sequential(*ranks.mlp(seed=5))
    fresh.load_state_dict(full)  # loads without the pipeline


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5, 8])
def test_dropout_draws_the_same_numbers_when_recomputed(micro_batches: int) -> None:
    found = []
    for checkpoint in ("never", "except_last", "always"):
        torch.manual_seed(7)
        pipeline = LocalPipeline(ranks.mlp(dropout=0.4), stages=3, micro_batches=micro_batches, checkpoint=checkpoint)
        torch.manual_seed(11)
        loss = pipeline.step(*ranks.data(), cross_entropy)
        found.append((loss, [p.grad for p in pipeline.parameters()], torch.rand(1)))
    for loss, gradients, after in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(after, found[0][2])
        assert all(torch.equal(a, b) for a, b in zip(gradients, found[0][1], strict=True))


def test_dropout_over_processes() -> None:
    cases: list[dict[str, Any]] = [
        {"model": "mlp", "arguments": {"dropout": 0.4}, "micro_batches": 4, "checkpoint": c, "early_recompute": e}
        for c, e in (("never", True), ("except_last", True), ("always", True), ("always", False))
    ]
    for found in launch(ranks.many_steps, 2, cases):
        for _, gradients in found[1:]:
            assert all(torch.equal(gradients[name], tensor) for name, tensor in found[0][1].items())


@pytest.mark.parametrize("checkpoint", ["never", "always"])
def test_running_statistics_follow_the_mini_batch(checkpoint: str) -> None:
    found = launch(ranks.normed, 2, checkpoint)
    model = nn.Sequential(*ranks.mlp(norm=True))
    for seed in range(3):
        model(ranks.data(seed=seed)[0])
    full = found[0][0]
    assert list(full) == list(model.state_dict())
    norm = "3.running_"  # the first: deeper ones see what micro-batches normalized
    assert torch.allclose(full[norm + "mean"], model.state_dict()[norm + "mean"], atol=1e-9)
    assert torch.allclose(full[norm + "var"], model.state_dict()[norm + "var"], atol=1e-9)
    assert full["3.num_batches_tracked"] == 3
    model.load_state_dict(full)
    assert torch.allclose(found[1][1], model.eval()(ranks.data()[0]))


FAILURES = [
    ("raise", 1, "gpipe"),
    ("raise", 2, "1f1b"),
    ("kill", 1, "1f1b"),
    ("kill", 0, "gpipe"),
    ("hang", 2, "gpipe"),
]


@pytest.mark.parametrize(("how", "stage", "schedule"), FAILURES)
def test_a_stage_that_fails_stops_all_and_is_named(how: str, stage: int, schedule: str) -> None:
    with Ranks(3) as processes:
        processes.call(ranks.add, 1, 2)  # started
        begin = time.monotonic()
        with pytest.raises(RankFailed) as caught:
            processes.call(ranks.failing, how, stage, 6, schedule)
        took = time.monotonic() - begin
        assert not processes.pids
    assert took < (10 if how != "hang" else 20)
    error = caught.value
    reports = error.reports
    assert set(reports) == {0, 1, 2}
    for rank, report in reports.items():
        if how == "raise":
            assert "ArithmeticError: a value that only this layer knows" in report, rank
            assert f"stage {stage} (rank {stage}) failed in its " in report
            assert "of micro-batch" in report
            assert "pipeline_ranks.py" in report  # the original trace
        elif rank != stage and how == "kill":
            assert "PipelineError" in report
            assert f"stage {stage} is gone" in report or "is gone" in report
            assert "of micro-batch" in report or "start" in report
    if how != "hang":
        assert error.rank == stage
    if how == "kill":
        assert "ended by signal 9 (SIGKILL)" in reports[stage]


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_nobody_waits_outside_of_a_pipeline_either(how: str) -> None:
    begin = time.monotonic()
    with pytest.raises(RankFailed, match="rank 1 of 2 failed"):
        launch(ranks.fail_anywhere, 2, 1, how)
    assert time.monotonic() - begin < 60  # the start of processes included


def test_an_error_that_is_caught_leaves_processes_alive() -> None:
    with Ranks(2) as processes:
        first, last = processes.call(ranks.caught)
        assert last[0] == "ValueError: target has 9 samples, but x has 11"
        assert first[0].startswith("PipelineError: stage 0 stopped in its ")
        assert "stage 1 (rank 1) failed in its " in first[0]
        assert "target has 9 samples, but x has 11" in first[0]
        assert all("failed before; build it anew" in said[1] for said in (first, last))
        assert processes.call(ranks.add, 1, 2) == [1003, 1103]


def test_bad_input() -> None:
    layers = ranks.mlp()
    x, y = ranks.data()
    for options, message in [
        ({"stages": 8}, "8 stages need at least as many layers, got 7"),
        ({"balance": [3, 3]}, r"balance=\[3, 3\]: expected 2 numbers >= 1 that sum to 7"),
        ({"balance": [7, 0]}, r"balance=\[7, 0\]"),
        ({"micro_batches": 0}, "micro_batches must be an integer >= 1, got 0"),
        ({"schedule": "zigzag"}, "schedule must be 'gpipe', '1f1b' or 'naive', got 'zigzag'"),
        ({"checkpoint": "sometimes"}, "checkpoint must be"),
        ({"batchnorm": "sync"}, "batchnorm must be 'deferred' or 'micro', got 'sync'"),
        ({"loss_reduction": "none"}, "loss_reduction must be 'mean' or 'sum', got 'none'"),
        ({"stages": 2, "devices": ["cpu"]}, "devices has 1 entries: expected one a stage, 2"),
        ({"prefixes": [{}]}, "prefixes has 1 entries"),
    ]:
        with pytest.raises(ValueError, match=message):
            LocalPipeline(layers, **options)
    with pytest.raises(ValueError, match="micro_batches=12: expected 1 to the number of samples, 11"):
        LocalPipeline(layers, micro_batches=12).step(x, y, cross_entropy)
    with pytest.raises(ValueError, match="target has 5 samples, but x has 11"):
        LocalPipeline(layers, micro_batches=2).step(x, y[:5], cross_entropy)
    with pytest.raises(ValueError, match="loss_fn must give one number"):
        LocalPipeline(layers, micro_batches=2).step(x, y, lambda out, t: out)
    with pytest.raises(TypeError, match="layer LSTM gave tuple: expected a tensor or a tuple of tensors"):
        LocalPipeline([nn.LSTM(5, 5).double()], micro_batches=1).step(x, y, cross_entropy)
    in_place = [nn.Linear(5, 3).double(), nn.ReLU(inplace=True)]
    with pytest.raises(ValueError, match="stage 1 changed its input in place"):
        LocalPipeline(in_place, stages=2, micro_batches=2, checkpoint="always").step(x, y, cross_entropy)
    for wrong, message in [
        ([PopSkip("a")], "'a' is popped before it is stashed"),
        ([StashSkip("a"), StashSkip("a"), PopSkip("a")], "'a' is stashed twice"),
        ([StashSkip("a")], "'a' is stashed but never popped"),
    ]:
        with pytest.raises(ValueError, match=message):
            LocalPipeline(wrong)
    with pytest.raises(ValueError, match="nproc must be an integer >= 1, got 0"):
        launch(ranks.add, 0)
    with pytest.raises(ValueError, match=r"state has no '0.weight', which stage 0 needs"):
        LocalPipeline(layers).load_full({})
