"""The benchmark runs, and tells what it measured. How fast is not judged here."""

import json
import statistics

import pytest
import skimage.data
from PIL import Image
from typer.testing import CliRunner

from worker.cli.main import app
from worker.descriptor.precision import LOWEST_COSINE
from worker.errors import StartupError

SMALL = ["--batch", "2", "--rounds", "1", "--seconds", "0"]


@pytest.fixture
def photos(tmp_path):
    for name in ("coffee", "astronaut"):
        Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / f"{name}.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", "describe", *map(str, arguments)])


def test_a_network_and_a_graph(photos):
    models = ["--architecture", "resnet50", "--model", "sscd_distilled"]
    result = bench(*models, "--images", photos, *SMALL, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["pictures"] == 2
    assert told["machine"]["cores"] > 0
    graph, network = told["models"]

    assert network["weights"] == "random"
    rows = {row["option"]: row for row in network["options"]}
    assert list(rows)[:3] == ["fp32 NCHW", "fp32 channels_last", "bf16 channels_last"]
    assert rows["fp32 NCHW"]["lowest_cosine"] > 0.99999
    assert LOWEST_COSINE < rows["bf16 channels_last"]["lowest_cosine"] < 0.999999
    assert network["auto"]["option"] in rows
    assert network["auto"]["within_bound"]

    (onnx,) = graph["options"]
    assert (onnx["option"], onnx["batch"], onnx["lowest_cosine"]) == ("onnx", 2, None)
    assert (graph["card"], graph["auto"]) == ("fp32 resnet50", None)

    for row in [*rows.values(), onnx]:
        low, high = row["ratio_spread"]
        assert 0 < low <= row["ratio"] <= high
        expected = row["images_per_second"] / row["card_images_per_second"]
        assert row["ratio"] == pytest.approx(expected, rel=0.05)
    speeds = [row["card_images_per_second"] for row in rows.values()]
    assert network["card_images_per_second"] == pytest.approx(statistics.median(speeds), abs=0.02)


def test_what_does_not_work_here_is_a_row(photos, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr("torch.compile", fails)
    result = bench("--architecture", "resnet50", "--compile", "--images", photos, *SMALL)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("fp32 compiled")]
    assert len(lines) == 1
    assert "not available: model.compile: torch.compile does not work here" in lines[0]
    assert "auto is " in result.stdout


def test_a_folder_without_pictures(photos):
    (photos / "coffee.jpg").unlink()
    (photos / "astronaut.jpg").unlink()
    result = bench("--model", "sscd_distilled", "--images", photos, *SMALL)
    assert isinstance(result.exception, StartupError)
    assert "there is no JPEG" in str(result.exception)
