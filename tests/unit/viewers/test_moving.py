import io

import numpy as np
import pytest
from PIL import Image

from tests.viewers.containers import png_chunk
from tests.viewers.moving import (
    GREY,
    PALETTE,
    RGBA,
    ApngFrame,
    GifFrame,
    WebpFrame,
    apng,
    gif,
    lzw,
    webp,
)


@pytest.fixture
def noise() -> np.random.Generator:
    return np.random.default_rng(4)


def frames(data: bytes, mode: str = "RGB") -> list[np.ndarray]:
    shown = []
    with Image.open(io.BytesIO(data)) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            shown.append(np.asarray(image.convert(mode)))
    return shown


@pytest.mark.parametrize("colors", [2, 4, 16, 128, 256])
def test_a_gif_holds_the_indices_that_were_given(noise, colors):
    palette = noise.integers(0, 256, (colors, 3), np.uint8)
    indices = noise.integers(0, colors, (37, 53))
    (shown,) = frames(gif(53, 37, [GifFrame(indices)], palette))
    assert np.array_equal(shown, palette[indices])


def test_an_interlaced_gif_has_its_rows_in_order(noise):
    palette = noise.integers(0, 256, (256, 3), np.uint8)
    indices = noise.integers(0, 256, (29, 8))
    (shown,) = frames(gif(8, 29, [GifFrame(indices, interlaced=True)], palette))
    assert np.array_equal(shown, palette[indices])


def test_one_colour_is_coded():
    assert lzw(np.zeros((2, 2)))[0] == 2


@pytest.mark.parametrize(("color", "depth"), [(GREY, 1), (GREY, 4), (RGBA, 8), (PALETTE, 2)])
def test_an_apng_holds_the_samples_that_were_given(noise, color, depth):
    levels = noise.integers(0, 1 << depth, (9, 13, 4) if color == RGBA else (9, 13))
    palette = noise.integers(0, 256, (1 << depth, 3), np.uint8)
    chunks = [png_chunk(b"PLTE", palette.tobytes())] if color == PALETTE else []
    first, second = frames(
        apng(
            13, 9, [ApngFrame(levels), ApngFrame(levels[::-1])], color, chunks=chunks, depth=depth
        ),
        "RGBA",
    )
    wanted = {
        GREY: lambda: np.dstack([levels * 255 // ((1 << depth) - 1)] * 3),
        PALETTE: lambda: palette[levels],
        RGBA: lambda: levels[..., :3],
    }[color]()
    assert np.array_equal(first[..., :3], wanted)
    assert np.array_equal(second[..., :3], wanted[::-1])


def test_a_default_image_is_outside_of_the_animation(noise):
    default, shown = noise.integers(0, 256, (2, 8, 8, 4))
    data = apng(8, 8, [ApngFrame(shown)] * 2, default=default)
    assert np.array_equal(frames(data, "RGBA")[0], default)
    assert np.array_equal(frames(data, "RGBA")[1], shown)


def test_a_webp_frame_is_put_at_its_place():
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (4, 6), "blue")
    _, shown = frames(webp(16, 16, [WebpFrame(red), WebpFrame(blue, 2, 4)]))
    assert (shown[4:10, 2:6] == (0, 0, 255)).all()
    assert (shown == (0, 0, 255)).all(-1).sum() == 24
