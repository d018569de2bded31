"""How a kernel's launch configuration is chosen: measured once a shape class, kept on disk.

A kernel lists a few configurations, and says for the arguments of a launch which are worth trying,
the likeliest first. ``triton.autotune`` measures those when it meets a shape class for the first
time, and keeps its choice in Triton's cache folder. A shape class is what the key names: widths,
kernel sizes, dtypes, memory format; not the number of images or rows, which neither measures nor
compiles anything anew.

The likeliest is taken unmeasured with ``BUNIT_TRITON_TUNE=0``, by the interpreter, and while a CUDA
graph is captured, when nothing can be measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
import triton
from triton.runtime.jit import KernelInterface

#: Whether Triton's interpreter runs the kernels: as Triton itself saw it when it was imported.
INTERPRETED = triton.knobs.runtime.interpret
TUNED = os.environ.get("BUNIT_TRITON_TUNE") != "0" and not INTERPRETED

#: Of all configurations and the launch's arguments by name, those worth trying.
Candidates = Callable[[Sequence[triton.Config], dict], Sequence[triton.Config]]


class Tuned(KernelInterface):
    """A kernel that ``triton.jit`` made, and its configurations."""

    def __init__(self, kernel, configs: Sequence[triton.Config], key, candidates: Candidates):
        self.kernel, self.configs, self.candidates = kernel, list(configs), candidates

        def prune(configs, given, **rest):
            return candidates(configs, given | rest)

        self.measured = triton.autotune(
            self.configs,
            list(key),
            prune_configs_by={"early_config_prune": prune},
            cache_results=True,
        )(kernel)

    def run(self, *args, **constants):
        if TUNED and not torch.cuda.is_current_stream_capturing():
            return self.measured.run(*args, **constants)
        config = self.likeliest(*args, **constants)
        return self.kernel.run(*args, **constants, **config.all_kwargs())

    def likeliest(self, *args, **constants) -> triton.Config:
        given = dict(zip(self.kernel.arg_names, args, strict=False))
        candidates = self.candidates(self.configs, given | constants)
        if INTERPRETED:  # a program takes milliseconds whatever its size
            return max(candidates, key=lambda config: config.kwargs["BLOCK"])
        return candidates[0]


def tuned(
    configs: Sequence[triton.Config],
    key: Sequence[str],
    candidates: Candidates = lambda configs, given: configs,
) -> Callable[..., Tuned]:
    """Decorates a kernel that ``triton.jit`` made.

    Args:
        configs: all configurations.
        key: names of the arguments that make a shape class; dtypes belong to it always.
        candidates: which configurations to try for the arguments of a launch, the likeliest first.
    """
    return lambda kernel: Tuned(kernel, configs, key, candidates)
