"""A slow packet simulation in plain Python, written from the description alone: one heap, objects, no kernels."""

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from anabranch.fabric import Plan, Topology, Traffic

WORD = 2**64


def splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def draw(seed: int, piece: int, choice: int, n: int) -> int:
    return (splitmix64((splitmix64((seed + piece) % WORD) + choice) % WORD) >> 32) * n >> 32


@dataclass(eq=False)
class Piece:
    number: int
    flow: int
    size: int
    paths: list[list[int]]  # the paths it may take, as lists of links
    path: int  # the one it is on, where it is not sprayed
    packets: int = 0
    sent: int = 0
    delivered: int = 0
    highest: int = -1
    reordered: int = 0
    lost: int = 0
    on_its_way: int = 0
    choices: int = 0
    resend: list = field(default_factory=list)
    fresh: deque = field(default_factory=deque)  # entropies to use, oldest first
    cache: list = field(default_factory=lambda: [None] * 8)
    written: int = 0
    frozen: int | None = None
    in_ring: bool = False


@dataclass(eq=False)
class Packet:
    piece: Piece
    number: int
    size: int
    links: list[int] = field(default_factory=list)
    choice: int = 0
    hop: int = 0
    sent_at: int = 0
    marked: bool = False


class Link:
    def __init__(self, capacity: float, latency: int, tick: float, dead: bool) -> None:
        self.ticks_per_byte, self.latency, self.dead = 1.0 / (capacity * tick), latency, dead
        self.busy: Packet | None = None
        self.queue: deque[Packet] = deque()
        self.ring: deque[Piece] = deque()
        self.waiting = self.longest = self.sent_bytes = 0


class Reference:
    """Runs on construction; the results are attributes."""

    def __init__(
        self,
        topology: Topology,
        plan_or_traffic: Plan | Traffic,
        *,
        seed: int = 0,
        packet_bytes: int = 4096,
        spray: str | None = None,
        dependencies: str = "barrier",
        queue_limit_bytes: int | None = None,
        ecn_threshold_bytes: int = 250_000,
        window_bytes: int | None = None,
        failures: str = "known",
        timeout_s: float = 5e-4,
        tick_s: float = 1e-15,
    ) -> None:
        self.packet_bytes, self.spray, self.seed = packet_bytes, spray, seed
        self.limit, self.threshold = queue_limit_bytes, ecn_threshold_bytes
        self.window = None if window_bytes is None else window_bytes // packet_bytes
        self.timeout, self.dependencies = round(timeout_s / tick_s), dependencies
        self.acknowledges = spray == "reps" or window_bytes is not None
        latency = np.rint(topology.latency_s / tick_s).astype(int).tolist()
        self.links = [
            Link(c, delay, tick_s, bool(dead))
            for c, delay, dead in zip(topology.capacity_bytes_per_s, latency, topology.is_failed, strict=True)
        ]
        self.traffic = plan_or_traffic.traffic if isinstance(plan_or_traffic, Plan) else plan_or_traffic
        self.pieces = self._pieces(topology, plan_or_traffic, failures == "oblivious")
        start = np.zeros(self.traffic.n_flows) if self.traffic.start_s is None else self.traffic.start_s
        self.start = np.rint(start / tick_s).astype(int).tolist()
        self.arrival: list[int | None] = [None] * self.traffic.n_flows
        self.released = [False] * self.traffic.n_flows
        self.events: list[tuple] = []
        self.serial = 0
        self.trace: list[tuple[int, int, int, int, int, int]] = []
        for flow in sorted((f for f in range(self.traffic.n_flows) if self._ready(f)), key=lambda f: self.start[f]):
            self._schedule(self.start[flow], "start", flow)
            self.released[flow] = True
        self._run()

    def _pieces(self, topology: Topology, what: Plan | Traffic, oblivious: bool) -> list[Piece]:
        pieces = []
        planned = isinstance(what, Plan)
        owners = what.parent if planned else range(self.traffic.n_flows)
        for number, flow in enumerate(owners):
            src, dst = int(self.traffic.src[flow]), int(self.traffic.dst[flow])
            every = [topology.path(src, dst, k).tolist() for k in range(int(topology.n_paths(src, dst)[0]))]
            living = [p for p in every if not topology.is_failed[p].any()]
            path = int(what.path[number]) if planned else 0
            if planned and every[path] in living:
                paths, path = [every[path]], 0
            else:
                paths = every if planned or oblivious else living
            size = int(what.size_bytes[number] if planned else self.traffic.size_bytes[flow])
            pieces.append(Piece(number, int(flow), size, paths, path, packets=-(-size // self.packet_bytes)))
        return pieces

    def _schedule(self, time: int, kind: str, item) -> None:
        heapq.heappush(self.events, (time, kind != "depart", self.serial, kind, item))
        self.serial += 1

    def _ready(self, flow: int) -> bool:
        t = self.traffic
        for other in range(t.n_flows):
            if t.step[other] >= t.step[flow] or self.arrival[other] is not None:
                continue
            mine = t.group[other] == t.group[flow] and t.src[flow] in (t.src[other], t.dst[other])
            if self.dependencies == "barrier" or mine:
                return False
        return True

    def _run(self) -> None:
        kinds = {"depart": 0, "arrive": 1, "acknowledge": 2, "start": 3, "timeout": 4}
        while self.events:
            self.now, _, _, kind, item = heapq.heappop(self.events)
            if kind == "start":
                self.trace.append((self.now, 3, -1, item, -1, -1))
            else:
                packet = self.links[item].busy if kind == "depart" else item
                link = item if kind == "depart" else -1
                self.trace.append((self.now, kinds[kind], link, packet.piece.number, packet.number, packet.hop))
            getattr(self, "_" + kind)(item)

    def _depart(self, at: int) -> None:
        link = self.links[at]
        packet, link.busy = link.busy, None
        self._schedule(self.now + link.latency, "arrive", packet)
        self._send_next(at)

    def _arrive(self, packet: Packet) -> None:
        if packet.hop + 1 == len(packet.links):
            self._deliver(packet)
            return
        packet.hop += 1
        at = packet.links[packet.hop]
        link = self.links[at]
        full = self.limit is not None and link.busy is not None and link.waiting + packet.size > self.limit
        if link.dead or full:
            packet.piece.lost += 1
            self._schedule(max(self.now, packet.sent_at + self.timeout), "timeout", packet)
        elif link.busy is None:
            self._send(at, packet)
        else:
            link.queue.append(packet)
            link.waiting += packet.size
            link.longest = max(link.longest, link.waiting)
            packet.marked |= link.waiting > self.threshold

    def _deliver(self, packet: Packet) -> None:
        piece = packet.piece
        piece.delivered += 1
        if packet.number < piece.highest:
            piece.reordered += 1
        else:
            piece.highest = packet.number
        if self.acknowledges:
            self._schedule(self.now + sum(self.links[x].latency for x in packet.links), "acknowledge", packet)
        if all(p.delivered == p.packets for p in self.pieces if p.flow == piece.flow):
            self.arrival[piece.flow] = self.now
            t = self.traffic
            ends = [t.src[piece.flow], t.dst[piece.flow]] if self.dependencies == "per_rank" else [None]
            for nic in ends:
                waiting = [f for f in range(t.n_flows) if not self.released[f] and (nic is None or t.src[f] == nic)]
                for f in sorted(waiting, key=lambda f: (t.step[f], f)):
                    if self._ready(f):
                        self.released[f] = True
                        self._schedule(max(self.now, self.start[f]), "start", f)

    def _acknowledge(self, packet: Packet) -> None:
        piece = packet.piece
        piece.on_its_way -= 1
        if self.spray == "reps" and not packet.marked:
            piece.cache[piece.written % 8] = packet.choice
            piece.written += 1
            piece.fresh.append(packet.choice)
            if len(piece.fresh) > 8:
                piece.fresh.popleft()
        self._wake(piece)

    def _start(self, flow: int) -> None:
        for piece in self.pieces:
            if piece.flow == flow:
                self._wake(piece)

    def _timeout(self, packet: Packet) -> None:
        piece = packet.piece
        piece.on_its_way -= 1
        piece.resend.append(packet)
        if self.spray is None and packet.choice == piece.path and len(piece.paths) > 1:
            other = draw(self.seed, piece.number, piece.choices, len(piece.paths) - 1)
            piece.path = other + (other >= packet.choice)
        if piece.frozen is None:
            piece.frozen = 1
        self._wake(piece)

    def _may_send(self, piece: Piece) -> bool:
        something = bool(piece.resend) or piece.sent < piece.packets
        return something and (self.window is None or piece.on_its_way < self.window)

    def _wake(self, piece: Piece) -> None:
        if piece.in_ring or not self._may_send(piece):
            return
        at = piece.paths[0][0]
        piece.in_ring = True
        self.links[at].ring.append(piece)
        self._send_next(at)

    def _send_next(self, at: int) -> None:
        link = self.links[at]
        if link.busy is not None:
            return
        if link.queue:
            packet = link.queue.popleft()
            link.waiting -= packet.size
            self._send(at, packet)
        elif link.ring:
            piece = link.ring.popleft()
            if piece.resend:
                packet = piece.resend.pop()
            else:
                last = piece.sent + 1 == piece.packets
                size = piece.size - piece.sent * self.packet_bytes if last else self.packet_bytes
                packet = Packet(piece, piece.sent, size)
                piece.sent += 1
            packet.choice = self._choose(piece)
            packet.links, packet.hop = piece.paths[packet.choice], 0
            packet.sent_at, packet.marked = self.now, False
            piece.on_its_way += 1
            piece.in_ring = self._may_send(piece)
            if piece.in_ring:
                link.ring.append(piece)
            self._send(at, packet)

    def _choose(self, piece: Piece) -> int:
        piece.choices += 1
        n = len(piece.paths)
        if self.spray is None or n == 1:
            return piece.path
        if self.spray == "round-robin":
            return (draw(self.seed, piece.number, 0, n) + piece.choices - 1) % n
        if self.spray == "reps":
            if piece.fresh:
                return piece.fresh.popleft()
            filled = min(piece.written, 8)
            if piece.frozen is not None and filled:
                piece.frozen += 1
                return piece.cache[(piece.frozen - 1) % filled]
        return draw(self.seed, piece.number, piece.choices, n)

    def _send(self, at: int, packet: Packet) -> None:
        link = self.links[at]
        link.busy = packet
        link.sent_bytes += packet.size
        self._schedule(self.now + int(np.rint(packet.size * link.ticks_per_byte)), "depart", at)
