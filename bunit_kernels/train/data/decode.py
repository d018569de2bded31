"""One image file to bytes.

Pillow decodes, which torchvision's datasets use too. torchvision's own decoders would be a second
path, for JPEG and PNG alone and with other pixels, to save part of the work of processes that keep
ahead of the training anyhow.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ..errors import UserError, require

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "F")


def read_header(path: str | Path) -> tuple[tuple[int, int], bool]:
    """((height, width), whether it is grey).

    Raises:
        UserError: the file is not there or no image.
    """
    try:
        with pillow().open(path) as image:
            return (image.height, image.width), image.mode in _GREY
    except UserError:
        raise
    except Exception as error:  # Pillow's formats raise many kinds
        raise UserError(f"cannot read image {path}: {error}") from error


def decode(
    path: str | Path,
    out: np.ndarray,
    rng: np.random.Generator | None = None,
    margin: float = 0.0,
) -> None:
    """Decodes a part of an image into ``out`` ``[C, H, W]`` uint8, scaled to its size.

    Args:
        rng: draws the part, and whether it is mirrored; where ``None`` it is the middle.
        margin: what the middle leaves out of the largest part that fits, as a share of its side.

    Raises:
        UserError: the file is not there, cut short, damaged or no image.
    """
    channels, height, width = out.shape
    try:
        with pillow().open(path) as image:
            size = image.size
            middle = rng is None
            box = centre_box(size, (width, height), margin) if middle else random_box(size, rng)
            # A JPEG decodes at a half, a quarter or an eighth of its size for much less.
            scale = max(width / (box[2] - box[0]), height / (box[3] - box[1]))
            image.draft(None, (math.ceil(size[0] * scale), math.ceil(size[1] * scale)))
            box = tuple(
                min(edge * image.size[i % 2] / size[i % 2], image.size[i % 2])
                for i, edge in enumerate(box)
            )
            image = _to_bytes(image).convert("L" if channels == 1 else "RGB")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot decode image {path}: {error}") from error
    image = image.resize((width, height), pillow().Resampling.BILINEAR, box)
    pixels = np.asarray(image).reshape(height, width, channels)
    if rng is not None and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    out[:] = pixels.transpose(2, 0, 1)


def centre_box(size: tuple[int, int], shape: tuple[int, int], margin: float = 0.0) -> Box:
    """The middle of an image of ``size`` (width, height), as large as it can be in the proportions
    of ``shape``, less ``margin``."""
    scale = min(size[0] / shape[0], size[1] / shape[1]) * (1 - margin)
    width, height = shape[0] * scale, shape[1] * scale
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height


def random_box(size: tuple[int, int], rng: np.random.Generator) -> Box:
    """A part of 8 to 100 % of the area and 3:4 to 4:3 in width to height, as usual for ImageNet
    (Szegedy et al. 2015, Going deeper with convolutions, section 6). Where ten draws do not fit,
    the image being long and narrow, the middle square."""
    for _ in range(10):
        area = size[0] * size[1] * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= size[0] and 0 < height <= size[1]:
            left = int(rng.integers(size[0] - width + 1))
            top = int(rng.integers(size[1] - height + 1))
            return left, top, left + width, top + height
    return centre_box(size, (1, 1))


def _to_bytes(image):
    """The same with 8 bits a value: of 16 Pillow would clip all above 255."""
    if image.mode == "F":
        raise ValueError("pixels are floats, whose range is not known")
    if not image.mode.startswith("I"):
        return image
    high = np.asarray(image).astype(np.int64) >> 8
    return pillow().fromarray(high.clip(0, 255).astype(np.uint8))


def pillow():
    """Pillow's module of images; ``UserError`` where it is not installed."""
    return require("PIL.Image", "Pillow", "an image folder")
