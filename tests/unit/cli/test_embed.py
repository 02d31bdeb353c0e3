"""`copysieve embed`, with real weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from typer.testing import CliRunner

from worker.cli.common import with_model
from worker.cli.main import app
from worker.descriptor import embedders
from worker.descriptor.embedders import OnnxEmbedder, TorchEmbedder
from worker.descriptor.zoo import CATALOGUE
from worker.errors import (
    CopysieveError,
    FetchError,
    ModelError,
    Unscreenable,
    UnscreenedReason,
)
from worker.image.files import bytes_of
from worker.image.preprocess import decode, resize
from worker.settings import Limits, ModelSettings, Settings


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
    result = run("embed", photos, photos / "coffee.png", "--output", out, "--json")
    assert result.exit_code == 0, result.output
    files = [str(photos / name) for name in ("coffee.png", "more/astronaut.jpg", "coffee.png")]
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["paths"] == files
    assert told["skipped"] == []
    with np.load(out) as written:
        assert written["paths"].tolist() == files
        assert str(written["sha256"]) == CATALOGUE["sscd_distilled"].sha256
        assert str(written["precision"]) == "own"
        rows = written["descriptor"]
    assert (rows.dtype, rows.shape) == (np.float32, (3, 512))
    assert rows[0] @ rows[2] > 0.9999
    assert rows[0] @ rows[1] < 0.5


def test_what_cannot_be_read_is_told_and_the_rest_is_written(run, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "out.npy"
    result = run("embed", photos, "--output", out, "--json")
    assert result.exit_code == 1
    assert "broken.jpg: unsupported_format" in result.stderr
    (skipped,) = json.loads(result.stdout.splitlines()[-1])["skipped"]
    assert skipped["reason"] == "unsupported_format"
    assert np.load(out).shape == (2, 512)


def test_nothing_to_write(run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "out.npy"
    assert run("embed", tmp_path / "broken.jpg", "--output", out).exit_code == 1
    assert not out.exists()


def test_wrong_usage(run, photos, tmp_path):
    assert run("embed", photos, "--output", tmp_path / "out.txt").exit_code == 2
    assert run("embed", photos, "--output", tmp_path / "absent" / "out.npy").exit_code == 2
    (tmp_path / "empty").mkdir()
    assert run("embed", tmp_path / "empty", "--output", tmp_path / "out.npy").exit_code == 2


def test_feature_maps_of_a_graph_that_has_none(run, photos, tmp_path):
    result = run("embed", photos, "--kind", "features", "--output", tmp_path / "out.npz")
    assert isinstance(result.exception, ModelError)
    assert "gives descriptors only, not features" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


KINDS: dict[str, dict[str, tuple[int, ...]]] = {
    "descriptor": {"descriptor": (512,)},
    "embedding": {"embedding": (2048,)},
    "features": {
        "stage1": (256, 80, 80),
        "stage2": (512, 40, 40),
        "stage3": (1024, 20, 20),
        "stage4": (2048, 10, 10),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_a_network(run, photos, tmp_path, network, kind):
    (photos / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "out.npz"
    arguments = ("--model", network, "--kind", kind, "--output", out, "--json")
    result = run("embed", photos, *arguments)
    assert result.exit_code == 1, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["kind"], told["precision"]) == (kind, "fp32")
    assert [Path(one["path"]).name for one in told["skipped"]] == ["broken.jpg"]
    embedder = embedders.load(ModelSettings(name="mine", path=network, precision="fp32"))
    assert isinstance(embedder, TorchEmbedder)
    settings = Settings()
    with np.load(out) as written:
        assert written["paths"].tolist() == told["paths"]
        assert [Path(path).name for path in told["paths"]] == ["coffee.png", "astronaut.jpg"]
        assert str(written["model"]) == "mine"
        for name, shape in KINDS[kind].items():
            assert (written[name].dtype, written[name].shape) == (np.float32, (2, *shape))
        for row, path in enumerate(told["paths"]):
            pixels = resize(
                decode(Path(path).read_bytes(), settings.limits, target=320).pixels,
                embedder.preprocessing,
            )[None]
            expected = {
                "descriptor": lambda pixels: {"descriptor": embedder.describe(pixels)},
                "embedding": lambda pixels: {"embedding": embedder.embedding(pixels)},
                "features": embedder.feature_maps,
            }[kind](pixels)
            for name in KINDS[kind]:
                assert np.allclose(written[name][row], expected[name][0].numpy(), atol=1e-4)
    assert not list(tmp_path.glob(".out*"))


def poison(monkeypatch, embedder, method, spoil):
    """Black pictures come out spoilt, whatever else is in their batch."""
    real = getattr(embedder, method)

    def poisoned(self, pixels):
        rows = real(self, pixels)
        return spoil(rows, ~pixels.any(axis=(1, 2, 3)))

    monkeypatch.setattr(embedder, method, poisoned)


def test_a_picture_without_a_sound_descriptor_is_left_out_alone(run, photos, tmp_path, monkeypatch):
    def spoil(rows, black):
        if black.any():
            raise Unscreenable(UnscreenedReason.DESCRIBE_FAILED, "not of norm 1")
        return rows

    poison(monkeypatch, OnnxEmbedder, "describe", spoil)
    Image.new("RGB", (400, 400)).save(photos / "do_not.png")
    out = tmp_path / "out.npz"
    result = run("embed", photos, "--output", out, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout.splitlines()[-1])
    assert [Path(path).name for path in told["paths"]] == ["coffee.png", "astronaut.jpg"]
    assert [(Path(one["path"]).name, one["reason"]) for one in told["skipped"]] == [
        ("do_not.png", "describe_failed")
    ]
    with np.load(out) as written:
        assert written["paths"].tolist() == told["paths"]
        assert written["descriptor"].shape == (2, 512)


@pytest.mark.parametrize(("kind", "method"), [("embedding",) * 2, ("features", "feature_maps")])
def test_what_is_not_finite_is_not_written(
    run, photos, tmp_path, monkeypatch, network, kind, method
):
    def spoil(rows, black):
        if isinstance(rows, dict):
            return {stage: spoil(values, black) for stage, values in rows.items()}
        rows = rows.clone()
        rows[black, 7] = torch.inf
        return rows

    poison(monkeypatch, TorchEmbedder, method, spoil)
    # Only what makes descriptors is compiled, so a compiler that fails is not asked.
    monkeypatch.setenv("COPYSIEVE_MODEL__COMPILE", "true")
    monkeypatch.setattr("torch.compile", None)
    Image.new("RGB", (400, 400)).save(photos / "do_not.png")
    out = tmp_path / "out.npz"
    result = run("embed", photos, "--model", network, "--kind", kind, "--output", out, "--json")
    assert result.exit_code == 1, result.output
    (skipped,) = json.loads(result.stdout.splitlines()[-1])["skipped"]
    assert (Path(skipped["path"]).name, skipped["reason"]) == ("do_not.png", "describe_failed")
    with np.load(out) as written:
        assert len(written["paths"]) == 2
        for name in KINDS[kind]:
            assert len(written[name]) == 2
            assert np.isfinite(written[name]).all()


def test_formats_with_risky_decoders_are_not_decoded_here(run, photos, tmp_path, monkeypatch):
    for name in ("a.tiff", "b.bmp"):
        Image.open(photos / "coffee.png").save(tmp_path / name)
    # A decoder's process has its own.
    monkeypatch.setattr("worker.image.decoder.prepare", None)
    two = tmp_path / "a.tiff", tmp_path / "b.bmp"
    assert run("embed", *two, "--output", tmp_path / "out.npy").exit_code == 0
    assert np.load(tmp_path / "out.npy").shape == (2, 512)
    told = json.loads(run("screen", *two, "--json").stdout)
    assert told["cosine"] > 0.9999


@pytest.mark.parametrize(
    ("name", "reason"), [("absent", "fetch_failed"), ("", "fetch_failed"), ("five", "too_large")]
)
def test_files_that_are_not_read(tmp_path, name, reason):
    (tmp_path / "five").write_bytes(b"12345")
    (tmp_path / "four").write_bytes(b"1234")
    limits = Limits(image_bytes=4)
    assert bytes_of(tmp_path / "four", limits) == b"1234"
    with pytest.raises(FetchError) as error:
        bytes_of(tmp_path / name, limits)
    assert error.value.reason == reason
    assert str(tmp_path) not in str(error.value)


def test_features_need_an_npz(run, photos, tmp_path):
    result = run("embed", photos, "--kind", "features", "--output", tmp_path / "out.npy")
    assert result.exit_code == 2
    assert "need a .npz file" in " ".join(result.stderr.split())


def test_a_disk_too_small_is_told_before(run, photos, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * 2 * 2048 - 1))
    result = run("embed", photos, "--output", tmp_path / "out.npz")
    assert isinstance(result.exception, CopysieveError)
    assert "2 pictures of 2,048 bytes take 8,192 bytes while" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_screen_two_files_with_a_model(run, photos, network):
    files = photos / "coffee.png", photos / "more" / "astronaut.jpg"
    told = json.loads(run("screen", *files, "--model", network, "--json").stdout)
    assert told["model"] == "mine"
    assert told["euclidean"] == pytest.approx((2 - 2 * told["cosine"]) ** 0.5, abs=2e-3)
    same = json.loads(run("screen", files[0], files[0], "--json").stdout)
    assert (same["cosine"], same["euclidean"]) == (1.0, 0.0)


def test_screen_two_files_by_their_most_similar_renditions(run, photos, tmp_path):
    known, hidden = photos / "coffee.png", tmp_path / "hidden.png"
    with Image.open(known) as image:
        disguised = image.convert("RGB")
    disguised.putalpha(0)
    disguised.save(hidden)
    shown = run("screen", known, hidden)
    assert "without alpha" in shown.stdout
    told = json.loads(run("screen", known, hidden, "--json").stdout)
    assert told["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert [one["rendition"]["background"] for one in told["compared"]] == ["white", "none"]


def test_a_model_by_name_or_file(tmp_path):
    settings = ModelSettings(name="sscd_resnext_101_c1", path=tmp_path / "a.pts", sha256="0" * 64)
    named = with_model(settings, "sscd_distilled")
    assert (named.name, named.path, named.sha256) == ("sscd_distilled", None, None)
    mine = with_model(settings, "models/b.pts")
    assert (mine.name, mine.path, mine.sha256) == ("b", Path("models/b.pts"), "0" * 64)
    graph = with_model(ModelSettings(), "elsewhere/sscd.onnx")
    assert (graph.name, graph.path) == ("sscd_disc_mixup_int8", Path("elsewhere/sscd.onnx"))
    assert with_model(settings, None) is settings
