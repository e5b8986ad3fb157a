"""Load balancing of training collectives: topologies, traffic, exact flow splitting, simulation.

A :class:`Topology` and a :class:`Traffic` go into a planner (``plan_ecmp``, ``plan_greedy``, ``plan_split``,
``plan_konig``, ``plan_spray``), which gives a :class:`Plan`: every flow whole or cut in a few pieces, each piece on
one path.
"""

from anabranch.fabric.chakra import read_chakra
from anabranch.fabric.collectives import collective, moe_traffic, permutation
from anabranch.fabric.export import (
    NcclSettings,
    ecmp_hash,
    nccl_settings,
    path_table,
    udp_source_ports,
    write_path_table,
)
from anabranch.fabric.fat_tree import FatTree
from anabranch.fabric.graph import GraphTopology
from anabranch.fabric.konig import KonigTradeoff, LeafPlan, konig_matrix, konig_tradeoff, plan_konig
from anabranch.fabric.models import TrafficPhase, model_traffic
from anabranch.fabric.optimum import Optimum, closed_form_optimum, optimum
from anabranch.fabric.plan import Plan, SprayPlan
from anabranch.fabric.planners import plan_ecmp, plan_greedy, plan_spray, replan
from anabranch.fabric.splitting import plan_split
from anabranch.fabric.topology import LeafSpine, Topology, fail_links
from anabranch.fabric.traffic import LeafDemand, Traffic, concatenate, read_placement, read_traffic

__all__ = [
    "FatTree",
    "GraphTopology",
    "KonigTradeoff",
    "LeafDemand",
    "LeafPlan",
    "LeafSpine",
    "NcclSettings",
    "Optimum",
    "Plan",
    "SprayPlan",
    "Topology",
    "Traffic",
    "TrafficPhase",
    "closed_form_optimum",
    "collective",
    "concatenate",
    "ecmp_hash",
    "fail_links",
    "konig_matrix",
    "konig_tradeoff",
    "model_traffic",
    "moe_traffic",
    "nccl_settings",
    "optimum",
    "path_table",
    "permutation",
    "plan_ecmp",
    "plan_greedy",
    "plan_konig",
    "plan_split",
    "plan_spray",
    "read_chakra",
    "read_placement",
    "read_traffic",
    "replan",
    "udp_source_ports",
    "write_path_table",
]

# Simulators, and files for other simulators.
from anabranch.fabric.astra import (
    AstraNetwork,
    astra_logical_topology,
    astra_network,
    astra_system,
    read_astra_network,
)
from anabranch.fabric.fluid import FluidResult, simulate_fluid
from anabranch.fabric.max_min import max_min_rates
from anabranch.fabric.ns3 import (
    read_ns3_flows,
    read_ns3_topology,
    write_ns3_flows,
    write_ns3_topology,
)
from anabranch.fabric.packets import PacketResult, simulate_packets

__all__ += [
    "AstraNetwork",
    "FluidResult",
    "PacketResult",
    "astra_logical_topology",
    "astra_network",
    "astra_system",
    "max_min_rates",
    "read_astra_network",
    "read_ns3_flows",
    "read_ns3_topology",
    "simulate_fluid",
    "simulate_packets",
    "write_ns3_flows",
    "write_ns3_topology",
]
