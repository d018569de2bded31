"""CIFAR-10 from its standard Python batches, without running what a pickle asks for."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .images import ImageData, LabelledImages

_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST = "test_batch"
_PIXELS = 3 * 32 * 32

# All that a pickled dict of bytes, ints and one uint8 array refers to; numpy 2 renamed its module.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch does")
        if name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        return super().find_class(module, name)


def find_cifar(folder: Path) -> Path | None:
    """``folder`` or its ``cifar-10-batches-py``, whichever holds the batches."""
    for candidate in (folder, folder / "cifar-10-batches-py"):
        if (candidate / _TRAIN[0]).exists() or (candidate / _TEST).exists():
            return candidate
    return None


def load_cifar(folder: Path) -> ImageData:
    """``data_batch_1`` to ``data_batch_5`` and ``test_batch``, as the data set's site serves them.

    Raises:
        UserError: one is missing, cut short, or holds anything but arrays.
    """
    missing = [name for name in (*_TRAIN, _TEST) if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder} lacks CIFAR-10's {', '.join(missing)}")
    parts = [_read_batch(folder / name) for name in _TRAIN]
    train = LabelledImages(*map(torch.cat, zip(*parts, strict=True)))
    test = LabelledImages(*_read_batch(folder / _TEST))
    return ImageData(str(folder), train, test, _class_names(folder / "batches.meta"))


def _read_batch(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    content = _unpickle(path)
    images, labels = content.get(b"data"), content.get(b"labels")
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 2
        or images.shape[1] != _PIXELS
    ):
        raise UserError(f"{path}: expected 'data' to be a uint8 array [N, {_PIXELS}]")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise UserError(f"{path}: expected 'labels' to be a list of ints")
    return torch.from_numpy(images.reshape(-1, 3, 32, 32).copy()), torch.tensor(labels)


def _unpickle(path: Path) -> dict:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        raise UserError(f"cannot read {path} as a CIFAR-10 batch: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a pickled dict, got {type(content).__name__}")
    return {k.encode() if isinstance(k, str) else k: v for k, v in content.items()}


def _class_names(path: Path) -> tuple[str, ...]:
    if path.exists():
        names = _unpickle(path).get(b"label_names")
        if isinstance(names, list) and len(names) == 10:
            return tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
    return tuple(map(str, range(10)))
