"""Photographs, patches of pictures, and noise with the spectrum of natural scenes."""

import importlib.util

import pytest

torch = pytest.importorskip("torch", reason="the extra generative is not installed")

from anabranch.worlds.photographs import natural_noise, photographs, random_patches  # noqa: E402


def test_the_photographs() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    x = photographs()
    assert x.shape == (2, 3, 427, 640)
    assert -1 <= float(x.min()) < -0.95
    assert 0.95 < float(x.max()) <= 1
    datasets = pytest.importorskip("sklearn.datasets")
    wanted = torch.from_numpy(datasets.load_sample_image("china.jpg").copy()).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(x[0], wanted)


def test_photographs_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="scikit-learn"):
        photographs()


def test_patches_are_cut_from_the_pictures() -> None:
    """Pictures that hold their own coordinates: a patch says where it was cut; every place is as likely as another."""
    row, column = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    pictures = torch.stack([torch.stack([torch.full((9, 7), float(i)), row, column]) for i in range(2)])
    x = random_patches(pictures, 6000, 4, generator=torch.Generator().manual_seed(0))
    assert x.shape == (6000, 3, 4, 4)
    which, top, left = x[:, :, 0, 0].long().unbind(1)
    for patch, i, a, b in zip(x[:50], which[:50], top[:50], left[:50], strict=True):
        assert torch.equal(patch, pictures[i, :, a : a + 4, b : b + 4])
    counts = torch.bincount((which * 6 + top) * 4 + left, minlength=48)
    assert len(counts) == 48
    assert float(((counts - 125) ** 2 / 125).sum()) < 90  # chi^2 of 47 degrees: 0.9998
    again = random_patches(pictures, 6000, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, again)
    with pytest.raises(ValueError, match="side=8"):
        random_patches(pictures, 1, 8, generator=torch.Generator())
    with pytest.raises(ValueError, match="count"):
        random_patches(pictures, 0, 4, generator=torch.Generator())


def test_noise_has_a_natural_spectrum() -> None:
    """Power falls like frequency to the power -2 (tanh flattens it a little); colors agree for the most part."""
    x = natural_noise(40, 64, generator=torch.Generator().manual_seed(0))
    assert x.shape == (40, 3, 64, 64)
    assert float(x.abs().max()) <= 1
    power = torch.fft.rfft2(x).abs().square().mean((0, 1))
    frequency = torch.fft.fftfreq(64)[:, None].hypot(torch.fft.rfftfreq(64))
    band = (frequency > 2 / 64) & (frequency < 0.3)
    fit = torch.linalg.lstsq(
        torch.stack([frequency[band].log(), torch.ones(int(band.sum()))], 1), power[band].log()[:, None]
    ).solution
    assert float(fit[0, 0]) == pytest.approx(-2, abs=0.35)
    correlation = torch.corrcoef(x.transpose(0, 1).reshape(3, -1))
    assert 0.6 < float(correlation[0, 1]) < 0.95
    assert natural_noise(1, 9, generator=torch.Generator().manual_seed(0)).shape == (1, 3, 9, 9)
