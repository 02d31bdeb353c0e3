"""What Chromium reads of a colour profile; each outcome was seen in Chromium 156."""

import struct
import tracemalloc

import numpy as np
import pytest

from tests.fixtures import profiles
from tests.fixtures.bombs import overlapping_tags
from tests.fixtures.profiles import curve, grid, parametric, profile, sampled, table, tags_of
from worker.image.icc import Refused, parse

P3 = tags_of(profiles.DISPLAY_P3, curve(None))
SWAPPED = tags_of(profiles.SWAPPED, curve(None))
BT2020 = [(0.67347, 0.27904, -0.00193), (0.16567, 0.67535, 0.02998), (0.12505, 0.04561, 0.79685)]
LEVELS = np.random.default_rng(2).random((500, 3))
LAB = np.concatenate([grid(3, 5)[..., :1], np.full((5, 5, 5, 2), 128 / 255)], -1)
"""Lightness by the first channel."""


def shown(tags: dict[bytes, bytes], space: bytes = b"RGB ", pcs: bytes = b"XYZ ") -> np.ndarray:
    return 255 * parse(profile(space, tags, pcs)).srgb(LEVELS)


def edited(at: int, new: bytes, tags: dict[bytes, bytes] = P3) -> bytes:
    icc = profile(b"RGB ", tags)
    return icc[:at] + new + icc[at + len(new) :]


def is_read(icc: bytes, *, strict: bool = True) -> bool:
    try:
        parse(icc, strict=strict)
    except Refused:
        return False
    return True


def fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(65536 * one) for one in numbers))


@pytest.mark.parametrize("kind", [b"scnr", b"prtr", b"spac", b"link", b"abst", b"nmcl", b"xxxx"])
def test_the_class_does_not_matter(kind: bytes) -> None:
    assert is_read(edited(12, kind))


@pytest.mark.parametrize(
    ("icc", "strict", "lenient"),
    [
        (edited(0, struct.pack(">I", 200)), False, True),
        (edited(0, struct.pack(">I", 9000)), False, True),
        (edited(0, bytes(4)), False, True),
        (profile(b"RGB ", P3) + bytes(100), True, True),
        (edited(8, b"\5"), False, True),
        (edited(8, b"\0"), True, True),
        (edited(68, fixed(0.95, 1, 1.09)), False, True),
        (edited(68, fixed(0.972, 1, 0.83)), True, True),
        (edited(36, b"xxxx"), False, False),
        (edited(20, b"RGB "), False, False),
        (edited(20, b"Lab "), True, True),
        (profile(b"RGB ", P3)[:131], False, False),
        (profile(b"RGB ", {}), False, False),
        (b"", False, False),
    ],
)
def test_headers(icc: bytes, strict, lenient) -> None:
    assert is_read(icc) == strict
    assert is_read(icc, strict=False) == lenient


@pytest.mark.parametrize(
    ("field", "value", "strict"),
    [("length", 999_999, False), ("length", 3, False), ("length", 0, False), ("start", 4, True)],
)
def test_a_tag_that_nobody_needs_must_lie_inside(field: str, value: int, strict) -> None:
    icc = profile(b"RGB ", P3 | {b"xxxx": b"abcd" + bytes(20)})
    at = icc.index(b"xxxx", 132) + (8 if field == "length" else 4)
    icc = icc[:at] + struct.pack(">I", value) + icc[at + 4 :]
    assert is_read(icc) == strict
    assert is_read(icc, strict=False)


@pytest.mark.parametrize(
    ("tags", "strict"),
    [
        (P3 | {b"rTRC": b"xxxx" + bytes(20)}, False),
        (P3 | {b"rTRC": b"curv" + bytes(4) + struct.pack(">IHH", 9, 0, 65535)}, False),
        (P3 | {b"rXYZ": b"xxxx" + bytes(20)}, False),
        (P3 | {b"B2A0": b"xxxx" + bytes(20)}, False),
        (P3 | {b"B2A0": table(LAB)}, True),
        (P3 | {b"B2A0": table(LAB)[:-2]}, False),
        (P3 | {b"B2A1": b"mBA " + bytes(40)}, False),
        (P3 | {b"A2B0": b"xxxx" + bytes(20)}, False),
        (P3 | {b"A2B2": b"xxxx" + bytes(20)}, True),
        (P3 | {b"cicp": b"xxxx" + bytes(8)}, False),
        (P3 | {b"cicp": b"cicp" + bytes(4)}, False),
        (P3 | {b"A2B0": table(np.zeros((1, 1, 1, 3)))}, False),
        ({name: tag for name, tag in P3.items() if name != b"bTRC"}, False),
        ({name: tag for name, tag in P3.items() if name != b"gXYZ"}, False),
        ({b"A2B2": table(LAB)}, False),
    ],
)
def test_damaged_and_missing_tags(tags: dict[bytes, bytes], strict) -> None:
    assert is_read(profile(b"RGB ", tags)) == strict


@pytest.mark.parametrize(
    ("tag", "is_valid"),
    [
        (parametric(0, 1.8), True),
        (parametric(0, 0.0), True),
        (parametric(0, -1.0), False),
        (parametric(1, 2.0, 1.2, -0.2), False),
        (parametric(1, 2.0, 0.8, 0.2), False),
        (parametric(1, 2.0, 0.0, 0.2), False),
        (parametric(2, 2.0, 0.9, -0.1, 0.1), True),
        (parametric(3, 2.2, -0.9, 1.0, 0.5, 0.1), False),
        (parametric(3, 2.2, 1.0, 0.0, -0.5, 0.1), False),
        (parametric(3, 2.2, 1.0, 0.0, 0.5, -0.1), False),
        (parametric(3, 2.2, 1.0, -0.5, 0.5, 0.1), False),
        (parametric(4, 2.2, 0.9, 0.05, 0.5, 0.1, 0.05, 0.02), True),
        (parametric(5, 2.2, 0.9, 0.05, 0.5, 0.1, 0.05, 0.02), False),
    ],
)
def test_parametric_curves(tag: bytes, is_valid) -> None:
    assert is_read(profile(b"RGB ", tags_of(profiles.SRGB, tag))) == is_valid


def test_the_power_0_shows_nothing_but_black_as_black() -> None:
    icc = parse(profile(b"RGB ", tags_of(profiles.SRGB, curve(0.0))))
    assert np.round(icc.srgb(np.array([[0.0, 0.5, 1.0]]))).tolist() == [[0, 1, 1]]


def test_of_two_tags_of_a_name_the_first_one_counts() -> None:
    tags = {b"rXYZ": SWAPPED[b"rXYZ"], b"r2YZ": P3[b"rXYZ"]} | {
        name: tag for name, tag in P3.items() if name != b"rXYZ"
    }
    icc = profile(b"RGB ", tags).replace(b"r2YZ", b"rXYZ", 1)
    expected = shown(P3 | {b"rXYZ": SWAPPED[b"rXYZ"]})
    assert np.array_equal(255 * parse(icc).srgb(LEVELS), expected)
    assert np.abs(expected - shown(P3)).mean() > 20


def test_what_lcms_would_prefer_counts_for_nothing() -> None:
    assert np.array_equal(shown(P3 | {b"D2B0": b"mpet" + bytes(60)}), shown(P3))


def test_a_table_is_preferred_to_a_matrix_and_the_first_table_to_the_second() -> None:
    first, second = table(LAB), table(LAB[::-1])
    alone = shown({b"A2B0": first}, pcs=b"Lab ")
    both = shown(P3 | {b"A2B0": first, b"A2B1": second}, pcs=b"Lab ")
    assert np.abs(both - alone).max() < 1
    assert np.array_equal(shown({b"A2B1": first}, pcs=b"Lab "), alone)
    assert np.abs(alone - shown(P3)).mean() > 20


def test_a_table_is_cut_to_the_primaries_beside_it() -> None:
    """Chromium stores what the table gives in the profile's own primaries, of 8 bits."""
    red = np.array([[1.0, 0.0, 0.0]])
    colors = {b"A2B0": table(np.clip(grid(3, 2) @ np.array(profiles.SRGB), 0, 1))}
    grey = tags_of([(0.3214, 0.3333, 0.275)] * 3, curve(None))
    small = (np.array(profiles.SRGB) / 2 + np.array(profiles.SRGB).sum(0) / 6).tolist()
    assert np.abs(parse(profile(b"RGB ", colors)).srgb(red) - red).max() < 0.01
    assert (
        np.abs(parse(profile(b"RGB ", colors | grey)).srgb(red) - red).max() < 0.01
    )  # no primaries
    cut = parse(profile(b"RGB ", colors | tags_of(small, curve(None)))).srgb(red)[0]
    assert cut[0] < 0.9
    assert cut[1] > 0.4


def test_curves_that_differ_are_cut_to_light_from_0_to_1() -> None:
    bright = parametric(3, 1.0, 2.0, 0.0, 0.0, 0.0)
    half = (np.array(profiles.SRGB) / 2).tolist()
    same = parse(profile(b"RGB ", tags_of(half, bright))).srgb(np.ones((1, 3)))
    differ = parse(profile(b"RGB ", tags_of(half, bright, bright, curve(1.0)))).srgb(
        np.ones((1, 3))
    )
    assert same.min() > 0.99
    assert differ[0, 0] < 0.74


def test_lightness_of_a_table() -> None:
    """Chromium reads 65535 as L* 100 whatever the table's kind."""
    icc = parse(profile(b"RGB ", {b"A2B0": table(LAB)}, b"Lab "))
    greys = 255 * icc.srgb(np.array([[0.0, 0, 0], [0.5, 0, 0], [1.0, 0, 0]]))
    assert np.abs(greys - np.array([[0], [119], [255]])).max() < 2


@pytest.mark.parametrize("inputs", [1, 2, 4])
def test_a_table_of_more_or_fewer_channels_than_the_picture_has(inputs: int) -> None:
    """A fourth channel is alpha, which is 1; missing ones are left out."""
    points = np.random.default_rng(3).random((*[2] * inputs, 3))
    found = shown({b"A2B0": table(points)}, pcs=b"Lab ")
    full = np.zeros((2, 2, 2, 3))
    for place in np.ndindex(2, 2, 2):
        full[place] = points[(*place, 1)[:inputs]] if inputs == 4 else points[place[:inputs]]
    assert np.abs(found - shown({b"A2B0": table(full)}, pcs=b"Lab ")).max() < 0.1


@pytest.mark.parametrize(
    ("points", "meant"),
    [
        ((9, 8, 0, 1), "BT.2020, linear"),
        ((1, 13, 0, 1), "sRGB"),
        ((1, 1, 0, 1), "sRGB"),
        ((9, 12, 0, 1), "P3"),
        ((3, 8, 0, 1), "P3"),
        ((9, 8, 9, 1), "P3"),
        ((9, 8, 0, 0), "P3"),
    ],
)
def test_code_points_in_a_profile_outrank_the_rest(points, meant: str) -> None:
    found = shown(P3 | {b"cicp": b"cicp" + bytes(4) + bytes(points)})
    if meant == "sRGB":
        assert np.abs(found - 255 * LEVELS).max() < 1
    elif meant == "P3":
        assert np.array_equal(found, shown(P3))
    else:
        columns = [
            (0.67347, 0.27904, -0.00193),
            (0.16567, 0.67535, 0.02998),
            (0.12505, 0.04561, 0.79685),
        ]
        assert np.abs(found - shown(tags_of(columns, curve(1.0)))).max() < 3


def test_grey() -> None:
    levels = np.linspace(0, 1, 50)[:, None]
    grey = parse(profiles.grey(1.0)).srgb(levels)
    assert np.abs(grey - grey[:, :1]).max() < 0.005
    assert abs(grey[25, 0] - 0.74) < 0.02
    lab = profile(b"GRAY", {b"kTRC": curve(1.0)}, b"Lab ")
    assert not is_read(lab)
    assert is_read(lab, strict=False)
    assert not is_read(profile(b"GRAY", P3))


def test_tags_that_lie_over_each_other_cost_nothing() -> None:
    icc = overlapping_tags()
    tracemalloc.start()
    try:
        assert not is_read(icc)
        assert not is_read(icc, strict=False)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_curve_of_65536_points_is_read_whole() -> None:
    points = np.zeros(65536)
    points[32768] = 1
    icc = parse(profile(b"RGB ", tags_of(profiles.SRGB, sampled(points))))
    assert icc.srgb(np.array([[32768 / 65535] * 3, [0.25] * 3])).round().tolist() == [
        [1] * 3,
        [0] * 3,
    ]
