"""Non-negative feature maps of queries and keys, and the authors' four settings by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from anabranch.attention._checks import nearest

FeatureMap = Callable[[Tensor], Tensor]
Derivative = Callable[[Tensor, Tensor, Tensor], Tensor]


def _relu(x: Tensor) -> Tensor:
    return torch.relu(x) + 1e-6


def _elu(x: Tensor) -> Tensor:
    # A fifth of the time of torch's elu; a tape forbids to write over what exp has given.
    if torch.is_grad_enabled():
        return torch.exp(x.clamp(max=0)) + torch.relu(x)
    return x.clamp(max=0).exp_().add_(torch.relu(x))


def _sigmoid_derivative(grad: Tensor, _: Tensor, y: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.sigmoid_backward.grad_input(grad, y, grad_input=grad)
    return result


# name -> (map, gradient of its argument, written over that of its value, from the argument and the value)
_MAPS: dict[str, tuple[FeatureMap, Derivative]] = {
    "sigmoid": (torch.sigmoid, _sigmoid_derivative),
    "relu": (_relu, lambda grad, x, y: grad.mul_(x > 0)),
    "identity": (lambda x: x, lambda grad, x, y: grad),
    "elu": (_elu, lambda grad, x, y: grad.mul_(y.clamp(max=1))),
}

_NAMES = {function: name for name, (function, _) in _MAPS.items()}


def named_map(function: FeatureMap) -> str | None:
    """The name of a map that has one."""
    return _NAMES.get(function)


FLOW_PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper": {"feature_map": "sigmoid", "clamp": None},
        "core": {"feature_map": "sigmoid", "clamp": (-1.0, 1.0)},
        "lra": {"feature_map": "relu", "clamp": None},
        "rl": {"feature_map": "sigmoid", "clamp": (-10.0, 10.0)},
    }
)
"""The four settings in the authors' repository, as keyword arguments of :func:`flow_attention`.

``paper``: time series. ``core``: core module, vision, language; its clamp to at most 1, the mean, flattens every source that
is wanted more than average. ``lra``: Long Range Arena (JAX). ``rl``: offline control (causal).
"""


def flow_preset(name: str) -> Mapping[str, Any]:
    """Arguments of a named preset.

    Raises:
        ValueError: an unknown name; lists the presets.
    """
    return FLOW_PRESETS[nearest("preset", name, list(FLOW_PRESETS))]


def split_map(feature_map: str | FeatureMap) -> tuple[FeatureMap, Derivative | None]:
    """The map, and its gradient where it is a named one.

    Raises:
        ValueError: an unknown name. TypeError: neither a name nor callable.
    """
    if isinstance(feature_map, str):
        return _MAPS[nearest("feature_map", feature_map, list(_MAPS))]
    if not callable(feature_map):
        raise TypeError(f"feature_map is {feature_map!r}: expected a name ({', '.join(_MAPS)}) or a callable")
    return feature_map, None
