"""What a run needs before it builds its networks: a device, images, a folder."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import torch

from .data import ImageData, load_data
from .errors import UserError, first_line
from .settings import Settings


def prepare_device(settings: Settings) -> torch.device:
    """Finds the device and sets what torch keeps for the whole process.

    Raises:
        UserError: no such device.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read as CUDA starts
        torch.use_deterministic_algorithms(True)
    device = find_device(settings.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not settings.deterministic
    return device


def find_device(name: str) -> torch.device:
    """The device of that name; for ``auto`` the accelerator if there is one, else the CPU.

    Raises:
        UserError: no such device, here or at all.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # A device that is not there: AssertionError, RuntimeError or NotImplementedError by kind.
    except Exception as error:
        raise UserError(f"cannot use device {name!r}: {first_line(error)}") from error
    if device.type == "meta":
        raise UserError("cannot use device 'meta': its tensors hold no values")
    return device


def read_data(settings: Settings) -> ImageData:
    """The images of ``settings``.

    Raises:
        UserError: see ``load_data``.
    """
    data = load_data(settings.data, settings.image_size, settings.workers, settings.stream)
    return data.limited(settings.limit)


def make_folder(folder: Path | None, settings: Settings, resume: bool) -> Path:
    """The run's folder, made if it is not there.

    Raises:
        UserError: it cannot be made or written to, or holds another run.
    """
    if folder is None:
        name = f"{settings.model}-{settings.data_name}-{datetime.now():%Y%m%d-%H%M%S}"
        folder = _unused(Path("runs") / name)
    if not resume and any(folder.glob("*.pt")):
        raise UserError(
            f"{folder} holds a run already: continue it with --resume {folder} or choose "
            "another --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder {folder}: {error}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to the run folder {folder}")
    return folder


def _unused(folder: Path) -> Path:
    """``folder``, with a number behind its name where it is taken."""
    number, candidate = 1, folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
