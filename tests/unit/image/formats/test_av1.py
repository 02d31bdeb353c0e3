"""Units of coded AV1 pictures."""

import pytest

from worker.image.formats.av1 import padded

DELIMITER = b"\x12\x00"


@pytest.mark.parametrize(
    ("size", "before", "after"),
    [
        (5, b"\x05", b"\x08"),
        (124, b"\x7c", b"\x7f"),
        (125, b"\x7d", b"\x80\x01"),
        (300, b"\xac\x82\x00", b"\xaf\x02"),  # a length may be longer than it has to be
        (16_381, b"\xfd\x7f", b"\x80\x80\x01"),
    ],
)
def test_zeros_are_added_to_the_last_tile_and_its_length_fits(size, before, after):
    body = b"\x55" * size
    coded = DELIMITER + b"\x32" + before + body
    assert padded(coded, 3) == DELIMITER + b"\x32" + after + body + bytes(3)


def test_a_last_tile_without_a_length_goes_on_to_the_end():
    assert padded(DELIMITER + b"\x30abc", 4) == DELIMITER + b"\x30abc" + bytes(4)


def test_units_behind_the_last_tile_stay_behind_it():
    padding = b"\x7a\x01\x80"
    coded = DELIMITER + b"\x32\x02ab" + padding
    assert padded(coded, 2) == DELIMITER + b"\x32\x04ab\0\0" + padding


@pytest.mark.parametrize("coded", [b"", DELIMITER, b"\x0a\x03abc", b"\xff" * 40])
def test_what_has_no_tiles_stays_as_it_is(coded):
    assert padded(coded, 9) == coded
