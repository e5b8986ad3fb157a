"""Serving language models: traces of requests, performance models, exact simulation of clusters that split prompt and decoding.

A :class:`RequestTable` goes with a :class:`Cluster` of :class:`Pool` s into :func:`simulate_cluster`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anabranch.serving._worker_context import prepare_workers
from anabranch.serving.batch_former import BatchFormer, Chunk, DenseBatch
from anabranch.serving.cluster import Batching, Cluster, Pool, ServingResult, Transfers, simulate_cluster
from anabranch.serving.dense_serving import BatchSeconds, DenseServing, simulate_dense_batches
from anabranch.serving.designs import CHUNKED_BASELINES, RELEASED_TRANSFERS, SPLITWISE_DESIGNS, splitwise_design
from anabranch.serving.interference import Interference
from anabranch.serving.iteration_costs import IterationCosts, Operation, Workload
from anabranch.serving.iteration_limits import IterationLimits, iteration_limits
from anabranch.serving.lane_search import lanes_bound, search_lanes
from anabranch.serving.lane_studies import compare_lanes, overlap_curve
from anabranch.serving.layer_graph import (
    LayerGraph,
    LayerOperation,
    NanoGraph,
    NanoNode,
    insert_step,
    nano_lanes,
    published_layer,
    transformer_layer,
    weight_seconds,
)
from anabranch.serving.modulo_search import period_bound, search_periodic
from anabranch.serving.occupancy import decode_occupancy
from anabranch.serving.overlap import resource_bound, search_overlap
from anabranch.serving.overlap_schedule import NanoOperation, OverlapSchedule, Segment
from anabranch.serving.performance import Curve, PerformanceModel, ProfileTable, roofline
from anabranch.serving.periodic_schedule import PeriodicSchedule, sequential
from anabranch.serving.profile_errors import held_out_error, left_out_knot_error
from anabranch.serving.provisioning import Design, Provision, least_machines, most_throughput, provision, rate_plane
from anabranch.serving.published_profiles import published_performance
from anabranch.serving.reference_model import ReferenceModel
from anabranch.serving.requests import RequestTable, poisson_requests, published_lengths, read_requests
from anabranch.serving.slo import (
    Load,
    MaxRate,
    RateInterval,
    SloLimits,
    SloReport,
    max_rate,
    rate_interval,
    rate_intervals,
    slo_report,
)
from anabranch.serving.studies import answer_differences, exposed_transfers, slowdown_rows

if TYPE_CHECKING:
    from anabranch.serving.device_measurement import measure_device
    from anabranch.serving.kv_buffers import KvBuffers, kv_from_buffers, kv_to_buffers
    from anabranch.serving.kv_tier import KVTier, gather_pages, scatter_pages
    from anabranch.serving.lanes import CpuLanes, CudaLanes, Lanes, Piece, usable_cores
    from anabranch.serving.llama_layers import LayerWeights, LayerWork, MixedBatch, layer_works, run_in_sequence
    from anabranch.serving.overlap_execution import (
        MeasuredInterference,
        even_pieces,
        graph_pieces,
        measure_interference,
        measure_operations,
        overlap_pieces,
    )
    from anabranch.serving.phase_split import ColocatedServer, PhaseSplitServer
    from anabranch.serving.prepared_overlap import PreparedOverlap, prepare_overlap
    from anabranch.serving.profiling import profile_model, write_profile
    from anabranch.serving.streams import RequestRecord, ServingError, TokenStream
    from anabranch.serving.trace_replay import latency_summary, replay
    from anabranch.serving.workers import DecodeWorker, PrefillWorker, unsplit_tokens

_REAL = {  # they need torch or transformers, which a simulation does not: loaded when first asked for
    "ColocatedServer": "phase_split",
    "CpuLanes": "lanes",
    "CudaLanes": "lanes",
    "DecodeWorker": "workers",
    "KVTier": "kv_tier",
    "KvBuffers": "kv_buffers",
    "Lanes": "lanes",
    "LayerWeights": "llama_layers",
    "LayerWork": "llama_layers",
    "MeasuredInterference": "overlap_execution",
    "MixedBatch": "llama_layers",
    "PhaseSplitServer": "phase_split",
    "Piece": "lanes",
    "PrefillWorker": "workers",
    "PreparedOverlap": "prepared_overlap",
    "RequestRecord": "streams",
    "ServingError": "streams",
    "TokenStream": "streams",
    "even_pieces": "overlap_execution",
    "gather_pages": "kv_tier",
    "graph_pieces": "overlap_execution",
    "kv_from_buffers": "kv_buffers",
    "kv_to_buffers": "kv_buffers",
    "latency_summary": "trace_replay",
    "layer_works": "llama_layers",
    "measure_device": "device_measurement",
    "measure_interference": "overlap_execution",
    "measure_operations": "overlap_execution",
    "overlap_pieces": "overlap_execution",
    "prepare_overlap": "prepared_overlap",
    "profile_model": "profiling",
    "replay": "trace_replay",
    "run_in_sequence": "llama_layers",
    "scatter_pages": "kv_tier",
    "unsplit_tokens": "workers",
    "usable_cores": "lanes",
    "write_profile": "profiling",
}

__all__ = [
    "CHUNKED_BASELINES",
    "RELEASED_TRANSFERS",
    "SPLITWISE_DESIGNS",
    "BatchFormer",
    "BatchSeconds",
    "Batching",
    "Chunk",
    "Cluster",
    "ColocatedServer",
    "CpuLanes",
    "CudaLanes",
    "Curve",
    "DecodeWorker",
    "DenseBatch",
    "DenseServing",
    "Design",
    "Interference",
    "IterationCosts",
    "IterationLimits",
    "KVTier",
    "KvBuffers",
    "Lanes",
    "LayerGraph",
    "LayerOperation",
    "LayerWeights",
    "LayerWork",
    "Load",
    "MaxRate",
    "MeasuredInterference",
    "MixedBatch",
    "NanoGraph",
    "NanoNode",
    "NanoOperation",
    "Operation",
    "OverlapSchedule",
    "PerformanceModel",
    "PeriodicSchedule",
    "PhaseSplitServer",
    "Piece",
    "Pool",
    "PrefillWorker",
    "PreparedOverlap",
    "ProfileTable",
    "Provision",
    "RateInterval",
    "ReferenceModel",
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
    "compare_lanes",
    "decode_occupancy",
    "even_pieces",
    "exposed_transfers",
    "gather_pages",
    "graph_pieces",
    "held_out_error",
    "insert_step",
    "iteration_limits",
    "kv_from_buffers",
    "kv_to_buffers",
    "lanes_bound",
    "latency_summary",
    "layer_works",
    "least_machines",
    "left_out_knot_error",
    "max_rate",
    "measure_device",
    "measure_interference",
    "measure_operations",
    "most_throughput",
    "nano_lanes",
    "overlap_curve",
    "overlap_pieces",
    "period_bound",
    "poisson_requests",
    "prepare_overlap",
    "prepare_workers",
    "profile_model",
    "provision",
    "published_layer",
    "published_lengths",
    "published_performance",
    "rate_interval",
    "rate_intervals",
    "rate_plane",
    "read_requests",
    "replay",
    "resource_bound",
    "roofline",
    "run_in_sequence",
    "scatter_pages",
    "search_lanes",
    "search_overlap",
    "search_periodic",
    "sequential",
    "simulate_cluster",
    "simulate_dense_batches",
    "slo_report",
    "slowdown_rows",
    "splitwise_design",
    "transformer_layer",
    "unsplit_tokens",
    "usable_cores",
    "weight_seconds",
    "write_profile",
]


def __getattr__(name: str) -> Any:
    if name not in _REAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_REAL[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        raise ModuleNotFoundError(
            "this part needs torch and transformers: install anabranch[serving]; for a machine without a GPU install torch's "
            "CPU-only build first (its index is named by the install selector on pytorch.org)",
            name=error.name,
        ) from None
