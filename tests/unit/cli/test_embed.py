"""`copysieve embed`, with real weights."""

import json

import numpy as np
import pytest
import skimage.data
from PIL import Image
from typer.testing import CliRunner

from worker.cli.main import app
from worker.descriptor.zoo import CATALOGUE
from worker.errors import ModelError


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COPYSIEVE_MODEL__NAME", "sscd_distilled")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name in ("coffee.png", "more/astronaut.jpg", ".hidden/camera.png"):
        photo = getattr(skimage.data, name.split("/")[-1].split(".")[0])()
        Image.fromarray(photo).save(folder / name)
    return folder


def test_a_folder_to_npz(run, photos, tmp_path):
    out = tmp_path / "out.npz"
    result = run("embed", photos, photos / "coffee.png", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    files = [str(photos / name) for name in ("coffee.png", "more/astronaut.jpg", "coffee.png")]
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["images"] == files
    assert told["skipped"] == []
    with np.load(out) as written:
        assert written["images"].tolist() == files
        assert str(written["sha256"]) == CATALOGUE["sscd_distilled"].sha256
        rows = written["rows"]
    assert (rows.dtype, rows.shape) == (np.float32, (3, 512))
    assert rows[0] @ rows[2] > 0.9999
    assert rows[0] @ rows[1] < 0.5


def test_what_cannot_be_read_is_told_and_the_rest_is_written(run, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "out.npy"
    result = run("embed", photos, "--out", out, "--json")
    assert result.exit_code == 1
    assert "broken.jpg: unsupported_format" in result.stderr
    (skipped,) = json.loads(result.stdout.splitlines()[-1])["skipped"]
    assert skipped["reason"] == "unsupported_format"
    assert np.load(out).shape == (2, 512)


def test_nothing_to_write(run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "out.npy"
    assert run("embed", tmp_path / "broken.jpg", "--out", out).exit_code == 1
    assert not out.exists()


def test_wrong_usage(run, photos, tmp_path):
    assert run("embed", photos, "--out", tmp_path / "out.txt").exit_code == 2
    assert run("embed", photos, "--out", tmp_path / "absent" / "out.npy").exit_code == 2
    (tmp_path / "empty").mkdir()
    assert run("embed", tmp_path / "empty", "--out", tmp_path / "out.npy").exit_code == 2


def test_feature_maps_of_a_graph_that_has_none(run, photos, tmp_path):
    result = run("embed", photos, "--what", "stage1", "--out", tmp_path / "out.npy")
    assert isinstance(result.exception, ModelError)
    assert "gives descriptors only, not stage1" in str(result.exception)
