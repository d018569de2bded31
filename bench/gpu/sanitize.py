"""Small cases for compute-sanitizer: each operation forward and backward, uniform and hybrid, in
both memory formats, at sizes that leave remainders everywhere."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from reference_cases import ConvCase, LinearCase
from reference_runs import (
    conv2d,
    converted,
    draw,
    linear,
    on_device,
    outputs_and_gradients,
    unit_conv2d,
    unit_conv2d_train,
    unit_linear,
)

from bunit_kernels import backend

CASES = (
    (conv2d, ConvCase("2-4", 5, size=(2, 9, 13))),
    (conv2d, ConvCase(("1-2", "3-1:k5"), size=(2, 9, 13), stride=2, layout="channels_last")),
    (unit_conv2d, ConvCase("2-4-2", 5, size=(3, 35, 33), residual="relu")),
    (unit_conv2d, ConvCase(("1-2-1", "2-1-2", "3-2-1:k5"), size=(2, 17, 9))),
    (unit_conv2d, ConvCase("2-4-4", 5, size=(2, 9, 11), stride=2, layout="channels_last")),
    (unit_conv2d_train, ConvCase("2-4-2", 5, size=(3, 17, 13), residual="relu")),
    (unit_conv2d_train, ConvCase(("1-2-1", "2-1-2"), size=(3, 9, 7), layout="channels_last")),
    (linear, LinearCase("4-8", 5, size=(33,))),
    (unit_linear, LinearCase(("4-8-4", "1-2-1"), size=(33,))),
)


def main() -> None:
    with backend("cuda"):
        for op, case in CASES:
            for dtype in (torch.float32, torch.bfloat16):
                norms = op is unit_conv2d_train
                tensors = converted(draw(case, norms=norms, comparable=False), dtype)
                outputs_and_gradients(op, case, on_device(tensors, "cuda"))
    torch.cuda.synchronize()
    print(f"{len(CASES)} cases ran")


if __name__ == "__main__":
    main()
