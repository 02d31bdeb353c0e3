import hashlib
import io
from datetime import UTC, datetime

import numpy as np
import pytest
import skimage.data
from PIL import Image

from worker.canary.pictures import EDITS, LARGEST_SIDE, copy_of, pair, scan
from worker.descriptor import embedders
from worker.errors import DecodeError, StartupError
from worker.hotset.types import Reference
from worker.image.preprocess import decode, resize
from worker.settings import Limits, ModelSettings


def reference(reference_id, sha256=None, *, canary=True):
    return Reference(
        reference_id=reference_id,
        bank="canaries",
        added_by="t",
        added_at=datetime.now(UTC),
        sha256=sha256,
        canary=canary,
    )


def digest(data):
    return hashlib.sha256(data).hexdigest()


def test_files_are_tied_to_canary_references_by_their_bytes(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("a", "below/b", "same-as-a", "c", ".d", ".hidden/e"):
        (tmp_path / name).write_bytes(b"a" if name == "same-as-a" else name.encode())
    files = scan(tmp_path)
    assert len(files) == 3
    registered = [
        reference("ref-a", digest(b"a")),
        reference("ref-b", digest(b"below/b")),
        reference("no-canary", digest(b"c"), canary=False),
        reference("gone", digest(b"gone")),
        reference("by-url"),
    ]
    paired = pair(files, registered)
    tied = {(one.picture.name, one.reference.reference_id) for one in paired.canaries}
    assert tied == {("a", "ref-a"), ("b", "ref-b")}
    assert [path.name for path in paired.pictures] == ["c"]
    assert [one.reference_id for one in paired.references] == ["gone", "by-url"]


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(StartupError, match=r"canaries\.folder .*none: no such folder"):
        scan(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StartupError, match="no such folder"):
        scan(tmp_path / "file")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in ("coffee", "astronaut", "chelsea", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.jpg")
    return sorted(folder.iterdir())


def test_copies_differ_and_follow_from_the_id(photos):
    copies = [copy_of(photos[0], f"canary:{n}", Limits()) for n in range(12)]
    assert len(set(copies)) == 12
    assert copy_of(photos[0], "canary:3", Limits()) == copies[3]


def test_copies_of_large_and_of_tiny_pictures(tmp_path):
    large = tmp_path / "large.png"
    Image.new("RGBA", (3000, 2500), (10, 20, 30, 40)).save(large)
    copied = Image.open(io.BytesIO(copy_of(large, "canary:1", Limits())))
    assert copied.format == "JPEG"
    assert max(copied.size) <= LARGEST_SIDE * 13 // 12
    tiny = tmp_path / "tiny.png"
    Image.new("L", (2, 2)).save(tiny)
    for n in range(12):
        assert copy_of(tiny, f"canary:{n}", Limits())


def test_what_is_no_picture_is_told(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(DecodeError):
        copy_of(broken, "canary:1", Limits())
    with pytest.raises(OSError, match="none"):
        copy_of(tmp_path / "none", "canary:1", Limits())


@pytest.mark.parametrize("name", ["sscd_distilled", "sscd_disc_mixup_int8"])
def test_models_find_every_copy_with_ease(photos, name):
    embedder = embedders.load(ModelSettings(name=name, threads=2))

    def described(data):
        image = decode(data, Limits(), embedder.preprocessing.size)
        return embedder.describe(resize(image.pixels, embedder.preprocessing)[None])[0]

    for photo in photos:
        plain = described(photo.read_bytes())
        copies = [copy_of(photo, f"canary:{n}", Limits()) for n in range(3 * len(EDITS))]
        cosines = np.array([float(plain @ described(copy)) for copy in copies])
        print(name, photo.name, cosines.min())
        assert cosines.min() > 0.75
