"""Any folder of images, one sub-folder a class, decoded once into memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError, require
from .images import ImageData, LabelledImages, split_by_class

_SUFFIXES = {
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
}  # fmt: skip
_TEST_NAMES = ("test", "val", "valid", "validation")
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "F")


def load_folder(root: Path, image_size: int | None, workers: int | None) -> ImageData:
    """``root/train/<class>/*`` with ``root/test/<class>/*`` (or ``val``, ``valid``,
    ``validation``), or ``root/<class>/*``, of which one image in five of each class is kept for
    the test, always the same ones.

    Images are RGB unless all are grey. Pictures decode to bytes held in memory, so this is for
    data sets that fit there.

    Args:
        image_size: side of the square that every image becomes: its shorter side is scaled, its
            middle cut out. ``None`` where all have one size already.
        workers: threads that decode; ``None`` for one a core.

    Raises:
        UserError: no class, a class without an image, a broken file, or different sizes.
    """
    training = root / "train"
    if training.is_dir():
        testing = next((root / name for name in _TEST_NAMES if (root / name).is_dir()), None)
        if testing is None:
            raise UserError(f"{root} has a folder 'train' but none of {', '.join(_TEST_NAMES)}")
        classes = _class_names(training)
        extra = [name for name in _class_names(testing) if name not in classes]
        if extra:
            raise UserError(f"{testing} has classes that {training} lacks: {', '.join(extra)}")
        files = list(_list_files(training, classes))
        count = len(files)
        files += _list_files(testing, [name for name in classes if (testing / name).is_dir()])
    else:
        classes = _class_names(root)
        files = list(_list_files(root, classes))
        count = None
    number = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([number[file.parent.name] for file in files])
    data = LabelledImages(_decode_all(files, image_size, workers), labels)
    if count is None:
        train, test = split_by_class(labels, 0.2, seed=0)
    else:
        train, test = slice(count), slice(count, None)
    return ImageData(str(root), data[train], data[test], tuple(classes))


def _class_names(folder: Path) -> list[str]:
    names = sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise UserError(f"{folder} holds no folder of images; expected one a class")
    return names


def _list_files(folder: Path, classes: Iterable[str]) -> list[Path]:
    files = []
    for name in classes:
        found = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in _SUFFIXES)
        if not found:
            raise UserError(f"{folder / name} holds no image ({', '.join(sorted(_SUFFIXES))})")
        files += found
    return files


def _decode_all(
    files: list[Path],
    image_size: int | None,
    workers: int | None,
) -> torch.Tensor:
    """``[N, C, H, W]`` bytes. Headers are read first, so that memory is taken once and a folder of
    mixed sizes is refused before minutes of decoding."""
    pillow = require("PIL.Image", "Pillow", "an image folder")
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        headers = list(pool.map(partial(_read_header, pillow), files))
        channels = 1 if all(mode in _GREY for _, mode in headers) else 3
        height, width = (image_size, image_size) if image_size else _common_size(files, headers)
        shape = len(files), channels, height, width
        _check_memory(shape)
        images = np.empty(shape, np.uint8)
        list(pool.map(partial(_decode, pillow), files, images))
    return torch.from_numpy(images)


def _read_header(pillow, path: Path) -> tuple[tuple[int, int], str]:
    """((height, width), mode)."""
    try:
        with pillow.open(path) as image:
            return (image.height, image.width), image.mode
    except Exception as error:  # Pillow's formats raise many kinds
        raise UserError(f"cannot read image {path}: {error}") from error


def _common_size(
    files: list[Path],
    headers: list[tuple[tuple[int, int], str]],
) -> tuple[int, int]:
    first = headers[0][0]
    for path, (size, _) in zip(files, headers, strict=True):
        if size != first:
            raise UserError(
                f"images differ in size: {files[0]} has {first[0]}x{first[1]} pixels, {path} "
                f"{size[0]}x{size[1]}; --image-size N makes all of them N x N"
            )
    return first


def _check_memory(shape: tuple[int, ...]) -> None:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # a system that does not say
        return
    needed = math.prod(shape)
    if needed > memory:
        raise UserError(
            f"{shape[0]} images of {'x'.join(map(str, shape[1:]))} take {needed / 2**30:.0f} GiB "
            f"as bytes, this machine has {memory / 2**30:.0f}; --image-size makes them smaller"
        )


def _decode(pillow, path: Path, out: np.ndarray) -> None:
    """Decodes into ``out`` ``[C, H, W]``, scaled and cut to its size."""
    channels, height, width = out.shape
    try:
        with pillow.open(path) as image:
            if image.mode == "F":
                raise ValueError("pixels are floats, whose range is not known")
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
                high = np.asarray(image).astype(np.int64) >> 8
                image = pillow.fromarray(high.clip(0, 255).astype(np.uint8))
            image = image.convert("L" if channels == 1 else "RGB")
    except Exception as error:
        raise UserError(f"cannot decode image {path}: {error}") from error
    if image.size != (width, height):
        scale = max(height / image.height, width / image.width)
        size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.resize(size, pillow.Resampling.BILINEAR)
        image = image.crop((left, top, left + width, top + height))
    out[:] = np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
