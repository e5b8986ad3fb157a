"""Traces of requests: reading, sorting, drawing, refusing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anabranch.serving import RequestTable, poisson_requests, published_lengths, read_requests


def test_the_azure_traces(shared_data: Path) -> None:
    folder = shared_data / "azure-llm-2023"
    for service, n, prompt, output in (("code", 8819, 2047.848, 27.883), ("conv", 19366, 1154.697, 211.126)):
        trace = read_requests(folder / f"AzureLLMInferenceTrace_{service}.csv")
        assert len(trace) == n
        assert trace.arrival_s[0] == 0
        assert trace.prompt_tokens.mean() == pytest.approx(prompt, abs=1e-3)
        assert trace.output_tokens.mean() == pytest.approx(output, abs=1e-3)


def test_times_of_day_keep_their_seven_decimals_over_midnight(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-17 00:00:01.0000003,5,6\n2023-11-16 23:59:59.9999999,3,4"
    )
    trace = read_requests(path)
    assert trace.arrival_s == pytest.approx([0, 1.0000004], abs=1e-12)
    assert trace.prompt_tokens.tolist() == [3, 5]


def test_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n2.5,10,1\n0.5,20,2\n")
    trace = read_requests(path)
    assert trace.arrival_s.tolist() == [0.5, 2.5]
    assert trace.output_tokens.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "has the columns a, b: expected TIMESTAMP,ContextTokens,GeneratedTokens or arrival_s"),
        ("arrival_s,prompt_tokens,output_tokens\n", "holds no requests"),
        ("arrival_s,prompt_tokens,output_tokens\n1,x,2\n", "line 2: invalid literal"),
        ("arrival_s,prompt_tokens,output_tokens\n1,1,0\n", r"output_tokens\[0\] = 0"),
        ("arrival_s,prompt_tokens,output_tokens\n-1,1,1\n", r"arrival_s\[0\] = -1"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", "line 2: time data"),
    ],
)
def test_bad_traces(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_requests(path)


def test_unsorted_requests_are_refused_or_sorted_on_purpose() -> None:
    with pytest.raises(ValueError, match=r"arrival_s\[1\] = 1.0 is before"):
        RequestTable(np.array([2.0, 1.0]), np.array([1, 2]), np.array([1, 1]))
    assert RequestTable.of([2.0, 1.0], [1, 2], [1, 1]).prompt_tokens.tolist() == [2, 1]
    with pytest.raises(ValueError, match="arrival_s is empty"):
        RequestTable.of([], [], [])


def test_poisson_arrivals() -> None:
    lengths = RequestTable.of([0, 1, 2], [1, 2, 3], [10, 20, 30])
    found = poisson_requests(lengths, 50.0, 200.0, generator=np.random.default_rng(0))
    assert len(found) == pytest.approx(10_000, abs=5 * 100)
    gaps = np.diff(found.arrival_s)
    assert gaps.mean() == pytest.approx(0.02, rel=0.05)
    assert gaps.std() == pytest.approx(0.02, rel=0.05)
    assert (found.output_tokens == 10 * found.prompt_tokens).all()
    apart = poisson_requests(lengths, 50.0, 200.0, generator=np.random.default_rng(0), paired=False)
    assert abs(np.corrcoef(apart.prompt_tokens, apart.output_tokens)[0, 1]) < 0.05
    with pytest.raises(ValueError, match="rate_per_s must be > 0"):
        poisson_requests(lengths, 0.0, 1.0, generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("service", "prompt", "output"),
    [("conversation", (1154.7, 1020), (211.1, 129)), ("code", (2047.8, 1469), (27.9, 13))],
)
def test_lengths_have_the_published_mean_and_median(
    service: str, prompt: tuple[float, float], output: tuple[float, float]
) -> None:
    found = published_lengths(service, 20_000, generator=np.random.default_rng(0))  # type: ignore[arg-type]
    for values, (mean, median) in ((found.prompt_tokens, prompt), (found.output_tokens, output)):
        assert values.mean() == pytest.approx(mean, rel=0.15)
        assert np.median(values) == pytest.approx(median, rel=0.05)


def test_speeding_up() -> None:
    table = RequestTable.of([5.0, 7.0], [1, 1], [1, 1]).at_speed(4.0, start_s=1.0)
    assert table.arrival_s.tolist() == [1.0, 1.5]
