"""Schedules and their times: closed forms, order, memory in flight."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from anabranch.distributed import (
    PipelineSchedule,
    compare_schedules,
    even_step_s,
    fill_drain,
    interleaved,
    measured_timeline,
    one_forward_one_backward,
    simulate_measured,
    simulate_pipeline,
    zero_bubble,
)

SIZES = [(k, m) for k in (1, 2, 3, 5, 16) for m in (1, 2, 4, 7, 64)]


@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_fill_and_drain_take_what_the_formula_says(stages: int, micro_batches: int) -> None:
    for backward in (2.0, 0.5):
        for reverse in (True, False):
            schedule = fill_drain(stages, micro_batches, checkpoint="never", reverse=reverse)
            found = simulate_pipeline(schedule, 1.0, backward)
            assert found.step_s == pytest.approx((micro_batches + stages - 1) * (1 + backward), abs=1e-9)
            assert found.bubble_fraction == pytest.approx((stages - 1) / (micro_batches + stages - 1), abs=1e-12)
    again = simulate_pipeline(
        fill_drain(stages, micro_batches, checkpoint="always"), 1.0, 2.0, recompute_s=1.0, early_recompute=False
    )
    assert again.step_s == pytest.approx((micro_batches + stages - 1) * 4.0, abs=1e-9)
    early = simulate_pipeline(fill_drain(stages, micro_batches, checkpoint="always"), 1.0, 2.0, recompute_s=1.0)
    assert early.step_s == pytest.approx(
        again.step_s - (stages - 1) * 1.0, abs=1e-9
    )  # in the bubble of every stage but the last


@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_one_forward_one_backward_has_the_same_bubble_and_less_in_flight(stages: int, micro_batches: int) -> None:
    schedule = one_forward_one_backward(stages, micro_batches)
    found = simulate_pipeline(schedule, 1.0, 2.0)
    assert found.step_s == pytest.approx((micro_batches + stages - 1) * 3.0, abs=1e-9)
    for stage in range(stages):
        assert schedule.in_flight(stage) == min(micro_batches, stages - stage)
        assert fill_drain(stages, micro_batches).in_flight(stage) == micro_batches


@pytest.mark.parametrize(("stages", "groups", "chunks"), list(itertools.product((2, 3, 4, 8), (1, 2, 5), (1, 2, 3))))
def test_interleaving_divides_the_bubble(stages: int, groups: int, chunks: int) -> None:
    micro_batches = stages * groups
    found = simulate_pipeline(interleaved(stages, micro_batches, chunks), 1.0 / chunks, 2.0 / chunks)
    assert found.step_s == pytest.approx(3.0 * (micro_batches + (stages - 1) / chunks), abs=1e-9)
    wanted = (stages - 1) / (chunks * micro_batches + stages - 1)
    assert found.bubble_fraction == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(("stages", "micro_batches"), [(k, m) for k, m in SIZES if m >= k])
def test_zero_bubble_leaves_a_third_of_the_bubble_and_no_schedule_leaves_less(stages: int, micro_batches: int) -> None:
    schedule = zero_bubble(stages, micro_batches)
    for f, b, w in ((1.0, 1.0, 1.0), (1.0, 1.5, 0.5), (1.0, 2.0, 1.0), (2.0, 2.0, 1.0), (1.0, 1.0, 0.25)):
        found = simulate_pipeline(schedule, f, b, weights_s=w)
        assert found.step_s == pytest.approx(micro_batches * (f + b + w) + (stages - 1) * (f + b - w), abs=1e-9)
    # With equal times that is the least of all schedules: the last stage works without a pause once it has an input.
    least = (stages - 1) * 1.0 + micro_batches * 3.0
    assert simulate_pipeline(schedule, 1.0, 1.0, weights_s=1.0).step_s == pytest.approx(least)
    for stage in range(stages):
        assert schedule.in_flight(stage) <= stages  # as much as the first stage of 1F1B


def orders(stage: int, stages: int, micro_batches: int) -> list[tuple[tuple[str, int], ...]]:
    """All orders of one stage's forwards, backwards and weights, each kind from the first micro-batch to the last."""
    found = []
    for kinds in set(itertools.permutations("FBW" * micro_batches)):
        counts, good, row = dict.fromkeys("FBW", 0), True, []
        for kind in kinds:
            row.append((kind, counts[kind]))
            counts[kind] += 1
            good &= counts["F"] >= counts["B"] >= counts["W"] and counts["F"] - counts["W"] <= stages
        if good:
            found.append(tuple(row))
    return found


@pytest.mark.parametrize("times", [(1.0, 1.0, 1.0), (1.0, 2.0, 0.5), (2.0, 1.0, 1.0)])
def test_zero_bubble_is_the_best_of_all_orders_in_its_memory(times: tuple[float, float, float]) -> None:
    stages, micro_batches = 2, 3
    code = {"F": 0, "B": 1, "W": 4}

    def seconds(rows: tuple[tuple[tuple[str, int], ...], ...]) -> float:
        kinds = np.array([[code[kind] for kind, _ in row] for row in rows], np.int32)
        micro = np.array([[m for _, m in row] for row in rows], np.int32)
        schedule = PipelineSchedule("any", micro_batches, 1, kinds, micro, np.zeros_like(micro))
        try:
            return simulate_pipeline(schedule, times[0], times[1], weights_s=times[2]).step_s
        except ValueError:
            return np.inf  # waits for itself

    own = [orders(stage, stages, micro_batches) for stage in range(stages)]
    assert len(own[0]) > 20
    best = min(seconds(rows) for rows in itertools.product(*own))
    schedule = zero_bubble(stages, micro_batches)
    found = simulate_pipeline(schedule, times[0], times[1], weights_s=times[2]).step_s
    assert found == pytest.approx(best)


def test_schedules_side_by_side() -> None:
    found = {str(row["schedule"]): row for row in compare_schedules(4, 8)}
    bubbles = {"gpipe": 9 / 33, "1f1b": 9 / 33, "interleaved": 9 / (2 * 24 + 9), "zero-bubble": 3 / 27}
    assert {name: row["bubble"] for name, row in found.items()} == pytest.approx(bubbles)
    assert [found[name]["in flight"] for name in ("gpipe", "1f1b", "zero-bubble")] == [8, 4, 4]
    assert "interleaved" not in {row["schedule"] for row in compare_schedules(4, 6)}


def schedules() -> list[PipelineSchedule]:
    made = [
        f(4, 8, checkpoint=c)
        for f in (fill_drain, one_forward_one_backward)
        for c in ("always", "except_last", "never")
    ]  # type: ignore[operator]
    return [
        *made,
        zero_bubble(4, 8),
        zero_bubble(5, 3),
        interleaved(4, 8, 2),
        interleaved(4, 8, 3, checkpoint="always"),
    ]


@pytest.mark.parametrize("schedule", schedules(), ids=lambda s: s.name)
def test_nothing_runs_before_its_inputs_and_no_stage_does_two_things(schedule: PipelineSchedule) -> None:
    generator = np.random.default_rng(0)
    virtual = schedule.stages * schedule.chunks
    forward, backward, again, weights = generator.uniform(0.5, 2, (4, virtual))
    send = generator.uniform(0, 0.5, virtual - 1)
    found = simulate_pipeline(schedule, forward, backward, recompute_s=again, send_s=send, weights_s=weights)
    when = {}
    for stage in range(schedule.stages):
        before = 0.0
        for index, action in enumerate(schedule.actions(stage)):
            begin, end = found.begin_s[stage, index], found.end_s[stage, index]
            assert begin >= before - 1e-12
            before = end
            when[action.kind, action.chunk * schedule.stages + stage, action.micro_batch] = (begin, end)
    for (kind, v, m), (begin, end) in when.items():
        spent = {"F": forward, "B": backward, "R": again, "W": weights}[kind][v]
        assert end - begin == pytest.approx(spent)
        if kind == "F" and v > 0:
            assert begin >= when["F", v - 1, m][1] + send[v - 1] - 1e-12
        if kind == "W":
            assert begin >= when["B", v, m][1] - 1e-12
        if kind == "B":
            assert begin >= when["F", v, m][1] - 1e-12
            if v < virtual - 1:
                assert begin >= when["B", v + 1, m][1] + send[v] - 1e-12
            if ("R", v, m) in when:
                assert begin >= when["R", v, m][1] - 1e-12


def test_what_is_computed_again() -> None:
    def again(checkpoint: str) -> list[int]:
        return [a.micro_batch for a in fill_drain(2, 4, checkpoint=checkpoint).actions(0) if a.kind == "R"]  # type: ignore[arg-type]

    assert again("always") == [3, 2, 1, 0]
    assert again("except_last") == [2, 1, 0]
    assert again("never") == []


def test_many_stages_in_seconds() -> None:
    begin = time.process_time()
    schedule = one_forward_one_backward(1024, 4096)
    assert simulate_pipeline(schedule, 1.0, 2.0).step_s == pytest.approx(3.0 * (4096 + 1023))
    assert time.process_time() - begin < 10


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="micro_batches must be an integer >= 1, got 0"):
        fill_drain(2, 0)
    with pytest.raises(ValueError, match="must be a multiple of stages=4"):
        interleaved(4, 6, 2)
    with pytest.raises(ValueError, match="checkpoint must be"):
        fill_drain(2, 2, checkpoint="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="forward_s has shape"):
        simulate_pipeline(fill_drain(2, 2), [1.0, 2.0, 3.0], 1.0)
    with pytest.raises(ValueError, match="send_s must be finite"):
        simulate_pipeline(fill_drain(2, 2), 1.0, 1.0, send_s=-1.0)
    good = fill_drain(2, 2, checkpoint="never")
    kinds = good.kinds.copy()
    kinds[0, 0] = 1
    with pytest.raises(ValueError, match="stage 0 of x has 1 forwards, expected 2"):
        PipelineSchedule("x", 2, 1, kinds, good.micro_batch, good.chunk)
    kinds = zero_bubble(2, 2).kinds.copy()
    kinds[1, -1] = 3
    with pytest.raises(ValueError, match="stage 1 of x has 1 gradients of weights, expected 2"):
        PipelineSchedule("x", 2, 1, kinds, zero_bubble(2, 2).micro_batch, zero_bubble(2, 2).chunk)
    swapped = good.kinds[:, ::-1].copy()
    with pytest.raises(ValueError, match="waits for itself"):
        simulate_pipeline(PipelineSchedule("y", 2, 1, swapped, good.micro_batch, good.chunk), 1.0, 1.0)


def test_measured_times_are_read_as_simulated_ones() -> None:
    schedule = fill_drain(2, 3, checkpoint="never")
    told = simulate_pipeline(schedule, 1.0, 2.0)
    times = [list(zip(b + 5, e + 5, strict=True)) for b, e in zip(told.begin_s, told.end_s, strict=True)]
    again = measured_timeline(schedule, times)
    assert again.step_s == told.step_s
    assert again.bubble_fraction == pytest.approx(told.bubble_fraction)
    assert np.array_equal(again.end_s, told.end_s)
    with pytest.raises(ValueError, match=r"times has \[1, 1\] actions a stage: expected \[6, 6\]"):
        measured_timeline(schedule, [[(0.0, 1.0)], [(0.0, 1.0)]])


def test_measured_steps_are_played_again_with_their_medians() -> None:
    schedule = fill_drain(2, 3, checkpoint="except_last")
    steps = [
        simulate_pipeline(schedule, [f, 2.0], [3.0, 4 * f], recompute_s=[0.5, f], send_s=0.25) for f in (1.0, 1.5, 9.0)
    ]
    found = simulate_measured(steps)
    wanted = simulate_pipeline(schedule, [1.5, 2.0], [3.0, 6.0], recompute_s=[0.5, 1.5])
    assert np.allclose(found.end_s, wanted.end_s, equal_nan=True)
    assert simulate_measured([simulate_pipeline(fill_drain(2, 3, checkpoint="never"), 1.0, 2.0)]).step_s == 12.0
    with pytest.raises(ValueError, match="timelines must not be empty"):
        simulate_measured([])


def test_bars_are_the_actions() -> None:
    found = simulate_pipeline(fill_drain(2, 2, checkpoint="always"), 1.0, 2.0, recompute_s=1.0).bars()
    assert len(found) == 2 * 2 * 3
    assert found[0] == ("stage 0", 0.0, 1.0, "forward", "0")
    assert {bar[3] for bar in found} == {"forward", "backward", "recomputation"}
    assert all(end > begin for _, begin, end, _, _ in found)


@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_even_steps(stages: int, micro_batches: int) -> None:
    wanted = 3 * (micro_batches + stages - 1) / (stages * micro_batches)
    assert even_step_s(stages, micro_batches) == pytest.approx(wanted)
    assert even_step_s(1, 1, checkpoint="always") == pytest.approx(4.0)
