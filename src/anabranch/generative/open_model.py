"""One way in for models from disk: files of ours, folders of diffusers pipelines."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from anabranch.generative._extra import missing
from anabranch.generative.flow_maps import FlowMapModel
from anabranch.generative.interop_networks import DiffusersNetwork
from anabranch.generative.save_load import load_network


class OpenModel(NamedTuple):
    """``shape`` is that of a sample where the model says it, ``labels`` how many classes it takes (null not counted)."""

    net: nn.Module
    shape: tuple[int, ...] | None
    labels: int | None

    @property
    def is_flow_map(self) -> bool:
        return isinstance(self.net, FlowMapModel)


def open_model(path: Path, *, device: str = "cpu", null_label: int | None = None) -> OpenModel:
    """A network from a file that :func:`save_network` wrote, or a pipeline from a folder of diffusers.

    Nothing is downloaded, nothing is unpickled.

    Args:
        null_label: the class of a diffusers model's unconditional branch.

    Raises:
        FileNotFoundError: nothing there. ValueError: not a model of either kind.
    """
    if not path.is_dir():
        net = load_network(path, device=device)
    else:
        if not (path / "model_index.json").is_file():
            raise ValueError(f"{path} has no model_index.json: expected the folder of a diffusers pipeline, or a file")
        try:
            from diffusers import DiffusionPipeline
        except ModuleNotFoundError:
            raise ModuleNotFoundError(missing("diffusers", "loading a pipeline")) from None
        pipe: Any = DiffusionPipeline.from_pretrained(str(path), local_files_only=True)
        model = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
        if model is None:
            raise ValueError(f"{path} holds a {type(pipe).__name__} with neither a transformer nor a unet")
        net = DiffusersNetwork(model, pipe.scheduler, null_label=null_label).to(device).eval()
    inner: Any = net.net if isinstance(net, FlowMapModel) else net
    if isinstance(inner, DiffusersNetwork):
        config = inner.model.config
        side, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
        sides = (side, side) if isinstance(side, int) else tuple(side or ())
        shape = (channels, *sides) if channels and sides else None
        embeds = getattr(config, "num_class_embeds", None)
        # a null label beyond the classes is the last embedding of the model
        return OpenModel(net, shape, None if not embeds else embeds - (inner.classes == embeds - 1))
    config = inner.config
    if "dim" in config:
        return OpenModel(net, (config["dim"],), inner.classes)
    side = config.get("side")
    return OpenModel(net, (config["image_channels"], side, side) if side else None, inner.classes)
