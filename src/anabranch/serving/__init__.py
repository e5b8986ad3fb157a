"""Serving language models: traces of requests, performance models, exact simulation of clusters that split prompt and decoding.

A :class:`RequestTable` goes with a :class:`Cluster` of :class:`Pool` s into :func:`simulate_cluster`.
"""

from anabranch.serving.cluster import (
    Batching,
    Cluster,
    Pool,
    ServingResult,
    Transfers,
    simulate_cluster,
)
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

__all__ = [
    "Batching",
    "Cluster",
    "Curve",
    "Design",
    "Interference",
    "IterationCosts",
    "LayerGraph",
    "LayerOperation",
    "Load",
    "MaxRate",
    "NanoGraph",
    "NanoNode",
    "NanoOperation",
    "Operation",
    "OverlapSchedule",
    "PerformanceModel",
    "PeriodicSchedule",
    "Pool",
    "ProfileTable",
    "Provision",
    "RequestTable",
    "Segment",
    "ServingResult",
    "SloLimits",
    "SloReport",
    "Transfers",
    "Workload",
    "least_machines",
    "max_rate",
    "most_throughput",
    "nano_lanes",
    "period_bound",
    "poisson_requests",
    "published_layer",
    "published_lengths",
    "read_requests",
    "resource_bound",
    "roofline",
    "search_overlap",
    "search_periodic",
    "sequential",
    "simulate_cluster",
    "slo_report",
    "transformer_layer",
    "weight_seconds",
]
