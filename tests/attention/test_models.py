"""The encoder ignores padding; the language model's steps equal its parallel form; both train."""

import time
from pathlib import Path

import pytest
import torch

from anabranch.attention import (
    ATTENTIONS,
    FlowformerEncoder,
    FlowformerLM,
    LearningCurve,
    NextToken,
    SequenceClassification,
    classify,
    next_token_bits,
    softmax_attention,
)
from anabranch.generative import fit

from .samples import gap, some


@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_padding_does_not_change_a_class(name: str, generator: torch.Generator) -> None:
    torch.manual_seed(0)
    net = FlowformerEncoder(
        4, channels=3, max_length=20, width=16, depth=2, heads=2, attention=name, generator=generator
    )
    x = torch.randn(2, 20, 3)
    mask = torch.arange(20) < torch.tensor([[13], [20]])
    logits = net(x, mask)
    assert gap(logits[:1], net(x[:1, :13])) <= 1e-5
    assert gap(logits[1:], net(x[1:])) <= 1e-5


@pytest.mark.parametrize("name", ["flow", "softmax"])
def test_steps_equal_the_parallel_form(name: str) -> None:
    torch.manual_seed(0)
    net = FlowformerLM(11, width=16, depth=2, heads=2, attention=name)
    tokens = torch.randint(11, (3, 30))
    with torch.no_grad():
        whole = net(tokens)
    state = net.empty_state(3)
    for i in range(30):
        logits, state = net.step(tokens[:, i], state)
        assert gap(logits, whole[:, i]) <= 1e-4


def test_it_learns_a_text_and_bits_are_counted(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    tokens = torch.arange(4000) * 3 % 7
    net = FlowformerLM(7, width=16, depth=1, heads=2)
    before = next_token_bits(net, tokens[:200], length=20)
    assert before.shape == (9, 20)
    fit(net, NextToken(tokens, 20, 16), steps=120, generator=generator, lr=1e-2)
    assert float(before.mean()) > 2
    assert float(next_token_bits(net, tokens[:200], length=20)[:, 1:].mean()) < 0.1


def test_bits_are_cross_entropy() -> None:
    torch.manual_seed(0)
    net = FlowformerLM(5, width=8, depth=1, heads=1)
    tokens = torch.randint(5, (23,))
    bits = next_token_bits(net, tokens, length=10, batch_size=1)
    with torch.no_grad():
        p = net(tokens[10:20][None]).softmax(-1)[0]
    assert gap(bits[1], -p.gather(1, tokens[11:21, None])[:, 0].log2()) <= 1e-5


def test_it_learns_a_class_of_padded_sequences(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    lengths = torch.randint(3, 12, (200,), generator=generator)
    mask = torch.arange(12) < lengths[:, None]
    x = torch.randint(1, 5, (200, 12), generator=generator) * mask
    labels = ((x == 2).sum(1) > (x == 3).sum(1)).long()
    net = FlowformerEncoder(2, vocabulary=5, max_length=12, width=16, depth=1, heads=2)
    objective = SequenceClassification(x, labels, 50, mask)
    seen = [objective(net, generator=generator).per_sample for _ in range(4)]
    assert sum(len(part) for part in seen) == 200  # each row once an epoch
    fit(net, objective, steps=150, generator=generator, lr=1e-2)
    assert float((classify(net, x, mask, batch_size=64) == labels).float().mean()) > 0.9


def test_classify_does_not_depend_on_batches(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    net = FlowformerEncoder(6, channels=2, max_length=9, width=16, depth=2, heads=2, dropout=0.5)
    x, mask = torch.randn(31, 9, 2, generator=generator), some(31, 9)
    found = classify(net, x, mask, batch_size=7)
    assert torch.equal(found, classify(net, x, mask, batch_size=31))
    assert net.training
    assert len(found.unique()) > 1


def test_an_encoder_is_written_and_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(5)
    for name, options in (("flow", {"clamp": (-1.0, 1.0)}), ("performer", None)):
        net = FlowformerEncoder(
            3, channels=2, max_length=9, width=16, depth=2, heads=2, attention=name, generator=draw, options=options
        )
        x = torch.randn(2, 9, 2)
        again = FlowformerEncoder.load(net.save(tmp_path / name, classes=["a", "b", "c"]))
        assert gap(net(x), again(x)) == 0
        assert not again.training
    text = (tmp_path / "flow" / "config.json").read_text()
    (tmp_path / "flow" / "config.json").write_text(text.replace('"depth": 2', '"depth": 1'))
    with pytest.raises(ValueError, match="Unexpected key"):
        FlowformerEncoder.load(tmp_path / "flow")


def test_a_function_is_not_written(tmp_path: Path) -> None:
    net = FlowformerEncoder(3, channels=2, max_length=9, width=16, depth=1, heads=2, attention=softmax_attention)
    with pytest.raises(TypeError, match="only a name"):
        net.save(tmp_path)


def test_a_learning_curve_stops_the_clock_while_it_looks() -> None:
    scores = iter(range(10))

    def look() -> float:
        time.sleep(0.05)
        return next(scores)

    curve = LearningCurve(4, look)
    for step in range(1, 11):
        curve.progress(step, 10)
    assert [(step, score) for step, _, score in curve.points] == [(4, 0), (8, 1), (10, 2)]
    assert curve.points[-1][1] < 0.05


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FlowformerEncoder(2, max_length=5), "expected one of them"),
        (lambda: FlowformerEncoder(2, vocabulary=3, max_length=5, width=8, heads=1)(torch.zeros(1, 6).long()), "max_length=5"),
        (lambda: SequenceClassification(torch.zeros(3, 2), torch.zeros(4).long(), 2), "labels has 4 rows"),
        (lambda: NextToken(torch.zeros(5).long(), 5, 2), "more than length=5"),
        (lambda: next_token_bits(FlowformerLM(3, width=8, heads=1), torch.zeros(5).long(), length=5), "more than length"),
    ],
)  # fmt: skip
def test_bad_input(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]
