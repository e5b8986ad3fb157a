"""Batches of a constant number of tokens: all requests that decode, and chunks of prompts in the rest.

NanoFlow (Zhu et al., 2408.12757), section 4.2: chunked prefill, asynchronous forming of batches, admission by predicted memory.
"""

from collections import defaultdict, deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Tokens ``[start, end)`` of a request's prompt."""

    request: int
    start: int
    end: int


@dataclass(frozen=True)
class DenseBatch:
    """One iteration.

    Attributes:
        decodes: requests that decode, ``context_tokens`` behind them in all. wasted: of them, those that had ended already.
        chunks: of prompts. first: requests whose prompt ends in it, which gives their first token. ended: whose last token it
            gives. evicted: put back to wait, since the caches outgrew the memory; they prefill what they had again (one
            whose end had not been seen is let go instead).
    """

    decodes: int
    context_tokens: int
    wasted: int
    chunks: tuple[Chunk, ...]
    first: tuple[int, ...]
    ended: tuple[int, ...]
    evicted: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.decodes + sum(chunk.end - chunk.start for chunk in self.chunks)


@dataclass
class _Request:
    prompt: int  # tokens to prefill; after an eviction those that had been decoded too
    output: int  # tokens still to give
    filled: int = 0
    began: int = 0  # iteration of the first token
    life: int = 0  # evictions


class BatchFormer:
    """Forms one batch after the other of at most ``dense_batch`` tokens. O(1) a request and iteration in which something changes.

    Args:
        kv_tokens: tokens whose caches fit in memory.
        mean_output: of the answers; a request is let in if its prompt and half of that fit beside what the others are
            expected to hold.
        asynchronous: a batch is formed while the one before runs, so that the end of an answer is seen one iteration late:
            one wasted token a request.

    Raises:
        ValueError: numbers that are not positive.
    """

    def __init__(self, dense_batch: int, kv_tokens: int, mean_output: float, *, asynchronous: bool = True) -> None:
        for name, value in (("dense_batch", dense_batch), ("kv_tokens", kv_tokens), ("mean_output", mean_output)):
            if not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        self.dense_batch, self.kv_tokens, self.mean_output = dense_batch, kv_tokens, mean_output
        self.asynchronous = asynchronous
        self._waiting: deque[int] = deque()
        self._prefilling: deque[int] = deque()
        self._requests: dict[int, _Request] = {}
        self._admitted: dict[int, None] = {}  # in order
        self._expected = 0.0
        self._iteration = 0
        self._decodes, self._context = 0, 0
        self._ends: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)  # (request, life) by iteration
        self._leaves: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        self._held: int = 0

    @property
    def held_tokens(self) -> int:
        """Tokens whose caches are in memory."""
        return self._held

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._waiting and not self._admitted

    def add(self, request: int, prompt_tokens: int, output_tokens: int) -> None:
        """A request that waits from now on.

        Raises:
            ValueError: fewer than 1 token of either, a number that is in use, or more tokens than the memory holds.
        """
        if prompt_tokens < 1 or output_tokens < 1:
            raise ValueError(f"prompt_tokens={prompt_tokens}, output_tokens={output_tokens}: expected at least 1")
        if request in self._requests:
            raise ValueError(f"request {request} is here already")
        if prompt_tokens + output_tokens + 1 > self.kv_tokens:
            raise ValueError(f"request {request} needs {prompt_tokens + output_tokens + 1} of {self.kv_tokens} tokens")
        self._requests[request] = _Request(prompt_tokens, output_tokens)
        self._waiting.append(request)

    def form(self) -> DenseBatch:
        """The next batch; an empty one when nothing is here."""
        i = self._iteration
        evicted = self._evict()
        decodes, context = self._decodes, self._context
        wasted = sum(self._lives(request, life) for request, life in self._leaves[i]) if self.asynchronous else 0
        room = max(0, self.dense_batch - decodes)
        chunks, first = [], []
        free = self.kv_tokens - self._held - decodes
        while room > 0 and free > 0:
            if not self._prefilling and not self._admit():
                break
            request = self._prefilling[0]
            state = self._requests[request]
            size = min(room, free, state.prompt - state.filled)
            chunks.append(Chunk(request, state.filled, state.filled + size))
            state.filled += size
            self._held += size
            room, free = room - size, free - size
            if state.filled == state.prompt:
                self._prefilling.popleft()
                first.append(request)
        # Each decoding request has one token more behind it next time.
        self._context += decodes
        self._held += decodes
        ended = [request for request, life in self._ends.pop(i, []) if self._lives(request, life)]
        for request, life in self._leaves.pop(i, []):
            if self._lives(request, life):
                self._leave(request, i)
        for request in first:
            state = self._requests[request]
            state.began = i
            last = i + state.output - 1  # iteration of its last token
            if state.output == 1:
                ended.append(request)
            else:
                self._ends[last].append((request, state.life))
            gone = last + (1 if self.asynchronous else 0)
            if gone == i:
                self._release(request)
                self._held -= state.prompt
            else:
                self._decodes += 1
                self._context += state.prompt
                self._leaves[gone].append((request, state.life))
        self._iteration += 1
        return DenseBatch(
            decodes, context, wasted, tuple(chunks), tuple(first), tuple(ended), tuple(evicted)
        )  # fmt: skip

    def _lives(self, request: int, life: int) -> bool:
        return request in self._requests and self._requests[request].life == life and request in self._admitted

    def _admit(self) -> bool:
        if not self._waiting:
            return False
        request = self._waiting[0]
        need = self._requests[request].prompt + self.mean_output / 2
        if self._admitted and self._expected + need > self.kv_tokens:
            return False
        self._waiting.popleft()
        self._expected += need
        self._admitted[request] = None
        self._prefilling.append(request)
        return True

    def _leave(self, request: int, iteration: int) -> None:
        state = self._requests[request]
        behind = state.prompt + iteration - state.began
        self._decodes -= 1
        self._context -= behind
        self._held -= behind
        self._release(request)

    def _release(self, request: int) -> None:
        self._expected -= self._requests[request].prompt + self.mean_output / 2
        del self._admitted[request], self._requests[request]

    def _evict(self) -> list[int]:
        """The last let in go first, until the tokens of this iteration's decodes fit."""
        found = []
        while self._held + self._decodes > self.kv_tokens and len(self._admitted) > 1:
            request = next(reversed(self._admitted))
            state = self._requests[request]
            del self._admitted[request]
            self._expected -= state.prompt + self.mean_output / 2
            if state.filled == state.prompt:  # it decodes
                given = self._iteration - state.began
                behind = state.prompt + given - 1
                self._decodes -= 1
                self._context -= behind
                self._held -= behind
                if given >= state.output:  # it had ended, which would have been seen in this iteration
                    del self._requests[request]
                    found.append(request)
                    continue
                state.prompt, state.output = state.prompt + given, state.output - given
            else:
                self._prefilling.remove(request)
                self._held -= state.filled
            state.filled, state.life = 0, state.life + 1
            self._waiting.appendleft(request)
            found.append(request)
        return found
