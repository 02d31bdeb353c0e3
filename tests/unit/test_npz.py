import io
import zipfile

import numpy as np
import pytest

from worker import npz


@pytest.fixture
def file(tmp_path):
    return tmp_path / "some.npz"


def test_only_what_is_asked_for(file):
    np.savez(file, a=np.arange(3), b=np.array(["x", "yz"]), c=np.zeros(2))
    found = npz.read(file, ["a", "b", "absent"])
    assert {name: array.tolist() for name, array in found.items()} == {
        "a": [0, 1, 2],
        "b": ["x", "yz"],
    }


def test_pickles_are_never_read(file):
    np.savez(file, a=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="a: of a kind that is not read"):
        npz.read(file, ["a"])
    assert npz.read(file, ["b"]) == {}


def test_nothing_compressed(file):
    np.savez_compressed(file, a=np.zeros(1 << 20))
    with pytest.raises(ValueError, match="a: it is compressed"):
        npz.read(file, ["a"])


def test_no_more_than_the_file_holds(file):
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a.npy", header.getvalue() + b"1234")
    with pytest.raises(ValueError, match="a: more than the file holds"):
        npz.read(file, ["a"])


@pytest.mark.parametrize("cut", [0, 10, 200, -10])
def test_damaged(file, cut):
    np.savez(file, a=np.arange(100))
    whole = file.read_bytes()
    file.write_bytes(whole[:cut])
    with pytest.raises(ValueError, match="cannot be read"):
        npz.read(file, ["a"])
    file.write_bytes(whole[:150] + b"???" + whole[153:])
    with pytest.raises(ValueError):  # noqa: PT011 - whichever it is
        npz.read(file, ["a"])


def test_no_file(file):
    with pytest.raises(FileNotFoundError):
        npz.read(file, ["a"])
