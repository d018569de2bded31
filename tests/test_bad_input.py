"""What cannot run is told before anything runs: one exception that names what came and what was
expected. (State dictionaries: test_state_dict.py; units given as modules: the same.)"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from module_cases import conv_layer, linear_layer
from torch import nn

import bunit_kernels
from bunit_kernels import StackedConv2d, StackedLinear, backend, backends, bunitize, functional
from bunit_kernels.activations import ACTIVATIONS
from bunit_kernels.backends import BackendUnavailable, _choice
from bunit_kernels.backends import triton as triton_backend
from bunit_kernels.layout import ConvGeometry, StackLayout, resolve_units
from bunit_kernels.ops._extension import _load


@pytest.fixture(autouse=True)
def no_backend_runs(monkeypatch):
    """Fails a test in which a backend is chosen, which comes just before it runs."""

    def select(*_):
        raise AssertionError("a backend was chosen for input that should have been refused")

    monkeypatch.setattr(functional, "select", select)


@contextmanager
def raises(kind, *parts):
    """``pytest.raises`` for an exception that has every one of ``parts`` in its message."""
    with pytest.raises(kind) as error:
        yield
    for part in parts:
        assert str(part) in str(error.value)


# --- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["uniform", "hybrid", "no norm"])
def test_wrong_channel_count(name, training):
    layer = conv_layer(name).train(training)
    channels = layer.in_channels
    with raises(ValueError, f"expected {channels} input channels", "got 11", "(2, 11, 8, 8)"):
        layer(torch.randn(2, 11, 8, 8))


def test_wrong_channel_count_names_the_units():
    with raises(ValueError, "5 x 2-4-2"):
        conv_layer("uniform")(torch.randn(2, 11, 8, 8))


def test_wrong_feature_count():
    with raises(ValueError, "shape [..., 20]", "5 x 4-8-4", "got (3, 21)"):
        linear_layer("uniform")(torch.randn(3, 21))
    with raises(ValueError, "shape [..., 20]", "got ()"):
        linear_layer("uniform")(torch.randn(()))


@pytest.mark.parametrize("shape", [(10, 8, 8), (10,), (), (1, 2, 10, 8, 8)], ids=str)
def test_wrong_rank(shape):
    with raises(ValueError, "4 dimensions [N, 10, H, W]", f"got {len(shape)}", shape):
        conv_layer("uniform")(torch.randn(shape))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_images_without_pixels(size):
    with raises(ValueError, "at least 1x1 pixels", f"got {size[0]}x{size[1]}"):
        conv_layer("uniform")(torch.randn(2, 10, *size))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
def test_dtypes_that_no_backend_takes(dtype, autocast):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with raises(TypeError, "float32", "bfloat16", f"got {dtype}"):
            conv_layer("uniform")(torch.zeros(2, 10, 8, 8, dtype=dtype))
        with raises(TypeError, "float32", "bfloat16", f"got {dtype}"):
            linear_layer("uniform")(torch.zeros(2, 20, dtype=dtype))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_another_dtype_than_the_weights(dtype, training):
    with raises(TypeError, "weight of level 1 is torch.float32", f"input is {dtype}"):
        conv_layer("hybrid").train(training)(torch.zeros(2, 10, 8, 8, dtype=dtype))
    with raises(TypeError, "weight of level 1 is torch.float32", f"input is {dtype}"):
        linear_layer("norm").train(training)(torch.zeros(2, 12, dtype=dtype))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_another_device_than_the_weights(training):
    with raises(ValueError, "weight of level 1 is on cpu", "input is on meta"):
        conv_layer("uniform").train(training)(torch.zeros(2, 10, 8, 8, device="meta"))
    with raises(ValueError, "weight of level 1 is on meta", "input is on cpu"):
        StackedConv2d("2-4-2", 5, device="meta").train(training)(torch.zeros(2, 10, 8, 8))


@pytest.mark.parametrize("value", [None, [1.0], "x", 3], ids=str)
def test_no_tensor(value):
    with raises(TypeError, "must be a tensor", type(value).__name__):
        conv_layer("uniform")(value)
    with raises(TypeError, "must be a tensor", type(value).__name__):
        linear_layer("uniform")(value)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("residual", "kind", "parts"),
    [
        (torch.zeros(2, 10, 8, 7), ValueError, ["residual", (2, 10, 8, 8), (2, 10, 8, 7)]),
        (torch.zeros(2, 10), ValueError, ["residual", (2, 10, 8, 8), (2, 10)]),
        (torch.zeros(2, 10, 8, 8).double(), TypeError, ["residual", "float64", "float32"]),
        (torch.zeros(2, 10, 8, 8, device="meta"), ValueError, ["residual", "meta", "cpu"]),
    ],
    ids=["size", "rank", "dtype", "device"],
)
def test_residual_unlike_the_output(residual, kind, parts, training):
    with raises(kind, *parts):
        conv_layer("uniform").train(training)(torch.zeros(2, 10, 8, 8), residual)


@pytest.mark.parametrize("name", ["gelu", "Relu", None])
def test_unknown_residual_activation(name):
    x = torch.zeros(2, 10, 8, 8)
    with raises(ValueError, "unknown residual_activation", repr(name), "identity, relu"):
        conv_layer("uniform")(x, x, name)


def test_padding_that_loses_a_hidden_levels_size():
    layer = StackedConv2d("2-4-4-2", 3, padding=0)
    with raises(ValueError, "padding=0", "after level 3 of 3", "6x9 pixels", "2 off", "kernel 3x3"):
        layer(torch.randn(2, 6, 6, 9))


def test_one_value_a_channel_in_training():
    with raises(ValueError, "more than one value a channel", "(1, 10, 1, 1)", "eval"):
        conv_layer("uniform")(torch.zeros(1, 10, 1, 1))
    # One pixel is left by the stride, too.
    with raises(ValueError, "more than one value a channel", "(1, 6, 2, 2)"):
        conv_layer("stride")(torch.zeros(1, 6, 2, 2))


# --- functions -----------------------------------------------------------------------------------

X = torch.zeros(2, 6, 5, 5)
W = [torch.zeros(12, 2, 3, 3), torch.zeros(6, 4, 3, 3)]
B = [torch.zeros(12), torch.zeros(6)]
UNITS = {"units": "2-4-2", "num_units": 3}


@pytest.mark.parametrize(
    ("weights", "biases", "kind", "parts"),
    [
        (W[:1], [], ValueError, ["2 levels", "got 1 weights and 0 biases"]),
        (W, B[:1], ValueError, ["2 levels", "got 2 weights and 1 biases"]),
        (W[::-1], [], ValueError, ["weight of level 1", (12, 2, 3, 3), (6, 4, 3, 3)]),
        ([W[0], torch.zeros(6, 4, 9)], [], ValueError, ["weight of level 2", (6, 4, 9)]),
        (W, B[::-1], ValueError, ["bias of level 1", (12,), (6,)]),
        (W, [B[0], B[1].double()], TypeError, ["bias of level 2 is torch.float64", "float32"]),
        ([W[0], W[1].half()], [], TypeError, ["weight of level 2 is torch.float16", "float32"]),
        ([W[0].to("meta"), W[1]], [], ValueError, ["weight of level 1 is on meta", "cpu"]),
    ],
)
def test_parameters_of_a_whole_unit(weights, biases, kind, parts):
    with raises(kind, *parts):
        functional.stacked_unit_conv2d(X, weights, biases, **UNITS)


def test_parameters_of_a_level():
    with raises(ValueError, "weight of level 1", (12, 2, 3, 3), (12, 2, 5, 5)):
        functional.stacked_conv2d(X, torch.zeros(12, 2, 5, 5), units="2-4", num_units=3)
    with raises(ValueError, "bias of level 1", (12,), (6,)):
        functional.stacked_conv2d(X, W[0], B[1], units="2-4", num_units=3)
    with raises(ValueError, "weight of level 1", (12, 2), (12, 3)):
        functional.stacked_linear(torch.zeros(2, 6), torch.zeros(12, 3), units="2-4", num_units=3)


def test_level_operations_take_one_level():
    with raises(ValueError, "units of 1 level", "2-4-2 with 2"):
        functional.stacked_conv2d(X, W[0], **UNITS)
    with raises(ValueError, "units of 1 level", "2-4-2 with 2"):
        functional.stacked_linear(torch.zeros(2, 6), W[0], **UNITS)


@pytest.mark.parametrize(
    ("gammas", "betas", "kind", "parts"),
    [
        (B[:1], B, ValueError, ["expected 2 gammas", "got 1"]),
        (B, [], ValueError, ["expected 2 betas", "got 0"]),
        (B[::-1], B, ValueError, ["gamma of level 1", (12,), (6,)]),
        (B, [B[0], B[1].double()], TypeError, ["beta of level 2 is torch.float64", "float32"]),
        (B, [B[0], B[1].half()], TypeError, ["beta of level 2 is torch.float16", "float32"]),
        ([B[0].to("meta"), B[1]], B, ValueError, ["gamma of level 1 is on meta", "cpu"]),
    ],
)
def test_norms_of_a_whole_unit(gammas, betas, kind, parts):
    with raises(kind, *parts):
        functional.stacked_unit_conv2d_train(X, W, gammas, betas, **UNITS)


@pytest.mark.parametrize("kernel_size", [0, -1, 3.0, True, None, "3"])
def test_kernel_sizes(kernel_size):
    with raises(ValueError, "kernel_size must be an int of at least 1", repr(kernel_size)):
        StackedConv2d("2-4-2", 3, kernel_size=kernel_size)
    with raises(ValueError, "kernel_size must be an int of at least 1", repr(kernel_size)):
        functional.stacked_unit_conv2d(X, W, kernel_size=kernel_size, **UNITS)


def test_a_linear_stack_is_no_convolution():
    with raises(ValueError, "kernel_size must be an int", "got None"):
        ConvGeometry(StackLayout(resolve_units("2-4"), None))


# --- construction --------------------------------------------------------------------------------

LAYERS = pytest.mark.parametrize("layer", [StackedConv2d, StackedLinear], ids=["conv", "linear"])


@LAYERS
@pytest.mark.parametrize("units", [[], ()])
def test_empty_list_of_units(layer, units):
    with raises(ValueError, "at least one unit", "got an empty list"):
        layer(units)


@LAYERS
@pytest.mark.parametrize("units", ["2-4-x", ["2-4-2", "2-4-"], "relu"])
def test_spec_that_does_not_parse(layer, units):
    with raises(ValueError, "cannot parse unit", repr(units if type(units) is str else units[1])):
        layer(units)


@LAYERS
def test_units_of_different_depth(layer):
    with raises(ValueError, "same depth", "2-4 (1 levels)", "1-2-1 (2 levels)"):
        layer(["2-4", "1-2-1"])


@LAYERS
@pytest.mark.parametrize("count", [0, -2, 2.0, True, "3"])
def test_number_of_units(layer, count):
    with raises(ValueError, "num_units must be an int of at least 1", repr(count)):
        layer("2-4-2", count)


@LAYERS
def test_number_of_units_beside_a_list(layer):
    with raises(ValueError, "num_units is 3", "2 units are listed"):
        layer(["2-4-2", "1-2-1"], 3)


@LAYERS
@pytest.mark.parametrize("argument", ["activation", "out_activation"])
@pytest.mark.parametrize("name", ["tanh", "ReLU", "", None])
def test_unknown_activation(layer, argument, name):
    with raises(ValueError, f"unknown {argument} {name!r}", *ACTIVATIONS):
        layer("2-4-2", **{argument: name})


def test_unknown_activation_of_a_function():
    with raises(ValueError, "unknown activation 'tanh'", *ACTIVATIONS):
        functional.stacked_conv2d(X, W[0], units="2-4", num_units=3, activation="tanh")
    with raises(ValueError, "unknown out_activation 'tanh'", *ACTIVATIONS):
        functional.stacked_unit_conv2d(X, W, out_activation="tanh", **UNITS)


@LAYERS
@pytest.mark.parametrize("norm", ["layer", True, ""])
def test_unknown_norm(layer, norm):
    with raises(ValueError, 'norm must be "batch" or None', repr(norm)):
        layer("2-4-2", norm=norm)


@pytest.mark.parametrize("name", ["stride", "dilation"])
@pytest.mark.parametrize("value", [0, -1, 1.0, (2, 2), None, True])
def test_stride_and_dilation(name, value):
    with raises(ValueError, f"{name} must be an int of at least 1", repr(value)):
        StackedConv2d("2-4-2", **{name: value})


@LAYERS
@pytest.mark.parametrize("shuffle", [1, None, "no", 2.0])
def test_shuffle(layer, shuffle):
    got = f"{shuffle!r} ({type(shuffle).__name__})"
    with raises(TypeError, "shuffle must be a bool", got):
        layer("2-4-2", 3, shuffle=shuffle)
    with raises(TypeError, "shuffle must be a bool", got):
        layer.from_units(layer("2-4-2", 3).to_units(), shuffle=shuffle)
    with raises(TypeError, "shuffle must be a bool", got):
        functional.stacked_unit_conv2d(X, W, shuffle=shuffle, **UNITS)
    with raises(TypeError, "shuffle must be a bool", got):
        bunitize(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)), shuffle=shuffle)


@pytest.mark.parametrize("padding", [-1, 1.0, "valid", (1, 1), None, True])
def test_padding(padding):
    with raises(ValueError, 'padding must be "same" or an int of at least 0', repr(padding)):
        StackedConv2d("2-4-2", padding=padding)


def test_paddings_that_give_units_different_sizes():
    with raises(ValueError, "padding=1", "kernel sizes [3, 5]", 'padding="same"'):
        StackedConv2d(["2-4-2", "2-4-2:k5"], padding=1)


def test_even_kernels_have_no_same_padding():
    with raises(ValueError, "odd kernel sizes", "got 4"):
        StackedConv2d(["2-4-2", "1-2-1:k4"])


def test_linear_units_have_no_kernel():
    with raises(ValueError, "linear units have no kernel size", "got 2-4-2:k3"):
        StackedLinear(["1-2-1", "2-4-2:k3"])


def test_kernel_sizes_and_groups_of_levels():
    with raises(ValueError, "as many as unit '2-4-2:k1,3,1' has levels, 2", "got 3: 1,3,1"):
        StackedConv2d("2-4-2:k1,3,1", 3)
    with raises(ValueError, "level 2 of unit '2-4-2:g1,4'", "4 -> 2 channels and 4 groups"):
        StackedConv2d("2-4-2:g1,4", 3)
    with raises(ValueError, "linear units have no groups", "got 2-4-2:g2"):
        StackedLinear(["1-2-1", "2-4-2:g2"])


# --- backends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cudnn", "", "CPP", None])
def test_unknown_backend(name):
    for ask in (backend, backends.why_not):
        with raises(ValueError, f"unknown backend {name!r}", "auto, reference, torch, cpp, cuda"):
            ask(name)
    assert backends.get_backend() == "auto"


@pytest.fixture
def not_interpreted(monkeypatch):
    """As where nobody asked for Triton's interpreter."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="they can")
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_backend_that_cannot_run_here(name, not_interpreted):
    assert backends.why_not(name) is not None
    with raises(BackendUnavailable, f"backend {name!r} cannot run here", backends.why_not(name)):
        backend(name)
    assert backends.get_backend() == "auto"
    assert name not in backends.available()


def test_backend_that_cannot_take_an_input(monkeypatch):
    monkeypatch.setattr(functional, "select", backends.select)
    layer = StackedConv2d("2-4-2", 3, device="meta")
    with backend("cpp"), raises(BackendUnavailable, "'cpp'", "CPU tensors", "on meta"):
        layer(torch.zeros(2, 6, 8, 8, device="meta"))


def test_missing_compiled_part_says_how_to_get_it(monkeypatch, not_interpreted):
    reason = _load("_C_nothing")
    for part in ("_C_nothing.so is missing", "pip install -e ."):
        assert part in reason
    monkeypatch.setattr(bunit_kernels.backends.cpp, "CPU_MISSING", reason)
    assert backends.available() == ["reference", "torch"]
    with raises(BackendUnavailable, "backend 'cpp' cannot run here", reason):
        backend("cpp")


@pytest.mark.parametrize("name", ["numpy", "CPP"])
def test_unknown_backend_in_the_environment(name, monkeypatch):
    monkeypatch.setenv("BUNIT_BACKEND", name)
    with raises(ValueError, f"BUNIT_BACKEND={name!r}", "auto, reference, torch, cpp"):
        _choice._from_environment()


@pytest.mark.skipif(torch.cuda.is_available(), reason="it can run")
def test_unusable_backend_in_the_environment(monkeypatch, not_interpreted):
    monkeypatch.setenv("BUNIT_BACKEND", "triton")
    with raises(BackendUnavailable, "BUNIT_BACKEND='triton'", backends.why_not("triton")):
        _choice._from_environment()


def test_triton_says_what_it_takes(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "CPU tensors (TRITON_INTERPRET=1), got one on meta" in backends.why_not("triton", "meta")
    assert "torch.float16, got torch.float64" in backends.why_not("triton", "cpu", torch.float64)


def test_triton_that_is_missing_or_too_old(monkeypatch):
    monkeypatch.setattr(triton_backend, "_no_triton", triton_backend._no_triton.__wrapped__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'triton>=3.6'" in backends.why_not("triton")
    monkeypatch.undo()
    monkeypatch.setattr(triton_backend, "_no_triton", triton_backend._no_triton.__wrapped__)
    monkeypatch.setattr("triton.__version__", "3.5.1")
    assert "3.6 or newer, got 3.5.1" in backends.why_not("triton")


WITHOUT_COMPILED_PART = """
import torch, bunit_kernels as b
print(b.backends.available())
layer = b.StackedConv2d("2-4-2", 3)
layer(torch.randn(2, 6, 5, 5)).sum().backward()
assert layer.weights[0].grad is not None
b.set_backend("cpp")
"""


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(False, "_C_cpu.so is missing"), (True, "does not load with torch")],
    ids=["missing", "broken"],
)
def test_package_without_its_compiled_part(broken, reason, tmp_path):
    """It imports and runs, by PyTorch's own operators; ``cpp`` asked for says what is missing."""
    source = Path(bunit_kernels.__file__).parent
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    package = shutil.copytree(source, tmp_path / source.name, ignore=ignore)
    if broken:
        (package / "_C_cpu.so").write_bytes(b"not a shared object")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("BUNIT_BACKEND", None)
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILED_PART],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "['reference', 'torch']" in result.stdout, result.stderr
    assert result.stderr.count("UserWarning: 'auto' is PyTorch's own operators: ") == 1
    message = result.stderr.strip().splitlines()[-1]
    assert "BackendUnavailable: backend 'cpp' cannot run here" in message and reason in message
