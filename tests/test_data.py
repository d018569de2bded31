"""Loaders of every kind of data, on small files made here, whole and damaged."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch
from image_files import cut, image_folder, noise

from bunit_kernels.train.data import ImageData, LabelledImages, load_data
from bunit_kernels.train.data.images import channel_statistics, split_by_class
from bunit_kernels.train.errors import UserError

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
    with pytest.raises(UserError, match=rf"needs {package}.*pip install {package}"):
        load_data(source)


def test_unknown_source():
    with pytest.raises(UserError, match="unknown data 'nowhere': expected digits, synthetic or"):
        load_data("nowhere")


# --- idx files and npz ----------------------------------------------------------------------------


def write_idx(path, array, compress=False):
    header = struct.pack(">I", 0x800 + array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


def write_header(path, sizes):
    path.write_bytes(struct.pack(f">{1 + len(sizes)}I", 0x800 + len(sizes), *sizes))


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
        (lambda f: cut(f / "t10k-images.idx3-ubyte", 50), "t10k-images.* is cut short or damaged"),
        (lambda f: cut(f / "t10k-images.idx3-ubyte", 10), "t10k-images.* is no idx file"),
        (lambda f: cut(f / "train-images-idx3-ubyte.gz", 900), "cannot read .*train-images"),
        (lambda f: write_idx(f / "train-labels-idx1-ubyte", noise(3, 3)), "is no idx file of 1 d"),
        (lambda f: write_idx(f / "train-labels-idx1-ubyte", noise(4)), "30 training images, 4 la"),
        # 2^64 values: as many as none in 64 bits.
        (lambda f: write_header(f / "t10k-images.idx3-ubyte", (1 << 31, 1 << 31, 4)), "cut short"),
        (lambda f: write_idx(f / "t10k-images.idx3-ubyte", noise(6, 8, 8)), "1x9x7, test .*1x8x8"),
    ],
)  # fmt: skip
def test_damaged_idx(mnist, damage, message):
    folder, _ = mnist
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_data(str(folder))


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
        ({"y_train": np.full(20, 10**12)}, "a label is 1000000000000, expected at most 65535"),
        ({"x_train": noise(20, 0, 8), "x_test": noise(8, 0, 8)}, "1x0x8, without a pixel"),
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
    content = path.read_bytes()
    cut(path, 700)
    with pytest.raises(UserError, match="cannot read .*mnist.npz"):
        load_data(str(path))
    entry = content.index(b"PK\x01\x02")
    for wrong in (
        content[: entry + 10] + b"\x63" + content[entry + 11 :],  # a compression that none knows
        content[: entry + 8] + b"\x01" + content[entry + 9 :],  # encrypted
        b"\x93NUMPY\x01\x00" + content,
    ):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match="cannot read .*mnist.npz"):
            load_data(str(path))
    mnist_npz(path, x_test=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_test.npy", "no array")
    with pytest.raises(UserError, match="x_test must be uint8 .* got .S8"):
        load_data(str(path))
    np.save(path.with_suffix(".npy"), noise(3))
    path.with_suffix(".npy").rename(path)
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


def test_cifar_as_python_2_wrote_it(tmp_path):
    """As the data sets' site serves it: strings of bytes, memo from 1 on, numpy 1."""
    write_cifar(tmp_path)
    images = noise(4, 3072)
    (tmp_path / "test_batch").write_bytes(
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x04M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01"
        b"\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<I", images.size)
        + images.tobytes()
        + b"tbU\x06labels](K\x00K\x03K\x09K\x01eu."
    )
    test = load_data(str(tmp_path)).test
    assert np.array_equal(test.images.numpy(), images.reshape(4, 3, 32, 32))
    assert test.labels.tolist() == [0, 3, 9, 1]


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
        # A memo of a thousand million entries; 4 GB of bytes that are not there; arrays of another
        # type, of objects (numpy's own crash), or made by calling the class.
        (b"\x80\x02}r\xa2\x94(C.", "the 1126732962th to be remembered"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 32) + b"abc.", "test_batch.*4294967296"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L3000000000L\ntVO\ntR.",
            "expected a pickled dict",
        ),
        (
            pickle.dumps({b"data": np.zeros((1, 3072), np.int16)}, 2),
            "array of 'i2', expected bytes",
        ),
        (
            pickle.dumps({b"data": np.array([None])}, 2).replace(b"K\x01\x85", b"J\0\0\0\x10\x85"),
            "array of 'O8', expected bytes",
        ),
        (b"cnumpy\nndarray\n(L3000000000L\ntR.", "cannot read .*test_batch"),
        (b"", "cannot read .*test_batch"),
        (pickle.dumps([1, 2]), "expected a pickled dict, got list"),
        (pickle.dumps({b"data": np.zeros((2, 99), np.uint8)}), r"uint8 array \[N, 3072\]"),
        (pickle.dumps({b"data": noise(2, 3072), b"labels": "ab"}), "'labels' to be a list of ints"),
        (pickle.dumps({b"data": noise(2, 3072), b"labels": [1]}), "2 test images, 1 labels"),
        (pickle.dumps({b"data": noise(1, 3072), b"labels": [10]}), "labels from 10 to 10"),
        (pickle.dumps({b"data": noise(1, 3072), b"labels": [1 << 70]}), "to be a list of ints"),
        (pickle.dumps({b"data": noise(0, 3072), b"labels": []}), "holds no test image"),
        (pickle.dumps({"\udcff": noise(1, 3072)}), r"uint8 array \[N, 3072\]"),
    ],
)
def test_damaged_cifar(tmp_path, content, message):
    write_cifar(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_data(str(tmp_path))


def test_class_names_of_cifar_may_be_no_text(tmp_path):
    write_cifar(tmp_path)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"caf\xe9"] * 10}))
    assert load_data(str(tmp_path)).classes[0] == "caf\ufffd"


def test_cifar_cut_short_and_incomplete(tmp_path):
    write_cifar(tmp_path)
    cut(tmp_path / "data_batch_3", 2000)
    with pytest.raises(UserError, match="cannot read .*data_batch_3"):
        load_data(str(tmp_path))
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(UserError, match="lacks CIFAR-10's data_batch_4"):
        load_data(str(tmp_path))


def write_cifar100(folder):
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for name, count in (("train", 6), ("test", 3)):
        images[name] = noise(count, 3072)
        batch = {
            b"data": images[name], b"fine_labels": [7, 99, 0] * (count // 3),
            b"coarse_labels": [1] * count, b"batch_label": b"some batch",
        }  # fmt: skip
        (folder / name).write_bytes(pickle.dumps(batch, 2))
    names = [f"class{i}".encode() for i in range(100)]
    meta = {b"fine_label_names": names, b"coarse_label_names": [b"super"] * 20}
    (folder / "meta").write_bytes(pickle.dumps(meta, 2))
    return images


def test_cifar100(tmp_path):
    folder = tmp_path / "cifar-100-python"
    images = write_cifar100(folder)
    for source in (tmp_path, folder):
        data = load_data(str(source))
        assert data.shape == (3, 32, 32) and data.classes == tuple(f"class{i}" for i in range(100))
        assert data.train.labels.tolist() == [7, 99, 0] * 2
        assert np.array_equal(data.test.images.flatten(1).numpy(), images["test"])


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "test").unlink(), "lacks CIFAR-100's test$"),
        (lambda f: (f / "train").unlink(), "lacks CIFAR-100's train$"),
        (lambda f: cut(f / "train", 9000), "cannot read .*train as a CIFAR-100 batch"),
        (lambda f: (f / "test").write_bytes(pickle.dumps({b"data": noise(1, 3072)})), "'fine_labe"),
    ],
)
def test_damaged_cifar100(tmp_path, damage, message):
    write_cifar100(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_data(str(tmp_path))


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


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y_test": np.arange(8) % 3}, "has no test image of 1 of its 4 classes: 3$"),
        ({"y_train": np.arange(20) % 2}, "has no training image of 2 of its 4 classes: 2, 3$"),
        ({"y_train": np.arange(20)}, "of 16 of its 20 classes: 4, 5, .*, 13 and 6 more$"),
    ],
)
def test_class_in_one_part_alone(tmp_path, changes, message):
    mnist_npz(tmp_path / "mnist.npz", **changes)
    with pytest.raises(UserError, match=message):
        load_data(str(tmp_path))


def test_labels_may_start_from_one(tmp_path):
    mnist_npz(tmp_path / "mnist.npz", y_train=np.arange(20) % 4 + 1, y_test=np.arange(8) % 4 + 1)
    assert len(load_data(str(tmp_path)).classes) == 5
