"""Independent simulations in processes of their own."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

START_S = 2.0  # about what processes take until they can work: they import what this one has

Task = TypeVar("Task")
Result = TypeVar("Result")


def usable_processors() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    call: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int = 1,
    ended: Callable[[int], Any] = lambda count: None,
) -> list[Result]:
    """``call`` on every task, in the order of the tasks; what it gives does not depend on ``workers``.

    The first tasks run here, until they show that processes would save more than they take to start.

    Args:
        call, tasks: can be pickled where there are several workers, which are new processes.
        workers: processes; 1 works here alone.
        ended: is told how many have ended, after each.

    Raises:
        ValueError: fewer than one worker. Exception: what a call raised, of the first task that did.
    """
    if workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    found: list[Result] = []
    begin = time.perf_counter()
    for count, task in enumerate(tasks, 1):
        found.append(call(task))
        ended(count)
        left, at_once = len(tasks) - count, min(workers, len(tasks) - count)
        spent = time.perf_counter() - begin
        if at_once > 1 and spent / count * (left - left / at_once) > START_S:
            break
    left = len(tasks) - len(found)
    if left == 0:
        return found
    # Not forked from here: this process may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, left), mp_context=context) as pool:
        futures = [pool.submit(call, task) for task in tasks[len(found) :]]
        try:
            for count, _ in enumerate(as_completed(futures), len(found) + 1):
                ended(count)
            return [*found, *(future.result() for future in futures)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
