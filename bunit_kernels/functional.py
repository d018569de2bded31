"""Stacked layers as functions of packed weights (see :mod:`bunit_kernels.layout`).

Every function checks its arguments before anything runs, casts under autocast, picks the backend
in force, and is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from ._tensor_format import DTYPES
from .activations import check_activation
from .backends import select
from .backends.base import BatchStats, UnitActivations
from .layout import ConvGeometry, Level, StackLayout, Units, resolve_units

RESIDUAL_ACTIVATIONS = ("identity", "relu")


def stacked_conv2d(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor,  # packed
    bias: Tensor | None = None,  # [C']
    *,
    units: Units | ConvGeometry,
    num_units: int | None = None,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int | str = "same",
    dilation: int = 1,
    shuffle: bool = False,
    activation: str = "identity",
) -> Tensor:
    """One convolutional level of all units: block-diagonal convolution, bias, activation.

    Args:
        x: [N, in_channels, H, W], float32, float64, bfloat16 or float16; any strides.
        weight: packed weight, same dtype and device.
        bias: [out_channels] or ``None``.
        units: units of one level (``"2-4"``) with the next six arguments as for
            :class:`~bunit_kernels.StackedConv2d`, or a :class:`~bunit_kernels.layout.ConvGeometry`
            that says it all.
        activation: name from :data:`~bunit_kernels.activations.ACTIVATIONS`.

    Returns:
        [N, out_channels, H', W'] in the memory format of ``x``.

    Raises:
        ValueError: a shape, a size or a name does not fit; the message has both values.
        TypeError: dtypes differ or are not floating point.
        BackendUnavailable: the backend in force cannot take ``x``.
    """
    geometry = _geometry(units, num_units, kernel_size, stride, padding, dilation, shuffle)
    _check_depth(geometry.layout, 1)
    check_activation(activation)
    x, (weight, bias) = _autocast(x, [weight, bias])
    _check_image(x, geometry)
    _check_parameters(x, geometry.layout.levels, [weight], [] if bias is None else [bias])
    level = geometry.levels[0]  # in the units' order
    chosen = select("conv2d", x, level.layout, level)
    y = chosen.conv2d(x, weight, bias, level, activation)
    return geometry.layout.ordered(y, 1)


def stacked_linear(
    x: Tensor,  # [..., C]
    weight: Tensor,  # packed
    bias: Tensor | None = None,  # [C']
    *,
    units: Units | StackLayout,
    num_units: int | None = None,
    shuffle: bool = False,
    activation: str = "identity",
) -> Tensor:
    """One linear level of all units: block-diagonal linear map, bias, activation.

    Args:
        x: [..., in_features].
        weight: packed weight, same dtype and device.
        bias: [out_features] or ``None``.
        units: units of one level (``"4-8"``) with the next two arguments as for
            :class:`~bunit_kernels.StackedLinear`, or a :class:`~bunit_kernels.layout.StackLayout`
            with ``kernel_size=None`` that says it all.
        activation: name from :data:`~bunit_kernels.activations.ACTIVATIONS`.

    Returns:
        [..., out_features].

    Raises:
        ValueError, TypeError, BackendUnavailable: as :func:`stacked_conv2d`.
    """
    layout = _linear_layout(units, num_units, shuffle)
    _check_depth(layout, 1)
    check_activation(activation)
    x, (weight, bias) = _autocast(x, [weight, bias])
    _check_features(x, layout)
    _check_parameters(x, layout.levels, [weight], [] if bias is None else [bias])
    y = select("linear", x, layout).linear(x, weight, bias, layout, activation)
    return layout.ordered(y, -1)


def stacked_unit_conv2d(
    x: Tensor,  # [N, C, H, W]
    weights: Sequence[Tensor],  # packed, one a level
    biases: Sequence[Tensor] | None = None,  # [C of the level], one a level
    *,
    units: Units | ConvGeometry,
    num_units: int | None = None,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int | str = "same",
    dilation: int = 1,
    shuffle: bool = False,
    activation: str = "relu",
    out_activation: str = "relu",
    residual: Tensor | None = None,  # [N, C', H', W']
    residual_activation: str = "identity",
) -> Tensor:
    """All levels of all units in one launch: each convolution, bias, activation; no norm.

    Arguments as :func:`stacked_conv2d`; ``residual`` is added to the output, and
    ``residual_activation`` (``"identity"`` or ``"relu"``) applied to the sum; with ``shuffle`` it
    is in the order of the shuffled output. The gradient recomputes the hidden activations.

    Returns:
        [N, out_channels, H', W'] in the memory format of ``x``.

    Raises:
        ValueError, TypeError, BackendUnavailable: as :func:`stacked_conv2d`.
    """
    geometry = _geometry(units, num_units, kernel_size, stride, padding, dilation, shuffle)
    activations = _activations(activation, out_activation, residual_activation)
    biases = [] if biases is None else list(biases)
    x, (residual, *parameters) = _autocast(x, [residual, *weights, *biases])
    weights, biases = parameters[: len(weights)], parameters[len(weights) :]
    _check_image(x, geometry)
    _check_parameters(x, geometry.layout.levels, weights, biases)
    residual = _check_residual(x, residual, geometry)
    chosen = select("unit_conv2d", x, geometry.layout, geometry)
    return chosen.unit_conv2d(x, weights, biases, geometry, activations, residual)


def stacked_unit_linear(
    x: Tensor,  # [..., C]
    weights: Sequence[Tensor],  # packed, one a level
    biases: Sequence[Tensor] | None = None,  # [C of the level], one a level
    *,
    units: Units | StackLayout,
    num_units: int | None = None,
    shuffle: bool = False,
    activation: str = "relu",
    out_activation: str = "relu",
) -> Tensor:
    """All levels of all linear units in one launch: each linear map, bias, activation.

    Arguments as :func:`stacked_linear`. The gradient recomputes the hidden activations.

    Returns:
        [..., out_features].

    Raises:
        ValueError, TypeError, BackendUnavailable: as :func:`stacked_conv2d`.
    """
    layout = _linear_layout(units, num_units, shuffle)
    activations = _activations(activation, out_activation, "identity")
    biases = [] if biases is None else list(biases)
    x, parameters = _autocast(x, [*weights, *biases])
    weights, biases = parameters[: len(weights)], parameters[len(weights) :]
    _check_features(x, layout)
    _check_parameters(x, layout.levels, weights, biases)
    y = select("unit_linear", x, layout).unit_linear(x, weights, biases, layout, activations)
    return layout.ordered(y, -1)


def stacked_unit_conv2d_train(
    x: Tensor,  # [N, C, H, W]
    weights: Sequence[Tensor],  # packed, one a level
    gammas: Sequence[Tensor],  # [C of the level], one a level
    betas: Sequence[Tensor],  # [C of the level], one a level
    *,
    units: Units | ConvGeometry,
    num_units: int | None = None,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int | str = "same",
    dilation: int = 1,
    shuffle: bool = False,
    eps: float = 1e-5,
    activation: str = "relu",
    out_activation: str = "relu",
    residual: Tensor | None = None,  # [N, C', H', W']
    residual_activation: str = "identity",
) -> tuple[Tensor, list[BatchStats]]:
    """All levels of all units, each convolution followed by batch normalisation with the batch's
    own statistics (biased variance plus ``eps``) and activation.

    Arguments as :func:`stacked_unit_conv2d`; ``gammas`` and ``betas`` are the norms' weights and
    biases and may stay float32 where ``x`` is of lower precision.

    Returns:
        The output, [N, out_channels, H', W'], and for each level the batch mean and unbiased
        variance, [C] each and without gradient, for the running statistics.

    Raises:
        ValueError, TypeError, BackendUnavailable: as :func:`stacked_conv2d`; ``ValueError`` too
            where a channel has a single value, which has no variance.
    """
    geometry = _geometry(units, num_units, kernel_size, stride, padding, dilation, shuffle)
    activations = _activations(activation, out_activation, residual_activation)
    x, (residual, *weights) = _autocast(x, [residual, *weights])
    _check_image(x, geometry)
    levels = geometry.layout.levels
    _check_parameters(x, levels, weights, [])
    _check_norms(x, levels, gammas, betas)
    _check_batch(x, geometry)
    residual = _check_residual(x, residual, geometry)
    chosen = select("unit_conv2d_train", x, geometry.layout, geometry)
    return chosen.unit_conv2d_train(
        x, weights, list(gammas), list(betas), geometry, activations, eps, residual
    )


def _geometry(units, num_units, kernel_size, stride, padding, dilation, shuffle) -> ConvGeometry:
    if isinstance(units, ConvGeometry):
        return units
    layout = StackLayout(resolve_units(units, num_units), kernel_size, shuffle)
    return ConvGeometry(layout, stride, padding, dilation)


def _linear_layout(units, num_units, shuffle) -> StackLayout:
    if isinstance(units, StackLayout):
        return units
    return StackLayout(resolve_units(units, num_units), None, shuffle)


def _activations(activation, out_activation, residual_activation) -> UnitActivations:
    if residual_activation not in RESIDUAL_ACTIVATIONS:
        raise ValueError(
            f"unknown residual_activation {residual_activation!r}, expected one of "
            f"{', '.join(RESIDUAL_ACTIVATIONS)}"
        )
    return UnitActivations(
        check_activation(activation),
        check_activation(out_activation, "out_activation"),
        residual_activation,
    )


def _autocast(x: Tensor, others: list[Tensor | None]) -> tuple[Tensor, list[Tensor | None]]:
    """Under autocast, everything in its dtype; else as it came."""
    _check_tensor(x)
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, others
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), [None if t is None else t.to(dtype) for t in others]


def _check_tensor(x) -> None:
    if isinstance(x, fx.Proxy):
        raise TypeError(
            "torch.fx cannot trace into functions of stacked layers: call them in a module that is "
            "a leaf of your torch.fx.Tracer (is_leaf_module), as StackedConv2d and StackedLinear "
            "are, or in a function wrapped by torch.fx.wrap"
        )
    if not isinstance(x, Tensor):
        raise TypeError(f"the input must be a tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"the input must be one of {', '.join(map(str, DTYPES))}, got {x.dtype}")


def _check_depth(layout: StackLayout, depth: int) -> None:
    if layout.depth != depth:
        raise ValueError(
            f"a level operation takes units of {depth} level, got {layout.units[0]} with "
            f"{layout.depth}"
        )


def _check_image(x: Tensor, geometry: ConvGeometry) -> None:
    channels = geometry.layout.in_channels
    if x.dim() != 4:
        raise ValueError(
            f"expected an input of 4 dimensions [N, {channels}, H, W], got {x.dim()}: "
            f"{tuple(x.shape)}"
        )
    if x.shape[1] != channels:
        raise ValueError(
            f"expected {channels} input channels for units {geometry.layout.describe()}, got "
            f"{x.shape[1]} in an input of shape {tuple(x.shape)}"
        )
    geometry.check_size(x.shape[2], x.shape[3])


def _check_features(x: Tensor, layout: StackLayout) -> None:
    if x.dim() < 1 or x.shape[-1] != layout.in_channels:
        raise ValueError(
            f"expected an input of shape [..., {layout.in_channels}] for units "
            f"{layout.describe()}, got {tuple(x.shape)}"
        )


def _check_parameters(
    x: Tensor, levels: Sequence[Level], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> None:
    if len(weights) != len(levels) or len(biases) not in (0, len(levels)):
        raise ValueError(
            f"units of {len(levels)} levels take as many weights, and as many biases or none; "
            f"got {len(weights)} weights and {len(biases)} biases"
        )
    for i, level in enumerate(levels):
        _check_parameter(x, f"weight of level {i + 1}", weights[i], level.weight_shape)
    for i, bias in enumerate(biases):
        _check_parameter(x, f"bias of level {i + 1}", bias, (levels[i].out_channels,))


def _check_parameter(x: Tensor, what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    _check_like(x, what, tensor, shape)
    if tensor.dtype != x.dtype:
        raise TypeError(f"{what} is {tensor.dtype}, but the input is {x.dtype}")


def _check_like(x: Tensor, what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{what} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.device != x.device:
        raise ValueError(f"{what} is on {tensor.device}, but the input is on {x.device}")


def _check_norms(x, levels, gammas, betas) -> None:
    for what, tensors in (("gamma", gammas), ("beta", betas)):
        if len(tensors) != len(levels):
            raise ValueError(f"expected {len(levels)} {what}s, one a level, got {len(tensors)}")
        for i, (level, tensor) in enumerate(zip(levels, tensors, strict=True)):
            _check_like(x, f"{what} of level {i + 1}", tensor, (level.out_channels,))
            if tensor.dtype not in (x.dtype, torch.float32):
                raise TypeError(
                    f"{what} of level {i + 1} is {tensor.dtype}, expected {x.dtype} like the "
                    "input, or torch.float32"
                )


def _check_batch(x: Tensor, geometry: ConvGeometry) -> None:
    for height, width in geometry.level_sizes(x.shape[2], x.shape[3])[1:]:
        if x.shape[0] * height * width == 1:
            raise ValueError(
                "batch statistics need more than one value a channel, got one image and one pixel "
                f"after a level (input {tuple(x.shape)}); use more images, or eval mode"
            )


def _check_residual(x: Tensor, residual: Tensor | None, geometry: ConvGeometry) -> Tensor | None:
    if residual is not None:
        size = geometry.output_size(x.shape[2], x.shape[3])
        shape = (x.shape[0], geometry.layout.out_channels, *size)
        _check_parameter(x, "residual", residual, shape)
    return residual
