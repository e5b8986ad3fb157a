"""Causal Flow-Attention: chunked, cumulative, recurrent and explicit forms agree; causality; states; memory of gradients."""

import inspect
import subprocess
import sys

import pytest
import torch

from anabranch.attention import (
    FLOW_PRESETS,
    FlowAttentionState,
    _compiled_causal,
    _scan,
    causal,
    flow_attention,
    flow_attention_causal,
    flow_attention_cumulative,
    flow_attention_matrix,
    flow_attention_step,
)

from .samples import gap, heads, some

OPTIONS = {
    **{name: dict(preset) for name, preset in FLOW_PRESETS.items()},
    "no competition": {"competition": False},
    "no allocation": {"allocation": False},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


@each_option
@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("entries", [1 << 17, 300])
@pytest.mark.parametrize("compiled", [True, False])
def test_equals_the_explicit_matrix(
    options: dict, chunk: int, masked: bool, entries: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_scan, "BLOCK_ENTRIES", entries)
    monkeypatch.setattr(_compiled_causal, "_BLOCK_ENTRIES", entries)
    if not compiled:
        monkeypatch.setattr(causal, "attend_causal_compiled", lambda *_: None)
    q, k, v = heads(53)
    mask = some(2, 53) if masked else None
    expected = flow_attention_matrix(q, k, is_causal=True, q_mask=mask, **options) @ v
    assert gap(flow_attention_causal(q, k, v, chunk=chunk, mask=mask, **options), expected) <= 1e-10


@pytest.mark.parametrize("chunk", [1, 7, 64, 300])
@pytest.mark.parametrize("preset", ["paper", "core", "rl"])
def test_equals_the_cumulative_form_in_single_precision(chunk: int, preset: str) -> None:
    q, k, v = heads(300, d=16, e=16, dtype=torch.float32)
    options = FLOW_PRESETS[preset]
    assert (
        gap(flow_attention_causal(q, k, v, chunk=chunk, **options), flow_attention_cumulative(q, k, v, **options))
        <= 1e-5
    )


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equals_the_recurrence_after_2000_tokens(dtype: torch.dtype, error: float) -> None:
    q, k, v = heads(2000, batch=1, n_heads=2, d=8, e=8, dtype=dtype)
    parallel, last = flow_attention_causal(q, k, v, return_state=True)
    state = FlowAttentionState.empty(1, 2, 8, dtype=dtype)
    for i in range(2000):
        y, state = flow_attention_step(q[:, :, i], k[:, :, i], v[:, :, i], state)
        assert gap(y, parallel[:, :, i]) <= error
    for name in ("keys", "queries", "sources", "sinks", "log_total", "values"):
        a, b = getattr(state, name), getattr(last, name)
        assert gap(a, b) <= error * max(1.0, float(b.abs().max())), name
    assert int(state.count) == int(last.count) == 2000


@each_option
def test_step_knows_every_option(options: dict) -> None:
    q, k, v = heads(12)
    state = FlowAttentionState.empty(2, 3, 4, 5, dtype=torch.float64)
    expected = flow_attention_causal(q, k, v, **options)
    for i in range(12):
        y, state = flow_attention_step(q[:, :, i], k[:, :, i], v[:, :, i], state, **options)
        assert gap(y, expected[:, :, i]) <= 1e-10


@pytest.mark.parametrize("p", [1, 5, 64, 65, 200, 299])
def test_a_prefix_does_not_know_what_follows(p: int) -> None:
    q, k, v = heads(300, dtype=torch.float32, d=8, e=8)
    y = flow_attention_causal(q, k, v)
    assert gap(y[:, :, :p], flow_attention_causal(q[:, :, :p], k[:, :, :p], v[:, :, :p])) <= 1e-6


def cut_small(method: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Blocks of one chunk; "scan" stands for "redo" without the compiled kernels, as on another device."""
    monkeypatch.setattr(_scan, "BLOCK_ENTRIES", 1)
    monkeypatch.setattr(_compiled_causal, "_BLOCK_ENTRIES", 1)
    if method == "scan":
        monkeypatch.setattr(causal, "attend_causal_compiled", lambda *_: None)
        return "redo"
    return method


@pytest.mark.parametrize("method", ["plain", "scan", "redo"])
def test_gradient_with_respect_to_later_tokens_is_zero(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = cut_small(method, monkeypatch)
    inputs = [x.requires_grad_() for x in heads(20)]
    y = flow_attention_causal(*inputs, chunk=4, method=method)
    for grad in torch.autograd.grad(y[:, :, 9].sum(), inputs):
        assert float(grad[:, :, 10:].abs().max()) == 0
        assert float(grad[:, :, 9].abs().max()) > 0


@each_option
def test_masked_tokens_are_as_if_deleted(options: dict) -> None:
    q, k, v = heads(40)
    mask = some(2, 40)
    mask[0, :3], mask[1, -5:] = False, False
    y = flow_attention(q, k, v, is_causal=True, q_mask=mask, kv_mask=mask, **options)
    for b in range(2):
        alone = [x[b : b + 1, :, mask[b]] for x in (q, k, v)]
        assert gap(y[b, :, mask[b]], flow_attention_causal(*alone, **options)[0]) <= 1e-10
        assert float(y[b, :, ~mask[b]].abs().sum()) == 0


@each_option
@pytest.mark.parametrize("method", ["plain", "scan", "redo"])
def test_gradients(options: dict, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = cut_small(method, monkeypatch)
    if options.get("clamp") == (-1.0, 1.0):
        options = {**options, "clamp": (0.9, 1.1)}
    inputs = [x.requires_grad_() for x in heads(6, batch=1, n_heads=1, d=2, e=2)]
    for mask in (None, torch.tensor([[False, True, True, False, True, True]])):
        call = lambda *x, mask=mask: flow_attention_causal(*x, chunk=2, mask=mask, method=method, **options)  # noqa: E731
        assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("method", ["plain", "redo"])
def test_a_state_carries_values_and_gradients(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = cut_small(method, monkeypatch)
    inputs = [x.requires_grad_() for x in heads(31)]
    whole = flow_attention_causal(*inputs, method=method)
    state, parts = None, []
    for start, stop in ((0, 9), (9, 10), (10, 31)):
        part = [x[:, :, start:stop] for x in inputs]
        y, state = flow_attention_causal(*part, chunk=4, initial_state=state, return_state=True, method=method)
        parts.append(y)
    joined = torch.cat(parts, 2)
    assert gap(joined, whole) <= 1e-12
    weight = torch.linspace(-1, 1, whole.numel(), dtype=torch.float64).view_as(whole)
    pairs = zip(*(torch.autograd.grad((y * weight).sum(), inputs) for y in (whole, joined)), strict=True)
    assert all(gap(a, b) <= 1e-11 for a, b in pairs)
    assert state is not None
    assert not state.detach().values.requires_grad


def test_masks_and_states_together() -> None:
    q, k, v = heads(30)
    mask = some(2, 30)
    mask[0, :12] = False  # the first part of item 0 holds nothing
    whole = flow_attention_causal(q, k, v, mask=mask)
    y, state = flow_attention_causal(*(x[:, :, :11] for x in (q, k, v)), mask=mask[:, :11], return_state=True)
    assert int(state.count[0]) == 0
    rest = flow_attention_causal(*(x[:, :, 11:] for x in (q, k, v)), mask=mask[:, 11:], initial_state=state)
    assert gap(torch.cat([y, rest], 2), whole) <= 1e-12


def test_memory_of_gradients_grows_with_the_length_only() -> None:
    """Peak memory in a process of its own: the form by cumulative sums needs n d e numbers a head, this one n (d + e)."""
    program = """
import resource, sys, torch
from anabranch.attention import flow_attention_causal
torch.set_num_threads(1)
def run(n):
    x = [torch.randn(1, 4, n, 64).requires_grad_() for _ in range(3)]
    flow_attention_causal(*x).sum().backward()
run(512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(int(sys.argv[1]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    n = 16384
    done = subprocess.run([sys.executable, "-c", program, str(n)], capture_output=True, text=True, check=True)
    found, one = int(done.stdout), n * 4 * 64 * 4  # bytes of q
    assert found < 12 * one  # three inputs, three gradients, output, its gradient, blocks and their states
    assert found < 0.1 * 64 * one * 2  # the outer products and their gradient


def test_a_tarflow_takes_it(generator: torch.Generator) -> None:
    """A normalizing flow needs each token's map to depend on the tokens before it only: then its inverse exists."""
    tarflow = pytest.importorskip("anabranch.generative.tarflow")
    torch.manual_seed(0)
    flow = tarflow.TarFlow(side=8, patch=2, width=32, blocks=1, layers=1, head_size=16, attention=flow_attention)
    for name, parameter in flow.named_parameters():  # a fresh one is the identity
        torch.nn.init.normal_(parameter, std=0.05 if "proj_out" in name else 0.2)
    flow = flow.double()
    x = torch.randn(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda y: flow(y.reshape(1, 1, 8, 8))[0].flatten(), x.flatten())
    _, log_det = flow(x)
    assert float(jacobian.slogdet().logabsdet) == pytest.approx(float(log_det), abs=1e-8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chunk": 0}, "chunk must be >= 1"),
        ({"method": "slow"}, "unknown method"),
        ({"initial_state": FlowAttentionState.empty(2, 3, 4, 6)}, "state's values have shape"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "mask has shape"),
    ],
)
def test_bad_input(options: dict, words: str) -> None:
    q, k, v = heads(5)
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(flow_attention_causal)(q, k, v, **options)


def test_bad_input_of_a_step() -> None:
    state = FlowAttentionState.empty(2, 3, 4)
    x = torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match="state's values have shape"):
        inspect.unwrap(flow_attention_step)(x, x, x, state)
