from pathlib import Path

import numpy as np
import pytest

from worker.errors import StartupError
from worker.evaluation.labelled import groups_of, ids, read_truth

QUERIES = {"Q0": 0, "Q1": 1, "Q2": 2, "Q3": 3}
REFERENCES = {"R0": 0, "R1": 1}


def read(tmp_path, text):
    file = tmp_path / "truth.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_truth(file, QUERIES, REFERENCES)


@pytest.mark.parametrize("header", ["query_id,reference_id\n", ""])
def test_what_is_a_copy_of_what(tmp_path, header):
    found = read(tmp_path, f"{header}Q3,R0\nQ1,\nQ0,R1\nQ3,R1\nQ3,R0\n")
    assert found.queries == [0, 1, 3]
    assert found.pairs.tolist() == [[0, 1], [2, 0], [2, 1]]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Q9,R0\n", "line 1: there is no query 'Q9'"),
        ("query_id,reference_id\nQ0,R9\n", "line 2: there is no reference 'R9'"),
        ("Q0,R0,0.5\n", "line 1: expected query_id,reference_id"),
        ("Q0,R0\n\n", "line 2: expected query_id,reference_id"),
        ("Q0,\n", "no query has a reference"),
        ("", "no query has a reference"),
        (b"\xff\xfe\n", "not CSV in UTF-8"),
        ('Q0,"R0\n', "not CSV in UTF-8"),
    ],
)
def test_what_is_no_such_file(tmp_path, text, why):
    with pytest.raises(StartupError, match=why):
        read(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(StartupError, match="No such file"):
        read_truth(tmp_path / "absent.csv", QUERIES, REFERENCES)


def test_ids():
    assert ids([Path("a/Q1.jpg"), Path("a/Q2.png")]) == {"Q1": 0, "Q2": 1}
    with pytest.raises(StartupError, match=r"a/Q1.jpg have the same id, Q1"):
        ids([Path("a/Q1.jpg"), Path("b/Q1.png")])


def test_only_queries_are_resampled():
    assert np.array_equal(groups_of(2, 3, 1), [-1, -1, 0, 1, 2, -1])
