"""Allow banks with the real model: a look-alike is overruled, what is shown beside it is not."""

from itertools import permutations

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from tests.fixtures.hot_set import bank, reference, snapshot
from worker.compare import compare
from worker.descriptor import embedders
from worker.descriptor.views import REFERENCE_VIEWS
from worker.hotset.mirror import Mirror
from worker.hotset.types import Descriptors, View
from worker.image import edits, preprocess
from worker.scoring.rules import Rules
from worker.settings import ModelSettings

PHOTOGRAPHS = ("astronaut", "camera", "cat", "coffee", "hubble_deep_field", "rocket")
VIEWS: tuple[View, ...] = ("plain", "inverted")
THRESHOLD = 0.4
SIDE = 400
ALLOW = bank("fine", kind="allow", threshold=None, suppresses=("known-bad",))


@pytest.fixture(scope="module")
def embedder():
    return embedders.load(ModelSettings(name="sscd_disc_mixup_int8", device="cpu"))


@pytest.fixture(scope="module")
def describe(embedder):
    """From a picture to its descriptor as an upload, float32 [1, dims]."""

    def make(picture):
        return embedder.describe(square(embedder, picture)[None])

    return make


@pytest.fixture(scope="module")
def described(embedder):
    """From a picture to its descriptors as a reference."""

    def make(picture):
        pixels = square(embedder, picture)
        rows = embedder.describe(np.stack([REFERENCE_VIEWS[view](pixels) for view in VIEWS]))
        return Descriptors(VIEWS, rows.numpy().astype(np.float16))

    return make


@pytest.fixture(scope="module")
def references(described):
    return {name: described(photograph(name)) for name in PHOTOGRAPHS}


def square(embedder, picture):
    return preprocess.resize(np.asarray(picture), embedder.preprocessing)


def photograph(name):
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def beside(left, right):
    """Two pictures side by side in one."""
    both = Image.new("RGB", (2 * SIDE, SIDE))
    both.paste(left.resize((SIDE, SIDE)), (0, 0))
    both.paste(right.resize((SIDE, SIDE)), (SIDE, 0))
    return both


def screen(embedder, bad, good, upload):
    """Compare an upload with a bad reference and an allow reference."""
    mirror = Mirror(embedder.model, embedder.device)
    both = [(reference("bad"), bad), (reference("good", bank="fine"), good)]
    mirror.load(snapshot([bank(threshold=THRESHOLD), ALLOW], both))
    (found,) = compare(mirror, Rules(["plain"]), [upload], [None])
    return found.decision


def cosine(upload, described):
    return float(upload[0] @ torch.from_numpy(described.rows[0].astype(np.float32)))


def test_a_picture_side_by_side_with_an_allowed_one_matches(embedder, describe, references):
    outranked = 0
    for bad, good in permutations(PHOTOGRAPHS, 2):
        upload = describe(beside(photograph(bad), photograph(good)))
        decision = screen(embedder, references[bad], references[good], upload)
        assert not decision.suppressed
        likeness = cosine(upload, references[bad])
        assert bool(decision.enforced) == (likeness >= THRESHOLD)
        outranked += THRESHOLD <= likeness < cosine(upload, references[good])
    assert outranked >= 5  # in these the allow reference scores higher than the match


@pytest.mark.parametrize("edit", ["unedited", "reencoded", "cropped", "recoloured"])
def test_copies_of_an_allowed_look_alike_are_suppressed(embedder, describe, described, edit):
    left, right, _ = skimage.data.stereo_motorcycle()
    bad, good = described(Image.fromarray(left)), described(Image.fromarray(right))
    copy = edits.reencoded(getattr(edits, edit)(Image.fromarray(right)), quality=70)
    decision = screen(embedder, bad, good, describe(copy))
    assert not decision.enforced
    assert [one.by.reference.reference_id for one in decision.suppressed] == ["good"]
    # A copy of the bad picture is more like it than like the allowed one.
    copy = edits.reencoded(getattr(edits, edit)(Image.fromarray(left)), quality=70)
    assert screen(embedder, bad, good, describe(copy)).enforced


def test_an_inverted_look_alike_is_suppressed_by_the_same_view(embedder, describe, described):
    left, right, _ = skimage.data.stereo_motorcycle()
    bad, good = described(Image.fromarray(left)), described(Image.fromarray(right))
    decision = screen(embedder, bad, good, describe(Image.fromarray(255 - right)))
    assert not decision.enforced
    assert [one.match.hit.view for one in decision.suppressed] == ["inverted"]
