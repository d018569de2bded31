"""``python -m bunit_kernels.report``: the page and plots of runs, and bad input."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny_runs import write_images

import bunit_kernels
from bunit_kernels import metrics, models
from bunit_kernels.report import build, main
from bunit_kernels.report.build import build_report
from bunit_kernels.report.layer_plot import axis_limits, plot_layers
from bunit_kernels.report.published import PUBLISHED
from bunit_kernels.report.runs import read_runs
from bunit_kernels.report.tradeoff_plot import is_cifar10, plot_tradeoff
from bunit_kernels.report.training_plot import plot_training
from bunit_kernels.train import main as train

PNG = b"\x89PNG\r\n\x1a\n"
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A tiny network and its dense counterpart, two epochs on a few images of 6x6 pixels."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--data", write_images(folder, 64, 64), "--epochs", "2", "--batch-size", "16"]
    network = ["--model-arg", "num_units=2", "--model-arg", "pool=['2-4-2']", "--threads", "1"]
    assert train([*options, *network, "--quiet", "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it to spoil."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def undrawn(monkeypatch):
    """Plots are made but not drawn, which takes seconds: for tests of the page's text."""
    monkeypatch.setattr(build, "to_png", lambda figure: PNG)


def change(folder: Path, edit) -> None:
    """Edits the metrics file of a run."""
    path = folder / "metrics.json"
    report = json.loads(path.read_text())
    edit(report)
    path.write_text(json.dumps(report))


class Page(HTMLParser):
    """Tags that are open, rows of cells of every table, addresses that the page names."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.rows, self.addresses, self.images = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)
        if tag != "a":  # what a link leads to is not loaded
            self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]
        if tag == "img":
            self.images.append(dict(attributes))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "tags are closed in order"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def row(self, *first: str) -> list[str]:
        (found,) = [row for row in self.rows if tuple(row[: len(first)]) == first]
        return found


def network_row(page: Page, name: str) -> list[str]:
    """A network's line in the table of the runs' networks."""
    (found,) = [row for row in page.rows if row[:2] == ["run", name] and len(row) == 15]
    return found


# --- the page -------------------------------------------------------------------------------------


def test_command_makes_page_and_plots(run, tmp_path):
    """As a user runs it."""
    environment = os.environ | {"PYTHONPATH": str(Path(bunit_kernels.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "bunit_kernels.report", str(run)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "report.html, and 5 plots" in done.stdout
    names = {"accuracy_flops.png", "accuracy_parameters.png", "training_1_run.png",
             "layers_1_run_bunit_cnn.png", "layers_1_run_cnn.png"}  # fmt: skip
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.html", *names}
    page = Page((tmp_path / "report" / "report.html").read_text())
    assert not page.open
    embedded = [base64.b64decode(image["src"].partition(",")[2]) for image in page.images]
    assert sorted(embedded) == sorted((tmp_path / "report" / n).read_bytes() for n in names)
    assert all(image.startswith(PNG) for image in embedded)
    assert all(len(image["alt"]) > 20 for image in page.images)


def test_page_needs_nothing_else(run, undrawn):
    text = build_report(read_runs([run]))["report.html"].decode()
    assert all(a.startswith("data:image/png;base64,") for a in Page(text).addresses)
    assert "@import" not in text and "url(" not in text and "<script" not in text
    for wanted in ('lang="en"', 'name="viewport"', "prefers-color-scheme: dark", "overflow-x: auto",
                   "not directly comparable", "equation 9"):  # fmt: skip
        assert wanted in text


def test_tables_have_the_runs_figures(run, undrawn):
    (read,) = read_runs([run])
    page = Page(build_report([read])["report.html"].decode())
    compact, dense = read.networks.values()
    row = network_row(page, "bunit_cnn")
    assert row[2:4] == ["images.npz, 1x6x6, 64 + 64", "2 of 2"]
    assert row[4] == f"{100 * compact['accuracy']:.2f}"
    assert row[6:8] == [f"{compact['parameters']:,}", f"{compact['flops']:,}"]
    assert row[8] == f"{1e3 * compact['training_step_seconds']:.3f}"
    comparison = read.report["comparison"]
    assert row[10] == f"{100 * comparison['parameters_saving']:.2f}"
    assert row[11] == f"{100 * comparison['flops_saving']:.2f}"
    assert row[14] == f"{comparison['time_conversion']:.3f}"
    scores = [f"{s[name]:.2f}" for s in comparison["scores"] for name in ("tca", "tsa")]
    accuracies = [f"{100 * f['accuracy']:.2f}" for f in (dense, compact)]
    (scored,) = [row for row in page.rows if row[:2] == ["run", "bunit_cnn"] and len(row) == 11]
    assert scored[2:] == [*accuracies, f"{comparison['speedup']:.2f}", *scores]
    assert page.row("run", "cnn")[6] == f"{dense['parameters']:,}"
    assert set(page.row("run", "cnn")[10:]) == {""}
    assert read.report["versions"]["torch"] in page.row("run", read.report["versions"]["device"])
    totals = [row for row in page.rows if row[0] == "total"]
    assert [row[4:6] for row in totals] == [
        [f"{f['parameters']:,}", f"{f['flops']:,}"] for f in (compact, dense)
    ]


def test_published_results_stand_on_the_page(run, undrawn):
    text = build_report(read_runs([run]))["report.html"].decode()
    page = Page(text)
    row = page.row("CIFAR-10", "VGG-16", "BUnit-Net")
    scores = ["2.21", "2.06", "2.18", "2.04", "24.29", "18.38"]
    assert row[3:] == ["2024", "92.82", "93.25", "79.87", "72.9", "4.97", *scores, "[1], IV"]
    rows = [row for row in page.rows if len(row) == len(page.row("MNIST", "MLP", "BUnit-Net"))]
    methods = {row[2] for row in rows}
    assert {result.method for result in PUBLISHED} <= methods
    listed = re.findall(r'<li>.*?: <a href="(.*?)">', text)
    rows = [row for row in rows if re.match(r"\[\d+\]", row[-1])]
    for row, result in zip(rows, PUBLISHED, strict=True):
        number = int(re.match(r"\[(\d+)\]", row[-1])[1])
        assert listed[number - 1] == result.source.address
    assert page.row("II", "No.2")[3:] == ["72.00", "", "9.60", "89.98"]
    assert page.row("I", "Hybrid2")[2:] == ["", "98.66", "0.06", "0.95", "1.83"]
    assert page.row("VGG-16", "P40")[2:] == ["235", "196", "1.20"]
    assert page.row("ImageNet", "EfficientNet-B0", "dense")[3:] == ["71.24", "0.78", "5.32"]


def test_names_are_escaped(run, undrawn):
    folder = run.rename(run.with_name("<b>&run"))
    text = build_report(read_runs([folder]))["report.html"].decode()
    assert "<b>" not in text and "&lt;b&gt;&amp;run" in text


def test_several_runs(run, tmp_path, undrawn):
    (tmp_path / "more").mkdir()
    same_name = shutil.copytree(run, tmp_path / "more" / "run")
    other = shutil.copytree(run, tmp_path / "other")
    runs = read_runs([run, same_name, other])
    assert [r.title for r in runs] == [str(run), str(same_name), "other"]
    files = build_report(runs)
    assert len(files) == 1 + 2 + 3 * 3
    assert files["report.html"].count(b"<h2>Run ") == 3


# --- the plots ------------------------------------------------------------------------------------


def points(axes) -> dict[str, tuple[float, float]]:
    """Marked points by label; of several with one label the last."""
    return {
        line.get_label(): (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


@pytest.mark.parametrize("what", ["flops", "parameters"])
def test_tradeoff_plot_shows_ours_and_the_published(run, what):
    (read,) = read_runs([run])
    panels = plot_tradeoff([read], what).axes
    titles = [axes.get_title(loc="left") for axes in panels]
    own, vgg, resnet20, mobilenet, resnet56, resnet110, resnet34, resnet50 = panels
    assert titles[2] == "published, ResNet-20 on CIFAR-10: accuracy, %"
    assert points(own) == {
        f"run: {name}": (figures[what], 100 * figures["accuracy"])
        for name, figures in read.networks.items()
    }
    saved = {"flops": 79.87, "parameters": 72.90}[what]
    assert points(vgg)["BUnit-Net"] == (pytest.approx(100 - saved), 92.82)
    assert points(resnet20)["BUnit-Net"][1] == 94.52 and points(resnet20)["BUnit-Net r"][1] == 94.87
    assert points(mobilenet)["BUnit-Net"][1] == 91.58 and points(resnet34)["BUnit-Net"][1] == 71.51
    assert points(resnet50)["BUnit-Net"][1] == 75.33 and points(resnet50)["BUnit-Net r"][1] == 77
    for axes in (resnet56, resnet110):
        assert "BUnit-Net" not in points(axes) and "CHIP" in points(axes)
    assert ("White-Box" in points(vgg)) == (what == "flops")  # its source says nothing of the other


def test_a_cifar10_run_stands_beside_the_published(run):
    (read,) = read_runs([run])
    assert not is_cifar10(read)

    def edit(report):
        report["data"] |= {"shape": [3, 32, 32], "classes": CIFAR10, "name": "/data/cifar",
                           "training_images": 50_000, "test_images": 10_000}  # fmt: skip
        report["settings"]["model"] = "bunit_vgg16_bn"

    change(run, edit)
    (read,) = read_runs([run])
    assert is_cifar10(read) and read.data_name == "cifar"
    _, vgg, _, _, resnet56, *_ = plot_tradeoff([read], "flops").axes
    kept = 100 * (1 - read.comparison.flops_saving)
    accuracy = 100 * read.networks["bunit_cnn"]["accuracy"]
    assert points(vgg)["run: bunit_cnn"] == pytest.approx((kept, accuracy))
    assert "run: bunit_cnn" not in points(resnet56)


def test_runs_on_other_images_have_another_panel(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    assert len(plot_tradeoff(read_runs([run, other]), "flops").axes) == 1 + 7
    change(other, lambda report: report["data"].update(test_images=32))
    assert len(plot_tradeoff(read_runs([run, other]), "flops").axes) == 2 + 7


def test_training_plot(run):
    (read,) = read_runs([run])
    loss, accuracy = plot_training(read).axes
    history = read.networks["cnn"]["history"]
    curves = {line.get_label(): list(line.get_ydata()) for line in loss.get_lines()}
    assert curves["cnn, test images"] == [epoch["test_loss"] for epoch in history]
    curves = {line.get_label(): list(line.get_ydata()) for line in accuracy.get_lines()}
    assert curves["cnn, training images"] == [100 * epoch["train_accuracy"] for epoch in history]


def test_layer_plot(run):
    model = models.create_model("bunit_cnn", image_size=32)
    table = metrics.layers(model, (3, 32, 32))
    parameters, flops = plot_layers(table, axis_limits([table])).axes
    assert [bar.get_width() for bar in parameters.patches] == [r.parameters for r in table.rows]
    assert [bar.get_width() for bar in flops.patches] == [r.flops for r in table.rows]
    assert [text.get_text() for text in parameters.get_yticklabels()] == [
        row.name for row in table.rows
    ]
    assert flops.get_xlim()[1] >= max(row.flops for row in table.rows)


def test_layers_of_a_deep_network_are_grouped_by_block():
    model = models.create_model("bunit_resnet110")
    table = metrics.layers(model, (3, 32, 32))
    parameters, _ = plot_layers(table, axis_limits([table])).axes
    names = [text.get_text() for text in parameters.get_yticklabels()]
    assert names[:3] == ["conv1", "bn1", "layer1.0"] and len(names) == 3 + 3 * 18
    assert sum(bar.get_width() for bar in parameters.patches) == table.parameters


# --- unfinished and damaged runs ------------------------------------------------------------------


def test_run_without_checkpoints_has_a_line_in_place_of_bars(run, tmp_path, undrawn):
    (run / "cnn_last.pt").unlink()
    (run / "bunit_cnn_last.pt").write_bytes(b"damaged")
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert f"No layers are shown: no checkpoint {run / 'cnn_last.pt'}" in text
    assert f"No layers are shown: cannot read checkpoint {run / 'bunit_cnn_last.pt'}" in text
    assert not list((tmp_path / "out").glob("layers_*"))


def test_checkpoint_of_another_network(run, undrawn):
    change(run, lambda report: report["networks"]["cnn"].update(flops=12))
    shutil.copy(run / "cnn_last.pt", run / "bunit_cnn_last.pt")
    text = build_report(read_runs([run]))["report.html"].decode()
    assert "those of the run are 12." in text
    assert "is of model &#39;cnn&#39;, not &#39;bunit_cnn&#39;" in text


def test_unfinished_run(run, undrawn):
    """As it is in the file before the second network has started."""

    def edit(report):
        del report["comparison"]
        for figures in report["networks"].values():
            del figures["training_step_seconds"], figures["inference_seconds"]
        report["networks"]["cnn"] |= {"history": [], "accuracy": None, "best_accuracy": None}

    change(run, edit)
    page = Page(build_report(read_runs([run]))["report.html"].decode())
    assert page.row("run", "cnn")[3:6] == ["0 of 2", "", ""]
    row = network_row(page, "bunit_cnn")
    assert row[11] != "" and row[14] == ""
    assert not any("TCA (1, 1)" in row and "run" in row for row in page.rows), "no scores yet"


def test_runs_of_versions_whose_scores_had_a_beta(run, undrawn):
    """Their settings name it, and their comparison has scores of another formula."""

    def edit(report):
        report["settings"]["beta"] = 2.0
        del report["comparison"]["scores"], report["comparison"]["speedup"]
        report["comparison"] |= {"beta": 2.0, "tca": 0.9, "tsa": 0.9}

    now = build_report(read_runs([run]))["report.html"]
    change(run, edit)
    assert build_report(read_runs([run]))["report.html"] == now


def test_one_colour_and_marker_a_method(run):
    looks = {}
    for axes in plot_tradeoff(read_runs([run]), "flops").axes[1:]:
        for line in axes.get_lines():
            look = line.get_color(), line.get_marker(), line.get_markerfacecolor()
            looks.setdefault(line.get_label(), set()).add(look)
    assert all(len(seen) == 1 for seen in looks.values())
    assert len({look for seen in looks.values() for look in seen}) == len(looks) > 20


def test_run_before_its_first_epoch(run, undrawn):
    def edit(report):
        report["networks"].pop("cnn")
        report["networks"]["bunit_cnn"] |= {"history": [], "accuracy": None, "best_accuracy": None}

    change(run, edit)
    files = build_report(read_runs([run]))
    assert b"No epoch has ended yet" in files["report.html"]
    assert not any(name.startswith("training") for name in files)


# --- bad input ------------------------------------------------------------------------------------


def refuses(folders, out, capsys) -> str:
    """The one line of an error with exit code 2; nothing is written."""
    assert main([*map(str, folders), "--out", str(out)]) == 2
    assert not out.is_dir() or not list(out.iterdir())
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_folders_that_hold_no_run(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert f"no run folder {tmp_path / 'none'}" in refuses([run, tmp_path / "none"], out, capsys)
    (tmp_path / "empty").mkdir()
    assert "holds no run: there is no" in refuses([tmp_path / "empty"], out, capsys)
    assert "given more than once" in refuses([run, run / ".." / "run"], out, capsys)


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"settings": {"mod', "cannot read the run in"),
        (b"\xff\xfe", "cannot read the run in"),
        (b"[" * 100_000, "cannot read the run in"),
        (b'{"settings": NaN}', "NaN is no figure"),
        (b"[1, 2]", "unusable are everything"),
        (b"{}", "unusable are settings, versions, backend, data, networks"),
    ],
)
def test_metrics_file_that_cannot_be_read(run, tmp_path, capsys, content, message):
    (run / "metrics.json").write_bytes(content)
    assert message in refuses([run], tmp_path / "out", capsys)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda r: r["settings"].pop("epochs"), "settings.epochs"),
        (lambda r: r["data"].update(shape=["3", 8, 8]), "data.shape"),
        (lambda r: r["data"].update(classes=[["a"]]), "data.classes"),
        (lambda r: r["networks"].clear(), "networks, of which there are one or two"),
        (lambda r: r["networks"].update(cnn=3), "networks.cnn"),
        (lambda r: r["networks"]["cnn"].update(flops=0), "networks.cnn.flops"),
        (lambda r: r["networks"]["cnn"].update(parameters=10**400), "networks.cnn.parameters"),
        (lambda r: r["networks"]["cnn"].update(accuracy=97.0), "networks.cnn.accuracy"),
        (lambda r: r["networks"]["cnn"].pop("best_accuracy"), "networks.cnn.best_accuracy"),
        (lambda r: r["networks"]["cnn"].pop("inference_seconds"), "some of the times"),
        (lambda r: r["networks"]["cnn"].update(inference_seconds=True), "cnn.inference_seconds"),
        (lambda r: r["networks"]["cnn"]["history"][1].pop("test_loss"), "cnn.history[1].test_loss"),
    ],
)
def test_run_of_another_version_names_what_it_lacks(run, tmp_path, capsys, edit, message):
    change(run, edit)
    line = refuses([run], tmp_path / "out", capsys)
    assert "is not what this version" in line and "it is of version" in line
    assert message in line


def test_folder_that_cannot_be_written(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot write the report into" in refuses([run], tmp_path / "file", capsys)
    assert "cannot write the report into" in refuses([run], tmp_path / "file" / "out", capsys)
    assert (tmp_path / "file").read_text() == ""


def test_missing_package_is_named(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refuses([run], tmp_path / "out", capsys)
    assert "needs matplotlib" in line and "pip install -e '.[report]'" in line
