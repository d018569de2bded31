"""Folders of images in every layout, whole and damaged."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
import torch
from image_files import cut, image_folder, noise
from PIL import Image
from scipy import io

from bunit_kernels.train.data import load_data
from bunit_kernels.train.data.__main__ import main as check_data
from bunit_kernels.train.data.decode import centre_box, decode, random_box
from bunit_kernels.train.errors import UserError


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
        (lambda f: cut(f / "dog" / "3.png", 60), r"cannot (read|decode) image .*dog.3\.png"),
        (lambda f: cut(f / "dog" / "3.png", 0), r"cannot read image .*dog.3\.png"),
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
    cut(path, path.stat().st_size // 2)
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
    with pytest.raises(UserError, match="4 images of 3x5000000x5000000 take .* GiB.*--stream"):
        load_data(str(tmp_path), image_size=5_000_000, stream=False)


def test_class_that_the_test_lacks(tmp_path):
    image_folder(tmp_path, parts=("train", "val"))
    shutil.rmtree(tmp_path / "val" / "dog")
    for stream in (False, True):
        with pytest.raises(UserError, match="has no test image of 1 of its 2 classes: dog$"):
            load_data(str(tmp_path), image_size=6, stream=stream)


def test_folder_of_archives_is_not_unpacked_here(tmp_path):
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"")
    with pytest.raises(UserError, match="expected one a class; unpack tiny-imagenet-200.zip first"):
        load_data(str(tmp_path))


# --- images that stay in their files --------------------------------------------------------------


def test_large_folders_are_streamed(tmp_path, monkeypatch):
    image_folder(tmp_path, parts=("train", "val"))
    monkeypatch.setattr("bunit_kernels.train.data.folder.IN_MEMORY", 20 * 3 * 6 * 8)
    assert not load_data(str(tmp_path)).streamed  # 20 images, which is the limit
    data = load_data(str(tmp_path), image_size=9)
    assert data.streamed and data.shape == (3, 9, 9) and len(data.train) == 10
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5
    assert data.train.path(7) == str(tmp_path / "train" / "dog" / "2.png")
    few = data.limited(4)
    assert few.streamed and few.train.labels.tolist() == data.limited(4).train.labels.tolist()
    assert few.train.path(0) in [data.train.path(i) for i in range(10)]


def test_streamed_folders_are_split_and_grey_alike(tmp_path):
    image_folder(tmp_path, mode="L")
    held, streamed = (load_data(str(tmp_path), 8, stream=stream) for stream in (False, True))
    assert streamed.shape == held.shape == (1, 8, 8)
    assert streamed.test.labels.tolist() == held.test.labels.tolist()
    for i in range(2):
        image = np.empty((1, 8, 8), np.uint8)
        decode(streamed.test.path(i), image)
        assert np.array_equal(image, held.test.images[i].numpy())


def test_streaming_needs_a_size_and_files(tmp_path):
    image_folder(tmp_path)
    with pytest.raises(UserError, match="its 10 images are .* --image-size N says how large"):
        load_data(str(tmp_path), stream=True)
    with pytest.raises(UserError, match="digits is read whole: --stream is for folders"):
        load_data("digits", stream=True)


# --- one image ------------------------------------------------------------------------------------


def gradient(path, width, height, **options):
    """An image whose first channel tells the column, whose second tells the row."""
    x, y = np.meshgrid(np.arange(width) * 255 / (width - 1), np.arange(height) * 255 / (height - 1))
    pixels = np.stack([x, y, np.zeros_like(x)], 2).round().astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return str(path)


@pytest.mark.parametrize("name, options", [("a.png", {}), ("a.jpg", {"quality": 95})])
@pytest.mark.parametrize("size", [16, 100, 224])  # JPEG decodes at 1/8, 1/2 and whole
def test_decoded_part_is_the_one_drawn(tmp_path, name, options, size):
    path = gradient(tmp_path / name, 400, 300, **options)
    out = np.empty((3, size, size), np.uint8)
    for seed in range(5):
        decode(path, out, np.random.default_rng(seed))
        left, top, right, bottom = random_box((400, 300), np.random.default_rng(seed))
        middle = out.astype(float)[:, size // 2 - 1 : size // 2 + 1].mean(1)
        columns = middle[0] if middle[0, -1] > middle[0, 0] else middle[0, ::-1]
        inset = (right - left) / size / 2  # the middle of the outermost pixels
        expected = np.array([left + inset, right - inset]) * 255 / 400
        assert columns[[0, -1]] == pytest.approx(expected, abs=3)
        assert middle[1].mean() == pytest.approx((top + bottom) / 2 * 255 / 300, abs=3)


def test_parts_are_of_the_sizes_of_the_recipe():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box((500, 375), rng) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / (500 * 375), width / height
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 500).all() and (boxes[:, 3] <= 375).all()
    assert 0.079 < area.min() < 0.09 and 0.9 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.35
    assert boxes[:, 0].min() == 0 and boxes[:, 2].max() == 500
    assert random_box((4000, 10), rng) == centre_box((4000, 10), (1, 1)) == (1995, 0, 2005, 10)


def test_middle_of_an_image():
    assert centre_box((40, 30), (8, 6)) == (0, 0, 40, 30)
    assert centre_box((400, 300), (10, 10)) == (50, 0, 350, 300)
    assert centre_box((256, 300), (224, 224), 1 / 8) == pytest.approx((16, 38, 240, 262))


# --- Tiny-ImageNet and ImageNet -------------------------------------------------------------------

WNIDS = ("n01443537", "n01629819", "n02124075")


def tiny_imagenet(root):
    """A small one as it is distributed: two images a class, three for validation."""
    for label, name in enumerate(WNIDS):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        (folder.parent / f"{name}_boxes.txt").write_text("no image")
        for i in range(2):
            image = np.full((8, 8, 3), 100 * label + i, np.uint8)
            Image.fromarray(image).save(folder / f"{name}_{i}.JPEG", quality=100)
    for part in ("val", "test"):
        (root / part / "images").mkdir(parents=True)
        for i in range(3):
            image = np.full((8, 8, 3), 40 * i, np.uint8)
            Image.fromarray(image).save(root / part / "images" / f"{part}_{i}.JPEG", quality=100)
    lines = [f"val_{i}.JPEG\t{WNIDS[(i + 1) % 3]}\t0\t0\t7\t7\n" for i in range(3)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(reversed(WNIDS)) + "\n")
    (root / "words.txt").write_text("n01443537\tgoldfish\n")
    return root


def test_tiny_imagenet(tmp_path):
    tiny_imagenet(tmp_path / "tiny-imagenet-200")
    for source in (tmp_path, tmp_path / "tiny-imagenet-200"):
        data = load_data(str(source))
        assert data.classes == WNIDS and data.shape == (3, 8, 8)
        assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert data.train.images[:, 0, 0, 0].tolist() == [0, 1, 100, 101, 200, 201]
        assert data.test.labels.tolist() == [1, 2, 0]
        assert data.test.images[:, 0, 0, 0].tolist() == [0, 40, 80]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: shutil.rmtree(f / "train" / WNIDS[1]), "train lacks classes .*: n01629819$"),
        (lambda f: shutil.rmtree(f / "train" / WNIDS[1] / "images"), "n01629819 holds no image"),
        (lambda f: cut(f / "train" / WNIDS[2] / "images" / f"{WNIDS[2]}_1.JPEG", 200),
         "cannot (read|decode) image .*n02124075_1.JPEG"),
        (lambda f: (f / "val" / "images" / "val_1.JPEG").unlink(), "val_annotations.txt names "
         "images that .*images lacks: val_1.JPEG$"),
        (lambda f: cut(f / "val" / "val_annotations.txt", 29), "not name images .*: val_1.JPEG, v"),
        (lambda f: cut(f / "val" / "val_annotations.txt", 8), "line 1: expected an image and its"),
        (lambda f: (f / "val" / "val_annotations.txt").unlink(), "neither a folder a class nor an"),
        (lambda f: edit(f / "val" / "val_annotations.txt", WNIDS[0], "n0"), "line 3: .* of class "
         "'n0', which is neither a name nor a number of one of the 3 classes"),
        (lambda f: edit(f / "val" / "val_annotations.txt", WNIDS[0], "3"), "of class '3', which"),
        (lambda f: edit(f / "val" / "val_annotations.txt", WNIDS[0], WNIDS[1]), "has no test image "
         "of 1 of its 3 classes: n01443537$"),
        (lambda f: edit(f / "val" / "val_annotations.txt", "val_2", "val_1"), "the second time"),
        (lambda f: (f / "val" / "val_annotations.txt").write_bytes(b"\xff"), "cannot read .*val"),
    ],
)  # fmt: skip
def test_damaged_tiny_imagenet(tmp_path, damage, message):
    damage(tiny_imagenet(tmp_path))
    with pytest.raises(UserError, match=message):
        load_data(str(tmp_path))


def imagenet(root, names):
    """Training images in a folder a class, validation images in one folder."""
    for label, name in enumerate(WNIDS):
        (root / "train" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(noise(9, 12, 3)).save(root / "train" / name / f"{name}_{label}{i}.JPEG")
    (root / "val").mkdir()
    for name in names:
        Image.fromarray(noise(9, 12, 3)).save(root / "val" / f"{name}.JPEG")


VALIDATION = [f"ILSVRC2012_val_0000000{i}" for i in (1, 2, 3)]


def write_list(root):
    lines = [f"{n}.JPEG {i}" for n, i in zip(VALIDATION, (2, 0, 1), strict=True)]
    (root / "val.txt").write_text("\n".join(lines))
    return root


def write_kaggle(root):
    lines = [f"{n},{WNIDS[i]} 1 2 3 4" for n, i in zip(VALIDATION, (2, 0, 1), strict=True)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    return root / "ILSVRC" / "Data" / "CLS-LOC"


def write_devkit(root):
    """Its numbers are in another order than the names; entries above the classes have some too."""
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    synsets = np.zeros(4, [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    for row, name in zip(synsets, (WNIDS[2], WNIDS[0], WNIDS[1], "n00001740"), strict=True):
        row["WNID"] = name
    synsets["ILSVRC2012_ID"] = [1, 2, 3, 4]
    io.savemat(folder / "meta.mat", {"synsets": synsets})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n")
    return root


@pytest.mark.parametrize("write", [write_list, write_kaggle, write_devkit])
def test_imagenet_with_validation_images_in_one_folder(tmp_path, write):
    imagenet(write(tmp_path), VALIDATION)
    data = load_data(str(tmp_path), image_size=8)
    assert data.classes == WNIDS and data.test.labels.tolist() == [2, 0, 1]
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("ILSVRC2012_validation_ground_truth.txt", "1\n2\n", "has 2 lines, for 3 images"),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n2\n9\n", "line 3: class '9' is not in meta"),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n2\n4\n", "class '4' is n00001740 in meta"),
        ("meta.mat", "MATLAB", "cannot read .*meta.mat as the devkit's list"),
    ],
)
def test_damaged_devkit(tmp_path, file, content, message):
    imagenet(write_devkit(tmp_path), VALIDATION)
    (tmp_path / "ILSVRC2012_devkit_t12" / "data" / file).write_text(content)
    with pytest.raises(UserError, match=message):
        load_data(str(tmp_path), image_size=8)


def data_command(capsys, *arguments):
    code = check_data([str(argument) for argument in arguments])
    return code, capsys.readouterr()


@pytest.mark.parametrize("options", [(), ("--stream", "--image-size", "8")], ids=["read", "stream"])
def test_all_broken_images_are_named_at_once(tmp_path, capsys, options):
    image_folder(tmp_path, suffix=".jpg", size=(64, 64))
    code, printed = data_command(capsys, tmp_path, *options)
    assert code == 0 and printed.err == ""
    half = tmp_path / "cat" / "2.jpg"  # its header is whole
    cut(half, half.stat().st_size // 2)
    (tmp_path / "dog" / "0.jpg").write_text("no image")
    (tmp_path / "dog" / "3.jpg").write_bytes(b"")
    count = len(list(tmp_path.rglob("*.jpg")))
    code, printed = data_command(capsys, tmp_path, *options)
    assert code == 2 and printed.out == ""
    assert f"3 of {count} images are broken:\n" in printed.err
    lines = printed.err.splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [
        f"cannot decode image {half}",
        f"cannot read image {tmp_path / 'dog' / '0.jpg'}",
        f"cannot read image {tmp_path / 'dog' / '3.jpg'}",
    ]
    with pytest.raises(UserError, match="images are broken"):
        load_data(str(tmp_path), image_size=8)


def test_ten_broken_images_are_named_and_others_counted(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(7):
            (tmp_path / name / f"{i}.png").write_text("no image")
    code, printed = data_command(capsys, tmp_path)
    assert code == 2
    first, *named, last = printed.err.splitlines()
    assert first.endswith("14 of 14 images are broken:") and last == "  and 4 more"
    assert len(named) == 10 and "b/2.png" in named[-1]


def test_a_folder_without_pillow(tmp_path, monkeypatch):
    image_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UserError, match="^an image folder needs Pillow.*; pip install Pillow, or"):
        load_data(str(tmp_path))
