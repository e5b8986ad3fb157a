"""What others run: the authors' TarFlow checkpoints and sampler, and the released GS-Jacobi, as baselines.

Both samplers are written from the public code (apple/ml-tarflow and encoreus/GS-Jacobi_for_TarFlow) as they are: module calls, a
cache grown by concatenation; iterates clamped, one stop for the whole batch.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from anabranch.generative.autoregressive import AutoregressiveMap, entered
from anabranch.generative.tarflow import TarFlow


def load_reference(path: str | Path, *, side: int, image_channels: int, head_size: int) -> TarFlow:
    """:meth:`TarFlow.from_reference`."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds {type(state).__name__}: expected a dictionary of tensors, a model's state")
    state = {name: value for name, value in state.items() if not name.endswith("attn_mask")}
    needed = [
        "blocks.0.pos_embed", "blocks.0.proj_in.weight", "blocks.0.attn_blocks.0.attention.norm.weight",
    ]  # fmt: skip
    absent = [name for name in needed if name not in state]
    if absent:
        raise ValueError(f"{path} lacks {', '.join(absent)}: expected a TarFlow of the authors' code")
    variance = state.pop("var", None)
    if variance is not None and not bool((variance == 1).all()):
        raise ValueError(
            f"{path} has a prior variance other than 1: it is a volume-preserving model, which is not read"
        )
    tokens, width = state["blocks.0.pos_embed"].shape
    features = state["blocks.0.proj_in.weight"].shape[1]
    patch = round((features / image_channels) ** 0.5)
    if image_channels * patch**2 != features or (side // patch) ** 2 != tokens or side % patch:
        raise ValueError(
            f"side={side}, image_channels={image_channels}: the checkpoint has {tokens} tokens of {features} numbers"
        )
    classes = state.get("blocks.0.class_embed")
    model = TarFlow(
        side,
        image_channels,
        patch,
        width,
        blocks=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        layers=1 + max(int(name.split(".")[3]) for name in state if name.startswith("blocks.0.attn_blocks.")),
        head_size=head_size,
        classes=None if classes is None else len(classes),
    )
    own = model.state_dict()
    missing, left_over = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)}" for name in own if name in state and state[name].shape != own[name].shape
    ]
    if missing or left_over or shapes:
        raise ValueError(f"{path}: missing {missing}, left over {left_over}, of another shape {shapes}")
    model.load_state_dict(state)
    return model.eval()


@torch.inference_mode()
def reference_sequential(
    flow: TarFlow,
    z: Float[Tensor, "batch tokens features"],
    label: Int[Tensor, " batch"] | None = None,
    *,
    guidance: float = 0.0,
    temperature: float = 1.0,
    annealed: bool = True,
) -> Float[Tensor, "batch tokens features"]:
    """The authors' sampler: every block token by token through its modules, keys and values concatenated, guidance by a
    second pass. The result is that of :func:`solve_sequential` on :meth:`TarFlow.inverse_maps`, up to rounding."""
    for block in reversed(flow.blocks):
        any_block: Any = block
        x = (z.flip(1) if any_block.backwards else z).clone()
        positions = any_block.pos_embed.flip(0) if any_block.backwards else any_block.pos_embed
        caches: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(2 * len(any_block.attn_blocks))]
        last = x.shape[1] - 1
        for i in range(last):
            s, m = _reference_token(any_block, x[:, i : i + 1], positions[i : i + 1], label, caches[::2], 1.0)
            if guidance:
                without = _reference_token(
                    any_block, x[:, i : i + 1], positions[i : i + 1], None, caches[1::2], temperature
                )
                weight = guidance * (i + 1) / last if annealed else guidance
                s, m = s + weight * (s - without[0]), m + weight * (m - without[1])
            x[:, i + 1] = x[:, i + 1] * s[:, 0].exp() + m[:, 0]
        z = x.flip(1) if any_block.backwards else x
    return z


def _reference_token(
    block: Any,
    x: Tensor,
    position: Tensor,
    label: Tensor | None,
    caches: list[list[tuple[Tensor, Tensor]]],
    temperature: float,
) -> tuple[Tensor, Tensor]:
    h, condition = block.proj_in(x) + position, block.condition(label)
    h = h if condition is None else h + condition
    for layer, cache in zip(block.attn_blocks, caches, strict=True):
        attention = layer.attention
        qkv = attention.qkv(attention.norm(h))
        q, k, v = qkv.view(*h.shape[:2], 3, -1, attention.head_size).permute(2, 0, 3, 1, 4)
        if cache:
            k, v = torch.cat([cache[0][0], k], 2), torch.cat([cache[0][1], v], 2)
        cache[:] = [(k, v)]
        scale = attention.head_size**-0.5 / temperature
        y = functional.scaled_dot_product_attention(q, k, v, scale=scale)
        h = h + attention.proj(y.transpose(1, 2).reshape(h.shape))
        h = h + layer.mlp(h)
    s, m = block.proj_out(h).chunk(2, 2)
    return s, m


@torch.inference_mode()
def released_gs_jacobi(
    one_map: AutoregressiveMap,
    z: Tensor,
    *,
    modules: int,
    max_sweeps: int,
    tol: float = 1e-6,
    clamp: float | None = 3.0,
) -> tuple[Tensor, int]:
    """The released solver on one map (2505.12849): fixed modules, iterates clamped to [-clamp, clamp], and one stop
    for the batch once ``|x_new - x|_F <= tol B D``. Gives x and the sweeps made.

    Its answer differs from the sequential one wherever a token lies outside the clamp. The special case of the release for
    the first generated block, whose inner loop uses a wrong index, is not repeated.
    """
    tokens = entered(one_map, z)
    x, cache, last, sweeps = tokens.clone(), one_map.new_cache(tokens), one_map.tokens - 1, 0
    x[:, 0] = one_map.first(tokens[:, 0])
    modules = min(modules, last)
    for g in range(modules):
        left, right = last * g // modules, last * (g + 1) // modules
        for _ in range(max_sweeps):
            new = one_map.advance(x[:, left:right], tokens[:, left + 1 : right + 1], left, cache)
            new = new if clamp is None else new.clamp_(-clamp, clamp)
            change = torch.linalg.vector_norm(new - x[:, left + 1 : right + 1])
            x[:, left + 1 : right + 1] = new
            sweeps += 1
            if float(change) <= tol * len(x) * one_map.features:
                break
    return one_map.leave(x), sweeps
