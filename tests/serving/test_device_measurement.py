"""This machine measured: the arithmetic by a clock of ours, and what ``serving bound`` makes of it."""

from __future__ import annotations

import itertools
import json
import os

import pytest
import torch

from anabranch.serving import IterationCosts, Workload, measure_device
from anabranch.simulation import SMOLLM2_135M
from support import CommandLine


def test_rates_are_work_over_the_shortest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lasts = [9.0, 0.5, 0.25, 9.0, 2.0, 4.0]  # of copies, then of products; the first of each warms up
    moments = itertools.chain.from_iterable((100.0 * k, 100.0 * k + last) for k, last in enumerate(lasts))
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    found = measure_device(copy_bytes=1000, size=10, repeats=2)
    assert found.memory_bytes_per_s == 2 * 1000 / 0.25
    assert found.flops_per_s == 2 * 10**3 / 2.0
    assert found.memory_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found.link_bytes_per_s == 0


def test_this_machine() -> None:
    found = measure_device(copy_bytes=2**24, size=256, repeats=3)
    assert 1e8 < found.memory_bytes_per_s < 1e13
    assert 1e8 < found.flops_per_s < 1e15
    alone = IterationCosts(SMOLLM2_135M, found, 1, Workload(100.0, 100.0), 128)
    assert alone.optimal_tokens_per_s > 0
    with pytest.raises(ValueError, match="has no link_bytes_per_s, and count=2"):
        IterationCosts(SMOLLM2_135M, found, 2, Workload(100.0, 100.0), 128)


def test_the_command_bounds_a_model_on_this_machine(anabranch: CommandLine) -> None:
    done = anabranch(
        "serving", "bound", "-m", "smollm2-135m", "-d", "measured", "--lengths", "100,100", "--batch", "128", "--gap",
        "0.3", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 1e8 < found["flops_per_s"] < 1e15
    assert found["network_s"] == 0
    done = anabranch("serving", "bound", "-m", "smollm2-135m", "-d", "measured:tpu", "--lengths", "1,1")
    assert done.returncode == 2
    assert "device='tpu': expected cpu, cuda or cuda:INDEX" in done.stderr.replace("\n", " ")


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="size must be >= 1"):
        measure_device(size=0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device='cuda'"):
            measure_device("cuda")
