"""Models by name.

A model is a function that returns an ``nn.Module``. Whatever else it takes, it takes
``num_classes``, ``in_channels`` and ``image_size``, so that one training script fits all; a model
that works at any size ignores ``image_size``. The dense counterpart of a model takes the same
arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches

from torch import nn

from ..nn._stacked_layer import StackedLayer

Factory = Callable[..., nn.Module]

_MODELS: dict[str, Factory] = {}
_DENSE: dict[str, str] = {}


def register_model(dense: str | None = None) -> Callable[[Factory], Factory]:
    """Decorator: makes a function's name a model's name.

    Args:
        dense: name of the dense model to compare with; ``None`` for a model that is dense itself.
    """

    def register(factory: Factory) -> Factory:
        name = factory.__name__
        if name in _MODELS:
            raise ValueError(f"a model {name!r} is already registered, by {_MODELS[name]}")
        _MODELS[name] = factory
        if dense is not None:
            _DENSE[name] = dense
        return factory

    return register


def list_models() -> list[str]:
    """Names that ``create_model`` knows, sorted."""
    return sorted(_MODELS)


def dense_counterpart(name: str) -> str | None:
    """Name of the dense model that ``name`` is compared with; ``None`` if it is dense itself."""
    factory_of(name)
    return _DENSE.get(name)


def create_model(name: str, **kwargs) -> nn.Module:
    """Builds a model by name.

    Args:
        name: one of ``list_models()``.
        kwargs: the model's arguments; see the function of that name. Of those that have stacked
            layers also ``shuffle``, a bool: whether all of these shuffle their output channels
            (:mod:`bunit_kernels.shuffle`); their dense counterparts, which have none, take it too.

    Raises:
        ValueError: no such model, or an argument's value does not fit.
        TypeError: the model takes no such argument.
    """
    factory = factory_of(name)
    accepted = [*inspect.signature(factory).parameters]
    paired = name in _DENSE or name in _DENSE.values()
    shuffles = paired and "shuffle" not in accepted
    accepted += ["shuffle"] if shuffles else []
    unknown = [key for key in kwargs if key not in accepted]
    if unknown:
        raise TypeError(
            f"model {name!r} takes {', '.join(accepted)}; got an unknown argument "
            f"{', '.join(map(repr, unknown))}"
        )
    shuffle = kwargs.pop("shuffle", False) if shuffles else False
    model = factory(**kwargs)
    if shuffle is not False:
        for module in model.modules():
            if isinstance(module, StackedLayer):
                module.set_shuffle(shuffle)
    return model


def factory_of(name: str) -> Factory:
    """The function that builds the model; ``ValueError`` where there is none of that name."""
    if name not in _MODELS:
        close = get_close_matches(str(name), _MODELS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"unknown model {name!r}{hint}, expected one of {', '.join(list_models())}"
        )
    return _MODELS[name]
