"""The table of docs/images.md that says how large a picture may be is what decoding reserves."""

import re
from pathlib import Path

from worker.image.formats import FORMATS
from worker.settings import Limits

DOCUMENT = Path(__file__).parents[3] / "docs" / "images.md"
NAMES = {"WebP": "WEBP", "JPEG XL": "JXL"}


def test_each_format_stands_in_the_table_with_what_it_takes() -> None:
    rows = re.findall(
        r"^\| ([\w, ]+) \| (\d+) \| (\d+) \|$", DOCUMENT.read_text("utf-8"), re.MULTILINE
    )
    told = {
        NAMES.get(name, name): (int(nbytes), int(megapixels))
        for names, nbytes, megapixels in rows
        for name in names.split(", ")
    }
    limits = Limits()
    for name, known in FORMATS.items():
        most = limits.in_flight_decoded_bytes // 2 // known.peak_bytes_per_pixel
        assert told[name] == (
            known.peak_bytes_per_pixel,
            min(most, limits.image_pixels) // 1_000_000,
        )
    assert told.keys() == FORMATS.keys()
