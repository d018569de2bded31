"""Choosing backends: names, the context manager, the environment variable, ``auto``."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from module_cases import CONV_LAYERS, LINEAR_LAYERS, conv_layer, image, linear_layer

from bunit_kernels import StackedConv2d, backend, backends
from bunit_kernels._tensor_format import format_of
from bunit_kernels.backends import _choice, _crossover
from bunit_kernels.backends.base import Backend, UnitActivations
from bunit_kernels.layout import ConvGeometry, StackLayout, resolve_units

SHORT = _crossover.SHORT
LAYOUT = StackLayout(resolve_units("2-4-2", 3))


def test_all_cpu_backends_are_there():
    """The suite is not to pass because the compiled part is missing, or Triton."""
    interpreted = ["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else []
    assert backends.available("cpu") == ["reference", "torch", "cpp", *interpreted]


def test_available_asks_for_a_device():
    assert backends.available()[:3] == ["reference", "torch", "cpp"]
    assert backends.available("meta") == ["reference", "torch"]


def test_why_not():
    for name in ("auto", "reference", "torch", "cpp"):
        assert backends.why_not(name) is None
    assert "CPU tensors, got one on meta" in backends.why_not("cpp", "meta")
    assert "float32" in backends.why_not("cpp", "cpu", torch.int64)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert backends.why_not("cpp", "cpu", dtype) is None


def test_the_block_restores_the_choice_before_it():
    with backend("reference"):
        assert backends.get_backend() == "reference"
        with backend("torch"):
            assert backends.get_backend() == "torch"
        assert backends.get_backend() == "reference"
    assert backends.get_backend() == "auto"


def test_the_choice_is_restored_after_an_exception():
    with pytest.raises(KeyError), backend("torch"):
        raise KeyError
    assert backends.get_backend() == "auto"


def test_set_backend_lasts_and_a_block_goes_over_it():
    backends.set_backend("torch")
    try:
        assert backends.get_backend() == "torch"
        with backend("cpp"):
            backends.set_backend("reference")
            assert backends.get_backend() == "cpp"
        assert backends.get_backend() == "reference"
    finally:
        backends.set_backend("auto")


def test_a_block_is_in_force_from_its_beginning_and_may_be_entered_again():
    block = backend("torch")
    assert backends.get_backend() == "auto"
    with block, backend("cpp"), block:
        assert backends.get_backend() == "torch"
    assert backends.get_backend() == "auto"


def test_describe():
    assert backends.describe() == "auto (cpp, torch)"
    assert backends.describe("meta") == "auto (torch)"
    with backend("reference"):
        assert backends.describe() == "reference"


class Spy:
    """Stands for a backend and notes which operations it is asked for."""

    def __init__(self, behind: Backend):
        self.behind, self.calls = behind, []

    def __getattr__(self, name):
        if name in ("why_not", "name", "limits"):
            return getattr(self.behind, name)
        self.calls.append(name)
        return getattr(self.behind, name)


@pytest.mark.parametrize("name", ["reference", "torch", "cpp"])
def test_the_backend_in_force_runs(name, monkeypatch):
    spy = Spy(_choice._BACKENDS[name])
    monkeypatch.setitem(_choice._BACKENDS, name, spy)
    layer = conv_layer("uniform")
    with backend(name):
        layer(image(layer))
        layer.eval()(image(layer))
        layer.norms[0].train()
        layer(image(layer))
        linear_layer("uniform")(torch.randn(2, 20))
        linear_layer("norm")(torch.randn(4, 12))
    whole = ["unit_conv2d_train", "unit_conv2d"]
    assert spy.calls == [*whole, "conv2d", "conv2d", "unit_linear", "linear", "linear"]


def test_backend_objects_have_the_whole_interface():
    operations = ("conv2d", "linear", "unit_conv2d", "unit_linear", "unit_conv2d_train")
    for name, behind in _choice._BACKENDS.items():
        assert behind.name == name
        assert all(callable(getattr(behind, operation)) for operation in operations)


def test_auto_takes_what_can_run():
    assert _choice.select("conv2d", torch.empty(1, device="meta"), LAYOUT).name == "torch"
    assert _choice.select("conv2d", torch.empty(1, 2, 3, 3), LAYOUT).name in ("cpp", "torch")


@pytest.mark.parametrize("preferred", [True, False])
def test_auto_follows_the_measured_crossover(preferred, monkeypatch):
    monkeypatch.setattr(_choice, "prefers_torch", lambda *_: preferred)
    chosen = _choice.select("conv2d", torch.empty(1), LAYOUT)
    assert chosen.name == ("torch" if preferred else "cpp")
    with backend("cpp"):  # asked for by name, it is not overruled
        assert _choice.select("conv2d", torch.empty(1), LAYOUT).name == "cpp"


@pytest.mark.parametrize("units", ["64-64", "64-64-32"])
@pytest.mark.parametrize("training", [True, False])
def test_auto_keeps_away_from_wrong_convolutions(units, training):
    """PyTorch's bfloat16 convolutions are wrong on some processors where outputs are one pixel wide
    and stride is above 1; such units are otherwise PyTorch's, being wide."""
    layer = StackedConv2d(units, num_units=2, stride=2).train(training)
    x = torch.randn(6, layer.in_channels, 2 * SHORT, 2)
    x = x.contiguous(memory_format=torch.channels_last)
    expected = copy.deepcopy(layer).double()(x.double())
    layer, x = layer.bfloat16(), x.bfloat16()
    geometry = layer.geometry
    assert _crossover.prefers_torch("conv2d", geometry.layout, geometry, x.repeat(1, 1, 1, SHORT))
    assert not _crossover.prefers_torch("conv2d", geometry.layout, geometry, x)
    # Weights, input and each level's output are rounded to 8 bits.
    torch.testing.assert_close(layer(x).double(), expected, atol=0.1, rtol=0.05)


@pytest.mark.parametrize(
    ("dtype", "size", "options"),
    [
        (torch.bfloat16, (1, 6), {"kernel_size": 2, "padding": 2, "dilation": 3}),
        (torch.float16, (2, 1), {"kernel_size": 1, "padding": 1, "stride": 2}),
    ],
    ids=str,
)
def test_auto_keeps_away_from_convolutions_that_end_the_process(dtype, size, options):
    """Outputs that meet no pixel are those of a bias alone."""
    layer = StackedConv2d("16-16", num_units=2, norm=None, **options)
    with torch.no_grad():
        x = torch.randn(3, 32, *size)
        x = x.contiguous(memory_format=torch.channels_last)
        expected = copy.deepcopy(layer).double()(x.double())
        actual = layer.to(dtype)(x.to(dtype))
    torch.testing.assert_close(actual.double(), expected, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_auto_chooses_for_each_level_of_units_that_go_by_level(training, monkeypatch):
    asked, spies = [], {name: Spy(_choice._BACKENDS[name]) for name in ("cpp", "torch")}
    for name, spy in spies.items():
        monkeypatch.setitem(_choice._BACKENDS, name, spy)

    def depthwise_to_torch(op, layout, geometry, x):
        asked.append((op, layout.width))
        return layout.width == 1

    monkeypatch.setattr(_choice, "prefers_torch", depthwise_to_torch)
    layer = conv_layer("light").train(training)
    layer(image(layer))
    op = "unit_conv2d_train" if layer.training else "conv2d"
    assert asked == [(op, 4), (op, 1), (op, 4)]
    assert [len(spies[name].calls) for name in ("cpp", "torch")] == [2, 1]


@pytest.mark.parametrize(
    ("units", "stride", "grad", "dtype", "in_planes", "in_channels_last"),
    [
        ("8-8:g8", 1, False, torch.float32, False, True),
        ("8-8:g8", 1, True, torch.float32, False, True),
        ("8-8:g8", 2, True, torch.float32, False, True),
        ("8-8:g8", 2, True, torch.bfloat16, False, False),
        ("8-8:g8", 2, False, torch.bfloat16, True, True),
        ("8-8:k5:g8", 1, False, torch.float32, False, True),
        ("8-8:k5:g8", 1, True, torch.float32, False, False),
        ("8-8:k7:g8", 2, False, torch.bfloat16, False, True),
        ("1-1", 1, True, torch.float32, False, True),
        ("1-1:k1", 1, True, torch.float32, False, False),
    ],
)
def test_depthwise_levels_have_a_rule_of_their_own(
    units, stride, grad, dtype, in_planes, in_channels_last
):
    geometry = ConvGeometry(StackLayout(resolve_units(units, 4)), stride)
    x = torch.empty(2, geometry.layout.in_channels, 20, 20, dtype=dtype)
    ops = ("conv2d", "unit_conv2d", "unit_conv2d_train") if grad else ("conv2d", "unit_conv2d")
    for form, preferred in (
        (torch.contiguous_format, in_planes),
        (torch.channels_last, in_channels_last),
    ):
        with torch.set_grad_enabled(grad):
            for op in ops:
                args = op, geometry.layout, geometry, x.to(memory_format=form)
                assert _crossover.prefers_torch(*args) == preferred


@pytest.mark.parametrize(("units", "in_channels"), [("1-2", 8), ("1-1-1", 8)])
def test_other_levels_have_not(units, in_channels, monkeypatch):
    monkeypatch.setattr(_crossover, "depthwise_prefers_torch", None)  # not to be called
    geometry = ConvGeometry(StackLayout(resolve_units(units, in_channels)))
    _crossover.prefers_torch(
        "unit_conv2d", geometry.layout, geometry, torch.empty(2, in_channels, 20, 20)
    )


@pytest.mark.parametrize(
    ("units", "dtype", "form", "planes"),
    [
        ("2-8-8-2:k1,3,1:g1,8,1", torch.float32, torch.channels_last, True),
        ("2-8-8-2:k1,3,1:g1,8,1", torch.float64, torch.channels_last, True),
        ("2-8-8-2:k1,3,1:g1,8,1", torch.float32, torch.contiguous_format, False),
        ("2-8-8-2:k1,3,1:g1,8,1", torch.bfloat16, torch.channels_last, False),
        ("2-4-2:k1,3", torch.float32, torch.channels_last, False),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_levels_that_widen_run_on_planes(units, dtype, form, planes, training, monkeypatch):
    formats, spy = [], Spy(_choice._BACKENDS["cpp"])
    monkeypatch.setattr(_choice, "select", lambda op, x, *_: formats.append(format_of(x)) or spy)
    layer = StackedConv2d(units, 4, dtype=dtype).train(training)
    x = torch.randn(2, layer.in_channels, 6, 6, dtype=dtype).to(memory_format=form)
    auto, weights, names = _choice._EACH_LEVEL, list(layer.weights), UnitActivations()
    if training:
        gammas, betas = ([getattr(n, p) for n in layer.norms] for p in ("weight", "bias"))
        norms = gammas, betas
        y, _ = auto.unit_conv2d_train(x, weights, *norms, layer.geometry, names, 1e-5, None)
    else:
        y = auto.unit_conv2d(x, weights, [], layer.geometry, names, None)
    inside = torch.contiguous_format if planes else form
    assert formats == [inside] * layer.layout.depth and format_of(y) == form


@pytest.mark.parametrize("preferred", [True, False])
def test_auto_gives_what_the_backend_it_takes_gives(preferred, monkeypatch):
    monkeypatch.setattr(_choice, "prefers_torch", lambda *_: preferred)
    for build, names in ((conv_layer, CONV_LAYERS), (linear_layer, LINEAR_LAYERS)):
        for name in names:
            layer = build(name).eval()
            x = image(layer) if build is conv_layer else torch.randn(3, layer.in_features)
            y = layer(x)
            with backend("torch" if preferred else "cpp"):
                assert torch.equal(y, layer(x))


def test_the_environment_names_the_first_choice(monkeypatch):
    monkeypatch.setenv("BUNIT_BACKEND", "torch")
    assert _choice._from_environment() == "torch"
    monkeypatch.delenv("BUNIT_BACKEND")
    assert _choice._from_environment() == "auto"


def test_the_environment_variable_reaches_a_new_process(monkeypatch):
    monkeypatch.setenv("BUNIT_BACKEND", "reference")
    code = "import bunit_kernels; print(bunit_kernels.backends.get_backend())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "reference", run.stderr


@pytest.mark.skipif(backends.why_not("triton", "cpu") is not None, reason="Triton cannot run here")
@pytest.mark.parametrize("chosen", ["triton", "auto"])
def test_triton_is_there_for_compilers_and_counters(chosen, monkeypatch):
    """From the first call on: asked for, or chosen as on GPUs without the CUDA part."""
    monkeypatch.setenv("BUNIT_BACKEND", chosen)
    code = (
        "import torch, bunit_kernels as b; "
        "b.backends._choice._OURS = {'cpu': ('triton',)}; "
        "layer = b.StackedLinear('2-4-2', num_units=3); "
        "print(b.metrics.count_flops(layer, (6,))); "
        "torch.compile(layer, fullgraph=True, backend='eager')(torch.randn(4, 6))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stdout.strip() == "96", run.stderr
