"""The pre-trained model that several papers start from: a class-conditional velocity on Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path

import torch

from anabranch.generative import (
    ClassifierFreeGuidance,
    FlowMatching,
    PixelUNet,
    fit,
    load_network,
    save_network,
    solve,
    uniform_times,
)
from anabranch.worlds.cards import Note
from anabranch.worlds.fashion_classifier import FashionJudge, fashion_tensors
from anabranch.worlds.shared_weights import FASHION_TEACHER

_STEPS, _BATCH, _RATE, _DROPOUT = 8000, 128, 1e-3, 0.1
_GATE_IMAGES = 5000


def load_fashion_teacher(path: Path | None = None, *, device: str | torch.device = "cpu") -> PixelUNet:
    """The shipped teacher, checked by its hash; or one that was built to ``path``.

    A velocity network ``net(x, t, label)`` on the linear path; images ``[B, 1, 28, 28]`` in [-1, 1], labels 0 to 9 of
    ``FASHION_CLASSES``, 10 is the null label.

    Raises:
        ValueError: a damaged file.
    """
    net = load_network(FASHION_TEACHER.checked() if path is None else path, device=device)
    assert isinstance(net, PixelUNet)
    return net.requires_grad_(False)


def balanced_labels(n: int, classes: int = 10) -> torch.Tensor:
    """``n`` labels, every class as often as the others up to one."""
    return torch.arange(n) % classes


def build_teacher(folder: Path, root: Path, note: Note) -> tuple[Path, str, dict[str, float]]:
    """Train it: twenty minutes on one idle core with bf16. Gates: FFD and class accuracy of its samples."""
    x, label = fashion_tensors(root)
    torch.manual_seed(0)
    net = PixelUNet(classes=10)
    generator = torch.Generator().manual_seed(0)

    def told(done: int, total: int, metrics: object) -> None:
        if done % 100 == 0:
            note(f"step {done} of {total}")

    trained = fit(
        net, FlowMatching(), (x, label), steps=_STEPS, batch_size=_BATCH, lr=_RATE, label_dropout=_DROPOUT, warmup=200,
        ema=0.9995, generator=generator, checkpoint=folder / "training.pt", progress=told,
    )  # fmt: skip
    recipe = (
        f"PixelUNet, flow matching at uniform times, {_STEPS} steps of {_BATCH} training images, label dropout {_DROPOUT}, "
        f"AdamW {_RATE}, cosine, average of the weights 0.9995, seed 0; stored in float16"
    )
    path = save_network(
        trained.ema, folder / "fashion-teacher.safetensors", dtype=torch.float16, notes={"recipe": recipe}
    )
    teacher, judge = load_fashion_teacher(path), FashionJudge(x)
    labels = balanced_labels(_GATE_IMAGES)
    noise = torch.randn(_GATE_IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    last = [entry["loss"] for entry in trained.history[-100:]]
    gates = {"loss_of_last_steps": round(sum(last) / len(last), 4), "images": _GATE_IMAGES}
    guided = ClassifierFreeGuidance(teacher, 2.0, null_condition={"label": 10})
    for name, field, steps in (
        ("euler_10", teacher, 10),
        ("euler_50", teacher, 50),
        ("euler_10_guidance_2", guided, 10),
    ):
        note(f"sampling {name}")
        images = torch.cat([
            solve(field, part, uniform_times(steps), label=classes)
            for part, classes in zip(noise.split(500), labels.split(500), strict=True)
        ])  # fmt: skip
        scores = judge(images, labels)
        gates[f"ffd_{name}"], gates[f"accuracy_{name}"] = round(scores.ffd, 3), round(scores.accuracy, 4)
    return path, recipe, gates
