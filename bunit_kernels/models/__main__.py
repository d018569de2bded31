"""``python -m bunit_kernels.models``: the table of the README, counted anew."""

from .summary import summary_table

if __name__ == "__main__":
    print(summary_table())
