"""AVIF and HEIC whose boxes say what is shown. What Chromium 156 shows of each was looked at."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import writers
from tests.fixtures.container_bombs import encode, noise
from tests.fixtures.heif_files import (
    ALPHA,
    HEVC_ALPHA,
    Item,
    Meta,
    av1,
    box,
    clap,
    ftyp,
    grid,
    hevc,
    icc,
    imir,
    irot,
    movie,
    nclx,
    size_property,
    with_alpha,
    write,
    write_movie,
)
from tests.fixtures.profiles import DISPLAY_P3, rgb
from worker.errors import DecodeError, UnscreenedReason
from worker.image.color import is_foreign
from worker.image.decode import kind_of, read_header
from worker.image.formats import HEIC_SAMPLE, items
from worker.image.formats.container import Malformed
from worker.image.formats.heif import heif
from worker.image.preprocess import decode
from worker.settings import Limits

LIMITS = Limits()
SIDE = 96
PICTURE = writers.photograph("astronaut").resize((SIDE, SIDE))
OTHER = writers.photograph("coffee").resize((SIDE, SIDE))
AV1, AV1_OTHER = av1(PICTURE), av1(OTHER)
HEVC, HEVC_OTHER = hevc(PICTURE, quality=90), hevc(OTHER, quality=90)
HEIC = (b"heic", b"mif1")
BOTH = pytest.mark.parametrize(("item", "other"), [(AV1, AV1_OTHER), (HEVC, HEVC_OTHER)])


def pictures(data: bytes) -> list[np.ndarray]:
    """All frames, on their canvas."""
    return [np.asarray(f.image.convert("RGB")) for f in read_header(data, LIMITS).decode(None)]


def shown(data: bytes) -> np.ndarray:
    """What Chromium shows first, on white."""
    return decode(data, LIMITS).pixels


def is_like(pixels: np.ndarray, picture: Image.Image) -> bool:
    expected = np.asarray(picture.convert("RGB"))
    return pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).mean() < 7


def refusal(data: bytes) -> UnscreenedReason:
    with pytest.raises(DecodeError) as caught:
        decode(data, LIMITS)
    return caught.value.reason


# -- Which file is which -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "brands",
    [
        (b"avif",),
        (b"isom", b"mp41", b"avif"),
        (b"mif1", b"miaf"),
        (b"heic", b"mif1"),
        tuple(b"xx%02d" % n for n in range(400)),
    ],
)
@BOTH
def test_the_codec_of_the_picture_names_the_format(item, other, brands):
    data = write(Meta([item, other]), *brands)
    assert kind_of(data) == {b"av01": "AVIF", b"hvc1": "HEIC"}[item.kind]
    assert is_like(shown(data), PICTURE)


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        ((b"avif",), "AVIF"),
        ((b"isom", b"avis"), "AVIF"),
        ((b"heix",), "HEIC"),
        ((b"mif1", b"heic"), "HEIC"),
        ((b"isom", b"mp41"), None),
        ((b"jp2 ",), None),
    ],
)
def test_a_file_without_a_picture_goes_by_its_brands(brands, kind):
    data = ftyp(*brands)
    if kind is None:
        assert refusal(data) == "unsupported_format"
    else:
        assert kind_of(data) == kind


def test_brands_come_first():
    assert refusal(box(b"free", bytes(8)) + write(Meta([AV1]))) == "unsupported_format"


def test_the_sample_of_heic_is_what_it_says():
    decoded = decode(HEIC_SAMPLE, LIMITS)
    assert (decoded.info.format, decoded.pixels.shape) == ("HEIC", (16, 16, 3))
    assert np.abs(decoded.pixels.astype(int) - (200, 90, 30)).max() < 12


# -- Items -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"wide": True},
        {"split": True},
        {"idat": True},
        {"extents": 3},
        {"extra": box(b"free", bytes(9))},
    ],
)
@BOTH
def test_each_way_to_write_the_same(item, other, options):
    data = write(Meta([item, other], **options), b"avif", b"heic", b"mif1")
    assert is_like(shown(data), PICTURE)
    assert len(pictures(data)) == 1


@BOTH
def test_the_primary_item_is_shown(item, other):
    data = write(Meta([other, item], primary=2), b"avif", b"heic")
    assert [is_like(one, PICTURE) for one in pictures(data)] == [True]


@BOTH
def test_of_two_meta_boxes_the_second_one_is_another_frame(item, other):
    head, one, two = ftyp(b"avif", b"mif1"), Meta([item]), Meta([other])
    base = len(head) + len(one.boxes(0)) + len(two.boxes(0)) + 8
    later = two.boxes(base + len(item.payload))
    data = head + one.boxes(base) + later + box(b"mdat", item.payload, other.payload)
    first, second = pictures(data)
    assert is_like(first, PICTURE)
    assert is_like(second, OTHER)


def test_of_alternatives_the_first_and_the_primary_one_are_shown():
    data = write(Meta([AV1, AV1_OTHER], groups=[[2, 1]]))
    first, second = pictures(data)
    assert is_like(first, OTHER)
    assert is_like(second, PICTURE)


def test_alternatives_of_two_codecs_are_both_shown():
    """Chromium takes the one, phones the other."""
    data = write(Meta([HEVC_OTHER, AV1], groups=[[1, 2]]), b"avif", b"heic")
    first, second = pictures(data)
    assert is_like(first, PICTURE)
    assert is_like(second, OTHER)


@BOTH
def test_a_picture_of_tiles(item, other):
    code = av1 if item.kind == b"av01" else lambda tile: hevc(tile, quality=90)
    large = PICTURE.resize((256, 256))
    tiles = [code(large.crop((x, y, x + 128, y + 128))) for y in (0, 128) for x in (0, 128)]
    whole = grid((250, 240), 2, 2, [2, 3, 4, 5])
    data = write(Meta([whole, *tiles]), b"avif", b"heic")
    assert is_like(shown(data), large.crop((0, 0, 250, 240)))
    assert refusal(write(Meta([whole, *tiles[:3], other]), b"avif", b"heic")) == "undecodable"
    whole.properties = [size_property((200, 256))]
    assert refusal(write(Meta([whole, *tiles]), b"avif", b"heic")) == "undecodable"


@BOTH
def test_an_identity_has_turns_of_its_own(item, other):
    derived = Item(b"iden", b"x", [size_property((SIDE, SIDE)), irot(2)], [(b"dimg", [2])])
    data = write(Meta([derived, item.having(irot(1)), other]), b"avif", b"heic")
    assert is_like(shown(data), PICTURE.rotate(180))


def test_two_properties_of_a_kind_are_the_first_one():
    data = write(Meta([AV1.having(size_property((32, 32)), irot(1), irot(2))]))
    assert is_like(shown(data), PICTURE.rotate(90))


@BOTH
def test_a_coded_picture_larger_than_the_file_says_is_reserved_for(item, other):
    properties = [size_property((32, 24)), *item.properties[1:]]
    header = heif(write(Meta([Item(item.kind, item.payload, properties)])), 1)
    assert (header.width, header.height) == (32, 24)
    assert header.pixels >= SIDE * SIDE
    assert heif(write(Meta([item, other])), 1).pixels == SIDE * SIDE


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
@BOTH
def test_a_cut_picture_is_refused(item, other, share):
    """Chromium shows nothing of it."""
    data = write(Meta([item, other]), b"avif", b"heic")[: -len(other.payload)]
    assert refusal(data[: int(len(data) * share)]) == "undecodable"


def test_a_container_that_ends_early_is_malformed():
    data = encode(noise(), "AVIF")
    assert heif(data, 1000).frames == 1
    for end in range(0, data.index(b"ipma") + 8, 7):
        with pytest.raises((Malformed, struct.error, IndexError)):
            heif(data[:end], 1000)


# -- Crops and turns ---------------------------------------------------------------------------


@BOTH
def test_a_crop_is_shown_and_the_whole_as_well(item, other):
    data = write(Meta([item.having(clap(40, 30, -56, -66, 2)), other]), b"avif", b"heic")
    assert read_header(data, LIMITS).header.crop == (0, 0, 40, 30)
    assert is_like(shown(data), PICTURE.crop((0, 0, 40, 30)))
    assert pictures(data)[0].shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        (clap(41, 31), (28, 33, 69, 64)),
        (clap(41, 31, -1, 1, 2), (27, 33, 68, 64)),
        (clap(40, 30, 40, 40), (68, 73, 96, 96)),
        (clap(200, 200), None),
        (clap(0, 10), None),
        (clap(40, 30, 500, 500), None),
        ((b"clap", struct.pack(">8I", 40, 0, 30, 1, 0, 1, 0, 1)), None),
        ((b"clap", b"short"), None),
    ],
)
def test_crops_between_pixels_are_rounded_and_senseless_ones_ignored(crop, expected):
    assert read_header(write(Meta([AV1.having(crop)])), LIMITS).header.crop == expected


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("axis", [None, 0, 1])
@BOTH
def test_a_turn_and_then_a_mirror(item, other, turns, axis):
    mirrors = [Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.FLIP_LEFT_RIGHT]
    properties = [irot(turns)] + ([] if axis is None else [imir(axis)])
    expected = PICTURE.rotate(90 * turns)
    if axis is not None:
        expected = expected.transpose(mirrors[axis])
    data = write(Meta([item.having(*properties), other]), b"avif", b"heic")
    assert is_like(shown(data), expected)


def test_heic_applies_properties_in_their_order_and_avif_in_a_fixed_one():
    properties = [imir(0), irot(1), clap(40, 30, -56, -66, 2)]
    mirrored = PICTURE.transpose(Image.Transpose.FLIP_TOP_BOTTOM).rotate(90)
    data = write(Meta([HEVC.having(*properties)]), *HEIC)
    assert is_like(shown(data), mirrored.crop((0, 0, 40, 30)))
    fixed = PICTURE.crop((0, 0, 40, 30)).rotate(90, expand=True)
    data = write(Meta([AV1.having(*properties)]))
    assert is_like(shown(data), fixed.transpose(Image.Transpose.FLIP_TOP_BOTTOM))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_what_pillow_writes_for_an_orientation_is_turned_back(orientation):
    picture = writers.photograph("coffee").resize((120, 80))
    data = writers.turned("AVIF", orientation, quality=90)(picture)
    assert np.abs(shown(data).astype(int) - np.asarray(picture)).mean() < 8


def test_a_heic_of_an_odd_size_is_as_large_as_it_says():
    """It is coded with an even one, and cut."""
    data = encode(Image.new("RGB", (1001, 201), "red"), "HEIC", quality=10)
    assert b"clap" in data
    assert shown(data).shape == (201, 1001, 3)


# -- Colours -----------------------------------------------------------------------------------


def test_an_icc_profile_comes_before_code_points():
    p3 = rgb(DISPLAY_P3)
    for colors in ([icc(p3), nclx(1, 8)], [nclx(1, 8), icc(p3)]):
        tagged, other = heif(write(Meta([AV1.having(*colors)])), 1).profiles
        assert tagged == p3
        assert is_foreign(other)


@pytest.mark.parametrize(
    ("points", "foreign"),
    [((1, 13), False), ((2, 2), False), ((1, 1), False), ((12, 13), True), ((2, 8), True)],
)
@BOTH
def test_code_points(item, other, points, foreign):
    header = heif(write(Meta([item.having(nclx(*points)), other])), 1)
    assert [is_foreign(one) for one in header.profiles] == [foreign]


def test_code_points_of_the_coded_picture_count_where_the_file_has_none():
    """A sequence header of BT.2020 and PQ, before the picture's own one."""
    bits = "000110000011111111" + f"{SIDE - 1:016b}" * 2
    bits += "000000001" + f"{9:08b}{16:08b}{9:08b}1"
    unit = int(bits.ljust(96, "0"), 2).to_bytes(12)
    payload = bytes([1 << 3 | 2, len(unit)]) + unit + AV1.payload
    stated = Item(b"av01", payload, AV1.properties)
    assert is_foreign(heif(write(Meta([stated])), 1).profiles[0])
    assert heif(write(Meta([stated.having(nclx(1, 13))])), 1).profiles == (b"",)
    assert heif(write(Meta([AV1])), 1).profiles == (b"",)


def test_a_grid_has_the_colours_of_its_first_tile():
    tile = AV1.having(nclx(1, 8))
    data = write(Meta([grid((2 * SIDE, SIDE), 1, 2, [2, 3]), tile, tile]))
    assert is_foreign(heif(data, 1).profiles[0])


# -- Transparency ------------------------------------------------------------------------------

GRADIENT = Image.linear_gradient("L").resize((SIDE, SIDE))


@pytest.mark.parametrize("kind", [ALPHA, HEVC_ALPHA])
@pytest.mark.parametrize("code", [av1, hevc])
def test_an_alpha_channel_of_either_name(code, kind):
    data = write(Meta(with_alpha(code(PICTURE), code(GRADIENT), kind=kind)), b"avif", b"heic")
    (frame,) = read_header(data, LIMITS).decode(None)
    assert frame.image.mode == "RGBA"
    alpha = np.asarray(frame.image.getchannel("A")).astype(int)
    assert np.abs(alpha - np.asarray(GRADIENT)).mean() < 4


def test_an_auxiliary_picture_of_another_kind_is_none():
    data = write(Meta(with_alpha(AV1, av1(GRADIENT), kind=b"urn:example:depth\0")))
    (frame,) = read_header(data, LIMITS).decode(None)
    assert frame.image.mode == "RGB"


def test_colours_that_were_multiplied_are_divided():
    black = Image.new("L", PICTURE.size)
    multiplied = Image.composite(PICTURE, Image.merge("RGB", [black] * 3), GRADIENT)
    items = with_alpha(av1(multiplied, quality=100), av1(GRADIENT, quality=100), premultiplied=True)
    (frame,) = read_header(write(Meta(items)), LIMITS).decode(None)
    lower = (0, SIDE // 2, SIDE, SIDE)  # where enough of the colours is left
    found = np.asarray(frame.image.convert("RGB").crop(lower)).astype(int)
    assert np.abs(found - np.asarray(PICTURE.crop(lower))).mean() < 7


# -- Sequences ---------------------------------------------------------------------------------

FOUR = [PICTURE, PICTURE.rotate(90), PICTURE.rotate(180), OTHER]
CODED = [av1(one) for one in FOUR]
DURATIONS = [100, 200, 10, 400]


def frames_of(data: bytes):
    return list(read_header(data, LIMITS).decode(None))


@pytest.mark.parametrize("options", [{}, {"chunks": [1, 2, 1]}, {"chunks": [1, 1, 1, 1]}])
def test_a_sequence_is_played(options):
    data = write_movie([movie(CODED, DURATIONS, **options)], meta=Meta([CODED[0]]))
    frames = frames_of(data)
    assert [round(one.seconds, 3) for one in frames] == [0.1, 0.2, 0.1, 0.4]
    for frame, picture in zip(frames, FOUR, strict=True):
        assert is_like(np.asarray(frame.image), picture)


@pytest.mark.parametrize(("rounds", "last"), [(None, 0.4), (0, 0.4), (1, np.inf), (3, np.inf)])
def test_a_sequence_that_ends_shows_its_last_frame_for_ever(rounds, last):
    data = write_movie([movie(CODED, DURATIONS, rounds=rounds)], meta=Meta([CODED[0]]))
    assert frames_of(data)[-1].seconds == last


@pytest.mark.parametrize(
    ("brands", "first_is_item"),
    [
        ((b"avif", b"avis"), True),
        ((b"avis", b"avif"), False),
        ((b"mif1", b"avis", b"avif"), False),
        ((b"mif1", b"avif"), True),
    ],
)
def test_the_major_brand_chooses_the_item_or_the_sequence(brands, first_is_item):
    data = write_movie([movie(CODED[:3], [100] * 3)], *brands, meta=Meta([AV1_OTHER]))
    frames = pictures(data)
    assert len(frames) == 4
    item = frames.pop(0 if first_is_item else -1)
    assert is_like(item, OTHER)
    assert all(is_like(one, two) for one, two in zip(frames, FOUR, strict=False))


def test_a_sequence_that_begins_with_the_picture_is_described_as_well():
    tracks = [movie(CODED[:3], [20, 20, 5000])]
    item, *frames = pictures(write_movie(tracks, b"avif", b"avis", meta=Meta([CODED[0]])))
    assert is_like(item, FOUR[0])
    assert len(frames) == 3
    assert all(is_like(one, two) for one, two in zip(frames, FOUR, strict=False))
    assert len(pictures(write_movie(tracks, b"avis", b"avif", meta=Meta([CODED[0]])))) == 3


def test_profiles_of_the_picture_and_of_the_sequence_count_for_both():
    p3 = rgb(DISPLAY_P3)
    tracks = [movie(CODED[:2], [20, 5000])]
    meta = Meta([CODED[0].having(icc(p3))])
    assert heif(write_movie(tracks, b"avif", b"avis", meta=meta), 9).profiles == (p3, b"")
    assert heif(write_movie(tracks, b"avis", b"avif", meta=meta), 9).profiles == (b"", p3)


def test_a_further_picture_of_another_size_and_turn_fits_the_first_one():
    turned = av1(OTHER.resize((60, 40))).having(irot(1))
    tracks = [movie([one.having(irot(3)) for one in CODED], DURATIONS)]
    data = write_movie(tracks, meta=Meta([turned]))
    *_, last = read_header(data, LIMITS).decode(None)
    upright = last.image.rotate(-90)
    expected = OTHER.resize((60, 40)).rotate(90, expand=True).resize((SIDE, SIDE))
    assert is_like(np.asarray(upright.convert("RGB")), expected)


def test_a_sequence_has_an_alpha_channel():
    channel = [av1(GRADIENT)] * 4
    tracks = [movie(channel, DURATIONS, alpha_of=2), movie(CODED, DURATIONS)]
    frames = frames_of(write_movie(tracks, b"avis", b"msf1"))
    assert [one.image.mode for one in frames] == ["RGBA"] * 4


def test_a_cut_sequence_is_shown_as_far_as_it_goes():
    data = write_movie([movie(CODED, DURATIONS)], b"avis", b"msf1")
    cut = data[: -len(CODED[3].payload) - 5]
    header = read_header(cut, LIMITS).header
    assert (header.frames, header.truncated) == (2, True)
    assert all(is_like(one, two) for one, two in zip(pictures(cut), FOUR, strict=False))


def test_a_damaged_frame_is_shown_as_older_decoders_show_it():
    damaged = replace(CODED[3], payload=CODED[3].payload[:-4] + b"\x9f\x03\xe1\x55")
    frames = frames_of(write_movie([movie([*CODED[:3], damaged], DURATIONS)]))
    assert [one.truncated for one in frames] == [False, False, False, True]
    assert is_like(np.asarray(frames[3].image), FOUR[3])


def test_a_sequence_of_hevc_without_a_picture_is_refused():
    data = write_movie([movie([HEVC] * 3, [100] * 3)], b"hevc", b"msf1")
    assert (kind_of(data), refusal(data)) == ("HEIC", "undecodable")


def test_frames_beyond_the_limit_are_counted_and_not_decoded():
    data = write_movie([movie(CODED * 3, DURATIONS * 3)], b"avis", b"msf1")
    encoded = read_header(data, Limits(image_frames=5))
    assert (encoded.header.frames, len(list(encoded.decode(None)))) == (12, 5)


def test_parts_that_all_pictures_share_are_not_copied_for_each():
    data = bytes(100)
    scattered = [items.Item(number, extents=[(0, 30), (30, 30)]) for number in range(1, 3)]
    items.check_parts(data, scattered[:1])
    whole = [items.Item(number, extents=[(0, 100)]) for number in range(3, 9)]
    items.check_parts(data, whole)  # nothing is copied
    with pytest.raises(Malformed, match="larger than the file"):
        items.check_parts(data, scattered)
