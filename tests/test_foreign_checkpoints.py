"""Checkpoints of other projects: their wrappings taken off, their names, their shortcuts."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from module_cases import conv_layer
from test_backbones import same_state
from test_checkpoints import mnist_pair, resnet18_pair, scramble
from tolerance import assert_near, tolerance
from torch import nn

from bunit_kernels.models import create_model, load_weights
from bunit_kernels.nn import StackedConv2d

NEAR = tolerance(torch.float64, terms=5000, roundings=300)


def conv_norm(before, after, kernel, stride=1):
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(after)


class PaddedShortcut(nn.Module):
    """He et al. 2016, option A."""

    def __init__(self, before, after):
        super().__init__()
        self.pad = (after - before) // 2

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class Block(nn.Module):
    """With the names of pytorch_resnet_cifar10 and pytorch-cifar."""

    def __init__(self, before, after, stride, padded):
        super().__init__()
        self.conv1, self.bn1 = conv_norm(before, after, 3, stride)
        self.conv2, self.bn2 = conv_norm(after, after, 3)
        self.shortcut = nn.Sequential()
        if stride != 1:
            padding = PaddedShortcut(before, after)
            self.shortcut = padding if padded else nn.Sequential(*conv_norm(before, after, 1, 2))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class TheirResNet(nn.Module):
    def __init__(self, widths, depth, padded):
        super().__init__()
        self.conv1, self.bn1 = conv_norm(3, widths[0], 3)
        before = widths[0]
        for i, width in enumerate(widths, 1):
            blocks = []
            for j in range(depth):
                blocks.append(Block(before, width, 2 if i > 1 and j == 0 else 1, padded))
                before = width
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(before, 10)
        self.stages = len(widths)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.linear(x.mean((2, 3)))


def akamaster(padded=True):
    theirs = TheirResNet((16, 32, 64), 3, padded).double()
    return create_model("resnet20").double(), theirs


def kuangliu():
    theirs = TheirResNet((64, 128, 256, 512), 2, padded=False).double()
    return create_model("resnet18", num_classes=10, form="cifar").double(), theirs


def saved(theirs, *prefixes):
    scramble(theirs)
    return {"".join(prefixes) + key: value for key, value in theirs.state_dict().items()}


def test_akamasters_checkpoint_loads():
    ours, theirs = akamaster()
    checkpoint = {"state_dict": saved(theirs, "module."), "best_prec1": 92.0}
    said = load_weights(ours, checkpoint)
    assert said == (
        "the state was taken from 'state_dict'; left out beside it: best_prec1",
        f"'module.' was taken off {len(theirs.state_dict())} names",
        "2 shortcuts without weights became convolutions that do the same in eval mode",
    )
    x = torch.randn(2, 3, 16, 12).double()
    with torch.no_grad():
        assert_near(ours.eval()(x), theirs.eval()(x), NEAR)


@pytest.mark.parametrize("pair", [lambda: akamaster(padded=False), kuangliu])
def test_projected_shortcuts_load(pair):
    ours, theirs = pair()
    assert load_weights(ours, {"net": saved(theirs), "acc": 95.1, "epoch": 3}) == (
        "the state was taken from 'net'; left out beside it: acc, epoch",
    )
    x = torch.randn(2, 3, 8, 8).double()
    with torch.no_grad():
        assert_near(ours.eval()(x), theirs.eval()(x), NEAR)


@pytest.mark.parametrize("make", [resnet18_pair, mnist_pair])
def test_the_authors_layout_loads_wrapped(make):
    ours, theirs, x = make()
    checkpoint = {"epoch": 4, "model_state_dict": saved(theirs, "module."), "optimizer": {}}
    assert len(load_weights(ours, checkpoint)) == 2
    with torch.no_grad():
        assert_near(ours.eval()(x), theirs.eval()(x), NEAR)


# Some names of chenyaofo's cifar10_* and of torchvision's networks, with shapes at 10 classes.
NAMES = {
    ("resnet20", None): {"layer2.0.downsample.0.weight": (32, 16, 1, 1), "fc.weight": (10, 64)},
    ("resnet18", "imagenet"): {"conv1.weight": (64, 3, 7, 7), "fc.bias": (10,)},
    ("mobilenet_v2", "cifar"): {
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.18.1.running_var": (1280,),
        "classifier.1.weight": (10, 1280),
    },
    ("shufflenet_v2", "cifar"): {
        "conv1.0.weight": (24, 3, 3, 3),
        "stage2.0.branch1.2.weight": (58, 24, 1, 1),
        "conv5.1.running_mean": (1024,),
        "fc.weight": (10, 1024),
    },
}


@pytest.mark.parametrize(("name", "form"), NAMES)
def test_chenyaofos_and_torchvisions_names_load(name, form):
    options = {} if form is None else {"form": form}
    theirs, ours = (create_model(name, num_classes=10, **options) for _ in range(2))
    state = saved(theirs)
    for key, shape in NAMES[name, form].items():
        assert state[key].shape == shape
    assert load_weights(ours, state) == ()
    assert same_state(ours, theirs)
    assert len(load_weights(ours, {"model": state, "optimizer": {"state": {}}})) == 1


def wrapped(kind, net):
    """What a wrapper's ``state_dict`` looks like."""
    return {
        "compile": lambda: torch.compile(net, backend="eager"),
        "average": lambda: torch.optim.swa_utils.AveragedModel(net),
        "parallel": lambda: nn.DataParallel(net),
        "compiled in parallel": lambda: nn.DataParallel(torch.compile(net, backend="eager")),
        "parallel compiled": lambda: torch.compile(nn.DataParallel(net), backend="eager"),
        "in Lightning": lambda: nn.ModuleDict({"model": net}),
    }[kind]()


@pytest.mark.parametrize("kind", [
    "compile", "average", "parallel", "compiled in parallel", "parallel compiled", "in Lightning",
])  # fmt: skip
def test_wrappers_of_modules_are_taken_off(kind):
    net, other = (create_model("bunit_mlp", image_size=8) for _ in range(2))
    state = wrapped(kind, net).state_dict()
    assert state.keys().isdisjoint(net.state_dict())
    assert load_weights(other, state)
    assert same_state(other, net)
    if kind not in ("average", "in Lightning"):  # those are no form of the network
        target = create_model("bunit_mlp", image_size=8)
        assert load_weights(wrapped(kind, target), net.state_dict()) == ()
        assert same_state(target, net)


def test_one_compiled_part():
    net, other = (nn.Sequential(conv_layer("uniform"), nn.Linear(3, 3)) for _ in range(2))
    half = nn.Sequential(net[0], torch.compile(net[1], backend="eager"))
    said = load_weights(other, half.state_dict())
    assert said == ("'_orig_mod.' was taken out of 2 names",)
    assert same_state(other, net)


def test_names_of_the_networks_own_stay():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = StackedConv2d("2-3-2", 2)

    net, other = Net(), Net()
    assert load_weights(other, net.state_dict()) == ()
    assert same_state(other, net)
    state = {f"module.{key}": torch.randn_like(v) for key, v in net.state_dict().items() if v.dim()}
    assert load_weights(other, state) == ("'module.' was taken off 10 names",)
    assert torch.equal(other.module.weights[0], state["module.module.weights.0"])


def test_what_was_taken_off_is_logged(caplog):
    net = create_model("bunit_mlp", image_size=8)
    with caplog.at_level(logging.INFO, "bunit_kernels"):
        said = load_weights(net, {"state_dict": net.state_dict()})
    assert [record.message for record in caplog.records] == [f"load_weights: {said[0]}"]


@pytest.mark.parametrize(("change", "error", "message"), [
    (lambda state: {"state_dict": state, "model": state}, ValueError,
     "several states, under 'state_dict', 'model': pass one .* checkpoint..state_dict"),
    (lambda state: {"weights": state, "epoch": 3}, TypeError,
     "or a mapping with one under 'state_dict', .*; got dict with 'weights', 'epoch'"),
    (lambda state: {"state_dict": state, "model": "resnet20"}, None, None),
    (lambda state: {f"module.{key}": value for key, value in [*state.items()][:-1]}, ValueError,
     "1 missing: fc.bias"),
    (lambda state: {"x.fc.bias": state["fc.bias"]} | state, ValueError, "1 unexpected: x.fc.bias"),
])  # fmt: skip
def test_what_cannot_be_told_is_refused(change, error, message):
    net = create_model("resnet20")
    before = copy.deepcopy(net)
    state = create_model("resnet20").state_dict()
    if error is None:
        load_weights(net, change(state))
        return
    with pytest.raises(error, match=message):
        load_weights(net, change(state))
    assert same_state(net, before)


def test_shortcuts_are_filled_in_for_that_layout_alone():
    """A damaged checkpoint of ours is none with padded shortcuts."""
    net = create_model("resnet20")
    state = {k: v for k, v in net.state_dict().items() if "downsample" not in k}
    with pytest.raises(ValueError, match="10 missing: layer2.0.downsample.0.weight"):
        load_weights(net, state)
