"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer (``address``), and their
threads under ThreadSanitizer (``thread``); both where none is named:

    python tests/sanitize.py [address] [thread] [--calls 300]

Builds the compiled part with the sanitizer's flags beside a copy of the package (under
build/sanitized), and runs forward and backward passes of it in Python with the sanitizer's library
loaded first. Any report fails. That there would be one is tried first, on errors made on purpose
(sanitized/planted.cpp).

``address`` runs the named cases of all tests and random ones, in every dtype, with the kernels of
each instruction set that the processor has: what they read and write of tensors, of scratch memory
and of their own plans; and so many random calls of operators (fuzz/operators.py). ``thread`` runs
layers large enough to be shared among threads, also from several Python threads at once. There our
loops run on plain threads (sanitized/threads.cpp) in place of libtorch's pool: what is covered is
how our kernels share work, scratch memory and plans, not the pool itself, nor anything inside
PyTorch, which is not compiled with sanitizers.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOLDER = ROOT / "build" / "sanitized"

# After setup.py's own -O3, with which a file takes minutes.
FLAGS = {
    "address": "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined "
    "-fno-sanitize-recover=undefined",
    "thread": "-O1 -g1 -fno-omit-frame-pointer -fsanitize=thread",
}
LIBRARIES = {"address": ("libasan.so", "libstdc++.so"), "thread": ("libtsan.so", "libstdc++.so")}
ERRORS = {
    "address": {"past the end": "heap-buffer-overflow", "overflow": "signed integer overflow"},
    "thread": {"race": "ThreadSanitizer: data race"},
}
SETTINGS = {
    # What Python and PyTorch keep until the end is no leak of a kernel's.
    # An allocation that is too large is an exception of PyTorch's.
    "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1",
    "OMP_NUM_THREADS": "1",
    "BUNIT_BACKEND": "cpp",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sanitizers", nargs="*", help="address, thread; both where none is named")
    parser.add_argument("--calls", type=int, default=300, help="random ones, under address")
    options = parser.parse_args()
    names = options.sanitizers or list(FLAGS)
    calls = {"address": f"run_address({options.calls})", "thread": "run_thread()"}
    if unknown := [name for name in names if name not in FLAGS]:
        parser.error(f"unknown sanitizer {unknown[0]!r}, expected one of {', '.join(FLAGS)}")
    for name in names:
        start = time.perf_counter()
        build(name)
        print(f"{name}: built in {time.perf_counter() - start:.0f} s", flush=True)
        for what, report in ERRORS[name].items():
            status, said = run(name, f"plant({what!r})")
            if status == 0 or report not in said:
                print(f"{name}: an error made on purpose ({what}) was not reported:\n{said}")
                return 1
        for isa in ("avx512", "avx2", "generic") if name == "address" else ("",):
            status, said = run(name, calls[name], isa)
            if "one that this processor has" in said:
                continue
            print(f"{name} {isa}: {said[-8000:] if status else said.strip()}", flush=True)
            if status:
                return 1
    return 0


# --- building ------------------------------------------------------------------------------------


def build(name: str) -> None:
    """A copy of the package whose compiled part setup.py builds as ever, with a compiler that adds
    the sanitizer's flags; and the two libraries of sanitized/."""
    import torch

    out = FOLDER / name
    out.mkdir(parents=True, exist_ok=True)
    compiler = out / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "g++")} "$@" {FLAGS[name]}\n')
    compiler.chmod(0o755)
    environment = {**os.environ, "CXX": shlex.quote(str(compiler)), "BUNIT_CUDA": "0"}
    places = ["--build-lib", str(out), "--build-temp", str(out / "objects")]
    check([sys.executable, "setup.py", "--quiet", "build_ext", *places], environment)
    shutil.copytree(
        ROOT / "bunit_kernels",
        out / "bunit_kernels",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
        dirs_exist_ok=True,
    )
    library = Path(torch.__file__).parent
    flags = ["-std=c++20", "-fPIC", "-shared", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    flags += ["-isystem", str(library / "include"), f"-L{library / 'lib'}"]
    for source, libraries in (("planted", ["-ltorch_cpu", "-lc10"]), ("threads", [])):
        paths = [str(HERE / "sanitized" / f"{source}.cpp"), "-o", str(out / f"{source}.so")]
        check([str(compiler), *flags, *paths, *libraries], environment)


def check(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


def run(name: str, call: str, isa: str = "") -> tuple[int, str]:
    """Exit status and what was said of a Python under the sanitizer that calls a function of this
    file."""
    out = FOLDER / name
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    preloaded = [
        subprocess.check_output([*compiler, f"-print-file-name={library}"], text=True).strip()
        for library in LIBRARIES[name]
    ]
    if name == "thread":
        preloaded.append(str(out / "threads.so"))
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": f"{out}:{HERE}"}
    environment |= {"BUNIT_CPU_ISA": isa} if isa else {}
    # ThreadSanitizer wants its shadow memory at fixed addresses.
    command = ["setarch", "-R"] if name == "thread" and shutil.which("setarch") else []
    command += ["env", f"LD_PRELOAD={' '.join(preloaded)}"]
    command += [sys.executable, "-c", f"import sanitize; sanitize.{call}"]
    done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


# --- what runs under a sanitizer -----------------------------------------------------------------


def plant(what: str) -> None:
    import torch

    torch.ops.load_library(str(Path.cwd() / "planted.so"))
    torch.ops.bunit_sanitized.plant(what)


def run_address(calls: int) -> None:
    sys.path.append(str(HERE / "fuzz"))
    import torch
    from operators import run_all
    from reference_cases import random_conv, random_linear
    from reference_checks import NAMED
    from reference_runs import unit_conv2d, unit_conv2d_train, unit_linear

    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    jobs = [(op, case, dtypes[i % 4]) for i, (op, case) in enumerate(NAMED)]
    for index in range(150):
        numbers = random.Random(index)
        dtype = dtypes[index % 4]
        op = unit_conv2d_train if index % 2 else unit_conv2d
        jobs += [(op, random_conv(numbers), dtype), (unit_linear, random_linear(numbers), dtype)]
    for job in jobs:
        forward_and_backward(*job)
    refuse_wrong_arguments()
    run_all(0, calls)
    print(len(jobs), "cases,", calls, "random calls,", torch.ops.bunit_kernels.cpu_isa())


def run_thread() -> None:
    import torch
    from module_cases import conv_layer, image
    from test_backend_contexts import overlapping_blocks
    from test_threads import CASES

    for op, case in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            forward_and_backward(op, case, dtype)
    layers = [conv_layer(name) for name in ("uniform", "hybrid", "wide", "stride")]

    def step(index):
        layer = layers[index % 4]  # shared by all threads; in eval mode nothing of it changes
        x = image(layer, batch=2 + index % 3, size=(5 + index, 19 - index)).requires_grad_()
        torch.autograd.grad(layer(x).square().sum(), x)

    for layer in layers:
        layer.eval()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(step, range(12)))
    overlapping_blocks()
    print(2 * len(CASES), "cases and 12 steps from 4 threads")


def forward_and_backward(op, case, dtype) -> None:
    from reference_runs import converted, draw, outputs_and_gradients

    import bunit_kernels

    assert Path(bunit_kernels.__file__).is_relative_to(FOLDER), "not what build() made"
    norms = op.__name__ == "unit_conv2d_train"
    tensors = converted(draw(case, norms=norms, comparable=False), dtype)
    outputs_and_gradients(op, case, tensors)


def refuse_wrong_arguments() -> None:
    """Straight to the operators, past the checks in Python: an exception, and nothing is read."""
    import torch
    from operator_calls import wrong_calls

    ops = torch.ops.bunit_kernels
    x, w = torch.randn(2, 4, 5, 5), torch.randn(8, 2, 3, 3)
    for units in ([], [2, 3, 1, 2], [0, 3, 1, 2, 4], [2, 0, 1, 2, 4], [9, 3, 1, 2, 4]):
        try:
            ops.stacked_conv2d(x, w, None, units, 1, 1, "relu")
        except RuntimeError:
            continue
        raise AssertionError(f"units {units} were taken")
    for name, call in wrong_calls().items():
        try:
            call()
        except RuntimeError:
            continue
        raise AssertionError(f"{name} does not fit and was taken")


if __name__ == "__main__":
    sys.exit(main())
