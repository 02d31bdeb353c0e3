"""Models and pictures for `bench describe`."""

import hashlib

import pytest
from PIL import Image

from tests.fixtures.samples import samples
from worker.cli import subjects
from worker.errors import ModelError, StartupError
from worker.image.decode import kind_of
from worker.image.formats import FORMATS
from worker.image.preprocess import decode
from worker.settings import Decode, Limits, ModelSettings, Settings


def settings(**limits):
    return Settings(decode=Decode(workers=1), limits=Limits(**limits))


def test_of_a_folder_what_both_sides_can_read(tmp_path):
    of_formats = {f"{n:02}": data for n, data in enumerate(samples())}
    Image.effect_noise((320, 240), 60).convert("RGB").save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    half = whole[: len(whole) // 2]
    assert decode(half, Limits()).info.truncated  # the worker reads it, the card's loop does not
    names = of_formats | {"half.jpg": half, "large.jpg": whole + bytes(100_000), "text": b"text"}
    for name, data in names.items():
        (tmp_path / name).write_bytes(data)
    found = subjects.of_folder(tmp_path, settings(image_bytes=100_000))
    assert {kind_of(data) for data in found} == {"JPEG", "PNG", "GIF", "WEBP"}
    expected = [data for data in of_formats.values() if not FORMATS[kind_of(data)].sandboxed]
    assert found == [*expected, whole]


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "heic").write_bytes(samples()[-1])
    with pytest.raises(StartupError, match="there is no JPEG, PNG, GIF or WebP that is whole"):
        subjects.of_folder(tmp_path, settings())


def test_a_file_under_a_name_of_the_catalogue_has_to_be_that_model(network):
    digest = hashlib.sha256(network.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match=r"expected sscd_resnext_101_c1, .*found \('resnet50', 5"):
        subjects.of_model(ModelSettings(path=network, sha256=digest))
    mine = subjects.of_model(ModelSettings(name="mine", path=network))
    assert (mine.settings.name, mine.weights) == ("mine", digest)
    assert mine.preprocessing.name == "bicubic-320"
