"""``--data``: which loader reads what."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .arrays import find_idx, load_idx, load_npz
from .builtin import load_digits, load_synthetic
from .cifar import find_cifar, load_cifar
from .folder import load_folder
from .images import ImageData

BUILTIN = {"digits": load_digits, "synthetic": load_synthetic}


def load_data(
    source: str,
    image_size: int | None = None,
    workers: int | None = None,
    stream: bool | None = None,
    check: bool = False,
) -> ImageData:
    """Reads a data set, whole or, of a large folder of images, its list of files.

    Args:
        source: ``digits``, ``synthetic``, or a path: a folder with MNIST's idx files or CIFAR's
            Python batches, an ``.npz`` file like MNIST's, one of the idx files, or a folder of
            images with a sub-folder a class, such as Tiny-ImageNet and ImageNet.
        image_size: makes every image a square of that side.
        workers: threads that decode images; ``None`` for one a core.
        stream: whether a folder's images are decoded as they are needed; ``None`` for where they
            are many.
        check: decodes each image of such a folder once, to find broken ones.

    Raises:
        UserError: there is nothing of the kind, it is damaged, or a class is in one part alone; of
            a folder's broken images up to ten are named.
    """
    if source in BUILTIN:
        data = BUILTIN[source]()
    else:
        try:
            path = Path(source).expanduser()
            is_folder, is_file = path.is_dir(), path.is_file()
        except (OSError, RuntimeError) as error:  # a name too long, the home of nobody
            raise UserError(f"unknown data {source!r}: {error}") from error
        if is_folder:
            data = _load_directory(path, image_size, workers, stream, check)
        elif is_file:
            data = _load_file(path)
        else:
            raise UserError(
                f"unknown data {source!r}: expected {', '.join(BUILTIN)} or the path of a file or "
                "folder that exists"
            )
    if stream and not data.streamed:
        raise UserError(f"{source} is read whole: --stream is for folders of images")
    data.check_classes()
    return data if image_size is None else data.resized(image_size)


def _load_directory(
    path: Path, image_size: int | None, workers: int | None, stream: bool | None, check: bool
) -> ImageData:
    for folder in (path, path / "raw", path / "MNIST" / "raw"):
        if folder.is_dir() and find_idx(folder):
            return load_idx(folder)
    if (path / "mnist.npz").is_file():
        return load_npz(path / "mnist.npz")
    cifar = find_cifar(path)
    if cifar is not None:
        return load_cifar(*cifar)
    return load_folder(path, image_size, workers, stream, check)


def _load_file(path: Path) -> ImageData:
    if path.suffix == ".npz":
        return load_npz(path)
    if path in find_idx(path.parent).values():
        return load_idx(path.parent)
    raise UserError(f"{path} is neither an .npz file nor one of MNIST's idx files")
