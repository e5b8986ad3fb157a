"""What goes wrong when several processes train together."""

from __future__ import annotations


class PipelineError(RuntimeError):
    """A stage failed or is gone: the message names the stage, the action, the micro-batch and the original trace."""


class RankFailed(RuntimeError):
    """A process of :func:`anabranch.distributed.launch` raised or died; all others were stopped.

    Attributes:
        rank: which one was first.
        reports: what every process said before it ended, by rank.
    """

    def __init__(self, rank: int, message: str, reports: dict[int, str]) -> None:
        super().__init__(message)
        self.rank, self.reports = rank, reports


class StageOutOfMemory(RuntimeError):
    """A stage needed more memory than its limit: the message names the stage, and in what it was.

    Attributes:
        stage: which one.
        limit_bytes: of its process.
    """

    def __init__(self, message: str, *, stage: int, limit_bytes: int) -> None:
        super().__init__(message)
        self.stage, self.limit_bytes = stage, limit_bytes
