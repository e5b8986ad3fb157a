"""``distill``: a few-step flow map from a velocity network, in one call."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.generative.fields import VelocityField
from anabranch.generative.fit import Data, Fitted, fit
from anabranch.generative.flow_maps import FlowMapModel
from anabranch.generative.guidance import ClassifierFreeGuidance
from anabranch.generative.solve import solve
from anabranch.generative.times import uniform_times


def distill(
    teacher: nn.Module,
    data: Data,
    *,
    objective: Any,
    steps: int,
    generator: torch.Generator,
    guidance: float = 1.0,
    null_condition: Mapping[str, Any] | None = None,
    field: VelocityField | None = None,
    student: nn.Module | None = None,
    embedding: str = "time_embedding",
    **options: Any,
) -> Fitted:
    """Train a flow map that starts as a copy of ``teacher`` and takes its velocities, guided if asked, from it.

    The student takes the condition itself and never needs guidance: one call a jump.

    Args:
        teacher: a velocity network ``net(x, t, **condition)``; it is not changed.
        data: as of :func:`fit`; see :func:`teacher_samples` for training without any.
        objective: :class:`SplitMeanFlow`, :class:`MeanFlow`, :class:`Shortcut` or another dataclass with a field
            ``velocity``, which is set to the teacher's.
        guidance: scale of classifier-free guidance inside the teacher.
        null_condition: what its unconditional branch gets; default ``{"label": teacher.classes}``.
        field: the teacher as a velocity field where it is not the network itself (a converted or translated one).
        student: a flow map to go on with, instead of a copy of the teacher.
        embedding: the teacher's submodule whose output is its time embedding.
        options: of :func:`fit`.

    Raises:
        ValueError: guidance without a null condition, an objective that takes no velocity or lives on another path than
            the teacher.
    """
    velocity: VelocityField = teacher if field is None else field
    if guidance != 1:
        if null_condition is None and getattr(teacher, "classes", None) is not None:
            null_condition = {"label": teacher.classes}
        if null_condition is None:
            raise ValueError(f"guidance={guidance} needs null_condition: the teacher has no null label of its own")
        velocity = ClassifierFreeGuidance(velocity, float(guidance), null_condition=null_condition)
    if not any(f.name == "velocity" for f in dataclasses.fields(objective)):
        raise ValueError(f"objective {type(objective).__name__} takes no velocity of a teacher")
    path, own = getattr(field, "path", None), getattr(objective, "path", None)
    if path is not None and own is not None and type(path) is not type(own):
        raise ValueError(f"the teacher lives on {path} and the objective on {own}: change_path brings one to the other")
    objective = dataclasses.replace(objective, velocity=velocity)
    net = FlowMapModel.from_velocity(teacher, embedding=embedding) if student is None else student
    return fit(net.requires_grad_(True), objective, data, steps=steps, generator=generator, **options)


def teacher_samples(
    teacher: VelocityField,
    x0: Tensor,
    *,
    label: Tensor | None = None,
    steps: int = 20,
    solver: Any = "ab2",
    batch: int = 256,
) -> Data:
    """Samples of ``teacher`` from noises ``x0`` to take the place of data: ``distill(teacher, teacher_samples(...))``.

    Cost: ``steps`` calls of the teacher a sample.
    """
    parts = []
    for begin in range(0, len(x0), batch):
        rows = slice(begin, begin + batch)
        condition: dict[str, Any] = {} if label is None else {"label": label[rows]}
        parts.append(solve(teacher, x0[rows], uniform_times(steps), solver, **condition))
    x1 = torch.cat(parts)
    return x1 if label is None else (x1, label)
