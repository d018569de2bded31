"""The least times in bench/floors.py, against counts by hand and PyTorch's own counter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import floors
from workloads import WORKLOADS, Workload, make_case

BY_NAME = {workload.name: workload for workload in WORKLOADS}
H200 = floors.GPUS["H200"]


def test_tiny_units_by_hand():
    """A 2-4-2 unit of 3x3 convolutions: 2 * (2*4 + 4*2) * 9 = 288 FLOP and four values a pixel."""
    case = make_case(BY_NAME["2-4-2_n128_32x32"], "eval", "meta")
    pixels = 128 * 32 * 32 * 64
    found = floors.floor(case, H200, torch.bfloat16, "cores")
    assert found.flops == 288 * pixels
    assert found.bytes == 4 * 2 * pixels
    assert found.binds == "flops"
    assert found.seconds == pytest.approx(288 * pixels / 67e12)
    assert floors.floor(case, H200, torch.bfloat16, "tensor").binds == "bytes"
    assert floors.floor(case, H200, torch.float32, "cores").bytes == 2 * found.bytes


def test_stride_and_training_by_hand():
    """Stride 2 leaves a quarter of the pixels to both levels; backward is twice forward."""
    workload = Workload("mine", "2-4-4", 3, batch=5, size=8, stride=2)
    forward = floors.floor(make_case(workload, "eval", "meta"), H200, torch.float32, "cores")
    assert forward.flops == 2 * (2 * 4 + 4 * 4) * 9 * 16 * 3 * 5
    assert forward.bytes == 4 * (2 * 64 + 4 * 16) * 3 * 5
    step = floors.floor(make_case(workload, "train", "meta"), H200, torch.float32, "cores")
    assert step.flops == 3 * forward.flops
    assert step.bytes == 4 * (3 * 2 * 64 + 2 * 4 * 16) * 3 * 5


@pytest.mark.parametrize("name", ["2-4-2_n1_56x56", "hybrid_n64_32x32", "linear_4-8-4_n128"])
def test_flops_are_those_that_the_counter_of_pytorch_counts(name):
    workload = BY_NAME[name].small()
    case = make_case(workload, "eval")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        case.layer(case.x)
    assert floors.floor(case, H200, torch.float32, "cores").flops == counter.get_total_flops()


def test_share():
    case = make_case(BY_NAME["linear_4-8-4_n128"], "eval", "meta")
    found = floors.floor(case, H200, torch.float32, "cores")
    assert found.share(2 * found.seconds) == 0.5


def test_measured_rates_take_the_place_of_the_datasheet():
    gpu = H200.measured(cores=50e12, copy=4e12)
    assert gpu.flops == {**H200.flops, "cores": 50e12} and gpu.bytes == 4e12
    assert H200.measured(None, 4e12).flops == H200.flops
    case = make_case(BY_NAME["2-4-2_n128_32x32"], "eval", "meta")
    slower = floors.floor(case, gpu, torch.float32, "cores").seconds
    assert slower > floors.floor(case, H200, torch.float32, "cores").seconds


def test_gpus_are_found_by_their_device_names():
    assert floors.gpu_of("NVIDIA H200") is H200
    assert floors.gpu_of("NVIDIA H100 80GB HBM3") is floors.GPUS["H100"]
    assert floors.gpu_of("NVIDIA A100-SXM4-80GB") is floors.GPUS["A100"]
    assert floors.gpu_of("NVIDIA GeForce RTX 4090") is None


@pytest.mark.parametrize("gpu", floors.GPUS)
@pytest.mark.parametrize("direction", ["eval", "train"])
def test_table_holds_every_layer(gpu, direction):
    lines = floors.table(floors.GPUS[gpu], direction)
    head, rows = lines[2], lines[4:]
    assert len(rows) == len(WORKLOADS)
    assert all(row.count("|") == head.count("|") for row in rows)
    assert ("packed" in head) == ("packed" in floors.GPUS[gpu].flops)
