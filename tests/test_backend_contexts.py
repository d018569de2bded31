"""The choice of a backend under threads, tasks and compilers, and the limits of ours."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
import torch
from torch.export import Dim, export

from bunit_kernels import StackedConv2d, StackedLinear, _torch_private, backend, backends
from bunit_kernels.backends import limits
from bunit_kernels.layout import ConvGeometry, StackLayout, resolve_units


def overlapping_blocks() -> None:
    """Two threads that are inside of their blocks at the same time, each leaving in turn."""
    barrier, wrong, before = threading.Barrier(2), [], backends.get_backend()

    def run(name):
        for _ in range(20):
            with backend(name):
                barrier.wait(60)
                if backends.get_backend() != name:
                    wrong.append(name)
                barrier.wait(60)
            if backends.get_backend() != before:
                wrong.append(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("reference", "torch")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and backends.get_backend() == before


def test_overlapping_blocks_of_threads():
    overlapping_blocks()


def test_a_new_thread_has_the_default():
    seen = []
    with backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.get_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_asyncio_tasks_have_their_own_choices():
    async def task(name):
        with backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                assert backends.get_backend() == name

    async def both():
        await asyncio.gather(task("reference"), task("torch"))
        assert backends.get_backend() == "auto"

    asyncio.run(both())


class Names(torch.utils.data.Dataset):
    """The backend in force where an item is read."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return backends.get_backend()


@pytest.mark.parametrize(("start", "expected"), [("fork", "reference"), ("spawn", "torch")])
def test_workers_of_a_loader(start, expected, monkeypatch):
    """Forked ones are in the block that their loader was asked in, spawned ones begin anew."""
    monkeypatch.setenv("BUNIT_BACKEND", "torch")
    loader = torch.utils.data.DataLoader(
        Names(), batch_size=None, num_workers=1, multiprocessing_context=start
    )
    with backend("reference"):
        assert list(loader) == [expected] * 2


def test_a_backward_pass_runs_in_the_backend_of_its_forward_pass():
    layer = StackedConv2d("2-4-2", 3)
    x = torch.randn(2, 6, 9, 9, requires_grad=True)

    def grads(forward, backward, thread=False):
        with backend(forward):
            y = layer(x).square().sum()
        found = []

        def back():
            with backend(backward):
                found.extend(torch.autograd.grad(y, [x, *layer.weights]))

        if thread:
            other = threading.Thread(target=back)
            other.start()
            other.join()
        else:
            back()
        return found

    of_ours, of_torch = grads("cpp", "cpp"), grads("torch", "torch")
    assert any(not torch.equal(a, b) for a, b in zip(of_ours, of_torch, strict=True))
    for thread in (False, True):
        for forward, expected in (("cpp", of_ours), ("torch", of_torch)):
            backward = "torch" if forward == "cpp" else "cpp"
            for a, b in zip(grads(forward, backward, thread), expected, strict=True):
                assert torch.equal(a, b)


def test_compiled_layers_follow_the_choice(monkeypatch):
    torch._dynamo.reset()
    layer, graphs = StackedConv2d("2-4-2", 3).eval(), []

    def keep(graph, _):
        graphs.append(str(graph.graph))
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=keep)
    x = torch.randn(1, 6, 20, 20)
    with torch.no_grad():
        for name in ("cpp", "torch", "cpp"):
            with backend(name):
                compiled(x)
        backends.set_backend("reference")
        try:
            compiled(x)
        finally:
            backends.set_backend("auto")
    assert [("bunit_kernels" in graph) for graph in graphs] == [True, False, False]


def test_auto_puts_no_guard_on_sizes():
    layer, x = StackedConv2d("2-4-2", 4).eval(), torch.randn(2, 8, 20, 20)
    sizes = {2: Dim("h", min=8), 3: Dim("w", min=8)}
    program = export(layer, (x,), dynamic_shapes=(sizes,)).module()
    for shape in ((2, 8, 8, 9), (2, 8, 33, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), layer(x))


def test_auto_compiles_once_for_all_sizes():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    layer = torch.compile(
        StackedConv2d("2-4-2", 4).eval(), dynamic=True, fullgraph=True, backend=counter
    )
    with torch.no_grad():
        for size in (20, 9, 33):
            layer(torch.randn(2, 8, size, size + 1))
    assert counter.frame_count == 1


@pytest.mark.parametrize("depth", [limits.CPP.levels, limits.CPP.levels + 1])
@pytest.mark.parametrize("training", [True, False])
def test_depth(depth, training):
    units = "-".join("2" * (depth + 1))
    conv, linear = StackedConv2d(units, 3).train(training), StackedLinear(units, 3)
    calls = [(conv, torch.randn(2, 6, 8, 8)), (linear, torch.randn(2, 6))]
    for layer, x in calls:
        with backend("reference"):
            expected = layer(x)
        torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)
        refused = pytest.raises(backends.BackendUnavailable, match=r"levels up to 8, got 9")
        with backend("cpp"), refused if depth == 9 else contextlib.nullcontext():
            layer(x)


@pytest.mark.parametrize("more", [0, 1])
def test_stride(more):
    stride = limits.CPP.stride + more
    layer = StackedConv2d("1-2", 2, kernel_size=2, norm=None, stride=stride, padding=0)
    x = torch.randn(1, 2, 2 + stride, 4)
    with backend("reference"):
        expected = layer(x)
    torch.testing.assert_close(layer(x), expected)
    refused = pytest.raises(backends.BackendUnavailable, match="up to 1024, got 1025")
    with backend("cpp"), refused if more else contextlib.nullcontext():
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [("levels", 2), ("units", 3), ("width", 5), ("weights", 270), ("reach", 3), ("stride", 2)],
)
def test_each_limit_and_one_below(name, value):
    layout = StackLayout(resolve_units("2-5-2", 3))
    geometry = ConvGeometry(layout, stride=2)
    assert limits.Limits(**{name: value}).exceeded(layout, geometry, True) is None
    reason = limits.Limits(**{name: value - 1}).exceeded(layout, geometry, True)
    assert f"up to {value - 1}, got {value}" in reason


def test_limits_are_those_of_the_operators():
    """Straight to an operator, one beyond."""
    ops, x = torch.ops.bunit_kernels, torch.randn(1, 2, 4, 4)
    for row, options, words in (
        ([2, limits.CPP.reach + 1, limits.CPP.reach, 1, 1], (1, 1), "kernel"),
        ([2, 1, limits.CPP.reach + 1, 1, 1], (1, 1), "pad"),
        ([2, 1, 0, 1, 1], (limits.CPP.stride + 1, 1), "stride"),
        ([2, 1, 0, 1, 1], (1, limits.CPP.reach + 1), "dilation"),
        ([limits.CPP.units + 1, 1, 0, 1, 1], (1, 1), "units"),
    ):
        with pytest.raises(RuntimeError, match=words):
            ops.stacked_conv2d(x, torch.randn(2), None, row, *options, "identity")


def test_torch_without_its_private_names():
    assert _torch_private.transforms_active_of(object())() is False
    assert _torch_private.below_autograd_of(object()) is torch.no_grad
    assert _torch_private.transforms_active_of(torch._C) is not _torch_private._no_transforms
