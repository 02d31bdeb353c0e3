"""`copysieve refs add` and pictures that should not become references."""

import json

import numpy as np
import pytest
import skimage.data
from PIL import Image
from typer.testing import CliRunner

from worker.cli.main import app
from worker.image import patterns

pytestmark = pytest.mark.redis

PHOTOGRAPHS = ("astronaut", "cat", "coffee", "hubble_deep_field", "moon", "retina", "rocket")
MODEL = "sscd_disc_mixup_int8"


@pytest.fixture
def add(monkeypatch, redis_server):
    """Adds to the bank; what `--json` tells, and stderr."""
    monkeypatch.setenv("COPYSIEVE_MODEL__NAME", MODEL)
    monkeypatch.setenv("COPYSIEVE_REDIS__URL", redis_server.url)
    invoke(0, "banks", "set", "known-bad", "--threshold", "0.5")

    def adding(*arguments, code=0):
        result = invoke(code, "refs", "add", *arguments, "--bank", "known-bad", "--json")
        return json.loads(result.stdout.splitlines()[-1]), result.stderr

    return adding


def invoke(code, *arguments):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result


def photographs(folder):
    folder.mkdir()
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        image.save(folder / f"{name}.png")
    return folder


def generated(folder):
    """One of each kind that must not get in; what is said of it stands in its name."""
    folder.mkdir()
    noise = np.random.default_rng(3).integers(0, 256, (300, 400, 3), np.uint8)
    gradient = np.linspace(0, 255, 400).astype(np.uint8)[None, :, None]
    page = Image.new("RGB", (400, 300), "white")
    page.paste("black", (200, 150, 220, 160))
    pictures = {
        "blank": Image.new("RGB", (400, 300), "navy"),
        "near_uniform": page,
        "low_information": Image.fromarray(np.broadcast_to(gradient, (300, 400, 3)).copy()),
        "noise": Image.fromarray(noise),
        "test_pattern": Image.fromarray(patterns.draw("test card", 400, seed=3)[0]),
    }
    for name, image in pictures.items():
        image.save(folder / f"{name}.jpg", quality=80)
    return folder


def test_what_shows_nothing_is_refused_and_photographs_are_not(add, store, tmp_path):
    photos, bad = photographs(tmp_path / "photos"), generated(tmp_path / "bad")
    report, stderr = add(photos, bad, code=1)
    assert (report["added"], report["failed"]) == (len(PHOTOGRAPHS), [])
    told = {one["image"]: one["objections"][0] for one in report["questioned"]}
    assert sorted(told) == sorted(str(file) for file in bad.iterdir())
    for file in bad.iterdir():
        assert told[str(file)]["objection"] == file.stem
        assert f"refused {file}: {file.stem}: " in stderr
    assert len(store.references()) == len(PHOTOGRAPHS)
    report, _ = add(photos)
    assert (report["unchanged"], report["questioned"]) == (len(PHOTOGRAPHS), [])


def test_a_picture_encoded_anew_is_a_duplicate_of_the_one_that_is_there(add, tmp_path):
    coffee = Image.fromarray(skimage.data.coffee())
    coffee.save(tmp_path / "coffee.png")
    coffee.save(tmp_path / "anew.jpg", quality=85)
    report, _ = add(tmp_path / "coffee.png")
    (reference_id,) = report["reference_ids"]
    report, stderr = add(tmp_path / "anew.jpg", code=1)
    (refused,) = report["questioned"]
    (raised,) = refused["objections"]
    assert (refused["state"], raised["objection"]) == ("refused", "duplicate")
    assert raised["reference_id"] == reference_id
    assert f"duplicate: like reference {reference_id}: cosine 0.9" in stderr


@pytest.mark.parametrize(
    ("options", "state", "listed"),
    [
        (("--shadow",), "shadow", "shadow, enabled"),
        (("--force", "--note", "we have it"), "forced", "enabled"),
    ],
)
def test_what_is_added_in_spite_of_an_objection_says_so(
    add, store, tmp_path, options, state, listed
):
    bad = generated(tmp_path / "bad")
    Image.fromarray(skimage.data.coffee()).save(bad / "coffee.png")
    pictures = bad / "noise.jpg", bad / "coffee.png"
    report, stderr = add(*pictures, *options, "--by", "ann")
    assert report["added"] == 2
    assert [one["state"] for one in report["questioned"]] == [state]
    assert f"{state} {bad / 'noise.jpg'}: noise: " in stderr
    by_objections = {one.objections: one for one in store.references()}
    noise, coffee = by_objections["noise",], by_objections[()]
    assert (noise.shadow, coffee.shadow) == (state == "shadow", False)
    assert (noise.added_by, noise.note) == ("ann", "we have it" if state == "forced" else None)
    lines = invoke(0, "refs", "list").stdout.splitlines()
    (line,) = (line for line in lines if noise.reference_id in line)
    assert f"{listed} " in line
    assert " noise " in line
    shown = json.loads(invoke(0, "refs", "show", noise.reference_id, "--json").stdout)
    assert shown["reference"]["objections"] == ["noise"]

    report, _ = add(bad / "noise.jpg")  # a person knows: it stays as it was added
    assert (report["unchanged"], report["questioned"][0]["state"]) == (1, state)
    assert store.reference(noise.reference_id).note == noise.note


def test_a_canary_is_benign_and_may_be_there_already(add, tmp_path):
    bad = generated(tmp_path / "bad")
    Image.fromarray(skimage.data.coffee()).save(tmp_path / "coffee.png")
    Image.fromarray(skimage.data.coffee()).save(tmp_path / "coffee.jpg", quality=90)
    add(tmp_path / "coffee.png")
    assert add(tmp_path / "coffee.jpg", "--canary")[0]["added"] == 1
    assert add(bad / "blank.jpg", "--canary", code=1)[0]["added"] == 0
