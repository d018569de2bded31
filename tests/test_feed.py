"""Batches: variation, shares of several processes, later steps, streaming, mixup."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from image_files import cut, image_folder, noise

from bunit_kernels.train import main
from bunit_kernels.train.augment import draw_variations, mixup, resolve, shift_padding, vary
from bunit_kernels.train.data import ImageData, LabelledImages, load_data
from bunit_kernels.train.data.__main__ import main as check_data
from bunit_kernels.train.data.decode import decode
from bunit_kernels.train.data.stream import TEST_MARGIN
from bunit_kernels.train.errors import TrainingError, UserError
from bunit_kernels.train.feed import Feed, StreamFeed, make_feed
from bunit_kernels.train.settings import Settings

CPU = torch.device("cpu")


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- variation ------------------------------------------------------------------------------------


def test_shift_is_a_part_of_the_padded_image():
    images = torch.arange(1, 1 + 20 * 2 * 5 * 4).reshape(20, 2, 5, 4)
    variations = draw_variations("shift", 20, 2, generator())
    shifted = vary(images, variations, 2)
    assert shifted.shape == images.shape and shifted.is_contiguous()
    padded = F.pad(images, (2, 2, 2, 2))
    for i, (top, left, flip) in enumerate(variations.tolist()):
        assert flip == 0
        assert torch.equal(shifted[i], padded[i, :, top : top + 5, left : left + 4])
    assert len({(top, left) for top, left, _ in variations.tolist()}) > 8
    assert torch.equal(vary(images, draw_variations("shift", 20, 0, generator()), 0), images)


def test_flip_mirrors_about_half_after_the_shift():
    images = torch.from_numpy(noise(200, 1, 3, 4))
    variations = draw_variations("crop-flip", 200, 1, generator())
    flip = variations[:, 2] == 1
    assert 60 < flip.sum() < 140
    shifted = vary(images, torch.where(torch.tensor([True, True, False]), variations, 0), 1)
    varied = vary(images, variations, 1)
    assert torch.equal(varied[flip], shifted[flip].flip(3))
    assert torch.equal(varied[~flip], shifted[~flip])


def test_shifts_are_drawn_evenly():
    variations = draw_variations("crop-flip", 9000, 4, generator())
    for column in variations[:, :2].T:
        counts = torch.bincount(column)
        assert len(counts) == 9 and (counts - 1000).abs().max() < 150


def test_augmentations_by_name():
    names = [resolve("auto", 3), resolve("auto", 1), resolve("auto", 3, True), resolve("none", 3)]
    assert names == ["crop-flip", "none", "resized-crop-flip", "none"]
    for name in ("none", "resized-crop-flip"):
        assert draw_variations(name, 5, 1, generator()) is None
    images = torch.from_numpy(noise(10, 3, 8, 8))
    assert vary(images, None, 1) is images
    assert shift_padding((32, 32)) == 4 and shift_padding((6, 6)) == 1


def test_mixup_mixes_images_as_labels():
    x, labels = torch.randn(6, 2, 3, 3), torch.tensor([0, 1, 2, 3, 3, 0])
    mixed, probabilities = mixup(x, labels, 4, 0.75)
    partners = [3, 4, 5, 0, 1, 2]
    torch.testing.assert_close(mixed, 0.75 * x + 0.25 * x[partners])
    expected = 0.75 * F.one_hot(labels, 4) + 0.25 * F.one_hot(labels[partners], 4)
    torch.testing.assert_close(probabilities, expected)
    same, certain = mixup(x, labels, 4, 1.0)
    assert torch.equal(same, x) and torch.equal(certain, F.one_hot(labels, 4).float())


# --- images in memory -----------------------------------------------------------------------------


def toy(count=53, size=6, classes=3) -> ImageData:
    part = LabelledImages(
        torch.from_numpy(noise(count, 3, size, size)), torch.arange(count) % classes
    )
    return ImageData("toy", part, part[:20], tuple("abc"[:classes]))


@pytest.fixture(params=["memory", "stream"])
def data(request, tmp_path) -> ImageData:
    """53 training images of three channels, in memory or in files."""
    if request.param == "memory":
        return toy()
    image_folder(tmp_path, count=33)
    return load_data(str(tmp_path), 6, stream=True)


def equal(some, others) -> bool:
    """Whether two runs of batches are the same."""
    some, others = list(some), list(others)
    return len(some) == len(others) and all(
        torch.equal(a, b)
        for one, other in zip(some, others, strict=True)
        for a, b in zip(one, other, strict=True)
    )


OPTIONS = [{}, {"augment": "none"}, {"mixup": 0.4}, {"augment": "crop-flip", "mixup": 0.4}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_processes_see_together_what_one_does(data, options):
    alone = make_feed(data, Settings(batch_size=12, workers=1, **options), CPU)
    statistics = alone.mean, alone.deviation
    for world in (2, 3):
        settings = Settings(batch_size=12 // world, workers=1, **options)
        feeds = [make_feed(data, settings, CPU, statistics, r, world) for r in range(world)]
        assert {feed.steps for feed in feeds} == {alone.steps} == {4}
        shares = zip(*(feed.training(1) for feed in feeds), strict=True)
        together = ([torch.stack(t, 1).flatten(0, 1) for t in zip(*b, strict=True)] for b in shares)
        assert equal(alone.training(1), together)
        assert equal(feeds[1].testing(), alone.testing())
        parts = [torch.cat([x for x, _ in feed.testing(share=True)]) for feed in feeds]
        assert [len(p) for p in parts] == [len(data.test.labels[r::world]) for r in range(world)]
        assert torch.equal(parts[1], torch.cat([x for x, _ in alone.testing()])[1::world])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_epoch_goes_on_from_any_step(data, options):
    feed = make_feed(data, Settings(batch_size=10, workers=2, **options), CPU)
    whole = list(feed.training(3))
    assert len(whole) == feed.steps == 5
    for step in (0, 2, 5):
        assert equal(feed.training(3, first_step=step), whole[step:])
    assert not torch.equal(next(feed.training(4))[0], whole[0][0])


def test_mixup_yields_probabilities():
    feed = Feed(toy(), Settings(batch_size=10, mixup=0.4), CPU)
    weights = set()
    for x, labels in feed.training(0):
        assert x.shape == (10, 3, 6, 6) and labels.shape == (10, 3)
        torch.testing.assert_close(labels.sum(1), torch.ones(10))
        weights.update(labels[(labels > 0) & (labels < 1)].mul(1e4).round().tolist())
    assert len(weights) >= feed.steps  # another one each step
    assert next(feed.testing())[1].dtype == feed.sample(torch.arange(3))[1].dtype == torch.int64


def test_mixup_is_checked():
    with pytest.raises(UserError, match="--mixup must be at least 0, got -1"):
        Settings(mixup=-1)


def test_sample_is_as_it_is_in_the_data(data):
    feed = make_feed(data, Settings(batch_size=10, workers=1), CPU)
    chosen = torch.tensor([7, 0, 3])
    x, labels = feed.sample(chosen)
    assert x.shape == (3, 3, 6, 6) and torch.equal(labels, data.train.labels[chosen])
    if not data.streamed:
        assert torch.equal(x, feed.normalise(data.train.images[chosen]))


def test_format_of_the_images():
    x, _ = next(Feed(toy(), Settings(channels_last=True, batch_size=5), CPU).training(0))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_what_does_not_fit():
    with pytest.raises(UserError, match="53 training images are too few for 54 processes"):
        Feed(toy(), Settings(), CPU, world=54)
    with pytest.raises(ValueError, match="rank must be from 0 to 1, got 2"):
        Feed(toy(), Settings(), CPU, rank=2, world=2)
    with pytest.raises(UserError, match="resized-crop-flip .* needs --stream"):
        Feed(toy(), Settings(augment="resized-crop-flip"), CPU)
    assert Feed(toy(), Settings(batch_size=64), CPU, world=2).batch_size == 26


# --- images in files ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """40 training and 10 test images of 24x18 pixels."""
    image_folder(tmp_path, count=20, parts=("train",), size=(24, 18), suffix=".jpg")
    return image_folder(tmp_path, count=5, parts=("val",), size=(24, 18), suffix=".jpg")


def streamed(folder, **options) -> StreamFeed:
    feed = make_feed(load_data(str(folder), 12, stream=True), Settings(**options), CPU)
    assert isinstance(feed, StreamFeed)
    return feed


def test_streamed_batches_do_not_depend_on_the_workers(folder):
    state = torch.get_rng_state()
    one, three = (streamed(folder, batch_size=8, workers=n) for n in (1, 2))
    assert (one.mean, one.deviation) == (three.mean, three.deviation)
    assert equal(one.training(2), three.training(2))
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.cat([x for x, _ in one.training(0)])
    # Noise: a small part is averaged over fewer of its pixels than the middle was for the figures.
    assert x.mean().abs() < 0.1 and x.std() == pytest.approx(1, abs=0.2)


def test_every_streamed_image_has_a_part_of_its_own(folder):
    feed = streamed(folder, batch_size=8, workers=1)
    order = torch.randperm(40, generator=generator(feed.seed))
    x, labels = next(feed.training(0))
    assert torch.equal(labels, feed.train.labels[order[:8]])
    images = np.empty((8, 3, 12, 12), np.uint8)
    for image, index in zip(images, order[:8].tolist(), strict=True):
        decode(feed.train.path(index), image, np.random.default_rng([feed.seed, 0, index]))
    assert torch.equal(x, feed.normalise(torch.from_numpy(images)))


def test_streamed_tests_take_the_middle(folder):
    feed = streamed(folder, workers=1)
    x, labels = next(feed.testing())
    image = np.empty((1, 3, 12, 12), np.uint8)
    decode(feed.test.path(7), image[0], margin=TEST_MARGIN)
    assert len(x) == 10 and torch.equal(labels, torch.arange(10) // 5)
    assert torch.equal(x[7:8], feed.normalise(torch.from_numpy(image)))
    assert equal([next(feed.testing(4))], [(x[:4], labels[:4])])


def test_broken_image_is_named_as_it_is_met(folder):
    path = folder / "train" / "dog" / "3.jpg"
    cut(path, path.stat().st_size // 2)
    feed = make_feed(
        load_data(str(folder), 12, stream=True),
        Settings(batch_size=8, workers=2),
        CPU,
        ([0.5] * 3, [0.2] * 3),
    )
    with pytest.raises(UserError, match=r"^cannot decode image .*dog.3\.jpg: .*[Tt]runcated"):
        list(feed.training(0))
    path.unlink()
    with pytest.raises(UserError, match=r"^cannot decode image .*dog.3\.jpg: .*No such file"):
        list(feed.training(0))


def test_worker_that_dies(folder):
    feed = streamed(folder, batch_size=40, workers=1)
    path = folder / "train" / "dog" / "3.jpg"
    path.unlink()
    os.mkfifo(path)  # nobody writes to it, so that the worker waits until it is killed

    def kill():
        for worker in multiprocessing.active_children():
            worker.kill()

    timer = threading.Timer(1.0, kill)
    timer.start()
    with pytest.raises(TrainingError, match="decoding images failed: DataLoader worker"):
        next(feed.training(0))
    timer.join()


def test_training_on_a_stream_with_mixup(folder, tmp_path, capsys):
    options = [
        *("--data", str(folder), "--image-size", "12", "--stream", "--mixup", "0.2"),
        *("--epochs", "1", "--batch-size", "8", "--workers", "1", "--threads", "1", "--quiet"),
        *("--out", str(tmp_path / "run"), "--no-dense"),
        *("--model-arg", "num_units=2", "--model-arg", "pool=['1-2-1', '2-1-2']"),
    ]
    assert main(options) == 0
    assert "40 training and 10 test images, 3x12x12, 2 classes" in capsys.readouterr().out
    assert main(["--resume", str(tmp_path / "run"), "--epochs", "2"]) == 0
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert history["settings"]["stream"] and history["settings"]["mixup"] == 0.2


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_data_sets_are_checked_from_the_command_line(folder, capsys, stream):
    options = [str(folder), "--image-size", "12", "--workers", "1", stream]
    assert check_data(options) == 0
    output = capsys.readouterr().out
    assert "40 training and 10 test images" in output
    assert "training images of a class: from 20 (cat) to 20 (cat)" in output
    cut(folder / "val" / "dog" / "1.jpg", 300)
    assert check_data(options) == 2
    assert "1.jpg" in capsys.readouterr().err
