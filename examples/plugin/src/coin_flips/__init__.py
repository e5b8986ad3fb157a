"""An example paper outside the project: a fair coin lands on heads half of the time."""

from dataclasses import dataclass
from datetime import date

from anabranch.lab import Claim, Paper


@dataclass(frozen=True)
class Settings:
    """What a run may change."""

    flips: int  # coin flips a seed
    rounds: int = 10  # stages of progress
    pause_s: float = 0.0  # seconds of waiting in each round, to watch a run go by

    def __post_init__(self) -> None:
        if self.flips < 1:
            raise ValueError(f"flips={self.flips}: expected at least 1")


PAPER = Paper(
    slug="coin-flips",
    title="A Coin Is Fair",
    authors=("A. Nobody",),
    published=date(1713, 1, 1),
    summary="Flips a coin many times and looks at the share of heads. An example of a paper in a package of its own.",
    package="coin_flips",
    example="from coin_flips import PAPER\nassert PAPER.slug == 'coin-flips'\n",
    scales={"smoke": Settings(flips=1_000), "laptop": Settings(flips=1_000_000)},
    seconds={"smoke": 2, "laptop": 5},
    claims=(
        Claim(
            name="fair",
            says="The share of heads is at most 0.51.",
            measure="heads",
            at_most=0.51,
            origin="ours",
            published="0.5",
            setting_here="a generator of random bits",
            same_setting=True,
        ),
        Claim(
            name="all-counted",
            says="Every flip is counted.",
            measure="counted",
            at_least=1,
            kind="exact",
            origin="ours",
            setting_here="a generator of random bits",
            same_setting=True,
        ),
        Claim(
            name="vector-speed",
            says="Flipping all at once is faster than one at a time.",
            measure="speedup",
            at_least=2,
            kind="timing",
            origin="ours",
            setting_here="a generator of random bits, one core",
        ),
    ),
)
