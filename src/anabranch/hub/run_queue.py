"""Runs asked for from the page: a queue of run folders, a few workers, each run in a process of its own.

The queue has no state but the run folders: a queued folder waits, one whose lock is held runs. So it goes on after a restart.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from anabranch.lab import LabError, Request, Run, find_run, read_run
from anabranch.lab.execution import header_for
from anabranch.lab.places import home, runs_folder
from anabranch.lab.queued import thread_limits
from anabranch.lab.runs import RunFolder, has_ended

PAGE = "page"
_WORKER = "import sys; from anabranch.hub.run_queue import work; work(sys.argv[1], sys.argv[2])"
_WORKER_FILE = "worker.pid"
_KILL_AFTER_S = 10.0


class RunQueue:
    """Starts queued runs of the page, the oldest first.

    Args:
        workers: runs at once; with more than one their timing claims are refused, as they share the machine.
        where: ``"here"``, or ``"ray"`` / ``"ray:ADDRESS"`` for a task on a cluster.
        poll_s: how often it looks for work.
    """

    def __init__(self, workers: int = 1, *, where: str = "here", poll_s: float = 0.2) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers}: expected at least 1")
        self._workers, self._where, self._poll_s = workers, where, poll_s
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._ended: set[str] = (
            set()
        )  # folders that are over: nothing is left to do with them, so they are not read again

    def start(self) -> None:
        """Begin to work, with what an earlier server left in the queue."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._loop, name="run-queue", daemon=True)
        self._thread.start()

    def stop(self, *, cancel: bool = False) -> None:
        """Stop starting runs; what runs goes on by itself unless ``cancel``."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        if cancel:
            for run_id in list(self._processes):
                with contextlib.suppress(LabError):  # it has ended meanwhile
                    self.cancel(run_id)

    def submit(
        self,
        slug: str,
        scale: str,
        *,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        resumes: str | None = None,
    ) -> str:
        """Put a run into the queue; gives its id.

        Raises:
            LabError: no such paper or scale, or settings that are not valid, before a folder is made.
        """
        request = Request(slug, scale, seed, dict(settings or {}), resumes=resumes)
        header = {**header_for(request, executor=PAGE, shares_machine=self._workers > 1), "command": f"page: {slug}"}
        with RunFolder.create(header, queued=True) as folder:
            run_id = folder.folder.name
        self._wake.set()
        return run_id

    def again(self, run_id: str) -> str:
        """Queue a run that was interrupted, failed or cancelled once more, as it was.

        Raises:
            LabError: there is no such run, or it has not ended so.
        """
        run = find_run(run_id)
        if run.state in ("queued", "running", "finished"):
            raise LabError(f"run {run_id} is {run.state}: there is nothing to start again")
        return self.submit(run.slug, run.scale, seed=run.seed, settings=run.header["overrides"], resumes=run.id)

    def cancel(self, run_id: str) -> None:
        """Take a run out of the queue, or end it as Ctrl-C would; what was measured is kept.

        Raises:
            LabError: there is no such run, or it has ended, or it was not started from the page.
        """
        run = find_run(run_id)
        if run.header.get("executor") != PAGE:
            raise LabError(f"run {run_id} was not started from the page: end it where it was started")
        with self._lock:
            if run.state == "queued":
                with RunFolder.adopt(run.folder) as folder:
                    folder.log.write("start", slug=run.slug, scale=run.scale, seed=run.seed, pid=os.getpid())
                    folder.log.write("end", state="cancelled", error=None)
                return
        mine = self._processes.get(run.id)
        pid = mine.pid if mine else _worker_of(run.folder)  # an earlier server's
        if run.state != "running" or pid is None:
            raise LabError(f"run {run_id} is {run.state}: there is nothing to cancel")
        threading.Thread(target=_end, args=(run.folder, int(pid)), daemon=True).start()

    def _loop(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError, LabError):  # one bad folder does not end the queue
                self._step()
            self._wake.wait(self._poll_s)
            self._wake.clear()

    def _step(self) -> None:
        ours = self._open_runs()
        for run in ours:
            process = self._processes.get(run.id)
            if process is not None and process.poll() is not None:
                del self._processes[run.id]
                if run.state == "queued":  # it never came to the run: without a word it would be tried for ever
                    _give_up(run, process.returncode)
        for run_id in self._processes.keys() - {run.id for run in ours}:
            self._processes.pop(run_id).poll()
        running = {run.id for run in ours if run.state == "running"} | set(self._processes)
        for run in ours:
            if len(running) >= self._workers:
                return
            if run.state == "queued" and run.id not in running:
                with self._lock, _alone():
                    # Another server on the same folders may have begun it since.
                    if read_run(run.folder).state == "queued" and _worker_of(run.folder) is None:
                        self._processes[run.id] = _spawn(run.folder, self._where, self._workers)
                running.add(run.id)

    def _open_runs(self) -> list[Run]:
        """Runs of the page that have not ended, oldest first. Cost: one read of the log of every run that goes on; of one
        that has ended the last line is read, once."""
        root, found = runs_folder(), []
        for folder in sorted(root.iterdir()) if root.is_dir() else []:
            if folder.name in self._ended or folder.name.startswith(".") or not folder.is_dir():
                continue
            if has_ended(folder):
                self._ended.add(folder.name)
                continue
            try:
                run = read_run(folder)
            except LabError:  # being made, or damaged
                continue
            if run.state in ("queued", "running") and run.header.get("executor") == PAGE:
                found.append(run)
            elif run.state != "running":
                self._ended.add(folder.name)
        return found


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One server at a time looks whether a run waits and starts it."""
    with (home() / "queue.lock").open("a") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _give_up(run: Run, code: int) -> None:
    """Write down that the worker ended before it began."""
    log = run.folder / "log.txt"
    tail = log.read_text("utf-8", "replace").strip().splitlines()[-1:] if log.is_file() else []
    with contextlib.suppress(LabError), RunFolder.adopt(run.folder) as folder:
        folder.log.write("start", slug=run.slug, scale=run.scale, seed=run.seed, pid=os.getpid())
        error = f"its process ended with code {code} before it began" + (f": {tail[0]}" if tail else "")
        folder.log.write("end", state="failed", error=error)


def _spawn(folder: Path, where: str, workers: int) -> subprocess.Popen[bytes]:
    from anabranch.lab.environment import cores

    limits = thread_limits(max(1, cores() // workers))
    with (folder / "log.txt").open("ab") as log:
        worker = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(folder), where],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **{name: os.environ.get(name, value) for name, value in limits.items()}},
        )  # fmt: skip
    (folder / _WORKER_FILE).write_text(
        str(worker.pid)
    )  # a later server ends it by this; the log's may be another machine's
    return worker


def _worker_of(folder: Path) -> int | None:
    """The process here that does the run of ``folder`` or waits for it on a cluster, if it still lives."""
    try:
        pid = int((folder / _WORKER_FILE).read_text())
        if Path("/proc/self/cmdline").exists() and folder.name.encode() not in _command_of(pid):
            return None  # the number was given to another process
    except (OSError, ValueError):
        return None
    return pid


def _command_of(pid: int) -> bytes:
    """The command line of a process; a process that has just been started shows none for a moment, a dead one for good."""
    for _ in range(20):
        if command := Path(f"/proc/{pid}/cmdline").read_bytes():
            return command
        time.sleep(0.005)
    return b""


def work(folder: str, where: str) -> None:
    """What a worker's process does."""
    from anabranch.lab.execution import execute_queued

    if where == "here":
        with contextlib.suppress(KeyboardInterrupt):  # cancelled; the run's folder says so
            execute_queued(Path(folder))
        return
    from anabranch.lab.executors import executor_named
    from anabranch.lab.ray_executor import RayCluster

    cluster = executor_named(where)
    if not isinstance(cluster, RayCluster):
        raise LabError(f"{where}: runs of the page go here or to ray")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the task is cancelled on the way out
    with contextlib.suppress(KeyboardInterrupt):
        cluster.run_queued(Path(folder))


def _end(folder: Path, pid: int) -> None:
    """SIGTERM to the run, which ends what it has begun; SIGKILL to its whole process group when it does not listen."""
    deadline = time.monotonic() + _KILL_AFTER_S
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            if read_run(folder).state != "running":
                return
            time.sleep(0.1)
        os.killpg(os.getpgid(pid), signal.SIGKILL)
