"""What a client of a server holds: the tokens of one request as they come, and when they came."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass


class ServingError(RuntimeError):
    """A request that cannot be finished, or a server that cannot go on; says which worker failed and how."""


@dataclass
class RequestRecord:
    """What the workers said of a request (of its last attempt, where it was restarted).

    Attributes:
        prefill_s: of the whole prompt, of which ``sending_s`` were spent giving layers away.
        exposed_s: from the end of the prefill to the whole cache at the decode worker, by this machine's clock; NaN between
            hosts, whose clocks cannot be compared.
        kv_bytes: of the cache. sent_sha256, received_sha256: of its bytes, if the server was asked for checksums.
        attempts: 1 unless a worker died.
    """

    prefill_s: float = 0.0
    sending_s: float = 0.0
    exposed_s: float = 0.0
    kv_bytes: int = 0
    sent_sha256: str = ""
    received_sha256: str = ""
    attempts: int = 0

    @property
    def transfer_share(self) -> float:
        """Transfer that is not hidden, over the prefill without it; NaN between hosts."""
        return (self.sending_s + self.exposed_s) / (self.prefill_s - self.sending_s)


class TokenStream:
    """Iterate over the tokens of a request while they are made.

    Attributes:
        prompt_ids, max_new_tokens: what was asked. submitted_s, times_s: when it was asked and when each token came, by
            ``time.monotonic``. tokens: so far. record: what the workers said.
    """

    def __init__(self, prompt_ids: list[int], max_new_tokens: int) -> None:
        self.prompt_ids, self.max_new_tokens = prompt_ids, max_new_tokens
        self.submitted_s = time.monotonic()
        self.tokens: list[int] = []
        self.times_s: list[float] = []
        self.record = RequestRecord()
        self._queue: queue.Queue[int | BaseException | None] = queue.Queue()
        self.done = False

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return self._next(None)

    def _next(self, timeout_s: float | None) -> int:
        found = self._queue.get(timeout=timeout_s)
        if isinstance(found, int):
            return found
        self._queue.put(found)  # for whoever asks again
        if found is None:
            raise StopIteration
        raise found

    def result(self, timeout_s: float | None = None) -> list[int]:
        """All tokens, when the answer is complete.

        Raises:
            ServingError: it cannot be completed. TimeoutError: not within ``timeout_s``.
        """
        stop = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                self._next(None if stop is None else max(0.0, stop - time.monotonic()))
            except StopIteration:
                return list(self.tokens)
            except queue.Empty:
                raise TimeoutError(
                    f"{len(self.tokens)} of up to {self.max_new_tokens} tokens after {timeout_s} s"
                ) from None

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.times_s[0] - self.submitted_s

    @property
    def gaps_s(self) -> list[float]:
        """Between tokens; the first of them holds the transfer of the cache."""
        return [b - a for a, b in zip(self.times_s, self.times_s[1:], strict=False)]

    def _put(self, token: int) -> None:
        self.times_s.append(time.monotonic())
        self.tokens.append(token)
        self._queue.put(token)

    def _end(self, error: BaseException | None = None) -> None:
        self.done = True
        self._queue.put(error)
