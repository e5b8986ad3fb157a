"""Small language models: causal ones from a folder or a GGUF file, and embeddings of sentences."""

try:
    import torch as _torch  # noqa: F401
    import transformers as _transformers  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name not in ("torch", "transformers"):
        raise
    from anabranch.language._extra import TRANSFORMERS_MISSING

    raise ModuleNotFoundError(TRANSFORMERS_MISSING, name=_error.name) from None

from anabranch.language.embedding import SentenceEmbedder
from anabranch.language.loading import CausalModel, load_causal, tiny_causal

__all__ = ["CausalModel", "SentenceEmbedder", "load_causal", "tiny_causal"]
