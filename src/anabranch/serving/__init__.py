"""Serving language models: traces of requests, performance models, exact simulation of clusters that split prompt and decoding.

A :class:`RequestTable` goes with a :class:`Cluster` of :class:`Pool` s into :func:`simulate_cluster`.
"""

from typing import TYPE_CHECKING, Any

from anabranch.serving.batch_former import BatchFormer, Chunk, DenseBatch
from anabranch.serving.cluster import (
    Batching,
    Cluster,
    Pool,
    ServingResult,
    Transfers,
    simulate_cluster,
)
from anabranch.serving.dense_serving import BatchSeconds, DenseServing, simulate_dense_batches
from anabranch.serving.interference import Interference
from anabranch.serving.iteration_costs import IterationCosts, Operation, Workload
from anabranch.serving.layer_graph import (
    LayerGraph,
    LayerOperation,
    NanoGraph,
    NanoNode,
    nano_lanes,
    published_layer,
    transformer_layer,
    weight_seconds,
)
from anabranch.serving.modulo_search import period_bound, search_periodic
from anabranch.serving.overlap import resource_bound, search_overlap
from anabranch.serving.overlap_schedule import NanoOperation, OverlapSchedule, Segment
from anabranch.serving.performance import Curve, PerformanceModel, ProfileTable, roofline
from anabranch.serving.periodic_schedule import PeriodicSchedule, sequential
from anabranch.serving.provisioning import Design, Provision, least_machines, most_throughput
from anabranch.serving.requests import RequestTable, poisson_requests, published_lengths, read_requests
from anabranch.serving.slo import Load, MaxRate, SloLimits, SloReport, max_rate, slo_report

if TYPE_CHECKING:
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
    from anabranch.serving.prepared_overlap import PreparedOverlap, prepare_overlap

_REAL = {  # they need torch, which a simulation does not: loaded when first asked for
    "PreparedOverlap": "prepared_overlap",
    "prepare_overlap": "prepared_overlap",
    "KVTier": "kv_tier",
    "usable_cores": "lanes",
    "gather_pages": "kv_tier",
    "scatter_pages": "kv_tier",
    "CpuLanes": "lanes",
    "CudaLanes": "lanes",
    "Lanes": "lanes",
    "Piece": "lanes",
    "LayerWeights": "llama_layers",
    "LayerWork": "llama_layers",
    "MixedBatch": "llama_layers",
    "layer_works": "llama_layers",
    "run_in_sequence": "llama_layers",
    "MeasuredInterference": "overlap_execution",
    "even_pieces": "overlap_execution",
    "graph_pieces": "overlap_execution",
    "measure_interference": "overlap_execution",
    "measure_operations": "overlap_execution",
    "overlap_pieces": "overlap_execution",
}

__all__ = [
    "BatchFormer",
    "BatchSeconds",
    "Batching",
    "Chunk",
    "Cluster",
    "CpuLanes",
    "CudaLanes",
    "Curve",
    "DenseBatch",
    "DenseServing",
    "Design",
    "Interference",
    "IterationCosts",
    "KVTier",
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
    "Piece",
    "Pool",
    "PreparedOverlap",
    "ProfileTable",
    "Provision",
    "RequestTable",
    "Segment",
    "ServingResult",
    "SloLimits",
    "SloReport",
    "Transfers",
    "Workload",
    "even_pieces",
    "gather_pages",
    "graph_pieces",
    "layer_works",
    "least_machines",
    "max_rate",
    "measure_interference",
    "measure_operations",
    "most_throughput",
    "nano_lanes",
    "overlap_pieces",
    "period_bound",
    "poisson_requests",
    "prepare_overlap",
    "published_layer",
    "published_lengths",
    "read_requests",
    "resource_bound",
    "roofline",
    "run_in_sequence",
    "scatter_pages",
    "search_overlap",
    "search_periodic",
    "sequential",
    "simulate_cluster",
    "simulate_dense_batches",
    "slo_report",
    "transformer_layer",
    "usable_cores",
    "weight_seconds",
]


def __getattr__(name: str) -> Any:
    if name not in _REAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"{__name__}.{_REAL[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            "this part needs torch: install anabranch[serving]; for a machine without a GPU install torch's CPU-only build "
            "first (its index is named by the install selector on pytorch.org)",
            name="torch",
        ) from None
