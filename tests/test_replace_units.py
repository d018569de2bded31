"""``replace_units``: which units come, what the others keep, and that training goes on."""

from __future__ import annotations

import copy

import pytest
import torch
from module_cases import CONV_LAYERS, LINEAR_LAYERS, conv_layer, linear_layer
from torch import nn

from bunit_kernels import PAPER_POOL, StackedConv2d, StackedLinear, UnitSpec, metrics, models
from bunit_kernels.nn import fuse, replace_units

LAYERS = [(conv_layer, n) for n in CONV_LAYERS] + [(linear_layer, n) for n in LINEAR_LAYERS]


def state_of(layer: nn.Module, unit: int) -> dict[str, torch.Tensor]:
    return layer.to_units()[unit].state_dict()


def assert_kept(before: nn.Module, after: nn.Module, units) -> None:
    for unit in units:
        old, new = state_of(before, unit), state_of(after, unit)
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old)


@pytest.mark.parametrize("make, name", LAYERS)
def test_the_others_keep_everything(make, name):
    layer = make(name).eval()
    before = copy.deepcopy(layer)
    last = len(layer.units) - 1
    fresh = replace_units(layer, [last], [layer.units[last]], seed=0)
    assert_kept(before, layer, range(last + 1))  # the layer itself is as it was
    assert_kept(before, fresh, range(last))
    assert type(fresh) is type(layer) and fresh.units == layer.units
    assert [m.training for m in fresh.modules()] == [m.training for m in layer.modules()]
    new = state_of(fresh, last)
    for key, value in state_of(layer, last).items():
        if "running_mean" in key:
            assert not new[key].any()
        elif "running_var" in key:
            assert (new[key] == 1).all()
        elif "num_batches" not in key:
            assert not torch.equal(new[key], value)
    shape = (7, 7) if make is conv_layer else ()
    x = torch.randn(3, layer.in_channels, *shape)
    outputs = zip(*(metrics.unit_outputs(nn.Sequential(m), x, "0") for m in (layer, fresh)),
                  strict=True)  # fmt: skip
    same = [torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in outputs]
    assert all(same[:-1])


def test_units_of_other_kinds_but_the_same_widths():
    layer = StackedConv2d("2-4-2", 6)  # uniform, packed as a grouped convolution
    pool = ["2-1-2", "2-7-2:k5", "1-2-1"]
    fresh = replace_units(layer, [1, 4], pool, seed=3)
    assert_kept(layer, fresh, (0, 2, 3, 5))
    assert {str(fresh.units[u]) for u in (1, 4)} <= {"2-1-2", "2-7-2:k5"}
    assert fresh.out_channels == 12 and fresh.extra_repr() != layer.extra_repr()
    assert [norm.num_features for norm in fresh.norms] == [
        level.out_channels for level in fresh.layout.levels
    ]
    x = torch.randn(2, 12, 8, 8)
    loop = fresh.eval().to_units()
    parts = zip(loop, x.split(2, 1), strict=True)
    torch.testing.assert_close(fresh(x), torch.cat([u(p) for u, p in parts], 1))
    again = StackedConv2d(fresh.units)  # what it is saved as loads
    again.load_state_dict(fresh.state_dict())
    torch.testing.assert_close(again.eval()(x), fresh(x))
    drawn = {str(replace_units(layer, [0], pool, seed=s).units[0]) for s in range(20)}
    assert drawn == {"2-1-2", "2-7-2:k5"}


def test_a_hybrid_layer_may_become_uniform():
    layer = StackedLinear(["2-1-2", "2-4-2", "2-4-2"], norm="batch")
    fresh = replace_units(layer, [0], ["2-4-2"])
    assert fresh.weights[0].shape == (12, 2)
    assert_kept(layer, fresh, (1, 2))


def test_sums_stay_where_widths_cannot():
    layer = StackedConv2d(["1-2-3", "2-1-2", "3-2-1"], norm=None)
    fresh = replace_units(layer, [0, 2], ["2-9-2", "4-4-4"], seed=0)
    assert [str(u) for u in fresh.units] == ["2-9-2", "2-1-2", "2-9-2"]
    assert_kept(layer, fresh, [1])
    assert (fresh.in_channels, fresh.out_channels) == (6, 6)
    layer = StackedConv2d(["2-2-2"] * 30 + ["5-5-5"] * 2)
    for seed in range(5):
        fresh = replace_units(layer, range(32), ["1-1-1", "3-1-3", "4-2-4"], seed=seed)
        assert (fresh.in_channels, fresh.out_channels) == (70, 70)
    # Those that the pool has are not drawn into it.
    layer = StackedConv2d(["1-2-1", "1-2-3", "3-2-1"])
    fresh = replace_units(layer, [0, 1, 2], ["1-5-1", "2-2-2", "3-3-3"], seed=1)
    assert str(fresh.units[0]) == "1-5-1"
    assert sorted(str(u) for u in fresh.units[1:]) in (["1-5-1", "3-3-3"], ["2-2-2", "2-2-2"])


def test_seed_decides_units_and_weights():
    layer = StackedConv2d(PAPER_POOL * 3)
    numbers = range(len(layer.units))
    a, b, c = (replace_units(layer, numbers, seed=seed) for seed in (1, 1, 2))
    state = torch.get_rng_state()
    assert a.units == b.units
    assert all(torch.equal(a.state_dict()[k], v) for k, v in b.state_dict().items())
    assert not torch.equal(a.weights[0], c.weights[0])
    replace_units(layer, numbers, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(replace_units(layer, numbers))
    assert torch.equal(found[0].weights[0], found[1].weights[0])
    assert not torch.equal(replace_units(layer, numbers).weights[0], found[0].weights[0])


def test_new_weights_are_drawn_as_a_units_own():
    layer = StackedConv2d("4-4-4", 200, norm=None)
    fresh = replace_units(layer, range(100), ["4-9-4"], seed=0)
    for unit, spread in ((0, 1 / 36**0.5), (150, 1 / 36**0.5)):
        weight = fresh.layout.levels[0].unpack(fresh.weights[0])[unit]
        assert 0.9 * spread < weight.abs().max() <= spread
    bound = 1 / 81**0.5  # of the second level, nine channels of 3x3
    second = torch.cat([w.flatten() for w in fresh.layout.levels[1].unpack(fresh.weights[1])[:100]])
    assert 0.99 * bound < second.abs().max() <= bound


def test_frozen_and_low_precision_layers_stay_so():
    layer = StackedConv2d("2-4-2", 3, norm="batch").bfloat16().requires_grad_(False)
    fresh = replace_units(layer, [1], ["2-3-2"])
    assert {p.dtype for p in fresh.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in fresh.parameters())
    assert {b.dtype for b in fresh.buffers()} == {torch.bfloat16, torch.int64}


def test_in_a_network_that_trains_on():
    torch.manual_seed(0)
    net = models.create_model("bunit_cnn", num_units=6, in_channels=3, image_size=8)
    x, labels = torch.randn(8, 3, 8, 8), torch.arange(8)

    def train(net, steps):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for _ in range(steps):
            loss = nn.functional.cross_entropy(net.train()(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    train(net, 3)
    (name, layer), *_ = metrics.kinds.stacked_layers(net).items()
    before = copy.deepcopy(net)
    result = replace_units(net, {name: [0, 3]}, [layer.units[0], layer.units[3]], inplace=True)
    assert result is net and net.get_submodule(name) is layer
    assert_kept(before.get_submodule(name), layer, (1, 2, 4, 5))
    others = [n for n, _ in net.named_parameters() if not n.startswith(f"{name}.")]
    assert others and all(
        torch.equal(net.get_parameter(n), before.get_parameter(n)) for n in others
    )
    moved = {n: p.detach().clone() for n, p in layer.named_parameters()}
    start = train(net, 1)
    assert all(not torch.equal(p, moved[n]) for n, p in layer.named_parameters())
    assert train(net, 30) < start


def test_dead_units_go_straight_in():
    net = models.create_model("bunit_cnn", num_units=4, in_channels=1, image_size=8)
    layers = metrics.kinds.stacked_layers(net)
    first = next(iter(layers))
    with torch.no_grad():
        layers[first].norms[-1].weight[: layers[first].units[0].out_channels] = 0
    x = torch.randn(4, 1, 8, 8)
    dead = metrics.dead_units(net, [x])
    assert dead[first] == (0,) and dead.keys() == layers.keys()
    better = replace_units(net, dead, [u for layer in layers.values() for u in layer.units], seed=0)
    assert metrics.dead_units(better, [x])[first] == ()
    assert metrics.dead_units(net, [x]) == dead


def test_other_batch_norms_and_folded_layers():
    layer = conv_layer("hybrid")
    layer.norms = nn.ModuleList(nn.BatchNorm2d(n.num_features, affine=False, momentum=None)
                                for n in layer.norms)  # fmt: skip
    fresh = replace_units(layer, [0], ["1-5-1"])
    assert fresh.norms[0].weight is None and fresh.norms[0].momentum is None
    assert fresh(torch.randn(2, fresh.in_channels, 5, 5)).shape[1] == fresh.out_channels
    folded = fuse(conv_layer("hybrid").eval())
    fresh = replace_units(folded, [2], ["1-9-3"])
    assert fresh.norms is None
    assert_kept(folded, fresh, [0, 1, 3, 4, 5])
    fuse(fresh)  # in eval mode all through


def test_bad_requests_change_nothing():
    net = nn.Sequential(conv_layer("hybrid"), nn.ReLU(), nn.Conv2d(10, 5, 1))
    layer, before = net[0], copy.deepcopy(net)
    same = [UnitSpec("1-2-1")]
    for module, which, pool, message in (
        (net, {"0": [0], "9": [0]}, same, "no module '9'; its stacked layers are '0'"),
        (net, {"0": [0], "2": [0]}, same, "'2' is no stacked layer but a conv 1x1"),
        (net, {"0": [6]}, same, "units of layer '0' are numbered from 0 to 5, got 6"),
        (layer, [-1], same, "numbered from 0 to 5, got -1"),
        (layer, [0, 2, 0], same, r"unit 0 is given twice: \[0, 0, 2\]"),
        (layer, [0], [], "the pool to draw units from is empty"),
        (layer, [0], ["2-x"], "cannot parse unit"),
        (layer, [0], ["1-1"], "units have 2 levels, unit 1-1 of the pool has 1"),
        (net, {"0": [1, 3]}, ["1-2-1", "3-3-3"],
         r"can stand for units 1 \(1-2-2\), 3 \(2-1-2\) of layer '0': of channels in -> out it has "
         "1 -> 1, 3 -> 3, and no 2 of these add up to 3 -> 4"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            replace_units(module, which, pool, inplace=True)
    for module, which, message in (
        (net, [0], "must map names of stacked layers to numbers of units"),
        ("net", [0], "takes an nn.Module, got str"),
        (layer, ["a"], "must be numbers of units"),
        (layer, 3, "must be numbers of units"),
        (layer, [0.5], "must be numbers of units"),
    ):
        with pytest.raises(TypeError, match=message):
            replace_units(module, which, same, inplace=True)
    with pytest.raises(ValueError, match="linear units have no kernel size"):
        replace_units(linear_layer("hybrid"), [0], ["1-2-1:k3"])
    with pytest.raises(ValueError, match="outputs of different sizes"):
        replace_units(conv_layer("int padding"), [0], ["2-4-2:k5"])
    for key, value in before.state_dict().items():
        assert torch.equal(net.state_dict()[key], value)
    layer.norms[1] = nn.GroupNorm(1, layer.out_channels)
    with pytest.raises(ValueError, match="norm 1 must be a BatchNorm, got GroupNorm"):
        replace_units(layer, [0], same)
