"""MNIST and its kin: the standard idx files, and ``mnist.npz``."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .images import ImageData, LabelledImages

_MOST_CLASSES = 1 << 16  # a damaged label may be any number, and each class gets a name

_IDX_PARTS = {
    (part, what): f"*{part}*{what}*idx*ubyte*"
    for part in ("train", "t10k")
    for what in ("images", "labels")
}


def find_idx(folder: Path) -> dict[tuple[str, str], Path]:
    """The idx files in ``folder``, by ("train" or "t10k", "images" or "labels")."""
    found = {key: sorted(folder.glob(pattern)) for key, pattern in _IDX_PARTS.items()}
    return {key: paths[0] for key, paths in found.items() if paths}


def load_idx(folder: Path) -> ImageData:
    """The four files ``train-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte``, ..., ``.gz`` or not.

    Raises:
        UserError: one is missing, cut short, or no idx file.
    """
    found = find_idx(folder)
    for key, pattern in _IDX_PARTS.items():
        if key not in found:
            raise UserError(f"{folder} lacks MNIST's file {pattern}")
    train, test = (
        LabelledImages(
            torch.from_numpy(read_idx(found[part, "images"], 3)).unsqueeze(1),
            torch.from_numpy(read_idx(found[part, "labels"], 1)).long(),
        )
        for part in ("train", "t10k")
    )
    return ImageData(str(folder), train, test, _number_names(folder, train, test))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An idx file of unsigned bytes: magic ``00 00 08 d``, ``d`` big-endian sizes, the values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise UserError(
            f"{path} is no idx file of {dimensions} dimensions of unsigned bytes: it begins with "
            f"{content[:4].hex(' ') or 'nothing'}, expected 00 00 08 0{dimensions}"
        )
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    wanted = math.prod(shape)
    if len(content) - header != wanted:
        raise UserError(
            f"{path} is cut short or damaged: {len(content) - header} values, its header "
            f"announces {wanted}"
        )
    return np.frombuffer(bytearray(content), np.uint8, offset=header).reshape(shape)


def load_npz(path: Path) -> ImageData:
    """``mnist.npz``: ``x_train`` ``[N, H, W]`` or ``[N, H, W, C]`` uint8, ``y_train`` ``[N]``
    integers, and ``x_test``, ``y_test`` alike.

    Raises:
        UserError: the file is damaged or holds something else.
    """
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file]
            if missing:
                raise UserError(
                    f"{path} lacks {', '.join(missing)}; it holds {', '.join(file) or 'nothing'}"
                )
            # What is no array in the archive, numpy gives as bytes.
            arrays = {key: np.asarray(file[key]) for key in keys}
    except UserError:
        raise
    # A damaged archive, or one of another kind, can raise nearly anything.
    except Exception as error:
        raise UserError(f"cannot read {path}: {error}") from error
    for key in keys[::2]:
        if arrays[key].dtype != np.uint8 or arrays[key].ndim not in (3, 4):
            raise UserError(
                f"{path}: {key} must be uint8 [N, H, W] or [N, H, W, C], got "
                f"{arrays[key].dtype} {list(arrays[key].shape)}"
            )
    for key in keys[1::2]:
        if arrays[key].dtype.kind not in "iu" or arrays[key].ndim != 1:
            raise UserError(
                f"{path}: {key} must be integers [N], got "
                f"{arrays[key].dtype} {list(arrays[key].shape)}"
            )
    train, test = (
        LabelledImages(_channels_first(arrays[x]), torch.from_numpy(arrays[y].astype(np.int64)))
        for x, y in (keys[:2], keys[2:])
    )
    return ImageData(str(path), train, test, _number_names(path, train, test))


def _channels_first(images: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(images)
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def _number_names(path: Path, *parts: LabelledImages) -> tuple[str, ...]:
    highest = max((int(part.labels.max()) for part in parts if len(part.labels)), default=-1)
    if highest >= _MOST_CLASSES:
        raise UserError(f"{path}: a label is {highest}, expected at most {_MOST_CLASSES - 1}")
    return tuple(map(str, range(highest + 1)))
