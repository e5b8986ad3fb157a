"""Training over several devices: pipeline schedules as data, and how long they take."""

from anabranch.distributed.pipeline_times import PipelineTimeline, simulate_pipeline
from anabranch.distributed.schedules import (
    Action,
    PipelineSchedule,
    fill_drain,
    interleaved,
    one_forward_one_backward,
)

__all__ = [
    "Action",
    "PipelineSchedule",
    "PipelineTimeline",
    "fill_drain",
    "interleaved",
    "one_forward_one_backward",
    "simulate_pipeline",
]
