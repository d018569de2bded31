"""``python -m bunit_kernels.report``, see ``cli.py``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
