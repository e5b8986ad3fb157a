"""A mini-batch in micro-batches."""

from __future__ import annotations

from torch import Tensor

Value = Tensor | tuple[Tensor, ...]  # what goes from layer to layer


def split_sizes(samples: int, micro_batches: int) -> list[int]:
    """Samples of every micro-batch: they differ by at most one, the larger ones first.

    Raises:
        ValueError: no micro-batch, or more of them than samples.
    """
    if not 1 <= micro_batches <= samples:
        raise ValueError(f"micro_batches={micro_batches}: expected 1 to the number of samples, {samples}")
    each, more = divmod(samples, micro_batches)
    return [each + 1] * more + [each] * (micro_batches - more)


def split_batch(x: Value, micro_batches: int) -> list[Value]:
    """Views of ``x`` along its first axis, one a micro-batch; ``torch.chunk`` would make equal ones and a short tail.

    Args:
        x: a tensor, or a tuple of tensors with the same number of samples; all are split alike.

    Raises:
        ValueError: tensors with different numbers of samples, or more micro-batches than samples.
    """
    tensors = (x,) if isinstance(x, Tensor) else tuple(x)
    lengths = [len(tensor) if tensor.ndim else -1 for tensor in tensors]
    if not tensors or lengths[0] < 0 or len(set(lengths)) > 1:
        raise ValueError(f"x must have one number of samples on the first axis, got {lengths}")
    sizes = split_sizes(lengths[0], micro_batches)
    parts = [tensor.split(sizes) for tensor in tensors]
    return list(parts[0]) if isinstance(x, Tensor) else list(zip(*parts, strict=True))
