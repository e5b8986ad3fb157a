"""What an experiment is given: its settings' companion that measures, shows progress and keeps artefacts."""

from __future__ import annotations

import csv
import io
import math
import re
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anabranch.lab.errors import LabError
from anabranch.lab.places import cache_folder
from anabranch.lab.runs import RunFolder, active_runs, write_atomically
from anabranch.lab.timing import Timing, time_pairs

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

_EVERY_S = 0.1
_NAME = re.compile(r"[a-z0-9]+([-_.][a-z0-9]+)*")


class StageProgress:
    """Progress of one stage. ``progress`` has the shape of the library's callbacks: ``(done, total, metrics)``."""

    def __init__(self, lab: Lab, name: str, total: float | None) -> None:
        self._lab, self.name, self.total = lab, name, total
        self.done: float = 0
        self._metrics: dict[str, Any] = {}
        self._begin = self._last = clock.monotonic()

    def advance(self, by: float = 1, **metrics: Any) -> None:
        """``by`` more are done; ``metrics`` are shown beside the bar."""
        self.progress(self.done + by, self.total, metrics)

    def progress(self, done: float, total: float | None = None, metrics: Mapping[str, Any] | None = None) -> None:
        """``done`` of ``total`` are done. Events are written at most ten times a second."""
        self.done = done
        self.total = total if total is not None else self.total
        self._metrics.update(metrics or {})
        now = clock.monotonic()
        if now - self._last >= _EVERY_S:
            self._last = now
            self._write(None)

    def _write(self, seconds: float | None) -> None:
        self._lab._folder.log.write(
            "stage", name=self.name, done=self.done, total=self.total, metrics=self._metrics, seconds=seconds
        )

    def _finish(self) -> None:
        self._write(round(clock.monotonic() - self._begin, 4))


class Lab:
    """The lab of one run: ``seed, generator, device, folder, stage, measure, series, table, figure, cached, time``.

    An experiment is ``experiment(lab, settings)``: it reads like the paper's own experiment section, and everything it
    finds out goes through these methods. Claims are judged from measures and from nothing else.
    """

    def __init__(
        self, folder: RunFolder, *, seed: int, device: str = "cpu", fresh: bool = False, shares_machine: bool = False
    ) -> None:
        self._folder, self._fresh, self._shares_machine = folder, fresh, shares_machine
        self.seed, self.device = seed, device

    @cached_property
    def generator(self) -> np.random.Generator:
        """The run's random generator, made from its seed."""
        import numpy as np

        return np.random.default_rng(self.seed)

    @property
    def folder(self) -> Path:
        """Folder for files of the experiment's own."""
        return self._folder.artefacts

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[StageProgress]:
        """A named part of the run, with a bar when ``total`` is known."""
        stage = StageProgress(self, name, total)
        stage._write(None)
        yield stage
        if total is not None and stage.done < total:
            stage.done = total
        stage._finish()

    def measure(
        self, name: str, value: float, *, unit: str = "", scale: Literal["linear", "log"] = "linear", **details: Any
    ) -> float:
        """Write down a scalar. ``scale="log"`` for ratios: intervals over seeds are then taken on logarithms.

        Raises:
            LabError: the value is not finite, or not positive on the log scale.
        """
        value = float(value)
        if not math.isfinite(value):
            raise LabError(f"measure {name!r} is {value}: a measure is a finite number")
        if scale == "log" and value <= 0:
            raise LabError(f"measure {name!r} is {value}: the log scale needs a positive number")
        self._folder.log.write("measure", name=_named(name), value=value, unit=unit, scale=scale, details=details)
        return value

    def series(self, name: str, x: float, **values: float) -> None:
        """Add the point ``values`` at ``x`` to a curve that the terminal and the page draw while it grows."""
        self._folder.log.write("series", name=_named(name), x=float(x), values=values)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], *, caption: str = "") -> None:
        """Keep a table (list of rows with the same keys) as CSV, shown in the report."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path = self._keep(f"{_named(name)}.csv", buffer.getvalue().encode())
        data = [[row.get(column) for column in columns] for row in rows]
        self._folder.log.write("table", name=name, caption=caption, file=path, columns=columns, rows=data)

    def figure(self, name: str, figure: Figure, *, caption: str = "") -> None:
        """Keep a matplotlib figure as SVG and PNG."""
        from anabranch.lab.figures import render

        files = {kind: self._keep(f"{_named(name)}.{kind}", body) for kind, body in render(figure).items()}
        self._folder.log.write("figure", name=name, caption=caption, files=files)

    def cached(self, name: str, builder: Callable[..., Any], *arguments: Any, shared: bool = False) -> Any:
        """``builder(*arguments)``, built once and kept. The key holds the arguments, the code and, unless ``shared``, the seed.

        The value is a tree of dicts, lists and tuples with arrays and plain values at the leaves. A damaged entry is built
        again; a shared one is named in the result.
        """
        from anabranch.lab.cache import cache_key, cached

        key = cache_key(builder, arguments, None if shared else self.seed)
        begin = clock.monotonic()
        value, found = cached(
            cache_folder(),
            key,
            lambda: builder(*arguments),
            fresh=self._fresh,
            note=self._warn,
        )
        self._folder.log.write(
            "cached",
            name=_named(name),
            key=key,
            found=found,
            shared=shared,
            seconds=round(clock.monotonic() - begin, 4),
        )
        return value

    def time(
        self,
        name: str,
        ours: Callable[[], Any],
        peer: Callable[[], Any] | None = None,
        *,
        pairs: int = 9,
        warmup: int = 1,
        **details: Any,
    ) -> Timing:
        """Measure how many times faster ``ours`` is than ``peer`` (median of interleaved pairs), or its median seconds.

        The measure notes when another run was active or runs shared the machine: its claims are then not judged.
        """
        others = [run for run in active_runs(root=self._folder.folder.parent) if run != self._folder.folder.name]
        timing = time_pairs(ours, peer, pairs=pairs, warmup=warmup)
        disturbed = "runs shared the machine" if self._shares_machine else "another run was active" if others else ""
        samples = timing.ratios or timing.ours_s
        self._folder.log.write(
            "measure",
            name=_named(name),
            value=timing.value,
            unit="x" if timing.peer_s else "s",
            scale="linear",
            samples=samples,
            details={**details, "ours_s": timing.ours_s, "peer_s": timing.peer_s, "disturbed": disturbed},
        )
        return timing

    def _warn(self, text: str) -> None:
        self._folder.log.write("warning", text=text)

    def _keep(self, file: str, body: bytes) -> str:
        write_atomically(self.folder / file, body)
        return f"artefacts/{file}"


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise LabError(f"name {name!r}: expected lower-case words joined by '-', '_' or '.'")
    return name
