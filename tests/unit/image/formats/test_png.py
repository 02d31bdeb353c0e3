"""PNG and APNG as Chromium shows them: chunks, transparency, damage, animation."""

import io
import itertools
import struct
import zlib
from math import inf

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import profiles
from tests.fixtures.animations import SIGNATURE, actl, chunk, fctl, fdat, idat, ihdr, png, rows
from worker.image.formats.container import Frame, Header, Malformed
from worker.image.formats.png import png as read_png
from worker.image.profiles import profile_of_cicp, profile_of_gamma

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
KINDS = [
    *((GREY, depth) for depth in (1, 2, 4, 8, 16)),
    *((PALETTE, depth) for depth in (1, 2, 4, 8)),
    *((color, depth) for color in (RGB, GREY_ALPHA, RGB_ALPHA) for depth in (8, 16)),
]
WIDTH, HEIGHT = 13, 11
SIZE = (WIDTH, HEIGHT)
COLORS = np.random.default_rng(8).integers(0, 256, (256, 3), np.uint8)
IEND = chunk(b"IEND")


def samples(color: int = RGB, depth: int = 8, *, seed: int = 1) -> np.ndarray:
    shape = (HEIGHT, WIDTH, CHANNELS[color])
    return np.random.default_rng(seed).integers(0, 1 << depth, shape)


def plain(level: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.full((height, width, 3), level)


def read(data: bytes, most: int = 1000) -> tuple[Header, list[Frame]]:
    header = read_png(data, most)
    return header, list(header.decode(None))


def pixels(frame: Frame) -> np.ndarray:
    return np.asarray(frame.image.convert("RGBA"))


def one_frame(data: bytes) -> np.ndarray:
    _, [frame] = read(data)
    return pixels(frame)


def expected(values: np.ndarray, color: int, depth: int) -> np.ndarray:
    """What the samples look like, in RGBA, of a palette of `COLORS`."""
    if color == PALETTE:
        opaque = np.full((*values.shape[:2], 1), 255)
        return np.dstack([COLORS[values[..., 0]], opaque])
    levels = values >> 8 if depth == 16 else values * (255 // ((1 << depth) - 1))
    if color in (GREY, RGB):
        levels = np.dstack([levels, np.full(values.shape[:2], 255)])
    return levels[..., [0, 0, 0, -1]] if color in (GREY, GREY_ALPHA) else levels


def palette(depth: int) -> bytes:
    return chunk(b"PLTE", COLORS[: 1 << depth].tobytes())


@pytest.mark.parametrize(("color", "depth"), KINDS)
@pytest.mark.parametrize("interlaced", [False, True])
def test_every_colour_type_and_depth(color, depth, interlaced):
    values = samples(color, depth)
    before = [palette(depth)] if color == PALETTE else []
    data = png(values, *before, depth=depth, color=color, interlaced=interlaced)
    header, [frame] = read(data)
    assert np.array_equal(pixels(frame), expected(values, color, depth))
    assert not header.truncated
    assert not frame.truncated
    grey = color in (GREY, GREY_ALPHA)
    assert frame.image.mode in (("L", "LA") if grey else ("RGB", "RGBA"))


@pytest.mark.parametrize(("color", "depth"), [kind for kind in KINDS if kind[0] in (GREY, RGB)])
@pytest.mark.parametrize("interlaced", [False, True])
def test_one_transparent_colour_in_every_depth(color, depth, interlaced):
    """All bits of it count, but the high byte only where samples have one."""
    values = samples(color, depth)
    key = values[3, 5].copy()
    values[0, 0] = key
    values[7, 7] = key ^ 1  # another colour, in its lowest bit
    clear = (values == key).all(axis=2)
    told = np.frombuffer(key.astype(">u2").tobytes(), np.uint8).copy()
    for high in [None] if depth == 16 else [None, 0x77]:
        if high is not None:
            told[::2] = high
        trns = chunk(b"tRNS", told.tobytes())
        data = png(values, trns, depth=depth, color=color, interlaced=interlaced)
        shown = one_frame(data)
        assert np.array_equal(shown[..., 3], np.where(clear, 0, 255))
        assert np.array_equal(shown[..., :3], expected(values, color, depth)[..., :3])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_with_alpha(depth):
    values = samples(PALETTE, depth)
    alpha = np.arange(200, 200 + min(8, 1 << depth), dtype=np.uint8)
    longer = np.append(alpha, np.uint8(9)) if depth < 3 else alpha
    data = png(values, palette(depth), chunk(b"tRNS", longer.tobytes()), depth=depth, color=PALETTE)
    full = np.full(256, 255)
    full[: len(alpha)] = alpha
    shown = one_frame(data)
    assert np.array_equal(shown[..., 3], full[values[..., 0]])
    assert np.array_equal(shown[..., :3], COLORS[values[..., 0]])


def test_an_index_beyond_the_palette_has_the_last_colour():
    values = samples(PALETTE)
    short = chunk(b"PLTE", COLORS[:20].tobytes())
    shown = one_frame(png(values, short, color=PALETTE))
    assert np.array_equal(shown[..., :3], COLORS[np.minimum(values[..., 0], 19)])
    with pytest.raises(Malformed):
        read(png(values, color=PALETTE))


BLACK = chunk(b"tRNS", bytes(6))


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ([BLACK], [], True),
        ([], [BLACK], False),
        ([chunk(b"tRNS", bytes(6), sound=False)], [], False),
        ([chunk(b"tRNS", bytes(6), sound=False), BLACK], [], True),
        ([chunk(b"tRNS", bytes(5))], [], False),
        ([chunk(b"tRNS", bytes(5)), BLACK], [], True),
        ([chunk(b"tRNS", bytes(6) + b"xx")], [], True),
        ([chunk(b"tRNS", b"\0\1" * 3), BLACK], [], False),
        ([BLACK, chunk(b"tRNS", b"\0\1" * 3)], [], True),
        ([chunk(b"bKGD", bytes(6))], [], False),
    ],
)
def test_which_of_the_transparent_colours_counts(before, after, counts):
    values = samples()
    values[2, 2] = 0
    shown = one_frame(png(values, *before, after=[*after, IEND]))
    assert (shown[2, 2, 3] == 0) == counts
    assert (shown[..., 3] == 255).sum() == WIDTH * HEIGHT - counts


def test_transparency_that_may_not_stand_there_is_none():
    values = samples(PALETTE)
    trns = chunk(b"tRNS", bytes(256))
    assert (one_frame(png(values, trns, palette(8), color=PALETTE))[..., 3] == 255).all()
    for color in (GREY_ALPHA, RGB_ALPHA):
        values = samples(color)
        shown = one_frame(png(values, chunk(b"tRNS", bytes(6)), color=color))
        assert np.array_equal(shown[..., 3], values[..., -1])


# -- chunks ------------------------------------------------------------------------------------


def packed(icc: bytes, keyword: bytes = b"icc") -> bytes:
    return keyword + b"\0\0" + zlib.compress(icc)


SWAPPED = profiles.rgb(profiles.SWAPPED)
ICC = chunk(b"iCCP", packed(SWAPPED))
GAMMA = chunk(b"gAMA", struct.pack(">I", 100_000))
PROFILE_OF_GAMMA = profile_of_gamma(1.0, None)
PLTE = chunk(b"PLTE", bytes(3))
P3 = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
CHROMATICITIES = chunk(b"cHRM", struct.pack(">8I", *P3))


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ([], (b"",)),
        ([ICC], (SWAPPED,)),
        ([PLTE, ICC], (SWAPPED,)),
        ([ICC, GAMMA], (SWAPPED, PROFILE_OF_GAMMA)),
        ([chunk(b"iCCP", packed(SWAPPED), sound=False), GAMMA], (PROFILE_OF_GAMMA,)),
        ([chunk(b"iCCP", packed(SWAPPED, b""))], (b"",)),
        ([chunk(b"iCCP", packed(SWAPPED, b"k" * 80))], (SWAPPED,)),
        ([chunk(b"iCCP", packed(SWAPPED, b"k" * 81))], (b"",)),
        ([chunk(b"iCCP", packed(SWAPPED)[:-4])], (b"",)),
        ([chunk(b"iCCP", packed(b"junk" * 50)), GAMMA], (PROFILE_OF_GAMMA,)),
        ([chunk(b"iCCP", packed(b"junk" * 50)), ICC], (b"",)),
        ([GAMMA, PLTE], (PROFILE_OF_GAMMA,)),
        ([GAMMA, chunk(b"sRGB", b"\0")], (b"",)),
        ([GAMMA, chunk(b"sRGB", b"\4")], (PROFILE_OF_GAMMA,)),
        ([ICC, chunk(b"sRGB", b"\0")], (SWAPPED,)),
        ([chunk(b"gAMA", bytes(4)), GAMMA], (PROFILE_OF_GAMMA,)),
        ([CHROMATICITIES], (b"",)),
        ([CHROMATICITIES, GAMMA], (profile_of_gamma(1.0, [n / 100_000 for n in P3]),)),
        ([ICC, chunk(b"cICP", b"\x0c\x0d\0\1")], (profile_of_cicp(12, 13), SWAPPED)),
        ([ICC, chunk(b"cICP", b"\1\x0d\0\1")], (b"", SWAPPED)),
        ([ICC, chunk(b"cICP", b"\2\2\0\1")], (SWAPPED,)),
        ([ICC, chunk(b"cICP", b"\x0c\x0d\0\0")], (SWAPPED,)),
        ([PLTE, chunk(b"cICP", b"\x0c\x0d\0\1")], (b"",)),
    ],
)
def test_which_colours_the_chunks_mean(before, found):
    assert read_png(png(samples(), *before), 1).profiles == found


def test_colours_behind_the_pixels_mean_nothing():
    assert read_png(png(samples(), after=[ICC, GAMMA, IEND]), 1).profiles == (b"",)


def oriented(number: int) -> bytes:
    return b"II*\0\x08\0\0\0\x01\0\x12\1\3\0\1\0\0\0" + bytes([number, 0, 0, 0]) + bytes(4)


@pytest.mark.parametrize(
    ("before", "orientation"),
    [
        ([chunk(b"eXIf", oriented(6))], 6),
        ([chunk(b"eXIf", oriented(6), sound=False), chunk(b"eXIf", oriented(3))], 3),
        ([chunk(b"eXIf", oriented(6)), chunk(b"eXIf", oriented(3))], 6),
        ([chunk(b"eXIf", b"xx"), chunk(b"eXIf", oriented(3))], 1),
        ([chunk(b"eXIf", b"Exif\0\0" + oriented(6))], 1),
    ],
)
def test_which_orientation_counts(before, orientation):
    assert read_png(png(samples(), *before), 1).orientation == orientation


def test_an_orientation_behind_the_pixels_does_not_count():
    """Chromium has read the picture by then."""
    data = png(samples(), after=[chunk(b"eXIf", oriented(6)), IEND])
    assert read_png(data, 1).orientation == 1


@pytest.mark.parametrize(
    "data",
    [
        SIGNATURE + IEND,
        SIGNATURE + ihdr(*SIZE) + IEND,
        SIGNATURE + chunk(b"tEXt", b"a\0b") + ihdr(*SIZE) + idat(samples()) + IEND,
        png(samples(), ihdr(*SIZE)),
        png(samples(), chunk(b"ABCD")),
        png(samples(), PLTE, PLTE),
        png(samples(), chunk(b"PLTE", bytes(3), sound=False)),
        png(samples(), chunk(b"PLTE", bytes(771))),
        png(samples(), depth=4, pixels=idat(samples())),
        png(samples(), pixels=chunk(b"IDAT")),
        png(samples(), pixels=chunk(b"IDAT", zlib.compress(rows(samples()))[2:])),
        png(samples(), pixels=chunk(b"IDAT", b"\x78\x9d" + idat(samples())[10:])),
    ],
)
def test_what_no_viewer_shows_is_malformed(data):
    with pytest.raises(Malformed):
        read(data)


@pytest.mark.parametrize(
    "before",
    [
        [chunk(b"tEXt", b"a\0b", sound=False)],
        [chunk(b"abCD", b"x", sound=False)],
        [PLTE],
        [chunk(b"tEXt")] * 100_000,
    ],
)
def test_chunks_that_do_not_matter(before):
    header, [frame] = read(png(samples(), *before))
    assert np.array_equal(pixels(frame), expected(samples(), RGB, 8))
    assert not header.truncated


# -- damage ------------------------------------------------------------------------------------

PACKED = zlib.compress(rows(samples()))


@pytest.mark.parametrize(
    ("pixels_", "is_flagged"),
    [
        (chunk(b"IDAT", PACKED[:-4] + bytes(4)), False),
        (chunk(b"IDAT", PACKED[:-4]), False),
        (chunk(b"IDAT", zlib.compress(rows(samples()) * 2)), False),
        (b"".join(chunk(b"IDAT", PACKED[n : n + 1]) for n in range(len(PACKED))), False),
        (chunk(b"IDAT") + chunk(b"IDAT", PACKED), False),
        (chunk(b"IDAT", PACKED, sound=False), True),
        (chunk(b"IDAT", PACKED) + chunk(b"tEXt") + chunk(b"IDAT", PACKED), False),
    ],
)
def test_damage_behind_the_last_row_hides_nothing(pixels_, is_flagged):
    header, [frame] = read(png(samples(), pixels=pixels_))
    assert np.array_equal(pixels(frame), expected(samples(), RGB, 8))
    assert not frame.truncated
    assert header.truncated == is_flagged


def test_a_missing_end_is_told():
    for end in ([], [IEND[:9]], [chunk(b"tEXt")]):
        header, [frame] = read(png(samples(), after=end))
        assert header.truncated
        assert not frame.truncated


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("color", "depth"), [(RGB, 8), (PALETTE, 2), (GREY, 16), (RGB_ALPHA, 8)])
def test_cut_at_every_byte(interlaced, color, depth):
    """More and more rows are shown, the others are transparent."""
    values = samples(color, depth)
    before = [palette(depth)] if color == PALETTE else []
    data = png(values, *before, depth=depth, color=color, interlaced=interlaced)
    whole = expected(values, color, depth)
    before_it = 0
    begun = data.index(b"IDAT") + 4
    for end in range(begun, len(data) - len(IEND)):
        try:
            header, [frame] = read(data[:end])
        except Malformed:
            assert not before_it
            continue
        shown = pixels(frame)
        same = int((shown == whole).all(axis=2).sum())
        assert same >= before_it
        assert header.truncated
        before_it = same
        if not interlaced:
            rows_shown = (shown == whole).all(axis=(1, 2)).sum()
            assert not shown[rows_shown:, :, 3].any()
    assert before_it == WIDTH * HEIGHT


def test_first_passes_of_an_interlaced_picture_are_shown_larger():
    """Until a later pass comes, a pixel stands for its block."""
    values = samples()
    first_two = b"".join(rows(values[y::8, x::8]) for x, y in ((0, 0), (4, 0)))
    data = png(values, interlaced=True, pixels=chunk(b"IDAT", zlib.compress(first_two)))
    _, [frame] = read(data)
    assert frame.truncated
    rows_of, columns_of = np.arange(HEIGHT) // 8 * 8, np.arange(WIDTH) // 4 * 4
    whole = expected(values, RGB, 8)
    assert np.array_equal(pixels(frame), whole[rows_of][:, columns_of])


@pytest.mark.parametrize("kind", ["filter", "code", "chunk", "checksum", "end"])
def test_rows_before_the_damage_are_shown(kind):
    values = np.random.default_rng(4).integers(0, 256, (90, 300, 3))
    plain_rows = rows(values)
    at = 40 * 901
    stored = zlib.compress(plain_rows, 0)  # blocks of 65,535 bytes as they are, behind 5 bytes
    cut = 2 + 5 + at + 200
    damaged = {
        "filter": chunk(b"IDAT", zlib.compress(plain_rows[:at] + b"\5" + plain_rows[at + 1 :])),
        "code": chunk(b"IDAT", stored[: 7 + 65_535] + b"\xff" * 200),
        "chunk": chunk(b"IDAT", stored[:cut]) + chunk(b"tEXt") + chunk(b"IDAT", stored[cut:]),
        "checksum": chunk(b"IDAT", stored[:cut], sound=False) + chunk(b"IDAT", stored[cut:]),
        "end": chunk(b"IDAT", zlib.compress(plain_rows[: at + 300])),
    }[kind]
    _, [frame] = read(png(values, pixels=damaged))
    count = 72 if kind == "code" else 40
    shown = pixels(frame)
    assert frame.truncated
    assert np.array_equal(shown[:count, :, :3], values[:count])
    seen = count - 32_768 // 901 if kind in ("chunk", "checksum") else count
    assert (shown[:seen, :, 3] == 255).all()
    assert not shown[seen:, :, 3].any()
    assert not shown[count:].any()


@pytest.mark.parametrize("behind", ["nothing", "IEND", "a checksum", "a wrong checksum"])
@pytest.mark.parametrize("missing", [2, 10])
def test_the_last_rows_of_data_that_end_early_are_held_back(behind, missing):
    values = np.random.default_rng(4).integers(0, 256, (90, 300, 3))
    packed = zlib.compress(rows(values))[:-missing]  # less than the checksum, or more
    data = png(values, pixels=chunk(b"IDAT", packed, sound=behind != "a wrong checksum"))
    end = {"nothing": 16, "IEND": 0}.get(behind, 12)
    _, [frame] = read(data[: len(data) - end])
    shown = pixels(frame)
    assert np.array_equal(shown[:89, :, :3], values[:89])
    if missing == 2:
        assert not frame.truncated
        assert frame.image.mode == "RGB"
        return
    held = behind in ("IEND", "a wrong checksum")
    seen = 89 - 32_768 // 901 if held else 89
    assert frame.truncated
    assert (shown[:seen, :, 3] == 255).all()
    assert not shown[seen:, :, 3].any()


def test_of_a_small_picture_all_rows_may_be_held_back():
    values = np.random.default_rng(4).integers(0, 256, (40, 50, 3))
    packed = zlib.compress(rows(values))[:-200]
    _, [frame] = read(png(values, pixels=chunk(b"IDAT", packed)))
    shown = pixels(frame)
    assert not shown[..., 3].any()
    assert np.array_equal(shown[:38, :, :3], values[:38])


def test_a_last_row_that_looks_like_none_is_one():
    """The pixels that Pillow's decoder leaves alone could be the picture's own."""
    values = samples()
    values[-1] = (137, 201, 59)
    _, [frame] = read(png(values))
    assert not frame.truncated
    assert np.array_equal(pixels(frame), expected(values, RGB, 8))


# -- animation ---------------------------------------------------------------------------------


def animation(*chunks: bytes, frames: int = 3, plays: int = 0, color: int = 2) -> bytes:
    return b"".join((SIGNATURE, ihdr(*SIZE, color=color), actl(frames, plays), *chunks, IEND))


def full(sequence: int, level: int, **options) -> bytes:
    return fctl(sequence, SIZE, **options) + fdat(sequence + 1, plain(level))


def first(level: int, **options) -> bytes:
    return fctl(0, SIZE, **options) + idat(plain(level))


def levels(data: bytes, most: int = 1000) -> list[int]:
    """Of the last pixel of each frame."""
    return [int(pixels(one)[-1, -1, 0]) for one in read(data, most)[1]]


def test_frames_follow_each_other():
    header, frames = read(animation(first(1, delay=(7, 50)), full(1, 2), full(3, 3)))
    assert [int(pixels(one)[0, 0, 0]) for one in frames] == [1, 2, 3]
    assert [one.seconds for one in frames] == [0.14, 0.1, 0.1]
    assert (header.frames, header.truncated) == (3, False)


def test_a_default_image_outside_the_animation_is_no_frame():
    frames = full(0, 2), full(2, 3)
    assert levels(animation(idat(plain(1)), *frames, frames=2)) == [2, 3]
    assert levels(animation(idat(plain(1)), frames[0], frames=1)) == [2]


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [((3, 0), 0.03), ((1, 100), 0.1), ((11, 1000), 0.011), ((0, 5), 0.1), ((2, 1), 2.0)],
)
def test_delays_are_those_of_a_browser(delay, seconds):
    _, frames = read(animation(first(1, delay=delay), full(1, 2, delay=delay), frames=2))
    assert [one.seconds for one in frames] == [seconds] * 2


def test_the_last_frame_of_an_animation_that_ends_stays():
    chunks = first(1), full(1, 2)
    for plays in (1, 5):
        _, frames = read(animation(*chunks, frames=2, plays=plays))
        assert [one.seconds for one in frames] == [0.1, inf]
    _, [only] = read(animation(*chunks, frames=1, plays=1))
    assert only.seconds == 0


@pytest.mark.parametrize("color", [RGB, RGB_ALPHA])
@pytest.mark.parametrize(("dispose", "left"), [(0, 9), (1, None), (2, 1)])
def test_disposal_with_and_without_an_alpha_channel(color, dispose, left):
    opaque = np.full((HEIGHT, WIDTH, 1), 255)
    below = np.dstack([plain(1), opaque])[..., : CHANNELS[color]]
    part = np.full((4, 5, CHANNELS[color]), 255)
    part[..., :3] = 9
    dot = np.full((1, 1, CHANNELS[color]), 255)
    data = animation(
        fctl(0, SIZE) + idat(below),
        fctl(1, (5, 4), (2, 3), dispose=dispose) + fdat(2, part),
        fctl(3, (1, 1)) + fdat(4, dot),
        color=color,
    )
    _, frames = read(data)
    assert tuple(pixels(frames[1])[4, 4]) == (9, 9, 9, 255)
    after = pixels(frames[2])
    assert tuple(after[4, 4]) == ((0, 0, 0, 0) if left is None else (left, left, left, 255))
    assert tuple(after[-1, -1]) == (1, 1, 1, 255)
    assert tuple(after[0, 0]) == (255, 255, 255, 255)


def test_a_first_frame_that_is_taken_back_leaves_nothing():
    data = animation(first(1, dispose=2), fctl(1, (1, 1)) + fdat(2, plain(5, 1, 1)), frames=2)
    _, frames = read(data)
    shown = pixels(frames[1])
    assert tuple(shown[0, 0]) == (5, 5, 5, 255)
    assert not shown[1:].any()


@pytest.mark.parametrize("blend", [0, 1])
def test_blending_replaces_or_lies_over(blend):
    below = np.full((HEIGHT, WIDTH, 4), 200)
    above = np.full((HEIGHT, WIDTH, 4), 100)
    data = animation(
        fctl(0, SIZE, blend=1) + idat(below),
        fctl(1, SIZE, blend=blend) + fdat(2, above),
        frames=2,
        color=RGB_ALPHA,
    )
    _, frames = read(data)
    assert tuple(pixels(frames[0])[0, 0]) == (200,) * 4
    share = 100 + 200 * 155 / 255
    mixed = (100 * 100 + 200 * 200 * 155 / 255) / share
    wanted = (mixed, mixed, mixed, share) if blend else (100,) * 4
    assert np.abs(pixels(frames[1])[5, 5] - np.array(wanted)).max() <= 1


def test_grey_frames_stay_grey():
    """Or a profile of greys would not be applied to them."""
    grey = np.full((HEIGHT, WIDTH, 1), 7)
    data = animation(fctl(0, SIZE) + idat(grey), fctl(1, (3, 3)) + fdat(2, grey[:3, :3] + 1),
                     frames=2, color=GREY)  # fmt: skip
    _, frames = read(data)
    assert [one.image.mode for one in frames] == ["L", "L"]
    assert [one.image.getpixel((0, 0)) for one in frames] == [7, 8]


ENDINGS = {
    "a number left out in fcTL": full(4, 3),
    "a number left out in fdAT": fctl(3, SIZE) + fdat(5, plain(3)),
    "a frame beyond the canvas": fctl(3, SIZE, (1, 0)) + fdat(4, plain(3)),
    "an empty frame": fctl(3, (0, HEIGHT)) + fdat(4, plain(3)),
    "an unknown disposal": full(3, 3, dispose=3),
    "an unknown blending": full(3, 3, blend=2),
    "a wrong checksum of fcTL": chunk(b"fcTL", full(3, 3)[8:34], sound=False) + fdat(4, plain(3)),
    "no fcTL": fdat(3, plain(3)),
    "an unknown chunk that matters": chunk(b"ABCD") + full(3, 3),
    "pixels of the default image again": idat(plain(3)) + full(3, 3),
    "the end": IEND + full(3, 3),
    "nothing": b"",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_an_error_ends_the_animation_there(ending):
    data = animation(first(1), full(1, 2), ending, frames=4)
    assert levels(data) == [1, 2]
    assert read_png(data, 1000).truncated


def test_one_late_palette_does_not_end_the_animation():
    assert levels(animation(first(1), PLTE, full(1, 2), frames=2)) == [1, 2]
    assert levels(animation(first(1), PLTE, full(1, 2), PLTE, full(3, 3))) == [1, 2]


@pytest.mark.parametrize(
    "chunks",
    [
        (fctl(1, SIZE), idat(plain(1)), full(2, 2)),
        (fctl(0, (5, 5)), idat(plain(1)), full(1, 2)),
        (fctl(0, SIZE, dispose=3), idat(plain(1)), full(1, 2)),
        (idat(plain(1)),),
        (idat(plain(1)), full(1, 2)),
        (chunk(b"IDAT", idat(plain(1))[8:-4], sound=False), full(0, 2)),
    ],
)
def test_where_no_frame_is_right_the_default_image_is_described(chunks):
    data = animation(*chunks, frames=2)
    assert levels(data) == [1]
    assert read_png(data, 1000).truncated


@pytest.mark.parametrize("promised", [1, 2, 3, 4, 2**31 - 1])
def test_as_many_frames_as_there_are_and_as_are_promised(promised):
    data = animation(first(1), full(1, 2), full(3, 3), frames=promised)
    assert levels(data) == [1, 2, 3][:promised]
    assert read_png(data, 1000).truncated == (promised != 3)


@pytest.mark.parametrize(
    "data",
    [
        animation(first(1), full(1, 2), frames=0),
        animation(first(1), full(1, 2), frames=2**31),
        SIGNATURE + ihdr(*SIZE) + first(1) + full(1, 2) + IEND,
        SIGNATURE + ihdr(*SIZE) + first(1) + actl(2) + full(1, 2) + IEND,
    ],
)
def test_without_an_animation_control_it_is_a_still(data):
    header, [frame] = read(data)
    assert int(pixels(frame)[0, 0, 0]) == 1
    assert (frame.seconds, header.truncated) == (0, False)


def test_of_several_controls_the_last_one_counts():
    twice = fctl(1, SIZE, delay=(5, 1)) + fctl(2, SIZE, delay=(4, 1)) + fdat(3, plain(2))
    _, frames = read(animation(first(1), twice, frames=2))
    assert [one.seconds for one in frames] == [0.1, 4]


def test_pixels_in_several_chunks_and_wrong_checksums_of_them():
    data = zlib.compress(rows(plain(2)))
    parts = [
        chunk(b"fdAT", struct.pack(">I", 2 + at) + data[at : at + 1], sound=False)
        for at in range(len(data))
    ]
    assert levels(animation(first(1), fctl(1, SIZE), *parts, frames=2)) == [1, 2]


@pytest.mark.parametrize("blend", [0, 1])  # which is the same where nothing is transparent
def test_a_damaged_frame_does_not_end_the_animation(blend):
    half = fdat(2, plain(2)[: HEIGHT // 2])
    data = animation(first(1), fctl(1, SIZE, blend=blend) + half, full(3, 3))
    _, frames = read(data)
    assert [one.truncated for one in frames] == [False, True, False]
    damaged = pixels(frames[1])
    assert (damaged[: HEIGHT // 2] == (2, 2, 2, 255)).all()
    assert not damaged[HEIGHT // 2 :].any()
    assert (pixels(frames[2]) == (3, 3, 3, 255)).all()


def test_the_last_rows_of_frames_that_end_early_are_held_back():
    size = 300, 90
    values = np.random.default_rng(4).integers(0, 256, (90, 300, 3))
    cut = zlib.compress(rows(values))[:-10]
    parts = [
        SIGNATURE + ihdr(*size) + actl(2),
        fctl(0, size) + chunk(b"IDAT", cut),
        fctl(1, size) + chunk(b"fdAT", struct.pack(">I", 2) + cut),
    ]
    seen = 89 - 32_768 // 901
    for end, last in ((b"", 89), (IEND, seen)):
        _, frames = read(b"".join(parts) + end)
        for frame, count in zip(frames, (seen, last), strict=True):
            shown = pixels(frame)
            assert frame.truncated
            assert np.array_equal(shown[:89, :, :3], values[:89])
            assert (shown[:count, :, 3] == 255).all()
            assert not shown[count:, :, 3].any()


def test_frames_are_counted_up_to_one_more_than_the_most():
    chunks = itertools.chain([first(0)], (full(1 + 2 * n, n + 1) for n in range(50)))
    header = read_png(animation(*chunks, frames=51), 7)
    assert (header.frames, header.truncated) == (8, False)


def test_frames_written_by_pillow():
    pictures = [Image.new("RGBA", SIZE, (20 * n, 0, 0, 255)) for n in range(5)]
    for number, picture in enumerate(pictures):
        picture.paste((0, 200, 0, 90), (number, number, number + 4, number + 4))
    stream = io.BytesIO()
    pictures[0].save(stream, "PNG", save_all=True, append_images=pictures[1:], duration=40)
    _, frames = read(stream.getvalue())
    assert [one.seconds for one in frames] == [0.04] * 5
    for frame, picture in zip(frames, pictures, strict=True):
        assert np.array_equal(pixels(frame), np.asarray(picture))
