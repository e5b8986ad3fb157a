"""Prefill and decode workers against `generate`, caches as buffers, transports byte for byte."""

from __future__ import annotations

import queue
import socket
import time
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")
from anabranch.language import CausalModel, tiny_causal
from anabranch.serving.kv_buffers import Assembler, KvBuffers, kv_from_buffers, kv_to_buffers
from anabranch.serving.transports import (
    ShmReceiver,
    ShmRing,
    ShmSender,
    TcpReceiver,
    TcpSender,
    TransportClosed,
    parse_tcp,
)
from anabranch.serving.workers import DecodeWorker, PrefillWorker, usable_device


@pytest.fixture(scope="module")
def tiny() -> CausalModel:
    return tiny_causal(generator=torch.Generator().manual_seed(0), layers=3)


def prompts(n: int = 20, vocab: int = 128, longest: int = 60) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest, (n,), generator=generator).tolist()
    return [torch.randint(2, vocab, (length,), generator=generator).tolist() for length in lengths]


def generated(loaded: CausalModel, prompt: list[int], new: int) -> list[int]:
    ids = torch.tensor([prompt])
    return loaded.model.generate(ids, max_new_tokens=new, do_sample=False)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("chunk", [None, 7])
def test_continuous_batching_is_generate_token_for_token(tiny: CausalModel, chunk: int | None) -> None:
    """Sequences of many lengths join and leave between steps."""
    prefill, decode = PrefillWorker(tiny, chunk=chunk), DecodeWorker(tiny)
    waiting = list(enumerate(prompts()))
    answers: dict[int, list[int]] = {}
    most = 0
    while waiting or len(decode):
        for _ in range(2 if waiting else 0):
            i, prompt = waiting.pop(0)
            done = prefill.prefill(prompt)
            answers[i] = [done.first_token]
            decode.add(i, done.buffers(), done.first_token, 5 + i % 9)
        most = max(most, len(decode))
        for one in decode.step():
            answers[one.request].append(one.token)
    assert most > 5
    for i, prompt in enumerate(prompts()):
        assert answers[i] == generated(tiny, prompt, 6 + i % 9), i


def test_stops_where_generate_stops(tiny: CausalModel) -> None:
    prompt = prompts()[3]
    stop = generated(tiny, prompt, 8)[4]
    before = tiny.model.generation_config.eos_token_id
    tiny.model.generation_config.eos_token_id = stop
    try:
        decode, done = DecodeWorker(tiny), PrefillWorker(tiny).prefill(prompt)
        decode.add(0, done.cache, done.first_token, 50)
        got = [done.first_token]
        while len(decode):
            got += [one.token for one in decode.step()]
        assert got == generated(tiny, prompt, 51)
        assert got[-1] == stop
    finally:
        tiny.model.generation_config.eos_token_id = before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_buffers_are_the_cache_and_keep_its_dtype(dtype: torch.dtype) -> None:
    loaded = tiny_causal(generator=torch.Generator().manual_seed(0))
    loaded = CausalModel(loaded.model.to(dtype), None)
    cache = PrefillWorker(loaded).prefill([5, 6, 7, 8]).cache
    buffers = kv_to_buffers(cache)
    back = kv_from_buffers(buffers)
    assert buffers.tokens == 4
    assert buffers.n_bytes == 2 * 2 * 2 * 16 * 4 * dtype.itemsize  # keys and values, layers, heads, head size, tokens
    for one, two in zip(cache.layers, back.layers, strict=True):
        assert two.keys.dtype == dtype
        assert torch.equal(one.keys, two.keys)
        assert torch.equal(one.values, two.values)
    assert kv_to_buffers(back).sha256() == buffers.sha256()


def test_layers_are_given_away_while_later_ones_are_computed(tiny: CausalModel) -> None:
    running: list[int] = []
    handle = [
        layer.register_forward_pre_hook(lambda *_, i=i: running.append(i))
        for i, layer in enumerate(tiny.model.model.layers)
    ]
    seen: list[tuple[int, int]] = []
    worker, assembler = PrefillWorker(tiny, chunk=4), Assembler()
    whole: list[KvBuffers] = []

    def on_layer(layer: int, layers: int, buffer: Any) -> None:
        seen.append((layer, running[-1]))
        found = assembler.add(1, layer, layers, buffer)
        if found is not None:
            whole.append(found)

    done = worker.prefill(prompts()[0], on_layer)
    for one in handle:
        one.remove()
    assert seen == [(0, 0), (1, 1), (2, 2)]
    assert whole[0].sha256() == done.buffers().sha256()
    assert 0 < done.sending_s < done.seconds


def caches(loaded: CausalModel) -> dict[int, KvBuffers]:
    return {i: PrefillWorker(loaded).prefill(prompt).buffers() for i, prompt in enumerate(prompts(12))}


def send_all(sender: Any, found: dict[int, KvBuffers]) -> None:
    for layer in range(3):  # layers of all requests in turn
        for request, buffers in found.items():
            sender.send(request, layer, 3, buffers.layers[layer])


def received(arrived: queue.Queue[tuple[int, KvBuffers]], n: int) -> dict[int, str]:
    return {request: buffers.sha256() for request, buffers in (arrived.get(timeout=20) for _ in range(n))}


def test_a_small_ring_carries_every_byte(tiny: CausalModel) -> None:
    """Records wrap around the end many times, and the writer waits for room."""
    found, arrived = caches(tiny), queue.Queue()
    largest = max(buffers.layers[0].n_bytes for buffers in found.values())
    ring = ShmRing(size_bytes=largest + 100)
    receiver = ShmReceiver([ShmRing(ring.name)], lambda request, buffers: arrived.put((request, buffers)))
    try:
        send_all(ShmSender(ring), found)
        assert received(arrived, len(found)) == {request: buffers.sha256() for request, buffers in found.items()}
    finally:
        receiver.close()
        ring.close()
        ring.unlink()


def test_a_ring_without_a_reader_gives_up_when_told(tiny: CausalModel) -> None:
    ring = ShmRing(size_bytes=2**12)
    ring.shut()
    try:
        for _ in range(4):
            ring.write(bytes(1000))
        with pytest.raises(TransportClosed, match="reader"):
            ring.write(bytes(1000))
        with pytest.raises(ValueError, match="ring_bytes"):
            ring.write(bytes(5000))
    finally:
        ring.close()
        ring.unlink()


def test_tcp_carries_every_byte(tiny: CausalModel) -> None:
    found, arrived = caches(tiny), queue.Queue()
    receiver = TcpReceiver(lambda request, buffers: arrived.put((request, buffers)))
    sender = TcpSender(receiver.address)
    try:
        send_all(sender, found)
        sender.flush()
        assert received(arrived, len(found)) == {request: buffers.sha256() for request, buffers in found.items()}
    finally:
        sender.close()
        receiver.close()


def test_a_stranger_is_not_listened_to_and_a_lost_reader_is_noticed(tiny: CausalModel) -> None:
    arrived: queue.Queue[tuple[int, KvBuffers]] = queue.Queue()
    receiver = TcpReceiver(lambda request, buffers: arrived.put((request, buffers)))
    host, port, key = parse_tcp(receiver.address)
    with socket.create_connection((host, port)) as stranger:
        stranger.sendall(bytes(len(key)))
        assert stranger.recv(1) == b""  # hung up
    sender = TcpSender(receiver.address)
    receiver.close()
    found = caches(tiny)

    def keep_sending() -> None:
        for _ in range(100):
            send_all(sender, found)
            sender.flush()
            time.sleep(0.01)

    with pytest.raises(TransportClosed, match="lost"):
        keep_sending()
    with pytest.raises(TransportClosed, match="does not answer"):
        TcpSender(receiver.address)


@pytest.mark.parametrize(
    "address", ["tcp://host:1", "http://host:1/" + "00" * 16, "tcp://host/" + "00" * 16, "tcp://h:x/00"]
)
def test_bad_addresses(address: str) -> None:
    with pytest.raises(ValueError, match="expected tcp://HOST:PORT/KEY"):
        parse_tcp(address)


def test_bad_input(tiny: CausalModel) -> None:
    worker, decode = PrefillWorker(tiny), DecodeWorker(tiny)
    with pytest.raises(ValueError, match="prompt_ids is empty"):
        worker.prefill([])
    with pytest.raises(ValueError, match=r"prompt_ids holds 128: expected 0 to 127"):
        worker.prefill([1, 128])
    with pytest.raises(ValueError, match="4096 positions"):
        worker.prefill([1] * 4096)
    with pytest.raises(ValueError, match="chunk must be >= 1"):
        PrefillWorker(tiny, chunk=0)
    done = worker.prefill([1, 2])
    decode.add(7, done.cache, done.first_token, 3)
    with pytest.raises(ValueError, match="request 7 is being decoded"):
        decode.add(7, done.cache, done.first_token, 3)
    with pytest.raises(ValueError, match="max_new_tokens must be >= 1"):
        decode.add(8, done.cache, done.first_token, 0)
    from transformers import DynamicCache

    with pytest.raises(ValueError, match="the cache is empty"):
        kv_to_buffers(DynamicCache())
    both = tiny.model(torch.ones(2, 3, dtype=torch.long), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="holds 2 sequences"):
        kv_to_buffers(both)
    with pytest.raises(ValueError, match="layers: expected one"):
        PrefillWorker(CausalModel(_Headless(), None))


class _Headless(torch.nn.Module):
    class config:  # noqa: N801
        num_hidden_layers = 2

        @classmethod
        def get_text_config(cls, decoder: bool = True) -> Any:
            return cls


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_device("cpu").type == "cpu"
    for name in ("meta", "gpu 1"):
        with pytest.raises(ValueError, match="expected cpu, cuda or cuda:INDEX"):
            usable_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device='cuda': .*; cpu always works"):
        usable_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_device("cuda:1").index == 1
    with pytest.raises(ValueError, match="torch sees 2 GPUs here, cuda:0 to cuda:1"):
        usable_device("cuda:2")


def test_caches_go_to_the_models_device(tiny: CausalModel) -> None:
    buffers = PrefillWorker(tiny).prefill(prompts()[3]).buffers()
    assert buffers.to(torch.device("cpu")) is buffers
    away = buffers.to(torch.device("meta"))  # the one other device that is everywhere
    assert {part.device.type for layer in away.layers for part in (layer.keys, layer.values)} == {"meta"}
    assert (away.tokens, away.n_bytes) == (buffers.tokens, buffers.n_bytes)
