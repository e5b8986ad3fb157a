"""Every score of the simulation in the plane, run by run (2512.18184)."""

from dataclasses import dataclass

import torch

from anabranch.generative import metrics
from anabranch.generative._checks import check_count
from anabranch.generative.mode_scores import coverage_one_to_one, mode_kl, nearest_distance, normalized_wasserstein
from anabranch.generative.plane_simulation import PlaneRuns

BAD, RADIUS = 1.0, 0.5  # the paper's


@dataclass(frozen=True)
class PlaneScores:
    """One run's.

    Args:
        distance: mean, of a sample to the nearest of the target's fixed points.
        bad_share: of samples farther than 1 from all of them.
        wasserstein2, normalized_wasserstein2: to fresh points of the target, and to as many of each arc as were generated there.
        coverage, precision: one to one, within 0.5.
        mmd: squared and unbiased, Gaussian kernel of width 1.
        mode_kl: of eight cells of the fixed points.
        kept: share of the source's draws that pruning kept.
    """

    distance: float
    bad_share: float
    wasserstein2: float
    normalized_wasserstein2: float
    coverage: float
    precision: float
    mmd: float
    mode_kl: float
    kept: float


def plane_scores(runs: PlaneRuns, *, exact: int = 500, generator: torch.Generator | None) -> list[PlaneScores]:
    """The scores of every run.

    Args:
        exact: samples of each run behind the two Wasserstein distances and MMD, at most. Cost: O(exact^3) a run.

    Raises:
        ValueError: exact < 2.
    """
    check_count("exact", exact, 2)
    rows = []
    for x, points, target, kept in zip(runs.samples, runs.points, runs.targets, runs.kept, strict=True):
        some = x[:exact]
        fresh, mode = target.sample(4 * max(len(some), 3), generator=generator)
        distance = nearest_distance(x, points)
        mixed = fresh[torch.randperm(len(fresh), generator=generator)[: len(some)]]
        matched = coverage_one_to_one(x[: len(points)], points, radius=RADIUS)
        rows.append(
            PlaneScores(
                distance=float(distance.mean()),
                bad_share=float((distance > BAD).double().mean()),
                wasserstein2=metrics.wasserstein2(some, mixed),
                normalized_wasserstein2=normalized_wasserstein(some, fresh, mode, target.centers, generator=generator),
                coverage=matched.coverage,
                precision=matched.precision,
                mmd=metrics.mmd(some, points[:exact], bandwidths=[1.0]),
                mode_kl=mode_kl(x, points, generator=generator),
                kept=float(kept),
            )
        )
    return rows
