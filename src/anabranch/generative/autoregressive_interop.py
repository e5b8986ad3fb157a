"""Autoregressive flows of other libraries, for the solvers. Nothing is imported: the objects say what they are."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative.autoregressive import AutoregressiveMap


class _Seen(NamedTuple):
    x: Tensor  # [B, T] in the order of the features, 0 where unknown
    z: Tensor
    context: Tensor | None


class MaskedAutoregressiveMap(AutoregressiveMap):
    """The inverse of a ``zuko`` masked autoregressive transform (MAF, NSF, ...), a token being one feature.

    Nothing of a prefix can be kept: an evaluation is one pass of the masked network, over all features whatever the window, and
    the sequential solver does what the library's own inverse does. Sweeps that stop when x has settled save passes.

    Args:
        transform: ``zuko.flows.MaskedAutoregressiveTransform`` with an order.
        context: ``[B, C]`` for the samples that are to be inverted.

    Raises:
        TypeError: an object of another kind.
    """

    features = 1

    def __init__(self, transform: Any, context: Float[Tensor, "batch context"] | None = None) -> None:
        order = getattr(transform, "order", None)
        if not isinstance(order, Tensor) or not callable(getattr(transform, "meta", None)):
            raise TypeError(
                f"transform is a {type(transform).__name__}: expected a zuko MaskedAutoregressiveTransform with an order"
            )
        self.transform, self.context = transform, context
        self.tokens = len(order)
        self.order = order.argsort(stable=True)  # the feature of each token
        self.back = self.order.argsort()

    def enter(self, z: Tensor) -> Tensor:
        return z[:, self.order, None] if z.ndim == 2 and z.shape[1] == self.tokens else z

    def leave(self, x: Tensor) -> Tensor:
        return x[:, self.back, 0]

    def first(self, z: Tensor) -> Tensor:
        if self.context is not None and len(self.context) != len(z):
            raise ValueError(f"z has {len(z)} samples: expected {len(self.context)}, as the context")
        y = z.new_zeros(len(z), self.tokens)
        y[:, self.order[0]] = z[:, 0]
        with torch.no_grad():
            x = self.transform.meta(self.context, torch.zeros_like(y)).inv(y)
        return x[:, self.order[:1]]

    def new_cache(self, z: Tensor) -> _Seen:
        return _Seen(z.new_zeros(z.shape[:2]), z.new_zeros(z.shape[:2]), self.context)

    def take(self, cache: _Seen, rows: Tensor, stop: int) -> _Seen:
        return _Seen(cache.x[rows], cache.z[rows], None if cache.context is None else cache.context[rows])

    def put(self, cache: _Seen, rows: Tensor, part: _Seen, start: int, stop: int) -> None:
        features = self.order[start:stop]
        cache.x[rows[:, None], features] = part.x[:, features]

    def advance(self, x: Tensor, z: Tensor, start: int, cache: _Seen) -> Tensor:
        stop = start + x.shape[1]
        wanted = self.order[start + 1 : stop + 1]
        cache.x[:, self.order[start:stop]] = x[..., 0]
        cache.z[:, wanted] = z[..., 0]
        with torch.no_grad():
            return self.transform.meta(cache.context, cache.x).inv(cache.z)[:, wanted, None]


def maps_from_zuko(flow: Any, context: Tensor | None = None) -> list[AutoregressiveMap]:
    """The inverses of a ``zuko`` flow's transforms in the order of generation, from the base to the data.

    ``invert_autoregressive(maps, flow(context).base.sample((n,)), ..., tol=...)`` then draws samples.

    Args:
        flow: ``zuko.flows.MAF``, ``NSF`` or another whose transforms are all masked autoregressive with an order.
        context: ``[B, C]``.

    Raises:
        TypeError: a transform of another kind.
    """
    lazy = getattr(flow, "transform", flow)
    transforms = getattr(lazy, "transforms", [lazy])
    return [MaskedAutoregressiveMap(transform, context) for transform in reversed(list(transforms))]
