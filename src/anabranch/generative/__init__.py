"""Probability paths, velocity fields, solvers, flow maps and objectives of generative flows.

Time runs from t = 0, the source, to t = 1, the data. A velocity field is any callable ``v(x, t, **condition)``, a flow map
any callable ``u(x, s, t, **condition)`` with the state at the start s. ``solve(field, x, times, solver)`` and
``jump(flow_map, x, times)`` sample.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "torch":
        raise
    from anabranch.generative._extra import TORCH_MISSING

    raise ModuleNotFoundError(TORCH_MISSING, name="torch") from None

from anabranch.generative._checks import SingularTimeError
from anabranch.generative.couplings import ClasswiseOT, Coupling, Fixed, Independent, MinibatchOT
from anabranch.generative.fields import Counted, VelocityField
from anabranch.generative.flow_maps import FlowMap, FlowMapModel, flow_map_from_field, jump
from anabranch.generative.guidance import ClassifierFreeGuidance, ClassifierGuidance
from anabranch.generative.likelihood import log_likelihood
from anabranch.generative.objectives import FlowMatching, Loss, MeanFlow
from anabranch.generative.parametrization import Parametrized, convert, loss_weight
from anabranch.generative.path_changes import change_path
from anabranch.generative.paths import (
    GaussianPath,
    LinearPath,
    PathSample,
    ScheduledPath,
    TrigPath,
    VEPath,
    VPPath,
)
from anabranch.generative.solve import Trajectory, solve
from anabranch.generative.solvers import (
    SOLVERS,
    CallsExceeded,
    Coefficients,
    Dopri5,
    LinearMultistep,
    RungeKutta,
    Solver,
    ancestral,
    dpmpp_2m,
    euler_maruyama,
)
from anabranch.generative.sources import EmpiricalSource, GaussianSource, Source
from anabranch.generative.splitting_objectives import (
    Consistency,
    Shortcut,
    SplitMeanFlow,
    interval_split_residual,
    interval_split_target,
)
from anabranch.generative.time_samplers import LogitNormal, TimeSampler, TwoTimes, Uniform
from anabranch.generative.times import (
    edm_times,
    log_snr_times,
    power_times,
    shifted_times,
    times_from_diffusers,
    uniform_times,
)

__all__ = [
    "SOLVERS",
    "CallsExceeded",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "ClasswiseOT",
    "Coefficients",
    "Consistency",
    "Counted",
    "Coupling",
    "Dopri5",
    "EmpiricalSource",
    "Fixed",
    "FlowMap",
    "FlowMapModel",
    "FlowMatching",
    "GaussianPath",
    "GaussianSource",
    "Independent",
    "LinearMultistep",
    "LinearPath",
    "LogitNormal",
    "Loss",
    "MeanFlow",
    "MinibatchOT",
    "Parametrized",
    "PathSample",
    "RungeKutta",
    "ScheduledPath",
    "Shortcut",
    "SingularTimeError",
    "Solver",
    "Source",
    "SplitMeanFlow",
    "TimeSampler",
    "Trajectory",
    "TrigPath",
    "TwoTimes",
    "Uniform",
    "VEPath",
    "VPPath",
    "VelocityField",
    "ancestral",
    "change_path",
    "convert",
    "dpmpp_2m",
    "edm_times",
    "euler_maruyama",
    "flow_map_from_field",
    "interval_split_residual",
    "interval_split_target",
    "jump",
    "log_likelihood",
    "log_snr_times",
    "loss_weight",
    "power_times",
    "shifted_times",
    "solve",
    "times_from_diffusers",
    "uniform_times",
]
