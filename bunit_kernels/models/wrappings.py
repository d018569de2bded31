"""What other projects put around a ``state_dict`` in their checkpoints, taken off."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

#: Under what key a checkpoint with other things in it keeps the state: akamaster's
#: pytorch_resnet_cifar10, PyTorch's ImageNet example and Lightning; torchvision's references;
#: kuangliu's pytorch-cifar; PyTorch's tutorials; ``bunit_kernels.train``.
KEYS = ("state_dict", "model", "net", "model_state_dict", "state")

#: What modules around a network put before its names: DataParallel, DistributedDataParallel and
#: AveragedModel; ``torch.compile``; Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")

_COUNTER = "n_averaged"  # of AveragedModel, beside the network's own names


def unwrap(
    checkpoint: Mapping[str, object], own: Collection[str]
) -> tuple[dict[str, str], Mapping[str, Tensor], list[str]]:
    """The state of a network in ``checkpoint``.

    Args:
        own: the network's own names, which are no prefixes to take off.

    Returns:
        The checkpoint's name of each tensor by the name without prefixes, the tensors by the
        checkpoint's names, and what was taken off, a phrase each.

    Raises:
        TypeError: there is no mapping from names to tensors in it.
        ValueError: there are several.
    """
    state, said = _find_state(checkpoint)
    names = {key: key for key in state}
    while (prefix := _prefix_of(names, own)) is not None:
        if prefix == "module." and _COUNTER in names:
            del names[_COUNTER]
            said.append(f"{_COUNTER!r} was left out")
        names = {key.removeprefix(prefix): source for key, source in names.items()}
        said.append(f"{prefix!r} was taken off {len(names)} names")
    inner = {key: _without_compiled_parts(key, own) for key in names}
    changed = sum(key != name for key, name in inner.items())
    if changed and len(set(inner.values())) == len(inner):
        names = {inner[key]: source for key, source in names.items()}
        said.append(f"'_orig_mod.' was taken out of {changed} names")
    return names, state, said


def _find_state(checkpoint: object) -> tuple[Mapping[str, Tensor], list[str]]:
    if _is_state(checkpoint):
        return checkpoint, []
    found = []
    if isinstance(checkpoint, Mapping):
        found = [key for key in KEYS if _is_state(checkpoint.get(key)) and checkpoint[key]]
    if len(found) > 1:
        raise ValueError(
            f"the checkpoint holds several states, under {', '.join(map(repr, found))}: pass one "
            f"of them, such as checkpoint[{found[0]!r}]"
        )
    if found:
        others = [str(key) for key in checkpoint if key != found[0]]
        beside = f"; left out beside it: {', '.join(others[:6])}" if others else ""
        return checkpoint[found[0]], [f"the state was taken from {found[0]!r}{beside}"]
    holds = ""
    if isinstance(checkpoint, Mapping):
        holds = f" with {', '.join(map(repr, [*checkpoint][:6]))}"
    raise TypeError(
        f"expected a state_dict, a mapping from names to tensors, or a mapping with one under "
        f"{', '.join(map(repr, KEYS))}; got {type(checkpoint).__name__}{holds}; of a pickled "
        "module take its state_dict()"
    )


def _is_state(x: object) -> bool:
    return isinstance(x, Mapping) and all(isinstance(v, Tensor) for v in x.values())


def _prefix_of(names: Collection[str], own: Collection[str]) -> str | None:
    """The prefix that stands before all names, once more than before the network's own."""
    for prefix in PREFIXES:
        times = 2 if any(key.startswith(prefix) for key in own) else 1
        inner = [key for key in names if prefix != "module." or key != _COUNTER]
        if inner and all(key.startswith(prefix * times) for key in inner):
            return prefix
    return None


def _without_compiled_parts(key: str, own: Collection[str]) -> str:
    """``layer1._orig_mod.0.weight``, of a network whose ``layer1`` alone is compiled."""
    return key if key in own else key.replace("._orig_mod.", ".")
