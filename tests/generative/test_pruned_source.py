"""Sparse axes, pruning, the geometry report, and both on a trained model."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats
from torch import Tensor
from typer.testing import CliRunner

from anabranch import generative as ge
from anabranch.cli import main
from anabranch.generative import _source_command as command
from anabranch.generative import uniform_times
from anabranch.generative._spheres import cap_probability
from anabranch.generative.sparse_axes import _largest_cosines, _Rows, jaccard
from anabranch.worlds import GaussianMixture, balanced_labels, fashion_tensors, load_fashion_teacher

F64 = torch.float64


def orthogonal(d: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=F64)).Q


def test_positive_combinations_leave_the_minus_axes_empty(generator: torch.Generator) -> None:
    """Independent z >= 0 of distinct variances about a shared base: axes are known only where the data's mean is along one."""
    q = orthogonal(6, generator)
    scale = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25], dtype=F64)
    z = torch.randn(4000, 6, generator=generator, dtype=F64) * scale * 0.02
    z[:, 0] += 10
    data = (z @ q.T).float()
    axes = ge.sparse_axes(data, 0.5)
    brute = (data / data.norm(dim=1, keepdim=True)) @ axes.candidates.T
    torch.testing.assert_close(axes.max_similarity, brute.amax(0), rtol=0, atol=1e-6)
    assert torch.equal(axes.vectors, axes.candidates[brute.amax(0) <= 0.5])
    torch.testing.assert_close((axes.basis @ axes.basis.T), torch.eye(6), rtol=0, atol=1e-5)
    streamed = ge.sparse_axes(list(data.split(700)), 0.5, batch=300)
    torch.testing.assert_close(
        streamed.max_similarity.sort().values, axes.max_similarity.sort().values, rtol=0, atol=1e-5
    )
    dataset = torch.utils.data.TensorDataset(data, torch.zeros(4000))
    assert len(ge.sparse_axes(dataset, 0.5).vectors) == len(axes.vectors)
    middle = ge.sparse_axes(data, 0.5, quantile=0.5, batch=333)
    wanted = torch.sort(brute, dim=0).values[1999]  # the 2000th of 4000
    torch.testing.assert_close(middle.max_similarity, wanted, rtol=0, atol=1e-5)


def test_nonnegative_data_in_a_known_basis() -> None:
    """Each datum is one positive multiple of a basis vector, in unlike numbers: cosines are 0 and 1, the minus axes empty."""
    count = [50, 40, 30, 20]
    data = torch.cat([3 * torch.eye(4)[i].expand(n, 4) for i, n in enumerate(count)])
    basis = torch.eye(4)
    unit = data / data.norm(dim=1, keepdim=True)
    top = torch.cat([(unit @ basis.T).amax(0), (unit @ -basis.T).amax(0)])
    assert top.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    axes = ge.sparse_axes(
        data, 0.01
    )  # principal axes: three in the simplex, the fourth has no variance and is left out
    assert len(axes.basis) == 3
    torch.testing.assert_close(axes.max_similarity, (unit @ axes.candidates.T).amax(0))


def test_principal_axes_against_scikit_learn(generator: torch.Generator) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")
    data = torch.randn(3000, 12, generator=generator) * 2.0 ** -torch.arange(12) + 0.3
    axes = ge.sparse_axes(data, 1.0)
    unit = (data / data.norm(dim=1, keepdim=True)).double().numpy()
    theirs = decomposition.PCA().fit(unit)
    cosine = np.abs((axes.basis.double().numpy() * theirs.components_).sum(1))
    assert np.arccos(np.clip(cosine, 0, 1)).max() <= 1e-3
    np.testing.assert_allclose(axes.explained, theirs.explained_variance_ * 2999 / 3000, rtol=1e-4, atol=1e-12)
    least = ge.sparse_axes(data, 1.0, method="lanczos", count=4)
    assert float((least.basis @ axes.basis[-4:].T).abs().max(1).values.min()) > 0.99


def test_images_are_mirrored_zero_data_left_out(generator: torch.Generator) -> None:
    x = torch.rand(200, 1, 3, 4, generator=generator) * 2 - 1
    both = ge.sparse_axes(torch.cat([x, x.flip(-1)]), 1.0, flips=False)
    torch.testing.assert_close(ge.sparse_axes(x, 1.0).explained, both.explained)
    found = ge.sparse_axes(torch.cat([x, torch.zeros(3, 1, 3, 4)]), 0.8)
    assert (found.images, found.excluded) == (203, 3)
    assert len(found.vectors) + len(found.dense().vectors) == 24
    assert len(found.sparsest(2).vectors) == 2
    assert jaccard(found, found) == 1
    assert jaccard(found, found.dense()) == 0


def test_bad_data(generator: torch.Generator) -> None:
    x = torch.randn(100, 5, generator=generator)
    nan = x.clone()
    nan[3, 1] = math.nan
    for data, words in ((nan, "finite"), (torch.zeros(5, 3), "positive norm"), (x[:1].repeat(9, 1), "constant")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match=words):
                ge.sparse_axes(data)
    with pytest.raises(ValueError, match="threshold"):
        ge.sparse_axes(x, 1.5)
    with pytest.raises(TypeError, match="twice"):
        ge.sparse_axes(iter([x]))
    with pytest.warns(UserWarning, match="dimensions"):
        assert len(ge.sparse_axes(x[:3], 1.0).basis) == 2
    with pytest.warns(UserWarning, match="expected \\[-1, 1\\]"):
        ge.sparse_axes(3 * torch.ones(50, 1, 2, 2) * torch.rand(50, 1, 2, 2, generator=generator))


def one_axis(d: int, *rows: int) -> ge.Axes:
    """Signed unit vectors: +-(row + 1)."""
    vectors = torch.stack([math.copysign(1, r) * torch.eye(d)[abs(r) - 1] for r in rows])
    return ge.Axes(vectors, vectors.abs(), torch.zeros(2 * len(rows)), torch.zeros(len(rows)), 0.0, (d,), 1)


@pytest.mark.parametrize("c", [-0.1, 0.05, 0.3])
def test_acceptance(c: float) -> None:
    """One axis: the cap's area; opposite axes double what is lost; Monte Carlo agrees; norms are chi's."""
    d, n = 40, 40_000
    base = ge.GaussianSource((d,), dtype=F64)
    source = ge.PrunedSource(base, one_axis(d, 1), c)
    assert source.acceptance_is_exact
    sign = math.copysign(1, c)
    formula = (1 + sign * float(stats.beta(0.5, (d - 1) / 2).cdf(c**2))) / 2
    assert source.acceptance_rate == pytest.approx(formula, rel=1e-9)
    if c > 0:
        twice = ge.PrunedSource(base, one_axis(d, 1, -1), c)
        assert 1 - twice.acceptance_rate == pytest.approx(2 * cap_probability(c, d), rel=1e-9)
    estimate = source.estimate_acceptance(n, generator=torch.Generator().manual_seed(0))
    assert abs(estimate - formula) < 3 * math.sqrt(formula * (1 - formula) / n)
    x = source.sample(10_000, generator=torch.Generator().manual_seed(1))
    assert bool((x[:, 0] <= c * x.norm(dim=1) + 1e-12).all())
    assert stats.kstest(x.norm(dim=1).numpy(), stats.chi(d).cdf).pvalue > 0.01
    outside = torch.zeros(1, d, dtype=F64)
    outside[0, 0] = 3
    assert float(source.log_prob(outside)) == -math.inf
    torch.testing.assert_close(source.log_prob(x[:5]), base.log_prob(x[:5]) - math.log(formula))
    assert source.mean_norm == base.mean_norm


def test_thresholds_and_refusals(generator: torch.Generator) -> None:
    base = ge.GaussianSource((64,))
    axes = one_axis(64, *range(1, 31))
    assert ge.PrunedSource(base, axes).threshold == pytest.approx(2.66 / 8)
    kept = ge.PrunedSource(base, axes, accept=0.7)
    assert kept.acceptance_rate == pytest.approx(0.7, abs=1e-6)
    assert kept.estimate_acceptance(20_000, generator=generator) == pytest.approx(0.7, abs=0.015)
    scaled = ge.PrunedSource(ge.NormAlignedSource(base, 0.3), axes, kept.threshold)
    assert scaled.acceptance_rate == kept.acceptance_rate
    assert scaled.mean_norm == pytest.approx(0.3 * base.mean_norm)
    with pytest.raises(ge.PruningError, match="of the draws") as caught:
        ge.PrunedSource(base, one_axis(64, *range(1, 65), *range(-64, 0)), 0.2)
    assert caught.value.acceptance < 1e-4
    with pytest.raises(ValueError, match="64 dimensions and the base 63"):
        ge.PrunedSource(ge.GaussianSource((63,)), axes)
    with pytest.raises(ValueError, match="max_cosine"):
        ge.PrunedSource(base, axes, 1.5)
    pointed = ge.VonMisesFisherSource(directions=torch.eye(64)[:1], kappa=5000.0)
    with pytest.raises(ge.PruningError):
        ge.PrunedSource(pointed, one_axis(64, 1), 0.1).sample(10, generator=generator)
    ours = ge.PrunedSource(pointed, one_axis(64, 2), 0.02)
    assert bool(ours.keeps(ours.sample(100, generator=generator)).all())
    with pytest.raises(NotImplementedError):
        _ = ours.acceptance_rate


def test_the_complement_that_the_released_script_stores_keeps_nothing(generator: torch.Generator) -> None:
    """2-sigma-and-more around nearly all of 2 D axes: the discrepancy between script and text."""
    from anabranch.generative._acceptance import orthonormal_share

    assert orthonormal_share(3072, 100, 2950, 0.048) < 1e-6
    assert orthonormal_share(3072, 60, 0, 0.048) == pytest.approx(0.9961**60, rel=2e-3)


def test_pruning_an_exact_flow_cannot_help() -> None:
    """The exact field carries the whole Gaussian to the data, and a part of it to a part of them."""
    world = GaussianMixture(weights=[1, 1, 2], means=[[3.0, 0.0], [-2.0, 1.0], [0.0, -3.0]], covariances=0.1)
    data = world.sample(600, generator=torch.Generator().manual_seed(0))
    fresh = world.sample(600, generator=torch.Generator().manual_seed(9))
    base = ge.GaussianSource((2,), dtype=F64)
    pruned = ge.PrunedSource(base, ge.mean_direction_axes(data.float()), 0.5)
    distance = []
    for source in (base, pruned):
        x0 = source.sample(600, generator=torch.Generator().manual_seed(1))
        distance.append(ge.metrics.wasserstein2(ge.solve(world.velocity(), x0, uniform_times(40), "heun"), fresh))
    assert distance[1] > distance[0]


def test_axes_and_their_file(tmp_path: Path, generator: torch.Generator) -> None:
    axes = ge.sparse_axes(torch.rand(80, 1, 4, 4, generator=generator), 0.3)
    again = ge.load_axes(ge.save_axes(axes, tmp_path / "axes.safetensors"))
    assert torch.equal(again.vectors, axes.vectors)
    assert (again.shape, again.images, again.threshold) == ((1, 4, 4), 80, 0.3)
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no axes"):
        ge.load_axes(tmp_path / "other.safetensors")


def test_command(tmp_path: Path, generator: torch.Generator) -> None:
    x = torch.rand(90, 6, 6, generator=generator)
    np.savez(tmp_path / "x.npz", x=x.numpy())
    run = CliRunner().invoke(command.app, ["report", str(tmp_path / "x.npz"), "--json", "--threshold", "0.2"])
    assert run.exit_code == 0, run.output
    told = json.loads(run.output)
    assert told["dimensions"] == 36
    assert told["scale"] == pytest.approx(told["data_norm"] / ge.GaussianSource((36,)).mean_norm)
    assert CliRunner().invoke(command.app, ["report", str(tmp_path / "x.npz")]).exit_code == 0
    out = tmp_path / "axes.safetensors"
    assert CliRunner().invoke(command.app, ["axes", str(tmp_path / "x.npz"), "--mean", "-o", str(out)]).exit_code == 0
    run = CliRunner().invoke(
        command.app, ["noise", str(out), "-n", "50", "--accept", "0.6", "-o", str(tmp_path / "n.npz"), "--json"]
    )
    assert run.exit_code == 0, run.output
    assert json.loads(run.output)["acceptance"] == pytest.approx(0.6, abs=1e-6)
    drawn = torch.from_numpy(np.load(tmp_path / "n.npz")["x"])
    assert drawn.shape == (50, 1, 6, 6)
    assert bool(ge.PrunedSource(ge.GaussianSource((1, 6, 6)), ge.load_axes(out), accept=0.6).keeps(drawn).all())
    np.save(tmp_path / "latents.npy", torch.randn(50, 4, 3, 3).numpy())
    assert command.read_data(tmp_path / "latents.npy").shape == (50, 4, 3, 3)


def test_a_trained_model_takes_both_without_training(fashion_root: Path) -> None:
    """The shipped teacher: pruned starts by its data's axes; aligned norms by a change of its field, to the same images."""
    x, _ = fashion_tensors(fashion_root)
    x = x[:4000]
    axes = ge.mean_direction_axes(x)
    teacher = load_fashion_teacher()
    base = ge.GaussianSource((1, 28, 28))
    pruned = ge.PrunedSource(base, axes, 0.03)
    assert 0.75 < pruned.acceptance_rate < 0.85  # one axis at 0.84 standard deviations
    labels = balanced_labels(10)
    x0 = pruned.sample(10, generator=torch.Generator().manual_seed(0))
    plain = ge.solve(teacher, x0, uniform_times(24), "heun", label=labels)
    c = ge.norm_alignment(x, base)
    assert c == pytest.approx(23.0 / 27.99, rel=0.01)
    aligned = ge.NormAlignedField(teacher, c)
    counted = ge.Counted(aligned)
    assert bool(pruned.keeps(c * x0).all())
    moved = ge.solve(counted, c * x0, uniform_times(24), "heun", label=labels)
    assert counted.calls == 48
    assert float((moved - plain).square().mean().sqrt()) < 0.05 * float(plain.square().mean().sqrt())
    first = torch.linalg.vector_norm(ge.solve(teacher, c * x0, uniform_times(24), "heun", label=labels) - plain)
    assert float(first) > 4 * float(torch.linalg.vector_norm(moved - plain))  # scaled noise without the change of field


def test_geometry_report(generator: torch.Generator) -> None:
    x = torch.rand(300, 1, 4, 4, generator=generator)
    told = ge.geometry_report(x, thresholds=(0.1, 0.4))
    flat = x.flatten(1)
    assert told.data_norm == pytest.approx(float(flat.norm(dim=1).mean()), rel=1e-6)
    unit = flat / flat.norm(dim=1, keepdim=True)
    mean = unit.mean(0) / unit.mean(0).norm()
    assert told.mean_cosine == pytest.approx(float((unit @ mean).mean()), rel=1e-5)
    counts = [len(ge.sparse_axes(x, t).vectors) for t in (0.1, 0.4)]
    assert [row.axes for row in told.sparse] == counts
    assert told.sparse[1].acceptance <= told.sparse[0].acceptance <= 1


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(1, 40), st.integers(0, 10_000), st.sampled_from([0.5, 0.9, 1.0]))
def test_nonnegative_coordinates_leave_exactly_the_minus_axes_empty(d: int, n: int, seed: int, quantile: float) -> None:
    """Data = Q z, z > 0: every cosine to an axis is above 0 and to its opposite below; the maxima match brute force."""
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=F64)).Q
    data = ((torch.rand(n, d, generator=g, dtype=F64) + 0.01) @ q.T).float()
    found = _largest_cosines(_Rows(data, False, 7), q.T.float(), quantile)
    assert bool((found[:d] > 0).all())
    assert bool((found[d:] < 0).all())
    unit = data.double() / data.double().norm(dim=1, keepdim=True)
    cosines = torch.cat([unit @ q, -(unit @ q)], 1).sort(dim=0).values
    wanted = cosines[math.ceil(quantile * n) - 1]
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)


def test_principal_subspaces_against_scikit_learn(generator: torch.Generator) -> None:
    """Angles between the spans of the leading and of the last axes: at most 1e-4."""
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")
    data = torch.randn(3000, 10, generator=generator) * 2.0 ** -torch.arange(10) + 0.3
    ours = ge.sparse_axes(data, 1.0).basis.double().numpy()
    unit = (data.double() / data.double().norm(dim=1, keepdim=True)).numpy()
    theirs = decomposition.PCA().fit(unit).components_
    for k in range(1, 10):
        assert linalg.subspace_angles(ours[:k].T, theirs[:k].T).max() <= 1e-4
        assert linalg.subspace_angles(ours[k:].T, theirs[k:].T).max() <= 1e-4


class Foreign(torch.nn.Module):
    """Somebody else's velocity network: not ours, no attribute of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        level = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1, 1).expand(len(x), 1, *x.shape[2:])
        return self.body(torch.cat([x, level], 1))


def test_a_foreign_model_takes_aligned_norms_without_training() -> None:
    """Any field whatever: the same end points from c x0 as from x0, once steps are fine; the weights are as they were."""
    torch.manual_seed(0)
    model = Foreign().double().requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    x0 = torch.randn(6, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    wanted = ge.solve(model, x0, uniform_times(400), "rk4")
    for c in (0.4908, 0.82, 1.7):
        moved = ge.solve(ge.NormAlignedField(model, c), c * x0, uniform_times(400), "rk4")
        torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_pruned_latents_in_the_loop_of_diffusers(tmp_path: Path, generator: torch.Generator) -> None:
    """What `source noise` writes goes through diffusers' own scheduler as its latents, and gives what our solver gives."""
    schedulers = pytest.importorskip("diffusers.schedulers", reason="diffusers is not installed")
    from safetensors.torch import load_file

    x = torch.rand(200, 1, 5, 5, generator=generator) * 2 - 0.6
    np.savez(tmp_path / "x.npz", x=(x.numpy() + 1) / 2.5)
    axes, out = tmp_path / "axes.safetensors", tmp_path / "latents.safetensors"
    assert CliRunner().invoke(command.app, ["axes", str(tmp_path / "x.npz"), "--mean", "-o", str(axes)]).exit_code == 0
    done = CliRunner().invoke(command.app, ["noise", str(axes), "-n", "6", "--accept", "0.6", "-o", str(out)])
    assert done.exit_code == 0, done.output
    latents = load_file(out)["latents"]
    assert bool(ge.PrunedSource(ge.GaussianSource((1, 5, 5)), ge.load_axes(axes), accept=0.6).keeps(latents).all())
    torch.manual_seed(0)
    model = Foreign().requires_grad_(False)
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(8)
    times = ge.times_from_diffusers(scheduler)
    theirs = latents
    for i, step in enumerate(scheduler.timesteps):
        theirs = scheduler.step(-model(theirs, times[i].float()), step, theirs).prev_sample
    torch.testing.assert_close(theirs, ge.solve(model, latents, times), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "nothing.npz"], "nothing.npz"),
        (["report", "ints.npy"], "floats"),
        (["axes", "x.npy", "-o", "axes.pt"], ".safetensors"),
        (["axes", "x.npy", "-o", "nowhere/axes.safetensors"], "no folder"),
        (["axes", "x.npy", "--threshold", "1.5", "-o", "a.safetensors"], "threshold"),
        (["noise", "x.npy", "-o", "n.npz"], "holds no axes"),
        (["report", "other.safetensors"], "latents"),
    ],
)
def test_bad_input_of_the_command_is_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32))
    np.save("ints.npy", np.arange(20).reshape(4, 5))
    save_file({"other": torch.zeros(3, 4)}, "other.safetensors")
    monkeypatch.setattr("sys.argv", ["anabranch", "generative", "source", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert words in told.err.replace("\n", " ")
    assert "Traceback" not in told.err


def test_pruning_a_scaled_pruned_source_again(generator: torch.Generator) -> None:
    """A pruned source has no uniform directions, whatever it is wrapped in: its acceptance is counted, not computed."""
    axes = ge.Axes(torch.eye(4)[:1], torch.eye(4), torch.full((8,), -1.0), torch.ones(4), 0.0, (4,), 1)
    once = ge.PrunedSource(ge.GaussianSource((4,)), axes, max_cosine=0.2)
    scaled = ge.NormAlignedSource(once, 2.0)
    assert once.base_isotropic
    assert not scaled.isotropic
    twice = ge.PrunedSource(scaled, axes, max_cosine=0.2)
    with pytest.raises(NotImplementedError, match="estimate_acceptance"):
        _ = twice.acceptance_rate
    assert twice.estimate_acceptance(500, generator=generator) == 1.0
