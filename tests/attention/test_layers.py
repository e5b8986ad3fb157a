"""The drop-in for ``nn.MultiheadAttention``: weights, masks, torch's own encoder around it, steps, compilation."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from anabranch.attention import (
    ATTENTIONS,
    AttentionLayer,
    FlowAttention,
    KeyValueCache,
    flow_attention,
    flow_attention_matrix,
    row_evenness,
    softmax_attention,
)

from .samples import gap


def inputs(n: int = 7, width: int = 12) -> Tensor:
    return torch.randn(2, n, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("widths", [{}, {"kdim": 5, "vdim": 6}])
@pytest.mark.parametrize("bias", [True, False])
def test_with_softmax_it_is_torch_s_layer(widths: dict[str, int], bias: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, bias=bias, **widths)
    ours = AttentionLayer(12, 3, "softmax", bias=bias, **widths)
    ours.load_state_dict(theirs.state_dict())
    x = inputs()
    key = inputs(5, widths.get("kdim", 12))
    value = inputs(5, widths.get("vdim", 12))
    padding = torch.tensor([[False, False, True, False, True], [False] * 5])
    expected, _ = theirs(x, key, value, key_padding_mask=padding)
    assert gap(ours(x, key, value, key_padding_mask=padding)[0], expected) <= 1e-6
    if not widths:
        future = nn.Transformer.generate_square_subsequent_mask(7)
        expected, _ = theirs(x, x, x, attn_mask=future, is_causal=True)
        assert gap(ours(x, x, x, attn_mask=future)[0], expected) <= 1e-6


def test_flow_layer_is_the_function_between_projections() -> None:
    torch.manual_seed(0)
    layer = FlowAttention(12, 3, preset="core")
    x = inputs()
    q, k, v = layer.heads(x, x, x)
    expected = layer.out_proj(flow_attention(q, k, v, clamp=(-1.0, 1.0)).transpose(1, 2).flatten(2))
    y, weights = layer(x, x, x)
    assert gap(y, expected) <= 1e-6
    assert weights is None
    _, weights = layer(x, x, x, need_weights=True)
    assert gap(weights, flow_attention_matrix(q, k, clamp=(-1.0, 1.0)).mean(1)) <= 1e-6


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_as_if_deleted(causal: bool) -> None:
    torch.manual_seed(0)
    layer = FlowAttention(12, 3, causal=causal)
    x = inputs()
    padding = torch.tensor([[True, False, False, True, False, False, False], [False] * 5 + [True] * 2])
    y, _ = layer(x, key_padding_mask=padding)
    for b in range(2):
        assert gap(y[b, ~padding[b]], layer(x[b : b + 1, ~padding[b]])[0][0]) <= 1e-6


@pytest.mark.parametrize("training", [False, True])
def test_inside_torch_s_encoder_it_is_not_replaced_by_softmax(training: bool) -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(12, 3, 24, dropout=0.0, batch_first=True)
    block.self_attn = FlowAttention.from_softmax(block.self_attn)
    encoder = nn.TransformerEncoder(block, 2).train(training)
    x = inputs()
    with torch.no_grad():
        y = encoder(x)
        expected = x
        for layer in encoder.layers:
            expected = layer.norm1(expected + layer.self_attn(expected)[0])
            expected = layer.norm2(expected + layer.linear2(torch.relu(layer.linear1(expected))))
    assert gap(y, expected) <= 1e-5


@pytest.mark.parametrize("name", ["flow", "softmax"])
def test_steps_equal_the_whole(name: str) -> None:
    torch.manual_seed(0)
    layer = AttentionLayer(12, 3, name, causal=True)
    x = inputs(40)
    with torch.no_grad():
        whole, _ = layer(x)
        state = layer.empty_state(2, capacity=8)
        for i in range(40):
            y, state = layer.step(x[:, i], state)
            assert gap(y, whole[:, i]) <= 1e-5
    if isinstance(state, KeyValueCache):
        assert (state.length, state.keys.shape[2]) == (40, 64)


@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_every_attention_by_name(name: str, generator: torch.Generator) -> None:
    torch.manual_seed(0)
    layer = AttentionLayer(12, 3, name, causal=True, generator=generator)
    x = inputs().requires_grad_()
    (grad,) = torch.autograd.grad(layer(x)[0][:, 3].sum(), x)
    assert float(grad[:, 4:].abs().max()) == 0
    assert ("projection" in layer.state_dict()) == (name == "performer")


def test_a_function_of_one_s_own() -> None:
    layer = AttentionLayer(12, 3, softmax_attention)
    twin = AttentionLayer(12, 3, "softmax")
    twin.load_state_dict(layer.state_dict())
    assert gap(layer(inputs())[0], twin(inputs())[0]) == 0


def test_dropout_is_after_the_projection() -> None:
    torch.manual_seed(0)
    layer = FlowAttention(12, 3, dropout=0.5)
    x = inputs()
    y, exact = layer(x)[0], layer.eval()(x)[0]
    kept = y != 0
    assert 0.2 < float(kept.float().mean()) < 0.8
    assert gap(y[kept], 2 * exact[kept]) <= 1e-5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FlowAttention(12, 5), "n_heads=5 does not divide d_model=12"),
        (lambda: FlowAttention(12, 3, dropout=1.0), r"dropout must be in \[0, 1\)"),
        (lambda: FlowAttention(12, 3, preset="best"), "unknown preset 'best': there are paper, core, lra, rl"),
        (lambda: AttentionLayer(12, 3, "spline"), "unknown attention 'spline': there are softmax"),
        (lambda: AttentionLayer(12, 3, "performer"), "pass a generator"),
        (lambda: AttentionLayer(12, 3, "linear")(inputs(), need_weights=True), "need_weights"),
        (lambda: AttentionLayer(12, 3, "linear").empty_state(1), "step is for"),
        (lambda: FlowAttention(12, 3)(inputs(), attn_mask=torch.eye(7).bool()), "expected the causal mask"),
        (lambda: FlowAttention.from_softmax(nn.MultiheadAttention(12, 3)), "batch_first=True"),
    ],
)
def test_bad_input(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_compiled_it_gives_the_same() -> None:
    """In a process without the shape checks; the eager backend follows the graph without a compiler."""
    program = """
import torch
from anabranch.attention import FlowAttention
for causal in (False, True):
    torch.manual_seed(0)
    layer = FlowAttention(16, 2, causal=causal)
    x = torch.randn(2, 150, 16)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = layer(a)[0], torch.compile(layer, backend="aot_eager", fullgraph=True)(b)[0]
    y.square().sum().backward()
    z.square().sum().backward()
    assert (y - z).abs().max() < 1e-5 and (a.grad - b.grad).abs().max() < 1e-4
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]


def test_evenness_is_the_entropy_of_the_rows() -> None:
    torch.manual_seed(0)
    layer = AttentionLayer(8, 2, "softmax")
    x = torch.randn(2, 6, 8)
    mask = torch.tensor([[True] * 6, [True, True, False, True, False, False]])
    found = row_evenness(lambda y, m: layer(y, key_padding_mask=~m), layer, x, mask)
    q, k, _ = layer.heads(x, x, x)
    weights = (q @ k.mT / 2).masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    entropy = -(weights * weights.clamp(min=1e-30).log()).sum(-1) / mask.sum(1).log()[:, None, None]
    assert gap(found[:, :, 0], entropy[:, :, 0]) <= 1e-5
    assert float(found[1, :, 2].abs().max()) == 0  # a masked row
    torch.nn.init.zeros_(layer.in_proj_weight)
    assert gap(row_evenness(lambda y, m: layer(y), layer, x), torch.ones(2, 2, 6)) <= 1e-6
    single = AttentionLayer(8, 2, "linear", causal=True)
    even = row_evenness(lambda y, m: single(y), single, x)
    assert float(even[..., 0].abs().max()) <= 1e-6  # the first token sees itself only
    assert float(even[..., 1:].min()) > 0
