"""`copysieve models`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.fixtures.http_server import Server, answer
from tests.fixtures.meta import classy_resnet_50
from worker.cli.main import app
from worker.descriptor.zoo import CATALOGUE
from worker.errors import ModelError

PACKAGED = {"sscd_disc_mixup_int8", "sscd_distilled"}


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("COPYSIEVE_MODEL__CACHE", str(tmp_path / "cache"))
    return lambda *arguments: CliRunner().invoke(app, ["models", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with torch.device("meta"):
        shapes = classy_resnet_50().state_dict()
    state = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in shapes.items()}
    torch.save(state, tmp_path / "blur.pt")
    return tmp_path / "blur.pt"


def rows(result) -> dict:
    return {row["name"]: row for row in json.loads(result.stdout.splitlines()[-1])}


def test_the_catalogue_tells_all_of_a_model(run):
    told = rows(run("list", "--json"))
    assert told.keys() == CATALOGUE.keys()
    assert len(told) == 17
    large = told["sscd_disc_large"]
    assert large["source"].endswith("/sscd-copy-detection/sscd_disc_large.torchscript.pt")
    assert (large["architecture"], large["dims"], large["size"]) == ("resnext101_32x4d", 1024, 320)
    assert (large["preprocessing"], large["licence"]) == ("bilinear-320", "MIT")
    assert large["mean"] == [0.485, 0.456, 0.406]
    assert large["std"] == [0.229, 0.224, 0.225]
    assert (large["sha256"], large["path"]) == (None, None)
    assert "sscd_disc_large_torchvision" not in told
    assert told["sscd_disc_blur_torchvision"]["source"].endswith("/sscd_disc_blur.torchvision.pt")
    assert {name for name, row in told.items() if row["path"]} == PACKAGED
    text = run("list").stdout
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:18]] == list(CATALOGUE)
    assert lines[1].rstrip().endswith("absent, in use")
    assert "licence of all others: MIT" in lines


def test_pull_from_a_mirror_then_verify(run, file):
    server = Server()
    try:
        server.answers["/mirror/blur.pt"] = answer(file.read_bytes())
        source = server.url("/mirror/blur.pt")
        result = run("pull", "sscd_disc_blur", "--from", source, "--json")
        again = run("pull", "sscd_disc_blur", "--from", source)
    finally:
        server.stop()
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["name"], told["pulled"], told["dims"]) == ("sscd_disc_blur", True, 512)
    assert "is here, and right" in again.stdout
    assert f"pin it, model.sha256: {told['sha256']}" in again.stdout
    assert len(server.requests) == 1
    present = rows(run("verify", "--json"))
    assert present.keys() == PACKAGED | {"sscd_disc_blur"}
    assert all(row["ok"] for row in present.values())
    assert present["sscd_distilled"]["pinned"] == "the catalogue's sscd_distilled"
    assert rows(run("list", "--json"))["sscd_disc_blur"]["path"] == told["path"]


def test_verify_tells_what_is_wrong_and_goes_on(run, file, tmp_path):
    run("pull", "sscd_disc_blur", "--from", file)
    path = tmp_path / "cache" / "sscd_disc_blur.torchscript.pt"
    path.write_bytes(path.read_bytes() + b"\0")
    result = run("verify")
    assert result.exit_code == 1
    assert "sscd_disc_blur: " in result.stdout
    assert "its sha256 is " in result.stdout
    assert result.stdout.count(": right") == len(PACKAGED)


def test_verify_of_the_file_in_use(run, file, monkeypatch):
    monkeypatch.setenv("COPYSIEVE_MODEL__NAME", "mine")
    monkeypatch.setenv("COPYSIEVE_MODEL__PATH", str(file))
    monkeypatch.setenv("COPYSIEVE_MODEL__SHA256", "0" * 64)
    for arguments in ((), (file,)):
        result = run("verify", *arguments)
        assert result.exit_code == 1
        assert f"expected {'0' * 64} (model.sha256)" in result.stdout


def test_verify_of_any_file(run, file, tmp_path):
    result = run("verify", file)
    assert result.exit_code == 0
    assert "blur.pt: right" in result.stdout
    assert "resnet50, 512 dims, bilinear-320, mean 0.485 0.456 0.406, std" in result.stdout
    assert "(not pinned)" in result.stdout
    (tmp_path / "page.pt").write_bytes(b"<html>")
    (told,) = rows(run("verify", tmp_path / "page.pt", "--json")).values()
    assert (told["ok"], "damaged" in told["error"]) == (False, True)
    packaged = rows(run("list", "--json"))["sscd_distilled"]["path"]
    assert "(the catalogue's sscd_distilled)" in run("verify", packaged).stdout


def test_verify_holds_a_file_to_what_was_recorded_of_it(run, file, tmp_path):
    run("pull", "sscd_disc_blur", "--from", file)
    pulled = tmp_path / "cache" / "sscd_disc_blur.torchscript.pt"
    moved = tmp_path / "moved.pt"
    for suffix in ("", ".sha256"):
        shutil.copy(f"{pulled}{suffix}", f"{moved}{suffix}")
    for path in (pulled, moved):
        assert f"(recorded in {path.name}.sha256)" in run("verify", path).stdout
        path.write_bytes(path.read_bytes() + b"\0")
        result = run("verify", path)
        assert result.exit_code == 1
        assert f"(recorded in {path.name}.sha256)" in result.stdout


def test_verify_is_not_about_how_the_model_is_run(run, monkeypatch):
    monkeypatch.setenv("COPYSIEVE_MODEL__COMPILE", "true")
    assert all(row["ok"] for row in rows(run("verify", "--json")).values())


def test_verify_tells_of_what_is_not_there_and_goes_on(run, monkeypatch, tmp_path):
    monkeypatch.setenv("COPYSIEVE_MODEL__PATH", str(tmp_path / "absent.pt"))
    result = run("verify", "--json")
    told = rows(result)
    assert result.exit_code == 1
    assert told.keys() == PACKAGED | {"absent.pt"}
    assert told["absent.pt"]["error"].endswith("absent.pt: no such file")
    told = rows(run("verify", "sscd_disc_blur", "--json"))
    assert "models pull sscd_disc_blur` downloads" in told["sscd_disc_blur"]["error"]
    told = rows(run("verify", "/proc/self/mem", "--json"))
    assert told["mem"]["error"] == "/proc/self/mem: Input/output error"
    assert not rows(run("list", "--json"))["sscd_resnext_101_c1"]["in_use"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("pull", "mine"), "model mine: not one of sscd_resnext_101_c1, "),
        (("verify", "mine"), "mine: neither a model that `models list` tells nor a file"),
        (("pull", "sscd_distilled"), "install the extra copysieve[demo]"),
    ],
)
def test_what_there_is_not(run, arguments, line):
    result = run(*arguments)
    assert isinstance(result.exception, ModelError)
    assert line in str(result.exception)
