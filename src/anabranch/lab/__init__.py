"""Runs experiments: settings, seeds, progress, timing, figures, verdicts.

A paper package needs :class:`Paper`, :class:`Claim` and, for annotations, :class:`Lab`. From Python, ``execute(Request(slug))``
runs a paper and ``check(slug)`` judges its claims; both give back what the command line shows. Nothing here imports a paper
before it is asked for, and nothing imports torch.
"""

from anabranch.lab.checking import Check, check
from anabranch.lab.contract import Claim, Paper
from anabranch.lab.discover import find_paper, papers
from anabranch.lab.errors import LabError, UnknownName
from anabranch.lab.execution import Request, execute
from anabranch.lab.executors import Executor, ProcessPool, ThisProcess, executor_named
from anabranch.lab.laboratory import Lab, StageProgress
from anabranch.lab.results import is_stale, load_result, result_verdicts
from anabranch.lab.runs import Measure, Run, find_run, list_runs, read_run
from anabranch.lab.timing import Timing, time_pairs
from anabranch.lab.verdicts import Verdict, judge

__all__ = [
    "Check",
    "Claim",
    "Executor",
    "Lab",
    "LabError",
    "Measure",
    "Paper",
    "ProcessPool",
    "Request",
    "Run",
    "StageProgress",
    "ThisProcess",
    "Timing",
    "UnknownName",
    "Verdict",
    "check",
    "execute",
    "executor_named",
    "find_paper",
    "find_run",
    "is_stale",
    "judge",
    "list_runs",
    "load_result",
    "papers",
    "read_run",
    "result_verdicts",
    "time_pairs",
]
