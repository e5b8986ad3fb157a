"""The scores of the simulation in the plane."""

import pytest
import torch

from anabranch import generative as ge
from anabranch.generative.plane_scores import plane_scores

F64 = torch.float64


def test_plane_scores_are_those_of_their_parts() -> None:
    """Each score by its own function; samples that are the target's own points are perfect."""
    g = torch.Generator().manual_seed(0)
    targets = (ge.PlaneTarget(torch.tensor([0.0, 2.0, 4.0], dtype=F64)), ge.PlaneTarget.draw(generator=g))
    runs = ge.simulate_plane(ge.PLANE_SCENARIOS["pruned-mean"], targets, steps=2, points=64, draws=80, generator=g)
    found = plane_scores(runs, exact=50, generator=torch.Generator().manual_seed(1))
    for i, score in enumerate(found):
        distance = torch.cdist(runs.samples[i].double(), runs.points[i].double()).amin(1)
        assert score.distance == pytest.approx(float(distance.mean()))
        assert score.bad_share == pytest.approx(float((distance > 1).double().mean()))
        assert score.kept == pytest.approx(float(runs.kept[i]))
        assert score.normalized_wasserstein2 <= 1.05 * score.wasserstein2 + 1
    perfect = ge.PlaneRuns(runs.points, runs.points, targets, runs.points, torch.ones(2), None, runs.net)
    for score in plane_scores(perfect, generator=torch.Generator().manual_seed(1)):
        assert (score.distance, score.bad_share, score.coverage, score.precision) == (0, 0, 1, 1)
        assert score.mode_kl < 0.01
        assert score.mmd < 0
        assert score.normalized_wasserstein2 < 3
    with pytest.raises(ValueError, match="exact"):
        plane_scores(runs, exact=1, generator=g)
