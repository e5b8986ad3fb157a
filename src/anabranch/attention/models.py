"""Thin pre-norm stacks: an encoder that classifies sequences and a causal language model, with any attention."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anabranch.attention.layers import AttentionLayer
from anabranch.attention.registry import AttentionFunction


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, attention: Any, causal: bool, dropout: float, **rest: Any) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = AttentionLayer(width, heads, attention, causal=causal, dropout=dropout, **rest)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        normed = self.before(x)
        x = x + self.mix(normed, key_padding_mask=padding)[0]
        return x + self.feed(self.after(x))

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        mixed, state = self.mix.step(self.before(x), state)
        x = x + mixed
        return x + self.feed(self.after(x)), state


def _blocks(depth: int, *arguments: Any, **options: Any) -> Any:
    return nn.ModuleList(_Block(*arguments, **options) for _ in range(depth))


class FlowformerEncoder(nn.Module):
    """Classifies sequences of tokens or of vectors: learned positions, ``depth`` blocks, mean over real tokens, linear head.

    ``net(x, mask=None) -> logits [B, classes]`` for tokens ``[B, n]`` (``vocabulary``) or vectors ``[B, n, channels]``; ``mask``
    is True for a real token.

    Args:
        classes: number of classes.
        vocabulary, channels: exactly one of them.
        max_length: longest sequence.
        attention: a name in ``ATTENTIONS`` or a function of that shape.
        dropout: after the attention and in the feed-forward part.
        generator: of the performer's projections.
        options: of the attention function.

    Raises:
        ValueError: both or none of vocabulary and channels, a sequence longer than ``max_length``.
    """

    def __init__(
        self,
        classes: int,
        *,
        vocabulary: int | None = None,
        channels: int | None = None,
        max_length: int,
        width: int = 128,
        depth: int = 3,
        heads: int = 8,
        attention: str | AttentionFunction = "flow",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "classes": classes, "vocabulary": vocabulary, "channels": channels, "max_length": max_length, "width": width,
            "depth": depth, "heads": heads, "attention": attention, "dropout": dropout, "options": options,
        }  # fmt: skip
        if (vocabulary is None) == (channels is None):
            raise ValueError(f"vocabulary={vocabulary}, channels={channels}: expected one of them")
        self.max_length = max_length
        self.enter = nn.Embedding(vocabulary, width) if vocabulary is not None else nn.Linear(channels or 0, width)
        self.positions = nn.Parameter(0.02 * torch.randn(max_length, width))
        self.blocks = _blocks(depth, width, heads, attention, False, dropout, generator=generator, options=options)
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(
        self, x: Int[Tensor, "batch n"] | Float[Tensor, "batch n channels"], mask: Bool[Tensor, "batch n"] | None = None
    ) -> Float[Tensor, "batch classes"]:
        n = x.shape[1]
        if n > self.max_length:
            raise ValueError(f"a sequence of {n} tokens: expected at most max_length={self.max_length}")
        h = self.enter(x) + self.positions[:n]
        padding = None if mask is None else ~mask
        for block in self.blocks:
            h = block(h, padding)
        h = self.norm(h)
        if mask is None:
            return self.leave(h.mean(1))
        real = mask.unsqueeze(-1).to(h.dtype)
        return self.leave((h * real).sum(1) / real.sum(1).clamp(min=1))

    def save(self, folder: Path, **notes: Any) -> Path:
        """Write ``weights.safetensors`` and ``config.json`` with the arguments and ``notes`` (plain data).

        Raises:
            TypeError: an attention that is no name in ``ATTENTIONS``, or notes that JSON does not hold.
        """
        if not isinstance(self.config["attention"], str):
            raise TypeError("attention is a function: only a name in ATTENTIONS can be written down")
        text = json.dumps({"config": self.config, "notes": notes}, indent=1)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.contiguous() for name, value in self.state_dict().items()}, folder / "weights.safetensors"
        )
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: Path) -> "FlowformerEncoder":
        """The encoder that :meth:`save` wrote, in evaluation mode.

        Raises:
            FileNotFoundError: no such files. ValueError: arguments or weights that do not fit.
        """
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
        if config.get("options"):  # JSON has no tuples
            config["options"] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["options"].items()}
        try:
            net = cls(**config, generator=torch.Generator().manual_seed(0))  # of a projection that is read below
            net.load_state_dict(load_file(folder / "weights.safetensors"))
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"{folder}: {error}") from error
        return net.eval()


class FlowformerLM(nn.Module):
    """A causal language model: ``net(tokens [B, n]) -> logits [B, n, vocabulary]``; sinusoidal positions, any length.

    Args:
        vocabulary: number of tokens.
        attention, dropout, generator, options: as in :class:`FlowformerEncoder`.
    """

    frequencies: Tensor

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 256,
        depth: int = 4,
        heads: int = 8,
        attention: str | AttentionFunction = "flow",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.enter = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.enter.weight, std=width**-0.5)
        self.scale = nn.Parameter(torch.tensor(width**-0.5))  # of the positions, beside embeddings of that size
        self.register_buffer(
            "frequencies", torch.exp(-math.log(1e4) * torch.arange(0, width, 2) / width), persistent=False
        )
        self.blocks = _blocks(depth, width, heads, attention, True, dropout, generator=generator, options=options)
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def _positions(self, places: Tensor) -> Tensor:
        angles = places.to(self.frequencies.dtype).unsqueeze(-1) * self.frequencies
        return self.scale * torch.cat([angles.sin(), angles.cos()], -1)

    def forward(self, tokens: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n vocabulary"]:
        h = self.enter(tokens) + self._positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            h = block(h, None)
        return self.leave(self.norm(h))

    def empty_state(self, batch: int, *, capacity: int = 256) -> tuple[int, list[Any]]:
        """What :meth:`step` begins with; ``capacity`` is the first size of softmax's caches."""
        return 0, [block.mix.empty_state(batch, capacity=capacity) for block in self.blocks]

    @torch.no_grad()
    def step(
        self, tokens: Int[Tensor, " batch"], state: tuple[int, list[Any]]
    ) -> tuple[Float[Tensor, "batch vocabulary"], tuple[int, list[Any]]]:
        """Logits after one more token, and the next state: constant time with Flow-Attention, O(n) with softmax."""
        place, states = state
        h = self.enter(tokens) + self._positions(torch.tensor(place, device=tokens.device))
        after = []
        for block, kept in zip(self.blocks, states, strict=True):
            h, kept = block.step(h, kept)
            after.append(kept)
        return self.leave(self.norm(h)), (place + 1, after)
