"""No memory is lost: not by call, not by training step, not by layer."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bunit_kernels
from bunit_kernels import StackedConv2d, StackedLinear, UnitSpec, fuse

HERE = Path(__file__).parent
STATM = Path("/proc/self/statm")

pytestmark = pytest.mark.skipif(not STATM.exists(), reason="needs Linux's /proc")

#: Bytes a call that are lost for certain: a string, the smallest block of memory that there is.
#: What the allocator keeps more of as it goes on comes to a few bytes a call over 10,000 calls.
LOST = 32


def in_use() -> int:
    """Bytes of memory that this process has touched and not given back."""
    return int(STATM.read_text().split()[1]) * resource.getpagesize()


def growth(action, warm_up: int, count: int) -> float:
    """Bytes a call that ``count`` calls of ``action`` take for good, after ``warm_up`` others: the
    least of three rounds, since what is taken once is no loss."""
    for index in range(warm_up):
        action(index)
    found = []
    for _ in range(3):
        gc.collect()
        before = in_use()
        for index in range(count):
            action(index)
        gc.collect()
        found.append(in_use() - before)
    return min(found) / count


def training_steps() -> float:
    """Of tiny layers, on images whose size changes."""
    # PyTorch's own operators keep something for each size of image.
    bunit_kernels.set_backend("cpp")
    convs = StackedConv2d(["2-4-2", "1-2-1"])
    linears = StackedLinear("3-4-1", num_units=2)
    parameters = [*convs.parameters(), *linears.parameters()]
    inputs = [torch.randn(2 + i % 3, 3, 3 + i % 5, 2 + i % 7) for i in range(105)]

    def step(index: int) -> None:
        x = inputs[index % len(inputs)].clone().requires_grad_()
        convs.train(index % 4 > 0)
        linears(convs(x).mean(3).mean(2).repeat(1, 2)).square().sum().backward()
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 1e-3 * parameter.grad
                parameter.grad = None

    return growth(step, warm_up=1000, count=3334)


def layers_made_and_dropped() -> float:
    """Of ever other units, used once in training, and folded."""

    def use(index: int) -> None:
        units = UnitSpec.sample(4, seed=index)
        layer = StackedConv2d(units, stride=1 + index % 2)
        x = torch.randn(2, layer.in_channels, 5, 5 + index % 4)
        layer(x).sum().backward()
        fuse(layer.eval())(x)

    return growth(use, warm_up=500, count=2000)  # pages come to 2 bytes a call, not 6


def measured(call: str) -> float:
    """Of a process of its own, in which no other test has left anything to be freed."""
    code = (
        f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}; import test_memory as t\n"
    )
    code += f"t.torch.set_num_threads(1)\nprint({call})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.thorough
def test_ten_thousand_training_steps_take_no_memory():
    assert measured("t.training_steps()") < LOST


@pytest.mark.thorough
def test_layers_that_are_dropped_are_gone():
    assert measured("t.layers_made_and_dropped()") < LOST


def test_a_loss_of_one_string_a_call_is_seen():
    code = "[kept := [], t.growth(lambda i: kept.append(bytes(8)), 1000, 10_000)][1]"
    assert measured(code) >= LOST
