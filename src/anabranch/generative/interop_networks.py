"""A diffusers model as a network of ours: a module that can be trained, distilled, saved and loaded."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anabranch.generative._extra import missing
from anabranch.generative.interop import from_diffusers
from anabranch.generative.paths import GaussianPath

_EMBEDDINGS = (
    "time_embedding",
    "time_text_embed.timestep_embedder",
    "time_embed.timestep_embedder",
    "adaln_single.emb",
)


class DiffusersNetwork(nn.Module):
    """Velocity network ``net(x, t, label=None, **condition)`` around a diffusers model and the scheduler that explains it.

    ``condition`` are the model's own keyword arguments; ``label`` goes to ``class_labels``.

    Args:
        model: a diffusers model (UNet2DModel, SD3Transformer2DModel, ...).
        scheduler: says what it predicts on which path.
        null_label: the class of the unconditional branch, if it was trained with one.

    Raises:
        ValueError: a scheduler that :func:`from_diffusers` does not know.
    """

    def __init__(self, model: nn.Module, scheduler: Any, *, null_label: int | None = None) -> None:
        super().__init__()
        self.model, self.scheduler, self.classes = model, scheduler, null_label
        # Beyond the table's ends noise predictions divide by zero: the field is held at the nearest time.
        self.field = from_diffusers(model, scheduler, clamp=1e-3)
        self.config = {
            "model": {"class": type(model).__name__, "config": _plain(model.config)},
            "scheduler": {"class": type(scheduler).__name__, "config": _plain(scheduler.config)},
            "null_label": null_label,
        }

    @classmethod
    def from_config(cls, model: Any, scheduler: Any, null_label: int | None) -> "DiffusersNetwork":
        """With fresh weights, from what ``config`` holds.

        Raises:
            ValueError: a class that diffusers does not have.
        """
        try:
            import diffusers
        except ModuleNotFoundError:
            raise ModuleNotFoundError(missing("diffusers", "a network of diffusers")) from None
        made = []
        for part in (model, scheduler):
            kind = getattr(diffusers, part["class"], None)
            if not isinstance(kind, type) or not hasattr(kind, "from_config"):
                raise ValueError(f"class {part['class']!r} is not one of diffusers' models or schedulers")
            made.append(kind.from_config(part["config"]))
        return cls(*made, null_label=null_label)

    @property
    def path(self) -> GaussianPath:
        """The path of the field."""
        return self.field.path

    @property
    def embedding(self) -> str:
        """Where ``FlowMapModel.from_velocity(net, embedding=net.embedding)`` adds the second time.

        Raises:
            ValueError: the model has no time embedding under a name that is known.
        """
        names = dict(self.model.named_modules())
        for name in _EMBEDDINGS:
            if name in names:
                return f"model.{name}"
        raise ValueError(f"{type(self.model).__name__} has no submodule {' or '.join(_EMBEDDINGS)}: name its embedding")

    def forward(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        label: Int[Tensor, "..."] | None = None,
        **condition: Any,
    ) -> Float[Tensor, "batch *shape"]:
        if label is not None:
            condition["class_labels"] = label
        return self.field(x, t, **condition).to(x.dtype)


def _plain(config: Any) -> dict[str, Any]:
    """Without private entries and what is no plain data."""
    kept = {name: value for name, value in dict(config).items() if not name.startswith("_")}
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in kept.items()}
