"""The serving cluster of ``anabranch.serving`` as a SimPy model: the same rules, a process for each machine and transfer.

It is what ``serving_simulator.py`` times beside ours, and what a test holds every request's times to. Written plainly, and
not to be slow: a machine sleeps through equal iterations in one step and is interrupted when somebody may join, as ours does.
It has less to do than ours: no energy, no peaks of memory, no chunks, no failures, transfers serialized on links of their own,
decoding times by requests.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from anabranch.serving import Cluster, Curve, RequestTable


class Table:
    """Straight lines through knots, the outer ones prolonged."""

    def __init__(self, curve: Curve) -> None:
        self.x, self.y = curve.x.tolist(), curve.y.tolist()

    def __call__(self, at: float) -> float:
        if len(self.x) == 1:
            return self.y[0]
        i = min(max(bisect_left(self.x, at) - 1, 0), len(self.x) - 2)
        slope = (self.y[i + 1] - self.y[i]) / (self.x[i + 1] - self.x[i])
        return slope * (at - self.x[i]) + self.y[i]


@dataclass(eq=False, slots=True)
class Item:
    """A phase of a request: a prompt, or its decoding."""

    request: Request
    is_prompt: bool
    tokens: int
    memory: int
    preemptions: int = 0
    ran: bool = False


@dataclass(eq=False, slots=True)
class Request:
    arrival: float
    prompt_tokens: int
    output_tokens: int
    prompt: Item = field(init=False)
    decode: Item = field(init=False)
    remaining: int = 0
    prompt_done: bool = False
    source: Machine = field(init=False)
    target: Machine = field(init=False)
    started: float = np.nan
    first: float = np.nan
    decoded: float = np.nan
    ended: float = np.nan


def order(item: Item) -> tuple[int, float]:
    return item.preemptions, item.request.arrival


def arrival(request: Request) -> float:
    return request.arrival


class Machine:
    def __init__(self, service: Service, kind: Any, role: str) -> None:
        self.service, self.env, self.home, self.pool = service, service.env, role, role
        model = service.cluster.performance[kind.name]
        self.prompt_seconds, self.token_seconds = Table(model.prompt), Table(model.decode)
        self.mixed_factor, self.link = model.mixed_factor, kind.nic_bytes_per_s
        self.capacity = kind.memory_bytes
        self.used = self.scheduled = service.cluster.weight_bytes
        self.pending = 0
        self.queue: list[Item] = []
        self.waiting: list[Item] = []  # prompts
        self.blocked: list[Item] = []  # decodes that were preempted
        self.present: list[Request] = []
        self.batch: list[Item] = []
        self.batch_tokens = self.prompts = self.decodes = self.count = 0
        self.since = self.seconds = self.ends = 0.0
        self.cut = False
        self.woken = self.env.event()
        self.process = self.env.process(self.run())

    def run(self) -> Iterator[simpy.Event]:
        while True:
            if not self.batch:
                self.woken = self.env.event()
                yield self.woken
                self.build()
                continue
            while self.env.now < self.ends:
                with suppress(simpy.Interrupt):  # it ends sooner
                    yield self.env.timeout(self.ends - self.env.now)
            self.end_block()

    def arrive(self, item: Item) -> None:
        insort(self.queue, item, key=order)
        if item.is_prompt:
            self.waiting.append(item)
        if item.request not in self.present:
            insort(self.present, item.request, key=arrival)
        if not self.batch:
            if self.used + item.memory <= self.capacity:
                self.wake()
            return
        limits = self.service.cluster.batching
        joins = len(self.batch) < limits.max_requests and self.batch_tokens + item.tokens <= limits.max_tokens
        if not joins and item.is_prompt and self.decodes:
            joins = self.batch_tokens - self.decodes + item.tokens <= limits.max_tokens
        if joins:
            self.cut_block()

    def wake(self) -> None:
        if not self.woken.triggered:
            self.woken.succeed()

    def cut_block(self) -> None:
        """End the block with the iteration that runs."""
        if self.cut or self.prompts:
            return
        self.cut = True
        begun = int((self.env.now - self.since) / self.seconds) + 1
        if begun < self.count:
            self.count, self.ends = begun, self.since + begun * self.seconds
            self.process.interrupt()

    def build(self) -> None:
        """The next batch: the starved, prompts, the preempted, those that ran, and who else is here."""
        limits = self.service.cluster.batching
        chosen: dict[Item, None] = {}
        tokens, free = 0, self.capacity - self.used

        def full(more: int) -> bool:
            return bool(chosen) and (len(chosen) >= limits.max_requests or tokens + more > limits.max_tokens)

        for item in self.queue:
            if item.preemptions < limits.max_preemptions or full(item.tokens):
                break
            if not item.ran:
                if item.memory > free:
                    continue
                free -= item.memory
            chosen[item] = None
            tokens += item.tokens
        for item in self.waiting:
            if item not in chosen:
                if full(item.tokens) or item.memory > free:
                    break
                free -= item.memory
                chosen[item] = None
                tokens += item.tokens
        for items in (self.blocked, self.batch):
            for item in items:
                if item not in chosen:
                    if full(1):
                        break
                    chosen[item] = None
                    tokens += 1
        for request in self.present:
            item = request.decode if request.prompt_done else request.prompt
            if item not in chosen:
                if full(item.tokens):
                    break
                if not item.ran:
                    if item.memory > free:
                        break
                    free -= item.memory
                chosen[item] = None
                tokens += item.tokens
        running = set(self.batch)
        preempted = [item for item in self.batch if item not in chosen]
        for item in preempted:
            insort(self.queue, item, key=order)
        self.blocked += preempted
        came = [item for item in chosen if item not in running]
        for item in came:
            if not item.ran:
                item.ran = True
                self.used += item.memory
                if item.is_prompt:
                    item.request.started = self.env.now
                else:
                    item.request.decoded = self.env.now
        if came:
            self.queue = [item for item in self.queue if item not in chosen]
            self.waiting = [item for item in self.waiting if item not in chosen]
            self.blocked = [item for item in self.blocked if item not in chosen]
        self.batch = [item for item in self.batch if item in chosen] + came
        for request in self.present:
            item = request.decode if request.prompt_done else request.prompt
            if item not in chosen:
                item.preemptions += 1
        self.batch_tokens = tokens
        if self.batch:
            self.begin_block()

    def begin_block(self) -> None:
        prompts = [item.tokens for item in self.batch if item.is_prompt]
        self.prompts, self.decodes = len(prompts), len(self.batch) - len(prompts)
        if prompts:
            self.count, self.seconds = 1, self.prompt_seconds(sum(prompts) + self.decodes)
            if self.decodes:
                self.seconds *= self.mixed_factor
        else:
            self.count = min(item.request.remaining for item in self.batch)
            self.seconds = self.token_seconds(self.decodes)
        self.since, self.cut = self.env.now, False
        self.ends = self.since + self.count * self.seconds

    def end_block(self) -> None:
        now, service, kept, sent = self.env.now, self.service, [], []
        for item in self.batch:
            request = item.request
            if not item.is_prompt:
                request.remaining -= self.count
                if request.remaining > 0:
                    kept.append(item)
                    continue
                request.ended = now
                self.release(request.prompt_tokens + request.output_tokens)
                self.pending -= 1
                self.present.remove(request)
                continue
            request.prompt_done, request.first = True, now
            self.pending -= request.prompt_tokens
            if request.output_tokens == 1:
                request.ended = now
                self.release(request.prompt_tokens + 1)
                request.target.pending -= 1
                if request.target is not self:
                    request.target.scheduled -= (request.prompt_tokens + 1) * service.kv
                self.present.remove(request)
            elif request.target is not self:
                self.present.remove(request)
                sent.append(request)
        self.batch = kept
        self.build()
        for request in sent:
            self.env.process(self.send(request))
        idle = not (self.batch or self.queue or self.present)
        if self.pool == "mixed" and self.home != "mixed" and idle:
            service.move(self, self.home)

    def release(self, tokens: int) -> None:
        self.used -= tokens * self.service.kv
        self.scheduled -= tokens * self.service.kv

    def send(self, request: Request) -> Iterator[simpy.Event]:
        """The cache of a prompt to where it is decoded, as soon as there is room."""
        cluster, target, room = self.service.cluster, request.target, (request.prompt_tokens + 1) * self.service.kv
        while target.used + room > target.capacity:
            yield self.env.timeout(cluster.transfers.retry_s)
        target.used += room
        rate = cluster.transfers.bytes_per_s or min(self.link, target.link)
        yield self.env.timeout(request.prompt_tokens * self.service.kv / rate)
        self.release(request.prompt_tokens + 1)
        target.arrive(request.decode)
        if self.queue:
            limits = cluster.batching
            if not self.batch:
                if self.used + self.queue[0].memory <= self.capacity:
                    self.wake()
            elif len(self.batch) < limits.max_requests and self.batch_tokens < limits.max_tokens:
                self.cut_block()


class Service:
    """Where requests come in and are placed."""

    def __init__(self, env: simpy.Environment, cluster: Cluster) -> None:
        self.env, self.cluster, self.kv = env, cluster, cluster.kv_bytes_per_token
        self.pools: dict[str, list[Machine]] = {"prompt": [], "mixed": [], "token": []}
        for pool in cluster.pools:
            self.pools[pool.role] += [Machine(self, pool.machine, pool.role) for _ in range(pool.count)]

    def serve(self, requests: Sequence[Request]) -> Iterator[simpy.Event]:
        for request in requests:
            yield self.env.timeout(request.arrival - self.env.now)
            self.place(request)
            request.source.arrive(request.prompt)
            if request.target is request.source and request.output_tokens > 1:
                request.source.arrive(request.decode)

    def place(self, request: Request) -> None:
        if self.cluster.scheduler == "join_shortest_queue":
            source = target = least(self.pools["mixed"], "pending")
        else:
            source, target = self.prompt_machine(request), self.token_machine(request)
            if source is None and self.pools["token"]:
                source = least(self.pools["token"], "pending")
                self.move(source, "mixed")
            if target is None and self.pools["prompt"]:
                target = least(self.pools["prompt"], "scheduled")
                self.move(target, "mixed")
            if source is None or target is None:
                source = target = least([one for pool in self.pools.values() for one in pool], "pending")
        request.source, request.target = source, target
        source.pending += request.prompt_tokens
        target.pending += 1
        if source is not target:
            source.scheduled += request.prompt.memory
        target.scheduled += request.prompt.memory + request.decode.memory

    def prompt_machine(self, request: Request) -> Machine | None:
        for pool in (self.pools["prompt"], self.pools["mixed"]):
            if pool:
                one = least(pool, "pending")
                if not (one.queue and one.pending + request.prompt_tokens > self.cluster.pending_limit):
                    return one
        return None

    def token_machine(self, request: Request) -> Machine | None:
        for pool in (self.pools["token"], self.pools["mixed"]):
            if pool:
                one = least(pool, "scheduled")
                if one.scheduled + request.prompt.memory + request.decode.memory < one.capacity:
                    return one
        return None

    def move(self, machine: Machine, to: str) -> None:
        self.pools[machine.pool].remove(machine)
        self.pools[to].append(machine)
        machine.pool = to


def least(machines: Sequence[Machine], what: str) -> Machine:
    return min(machines, key=lambda one: getattr(one, what))


def simulate(cluster: Cluster, requests: RequestTable, *, until_s: float | None = None) -> dict[str, np.ndarray]:
    """Times of every request, seconds since it came: its prompt starts (``queue_s``), first and last token; NaN if never.

    Args:
        until_s: when to stop. Without, a cluster whose caches leave no room for any transfer tries again for ever.
    """
    kinds = {model.by for model in cluster.performance.values()}
    if kinds != {"requests"} or cluster.batching.chunk_tokens is not None:
        raise ValueError("modelled are decoding times by requests and whole prompts only")
    apart = cluster.scheduler == "mixed_pool"
    if apart and (cluster.transfers.overlap != "serialized" or cluster.transfers.shared_links):
        raise ValueError("modelled are serialized transfers on links of their own only")
    kv, served = cluster.kv_bytes_per_token, []
    for came, prompt, output in zip(
        requests.arrival_s.tolist(), requests.prompt_tokens.tolist(), requests.output_tokens.tolist(), strict=True
    ):
        request = Request(came, prompt, output, remaining=output - 1)
        request.prompt = Item(request, True, prompt, (prompt + 1) * kv)
        request.decode = Item(request, False, 1, (output - 1) * kv)
        served.append(request)
    env = simpy.Environment()
    env.process(Service(env, cluster).serve(served))
    env.run(until=until_s)
    came = np.array([one.arrival for one in served])
    return {
        name: np.array([getattr(one, when) for one in served]) - came
        for name, when in (("queue_s", "started"), ("ttft_s", "first"), ("e2e_s", "ended"))
    }
