"""``bunitize``: a network's convolutions replaced by stacked layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from ..activations import check_activation
from ..layout import StackLayout
from ..units import UnitSpec
from ._bunitize_report import BunitizeReport, Replacement
from ._choose_units import Target, Units, choose_units
from ._convolutions import Convolution, find_convolutions, stacked_layer
from ._cost import conv_cost, measure, stack_cost
from ._fit_units import fit_units, unit_pattern
from ._replace import replace_modules
from ._select import Rule, select


def bunitize(
    model: nn.Module,
    unit: str | UnitSpec | Sequence[int] = "2-4-2",
    *,
    where: Rule | None = None,
    keep: Rule | None = None,
    min_width: int = 16,
    of_each_block: str = "all",
    target_flops: float | None = None,
    target_params: float | None = None,
    input_size: Sequence[int] | None = None,
    activation: str | None = None,
    shuffle: bool = False,
    inplace: bool = False,
) -> tuple[nn.Module, BunitizeReport]:
    """Replaces k x k convolutions of any network by stacked layers, to be trained anew.

    **Widths.** ``ceil(in_channels / first width)`` units take the input's channels, the last one
    those that are left, narrower all through: 10 -> 10 channels by 4-8-4 are 4-8-4, 4-8-4, 2-4-2.
    The last width is what the convolution's output asks for: 64 -> 128 by 2-4-2 are 32 units 2-4-4.
    Dilation and the padding that keeps the size are those of the convolution, for every level, and
    so is the kernel size where the unit names none; its stride is the first level's. Of units of
    other widths depthwise levels stay depthwise, and groups as many as still divide the channels.

    **Norm and activation.** A BatchNorm that alone takes the convolution's output moves into the
    stacked layer, which then has one after every level; so does an activation that alone takes
    what comes out of that. ``nn.Identity`` takes their places, so that nothing is done twice. What
    serves several calls (the one ReLU of torchvision's residual blocks) or is a function stays, and
    the layer then ends without activation. Where no such BatchNorm follows, the layer has biases
    and no norm. What follows what is read as ``fuse`` reads it.

    **Which.** Square convolutions of an odd kernel above 1x1, of one group and with zero padding
    that keeps the size. With a target, only as many of them, and by as wide units (``unit``'s
    widths times 1, 2, 4, ...), as it needs.

    Args:
        model: any network; must run on one item of ``input_size`` where that is given.
        unit: two levels or more; the last width may be ``m``, kernel sizes must be odd.
        where: which of them to replace: a module's name, a pattern (``"layer3.*.conv2"``, as
            ``fnmatch`` has it), several of these, or a function of a name and a convolution;
            ``None`` for all.
        keep: which to leave, said in the same way.
        min_width: leaves convolutions with fewer channels, in or out, unless ``where`` names them.
        of_each_block: ``"all"``, ``"first"`` or ``"last"`` of the convolutions that share a
            parent module.
        target_flops, target_params: share of the whole network's to save at least, above 0 and
            below 1.
        input_size: shape of one item, ``(C, H, W)``; FLOPs are counted where it is given.
        activation: of hidden levels; ``None`` for the one that moved in, else ReLU.
        shuffle: of every stacked layer that is put in (:class:`StackedConv2d`). It lets units see
            one another's channels where the next layer is stacked too; before a dense layer, which
            mixes all channels anyway, it changes nothing but their order.
        inplace: changes ``model`` itself; otherwise a copy, and ``model`` is left as it was.

    Returns:
        The network and a report, whose ``str()`` is a table of what was replaced and saved.

    Raises:
        TypeError: an argument of another kind.
        ValueError: nothing to replace; a target that cannot be met (says what can); a name that is
            no convolution, or of one that no stacked layer can stand for (says why); a pattern that
            matches none; a target of FLOPs without ``input_size``. ``model`` is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"bunitize takes an nn.Module, got {type(model).__name__}")
    pattern = unit_pattern(unit)
    if activation is not None:
        check_activation(activation)
    if type(shuffle) is not bool:
        raise TypeError(f"shuffle must be a bool, got {shuffle!r} ({type(shuffle).__name__})")
    _check_targets(target_flops, target_params, input_size)
    convolutions = find_convolutions(model)
    chosen, kept = select(model, convolutions, where, keep, min_width, of_each_block)
    if not chosen:
        raise ValueError(_nothing_to_replace(kept))
    parameters = sum(p.numel() for p in model.parameters())
    flops, pixels = None, {}
    if input_size is not None:
        flops, pixels = measure(model, chosen, input_size)
    targets = []
    if target_flops is not None:
        targets.append(Target("flops", target_flops, flops))
    if target_params is not None:
        targets.append(Target("parameters", target_params, parameters))
    if targets:
        plan = choose_units(chosen, pattern, pixels, targets)
        kept |= {c.name: "not needed for the target" for c in chosen if c.name not in plan}
        chosen = [c for c in chosen if c.name in plan]
    else:
        plan = {c.name: fit_units(pattern, c.conv.in_channels, c.conv.out_channels) for c in chosen}

    layers = {c: stacked_layer(c, plan[c.name], activation, shuffle, model) for c in chosen}
    report = _report(chosen, plan, kept, pixels, parameters, flops)
    if not inplace:
        model = copy.deepcopy(model)
    new = {model.get_submodule(found.name): layer for found, layer in layers.items()}
    for found in chosen:
        for name in filter(None, (found.norm, found.activation)):
            new[model.get_submodule(name)] = nn.Identity().train(found.conv.training)
    replace_modules(model, new)
    return model, report


def _check_targets(target_flops, target_params, input_size) -> None:
    for name, target in (("target_flops", target_flops), ("target_params", target_params)):
        if target is not None and not 0 < target < 1:
            raise ValueError(f"{name} is a share to save, above 0 and below 1, got {target!r}")
    if target_flops is not None and input_size is None:
        raise ValueError("target_flops needs input_size, the shape of one item: FLOPs depend on it")


def _nothing_to_replace(kept: dict[str, str]) -> str:
    if not kept:
        return "nothing to replace: the model has no convolution inside it"
    listed = [f"{name}: {reason}" for name, reason in kept.items()]
    more = [f"and {len(listed) - 8} more"] if len(listed) > 8 else []
    return f"nothing to replace; of the model's convolutions {'; '.join(listed[:8] + more)}"


def _report(
    chosen: list[Convolution],
    plan: dict[str, Units],
    kept: dict[str, str],
    pixels: dict[str, int],
    parameters: int,
    flops: int | None,
) -> BunitizeReport:
    rows = []
    for found in chosen:
        size = pixels.get(found.name)
        before = conv_cost(found, size)
        after = stack_cost(plan[found.name], found, size)
        rows.append(
            Replacement(
                found.name, _describe(found), StackLayout(plan[found.name]).describe(),
                before.parameters, after.parameters, before.flops, after.flops,
            )
        )  # fmt: skip
    new_flops = None if flops is None else flops + sum(r.new_flops - r.flops for r in rows)
    new_parameters = parameters + sum(r.new_parameters - r.parameters for r in rows)
    return BunitizeReport(tuple(rows), kept, parameters, new_parameters, flops, new_flops)


def _describe(found: Convolution) -> str:
    conv = found.conv
    parts = [
        f"{conv.kernel_size[0]}x{conv.kernel_size[1]} {conv.in_channels} -> {conv.out_channels}"
    ]
    for name in ("stride", "dilation"):
        value = getattr(conv, name)[0]
        parts += [f"{name} {value}"] if value != 1 else []
    parts += [type(module).__name__ for module in found.absorbed]
    return ", ".join(parts)
