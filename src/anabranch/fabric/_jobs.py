"""What the commands are given, read: sizes, fabrics, cables, jobs (traffic that may repeat)."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

import anabranch.fabric as fb
from anabranch.fabric import Plan, Topology, Traffic
from anabranch.simulation import LLAMA2_70B, MIXTRAL_8X7B, SMOLLM2_135M, TransformerShape

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{i}B": (1024 if i else 1000) ** power
    for power, letter in enumerate("KMGT", start=1)
    for i in ("", "I")
}  # fmt: skip
_MOST_FLOWS = 30_000_000
MODELS = {"smollm2-135m": SMOLLM2_135M, "llama-2-70b": LLAMA2_70B, "mixtral-8x7b": MIXTRAL_8X7B}


@dataclass(frozen=True, eq=False)
class Job:
    """Traffic in phases, of which alike steps are looked at once.

    Attributes:
        name: what it is.
        whole: all phases one after the other, every step listed, every phase once.
        traffic: the first of each kind of step of ``whole``, under its number there.
        phases: names.
        counts: how often each step of ``traffic`` happens in each phase, int[phases, steps]; 0 for steps that are not in it.
        n_self_flows: flows left out because they end where they begin.
    """

    name: str
    whole: Traffic
    traffic: Traffic
    phases: tuple[str, ...]
    counts: np.ndarray
    n_self_flows: int

    @property
    def n_flows(self) -> int:
        """Flows of the whole job, repeats included."""
        per_step = np.bincount(self.traffic.step, minlength=self.counts.shape[1])
        return int(self.counts.sum(axis=0) @ per_step)

    def phase_bytes(self) -> np.ndarray:
        """Bytes of each phase, repeats included; floats, since an iteration may move more than 2^63."""
        return np.asarray(self.counts @ np.bincount(self.traffic.step, self.traffic.size_bytes, self.counts.shape[1]))


def nearest(what: str, name: str, known: Sequence[str]) -> str:
    """``name`` if it is known; raises ValueError with the nearest known ones."""
    if name in known:
        return name
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known[:12])}"
    raise ValueError(f"unknown {what} {name!r}; {hint}")


def parse_bytes(name: str, text: str) -> int:
    """Whole bytes of ``64MiB``, ``1.5 GB``, ``4e6``."""
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = found.group(2).upper() if found else ""
    if unit in ("K", "M", "G", "T"):
        raise ValueError(f"{name} must say which {unit}, {unit}B (decimal) or {unit}iB (binary), got {text!r}")
    try:
        value = Fraction(found.group(1)) * _UNITS[unit] if found else Fraction(0)
    except (ValueError, KeyError):
        value = Fraction(0)
    if value < 1 or value.denominator != 1 or value >= 2**62:
        raise ValueError(f"{name} must be a whole number of bytes >= 1 such as 64MiB, 1.5GB or 4e6, got {text!r}")
    return int(value)


def read_fabric(text: str) -> Topology:
    """The fabric of a JSON file, or ``LEAVESxSPINESxNICS``."""
    if found := re.fullmatch(r"(\d+)x(\d+)x(\d+)", text):
        return fb.LeafSpine(*map(int, found.groups()))
    if not Path(text).exists():
        raise ValueError(
            f"topology must be a JSON file or LEAVESxSPINESxNICS such as 16x16x16, but there is no {text!r}"
        )
    return Topology.from_file(text)


def fail_cables(topology: Topology, cables: Sequence[str]) -> Topology:
    """The fabric without ``A-B`` (both directions of all cables between two nodes) or ``A->B`` (one direction)."""
    if not cables:
        return topology
    links: dict[str, list[int]] = {}
    for link in range(topology.n_links):
        links.setdefault(topology.link_name(link), []).append(link)
    down: list[int] = []
    for text in cables:
        cable = text.replace(" ", "")
        found = list(links.get(cable, ()))
        for cut in range(len(cable)):  # names may hold dashes
            if cable[cut] == "-":
                a, b = cable[:cut], cable[cut + 1 :]
                found += links.get(f"{a}->{b}", []) + links.get(f"{b}->{a}", [])
        if not found:
            known = [name.replace("->", "-") for name in links]
            nearest(
                "cable",
                cable.replace("->", "-"),
                known[2 * topology.n_nics :][:20_000] + known[: topology.n_nics][:2_000],
            )
        down += found
    return fb.fail_links(topology, np.array(down, dtype=np.int32))


def read_model(text: str) -> Any:
    """A known model's shape, or the one of a ``config.json``."""
    if not text.endswith(".json"):
        return MODELS[nearest("model", text.lower(), tuple(MODELS))]
    try:
        config = json.loads(Path(text).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{text}, line {error.lineno}, column {error.colno}: {error.msg}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{text}: expected an object with the model's numbers")
    try:
        return TransformerShape.from_config(config.get("_name_or_path") or Path(text).stem, config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{text}: {error}") from error


def parse_parallel(text: str | None) -> tuple[int, int, int, int]:
    """``T,P,D`` or ``T,P,D,E``."""
    parts = (text or "").split(",")
    if len(parts) not in (3, 4) or not all(re.fullmatch(r"\s*[1-9]\d*\s*", part) for part in parts):
        raise ValueError(
            f"parallel must be T,P,D or T,P,D,E (tensor, pipeline, data, expert parallelism, each >= 1), got {text!r}"
        )
    numbers = [int(part) for part in parts]
    return numbers[0], numbers[1], numbers[2], numbers[3] if len(numbers) == 4 else 1


def check_flows(what: str, flows: int) -> None:
    """Refuses what would not fit in memory when listed flow by flow."""
    if flows > _MOST_FLOWS:
        raise ValueError(
            f"{what} has {flows:,} flows, more than the {_MOST_FLOWS:,} that are listed one by one; "
            "give fewer ranks or another algorithm (konig_matrix in Python counts equal flows instead)"
        )


def make_job(name: str, phases: Sequence[tuple[str, Traffic, int]]) -> Job:
    """A job of (name, traffic, repeats), one phase after the other. O(F log F)."""
    whole = fb.concatenate(*(traffic for _, traffic, _ in phases), one_after_the_other=True)
    first, kinds = alike_steps(whole.step, whole.src, whole.dst, whole.size_bytes)
    ends = np.cumsum([0, *(traffic.n_steps for _, traffic, _ in phases)])
    counts = np.zeros((len(phases), whole.n_steps), dtype=np.int64)
    for p, (_, _, repeats) in enumerate(phases):
        own = kinds[ends[p] : ends[p + 1]]
        np.add.at(counts[p], own[own >= 0], repeats)
    traffic = whole.select(np.isin(whole.step, first))
    dropped = sum(part.n_self_flows for _, part, _ in phases)
    return Job(name, whole, traffic, tuple(phase for phase, _, _ in phases), counts, dropped)


def alike_steps(step: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first step of each kind, ascending; the first step that is alike for every step, -1 for empty ones).

    Steps are alike whose entries in all columns are equal, in their order.
    """
    order = np.argsort(step, kind="stable")
    starts = np.flatnonzero(np.diff(step[order], prepend=-1))
    kinds = np.full(int(step.max(initial=-1)) + 1, -1, dtype=np.int64)
    known: dict[bytes, int] = {}
    for rows in np.split(order, starts[1:]) if len(starts) else []:
        number = int(step[rows[0]])
        key = blake2b(b"".join(np.ascontiguousarray(c[rows]).tobytes() for c in columns)).digest()
        kinds[number] = known.setdefault(key, number)
    return np.array(sorted(known.values()), dtype=np.int64), kinds


def once(plan: Plan) -> tuple[Plan, np.ndarray]:
    """The first of each kind of step of a plan, under its number, and how often each happens [n_steps]."""
    traffic = plan.traffic
    ends = traffic.src[plan.parent], traffic.dst[plan.parent]
    first, kinds = alike_steps(traffic.step[plan.parent], *ends, plan.path, plan.size_bytes)
    flows = np.flatnonzero(np.isin(traffic.step, first))
    own = np.isin(plan.parent, flows)
    parent = np.searchsorted(flows, plan.parent[own])
    kept = Plan(plan.topology, traffic.select(flows), parent, plan.path[own], plan.size_bytes[own])
    return kept, np.bincount(kinds[kinds >= 0], minlength=traffic.n_steps)


def read_job(topology: Topology, sources: Mapping[str, Any], placement: Path | None, options: Mapping[str, Any]) -> Job:
    """The job of the one source that is given.

    Args:
        sources: traffic, chakra, collective, model; all but one None.
        options: bytes, algorithm, ranks, ranks_per_host, fold, parallel (None where not given), sequence, micro_batches, seed.

    Raises:
        ValueError: no source or several, an option that another source takes, whatever its reader finds.
    """
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        names = " and ".join(f"--{name}" for name in given) or "none"
        raise ValueError(f"give exactly one of {', '.join(f'--{name}' for name in sources)}, got {names}")
    source = given[0]
    for name, users in _USERS.items():
        if options[name] is not None and source not in users:
            raise ValueError(f"--{name.replace('_', '-')} goes with --{' or --'.join(users)}, not with --{source}")
    nics = None if placement is None else fb.read_placement(placement, n_nics=topology.n_nics)
    job = _READERS[source](topology, sources[source], nics, options)
    for ends in (job.traffic.src, job.traffic.dst):
        if job.traffic.n_flows and int(ends.max()) >= topology.n_nics:
            raise ValueError(
                f"{job.name} uses NIC {int(ends.max())}, but the fabric has {topology.n_nics} (0 to {topology.n_nics - 1})"
            )
    return job


def _read_flows(topology: Topology, path: Path, nics: np.ndarray | None, options: Mapping[str, Any]) -> Job:
    traffic = fb.read_traffic(path)
    if nics is not None:
        traffic = traffic.placed(nics)
    return make_job(str(path), [("flows", traffic, 1)])


def _read_trace(topology: Topology, path: Path, nics: np.ndarray | None, options: Mapping[str, Any]) -> Job:
    algorithms = {"all-reduce": options["algorithm"]} if options["algorithm"] else None
    return make_job(str(path), [("trace", fb.read_chakra(path, algorithms=algorithms, placement=nics), 1)])


def _read_collective(topology: Topology, name: str, nics: np.ndarray | None, options: Mapping[str, Any]) -> Job:
    if options["bytes"] is None:
        raise ValueError("--collective needs --bytes, the message of one rank, such as --bytes 64MiB")
    size = parse_bytes("bytes", options["bytes"])
    ranks = options["ranks"] or (topology.n_nics if nics is None else len(nics))
    algorithm = options["algorithm"]
    if algorithm in (None, "ring", "direct", "linear-shift"):
        check_flows(f"{name} of {ranks} ranks", (2 if name.endswith("reduce") else 1) * ranks * (ranks - 1))
    extra = {key: options[key] for key in ("ranks_per_host", "fold") if options[key] is not None}
    try:
        traffic = fb.collective(name, ranks=ranks, message_bytes=size, algorithm=algorithm, placement=nics, **extra)
    except ValueError as error:
        raise ValueError(str(error).replace("fold=True", "--fold")) from error
    words = f"{name}{f' ({algorithm})' if algorithm else ''} of {options['bytes']} on {ranks:,} ranks"
    return make_job(words, [(name, traffic, 1)])


def _read_model(topology: Topology, name: str, nics: np.ndarray | None, options: Mapping[str, Any]) -> Job:
    shape = read_model(name)
    tensor, pipeline, data, experts = parse_parallel(options["parallel"])
    ranks = tensor * pipeline * data
    room = topology.n_nics if nics is None else len(nics)
    if ranks > room:
        what = "NICs" if nics is None else "placed ranks"
        raise ValueError(f"--parallel {options['parallel']} needs {ranks} ranks, but there are {room} {what}")
    if options["algorithm"] in (None, "ring"):
        check_flows(f"{shape.name} on {ranks} ranks", 2 * (data - 1) * ranks)
    phases = fb.model_traffic(
        shape,
        tensor_parallel=tensor,
        pipeline=pipeline,
        data=data,
        expert_parallel=experts,
        sequence=options["sequence"],
        micro_batches=options["micro_batches"],
        algorithm=options["algorithm"] or "ring",
        generator=np.random.default_rng(options["seed"]),
        placement=nics,
    )
    words = f"iteration of {shape.name} on {ranks:,} ranks (tensor {tensor}, pipeline {pipeline}, data {data}"
    words += f", expert {experts})" if experts > 1 else ")"
    return make_job(words, [(phase.name, phase.traffic, phase.repeats) for phase in phases])


_READERS: dict[str, Callable[[Topology, Any, np.ndarray | None, Mapping[str, Any]], Job]] = {
    "traffic": _read_flows,
    "chakra": _read_trace,
    "collective": _read_collective,
    "model": _read_model,
}
_USERS = {
    "bytes": ("collective",),
    "ranks": ("collective",),
    "ranks_per_host": ("collective",),
    "fold": ("collective",),
    "algorithm": ("collective", "model", "chakra"),
    "parallel": ("model",),
}
