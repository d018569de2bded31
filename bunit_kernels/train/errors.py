"""What goes wrong through no fault of the program."""

from __future__ import annotations

import importlib
from types import ModuleType


class UserError(Exception):
    """Input that cannot be used. The message is all the user sees, so it names what came and what
    was expected; the command line ends with exit code 2."""


class TrainingError(Exception):
    """Training that started well and cannot go on; exit code 1."""


class TimeUp(Exception):
    """Training that was to last no longer, its checkpoint written; exit code 3."""


def require(module: str, package: str, purpose: str, extra: str = "train") -> ModuleType:
    """Imports a module of an optional extra.

    Raises:
        UserError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs {package}, which cannot be imported ({error}); "
            f"pip install {package}, or all that this part needs, in a checkout of bunit_kernels: "
            f"pip install -e '.[{extra}]'"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message: torch's go on for pages."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
