"""Backbones: exact sizes, savings beside the published ones, what they compute, their tables."""

from __future__ import annotations

import copy
import io
import pickle
import re
from pathlib import Path

import pytest
import torch
from module_cases import run_units
from tolerance import assert_near, tolerance
from torch import nn

from bunit_kernels import StackedConv2d, backend, metrics, models
from bunit_kernels.models import create_model, dense_counterpart, list_models
from bunit_kernels.models.initialise import initialise
from bunit_kernels.models.mobilenet import InvertedResidual, StackedInvertedResidual
from bunit_kernels.models.resnet_blocks import STACKED, BasicBlock, Bottleneck
from bunit_kernels.models.summary import ROWS
from bunit_kernels.models.tables import expand_table, fit_units
from bunit_kernels.units import UnitSpec

# One small network of each family: name, arguments, shape of an item.
FAMILIES = {
    "bunit_resnet20": ({}, (3, 16, 16)),
    "bunit_resnet10": ({"form": "cifar"}, (3, 16, 16)),
    "bunit_resnet18": ({"form": "imagenet"}, (1, 40, 33)),
    "bunit_resnet50": ({"form": "cifar"}, (3, 16, 16)),
    "bunit_vgg16_bn": ({"image_size": 32}, (3, 32, 32)),
    "bunit_vgg16": ({}, (3, 32, 32)),
    "bunit_shufflenet_v2": ({"form": "cifar"}, (3, 16, 16)),
    "bunit_efficientnet_b0": ({"form": "cifar"}, (3, 16, 16)),
    "bunit_mobilenet_v2": ({"form": "cifar"}, (3, 16, 16)),
    "bunit_lenet": ({"image_size": (28, 25)}, (1, 28, 25)),
}
each_family = pytest.mark.parametrize("name", FAMILIES)


def family(name: str, dense: bool = False) -> tuple[nn.Module, torch.Tensor]:
    """The network with five classes, and a batch for it."""
    arguments, shape = FAMILIES[name]
    name = dense_counterpart(name) if dense else name
    model = create_model(name, num_classes=5, in_channels=shape[0], **arguments)
    return model, torch.randn(4, *shape)


def warmed(name: str) -> tuple[nn.Module, torch.Tensor]:
    """In eval mode and float64, with running statistics of a batch."""
    model, x = family(name)
    model, x = model.double(), x.double()
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


def on_meta(name: str, **arguments) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **arguments)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


# Sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        # torchvision's
        ("resnet18", {}, 11_689_512),
        ("resnet34", {}, 21_797_672),
        ("resnet50", {}, 25_557_032),
        ("resnet101", {}, 44_549_160),
        ("vgg16_bn", {}, 138_365_992),
        ("mobilenet_v2", {}, 3_504_872),
        ("shufflenet_v2", {}, 2_278_604),
        ("efficientnet_b0", {}, 5_288_548),
        # the usual forms for CIFAR-10
        ("resnet18", {"num_classes": 10, "form": "cifar"}, 11_173_962),
        ("vgg16_bn", {"num_classes": 10, "form": "cifar"}, 14_991_946),
        ("resnet20", {}, 272_474),
        ("resnet32", {}, 466_906),
        ("resnet56", {}, 855_770),
        ("resnet110", {}, 1_730_714),
        # of the stacked ones
        ("bunit_resnet50", {}, 14_455_016),
        ("bunit_resnet18", {"num_classes": 10}, 8_650_314),
    ],
)
def test_parameters_are_the_known_ones(name, arguments, expected):
    assert metrics.count_parameters(on_meta(name, **arguments)) == expected


def test_flops_of_resnet50_are_the_known_ones():
    sizes = next(row for row in ROWS if row.model == "bunit_resnet50").compare()
    assert sizes.flops == 2 * 2_314_007_552
    assert sizes.dense_flops == 2 * 4_089_184_256


def test_resnet18_is_that_of_the_authors_code():
    sizes = next(r for r in ROWS if r.model == "bunit_resnet18" and r.num_classes == 1000).compare()
    assert round(1 - sizes.flops_saving, 3) == 0.564
    ten = [on_meta(name, num_classes=10) for name in ("bunit_resnet18", "resnet18")]
    bunit, dense = map(metrics.count_parameters, ten)
    assert round(bunit / dense, 3) == 0.774


def test_figures_of_the_docstring():
    row = next(r for r in ROWS if r.model == "bunit_vgg16_bn" and r.input_size[1] == 32)
    sizes = row.compare()
    text = " ".join(models.bunit_vgg16_bn.__doc__.split())
    flops, parameters = (f"{100 * s:.2f} %" for s in (sizes.flops_saving, sizes.parameters_saving))
    assert f"{flops} of the FLOPs and {parameters} of the parameters" in text


def test_the_readmes_table_has_every_model():
    """That it is what the command prints, ``test_docs`` sees."""
    assert {row.model for row in ROWS} == {n for n in list_models() if n.startswith("bunit_")}
    text = (Path(__file__).parents[1] / "README.md").read_text()
    table = re.search(r"-m bunit_kernels.models -->(.*?)<!-- end", text, re.DOTALL)[1]
    lines = [line for line in table.splitlines() if line]
    assert len(lines) == 2 + len(ROWS)
    assert len({line.count("|") for line in lines}) == 1
    resnet50 = next(line for line in lines if "resnet50" in line)
    for figure in ("14,455,016", "25,557,032", "43.44%", "43.41%"):
        assert figure in resnet50


def test_every_bunit_model_has_its_dense_counterpart():
    for name in list_models():
        dense = name.removeprefix("bunit_")
        assert dense_counterpart(name) == (None if dense == name else dense)
    kinds = {type(m) for n in list_models() if n[:5] != "bunit" for m in on_meta(n).modules()}
    assert not any(kind.__name__.startswith("Stacked") for kind in kinds)


# What they compute ------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [False, True])
@each_family
def test_shapes_and_gradients(name, dense):
    model, x = family(name, dense)
    x.requires_grad_()
    y = model(x)
    assert y.shape == (4, 5)
    y.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    assert model.eval()(x[:0]).shape == (0, 5)


@each_family
def test_eval_is_that_of_the_loop(name):
    model, x = warmed(name)
    with torch.no_grad():
        y = model(x)
        with backend("reference"):
            expected = model(x)
    assert_near(y, expected, tolerance(torch.float64, terms=5000, roundings=200))


@each_family
def test_channels_last(name):
    model, x = warmed(name)
    with torch.no_grad():
        expected = model(x)
        y = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert_near(y, expected, tolerance(torch.float64, terms=5000, roundings=200))


@each_family
def test_copies_and_files(name):
    model, x = warmed(name)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    other = family(name)[0].double().eval()
    assert not same_state(other, model)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    with torch.no_grad():
        y = model(x)
        for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert same_state(twin, model)
            assert torch.equal(twin(x), y)


@pytest.mark.parametrize("train", [False, True])
def test_compiles_as_one_graph(train):
    model, x = family("bunit_resnet20")
    model.train(train)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), twin(x)
    near = tolerance(torch.float32, terms=1000, roundings=200)
    assert_near(y, expected, near)
    if train:
        y.square().sum().backward()
        expected.square().sum().backward()
        assert_near(model.conv1.weight.grad, twin.conv1.weight.grad, 20 * near)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (BasicBlock, (8, 16)), (BasicBlock, (8, 8)), (Bottleneck, (8, 4)), (Bottleneck, (16, 4)),
        (InvertedResidual, (8, 8)), (InvertedResidual, (8, 12)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("unit", [None, "2-4-m"])
def test_blocks_by_hand(block, shape, unit, stride):
    """Each block, dense and stacked, against its formula written out."""
    kinds = {**STACKED, InvertedResidual: StackedInvertedResidual}
    if block is InvertedResidual and unit is None:
        b = block(*shape, stride, 6)
    else:
        b = block(*shape, stride) if unit is None else kinds[block](*shape, stride, unit)
    b, x = b.double(), torch.randn(2, shape[0], 7, 6).double()
    relu, clip = torch.relu, nn.functional.relu6
    with torch.no_grad():
        b.train()(x)  # running statistics of its own
        b.eval()
        y = b(x)
        if block is InvertedResidual:
            assert b.adds is (stride == 1 and shape[0] == shape[1])
            if unit is None:
                (c1, n1, _), (c2, n2, _), c3, n3 = b.conv
                expected = n3(c3(clip(n2(c2(clip(n1(c1(x))))))))
            else:
                expected = run_units(b.conv.to_units(), x)
            expected = expected + x if b.adds else expected
        else:
            if block is Bottleneck:
                inner = relu(b.bn1(b.conv1(x)))
                if unit:
                    inner = run_units(b.conv2.to_units(), inner)
                else:
                    inner = relu(b.bn2(b.conv2(inner)))
                expected = b.bn3(b.conv3(inner))
            elif unit:
                expected = run_units(b.conv1.to_units(), x)
            else:
                expected = b.bn2(b.conv2(relu(b.bn1(b.conv1(x)))))
            changes = stride == 2 or expected.shape != x.shape
            assert (b.downsample is not None) is changes
            expected = relu(expected + (b.downsample(x) if changes else x))
    assert y.shape[2:] == ((4, 3) if stride == 2 else (7, 6))
    assert_near(y, expected, tolerance(torch.float64, terms=1000, roundings=30))


def test_residuals_go_through_the_stacked_layers():
    """The add and its ReLU are the stacked layer's, so that one launch does all of a block."""
    model, x = warmed("bunit_resnet20")
    seen = []
    layers = [m for m in model.modules() if isinstance(m, StackedConv2d)]
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, a, kw: seen.append(kw), with_kwargs=True)
    model(x)
    assert len(seen) == len(layers) == 5
    assert all(kw["residual"] is not None for kw in seen)
    assert all(kw["residual_activation"] == "relu" for kw in seen)


# torchvision's names ----------------------------------------------------------------------------


def norm(name: str) -> list[str]:
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{name}.{part}" for part in parts]


def resnet_keys(depths, convs) -> list[str]:
    keys = ["conv1.weight", *norm("bn1")]
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            at = f"layer{stage}.{block}."
            for i in range(1, convs + 1):
                keys += [f"{at}conv{i}.weight", *norm(f"{at}bn{i}")]
            if block == 0 and (stage > 1 or convs == 3):
                keys += [f"{at}downsample.0.weight", *norm(f"{at}downsample.1")]
    return [*keys, "fc.weight", "fc.bias"]


def vgg_keys() -> list[str]:
    keys = []
    for conv in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40):
        keys += [f"features.{conv}.weight", f"features.{conv}.bias", *norm(f"features.{conv + 1}")]
    return keys + [f"classifier.{i}.{part}" for i in (0, 3, 6) for part in ("weight", "bias")]


def mobilenet_keys() -> list[str]:
    keys = ["features.0.0.weight", *norm("features.0.1")]
    for block in range(1, 18):
        places = ["0.0", "0.1", "1", "2"] if block == 1 else ["0.0", "0.1", "1.0", "1.1", "2", "3"]
        for conv, bn in zip(places[::2], places[1::2], strict=True):
            at = f"features.{block}.conv."
            keys += [f"{at}{conv}.weight", *norm(f"{at}{bn}")]
    keys += ["features.18.0.weight", *norm("features.18.1")]
    return [*keys, "classifier.1.weight", "classifier.1.bias"]


def shufflenet_keys() -> list[str]:
    keys = ["conv1.0.weight", *norm("conv1.1"), "conv5.0.weight", *norm("conv5.1")]
    for stage, depth in ((2, 4), (3, 8), (4, 4)):
        for block in range(depth):
            pairs = {"branch1": ((0, 1), (2, 3)) if block == 0 else (),
                     "branch2": ((0, 1), (3, 4), (5, 6))}  # fmt: skip
            for branch, places in pairs.items():
                for conv, bn in places:
                    at = f"stage{stage}.{block}.{branch}."
                    keys += [f"{at}{conv}.weight", *norm(f"{at}{bn}")]
    return [*keys, "fc.weight", "fc.bias"]


def efficientnet_keys() -> list[str]:
    keys = []
    for place in ("features.0", "features.8"):
        keys += [f"{place}.0.weight", *norm(f"{place}.1")]
    for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1), 1):
        for i in range(depth):
            last = 2 if stage == 1 else 3
            at = f"features.{stage}.{i}.block."
            for place in {0, last - 2, last}:
                keys += [f"{at}{place}.0.weight", *norm(f"{at}{place}.1")]
            excite = f"{at}{last - 1}."
            keys += [f"{excite}fc{fc}.{part}" for fc in (1, 2) for part in ("weight", "bias")]
    return [*keys, "classifier.1.weight", "classifier.1.bias"]


@pytest.mark.parametrize(
    ("name", "keys", "shapes"),
    [
        ("resnet18", resnet_keys((2, 2, 2, 2), 2), {"layer2.0.conv1.weight": (128, 64, 3, 3)}),
        ("resnet34", resnet_keys((3, 4, 6, 3), 2), {"conv1.weight": (64, 3, 7, 7)}),
        ("resnet50", resnet_keys((3, 4, 6, 3), 3), {"layer3.5.conv2.weight": (256, 256, 3, 3)}),
        ("resnet101", resnet_keys((3, 4, 23, 3), 3), {"fc.weight": (1000, 2048)}),
        ("vgg16_bn", vgg_keys(), {"classifier.0.weight": (4096, 25088)}),
        ("mobilenet_v2", mobilenet_keys(), {"features.5.conv.1.0.weight": (192, 1, 3, 3)}),
        ("shufflenet_v2", shufflenet_keys(), {"stage3.0.branch1.2.weight": (116, 116, 1, 1)}),
        ("efficientnet_b0", efficientnet_keys(), {"features.6.1.block.2.fc1.weight":
                                                  (48, 1152, 1, 1)}),
    ],
)  # fmt: skip
def test_dense_networks_have_torchvisions_names(name, keys, shapes):
    state = on_meta(name).state_dict()
    assert sorted(state) == sorted(keys)
    assert all(state[key].shape == shape for key, shape in shapes.items())


# Tables, arguments, initial values --------------------------------------------------------------


def stacks(model: nn.Module) -> dict[str, str]:
    found = {n: m for n, m in model.named_modules() if isinstance(m, StackedConv2d)}
    return {name: layer.layout.describe() for name, layer in found.items()}


def test_default_tables():
    assert stacks(on_meta("bunit_resnet18")) == {
        "layer2.0.conv1": "32 x 2-4-4",
        "layer2.1.conv1": "64 x 2-4-2",
        "layer3.0.conv1": "64 x 2-4-4",
        "layer3.1.conv1": "128 x 2-4-2",
    }
    layers = stacks(on_meta("bunit_resnet50"))
    assert len(layers) == 16 and layers["layer4.0.conv2"] == "256 x 2-3-2"
    assert stacks(on_meta("bunit_resnet20")) == {
        "layer1.1.conv1": "8 x 2-4-2",
        "layer1.2.conv1": "8 x 2-4-2",
        "layer2.1.conv1": "16 x 2-4-2",
        "layer2.2.conv1": "16 x 2-4-2",
        "layer3.1.conv1": "32 x 2-4-2",
    }
    assert list(stacks(on_meta("bunit_vgg16_bn")).values()) == [
        "32 x 2-4-2", "64 x 2-4-2", *["128 x 2-4-2"] * 2, *["256 x 2-4-2"] * 4,
    ]  # fmt: skip
    assert list(stacks(on_meta("bunit_mobilenet_v2")).values()) == [
        "12 x 2-4-2", "16 x 2-4-2", *["32 x 2-4-2"] * 2, "48 x 2-4-2", "80 x 2-4-2",
    ]  # fmt: skip


def test_a_table_of_ones_own():
    table = {"layer3": ["normal", "4-8-m"], "layer4": "2-4-m:k5"}
    model = create_model("bunit_resnet18", num_classes=3, image_size=32, units=table)
    assert stacks(model) == {
        "layer3.1.conv1": "64 x 4-8-4",
        "layer4.0.conv1": "128 x 2-4-4:k5",
        "layer4.1.conv1": "256 x 2-4-2:k5",
    }
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    assert stacks(on_meta("bunit_mobilenet_v2", units={"stage7": "10-20-m"})) == {
        "features.17.conv": "16 x 10-20-20"
    }
    for name in ("resnet18", "resnet20", "vgg16_bn", "mobilenet_v2"):  # one set of arguments
        assert stacks(on_meta(name, units=table)) == {}


def test_an_empty_table_is_the_dense_network():
    for name in ("resnet18", "resnet56", "vgg16_bn", "mobilenet_v2", "vgg19", "shufflenet_v2",
                 "efficientnet_b0"):  # fmt: skip
        bunit, dense = on_meta(f"bunit_{name}", units={}), on_meta(name)
        assert list(bunit.state_dict()) == list(dense.state_dict())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("bunit_resnet18", {"units": {"layer5": "2-4-m"}}, "'layer5', the stages .* layer1, lay"),
        ("bunit_resnet18", {"units": {"layer2": ()}}, "units of layer2 is empty"),
        ("bunit_resnet18", {"units": {"layer2": "2-4-2"}}, "2-4-2 do not lead from 64 to 128"),
        ("bunit_resnet18", {"units": {"layer2": "3-4-m"}}, "3-4-m do not lead from 64 to 128"),
        ("bunit_resnet18", {"units": {"layer2": "m-4-2"}}, "cannot parse unit 'm-4-2'"),
        ("bunit_resnet18", {"units": {"layer2": "1x1"}}, "cannot parse unit '1x1'"),
        ("bunit_resnet18", {"form": "mnist"}, 'form must be "imagenet", "cifar" or None'),
        ("bunit_mobilenet_v2", {"form": "mnist"}, '"cifar", "paper" or None, got .mnist'),
        ("bunit_vgg16", {"units": {"stage1": ("none", "2-4-m")}}, 'stage1 begin with "none"'),
        ("bunit_lenet", {"units": "U4"}, "one of U1, U2, U3, Hybrid1.* got 'U4'"),
        ("resnet50", {"num_classes": 0}, "num_classes must be an int of at least 1"),
        ("bunit_mobilenet_v2", {"in_channels": 0}, "in_channels must be"),
        ("bunit_vgg16_bn", {"image_size": (64, 31)}, "at least 32 for VGG.*31"),
        ("bunit_lenet", {"image_size": 22}, "image_size must be at least 23"),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **arguments)


@pytest.mark.parametrize("units", ["2-4-2", {"layer2": 3}, {"layer2": [None]}])
def test_a_table_of_another_type(units):
    with pytest.raises(TypeError, match="units"):
        create_model("bunit_resnet18", units=units)


def test_expand_table_repeats_its_entries():
    table = {"b": ("normal", "2-4-m"), "c": UnitSpec("2-4-2")}
    assert expand_table(table, {"a": 1, "b": 3, "c": 2}) == {
        "a": ("normal",),
        "b": ("normal", "2-4-m", "normal"),
        "c": ("2-4-2", "2-4-2"),
    }


def test_fit_units():
    assert fit_units("2-4-m", 64, 128) == (UnitSpec("2-4-4"),) * 32
    assert fit_units("2-4-m:k5", 6, 3) == (UnitSpec("2-4-1:k5"),) * 3
    assert fit_units("4-8-4", 12, 12) == (UnitSpec("4-8-4"),) * 3
    hybrid = fit_units("3 x 2-4-m + 1 x 2-5-m", 16, 32)
    assert hybrid == (UnitSpec("2-4-4"),) * 6 + (UnitSpec("2-5-4"),) * 2
    assert fit_units("2-4-6 + 2-5-m", 4, 8) == (UnitSpec("2-4-6"), UnitSpec("2-5-2"))
    light = UnitSpec("4-24-24-8:k1,3,1:g1,24,2")
    assert fit_units("4-24-24-m:k1,3,1:g1,24,2", 16, 32) == (light,) * 4
    with pytest.raises(ValueError, match="24 -> 5 channels and 2 groups"):
        fit_units("4-24-24-m:k1,3,1:g1,24,2", 16, 20)
    hopeless = (
        ("2-4-m", 5, 10), ("2-4-m", 4, 3), ("2-4-3", 4, 4), ("3 x 2-4-m + 2-5-m", 4, 4),
        ("2-4-6 + 2-5-m", 4, 6),
    )  # fmt: skip
    for unit, before, after in hopeless:
        with pytest.raises(ValueError, match=f"from {before} to {after} channels"):
            fit_units(unit, before, after)
    for entry in ("0 x 2-4-m", "2-4-m +", "3 x", "three x 2-4-m"):
        with pytest.raises(ValueError, match="cannot parse"):
            fit_units(entry, 4, 4)


def test_form_follows_the_image_size_unless_given():
    def stem(**arguments):
        return on_meta("bunit_resnet18", **arguments).conv1.kernel_size[0]

    assert stem() == 7 and stem(image_size=32) == 3 and stem(image_size=[64, 64]) == 3
    assert stem(image_size=(32, 65)) == 7
    assert stem(image_size=32, form="imagenet") == 7 and stem(form="cifar") == 3


def test_initial_values_are_hes_unit_by_unit():
    layer = StackedConv2d(["2-4-2"] * 300 + ["4-16-8:k5"] * 100, bias=True)
    net = nn.Sequential(nn.Conv2d(3, 2000, 3), layer, nn.Linear(300, 100))
    initialise(net, linear_std=0.01)
    cases = [(net[0].weight, 2000 * 9), (net[2].weight, 2 / 0.01**2)]
    for level, weight in zip(layer.layout.levels, layer.weights, strict=True):
        parts = level.unpack(weight)
        for units in (slice(300), slice(300, 400)):
            _, c_out, k = level.blocks[units.start or 0]
            cases.append((torch.cat([p.flatten() for p in parts[units]]), c_out * k * k))
    for weight, fan_out in cases:
        # A sample's standard deviation of n normal values is off by 1 / sqrt(2 n) of it.
        off = 6 / (2 * weight.numel()) ** 0.5
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=off)
    assert not any(b.any() for b in (net[0].bias, net[2].bias, *layer.biases))


def test_stacked_layers_without_shortcuts_begin_near_the_identity():
    layer = StackedConv2d(["2-4-3"] * 2 + ["4-2-4:k5"])
    drawn = []
    for near_identity in (False, True):
        torch.manual_seed(0)
        initialise(layer, near_identity=near_identity)
        drawn.append([w.detach().clone() for w in layer.weights])
    for level, plain, near in zip(layer.layout.levels, *drawn, strict=True):
        parts = zip(level.unpack(near - plain), level.blocks, strict=True)
        for part, (c_in, c_out, k) in parts:
            # An input of variance 1 gives each output twice the standard deviation of what is
            # drawn: a variance of fan_in * 2 / fan_out.
            passed_on = part.sum(dim=1)[:, k // 2, k // 2].mean().item()
            assert passed_on == pytest.approx(2 * (2 * c_in / c_out) ** 0.5)
            assert torch.equal(part.count_nonzero(), torch.tensor(max(c_in, c_out)))
            assert all(
                part[c % c_out, c % c_in, k // 2, k // 2] > 0 for c in range(max(c_in, c_out))
            )
    grouped = StackedConv2d("4-4-8:g4,2", 2)
    initialise(grouped, near_identity=True)
    taps = [w[:, :, 1, 1] for w in grouped.layout.levels[0].unpack(grouped.weights[0])]
    assert torch.cat(taps).mean() > 1  # each channel's own
    vgg = models.create_model("bunit_vgg16_bn", num_classes=10, image_size=32)
    unit = next(m for m in vgg.modules() if isinstance(m, StackedConv2d)).weights[0][:4, :, 1, 1]
    assert unit.view(2, 2, 2).mean(dim=0).diagonal().min() > 1
