"""The same bits on every run, with any number of threads, from any thread and any process."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from module_cases import conv_layer, image, linear_layer
from reference_cases import ConvCase, LinearCase
from reference_runs import (
    conv2d,
    converted,
    draw,
    linear,
    outputs_and_gradients,
    unit_conv2d,
    unit_conv2d_train,
    unit_linear,
)
from tolerance import assert_near, tolerance
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bunit_kernels import StackedConv2d, backend

#: Large enough to be shared among threads, and cut where no number of threads divides evenly.
CASES = (
    (conv2d, ConvCase("2-3", 7, size=(5, 29, 31), kernel_size=5)),
    (unit_conv2d, ConvCase("2-4-2", 13, size=(7, 28, 28), residual="relu")),
    (unit_conv2d, ConvCase(("2-4-2", "1-2-3:k5", "3-1-1") * 3, size=(5, 23, 33), stride=2)),
    (unit_conv2d, ConvCase("16-16-16", 3, size=(3, 17, 14), layout="channels_last")),
    (unit_conv2d, ConvCase("16-24-16-2", 1, size=(1, 57, 35))),
    # Made in steps, the last of two rows, and in one where the image is split.
    (unit_conv2d, ConvCase("1-128-1", 1, size=(3, 122, 28))),
    (unit_conv2d_train, ConvCase("2-4-2", 13, size=(7, 28, 28))),
    (unit_conv2d_train, ConvCase("16-16-16", 1, size=(2, 37, 30))),
    (unit_conv2d_train, ConvCase(("2-4-2", "1-2-3:k5"), size=(9, 30, 30), layout="channels_last")),
    (unit_conv2d_train, ConvCase("1-2-1", 1, size=(1, 100, 100), residual="relu")),
    (linear, LinearCase("4-7", 33, size=(129,))),
    (unit_linear, LinearCase(("4-7-4", "8-16-1"), size=(511,))),
)
cases = pytest.mark.parametrize(
    ("op", "case"), CASES, ids=[f"{op.__name__}-{str(case)[:40]}" for op, case in CASES]
)


def tensors(op, case, seed, dtype=torch.float32):
    norms = op is unit_conv2d_train
    return converted(draw(case, seed, norms=norms, comparable=False), dtype)


def assert_same_bits(one, other):
    for name in one:
        assert torch.equal(one[name], other[name]), name


@cases
def test_the_same_bits_with_any_number_of_threads(op, case, seed):
    t = tensors(op, case, seed)
    with backend("cpp"):
        torch.set_num_threads(1)
        once = outputs_and_gradients(op, case, t)
        for threads in (1, 2, 3, 4, 8, 1):
            torch.set_num_threads(threads)
            assert_same_bits(once, outputs_and_gradients(op, case, t))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@cases
def test_the_same_bits_in_other_dtypes(op, case, dtype, seed):
    t = tensors(op, case, seed, dtype)
    with backend("cpp"):
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(op, case, t))
    assert_same_bits(*results)


@cases
def test_the_same_bits_wherever_tensors_lie(op, case, seed):
    """Memory that is aligned to a vector, and memory that is not."""
    t = tensors(op, case, seed)
    with backend("cpp"):
        once = outputs_and_gradients(op, case, t)
        for shift in (1, 3):
            moved = {name: [misaligned(x, shift) for x in ts] for name, ts in t.items()}
            assert_same_bits(once, outputs_and_gradients(op, case, moved))


def misaligned(x, shift):
    storage = torch.empty(x.numel() + shift, dtype=x.dtype)
    return storage[shift:].as_strided(x.shape, x.stride(), shift).copy_(x)


@cases
def test_each_image_is_by_itself(op, case, seed):
    """An image's output does not depend on what else is in the batch, nor on its place there."""
    if op is unit_conv2d_train:
        pytest.skip("batch statistics join the images")
    t = tensors(op, case, seed)
    with backend("cpp"):
        whole = op(case, t)
        some = {**t, "x": [t["x"][0][1:3]], "residual": [r[1:3] for r in t["residual"]]}
        assert torch.equal(whole[1:3], op(case, some))


def test_deterministic_algorithms_are_no_obstacle(every_backend):
    layer, linear_units = conv_layer("hybrid"), linear_layer("hybrid")
    x, features = image(layer).requires_grad_(), torch.randn(5, linear_units.in_features)
    torch.use_deterministic_algorithms(True)
    try:
        for training in (True, False):
            layer.train(training)(x).sum().backward()
        linear_units(features).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_several_python_threads_at_once():
    """Each with a layer and a size of its own, so that buffers kept by a thread would show."""
    names = ["uniform", "hybrid", "wide", "kernels", "deep", "stride"]
    jobs = []
    for i, name in enumerate(names * 3):
        layer = conv_layer(name).train(i % 2 == 0)
        jobs.append((layer, image(layer, batch=2 + i % 3, size=(5 + i, 19 - i))))

    def run(job):
        layer, x = copy.deepcopy(job[0]), job[1].clone().requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        return [y.detach(), x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]

    with backend("cpp"):
        expected = [run(job) for job in jobs]
        with ThreadPoolExecutor(6) as pool:
            for _ in range(3):
                for mine, theirs in zip(pool.map(run, jobs), expected, strict=True):
                    assert all(map(torch.equal, mine, theirs))


def test_one_layer_in_several_python_threads():
    layer = conv_layer("hybrid").eval()
    inputs = [image(layer, batch=1 + i % 3, size=(6 + i, 7)) for i in range(12)]
    with backend("cpp"), torch.no_grad():
        expected = [layer(x) for x in inputs]
        with ThreadPoolExecutor(4) as pool:
            assert all(map(torch.equal, pool.map(layer, inputs), expected))


# --- processes -----------------------------------------------------------------------------------


class Features(Dataset):
    """Items that a frozen stacked layer computes in the loader's worker."""

    def __init__(self, layer, images):
        self.layer, self.images = layer, images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        with torch.no_grad():
            return self.layer(self.images[index : index + 1])[0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_layers_run_in_data_loader_workers(start):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    layer = conv_layer("hybrid").eval()
    images = image(layer, batch=6)
    expected = layer(images).detach()  # starts the threads of this process first
    loader = DataLoader(
        Features(layer, images), batch_size=3, num_workers=1 if start == "spawn" else 2,
        multiprocessing_context=start, timeout=120,
    )  # fmt: skip
    assert torch.equal(torch.cat(list(loader)), expected)


def _train_in_a_group(rank, port, layer, images, results):
    """One of two processes: half of the batch each, gradients averaged by DDP."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        _train_twice(layer, images[rank::2])
        gc.collect()  # nothing that holds the group may outlive it
        results.put([p.grad.tolist() for p in layer.parameters()])
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def _train_twice(layer, images):
    model = nn.parallel.DistributedDataParallel(layer)
    for _ in range(2):
        model.zero_grad()
        model(images).square().mean().backward()


@pytest.mark.slow
def test_distributed_data_parallel_averages_gradients():
    layer = StackedConv2d(["2-4-2", "1-2-1"], norm=None)
    images = torch.randn(8, 3, 6, 7)
    layer(images).square().mean().backward()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    copies = [copy.deepcopy(layer) for _ in range(2)]
    workers = [
        context.Process(target=_train_in_a_group, args=(r, port, copies[r], images, results))
        for r in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    share = tolerance(torch.float32, terms=8 * 42, roundings=20)
    for _ in workers:
        for mine, parameter in zip(results.get(), layer.parameters(), strict=True):
            assert_near(torch.tensor(mine), parameter.grad, share)
