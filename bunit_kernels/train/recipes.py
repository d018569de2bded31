"""The paper's ways of training, by name: ``--recipe``.

Lan et al., "Compact Neural Network via Stacking Hybrid Units" (IEEE TPAMI 46(1), 2024), trains all
networks with the cross entropy, batches of 128, 10 epochs of warm-up and a cosine schedule, and
gives the rest by data set. What it does not give stands under ``ours``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recipe:
    """Settings by name (fields of :class:`.settings.Settings`).

    Attributes:
        purpose: which of the paper's experiments it is of.
        paper: values that the paper gives.
        ours: our choice of what the paper does not give.
    """

    purpose: str
    paper: Mapping[str, object]
    ours: Mapping[str, object] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, object]:
        return {**self.paper, **self.ours}


_ALL = {"batch_size": 128, "schedule": "cosine", "warmup_epochs": 10.0}
_SGD = {"optimizer": "sgd", "momentum": 0.9}

RECIPES = {
    "paper-cifar": Recipe(
        "CIFAR-10 and CIFAR-100",
        _ALL | _SGD | {"epochs": 500, "lr": 0.1},
        # As usual for CIFAR (He et al. 2016, Deep residual learning, section 4.2, has 1e-4).
        {"weight_decay": 5e-4},
    ),
    "paper-mnist": Recipe(
        "MNIST and Tiny-ImageNet",
        _ALL | {"epochs": 200, "optimizer": "sgd"},
        # Those of the paper's CIFAR experiments, which are SGD too.
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    ),
    "paper-imagenet": Recipe(
        "ImageNet",
        _ALL
        | {"epochs": 200, "optimizer": "adam", "lr": 0.01, "epsilon": 0.01, "weight_decay": 1e-4},
    ),
    "paper-exploration": Recipe(
        "units compared on CIFAR-10 (the paper's table II)",
        _ALL | {"epochs": 200, "lr": 0.001},
        # The paper names SGD with this momentum for its other CIFAR experiments.
        _SGD | {"weight_decay": 5e-4},
    ),
}


def applied_recipe(name: str, settings: Mapping[str, object]) -> dict:
    """What a run took from recipe ``name``, as plain values for its metrics file.

    Args:
        settings: the run's, by name.

    Returns:
        ``name``, ``paper`` and ``ours`` as in the recipe, and ``changed``: the run's values of
        those settings where other options decided.
    """
    recipe = RECIPES[name]
    changed = {key: settings[key] for key, value in recipe.values.items() if settings[key] != value}
    paper, ours = dict(recipe.paper), dict(recipe.ours)
    return {"name": name, "paper": paper, "ours": ours, "changed": changed}


def describe_recipe(applied: dict) -> str:
    """A line for each of what :func:`applied_recipe` found."""
    return "\n".join(
        f"{title}: {', '.join(f'{key} {value}' for key, value in values.items())}"
        for title, values in (
            (f"recipe {applied['name']}, from the paper", applied["paper"]),
            ("  our choice, where the paper does not say", applied["ours"]),
            ("  changed by other options", applied["changed"]),
        )
        if values
    )


def list_recipes() -> str:
    """All recipes as text."""
    return "\n\n".join(
        f"{name}: {recipe.purpose}\n{describe_recipe(applied_recipe(name, recipe.values))}"
        for name, recipe in RECIPES.items()
    )
