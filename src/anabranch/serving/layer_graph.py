"""The operations of a transformer layer under tensor parallelism, what each waits for, and the layer cut into nano-operations.

NanoFlow (Zhu et al., 2408.12757), section 4.1. Tokens of a batch are in order: first those that decode, then those of prompts.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from anabranch.serving.iteration_costs import IterationCosts, Workload
from anabranch.serving.overlap_schedule import NanoOperation
from anabranch.simulation import ACCELERATORS, LLAMA2_70B

ALL, DECODE, PREFILL = "all", "decode", "prefill"
WEIGHTS = ("KQV", "O", "UG", "D")  # operations that read weights

# Seconds of all layers that the paper measured beside its estimates: table 2, Llama-2-70B on 8 A100, 512 tokens in, 1,024 out.
_MEASURED_S = {
    "KQV": 16.08e-3, "O": 16.01e-3, "UG": 69.92e-3, "D": 34.96e-3, "DecAttn": 35.60e-3, "PfAttn": 4.56e-3, "Net": 47.92e-3,
}  # fmt: skip


@dataclass(frozen=True)
class LayerOperation:
    """An operation on a part of the batch: ``seconds`` alone, of which ``weight_s`` is what reading its weights once takes.

    Attributes:
        kind: of :class:`Interference`: what it mainly needs.
        part: the tokens it works on: "all", "decode" or "prefill".
        needs: operations of the same layer whose output it takes, token by token. needs_before: of the layer before.
        causal: a token takes the output for all earlier tokens of its prompt too.
    """

    name: str
    kind: str
    seconds: float
    weight_s: float = 0.0
    part: str = ALL
    needs: tuple[str, ...] = ()
    needs_before: tuple[str, ...] = ()
    causal: bool = False


@dataclass(frozen=True)
class LayerGraph:
    """The operations of one layer, each after those it needs, on a batch of ``decode_tokens + prefill_tokens``.

    Args:
        prompts: tokens at which a prompt of the batch begins, ascending, the first at ``decode_tokens``; empty lets every token
            attend as if alone (the paper's rule: ranges that intersect).

    Raises:
        ValueError: operations out of order or twice, a negative number of tokens, an empty batch, prompts outside theirs.
    """

    operations: tuple[LayerOperation, ...]
    decode_tokens: int
    prefill_tokens: int
    prompts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.decode_tokens, self.prefill_tokens) < 0 or self.batch == 0:
            raise ValueError(
                f"decode_tokens={self.decode_tokens}, prefill_tokens={self.prefill_tokens}: expected >= 0, not both 0"
            )
        names = [one.name for one in self.operations]
        for i, one in enumerate(self.operations):
            if one.name in names[:i]:
                raise ValueError(f"operation {one.name} is there twice")
            for name in one.needs:
                if name not in names[:i]:
                    raise ValueError(f"{one.name} needs {name}, which does not come before it")
            for name in one.needs_before:
                if name not in names:
                    raise ValueError(f"{one.name} needs {name} of the layer before, which is not there")
        if self.prompts and (
            self.prompts[0] != self.decode_tokens
            or self.prompts[-1] >= self.batch
            or any(b <= a for a, b in pairwise(self.prompts))
        ):
            raise ValueError(
                f"prompts={self.prompts}: expected ascending from {self.decode_tokens} and below {self.batch}"
            )

    @property
    def batch(self) -> int:
        return self.decode_tokens + self.prefill_tokens

    @property
    def sequential_s(self) -> float:
        """One operation after the other."""
        return sum(one.seconds for one in self.operations)

    def span(self, part: str) -> tuple[int, int]:
        """Tokens ``[start, end)`` of a part of the batch."""
        starts = {ALL: (0, self.batch), DECODE: (0, self.decode_tokens), PREFILL: (self.decode_tokens, self.batch)}
        return starts[part]

    def reduce_instead_of_gather(self) -> "LayerGraph":
        """The output projection split by rows: its partial sums are reduced, and attention need not be gathered before it.

        An all-reduce moves what two gathers do, so the traffic stays; the projection waits for its own attention only.

        Raises:
            ValueError: a layer without ``AttnAG`` and ``OAG``.
        """
        by_name = {one.name: one for one in self.operations}
        if not {"AttnAG", "OAG", "O"} <= set(by_name):
            raise ValueError(f"the layer has {', '.join(by_name)}: expected AttnAG, O and OAG")
        gather = by_name["AttnAG"]
        changed = []
        for one in self.operations:
            if one.name == "O":
                one = replace(
                    one, needs=tuple(n for name in one.needs for n in (gather.needs if name == "AttnAG" else (name,)))
                )
            elif one.name == "OAG":
                one = replace(one, name="OAR", seconds=one.seconds + gather.seconds)
            else:
                one = replace(one, needs=tuple("OAR" if name == "OAG" else name for name in one.needs))
            if one.name != "AttnAG":
                changed.append(one)
        return replace(self, operations=tuple(changed))


def transformer_layer(
    seconds: Mapping[str, float],
    decode_tokens: int,
    prefill_tokens: int,
    *,
    weight_s: Mapping[str, float] | None = None,
    prompts: Sequence[int] = (),
) -> LayerGraph:
    """The layer of the paper: projections, attention of both phases, two gathers and a reduction (half of the traffic).

    Args:
        seconds: of KQV, O, UG, D, DecAttn, PfAttn and Net (all collectives); what is 0 or missing is left out.
        weight_s: of KQV, O, UG and D: reading their weights once.

    Raises:
        ValueError: no time of a projection.
    """
    for name in WEIGHTS:
        if not seconds.get(name, 0.0) > 0:
            raise ValueError(f"seconds must have {name} > 0, got {dict(seconds)}")
    weights, net = weight_s or {}, seconds.get("Net", 0.0)
    chain: list[LayerOperation] = []

    def add(name: str, kind: str, time: float, *needs: str, part: str = ALL, causal: bool = False) -> None:
        if time > 0:
            there = {one.name for one in chain}
            found = tuple(need for need in needs if need in there)
            chain.append(LayerOperation(name, kind, time, weights.get(name, 0.0), part, found, causal=causal))

    def last(name: str, instead: str) -> str:
        return name if any(one.name == name for one in chain) else instead

    add("KQV", "gemm", seconds["KQV"])
    add("DecAttn", "gemv", seconds.get("DecAttn", 0.0), "KQV", part=DECODE)
    add("PfAttn", "gemm", seconds.get("PfAttn", 0.0), "KQV", part=PREFILL, causal=True)
    add("AttnAG", "network", net / 4, "KQV", "DecAttn", "PfAttn")
    add("O", "gemm", seconds["O"], *(("AttnAG",) if net else ("KQV", "DecAttn", "PfAttn")))
    add("OAG", "network", net / 4, "O")
    add("UG", "gemm", seconds["UG"], last("OAG", "O"))
    add("D", "gemm", seconds["D"], "UG")
    add("UGDAR", "network", net / 2, "D")
    chain[0] = replace(chain[0], needs_before=(last("UGDAR", "D"),))
    return LayerGraph(tuple(chain), decode_tokens, prefill_tokens, tuple(prompts))


@dataclass(frozen=True)
class NanoNode:
    """Operation ``operation`` on the tokens ``[start, end)``: ``seconds`` alone on the machine."""

    operation: str
    kind: str
    start: int
    end: int
    seconds: float


@dataclass(frozen=True)
class NanoGraph:
    """Nano-operations and their dependencies ``(before, after, lag)``: ``lag`` 1 waits for the layer before."""

    layer: LayerGraph
    nodes: tuple[NanoNode, ...]
    edges: tuple[tuple[int, int, int], ...]

    @classmethod
    def split(
        cls,
        layer: LayerGraph,
        splits: Mapping[str, Sequence[int]] | Sequence[int] = (),
        *,
        granularity: int | None = 128,
        charge_rereads: bool = True,
    ) -> "NanoGraph":
        """Cut operations at tokens; a nano-operation needs another if the operations do and their tokens meet.

        Args:
            splits: tokens at which each operation is cut, or one list for all; tokens outside an operation's part do not cut it.
            granularity: the batch and all cuts are multiples of it (tiles of matrix products); None allows any.
            charge_rereads: every nano-operation reads all weights: it costs its share of the time and what its share of the
                weights leaves out.

        Raises:
            ValueError: an unknown operation, cuts outside the batch, not ascending, or off the granularity.
        """
        names = {one.name for one in layer.operations}
        by_name = splits if isinstance(splits, Mapping) else dict.fromkeys(names, splits)
        if set(by_name) - names:
            raise ValueError(f"splits has {', '.join(sorted(set(by_name) - names))}: the layer has {', '.join(names)}")
        if granularity and (layer.batch < granularity or layer.batch % granularity):
            raise ValueError(
                f"a batch of {layer.batch} tokens is no multiple of {granularity}: granularity=None allows it"
            )
        for name, cuts in by_name.items():
            inner = [0, *cuts, layer.batch]
            if any(b <= a for a, b in pairwise(inner)):
                raise ValueError(f"splits of {name} are {list(cuts)}: expected ascending inside 0 to {layer.batch}")
            if granularity and any(cut % granularity for cut in cuts):
                raise ValueError(f"splits of {name} are {list(cuts)}: expected multiples of {granularity}")
        nodes: list[NanoNode] = []
        pieces: dict[str, list[int]] = {}
        for one in layer.operations:
            low, high = layer.span(one.part)
            ends = [low, *(cut for cut in by_name.get(one.name, ()) if low < cut < high), high]
            pieces[one.name] = list(range(len(nodes), len(nodes) + len(ends) - 1))
            for a, b in pairwise(ends):
                share = (b - a) / (high - low)
                extra = one.weight_s * (1 - share) if charge_rereads else 0.0
                nodes.append(NanoNode(one.name, one.kind, a, b, one.seconds * share + extra))
        edges = []
        for one in layer.operations:
            for lag, needs in ((0, one.needs), (1, one.needs_before)):
                for name in needs:
                    edges += [
                        (i, j, lag)
                        for j in pieces[one.name]
                        for i in pieces[name]
                        if _meet(layer, one, nodes[i], nodes[j])
                    ]
        return cls(layer, tuple(nodes), tuple(edges))

    @property
    def sequential_s(self) -> float:
        """One nano-operation after the other: nano-batches without overlap."""
        return sum(node.seconds for node in self.nodes)


def _meet(layer: LayerGraph, one: LayerOperation, before: NanoNode, after: NanoNode) -> bool:
    start = after.start
    if one.causal and layer.prompts:
        start = layer.prompts[bisect_right(layer.prompts, start) - 1]
    return before.start < after.end and start < before.end


def nano_lanes(
    layer: LayerGraph, shares: Sequence[float] = (0.5, 0.5), *, charge_rereads: bool = False
) -> tuple[tuple[NanoOperation, ...], ...]:
    """Nano-batches of whole requests, each with its share of the decoding and of the prompt tokens, as chains of operations.

    Args:
        charge_rereads: charge each lane for the weights that the others read too, as time of its own (an upper bound: a matrix
            product that stays bound by compute hides them).

    Raises:
        ValueError: shares that are not positive or do not add up to 1.
    """
    if not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"shares must be positive and add up to 1, got {list(shares)}")
    return tuple(
        tuple(
            NanoOperation(
                one.name, one.kind, one.seconds * share + (one.weight_s * (1 - share) if charge_rereads else 0)
            )
            for one in layer.operations
        )
        for share in shares
    )


def insert_step(
    lanes: Sequence[Sequence[NanoOperation]], step: NanoOperation, *, before: str
) -> tuple[tuple[NanoOperation, ...], ...]:
    """Every chain with ``step`` in front of its operation ``before``.

    Raises:
        ValueError: a chain without that operation.
    """
    found = []
    for lane in lanes:
        names = [one.name for one in lane]
        if before not in names:
            raise ValueError(f"before={before!r}: the lane has {', '.join(names)}")
        at = names.index(before)
        found.append((*lane[:at], step, *lane[at:]))
    return tuple(found)


def published_layer(costs: IterationCosts) -> LayerGraph:
    """All layers of an iteration as one, at the efficiency that the paper measured for each operation.

    The estimate of ``costs``, times measured over estimated time in the paper's table 2: the measured column itself for its
    own model, device, workload and batch, a projection for others.
    """
    reference = IterationCosts(LLAMA2_70B, ACCELERATORS["A100-80"], 8, Workload(512.0, 1024.0), 2048)
    seconds = {
        name: costs.operation(name).seconds * measured / reference.operation(name).seconds
        for name, measured in _MEASURED_S.items()
    }
    decodes = round(costs.batch * costs.workload.decode_share)
    return transformer_layer(seconds, decodes, costs.batch - decodes, weight_s=weight_seconds(costs))


def weight_seconds(costs: IterationCosts) -> dict[str, float]:
    """Seconds that reading the weights of each projection once takes, all layers on all devices."""
    shape = costs.shape
    d, f, kv = shape.hidden, shape.intermediate, shape.kv_heads * shape.head_size
    up = 2 if shape.gated else 1
    elements = {"KQV": d * (d + 2 * kv), "O": d * d, "UG": up * d * f * shape.experts, "D": d * f * shape.experts}
    rate = costs.count * costs.device.memory_bytes_per_s
    return {name: shape.layers * costs.dtype_bytes * count / rate for name, count in elements.items()}
