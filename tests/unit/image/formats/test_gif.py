"""GIF as Chromium shows it: disposal, transparency, palettes, canvas, delays, damage."""

from math import inf

import numpy as np
import pytest

from tests.fixtures.animations import codes, gif, graphic_control, image, repeated
from worker.image.formats.container import Frame, Header, Malformed
from worker.image.formats.gif import gif as read_gif

PALETTE = bytes(level for index in range(256) for level in (index, 255 - index, index // 2))
WIDTH, HEIGHT = 12, 10
CLEAR = (0, 0, 0, 0)


def color(index: int) -> tuple[int, ...]:
    return (*PALETTE[3 * index : 3 * index + 3], 255)


def plain(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.full((height, width), index, np.uint8)


def ramp() -> np.ndarray:
    return np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH)


def file(*blocks: bytes, palette: bytes = PALETTE, end: bytes = b"\x3b") -> bytes:
    return gif(WIDTH, HEIGHT, *blocks, palette=palette, end=end)


def read(data: bytes, most: int = 1000) -> tuple[Header, list[Frame]]:
    header = read_gif(data, most)
    return header, list(header.decode(None))


def pixels(frame: Frame) -> np.ndarray:
    return np.asarray(frame.image.convert("RGBA"))


def colored(indices: np.ndarray, palette: bytes = PALETTE) -> np.ndarray:
    colors = np.frombuffer(palette.ljust(768, b"\0"), np.uint8).reshape(256, 3)
    return np.dstack([colors[indices], np.full(indices.shape, 255, np.uint8)])


DISPOSALS = {0: "keep", 1: "keep", 2: "clear", 3: "restore", 4: "restore", 5: "keep", 6: "keep"}


@pytest.mark.parametrize(("disposal", "effect"), DISPOSALS.items())
def test_a_frame_stays_is_cleared_or_is_taken_back(disposal, effect):
    """And the method of a frame is not carried over to the next one."""
    data = file(
        image(plain(1)),
        graphic_control(disposal=disposal),
        image(plain(2, 4, 4), (2, 3)),
        graphic_control(disposal=0),
        image(plain(3, 2, 2), (8, 0)),
        image(plain(4, 1, 1)),
    )
    _, frames = read(data)
    assert [tuple(pixels(one)[4, 3]) for one in frames[:2]] == [color(1), color(2)]
    expected = {"keep": color(2), "clear": CLEAR, "restore": color(1)}[effect]
    for frame in frames[2:]:
        shown = pixels(frame)
        assert tuple(shown[4, 3]) == expected
        assert (shown[0, 8:10] == color(3)).all()
        assert tuple(shown[9, 11]) == color(1)


def test_a_first_frame_that_is_taken_back_leaves_nothing():
    data = file(graphic_control(disposal=3), image(plain(1)), image(plain(2, 4, 4)))
    _, frames = read(data)
    assert tuple(pixels(frames[1])[9, 9]) == CLEAR
    assert tuple(pixels(frames[1])[0, 0]) == color(2)


def test_frames_taken_back_one_after_the_other():
    taken_back = [
        block
        for index in (2, 3)
        for block in (graphic_control(disposal=3), image(plain(index, 4, 4), (index, index)))
    ]
    _, frames = read(file(image(plain(1)), *taken_back, image(plain(4, 1, 1))))
    assert (pixels(frames[2])[2, 2:4] == color(1)).all()
    assert (pixels(frames[3])[1:] == color(1)).all()


def test_what_was_yielded_is_never_painted_upon():
    parts = [image(plain(index, 5, 5), (index, index)) for index in range(1, 6)]
    header = read_gif(file(image(plain(9)), *parts), 1000)
    at_once = [pixels(one).copy() for one in header.decode(None)]
    assert all(map(np.array_equal, at_once, (pixels(one) for one in list(header.decode(None)))))


def test_a_transparent_index_shows_what_is_below():
    data = file(image(plain(1)), graphic_control(transparent=2), image(np.where(ramp() % 2, 2, 5)))
    _, frames = read(data)
    shown = pixels(frames[1])
    assert (shown[ramp() % 2 == 1] == color(1)).all()
    assert (shown[ramp() % 2 == 0] == color(5)).all()


def test_an_index_beyond_the_palette_is_black_or_transparent():
    short = PALETTE[: 3 * 16]
    _, [frame] = read(file(image(ramp()), palette=short))
    assert np.array_equal(pixels(frame), colored(ramp(), short))
    _, [frame] = read(file(graphic_control(transparent=77), image(ramp()), palette=short))
    assert (pixels(frame)[ramp() == 77] == CLEAR).all()
    assert (pixels(frame)[ramp() == 78] == (0, 0, 0, 255)).all()
    _, [frame] = read(file(image(ramp()), palette=b""))
    assert (pixels(frame) == (0, 0, 0, 255)).all()


def test_a_palette_of_its_own_counts_for_one_image():
    own = bytes(range(48))
    _, frames = read(file(image(plain(3), palette=own), image(plain(3))))
    assert [tuple(pixels(one)[0, 0]) for one in frames] == [(9, 10, 11, 255), color(3)]


def test_the_canvas_holds_the_first_frame_and_not_the_others():
    data = gif(4, 4, image(plain(1), (5, 6)), image(plain(2, 90, 90), (1, 1)), palette=PALETTE)
    header, frames = read(data)
    assert (header.width, header.height) == (5 + WIDTH, 6 + HEIGHT)
    assert header.pixels == 90 * 90
    assert [one.image.size for one in frames] == [(17, 16)] * 2
    assert tuple(pixels(frames[0])[0, 0]) == CLEAR
    assert (pixels(frames[1])[1:, 1:] == color(2)).all()
    assert tuple(pixels(frames[1])[0, 0]) == CLEAR


def test_frames_that_paint_nothing():
    data = file(image(plain(1)), image(plain(2, 3, 0)), image(plain(2, 3, 3), (50, 2)))
    _, frames = read(data)
    assert len(frames) == 3
    assert all((pixels(one) == color(1)).all() for one in frames)


def test_interlaced_rows_are_put_in_order():
    _, [frame] = read(file(image(ramp(), interlaced=True)))
    assert np.array_equal(pixels(frame), colored(ramp()))


def test_delays_are_those_of_a_browser():
    delays = [0, 1, 2, 300]
    blocks = [block for one in delays for block in (graphic_control(one), image(plain(one % 250)))]
    header, frames = read(file(repeated(0), *blocks))
    assert [one.seconds for one in frames] == [0.1, 0.1, 0.02, 3.0]
    assert not header.truncated
    _, [still] = read(file(graphic_control(300), image(plain(1))))
    assert still.seconds == 0


@pytest.mark.parametrize(
    ("blocks", "ends"),
    [
        ([], True),
        ([repeated(0)], False),
        ([repeated(3)], True),
        ([repeated(0, b"ANIMEXTS1.0")], False),
        ([repeated(0, b"netscape2.0")], True),
        ([repeated(3), repeated(0)], False),
        ([b"\x21\xff\x0bNETSCAPE2.0\5\2\0\0\0\0\3\1\0\0\0"], True),
    ],
)
def test_the_last_frame_of_an_animation_that_ends_stays(blocks, ends):
    for before, after in ((blocks, []), ([], blocks)):
        _, frames = read(file(*before, image(plain(1)), image(plain(2)), *after))
        assert [one.seconds for one in frames] == [0.1, inf if ends else 0.1]


def test_of_several_controls_the_last_one_before_an_image_counts():
    """Comments and text between them change nothing; one behind the last image is of no image."""
    data = file(
        graphic_control(50, transparent=1),
        graphic_control(20, transparent=2),
        b"\x21\xfe\3abc\0",
        b"\x21\1\x0c" + bytes(12) + b"\1x\0",
        image(np.where(ramp() % 2, 1, 2)),
        image(plain(1)),
        graphic_control(),
    )
    _, frames = read(data)
    shown = pixels(frames[0])
    assert (shown[ramp() % 2 == 0] == CLEAR).all()
    assert (shown[ramp() % 2 == 1] == color(1)).all()
    assert frames[0].seconds == 0.2


@pytest.mark.parametrize(
    "junk",
    [
        b"\0",
        b"\xff\xfe",
        b"\x21\xf9\0",
        b"\x21\xf9\3\0\0\0\0",
        b"\x21\xf9\5\0\0\0\0\0\0",
        b"\x21\xf9\4\0\0\0\0\1x\0",
    ],
)
def test_what_is_no_block_ends_the_animation(junk):
    header, frames = read(file(image(plain(1)), junk, image(plain(2))))
    assert len(frames) == header.frames == 1
    assert header.truncated
    with pytest.raises(Malformed):
        read_gif(file(junk, image(plain(1))), 1000)


def test_data_behind_the_trailer_and_too_many_indices_change_nothing():
    header, [frame] = read(file(image(ramp())) + b"junk")
    assert not header.truncated
    assert np.array_equal(pixels(frame), colored(ramp()))
    doubled = codes(np.vstack([ramp(), plain(3)]))
    _, [frame] = read(file(image(ramp(), packed=doubled)))
    assert not frame.truncated
    assert np.array_equal(pixels(frame), colored(ramp()))


@pytest.mark.parametrize("end", [b"", b"\x3b"])
def test_of_an_image_that_is_cut_the_rest_is_transparent(end):
    upper = codes(ramp()[:4])
    header, [frame] = read(file(image(ramp(), packed=upper), end=end))
    assert frame.truncated
    assert header.truncated == (not end)
    shown = pixels(frame)
    assert np.array_equal(shown[:4], colored(ramp())[:4])
    assert not shown[4:, :, 3].any()


def test_cut_at_every_byte():
    """What is there is shown: more and more of it, and nothing else."""
    whole = file(image(ramp()), image(ramp() + 100))
    begun = whole.index(b"\x2c") + 10
    expected = colored(ramp())
    pixels_before = 0
    for end in range(begun, len(whole)):
        try:
            _, frames = read(whole[:end])
        except Malformed:
            assert not pixels_before
            continue
        shown = pixels(frames[0])
        seen = shown[..., 3] > 0
        assert np.array_equal(shown[seen], expected[seen])
        assert seen.sum() >= pixels_before
        pixels_before = int(seen.sum())
        assert frames[0].truncated == (pixels_before < ramp().size)
    assert len(frames) == 2


def test_rows_of_a_first_interlaced_frame_stand_for_those_that_are_missing():
    passes = np.vstack([ramp()[0::8], ramp()[4::8]])
    _, [frame] = read(file(image(ramp(), interlaced=True, packed=codes(passes))))
    expected = colored(ramp())[[0, 0, 0, 0, 4, 4, 4, 4, 8, 8]]
    assert np.array_equal(pixels(frame), expected)


def test_a_damaged_frame_does_not_end_the_animation():
    half = codes(plain(2)[:5])
    data = file(image(plain(1)), image(plain(2), packed=half), image(plain(3)))
    _, frames = read(data)
    assert [one.truncated for one in frames] == [False, True, False]
    assert (pixels(frames[1])[:5] == color(2)).all()
    assert not pixels(frames[1])[5:, :, 3].any()  # it covers all, so nothing lies behind it
    assert (pixels(frames[2]) == color(3)).all()


def test_below_a_damaged_frame_that_covers_a_part_is_what_was_there():
    half = codes(plain(2, 6, 2))
    _, frames = read(file(image(plain(1)), image(plain(2, 6, 6), packed=half)))
    assert (pixels(frames[1])[:2, :6] == color(2)).all()
    assert (pixels(frames[1])[2:] == color(1)).all()


def test_code_sizes_that_do_not_exist():
    with pytest.raises(Malformed):
        read(file(image(plain(1), bits=9)))
    header, frames = read(file(image(plain(1)), image(plain(2), bits=12), image(plain(3))))
    assert header.truncated
    assert [one.truncated for one in frames] == [False, True]


def test_codes_of_one_bit():
    """Clear, 0, 1, then both together (4), twice: as Chromium reads it."""
    bits = "".join(f"{code:0{width}b}"[::-1] for code, width in [(2, 2), (0, 2), (1, 3), (4, 3)])
    bits += f"{4:03b}"[::-1] + f"{3:03b}"[::-1]
    packed = int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")
    data = gif(
        3, 2, image(plain(0, 3, 2), packed=bytes([len(packed)]) + packed + b"\0", bits=1),
        palette=bytes([10, 20, 30, 40, 50, 60]),
    )  # fmt: skip
    _, [frame] = read(data)
    assert not frame.truncated
    assert pixels(frame)[..., 0].tolist() == [[10, 40, 10], [40, 10, 40]]


def test_frames_are_counted_up_to_one_more_than_the_most():
    header = read_gif(file(*[image(plain(1))] * 50), 7)
    assert header.frames == 8
    assert not header.truncated


def test_thousands_of_comments_and_empty_blocks_hide_nothing():
    comments = b"\x21\xfe\0" * 600_000
    _, [frame] = read(file(comments, image(ramp())))
    assert np.array_equal(pixels(frame), colored(ramp()))


def test_codes_of_one_bit_that_only_clear_end_soon():
    """Each of them is read in Python; two million would take a second."""
    flood = (b"\xff" + b"\xaa" * 255) * 2_000
    blocks = [
        image(plain(0, 1, 1), packed=flood + b"\0", bits=1),
        image(plain(0, 2, 9), packed=b"\1\x02\0", bits=1, interlaced=True),
    ]
    with pytest.raises(Malformed):
        read(gif(1, 1, blocks[0], palette=bytes(6)))
    _, frames = read(gif(2, 9, blocks[1], blocks[1], palette=bytes(6)))
    assert [one.truncated for one in frames] == [True, True]
