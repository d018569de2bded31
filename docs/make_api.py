"""``python docs/make_api.py [FILE]``: docs/api.md, written anew from signatures and docstrings.

A script of our own: what was tried (griffe2md) lists every undocumented helper, drops the shapes
that stand as comments in signatures, and links types to anchors that are not there. Here a
signature is the source's own lines, and public names are what ``__init__.py`` files export.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import FunctionType, ModuleType

import bunit_kernels
from bunit_kernels import layout

HEAD = "# API reference\n\nMade from the docstrings by `python docs/make_api.py`: change those.\n"
ROLE_OR_LITERAL = re.compile(r":\w+:`~?\.*(?:\w+\.)*?(\w+)`|``(.+?)``")
SECTION = re.compile(r"(Args|Attributes|Raises|Returns):")
ITEM = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")


def reference() -> str:
    exported = [getattr(bunit_kernels, name) for name in bunit_kernels.__all__]
    modules = [bunit_kernels, *filter(inspect.ismodule, exported), layout]
    return "\n".join([HEAD, *(part for module in modules for part in _module(module))])


def _module(module: ModuleType) -> list[str]:
    parts = [f"## `{module.__name__}`\n", _markdown(module.__doc__)]
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    for name in getattr(module, "__all__", own):
        value = getattr(module, name)
        if inspect.isclass(value):
            parts += _class(value)
        elif inspect.isfunction(value):
            parts += _entry("###", name, _signature(value), value.__doc__)
        elif not inspect.ismodule(value):
            parts += _entry("###", name, f"{name} = {value!r}", None)
    return parts


def _class(cls: type) -> list[str]:
    if "__init__" in vars(cls) and "__init__" in inspect.getsource(cls):
        made = re.sub(
            r"def __init__\((\s*)self,\s*", rf"{cls.__name__}(\1", _signature(cls.__init__)
        )
    else:  # a dataclass
        fields = inspect.get_annotations(cls).items()
        made = "\n".join([f"class {cls.__name__}:", *(f"    {n}: {kind}" for n, kind in fields)])
    parts = _entry("###", cls.__name__, made, cls.__doc__)
    bases = [base for base in cls.__mro__ if base.__module__.startswith("bunit_kernels")]
    members = {name: member for base in reversed(bases) for name, member in vars(base).items()}
    for name, member in members.items():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            parts += _entry("####", f"{cls.__name__}.{name}", _signature(function), member.__doc__)
    return parts


def _entry(level: str, name: str, signature: str, doc: str | None) -> list[str]:
    # Blocks of "python" are run by a test, those of "py" look the same and are not.
    return [f"{level} `{name}`\n\n```py\n{signature}\n```\n", *([_markdown(doc)] if doc else [])]


def _signature(function: FunctionType) -> str:
    """A function's ``def`` with its arguments and their comments, as the source has it."""
    source = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(source).body[0]
    header = "\n".join(source.splitlines()[node.lineno - 1 : node.body[0].lineno - 1])
    return header.removesuffix(":").replace(f"def {node.name}", f"def {function.__name__}", 1)


def _markdown(doc: str | None) -> str:
    """A docstring as Markdown: sections as lists, roles and literals as code."""
    lines, in_section = [], False
    for line in inspect.cleandoc(doc or "").splitlines():
        line = ROLE_OR_LITERAL.sub(r"`\1\2`", line)
        if SECTION.fullmatch(line):
            line, in_section = f"**{line}**\n", True
        elif line and not line.startswith(" "):
            in_section = False
        elif in_section:  # items stand 4 in, and go on 8 in; as Markdown 0 and 2
            item = ITEM.fullmatch(line)
            line = (
                f"- `{item[1]}`: {item[2]}" if item else re.sub("^ {4}( {2})?( {2})?", r"\1", line)
            )
        lines.append(re.sub("::$", ":", line))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1] if sys.argv[1:] else Path(__file__).with_name("api.md")).write_text(
        reference()
    )
