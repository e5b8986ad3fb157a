"""How much memory a training step keeps between its forward and its backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def bytes_saved_for_backward(step: Callable[[], Any]) -> int:
    """Bytes of the distinct storages that autograd keeps while ``step`` runs forward and backward, parameters aside.

    Tensors inside transforms of ``torch.func`` count by what they wrap; tangents that are zero by construction do not.
    """
    kept: dict[int, int] = {}

    def pack(given: Tensor) -> Tensor:
        tensor = given
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        if not isinstance(tensor, torch.nn.Parameter) and not tensor._is_zerotensor():
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return given

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())
