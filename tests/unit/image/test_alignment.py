"""Scenes and artworks, laid on each other."""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest
import skimage.data
from PIL import Image

from worker.errors import StartupError
from worker.image import alignment, edits
from worker.image.alignment import aligned_pairs, are_aligned, features

NAMES = (
    "astronaut", "brick", "camera", "cat", "clock", "coffee", "coins", "hubble_deep_field",
    "immunohistochemistry", "microaneurysms", "page", "retina", "rocket", "text",
)  # fmt: skip
EDITS = (
    "re-encoded, JPEG q30", "cropped, 70% a side", "mirrored", "rotated by 90 degrees",
    "greyscale", "captioned", "pasted into a page", "screenshot",
)  # fmt: skip


def image(name):
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


@pytest.fixture(scope="module")
def photographs():
    return [features(np.asarray(image(name))) for name in NAMES]


@pytest.mark.parametrize("edit", EDITS)
def test_copies_are_aligned(photographs, edit):
    for name in ("astronaut", "cat", "coffee"):
        copy = features(np.asarray(edits.EDITS[edit](image(name))))
        assert are_aligned(copy, photographs[NAMES.index(name)])


def test_other_photographs_are_not(photographs):
    for number, one in enumerate(photographs):
        assert not any(are_aligned(one, other) for other in photographs[:number])


def test_two_views_of_one_scene_are():
    left, right, _ = skimage.data.stereo_motorcycle()
    assert are_aligned(features(left), features(right))


def test_matched_points_alone_do_not_align():
    """The same corners, but other pixels around them."""
    page = np.asarray(image("page"))
    noise = np.random.default_rng(1).integers(0, 256, page.shape, np.uint8)
    seen = features(page)
    other = alignment.Features(seen.points, seen.described, features(noise).grey)
    assert alignment.agreement(seen, seen) > 0.99
    assert alignment.agreement(seen, other) < 0.1


def test_nothing_to_hold_on_to(photographs):
    blank = features(np.full((50, 80, 3), 255, np.uint8))
    assert len(blank.points) == 0
    assert not are_aligned(blank, blank)
    assert not are_aligned(blank, photographs[0])
    assert aligned_pairs([blank, blank]).shape == (0, 2)
    assert aligned_pairs([]).shape == (0, 2)


def test_pairs_among_many(photographs):
    copies = [
        features(np.asarray(edits.EDITS[edit](image(name))))
        for name, edit in (("cat", "mirrored"), ("coffee", "captioned"))
    ]
    n, cat, coffee = len(NAMES), NAMES.index("cat"), NAMES.index("coffee")
    told: list[float] = []
    among = aligned_pairs([*photographs, *copies], on_progress=told.append)
    assert among.tolist() == [[cat, n], [coffee, n + 1]]
    assert told == sorted(told)
    assert told[-1] == 1
    assert aligned_pairs(copies, photographs).tolist() == [[0, cat], [1, coffee]]
    assert aligned_pairs(copies, []).tolist() == []


def test_what_is_kept_of_a_picture_is_small(photographs):
    for one in photographs:
        assert one.points.nbytes + one.described.nbytes + one.grey.nbytes <= 80_000


def test_without_opencv_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    spec = spec_from_file_location("another_alignment", alignment.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(StartupError, match=r"copysieve\[evaluate\]"):
        spec.loader.exec_module(module_from_spec(spec))
