"""A velocity network that begins as a field that is no network."""

from typing import Any

import torch
from torch import Tensor, nn

from anabranch.generative.fields import VelocityField


class ResidualField(nn.Module):
    """``field + net``: with a network whose last layer starts at 0, a copy of ``field`` that can be trained.

    Distillation starts its critic from the teacher's weights; a closed-form teacher has none, and this is the same start.

    Args:
        field: ``v(x, t, **condition)``; it gets no gradient.
        net: ``net(x, t, **condition)``.
    """

    field: VelocityField

    def __init__(self, field: VelocityField, net: nn.Module) -> None:
        super().__init__()
        self.net, self.classes = net, getattr(net, "classes", None)
        object.__setattr__(self, "field", field)  # not a submodule: its weights are not trained, averaged or saved

    def forward(self, x: Tensor, t: Any, **condition: Any) -> Tensor:
        """The sum, shaped like ``x``."""
        with torch.no_grad():
            base = self.field(x, t, **condition)
        return base + self.net(x, t, **condition)
