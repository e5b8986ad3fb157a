"""Networks as one safetensors file each: weights, and in its header which class with which arguments. Never pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from anabranch.generative.flow_maps import FlowMapModel
from anabranch.generative.interop_networks import DiffusersNetwork
from anabranch.generative.mlp import ResMLP, TinyMLP
from anabranch.generative.transformer import DiT
from anabranch.generative.unet import PixelUNet, UNet

NETWORKS: dict[str, type[nn.Module]] = {
    network.__name__: network for network in (UNet, PixelUNet, DiT, ResMLP, TinyMLP)
}


def describe_network(net: nn.Module) -> dict[str, Any]:
    """Class and arguments of a network of this package, as plain data.

    Raises:
        TypeError: a network of another kind.
    """
    if isinstance(net, FlowMapModel):
        return {"class": "FlowMapModel", "embedding": net.embedding, "net": describe_network(net.net)}
    if isinstance(net, DiffusersNetwork):
        return {"class": "DiffusersNetwork", "config": net.config}
    name = type(net).__name__
    if NETWORKS.get(name) is not type(net):
        raise TypeError(f"{name} cannot be saved by its name: expected FlowMapModel or one of {', '.join(NETWORKS)}")
    return {"class": name, "config": net.config}


def build_network(description: Mapping[str, Any], **replace: Any) -> nn.Module:
    """The network of a description, with fresh weights; ``replace`` overrides arguments (``attention=`` of a DiT).

    Raises:
        ValueError: an unknown class or an argument it does not take.
    """
    name = description.get("class")
    if name == "FlowMapModel":
        return FlowMapModel.from_velocity(
            build_network(description["net"], **replace), embedding=description["embedding"]
        )
    if name == "DiffusersNetwork":
        return DiffusersNetwork.from_config(**description["config"])
    if name not in NETWORKS:
        raise ValueError(f"class {name!r} is unknown: expected FlowMapModel or one of {', '.join(NETWORKS)}")
    try:
        return NETWORKS[name](**{**description["config"], **replace})
    except TypeError as error:
        raise ValueError(f"config of {name}: {error}") from error


def save_network(
    net: nn.Module, path: Path, *, dtype: torch.dtype | None = None, notes: Mapping[str, Any] | None = None
) -> Path:
    """Write weights, class and arguments to one file; ``notes`` (plain data: recipe, data) ride along.

    Args:
        dtype: of the floating-point weights in the file, as torch.float16 for half the size.

    Raises:
        TypeError: a network of another package.
    """
    header = {"network": json.dumps(describe_network(net)), "notes": json.dumps(dict(notes or {}))}
    weights = {
        name: (value.to(dtype) if dtype is not None and value.is_floating_point() else value).contiguous().cpu()
        for name, value in net.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    save_file(weights, part, metadata=header)
    part.replace(path)
    return path


def load_network(path: Path, *, device: str | torch.device = "cpu", **replace: Any) -> nn.Module:
    """The network in a file of :func:`save_network`, in float32 and ready to sample.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no file of this package, an unknown class, weights of another shape; names the field.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if "network" not in header:
        raise ValueError(f"{path} does not say which network it holds: expected a file written by anabranch")
    net = build_network(json.loads(header["network"]), **replace)
    own = net.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in own or name not in weights or own[name].shape != weights[name].shape:
            there = tuple(weights[name].shape) if name in weights else "missing"
            here = tuple(own[name].shape) if name in own else "unknown"
            raise ValueError(f"{path}: weight {name!r} is {there}, the network's is {here}")
    net.load_state_dict(weights)
    return net.to(device).eval()


def network_notes(path: Path) -> dict[str, Any]:
    """What :func:`save_network` was given as notes."""
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("notes", "{}"))
