"""Which convolutions to replace, and by how wide units, so that a network saves what is asked."""

from __future__ import annotations

from dataclasses import dataclass

from ..units import UnitSpec
from ._convolutions import Convolution
from ._cost import Cost, conv_cost, stack_cost
from ._fit_units import fit_units, of_widths

Units = tuple[UnitSpec, ...]

#: Wider units than 16-32-16 are left out unless asked for: from 32 channels on PyTorch's own
#: convolutions are as fast (README, "Where it does not pay"), a stack of them saves no time.
_WIDEST = 32


@dataclass(frozen=True)
class Target:
    """A share to save of what a network has ``total`` of; ``of`` is ``flops`` or ``parameters``."""

    of: str
    share: float
    total: int

    def saved(self, dense: Cost, compact: Cost) -> int:
        return getattr(dense, self.of) - getattr(compact, self.of)

    @property
    def amount(self) -> float:
        return self.share * self.total


def choose_units(
    convolutions: list[Convolution],
    pattern: UnitSpec,
    pixels: dict[str, int],
    targets: list[Target],
) -> dict[str, Units]:
    """Units for some of the convolutions, by name, that reach every target.

    Greedy and deterministic. A convolution's choices are to stay dense, and units of ``pattern``'s
    widths times ..., 4, 2, 1. Again and again the step to the next choice is taken that brings the
    targets nearest; once they are met, steps are taken back, the latest first, while they stay met.

    Raises:
        ValueError: ``pattern`` everywhere does not reach a target; says what it saves.
    """
    ladders = {c.name: _ladder(c, pattern, pixels.get(c.name)) for c in convolutions}
    _check_reachable(ladders, pattern, targets)
    position = dict.fromkeys(ladders, 0)

    def step(name: str, target: Target) -> int:
        """What the next step saves; less than nothing it never does, see ``_ladder``."""
        (_, here), (_, there) = ladders[name][position[name] : position[name] + 2]
        return target.saved(here, there)

    missing = {target.of: target.amount for target in targets}
    taken: list[str] = []
    while any(amount > 0 for amount in missing.values()):
        steps = [name for name, ladder in ladders.items() if position[name] + 1 < len(ladder)]

        def merit(name: str) -> tuple[float, int]:
            # Of steps that reach a target the smallest, of others the largest.
            saved = [(step(name, t), missing[t.of]) for t in targets if missing[t.of] > 0]
            return sum(min(s / m, 1.0) for s, m in saved), -sum(s for s, _ in saved)

        best = max(steps, key=merit)
        for target in targets:
            missing[target.of] -= step(best, target)
        position[best] += 1
        taken.append(best)
    for name in reversed(taken):
        position[name] -= 1
        back = {target.of: step(name, target) for target in targets}
        if all(missing[of] + amount <= 0 for of, amount in back.items()):
            missing = {of: missing[of] + amount for of, amount in back.items()}
        else:
            position[name] += 1
    return {name: ladders[name][i][0] for name, i in position.items() if i > 0}


def _ladder(
    found: Convolution, pattern: UnitSpec, pixels: int | None
) -> list[tuple[Units | None, Cost]]:
    """Choices from dense to ``pattern``, each with fewer parameters (and FLOPs) than the last."""
    c_in, c_out = found.conv.in_channels, found.conv.out_channels
    factor = 1
    while (
        4 * factor * pattern.in_channels <= c_in  # two units at least
        and 2 * factor * max(pattern.widths[:-1]) <= _WIDEST
    ):
        factor *= 2
    ladder: list[tuple[Units | None, Cost]] = [(None, conv_cost(found, pixels))]
    while factor >= 1:
        scaled = of_widths(pattern, [width * factor for width in pattern.widths])
        units = fit_units(scaled, c_in, c_out)
        cost, last = stack_cost(units, found, pixels), ladder[-1][1]
        if cost.parameters < last.parameters and (pixels is None or cost.flops < last.flops):
            ladder.append((units, cost))
        factor //= 2
    return ladder


def _check_reachable(ladders: dict, pattern: UnitSpec, targets: list[Target]) -> None:
    for target in targets:
        most = sum(target.saved(ladder[0][1], ladder[-1][1]) for ladder in ladders.values())
        if most < target.amount:
            what = "FLOPs" if target.of == "flops" else "parameters"
            raise ValueError(
                f"{target.share:.1%} of the {what} cannot be saved: units {pattern} in all "
                f"{len(ladders)} convolutions that may be replaced save {most / target.total:.1%}"
            )
