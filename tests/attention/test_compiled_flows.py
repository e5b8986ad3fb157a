"""The compiled kernels and the torch formulas they stand in for give the same flows and gradients."""

from itertools import product

import pytest
import torch
from torch import Tensor

import anabranch.attention as att
from anabranch.attention import _fused_flow
from anabranch.attention._compiled_flows import compiled_flows, is_compiled
from anabranch.attention._conservation import attend, conserve
from anabranch.attention._flow_types import Options
from anabranch.attention.features import split_map

SHAPES = [(1, 1, 1, 1, 1), (3, 7, 5, 3, 4), (2, 65, 130, 64, 48)]
WAYS = list(product((True, False), (True, False), (None, (-1.0, 1.0)), ("none", "some", "weights", "all")))


def problem(
    shape: tuple[int, int, int, int, int], masking: str, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], list[Tensor | None]]:
    """q, k, v, gradient; weights of sinks and sources."""
    heads, n, m, d, e = shape
    draw = torch.Generator().manual_seed(n)
    sizes = [(heads, n, d), (heads, m, d), (heads, m, e), (heads, n, e)]
    tensors = [torch.randn(size, generator=draw, dtype=torch.float64).to(dtype) for size in sizes]
    if masking == "none":
        return tensors, [None, None]
    sides = [torch.rand(heads, size, generator=draw, dtype=torch.float64).to(dtype) for size in (n, m)]
    if masking == "some":
        sides = [(side > 0.3).to(dtype) for side in sides]
    if masking == "all":
        sides[1] = torch.zeros_like(sides[1])
    return tensors, list(sides)


def options_of(
    competition: bool, allocation: bool, clamp: tuple[float, float] | None, name: str = "sigmoid"
) -> Options:
    return Options(*split_map(name), clamp, 1e-6, competition, allocation, 0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("competition", "allocation", "clamp", "masking"), WAYS)
def test_flows_are_those_of_torch(shape, competition, allocation, clamp, masking) -> None:
    (q, k, _, _), (u, w) = problem(shape, masking)
    options = options_of(competition, allocation, clamp)
    Q, K = torch.sigmoid(q), torch.sigmoid(k)
    told, found = (conserve(Q, K, u, w, options, compiled=compiled) for compiled in (False, True))
    torch.testing.assert_close(found.incoming, told.incoming, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.competition, told.competition, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.allocation, told.allocation, rtol=1e-12, atol=1e-14)
    if allocation:
        torch.testing.assert_close(found.conserved_incoming, told.conserved_incoming, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found.outgoing, told.outgoing, rtol=1e-12, atol=0)
    if competition:
        torch.testing.assert_close(found.conserved_outgoing, told.conserved_outgoing, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("competition", "allocation", "clamp", "masking"), WAYS)
def test_gradients_are_those_of_torch(shape, competition, allocation, clamp, masking, monkeypatch) -> None:
    """By the kernels, by the formulas in torch, and by autograd through the plain form."""
    (q, k, v, grad), (u, w) = problem(shape, masking)
    options = options_of(competition, allocation, clamp)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    wanted = torch.autograd.grad(attend(*leaves, u, w, options)[0], leaves, grad)
    for compiled in (True, False):
        monkeypatch.setattr(_fused_flow, "is_compiled", lambda _, compiled=compiled: compiled)
        with torch.no_grad():
            _, flows, values = attend(q, k, v, u, w, options, compiled=compiled)
            found = _fused_flow._backward(q, k, v, grad, u, w, flows, values, options, [None] * 3)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["sigmoid", "relu", "elu", "identity"])
def test_single_precision_and_every_feature_map(name: str) -> None:
    (q, k, v, grad), _ = problem((2, 65, 130, 64, 48), "none", torch.float32)
    if name == "identity":
        q, k = q.exp(), k.exp()
    found = []
    for method in ("fused", "plain"):
        leaves = [x.unsqueeze(0).clone().requires_grad_() for x in (q, k, v)]
        y = att.flow_attention(*leaves, feature_map=name, method=method)
        found.append([y.detach(), *torch.autograd.grad(y, leaves, grad.unsqueeze(0))])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= 2e-5 * float(other.abs().max())


def test_the_arguments_are_left_alone() -> None:
    tensors, (u, w) = problem((2, 7, 5, 3, 4), "weights")
    kept = [x.clone() for x in (*tensors, u, w)]
    leaves = [x.unsqueeze(0).requires_grad_() for x in tensors[:3]]
    att.flow_attention(*leaves, q_weight=u[:1], kv_weight=w[:1]).sum().backward()
    assert all(torch.equal(x.detach(), y) for x, y in zip((*tensors, u, w), kept, strict=True))


def test_heads_that_do_not_lie_side_by_side() -> None:
    """q, k and v as a projection splits them, ``[B, n, H, d]`` seen as ``[B, H, n, d]``."""
    draw = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, 9, 3, 8, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(3)]
    found = []
    for method in ("fused", "plain"):
        y = att.flow_attention(*(x.transpose(1, 2) for x in leaves), method=method)
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_bad_values_come_out_as_bad_values() -> None:
    (q, k, _, _), _ = problem((2, 7, 5, 3, 4), "none")
    K = torch.sigmoid(k)
    K[1, 2, 0] = torch.nan
    incoming = compiled_flows(torch.sigmoid(q), K, None, None, options_of(True, True, None))[0]
    assert torch.isfinite(incoming[0]).all()
    assert torch.isnan(incoming[1]).all()


def test_which_tensors_the_kernels_serve() -> None:
    assert is_compiled(torch.zeros(1))
    assert not is_compiled(torch.zeros(1, dtype=torch.bfloat16))
    assert not is_compiled(torch.zeros(1, device="meta"))
