"""``python -m bunit_kernels.report``, see ``cli.py``."""

from ..command_line import run
from .cli import PROGRAM, main

if __name__ == "__main__":
    raise SystemExit(run(PROGRAM, main))
