"""Checks a paper's claims: runs its seeds, judges, compares with the committed result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anabranch.lab.contract import Paper
from anabranch.lab.discover import find_paper
from anabranch.lab.errors import LabError
from anabranch.lab.execution import Request, validate
from anabranch.lab.executors import Executor, ThisProcess
from anabranch.lab.places import checkout, results_folder
from anabranch.lab.queued import ListenerFor
from anabranch.lab.results import Result, load_result, make_result, result_verdicts, write_result
from anabranch.lab.runs import Run
from anabranch.lab.verdicts import MIN_SEEDS, Verdict, judge, worse


@dataclass(frozen=True)
class Check:
    """Outcome of checking one paper.

    Attributes:
        crashed: runs that did not finish.
        worse_than_committed: claims whose verdict is worse than the committed one at the same scale and threshold.
        written: where the result file is; None when nothing finished.
    """

    paper: Paper
    runs: list[Run]
    verdicts: list[Verdict]
    crashed: list[Run]
    worse_than_committed: list[str]
    result: Result | None
    written: Path | None

    def exit_code(self, *, strict: bool = False) -> int:
        """0: all ran to their end; 1: one crashed, a verdict got worse, or (strict) a claim falls short."""
        short = strict and any(verdict.outcome == "falls short" for verdict in self.verdicts)
        return 1 if self.crashed or self.worse_than_committed or short else 0


def check(
    slug: str,
    *,
    seeds: int = MIN_SEEDS,
    scale: str = "laptop",
    settings: Mapping[str, Any] | None = None,
    until_decided: int | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    fresh: bool = False,
    write: Path | None = None,
    listener_for: ListenerFor | None = None,
    on_run: Callable[[Run], None] | None = None,
) -> Check:
    """Run ``slug`` with seeds 0, 1, ... and judge its claims.

    With ``until_decided``, one seed after another is added while a statistical claim is undecided, up to that many in all;
    every seed is reported. The result is written to ``write``, or in a checkout to ``results/`` when the claims are judged
    with the scale's own settings, and beside the first run elsewhere.

    Raises:
        LabError: bad input, found before anything runs.
    """
    if seeds < 1:
        raise LabError(f"seeds={seeds}: expected at least 1")
    if until_decided is not None and until_decided < seeds:
        raise LabError(f"until_decided={until_decided}: expected at least the {seeds} seeds to start with")
    paper, executor = find_paper(slug), executor or ThisProcess()
    base = Request(slug, scale, 0, dict(settings or {}), device, fresh)
    validate(base)
    runs: list[Run] = []

    def run_seeds(first: int, last: int) -> None:
        for run in executor.run([replace(base, seed=s) for s in range(first, last)], listener_for=listener_for):
            runs.append(run)
            if on_run is not None:
                on_run(run)

    run_seeds(0, seeds)
    verdicts = _judge(paper, runs, scale)
    while until_decided is not None and len(runs) < until_decided and _undecided(paper, verdicts):
        run_seeds(len(runs), len(runs) + 1)
        verdicts = _judge(paper, runs, scale)
    finished = [run for run in runs if run.state == "finished"]
    crashed = [run for run in runs if run.state != "finished"]
    committed = load_result(slug)
    result, written = None, None
    if finished:
        rule = f"seeds 0 to {seeds - 1}, fixed beforehand"
        if until_decided is not None:
            rule += f", then one at a time while a statistical claim is undecided, {until_decided} at most"
        result = make_result(paper, finished, verdicts, rule=rule)
        if not crashed or write is not None:
            written = write_result(result, write or _target(scale, base, finished[0]))
    return Check(paper, runs, verdicts, crashed, _worse(committed, result), result, written)


def _judge(paper: Paper, runs: list[Run], scale: str) -> list[Verdict]:
    return judge(paper, [run.measures for run in runs if run.state == "finished"], scale=scale)


def _undecided(paper: Paper, verdicts: list[Verdict]) -> bool:
    statistical = {claim.name for claim in paper.claims if claim.kind == "statistical" and claim.checked}
    return any(verdict.outcome == "undecided" and verdict.claim in statistical for verdict in verdicts)


def _target(scale: str, request: Request, first: Run) -> Path:
    if checkout() is not None and scale != "smoke" and not request.settings:
        return results_folder()
    return first.folder / "artefacts"


def _worse(committed: Result | None, result: Result | None) -> list[str]:
    if committed is None or result is None or committed["scale"] != result["scale"]:
        return []
    before, after = result_verdicts(committed), result_verdicts(result)
    then = {claim["name"]: claim["threshold"] for claim in committed["claims"]}
    now = {claim["name"]: claim["threshold"] for claim in result["claims"]}
    return [
        name
        for name in after
        if name in before and then[name] == now[name] and worse(after[name].outcome, before[name].outcome)
    ]
