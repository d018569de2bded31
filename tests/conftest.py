"""Options and fixtures of all tests."""

from __future__ import annotations

import gc
import os
import zlib

# Before torch is loaded. Threads that spin at each barrier take, on a machine that has something
# else to do, the time slice of those that they wait for: tests of milliseconds then take seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import HealthCheck, settings

# Before Triton is loaded: without a GPU its interpreter runs the kernels, on CPU tensors.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from reference_checks import CPU_BACKENDS
from tiny_runs import images, tiny  # noqa: F401

from bunit_kernels import backends

# pytest --hypothesis-profile=deep draws thousands of examples. Each example takes milliseconds or,
# on a machine that has something else to do, a second; a failure prints what repeats it.
_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", max_examples=60, **_COMMON)
settings.register_profile("deep", max_examples=2000, **_COMMON)
settings.load_profile("ci")


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="draws other inputs and random cases")


def pytest_collection_finish():
    """Thousands of tests are no garbage and need not be looked through again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """For what is freed at the end, which bindings look for."""
    gc.unfreeze()


def pytest_report_header(config):
    return f"inputs of --seed={config.getoption('--seed')}, torch {torch.__version__}"


@pytest.fixture
def seed(request) -> str:
    """Different for every test and every ``--seed``, the same on every run."""
    return f"{request.config.getoption('--seed')} {request.node.name}"


@pytest.fixture(autouse=True)
def _seeded_and_restored(seed):
    """Seeds PyTorch; afterwards the backend and the number of threads are as before."""
    torch.manual_seed(zlib.crc32(seed.encode()))
    chosen, threads = backends.get_backend(), torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    assert backends.get_backend() == chosen, "the test left another backend in force"


@pytest.fixture(params=CPU_BACKENDS)
def every_backend(request) -> str:
    """The test runs once under each backend of CPU tensors."""
    with backends.backend(request.param):
        yield request.param
