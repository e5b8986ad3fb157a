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

from anabranch.distributed._steps import Did
from anabranch.distributed.arms import TrainingArm, training_arm
from anabranch.distributed.batch_norm import DeferredBatchNorm, convert_batchnorm
from anabranch.distributed.bench import PlanOutcome, TrainingBench, TrainingRun
from anabranch.distributed.causal import CausalLayers, causal_layers, next_token_loss, pipeline_from_transformers
from anabranch.distributed.cuts import compare_cuts, variance_balance
from anabranch.distributed.errors import PipelineError, RankFailed, StageOutOfMemory
from anabranch.distributed.gradient_error import gradient_error, relative_gradient_error
from anabranch.distributed.launching import Kept, Ranks, launch, prepare_ranks, torch_threads
from anabranch.distributed.link_speed import LinkSpeed, measure_averaging, measure_link
from anabranch.distributed.local import LocalPipeline
from anabranch.distributed.malloc import keep_freed_memory
from anabranch.distributed.memory_limits import Depth, deepest, depth_within, memory_limit, train_within
from anabranch.distributed.micro_batches import split_batch, split_sizes
from anabranch.distributed.models import residual_network_layers, vision_transformer_layers
from anabranch.distributed.pipeline import Pipeline
from anabranch.distributed.pipeline_times import (
    PipelineTimeline,
    compare_schedules,
    even_step_s,
    measured_timeline,
    simulate_measured,
    simulate_pipeline,
)
from anabranch.distributed.planning import (
    PipelinePlan,
    StageCosts,
    activation_memory,
    most_layers,
    nearest_plan,
    plan_pipeline,
    predict_step,
    stage_costs,
    stage_memory,
)
from anabranch.distributed.prediction_error import prediction_error
from anabranch.distributed.profile import LayerProfile, profile_at, profile_layers
from anabranch.distributed.saved import SavedTensors
from anabranch.distributed.schedules import (
    Action,
    PipelineSchedule,
    fill_drain,
    interleaved,
    one_forward_one_backward,
    zero_bubble,
)
from anabranch.distributed.skips import PopSkip, StashSkip
from anabranch.distributed.training_memory import training_bytes
from anabranch.distributed.transformer_profile import profile_transformer

__all__ = [
    "Action",
    "CausalLayers",
    "DeferredBatchNorm",
    "Depth",
    "Did",
    "Kept",
    "LayerProfile",
    "LinkSpeed",
    "LocalPipeline",
    "Pipeline",
    "PipelineError",
    "PipelinePlan",
    "PipelineSchedule",
    "PipelineTimeline",
    "PlanOutcome",
    "PopSkip",
    "RankFailed",
    "Ranks",
    "SavedTensors",
    "StageCosts",
    "StageOutOfMemory",
    "StashSkip",
    "TrainingArm",
    "TrainingBench",
    "TrainingRun",
    "activation_memory",
    "causal_layers",
    "compare_cuts",
    "compare_schedules",
    "convert_batchnorm",
    "deepest",
    "depth_within",
    "even_step_s",
    "fill_drain",
    "gradient_error",
    "interleaved",
    "keep_freed_memory",
    "launch",
    "measure_averaging",
    "measure_link",
    "measured_timeline",
    "memory_limit",
    "most_layers",
    "nearest_plan",
    "next_token_loss",
    "one_forward_one_backward",
    "pipeline_from_transformers",
    "plan_pipeline",
    "predict_step",
    "prediction_error",
    "prepare_ranks",
    "profile_at",
    "profile_layers",
    "profile_transformer",
    "relative_gradient_error",
    "residual_network_layers",
    "simulate_measured",
    "simulate_pipeline",
    "split_batch",
    "split_sizes",
    "stage_costs",
    "stage_memory",
    "torch_threads",
    "train_within",
    "training_arm",
    "training_bytes",
    "variance_balance",
    "vision_transformer_layers",
    "zero_bubble",
]
