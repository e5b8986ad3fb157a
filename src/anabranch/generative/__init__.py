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
from anabranch.generative.autoregressive import AutoregressiveMap, SolveInfo
from anabranch.generative.autoregressive_interop import MaskedAutoregressiveMap, maps_from_zuko
from anabranch.generative.bits import bits_per_dimension
from anabranch.generative.consistency_sampling import jump_and_renoise
from anabranch.generative.couplings import ClasswiseOT, Coupling, Fixed, Independent, MinibatchOT
from anabranch.generative.data_free import BestOfN, best_of_n, check_teacher, distill_without_data
from anabranch.generative.data_free_objectives import (
    DistributionCorrection,
    FreeFlow,
    StudentAndCritic,
    TrajectoryPrediction,
    UniformLabels,
)
from anabranch.generative.dct_source import DCTMaskSource
from anabranch.generative.denoising_objectives import DenoisingScoreMatching
from anabranch.generative.directional_sources import CapSource, OracleVMF, VonMisesFisherSource
from anabranch.generative.distill import distill, teacher_samples
from anabranch.generative.edm import EDMDenoising, EDMPreconditioned
from anabranch.generative.embeddings import TimeEmbedding
from anabranch.generative.end_time_derivative import end_time_derivative
from anabranch.generative.equivalences import Equivalence, equivalence_report, transport_residual
from anabranch.generative.fields import Counted, VelocityField
from anabranch.generative.fit import Fitted, fit
from anabranch.generative.fixed_point import SweepStrategy, invert_autoregressive
from anabranch.generative.flow_maps import FlowMap, FlowMapModel, flow_map_from_field, jump
from anabranch.generative.geometry_report import GeometryReport, geometry_report
from anabranch.generative.guidance import ClassifierFreeGuidance, ClassifierGuidance
from anabranch.generative.image_files import Images, image_grid, load_images, save_images
from anabranch.generative.interop import from_diffusers
from anabranch.generative.interop_networks import DiffusersNetwork
from anabranch.generative.interop_schedulers import run_scheduler, to_diffusers_scheduler
from anabranch.generative.langevin import AnnealedLangevin, PredictorCorrector, langevin
from anabranch.generative.level_samplers import Levels, LogNormalLevel, Stratified
from anabranch.generative.likelihood import log_likelihood
from anabranch.generative.loss_weights import elbo_weight
from anabranch.generative.low_rank import add_low_rank, low_rank_parameters, merge_low_rank
from anabranch.generative.mixture_source import GaussianMixtureSource, LearnedSource
from anabranch.generative.mlp import ResMLP, TinyMLP
from anabranch.generative.mode_scores import coverage_one_to_one, mode_kl, nearest_distance, normalized_wasserstein
from anabranch.generative.norm_alignment import (
    ChiSphereSource,
    NormAlignedField,
    NormAlignedSource,
    norm_alignment,
    project_to_chi_sphere,
)
from anabranch.generative.objectives import FlowMatching, Loss, MeanFlow
from anabranch.generative.open_model import OpenModel, open_model
from anabranch.generative.optimal_times import (
    OptimalTimes,
    endpoint_times,
    optimal_frontier,
    optimal_times,
    times_cost,
)
from anabranch.generative.parametrization import Parametrized, convert, loss_weight
from anabranch.generative.patch_pca import PatchPCA
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
from anabranch.generative.plane_simulation import PLANE_SCENARIOS, PlaneRuns, PlaneScenario, PlaneTarget, simulate_plane
from anabranch.generative.pruned_source import PrunedSource, PruningError
from anabranch.generative.residual_field import ResidualField
from anabranch.generative.sampling_plan import SamplingPlan, evaluation_seconds, plan_sampling
from anabranch.generative.save_load import load_network, network_notes, save_network
from anabranch.generative.saved_memory import bytes_saved_for_backward
from anabranch.generative.score_matching import ScoreMatching
from anabranch.generative.sde import IntegratedPath, LinearSDE
from anabranch.generative.sde_paths import GeometricVEPath, SubVPPath
from anabranch.generative.solve import Trajectory, solve
from anabranch.generative.solver_benchmark import BenchmarkRow, ReferenceSolution, solver_benchmark
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
from anabranch.generative.sparse_axes import Axes, load_axes, mean_direction_axes, save_axes, sparse_axes
from anabranch.generative.spherical_clusters import KMeans, SphericalKMeans, vmf_kappa
from anabranch.generative.splitting_objectives import (
    Consistency,
    Shortcut,
    SplitMeanFlow,
    interval_split_residual,
    interval_split_target,
)
from anabranch.generative.step_costs import StepCosts, merge_step_costs, step_costs
from anabranch.generative.straightening import Chords, ChosenTimes, Straighten, straighten, teacher_chords
from anabranch.generative.tarflow import NoisyLikelihood, TarFlow
from anabranch.generative.tarflow_diagnostics import BlockDiagnostics, diagnose_blocks, initial_guess_metric
from anabranch.generative.tarflow_reference import reference_sequential, released_gs_jacobi
from anabranch.generative.time_samplers import LogitNormal, TimeSampler, TwoTimes, Uniform
from anabranch.generative.times import (
    edm_times,
    log_snr_times,
    power_times,
    shifted_times,
    times_from_diffusers,
    uniform_times,
)
from anabranch.generative.trajectory_objectives import (
    ConsistencyTrajectory,
    ProgressiveDistillation,
    Reflow,
    teacher_pairs,
)
from anabranch.generative.transformer import DiT
from anabranch.generative.transitions import forward_transition, posterior_kl, posterior_transition, snr
from anabranch.generative.translation import translate
from anabranch.generative.unet import PixelUNet, UNet
from anabranch.generative.variational_bound import VariationalBound
from anabranch.generative.views import DDPM, EDM, NCSN, FlowMatchingView, ScoreSDE, View

__all__ = [
    "DDPM",
    "EDM",
    "NCSN",
    "PLANE_SCENARIOS",
    "SOLVERS",
    "AnnealedLangevin",
    "AutoregressiveMap",
    "Axes",
    "BenchmarkRow",
    "BestOfN",
    "BlockDiagnostics",
    "CallsExceeded",
    "CapSource",
    "ChiSphereSource",
    "Chords",
    "ChosenTimes",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "ClasswiseOT",
    "Coefficients",
    "Consistency",
    "ConsistencyTrajectory",
    "Counted",
    "Coupling",
    "DCTMaskSource",
    "DenoisingScoreMatching",
    "DiT",
    "DiffusersNetwork",
    "DistributionCorrection",
    "Dopri5",
    "EDMDenoising",
    "EDMPreconditioned",
    "EmpiricalSource",
    "Equivalence",
    "Fitted",
    "Fixed",
    "FlowMap",
    "FlowMapModel",
    "FlowMatching",
    "FlowMatchingView",
    "FreeFlow",
    "GaussianMixtureSource",
    "GaussianPath",
    "GaussianSource",
    "GeometricVEPath",
    "GeometryReport",
    "Images",
    "Independent",
    "IntegratedPath",
    "KMeans",
    "LearnedSource",
    "Levels",
    "LinearMultistep",
    "LinearPath",
    "LinearSDE",
    "LogNormalLevel",
    "LogitNormal",
    "Loss",
    "MaskedAutoregressiveMap",
    "MeanFlow",
    "MinibatchOT",
    "NoisyLikelihood",
    "NormAlignedField",
    "NormAlignedSource",
    "OpenModel",
    "OptimalTimes",
    "OracleVMF",
    "Parametrized",
    "PatchPCA",
    "PathSample",
    "PixelUNet",
    "PlaneRuns",
    "PlaneScenario",
    "PlaneTarget",
    "PredictorCorrector",
    "ProgressiveDistillation",
    "PrunedSource",
    "PruningError",
    "ReferenceSolution",
    "Reflow",
    "ResMLP",
    "ResidualField",
    "RungeKutta",
    "SamplingPlan",
    "ScheduledPath",
    "ScoreMatching",
    "ScoreSDE",
    "Shortcut",
    "SingularTimeError",
    "SolveInfo",
    "Solver",
    "Source",
    "SphericalKMeans",
    "SplitMeanFlow",
    "StepCosts",
    "Straighten",
    "Stratified",
    "StudentAndCritic",
    "SubVPPath",
    "SweepStrategy",
    "TarFlow",
    "TimeEmbedding",
    "TimeSampler",
    "TinyMLP",
    "Trajectory",
    "TrajectoryPrediction",
    "TrigPath",
    "TwoTimes",
    "UNet",
    "Uniform",
    "UniformLabels",
    "VEPath",
    "VPPath",
    "VariationalBound",
    "VelocityField",
    "View",
    "VonMisesFisherSource",
    "add_low_rank",
    "ancestral",
    "best_of_n",
    "bits_per_dimension",
    "bytes_saved_for_backward",
    "change_path",
    "check_teacher",
    "convert",
    "coverage_one_to_one",
    "diagnose_blocks",
    "distill",
    "distill_without_data",
    "dpmpp_2m",
    "edm_times",
    "elbo_weight",
    "end_time_derivative",
    "endpoint_times",
    "equivalence_report",
    "euler_maruyama",
    "evaluation_seconds",
    "fit",
    "flow_map_from_field",
    "forward_transition",
    "from_diffusers",
    "geometry_report",
    "image_grid",
    "initial_guess_metric",
    "interval_split_residual",
    "interval_split_target",
    "invert_autoregressive",
    "jump",
    "jump_and_renoise",
    "langevin",
    "load_axes",
    "load_images",
    "load_network",
    "log_likelihood",
    "log_snr_times",
    "loss_weight",
    "low_rank_parameters",
    "maps_from_zuko",
    "mean_direction_axes",
    "merge_low_rank",
    "merge_step_costs",
    "mode_kl",
    "nearest_distance",
    "network_notes",
    "norm_alignment",
    "normalized_wasserstein",
    "open_model",
    "optimal_frontier",
    "optimal_times",
    "plan_sampling",
    "posterior_kl",
    "posterior_transition",
    "power_times",
    "project_to_chi_sphere",
    "reference_sequential",
    "released_gs_jacobi",
    "run_scheduler",
    "save_axes",
    "save_images",
    "save_network",
    "shifted_times",
    "simulate_plane",
    "snr",
    "solve",
    "solver_benchmark",
    "sparse_axes",
    "step_costs",
    "straighten",
    "teacher_chords",
    "teacher_pairs",
    "teacher_samples",
    "times_cost",
    "times_from_diffusers",
    "to_diffusers_scheduler",
    "translate",
    "transport_residual",
    "uniform_times",
    "vmf_kappa",
]
