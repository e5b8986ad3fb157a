"""Two runs side by side."""

from __future__ import annotations

from typing import Any

from anabranch.lab.runs import Run


def compare_runs(first: Run, second: Run) -> dict[str, Any]:
    """What differs in the settings, and every measure and verdict of both.

    Returns:
        ``{"runs": [...], "settings": {name: [a, b]}, "measures": [{name, unit, values, ratio}], "verdicts": {claim: [a, b]}}``;
        ``ratio`` is second / first, None where one is missing or zero.
    """
    both = (first, second)
    facts = [
        {"id": run.id, "slug": run.slug, "scale": run.scale, "seed": run.seed, "state": run.state, "seconds": run.elapsed_s,
         "commit": run.header.get("commit")}
        for run in both
    ]  # fmt: skip
    names = list(dict.fromkeys([*first.header["settings"], *second.header["settings"]]))
    settings = {name: [run.header["settings"].get(name) for run in both] for name in names}
    measures = []
    for name in dict.fromkeys([*first.measures, *second.measures]):
        found = [run.measures.get(name) for run in both]
        values = [measure.value if measure else None for measure in found]
        a, b = values
        measures.append(
            {
                "name": name,
                "unit": next(measure.unit for measure in found if measure),
                "values": values,
                "ratio": b / a if a and b is not None else None,
            }
        )
    claims = dict.fromkeys([*first.verdicts, *second.verdicts])
    return {
        "runs": facts,
        "settings": {name: pair for name, pair in settings.items() if pair[0] != pair[1]},
        "measures": measures,
        "verdicts": {claim: [run.verdicts.get(claim, {}).get("outcome") for run in both] for claim in claims},
    }
