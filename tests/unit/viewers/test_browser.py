import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.fixtures import writers
from tests.viewers.browser import Browser, File
from tests.viewers.devtools import TabCrashed

pytestmark = pytest.mark.skipif(not Browser.is_available(), reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return writers.photograph("astronaut").resize((96, 64))


def test_paints_the_pixels_of_an_opaque_file(browser, picture):
    (shown,) = browser.show([File(writers.save(picture, "PNG"), "image/png")])
    assert (shown.status, shown.width, shown.height) == ("shown", 96, 64)
    assert shown.picture.is_opaque
    assert np.array_equal(shown.picture.white, np.asarray(picture))


def test_paints_transparency_on_white_and_on_black(browser):
    clear = Image.new("RGBA", (8, 8), (200, 100, 0, 128))
    (shown,) = browser.show([File(writers.save(clear, "PNG"), "image/png")])
    assert np.abs(shown.picture.white[0, 0].astype(int) - (227, 177, 127)).max() <= 1
    assert np.abs(shown.picture.black[0, 0].astype(int) - (100, 50, 0)).max() <= 1


def test_reports_a_file_without_a_picture(browser, picture):
    good = File(writers.save(picture, "PNG"), "image/png")
    shown = browser.show([good, File(b"nothing", "image/png"), good])
    assert [one.status for one in shown] == ["shown", "refused", "shown"]


def test_shows_what_there_is_of_a_damaged_file(browser, picture):
    cut = writers.save(picture, "PNG")[:-6000]
    (shown,) = browser.show([File(cut, "image/png")])
    assert shown.status == "shown"
    assert np.array_equal(shown.picture.black[:10], np.asarray(picture)[:10])
    assert not shown.picture.black[-1].any()


def test_gives_all_frames_with_their_times(browser, picture):
    make = writers.moving("GIF", 2, 4, duration=[50, 20, 2000, 30], loop=3)
    (shown,) = browser.show([File(make(picture), "image/gif")], frames=8)
    animation = shown.animation
    assert (animation.count, animation.animated, animation.repetitions) == (4, True, 3)
    assert [frame.seconds for frame in animation.frames] == [0.05, 0.02, 2.0, 0.03]
    assert all(frame.painted.white.shape == (64, 96, 3) for frame in animation.frames)


def test_scales_to_a_square_or_to_the_area_of_one(browser, picture):
    file = File(writers.save(picture, "PNG"), "image/png")
    (square,) = browser.show([file], square=32)
    (small,) = browser.show([file], largest=48)  # of 96 x 64 pixels
    assert (square.picture.white.shape, small.picture.white.shape) == ((32, 32, 3), (39, 59, 3))


def test_a_strip_wider_than_a_canvas_does_not_spoil_what_follows(browser, picture):
    strip = File(writers.save(Image.new("RGB", (400_000, 16), "red"), "PNG"), "image/png")
    file = File(writers.save(picture.convert("CMYK"), "JPEG", quality=95), "image/jpeg")
    (alone,) = browser.show([file])
    wide, after = browser.show([strip, file])
    assert wide.picture.white.shape[1] == 32767
    assert (wide.picture.white == (255, 0, 0)).all()
    assert np.array_equal(after.picture.white, alone.picture.white)


def test_paints_as_the_page_itself_is_painted(browser, picture):
    file = File(writers.save(writers.in_disc(picture), "PNG"), "image/png")
    (shown,) = browser.show([file])
    assert np.array_equal(browser.screenshot(file, "white"), shown.picture.white)
    assert np.array_equal(browser.screenshot(file, "black"), shown.picture.black)


def test_goes_on_after_a_crash(browser, picture):
    with pytest.raises(TabCrashed):
        browser.page().call("Page.crash")
    file = File(writers.save(picture, "PNG"), "image/png")
    assert [one.status for one in browser.show([file] * 40)] == ["shown"] * 40


def test_shows_files_one_by_one_after_a_page_that_does_not_answer(picture):
    file = File(writers.save(picture, "PNG"), "image/png")
    with Browser(batch_seconds=5) as browser:
        browser.page().evaluate("show = () => new Promise(() => {}), 1")
        assert [one.status for one in browser.show([file] * 3)] == ["shown"] * 3
        assert browser.restarts == 1


def test_reaches_nothing_but_loopback(browser):
    reached = "fetch('http://localhost:9').then(() => 'reached', (error) => String(error))"
    assert browser.page().evaluate(reached) == "TypeError: Failed to fetch"
    name = "fetch('https://example.org/').then(() => 'reached', (error) => String(error))"
    assert browser.page().evaluate(name) == "TypeError: Failed to fetch"


def test_leaves_nothing_behind_if_its_process_is_killed():
    code = (
        "from tests.viewers.browser import Browser\n"
        "browser = Browser()\n"
        "print(browser.page().directory, flush=True)\n"
        "input()\n"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().decode().strip())
        started = psutil.Process(process.pid).children(recursive=True)
        assert directory.is_dir()
        assert started
        process.kill()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    end = time.monotonic() + 30
    while directory.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not directory.exists()
