"""Writes the skeleton of a new paper, which runs at once and fails no check it has not been given."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from anabranch.lab.contract import _KEBAB
from anabranch.lab.discover import papers
from anabranch.lab.errors import LabError
from anabranch.lab.places import checkout

_INIT = '''"""{title}: say in one line what the paper does."""

from dataclasses import dataclass
from datetime import date

from anabranch.lab import Claim, Paper


@dataclass(frozen=True)
class Settings:
    """What a run may change, each with its unit."""

    samples: int  # draws a seed


PAPER = Paper(
    slug="{slug}",
    title="{title}",
    authors=(),
    author_count=1,
    published=date({year}, {month}, {day}),
    summary="Our own words: what it does and who needs it.",
    package="{package}",
    scales={{"smoke": Settings(samples=1_000), "laptop": Settings(samples=1_000_000)}},
    seconds={{"smoke": 2, "laptop": 10}},
    claims=(
        Claim(
            name="mean-is-half",
            says="The mean of uniform numbers is at least 0.49.",
            measure="mean",
            at_least=0.49,
            kind="statistical",
            origin="ours",
            setting_here="generated numbers",
            same_setting=True,
        ),
    ),
)
'''

_EXPERIMENT = '''"""The experiment: reads top to bottom like the paper's own experiment section."""

from __future__ import annotations

import numpy as np

from anabranch.lab import Lab
from {module} import Settings


def experiment(lab: Lab, settings: Settings) -> None:
    with lab.stage("draw", total=10) as stage:
        means = []
        for _ in range(10):
            means.append(lab.generator.random(settings.samples // 10).mean())
            stage.advance(mean=float(np.mean(means)))
    lab.measure("mean", float(np.mean(means)))
'''


def write_skeleton(slug: str, into: Path | None = None) -> list[Path]:
    """Write ``<into>/<slug_with_underscores>/`` and give its files back.

    In a checkout ``into`` defaults to the built-in papers; elsewhere to the current folder, as a package that an entry point
    of the group ``anabranch.papers`` can name.

    Raises:
        LabError: the slug is not kebab-case or is taken, or the folder exists.
    """
    if not _KEBAB.fullmatch(slug):
        raise LabError(f"slug {slug!r}: expected lower-case words joined by '-', such as my-paper")
    if slug in {paper.slug for paper in papers()}:
        raise LabError(f"there is a paper {slug!r} already; `anabranch show {slug}` shows it")
    root = checkout()
    built_in = into is None and root is not None
    parent = root / "src" / "anabranch" / "papers" if built_in and root is not None else into or Path.cwd()
    name = slug.replace("-", "_")
    folder = parent / name
    if folder.exists():
        raise LabError(f"{folder} exists already; nothing was written")
    today = date.today()
    facts = {
        "slug": slug,
        "title": slug.replace("-", " ").capitalize(),
        "module": f"anabranch.papers.{name}" if built_in else name,
        "package": name,
        "year": today.year,
        "month": today.month,
        "day": today.day,
    }
    try:
        folder.mkdir(parents=True)
        files = [folder / "__init__.py", folder / "experiment.py"]
        for path, text in zip(files, (_INIT, _EXPERIMENT), strict=True):
            path.write_text(text.format(**facts), encoding="utf-8")
    except OSError as error:
        raise LabError(f"cannot write to {folder}: {(error.strerror or str(error)).lower()}") from error
    return files
