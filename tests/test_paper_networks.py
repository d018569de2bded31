"""The paper's networks: what it prints, recounted; Algorithm 1 as a builder."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from bunit_kernels import StackedConv2d, metrics, models
from bunit_kernels.models import bunit_net, create_model
from bunit_kernels.models.paper_networks import PAPER_NETWORKS
from bunit_kernels.units import PAPER_POOL, UnitSpec

#: Table II: units A to F of the two stacked layers, printed parameters (k) and FLOPs (M).
TABLE_2 = {
    "No.1": ((3, 3, 2, 3, 5, 4), (4, 7, 2, 0, 4, 3), "90.77", "9.24"),
    # Printed 9.60, probably two digits changed places.
    "No.2": ((5, 5, 2, 2, 3, 3), (3, 4, 1, 4, 4, 4), "89.98", "9.96"),
    "No.3": ((5, 3, 1, 3, 4, 4), (3, 4, 2, 3, 5, 3), "91.11", "9.33"),
    "No.4": ((3, 4, 5, 2, 2, 4), (3, 1, 6, 3, 3, 4), "106.64", "10.92"),
    "No.5": ((5, 4, 1, 2, 3, 5), (1, 6, 2, 6, 2, 3), "104.05", "9.53"),
    "No.6": ((4, 6, 3, 3, 2, 2), (3, 3, 3, 3, 6, 2), "95.39", "10.08"),
    "No.7": ((0, 4, 3, 3, 3, 7), (3, 3, 2, 4, 5, 3), "93.29", "11.00"),
    "No.8": ((2, 2, 2, 3, 6, 5), (3, 5, 4, 1, 5, 2), "98.26", "9.30"),
    "No.9": ((3, 2, 1, 3, 4, 7), (6, 4, 5, 1, 1, 3), "100.00", "9.06"),
    "No.10": ((2, 6, 5, 2, 3, 2), (1, 2, 5, 3, 3, 6), "105.99", "11.70"),
}
#: Table I: printed parameters (k) and FLOPs (M).
TABLE_1 = {
    "U1": ("1.41", "0.72"), "U2": ("1.83", "0.95"), "U3": ("2.26", "1.19"),
    "Hybrid1": ("1.78", "0.92"), "Hybrid2": ("1.83", "0.95"), "Hybrid3": ("1.99", "1.04"),
}  # fmt: skip
#: Points by which savings may miss the printed ones; others keep within one. EfficientNet-B0's
#: printed FLOPs cannot come from its SE modules. For CIFAR-100 two networks have other units.
WITHIN = {
    "ShuffleNetV2, CIFAR-100, smaller": (2.0, 2.0),
    "EfficientNet-B0, ImageNet": (18.0, 1.0),
    "VGG-16, CIFAR-100": (7.0, 3.0),
    "ResNet-20, CIFAR-100": (2.0, 14.0),
}


def on_meta(name: str, **arguments) -> torch.nn.Module:
    with torch.device("meta"):
        return create_model(name, **arguments)


def paper_flops(model: torch.nn.Module, *shape: int) -> int:
    return metrics.count_flops(model, shape, convention="paper")


def counted(numbers) -> list[dict]:
    return [dict(zip(PAPER_POOL, layer, strict=True)) for layer in numbers]


# Sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE_2)
def test_table_2_is_ten_calls_of_the_builder(name):
    *numbers, parameters, flops = TABLE_2[name]
    net = bunit_net(None, (20, 20), counts=counted(numbers))
    assert metrics.count_parameters(net) / 1e3 == pytest.approx(float(parameters), abs=0.00501)
    assert f"{paper_flops(net, 3, 32, 32) / 1e6:.2f}" == flops
    assert [len(layer.units) for layer in (net.stack1, net.stack2)] == [20, 20]


@pytest.mark.parametrize("name", TABLE_1)
def test_table_1(name):
    net = create_model("bunit_lenet", units=name)
    parameters, flops = TABLE_1[name]
    assert f"{metrics.count_parameters(net) / 1e3:.2f}" == parameters
    assert f"{paper_flops(net, 1, 28, 28) / 1e6:.2f}" == flops
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    dense = create_model("lenet", units=name)
    assert [m.out_channels for m in (net.stack1, net.stack2)] == [
        m[0].out_channels for m in (dense.stack1, dense.stack2)
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "parameters", "flops"),
    [
        ("vgg16", {"num_classes": 10}, 14_913_162, 779_646_976),
        ("vgg16", {"num_classes": 100}, 14_959_332, 779_739_136),
        ("vgg19", {}, 20_322_888, 3_798_867_968),
        ("mobilenet_v2", {"form": "paper", "num_classes": 10, "image_size": 32}, 2_254_090,
         134_954_400),
        ("mobilenet_v2", {"form": "paper", "num_classes": 100, "image_size": 32}, 2_369_380,
         135_184_800),
        ("resnet20_256", {}, 8_511_850, 1_058_165_760),
        ("mlp", {}, 545_810, 1_090_000),
    ],
)  # fmt: skip
def test_dense_networks(name, arguments, parameters, flops):
    model = on_meta(name, **arguments)
    shape = {"vgg19": (3, 64, 64), "mlp": (1, 28, 28)}.get(name, (3, 32, 32))
    assert metrics.count_parameters(model) == parameters
    assert paper_flops(model, *shape) == flops


@pytest.mark.parametrize("network", PAPER_NETWORKS, ids=lambda network: network.name)
def test_savings_come_close_to_the_printed_ones(network):
    flops, parameters = WITHIN.get(network.name, (1.0, 1.0))
    differences = network.differences
    assert abs(differences[0]) < flops and abs(differences[1]) < parameters
    # Only where it is said do they miss by more than a point.
    assert (network.name in WITHIN) is (max(map(abs, differences)) > 1)


@pytest.mark.parametrize("network", PAPER_NETWORKS, ids=lambda network: network.name)
def test_dense_sizes_are_the_printed_ones(network):
    flops, parameters = network.printed
    unmet = {"VGG-16", "ResNet-20", "ResNet-20 r", "VGG-19"}  # FLOPs: docs/paper_networks.md
    if network.name.split(",")[0] not in unmet:
        assert network.sizes.dense_flops / 1e6 == pytest.approx(flops, rel=0.025)
    assert network.sizes.dense_parameters / 1e6 == pytest.approx(parameters, rel=0.01)


def test_figures_of_the_docstrings():
    for network in PAPER_NETWORKS:
        if network.model in ("bunit_resnet20_256", "bunit_vgg16", "bunit_vgg19", "bunit_resnet34",
                             "bunit_resnet50") and "CIFAR-100" not in network.name:  # fmt: skip
            text = " ".join(getattr(models, network.model).__doc__.split())
            sizes = network.sizes
            for share in (sizes.flops_saving, sizes.parameters_saving):
                assert f"{100 * share:.2f} %" in text, network.name
            for printed in network.saved:
                assert f"{printed} %" in text or f"{printed:.2f} %" in text, network.name


def test_the_table_of_the_command_is_that_of_the_page(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["models", "--paper"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("bunit_kernels.models", run_name="__main__")
    assert ended.value.code == 0
    table = capsys.readouterr().out
    lines = table.splitlines()
    assert len(lines) == 2 + len(PAPER_NETWORKS)
    assert len({line.count("|") for line in lines}) == 1
    assert "| 14.91 | 14.91 | 779.65 | 77.95 | 72.91% | 72.90% | +0.01 | 79.85% |" in table
    assert table in (Path(__file__).parents[1] / "docs" / "paper_networks.md").read_text()


# Tables of units --------------------------------------------------------------------------------


def test_vgg16_has_a_normal_and_a_hybrid_layer_a_stage():
    model = on_meta("bunit_vgg16")
    assert model.units == dict.fromkeys(
        model.units, ("normal", "3 x 2-4-m + 1 x 2-5-m", "none")
    ) and list(model.units) == [f"stage{i}" for i in range(1, 6)]
    stacks = [m for m in model.features if isinstance(m, StackedConv2d)]
    convs = [m for m in model.features if isinstance(m, torch.nn.Conv2d)]
    assert [s.in_channels for s in stacks] == [c.out_channels for c in convs]
    assert [s.layout.describe() for s in stacks[:2]] == [
        "24 x 2-4-2, 8 x 2-5-2",
        "48 x 2-4-2, 16 x 2-5-2",
    ]
    hidden = [unit.widths[1] for stack in stacks for unit in stack.units]
    assert sum(hidden) / len(hidden) == 4.25


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("resnet18", ("layer2", "layer3")),
        ("resnet34", ("layer2", "layer3")),
        ("resnet50", ("layer2", "layer3")),
        ("resnet20", ("layer2",)),
        ("vgg16", ("stage2", "stage3", "stage4")),
        ("mobilenet_v2", ("stage2", "stage3", "stage4", "stage5", "stage6")),
        ("shufflenet_v2", ("stage3",)),
        ("efficientnet_b0", ("stage6",)),
    ],
)
def test_strategy_r_leaves_the_first_and_the_last_stage_normal(name, inner):
    plan = on_meta(f"bunit_{name}", units="r").units
    stacked = [stage for stage, entries in plan.items() if set(entries) != {"normal"}]
    assert stacked == list(inner)
    dense = on_meta(name, units="r")
    assert not any(isinstance(m, StackedConv2d) for m in dense.modules())


@pytest.mark.parametrize("name", ["bunit_vgg19", "bunit_resnet20_256", "bunit_mobilenet_v2"])
def test_other_forms_run(name):
    arguments = {"bunit_mobilenet_v2": {"form": "paper"}, "bunit_vgg19": {"image_size": 32}}
    model = create_model(name, num_classes=5, **arguments.get(name, {}))
    y = model(torch.randn(2, 3, 32, 32))
    assert y.shape == (2, 5)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# The builder ------------------------------------------------------------------------------------


def test_normal_layers_lead_from_outputs_to_inputs():
    """Three stacked layers on 5x9 pixels: pools round up, to 3x5 and 2x3."""
    counts = [{"1-2-1": 1, "1-2-3": 2}, {"3-2-1": 2, "1-2-1": 0}, {UnitSpec("2-1-2"): 4}]
    net = bunit_net(None, (3, 2, 4), counts=counts, num_classes=6, in_channels=2, image_size=(5, 9))
    assert list(dict(net.named_children())) == [
        "normal1", "stack1", "pool1", "normal2", "stack2", "pool2", "normal3", "stack3", "flatten",
        "head",
    ]  # fmt: skip
    normals = (net.normal1[0], net.normal2[0], net.normal3[0])
    assert [(c.in_channels, c.out_channels) for c in normals] == [(2, 3), (7, 6), (2, 8)]
    assert all(c.kernel_size == (3, 3) and c.bias is None for c in normals)
    assert net.head.in_features == 8 * 2 * 3
    assert str(net.stack1.units) == '(UnitSpec("1-2-1"), UnitSpec("1-2-3"), UnitSpec("1-2-3"))'
    assert net(torch.randn(2, 2, 5, 9)).shape == (2, 6)
    with pytest.raises(ValueError, match="built for 8x2x3 values an item, got"):
        net.eval()(torch.randn(1, 2, 12, 12))


def test_draws():
    def units(**arguments):
        net = bunit_net(["1-2-1", "2-1-2", "3-2-1"], (9, 7), image_size=4, **arguments)
        return net.stack1.units, net.stack2.units

    assert units(seed=4) == units(seed=4) != units(seed=5)
    assert [len(layer) for layer in units(seed=1)] == [9, 7]
    assert {str(u) for layer in units(seed=1) for u in layer} == {"1-2-1", "2-1-2", "3-2-1"}
    ours = create_model("bunit_cnn", seed=3)
    net = bunit_net(None, (20, 20), seed=3)
    assert (ours.stack1.units, ours.stack2.units) == (net.stack1.units, net.stack2.units)
    assert list(ours.state_dict()) == list(net.state_dict())


def test_counted_units_of_the_exploration_network():
    counts = [{"1-2-1": 3, "2-1-2": 1}, {"3-2-1": 4}]
    ours, dense = (create_model(n, num_units=4, counts=counts) for n in ("bunit_cnn", "cnn"))
    net = bunit_net(None, (4, 4), counts=counts)
    assert (ours.stack1.units, ours.stack2.units) == (net.stack1.units, net.stack2.units)
    assert dense(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match="add up to 4 units, units_per_layer asks for 20"):
        create_model("bunit_cnn", counts=counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units_per_layer": ()}, r"at least one, got \(\)"),
        ({"units_per_layer": (3, 0)}, r"int of at least 1 .* got \(3, 0\)"),
        ({"units_per_layer": 3}, "for each stacked layer, .* got 3"),
        ({"pool": ()}, "pool to sample units from is empty"),
        ({"pool": ("1-2-1", "1-2-2-1")}, "must have the same depth"),
        ({"counts": [{"1-2-1": 3}]}, "each of the 2 stacked layers, got 1"),
        ({"counts": [{"1-2-1": 3}, {"1-2-1": 1}]}, "layer 2 add up to 1 units, .* asks for 2"),
        ({"counts": [{"1-2-1": 3}, {"4-2-1": 2}]}, "layer 2 name 4-2-1, the pool has 1-2-1, 1-2-2"),
        ({"counts": [{"1-2-1": 4, "2-1-2": -1}, {}]}, "at least 0, got -1 of 2-1-2"),
        ({"counts": [["1-2-1"], {}]}, "layer 1 must map units to numbers"),
        ({"units_per_layer": (1, 1, 1), "image_size": (8, 3)}, r"at least 4 .*2 pools.*\(8, 3\)"),
        ({"num_classes": 0}, "num_classes must be an int of at least 1, got 0"),
    ],
)
def test_bad_input_of_the_builder(arguments, message):
    arguments = {"pool": None, "units_per_layer": (3, 2), "seed": 0, **arguments}
    with pytest.raises(ValueError, match=message):
        bunit_net(**arguments)
