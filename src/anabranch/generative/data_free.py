"""``distill_without_data``: a one-call student from a teacher and its source, in one call; and the search that it makes cheap."""

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anabranch.generative._checks import check_count
from anabranch.generative.data_free_objectives import (
    Conditions,
    DistributionCorrection,
    FreeFlow,
    StudentAndCritic,
    TrajectoryPrediction,
    UniformLabels,
)
from anabranch.generative.fields import VelocityField
from anabranch.generative.fit import Fitted, fit
from anabranch.generative.flow_maps import FlowMap, FlowMapModel, jump
from anabranch.generative.guidance import ClassifierFreeGuidance
from anabranch.generative.sources import Source
from anabranch.generative.times import uniform_times

_PROBE = 1024
_CHUNK = 256


def distill_without_data(
    teacher: VelocityField,
    source: Source,
    *,
    steps: int,
    generator: torch.Generator,
    batch_size: int = 256,
    conditions: Conditions | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    correction_interval: tuple[float, float] = (0.3, 1.0),
    null_condition: Mapping[str, Any] | None = None,
    student: nn.Module | None = None,
    critic: nn.Module | None = None,
    embedding: str = "time_embedding",
    split: float = 0.75,
    alpha: float = 0.1,
    correction_warmup: int = 200,
    weight_power: float = 1.0,
    derivative: Literal["central", "jvp"] = "central",
    starts: float = 0.0,
    check_convention: bool = True,
    **options: Any,
) -> Fitted:
    """Train a flow map to follow ``teacher`` from its source in one call, without a single sample of data (FreeFlow).

    There is no argument for data. ``jump(done.ema, x0, uniform_times(1), **condition)`` samples; guidance is inside.
    :class:`FreeFlow` with :func:`fit` is the same with every part open.

    Cost of a step of B samples, in network passes: 0.75 B of (student with gradient + 2 student + teacher) and 0.25 B of
    (student and critic with gradient + teacher); guidance doubles the teacher's. Memory: teacher, student, critic, one
    average of both, and the optimizer's two moments of both.

    Args:
        teacher: a velocity field on the linear path from ``source``; a network unless ``student`` and ``critic`` are given.
            It is not changed.
        batch_size: of each process.
        conditions: draws the conditions of n samples (see :class:`FreeFlow`); default for a network with ``classes``:
            :class:`UniformLabels`.
        guidance: scale of classifier-free guidance inside the teacher, within ``guidance_interval``.
        correction_interval: where the correction's teacher is guided (paper: noise up to 0.7).
        null_condition: of the unconditional branch; default ``{"label": teacher.classes}``.
        student: a flow map to begin with; default a copy of the teacher. A network without a second time gets one.
        critic: a velocity network; default a copy of the teacher.
        embedding: submodule of the network whose output is its time embedding.
        split, alpha, correction_warmup: of :class:`FreeFlow` (the last is its ``warmup``).
        weight_power, derivative, starts: of :class:`TrajectoryPrediction`; ``starts`` > 0 also teaches jumps from later
            times, for two and more steps.
        check_convention: refuse a teacher whose time or sign looks reversed.
        options: of :func:`fit`: ``time_budget_s``, ``checkpoint``, ``resume``, ``ema``, ``lr``, ``precision``, ``progress``, ...
            ``grad_clip`` is None unless given: one norm over both networks lets the student's gradient scale the critic's
            (in trials the student's distance to the teacher was 1.8 to 2.6 times larger with a norm of 1).

    Returns:
        ``model`` and ``ema`` are the student's; ``history`` has ``prediction``, ``correction``, ``critic``, ``balance``.

    Raises:
        ValueError: a teacher that gives another shape, whose time or sign looks reversed, guidance without an unconditional
            branch, or anything :class:`FreeFlow` and :func:`fit` refuse.
        TypeError: no network to copy and no student or critic.
    """
    if "data" in options or "source" in options:
        raise TypeError("there is no data here; the source is the second argument")
    if conditions is None and getattr(teacher, "classes", None) is not None:
        conditions = UniformLabels(teacher.classes)  # type: ignore[attr-defined]
    learned, made_critic = _networks(teacher, student, critic, embedding)
    velocity = guided = teacher
    if guidance != 1:
        if null_condition is None and getattr(teacher, "classes", None) is not None:
            null_condition = {"label": teacher.classes}  # type: ignore[attr-defined]
        if null_condition is None:
            raise ValueError(
                f"guidance={guidance} needs null_condition: the teacher has no unconditional branch of its own"
            )
        velocity, guided = (
            ClassifierFreeGuidance(teacher, float(guidance), interval=interval, null_condition=null_condition)
            for interval in (guidance_interval, correction_interval)
        )
    objective = FreeFlow(
        TrajectoryPrediction(velocity, weight_power=weight_power, derivative=derivative, starts=starts),
        DistributionCorrection(guided), source, conditions, batch_size, split, alpha, correction_warmup,
    )  # fmt: skip
    pair = StudentAndCritic(learned, made_critic).requires_grad_(True)
    with _evaluating(teacher):
        check_teacher(velocity, source, conditions, like=next(pair.parameters()), convention=check_convention)
        done = fit(pair, objective, steps=steps, generator=generator, **{"grad_clip": None, **options})
    assert isinstance(done.ema, StudentAndCritic)
    return dataclasses.replace(done, model=pair.student, ema=done.ema.student)


def _networks(
    teacher: Any, student: nn.Module | None, critic: nn.Module | None, embedding: str
) -> tuple[nn.Module, nn.Module]:
    if not isinstance(teacher, nn.Module) and (student is None or critic is None):
        raise TypeError(f"the teacher is a {type(teacher).__name__}, no network to copy: give student= and critic=")
    if student is None:
        student = FlowMapModel.from_velocity(teacher, embedding=embedding)
    elif not _takes_two_times(student):
        student = FlowMapModel.from_velocity(student, embedding=embedding)
    return student, copy.deepcopy(teacher) if critic is None else critic


def _takes_two_times(net: nn.Module) -> bool:
    """Whether ``net(x, s, t)`` must be given both; a third argument with a default, as a label, is no time."""
    kinds = inspect.Parameter
    needed = [p for p in inspect.signature(net.forward).parameters.values() if p.default is kinds.empty]
    positional = sum(p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD) for p in needed)
    return positional >= 3 or any(p.kind is kinds.VAR_POSITIONAL for p in needed)


@contextmanager
def _evaluating(teacher: Any) -> Iterator[None]:
    """The teacher in evaluation mode; it is put back."""
    if not (isinstance(teacher, nn.Module) and teacher.training):
        yield
        return
    kinds = {type(m).__name__ for m in teacher.modules() if "Dropout" in type(m).__name__ or "Norm" in type(m).__name__}
    noisy = sorted(name for name in kinds if "Dropout" in name or "BatchNorm" in name)
    if noisy:
        warnings.warn(f"the teacher is in training mode and has {', '.join(noisy)}: it is evaluated here", stacklevel=3)
    teacher.eval()
    try:
        yield
    finally:
        teacher.train()


def check_teacher(
    teacher: VelocityField,
    source: Source,
    conditions: Conditions | None = None,
    *,
    like: Tensor | None = None,
    convention: bool = True,
) -> None:
    """One look at ``teacher`` on 1,024 samples of ``source`` at t = 0, from a generator of its own.

    The exact field there is ``E[x1] - x0``, so ``E[v . x0] / E[x0 . x0]`` is -1 whatever the data; outside [-1.5, -0.5] time or
    sign is taken to be reversed. It presumes a source with mean 0. Both reversed at once, as in most diffusion papers, look
    right at this end and are not noticed.

    Args:
        like: device and dtype of the states; default the source's.
        convention: False looks at shape and finiteness only.

    Raises:
        ValueError: another shape than the state's, values that are not finite, or a convention that looks reversed.
    """
    x0 = source.sample(_PROBE, generator=_own_generator(source))
    x0 = x0 if like is None else x0.to(like)
    condition = {} if conditions is None else dict(conditions(_PROBE, torch.Generator().manual_seed(0)))
    dot, square = 0.0, 0.0
    for begin in range(0, _PROBE, _CHUNK):
        part = x0[begin : begin + _CHUNK]
        given = {
            name: value[begin : begin + _CHUNK].to(part.device) if isinstance(value, Tensor) and value.ndim else value
            for name, value in condition.items()
        }
        with torch.no_grad():
            v = teacher(part, torch.zeros(len(part), device=part.device, dtype=part.dtype), **given)
        if v.shape != part.shape:
            raise ValueError(
                f"the teacher gives {tuple(v.shape)} for states {tuple(part.shape)}: expected the same shape"
            )
        if not bool(torch.isfinite(v).all()):
            raise ValueError("the teacher's velocity is not finite at t = 0")
        dot, square = dot + float((v * part).double().sum()), square + float(part.double().square().sum())
    if convention and not -1.5 <= dot / square <= -0.5:
        raise ValueError(
            f"E[v . x0] / E[x0 . x0] = {dot / square:.3g} at t = 0, and -1 is right: time or sign looks reversed (t = 0 is the "
            "source, v points to the data); check_convention=False goes on regardless"
        )


def _own_generator(source: Any) -> torch.Generator:
    return torch.Generator(getattr(source, "device", "cpu")).manual_seed(0)


class BestOfN(NamedTuple):
    """The best of several draws for each condition.

    Args:
        x0: ``[B, ...]``, the noises: a teacher can be started from them.
        x1: ``[B, ...]``, where the student takes them.
        score: ``[B]``.
        scores: ``[B, n]``, of all draws.
    """

    x0: Float[Tensor, "batch *shape"]
    x1: Float[Tensor, "batch *shape"]
    score: Float[Tensor, " batch"]
    scores: Float[Tensor, "batch n"]


def best_of_n(
    flow_map: FlowMap,
    score: Callable[..., Tensor],
    source: Source,
    batch: int,
    n: int,
    *,
    generator: torch.Generator | None,
    batch_size: int = 1024,
    **condition: Any,
) -> BestOfN:
    """``batch`` samples, each the best of ``n`` one-call draws; the noise may then be given to the teacher (FreeFlow, section 5).

    As teacher and student share their trajectories, a noise that is good for the one is for the other. Cost: n calls a
    sample; 1 + 2 states are kept for each of the ``batch``, and n scores.

    Args:
        score: ``score(x1, **condition) -> [B]``, larger is better.
        batch_size: most rows of a call.
        condition: one row per sample of the batch, or common to all.

    Raises:
        ValueError: counts below 1, a score of another shape.
    """
    for name, count in (("batch", batch), ("n", n), ("batch_size", batch_size)):
        check_count(name, count)
    kept: list[Tensor] = []
    once = uniform_times(1)
    for _ in range(n):
        x0 = source.sample(batch, generator=generator)
        ends, points = [], []
        for begin in range(0, batch, batch_size):
            rows = slice(begin, begin + batch_size)
            given: dict[str, Any] = {
                name: v[rows] if isinstance(v, Tensor) and v.ndim and len(v) == batch else v
                for name, v in condition.items()
            }
            ends.append(jump(flow_map, x0[rows], once, **given))
            with torch.no_grad():
                points.append(score(ends[-1], **given))
            if points[-1].shape != (len(ends[-1]),):
                raise ValueError(
                    f"score gives {tuple(points[-1].shape)}: expected one number a sample, [{len(ends[-1])}]"
                )
        x1, value = torch.cat(ends), torch.cat(points)
        if not kept:
            kept, every = [x0, x1, value.clone()], [value]
            continue
        every.append(value)
        better = value > kept[2]
        for old, new in zip(kept, (x0, x1, value), strict=True):
            old[better] = new[better]
    return BestOfN(kept[0], kept[1], kept[2], torch.stack(every, 1))
