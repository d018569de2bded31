"""Calls the operators of ``torch.ops.bunit_kernels`` with random arguments, right ones changed in a
place or two, past all checks in Python:

    python tests/fuzz/operators.py --seconds 60            calls of processes of their own
    python tests/fuzz/operators.py --call 12345            one of them again, in this process

An exception, or a right answer (that of a loop in float64, ``operator_reference.py``); anything
else, a signal first of all, ends the run with exit code 1 and says which call it was. Under
AddressSanitizer: ``python tests/sanitize.py address``.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from operator_calls import OPERATORS, arguments  # noqa: E402
from operator_reference import expected  # noqa: E402
from reference_cases import random_conv, random_linear  # noqa: E402
from reference_runs import converted, draw  # noqa: E402
from tolerance import assert_near, tolerance  # noqa: E402

from bunit_kernels.activations import ACTIVATIONS  # noqa: E402

DTYPES = (torch.float64, torch.float64, torch.float32, torch.bfloat16, torch.float16)
ODD_INTS = (
    -(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 64, 1025, 2**15 - 1, 2**15,
    2**20 + 1, 2**31 - 1, 2**31, 2**32 + 1, 2**32 + 3, 2**62, 2**63 - 1,
)  # fmt: skip
#: What a refusal is: of ours, or of PyTorch's, which takes no ints past 64 bits.
REFUSALS = (RuntimeError, TypeError, OverflowError)
CALLS_A_PROCESS = 200


# --- right calls, changed ------------------------------------------------------------------------


def random_call(index: int) -> tuple[str, tuple]:
    numbers = random.Random(index)
    name = numbers.choice(list(OPERATORS))
    whole = "unit" in name
    while True:
        depth = None if whole else 1
        linear = "linear" in name
        case = random_linear(numbers, depth) if linear else random_conv(numbers, depth)
        if linear or (case.geometry.rows is not None and not ("train" in name and 0 in case.size)):
            break
    t = draw(case, index, norms="train" in name, comparable=False)
    args = list(arguments(name, case, converted(t, numbers.choice(DTYPES))))
    for _ in range(numbers.choice((0, 1, 1, 1, 2, 2, 3))):
        at = numbers.randrange(len(args))
        args[at] = changed(numbers, args[at])
    return name, tuple(args)


def changed(numbers: random.Random, value):
    if isinstance(value, torch.Tensor):
        return changed_tensor(numbers, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return changed_int(numbers, value)
    if isinstance(value, float):
        return numbers.choice((0.0, -1.0, float("nan"), float("inf"), 0.5))
    if isinstance(value, str):
        return numbers.choice((*ACTIVATIONS, "", "relu\0", "x" * 1000))
    if isinstance(value, list) and value:
        return changed_list(numbers, list(value))
    return value


def changed_int(numbers: random.Random, value: int) -> int:
    return numbers.choice((value + 1, value - 1, numbers.choice(ODD_INTS)))


def changed_list(numbers: random.Random, values: list) -> list:
    at = numbers.randrange(len(values))
    match numbers.randrange(8):
        case 0:
            return values[:at] + values[at + 1 :]
        case 1:
            return [*values, values[at]]
        case 2:
            return values[::-1]
        case 3:
            return []
        case 4:
            return values * 2
        case _:
            values[at] = changed(numbers, values[at])
            return values


def changed_tensor(numbers: random.Random, t: torch.Tensor) -> torch.Tensor:
    if t.is_sparse or t.is_meta or t.dim() == 0 or t.numel() == 0:
        return torch.ones(3)
    dim = numbers.randrange(t.dim())
    match numbers.randrange(14):
        case 0:
            return t.narrow(dim, 0, t.shape[dim] - 1)
        case 1:
            return torch.cat((t, t), dim)
        case 2:
            return t.narrow(dim, 0, 0)
        case 3:
            return t.flatten() if numbers.random() < 0.5 else t.unsqueeze(dim)
        case 4:
            return t.select(dim, 0)
        case 5:
            return t.to(numbers.choice((*DTYPES, torch.int64, torch.bool, torch.complex64)))
        case 6:
            return t.to(numbers.choice(("meta", "cpu")))
        case 7:
            return t.to_sparse()
        case 8:  # overlapping itself
            return t.narrow(dim, 0, 1).expand(t.shape)
        case 9:
            return t.transpose(0, dim).contiguous().transpose(0, dim)
        case 10:  # aligned to nothing, with gaps
            wide = torch.empty((*t.shape, 3), dtype=t.dtype)
            wide[..., 1] = t
            return wide[..., 1]
        case 11:
            return torch.cat((t.flatten()[:1], t.flatten()))[1:].view(t.shape)
        case 12:
            return torch.flip(t, (dim,)) * 1e3
        case _:
            return t.transpose(0, dim)


# --- what comes of them --------------------------------------------------------------------------


def run(index: int) -> bool:
    """Whether call ``index`` was taken.

    Raises:
        AssertionError: it was, and gave a wrong answer.
    """
    name, args = random_call(index)
    operator = getattr(torch.ops.bunit_kernels, name)
    try:
        results = operator(*args)
    except REFUSALS:
        return False
    if any(t.device.type == "meta" for t in torch.utils._pytree.tree_leaves(results)):
        return True
    if name.endswith("train_backward"):
        args = consistent(args)
        results = operator(*args)
    dtype = args[0].dtype
    if "train" in name and dtype != torch.float64:
        return True  # ill-conditioned where channels hardly vary
    results = torch.utils._pytree.tree_leaves(results)
    right = expected(name, args)
    # False of NaN too. What is about as large as the dtype holds may come out infinite.
    if all((t.abs() < 0.99 * torch.finfo(dtype).max).all() for t in right):
        for result, wanted in zip(results, right, strict=False):
            share = 1e-6 if dtype == torch.float64 else 4 * tolerance(dtype, 4096, 60)
            assert_near(result.reshape(wanted.shape), wanted, share, f"{name}, {index}", scale=1.0)
    return True


def consistent(args: tuple) -> tuple:
    """Arguments of the training backward operator with what its forward operator keeps."""
    grad, x, weights, gammas, betas, pre_norms, _, *config, hidden, out = args
    forward = torch.ops.bunit_kernels.stacked_unit_conv2d_train
    recompute = pre_norms[0].dim() == 1
    _, kept, stats = forward(
        x, weights, gammas, betas, None, *config, 1e-5, recompute, hidden, out, "identity"
    )
    return grad, x, weights, gammas, betas, kept, stats, *config, hidden, out


def run_all(first: int, count: int) -> None:
    """Says which call comes next, for whoever finds this process gone."""
    taken = 0
    for index in range(first, first + count):
        print("call", index, flush=True)
        taken += run(index)
    print("taken", taken, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the first call")
    parser.add_argument("--call", type=int, help="one call, in this process")
    parser.add_argument("--calls", type=int, nargs=2, help=argparse.SUPPRESS)  # in a process
    options = parser.parse_args()
    if options.call is not None:
        name, args = random_call(options.call)
        print(name, *args, sep="\n", flush=True)
        print("taken" if run(options.call) else "refused")
        return 0
    if options.calls:
        run_all(*options.calls)
        return 0
    first, taken, end = options.seed, 0, time.monotonic() + options.seconds
    while time.monotonic() < end:
        command = [sys.executable, __file__, "--calls", str(first), str(CALLS_A_PROCESS)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        lines = done.stdout.splitlines()
        if done.returncode != 0:
            print(f"exit code {done.returncode} in {lines[-1:]}\n{done.stderr[-6000:]}")
            return 1
        taken += int(lines[-1].split()[1])
        first += CALLS_A_PROCESS
    print(f"{first - options.seed} calls, {taken} taken, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
