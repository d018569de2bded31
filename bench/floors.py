"""``python bench/floors.py [--gpu H200] [--direction eval]``: the time that no kernel can beat, for
each benchmark layer and way to compute it on a GPU.

    floor = max(FLOPs / rate of the units that do them, least bytes / rate of a copy)

FLOPs and least bytes are those of ``workloads.Case``: input read and output written once, hidden
activations never in memory. Benchmarks on a GPU use the same functions for their share of the
floor, with rates that they measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch
from workloads import DIRECTIONS, WORKLOADS, Case, make_case

#: How the multiply-adds are done: ``cores`` on plain cores in float32, ``packed`` there with two
#: 16-bit values an instruction, ``tensor`` on tensor cores.
UNITS = ("cores", "packed", "tensor")

#: (dtype of the tensors, units): what a table shows, a column each.
WAYS = (
    (torch.float32, "cores"),
    (torch.bfloat16, "cores"),
    (torch.bfloat16, "packed"),
    (torch.bfloat16, "tensor"),
)


@dataclass(frozen=True)
class Gpu:
    """Peak rates: FLOP/s by units (dense, a multiply-add is two) and bytes/s read plus written."""

    name: str
    flops: dict[str, float]
    bytes: float
    source: str

    def measured(self, cores: float | None, copy: float) -> Gpu:
        """The same with a copy's rate, and with ``cores`` the float32 rate, as measured."""
        flops = self.flops if cores is None else {**self.flops, "cores": cores}
        return replace(self, flops=flops, bytes=copy, source=f"{self.source}; measured rates")


# By NVIDIA's datasheets: "H200 Tensor Core GPU" and "H100 Tensor Core GPU" (SXM columns), "A100
# Tensor Core GPU" (80 GB SXM; 16-bit rates of plain cores from the A100 architecture whitepaper,
# table 1, those of the H100 from its own, table 2), "DGX B200" divided by eight. Sparsity, which
# doubles tensor rates in some tables, is left out. The H200's bytes are a copy's, measured; the
# datasheet says 4.8e12. No datasheet tells a rate of 16-bit arithmetic on a B200's plain cores.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("H200", {"cores": 67e12, "packed": 134e12, "tensor": 989e12}, 4.3e12,
            "datasheet, copy rate measured"),
        Gpu("H100", {"cores": 67e12, "packed": 134e12, "tensor": 989e12}, 3.35e12, "datasheet"),
        Gpu("A100", {"cores": 19.5e12, "packed": 39e12, "tensor": 312e12}, 2.039e12, "datasheet"),
        Gpu("B200", {"cores": 80e12, "tensor": 2250e12}, 8e12, "datasheet"),
    )
}  # fmt: skip


def gpu_of(device_name: str) -> Gpu | None:
    """The GPU whose name is in that of a device (``torch.cuda.get_device_name()``)."""
    return next((gpu for name, gpu in GPUS.items() if name in device_name), None)


@dataclass(frozen=True)
class Floor:
    """Least time of one piece of work, and which side sets it."""

    flops: int
    bytes: int
    seconds: float
    binds: str  # "flops" or "bytes"

    def share(self, seconds: float) -> float:
        """What part of a measured time the floor is: 1 is the best there can be."""
        return self.seconds / seconds


def floor(case: Case, gpu: Gpu, dtype: torch.dtype, units: str) -> Floor:
    """The floor of a case with tensors of ``dtype``.

    Raises:
        KeyError: no rate of ``gpu`` is known for ``units``.
    """
    flops = case.flops()
    size = case.bytes() // case.x.element_size() * dtype.itemsize
    arithmetic, memory = flops / gpu.flops[units], size / gpu.bytes
    binds = "flops" if arithmetic > memory else "bytes"
    return Floor(flops, size, max(arithmetic, memory), binds)


def table(gpu: Gpu, direction: str) -> list[str]:
    """Markdown: a layer a row, a way to compute it a column."""
    ways = [(dtype, units) for dtype, units in WAYS if units in gpu.flops]
    rates = ", ".join(f"{units} {rate / 1e12:g} TFLOP/s" for units, rate in gpu.flops.items())
    heads = [f"{str(dtype).removeprefix('torch.')} {units}" for dtype, units in ways]
    lines = [
        f"{gpu.name}, {direction}: {rates}, {gpu.bytes / 1e12:g} TB/s ({gpu.source}); floor in "
        "microseconds, and what sets it",
        "",
        "| layer | GFLOP | MB in float32 | " + " | ".join(heads) + " |",
        "|---" + "|---:" * (2 + len(heads)) + "|",
    ]
    for workload in WORKLOADS:
        case = make_case(workload, direction, device="meta")
        floors = [floor(case, gpu, dtype, units) for dtype, units in ways]
        cells = [f"{f.seconds * 1e6:.3g} {f.binds}" for f in floors]
        first = floors[0]
        cells = [f"{first.flops / 1e9:.3g}", f"{first.bytes / 1e6:.3g}", *cells]
        lines.append(f"| {workload.describe()} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", choices=GPUS, default="H200")
    parser.add_argument("--direction", choices=DIRECTIONS, nargs="*", default=["eval", "train"])
    options = parser.parse_args()
    for direction in options.direction:
        print("\n".join([*table(GPUS[options.gpu], direction), ""]))


if __name__ == "__main__":
    main()
