"""Backbones: shapes, the zero start, labels, the second time, the meta device, files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anabranch.generative import (
    DiT,
    FlowMapModel,
    PatchPCA,
    PixelUNet,
    ResMLP,
    TinyMLP,
    UNet,
    load_network,
    network_notes,
    save_network,
)

NETWORKS = {
    "unet": (lambda **k: UNet(1, 8, (1, 2, 2), **k), (1, 28, 28)),
    "unet-colour-odd": (lambda **k: UNet(3, 8, (1, 2), 2, heads=0, **k), (3, 9, 13)),
    "pixel-unet": (lambda **k: PixelUNet(1, 8, **k), (1, 28, 28)),
    "dit": (lambda **k: DiT(8, 1, 16, 2, 2, 4, **k), (1, 8, 8)),
    "res-mlp": (lambda **k: ResMLP(3, 16, 2, **k), (3,)),
}
CASES = pytest.mark.parametrize("name", NETWORKS)


def stirred(net: nn.Module) -> nn.Module:
    """With every parameter moved off zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net


@CASES
def test_starts_at_zero_and_then_depends_on_everything(name: str, generator: torch.Generator) -> None:
    make, shape = NETWORKS[name]
    net, x = make(classes=4).double(), torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    t, label = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), torch.tensor([0, 1, 3])
    assert torch.equal(net(x, t, label), torch.zeros_like(x))
    out = stirred(net)(x, t, label)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    for other in (net(x + 0.1, t, label), net(x, t + 0.05, label), net(x, t, label.roll(1)), net(x, t)):
        assert (out - other).flatten(1).abs().amax(1).min() > 1e-6
    assert torch.equal(net(x, t), net(x, t, torch.full((3,), 4)))
    # rows do not see one another, and a number is a time for all
    torch.testing.assert_close(net(x[1:2], t[1:2], label[1:2]), out[1:2], rtol=1e-9, atol=1e-10)
    assert torch.equal(net(x, 0.5, label), net(x, torch.full((3,), 0.5, dtype=torch.float64), label))


@CASES
def test_second_time_starts_as_the_velocity(name: str, generator: torch.Generator) -> None:
    make, shape = NETWORKS[name]
    net = stirred(make(classes=4))
    x = torch.randn(2, *shape, generator=generator)
    s, t, label = torch.tensor([0.1, 0.4]), torch.tensor([0.6, 0.4]), torch.tensor([1, 2])
    u = FlowMapModel.from_velocity(net)
    assert torch.equal(u(x, s, t, label=label), net(x, s, label))
    assert not torch.equal(stirred(u)(x, s, t, label=label), u(x, s, t + 0.1, label=label))


def test_tiny_mlp(generator: torch.Generator) -> None:
    net, x = TinyMLP(2, 16), torch.randn(5, 2, generator=generator)
    assert torch.equal(net(x, 0.3), torch.zeros_like(x))
    assert stirred(net)(x, torch.rand(5)).shape == x.shape
    assert FlowMapModel.from_velocity(net)(x, 0.1, 0.2).shape == x.shape


@CASES
def test_forward_mode_derivative_is_the_difference(name: str, generator: torch.Generator) -> None:
    """What MeanFlow needs of a network: dnet/dx v + dnet/dt, here against central differences."""
    make, shape = NETWORKS[name]
    net = stirred(make(classes=4)).double()
    x, v = torch.randn(2, 2, *shape, generator=generator, dtype=torch.float64).unbind()
    t, label = torch.tensor([0.2, 0.7], dtype=torch.float64), torch.tensor([1, 2])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, du = torch.func.jvp(lambda a, b: net(a, b, label), (x, t), (v, torch.ones_like(t)))
        step = 1e-6
        central = (net(x + step * v, t + step, label) - net(x - step * v, t - step, label)) / (2 * step)
    torch.testing.assert_close(du, central, rtol=1e-6, atol=1e-6)


def test_attention_by_argument(generator: torch.Generator) -> None:
    """The mean of the values, whatever the queries: every token then gets the same mixture."""
    shapes = []

    def mean(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shapes.append(tuple(q.shape))
        return v.mean(2, keepdim=True).expand_as(v)

    x = torch.randn(2, 1, 8, 8, generator=generator)
    net = stirred(DiT(8, 1, 16, 1, 2, 4, attention=mean))
    assert not torch.allclose(net(x, 0.5), stirred(DiT(8, 1, 16, 1, 2, 4))(x, 0.5))
    assert shapes == [(2, 2, 4, 8)]


def test_everything_builds_on_the_meta_device() -> None:
    for make, shape in NETWORKS.values():
        with torch.device("meta"):
            net = FlowMapModel.from_velocity(make(classes=4))
            x = torch.empty(2, *shape)
            out = net(x, torch.empty(2), torch.empty(2), label=torch.zeros(2, dtype=torch.int64))
        assert out.is_meta
        assert out.shape == x.shape


@CASES
def test_saved_and_loaded(name: str, tmp_path: Path, generator: torch.Generator) -> None:
    make, shape = NETWORKS[name]
    x = torch.randn(2, *shape, generator=generator)
    for net in (stirred(make(classes=4)), stirred(FlowMapModel.from_velocity(make()))):
        times = (0.2,) if not isinstance(net, FlowMapModel) else (0.2, 0.9)
        path = save_network(net, tmp_path / "net.safetensors", notes={"data": "none"})
        assert torch.equal(load_network(path)(x, *times), net(x, *times))
        assert network_notes(path) == {"data": "none"}
        half = load_network(save_network(net, tmp_path / "half.safetensors", dtype=torch.float16))
        torch.testing.assert_close(half(x, *times), net(x, *times), rtol=0.02, atol=0.02)


def test_files_that_are_not_right(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_network(tmp_path / "none")
    (tmp_path / "text").write_text("not weights")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_network(tmp_path / "text")
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="does not say which network"):
        load_network(tmp_path / "foreign")
    for network, message in (
        ({"class": "Nobody", "config": {}}, "class 'Nobody' is unknown"),
        ({"class": "TinyMLP", "config": {"wide": 3}}, "config of TinyMLP.*wide"),
        ({"class": "TinyMLP", "config": {"dim": 2, "width": 4}}, "weight 'body.1.bias' is missing"),
    ):
        save_file({"w": torch.zeros(1)}, tmp_path / "wrong", metadata={"network": json.dumps(network)})
        with pytest.raises(ValueError, match=message):
            load_network(tmp_path / "wrong")
    with pytest.raises(TypeError, match="Linear cannot be saved"):
        save_network(nn.Linear(1, 1), tmp_path / "linear")


def test_bad_arguments_are_named(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, generator=generator)
    with pytest.raises(ValueError, match="label is given to a network without classes"):
        ResMLP(3)(x, 0.5, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"label has shape \(3,\): expected one class per sample, \[2\]"):
        ResMLP(3, classes=2)(x, 0.5, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="channels=12"):
        UNet(1, 12)
    with pytest.raises(ValueError, match="patch=3"):
        DiT(28, patch=3)
    with pytest.raises(ValueError, match="depth must be >= 1"):
        ResMLP(3, 16, 0)
    with pytest.raises(ValueError, match="classes must be >= 1"):
        ResMLP(3, classes=0)


def test_patch_pca_is_the_best_linear_code(generator: torch.Generator) -> None:
    """Equal to the singular vectors of the centered patches; whole basis: lossless; error = the variance left out."""
    basis = torch.randn(8, 32, generator=generator, dtype=torch.float64)
    images = (torch.randn(200, 8, generator=generator, dtype=torch.float64) @ basis).reshape(200, 2, 4, 4)
    for patch, k in ((4, 3), (2, 5), (4, 8)):
        pca = PatchPCA.fit(images, k, patch)
        rows = torch.nn.functional.pixel_unshuffle(images, patch).permute(0, 2, 3, 1).flatten(0, 2)
        centered = rows - rows.mean(0)
        values = torch.linalg.svdvals(centered) ** 2
        error = (pca.decode(pca.encode(images)) - images).square().sum()
        torch.testing.assert_close(error, values[k:].sum(), rtol=1e-9, atol=1e-9)
        assert pca.explained == pytest.approx(float(values[:k].sum() / values.sum()), rel=1e-9)
        latents = pca.encode(images)
        assert latents.shape == (200, k, 4 // patch, 4 // patch)
        assert float(latents.square().sum() / (len(rows) - 1) / k) == pytest.approx(1, rel=1e-9)
        torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(k, dtype=torch.float64))
    with pytest.raises(ValueError, match="patch=3 does not divide"):
        PatchPCA.fit(images, 2, 3)
    with pytest.raises(ValueError, match="components=33"):
        PatchPCA.fit(images, 33, 4)
