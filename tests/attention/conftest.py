"""Shape annotations of the package are checked in these tests."""

import pytest
from jaxtyping import install_import_hook

torch = pytest.importorskip("torch", reason="the extra attention is not installed")
torch.set_num_threads(1)
install_import_hook(["anabranch.attention"], "beartype.beartype")


@pytest.fixture
def generator() -> "torch.Generator":
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(0)
