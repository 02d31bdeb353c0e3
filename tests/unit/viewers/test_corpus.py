"""The worker is held to what docs/viewers.md says of each file of the corpus."""

from collections import Counter

import pytest

from tests.viewers import table
from tests.viewers.browser import Browser
from tests.viewers.corpus.all import ALL, KINDS
from tests.viewers.measuring import made

FORMATS = {"JPEG", "PNG", "APNG", "GIF", "WebP", "AVIF", "HEIC", "JPEG XL", "BMP", "TIFF", "ICO"}


def test_covers_all_kinds_and_formats():
    assert len(ALL) >= 200
    assert {case.kind for case in ALL} == set(KINDS)
    assert {case.format for case in ALL} >= FORMATS


def test_each_case_is_named_one_time():
    counts = Counter((case.kind, case.name) for case in ALL)
    assert [name for name, count in counts.items() if count > 1] == []


def test_files_are_the_same_each_time():
    chosen = [case for case in ALL[::12] if case.is_makeable]
    assert [made(case) for case in chosen] == [made(case) for case in chosen]


@pytest.mark.timeout(900)
@pytest.mark.skipif(not Browser.is_available(), reason="chromium is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_the_document_says_what_is_measured(kind):
    measured = table.outcomes(cases=[case for case in ALL if case.kind == kind])
    assert list(table.differences(measured)) == []
