"""Runs of the training program that take a second: a tiny data set, tiny networks, what to compare.

``conftest.py`` makes the fixtures known to all tests.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bunit_kernels.train import main
from bunit_kernels.train.checkpoint import load_checkpoint

# Two threads that wait for each other at every small layer crawl where other work shares the cores.
CALM = ["--threads", "1"]
# A network of a few hundred weights: what is tested is the program around it.
TINY = ["--model-arg", "num_units=2", "--model-arg", "pool=['1-2-1', '2-1-2']"]


def write_images(folder: Path, train: int, test: int) -> str:
    """So many images of 6x6 pixels in a file, dark for one class and bright for the other."""
    rng = np.random.default_rng(0)

    def draw(count):
        labels = np.arange(count) % 2
        values = rng.integers(0, 128, (count, 6, 6)) + 127 * labels[:, None, None]
        return values.astype(np.uint8), labels

    (x, y), (x_test, y_test) = draw(train), draw(test)
    path = folder / "images.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return str(path)


@pytest.fixture
def images(tmp_path) -> str:
    return write_images(tmp_path, 96, 32)


@pytest.fixture
def tiny(images, tmp_path):
    """Runs ``main`` on them with a tiny network; returns (exit code, run folder)."""

    def run(*options, out="run"):
        folder = tmp_path / out
        base = ["--data", images, "--epochs", "2", "--batch-size", "16", "--quiet", *TINY]
        return main([*base, *CALM, "--out", str(folder), *options]), folder

    return run


def state(folder, name="bunit_cnn_last.pt"):
    return load_checkpoint(Path(folder) / name)


def assert_same(a, b):
    """Equal to the last bit, through dicts and lists; times aside."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds", "versions"}:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b
