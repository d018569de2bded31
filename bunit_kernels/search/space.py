"""Every table of units that a search may draw, and what each costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from ..metrics import count_flops, count_parameters
from ..models import create_model, dense_counterpart
from ..models.tables import NORMAL
from ..train.errors import UserError
from .settings import CANDIDATES, SearchSettings

#: What ``create_model`` takes as ``units``, and JSON and ``--model-arg`` can hold.
UnitTable = dict[str, str | list[str]]


class Cost(NamedTuple):
    """Learnable parameters, and FLOPs of one item; of a network, or what a change adds."""

    parameters: int
    flops: int

    def plus(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.flops + other.flops)

    def minus(self, other: Cost) -> Cost:
        return Cost(self.parameters - other.parameters, self.flops - other.flops)


class Space:
    """The places of a model's table, and what fits each.

    A place is an entry of a stage, ``layer2.0`` the first of ``layer2``; a stage has ``turns`` of
    them, or as many as it has blocks where that is less. What fits is found by building the network
    with that entry alone, without memory for its weights; what it adds to a network of normal
    blocks is counted there. Blocks keep their shapes whatever is in them, so a table costs what its
    entries add.

    Attributes:
        arguments: the model's, but for its units.
        dense: cost of the dense counterpart.
        choices: for every place what fits there, and what it adds.

    Args:
        shape: ``(C, H, W)`` of one image.

    Raises:
        UserError: the model takes no table, or does not fit the images; a candidate fits nowhere;
            nothing fits a place.
    """

    def __init__(self, settings: SearchSettings, shape: tuple[int, int, int], num_classes: int):
        self.model, self.shape = settings.model, shape
        self.arguments = {
            "num_classes": num_classes, "in_channels": shape[0], "image_size": list(shape[1:])
        }  # fmt: skip
        self.dense = self._count(self._meta(dense_counterpart(self.model), {}))
        self.arguments |= {"shuffle": True} if settings.shuffle else {}
        normal = self._meta(self.model, {"units": {}})
        plan = getattr(normal, "units", None)
        if not isinstance(plan, Mapping):
            raise UserError(f"model {self.model!r} has no table of units by stage to search")
        self._normal = self._count(normal)
        self._blocks = {stage: len(entries) for stage, entries in plan.items()}
        self._turns = {stage: min(settings.turns, n) for stage, n in self._blocks.items()}
        candidates = CANDIDATES if settings.candidates is None else settings.candidates
        self.choices: dict[str, dict[str, Cost]] = {}
        errors: dict[str, str] = {}
        for stage, turns in self._turns.items():
            for turn in range(turns):
                place = _place(stage, turn)
                self.choices[place] = self._fitting(stage, turn, candidates, errors)
        self._check(candidates, errors, all_must_fit=settings.candidates is not None)

    def table(self, chosen: Mapping[str, str]) -> UnitTable:
        """The shortest table of the network whose places are ``chosen``; two choices that come to
        the same blocks come to the same table."""
        table: UnitTable = {}
        for stage, blocks in self._blocks.items():
            turns = self._turns[stage]
            entries = [chosen[_place(stage, block % turns)] for block in range(blocks)]
            period = next(n for n in range(1, turns + 1) if entries[n:] == entries[:-n])
            table[stage] = entries[0] if period == 1 else entries[:period]
        return table

    def build(self, table: UnitTable) -> nn.Module:
        """The network of a table, with torch's current seed, on the CPU."""
        return create_model(self.model, **self.arguments, units=table)

    def build_dense(self) -> nn.Module:
        """The dense counterpart, likewise."""
        return create_model(dense_counterpart(self.model), **self.arguments)

    def cost(self, chosen: Mapping[str, str]) -> Cost:
        """Of the network whose places are ``chosen``."""
        cost = self._normal
        for place, unit in chosen.items():
            cost = cost.plus(self.choices[place][unit])
        return cost

    def excess(self, cost: Cost, budget: Cost) -> float:
        """How far a cost is over the budget, as a share of the dense network's; 0 within it."""
        over = cost.minus(budget)
        return max(over.parameters / self.dense.parameters, over.flops / self.dense.flops, 0.0)

    def smallest(self, budget: Cost) -> dict[str, str]:
        """The choices whose cost is the least share of the budget.

        Found exactly: place by place, only what no other choice undercuts in both figures is kept.

        Raises:
            UserError: that network, counted whole, does not cost what its entries add.
        """
        front: list[tuple[Cost, dict[str, str]]] = [(self._normal, {})]
        for place, choices in self.choices.items():
            grown = [
                (cost.plus(added), {**chosen, place: unit})
                for cost, chosen in front
                for unit, added in choices.items()
            ]
            front = _undercut_by_none(grown)

        def share(item: tuple[Cost, dict[str, str]]) -> float:
            cost = item[0]
            return max(cost.parameters / budget.parameters, cost.flops / budget.flops)

        cost, chosen = min(front, key=share)
        whole = self._count(self._meta(self.model, {"units": self.table(chosen)}))
        if whole != cost:
            raise UserError(
                f"model {self.model!r} cannot be searched: what one block costs depends on others "
                f"({whole} together, {cost} one by one)"
            )
        return chosen

    def _fitting(
        self, stage: str, turn: int, candidates: tuple[str, ...], errors: dict[str, str]
    ) -> dict[str, Cost]:
        found = {}
        for unit in candidates:
            if unit == NORMAL:
                found[unit] = Cost(0, 0)
                continue
            entries = [NORMAL] * self._turns[stage]
            entries[turn] = unit
            try:
                with torch.device("meta"):
                    model = self.build({stage: entries})
            except (TypeError, ValueError) as error:
                errors.setdefault(unit, str(error))
                continue
            found[unit] = self._count(model).minus(self._normal)
        return found

    def _check(
        self, candidates: tuple[str, ...], errors: dict[str, str], all_must_fit: bool
    ) -> None:
        fit = {unit for choices in self.choices.values() for unit in choices}
        unfit = [unit for unit in candidates if unit not in fit]
        if unfit and all_must_fit:
            raise UserError(
                f"candidate {unfit[0]!r} fits nowhere in {self.model}: {errors[unfit[0]]}"
            )
        for place, choices in self.choices.items():
            if not choices:
                raise UserError(
                    f"none of the candidates {', '.join(candidates)} fits {place} of {self.model}; "
                    f"{NORMAL!r} always does"
                )

    def _meta(self, name: str, arguments: dict) -> nn.Module:
        try:
            with torch.device("meta"):
                return create_model(name, **self.arguments, **arguments)
        except TypeError as error:
            raise UserError(f"cannot search the units of {self.model!r}: {error}") from error
        except ValueError as error:
            raise UserError(str(error)) from error

    def _count(self, model: nn.Module) -> Cost:
        return Cost(count_parameters(model), count_flops(model, self.shape))


def _place(stage: str, turn: int) -> str:
    return f"{stage}.{turn}"


def _undercut_by_none(
    items: list[tuple[Cost, dict[str, str]]],
) -> list[tuple[Cost, dict[str, str]]]:
    kept: list[tuple[Cost, dict[str, str]]] = []
    for item in sorted(items, key=lambda item: item[0]):
        if not kept or item[0].flops < kept[-1][0].flops:
            kept.append(item)
    return kept
