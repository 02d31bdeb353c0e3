"""Every format and quirk: described as the plain picture, or refused with its reason."""

import importlib.util

import pytest

from tests.fixtures import conformance_table as table
from tests.fixtures.conformance import ROWS
from worker.image.formats import FORMATS

FEWEST_ROWS = 30
MISSED = {"GIF", "APNG"}
"""What peers miss in every row. Of the rest, see `test_peers_miss`."""


@pytest.fixture(scope="module")
def outcomes():
    return table.measure()


@pytest.mark.timeout(600)
def test_no_row_is_silently_different(outcomes):
    assert len(outcomes) >= FEWEST_ROWS
    formats = {o.row.format.upper().replace("JPEG XL", "JXL") for o in outcomes}
    assert formats >= FORMATS.keys() | {"APNG", "CUR"}
    assert {o.row.quirk: o.problem for o in outcomes if o.problem} == {}


@pytest.mark.timeout(600)
def test_the_document_tells_what_is_measured(outcomes):
    """The control's column is not measured here."""
    stored = table.documented()
    lines = [table.line(o, peers_of(one)) for o, one in zip(outcomes, stored, strict=True)]
    assert list(table.differences(lines)) == []


def peers_of(line):
    return line.rstrip(" |\n").rpartition("| ")[2]


@pytest.mark.skipif(
    not importlib.util.find_spec("pdqhash"), reason="pdqhash has to be compiled: make images"
)
@pytest.mark.timeout(600)
def test_peers_miss_what_the_document_says_they_miss():
    told = [peers_of(line) for line in table.documented()]
    chosen = [n for n, row in enumerate(ROWS) if n % 4 == 0 or row.format in MISSED]
    assert {ROWS[n].quirk: table.control(ROWS[n]) for n in chosen} == {
        ROWS[n].quirk: told[n] for n in chosen
    }
    screened = [n for n, row in enumerate(ROWS) if not row.reason]
    assert sum(told[n] != "found" for n in screened) >= len(screened) // 3
    assert all(told[n] != "found" for n in screened if ROWS[n].format in MISSED)
