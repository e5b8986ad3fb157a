"""Profiles, memory and plans: against what autograd really keeps, brute force and closed forms."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from anabranch.distributed import (
    LayerProfile,
    LinkSpeed,
    LocalPipeline,
    activation_memory,
    compare_cuts,
    fill_drain,
    most_layers,
    nearest_plan,
    one_forward_one_backward,
    plan_pipeline,
    predict_step,
    profile_layers,
    profile_transformer,
    residual_network_layers,
    stage_costs,
    stage_memory,
    training_bytes,
    variance_balance,
    vision_transformer_layers,
)
from anabranch.simulation import SMOLLM2_135M, balance

cross_entropy = nn.functional.cross_entropy


def example(**changes: Any) -> LayerProfile:
    columns = {
        "forward_s": [0.0, 1.0, 1.0, 1.0, 1.0, 0.5],
        "backward_s": [0.0, 2.0, 2.0, 2.0, 2.0, 1.0],
        "params": [10.0, 4.0, 4.0, 4.0, 4.0, 10.0],
        "activation_bytes": [1.0, 9.0, 9.0, 9.0, 9.0, 3.0],
        "output_bytes": [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
    } | changes
    return LayerProfile(tuple("abcdef"), *(np.array(c) for c in columns.values()), input_bytes=1.0)


@pytest.mark.parametrize("kind", ["transformer", "residual"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("checkpoint", ["never", "except_last", "always"])
def test_memory_is_what_autograd_keeps(kind: str, schedule: str, checkpoint: str) -> None:
    torch.manual_seed(0)
    if kind == "transformer":
        layers, cut = vision_transformer_layers(blocks=4, width=32), [3, 3]
    else:
        layers, cut = residual_network_layers(blocks=4, width=8), [2, 2, 2]
    x, y = torch.randn(24, 1, 28, 28), torch.arange(24) % 10
    pipeline = LocalPipeline(layers, cut, micro_batches=6, schedule=schedule, checkpoint=checkpoint)
    measured = pipeline.kept_bytes(x, y, cross_entropy)
    assert all(p.grad is None for p in pipeline.parameters())
    flat = [layer for modules in pipeline.modules for layer in modules]
    profile = profile_layers(flat, x[:4], target=y[:4], loss_fn=cross_entropy, repeats=1)
    predicted = activation_memory(stage_costs(profile, cut), pipeline.schedule)
    first, *others = zip(measured, predicted, strict=True)
    for own, told in others:
        assert told == pytest.approx(own, rel=0.02)
    # The first stage reads views of the whole mini-batch, which is there for as long as the step.
    assert first[1] == pytest.approx(first[0], rel=0.02, abs=x.numel() * 4)


def test_profiles_of_layers() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)]
    x = torch.randn(5, 4)
    found = profile_layers(layers, x, repeats=2)
    assert found.names == ("0 Linear", "1 ReLU", "2 Linear")
    assert found.params.tolist() == [40, 0, 27]
    assert found.output_bytes.tolist() == [5 * 8 * 4, 5 * 8 * 4, 5 * 3 * 4]
    assert found.input_bytes == 5 * 4 * 4
    assert found.activation_bytes.tolist() == [
        0,
        5 * 8 * 4,
        0,
    ]  # only the result of ReLU, for itself and the layer after
    assert found.samples == 5
    assert (found.forward_s > 0).all()
    assert all(p.grad is None for layer in layers for p in layer.parameters())
    with pytest.raises(ValueError, match="layers must not be empty"):
        profile_layers([], x)


def test_profiles_as_files(tmp_path: Any) -> None:
    file = tmp_path / "layers.csv"
    example().to_csv(file)
    again = LayerProfile.from_csv(file, input_bytes=1.0)
    assert again.names == example().names
    assert np.array_equal(again.backward_s, example().backward_s)
    for text, message in [
        ("name,forward\n", "line 1: header must be name,forward_s"),
        ("name,forward_s,backward_s,params,activation_bytes,output_bytes\na,1,2\n", "line 2: expected 6 fields, got 3"),
        ("name,forward_s,backward_s,params,activation_bytes,output_bytes\na,1,2,3,4,x\n", "line 2: expected numbers"),
        ("name,forward_s,backward_s,params,activation_bytes,output_bytes\na,1,2,3,4,-5\n", "finite and >= 0"),
        ("name,forward_s,backward_s,params,activation_bytes,output_bytes\n", "no layers"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            LayerProfile.from_csv(file)
    with pytest.raises(ValueError, match="params must be finite and >= 0"):
        example(params=[-1.0] * 6)


def test_a_transformer_by_its_shape() -> None:
    found = profile_transformer(SMOLLM2_135M, sequence=512, flops_per_s=1e12)
    assert found.params.sum() == SMOLLM2_135M.parameters + 49152 * 576  # embedding and head, each on its own
    assert found.layers == 32
    matrices = 2 * 512 * (2 * 576**2 + 2 * 576 * 192 + 3 * 576 * 1536) + 2 * 512**2 * 576
    assert found.forward_s[1] == pytest.approx(matrices / 1e12)
    with pytest.raises(ValueError, match="sequence must be > 0"):
        profile_transformer(SMOLLM2_135M, sequence=0, flops_per_s=1.0)


def test_the_best_cut_is_never_worse_than_the_paper_s_objective() -> None:
    generator = np.random.default_rng(0)
    for _ in range(60):
        n, stages = int(generator.integers(2, 11)), int(generator.integers(1, 5))
        stages, costs = min(n, stages), generator.integers(1, 30, n).astype(float)
        cut = variance_balance(costs, stages)
        squares = [
            sum(costs[a:b].sum() ** 2 for a, b in itertools.pairwise((0, *ends, n)))
            for ends in itertools.combinations(range(1, n), stages - 1)
        ]
        sums = np.add.reduceat(costs, np.cumsum([0, *cut[:-1]]))
        assert (sums**2).sum() == min(squares)
        best = np.add.reduceat(costs, np.cumsum([0, *balance(costs, stages)[:-1]]))
        assert best.max() <= sums.max()


def test_plans_are_the_best_of_what_they_may_be() -> None:
    plans = plan_pipeline(
        example(), devices=4, memory_bytes=1e4, bandwidth_bytes_per_s=1e9, batch=8, bytes_per_parameter=16.0
    )
    assert [p.step_s for p in plans] == sorted(p.step_s for p in plans)
    best = plans[0]
    assert best.replicas == 4  # nothing is as fast as four whole copies when they fit and links are fast
    for made in plans:
        assert sum(made.balance) == 6
        assert max(made.memory_bytes) <= 1e4
        assert made.stages * made.replicas <= 4
    tight = plan_pipeline(example(), devices=4, memory_bytes=420.0, bandwidth_bytes_per_s=1e9, batch=8)
    assert {p.stages for p in tight} <= {2, 3, 4}  # the parameters need 576 bytes
    one = tight[0]
    costs = stage_costs(example(), one.balance, samples=8 / one.micro_batches / one.replicas)
    assert len(costs.params) == one.stages
    with pytest.raises(ValueError, match="nothing fits on 1 devices"):
        plan_pipeline(example(), devices=1, memory_bytes=420.0, bandwidth_bytes_per_s=1e9, batch=8)
    with pytest.raises(ValueError, match="devices must be > 0, got 0"):
        plan_pipeline(example(), devices=0, memory_bytes=1.0, bandwidth_bytes_per_s=1.0, batch=1)


def test_a_stage_recomputes_only_where_its_memory_needs_it() -> None:
    """Of all 3^stages recomputations that fit, the planner's is as fast as any, for random layers and caps."""
    generator = np.random.default_rng(3)
    mixed = 0
    for _ in range(8):
        n = int(generator.integers(4, 8))
        columns = [generator.uniform(0.5, 2, n) for _ in range(5)]
        profile = LayerProfile(tuple(map(str, range(n))), *columns, input_bytes=1.0)
        given = {"bandwidth_bytes_per_s": 10.0, "batch": 4, "bytes_per_parameter": 2.0}
        whole = stage_costs(profile, balance(profile.forward_s + profile.backward_s, 3), samples=2.0)
        most = stage_memory(whole, fill_drain(3, 2, checkpoint="never"), bytes_per_parameter=2.0)
        cap = float(most.max() * generator.uniform(0.6, 1.0))
        try:
            plans = plan_pipeline(profile, devices=3, memory_bytes=cap, **given)  # type: ignore[arg-type]
        except ValueError:
            continue
        for key in {(p.stages, p.replicas, p.micro_batches, p.schedule, p.balance) for p in plans}:
            own = [p for p in plans if (p.stages, p.replicas, p.micro_batches, p.schedule, p.balance) == key]
            stages, replicas, m, schedule, cut = key
            made = fill_drain if schedule == "gpipe" else one_forward_one_backward
            seconds = []
            for words in itertools.product(("never", "except_last", "always"), repeat=stages):
                ran = made(stages, m, checkpoint=words)
                costs = stage_costs(profile, cut, samples=4.0 / replicas / m)
                if stage_memory(costs, ran, bytes_per_parameter=2.0).max() <= cap:
                    told = predict_step(profile, cut, ran, samples=4 // replicas, bandwidth_bytes_per_s=10.0)
                    seconds.append(told.step_s)
            best = min(own, key=lambda p: p.step_s)
            assert best.timeline(profile).step_s == pytest.approx(min(seconds), rel=1e-12)
            assert max(best.memory_bytes) <= cap
            mixed += not isinstance(best.checkpoint, str)
    assert mixed >= 5  # the cap lies where stages differ


def test_a_plan_knows_what_it_is_for() -> None:
    given = {"batch": 8, "bandwidth_bytes_per_s": 50.0, "latency_s": 0.25, "overhead_s": 0.125}
    plans = plan_pipeline(example(), devices=4, memory_bytes=1e9, **given)  # type: ignore[arg-type]
    assert {(p.stages > 1, p.replicas > 1) for p in plans} >= {(True, False), (False, True), (True, True)}
    measured = LinkSpeed(latency_s=0.75, bandwidth_bytes_per_s=20.0)
    ringed = plan_pipeline(example(), devices=4, memory_bytes=1e9, averaging=measured, **given)  # type: ignore[arg-type]
    assert len(ringed) == len(plans)
    for made, link in [*((p, LinkSpeed(0.25, 50.0)) for p in plans), *((p, measured) for p in ringed)]:
        assert {name: getattr(made, name) for name in given} == given
        most = max(stage_costs(example(), made.balance).params)
        ring = 2 * (made.replicas - 1) * (most * 4 / made.replicas / link.bandwidth_bytes_per_s + link.latency_s)
        assert made.timeline(example()).step_s + ring == pytest.approx(made.step_s, rel=1e-12)


def test_the_nearest_plan() -> None:
    plans = plan_pipeline(example(), devices=2, memory_bytes=1e9, bandwidth_bytes_per_s=1e9, batch=12)
    for wanted, found in ((1, 1), (3, 2), (7, 4), (9, 12), (100, 12)):
        made = nearest_plan(plans, 2, wanted, "never")
        assert abs(made.micro_batches - wanted) == abs(found - wanted)
        assert made.step_s == min(
            p.step_s for p in plans if (p.stages, p.checkpoint, p.micro_batches) == (2, "never", made.micro_batches)
        )
    with pytest.raises(ValueError, match="none with stages=3"):
        nearest_plan(plans, 3, 1, "never")


def test_two_objectives_of_a_cut() -> None:
    """3, 3, 2, 2, 2: on two stages both cut 6 + 6; on three 3 | 3 + 2 | 2 + 2 is 5."""
    rows = compare_cuts([3.0, 3.0, 2.0, 2.0, 2.0], range(1, 6))
    assert [row["exact"] for row in rows] == [12.0, 6.0, 5.0, 4.0, 3.0]
    assert all(row["variance over exact"] == row["least variance"] / row["exact"] >= 1 for row in rows)
    with pytest.raises(ValueError, match="stages must be between 1 and the number of layers"):
        compare_cuts([1.0], [2])


class Logged(nn.Module):
    def __init__(self, number: int, log: list[tuple[str, int, bool]]) -> None:
        super().__init__()
        self.number, self.log, self.linear = number, log, nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append(("F", self.number, self.linear.weight.grad is not None))
        out: torch.Tensor = self.linear(x)
        if out.requires_grad:
            out.register_hook(lambda _: self.log.append(("B", self.number, self.linear.weight.grad is not None)))
        return out


def test_layers_are_profiled_as_a_step_runs_them() -> None:
    """All forwards, then all backwards; timed ones add to gradients that are there, as all micro-batches but the first do."""
    log: list[tuple[str, int, bool]] = []
    layers = [Logged(i, log) for i in range(3)]
    for layer in layers:
        layer.linear.weight.grad = torch.full((3, 3), 7.0)
    profile_layers(layers, torch.ones(2, 3), repeats=2)
    order = [("F", 0), ("F", 1), ("F", 2), ("B", 2), ("B", 1), ("B", 0)]
    assert [entry[:2] for entry in log[:18]] == 3 * order
    assert [entry[2] for entry in log[:18]] == 6 * [False] + 12 * [True]
    assert all(layer.linear.weight.grad.eq(7.0).all() for layer in layers)  # type: ignore[union-attr]
    assert all(layer.linear.bias.grad is None for layer in layers)


def test_steps_and_memory_by_hand() -> None:
    even = example(forward_s=[1.0] * 6, backward_s=[2.0] * 6)
    schedule = fill_drain(2, 4, checkpoint="never")
    assert predict_step(even, [3, 3], schedule, samples=4).step_s == pytest.approx((4 + 1) * 9)
    slow = predict_step(even, [3, 3], schedule, samples=4, bandwidth_bytes_per_s=0.5)
    assert slow.step_s == pytest.approx((4 + 1) * 9 + 2 * 2)  # one byte there and one back, of the first and the last
    costs = stage_costs(even, [3, 3])
    assert activation_memory(costs, schedule).tolist() == [4 * (1 + 19), 4 * (1 + 21)]
    assert activation_memory(costs, fill_drain(2, 4, checkpoint="always")).tolist() == [4 + 19, 4 + 21]
    assert stage_memory(costs, schedule, bytes_per_parameter=2.0).tolist() == [80 + 36, 88 + 36]
    with pytest.raises(ValueError, match=r"balance=\[3, 2\]: expected numbers >= 1 that sum to 6"):
        stage_costs(even, [3, 2])
    with pytest.raises(ValueError, match="schedule has 3 stages"):
        activation_memory(costs, fill_drain(3, 4))


def test_the_deepest_model_that_fits() -> None:
    def deep(n: int) -> LayerProfile:
        ones = np.ones(n)
        return LayerProfile(tuple(map(str, range(n))), ones, ones, ones, ones, ones)

    options: dict[str, Any] = {"memory_bytes": 100.0, "samples": 1, "bytes_per_parameter": 9.0}
    assert most_layers(deep, stages=1, micro_batches=1, checkpoint="never", **options) == 10
    two = most_layers(deep, stages=2, micro_batches=1, checkpoint="never", **options)
    assert two == 19  # the second stage has an input to keep besides its ten layers of 10
    assert most_layers(deep, stages=1, micro_batches=1, checkpoint="never", **{**options, "memory_bytes": 5.0}) == 0


def test_bytes_of_training_are_counted() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)]
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    for optimizer, states in ((torch.optim.Adam, 2), (partial(torch.optim.SGD, lr=0.1), 0)):
        pipeline = LocalPipeline(layers, [2, 3], micro_batches=4, checkpoint="never")
        kept = pipeline.kept_bytes(x, y, cross_entropy)
        found = training_bytes(pipeline, x, y, cross_entropy, optimizer)  # type: ignore[arg-type]
        assert found == [kept[0] + (6 * 8 + 8) * 4 * (2 + states), kept[1] + (8 * 4 + 4 + 4 * 3 + 3) * 4 * (2 + states)]


def test_without_costs_the_cut_is_as_even_as_can_be() -> None:
    for n, stages in itertools.product(range(1, 14), range(1, 6)):
        if stages <= n:
            cut = LocalPipeline([nn.Identity() for _ in range(n)], stages=stages).balance
            assert (sum(cut), len(cut)) == (n, stages)
            assert max(cut) - min(cut) <= 1
            assert max(cut) == max(balance([1.0] * n, stages))  # the least bottleneck of all cuts
