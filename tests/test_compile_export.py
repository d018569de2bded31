"""torch.compile and torch.export: whole graphs, dynamic batches, the same results."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from module_cases import conv_layer, image, linear_layer, lived
from tolerance import assert_near, tolerance
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from bunit_kernels import StackedConv2d, StackedLinear, backend

NEAR = tolerance(torch.float64, terms=1000, roundings=30)
CONVS = ("uniform", "hybrid", "stride", "no norm", "bias and norm", "light hybrid")
LINEARS = ("uniform", "hybrid", "norm")
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.fixture(params=["torch", "cpp"])
def a_backend(request):
    """The loop is not made to be compiled: it is tried once, on the network."""
    with backend(request.param):
        yield request.param


class Net(nn.Module):
    """Stacked layers between others, as in a network: with a residual, a pool and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = lived(StackedConv2d("2-4-2", 3))
        self.mixed = lived(StackedConv2d(["1-2-1", "3-2-3:k5", "2-1-2"], stride=2))
        self.units = StackedLinear("2-3-2", 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        x = self.block(x, x, "relu")
        return self.head(self.units(self.mixed(x).mean((2, 3))))


def results(model, layer, x):
    """Output, gradients and buffers after one step of ``model``, which wraps ``layer``."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    gradients = [p.grad for p in layer.parameters()]
    return [y.detach(), x.grad, *gradients, *(b.double() for b in layer.buffers())]


def assert_compiles(layer, x, compiler="aot_eager", **options):
    eager = results(layer_copy := copy.deepcopy(layer), layer_copy, x)
    compiled = torch.compile(layer, backend=compiler, fullgraph=True, **options)
    scale = max(g.abs().max().item() for g in eager[1:])
    for mine, theirs in zip(results(compiled, layer, x), eager, strict=True):
        assert_near(mine, theirs, NEAR, scale=scale)


@modes
@pytest.mark.parametrize("name", CONVS)
def test_compiled_conv_layer(name, training, a_backend):
    layer = conv_layer(name, dtype=torch.float64).train(training)
    assert_compiles(layer, image(layer))


@modes
@pytest.mark.parametrize("name", LINEARS)
def test_compiled_linear_layer(name, training, a_backend):
    layer = linear_layer(name, dtype=torch.float64).train(training)
    assert_compiles(layer, torch.randn(5, layer.in_features).double())


def test_compiled_linear_units_go_back_in_one_operator():
    layer = linear_layer("uniform")
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    compiler = torch._dynamo.backends.common.aot_autograd(fw_compiler=keep, bw_compiler=keep)
    with backend("cpp"):
        y = torch.compile(layer, backend=compiler, fullgraph=True)(
            torch.randn(5, layer.in_features)
        )
        y.sum().backward()
    targets = [
        [str(n.target) for n in graph.graph.nodes if "bunit_kernels" in str(n.target)]
        for graph in graphs
    ]
    assert targets == [
        ["bunit_kernels.stacked_unit_linear.default"],
        ["bunit_kernels.stacked_unit_linear_backward.default"],
    ]


@modes
def test_compiled_network(training, every_backend):
    net = Net().double().train(training)
    assert_compiles(net, torch.randn(4, 3, 8, 9).double())


@modes
def test_compiled_channels_last(training, a_backend):
    layer = conv_layer("uniform", dtype=torch.float64).train(training)
    x = image(layer).to(memory_format=torch.channels_last)
    expected = copy.deepcopy(layer)(x)
    y = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_near(y, expected, NEAR)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_compiled_by_inductor():
    """With strides, fusion and memory of the compiler's own choice around the operators."""
    net = Net().double()
    assert_compiles(net, torch.randn(4, 3, 8, 9).double(), compiler="inductor")


@modes
@pytest.mark.parametrize(
    "a_backend, name",
    [("cpp", "uniform"), ("cpp", "hybrid"), ("cpp", "no norm"), ("torch", "hybrid")],
    indirect=["a_backend"],
)
def test_any_batch_runs_without_compiling_again(name, training, a_backend):
    layer = conv_layer(name, dtype=torch.float64).train(training)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    counts = set()
    for batch, size in ((3, (8, 9)), (5, (8, 9)), (2, (11, 10)), (7, (6, 13))):
        x = image(layer, batch, size)
        expected = copy.deepcopy(layer)(x)
        assert_near(compiled(x), expected, NEAR)
        counts.add(counter.frame_count)
    assert len(counts) == 1


@modes
def test_another_backend_is_noticed_after_compiling(training):
    layer = conv_layer("uniform", dtype=torch.float64).train(training)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = image(layer)
    for name in ("cpp", "torch"):
        with backend(name):
            compiled(x)
            ours = any("bunit_kernels" in str(n.target) for n in counter.graphs[-1].graph.nodes)
            assert ours == (name == "cpp")


def test_train_and_eval_compile_to_their_own_graphs(a_backend):
    layer = conv_layer("uniform", dtype=torch.float64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = image(layer)
    for training in (True, False, True):
        expected = copy.deepcopy(layer).train(training)(x)
        layer.train(training)
        assert_near(compiled(x), expected, NEAR)


def test_compiled_autocast(a_backend):
    layer = conv_layer("uniform")
    x = image(layer)
    expected = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, y_eager = compiled(x), expected(x)
    assert y.dtype == torch.bfloat16
    assert_near(y, y_eager, tolerance(torch.bfloat16, 100, 4))


def test_bad_input_is_told_while_compiling():
    layer = torch.compile(conv_layer("uniform"), backend="aot_eager")
    with pytest.raises(ValueError, match="expected 10 input channels"):
        layer(torch.randn(2, 7, 8, 8))


# --- torch.export --------------------------------------------------------------------------------


def export(layer, x, strict=False):
    batch = torch.export.Dim("batch", min=2, max=64)
    return torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=strict)


@modes
@pytest.mark.parametrize(
    ("name", "strict"),
    [("uniform", True), ("hybrid", False), ("bias and norm", False), ("light hybrid", False)],
)
def test_exported_program_runs_any_batch(name, training, strict, a_backend):
    layer = conv_layer(name, dtype=torch.float64).train(training)
    program = export(copy.deepcopy(layer), image(layer, batch=4), strict).module()
    for batch in (4, 9):
        x = image(layer, batch)
        assert_near(program(x), layer(x), NEAR)
    exported = dict(program.named_buffers())
    for buffer, theirs in layer.named_buffers() if training else ():
        assert_near(exported[buffer], theirs, NEAR, buffer)  # its updates are exported too


@modes
@pytest.mark.parametrize("name", LINEARS)
def test_exported_linear_layer(name, training, a_backend):
    layer = linear_layer(name, dtype=torch.float64).train(training)
    program = export(copy.deepcopy(layer), torch.randn(4, layer.in_features).double()).module()
    x = torch.randn(9, layer.in_features).double()
    assert_near(program(x), layer(x), NEAR)


@pytest.mark.parametrize("name", LINEARS)
def test_exported_linear_layer_trains(name, a_backend):
    layer = linear_layer(name, dtype=torch.float64)
    x = torch.randn(4, layer.in_features).double()
    program = export(copy.deepcopy(layer), x).module()
    expected = results(layer, layer, x)
    scale = max(g.abs().max().item() for g in expected[1:])
    for mine, theirs in zip(results(program, program, x), expected, strict=True):
        assert_near(mine, theirs, NEAR, scale=scale)


def test_exported_network_saves_and_loads(tmp_path, a_backend):
    net = Net().double().eval()
    program = export(net, torch.randn(4, 3, 8, 9).double())
    torch.export.save(program, tmp_path / "net.pt2")
    x = torch.randn(9, 3, 8, 9).double()
    assert_near(torch.export.load(tmp_path / "net.pt2").module()(x), net(x), NEAR)


def test_the_torch_backend_exports_pytorchs_operators_alone():
    """So that other runtimes take the program."""
    with backend("torch"):
        program = export(Net().eval(), torch.randn(4, 3, 8, 9))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets and not any("bunit_kernels" in target for target in targets)


def test_cpp_exports_one_operator_a_layer():
    with backend("cpp"):
        program = export(conv_layer("uniform").eval(), torch.randn(4, 10, 8, 9))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [t for t in targets if "bunit_kernels" in t] == [
        "bunit_kernels.stacked_unit_conv2d.default"
    ]
