"""Serving language models: traces of requests, performance models, exact simulation of clusters that split prompt and decoding.

A :class:`RequestTable` goes with a :class:`Cluster` of :class:`Pool` s into :func:`simulate_cluster`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anabranch.serving.cluster import (
    Batching,
    Cluster,
    Pool,
    ServingResult,
    Transfers,
    simulate_cluster,
)
from anabranch.serving.designs import RELEASED_TRANSFERS, SPLITWISE_DESIGNS, splitwise_design
from anabranch.serving.interference import Interference
from anabranch.serving.iteration_costs import IterationCosts, Operation, Workload
from anabranch.serving.occupancy import decode_occupancy
from anabranch.serving.overlap import NanoOperation, OverlapSchedule, Segment, resource_bound, search_overlap
from anabranch.serving.performance import Curve, PerformanceModel, ProfileTable, roofline
from anabranch.serving.profile_errors import held_out_error, left_out_knot_error
from anabranch.serving.provisioning import Design, Provision, least_machines, most_throughput
from anabranch.serving.published_profiles import published_performance
from anabranch.serving.requests import RequestTable, poisson_requests, published_lengths, read_requests
from anabranch.serving.slo import Load, MaxRate, SloLimits, SloReport, max_rate, slo_report
from anabranch.serving.studies import answer_differences, exposed_transfers, slowdown_rows

if TYPE_CHECKING:
    from anabranch.serving.kv_buffers import KvBuffers, kv_from_buffers, kv_to_buffers
    from anabranch.serving.phase_split import ColocatedServer, PhaseSplitServer
    from anabranch.serving.profiling import profile_model, write_profile
    from anabranch.serving.streams import RequestRecord, ServingError, TokenStream
    from anabranch.serving.trace_replay import latency_summary, replay
    from anabranch.serving.workers import DecodeWorker, PrefillWorker, unsplit_tokens

_REAL = {  # they need torch and transformers, which a simulation does not: loaded when first asked for
    "ColocatedServer": "phase_split",
    "DecodeWorker": "workers",
    "KvBuffers": "kv_buffers",
    "PhaseSplitServer": "phase_split",
    "PrefillWorker": "workers",
    "RequestRecord": "streams",
    "ServingError": "streams",
    "TokenStream": "streams",
    "kv_from_buffers": "kv_buffers",
    "kv_to_buffers": "kv_buffers",
    "latency_summary": "trace_replay",
    "profile_model": "profiling",
    "replay": "trace_replay",
    "unsplit_tokens": "workers",
    "write_profile": "profiling",
}


def __getattr__(name: str) -> Any:
    if name not in _REAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_REAL[name]}"), name)


__all__ = [
    "RELEASED_TRANSFERS",
    "SPLITWISE_DESIGNS",
    "Batching",
    "Cluster",
    "ColocatedServer",
    "Curve",
    "DecodeWorker",
    "Design",
    "Interference",
    "IterationCosts",
    "KvBuffers",
    "Load",
    "MaxRate",
    "NanoOperation",
    "Operation",
    "OverlapSchedule",
    "PerformanceModel",
    "PhaseSplitServer",
    "Pool",
    "PrefillWorker",
    "ProfileTable",
    "Provision",
    "RequestRecord",
    "RequestTable",
    "Segment",
    "ServingError",
    "ServingResult",
    "SloLimits",
    "SloReport",
    "TokenStream",
    "Transfers",
    "Workload",
    "answer_differences",
    "decode_occupancy",
    "exposed_transfers",
    "held_out_error",
    "kv_from_buffers",
    "kv_to_buffers",
    "latency_summary",
    "least_machines",
    "left_out_knot_error",
    "max_rate",
    "most_throughput",
    "poisson_requests",
    "profile_model",
    "published_lengths",
    "published_performance",
    "read_requests",
    "replay",
    "resource_bound",
    "roofline",
    "search_overlap",
    "simulate_cluster",
    "slo_report",
    "slowdown_rows",
    "splitwise_design",
    "unsplit_tokens",
    "write_profile",
]
