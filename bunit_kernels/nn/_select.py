"""Which convolutions a rule picks: names, patterns or a predicate, and which of each block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from ._convolutions import Convolution

Rule = str | Iterable[str] | Callable[[str, nn.Module], bool]

_OF_EACH_BLOCK = {"all": slice(None), "first": slice(1), "last": slice(-1, None)}


def select(
    model: nn.Module,
    convolutions: list[Convolution],
    where: Rule | None,
    keep: Rule | None,
    min_width: int,
    of_each_block: str,
) -> tuple[list[Convolution], dict[str, str]]:
    """The convolutions to replace, and why each other one is not.

    Raises:
        TypeError, ValueError: see ``bunitize``.
    """
    if of_each_block not in _OF_EACH_BLOCK:
        raise ValueError(
            f"of_each_block must be one of {', '.join(_OF_EACH_BLOCK)}, got {of_each_block!r}"
        )
    if type(min_width) is not int or min_width < 1:
        raise ValueError(f"min_width must be an int of at least 1, got {min_width!r}")
    wanted, named = _matcher(model, convolutions, where, "where")
    kept, _ = _matcher(model, convolutions, keep, "keep")
    refused = [c for c in convolutions if c.name in named and c.why_not]
    if refused:
        raise ValueError(
            "no stacked layer can stand for "
            + ", ".join(f"{c.name!r}: {c.why_not}" for c in refused)
        )
    reasons: dict[str, str] = {}
    blocks: dict[str, list[Convolution]] = {}
    for found in convolutions:
        width = min(found.conv.in_channels, found.conv.out_channels)
        if where is not None and not wanted(found):
            reasons[found.name] = "not in where"
        elif keep is not None and kept(found):
            reasons[found.name] = "in keep"
        elif found.why_not:
            reasons[found.name] = found.why_not
        elif width < min_width and found.name not in named:
            reasons[found.name] = f"{width} channels wide, min_width is {min_width}"
        else:
            blocks.setdefault(found.parent, []).append(found)
    chosen = []
    for block in blocks.values():
        picked = block[_OF_EACH_BLOCK[of_each_block]]
        chosen += picked
        reasons |= {
            c.name: f"not the {of_each_block} of its block" for c in block if c not in picked
        }
    return chosen, reasons


def _matcher(model, convolutions, rule, argument) -> tuple[Callable[[Convolution], bool], set[str]]:
    """A predicate for the rule, and the names that it says in full."""
    if rule is None:
        return (lambda found: False), set()
    if callable(rule):
        return (lambda found: bool(rule(found.name, found.conv))), set()
    patterns = (rule,) if isinstance(rule, str) else tuple(rule)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(
            f"{argument} must be a name, a pattern, several of them or a function of a name and "
            f"a convolution, got {rule!r}"
        )
    modules = dict(model.named_modules())
    names = [found.name for found in convolutions]
    named = {pattern for pattern in patterns if not set(pattern) & set("*?[")}
    for pattern in patterns:
        if pattern in named and pattern not in names:
            raise ValueError(_no_convolution(pattern, modules, names, argument))
        if pattern not in named and not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{argument}={pattern!r} matches no convolution of the model")
    return (lambda found: any(fnmatchcase(found.name, p) for p in patterns)), named


def _no_convolution(name: str, modules: dict, names: list[str], argument: str) -> str:
    if name not in modules:
        close = get_close_matches(name, names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"{argument}: the model has no module {name!r}{hint}"
    kind = type(modules[name]).__name__
    inside = [n for n in names if n.startswith(f"{name}.")]
    hint = f"; for the {len(inside)} in it say {name + '.*'!r}" if inside else ""
    return f"{argument}: {name!r} is a {kind}, not a convolution{hint}"
