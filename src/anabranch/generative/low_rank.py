"""Low-rank adaptation (Hu et al., 2106.09685): a trained network, frozen, plus a small trainable product on each weight."""

import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from anabranch.generative._checks import check_count

Net = TypeVar("Net", bound=nn.Module)


class LowRank(nn.Module):
    """``W + alpha / rank * up @ down`` in the place of a frozen weight ``W`` (convolutions: of its rows flattened)."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator | None) -> None:
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        self.down = nn.Parameter(weight.new_empty(rank, inputs))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)

    def forward(self, weight: Float[Tensor, "outputs ..."]) -> Float[Tensor, "outputs ..."]:
        return weight + self.scale * (self.up @ self.down).reshape(weight.shape)


def add_low_rank(
    net: Net,
    rank: int = 4,
    *,
    alpha: float = 1.0,
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d),
    generator: torch.Generator | None = None,
) -> Net:
    """Freeze ``net`` and add a trainable product of rank ``rank`` to every weight of its layers of ``kinds``; in place.

    It computes what it did before, to the bit, until the products are trained. ``rank (outputs + inputs)`` parameters a
    layer (a convolution's inputs count its kernel).

    Args:
        generator: ``down`` is drawn from it; None takes torch's global one, as layers do.

    Raises:
        ValueError: rank < 1, an alpha that is not a positive number, no layer of these kinds, a network that has products or
            other parametrizations already.
    """
    check_count("rank", rank)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a positive number, got {alpha}")
    if next(low_rank_parameters(net), None) is not None:
        raise ValueError("net has low-rank products already: merge_low_rank(net) first")
    layers = [layer for layer in net.modules() if isinstance(layer, kinds)]
    if not layers:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{type(net).__name__} has no layer of the kinds {names}")
    if any(parametrize.is_parametrized(layer) for layer in layers):
        raise ValueError(f"{type(net).__name__} has parametrized layers (as of weight_norm): remove these first")
    net.requires_grad_(False)
    for layer in layers:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        parametrize.register_parametrization(layer, "weight", LowRank(weight, rank, alpha, generator))
    return net


def low_rank_parameters(net: nn.Module) -> Iterator[nn.Parameter]:
    """The trainable ones of :func:`add_low_rank`."""
    for part in net.modules():
        if isinstance(part, LowRank):
            yield from part.parameters()


def merge_low_rank(net: Net) -> Net:
    """Add the products into the weights and drop them, in place: the network of the class it was, trainable in full."""
    for part in list(net.modules()):
        if isinstance(part, parametrize.ParametrizationList) or not parametrize.is_parametrized(part, "weight"):
            continue
        if any(isinstance(one, LowRank) for one in part.parametrizations["weight"]):  # type: ignore[index]
            # torch's own removal edits the layer's class, which copies of the network share.
            weight = nn.Parameter(part.weight.detach().clone())  # type: ignore[operator]
            part.__class__ = type(part).__bases__[0]
            del part.parametrizations
            part.register_parameter("weight", weight)
    return net.requires_grad_(True)
