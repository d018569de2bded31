"""Any folder of images: decoded once into memory, or left in its files to be streamed."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .broken import check_images, run_all
from .decode import decode, pillow, read_header
from .images import IN_MEMORY, ImageData, LabelledFiles, LabelledImages, split_by_class
from .listing import Listed, list_folder

_SAMPLE = 256  # headers that tell whether a large set is grey


def load_folder(
    root: Path,
    image_size: int | None = None,
    workers: int | None = None,
    stream: bool | None = None,
    check: bool = False,
) -> ImageData:
    """A folder in one of the layouts of ``list_folder``. Where it has no part for the test, one
    image in five of each class is kept for it, always the same ones.

    Images are RGB unless all are grey (of streamed ones: all of a sample of 256).

    Args:
        image_size: side of the square that every image becomes. ``None`` where all have one size
            already, which streamed ones need not.
        workers: threads that decode; ``None`` for one a core.
        stream: whether images stay in their files, to be decoded as they are needed; ``None``:
            where as bytes they would be more than ``IN_MEMORY``.
        check: decodes each image once that is to be streamed, to find broken ones.

    Raises:
        UserError: see ``list_folder``; broken files, up to ten of them named, different sizes, or a
            folder that is to be streamed without an ``image_size``.
    """
    pillow()
    listing = list_folder(root)
    parts = [_to_files(part) for part in (listing.train, listing.test) if part is not None]
    files, labels = np.concatenate([f for f, _ in parts]), torch.cat([y for _, y in parts])
    data = LabelledFiles(files, labels, (3, image_size or 0, image_size or 0))
    if stream is None:
        height, width = (image_size,) * 2 if image_size else _first_size(data)
        stream = len(files) * 3 * height * width > IN_MEMORY
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        if stream and check:
            check_images(pool, map(data.path, range(len(data))))
        data = _streamed(data, root, pool) if stream else _decoded(data, image_size, pool)
    if listing.test is None:
        train, test = split_by_class(labels, 0.2, seed=0)
    else:
        count = len(listing.train.files)
        train, test = slice(count), slice(count, None)
    return ImageData(str(root), data[train], data[test], listing.classes)


def _to_files(part: Listed) -> tuple[np.ndarray, torch.Tensor]:
    return np.array([os.fsencode(f) for f in part.files]), torch.tensor(part.labels)


def _first_size(data: LabelledFiles) -> tuple[int, int]:
    """Of the first image that can be read: headers of a million files take minutes, so that one
    stands for all."""
    for i in range(len(data)):
        with suppress(UserError):
            return read_header(data.path(i))[0]
    return 1, 1  # none can, which is said as soon as all are read


def _streamed(data: LabelledFiles, root: Path, pool: ThreadPoolExecutor) -> LabelledFiles:
    if data.shape[1] == 0:
        raise UserError(
            f"{root}: its {len(data)} images are to be decoded as they are needed, for which "
            "--image-size N says how large (224 is usual for ImageNet); --no-stream decodes all "
            f"into memory, as is done up to {IN_MEMORY / 2**30:.0f} GiB"
        )
    sample = np.linspace(0, len(data) - 1, min(len(data), _SAMPLE)).astype(int).tolist()
    grey = all(g for _, g in pool.map(read_header, map(data.path, sample)))
    return LabelledFiles(data.files, data.labels, (1 if grey else 3, *data.shape[1:]))


def _decoded(
    data: LabelledFiles, image_size: int | None, pool: ThreadPoolExecutor
) -> LabelledImages:
    """All images as bytes. Headers are read first, so that memory is taken once and a folder of
    mixed sizes is refused before minutes of decoding."""
    paths = [data.path(i) for i in range(len(data))]
    try:
        headers = run_all(pool, read_header, paths)
    except UserError:
        check_images(pool, paths)  # those too that only decoding finds
        raise
    channels = 1 if all(grey for _, grey in headers) else 3
    sizes = [size for size, _ in headers]
    height, width = (image_size, image_size) if image_size else _common_size(paths, sizes)
    shape = len(paths), channels, height, width
    _check_memory(shape)
    images = np.empty(shape, np.uint8)
    run_all(pool, decode, paths, images)
    return LabelledImages(torch.from_numpy(images), data.labels)


def _common_size(paths: list[str], sizes: list[tuple[int, int]]) -> tuple[int, int]:
    first = sizes[0]
    for path, size in zip(paths, sizes, strict=True):
        if size != first:
            raise UserError(
                f"images differ in size: {paths[0]} has {first[0]}x{first[1]} pixels, {path} "
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
            f"as bytes, this machine has {memory / 2**30:.0f}; --stream decodes them as they are "
            "needed, --image-size makes them smaller"
        )
