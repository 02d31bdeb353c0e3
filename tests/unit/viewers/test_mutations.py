import io
import random

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import writers
from tests.viewers import mutations
from tests.viewers.browser import Browser, Frame, Frames, Painted, Shown
from tests.viewers.corpus.mutated import BASES
from tests.viewers.mutators import mutate
from tests.viewers.parts import split

COUNT = 150
needs_browser = pytest.mark.skipif(not Browser.is_available(), reason="chromium is not installed")


def painted(level: int) -> Painted:
    pixels = np.full((4, 4, 3), level, np.uint8)
    return Painted(pixels, pixels)


def moving(*seconds: float, still: int = 0) -> Shown:
    frames = tuple(
        Frame(number, time, complete=True, painted=painted(number))
        for number, time in enumerate(seconds)
    )
    return Shown("shown", 4, 4, painted(still), Frames(len(frames), True, -1, frames))


def test_a_seed_draws_the_same_files():
    first = [mutations.draw(5, number).data for number in range(60)]
    assert first == [mutations.draw(5, number).data for number in range(60)]
    assert first != [mutations.draw(6, number).data for number in range(60)]


@pytest.mark.parametrize("base", BASES, ids=lambda base: f"{base.format} {base.quirk}")
def test_most_files_are_changed(base):
    data = mutations.file_of(base)
    chance = random.Random(1)
    changed = [mutate(chance, split(base.format, data))[0] != data for _ in range(20)]
    assert sum(changed) >= 15


def test_a_viewer_sees_the_frames_that_last():
    levels = [int(one[0, 0, 0]) for one in mutations.seen(moving(0.02, 60.0, 0.02))]
    assert levels == [1]


def test_the_still_of_an_animation_is_seen_where_it_is_no_frame():
    levels = [int(one[0, 0, 0]) for one in mutations.seen(moving(0.02, 60.0, still=99))]
    assert levels == [99, 1]


def test_frames_of_no_time_last_a_tenth_of_a_second():
    levels = [int(one[0, 0, 0]) for one in mutations.seen(moving(0.0, 0.1, 0.01))]
    assert levels == [0, 1, 2]


def test_a_still_is_seen_as_it_is_painted():
    shown = Shown("shown", 4, 4, painted(7), Frames(1, False, 0, ()))
    assert [int(one[0, 0, 0]) for one in mutations.seen(shown)] == [7]


def test_pictures_are_equal_only_in_all_their_detail():
    picture = writers.photograph("astronaut").resize((320, 320))
    plain = np.asarray(picture)
    coded = writers.save(picture, "JPEG", quality=97, subsampling=0)
    checkers = np.where(np.indices((320, 320)).sum(0) % 2, 8, 0).astype(np.uint8)
    checked = np.asarray(plain ^ checkers[..., None], np.uint8)
    with Image.open(io.BytesIO(coded)) as image:
        assert mutations.is_equal(plain, np.asarray(image))
    assert not mutations.is_equal(plain, checked)
    assert not mutations.is_equal(plain, np.asarray(picture.convert("L").convert("RGB")))


@needs_browser
@pytest.mark.timeout(600)
def test_no_changed_container_hides_the_known_picture(tmp_path):
    report = mutations.run(1, COUNT, tmp_path)
    outcomes = [outcome for counts in report.outcomes.values() for outcome in counts]
    assert "same" in outcomes
    assert report.findings == []
