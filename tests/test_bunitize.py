"""``bunitize``: what is replaced by what, that nothing is done twice, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from module_cases import run_units
from tolerance import assert_near
from torch import nn

from bunit_kernels import StackedConv2d, UnitSpec, bunitize, fuse, metrics, models
from bunit_kernels.layout import StackLayout
from bunit_kernels.nn._fit_units import fit_units, unit_pattern


class BasicBlock(nn.Module):
    """As torchvision's: one ReLU module, called twice."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride)

    def forward(self, x):
        identity = self.shortcut(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + identity)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU())
        self.block1 = BasicBlock(16, 16)
        self.block2 = BasicBlock(16, 32, 2)
        self.tail = nn.Sequential(nn.Conv2d(32, 32, 5, padding=2), nn.ReLU6(), nn.Conv2d(32, 8, 3))

    def forward(self, x):
        return self.tail(self.block2(self.block1(self.stem(x)))).mean((2, 3))


def conv(*args, **kwargs) -> nn.Sequential:
    """Two convolutions, so that one may be refused and the other replaced."""
    return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(*args, **kwargs))


def replaced(report) -> list[str]:
    return [row.name for row in report.replaced]


def state_of(model) -> tuple[str, dict]:
    return str(model), {k: v.clone() for k, v in model.state_dict().items()}


def assert_untouched(model, state) -> None:
    assert str(model) == state[0]
    assert all(torch.equal(v, state[1][k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


# Units that fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unit, c_in, c_out, expected",
    [
        ("2-4-2", 64, 64, "32 x 2-4-2"),
        ("2-4-2", 64, 128, "32 x 2-4-4"),
        ("2-4-m", 64, 128, "32 x 2-4-4"),
        ("2-4-2", 128, 64, "64 x 2-4-1"),
        ("4-8-4", 10, 10, "2 x 4-8-4, 1 x 2-4-2"),
        ("4-8-4", 10, 7, "1 x 4-8-2, 1 x 4-8-3, 1 x 2-4-2"),
        ("2-4-2", 9, 9, "4 x 2-4-2, 1 x 1-2-1"),
        ("2-4-2", 1, 1, "1 x 1-2-1"),
        ("2-4-2", 8, 3, "1 x 2-4-1, 2 x 3-4-1"),
        ((3, 5, 2, 3), 6, 6, "2 x 3-5-2-3"),
        ("4-8-4:k1,3", 8, 8, "2 x 4-8-4:k1,3"),
        ("4-8-8-m:k1,3,1:g1,8,1", 8, 16, "2 x 4-8-8-8:k1,3,1:g1,8,1"),
        ("4-8-8-m:g1,8,2", 10, 10, "2 x 4-8-8-4:g1,8,2, 1 x 2-4-4-2:g1,4,2"),
        ("4-8-4:g4", 6, 6, "1 x 4-8-4:g4, 1 x 2-4-2:g2"),
        (UnitSpec("2-4-2"), 4, 5, "1 x 2-4-2, 1 x 2-4-3"),
    ],
)
def test_units_by_hand(unit, c_in, c_out, expected):
    units = fit_units(unit_pattern(unit), c_in, c_out)
    assert StackLayout(units).describe() == expected


def test_units_always_lead_from_one_number_of_channels_to_the_other():
    for unit in ("1-2-1", "2-4-2", "3-2-1", "4-8-4", "5-1-3-2", "4-6-6-m:g2,6,3"):
        for c_in in range(1, 20):
            for c_out in range(1, 20):
                units = fit_units(unit_pattern(unit), c_in, c_out)
                layout = StackLayout(units)
                assert (layout.in_channels, layout.out_channels) == (c_in, c_out)


@pytest.mark.parametrize(
    "unit, message",
    [
        ("2-4", "needs a hidden layer"),
        ("2-4-2:k3,2", "must be odd to keep the size, got 2"),
        ("two", "parse"),
    ],
)
def test_units_that_are_none(unit, message):
    with pytest.raises(ValueError, match=message):
        bunitize(Net(), unit)


def test_convolutions_become_inverted_residuals():
    """Units with kernel sizes and groups keep the sizes, and cost what the report says."""
    model = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    new, report = bunitize(model, "4-8-8-m:k1,3,1:g1,8,1", input_size=(16, 9, 9))
    assert new[0].layout.describe() == "4 x 4-8-8-8:k1,3,1:g1,8,1"
    assert new(torch.randn(2, 16, 9, 9)).shape == (2, 32, 5, 5)
    assert report.new_parameters == sum(p.numel() for p in new.parameters())
    assert report.new_flops == metrics.count_flops(new, (16, 9, 9)) == report.replaced[0].new_flops
    scaled, _ = bunitize(model, "2-4-4-m:k1,3,1:g1,4,1", target_params=0.5, input_size=(16, 9, 9))
    units = next(m for m in scaled.modules() if hasattr(m, "units")).units
    assert all(unit.groups == (1, unit.widths[1], 1) for unit in units)


# What is replaced by what ------------------------------------------------------------------------


def test_every_convolution_that_a_stack_can_stand_for():
    model = Net()
    state = state_of(model)
    new, report = bunitize(model)
    assert_untouched(model, state)
    assert replaced(report) == [
        "block1.conv1",
        "block1.conv2",
        "block2.conv1",
        "block2.conv2",
        "tail.0",
    ]
    assert report.kept == {
        "stem.0": "3 channels wide, min_width is 16",
        "block1.shortcut": "1x1",
        "block2.shortcut": "1x1",
        "tail.2": "padding 0x0, which is not 1 and does not keep the size",
    }
    x = torch.randn(2, 3, 9, 10)
    assert new(x).shape == model(x).shape
    new(x).sum().backward()
    assert all(p.grad is not None for p in new.parameters())


def test_norm_and_activation_move_in_or_stay():
    new, _ = bunitize(Net(), min_width=3)
    stem, block, tail = new.stem, new.block2, new.tail
    assert (stem[0].activation, stem[0].out_activation) == ("silu", "silu")
    assert type(stem[1]) is type(stem[2]) is nn.Identity
    assert stem[0].norms is not None and stem[0].biases is None
    # The ReLU serves two calls: it stays, and the layers before it end without one.
    assert type(block.relu) is nn.ReLU and type(block.bn1) is type(block.bn2) is nn.Identity
    assert block.conv1.out_activation == block.conv2.out_activation == "identity"
    assert block.conv1.stride == 2 and block.conv1.units == (UnitSpec("2-4-4"),) * 8
    # No norm follows.
    assert tail[0].norms is None and tail[0].biases is not None
    assert tail[0].out_activation == "relu6" and type(tail[1]) is nn.Identity
    assert tail[0].layout.kernel_size == 5
    assert bunitize(Net(), activation="gelu")[0].tail[0].activation == "gelu"


def test_block_computes_what_it_says():
    """Against the formula written out with each layer's own loop over units."""
    new, _ = bunitize(BasicBlock(16, 32, 2).double())
    for name, buffer in new.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 2)
    new.eval()
    x = torch.randn(2, 16, 7, 8).double()

    with torch.no_grad():
        y = F.relu(run_units(new.conv1.to_units(), x))
        y = run_units(new.conv2.to_units(), y) + new.shortcut(x)
        assert_near(new(x), F.relu(y), 1e-12)


@pytest.mark.parametrize(
    "changes",
    [{"kernel_size": 5, "padding": 2}, {"kernel_size": 3, "padding": "same"},
     {"kernel_size": 3, "padding": 2, "dilation": 2},
     {"kernel_size": 3, "padding": 1, "stride": 2}],
)  # fmt: skip
def test_kernel_stride_padding_dilation_are_kept(changes):
    model = nn.Sequential(nn.Conv2d(16, 20, **changes))
    new, report = bunitize(model)
    x = torch.randn(1, 16, 11, 14)
    assert replaced(report) == ["0"] and new(x).shape == model(x).shape
    assert new[0].stride == changes.get("stride", 1)
    assert new[0].dilation == changes.get("dilation", 1)
    assert new[0].layout.kernel_size == changes["kernel_size"]


def test_what_a_stack_cannot_stand_for_is_kept_with_its_reason():
    class Own(nn.Conv2d):
        pass

    hooked, shared = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    hooked.register_forward_hook(lambda module, args, output: output)
    twin = nn.Conv2d(16, 16, 3, padding=1)
    twin.weight = shared.weight
    layers = {
        "grouped": nn.Conv2d(16, 16, 3, padding=1, groups=4),
        "depthwise": nn.Conv2d(16, 16, 3, padding=1, groups=16),
        "transposed": nn.ConvTranspose2d(16, 16, 3, padding=1),
        "oblong": nn.Conv2d(16, 16, (3, 5), padding=(1, 2)),
        "even": nn.Conv2d(16, 16, 2),
        "mirrored": nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        "own": Own(16, 16, 3, padding=1),
        "hooked": hooked,
        "shared": shared,
        "twin": twin,
        "good": nn.Conv2d(16, 16, 3, padding=1),
    }
    model = nn.ModuleDict(layers)
    _, report = bunitize(model)
    assert replaced(report) == ["good"]
    expected = {
        "grouped": "4 groups", "depthwise": "16 groups", "transposed": "transposed",
        "oblong": "3x5", "even": "even", "mirrored": "reflect", "own": "Own",
        "hooked": "hooks", "shared": "another module", "twin": "another module",
    }  # fmt: skip
    assert report.kept.keys() == expected.keys()
    for name, part in expected.items():
        assert part in report.kept[name]
        with pytest.raises(ValueError, match=f"'{name}': .*{part}"):
            bunitize(model, where=name)


NOT_ALONE = {
    "the norm's input is used, too": lambda m, y: m.norm(y) + y,
    "the norm takes another as well": lambda m, y: m.norm(y) + m.norm(2 * y),
    "something between": lambda m, y: m.norm(y.sigmoid()),
}


@pytest.mark.parametrize("what", NOT_ALONE)
def test_norms_that_serve_others_stay(what):
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)

        def forward(self, x):
            return NOT_ALONE[what](self, self.conv(x))

    new, _ = bunitize(Given())
    assert type(new.norm) is nn.BatchNorm2d and new.conv.norms is None
    assert new(torch.randn(2, 16, 5, 5)).shape == (2, 16, 5, 5)


def test_norms_settings_mode_type_and_device_are_the_convolutions():
    model = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1), nn.Identity(), nn.BatchNorm2d(16, eps=1e-3, momentum=0.3)
    )
    new, _ = bunitize(model.to(torch.bfloat16).eval())
    assert not any(module.training for module in new.modules())
    assert {(n.eps, n.momentum) for n in new[0].norms} == {(1e-3, 0.3)}
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
    assert type(new[1]) is type(new[2]) is nn.Identity
    with torch.device("meta"):
        meta = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SyncBatchNorm(16))
    new, _ = bunitize(meta)
    assert {p.device.type for p in new.parameters()} == {"meta"}
    assert all(type(norm) is nn.SyncBatchNorm for norm in new[0].norms)


def test_a_module_that_stands_in_two_places_does_so_after():
    shared = nn.Conv2d(16, 16, 3, padding=1)
    new, report = bunitize(nn.Sequential(shared, nn.ReLU(), shared))
    assert new[0] is new[2] and len(report.replaced) == 1
    assert new(torch.randn(1, 16, 4, 4)).shape == (1, 16, 4, 4)


def test_inplace():
    model = Net()
    new, _ = bunitize(model, inplace=True)
    assert new is model and isinstance(model.block1.conv1, StackedConv2d)


# Rules -------------------------------------------------------------------------------------------

BLOCKS = ["block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2"]


@pytest.mark.parametrize(
    "rule, expected",
    [
        ({"where": "block1.conv2"}, BLOCKS[1:2]),
        ({"where": "block*"}, BLOCKS),
        ({"where": ["block?.conv1", "tail.0"]}, [BLOCKS[0], BLOCKS[2], "tail.0"]),
        ({"where": lambda name, conv: conv.kernel_size == (5, 5)}, ["tail.0"]),
        ({"where": "stem.0"}, ["stem.0"]),
        ({"keep": "block1.*"}, [*BLOCKS[2:], "tail.0"]),
        ({"keep": ["block1.conv1", "tail.*"]}, BLOCKS[1:]),
        ({"keep": lambda name, conv: conv.stride == (2, 2)}, [*BLOCKS[:2], BLOCKS[3], "tail.0"]),
        ({"where": "block*", "keep": "*.conv1"}, [BLOCKS[1], BLOCKS[3]]),
        ({"min_width": 17}, [BLOCKS[3], "tail.0"]),
        ({"min_width": 1, "where": "stem*"}, ["stem.0"]),
        ({"of_each_block": "first"}, [BLOCKS[0], BLOCKS[2], "tail.0"]),
        ({"of_each_block": "last"}, [BLOCKS[1], BLOCKS[3], "tail.0"]),
    ],
)
def test_rules(rule, expected):
    new, report = bunitize(Net(), **rule)
    assert replaced(report) == expected
    for name, module in new.named_modules():
        assert isinstance(module, StackedConv2d) == (name in expected)
    assert len(report.replaced) + len(report.kept) == 9


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"where": "block1.bn1"}, "'block1.bn1' is a BatchNorm2d, not a convolution"),
        ({"where": "block1"}, r"BasicBlock, not a convolution; for the 3 in it say 'block1.\*'"),
        ({"where": "block1.conv3"}, "no module 'block1.conv3' .did you mean 'block1.conv[12]'"),
        ({"keep": "block1.conv3"}, "keep: the model has no module"),
        ({"where": "layer*"}, r"where='layer\*' matches no convolution"),
        ({"where": "block1.shortcut"}, "can stand for 'block1.shortcut': 1x1"),
        ({"where": "*.shortcut"}, "nothing to replace.*block1.shortcut: 1x1"),
        ({"keep": "*"}, "nothing to replace.*stem.0: in keep"),
        ({"min_width": 64}, "nothing to replace.*block1.conv1: 16 channels wide, min_width is 64"),
        ({"min_width": 0}, "min_width must be an int of at least 1, got 0"),
        ({"of_each_block": "second"}, "of_each_block must be one of all, first, last"),
        ({"activation": "tanh"}, "unknown activation 'tanh'"),
        ({"target_flops": 0.5}, "target_flops needs input_size"),
        ({"target_flops": 50, "input_size": (3, 8, 8)}, "above 0 and below 1, got 50"),
        ({"target_params": 0.0}, "target_params is a share to save, above 0 and below 1, got 0.0"),
        ({"input_size": (5, 8, 8)}, r"cannot take an item of shape \(5, 8, 8\)"),
        ({"target_params": 0.99}, r"99.0% of the parameters cannot be saved: .* save \d\d\.\d%"),
    ],
)
def test_errors_leave_the_model_as_it_was(arguments, message):
    model = Net()
    state = state_of(model)
    with pytest.raises(ValueError, match=message):
        bunitize(model, **arguments, inplace=True)
    assert_untouched(model, state)
    assert all(module.training for module in model.modules())


def test_arguments_of_another_kind():
    with pytest.raises(TypeError, match="takes an nn.Module, got str"):
        bunitize("resnet18")
    with pytest.raises(TypeError, match="where must be a name, a pattern"):
        bunitize(Net(), where=[3])
    with pytest.raises(ValueError, match="nothing to replace: the model has no convolution"):
        bunitize(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="nothing to replace: the model has no convolution"):
        bunitize(nn.Conv2d(16, 16, 3, padding=1))


# What it saves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["2-4-2", "4-8-4", "3-2-3-1"])
def test_report_counts_what_the_counters_count(unit):
    model = Net()
    new, report = bunitize(model, unit, min_width=3, input_size=(3, 9, 12))
    assert report.flops == metrics.count_flops(model, (3, 9, 12))
    assert report.new_flops == metrics.count_flops(new, (3, 9, 12))
    assert report.parameters == metrics.count_parameters(model)
    assert report.new_parameters == metrics.count_parameters(new)
    for row in report.replaced:
        layer = new.get_submodule(row.name)
        assert row.new_parameters == metrics.count_parameters(layer)
        assert row.after == layer.layout.describe()


def test_report_is_a_table():
    _, report = bunitize(Net(), where="block2.conv1", input_size=(3, 8, 8))
    weights, new = 9 * 16 * 32, 9 * 8 * (2 * 4 + 4 * 4)
    (row,) = report.replaced
    assert (row.parameters, row.new_parameters) == (weights + 64, new + 2 * (32 + 32))
    assert (row.flops, row.new_flops) == (2 * weights * 16, 2 * new * 16)
    title, line, total = str(report).splitlines()
    assert title.split() == "name before after parameters new saved MFLOPs new saved".split()
    assert "3x3 16 -> 32, stride 2, BatchNorm2d" in line and "8 x 2-4-4" in line
    assert f"{report.parameters_saving:.1%}" in total and f"{report.flops_saving:.1%}" in total
    _, report = bunitize(Net(), where="block2.conv1")
    assert report.flops is report.flops_saving is None and "MFLOPs" not in str(report)


@pytest.fixture(scope="module")
def resnet():
    return models.create_model("resnet20", num_classes=10)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.68])
@pytest.mark.parametrize("of", ["flops", "params"])
def test_targets_are_met_and_no_more_than_needed(resnet, of, share):
    arguments = {f"target_{of}": share, "input_size": (3, 32, 32)}
    new, report = bunitize(resnet, **arguments)
    counted = metrics.compare(new, resnet, (3, 32, 32))
    saved = counted.flops_saving if of == "flops" else counted.parameters_saving
    assert saved >= share
    # A step less and it would not be met: no layer can go back to dense.
    for row in report.replaced:
        whole = report.flops if of == "flops" else report.parameters
        gain = row.flops - row.new_flops if of == "flops" else row.parameters - row.new_parameters
        assert saved - gain / whole < share, f"{row.name} need not have been replaced"
    again, _ = bunitize(resnet, **arguments)
    assert str(again) == str(new), "the choice must be the same every time"


def test_two_targets_together(resnet):
    new, report = bunitize(resnet, target_flops=0.4, target_params=0.5, input_size=(3, 32, 32))
    assert report.flops_saving >= 0.4 and report.parameters_saving >= 0.5
    widths = {
        unit.in_channels for m in new.modules() if isinstance(m, StackedConv2d) for unit in m.units
    }
    assert widths <= {2, 4, 8, 16}


def test_target_that_cannot_be_met_says_what_can(resnet):
    _, most = bunitize(resnet, input_size=(3, 32, 32))
    with pytest.raises(ValueError, match=f"replaced save {most.flops_saving:.1%}"):
        bunitize(resnet, target_flops=most.flops_saving + 0.001, input_size=(3, 32, 32))
    _, report = bunitize(resnet, target_flops=most.flops_saving - 1e-9, input_size=(3, 32, 32))
    assert report.flops_saving == most.flops_saving


# What comes out is an ordinary network -----------------------------------------------------------


def test_state_dict_pickle_copy_and_fuse():
    new, _ = bunitize(Net())
    new(torch.randn(4, 3, 9, 9))
    new.eval()
    other, _ = bunitize(Net())
    other.load_state_dict(new.state_dict())
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        expected = new(x)
        for same in (other.eval(), pickle.loads(pickle.dumps(new)), copy.deepcopy(new)):
            assert torch.equal(same(x), expected)
        fused = fuse(new)
        torch.testing.assert_close(fused(x), expected)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


@pytest.mark.filterwarnings("ignore")
def test_compile():
    new, _ = bunitize(Net().eval())
    x = torch.randn(2, 3, 9, 9)
    compiled = torch.compile(new, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), new(x))


def test_it_learns():
    """Images of eight mean colours: the loss falls to a tenth in some steps of Adam."""
    model, _ = bunitize(Net())
    labels = torch.arange(16) % 8
    x = torch.randn(16, 3, 8, 8) + torch.randn(8, 3, 1, 1)[labels]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
