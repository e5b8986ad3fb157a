"""Training over several devices: pipeline schedules as data and their times, and a pipeline that runs."""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "this part needs torch: install anabranch[distributed]; for a machine without a GPU install torch's CPU-only build "
        "first (its index is named by the install selector on pytorch.org)",
        name="torch",
    ) from None

from anabranch.distributed.batch_norm import DeferredBatchNorm, convert_batchnorm
from anabranch.distributed.errors import PipelineError, RankFailed
from anabranch.distributed.launching import Ranks, launch
from anabranch.distributed.local import LocalPipeline
from anabranch.distributed.micro_batches import split_batch, split_sizes
from anabranch.distributed.pipeline import Did, Pipeline
from anabranch.distributed.pipeline_times import PipelineTimeline, simulate_pipeline
from anabranch.distributed.schedules import (
    Action,
    PipelineSchedule,
    fill_drain,
    interleaved,
    one_forward_one_backward,
)
from anabranch.distributed.skips import PopSkip, StashSkip

__all__ = [
    "Action",
    "DeferredBatchNorm",
    "Did",
    "LocalPipeline",
    "Pipeline",
    "PipelineError",
    "PipelineSchedule",
    "PipelineTimeline",
    "PopSkip",
    "RankFailed",
    "Ranks",
    "StashSkip",
    "convert_batchnorm",
    "fill_drain",
    "interleaved",
    "launch",
    "one_forward_one_backward",
    "simulate_pipeline",
    "split_batch",
    "split_sizes",
]
