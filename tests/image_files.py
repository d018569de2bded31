"""Files of images, made and damaged by the tests of loaders."""

from __future__ import annotations

import numpy as np
from PIL import Image

rng = np.random.default_rng(0)


def noise(*shape) -> np.ndarray:
    return rng.integers(0, 256, shape, np.uint8)


def cut(path, size):
    """Leaves the first ``size`` bytes of a file."""
    path.write_bytes(path.read_bytes()[:size])


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
