"""Models of other libraries as our velocity fields. Foreign spellings stay in this module.

diffusers: a flow-matching model's output is minus our velocity, its sigma is ``1 - t`` and its time step
``num_train_timesteps sigma``. A model trained on a table of ``alphas_cumprod`` lives on :class:`ScheduledPath`; its
``prediction_type`` is "epsilon" (noise), "sample" (denoised) or "v_prediction" (diffusion_v).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import as_time, time_dtype
from anabranch.generative._extra import missing
from anabranch.generative.parametrization import Parametrized, Prediction
from anabranch.generative.paths import GaussianPath, LinearPath, ScheduledPath

_KINDS: dict[str, Prediction] = {"epsilon": "noise", "sample": "denoised", "v_prediction": "diffusion_v"}


@dataclass(frozen=True)
class FlowModel:
    """A diffusers flow-matching model as a velocity field on the linear path."""

    model: Any
    steps: int
    path: GaussianPath

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        /,
        **condition: Any,
    ) -> Float[Tensor, "batch *shape"]:
        return -_output(self.model, x, self.steps * (1 - as_time(t, x)), condition)


@dataclass(frozen=True)
class TableModel:
    """A diffusers model trained on a table of noise levels: its raw prediction at our time."""

    model: Any
    path: ScheduledPath

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        /,
        **condition: Any,
    ) -> Float[Tensor, "batch *shape"]:
        # Beyond the cleanest level (t towards 1) the network has no time step: it is asked at its first.
        return _output(self.model, x, self.path.index_of_t(as_time(t, x)).clamp(min=0), condition)


def _output(model: Any, x: Tensor, step: Tensor, condition: dict[str, Any]) -> Tensor:
    # By name: a transformer's second argument is the text, a UNet's the time.
    result: Any = model(x, timestep=step.to(time_dtype(x)).expand(len(x)), **condition)
    output: Tensor = result[0] if isinstance(result, tuple) else getattr(result, "sample", result)
    return output


def from_diffusers(
    pipe_or_model: Any, scheduler: Any = None, *, clamp: float | None = None
) -> FlowModel | Parametrized:
    """A diffusers pipeline (or model and scheduler, or a local folder of a pipeline) as a velocity field with ``.path``.

    The field's conditions are the model's own keyword arguments (``encoder_hidden_states``, ``class_labels``, ...).

    Args:
        scheduler: says what the model predicts on which path; default: the pipeline's.
        clamp: for noise predictions where the table starts from pure noise (see :class:`Parametrized`).

    Raises:
        ValueError: no scheduler, no model in the pipeline, or a scheduler of neither kind.
        FileNotFoundError: a folder that is not there (nothing is downloaded).
    """
    if isinstance(pipe_or_model, (str, Path)):
        if not Path(pipe_or_model).is_dir():
            raise FileNotFoundError(f"{pipe_or_model}: expected a local folder of a diffusers pipeline")
        try:
            from diffusers import DiffusionPipeline
        except ModuleNotFoundError:
            raise ModuleNotFoundError(missing("diffusers", "loading a pipeline")) from None
        pipe_or_model = DiffusionPipeline.from_pretrained(str(pipe_or_model), local_files_only=True)
    model = pipe_or_model
    if hasattr(pipe_or_model, "scheduler"):
        scheduler = scheduler or pipe_or_model.scheduler
        model = getattr(pipe_or_model, "transformer", None) or getattr(pipe_or_model, "unet", None)
        if model is None:
            raise ValueError(
                f"{type(pipe_or_model).__name__} has neither .transformer nor .unet: pass the model itself"
            )
    if scheduler is None:
        raise ValueError("scheduler is missing: it says what the model predicts")
    kind = getattr(scheduler.config, "prediction_type", None)
    name = type(scheduler).__name__
    if "FlowMatch" in name or kind == "flow_prediction":
        if getattr(scheduler.config, "invert_sigmas", False):
            raise ValueError(f"{name} with invert_sigmas is not supported: its time runs against its sigmas")
        return FlowModel(model, scheduler.config.num_train_timesteps, LinearPath())
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None or kind not in _KINDS:
        raise ValueError(
            f"{name} with prediction_type {kind!r} is not supported: expected flow matching, or alphas_cumprod and one of "
            f"{', '.join(map(repr, _KINDS))}"
        )
    path = ScheduledPath(torch.as_tensor(table))
    return Parametrized(TableModel(model, path), _KINDS[kind], path, clamp)
