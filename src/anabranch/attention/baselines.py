"""Attention that Flow-Attention is compared with, all of one shape: ``f(q, k, v, *, is_causal, q_mask, kv_mask) -> y``.

``q [B, heads, n, d]``, ``k [B, heads, m, d]``, ``v [B, heads, m, e]``; masks are bool, True for a real token; masked tokens are
as if deleted, and outputs of masked queries are 0.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anabranch.attention._causal_linear import causal_linear
from anabranch.attention._checks import check_heads, check_mask, compute_dtype, full_precision, one_mask
from anabranch.attention._flow_types import Options
from anabranch.attention._fused_flow import attend_heads
from anabranch.attention.features import split_map

Queries = Float[Tensor, "batch heads n d"]
Keys = Float[Tensor, "batch heads m d"]
Values = Float[Tensor, "batch heads m e"]
QueryMask = Bool[Tensor, "batch n"] | None
KeyMask = Bool[Tensor, "batch m"] | None


def _checked(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool, q_mask: Tensor | None, kv_mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    check_heads(q, k, v, is_causal=is_causal)
    check_mask("q_mask", q_mask, q.shape[0], q.shape[2])
    check_mask("kv_mask", kv_mask, k.shape[0], k.shape[2])
    return (one_mask(q_mask, kv_mask),) * 2 if is_causal else (q_mask, kv_mask)


def _silenced(y: Tensor, q_mask: Tensor | None) -> Tensor:
    return y if q_mask is None else y.masked_fill(~q_mask[:, None, :, None], 0.0)


def softmax_attention(
    q: Queries, k: Keys, v: Values, *, is_causal: bool = False, q_mask: QueryMask = None, kv_mask: KeyMask = None
) -> Tensor:
    """Softmax attention by torch's fused kernel: O(n m d) time, O(n + m) memory.

    Raises:
        ValueError: shapes or masks that disagree.
    """
    q_mask, kv_mask = _checked(q, k, v, is_causal, q_mask, kv_mask)
    if kv_mask is None:
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        return _silenced(y, q_mask)
    allowed = kv_mask[:, None, None, :]
    if is_causal:
        allowed = allowed & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    # A query that may look at nothing would give NaN: it looks at all and is silenced.
    nothing = ~allowed.any(-1, keepdim=True)
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed | nothing)
    return _silenced(y.masked_fill(nothing, 0.0), q_mask)


def kernel_attention(
    Q: Float[Tensor, "batch heads n r"],
    K: Float[Tensor, "batch heads m r"],
    v: Values,
    *,
    is_causal: bool = False,
    q_mask: QueryMask = None,
    kv_mask: KeyMask = None,
    eps: float = 1e-6,
) -> Tensor:
    """Attention with weights ``Q_i . K_j / (sum of those + eps)`` of non-negative features: O((n + m) r e) time.

    Katharopoulos et al., 2006.16236; the causal form in O(n (r + e)) memory, its gradients too.

    Raises:
        ValueError: shapes or masks that disagree.
    """
    q_mask, kv_mask = _checked(Q, K, v, is_causal, q_mask, kv_mask)
    if is_causal:
        return causal_linear(Q, K, v, eps, "identity", kv_mask)
    return _normalized(Q, K, v, "identity", q_mask, kv_mask, eps)


def _normalized(
    q: Tensor, k: Tensor, v: Tensor, feature_map: str, q_mask: Tensor | None, kv_mask: Tensor | None, eps: float
) -> Tensor:
    """What is left of Flow-Attention without competition and allocation."""
    dtype = compute_dtype(q)
    u, w = (None if mask is None else mask.to(dtype) for mask in (q_mask, kv_mask))
    options = Options(*split_map(feature_map), None, 0.0, False, False, eps)
    with full_precision(q):
        return attend_heads(q, k, v, u, w, options, dtype)


def linear_attention(
    q: Queries, k: Keys, v: Values, *, is_causal: bool = False, q_mask: QueryMask = None, kv_mask: KeyMask = None
) -> Tensor:
    """Linear attention with features elu(x) + 1 (Katharopoulos et al., 2006.16236, section 3.2.1).

    Raises:
        ValueError: shapes or masks that disagree.
    """
    q_mask, kv_mask = _checked(q, k, v, is_causal, q_mask, kv_mask)
    if is_causal:
        return causal_linear(q, k, v, 1e-6, "elu", kv_mask)
    return _normalized(q, k, v, "elu", q_mask, kv_mask, 1e-6)


def performer_projection(
    d: int, features: int, *, generator: torch.Generator | None, device: torch.device | str | None = None
) -> Float[Tensor, "features d"]:
    """Rows drawn orthogonal in blocks of d, each of the length of a Gaussian vector (Choromanski et al., 2009.14794, 2.4)."""
    blocks = []
    for _ in range(math.ceil(features / d)):
        square, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, device=device))
        blocks.append(square.mT)
    lengths = torch.randn(features, d, generator=generator, device=device).norm(dim=1)
    return torch.cat(blocks)[:features] * lengths[:, None]


def performer_attention(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    projection: Float[Tensor, "features d"],
    is_causal: bool = False,
    q_mask: QueryMask = None,
    kv_mask: KeyMask = None,
    eps: float = 1e-6,
) -> Tensor:
    """FAVOR+: positive random features whose products estimate exp(q . k / sqrt(d)) (Choromanski et al., 2009.14794, lemma 1).

    Each query's largest exponent is taken out, which cancels in the normalized weights, and so is each head's of the keys,
    but not in the causal form, where it would tell of later keys through ``eps``.

    Raises:
        ValueError: shapes that disagree.
    """
    if projection.ndim != 2 or projection.shape[1] != q.shape[-1]:
        raise ValueError(f"projection has shape {tuple(projection.shape)}: expected [features, {q.shape[-1]}]")
    dtype = compute_dtype(q)
    rows = projection.to(q.device, dtype)

    def features(x: Tensor, over: tuple[int, ...], mask: Tensor | None) -> Tensor:
        x = x.to(dtype) * x.shape[-1] ** -0.25
        exponent = x @ rows.mT - x.square().sum(-1, keepdim=True) / 2
        if mask is not None:
            exponent = exponent.masked_fill(~mask[:, None, :, None], torch.finfo(dtype).min)
        return torch.exp(exponent - exponent.amax(over, keepdim=True).detach() if over else exponent) + eps

    Q, K = features(q, (-1,), None), features(k, () if is_causal else (-1, -2), kv_mask)
    tiny = torch.finfo(dtype).tiny  # the features have their eps
    y = kernel_attention(Q, K, v.to(dtype), is_causal=is_causal, q_mask=q_mask, kv_mask=kv_mask, eps=tiny)
    return y.to(q.dtype)


def cosformer_attention(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    is_causal: bool = False,
    q_mask: QueryMask = None,
    kv_mask: KeyMask = None,
    horizon: int | None = None,
) -> Tensor:
    """cosFormer: weights ``relu(q_i) . relu(k_j) cos(pi (i - j) / (2 M))`` (Qin et al., 2202.08791, equation 10).

    Args:
        horizon: M, at least the length; default the longer of n and m, of the batch item's real tokens where masked.

    Raises:
        ValueError: a horizon shorter than the sequence.
    """
    q_mask, kv_mask = _checked(q, k, v, is_causal, q_mask, kv_mask)
    longest = max(q.shape[2], k.shape[2])
    if horizon is not None and horizon < longest:
        raise ValueError(f"horizon={horizon}: expected at least the length, {longest}")

    def place(x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return torch.arange(1, x.shape[2] + 1, device=x.device).expand(x.shape[0], -1)
        return mask.cumsum(-1)

    i, j = place(q, q_mask), place(k, kv_mask)
    reach = torch.maximum(i[:, -1:], j[:, -1:]).clamp(min=1) if horizon is None else horizon
    angles = [(math.pi / 2 * x.to(compute_dtype(q)) / reach)[:, None, :, None] for x in (i, j)]
    Q, K = (
        torch.cat([torch.relu(x) * angle.cos().to(x.dtype), torch.relu(x) * angle.sin().to(x.dtype)], -1)
        for x, angle in zip((q, k), angles, strict=True)
    )
    return kernel_attention(Q, K, v, is_causal=is_causal, q_mask=q_mask, kv_mask=kv_mask)


def local_attention(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    is_causal: bool = False,
    q_mask: QueryMask = None,
    kv_mask: KeyMask = None,
    window: int = 128,
) -> Tensor:
    """Softmax attention to the tokens at most ``window - 1`` places away (before, if causal): O(n window d) time.

    Raises:
        ValueError: n and m differ, or window < 1.
    """
    n = q.shape[2]
    if window < 1:
        raise ValueError(f"window must be >= 1, got {window}")
    if k.shape[2] != n:
        raise ValueError(f"q has {n} tokens and k {k.shape[2]}: local attention needs as many")
    mask, _ = _checked(q, k, v, True, q_mask, kv_mask)
    real = torch.ones(q.shape[0], n, dtype=torch.bool, device=q.device) if mask is None else mask
    place = torch.arange(n, device=q.device).expand(q.shape[0], -1)
    if mask is not None:  # a deleted token takes no place in the window: the real ones move to the front
        order = torch.argsort(~real, dim=-1, stable=True)
        rows = order[:, None, :, None]
        q, k, v = (x.gather(2, rows.expand(-1, x.shape[1], -1, x.shape[-1])) for x in (q, k, v))
        real = real.gather(1, order)
    size = min(window, n)
    blocks = math.ceil(n / size)
    pad = blocks * size - n
    q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, pad)) for x in (q, k, v))
    real = torch.nn.functional.pad(real, (0, pad))
    place = torch.nn.functional.pad(place, (0, pad))
    sides = (1, 0) if is_causal else (1, 1)

    def near(x: Tensor, dim: int) -> Tensor:
        """Each block's own tokens with those of its neighbours."""
        x = x.unflatten(dim, (blocks, size))
        zeros = torch.zeros_like(x.narrow(dim, 0, 1))
        padded = torch.cat([zeros] * sides[0] + [x] + [zeros] * sides[1], dim)
        return torch.cat([padded.narrow(dim, s, blocks) for s in range(sum(sides) + 1)], dim + 1)

    mine, theirs = place.unflatten(1, (blocks, size)), near(place, 1)
    distance = mine.unsqueeze(-1) - theirs.unsqueeze(-2)
    allowed = near(real, 1).unsqueeze(-2) & (distance.abs() < window)
    if is_causal:
        allowed = allowed & (distance >= 0)
    nothing = ~allowed.any(-1, keepdim=True)
    y = torch.nn.functional.scaled_dot_product_attention(
        q.unflatten(2, (blocks, size)), near(k, 2), near(v, 2), attn_mask=(allowed | nothing).unsqueeze(1)
    )
    y = y.flatten(2, 3)[:, :, :n]
    return y if mask is None else _silenced(torch.zeros_like(y).scatter(2, rows.expand_as(y), y), mask)
