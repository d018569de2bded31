"""Who is measured: for each peer a small function that makes the callable for a case.

All peers of a group do the same work on the same numbers, each in the memory format and with the
weights prepared as suits it best, outside the timed part. What they give is compared with the loop
over units before anything is timed (:func:`check`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from chains import ByKind, chains_of, densify, fold, unit_gradients
from torch import Tensor, nn
from workloads import DIRECTIONS, Case, Workload

from bunit_kernels import backends, functional

#: Largest relative error (2-norm) against the loop in float32: outputs, gradients. A gradient may
#: differ wholly where a pre-activation is zero but for a rounding, hence the room.
ERRORS = (2e-5, 5e-3)

#: im2col buffers above this many values are filled a few images at a time.
UNFOLD_VALUES = 1 << 24


class Unsupported(RuntimeError):
    """The peer cannot do this case here; the message says why."""


@dataclass
class Variant:
    """``run`` is timed inside ``mode()`` and returns (output,) or (output, gradient of the input,
    *gradients of the parameters); ``gradients`` turns the latter into the loop's order: one flat
    tensor for each parameter of a unit's chain, all units one after another. Of an ``expendable``
    one few rounds are enough where it is slow."""

    run: Callable[[], tuple[Tensor, ...]]
    mode: Callable[[], AbstractContextManager]
    gradients: Callable[[Sequence[Tensor]], list[Tensor]]
    expendable: bool = False


@dataclass(frozen=True)
class Peer:
    """``family``: ``"ours"``, ``"loop"``, ``"library"`` (the forms that a PyTorch user would reach
    for, the best of which is the one to beat) or ``"other"``."""

    name: str
    family: str
    build: Callable[[Case], Variant]
    directions: tuple[str, ...]
    kinds: tuple[str, ...]
    uniform: bool
    effort: str
    checked: bool

    def takes(self, workload: Workload, direction: str, efforts: Sequence[str]) -> bool:
        return (
            direction in self.directions
            and ("linear" if workload.linear else "conv") in self.kinds
            and (workload.uniform or not self.uniform)
            and self.effort in efforts
        )


PEERS: dict[str, Peer] = {}


def peer(
    name, family, directions=DIRECTIONS, kinds=("conv", "linear"), uniform=False,
    effort="quick", checked=True,
):  # fmt: skip
    """Registers a function as a peer. ``effort`` is the least mode that runs it: ``"quick"``,
    ``"default"`` or ``"full"``."""

    def register(build):
        directions_ = (directions,) if isinstance(directions, str) else directions
        PEERS[name] = Peer(name, family, build, directions_, kinds, uniform, effort, checked)
        return build

    return register


def variant(case: Case, forward, parameters=(), gradients=None, x=None, backend=None) -> Variant:
    """The callable for ``forward(x)`` in the case's direction."""
    x = (case.x if x is None else x).detach()
    grad = case.grad

    def mode():
        stack = ExitStack()
        if not case.backward:
            stack.enter_context(torch.inference_mode())
        if backend is not None:
            stack.enter_context(backends.backend(backend))
        return stack

    if not case.backward:
        return Variant(lambda: (forward(x),), mode, list)
    x.requires_grad_()
    if x.dim() == 4 and x.stride(1) == 1:
        grad = grad.to(memory_format=torch.channels_last)
    inputs = (x, *parameters)

    def run():
        y = forward(x)
        return (y, *torch.autograd.grad(y, inputs, grad))

    return Variant(run, mode, gradients or (lambda grads: [g.flatten() for g in grads]))


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


@peer("loop", "loop")
def loop(case):
    """As in the authors' code: split, one module a unit, concatenate."""
    units = chains_of(case)
    widths = case.layer.layout.levels[0].in_widths

    def forward(x):
        return torch.cat([u(part) for u, part in zip(units, x.split(widths, 1), strict=True)], 1)

    per_unit = [list(unit.parameters()) for unit in units]
    count = len(per_unit[0])

    def gradients(grads):
        return [torch.cat([g.flatten() for g in grads[i::count]]) for i in range(count)]

    return variant(case, forward, [p for unit in per_unit for p in unit], gradients)


def _ours(backend, last=False):
    def build(case):
        reason = backends.why_not(backend, case.x.device, case.x.dtype)
        if reason:
            raise Unsupported(reason)
        forward = _our_forward(case)
        x = channels_last(case.x) if last else case.x
        return variant(case, forward, _our_parameters(case), x=x, backend=backend)

    return build


def _our_forward(case):
    layer = case.layer
    if case.level_only:
        weight, bias = layer.weights[0], (layer.read_biases() or [None])[0]
        if case.workload.linear:
            units = layer.layout.stages[0]
            return lambda x: functional.stacked_linear(x, weight, bias, units=units)
        units = layer.geometry.levels[0]
        return lambda x: functional.stacked_conv2d(x, weight, bias, units=units)
    if case.direction == "eval" and layer.norms is not None:
        with torch.no_grad():
            weights, biases = layer.folded()
        units = layer.geometry
        return lambda x: functional.stacked_unit_conv2d(x, weights, biases, units=units)
    return layer


def _our_parameters(case):
    layer = case.layer
    parameters = []
    for i in range(case.depth):
        parameters.append(layer.weights[i])
        if layer.biases is not None:
            parameters.append(layer.biases[i])
        if layer.norms is not None and not case.level_only:
            parameters += [layer.norms[i].weight, layer.norms[i].bias]
    return parameters


peer("cpp", "ours")(_ours("cpp"))
peer("cpp channels_last", "ours", kinds=("conv",))(_ours("cpp", last=True))
peer("auto", "ours")(_ours("auto"))


@peer("cpp module", "ours", directions="eval", kinds=("conv",))
def cpp_module(case):
    """The module as it stands: it folds its norms anew in every call."""
    return variant(case, case.layer, backend="cpp")


def _grouped(last=False, folded=False, compiler=None):
    """One grouped convolution (and norm, and activation) a level and kind of unit. ``compiler``:
    the mode of ``torch.compile``."""

    def build(case):
        module = ByKind(case, fold if folded else None)
        x = case.x
        if last:
            module, x = module.to(memory_format=torch.channels_last), channels_last(x)
        parameters = list(module.parameters())
        run = _compiled(module, compiler) if compiler else module
        return variant(case, run, parameters, lambda g: unit_gradients(module, g), x=x)

    return build


def _compiled(module, compiler):
    return torch.compile(module, mode=None if compiler == "default" else compiler, dynamic=False)


CONV = {"family": "library", "kinds": ("conv",)}
peer("grouped", **CONV)(_grouped())
peer("grouped channels_last", **CONV)(_grouped(last=True))
peer("grouped folded", directions="eval", **CONV)(_grouped(folded=True))
peer("grouped folded channels_last", directions="eval", **CONV)(_grouped(True, True))
COMPILED = {"directions": "eval", "effort": "default", **CONV}
peer("compile", **COMPILED)(_grouped(folded=True, compiler="default"))
peer("compile channels_last", **COMPILED)(_grouped(True, True, "default"))
AUTOTUNED = COMPILED | {"effort": "full"}
peer("compile max-autotune", **AUTOTUNED)(_grouped(folded=True, compiler="max-autotune"))
peer("compile max-autotune channels_last", **AUTOTUNED)(_grouped(True, True, "max-autotune"))


@peer("densified", "other", directions=("eval", "level"))
def densified(case):
    """The block-diagonal weight as one dense weight. It takes the time of an ordinary dense layer
    of the same widths, since nothing looks at the zeros."""
    chains = chains_of(case)
    module = densify(fold(chains) if case.direction == "eval" else chains)
    return variant(case, module)


@peer("dense layer", "other", directions="train", kinds=("conv",), checked=False)
def dense_layer(case):
    """An ordinary layer of the same widths: what a stacked layer replaces. Other numbers, for
    information."""
    module = densify(chains_of(case))
    return variant(case, module, list(module.parameters()))


@peer("unfold + bmm", "other", directions=("eval", "level"), kinds=("conv",), uniform=True)
def unfold_bmm(case):
    """im2col and one batched product a level, a few images at a time."""
    modules = ByKind(case, fold if case.direction == "eval" else None).chains[0]
    largest = max(m.in_channels * 9 for m in modules if isinstance(m, nn.Conv2d))
    chunk = max(1, UNFOLD_VALUES // (largest * max(case.sizes())))

    def level(x, conv):
        columns = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        columns = columns.view(x.shape[0], conv.groups, -1, columns.shape[-1])
        y = conv.weight.view(conv.groups, conv.out_channels // conv.groups, -1) @ columns
        side = -(-x.shape[-1] // conv.stride[0])
        y = y.view(x.shape[0], conv.out_channels, side, side)
        return y if conv.bias is None else y.add_(conv.bias.view(-1, 1, 1))

    def forward(x):
        parts = []
        for part in x.split(chunk):
            for module in modules:
                part = level(part, module) if isinstance(module, nn.Conv2d) else module(part)
            parts.append(part)
        return torch.cat(parts)

    return variant(case, forward)


@peer("vmap", "other", uniform=True)
def vmap(case):
    """torch.func.vmap over the stacked parameters of the units."""
    units = chains_of(case)
    parameters, buffers = torch.func.stack_module_state(list(units))
    unit = units[0]

    def one(parameters, buffers, x):
        return torch.func.functional_call(unit, (parameters, buffers), (x,))

    mapped = torch.func.vmap(one, in_dims=(0, 0, 1), out_dims=1)

    def forward(x):
        parts = x.view(x.shape[0], len(units), -1, *x.shape[2:])
        return mapped(parameters, buffers, parts).flatten(1, 2)

    return variant(case, forward, list(parameters.values()))


def _stacked_linears(case):
    """(weight [U, out, in], bias [U, out], activation) a level."""
    chains = chains_of(case)
    steps = []
    for i in range(case.depth):
        linears = [chain[2 * i] for chain in chains]
        weight = nn.Parameter(torch.stack([m.weight.detach() for m in linears]))
        bias = nn.Parameter(torch.stack([m.bias.detach() for m in linears]))
        activation = chains[0][2 * i + 1] if len(chains[0]) > 1 else None
        steps.append((weight, bias, activation))
    return steps


def _batched(product):
    """A peer for linear units: ``product(x, units, steps)``."""

    def build(case):
        steps = _stacked_linears(case)
        units = case.layer.layout.num_units
        parameters = [p for weight, bias, _ in steps for p in (weight, bias)]
        return variant(case, lambda x: product(x, units, steps), parameters)

    return build


def _bmm(x, units, steps):
    h = x.view(x.shape[0], units, -1).transpose(0, 1)
    for weight, bias, activation in steps:
        h = torch.baddbmm(bias.unsqueeze(1), h, weight.transpose(1, 2))
        h = h if activation is None else activation(h)
    return h.transpose(0, 1).reshape(x.shape[0], -1)


def _einsum(x, units, steps):
    h = x.view(x.shape[0], units, -1)
    for weight, bias, activation in steps:
        h = torch.einsum("bui,uoi->buo", h, weight) + bias
        h = h if activation is None else activation(h)
    return h.reshape(x.shape[0], -1)


def _grouped_mm(x, units, steps):
    h = x.view(x.shape[0], units, -1).transpose(0, 1)
    for weight, bias, activation in steps:
        h = F.grouped_mm(h, weight.transpose(1, 2)) + bias.unsqueeze(1)
        h = h if activation is None else activation(h)
    return h.transpose(0, 1).reshape(x.shape[0], -1)


LINEAR = {"family": "library", "kinds": ("linear",), "uniform": True}
peer("bmm", **LINEAR)(_batched(_bmm))
peer("einsum", **LINEAR)(_batched(_einsum))


@peer("grouped_mm", **LINEAR)
def grouped_mm(case):
    made = _batched(_grouped_mm)(case)
    try:
        with made.mode():
            made.run()
    except RuntimeError as error:  # it has wishes as to dtypes, widths and strides
        raise Unsupported(str(error).splitlines()[0]) from error
    return made


@peer("compile bmm", directions="eval", effort="default", **LINEAR)
def compiled_bmm(case):
    steps, units = _stacked_linears(case), case.layer.layout.num_units
    return variant(case, _compiled(lambda x: _bmm(x, units, steps), "default"))


def peers_for(workload: Workload, direction: str, effort: str) -> list[str]:
    """Names of the peers of a group, ours first."""
    efforts = ("quick", "default", "full")
    efforts = efforts[: efforts.index(effort) + 1]
    names = [name for name, p in PEERS.items() if p.takes(workload, direction, efforts)]
    return sorted(names, key=lambda name: PEERS[name].family != "ours")


def check(
    name: str, made: Variant, expected: tuple[Tensor, ...], errors: tuple[float, float] = ERRORS
) -> None:
    """Runs a variant once and compares it with what the loop gave, in the loop's order; ``errors``
    are allowed of the output and of gradients, as in :data:`ERRORS`.

    Raises:
        AssertionError: a shape differs, or an error is too large; names the tensor.
    """
    actual = results(made)
    if not PEERS[name].checked:
        return
    assert len(actual) == len(expected), f"{name}: {len(actual)} results, not {len(expected)}"
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        what = ("output", "gradient of the input")[i] if i < 2 else f"gradient {i - 1}"
        assert a.shape == e.shape, f"{name}: {what} is {tuple(a.shape)}, not {tuple(e.shape)}"
        error = ((a.to(e.dtype) - e).norm() / e.norm()).item()
        assert error <= errors[i > 0], f"{name}: {what} off by {error:.1e}"


def results(made: Variant) -> tuple[Tensor, ...]:
    """One run's output and gradients, in the loop's order."""
    with made.mode():
        output, *grads = made.run()
    if not grads:
        return (output,)
    return (output.detach(), grads[0], *made.gradients(grads[1:]))
