"""What servers of either kind share: workers that are watched and started again, requests that are placed and answered."""

from __future__ import annotations

import itertools
import math
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from anabranch.language import CausalModel
from anabranch.serving._remote_workers import RemoteHandle, connect_workers
from anabranch.serving._worker_handles import Handle, start_worker
from anabranch.serving._worker_loops import Message, WorkerSpec
from anabranch.serving.streams import ServingError, TokenStream
from anabranch.serving.transports import ShmRing
from anabranch.serving.workers import check_prompt, usable_device

TRANSPORTS = ("shm", "tcp", "ray")


@dataclass(eq=False)
class _Worker:
    role: str
    index: int
    handle: Handle = field(init=False)  # needs the worker first, for its events
    ready: bool = False
    address: Any = None
    digest: str = ""  # of its model, where it has its own
    rings: list[ShmRing] = field(default_factory=list)
    pending: int = 0  # prompt tokens to read, or tokens of the caches it holds or expects
    jobs: set[int] = field(default_factory=set)  # attempts
    host: str = ""  # of a worker that another host may run


@dataclass(eq=False)
class _Job:
    stream: TokenStream
    attempt: int = -1
    prefill: _Worker | None = None
    decode: _Worker | None = None
    prompt_tokens: int = 0  # of this attempt
    prefill_end_s: float = 0.0
    arrived_s: float = 0.0


class RequestServer:
    """Starts workers, gives them requests, brings tokens back, and starts again what a dead worker left undone."""

    def __init__(
        self, model: str | Path | CausalModel, roles: dict[str, int], *, threads: int, transport: str, dtype: str,
        chunk: int | None, max_prompt_tokens: int, max_batch: int, checksums: bool, ring_bytes: int, host: str,
        restarts: int, start_timeout_s: float, workers: Sequence[str] = (), device: str | Mapping[str, str] = "cpu",
    ) -> None:  # fmt: skip
        if transport not in TRANSPORTS:
            raise ValueError(f"transport must be one of {', '.join(TRANSPORTS)}, got {transport!r}")
        for name, value in (*roles.items(), ("threads", threads), ("max_batch", max_batch)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self._devices = dict.fromkeys(roles, device) if isinstance(device, str) else dict(device)
        if set(self._devices) != set(roles):
            raise ValueError(
                f"device={dict(self._devices)}: expected one for each of {', '.join(roles)}, or one for all"
            )
        for one in self._devices.values() if transport != "ray" else ():  # an actor may run where other GPUs are
            usable_device(one)
        begin = time.monotonic()
        remote = connect_workers(list(workers), start_timeout_s) if workers else []
        if remote:
            roles = {role: sum(one.role == role for one in remote) for role in roles}
        self.lost: list[str] = []
        self._lock = threading.RLock()
        self._jobs: dict[int, _Job] = {}
        self._parked: list[_Job] = []
        self._attempts = itertools.count()
        self._restarts_left, self._ring_bytes = restarts, ring_bytes
        self._closed, self._fault = False, ""
        self._folder = tempfile.TemporaryDirectory(prefix="anabranch-model-")
        if isinstance(model, CausalModel):
            saved: Any = model.model
            saved.save_pretrained(self._folder.name)
            dtype = str(next(model.model.parameters()).dtype).removeprefix("torch.")
        path = self._folder.name if isinstance(model, CausalModel) else str(model)
        self._spec: dict[str, Any] = {
            "path": path, "dtype": dtype, "threads": threads, "transport": transport, "chunk": chunk, "host": host,
            "max_prompt_tokens": max_prompt_tokens, "max_batch": max_batch, "checksums": checksums,
        }  # fmt: skip
        self._transport, self._counts = transport, roles
        self._started = threading.Condition(self._lock)
        self._workers: list[_Worker] = []
        with self._lock:
            if remote:
                self._take_on(remote)
            else:
                for role, count in roles.items():
                    for index in range(count):
                        self._start(role, index)
        self._wait_until_ready(start_timeout_s, begin)

    def submit(self, prompt_ids: Sequence[int], max_new_tokens: int) -> TokenStream:
        """Ask for up to ``max_new_tokens`` greedy tokens after ``prompt_ids``; the stream gives them as they come.

        Raises:
            ValueError: an empty prompt, no tokens asked for. ServingError: the server is closed, or has no workers left.
        """
        check_prompt(prompt_ids, max_new_tokens)
        with self._lock:
            if self._closed or self._fault:
                raise ServingError(self._fault or "the server is closed")
            job = _Job(TokenStream([int(token) for token in prompt_ids], max_new_tokens))
            self._place(job)
        return job.stream

    def close(self) -> None:
        """Stop the workers; requests under way fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._fail_all("the server was closed")
            workers = list(self._workers)
        for worker in workers:
            worker.handle.stop()
            _free(worker)
        self._folder.cleanup()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Workers.

    def _start(self, role: str, index: int) -> _Worker:
        rings = []
        if role == "decode" and self._transport == "shm":
            rings = [ShmRing(size_bytes=self._ring_bytes) for _ in range(self._counts["prefill"])]
        names = tuple(ring.name for ring in rings)
        spec = WorkerSpec(role=role, rings=names, device=self._devices[role], **self._spec)
        worker = _Worker(role, index, rings=rings)
        self._workers.append(worker)
        worker.handle = start_worker(spec, f"{role} worker {index}", lambda event: self._event(worker, event))
        return worker

    def _take_on(self, remote: list[RemoteHandle]) -> None:
        """Workers that run elsewhere."""
        counts = dict.fromkeys(self._counts, 0)
        for handle in remote:
            worker = _Worker(handle.role, counts[handle.role], host=handle.host)
            worker.handle = handle
            counts[handle.role] += 1
            self._workers.append(worker)
        for worker, handle in zip(self._workers, remote, strict=True):
            handle.start(WorkerSpec(role=worker.role, digest=True, **self._spec), partial(self._event, worker))

    def _wait_until_ready(self, timeout_s: float, begin: float) -> None:
        with self._started:
            done = self._started.wait_for(
                lambda: self._fault or all(one.ready for one in self._workers),
                max(0.0, begin + timeout_s - time.monotonic()),
            )
            fault = self._fault or ("" if done else f"the workers were not ready after {timeout_s:.0f} s")
        if fault:
            self.close()
            raise ServingError(fault)

    def _ready(self, worker: _Worker, address: Any, digest: str) -> None:
        other = next((one for one in self._workers if one.ready and one.digest != digest), None)
        if other is not None:
            pair = (f"{one.role} worker at {getattr(one.handle, 'name', '?')}" for one in (other, worker))
            return self._fail(f"{' and '.join(pair)} have different models: expected copies of one")
        worker.ready, worker.address, worker.digest = True, address, digest
        if worker.role == "decode" and self._transport == "ray":
            worker.address = worker.handle.actor  # type: ignore[attr-defined]
        for one in self._workers:  # whom it may talk to
            source, target = (worker, one) if worker.role == "prefill" else (one, worker)
            if source.role == "prefill" and target.role == "decode" and one.ready:
                address = f"shm:{target.rings[source.index].name}" if self._transport == "shm" else target.address
                source.handle.send(("connect", target.index, address))
        self._started.notify_all()
        parked, self._parked = self._parked, []
        for job in parked:
            self._place(job)

    def _dead(self, worker: _Worker, reason: str) -> None:
        if worker not in self._workers or self._closed:
            return
        self._workers.remove(worker)
        self.lost.append(reason)
        left = [job for attempt in worker.jobs if (job := self._jobs.get(attempt)) is not None]
        for ring in worker.rings:
            ring.shut()
        _free(worker)
        last = f"{reason}; no other worker of its kind is left"
        if (not worker.ready and (self._restarts_left == 0 or worker.host)) or self._fault:
            self._fail(last)
            return
        if self._restarts_left > 0 and not worker.host:
            self._restarts_left -= 1
            self._start(worker.role, worker.index)
        elif not any(one.role == worker.role for one in self._workers):
            self._fail(last)
            return
        for job in left:
            self._restart(job)

    def _fail(self, reason: str) -> None:
        self._fault = self._fault or reason
        self._fail_all(self._fault)
        self._started.notify_all()

    # Requests.

    def _place(self, job: _Job) -> None:
        """Choose the workers by the least that waits for them, and send the prompt off; park it where none is ready."""
        chosen = {}
        for role in self._counts:
            ready = [one for one in self._workers if one.role == role and one.ready]
            if not ready:
                self._parked.append(job)
                return
            chosen[role] = min(ready, key=lambda one: one.pending)
        stream = job.stream
        prompt, more = stream.prompt_ids + stream.tokens, stream.max_new_tokens - len(stream.tokens)
        job.attempt, job.prompt_tokens = next(self._attempts), len(prompt)
        job.prefill_end_s = job.arrived_s = 0.0
        stream.record.attempts += 1
        self._jobs[job.attempt] = job
        job.prefill = chosen.get("prefill") or chosen.get("both")
        job.decode = chosen.get("decode") if more > 1 else None
        assert job.prefill is not None
        for worker in (job.prefill, job.decode):
            if worker is not None:
                worker.pending += len(prompt)
                worker.jobs.add(job.attempt)
        target = job.decode.index if job.decode is not None else None
        if job.prefill.role == "both":
            job.prefill.handle.send(("serve", job.attempt, prompt, more - 1))
        else:
            job.prefill.handle.send(("prefill", job.attempt, prompt, target, more - 1))

    def _leave(self, job: _Job, worker: _Worker | None) -> None:
        if worker is not None and job.attempt in worker.jobs:
            worker.jobs.discard(job.attempt)
            worker.pending -= job.prompt_tokens

    def _finish(self, job: _Job, error: BaseException | None = None) -> None:
        self._jobs.pop(job.attempt, None)
        self._leave(job, job.prefill)
        self._leave(job, job.decode)
        job.stream._end(error)

    def _restart(self, job: _Job) -> None:
        """From the prompt and the tokens that were given already."""
        self._jobs.pop(job.attempt, None)
        self._leave(job, job.prefill)
        self._leave(job, job.decode)
        if job.decode is not None and job.decode in self._workers:
            job.decode.handle.send(("drop", job.attempt))
        self._place(job)

    def _fail_all(self, reason: str) -> None:
        for job in [*self._jobs.values(), *self._parked]:
            self._finish(job, ServingError(reason))
        self._parked = []

    # Events, from the threads that listen to the workers.

    def _event(self, worker: _Worker, event: Message) -> None:
        with self._lock:
            kind, *rest = event
            if kind == "ready":
                self._ready(worker, *rest)
            elif kind == "broken":
                self._fail(f"{worker.role} worker {worker.index} could not start: {rest[0]}")
            elif kind == "dead":
                self._dead(worker, rest[0])
            elif kind == "tokens":
                for attempt, token, last in rest[0]:
                    if attempt in self._jobs:
                        self._token(self._jobs[attempt], token, last)
            elif rest[0] in self._jobs:  # not of an attempt that was given up
                job = self._jobs[rest[0]]
                if kind == "first":
                    self._first(job, *rest[1:])
                elif kind == "arrived":
                    job.arrived_s, job.stream.record.kv_bytes, job.stream.record.received_sha256 = rest[1:]
                    self._exposed(job)
                    if job.prefill_end_s:
                        self._leave(job, job.prefill)
                elif kind == "lost":
                    self._lost(job)
                else:
                    self._finish(job, ServingError(f"{worker.role} worker {worker.index}: {rest[1]}"))

    def _first(self, job: _Job, token: int, last: bool, seconds: float, sending: float, ended: float, sha: str) -> None:
        record = job.stream.record
        record.prefill_s, record.sending_s, record.sent_sha256 = seconds, sending, sha
        job.prefill_end_s = ended
        self._exposed(job)
        # Until its cache has arrived a request is still the prefill worker's: were that to die, the rest would never come.
        if job.prefill is not None and job.prefill.role == "prefill" and (job.decode is None or job.arrived_s):
            self._leave(job, job.prefill)
        if job.decode is not None:
            more = job.stream.max_new_tokens - len(job.stream.tokens) - 1
            job.decode.handle.send(("drop", job.attempt) if last else ("decode", job.attempt, token, more))
        self._token(job, token, last)

    def _exposed(self, job: _Job) -> None:
        """The end of the prefill and the arrival of the cache are told by two workers, in either order."""
        hosts = {one.host for one in (job.prefill, job.decode) if one is not None}
        if job.prefill_end_s and job.arrived_s:  # clocks of two hosts cannot be compared
            exposed = max(0.0, job.arrived_s - job.prefill_end_s) if len(hosts) == 1 else math.nan
            job.stream.record.exposed_s = exposed

    def _token(self, job: _Job, token: int, last: bool) -> None:
        job.stream._put(token)
        if last:
            self._finish(job)

    def _lost(self, job: _Job) -> None:
        """A prefill worker could not reach the decode worker: if that is dead, its death restarts the request."""
        if job.decode is not None and job.decode in self._workers:
            self._restart(job)


def _free(worker: _Worker) -> None:
    for ring in worker.rings:
        ring.close()
        ring.unlink()
    worker.rings = []
