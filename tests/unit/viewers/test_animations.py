import io

import numpy as np
import pytest
from PIL import Image

from tests.viewers import animation_files, animations
from tests.viewers.browser import Browser

COUNT = 100
needs_browser = pytest.mark.skipif(not Browser.is_available(), reason="chromium is not installed")


def webp_by_pillow(data: bytes) -> animations.Decoded:
    """libwebp composes the frames of a WebP; how long they are shown is left to the worker."""
    with Image.open(io.BytesIO(data)) as image:
        for number, seconds, _ in animations.worker_frames(data):
            image.seek(number)
            yield number, seconds, image.convert("RGBA")


def inverted(data: bytes) -> animations.Decoded:
    for number, seconds, image in webp_by_pillow(data):
        yield number, seconds, Image.fromarray(255 - np.asarray(image.convert("RGB")))


def slower(data: bytes) -> animations.Decoded:
    for number, seconds, image in webp_by_pillow(data):
        yield number, seconds + 1, image


def test_a_seed_draws_the_same_files():
    first = [animation_files.draw(3, number).data for number in range(20)]
    assert first == [animation_files.draw(3, number).data for number in range(20)]
    assert first != [animation_files.draw(4, number).data for number in range(20)]


def test_all_formats_are_drawn():
    drawn = {animation_files.draw(1, number).format for number in range(200)}
    assert drawn == {"GIF", "APNG", "WebP", "AVIF"}


@pytest.mark.parametrize(("page", "level"), [(255.0, 169.9), (0.0, 54.9)])
def test_frames_are_composed_on_a_page(page, level):
    half = Image.new("RGBA", (2, 2), (100, 100, 100, 140))
    assert animations.composed(half, page)[0, 0, 0] == pytest.approx(level, abs=0.1)


@needs_browser
def test_equal_frames_are_no_difference_and_others_are(monkeypatch, tmp_path):
    drawn = (animation_files.draw(2, number) for number in range(200))
    files = [one for one in drawn if one.format == "WebP"][:12]
    monkeypatch.setattr(animations, "_drawn", lambda _seed, _count: iter(files))
    same = animations.run(2, len(files), source=webp_by_pillow)
    assert same.differences == []
    assert same.compared == {"WebP": 12}
    other = animations.run(2, len(files), tmp_path, source=inverted)
    assert {one.number for one in other.differences} == {one.number for one in files}
    late = animations.run(2, len(files), source=slower)
    assert len(late.differences) == 12
    assert all(one.what.startswith("shown for") for one in late.differences)
    assert len(list(tmp_path.glob("*.webp"))) == 12


@needs_browser
@pytest.mark.timeout(600)
def test_the_worker_composes_frames_as_chromium_does(tmp_path):
    report = animations.run(1, COUNT, tmp_path)
    assert report.frames > COUNT
    assert report.differences == []
