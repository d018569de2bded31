"""Which files a folder of images holds, and what class each is of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from .annotations import find_annotations, read_annotations, read_lines

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
_TEST_NAMES = ("test", "val", "valid", "validation")
_NESTED = ("tiny-imagenet-200", "ILSVRC/Data/CLS-LOC")  # where archives put the folders below
_NAMED = 5  # files that an error names


class Listed(NamedTuple):
    files: list[str]
    labels: list[int]


class Listing(NamedTuple):
    classes: tuple[str, ...]  # in ascending order
    train: Listed
    test: Listed | None  # None where there is one part


def list_folder(root: Path) -> Listing:
    """The images of one of these layouts, whose ``test`` may be called ``val``, ``valid`` or
    ``validation``:

    - ``train/CLASS/*`` with ``test/CLASS/*``, as ImageNet is mostly kept;
    - ``train/CLASS/*`` with ``val/*`` and an annotation, see ``find_annotations``: ImageNet as it
      is distributed;
    - ``train/CLASS/images/*`` with ``val/images/*`` and ``val/val_annotations.txt``:
      Tiny-ImageNet, whose ``test`` has no labels and is left alone;
    - ``CLASS/*``, without a part for the test.

    Raises:
        UserError: no class, a class without an image, a class of ``wnids.txt`` without a folder, a
            part for the test that is missing or has no labels, or that does not fit its annotation.
    """
    root = next((root / n for n in _NESTED if (root / n / "train").is_dir()), root)
    training = root / "train"
    if not training.is_dir():
        classes = _class_names(root)
        return Listing(classes, _list_classes(root, classes), None)
    testing = [root / name for name in _TEST_NAMES if (root / name).is_dir()]
    if not testing:
        raise UserError(f"{root} has a folder 'train' but none of {', '.join(_TEST_NAMES)}")
    classes = _class_names(training)
    _check_announced(root / "wnids.txt", training, classes)
    return Listing(classes, _list_classes(training, classes), _list_test(testing, classes))


def _list_test(folders: list[Path], classes: tuple[str, ...]) -> Listed:
    """The first of the folders whose labels are known."""
    for folder in folders:
        own = [name for name in _folder_names(folder) if name != "images"]
        extra = [name for name in own if name not in classes]
        if extra:
            raise UserError(
                f"{folder} has classes that {folder.with_name('train')} lacks: {', '.join(extra)}"
            )
        if own:
            return _list_classes(folder, own, {name: i for i, name in enumerate(classes)})
        annotation = find_annotations(folder)
        if annotation is not None:
            return _list_annotated(folder, annotation, classes)
    raise UserError(
        f"{folders[0]} has neither a folder a class nor an annotation that says what class each "
        "image is of (val_annotations.txt, val.txt, LOC_val_solution.csv or ImageNet's devkit)"
    )


def _list_annotated(folder: Path, annotation: Path, classes: tuple[str, ...]) -> Listed:
    place = folder / "images" if (folder / "images").is_dir() else folder
    names = _image_names(place)
    labels = read_annotations(annotation, names, classes)
    for what, odd in (
        (f"{annotation} names images that {place} lacks", sorted(set(labels) - set(names))),
        (f"{annotation} does not name images of {place}", sorted(set(names) - set(labels))),
    ):
        if odd:
            more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
            raise UserError(f"{what}: {', '.join(odd[:_NAMED])}{more}")
    return Listed([f"{place}{os.sep}{name}" for name in names], [labels[n] for n in names])


def _class_names(folder: Path) -> tuple[str, ...]:
    names = _folder_names(folder)
    if not names:
        archives = sorted(e.name for e in folder.iterdir() if e.name.endswith(_ARCHIVES))
        hint = f"; unpack {', '.join(archives)} first" if archives else ""
        raise UserError(f"{folder} holds no folder of images; expected one a class{hint}")
    return names


def _folder_names(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    )


def _check_announced(path: Path, training: Path, classes: tuple[str, ...]) -> None:
    """Tiny-ImageNet's ``wnids.txt`` names its classes, a line each."""
    if path.is_file():
        missing = sorted({name.strip() for name in read_lines(path)} - {*classes, ""})
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise UserError(
                f"{training} lacks classes that {path.name} names: "
                f"{', '.join(missing[:_NAMED])}{more}"
            )


def _list_classes(
    folder: Path,
    classes: tuple[str, ...] | list[str],
    numbers: dict[str, int] | None = None,
) -> Listed:
    files: list[str] = []
    labels: list[int] = []
    for position, name in enumerate(classes):
        place = folder / name
        if (place / "images").is_dir():
            place = place / "images"
        found = _image_names(place)
        if not found:
            raise UserError(f"{place} holds no image ({', '.join(_SUFFIXES)})")
        # Strings: Path objects take ImageNet's million files three times the seconds.
        files += [f"{place}{os.sep}{n}" for n in found]
        labels += [numbers[name] if numbers else position] * len(found)
    return Listed(files, labels)


def _image_names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(_SUFFIXES))
