"""Runs on a Ray cluster: one task a run, in a process of its own, on any machine that sees the run folders."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anabranch.lab.environment import cores
from anabranch.lab.errors import LabError
from anabranch.lab.execution import Request, execute_queued, header_for
from anabranch.lab.queued import ListenerFor, follow, queue, thread_limits
from anabranch.lab.runs import Run, RunFolder, read_run


@dataclass
class RayCluster:
    """Several runs at once as tasks of Ray, one core each.

    A run whose worker dies is *interrupted* and started once more as a new run; that one says so in a warning. The
    cluster's machines must see the folder of the runs (``ANABRANCH_HOME`` on a shared disk); a local cluster does.

    Args:
        workers: runs at once on a cluster made for them; None for one a core.
        address: of a cluster that is up (``host:port``, ``ray://host:port`` or ``auto``) instead.
    """

    workers: int | None = None
    address: str | None = None
    name: str = "ray"
    shares_machine: bool = True
    poll_s: float = 0.05

    def run(self, requests: Sequence[Request], *, listener_for: ListenerFor | None = None) -> Iterator[Run]:
        """Runs in the order asked for.

        Raises:
            LabError: Ray is not installed, the cluster is not there, or its machines do not see the run folders.
        """
        ray = import_ray()
        with _cluster(ray, self.address, self.workers):
            task = self._task(ray)
            folders = [queue(request, self.name, self.shares_machine) for request in requests]
            waiting = [task.remote(str(folder)) for folder in folders]
            try:
                for i, request in enumerate(requests):
                    listener = listener_for(request) if listener_for else None
                    ended = self._wait(ray, folders[i], waiting[i], listener)
                    if not ended:
                        folders[i] = self._queue_again(request, read_run(folders[i]))
                        waiting[i] = task.remote(str(folders[i]))
                        self._wait(ray, folders[i], waiting[i], listener)
                    yield read_run(folders[i])
            finally:
                self._cancel(ray, waiting)

    def run_queued(self, folder: Path) -> None:
        """Do the run that waits in ``folder``; if its worker dies it stays *interrupted*."""
        ray = import_ray()
        with _cluster(ray, self.address, self.workers):
            waiting = self._task(ray).remote(str(folder))
            try:
                self._wait(ray, folder, waiting, None)
            finally:
                self._cancel(ray, [waiting])

    def _task(self, ray: Any) -> Any:
        task = ray.remote(num_cpus=1, max_retries=0, max_calls=1)(_work)
        return task.options(runtime_env={"env_vars": self._environment()})

    def _environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if name.startswith("ANABRANCH_")}
        if self.address is None and "PYTHONPATH" in os.environ:  # where papers of other packages may lie
            ours["PYTHONPATH"] = os.environ["PYTHONPATH"]
        return ours | thread_limits(1 if self.address else max(1, cores() // (self.workers or cores())))

    def _wait(self, ray: Any, folder: Path, waiting: Any, listener: Any) -> bool:
        """Until the task has ended, passing its events on; whether its worker lived to the end."""
        seen, over = -1, False
        while not over:
            over = bool(ray.wait([waiting], timeout=self.poll_s)[0])
            seen = follow(folder, listener, seen)
        try:
            ray.get(waiting)
        except ray.exceptions.TaskCancelledError:
            return True
        except ray.exceptions.RayTaskError as error:
            raise LabError(str(error.cause)) from error  # raised before the run began: nothing is lost
        except ray.exceptions.RayError:
            return False
        return True

    def _queue_again(self, request: Request, died: Run) -> Path:
        again = replace(request, resumes=died.id)
        text = f"the worker of {died.id} died after {died.elapsed_s:.0f} s; this run does its work again"
        header = header_for(again, executor=self.name, shares_machine=self.shares_machine)
        with RunFolder.create(header, queued=True) as queued:
            queued.log.write("warning", text=text)
            return queued.folder

    def _cancel(self, ray: Any, waiting: Sequence[Any]) -> None:
        """Ends what still runs as Ctrl-C would: its folder says so, and keeps what was measured."""
        left = [one for one in waiting if not ray.wait([one], timeout=0)[0]]
        for one in left:
            ray.cancel(one, force=False)
        if left:
            ray.wait(left, num_returns=len(left), timeout=10)


def import_ray() -> Any:
    """The module ``ray``.

    Raises:
        LabError: it is not installed.
    """
    # Otherwise Ray asks uv to build an environment anew in each worker.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise LabError("--on ray: Ray is not installed; pip install 'anabranch[ray]'") from error
    return ray


@contextmanager
def _cluster(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    """Joined to the cluster at ``address``, or to a local one that ends with the runs; left as it was if already joined."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if address is None:
        options |= {"num_cpus": workers or cores(), "include_dashboard": False}
    try:
        # "local" keeps RAY_ADDRESS from sending runs to a cluster nobody named.
        ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise LabError(f"--on ray: no cluster ({str(error).splitlines()[0]})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _work(folder: str) -> None:
    """What a worker does: the run in ``folder``, until its end."""
    path, end = Path(folder), time.monotonic() + 5.0
    while not path.is_dir() and time.monotonic() < end:  # a shared disk may show it late
        time.sleep(0.1)
    if not path.is_dir():
        raise LabError(
            f"{socket.gethostname()} does not see {folder}: runs on other machines need ANABRANCH_HOME on a disk they share"
        )
    # What a script starts in the background ignores SIGINT, and so do its workers: Ray's word would not be heard.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(KeyboardInterrupt):  # cancelled; the run's folder says so
        execute_queued(path)
