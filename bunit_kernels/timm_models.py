"""Our networks under ``timm.create_model``: ``import bunit_kernels.timm_models`` registers them.

Needs timm, which the rest of the package does without::

    import bunit_kernels.timm_models, timm
    timm.create_model("bunit_resnet50", num_classes=10)

Every bunit network of :func:`bunit_kernels.models.list_models` goes by its own name, those among
them that were added by ``models.register_model`` before this import. timm's ``in_chans`` and
``img_size`` are ``in_channels`` and ``image_size``; all else is as the network's function takes it.
"""

from __future__ import annotations

import inspect

import timm
from torch import nn

from . import models
from .models.registry import factory_of

_OURS = {"in_chans": "in_channels", "img_size": "image_size"}
_OF_WEIGHTS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # none to load


def _register(name: str) -> None:
    num_classes = inspect.signature(factory_of(name)).parameters["num_classes"].default

    def create(pretrained: bool = False, **kwargs) -> nn.Module:
        if pretrained:
            raise ValueError(f"{name} has no pretrained weights; create it with pretrained=False")
        arguments = {_OURS.get(k, k): v for k, v in kwargs.items() if k not in _OF_WEIGHTS}
        model = models.create_model(name, **arguments)
        model.num_classes = arguments.get("num_classes", num_classes)  # timm's scripts read it
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"The network ``{name}`` of ``bunit_kernels.models``."
    timm.models.register_model(create)


for _name in models.list_models():
    if models.dense_counterpart(_name) is not None:
        _register(_name)
