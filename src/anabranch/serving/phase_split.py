"""Real servers: separate prefill and decode workers that hand caches over, and workers that do both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anabranch.language import CausalModel
from anabranch.serving._request_server import RequestServer


class PhaseSplitServer(RequestServer):
    """Prefill and decode in separate workers, with a real hand-over of the key-value cache, layer by layer.

    A prefill worker sends each layer's keys and values as soon as they are final; a decode worker puts the cache together and
    adds the sequence to its batch. Greedy tokens are those of ``generate``. When a worker dies, another is started (``restarts``
    times in all), and its requests begin again from the prompt and the tokens that were given.

    Args:
        model: a folder, a ``.gguf`` file or a cached name, or a loaded model (which is saved to a temporary folder).
        n_prefill, n_decode: workers of each role. threads: of each worker.
        device: of each worker's model, "cpu", "cuda" or "cuda:1"; or by role, ``{"prefill": "cuda:0", "decode": "cuda:1"}``.
        transport: "shm" (rings in shared memory), "tcp" (addressed by URL, listening on ``host``) or "ray" (actors; joins the
            cluster that is there, or starts one).
        dtype: of the weights, when they are loaded from a path.
        chunk: prompt tokens read at once; None reads whole prompts.
        max_batch: sequences that a decode worker advances together.
        checksums: have both sides compute the SHA-256 of every cache, for the record.
        workers: addresses ``tcp://HOST:PORT/KEY`` of workers that run already on any host (``anabranch serving worker``), instead
            of processes of this one: roles, threads and devices are their own (an argument that says otherwise is refused),
            caches go over "tcp", they are not restarted. Their models must be equal, by a SHA-256 of the configuration and
            the weights.
        ring_bytes: of each ring; at least the largest layer of the longest prompt.

    Attributes:
        lost: why each worker that is gone is gone.

    Raises:
        ValueError: an argument out of range. ServingError: workers that could not start, or do not answer.
    """

    def __init__(
        self, model: str | Path | CausalModel, n_prefill: int = 1, n_decode: int = 1, *, threads: int = 1,
        transport: str = "shm", dtype: str = "float32", chunk: int | None = None, max_batch: int = 64,
        checksums: bool = False, ring_bytes: int = 2**26, host: str = "127.0.0.1", restarts: int = 1,
        start_timeout_s: float = 300.0, workers: Sequence[str] = (), device: str | Mapping[str, str] = "cpu",
    ) -> None:  # fmt: skip
        if workers:
            given: dict[str, tuple[Any, Any]] = {
                "n_prefill": (n_prefill, 1), "n_decode": (n_decode, 1), "threads": (threads, 1), "device": (device, "cpu"),
            }  # fmt: skip
            own = [name for name, (value, default) in given.items() if value != default]
            own += ["transport"] if transport not in ("shm", "tcp") else []
            if own:
                raise ValueError(f"{', '.join(own)}: workers that run already have their own, and take caches over tcp")
        super().__init__(
            model, {"prefill": n_prefill, "decode": n_decode}, threads=threads,
            transport="tcp" if workers else transport, dtype=dtype, chunk=chunk,
            max_prompt_tokens=1, max_batch=max_batch, checksums=checksums, ring_bytes=ring_bytes, host=host,
            restarts=restarts, start_timeout_s=start_timeout_s, workers=workers, device=device,
        )  # fmt: skip


class ColocatedServer(RequestServer):
    """Workers that do both phases with continuous, mixed batching: the baseline, with the same interface.

    An iteration reads the waiting prompts, up to ``max_prompt_tokens`` of them, and gives every sequence a token. With
    ``chunk``, it reads at most so many tokens of a prompt (chunked prefill, as in Sarathi), so that no gap is longer.

    Args:
        See :class:`PhaseSplitServer`. n_workers: each with a copy of the model.
    """

    def __init__(
        self, model: str | Path | CausalModel, n_workers: int = 1, *, threads: int = 2, dtype: str = "float32",
        chunk: int | None = None, max_prompt_tokens: int = 2048, max_batch: int = 64, restarts: int = 1,
        on_ray: bool = False, start_timeout_s: float = 300.0, device: str = "cpu",
    ) -> None:  # fmt: skip
        super().__init__(
            model, {"both": n_workers}, threads=threads, transport="ray" if on_ray else "shm", dtype=dtype, chunk=chunk,
            max_prompt_tokens=max_prompt_tokens, max_batch=max_batch, checksums=False, ring_bytes=2**12, host="127.0.0.1",
            restarts=restarts, start_timeout_s=start_timeout_s, device=device,
        )  # fmt: skip
