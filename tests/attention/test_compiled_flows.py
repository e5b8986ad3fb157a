"""The compiled kernels, the formulas in torch and autograd through those give the same outputs and gradients."""

import multiprocessing
from itertools import product

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

import anabranch.attention as att
from anabranch.attention import _compiled_flows, _fused_flow
from anabranch.attention._compiled_flows import Weighed, attend_compiled
from anabranch.attention._conservation import conserve
from anabranch.attention._flow_types import Options
from anabranch.attention._kernels_exp import exp
from anabranch.attention.features import split_map

from .samples import gap, heads, some

SHAPES = [(1, 1, 1, 1, 1), (3, 7, 5, 3, 4), (2, 65, 130, 64, 48)]
WAYS = list(product((True, False), (True, False), (None, (-1.0, 1.0)), ("none", "some", "weights", "all")))


def problem(
    shape: tuple[int, int, int, int, int], masking: str, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], list[Tensor | None]]:
    """q, k, v, gradient, one head to a batch; weights of sinks and sources."""
    batch, n, m, d, e = shape
    draw = torch.Generator().manual_seed(n)
    sizes = [(batch, 1, n, d), (batch, 1, m, d), (batch, 1, m, e), (batch, 1, n, e)]
    tensors = [torch.randn(size, generator=draw, dtype=torch.float64).to(dtype) for size in sizes]
    if masking == "none":
        return tensors, [None, None]
    sides = [torch.rand(batch, size, generator=draw, dtype=torch.float64).to(dtype) for size in (n, m)]
    if masking == "some":
        sides = [(side > 0.3).to(dtype) for side in sides]
    if masking == "all":
        sides[1] = torch.zeros_like(sides[1])
    return tensors, list(sides)


def options_of(
    competition: bool, allocation: bool, clamp: tuple[float, float] | None, name: str = "sigmoid"
) -> Options:
    return Options(*split_map(name), clamp, 1e-6, competition, allocation, 0.0)


@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_exponential(number: type) -> None:
    @njit(error_model="numpy")
    def of(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        for i in range(x.size):
            y[i] = exp(x[i])
        return y

    least, greatest = (-87.3, 88.3) if number is np.float32 else (-708.0, 709.0)
    x = np.concatenate([np.linspace(least, greatest, 40_001), np.linspace(-1, 1, 40_001)]).astype(number)
    exact = np.exp(x.astype(np.longdouble))
    assert float(np.abs(of(x) / exact - 1).max()) <= 2 * np.finfo(number).eps
    ends = of(np.array([0, -np.inf, np.inf, np.nan], number))
    assert ends[0] == 1
    assert 0 <= ends[1] <= np.finfo(number).smallest_normal * 2
    assert ends[2] >= np.finfo(number).max / 3
    assert np.isnan(ends[3])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("competition", "allocation", "clamp", "masking"), WAYS)
def test_flows_are_those_of_torch(shape, competition, allocation, clamp, masking) -> None:
    (q, k, v, _), (u, w) = problem(shape, masking)
    options = options_of(competition, allocation, clamp)
    told = conserve(*(torch.sigmoid(x)[:, 0] for x in (q, k)), u, w, options)
    kept: list[Tensor] = []
    attend_compiled(q, k, v, u, w, options, torch.float64, kept)
    made = Weighed(*kept[:-1])
    incoming, conserved_in, a, _ = made.sinks.unbind(1)
    outgoing, conserved_out, share = made.sources.unbind(1)
    real = torch.ones(q.shape[0], q.shape[2]) if u is None else u
    pairs = [
        (incoming, told.incoming),
        (a, told.allocation),
        (share, told.competition if w is None else told.competition * w),
    ]
    if allocation:
        pairs += [(conserved_in, told.conserved_incoming)]
    if w is None:
        pairs += [(outgoing, told.outgoing)] * allocation + [(conserved_out, told.conserved_outgoing)] * competition
    for found, other in pairs:
        seen = real > 0 if found.shape == real.shape else slice(None)
        torch.testing.assert_close(found[seen], other[seen], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("competition", "allocation", "clamp", "masking"), WAYS)
def test_outputs_and_gradients_are_those_of_torch(shape, competition, allocation, clamp, masking) -> None:
    """By the kernels, by the formulas in torch, and by autograd through the plain form."""
    (q, k, v, grad), (u, w) = problem(shape, masking)
    options = options_of(competition, allocation, clamp)
    found = []
    for form in (_fused_flow.plain, _fused_flow.FusedFlow.apply, _compiled_flows.CompiledFlow.apply):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        y = form(*leaves, u, w, options, torch.float64)
        found.append([y.detach(), *torch.autograd.grad(y, leaves, grad)])
    found.append([attend_compiled(q, k, v, u, w, options, torch.float64)])
    for other in found[1:]:
        for one, wanted in zip(other, found[0], strict=False):
            torch.testing.assert_close(one, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["sigmoid", "relu", "elu", "identity"])
@pytest.mark.parametrize("causal", [False, True])
def test_single_precision_and_every_feature_map(name: str, causal: bool) -> None:
    q, k, v = heads(65, dtype=torch.float32, d=64, e=48)
    grad = heads(65, e=48, seed=3, dtype=torch.float32)[2]
    if name == "identity":
        q, k = q.exp(), k.exp()
    found = []
    for method in ("fused", "plain"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        y = att.flow_attention(*leaves, feature_map=name, method=method, is_causal=causal)
        found.append([y.detach(), *torch.autograd.grad(y, leaves, grad)])
    for one, other in zip(*found, strict=True):
        assert gap(one, other) <= 2e-5 * float(other.abs().max())


@pytest.mark.parametrize("seed", range(4))
def test_causal_gradients_of_relu_keep_their_digits_in_single_precision(seed: int) -> None:
    """Through autograd these are off by factors: flows near 0 make terms that cancel."""
    q, k, v = heads(150, d=8, seed=seed)
    grad, mask = heads(150, seed=seed + 10)[2], some(2, 150, seed=seed)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        y = att.flow_attention_causal(*leaves, feature_map="relu", mask=mask)
        found.append([x.double() for x in torch.autograd.grad(y, leaves, grad.to(dtype))])
    for single, double in zip(*found, strict=True):
        assert gap(single, double) <= 2e-4 * float(double.abs().max())


def test_a_feature_map_of_ones_own() -> None:
    inputs = heads(9)
    found = [att.flow_attention(*inputs, feature_map=torch.nn.functional.softplus, method=m) for m in ("auto", "plain")]
    assert gap(*found) <= 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_the_arguments_are_left_alone(causal: bool) -> None:
    for name in ("sigmoid", "identity"):
        inputs = [x.exp() for x in heads(9)]
        kept = [x.clone() for x in inputs]
        leaves = [x.requires_grad_() for x in inputs]
        y = att.flow_attention(*leaves, feature_map=name, is_causal=causal)
        once = torch.autograd.grad(y.square().sum(), leaves, retain_graph=True)
        again = torch.autograd.grad(y.square().sum(), leaves)
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
        with torch.no_grad():
            att.flow_attention(*leaves, feature_map=name, is_causal=causal)
        assert all(torch.equal(x.detach(), y) for x, y in zip(leaves, kept, strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_changing_what_the_gradient_needs_is_an_error(causal: bool) -> None:
    leaves = [x.requires_grad_() for x in heads(9)]
    own = [2 * x for x in leaves]
    y = att.flow_attention(*own, feature_map="relu", is_causal=causal)
    own[0].mul_(-1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("causal", [False, True])
def test_heads_that_do_not_lie_side_by_side(causal: bool) -> None:
    """q, k and v as a projection splits them, ``[B, n, H, d]`` seen as ``[B, H, n, d]``."""
    draw = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, 9, 3, 8, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(3)]
    found = []
    for method in ("fused", "plain"):
        y = att.flow_attention(*(x.transpose(1, 2) for x in leaves), method=method, is_causal=causal)
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_threads_change_nothing(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compiled_flows, "_THREAD_ENTRIES", 1)
    q, k, v = heads(33)
    mask, found = some(2, 33), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        y = att.flow_attention(*leaves, kv_mask=mask, q_mask=mask, is_causal=causal)
        with torch.no_grad():
            free = att.flow_attention(q, k, v, kv_mask=mask, q_mask=mask, is_causal=causal)
        found.append([y.detach(), free, *torch.autograd.grad(y.square().sum(), leaves)])
    torch.set_num_threads(1)
    assert all(gap(a, b) <= 1e-14 for a, b in zip(*found, strict=True))


def count_heads(heads: np.ndarray, counts: np.ndarray) -> None:
    counts += len(heads)


def counted() -> list[int]:
    """How many heads the thread of each head was given."""
    counts = np.zeros(5, int)
    _compiled_flows.over_heads(count_heads, [np.zeros((5, 3)), counts], ())
    return counts.tolist()


def _counted_in_a_fork(queue: "multiprocessing.Queue[list[int]]") -> None:
    queue.put(counted())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compiled_flows, "_THREAD_ENTRIES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert counted() == [2, 2, 3, 3, 3]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_counted_in_a_fork, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == [2, 2, 3, 3, 3]
    process.join()


def test_bad_values_come_out_as_bad_values() -> None:
    (q, k, v, _), _ = problem((2, 7, 5, 3, 4), "none")
    k[1, 0, 2, 0] = torch.nan
    for causal in (False, True):
        y = att.flow_attention(q[:, :, :5], k, v, is_causal=causal)
        assert torch.isfinite(y[0]).all()
        assert torch.isnan(y[1, 0, 2:]).all()
