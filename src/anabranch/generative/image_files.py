"""Images in and out: a folder of pictures, ``.npz``, IDX files; grids as PNG. [0, 1] outside, [-1, 1] inside."""

import gzip
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


class Images(NamedTuple):
    """``x`` ``[N, C, H, W]`` in [-1, 1], ``label`` ``[N]`` or None, and the classes' names."""

    x: Tensor
    label: Tensor | None
    classes: tuple[str, ...]


def load_images(path: Path, *, side: int | None = None, channels: int | None = None) -> Images:
    """A user's images.

    ``path`` is a folder of pictures (its subfolders, if it has any, are the classes), an ``.npz`` with ``x``
    (``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]``; bytes, or floats in [0, 1]) and optional ``y`` ``[N]``, or an IDX
    file of images. Everything is read into memory.

    Args:
        side: pictures of a folder are cropped to their middle square and resized to this; default: they must have one size.
        channels: 1 makes them grey, 3 colour; default as they are (a folder: colour unless all are grey).

    Raises:
        FileNotFoundError: nothing there. ValueError: no images in it, sizes that differ, values outside [0, 1].
    """
    if path.is_dir():
        return _folder(path, side, channels)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a folder of pictures, an .npz or an IDX file")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            if "x" not in file:
                raise ValueError(f"{path} has {', '.join(file) or 'nothing'}: expected an array x, and optionally y")
            x, y = file["x"], file.get("y")
    else:
        x, y = _idx(path), None
    tensor = _as_images(x, path)
    if channels is not None and tensor.shape[1] != channels:
        tensor = tensor.mean(1, keepdim=True) if channels == 1 else tensor.expand(-1, channels, -1, -1)
    if side is not None and tuple(tensor.shape[-2:]) != (side, side):
        raise ValueError(f"{path} holds images of {tensor.shape[-2]} x {tensor.shape[-1]}: expected {side} x {side}")
    if y is None:
        return Images(tensor, None, ())
    if y.shape != (len(tensor),) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"y in {path} is {y.dtype} {y.shape}: expected integers [{len(tensor)}]")
    return Images(tensor, torch.from_numpy(y.astype(np.int64)), tuple(str(i) for i in range(int(y.max()) + 1)))


def _as_images(x: Any, path: Path) -> Tensor:
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or not len(x):
        raise ValueError(f"x in {path} has shape {x.shape}: expected [N, H, W], [N, H, W, C] or [N, C, H, W]")
    if x.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(x)).float().div(127.5).sub(1)
    values = torch.from_numpy(np.ascontiguousarray(x)).float()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"x in {path} has values outside [0, 1]: from {float(values.min())} to {float(values.max())}")
    return values.mul(2).sub(1)


def _idx(path: Path) -> Any:
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or raw[3] != 3:
        raise ValueError(f"{path} is neither .npz nor an IDX file of byte images")
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i]) for i in range(3))
    if len(raw) != 16 + math.prod(shape):
        raise ValueError(f"{path} is cut short: {len(raw)} bytes for images {shape}")
    return np.frombuffer(raw, np.uint8, offset=16).reshape(shape)


def _folder(path: Path, side: int | None, channels: int | None) -> Images:
    from PIL import Image, ImageOps, UnidentifiedImageError

    classes = tuple(sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")))
    found = [
        (file, index)
        for index, name in enumerate(classes or (".",))
        for file in sorted((path / name).iterdir())
        if file.suffix.lower() in _PICTURES
    ]
    if not found:
        raise ValueError(f"{path} holds no pictures ({', '.join(sorted(_PICTURES))}), nor do its subfolders")
    pictures, size = [], None
    for file, _ in found:
        try:
            with Image.open(file) as opened:
                picture = opened.convert("L" if opened.mode in ("L", "1", "I;16") else "RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{file} is no picture: {error}") from error
        if side is not None:
            picture = ImageOps.fit(picture, (side, side))
        size = size or picture.size
        if picture.size != size:
            raise ValueError(f"{file} is {picture.size}, the others {size}: give side= to bring them to one size")
        pictures.append(picture)
    mode = {1: "L", 3: "RGB", None: "L" if all(p.mode == "L" for p in pictures) else "RGB"}[channels]
    stack = np.stack([np.asarray(picture.convert(mode)) for picture in pictures])
    label = torch.tensor([index for _, index in found]) if classes else None
    return Images(_as_images(stack, path), label, classes)


def image_grid(x: Float[Tensor, "n channels height width"], *, columns: int | None = None, gap: int = 2) -> Any:
    """Images in [-1, 1] as one picture, row by row: bytes ``[H, W, 3]``.

    Raises:
        ValueError: neither one nor three channels.
    """
    n, channels, height, width = x.shape
    if channels not in (1, 3):
        raise ValueError(f"images have {channels} channels: expected 1 or 3")
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    pictures = x.detach().float().cpu().mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)
    for i, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def save_images(
    x: Float[Tensor, "n channels height width"], path: Path, label: Int[Tensor, " n"] | None = None
) -> Path:
    """Images in [-1, 1] as a ``.png`` grid or as ``.npz`` (``x`` floats in [0, 1] ``[N, C, H, W]``, and ``y``).

    Raises:
        ValueError: another suffix.
    """
    if path.suffix not in (".png", ".npz"):
        raise ValueError(f"{path}: expected a name that ends in .png (a grid) or .npz (the values)")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        from PIL import Image

        Image.fromarray(image_grid(x)).save(path)
    else:
        arrays: dict[str, Any] = {"x": x.detach().float().cpu().add(1).div(2).clamp(0, 1).numpy()}
        if label is not None:
            arrays["y"] = label.cpu().numpy()
        np.savez_compressed(path, **arrays)
    return path
