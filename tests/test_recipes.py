"""``--recipe``: what the paper's recipes set, what may change it, what is printed and kept."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from bunit_kernels.train import main
from bunit_kernels.train.cli import parse
from bunit_kernels.train.recipes import RECIPES
from bunit_kernels.train.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "training.md"
EVERYWHERE = {"batch_size": 128, "warmup_epochs": 10, "schedule": "cosine"}
# What the paper's section on experiments prints; where it is silent nothing stands here.
PRINTED = {
    "paper-cifar": {"epochs": 500, "optimizer": "sgd", "momentum": 0.9, "lr": 0.1},
    "paper-mnist": {"epochs": 200, "optimizer": "sgd"},
    "paper-imagenet": {
        "epochs": 200, "optimizer": "adam", "lr": 0.01, "epsilon": 0.01, "weight_decay": 1e-4,
    },
    "paper-exploration": {"epochs": 200, "lr": 0.001},
}  # fmt: skip


def settings_of(*options: str) -> Settings:
    options = parse(options)
    return Settings(**{f.name: getattr(options, f.name) for f in fields(Settings)})


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_sets_what_the_paper_prints(name):
    recipe = RECIPES[name]
    assert recipe.paper == EVERYWHERE | PRINTED[name]
    assert not recipe.paper.keys() & recipe.ours.keys()
    found = settings_of("--recipe", name).to_dict()
    assert found == Settings(recipe=name, **recipe.values).to_dict()


@pytest.mark.parametrize("options", [["--recipe", "paper-cifar"], []])
def test_options_win_wherever_they_stand(options):
    own = ["--epochs", "7", "--lr", "0.05", "--optimizer", "adamw", "--schedule", "constant"]
    for order in (options + own, own + options):
        found = settings_of(*order)
        assert (found.epochs, found.lr, found.optimizer) == (7, 0.05, "adamw")
        assert found.schedule == "constant"
        assert found.batch_size == (128 if options else 64)


def test_recipe_is_printed_and_kept_and_resumed(tiny, capsys):
    code, folder = tiny("--recipe", "paper-mnist", "--lr", "0.2", "--no-dense")
    assert code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("recipe paper-mnist, from the paper: batch_size 128, ")
    assert "our choice, where the paper does not say: lr 0.1, momentum 0.9, weight" in printed
    changed = {"batch_size": 16, "epochs": 2, "lr": 0.2}
    assert "changed by other options: batch_size 16, epochs 2, lr 0.2" in printed

    def kept(folder):
        report = json.loads((folder / "metrics.json").read_text())
        assert report["settings"]["recipe"] == report["recipe"]["name"] == "paper-mnist"
        assert report["recipe"]["paper"] == RECIPES["paper-mnist"].paper
        assert report["recipe"]["ours"] == RECIPES["paper-mnist"].ours
        return report["recipe"]["changed"]

    assert kept(folder) == changed
    resume = ["--resume", str(folder), "--quiet"]
    assert main([*resume, "--epochs", "3"]) == 0
    assert kept(folder) == changed | {"epochs": 3}
    assert main([*resume, "--recipe", "paper-mnist"]) == 0  # the same: nothing is set anew
    assert kept(folder) == changed | {"epochs": 3}


def test_another_recipe_is_not_taken_on_the_way(tiny, capsys):
    _, with_one = tiny("--recipe", "paper-cifar", "--epochs", "1", "--no-dense")
    _, without = tiny("--epochs", "1", "--no-dense", out="without")
    capsys.readouterr()
    for folder, has in ((with_one, "recipe paper-cifar"), (without, "no recipe")):
        assert json.loads((folder / "metrics.json").read_text())["settings"]["epochs"] == 1
        checkpoint = ["--checkpoint", str(folder / "bunit_cnn_last.pt"), "--eval-only"]
        for start in (["--resume", str(folder)], checkpoint):
            assert main([*start, "--recipe", "paper-mnist"]) == 2
            error = capsys.readouterr().err
            assert f"--recipe paper-mnist is for new runs, this one has {has}" in error


def test_list_of_recipes(capsys):
    assert main(["--list-recipes"]) == 0
    printed = capsys.readouterr().out
    for name, recipe in RECIPES.items():
        assert f"{name}: {recipe.purpose}" in printed
    assert "weight_decay 0.0001" in printed


def test_docs_name_every_recipe_with_its_figures():
    rows = dict(re.findall(r"^\| `(paper-\w+)` \|(.*)$", PAGE.read_text(), re.MULTILINE))
    assert rows.keys() == RECIPES.keys()
    for name, row in rows.items():
        _, paper, ours, _ = row.split("|")
        for cell, values in ((paper, RECIPES[name].paper), (ours, RECIPES[name].ours)):
            own = [value for key, value in values.items() if key not in EVERYWHERE]
            numbers = sorted(float(n) for n in re.findall(r"\d[\d.e-]*", cell))
            assert numbers == sorted(v for v in own if not isinstance(v, str))
            assert all(v in cell.lower() for v in own if isinstance(v, str))
