"""Guidance and the counting of calls."""

import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Counted,
    LinearPath,
    Parametrized,
    SingularTimeError,
    TrigPath,
    VPPath,
    change_path,
    solve,
    uniform_times,
)
from anabranch.generative.fields import calls_per_evaluation
from anabranch.worlds import GaussianMixture

MIXTURE = GaussianMixture(weights=[1, 2, 3], means=[[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]], covariances=[0.1, 0.2, 0.3])
NULL = {"label": -1}


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(30, 2, generator=generator, dtype=torch.float64)


LABEL = torch.arange(30) % 3


@pytest.mark.parametrize("batched", [True, False])
def test_formula(x: Tensor, batched: bool) -> None:
    v = MIXTURE.velocity()
    null, cond = v(x, 0.6), v(x, 0.6, label=LABEL)
    guided = ClassifierFreeGuidance(v, 2.5, null_condition=NULL, batched=batched)
    torch.testing.assert_close(guided(x, 0.6, label=LABEL), null + 2.5 * (cond - null))
    each = torch.linspace(0, 3, 30, dtype=torch.float64)
    per_sample = ClassifierFreeGuidance(v, each, null_condition=NULL, batched=batched)
    torch.testing.assert_close(per_sample(x, 0.6, label=LABEL), null + each[:, None] * (cond - null))
    times = torch.linspace(0, 1, 30, dtype=torch.float64)
    torch.testing.assert_close(
        guided(x, times, label=LABEL), v(x, times) + 2.5 * (v(x, times, label=LABEL) - v(x, times))
    )


def test_scale_one_is_the_conditional_field_in_one_call(x: Tensor) -> None:
    guided = Counted(ClassifierFreeGuidance(MIXTURE.velocity(), 1.0, null_condition=NULL))
    assert torch.equal(guided(x, 0.4, label=LABEL), MIXTURE.velocity()(x, 0.4, label=LABEL))
    assert guided.calls == 1
    free = ClassifierFreeGuidance(MIXTURE.velocity(), 0.0, null_condition=NULL)
    torch.testing.assert_close(free(x, 0.4, label=LABEL), MIXTURE.velocity()(x, 0.4))


@pytest.mark.parametrize("path", [LinearPath(), TrigPath(), VPPath()])
def test_classifier_guidance_with_the_exact_classifier_is_the_conditional_field(path: LinearPath, x: Tensor) -> None:
    guided = ClassifierGuidance(
        MIXTURE.velocity(path), lambda x, t, label: MIXTURE.class_log_prob(x, t, label, path), 1.0, path
    )
    for t in (0.1, 0.5, 0.95):
        difference = guided(x, t, label=LABEL) - MIXTURE.velocity(path)(x, t, label=LABEL)
        assert float(difference.abs().max()) <= 1e-10
    if not isinstance(path, VPPath):
        with pytest.raises(SingularTimeError, match="clamp"):
            guided(x, 0.0, label=LABEL)


def test_interval(x: Tensor) -> None:
    v = MIXTURE.velocity()
    part = ClassifierFreeGuidance(v, 3.0, (0.3, 0.7), null_condition=NULL)
    whole = ClassifierFreeGuidance(v, 3.0, null_condition=NULL)
    for t, other in ((0.2, v), (0.3, whole), (0.7, whole), (0.71, v)):
        torch.testing.assert_close(part(x, t, label=LABEL), other(x, t, label=LABEL))
        assert part.calls_at(t) == (2 if other is whole else 1)
    times = torch.linspace(0, 1, 30, dtype=torch.float64)
    inside = ((times >= 0.3) & (times <= 0.7))[:, None]
    expected = torch.where(inside, whole(x, times, label=LABEL), v(x, times, label=LABEL))
    torch.testing.assert_close(part(x, times, label=LABEL), expected)


def test_rescale_keeps_the_conditional_deviation() -> None:
    x = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def field(x: Tensor, t: float, label: Tensor) -> Tensor:
        return x * label.reshape(-1, 1, 1) + x.flip(1)

    label = torch.arange(1.0, 9.0, dtype=torch.float64)
    full = ClassifierFreeGuidance(field, 4.0, null_condition={"label": 0.0}, rescale=1.0)(x, 0.5, label=label)
    torch.testing.assert_close(full.std((1, 2)), field(x, 0.5, label).std((1, 2)))
    plain = ClassifierFreeGuidance(field, 4.0, null_condition={"label": 0.0})(x, 0.5, label=label)
    half = ClassifierFreeGuidance(field, 4.0, null_condition={"label": 0.0}, rescale=0.5)(x, 0.5, label=label)
    torch.testing.assert_close(half, (full + plain) / 2)


def test_counting_goes_through_wrappers(x: Tensor) -> None:
    guided = ClassifierFreeGuidance(MIXTURE.velocity(), 2.0, (0.0, 0.5), null_condition=NULL)
    moved = change_path(guided, LinearPath(), TrigPath())
    # The interval is in the linear path's time: trig time t' has linear time 1 / (1 + cot(pi t' / 2)), 0.5 at 0.5.
    assert [calls_per_evaluation(moved, t) for t in (0.1, 0.49, 0.51)] == [2, 2, 1]
    assert calls_per_evaluation(Parametrized(guided, "velocity", LinearPath()), 0.2) == 2
    counted = Counted(moved)
    solve(counted, x, uniform_times(10), "heun", label=LABEL)
    # Stages at 0, .1, ... and their step ends: 0-.4, .1-.5 inside; the linear time of .5 is .5 (the end is included).
    assert counted.calls == 20 + 11
    assert counted.path == TrigPath()
    counted.reset()
    assert counted.calls == counted.rows == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"interval": (0.5, 0.2)}, "interval"),
        ({"rescale": 2.0}, "rescale"),
        ({"null_condition": {}}, "null_condition is empty"),
    ],
)
def test_bad_guidance(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClassifierFreeGuidance(MIXTURE.velocity(), 2.0, **{"null_condition": NULL, **arguments})


def test_bad_conditions(x: Tensor) -> None:
    guided = ClassifierFreeGuidance(MIXTURE.velocity(), 2.0, null_condition=NULL)
    with pytest.raises(ValueError, match="'label', which the call does not give"):
        guided(x, 0.5)
    with pytest.raises(ValueError, match="3 rows for a batch of 30"):
        guided(x, 0.5, label=LABEL[:3])
    rows = ClassifierFreeGuidance(MIXTURE.velocity(), 2.0, null_condition={"label": LABEL[:4]})
    with pytest.raises(ValueError, match="4 rows: expected 1 or 30"):
        rows(x, 0.5, label=LABEL)
