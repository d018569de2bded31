"""Ready-made networks: names, sizes by hand, shapes, and the dense counterparts."""

from __future__ import annotations

import pytest
import torch

from bunit_kernels import models, nn
from bunit_kernels.models import create_model, dense_counterpart, list_models, register_model
from bunit_kernels.models.blocks import total_widths


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def test_list_has_every_model_and_its_counterpart():
    assert {"bunit_cnn", "cnn", "bunit_mlp", "mlp"} <= set(list_models())
    assert list_models() == sorted(list_models())
    assert dense_counterpart("bunit_cnn") == "cnn"
    assert dense_counterpart("bunit_mlp") == "mlp"
    assert dense_counterpart("cnn") is None
    assert all(dense_counterpart(n) in (None, *list_models()) for n in list_models())


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'bunit_cn'.*did you mean 'bunit_cnn'") as e:
        create_model("bunit_cn")
    assert all(name in str(e.value) for name in list_models())
    with pytest.raises(ValueError, match="unknown model 'nothing'"):
        dense_counterpart("nothing")


def test_unknown_argument_names_the_accepted_ones():
    message = "takes num_classes, .*seed, counts, shuffle; got .* 'depth'"
    with pytest.raises(TypeError, match=message):
        create_model("bunit_cnn", depth=3)


def test_a_name_registers_once():
    with pytest.raises(ValueError, match="already registered"):
        register_model()(models.cnn)


@pytest.mark.parametrize("name", ["bunit_cnn", "cnn"])
@pytest.mark.parametrize(
    "argument", [{"image_size": 0}, {"image_size": (8, 8, 8)}, {"num_classes": 0},
                 {"in_channels": 1.5}, {"num_units": 0}, {"pool": []}]
)  # fmt: skip
def test_cnn_arguments_are_checked(name, argument):
    with pytest.raises(ValueError, match="must be|empty"):
        create_model(name, **argument)


def test_mlp_hidden_must_fit_its_units():
    with pytest.raises(ValueError, match="hidden must be a multiple of 2, got 13"):
        create_model("bunit_mlp", hidden=13)


def test_cnn_sizes_by_hand():
    """Three 2-4-2 units a layer: 6 channels in, 12 hidden, 6 out; 8x8 grey images."""
    arguments = {"in_channels": 1, "image_size": 8, "num_units": 3, "pool": ["2-4-2"]}
    stem = 9 * 1 * 6 + 2 * 6
    mix = 9 * 6 * 6 + 2 * 6
    head = 6 * 4 * 4 * 10 + 10
    stacked = 3 * 9 * (2 * 4 + 4 * 2) + 2 * 12 + 2 * 6
    dense = 9 * (6 * 12 + 12 * 6) + 2 * 12 + 2 * 6
    total = parameters(create_model("bunit_cnn", **arguments))
    assert total == stem + stacked + mix + stacked + head == 2308
    total = parameters(create_model("cnn", **arguments))
    assert total == stem + dense + mix + dense + head == 4036


def test_mlp_sizes_by_hand():
    """784 pixels in 392 units 2-5-2, a normal layer 784 -> 12, six units 2-5-2, 12 -> 10; dense
    784-500-300-10."""
    biases = 392 * (5 + 2) + 12 + 6 * (5 + 2) + 10
    stacked = (392 + 6) * (2 * 5 + 5 * 2) + 784 * 12 + 12 * 10
    dense = 784 * 500 + 500 * 300 + 300 * 10
    assert parameters(create_model("bunit_mlp")) == stacked + biases == 20_296
    assert parameters(create_model("mlp")) == dense + 500 + 300 + 10 == 545_810
    # What the docstring says of it.
    assert 2 * stacked == 34_976
    assert 1 - stacked / dense == pytest.approx(0.9679, abs=5e-5)
    assert 1 - 20_296 / 545_810 == pytest.approx(0.9628, abs=5e-5)


@pytest.mark.parametrize("name", ["bunit_cnn", "cnn", "bunit_mlp", "mlp"])
@pytest.mark.parametrize("channels, size", [(1, 8), (1, 28), (3, 32), (2, (2, 2)), (1, (5, 7))])
def test_any_image_size_trains(name, channels, size):
    model = create_model(name, num_classes=7, in_channels=channels, image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    y = model(torch.randn(3, channels, height, width))
    assert y.shape == (3, 7)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["bunit_mlp", "mlp"])
def test_mlp_takes_flat_images_too(name):
    model = create_model(name).eval()
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(model(x), model(x.flatten(1)))


@pytest.mark.parametrize("name", ["bunit_cnn", "cnn", "bunit_mlp", "mlp"])
def test_wrong_image_size_says_what_the_model_was_built_for(name):
    model = create_model(name, in_channels=1, image_size=8)
    with pytest.raises(ValueError, match=r"built for \d+x\d+x\d+ values an item, got \d+"):
        model.eval()(torch.randn(1, 1, 20, 20))


def test_seed_draws_the_units_and_both_networks_draw_alike():
    def units(**kwargs):
        model = create_model("bunit_cnn", **kwargs)
        return model.stack1.units, model.stack2.units

    assert units(seed=1) == units(seed=1)
    assert units(seed=1) != units(seed=2)
    first, second = units(seed=3, num_units=12)
    assert len(first) == len(second) == 12 and first != second
    dense = create_model("cnn", seed=3, num_units=12)
    for stack, specs in ((dense.stack1, first), (dense.stack2, second)):
        assert [stack[0][0].in_channels, *(level[0].out_channels for level in stack)] == (
            total_widths(specs)
        )


def test_one_unit_is_its_dense_counterpart():
    """With a single unit a layer both networks are the same function of the same weights."""
    arguments = {"num_units": 1, "pool": ["3-2-4"], "image_size": 9}
    bunit, dense = create_model("bunit_cnn", **arguments), create_model("cnn", **arguments)
    state = {}
    for key, value in bunit.state_dict().items():
        layer, *rest = key.split(".")
        if layer.startswith("stack"):
            kind, level, *rest = rest
            rest = [level, "0", "weight"] if kind == "weights" else [level, "1", *rest]
        state[".".join([layer, *rest])] = value
    dense.load_state_dict(state)
    x = torch.randn(4, 3, 9, 9)
    for train in (True, False):
        torch.testing.assert_close(bunit.train(train)(x), dense.train(train)(x))


def test_bunit_models_are_made_of_stacked_layers():
    kinds = [type(m) for m in create_model("bunit_cnn").modules()]
    assert kinds.count(nn.StackedConv2d) == 2
    kinds = [type(m) for m in create_model("bunit_mlp").modules()]
    assert kinds.count(nn.StackedLinear) == 2
