"""The report: every equivalence is exact for an exact field, and a broken field breaks the right lines."""

import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    DDPM,
    Equivalence,
    GaussianPath,
    GeometricVEPath,
    LinearPath,
    SubVPPath,
    TrigPath,
    VEPath,
    VPPath,
    equivalence_report,
)
from anabranch.worlds import GaussianMixture

MIXTURE = GaussianMixture(weights=[1, 2, 3], means=[[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]], covariances=[0.1, 0.2, 0.3])
PATHS = [LinearPath(), TrigPath(), VPPath(), SubVPPath(), VEPath(), GeometricVEPath()]
LABEL = torch.arange(24) % 3
# What is solved numerically (a flow map by 100 steps of rk4, a likelihood by 200) is exact to its own order.
LOOSE = {"semigroup": 1e-7, "likelihood": 1e-6, "change of path and back": 1e-8}


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(24, 2, generator=generator, dtype=torch.float64)


def by_name(report: list[Equivalence]) -> dict[str, float]:
    names = [row.name for row in report]
    assert len(set(names)) == len(names)
    return {row.name: row.error for row in report}


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_every_equivalence_holds_for_an_exact_field(path: GaussianPath, x: Tensor) -> None:
    report = by_name(equivalence_report(MIXTURE.velocity(path), x, law=MIXTURE, label=LABEL))
    assert len(report) == 33
    for name, error in report.items():
        assert error <= LOOSE.get(name, 1e-9), (name, error)


def test_a_table_path_too(x: Tensor) -> None:
    """Its equation has jumps, which quadrature and rk4 only approach; all else is exact."""
    view = DDPM()
    report = by_name(equivalence_report(MIXTURE.velocity(view.path), x))
    assert report.pop("kernel and equation") < 1e-2
    assert report.pop("semigroup") < 1e-3
    for name, error in report.items():
        assert error <= LOOSE.get(name, 1e-8), (name, error)


def test_a_field_alone_needs_no_truth(x: Tensor) -> None:
    """The statements that are about the machinery hold for any field; those about the law are not made."""

    def field(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(2 * x) - 0.3 * x

    report = by_name(equivalence_report(field, x))
    assert "likelihood" not in report
    assert "score is a gradient" not in report
    assert max(error for name, error in report.items() if name != "semigroup") <= 1e-9
    assert report["semigroup"] <= 1e-5


def test_a_wrong_law_is_seen(x: Tensor) -> None:
    class Wrong(GaussianMixture):
        """A law whose score is of another temperature."""

        def score(self, path: object = None) -> object:  # type: ignore[override]
            return lambda x, t: 1.001 * MIXTURE.score(path)(x, t)  # type: ignore[arg-type]

        def class_log_prob(self, x: Tensor, *rest: object) -> Tensor:  # type: ignore[override]
            return 1.001 * MIXTURE.class_log_prob(x, *rest)  # type: ignore[arg-type]

    wrong = Wrong(weights=[1, 2, 3], means=MIXTURE.means, covariances=[0.1, 0.2, 0.3])
    report = by_name(equivalence_report(MIXTURE.velocity(), x, law=wrong, label=LABEL, fine_steps=100))
    for name in ("score of the law", "score is a gradient", "guidance is Bayes", "Fokker-Planck equation"):
        assert report[name] > 1e-5, name
    for name in ("continuity equation", "likelihood", "DDIM is Euler"):
        assert report[name] <= LOOSE.get(name, 1e-9), name


def test_pictures_leave_out_what_costs_a_derivative_per_pixel(generator: torch.Generator) -> None:
    x = torch.randn(4, 1, 4, 4, generator=generator, dtype=torch.float64)
    law = GaussianMixture(weights=[1.0], means=torch.zeros(1, 16), covariances=0.5)
    report = by_name(equivalence_report(law.velocity(), x, law=law))
    assert "likelihood" not in report
    assert report["score is a gradient"] <= 1e-10


def test_every_line_names_what_it_joins(x: Tensor) -> None:
    for row in equivalence_report(MIXTURE.velocity(), x, law=MIXTURE, label=LABEL, fine_steps=10):
        assert row.between[0] != row.between[1]
        assert row.says
