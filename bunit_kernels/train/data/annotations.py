"""Files that say what class each image of one folder is of."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UserError, require

_NAMES = ("val_annotations.txt", "val.txt", "LOC_val_solution.csv")
_DEVKIT = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


def find_annotations(folder: Path) -> Path | None:
    """The annotation of the images in ``folder``: Tiny-ImageNet's ``val_annotations.txt``, a list
    ``val.txt``, Kaggle's ``LOC_val_solution.csv``, or the ground truth of ImageNet's devkit; in
    ``folder``, beside it, or, as Kaggle has it, three folders above that."""
    for place in (folder, folder.parent, *folder.parents[3:4]):
        for name in (*_NAMES, _DEVKIT):
            if (place / name).is_file():
                return place / name
    return None


def read_annotations(path: Path, images: list[str], classes: tuple[str, ...]) -> dict[str, int]:
    """The label of each image: its class's place in ``classes``.

    A line is an image's name, with or without its suffix, and a class: its name, or its place in
    ``classes``; separated by spaces, tabs or commas, whatever follows. The devkit's lines are
    numbers of classes alone, by image in the order of names.

    Args:
        images: names of the files, in ascending order.

    Raises:
        UserError: the file is damaged, names an unknown class, or an image twice.
    """
    if path.name == Path(_DEVKIT).name:
        return _read_devkit(path, images, classes)
    numbers = {name: label for label, name in enumerate(classes)}
    by_stem = {Path(name).stem: name for name in images}
    labels: dict[str, int] = {}
    for line, text in enumerate(read_lines(path), 1):
        fields = re.split(r"[,\s]+", text.strip())
        if fields == ["ImageId", "PredictionString"] or fields == [""]:
            continue
        if len(fields) < 2:
            raise UserError(f"{path}, line {line}: expected an image and its class, got {text!r}")
        image = by_stem.get(fields[0], fields[0])
        label = numbers.get(fields[1], _number(fields[1]))
        if not 0 <= label < len(classes):
            raise UserError(
                f"{path}, line {line}: image {fields[0]} is of class {fields[1]!r}, which is "
                f"neither a name nor a number of one of the {len(classes)} classes"
            )
        if image in labels:
            raise UserError(f"{path}, line {line}: image {fields[0]} for the second time")
        labels[image] = label
    return labels


def _read_devkit(path: Path, images: list[str], classes: tuple[str, ...]) -> dict[str, int]:
    """Its numbers are not the order of names: ``meta.mat`` has the name of each."""
    meta = path.parent / "meta.mat"
    names = _read_meta(meta)
    wanted = read_lines(path)
    if len(wanted) != len(images):
        raise UserError(f"{path} has {len(wanted)} lines, for {len(images)} images")
    numbers = {name: label for label, name in enumerate(classes)}
    labels = {}
    for line, (image, text) in enumerate(zip(images, wanted, strict=True), 1):
        name = names.get(_number(text))
        if name not in numbers:
            raise UserError(
                f"{path}, line {line}: class {text!r} is {name or 'not'} in {meta.name}, which is "
                f"none of the {len(classes)} classes in training"
            )
        labels[image] = numbers[name]
    return labels


def _read_meta(path: Path) -> dict[int, str]:
    io = require("scipy.io", "scipy", "ImageNet's devkit")
    try:
        rows = io.loadmat(path, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except Exception as error:  # a damaged file can raise nearly anything
        raise UserError(f"cannot read {path} as the devkit's list of classes: {error}") from error


def read_lines(path: Path) -> list[str]:
    """Raises ``UserError`` where there is no text to read."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _number(text: str) -> int:
    return int(text) if text.strip().isdecimal() and len(text) < 20 else -1
