"""``python -m bunit_kernels.models``: the table of the README, counted anew; with ``--paper``
that of the paper's networks, by its own convention."""

import argparse

from ..command_line import run
from .paper_networks import paper_table
from .summary import summary_table

PROGRAM = "python -m bunit_kernels.models"


def main() -> None:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Sizes of the ready-made networks.")
    parser.add_argument(
        "--paper", action="store_true", help="the paper's networks beside what it prints"
    )
    print(paper_table() if parser.parse_args().paper else summary_table())


if __name__ == "__main__":
    raise SystemExit(run(PROGRAM, main))
