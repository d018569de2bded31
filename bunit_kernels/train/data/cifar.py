"""CIFAR-10 and CIFAR-100 from their Python files, without running what a pickle asks for."""

from __future__ import annotations

import io
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .images import ImageData, LabelledImages

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Variant:
    """How one of the two data sets is laid out in its files."""

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: bytes
    meta: str
    class_names: bytes
    classes: int


CIFAR10 = Variant(
    name="CIFAR-10",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test="test_batch",
    labels=b"labels",
    meta="batches.meta",
    class_names=b"label_names",
    classes=10,
)
CIFAR100 = Variant(
    name="CIFAR-100",
    folder="cifar-100-python",
    train=("train",),
    test="test",
    labels=b"fine_labels",
    meta="meta",
    class_names=b"fine_label_names",
    classes=100,
)


class _Bytes:
    """In place of numpy's arrays, which trust what a file says of them: a damaged one of objects
    can end the process."""

    values = np.empty(0, np.uint8)

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: tuple) -> None:
        *_, shape, _, by_columns, content = state
        values = np.frombuffer(content, np.uint8)
        self.values = values.reshape(shape, order="F" if by_columns else "C")


class _ByteType:
    """In place of numpy's dtype."""

    def __init__(self, kind: str | bytes, *_: object):
        if kind not in ("u1", b"u1"):
            raise ValueError(f"it holds an array of {kind!r}, expected bytes")

    def __setstate__(self, state: tuple) -> None:
        pass  # byte order and alignment, which bytes have none of


def _latin1(text: str, *_: object) -> bytes:
    return text.encode("latin1")


# All that a pickled dict of bytes, ints and one uint8 array refers to, and what does its work here;
# numpy 2 renamed its module.
_STANDS_FOR = {
    ("numpy.core.multiarray", "_reconstruct"): _Bytes,
    ("numpy._core.multiarray", "_reconstruct"): _Bytes,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _STANDS_FOR:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch does")
        return _STANDS_FOR[module, name]


def find_cifar(folder: Path) -> tuple[Path, Variant] | None:
    """``folder`` or the folder of an archive in it, whichever holds files of a data set."""
    for variant in (CIFAR10, CIFAR100):
        for candidate in (folder, folder / variant.folder):
            if any((candidate / name).is_file() for name in (*variant.train, variant.test)):
                return candidate, variant
    return None


def load_cifar(folder: Path, variant: Variant) -> ImageData:
    """``data_batch_1`` to ``data_batch_5`` and ``test_batch``, or CIFAR-100's ``train`` and
    ``test`` with its 100 fine labels, as the data sets' site serves them.

    Raises:
        UserError: one is missing, cut short, or holds anything but arrays.
    """
    missing = [name for name in (*variant.train, variant.test) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {variant.name}'s {', '.join(missing)}")
    parts = [_read_batch(folder / name, variant) for name in variant.train]
    train = LabelledImages(*map(torch.cat, zip(*parts, strict=True)))
    test = LabelledImages(*_read_batch(folder / variant.test, variant))
    return ImageData(str(folder), train, test, _class_names(folder, variant))


def _read_batch(path: Path, variant: Variant) -> tuple[torch.Tensor, torch.Tensor]:
    content = _unpickle(path, variant)
    data, labels = content.get(b"data"), content.get(variant.labels)
    images = data.values if isinstance(data, _Bytes) else None
    if images is None or images.ndim != 2 or images.shape[1] != _PIXELS:
        raise UserError(f"{path}: expected 'data' to be a uint8 array [N, {_PIXELS}]")
    if not isinstance(labels, list) or not all(
        type(label) is int and abs(label) < 1 << 31 for label in labels
    ):
        raise UserError(f"{path}: expected {variant.labels.decode()!r} to be a list of ints")
    return torch.from_numpy(images.reshape(-1, 3, 32, 32).copy()), torch.tensor(
        labels, dtype=torch.long
    )


def _unpickle(path: Path, variant: Variant) -> dict:
    try:
        pickled = path.read_bytes()
        _refuse_lengths_beyond(pickled)
        content = _ArraysOnly(io.BytesIO(pickled), encoding="bytes").load()
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        raise UserError(f"cannot read {path} as a {variant.name} batch: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a pickled dict, got {type(content).__name__}")
    return {k.encode(errors="replace") if isinstance(k, str) else k: v for k, v in content.items()}


def _refuse_lengths_beyond(pickled: bytes) -> None:
    """Raises ValueError where a pickle names a length or a place in its memo that it cannot have:
    the unpickler makes room for either before it looks, gigabytes for a few damaged bytes."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if "PUT" in opcode.name and argument > count:
            raise ValueError(f"its instruction {count} is the {argument}th to be remembered")


def _class_names(folder: Path, variant: Variant) -> tuple[str, ...]:
    path = folder / variant.meta
    if path.exists():
        names = _unpickle(path, variant).get(variant.class_names)
        if isinstance(names, list) and len(names) == variant.classes:
            return tuple(
                n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names
            )
    return tuple(map(str, range(variant.classes)))
