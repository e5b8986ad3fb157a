"""``anabranch generative``: a user's images and models in, samples and students out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anabranch.generative import FlowMapModel, PixelUNet, load_network, save_network
from anabranch.generative.image_files import image_grid, load_images, save_images
from anabranch.generative.interop_networks import DiffusersNetwork
from support import CommandLine


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = PixelUNet(1, 8, classes=3)
    torch.nn.init.normal_(net.leave.weight, std=0.05)
    return save_network(net, tmp_path / "teacher.safetensors")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    draw = np.random.default_rng(0)
    for name in ("bags", "coats", "shoes"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            values = draw.integers(0, 256, (28, 28), dtype=np.uint8)
            Image.fromarray(values).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A tiny flow-matching pipeline of diffusers with random weights, saved as any user's would be."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), num_class_embeds=4,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def ok(anabranch: CommandLine, *arguments: str) -> str:
    done = anabranch("generative", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_sample_then_distill_then_jump(anabranch: CommandLine, teacher: Path, pictures: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.png"
    done = ok(anabranch, "sample", "-m", str(teacher), "-n", "5", "--steps", "3", "--guidance", "2",
                     "-o", str(grid), "--json")  # fmt: skip
    assert json.loads(done)["calls_per_sample"] == 6
    assert Image.open(grid).size == (3 * 28 + 2 * 2, 2 * 28 + 2)
    student = tmp_path / "student.safetensors"
    said = ok(anabranch, "distill", "splitmeanflow", "-t", str(teacher), "--data", str(pictures), "--steps", "3",
                     "--guidance", "2", "--batch-size", "4", "-o", str(student), "--json")  # fmt: skip
    assert json.loads(said)["steps"] == 3
    assert isinstance(load_network(student), FlowMapModel)
    assert not list(tmp_path.glob("*.state"))
    values = tmp_path / "drawn.npz"
    ok(anabranch, "sample", "-m", str(student), "-n", "4", "--steps", "1", "--label", "2", "-o", str(values))
    drawn = np.load(values)
    assert drawn["x"].shape == (4, 1, 28, 28)
    assert drawn["y"].tolist() == [2] * 4
    assert drawn["x"].min() >= 0
    assert drawn["x"].max() <= 1
    # a second time with the same seed: the same bytes
    ok(anabranch, "sample", "-m", str(student), "-n", "4", "--steps", "1", "--label", "2", "-o",
              str(tmp_path / "again.npz"))  # fmt: skip
    assert (tmp_path / "again.npz").read_bytes() == values.read_bytes()


@pytest.mark.parametrize("method", ["meanflow", "shortcut", "consistency"])
def test_the_other_methods_and_no_data(anabranch: CommandLine, teacher: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "student.safetensors"
    ok(anabranch, "distill", method, "-t", str(teacher), "--data-free", "6", "--steps", "2", "--batch-size", "4",
              "-o", str(out))  # fmt: skip
    assert isinstance(load_network(out), FlowMapModel)


def test_a_real_diffusers_pipeline(anabranch: CommandLine, pipeline: Path, tmp_path: Path) -> None:
    """Sampled, distilled and loaded back: the student's boundary is the teacher's velocity before training moves it."""
    drawn, student = tmp_path / "drawn.npz", tmp_path / "student.safetensors"
    ok(anabranch, "sample", "-m", str(pipeline), "-n", "2", "--steps", "2", "--null-label", "3", "--guidance", "3",
              "-o", str(drawn))  # fmt: skip
    assert np.load(drawn)["x"].shape == (2, 1, 8, 8)
    ok(anabranch, "distill", "splitmeanflow", "-t", str(pipeline), "--data", str(drawn), "--steps", "2",
              "--null-label", "3", "--guidance", "2", "-o", str(student))  # fmt: skip
    net = load_network(student)
    assert isinstance(net, FlowMapModel)
    assert isinstance(net.net, DiffusersNetwork)
    ok(anabranch, "sample", "-m", str(student), "-n", "2", "--steps", "1", "-o", str(drawn))
    assert np.load(drawn)["x"].shape == (2, 1, 8, 8)


def test_a_scheduler_of_diffusers_takes_the_same_steps(pipeline: Path, generator: torch.Generator) -> None:
    """The wrapped network under our Euler equals the pipeline's own loop."""
    diffusers = pytest.importorskip("diffusers")
    from anabranch.generative import from_diffusers, solve, uniform_times

    unet = diffusers.UNet2DModel.from_pretrained(pipeline / "unet").eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(pipeline / "scheduler")
    net = DiffusersNetwork(unet, scheduler).eval()
    x, label = torch.randn(2, 1, 8, 8, generator=generator), torch.tensor([0, 2])
    ours = solve(net, x, uniform_times(5), "euler", label=label)
    torch.testing.assert_close(
        ours, solve(from_diffusers(unet, scheduler), x, uniform_times(5), "euler", class_labels=label)
    )
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4, 0.2])
    y = x
    with torch.no_grad():
        for step in scheduler.timesteps:
            y = scheduler.step(unet(y, step, class_labels=label).sample, step, y).prev_sample
    torch.testing.assert_close(ours, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "-m", "{t}", "-o", "x.gif"], "--out x.gif: expected a name that ends in .png or .npz"),
        (["sample", "-m", "none", "-o", "x.png"], "none: no such file"),
        (["sample", "-m", "{t}", "-o", "x.png", "--solver", "eulr"], "solver 'eulr' is unknown"),
        (["sample", "-m", "{t}", "-o", "x.png", "--label", "3"], "--label 3: the model has classes 0 to 2"),
        (["sample", "-m", "{t}", "-o", "x.png", "--device", "cuda:9"], "--device cuda:9"),
        (["sample", "-m", "{f}", "-o", "x.png"], "model_index.json"),
        (["distill", "meanflo", "-t", "{t}", "--data-free", "2", "-o", "s.safetensors"], "unknown method 'meanflo'"),
        (["distill", "meanflow", "-t", "{t}", "-o", "s.safetensors"], "give either --data PATH or --data-free N"),
        (["distill", "meanflow", "-t", "{t}", "--data", "none", "-o", "s.safetensors"], "none: expected a folder"),
    ],
)
def test_bad_input(anabranch: CommandLine, teacher: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    filled = [a.format(t=teacher, f=tmp_path) for a in arguments]
    done = anabranch("generative", *filled)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_images_in_every_form(pictures: Path, tmp_path: Path) -> None:
    found = load_images(pictures)
    assert found.classes == ("bags", "coats", "shoes")
    assert found.label is not None
    assert found.label.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.x.shape == (12, 1, 28, 28)
    assert load_images(pictures, side=14, channels=3).x.shape == (12, 3, 14, 14)
    assert load_images(pictures / "bags").label is None
    # PNG and back: every byte
    first = np.asarray(Image.open(pictures / "bags" / "0.png"))
    np.testing.assert_array_equal(found.x[0, 0].mul(127.5).add(127.5).round().numpy(), first)
    np.testing.assert_array_equal(image_grid(found.x[:1])[..., 0], first)
    for x in (
        first[None],
        first[None, ..., None].repeat(3, -1),
        first[None, None],
        (first / 255)[None].astype(np.float32),
    ):
        np.savez(tmp_path / "a.npz", x=x, y=np.array([1]))
        images = load_images(tmp_path / "a.npz")
        torch.testing.assert_close(images.x[0, 0], found.x[0, 0], rtol=0, atol=1e-6)
        assert images.label is not None
        assert images.label.tolist() == [1]
    idx = b"\0\0\x08\x03" + b"".join(n.to_bytes(4) for n in (1, 28, 28)) + first.tobytes()
    (tmp_path / "images-idx3-ubyte").write_bytes(idx)
    assert torch.equal(load_images(tmp_path / "images-idx3-ubyte").x, found.x[:1])
    again = load_images(save_images(found.x, tmp_path / "b.npz", found.label))
    torch.testing.assert_close(again.x, found.x, rtol=0, atol=1e-6)


def test_images_that_are_not_right(pictures: Path, tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        ({"z": np.zeros(3)}, "expected an array x"),
        ({"x": np.zeros(3)}, "x in .* has shape"),
        ({"x": np.full((2, 4, 4), 2.0)}, r"values outside \[0, 1\]"),
        ({"x": np.zeros((2, 4, 4)), "y": np.zeros(3, int)}, "y in "),
    ]
    for arrays, message in cases:
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            load_images(tmp_path / "a.npz")
    (tmp_path / "short").write_bytes(b"\0\0\x08\x03" + bytes(12) + b"x")
    with pytest.raises(ValueError, match="cut short"):
        load_images(tmp_path / "short")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        load_images(tmp_path / "empty")
    (pictures / "bags" / "9.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"9.png is no picture"):
        load_images(pictures)
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(pictures / "bags" / "9.png")
    with pytest.raises(ValueError, match="give side="):
        load_images(pictures)
