"""Measured claims of a paper: ``results/<slug>.json``, written by ``check`` and shipped with the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, cast

from anabranch.lab.code import code_hash
from anabranch.lab.contract import Claim, Paper
from anabranch.lab.discover import find_paper, module_of
from anabranch.lab.errors import LabError
from anabranch.lab.events import to_jsonable
from anabranch.lab.places import results_folder
from anabranch.lab.runs import Run, write_atomically
from anabranch.lab.verdicts import Verdict

FORMAT = 1
Result = dict[str, Any]


def make_result(paper: Paper, runs: Sequence[Run], verdicts: Sequence[Verdict], *, rule: str) -> Result:
    """The result of checking ``paper``: every seed's values, the verdicts, and what they were measured with."""
    first = runs[0].header
    names = list(dict.fromkeys(name for run in runs for name in run.measures))
    claims = {claim.name: claim for claim in paper.claims}
    result = {
        "format": FORMAT,
        "slug": paper.slug,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": first.get("commit"),
        "dirty": bool(first.get("dirty")),
        "code": first["code"],
        "environment": first["environment"],
        "scale": first["scale"],
        "settings": first["settings"],
        "device": first["device"],
        "seeds": [run.seed for run in runs],
        "seeds_rule": rule,
        "seconds": {str(run.seed): round(run.elapsed_s, 2) for run in runs},
        "runs": [run.id for run in runs],
        "shared": sorted({e["name"] for run in runs for e in run.events if e["type"] == "cached" and e["shared"]}),
        "warnings": sorted({text for run in runs for text in run.warnings}),
        "measures": {name: _measure(name, runs) for name in names},
        "claims": [
            {**_claim(claims[verdict.claim]), "verdict": verdict.outcome, **_judged(verdict)} for verdict in verdicts
        ],
    }
    return cast(Result, to_jsonable(result))


def _measure(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    found = {run.seed: run.measures[name] for run in runs if name in run.measures}
    one = next(iter(found.values()))
    entry: dict[str, Any] = {
        "unit": one.unit,
        "scale": one.scale,
        "values": {str(s): m.value for s, m in found.items()},
    }
    if any(m.details or m.samples for m in found.values()):
        entry["details"] = {
            str(seed): {**m.details, **({"samples": m.samples} if m.samples else {})} for seed, m in found.items()
        }
    return entry


def _claim(claim: Claim) -> dict[str, Any]:
    return {**asdict(claim), "threshold": claim.threshold, "comparison": claim.comparison}


def _judged(verdict: Verdict) -> dict[str, Any]:
    interval = [verdict.low, verdict.high] if verdict.low is not None else None
    return {
        "value": verdict.value, "interval": interval, "unit": verdict.unit, "n": verdict.n, "reason": verdict.reason,
        "details": dict(verdict.details or {}),
    }  # fmt: skip


def write_result(result: Result, folder: Path) -> Path:
    """Write ``<folder>/<slug>.json``, whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{result['slug']}.json"
        write_atomically(path, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise LabError(f"cannot write the result to {folder}: {(error.strerror or str(error)).lower()}") from error
    return path


def load_result(slug: str, *, folder: Path | None = None) -> Result | None:
    """The committed result of a paper, or None; a plug-in's paper may keep ``results.json`` in its own folder."""
    candidates = [(folder or results_folder()) / f"{slug}.json"]
    if folder is None:
        spec = __import__(module_of(slug), fromlist=["PAPER"])
        candidates += [Path(place) / "results.json" for place in getattr(spec, "__path__", [])]
    for path in candidates:
        try:
            result = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise LabError(f"{path} cannot be read: {error}") from error
        if not isinstance(result, dict) or result.get("format") != FORMAT:
            raise LabError(f"{path} is not a result of format {FORMAT}")
        return result
    return None


def is_stale(result: Result) -> bool:
    """Whether the code has changed since the result was measured, or a claim's threshold has."""
    paper = find_paper(result["slug"])
    if result["code"] != code_hash(module_of(paper.slug)):
        return True
    then = {c["name"]: (c["measure"], c["comparison"], c["threshold"]) for c in result["claims"]}
    return then != {c.name: (c.measure, c.comparison, c.threshold) for c in paper.claims}


def result_verdicts(result: Result) -> dict[str, Verdict]:
    """The verdicts of a result, by claim."""
    verdicts = {}
    for claim in result["claims"]:
        low, high = claim["interval"] or (None, None)
        verdicts[claim["name"]] = Verdict(
            claim["name"],
            claim["verdict"],
            claim["value"],
            low,
            high,
            claim["unit"],
            claim["reason"],
            claim["n"],
            claim["details"],
        )
    return verdicts


def verdicts_of_run(run: Run) -> dict[str, Verdict]:
    """The verdicts that one run wrote down, by claim."""
    return {claim: Verdict(**event["verdict"]) for claim, event in run.verdicts.items()}


def result_schema() -> dict[str, Any]:
    """The JSON schema of a result file."""
    return cast(dict[str, Any], json.loads(resources.files("anabranch.lab").joinpath("result.schema.json").read_text()))
