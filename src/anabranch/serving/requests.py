"""Requests to a language model: when they come, how long their prompts and answers are. Traces, and generators of them."""

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
OWN = ("arrival_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, eq=False)
class RequestTable:
    """Requests in order of arrival.

    Args:
        arrival_s: seconds, not decreasing.
        prompt_tokens, output_tokens: at least 1 each.

    Raises:
        ValueError: no requests, lengths that differ, a time that is negative, not finite or before the one before, a count
            below 1.
    """

    arrival_s: Float64[np.ndarray, " n"]
    prompt_tokens: Int64[np.ndarray, " n"]
    output_tokens: Int64[np.ndarray, " n"]

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        if n == 0:
            raise ValueError("arrival_s is empty: expected at least one request")
        for name in ("prompt_tokens", "output_tokens"):
            values = getattr(self, name)
            if len(values) != n:
                raise ValueError(f"{name} has {len(values)} entries, arrival_s has {n}")
            if (values < 1).any():
                i = int(np.argmax(values < 1))
                raise ValueError(f"{name}[{i}] = {values[i]}: expected at least 1")
        bad = ~np.isfinite(self.arrival_s) | (self.arrival_s < 0)
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(f"arrival_s[{i}] = {self.arrival_s[i]}: expected a finite number >= 0")
        if (np.diff(self.arrival_s) < 0).any():
            i = int(np.argmax(np.diff(self.arrival_s) < 0)) + 1
            raise ValueError(f"arrival_s[{i}] = {self.arrival_s[i]} is before the one before it: sort the requests")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @classmethod
    def of(cls, arrival_s: Any, prompt_tokens: Any, output_tokens: Any) -> "RequestTable":
        """From anything like arrays, sorted by arrival."""
        arrival = np.asarray(arrival_s, np.float64)
        order = np.argsort(arrival, kind="stable")
        return cls(
            arrival[order], np.asarray(prompt_tokens, np.int64)[order], np.asarray(output_tokens, np.int64)[order]
        )

    def head(self, n: int) -> "RequestTable":
        return RequestTable(self.arrival_s[:n], self.prompt_tokens[:n], self.output_tokens[:n])

    def shortened(self, divisor: int, *, most: int) -> "RequestTable":
        """The same arrivals, lengths divided by ``divisor``: prompts of 1 to ``most`` tokens, answers of 2 to ``most``."""
        if divisor < 1 or most < 2:
            raise ValueError(f"divisor={divisor}, most={most}: expected at least 1 and 2")
        prompt, output = (np.minimum(n // divisor, most) for n in (self.prompt_tokens, self.output_tokens))
        return RequestTable(self.arrival_s, np.maximum(1, prompt), np.maximum(2, output))

    def at_speed(self, speed: float, *, start_s: float = 0.0) -> "RequestTable":
        """The same requests, coming ``speed`` times as fast, the first at ``start_s``."""
        if not speed > 0:
            raise ValueError(f"speed must be > 0, got {speed}")
        arrival = start_s + (self.arrival_s - self.arrival_s[0]) / speed
        return RequestTable(arrival, self.prompt_tokens, self.output_tokens)


def read_requests(path: str | Path) -> RequestTable:
    """A trace: a CSV file with the columns of the Azure LLM inference traces, or ``arrival_s,prompt_tokens,output_tokens``.

    Azure's times of day become seconds from the first request. Rows are sorted by time.

    Raises:
        FileNotFoundError: no such file. ValueError: other columns, or a row that does not hold such numbers; names the line.
    """
    with Path(path).open(newline="") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        names = next((names for names in (AZURE, OWN) if set(names) <= set(columns)), None)
        if names is None:
            raise ValueError(
                f"{path} has the columns {', '.join(columns)}: expected {','.join(AZURE)} or {','.join(OWN)}"
            )
        times, prompts, outputs = [], [], []
        for number, row in enumerate(rows, 2):
            try:
                times.append(_azure_time(row[names[0]]) if names is AZURE else (0, float(row[names[0]])))
                prompts.append(int(row[names[1]]))
                outputs.append(int(row[names[2]]))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not times:
        raise ValueError(f"{path} holds no requests")
    first = min(whole for whole, _ in times)
    arrival = np.array([(whole - first) + part for whole, part in times])
    if names is AZURE:
        arrival -= arrival.min()
    return RequestTable.of(arrival, prompts, outputs)


def _azure_time(text: str) -> tuple[int, float]:
    """Whole seconds and the rest: seven decimals of a second are more than a double of an absolute time holds."""
    moment, _, part = text.strip().partition(".")
    when = datetime.strptime(moment, "%Y-%m-%d %H:%M:%S")
    return when.toordinal() * 86_400 + when.hour * 3600 + when.minute * 60 + when.second, float(f"0.{part or 0}")


def poisson_requests(
    lengths: RequestTable, rate_per_s: float, seconds: float, *, generator: np.random.Generator, paired: bool = True
) -> RequestTable:
    """Arrivals at random (exponential gaps) with the lengths of ``lengths``, drawn with replacement.

    Args:
        paired: draw prompt and output of one request together; else each column on its own, as the authors do.

    Raises:
        ValueError: a rate or a time that is not positive, or no arrival in that time.
    """
    for name, value in (("rate_per_s", rate_per_s), ("seconds", seconds)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")
    room = int(rate_per_s * seconds + 10 * np.sqrt(rate_per_s * seconds) + 10)
    arrival = np.cumsum(generator.exponential(1 / rate_per_s, room))
    arrival = arrival[arrival < seconds]
    if not len(arrival):
        raise ValueError(f"rate_per_s={rate_per_s} gave no request within seconds={seconds}")
    prompt = generator.integers(len(lengths), size=len(arrival))
    output = prompt if paired else generator.integers(len(lengths), size=len(arrival))
    return RequestTable(arrival, lengths.prompt_tokens[prompt], lengths.output_tokens[output])


# Quantiles of the two Azure traces of 2023 (CC-BY 4.0; Patel et al., 2311.18677), from which lengths can be drawn
# without them.
_QUANTILES = np.array([0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0])
_LENGTHS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "conversation": (
        (2, 29, 181, 207, 396, 1020, 1189, 2734, 4083, 4142, 4831, 6179, 14_050),
        (7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 643, 954, 1000),
    ),
    "code": (
        (3, 17, 75, 147, 578, 1469, 2744, 5188, 7303, 7436, 7436, 7437, 7437),
        (6, 6, 6, 7, 9, 13, 24, 55, 90, 251, 359, 825, 1899),
    ),
}


def published_lengths(service: str, n: int, *, generator: np.random.Generator) -> RequestTable:
    """``n`` requests, one a second, whose lengths follow the published quantiles of an Azure service (columns independent).

    Raises:
        ValueError: another service.
    """
    if service not in _LENGTHS:
        raise ValueError(f"service must be one of {', '.join(_LENGTHS)}, got {service!r}")
    columns = [
        np.maximum(1, np.rint(np.interp(generator.random(n), _QUANTILES, quantiles))).astype(np.int64)
        for quantiles in _LENGTHS[service]
    ]
    return RequestTable(np.arange(n, dtype=np.float64), *columns)
