"""One sentence for a missing dependency."""

TORCH_MISSING = (
    "anabranch.attention needs torch: install anabranch[attention]; for a machine without a GPU install torch's CPU-only "
    "build first (its index is named by the install selector on pytorch.org)"
)


def missing(package: str, what: str) -> str:
    """The message for an optional package that is not there."""
    return f"{what} needs {package}: pip install {package}"
