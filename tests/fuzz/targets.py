"""What reads text and files from outside, as functions of bytes that let documented errors pass.

A target returns whether it took its input, so that it can be seen to take its own seeds. Whatever
else than a documented error leaves it is a bug.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import pickle
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from bunit_kernels import StackedConv2d, UnitSpec, models
from bunit_kernels.layout import ConvGeometry, StackLayout, resolve_units
from bunit_kernels.report.runs import read_runs
from bunit_kernels.report.training_plot import plot_training
from bunit_kernels.search import cli as search_cli
from bunit_kernels.search.report import RESULTS, read_results, trained_before
from bunit_kernels.search.settings import SearchSettings
from bunit_kernels.train import cli
from bunit_kernels.train.checkpoint import build_model, check_data, load_checkpoint, save_checkpoint
from bunit_kernels.train.data import ImageData, LabelledImages, load_data
from bunit_kernels.train.data.annotations import read_annotations
from bunit_kernels.train.errors import UserError
from bunit_kernels.train.feed import make_feed
from bunit_kernels.train.loop import Learner
from bunit_kernels.train.run import METRICS
from bunit_kernels.train.settings import Settings

SETTINGS = Settings(model="bunit_mlp")
ARGUMENTS = {"num_classes": 2, "in_channels": 1, "image_size": [4, 4], "hidden": 8}


@dataclass(frozen=True)
class Target:
    run: Callable[[bytes], bool]
    seeds: Callable[[], list[bytes]]


def refused(*kinds: type[Exception]) -> contextlib.suppress:
    """Documented errors of input that cannot be used."""
    return contextlib.suppress(*kinds)


@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory(prefix="bunit-fuzz-") as path:
        yield Path(path)


# --- units ---------------------------------------------------------------------------------------


def units(data: bytes) -> bool:
    """Specs one a line; the first two bytes are the layer's kernel size, stride and padding."""
    text = data[2:].decode("utf-8", "replace")
    head = [*data[:2], 0, 0]
    with refused(ValueError, TypeError):
        specs = resolve_units(text.split("\n"))
        for spec in specs:
            assert UnitSpec(str(spec)) == spec
        padding = "same" if head[1] < 128 else head[1] - 128
        layout = StackLayout(specs, head[0] % 8)
        geometry = ConvGeometry(layout, 1 + head[0] // 64, padding, 1 + head[1] % 4)
        geometry.check_size(9, 7)
        return True
    return False


def unit_seeds() -> list[bytes]:
    texts = ("2-4-2", "1-2-1\n3-2-1:k5\n2-1-2", "16-16", "2-4-2:k3\n 1-1-1 ", "2-0-2", "2-4:5")
    texts += ("4-8-8-4:k1,3,1:g1,8,1\n2-4-2-2:g2", "4-8:k3:g3")
    return [bytes((3, 0)) + text.encode() for text in texts]


# --- checkpoints ---------------------------------------------------------------------------------


def small_data(shape: tuple[int, int, int] = (1, 4, 4), classes: int = 2) -> ImageData:
    def part(count):
        labels = torch.arange(count) % classes
        return LabelledImages(
            torch.arange(count).view(-1, 1, 1, 1).expand(-1, *shape).byte(), labels
        )

    return ImageData("small", part(4), part(2), tuple(map(str, range(classes))))


def new_learner() -> Learner:
    model = models.create_model("bunit_mlp", **ARGUMENTS)
    return Learner("bunit_mlp", model, SETTINGS, torch.device("cpu"))


def checkpoint_content() -> dict:
    return {
        "model": "bunit_mlp",
        "arguments": copy.deepcopy(ARGUMENTS),
        "state": dict(new_learner().model.state_dict()),
        "average": None,
        "averaged": 0,
        "optimizer": new_learner().optimizer.state_dict(),
        "scaler": {},
        "history": [],
        "batches": 0,
        "totals": torch.zeros(3),
        "versions": {"processes": "1"},
        "settings": SETTINGS.to_dict(),
        "shape": [1, 4, 4],
        "classes": ["0", "1"],
        "mean": [0.5],
        "deviation": [0.25],
    }


def use_checkpoint(path: Path) -> bool:
    """As ``--eval-only`` and ``--resume`` do, up to the normalised images."""
    with refused(UserError):
        content = load_checkpoint(path)
        build_model(content, path)
        data = small_data()
        check_data(content, path, data)
        make_feed(data, SETTINGS, torch.device("cpu"), (content["mean"], content["deviation"]))
        new_learner().restore(content, path)
        return True
    return False


def checkpoint_file(data: bytes) -> bool:
    """The bytes of the file itself."""
    with folder() as where:
        path = where / "last.pt"
        path.write_bytes(data)
        return use_checkpoint(path)


def checkpoint_file_seeds() -> list[bytes]:
    with folder() as where:
        save_checkpoint(where / "new.pt", checkpoint_content())
        torch.save({"format": 1}, where / "old.pt", _use_new_zipfile_serialization=False)
        return [path.read_bytes() for path in sorted(where.iterdir())]


#: What stands where something else should; none so large that building it takes long.
STRANGE = (
    None, True, 0, -1, 1, 3, 8, 1 << 70, 0.5, float("nan"), float("inf"), "", "x", "bunit_mlp", [],
    [1], [1, 4, 4], [[]], {}, {"x": 1}, {1: 2}, torch.zeros(()), torch.zeros(3), (1, "2"),
)  # fmt: skip


def checkpoint_values(data: bytes) -> bool:
    """Well-formed files with other values: each pair of bytes puts one of ``STRANGE`` somewhere."""
    content = checkpoint_content()
    for where, what in zip(data[::2], data[1::2], strict=False):
        target, key = content, sorted(content)[where % len(content)]
        inner = content[key]
        if where >= 64 and isinstance(inner, dict) and inner:
            target, key = inner, sorted(inner, key=str)[where % len(inner)]
        elif where >= 64 and isinstance(inner, list) and inner:
            target, key = inner, where % len(inner)
        target[key] = STRANGE[what % len(STRANGE)]
    with folder() as where:
        path = where / "last.pt"
        save_checkpoint(path, content)
        return use_checkpoint(path)


def weights(data: bytes) -> bool:
    """A state dict whose names are edited, a line an edit: ``old=new``, ``old=`` (left out)."""
    model = torch.nn.Sequential(StackedConv2d(["2-3-1", "1-2-1"]), torch.nn.Conv2d(2, 2, 1))
    state = models.authors_state_dict(model) if data[:1] < b"\x80" else model.state_dict()
    for line in data[1:].decode("utf-8", "replace").split("\n"):
        old, _, new = line.partition("=")
        renamed = {name.replace(old, new) if old else name: name for name in state}
        state = {name: state[source] for name, source in renamed.items() if name}
    before = copy.deepcopy(model.state_dict())
    with refused(ValueError, TypeError):
        models.load_weights(model, state)
        return True
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    return False


# --- configuration -------------------------------------------------------------------------------


def command_line(data: bytes) -> bool:
    """Arguments of ``python -m bunit_kernels.train``, one a line."""
    return run_command(data.decode("utf-8", "replace").split("\n"))


def run_command(arguments: list[str]) -> bool:
    """The command line up to where a run would begin, with settings of the right types."""
    begun = []

    def begin(settings, *_, **__):
        assert isinstance(settings.model_arg, dict) and isinstance(settings.epochs, int)
        json.dumps(settings.to_dict(), default=str)
        begun.append(settings)
        return mock.MagicMock()

    output = io.StringIO()
    with (
        mock.patch.object(cli, "Run", begin),
        mock.patch.object(cli, "evaluate", begin),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            code = cli.main(arguments)
        except SystemExit as end:  # argparse's
            code = end.code
    assert code in (0, 2), (code, output.getvalue())
    return bool(begun)


def command_line_seeds() -> list[bytes]:
    lines = (
        "--model\nbunit_resnet20\n--epochs\n3\n--lr=0.1\n--no-dense",
        "--model-arg\nhidden=16\n--model-arg\nunits={'layer2': '2-4-m'}\n--model\nbunit_mlp",
        "--data\nsynthetic\n--image-size\n8\n--amp\nfloat16\n--backend\ncpp\n--nesterov",
        "--list-models",
        "--eval-only\n--checkpoint\n/nowhere",
    )
    return [line.encode() for line in lines]


def run_settings(data: bytes) -> bool:
    """``metrics.json`` of a run that is resumed."""
    with folder() as where:
        (where / METRICS).write_bytes(data)
        return run_command(["--resume", str(where)])


def run_settings_seeds() -> list[bytes]:
    content = {"settings": SETTINGS.to_dict()}
    return [json.dumps(content).encode(), b'{"settings": {"epochs": 2, "unknown": []}}', b"[]"]


# --- what other commands read of a run or a search -----------------------------------------------


def reported_run(data: bytes) -> bool:
    """``metrics.json`` of a run that is to be in a report."""
    with folder() as where, refused(UserError):
        (where / METRICS).write_bytes(data)
        (run,) = read_runs([where])
        repr((run.comparison, run.data_name, run.data_key))
        plot_training(run)
        return True
    return False


def reported_run_seeds() -> list[bytes]:
    epoch = {"epoch": 1, "train_loss": 2, "train_accuracy": 0.1, "test_loss": 2.5}
    network = {"parameters": 9, "flops": 90, "accuracy": 0.2, "best_accuracy": 0.2}
    network["history"] = [epoch | {"test_accuracy": 0.2}]
    timed = network | {"training_step_seconds": 0.1, "inference_seconds": 0.1}
    data = {"name": "small", "shape": [1, 4, 4], "classes": ["0", "1"]}
    content = {
        "settings": SETTINGS.to_dict(),
        "versions": dict.fromkeys(("bunit_kernels", "torch", "device", "platform"), "1"),
        "backend": "auto",
        "data": data | {"training_images": 4, "test_images": 2},
    }
    seeds = [{"a": timed, "b": timed}, {"a": network}, {"a": network | {"history": []}}]
    seeds.append({name: network | {"inference_seconds": 0.1} for name in ("a", "b")})
    return [json.dumps(content | {"networks": networks}).encode() for networks in seeds]


def resumed_search(data: bytes) -> bool:
    """``search.json`` of a search that is resumed, up to where it would begin."""
    begun = []

    def begin(settings, *_, **__):
        json.dumps(settings.to_dict())
        with refused(UserError):
            trained_before(read_results(where), where)
            begun.append(settings)
        return mock.MagicMock()

    output = io.StringIO()
    with folder() as where, mock.patch.object(search_cli, "Search", begin):
        (where / RESULTS).write_bytes(data)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                code = search_cli.main(["--resume", str(where)])
            except SystemExit as end:  # argparse's
                code = end.code
    assert code in (0, 2), (code, output.getvalue())
    return bool(begun)


def resumed_search_seeds() -> list[bytes]:
    entry = {"units": {"layer2": "2-4-m"}, "accuracy": 0.5, "failure": None, "history": []}
    content = {"settings": SearchSettings().to_dict(), "data": {}, "candidates": [entry]}
    return [json.dumps(content | changed).encode() for changed in ({}, {"candidates": []})]


# --- data ----------------------------------------------------------------------------------------


def use_data(where: Path, image_size: int | None = None) -> bool:
    """Reads a data set, and what a run asks of one."""
    with refused(UserError):
        data = load_data(str(where), image_size, workers=1)
        data.describe()
        make_feed(data.limited(3).resized(5), SETTINGS, torch.device("cpu"))
        return True
    return False


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


IDX_FILES = {
    "train-images-idx3-ubyte": np.arange(72).reshape(6, 4, 3),
    "train-labels-idx1-ubyte": np.arange(6) % 2,
    "t10k-images-idx3-ubyte": np.arange(24).reshape(2, 4, 3),
    "t10k-labels-idx1-ubyte": np.arange(2),
}


def idx(data: bytes) -> bool:
    """One of the four files, by the first byte; from 128 on it is a ``.gz``."""
    chosen = data[0] if data else 0
    with folder() as where:
        for i, (name, array) in enumerate(IDX_FILES.items()):
            if i == chosen % 4:
                suffix = ".gz" if chosen >= 128 else ""
                (where / f"{name}{suffix}").write_bytes(data[1:])
            else:
                (where / name).write_bytes(idx_bytes(array))
        return use_data(where)


def idx_seeds() -> list[bytes]:
    files = [idx_bytes(array) for array in IDX_FILES.values()]
    plain = [bytes((i,)) + file for i, file in enumerate(files)]
    return plain + [bytes((128 + i,)) + gzip.compress(file) for i, file in enumerate(files)]


def npz(data: bytes) -> bool:
    with folder() as where:
        path = where / "mnist.npz"
        path.write_bytes(data)
        return use_data(path)


def npz_seeds() -> list[bytes]:
    seeds = []
    for save, colours in ((np.savez, ()), (np.savez_compressed, (3,))):
        file = io.BytesIO()
        images = {part: np.zeros((4, 3, 5, *colours), np.uint8) for part in ("x_train", "x_test")}
        save(file, **images, y_train=np.arange(4) % 2, y_test=np.arange(4) % 2)
        seeds.append(file.getvalue())
    return seeds


def annotations(data: bytes) -> bool:
    """What class each image of a folder is of; the first byte is the list's form."""
    name = ("val_annotations.txt", "val.txt", "LOC_val_solution.csv")[data[0] % 3 if data else 0]
    with folder() as where:
        path = where / name
        path.write_bytes(data[1:])
        with refused(UserError):
            read_annotations(path, ["0.png", "1.png"], ("cat", "dog"))
            return True
    return False


def annotation_seeds() -> list[bytes]:
    return [
        b"\x000.png cat 1 2\n1.png\tdog",
        b"\x010 0\n1 1",
        b"\x02ImageId,PredictionString\n0,cat 3",
    ]


CIFAR_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


def cifar(data: bytes) -> bool:
    """One of the seven pickles, by the first byte."""
    chosen = data[0] % len(CIFAR_FILES) if data else 0
    with folder() as where:
        for i, name in enumerate(CIFAR_FILES):
            (where / name).write_bytes(data[1:] if i == chosen else cifar_bytes(name))
        return use_data(where)


def cifar_bytes(name: str, protocol: int = 2) -> bytes:
    if name == "batches.meta":
        return pickle.dumps({b"label_names": [b"name"] * 10}, protocol)
    content = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 9]}
    return pickle.dumps(content, protocol)


def cifar_seeds() -> list[bytes]:
    return [
        bytes((i,)) + cifar_bytes(CIFAR_FILES[i], protocol)
        for i in (0, 5, 6)
        for protocol in (0, 2, 4)
    ]


IMAGE_FORMATS = ("png", "bmp", "gif", "jpg", "pgm", "ppm", "tif", "webp")


def image_folder(data: bytes) -> bool:
    """One picture among others; the first byte is its format and whether all are resized."""
    chosen = data[0] if data else 0
    suffix = IMAGE_FORMATS[chosen % len(IMAGE_FORMATS)]
    with folder() as where:
        for name in ("a", "b"):
            (where / name).mkdir()
            for i in range(2):
                Image.new("L", (4, 3), 40 * i).save(where / name / f"{i}.png")
        (where / "a" / f"2.{suffix}").write_bytes(data[1:])
        return use_data(where, 6 if chosen >= 128 else None)


def image_folder_seeds() -> list[bytes]:
    seeds = []
    for i, suffix in enumerate(IMAGE_FORMATS):
        kind = {"jpg": "jpeg", "tif": "tiff", "pgm": "ppm"}.get(suffix, suffix)
        for mode, first in (("L", i), ("RGB", i + 128)):
            file = io.BytesIO()
            Image.new(mode, (4, 3), 90 if mode == "L" else (9, 90, 200)).save(file, kind)
            seeds.append(bytes((first,)) + file.getvalue())
    file = io.BytesIO()
    Image.new("I;16", (4, 3), 900).save(file, "png")
    return [*seeds, b"\x00" + file.getvalue()]


TARGETS = {
    "units": Target(units, unit_seeds),
    "checkpoint_file": Target(checkpoint_file, checkpoint_file_seeds),
    "checkpoint_values": Target(
        checkpoint_values, lambda: [b"", bytes((2, 9)), bytes((64, 3)), bytes((70, 5, 99, 20))]
    ),
    "weights": Target(
        weights, lambda: [b"\x00", b"\xff", b"\x00layer=level", b"\xffweights=w\nx=", b"\x000.=1."]
    ),
    "command_line": Target(command_line, command_line_seeds),
    "run_settings": Target(run_settings, run_settings_seeds),
    "reported_run": Target(reported_run, reported_run_seeds),
    "resumed_search": Target(resumed_search, resumed_search_seeds),
    "idx": Target(idx, idx_seeds),
    "npz": Target(npz, npz_seeds),
    "annotations": Target(annotations, annotation_seeds),
    "cifar": Target(cifar, cifar_seeds),
    "image_folder": Target(image_folder, image_folder_seeds),
}
