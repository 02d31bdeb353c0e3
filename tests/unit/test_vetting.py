"""Vetting with the real model and a real mirror."""

import io
from dataclasses import dataclass, field

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from tests.fixtures.hot_set import bank, reference, snapshot
from worker.descriptor import embedders
from worker.descriptor.views import REFERENCE_VIEWS
from worker.errors import Objection
from worker.hotset.mirror import Mirror
from worker.hotset.types import Descriptors, View
from worker.image import patterns
from worker.scoring.calibration import Calibration
from worker.scoring.learning import learn
from worker.scoring.rules import Rules
from worker.settings import ModelSettings
from worker.vetting import Candidate, Vetting

PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "cat", "cell", "clock", "coffee", "coins", "grass", "gravel",
    "hubble_deep_field", "immunohistochemistry", "microaneurysms", "moon", "page", "retina",
    "rocket", "text",
)  # fmt: skip
VIEWS: tuple[View, ...] = ("plain", "inverted")
BANK = bank()
ALLOW = bank("fine", kind="allow", threshold=None, suppresses=("known-bad",))


@pytest.fixture(scope="module")
def embedder():
    return embedders.load(ModelSettings(name="sscd_disc_mixup_int8"))


@pytest.fixture(scope="module")
def candidate(embedder):
    """From pixels to a candidate, described as `refs add` does."""

    def make(pixels, reference_id, **changes):
        square = np.array(Image.fromarray(pixels).convert("RGB").resize((320, 320)))
        views = np.stack([REFERENCE_VIEWS[view](square) for view in VIEWS])
        rows = embedder.describe(views).numpy().astype(np.float16)
        one = reference(reference_id, **changes)
        return Candidate(one, Descriptors(VIEWS, rows), square)

    return make


@dataclass
class HotSet:
    """What is there before anybody is vetted."""

    embedder: embedders.Embedder
    held: list[Candidate] = field(default_factory=list)
    banks: tuple = (BANK, ALLOW)
    calibration: Calibration | None = None

    def vetting(self, share=0.05):
        mirror = Mirror(self.embedder.model, self.embedder.device)
        described = [(one.reference, one.descriptors) for one in self.held]
        mirror.load(snapshot(self.banks, described, calibration=self.calibration))
        known = [one.reference for one in self.held if one.reference.bank == BANK.name]
        return Vetting(self.embedder, mirror, Rules(["plain"]), share, known)


def budgeted(per_million):
    return bank(threshold=None, max_false_matches_per_million=per_million)


def kinds(raised):
    return [[one.objection for one in of_one] for of_one in raised]


def jpeg(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def photograph(name):
    return getattr(skimage.data, name)()


def test_photographs_are_not_objected_to(embedder, candidate):
    shown = [candidate(photograph(name), name) for name in PHOTOGRAPHS]
    assert kinds(HotSet(embedder).vetting().objections(BANK, shown)) == [[]] * len(PHOTOGRAPHS)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("noise", Objection.NOISE),
        ("grains", Objection.NOISE),
        ("colour bars", Objection.TEST_PATTERN),
        ("test card", Objection.TEST_PATTERN),
        ("checkerboard", Objection.TEST_PATTERN),
        ("rings", Objection.TEST_PATTERN),
        ("star", Objection.TEST_PATTERN),
    ],
)
def test_most_patterns_of_another_seed_are_objected_to(embedder, candidate, family, expected):
    drawn = patterns.draw(family, 480, seed=5)[: patterns.EACH]
    shown = [candidate(jpeg(one, 75), f"p{number}") for number, one in enumerate(drawn)]
    without = [Candidate(one.reference, one.descriptors) for one in shown]
    for candidates in (shown, without):
        raised = HotSet(embedder).vetting().objections(BANK, candidates)
        found = sum(expected in of_one for of_one in kinds(raised))
        assert found >= 0.7 * len(shown)


def test_pixels_and_patterns_that_say_the_same_say_it_once(embedder, candidate):
    shown = [candidate(one, f"g{n}") for n, one in enumerate(patterns.draw("gradient", 320)[:3])]
    raised = HotSet(embedder).vetting().objections(BANK, shown)
    assert kinds(raised) == [[Objection.LOW_INFORMATION]] * 3
    assert "levels of detail" in raised[0][0].detail


def test_a_copy_of_what_the_bank_has_is_a_duplicate(embedder, candidate):
    coffee = photograph("coffee")
    held = [
        candidate(coffee, "a", sha256="1" * 64),
        candidate(photograph("rocket"), "b", bank="other"),
        candidate(photograph("cat"), "c", canary=True),
    ]
    vetting = HotSet(embedder, held, banks=(BANK, bank("other"))).vetting()
    shown = [
        candidate(jpeg(coffee, 80), "again"),
        candidate(255 - coffee, "inverted"),
        candidate(coffee, "a", sha256="1" * 64),
        candidate(coffee[100:, 150:], "part"),
        candidate(photograph("page"), "same-file", sha256="1" * 64),
        candidate(photograph("rocket"), "in-another-bank"),
        candidate(photograph("cat"), "of-a-canary"),
        candidate(coffee, "canary", canary=True),
    ]
    raised = vetting.objections(BANK, shown)
    duplicate = [Objection.DUPLICATE]
    assert kinds(raised) == [duplicate, duplicate, [], [], duplicate, [], [], []]
    assert [of_one[0].reference_id for of_one in raised if of_one] == ["a"] * 3
    assert "reference a" in raised[0][0].detail


def test_a_copy_of_one_before_it_is_a_duplicate(embedder, candidate):
    vetting = HotSet(embedder).vetting()
    coffee = photograph("coffee")
    first = [candidate(coffee, "one"), candidate(jpeg(coffee, 85), "two")]
    assert kinds(vetting.objections(BANK, first)) == [[], [Objection.DUPLICATE]]
    later = [candidate(jpeg(coffee, 90), "three"), candidate(coffee, "one")]
    (third, one) = vetting.objections(BANK, later)
    assert ([raised.reference_id for raised in third], one) == (["one"], ())
    assert vetting.objections(BANK, []) == []


def test_what_is_there_already_is_no_duplicate_of_another(embedder, candidate):
    coffee = photograph("coffee")
    held = [candidate(coffee, "a"), candidate(coffee, "forced")]
    assert HotSet(embedder, held).vetting().objections(BANK, held) == [(), ()]


def test_block_and_allow_must_not_have_the_same_picture(embedder, candidate):
    coffee, cat = photograph("coffee"), photograph("cat")
    held = [candidate(coffee, "a"), candidate(cat, "b", bank="fine")]
    hot_set = HotSet(embedder, held)
    (blocking,) = hot_set.vetting().objections(BANK, [candidate(cat[10:, 10:], "x")])
    (allowing,) = hot_set.vetting().objections(ALLOW, [candidate(coffee, "y", bank="fine")])
    for raised, other in ((blocking, "b"), (allowing, "a")):
        assert [(one.objection, one.reference_id) for one in raised] == [(Objection.ALLOWED, other)]
    assert "allow reference b" in blocking[0].detail


@pytest.mark.parametrize("count", [40, 2500])
def test_a_crowd_of_the_same_hides_no_allow_reference(embedder, candidate, count):
    coffee = photograph("coffee")
    once = candidate(coffee, "a")
    crowd = [Candidate(reference(f"r{n}", "other"), once.descriptors) for n in range(count)]
    allowed = candidate(jpeg(coffee, 40), "z", bank="fine")
    hot_set = HotSet(embedder, [*crowd, allowed], banks=(BANK, ALLOW, bank("other")))
    (raised,) = hot_set.vetting().objections(BANK, [once])
    assert [one.objection for one in raised] == [Objection.ALLOWED]


def test_too_many_false_matches_are_objected_to(embedder, candidate):
    """A null image that is the reference's copy, among a thousand that are nothing to it."""
    one, other = candidate(photograph("coffee"), "a"), candidate(photograph("rocket"), "b")
    generator = torch.Generator().manual_seed(0)
    noise = torch.nn.functional.normalize(torch.randn(2999, 512, generator=generator), dim=1)
    copy = torch.from_numpy(one.descriptors.rows[1:].astype(np.float32))
    held = candidate(photograph("astronaut"), "c")
    near = torch.from_numpy(held.descriptors.rows[:1].astype(np.float32)) + noise[1000:1030]
    null = torch.cat([near / near.norm(dim=1, keepdim=True), noise[1030:], copy]).half().numpy()
    calibration = learn(
        embedder.model.sha256, noise[:1000].half().numpy(), null[:, None], np.arange(2000)
    )
    for policy, share, expected in (
        (budgeted(5000), 0.05, [Objection.FALSE_MATCHES]),  # 1 of 2000, of 250 allowed
        (budgeted(5000), 0.2, []),
        (budgeted(1), 0.05, []),  # not supported
        (bank(threshold=None), 0.05, []),
    ):
        hot_set = HotSet(embedder, [held], (policy,), calibration)
        raised = hot_set.vetting(share).objections(policy, [one, other])
        assert kinds(raised) == [expected, []]
        if expected:
            detail = "500 false matches per million expected, more than 5% of the bank's 5000"
            assert raised[0][0].detail == detail
