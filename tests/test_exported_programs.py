"""Networks that leave Python: ONNX Runtime, and saved programs in processes without the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bunit_kernels
from bunit_kernels import StackedConv2d, backend, models
from bunit_kernels.backends import get_backend

BATCH = ({0: torch.export.Dim("batch", min=1)},)
NETWORKS = {
    "uniform": (lambda: StackedConv2d("2-4-4", 4, stride=2), (8, 9, 10)),
    "hybrid": (lambda: StackedConv2d(["1-2-1", "2-1-2", "3-2-1:k5"]), (6, 9, 10)),
    "light": (
        lambda: StackedConv2d(["4-8-8-4:k1,3,1:g1,8,1"] * 2 + ["2-3-2-2:k5"], stride=2),
        (10, 9, 10),
    ),
    "shuffled": (
        lambda: nn.Sequential(
            StackedConv2d("2-4-3", 4, shuffle=True), StackedConv2d(["3-2-1"] * 4, shuffle=True)
        ),
        (8, 9, 10),
    ),
    "shuffled hybrid": (
        lambda: StackedConv2d(["1-2-1", "2-1-2", "3-2-1:k5"], shuffle=True),
        (6, 9, 10),
    ),
    "gelu": (lambda: StackedConv2d("2-3-2", 2, activation="gelu"), (4, 6, 5)),
    "bunit_mlp": (lambda: models.create_model("bunit_mlp"), (1, 28, 28)),
    "bunit_resnet20": (lambda: models.create_model("bunit_resnet20"), (3, 32, 32)),
}


def trained(build, shape):
    """A network in eval mode whose norms have statistics, and inputs for it."""
    network, x = build(), torch.randn(3, *shape)
    network.train()
    network(x)
    return network.eval(), x


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_gives_the_same(name, tmp_path):
    """With backend "torch" nothing of ours is in the file; any batch size goes in."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    network, x = trained(*NETWORKS[name])
    with backend("torch"), torch.no_grad():
        program = torch.onnx.export(network, (x,), dynamo=True, dynamic_shapes=BATCH, verbose=False)
    program.save(tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "network.onnx", providers=["CPUExecutionProvider"]
    )
    other = torch.randn(5, *x.shape[1:])
    (actual,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    with torch.no_grad():
        expected = network(other)
    torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])
def test_onnx_export_by_the_default_backend_has_operators_of_onnx_alone(dynamo, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    network, x = trained(*NETWORKS["uniform"])
    assert get_backend() == "auto"
    torch.onnx.export(network, (x,), tmp_path / "net.onnx", dynamo=dynamo, verbose=False)
    nodes = onnx.load(tmp_path / "net.onnx").graph.node
    assert nodes and {node.domain for node in nodes} == {""}
    if dynamo:  # the program for other purposes still has ours
        graph = torch.export.export(network, (x,)).graph
        assert any("bunit_kernels" in str(node.target) for node in graph.nodes)


@pytest.mark.filterwarnings("ignore")
def test_onnx_export_by_our_kernels_says_what_to_do():
    pytest.importorskip("onnxscript")
    network, x = trained(*NETWORKS["uniform"])
    message = "backend 'cpp' cannot run this input: ONNX has none of its operators; 'auto', 'torch'"
    with backend("cpp"), pytest.raises(torch.onnx.OnnxExporterError, match=message):
        torch.onnx.export(network, (x,), dynamo=True, verbose=False)


LOADED = """
import sys, torch
library, program, tensors, load = sys.argv[1:]
torch.ops.load_library(library)
x, expected = torch.load(tensors)
if load == "export":
    run = torch.export.load(program).module()
else:
    run = torch._inductor.aoti_load_package(program)
with torch.no_grad():
    actual = run(x)
# The dense convolution before our layer may be summed in another order by a compiled program.
torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
assert not any(name.startswith("bunit") for name in sys.modules)
"""


def runs_without_the_package(program: Path, tensors: Path, load: str) -> None:
    library = Path(bunit_kernels.__file__).parent / "_C_cpu.so"
    arguments = [sys.executable, "-c", LOADED, library, program, tensors, load]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=program.parent)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def exported(tmp_path):
    def build():
        return nn.Sequential(nn.Conv2d(3, 8, 3), StackedConv2d("2-4-4", 4, stride=2))

    network, x = trained(build, (3, 9, 10))
    with torch.no_grad():
        torch.save((x, network(x)), tmp_path / "tensors.pt")
        return torch.export.export(network, (x,), dynamic_shapes=BATCH)


@pytest.mark.filterwarnings("ignore")
def test_saved_program_runs_with_the_compiled_part_alone(exported, tmp_path):
    torch.export.save(exported, tmp_path / "program.pt2")
    runs_without_the_package(tmp_path / "program.pt2", tmp_path / "tensors.pt", "export")


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_program_compiled_ahead_of_time(exported, tmp_path):
    program = tmp_path / "compiled.pt2"
    torch._inductor.aoti_compile_and_package(exported, package_path=str(program))
    runs_without_the_package(program, tmp_path / "tensors.pt", "aoti")
