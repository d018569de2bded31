"""The ``cuda`` backend over the emulation of CUDA: its kernels run on CPU tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import emulated_build
import torch
from emulated_build import CSRC, KERNELS, PLAIN

from bunit_kernels import backend, ops
from bunit_kernels.backends import _choice
from bunit_kernels.backends.cuda import Cuda

NAMESPACE = "bunit_emulated"


@functools.cache
def emulator() -> Emulator:
    """Builds and loads the kernels once; their operators get fakes and gradients as on a device."""
    path = emulated_build.library("kernels", [CSRC / "schema.cpp", *KERNELS], PLAIN)
    torch.ops.load_library(str(path))
    ops.register(NAMESPACE)
    return Emulator(str(path))


@contextmanager
def emulated_cuda() -> Iterator[None]:
    """Makes the emulated ``cuda`` backend the one in force."""
    emulator()
    over_emulation = Cuda(getattr(torch.ops, NAMESPACE), device_type="cpu")
    with mock.patch.dict(_choice._BACKENDS, cuda=over_emulation), backend("cuda"):
        yield


class Emulator:
    """What the emulation knows of the kernels that ran."""

    def __init__(self, path: str):
        self._library = ctypes.CDLL(path)
        self._library.bunit_emulation_launches.restype = ctypes.c_int64
        self._library.bunit_emulation_allocations.restype = ctypes.c_int64
        self._library.bunit_emulation_launch.restype = ctypes.c_char_p
        self._library.bunit_emulation_launch.argtypes = [ctypes.c_int64]

    @property
    def allocations(self) -> int:
        """How often memory was asked of the device, past PyTorch's allocator."""
        return self._library.bunit_emulation_allocations()

    @contextmanager
    def launches(self) -> Iterator[list[str]]:
        """Names of the kernels launched inside, filled in at the end."""
        names: list[str] = []
        first = self._library.bunit_emulation_launches()
        yield names
        last = self._library.bunit_emulation_launches()
        names += [self._library.bunit_emulation_launch(i).decode() for i in range(first, last)]
