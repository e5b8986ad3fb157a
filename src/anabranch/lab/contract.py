"""The contract of a paper: plain data that says what it is, what it claims and how it is run.

Nothing here imports an experiment or a heavy library: listing every paper must stay instant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import date
from typing import Any, Literal, get_args

Kind = Literal["exact", "statistical", "timing"]
Origin = Literal["paper", "ours"]
ReadIn = Literal["paper", "code", "abstract", "secondary"]

MAX_CLAIMS = 8
MAX_SETTINGS = 12
SCALES = ("smoke", "laptop", "paper")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a paper that one scalar can judge.

    A claim with a ``measure`` has exactly one threshold (``at_least`` or ``at_most``) and is judged from that measure and
    from nothing else. A claim without a measure is what the paper published and nothing here checks yet.

    Args:
        name: short kebab-case name, unique in its paper.
        says: the claim in our own words.
        measure: name of the ``lab.measure`` that judges it.
        at_least, at_most: the threshold, in the measure's unit.
        kind: how the verdict is formed: ``exact`` (worst value, no interval), ``statistical`` (t-interval over seeds),
            ``timing`` (bootstrap interval over interleaved pairs of one run).
        origin: ``paper`` when the authors claim it, ``ours`` when this project does.
        published: the value the paper prints, ``None`` when we have not found it.
        where: table, figure or page.
        read_in: where we read the published value.
        published_setting, setting_here: what it was measured on there and here.
        same_setting: ``False`` makes every surface say *holds on the stand-in*.
    """

    name: str
    says: str
    measure: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    kind: Kind = "statistical"
    origin: Origin = "paper"
    published: str | None = None
    where: str = ""
    read_in: ReadIn = "paper"
    published_setting: str = ""
    setting_here: str = ""
    same_setting: bool = False

    def __post_init__(self) -> None:
        _require(_KEBAB.fullmatch(self.name) is not None, f"claim name {self.name!r} is not kebab-case")
        _require(bool(self.says), f"claim {self.name!r} says nothing")
        for argument, value, allowed in (
            ("kind", self.kind, get_args(Kind)),
            ("origin", self.origin, get_args(Origin)),
            ("read_in", self.read_in, get_args(ReadIn)),
        ):
            _require(
                value in allowed, f"claim {self.name!r}: {argument}={value!r}, expected one of {', '.join(allowed)}"
            )
        thresholds = (self.at_least is not None) + (self.at_most is not None)
        _require(
            thresholds == (self.measure is not None),
            f"claim {self.name!r}: a measured claim has exactly one of at_least and at_most, an unmeasured one has none",
        )

    @property
    def checked(self) -> bool:
        """Whether an experiment here measures it."""
        return self.measure is not None

    @property
    def threshold(self) -> float | None:
        return self.at_least if self.at_least is not None else self.at_most

    @property
    def comparison(self) -> str:
        """``>=`` or ``<=``; empty for a claim without a measure."""
        if self.measure is None:
            return ""
        return ">=" if self.at_least is not None else "<="

    @property
    def stand_in(self) -> str:
        """What stands in for the paper's setting, in a few words; empty where the setting is the paper's own."""
        return "" if self.same_setting else self.setting_here.split(",")[0].strip()


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper: what it is, what it claims, how it is run.

    Args:
        slug: its name on the command line, kebab-case; its folder is the slug with underscores.
        title, authors, published, arxiv, repository: as on the paper (``arxiv`` is the id, ``repository`` owner/name).
        summary: our own words: what it does and who needs it.
        package: the library package that holds its parts.
        extra: the extra of ``anabranch[...]`` that its experiment needs; empty when the core is enough.
        data: names of the data sets it reads (``anabranch data``).
        parts: public symbols that implement it, ``module:name``.
        example: about ten lines that use the parts; the tests execute them.
        scales: settings (one frozen dataclass type) by scale; empty while there is no experiment.
        seconds: expected wall time by scale on two cores.
        claims: at most eight.
        author_count: number of authors where we know more than the listed names.
    """

    slug: str
    title: str
    authors: tuple[str, ...]
    published: date
    summary: str
    package: str
    arxiv: str | None = None
    repository: str | None = None
    extra: str = ""
    data: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    example: str = ""
    scales: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    author_count: int | None = None

    def __post_init__(self) -> None:
        _require(_KEBAB.fullmatch(self.slug) is not None, f"paper slug {self.slug!r} is not kebab-case")
        _require(
            bool(self.title.strip()) and bool(self.summary.strip()), f"paper {self.slug}: title or summary is empty"
        )
        _require(len(self.claims) <= MAX_CLAIMS, f"paper {self.slug}: {len(self.claims)} claims, at most {MAX_CLAIMS}")
        names = [claim.name for claim in self.claims]
        _require(len(set(names)) == len(names), f"paper {self.slug}: two claims share a name")
        _require(
            self.author_count is None or self.author_count >= max(1, len(self.authors)),
            f"paper {self.slug}: author_count={self.author_count} is below the {len(self.authors)} listed names",
        )
        for scale, settings in self.scales.items():
            _require(scale in SCALES, f"paper {self.slug}: unknown scale {scale!r}")
            _require(is_dataclass(settings), f"paper {self.slug}: settings of {scale!r} are not a dataclass")
            _require(len(fields(settings)) <= MAX_SETTINGS, f"paper {self.slug}: more than {MAX_SETTINGS} settings")
        _require(
            len({type(s) for s in self.scales.values()}) <= 1, f"paper {self.slug}: scales use different settings types"
        )
        _require(
            bool(self.scales) or not any(c.checked for c in self.claims),
            f"paper {self.slug}: measured claims, no scales",
        )

    @property
    def runnable(self) -> bool:
        """Whether its experiment is here."""
        return bool(self.scales)

    @property
    def module(self) -> str:
        """Folder name of the paper."""
        return self.slug.replace("-", "_")

    @property
    def n_authors(self) -> int:
        return self.author_count if self.author_count is not None else len(self.authors)

    @property
    def url(self) -> str | None:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None


_KEBAB = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
