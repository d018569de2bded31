"""The parts of a search: its space, its score, its settings."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch
from search_cases import tiny_model  # noqa: F401
from torch import nn

from bunit_kernels import StackedConv2d, metrics
from bunit_kernels.models import create_model
from bunit_kernels.search import SearchSettings
from bunit_kernels.search.progress import Bar
from bunit_kernels.search.score import naswot
from bunit_kernels.search.space import Cost, Space
from bunit_kernels.train.errors import UserError


def space_of(shape=(1, 6, 6), classes=2, **settings) -> Space:
    return Space(SearchSettings(**{"model": "bunit_tiny", **settings}), shape, classes)


def test_space_knows_what_fits_and_what_it_costs():
    """Networks of the cheapest, the dearest and mixed tables are counted whole."""
    space = space_of(candidates=["normal", "2-4-m", "1-2-2", "4-4-4"], turns=3)
    assert list(space.choices) == [
        "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer2.2"
    ]  # fmt: skip
    assert list(space.choices["layer1.0"]) == ["normal", "2-4-m", "4-4-4"]  # 8 -> 8 channels
    assert list(space.choices["layer2.0"]) == ["normal", "2-4-m", "1-2-2"]  # 8 -> 16 channels
    assert list(space.choices["layer2.1"]) == ["normal", "2-4-m", "4-4-4"]  # 16 -> 16 channels
    assert space.choices["layer2.1"]["normal"] == Cost(0, 0)

    costs = {}
    for units in itertools.product(*space.choices.values()):
        chosen = dict(zip(space.choices, units, strict=True))
        costs[units] = space.cost(chosen)
    for units in list(costs)[::40]:
        model = create_model(
            "bunit_tiny", units=space.table(dict(zip(space.choices, units, strict=True)))
        )
        sizes = metrics.count_parameters(model), metrics.count_flops(model, (1, 6, 6))
        assert sizes == costs[units]
    for shares in ((1.0, 1.0), (0.2, 1.0), (1.0, 0.1)):
        budget = Cost(*(int(s * d) for s, d in zip(shares, space.dense, strict=True)))

        def share(cost, budget=budget):
            return max(c / b for c, b in zip(cost, budget, strict=True))

        smallest = costs[tuple(space.smallest(budget).values())]
        assert share(smallest) == min(map(share, costs.values()))


def test_space_takes_units_with_kernel_sizes_and_groups():
    light = "4-8-8-m:k1,3,1:g1,8,1"
    space = space_of(candidates=["normal", light], turns=1)
    assert [list(fitting) for fitting in space.choices.values()] == [["normal", light]] * 2
    model = space.build(table := space.table(dict.fromkeys(space.choices, light)))
    assert table == {"layer1": light, "layer2": light}
    cost = space.cost(dict.fromkeys(space.choices, light))
    assert cost == (metrics.count_parameters(model), metrics.count_flops(model, (1, 6, 6)))
    assert "2 x 4-8-8-4:k1,3,1:g1,8,1 conv" in str(metrics.layers(model, (1, 6, 6)))


def test_table_is_the_shortest_of_the_same_blocks():
    space = space_of(candidates=["normal", "2-4-m"], turns=3)  # 2 blocks, 3 blocks
    places = list(space.choices)

    def table(*units):
        return space.table(dict(zip(places, units, strict=True)))

    n, u = "normal", "2-4-m"
    assert table(n, n, u, u, u) == {"layer1": n, "layer2": u}
    assert table(n, u, u, n, u) == {"layer1": [n, u], "layer2": [u, n]}
    assert table(u, n, u, u, n) == {"layer1": [u, n], "layer2": [u, u, n]}
    for units in itertools.product([n, u], repeat=5):
        blocks = create_model("bunit_tiny", units=table(*units)).units
        assert blocks["layer1"] + blocks["layer2"] == units


@pytest.mark.parametrize(
    "model, places",
    [
        ("bunit_vgg16_bn", 5),
        ("bunit_mobilenet_v2", 7),
        ("bunit_resnet18", 4),
        ("bunit_resnet50", 4),
    ],
)
def test_every_backbone_has_a_space(model, places):
    space = space_of((3, 32, 32), 10, model=model, turns=1)
    assert len(space.choices) == places
    assert all("normal" in choices for choices in space.choices.values())
    assert sum(len(choices) > 1 for choices in space.choices.values()) >= 4


def test_score_by_hand():
    images = torch.tensor([[1.0, -1, 1, 1], [1, 1, -1, 1], [-1, 1, 1, 1]]).reshape(3, 1, 2, 2)
    # Each two codes agree in two of four ReLUs: K = 2 + 2 I, of eigenvalues 8, 2 and 2.
    assert naswot(nn.ReLU(), images) == pytest.approx(math.log(8 * 2 * 2))
    assert naswot(nn.ReLU(inplace=True), images.clone()) == pytest.approx(math.log(32))
    assert naswot(nn.ReLU6(), images) == pytest.approx(math.log(32))
    with pytest.raises(ValueError, match="a network with ReLUs"):
        naswot(nn.Tanh(), images)
    same = naswot(nn.ReLU(), images[[0, 0, 1]])  # eigenvalues 0, 4 + ..., ...
    assert math.isfinite(same) and same < math.log(32)


def test_score_sees_inside_stacked_layers():
    """As counted by hooks on the units' own ReLU modules."""
    layer = StackedConv2d(["2-4-2", "1-3-1", "2-4-2"]).train()
    x = torch.randn(6, layer.in_channels, 5, 5)
    units, outputs = layer.to_units(), []
    for module in units.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
            module.register_forward_hook(lambda module, args, output: outputs.append(output))
    for unit, part in zip(units, x.split([u.in_channels for u in layer.units], 1), strict=True):
        unit(part)
    codes = torch.cat([(output > 0).flatten(1) for output in outputs], 1).double()
    assert codes.shape[1] == 16 * 25
    expected = torch.linalg.slogdet(codes @ codes.T + (1 - codes) @ (1 - codes).T)[1].item()
    assert naswot(layer, x) == pytest.approx(expected, rel=1e-6)


def test_settings_are_checked():
    with pytest.raises(UserError, match="--candidates must be 'normal' or like '2-4-m'"):
        SearchSettings(candidates=[])
    with pytest.raises(UserError, match="got \\(3,\\)"):
        SearchSettings(candidates=[3])
    assert SearchSettings(lr=0.5).training({"layer1": "2-4-m"}).lr == 0.5


def test_bars_on_a_terminal_and_lines_elsewhere(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Bar("candidates", 4, 2, "candidate", quiet=False) as bar:
        bar.step("best 1")
        bar.step("best 2")
    text = capsys.readouterr().err
    assert "candidates: 100%" in text and "4/4" in text and "best 2" in text
    monkeypatch.undo()
    with Bar("candidates", 40, 0, "candidate", quiet=False) as bar:
        for _ in range(8):
            bar.step("so far")
    assert capsys.readouterr().err.splitlines() == [
        "candidates: 4/40, so far", "candidates: 8/40, so far"
    ]  # fmt: skip
