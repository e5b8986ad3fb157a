"""What a worker does all day: messages in, events out. The same loops run in processes and in Ray's actors."""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from anabranch.language import CausalModel, load_causal
from anabranch.serving.kv_buffers import KvBuffers
from anabranch.serving.transports import (
    KvSender,
    ShmReceiver,
    ShmRing,
    ShmSender,
    TcpReceiver,
    TcpSender,
    TransportClosed,
)
from anabranch.serving.workers import DecodeWorker, PrefillWorker, model_digest, stop_tokens, usable_device

Message = tuple[Any, ...]
STOP: Message = ("stop",)


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is told when it starts; can be pickled."""

    role: str  # "prefill", "decode" or "both"
    path: str
    dtype: str
    threads: int
    transport: str
    chunk: int | None
    max_prompt_tokens: int
    max_batch: int
    checksums: bool
    host: str = "127.0.0.1"
    rings: tuple[str, ...] = field(default=())  # of a decode worker: one a prefill worker
    device: str = "cpu"  # that the model is on
    digest: bool = False  # tell which model it is, where each worker has its own


@runtime_checkable
class Channel(Protocol):
    """The worker's end: messages from the server, events to it. ``recv`` raises ``EOFError`` when the server is gone."""

    def recv(self) -> Message: ...

    def send(self, event: Message) -> None: ...


def work(spec: WorkerSpec, channel: Channel, inbox: queue.Queue[Message], receiver: Any = None) -> None:
    """Load the model, say so, and serve until told to stop."""
    threading.Thread(target=_read, args=(channel, inbox), daemon=True).start()
    try:
        torch.set_num_threads(spec.threads)
        loaded = load_causal(spec.path, dtype=getattr(torch, spec.dtype), device=usable_device(spec.device))
        PrefillWorker(loaded)  # refuses models whose layers it cannot find
        digest = model_digest(loaded) if spec.digest else ""
    except Exception as error:
        channel.send(("broken", f"{type(error).__name__}: {error}"))
        return
    gc.freeze()  # what was loaded stays: a collection that looked at it would hold up tokens for a fifth of a second
    try:
        if spec.role == "prefill":
            _prefill(spec, loaded, channel, inbox, digest)
        elif spec.role == "decode":
            _decode(spec, loaded, channel, inbox, receiver, digest)
        else:
            _both(spec, loaded, channel, inbox)
    except (ConnectionError, EOFError):  # the server is gone
        return


def _read(channel: Channel, inbox: queue.Queue[Message]) -> None:
    message: Message = ()
    while message != STOP:
        try:
            message = channel.recv()
        except (EOFError, OSError):
            message = STOP
        inbox.put(message)


def _prefill(spec: WorkerSpec, loaded: CausalModel, channel: Channel, inbox: queue.Queue[Message], digest: str) -> None:
    worker, stops = PrefillWorker(loaded, chunk=spec.chunk), stop_tokens(loaded)
    senders: dict[int, KvSender] = {}
    try:
        channel.send(("ready", None, digest))
        _prefill_until_stop(spec, worker, stops, senders, channel, inbox)
    finally:  # also when the server is lost
        for one in senders.values():
            one.close()


def _prefill_until_stop(
    spec: WorkerSpec, worker: PrefillWorker, stops: frozenset[int], senders: dict[int, KvSender], channel: Channel,
    inbox: queue.Queue[Message],
) -> None:  # fmt: skip
    while True:
        kind, *rest = inbox.get()
        if kind == "stop":
            return
        if kind == "connect":
            target, address = rest
            if target in senders:
                senders.pop(target).close()
            try:
                senders[target] = _sender(address)
            except OSError:  # gone already: the server hears of it from the other side
                continue
            continue
        attempt, prompt, target, more = rest
        try:
            sender = senders.get(target)
            if more and sender is None:
                raise TransportClosed("there is no connection to the decode worker")
            # An answer of one token needs no cache elsewhere.
            on_layer = _giver(sender, attempt) if more and sender is not None else None
            done = worker.prefill(prompt, on_layer)
            ended = time.monotonic()
            sha256 = done.buffers().sha256() if spec.checksums else ""
            last = not more or done.first_token in stops
            channel.send(("first", attempt, done.first_token, last, done.seconds, done.sending_s, ended, sha256))
        except TransportClosed as error:
            channel.send(("lost", attempt, str(error)))
        except (ValueError, RuntimeError) as error:
            channel.send(("failed", attempt, f"{type(error).__name__}: {error}"))


def _giver(sender: KvSender, attempt: int) -> Callable[[int, int, Any], None]:
    return lambda layer, layers, buffer: sender.send(attempt, layer, layers, buffer)


def _sender(address: Any) -> KvSender:
    if not isinstance(address, str):
        from anabranch.serving._ray_workers import RaySender

        return RaySender(address)
    if address.startswith("shm:"):
        return ShmSender(ShmRing(address.removeprefix("shm:")))
    return TcpSender(address)


def _decode(
    spec: WorkerSpec, loaded: CausalModel, channel: Channel, inbox: queue.Queue[Message], receiver: Any, digest: str
) -> None:
    worker = DecodeWorker(loaded)
    address = None

    def deliver(attempt: int, buffers: KvBuffers) -> None:
        inbox.put(("cache", attempt, buffers, time.monotonic()))

    if spec.transport == "shm":
        receiver = ShmReceiver([ShmRing(name) for name in spec.rings], deliver)
    elif spec.transport == "tcp":
        receiver = TcpReceiver(deliver, spec.host)
        address = receiver.address
    else:
        receiver.deliver = deliver
    try:
        channel.send(("ready", address, digest))
        _decode_until_stop(spec, worker, channel, inbox, receiver)
    finally:
        receiver.close()


def _decode_until_stop(
    spec: WorkerSpec, worker: DecodeWorker, channel: Channel, inbox: queue.Queue[Message], receiver: Any
) -> None:
    wanted: dict[int, tuple[int, int]] = {}
    caches: dict[int, KvBuffers] = {}
    dropped: set[int] = set()
    joining: deque[int] = deque()
    while True:
        block = len(worker) == 0 and not joining
        for kind, *rest in _drain(inbox, block):
            if kind == "stop":
                return
            attempt = rest[0]
            if kind == "drop":
                dropped.add(attempt)
                receiver.assembler.drop([attempt])
                worker.remove([attempt])
                wanted.pop(attempt, None)
                caches.pop(attempt, None)
                continue
            if attempt in dropped:
                continue
            if kind == "decode":
                wanted[attempt] = (rest[1], rest[2])
            else:
                caches[attempt] = rest[1]
                sha256 = rest[1].sha256() if spec.checksums else ""
                channel.send(("arrived", attempt, rest[2], rest[1].n_bytes, sha256))
            if attempt in wanted and attempt in caches:
                joining.append(attempt)
        while joining and len(worker) < spec.max_batch:
            attempt = joining.popleft()
            if attempt in wanted:  # not dropped meanwhile
                first, more = wanted.pop(attempt)
                worker.add(attempt, caches.pop(attempt), first, more)
        _step(worker, channel)


def _step(worker: DecodeWorker, channel: Channel) -> None:
    if len(worker):
        channel.send(("tokens", [(one.request, one.token, one.last) for one in worker.step()]))


def _both(spec: WorkerSpec, loaded: CausalModel, channel: Channel, inbox: queue.Queue[Message]) -> None:
    """Mixed batching: an iteration reads waiting prompts (or one chunk of them), then gives every sequence a token."""
    prefill, decode, stops = PrefillWorker(loaded, chunk=spec.chunk), DecodeWorker(loaded), stop_tokens(loaded)
    waiting: deque[tuple[int, list[int], int]] = deque()
    cache: Any = None
    read, spent = 0, 0.0  # pieces of the first waiting prompt, and the time they took
    channel.send(("ready", None, ""))
    while True:
        for kind, *rest in _drain(inbox, len(decode) == 0 and not waiting):
            if kind == "stop":
                return
            waiting.append((rest[0], rest[1], rest[2]))
        tokens = 0
        while waiting and len(decode) < spec.max_batch:
            attempt, prompt, more = waiting[0]
            try:
                pieces = prefill.pieces(prompt)
                if tokens and tokens + len(pieces[read]) > spec.max_prompt_tokens:
                    break
                begin = time.perf_counter()
                first, cache = prefill.read(pieces[read], cache)
                read, spent, tokens = read + 1, spent + time.perf_counter() - begin, tokens + len(pieces[read])
            except (ValueError, RuntimeError, IndexError) as error:
                waiting.popleft()
                cache, read, spent = None, 0, 0.0
                channel.send(("failed", attempt, f"{type(error).__name__}: {error}"))
                continue
            if read == len(pieces):
                waiting.popleft()
                last = more == 0 or first in stops
                channel.send(("first", attempt, first, last, spent, 0.0, time.monotonic(), ""))
                if not last:
                    decode.add(attempt, cache, first, more)
                cache, read, spent = None, 0, 0.0
            if spec.chunk is not None and tokens >= spec.chunk:
                break
        _step(decode, channel)


def _drain(inbox: queue.Queue[Message], block: bool) -> list[Message]:
    """All messages that are there; at least one if ``block``."""
    found = []
    if block:
        found.append(inbox.get())
    while True:
        try:
            found.append(inbox.get_nowait())
        except queue.Empty:
            return found
