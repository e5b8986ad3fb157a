"""The shape of a transformer, from which parameters, caches and traffic follow."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """A decoder with grouped-query attention, as its public configuration says.

    Attributes:
        layers, hidden, heads, kv_heads, intermediate, vocabulary: the usual numbers; heads have hidden / heads elements.
        tied_embeddings: input and output embeddings are one matrix.
        experts, top_k: experts per layer and per token; 1 and 1 for a dense model.
        gated: feed-forward layers of three matrices (Llama) instead of two (GPT, BLOOM).
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied_embeddings: bool = False
    experts: int = 1
    top_k: int = 1
    gated: bool = True

    @classmethod
    def from_config(cls, name: str, config: Mapping[str, Any]) -> "TransformerShape":
        """From a model's ``config.json`` (Llama, Mistral, Mixtral keys).

        Raises:
            ValueError: a number that is not there.
        """
        keys = {
            "layers": "num_hidden_layers",
            "hidden": "hidden_size",
            "heads": "num_attention_heads",
            "intermediate": "intermediate_size",
            "vocabulary": "vocab_size",
        }
        for key in keys.values():
            if key not in config:
                raise ValueError(f"config must have {key}, got {sorted(config)}")
        return cls(
            name=name,
            kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            experts=config.get("num_local_experts", 1),
            top_k=config.get("num_experts_per_tok", 1),
            **{field: config[key] for field, key in keys.items()},
        )

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def expert_parameters(self) -> int:
        """Parameters inside experts; 0 for a dense model."""
        return self._matrices * self.hidden * self.intermediate * self.experts * self.layers if self.experts > 1 else 0

    @property
    def _matrices(self) -> int:
        return 3 if self.gated else 2

    @property
    def parameters(self) -> int:
        """All parameters: attention, feed-forward, router, norms, embeddings."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * self.head_size
        feed_forward = self._matrices * self.hidden * self.intermediate * self.experts
        router = self.hidden * self.experts if self.experts > 1 else 0
        embeddings = self.vocabulary * self.hidden * (1 if self.tied_embeddings else 2)
        return self.layers * (attention + feed_forward + router + 2 * self.hidden) + self.hidden + embeddings

    def kv_bytes_per_token(self, dtype_bytes: int = 2) -> int:
        """Bytes of keys and values that one token keeps in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * dtype_bytes


SMOLLM2_135M = TransformerShape(
    name="SmolLM2-135M",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    intermediate=1536,
    vocabulary=49152,
    tied_embeddings=True,
)
LLAMA2_70B = TransformerShape(
    name="Llama-2-70B", layers=80, hidden=8192, heads=64, kv_heads=8, intermediate=28672, vocabulary=32000
)
LLAMA3_70B = replace(LLAMA2_70B, name="Llama-3-70B", vocabulary=128256)
LLAMA3_8B = TransformerShape(
    name="Llama-3-8B", layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocabulary=128256
)
QWEN2_72B = replace(LLAMA2_70B, name="Qwen2-72B", intermediate=29568, vocabulary=152064)
DEEPSEEK_67B = replace(LLAMA2_70B, name="Deepseek-67B", layers=95, intermediate=22016, vocabulary=102400)
MIXTRAL_8X7B = TransformerShape(
    name="Mixtral-8x7B",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    intermediate=14336,
    vocabulary=32000,
    experts=8,
    top_k=2,
)
BLOOM_176B = TransformerShape(
    name="BLOOM-176B",
    layers=70,
    hidden=14336,
    heads=112,
    kv_heads=112,
    intermediate=57344,
    vocabulary=250880,
    tied_embeddings=True,
    gated=False,
)
