"""``python -m bunit_kernels.search`` from end to end, stopped, gone on with, given bad input."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import image_folder
from search_cases import tiny_model  # noqa: F401
from tiny_runs import write_images
from torch import nn

import bunit_kernels.models
from bunit_kernels import StackedConv2d, metrics
from bunit_kernels.models import create_model, registry
from bunit_kernels.search import Search, SearchSettings, main, search
from bunit_kernels.search.study import Study
from bunit_kernels.train import main as train_main
from bunit_kernels.train.loop import Learner


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    return write_images(tmp_path_factory.mktemp("data"), 60, 8)


def options_of(images) -> list[str]:
    """A search of seconds: the tiny network, on those images."""
    options = ["--model", "bunit_tiny", "--data", images, "--threads", "1", "--quiet"]
    options += ["--candidates", "normal", "2-4-m", "4-8-m", "8-8-m", "--score-images", "8"]
    options += ["--max-flops", "0.7", "--max-parameters", "0.6", "--batch-size", "16"]
    return [*options, "--trials", "16", "--keep", "2", "--epochs", "1"]


@pytest.fixture
def command(images, tmp_path):
    """Runs ``main`` with them; returns (exit code, folder)."""

    def run(*options, out="search"):
        folder = tmp_path / out
        return main([*options_of(images), "--out", str(folder), *options]), folder

    return run


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> Path:
    """The folder of that search, which nothing interrupted."""
    folder = tmp_path_factory.mktemp("searches") / "whole"
    assert main([*options_of(images), "--out", str(folder)]) == 0
    return folder


def results(folder) -> dict:
    return json.loads((folder / "search.json").read_text())


def scores(found) -> list[float]:
    return sorted(entry["score"] for entry in found["candidates"])


def without_times(content):
    if isinstance(content, dict):
        return {k: without_times(v) for k, v in content.items() if k != "seconds"}
    return [without_times(v) for v in content] if isinstance(content, list) else content


# --- the whole command ----------------------------------------------------------------------------


def test_winner_is_within_the_budget_and_can_be_built_and_trained(command, tmp_path, capsys):
    code, folder = command()
    printed = capsys.readouterr()
    assert code == 0 and printed.err == ""
    found = results(folder)
    assert found["finished"] and found["counts"]["drawn"] == 16
    assert sum(found["counts"].values()) == 32  # over budget, repeated and scored are all
    assert found["counts"]["over_budget"] > 0 and found["counts"]["scored"] > 4

    dense = create_model("tiny")
    for entry in found["candidates"]:
        sizes = metrics.compare(create_model("bunit_tiny", units=entry["units"]), dense, (1, 6, 6))
        assert (sizes.parameters, sizes.flops) == (entry["parameters"], entry["flops"])
        assert sizes.flops_saving >= 0.3 and sizes.parameters_saving >= 0.4
        assert entry["flops_saving"] == sizes.flops_saving
    tables = [json.dumps(entry["units"]) for entry in found["candidates"]]
    assert len(set(tables)) == len(tables) == found["counts"]["scored"]

    # The dense counterpart was trained as they were: equation 9 sets them side by side.
    accuracy = found["dense"]["accuracy"]
    assert 0 < accuracy <= 1 and len(found["dense"]["history"]) == 1
    for entry in found["candidates"][:2]:
        assert entry["speedup"] == found["dense"]["flops"] / entry["flops"]
        assert [(t["w1"], t["w2"]) for t in entry["tradeoffs"]] == [(1, 1), (1, 4), (4, 1)]
        for t in entry["tradeoffs"]:
            weights = {"w1": t["w1"], "w2": t["w2"]}
            flops = found["dense"]["flops"], entry["flops"]
            parameters = found["dense"]["parameters"], entry["parameters"]
            assert t["tca"] == metrics.tca(accuracy, entry["accuracy"], *flops, **weights)
            assert t["tsa"] == metrics.tsa(accuracy, entry["accuracy"], *parameters, **weights)
            assert f"{t['tca']:.2f}" in printed.out
    assert all(entry["tradeoffs"] == [] for entry in found["candidates"][2:])
    assert "TSA (4, 1)" in printed.out and f"{accuracy:.2%}" in printed.out

    # Those trained are those with the best scores, by accuracy; the others follow.
    trained, others = found["candidates"][:2], found["candidates"][2:]
    assert all(0 <= e["accuracy"] <= 1 and len(e["history"]) == 1 for e in trained)
    assert all(e["accuracy"] is None and e["history"] is None for e in others)
    assert min(e["score"] for e in trained) >= max(e["score"] for e in others)
    assert trained[0]["accuracy"] >= trained[1]["accuracy"]

    units = json.loads((folder / "units.json").read_text())
    assert units == found["units"] == trained[0]["units"]
    assert found["command"] in printed.out and f"{trained[0]['accuracy']:.2%}" in printed.out
    words = shlex.split(found["command"])
    assert words[:3] == ["python", "-m", "bunit_kernels.train"]
    again = ["--epochs", "1", "--threads", "1", "--quiet", "--out", str(tmp_path / "run")]
    assert train_main([*words[3:], *again]) == 0
    assert f"{trained[0]['parameters']:,}" in capsys.readouterr().out


def test_without_the_dense_network_there_is_no_tradeoff(command, capsys):
    _, folder = command("--trials", "4", "--no-dense")
    found = results(folder)
    assert found["dense"]["accuracy"] is found["dense"]["history"] is None
    assert all(entry["tradeoffs"] == [] for entry in found["candidates"])
    assert "TCA" not in capsys.readouterr().out
    assert main(["--resume", str(folder), "--dense", "--quiet"]) == 0  # a search goes on with it
    assert results(folder)["candidates"][0]["tradeoffs"] and "TCA" in capsys.readouterr().out


def test_search_of_a_version_that_did_not_train_the_dense_network(command):
    _, folder = command("--trials", "4")
    whole = results(folder)
    old = whole | {"dense": {k: whole["dense"][k] for k in ("parameters", "flops")}}
    old["settings"] = {k: v for k, v in whole["settings"].items() if k != "dense"}
    (folder / "search.json").write_text(json.dumps(old))
    assert main(["--resume", str(folder), "--quiet"]) == 0
    assert without_times(results(folder)) == without_times(whole)


def test_function_returns_what_the_file_holds(images, tmp_path):
    settings = SearchSettings(
        model="bunit_tiny", data=images, trials=3, keep=1, epochs=1, threads=1,
        candidates=["normal", "2-4-m"],
    )  # fmt: skip
    found = search(settings, tmp_path / "search", quiet=True)
    assert found == results(tmp_path / "search")
    assert set(found["units"]) == {"layer1", "layer2"}


def test_shuffled_layers_are_searched_and_the_command_has_them(images, tmp_path):
    settings = SearchSettings(
        model="bunit_tiny", data=images, trials=3, keep=1, epochs=1, threads=1, shuffle=True,
        candidates=["normal", "2-4-m"],
    )  # fmt: skip
    one = Search(settings, tmp_path / "search", quiet=True)
    model = one.space.build({"layer1": "2-4-m"})
    layers = [module for module in model.modules() if isinstance(module, StackedConv2d)]
    assert layers and all(layer.shuffle for layer in layers)
    found = one.run()
    assert found["settings"]["shuffle"] is True
    again = ["--epochs", "1", "--threads", "1", "--quiet", "--out", str(tmp_path / "run")]
    assert train_main([*shlex.split(found["command"])[3:], *again]) == 0
    (saved,) = (tmp_path / "run").glob("*.json")
    assert json.loads(saved.read_text())["settings"]["model_arg"]["shuffle"] is True


def test_accuracy_is_of_held_out_training_images(images, tmp_path):
    one = Search(SearchSettings(model="bunit_tiny", data=images, threads=1), tmp_path / "s", True)
    assert len(one.data.train) == 48 and len(one.data.test) == 12
    whole = torch.from_numpy(np.load(images)["x_train"]).unsqueeze(1)
    both = torch.cat([one.data.train.images, one.data.test.images])
    assert torch.equal(both.flatten(1).unique(dim=0), whole.flatten(1).unique(dim=0))


def test_large_folder_is_streamed(tmp_path, monkeypatch):
    image_folder(tmp_path / "images", parts=("train", "val"))
    monkeypatch.setattr("bunit_kernels.train.data.folder.IN_MEMORY", 0)
    settings = SearchSettings(
        model="bunit_tiny", data=str(tmp_path / "images"), image_size=6, trials=3, keep=1, epochs=1,
        threads=1, candidates=["normal", "2-4-m"],
    )  # fmt: skip
    one = Search(settings, tmp_path / "search", quiet=True)
    assert one.data.streamed and one.images.shape == (8, 3, 6, 6)
    assert one.run()["candidates"][0]["accuracy"] is not None


# --- the same again, and on from the middle ---------------------------------------------------


def test_seed_decides_everything(command, whole):
    (_, again), (_, other) = command(), command("--seed", "1", out="other")
    assert without_times(results(again)) == without_times(results(whole))

    def tables(folder):
        return [entry["units"] for entry in results(folder)["candidates"]]

    assert tables(again) != tables(other)


# Draws 0 and 4 are random, draw 13 is TPE's, which goes by those before it.
@pytest.mark.parametrize(
    "owner, name, call, how",
    [
        (Study, "tell", 0, "resume"),
        (Study, "tell", 4, "same command"),
        (Study, "tell", 13, "resume"),
        (Learner, "train_epoch", 1, "same command"),
        (Learner, "train_epoch", 1, "resume"),
    ],
)
def test_interrupted_and_resumed_is_uninterrupted(
    command, whole, monkeypatch, capsys, how, owner, name, call
):
    original, calls = getattr(owner, name), itertools.count()

    def interrupted(*args):
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(owner, name, interrupted)
    code, part = command()
    assert code == 130
    assert f"continue with: python -m bunit_kernels.search --resume {part}" in (
        capsys.readouterr().err
    )
    assert not results(part)["finished"] and not (part / "units.json").exists()
    done = []
    monkeypatch.setattr(owner, name, lambda *args: done.append(args) or original(*args))
    options = ["--resume", str(part), "--quiet"]
    assert (main(options) if how == "resume" else command()[0]) == 0
    assert without_times(results(part)) == without_times(results(whole))
    assert len(done) == (16 if owner is Study else 3) - call  # what was done is not done again


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(tmp_path):
    """A process killed in the middle of its draws, wherever that happens to be."""
    environment = os.environ | {"PYTHONPATH": str(Path(bunit_kernels.__file__).parents[1])}
    options = ["--trials", "12", "--keep", "1", "--epochs", "1", "--limit", "40", "--turns", "1"]
    options += ["--candidates", "normal", "2-4-m", "4-8-m", "8-8-m", "--threads", "1", "--quiet"]
    killed, other = tmp_path / "killed", tmp_path / "other"
    program = [sys.executable, "-m", "bunit_kernels.search", *options, "--out", str(killed)]
    process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL)
    journal, end = killed / "study.log", time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count('"values"') >= 3):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not results(killed)["finished"]
    assert main(["--resume", str(killed), "--quiet"]) == 0
    assert main([*options, "--out", str(other)]) == 0
    assert without_times(results(killed)) == without_times(results(other))


def test_finished_search_goes_further(command, whole):
    _, folder = command("--trials", "8", "--keep", "1")
    options = ["--resume", str(folder), "--trials", "16", "--keep", "2", "--quiet"]
    assert main(options) == 0
    further = results(folder)
    assert further["counts"] == results(whole)["counts"]
    assert further["settings"] == results(whole)["settings"]
    assert scores(further) == scores(results(whole))
    assert main(["--resume", str(folder), "--quiet"]) == 0  # nothing is left to do
    assert results(folder) == further


def test_line_that_a_power_failure_cut_is_drawn_again(command, whole):
    _, part = command("--trials", "12", "--keep", "1")
    lines = (part / "study.log").read_bytes().splitlines(keepends=True)
    (part / "study.log").write_bytes(b"".join(lines[:-3]) + lines[-3][:20])
    (part / "study.log.lock").symlink_to("study.log")  # as Optuna leaves it when it is killed
    begun = time.monotonic()
    assert main(["--resume", str(part), "--trials", "16", "--quiet"]) == 0
    assert time.monotonic() - begun < 29  # Optuna waits 30 s for that lock
    assert results(part)["counts"] == results(whole)["counts"]
    assert scores(results(part)) == scores(results(whole))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (["--max-flops", "0.001"], "no candidate meets --max-flops 0.001 and --max-parameters 0.6"),
        (["--max-flops", "0.001"], "of the dense network's FLOPs and 0."),
        (["--max-flops", "0"], "--max-flops is a share of the dense network's, above 0"),
        (["--max-parameters", "1.5"], "at most 1, got 1.5"),
        (["--max-parameters", "nan"], "at most 1, got nan"),
        (["--model", "bunit_tin"], "unknown model 'bunit_tin' (did you mean 'bunit_tiny'?)"),
        (["--model", "tiny"], "model 'tiny' is dense itself, it takes no units; did you mean 'bun"),
        (["--model", "bunit_cnn"], "cannot search the units of 'bunit_cnn'"),
        (["--model", "bunit_vgg16_bn"], "image_size must be at least 32"),
        (["--candidates", "normal", "5-4-m"], "candidate '5-4-m' fits nowhere in bunit_tiny"),
        (["--candidates", "normal", "zebra"], "cannot parse unit 'zebra'"),
        (["--candidates", "2-4-2"], "none of the candidates 2-4-2 fits layer2.0 of bunit_tiny"),
        (["--candidates", "2-4-m", "2-4-m"], "--candidates names one twice"),
        (["--trials", "0"], "--trials must be at least 1, got 0"),
        (["--keep", "0"], "--keep must be at least 1"),
        (["--turns", "-1"], "--turns must be at least 1"),
        (["--score-images", "1"], "--score-images must be at least 2"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--data", "nowhere"], "unknown data 'nowhere'"),
        (["--limit", "1"], "needs at least two of one"),
        (["--device", "abacus"], "cannot use device 'abacus'"),
        (["--resume", "gone"], "it takes no --out"),
    ],
)
def test_bad_options(command, capsys, options, message):
    code, folder = command(*options)
    error = capsys.readouterr().err
    assert code == 2 and message in error and len(error.splitlines()) == 1
    assert not folder.exists()


def test_model_whose_units_are_no_table(command, monkeypatch, capsys):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    for name in ("bunit_tiny", "tiny"):
        monkeypatch.setitem(
            registry._MODELS, name,
            lambda num_classes, in_channels, image_size, units=None: plain,
        )  # fmt: skip
    assert command()[0] == 2
    assert "model 'bunit_tiny' has no table of units by stage" in capsys.readouterr().err


def test_model_that_cannot_run_is_said_before_the_search(command, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no such kernel\nand pages more")

    monkeypatch.setattr(sys.modules[Search.__module__], "naswot", broken)
    code, folder = command()
    assert code == 2 and not folder.exists()
    error = capsys.readouterr().err
    assert "model 'bunit_tiny' cannot be searched here: no such kernel\n" in error


def test_folder_of_another_search(command, images, tmp_path, capsys):
    own = shutil.copy(images, tmp_path)
    _, folder = command("--trials", "2", "--data", own)
    for options, message in (
        (["--seed", "5"], "holds a search with --seed 0, got 5"),
        (["--max-flops", "0.6"], "holds a search with --max-flops 0.7, got 0.6"),
        (["--candidates", "normal", "2-4-m"], "-8-m', '8-8-m'], got ['normal', '2-4-m']"),
        (["--epochs", "2"], "holds a search with --epochs 1, got 2"),
    ):
        before = (folder / "search.json").read_bytes()
        assert command("--data", own, *options)[0] == 2
        assert message in capsys.readouterr().err
        assert main(["--resume", str(folder), *options]) == 2
        assert message in capsys.readouterr().err
        assert (folder / "search.json").read_bytes() == before
    data = dict(np.load(own))
    np.savez(own, **data | {"x_train": data["x_train"][:40], "y_train": data["y_train"][:40]})
    assert main(["--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "holds a search on other data: training_images was 48, is now 32" in error


def test_damaged_files(command, capsys):
    _, folder = command("--trials", "4", "--keep", "1")
    good = {name: (folder / name).read_text() for name in ("search.json", "study.log")}
    content = json.loads(good["search.json"])
    lines = good["study.log"].splitlines(keepends=True)
    headless = [{k: v for k, v in e.items() if k != "history"} for e in content["candidates"]]
    value = next(i for i, line in enumerate(lines) if '"values"' in line)
    for name, text, message in (
        ("search.json", good["search.json"][:100], "cannot read the results of a search"),
        ("search.json", "[]", "holds no results of a search"),
        ("search.json", json.dumps(content | {"settings": 3}), "holds no results of a search"),
        ("search.json", json.dumps(content | {"candidates": headless}), "lacks its figures"),
        (
            "search.json",
            json.dumps(content | {"settings": {**content["settings"], "trials": [1]}}),
            "the settings of that search are damaged",
        ),
        ("study.log", "nonsense\n" + good["study.log"], "cannot read the study"),
        ("study.log", "".join(lines[: value - 1] + lines[value:]), "is of another search"),
        ("study.log", good["study.log"].replace("8-8-m", "8-9-m"), "is of another search"),
    ):
        (folder / name).write_text(text)
        assert main(["--resume", str(folder), "--quiet"]) == 2, message
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
        (folder / name).write_text(good[name])
    assert main(["--resume", str(folder), "--quiet"]) == 0
    (folder / "search.json").unlink()
    capsys.readouterr()
    assert main(["--resume", str(folder)]) == 2 and "holds no search" in capsys.readouterr().err
    assert command()[0] == 2 and "study.log of a search without its" in capsys.readouterr().err


def test_two_searches_in_one_folder(command, capsys):
    import filelock

    _, folder = command("--trials", "2")
    with filelock.FileLock(folder / ".lock"):
        assert command("--trials", "4")[0] == 2
    assert f"another search is at work in {folder}" in capsys.readouterr().err
    assert command("--trials", "4")[0] == 0


@pytest.mark.parametrize("package, name", [("optuna", "Optuna"), ("tqdm", "tqdm")])
def test_missing_package_is_named(command, capsys, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    code, folder = command()
    error = capsys.readouterr().err
    assert code == 2 and f"needs {name}" in error and "pip install -e '.[search]'" in error
    assert not folder.exists()


def test_candidate_whose_loss_explodes(command, capsys):
    code, folder = command("--lr", "1e30", "--epochs", "2")
    assert code == 1 and "a lower --lr than 1e+30" in capsys.readouterr().err
    found = results(folder)
    assert found["units"] is None and found["command"] is None
    assert all(entry["accuracy"] is None for entry in found["candidates"])
    assert [entry["failure"] is not None for entry in found["candidates"]].count(True) == 2


def test_one_of_several_that_explodes_is_last(command, monkeypatch, capsys):
    from bunit_kernels.train.errors import TrainingError

    original, calls = Learner.train_epoch, itertools.count()

    def explodes_once(*args):
        if next(calls) == 0:
            raise TrainingError("the loss is nan")
        return original(*args)

    monkeypatch.setattr(Learner, "train_epoch", explodes_once)
    code, folder = command()
    assert code == 0 and "failed" in capsys.readouterr().out
    best, failed = sorted(results(folder)["candidates"], key=lambda e: e["history"] is None)[:2]
    assert best["accuracy"] is not None and failed["failure"] == "the loss is nan"
