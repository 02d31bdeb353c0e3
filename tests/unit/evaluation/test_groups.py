import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.fixtures.hot_set import reference
from worker.errors import StartupError
from worker.evaluation import groups
from worker.evaluation.groups import Copy, Fingerprints, Grouping
from worker.image import edits, pdq
from worker.image.alignment import features


def photograph(name, edit="unedited"):
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    return np.asarray(edits.EDITS[edit](image).resize((320, 320)))


def fingerprints(pictures, sha256=None, *, at_hand=True):
    hashed = [pdq.hash_of(one) for one in pictures]
    return Fingerprints(
        sha256 or [""] * len(pictures),
        np.array([np.frombuffer(one, np.uint8) for one, _ in hashed]),
        np.array([quality for _, quality in hashed], np.uint8),
        [features(one) for one in pictures] if at_hand else None,
    )


PICTURES = [
    photograph("cat"),
    photograph("coffee"),
    photograph("cat", "mirrored"),
    photograph("coffee", "cropped, 70% a side"),
    photograph("rocket"),
    np.full((320, 320, 3), 90, np.uint8),
    np.full((320, 320, 3), 91, np.uint8),
]
SHA256 = ["a", "b", "c", "d", "a", "", ""]


def test_each_means_finds_what_it_can():
    told = []
    found = groups.group(fingerprints(PICTURES, SHA256), lambda *step: told.append(step))
    assert found.groups.tolist() == [0, 1, 0, 1, 0, 2, 3]
    assert found.pairs == {"sha256": 1, "pdq": 1, "alignment": 2}
    assert told[-1] == ("alignment", 1.0)


def test_what_is_not_known_is_not_looked_at():
    found = groups.group(fingerprints(PICTURES, at_hand=False))
    assert found.groups.tolist() == [0, 1, 0, 2, 3, 4, 5]
    assert found.pairs == {"pdq": 1}
    nothing = Fingerprints([""] * 2, np.zeros((2, 32), np.uint8), np.zeros(2, np.uint8))
    assert groups.group(nothing).groups.tolist() == [0, 1]
    assert groups.group(nothing).pairs == {}


def test_copies_of_references():
    images = fingerprints(PICTURES, SHA256)
    stored = fingerprints([photograph("coffee"), photograph("cat"), photograph("clock")])
    known = groups.of_references(
        [
            reference("coffee", sha256="b" * 64, pdq=stored.pdq[0].tobytes().hex()),
            reference("cat", sha256=None, pdq=stored.pdq[1].tobytes().hex()),
            reference("nothing", sha256=None, pdq=None),
        ]
    )
    assert known.means == ("sha256", "pdq")
    assert groups.copies(images, known) == [
        Copy(0, 1, "pdq"),
        Copy(1, 0, "pdq"),
        Copy(2, 1, "pdq"),
    ]
    at_hand = fingerprints([photograph("coffee"), photograph("clock")], ["b", "e"])
    assert groups.copies(images, at_hand) == [Copy(1, 0, "sha256"), Copy(3, 0, "alignment")]
    assert groups.copies(images, groups.of_references([])) == []


def test_a_person_joins_groups():
    alone = Grouping(np.array([0, 1, 1, 2, 3]), {"sha256": 1})
    joined = groups.join(alone, {0: "x", 2: "x", 3: "y"})
    assert joined.groups.tolist() == [0, 0, 0, 1, 2]
    assert joined.pairs == {"sha256": 1, "file": 1}


IMAGES = {"a.png": 0, "one/b.png": 1, "two/b.png": 2, "c,d.png": 3, "bad.png": None}


def written(tmp_path, text):
    file = tmp_path / "groups.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_groups_from_a_file(tmp_path):
    text = '\ufeffimage,group\r\na.png,x\r\none/b.png,x\r\n"c,d.png","y, z"\r\nbad.png,x\r\n'
    found = groups.read_groups(written(tmp_path, text), IMAGES)
    assert found == {0: "x", 1: "x", 3: "y, z"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: expected image,group"),
        ("file,group\n", "line 1: expected image,group"),
        ("image,group\na.png\n", "line 2: expected an image and a group"),
        ("image,group\na.png,\n", "line 2: expected an image and a group"),
        ("image,group\na.png,x\ne.png,x\n", "line 3: there is no image 'e.png'"),
        ("image,group\nb.png,x\n", "line 2: several images are called 'b.png'"),
        ("image,group\na.png,x\na.png,y\n", "line 3: 'a.png', or its equal, is in group 'x'"),
        ('image,group\n"a.png,x\n', "after line 1: not CSV"),
        (b"image,group\n\xff,x\n", "not CSV in UTF-8"),
    ],
)
def test_a_wrong_file_is_told_by_its_line(tmp_path, text, told):
    file = written(tmp_path, text)
    with pytest.raises(StartupError) as error:
        groups.read_groups(file, IMAGES)
    assert told in str(error.value)
    assert str(error.value).startswith(f"{file}: ")


def test_no_such_file(tmp_path):
    with pytest.raises(StartupError, match="No such file"):
        groups.read_groups(tmp_path / "absent.csv", IMAGES)
