"""Bidirectional Flow-Attention: conservation, the explicit matrix, closed forms, masks by deletion, gradients."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from anabranch.attention import FLOW_PRESETS, flow_attention, flow_attention_matrix

from .samples import gap, heads, some

OPTIONS = {
    **{name: dict(preset) for name, preset in FLOW_PRESETS.items()},
    "elu": {"feature_map": "elu"},
    "no competition": {"competition": False},
    "no allocation": {"allocation": False},
    "large eps": {"eps": 0.1},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


@pytest.mark.parametrize(("n", "m"), [(6, 6), (7, 4), (3, 11), (1, 5)])
def test_flow_is_conserved_at_both_ends(n: int, m: int) -> None:
    q, k, v = heads(n, m)
    _, flows = flow_attention(q, k, v, eps=0.0, return_flows=True)
    edges = torch.sigmoid(q) @ torch.sigmoid(k).mT
    assert gap((edges / flows.outgoing.unsqueeze(-2)).sum(-2), torch.ones(2, 3, m).double()) <= 1e-12
    assert gap((edges / flows.incoming.unsqueeze(-1)).sum(-1), torch.ones(2, 3, n).double()) <= 1e-12
    assert float((flows.conserved_incoming.sum(-1) - m).abs().max()) <= 1e-9 * m
    assert float((flows.conserved_outgoing.sum(-1) - n).abs().max()) <= 1e-9 * n
    assert float((flows.competition.mean(-1) - 1).abs().max()) <= 1e-12
    assert gap(flows.allocation, torch.sigmoid(flows.conserved_incoming * n / m)) <= 1e-12


@each_option
@pytest.mark.parametrize("method", ["plain", "fused", "auto"])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_explicit_matrix(options: dict, method: str, masked: bool) -> None:
    q, k, v = heads(9, 7)
    masks = {"q_mask": some(2, 9), "kv_mask": some(2, 7, seed=2)} if masked else {}
    expected = flow_attention_matrix(q, k, **options, **masks) @ v
    assert gap(flow_attention(q, k, v, **options, **masks, method=method), expected) <= 1e-10
    single = [x.float() for x in (q, k, v)]
    if options.get("feature_map") != "relu":  # relu's weights reach 1e6, and with them the error
        assert gap(flow_attention(*single, **options, **masks, method=method).double(), expected) <= 1e-5


def test_hand_case() -> None:
    q, k, v = (torch.tensor(x, dtype=torch.float64).reshape(1, 1, 2, 1) for x in ([1, 1], [1, 3], [1, 0]))
    y, flows = flow_attention(q, k, v, feature_map=torch.relu, eps=0.0, return_flows=True)
    expected = {
        "outgoing": [2, 6], "incoming": [4, 4], "conserved_incoming": [1, 1], "conserved_outgoing": [0.5, 1.5],
        "competition": [0.5378828427, 1.4621171573], "allocation": [0.7310585786] * 2,
    }  # fmt: skip
    for name, values in expected.items():
        assert gap(getattr(flows, name).flatten(), torch.tensor(values, dtype=torch.float64)) <= 1e-9, name
    assert gap(y.flatten(), torch.tensor([0.0983059666] * 2, dtype=torch.float64)) <= 1e-9


def test_equal_keys_give_the_mean() -> None:
    q, k, v = heads(6, 4)
    y, flows = flow_attention(q, k[:, :, :1].expand_as(k), v, eps=1e-12, return_flows=True)
    assert gap(flows.competition, torch.ones_like(flows.competition)) <= 1e-9
    assert gap(y, flows.allocation.unsqueeze(-1) * v.mean(2, keepdim=True)) <= 1e-9
    y = flow_attention(
        q[:, :, :1].expand_as(q), k[:, :, :1].expand_as(k), v, eps=1e-12
    )  # equal queries: flow m / n each
    assert gap(y, 1 / (1 + math.exp(-1)) * v.mean(2, keepdim=True).expand_as(y)) <= 1e-9


def test_order_of_sources_does_not_matter_and_sinks_keep_theirs(generator: torch.Generator) -> None:
    q, k, v = heads(8, 6)
    y = flow_attention(q, k, v)
    sources, sinks = torch.randperm(6, generator=generator), torch.randperm(8, generator=generator)
    assert gap(flow_attention(q, k[:, :, sources], v[:, :, sources]), y) <= 1e-12
    assert gap(flow_attention(q[:, :, sinks], k, v), y[:, :, sinks]) <= 1e-12


@each_option
def test_masked_tokens_are_as_if_deleted(options: dict) -> None:
    q, k, v = heads(9, 8)
    q_mask, kv_mask = some(2, 9), some(2, 8, seed=5)
    y = flow_attention(q, k, v, **options, q_mask=q_mask, kv_mask=kv_mask)
    for b in range(2):
        alone = flow_attention(
            q[b : b + 1, :, q_mask[b]], k[b : b + 1, :, kv_mask[b]], v[b : b + 1, :, kv_mask[b]], **options
        )
        assert gap(y[b, :, q_mask[b]], alone[0]) <= 1e-10
        assert float(y[b, :, ~q_mask[b]].abs().sum()) == 0


@pytest.mark.parametrize("method", ["plain", "fused", "auto"])
def test_what_masked_tokens_hold_does_not_matter(method: str) -> None:
    q, k, v = heads(9, 8)
    q_mask, kv_mask = some(2, 9), some(2, 8, seed=5)
    y = flow_attention(q, k, v, q_mask=q_mask, kv_mask=kv_mask, method=method)
    k2, v2, q2 = (x.masked_fill(~mask[:, None, :, None], 1e3) for x, mask in ((k, kv_mask), (v, kv_mask), (q, q_mask)))
    assert gap(flow_attention(q2, k2, v2, q_mask=q_mask, kv_mask=kv_mask, method=method), y) <= 1e-12


def test_a_sequence_of_one_token_among_padding() -> None:
    q, k, v = heads(5)
    mask = torch.tensor([[True, False, False, False, False], [True, True, True, True, True]])
    y = flow_attention(q, k, v, q_mask=mask, kv_mask=mask)
    assert gap(y[:1, :, :1], flow_attention(q[:1, :, :1], k[:1, :, :1], v[:1, :, :1])) <= 1e-12
    assert gap(y[1:], flow_attention(q[1:], k[1:], v[1:])) <= 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_to_look_at_gives_zero(causal: bool) -> None:
    q, k, v = (x.requires_grad_() for x in heads(5))
    mask = torch.tensor([[False] * 5, [True] * 5])
    y = flow_attention(q, k, v, q_mask=mask if causal else None, kv_mask=mask, is_causal=causal)
    assert float(y[0].detach().abs().max()) == 0
    for grad in torch.autograd.grad(y.square().sum(), (q, k, v)):
        assert bool(torch.isfinite(grad).all())
        assert float(grad[0].abs().max()) == 0
        assert float(grad[1].abs().max()) > 0


def test_a_weight_counts_copies() -> None:
    q, k, v = heads(4, 5, batch=1)
    sinks, sources = torch.tensor([1, 3, 1, 2]), torch.tensor([2, 1, 0, 4, 1])
    y = flow_attention(q, k, v, q_weight=sinks[None].double(), kv_weight=sources[None].double())
    repeated = [x.repeat_interleave(times, 2) for x, times in ((q, sinks), (k, sources), (v, sources))]
    assert gap(y.repeat_interleave(sinks, 2), flow_attention(*repeated)) <= 1e-12


@each_option
@pytest.mark.parametrize("method", ["plain", "fused"])
def test_gradients(options: dict, method: str) -> None:
    if method == "fused" and options.get("clamp") == (-1.0, 1.0):
        options = {**options, "clamp": (0.9, 1.1)}  # both sides and the inside of the range occur
    inputs = [x.requires_grad_() for x in heads(5, 4, batch=1, n_heads=1, d=3, e=2)]
    masks = {
        "q_mask": torch.tensor([[True, True, False, True, True]]),
        "kv_mask": torch.tensor([[True, False, True, True]]),
    }
    for kept in ({}, masks, {"kv_weight": torch.tensor([[1.0, 2.5, 0.0, 0.5]], dtype=torch.float64)}):
        assert torch.autograd.gradcheck(
            lambda *x, kept=kept: flow_attention(*x, **options, **kept, method=method), inputs
        )


def test_second_and_forward_derivatives_by_the_plain_form() -> None:
    inputs = [x.requires_grad_() for x in heads(3, 3, batch=1, n_heads=1, d=2, e=2)]
    assert torch.autograd.gradgradcheck(lambda *x: flow_attention(*x, method="plain"), inputs)
    q, k, v = (x.detach() for x in inputs)
    _, tangent = torch.func.jvp(lambda x: flow_attention(x, k, v), (q,), (torch.ones_like(q),))
    step = (flow_attention(q + 1e-6, k, v) - flow_attention(q - 1e-6, k, v)) / 2e-6
    assert gap(tangent, step) <= 1e-8
    per_head = torch.func.vmap(lambda a, b, c: flow_attention(a[None], b[None], c[None])[0])(q, k, v)
    assert gap(per_head, flow_attention(q, k, v)) <= 1e-12


def test_groups_of_heads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from anabranch.attention import _compiled_flows

    q, k, v = heads(20, 17, batch=3, n_heads=4)
    mask, weight = some(3, 17), torch.rand(3, 20, dtype=torch.float64)
    grads, outputs = [], []
    for entries in (1 << 17, 400, 200, 1):
        monkeypatch.setattr(_compiled_flows, "_GROUP_ENTRIES", entries)
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        y = flow_attention(*inputs, kv_mask=mask, q_weight=weight, method="fused")
        with torch.no_grad():
            assert gap(flow_attention(*inputs, kv_mask=mask, q_weight=weight), y) <= 1e-14
        outputs.append(y.detach())
        grads.append(torch.autograd.grad((y * y.detach().cos()).sum(), inputs))
    for y, found in zip(outputs, grads, strict=True):
        assert gap(y, outputs[0]) <= 1e-14
        assert all(gap(a, b) <= 1e-13 for a, b in zip(found, grads[0], strict=True))


def test_heads_that_lie_apart_in_memory() -> None:
    q, k, v = heads(9)
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert not apart[0].is_contiguous()
    assert gap(flow_attention(*apart), flow_attention(q, k, v)) <= 1e-14


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_is_computed_in_single(dtype: torch.dtype, error: float, causal: bool) -> None:
    q, k, v = heads(300, dtype=dtype)
    y = flow_attention(q, k, v, is_causal=causal)
    assert y.dtype == dtype
    exact = flow_attention(q.double(), k.double(), v.double(), is_causal=causal)
    assert gap(y.double(), exact) <= error * float(exact.abs().max())
    with torch.autocast("cpu", torch.bfloat16):
        single = flow_attention(q.float(), k.float(), v.float(), is_causal=causal)
    assert gap(single.double(), exact) <= 1e-5


def test_an_item_that_is_not_finite_stays_alone() -> None:
    q, k, v = heads(6)
    spoiled = k.clone()
    spoiled[0, 0, 2] = float("nan")
    for causal in (False, True):
        y, good = flow_attention(q, spoiled, v, is_causal=causal), flow_attention(q, k, v, is_causal=causal)
        assert gap(y[1], good[1]) <= 1e-14
        assert bool(y[0, 0].isnan().any())


def test_clamp_flattens_what_is_wanted_more_than_average() -> None:
    q, k, v = heads(50, batch=1, n_heads=1, d=16)
    _, paper = flow_attention(q, k, v, **FLOW_PRESETS["paper"], return_flows=True)
    _, core = flow_attention(q, k, v, **FLOW_PRESETS["core"], return_flows=True)
    above = paper.conserved_outgoing > 1
    assert 10 < int(above.sum()) < 40
    assert float(core.competition[above].std()) <= 1e-12
    assert float(paper.competition[above].std()) > 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": torch.zeros(2, 3, 7, 5)}, "q has shape"),
        ({"v": torch.zeros(2, 3, 6, 5)}, "k has shape"),
        ({"q": torch.zeros(2, 4, 7, 4)}, "q has shape"),
        ({"q": torch.zeros(2, 3, 0, 4)}, "at least one token"),
        ({"q": torch.zeros(2, 3, 4)}, "q"),
        ({"v": torch.zeros(2, 3, 7, 5, dtype=torch.float64)}, "one dtype"),
        ({"feature_map": "tanh"}, "unknown feature_map 'tanh': there are sigmoid"),
        ({"method": "fast"}, "unknown method"),
        ({"kv_mask": torch.ones(2, 6, dtype=torch.bool)}, "kv_mask"),
        ({"kv_weight": -torch.ones(2, 7)}, "kv_weight holds -1"),
        ({"is_causal": True, "k": torch.zeros(2, 3, 8, 4), "v": torch.zeros(2, 3, 8, 5)}, "initial_state"),
        ({"is_causal": True, "kv_weight": torch.ones(2, 7)}, "kv_weight is not for is_causal"),
        ({"is_causal": True, "q_mask": torch.ones(2, 7).bool(), "kv_mask": torch.zeros(2, 7).bool()}, "kv_mask differ"),
        ({"check": True, "q": torch.full((2, 3, 7, 4), float("nan"))}, "q holds a NaN"),
        ({"check": True, "feature_map": torch.sin}, "feature_map gives -"),
        ({"method": "fused", "feature_map": torch.exp}, "method='fused'"),
    ],
)  # fmt: skip
def test_bad_input(change: dict[str, Tensor], words: str) -> None:
    q, k, v = heads(7, dtype=torch.float32)
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(flow_attention)(**{"q": q, "k": k, "v": v, **change})


def test_a_mask_of_numbers_is_refused() -> None:
    q, k, v = heads(4)
    with pytest.raises(TypeError, match="kv_mask is torch"):
        inspect.unwrap(flow_attention)(q, k, v, kv_mask=torch.ones(2, 4))


def test_a_diffusion_transformer_takes_it(generator: torch.Generator) -> None:
    transformer = pytest.importorskip("anabranch.generative.transformer")
    torch.manual_seed(0)
    net = transformer.DiT(8, 1, 32, 1, 2, 2, attention=flow_attention)
    x = torch.randn(2, 1, 8, 8, generator=generator)
    _, tangent = torch.func.jvp(lambda y: net(y, torch.tensor([0.2, 0.7])), (x,), (torch.ones_like(x),))
    assert bool(torch.isfinite(tangent).all())
