"""Files of collections."""

import numpy as np
import pytest

from tests.fixtures.hot_set import MODEL, unit_rows
from worker.errors import StartupError
from worker.evaluation import collection
from worker.evaluation.collection import Collection, load, save
from worker.evaluation.groups import Fingerprints, Grouping

LOOKS = ("plain", "centre_crop")
N = 5
ROWS = unit_rows(3, N * len(LOOKS)).reshape(N, len(LOOKS), MODEL.dims)
SHA256 = [letter * 64 for letter in "abcab"]
PDQ = np.random.default_rng(2).integers(0, 256, (N, 32), np.uint8)


@pytest.fixture
def loaded(tmp_path):
    """Write arrays, and read them as a collection; in `plain` if no looks are told."""

    def loading(*looks, **arrays):
        np.savez(tmp_path / "images.npz", **{"descriptors": ROWS[:, 0]} | arrays)
        return load(tmp_path / "images.npz", looks or ("plain",), MODEL)

    return loading


def test_descriptors_alone(loaded):
    found = loaded()
    assert np.abs(found.plain.astype(float) - ROWS[:, 0]).max() < 1e-3
    assert found.names == ("0", "1", "2", "3", "4")
    assert (found.grouping.groups.tolist(), found.grouping.pairs) == ([0, 1, 2, 3, 4], {})
    assert found.fingerprints.means == ()


def test_looks_are_chosen_by_name(loaded):
    found = loaded("centre_crop", "plain", descriptors=ROWS, looks=np.array(LOOKS))
    assert found.looks == ("centre_crop", "plain")
    assert np.abs(found.plain.astype(float) - ROWS[:, 0]).max() < 1e-3
    assert loaded(descriptors=ROWS, looks=np.array(LOOKS)).descriptors.shape == (N, 1, MODEL.dims)


def test_equal_bytes_are_one_image(loaded):
    found = loaded(sha256=np.array(SHA256), pdq=PDQ, names=np.array([*"vwxyz"]))
    assert found.names == ("v", "w", "x")
    assert found.repeated == {"y": 0, "z": 1}
    assert np.array_equal(found.fingerprints.pdq, PDQ[:3])
    assert found.grouping.pairs == {"sha256": 0, "pdq": 0}


def test_groups_of_the_file(loaded):
    found = loaded(sha256=np.array(SHA256), group=np.array(["x", "y", "x", "z", "z"]))
    assert found.grouping.groups.tolist() == [0, 1, 0]
    assert found.grouping.pairs == {"file": 1}


def test_hashes_in_hex(loaded):
    texts = ["", *(row.tobytes().hex() for row in PDQ[1:])]
    found = loaded(pdq=np.array(texts), pdq_quality=np.array([100, 100, 40, 200, 50]))
    assert found.fingerprints.hashed.tolist() == [1, 3, 4]
    assert np.array_equal(found.fingerprints.pdq[1:], PDQ[1:])


def test_what_is_saved_is_read_again(tmp_path):
    known = Fingerprints(
        ["a" * 64, "b" * 64, "c" * 64, "d" * 64, "e" * 64],
        PDQ,
        np.arange(0, 100, 20).astype(np.uint8),
    )
    grouping = Grouping(np.array([0, 1, 0, 2, 3]), {"sha256": 0, "alignment": 7})
    names = ("a.png", "b/c.png", "d", "e", "f")
    whole = Collection(MODEL, LOOKS, names, ROWS, known, grouping)
    file = tmp_path / "images.npz"
    save(whole, file)
    assert [one.name for one in tmp_path.iterdir()] == ["images.npz"]
    assert file.stat().st_mode & 0o077 == 0
    found = load(file, LOOKS, MODEL)
    assert np.abs(found.descriptors.astype(float) - ROWS).max() < 1e-3
    assert (found.names, found.looks, found.model) == (names, LOOKS, MODEL)
    assert list(found.fingerprints.sha256) == list(known.sha256)
    assert np.array_equal(found.fingerprints.pdq, PDQ)
    assert np.array_equal(found.fingerprints.quality, known.quality)
    assert np.array_equal(found.grouping.groups, grouping.groups)
    assert found.grouping.pairs == grouping.pairs


def spoilt(**changes):
    rows = ROWS[:, 0].astype(np.float32).copy()
    for at, value in changes.items():
        rows[int(at.removeprefix("row"))] = value
    return rows


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"descriptors": spoilt(row2=np.nan)}, "row 2 is not of norm 1"),
        ({"descriptors": spoilt(row4=np.inf)}, "row 4 is not of norm 1"),
        ({"descriptors": spoilt(row1=0)}, "row 1 is not of norm 1"),
        ({"descriptors": 2 * ROWS[:, 0]}, "row 0 is not of norm 1"),
        ({"descriptors": ROWS[:, 0, :4]}, "descriptors: expected"),
        ({"descriptors": ROWS[:, 0].astype(np.int32)}, "descriptors: expected"),
        ({"descriptors": ROWS}, "descriptors: expected"),
        ({"descriptors": ROWS[:0, 0]}, "no descriptors"),
        ({"descriptors": ROWS, "looks": np.array(["plain", "x", "y"])}, "descriptors: expected"),
        ({"looks": np.array(["centre_crop"])}, "there is no plain"),
        ({"model_sha256": np.array("b" * 64)}, "another model's"),
        ({"model_sha256": np.array(5)}, "model_sha256: expected"),
        ({"sha256": np.array(SHA256[:4])}, "sha256: expected"),
        ({"sha256": np.array([*SHA256[:4], "A" * 64])}, "sha256: row 4"),
        ({"pdq": PDQ[:, :31]}, "pdq: expected"),
        ({"pdq": PDQ.astype(np.int64)}, "pdq: expected"),
        ({"pdq": np.array(["ff"] * N)}, "pdq: row 0"),
        ({"pdq": PDQ, "pdq_quality": np.full(N, 0.5)}, "pdq_quality: expected"),
        ({"names": np.array(["a"] * N)}, "names: one comes twice"),
        ({"group": np.zeros((N, 2), int)}, "group: expected"),
        ({"group": np.zeros(N, int), "checked": np.array(["descriptor"])}, "checked: row 0"),
    ],
)
def test_what_does_not_fit_is_one_line(loaded, arrays, told):
    with pytest.raises(StartupError) as error:
        loaded(**arrays)
    assert told in str(error.value)
    assert "images.npz: " in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_no_collection(tmp_path):
    with pytest.raises(StartupError, match="No such file"):
        load(tmp_path / "absent.npz", LOOKS, MODEL)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(StartupError, match="no descriptors"):
        load(tmp_path / "other.npz", LOOKS, MODEL)
    np.savez_compressed(tmp_path / "small.npz", descriptors=ROWS[:, 0])
    with pytest.raises(StartupError, match="compressed"):
        load(tmp_path / "small.npz", LOOKS, MODEL)


def test_descriptors_come_in_parts(loaded, monkeypatch):
    monkeypatch.setattr(collection, "_AT_ONCE", 2)
    assert len(loaded()) == N
    with pytest.raises(StartupError, match="row 3 "):
        loaded(descriptors=spoilt(row3=np.nan))
