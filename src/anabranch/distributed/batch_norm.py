"""Batch normalization whose running statistics follow the mini-batch, not its micro-batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class DeferredBatchNorm(_BatchNorm):
    """``torch.nn.BatchNorm*d`` for micro-batches: it normalizes by the micro-batch, and gathers statistics of the mini-batch.

    ``update_running`` moves the running statistics once a mini-batch, exactly as one forward of the whole mini-batch would:
    torch's convention, the unbiased variance for ``running_var`` (torchgpipe takes the biased one). Counts, means and sums of
    squares are joined in float64 (Chan et al.). Training still normalizes every micro-batch by itself, so gradients are not
    those of the whole mini-batch.

    The sums are buffers that are not saved; a pipeline restores buffers after recomputing, so nothing is counted twice.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64), persistent=False)
        self.register_buffer("mean", torch.zeros(num_features, dtype=torch.float64), persistent=False)
        self.register_buffer("squares", torch.zeros(num_features, dtype=torch.float64), persistent=False)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"input has shape {tuple(input.shape)}: expected {self.num_features} on the second axis")

    def forward(self, input: Tensor) -> Tensor:
        """``[samples, features, ...]``."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        values = input.numel() // input.shape[1]
        if values < 2:
            raise ValueError(f"input has shape {tuple(input.shape)}: expected more than one value a channel to train")
        y, mean, inverse = torch.native_batch_norm(
            input, self.weight, self.bias, None, None, True, 0.0, self.eps
        )  # its mean and 1 / sqrt(var + eps) cost nothing more
        if self.track_running_stats:
            self._gather(values, mean.detach(), inverse.detach())
        return y

    @torch.no_grad()
    def _gather(self, n: int, mean: Tensor, inverse: Tensor) -> None:
        mean, variance = mean.to(self.mean), (inverse.to(self.squares) ** -2 - self.eps).clamp_min(0)
        total = self.count + n
        apart = mean - self.mean
        self.squares.add_(n * variance + apart**2 * (self.count * n / total))
        self.mean.add_(apart * (n / total))
        self.count.copy_(total)

    @torch.no_grad()
    def update_running(self) -> None:
        """Move the running statistics by what was gathered since the last call, and begin anew."""
        if not self.track_running_stats or self.count == 0:
            return
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked += 1
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        variance = self.squares / (self.count - 1)
        self.running_mean.lerp_(self.mean.to(self.running_mean), rate)
        self.running_var.lerp_(variance.to(self.running_var), rate)
        for sums in (self.count, self.mean, self.squares):
            sums.zero_()


def convert_batchnorm(model: nn.Module) -> nn.Module:
    """The model with every ``BatchNorm1d/2d/3d`` replaced by a :class:`DeferredBatchNorm` that shares its tensors.

    The model's own modules are changed in place; a model that is itself a batch norm is returned new. Names in the
    ``state_dict`` stay.

    Raises:
        ValueError: a kind of batch norm that cannot be deferred (synchronized over processes, or lazy).
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if isinstance(model, _BatchNorm) and not isinstance(model, DeferredBatchNorm):
        if type(model) not in kinds:
            raise ValueError(f"model holds {type(model).__name__}: expected BatchNorm1d, 2d or 3d to defer")
        made = DeferredBatchNorm(model.num_features, model.eps, model.momentum, model.affine, model.track_running_stats)
        for name, tensor in (*model._parameters.items(), *model._buffers.items()):
            setattr(made, name, tensor)
        device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
        for name in ("count", "mean", "squares"):
            setattr(made, name, getattr(made, name).to(device))
        return made.train(model.training)
    for name, child in model.named_children():
        changed = convert_batchnorm(child)
        if changed is not child:
            setattr(model, name, changed)
    return model


def deferred_of(model: nn.Module) -> list[DeferredBatchNorm]:
    """All deferred batch norms inside."""
    return [module for module in model.modules() if isinstance(module, DeferredBatchNorm)]
