"""Real servers in separate processes: the tokens of `generate`, caches bit for bit, workers that die."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")
from anabranch.language import CausalModel, load_causal, tiny_causal
from anabranch.serving import ColocatedServer, PhaseSplitServer, ServingError

WAIT_S = 120.0
RAY = pytest.param("ray", marks=pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="module")
def tiny() -> CausalModel:
    return tiny_causal(generator=torch.Generator().manual_seed(0), layers=3)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    from anabranch.serving._ray_workers import connect_ray

    try:
        connect_ray()
    except ModuleNotFoundError:
        pytest.skip("ray is not installed")
    yield
    import ray

    ray.shutdown()


def prompts(n: int, vocab: int = 128, longest: int = 60) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, longest, (n,), generator=generator).tolist()
    return [torch.randint(2, vocab, (length,), generator=generator).tolist() for length in lengths]


def generated(loaded: CausalModel, prompt: list[int], new: int) -> list[int]:
    ids = torch.tensor([prompt])
    return loaded.model.generate(ids, max_new_tokens=new, do_sample=False)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("transport", ["shm", "tcp", RAY])
def test_tokens_of_generate_and_caches_bit_for_bit(tiny: CausalModel, transport: str, request: Any) -> None:
    if transport == "ray":
        request.getfixturevalue("ray_cluster")
    asked, workers = prompts(20), 1 if transport == "ray" else 2  # an actor imports everything anew
    with PhaseSplitServer(tiny, workers, workers, transport=transport, checksums=True) as server:
        streams = [server.submit(prompt, 1 + i % 12) for i, prompt in enumerate(asked)]
        answers = [stream.result(WAIT_S) for stream in streams]
    for i, (prompt, answer, stream) in enumerate(zip(asked, answers, streams, strict=True)):
        assert answer == generated(tiny, prompt, 1 + i % 12), i
        assert len(stream.times_s) == len(answer)
        assert stream.times_s == sorted(stream.times_s)
        assert stream.ttft_s > 0
        assert stream.record.attempts == 1
        if len(answer) > 1:
            assert stream.record.received_sha256 == stream.record.sent_sha256 != ""
            assert stream.record.kv_bytes == 2 * 3 * 2 * 16 * 4 * len(prompt)
        else:
            assert stream.record.kv_bytes == 0  # nothing was sent


@pytest.mark.parametrize("chunk", [None, 8])
def test_a_colocated_server_gives_the_same_tokens(tiny: CausalModel, chunk: int | None) -> None:
    asked = prompts(12)
    with ColocatedServer(tiny, threads=1, chunk=chunk) as server:
        streams = [server.submit(prompt, 1 + i % 12) for i, prompt in enumerate(asked)]
        assert list(streams[5]) == generated(tiny, asked[5], 6)  # token by token
        for i, (prompt, stream) in enumerate(zip(asked, streams, strict=True)):
            assert stream.result(WAIT_S) == generated(tiny, prompt, 1 + i % 12)


def kill(server: Any, role: str) -> None:
    worker = next(one for one in server._workers if one.role == role)
    os.kill(worker.handle.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_requests_of_a_dead_worker_start_again(tiny: CausalModel, role: str, transport: str) -> None:
    asked = prompts(6)
    with PhaseSplitServer(tiny, transport=transport) as server:
        streams = [server.submit(prompt, 200) for prompt in asked]
        next(streams[0])  # it is under way
        kill(server, role)
        for prompt, stream in zip(asked, streams, strict=True):
            assert stream.result(WAIT_S) == generated(tiny, prompt, 200)
        assert max(stream.record.attempts for stream in streams) == 2
        assert server.submit(asked[0], 5).result(WAIT_S) == generated(tiny, asked[0], 5)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_without_restarts_every_request_fails_with_the_reason(tiny: CausalModel, role: str) -> None:
    with PhaseSplitServer(tiny, restarts=0) as server:
        streams = [server.submit(prompt, 2000) for prompt in prompts(3)]
        next(streams[0])
        kill(server, role)
        for stream in streams:
            if role == "decode" or not stream.done:
                with pytest.raises(ServingError, match=f"{role} worker 0 ended with exit code -9"):
                    stream.result(WAIT_S)
        deadline = time.monotonic() + WAIT_S
        while not server._fault and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(ServingError, match="ended with exit code"):
            server.submit([1, 2], 3)


def test_another_worker_takes_over(tiny: CausalModel) -> None:
    asked = prompts(6)
    with PhaseSplitServer(tiny, 1, 2, restarts=0) as server:
        streams = [server.submit(prompt, 100) for prompt in asked]
        next(streams[0])
        kill(server, "decode")
        for prompt, stream in zip(asked, streams, strict=True):
            assert stream.result(WAIT_S) == generated(tiny, prompt, 100)


def test_bad_requests_and_models_say_what_is_wrong(tiny: CausalModel, tmp_path: Path) -> None:
    with PhaseSplitServer(tiny) as server:
        with pytest.raises(ServingError, match="prompt_ids holds 999: expected 0 to 127"):
            server.submit([1, 999], 4).result(WAIT_S)
        with pytest.raises(ValueError, match="prompt_ids is empty"):
            server.submit([], 4)
        with pytest.raises(ValueError, match="max_new_tokens must be >= 1"):
            server.submit([1], 0)
        assert server.submit([1, 2, 3], 4).result(WAIT_S) == generated(tiny, [1, 2, 3], 4)
        waiting = server.submit([1, 2, 3], 3000)
        with pytest.raises(TimeoutError, match=r"tokens after 0\.01 s"):
            waiting.result(0.01)
    with pytest.raises(ServingError, match="the server was closed"):
        waiting.result(WAIT_S)
    with pytest.raises(ServingError, match="the server is closed"):
        server.submit([1], 1)
    with pytest.raises(ServingError, match=r"could not start: ValueError: .*config\.json"):
        PhaseSplitServer(tmp_path)
    with pytest.raises(ValueError, match="transport must be one of shm, tcp, ray"):
        PhaseSplitServer(tiny, transport="pigeon")
    with pytest.raises(ValueError, match="prefill must be >= 1"):
        PhaseSplitServer(tiny, 0)


def test_a_layer_larger_than_the_ring_is_named(tiny: CausalModel) -> None:
    with PhaseSplitServer(tiny, ring_bytes=2**12) as server, pytest.raises(ServingError, match="larger ring_bytes"):
        server.submit([5] * 500, 4).result(WAIT_S)


def test_smollm2_over_shared_memory(smollm2: Path) -> None:
    """Prompts of text; a cache has 46,080 bytes a token."""
    loaded = load_causal(smollm2)
    texts = [
        "The capital of France is",
        "A river that leaves its main stream and",
        "def add(a, b):\n",
        "Once upon a time, ",
    ]
    asked = [loaded.tokenizer(text).input_ids for text in texts]
    with PhaseSplitServer(smollm2, checksums=True) as server:
        streams = [server.submit(prompt, 12) for prompt in asked]
        for prompt, stream in zip(asked, streams, strict=True):
            assert stream.result(WAIT_S) == generated(loaded, prompt, 12)
            assert stream.record.received_sha256 == stream.record.sent_sha256
            assert stream.record.kv_bytes == 46_080 * len(prompt)


def start_remote(role: str) -> Any:
    """A worker as a user starts it, and its address."""
    process = subprocess.Popen(
        [
            sys.executable, "-c", "from anabranch.cli import main; main()", "serving", "worker", "--role", role, "--listen",
            "127.0.0.1:0", "--device", "cpu",
        ],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.fixture(scope="module")
def remote() -> Iterator[list[tuple[Any, str]]]:
    """One prefill and two decode workers in processes of their own, addressed by URL."""
    started = [start_remote(role) for role in ("prefill", "decode", "decode")]
    yield started
    for process, _ in started:
        process.kill()
        process.wait(timeout=30)


def test_workers_addressed_by_url(tiny: CausalModel, remote: list[tuple[Any, str]]) -> None:
    """Tokens of `generate`; a second server after the first; while one is there another is told so; a killed worker is reported
    and its requests go to the other one, and without any other they fail with the reason."""
    asked, urls = prompts(8), [url for _, url in remote]
    with PhaseSplitServer(tiny, workers=urls[:2], checksums=True) as server:
        streams = [server.submit(prompt, 1 + i % 7) for i, prompt in enumerate(asked)]
        for i, (prompt, stream) in enumerate(zip(asked, streams, strict=True)):
            assert stream.result(WAIT_S) == generated(tiny, prompt, 1 + i % 7)
            assert stream.record.received_sha256 == (stream.record.sent_sha256 if i % 7 else "")
        with pytest.raises(ServingError, match="works for another server"):
            PhaseSplitServer(tiny, workers=urls)
    with PhaseSplitServer(tiny, workers=urls) as server:
        streams = [server.submit(prompt, 150) for prompt in asked]
        for stream in streams:
            next(stream)
        assert {job.decode.index for job in server._jobs.values()} == {0, 1}  # both are at work
        remote[2][0].kill()
        for prompt, stream in zip(asked, streams, strict=True):
            assert stream.result(WAIT_S) == generated(tiny, prompt, 150)
        assert max(stream.record.attempts for stream in streams) == 2
        assert len(server.lost) == 1
        assert server.lost[0].startswith("decode worker at 127.0.0.1:")
        last = server.submit(asked[0], 3000)
        next(last)
        remote[1][0].kill()
        with pytest.raises(ServingError, match="is gone: its connection ended; no other worker of its kind is left"):
            last.result(WAIT_S)
    with pytest.raises(ServingError, match="does not answer"):
        PhaseSplitServer(tiny, workers=urls)


def test_workers_are_prepared_without_loading_anything_here() -> None:
    """The fork server is there, with torch in it; this process has not imported it."""
    code = """
import sys, multiprocessing.forkserver as forkserver
import anabranch.serving as sv
sv.prepare_workers()
assert forkserver._forkserver._forkserver_pid is not None
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=WAIT_S)


def test_strangers_and_bad_addresses(tiny: CausalModel) -> None:
    """A connection that says nothing keeps no server waiting; a wrong key gets nothing."""
    from anabranch.serving._remote_workers import WorkerListener, connect_workers

    worker = WorkerListener("prefill")
    thread = threading.Thread(target=worker.serve, daemon=True)
    thread.start()
    place, _, key = worker.address.rpartition("/")
    host, port = place.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))):
        with pytest.raises(ServingError, match="the key of the address is not its own"):
            connect_workers([f"{place}/{'00' * 16}"])
        with pytest.raises(ValueError, match="workers has no decode worker"):
            connect_workers([worker.address])
        with pytest.raises(ValueError, match="expected tcp://HOST:PORT/KEY"):
            PhaseSplitServer(tiny, workers=[place])
    worker.close()
    thread.join(timeout=30)
    assert not thread.is_alive()
    with pytest.raises(ValueError, match="role must be one of prefill, decode"):
        WorkerListener("both")
    with pytest.raises(ValueError, match="by which the other workers reach"):
        WorkerListener("decode", "0.0.0.0")
    for host in ("", "0", "0x0", "000.0.0.0"):
        with pytest.raises(ValueError, match="by which the other workers reach"):
            WorkerListener("decode", host)
    with pytest.raises(ValueError, match="workers do not listen on IPv6"):
        WorkerListener("decode", "::1")
    with pytest.raises(ValueError, match="key must have 16 bytes"):
        WorkerListener("decode", key=b"1")
    with pytest.raises(ValueError, match=r"device='tpu'.*expected cpu, cuda or cuda:INDEX"):
        WorkerListener("decode", device="tpu")
    assert len(key) == 32


def test_a_worker_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the handshake nor for its greeting; a stranger that says nothing is hung up on."""
    from anabranch.serving import _remote_workers as module

    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"tcp://127.0.0.1:{silent.getsockname()[1]}/{'00' * 16}"
        with pytest.raises(ServingError, match=r"does not answer: nothing within 0\.3 s"):
            module.connect_workers([place], 0.3)
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.3)
    worker = module.WorkerListener("prefill")  # nobody calls serve(): no greeting
    with pytest.raises(ServingError, match="does not answer: nothing within 1 s"):
        module.RemoteHandle(worker.address, 1.0)
    with socket.create_connection(("127.0.0.1", int(worker.address.split(":")[2].split("/")[0]))) as stranger:
        stranger.settimeout(30)
        while stranger.recv(100):  # the challenge, and then the end
            pass
    worker.close()


def test_a_worker_is_free_when_a_server_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, also where work on it failed in a way that nobody thought of."""
    from anabranch.serving import _remote_workers as module
    from anabranch.serving._worker_loops import WorkerSpec

    def work(spec: WorkerSpec, channel: Any, inbox: Any) -> None:
        channel.send(("ready", None, spec.device))
        assert channel.recv() == ("stop",)
        time.sleep(0.3)
        raise KeyError("never thought of")

    monkeypatch.setattr(module, "work", work)
    worker, said = module.WorkerListener("prefill", device="cpu:0"), []
    thread = threading.Thread(target=worker.serve, args=(said.append,), daemon=True)
    thread.start()
    spec = WorkerSpec("prefill", "", "float32", 1, "tcp", None, 1, 1, False)
    for _ in range(3):
        events: queue.Queue[Any] = queue.Queue()
        handle = module.RemoteHandle(worker.address, 30.0)
        handle.start(spec, events.put)
        assert events.get(timeout=30) == ("ready", None, "cpu:0")  # its own, whatever the server says
        options = handle._connection.fileno()
        with socket.socket(fileno=os.dup(options)) as same:
            assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        begin = time.monotonic()
        handle.stop()
        assert 0.2 < time.monotonic() - begin < module.STOP_S
        module.RemoteHandle(worker.address, 30.0).stop()  # one that only asks
    worker.close()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert sum("KeyError: 'never thought of'" in line for line in said) == 3


def test_senders_are_closed_when_the_server_is_lost(tiny: CausalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from anabranch.serving import _worker_loops as module

    class Lost:
        def recv(self) -> Any:
            raise EOFError

        def send(self, event: Any) -> None:
            if event[0] != "ready":
                raise ConnectionError

    class Sender:
        closed = False

        def close(self) -> None:
            self.closed = True

    sender, inbox = Sender(), queue.Queue()
    monkeypatch.setattr(module, "_sender", lambda _: sender)
    inbox.put(("connect", 0, "shm:none"))
    inbox.put(("prefill", 0, [5, 6], 0, 0))
    spec = module.WorkerSpec("prefill", "", "float32", 1, "tcp", None, 1, 1, False)
    with pytest.raises(ConnectionError):
        module._prefill(spec, tiny, Lost(), inbox, "")  # type: ignore[arg-type]
    assert sender.closed


def test_models_that_differ_are_told_apart(tiny: CausalModel, tmp_path: Path) -> None:
    from anabranch.language import load_causal
    from anabranch.serving.workers import model_digest

    for name in ("one", "two"):
        tiny.model.save_pretrained(tmp_path / name)
    one, two = (load_causal(tmp_path / name) for name in ("one", "two"))
    assert model_digest(one) == model_digest(two)
    with torch.no_grad():
        next(two.model.parameters()).view(-1)[0] += 1e-3
    assert model_digest(one) != model_digest(two)
    other = load_causal(tmp_path / "two")
    other.model.config.rms_norm_eps *= 2
    assert model_digest(one) != model_digest(other)


def test_arguments_that_remote_workers_would_not_heed(tiny: CausalModel) -> None:
    address = f"tcp://127.0.0.1:1/{'00' * 16}"
    for name, value in (("n_prefill", 2), ("n_decode", 3), ("threads", 2), ("transport", "ray")):
        with pytest.raises(ValueError, match=f"{name}: workers that run already have their own"):
            PhaseSplitServer(tiny, workers=[address], **{name: value})  # type: ignore[arg-type]


def test_keys_are_kept(tmp_path: Path) -> None:
    from anabranch.serving._worker_command import _key
    from anabranch.serving.transports import parse_tcp

    file, secret = tmp_path / "key", "ab" * 16
    file.write_text(secret + "\n")
    file.chmod(0o600)
    assert _key(file) == bytes.fromhex(secret)
    file.chmod(0o640)
    with pytest.raises(ValueError, match=r"--key-file .*: others than its owner may use it"):
        _key(file)
    file.chmod(0o600)
    for text in ("ab" * 15, "xy" * 16):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"--key-file .*: expected 32 hex digits") as refused:
            _key(file)
        assert text not in str(refused.value)
    with pytest.raises(ValueError, match=r"--key-file .*No such file"):
        _key(tmp_path / "none")
    for address in (f"http://host:1/{secret}", f"tcp://host/{secret}", f"tcp://{secret}", f"tcp://[{secret}"):
        with pytest.raises(ValueError, match="expected tcp://HOST:PORT/KEY") as refused:
            parse_tcp(address)
        assert secret not in str(refused.value)
