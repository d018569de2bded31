"""``python -m bunit_kernels.train`` from end to end, interrupted, resumed, and given bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import CALM, state

import bunit_kernels.models
from bunit_kernels import metrics
from bunit_kernels.train import main
from bunit_kernels.train import progress as progress_module
from bunit_kernels.train.cli import parse
from bunit_kernels.train.errors import UserError
from bunit_kernels.train.feed import Feed
from bunit_kernels.train.prepare import find_device
from bunit_kernels.train.progress import Progress
from bunit_kernels.train.settings import Settings

# --- the whole command ----------------------------------------------------------------------------


def test_default_command_learns_digits(tmp_path):
    """As a user runs it, with fewer epochs."""
    environment = os.environ | {"PYTHONPATH": str(Path(bunit_kernels.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "bunit_kernels.train", "--epochs", "4", *CALM],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for text in ("accuracy", "parameters", "FLOPs", "saved", "TCA (w1 1, w2 4)", "TSA",
                 "theoretical speedup", "ms a training step", "ms an inference batch",
                 "backend: ", "bunit_cnn", "cnn"):  # fmt: skip
        assert text in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    report = json.loads((folder / "metrics.json").read_text())
    for name, floor in (("bunit_cnn", 0.85), ("cnn", 0.85)):
        network = report["networks"][name]
        assert network["accuracy"] == network["history"][-1]["test_accuracy"] > floor
        assert len(network["history"]) == 4
        assert network["training_step_seconds"] > 0 and network["inference_seconds"] > 0
        assert (folder / f"{name}_best.pt").is_file() and (folder / f"{name}_last.pt").is_file()
    assert report["settings"]["epochs"] == 4 and report["versions"]["torch"] == torch.__version__
    comparison = report["comparison"]
    assert 0 < comparison["flops_saving"] < 1
    assert comparison["speedup"] == comparison["dense_flops"] / comparison["flops"]
    accuracies = [report["networks"][name]["accuracy"] for name in ("cnn", "bunit_cnn")]
    assert [(s["w1"], s["w2"]) for s in comparison["scores"]] == [(1, 1), (1, 4), (4, 1)]
    for score in comparison["scores"]:
        weights = {"w1": score["w1"], "w2": score["w2"]}
        flops = comparison["dense_flops"], comparison["flops"]
        assert score["tca"] == metrics.tca(*accuracies, *flops, **weights)
    assert done.stderr.count("epoch") == 8  # lines instead of a bar: this is no terminal


def test_every_model_runs(images, tmp_path):
    for model in ("bunit_mlp", "mlp", "cnn"):
        options = ["--model", model, "--data", images, "--epochs", "1", "--quiet", *CALM]
        assert main([*options, "--out", str(tmp_path / model)]) == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--amp"],
        ["--channels-last", "--nesterov", "--warmup-epochs", "1", "--label-smoothing", "0.1"],
        ["--backend", "reference", "--no-dense", "--limit", "40", "--image-size", "5"],
        ["--augment", "crop-flip", "--batch-size", "1000"],
    ],
)
def test_options_run(tiny, options, capsys):
    code, folder = tiny("--epochs", "1", *options)
    assert code == 0, capsys.readouterr().err
    networks = json.loads((folder / "metrics.json").read_text())["networks"]
    assert list(networks) == (["bunit_cnn"] if "--no-dense" in options else ["bunit_cnn", "cnn"])
    printed = capsys.readouterr().out
    if "--backend" in options:
        assert "backend: reference" in printed and "6x6" not in printed
    if "1000" in options:
        assert "batches of 96" in printed


def test_list_models(capsys):
    assert main(["--list-models"]) == 0
    assert capsys.readouterr().out.split() == bunit_kernels.models.list_models()


def test_quiet_is_quiet_and_a_terminal_gets_a_bar(tiny, capsys, monkeypatch):
    assert tiny()[0] == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress_module, "_EVERY", 0)
    with Progress("net", 2, 48, 96, False, lambda: (0.25, 0.5)) as progress:
        for _ in range(3):
            progress.step(16)
        assert progress._bar.postfix == "loss 0.2500, 50.00%"  # drawn ten times a second at most
        progress.epoch({"epoch": 2, "train_loss": 0.5, "test_accuracy": 0.75})
    bar = capsys.readouterr().err
    assert "net: 100%" in bar and "96.0/96.0" in bar and "image/s" in bar
    assert "test 75.00%" in bar


def test_checkpoint_is_evaluated_as_it_was_trained(tiny, capsys):
    _, folder = tiny()
    accuracy = state(folder)["history"][-1]["test_accuracy"]
    capsys.readouterr()
    assert main(["--eval-only", "--checkpoint", str(folder / "bunit_cnn_last.pt")]) == 0
    printed = capsys.readouterr().out
    assert f"{accuracy:.2%}" in printed and "bunit_cnn" in printed and "ms an inf" in printed


def test_training_starts_from_a_checkpoint(tiny):
    _, folder = tiny()
    start = state(folder)["state"]
    code, second = tiny(
        "--checkpoint", str(folder / "bunit_cnn_last.pt"), "--lr", "0", "--no-dense", out="second"
    )
    assert code == 0
    now = state(second)["state"]
    for key in start:
        assert torch.equal(start[key], now[key]) is not any(w in key for w in ("running", "track"))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "bunit_cn"], "unknown model 'bunit_cn' (did you mean 'bunit_cnn'?)"),
        (["--data", "nowhere"], "unknown data 'nowhere'"),
        (["--backend", "magic"], "unknown backend 'magic', expected one of auto, reference"),
        (["--backend", "cuda"], "backend 'cuda' cannot run here"),
        (["--device", "abacus"], "cannot use device 'abacus'"),
        (["--device", "meta"], "cannot use device 'meta'"),
        (["--device", "cuda:77"], "cannot use device 'cuda:77'"),
        (["--model-arg", "colour=1"], "unknown argument 'colour'"),
        (["--model-arg", "pool=['2-x']"], "cannot parse unit '2-x'"),
        (["--model-arg", "pool=['1-2-1','1-2']", "--model-arg", "num_units=9"], "same depth"),
        (["--model-arg", "num_units=many"], "num_units must be an int"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "-3"], "--batch-size must be at least 1"),
        (["--lr", "-1"], "--lr must be at least 0"),
        (["--lr", "nan"], "--lr must be at least 0"),
        (["--momentum", "1"], "--momentum must be at least 0 and below 1"),
        (["--weight-decay", "inf"], "--weight-decay must be at least 0"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--nesterov", "--momentum", "0"], "--nesterov needs a --momentum"),
        (["--amp", "int8"], "unknown --amp 'int8', expected one of bfloat16, float16"),
        (["--eval-only"], "--eval-only needs a --checkpoint"),
        (["--checkpoint", "gone.pt"], "no checkpoint gone.pt"),
        (["--eval-only", "--checkpoint", "gone.pt"], "no checkpoint gone.pt"),
        (["--checkpoint", "long" * 99], "no checkpoint longlong"),
        (["--data", "long" * 99], "unknown data 'longlong"),
        (["--data", "~nobody/images"], "unknown data '~nobody/images'"),
        (
            ["--recipe", "paper"],
            "unknown --recipe 'paper', expected one of paper-cifar, paper-mnist, "
            "paper-imagenet, paper-exploration",
        ),
        (["--epsilon", "0"], "--epsilon must be above 0, got 0"),
        (["--resume", "gone"], "--resume goes on in its own folder"),  # beside --out
    ],
)
def test_bad_options(tiny, capsys, options, message):
    code, folder = tiny(*options)
    error = capsys.readouterr().err
    assert code == 2 and message in error and len(error.splitlines()) == 1
    assert not folder.exists()


@pytest.mark.parametrize(
    "options", [["--epochs", "many"], ["--augment", "magic"], ["--model-arg", "3"], ["--unknown"]]
)
def test_options_that_do_not_parse(capsys, options):
    with pytest.raises(SystemExit) as exit:
        main(options)
    assert exit.value.code == 2 and "error: " in capsys.readouterr().err


def test_no_traceback_reaches_the_user(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(bunit_kernels.__file__).parents[1])}
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "bunit_kernels.train", "--data", "empty"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("python -m bunit_kernels.train: empty holds no folder of images")
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("size", [0, 100, 5000, -1])
@pytest.mark.parametrize("how", ["checkpoint", "eval-only", "resume"])
def test_checkpoint_cut_short(tiny, capsys, how, size):
    _, folder = tiny()
    path = folder / "bunit_cnn_last.pt"
    path.write_bytes(path.read_bytes()[:size])
    capsys.readouterr()
    if how == "checkpoint":
        code, _ = tiny("--checkpoint", str(path), out="second")
    elif how == "eval-only":
        code = main(["--eval-only", "--checkpoint", str(path)])
    else:
        code = main(["--resume", str(folder)])
    error = capsys.readouterr().err
    assert code == 2 and f"cannot read checkpoint {path}: it is cut short" in error
    assert len(error.splitlines()) == 1


def test_checkpoint_of_something_else(tiny, tmp_path, capsys):
    _, folder = tiny()
    for content in ([1, 2], {"state": {}}, torch.zeros(3)):
        torch.save(content, tmp_path / "other.pt")
        assert tiny("--checkpoint", str(tmp_path / "other.pt"), out="second")[0] == 2
        assert "is no checkpoint of this program" in capsys.readouterr().err
    # One that would run code is refused, not run.
    torch.save({"state": Path("x")}, tmp_path / "other.pt")
    assert tiny("--checkpoint", str(tmp_path / "other.pt"), out="second")[0] == 2
    assert "cannot read checkpoint" in capsys.readouterr().err

    assert tiny("--checkpoint", str(folder / "cnn_last.pt"), out="second")[0] == 2
    assert "is of model 'cnn', not 'bunit_cnn'" in capsys.readouterr().err
    options = ["--checkpoint", str(folder / "bunit_cnn_last.pt"), "--model-arg", "num_units=3"]
    assert tiny(*options, out="second")[0] == 2
    assert "does not fit the model" in capsys.readouterr().err
    options = ["--eval-only", "--checkpoint", str(folder / "bunit_cnn_last.pt")]
    assert main([*options, "--data", "digits"]) == 2
    assert "is for images of 1x6x6, digits has 1x8x8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key, value",
    [
        ("state", {1: torch.zeros(2)}),
        ("state", {"head.weight": "x"}),
        ("average", [1]),
        ("arguments", {1: 2}),
        ("history", [{"epoch": 1}]),
        ("shape", [1, "8", 8]),
        ("shape", [1, 8, 0]),
        ("shape, mean, deviation", [torch.zeros(3), 8, 8]),
        ("classes", [0, 1]),
        ("mean", []),
        ("mean", ["x"]),
        ("deviation", [0.0]),
        ("deviation", [float("nan")]),
    ],
)
def test_checkpoint_of_other_values(tiny, capsys, key, value):
    _, folder = tiny()
    path = folder / "bunit_cnn_last.pt"
    torch.save(torch.load(path) | {key.split(",")[0]: value}, path)
    for options in (["--resume", str(folder)], ["--eval-only", "--checkpoint", str(path)]):
        assert main(options) == 2
        assert f"{path} is damaged: unusable are {key}\n" in capsys.readouterr().err


def test_checkpoint_of_a_model_that_cannot_be_built(tiny, capsys):
    _, folder = tiny()
    path = folder / "bunit_cnn_last.pt"
    content = torch.load(path)
    content["arguments"]["num_classes"] = 1 << 62
    torch.save(content, path)
    assert main(["--eval-only", "--checkpoint", str(path)]) == 2
    assert f"cannot build the model of checkpoint {path}" in capsys.readouterr().err


def test_resuming_what_is_no_run(tmp_path, capsys):
    assert main(["--resume", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "metrics.json").write_text('{"settings": {"mod')
    assert main(["--resume", str(tmp_path)]) == 2
    assert "cannot read the settings of a run" in capsys.readouterr().err
    (tmp_path / "metrics.json").write_text('{"settings": {"epochs": [1]}}')
    assert main(["--resume", str(tmp_path)]) == 2
    assert "--epochs must be of type int, got [1]" in capsys.readouterr().err
    for damaged in ('{"settings": ' + "[" * 100_000, '{"settings": {"model_arg": "num_units=3"}}'):
        (tmp_path / "metrics.json").write_text(damaged)
        assert main(["--resume", str(tmp_path)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_model_argument_that_is_no_literal_is_text():
    for value in ("{[]: 1}", "(" * 10_000, "x" * 10_000):
        options = parse(["--model-arg", f"units={value}"])
        assert options.model_arg == {"units": value}


def test_a_run_is_not_overwritten(tiny, capsys):
    _, folder = tiny()
    before = (folder / "bunit_cnn_last.pt").read_bytes()
    assert tiny("--seed", "5")[0] == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (folder / "bunit_cnn_last.pt").read_bytes() == before


def test_folder_that_cannot_be_made(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert tiny(out="file/run")[0] == 2
    assert "cannot make the run folder" in capsys.readouterr().err


def test_missing_package_is_named(tiny, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    code, folder = tiny()
    error = capsys.readouterr().err
    assert code == 2 and "needs tqdm" in error
    assert "pip install tqdm, or all" in error and "pip install -e '.[train]'" in error
    assert not folder.exists()


# --- the parts ------------------------------------------------------------------------------------


def test_feed_shows_every_image_once_an_epoch_in_an_order_of_its_own(images):
    from bunit_kernels.train.data import load_data

    data = load_data(images)
    settings = Settings(batch_size=32, augment="none")
    feed = Feed(data, settings, torch.device("cpu"))

    def epoch(number):
        return torch.cat([x for x, _ in feed.training(number)])

    first, second = epoch(0), epoch(1)
    assert torch.equal(first, epoch(0)) and not torch.equal(first, second)
    assert torch.equal(first.flatten(1).sort(0).values, second.flatten(1).sort(0).values)
    assert first.mean().abs() < 1e-4 and first.std() == pytest.approx(1, abs=1e-2)
    assert Feed(data, Settings(batch_size=40), torch.device("cpu")).steps == 2


def test_find_device():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(UserError, match="cannot use device 'cuda:x'"):
        find_device("cuda:x")
