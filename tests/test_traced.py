"""Networks that PyTorch's older tracers and saved training programs take: ``torch.export`` in
training mode, ``torch.jit.trace``, ``torch.fx``."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import fx, nn

from bunit_kernels import StackedConv2d, StackedLinear, functional, models


def layers(training: bool):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        StackedConv2d("2-4-2", 4),
        StackedConv2d(["1-2-1", "3-2-1:k5", "4-2-2"], shuffle=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        StackedLinear("2-3-2", 2, norm="batch"),
    )
    return net.double().train(training)


def saved_and_loaded(save, load, program):
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    return load(file)


def assert_same_step(model, expected, x):
    """Output, gradients and running statistics of one forward and backward pass."""
    outputs = [m(x) for m in (model, expected)]
    torch.testing.assert_close(*outputs)
    for y in outputs:
        y.square().sum().backward()
    mine, theirs = (dict(m.named_parameters()) for m in (model, expected))
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name].grad, theirs[name].grad)
    mine, theirs = (dict(m.named_buffers()) for m in (model, expected))
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name])


@pytest.mark.filterwarnings("ignore")
def test_a_program_exported_in_training_trains(every_backend):
    net = layers(training=True)
    before = copy.deepcopy(net)
    x = torch.randn(4, 3, 9, 8).double()
    program = torch.export.export(net, (x,))
    program = saved_and_loaded(torch.export.save, torch.export.load, program)
    assert_same_step(program.module(), net, x)
    moved = [not torch.equal(a, b) for a, b in zip(net.buffers(), before.buffers(), strict=True)]
    assert moved and all(moved)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_traced_and_saved(training, grad, every_backend):
    net = layers(training)
    example = torch.randn(2, 3, 9, 8).double()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(copy.deepcopy(net), (example,))
    traced = saved_and_loaded(torch.jit.save, torch.jit.load, traced)
    if training:  # tracing ran the copy
        traced.load_state_dict(net.state_dict())
    if grad:
        assert_same_step(traced, net, torch.randn(5, 3, 11, 12).double())
    else:
        x = torch.randn(5, 3, 11, 12).double()
        with torch.no_grad():
            torch.testing.assert_close(traced(x), net(x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_fx_keeps_layers_as_nodes(training):
    net = layers(training)
    graph = fx.symbolic_trace(copy.deepcopy(net))
    called = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert called == [name for name, _ in net.named_children()]
    assert_same_step(graph, net, torch.randn(4, 3, 9, 8).double())


def test_fx_keeps_arguments():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = StackedConv2d("2-4-2", 3)

        def forward(self, x):
            return self.layer(x, residual=x, residual_activation="relu")

    net, x = Net().eval(), torch.randn(2, 6, 5, 5)
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))


@pytest.mark.parametrize("name", ["bunit_cnn", "bunit_lenet", "bunit_mlp", "bunit_resnet20"])
def test_fx_traces_networks(name):
    net = models.create_model(name).eval()
    shape = {"bunit_lenet": (1, 28, 28), "bunit_mlp": (1, 28, 28)}.get(name, (3, 32, 32))
    x = torch.randn(2, *shape)
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))


def test_what_fx_cannot_trace_is_said():
    layer = StackedConv2d("2-4-2", 3)
    with pytest.raises(
        TypeError, match=r"keeps a StackedConv2d as one node.* nn.Sequential\(layer"
    ):
        fx.symbolic_trace(layer)
    layer.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(TypeError, match="cannot trace StackedConv2d '0' while it has hooks"):
        fx.symbolic_trace(nn.Sequential(layer))

    def function(x):
        return functional.stacked_unit_conv2d(x, [], units="2-4-2", num_units=3)

    with pytest.raises(TypeError, match=r"a leaf of your torch.fx.Tracer .* torch.fx.wrap"):
        fx.symbolic_trace(function)
