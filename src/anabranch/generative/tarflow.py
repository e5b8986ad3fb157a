"""TarFlow: a normalizing flow of causal transformers over image patches (Zhai et al., 2412.06329).

A block maps tokens x to ``z_i = (x_i - m_i) exp(-s_i)``, where ``(s_i, m_i)`` come from a causal transformer over the tokens
before i; every other block runs through the tokens backwards. Data to noise is one parallel pass with an exact likelihood;
noise to data inverts the blocks from the last to the first (:mod:`anabranch.generative.fixed_point`).

Names of submodules are those of the public checkpoints. Images are in [-1, 1].
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from anabranch.generative._checks import check_count
from anabranch.generative.autoregressive import AutoregressiveMap
from anabranch.generative.fixed_point import SweepStrategy, invert_autoregressive
from anabranch.generative.objectives import Loss
from anabranch.generative.tarflow_inverse import TarFlowBlockMap

CausalAttention = Callable[..., Tensor]
"""``f(q, k, v, is_causal=True) -> y``, all ``[B, heads, n, d]``: output i looks at keys 0, ..., i. It may have a method
``decode(q, k, v, state) -> (y, state)`` for n further tokens after those in ``state`` (None: no tokens), which the
sequential sampler then uses; the state given is left as it is."""


class _Attention(nn.Module):
    def __init__(self, width: int, head_size: int, attention: CausalAttention) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.head_size, self.attend = head_size, attention

    def forward(self, x: Tensor) -> Tensor:
        heads = (*x.shape[:2], 3, -1, self.head_size)
        q, k, v = self.qkv(self.norm(x)).view(heads).permute(2, 0, 3, 1, 4)
        return self.proj(self.attend(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape))


class _MLP(nn.Module):
    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.main = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(self.norm(x))


class _Layer(nn.Module):
    def __init__(self, width: int, head_size: int, attention: CausalAttention) -> None:
        super().__init__()
        self.attention = _Attention(width, head_size, attention)
        self.mlp = _MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class TarFlowBlock(nn.Module):
    """One autoregressive affine map of tokens; with ``backwards`` it runs from the last token to the first."""

    def __init__(
        self,
        tokens: int,
        features: int,
        width: int,
        layers: int,
        head_size: int,
        classes: int | None,
        backwards: bool,
        attention: CausalAttention,
    ) -> None:
        super().__init__()
        self.proj_in = nn.Linear(features, width)
        self.pos_embed = nn.Parameter(torch.randn(tokens, width) * 1e-2)
        self.class_embed = None if classes is None else nn.Parameter(torch.randn(classes, 1, width) * 1e-2)
        self.attn_blocks = nn.ModuleList(_Layer(width, head_size, attention) for _ in range(layers))
        self.proj_out = nn.Linear(width, 2 * features)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.backwards = backwards

    def condition(self, label: Tensor | None) -> Tensor | None:
        """Embedding ``[B or 1, 1, width]`` of labels; without a label it is the table's mean. None without classes."""
        if self.class_embed is None:
            return None
        mean = self.class_embed.mean(0, keepdim=True)
        if label is None:
            return mean
        without = (label < 0) | (label == len(self.class_embed))
        return torch.where(without[:, None, None], mean, self.class_embed[label.masked_fill(without, 0)])

    def affine(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(s, m)`` of every token of ``x`` ``[B, T, D]``, given in the order of generation; those of token 0 are 0."""
        positions = self.pos_embed.flip(0) if self.backwards else self.pos_embed
        h, condition = self.proj_in(x) + positions, self.condition(label)
        h = h if condition is None else h + condition
        for layer in self.attn_blocks:
            h = layer(h)
        s, m = functional.pad(self.proj_out(h)[:, :-1], (0, 0, 1, 0)).chunk(2, 2)
        return s, m

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens nearer to the noise ``[B, T, D]``, and the log determinant ``[B]``."""
        x = x.flip(1) if self.backwards else x
        s, m = self.affine(x, label)
        s = s.to(torch.promote_types(s.dtype, torch.float32))
        z = (x - m) * torch.exp(-s)
        return (z.flip(1) if self.backwards else z), -s.sum((1, 2))


class TarFlow(nn.Module):
    """A TarFlow on square images ``[B, image_channels, side, side]`` in [-1, 1]; the latent is its tokens ``[B, T, D]``.

    ``T = (side / patch)^2`` tokens of ``D = image_channels patch^2`` numbers. Block 0 is next to the data. A fresh model is the
    identity: the last layer of each block starts at zero. Cost of a pass: O(B T (L width^2 + L T width)) a block.

    Args:
        width, layers, head_size: of each block's transformer.
        classes: number of labels; None is an unconditional model. The null label is ``classes`` (or -1, as in the
            authors' code), which a missing label means: the mean over the classes.
        attention: see :data:`CausalAttention`; default softmax attention.

    Raises:
        ValueError: a side that the patch does not divide, a width that the head size does not divide.
    """

    def __init__(
        self,
        side: int = 28,
        image_channels: int = 1,
        patch: int = 2,
        width: int = 64,
        blocks: int = 4,
        layers: int = 2,
        *,
        head_size: int = 64,
        classes: int | None = None,
        attention: CausalAttention | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "side": side, "image_channels": image_channels, "patch": patch, "width": width, "blocks": blocks,
            "layers": layers, "head_size": head_size, "classes": classes,
        }  # fmt: skip
        for name, value in self.config.items():
            if name != "classes" or value is not None:
                check_count(name, value)
        if side % patch or width % head_size:
            raise ValueError(
                f"side={side}, patch={patch}, width={width}, head_size={head_size}: expected a patch that divides the side "
                "and a head size that divides the width"
            )
        self.side, self.image_channels, self.patch, self.classes = side, image_channels, patch, classes
        self.tokens, self.features = (side // patch) ** 2, image_channels * patch**2
        self.blocks = nn.ModuleList(
            TarFlowBlock(
                self.tokens, self.features, width, layers, head_size, classes, b % 2 == 1,
                functional.scaled_dot_product_attention if attention is None else attention,
            )
            for b in range(blocks)
        )  # fmt: skip

    def patchify(self, images: Float[Tensor, "batch channels side side"]) -> Float[Tensor, "batch tokens features"]:
        """Patches row by row, each channel by channel.

        Raises:
            ValueError: images of another shape.
        """
        if images.ndim != 4 or images.shape[1:] != (self.image_channels, self.side, self.side):
            raise ValueError(
                f"images have shape {tuple(images.shape)}: expected [B, {self.image_channels}, {self.side}, {self.side}]"
            )
        return functional.unfold(images, self.patch, stride=self.patch).transpose(1, 2)

    def unpatchify(self, tokens: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch channels side side"]:
        """Undoes :meth:`patchify`."""
        return functional.fold(tokens.transpose(1, 2), (self.side, self.side), self.patch, stride=self.patch)

    def forward(
        self, images: Float[Tensor, "batch channels side side"], label: Int[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch tokens features"], Float[Tensor, " batch"]]:
        """The latent, and the log determinant of the map to it in nats.

        Raises:
            ValueError: images of another shape, labels that the model has not.
        """
        x, log_det = self.patchify(images), images.new_zeros(len(images))
        self.check_label(label, len(x))
        for block in self.blocks:
            x, more = block(x, label)
            log_det = log_det + more
        return x, log_det

    def log_prob(
        self, images: Float[Tensor, "batch channels side side"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Log density in nats, with a standard normal latent."""
        z, log_det = self(images, label)
        return log_det - 0.5 * (z**2 + math.log(2 * math.pi)).sum((1, 2))

    def bits_per_dim(
        self, images: Float[Tensor, "batch channels side side"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Bits a dimension of images that had 256 levels before they were scaled to [-1, 1] and given noise."""
        return -self.log_prob(images, label) / (self.tokens * self.features * math.log(2)) + 7

    def check_label(self, label: Tensor | None, batch: int) -> None:
        """Labels fit the model.

        Raises:
            ValueError: labels for a model without classes, of another shape than ``[B]``, or out of range.
        """
        if label is None:
            return
        if self.classes is None:
            raise ValueError("label is given to a model without classes")
        if label.shape != (batch,):
            raise ValueError(f"label has shape {tuple(label.shape)}: expected [{batch}]")
        if bool(((label < -1) | (label > self.classes)).any()):
            raise ValueError(
                f"label holds {label.tolist()[:10]}: expected 0 to {self.classes - 1}, or {self.classes} for none"
            )

    def inverse_maps(
        self,
        label: Int[Tensor, " batch"] | None = None,
        *,
        guidance: float = 0.0,
        temperature: float = 1.0,
        annealed: bool = True,
        dtype: torch.dtype | None = None,
    ) -> list[AutoregressiveMap]:
        """The inverses of the blocks in the order of generation, for :func:`invert_autoregressive`.

        They hold weights made ready for it (a copy, without gradients), which later training does not reach.

        Args:
            guidance: w of ``s + w (s - s_u)``, the same for m, with ``(s_u, m_u)`` from the model without label.
            temperature: of the attention of that second branch.
            annealed: w grows linearly with the token's position, up to ``guidance`` at the last one.
            dtype: of the arithmetic, such as bfloat16 for a first guess; default the model's.

        Raises:
            ValueError: labels that do not fit; guidance where both branches are the same.
        """
        if label is not None:
            self.check_label(label, len(label))
        if guidance != 0 and temperature == 1 and (label is None or self.classes is None):
            raise ValueError(
                "guidance without labels and at temperature 1 does nothing: give labels, or a temperature below 1"
            )
        options: dict[str, Any] = {"guidance": guidance, "temperature": temperature, "annealed": annealed}
        return [TarFlowBlockMap(block, label, **options, dtype=dtype) for block in reversed(self.blocks)]

    def sample(
        self,
        count: int,
        label: Int[Tensor, " batch"] | None = None,
        *,
        generator: torch.Generator | None,
        strategies: SweepStrategy | str | Sequence[SweepStrategy | str] = "sequential",
        tol: float = 1e-3,
        denoise: float = 0.0,
        denoise_rate: float = 1.0,
        **guidance: Any,
    ) -> Float[Tensor, "count channels side side"]:
        """Images drawn by inverting the blocks; ``strategies`` in the order of generation (``plan_sampling`` picks them).

        Args:
            denoise: noise sigma of the training; the images are then moved by ``denoise_rate sigma^2 grad log p``.
            guidance: ``guidance``, ``temperature`` and ``annealed`` of :meth:`inverse_maps`.
        """
        check_count("count", count)
        self.check_label(label, count)
        weight = next(self.parameters())
        z = torch.randn(
            count, self.tokens, self.features, generator=generator, device=weight.device, dtype=weight.dtype
        )
        x, _ = invert_autoregressive(self.inverse_maps(label, **guidance), z, strategies, tol=tol)
        images = self.unpatchify(x)
        return self.denoise(images, label, denoise, denoise_rate) if denoise else images

    def denoise(
        self, images: Tensor, label: Tensor | None, noise: float, rate: float = 1.0
    ) -> Float[Tensor, "batch channels side side"]:
        """Tweedie's estimate ``x + rate noise^2 grad log p(x)`` of what the noise was added to (2412.06329)."""
        with torch.enable_grad():
            at = images.detach().requires_grad_()
            (score,) = torch.autograd.grad(self.log_prob(at, label).sum(), at)
        return torch.add(images, score, alpha=rate * noise**2)

    @classmethod
    def from_reference(cls, path: str | Path, *, side: int, image_channels: int = 3, head_size: int = 64) -> "TarFlow":
        """A model from a checkpoint of the authors' code; its sizes are read off the weights.

        Raises:
            ValueError: weights that are missing, left over or of a shape that does not fit; the message lists them.
        """
        from anabranch.generative.tarflow_reference import load_reference

        return load_reference(path, side=side, image_channels=image_channels, head_size=head_size)


@dataclass(frozen=True)
class NoisyLikelihood:
    """Negative log-likelihood a dimension of images with Gaussian noise, without its constant (2412.06329).

    ``0.5 mean z^2 - log det / dims``. ``x0``, the source's draw, is the noise.

    Args:
        noise: its standard deviation.
    """

    noise: float

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise ValueError(f"noise must be >= 0, got {self.noise}")

    def __call__(
        self,
        net: nn.Module,
        x0: Tensor,
        x1: Tensor,
        *,
        generator: torch.Generator | None = None,
        label: Tensor | None = None,
    ) -> Loss:
        z, log_det = net(torch.add(x1, x0, alpha=self.noise), label)
        square = 0.5 * (z**2).mean((1, 2))
        per_sample = square - log_det / z[0].numel()
        return Loss(per_sample.mean(), per_sample, {"square": square.mean().detach()})
