"""Units on the report's page: their maps for images, dead ones, and requests that cannot be met."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import write_images

from bunit_kernels import UnitSpec, metrics
from bunit_kernels.report import build, draw_feature_maps, main
from bunit_kernels.report.runs import read_runs
from bunit_kernels.report.unit_plot import plot_units
from bunit_kernels.report.units_seen import TrainedUnits, UnitRequest, units_of_run
from bunit_kernels.train import main as train
from bunit_kernels.train.checkpoint import build_model, load_checkpoint
from bunit_kernels.train.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A tiny hybrid network and its dense counterpart, trained on a few images of 6x6 pixels. The
    last unit of its first stacked layer is dead."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--data", write_images(folder, 64, 64), "--epochs", "1", "--batch-size", "16"]
    network = ["--model-arg", "num_units=4", "--model-arg", "pool=['1-2-1','2-1-2','3-2-1']"]
    assert train([*options, *network, "--threads", "1", "--quiet", "--out", str(folder / "r")]) == 0
    path = folder / "r" / "bunit_cnn_last.pt"
    content = torch.load(path, weights_only=True)
    content["state"]["stack1.norms.1.weight"][-1:] = 0
    content["state"]["stack1.norms.1.bias"][-1:] = 0
    torch.save(content, path)
    return folder / "r"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def image(tmp_path) -> Path:
    return save(tmp_path / "three.png", 6, 6)


def save(path: Path, *shape: int) -> Path:
    values = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_page_has_maps_and_dead_units(run, image, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "to_png", lambda figure: PNG)
    out = tmp_path / "out"
    command = [str(run), "--out", str(out), "--feature-maps", str(image), str(image)]
    assert main([*command, "--dead-units"]) == 0
    names = {f"units_1_run_{i}_stack1_three.png" for i in (1, 2)}
    assert names <= {path.name for path in out.iterdir()}
    text = (out / "report.html").read_text()
    assert "What layer stack1 makes of three.png" in text and "64 test images of images.npz" in text
    network = build_model(load_checkpoint(run / "bunit_cnn_last.pt"), run)
    last = len(network.stack1.units) - 1
    assert f"<li>stack1: {last}: {network.stack1.units[last]} (0)</li>" in text
    assert '<th scope="row">stack2</th><td class="number">4</td>' in text
    assert main([str(run), "--out", str(tmp_path / "plain")]) == 0
    assert "Units of" not in (tmp_path / "plain" / "report.html").read_text()
    assert main([*command, "--layer", "stack2"]) == 0
    text = (out / "report.html").read_text()
    assert "What layer stack2 makes of" in text and "is dead" not in text


def test_maps_are_the_units_outputs_for_the_normalised_image(run, image):
    (read,) = read_runs([run])
    found = units_of_run(read, UnitRequest((image,), "stack2"))
    (maps,) = found.maps()
    content = load_checkpoint(run / "bunit_cnn_last.pt")
    pixels = torch.from_numpy(np.array(Image.open(image)))
    assert torch.equal(maps.image, pixels[None])
    (mean,), (deviation,) = content["mean"], content["deviation"]
    x = (pixels.float() / 255 - mean) / deviation
    model = build_model(content, run)
    expected = metrics.unit_outputs(model, x[None, None], "stack2")
    for y, wanted in zip(maps.outputs, expected, strict=True):
        torch.testing.assert_close(y, wanted[0], rtol=1e-4, atol=1e-5)
    assert maps.units == model.stack2.units and found.dead() is None


def test_dead_units_are_those_of_the_test_images(run, tmp_path):
    (read,) = read_runs([run])
    found = units_of_run(read, UnitRequest(dead=True, threshold=0.3))
    batches = list(found.feed.testing())
    assert sum(len(x) for x, _ in batches) == 64
    dead = metrics.dead_units(found.model, batches, threshold=0.3)
    assert {layer.name: layer.dead for layer in found.dead()} == dead
    assert len(found.layers["stack1"].units) - 1 in dead["stack1"]
    (tmp_path / "other").mkdir()
    other = write_images(tmp_path / "other", 8, 12)
    assert len(units_of_run(read, UnitRequest(dead=True, data=other)).feed.test) == 12


def test_figures_from_python(run, image):
    for source in (run, run / "bunit_cnn_last.pt", str(run)):
        (figure,) = draw_feature_maps(source, [str(image)], "stack1")
        sheet, picture, whole, _ = figure.axes
        assert [text.get_text().split(":")[0] for text in sheet.texts] == ["0", "1", "2", "3"]
        assert picture.get_images()[0].get_array().shape == (6, 6)
        assert whole.get_title(loc="left") == "whole layer, mean"


def panels(outputs, units, dead=()):
    image = torch.zeros(3, 5, 5, dtype=torch.uint8)
    return plot_units(image, outputs, [UnitSpec(u) for u in units], dead).axes


def test_plot_shows_every_channel_once():
    """Widths of 1 to 5 channels, maps of 30x26: as they are drawn, with nothing scaled."""
    widths = (1, 3, 5, 2)
    outputs = [torch.randn(width, 30, 26) + 10 * width for width in widths]
    sheet, _, whole, bar = panels(outputs, [f"1-2-{w}" for w in widths], dead=[2])
    values = np.ma.filled(sheet.get_images()[0].get_array(), np.nan)
    drawn = np.sort(values[~np.isnan(values)])
    everything = torch.cat([y.flatten() for y in outputs]).numpy()
    np.testing.assert_array_equal(drawn, np.sort(everything))
    mean = torch.cat(outputs).mean(0).numpy()
    np.testing.assert_allclose(whole.get_images()[0].get_array(), mean, rtol=1e-5)
    labels = {text.get_text(): text for text in sheet.texts}
    assert list(labels) == ["0: 1-2-1", "1: 1-2-3", "2: 1-2-5, dead", "3: 1-2-2"]
    for width, label in zip(widths, labels.values(), strict=True):
        x, y = label.get_position()
        corner = values[int(y + 1.5), int(x)]
        assert corner == outputs[widths.index(width)][0, 0, 0].item()
    low, high = (float(text.get_text()) for text in bar.get_xticklabels())
    assert everything.min() <= low + 0.5 and high <= everything.max() + 0.5


@pytest.mark.parametrize("shape", [(), (1, 1), (3, 50), (200, 120)])
def test_plot_takes_maps_of_any_size(shape):
    outputs = [torch.full((2, *shape), float(u)) for u in range(3)]
    sheet, *_ = panels(outputs, ["2-4-2"] * 3)
    values = np.ma.filled(sheet.get_images()[0].get_array(), np.nan)
    assert set(np.unique(values[~np.isnan(values)])) == {0, 1, 2}
    assert max(sheet.figure.get_size_inches()) < 10
    panels([torch.zeros(2, *shape)] * 3, ["2-4-2"] * 3)  # all of one colour


def refuses(capsys, out: Path, *options) -> str:
    """The one line of an error with exit code 2; nothing is written."""
    capsys.readouterr()
    assert main([*map(str, options), "--out", str(out)]) == 2
    assert not out.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_requests_that_cannot_be_met(run, image, tmp_path, capsys):
    def refused(*options) -> str:
        return refuses(capsys, tmp_path / "out", run, *options)

    maps = ["--feature-maps", image]
    line = refused(*maps, "--layer", "stack9")
    assert "the model has no module 'stack9'; its stacked layers are 'stack1', 'stack2'" in line
    line = refused(*maps, "--layer", "head")
    assert "'head' is no stacked layer but a linear; its stacked layers are" in line
    assert "--layer stack1 needs --feature-maps" in refused("--layer", "stack1")
    wide = save(tmp_path / "wide.png", 6, 9)
    line = refused(*maps, wide)
    assert f"image {wide} is 6x9 pixels grey, the network takes 6x6 pixels grey" in line
    coloured = save(tmp_path / "coloured.png", 6, 6, 3)
    assert "6x6 pixels in colour, the network takes 6x6 pixels grey" in refused(*maps, coloured)
    (tmp_path / "text.png").write_text("no image")
    assert f"cannot read image {tmp_path / 'text.png'}" in refused(*maps, tmp_path / "text.png")
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:50])
    assert "cannot decode image" in refused(*maps, tmp_path / "cut.png")
    assert f"cannot read image {tmp_path / 'none.png'}" in refused(*maps, tmp_path / "none.png")
    for threshold in ("0", "-1", "nan"):
        line = refused("--dead-units", "--dead-below", threshold)
        assert f"--dead-below: threshold must be above 0 and finite, got {float(threshold)}" in line
    assert "unknown data 'nowhere'" in refused("--dead-units", "nowhere")
    line = refused("--dead-units", "digits")
    assert "is for images of 1x6x6, digits has 1x8x8" in line
    (run / "bunit_cnn_last.pt").unlink()
    assert f"no checkpoint {run / 'bunit_cnn_last.pt'}" in refused(*maps)


def test_networks_that_have_no_units(run, image):
    with pytest.raises(UserError, match=r"network cnn of .*cnn_last.pt has no stacked layer"):
        TrainedUnits(run / "cnn_last.pt", UnitRequest((image,)))
    content = torch.load(run / "bunit_cnn_last.pt", weights_only=True)
    content["arguments"]["in_channels"], content["shape"] = 2, [2, 6, 6]
    content["mean"], content["deviation"] = content["mean"] * 2, content["deviation"] * 2
    weight = content["state"]["normal1.0.weight"]
    content["state"]["normal1.0.weight"] = torch.cat([weight, weight], 1)
    torch.save(content, run / "bunit_cnn_last.pt")
    with pytest.raises(UserError, match=r"have 1 channel .* the network takes 2"):
        TrainedUnits(run / "bunit_cnn_last.pt", UnitRequest((image,)))
