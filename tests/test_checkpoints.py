"""Weights of the authors' code and of others: loaded and written back, or refused untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from module_cases import run_units
from test_backbones import same_state
from tolerance import assert_near, tolerance
from torch import nn

from bunit_kernels import StackedConv2d, StackedLinear, metrics
from bunit_kernels.models import authors_state_dict, create_model, load_weights

NEAR = tolerance(torch.float64, terms=5000, roundings=200)


class Unit(nn.Module):
    """A unit as the authors' code has it: ``layer1`` and ``layer2``, ReLU at the end outside."""

    def __init__(self, widths, stride=1, **conv):
        super().__init__()
        before, hidden, after = widths
        self.layer1 = nn.Sequential(
            nn.Conv2d(before, hidden, stride=stride, **conv), nn.BatchNorm2d(hidden), nn.ReLU()
        )
        self.layer2 = nn.Sequential(nn.Conv2d(hidden, after, **conv), nn.BatchNorm2d(after))
        self.between = nn.Identity()

    def forward(self, x):
        return torch.relu(self.layer2(self.between(self.layer1(x))))


class Block(nn.Module):
    """A residual block as the authors' code has it, in place of one of ours."""

    def __init__(self, ours):
        super().__init__()
        conv = {"kernel_size": 3, "padding": 1, "bias": False}
        layer = ours.conv1
        self.conv1 = nn.ModuleList(Unit(u.widths, layer.stride, **conv) for u in layer.units)
        self.downsample = ours.downsample

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        return torch.relu(run_units(self.conv1, x) + identity)


class MnistNet(nn.Module):
    """The authors' network for MNIST, of given hidden widths."""

    def __init__(self, hidden):
        super().__init__()
        self.layer0 = nn.Conv2d(1, 8, 5)
        self.networks1 = nn.ModuleList(Unit((1, h, 1), kernel_size=5, padding=1) for h in hidden)
        for unit in self.networks1:
            unit.between = nn.MaxPool2d(5, 2)
        self.fc_out = nn.Linear(32, 10)

    def forward(self, x):
        x = run_units(self.networks1, self.layer0(x))
        return self.fc_out(nn.functional.max_pool2d(x, 5, 2).flatten(1))


class ExplorationNet(nn.Module):
    """The authors' exploration network, all of one kind of unit."""

    def __init__(self, ours):
        super().__init__()
        conv = {"kernel_size": 3, "padding": 1, "bias": False}
        for i, (mix, stack) in enumerate(
            ((ours.normal1, ours.stack1), (ours.normal2, ours.stack2)), 1
        ):
            setattr(self, f"norm_layer_{i}", copy.deepcopy(mix))
            units = nn.ModuleList(Unit(u.widths, **conv) for u in stack.units)
            setattr(self, f"unit_layer_{i}", units)
        self.fc_out = copy.deepcopy(ours.head)

    def forward(self, x):
        x = run_units(self.unit_layer_1, self.norm_layer_1(x))
        x = self.norm_layer_2(nn.functional.max_pool2d(x, 2))
        return self.fc_out(run_units(self.unit_layer_2, x).flatten(1))


def resnet18_pair():
    ours = create_model("bunit_resnet18", num_classes=4, form="cifar").double()
    theirs = copy.deepcopy(ours)
    for stage in (theirs.layer2, theirs.layer3):
        for i, block in enumerate(stage):
            stage[i] = Block(block).double()
    return ours, theirs, torch.randn(3, 3, 16, 16).double()


def mnist_pair():
    ours = create_model("bunit_lenet", seed=5).double()
    theirs = MnistNet([u.out_channels for u in ours.stack1.units]).double()
    return ours, theirs, torch.randn(3, 1, 28, 28).double()


def exploration_pair():
    ours = create_model("bunit_cnn", image_size=8, num_units=3, seed=1).double()
    return ours, ExplorationNet(ours).double(), torch.randn(3, 3, 8, 8).double()


each_network = pytest.mark.parametrize("pair", [resnet18_pair, mnist_pair, exploration_pair])


def scramble(model: nn.Module) -> None:
    """Values of its own for every parameter and buffer, norms and counts as well."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            norm.num_batches_tracked.fill_(7)


@each_network
def test_authors_weights_load_and_go_back(pair):
    ours, theirs, x = pair()
    scramble(theirs)
    state = theirs.state_dict()
    assert any(".0.layer1.0.weight" in key for key in state)
    before = {key: value.clone() for key, value in state.items()}
    load_weights(ours, state)
    with torch.no_grad():
        assert_near(ours.eval()(x), theirs.eval()(x), NEAR)
    back = authors_state_dict(ours)
    assert back.keys() == before.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in before.items())
    theirs.load_state_dict(back)


def test_authors_residual_network_has_its_published_size():
    ours, theirs, _ = resnet18_pair()
    assert metrics.count_parameters(ours) == metrics.count_parameters(theirs)
    keys = set(authors_state_dict(ours))
    assert {"layer2.0.conv1.31.layer2.1.running_var", "layer3.1.conv1.127.layer1.0.weight"} <= keys


@each_network
def test_own_and_loop_layouts_load_too(pair):
    ours, _, _ = pair()
    scramble(ours)
    packed = ours.state_dict()
    loops = dict(packed)
    for name, layer in ours.named_modules():
        if isinstance(layer, StackedConv2d):
            loops = {k: v for k, v in loops.items() if not k.startswith(f"{name}.")}
            loops |= {f"{name}.{k}": v for k, v in layer.to_units().state_dict().items()}
    assert len(loops) > len(packed)
    for state in (packed, loops):
        other = pair()[0]
        load_weights(other, state)
        assert same_state(other, ours)


def test_counts_of_batches_may_lack():
    ours, theirs, _ = resnet18_pair()
    scramble(theirs)
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches_tracked" not in k}
    load_weights(ours, state)
    assert torch.equal(ours.fc.weight, theirs.fc.weight)


@pytest.mark.parametrize("layer", [
    StackedConv2d(["1-2-1", "2-1-2"]),
    StackedConv2d("2-4-2", 3, norm=None),
    StackedLinear("2-3-4", 5),
    StackedLinear("2-3-4", 5, norm="batch"),
])  # fmt: skip
def test_a_single_layer_goes_there_and_back(layer):
    state = authors_state_dict(layer)
    assert {"0.layer1.0.weight", "1.layer2.0.weight"} <= set(state)
    other = copy.deepcopy(layer)
    other.reset_parameters()
    load_weights(other, state)
    assert same_state(other, layer)


def lose(state):
    del state["layer2.1.conv1.5.layer1.0.weight"]
    return "1 missing: layer2.1.conv1.5.0.weight"


def add(state):
    state["layer2.1.conv1.64.layer1.0.weight"] = torch.zeros(4, 2, 3, 3)
    state["extra"] = torch.zeros(1)
    return "2 unexpected: layer2.1.conv1.64.layer1.0.weight, extra$"


def reshape(state):
    state["layer3.0.conv1.1.layer2.0.weight"] = torch.zeros(2, 4, 3, 3)
    shapes = r"\(2, 4, 3, 3\) instead of \(4, 4, 3, 3\)"
    return f"1 of another shape: layer3.0.conv1.1.layer2.0.weight {shapes}"


def repeat(state):
    state["layer2.1.conv1.0.0.weight"] = state["layer2.1.conv1.0.layer1.0.weight"]
    return "holds layer2.1.conv1.0.0.weight twice"


@pytest.mark.parametrize("damage", [lose, add, reshape, repeat])
def test_a_damaged_checkpoint_changes_nothing(damage):
    ours, theirs, _ = resnet18_pair()
    scramble(theirs)
    state = theirs.state_dict()
    message = damage(state)
    before = copy.deepcopy(ours)
    with pytest.raises(ValueError, match=message):
        load_weights(ours, state)
    assert same_state(ours, before)


@pytest.mark.parametrize("name", ["resnet18", "bunit_resnet34", "bunit_vgg16_bn"])
def test_a_checkpoint_of_another_network_changes_nothing(name):
    ours, _, _ = resnet18_pair()
    other = create_model(name, num_classes=4, image_size=32)
    before = copy.deepcopy(ours)
    with pytest.raises(ValueError, match="not of this model.*unexpected: .*") as error:
        load_weights(ours, authors_state_dict(other))
    assert same_state(ours, before)
    assert len(str(error.value)) < 2000  # names a few, counts the rest


@pytest.mark.parametrize("state", [nn.Linear(2, 2), {"epoch": 3}, None])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(TypeError, match="expected a state_dict"):
        load_weights(create_model("resnet20"), state)


def test_weights_of_a_dense_network_load():
    dense = create_model("resnet18", num_classes=4, form="cifar")
    scramble(dense)
    other = create_model("resnet18", num_classes=4, form="cifar")
    load_weights(other, dense.state_dict())
    assert same_state(other, dense)
