"""What is measured on a GPU: groups of variants of one layer, direction and dtype, in the order of
their importance, since a run has an end."""

from __future__ import annotations

import torch
from floors import WAYS, Gpu, floor
from harness import Built, first_line
from peers import PEERS, Unsupported, _ours, check, peer, peers_for, results
from timing import measure
from workloads import WORKLOADS, Case, Workload, make_case

from bunit_kernels import PAPER_POOL
from bunit_kernels.backends import BackendUnavailable

peer("cuda", "ours")(_ours("cuda"))
peer("cuda channels_last", "ours", kinds=("conv",))(_ours("cuda", last=True))
peer("triton", "ours")(_ours("triton"))
peer("triton channels_last", "ours", kinds=("conv",))(_ours("triton", last=True))

#: Relative error (2-norm) against the loop in float32: outputs, gradients. Peers may use TF32, as
#: PyTorch lets cuDNN by default; rounding to 16 bits flips activations near zero, which moves
#: gradients more than values.
ERRORS = {torch.float32: (2e-3, 2e-2), torch.bfloat16: (2e-2, 0.25)}

#: Compiled only here: each takes half a minute of a run that has few.
COMPILED = ("2-4-2_n128_32x32", "hybrid_n64_32x32")

#: What only a CPU has.
LEFT_OUT = ("cpp", "cpp channels_last", "cpp module")

BY_NAME = {workload.name: workload for workload in WORKLOADS}

#: One uniform layer for each kind of unit in the paper's pool, as large as the hybrid layer: their
#: times, weighted by how often a kind occurs there, are those of a layer of the same FLOPs and
#: bytes with one kind a launch.
POOL = tuple(Workload(f"pool_{units}", units, 60, 64, 32) for units in map(str, PAPER_POOL))

GROUPS = (
    *((BY_NAME[n], d, t) for n, d, t in (
        ("2-4-2_n128_32x32", "eval", torch.bfloat16),
        ("2-4-2_n128_32x32", "eval", torch.float32),
        ("hybrid_n64_32x32", "eval", torch.bfloat16),
        ("2-4-2_n128_32x32", "train", torch.bfloat16),
        ("2-4-2_n128_32x32", "train", torch.float32),
        ("hybrid_n64_32x32", "eval", torch.float32),
        ("hybrid_n64_32x32", "train", torch.bfloat16),
    )),
    *((w, "eval", torch.bfloat16) for w in POOL),
    *((w, "eval", t) for w in WORKLOADS[1:] for t in (torch.bfloat16, torch.float32)
      if w.name not in COMPILED),
    *((w, "train", t) for w in WORKLOADS[1:] for t in (torch.bfloat16, torch.float32)
      if w.name not in COMPILED),
    *((w, "level", torch.bfloat16) for w in WORKLOADS),
    *((w, "level_grad", torch.bfloat16) for w in WORKLOADS),
)  # fmt: skip


def run_group(
    workload: Workload, direction: str, dtype: torch.dtype, gpu: Gpu | None, budget: float
) -> dict:
    """Builds, checks and times all variants of one group."""
    made = make_case(workload, direction, "cuda")
    case = cast(made, dtype)
    built = build(case, names_of(workload, direction), expected_of(made, dtype), dtype)
    times = measure(built.variants, budget)
    names = [*times, *built.skipped, *built.failed]
    return {
        "workload": workload.name,
        "description": workload.describe(),
        "direction": direction,
        "dtype": str(dtype).removeprefix("torch."),
        "flops": case.flops(),
        "bytes": case.bytes(),
        "floors": floors_of(case, gpu, dtype),
        "families": {name: PEERS[name].family for name in names},
        "times": {name: t.summary() for name, t in times.items()},
        "skipped": built.skipped,
        "failed": built.failed,
    }


def names_of(workload: Workload, direction: str) -> list[str]:
    if workload in POOL:
        return ["cuda", "cuda channels_last"]
    effort = "default" if workload.name in COMPILED else "quick"
    return [n for n in peers_for(workload, direction, effort) if n not in LEFT_OUT]


def floors_of(case: Case, gpu: Gpu | None, dtype: torch.dtype) -> dict[str, float]:
    """Seconds, for each way to compute in ``dtype`` whose rate is known."""
    if gpu is None:
        return {}
    like = torch.float32 if dtype == torch.float32 else torch.bfloat16
    ways = [units for t, units in WAYS if t == like and units in gpu.flops]
    return {units: floor(case, gpu, dtype, units).seconds for units in ways}


def cast(case: Case, dtype: torch.dtype) -> Case:
    """The case in ``dtype``; norms stay in float32, as under mixed precision."""
    layer = make_case(case.workload, case.direction, "cuda").layer.to(dtype)
    for norm in layer.norms or ():
        norm.float()
    grad = None if case.grad is None else case.grad.to(dtype)
    return Case(case.workload, case.direction, layer, case.x.to(dtype), grad)


def expected_of(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """The loop's results in float32, for parameters and inputs that ``dtype`` can hold."""
    rounded = cast(case, dtype)
    layer = rounded.layer.float()
    grad = None if rounded.grad is None else rounded.grad.float()
    exact = Case(case.workload, case.direction, layer, rounded.x.float(), grad)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return results(PEERS["loop"].build(exact))


def build(case: Case, names: list[str], expected, dtype: torch.dtype) -> Built:
    """Makes the variants that run here and are right."""
    torch._dynamo.reset()
    built = Built()
    for name in names:
        try:
            torch.set_default_dtype(dtype)  # modules that peers make
            variant = PEERS[name].build(case)
            torch.set_default_dtype(torch.float32)
            check(name, variant, expected, ERRORS[dtype])
        except (Unsupported, BackendUnavailable, NotImplementedError) as error:
            built.skipped[name] = first_line(error)
        except AssertionError as error:
            built.failed[name] = str(error)
        except Exception as error:
            # A compiler may be missing, and not every roundabout way takes every dtype.
            roundabout = name.startswith("compile") or PEERS[name].family == "other"
            where = built.skipped if roundabout else built.failed
            where[name] = f"{type(error).__name__}: {first_line(error)}"
        else:
            built.variants[name] = variant
        finally:
            torch.set_default_dtype(torch.float32)
    return built
