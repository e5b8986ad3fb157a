"""What the parts of the experiment share: lengths, times of machines, designs, loads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import anabranch.serving as sv
from anabranch.lab import Lab
from anabranch.lab.places import data_folder
from anabranch.papers.splitwise import Settings
from anabranch.serving import Design, Load, PerformanceModel, RequestTable, Transfers

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Data:
    """Lengths of two services, times of the machines, and the rows that the times were measured in (if they are here)."""

    conversation: RequestTable
    code: RequestTable
    performance: Callable[[str, str], PerformanceModel]  # hardware, decode times by
    rows: list[Row]


def read_data(lab: Lab, settings: Settings) -> Data:
    if settings.data == "azure":
        from anabranch.worlds import AZURE_LLM_2023, SPLITWISE_PROFILES

        root = data_folder()
        traces = []
        for name in ("conv", "code"):
            AZURE_LLM_2023.read(f"AzureLLMInferenceTrace_{name}.csv", root)  # checks it, or says how to get it
            traces.append(sv.read_requests(AZURE_LLM_2023.folder(root) / f"AzureLLMInferenceTrace_{name}.csv"))
        SPLITWISE_PROFILES.read("perf_model.csv", root)
        table = sv.ProfileTable.read(SPLITWISE_PROFILES.folder(root) / "perf_model.csv")
        return Data(traces[0], traces[1], lambda device, by: table.model("bloom-176b", device, 8, by=by), table.rows)
    traces = [sv.published_lengths(name, 5000, generator=lab.generator) for name in ("conversation", "code")]
    return Data(traces[0], traces[1], lambda device, by: sv.published_performance("bloom-176b", device, by=by), [])


def design(name: str, data: Data, *, by: str = "requests", sent: Transfers = sv.RELEASED_TRANSFERS) -> Design:
    return sv.splitwise_design(name, lambda device: data.performance(device, by), transfers=sent)


def load_of(lab: Lab, settings: Settings, lengths: RequestTable) -> Load:
    return Load(
        lengths, settings.search_seconds, 5.0 * settings.machines, np.random.default_rng(lab.seed), paired=False
    )


def reference(data: Data) -> PerformanceModel:
    """Slowdowns are against a request alone on a DGX-A100."""
    return data.performance("a100-80gb", "context")


def keep(lab: Lab, name: str, figure: Any, axes: Any, title: str, **labels: Any) -> None:
    axes.set(**labels)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.legend(frameon=False)
    lab.figure(name, figure, caption=title)
