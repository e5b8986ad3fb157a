"""Shared fixtures. Library packages are imported with their shape annotations checked; the command line runs without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from anabranch.lab.places import data_folder
from support import ROOT, CommandLine

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores
# Under `uv run` Ray would have uv build an environment for every worker; it asks when it is first imported, by any test.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
install_import_hook(
    [
        "anabranch.fabric",
        "anabranch.generative",
        "anabranch.serving",
        "anabranch.language",
        "anabranch.simulation",
        "anabranch.distributed",
        "anabranch.worlds.gaussian_mixture",
    ],
    "beartype.beartype",
)
_DATA_OF_THE_USER = data_folder()  # before any test has a home of its own


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("ANABRANCH_HOME", str(folder))
    monkeypatch.delenv("ANABRANCH_DATA", raising=False)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Data files that may not be redistributed: ``$ANABRANCH_SHARED``, else ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("ANABRANCH_SHARED", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{folder.name} with files that may not be redistributed is not here")
    return folder


@pytest.fixture(scope="session")
def fashion_root() -> Path:
    """A data folder with Fashion-MNIST: the user's own, or that of Debian's package."""
    from anabranch.worlds import FASHION_MNIST

    for root in (_DATA_OF_THE_USER, Path("/usr/share/datasets")):
        if FASHION_MNIST.here(root):
            return root
    pytest.skip("Fashion-MNIST is not here: apt-get install dataset-fashion-mnist, or anabranch data fashion-mnist")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The small language model's file in the user's data folder."""
    from anabranch.worlds import SMOLLM2_GGUF

    if not SMOLLM2_GGUF.here(_DATA_OF_THE_USER):
        pytest.skip("SmolLM2 is not here: anabranch data smollm2-135m")
    return SMOLLM2_GGUF.folder(_DATA_OF_THE_USER) / SMOLLM2_GGUF.files[0].name


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the sentence encoder in the user's data folder."""
    from anabranch.worlds import MINILM

    if not MINILM.here(_DATA_OF_THE_USER):
        pytest.skip("the sentence encoder is not here: anabranch data all-minilm-l6-v2")
    return MINILM.folder(_DATA_OF_THE_USER)


@pytest.fixture(scope="session")
def plugin_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example plug-in package, installed the way pip would."""
    site = tmp_path_factory.mktemp("site")
    (site / "coin_flips").symlink_to(ROOT / "examples" / "plugin" / "src" / "coin_flips")
    info = site / "anabranch_coin_flips-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: anabranch-coin-flips\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[anabranch.papers]\ncoin-flips = coin_flips\n")
    return site


@pytest.fixture
def plugin(plugin_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Slug of the example plug-in's paper, found by this process and its children."""
    from anabranch.lab import discover

    monkeypatch.syspath_prepend(plugin_path)
    monkeypatch.setenv("PYTHONPATH", str(plugin_path))
    discover._modules.cache_clear()
    yield "coin-flips"
    discover._modules.cache_clear()


@pytest.fixture
def anabranch() -> CommandLine:
    return CommandLine()
