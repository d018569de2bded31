"""Loaders of every kind of data, on small files made here, whole and damaged."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bunit_kernels.train.augment import augment, random_crop, random_flip, resolve
from bunit_kernels.train.data import ImageData, LabelledImages, load_data
from bunit_kernels.train.data.images import channel_statistics, split_by_class
from bunit_kernels.train.errors import UserError

rng = np.random.default_rng(0)


def noise(*shape) -> np.ndarray:
    return rng.integers(0, 256, shape, np.uint8)


# --- what needs no file ---------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    data = load_data("digits")
    assert data.shape == (1, 8, 8) and data.classes == tuple("0123456789")
    assert len(data.train) + len(data.test) == 1797
    assert 0.19 < len(data.test) / 1797 < 0.21
    assert data.train.images.dtype == torch.uint8 and data.train.images.max() == 255
    again = load_data("digits")
    assert torch.equal(data.test.images, again.test.images)
    # No image is in both parts by index; a few digits do look alike.
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images).sum().item() * 255 / 16
    total = sum(part.images.long().sum().item() for part in (data.train, data.test))
    assert total == pytest.approx(images, rel=1e-3)


def test_synthetic_is_the_same_every_time():
    a, b = load_data("synthetic"), load_data("synthetic")
    assert a.shape == (3, 32, 32) and torch.equal(a.train.images, b.train.images)


@pytest.mark.parametrize(
    "source, module, package",
    [("digits", "sklearn.datasets", "scikit-learn"), ("folder", "PIL.Image", "Pillow")],
)
def test_missing_packages_are_named(source, module, package, tmp_path, monkeypatch):
    if source == "folder":
        source = str(image_folder(tmp_path))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs {package}.*pip install 'bunit-kernels\[train\]'"):
        load_data(source)


def test_unknown_source():
    with pytest.raises(UserError, match="unknown data 'nowhere': expected digits, synthetic or"):
        load_data("nowhere")


# --- idx files and npz ----------------------------------------------------------------------------


def write_idx(path, array, compress=False):
    header = struct.pack(">I", 0x800 + array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


@pytest.fixture
def mnist(tmp_path):
    """A folder with four idx files, one of them compressed, and their arrays."""
    arrays = {
        "train-images-idx3-ubyte.gz": noise(30, 9, 7),
        "train-labels-idx1-ubyte": np.arange(30) % 3,
        "t10k-images.idx3-ubyte": noise(6, 9, 7),
        "t10k-labels.idx1-ubyte": np.arange(6) % 3,
    }
    for name, array in arrays.items():
        write_idx(tmp_path / name, array, name.endswith(".gz"))
    return tmp_path, list(arrays.values())


def test_idx_folder_and_file(mnist):
    folder, (x, y, x_test, _) = mnist
    for source in (folder, folder / "train-labels-idx1-ubyte"):
        data = load_data(str(source))
        assert data.shape == (1, 9, 7) and data.classes == ("0", "1", "2")
        assert np.array_equal(data.train.images[:, 0].numpy(), x)
        assert np.array_equal(data.train.labels.numpy(), y)
        assert np.array_equal(data.test.images[:, 0].numpy(), x_test)
    (folder / "MNIST").mkdir()
    (folder / "MNIST" / "raw").mkdir()
    for file in list(folder.glob("*ubyte*")):
        file.rename(folder / "MNIST" / "raw" / file.name)
    assert len(load_data(str(folder)).test) == 6


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "t10k-labels.idx1-ubyte").unlink(), r"lacks MNIST's file \*t10k\*labels"),
        (lambda f: _cut(f / "t10k-images.idx3-ubyte", 50), "t10k-images.* is cut short or damaged"),
        (lambda f: _cut(f / "t10k-images.idx3-ubyte", 10), "t10k-images.* is no idx file"),
        (lambda f: _cut(f / "train-images-idx3-ubyte.gz", 900), "cannot read .*train-images"),
        (lambda f: write_idx(f / "train-labels-idx1-ubyte", noise(3, 3)), "is no idx file of 1 d"),
        (lambda f: write_idx(f / "train-labels-idx1-ubyte", noise(4)), "30 training images, 4 la"),
        (lambda f: write_idx(f / "t10k-images.idx3-ubyte", noise(6, 8, 8)), "1x9x7, test .*1x8x8"),
    ],
)  # fmt: skip
def test_damaged_idx(mnist, damage, message):
    folder, _ = mnist
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_data(str(folder))


def _cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def mnist_npz(path, **changes):
    arrays = {
        "x_train": noise(20, 8, 8), "y_train": np.arange(20) % 4,
        "x_test": noise(8, 8, 8), "y_test": np.arange(8) % 4,
    } | changes  # fmt: skip
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def test_npz_grey_and_colour(tmp_path):
    arrays = mnist_npz(tmp_path / "mnist.npz")
    for source in (tmp_path, tmp_path / "mnist.npz"):
        data = load_data(str(source))
        assert np.array_equal(data.test.images[:, 0].numpy(), arrays["x_test"])
    arrays = mnist_npz(
        tmp_path / "colour.npz", x_train=noise(20, 6, 5, 3), x_test=noise(8, 6, 5, 3)
    )
    data = load_data(str(tmp_path / "colour.npz"))
    assert data.shape == (3, 6, 5)
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), arrays["x_train"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y_test": None}, "lacks y_test; it holds x_train, y_train, x_test"),
        ({"x_train": noise(20, 8, 8).astype(float)}, "x_train must be uint8 .* got float64"),
        ({"x_test": noise(8, 64)}, r"x_test must be uint8 .* got uint8 \[8, 64\]"),
        ({"y_train": np.zeros(20)}, "y_train must be integers"),
        ({"y_train": np.zeros(19, int)}, "20 training images, 19 labels"),
        ({"y_train": np.full(20, -1)}, "training labels from -1"),
        ({"x_test": noise(0, 8, 8), "y_test": np.zeros(0, int)}, "holds no test image"),
        ({"y_test": np.array([{}] * 8)}, "cannot read .*pickle"),
    ],
)
def test_damaged_npz(tmp_path, changes, message):
    path = tmp_path / "mnist.npz"
    mnist_npz(path, **changes)
    with pytest.raises(UserError, match=message):
        load_data(str(path))


def test_npz_cut_short_or_something_else(tmp_path):
    path = tmp_path / "mnist.npz"
    mnist_npz(path)
    _cut(path, 700)
    with pytest.raises(UserError, match="cannot read .*mnist.npz"):
        load_data(str(path))
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(UserError, match="neither an .npz file nor one of MNIST's"):
        load_data(str(tmp_path / "notes.txt"))


# --- CIFAR-10 -------------------------------------------------------------------------------------


def write_cifar(folder, protocol=2):
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images[name] = noise(4, 3072)
        batch = {b"data": images[name], b"labels": [0, 3, 9, 1], b"batch_label": b"some batch"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    return images


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar(tmp_path, protocol):
    folder = tmp_path / "cifar-10-batches-py"
    images = write_cifar(folder, protocol)
    names = [f"class{i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol))
    for source in (tmp_path, folder):
        data = load_data(str(source))
        assert data.shape == (3, 32, 32) and data.classes == tuple(names)
        assert len(data.train) == 20 and len(data.test) == 4
        second = images["data_batch_2"].reshape(4, 3, 32, 32)
        assert np.array_equal(data.train.images[4:8].numpy(), second)
        assert data.test.labels.tolist() == [0, 3, 9, 1]


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_cifar_pickles_run_nothing(tmp_path):
    write_cifar(tmp_path)
    marker = tmp_path / "made-by-the-pickle"
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Malicious(marker)}))
    with pytest.raises(UserError, match=r"test_batch as a CIFAR-10 batch: it asks for \w+\.mkdir"):
        load_data(str(tmp_path))
    assert not marker.exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "cannot read .*test_batch"),
        (pickle.dumps([1, 2]), "expected a pickled dict, got list"),
        (pickle.dumps({b"data": np.zeros((2, 99), np.uint8)}), r"uint8 array \[N, 3072\]"),
        (pickle.dumps({b"data": noise(2, 3072), b"labels": "ab"}), "'labels' to be a list of ints"),
        (pickle.dumps({b"data": noise(2, 3072), b"labels": [1]}), "2 test images, 1 labels"),
        (pickle.dumps({b"data": noise(1, 3072), b"labels": [10]}), "labels from 10 to 10"),
    ],
)
def test_damaged_cifar(tmp_path, content, message):
    write_cifar(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_data(str(tmp_path))


def test_cifar_cut_short_and_incomplete(tmp_path):
    write_cifar(tmp_path)
    _cut(tmp_path / "data_batch_3", 2000)
    with pytest.raises(UserError, match="cannot read .*data_batch_3"):
        load_data(str(tmp_path))
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(UserError, match="lacks CIFAR-10's data_batch_4"):
        load_data(str(tmp_path))


# --- image folders --------------------------------------------------------------------------------


def image_folder(root, mode="RGB", count=5, suffix=".png", parts=("",), size=(8, 6)):
    """``count`` images a class, their first byte telling class and number."""
    for part in parts:
        for label, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = noise(size[1], size[0], 3) if mode == "RGB" else noise(size[1], size[0])
                image[0, 0] = 100 * label + i
                Image.fromarray(image).save(folder / f"{i}{suffix}")
    return root


def test_folder_with_a_test_part(tmp_path):
    image_folder(tmp_path, parts=("train", "val"))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("skipped")
    data = load_data(str(tmp_path), workers=2)
    assert data.shape == (3, 6, 8) and data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0] * 5 + [1] * 5
    marks = data.train.images[:, 0, 0, 0].tolist()
    assert marks == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]


def test_folder_that_is_split_here(tmp_path):
    data = load_data(str(image_folder(tmp_path)))
    again = load_data(str(tmp_path))
    assert (len(data.train), len(data.test)) == (8, 2)
    assert data.test.labels.tolist() == [0, 1]
    assert torch.equal(data.test.images, again.test.images)
    marks = torch.cat([data.train.images, data.test.images])[:, 0, 0, 0]
    assert sorted(marks.tolist()) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]


def test_folder_of_grey_images_stays_grey_unless_one_has_colour(tmp_path):
    image_folder(tmp_path, mode="L")
    assert load_data(str(tmp_path)).shape == (1, 6, 8)
    Image.fromarray(noise(6, 8, 3)).save(tmp_path / "cat" / "colour.png")
    data = load_data(str(tmp_path))
    assert data.shape == (3, 6, 8)
    grey = data.train.images[data.train.labels == 1][0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


def test_sixteen_bit_images_keep_their_range(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(np.full((4, 4), 0x8040, np.uint16)).save(tmp_path / name / f"{i}.png")
    assert (load_data(str(tmp_path)).train.images == 0x80).all()


def test_folder_of_mixed_sizes_needs_one(tmp_path):
    image_folder(tmp_path)
    Image.fromarray(noise(20, 10, 3)).save(tmp_path / "dog" / "tall.png")
    with pytest.raises(
        UserError, match=r"differ in size: .*6x8 pixels, .*tall.png 20x10; --image-"
    ):
        load_data(str(tmp_path))
    assert load_data(str(tmp_path), image_size=7).shape == (3, 7, 7)


def test_resized_images_keep_their_middle(tmp_path):
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(wide).save(tmp_path / name / f"{i}.png")
    assert (load_data(str(tmp_path), image_size=10).train.images == 200).all()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: _cut(f / "dog" / "3.png", 60), r"cannot (read|decode) image .*dog.3\.png"),
        (lambda f: _cut(f / "dog" / "3.png", 0), r"cannot read image .*dog.3\.png"),
        (lambda f: (f / "cat" / "x.jpg").write_text("no image"), r"cannot read image .*x\.jpg"),
        (lambda f: (f / "ant").mkdir(), "ant holds no image"),
        (lambda f: (f / "train").mkdir(), "has a folder 'train' but none of test, val"),
    ],
)
def test_damaged_folder(tmp_path, damage, message):
    damage(image_folder(tmp_path))
    with pytest.raises(UserError, match=message):
        load_data(str(tmp_path))


def test_jpeg_cut_in_its_middle_is_named(tmp_path):
    image_folder(tmp_path, suffix=".jpg", size=(64, 64))
    path = tmp_path / "cat" / "2.jpg"
    _cut(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"cannot decode image .*cat.2\.jpg"):
        load_data(str(tmp_path))


def test_empty_folders(tmp_path):
    with pytest.raises(UserError, match="holds no folder of images"):
        load_data(str(tmp_path))
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="train holds no folder of images"):
        load_data(str(tmp_path))


def test_classes_that_training_lacks(tmp_path):
    image_folder(tmp_path, parts=("train", "test"))
    (tmp_path / "test" / "emu").mkdir()
    with pytest.raises(UserError, match="has classes that .*train lacks: emu"):
        load_data(str(tmp_path))


def test_more_pictures_than_memory(tmp_path):
    image_folder(tmp_path, count=2)
    with pytest.raises(UserError, match="4 images of 3x5000000x5000000 take .* GiB"):
        load_data(str(tmp_path), image_size=5_000_000)


# --- what is done with images ---------------------------------------------------------------------


def toy(count=12, size=6) -> ImageData:
    images = torch.from_numpy(noise(count, 3, size, size))
    part = LabelledImages(images, torch.arange(count) % 2)
    return ImageData("toy", part, part[:4], ("a", "b"))


def test_resized_and_limited():
    data = toy()
    assert data.resized(6) is data and data.limited(None) is data
    small = data.resized(3)
    assert small.shape == (3, 3, 3) and small.train.images.dtype == torch.uint8
    mean = data.train.images.float().mean()
    assert small.train.images.float().mean() == pytest.approx(mean.item(), abs=4)
    few = data.limited(5)
    assert (len(few.train), len(few.test)) == (5, 4)
    assert torch.equal(few.train.images, data.limited(5).train.images)
    assert set(few.train.labels.tolist()) == {0, 1}


def test_channel_statistics():
    images = torch.from_numpy(noise(40, 2, 5, 5))
    images[:, 1] = 51
    mean, deviation = channel_statistics(images)
    first = images[:, 0].double() / 255
    assert mean == pytest.approx([first.mean().item(), 0.2])
    assert deviation == pytest.approx([first.std(correction=0).item(), 1.0])


def test_split_by_class_keeps_shares():
    labels = torch.tensor([0] * 10 + [1] * 5 + [2])
    train, test = split_by_class(labels, 0.2, seed=0)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(16))
    assert labels[test].tolist() == [0, 0, 1]  # a class of one image stays in training
    assert not torch.equal(test, split_by_class(labels, 0.2, seed=1)[1])


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crop_is_a_shift_of_the_padded_image():
    images = torch.arange(1, 1 + 20 * 2 * 5 * 4).reshape(20, 2, 5, 4)
    cropped = random_crop(images, 2, generator())
    assert cropped.shape == images.shape and cropped.is_contiguous()
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    offsets = set()
    for i in range(20):
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(cropped[i], padded[i, :, y : y + 5, x : x + 4])
        ]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) > 8
    assert torch.equal(random_crop(images, 0, generator()), images)


def test_flip_mirrors_about_half():
    images = torch.from_numpy(noise(200, 1, 3, 4))
    flipped = random_flip(images, generator())
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all() and 60 < mirrored.sum() < 140


def test_augmentations_by_name():
    assert (resolve("auto", 3), resolve("auto", 1), resolve("none", 3)) == (
        "crop-flip", "none", "none",
    )  # fmt: skip
    images = torch.from_numpy(noise(10, 3, 8, 8))
    assert augment("none", images, generator()) is images
    for name in ("shift", "crop-flip"):
        a, b, c = (augment(name, images, generator(seed)) for seed in (0, 0, 1))
        assert a.dtype == torch.uint8 and torch.equal(a, b) and not torch.equal(a, c)
