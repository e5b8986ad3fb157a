"""Softmax, linear, Performer, cosFormer and local attention against their formulas, written out with explicit matrices."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from anabranch.attention import (
    ATTENTIONS,
    cosformer_attention,
    kernel_attention,
    linear_attention,
    local_attention,
    performer_attention,
    performer_projection,
    softmax_attention,
)

from .samples import gap, heads, some


def call(name: str, q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    if name == "performer":
        options["projection"] = performer_projection(q.shape[-1], 16, generator=torch.Generator().manual_seed(0))
    if name == "local":
        options["window"] = 5
    return ATTENTIONS[name](q, k, v, **options)


def normalized(weights: Tensor, v: Tensor, causal: bool, eps: float = 1e-6) -> Tensor:
    weights = weights.tril() if causal else weights
    return weights @ v / (weights.sum(-1, keepdim=True) + eps)


@pytest.mark.parametrize("name", list(ATTENTIONS))
@pytest.mark.parametrize("causal", [False, True])
def test_masked_tokens_are_as_if_deleted(name: str, causal: bool) -> None:
    q, k, v = heads(17)
    mask = some(2, 17)
    y = call(name, q, k, v, is_causal=causal, q_mask=mask, kv_mask=mask)
    for b in range(2):
        alone = call(name, *(x[b : b + 1, :, mask[b]] for x in (q, k, v)), is_causal=causal)
        assert gap(y[b, :, mask[b]], alone[0]) <= 1e-10
        assert float(y[b, :, ~mask[b]].abs().sum()) == 0


@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_causal_forms_look_only_back(name: str) -> None:
    inputs = [x.requires_grad_() for x in heads(20)]
    y = call(name, *inputs, is_causal=True)
    for grad in torch.autograd.grad(y[:, :, 9].sum(), inputs):
        assert float(grad[:, :, 10:].abs().max()) == 0
        assert float(grad[:, :, 9].abs().max()) > 0


@pytest.mark.parametrize("name", list(ATTENTIONS))
@pytest.mark.parametrize("causal", [False, True])
def test_a_row_without_real_tokens_is_zero(name: str, causal: bool) -> None:
    q, k, v = heads(6)
    mask = torch.tensor([[False] * 6, [True] * 6])
    y = call(name, q, k, v, is_causal=causal, q_mask=mask, kv_mask=mask)
    assert float(y[0].abs().max()) == 0
    assert gap(y[1:], call(name, q[1:], k[1:], v[1:], is_causal=causal)) <= 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_softmax(causal: bool) -> None:
    q, k, v = heads(9)
    scores = q @ k.mT / math.sqrt(4)
    scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf) if causal else scores
    assert gap(softmax_attention(q, k, v, is_causal=causal), scores.softmax(-1) @ v) <= 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_linear(causal: bool) -> None:
    q, k, v = heads(150)
    Q, K = (torch.nn.functional.elu(x) + 1 for x in (q, k))
    assert gap(linear_attention(q, k, v, is_causal=causal), normalized(Q @ K.mT, v, causal)) <= 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_performer_is_its_formula(causal: bool, generator: torch.Generator) -> None:
    q, k, v = heads(30)
    rows = performer_projection(4, 12, generator=generator).double()
    y = performer_attention(q, k, v, projection=rows, is_causal=causal, eps=0.0)

    def features(x: Tensor) -> Tensor:
        x = x / 4**0.25
        return torch.exp(x @ rows.mT - x.square().sum(-1, keepdim=True) / 2)

    assert gap(y, normalized(features(q) @ features(k).mT, v, causal, 0.0)) <= 1e-10


def test_performer_estimates_softmax(generator: torch.Generator) -> None:
    q, k, v = heads(20, d=8)
    errors = []
    for count in (64, 4096):
        rows = performer_projection(8, count, generator=generator).double()
        y = performer_attention(q / 2, k / 2, v, projection=rows)
        errors.append(float((y - softmax_attention(q / 2, k / 2, v)).abs().mean()))
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 3


def test_rows_of_a_projection_are_orthogonal_in_blocks(generator: torch.Generator) -> None:
    rows = performer_projection(6, 15, generator=generator)
    for block in rows.split(6):
        products = block @ block.mT
        assert float((products - products.diagonal().diag()).abs().max()) <= 1e-5
    assert float(performer_projection(6, 6000, generator=generator).square().sum(1).mean()) == pytest.approx(
        6, rel=0.05
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("horizon", [None, 40])
def test_cosformer(causal: bool, horizon: int | None) -> None:
    q, k, v = heads(25)
    place = torch.arange(25.0, dtype=torch.float64)
    weights = torch.relu(q) @ torch.relu(k).mT
    weights = weights * torch.cos(math.pi / 2 * (place[:, None] - place) / (horizon or 25))
    y = cosformer_attention(q, k, v, is_causal=causal, horizon=horizon)
    assert gap(y, normalized(weights, v, causal)) <= 1e-10


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "window"), [(20, 5), (20, 1), (7, 30), (21, 7)])
def test_local(causal: bool, n: int, window: int) -> None:
    q, k, v = heads(n)
    place = torch.arange(n)
    distance = place[:, None] - place
    allowed = (distance.abs() < window) & ((distance >= 0) | torch.tensor(not causal))
    scores = (q @ k.mT / 2).masked_fill(~allowed, -torch.inf)
    assert gap(local_attention(q, k, v, is_causal=causal, window=window), scores.softmax(-1) @ v) <= 1e-12


def test_gradients_of_the_causal_scan() -> None:
    inputs = [x.requires_grad_() for x in heads(70, batch=1, n_heads=1, d=2, e=2)]
    weight = torch.linspace(-1, 1, 140, dtype=torch.float64).reshape(1, 1, 70, 2)
    Q, K, v = (torch.nn.functional.softplus(x) for x in inputs)
    found = torch.autograd.grad((kernel_attention(Q, K, v, is_causal=True) * weight).sum(), inputs, retain_graph=True)
    expected = torch.autograd.grad((normalized(Q @ K.mT, v, True) * weight).sum(), inputs)
    assert all(gap(a, b) <= 1e-12 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (cosformer_attention, {"horizon": 4}, "horizon=4"),
        (local_attention, {"window": 0}, "window must be >= 1"),
        (performer_attention, {"projection": torch.zeros(3, 3)}, r"expected \[features, 4\]"),
        (softmax_attention, {"kv_mask": torch.ones(2, 4, dtype=torch.bool)}, "kv_mask has shape"),
    ],
)
def test_bad_input(function: object, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(function)(*heads(5), **options)  # type: ignore[arg-type]
