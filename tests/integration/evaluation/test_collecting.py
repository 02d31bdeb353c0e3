"""A folder of photographs, with the real model."""

import shutil
from contextlib import closing, nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import skimage.data
from PIL import Image

from worker.descriptor import embedders
from worker.errors import StartupError, Unscreenable, UnscreenedReason
from worker.evaluation import collecting
from worker.evaluation.collection import save
from worker.image import edits, preprocess
from worker.image.decoder import Decoder
from worker.settings import ModelSettings, Settings, Views

SETTINGS = Settings(
    model=ModelSettings(name="sscd_disc_mixup_int8"), views=Views(uploads=("plain", "centre_crop"))
)


@pytest.fixture(scope="module")
def embedder():
    return embedders.load(SETTINGS.model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for name in ("cat", "coffee", "rocket"):
        image = Image.fromarray(getattr(skimage.data, name)())
        image.save(folder / f"{name}.png")
    cat, coffee = (Image.open(folder / f"{name}.png") for name in ("cat", "coffee"))
    edits.mirrored(cat).save(folder / "more" / "tac.webp")
    edits.cropped(coffee).save(folder / "more" / "part.jpg")
    coffee.save(folder / "moving.gif", save_all=True, append_images=[cat.resize(coffee.size)])
    shutil.copy(folder / "cat.png", folder / "more" / "again.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "notes.txt").write_text("no picture either")
    return folder


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def collection(folder, embedder, told):
    return collecting.read(folder, SETTINGS, embedder, on_progress=lambda *one: told.append(one))


NAMES = ("cat.png", "coffee.png", "more/part.jpg", "more/tac.webp", "moving.gif", "rocket.png")


def test_a_folder(collection, told):
    assert collection.names == NAMES
    assert collection.looks == ("plain", "centre_crop")
    assert (collection.descriptors.shape, collection.descriptors.dtype) == ((6, 2, 512), np.float16)
    norms = np.linalg.norm(collection.descriptors.astype(np.float32), axis=2)
    assert np.abs(norms - 1).max() < 1e-3
    assert collection.repeated == {"more/again.png": 0}
    assert [(one.image, one.reason) for one in collection.failed] == [
        ("broken.jpg", "undecodable"),
        ("notes.txt", "unsupported_format"),
    ]
    assert collection.grouping.groups.tolist() == [0, 1, 1, 0, 1, 2]
    assert list(collection.grouping.pairs) == ["sha256", "pdq", "alignment"]
    assert {what for what, _ in told} == {"describe", "pdq", "alignment"}
    assert [share for what, share in told if what == "describe"][-1] == 1


def test_descriptors_are_those_of_uploads(collection, folder, embedder):
    """Also of the first frame of an animation, which is coffee in 256 colours."""
    decoder = Decoder(SETTINGS.decode, SETTINGS.limits, embedder.preprocessing, SETTINGS.views)
    with closing(decoder):
        upload = decoder.prepare((folder / "coffee.png").read_bytes(), nullcontext)
    rows = embedder.describe(upload.pixels).numpy()
    assert [look.view for look in upload.looks] == list(collection.looks)
    assert (rows * collection.descriptors[1]).sum(axis=1).min() > 0.999
    assert rows[0] @ collection.plain[4] > 0.95
    assert rows[0] @ collection.plain[5] < 0.3


def test_saved_and_read_again(collection, embedder, tmp_path):
    save(collection, tmp_path / "images.npz")
    again = collecting.read(tmp_path / "images.npz", SETTINGS, embedder)
    assert again.names == collection.names
    assert np.abs(again.descriptors.astype(float) - collection.descriptors).max() < 1e-3
    assert np.array_equal(again.grouping.groups, collection.grouping.groups)
    assert again.grouping.pairs == collection.grouping.pairs


def test_a_file_of_groups_and_no_alignment(folder, embedder, tmp_path):
    file = tmp_path / "groups.csv"
    file.write_text("image,group\nrocket.png,a\nmore/again.png,a\nbroken.jpg,a\npart.jpg,b\n")
    found = collecting.read(folder, SETTINGS, embedder, groups_file=file, most_aligned=8)
    assert found.fingerprints.features is None
    assert found.grouping.pairs == {"sha256": 0, "pdq": 2, "file": 1}
    assert found.grouping.groups.tolist() == [0, 1, 2, 0, 1, 0]


@dataclass
class Choking:
    """The real model, which cannot describe one picture."""

    embedder: embedders.Embedder
    picture: np.ndarray

    def __getattr__(self, name):
        return getattr(self.embedder, name)

    def describe(self, pixels):
        if any(np.array_equal(one, self.picture) for one in pixels):
            raise Unscreenable(UnscreenedReason.DESCRIBE_FAILED, "not of norm 1")
        return self.embedder.describe(pixels)


def test_what_cannot_be_described_fails_alone(folder, embedder):
    """With all files of its bytes."""
    picture = preprocess.resize(skimage.data.cat(), embedder.preprocessing)
    found = collecting.read(folder, SETTINGS, Choking(embedder, picture))
    assert found.names == NAMES[1:]
    assert found.repeated == {}
    failed = {one.image: one.reason for one in found.failed}
    assert failed["cat.png"] == failed["more/again.png"] == "describe_failed"
    assert len(failed) == 4


def test_nothing_to_read(embedder, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(StartupError, match="there is no image"):
        collecting.read(tmp_path, SETTINGS, embedder)
    with pytest.raises(StartupError, match=r"expected a folder or an \.npz file"):
        collecting.read(tmp_path / "notes.txt", SETTINGS, embedder)
