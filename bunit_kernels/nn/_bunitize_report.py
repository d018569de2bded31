"""What ``bunitize`` replaced, what it kept and why, and what that saves."""

from __future__ import annotations

from dataclasses import dataclass

from ..metrics import render_table, saving


@dataclass(frozen=True)
class Replacement:
    """One convolution and the stacked layer in its place, with the norm that each holds.

    FLOPs are those of one item, 2 x multiply-adds, ``None`` where no input size was given.
    """

    name: str
    before: str
    after: str
    parameters: int
    new_parameters: int
    flops: int | None
    new_flops: int | None


@dataclass(frozen=True)
class BunitizeReport:
    """``str()`` gives a table. ``kept`` says of every other convolution why it is one still.

    Parameters are the network's, before and after, frozen ones too.
    """

    replaced: tuple[Replacement, ...]
    kept: dict[str, str]
    parameters: int
    new_parameters: int
    flops: int | None
    new_flops: int | None

    @property
    def parameters_saving(self) -> float:
        return saving(self.new_parameters, self.parameters)

    @property
    def flops_saving(self) -> float | None:
        return None if self.flops is None else saving(self.new_flops, self.flops)

    def __str__(self) -> str:
        titles = ["name", "before", "after", "parameters", "new", "saved"]
        if self.flops is not None:
            titles += ["MFLOPs", "new", "saved"]
        rows = [titles]
        for r in self.replaced:
            rows.append([r.name, r.before, r.after, *self._figures(r)])
        rows.append(["whole network", "", "", *self._figures(self)])
        return render_table(rows)

    def _figures(self, of: Replacement | BunitizeReport) -> list[str]:
        cells = [
            f"{of.parameters:,}",
            f"{of.new_parameters:,}",
            f"{saving(of.new_parameters, of.parameters):.1%}",
        ]
        if of.flops is not None:
            saved = f"{saving(of.new_flops, of.flops):.1%}" if of.flops else ""
            cells += [f"{of.flops / 1e6:,.2f}", f"{of.new_flops / 1e6:,.2f}", saved]
        return cells
